//! What Postfix asks beside passwords: look-up tables (`maps`) and its policy server (`policy`). Both are questions and
//! answers in turn, on connections that stay open.

pub(super) mod maps;
pub(super) mod policy;

use std::time::{Duration, Instant};

/// Says the same thing at most once in ten seconds: one message makes Postfix ask some thirty times.
#[derive(Debug, Default)]
struct Seldom(std::sync::Mutex<Option<Instant>>);

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(10);

    fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.duration_since(last) >= Self::PAUSE);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests;
