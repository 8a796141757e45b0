//! What the drivers of all doors that judge logins share.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::listener::Peer;
use crate::auth::{Attempt, Authenticator, Facts, Later, Reason, Service, Verdict, objection_to};
use crate::clock;
use crate::config::listen::Listen;
use crate::lookup::Lookup;
use crate::metrics::{DoorName, Metrics};
use crate::store::Resident;

/// One door, `[listen.NAME]`.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) name: Arc<DoorName>,
    pub(super) core: Arc<Authenticator>,
    pub(super) lookup: Arc<Lookup>,
    /// Nets whose word about the client's address is believed; a unix socket's peer always is.
    pub(super) trusted: Vec<IpNet>,
    /// A proxy says who the peer is.
    pub(super) proxied: bool,
    pub(super) failure_delay: Duration,
    /// Attempts in flight per connection.
    pub(super) max_in_flight: usize,
    pub(super) write_timeout: Duration,
    pub(super) metrics: Metrics,
    pub(super) tracker: TaskTracker,
}

/// What every door of a daemon works with.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) core: Arc<Authenticator>,
    pub(super) lookup: Arc<Lookup>,
    pub(super) metrics: Metrics,
    pub(super) tracker: TaskTracker,
}

impl Door {
    pub(super) fn new(name: Arc<str>, listen: &Listen, shared: Shared) -> Self {
        let Shared { core, lookup, metrics, tracker } = shared;
        Self {
            name: DoorName::new(name),
            core,
            lookup,
            trusted: listen.trusted.clone(),
            proxied: listen.proxy_protocol,
            failure_delay: listen.failure_delay(),
            max_in_flight: listen.max_in_flight,
            write_timeout: listen.write_timeout.0,
            metrics,
            tracker,
        }
    }

    /// Whether the peer may say where its client is (login.md D-2).
    pub(super) fn believes(&self, peer: &Peer) -> bool {
        peer.address.is_none_or(|peer| self.trusts(peer.ip()))
    }

    /// Whether this address is one of the trusted ones.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&address))
    }

    /// Where an attempt comes from (login.md D-2): what a peer that is believed says in the protocol; else whom the PROXY
    /// header names, unless that is one of those who only ask for others.
    pub(super) fn client(&self, said: Option<IpAddr>, peer: &Peer) -> Option<IpAddr> {
        let named = peer.address.map(|address| address.ip());
        if self.believes(peer) { said } else { named.filter(|_| self.proxied) }
    }

    /// What speaks against this mailbox's use for a service now, if anything.
    pub(super) fn objection(&self, mailbox: &Resident, service: Service) -> Option<Reason> {
        let setup = self.core.setup();
        let domain = setup.rules.domain(mailbox.address.domain());
        let facts = Facts {
            disabled_by_admin: mailbox.disabled_by_admin,
            domain_active: domain.is_some_and(|domain| domain.active),
            settings: &mailbox.settings,
        };
        objection_to(facts, service)
    }

    /// Asks whoever must be asked, in a task of its own: it ends, and reaches the journal, even if the caller hangs up.
    pub(super) fn ask(&self, attempt: Attempt) -> JoinHandle<Verdict> {
        let core = Arc::clone(&self.core);
        // Boxed: the runtime aligns a task's own memory to cache lines, and glibc gives what was freed of such pieces to
        // the next only in crumbs; they would be a third of the process.
        self.tracker.spawn(Box::pin(async move { core.authenticate(attempt).await }))
    }

    /// Memory first, then whoever must be asked: whatever becomes of the caller (see [`Door::ask`]). A panic is answered
    /// with "later".
    pub(super) async fn decide(&self, attempt: Attempt) -> Verdict {
        if let Some(verdict) = self.core.recall(&attempt, clock::now()) {
            return verdict;
        }
        self.ask(attempt).await.unwrap_or_else(|error| {
            tracing::error!(%error, door = %self.name, "an attempt failed");
            Verdict::Unavailable(Later::new(Reason::Internal))
        })
    }

    /// [`Door::decide`] for a door that answers one attempt at a time: a refusal is held back until its time
    /// (login.md O-6).
    pub(super) async fn decide_and_delay(&self, attempt: Attempt) -> Verdict {
        let due = attempt.arrived + self.failure_delay;
        let verdict = self.decide(attempt).await;
        self.delay(&verdict, due).await;
        verdict
    }

    /// Holds a refusal back until then.
    pub(super) async fn delay(&self, verdict: &Verdict, due: Instant) {
        if matches!(verdict, Verdict::Reject(_)) && !self.failure_delay.is_zero() {
            tokio::time::sleep_until(due.into()).await;
        }
    }
}
