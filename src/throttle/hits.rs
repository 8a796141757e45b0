//! On whom rules acted last, in words, for `gatepost policy list`: the tables know only hashes.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ipnet::IpNet;

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

    /// Forgets those that name this address, a net that it lies in, or this login.
    pub(super) fn forget(&self, client: Option<IpAddr>, login: Option<&str>) {
        self.lock().retain(|(_, whom), _| !names(whom, client, login));
    }

    /// Those that name this address, a net that it lies in, or this login.
    pub(super) fn of(&self, client: Option<IpAddr>, login: Option<&str>) -> Vec<Hit> {
        let mut hits = self.all();
        hits.retain(|hit| names(&hit.whom, client, login));
        hits
    }

    /// Logins together with an address, or one of their net, where both were counted together, and one is named here.
    pub(super) fn pairs(
        &self,
        client: Option<IpAddr>,
        login: Option<&str>,
    ) -> HashSet<(String, IpAddr)> {
        let hits = self.lock();
        let pair = |(_, whom): &(Arc<str>, String)| match parts(whom) {
            (Some(its), Some(net)) if names(whom, client, login) => {
                Some((its.to_owned(), net.addr()))
            }
            _ => None,
        };
        hits.keys().filter_map(pair).collect()
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

/// The login and the net or address that stand in words such as `fry@x.com from 192.0.2.0/24`.
fn parts(whom: &str) -> (Option<&str>, Option<IpNet>) {
    let net = |text: &str| match text.parse::<IpNet>() {
        Ok(net) => Some(net),
        Err(_) => text.parse::<IpAddr>().ok().map(IpNet::from),
    };
    if let Some((login, source)) = whom.rsplit_once(" from ") {
        return (Some(login), net(source));
    }
    match net(whom.strip_prefix("session of ").unwrap_or(whom)) {
        Some(net) => (None, Some(net)),
        None => (Some(whom), None),
    }
}

fn names(whom: &str, client: Option<IpAddr>, login: Option<&str>) -> bool {
    let (its_login, net) = parts(whom);
    let client = client.map(|client| client.to_canonical());
    let by_net = net.zip(client).is_some_and(|(net, client)| net.contains(&client));
    by_net || (login.is_some() && its_login == login)
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
    #[test]
    fn hits_are_found_by_address_net_and_login() {
        let hits = Hits::default();
        let rule: Arc<str> = "guessing".into();
        for whom in [
            "fry@x.com from 192.0.2.0/24",
            "amy@x.com from 192.0.2.9",
            "session of 192.0.2.9",
            "192.0.2.0/24",
            "fry@x.com",
            "everybody",
            "a b from c@x.com from 2001:db8::/64",
        ] {
            hits.note(&rule, Action::Deny, whom.into(), (10, 10), SystemTime::UNIX_EPOCH);
        }
        let of = |client: &str, login| {
            let hits = hits.of(client.parse().ok(), login);
            hits.into_iter().map(|hit| hit.whom).collect::<Vec<_>>()
        };
        assert_eq!(of("", Some("fry@x.com")), ["fry@x.com", "fry@x.com from 192.0.2.0/24"]);
        assert_eq!(of("::ffff:192.0.2.9", None).len(), 4);
        assert_eq!(of("192.0.2.10", None), ["192.0.2.0/24", "fry@x.com from 192.0.2.0/24"]);
        assert_eq!(of("2001:db8::7", None), ["a b from c@x.com from 2001:db8::/64"]);
        assert!(of("", None).is_empty());

        let pairs = hits.pairs("192.0.2.9".parse().ok(), None);
        assert_eq!(pairs.len(), 2);
        assert!(pairs.contains(&("fry@x.com".into(), "192.0.2.0".parse().unwrap())));
        hits.forget(None, Some("fry@x.com"));
        assert_eq!(hits.all().len(), 5);
    }
}
