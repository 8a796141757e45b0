//! Postfix' look-up tables, over socketmap: requests of one read are answered with one write, from memory where it
//! knows; else the answer waits for the store.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::Seldom;
use crate::clock;
use crate::lookup::{Found, Map};
use crate::proto::postfix::socketmap::{Reply, Request, next_request};
use crate::server::door::Door;
use crate::server::wire::{Awaits, Read, Wire};
use crate::store::StoreError;

/// Names of tables that do not exist, kept so that each is told once.
const MAX_UNKNOWN: usize = 16;

/// One door that speaks socketmap.
pub(in crate::server) struct MapsDoor {
    door: Door,
    store_trouble: Seldom,
    unknown: Mutex<Vec<Box<[u8]>>>,
}

impl MapsDoor {
    pub(in crate::server) fn new(door: Door) -> Self {
        Self { door, store_trouble: Seldom::default(), unknown: Mutex::default() }
    }
}

/// Serves one connection until the peer is gone, breaks the protocol, or `shutdown` ends it. A request that was read is
/// answered in any case.
///
/// # Errors
/// What ended it, if not the peer.
pub(in crate::server) async fn serve<S>(
    stream: S,
    door: Arc<MapsDoor>,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut wire = Wire::new(stream, &door.door, shutdown);
    loop {
        match next_request(&mut wire.input) {
            Ok(Some(request)) => {
                wire.understood();
                door.answer(&request, &mut wire).await?;
            }
            Ok(None) => {
                if wire.read(Awaits::Request).await? == Read::End {
                    return wire.close().await;
                }
            }
            Err(error) => return wire.broken(error).await,
        }
    }
}

impl MapsDoor {
    async fn answer<S>(&self, request: &Request, wire: &mut Wire<S>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let Some(map) = Map::parse(&request.map) else {
            self.complain_of_table(&request.map);
            // Not NOTFOUND: a mistyped name must not bounce mail.
            Reply::Temp("there is no table of this name").encode(&mut wire.output);
            return Ok(());
        };
        let found = match self.door.lookup.recall(map, &request.key) {
            Some(found) => Ok(found),
            None => {
                // Answers that are ready do not wait for the store.
                wire.flush().await?;
                self.door.lookup.find(map, &request.key).await
            }
        };
        if let Err(error) = &found {
            self.complain_of_store(error);
        }
        let (reply, word) = said(&found);
        reply.encode(&mut wire.output);
        self.door.metrics.lookup(&self.door.name, map.as_str(), word);
        Ok(())
    }

    fn complain_of_store(&self, error: &StoreError) {
        if self.store_trouble.is_due(clock::now()) {
            tracing::error!(door = %self.door.name, %error, "store failed at a look-up, mail is put off");
        }
    }

    fn complain_of_table(&self, name: &[u8]) {
        self.door.metrics.protocol_error(&self.door.name);
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.len() < MAX_UNKNOWN && !unknown.iter().any(|known| **known == *name) {
            unknown.push(name.into());
            let name = String::from_utf8_lossy(name.get(..64).unwrap_or(name)).into_owned();
            tracing::error!(
                door = %self.door.name, table = ?name,
                "there is no look-up table of this name, mail is put off"
            );
        }
    }
}

/// What each outcome becomes, and its word in the metrics. docs/protocols/postfix.md prints it.
fn said(found: &Result<Found, StoreError>) -> (Reply<'_>, &'static str) {
    match found {
        Ok(Found::Value(value)) => (Reply::Found(value), "found"),
        Ok(Found::Nothing) => (Reply::NotFound, "nothing"),
        Ok(Found::Later) => (Reply::Temp("mail for this mailbox is put off"), "later"),
        Err(_) => (Reply::Temp("the database of mailboxes does not answer"), "later"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as docs/protocols/postfix.md prints it.
    fn table() -> String {
        let unavailable = StoreError::Unavailable { what: String::new(), source: None };
        let mut lines = String::from("| look-up | reply |\n|---|---|\n");
        for (what, found) in [
            ("found", Ok(Found::Value("VALUE".into()))),
            ("nobody's, or what is no address at all", Ok(Found::Nothing)),
            (
                "a mailbox whose mail is put off (`disabled_delivery = \"tempfail\"`)",
                Ok(Found::Later),
            ),
            ("the database of mailboxes cannot be asked", Err(unavailable)),
        ] {
            let mut reply = Vec::new();
            said(&found).0.encode(&mut reply);
            let reply = String::from_utf8(reply).unwrap();
            let (_, payload) = reply.trim_end_matches(',').split_once(':').unwrap();
            lines += &format!("| {what} | `{}` |\n", payload.trim_end());
        }
        lines
    }

    #[test]
    fn the_table_of_replies_stands_in_the_docs() {
        let docs = include_str!("../../../docs/protocols/postfix.md");
        assert!(docs.contains(&table()), "docs/protocols/postfix.md must hold:\n{}", table());
    }
}
