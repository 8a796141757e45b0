//! What is wrong with a configuration, and where each value came from. Values are never part of a message: the one
//! that is wrong may be a secret in the wrong place.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// An environment variable, by its name.
    Environment(String),
    /// A file, and the line of the key if it is known.
    File(PathBuf, Option<usize>),
    /// The directory's preset.
    Preset,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::Environment(name) => write!(formatter, "environment variable {name}"),
            Self::File(path, Some(line)) => write!(formatter, "{}:{line}", path.display()),
            Self::File(path, None) => write!(formatter, "{}", path.display()),
            Self::Preset => formatter.write_str("preset"),
        }
    }
}

/// One thing that keeps a configuration from being used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, such as `directory.corp.tls`; empty for a file as a whole.
    pub key: String,
    /// The file that sets it.
    pub file: Option<PathBuf>,
    /// The line in that file.
    pub line: Option<usize>,
    /// The environment variable that sets it.
    pub variable: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub expected: Option<String>,
}

impl Problem {
    /// A problem at a key that came from `origin`.
    #[must_use]
    pub fn new(key: impl Into<String>, origin: &Origin, message: impl Into<String>) -> Self {
        let (file, line, variable) = match origin {
            Origin::File(path, line) => (Some(path.clone()), *line, None),
            Origin::Environment(name) => (None, None, Some(name.clone())),
            Origin::Default | Origin::Preset => (None, None, None),
        };
        Self { key: key.into(), file, line, variable, message: message.into(), expected: None }
    }

    /// Says what would be right; an empty text says nothing.
    #[must_use]
    pub fn expecting(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into()).filter(|text| !text.is_empty());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line, &self.variable) {
            (Some(file), Some(line), _) => write!(formatter, "{}:{line}: ", file.display())?,
            (Some(file), None, _) => write!(formatter, "{}: ", file.display())?,
            (None, _, Some(variable)) => write!(formatter, "environment variable {variable}: ")?,
            (None, _, None) => {}
        }
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.message)?;
        match &self.expected {
            Some(expected) => write!(formatter, "; expected {expected}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong, found in one go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let line_break = if index == 0 { "" } else { "\n" };
            write!(formatter, "{line_break}{problem}")?;
        }
        Ok(())
    }
}

/// Something an operator should know, though the configuration can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The setting.
    pub key: String,
    /// What is odd about it.
    pub message: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.key, self.message)
    }
}

/// A key path as it is written in TOML: `domain."corp.example".active`.
#[must_use]
pub fn dotted<S: AsRef<str>>(segments: &[S]) -> String {
    let mut key = String::new();
    for segment in segments {
        let separator = if key.is_empty() { "" } else { "." };
        key.push_str(separator);
        key.push_str(&segment_text(segment.as_ref()));
    }
    key
}

fn segment_text(segment: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !segment.is_empty() && segment.chars().all(is_bare) {
        segment.to_owned()
    } else {
        format!("{segment:?}")
    }
}

/// What the checks find, by key; where each key came from is added afterwards.
#[derive(Debug, Default)]
pub(super) struct Report {
    at: Vec<String>,
    pub(super) problems: Vec<Finding>,
    pub(super) notices: Vec<Notice>,
}

/// A problem before its place is known.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) path: Vec<String>,
    pub(super) message: String,
    pub(super) expected: String,
}

impl Report {
    /// Runs `check` with keys below `segment`.
    pub(super) fn within(&mut self, segment: &str, check: impl FnOnce(&mut Self)) {
        self.at.push(segment.to_owned());
        check(self);
        self.at.pop();
    }

    /// Notes a problem at `key` of the present table.
    pub(super) fn problem(
        &mut self,
        key: &str,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        let path = self.path(key);
        self.problems.push(Finding { path, message: message.into(), expected: expected.into() });
    }

    /// Notes a problem unless `holds`.
    pub(super) fn require(&mut self, holds: bool, key: &str, message: &str, expected: &str) {
        if !holds {
            self.problem(key, message, expected);
        }
    }

    /// Notes a problem unless `count` is from 1 to `most`; `none` says what 0 would do.
    pub(super) fn require_count(&mut self, count: usize, most: usize, key: &str, none: &str) {
        if count == 0 {
            self.problem(key, none, format!("1 to {most}"));
        } else if count > most {
            self.problem(key, "too many", format!("1 to {most}"));
        }
    }

    /// Notes something odd at `key` of the present table.
    pub(super) fn notice(&mut self, key: &str, message: impl Into<String>) {
        let key = dotted(&self.path(key));
        self.notices.push(Notice { key, message: message.into() });
    }

    fn path(&self, key: &str) -> Vec<String> {
        let mut path = self.at.clone();
        if !key.is_empty() {
            path.push(key.to_owned());
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_that_names_place_key_and_what_is_expected() {
        let origin = Origin::File("/etc/gatepost.toml".into(), Some(12));
        let problem = Problem::new("directory.corp.tls", &origin, "not a known word")
            .expecting("none, starttls or ldaps");
        assert_eq!(
            problem.to_string(),
            "/etc/gatepost.toml:12: directory.corp.tls: not a known word; expected none, starttls or ldaps"
        );
        let origin = Origin::Environment("GATEPOST__STORE".into());
        assert_eq!(
            Problem::new("store", &origin, "no table").to_string(),
            "environment variable GATEPOST__STORE: store: no table"
        );
    }

    #[test]
    fn names_that_are_no_bare_keys_are_quoted() {
        assert_eq!(dotted(&["domain", "corp.example", "active"]), "domain.\"corp.example\".active");
    }
}
