//! How many questions may be under way at all (login.md Q-4). Each directory bounds its own; this bounds what waits for the
//! store before it is known which directory to ask, so that a morning storm is told "later" at once and not that the store
//! is gone; and no more of a crowd are let in than the directories have room and time for, for each costs a look into the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::gate::Standing;
use crate::config::Config;
use crate::config::directory::Directory;

/// Questions under way where the directories' queues are short. The store answers some thousands in a second.
const LEAST_PLACES: usize = 4096;

/// How many places there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    all: usize,
    /// Of them for names that memory does not know.
    strangers: usize,
}

impl Places {
    /// All that there can ever be. Half of them are room for all that the directories' queues may hold: after a restart
    /// nobody is known.
    pub(super) fn all(config: &Config) -> usize {
        // Beside the queue names that are new to the store have a line half as long.
        let room = |it: &Directory| it.queue + it.queue / 2 + it.bind_connections;
        LEAST_PLACES.max(2 * config.directory.values().map(room).sum::<usize>())
    }

    /// `room`: how many the directories can answer in time, as things are now.
    pub(super) fn new(all: usize, room: usize) -> Self {
        Self { all, strangers: room.clamp(LEAST_PLACES / 2, all / 2) }
    }

    const fn of(self, standing: Standing) -> usize {
        match standing {
            Standing::Known => self.all,
            Standing::Stranger => self.strangers,
        }
    }
}

/// The places that are taken.
#[derive(Debug, Default)]
pub(super) struct Admission {
    all: Arc<AtomicUsize>,
    strangers: Arc<AtomicUsize>,
}

/// A question's place; dropping it gives it to another.
#[derive(Debug)]
pub(super) struct Admitted {
    _place: Place,
    _stranger: Option<Place>,
}

impl Admission {
    /// A place, or none: nobody waits for one.
    pub(super) fn enter(&self, standing: Standing, places: Places) -> Option<Admitted> {
        let stranger = match standing {
            Standing::Known => None,
            Standing::Stranger => Some(Place::take(&self.strangers, places.of(standing))?),
        };
        let place = Place::take(&self.all, places.of(Standing::Known))?;
        Some(Admitted { _place: place, _stranger: stranger })
    }

    /// Whether there is no place now.
    pub(super) fn is_full(&self, standing: Standing, places: Places) -> bool {
        let is_full = |taken: &AtomicUsize, limit| taken.load(Ordering::Relaxed) >= limit;
        is_full(&self.all, places.of(Standing::Known))
            || standing == Standing::Stranger && is_full(&self.strangers, places.of(standing))
    }
}

#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let before = taken.fetch_add(1, Ordering::Relaxed);
        let place = Self(Arc::clone(taken));
        // Dropping it counts down again.
        (before < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_fill_half_of_the_places_and_leave_them_again() {
        let (admission, places) = (Admission::default(), Places { all: 4, strangers: 2 });
        let enter = |standing| admission.enter(standing, places);
        let strangers: Vec<_> = (0..3).map_while(|_| enter(Standing::Stranger)).collect();
        assert_eq!(strangers.len(), 2);
        assert!(admission.is_full(Standing::Stranger, places));
        assert!(!admission.is_full(Standing::Known, places));
        let known: Vec<_> = (0..3).map_while(|_| enter(Standing::Known)).collect();
        assert_eq!(known.len(), 2);
        assert!(admission.is_full(Standing::Known, places));

        drop(strangers);

        assert!(enter(Standing::Stranger).is_some());
    }

    #[test]
    fn strangers_may_fill_what_the_directories_have_room_for() {
        let all = |queue| {
            let directory = Directory { queue, bind_connections: 32, ..Directory::default() };
            let directory = [("corp".to_owned(), directory)].into();
            Places::all(&Config { directory, ..Config::default() })
        };
        let strangers = |all, room| Places::new(all, room).of(Standing::Stranger);
        assert_eq!([all(256), all(10_000)], [4096, 30_064]);
        assert_eq!(strangers(4096, 288), 2048);
        assert_eq!([300, 6000, 15_032].map(|room| strangers(30_064, room)), [2048, 6000, 15_032]);
    }
}
