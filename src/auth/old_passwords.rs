//! Clients that still send a password that was changed: the phone in a drawer. They are not punished; they are listed
//! (`gatepost memory old-passwords`), so that somebody can tell their owners.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Logins that are listed; who was heard of longest ago goes first.
const MAX_LOGINS: usize = 1000;
/// Clients of each.
const MAX_CLIENTS: usize = 8;
/// A client that was quiet for so long has been told, or thrown away.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Who sends old passwords, by login.
#[derive(Debug, Default)]
pub(super) struct OldPasswords(Mutex<HashMap<Box<str>, Vec<Client>>>);

#[derive(Clone, Debug)]
struct Client {
    address: Option<IpAddr>,
    service: Box<str>,
    attempts: u64,
    last_seen: Instant,
}

/// One client, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OldPasswordClient {
    /// Its address, where the door knew it.
    pub client: Option<IpAddr>,
    /// What it logs in for, as the mail server named it.
    pub service: String,
    /// How often it tried since it was first heard of.
    pub attempts: u64,
    /// Seconds since it tried last.
    pub last_seen_seconds: u64,
}

/// One login with the clients that still send its old password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OldPasswordLogin {
    /// The login.
    pub login: String,
    /// Who, the last one first.
    pub clients: Vec<OldPasswordClient>,
}

impl OldPasswords {
    /// A client sent an old password.
    pub(super) fn note(&self, login: &str, address: Option<IpAddr>, service: &str, now: Instant) {
        let mut logins = self.lock();
        if logins.len() >= MAX_LOGINS && !logins.contains_key(login) {
            make_room(&mut logins, now);
        }
        let clients = logins.entry(login.into()).or_default();
        let place = clients
            .iter()
            .position(|client| client.address == address && *client.service == *service);
        let mut client = match place {
            Some(place) => clients.remove(place),
            None => {
                if clients.len() >= MAX_CLIENTS {
                    clients.pop();
                }
                Client { address, service: service.into(), attempts: 0, last_seen: now }
            }
        };
        client.attempts += 1;
        client.last_seen = now;
        clients.insert(0, client);
    }

    /// The clients of one login, the last one first.
    pub(super) fn of(&self, login: &str, now: Instant) -> Vec<OldPasswordClient> {
        self.lock().get(login).map_or_else(Vec::new, |clients| shown(clients, now))
    }

    /// Everybody, by login.
    pub(super) fn all(&self, now: Instant) -> Vec<OldPasswordLogin> {
        let mut all: Vec<_> = self
            .lock()
            .iter()
            .map(|(login, clients)| OldPasswordLogin {
                login: login.to_string(),
                clients: shown(clients, now),
            })
            .filter(|login| !login.clients.is_empty())
            .collect();
        all.sort_unstable_by(|one, other| one.login.cmp(&other.login));
        all
    }

    /// Begins anew for one login.
    pub(super) fn forget(&self, login: &str) {
        self.lock().remove(login);
    }

    /// Begins anew for all.
    pub(super) fn forget_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Vec<Client>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_room(logins: &mut HashMap<Box<str>, Vec<Client>>, now: Instant) {
    logins.retain(|_, clients| clients.iter().any(|client| is_recent(client, now)));
    if logins.len() >= MAX_LOGINS {
        let last = |clients: &[Client]| clients.first().map(|client| client.last_seen);
        let quietest = logins.iter().min_by_key(|(_, clients)| last(clients));
        if let Some(quietest) = quietest.map(|(login, _)| login.clone()) {
            logins.remove(&quietest);
        }
    }
}

fn is_recent(client: &Client, now: Instant) -> bool {
    now < client.last_seen + FORGOTTEN_AFTER
}

fn shown(clients: &[Client], now: Instant) -> Vec<OldPasswordClient> {
    clients
        .iter()
        .filter(|client| is_recent(client, now))
        .map(|client| OldPasswordClient {
            client: client.address,
            service: client.service.to_string(),
            attempts: client.attempts,
            last_seen_seconds: now.saturating_duration_since(client.last_seen).as_secs(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_listed_the_last_one_first_and_counted() {
        let (old, start) = (OldPasswords::default(), crate::clock::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let phone = Some(IpAddr::from([192, 0, 2, 7]));
        let (imap, smtp) = ("imap", "smtp");

        old.note("fry", phone, imap, at(0));
        old.note("fry", phone, smtp, at(1));
        old.note("fry", phone, imap, at(2));

        let of_fry = old.of("fry", at(10));
        assert_eq!(
            of_fry
                .iter()
                .map(|it| (&*it.service, it.attempts, it.last_seen_seconds))
                .collect::<Vec<_>>(),
            [("imap", 2, 8), ("smtp", 1, 9)]
        );
        assert_eq!(old.all(at(10)), [OldPasswordLogin { login: "fry".into(), clients: of_fry }]);
        assert!(old.all(at(2) + FORGOTTEN_AFTER).is_empty());
    }

    #[test]
    fn logins_and_clients_are_bounded() {
        let (old, start) = (OldPasswords::default(), crate::clock::now());
        let imap = "imap";
        for number in 0..=MAX_LOGINS {
            let at = start + Duration::from_secs(u64::try_from(number).unwrap());
            old.note(&format!("login {number}"), None, imap, at);
        }
        for last in 0..100 {
            old.note("login 7", Some(IpAddr::from([192, 0, 2, last])), imap, start);
        }

        assert_eq!(old.lock().len(), MAX_LOGINS);
        assert!(old.of("login 0", start).is_empty());
        assert_eq!(old.of("login 7", start).len(), MAX_CLIENTS);
    }
}
