//! What is kept of things that can be asked about again: a map bounded by bytes. What was not used for longest goes first,
//! and a flood of things that are used once pushes out nothing that is used again (S3-FIFO). Times are kept in the values
//! and judged by their owner.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use foldhash::quality::RandomState;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

/// A table that a login looks into: the standard library's hash takes several times as long for a name.
pub type Table<K, V> = HashMap<K, V, RandomState>;

/// Takes so many entries out of a full map, those of the oldest times first, and whoever has the same time as the last of
/// them. Entries without a time stay.
pub(crate) fn forget_oldest<K, V, S, T: Copy + Ord>(
    map: &mut HashMap<K, V, S>,
    surplus: usize,
    time: impl Fn(&V) -> Option<T>,
) {
    if surplus == 0 {
        return;
    }
    let mut times: Vec<T> = map.values().filter_map(&time).collect();
    let Some(last) = times.len().min(surplus).checked_sub(1) else { return };
    let latest_to_go = *times.select_nth_unstable(last).1;
    map.retain(|_, value| time(value).is_none_or(|time| time > latest_to_go));
}

/// The map. Strangers may choose its keys: the hasher has a seed of this process and its full quality.
pub(crate) struct Bounded<K, V>(Cache<K, Weighed<V>, Bytes, RandomState>);

/// A value with what it and its key weighed when it was put in: the library wants a weight that stays.
#[derive(Clone, Debug)]
struct Weighed<V> {
    value: V,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bytes;

impl<K, V> Weighter<K, Weighed<V>> for Bytes {
    fn weight(&self, _: &K, weighed: &Weighed<V>) -> u64 {
        weighed.bytes
    }
}

impl<K: Eq + Hash, V: Clone> Bounded<K, V> {
    /// An empty map of so many bytes, for entries of at least `least` bytes.
    pub(crate) fn new(bytes: u64, least: usize) -> Self {
        let entries = usize::try_from(bytes).unwrap_or(usize::MAX) / least.max(1);
        Self(Cache::with(
            entries,
            bytes,
            Bytes,
            RandomState::default(),
            DefaultLifecycle::default(),
        ))
    }

    /// The value of a key. Waits for nobody but a thread that changes the map this very moment.
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.0.get(key).map(|weighed| weighed.value)
    }

    /// Puts a value in, in the place of an earlier one; key and value take so many bytes.
    pub(crate) fn insert(&self, key: K, value: V, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.0.insert(key, Weighed { value, bytes });
    }

    /// Takes a value out.
    pub(crate) fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.0.remove(key).map(|(_, weighed)| weighed.value)
    }

    /// Takes everything out.
    pub(crate) fn clear(&self) {
        self.0.clear();
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What they weigh, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.weight()
    }
}
