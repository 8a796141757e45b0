//! A mailbox as operators see it: on the command line and over the control socket.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::template::{Active, DisabledDelivery};
use crate::config::units::ByteSize;
use crate::store::{Mailbox, Origin};

/// A mailbox as operators see it.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The canonical address.
    pub address: String,
    /// The name people see.
    pub display_name: String,
    /// The template its settings came from.
    pub template: String,
    active: Active,
    domain_active: bool,
    disabled_by_admin: bool,
    disabled_delivery: DisabledDelivery,
    quota: u64,
    protocols: Vec<String>,
    aliases: Vec<Owned>,
    tags: Vec<Owned>,
    pinned: Vec<&'static str>,
    home: String,
    uid: u32,
    gid: u32,
    extra: BTreeMap<String, String>,
    provider: String,
    id: Option<String>,
}

#[derive(Debug, Serialize)]
struct Owned {
    name: String,
    owner: &'static str,
}

impl Shown {
    /// What is shown of a mailbox.
    #[must_use]
    pub fn new(mailbox: &Mailbox) -> Self {
        let owner = |origin: &Origin| match origin {
            Origin::Admin => "admin",
            Origin::Directory => "directory",
        };
        let owned = |name: String, origin: &Origin| Owned { name, owner: owner(origin) };
        let settings = &mailbox.settings;
        Self {
            address: mailbox.address.to_string(),
            display_name: settings.display_name.to_string(),
            template: settings.template.to_string(),
            active: settings.active,
            domain_active: mailbox.domain_active,
            disabled_by_admin: mailbox.disabled_by_admin,
            disabled_delivery: settings.disabled_delivery,
            quota: settings.quota,
            protocols: settings.protocols.iter().map(str::to_owned).collect(),
            aliases: mailbox.aliases.iter().map(|(name, by)| owned(name.to_string(), by)).collect(),
            tags: mailbox.tags.iter().map(|(name, by)| owned(name.to_string(), by)).collect(),
            pinned: mailbox.pinned.iter().map(|field| field.as_str()).collect(),
            home: mailbox.place.home.to_string(),
            uid: mailbox.place.uid,
            gid: mailbox.place.gid,
            extra: settings
                .extra
                .iter()
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            provider: mailbox.provider.to_string(),
            id: mailbox.link.as_ref().map(|link| link.id.to_string()),
        }
    }

    /// One word for a list.
    #[must_use]
    pub fn standing(&self) -> &'static str {
        match (self.disabled_by_admin, self.active) {
            (true, _) => "disabled",
            (_, Active::DeliveryOnly) => "delivery-only",
            (_, Active::No) => "inactive",
            (_, Active::Yes) => "active",
        }
    }

    /// A line for each field that has a value.
    #[must_use]
    pub fn text(&self) -> String {
        let names = |owned: &[Owned]| {
            let one = |owned: &Owned| format!("{} ({})", owned.name, owned.owner);
            owned.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let quota = ByteSize(self.quota);
        let quota = if self.quota == 0 { "no limit".to_owned() } else { quota.to_string() };
        let extra: Vec<_> =
            self.extra.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let lines = [
            ("address", self.address.clone()),
            ("display name", self.display_name.clone()),
            ("standing", self.standing().to_owned()),
            ("template", self.template.clone()),
            ("quota", quota),
            ("protocols", self.protocols.join(" ")),
            ("aliases", names(&self.aliases)),
            ("tags", names(&self.tags)),
            ("pinned", self.pinned.join(" ")),
            ("home", format!("{} (uid {}, gid {})", self.home, self.uid, self.gid)),
            ("extra", extra.join(" ")),
            ("provider", self.provider.clone()),
            ("id", self.id.clone().unwrap_or_default()),
        ];
        let filled = lines.iter().filter(|(_, value)| !value.is_empty());
        filled.map(|(key, value)| format!("{key:<13} {value}\n")).collect()
    }
}
