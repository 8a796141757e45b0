//! Mailboxes by address, as logins ask for them: those that wait together are read together. One statement for sixteen costs
//! a fraction of sixteen, in the database and on the way to it.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};

use super::dialect::{Db, Reader, Row, Value, statements};
use super::mailboxes::{read, read_member};
use super::{Mailbox, StoreError};
use crate::cache::Table;
use crate::identity::Address;

/// The most that one statement asks about.
const TOGETHER: usize = 16;

// Coalesced, for SQLite would look by a bare kind first, and nearly all addresses are of one.
statements! {
    OWNER = "SELECT owner AS id FROM addresses WHERE COALESCE(kind, '') IN ('mailbox', 'alias') \
             AND address = ?"
        whole_mailboxes;
    OWNERS = "SELECT DISTINCT owner AS id FROM addresses \
              WHERE COALESCE(kind, '') IN ('mailbox', 'alias') \
              AND address IN (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        whole_mailboxes;
}

/// Asks for mailboxes by address. Clones ask the same task; it ends with the last of them.
#[derive(Clone, Debug)]
pub(super) struct Owners(mpsc::Sender<Asked>);

#[derive(Debug)]
struct Asked {
    address: Address,
    answer: oneshot::Sender<Result<Option<Mailbox>, StoreError>>,
}

impl Owners {
    pub(super) fn start(db: Db) -> Self {
        // Who finds no room waits, as long as those who ask have time.
        let (asked, questions) = mpsc::channel(4 * TOGETHER);
        let questions = Arc::new(Mutex::new(questions));
        tokio::spawn(async move {
            // A panic costs those who were asked about together, and nobody after them.
            while let Err(error) =
                tokio::spawn(answer_all(db.clone(), Arc::clone(&questions))).await
                && error.is_panic()
            {
                tracing::error!(%error, "the reader of mailboxes begins again");
            }
        });
        Self(asked)
    }

    /// The mailbox that an address belongs to, canonical or alias.
    pub(super) async fn of(&self, address: &Address) -> Result<Option<Mailbox>, StoreError> {
        self.turn().await?.ask(address).await
    }

    /// Waits for room in the line.
    pub(super) async fn turn(&self) -> Result<Turn<'_>, StoreError> {
        self.0.reserve().await.map(Turn).map_err(|_| reader_gone())
    }
}

/// The right to ask.
pub(super) struct Turn<'a>(mpsc::Permit<'a, Asked>);

impl Turn<'_> {
    pub(super) async fn ask(self, address: &Address) -> Result<Option<Mailbox>, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Asked { address: address.clone(), answer });
        answered.await.unwrap_or_else(|_| Err(reader_gone()))
    }
}

fn reader_gone() -> StoreError {
    StoreError::Unavailable { what: "its reader ended".into(), source: None }
}

/// One statement at a time, on a connection of its own.
async fn answer_all(db: Db, questions: Arc<Mutex<mpsc::Receiver<Asked>>>) {
    let mut questions = questions.lock().await;
    let mut reader = None;
    let mut together = Vec::with_capacity(TOGETHER);
    while questions.recv_many(&mut together, TOGETHER).await > 0 {
        // Nobody may wait for these any more.
        together.retain(|asked| !asked.answer.is_closed());
        match read_all(&db, &mut reader, &together).await {
            Ok(found) => {
                for Asked { address, answer } in together.drain(..) {
                    // Who asked may have given up.
                    let _ = answer.send(found.owner(&address));
                }
            }
            Err(error) => {
                // The next question finds out whether a new connection does better; who waited behind these has waited
                // long enough.
                reader = None;
                let is_away = matches!(error, StoreError::Unavailable { .. });
                while is_away && let Ok(asked) = questions.try_recv() {
                    together.push(asked);
                }
                for Asked { answer, .. } in together.drain(..) {
                    let _ = answer.send(Err(error.for_another()));
                }
            }
        }
    }
}

async fn read_all(
    db: &Db,
    kept: &mut Option<Reader>,
    together: &[Asked],
) -> Result<Found, StoreError> {
    if together.is_empty() {
        return Ok(Found::default());
    }
    let mut reader = match kept.take() {
        Some(reader) => reader,
        None => db.reader().await?,
    };
    let rows = match together {
        // Fifteen places for nobody cost a third of this.
        [asked] => reader.rows(OWNER, &[asked.address.as_str().into()]).await?,
        _ => {
            let mut values = [Value::Null; TOGETHER];
            for (value, asked) in values.iter_mut().zip(together) {
                *value = asked.address.as_str().into();
            }
            reader.rows(OWNERS, &values).await?
        }
    };
    *kept = Some(reader);
    Found::of(&rows)
}

/// What one statement found.
#[derive(Default)]
struct Found {
    by_address: Table<String, i64>,
    mailboxes: Table<i64, Result<Mailbox, StoreError>>,
}

impl Found {
    fn of(rows: &[Row]) -> Result<Self, StoreError> {
        let mut found = Self::default();
        let (owners, members): (Vec<_>, Vec<_>) =
            rows.iter().partition(|row| row.text(18).is_ok_and(|kind| kind == "mailbox"));
        for row in owners {
            let id = row.int(17)?;
            found.by_address.insert(row.text(0)?.to_owned(), id);
            // A mailbox that cannot be read is nobody else's trouble.
            found.mailboxes.insert(id, read(id, row));
        }
        for row in members {
            let id = row.int(17)?;
            if row.text(18)? == "alias" {
                found.by_address.insert(row.text(0)?.to_owned(), id);
            }
            let Some(owner) = found.mailboxes.get_mut(&id) else { continue };
            if let Ok(mailbox) = owner
                && let Err(error) = read_member(mailbox, row)
            {
                *owner = Err(error);
            }
        }
        Ok(found)
    }

    fn owner(&self, address: &Address) -> Result<Option<Mailbox>, StoreError> {
        let owner = self.by_address.get(address.as_str());
        match owner.and_then(|id| self.mailboxes.get(id)) {
            None => Ok(None),
            Some(Ok(mailbox)) => Ok(Some(mailbox.clone())),
            Some(Err(error)) => Err(error.for_another()),
        }
    }
}
