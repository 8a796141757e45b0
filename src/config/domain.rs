//! `[domain."NAME"]`.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::problem::Report;
use super::units::ByteSize;

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
}

impl Default for Domain {
    fn default() -> Self {
        Self { active: true, max_mailboxes: 0, quota: ByteSize(0), max_mailbox_quota: ByteSize(0) }
    }
}

impl Domain {
    pub(super) fn check(&self, report: &mut Report) {
        if self.quota.0 > 0 && self.max_mailbox_quota.0 > self.quota.0 {
            report.notice("max_mailbox_quota", "is more than the domain's own quota");
        }
    }
}
