//! The one place where entries of the shield's lists are made and taken out at run time, whoever asks for it.

use super::Authenticator;
use crate::throttle::{Entry, Full, List, Whom};

impl Authenticator {
    /// Puts entries into their lists, in the place of earlier ones about the same.
    ///
    /// # Errors
    /// A list would be too long; nothing was added.
    pub fn add_entries(&self, entries: &[Entry]) -> Result<(), Full> {
        self.throttle.add_entries(entries)
    }

    /// Takes an entry out that was made at run time; whether it was there.
    pub fn remove_entry(&self, list: List, whom: &Whom) -> bool {
        self.throttle.remove_entry(list, whom)
    }
}
