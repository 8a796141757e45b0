//! Equal attempts in flight share one question (login.md M-6), and its trouble too (M-8).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::memory::Digest;
use super::{Later, Reason, Refused, Source};
use crate::cache::Table;
use crate::store::Mailbox;

/// What a question came to, before the service is looked at.
#[derive(Clone, Debug)]
pub(super) enum Settled {
    /// The password is proven and there is a mailbox.
    Proven { mailbox: Arc<Mailbox>, source: Source, changes: Option<Arc<str>> },
    /// Refused. `asked_for` is the protocol of the attempt that asked: it decides whether a mailbox may be made.
    Refused { refused: Refused, asked_for: Option<&'static str> },
    /// Nobody can say now.
    Later(Later),
}

impl Settled {
    /// The same for those who only waited for it: what it changed is told once.
    pub(super) fn without_changes(mut self) -> Self {
        if let Self::Proven { changes, .. } = &mut self {
            *changes = None;
        }
        self
    }

    /// The same with what an administrator must know beside it.
    pub(super) fn because(mut self, why: &str) -> Self {
        match &mut self {
            Self::Refused { refused: Refused { detail, .. }, .. }
            | Self::Later(Later { detail, .. }) => *detail = Some(why.into()),
            Self::Proven { .. } => {}
        }
        self
    }
}

/// A name, a keyed digest of its password, and the configuration: who comes after a reload is not answered by the one before.
type Key = (Box<str>, Digest, u64);

/// A question's outcome, once it is there.
pub(super) type Outcome = watch::Receiver<Option<Settled>>;

/// All questions under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Flights(Arc<Mutex<Table<Key, Outcome>>>);

/// The place of whoever asks: others wait for its word. Dropped without one (a panic), they hear "internal".
pub(super) struct Lead {
    flights: Flights,
    key: Key,
    word: watch::Sender<Option<Settled>>,
}

impl Flights {
    /// Joins the question under way, or opens one and says so.
    pub(super) fn join(
        &self,
        name: &str,
        digest: Digest,
        generation: u64,
    ) -> (Outcome, Option<Lead>) {
        let key = (name.into(), digest, generation);
        let mut flights = self.lock();
        if let Some(outcome) = flights.get(&key) {
            return (outcome.clone(), None);
        }
        let (word, outcome) = watch::channel(None);
        flights.insert(key.clone(), outcome.clone());
        (outcome, Some(Lead { flights: self.clone(), key, word }))
    }

    /// Whether this question is under way.
    pub(super) fn is_asked(&self, name: &str, digest: Digest, generation: u64) -> bool {
        self.lock().contains_key(&(name.into(), digest, generation))
    }

    fn lock(&self) -> MutexGuard<'_, Table<Key, Outcome>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lead {
    /// Gives the word to all who wait.
    pub(super) fn settle(self, settled: Settled) {
        self.word.send_replace(Some(settled));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

/// Waits for a question's outcome.
pub(super) async fn wait(mut outcome: Outcome) -> Settled {
    match outcome.wait_for(Option::is_some).await {
        Ok(settled) => settled.clone().unwrap_or(Settled::Later(Later::new(Reason::Internal))),
        // Who asked is gone without a word.
        Err(_) => Settled::Later(Later::new(Reason::Internal)),
    }
}
