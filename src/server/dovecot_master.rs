//! Dovecot's auth master protocol: claims of logins, userdb look-ups, user lists, cache flushes.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::claims::Claims;
use super::door::Door;
use super::userdb::{self, Residence, Users};
use super::wire::{Awaits, Read, Wire};
use crate::clock;
use crate::identity::Address;
use crate::proto::dovecot::master::{
    Command, ListEnd, MasterKind, MasterReply, MasterSession, mask_matches,
};
use crate::store::Resident;

/// One door that speaks the master protocol.
pub(super) struct MasterDoor {
    pub(super) door: Door,
    pub(super) claims: Claims,
    pub(super) server_pid: u32,
}

impl Deref for MasterDoor {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
    }
}

struct Driver<S> {
    wire: Wire<S>,
    door: Arc<MasterDoor>,
    reader: Reader,
}

/// Who reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    /// The process, where the kernel can tell.
    pub(super) pid: Option<u32>,
    /// On a socket that everybody may open, a stranger learns only of mailboxes with their own uid, as with Dovecot's
    /// own auth-userdb.
    pub(super) only_uid: Option<u32>,
}

impl Reader {
    fn may_see(&self, mailbox: &Resident) -> bool {
        self.only_uid.is_none_or(|uid| uid == mailbox.place.uid)
    }
}

/// Serves one connection; commands are answered in order.
///
/// # Errors
/// What ended it, if not the peer.
pub(super) async fn serve<S>(
    stream: S,
    door: Arc<MasterDoor>,
    kind: MasterKind,
    reader: Reader,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut session = MasterSession::new(kind);
    let wire = Wire::new(stream, &door, shutdown);
    let mut driver = Driver { wire, door, reader };
    session.greet(driver.door.server_pid, &mut driver.wire.output);
    loop {
        match session.next_command(&mut driver.wire.input) {
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
            Command::User { id, user, service } => {
                let found = self.find(&user, &service).await;
                self.reply_found(id, found);
            }
            Command::Pass { id, user, service } => {
                let found = self.find(&user, &service).await;
                self.reply_pass(id, found);
            }
            Command::List { id, .. } if self.reader.only_uid.is_some() => {
                MasterReply::ListDone { id, end: ListEnd::Failed }.encode(&mut self.wire.output);
            }
            Command::List { id, mask } => self.list(id, mask.as_deref()).await?,
            Command::Request { id, client_pid, auth_id, cookie, session_pid } => {
                self.claim(id, (client_pid, auth_id), &cookie, session_pid);
            }
            Command::CacheFlush { id, users } => {
                let count = self.forget(&users).await;
                MasterReply::Flushed { id, count }.encode(&mut self.wire.output);
            }
        }
        Ok(())
    }

    async fn find(&self, user: &[u8], service: &str) -> Residence {
        userdb::find(&self.door, user, service, |mailbox| self.reader.may_see(mailbox)).await
    }

    fn claim(
        &mut self,
        id: u32,
        (client_pid, auth_id): (u32, u32),
        cookie: &[u8; 16],
        session_pid: Option<u32>,
    ) {
        let pid_is_right = match (session_pid, self.reader.pid) {
            (Some(said), Some(is)) => said == is,
            _ => true,
        };
        let claim = pid_is_right
            .then(|| self.door.claims.take(cookie, client_pid, auth_id, clock::now()))
            .flatten();
        let Some(claim) = claim else {
            tracing::warn!(
                door = %self.door.name, client.pid = client_pid, request = auth_id, pid_is_right,
                said.pid = ?session_pid, peer.pid = ?self.reader.pid,
                "a mail process claimed a login that is not there, or not its own"
            );
            MasterReply::Fail { id, reason: Some("No such login") }.encode(&mut self.wire.output);
            return;
        };
        let mailbox = &claim.mailbox;
        let mut fields = userdb::fields(&mailbox.place, &mailbox.settings);
        fields.push(("auth_mech".into(), claim.mechanism.as_str().into()));
        self.reply_user(id, &mailbox.address, &fields);
    }

    fn reply_found(&mut self, id: u32, found: Residence) {
        match found {
            Residence::At(mailbox) => {
                let fields = userdb::fields(&mailbox.place, &mailbox.settings);
                self.reply_user(id, &mailbox.address, &fields);
            }
            other => self.reply_missing(id, &other),
        }
    }

    fn reply_pass(&mut self, id: u32, found: Residence) {
        match found {
            Residence::At(mailbox) => {
                MasterReply::Pass { id, user: mailbox.address.as_str(), fields: &[] }
                    .encode(&mut self.wire.output);
            }
            other => self.reply_missing(id, &other),
        }
    }

    fn reply_user(&mut self, id: u32, address: &Address, fields: &[(String, String)]) {
        let fields: Vec<_> =
            fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        MasterReply::User { id, user: address.as_str(), fields: &fields }
            .encode(&mut self.wire.output);
    }

    fn reply_missing(&mut self, id: u32, found: &Residence) {
        match found {
            Residence::Later => {
                MasterReply::Fail { id, reason: None }.encode(&mut self.wire.output);
            }
            Residence::At(_) | Residence::Nowhere | Residence::Barred(_) => {
                MasterReply::NotFound { id }.encode(&mut self.wire.output);
            }
        }
    }

    async fn list(&mut self, id: u32, mask: Option<&[u8]>) -> io::Result<()> {
        let door = Arc::clone(&self.door);
        let mut users = Users::of(door.core.store());
        let end = loop {
            let page = match users.page().await {
                Ok(page) if page.is_empty() => break ListEnd::Complete,
                Ok(page) => page,
                Err(error) => {
                    userdb::log_store_failure(&door, &error);
                    break ListEnd::Failed;
                }
            };
            for user in &page {
                if mask.is_none_or(|mask| mask_matches(mask, user)) {
                    MasterReply::ListItem { id, user }.encode(&mut self.wire.output);
                }
            }
            self.wire.flush().await?;
        };
        MasterReply::ListDone { id, end }.encode(&mut self.wire.output);
        Ok(())
    }

    async fn forget(&self, users: &[Vec<u8>]) -> usize {
        if users.is_empty() {
            return self.door.core.forget_all();
        }
        let mut count = 0;
        for name in users.iter().filter_map(|user| std::str::from_utf8(user).ok()) {
            count += self.door.core.forget(name).await;
        }
        count
    }
}
