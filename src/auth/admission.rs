//! How many questions may be under way at all (login.md Q-4). Each directory bounds its own; this bounds what waits for the
//! store before it is known which directory to ask, so that a morning storm is told "later" at once and not that the store
//! is gone.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::gate::Standing;

/// Questions under way. The store answers some thousands in a second.
const PLACES: usize = 4096;

/// The places.
#[derive(Debug)]
pub(super) struct Admission {
    all: Arc<Semaphore>,
    /// Names that memory does not know have half of them.
    strangers: Arc<Semaphore>,
}

/// A question's place; dropping it gives it to another.
#[derive(Debug)]
pub(super) struct Admitted {
    _place: OwnedSemaphorePermit,
    _stranger: Option<OwnedSemaphorePermit>,
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(PLACES)
    }
}

impl Admission {
    fn new(places: usize) -> Self {
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Self { all: semaphore(places), strangers: semaphore(places / 2) }
    }

    /// A place, or none: nobody waits for one.
    pub(super) fn enter(&self, standing: Standing) -> Option<Admitted> {
        let stranger = match standing {
            Standing::Known => None,
            Standing::Stranger => Some(Arc::clone(&self.strangers).try_acquire_owned().ok()?),
        };
        let place = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(Admitted { _place: place, _stranger: stranger })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_fill_half_of_the_places_and_leave_them_again() {
        let admission = Admission::new(4);
        let strangers: Vec<_> = (0..3).map_while(|_| admission.enter(Standing::Stranger)).collect();
        assert_eq!(strangers.len(), 2);
        let known: Vec<_> = (0..3).map_while(|_| admission.enter(Standing::Known)).collect();
        assert_eq!(known.len(), 2);

        drop(strangers);

        assert!(admission.enter(Standing::Stranger).is_some());
    }
}
