//! Secrets are types: never printed, zeroed when dropped, compared in constant time.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The longest password that is looked at, in bytes (login.md N-3).
pub const MAX_PASSWORD_BYTES: usize = 1024;

/// A password as it came from a door: bytes, not text. Not trimmed, not normalised.
#[derive(Clone)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes, for a digest or a bind.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it may be asked about at all: 1 to 1024 bytes, no NUL (login.md N-3). An empty password would be
    /// an unauthenticated bind (RFC 4513 §5.1.2), which some directories answer with success.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        !self.0.is_empty() && self.0.len() <= MAX_PASSWORD_BYTES && !self.0.contains(&0)
    }
}

impl From<Zeroizing<Vec<u8>>> for Password {
    /// Takes the buffer over.
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(********)")
    }
}

/// A secret text of ours: a service account's password, a caller's token.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether no secret is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares in constant time (for equal lengths).
    #[must_use]
    pub fn matches(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.is_empty() { "Secret(-)" } else { "Secret(********)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows_in_debug_output() {
        assert_eq!(format!("{:?}", Password::new("hunter2")), "Password(********)");
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(********)");
        assert_eq!(format!("{:?}", Secret::default()), "Secret(-)");
    }

    #[test]
    fn passwords_that_must_not_reach_a_directory_are_not_well_formed() {
        assert!(Password::new("x").is_well_formed());
        assert!(Password::new(vec![0xff; 1024]).is_well_formed());
        for bad in [vec![], b"a\0b".to_vec(), vec![b'x'; 1025]] {
            assert!(!Password::new(bad).is_well_formed());
        }
    }
}
