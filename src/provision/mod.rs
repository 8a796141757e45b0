//! From a person to a mailbox: `template` chooses, `desired` says what should be, `plan` says what to change, `apply`
//! changes it.

use std::borrow::Cow;

use crate::person::Person;
use crate::store::{Mailbox, Room, Store, StoreError};

mod apply;
mod desired;
mod plan;
mod template;
mod words;

pub use apply::{Applied, ApplyError, apply};
pub use plan::{Change, Desired, Plan, Refusal, Report, desired, plan, plan_local};
pub use template::{Choice, Rules};

/// How often a plan is made again because somebody else changed the mailbox meanwhile.
const ROUNDS: usize = 8;

/// What became of provisioning.
#[derive(Debug)]
pub enum Outcome {
    /// There is a mailbox.
    Ready(Box<Provisioned>),
    /// There is none for this person, or not this one.
    Refused(Refusal),
    /// The store did not answer, and nothing is remembered.
    StoreUnavailable(StoreError),
}

/// A mailbox after a login's update.
#[derive(Debug)]
pub struct Provisioned {
    /// As it is; or, where writing failed, as it should be (login.md O-4).
    pub mailbox: Mailbox,
    /// It was made just now, by this call.
    pub created: bool,
    /// What was changed.
    pub changes: Vec<Change>,
    /// What cannot be written, as far as that is news.
    pub reports: Vec<Report>,
    /// Why nothing could be written; never a reason to refuse (login.md V-5).
    pub write_error: Option<StoreError>,
}

/// What the caller knows of the person's mailbox.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Nothing.
    Nothing,
    /// What the store holds, as far as the caller knows. It is not read again, and stands in when the store is gone; who
    /// changes it finds out if it was not.
    Read(&'a Mailbox),
    /// The mailbox as last seen: it stands in when the store is gone.
    Remembered(&'a Mailbox),
}

/// Makes or updates the mailbox of a person who proved their password.
///
/// May be dropped half way: each transaction stands whole or not at all.
pub async fn provision(
    store: &Store,
    rules: &Rules,
    person: &Person,
    protocol: Option<&str>,
    known: Known<'_>,
) -> Outcome {
    let (mut read, remembered) = match known {
        Known::Nothing => (None, None),
        Known::Remembered(mailbox) => (None, Some(mailbox)),
        // Any other mailbox is not the one that the link leads to.
        Known::Read(mailbox) if mailbox.link.as_ref() == Some(&plan::link(person)) => {
            (Some(mailbox), Some(mailbox))
        }
        Known::Read(mailbox) => (None, Some(mailbox)),
    };
    let mut refused_by_store = Vec::new();
    for _ in 0..ROUNDS {
        let stored = match read.take() {
            Some(mailbox) => Ok(Some(Cow::Borrowed(mailbox))),
            None => find(store, rules, person).await.map(|found| found.map(Cow::Owned)),
        };
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => return without_store(rules, person, protocol, remembered, error),
        };
        let plan = match plan(rules, person, stored.as_deref(), protocol) {
            Ok(plan) => plan,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        if plan.changes.is_empty() {
            let mut reports = plan.reports;
            reports.append(&mut refused_by_store);
            return ready(Provisioned {
                mailbox: plan.mailbox,
                created: false,
                changes: Vec::new(),
                reports,
                write_error: None,
            });
        }
        // Boxed: most logins change nothing, and this is larger than all else of theirs.
        match Box::pin(apply(store, &plan)).await {
            Ok(Applied::Done { mailbox, changes, refused }) => {
                let mut reports = plan.reports;
                reports.append(&mut refused_by_store);
                reports.extend(refused);
                return ready(Provisioned {
                    mailbox: *mailbox,
                    created: plan.base.is_none(),
                    changes,
                    reports,
                    write_error: None,
                });
            }
            Ok(Applied::Stale { refused }) => refused_by_store.extend(refused),
            Err(ApplyError::Refused(refusal)) => return Outcome::Refused(refusal),
            Err(ApplyError::Store(error)) if plan.base.is_some() => return unwritten(plan, error),
            Err(ApplyError::Store(error)) => {
                return without_store(rules, person, protocol, remembered, error);
            }
        }
    }
    let what = format!("the mailbox changed {ROUNDS} times while it was being updated");
    let error = StoreError::Unavailable { what, source: None };
    without_store(rules, person, protocol, remembered, error)
}

/// What [`provision`] would do now: the mailbox that is there, and the plan. Writes nothing.
///
/// # Errors
/// The store did not answer.
pub async fn preview(
    store: &Store,
    rules: &Rules,
    person: &Person,
    protocol: Option<&str>,
) -> Result<(Option<Mailbox>, Result<Plan, Refusal>), StoreError> {
    let stored = find(store, rules, person).await?;
    let planned = match plan(rules, person, stored.as_ref(), protocol) {
        Ok(plan) if plan.base.is_none() => {
            let mailbox = &plan.mailbox;
            let room = Room { domain: mailbox.address.domain(), quota: mailbox.settings.quota };
            match store.has_room(room).await? {
                Ok(()) => Ok(plan),
                Err(why) => Err(apply::refusal(why, mailbox)),
            }
        }
        planned => planned,
    };
    Ok((stored, planned))
}

/// The mailbox linked to a person's entry, or else the one that owns their address.
async fn find(
    store: &Store,
    rules: &Rules,
    person: &Person,
) -> Result<Option<Mailbox>, StoreError> {
    let address = desired(rules, person, None).ok().map(|wish| wish.address);
    store.linked_or_owner(&plan::link(person), address.as_ref()).await
}

/// The store is gone: who is remembered gets in with what should be (login.md V-5).
fn without_store(
    rules: &Rules,
    person: &Person,
    protocol: Option<&str>,
    remembered: Option<&Mailbox>,
    error: StoreError,
) -> Outcome {
    match remembered {
        None => Outcome::StoreUnavailable(error),
        Some(remembered) => match plan(rules, person, Some(remembered), protocol) {
            Ok(plan) => unwritten(plan, error),
            Err(refusal) => Outcome::Refused(refusal),
        },
    }
}

fn unwritten(plan: Plan, error: StoreError) -> Outcome {
    ready(Provisioned {
        mailbox: plan.mailbox,
        created: false,
        changes: Vec::new(),
        reports: Vec::new(),
        write_error: Some(error),
    })
}

fn ready(provisioned: Provisioned) -> Outcome {
    Outcome::Ready(Box::new(provisioned))
}

#[cfg(test)]
mod tests;
