//! The servers of one profile: connections for searching (shared, bound once as the service account) apart from
//! connections for checking passwords (one bind at a time each), failover in the order of preference, and the gate
//! that bounds how many attempts are at work or wait.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

use super::connection::{Found, Query};
use super::host::{Failure, FailureKind, Host};
use super::verdict::BindReply;
use super::{Share, Trouble, Why};
use crate::clock;

/// RFC 4511: the server has no time now.
pub(super) const BUSY: u32 = 51;

/// RFC 4511: the server cannot work now.
pub(super) const UNAVAILABLE: u32 = 52;

/// So long without an answer of any server before remembered people get in by grace (login.md M-3).
const SILENCE: Duration = Duration::from_secs(5);

/// Locks; what a panicking thread left is still whole, for each lock guards single assignments only.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The servers of one profile.
#[derive(Debug)]
pub(super) struct Pool {
    hosts: Vec<Arc<Host>>,
    preferred: Mutex<Preferred>,
    failback_after: Duration,
}

/// The server asked first, and since when it is that one.
#[derive(Debug)]
struct Preferred {
    index: usize,
    since: Instant,
}

impl Pool {
    pub(super) fn new(hosts: Vec<Arc<Host>>, failback_after: Duration) -> Self {
        let preferred = Mutex::new(Preferred { index: 0, since: clock::now() });
        Self { hosts, preferred, failback_after }
    }

    pub(super) fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// Searches at the first server that can. A search may be asked again elsewhere, whatever became of it.
    pub(super) async fn search(&self, query: &Query<'_>) -> Result<Found, Failure> {
        let mut failure = None;
        for (index, host) in self.candidates(clock::now()) {
            match host.search(query).await {
                Ok(found) if matches!(found.code, BUSY | UNAVAILABLE) => {
                    failure = Some(busy(host, found.code, &found.text));
                }
                Ok(found) => {
                    self.prefer(index);
                    return Ok(found);
                }
                Err(error) if error.kind == FailureKind::Ours => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| self.nobody()))
    }

    /// Binds once. The next server is tried only if this one did not look at the password: no connection, or its own
    /// word that it is busy. Never after 49 or a time limit, which may count against the person.
    pub(super) async fn bind(&self, dn: &str, password: &[u8]) -> Result<BindReply, Failure> {
        let mut failure = None;
        for (index, host) in self.candidates(clock::now()) {
            match host.bind(dn, password).await {
                Ok(reply) if matches!(reply.code, BUSY | UNAVAILABLE) => {
                    failure = Some(busy(host, reply.code, &reply.text));
                }
                Ok(reply) => {
                    self.prefer(index);
                    return Ok(reply);
                }
                Err(error) if error.kind == FailureKind::NotReached => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| self.nobody()))
    }

    /// The server that is asked first now; `None`: all are given up.
    pub(super) fn first(&self, now: Instant) -> Option<Arc<Host>> {
        self.candidates(now).first().map(|(_, host)| Arc::clone(host))
    }

    /// The servers worth asking, best first.
    fn candidates(&self, now: Instant) -> Vec<(usize, &Arc<Host>)> {
        let first = {
            let mut preferred = lock(&self.preferred);
            let since = now.saturating_duration_since(preferred.since);
            if preferred.index != 0 && since >= self.failback_after {
                *preferred = Preferred { index: 0, since: now };
            }
            preferred.index
        };
        let mut all: Vec<_> = self.hosts.iter().enumerate().collect();
        // Stable: the others keep the order of the configuration.
        all.sort_by_key(|(index, _)| *index != first);
        all.retain(|(_, host)| host.allows());
        all
    }

    fn prefer(&self, index: usize) {
        let mut preferred = lock(&self.preferred);
        if preferred.index != index {
            *preferred = Preferred { index, since: clock::now() };
        }
    }

    /// Every server is given up for now.
    pub(super) fn nothing_answers(&self) -> bool {
        !self.hosts.iter().any(|host| host.allows())
    }

    /// No server has answered anything for a while, or the service account is refused.
    pub(super) fn grace_allowed(&self, now: Instant) -> bool {
        match self.candidates(now).first() {
            Some((_, host)) => host.service_refusal().is_some(),
            None => self.hosts.iter().all(|host| host.silent_for(SILENCE, now)),
        }
    }

    fn nobody(&self) -> Failure {
        let all: Vec<String> = self.hosts.iter().map(|host| host.describe()).collect();
        let detail = format!("no server answers: {}", all.join("; "));
        Failure { kind: FailureKind::NotReached, detail }
    }
}

fn busy(host: &Host, code: u32, text: &str) -> Failure {
    let detail = format!("ldap server {}: code {code} {text}", host.label());
    Failure { kind: FailureKind::NotReached, detail: detail.trim_end().to_owned() }
}

/// How many attempts may be at work, and how many may wait (login.md Q-4).
#[derive(Debug)]
pub(super) struct Gate {
    slots: Arc<Semaphore>,
    newcomer_slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    newcomers_waiting: AtomicUsize,
    queue: usize,
    places: usize,
}

/// Leave to ask; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    _slot: OwnedSemaphorePermit,
    _newcomer_slot: Option<OwnedSemaphorePermit>,
}

impl Gate {
    pub(super) fn new(places: usize, queue: usize) -> Self {
        let places = places.max(1);
        Self {
            slots: Arc::new(Semaphore::new(places)),
            newcomer_slots: Arc::new(Semaphore::new((places / 2).max(1))),
            waiting: AtomicUsize::new(0),
            newcomers_waiting: AtomicUsize::new(0),
            queue,
            places,
        }
    }

    /// Waits for a place until the deadline. Cancel-safe.
    pub(super) async fn enter(&self, share: Share, deadline: Instant) -> Result<Ticket, Trouble> {
        let newcomer_slot = match share {
            Share::Background => return self.enter_if_idle(),
            Share::Known => None,
            Share::Newcomer => {
                let line = (&self.newcomers_waiting, self.queue / 2);
                Some(self.take(&self.newcomer_slots, line, deadline).await?)
            }
        };
        let slot = self.take(&self.slots, (&self.waiting, self.queue), deadline).await?;
        Ok(Ticket { _slot: slot, _newcomer_slot: newcomer_slot })
    }

    /// A place that nobody will miss: half of all stay free beside it.
    fn enter_if_idle(&self) -> Result<Ticket, Trouble> {
        let is_idle = self.slots.available_permits() > self.places / 2;
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) if is_idle => Ok(Ticket { _slot: slot, _newcomer_slot: None }),
            _ => Err(Trouble { why: Why::Busy, detail: "no connection to spare".into() }),
        }
    }

    async fn take(
        &self,
        slots: &Arc<Semaphore>,
        (waiting, limit): (&AtomicUsize, usize),
        deadline: Instant,
    ) -> Result<OwnedSemaphorePermit, Trouble> {
        if let Ok(permit) = Arc::clone(slots).try_acquire_owned() {
            return Ok(permit);
        }
        let _line = Line::join(waiting, limit).ok_or_else(|| Trouble {
            why: Why::Busy,
            detail: format!("{limit} attempts are waiting already"),
        })?;
        match timeout_at(deadline.into(), Arc::clone(slots).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Trouble {
                why: Why::Deadline,
                detail: "the time was up before a connection was free".into(),
            }),
        }
    }
}

/// A place in a waiting line.
struct Line<'a>(&'a AtomicUsize);

impl<'a> Line<'a> {
    fn join(waiting: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let line = Self(waiting);
        // Dropping the line counts down again.
        (before < limit).then_some(line)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn background_work_takes_a_place_only_while_half_of_all_are_free_and_never_waits() {
        let gate = Gate::new(4, 4);
        let enter = |share| gate.enter(share, clock::now() + SHORT);
        let _first = enter(Share::Background).await.unwrap();
        let _second = enter(Share::Background).await.unwrap();

        assert_eq!(enter(Share::Background).await.unwrap_err().why, Why::Busy);
        assert!(enter(Share::Known).await.is_ok());
    }

    #[tokio::test]
    async fn the_gate_keeps_half_of_its_places_and_queue_from_newcomers() {
        let gate = Gate::new(4, 4);
        let deadline = clock::now() + SHORT;
        let first = gate.enter(Share::Newcomer, deadline).await.unwrap();
        let _second = gate.enter(Share::Newcomer, deadline).await.unwrap();

        // Two wait; the third finds the newcomers' half of the queue full.
        let waits = || gate.enter(Share::Newcomer, clock::now() + SHORT);
        let (a, b, c) = tokio::join!(waits(), waits(), waits());
        assert_eq!(a.unwrap_err().why, Why::Deadline);
        assert_eq!(b.unwrap_err().why, Why::Deadline);
        assert_eq!(c.unwrap_err().why, Why::Busy);

        let _known = gate.enter(Share::Known, clock::now() + SHORT).await.unwrap();
        let _known = gate.enter(Share::Known, clock::now() + SHORT).await.unwrap();
        assert_eq!(waits().await.unwrap_err().why, Why::Deadline);
        drop(first);
        assert!(waits().await.is_ok());
    }
}
