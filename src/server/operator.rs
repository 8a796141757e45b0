//! What the command line asks of a running daemon.

use std::collections::BTreeSet;

use super::control::{MailboxChange, Reply, Request};
use super::http::Health;
use super::shown::Shown;
use super::{Daemon, StartError};
use crate::identity::Address;
use crate::store::{Field, Mailbox, Standing, Store, StoreError};

impl Daemon {
    /// Answers one request of the control socket.
    pub(super) async fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Reload => match self.reload().await {
                Ok(restart) => done(&restart),
                Err(StartError::Config(problems)) => {
                    Reply::Invalid { errors: problems.0.iter().map(ToString::to_string).collect() }
                }
                Err(StartError::Directory(errors)) => {
                    Reply::Invalid { errors: errors.0.iter().map(ToString::to_string).collect() }
                }
                Err(error @ StartError::Store(_)) => {
                    Reply::Unavailable { error: error.to_string() }
                }
                Err(error) => Reply::Failed { error: error.to_string() },
            },
            Request::Stop => {
                self.shutdown.cancel();
                done(&())
            }
            Request::Health => match self.health().await {
                Health::Ready => done(&Vec::<String>::new()),
                Health::Degraded(troubles) => done(&troubles),
                Health::Down(troubles) => Reply::Unavailable { error: troubles.join("; ") },
            },
            Request::MemoryShow { name } => match self.core.remembered(&name).await {
                Some(record) => done(&record),
                None => Reply::NotFound { error: format!("nothing is remembered of {name:?}") },
            },
            Request::MemoryForget { name } => done(&self.core.forget(&name).await),
            Request::MemoryForgetAll => done(&self.core.forget_all()),
            Request::MailboxSet { address, change } => self.change(&address, &change).await,
        }
    }

    /// Who can answer now: directories and the store. Memory answers for those it knows while they are away.
    pub(super) async fn health(&self) -> Health {
        let mut troubles = Vec::new();
        let mut answers = false;
        match self.core.store().check().await {
            Ok(()) => answers = true,
            Err(error) => troubles.push(format!("store: {error}")),
        }
        for profile in self.core.setup().directories.iter() {
            let health = profile.health();
            if health.iter().any(|host| host.up) {
                answers = true;
            } else {
                troubles.push(format!("directory {}: no server answers", profile.name()));
            }
        }
        match (answers, troubles.is_empty()) {
            (_, true) => Health::Ready,
            (true, false) => Health::Degraded(troubles),
            (false, false) if self.core.remembers_anybody() => Health::Degraded(troubles),
            (false, false) => Health::Down(troubles),
        }
    }

    async fn change(&self, address: &str, change: &MailboxChange) -> Reply {
        let address = match Address::parse(address, self.core.setup().names.case) {
            Ok(address) => address,
            Err(error) => {
                return Reply::Invalid { errors: vec![format!("{address:?}: {error}")] };
            }
        };
        match change_mailbox(self.core.store(), &address, change).await {
            Ok(Some(mailbox)) => {
                self.core.mailbox_changed(&mailbox);
                tracing::info!(mailbox.address = %mailbox.address, ?change, "mailbox changed by an administrator");
                done(&Shown::new(&mailbox))
            }
            Ok(None) => Reply::NotFound { error: format!("no mailbox {address}") },
            Err(error) => Reply::Unavailable { error: format!("store: {error}") },
        }
    }
}

/// Makes an administrator's change in the store; `None`: no such mailbox. An alias leads to its mailbox.
///
/// # Errors
/// If the store cannot be reached; nothing is changed then.
pub async fn change_mailbox(
    store: &Store,
    address: &Address,
    change: &MailboxChange,
) -> Result<Option<Mailbox>, StoreError> {
    let Some(mailbox) = store.owner(address).await? else { return Ok(None) };
    let address = &mailbox.address;
    match change {
        MailboxChange::Disable => store.set_disabled(address, Standing::Disabled).await,
        MailboxChange::Enable => store.set_disabled(address, Standing::Enabled).await,
        MailboxChange::Pin(fields) => {
            let fields: BTreeSet<Field> =
                fields.iter().filter_map(|field| Field::parse(field)).collect();
            store.set_pinned(address, fields).await
        }
    }
}

fn done(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_value(value) {
        Ok(value) => Reply::Done { value },
        Err(error) => Reply::Failed { error: error.to_string() },
    }
}
