//! Links: which directory entry a mailbox belongs to.

use super::dialect::{Transaction, statements};
use super::{Link, StoreError};

statements! {
    CUT = "DELETE FROM links WHERE mailbox = ? AND profile <> ?";
    INSERT = "INSERT INTO links (profile, id, mailbox) VALUES (?, ?, ?)" or_ignore "profile, id";
}

impl Transaction {
    /// Cuts a mailbox's tie to a directory other than this.
    pub(super) async fn cut_links_to_others(
        &mut self,
        mailbox: i64,
        profile: &str,
    ) -> Result<(), StoreError> {
        self.execute(CUT, &[mailbox.into(), profile.into()]).await.map(drop)
    }

    /// Ties an entry to a mailbox; `false` if it is tied to one already.
    pub(crate) async fn insert_link(
        &mut self,
        link: &Link,
        mailbox: i64,
    ) -> Result<bool, StoreError> {
        let values = [(&*link.profile).into(), (&*link.id).into(), mailbox.into()];
        Ok(self.execute(INSERT, &values).await? == 1)
    }
}
