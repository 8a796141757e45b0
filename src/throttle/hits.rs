//! On whom rules acted last, in words, for `gatepost policy list`: the tables know only hashes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::config::throttle::Action;

/// Kept at one time; who was not seen for longest goes first.
const MAX_HITS: usize = 1024;

/// That a rule acted on somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The rule.
    pub rule: Arc<str>,
    /// Whom it was about: an address, a net, a login, or both.
    pub whom: String,
    /// What it did.
    pub action: Action,
    /// What it had counted the last time.
    pub count: u32,
    /// The limit then.
    pub limit: u32,
    /// How often it acted.
    pub times: u64,
    /// For the first time.
    pub first: SystemTime,
    /// For the last time.
    pub last: SystemTime,
}

/// The last of them.
#[derive(Debug, Default)]
pub(super) struct Hits(Mutex<HashMap<(Arc<str>, String), Hit>>);

impl Hits {
    pub(super) fn note(
        &self,
        rule: &Arc<str>,
        action: Action,
        whom: String,
        (count, limit): (u32, u32),
        now: SystemTime,
    ) {
        let mut hits = self.lock();
        let key = (Arc::clone(rule), whom);
        if let Some(hit) = hits.get_mut(&key) {
            let (times, first) = (hit.times + 1, hit.first);
            let (rule, whom) = key;
            *hit = Hit { rule, whom, action, count, limit, times, first, last: now };
            return;
        }
        if hits.len() >= MAX_HITS {
            let oldest = hits.iter().min_by_key(|(_, hit)| hit.last).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                hits.remove(&oldest);
            }
        }
        let (rule, whom) = key.clone();
        hits.insert(key, Hit { rule, whom, action, count, limit, times: 1, first: now, last: now });
    }

    /// Those that name this address or this login.
    pub(super) fn forget(&self, client: Option<IpAddr>, login: Option<&str>) {
        let client = client.map(|client| client.to_canonical().to_string());
        self.lock().retain(|(_, whom), _| {
            let names =
                |text: Option<&str>| text.is_some_and(|text| whom.split(' ').any(|it| it == text));
            !names(client.as_deref()) && !names(login)
        });
    }

    pub(super) fn all(&self) -> Vec<Hit> {
        let mut hits: Vec<Hit> = self.lock().values().cloned().collect();
        hits.sort_by(|a, b| b.last.cmp(&a.last).then_with(|| a.whom.cmp(&b.whom)));
        hits
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Arc<str>, String), Hit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn hits_are_counted_bounded_and_forgotten() {
        let hits = Hits::default();
        let rule: Arc<str> = "guessing".into();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (second, whom) in
            [(1, "fry@x.com from 192.0.2.0/24"), (2, "192.0.2.9"), (3, "192.0.2.9")]
        {
            hits.note(&rule, Action::Deny, whom.into(), (10, 10), at(second));
        }
        let shown: Vec<_> = hits.all().into_iter().map(|hit| (hit.whom, hit.times)).collect();
        assert_eq!(shown, [("192.0.2.9".into(), 2), ("fry@x.com from 192.0.2.0/24".into(), 1)]);

        hits.forget(None, Some("fry@x.com"));
        assert_eq!(hits.all().len(), 1);
        for number in 0..2000 {
            hits.note(&rule, Action::Deny, format!("{number}"), (10, 10), at(10));
        }

        assert_eq!(hits.all().len(), MAX_HITS);
        assert!(!hits.all().iter().any(|hit| hit.whom == "192.0.2.9"));
    }
}
