//! `[store]`.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::problem::Report;

/// The database of mailboxes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Where it is: `sqlite:///path/to/file.db`.
    pub url: String,
    /// Connections for reading (SQLite writes through one of its own).
    pub max_connections: u32,
}

impl Default for Store {
    fn default() -> Self {
        Self { url: "sqlite:///var/lib/gatepost/gatepost.db".into(), max_connections: 16 }
    }
}

impl Store {
    pub(super) fn check(&self, report: &mut Report) {
        let file =
            self.url.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
        let good = file.is_some_and(|file| !file.is_empty());
        report.require(good, "url", "not a database that is known", "sqlite:///path/to/file.db");
        let connections = usize::try_from(self.max_connections).unwrap_or(usize::MAX);
        report.require_count(connections, 10_000, "max_connections", "0 would read nothing");
    }
}
