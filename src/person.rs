//! The directory's record of someone, as plain values: what `directory` reads and `provision` plans from.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The profile of those whose password is checked here; no directory may be called so.
pub const LOCAL: &str = "local";

/// One person of one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The profile (configured directory) that knows them.
    pub profile: Arc<str>,
    /// The immutable id in its text form: a UUID or GUID in lower-case 8-4-4-4-12 form, a SID as `S-1-…`,
    /// hexadecimal for `binary`, the value itself for `text`.
    pub id: Box<str>,
    /// Where the entry stands now. Changes with moves and renames.
    pub dn: Box<str>,
    /// The attributes asked for.
    pub attributes: Attributes,
    /// What the entry says of the account.
    pub state: AccountState,
    /// When the password or the account's standing last changed (login.md M-7).
    pub stamp: Stamp,
    /// The password is used once only (login.md B-3): nothing is remembered.
    pub one_time: bool,
}

impl Person {
    /// Stands for a mailbox whose password is checked here, by the store's own number.
    #[must_use]
    pub fn local(mailbox: i64) -> Self {
        Self {
            profile: LOCAL.into(),
            id: mailbox.to_string().into(),
            dn: Box::default(),
            attributes: Attributes::default(),
            state: AccountState::Active,
            // What changes a local password ends what is remembered of it at once; nothing else does.
            stamp: Stamp::At([0; 16]),
            one_time: false,
        }
    }

    /// Whether it stands for a mailbox whose password is checked here.
    #[must_use]
    pub fn is_local(&self) -> bool {
        &*self.profile == LOCAL
    }
}

/// What an entry's attributes say of the account, before any bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// Nothing speaks against a login.
    Active,
    /// Switched off by an administrator, or past its last day.
    Disabled,
    /// Locked after too many failures.
    Locked,
}

/// A digest of the attributes that move when the password or the account's standing changes
/// (`pwdChangedTime`, `pwdLastSet`, `krbLastPwdChange`, lock and disable attributes; absence is a value).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// No such attribute could be read: a refusal is trusted for 60 s only (login.md M-4).
    Unreadable,
    /// The digest.
    At([u8; 16]),
}

/// Attributes by lower-case name; values are bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(BTreeMap<Box<str>, Vec<Box<[u8]>>>);

impl Attributes {
    /// Adds values to an attribute; the name's case does not matter.
    pub fn insert(&mut self, name: &str, values: impl IntoIterator<Item = Box<[u8]>>) {
        self.0.entry(name.to_ascii_lowercase().into()).or_default().extend(values);
    }

    /// Takes an attribute out.
    pub fn remove(&mut self, name: &str) {
        self.0.remove(name.to_ascii_lowercase().as_str());
    }

    /// All values of an attribute, in the order the directory gave them.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let values = match self.0.get(name) {
            Some(values) => Some(values),
            None => self.0.get(name.to_ascii_lowercase().as_str()),
        };
        values.into_iter().flatten().map(AsRef::as_ref)
    }

    /// Those values that are UTF-8 text.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.values(name).filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// Every attribute with its values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Box<[u8]>])> {
        self.0.iter().map(|(name, values)| (name.as_ref(), values.as_slice()))
    }

    /// Roughly what it takes in memory, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let values =
            |values: &[Box<[u8]>]| values.iter().map(|value| value.len() + 32).sum::<usize>();
        self.0.iter().map(|(name, all)| name.len() + 64 + values(all)).sum()
    }
}
