//! `[domain."NAME"]`.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::check::Names;
use super::problem::Report;
use super::units::ByteSize;
use crate::identity::{Address, Case, Domain as Name};

/// A mail domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Domain {
    /// Off: nobody of this domain gets in.
    pub active: bool,
    /// At most this many mailboxes; 0: no limit.
    pub max_mailboxes: u32,
    /// Sum of the quotas of its mailboxes; 0: no limit.
    pub quota: ByteSize,
    /// Largest quota of one mailbox; 0: no limit.
    pub max_mailbox_quota: ByteSize,
    /// Mail for addresses of this domain that are nobody's goes there; empty: it is refused. Never hides a mailbox.
    pub catch_all: String,
    /// This domain is another name of that one: `user@this` is `user@that` for mail, and, unless a directory lists this
    /// domain, for logins.
    pub alias_of: String,
}

impl Default for Domain {
    fn default() -> Self {
        Self {
            active: true,
            max_mailboxes: 0,
            quota: ByteSize(0),
            max_mailbox_quota: ByteSize(0),
            catch_all: String::new(),
            alias_of: String::new(),
        }
    }
}

impl Domain {
    pub(super) fn settle(&mut self, name: &str, names: &Names, report: &mut Report) {
        if !self.alias_of.is_empty() {
            match Name::parse(&self.alias_of) {
                Ok(target) if target.as_str() == name => {
                    report.problem("alias_of", "a domain is no alias of itself", "another domain");
                }
                Ok(target) if names.has_domain(target.as_str()) => {
                    target.as_str().clone_into(&mut self.alias_of);
                }
                Ok(target) => {
                    let message = format!("there is no [domain.{:?}] table", target.as_str());
                    report.problem("alias_of", message, "a domain that has a table");
                }
                Err(_) => {
                    report.problem("alias_of", "no mail domain", "a name such as example.org");
                }
            }
        }
        if !self.catch_all.is_empty() {
            let good = Address::parse(&self.catch_all, Case::Keep).is_ok();
            report.require(
                good,
                "catch_all",
                "not an address",
                "an address such as lost@example.org",
            );
        }
        if self.quota.0 > 0 && self.max_mailbox_quota.0 > self.quota.0 {
            report.notice("max_mailbox_quota", "is more than the domain's own quota");
        }
    }
}
