//! Logins that a mail process may still claim.
//!
//! After a login process heard OK, the imap (pop3, …) process asks the master socket for the same login's userdb
//! fields with REQUEST: client pid, request id and the connection's cookie. What was decided then is kept here until
//! it is claimed, cancelled, disconnected or too old. The cookie is 128 random bits per connection, so it alone
//! finds the connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::proto::dovecot::auth::Mechanism;
use crate::store::Mailbox;

/// Dovecot's own limit for a request (protocol: 150 s after AUTH).
const CLAIMABLE: Duration = Duration::from_secs(150);
/// Claims per connection; the oldest goes first. A login process has a handful at a time.
const MAX_CLAIMS: usize = 4096;

/// A login that was answered OK.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) mechanism: Mechanism,
    pub(super) at: Instant,
}

/// All claimable logins of the daemon.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(Arc<Mutex<HashMap<[u8; 16], Connection>>>);

#[derive(Debug)]
struct Connection {
    client_pid: u32,
    claims: HashMap<u32, Claim>,
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
        self.lock().insert(cookie, Connection { client_pid, claims: HashMap::new() });
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
        let mut connections = self.lock();
        let connection = connections.get_mut(cookie)?;
        if connection.client_pid != client_pid {
            return None;
        }
        connection.claims.remove(&id).filter(|claim| now < claim.at + CLAIMABLE)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Keeps a login for its claim.
    pub(super) fn keep(&self, id: u32, claim: Claim) {
        let mut connections = self.claims.lock();
        let Some(connection) = connections.get_mut(&self.cookie) else { return };
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
        if let Some(connection) = self.claims.lock().get_mut(&self.cookie) {
            connection.claims.remove(&id);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.claims.lock().remove(&self.cookie);
    }
}
