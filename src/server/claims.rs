//! Logins that a mail process may still claim.
//!
//! After a login process heard OK, the imap (pop3, …) process asks the master socket for the same login's userdb
//! fields with REQUEST: client pid, request id and the connection's cookie. What was decided then is kept here until
//! it is claimed, cancelled, disconnected or too old. The cookie is 128 random bits per connection, so it alone
//! finds the connection.
//!
//! When the daemon ends, it ends the login processes' connections first. Who heard OK on one of them a moment ago has
//! a mail process that is about to ask, and the next daemon would know nothing of the login: claims outlive their
//! connection then, and the master sockets wait for them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::proto::dovecot::auth::Mechanism;
use crate::store::Mailbox;

/// Dovecot's own limit for a request (protocol: 150 s after AUTH).
const CLAIMABLE: Duration = Duration::from_secs(150);
/// Claims per connection; the oldest goes first. A login process has a handful at a time.
const MAX_CLAIMS: usize = 4096;

/// So long after its request a login is waited for when the daemon ends: a mail process may have to be started for it.
const AWAITED: Duration = Duration::from_secs(2);

/// A login that was answered OK.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) mechanism: Mechanism,
    pub(super) at: Instant,
}

/// All claimable logins of the daemon, by the cookies of their connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    connections: HashMap<[u8; 16], Arc<Connection>>,
    outlive: bool,
}

#[derive(Debug)]
struct Connection {
    client_pid: u32,
    ended: AtomicBool,
    /// Oldest first. A lock of its own: what one connection accepts is nothing to the others. Nearly all are claimed
    /// within milliseconds, so that there are few, and those that are looked for are the youngest.
    kept: Mutex<VecDeque<(u32, Claim)>>,
}

/// A connection's place; its claims end with it.
#[derive(Debug)]
pub(super) struct Place {
    claims: Claims,
    cookie: [u8; 16],
    connection: Arc<Connection>,
}

impl Claims {
    /// Opens a place for a login process's connection.
    pub(super) fn open(&self, cookie: [u8; 16], client_pid: u32) -> Place {
        let (ended, kept) = (AtomicBool::new(false), Mutex::default());
        let connection = Arc::new(Connection { client_pid, ended, kept });
        self.lock().connections.insert(cookie, Arc::clone(&connection));
        Place { claims: self.clone(), cookie, connection }
    }

    /// Takes a claim out. A wrong cookie, pid or id finds nothing and takes nothing.
    pub(super) fn take(
        &self,
        cookie: &[u8; 16],
        client_pid: u32,
        id: u32,
        now: Instant,
    ) -> Option<Claim> {
        let connection = Arc::clone(self.lock().connections.get(cookie)?);
        if connection.client_pid != client_pid {
            return None;
        }
        let mut kept = connection.kept();
        let claim = kept.iter().rfind(|(kept, _)| *kept == id).map(|(_, claim)| claim.clone());
        kept.retain(|(kept, _)| *kept != id);
        claim.filter(|claim| now < claim.at + CLAIMABLE)
    }

    /// The daemon ends: from now on claims outlive their connections.
    pub(super) fn outlive_connections(&self) {
        self.lock().outlive = true;
    }

    /// Whether a login may still be claimed soon: a connection is open, on which one may yet be answered, or one was
    /// answered a moment ago.
    pub(super) fn are_awaited(&self, now: Instant) -> bool {
        let is_awaited = |(_, claim): &(u32, Claim)| now < claim.at + AWAITED;
        self.lock().connections.values().any(|connection| {
            !connection.ended.load(Ordering::Relaxed) || connection.kept().iter().any(is_awaited)
        })
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn kept(&self) -> MutexGuard<'_, VecDeque<(u32, Claim)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Keeps a login for its claim.
    pub(super) fn keep(&self, id: u32, claim: Claim) {
        let mut kept = self.connection.kept();
        while kept.front().is_some_and(|(_, oldest)| {
            kept.len() >= MAX_CLAIMS || claim.at >= oldest.at + CLAIMABLE
        }) {
            kept.pop_front();
        }
        kept.push_back((id, claim));
    }

    /// The client wants it no more.
    pub(super) fn cancel(&self, id: u32) {
        self.connection.kept().retain(|(kept, _)| *kept != id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.claims.lock();
        if all.outlive {
            self.connection.ended.store(true, Ordering::Relaxed);
        } else {
            all.connections.remove(&self.cookie);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const COOKIE: [u8; 16] = [7; 16];
    const PID: u32 = 4711;

    fn claim(at: Instant) -> Claim {
        let mailbox = Arc::new(Mailbox::sample("fry@x.example"));
        Claim { mailbox, mechanism: Mechanism::Plain, at }
    }

    #[test]
    fn a_login_is_claimed_once_and_in_time() {
        let claims = Claims::default();
        let place = claims.open(COOKIE, 9);
        let start = clock::now();
        (1..=3).for_each(|id| place.keep(id, claim(start)));

        assert!(claims.take(&COOKIE, 8, 1, start).is_none());
        assert!(claims.take(&[0; 16], 9, 1, start).is_none());
        assert!(claims.take(&COOKIE, 9, 1, start).is_some());
        assert!(claims.take(&COOKIE, 9, 1, start).is_none());
        assert!(claims.take(&COOKIE, 9, 2, start + CLAIMABLE).is_none());
        place.cancel(3);
        assert!(claims.take(&COOKIE, 9, 3, start).is_none());
        place.keep(4, claim(start));
        drop(place);
        assert!(claims.take(&COOKIE, 9, 4, start).is_none());
    }

    #[test]
    fn at_the_bound_the_oldest_goes_first() {
        let claims = Claims::default();
        let place = claims.open(COOKIE, 9);
        let start = clock::now();
        let at = |number: u32| start + Duration::from_millis(number.into());
        let bound = u32::try_from(MAX_CLAIMS).unwrap();
        (1..=bound).for_each(|id| place.keep(id, claim(at(id))));
        // Taken, and used again for a younger one.
        assert!(claims.take(&COOKIE, 9, 1, start).is_some());
        place.keep(1, claim(at(bound + 1)));
        (2..=10).for_each(|more| place.keep(bound + more, claim(at(bound + more))));

        for (id, is_there) in [(1, true), (2, false), (10, false), (11, true), (bound + 10, true)] {
            assert_eq!(claims.take(&COOKIE, 9, id, start).is_some(), is_there, "{id}");
        }
        assert!(place.connection.kept().len() <= MAX_CLAIMS);
    }

    #[test]
    fn claims_end_with_their_connection() {
        let (claims, now) = (Claims::default(), clock::now());
        let place = claims.open(COOKIE, PID);
        place.keep(1, claim(now));

        drop(place);

        assert!(claims.take(&COOKIE, PID, 1, now).is_none());
        assert!(!claims.are_awaited(now));
    }

    #[test]
    fn when_the_daemon_ends_claims_outlive_their_connection_and_are_awaited_for_two_seconds() {
        let (claims, now) = (Claims::default(), clock::now());
        let place = claims.open(COOKIE, PID);
        claims.outlive_connections();
        assert!(claims.are_awaited(now), "a connection is open");
        place.keep(1, claim(now));
        place.keep(2, claim(now));

        drop(place);

        assert!(claims.are_awaited(now));
        assert!(claims.take(&COOKIE, PID, 1, now).is_some());
        assert!(claims.are_awaited(now), "one is left");
        assert!(!claims.are_awaited(now + AWAITED), "nobody came for it");
        assert!(claims.take(&COOKIE, PID, 2, now).is_some());
        assert!(!claims.are_awaited(now));
    }
}
