//! `[node]` and `[log]`.

use std::path::PathBuf;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::listen;
use super::problem::Report;

/// This node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// The command line's way to the running daemon: a socket with mode 0600, for root and the daemon's own user.
    pub control: PathBuf,
}

impl Default for Node {
    fn default() -> Self {
        Self { control: "/run/gatepost/control".into() }
    }
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// error | warn | info | debug | trace, or a tracing filter such as `info,gatepost::directory=debug`.
    pub level: String,
    /// text (`key=value`) | json (one object a line).
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Node {
    pub(super) fn check(&self, report: &mut Report) {
        listen::check_socket_path(&self.control, "control", report);
    }
}

impl Log {
    pub(super) fn check(&self, report: &mut Report) {
        const EXPECTED: &str =
            "error, warn, info, debug or trace, or a filter such as info,gatepost::directory=debug";
        // A lone word that is no level would be taken for a module, and everything else would fall silent.
        let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
        let parts_fit =
            self.level.split(',').all(|part| part.contains('=') || is_level(part.trim()));
        let good = parts_fit && EnvFilter::builder().parse(&self.level).is_ok();
        report.require(good && !self.level.is_empty(), "level", "not a level or filter", EXPECTED);
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One line of `key=value`.
    Text,
    /// One JSON object a line.
    Json,
}
