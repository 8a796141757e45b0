//! What a transaction touched, told to whoever keeps copies.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::identity::Address;

/// Hears of changes.
type Listener = Box<dyn Fn(&Touched) + Send + Sync>;

/// Who hears of changes, and how many there were. Clones share both.
#[derive(Clone, Default)]
pub(crate) struct Changes(Arc<Inner>);

#[derive(Default)]
struct Inner {
    edition: AtomicU64,
    listener: OnceLock<Listener>,
}

/// What may be different since a transaction.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Addresses that came to or went from a mailbox.
    pub(crate) addresses: Vec<Address>,
    /// Mailboxes, by the store's own number.
    pub(crate) mailboxes: Vec<i64>,
}

impl Changes {
    /// Lets `listener` hear of every change from now on. There is one; a second is not heard.
    pub(crate) fn listen(&self, listener: impl Fn(&Touched) + Send + Sync + 'static) {
        // A daemon sets one up, once.
        _ = self.0.listener.set(Box::new(listener));
    }

    /// How many changes there were: what was read before this moved may be old.
    pub(crate) fn edition(&self) -> u64 {
        self.0.edition.load(Ordering::Acquire)
    }

    /// Tells of a change when dropped, whatever became of the commit meanwhile: one that was cut off may have worked.
    pub(super) fn tell_later(&self, touched: Touched) -> Telling {
        Telling { changes: self.clone(), touched }
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Changes").field(&self.edition()).finish()
    }
}

/// A change that is being committed.
pub(super) struct Telling {
    changes: Changes,
    touched: Touched,
}

impl Drop for Telling {
    fn drop(&mut self) {
        let inner = &self.changes.0;
        inner.edition.fetch_add(1, Ordering::AcqRel);
        if let Some(listener) = inner.listener.get() {
            listener(&self.touched);
        }
    }
}
