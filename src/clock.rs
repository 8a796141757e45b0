//! The one reader of time. Everything else takes the time as an argument.

use std::time::{Instant, SystemTime};

/// Monotonic time. Goes through tokio so that tests with paused time see it stand still.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Wall-clock time, for what people read and what the store keeps.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the reader of time")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970-01-01 UTC; 0 for a clock set before that.
#[must_use]
pub fn unix_seconds() -> i64 {
    let since = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
