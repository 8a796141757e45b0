//! A list of steps and a verdict: what `explain`, `login test` and `profile test` print.

use serde::Serialize;

use super::Exit;

/// Steps in the order in which a login takes them.
#[derive(Debug, Default, Serialize)]
pub(super) struct Diagnosis {
    steps: Vec<Step>,
    /// accept | refuse | later
    verdict: Option<&'static str>,
    /// The closed word.
    reason: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<bool>,
    detail: String,
}

impl Diagnosis {
    /// What was found; no judgement.
    pub(super) fn note(&mut self, name: &str, detail: impl Into<String>) {
        self.steps.push(Step { name: name.into(), ok: None, detail: detail.into() });
    }

    /// Speaks for the login.
    pub(super) fn good(&mut self, name: &str, detail: impl Into<String>) {
        self.steps.push(Step { name: name.into(), ok: Some(true), detail: detail.into() });
    }

    /// Speaks against it.
    pub(super) fn bad(&mut self, name: &str, detail: impl Into<String>) {
        self.steps.push(Step { name: name.into(), ok: Some(false), detail: detail.into() });
    }

    pub(super) fn accept(&mut self) -> Exit {
        self.verdict = Some("accept");
        Exit::Done
    }

    pub(super) fn refuse(&mut self, reason: &'static str) -> Exit {
        self.verdict = Some("refuse");
        self.reason = Some(reason);
        Exit::Refused
    }

    pub(super) fn later(&mut self, reason: &'static str) -> Exit {
        self.verdict = Some("later");
        self.reason = Some(reason);
        Exit::Unreachable
    }

    /// One line a step, then the verdict.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            let mark = match step.ok {
                Some(true) => "ok",
                Some(false) => "NO",
                None => "",
            };
            text += &format!("{mark:<3} {:<10} {}\n", step.name, step.detail);
        }
        match (self.verdict, self.reason) {
            (Some(verdict), Some(reason)) => text += &format!("=> {verdict}: {reason}\n"),
            (Some(verdict), None) => text += &format!("=> {verdict}\n"),
            _ => {}
        }
        text
    }
}
