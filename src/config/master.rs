//! `[master.NAME]`.

use documented::DocumentedFields;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::check::{Names, check_protocols, settle_domain};
use super::problem::Report;
use crate::identity::{Address, Case};

/// A master: logs in as others with their own password (login.md D-5).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Master {
    /// The address of the mailbox whose password counts.
    pub user: String,
    /// Mailboxes of these mail domains may be entered.
    pub domains: Vec<String>,
    /// For these protocols: imap, pop3, smtp, sieve, dav.
    pub services: Vec<String>,
    /// From these nets; empty: from anywhere, also where the client is not known.
    #[serde(deserialize_with = "super::listen::nets")]
    pub nets: Vec<IpNet>,
}

impl Master {
    pub(super) fn settle(&mut self, names: &Names, report: &mut Report) {
        report.require(
            Address::parse(&self.user, Case::Keep).is_ok(),
            "user",
            "not an address",
            "the address of a mailbox, such as support@corp.example",
        );
        report.require(!self.domains.is_empty(), "domains", "nobody to log in as", "mail domains");
        for (index, domain) in self.domains.iter_mut().enumerate() {
            settle_domain(domain, &format!("domains.{index}"), names, report);
        }
        report.require(!self.services.is_empty(), "services", "nothing to log in to", "protocols");
        check_protocols(&self.services, "services", report);
    }
}
