//! Whether a server is worth asking: opens after trouble in a row, so that nobody waits for a dead server twice; then
//! a probe each second finds out whether it is back. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// Trouble in a row that opens it.
const TROUBLE_LIMIT: u32 = 3;

/// Time between probes of a server that does not answer.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A service account that was refused is tried again after this time, then after twice that and so on, lest it be
/// locked.
pub const REFUSAL_INTERVAL: Duration = Duration::from_secs(10);

/// It is tried again this often in the end.
const REFUSAL_INTERVAL_LIMIT: Duration = Duration::from_secs(300);

/// One server's standing.
#[derive(Clone, Debug)]
pub struct Breaker {
    trouble: u32,
    open: bool,
    last_answer: Instant,
    last_error: Option<String>,
}

/// What a report did to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The server is back.
    Closed,
    /// The server is given up for now: somebody must probe it.
    Opened,
    /// Nothing new.
    Same,
}

impl Breaker {
    /// A server nothing is known of: asked.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { trouble: 0, open: false, last_answer: now, last_error: None }
    }

    /// Whether the server is to be asked.
    #[must_use]
    pub fn allows(&self) -> bool {
        !self.open
    }

    /// The server answered, whatever it said.
    pub fn answered(&mut self, now: Instant) -> Turn {
        self.last_answer = self.last_answer.max(now);
        self.trouble = 0;
        self.last_error = None;
        if std::mem::take(&mut self.open) { Turn::Closed } else { Turn::Same }
    }

    /// The server did not answer in time, or could not be reached.
    pub fn failed(&mut self, error: &str) -> Turn {
        self.trouble = self.trouble.saturating_add(1);
        self.last_error = Some(error.to_owned());
        if self.trouble >= TROUBLE_LIMIT && !std::mem::replace(&mut self.open, true) {
            Turn::Opened
        } else {
            Turn::Same
        }
    }

    /// Whether it is given up and has answered nothing for this long.
    #[must_use]
    pub fn silent_for(&self, time: Duration, now: Instant) -> bool {
        self.open && now.saturating_duration_since(self.last_answer) >= time
    }

    /// The last trouble, while there is any.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }
}

/// The interval; the next one is twice as long, up to a limit.
#[must_use]
pub fn next_doubled(interval: &mut Duration) -> Duration {
    let now = *interval;
    *interval = now.saturating_mul(2).min(REFUSAL_INTERVAL_LIMIT);
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_service_account_is_tried_less_and_less_often() {
        let mut interval = REFUSAL_INTERVAL;
        let seconds: Vec<u64> = (0..8).map(|_| next_doubled(&mut interval).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn trouble_in_a_row_opens_and_one_answer_closes() {
        let start = crate::clock::now();
        let mut breaker = Breaker::new(start);

        assert_eq!(breaker.failed("timed out"), Turn::Same);
        assert_eq!(breaker.answered(start), Turn::Same);
        assert_eq!(breaker.failed("timed out"), Turn::Same);
        assert_eq!(breaker.failed("timed out"), Turn::Same);
        assert!(breaker.allows());
        assert_eq!(breaker.failed("connection refused"), Turn::Opened);
        assert_eq!(breaker.failed("connection refused"), Turn::Same);
        assert!(!breaker.allows());
        assert_eq!(breaker.last_error(), Some("connection refused"));

        assert_eq!(breaker.answered(start), Turn::Closed);
        assert!(breaker.allows());
        assert_eq!(breaker.last_error(), None);
    }

    #[test]
    fn silence_counts_from_the_last_answer() {
        let start = crate::clock::now();
        let second = Duration::from_secs(1);
        let mut breaker = Breaker::new(start);
        breaker.answered(start + 10 * second);
        assert!(!breaker.silent_for(5 * second, start + 60 * second), "idle is not silent");

        for _ in 0..3 {
            breaker.failed("timed out");
        }

        assert!(!breaker.silent_for(5 * second, start + 14 * second));
        assert!(breaker.silent_for(5 * second, start + 15 * second));
    }
}
