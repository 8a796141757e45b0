//! May this mailbox be used for this service now? Judged last, on the state after this login's update
//! (login.md O-4), so that what is remembered does not depend on the service.

use super::{Reason, Service};
use crate::config::template::Active;
use crate::store::Mailbox;

/// The reason that speaks against it, if any. An administrator's disable comes first.
#[must_use]
pub fn objection(mailbox: &Mailbox, service: Service) -> Option<Reason> {
    if mailbox.disabled_by_admin {
        return Some(Reason::MailboxDisabled);
    }
    if !mailbox.domain_active {
        return Some(Reason::DomainInactive);
    }
    match mailbox.settings.active {
        Active::No => return Some(Reason::Inactive),
        Active::DeliveryOnly => return Some(Reason::DeliveryOnly),
        Active::Yes => {}
    }
    let allowed = |protocol| mailbox.settings.protocols.contains(protocol);
    match service.protocol() {
        Some(protocol) if !allowed(protocol) => Some(Reason::ProtocolNotAllowed),
        _ => None,
    }
}
