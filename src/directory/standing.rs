//! How one server is, and who hears of it: a log line when that changes, and the metrics.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Turn};
use super::pool::lock;
use crate::clock;
use crate::metrics::{Metrics, Up};

/// One server's breaker with its audience.
pub(super) struct Standing {
    label: Arc<str>,
    metrics: Metrics,
    breaker: Mutex<Breaker>,
    shown: Mutex<Shown>,
}

/// Whether the metrics tell how the server is: while its configuration is the one in force.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    No,
    Yes,
}

impl Standing {
    pub(super) fn new(label: Arc<str>, metrics: Metrics) -> Self {
        let breaker = Mutex::new(Breaker::new(clock::now()));
        Self { label, metrics, breaker, shown: Mutex::new(Shown::No) }
    }

    pub(super) fn allows(&self) -> bool {
        lock(&self.breaker).allows()
    }

    pub(super) fn silent_for(&self, time: Duration, now: Instant) -> bool {
        lock(&self.breaker).silent_for(time, now)
    }

    pub(super) fn last_error(&self) -> Option<String> {
        lock(&self.breaker).last_error().map(str::to_owned)
    }

    pub(super) fn answered(&self) {
        let turn = lock(&self.breaker).answered(clock::now());
        if turn == Turn::Closed {
            tracing::info!(directory.server = %self.label, "ldap server answers again");
            self.tell();
        }
    }

    pub(super) fn failed(&self, error: &str) -> Turn {
        let turn = lock(&self.breaker).failed(error);
        if turn == Turn::Opened {
            tracing::warn!(directory.server = %self.label, %error, "ldap server does not answer");
            self.tell();
        }
        turn
    }

    pub(super) fn show(&self) {
        *lock(&self.shown) = Shown::Yes;
        self.tell();
    }

    pub(super) fn hide(&self) {
        let mut shown = lock(&self.shown);
        *shown = Shown::No;
        self.metrics.ldap_forgotten(&self.label);
    }

    /// The lock is held meanwhile: two that tell at once end with what is true, and nobody tells what was hidden.
    fn tell(&self) {
        let shown = lock(&self.shown);
        if *shown == Shown::Yes {
            let up = if self.allows() { Up::Yes } else { Up::No };
            self.metrics.ldap_up(&self.label, up);
        }
    }
}
