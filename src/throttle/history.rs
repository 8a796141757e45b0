//! Who has got in from where: a source with a good history is treated milder than a stranger. Only an accepted password
//! makes an entry, so whoever guesses cannot fill this.

use super::Time;
use super::table::{Key, Table};
use super::tally::{BUCKETS, Distinct, Item, Room, Tally};

/// Logins with their nets that are remembered, for each key of a rule: people come from more than one net, and far more of
/// them get in than guess. 16 bytes each.
const PAIRS_PER_KEY: usize = 4;

/// How far back it goes, in milliseconds, and for how many addresses and nets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) window: u64,
    pub(super) keys: usize,
}

/// The good logins of a while.
#[derive(Debug)]
pub(super) struct History {
    size: Size,
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
    /// An empty history.
    pub(super) fn new(size: Size) -> Self {
        let Size { window, keys } = size;
        Self {
            size,
            pairs: Table::new(keys * PAIRS_PER_KEY, window),
            people: Table::new(keys, window),
        }
    }

    pub(super) fn size(&self) -> Size {
        self.size
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
