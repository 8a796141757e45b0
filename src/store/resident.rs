//! Mailboxes as look-ups need them: one row each, without aliases, tags and notes.

use super::dialect::{Row, statements};
use super::mailbox::{Link, Mailbox, Place, Provider, Settings, extra_bytes};
use super::mailboxes::read;
use super::{Store, StoreError, within};
use crate::identity::Address;

statements! {
    AT = "SELECT c.address, d.active, m.template, m.display_name, m.quota, m.protocols, m.active, \
          m.disabled_delivery, m.extra, m.pinned, m.disabled_by_admin, m.home, m.uid, m.gid, \
          l.profile, l.id, m.provider, a.address, m.id \
          FROM addresses a \
          JOIN mailboxes m ON m.id = a.owner \
          JOIN addresses c ON c.owner = m.id AND c.kind = 'mailbox' \
          JOIN domains d ON d.name = m.domain \
          LEFT JOIN links l ON l.mailbox = m.id \
          WHERE a.address IN (?, ?, ?, ?)";
}

/// The most addresses that one query looks at: with and without detail, in two domains.
pub const MAX_CANDIDATES: usize = 4;

/// A mailbox as look-ups need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// The store's own number.
    pub id: i64,
    /// The canonical address.
    pub address: Address,
    /// The fields that templates and attributes govern.
    pub settings: Settings,
    /// An administrator's disable.
    pub disabled_by_admin: bool,
    /// Where the mail lies.
    pub place: Place,
    /// Who checks the password.
    pub provider: Provider,
    /// The directory entry it belongs to.
    pub link: Option<Link>,
}

impl Resident {
    /// Roughly what it takes in memory, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let settings = &self.settings;
        let extra = extra_bytes(&settings.extra);
        let link = self.link.as_ref().map_or(0, |link| link.profile.len() + link.id.len());
        let protocols = settings.protocols.as_str().len();
        500 + extra + link + protocols + settings.display_name.len() + self.place.home.len()
    }
}

impl Store {
    /// The mailboxes that these addresses belong to, canonical or alias, by one query. At most [`MAX_CANDIDATES`]
    /// addresses are looked at.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn residents(
        &self,
        addresses: &[&str],
    ) -> Result<Vec<(String, Resident)>, StoreError> {
        let at = |index: usize| addresses.get(index).copied().unwrap_or_default().into();
        within(async {
            let rows = self.db.read(AT, &[at(0), at(1), at(2), at(3)]).await?;
            rows.iter().map(resident).collect()
        })
        .await
    }
}

fn resident(row: &Row) -> Result<(String, Resident), StoreError> {
    let Mailbox { id, address, settings, disabled_by_admin, place, provider, link, .. } =
        read(row.int(18)?, row)?;
    let resident = Resident { id, address, settings, disabled_by_admin, place, provider, link };
    Ok((row.text(17)?.to_owned(), resident))
}
