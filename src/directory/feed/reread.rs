//! An entry was touched: it is read again, at the server that told of it.

use std::sync::Arc;
use std::time::Instant;

use ldap3::Scope;

use super::super::connection::{Found, Query};
use super::super::entry::{self, Entry};
use super::super::filter::Filter;
use super::super::host::Host;
use super::super::preset::DisabledRule;
use super::super::profile::{Profile, no_attributes};
use super::super::{Finding, Known, Share, Trouble, Why};
use crate::person::{AccountState, Attributes};

const MODIFIED: &str = "modifyTimestamp";

/// What a login itself leaves at an entry (slapo-ppolicy, lastbind): each is a time.
const LEFT_BY_LOGINS: [&str; 4] =
    ["pwdFailureTime", "pwdLastSuccess", "authTimestamp", "pwdGraceUseTime"];

/// What an entry says after it was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reread {
    /// Who is there now; nobody, if they were removed or the profile's filter leaves them out.
    pub finding: Finding,
    /// The entry was last modified by a login, failed or not.
    pub by_login: bool,
}

impl Profile {
    /// Reads a touched entry again, where it stood or wherever it was moved to.
    pub async fn reread(self: &Arc<Self>, known: &Known, deadline: Instant) -> Reread {
        let profile = Arc::clone(self);
        let known = known.clone();
        let work = async move {
            let Some(host) = profile.feed.host() else {
                return Err(Trouble { why: Why::Directory, detail: "the feed has ended".into() });
            };
            match profile.reread_at(&host, &known).await {
                Ok(Some(read)) => Ok(read),
                Ok(None) => profile.reread_elsewhere(&host, &known.id).await,
                Err(trouble) => Err(trouble),
            }
        };
        // As a newcomer: whoever waits for a login goes first.
        let read = self.run(Share::Newcomer, deadline, work).await.flatten();
        read.unwrap_or_else(|trouble| Reread { finding: Finding::Failed(trouble), by_login: false })
    }

    /// `None`: the entry is not there, or the filter leaves it out.
    async fn reread_at(&self, host: &Arc<Host>, known: &Known) -> Result<Option<Reread>, Trouble> {
        let Some(filter) = self.filter_at(&known.dn) else { return Ok(None) };
        let attributes = self.attributes_to_reread();
        let (base, scope) = (&*known.dn, Scope::Base);
        let query = Query { base, scope, filter: &filter, attributes: &attributes, limit: 1 };
        let found = host.search(&query).await.map_err(Trouble::from)?;
        match found.code {
            // noSuchObject, invalidDNSyntax
            32 | 34 => return Ok(None),
            0 => {}
            _ => return Err(self.search_trouble(&known.dn, &found)),
        }
        let Some(entry) = found.entries.into_iter().next() else { return Ok(None) };
        let read = self.understand(host, entry).await?;
        let is_same = matches!(&read.finding, Finding::One(person) if person.id == known.id);
        Ok(is_same.then_some(read))
    }

    async fn reread_elsewhere(&self, host: &Arc<Host>, id: &str) -> Result<Reread, Trouble> {
        let attributes = self.attributes_to_reread();
        if let Some(by_id) = entry::id_filter(&self.reader.identity, id) {
            for place in &self.places {
                let filter = place.filter.and(&by_id);
                let query = place.query(&filter, &attributes, 1);
                let found = host.search(&query).await.map_err(Trouble::from)?;
                if !matches!(found.code, 0 | super::super::connection::SIZE_LIMIT) {
                    return Err(self.search_trouble(&place.base, &found));
                }
                if let Some(entry) = found.entries.into_iter().next() {
                    return self.understand(host, entry).await;
                }
            }
        }
        Ok(Reread { finding: Finding::None, by_login: false })
    }

    fn attributes_to_reread(&self) -> Vec<String> {
        let more = LEFT_BY_LOGINS.into_iter().chain([MODIFIED]).map(str::to_ascii_lowercase);
        let mut all = self.wanted.clone();
        all.extend(more.filter(|name| !self.wanted.contains(name)));
        all
    }

    async fn understand(&self, host: &Arc<Host>, mut entry: Entry) -> Result<Reread, Trouble> {
        let by_login = was_by_login(&entry.attributes);
        // What logins do not ask for must not look like a change to them.
        for name in LEFT_BY_LOGINS.into_iter().chain([MODIFIED]) {
            if !self.wanted.contains(&name.to_ascii_lowercase()) {
                entry.attributes.remove(name);
            }
        }
        let mut person = self.person(entry)?;
        if let DisabledRule::Filter(filter) = &self.reader.identity.disabled_rule
            && self.matches(host, &person.dn, filter).await?
        {
            person.state = AccountState::Disabled;
        }
        Ok(Reread { finding: Finding::One(person), by_login })
    }

    async fn matches(&self, host: &Arc<Host>, dn: &str, filter: &Filter) -> Result<bool, Trouble> {
        let attributes = &no_attributes();
        let query = Query { base: dn, scope: Scope::Base, filter, attributes, limit: 1 };
        match host.search(&query).await.map_err(Trouble::from)? {
            Found { code: 0, entries, .. } => Ok(!entries.is_empty()),
            found => Err(self.search_trouble(dn, &found)),
        }
    }
}

/// The newest time that a login left is that of the last modification, to the second, or later: slapd's `lastbind`
/// leaves modifyTimestamp alone. (A modification before that login was told by itself.)
fn was_by_login(attributes: &Attributes) -> bool {
    let second = |time: &str| time.get(..14).map(str::to_owned);
    let Some(modified) = attributes.texts(MODIFIED).next().and_then(second) else { return false };
    LEFT_BY_LOGINS
        .into_iter()
        .flat_map(|name| attributes.texts(name))
        .filter_map(second)
        .any(|time| time >= modified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_login_is_told_from_a_change() {
        let mut attributes = Attributes::default();
        assert!(!was_by_login(&attributes));
        attributes.insert(MODIFIED, [b"20261125210001Z".as_slice().into()]);
        assert!(!was_by_login(&attributes));
        let failures = ["20261125210000.5Z", "20261125210001.123456Z"];
        attributes.insert("pwdFailureTime", failures.map(|time| time.as_bytes().into()));
        assert!(was_by_login(&attributes));

        attributes.remove(MODIFIED);
        attributes.insert(MODIFIED, [b"20261124000000Z".as_slice().into()]);
        assert!(was_by_login(&attributes), "lastbind");

        attributes.remove(MODIFIED);
        attributes.insert(MODIFIED, [b"20261125210002Z".as_slice().into()]);

        assert!(!was_by_login(&attributes));
    }
}
