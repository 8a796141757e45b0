//! `[login]`.

use std::time::Duration;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::check::{Names, settle_domain};
use super::problem::Report;
use super::units::Span;

/// How a name typed becomes a login.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Login {
    /// For names without `@`; empty: they are refused.
    pub default_domain: String,
    /// The ASCII letters of the local part become lower case.
    pub lowercase: bool,
    /// `user+detail` logs in as `user`; empty: no such thing.
    pub separator: String,
    /// The time for one attempt, delays included. Postfix gives up after 10 s.
    pub deadline: Span,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            default_domain: String::new(),
            lowercase: true,
            separator: "+".into(),
            deadline: Span::seconds(8),
        }
    }
}

impl Login {
    pub(super) fn settle(&mut self, names: &Names, report: &mut Report) {
        if !self.default_domain.is_empty() {
            settle_domain(&mut self.default_domain, "default_domain", names, report);
        }
        let is_illegal = |c: char| c == '@' || c.is_control() || c.is_whitespace();
        report.require(
            !self.separator.contains(is_illegal),
            "separator",
            "no @ and no blank can separate",
            "a sign such as +",
        );
        report.require(
            self.deadline.0 > Duration::ZERO,
            "deadline",
            "no time at all",
            "a span of time such as 8s",
        );
        if self.deadline.0 >= Duration::from_secs(10) {
            report.notice("deadline", "Postfix gives up after 10s");
        }
    }
}
