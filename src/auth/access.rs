//! May this mailbox be used for this service now? Judged last, on the state after this login's update
//! (login.md O-4), so that what is remembered does not depend on the service.

use super::{Reason, Service};
use crate::config::template::Active;
use crate::store::{Mailbox, Settings};

/// What access is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// An administrator's disable.
    pub disabled_by_admin: bool,
    /// The domain of the address is switched on.
    pub domain_active: bool,
    /// The fields that templates and attributes govern.
    pub settings: &'a Settings,
}

/// The reason that speaks against it, if any. An administrator's disable comes first.
#[must_use]
pub fn objection(mailbox: &Mailbox, service: Service) -> Option<Reason> {
    let Mailbox { disabled_by_admin, domain_active, ref settings, .. } = *mailbox;
    objection_to(Facts { disabled_by_admin, domain_active, settings }, service)
}

/// [`objection`] for whoever knows a mailbox by less than all of it.
#[must_use]
pub fn objection_to(facts: Facts<'_>, service: Service) -> Option<Reason> {
    if facts.disabled_by_admin {
        return Some(Reason::MailboxDisabled);
    }
    if !facts.domain_active {
        return Some(Reason::DomainInactive);
    }
    match facts.settings.active {
        Active::No => return Some(Reason::Inactive),
        Active::DeliveryOnly => return Some(Reason::DeliveryOnly),
        Active::Yes => {}
    }
    let allowed = |protocol| facts.settings.protocols.contains(protocol);
    match service.protocol() {
        Some(protocol) if !allowed(protocol) => Some(Reason::ProtocolNotAllowed),
        _ => None,
    }
}
