//! How long a peer may take over something it has begun.
//!
//! A mail server keeps connections for hours without a word, and a server that closes them first costs it a login or
//! defers its mail; so silence is never held against a peer. Whoever has sent the beginning of a line or frame, though,
//! has the rest of it at hand: one that does not come is a peer that is lost, or that wants to occupy us.
//!
//! ```text
//! loop {
//!     match session.next_event(&mut input) {
//!         Ok(Some(event)) => { patience.rest(); … }
//!         Ok(None) => { patience.wants_more(&input); … }
//!     }
//!     select! {
//!         read = stream.read_buf(&mut input) => …
//!         () = patience.over() => return Err(Patience::exhausted()),
//!     }
//! }
//! ```

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

/// From the first byte of a request to its last.
const LIMIT: Duration = Duration::from_secs(30);

/// The time that a peer has for what it has begun, on one connection.
#[derive(Debug, Default)]
pub(super) struct Patience {
    begun: Option<Instant>,
}

impl Patience {
    /// A request is complete, or we ourselves do not read on: nothing is owed.
    pub(super) fn rest(&mut self) {
        self.begun = None;
    }

    /// The parser wants more than `input`, which is the beginning of a request if it is anything. The time counts from
    /// the first such call, however many bytes trickle in after it.
    pub(super) fn wants_more(&mut self, input: &[u8]) {
        self.begun = match self.begun {
            _ if input.is_empty() => None,
            Some(begun) => Some(begun),
            None => Some(Instant::now()),
        };
    }

    /// A request has begun, though nothing of it is left to look at.
    pub(super) fn has_begun(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// Ends when the time is over; never, as long as nothing has begun. Cancel-safe; borrows nothing.
    pub(super) fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let begun = self.begun;
        async move {
            match begun {
                Some(begun) => tokio::time::sleep_until(begun + LIMIT).await,
                None => std::future::pending().await,
            }
        }
    }

    /// What ended the connection.
    pub(super) fn exhausted() -> io::Error {
        let limit = LIMIT.as_secs();
        let what = format!("a request was begun and not finished within {limit} s");
        io::Error::new(io::ErrorKind::TimedOut, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_over(patience: &Patience, within: Duration) -> bool {
        tokio::time::timeout(within, patience.over()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_borne_for_ever() {
        let mut patience = Patience::default();
        assert!(!is_over(&patience, Duration::from_secs(1_000_000)).await);

        patience.wants_more(b"");

        assert!(!is_over(&patience, Duration::from_secs(1_000_000)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_trickle_in_win_no_time() {
        let mut patience = Patience::default();
        patience.wants_more(b"A");
        assert!(!is_over(&patience, Duration::from_secs(29)).await);
        patience.wants_more(b"AU");

        assert!(is_over(&patience, Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_has_its_own_time() {
        let mut patience = Patience::default();
        patience.wants_more(b"A");
        tokio::time::advance(Duration::from_secs(29)).await;

        patience.rest();
        patience.wants_more(b"B");

        assert!(!is_over(&patience, Duration::from_secs(29)).await);
        assert!(is_over(&patience, Duration::from_secs(1)).await);
        patience.rest();
        assert!(!is_over(&patience, Duration::from_secs(1_000_000)).await);
    }
}
