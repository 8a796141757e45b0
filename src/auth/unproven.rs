//! Who guesses against memory while the directory cannot tell (login.md L-3). Plain functions: nothing here waits, and
//! time is an argument.
//!
//! A password that memory neither proves nor refuses, for an account that it holds a proof of, is noted against the
//! net it came from; when the directory has its say after all, the note is taken back. Past 20 different ones that nobody
//! could check the net is barred from memory until enough of them are old. The account is never charged.
//!
//! While a question is under way its password counts only against this login from this net: the hundred people of an office
//! behind one address who come back in the same second after a restart guess nothing.
//!
//! The rule counts per address, net and login with net; with one limit for all three the net alone decides. Where the
//! door does not know the client, the login stands for the net.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::gate::Net;
use super::memory::Digest;
use crate::cache;

/// Different passwords within [`WINDOW`].
const LIMIT: usize = 20;

const WINDOW: Duration = Duration::from_secs(600);

/// Bars that are over are thrown out this often.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// A question that has no end after this time had none: longer than any deadline by default.
const PENDING: Duration = Duration::from_secs(10);

/// Sources that are kept; about 1 kB each when nothing is under way.
const MAX_SOURCES: usize = 16_384;

/// So many make room at once where one is wanted: the next so many need not look through the table.
const FORGOTTEN_AT_ONCE: usize = MAX_SOURCES / 16;

/// Notes for each of them. More than [`LIMIT`] are there only while questions are under way, and those are bounded
/// together ([`super::admission`]).
const MAX_NOTES: usize = 256;

/// Where an attempt comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Net(Net),
    Login(Box<str>),
}

/// Who is barred: all that comes from a source, or one login from there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Barred {
    All(Source),
    Login(Source, Box<str>),
}

/// All sources with unproven attempts.
#[derive(Debug, Default)]
pub(super) struct Unproven {
    /// Somebody may be barred: else nobody needs to look further.
    any_barred: AtomicBool,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    sources: HashMap<Source, Vec<Note>>,
    /// Those who are barred, and until when.
    barred: HashMap<Barred, Instant>,
    swept: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Note {
    digest: Digest,
    login: Box<str>,
    at: Instant,
    /// The directory is being asked.
    pending: bool,
}

impl Note {
    /// Nobody could check it.
    fn is_undecided(&self, now: Instant) -> bool {
        !self.pending || now >= self.at + PENDING
    }
}

impl Unproven {
    /// Whether memory must not answer who comes from there.
    pub(super) fn bars(&self, net: &Net, login: &str, now: Instant) -> bool {
        if !self.any_barred.load(Ordering::Relaxed) {
            return false;
        }
        let mut table = self.lock();
        if table.swept.is_none_or(|swept| now >= swept + SWEEP_EVERY) {
            table.swept = Some(now);
            table.barred.retain(|_, until| now < *until);
            self.any_barred.store(!table.barred.is_empty(), Ordering::Relaxed);
        }
        let source = source(net, login);
        let is_barred = |who: &Barred| table.barred.get(who).is_some_and(|until| now < *until);
        is_barred(&Barred::All(source.clone())) || is_barred(&Barred::Login(source, login.into()))
    }

    /// Notes a password that memory can say nothing about; the directory is to be asked.
    pub(super) fn note(&self, net: &Net, login: &str, digest: Digest, now: Instant) {
        let mut table = self.lock();
        let source = source(net, login);
        if table.sources.len() >= MAX_SOURCES && !table.sources.contains_key(&source) {
            make_room(&mut table.sources, now);
        }
        let notes = table.sources.entry(source).or_default();
        notes.retain(|note| note.digest != digest && now < note.at + WINDOW);
        if notes.len() >= MAX_NOTES {
            notes.remove(0);
        }
        notes.push(Note { digest, login: login.into(), at: now, pending: true });
        self.judge(&mut table, net, login, now);
    }

    /// Nobody could say: the note counts against everything that comes from there.
    pub(super) fn stays(&self, net: &Net, login: &str, digest: &Digest, now: Instant) {
        let mut table = self.lock();
        let Some(notes) = table.sources.get_mut(&source(net, login)) else { return };
        let Some(note) = notes.iter_mut().find(|note| note.digest == *digest) else { return };
        note.pending = false;
        self.judge(&mut table, net, login, now);
    }

    /// The directory had its say.
    pub(super) fn take_back(&self, net: &Net, login: &str, digest: &Digest, now: Instant) {
        let mut table = self.lock();
        let source = source(net, login);
        let Some(notes) = table.sources.get_mut(&source) else { return };
        notes.retain(|note| note.digest != *digest);
        if notes.is_empty() {
            table.sources.remove(&source);
        }
        self.judge(&mut table, net, login, now);
    }

    /// Bars whoever is past the limit now, and nobody else.
    fn judge(&self, table: &mut Table, net: &Net, login: &str, now: Instant) {
        let source = source(net, login);
        let notes = table.sources.get(&source).map_or(&[][..], Vec::as_slice);
        // The end of the bar: when one less than the limit is left.
        let end = |counts: &dyn Fn(&&Note) -> bool| {
            let counted: Vec<_> = notes.iter().filter(counts).map(|note| note.at).collect();
            let last = counted.len().checked_sub(LIMIT)?;
            counted.get(last).map(|at| *at + WINDOW)
        };
        let all = end(&|note| note.is_undecided(now));
        let one = end(&|note| note.is_undecided(now) || *note.login == *login);
        for (who, until) in
            [(Barred::All(source.clone()), all), (Barred::Login(source, login.into()), one)]
        {
            match until {
                Some(until) => table.barred.insert(who, until),
                None => table.barred.remove(&who),
            };
        }
        if !table.barred.is_empty() {
            self.any_barred.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn source(net: &Net, login: &str) -> Source {
    match net {
        Some(_) => Source::Net(*net),
        None => Source::Login(login.into()),
    }
}

/// First those whose time is over; then those who have been quiet for longest.
fn make_room(sources: &mut HashMap<Source, Vec<Note>>, now: Instant) {
    let last = |notes: &[Note]| notes.last().map(|note| note.at);
    sources.retain(|_, notes| last(notes).is_some_and(|last| now < last + WINDOW));
    let surplus = sources.len().saturating_sub(MAX_SOURCES - FORGOTTEN_AT_ONCE);
    cache::forget_oldest(sources, surplus, |notes| last(notes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::gate;
    use crate::auth::memory::Memory;
    use crate::secret::Password;

    fn net(last: u8) -> Net {
        gate::net(Some(std::net::IpAddr::from([192, 0, last, 1])))
    }

    struct Fixture {
        unproven: Unproven,
        memory: Memory,
        start: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                unproven: Unproven::default(),
                memory: Memory::new(1 << 20, [7; 32]),
                start: crate::clock::now(),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn digest(&self, password: usize) -> Digest {
            self.memory.digest("fry", &Password::new(password.to_string().as_bytes()))
        }

        fn note(&self, net: Net, password: usize, at: u64) {
            self.note_for("fry", net, password, at);
        }

        /// A question that comes to nothing.
        fn note_for(&self, login: &str, net: Net, password: usize, at: u64) {
            let digest = self.digest(password);
            self.unproven.note(&net, login, digest, self.at(at));
            self.unproven.stays(&net, login, &digest, self.at(at));
        }

        fn bars(&self, net: Net, at: u64) -> bool {
            self.unproven.bars(&net, "fry", self.at(at))
        }
    }

    #[test]
    fn twenty_different_passwords_bar_a_net_and_no_other_until_they_are_old() {
        let fixture = Fixture::new();
        for password in 0..LIMIT - 1 {
            fixture.note(net(1), password, 0);
        }
        // The same again is no other guess.
        fixture.note(net(1), 0, 1);
        assert!(!fixture.bars(net(1), 1));

        fixture.note(net(1), 100, 2);

        assert!(fixture.bars(net(1), 2));
        assert!(!fixture.bars(net(2), 2));
        assert!(fixture.bars(net(1), 599));
        assert!(!fixture.bars(net(1), 600));
        // Nobody is barred any more: nobody is looked for.
        assert!(!fixture.bars(net(1), 610));
        assert!(!fixture.unproven.any_barred.load(Ordering::Relaxed));
    }

    #[test]
    fn what_the_directory_decided_counts_no_more() {
        let fixture = Fixture::new();
        for password in 0..10 * LIMIT {
            fixture.note(net(1), password, 0);
            fixture.unproven.take_back(&net(1), "fry", &fixture.digest(password), fixture.at(0));
        }

        assert!(!fixture.bars(net(1), 0));
        assert!(fixture.unproven.lock().sources.is_empty());
    }

    #[test]
    fn questions_under_way_count_against_their_login_alone_until_they_came_to_nothing() {
        let fixture = Fixture::new();
        for person in 0..10 * LIMIT {
            let login = format!("person{person}");
            fixture.unproven.note(&net(1), &login, fixture.digest(person), fixture.at(0));
        }
        for password in 1000..1000 + LIMIT {
            fixture.unproven.note(&net(1), "fry", fixture.digest(password), fixture.at(1));
        }
        assert!(fixture.bars(net(1), 1));
        assert!(!fixture.unproven.bars(&net(1), "leela", fixture.at(1)));

        for person in 180..180 + LIMIT {
            let (login, digest) = (format!("person{person}"), fixture.digest(person));
            fixture.unproven.stays(&net(1), &login, &digest, fixture.at(2));
        }

        assert!(fixture.unproven.bars(&net(1), "leela", fixture.at(2)));
    }

    #[test]
    fn a_question_that_has_no_end_counts_in_the_end() {
        let fixture = Fixture::new();
        for person in 0..LIMIT {
            let login = format!("person{person}");
            fixture.unproven.note(&net(1), &login, fixture.digest(person), fixture.at(0));
        }
        assert!(!fixture.unproven.bars(&net(1), "leela", fixture.at(9)));

        fixture.note(net(1), 1000, 10);

        assert!(fixture.unproven.bars(&net(1), "leela", fixture.at(10)));
    }

    #[test]
    fn without_a_client_the_login_is_the_source() {
        let fixture = Fixture::new();
        for password in 0..LIMIT {
            fixture.note(None, password, 0);
        }

        assert!(fixture.bars(None, 0));
        assert!(!fixture.unproven.bars(&None, "leela", fixture.at(0)));
        assert!(!fixture.bars(net(1), 0));
    }

    #[test]
    fn the_sources_are_bounded_and_those_who_were_quiet_for_longest_go_first() {
        let fixture = Fixture::new();
        let at =
            |number: usize| fixture.start + Duration::from_millis(u64::try_from(number).unwrap());
        let name = |number: usize| format!("login {number}");
        for number in 0..=MAX_SOURCES {
            fixture.unproven.note(&None, &name(number), fixture.digest(1), at(number));
        }

        let table = fixture.unproven.lock();
        assert_eq!(table.sources.len(), MAX_SOURCES - FORGOTTEN_AT_ONCE + 1);
        let is_there = |number| table.sources.contains_key(&source(&None, &name(number)));
        assert!((0..FORGOTTEN_AT_ONCE).all(|number| !is_there(number)));
        assert!((FORGOTTEN_AT_ONCE..=MAX_SOURCES).all(is_there));
    }
}
