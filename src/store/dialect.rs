//! What differs between databases. Statements are written once, in the SQL that SQLite, PostgreSQL and MariaDB share;
//! the few places where they part are the arms of [`statements!`] and the functions of this file:
//!
//! | construct | SQLite | PostgreSQL | MariaDB |
//! |---|---|---|---|
//! | placeholder | `?` | `$1` | `?` |
//! | insert or ignore | `ON CONFLICT (k) DO NOTHING` | the same | `INSERT IGNORE` |
//! | upsert | `ON CONFLICT (k) DO UPDATE SET c = excluded.c` | the same | `ON DUPLICATE KEY UPDATE c = VALUES(c)` |
//! | new id | `RETURNING id` | the same | the same |
//! | begin a write | `BEGIN IMMEDIATE` | `BEGIN`, rows locked by updates | the same |
//! | now | an argument, unix seconds | the same | the same |

use std::sync::Arc;

use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{ConnectOptions as _, Row as _, Sqlite, SqliteConnection, SqlitePool, query::Query};

use super::StoreError;
use super::changes::{Changes, Touched};

/// One statement, in each database's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statement {
    pub(super) sqlite: &'static str,
}

/// Declares statements and, for the test that prepares them all, their list.
macro_rules! statements {
    ($(
        $name:ident = $text:literal $($tail:ident $($key:literal $(set $($column:literal)+)?)?)?;
    )+) => {
        $(const $name: crate::store::dialect::Statement = crate::store::dialect::Statement {
            sqlite: crate::store::dialect::sqlite!($text $($tail $($key $($($column)+)?)?)?),
        };)+
        #[cfg(test)]
        pub(super) const STATEMENTS: &[(&str, crate::store::dialect::Statement)] =
            &[$((stringify!($name), $name)),+];
    };
}
pub(super) use statements;

/// SQLite's column of the table above.
macro_rules! sqlite {
    ($text:literal) => {
        $text
    };
    ($subject:literal whole_mailboxes) => {
        crate::store::mailboxes::whole_mailboxes!($subject)
    };
    ($text:literal or_ignore $key:literal) => {
        concat!($text, " ON CONFLICT (", $key, ") DO NOTHING")
    };
    ($text:literal or_update $key:literal $first:literal $($column:literal)*) => {
        concat!(
            $text, " ON CONFLICT (", $key, ") DO UPDATE SET ", $first, " = excluded.", $first,
            $(", ", $column, " = excluded.", $column),*
        )
    };
}
pub(super) use sqlite;

/// The connections to the one database in use.
#[derive(Clone, Debug)]
pub(super) enum Db {
    /// SQLite: one connection writes, so that nobody waits on `SQLITE_BUSY` within this process.
    Sqlite { writer: SqlitePool, readers: SqlitePool, file: Arc<super::file::Identity> },
}

impl Db {
    /// A view of one moment.
    pub(super) async fn begin_read(&self) -> Result<Begun, StoreError> {
        match self {
            Self::Sqlite { readers, file, .. } => {
                file.check()?;
                Ok(Begun::Sqlite(readers.begin().await?))
            }
        }
    }

    /// All rows of a query that says all it needs to know in one statement.
    pub(super) async fn read(
        &self,
        statement: Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Sqlite { readers, file, .. } => {
                file.check()?;
                let rows = sqlite_query(statement, values).fetch_all(readers).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }

    /// A connection for one reader alone: the pool's are looked after each time that they are given back, which costs as
    /// much as a small query.
    pub(super) async fn reader(&self) -> Result<Reader, StoreError> {
        match self {
            Self::Sqlite { readers, file, .. } => {
                // Another file in its place must not be touched.
                file.check()?;
                let connection = readers.connect_options().connect().await?;
                Ok(Reader::Sqlite { connection, file: Arc::clone(file) })
            }
        }
    }

    /// The right to write, held until the transaction ends.
    pub(super) async fn begin_write(&self) -> Result<Begun, StoreError> {
        match self {
            Self::Sqlite { writer, file, .. } => {
                file.check()?;
                Ok(Begun::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?))
            }
        }
    }
}

/// A connection for questions of one statement each.
pub(super) enum Reader {
    /// SQLite's.
    Sqlite { connection: SqliteConnection, file: Arc<super::file::Identity> },
}

impl Reader {
    /// All rows of a query. After an error, or if this was dropped half way, the connection must not be used again.
    pub(super) async fn rows(
        &mut self,
        statement: Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        match self {
            Self::Sqlite { connection, file } => {
                file.check()?;
                let rows = sqlite_query(statement, values).fetch_all(connection).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }
}

/// A transaction of one of the databases.
pub(super) enum Begun {
    /// SQLite's.
    Sqlite(sqlx::Transaction<'static, Sqlite>),
}

/// A transaction; dropped without [`Transaction::commit`] it leaves nothing behind.
pub(crate) struct Transaction {
    begun: Begun,
    changes: Changes,
    /// What this transaction changed so far.
    pub(super) touched: Touched,
}

impl Transaction {
    pub(super) fn new(begun: Begun, changes: &Changes) -> Self {
        Self { begun, changes: changes.clone(), touched: Touched::default() }
    }

    /// Makes everything done so far stand, and tells of it. Once begun it is brought to its end even if nobody waits any
    /// more: whoever is told must find what was written.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        let telling = self.changes.tell_later(self.touched);
        let committing = async move {
            let _telling = telling;
            match self.begun {
                Begun::Sqlite(inner) => inner.commit().await,
            }
        };
        match tokio::spawn(committing).await {
            Ok(committed) => Ok(committed?),
            Err(_) => {
                Err(StoreError::Unavailable { what: "commit was cut off".into(), source: None })
            }
        }
    }

    /// Runs a statement; gives the number of rows it touched.
    pub(super) async fn execute(
        &mut self,
        statement: Statement,
        values: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        match &mut self.begun {
            Begun::Sqlite(inner) => {
                Ok(sqlite_query(statement, values).execute(&mut **inner).await?.rows_affected())
            }
        }
    }

    /// All rows of a query.
    pub(super) async fn rows(
        &mut self,
        statement: Statement,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        match &mut self.begun {
            Begun::Sqlite(inner) => {
                let rows = sqlite_query(statement, values).fetch_all(&mut **inner).await?;
                Ok(rows.into_iter().map(Row::Sqlite).collect())
            }
        }
    }

    /// The first row of a query, if there is one.
    pub(super) async fn row(
        &mut self,
        statement: Statement,
        values: &[Value<'_>],
    ) -> Result<Option<Row>, StoreError> {
        // All rows are read: a statement that is not run to its end keeps SQLite's read mark.
        Ok(self.rows(statement, values).await?.into_iter().next())
    }
}

/// A value for a placeholder.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Int(i64),
    Text(&'a str),
    Null,
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

/// One row of an answer; columns by their position.
pub(super) enum Row {
    Sqlite(SqliteRow),
}

impl Row {
    pub(super) fn int(&self, column: usize) -> Result<i64, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }

    pub(super) fn text(&self, column: usize) -> Result<&str, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }

    /// A column that may be NULL.
    pub(super) fn optional_text(&self, column: usize) -> Result<Option<&str>, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get(column)?),
        }
    }
}

fn sqlite_query<'q>(
    statement: Statement,
    values: &[Value<'q>],
) -> Query<'q, Sqlite, SqliteArguments> {
    values.iter().fold(sqlx::query(statement.sqlite), |query, value| match *value {
        Value::Int(number) => query.bind(number),
        Value::Text(text) => query.bind(text),
        Value::Null => query.bind(None::<i64>),
    })
}
