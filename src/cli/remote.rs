//! Commands that a running daemon carries out: reload, stop, memory, health, changes of mailboxes.

use std::path::Path;

use clap::Subcommand;
use serde_json::Value;

use super::{Context, Exit, Stopped};
use crate::config::Loaded;
use crate::server::control::{ControlError, Reply, Request, call};

#[derive(Debug, Subcommand)]
pub(super) enum MemoryCommand {
    /// What is remembered of a name: its account, ages of proofs and refusals; never a password
    Show {
        /// The name as somebody would type it
        name: String,
    },
    /// Forget a name's account, or everything; the next login asks the directory
    Forget {
        /// The name
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// Everything
        #[arg(long)]
        all: bool,
    },
    /// Whose clients still send a password that was changed, and from where: the last week, at most 1000 mailboxes
    OldPasswords,
}

pub(super) async fn reload(context: &Context) -> Result<Exit, Stopped> {
    // A bad file is found out here already, and the daemon is not bothered with it.
    let loaded = context.load()?;
    match ask(context, context.control(&loaded), &Request::Reload).await? {
        Reply::Done { value } => {
            context.output.print(&value, |keys| {
                let keys = keys.as_array().into_iter().flatten().filter_map(Value::as_str);
                let late = keys.map(|key| format!("{key}: takes effect at the next restart"));
                std::iter::once("reloaded".to_owned()).chain(late).collect::<Vec<_>>().join("\n")
            });
            Ok(Exit::Done)
        }
        other => Err(unexpected(other)),
    }
}

pub(super) async fn stop(context: &Context) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    match ask(context, context.control(&loaded), &Request::Stop).await? {
        Reply::Done { .. } => Ok(Exit::Done),
        other => Err(unexpected(other)),
    }
}

pub(super) async fn health(context: &Context) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    match ask(context, context.control(&loaded), &Request::Health).await? {
        Reply::Done { value } => {
            context.output.print(&value, |troubles| {
                let troubles = troubles.as_array().into_iter().flatten().filter_map(Value::as_str);
                let degraded = troubles.map(|trouble| format!("degraded: {trouble}"));
                std::iter::once("ready".to_owned()).chain(degraded).collect::<Vec<_>>().join("\n")
            });
            Ok(Exit::Done)
        }
        Reply::Unavailable { error } => Err(Stopped::new(Exit::Failure, error)),
        other => Err(unexpected(other)),
    }
}

pub(super) async fn memory(context: &Context, command: &MemoryCommand) -> Result<Exit, Stopped> {
    let loaded = context.load()?;
    let control = context.control(&loaded);
    let request = match command {
        MemoryCommand::Show { name } => Request::MemoryShow { name: name.clone() },
        MemoryCommand::Forget { name: Some(name), .. } => {
            Request::MemoryForget { name: name.clone() }
        }
        MemoryCommand::Forget { name: None, .. } => Request::MemoryForgetAll,
        MemoryCommand::OldPasswords => Request::MemoryOldPasswords,
    };
    match ask(context, control, &request).await? {
        Reply::Done { value } => {
            context.output.print(&value, |value| match value {
                Value::Number(entries) => format!("{entries} forgotten"),
                Value::Array(logins) => old_passwords(logins),
                _ => text(value),
            });
            Ok(Exit::Done)
        }
        other => Err(unexpected(other)),
    }
}

/// What memory says of a name, in words for `explain`.
pub(super) async fn remembered(context: &Context, control: &Path, name: &str) -> String {
    let request = Request::MemoryShow { name: name.to_owned() };
    match call(control, &request, context.timeout).await {
        Ok(Reply::Done { value }) => value.to_string(),
        Ok(Reply::NotFound { .. }) => "nothing is remembered of this name".into(),
        Ok(_) => "the daemon gave no answer".into(),
        Err(error) => format!("not known: {error}"),
    }
}

/// Asks the daemon to make or change a mailbox; `None`: no daemon runs.
pub(super) async fn mailbox(
    context: &Context,
    loaded: &Loaded,
    request: &Request,
) -> Result<Option<Value>, Stopped> {
    match call(context.control(loaded), request, context.timeout).await {
        Ok(Reply::Done { value }) => Ok(Some(value)),
        Ok(other) => Err(unexpected(other)),
        Err(ControlError::NoDaemon(_)) => Ok(None),
        Err(error) => Err(Stopped::new(Exit::Failure, error)),
    }
}

pub(super) async fn ask(
    context: &Context,
    control: &Path,
    request: &Request,
) -> Result<Reply, Stopped> {
    call(control, request, context.timeout)
        .await
        .map_err(|error| Stopped::new(Exit::Failure, error))
}

pub(super) fn unexpected(reply: Reply) -> Stopped {
    match reply {
        Reply::NotFound { error } => Stopped::new(Exit::NotFound, error),
        Reply::Invalid { errors } => Stopped::new(Exit::Configuration, errors.join("\n")),
        Reply::Unavailable { error } => Stopped::new(Exit::Unreachable, error),
        Reply::Failed { error } => Stopped::new(Exit::Failure, error),
        Reply::Done { .. } | Reply::Forbidden => {
            Stopped::new(Exit::Failure, "the daemon gave an answer that does not fit")
        }
    }
}

/// A line per client: mailbox, address, service, attempts, seconds since the last one.
fn old_passwords(logins: &[Value]) -> String {
    let clients = logins.iter().flat_map(|login| {
        let clients = login["clients"].as_array().into_iter().flatten();
        clients.map(move |client| (&login["login"], client))
    });
    let line = |(login, client): (&Value, &Value)| {
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        format!(
            "{} client={} service={} attempts={} last_seen_seconds={}",
            word(login),
            word(&client["client"]),
            word(&client["service"]),
            client["attempts"],
            client["last_seen_seconds"],
        )
    };
    clients.map(line).collect::<Vec<_>>().join("\n")
}

/// A JSON object as `key value` lines.
fn text(value: &Value) -> String {
    let Some(object) = value.as_object() else { return value.to_string() };
    let line = |(key, value): (&String, &Value)| match value.as_str() {
        Some(text) => format!("{key:<22} {text}"),
        None => format!("{key:<22} {value}"),
    };
    object.iter().map(line).collect::<Vec<_>>().join("\n")
}
