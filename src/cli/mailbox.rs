//! `gatepost mailbox list|show|enable|disable|pin`.

use clap::Subcommand;

use super::{Context, Exit, Stopped, remote};
use crate::config::Loaded;
use crate::identity::Address;
use crate::server::control::MailboxChange;
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

/// Through the daemon where one runs, so that it takes effect at once; else in the store.
async fn change(context: &Context, address: &str, change: MailboxChange) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    let mailbox = match remote::change_mailbox(context, &loaded, address, &change).await? {
        Some(mailbox) => mailbox,
        None => {
            let store = context.store(&loaded).await?;
            let address = find(&store, &loaded, address).await?.address;
            let changed = crate::server::change_mailbox(&store, &address, &change).await;
            let changed = changed.map_err(unreachable_store)?.ok_or_else(|| absent(&address))?;
            serde_json::to_value(Shown::new(&changed)).unwrap_or_default()
        }
    };
    context.output.print(&mailbox, |mailbox| {
        let text = |key: &str| match mailbox.get(key) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        format!(
            "{} disabled_by_admin={} pinned={}",
            text("address"),
            text("disabled_by_admin"),
            text("pinned")
        )
    });
    Ok(Exit::Done)
}

async fn find(store: &Store, loaded: &Loaded, address: &str) -> Result<Mailbox, Stopped> {
    let case = loaded.config.names().case;
    let address = Address::parse(address, case)
        .map_err(|error| Stopped::new(Exit::Configuration, format!("{address:?}: {error}")))?;
    let found = store.owner(&address).await.map_err(unreachable_store)?;
    found.ok_or_else(|| absent(&address))
}

fn absent(address: &Address) -> Stopped {
    Stopped::new(Exit::NotFound, format!("no mailbox {address}"))
}

fn unreachable_store(error: crate::store::StoreError) -> Stopped {
    Stopped::new(Exit::Unreachable, format!("store: {error}"))
}
