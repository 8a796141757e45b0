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
    pub id: Arc<str>,
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

/// Attributes by lower-case name; values are bytes. In one piece of memory, for a hundred thousand remembered people hold
/// them: a *field* is its length (seven bits a byte, the lowest first; a set highest bit says that more follow) and its bytes; an attribute is the field of its name and a
/// field of its values' fields; attributes stand in the order of their names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Attributes(Box<[u8]>);

/// The values of one attribute, in the order the directory gave them.
#[derive(Clone, Debug, Default)]
pub struct Values<'a>(&'a [u8]);

impl Attributes {
    /// Adds values to an attribute; the name's case does not matter. To make them all, collect them.
    pub fn insert(&mut self, name: &str, values: impl IntoIterator<Item = Box<[u8]>>) {
        let values = values.into_iter().collect::<Vec<_>>();
        let mut all = self.to_map();
        all.entry(name.to_ascii_lowercase()).or_default().extend(values.iter().map(AsRef::as_ref));
        *self = all.into_iter().collect();
    }

    /// Takes an attribute out.
    pub fn remove(&mut self, name: &str) {
        let (all, mut rest) = (&*self.0, &*self.0);
        loop {
            let before = all.get(..all.len() - rest.len()).unwrap_or_default();
            let (Some(known), Some(_)) = (take_field(&mut rest), take_field(&mut rest)) else {
                return;
            };
            if known.eq_ignore_ascii_case(name.as_bytes()) {
                self.0 = [before, rest].concat().into();
                return;
            }
        }
    }

    /// All values of an attribute, in the order the directory gave them.
    pub fn values(&self, name: &str) -> Values<'_> {
        let found = self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, values)| values).unwrap_or_default()
    }

    /// Those values that are UTF-8 text.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.values(name).filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// Every attribute with its values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Values<'_>)> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let name = std::str::from_utf8(take_field(&mut rest)?).ok()?;
            Some((name, Values(take_field(&mut rest)?)))
        })
    }

    /// What it takes in memory, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.0.len()
    }

    fn to_map(&self) -> BTreeMap<String, Vec<&[u8]>> {
        self.iter().map(|(name, values)| (name.to_owned(), values.collect())).collect()
    }
}

/// Of names in lower case, each with its values.
impl<V: AsRef<[u8]>> FromIterator<(String, Vec<V>)> for Attributes {
    fn from_iter<I: IntoIterator<Item = (String, Vec<V>)>>(all: I) -> Self {
        let all: BTreeMap<_, _> = all.into_iter().collect();
        let mut bytes = Vec::new();
        for (name, values) in all {
            write_field(name.as_bytes(), &mut bytes);
            let mut fields = Vec::new();
            values.iter().for_each(|value| write_field(value.as_ref(), &mut fields));
            write_field(&fields, &mut bytes);
        }
        Self(bytes.into())
    }
}

impl std::fmt::Debug for Attributes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |(name, values): (_, Values<'_>)| {
            let values: Vec<_> = values.map(|value| value.escape_ascii().to_string()).collect();
            (name, values)
        };
        formatter.debug_map().entries(self.iter().map(shown)).finish()
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        take_field(&mut self.0)
    }
}

fn write_field(bytes: &[u8], output: &mut Vec<u8>) {
    let mut length = bytes.len();
    loop {
        let low = u8::try_from(length & 0x7f).unwrap_or_default();
        length >>= 7;
        if length == 0 {
            output.push(low);
            break;
        }
        output.push(low | 0x80);
    }
    output.extend_from_slice(bytes);
}

fn take_field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (mut length, mut shift, mut after) = (0_usize, 0, *rest);
    loop {
        let (byte, more) = after.split_first()?;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        (shift, after) = (shift + 7, more);
        if byte & 0x80 == 0 {
            break;
        }
    }
    let (field, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn attributes_give_back_what_was_put_in(
            puts in prop::collection::vec(("[a-cA-C;]{0,3}", prop::collection::vec(any::<Vec<u8>>(), 0..4)), 0..8),
            removed in "[a-c]",
        ) {
            let (mut attributes, mut expected) = (Attributes::default(), BTreeMap::<String, Vec<Vec<u8>>>::new());
            for (name, values) in &puts {
                attributes.insert(name, values.iter().map(|value| value.as_slice().into()));
                expected.entry(name.to_ascii_lowercase()).or_default().extend(values.clone());
            }
            attributes.remove(&removed);
            expected.remove(&removed);

            let all: BTreeMap<String, Vec<Vec<u8>>> = attributes
                .iter()
                .map(|(name, values)| (name.to_owned(), values.map(<[u8]>::to_vec).collect()))
                .collect();
            prop_assert_eq!(&all, &expected);
            prop_assert!(attributes.iter().map(|(name, _)| name).is_sorted());
            for (name, values) in &expected {
                let found: Vec<_> = attributes.values(&name.to_ascii_uppercase()).map(<[u8]>::to_vec).collect();
                prop_assert_eq!(&found, values);
            }
            prop_assert_eq!(attributes.values("nobody").count(), 0);
        }
    }
}
