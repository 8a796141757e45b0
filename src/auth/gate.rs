//! Who may ask the directory about an account, and who waits (login.md M-6).
//!
//! Different passwords for one account are asked one after another: a burst of guesses must not run ahead of the
//! refusals it earns. Who waits is bounded: one attempt per source net, four in all; nets with an earlier success at
//! the account go first and may take a stranger's place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::cache::Table;

/// Waiting attempts per account.
const MAX_WAITING: usize = 4;

/// A source net: /24 of IPv4, /64 of IPv6; `None`: the door does not know the client.
pub type Net = Option<IpAddr>;

/// The net of an address.
#[must_use]
pub fn net(client: Option<IpAddr>) -> Net {
    client.map(|address| match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, 0))
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    })
}

/// The gates of all accounts that are being asked about.
#[derive(Clone, Debug, Default)]
pub struct Gates(Arc<Mutex<Table<Box<str>, Vec<Waiting>>>>);

#[derive(Debug)]
struct Waiting {
    net: Net,
    standing: Standing,
    go: oneshot::Sender<Turn>,
}

/// Whether a net has a good history at the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A login from there succeeded before.
    Known,
    /// None did.
    Stranger,
}

/// The right to ask about one account; the next one waiting gets it when this is dropped.
#[derive(Debug)]
pub struct Turn {
    gates: Gates,
    account: Box<str>,
}

/// Too many wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Gates {
    /// Waits for the turn to ask about an account.
    ///
    /// # Errors
    /// [`Full`] at once, or when a net with a better standing takes the place.
    ///
    /// Cancel safe: a dropped wait gives its place up.
    pub async fn turn(&self, account: &str, net: Net, standing: Standing) -> Result<Turn, Full> {
        let waiting = {
            let mut gates = self.lock();
            match gates.get_mut(account) {
                None => {
                    gates.insert(account.into(), Vec::new());
                    drop(gates);
                    return Ok(Turn { gates: self.clone(), account: account.into() });
                }
                Some(queue) => join(queue, net, standing)?,
            }
        };
        // An error means that somebody with a better standing took the place.
        waiting.await.map_err(|_| Full)
    }

    /// The turn, if nobody asks about the account now.
    #[must_use]
    pub fn try_turn(&self, account: &str) -> Option<Turn> {
        let mut gates = self.lock();
        if gates.contains_key(account) {
            return None;
        }
        gates.insert(account.into(), Vec::new());
        Some(Turn { gates: self.clone(), account: account.into() })
    }

    fn lock(&self) -> MutexGuard<'_, Table<Box<str>, Vec<Waiting>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn join(
    queue: &mut Vec<Waiting>,
    net: Net,
    standing: Standing,
) -> Result<oneshot::Receiver<Turn>, Full> {
    queue.retain(|waiting| !waiting.go.is_closed());
    if queue.iter().any(|waiting| waiting.net == net) {
        return Err(Full);
    }
    if queue.len() >= MAX_WAITING {
        let stranger = queue.iter().rposition(|waiting| waiting.standing == Standing::Stranger);
        match (standing, stranger) {
            (Standing::Known, Some(place)) => drop(queue.remove(place)),
            _ => return Err(Full),
        }
    }
    let (go, waiting) = oneshot::channel();
    let place = match standing {
        Standing::Known => queue
            .iter()
            .position(|waiting| waiting.standing == Standing::Stranger)
            .unwrap_or(queue.len()),
        Standing::Stranger => queue.len(),
    };
    queue.insert(place, Waiting { net, standing, go });
    Ok(waiting)
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut gates = self.gates.lock();
        let next = gates.get_mut(&self.account).and_then(|queue| {
            queue.retain(|waiting| !waiting.go.is_closed());
            (!queue.is_empty()).then(|| queue.remove(0))
        });
        match next {
            None => {
                gates.remove(&self.account);
            }
            Some(next) => {
                drop(gates);
                let turn = Self { gates: self.gates.clone(), account: self.account.clone() };
                // Handed on; if the waiter is gone meanwhile, the turn comes back here and is dropped again.
                drop(next.go.send(turn));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> Net {
        net(Some(IpAddr::V4(Ipv4Addr::new(192, 0, last, 7))))
    }

    #[tokio::test]
    async fn one_asks_and_the_others_wait_their_turn() {
        let gates = Gates::default();
        let first = gates.turn("a", from(1), Standing::Stranger).await.unwrap();
        let second = tokio::spawn({
            let gates = gates.clone();
            async move { gates.turn("a", from(2), Standing::Stranger).await.is_ok() }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());

        drop(first);

        assert!(second.await.unwrap());
        assert!(gates.lock().is_empty());
    }

    #[tokio::test]
    async fn one_net_waits_once_and_four_wait_in_all() {
        let gates = Gates::default();
        let _first = gates.turn("a", from(1), Standing::Stranger).await.unwrap();
        let mut waits = Vec::new();
        for last in 2..6 {
            let gates = gates.clone();
            waits.push(tokio::spawn(async move {
                gates.turn("a", from(last), Standing::Stranger).await.map(drop)
            }));
            tokio::task::yield_now().await;
        }

        assert_eq!(gates.turn("a", from(2), Standing::Stranger).await.err(), Some(Full));
        assert_eq!(gates.turn("a", from(9), Standing::Stranger).await.err(), Some(Full));
        assert!(gates.turn("b", from(9), Standing::Stranger).await.is_ok());
    }

    #[tokio::test]
    async fn a_net_with_an_earlier_success_takes_a_strangers_place_and_goes_first() {
        let gates = Gates::default();
        let first = gates.turn("a", from(1), Standing::Stranger).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waits = Vec::new();
        for (last, standing) in [
            (2, Standing::Stranger),
            (3, Standing::Stranger),
            (4, Standing::Stranger),
            (5, Standing::Stranger),
            (6, Standing::Known),
        ] {
            let (gates, order) = (gates.clone(), Arc::clone(&order));
            waits.push(tokio::spawn(async move {
                if let Ok(_turn) = gates.turn("a", from(last), standing).await {
                    order.lock().unwrap().push(last);
                }
            }));
            tokio::task::yield_now().await;
        }

        drop(first);
        for wait in waits {
            wait.await.unwrap();
        }

        assert_eq!(*order.lock().unwrap(), [6, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_holds_nobody_up() {
        let gates = Gates::default();
        let first = gates.turn("a", from(1), Standing::Stranger).await.unwrap();
        let given_up = tokio::spawn({
            let gates = gates.clone();
            async move { gates.turn("a", from(2), Standing::Stranger).await.map(drop) }
        });
        tokio::task::yield_now().await;
        given_up.abort();
        assert!(given_up.await.is_err());

        drop(first);

        assert!(gates.turn("a", from(3), Standing::Stranger).await.is_ok());
    }
}
