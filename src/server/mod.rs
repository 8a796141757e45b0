//! The daemon: builds everything from the configuration, opens the doors, reloads, drains.
//!
//! The only layer that knows a protocol and the core.

pub mod activation;
mod checkpassword;
mod claims;
pub mod control;
mod door;
mod doors;
mod dovecot;
mod dovecot_dict;
mod dovecot_master;
mod feeds;
pub mod handover;
pub mod http;
pub mod listener;
pub mod lists;
mod operator;
mod patience;
mod postfix;
mod proxied;
mod saslauthd;
mod shared;
mod shield;
pub mod shown;
mod systemd;
mod tls;
mod userdb;
mod wire;
mod words;
mod write_timeout;

pub use operator::{MailboxError, change_mailbox, create_mailbox};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Authenticator, Parts, Setup, journal::Journal};
use crate::clock;
use crate::config::{self, Config, Loaded, Problems, load};
use crate::directory::{BuildErrors, Directories, Profile};
use crate::logging::{self, Logging};
use crate::lookup::Lookup;
use crate::metrics::{Metrics, Reloaded};
use crate::proto::dovecot::auth::Greeting;
use crate::store::{Store, StoreError};
use crate::throttle::{SendingLimits, Throttle};

use activation::{Passed, PassedError};
use claims::Claims;
use doors::Opened;
use feeds::Feeds;
use handover::HandedOver;
use listener::BindError;
use lists::ListBook;
use shared::{Counts, Exchange, Outbox};
use systemd::Systemd;
use tls::Certificates;

/// How long attempts under way may take to end after TERM.
const DRAIN: Duration = Duration::from_secs(15);
/// How long connections are still read after TERM, so that what was sent before it is seen, and answered.
const LINGER: Duration = Duration::from_millis(100);
/// How often it is looked, after TERM, whether all logins are claimed.
const CLAIMS_EVERY: Duration = Duration::from_millis(10);
/// How often the size of the memory is written to the metrics.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// A running daemon.
pub(crate) struct Daemon {
    path: PathBuf,
    running: tokio::sync::Mutex<Loaded>,
    logging: Logging,
    core: Arc<Authenticator>,
    lookup: Arc<Lookup>,
    metrics: Metrics,
    greeting: Arc<Greeting>,
    claims: Claims,
    handed_over: HandedOver,
    /// Of the doors that speak TLS.
    certificates: BTreeMap<String, Arc<Certificates>>,
    feeds: Feeds,
    /// Whoever changes the guessing shield's lists at run time, or lets somebody begin anew, does it here.
    pub(crate) lists: Arc<ListBook>,
    sending: Arc<SendingLimits>,
    /// With other nodes, if there are any.
    exchange: Option<Arc<Exchange>>,
    connections: AtomicU64,
    systemd: Systemd,
    /// How many there are.
    doors: usize,
    /// The newest configuration was not taken.
    refused: AtomicBool,
    /// Nobody is let in any more.
    shutdown: CancellationToken,
    /// Connections end, each when its answers under way went out.
    ending: CancellationToken,
    /// What was answered before is claimed: the master sockets and their connections end, after all others.
    claimed: CancellationToken,
    tracker: TaskTracker,
}

/// Why the daemon did not start, or did not take a configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(Problems),
    /// A directory cannot be used as configured.
    #[error(transparent)]
    Directory(#[from] BuildErrors),
    /// The database cannot be opened.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// A door cannot be opened.
    #[error("listen.{door}: {source}")]
    Listen {
        /// The door.
        door: String,
        /// What is wrong with it.
        source: BindError,
    },
    /// The control socket cannot be opened.
    #[error("node.control: {0}")]
    Control(BindError),
    /// What systemd passed cannot be served.
    #[error("socket activation: {0}")]
    Passed(#[from] PassedError),
    /// The log cannot be set up.
    #[error(transparent)]
    Log(#[from] logging::LoggingError),
    /// The system gives no random bytes, thread or signal.
    #[error("system: {0}")]
    System(#[from] std::io::Error),
}

/// Runs the daemon until TERM or INT, or until the command line stops it.
///
/// # Errors
/// If it cannot start; nothing is left behind then.
pub async fn run(path: &Path) -> Result<(), StartError> {
    let loaded = load(path).map_err(StartError::Config)?;
    let logging = logging::start(&loaded.config.log)?;
    for notice in &loaded.notices {
        tracing::warn!("{notice}");
    }
    raise_file_limit();
    // Signals first: a HUP that comes while we start must not end us.
    let mut signals = Signals::new()?;
    let variable = |name: &str| std::env::var_os(name);
    let passed = Passed::from_environment(&variable)?;
    let systemd = Systemd::from_environment(&variable).unwrap_or_else(|error| {
        tracing::warn!(%error, "NOTIFY_SOCKET is of no use, nothing is said to systemd");
        Systemd::default()
    });
    let (daemon, doors) = Daemon::build(path, loaded, logging, (passed, systemd)).await?;
    daemon.follow_directories();
    daemon.join_nodes();
    daemon.open_doors(doors).await;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %path.display(), "ready");
    daemon.systemd.ready(&daemon.status()).await;
    daemon.tracker.spawn(Arc::clone(&daemon).measure());
    if let Some(limit) = daemon.systemd.watchdog() {
        daemon.tracker.spawn(Arc::clone(&daemon).show_life(limit));
    }
    loop {
        tokio::select! {
            _ = signals.hangup.recv() => {
                // In a task: TERM must not wait for it. Said and counted inside; a signal has nobody to answer to.
                let daemon = Arc::clone(&daemon);
                daemon.tracker.clone().spawn(async move { drop(daemon.reload().await) });
            }
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            () = daemon.shutdown.cancelled() => break,
        }
    }
    tracing::info!("stopping");
    daemon.shutdown.cancel();
    daemon.systemd.stopping().await;
    tokio::time::sleep(LINGER).await;
    let deadline = clock::now() + DRAIN;
    daemon.claims.outlive_connections();
    daemon.ending.cancel();
    // Past the deadline nobody waits for a claim either.
    _ = tokio::time::timeout_at(deadline.into(), daemon.last_claims()).await;
    daemon.claimed.cancel();
    daemon.tracker.close();
    if tokio::time::timeout_at(deadline.into(), daemon.tracker.wait()).await.is_err() {
        tracing::warn!(tasks = daemon.tracker.len(), "stopped before all connections had ended");
    }
    Ok(())
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

impl Daemon {
    async fn build(
        path: &Path,
        loaded: Loaded,
        logging: Logging,
        (passed, systemd): (Passed, Systemd),
    ) -> Result<(Arc<Self>, Vec<Opened>), StartError> {
        let config = &loaded.config;
        passed.check(config.listen.keys())?;
        let metrics = Metrics::new();
        let store = Store::open(&config.store).await?;
        store.mirror_domains(&config.domain).await?;
        let directories = Arc::new(Directories::build(&config.directory, None, &metrics)?);
        directories.show(None);
        let journal = Arc::new(Journal::stderr(config.log.format, metrics.clone())?);
        let tracker = TaskTracker::new();
        let mut memory_key = [0; 32];
        getrandom::fill(&mut memory_key).map_err(std::io::Error::from)?;
        let mut guess_key = [0; 32];
        getrandom::fill(&mut guess_key).map_err(std::io::Error::from)?;
        let throttle = Arc::new(Throttle::new(&config.throttle, guess_key, clock::now()));
        let lookup = Lookup::new(store.clone(), config);
        let (lists, sending, exchange) =
            Self::counts(config, &throttle, &store, &metrics, guess_key).await?;
        let parts = Parts {
            store,
            journal,
            metrics: metrics.clone(),
            throttle,
            tracker: tracker.clone(),
            memory_capacity: config.memory.capacity.0,
            memory_key,
        };
        let core = Arc::new(Authenticator::new(Setup::new(config, directories, 1), parts));
        let mut certificates = BTreeMap::new();
        for (name, listen) in &config.listen {
            let failed = |source| StartError::Listen { door: name.clone(), source };
            if let Some(read) = Certificates::read(&listen.tls).map_err(failed)? {
                certificates.insert(name.clone(), read);
            }
        }
        let opened = doors::open(config, passed)?;
        let daemon = Self {
            doors: config.listen.len(),
            path: path.to_owned(),
            running: tokio::sync::Mutex::new(loaded),
            logging,
            core,
            lookup,
            metrics,
            greeting: Arc::new(Greeting::new(std::process::id())),
            claims: Claims::default(),
            handed_over: HandedOver::default(),
            certificates,
            feeds: Feeds::default(),
            lists,
            sending,
            exchange,
            connections: AtomicU64::new(1),
            systemd,
            refused: AtomicBool::new(false),
            shutdown: CancellationToken::new(),
            ending: CancellationToken::new(),
            claimed: CancellationToken::new(),
            tracker,
        };
        Ok((Arc::new(daemon), opened))
    }

    /// What nodes may have in common.
    async fn counts(
        config: &Config,
        throttle: &Arc<Throttle>,
        store: &Store,
        metrics: &Metrics,
        guess_key: [u8; 32],
    ) -> Result<(Arc<ListBook>, Arc<SendingLimits>, Option<Arc<Exchange>>), StartError> {
        let is_shared = !config.shared.url.is_empty();
        let outbox = is_shared.then(|| Arc::new(Outbox::new(metrics.clone())));
        let lists = ListBook::load(Arc::clone(throttle), store.clone(), outbox.clone()).await?;
        let (lists, sending) = (Arc::new(lists), Arc::new(SendingLimits::new(clock::now())));
        sending.configure(shared::sending_spans(config));
        let counts = Counts {
            throttle: Arc::clone(throttle),
            sending: Arc::clone(&sending),
            lists: Arc::clone(&lists),
        };
        let exchange = Exchange::new(config, outbox.as_ref(), counts, metrics, guess_key)?;
        Ok((lists, sending, exchange))
    }

    /// Keeps what is counted and listed, and tells other nodes until the last connection has ended.
    fn join_nodes(&self) {
        self.tracker.spawn(Arc::clone(&self.lists).tend(self.shutdown.clone()));
        if let Some(exchange) = &self.exchange {
            Arc::clone(exchange).run(&self.tracker, &self.claimed);
        }
    }

    /// Reads the configuration again: parse, check, swap. A bad file changes nothing.
    ///
    /// Returns what takes effect only at a restart.
    ///
    /// # Errors
    /// What is wrong with the file; the running configuration goes on.
    pub(crate) async fn reload(&self) -> Result<Vec<String>, StartError> {
        // One reload at a time; attempts never take this lock.
        let mut running = self.running.lock().await;
        self.systemd.reloading().await;
        let taken = self.take(&mut running).await;
        self.refused.store(taken.is_err(), Ordering::Relaxed);
        match &taken {
            Ok(restart) => {
                self.metrics.reloaded(Reloaded::Taken);
                tracing::info!(config = %self.path.display(), "configuration reloaded");
                for key in restart {
                    tracing::warn!(key, "this change takes effect at the next restart");
                }
            }
            Err(error) => {
                self.metrics.reloaded(Reloaded::Refused);
                tracing::error!(
                    config = %self.path.display(), %error,
                    "the new configuration is not taken, the running one goes on"
                );
            }
        }
        // Who stops meanwhile has said so, and is not ready again.
        if !self.shutdown.is_cancelled() {
            self.systemd.ready(&self.status()).await;
        }
        taken
    }

    async fn take(&self, running: &mut Loaded) -> Result<Vec<String>, StartError> {
        let loaded = load(&self.path).map_err(StartError::Config)?;
        for notice in &loaded.notices {
            tracing::warn!("{notice}");
        }
        let config = &loaded.config;
        let current = self.core.setup();
        let previous = &current.directories;
        let directories =
            Arc::new(Directories::build(&config.directory, Some(previous), &self.metrics)?);
        let certificates = self.certificates.iter().map(|(door, current)| {
            let failed = |source| StartError::Listen { door: door.clone(), source };
            Ok((current, current.read_again().map_err(failed)?))
        });
        let certificates = certificates.collect::<Result<Vec<_>, StartError>>()?;
        self.core.store().mirror_domains(&config.domain).await?;
        self.logging.change(&config.log)?;
        self.sending.configure(shared::sending_spans(config));
        self.core.reconfigure(config, Arc::clone(&directories));
        self.follow_directories();
        self.lookup.reconfigure(config);
        directories.show(Some(previous));
        certificates.into_iter().for_each(|(door, read)| door.replace(read));
        let changes = config::differences(&running.config, config);
        let restart = changes.need_restart().into_iter().map(str::to_owned).collect();
        *running = loaded;
        Ok(restart)
    }

    /// Hears of changes at the directories in force, where `feed` says so.
    fn follow_directories(&self) {
        let setup = self.core.setup();
        self.feeds.follow(&setup.directories, &self.core, &self.tracker, &self.shutdown);
    }

    /// Waits until nobody is about to claim a login.
    async fn last_claims(&self) {
        while self.claims.are_awaited(clock::now()) {
            tokio::time::sleep(CLAIMS_EVERY).await;
        }
    }

    async fn measure(self: Arc<Self>) {
        let mut every = tokio::time::interval(MEASURE_EVERY);
        loop {
            tokio::select! {
                _ = every.tick() => {
                    self.core.measure();
                    self.systemd.status(&self.status()).await;
                }
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    /// One line for `systemctl status`.
    fn status(&self) -> String {
        let setup = self.core.setup();
        let answers = |profile: &&Arc<Profile>| profile.health().iter().any(|host| host.up);
        let (up, down): (Vec<_>, Vec<_>) = setup.directories.iter().partition(answers);
        let (doors, all) = (self.doors, up.len() + down.len());
        let mut status = format!("{doors} doors; directories: {} of {all} up", up.len());
        if !down.is_empty() {
            let names: Vec<&str> = down.iter().map(|profile| &**profile.name()).collect();
            status += &format!(", down: {}", names.join(" "));
        }
        if self.refused.load(Ordering::Relaxed) {
            status += "; the new configuration was not taken, see the log";
        }
        status
    }

    /// Tells systemd that we live, twice in the time that it waits, as long as we do.
    async fn show_life(self: Arc<Self>, limit: Duration) {
        let mut every = tokio::time::interval(limit / 2);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = self.ending.cancelled() => return,
            }
            if self.works(limit / 4).await {
                self.systemd.lives().await;
            } else {
                tracing::error!(
                    "a look at ourselves failed: systemd's watchdog is not told that we live"
                );
            }
        }
    }

    /// Whether a new task gets its turn in time, the memory can be counted, and the journal's thread has not ended. A
    /// journal whose reader stands still is not seen here, and must not be: a new daemon would have the same reader.
    async fn works(&self, limit: Duration) -> bool {
        let core = Arc::clone(&self.core);
        let look = self.tracker.spawn(async move {
            core.measure();
            core.journal_lives()
        });
        matches!(tokio::time::timeout(limit, look).await, Ok(Ok(true)))
    }
}

/// A connection is a file. The limit that most systems begin a process with, 1024, is for programs that call `select`.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
