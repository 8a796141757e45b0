//! What memory cannot answer: find out who is meant, ask the directory, make or update the mailbox, remember.

use std::cell::Cell;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::flights::{self, Settled};
use super::gate::{self, Full, Net, Standing};
use super::leave::{self, BindLeave};
use super::memory::{
    Digest, Grace, Learned, Recall, Record, Seen, Versions, Vouched, Wrong, account_key,
};
use super::password::{CheckError, Checked};
use super::{Attempt, Authenticator, Later, Reason, Refused, Service, Setup, Source, name_key};
use crate::clock;
use crate::directory::{
    self, Answer, Finding, Leave, Lock, Lockout, Profile, Question, Said, Share, Trouble, Why,
};
use crate::identity::Login;
use crate::person::Person;
use crate::provision::{self, Change, Known, Outcome, Provisioned, Refusal};
use crate::secret::Password;
use crate::store::{Link, Mailbox, Provider};

/// So long after the question began the mailbox that it began with is taken for what the store holds. An administrator's
/// change through this daemon is known at once; this is for other processes.
const READ_IS_CURRENT: Duration = Duration::from_secs(1);

/// The mailbox of a name, as it was before the directory is asked.
pub(super) struct Stored {
    mailbox: Arc<Mailbox>,
    /// That of memory before the mailbox was read.
    edition: u64,
    from: ReadFrom,
    /// It was read at this moment, or later.
    at: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadFrom {
    /// The store is gone: as memory knows it.
    Memory,
    /// As the store holds it: read now, or seen there by a login within the last minute.
    Store,
}

impl Deref for Stored {
    type Target = Mailbox;

    fn deref(&self) -> &Mailbox {
        &self.mailbox
    }
}

/// One question, owned by the task that asks it: a client that hangs up does not end it.
pub(super) struct Asking {
    pub(super) setup: Arc<Setup>,
    pub(super) name: String,
    pub(super) login: Login,
    pub(super) password: Password,
    pub(super) client: Option<IpAddr>,
    pub(super) protocol: Option<&'static str>,
    pub(super) asked: Instant,
    pub(super) deadline: Instant,
    pub(super) urgency: Urgency,
}

/// Whether somebody waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Nobody: memory has answered already (login.md M-2).
    Background,
    /// Whoever logs in.
    Login,
}

impl Authenticator {
    /// Joins the equal attempts in flight, or asks for them all.
    pub(super) async fn settle(
        self: &Arc<Self>,
        setup: &Arc<Setup>,
        attempt: &Attempt,
        login: &Login,
        service: Service,
    ) -> Settled {
        let name = name_key(login).into_owned();
        let net = gate::net(attempt.client);
        if self.unproven.bars(&net, &name, clock::now()) {
            return later(Reason::Unproven, None);
        }
        // By account where memory knows it: other names of the same person are the same question.
        let record = self.memory.record(&name);
        let subject = record.as_ref().map_or(name.as_str(), |record| &record.account);
        let digest = self.memory.digest(subject, &attempt.password);
        let (outcome, lead) = self.flights.join(subject, digest, setup.generation);
        let Some(lead) = lead else {
            let settled = flights::wait(outcome).await.without_changes();
            self.close_note(&settled, (&net, &name, &digest));
            return settled;
        };
        let standing = if record.is_some() { Standing::Known } else { Standing::Stranger };
        let Some(place) = self.admission.enter(standing, setup.places()) else {
            let settled = later(Reason::Busy, None);
            self.close_note(&settled, (&net, &name, &digest));
            lead.settle(settled.clone());
            return settled;
        };
        let asking = Asking::new(setup, attempt, login, service);
        let core = Arc::clone(self);
        // Boxed as all tasks of logins are (server::door).
        self.tracker.spawn(Box::pin(async move {
            let settled = core.take_turn(&asking).await;
            drop(place);
            lead.settle(settled);
        }));
        flights::wait(outcome).await
    }

    /// Waits until no other password of the account is asked about, then looks at memory once more.
    async fn take_turn(self: &Arc<Self>, asking: &Asking) -> Settled {
        let record = self.memory.record(&asking.name);
        let stored = self.stored(asking, record.as_deref()).await;
        let stored = match stored {
            Ok(stored) => stored,
            Err(settled) => return settled,
        };
        // The account: as memory knows it by this name, or as the store knows it by this address.
        let key = match (&record, stored.as_deref().and_then(stored_account)) {
            (Some(record), _) => record.account.to_string(),
            (None, Some(account)) => account,
            (None, None) => asking.name.clone(),
        };
        let record = record.or_else(|| self.memory.account(&key));
        let net = gate::net(asking.client);
        let Some(known) = &record else {
            return self.wait_and_ask(asking, &key, (net, Standing::Stranger), stored).await;
        };
        let digest = self.memory.digest(&known.account, &asking.password);
        if known.is_guess(&digest) {
            self.unproven.note(&net, &asking.name, digest, clock::now());
        }
        let settled = if self.is_spent(&asking.setup, known, &digest, &net) {
            // Nothing will be asked: nobody needs to wait for a turn.
            self.look_again(asking, record.clone(), stored.as_ref()).await
        } else {
            let standing = leave::standing(Some(known), &digest, &net);
            self.wait_and_ask(asking, &key, (net, standing), stored).await
        };
        self.close_note(&settled, (&net, &asking.name, &digest));
        settled
    }

    /// What was noted of a password that memory could say nothing about (L-3): was it decided after all?
    fn close_note(&self, settled: &Settled, (net, name, digest): (&Net, &str, &Digest)) {
        let now = clock::now();
        match settled {
            Settled::Later(_) => self.unproven.stays(net, name, digest, now),
            _ => self.unproven.take_back(net, name, digest, now),
        }
    }

    /// Waits for the account's turn.
    async fn wait_and_ask(
        self: &Arc<Self>,
        asking: &Asking,
        key: &str,
        (net, standing): (Net, Standing),
        stored: Option<Stored>,
    ) -> Settled {
        let turn = self.gates.turn(key, net, standing);
        let _turn = match tokio::time::timeout_at(asking.deadline.into(), turn).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(Full)) => return later(Reason::Busy, None),
            Err(_) => return later(Reason::Deadline, None),
        };
        let record = self.memory.record(&asking.name).or_else(|| self.memory.account(key));
        self.look_again(asking, record, stored.as_ref()).await
    }

    /// Memory may know more by now, or know the account by another name.
    async fn look_again(
        self: &Arc<Self>,
        asking: &Asking,
        record: Option<Arc<Record>>,
        stored: Option<&Stored>,
    ) -> Settled {
        let setup = &asking.setup;
        let newest = |person: &Person| setup.newest(person);
        let now = clock::now();
        let recall = match record {
            Some(record) => {
                self.memory.recall_account(record, &asking.password, setup.terms, newest, now)
            }
            None => self.memory.recall(&asking.name, &asking.password, setup.terms, newest, now),
        };
        match recall {
            Recall::Proven { record, mailbox, refresh } => {
                if refresh {
                    // A later login will do: this one has waited long enough.
                    record.refreshed(now);
                }
                Settled::Proven { mailbox, source: Source::Memory, changes: None }
            }
            Recall::Replan(record) => Box::pin(self.replan(asking, &record, Source::Memory)).await,
            Recall::Refused { record, read_stamp, kind } => {
                if read_stamp {
                    self.read_stamp(setup, record);
                }
                asking.wrong(kind, Source::Memory)
            }
            Recall::Barred(reason) => asking.refused(reason, Source::Memory),
            Recall::Ask(record) => self.ask(asking, Some(&record), stored).await,
            Recall::Nothing => self.ask(asking, None, stored).await,
        }
    }

    /// The mailbox of the name, from the store, or from memory if a login has just read it there; while the store is gone,
    /// as memory knows it (V-5).
    pub(super) async fn stored(
        &self,
        asking: &Asking,
        record: Option<&Record>,
    ) -> Result<Option<Stored>, Settled> {
        let edition = self.memory.edition();
        let now = clock::now();
        let stored = |mailbox, from, at| Stored { mailbox, edition, from, at };
        let address = &asking.login.address;
        let versions = (asking.setup.generation, edition);
        let current = record.and_then(|record| record.current_mailbox(versions, now));
        if let Some((mailbox, seen)) = current.filter(|(mailbox, _)| mailbox.owns(address)) {
            return Ok(Some(stored(mailbox, ReadFrom::Store, seen)));
        }
        let known = record.and_then(Record::mailbox);
        let owner = if known.is_some() {
            // A store that stands still must leave time to answer from memory.
            self.store.owner(address).await
        } else {
            let Some(owner) = self.store.owner_until(asking.deadline, address).await else {
                return Err(later(Reason::Deadline, None));
            };
            owner
        };
        match owner {
            Ok(mailbox) => {
                Ok(mailbox.map(|mailbox| stored(Arc::new(mailbox), ReadFrom::Store, now)))
            }
            Err(error) => match known {
                Some(mailbox) => Ok(Some(stored(mailbox, ReadFrom::Memory, now))),
                None => Err(later(Reason::StoreUnavailable, Some(&error))),
            },
        }
    }

    /// Templates changed since the mailbox was last planned: plan from what is remembered, ask nobody (M-9).
    async fn replan(self: &Arc<Self>, asking: &Asking, record: &Record, source: Source) -> Settled {
        let setup = &asking.setup;
        if record.person().is_local() {
            return self.reread(asking, record, source).await;
        }
        let edition = self.memory.edition();
        let (person, mailbox) = (record.person(), record.mailbox());
        let outcome = provision::provision(
            &self.store,
            &setup.rules,
            &person,
            asking.protocol,
            mailbox.as_deref().map_or(Known::Nothing, Known::Remembered),
        );
        match self.provisioned(asking, outcome.await) {
            Ok(ready) => {
                let planned = (setup.generation, &*person);
                self.memory.replanned(record, ready.seen(edition), planned);
                Settled::Proven { mailbox: ready.mailbox, source, changes: ready.changes }
            }
            Err(settled) => {
                if matches!(settled, Settled::Refused { .. }) {
                    self.memory.withhold(record);
                }
                settled
            }
        }
    }

    /// Finds out which directory answers for the name, and asks it.
    pub(super) async fn ask(
        self: &Arc<Self>,
        asking: &Asking,
        record: Option<&Arc<Record>>,
        stored: Option<&Stored>,
    ) -> Settled {
        let Some(stored) = stored else {
            return match self.ask_known(asking, record).await {
                Some(settled) => settled,
                None => self.ask_route(asking, record).await,
            };
        };
        let name = match &stored.provider {
            Provider::Directory(name) => name,
            // No directory is ever asked about it (O-2).
            Provider::Local => return Box::pin(self.ask_here(asking, stored.id)).await,
        };
        let Some(profile) = asking.setup.directories.profile(name) else {
            let detail = format!("the mailbox's directory {name} is not configured");
            return later(Reason::DirectoryMisconfigured, Some(&detail));
        };
        if !profile.takes_logins() {
            let detail = format!("directory {name} takes no logins");
            return asking.refused(Reason::Unknown, Source::Rules).because(&detail);
        }
        let linked = stored.link.as_ref().map(|link| &*link.id);
        match self.ask_profile(asking, profile, linked, record, Some(stored)).await {
            Some(settled) => settled,
            None => {
                // Gone, whatever name it was known by.
                let account = stored_account(stored);
                if let Some(record) = account.and_then(|account| self.memory.account(&account)) {
                    self.memory.end_proofs(&record);
                }
                self.nobody(asking, Reason::Unknown)
            }
        }
    }

    /// Checks the password that a mailbox has here. The mailbox is read again, now that it is this question's turn: an
    /// administrator may have changed it while others were asked about.
    async fn ask_here(self: &Arc<Self>, asking: &Asking, id: i64) -> Settled {
        let edition = self.memory.edition();
        let stored = match self.store.mailbox_numbered(id).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return asking.refused(Reason::Unknown, Source::Rules),
            Err(error) => return later(Reason::StoreUnavailable, Some(&error)),
        };
        if stored.provider != Provider::Local {
            let (mailbox, from, at) = (Arc::new(stored), ReadFrom::Store, asking.asked);
            let stored = Stored { mailbox, edition, from, at };
            return Box::pin(self.ask(asking, None, Some(&stored))).await;
        }
        let checked = match self.check_here(asking, &stored).await {
            Ok(Some(checked)) => checked,
            Ok(None) => return asking.refused(Reason::NoPassword, Source::Local),
            Err(settled) => return settled,
        };
        let person = Arc::new(Person::local(id));
        let versions = Versions { rules: asking.setup.generation, profile: 0 };
        let (name, person, now) = (&asking.name, &person, clock::now());
        let learned = Learned { name, person, versions, vouched: None, now };
        let mailbox = asking.setup.effective(stored);
        // A check takes its time. An answer about a hash that was changed meanwhile is not remembered.
        let is_current = || self.memory.edition() == edition;
        if is_current() {
            match checked {
                Checked::Wrong => {
                    self.memory.refuse(&learned, &asking.password);
                }
                Checked::Right => {
                    let mailbox = Arc::clone(&mailbox);
                    let seen = Seen { mailbox, edition, written: true, at: asking.asked };
                    let net = gate::net(asking.client);
                    self.memory.prove(&learned, &asking.password, seen, net);
                }
            }
            if !is_current() {
                self.memory.forget_mailbox(id);
            }
        }
        match checked {
            Checked::Wrong => asking.refused(Reason::WrongPassword, Source::Local),
            Checked::Right => Settled::Proven { mailbox, source: Source::Local, changes: None },
        }
    }

    /// `None`: the mailbox has no password here.
    async fn check_here(
        &self,
        asking: &Asking,
        stored: &Mailbox,
    ) -> Result<Option<Checked>, Settled> {
        let hash = self.store.password_hash(stored.id).await;
        let hash = hash.map_err(|error| later(Reason::StoreUnavailable, Some(&error)))?;
        let Some(hash) = hash else { return Ok(None) };
        match self.checks.check(hash, asking.password.clone()).await {
            Ok(checked) => Ok(Some(checked)),
            Err(CheckError::Busy) => Err(later(Reason::Busy, None)),
            Err(CheckError::Hash(error)) => {
                tracing::error!(
                    mailbox.address = %stored.address, %error,
                    "the password that is kept for a mailbox cannot be used"
                );
                Err(later(Reason::Internal, Some(&error)))
            }
        }
    }

    /// Something changed since the mailbox of a local account was read: it is read again.
    async fn reread(self: &Arc<Self>, asking: &Asking, record: &Record, source: Source) -> Settled {
        let edition = self.memory.edition();
        let known = record.mailbox();
        let id = record.person().id.parse().unwrap_or_default();
        let (mailbox, written) = match (self.store.mailbox_numbered(id).await, known) {
            (Ok(Some(mailbox)), _) if mailbox.provider == Provider::Local => (mailbox, true),
            (Ok(Some(mailbox)), _) => {
                // Another process gave it to a directory: what was proven here counts no more.
                self.memory.forget_mailbox(id);
                let (mailbox, from, at) = (Arc::new(mailbox), ReadFrom::Store, asking.asked);
                let stored = Stored { mailbox, edition, from, at };
                return Box::pin(self.ask(asking, None, Some(&stored))).await;
            }
            (Ok(None), _) => {
                self.memory.end_proofs(record);
                return asking.refused(Reason::Unknown, Source::Rules);
            }
            (Err(_), Some(known)) => (Mailbox::clone(&known), false),
            (Err(error), None) => return later(Reason::StoreUnavailable, Some(&error)),
        };
        let mailbox = asking.setup.effective(mailbox);
        let at = asking.asked;
        let seen = Seen { mailbox: Arc::clone(&mailbox), edition, written, at };
        self.memory.replanned(record, seen, (asking.setup.generation, &record.person()));
        Settled::Proven { mailbox, source, changes: None }
    }

    /// While no server of the directory answers, the password that the mailbox has here may count
    /// (`auth.fallback`). A wrong one is no refusal: the directory's may be another.
    async fn fall_back(
        &self,
        asking: &Asking,
        profile: &Profile,
        stored: Option<&Stored>,
    ) -> Option<Settled> {
        let stored = stored.filter(|_| asking.setup.falls_back(profile.name()))?;
        // Read again: see `ask_here`.
        let stored = self.store.mailbox_numbered(stored.id).await.ok()??;
        if !matches!(&stored.provider, Provider::Directory(name) if **name == **profile.name()) {
            return None;
        }
        match self.check_here(asking, &stored).await {
            Ok(Some(Checked::Right)) => Some(Settled::Proven {
                mailbox: asking.setup.effective(stored),
                source: Source::Local,
                changes: None,
            }),
            _ => None,
        }
    }

    /// Somebody remembered under a name that is no mailbox's address (a uid, a UPN) is asked about where they were
    /// found; `None`: they are not there any more, or nobody is remembered.
    async fn ask_known(
        self: &Arc<Self>,
        asking: &Asking,
        record: Option<&Arc<Record>>,
    ) -> Option<Settled> {
        let known = record?.person();
        let profile = asking.setup.directories.profile(&known.profile)?;
        if !profile.takes_logins() {
            return None;
        }
        self.ask_profile(asking, profile, None, record, None).await
    }

    /// An unknown name is routed by its domain; the first directory that knows it decides.
    async fn ask_route(self: &Arc<Self>, asking: &Asking, record: Option<&Arc<Record>>) -> Settled {
        let route = asking.setup.directories.route(asking.login.address.domain());
        if route.is_empty() {
            return asking.refused(Reason::Unknown, Source::Rules);
        }
        for profile in route {
            if let Some(settled) = self.ask_profile(asking, profile, None, record, None).await {
                return settled;
            }
        }
        self.nobody(asking, Reason::Unknown)
    }

    fn nobody(&self, asking: &Asking, reason: Reason) -> Settled {
        let until = clock::now() + asking.setup.terms.absent;
        self.memory.nobody(&asking.name, reason, until);
        asking.refused(reason, Source::Directory)
    }

    /// Asks one directory; `None`: it knows nobody of that name.
    async fn ask_profile(
        self: &Arc<Self>,
        asking: &Asking,
        profile: &Arc<Profile>,
        linked: Option<&str>,
        record: Option<&Arc<Record>>,
        stored: Option<&Stored>,
    ) -> Option<Settled> {
        let record = record.filter(|record| record.person().profile == *profile.name());
        let known = record.map(|record| {
            let person = record.person();
            directory::Known { dn: person.dn.clone(), id: person.id.clone() }
        });
        let is_known = known.is_some() || linked.is_some();
        // Taken before the entry is read: a feed that begins later has not told what changed before.
        let (remembered, vouched) = vouched_now(profile, record, clock::now());
        let question = Question {
            login: &asking.login,
            password: &asking.password,
            known: known.as_ref(),
            vouched: remembered.as_ref(),
            linked,
            share: asking.share(is_known),
            deadline: asking.deadline,
            leave: Some(self.leave(asking, profile)),
        };
        let answer = ask_within_budget(profile, question).await;
        if let (Some(record), Some(person)) = (record, answer.person())
            && *record.account != *account_key(&person.profile, &person.id)
        {
            // The name leads to another entry now: whose it was must not be let in by it any more (V-6).
            self.memory.end_proofs(record);
        }
        let digest = record.map(|record| self.memory.digest(&record.account, &asking.password));
        let proven = record.zip(digest.as_ref());
        let account = answer.person().map(|person| account_key(&person.profile, &person.id));
        let settled = match answer {
            Answer::Accepted { person, grace_logins } => {
                let settled = self.accept(asking, profile, (person, vouched), stored).await;
                if grace_logins && let Some(account) = &account {
                    // Each bind burns one (B-2).
                    self.memory.account(account).inspect(|record| record.never_refresh());
                }
                settled
            }
            Answer::Withheld { id } => self.withheld(asking, profile, &id),
            Answer::Absent => {
                if let Some(record) = record {
                    self.memory.end_proofs(record);
                }
                return None;
            }
            Answer::Ambiguous { dns } => {
                let detail = dns.join(" and ");
                let settled = self.nobody(asking, Reason::Ambiguous);
                settled.because(&detail)
            }
            // Trouble is logged by the directory, once; the journal has it for each attempt.
            Answer::Ours { detail } => {
                self.complaints.complain(profile.name(), &detail, clock::now());
                let reason = Reason::DirectoryMisconfigured;
                Box::pin(self.grace_or_later(asking, profile, proven, (reason, &detail))).await
            }
            Answer::Odd { detail } => {
                // Whatever it means, it was no yes: no grace for this password.
                if let Some((record, digest)) = proven {
                    record.demote(digest);
                }
                self.complaints.complain(profile.name(), &detail, clock::now());
                later(Reason::DirectoryMisconfigured, Some(&detail))
            }
            Answer::Trouble(trouble) => {
                Box::pin(self.troubled(asking, profile, trouble, proven, stored)).await
            }
            refusal => self.refuse_known(asking, profile, (refusal, vouched), proven),
        };
        if let Some(account) = account {
            self.reread_if_touched(profile, &account, asking.asked);
        }
        Some(settled)
    }

    /// No answer, or not now.
    async fn troubled(
        self: &Arc<Self>,
        asking: &Asking,
        profile: &Profile,
        trouble: Trouble,
        proven: Option<(&Arc<Record>, &Digest)>,
        stored: Option<&Stored>,
    ) -> Settled {
        // One server in trouble is not yet an outage: another may answer the next question.
        if trouble.why == Why::Directory
            && (profile.nothing_answers() || profile.grace_allowed(clock::now()))
            && self.grace(asking, profile, proven).is_none()
            && let Some(settled) = self.fall_back(asking, profile, stored).await
        {
            return settled;
        }
        let reason = match trouble.why {
            Why::Busy => Reason::Busy,
            Why::Deadline => Reason::Deadline,
            Why::Directory => Reason::DirectoryUnavailable,
            Why::Odd | Why::Ours => Reason::DirectoryMisconfigured,
        };
        let why = (reason, trouble.detail.as_str());
        self.grace_or_later(asking, profile, proven, why).await
    }

    fn leave(self: &Arc<Self>, asking: &Asking, profile: &Arc<Profile>) -> Arc<dyn Leave> {
        Arc::new(BindLeave {
            core: Arc::clone(self),
            setup: Arc::clone(&asking.setup),
            profile: Arc::clone(profile),
            password: asking.password.clone(),
            net: gate::net(asking.client),
            reserved: Mutex::default(),
        })
    }

    /// No bind was sent: memory refuses this password at the account that the name leads to, or the budget is spent.
    fn withheld(self: &Arc<Self>, asking: &Asking, profile: &Profile, id: &str) -> Settled {
        let setup = &asking.setup;
        let net = gate::net(asking.client);
        if self.unproven.bars(&net, &asking.name, clock::now()) {
            return later(Reason::Unproven, None);
        }
        let newest = |person: &Person| setup.newest(person);
        let record = self.memory.account(&account_key(profile.name(), id));
        let recall = record.map(|record| {
            self.memory.recall_account(record, &asking.password, setup.terms, newest, clock::now())
        });
        match recall {
            Some(Recall::Refused { kind, .. }) => asking.wrong(kind, Source::Memory),
            Some(Recall::Proven { record, mailbox, refresh }) => {
                if refresh {
                    record.refreshed(clock::now());
                }
                Settled::Proven { mailbox, source: Source::Memory, changes: None }
            }
            Some(Recall::Ask(record)) => {
                // By a name that memory does not know it was not noted yet (L-3).
                let digest = self.memory.digest(&record.account, &asking.password);
                if record.is_guess(&digest) {
                    self.unproven.note(&net, &asking.name, digest, clock::now());
                }
                // An administrator may have set a new password, and then all is different.
                if record.is_read_due(clock::now()) {
                    self.read_stamp(setup, record);
                }
                later(Reason::BudgetSpent, None)
            }
            _ => later(Reason::BudgetSpent, None),
        }
    }

    /// The directory knows the person and says no.
    fn refuse_known(
        &self,
        asking: &Asking,
        profile: &Arc<Profile>,
        (answer, vouched): (Answer, Option<Vouched>),
        proven: Option<(&Arc<Record>, &Digest)>,
    ) -> Settled {
        let terms = asking.setup.terms;
        let now = clock::now();
        let learn = |person: &Arc<Person>, then: &dyn Fn(&Learned<'_>)| {
            if asking.setup.remembers(person) {
                let versions =
                    Versions { rules: asking.setup.generation, profile: profile.epoch() };
                then(&Learned { name: &asking.name, person, versions, vouched, now });
            } else {
                self.end_proofs_of(person);
            }
        };
        let end_proofs = |person: Option<&Person>| {
            let account = person.map(|person| account_key(&person.profile, &person.id));
            let record = account.and_then(|account| self.memory.account(&account));
            if let Some(record) = record.or_else(|| proven.map(|(record, _)| Arc::clone(record))) {
                self.memory.end_proofs(&record);
            }
        };
        match answer {
            Answer::Wrong { person, said } => {
                let person = Arc::new(person);
                // B-1: some directories answer a locked account's right password with a bare 49. An unmoved stamp
                // says that the password was not changed meanwhile. Nothing is remembered of a guess like this.
                if said == Said::Nothing
                    && proven
                        .is_some_and(|(record, digest)| record.was_proven_at(digest, person.stamp))
                {
                    return asking.refused(Reason::Locked, Source::Directory);
                }
                let kind = Cell::new(Wrong::Guess);
                learn(&person, &|learned| kind.set(self.memory.refuse(learned, &asking.password)));
                asking.wrong(kind.get(), Source::Directory)
            }
            Answer::Locked { person, lock } => {
                let reason = match lock {
                    Lock::Locked => Reason::Locked,
                    Lock::NotNow => Reason::NotNow,
                };
                if let Some(person) = person.map(Arc::new) {
                    let until = now + terms.absent;
                    learn(&person, &|learned| self.memory.bar(learned, reason, until));
                }
                asking.refused(reason, Source::Directory)
            }
            Answer::Disabled { person } => {
                end_proofs(person.as_ref());
                asking.refused(Reason::Disabled, Source::Directory)
            }
            Answer::Expired { person } => {
                end_proofs(Some(&person));
                asking.refused_proven(Reason::PasswordExpired)
            }
            Answer::MustChange { person } => {
                end_proofs(Some(&person));
                asking.refused_proven(Reason::MustChange)
            }
            _ => later(Reason::Internal, None),
        }
    }

    /// The password is right: make or update the mailbox, and remember.
    async fn accept(
        self: &Arc<Self>,
        asking: &Asking,
        profile: &Arc<Profile>,
        (person, vouched): (Person, Option<Vouched>),
        stored: Option<&Stored>,
    ) -> Settled {
        let setup = &asking.setup;
        let found = Link { profile: Arc::clone(&person.profile), id: Arc::clone(&person.id) };
        if let Some(linked) = stored.and_then(|stored| stored.link.as_ref())
            && *linked != found
        {
            // The name is a mailbox's, and whoever the directory finds by it now is not its owner (V-6).
            let refusal = Refusal::IdChanged { stored: linked.clone(), found };
            let detail = refusal.to_string();
            return asking.refused_because(refusal_reason(&refusal), Some(detail.into()));
        }
        let person = Arc::new(person);
        let versions = Versions { rules: setup.generation, profile: profile.epoch() };
        let edition = stored.map_or_else(|| self.memory.edition(), |stored| stored.edition);
        let record = self.memory.account(&account_key(&person.profile, &person.id));
        let record = record.as_deref();
        let planned = record.and_then(|record| asking.planned(record, &person, edition));
        let ready = match planned {
            Some(ready) => ready,
            None => match self.provision(asking, (&person, record), edition, stored).await {
                Ok(ready) => ready,
                Err(settled) => {
                    if matches!(settled, Settled::Refused { .. }) {
                        // What the person is now gets no mailbox: what they were must not get in by grace.
                        self.end_proofs_of(&person);
                    }
                    return settled;
                }
            },
        };
        if setup.remembers(&person) {
            let now = clock::now();
            let (name, person) = (&asking.name, &person);
            let learned = Learned { name, person, versions, vouched, now };
            let net = gate::net(asking.client);
            self.memory.prove(&learned, &asking.password, ready.seen(edition), net);
        } else {
            self.end_proofs_of(&person);
        }
        Settled::Proven {
            mailbox: ready.mailbox,
            source: Source::Directory,
            changes: ready.changes,
        }
    }

    /// Makes or updates the mailbox.
    async fn provision(
        &self,
        asking: &Asking,
        (person, record): (&Person, Option<&Record>),
        edition: u64,
        stored: Option<&Stored>,
    ) -> Result<Ready, Settled> {
        let remembered = record.and_then(Record::mailbox);
        // What was read before the wait for turn and directory may be old by now (O-4).
        let is_current =
            edition == self.memory.edition() && clock::now() < asking.asked + READ_IS_CURRENT;
        let known = match (stored, remembered.as_ref()) {
            (Some(Stored { mailbox, from: ReadFrom::Store, .. }), _) if is_current => {
                Known::Read(mailbox)
            }
            (_, Some(mailbox)) | (Some(Stored { mailbox, .. }), None) => Known::Remembered(mailbox),
            (None, None) => Known::Nothing,
        };
        let (rules, protocol) = (&asking.setup.rules, asking.protocol);
        let outcome = provision::provision(&self.store, rules, person, protocol, known).await;
        let at = stored.map_or(asking.asked, |stored| stored.at);
        Ok(Ready { at, ..self.provisioned(asking, outcome)? })
    }

    fn end_proofs_of(&self, person: &Person) {
        if let Some(record) = self.memory.account(&account_key(&person.profile, &person.id)) {
            self.memory.end_proofs(&record);
        }
    }

    /// Grace or "later" (M-3).
    async fn grace_or_later(
        self: &Arc<Self>,
        asking: &Asking,
        profile: &Profile,
        proven: Option<(&Arc<Record>, &Digest)>,
        (reason, detail): (Reason, &str),
    ) -> Settled {
        match self.grace(asking, profile, proven) {
            Some((_, Grace::Planned(mailbox))) => {
                Settled::Proven { mailbox, source: Source::Grace, changes: None }
            }
            Some((record, Grace::Replan)) => self.replan(asking, record, Source::Grace).await,
            None => later(reason, Some(&detail)),
        }
    }

    /// What an older proof is worth now.
    fn grace<'r>(
        &self,
        asking: &Asking,
        profile: &Profile,
        proven: Option<(&'r Arc<Record>, &Digest)>,
    ) -> Option<(&'r Arc<Record>, Grace)> {
        let setup = &asking.setup;
        let now = clock::now();
        let (record, digest) = proven.filter(|(record, _)| {
            profile.grace_allowed(now) && setup.remembers(&record.person())
        })?;
        let newest = setup.newest(&record.person())?;
        Some((record, record.grace(digest, newest, setup.terms, now)?))
    }

    fn provisioned(&self, asking: &Asking, outcome: Outcome) -> Result<Ready, Settled> {
        match outcome {
            Outcome::Ready(ready) => {
                self.report(&ready);
                let changes = if ready.created {
                    Some(Arc::from("created"))
                } else {
                    changed_fields(&ready.changes)
                };
                let written = ready.write_error.is_none();
                let mailbox = asking.setup.effective(ready.mailbox);
                Ok(Ready { mailbox, changes, written, at: asking.asked })
            }
            Outcome::Refused(refusal) => {
                let detail = refusal.to_string();
                Err(asking.refused_because(refusal_reason(&refusal), Some(detail.into())))
            }
            Outcome::StoreUnavailable(error) => Err(later(Reason::StoreUnavailable, Some(&error))),
        }
    }

    fn report(&self, ready: &Provisioned) {
        let address = ready.mailbox.address.as_str();
        if ready.created {
            self.metrics.provisioned("created");
        } else if let Some(error) = &ready.write_error {
            tracing::error!(mailbox.address = %address, %error, "mailbox could not be updated");
            self.metrics.provisioned("write-failed");
        } else if !ready.changes.is_empty() {
            self.metrics.provisioned("updated");
        }
        for report in &ready.reports {
            tracing::warn!(mailbox.address = %address, %report, "directory asks for what cannot be done");
        }
    }

    /// Reads an entry's change stamp in the background: a refusal was hit (M-4).
    pub(super) fn read_stamp(self: &Arc<Self>, setup: &Arc<Setup>, record: Arc<Record>) {
        let setup = Arc::clone(setup);
        let person = record.person();
        let Some(profile) = setup.directories.of(&person).cloned() else { return };
        let deadline = clock::now() + setup.deadline;
        let core = Arc::clone(self);
        self.tracker.spawn(async move {
            let known = directory::Known { dn: person.dn.clone(), id: person.id.clone() };
            // Skipped while others need the connections: the next hit in 10 s tries again.
            let read = profile.read_stamp(&known, Share::Background, deadline).await;
            if let Finding::One(found) = read
                && core.memory.stamp_seen(&record, found.stamp)
            {
                core.forgive(&setup, &profile, &record.account);
            }
        });
    }
}

/// Asks, and finds out how many wrong passwords the directory allows as soon as that matters.
async fn ask_within_budget(profile: &Arc<Profile>, question: Question<'_>) -> Answer {
    let deadline = question.deadline;
    let unread = profile.lockout() == Lockout::Unread;
    let answer = profile.ask(question.clone()).await;
    if !matches!(answer, Answer::Wrong { .. } | Answer::Withheld { .. }) {
        return answer;
    }
    // Without time for that it is read at the next.
    let reading = Box::pin(profile.read_lockout());
    drop(tokio::time::timeout_at(deadline.into(), reading).await);
    let is_known_now = unread && profile.lockout() != Lockout::Unread;
    match answer {
        // It was held back for no more than that.
        Answer::Withheld { .. } if is_known_now => profile.ask(question).await,
        answer => answer,
    }
}

/// A mailbox that this login made, updated or found.
struct Ready {
    mailbox: Arc<Mailbox>,
    changes: Option<Arc<str>>,
    /// The store has it as it is here.
    written: bool,
    /// It was seen there at this moment, or later.
    at: Instant,
}

impl Ready {
    fn seen(&self, edition: u64) -> Seen {
        let Self { mailbox, written, at, .. } = self;
        Seen { mailbox: Arc::clone(mailbox), edition, written: *written, at: *at }
    }
}

impl Asking {
    /// The question of a login that waits for its answer.
    pub(super) fn new(
        setup: &Arc<Setup>,
        attempt: &Attempt,
        login: &Login,
        service: Service,
    ) -> Self {
        Self {
            setup: Arc::clone(setup),
            name: name_key(login).into_owned(),
            login: login.clone(),
            password: attempt.password.clone(),
            client: attempt.client,
            protocol: service.protocol(),
            asked: clock::now(),
            deadline: attempt.arrived + setup.deadline,
            urgency: Urgency::Login,
        }
    }

    /// The mailbox that a login has just brought in step with the person as they still are.
    fn planned(&self, record: &Record, person: &Person, edition: u64) -> Option<Ready> {
        let versions = (self.setup.generation, edition);
        let (mailbox, at) = record.planned_for(person, versions, clock::now())?;
        Some(Ready { mailbox, changes: None, written: true, at })
    }

    /// Whose share of the connections it uses.
    fn share(&self, is_known: bool) -> Share {
        match self.urgency {
            Urgency::Background => Share::Background,
            Urgency::Login if is_known => Share::Known,
            Urgency::Login => Share::Newcomer,
        }
    }

    fn wrong(&self, kind: Wrong, source: Source) -> Settled {
        let refused = Refused::wrong_password(kind, source);
        Settled::Refused { refused, asked_for: self.protocol }
    }

    fn refused(&self, reason: Reason, source: Source) -> Settled {
        Settled::Refused { refused: Refused::new(reason, source), asked_for: self.protocol }
    }

    fn refused_because(&self, reason: Reason, detail: Option<Arc<str>>) -> Settled {
        let refused = Refused { reason, proven: true, source: Source::Directory, detail };
        Settled::Refused { refused, asked_for: self.protocol }
    }

    fn refused_proven(&self, reason: Reason) -> Settled {
        self.refused_because(reason, None)
    }
}

/// The person as remembered, if a feed has told every change since; and who vouches for what this question learns.
fn vouched_now(
    profile: &Profile,
    record: Option<&Arc<Record>>,
    now: Instant,
) -> (Option<Arc<Person>>, Option<Vouched>) {
    let Some(run) = profile.vouching() else { return (None, None) };
    match record.and_then(|record| record.vouched(run, now)) {
        Some((person, vouched)) => (Some(person), Some(vouched)),
        None => (None, Some(Vouched { run, since: now })),
    }
}

/// The account of a mailbox, where it is known without asking.
pub(super) fn stored_account(stored: &Mailbox) -> Option<String> {
    match (&stored.provider, &stored.link) {
        (Provider::Local, _) => {
            let person = Person::local(stored.id);
            Some(account_key(&person.profile, &person.id))
        }
        (Provider::Directory(_), Some(link)) => Some(account_key(&link.profile, &link.id)),
        (Provider::Directory(_), None) => None,
    }
}

/// The journal's word for a refusal of the planner.
#[must_use]
pub fn refusal_reason(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::NoTemplate => Reason::NoTemplate,
        Refusal::NoAddress => Reason::NoAddress,
        Refusal::BadAddress(_) => Reason::BadAddress,
        Refusal::DomainUnknown(_) => Reason::DomainUnknown,
        Refusal::DomainInactive => Reason::DomainInactive,
        Refusal::DomainFull => Reason::DomainFull,
        Refusal::QuotaExceeded => Reason::QuotaExceeded,
        Refusal::IdChanged { .. } => Reason::IdChanged,
        Refusal::AddressTaken { .. } => Reason::AddressTaken,
        Refusal::CreationOff => Reason::CreationOff,
        Refusal::TemplateUnmatched => Reason::TemplateUnmatched,
        Refusal::ProviderMismatch { .. } => Reason::ProviderMismatch,
    }
}

fn later(reason: Reason, detail: Option<&dyn std::fmt::Display>) -> Settled {
    Settled::Later(Later { reason, detail: detail.map(|detail| detail.to_string().into()) })
}

/// The names of the fields that changed, as the journal shows them.
fn changed_fields(changes: &[Change]) -> Option<Arc<str>> {
    let mut fields: Vec<&str> = changes.iter().map(Change::field).collect();
    fields.dedup();
    (!fields.is_empty()).then(|| fields.join(",").into())
}
