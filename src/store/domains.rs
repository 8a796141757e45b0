//! Mail domains, mirrored from the configuration so that the database can hold their limits.

use std::collections::BTreeMap;

use super::dialect::{Transaction, statements};
use super::{Store, StoreError, within};
use crate::config::domain::Domain as Limits;
use crate::identity::Domain;

statements! {
    LIST = "SELECT name, active, max_mailboxes, quota, max_mailbox_quota FROM domains";
    PUT = "INSERT INTO domains (name, active, max_mailboxes, quota, max_mailbox_quota) \
           VALUES (?, ?, ?, ?, ?)"
        or_update "name" set "active" "max_mailboxes" "quota" "max_mailbox_quota";
    ONE = "SELECT active, max_mailboxes, mailboxes FROM domains WHERE name = ?";
    TAKE = "UPDATE domains SET mailboxes = mailboxes + 1, quota_used = quota_used + ? \
            WHERE name = ? AND active = 1 \
            AND (max_mailboxes = 0 OR mailboxes < max_mailboxes) \
            AND (quota = 0 OR (? > 0 AND quota_used + ? <= quota)) \
            AND (max_mailbox_quota = 0 OR (? > 0 AND ? <= max_mailbox_quota))";
    FITS = "SELECT mailboxes FROM domains \
            WHERE name = ? AND active = 1 \
            AND (max_mailboxes = 0 OR mailboxes < max_mailboxes) \
            AND (quota = 0 OR (? > 0 AND quota_used + ? <= quota)) \
            AND (max_mailbox_quota = 0 OR (? > 0 AND ? <= max_mailbox_quota))";
    GIVE = "UPDATE domains SET mailboxes = mailboxes - 1, quota_used = quota_used - ? \
            WHERE name = ?";
    RESIZE = "UPDATE domains SET quota_used = quota_used - ? + ? WHERE name = ? \
              AND (quota = 0 OR (? > 0 AND (quota_used - ? + ? <= quota OR ? < ?))) \
              AND (max_mailbox_quota = 0 OR (? > 0 AND (? <= max_mailbox_quota OR ? < ?)))";
    CAPACITY = "SELECT revision FROM capacity WHERE id = 1";
    MADE_ROOM = "UPDATE capacity SET revision = revision + 1 WHERE id = 1";
}

/// What one mailbox takes of its domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room<'a> {
    /// The domain.
    pub(crate) domain: &'a Domain,
    /// Bytes; 0: no limit, which fits only where the domain has none.
    pub(crate) quota: u64,
}

/// Why a mailbox does not fit into its domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// As many mailboxes as it may have.
    Full,
    /// Switched off.
    Inactive,
    /// More than the domain, or one mailbox in it, may have.
    Quota,
    /// No such domain.
    Unknown,
}

impl Store {
    /// Writes the `[domain]` tables into the database. A domain that is no longer configured stays, inactive.
    /// Nothing is written if nothing changed.
    ///
    /// # Errors
    /// The store did not answer; nothing was written.
    pub async fn mirror_domains(
        &self,
        domains: &BTreeMap<String, Limits>,
    ) -> Result<(), StoreError> {
        let wanted = rows(domains);
        within(async {
            if changed(&self.begin_read().await?.domains().await?, &wanted).is_empty() {
                return Ok(());
            }
            let mut writing = self.begin_write().await?;
            for (name, [active, max_mailboxes, quota, max_mailbox_quota]) in
                changed(&writing.domains().await?, &wanted)
            {
                let values = [
                    name.as_str().into(),
                    active.into(),
                    max_mailboxes.into(),
                    quota.into(),
                    max_mailbox_quota.into(),
                ];
                writing.execute(PUT, &values).await?;
            }
            writing.made_room().await?;
            writing.commit().await
        })
        .await
    }
}

impl Store {
    /// Whether one more mailbox would fit now; for a preview, which takes nothing.
    pub(crate) async fn has_room(&self, room: Room<'_>) -> Result<Result<(), NoRoom>, StoreError> {
        within(async {
            let mut view = self.begin_read().await?;
            let [q, name] = [bytes(room.quota).into(), room.domain.as_str().into()];
            match view.row(FITS, &[name, q, q, q, q]).await? {
                Some(_) => Ok(Ok(())),
                None => view.no_room(room.domain).await.map(Err),
            }
        })
        .await
    }
}

/// active, max_mailboxes, quota, max_mailbox_quota.
type Numbers = [i64; 4];

fn rows(domains: &BTreeMap<String, Limits>) -> BTreeMap<String, Numbers> {
    let bytes = |size: crate::config::units::ByteSize| i64::try_from(size.0).unwrap_or(i64::MAX);
    let row = |(name, limits): (&String, &Limits)| {
        // The configuration's own check refuses names that are no domains.
        let name = Domain::parse(name).ok()?;
        let numbers = [
            i64::from(limits.active),
            i64::from(limits.max_mailboxes),
            bytes(limits.quota),
            bytes(limits.max_mailbox_quota),
        ];
        Some((name.as_str().to_owned(), numbers))
    };
    domains.iter().filter_map(row).collect()
}

/// The rows to write.
fn changed(
    stored: &BTreeMap<String, Numbers>,
    wanted: &BTreeMap<String, Numbers>,
) -> BTreeMap<String, Numbers> {
    let new = wanted.iter().filter(|(name, numbers)| stored.get(*name) != Some(*numbers));
    let gone =
        stored.iter().filter(|(name, [active, ..])| *active == 1 && !wanted.contains_key(*name));
    let switched_off = gone.map(|(name, [_, a, b, c])| (name.clone(), [0, *a, *b, *c]));
    new.map(|(name, numbers)| (name.clone(), *numbers)).chain(switched_off).collect()
}

impl Transaction {
    async fn domains(&mut self) -> Result<BTreeMap<String, Numbers>, StoreError> {
        let rows = self.rows(LIST, &[]).await?;
        let row = |row: &super::dialect::Row| {
            let numbers = [row.int(1)?, row.int(2)?, row.int(3)?, row.int(4)?];
            Ok((row.text(0)?.to_owned(), numbers))
        };
        rows.iter().map(row).collect()
    }

    /// Counts one more mailbox into a domain, if its limits allow.
    pub(crate) async fn take_room(
        &mut self,
        room: Room<'_>,
    ) -> Result<Result<(), NoRoom>, StoreError> {
        let quota = bytes(room.quota);
        let [q, name] = [quota.into(), room.domain.as_str().into()];
        if self.execute(TAKE, &[q, name, q, q, q, q]).await? == 1 {
            return Ok(Ok(()));
        }
        self.no_room(room.domain).await.map(Err)
    }

    /// Why a mailbox did not fit.
    async fn no_room(&mut self, domain: &Domain) -> Result<NoRoom, StoreError> {
        let Some(row) = self.row(ONE, &[domain.as_str().into()]).await? else {
            return Ok(NoRoom::Unknown);
        };
        let (active, most, now) = (row.int(0)?, row.int(1)?, row.int(2)?);
        Ok(match active {
            0 => NoRoom::Inactive,
            _ if most > 0 && now >= most => NoRoom::Full,
            _ => NoRoom::Quota,
        })
    }

    /// Whether the domain is there and switched on.
    pub(crate) async fn domain_state(
        &mut self,
        domain: &Domain,
    ) -> Result<Result<(), NoRoom>, StoreError> {
        let row = self.row(ONE, &[domain.as_str().into()]).await?;
        Ok(match row.map(|row| row.int(0)).transpose()? {
            None => Err(NoRoom::Unknown),
            Some(0) => Err(NoRoom::Inactive),
            Some(_) => Ok(()),
        })
    }

    /// Counts a mailbox out of a domain.
    pub(crate) async fn give_room(&mut self, room: Room<'_>) -> Result<(), StoreError> {
        self.execute(GIVE, &[bytes(room.quota).into(), room.domain.as_str().into()]).await?;
        self.made_room().await
    }

    /// Changes what a mailbox takes; `false` if that is too much. Less than before always fits.
    pub(crate) async fn resize(
        &mut self,
        before: Room<'_>,
        quota: u64,
    ) -> Result<bool, StoreError> {
        let [old, new] = [bytes(before.quota).into(), bytes(quota).into()];
        let name = before.domain.as_str().into();
        let values = [old, new, name, new, old, new, new, old, new, new, new, old];
        if self.execute(RESIZE, &values).await? == 0 {
            return Ok(false);
        }
        if quota < before.quota {
            self.made_room().await?;
        }
        Ok(true)
    }

    /// The revision of what is free.
    pub(super) async fn capacity(&mut self) -> Result<i64, StoreError> {
        let row = self.row(CAPACITY, &[]).await?;
        row.map(|row| row.int(0)).transpose().map(Option::unwrap_or_default)
    }

    /// Something became free: what was refused for want of it may be tried again.
    pub(super) async fn made_room(&mut self) -> Result<(), StoreError> {
        self.execute(MADE_ROOM, &[]).await.map(drop)
    }
}

fn bytes(quota: u64) -> i64 {
    i64::try_from(quota).unwrap_or(i64::MAX)
}
