//! `[memory]`.

use std::time::Duration;

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
    /// From this share of `fresh` on, a login that memory answers also makes the directory be asked once in the
    /// background, so that people who log in often never wait. 0 or 1: off.
    pub refresh_ahead: f64,
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
            refresh_ahead: 0.8,
            grace: Span::seconds(12 * 3600),
            refused: Span::seconds(10 * 60),
            absent: Span::seconds(30),
        }
    }
}

impl Memory {
    /// The age from which a proof is asked about ahead of time; `None`: never.
    #[must_use]
    pub fn refresh_after(&self) -> Option<Duration> {
        let share = self.refresh_ahead;
        (share > 0.0 && share < 1.0).then(|| self.fresh.0.mul_f64(share))
    }

    pub(super) fn check(&self, report: &mut Report) {
        report.require(
            self.capacity.0 >= 1 << 20,
            "capacity",
            "too little to remember anybody",
            "1 MiB or more",
        );
        report.require(
            (0.0..=1.0).contains(&self.refresh_ahead),
            "refresh_ahead",
            "no share of `fresh`",
            "a number from 0 to 1, such as 0.8",
        );
    }
}
