//! From a person and the mailbox they have to the changes that make it what it should be. Pure: login, preview and
//! `explain` all end here, and a plan made after a plan was carried out is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::desired::from_template;
pub use super::desired::{Desired, desired};
use super::template::Rules;
use crate::config::template::{Active, DisabledDelivery};
use crate::config::units::ByteSize;
use crate::identity::Address;
use crate::person::Person;
use crate::seldom::Seldom;
use crate::store::{Field, Held, Link, Mailbox, Origin, Provider, Settings};

/// The longest text that is kept of an attribute, in letters.
pub(super) const MAX_TEXT: usize = 256;
/// The most aliases that one mailbox gets.
pub(super) const MAX_ALIASES: usize = 500;
/// The largest quota: sums of many still fit a database's integer.
pub(super) const MAX_QUOTA: u64 = 1 << 50;

/// Something that was asked for and cannot be; told once, when it begins.
pub type Report = Held;

/// One change of a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A further address.
    AddAlias(Address),
    /// A tag.
    AddTag(Box<str>),
    /// A new mailbox, with everything it begins with.
    Create(Box<Mailbox>),
    /// Something cannot be written from now on.
    Hold(Report),
    /// The tie to the entry, for a mailbox that an administrator gave to its directory.
    Link(Link),
    /// Something that could not be written is no longer wanted, or can be.
    Release(Report),
    /// An address that the directory no longer lists.
    RemoveAlias(Address),
    /// A tag that the template no longer has.
    RemoveTag(Box<str>),
    /// Another canonical address; the old one stays as an alias.
    Rename {
        /// The old one.
        from: Address,
        /// The new one.
        to: Address,
    },
    /// Another value.
    Set {
        /// Of which field.
        field: Field,
        /// The value before.
        from: String,
        /// The value after.
        to: String,
    },
}

/// What is to be done for one person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The mailbox that the plan was made for; `None` for a new one.
    pub base: Option<Mailbox>,
    /// What to do; empty if everything is as it should be.
    pub changes: Vec<Change>,
    /// What cannot be done, as far as that is news.
    pub reports: Vec<Report>,
    /// The mailbox after the plan.
    pub mailbox: Mailbox,
}

/// Why somebody whose password is right gets no mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Their address is somebody else's.
    AddressTaken {
        /// The owner's canonical address.
        by: String,
    },
    /// Their address, or a value that goes into a path, must not stand there (login.md N-5).
    BadAddress(String),
    /// The directory's section makes no mailboxes at login, or not for this protocol.
    CreationOff,
    /// The domain has as many mailboxes as it may.
    DomainFull,
    /// The domain is switched off.
    DomainInactive,
    /// The domain is not configured.
    DomainUnknown(String),
    /// The mailbox of this address belongs to another entry (login.md V-6).
    IdChanged {
        /// The entry it belongs to.
        stored: Link,
        /// The entry that logs in.
        found: Link,
    },
    /// The entry has no address.
    NoAddress,
    /// No rule matches and there is no default.
    NoTemplate,
    /// The mailbox's password is checked elsewhere: by another directory, or here.
    ProviderMismatch {
        /// Who checks it.
        provider: Provider,
    },
    /// The template's quota is more than the domain allows.
    QuotaExceeded,
    /// No rule matches any more, and `on_unmatched = "refuse"`.
    TemplateUnmatched,
}

/// Plans for one person. `stored` is the mailbox linked to their entry, or else the one that owns their address;
/// `protocol` is what they log in for, where a protocol counts.
///
/// # Errors
/// Why they get no mailbox, or not this one.
pub fn plan(
    rules: &Rules,
    person: &Person,
    stored: Option<&Mailbox>,
    protocol: Option<&str>,
) -> Result<Plan, Refusal> {
    match stored {
        None => create(rules, person, protocol),
        Some(stored) => {
            check_link(rules, person, stored)?;
            let wish = desired(rules, person, Some(stored))?;
            Ok(update(rules, stored, link(person), wish))
        }
    }
}

/// The link that a person's mailbox has.
pub(super) fn link(person: &Person) -> Link {
    Link { profile: Arc::clone(&person.profile), id: Arc::clone(&person.id) }
}

fn check_link(rules: &Rules, person: &Person, stored: &Mailbox) -> Result<(), Refusal> {
    let found = link(person);
    let is_provider =
        matches!(&stored.provider, Provider::Directory(name) if **name == *person.profile);
    match &stored.link {
        Some(link) if *link == found && is_provider => Ok(()),
        // An administrator gave it to this directory: whoever has its address there is its person.
        None if is_provider && desired(rules, person, None)?.address == stored.address => Ok(()),
        Some(link) if *link == found => {
            Err(Refusal::ProviderMismatch { provider: stored.provider.clone() })
        }
        Some(link) if desired(rules, person, None)?.address == stored.address => {
            Err(Refusal::IdChanged { stored: link.clone(), found })
        }
        _ => Err(Refusal::AddressTaken { by: stored.address.to_string() }),
    }
}

fn create(rules: &Rules, person: &Person, protocol: Option<&str>) -> Result<Plan, Refusal> {
    let lazy = rules.profile(&person.profile).map(|profile| &profile.lazy);
    let may = lazy.is_some_and(|lazy| {
        let listed = |word: &str| lazy.protocols.iter().any(|it| it.eq_ignore_ascii_case(word));
        lazy.enabled && protocol.is_none_or(listed)
    });
    if !may {
        return Err(Refusal::CreationOff);
    }
    let wish = desired(rules, person, None)?;
    let provider = Provider::Directory((&*person.profile).into());
    new_mailbox(rules, wish, Some(link(person)), provider)
}

/// Plans a mailbox whose password is checked here, from a template alone.
///
/// # Errors
/// Why there can be none.
pub fn plan_local(rules: &Rules, address: &Address, template: &str) -> Result<Plan, Refusal> {
    new_mailbox(rules, from_template(rules, address, template)?, None, Provider::Local)
}

fn new_mailbox(
    rules: &Rules,
    wish: Desired,
    link: Option<Link>,
    provider: Provider,
) -> Result<Plan, Refusal> {
    match rules.domain(wish.address.domain()) {
        None => return Err(Refusal::DomainUnknown(wish.address.domain().to_string())),
        Some(domain) if !domain.active => return Err(Refusal::DomainInactive),
        Some(_) => {}
    }
    let mailbox = Mailbox {
        id: 0,
        address: wish.address,
        domain_active: true,
        settings: wish.settings,
        disabled_by_admin: false,
        pinned: Seldom::default(),
        aliases: wish.aliases.into_iter().map(|alias| (alias, Origin::Directory)).collect(),
        tags: wish.tags.into_iter().map(|tag| (tag, Origin::Directory)).collect(),
        link,
        provider,
        place: wish.place,
        held: wish.misfits.clone().into(),
    };
    Ok(Plan {
        base: None,
        changes: vec![Change::Create(Box::new(mailbox.clone()))],
        reports: wish.misfits.into_iter().collect(),
        mailbox,
    })
}

fn update(rules: &Rules, stored: &Mailbox, found: Link, wish: Desired) -> Plan {
    let mut changes = Vec::new();
    let mut mailbox = stored.clone();
    let mut held = wish.misfits;
    if stored.link.is_none() {
        changes.push(Change::Link(found.clone()));
    }
    // What stays equal is the person's from now on: a remembered mailbox has no texts of its own where it can share them.
    mailbox.provider = Provider::Directory(Arc::clone(&found.profile));
    mailbox.link = Some(found);
    if wish.address != stored.address {
        let to = wish.address;
        mailbox.aliases.change(|aliases| {
            aliases.remove(&to);
        });
        // Nobody who writes to the old address shall lose mail: it stays until an administrator removes it.
        mailbox.aliases.make().insert(stored.address.clone(), Origin::Admin);
        mailbox.address = to.clone();
        changes.push(Change::Rename { from: stored.address.clone(), to });
    }
    mailbox.domain_active = rules.domain(mailbox.address.domain()).is_some_and(|it| it.active);

    mailbox.settings = wish.settings;
    let quota = mailbox.settings.quota;
    if quota != stored.settings.quota
        && let Some(known) = refused_before(stored, Field::Quota, &quota.to_string())
    {
        held.insert(known.clone());
        mailbox.settings.quota = stored.settings.quota;
    }
    changes.extend(differences(&stored.settings, &mailbox.settings));

    let mut aliases = wish.aliases;
    aliases.retain(|alias| {
        let known = refused_before(stored, Field::Aliases, alias.as_str())
            .filter(|_| !mailbox.aliases.contains_key(alias));
        held.extend(known.cloned());
        known.is_none() && *alias != mailbox.address
    });
    let (added, removed) = merge(&mut mailbox.aliases, &aliases);
    changes.extend(removed.into_iter().map(Change::RemoveAlias));
    changes.extend(added.into_iter().map(Change::AddAlias));
    let (added, removed) = merge(&mut mailbox.tags, &wish.tags);
    changes.extend(removed.into_iter().map(Change::RemoveTag));
    changes.extend(added.into_iter().map(Change::AddTag));

    let reports: Vec<Report> = held.difference(&stored.held).cloned().collect();
    changes.extend(stored.held.difference(&held).cloned().map(Change::Release));
    changes.extend(reports.iter().cloned().map(Change::Hold));
    mailbox.held = held.into();
    Plan { base: Some(stored.clone()), changes, reports, mailbox }
}

/// What only the store can refuse, and did; nothing became free since, so it is not tried again (login.md V-4).
pub(super) fn refused_before<'a>(
    stored: &'a Mailbox,
    field: Field,
    value: &str,
) -> Option<&'a Held> {
    let same = |it: &&Held| it.field == field && &*it.value == value && it.why.depends_on_others();
    stored.held.iter().find(same)
}

/// Makes the directory's part of a set what it should be; an administrator's entries stay. Gives what came and went.
fn merge<T: Ord + Clone + 'static>(
    set: &mut Seldom<BTreeMap<T, Origin>>,
    wanted: &BTreeSet<T>,
) -> (Vec<T>, Vec<T>) {
    let added: Vec<T> = wanted.iter().filter(|it| !set.contains_key(*it)).cloned().collect();
    let gone = |it: &T, origin: Origin| origin == Origin::Directory && !wanted.contains(it);
    let removed: Vec<T> =
        set.iter().filter(|(it, origin)| gone(it, **origin)).map(|(it, _)| it.clone()).collect();
    set.change(|set| set.retain(|it, origin| !gone(it, *origin)));
    // No room is made for nothing.
    if !added.is_empty() {
        set.make().extend(added.iter().map(|it| (it.clone(), Origin::Directory)));
    }
    (added, removed)
}

fn differences(old: &Settings, new: &Settings) -> Vec<Change> {
    if old == new {
        return Vec::new();
    }
    let words = [shown(old), shown(new)];
    let [old, new] = words;
    let pairs = old.into_iter().zip(new);
    let changed = pairs.filter(|((_, from), (_, to))| from != to);
    changed.map(|((field, from), (_, to))| Change::Set { field, from, to }).collect()
}

/// Settings as people read them; different settings look different.
fn shown(settings: &Settings) -> [(Field, String); 7] {
    let extra = settings.extra.iter().map(|(name, value)| format!("{name}={value:?}"));
    [
        (Field::Template, settings.template.to_string()),
        (Field::DisplayName, settings.display_name.to_string()),
        (Field::Quota, ByteSize(settings.quota).to_string()),
        (Field::Protocols, settings.protocols.as_str().to_owned()),
        (Field::Active, active(settings.active).into()),
        (Field::DisabledDelivery, delivery(settings.disabled_delivery).into()),
        (Field::Extra, extra.collect::<Vec<_>>().join(" ")),
    ]
}

const fn active(active: Active) -> &'static str {
    match active {
        Active::DeliveryOnly => "delivery-only",
        Active::No => "no",
        Active::Yes => "yes",
    }
}

const fn delivery(delivery: DisabledDelivery) -> &'static str {
    match delivery {
        DisabledDelivery::Accept => "accept",
        DisabledDelivery::Reject => "reject",
        DisabledDelivery::Tempfail => "tempfail",
    }
}
