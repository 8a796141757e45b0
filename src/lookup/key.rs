//! Keys as mail servers send them, and addresses as they want them back.

use std::sync::Arc;

use crate::identity::{Address, LoginRules};

/// An address to look up, and where its detail begins.
pub(super) struct Key {
    pub(super) address: Address,
    /// Length of the local part before the separator; `None`: there is no detail.
    bare: Option<usize>,
}

impl Key {
    /// Understands a key; `None`: it cannot be anybody's, such as `<>`, `"a b"@example.org`, `a@b@example.org`,
    /// `postmaster@[192.0.2.1]`.
    pub(super) fn parse(key: &[u8], names: &LoginRules) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        let (local, domain) = text.split_once('@')?;
        if domain.contains('@') || local.starts_with('"') {
            return None;
        }
        let address = Address::parse(text, names.case).ok()?;
        Some(Self::of(&address, names))
    }

    /// An address in its one form as a key.
    pub(super) fn of(address: &Address, names: &LoginRules) -> Self {
        let separator = &*names.separator;
        let bare = (!separator.is_empty())
            .then(|| address.local().find(separator))
            .flatten()
            // A name that begins with the separator has no user part.
            .filter(|at| *at > 0);
        Self { address: address.clone(), bare }
    }

    /// The local part without detail, if there is one to cut off.
    pub(super) fn bare(&self) -> Option<&str> {
        self.address.local().get(..self.bare?)
    }

    /// The separator and what follows it.
    pub(super) fn detail(&self) -> &str {
        self.bare.and_then(|at| self.address.local().get(at..)).unwrap_or_default()
    }
}

/// An address as it stands in mail headers (RFC 5322 section 3.4.1: what is no dot-atom is quoted), with a detail put
/// back.
pub(super) fn external(address: &Address, detail: &str) -> Arc<str> {
    let is_atom = |letter: char| letter.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(letter);
    let is_dot_atom =
        |text: &str| text.split('.').all(|part| !part.is_empty() && part.chars().all(is_atom));
    let local = address.local();
    if detail.is_empty() && is_dot_atom(local) {
        return address.shared();
    }
    let local = format!("{local}{detail}");
    if is_dot_atom(&local) {
        return format!("{local}@{}", address.domain()).into();
    }
    let quoted = local.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{quoted}\"@{}", address.domain()).into()
}
