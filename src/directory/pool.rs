//! The servers of one profile: connections for searching (shared, bound once as the service account) apart from
//! connections for checking passwords (one bind at a time each), failover in the order of preference, and the gate
//! that bounds how many attempts are at work or wait.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
    all: Lane,
    newcomers: Lane,
}

/// Leave to ask; gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    slot: Slot,
    newcomer: Option<Slot>,
}

impl Gate {
    pub(super) fn new(places: usize, queue: usize) -> Self {
        Self { all: Lane::new(places, queue), newcomers: Lane::new(places / 2, queue / 2) }
    }

    /// Waits for a place until the deadline. Cancel-safe.
    pub(super) async fn enter(&self, share: Share, deadline: Instant) -> Result<Ticket, Trouble> {
        let newcomer = match share {
            Share::Background => return self.enter_if_idle(),
            Share::Known => None,
            Share::Newcomer => Some(self.newcomers.take(deadline).await?),
        };
        let slot = self.all.take(deadline).await?;
        Ok(Ticket { slot, newcomer })
    }

    /// The directory has answered: what that took tells those who wait how long they will.
    pub(super) fn answered(&self, ticket: Ticket) {
        let now = clock::now();
        let held = |slot: &Slot| now.saturating_duration_since(slot.since);
        self.all.held.learn(held(&ticket.slot));
        if let Some(newcomer) = &ticket.newcomer {
            self.newcomers.held.learn(held(newcomer));
        }
    }

    /// How many may be at work or wait, to be answered in so much time. Who waits already takes nobody's room.
    pub(super) fn room(&self, time: Duration) -> usize {
        let line = self.all.line_within(time).max(self.all.waiting.load(Ordering::Relaxed));
        let newcomers = self.newcomers.waiting.load(Ordering::Relaxed);
        self.all.places.saturating_add(line).saturating_add(newcomers)
    }

    /// A place that nobody will miss: half of all stay free beside it.
    fn enter_if_idle(&self) -> Result<Ticket, Trouble> {
        let is_idle = self.all.free.available_permits() > self.all.places / 2;
        match self.all.take_free() {
            Some(slot) if is_idle => Ok(Ticket { slot, newcomer: None }),
            _ => Err(Trouble { why: Why::Busy, detail: "no connection to spare".into() }),
        }
    }
}

/// Places, and the line of those who wait for one, first come first served.
#[derive(Debug)]
struct Lane {
    free: Arc<Semaphore>,
    places: usize,
    waiting: AtomicUsize,
    queue: usize,
    held: Held,
}

impl Lane {
    fn new(places: usize, queue: usize) -> Self {
        let places = places.max(1);
        Self {
            free: Arc::new(Semaphore::new(places)),
            places,
            waiting: AtomicUsize::new(0),
            queue,
            held: Held::default(),
        }
    }

    /// Waits for a place until the deadline, and takes none without time left to use it. Whose turn would come too late
    /// hears so at once: first come, first served, and so in a crowd that is too large all would else be served with
    /// their last moment gone.
    async fn take(&self, deadline: Instant) -> Result<Slot, Trouble> {
        if let Some(slot) = self.take_free() {
            return Ok(slot);
        }
        let line = Line::join(&self.waiting, self.queue).ok_or_else(|| Trouble {
            why: Why::Busy,
            detail: format!("{} attempts are waiting already", self.queue),
        })?;
        let left = || deadline.saturating_duration_since(clock::now());
        if line.number > self.line_within(left()) {
            return Err(Trouble {
                why: Why::Busy,
                detail: format!(
                    "{} attempts are waiting, more than there is time for",
                    line.number
                ),
            });
        }
        match timeout_at(deadline.into(), Arc::clone(&self.free).acquire_owned()).await {
            // Nothing may have been known when the wait began.
            Ok(Ok(permit)) if left() >= self.held.average() => Ok(Slot::begin(permit)),
            _ => Err(Trouble {
                why: Why::Deadline,
                detail: "too little time was left before a connection was free".into(),
            }),
        }
    }

    /// How long the line may be for the last of it to be served in so much time.
    fn line_within(&self, time: Duration) -> usize {
        let average = self.held.average();
        if average.is_zero() {
            return self.queue;
        }
        // A quarter is left for what nobody can foresee.
        let wait = time.saturating_sub(average) * 3 / 4;
        let places = u128::try_from(self.places).unwrap_or(u128::MAX);
        let line = places.saturating_mul(wait.as_nanos()).div_ceil(average.as_nanos());
        usize::try_from(line).map_or(self.queue, |line| line.min(self.queue))
    }

    fn take_free(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        if self.free.available_permits() + 1 >= self.places {
            // Nobody else is here: what the last ones needed says nothing any more.
            self.held.forget();
        }
        Some(Slot::begin(permit))
    }
}

/// A place; dropping it gives it to whoever waits first.
#[derive(Debug)]
struct Slot {
    _permit: OwnedSemaphorePermit,
    since: Instant,
}

impl Slot {
    fn begin(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: permit, since: clock::now() }
    }
}

/// How long a place is held, as the last ones were; 0 ns: not known.
#[derive(Debug, Default)]
struct Held(AtomicU64);

impl Held {
    /// Of about so many.
    const LAST: u64 = 64;

    fn average(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn learn(&self, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let average = self.0.load(Ordering::Relaxed);
        let average = match average {
            0 => time,
            _ => average - average / Self::LAST + time / Self::LAST,
        };
        // What another learns at the same moment may be lost.
        self.0.store(average, Ordering::Relaxed);
    }

    fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A number in a waiting line: 1 is the first.
struct Line<'a> {
    number: usize,
    waiting: &'a AtomicUsize,
}

impl<'a> Line<'a> {
    fn join(waiting: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let line = Self { number: before.saturating_add(1), waiting };
        // Dropping the line counts down again.
        (before < limit).then_some(line)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

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

    /// A hundred come at once and work for a second each. The seconds that those have left who are served, and why others
    /// are not.
    async fn crowd(gate: &Arc<Gate>, time: Duration) -> (Vec<u64>, Vec<Why>) {
        let deadline = clock::now() + time;
        let mut all = JoinSet::new();
        for _ in 0..100 {
            let gate = Arc::clone(gate);
            all.spawn(async move {
                let ticket = gate.enter(Share::Known, deadline).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                gate.answered(ticket);
                Ok::<_, Trouble>(deadline.saturating_duration_since(clock::now()).as_secs())
            });
        }
        let (mut left, mut why) = (Vec::new(), Vec::new());
        for result in all.join_all().await {
            match result {
                Ok(time) => left.push(time),
                Err(trouble) => why.push(trouble.why),
            }
        }
        (left, why)
    }

    #[tokio::test(start_paused = true)]
    async fn whose_turn_comes_too_late_hears_so_at_once() {
        let gate = Arc::new(Gate::new(2, 1000));
        // Two are at work, and what is known of the last ones is that they took a second each.
        let busy = [gate.all.take_free().unwrap(), gate.all.take_free().unwrap()];
        gate.all.held.learn(Duration::from_secs(1));
        let begun = clock::now();
        let ((left, why), ()) = tokio::join!(crowd(&gate, Duration::from_secs(6)), async {
            tokio::time::sleep(Duration::from_millis(900)).await;
            drop(busy);
        });

        // Two places for three quarters of five seconds; the last begin at 3.9 s.
        assert_eq!(left, [4, 4, 3, 3, 2, 2, 1, 1]);
        assert_eq!(why, vec![Why::Busy; 92]);
        assert_eq!(clock::now() - begun, Duration::from_millis(4900));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_begins_with_less_time_than_an_answer_takes() {
        let gate = Arc::new(Gate::new(2, 1000));

        // All of them join the line before the first answer shows how long it takes.
        let (left, why) = crowd(&gate, Duration::from_millis(5500)).await;

        assert_eq!(left, [4, 4, 3, 3, 2, 2, 1, 1, 0, 0]);
        assert_eq!(why, vec![Why::Deadline; 90]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_answers_tell_how_long_one_takes() {
        let gate = Gate::new(2, 2);
        let enter = || gate.enter(Share::Newcomer, clock::now() + SHORT);
        let known = || [&gate.newcomers, &gate.all].map(|lane| lane.held.average().as_secs());
        let _other = gate.enter(Share::Known, clock::now() + SHORT).await.unwrap();

        let ticket = enter().await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(ticket);
        assert_eq!(known(), [0, 0]);

        let ticket = enter().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        gate.answered(ticket);
        assert_eq!(known(), [3, 3]);
    }

    #[test]
    fn there_is_room_for_as_many_as_are_served_in_time_and_the_queue_holds() {
        let gate = Gate::new(10, 1000);
        let room = |seconds| gate.room(Duration::from_secs(seconds));
        assert_eq!(room(8), 1010, "nothing is known");
        gate.all.held.learn(Duration::from_millis(100));
        assert_eq!([room(8), room(4), room(80)], [603, 303, 1010]);

        // Nobody need wait for an answer that would come too late.
        gate.all.held.forget();
        gate.all.held.learn(Duration::from_secs(10));
        assert_eq!([room(20), room(10), room(0)], [18, 10, 10]);

        // A directory that became slow while many waited does not take the others' room.
        let lines = [(&gate.all, 100), (&gate.newcomers, 50)];
        let _waiting: Vec<_> = lines
            .iter()
            .flat_map(|(lane, many)| (0..*many).map(|_| Line::join(&lane.waiting, 1000).unwrap()))
            .collect();
        assert_eq!(room(8), 160);
    }

    #[test]
    fn what_is_known_is_how_the_last_ones_were() {
        let held = Held::default();
        held.learn(Duration::from_secs(5));
        assert_eq!(held.average(), Duration::from_secs(5));

        (0..500).for_each(|_| held.learn(Duration::from_millis(10)));

        let average = held.average();
        assert!(average < Duration::from_millis(13), "{average:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_gate_forgets_how_slow_the_last_ones_were() {
        let lane = Arc::new(Lane::new(1, 1000));
        lane.held.learn(Duration::from_secs(60));

        let place = lane.take_free().unwrap();
        let deadline = clock::now() + Duration::from_secs(6);
        let (waited, ()) = tokio::join!(lane.take(deadline), async { drop(place) });

        assert!(waited.is_ok(), "{waited:?}");
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
