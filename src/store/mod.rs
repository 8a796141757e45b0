//! SQL through sqlx: domains, mailboxes, addresses, links. Uniqueness and limits are decided by the database inside
//! the transaction, never by an earlier read. `dialect` holds what differs between databases.

use std::future::Future;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

mod addresses;
mod changes;
mod dialect;
mod domains;
mod file;
mod links;
mod mailbox;
mod mailboxes;
mod owners;
mod resident;
mod throttle_lists;

pub(crate) use addresses::Kind;
pub(crate) use changes::{Changes, Touched};
pub(crate) use dialect::Transaction;
pub(crate) use domains::{NoRoom, Room};
pub use mailbox::{
    Field, Held, Link, Mailbox, Misfit, Origin, Place, Provider, Settings, Standing, Words,
};
pub use resident::{MAX_CANDIDATES, Resident};
pub use throttle_lists::ListRow;

/// The longest wait for anything the store does, from call to answer.
const LIMIT: Duration = Duration::from_millis(2_800);
/// The longest wait for a free connection.
const ACQUIRE_LIMIT: Duration = Duration::from_millis(2_500);
/// The longest wait for another process's lock.
const BUSY_LIMIT: Duration = Duration::from_millis(1_500);

/// The database of mailboxes. Clones share its connections.
///
/// Every method may be dropped half way: a transaction that was not committed leaves nothing behind.
#[derive(Clone, Debug)]
pub struct Store {
    db: dialect::Db,
    owners: owners::Owners,
    changes: Changes,
}

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What it holds makes no sense; trying again does not help.
    #[error("store holds what cannot be read: {what}")]
    Corrupt {
        /// Where, and what.
        what: String,
    },
    /// It cannot be opened as configured.
    #[error("store cannot be opened: {what}")]
    Misconfigured {
        /// The file or key, and what is wrong with it.
        what: String,
    },
    /// It cannot be reached now: gone, locked by another process, or too slow.
    #[error("store does not answer: {what}")]
    Unavailable {
        /// What happened.
        what: String,
        /// The database's own error.
        #[source]
        source: Option<sqlx::Error>,
    },
}

impl StoreError {
    /// The same, for somebody else who waited for it.
    fn for_another(&self) -> Self {
        match self {
            Self::Corrupt { what } => Self::Corrupt { what: what.clone() },
            Self::Misconfigured { what } => Self::Misconfigured { what: what.clone() },
            Self::Unavailable { what, .. } => {
                Self::Unavailable { what: what.clone(), source: None }
            }
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::Decode(_) => Self::Corrupt { what: error.to_string() },
            other => Self::Unavailable { what: other.to_string(), source: Some(other) },
        }
    }
}

impl Store {
    /// Opens the database; makes file, directories and tables where they are missing.
    ///
    /// # Errors
    /// [`StoreError::Misconfigured`] for a URL or file that cannot be used; [`StoreError::Unavailable`] if another
    /// process holds it.
    pub async fn open(config: &crate::config::store::Store) -> Result<Self, StoreError> {
        Self::open_file(config, file::Identity::prepare).await
    }

    /// Opens a database that is there, for commands that change no more than they say: run as root, they must not
    /// make a file that the daemon's own user cannot open.
    ///
    /// # Errors
    /// As [`Store::open`]; a missing file is named.
    pub async fn open_existing(config: &crate::config::store::Store) -> Result<Self, StoreError> {
        Self::open_file(config, file::Identity::find).await
    }

    async fn open_file(
        config: &crate::config::store::Store,
        find: impl FnOnce(&std::path::Path) -> Result<file::Identity, StoreError>,
    ) -> Result<Self, StoreError> {
        let misconfigured = |what: String| StoreError::Misconfigured { what };
        if !config.url.starts_with("sqlite:") || config.url.contains(":memory:") {
            return Err(misconfigured("store.url: expected sqlite:///path/to/file.db".into()));
        }
        let options = SqliteConnectOptions::from_str(&config.url)
            .map_err(|error| misconfigured(format!("store.url: {error}")))?
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(BUSY_LIMIT);
        let file = Arc::new(find(options.get_filename())?);
        within(async {
            let writer = pool(1).connect_with(options.clone()).await?;
            migrate(&writer).await?;
            // A look at one mailbox needs few pages, and the system keeps them all: a cache of 2 MB for each connection
            // would be most of an idle daemon.
            let options = options.pragma("query_only", "1").pragma("cache_size", "-256");
            let readers = pool(config.max_connections.max(1)).connect_with(options).await?;
            let db = dialect::Db::Sqlite { writer, readers, file };
            let owners = owners::Owners::start(db.clone());
            Ok(Self { db, owners, changes: Changes::default() })
        })
        .await
    }

    /// Whether it can be read, for `/readyz`.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn check(&self) -> Result<(), StoreError> {
        within(async { self.begin_read().await?.capacity().await.map(drop) }).await
    }

    /// Waits until whatever was being written when this was called is written, or is not.
    ///
    /// # Errors
    /// That takes longer than anything may.
    pub(crate) async fn settled(&self) -> Result<(), StoreError> {
        // SQLite writes through one connection: its turn comes after them.
        within(async { self.begin_write().await.map(drop) }).await
    }

    /// Who hears of changes.
    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// A view of one moment.
    async fn begin_read(&self) -> Result<Transaction, StoreError> {
        Ok(Transaction::new(self.db.begin_read().await?, &self.changes))
    }

    /// The right to write. Whoever calls this bounds the whole by [`within`].
    pub(crate) async fn begin_write(&self) -> Result<Transaction, StoreError> {
        Ok(Transaction::new(self.db.begin_write().await?, &self.changes))
    }
}

/// Bounds the wait for the store.
pub(crate) async fn within<T, E: From<StoreError>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(result) => result,
        Err(_) => Err(E::from(StoreError::Unavailable {
            what: format!("no answer within {} ms", LIMIT.as_millis()),
            source: None,
        })),
    }
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_LIMIT)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// The steps that made the tables what they are; a step that was released is never edited.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "mailboxes", include_str!("../../migrations/sqlite/0001_mailboxes.sql")),
    (2, "local accounts", include_str!("../../migrations/sqlite/0002_local_accounts.sql")),
    (3, "throttle lists", include_str!("../../migrations/sqlite/0003_throttle_lists.sql")),
];

async fn migrate(writer: &SqlitePool) -> Result<(), StoreError> {
    let steps = MIGRATIONS.iter().map(|(version, name, text)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, text.into_sql_str(), false)
    });
    let migrator = Migrator::with_migrations(steps.collect());
    migrator.run(writer).await.map_err(|error| match error {
        MigrateError::Execute(inner) => StoreError::from(inner),
        other => StoreError::Misconfigured { what: format!("its tables: {other}") },
    })
}

#[cfg(test)]
pub(crate) mod tests;
