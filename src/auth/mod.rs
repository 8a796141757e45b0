//! The core: "may this person in?". Knows no protocol, no HTTP, no SQL text.
//!
//! [`Authenticator::recall`] answers from memory and never waits; what it cannot answer goes to
//! [`Authenticator::authenticate`], which may ask the directory and make or update the mailbox. The rules are
//! login.md's, named by their ids where they are kept.

mod access;
mod admission;
mod asking;
mod attempt;
mod budget;
mod changes;
mod charge;
mod complaints;
mod flights;
mod gate;
pub mod journal;
mod leave;
mod masters;
mod memory;
mod old_passwords;
pub mod password;
mod refresh;
mod replay;
#[cfg(test)]
mod tests;
mod unproven;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::config::Config;
use crate::config::directory::Fallback;
use crate::directory::Directories;
use crate::identity::{Address, Login, LoginRules, MAX_NAME_BYTES, NameError};
use crate::metrics::{LoginOutcome, Metrics};
use crate::person::Person;
use crate::provision::Rules;
use crate::store::{Mailbox, Store};
use crate::throttle::{Because, Course, Judgement, Outcome, Subject, Throttle};

/// A change that was not heard of in time: so often its end is waited for, and so long between. A disk that stands still for
/// longer has other troubles.
const UNSURE_TRIES: u32 = 100;
const UNSURE_PAUSE: Duration = Duration::from_secs(1);

pub use crate::service::Service;
pub use access::{Facts, objection, objection_to};
pub use asking::refusal_reason;
pub use attempt::{
    Accepted, Attempt, Credentials, Later, OLD_PASSWORD, Reason, Refused, Source, Verdict,
};
pub use memory::{ProofShown, Remembered};
pub use old_passwords::{OldPasswordClient, OldPasswordLogin};
pub use replay::{MAX_LINE, Replay, Replayed, Row};

use admission::{Admission, Places};
use asking::Asking;
use budget::Budgets;
use changes::Touched;
use complaints::Complaints;
use flights::{Flights, Settled};
use gate::{Gates, Standing};
use journal::Journal;
use masters::{Masters, Who};
use memory::{Memory, Recall, Record, Terms, Versions, Wrong, account_key};
use old_passwords::OldPasswords;
use password::Checks;
use unproven::Unproven;

/// Answers attempts. One per daemon, shared by all doors.
pub struct Authenticator {
    setup: ArcSwap<Setup>,
    memory: Memory,
    admission: Admission,
    flights: Flights,
    gates: Gates,
    budgets: Budgets,
    unproven: Unproven,
    throttle: Arc<Throttle>,
    old_passwords: OldPasswords,
    /// Places for questions in the background.
    background: Arc<Semaphore>,
    touched: Touched,
    complaints: Complaints,
    checks: Checks,
    store: Store,
    journal: Arc<Journal>,
    metrics: Metrics,
    tracker: TaskTracker,
}

/// What a reload swaps.
pub struct Setup {
    /// How a name typed becomes a login.
    pub names: LoginRules,
    /// The time for one attempt.
    pub deadline: Duration,
    /// The directories.
    pub directories: Arc<Directories>,
    /// Templates, mappings and domains.
    pub rules: Rules,
    /// Grows with each reload (login.md M-9). Never 0.
    generation: u64,
    terms: Terms,
    /// Places for questions that there are at most.
    places: usize,
    /// One-time-password profiles and the like: nothing is remembered.
    remember: BTreeMap<String, bool>,
    /// `auth.wrong_binds` of each directory: how many, in which time.
    wrong_binds: BTreeMap<String, (u32, Option<Duration>)>,
    masters: Masters,
    /// Directories beside which a mailbox's own password counts while they are away.
    fall_back: BTreeSet<String>,
}

impl Setup {
    /// Compiles a checked configuration.
    #[must_use]
    pub fn new(config: &Config, directories: Arc<Directories>, generation: u64) -> Self {
        Self {
            names: config.names(),
            deadline: config.login.deadline.0,
            directories,
            rules: Rules::new(config),
            generation,
            terms: Terms {
                fresh: config.memory.fresh.0,
                refresh_after: config.memory.refresh_after(),
                grace: config.memory.grace.0,
                refused: config.memory.refused.0,
                absent: config.memory.absent.0,
            },
            places: Places::all(config),
            remember: config
                .directory
                .iter()
                .map(|(name, directory)| (name.clone(), directory.auth.remember))
                .collect(),
            wrong_binds: config
                .directory
                .iter()
                .map(|(name, directory)| {
                    let rate = directory.auth.wrong_binds;
                    (name.clone(), (rate.count, Some(rate.window.0)))
                })
                .collect(),
            masters: Masters::new(config),
            fall_back: config
                .directory
                .iter()
                .filter(|(_, directory)| directory.auth.fallback == Fallback::Unavailable)
                .map(|(name, _)| name.clone())
                .collect(),
        }
    }

    /// The versions that answers about this person must match; `None`: their profile is gone, or takes
    /// no logins.
    fn newest(&self, person: &Person) -> Option<Versions> {
        if person.is_local() {
            return Some(Versions { rules: self.generation, profile: 0 });
        }
        let profile = self.directories.of(person)?;
        if !profile.takes_logins() {
            return None;
        }
        Some(Versions { rules: self.generation, profile: profile.epoch() })
    }

    /// For questions, as things are now.
    fn places(&self) -> Places {
        let directories = self.directories.iter().filter(|profile| profile.takes_logins());
        Places::new(self.places, directories.map(|profile| profile.room(self.deadline)).sum())
    }

    fn remembers(&self, person: &Person) -> bool {
        !person.one_time && self.remember.get(&*person.profile).copied().unwrap_or(true)
    }

    /// Who an attempt is about.
    fn who(&self, attempt: &Attempt) -> Result<Who, NameError> {
        masters::who(&self.names, &self.masters, &attempt.login, &attempt.authzid)
    }

    fn falls_back(&self, profile: &str) -> bool {
        self.fall_back.contains(profile)
    }

    /// The mailbox with the domain's standing as configured now, and with texts of its own only where it must have them:
    /// it may be remembered.
    fn effective(&self, mut mailbox: Mailbox) -> Arc<Mailbox> {
        let domain = self.rules.shared_domain(mailbox.address.domain());
        mailbox.domain_active = domain.is_some_and(|(_, limits)| limits.active);
        if let Some((name, _)) = domain {
            mailbox.address.share_domain(name);
        }
        Arc::new(mailbox)
    }
}

/// What the authenticator works with, beside the setup.
pub struct Parts {
    /// The database of mailboxes.
    pub store: Store,
    /// Where decisions are written.
    pub journal: Arc<Journal>,
    /// Where they are counted.
    pub metrics: Metrics,
    /// The guessing shield.
    pub throttle: Arc<Throttle>,
    /// Who waits for our tasks at the end.
    pub tracker: TaskTracker,
    /// Bytes for what is remembered.
    pub memory_capacity: u64,
    /// The key of the digests: random for each process.
    pub memory_key: [u8; 32],
}

impl Authenticator {
    /// An authenticator with an empty memory.
    #[must_use]
    pub fn new(setup: Setup, parts: Parts) -> Self {
        Self {
            setup: ArcSwap::from_pointee(setup),
            memory: Memory::new(parts.memory_capacity, parts.memory_key),
            admission: Admission::default(),
            flights: Flights::default(),
            gates: Gates::default(),
            budgets: Budgets::default(),
            unproven: Unproven::default(),
            throttle: parts.throttle,
            old_passwords: OldPasswords::default(),
            background: Arc::new(Semaphore::new(refresh::MAX_BACKGROUND)),
            touched: Touched::default(),
            complaints: Complaints::default(),
            checks: Checks::default(),
            store: parts.store,
            journal: parts.journal,
            metrics: parts.metrics,
            tracker: parts.tracker,
        }
    }

    /// Answers from memory, or not at all. Never waits. Writes the journal if it answers.
    #[must_use]
    pub fn recall(self: &Arc<Self>, attempt: &Attempt, now: Instant) -> Option<Verdict> {
        let setup = self.setup.load();
        let mut buffer = [0; MAX_NAME_BYTES];
        let (name, known) = match plain_at_once(&setup, attempt, &mut buffer) {
            Some((name, service)) => (Some(Cow::Borrowed(name)), Ok(service)),
            None => match known_at_once(&setup, attempt) {
                Err(reason) => (None, Err(reason)),
                Ok((Who::Other { .. }, _)) => return None,
                Ok((Who::Own(login), service)) => {
                    (Some(Cow::Owned(name_key(&login).into_owned())), Ok(service))
                }
            },
        };
        let subject = subject(attempt, name.as_deref());
        let judgement = self.throttle.check(&subject, now);
        if judgement.action != Course::Go {
            return None;
        }
        let verdict = match (known, name.as_deref()) {
            (Ok(service), Some(name)) => {
                let verdict = self.recall_name(&setup, attempt, name, service, now)?;
                self.unless_listed(verdict, &subject)
            }
            (Ok(_), None) => return None,
            (Err(reason), _) => Verdict::Reject(Refused::new(reason, Source::Rules)),
        };
        self.record(attempt, &verdict, (&subject, &judgement), now);
        Some(verdict)
    }

    fn recall_name(
        self: &Arc<Self>,
        setup: &Arc<Setup>,
        attempt: &Attempt,
        name: &str,
        service: Service,
        now: Instant,
    ) -> Option<Verdict> {
        let net = gate::net(attempt.client);
        if self.unproven.bars(&net, name, now) {
            return Some(Verdict::Unavailable(Later::new(Reason::Unproven)));
        }
        let newest = |person: &Person| setup.newest(person);
        match self.memory.recall(name, &attempt.password, setup.terms, newest, now) {
            Recall::Proven { record, mailbox, refresh } => {
                record.note_net(net);
                if refresh && let Ok(Who::Own(login)) = setup.who(attempt) {
                    self.refresh(Asking::new(setup, attempt, &login, service), record);
                }
                Some(admit(mailbox, service, Source::Memory, None))
            }
            Recall::Refused { record, read_stamp, kind } => {
                if read_stamp {
                    self.read_stamp(setup, record);
                }
                Some(Verdict::Reject(Refused::wrong_password(kind, Source::Memory)))
            }
            Recall::Barred(reason) => Some(Verdict::Reject(Refused::new(reason, Source::Memory))),
            Recall::Ask(record) => {
                // Here, not when the question is asked: a burst must not run ahead of what it is charged.
                let digest = self.memory.digest(&record.account, &attempt.password);
                if record.is_guess(&digest) {
                    self.unproven.note(&net, name, digest, now);
                }
                None
            }
            // A crowd at the door hears so before a question is made of it, which costs much more.
            Recall::Nothing if self.admission.is_full(Standing::Stranger, setup.places()) => {
                let digest = self.memory.digest(name, &attempt.password);
                let is_asked = self.flights.is_asked(name, digest, setup.generation);
                (!is_asked).then(|| Verdict::Unavailable(Later::new(Reason::Busy)))
            }
            Recall::Replan(_) | Recall::Nothing => None,
        }
    }

    /// Answers, asking the directory if memory cannot. Within the deadline of `[login]`, always; writes the journal.
    ///
    /// Dropping the future does not cancel a question under way: others may wait for it, and a bind must not be cut
    /// half way.
    pub async fn authenticate(self: &Arc<Self>, attempt: Attempt) -> Verdict {
        let setup = self.setup.load_full();
        let deadline = attempt.arrived + setup.deadline;
        let known = known_at_once(&setup, &attempt);
        let name = known.as_ref().ok().map(|(who, _)| who.whose_password().address.to_string());
        let subject = subject(&attempt, name.as_deref());
        let judgement = self.throttle.check(&subject, clock::now());
        let decision = async {
            if let Some(verdict) = self.hold_back(&judgement, setup.deadline).await {
                return verdict;
            }
            match known {
                Err(reason) => Verdict::Reject(Refused::new(reason, Source::Rules)),
                Ok((Who::Own(login), service)) => {
                    self.decide(&setup, &attempt, login, service).await
                }
                Ok((Who::Other { master, target }, service)) => {
                    self.decide_other(&setup, &attempt, (&master, &target), service).await
                }
            }
        };
        let verdict = tokio::time::timeout_at(deadline.into(), decision)
            .await
            .unwrap_or_else(|_| Verdict::Unavailable(Later::new(Reason::Deadline)));
        let verdict = self.unless_listed(verdict, &subject);
        self.record(&attempt, &verdict, (&subject, &judgement), clock::now());
        verdict
    }

    /// The denying list names mailboxes; by another of its names it is the same mailbox.
    fn unless_listed(&self, verdict: Verdict, subject: &Subject<'_>) -> Verdict {
        match &verdict {
            Verdict::Accept(Accepted { mailbox, source, .. })
                if subject.login != Some(mailbox.address.as_str())
                    && self.throttle.denies_mailbox(mailbox.address.as_str(), subject.client) =>
            {
                Verdict::Reject(Refused::new(Reason::Throttled, *source))
            }
            _ => verdict,
        }
    }

    /// Does with an attempt what the guessing shield says: a verdict, or nothing after the time that it must wait.
    async fn hold_back(&self, judgement: &Judgement, deadline: Duration) -> Option<Verdict> {
        match judgement.action {
            Course::Go => None,
            Course::Delay(span) => match self.throttle.delay(judgement) {
                Some(_place) => {
                    // A built-in delay may be longer than a short deadline: it must leave time for an answer.
                    let span = if span < deadline { span } else { deadline / 2 };
                    tokio::time::sleep(span).await;
                    None
                }
                None => Some(Verdict::Unavailable(Later::new(Reason::Busy))),
            },
            Course::Deny => Some(Verdict::Reject(Refused::new(Reason::Throttled, Source::Rules))),
        }
    }

    /// Refuses what a door's protocol does not let through, without asking anybody. Writes the journal.
    pub fn refuse(&self, attempt: &Attempt, reason: Reason) -> Verdict {
        let verdict = Verdict::Reject(Refused::new(reason, Source::Rules));
        let judgement = Judgement::default();
        self.record(attempt, &verdict, (&subject(attempt, None), &judgement), clock::now());
        verdict
    }

    async fn decide(
        self: &Arc<Self>,
        setup: &Arc<Setup>,
        attempt: &Attempt,
        login: Login,
        service: Service,
    ) -> Verdict {
        match self.settle_for(setup, attempt, &login, service).await {
            Settled::Proven { mailbox, source, changes } => {
                admit(mailbox, service, source, changes)
            }
            Settled::Refused { refused, .. } => Verdict::Reject(refused),
            Settled::Later(later) => Verdict::Unavailable(later),
        }
    }

    async fn settle_for(
        self: &Arc<Self>,
        setup: &Arc<Setup>,
        attempt: &Attempt,
        login: &Login,
        service: Service,
    ) -> Settled {
        let mut settled = self.settle(setup, attempt, login, service).await;
        // The one who asked for all may have come by a protocol that makes no mailbox; ours may make one. Ends with the
        // attempt's deadline, if not before.
        while matches!(
            &settled,
            Settled::Refused { refused: Refused { reason: Reason::CreationOff, .. }, asked_for }
                if *asked_for != service.protocol()
        ) {
            settled = self.settle(setup, attempt, login, service).await;
        }
        settled
    }

    /// Lets a master into another's mailbox (login.md D-5): the master's own password is proven as at any login; the
    /// mailbox is taken as it is, and neither made, updated nor remembered.
    async fn decide_other(
        self: &Arc<Self>,
        setup: &Arc<Setup>,
        attempt: &Attempt,
        (master, target): (&Login, &Login),
        service: Service,
    ) -> Verdict {
        if !setup.masters.could_be(target.address.domain(), service, attempt.client) {
            return Verdict::Reject(Refused::new(Reason::Authz, Source::Rules));
        }
        // Their own mailbox is made where this protocol makes one; which protocols it allows does not matter here.
        let (own, source) = match self.settle_for(setup, attempt, master, service).await {
            Settled::Proven { mailbox, source, .. } => (mailbox, source),
            Settled::Refused { refused, .. } => return Verdict::Reject(refused),
            Settled::Later(later) => return Verdict::Unavailable(later),
        };
        let refused =
            |reason| Verdict::Reject(Refused { proven: true, ..Refused::new(reason, source) });
        if let Some(reason) = access::objection(&own, Service::Lookup) {
            return refused(reason);
        }
        let may_enter = |address: &Address| {
            setup.masters.is(&own.address, address.domain(), service, attempt.client)
        };
        if !may_enter(&target.address) {
            return refused(Reason::Authz);
        }
        let until = attempt.arrived + setup.deadline;
        let Some(owner) = self.store.owner_until(until, &target.address).await else {
            return Verdict::Unavailable(Later::new(Reason::Deadline));
        };
        match owner {
            // An alias may lead to a mailbox of another domain.
            Ok(Some(mailbox)) if !may_enter(&mailbox.address) => refused(Reason::Authz),
            Ok(Some(mailbox)) => admit(setup.effective(mailbox), service, source, None),
            Ok(None) => refused(Reason::Unknown),
            Err(error) => Verdict::Unavailable(Later {
                reason: Reason::StoreUnavailable,
                detail: Some(error.to_string().into()),
            }),
        }
    }

    /// Forgets what is remembered of a name, and of the account it leads to under any other name; how many entries
    /// that were.
    pub async fn forget(&self, name: &str) -> usize {
        let keys = self.name_keys(name);
        let by_account = self.account(name).await;
        for record in
            keys.iter().filter_map(|key| self.memory.record(key)).chain(by_account.clone())
        {
            self.budgets.forget(&record.account);
            if let Some(mailbox) = record.mailbox() {
                self.old_passwords.forget(mailbox.address.as_str());
            }
        }
        let by_name: usize = keys.iter().map(|key| self.memory.forget(key)).sum();
        by_name + by_account.map_or(0, |record| self.memory.forget_account(&record))
    }

    /// Forgets everything.
    pub fn forget_all(&self) -> usize {
        self.budgets.forget_all();
        self.old_passwords.forget_all();
        self.memory.forget_all()
    }

    /// What is remembered of a name, or of the account it leads to.
    pub async fn remembered(&self, name: &str) -> Option<Remembered> {
        let by_name = self.name_keys(name).iter().find_map(|key| self.memory.record(key));
        let record = match by_name {
            Some(record) => Some(record),
            None => self.account(name).await,
        };
        let now = clock::now();
        let mut shown = record?.shown(now);
        if let Some(mailbox) = &shown.mailbox {
            shown.old_password_clients = self.old_passwords.of(mailbox, now);
        }
        Some(shown)
    }

    /// Whose clients still send a password that was changed.
    #[must_use]
    pub fn old_passwords(&self) -> Vec<OldPasswordLogin> {
        self.old_passwords.all(clock::now())
    }

    /// A client sent a password that was right before it was changed.
    fn note_old_password(&self, attempt: &Attempt, now: Instant) {
        self.metrics.old_password();
        let name = String::from_utf8_lossy(&attempt.login);
        let record = self.name_keys(&name).iter().find_map(|key| self.memory.record(key));
        if let Some(mailbox) = record.and_then(|record| record.mailbox()) {
            let (login, service) = (mailbox.address.as_str(), &attempt.service_name);
            self.old_passwords.note(login, attempt.client, service, now);
        }
    }

    /// The account whose mailbox has this address, if it is remembered under whatever name.
    async fn account(&self, name: &str) -> Option<Arc<Record>> {
        let login = Login::parse(name.as_bytes(), &self.setup.load().names).ok()?;
        // Without the store only the names themselves are found.
        let mailbox = self.store.owner(&login.address).await.ok()??;
        self.memory.account(&asking::stored_account(&mailbox)?)
    }

    /// An administrator changed a mailbox: effective at the next request of every door.
    pub fn mailbox_changed(&self, mailbox: &Mailbox) {
        let setup = self.setup.load();
        self.memory.mailbox_changed(&setup.effective(mailbox.clone()));
    }

    /// An administrator changed who checks the password of a mailbox, or that password: what is remembered of it is
    /// forgotten.
    pub fn credentials_changed(&self, mailbox: &Mailbox) {
        self.mailbox_changed(mailbox);
        self.memory.forget_mailbox(mailbox.id);
        // Who was only ever refused is remembered without a mailbox: by the link, or by the names that led there.
        if let Some(link) = &mailbox.link
            && let Some(record) = self.memory.account(&account_key(&link.profile, &link.id))
        {
            self.memory.forget_account(&record);
        }
        for address in std::iter::once(&mailbox.address).chain(mailbox.aliases.keys()) {
            for bare in [false, true] {
                self.memory.forget(&name_key(&Login { address: address.clone(), bare }));
            }
        }
    }

    /// A change of a mailbox may have been written, or not, or be written yet: whoever has it is forgotten now, and once
    /// more when all that was begun has come to its end.
    pub fn mailbox_unsure(self: &Arc<Self>, id: i64) {
        self.memory.forget_mailbox(id);
        let core = Arc::clone(self);
        self.tracker.spawn(async move {
            for _ in 0..UNSURE_TRIES {
                if core.store.settled().await.is_ok() {
                    break;
                }
                tokio::time::sleep(UNSURE_PAUSE).await;
            }
            core.memory.forget_mailbox(id);
        });
    }

    /// An administrator made a mailbox: whoever was nobody by one of its names is not any more.
    pub fn mailbox_made(&self) {
        self.memory.forget_nobodies();
    }

    /// The running setup.
    #[must_use]
    pub fn setup(&self) -> Arc<Setup> {
        self.setup.load_full()
    }

    /// The database of mailboxes.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Swaps in a new configuration; attempts under way end with the one they began with.
    pub fn reconfigure(&self, config: &Config, directories: Arc<Directories>) {
        let generation = self.setup.load().generation + 1;
        self.setup.store(Arc::new(Setup::new(config, directories, generation)));
        self.throttle.configure(&config.throttle);
        self.memory.forget_nobodies();
    }

    /// Writes the size of the memory to the metrics.
    pub fn measure(&self) {
        let size = self.memory.size();
        self.metrics.memory("people", size.people.0, size.people.1);
        self.metrics.memory("nobodies", size.nobodies.0, size.nobodies.1);
        let sizes = self.throttle.sizes();
        let rules = sizes.iter().map(|size| (&*size.rule, size.keys, size.evicted));
        self.metrics.throttle(self.throttle.bytes(), self.throttle.waiting(), rules);
    }

    /// Whether the thread is there that writes the journal, however slow its reader.
    #[must_use]
    pub fn journal_lives(&self) -> bool {
        self.journal.lives()
    }

    /// Whether anybody could be answered from memory.
    #[must_use]
    pub fn remembers_anybody(&self) -> bool {
        self.memory.size().people.0 > 0
    }

    /// A name as given by an administrator may be remembered as typed without and with a domain.
    fn name_keys(&self, name: &str) -> Vec<String> {
        let setup = self.setup.load();
        match Login::parse(name.as_bytes(), &setup.names) {
            Ok(login) => {
                let full = login.address.to_string();
                if login.bare { vec![name_key(&login).into_owned(), full] } else { vec![full] }
            }
            Err(_) => Vec::new(),
        }
    }

    /// What the shield learns of a verdict, and the journal and the metrics hear of it.
    fn record(
        &self,
        attempt: &Attempt,
        verdict: &Verdict,
        (subject, judgement): (&Subject<'_>, &Judgement),
        now: Instant,
    ) {
        let guess = self.learn(attempt, verdict, subject, now);
        let because = judgement.because.as_ref();
        let rule = because.map(Because::word);
        if because.is_some() {
            self.throttle.note(subject, judgement);
            judgement.all().for_each(|it| self.metrics.throttled(&it.word(), it.action()));
        }
        let took = now.saturating_duration_since(attempt.arrived);
        let (verdict_word, reason, source, mailbox, note) = match verdict {
            Verdict::Accept(accepted) => {
                let address = Some(accepted.mailbox.address.as_str());
                ("accept", "", accepted.source.as_str(), address, accepted.changes.as_deref())
            }
            Verdict::Reject(refused) => {
                let detail = refused.detail.as_deref();
                if detail == Some(OLD_PASSWORD) {
                    self.note_old_password(attempt, now);
                }
                ("refuse", refused.reason.as_str(), refused.source.as_str(), None, detail)
            }
            Verdict::Unavailable(later) => {
                let detail = later.detail.as_deref();
                ("later", later.reason.as_str(), "", None, detail)
            }
        };
        let outcome = LoginOutcome { verdict: verdict_word, reason, source };
        let (changes, detail) = match verdict {
            Verdict::Accept(_) => (note, None),
            _ => (None, note),
        };
        let service = attempt.service.map_or("unknown", Service::as_str);
        match verdict {
            Verdict::Accept(Accepted { source: Source::Memory, .. }) => {
                self.metrics.remembered_login(&attempt.door, service, took);
            }
            _ => self.metrics.login(&attempt.door, service, outcome, took),
        }
        let (login, master) = match attempt.authzid.as_slice() {
            [] => (&attempt.login, None),
            _ => (&attempt.authzid, Some(attempt.login.as_slice())),
        };
        let record = journal::Record {
            login,
            master,
            mailbox,
            service: &attempt.service_name,
            client: attempt.client,
            peer: attempt.peer,
            session: attempt.session.as_deref(),
            door: &attempt.door,
            outcome,
            changes: changes.unwrap_or_default(),
            detail: detail.unwrap_or_default(),
            throttle: rule.as_deref(),
            guess,
            took,
        };
        self.journal.record(&record, clock::wall());
    }

    /// Counts a verdict; the password's short hash, if it counted.
    fn learn(
        &self,
        attempt: &Attempt,
        verdict: &Verdict,
        subject: &Subject<'_>,
        now: Instant,
    ) -> Option<u16> {
        let guess = || Some(self.throttle.guess(subject.login?, &attempt.password));
        let outcome = charge::outcome(verdict.into(), guess)?;
        self.throttle.learn(subject, outcome, now);
        match outcome {
            Outcome::Failed(guess) | Outcome::Unproven(guess) => guess,
            Outcome::Accepted | Outcome::FailedAtSource | Outcome::Neutral => None,
        }
    }

    /// The guessing shield.
    #[must_use]
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }
}

/// Whom an attempt is about, as the shield sees it; `name` as memory knows it.
fn subject<'a>(attempt: &'a Attempt, name: Option<&'a str>) -> Subject<'a> {
    Subject {
        client: attempt.client,
        // A name typed without domain is remembered apart; guesses at it are guesses at the same login.
        login: name.map(|name| name.strip_prefix('\0').unwrap_or(name)),
        service: attempt.service,
        session: attempt.session.as_deref(),
        ja3: None,
    }
}

impl Refused {
    /// A wrong password.
    #[must_use]
    fn wrong_password(kind: Wrong, source: Source) -> Self {
        let detail = (kind == Wrong::Old).then(|| OLD_PASSWORD.into());
        Self { detail, ..Self::new(Reason::WrongPassword, source) }
    }

    /// A refusal without proof of the password.
    #[must_use]
    pub fn new(reason: Reason, source: Source) -> Self {
        Self { reason, proven: false, source, detail: None }
    }
}

/// What can be said without anybody's word: who and for what, or why not.
fn known_at_once(setup: &Setup, attempt: &Attempt) -> Result<(Who, Service), Reason> {
    let service = attempt.service.ok_or(Reason::UnknownService)?;
    let who = setup.who(attempt).map_err(|_| Reason::BadName)?;
    if attempt.password.is_well_formed() {
        Ok((who, service))
    } else {
        Err(Reason::BadPasswordForm)
    }
}

/// The same for a name that needs no thought, under which the account is remembered if it is: nearly all are such.
/// `None`: ask [`known_at_once`].
fn plain_at_once<'b>(
    setup: &Setup,
    attempt: &Attempt,
    buffer: &'b mut [u8; MAX_NAME_BYTES],
) -> Option<(&'b str, Service)> {
    let service = attempt.service?;
    // A plain name holds no `*`: nobody's master is meant.
    let is_own = attempt.authzid.is_empty() && attempt.password.is_well_formed();
    let name = setup.names.plain(&attempt.login, buffer).filter(|_| is_own)?;
    Some((name, service))
}

/// What a name is remembered under. A name typed without domain may match other attributes than the same name with
/// the default domain (login.md N-4), so it is another name.
fn name_key(login: &Login) -> std::borrow::Cow<'_, str> {
    if login.bare {
        // No address holds a NUL.
        format!("\0{}", login.address).into()
    } else {
        login.address.as_str().into()
    }
}

fn admit(
    mailbox: Arc<Mailbox>,
    service: Service,
    source: Source,
    changes: Option<Arc<str>>,
) -> Verdict {
    match access::objection(&mailbox, service) {
        Some(reason) => Verdict::Reject(Refused { reason, proven: true, source, detail: None }),
        None => Verdict::Accept(Accepted { mailbox, source, changes }),
    }
}
