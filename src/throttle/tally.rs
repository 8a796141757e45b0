//! What is counted for one key: a sliding window in fixed memory. Pure; time comes as the number of a bucket, of which
//! eight make the window.
//!
//! A count lives in nine buckets, the one that is being filled and eight before it, so that nothing leaves before its
//! window is over; it may stay an eighth longer.

use std::cell::Cell;
use std::num::Wrapping;

/// Buckets that make a window.
pub(super) const BUCKETS: u32 = 8;

/// Buckets that count: the window's, and the one being filled.
const LIVE: usize = 9;

/// Different values that are kept one by one.
const FEW: usize = 32;

/// Repeats are recognised among so many last values.
const RECENT: usize = 4;

/// Registers of a sketch: a standard error of 9 % (HyperLogLog, Flajolet et al. 2007), less below 300 values.
const REGISTERS: usize = 128;

/// A short hash of what is told apart: a password with its login, a login, a net.
pub(super) type Item = u16;

/// What a table holds for a key.
pub(super) trait Tally: Default {
    /// Counts one; `None`: it is like no other.
    fn add(&mut self, item: Option<Item>, at: u32, room: Room);
    /// What lies within the window.
    fn total(&self, at: u32) -> u32;
    /// Takes one back: the oldest.
    fn take_back(&mut self, at: u32);
    /// The last bucket that was written to.
    fn last(&self) -> u32;
    /// Bytes beside itself.
    fn heap(&self) -> usize {
        0
    }
}

/// Whether there is room for one sketch more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// No: the oldest value gives way, and no more are counted than fit. Too few rather than the same ones again.
    Full,
    /// There is.
    Left,
}

/// Whether a bucket no longer counts.
pub(super) fn is_over(bucket: u32, at: u32) -> bool {
    at.saturating_sub(bucket) > BUCKETS
}

/// How many: each time counts, but a repeat of one of the last values counts once.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    last: u32,
    buckets: [u16; LIVE],
    recent: [Option<Item>; RECENT],
}

impl Times {
    fn slide(&mut self, at: u32) {
        if is_over(self.last, at) {
            *self = Self { last: at, ..Self::default() };
            return;
        }
        while self.last < at {
            self.last += 1;
            if let Some(bucket) = self.buckets.get_mut(place(self.last)) {
                *bucket = 0;
            }
        }
    }

    fn live(&self, at: u32) -> impl Iterator<Item = (usize, u16)> {
        let oldest = at.max(self.last).saturating_sub(BUCKETS);
        let places = (oldest..=self.last).map(place);
        places.filter_map(|place| Some((place, *self.buckets.get(place)?)))
    }
}

fn place(bucket: u32) -> usize {
    usize::try_from(bucket).unwrap_or_default() % LIVE
}

impl Tally for Times {
    fn add(&mut self, item: Option<Item>, at: u32, _: Room) {
        if is_over(self.last, at) {
            self.slide(at);
        }
        // What another node tells late counts where it happened, or not at all if that is over.
        if is_over(at, self.last) || item.is_some() && self.recent.contains(&item) {
            return;
        }
        self.slide(at);
        self.recent.rotate_right(1);
        if let Some(first) = self.recent.first_mut() {
            *first = item;
        }
        if let Some(bucket) = self.buckets.get_mut(place(at)) {
            *bucket = bucket.saturating_add(1);
        }
    }

    fn total(&self, at: u32) -> u32 {
        if is_over(self.last, at) {
            return 0;
        }
        self.live(at).map(|(_, count)| u32::from(count)).sum()
    }

    fn take_back(&mut self, at: u32) {
        let oldest = self.live(at).find(|(_, count)| *count > 0);
        if let Some(bucket) = oldest.and_then(|(place, _)| self.buckets.get_mut(place)) {
            *bucket -= 1;
        }
    }

    fn last(&self) -> u32 {
        self.last
    }
}

/// How many different: exact up to thirty-two, a sketch beyond.
#[derive(Clone, Debug)]
pub(super) enum Distinct {
    /// The values themselves.
    Few(Few),
    /// Their sketch.
    Many(Box<Sketch>),
}

impl Default for Distinct {
    fn default() -> Self {
        Self::Few(Few::default())
    }
}

impl Tally for Distinct {
    fn add(&mut self, item: Option<Item>, at: u32, room: Room) {
        match self {
            Self::Few(few) => {
                if let Some(sketch) = few.add(item, at, room) {
                    *self = Self::Many(Box::new(sketch));
                }
            }
            Self::Many(sketch) if is_over(sketch.last, at) => {
                let mut few = Few::default();
                few.add(item, at, Room::Full);
                *self = Self::Few(few);
            }
            Self::Many(sketch) => sketch.add(item, at),
        }
    }

    fn total(&self, at: u32) -> u32 {
        match self {
            Self::Few(few) => few.total(at),
            Self::Many(sketch) => sketch.estimate(at),
        }
    }

    /// A sketch gives nothing back.
    fn take_back(&mut self, at: u32) {
        if let Self::Few(few) = self {
            few.take_back(at);
        }
    }

    fn last(&self) -> u32 {
        match self {
            Self::Few(few) => few.last,
            Self::Many(sketch) => sketch.last,
        }
    }

    fn heap(&self) -> usize {
        match self {
            Self::Few(_) => 0,
            Self::Many(_) => size_of::<Sketch>(),
        }
    }
}

/// Up to thirty-two values, each with the bucket in which it was last seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Few {
    last: u32,
    /// Values that were like no other so far.
    unlike: Wrapping<Item>,
    /// Which places are taken, a bit each.
    taken: u32,
    items: [Item; FEW],
    ages: [u8; FEW],
}

impl Few {
    /// Adds a value, or says by what sketch to go on.
    fn add(&mut self, item: Option<Item>, at: u32, room: Room) -> Option<Sketch> {
        // Told so late that it is over.
        if is_over(at, self.last) {
            return None;
        }
        let (seen, at) = (at, at.max(self.last));
        let item = item.unwrap_or_else(|| {
            self.unlike += 1;
            self.unlike.0
        });
        let stale = self.entries().filter(|(_, _, bucket)| is_over(*bucket, at));
        let stale = stale.fold(0, |mask, (index, ..)| mask | 1 << index);
        if is_over(self.last, at) {
            self.taken = 0;
        }
        self.taken &= !stale;
        self.last = at;
        let same = self.entries().find(|(_, known, _)| *known == item);
        let seen = same.map_or(seen, |(.., before)| seen.max(before));
        let place = match (same, self.taken) {
            (Some((index, ..)), _) => index,
            (None, u32::MAX) if room == Room::Left => {
                let mut sketch = Sketch::default();
                for (_, item, bucket) in self.entries() {
                    sketch.add(Some(item), bucket);
                }
                sketch.add(Some(item), seen);
                return Some(sketch);
            }
            (None, u32::MAX) => self.oldest(at).unwrap_or(0),
            (None, taken) => taken.trailing_ones(),
        };
        self.taken |= 1 << place;
        let place = usize::try_from(place).unwrap_or_default();
        if let (Some(known), Some(age)) = (self.items.get_mut(place), self.ages.get_mut(place)) {
            (*known, *age) = (item, age_of(seen));
        }
        None
    }

    /// Place, value and bucket of each.
    fn entries(&self) -> impl Iterator<Item = (u32, Item, u32)> {
        let all = (0_u32..).zip(self.items.iter().zip(&self.ages));
        let taken = all.filter(|(index, _)| self.taken & 1 << index != 0);
        taken.map(|(index, (item, age))| (index, *item, bucket_of(*age, self.last)))
    }

    fn live(&self, at: u32) -> impl Iterator<Item = (u32, Item, u32)> {
        let is_live = move |bucket| !is_over(self.last, at) && !is_over(bucket, at);
        self.entries().filter(move |(.., bucket)| is_live(*bucket))
    }

    fn oldest(&self, at: u32) -> Option<u32> {
        self.live(at).min_by_key(|(.., bucket)| *bucket).map(|(index, ..)| index)
    }

    fn total(&self, at: u32) -> u32 {
        u32::try_from(self.live(at).count()).unwrap_or(u32::MAX)
    }

    fn take_back(&mut self, at: u32) {
        if let Some(oldest) = self.oldest(at) {
            self.taken &= !(1 << oldest);
        }
    }
}

/// The low byte of a bucket's number.
fn age_of(bucket: u32) -> u8 {
    let [.., low] = bucket.to_be_bytes();
    low
}

/// The bucket with this low byte that is not after `last`.
fn bucket_of(age: u8, last: u32) -> u32 {
    last.saturating_sub(u32::from(age_of(last).wrapping_sub(age)))
}

/// HyperLogLog, one for each live bucket.
#[derive(Clone, Debug)]
pub(super) struct Sketch {
    last: u32,
    unlike: u64,
    /// What it came to in a bucket: to look at a thousand registers costs more than all else of a check.
    known: Cell<Option<(u32, u32)>>,
    buckets: [[u8; REGISTERS]; LIVE],
}

impl Default for Sketch {
    fn default() -> Self {
        Self { last: 0, unlike: 0, known: Cell::new(None), buckets: [[0; REGISTERS]; LIVE] }
    }
}

impl Sketch {
    fn add(&mut self, item: Option<Item>, at: u32) {
        if is_over(self.last, at) {
            self.buckets = [[0; REGISTERS]; LIVE];
            self.last = at;
        }
        if is_over(at, self.last) {
            return;
        }
        while self.last < at {
            self.last += 1;
            if let Some(bucket) = self.buckets.get_mut(place(self.last)) {
                *bucket = [0; REGISTERS];
            }
        }
        let value = match item {
            Some(item) => u64::from(item),
            None => {
                self.unlike += 1;
                u64::from(u16::MAX) + self.unlike
            }
        };
        let hash = mix(value);
        let register = usize::try_from(hash >> 57).unwrap_or_default();
        let rank = u8::try_from((hash << 7 | 1 << 6).leading_zeros() + 1).unwrap_or(u8::MAX);
        let bucket = self.buckets.get_mut(place(at));
        if let Some(register) = bucket.and_then(|bucket| bucket.get_mut(register))
            && rank > *register
        {
            *register = rank;
            self.known.set(None);
        }
    }

    fn estimate(&self, at: u32) -> u32 {
        match self.known.get() {
            _ if is_over(self.last, at) => 0,
            Some((bucket, estimate)) if bucket == at => estimate,
            _ => {
                let estimate = self.count(at);
                self.known.set(Some((at, estimate)));
                estimate
            }
        }
    }

    fn count(&self, at: u32) -> u32 {
        let mut all = [0_u8; REGISTERS];
        for bucket in at.max(self.last).saturating_sub(BUCKETS)..=self.last {
            let bucket = self.buckets.get(place(bucket)).into_iter().flatten();
            for (all, one) in all.iter_mut().zip(bucket) {
                *all = (*all).max(*one);
            }
        }
        // 128 registers: alpha is 0.7213 / (1 + 1.079 / 128).
        let registers = 128.0_f64;
        let sum: f64 = all.iter().map(|rank| 0.5_f64.powi(i32::from(*rank))).sum();
        let raw = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        let zeros = u32::try_from(all.iter().filter(|rank| **rank == 0).count()).unwrap_or(0);
        let estimate = if raw <= 2.5 * registers && zeros > 0 {
            registers * (registers / f64::from(zeros)).ln()
        } else {
            raw
        };
        whole(estimate)
    }
}

/// The nearest whole number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate is neither negative nor beyond 2^32; the cast saturates"
)]
fn whole(number: f64) -> u32 {
    number.round() as u32
}

/// splitmix64's finaliser: every bit of the result hangs on every bit of the number.
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after<T: Tally>(items: impl IntoIterator<Item = (Option<Item>, u32)>) -> T {
        let mut tally = T::default();
        for (item, at) in items {
            tally.add(item, at, Room::Left);
        }
        tally
    }

    #[test]
    fn times_leave_when_their_window_is_over_and_not_before() {
        let times: Times = after([(None, 100), (None, 100), (None, 104)]);

        for (at, total) in [(100, 3), (104, 3), (108, 3), (109, 1), (112, 1), (113, 0), (9999, 0)] {
            assert_eq!(times.total(at), total, "{at}");
        }
    }

    #[test]
    fn a_repeat_of_a_recent_value_counts_once_in_its_window() {
        let mut times: Times = after([1, 2, 1, 2, 3, 1, 1].map(|item| (Some(item), 50)));
        assert_eq!(times.total(50), 3);

        // It counts again once the whole key has been quiet for a window.
        times.add(Some(1), 59, Room::Left);

        assert_eq!(times.total(59), 1);
    }

    #[test]
    fn the_oldest_is_taken_back() {
        let mut times: Times = after([(None, 100), (None, 105)]);
        times.take_back(106);
        assert_eq!((times.total(106), times.total(110)), (1, 1));
        let mut distinct: Distinct = after([(Some(1), 100), (Some(2), 105)]);
        distinct.take_back(106);
        assert_eq!((distinct.total(106), distinct.total(110)), (1, 1));
        distinct.take_back(200);
        assert_eq!(distinct.total(106), 1);
    }

    #[test]
    fn different_values_are_exact_up_to_thirty_two_and_near_beyond() {
        for (different, least, most) in
            [(1, 1, 1), (32, 32, 32), (33, 29, 37), (100, 75, 125), (1000, 750, 1250)]
        {
            let items = (0..different).chain(0..different).map(|item| (Some(item), 7));
            let distinct: Distinct = after(items);
            let total = distinct.total(7);
            assert!((least..=most).contains(&total), "{different}: {total}");
            assert!(distinct.total(15) >= least);
            assert_eq!(distinct.total(16), 0);
        }
    }

    #[test]
    fn a_value_is_as_young_as_its_last_sight() {
        let distinct: Distinct = after([(Some(1), 0), (Some(2), 0), (Some(1), 6)]);

        assert_eq!((distinct.total(8), distinct.total(9), distinct.total(15)), (2, 1, 0));
    }

    #[test]
    fn what_is_like_no_other_counts_each_time() {
        let few: Distinct = after([(None, 1); 10]);
        assert_eq!(few.total(1), 10);
        let many: Distinct = after([(None, 1); 200]);
        assert!((170..=230).contains(&many.total(1)), "{}", many.total(1));
    }

    #[test]
    fn a_sketch_ends_with_its_window() {
        let mut distinct: Distinct = after((0..100).map(|item| (Some(item), 3)));
        assert!(matches!(distinct, Distinct::Many(_)));

        distinct.add(Some(1), 30, Room::Left);

        assert_eq!(distinct.total(30), 1);
        assert!(matches!(distinct, Distinct::Few(_)));
    }

    #[test]
    fn without_room_for_a_sketch_no_more_are_counted_than_fit() {
        let mut distinct = Distinct::default();
        for item in 0..40 {
            distinct.add(Some(item), 100, Room::Full);
        }
        assert_eq!((distinct.total(100), distinct.heap()), (32, 0));
        assert_eq!(distinct.total(109), 0);

        distinct.add(Some(1), 120, Room::Full);

        assert_eq!(distinct.total(120), 1);
    }

    #[test]
    fn what_is_told_late_counts_where_it_happened_if_that_is_not_over() {
        let mut times: Times = after([(None, 100)]);
        times.add(None, 95, Room::Left);
        times.add(None, 91, Room::Left);
        assert_eq!((times.total(100), times.total(103), times.total(104)), (2, 2, 1));
        let mut distinct: Distinct = after([(Some(1), 100), (Some(2), 95), (Some(3), 91)]);
        assert_eq!((distinct.total(100), distinct.total(103), distinct.total(104)), (2, 2, 1));
        // Told late, a value does not grow older.
        distinct.add(Some(1), 93, Room::Left);
        assert_eq!(distinct.total(108), 1);
        let mut many: Distinct = after((0..100).map(|item| (Some(item), 100)));
        (100..400).for_each(|item| many.add(Some(item), 91, Room::Left));
        assert!(many.total(100) < 130, "{}", many.total(100));
        (100..400).for_each(|item| many.add(Some(item), 93, Room::Left));
        assert!(many.total(100) > 300 && many.total(102) < 130, "{}", many.total(102));
    }

    proptest! {
        /// Held against a list of all events.
        #[test]
        fn few_and_times_agree_with_a_list(
            steps in prop::collection::vec((0_u16..8, 0_u32..5), 1..60),
        ) {
            let mut at = 1000;
            let (mut times, mut distinct) = (Times::default(), Distinct::default());
            let mut list: Vec<(u16, u32)> = Vec::new();
            for (item, step) in steps {
                at += step;
                times.add(None, at, Room::Left);
                distinct.add(Some(item), at, Room::Left);
                list.push((item, at));
                let live = list.iter().filter(|(_, then)| !is_over(*then, at));
                let values: std::collections::BTreeSet<_> = live.clone().map(|(it, _)| it).collect();
                prop_assert_eq!(times.total(at), u32::try_from(live.count()).unwrap());
                prop_assert_eq!(distinct.total(at), u32::try_from(values.len()).unwrap());
            }
        }
    }
}
