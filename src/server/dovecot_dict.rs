//! Dovecot 2.3's dict proxy: logins and look-ups as values of keys, answered in order.
//!
//! A dict has no word for "wrong password": a login that is refused is answered with a password that nobody can know.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::door::Door;
use super::listener::Peer;
use super::userdb::{self, Residence, Users};
use super::wire::{Awaits, Read, Wire};
use crate::auth::{Attempt, Credentials, Reason, Service, Verdict};
use crate::clock;
use crate::proto::dovecot::dict::{Command, DictReply, DictSession, PasswordKey, Question, Typed};
use crate::secret::Password;

/// One door that speaks the dict protocol.
pub(super) struct DictDoor {
    pub(super) door: Door,
    pub(super) key: PasswordKey,
}

impl Deref for DictDoor {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
    }
}

/// What a refusal becomes: this door's table, printed in docs/protocols/dovecot.md (login.md D-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// `N`: Dovecot asks its next passdb.
    NotFound,
    /// A password that cannot match.
    Mismatch,
}

fn words(reason: Reason) -> Words {
    match reason {
        Reason::Unknown | Reason::BadName => Words::NotFound,
        _ => Words::Mismatch,
    }
}

struct Driver<S> {
    wire: Wire<S>,
    door: Arc<DictDoor>,
    peer: Option<Credentials>,
}

/// Serves one connection until the peer is gone, breaks the protocol, or `shutdown` ends it.
///
/// # Errors
/// What ended it, if not the peer.
pub(super) async fn serve<S>(
    stream: S,
    door: Arc<DictDoor>,
    peer: Peer,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let wire = Wire::new(stream, &door, shutdown);
    let mut driver = Driver { wire, door, peer: peer.credentials };
    let mut session = DictSession::new();
    loop {
        match session.next_command(&mut driver.wire.input, &driver.door.key) {
            Ok(Some(command)) => {
                driver.wire.understood();
                driver.command(command).await?;
            }
            Ok(None) => {
                if driver.wire.read(Awaits::Request).await? == Read::End {
                    return Ok(());
                }
            }
            Err(error) => return driver.wire.broken(error).await,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Driver<S> {
    async fn command(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Passdb(question) => self.judge(question).await?,
            Command::Userdb { user, service } => self.find(&user, &service).await,
            Command::Other => {
                tracing::warn!(door = %self.door.name, "a dict key that is none of ours: see contrib/dovecot-dict");
                self.reply(DictReply::Failed("not a key of this dict"));
            }
            Command::Iterate { limit } => self.list(limit).await?,
            Command::IterateOther => self.reply(DictReply::Failed("not a key of this dict")),
        }
        Ok(())
    }

    async fn judge(&mut self, question: Question) -> io::Result<()> {
        let Question { user, service, client, typed } = question;
        let password = match typed {
            Typed::Password(password) => password,
            Typed::Nothing => return self.look(&user, &service).await,
            Typed::Unreadable => {
                // Another key on Dovecot's side: whoever typed the password is not at fault.
                tracing::error!(
                    door = %self.door.name,
                    "the password in a dict key cannot be decrypted: is password_key Dovecot's?"
                );
                self.reply(DictReply::Failed("the password cannot be decrypted"));
                return Ok(());
            }
        };
        let attempt = self.attempt(user, password, &service, client);
        match self.door.decide_and_delay(attempt).await {
            Verdict::Accept(accepted) => {
                let mailbox = accepted.mailbox;
                let mut members = userdb::prefetched(&mailbox.place, &mailbox.settings);
                members.push(("user".into(), mailbox.address.to_string()));
                members.push(("nopassword".into(), String::new()));
                self.found(&members);
            }
            Verdict::Reject(refused) => match words(refused.reason) {
                Words::NotFound => self.reply(DictReply::NotFound),
                Words::Mismatch => {
                    let password = unmatchable()?;
                    self.reply(DictReply::Found(&[("password", &password)]));
                }
            },
            Verdict::Unavailable(_) => self.reply(DictReply::Failed("try again later")),
        }
        Ok(())
    }

    /// What a login would give, without one. No password that is typed matches the answer, an empty one included.
    async fn look(&mut self, user: &[u8], service: &str) -> io::Result<()> {
        match userdb::find(&self.door, user, service, |_| true).await {
            Residence::At(mailbox) => {
                let mut members = userdb::prefetched(&mailbox.place, &mailbox.settings);
                members.push(("user".into(), mailbox.address.to_string()));
                members.push(("password".into(), unmatchable()?));
                self.found(&members);
            }
            Residence::Nowhere | Residence::Barred(_) => self.reply(DictReply::NotFound),
            Residence::Later => self.reply(DictReply::Failed("try again later")),
        }
        Ok(())
    }

    fn attempt(
        &self,
        login: Vec<u8>,
        password: Password,
        service: &str,
        client: Option<std::net::IpAddr>,
    ) -> Attempt {
        Attempt {
            login,
            authzid: Vec::new(),
            password,
            service: Service::parse(service),
            service_name: service.to_owned().into(),
            client: client.map(|client| client.to_canonical()),
            peer: self.peer,
            session: None,
            door: Arc::clone(&self.door.name),
            arrived: clock::now(),
        }
    }

    async fn find(&mut self, user: &[u8], service: &str) {
        match userdb::find(&self.door, user, service, |_| true).await {
            Residence::At(mailbox) => {
                let mut members = userdb::fields(&mailbox.place, &mailbox.settings);
                members.push(("user".into(), mailbox.address.to_string()));
                self.found(&members);
            }
            Residence::Nowhere | Residence::Barred(_) => self.reply(DictReply::NotFound),
            Residence::Later => self.reply(DictReply::Failed("try again later")),
        }
    }

    async fn list(&mut self, limit: Option<u32>) -> io::Result<()> {
        let door = Arc::clone(&self.door);
        let mut users = Users::of(door.core.store());
        let mut left = limit.unwrap_or(u32::MAX);
        loop {
            let page = match users.page().await {
                Ok(page) => page,
                Err(error) => {
                    userdb::log_store_failure(&door, &error);
                    self.reply(DictReply::Failed("the list is not whole: try again later"));
                    return Ok(());
                }
            };
            if page.is_empty() || left == 0 {
                self.reply(DictReply::ListDone);
                return Ok(());
            }
            for user in page.iter().take(left.try_into().unwrap_or(usize::MAX)) {
                self.reply(DictReply::ListItem(user));
                left -= 1;
            }
            self.wire.flush().await?;
        }
    }

    fn found(&mut self, members: &[(String, String)]) {
        let members: Vec<_> =
            members.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        self.reply(DictReply::Found(&members));
    }

    fn reply(&mut self, reply: DictReply<'_>) {
        reply.encode(&mut self.wire.output);
    }
}

/// A password that nobody can know: 128 random bits, drawn for this reply alone.
fn unmatchable() -> io::Result<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(io::Error::from)?;
    Ok(format!("{{PLAIN}}{:032x}", u128::from_be_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_reasons_stands_in_the_docs() {
        let mut table = String::from("| reason | dict |\n|---|---|\n");
        for reason in Reason::ALL.iter().filter(|it| words(**it) == Words::NotFound) {
            table += &format!("| {} | `N` |\n", reason.as_str());
        }
        table += "| any other | `O` with a password that cannot match |\n";
        let docs = include_str!("../../docs/protocols/dovecot.md");
        assert!(docs.contains(&table), "docs/protocols/dovecot.md must hold:\n{table}");
    }

    #[test]
    fn a_password_that_cannot_match_is_another_one_each_time() {
        let (one, other) = (unmatchable().unwrap(), unmatchable().unwrap());

        assert_ne!(one, other);
        assert_eq!(one.len(), "{PLAIN}".len() + 32);
    }
}
