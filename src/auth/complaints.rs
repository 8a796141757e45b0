//! Errors of our own configuration that every attempt runs into: told to the operator, but not for each attempt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The same directory's error is told again after this long.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// When what was last told of which directory.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<HashMap<Arc<str>, (Instant, String)>>);

impl Complaints {
    /// Logs an error about a directory, unless the same one was told within the last minute.
    pub(super) fn complain(&self, directory: &Arc<str>, detail: &str, now: Instant) {
        if self.is_news(directory, detail, now) {
            tracing::error!(directory.name = %directory, %detail, "directory refuses our question");
        }
    }

    /// One entry for each directory of the configuration, so the table stays small.
    fn is_news(&self, directory: &Arc<str>, detail: &str, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = told.get(directory);
        if known.is_some_and(|(at, what)| what == detail && now < *at + TOLD_EVERY) {
            return false;
        }
        told.insert(Arc::clone(directory), (now, detail.to_owned()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_error_is_told_once_in_a_minute() {
        let complaints = Complaints::default();
        let corp: Arc<str> = "corp".into();
        let start = crate::clock::now();

        assert!(complaints.is_news(&corp, "code 8", start));
        assert!(!complaints.is_news(&corp, "code 8", start + Duration::from_secs(59)));
        assert!(complaints.is_news(&corp, "code 8", start + Duration::from_secs(60)));
        assert!(complaints.is_news(&corp, "code 13", start + Duration::from_secs(61)));
        assert!(complaints.is_news(&"other".into(), "code 13", start));
    }
}
