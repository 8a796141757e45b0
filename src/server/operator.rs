//! What the command line asks of a running daemon.

use std::collections::BTreeSet;

use super::control::{MailboxChange, Reply, Request};
use super::http::Health;
use super::shown::Shown;
use super::{Daemon, StartError};
use crate::auth::password;
use crate::identity::{Address, Login, LoginRules};
use crate::provision::{self, Applied, ApplyError, Refusal, Rules};
use crate::secret::Secret;
use crate::store::{Field, Mailbox, Provider, Standing, Store, StoreError};

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
            Request::MemoryOldPasswords => done(&self.core.old_passwords()),
            Request::MailboxCreate { address, template } => self.create(&address, &template).await,
            Request::MailboxSet { address, change } => self.change(&address, &change).await,
            Request::PolicyShow { who, service } => self.show_policy(&who, service.as_deref()),
            Request::PolicyReset { who } => self.reset_policy(&who),
            Request::PolicyList => self.list_policy(),
            Request::PolicyAdd { list, who, seconds, reason } => {
                self.add_entry(&list, &who, (seconds, reason)).await
            }
            Request::PolicyRemove { list, who } => self.remove_entry(&list, &who).await,
        }
    }

    /// Who can answer now: directories and the store. Memory answers for those it knows while they are away.
    pub(super) async fn health(&self) -> Health {
        let mut troubles = Vec::new();
        let mut answers = false;
        match self.core.store().check().await {
            Ok(()) => answers = true,
            // Whoever asks /readyz hears it too, and a driver's own words may name paths and hosts.
            Err(error) => {
                tracing::warn!(%error, "the store does not answer");
                troubles.push("store: does not answer".into());
            }
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

    async fn create(&self, address: &str, template: &str) -> Reply {
        let setup = self.core.setup();
        let address = match self.address(address) {
            Ok(address) => address,
            Err(reply) => return reply,
        };
        let made =
            create_mailbox(self.core.store(), &setup.rules, &setup.names, &address, template);
        match made.await {
            Ok(mailbox) => {
                self.core.mailbox_made();
                tracing::info!(mailbox.address = %mailbox.address, "mailbox made by an administrator");
                done(&Shown::new(&mailbox))
            }
            Err(error) => error.into(),
        }
    }

    async fn change(&self, address: &str, change: &MailboxChange) -> Reply {
        let address = match self.address(address) {
            Ok(address) => address,
            Err(reply) => return reply,
        };
        let setup = self.core.setup();
        let is_directory = |name: &str| setup.directories.profile(name).is_some();
        match change_mailbox(self.core.store(), &address, change, &is_directory).await {
            Ok(mailbox) => {
                match change {
                    MailboxChange::Password(_) | MailboxChange::Provider(_) => {
                        self.core.credentials_changed(&mailbox);
                    }
                    MailboxChange::Disable | MailboxChange::Enable | MailboxChange::Pin(_) => {
                        self.core.mailbox_changed(&mailbox);
                    }
                }
                tracing::info!(mailbox.address = %mailbox.address, ?change, "mailbox changed by an administrator");
                done(&Shown::new(&mailbox))
            }
            Err(error) => {
                if let MailboxError::Unsure(id, _) = error {
                    self.core.mailbox_unsure(id);
                }
                error.into()
            }
        }
    }

    fn address(&self, text: &str) -> Result<Address, Reply> {
        Address::parse(text, self.core.setup().names.case)
            .map_err(|error| Reply::Invalid { errors: vec![format!("{text:?}: {error}")] })
    }
}

/// Why a mailbox was not made or changed. Nothing was done then, but where it says so.
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// There is no such mailbox.
    #[error("no mailbox {0}")]
    Absent(Address),
    /// There cannot be one, or not with this.
    #[error("{0}")]
    Invalid(String),
    /// The store cannot be reached.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The store gave no answer to a change of the mailbox with this number: it may have been made.
    #[error("store: {1}")]
    Unsure(i64, #[source] StoreError),
}

impl From<MailboxError> for Reply {
    fn from(error: MailboxError) -> Self {
        let text = error.to_string();
        match error {
            MailboxError::Absent(_) => Self::NotFound { error: text },
            MailboxError::Invalid(_) => Self::Invalid { errors: vec![text] },
            MailboxError::Store(_) | MailboxError::Unsure(..) => Self::Unavailable { error: text },
        }
    }
}

/// Makes a mailbox whose password is checked here.
///
/// # Errors
/// Why there can be none.
pub async fn create_mailbox(
    store: &Store,
    rules: &Rules,
    names: &LoginRules,
    address: &Address,
    template: &str,
) -> Result<Mailbox, MailboxError> {
    // Detail is cut off and alias domains stand for others at every login: nobody could ever log in to it.
    match Login::parse(address.as_str().as_bytes(), names) {
        Ok(login) if login.address == *address => {}
        Ok(login) => {
            let error = format!("whoever logs in as {address} is {}", login.address);
            return Err(MailboxError::Invalid(error));
        }
        Err(error) => return Err(MailboxError::Invalid(format!("{address}: {error}"))),
    }
    let invalid = |refusal: &Refusal| match refusal {
        Refusal::NoTemplate => format!("there is no template {template:?}"),
        other => other.to_string(),
    };
    let plan = provision::plan_local(rules, address, template)
        .map_err(|refusal| MailboxError::Invalid(invalid(&refusal)))?;
    match provision::apply(store, &plan).await {
        Ok(Applied::Done { mailbox, .. }) => Ok(*mailbox),
        Ok(Applied::Stale { .. }) => {
            Err(MailboxError::Invalid(format!("{address} is somebody's already")))
        }
        Err(ApplyError::Refused(refusal)) => Err(MailboxError::Invalid(invalid(&refusal))),
        Err(ApplyError::Store(error)) => Err(error.into()),
    }
}

/// Makes an administrator's change in the store. An alias leads to its mailbox. `is_directory` says whether a
/// directory of this name is configured.
///
/// # Errors
/// Nothing was changed.
pub async fn change_mailbox(
    store: &Store,
    address: &Address,
    change: &MailboxChange,
    is_directory: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Mailbox, MailboxError> {
    let absent = || MailboxError::Absent(address.clone());
    let mailbox = store.owner(address).await?.ok_or_else(absent)?;
    let own = &mailbox.address;
    let changed = match change {
        MailboxChange::Disable => store.set_disabled(own, Standing::Disabled).await,
        MailboxChange::Enable => store.set_disabled(own, Standing::Enabled).await,
        MailboxChange::Pin(fields) => {
            let fields: BTreeSet<Field> =
                fields.iter().filter_map(|field| Field::parse(field)).collect();
            store.set_pinned(own, fields).await
        }
        MailboxChange::Password(hash) => {
            password::accept_hash(&hash.0)
                .map_err(|error| MailboxError::Invalid(error.to_string()))?;
            store.set_password(own, &Secret::new(hash.0.clone())).await
        }
        MailboxChange::Provider(text) => {
            store.set_provider(own, &provider(text, is_directory)?).await
        }
    };
    changed.map_err(|error| MailboxError::Unsure(mailbox.id, error))?.ok_or_else(absent)
}

/// `local`, or `ldap:` and the name of a directory.
fn provider(
    text: &str,
    is_directory: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Provider, MailboxError> {
    match text.strip_prefix("ldap:") {
        _ if text == "local" => Ok(Provider::Local),
        Some(name) if is_directory(name) => Ok(Provider::Directory(name.into())),
        Some(name) => Err(MailboxError::Invalid(format!("there is no directory {name:?}"))),
        None => Err(MailboxError::Invalid(format!("{text:?}: expected local or ldap:NAME"))),
    }
}

pub(super) fn done(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_value(value) {
        Ok(value) => Reply::Done { value },
        Err(error) => Reply::Failed { error: error.to_string() },
    }
}
