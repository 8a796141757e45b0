//! Tallies by key, in bounded memory. A key is a keyed hash, so nobody can choose where it lies; each belongs to one set
//! of eight places. When its set is full the least useful gives way: whose window is over, else the smallest count, of
//! those the oldest. So a flood of keys that are seen once pushes out other keys that were seen once, and a key that
//! matters only if the flood makes eight more of its size in that very set.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Time;
use super::tally::{BUCKETS, Item, Room, Tally, is_over};

const WAYS: usize = 8;

/// Bytes beside the places themselves, for each table: what its sketches may take.
const HEAP: usize = 8 << 20;

/// Who is counted: a keyed hash. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(pub(super) u64);

/// The tallies of one rule.
#[derive(Debug)]
pub(super) struct Table<T> {
    sets: Box<[Mutex<Set<T>>]>,
    /// Milliseconds.
    bucket: u64,
    keys: AtomicUsize,
    evicted: AtomicUsize,
    /// Sets that were needed so far.
    used_sets: AtomicUsize,
    /// Bytes beside the sets.
    heap: AtomicUsize,
    /// Until then some key may be at its limit; after that nobody needs to be looked up. Milliseconds.
    hot_until: AtomicU64,
}

/// Empty until its first key comes.
type Set<T> = Option<Box<[Place<T>; WAYS]>>;

#[derive(Debug, Default)]
struct Place<T> {
    key: u64,
    tally: T,
}

impl<T: Tally> Table<T> {
    /// A table for about so many keys, whose window is so many milliseconds.
    pub(super) fn new(keys: usize, window: u64) -> Self {
        let sets = (keys / WAYS).max(1).next_power_of_two();
        Self {
            sets: (0..sets).map(|_| Mutex::new(None)).collect(),
            bucket: (window / u64::from(BUCKETS)).max(1),
            keys: AtomicUsize::new(0),
            evicted: AtomicUsize::new(0),
            used_sets: AtomicUsize::new(0),
            heap: AtomicUsize::new(0),
            hot_until: AtomicU64::new(0),
        }
    }

    fn bucket(&self, now: Time) -> u32 {
        u32::try_from(now.0 / self.bucket).unwrap_or(u32::MAX)
    }

    fn with_set<R>(&self, key: Key, work: impl FnOnce(&mut Set<T>) -> R) -> Option<R> {
        let mask = u64::try_from(self.sets.len()).unwrap_or(1) - 1;
        // Some bits pick the set; all of them name the key in it.
        let set = self.sets.get(usize::try_from((key.0 >> 8) & mask).unwrap_or_default())?;
        Some(work(&mut set.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Counts one for a key; what that makes. From `limit` on the table is hot for a window.
    pub(super) fn add(&self, key: Key, item: Option<Item>, limit: u32, now: Time) -> u32 {
        let at = self.bucket(now);
        let total = self.with_set(key, |set| {
            let set = set.get_or_insert_with(|| {
                self.used_sets.fetch_add(1, Ordering::Relaxed);
                Box::default()
            });
            self.reclaim(set, at);
            let place = match set.iter_mut().position(|place| place.key == key.0) {
                Some(index) => set.get_mut(index),
                None => {
                    let index = self.least_useful(set, at);
                    let place = set.get_mut(index);
                    place.map(|place| {
                        self.heap.fetch_sub(place.tally.heap(), Ordering::Relaxed);
                        *place = Place { key: key.0, tally: T::default() };
                        place
                    })
                }
            };
            let is_full = self.heap.load(Ordering::Relaxed) >= HEAP;
            place.map_or(0, |place| {
                let before = place.tally.heap();
                place.tally.add(item, at, if is_full { Room::Full } else { Room::Left });
                self.heap.fetch_add(place.tally.heap(), Ordering::Relaxed);
                self.heap.fetch_sub(before, Ordering::Relaxed);
                place.tally.total(at)
            })
        });
        let total = total.unwrap_or(0);
        if total >= limit {
            let until = now.0.saturating_add(self.bucket * (u64::from(BUCKETS) + 1));
            self.hot_until.fetch_max(until, Ordering::Relaxed);
        }
        total
    }

    /// Gives back what the set's places hold beside themselves and no longer count.
    fn reclaim(&self, set: &mut [Place<T>; WAYS], at: u32) {
        for place in set {
            let heap = place.tally.heap();
            if heap > 0 && is_over(place.tally.last(), at) {
                place.tally = T::default();
                self.heap.fetch_sub(heap, Ordering::Relaxed);
            }
        }
    }

    fn least_useful(&self, set: &[Place<T>; WAYS], at: u32) -> usize {
        let worth = |place: &Place<T>| match place.key {
            0 => (0, 0, 0),
            _ if is_over(place.tally.last(), at) => (1, 0, place.tally.last()),
            _ => (2, place.tally.total(at), place.tally.last()),
        };
        let least = set.iter().map(worth).enumerate().min_by_key(|(_, worth)| *worth);
        let (index, (kind, ..)) = least.unwrap_or_default();
        match kind {
            0 => self.keys.fetch_add(1, Ordering::Relaxed),
            1 => 0,
            _ => self.evicted.fetch_add(1, Ordering::Relaxed),
        };
        index
    }

    /// Counts one for a key unless its present bucket already has one; whether it did.
    pub(super) fn renew(&self, key: Key, now: Time) -> bool {
        let at = self.bucket(now);
        let is_news = self.look(key, |tally| tally.last() < at).unwrap_or(true);
        if is_news {
            self.add(key, None, u32::MAX, now);
        }
        is_news
    }

    /// Whether any key may be at its limit.
    pub(super) fn is_hot(&self, now: Time) -> bool {
        now.0 <= self.hot_until.load(Ordering::Relaxed)
    }

    /// Whether nobody was ever counted.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.load(Ordering::Relaxed) == 0
    }

    /// What is counted for a key.
    pub(super) fn total(&self, key: Key, now: Time) -> u32 {
        let at = self.bucket(now);
        self.look(key, |tally| tally.total(at)).unwrap_or(0)
    }

    fn look<R>(&self, key: Key, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.with_set(key, |set| {
            let place = set.as_mut()?.iter_mut().find(|place| place.key == key.0)?;
            Some(work(&mut place.tally))
        })?
    }

    /// Takes one back for a key.
    pub(super) fn take_back(&self, key: Key, now: Time) {
        let at = self.bucket(now);
        self.look(key, |tally| tally.take_back(at));
    }

    /// Forgets a key; whether anything was counted.
    pub(super) fn clear(&self, key: Key, now: Time) -> bool {
        let at = self.bucket(now);
        let cleared = self.look(key, |tally| {
            self.heap.fetch_sub(tally.heap(), Ordering::Relaxed);
            std::mem::take(tally).total(at) > 0
        });
        cleared.unwrap_or(false)
    }

    /// What all of it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.sets.len() * size_of::<Mutex<Set<T>>>()
            + self.used_sets.load(Ordering::Relaxed) * size_of::<[Place<T>; WAYS]>()
            + self.heap.load(Ordering::Relaxed)
    }

    /// Keys that have a place, and how many were pushed out of theirs while they counted.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.keys.load(Ordering::Relaxed), self.evicted.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tally::{Distinct, Times, mix};
    use super::*;

    const NOW: Time = Time(1_000_000);

    fn key(number: u64) -> Key {
        Key(mix(number) | 1)
    }

    fn table() -> Table<Times> {
        Table::new(1024, 80_000)
    }

    #[test]
    fn keys_are_counted_apart_within_their_window() {
        let table = table();
        assert!(table.is_empty());
        for _ in 0..3 {
            table.add(key(1), None, 100, NOW);
        }
        assert_eq!(table.add(key(2), None, 100, NOW), 1);

        assert_eq!(table.total(key(1), NOW), 3);
        assert_eq!(table.total(key(1), Time(NOW.0 + 79_000)), 3);
        assert_eq!(table.total(key(1), Time(NOW.0 + 90_000)), 0);
        assert_eq!(table.total(key(3), NOW), 0);
        assert!(table.clear(key(1), NOW));
        assert!(!table.clear(key(1), NOW));
        assert_eq!(table.total(key(1), NOW), 0);
    }

    #[test]
    fn a_table_is_hot_while_a_key_may_be_at_its_limit() {
        let table = table();
        table.add(key(1), None, 2, NOW);
        assert!(!table.is_hot(NOW));

        table.add(key(1), None, 2, NOW);

        assert!(table.is_hot(NOW));
        assert!(table.is_hot(Time(NOW.0 + 80_000)));
        assert!(!table.is_hot(Time(NOW.0 + 100_000)));
    }

    #[test]
    fn a_flood_of_keys_is_bounded_and_pushes_out_nobody_who_matters() {
        let table = table();
        for _ in 0..5 {
            table.add(key(0), None, 100, NOW);
        }

        for number in 1..200_000 {
            table.add(key(number), None, 100, NOW);
        }

        let (keys, evicted) = table.size();
        assert_eq!(keys, 1024);
        assert_eq!(evicted, 200_000 - 1024);
        assert_eq!(table.total(key(0), NOW), 5);
    }

    #[test]
    fn whose_window_is_over_gives_way_first() {
        let table: Table<Times> = Table::new(WAYS, 80_000);
        for number in 0..8 {
            for _ in 0..=number {
                table.add(key(number), None, 100, NOW);
            }
        }
        let later = Time(NOW.0 + 60_000);
        for number in 0..4 {
            table.add(key(number), None, 100, later);
        }
        let much_later = Time(NOW.0 + 120_000);

        for number in 8..12 {
            table.add(key(number), None, 100, much_later);
        }

        assert_eq!(table.size(), (8, 0));
        assert!((0..4).all(|number| table.total(key(number), much_later) > 0));
        assert!((4..8).all(|number| table.total(key(number), much_later) == 0));
    }

    #[test]
    fn what_a_key_held_is_given_back_when_somebody_comes_by_after_its_window() {
        let table: Table<Distinct> = Table::new(WAYS, 80_000);
        for item in 0..100 {
            table.add(key(1), Some(item), 1000, NOW);
        }
        let with_sketch = table.bytes();

        table.add(key(2), Some(1), 1000, Time(NOW.0 + 200_000));

        assert!(table.bytes() + 1000 < with_sketch, "{} {with_sketch}", table.bytes());
        assert_eq!(table.total(key(1), Time(NOW.0 + 200_000)), 0);
    }

    #[test]
    fn what_was_taken_back_counts_no_more() {
        let table: Table<Distinct> = Table::new(1024, 80_000);
        table.add(key(1), Some(1), 100, NOW);
        table.add(key(1), Some(2), 100, NOW);

        table.take_back(key(1), NOW);
        table.take_back(key(2), NOW);

        assert_eq!(table.total(key(1), NOW), 1);
    }
}
