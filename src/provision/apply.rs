//! Carries a plan out, in one transaction. The database's keys and limits decide; what they refuse of an existing
//! mailbox is noted there, so that it is neither tried nor told again.

use super::plan::{Change, Plan, Refusal, Report};
use crate::store::{
    Field, Held, Kind, Mailbox, Misfit, NoRoom, Origin, Room, Store, StoreError, Transaction,
    within,
};

/// What became of a plan.
#[derive(Debug)]
pub enum Applied {
    /// It was carried out.
    Done {
        /// The mailbox as it is now.
        mailbox: Box<Mailbox>,
        /// The changes that could be made.
        changes: Vec<Change>,
        /// What the store refused.
        refused: Vec<Report>,
    },
    /// Nothing was changed: somebody else was faster, or the store refused the new address and that was noted. Read
    /// again and plan again.
    Stale {
        /// What the store refused.
        refused: Vec<Report>,
    },
}

/// Why a plan was not carried out.
#[derive(Debug)]
pub enum ApplyError {
    /// The database's limits refuse a new mailbox.
    Refused(Refusal),
    /// The store did not answer; nothing was changed.
    Store(StoreError),
}

impl From<StoreError> for ApplyError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Carries a plan out. An empty plan costs nothing: no transaction, no lock.
///
/// May be dropped half way: all of it stands or nothing.
///
/// # Errors
/// A limit refuses a new mailbox, or the store did not answer.
pub async fn apply(store: &Store, plan: &Plan) -> Result<Applied, ApplyError> {
    if plan.changes.is_empty() {
        let mailbox = Box::new(plan.mailbox.clone());
        return Ok(Applied::Done { mailbox, changes: Vec::new(), refused: Vec::new() });
    }
    within(async {
        let mut work = Work {
            transaction: store.begin_write().await?,
            mailbox: plan.mailbox.clone(),
            changes: Vec::new(),
            refused: Vec::new(),
        };
        let done = match &plan.base {
            None => work.create().await?,
            Some(base) => work.update(base, &plan.changes).await?,
        };
        match done {
            Next::Commit => {
                work.transaction.commit().await?;
                let (changes, refused) = (work.changes, work.refused);
                Ok(Applied::Done { mailbox: Box::new(work.mailbox), changes, refused })
            }
            Next::CommitAndPlanAgain => {
                work.transaction.commit().await?;
                Ok(Applied::Stale { refused: work.refused })
            }
            Next::PlanAgain => Ok(Applied::Stale { refused: Vec::new() }),
        }
    })
    .await
}

/// How a transaction ends.
enum Next {
    Commit,
    CommitAndPlanAgain,
    PlanAgain,
}

struct Work {
    transaction: Transaction,
    mailbox: Mailbox,
    changes: Vec<Change>,
    refused: Vec<Report>,
}

impl Work {
    async fn create(&mut self) -> Result<Next, ApplyError> {
        let Self { transaction, mailbox, .. } = self;
        let room = Room { domain: mailbox.address.domain(), quota: mailbox.settings.quota };
        if let Err(why) = transaction.domain_state(room.domain).await? {
            return Err(ApplyError::Refused(refusal(why, mailbox)));
        }
        // Link and address before room: the loser of a race must not be told that the domain is full.
        let id = transaction.insert_mailbox(mailbox).await?;
        if let Some(link) = &mailbox.link
            && !transaction.insert_link(link, id).await?
        {
            return Ok(Next::PlanAgain);
        }
        let address = &mailbox.address;
        if !transaction.claim_address(address, Kind::Mailbox, id, Origin::Directory).await? {
            return Ok(Next::PlanAgain);
        }
        if let Err(why) = transaction.take_room(room).await? {
            return Err(ApplyError::Refused(refusal(why, mailbox)));
        }
        mailbox.id = id;
        for tag in mailbox.tags.keys() {
            transaction.add_tag(id, tag).await?;
        }
        for held in &mailbox.held {
            transaction.hold(id, held).await?;
        }
        let aliases: Vec<_> = mailbox.aliases.keys().cloned().collect();
        for alias in aliases {
            self.add_alias(alias).await?;
        }
        self.changes.push(Change::Create(Box::new(self.mailbox.clone())));
        Ok(Next::Commit)
    }

    async fn update(&mut self, base: &Mailbox, changes: &[Change]) -> Result<Next, ApplyError> {
        let id = base.id;
        if self.transaction.mailbox_by_id(id).await?.as_ref() != Some(base) {
            return Ok(Next::PlanAgain);
        }
        self.transaction.sweep_held(id).await?;
        let mut settings_changed = false;
        for change in changes {
            match change {
                Change::Create(_) => {}
                Change::Link(link) => {
                    if !self.transaction.insert_link(link, id).await? {
                        return Ok(Next::PlanAgain);
                    }
                }
                Change::Rename { .. } => {
                    if !self.rename(base).await? {
                        return Ok(Next::CommitAndPlanAgain);
                    }
                }
                Change::Set { field: Field::Quota, .. } => {
                    if !self.resize(base).await? {
                        continue;
                    }
                    settings_changed = true;
                }
                Change::Set { .. } => settings_changed = true,
                Change::AddAlias(alias) => {
                    if !self.add_alias(alias.clone()).await? {
                        continue;
                    }
                }
                Change::RemoveAlias(alias) => self.transaction.free_address(alias, id).await?,
                Change::AddTag(tag) => self.transaction.add_tag(id, tag).await?,
                Change::RemoveTag(tag) => self.transaction.remove_tag(id, tag).await?,
                Change::Hold(held) => self.transaction.hold(id, held).await?,
                Change::Release(held) => self.transaction.release(id, held).await?,
            }
            self.changes.push(change.clone());
        }
        if settings_changed {
            self.transaction.write_settings(id, &self.mailbox.settings).await?;
        }
        // Room made above moves the revision under which these were noted.
        for held in self.mailbox.held.iter().filter(|held| held.why.depends_on_others()) {
            self.transaction.hold(id, held).await?;
        }
        Ok(Next::Commit)
    }

    /// Moves the mailbox to its new address; `false` if that was refused, which is noted.
    async fn rename(&mut self, base: &Mailbox) -> Result<bool, ApplyError> {
        let (from, to) = (base.address.domain(), &self.mailbox.address);
        let moves = from != to.domain();
        let room = |domain| Room { domain, quota: base.settings.quota };
        if moves && let Err(why) = self.transaction.take_room(room(to.domain())).await? {
            return self.refuse(base.id, Field::Address, misfit(why)).await;
        }
        let old = self.mailbox.aliases.get(&base.address).copied().unwrap_or(Origin::Admin);
        if !self.transaction.rename(base.id, to, old).await? {
            if moves {
                self.transaction.give_room(room(to.domain())).await?;
            }
            return self.refuse(base.id, Field::Address, Misfit::AddressTaken).await;
        }
        if moves {
            self.transaction.give_room(room(from)).await?;
            self.transaction.move_mailbox(base.id, to).await?;
        }
        Ok(true)
    }

    async fn refuse(&mut self, id: i64, field: Field, why: Misfit) -> Result<bool, ApplyError> {
        let held = Held { field, value: self.mailbox.address.as_str().into(), why };
        self.transaction.hold(id, &held).await?;
        self.refused.push(held);
        Ok(false)
    }

    /// Takes or gives back quota; `false` if the domain has not that much.
    async fn resize(&mut self, base: &Mailbox) -> Result<bool, ApplyError> {
        let quota = self.mailbox.settings.quota;
        let before = Room { domain: self.mailbox.address.domain(), quota: base.settings.quota };
        if self.transaction.resize(before, quota).await? {
            return Ok(true);
        }
        self.mailbox.settings.quota = base.settings.quota;
        let value = quota.to_string().into();
        self.note(Held { field: Field::Quota, value, why: Misfit::QuotaExceeded }).await?;
        Ok(false)
    }

    /// Adds an alias; `false` if it is somebody else's.
    async fn add_alias(&mut self, alias: crate::identity::Address) -> Result<bool, ApplyError> {
        let id = self.mailbox.id;
        if self.transaction.claim_address(&alias, Kind::Alias, id, Origin::Directory).await? {
            return Ok(true);
        }
        self.mailbox.aliases.change(|aliases| {
            aliases.remove(&alias);
        });
        let value = alias.as_str().into();
        self.note(Held { field: Field::Aliases, value, why: Misfit::AddressTaken }).await?;
        Ok(false)
    }

    /// Notes what the store refused.
    async fn note(&mut self, held: Held) -> Result<(), ApplyError> {
        self.transaction.hold(self.mailbox.id, &held).await?;
        self.mailbox.held.make().insert(held.clone());
        self.refused.push(held);
        Ok(())
    }
}

pub(super) fn refusal(why: NoRoom, mailbox: &Mailbox) -> Refusal {
    match why {
        NoRoom::Full => Refusal::DomainFull,
        NoRoom::Inactive => Refusal::DomainInactive,
        NoRoom::Quota => Refusal::QuotaExceeded,
        NoRoom::Unknown => Refusal::DomainUnknown(mailbox.address.domain().to_string()),
    }
}

fn misfit(why: NoRoom) -> Misfit {
    match why {
        NoRoom::Full => Misfit::DomainFull,
        NoRoom::Inactive => Misfit::DomainInactive,
        NoRoom::Quota => Misfit::QuotaExceeded,
        NoRoom::Unknown => Misfit::DomainUnknown,
    }
}
