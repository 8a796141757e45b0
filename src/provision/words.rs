//! Plans in words, for `explain`, `login test` and the journal.

use std::fmt;

use super::plan::{Change, Refusal};
use super::template::Choice;
use crate::store::Held;

impl Change {
    /// The field it touches.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::AddAlias(_) | Self::RemoveAlias(_) => "aliases",
            Self::AddTag(_) | Self::RemoveTag(_) => "tags",
            Self::Create(_) => "created",
            Self::Hold(_) | Self::Release(_) => "held",
            Self::Link(_) => "link",
            Self::Rename { .. } => "address",
            Self::Set { field, .. } => field.as_str(),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddAlias(address) => write!(formatter, "alias {address} added"),
            Self::AddTag(tag) => write!(formatter, "tag {tag} added"),
            Self::Create(mailbox) => write!(
                formatter,
                "new, template {}, quota {}, home {}",
                mailbox.settings.template, mailbox.settings.quota, mailbox.place.home
            ),
            Self::Hold(held) => write!(formatter, "held back: {held}"),
            Self::Link(link) => write!(formatter, "linked to {} {}", link.profile, link.id),
            Self::Release(held) => write!(formatter, "no longer held back: {held}"),
            Self::RemoveAlias(address) => write!(formatter, "alias {address} removed"),
            Self::RemoveTag(tag) => write!(formatter, "tag {tag} removed"),
            Self::Rename { from, to } => write!(formatter, "address {from} → {to}"),
            Self::Set { field, from, to } => {
                write!(formatter, "{} {from:?} → {to:?}", field.as_str())
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressTaken { by } => write!(formatter, "the address belongs to {by}"),
            Self::BadAddress(address) => write!(formatter, "{address:?} cannot be used"),
            Self::CreationOff => {
                formatter.write_str("no mailboxes are made at login by this protocol")
            }
            Self::DomainFull => formatter.write_str("the domain has as many mailboxes as it may"),
            Self::DomainInactive => formatter.write_str("the domain is switched off"),
            Self::DomainUnknown(domain) => {
                write!(formatter, "no [domain.{domain:?}] is configured")
            }
            Self::IdChanged { stored, found } => write!(
                formatter,
                "the mailbox was made for {} {}, the entry that logs in is {} {}",
                stored.profile, stored.id, found.profile, found.id
            ),
            Self::NoAddress => formatter.write_str("the entry has no mail address"),
            Self::NoTemplate => {
                formatter.write_str("no rule picks a template and there is no default")
            }
            Self::ProviderMismatch { provider } => {
                write!(formatter, "the mailbox's password is checked by {provider}")
            }
            Self::QuotaExceeded => {
                formatter.write_str("the quota is more than the domain has left")
            }
            Self::TemplateUnmatched => {
                formatter.write_str("no rule picks a template any more, and on_unmatched is refuse")
            }
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {:?}: {}", self.field.as_str(), self.value, self.why.as_str())
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Template { name, rule } => write!(formatter, "{name} (by {rule})"),
            Self::Unmatched { values } => write!(formatter, "none: no rule matches {values:?}"),
        }
    }
}
