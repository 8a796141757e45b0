//! Postfix' policy server: may whoever is logged in send as this sender?
//!
//! The answer is never `OK`, which would skip the restrictions that follow.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::Seldom;
use crate::auth::{Facts, Reason, Service, objection_to};
use crate::clock;
use crate::lookup::{Found, Map};
use crate::proto::postfix::policy::{Action, Request, Session, State};
use crate::server::door::Door;
use crate::server::wire::{Awaits, Read, Wire};
use crate::store::{Resident, StoreError};

/// One door that speaks Postfix' policy protocol.
pub(in crate::server) struct PolicyDoor {
    door: Door,
    store_trouble: Seldom,
}

/// What becomes of a message, as far as we can say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Judgement {
    /// Nothing speaks against it.
    Dunno,
    /// Nobody can say now.
    Later,
    /// The sender's address is not theirs.
    NotOwned {
        /// Who is logged in.
        login: Box<str>,
    },
    /// Who is logged in may not send (any more).
    Suspended(Reason),
}

impl PolicyDoor {
    pub(in crate::server) fn new(door: Door) -> Self {
        Self { door, store_trouble: Seldom::default() }
    }
}

/// Serves one connection until the peer is gone, breaks the protocol, or `shutdown` ends it. A request that was read is
/// answered in any case.
///
/// # Errors
/// What ended it, if not the peer.
pub(in crate::server) async fn serve<S>(
    stream: S,
    door: Arc<PolicyDoor>,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut wire = Wire::new(stream, &door.door);
    let mut session = Session::default();
    loop {
        match session.next_request(&mut wire.input) {
            Ok(Some(request)) => {
                wire.understood();
                door.answer(&request, &mut wire.output).await;
            }
            Ok(None) => {
                let within = session.is_within_request();
                let awaits = if within { Awaits::RestOfRequest } else { Awaits::Request };
                if wire.read(awaits, &shutdown).await? == Read::End {
                    return wire.close().await;
                }
            }
            Err(error) => return wire.broken(error).await,
        }
    }
}

impl PolicyDoor {
    async fn answer(&self, request: &Request, output: &mut Vec<u8>) {
        let judgement = match self.judge(request).await {
            Ok(judgement) => judgement,
            Err(error) => {
                if self.store_trouble.is_due(clock::now()) {
                    tracing::error!(
                        door = %self.door.name, %error,
                        "store failed at a policy request, mail is put off"
                    );
                }
                Judgement::Later
            }
        };
        if let Judgement::NotOwned { .. } | Judgement::Suspended(_) = judgement {
            tracing::info!(
                door = %self.door.name, login.name = ?String::from_utf8_lossy(&request.login),
                sender = ?String::from_utf8_lossy(&request.sender), client.ip = ?request.client,
                ?judgement, "refused to send"
            );
        }
        judgement.encode(output);
    }

    /// Each rule in its turn; the first that speaks against the message decides. What counts messages must come last:
    /// what is refused for another reason does not count.
    async fn judge(&self, request: &Request) -> Result<Judgement, StoreError> {
        if request.state == State::Other || request.login.is_empty() {
            return Ok(Judgement::Dunno);
        }
        let login = self.door.lookup.resident(&request.login).await?;
        if let Some(reason) = login.as_ref().and_then(|login| self.suspended(login)) {
            return Ok(Judgement::Suspended(reason));
        }
        self.owner(request, login.as_deref()).await
    }

    /// Sessions that were open when the mailbox was disabled end here.
    fn suspended(&self, login: &Resident) -> Option<Reason> {
        let setup = self.door.core.setup();
        let domain = setup.rules.domain(login.address.domain());
        let facts = Facts {
            disabled_by_admin: login.disabled_by_admin,
            domain_active: domain.is_some_and(|domain| domain.active),
            settings: &login.settings,
        };
        objection_to(facts, Service::Smtp)
    }

    async fn owner(
        &self,
        request: &Request,
        login: Option<&Resident>,
    ) -> Result<Judgement, StoreError> {
        // Bounces and receipts of mail programs are from nobody, and anybody may send them.
        if request.sender.is_empty() {
            return Ok(Judgement::Dunno);
        }
        let owner = match self.door.lookup.find(Map::SenderLogin, &request.sender).await? {
            Found::Value(owner) => Some(owner),
            Found::Nothing => None,
            Found::Later => return Ok(Judgement::Later),
        };
        Ok(match (owner, login) {
            (Some(owner), Some(login)) if *owner == *login.address.as_str() => Judgement::Dunno,
            (_, Some(login)) => Judgement::NotOwned { login: login.address.as_str().into() },
            // Somebody whom another authentication let in: their own addresses are not ours to judge.
            (None, None) => Judgement::Dunno,
            (Some(_), None) => {
                let login = String::from_utf8_lossy(&request.login).into_owned();
                Judgement::NotOwned { login: login.into() }
            }
        })
    }
}

impl Judgement {
    fn encode(&self, output: &mut Vec<u8>) {
        match self {
            Self::Dunno => Action::Dunno.encode(output),
            Self::Later => {
                Action::DeferIfPermit("4.3.0 Cannot check the sender now, try again later")
                    .encode(output);
            }
            Self::NotOwned { login } => {
                // The words that Postfix itself has for it.
                let text = format!("not owned by user {login}");
                Action::Refuse { code: "553 5.7.1", text: &text }.encode(output);
            }
            Self::Suspended(reason) => {
                let text = match reason {
                    Reason::DeliveryOnly => "This mailbox only receives mail",
                    Reason::ProtocolNotAllowed => "This account may not send mail",
                    _ => "This mailbox is disabled",
                };
                Action::Refuse { code: "550 5.7.1", text }.encode(output);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as docs/protocols/postfix.md prints it.
    fn table() -> String {
        let suspended = [
            Reason::MailboxDisabled,
            Reason::DomainInactive,
            Reason::Inactive,
            Reason::DeliveryOnly,
            Reason::ProtocolNotAllowed,
        ];
        let suspended = suspended.map(|reason| {
            (
                format!("who is logged in may not send: {}", reason.as_str()),
                Judgement::Suspended(reason),
            )
        });
        let mut rows = Vec::from(suspended);
        let login = "LOGIN".into();
        rows.push(("the sender's address is not theirs".into(), Judgement::NotOwned { login }));
        rows.push(("the database of mailboxes cannot be asked".into(), Judgement::Later));
        rows.push(("nothing of this".into(), Judgement::Dunno));
        let mut lines = String::from("| what is found | reply |\n|---|---|\n");
        for (what, judgement) in rows {
            let mut reply = Vec::new();
            judgement.encode(&mut reply);
            lines += &format!("| {what} | `{}` |\n", String::from_utf8(reply).unwrap().trim_end());
        }
        lines
    }

    #[test]
    fn the_table_of_replies_stands_in_the_docs() {
        let docs = include_str!("../../../docs/protocols/postfix.md");
        assert!(docs.contains(&table()), "docs/protocols/postfix.md must hold:\n{}", table());
    }
}
