//! The command line: arguments → command → exit code. A file per command.

mod config;
mod diagnosis;
mod explain;
mod login;
mod mailbox;
mod output;
mod policy;
mod profile;
mod remote;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::{Loaded, load};
use crate::directory::Directories;
use crate::metrics::Metrics;
use crate::store::Store;
use output::Output;

/// Mail-protocol authentication backend: cached LDAP binds, mailboxes made at first login.
#[derive(Debug, Parser)]
#[command(name = "gatepost", version, max_term_width = 100)]
pub struct Arguments {
    /// The configuration file; conf.d/*.toml beside it is merged over it
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/gatepost/gatepost.toml")]
    config: PathBuf,
    /// Print one JSON document
    #[arg(long, global = true)]
    json: bool,
    /// How long to wait for the daemon or a directory, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u64).range(1..3600))]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon; HUP reloads, TERM stops
    Serve,
    /// Ask the running daemon to read its configuration again; a bad file changes nothing
    Reload,
    /// Ask the running daemon to stop
    Stop,
    /// Check the configuration, or show what is in force
    #[command(subcommand)]
    Config(config::Command),
    /// Directories
    #[command(subcommand)]
    Profile(profile::Command),
    /// Logins
    #[command(subcommand)]
    Login(login::Command),
    /// Why a login would work or not; changes nothing and needs no password
    Explain(explain::Arguments),
    /// Mailboxes
    #[command(subcommand)]
    Mailbox(mailbox::Command),
    /// What the running daemon remembers of logins
    #[command(subcommand)]
    Memory(remote::MemoryCommand),
    /// The guessing shield
    #[command(subcommand)]
    Policy(policy::Command),
    /// Whether the running daemon is ready, for containers: exit 0 ready, 1 not
    Health,
}

/// What a command came to, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed.
    Failure,
    /// 2: usage or configuration.
    Configuration,
    /// 4: a directory or the store cannot be reached.
    Unreachable,
    /// 7: a login is, or would be, refused.
    Refused,
    /// 8: no such thing.
    NotFound,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failure => 1,
            Exit::Configuration => 2,
            Exit::Unreachable => 4,
            Exit::Refused => 7,
            Exit::NotFound => 8,
        })
    }
}

/// Why a command could not do its work: the exit code and what to say.
#[derive(Debug)]
pub struct Stopped {
    exit: Exit,
    message: String,
}

impl Stopped {
    fn new(exit: Exit, message: impl std::fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

/// What commands share.
struct Context {
    config: PathBuf,
    output: Output,
    timeout: Duration,
}

/// Runs the command that the arguments name.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    let context = Context {
        config: arguments.config,
        output: Output::new(arguments.json),
        timeout: Duration::from_secs(arguments.timeout),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            context.output.error(&format!("no runtime: {error}"));
            return Exit::Failure.into();
        }
    };
    let done = runtime.block_on(context.run(arguments.command));
    // A question to a directory that hangs must not hold the exit up.
    runtime.shutdown_background();
    match done {
        Ok(exit) => exit.into(),
        Err(stopped) => {
            context.output.error(&stopped.message);
            stopped.exit.into()
        }
    }
}

impl Context {
    async fn run(&self, command: Command) -> Result<Exit, Stopped> {
        match command {
            Command::Serve => self.serve().await,
            Command::Reload => remote::reload(self).await,
            Command::Stop => remote::stop(self).await,
            Command::Health => remote::health(self).await,
            Command::Config(command) => config::run(self, &command),
            Command::Profile(command) => profile::run(self, &command).await,
            Command::Login(command) => login::run(self, &command).await,
            Command::Explain(arguments) => explain::run(self, &arguments).await,
            Command::Mailbox(command) => mailbox::run(self, &command).await,
            Command::Memory(command) => remote::memory(self, &command).await,
            Command::Policy(command) => policy::run(self, &command).await,
        }
    }

    async fn serve(&self) -> Result<Exit, Stopped> {
        use crate::server::StartError;
        match crate::server::run(&self.config).await {
            Ok(()) => Ok(Exit::Done),
            Err(error @ (StartError::Config(_) | StartError::Directory(_))) => {
                Err(Stopped::new(Exit::Configuration, error))
            }
            Err(error) => Err(Stopped::new(Exit::Failure, error)),
        }
    }

    fn load(&self) -> Result<Loaded, Stopped> {
        load(&self.config).map_err(|problems| Stopped::new(Exit::Configuration, problems))
    }

    async fn store(&self, loaded: &Loaded) -> Result<Store, Stopped> {
        let store = &loaded.config.store;
        Store::open_existing(store).await.map_err(|error| {
            Stopped::new(Exit::Unreachable, format!("store {}: {error}", store.url))
        })
    }

    fn directories(&self, loaded: &Loaded) -> Result<Directories, Stopped> {
        Directories::build(&loaded.config.directory, None, &Metrics::new())
            .map_err(|error| Stopped::new(Exit::Configuration, error))
    }

    fn control<'a>(&self, loaded: &'a Loaded) -> &'a Path {
        &loaded.config.node.control
    }
}
