//! The guessing shield (`[throttle]`): who guesses is slowed down or refused before memory and directory are asked.
//!
//! [`Throttle::check`] looks an attempt up in the lists and the counts, [`Throttle::learn`] counts what came of it. Both
//! are plain functions that never wait; time is an argument. Gatepost's own doors and the auth-policy server share one
//! [`Throttle`], and so do the nodes that exchange events (`shared`).
//!
//! Passwords are told apart by sixteen bits of a keyed hash over login and password: enough to count them, too few to find
//! one out.

mod history;
mod hits;
mod lists;
mod rules;
mod sending;
mod table;
mod tally;

#[cfg(test)]
mod simulations;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use serde::Serialize;

use crate::clock;
use crate::config::throttle::{Action, Count, Per, Throttle as Settings};
use crate::secret::Password;
use crate::service::Service;

pub use hits::Hit;
pub use lists::{Asked, Entry, Full, List, MAX_ENTRIES, Whom, canonical};
pub use sending::{Sending, SendingLimits, SentListener};

use history::History;
use hits::Hits;
use lists::{Lists, net_of};
use rules::{Reached, Rule};
use table::Key;
use tally::{Item, mix};

/// Milliseconds since some moment long before the process began: what others saw earlier has a time too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Time(u64);

impl Time {
    /// The time now, for somebody who began then.
    fn since(began: Instant, now: Instant) -> Self {
        Self(BEGINNING.saturating_add(millis(now.saturating_duration_since(began))))
    }

    /// So long before.
    fn before(self, ago: Duration) -> Self {
        Self(self.0.saturating_sub(millis(ago)))
    }
}

/// The time at which a process begins, in [`Time`]: longer than any window.
const BEGINNING: u64 = 400 * 86_400_000;

/// Attempts that wait at one time for one key of a rule, so that no source takes all places. It is also how many guesses a
/// delay lets through: so many for each time it lasts.
const MAX_DELAYED_PER_KEY: u32 = 16;

/// Whoever comes from nowhere that is known.
const NOBODY: Key = Key(0);

/// Who waits.
#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    /// Because of what all did together.
    by_all: usize,
    /// Those of one key; none is 0.
    by_key: HashMap<Key, u32>,
}

/// The shield. One per daemon.
pub struct Throttle {
    rules: ArcSwap<Rules>,
    lists: Lists,
    history: ArcSwap<History>,
    hits: Hits,
    /// Attempts that wait, by the key that is to blame.
    delayed: Mutex<Waiting>,
    hasher: RandomState,
    /// Of the passwords' hashes; nodes that share their counts share it.
    guess_key: ArcSwap<[u8; 32]>,
    began: Instant,
    listener: OnceLock<Arc<Listener>>,
}

/// Hears of everything that is learned here and that other nodes should know. Must not wait.
pub type Listener = dyn Fn(Event) + Send + Sync;

/// The rules in force.
#[derive(Debug, Default)]
struct Rules {
    enabled: bool,
    net_v4: u8,
    net_v6: u8,
    max_delayed: usize,
    rules: Vec<Rule>,
    /// Good logins are counted too: other nodes must hear of each.
    counts_attempts: bool,
}

/// Whom an attempt is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// The client's address, where it is known.
    pub client: Option<IpAddr>,
    /// The login in its one form; `None`: what was typed is none.
    pub login: Option<&'a str>,
    /// What for.
    pub service: Option<Service>,
    /// The mail server's session.
    pub session: Option<&'a str>,
    /// The client's TLS fingerprint, where a mail server tells it.
    pub ja3: Option<&'a str>,
}

/// What came of an attempt, as far as the shield is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They got in.
    Accepted,
    /// Wrong password, or nobody's name: counts against everybody concerned. With the password's hash, if it is known.
    Failed(Option<u16>),
    /// Refused for another reason, such as a disabled account: counts against address and net.
    FailedAtSource,
    /// Neither: an outage, an expired password.
    Neutral,
    /// Nobody could check the password.
    Unproven(Option<u16>),
}

/// How an attempt is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charge {
    Nothing,
    Failure(Option<Item>),
    SourceFailure,
    Unproven(Option<Item>),
}

/// Something learned, as other nodes hear it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The login.
    pub login: Option<Box<str>>,
    /// What for.
    pub service: Option<Service>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What is done with an attempt.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Judgement {
    /// The action.
    pub action: Course,
    /// Why, if it is anything but "go on"; or why it would be, by a rule that only says so.
    pub because: Option<Because>,
    /// Further rules that only say so.
    pub logged: Vec<Because>,
    /// Whose place an attempt that is delayed takes.
    key: Option<Key>,
    /// It is delayed because of what all did together.
    by_all: bool,
}

/// The action on an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Course {
    /// Go on.
    #[default]
    Go,
    /// Go on after this time.
    Delay(Duration),
    /// Refuse.
    Deny,
}

/// Why a judgement is as it is.
#[derive(Clone, Debug)]
pub enum Because {
    /// An entry of a list.
    List(Arc<Entry>),
    /// A rule reached its limit.
    Rule {
        /// Its name.
        name: Arc<str>,
        /// What it does.
        action: Action,
        /// What it counted.
        count: u32,
        /// The limit for this attempt.
        limit: u32,
    },
}

impl Judgement {
    /// Every rule and list that has something to say; what is done is the first's.
    pub fn all(&self) -> impl Iterator<Item = &Because> {
        self.because.iter().chain(&self.logged)
    }
}

impl Because {
    /// What it makes be done: deny, delay, log, or allow for the list that lets go on.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::List(entry) => entry.list.as_str(),
            Self::Rule { action, .. } => action.as_str(),
        }
    }

    /// A word for the journal: the rule's name, or `list:allow`.
    #[must_use]
    pub fn word(&self) -> Arc<str> {
        match self {
            Self::List(entry) => format!("list:{}", entry.list.as_str()).into(),
            Self::Rule { name, .. } => Arc::clone(name),
        }
    }
}

/// A place among those who wait; dropping it gives it back.
pub struct Delayed<'a> {
    throttle: &'a Throttle,
    key: Key,
    by_all: bool,
}

impl Drop for Delayed<'_> {
    fn drop(&mut self) {
        let mut waiting = self.throttle.delayed();
        waiting.all -= 1;
        waiting.by_all -= usize::from(self.by_all);
        if let Some(count) = waiting.by_key.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                waiting.by_key.remove(&self.key);
            }
        }
    }
}

/// The keys that an attempt is counted under.
struct Faces<'a> {
    login: Option<Key>,
    ip: Option<Key>,
    net: Option<Key>,
    /// Login and net.
    pair: Option<Key>,
    session: Option<Key>,
    service: Option<Service>,
    text: Option<&'a str>,
}

impl Faces<'_> {
    fn key(&self, per: Per) -> Option<Key> {
        match per {
            Per::All => Some(Key(1)),
            Per::Ip => self.ip,
            Per::Login => self.login,
            Per::LoginIp => Some(join(self.login?, self.ip?)),
            Per::LoginNet => self.pair,
            Per::Net => self.net,
            Per::Session => self.session,
        }
    }

    fn domain(&self) -> Option<&str> {
        self.text?.rsplit_once('@').map(|(_, domain)| domain)
    }

    fn login_item(&self) -> Option<Item> {
        self.login.map(rules::item_of)
    }
}

fn join(a: Key, b: Key) -> Key {
    Key(mix(a.0 ^ b.0.rotate_left(31)) | 1)
}

/// What one rule counted of somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// The rule.
    pub rule: String,
    /// What it does.
    pub action: &'static str,
    /// What is counted.
    pub count: u32,
    /// From what number on the rule acts; `None`: not on this login from this source.
    pub limit: Option<u32>,
    /// Whether it acts now.
    pub acts: bool,
}

/// What one rule's table holds, for the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSize {
    /// The rule.
    pub rule: Arc<str>,
    /// Keys with a place.
    pub keys: usize,
    /// Keys that gave way while they counted.
    pub evicted: usize,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Throttle").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Throttle {
    /// A shield that has counted nothing. `guess_key` is random for each process, until nodes agree on one.
    #[must_use]
    pub fn new(settings: &Settings, guess_key: [u8; 32], now: Instant) -> Self {
        let throttle = Self {
            rules: ArcSwap::default(),
            lists: Lists::default(),
            history: ArcSwap::from_pointee(History::new(history_size(settings))),
            hits: Hits::default(),
            delayed: Mutex::default(),
            hasher: RandomState::default(),
            guess_key: ArcSwap::from_pointee(guess_key),
            began: now,
            listener: OnceLock::new(),
        };
        throttle.configure(settings);
        throttle
    }

    /// Takes other settings. A rule that counts the same as before keeps its counts.
    pub fn configure(&self, settings: &Settings) {
        let before = self.rules.load_full();
        let compile = |(name, rule): (&String, _)| {
            let before = before.rules.iter().find(|before| *before.name == **name);
            Rule::new(name, rule, settings.keys, before)
        };
        let in_force = settings.rule.iter().filter(|(_, rule)| rule.limit > 0);
        let rules: Vec<Rule> = in_force.map(compile).collect();
        self.rules.store(Arc::new(Rules {
            enabled: settings.enabled,
            net_v4: settings.net_v4,
            net_v6: settings.net_v6,
            max_delayed: settings.max_delayed,
            counts_attempts: rules.iter().any(|rule| rule.settings.count == Count::Attempts),
            rules,
        }));
        let size = history_size(settings);
        if self.history.load().size() != size {
            self.history.store(Arc::new(History::new(size)));
        }
        self.lists.configure(&settings.allow, &settings.deny);
    }

    /// Who hears of what is learned here. The first to be named stays.
    pub fn listen(&self, listener: Arc<Listener>) {
        // Only the daemon calls this, once.
        self.listener.get_or_init(|| listener);
    }

    fn time(&self, now: Instant) -> Time {
        Time::since(self.began, now)
    }

    fn faces<'a>(&self, rules: &Rules, subject: &Subject<'a>) -> Faces<'a> {
        let of_text = |kind: u8, text: &str| Key(self.hasher.hash_one((kind, text)) | 1);
        let address = subject.client.map(|client| client.to_canonical());
        let of_net = |kind: u8, prefix: u8| {
            let net = net_of(address?, prefix)?.addr();
            Some(Key(self.hasher.hash_one((kind, net)) | 1))
        };
        let (ip, net) = match address {
            Some(IpAddr::V4(_)) => (of_net(1, 32), of_net(2, rules.net_v4)),
            // Whoever has one address of IPv6 has all of its net.
            Some(IpAddr::V6(_)) => (of_net(1, rules.net_v6), of_net(2, rules.net_v6)),
            None => (None, None),
        };
        let login = subject.login.map(|login| of_text(3, login));
        let session = subject.session.filter(|session| !session.is_empty());
        Faces {
            login,
            ip,
            net,
            pair: login.zip(net).map(|(login, net)| join(login, net)),
            // With the address: whoever makes session ids up, or repeats them, harms no other client.
            session: session.map(|session| {
                let session = of_text(4, session);
                ip.map_or(session, |ip| join(session, ip))
            }),
            service: subject.service,
            text: subject.login,
        }
    }

    /// What is to be done with an attempt. Counts nothing; whoever goes by the judgement says so to
    /// [`Throttle::note`].
    pub fn check(&self, subject: &Subject<'_>, now: Instant) -> Judgement {
        let rules = self.rules.load();
        if !rules.enabled {
            return Judgement::default();
        }
        if !self.lists.are_empty() {
            let asked = Asked {
                client: subject.client.map(|client| client.to_canonical()),
                login: subject.login,
                ja3: subject.ja3,
            };
            if let Some(entry) = self.lists.find(asked, clock::wall()) {
                let action = if entry.list == List::Deny { Course::Deny } else { Course::Go };
                return Judgement {
                    action,
                    because: Some(Because::List(entry)),
                    ..Judgement::default()
                };
            }
        }
        let time = self.time(now);
        if rules.rules.iter().any(|rule| rule.is_hot(time)) {
            self.judge(&rules, subject, time)
        } else {
            Judgement::default()
        }
    }

    fn judge(&self, rules: &Rules, subject: &Subject<'_>, now: Time) -> Judgement {
        let faces = self.faces(rules, subject);
        let history = self.history.load();
        let mut judgement = Judgement::default();
        for rule in &rules.rules {
            let Some(Reached { count, limit }) = rule.judge(&faces, &history, now) else {
                continue;
            };
            let action = rule.action(&faces, &history, now);
            let course = match action {
                Action::Deny => Course::Deny,
                Action::Delay => Course::Delay(rule.settings.delay.0),
                Action::Log => Course::Go,
            };
            let because = Because::Rule { name: Arc::clone(&rule.name), action, count, limit };
            if action == Action::Log {
                judgement.logged.push(because);
            } else if course > judgement.action {
                // A place to wait in is its source's: a crowd that guesses at somebody takes none from where they are.
                judgement.key = match rule.settings.per {
                    Per::All => faces.net,
                    Per::Login => faces.pair.or(faces.login),
                    per => faces.key(per),
                };
                judgement.by_all = rule.settings.per == Per::All;
                (judgement.action, judgement.because) = (course, Some(because));
            }
        }
        if judgement.because.is_none() && !judgement.logged.is_empty() {
            judgement.because = Some(judgement.logged.remove(0));
        }
        judgement
    }

    /// Keeps in mind that a rule acted on somebody, for `gatepost policy list`.
    pub fn note(&self, subject: &Subject<'_>, judgement: &Judgement) {
        for because in judgement.all() {
            let Because::Rule { name, action, count, limit } = because else { continue };
            let whom = self.whom(subject, because);
            self.hits.note(name, *action, whom, (*count, *limit), clock::wall());
        }
    }

    /// Whom a judgement is about, in words: what its rule counts by, or what the list's entry names. Empty for a rule that is
    /// no more.
    #[must_use]
    pub fn whom(&self, subject: &Subject<'_>, because: &Because) -> String {
        match because {
            Because::List(entry) => entry.whom.named().1,
            Because::Rule { name, .. } => {
                let rules = self.rules.load();
                let rule = rules.rules.iter().find(|rule| rule.name == *name);
                rule.map(|rule| whom(rule.settings.per, subject, &rules)).unwrap_or_default()
            }
        }
    }

    /// Whether the rules are kept.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.rules.load().enabled
    }

    /// A place to wait in for an attempt that is to be delayed; `None`: so many wait already, in all or for this very key,
    /// that no other may.
    #[must_use]
    pub fn delay(&self, judgement: &Judgement) -> Option<Delayed<'_>> {
        let mut waiting = self.delayed();
        let key = judgement.key.unwrap_or(NOBODY);
        let own = waiting.by_key.get(&key).copied().unwrap_or(0);
        let most = self.rules.load().max_delayed;
        let is_full = key != NOBODY && own >= MAX_DELAYED_PER_KEY;
        // What all do together leaves half of the places to those whom a rule of their own delays.
        let crowd_is_full = judgement.by_all && waiting.by_all >= most.div_ceil(2);
        if is_full || crowd_is_full || waiting.all >= most {
            return None;
        }
        waiting.all += 1;
        waiting.by_all += usize::from(judgement.by_all);
        waiting.by_key.insert(key, own + 1);
        Some(Delayed { throttle: self, key, by_all: judgement.by_all })
    }

    fn delayed(&self) -> MutexGuard<'_, Waiting> {
        self.delayed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the denying list names a mailbox that somebody got into by another of its names.
    #[must_use]
    pub fn denies_mailbox(&self, address: &str, client: Option<IpAddr>) -> bool {
        if !self.rules.load().enabled || self.lists.are_empty() {
            return false;
        }
        let client = client.map(|client| client.to_canonical());
        let asked = Asked { client, login: Some(address), ja3: None };
        self.lists.find(asked, clock::wall()).is_some_and(|entry| entry.list == List::Deny)
    }

    /// Counts what came of an attempt, and tells other nodes.
    pub fn learn(&self, subject: &Subject<'_>, outcome: Outcome, now: Instant) {
        let rules = self.rules.load();
        if !rules.enabled {
            return;
        }
        let is_news = self.count(&rules, subject, outcome, self.time(now));
        if let Some(listener) = self.listener.get()
            && (is_news || rules.counts_attempts)
        {
            listener(Event {
                client: subject.client,
                login: subject.login.map(Into::into),
                service: subject.service,
                outcome,
            });
        }
    }

    /// Counts what another node learned so long ago.
    pub fn learn_from_another(&self, event: &Event, ago: Duration, now: Instant) {
        let rules = self.rules.load();
        if rules.enabled {
            let subject = Subject {
                client: event.client,
                login: event.login.as_deref(),
                service: event.service,
                ..Subject::default()
            };
            self.count(&rules, &subject, event.outcome, self.time(now).before(ago));
        }
    }

    /// Whether it changed anything that other nodes should know.
    fn count(&self, rules: &Rules, subject: &Subject<'_>, outcome: Outcome, now: Time) -> bool {
        let faces = self.faces(rules, subject);
        let history = self.history.load();
        let (charge, is_news) = match outcome {
            Outcome::Accepted => {
                let is_news = Self::note_success(&history, &faces, now);
                let pay_down = |paid, rule: &Rule| rule.pay_down(&faces, is_news, now) || paid;
                let has_paid = rules.rules.iter().fold(false, pay_down);
                (Charge::Nothing, is_news || has_paid)
            }
            Outcome::Failed(item) => (Charge::Failure(item), true),
            Outcome::FailedAtSource => (Charge::SourceFailure, true),
            Outcome::Neutral => (Charge::Nothing, false),
            Outcome::Unproven(item) => (Charge::Unproven(item), true),
        };
        if charge != Charge::Nothing || rules.counts_attempts {
            rules.rules.iter().for_each(|rule| rule.learn(&faces, charge, &history, now));
        }
        is_news
    }

    fn note_success(history: &History, faces: &Faces<'_>, now: Time) -> bool {
        let Some(pair) = faces.pair else { return false };
        let is_news = history.note(pair, now);
        if let Some(person) = faces.login_item().filter(|_| is_news) {
            for source in [faces.ip, faces.net].into_iter().flatten() {
                history.note_person(source, person, now);
            }
        }
        is_news
    }

    /// Sixteen bits that tell a password of this login from nearly all others.
    #[must_use]
    pub fn guess(&self, login: &str, password: &Password) -> u16 {
        self.short_hash(login, password.as_bytes())
    }

    /// The same of a hash that a mail server made of login and password.
    #[must_use]
    pub fn guess_of_hash(&self, login: &str, hash: &str) -> u16 {
        self.short_hash(login, hash.as_bytes())
    }

    fn short_hash(&self, login: &str, what: &[u8]) -> u16 {
        let mut hasher = blake3::Hasher::new_keyed(&self.guess_key.load());
        hasher.update(&u64::try_from(login.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(login.as_bytes());
        hasher.update(what);
        let hash = hasher.finalize();
        let [a, b, ..] = *hash.as_bytes();
        u16::from_le_bytes([a, b])
    }

    /// Takes the key that all nodes have agreed on.
    pub fn agree(&self, guess_key: [u8; 32]) {
        self.guess_key.store(Arc::new(guess_key));
    }

    /// What every rule counted of somebody, in the order of their names.
    #[must_use]
    pub fn show(&self, subject: &Subject<'_>, now: Instant) -> Vec<Counted> {
        let rules = self.rules.load();
        let faces = self.faces(&rules, subject);
        let (history, now) = (self.history.load(), self.time(now));
        let counted = rules.rules.iter().filter_map(|rule| {
            let key = rule.key(&faces)?;
            Some(Counted {
                rule: rule.name.to_string(),
                action: rule.settings.action.as_str(),
                count: rule.count(key, now),
                limit: rule.limit(&faces, &history, now),
                acts: rule.judge(&faces, &history, now).is_some(),
            })
        });
        counted.collect()
    }

    /// Whether this login got in from this net before, and how many people got in from this address and this net.
    #[must_use]
    pub fn standing(&self, subject: &Subject<'_>, now: Instant) -> (bool, u32, u32) {
        let rules = self.rules.load();
        let faces = self.faces(&rules, subject);
        let (history, now) = (self.history.load(), self.time(now));
        let people = |key: Option<Key>| key.map_or(0, |key| history.people(key, now));
        let is_known = faces.pair.is_some_and(|pair| history.knows(pair, now));
        (is_known, people(faces.ip), people(faces.net))
    }

    /// Forgets what was counted of somebody; whether that was anything. With a login and an address: also of both
    /// together. With one of them: also of it together with others on whom a rule acted ([`Throttle::hits`]). Good logins
    /// stay remembered.
    pub fn reset(&self, subject: &Subject<'_>, now: Instant) -> bool {
        let rules = self.rules.load();
        let now = self.time(now);
        let clear = |subject: &Subject<'_>, is_meant: &dyn Fn(Per) -> bool| {
            let faces = self.faces(&rules, subject);
            let clear = |rule: &&Rule| {
                // Whatever service and domain the rule is for.
                let key = faces.key(rule.settings.per).filter(|_| is_meant(rule.settings.per));
                key.is_some_and(|key| rule.clear(key, now))
            };
            rules.rules.iter().filter(clear).count() > 0
        };
        // The whole world's count is nobody's.
        let mut cleared = clear(subject, &|per| per != Per::All);
        for (login, client) in self.pairs_of(subject) {
            let both = Subject { client: Some(client), login: Some(&login), ..Subject::default() };
            cleared |= clear(&both, &|per| matches!(per, Per::LoginIp | Per::LoginNet));
        }
        self.hits.forget(subject.client, subject.login);
        cleared
    }

    /// The logins with addresses on which rules acted together, where one of them is this subject's: what a reset of it
    /// alone forgets too.
    #[must_use]
    pub fn pairs_of(&self, subject: &Subject<'_>) -> HashSet<(String, IpAddr)> {
        self.hits.pairs(subject.client, subject.login)
    }

    /// On whom rules acted last, the last first.
    #[must_use]
    pub fn hits(&self) -> Vec<Hit> {
        self.hits.all()
    }

    /// Those that name this address, a net that it lies in, or this login.
    #[must_use]
    pub fn hits_of(&self, client: Option<IpAddr>, login: Option<&str>) -> Vec<Hit> {
        self.hits.of(client, login)
    }

    /// How full the tables are.
    #[must_use]
    pub fn sizes(&self) -> Vec<TableSize> {
        let rules = self.rules.load();
        let size = |rule: &Rule| {
            let (keys, evicted) = rule.size();
            TableSize { rule: Arc::clone(&rule.name), keys, evicted }
        };
        rules.rules.iter().map(size).collect()
    }

    /// What counts and history take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let rules = self.rules.load();
        self.history.load().bytes() + rules.rules.iter().map(Rule::bytes).sum::<usize>()
    }

    /// How many wait now because of a rule.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.delayed().all
    }

    /// Adds entries to the lists, in the place of earlier ones about the same.
    ///
    /// # Errors
    /// A list would be too long; nothing was added.
    pub fn add_entries(&self, entries: &[Entry]) -> Result<(), Full> {
        self.lists.add(entries, clock::wall())
    }

    /// Takes an entry out; whether it was there.
    pub fn remove_entry(&self, list: List, whom: &Whom) -> bool {
        self.lists.remove(list, whom)
    }

    /// All that the lists say of an attempt, those of the configuration too. The first decides.
    #[must_use]
    pub fn entries_about(&self, asked: Asked<'_>) -> Vec<Arc<Entry>> {
        self.lists.about(asked, clock::wall())
    }

    /// The entries of a list that were made at run time.
    #[must_use]
    pub fn entries(&self, list: List) -> Vec<Arc<Entry>> {
        self.lists.made(list, clock::wall())
    }

    /// The entry of a list that speaks of such attempts, that of a net they come from among them.
    #[must_use]
    pub fn listed(&self, list: List, asked: Asked<'_>) -> Option<Arc<Entry>> {
        self.lists.find_in(list, asked, clock::wall())
    }

    /// What a list says of exactly this.
    #[must_use]
    pub fn entry(&self, list: List, whom: &Whom) -> Option<Arc<Entry>> {
        self.lists.get(list, whom, clock::wall())
    }
}

/// What a rule is about, in words.
fn whom(per: Per, subject: &Subject<'_>, rules: &Rules) -> String {
    let address = subject.client.map(|client| client.to_canonical());
    let prefix = match address {
        Some(IpAddr::V4(_)) => rules.net_v4,
        _ => rules.net_v6,
    };
    let net = || address.and_then(|address| net_of(address, prefix));
    // Whoever has one address of IPv6 has all of its net, and is counted so.
    let ip = || match address {
        Some(IpAddr::V6(_)) => net().map(|net| net.to_string()),
        address => address.map(|address| address.to_string()),
    };
    let login = subject.login.unwrap_or_default();
    let shown = |what: Option<String>| what.unwrap_or_default();
    match per {
        Per::All => "everybody".into(),
        Per::Ip => shown(ip()),
        Per::Net => shown(net().map(|it| it.to_string())),
        Per::Login => login.into(),
        Per::LoginIp => format!("{login} from {}", shown(ip())),
        Per::LoginNet => format!("{login} from {}", shown(net().map(|it| it.to_string()))),
        Per::Session => format!("session of {}", shown(ip())),
    }
}

fn history_size(settings: &Settings) -> history::Size {
    history::Size { window: millis(settings.history.0), keys: settings.keys }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// How many seconds are left until then; 0 once it is past.
#[must_use]
pub fn seconds_left(until: SystemTime) -> u64 {
    until.duration_since(clock::wall()).unwrap_or_default().as_secs()
}
