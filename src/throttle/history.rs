//! Who has got in from where: a source with a good history is treated milder than a stranger. Only an accepted password
//! makes an entry, so whoever guesses cannot fill this.

use super::Time;
use super::table::{Key, Table};
use super::tally::{BUCKETS, Distinct, Item, Room, Tally};

/// Logins with their nets that are remembered; 16 bytes each.
const PAIRS: usize = 1 << 20;

/// Addresses and nets whose people are counted.
const SOURCES: usize = 1 << 16;

/// The good logins of a while.
#[derive(Debug)]
pub(super) struct History {
    /// Milliseconds.
    window: u64,
    /// By login and net.
    pairs: Table<Seen>,
    /// By address, and by net: how many different people.
    people: Table<Distinct>,
}

/// Not more than: when last.
#[derive(Debug, Default)]
struct Seen {
    last: u32,
}

impl Tally for Seen {
    fn add(&mut self, _: Option<Item>, at: u32, _: Room) {
        self.last = at.max(self.last).max(1);
    }

    fn total(&self, at: u32) -> u32 {
        u32::from(self.last > 0 && at.saturating_sub(self.last) <= BUCKETS)
    }

    fn take_back(&mut self, _: u32) {
        self.last = 0;
    }

    fn last(&self) -> u32 {
        self.last
    }
}

impl History {
    /// An empty history of so many milliseconds.
    pub(super) fn new(window: u64) -> Self {
        Self { window, pairs: Table::new(PAIRS, window), people: Table::new(SOURCES, window) }
    }

    /// How far back it goes, in milliseconds.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// Whether this login got in from this net.
    pub(super) fn knows(&self, pair: Key, now: Time) -> bool {
        self.pairs.total(pair, now) > 0
    }

    /// Somebody got in; whether that was news: nothing else is to be noted if it was not.
    pub(super) fn note(&self, pair: Key, now: Time) -> bool {
        self.pairs.renew(pair, now)
    }

    /// They came from there.
    pub(super) fn note_person(&self, source: Key, person: Item, now: Time) {
        self.people.add(source, Some(person), u32::MAX, now);
    }

    /// What it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.pairs.bytes() + self.people.bytes()
    }

    /// How many people got in from there.
    pub(super) fn people(&self, source: Key, now: Time) -> u32 {
        self.people.total(source, now)
    }
}
