//! What is remembered of logins (login.md M). Plain functions: nothing here waits, and time is an argument.
//!
//! One [`Record`] per account; names typed point to it. A record holds *proofs* (keyed digests of passwords that the
//! directory accepted), *refusals* (of passwords it refused), the person as last read and the mailbox as last
//! written. Names that are nobody's live in a part of their own, so that a flood of them pushes out no people.

use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use smallvec::SmallVec;

use super::Reason;
use super::gate::Net;
use super::old_passwords::OldPasswordClient;
use crate::cache::{Bounded, Table};
use crate::person::{AccountState, Person, Stamp};
use crate::secret::Password;
use crate::seldom::{Empty, Seldom};
use crate::store::Mailbox;

/// Proofs per account: the current password, an old one that a phone still sends, and room to spare.
const MAX_PROOFS: usize = 4;
/// Refusals per account; the oldest goes first.
const MAX_REFUSALS: usize = 8;
/// Names per account (login.md M-1); further ones are asked again.
const MAX_NAMES: usize = 8;
/// Nets with an earlier success, per account.
const MAX_NETS: usize = 4;
/// A refusal of an account without a readable change stamp is trusted no longer than this (login.md M-4).
const REFUSED_WITHOUT_STAMP: Duration = Duration::from_secs(60);
/// Passwords per account that were right once: the last few.
const MAX_FORMER: usize = 4;
/// A background question that came to nothing is not tried again before (login.md M-2).
const REFRESH_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// A refusal that is hit reads the entry's stamp at most this often (login.md M-4).
const STAMP_READ_EVERY: Duration = Duration::from_secs(10);
/// A person is read again after this time, whatever a feed says.
const VOUCHED_FOR: Duration = Duration::from_secs(6 * 3_600);
/// So long after a login saw a mailbox, the next one that asks the directory does not read it again. A change through this
/// daemon is known at once; this is for other processes.
const MAILBOX_IS_CURRENT: Duration = Duration::from_secs(60);
/// What a record and its person take in bytes, texts, attributes and what not everybody has left out: the structs, the
/// maps' own share, and what allocation adds (docs/PERFORMANCE.md, S1).
const RECORD_BYTES: usize = 900;

/// What a name that is nobody's takes beside its text, in bytes.
const NOBODY_BYTES: usize = 150;

/// How long things are remembered (the `[memory]` section).
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// A proof answers alone.
    pub fresh: Duration,
    /// From this age on a proof that is used is also asked about in the background; `None`: never.
    pub refresh_after: Option<Duration>,
    /// A proof still counts this much longer while no directory answers.
    pub grace: Duration,
    /// A refusal answers alone.
    pub refused: Duration,
    /// Names that are nobody's, and bars.
    pub absent: Duration,
}

/// A keyed digest of one account's password (login.md M-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(
    /// Compared in constant time, by the library.
    blake3::Hash,
);

/// All that is remembered.
pub struct Memory {
    key: [u8; 32],
    names: Bounded<Arc<str>, Arc<Record>>,
    /// Every account that some name leads to. Not a cache: a disable must find whoever is remembered.
    accounts: Mutex<Accounts>,
    nobodies: Bounded<Box<str>, Nobody>,
    /// How often somebody other than a login changed a mailbox, or may have.
    edition: AtomicU64,
}

/// What memory says about an attempt.
#[derive(Debug)]
pub enum Recall {
    /// The password is proven and the mailbox is as it should be.
    Proven {
        /// Whose.
        record: Arc<Record>,
        /// What they get.
        mailbox: Arc<Mailbox>,
        /// The directory is due to be asked in the background (login.md M-2). Said once; whoever hears it says
        /// [`Record::refreshed`] in the end.
        refresh: bool,
    },
    /// The password is proven, but templates changed since: plan again, ask nobody.
    Replan(Arc<Record>),
    /// The password is known to be wrong.
    Refused {
        /// Whose.
        record: Arc<Record>,
        /// The entry's change stamp is due to be read.
        read_stamp: bool,
        /// Whether it was right once.
        kind: Wrong,
    },
    /// Not asked about for a while.
    Barred(Reason),
    /// The account is known, this password must be asked about.
    Ask(Arc<Record>),
    /// Nothing is known of the name.
    Nothing,
}

/// What is known of a wrong password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Nothing more.
    Guess,
    /// It was right before another was accepted: a client that was not told of a change.
    Old,
}

/// The newest versions that a remembered answer must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Of templates, mappings and domains (login.md M-9).
    pub rules: u64,
    /// Of the profile's own section.
    pub profile: u64,
}

/// One account.
#[derive(Debug)]
pub struct Record {
    /// `profile NUL id`.
    pub account: Arc<str>,
    state: Mutex<State>,
}

/// Accounts by key. Those that no name leads to any more are swept out when the table has grown by a
/// quarter since the last sweep: until then each keeps its place in memory.
#[derive(Debug, Default)]
struct Accounts {
    records: Table<Arc<str>, Weak<Record>>,
    sweep_at: usize,
}

#[derive(Debug)]
struct State {
    person: Arc<Person>,
    mailbox: Option<Arc<Mailbox>>,
    /// When a login saw it in the store, and the edition then.
    seen: Option<(Instant, u64)>,
    /// The entry may have changed then: what was learned before is asked about again.
    doubted: Option<Instant>,
    /// The rules that the mailbox was planned by; 0: plan again.
    rules: u64,
    proofs: UsuallyOne<Proof>,
    against: Seldom<Against>,
    refresh: Refresh,
    names: UsuallyOne<Name>,
    nets: UsuallyOne<Net>,
    /// A feed tells whatever changes of the person.
    vouched: Option<Vouched>,
    /// Nothing is remembered here any more: a login under way must not bring it back.
    forgotten: bool,
}

/// A list that nearly everybody has one thing in, which stands in the record itself.
type UsuallyOne<T> = SmallVec<[T; 1]>;

/// What speaks against logins.
#[derive(Debug, Default)]
struct Against {
    refusals: Vec<Refusal>,
    /// Passwords that were proven here and refused since; the oldest first.
    former: UsuallyOne<Digest>,
    barred: Option<Bar>,
    stamp_read: Option<Instant>,
}

impl Empty for Against {
    const EMPTY: &'static Self = &Self {
        refusals: Vec::new(),
        former: UsuallyOne::new_const(),
        barred: None,
        stamp_read: None,
    };

    fn is_empty(&self) -> bool {
        let Self { refusals, former, barred, stamp_read } = self;
        refusals.is_empty() && former.is_empty() && barred.is_none() && stamp_read.is_none()
    }
}

impl Seldom<Against> {
    fn weight(&self) -> usize {
        if !self.has_room() {
            return 0;
        }
        let refusals = self.refusals.capacity() * size_of::<Refusal>();
        size_of::<Against>() + refusals + spilled(&self.former)
    }
}

#[derive(Debug)]
struct Proof {
    digest: Digest,
    at: Instant,
    /// The version of the profile that was asked.
    profile: u64,
    /// The entry's change stamp then.
    stamp: Stamp,
    /// The directory accepted another password since (login.md M-5): ask at the next use, and no grace.
    demoted: bool,
}

#[derive(Debug)]
struct Refusal {
    digest: Digest,
    at: Instant,
    profile: u64,
    /// It answered an attempt: some client sends that password.
    was_hit: bool,
}

/// Whether the directory is asked in the background (login.md M-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refresh {
    /// At the next use of a proof that is old enough.
    WhenDue,
    /// Not before.
    NotBefore(Instant),
    /// It is being asked: never two at a time.
    Asking,
    /// Each bind would burn a grace login (login.md B-2).
    Never,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    until: Instant,
    reason: Reason,
    profile: u64,
}

/// A name that leads to an account.
#[derive(Debug)]
struct Name {
    text: Arc<str>,
    /// A password was proven under it. Other names give their place up to one that is.
    proven: bool,
}

#[derive(Clone, Copy, Debug)]
struct Nobody {
    until: Instant,
    reason: Reason,
}

/// A feed that told every change since the person was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vouched {
    /// Which (see [`crate::directory::Profile::vouching`]).
    pub run: u64,
    /// When the person was read.
    pub since: Instant,
}

/// What the directory said of a known account, as memory keeps it.
#[derive(Debug)]
pub struct Learned<'a> {
    /// The name typed, as its key.
    pub name: &'a str,
    /// The person as read in this asking.
    pub person: &'a Arc<Person>,
    /// What the answer was made with.
    pub versions: Versions,
    /// The feed that has told every change since the person was read.
    pub vouched: Option<Vouched>,
    /// When.
    pub now: Instant,
}

/// What a touched entry turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Disabled, removed, or left out by the filter: what was proven has ended.
    Ended,
    /// Nothing that counts.
    Nothing,
    /// The password or the standing changed, or may have: whatever is remembered is asked about again.
    Password,
    /// The attributes that make the mailbox: it is planned again.
    Person,
}

/// What a proof is worth while no directory answers.
#[derive(Clone, Debug)]
pub enum Grace {
    /// This mailbox.
    Planned(Arc<Mailbox>),
    /// The mailbox must be planned again first.
    Replan,
}

/// A mailbox, and the edition of the mailboxes before it was read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// As this login left it.
    pub mailbox: Arc<Mailbox>,
    /// See [`Memory::edition`].
    pub edition: u64,
    /// The store has it as it is here.
    pub written: bool,
    /// When it was seen there.
    pub at: Instant,
}

/// What `gatepost memory show` prints of an account. Ages in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Remembered {
    /// The directory's name for the account.
    pub profile: String,
    /// The immutable id.
    pub id: String,
    /// Where the entry stands.
    pub dn: String,
    /// The mailbox.
    pub mailbox: Option<String>,
    /// Names that lead here.
    pub names: Vec<String>,
    /// Age of each proof, and whether it was demoted.
    pub proofs: Vec<ProofShown>,
    /// Age of each refusal.
    pub refusals_age_seconds: Vec<u64>,
    /// Not asked about for this long, and why.
    pub barred: Option<(u64, &'static str)>,
    /// Clients that still send a password that was changed, the last one first.
    pub old_password_clients: Vec<OldPasswordClient>,
}

/// One proof, without its digest.
#[derive(Clone, Debug, Serialize)]
pub struct ProofShown {
    /// Seconds since the directory accepted it.
    pub age_seconds: u64,
    /// Another password was accepted since.
    pub demoted: bool,
}

/// How much is remembered, for the metrics.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Entries and bytes about people.
    pub people: (u64, u64),
    /// Entries and bytes about names that are nobody's.
    pub nobodies: (u64, u64),
}

impl Memory {
    /// An empty memory bounded to `capacity` bytes; `key` is random for each process.
    #[must_use]
    pub fn new(capacity: u64, key: [u8; 32]) -> Self {
        let nobodies = capacity / 8;
        Self {
            key,
            names: Bounded::new(capacity - nobodies, RECORD_BYTES),
            accounts: Mutex::default(),
            nobodies: Bounded::new(nobodies, NOBODY_BYTES),
            edition: AtomicU64::new(0),
        }
    }

    /// The edition of the mailboxes: taken before a mailbox is read, and handed in with it.
    #[must_use]
    pub fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
    }

    /// The digest of a password at an account.
    #[must_use]
    pub fn digest(&self, account: &str, password: &Password) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // Length-prefixed, so that no account's end can pass for a password's beginning.
        hasher.update(&(account.len() as u64).to_le_bytes());
        hasher.update(account.as_bytes());
        hasher.update(password.as_bytes());
        Digest(hasher.finalize())
    }

    /// What is known of a name.
    #[must_use]
    pub fn record(&self, name: &str) -> Option<Arc<Record>> {
        self.names.get(name)
    }

    /// The record of an account, under whatever names.
    #[must_use]
    pub fn account(&self, account: &str) -> Option<Arc<Record>> {
        self.accounts().records.get(account).and_then(Weak::upgrade)
    }

    /// What memory says about this name and password. `rules` is the newest version of the rules; `profile` gives
    /// the newest version of a profile, `None` where it is no longer there.
    pub fn recall(
        &self,
        name: &str,
        password: &Password,
        terms: Terms,
        newest: impl FnOnce(&Person) -> Option<Versions>,
        now: Instant,
    ) -> Recall {
        let Some(record) = self.record(name) else {
            return match self.nobodies.get(name) {
                Some(nobody) if now < nobody.until => Recall::Barred(nobody.reason),
                _ => Recall::Nothing,
            };
        };
        self.recall_account(record, password, terms, newest, now)
    }

    /// What memory says about an account and a password.
    pub fn recall_account(
        &self,
        record: Arc<Record>,
        password: &Password,
        terms: Terms,
        newest: impl FnOnce(&Person) -> Option<Versions>,
        now: Instant,
    ) -> Recall {
        let digest = self.digest(&record.account, password);
        let mut state = record.lock();
        let Some(newest) = newest(&state.person) else {
            drop(state);
            return Recall::Ask(record);
        };
        if state.is_fresh(&digest, newest, terms, now) {
            return match state.mailbox.clone() {
                Some(mailbox) if state.rules == newest.rules => {
                    let refresh = state.refresh_due(&digest, terms, now);
                    drop(state);
                    Recall::Proven { record, mailbox, refresh }
                }
                _ => {
                    drop(state);
                    Recall::Replan(record)
                }
            };
        }
        if state.is_refused(&digest, newest, terms, now) {
            let read_stamp = state.stamp_due(now);
            let kind = state.kind_of_wrong(&digest);
            state.hit_refusal(&digest);
            drop(state);
            return Recall::Refused { record, read_stamp, kind };
        }
        match state.against.barred {
            Some(bar) if now < bar.until && bar.profile == newest.profile => {
                Recall::Barred(bar.reason)
            }
            _ => {
                drop(state);
                Recall::Ask(record)
            }
        }
    }

    /// The directory accepted the password: a proof, and the mailbox as this login left it.
    pub fn prove(&self, learned: &Learned<'_>, password: &Password, seen: Seen, net: Net) {
        let record = self.learn(learned);
        let digest = self.digest(&record.account, password);
        let mut state = record.lock();
        if state.forgotten {
            return;
        }
        self.see(&mut state, seen, (learned.versions.rules, learned.person));
        if state.proof(&digest).is_none() {
            state.proofs.iter_mut().for_each(|proof| proof.demoted = true);
        }
        state.against.change(|against| {
            against.barred = None;
            let is_recent = |at: &Instant| learned.now < *at + STAMP_READ_EVERY;
            against.stamp_read = against.stamp_read.filter(is_recent);
            against.refusals.retain(|refusal| refusal.digest != digest);
            against.former.retain(|former| *former != digest);
        });
        state.proofs.retain(|proof| proof.digest != digest);
        state.refresh = Refresh::WhenDue;
        let profile = learned.versions.profile;
        let stamp = learned.person.stamp;
        let proof = Proof { digest, at: learned.now, profile, stamp, demoted: false };
        push_bounded(&mut state.proofs, proof, MAX_PROOFS);
        state.note_net(net);
        let given_up = state.name_proven(learned.name);
        drop(state);
        if let Some(given_up) = given_up {
            self.names.remove(&given_up);
        }
        self.point(learned.name, &record);
        self.nobodies.remove(learned.name);
    }

    /// The directory refused the password. Says what is known of it.
    pub fn refuse(&self, learned: &Learned<'_>, password: &Password) -> Wrong {
        let record = self.learn(learned);
        let digest = self.digest(&record.account, password);
        let mut state = record.lock();
        if state.forgotten {
            return Wrong::Guess;
        }
        // The very password that was proven is wrong now: that proof ends. Others stay (login.md M-5).
        if state.proof(&digest).is_some() {
            state.proofs.retain(|proof| proof.digest != digest);
            push_bounded(&mut state.against.make().former, digest, MAX_FORMER);
        }
        state.add_refusal(digest, learned);
        let kind = state.kind_of_wrong(&digest);
        drop(state);
        self.point(learned.name, &record);
        kind
    }

    /// The account may not be used now: no question before `until`; proofs stay.
    pub fn bar(&self, learned: &Learned<'_>, reason: Reason, until: Instant) {
        let record = self.learn(learned);
        let profile = learned.versions.profile;
        let mut state = record.lock();
        if state.forgotten {
            return;
        }
        state.against.make().barred = Some(Bar { until, reason, profile });
        drop(state);
        self.point(learned.name, &record);
    }

    /// The account is disabled, expired or gone: what was proven counts no more, grace included.
    pub fn end_proofs(&self, record: &Record) {
        record.lock().proofs.clear();
    }

    /// The name is nobody's (or several people's) for a while.
    pub fn nobody(&self, name: &str, reason: Reason, until: Instant) {
        if let Some(record) = self.record(name) {
            self.end_proofs(&record);
            self.names.remove(name);
        }
        let bytes = name.len() + NOBODY_BYTES;
        self.nobodies.insert(name.into(), Nobody { until, reason }, bytes);
    }

    /// The entry's change stamp was read for the sake of a refusal. If it moved, refusals end and proofs are asked
    /// about again. Says whether it did.
    pub fn stamp_seen(&self, record: &Record, stamp: Stamp) -> bool {
        let mut state = record.lock();
        let moved = state.person.stamp != stamp;
        if moved {
            state.clear_refusals();
            state.proofs.iter_mut().for_each(|proof| proof.demoted = true);
            let mut person = Person::clone(&state.person);
            person.stamp = stamp;
            state.person = Arc::new(person);
            state.vouched = None;
        }
        moved
    }

    /// The entry was touched, and this was read of it since. `by_login`: it was a login that touched it last.
    pub fn reread(
        &self,
        record: &Record,
        (person, vouched): (Arc<Person>, Option<Vouched>),
        by_login: bool,
    ) -> Change {
        let mut state = record.lock();
        state.vouched = vouched;
        let before = std::mem::replace(&mut state.person, person);
        let now = Arc::clone(&state.person);
        let mapped = !state.is_planned_as(&before);
        if mapped {
            state.rules = 0;
        }
        if now.state == AccountState::Disabled || now.one_time {
            state.proofs.clear();
            return Change::Ended;
        }
        // An entry without a readable stamp does not tell a new password from any other change.
        let stands = match now.stamp {
            Stamp::At(_) => now.stamp == before.stamp,
            Stamp::Unreadable => now.stamp == before.stamp && by_login,
        };
        if stands && now.state == before.state {
            return if mapped { Change::Person } else { Change::Nothing };
        }
        state.clear_refusals();
        state.against.change(|against| against.barred = None);
        state.proofs.iter_mut().for_each(|proof| proof.demoted = true);
        Change::Password
    }

    /// The entry may have changed, but could not be read: what was learned until now is asked about again. Grace
    /// stays, for nobody has said no.
    pub fn doubt(&self, record: &Record, now: Instant) {
        record.lock().doubted = Some(now);
    }

    /// The accounts of a profile.
    #[must_use]
    pub fn of_profile(&self, profile: &str) -> Vec<Arc<Record>> {
        let prefix = account_key(profile, "");
        let accounts = self.accounts();
        let of_it = accounts.records.iter().filter(|(account, _)| account.starts_with(&prefix));
        of_it.filter_map(|(_, record)| record.upgrade()).collect()
    }

    /// A mailbox was planned again for the person as remembered then.
    pub fn replanned(&self, record: &Record, seen: Seen, (rules, planned): (u64, &Person)) {
        self.see(&mut record.lock(), seen, (rules, planned));
    }

    /// The planner refused the person: no mailbox until a plan succeeds, and so no grace.
    pub fn withhold(&self, record: &Record) {
        record.lock().mailbox = None;
    }

    /// Takes a mailbox over that was planned by `rules`. If it could not be written, it is planned again at the next
    /// login, and so it is if the person was read anew since it was planned. If an administrator changed a mailbox since
    /// it was read, it may be this one: what is known of it stays, and it is planned again, so that no login under way
    /// brings the state before a disable back.
    fn see(&self, state: &mut State, seen: Seen, (rules, planned): (u64, &Person)) {
        let is_current = seen.edition == self.edition();
        let stands = is_current && seen.written && state.is_planned_as(planned);
        state.rules = if stands { rules } else { 0 };
        if is_current {
            state.mailbox = Some(seen.mailbox);
            state.seen = Some((seen.at, seen.edition));
        }
    }

    /// An administrator changed a mailbox: effective at the next request of every door.
    pub fn mailbox_changed(&self, mailbox: &Mailbox) {
        self.edition.fetch_add(1, Ordering::AcqRel);
        let account = super::asking::stored_account(mailbox);
        if let Some(record) = account.and_then(|account| self.account(&account)) {
            let mut state = record.lock();
            if state.mailbox.is_some() {
                state.mailbox = Some(Arc::new(mailbox.clone()));
                // Plan again at the next login: what was pinned or freed may differ from the template.
                state.rules = 0;
            }
        }
    }

    /// Forgets one name's account with all its names; how many entries that were.
    pub fn forget(&self, name: &str) -> usize {
        let nobody = usize::from(self.nobodies.remove(name).is_some());
        nobody + self.names.remove(name).map_or(0, |record| self.forget_account(&record))
    }

    /// Forgets an account with all its names; how many accounts that were.
    pub fn forget_account(&self, record: &Record) -> usize {
        let names = {
            let mut state = record.lock();
            state.forgotten = true;
            state.proofs.clear();
            state.against = Seldom::default();
            state.mailbox = None;
            std::mem::take(&mut state.names)
        };
        for name in &names {
            self.names.remove(&name.text);
        }
        // A login may have made the account anew meanwhile: that record must still be found.
        let mut accounts = self.accounts();
        let known = accounts.records.get(&record.account);
        if known.is_some_and(|known| std::ptr::eq(known.as_ptr(), record)) {
            accounts.records.remove(&record.account);
            return 1;
        }
        0
    }

    /// Forgets whoever has this mailbox, in whatever directory they were found.
    pub fn forget_mailbox(&self, id: i64) {
        // First the edition: what a login under way still learns is planned again, and so found out.
        self.edition.fetch_add(1, Ordering::AcqRel);
        let all: Vec<_> = self.accounts().records.values().filter_map(Weak::upgrade).collect();
        let local = Person::local(id);
        let local = account_key(&local.profile, &local.id);
        let is_theirs = |record: &&Arc<Record>| {
            *record.account == *local || record.mailbox().is_some_and(|mailbox| mailbox.id == id)
        };
        for record in all.iter().filter(is_theirs) {
            self.forget_account(record);
        }
    }

    /// Forgets everything; how many entries that were, roughly.
    pub fn forget_all(&self) -> usize {
        let all = self.names.len() + self.nobodies.len();
        let accounts = std::mem::take(&mut *self.accounts()).records;
        for record in accounts.values().filter_map(Weak::upgrade) {
            self.forget_account(&record);
        }
        self.names.clear();
        self.forget_nobodies();
        all
    }

    /// Directories or rules changed: who was nobody may be somebody now.
    pub fn forget_nobodies(&self) {
        self.nobodies.clear();
    }

    /// How much there is.
    #[must_use]
    pub fn size(&self) -> Size {
        Size {
            people: (count(&self.names), self.names.bytes()),
            nobodies: (count(&self.nobodies), self.nobodies.bytes()),
        }
    }

    /// The record of the person, made or found, with what was read of them now.
    fn learn(&self, learned: &Learned<'_>) -> Arc<Record> {
        let person = learned.person;
        let key = account_key(&person.profile, &person.id);
        let record = self.accounts().find_or_make(key, person);
        let mut state = record.lock();
        if state.person.stamp != person.stamp {
            state.clear_refusals();
        }
        if !state.is_planned_as(person) {
            state.rules = 0;
        }
        state.person = Arc::clone(person);
        state.vouched = learned.vouched;
        drop(state);
        record
    }

    /// Lets a name lead to the record, if the record has a place for it. Inserted again each time that the directory
    /// answers about the name: the weight follows what is known of the person, if a little late where it changed meanwhile.
    fn point(&self, name: &str, record: &Arc<Record>) {
        let mut state = record.lock();
        if state.forgotten {
            return;
        }
        let known = state.names.iter().find(|known| &*known.text == name);
        let mut place = known.map(|known| Arc::clone(&known.text));
        if place.is_none() && state.names.len() < MAX_NAMES {
            let text = Arc::from(name);
            state.names.push(Name { text: Arc::clone(&text), proven: false });
            place = Some(text);
        }
        drop(state);
        if let Some(text) = place {
            self.names.insert(text, Arc::clone(record), name.len() + record.weight());
            if record.lock().forgotten {
                // Forgotten in this very moment.
                self.names.remove(name);
            }
        }
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Accounts {
    fn find_or_make(&mut self, key: String, person: &Arc<Person>) -> Arc<Record> {
        match self.records.get(key.as_str()).map(Weak::upgrade) {
            Some(Some(record)) => return record,
            // Its names are gone. The new record and the table share a new text.
            Some(None) => {
                self.records.remove(key.as_str());
            }
            None => {}
        }
        if self.records.len() >= self.sweep_at {
            self.records.retain(|_, record| record.strong_count() > 0);
            self.sweep_at = (self.records.len() + self.records.len() / 4).max(1024);
        }
        let key: Arc<str> = key.into();
        let record = Arc::new(Record::new(Arc::clone(&key), Arc::clone(person)));
        self.records.insert(key, Arc::downgrade(&record));
        record
    }
}

impl Record {
    pub(super) fn new(account: Arc<str>, person: Arc<Person>) -> Self {
        Self {
            account,
            state: Mutex::new(State {
                person,
                mailbox: None,
                seen: None,
                doubted: None,
                rules: 0,
                proofs: UsuallyOne::new(),
                against: Seldom::default(),
                refresh: Refresh::WhenDue,
                names: UsuallyOne::new(),
                nets: UsuallyOne::new(),
                vouched: None,
                forgotten: false,
            }),
        }
    }

    /// The person as last read.
    #[must_use]
    pub fn person(&self) -> Arc<Person> {
        Arc::clone(&self.lock().person)
    }

    /// The person, if this run of a feed has told every change since they were read, and that is not too long ago to
    /// rely on it.
    #[must_use]
    pub fn vouched(&self, run: u64, now: Instant) -> Option<(Arc<Person>, Vouched)> {
        let state = self.lock();
        let is_valid = |it: &Vouched| it.run == run && now < it.since + VOUCHED_FOR;
        let vouched = state.vouched.filter(is_valid)?;
        Some((Arc::clone(&state.person), vouched))
    }

    /// Nothing is remembered here that would be answered without asking.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        let state = self.lock();
        let learned = state.proofs.iter().map(|proof| proof.at);
        let mut learned = learned.chain(state.against.refusals.iter().map(|refusal| refusal.at));
        state.doubted.is_some() && !learned.any(|at| state.is_undoubted(at))
    }

    /// Something has touched the entry: nobody vouches for what is remembered of it.
    pub fn unvouch(&self) {
        self.lock().vouched = None;
    }

    /// The mailbox as last seen.
    #[must_use]
    pub fn mailbox(&self) -> Option<Arc<Mailbox>> {
        self.lock().mailbox.clone()
    }

    /// The mailbox and when it was seen, if a login saw it in the store a moment ago and no mailbox was changed by this
    /// process between then and `edition`. (Which mailbox it was is heard of a little later: not even a change of another
    /// may be passed over.)
    #[must_use]
    pub fn current_mailbox(
        &self,
        (rules, edition): (u64, u64),
        now: Instant,
    ) -> Option<(Arc<Mailbox>, Instant)> {
        self.lock().current_mailbox((rules, edition), now)
    }

    /// The same, if it is what a plan for this person would come to.
    #[must_use]
    pub fn planned_for(
        &self,
        person: &Person,
        (rules, edition): (u64, u64),
        now: Instant,
    ) -> Option<(Arc<Mailbox>, Instant)> {
        let state = self.lock();
        state.current_mailbox((rules, edition), now).filter(|_| state.is_planned_as(person))
    }

    /// A login from this net succeeded at this account before.
    #[must_use]
    pub fn knows(&self, net: &Net) -> bool {
        self.lock().nets.contains(net)
    }

    /// The mailbox, if the password is proven well enough for grace (login.md M-3): not demoted, younger than
    /// `fresh + grace`, and by the profile as it is configured now.
    #[must_use]
    pub fn grace(
        &self,
        digest: &Digest,
        newest: Versions,
        terms: Terms,
        now: Instant,
    ) -> Option<Grace> {
        let state = self.lock();
        let proof = state.proof(digest)?;
        let mailbox = state.mailbox.clone()?;
        let in_time = now < proof.at + terms.fresh + terms.grace;
        if proof.demoted || proof.profile != newest.profile || !in_time {
            return None;
        }
        let planned = state.rules == newest.rules;
        Some(if planned { Grace::Planned(mailbox) } else { Grace::Replan })
    }

    /// The password was proven, however long ago, and nothing speaks against it.
    #[must_use]
    pub fn is_proven(&self, digest: &Digest) -> bool {
        self.lock().proof(digest).is_some_and(|proof| !proof.demoted)
    }

    /// Somebody was let in here, as far as memory goes back.
    #[must_use]
    pub fn had_success(&self) -> bool {
        let state = self.lock();
        !state.nets.is_empty() || !state.proofs.is_empty()
    }

    /// Whether the entry should be read for its stamp now, if there was none until now, too; says yes once per 10 s.
    #[must_use]
    pub fn is_read_due(&self, now: Instant) -> bool {
        self.lock().read_due(now)
    }

    /// Whether memory could tell a guesser that this password is right, had it been another: it holds proofs, and none
    /// of it (login.md L-3).
    #[must_use]
    pub fn is_guess(&self, digest: &Digest) -> bool {
        let state = self.lock();
        !state.proofs.is_empty() && state.proof(digest).is_none()
    }

    /// Whether memory answers this password with a refusal.
    #[must_use]
    pub fn refuses(&self, digest: &Digest, newest: Versions, terms: Terms, now: Instant) -> bool {
        self.lock().is_refused(digest, newest, terms, now)
    }

    /// The background question is over. If it came to no new proof, there is a pause before the next.
    pub fn refreshed(&self, now: Instant) {
        let mut state = self.lock();
        if state.refresh == Refresh::Asking {
            state.refresh = Refresh::NotBefore(now + REFRESH_AGAIN_AFTER);
        }
    }

    /// The directory counts grace logins down: no question in the background, until it accepts a password without
    /// (login.md B-2).
    pub fn never_refresh(&self) {
        self.lock().refresh = Refresh::Never;
    }

    /// A login from this net succeeded.
    pub fn note_net(&self, net: Net) {
        self.lock().note_net(net);
    }

    /// The digest was proven, however long ago, and the entry has not changed since that proof: its stamp is still
    /// this one. Tells a locked account from a wrong password (login.md B-1).
    #[must_use]
    pub fn was_proven_at(&self, digest: &Digest, stamp: Stamp) -> bool {
        let state = self.lock();
        let proof = state.proof(digest).filter(|proof| !proof.demoted);
        stamp != Stamp::Unreadable && proof.is_some_and(|proof| proof.stamp == stamp)
    }

    /// The directory refused a proven password, but could not say more: it is asked about again, and has no grace.
    pub fn demote(&self, digest: &Digest) {
        let mut state = self.lock();
        let refused = state.proofs.iter_mut().filter(|proof| proof.digest == *digest);
        refused.for_each(|proof| proof.demoted = true);
    }

    /// What may be shown of it.
    #[must_use]
    pub fn shown(&self, now: Instant) -> Remembered {
        let state = self.lock();
        let age = |at: Instant| now.saturating_duration_since(at).as_secs();
        Remembered {
            profile: state.person.profile.to_string(),
            id: state.person.id.to_string(),
            dn: state.person.dn.to_string(),
            mailbox: state.mailbox.as_ref().map(|mailbox| mailbox.address.to_string()),
            names: state.names.iter().map(|name| name.text.replace('\0', "@")).collect(),
            proofs: state
                .proofs
                .iter()
                .map(|proof| ProofShown { age_seconds: age(proof.at), demoted: proof.demoted })
                .collect(),
            refusals_age_seconds: state
                .against
                .refusals
                .iter()
                .map(|refusal| age(refusal.at))
                .collect(),
            barred: state.against.barred.filter(|bar| now < bar.until).map(|bar| {
                (bar.until.saturating_duration_since(now).as_secs(), bar.reason.as_str())
            }),
            old_password_clients: Vec::new(),
        }
    }

    fn weight(&self) -> usize {
        let state = self.lock();
        let mailbox = state.mailbox.as_ref().map_or(0, |mailbox| mailbox.weight());
        let person = &state.person;
        let texts = person.attributes.weight() + person.dn.len() + person.id.len();
        let against = state.against.weight();
        let more = spilled(&state.proofs) + spilled(&state.names) + spilled(&state.nets) + against;
        RECORD_BYTES + self.account.len() + texts + more + mailbox
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held cannot leave it half written in a way that matters: fields are independent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn current_mailbox(
        &self,
        (rules, edition): (u64, u64),
        now: Instant,
    ) -> Option<(Arc<Mailbox>, Instant)> {
        let (seen, then) = self.seen?;
        let is_current = self.rules == rules && then == edition && now < seen + MAILBOX_IS_CURRENT;
        self.mailbox.clone().filter(|_| is_current).map(|mailbox| (mailbox, seen))
    }

    /// Plans are made of nothing else of a person.
    fn is_planned_as(&self, person: &Person) -> bool {
        self.person.attributes == person.attributes && self.person.dn == person.dn
    }

    fn proof(&self, digest: &Digest) -> Option<&Proof> {
        self.proofs.iter().find(|proof| proof.digest == *digest)
    }

    fn is_fresh(&self, digest: &Digest, newest: Versions, terms: Terms, now: Instant) -> bool {
        self.proof(digest).is_some_and(|proof| {
            !proof.demoted
                && proof.profile == newest.profile
                && now < proof.at + terms.fresh
                && self.is_undoubted(proof.at)
        })
    }

    fn is_refused(&self, digest: &Digest, newest: Versions, terms: Terms, now: Instant) -> bool {
        let is_old = self.kind_of_wrong(digest) == Wrong::Old;
        let trusted = match self.person.stamp {
            // An old password stays wrong while the new one stands.
            Stamp::At(_) if is_old => None,
            Stamp::Unreadable if !is_old => Some(terms.refused.min(REFUSED_WITHOUT_STAMP)),
            _ => Some(terms.refused),
        };
        self.against.refusals.iter().any(|refusal| {
            refusal.digest == *digest
                && refusal.profile == newest.profile
                && trusted.is_none_or(|trusted| now < refusal.at + trusted)
                && self.is_undoubted(refusal.at)
        })
    }

    /// Nothing has spoken against what was learned at this time.
    fn is_undoubted(&self, learned: Instant) -> bool {
        self.doubted.is_none_or(|doubted| learned > doubted)
    }

    /// A password that was right is old once another has been accepted.
    fn kind_of_wrong(&self, digest: &Digest) -> Wrong {
        let was_right = self.against.former.contains(digest);
        let is_replaced = self.proofs.iter().any(|proof| !proof.demoted);
        if was_right && is_replaced { Wrong::Old } else { Wrong::Guess }
    }

    /// Remembers a refusal. Where there is no room, one of a password that was tried once goes, never one that clients
    /// keep sending: a guesser must not make those be bound again.
    fn add_refusal(&mut self, digest: Digest, learned: &Learned<'_>) {
        self.against.change(|against| against.refusals.retain(|refusal| refusal.digest != digest));
        let guessed = |refusal: &Refusal| {
            !refusal.was_hit && self.kind_of_wrong(&refusal.digest) == Wrong::Guess
        };
        let least = self.against.refusals.iter().position(guessed).unwrap_or(0);
        let refusals = &mut self.against.make().refusals;
        if refusals.len() >= MAX_REFUSALS {
            refusals.remove(least);
        }
        let (at, profile) = (learned.now, learned.versions.profile);
        refusals.push(Refusal { digest, at, profile, was_hit: false });
    }

    fn clear_refusals(&mut self) {
        self.against.change(|against| against.refusals = Vec::new());
    }

    fn hit_refusal(&mut self, digest: &Digest) {
        self.against.change(|against| {
            let mut refusals = against.refusals.iter_mut();
            if let Some(refusal) = refusals.find(|refusal| refusal.digest == *digest) {
                refusal.was_hit = true;
            }
        });
    }

    /// Whether the use of this proof should ask the directory in the background now; says yes once.
    fn refresh_due(&mut self, digest: &Digest, terms: Terms, now: Instant) -> bool {
        let Some(after) = terms.refresh_after else { return false };
        let may = match self.refresh {
            Refresh::WhenDue => true,
            Refresh::NotBefore(at) => now >= at,
            Refresh::Asking | Refresh::Never => false,
        };
        let due = may
            && !self.person.is_local()
            && self.proof(digest).is_some_and(|proof| now >= proof.at + after);
        if due {
            self.refresh = Refresh::Asking;
        }
        due
    }

    fn note_net(&mut self, net: Net) {
        if !self.nets.contains(&net) {
            push_bounded(&mut self.nets, net, MAX_NETS);
        }
    }

    /// Marks a name as proven; if there is no place, one that was never proven gives its own up and is returned.
    fn name_proven(&mut self, name: &str) -> Option<Arc<str>> {
        if let Some(known) = self.names.iter_mut().find(|known| &*known.text == name) {
            known.proven = true;
            return None;
        }
        let mut given_up = None;
        if self.names.len() >= MAX_NAMES {
            let place = self.names.iter().position(|known| !known.proven)?;
            given_up = Some(self.names.remove(place).text);
        }
        self.names.push(Name { text: name.into(), proven: true });
        given_up
    }

    /// Whether a hit on a refusal should read the entry's stamp now; says yes once per 10 s.
    fn stamp_due(&mut self, now: Instant) -> bool {
        self.person.stamp != Stamp::Unreadable && self.read_due(now)
    }

    /// Whether the entry may be read for its stamp now; says yes once per 10 s.
    fn read_due(&mut self, now: Instant) -> bool {
        let due = self.against.stamp_read.is_none_or(|at| now >= at + STAMP_READ_EVERY);
        if due {
            self.against.make().stamp_read = Some(now);
        }
        due
    }
}

/// What a list takes outside its record, in bytes.
fn spilled<T>(list: &UsuallyOne<T>) -> usize {
    if list.spilled() { list.capacity() * size_of::<T>() } else { 0 }
}

fn count<K: Eq + Hash, T: Clone>(names: &Bounded<K, T>) -> u64 {
    u64::try_from(names.len()).unwrap_or(u64::MAX)
}

/// The key of an account: profile and immutable id.
#[must_use]
pub fn account_key(profile: &str, id: &str) -> String {
    format!("{profile}\0{id}")
}

/// Adds to the end; the oldest goes where there is no room.
fn push_bounded<T>(list: &mut UsuallyOne<T>, item: T, most: usize) {
    if list.len() >= most {
        list.remove(0);
    }
    list.push(item);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::gate;
    use crate::person::{AccountState, Attributes};

    const NEWEST: Versions = Versions { rules: 1, profile: 1 };
    const TERMS: Terms = Terms {
        fresh: Duration::from_secs(900),
        refresh_after: Some(Duration::from_secs(720)),
        grace: Duration::from_secs(43_200),
        refused: Duration::from_secs(600),
        absent: Duration::from_secs(30),
    };

    fn person(id: &str, stamp: Stamp) -> Arc<Person> {
        Arc::new(Person {
            profile: "corp".into(),
            id: id.into(),
            dn: "uid=fry,dc=x".into(),
            attributes: Attributes::default(),
            state: AccountState::Active,
            stamp,
            one_time: false,
        })
    }

    fn mailbox() -> Arc<Mailbox> {
        Arc::new(Mailbox::sample("fry@x.example"))
    }

    struct Fixture {
        memory: Memory,
        person: Arc<Person>,
        start: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                memory: Memory::new(1 << 20, [7; 32]),
                person: person("1", Stamp::At([1; 16])),
                start: crate::clock::now(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn learned(&self, seconds: u64) -> Learned<'_> {
            Learned {
                name: "fry@x.example",
                person: &self.person,
                versions: NEWEST,
                vouched: None,
                now: self.at(seconds),
            }
        }

        fn prove(&self, password: &str, seconds: u64) {
            let password = Password::new(password);
            let seen = self.seen(seconds);
            self.memory.prove(&self.learned(seconds), &password, seen, gate::net(None));
        }

        fn seen(&self, seconds: u64) -> Seen {
            let (edition, at) = (self.memory.edition(), self.at(seconds));
            Seen { mailbox: mailbox(), edition, written: true, at }
        }

        fn refuse(&self, password: &str, seconds: u64) -> Wrong {
            self.memory.refuse(&self.learned(seconds), &Password::new(password))
        }

        fn record(&self) -> Arc<Record> {
            self.memory.record("fry@x.example").unwrap()
        }

        fn recall(&self, password: &str, seconds: u64) -> &'static str {
            self.recall_with(password, seconds, NEWEST)
        }

        fn recall_with(&self, password: &str, seconds: u64, newest: Versions) -> &'static str {
            let password = Password::new(password);
            let newest = |_: &Person| Some(newest);
            match self.memory.recall("fry@x.example", &password, TERMS, newest, self.at(seconds)) {
                Recall::Proven { refresh: true, .. } => "proven, refresh",
                Recall::Proven { .. } => "proven",
                Recall::Replan(_) => "replan",
                Recall::Refused { read_stamp: true, kind: Wrong::Old, .. } => {
                    "refused, old, read stamp"
                }
                Recall::Refused { kind: Wrong::Old, .. } => "refused, old",
                Recall::Refused { read_stamp: true, .. } => "refused, read stamp",
                Recall::Refused { read_stamp: false, .. } => "refused",
                Recall::Barred(reason) => reason.as_str(),
                Recall::Ask(_) => "ask",
                Recall::Nothing => "nothing",
            }
        }

        fn grace(&self, password: &str, seconds: u64) -> bool {
            let record = self.memory.record("fry@x.example").unwrap();
            let digest = self.memory.digest(&record.account, &Password::new(password));
            record.grace(&digest, NEWEST, TERMS, self.at(seconds)).is_some()
        }
    }

    #[test]
    fn whoever_takes_more_memory_weighs_more() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        let record = fixture.record();
        let lean = record.weight();
        assert!(size_of::<Record>() + size_of::<Person>() <= RECORD_BYTES);

        fixture.refuse("bad", 1);
        assert_eq!(fixture.recall("bad", 2), "refused, read stamp");
        let refused = size_of::<Against>() + size_of::<Refusal>();
        assert!(record.weight() >= lean + refused, "{} {lean} {refused}", record.weight());
        fixture.memory.stamp_seen(&record, Stamp::At([2; 16]));
        assert!(record.weight() > lean, "when the stamp was read is kept in mind");
        fixture.prove("good", 20);
        assert_eq!(record.weight(), lean, "nothing speaks against anybody any more");

        fixture.prove("new", 21);
        assert!(record.weight() >= lean + 2 * size_of::<Proof>());
    }

    #[test]
    fn a_record_and_the_table_of_names_share_the_text_of_a_name() {
        let fixture = Fixture::new();
        for seconds in [0, 1] {
            fixture.prove("good", seconds);
            let record = fixture.record();
            let state = record.lock();
            assert_eq!(Arc::strong_count(&state.names.first().unwrap().text), 2);
        }
    }

    #[test]
    fn a_proof_answers_while_it_is_fresh_and_then_the_directory_is_asked() {
        let fixture = Fixture::new();
        assert_eq!(fixture.recall("good", 0), "nothing");

        fixture.prove("good", 0);

        assert_eq!(fixture.recall("good", 719), "proven");
        assert_eq!(fixture.recall("good", 899), "proven, refresh");
        assert_eq!(fixture.recall("good", 900), "ask");
        assert_eq!(fixture.recall("other", 1), "ask");
    }

    #[test]
    fn near_the_end_of_fresh_one_use_asks_ahead_and_no_other_until_that_is_over() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);

        assert_eq!(fixture.recall("good", 720), "proven, refresh");
        assert_eq!(fixture.recall("good", 721), "proven");
        // It came to nothing.
        fixture.record().refreshed(fixture.at(722));
        assert_eq!(fixture.recall("good", 731), "proven");
        assert_eq!(fixture.recall("good", 732), "proven, refresh");
        // It came to a new proof.
        fixture.prove("good", 733);
        fixture.record().refreshed(fixture.at(733));
        assert_eq!(fixture.recall("good", 1452), "proven");
        assert_eq!(fixture.recall("good", 1453), "proven, refresh");
    }

    #[test]
    fn nobody_asks_ahead_where_each_bind_burns_a_grace_login() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        fixture.record().never_refresh();

        assert_eq!(fixture.recall("good", 800), "proven");

        fixture.prove("good", 900);
        assert_eq!(fixture.recall("good", 1700), "proven, refresh");
    }

    #[test]
    fn a_flood_of_guesses_pushes_out_no_refusal_that_a_client_keeps_hitting() {
        let fixture = Fixture::new();
        fixture.refuse("typo in a phone", 0);
        assert_eq!(fixture.recall("typo in a phone", 1), "refused, read stamp");

        for number in 0..1000 {
            fixture.refuse(&format!("guess {number}"), 2);
        }

        assert_eq!(fixture.recall("typo in a phone", 3), "refused");
        assert_eq!(fixture.recall("guess 0", 3), "ask");
        assert_eq!(fixture.recall("guess 999", 3), "refused");
    }

    #[test]
    fn a_password_that_was_right_is_old_once_another_is_accepted_and_stays_refused() {
        let mut fixture = Fixture::new();
        fixture.prove("old", 0);
        assert_eq!(fixture.refuse("old", 1), Wrong::Guess, "no other was accepted yet");
        fixture.prove("new", 2);

        assert_eq!(fixture.recall("old", 3), "refused, old, read stamp");
        for number in 0..1000 {
            fixture.refuse(&format!("guess {number}"), 4);
        }
        assert_eq!(fixture.recall("old", 100_000), "refused, old, read stamp");
        assert_eq!(fixture.recall("guess 999", 100_000), "ask");

        // The stamp moves: it may be the right one again.
        fixture.person = person("1", Stamp::At([2; 16]));
        fixture.prove("new", 100_001);
        assert_eq!(fixture.recall("old", 100_002), "ask");
        assert_eq!(fixture.refuse("old", 100_003), Wrong::Old);
        fixture.prove("old", 100_004);
        assert_eq!(fixture.recall("old", 100_005), "proven");
    }

    #[test]
    fn without_a_readable_stamp_an_old_password_is_asked_about_as_seldom_as_others_with_one() {
        let mut fixture = Fixture::new();
        fixture.person = person("1", Stamp::Unreadable);
        fixture.prove("old", 0);
        fixture.prove("new", 1);
        assert_eq!(fixture.refuse("old", 2), Wrong::Old);

        assert_eq!(fixture.recall("old", 601), "refused, old");
        assert_eq!(fixture.recall("old", 602), "ask");
    }

    #[test]
    fn only_passwords_beside_a_proof_are_guesses_against_memory() {
        let fixture = Fixture::new();
        let digest = |password: &str| {
            fixture.memory.digest(&account_key("corp", "1"), &Password::new(password))
        };
        fixture.refuse("guess", 0);
        assert!(!fixture.record().is_guess(&digest("guess")), "there is nothing to guess");

        fixture.prove("good", 1);

        assert!(fixture.record().is_guess(&digest("guess")));
        assert!(!fixture.record().is_guess(&digest("good")));
    }

    #[test]
    fn an_older_proof_has_grace_until_it_is_demoted_refused_or_ended() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        assert!(fixture.grace("good", 900 + 43_199));
        assert!(!fixture.grace("good", 900 + 43_200));
        assert!(!fixture.grace("other", 1));

        fixture.prove("newer", 10);
        assert!(!fixture.grace("good", 20), "demoted");
        fixture.refuse("newer", 30);
        assert!(!fixture.grace("newer", 40), "refused since");
    }

    #[test]
    fn a_new_password_demotes_the_old_one_and_a_wrong_one_ends_no_proof() {
        let fixture = Fixture::new();
        fixture.prove("old", 0);
        fixture.refuse("guess", 1);
        assert_eq!(fixture.recall("old", 2), "proven");

        fixture.prove("new", 3);

        assert_eq!(fixture.recall("new", 4), "proven");
        assert_eq!(fixture.recall("old", 4), "ask");
        fixture.refuse("old", 5);
        assert_eq!(fixture.recall("old", 6), "refused, old, read stamp");
        assert_eq!(fixture.recall("new", 6), "proven");
    }

    #[test]
    fn a_refusal_answers_for_its_time_and_reads_the_stamp_once_in_ten_seconds() {
        let fixture = Fixture::new();
        fixture.refuse("guess", 0);

        assert_eq!(fixture.recall("guess", 1), "refused, read stamp");
        assert_eq!(fixture.recall("guess", 10), "refused");
        assert_eq!(fixture.recall("guess", 11), "refused, read stamp");
        assert_eq!(fixture.recall("guess", 600), "ask");
    }

    #[test]
    fn a_moved_stamp_ends_refusals_and_asks_about_proofs_again() {
        let fixture = Fixture::new();
        fixture.prove("old", 0);
        fixture.refuse("new", 0);
        let record = fixture.memory.record("fry@x.example").unwrap();

        fixture.memory.stamp_seen(&record, Stamp::At([1; 16]));
        assert_eq!(fixture.recall("old", 1), "proven");
        fixture.memory.stamp_seen(&record, Stamp::At([2; 16]));

        assert_eq!(fixture.recall("new", 1), "ask");
        assert_eq!(fixture.recall("old", 1), "ask");
    }

    #[test]
    fn a_touched_entry_ends_what_it_contradicts_and_nothing_else() {
        let fixture = Fixture::new();
        let reread = |change: &dyn Fn(&mut Person), by_login| {
            let record = fixture.memory.record("fry@x.example").unwrap();
            let mut person = Person::clone(&fixture.person);
            change(&mut person);
            fixture.memory.reread(&record, (Arc::new(person), None), by_login)
        };
        let remember = || {
            fixture.prove("good", 0);
            fixture.refuse("guess", 0);
        };

        remember();
        assert_eq!(reread(&|_| {}, false), Change::Nothing);
        assert_eq!(fixture.recall("good", 1), "proven");

        remember();
        let mail =
            |person: &mut Person| person.attributes.insert("mail", [b"new".as_slice().into()]);
        assert_eq!(reread(&mail, false), Change::Person);
        assert_eq!(fixture.recall("good", 1), "replan");

        remember();
        assert_eq!(reread(&|person| person.stamp = Stamp::At([2; 16]), false), Change::Password);
        assert_eq!((fixture.recall("good", 1), fixture.recall("guess", 1)), ("ask", "ask"));
        assert!(!fixture.grace("good", 1000));

        remember();
        assert_eq!(reread(&|person| person.state = AccountState::Disabled, false), Change::Ended);
        assert_eq!(fixture.recall("good", 1), "ask");
    }

    #[test]
    fn without_a_stamp_any_touch_but_a_login_may_be_a_new_password() {
        let mut fixture = Fixture::new();
        fixture.person = person("1", Stamp::Unreadable);
        for (by_login, change, recalled) in
            [(true, Change::Nothing, "proven"), (false, Change::Password, "ask")]
        {
            fixture.prove("good", 0);
            let record = fixture.memory.record("fry@x.example").unwrap();
            let same = (Arc::clone(&fixture.person), None);
            assert_eq!(fixture.memory.reread(&record, same, by_login), change);
            assert_eq!(fixture.recall("good", 1), recalled);
        }
    }

    #[test]
    fn what_is_doubted_is_asked_about_and_keeps_its_grace() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        fixture.refuse("guess", 0);
        let record = fixture.memory.record("fry@x.example").unwrap();

        fixture.memory.doubt(&record, fixture.at(1));

        assert_eq!((fixture.recall("good", 2), fixture.recall("guess", 2)), ("ask", "ask"));
        assert!(fixture.grace("good", 1000));
        assert!(record.is_doubted());
        fixture.prove("good", 3);
        assert!(!record.is_doubted());
        assert_eq!(fixture.recall("good", 4), "proven");
    }

    #[test]
    fn a_feed_vouches_for_what_was_read_in_its_run_and_not_for_ever() {
        let fixture = Fixture::new();
        let vouched = Some(Vouched { run: 7, since: fixture.at(0) });
        let password = Password::new("good");
        let seen = fixture.seen(0);
        let learned = Learned { vouched, ..fixture.learned(0) };
        fixture.memory.prove(&learned, &password, seen, gate::net(None));
        let record = fixture.memory.record("fry@x.example").unwrap();

        assert!(record.vouched(7, fixture.at(100)).is_some());
        assert!(record.vouched(8, fixture.at(100)).is_none());
        assert!(record.vouched(7, fixture.at(6 * 3_600)).is_none());
        record.unvouch();
        assert!(record.vouched(7, fixture.at(100)).is_none());
    }

    #[test]
    fn without_a_readable_stamp_a_refusal_is_trusted_for_a_minute() {
        let mut fixture = Fixture::new();
        fixture.person = person("1", Stamp::Unreadable);
        fixture.refuse("guess", 0);

        assert_eq!(fixture.recall("guess", 59), "refused");
        assert_eq!(fixture.recall("guess", 60), "ask");
    }

    #[test]
    fn a_bar_holds_for_its_time_but_a_fresh_proof_stands() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        fixture.memory.bar(&fixture.learned(1), Reason::Locked, fixture.at(31));

        assert_eq!(fixture.recall("other", 30), "locked");
        assert_eq!(fixture.recall("good", 30), "proven");
        assert_eq!(fixture.recall("other", 31), "ask");
    }

    #[test]
    fn changed_rules_plan_again_and_a_changed_profile_asks_again() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);

        assert_eq!(fixture.recall_with("good", 1, Versions { rules: 2, profile: 1 }), "replan");
        assert_eq!(fixture.recall_with("good", 1, Versions { rules: 1, profile: 2 }), "ask");
    }

    #[test]
    fn a_name_that_is_nobodys_is_barred_for_its_time_and_ends_what_was_proven() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        fixture.memory.nobody("fry@x.example", Reason::Unknown, fixture.at(31));

        assert_eq!(fixture.recall("good", 30), "unknown");
        assert_eq!(fixture.recall("good", 31), "nothing");
    }

    #[test]
    fn eight_names_lead_to_one_account_and_forgetting_one_forgets_all() {
        let fixture = Fixture::new();
        for number in 0..12 {
            let name = format!("name{number}@x.example");
            let learned = Learned { name: &name, ..fixture.learned(0) };
            let password = Password::new("good");
            let seen = fixture.seen(0);
            fixture.memory.prove(&learned, &password, seen, gate::net(None));
        }
        let record = fixture.memory.record("name0@x.example").unwrap();
        assert_eq!(record.shown(fixture.start).names.len(), MAX_NAMES);
        assert!(Arc::ptr_eq(&record, &fixture.memory.record("name7@x.example").unwrap()));
        assert!(fixture.memory.record("name8@x.example").is_none());

        fixture.memory.forget("name3@x.example");

        assert!(fixture.memory.record("name0@x.example").is_none());
    }

    #[test]
    fn whoever_has_a_mailbox_is_forgotten_with_it_and_nobody_else() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);

        fixture.memory.forget_mailbox(mailbox().id + 1);
        assert_eq!(fixture.recall("good", 1), "proven");
        fixture.memory.forget_mailbox(mailbox().id);

        assert_eq!(fixture.recall("good", 1), "nothing");
        assert!(fixture.memory.account(&account_key("corp", "1")).is_none());
    }

    #[test]
    fn a_disabled_mailbox_is_seen_at_the_next_request() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        let mut changed = Mailbox::clone(&mailbox());
        changed.disabled_by_admin = true;

        fixture.memory.mailbox_changed(&changed);

        let record = fixture.memory.record("fry@x.example").unwrap();
        assert!(record.mailbox().unwrap().disabled_by_admin);
    }

    #[test]
    fn a_login_under_way_does_not_bring_back_the_state_before_a_disable() {
        let fixture = Fixture::new();
        let before = fixture.seen(0);
        let mut changed = Mailbox::clone(&mailbox());
        changed.disabled_by_admin = true;

        fixture.memory.mailbox_changed(&changed);
        let password = Password::new("good");
        fixture.memory.prove(&fixture.learned(0), &password, before, gate::net(None));

        assert_eq!(fixture.recall("good", 1), "replan");
    }

    #[test]
    fn a_flood_of_strangers_pushes_out_no_people_and_stays_bounded() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        for number in 0..20_000 {
            let name = format!("stranger{number}@x.example");
            fixture.memory.nobody(&name, Reason::Unknown, fixture.at(30));
        }

        assert_eq!(fixture.recall("good", 1), "proven");
        assert!(fixture.memory.size().nobodies.1 <= (1 << 20) / 8);
    }

    #[test]
    fn a_password_counts_as_proven_only_while_the_stamp_of_its_proof_stands() {
        let mut fixture = Fixture::new();
        fixture.prove("old", 0);
        let record = fixture.memory.record("fry@x.example").unwrap();
        let digest = fixture.memory.digest(&record.account, &Password::new("old"));
        assert!(record.was_proven_at(&digest, Stamp::At([1; 16])));

        // The password was changed, and somebody's typo read the new stamp.
        fixture.person = person("1", Stamp::At([2; 16]));
        fixture.refuse("typo", 1);

        assert!(!record.was_proven_at(&digest, Stamp::At([2; 16])));
        assert!(!record.was_proven_at(&digest, Stamp::Unreadable));
    }

    #[test]
    fn a_login_under_way_does_not_bring_back_what_was_forgotten() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        let record = fixture.memory.record("fry@x.example").unwrap();

        fixture.memory.forget_account(&record);
        fixture.memory.point("fry@x.example", &record);

        assert_eq!(fixture.recall("good", 1), "nothing");
        fixture.prove("good", 2);
        assert_eq!(fixture.recall("good", 3), "proven");
    }

    #[test]
    fn a_demoted_proof_is_asked_about_and_has_no_grace() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        let record = fixture.memory.record("fry@x.example").unwrap();

        record.demote(&fixture.memory.digest(&record.account, &Password::new("good")));

        assert_eq!(fixture.recall("good", 1), "ask");
        assert!(!fixture.grace("good", 1000));
    }

    #[test]
    fn a_wrong_password_after_a_reload_leaves_the_mailbox_to_be_planned_again() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        let newer = Versions { rules: 2, profile: 1 };
        let learned = Learned { versions: newer, ..fixture.learned(1) };

        fixture.memory.refuse(&learned, &Password::new("guess"));

        assert_eq!(fixture.recall_with("good", 2, newer), "replan");
        let record = fixture.memory.record("fry@x.example").unwrap();
        let digest = fixture.memory.digest(&record.account, &Password::new("good"));
        let grace = record.grace(&digest, newer, TERMS, fixture.at(1000));
        assert!(matches!(grace, Some(Grace::Replan)), "{grace:?}");
    }

    #[test]
    fn answers_of_a_profile_as_it_was_before_are_asked_again_and_have_no_grace() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        fixture.refuse("guess", 0);
        fixture.memory.bar(&fixture.learned(0), Reason::Locked, fixture.at(30));
        let newer = Versions { rules: 1, profile: 2 };

        for password in ["good", "guess", "other"] {
            assert_eq!(fixture.recall_with(password, 1, newer), "ask", "{password}");
        }
        let record = fixture.memory.record("fry@x.example").unwrap();
        let digest = fixture.memory.digest(&record.account, &Password::new("good"));
        assert!(record.grace(&digest, newer, TERMS, fixture.at(1000)).is_none());
    }

    #[test]
    fn names_of_strangers_give_their_place_up_to_one_that_is_proven() {
        let fixture = Fixture::new();
        for number in 0..12 {
            let name = format!("spelling{number}@x.example");
            let learned = Learned { name: &name, ..fixture.learned(0) };
            fixture.memory.refuse(&learned, &Password::new("guess"));
        }

        fixture.prove("good", 0);

        assert_eq!(fixture.recall("good", 1), "proven");
        let record = fixture.memory.record("fry@x.example").unwrap();
        assert_eq!(record.shown(fixture.start).names.len(), MAX_NAMES);
    }

    #[test]
    fn a_mailbox_that_was_not_written_or_was_refused_is_planned_again() {
        let fixture = Fixture::new();
        let unwritten = Seen { written: false, ..fixture.seen(0) };
        let password = Password::new("good");
        fixture.memory.prove(&fixture.learned(0), &password, unwritten, gate::net(None));
        assert_eq!(fixture.recall("good", 1), "replan");

        fixture.prove("good", 2);
        let record = fixture.memory.record("fry@x.example").unwrap();
        fixture.memory.withhold(&record);

        assert_eq!(fixture.recall("good", 3), "replan");
        assert!(!fixture.grace("good", 1000));
    }

    #[test]
    fn a_mailbox_is_current_for_a_minute_and_no_longer_once_anything_changed_it() {
        let mut fixture = Fixture::new();
        fn current(fixture: &Fixture, rules: u64, seconds: u64) -> bool {
            let (versions, now) = ((rules, fixture.memory.edition()), fixture.at(seconds));
            let current = fixture.record().current_mailbox(versions, now).is_some();
            let planned = fixture.record().planned_for(&fixture.person, versions, now).is_some();
            assert_eq!(current, planned);
            current
        }
        fixture.refuse("guess", 0);
        assert!(!current(&fixture, 1, 0), "nobody saw one");
        fixture.prove("good", 0);
        let when = [(1, 59), (1, 60), (2, 1)];
        assert_eq!(when.map(|(rules, at)| current(&fixture, rules, at)), [true, false, false]);

        fixture.prove("good", 100);
        let before = fixture.memory.edition();
        let other = Mailbox { link: None, ..Mailbox::sample("leela@x.example") };
        fixture.memory.mailbox_changed(&other);
        assert!(!current(&fixture, 1, 101), "it may have been this one");
        let seen = Seen { edition: before, ..fixture.seen(101) };
        let password = Password::new("good");
        fixture.memory.prove(&fixture.learned(101), &password, seen, gate::net(None));
        assert!(!current(&fixture, 1, 101), "seen before that");
        let unwritten = Seen { written: false, ..fixture.seen(102) };
        fixture.memory.prove(&fixture.learned(102), &password, unwritten, gate::net(None));
        assert!(!current(&fixture, 1, 103), "the store has it otherwise");
        fixture.prove("good", 104);
        assert!(current(&fixture, 1, 105));
        // A login that did not look there does not make it younger.
        let (learned, seen) = (fixture.learned(150), fixture.seen(104));
        fixture.memory.prove(&learned, &password, seen, gate::net(None));
        assert_eq!([163, 164].map(|at| current(&fixture, 1, at)), [true, false]);

        // Refused, but with other attributes: the next login must plan.
        fixture.prove("good", 200);
        let mut moved = Person::clone(&fixture.person);
        moved.attributes.insert("mail", [b"new".as_slice().into()]);
        fixture.person = Arc::new(moved);
        fixture.refuse("guess", 201);
        assert!(!current(&fixture, 1, 202));
        assert_eq!(fixture.recall("good", 202), "replan");
    }

    #[test]
    fn who_is_forgotten_twice_is_found_if_a_login_came_between() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        let first = fixture.record();
        assert_eq!(fixture.memory.forget_account(&first), 1);
        fixture.prove("good", 1);
        assert_eq!(fixture.memory.forget_account(&first), 0);

        fixture.memory.mailbox_changed(&Mailbox {
            link: Some(crate::store::Link { profile: "corp".into(), id: "1".into() }),
            ..Mailbox::sample("fry@x.example")
        });
        assert_ne!(fixture.recall("good", 2), "proven", "an administrator's change is heard of");
    }

    #[test]
    fn a_plan_for_a_person_who_was_read_anew_meanwhile_is_made_again() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        let record = fixture.record();
        let planned = record.person();
        let mut moved = Person::clone(&planned);
        moved.attributes.insert("mail", [b"new".as_slice().into()]);
        let versions = (1, fixture.memory.edition());
        assert!(record.planned_for(&planned, versions, fixture.at(1)).is_some());
        assert!(record.planned_for(&moved, versions, fixture.at(1)).is_none());
        let elsewhere = Person { dn: "uid=fry,ou=else,dc=x".into(), ..Person::clone(&planned) };
        assert!(record.planned_for(&elsewhere, versions, fixture.at(1)).is_none());

        // A login plans again for the person as remembered; a feed reads them anew; the login comes to its end.
        fixture.memory.reread(&record, (Arc::new(moved), None), false);
        fixture.memory.replanned(&record, fixture.seen(2), (1, &planned));
        assert_eq!(fixture.recall("good", 3), "replan");
        fixture.memory.replanned(&record, fixture.seen(4), (1, &record.person()));
        assert_eq!(fixture.recall("good", 5), "proven");
    }

    #[test]
    fn whoever_is_remembered_is_found_by_account_whatever_else_came_by() {
        let fixture = Fixture::new();
        fixture.prove("good", 0);
        for number in 0..5_000 {
            let person = person(&format!("other{number}"), Stamp::Unreadable);
            let name = format!("other{number}@x.example");
            let learned = Learned { name: &name, person: &person, ..fixture.learned(0) };
            fixture.memory.refuse(&learned, &Password::new("guess"));
        }

        let by_name = fixture.memory.record("fry@x.example").is_some();
        let by_account = fixture.memory.account(&account_key("corp", "1")).is_some();
        assert_eq!(by_name, by_account);
        assert!(fixture.memory.accounts().records.len() <= 1024);
    }

    #[test]
    fn digests_differ_by_account_password_and_process() {
        let fixture = Fixture::new();
        let digest = |account: &str, password: &str| {
            fixture.memory.digest(account, &Password::new(password))
        };
        assert_eq!(digest("a", "b"), digest("a", "b"));
        assert_ne!(digest("a", "b"), digest("ab", ""));
        assert_ne!(digest("a", "b"), digest("a", "c"));
        let other = Memory::new(1 << 20, [8; 32]);
        assert_ne!(digest("a", "b"), other.digest("a", &Password::new("b")));
    }
}
