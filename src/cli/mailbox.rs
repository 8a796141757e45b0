//! `gatepost mailbox list|show|create|set-provider|set-password|enable|disable|pin`.

use clap::Subcommand;

use super::{Context, Exit, Stopped, remote};
use crate::auth::Reason;
use crate::auth::password::{self, HashError};
use crate::config::Loaded;
use crate::identity::Address;
use crate::provision::Rules;
use crate::secret::Password;
use crate::server::MailboxError;
use crate::server::control::{Hash, MailboxChange, Request};
use crate::server::shown::Shown;
use crate::store::{Field, Mailbox, Store};

/// Mailboxes read from the store at a time.
const PAGE: u32 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Every mailbox, a line each
    List,
    /// One mailbox with everything known of it
    Show {
        /// Its address, or an alias
        address: String,
    },
    /// Make a mailbox whose password is checked here; it has none until `set-password`
    Create {
        /// Its address
        address: String,
        /// The template it gets its settings from
        #[arg(long, value_name = "NAME")]
        template: String,
    },
    /// Who checks its password from now on. A password that it has here stays as it is meanwhile
    SetProvider {
        /// Its address
        address: String,
        /// local, or ldap: and the name of a directory
        provider: String,
    },
    /// Its own password, for provider local and for auth.fallback. Read from standard input or a prompt
    SetPassword {
        /// Its address
        address: String,
        /// What is read is not the password but a hash of another system, such as `{SSHA512}…` or `$6$…`; it is kept as it is
        #[arg(long)]
        hash: bool,
    },
    /// Let it log in again
    Enable {
        /// Its address
        address: String,
    },
    /// No login from the next request on, whatever template and directory say. Connections that are open stay: end
    /// them with `doveadm kick ADDRESS`
    Disable {
        /// Its address
        address: String,
    },
    /// Fields that logins and templates leave as they are; without --field the pins are taken off
    Pin {
        /// Its address
        address: String,
        /// active, aliases, disabled_delivery, display_name, extra, protocols, quota, tags, template
        #[arg(long = "field", value_name = "FIELD")]
        fields: Vec<String>,
    },
}

pub(super) async fn run(context: &Context, command: &Command) -> Result<Exit, Stopped> {
    match command {
        Command::List => list(context).await,
        Command::Show { address } => show(context, address).await,
        Command::Create { address, template } => create(context, address, template).await,
        Command::SetProvider { address, provider } => {
            change(context, address, MailboxChange::Provider(provider.clone())).await
        }
        Command::SetPassword { address, hash } => {
            let hash = if *hash { read_hash(context)? } else { new_hash(context, address)? };
            change(context, address, MailboxChange::Password(hash)).await
        }
        Command::Enable { address } => change(context, address, MailboxChange::Enable).await,
        Command::Disable { address } => change(context, address, MailboxChange::Disable).await,
        Command::Pin { address, fields } => {
            for field in fields {
                if Field::parse(field).is_none() {
                    let known: Vec<_> = Field::ALL.iter().map(|field| field.as_str()).collect();
                    let message = format!("--field {field}: expected one of {}", known.join(", "));
                    return Err(Stopped::new(Exit::Configuration, message));
                }
            }
            change(context, address, MailboxChange::Pin(fields.clone())).await
        }
    }
}

async fn list(context: &Context) -> Result<Exit, Stopped> {
    let store = context.store(&context.load()?).await?;
    let mut all: Vec<Shown> = Vec::new();
    let mut after: Option<Address> = None;
    loop {
        let page = store.mailboxes(after.as_ref(), PAGE).await.map_err(unreachable_store)?;
        let Some(last) = page.last() else { break };
        after = Some(last.address.clone());
        all.extend(page.iter().map(Shown::new));
    }
    context.output.print(&all, |all| {
        let line = |mailbox: &Shown| {
            format!(
                "{:<40} {:<16} {:<12} {}",
                mailbox.address,
                mailbox.template,
                mailbox.standing(),
                mailbox.display_name
            )
        };
        all.iter().map(line).collect::<Vec<_>>().join("\n")
    });
    Ok(Exit::Done)
}

async fn show(context: &Context, address: &str) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    let store = context.store(&loaded).await?;
    let mailbox = find(&store, &loaded, address).await?;
    context.output.print(&Shown::new(&mailbox), Shown::text);
    Ok(Exit::Done)
}

/// Hashes a password that is read.
fn new_hash(context: &Context, address: &str) -> Result<Hash, Stopped> {
    let read = context.output.password(&format!("new password of {address}: "));
    let password = Password::new(read.map_err(unreadable)?);
    if !password.is_well_formed() {
        return Err(Stopped::new(Exit::Configuration, Reason::BadPasswordForm.explanation()));
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| Stopped::new(Exit::Failure, error))?;
    let hash = password::hash(&password, salt);
    let hash = hash.map_err(|error| Stopped::new(Exit::Failure, error))?;
    Ok(Hash(hash.expose().to_owned()))
}

fn read_hash(context: &Context) -> Result<Hash, Stopped> {
    let read = context.output.password("hash: ").map_err(unreadable)?;
    let text = String::from_utf8(read).map_err(|_| HashError::Malformed);
    let text = text.and_then(|text| password::accept_hash(&text).map(|()| text));
    text.map(Hash).map_err(|error| Stopped::new(Exit::Configuration, error))
}

fn unreadable(error: std::io::Error) -> Stopped {
    Stopped::new(Exit::Failure, format!("cannot read the password: {error}"))
}

async fn create(context: &Context, address: &str, template: &str) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    let request =
        Request::MailboxCreate { address: address.to_owned(), template: template.to_owned() };
    let made = match remote::mailbox(context, &loaded, &request).await? {
        Some(made) => made,
        None => {
            let store = context.store(&loaded).await?;
            store.mirror_domains(&loaded.config.domain).await.map_err(unreachable_store)?;
            let address = parse(&loaded, address)?;
            let rules = Rules::new(&loaded.config);
            let names = loaded.config.names();
            let made =
                crate::server::create_mailbox(&store, &rules, &names, &address, template).await;
            serde_json::to_value(Shown::new(&made.map_err(stopped)?)).unwrap_or_default()
        }
    };
    print_change(context, &made);
    Ok(Exit::Done)
}

/// Through the daemon where one runs, so that it takes effect at once; else in the store.
async fn change(context: &Context, address: &str, change: MailboxChange) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    let request = Request::MailboxSet { address: address.to_owned(), change: change.clone() };
    let mailbox = match remote::mailbox(context, &loaded, &request).await? {
        Some(mailbox) => mailbox,
        None => {
            let store = context.store(&loaded).await?;
            let address = parse(&loaded, address)?;
            let directories = &loaded.config.directory;
            let is_directory = |name: &str| directories.get(name).is_some_and(|it| it.enabled);
            let changed =
                crate::server::change_mailbox(&store, &address, &change, &is_directory).await;
            serde_json::to_value(Shown::new(&changed.map_err(stopped)?)).unwrap_or_default()
        }
    };
    print_change(context, &mailbox);
    Ok(Exit::Done)
}

fn print_change(context: &Context, mailbox: &serde_json::Value) {
    context.output.print(mailbox, |mailbox| {
        let text = |key: &str| match mailbox.get(key) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        format!(
            "{} provider={} disabled_by_admin={} pinned={}",
            text("address"),
            text("provider"),
            text("disabled_by_admin"),
            text("pinned")
        )
    });
}

fn parse(loaded: &Loaded, address: &str) -> Result<Address, Stopped> {
    Address::parse(address, loaded.config.names().case)
        .map_err(|error| Stopped::new(Exit::Configuration, format!("{address:?}: {error}")))
}

async fn find(store: &Store, loaded: &Loaded, address: &str) -> Result<Mailbox, Stopped> {
    let address = parse(loaded, address)?;
    let found = store.owner(&address).await.map_err(unreachable_store)?;
    found.ok_or_else(|| stopped(MailboxError::Absent(address)))
}

fn stopped(error: MailboxError) -> Stopped {
    let exit = match error {
        MailboxError::Absent(_) => Exit::NotFound,
        MailboxError::Invalid(_) => Exit::Configuration,
        MailboxError::Store(_) | MailboxError::Unsure(..) => Exit::Unreachable,
    };
    Stopped::new(exit, error)
}

fn unreachable_store(error: crate::store::StoreError) -> Stopped {
    stopped(error.into())
}
