//! Postfix' policy server: may whoever is logged in send as this sender, and so much?
//!
//! The answer is never `OK`, which would skip the restrictions that follow.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::Seldom;
use crate::auth::{Reason, Service};
use crate::clock;
use crate::config::units::Rate;
use crate::identity::Domain;
use crate::lookup::{Found, Map};
use crate::proto::postfix::policy::{Action, Request, Session, State};
use crate::server::door::Door;
use crate::server::wire::{Awaits, Read, Wire};
use crate::store::{Resident, StoreError};
use crate::throttle::{Sending, SendingLimits};

/// One door that speaks Postfix' policy protocol.
pub(in crate::server) struct PolicyDoor {
    door: Door,
    sending: Arc<SendingLimits>,
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
    /// The login is one of ours, or cannot be told from one, and no mailbox belongs to it.
    Stranger,
    /// Who is logged in may not send (any more).
    Suspended(Reason),
    /// They sent as much as they may, for now.
    TooMany(Rate),
}

impl PolicyDoor {
    pub(in crate::server) fn new(door: Door, sending: Arc<SendingLimits>) -> Self {
        Self { door, sending, store_trouble: Seldom::default() }
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
    let mut wire = Wire::new(stream, &door.door, shutdown);
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
                if wire.read(awaits).await? == Read::End {
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
        if let Judgement::NotOwned { .. }
        | Judgement::Stranger
        | Judgement::Suspended(_)
        | Judgement::TooMany(_) = judgement
        {
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
        let Some(login) = self.door.lookup.resident(&request.login).await? else {
            return Ok(self.login_of_others(request));
        };
        // Sessions that were open when the mailbox was disabled end here.
        if let Some(reason) = self.door.objection(&login, Service::Smtp) {
            return Ok(Judgement::Suspended(reason));
        }
        Ok(match self.owner(request, &login).await? {
            Judgement::Dunno => self.count(request, &login),
            other => other,
        })
    }

    /// One message of somebody's: the first question about it counts, if there is a recipient by then.
    fn count(&self, request: &Request, login: &Resident) -> Judgement {
        let template = &login.settings.template;
        let limit = self.door.core.setup().rules.send_limit(template);
        let Some(limit) = limit.filter(|_| request.state != State::Mail) else {
            return Judgement::Dunno;
        };
        let mailbox = login.address.as_str();
        match self.sending.send(mailbox, &request.instance, limit, clock::now()) {
            Sending::Counted => self.door.metrics.sending(template, "counted"),
            Sending::Again => {}
            Sending::TooMany => {
                self.door.metrics.sending(template, "deferred");
                return Judgement::TooMany(limit);
            }
        }
        Judgement::Dunno
    }

    /// Somebody without a mailbox of ours. Cyrus SASL says what was typed, so that names of another kind (`fry`,
    /// `fry@example.org*hermes`) come here: who they are cannot be told, and neither what they may do. Whom another
    /// authentication let in has a domain of its own and is kept from the senders of ours, whether those exist or not.
    fn login_of_others(&self, request: &Request) -> Judgement {
        if !self.is_elsewhere(&request.login) {
            return Judgement::Stranger;
        }
        if request.sender.is_empty() || self.is_elsewhere(&request.sender) {
            return Judgement::Dunno;
        }
        Judgement::NotOwned { login: String::from_utf8_lossy(&request.login).into() }
    }

    /// Whether an address has a domain, and none of ours. Postfix would append its own to what has none.
    fn is_elsewhere(&self, address: &[u8]) -> bool {
        let text = std::str::from_utf8(address).ok();
        let domain = text.and_then(|text| Domain::parse(text.rsplit_once('@')?.1).ok());
        domain.is_some_and(|domain| self.door.core.setup().rules.domain(&domain).is_none())
    }

    async fn owner(&self, request: &Request, login: &Resident) -> Result<Judgement, StoreError> {
        // Bounces and receipts of mail programs are from nobody, and anybody may send them.
        if request.sender.is_empty() {
            return Ok(Judgement::Dunno);
        }
        Ok(match self.door.lookup.find(Map::SenderLogin, &request.sender).await? {
            Found::Value(owner) if *owner == *login.address.as_str() => Judgement::Dunno,
            Found::Value(_) | Found::Nothing => {
                Judgement::NotOwned { login: login.address.as_str().into() }
            }
            Found::Later => Judgement::Later,
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
            Self::Stranger => {
                let text = "No mailbox belongs to this login";
                Action::Refuse { code: "550 5.7.1", text }.encode(output);
            }
            Self::Suspended(reason) => {
                let text = match reason {
                    Reason::DeliveryOnly => "This mailbox only receives mail",
                    Reason::ProtocolNotAllowed => "This account may not send mail",
                    _ => "This mailbox is disabled",
                };
                Action::Refuse { code: "550 5.7.1", text }.encode(output);
            }
            Self::TooMany(limit) => {
                let Rate { count, window } = limit;
                let text = format!("No more than {count} messages in {window}, try again later");
                // At RCPT, DATA and END-OF-MESSAGE alike, by a code of our own. DEFER_IF_PERMIT would leave both to
                // what follows and to access_map_defer_code.
                Action::Refuse { code: "451 4.7.1", text: &text }.encode(output);
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
        rows.push(("no mailbox belongs to the login".into(), Judgement::Stranger));
        let login = "LOGIN".into();
        rows.push(("the sender's address is not theirs".into(), Judgement::NotOwned { login }));
        rows.push(("the database of mailboxes cannot be asked".into(), Judgement::Later));
        let rate = "100/h".parse().unwrap();
        let what = "their template's `send_limit` is reached, here 100/h";
        rows.push((what.into(), Judgement::TooMany(rate)));
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
