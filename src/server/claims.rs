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

use std::collections::HashMap;
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

/// All claimable logins of the daemon.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    connections: HashMap<[u8; 16], Connection>,
    outlive: bool,
}

#[derive(Debug)]
struct Connection {
    client_pid: u32,
    claims: HashMap<u32, Claim>,
    ended: bool,
}

/// A connection's place; its claims end with it.
#[derive(Debug)]
pub(super) struct Place {
    claims: Claims,
    cookie: [u8; 16],
}

impl Claims {
    /// Opens a place for a login process's connection.
    pub(super) fn open(&self, cookie: [u8; 16], client_pid: u32) -> Place {
        let connection = Connection { client_pid, claims: HashMap::new(), ended: false };
        self.lock().connections.insert(cookie, connection);
        Place { claims: self.clone(), cookie }
    }

    /// Takes a claim out. A wrong cookie, pid or id finds nothing and takes nothing.
    pub(super) fn take(
        &self,
        cookie: &[u8; 16],
        client_pid: u32,
        id: u32,
        now: Instant,
    ) -> Option<Claim> {
        let mut kept = self.lock();
        let connection = kept.connections.get_mut(cookie)?;
        if connection.client_pid != client_pid {
            return None;
        }
        connection.claims.remove(&id).filter(|claim| now < claim.at + CLAIMABLE)
    }

    /// The daemon ends: from now on claims outlive their connections.
    pub(super) fn outlive_connections(&self) {
        self.lock().outlive = true;
    }

    /// Whether a login may still be claimed soon: a connection is open, on which one may yet be answered, or one was
    /// answered a moment ago.
    pub(super) fn are_awaited(&self, now: Instant) -> bool {
        let is_awaited = |claim: &Claim| now < claim.at + AWAITED;
        self.lock()
            .connections
            .values()
            .any(|connection| !connection.ended || connection.claims.values().any(is_awaited))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Keeps a login for its claim.
    pub(super) fn keep(&self, id: u32, claim: Claim) {
        let mut kept = self.claims.lock();
        let Some(connection) = kept.connections.get_mut(&self.cookie) else { return };
        let claims = &mut connection.claims;
        if claims.len() >= MAX_CLAIMS {
            claims.retain(|_, kept| claim.at < kept.at + CLAIMABLE);
        }
        if claims.len() >= MAX_CLAIMS
            && let Some(oldest) = claims.iter().min_by_key(|(_, kept)| kept.at).map(|(id, _)| *id)
        {
            claims.remove(&oldest);
        }
        claims.insert(id, claim);
    }

    /// The client wants it no more.
    pub(super) fn cancel(&self, id: u32) {
        if let Some(connection) = self.claims.lock().connections.get_mut(&self.cookie) {
            connection.claims.remove(&id);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut kept = self.claims.lock();
        if !kept.outlive {
            kept.connections.remove(&self.cookie);
        } else if let Some(connection) = kept.connections.get_mut(&self.cookie) {
            connection.ended = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: [u8; 16] = [7; 16];
    const PID: u32 = 4711;

    fn claim(at: Instant) -> Claim {
        let mailbox = Arc::new(Mailbox::sample("fry@example.org"));
        Claim { mailbox, mechanism: Mechanism::Plain, at }
    }

    #[test]
    fn claims_end_with_their_connection() {
        let (claims, now) = (Claims::default(), crate::clock::now());
        let place = claims.open(COOKIE, PID);
        place.keep(1, claim(now));

        drop(place);

        assert!(claims.take(&COOKIE, PID, 1, now).is_none());
        assert!(!claims.are_awaited(now));
    }

    #[test]
    fn when_the_daemon_ends_claims_outlive_their_connection_and_are_awaited_for_two_seconds() {
        let (claims, now) = (Claims::default(), crate::clock::now());
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
