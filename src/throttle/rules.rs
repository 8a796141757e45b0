//! One rule with its table: whom it is about, what it counts, what it says.

use std::sync::Arc;

use super::history::History;
use super::table::{Key, Table};
use super::tally::{Distinct, Item, Times};
use super::{Charge, Faces, Time, millis};
use crate::config::throttle::{Action, Count, Per, Rule as Settings};
use crate::identity::Domain;
use crate::service::Service;

/// A compiled rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    pub(super) settings: Settings,
    services: Vec<Service>,
    domains: Vec<Box<str>>,
    /// Stays over a reload that leaves what is counted as it is.
    counted: Arc<Counted>,
}

/// What a rule counted.
#[derive(Debug)]
struct Counted {
    by: (Count, Per),
    /// Milliseconds.
    window: u64,
    keys: usize,
    tallies: Tallies,
    /// Keys at their limit, whose rule holds on longer than its window does: since when.
    held: Option<Table<Times>>,
}

#[derive(Debug)]
enum Tallies {
    Times(Table<Times>),
    Distinct(Table<Distinct>),
}

macro_rules! each {
    ($tallies:expr, $table:ident => $work:expr) => {
        match $tallies {
            Tallies::Times($table) => $work,
            Tallies::Distinct($table) => $work,
        }
    };
}

/// What a rule found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) count: u32,
    pub(super) limit: u32,
}

impl Rule {
    /// Compiles a rule, over the counts of the one that had its name before if it counts the same.
    pub(super) fn new(name: &str, settings: &Settings, keys: usize, before: Option<&Self>) -> Self {
        let (by, window) = ((settings.count, settings.per), millis(settings.window.0));
        let hold = millis(settings.hold.0);
        let same = before.map(|before| &before.counted).filter(|counted| {
            let held = counted.held.is_some() == (hold > window);
            held && counted.by == by && counted.window == window && counted.keys == keys
        });
        let counted = same.cloned().unwrap_or_else(|| {
            let keys = if by.1 == Per::All { 8 } else { keys };
            let tallies = match by.0 {
                Count::Attempts | Count::Failures => Tallies::Times(Table::new(keys, window)),
                _ => Tallies::Distinct(Table::new(keys, window)),
            };
            let held = (hold > window).then(|| Table::new(keys, hold));
            Arc::new(Counted { by, window, keys, tallies, held })
        });
        let domain = |text: &String| Some(Domain::parse(text).ok()?.as_str().into());
        Self {
            name: name.into(),
            services: settings.services.iter().filter_map(|it| Service::parse(it)).collect(),
            domains: settings.domains.iter().filter_map(domain).collect(),
            settings: settings.clone(),
            counted,
        }
    }

    /// Whether it is about such attempts.
    fn concerns(&self, faces: &Faces<'_>) -> bool {
        let by_service = self.services.is_empty()
            || faces.service.is_some_and(|service| self.services.contains(&service));
        let is_listed = |domain: &str| self.domains.iter().any(|listed| **listed == *domain);
        by_service && (self.domains.is_empty() || faces.domain().is_some_and(is_listed))
    }

    /// For what an attempt is counted here, if it is.
    pub(super) fn key(&self, faces: &Faces<'_>) -> Option<Key> {
        if self.concerns(faces) { faces.key(self.settings.per) } else { None }
    }

    /// Whether anybody may be past the limit at all.
    pub(super) fn is_hot(&self, now: Time) -> bool {
        let is_held = self.counted.held.as_ref().is_some_and(|held| held.is_hot(now));
        is_held || each!(&self.counted.tallies, table => table.is_hot(now))
    }

    /// What is counted for a key.
    pub(super) fn count(&self, key: Key, now: Time) -> u32 {
        each!(&self.counted.tallies, table => table.total(key, now))
    }

    /// Whether the rule acts on an attempt.
    pub(super) fn judge(&self, faces: &Faces<'_>, history: &History, now: Time) -> Option<Reached> {
        if !self.is_hot(now) {
            return None;
        }
        let key = self.key(faces)?;
        let count = self.count(key, now);
        let is_held = || self.counted.held.as_ref().is_some_and(|held| held.total(key, now) > 0);
        if count < self.settings.limit && !is_held() {
            return None;
        }
        let limit = self.limit(faces, history, now)?;
        (count >= limit || is_held()).then_some(Reached { count, limit })
    }

    /// The limit for this attempt: a source with a good history has a higher one. `None`: there is none for it.
    pub(super) fn limit(&self, faces: &Faces<'_>, history: &History, now: Time) -> Option<u32> {
        let limit = self.settings.limit;
        let is_known = || self.knows(faces, history, now);
        match self.settings.per {
            // Whatever the whole world does with this name, or whoever else does behind this address: the owner comes from
            // where they always came from. Guesses at them from there are counted by login and net.
            Per::All | Per::Login | Per::Ip | Per::Net if is_known() => None,
            Per::All | Per::Login => Some(limit),
            Per::LoginIp | Per::LoginNet | Per::Session if is_known() => Some(limit * 2),
            Per::LoginIp | Per::LoginNet | Per::Session => Some(limit),
            Per::Ip | Per::Net => {
                let key = if self.settings.per == Per::Ip { faces.ip } else { faces.net };
                let people = key.map_or(0, |key| history.people(key, now));
                Some(limit.saturating_add(people.saturating_mul(self.settings.allowance)))
            }
        }
    }

    /// What the rule does with an attempt that it acts on. Whoever got in from that net before is never denied, only
    /// delayed: a neighbour who guesses at them must not lock them out at home.
    pub(super) fn action(&self, faces: &Faces<'_>, history: &History, now: Time) -> Action {
        match self.settings.action {
            Action::Deny if self.knows(faces, history, now) => Action::Delay,
            action => action,
        }
    }

    /// Whether a good history counts: for a rule about the sheer number of attempts it does not.
    fn knows(&self, faces: &Faces<'_>, history: &History, now: Time) -> bool {
        self.settings.count != Count::Attempts
            && faces.pair.is_some_and(|pair| history.knows(pair, now))
    }

    /// Counts an attempt if this is what the rule counts.
    pub(super) fn learn(&self, faces: &Faces<'_>, charge: Charge, history: &History, now: Time) {
        let is_failure = match charge {
            Charge::Failure(_) => true,
            Charge::SourceFailure => !self.settings.per.holds_login(),
            Charge::Nothing | Charge::Unproven(_) => false,
        };
        let item = match charge {
            Charge::Failure(item) | Charge::Unproven(item) => item,
            Charge::Nothing | Charge::SourceFailure => None,
        };
        let (counts, item) = match self.settings.count {
            Count::Attempts => (true, None),
            Count::Failures => (is_failure, item),
            // A password that nobody can tell from others is no different one.
            Count::DistinctWrongPasswords => (matches!(charge, Charge::Failure(Some(_))), item),
            Count::DistinctLogins => (is_failure && faces.login.is_some(), faces.login_item()),
            Count::DistinctIps => (is_failure && faces.ip.is_some(), faces.ip.map(item_of)),
            Count::DistinctNets => (is_failure && faces.net.is_some(), faces.net.map(item_of)),
            Count::Unproven => (matches!(charge, Charge::Unproven(_)), item),
        };
        self.add_if(counts, faces, item, history, now);
    }

    fn add_if(
        &self,
        counts: bool,
        faces: &Faces<'_>,
        item: Option<Item>,
        history: &History,
        now: Time,
    ) {
        let Some(key) = self.key(faces).filter(|_| counts) else { return };
        let limit = self.settings.limit;
        let total = each!(&self.counted.tallies, table => table.add(key, item, limit, now));
        if total >= limit
            && let Some(held) = &self.counted.held
            && self.limit(faces, history, now).is_some_and(|limit| total >= limit)
        {
            held.add(key, None, 1, now);
        }
    }

    /// Somebody got in: what holds their login is paid down, nothing else. What came from their own address or net is
    /// forgotten; of what the whole world tried, one is taken back. Whether there was anything to forget.
    pub(super) fn pay_down(&self, faces: &Faces<'_>, is_news: bool, now: Time) -> bool {
        if !self.settings.per.holds_login() || self.settings.count == Count::Attempts {
            return false;
        }
        if each!(&self.counted.tallies, table => table.is_empty()) {
            return false;
        }
        let Some(key) = self.key(faces) else { return false };
        if self.settings.per == Per::Login {
            // Clients log in all day: only a login that is news says something about the guesses.
            if is_news {
                each!(&self.counted.tallies, table => table.take_back(key, now));
            }
            return false;
        }
        self.clear(key, now)
    }

    /// Forgets a key; whether anything was counted.
    pub(super) fn clear(&self, key: Key, now: Time) -> bool {
        let held = self.counted.held.as_ref().is_some_and(|held| held.clear(key, now));
        each!(&self.counted.tallies, table => table.clear(key, now)) || held
    }

    /// What its counts take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let held = self.counted.held.as_ref().map_or(0, Table::bytes);
        each!(&self.counted.tallies, table => table.bytes()) + held
    }

    /// Keys that are counted, and how many gave way to others while they counted.
    pub(super) fn size(&self) -> (usize, usize) {
        each!(&self.counted.tallies, table => table.size())
    }
}

/// A key as a value to tell apart.
pub(super) fn item_of(key: Key) -> Item {
    let [a, b, ..] = key.0.to_be_bytes();
    Item::from_be_bytes([a, b])
}
