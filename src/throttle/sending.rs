//! How many messages each mailbox sent lately, for `send_limit` of the templates. Counted in memory, in the tables of the
//! shield; nodes that exchange events count together.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;

use super::table::{Key, Table};
use super::tally::Times;
use super::{Time, millis};
use crate::config::units::Rate;

/// Mailboxes that are counted at one time, for each window.
const MAILBOXES: usize = 65_536;

/// Messages that are recognised: between this many and twice as many.
const MESSAGES: usize = 32_768;

/// The messages that were sent.
pub struct SendingLimits {
    windows: ArcSwap<Vec<Window>>,
    let_through: Mutex<LetThrough>,
    hasher: RandomState,
    began: Instant,
    listener: OnceLock<Arc<SentListener>>,
}

/// Hears of each message that was counted here: the mailbox. Must not wait.
pub type SentListener = dyn Fn(&str) + Send + Sync;

/// What counts over one span of time.
#[derive(Clone)]
struct Window {
    span: Duration,
    counts: Arc<Table<Times>>,
}

/// Hashes of the messages that were let through last: a mail server asks several times about each.
#[derive(Default)]
struct LetThrough {
    newer: HashSet<u64>,
    older: HashSet<u64>,
}

impl LetThrough {
    fn has(&self, message: u64) -> bool {
        self.newer.contains(&message) || self.older.contains(&message)
    }

    fn insert(&mut self, message: u64) {
        if self.newer.len() >= MESSAGES {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(message);
    }
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sending {
    /// It is one more, and was counted.
    Counted,
    /// It was let through before.
    Again,
    /// It would be one too many, and was not counted.
    TooMany,
}

impl SendingLimits {
    /// Nothing was sent yet; [`SendingLimits::configure`] says over which spans of time it is counted.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            windows: ArcSwap::default(),
            let_through: Mutex::default(),
            hasher: RandomState::default(),
            began: now,
            listener: OnceLock::new(),
        }
    }

    /// Over which spans of time it is counted. One that was there before keeps its counts.
    pub fn configure(&self, spans: impl Iterator<Item = Duration>) {
        let before = self.windows.load_full();
        let mut windows: Vec<Window> = Vec::new();
        for span in spans {
            if windows.iter().all(|window| window.span != span) {
                let same = before.iter().find(|window| window.span == span).cloned();
                let counts = || Arc::new(Table::new(MAILBOXES, millis(span)));
                windows.push(same.unwrap_or_else(|| Window { span, counts: counts() }));
            }
        }
        self.windows.store(Arc::new(windows));
    }

    /// Who hears of what is counted here. The first to be named stays.
    pub fn listen(&self, listener: Arc<SentListener>) {
        // Only the daemon calls this, once.
        self.listener.get_or_init(|| listener);
    }

    /// Counts a message of a mailbox, unless it would be one too many. `message` is what the mail server calls it, the same
    /// at each question about it; empty: each question is a message of its own.
    pub fn send(&self, mailbox: &str, message: &[u8], limit: Rate, now: Instant) -> Sending {
        let time = Time::since(self.began, now);
        let name = self.hasher.hash_one((mailbox, message));
        // One at a time: two at once must not both be the last one.
        let mut let_through = self.let_through();
        if !message.is_empty() && let_through.has(name) {
            return Sending::Again;
        }
        if self.used_at(mailbox, limit.window.0, time) >= limit.count {
            return Sending::TooMany;
        }
        self.count(mailbox, time);
        let_through.insert(name);
        drop(let_through);
        if let Some(listener) = self.listener.get() {
            listener(mailbox);
        }
        Sending::Counted
    }

    /// Counts what another node let through so long ago.
    pub fn learn_from_another(&self, mailbox: &str, ago: Duration, now: Instant) {
        self.count(mailbox, Time::since(self.began, now).before(ago));
    }

    /// How many messages a mailbox sent within one of the spans that are counted.
    #[must_use]
    pub fn used(&self, mailbox: &str, span: Duration, now: Instant) -> u32 {
        self.used_at(mailbox, span, Time::since(self.began, now))
    }

    fn used_at(&self, mailbox: &str, span: Duration, now: Time) -> u32 {
        let windows = self.windows.load();
        let window = windows.iter().find(|window| window.span == span);
        window.map_or(0, |window| window.counts.total(self.key(mailbox), now))
    }

    fn count(&self, mailbox: &str, now: Time) {
        for window in self.windows.load().iter() {
            window.counts.add(self.key(mailbox), None, u32::MAX, now);
        }
    }

    fn key(&self, mailbox: &str) -> Key {
        Key(self.hasher.hash_one(mailbox) | 1)
    }

    fn let_through(&self) -> MutexGuard<'_, LetThrough> {
        self.let_through.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SendingLimits {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SendingLimits").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRY: &str = "fry@planetexpress.com";

    fn limits(spans: &[u64]) -> (SendingLimits, Instant) {
        let now = crate::clock::now();
        let limits = SendingLimits::new(now);
        limits.configure(spans.iter().map(|span| Duration::from_secs(*span)));
        (limits, now)
    }

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn one_more_than_the_limit_is_too_many_until_the_window_is_over() {
        let (limits, now) = limits(&[3600]);
        let send = |message: u32, after: u64| {
            let message = message.to_string();
            limits.send(FRY, message.as_bytes(), rate("3/h"), now + Duration::from_secs(after))
        };
        assert_eq!([1, 2, 3].map(|message| send(message, 0)), [Sending::Counted; 3]);
        assert_eq!(send(4, 0), Sending::TooMany);
        assert_eq!(send(4, 3500), Sending::TooMany, "what was refused did not count");
        assert_eq!(send(4, 4100), Sending::Counted);
        let later = now + Duration::from_secs(4100);
        assert_eq!(limits.used(FRY, Duration::from_secs(3600), later), 1);
        let others = limits.send("amy@planetexpress.com", b"1", rate("3/h"), now);
        assert_eq!(others, Sending::Counted);
    }

    #[test]
    fn a_message_is_counted_once_however_often_it_is_asked_about() {
        let (limits, now) = limits(&[3600]);
        assert_eq!(limits.send(FRY, b"5f.1", rate("1/h"), now), Sending::Counted);
        assert_eq!(limits.send(FRY, b"5f.1", rate("1/h"), now), Sending::Again);
        assert_eq!(limits.send(FRY, b"5f.2", rate("1/h"), now), Sending::TooMany);
        assert_eq!(limits.send(FRY, b"5f.1", rate("1/h"), now), Sending::Again);
        // Two mail servers may use the same name.
        assert_eq!(limits.send("amy@x.com", b"5f.1", rate("1/h"), now), Sending::Counted);
        assert_eq!(limits.send("kif@x.com", b"", rate("1/h"), now), Sending::Counted);
        assert_eq!(limits.send("kif@x.com", b"", rate("1/h"), now), Sending::TooMany);
    }

    #[test]
    fn messages_of_other_nodes_count_where_they_happened_and_are_not_told_again() {
        let (limits, now) = limits(&[3600, 86_400]);
        let told = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&told);
        limits.listen(Arc::new(move |_| *counter.lock().unwrap() += 1));
        limits.learn_from_another(FRY, Duration::from_secs(7200), now);
        limits.learn_from_another(FRY, Duration::from_secs(5), now);

        assert_eq!(limits.used(FRY, Duration::from_secs(3600), now), 1);
        assert_eq!(limits.used(FRY, Duration::from_secs(86_400), now), 2);
        assert_eq!(limits.send(FRY, b"1", rate("2/h"), now), Sending::Counted);
        assert_eq!(limits.send(FRY, b"2", rate("2/h"), now), Sending::TooMany);
        assert_eq!(*told.lock().unwrap(), 1);
    }

    #[test]
    fn a_reload_keeps_the_counts_of_spans_that_stay() {
        let (limits, now) = limits(&[3600, 60]);
        let _ = limits.send(FRY, b"1", rate("9/h"), now);

        limits.configure([3600, 7200, 3600].map(Duration::from_secs).into_iter());

        let used = |span| limits.used(FRY, Duration::from_secs(span), now);
        assert_eq!((used(3600), used(7200), used(60)), (1, 0, 0));
        assert_eq!(limits.windows.load().len(), 2);
    }

    #[test]
    fn many_at_once_are_not_more_than_the_limit() {
        let (limits, now) = limits(&[3600]);
        let counted = std::thread::scope(|scope| {
            let send = |thread: u32| {
                let limits = &limits;
                scope.spawn(move || {
                    let names = (0..50).map(|message| format!("{thread} {message}"));
                    let sent = names.map(|it| limits.send(FRY, it.as_bytes(), rate("20/h"), now));
                    sent.filter(|sent| *sent == Sending::Counted).count()
                })
            };
            let threads: Vec<_> = (0..4).map(send).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });

        assert_eq!(counted, 20);
    }

    #[test]
    fn the_messages_that_are_recognised_are_bounded() {
        let mut let_through = LetThrough::default();
        for message in 0..200_000 {
            let_through.insert(message);
        }
        assert!(let_through.has(199_999) && !let_through.has(0));
        assert!(let_through.newer.len() + let_through.older.len() <= 2 * MESSAGES);
    }
}
