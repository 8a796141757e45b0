//! The mailbox: what we keep of a local account.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::template::{Active, DisabledDelivery};
use crate::identity::Address;
use crate::seldom::Seldom;

/// A mailbox with its addresses, tags and link, as one read of the store gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// The store's own number.
    pub id: i64,
    /// The canonical address; what doors answer as the user.
    pub address: Address,
    /// The domain of the address is switched on.
    pub domain_active: bool,
    /// The fields that templates and attributes govern.
    pub settings: Settings,
    /// An administrator's disable; wins over everything.
    pub disabled_by_admin: bool,
    /// Fields that an administrator keeps as they are.
    pub pinned: Seldom<BTreeSet<Field>>,
    /// Further addresses and who owns each.
    pub aliases: Seldom<BTreeMap<Address, Origin>>,
    /// Free words and who owns each.
    pub tags: Seldom<BTreeMap<Box<str>, Origin>>,
    /// The directory entry it belongs to. It stays while the password is checked here.
    pub link: Option<Link>,
    /// Who checks the password.
    pub provider: Provider,
    /// Written once, at creation.
    pub place: Place,
    /// What the directory wants for it and it cannot have; reported when that began.
    pub held: Seldom<BTreeSet<Held>>,
}

/// A value that the directory or a template asks for and that could not be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// The field it is for.
    pub field: Field,
    /// The value.
    pub value: Box<str>,
    /// Why not.
    pub why: Misfit,
}

/// Why a wanted value could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Misfit {
    /// The address is somebody else's.
    AddressTaken,
    /// No mail address, or one that must not stand in a path.
    BadAddress,
    /// A value that may not stand in a userdb field.
    BadValue,
    /// The domain has as many mailboxes as it may.
    DomainFull,
    /// The domain is switched off.
    DomainInactive,
    /// The domain is not configured.
    DomainUnknown,
    /// More than one mailbox of this domain may have.
    MailboxQuota,
    /// The entry has no address (any more).
    NoAddress,
    /// A quota that is no size.
    NotASize,
    /// The domain's quota is used up.
    QuotaExceeded,
    /// No rule matches; the mailbox keeps its template.
    TemplateUnmatched,
    /// Longer than we keep; cut.
    TooLong,
    /// More aliases than we keep.
    TooMany,
}

impl Misfit {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::AddressTaken,
        Self::BadAddress,
        Self::BadValue,
        Self::DomainFull,
        Self::DomainInactive,
        Self::DomainUnknown,
        Self::MailboxQuota,
        Self::NoAddress,
        Self::NotASize,
        Self::QuotaExceeded,
        Self::TemplateUnmatched,
        Self::TooLong,
        Self::TooMany,
    ];

    /// The word in the journal and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddressTaken => "address-taken",
            Self::BadAddress => "bad-address",
            Self::BadValue => "bad-value",
            Self::DomainFull => "domain-full",
            Self::DomainInactive => "domain-inactive",
            Self::DomainUnknown => "domain-unknown",
            Self::MailboxQuota => "mailbox-quota",
            Self::NoAddress => "no-address",
            Self::NotASize => "not-a-size",
            Self::QuotaExceeded => "quota-exceeded",
            Self::TemplateUnmatched => "template-unmatched",
            Self::TooLong => "too-long",
            Self::TooMany => "too-many",
        }
    }

    /// Only the store can tell: it depends on other mailboxes, and is tried again when something became free.
    #[must_use]
    pub fn depends_on_others(self) -> bool {
        matches!(self, Self::AddressTaken | Self::DomainFull | Self::QuotaExceeded)
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|why| why.as_str() == word)
    }
}

/// An administrator's word on a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody logs in, whatever the directory says.
    Disabled,
    /// The directory and the template decide.
    Enabled,
}

/// Words, each once, by the alphabet. In one piece of memory, which the mailboxes of a template share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words(Arc<str>);

impl Words {
    /// Whether this word is one of them.
    #[must_use]
    pub fn contains(&self, word: &str) -> bool {
        self.iter().any(|known| known == word)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split_ascii_whitespace()
    }

    /// All of them with blanks between.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'a> FromIterator<&'a str> for Words {
    /// Takes words without blanks.
    fn from_iter<T: IntoIterator<Item = &'a str>>(words: T) -> Self {
        let words: BTreeSet<&str> = words.into_iter().collect();
        Self(words.into_iter().collect::<Vec<_>>().join(" ").into())
    }
}

/// The fields that a template or an attribute governs, as last written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The template they came from.
    pub template: Arc<str>,
    /// The name people see; may be empty.
    pub display_name: Box<str>,
    /// Bytes; 0: no limit.
    pub quota: u64,
    /// imap, pop3, smtp, sieve, dav.
    pub protocols: Words,
    /// Whether it may be used.
    pub active: Active,
    /// Mail for a mailbox that may not log in.
    pub disabled_delivery: DisabledDelivery,
    /// Further userdb fields.
    pub extra: Seldom<BTreeMap<Box<str>, Box<str>>>,
}

/// Where the mail lies; never changed after creation (login.md V-7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The home directory.
    pub home: Box<str>,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// The tie between a directory entry and a mailbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// The profile's name.
    pub profile: Arc<str>,
    /// The entry's immutable id, in the text form of [`crate::person::Person::id`].
    pub id: Arc<str>,
}

/// Who checks the password of a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The directory of this name.
    Directory(Arc<str>),
    /// Gatepost itself, with the hash in the store.
    Local,
}

impl Provider {
    /// The word in the store: the directory's name, or nothing.
    pub(super) fn word(&self) -> &str {
        match self {
            Self::Directory(name) => name,
            Self::Local => "",
        }
    }

    pub(super) fn parse(word: &str) -> Self {
        if word.is_empty() { Self::Local } else { Self::Directory(word.into()) }
    }
}

impl std::fmt::Display for Provider {
    /// `local`, `ldap:NAME`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(name) => write!(formatter, "ldap:{name}"),
            Self::Local => formatter.write_str("local"),
        }
    }
}

/// Who owns an entry of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An administrator; logins leave it alone.
    Admin,
    /// The directory or a template; logins add and remove it.
    Directory,
}

/// A field that can be pinned, and that a change can touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// `active`
    Active,
    /// `address`: the canonical one
    Address,
    /// `aliases`
    Aliases,
    /// `disabled_delivery`
    DisabledDelivery,
    /// `display_name`
    DisplayName,
    /// `extra`
    Extra,
    /// `protocols`
    Protocols,
    /// `quota`
    Quota,
    /// `tags`
    Tags,
    /// `template`
    Template,
}

impl Field {
    /// Every field.
    pub const ALL: &'static [Self] = &[
        Self::Active,
        Self::Address,
        Self::Aliases,
        Self::DisabledDelivery,
        Self::DisplayName,
        Self::Extra,
        Self::Protocols,
        Self::Quota,
        Self::Tags,
        Self::Template,
    ];

    /// The word on the command line and in the store.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Address => "address",
            Self::Aliases => "aliases",
            Self::DisabledDelivery => "disabled_delivery",
            Self::DisplayName => "display_name",
            Self::Extra => "extra",
            Self::Protocols => "protocols",
            Self::Quota => "quota",
            Self::Tags => "tags",
            Self::Template => "template",
        }
    }

    /// The field of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.as_str() == name)
    }
}

impl Mailbox {
    /// Whether mail to this address is its, as its own or by an alias.
    #[must_use]
    pub fn owns(&self, address: &Address) -> bool {
        self.address == *address || self.aliases.contains_key(address)
    }

    /// Roughly what it takes in memory, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let sets = set_bytes::<(Address, Origin)>(self.aliases.len())
            + set_bytes::<(Box<str>, Origin)>(self.tags.len())
            + set_bytes::<Held>(self.held.len())
            + set_bytes::<Field>(self.pinned.len());
        // An alias has a text for itself and one for its domain.
        let aliases: usize = self.aliases.keys().map(|alias| 2 * text_bytes(alias.as_str())).sum();
        let tags: usize = self.tags.keys().map(|tag| text_bytes(tag)).sum();
        let held: usize = self.held.iter().map(|held| text_bytes(&held.value)).sum();
        let fields = extra_bytes(&self.settings.extra);
        let place = self.place.home.len();
        let texts = self.address.as_str().len() + self.settings.display_name.len() + place;
        MAILBOX_BYTES + sets + aliases + tags + held + fields + texts
    }
}

/// What a mailbox and its texts take beside their letters, in bytes: the struct, and what allocation adds.
const MAILBOX_BYTES: usize = 350;

/// Roughly what a set or a map takes beside the texts in it, in bytes: leaves with room for eleven things, of which half
/// is used; the tree's own struct, which nearly nobody has, with what allocation adds.
fn set_bytes<T>(len: usize) -> usize {
    if len == 0 { 0 } else { 48 + len.div_ceil(6) * 11 * size_of::<T>() }
}

/// Roughly what a text with a piece of memory of its own takes, in bytes.
fn text_bytes(text: &str) -> usize {
    text.len() + 16
}

/// Roughly what further userdb fields take, in bytes.
pub(super) fn extra_bytes(extra: &BTreeMap<Box<str>, Box<str>>) -> usize {
    let texts: usize = extra.iter().map(|(key, value)| text_bytes(key) + text_bytes(value)).sum();
    set_bytes::<(Box<str>, Box<str>)>(extra.len()) + texts
}

#[cfg(test)]
impl Mailbox {
    /// A mailbox for tests of other layers.
    pub(crate) fn sample(address: &str) -> Self {
        use crate::config::template::{Active, DisabledDelivery};
        use crate::identity::Case;
        Self {
            id: 1,
            address: Address::parse(address, Case::Fold).unwrap(),
            domain_active: true,
            settings: Settings {
                template: "staff".into(),
                display_name: "".into(),
                quota: 0,
                protocols: ["imap", "smtp"].into_iter().collect(),
                active: Active::Yes,
                disabled_delivery: DisabledDelivery::Accept,
                extra: Seldom::default(),
            },
            disabled_by_admin: false,
            pinned: Seldom::default(),
            aliases: Seldom::default(),
            tags: Seldom::default(),
            link: Some(Link { profile: "corp".into(), id: "1".into() }),
            provider: Provider::Directory("corp".into()),
            place: Place { home: "/srv/mail/sample".into(), uid: 5000, gid: 5001 },
            held: Seldom::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_set_weighs_as_much_as_its_leaf() {
        let mut mailbox = Mailbox::sample("fry@example.org");
        let lean = mailbox.weight();
        assert!(size_of::<Mailbox>() <= MAILBOX_BYTES);

        mailbox.aliases.make().insert(mailbox.address.clone(), Origin::Directory);
        assert!(mailbox.weight() >= lean + 11 * size_of::<(Address, Origin)>());
    }
}
