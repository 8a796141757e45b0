//! Entries of the guessing shield's lists that were made at run time.

use super::dialect::{Row, statements};
use super::{Store, StoreError, within};

statements! {
    ALL = "SELECT list, kind, whom, reason, removed, ends_at, changed_at FROM throttle_lists WHERE ends_at > ?";
    SAVE = "INSERT INTO throttle_lists (list, kind, whom, reason, removed, ends_at, changed_at) \
            VALUES (?, ?, ?, ?, ?, ?, ?)"
        or_update "list, kind, whom" set "reason" "removed" "ends_at" "changed_at";
    SWEEP = "DELETE FROM throttle_lists WHERE ends_at <= ?";
}

/// One entry, in the words of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRow {
    /// allow | deny
    pub list: String,
    /// What kind of thing `whom` is, such as `ip`.
    pub kind: String,
    /// Whom it is about.
    pub whom: String,
    /// Why.
    pub reason: String,
    /// It was taken out; what stays is the mark that it was.
    pub removed: bool,
    /// Milliseconds since 1970: from then on it says nothing.
    pub ends_at: i64,
    /// Milliseconds since 1970.
    pub changed_at: i64,
}

impl Store {
    /// Every entry that is not over at `now`, in milliseconds since 1970.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn list_entries(&self, now: i64) -> Result<Vec<ListRow>, StoreError> {
        within(async {
            let rows = self.db.read(ALL, &[now.into()]).await?;
            rows.iter().map(entry).collect()
        })
        .await
    }

    /// Writes entries in the place of earlier ones about the same; all of them, or none.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn save_list_entries(&self, rows: &[ListRow]) -> Result<(), StoreError> {
        within(async {
            let mut writing = self.begin_write().await?;
            for row in rows {
                let values = [
                    row.list.as_str().into(),
                    row.kind.as_str().into(),
                    row.whom.as_str().into(),
                    row.reason.as_str().into(),
                    i64::from(row.removed).into(),
                    row.ends_at.into(),
                    row.changed_at.into(),
                ];
                writing.execute(SAVE, &values).await?;
            }
            writing.commit().await
        })
        .await
    }

    /// Forgets the entries that were over at `now`; how many.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn sweep_list_entries(&self, now: i64) -> Result<u64, StoreError> {
        within(async {
            let mut writing = self.begin_write().await?;
            let swept = writing.execute(SWEEP, &[now.into()]).await?;
            writing.commit().await?;
            Ok(swept)
        })
        .await
    }
}

fn entry(row: &Row) -> Result<ListRow, StoreError> {
    Ok(ListRow {
        list: row.text(0)?.to_owned(),
        kind: row.text(1)?.to_owned(),
        whom: row.text(2)?.to_owned(),
        reason: row.text(3)?.to_owned(),
        removed: row.int(4)? == 1,
        ends_at: row.int(5)?,
        changed_at: row.int(6)?,
    })
}
