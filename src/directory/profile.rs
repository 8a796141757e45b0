//! One configured directory: finds people and checks passwords. The rules are login.md and table B.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::connect::Target;
use super::entry::{self, Reader};
use super::feed::Feed;
use super::filter::Filter;
use super::host::{Host, Settings};
use super::lockout::LastRead;
use super::matching::{Matching, same_dn};
use super::pool::{Gate, Pool, Ticket};
use super::preset;
use super::setup::{self, Place, Source};
use super::tls::Files;
use super::verdict::{BindReply, Class, GraceLogins, classify, said, with_state};
use super::{Answer, Fault, Finding, Known, Leave, Question, Share, Trouble, Wanted, Why, fault};
use crate::clock;
use crate::config::directory::{Directory, FeedChoice, Preset};
use crate::identity::Login;
use crate::metrics::Metrics;
use crate::person::{AccountState, Person};
use crate::secret::Password;

/// One configured directory.
#[derive(Debug)]
pub struct Profile {
    name: Arc<str>,
    epoch: u64,
    /// What it was built from, for the next reload to compare.
    source: Source,
    pub(super) pool: Pool,
    pub(super) settings: Arc<Settings>,
    gate: Gate,
    pub(super) reader: Reader,
    pub(super) matching: Matching,
    pub(super) places: Vec<Place>,
    pub(super) wanted: Vec<String>,
    pub(super) preset: Preset,
    pub(super) lockout: LastRead,
    pub(super) feed: Feed,
}

/// One server's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostHealth {
    /// `ldaps://dc1.example:636`
    pub host: String,
    /// Whether it is asked at present.
    pub up: bool,
    /// Its last trouble, while there is any.
    pub last_error: Option<String>,
}

/// Why a name finds whom it finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The filters that were sent, one per place; empty if no entry can have this name.
    pub filter_used: String,
    /// What they found.
    pub finding: Finding,
    /// If they found nobody: whom the name finds without the profile's own filter.
    pub without_filter: Option<String>,
}

/// A question that outlives its asker.
struct Asked {
    login: Login,
    password: Password,
    known: Option<Known>,
    vouched: Option<Arc<Person>>,
    /// Found by it if not by name.
    id: Option<Arc<str>>,
    deadline: Instant,
    leave: Option<Arc<dyn Leave>>,
}

impl Asked {
    fn may_bind(&self, id: &str) -> bool {
        self.leave.as_ref().is_none_or(|leave| leave.to_bind(id))
    }
}

impl Profile {
    pub(super) fn build(
        name: &str,
        section: &Directory,
        previous: Option<&Arc<Self>>,
        metrics: &Metrics,
    ) -> Result<Arc<Self>, Vec<Fault>> {
        let one = |fault: Fault| vec![fault];
        let identity = preset::identity(section)
            .map_err(|error| one(fault("identity.disabled_rule", error.to_string())))?;
        let matching = setup::matching(section, &identity.login_attributes).map_err(one)?;
        let id_attribute = identity.id_attribute.as_str();
        let wanted = setup::wanted_attributes(section, Some(id_attribute), &matching);
        let id_alone = !setup::wanted_attributes(section, None, &matching)
            .iter()
            .any(|name| name.eq_ignore_ascii_case(id_attribute));
        let source = Source {
            section: setup::relevant(section),
            wanted: wanted.clone(),
            id_alone,
            files: Files::read(section).map_err(one)?,
        };
        if let Some(previous) = previous.filter(|previous| previous.source == source) {
            return Ok(Arc::clone(previous));
        }
        let parts =
            (setup::service(section), Target::list(section, &source.files), setup::places(section));
        let (service, targets, places) = match parts {
            (Ok(service), Ok(targets), Ok(places)) => (service, targets, places),
            (service, targets, places) => {
                let faults = [service.err(), targets.err(), places.err()];
                return Err(faults.into_iter().flatten().collect());
            }
        };
        let settings = Arc::new(Settings {
            connect_timeout: section.connect_timeout.0,
            timeout: section.timeout.0,
            max_age: section.connection_max_age.0,
            search_connections: section.search_connections,
            service,
        });
        let hosts = targets
            .into_iter()
            .map(|target| Host::new(target, Arc::clone(&settings), metrics.clone()))
            .collect();
        let name: Arc<str> = name.into();
        Ok(Arc::new(Self {
            epoch: setup::epoch(section, &wanted, id_alone),
            pool: Pool::new(hosts, section.failback_after.0),
            gate: Gate::new(section.bind_connections, section.queue),
            reader: Reader {
                profile: Arc::clone(&name),
                identity,
                remember: section.auth.remember,
                id_alone,
            },
            places,
            preset: section.preset,
            lockout: LastRead::default(),
            feed: Feed::new(Arc::clone(&name), metrics.clone(), told_in_full(section, &wanted)),
            name,
            source,
            settings,
            matching,
            wanted,
        }))
    }

    /// The profile's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Another number when the section changed in a way that makes remembered answers old.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether people of this directory log in at all (`auth.enabled`). [`super::Directories::route`] leaves out those
    /// that do not.
    #[must_use]
    pub fn takes_logins(&self) -> bool {
        self.source.section.auth.enabled
    }

    /// Whether changes are to be heard of as they happen (`feed`). Who takes no logins has nothing to hear them for.
    #[must_use]
    pub fn wants_feed(&self) -> bool {
        self.takes_logins() && self.source.section.feed == FeedChoice::Auto
    }

    /// The run of the feed that tells every change of an entry from now on, if there is one. Never the same number for
    /// two runs, whatever their profiles.
    #[must_use]
    pub fn vouching(&self) -> Option<u64> {
        self.feed.vouching()
    }

    pub(super) fn checks_certificates(&self) -> bool {
        self.source.section.verify
    }

    /// Asks whether this is the password of the person with this name. The deadline is for the wait for a place; what has
    /// begun after it takes as long as the servers' own time limits allow.
    ///
    /// Must run in a task that nobody cancels: a bind that was cut off half way would spoil its connection, and nobody
    /// would learn what came of it.
    pub async fn ask(self: &Arc<Self>, question: Question<'_>) -> Answer {
        let asked = Asked {
            login: question.login.clone(),
            password: question.password.clone(),
            known: question.known.cloned(),
            vouched: question.vouched.cloned(),
            id: question
                .linked
                .map(Arc::from)
                .or_else(|| question.known.map(|known| known.id.clone())),
            deadline: question.deadline,
            leave: question.leave,
        };
        let ticket = match self.enter(question.share, question.deadline).await {
            Ok(ticket) => ticket,
            Err(trouble) => return trouble.into(),
        };
        // Boxed: it is several kilobytes, and would be moved, and kept in each caller's future, again and again.
        let answer = Box::pin(self.answer(&asked)).await;
        if let Some(leave) = &asked.leave {
            leave.heard(&answer);
        }
        // How long it took to hear nothing of the directory says nothing.
        let is_its_answer = !matches!(
            answer,
            Answer::Trouble(_) | Answer::Withheld { .. } | Answer::Odd { .. } | Answer::Ours { .. }
        );
        if is_its_answer {
            self.gate.answered(ticket);
        }
        answer
    }

    /// Looks for somebody; no password is checked.
    pub async fn find(
        self: &Arc<Self>,
        wanted: Wanted<'_>,
        share: Share,
        deadline: Instant,
    ) -> Finding {
        let profile = Arc::clone(self);
        let found = match wanted {
            Wanted::Id(id) => {
                let id = Box::<str>::from(id);
                self.run(share, deadline, async move { profile.search_id(&id).await }).await
            }
            Wanted::Login(login) => {
                let login = login.clone();
                self.run(share, deadline, async move { profile.search_login(&login).await }).await
            }
        };
        found.unwrap_or_else(Finding::Failed)
    }

    /// Reads a known entry again where it stood. `None` if it is not there any more, or another stands there, or the
    /// profile's filter leaves it out.
    pub async fn read_stamp(
        self: &Arc<Self>,
        known: &Known,
        share: Share,
        deadline: Instant,
    ) -> Finding {
        let profile = Arc::clone(self);
        let known = known.clone();
        let work = async move {
            let Some(filter) = profile.filter_at(&known.dn) else { return Finding::None };
            match profile.read(&known.dn, &filter).await {
                Finding::One(person) if person.id != known.id => Finding::None,
                finding => finding,
            }
        };
        self.run(share, deadline, work).await.unwrap_or_else(Finding::Failed)
    }

    /// Whether people who are remembered may get in without the directory (login.md M-3): no server has answered
    /// anything for 5 s, or the service account is refused.
    #[must_use]
    pub fn grace_allowed(&self, now: Instant) -> bool {
        self.pool.grace_allowed(now)
    }

    /// How many attempts may be at work or wait, to be answered in so much time, as far as the last ones show.
    #[must_use]
    pub fn room(&self, time: Duration) -> usize {
        self.gate.room(time)
    }

    /// Whether all servers are given up for now: asking would only fail.
    #[must_use]
    pub fn nothing_answers(&self) -> bool {
        self.pool.nothing_answers()
    }

    /// How the servers are, in the order of preference.
    #[must_use]
    pub fn health(&self) -> Vec<HostHealth> {
        let health = |host: &Arc<Host>| HostHealth {
            host: host.label().to_string(),
            up: host.allows() && host.service_refusal().is_none(),
            last_error: host.last_error(),
        };
        self.pool.hosts().iter().map(health).collect()
    }

    /// Looks for a name and says by which filters; if nobody is found, also without the profile's own filter.
    pub async fn explain(self: &Arc<Self>, login: &Login, deadline: Instant) -> Explained {
        let sent: Vec<String> = self
            .matching
            .filter(login)
            .iter()
            .flat_map(|filter| {
                self.places.iter().map(|place| place.filter.and(filter).as_str().to_owned())
            })
            .collect();
        let finding = self.find(Wanted::Login(login), Share::Known, deadline).await;
        let without_filter = match finding {
            Finding::None => {
                let profile = Arc::clone(self);
                let login = login.clone();
                let work = async move { profile.first_without_filter(&login).await };
                self.run(Share::Known, deadline, work).await.ok().flatten()
            }
            _ => None,
        };
        Explained { filter_used: sent.join(" "), finding, without_filter }
    }

    /// Runs the work in a task of its own, once there is a place for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        share: Share,
        deadline: Instant,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Trouble> {
        let ticket = self.enter(share, deadline).await?;
        let task = tokio::spawn(async move {
            let done = work.await;
            drop(ticket);
            done
        });
        match timeout_at(deadline.into(), task).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                Err(Trouble { why: Why::Odd, detail: format!("directory {}: {error}", self.name) })
            }
            Err(_) => Err(self.too_late()),
        }
    }

    /// Waits for a place until the deadline.
    async fn enter(&self, share: Share, deadline: Instant) -> Result<Ticket, Trouble> {
        let ticket = self.gate.enter(share, deadline).await?;
        if clock::now() >= deadline {
            return Err(self.too_late());
        }
        Ok(ticket)
    }

    fn too_late(&self) -> Trouble {
        let detail = format!("directory {}: no answer before the deadline", self.name);
        Trouble { why: Why::Deadline, detail }
    }

    /// where a feed vouches for what is known of the entry, the bind alone; where it is known, bind and read at the
    /// same time; else search, then bind.
    async fn answer(&self, asked: &Asked) -> Answer {
        if !asked.password.is_well_formed() {
            let detail = "a password that no directory may see came as far as the directory".into();
            return Answer::Odd { detail };
        }
        if let Some(known) = &asked.known
            && let Some(filter) = self.filter_at(&known.dn)
        {
            if let Some(person) = &asked.vouched {
                let mut person = Person::clone(person);
                // Some accounts end at some day: nobody tells that.
                person.state = self.reader.state(&person.attributes, clock::unix_seconds());
                if person.state == AccountState::Active {
                    return self.answer_vouched(asked, known, person).await;
                }
            }
            return self.answer_known(asked, known, &filter).await;
        }
        match self.search(asked).await {
            Finding::One(person) => self.check(asked, person).await,
            other => other.into(),
        }
    }

    async fn answer_known(&self, asked: &Asked, known: &Known, filter: &Filter) -> Answer {
        if !asked.may_bind(&known.id) {
            return Answer::Withheld { id: known.id.clone() };
        }
        let (bound, read) =
            tokio::join!(self.bind(&known.dn, &asked.password), self.read(&known.dn, filter));
        let reply = match bound {
            Ok(reply) => reply,
            Err(trouble) => return trouble.into(),
        };
        match read {
            Finding::One(person) => match with_state(classify(&reply), person.state) {
                Class::Gone | Class::Wrong => self.answer_after_search(asked, known, &reply).await,
                class => self.conclude(class, &reply, person),
            },
            // Moved, gone, or left out by the filter: whatever the bind said.
            Finding::None => self.answer_after_search(asked, known, &reply).await,
            Finding::Failed(trouble) => self.answer_unread(&reply, trouble),
            other => other.into(),
        }
    }

    async fn answer_vouched(&self, asked: &Asked, known: &Known, person: Person) -> Answer {
        if !asked.may_bind(&known.id) {
            return Answer::Withheld { id: known.id.clone() };
        }
        match self.bind(&known.dn, &asked.password).await {
            Ok(reply) => match classify(&reply) {
                Class::Gone | Class::Wrong => self.answer_after_search(asked, known, &reply).await,
                class => self.conclude(class, &reply, person),
            },
            Err(trouble) => trouble.into(),
        }
    }

    /// the bind's answer counts only if a fresh search finds the person where it was tried.
    async fn answer_after_search(&self, asked: &Asked, known: &Known, reply: &BindReply) -> Answer {
        match self.search(asked).await {
            Finding::One(person) if same_dn(&person.dn, &known.dn) => {
                let class = with_state(classify(reply), person.state);
                self.conclude(class, reply, person)
            }
            Finding::One(person) => self.check(asked, person).await,
            Finding::Failed(trouble) => self.answer_unread(reply, trouble),
            other => other.into(),
        }
    }

    /// The bind was answered, but the entry could not be read. A "no" counts even so: who was refused must not get in
    /// by grace (login.md M-3), which [`Answer::Trouble`] and [`Answer::Ours`] allow.
    fn answer_unread(&self, reply: &BindReply, trouble: Trouble) -> Answer {
        match classify(reply) {
            Class::Disabled => Answer::Disabled { person: None },
            Class::Locked(lock) => Answer::Locked { person: None, lock },
            Class::Expired | Class::Gone | Class::MustChange | Class::Odd | Class::Wrong => {
                let detail = format!(
                    "directory {}: the directory refused the login (code {}) but the entry could not be read: {}",
                    self.name, reply.code, trouble.detail
                );
                Answer::Odd { detail }
            }
            Class::Accepted(_) | Class::Ours | Class::Trouble => trouble.into(),
        }
    }

    /// One bind as the person found.
    async fn check(&self, asked: &Asked, person: Person) -> Answer {
        if person.state == AccountState::Disabled {
            return Answer::Disabled { person: Some(person) };
        }
        if clock::now() >= asked.deadline {
            return self.too_late().into();
        }
        if !asked.may_bind(&person.id) {
            return Answer::Withheld { id: person.id };
        }
        match self.bind(&person.dn, &asked.password).await {
            Ok(reply) => {
                let class = with_state(classify(&reply), person.state);
                self.conclude(class, &reply, person)
            }
            Err(trouble) => trouble.into(),
        }
    }

    async fn bind(&self, dn: &str, password: &Password) -> Result<BindReply, Trouble> {
        if dn.is_empty() {
            let detail = format!("directory {}: an entry without a name", self.name);
            return Err(Trouble { why: Why::Odd, detail });
        }
        self.pool.bind(dn, password.as_bytes()).await.map_err(Trouble::from)
    }

    fn conclude(&self, class: Class, reply: &BindReply, person: Person) -> Answer {
        let detail = || {
            let text = format!("bind as {}: code {} {}", person.dn, reply.code, reply.text);
            format!("directory {}: {}", self.name, text.trim_end())
        };
        match class {
            Class::Accepted(_) if self.has_expired(&person) => Answer::Expired { person },
            Class::Accepted(grace) => {
                Answer::Accepted { person, grace_logins: grace == GraceLogins::Counting }
            }
            Class::Disabled => Answer::Disabled { person: Some(person) },
            Class::Expired => Answer::Expired { person },
            Class::Locked(lock) => Answer::Locked { person: Some(person), lock },
            Class::MustChange => Answer::MustChange { person },
            Class::Odd => Answer::Odd { detail: detail() },
            Class::Ours => Answer::Ours { detail: detail() },
            // A fresh search has just found the entry: the server contradicts itself.
            Class::Gone | Class::Trouble => {
                Answer::Trouble(Trouble { why: Why::Directory, detail: detail() })
            }
            Class::Wrong => Answer::Wrong { person, said: said(reply) },
        }
    }

    fn has_expired(&self, person: &Person) -> bool {
        self.preset == Preset::FreeIpa
            && entry::kerberos_password_expired(&person.attributes, clock::unix_seconds())
    }

    /// By name; then by id, for somebody who is known or linked.
    async fn search(&self, asked: &Asked) -> Finding {
        match (self.search_login(&asked.login).await, &asked.id) {
            (Finding::None, Some(id)) => self.search_id(id).await,
            (finding, _) => finding,
        }
    }
}

/// Whether all that is read of an entry changes only when the entry itself is touched. Groups, and filters of any kind,
/// may depend on other entries.
fn told_in_full(section: &Directory, wanted: &[String]) -> bool {
    // 389-ds computes nsRole from other entries, as memberOf.
    let is_computed = |text: &str| ["memberof", "nsrole"].iter().any(|name| text.contains(name));
    let by_group = |text: &str| is_computed(&text.to_ascii_lowercase());
    let mut filters = section.search.values().map(|search| search.filter.as_str());
    !section.identity.disabled_rule.starts_with("filter:")
        && !wanted.iter().any(|name| by_group(name))
        && !filters.any(by_group)
}

/// RFC 4511 §4.5.1.8: no attributes; an empty list would mean all of them.
pub(super) fn no_attributes() -> [String; 1] {
    ["1.1".to_owned()]
}

impl From<Finding> for Answer {
    /// What a finding means when nobody was found to bind as.
    fn from(finding: Finding) -> Self {
        match finding {
            Finding::Ambiguous(dns) => Self::Ambiguous { dns },
            Finding::Failed(trouble) => trouble.into(),
            Finding::None => Self::Absent,
            Finding::One(person) => {
                Self::Odd { detail: format!("{} was found but not asked about", person.dn) }
            }
        }
    }
}
