//! Who guesses against memory while the directory cannot tell (login.md L-3). Plain functions: nothing here waits, and
//! time is an argument.
//!
//! A password that memory neither proves nor refuses, for an account that it holds a proof of, is noted against the
//! net it came from; when the directory has its say after all, the note is taken back. Past 20 different ones the net is
//! barred from memory until enough of them are old. The account is never charged.
//!
//! The rule counts per address, net and login with net; with one limit for all three the net alone decides. Where the
//! door does not know the client, the login stands for the net.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::gate::Net;
use super::memory::Digest;

/// Different passwords within [`WINDOW`].
const LIMIT: usize = 20;

const WINDOW: Duration = Duration::from_secs(600);

/// Bars that are over are thrown out this often.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Sources that are kept; about 1 kB each when full.
const MAX_SOURCES: usize = 16_384;

/// Where an attempt comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Net(Net),
    Login(Box<str>),
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
    barred: HashMap<Source, Instant>,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Note {
    digest: Digest,
    at: Instant,
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
        table.barred.get(&source(net, login)).is_some_and(|until| now < *until)
    }

    /// Notes a password that memory can say nothing about.
    pub(super) fn note(&self, net: &Net, login: &str, digest: Digest, now: Instant) {
        let mut table = self.lock();
        let source = source(net, login);
        if table.sources.len() >= MAX_SOURCES && !table.sources.contains_key(&source) {
            make_room(&mut table.sources, now);
        }
        let notes = table.sources.entry(source.clone()).or_default();
        notes.retain(|note| note.digest != digest && now < note.at + WINDOW);
        // More than it takes to be barred are not kept: whoever is barred is not noted any more.
        if notes.len() >= LIMIT {
            notes.remove(0);
        }
        notes.push(Note { digest, at: now });
        let oldest = notes.first().filter(|_| notes.len() >= LIMIT).map(|note| note.at);
        if let Some(oldest) = oldest {
            table.barred.insert(source, oldest + WINDOW);
            self.any_barred.store(true, Ordering::Relaxed);
        }
    }

    /// The directory had its say.
    pub(super) fn take_back(&self, net: &Net, login: &str, digest: &Digest) {
        let mut table = self.lock();
        let source = source(net, login);
        let Some(notes) = table.sources.get_mut(&source) else { return };
        notes.retain(|note| note.digest != *digest);
        let left = notes.len();
        if left < LIMIT {
            table.barred.remove(&source);
        }
        if left == 0 {
            table.sources.remove(&source);
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

/// First those whose time is over; then whoever has been quiet for longest.
fn make_room(sources: &mut HashMap<Source, Vec<Note>>, now: Instant) {
    sources.retain(|_, notes| notes.last().is_some_and(|note| now < note.at + WINDOW));
    if sources.len() >= MAX_SOURCES {
        let last = |notes: &[Note]| notes.last().map(|note| note.at);
        let quietest = sources.iter().min_by_key(|(_, notes)| last(notes));
        if let Some(quietest) = quietest.map(|(source, _)| source.clone()) {
            sources.remove(&quietest);
        }
    }
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
            self.unproven.note(&net, "fry", self.digest(password), self.at(at));
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
            fixture.unproven.take_back(&net(1), "fry", &fixture.digest(password));
        }

        assert!(!fixture.bars(net(1), 0));
        assert!(fixture.unproven.lock().sources.is_empty());
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
    fn the_sources_are_bounded() {
        let fixture = Fixture::new();
        for number in 0..=MAX_SOURCES {
            let login = format!("login {number}");
            fixture.unproven.note(&None, &login, fixture.digest(1), fixture.at(0));
        }

        assert_eq!(fixture.unproven.lock().sources.len(), MAX_SOURCES);
    }
}
