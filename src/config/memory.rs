//! `[memory]`.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::problem::Report;
use super::units::{ByteSize, Span};

/// What is remembered of logins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Memory for all that is remembered of logins, in bytes. An eighth of it is for names that are nobody's. Look-ups
    /// of addresses take up to another eighth on top.
    pub capacity: ByteSize,
    /// A proven password is answered from memory for this long; then the directory is asked again. 0: always asked.
    pub fresh: Span,
    /// While no directory answers, a remembered good password still works this much longer.
    pub grace: Span,
    /// A password known to be wrong is not bound again for this long.
    pub refused: Span,
    /// Unknown, ambiguous and locked accounts are not asked about again for this long.
    pub absent: Span,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            capacity: ByteSize(512 << 20),
            fresh: Span::seconds(15 * 60),
            grace: Span::seconds(12 * 3600),
            refused: Span::seconds(10 * 60),
            absent: Span::seconds(30),
        }
    }
}

impl Memory {
    pub(super) fn check(&self, report: &mut Report) {
        report.require(
            self.capacity.0 >= 1 << 20,
            "capacity",
            "too little to remember anybody",
            "1 MiB or more",
        );
    }
}
