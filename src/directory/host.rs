//! One server of a profile: its connections, its standing, the probe that finds out whether it is back.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ldap3::Scope;

use super::bind::BindConnection;
use super::breaker::{PROBE_INTERVAL, REFUSAL_INTERVAL, Turn, next_doubled};
use super::connect::{ConnectError, Target};
use super::connection::{Connection, Found, OperationError, Query};
use super::filter::Filter;
use super::pool::{BUSY, UNAVAILABLE, lock};
use super::searching::SearchConnection;
use super::standing::Standing;
use super::verdict::{BindReply, Class, classify};
use crate::clock;
use crate::metrics::Metrics;
use crate::secret::Secret;

/// A bind connection that has been idle for longer may have been forgotten by a firewall on the way.
const IDLE_LIMIT: Duration = Duration::from_secs(120);

/// So often the connections are looked after.
const TENDING_INTERVAL: Duration = Duration::from_secs(15);

/// What the servers of a profile have in common.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) connect_timeout: Duration,
    pub(super) timeout: Duration,
    pub(super) max_age: Duration,
    pub(super) search_connections: usize,
    pub(super) service: Service,
}

/// Who searches.
#[derive(Debug)]
pub(super) enum Service {
    /// Nobody in particular.
    Anonymous,
    /// The service account.
    Account { dn: String, password: Secret },
}

/// Why a server gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The request did not get to work there: no connection, or the server's own "busy".
    NotReached,
    /// The request may have been at work.
    Unanswered,
    /// Our configuration: the service account is refused, a filter is not accepted.
    Ours,
}

/// One server.
pub(super) struct Host {
    target: Target,
    settings: Arc<Settings>,
    metrics: Metrics,
    standing: Standing,
    service_refusal: Mutex<Option<String>>,
    probing: AtomicBool,
    tended: AtomicBool,
    slots: Vec<tokio::sync::Mutex<Slot>>,
    turn: AtomicUsize,
    idle: Mutex<Vec<Idle>>,
    /// Binds that are at work.
    binding: AtomicUsize,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Host").field(self.label()).finish()
    }
}

/// A place for one search connection. Whoever finds it empty connects; the others wait for that.
#[derive(Default)]
struct Slot {
    connection: Option<Arc<Shared>>,
    failed: Option<(Instant, Failure)>,
}

/// A connection that many searches use at once.
struct Shared {
    connection: SearchConnection,
    dead: AtomicBool,
}

struct Idle {
    connection: BindConnection,
    since: Instant,
}

/// Counts one for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one_more(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that the service account can be bound on.
trait Binds {
    fn bind_as(
        &mut self,
        dn: &str,
        password: &Secret,
        within: Duration,
    ) -> impl Future<Output = Result<BindReply, OperationError>> + Send;
}

impl Binds for BindConnection {
    async fn bind_as(
        &mut self,
        dn: &str,
        password: &Secret,
        within: Duration,
    ) -> Result<BindReply, OperationError> {
        self.bind(dn, password.expose().as_bytes(), within).await
    }
}

impl Binds for Connection {
    async fn bind_as(
        &mut self,
        dn: &str,
        password: &Secret,
        within: Duration,
    ) -> Result<BindReply, OperationError> {
        self.bind(dn, password.expose(), within).await
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Fresh,
    FromIdle,
}

impl Host {
    pub(super) fn new(target: Target, settings: Arc<Settings>, metrics: Metrics) -> Arc<Self> {
        let slots = (0..settings.search_connections.max(1)).map(|_| tokio::sync::Mutex::default());
        Arc::new(Self {
            standing: Standing::new(Arc::clone(target.label()), metrics.clone()),
            service_refusal: Mutex::default(),
            probing: AtomicBool::new(false),
            tended: AtomicBool::new(false),
            slots: slots.collect(),
            turn: AtomicUsize::new(0),
            idle: Mutex::default(),
            binding: AtomicUsize::new(0),
            target,
            settings,
            metrics,
        })
    }

    pub(super) fn label(&self) -> &Arc<str> {
        self.target.label()
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn allows(&self) -> bool {
        self.standing.allows()
    }

    pub(super) fn silent_for(&self, time: Duration, now: Instant) -> bool {
        self.standing.silent_for(time, now)
    }

    pub(super) fn service_refusal(&self) -> Option<String> {
        lock(&self.service_refusal).clone()
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.service_refusal().or_else(|| self.standing.last_error())
    }

    pub(super) fn describe(&self) -> String {
        self.last_error().unwrap_or_else(|| format!("ldap server {}: up", self.label()))
    }

    /// From now on the metrics tell how the server is.
    pub(super) fn show(&self) {
        self.standing.show();
    }

    /// From now on the metrics no longer know the server, even if somebody still waits for it.
    pub(super) fn hide(&self) {
        self.standing.hide();
    }

    /// A search on a shared connection. One that turns out dead is replaced once.
    pub(super) async fn search(self: &Arc<Self>, query: &Query<'_>) -> Result<Found, Failure> {
        let (shared, taken) = self.shared().await?;
        let result = self.search_on(&shared, query).await;
        match result {
            Err(OperationError::NotSent | OperationError::Broken(_))
                if taken == Taken::FromIdle =>
            {
                let (shared, _) = self.shared().await?;
                let result = self.search_on(&shared, query).await;
                self.judge(result, |found| found.code, "search")
            }
            other => self.judge(other, |found| found.code, "search"),
        }
    }

    async fn search_on(&self, shared: &Shared, query: &Query<'_>) -> Result<Found, OperationError> {
        let started = clock::now();
        let result = shared.connection.search(query, self.settings.timeout).await;
        let word = match &result {
            Ok(found) if matches!(found.code, 0 | 4 | 32) => "ok",
            Ok(_) | Err(OperationError::Filter(_)) => "refused",
            Err(OperationError::Timeout(_)) => "timeout",
            Err(_) => "failed",
        };
        self.count("search", word, started);
        if result.as_ref().is_err_and(|error| !error.is_answered()) {
            shared.dead.store(true, Ordering::Relaxed);
        }
        result
    }

    /// A bind on a connection of its own. Sent at most once (login.md Q-5).
    ///
    /// Must run in a task that nobody cancels.
    pub(super) async fn bind(
        self: &Arc<Self>,
        dn: &str,
        password: &[u8],
    ) -> Result<BindReply, Failure> {
        self.start_tending();
        let _counted = Counted::one_more(&self.binding);
        let mut connection = match self.take_idle().await {
            Some(idle) => idle.connection,
            None => Box::pin(self.connect_for_binds()).await?,
        };
        let started = clock::now();
        let result = connection.bind(dn, password, self.settings.timeout).await;
        self.count_bind(&result, started);
        let reply = self.judge(result, |reply| reply.code, "bind")?;
        if !matches!(reply.code, BUSY | UNAVAILABLE) {
            self.put_back(connection);
        }
        Ok(reply)
    }

    async fn connect_for_binds(self: &Arc<Self>) -> Result<BindConnection, Failure> {
        let connecting = BindConnection::open(&self.target, self.settings.connect_timeout);
        self.connected(Box::pin(connecting)).await
    }

    fn count_bind(&self, result: &Result<BindReply, OperationError>, started: Instant) {
        let word = match result {
            Ok(BindReply { code: 0, .. }) => "ok",
            Ok(_) => "refused",
            Err(OperationError::Timeout(_)) => "timeout",
            Err(_) => "failed",
        };
        self.count("bind", word, started);
    }

    /// A connection that waits for a bind. One that the server closed meanwhile is found out before the bind is sent
    /// (login.md Q-5).
    async fn take_idle(&self) -> Option<Idle> {
        loop {
            let mut last = lock(&self.idle).pop()?;
            if self.is_fresh(&last, clock::now()) && last.connection.is_quiet().await {
                return Some(last);
            }
        }
    }

    /// From the first bind on, as long as the host lives.
    fn start_tending(self: &Arc<Self>) {
        if self.tended.swap(true, Ordering::Relaxed) {
            return;
        }
        let host = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TENDING_INTERVAL).await;
                let Some(host) = host.upgrade() else { return };
                host.tend(clock::now()).await;
            }
        });
    }

    /// Closes what a burst has left behind, and keeps a connection of each kind ready, so that after a quiet hour nobody
    /// waits for a handshake.
    pub(super) async fn tend(self: &Arc<Self>, now: Instant) {
        lock(&self.idle).retain(|idle| self.is_fresh(idle, now));
        if self.needs_probe() {
            return;
        }
        // Who binds now leaves a connection behind; one more could be one too many.
        if self.binding.load(Ordering::Relaxed) == 0 {
            self.keep_a_spare().await;
        }
        for _ in &self.slots {
            // What is wrong is logged and counted where it is found.
            if self.shared().await.is_err() {
                return;
            }
        }
    }

    async fn keep_a_spare(self: &Arc<Self>) {
        let spare = match self.take_idle().await {
            Some(idle) => Some(idle),
            None => self
                .connect_for_binds()
                .await
                .ok()
                .map(|connection| Idle { connection, since: clock::now() }),
        };
        lock(&self.idle).extend(spare);
    }

    #[cfg(test)]
    pub(super) fn idle_connections(&self) -> usize {
        lock(&self.idle).len()
    }

    fn put_back(&self, connection: BindConnection) {
        let now = clock::now();
        let mut idle = lock(&self.idle);
        // The last in is the first out: those below would grow old unseen.
        idle.retain(|other| self.is_fresh(other, now));
        idle.push(Idle { connection, since: now });
    }

    fn is_fresh(&self, idle: &Idle, now: Instant) -> bool {
        now.saturating_duration_since(idle.since) < IDLE_LIMIT
            && idle.connection.age(now) < self.settings.max_age
    }

    fn is_usable(&self, shared: &Shared, now: Instant) -> bool {
        !shared.dead.load(Ordering::Relaxed)
            && shared.connection.age(now) < self.settings.max_age
            && !shared.connection.is_closed()
    }

    /// One of the shared connections, connected if need be.
    async fn shared(self: &Arc<Self>) -> Result<(Arc<Shared>, Taken), Failure> {
        let asked = clock::now();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.slots.len().max(1);
        let Some(slot) = self.slots.get(turn) else {
            return Err(Failure { kind: FailureKind::Ours, detail: "no search connection".into() });
        };
        let mut slot = slot.lock().await;
        if let Some(shared) = &slot.connection
            && self.is_usable(shared, clock::now())
        {
            return Ok((Arc::clone(shared), Taken::FromIdle));
        }
        slot.connection = None;
        // Somebody failed while we waited for the slot: the same would happen to us.
        if let Some((when, failure)) = &slot.failed
            && *when >= asked
        {
            return Err(failure.clone());
        }
        // Boxed, as all that connects: it is rare, and larger than all else in the future of a search.
        match Box::pin(self.open_for_searches()).await {
            Ok(connection) => {
                let shared = Arc::new(Shared { connection, dead: AtomicBool::new(false) });
                slot.connection = Some(Arc::clone(&shared));
                Ok((shared, Taken::Fresh))
            }
            Err(failure) => {
                slot.failed = Some((clock::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Connects and binds as the service account, unless that was refused a moment ago.
    async fn open_for_searches(self: &Arc<Self>) -> Result<SearchConnection, Failure> {
        self.service_not_refused()?;
        Ok(SearchConnection::start(self.open_as_service(self.connect_for_binds()).await?))
    }

    /// The same with the client library, for a feed.
    pub(super) async fn open(self: &Arc<Self>) -> Result<Connection, Failure> {
        self.service_not_refused()?;
        let connecting = self.target.connect(self.settings.connect_timeout);
        let connecting = self.connected(Box::pin(connecting));
        self.open_as_service(connecting).await
    }

    fn service_not_refused(&self) -> Result<(), Failure> {
        match self.service_refusal() {
            Some(detail) => Err(Failure { kind: FailureKind::Ours, detail }),
            None => Ok(()),
        }
    }

    async fn open_as_service<C: Binds>(
        self: &Arc<Self>,
        connecting: impl Future<Output = Result<C, Failure>>,
    ) -> Result<C, Failure> {
        let until = clock::now() + self.settings.connect_timeout;
        let mut connection = connecting.await?;
        let Service::Account { dn, password } = &self.settings.service else {
            return Ok(connection);
        };
        let left = until.saturating_duration_since(clock::now());
        let started = clock::now();
        let result = connection.bind_as(dn, password, left).await;
        self.count_bind(&result, started);
        let reply = self.judge(result, |reply| reply.code, "bind as service account")?;
        match classify(&reply) {
            Class::Accepted(_) => {
                if lock(&self.service_refusal).take().is_some() {
                    tracing::info!(directory.server = %self.label(), "service account accepted again");
                }
                Ok(connection)
            }
            Class::Trouble => Err(Failure {
                kind: FailureKind::NotReached,
                detail: self
                    .say(&format!("bind as service account: code {} {}", reply.code, reply.text)),
            }),
            _ => {
                let detail = self.say(&format!(
                    "service account {dn:?} is refused: code {} {}",
                    reply.code, reply.text
                ));
                if lock(&self.service_refusal).replace(detail.clone()).is_none() {
                    tracing::error!(directory.server = %self.label(), error = %detail, "service account refused");
                }
                self.start_probe();
                Err(Failure { kind: FailureKind::Ours, detail })
            }
        }
    }

    async fn connected<T>(
        self: &Arc<Self>,
        connecting: Pin<Box<impl Future<Output = Result<T, ConnectError>>>>,
    ) -> Result<T, Failure> {
        let started = clock::now();
        match connecting.await {
            Ok(connection) => {
                self.count("connect", "ok", started);
                Ok(connection)
            }
            Err(error) => {
                let word = if error.timed_out { "timeout" } else { "failed" };
                self.count("connect", word, started);
                let detail = self.say(&error.detail);
                self.failed(&detail);
                Err(Failure { kind: FailureKind::NotReached, detail })
            }
        }
    }

    /// Tells the breaker what became of an operation, and makes a failure of what has no answer.
    fn judge<T>(
        self: &Arc<Self>,
        result: Result<T, OperationError>,
        code: impl Fn(&T) -> u32,
        operation: &str,
    ) -> Result<T, Failure> {
        match result {
            // A proxy whose backend is gone says 52: nobody who knows has answered.
            Ok(answer) if code(&answer) == UNAVAILABLE => {
                self.failed(&self.say(&format!("{operation}: code {UNAVAILABLE} unavailable")));
                Ok(answer)
            }
            Ok(answer) => {
                self.standing.answered();
                Ok(answer)
            }
            Err(OperationError::Filter(filter)) => Err(Failure {
                kind: FailureKind::Ours,
                detail: self.say(&format!("{operation}: filter {filter} is not accepted")),
            }),
            // One entry that is not as it should be is no reason to give up the server for everybody.
            Err(OperationError::Entry(error)) => {
                self.standing.answered();
                let detail = self.say(&format!("{operation}: {error}"));
                Err(Failure { kind: FailureKind::Ours, detail })
            }
            Err(error) => {
                let detail = self.say(&format!("{operation}: {error}"));
                self.failed(&detail);
                let kind = match error {
                    OperationError::NotSent => FailureKind::NotReached,
                    _ => FailureKind::Unanswered,
                };
                Err(Failure { kind, detail })
            }
        }
    }

    fn say(&self, what: &str) -> String {
        format!("ldap server {}: {}", self.label(), what.trim_end())
    }

    fn count(&self, operation: &'static str, word: &'static str, started: Instant) {
        let took = clock::now().saturating_duration_since(started);
        self.metrics.ldap_operation(self.label(), operation, word, took);
    }

    fn failed(self: &Arc<Self>, error: &str) {
        if self.standing.failed(error) == Turn::Opened {
            lock(&self.idle).clear();
            self.start_probe();
        }
    }

    fn needs_probe(&self) -> bool {
        !self.allows() || self.service_refusal().is_some()
    }

    /// One task that asks until the server answers and takes the service account. It ends with the host.
    fn start_probe(self: &Arc<Self>) {
        if self.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut after_refusal = REFUSAL_INTERVAL;
        let mut interval = match self.service_refusal() {
            Some(_) => next_doubled(&mut after_refusal),
            None => PROBE_INTERVAL,
        };
        let host = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(host) = host.upgrade() else { return };
                let probed = host.probe().await;
                if !host.needs_probe() {
                    host.probing.store(false, Ordering::Release);
                    // It may have failed again just before that store.
                    if !host.needs_probe() || host.probing.swap(true, Ordering::AcqRel) {
                        return;
                    }
                }
                interval = match probed {
                    Err(Failure { kind: FailureKind::Ours, .. }) => {
                        next_doubled(&mut after_refusal)
                    }
                    _ => PROBE_INTERVAL,
                };
            }
        });
    }

    /// Connects, binds as the service account and reads the root DSE.
    async fn probe(self: &Arc<Self>) -> Result<(), Failure> {
        let connection = self.open_as_service(self.connect_for_binds()).await?;
        let connection = SearchConnection::start(connection);
        let filter = Filter::any();
        let query = Query {
            base: "",
            scope: Scope::Base,
            filter: &filter,
            attributes: &super::profile::no_attributes(),
            limit: 1,
        };
        let result = connection.search(&query, self.settings.timeout).await;
        self.judge(result, |found| found.code, "probe").map(|_| ())
    }
}
