//! `[shared]`: what nodes tell each other through a Valkey or Redis that all of them reach (docs/nodes.md).
//!
//! Nothing here is in the way of a login: what is learned goes to the [`Outbox`], which never waits. Two tasks, each with a
//! connection of its own, do the rest: the [`keeper`] writes what waits and keeps the lists in step, the [`reader`] hears what
//! others write and counts it. While the server is away each node counts alone.

mod codec;
mod keeper;
mod link;
mod outbox;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lists::ListBook;
use crate::config::Config;
use crate::metrics::{Metrics, Up};
use crate::throttle::{SendingLimits, Throttle};

use link::{Server, Trouble};
use outbox::Stream;

pub(super) use outbox::{News, Outbox};

/// After a failure it is tried again after this long, and after twice as long each time, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Changed entries of lists that are waited for one by one; more, and all lists are read.
const MAX_NOTICED: usize = 1024;

/// What the exchange counts into.
pub(super) struct Counts {
    pub(super) throttle: Arc<Throttle>,
    pub(super) sending: Arc<SendingLimits>,
    pub(super) lists: Arc<ListBook>,
}

/// The exchange with other nodes.
pub(super) struct Exchange {
    server: Server,
    counts: Counts,
    outbox: Arc<Outbox>,
    health: Health,
    noticed: Mutex<Noticed>,
    metrics: Metrics,
    /// This process, among those that write.
    node: String,
    /// How far back a process reads that has just begun.
    reach: [Duration; Stream::COUNT],
    /// What hashes the guesses as long as nodes have agreed on nothing else.
    guess_key: [u8; 32],
}

/// Entries of lists that changed at other nodes.
#[derive(Default)]
struct Noticed {
    fields: BTreeSet<Box<str>>,
    /// So many that all are to be read.
    all: bool,
}

impl Exchange {
    /// Makes the exchange ready, and lets it hear of what is learned from now on. `None`: this node is alone.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(super) fn new(
        config: &Config,
        outbox: Option<&Arc<Outbox>>,
        counts: Counts,
        metrics: &Metrics,
        guess_key: [u8; 32],
    ) -> std::io::Result<Option<Arc<Self>>> {
        let Some((server, outbox)) = Server::new(&config.shared).zip(outbox) else {
            return Ok(None);
        };
        let mut node = [0; 8];
        getrandom::fill(&mut node).map_err(std::io::Error::from)?;
        let hearing = Arc::clone(outbox);
        counts.throttle.listen(Arc::new(move |event| hearing.push(News::Attempt(event))));
        let hearing = Arc::clone(outbox);
        counts.sending.listen(Arc::new(move |mailbox| hearing.push(News::Sent(mailbox.into()))));
        Ok(Some(Arc::new(Self {
            health: Health::new(server.address(), metrics.clone()),
            server,
            counts,
            outbox: Arc::clone(outbox),
            noticed: Mutex::default(),
            metrics: metrics.clone(),
            node: hexadecimal(&node),
            reach: reach(config),
            guess_key,
        })))
    }

    /// Begins. At `ending` what still waits is sent.
    pub(super) fn run(self: Arc<Self>, tracker: &TaskTracker, ending: &CancellationToken) {
        tracker.spawn(keeper::run(Arc::clone(&self), ending.clone()));
        tracker.spawn(reader::run(self, ending.clone()));
    }

    fn notice(&self, field: Box<str>) {
        let mut noticed = self.noticed();
        if noticed.fields.len() >= MAX_NOTICED {
            noticed.all = true;
        } else {
            noticed.fields.insert(field);
        }
    }

    fn noticed(&self) -> MutexGuard<'_, Noticed> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The spans of time over which messages are counted.
pub(super) fn sending_spans(config: &Config) -> impl Iterator<Item = Duration> {
    config.template.values().filter_map(|template| Some(template.send_limit.0?.window.0))
}

/// What is older counts nowhere.
fn reach(config: &Config) -> [Duration; Stream::COUNT] {
    let longest = |spans: &mut dyn Iterator<Item = Duration>| {
        let longest = spans.max().unwrap_or_default();
        // A count may stay an eighth longer than its window.
        longest.saturating_add(longest / 8)
    };
    let rules = config.throttle.rule.values().filter(|rule| rule.limit > 0);
    let mut rules = rules.map(|rule| rule.window.0.max(rule.hold.0));
    Stream::ALL.map(|stream| match stream {
        Stream::Guesses => longest(&mut rules),
        Stream::Logins => longest(&mut std::iter::once(config.throttle.history.0)),
        Stream::Sent => longest(&mut sending_spans(config)),
        // All lists are read at the start; what changes while that goes on must not be missed.
        Stream::Lists => Duration::from_secs(60),
    })
}

/// Which of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Keeper,
    Reader,
}

/// How the exchange goes. Said once when it breaks off and once when it goes on.
struct Health {
    address: String,
    metrics: Metrics,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keeper: Option<Up>,
    reader: Option<Up>,
}

impl State {
    fn side(&mut self, side: Side) -> &mut Option<Up> {
        match side {
            Side::Keeper => &mut self.keeper,
            Side::Reader => &mut self.reader,
        }
    }

    fn sides(&self) -> [Option<Up>; 2] {
        [self.keeper, self.reader]
    }
}

impl Health {
    fn new(address: String, metrics: Metrics) -> Self {
        Self { address, metrics, state: Mutex::default() }
    }

    /// One side works.
    fn up(&self, side: Side) {
        let mut state = self.state();
        let was_up = state.side(side).replace(Up::Yes) == Some(Up::Yes);
        if !was_up && state.sides() == [Some(Up::Yes); 2] {
            self.metrics.shared_up(Up::Yes);
            tracing::info!(
                shared.server = self.address,
                "the shared server answers: what other nodes count is counted here too"
            );
        }
    }

    /// One side does not.
    fn down(&self, side: Side, trouble: &Trouble) {
        let mut state = self.state();
        let is_known = state.sides().contains(&Some(Up::No));
        *state.side(side) = Some(Up::No);
        self.metrics.shared_up(Up::No);
        if is_known {
            tracing::debug!(shared.server = self.address, ?side, %trouble, "still not");
            return;
        }
        match trouble {
            // Nobody but an administrator can end this.
            Trouble::Refused(_) => tracing::error!(
                shared.server = self.address, error = %trouble,
                "the shared server is of no use, this node counts alone"
            ),
            _ => tracing::warn!(
                shared.server = self.address, error = %trouble,
                "the shared server does not answer, this node counts alone"
            ),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time until the next try.
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = pause.saturating_mul(2).min(LONGEST_PAUSE);
        pause
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
