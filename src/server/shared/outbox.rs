//! What other nodes are to hear, until it is sent. Bounded: whoever tells something never waits, and while the shared server
//! is away the oldest gives way.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::clock;
use crate::metrics::Metrics;
use crate::throttle::{Event, Outcome};

/// What waits for one stream at most.
const MAX_WAITING: usize = 16_384;

/// Something that other nodes are to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) enum News {
    /// What came of an attempt.
    Attempt(Event),
    /// An entry of a list changed: the name of its field at the shared server.
    Listed(Box<str>),
    /// An administrator lets somebody begin anew.
    Reset {
        /// The address.
        client: Option<IpAddr>,
        /// The login.
        login: Option<Box<str>>,
    },
    /// A mailbox sent a message.
    Sent(Box<str>),
}

/// Where news goes. Each kind has a stream of its own: a flood of guesses must not push out what only people with a right
/// password can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Attempts that failed.
    Guesses,
    /// Good logins.
    Logins,
    /// Messages that were sent.
    Sent,
    /// Changes of lists.
    Lists,
}

impl Stream {
    pub(super) const COUNT: usize = 4;
    pub(super) const ALL: [Self; Self::COUNT] =
        [Self::Guesses, Self::Logins, Self::Sent, Self::Lists];

    /// Its place in [`Stream::ALL`].
    pub(super) fn place(self) -> usize {
        match self {
            Self::Guesses => 0,
            Self::Logins => 1,
            Self::Sent => 2,
            Self::Lists => 3,
        }
    }

    /// What follows the prefix in its key.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Guesses => "events:guesses",
            Self::Logins => "events:logins",
            Self::Sent => "events:sent",
            Self::Lists => "events:lists",
        }
    }

    /// The entries that the server keeps, about.
    pub(super) fn most_entries(self) -> u32 {
        match self {
            Self::Guesses | Self::Logins | Self::Sent => 65_536,
            // All lists are read whenever a node comes back.
            Self::Lists => 1024,
        }
    }
}

impl News {
    pub(super) fn stream(&self) -> Stream {
        match self {
            Self::Attempt(event) if event.outcome == Outcome::Accepted => Stream::Logins,
            Self::Attempt(_) | Self::Reset { .. } => Stream::Guesses,
            Self::Sent(_) => Stream::Sent,
            Self::Listed(_) => Stream::Lists,
        }
    }
}

/// Something told, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) since: Instant,
    pub(super) news: News,
}

/// What waits to be sent.
#[derive(Debug)]
pub(in crate::server) struct Outbox {
    queues: Mutex<[VecDeque<Waiting>; Stream::COUNT]>,
    metrics: Metrics,
}

impl Outbox {
    /// Nothing waits.
    pub(in crate::server) fn new(metrics: Metrics) -> Self {
        Self { queues: Mutex::default(), metrics }
    }

    /// Takes news in. Never waits.
    pub(in crate::server) fn push(&self, news: News) {
        let place = news.stream().place();
        let mut queues = self.queues();
        let Some(queue) = queues.get_mut(place) else { return };
        let is_full = queue.len() >= MAX_WAITING;
        if is_full {
            queue.pop_front();
        }
        queue.push_back(Waiting { since: clock::now(), news });
        drop(queues);
        if is_full {
            self.metrics.shared_dropped();
        }
    }

    /// The oldest of one stream, `most` of them.
    pub(super) fn take(&self, stream: Stream, most: usize) -> Vec<Waiting> {
        let mut queues = self.queues();
        let Some(queue) = queues.get_mut(stream.place()) else { return Vec::new() };
        let taken = queue.len().min(most);
        queue.drain(..taken).collect()
    }

    /// Whether nothing waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.queues().iter().all(VecDeque::is_empty)
    }

    fn queues(&self) -> MutexGuard<'_, [VecDeque<Waiting>; Stream::COUNT]> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(login: &str) -> News {
        let outcome = Outcome::Failed(Some(7));
        News::Attempt(Event { client: None, login: Some(login.into()), service: None, outcome })
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_of_its_kind_gives_way() {
        let metrics = Metrics::new();
        let outbox = Outbox::new(metrics.clone());
        outbox.push(News::Sent("fry@planetexpress.com".into()));

        for number in 0..MAX_WAITING + 10 {
            outbox.push(failed(&number.to_string()));
        }

        let waiting = outbox.take(Stream::Guesses, usize::MAX);
        assert_eq!(waiting.len(), MAX_WAITING);
        assert_eq!(waiting[0].news, failed("10"));
        assert_eq!(outbox.take(Stream::Sent, 9).len(), 1);
        assert!(outbox.take(Stream::Guesses, 9).is_empty());
        let text = metrics.encode();
        assert!(text.contains("gatepost_shared_dropped_total 10\n"), "{text}");
    }

    #[test]
    fn what_only_a_right_password_makes_goes_apart_from_guesses() {
        let good = |outcome| {
            News::Attempt(Event { client: None, login: None, service: None, outcome }).stream()
        };
        assert_eq!(good(Outcome::Accepted), Stream::Logins);
        assert_eq!(good(Outcome::FailedAtSource), Stream::Guesses);
        assert_eq!(News::Sent("x".into()).stream(), Stream::Sent);
        assert_eq!(News::Reset { client: None, login: None }.stream(), Stream::Guesses);
        for (place, stream) in Stream::ALL.into_iter().enumerate() {
            assert_eq!(stream.place(), place);
        }
    }
}
