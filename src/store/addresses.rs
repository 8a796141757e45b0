//! Addresses: whatever mail can be sent to, one row each, whoever owns it.

use std::time::Instant;

use super::dialect::{Transaction, statements};
use super::mailboxes::origin_word;
use super::{Mailbox, Origin, Store, StoreError, within};
use crate::identity::Address;

statements! {
    OWNER = "SELECT owner FROM addresses WHERE address = ? AND kind IN ('mailbox', 'alias')";
    CANONICAL = "SELECT owner FROM addresses WHERE address = ? AND kind = 'mailbox'";
    LIST = "SELECT address, owner FROM addresses WHERE kind = 'mailbox' AND address > ? \
            ORDER BY address LIMIT ?";
    CLAIM = "INSERT INTO addresses (address, kind, owner, origin) VALUES (?, ?, ?, ?)"
        or_ignore "address";
    FREE = "DELETE FROM addresses WHERE address = ? AND owner = ? AND kind = 'alias'";
    DEMOTE = "UPDATE addresses SET kind = 'alias', origin = ? \
              WHERE owner = ? AND kind = 'mailbox'";
    PROMOTE = "UPDATE addresses SET kind = 'mailbox', origin = 'directory' \
               WHERE address = ? AND owner = ? AND kind = 'alias'";
}

/// What an address is to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A further address of a mailbox.
    Alias,
    /// A mailbox's canonical address.
    Mailbox,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Alias => "alias",
            Self::Mailbox => "mailbox",
        }
    }
}

impl Store {
    /// The mailbox with that canonical address.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn mailbox(&self, address: &Address) -> Result<Option<Mailbox>, StoreError> {
        within(async {
            let mut view = self.begin_read().await?;
            let id = view.canonical_id(address).await?;
            view.mailbox_if(id).await
        })
        .await
    }

    /// The mailbox that an address belongs to, canonical or alias.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn owner(&self, address: &Address) -> Result<Option<Mailbox>, StoreError> {
        within(self.owners.of(address)).await
    }

    /// The same for one of a crowd, with the store's own time limit only from when it is this one's turn: a long line is not
    /// the store's trouble. `None`: the time was up before that.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn owner_until(
        &self,
        deadline: Instant,
        address: &Address,
    ) -> Option<Result<Option<Mailbox>, StoreError>> {
        let turn = self.owners.turn();
        let turn = tokio::time::timeout_at(deadline.into(), turn).await.ok()?;
        Some(within(async { turn?.ask(address).await }).await)
    }

    /// Canonical addresses in order, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn addresses(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        within(async {
            let page = self.begin_read().await?.page(after.unwrap_or_default(), limit).await?;
            Ok(page.into_iter().map(|(address, _)| address).collect())
        })
        .await
    }
}

impl Transaction {
    pub(super) async fn owner_id(&mut self, address: &Address) -> Result<Option<i64>, StoreError> {
        let row = self.row(OWNER, &[address.as_str().into()]).await?;
        row.map(|row| row.int(0)).transpose()
    }

    async fn canonical_id(&mut self, address: &Address) -> Result<Option<i64>, StoreError> {
        let row = self.row(CANONICAL, &[address.as_str().into()]).await?;
        row.map(|row| row.int(0)).transpose()
    }

    /// Canonical addresses with the numbers of their mailboxes.
    pub(super) async fn page(
        &mut self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = self.rows(LIST, &[after.into(), i64::from(limit).into()]).await?;
        rows.iter().map(|row| Ok((row.text(0)?.to_owned(), row.int(1)?))).collect()
    }

    /// Gives an address to a mailbox; `false` if it is somebody's already.
    pub(crate) async fn claim_address(
        &mut self,
        address: &Address,
        kind: Kind,
        owner: i64,
        origin: Origin,
    ) -> Result<bool, StoreError> {
        let values =
            [address.as_str().into(), kind.word().into(), owner.into(), origin_word(origin).into()];
        self.touched.addresses.push(address.clone());
        Ok(self.execute(CLAIM, &values).await? == 1)
    }

    /// Takes an alias away.
    pub(crate) async fn free_address(
        &mut self,
        address: &Address,
        owner: i64,
    ) -> Result<(), StoreError> {
        self.touched.addresses.push(address.clone());
        self.execute(FREE, &[address.as_str().into(), owner.into()]).await?;
        self.made_room().await
    }

    /// Makes another address the canonical one; the old one becomes an alias. `false`, and nothing done, if the
    /// new one is somebody else's.
    pub(crate) async fn rename(
        &mut self,
        owner: i64,
        to: &Address,
        origin_of_old: Origin,
    ) -> Result<bool, StoreError> {
        match self.owner_id(to).await? {
            Some(other) if other != owner => return Ok(false),
            Some(_) => {}
            None => {
                if !self.claim_address(to, Kind::Alias, owner, Origin::Directory).await? {
                    return Ok(false);
                }
            }
        }
        self.touched.mailboxes.push(owner);
        self.execute(DEMOTE, &[origin_word(origin_of_old).into(), owner.into()]).await?;
        self.execute(PROMOTE, &[to.as_str().into(), owner.into()]).await?;
        Ok(true)
    }
}
