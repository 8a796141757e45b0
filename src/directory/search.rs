//! A profile's searches: by name, by id, at a known place. The rules are login.md Q-3 and N-4.

use ldap3::Scope;

use super::connection::{Found, Query, SIZE_LIMIT};
use super::entry::{self, Entry};
use super::filter::Filter;
use super::host::{Failure, FailureKind};
use super::matching::depth_below;
use super::preset::DisabledRule;
use super::profile::{Profile, no_attributes};
use super::verdict::{BindReply, Class, classify};
use super::{Finding, Trouble, Why};
use crate::clock;
use crate::identity::Login;
use crate::person::{AccountState, Person};

/// More entries for one name than this: nobody is picked.
const NAMESAKES: u16 = 5;

const NO_SUCH_OBJECT: u32 = 32;
const INVALID_DN: u32 = 34;

impl Profile {
    pub(super) async fn search_login(&self, login: &Login) -> Finding {
        let Some(filter) = self.matching.filter(login) else { return Finding::None };
        self.search_places(&filter, |people| self.matching.owner(login, people)).await
    }

    pub(super) async fn search_id(&self, id: &str) -> Finding {
        let Some(filter) = entry::id_filter(&self.reader.identity, id) else {
            return Finding::None;
        };
        let nobody =
            |people: Vec<Person>| Err(people.iter().map(|person| person.dn.to_string()).collect());
        self.search_places(&filter, nobody).await
    }

    /// Looks in all places. An entry found in two of them is one. `choose` picks from several.
    async fn search_places(
        &self,
        filter: &Filter,
        choose: impl FnOnce(Vec<Person>) -> Result<Person, Vec<String>>,
    ) -> Finding {
        let mut people: Vec<Person> = Vec::new();
        let mut more = false;
        for place in &self.places {
            let filter = place.filter.and(filter);
            let query = place.query(&filter, &self.wanted, NAMESAKES);
            let found = match self.pool.search(&query).await {
                Ok(found) => found,
                Err(failure) => return Finding::Failed(failure.into()),
            };
            match found.code {
                0 => {}
                SIZE_LIMIT => more = true,
                _ => return Finding::Failed(self.search_trouble(&place.base, &found)),
            }
            for entry in found.entries {
                match self.person(entry) {
                    Ok(person) if people.iter().any(|known| known.id == person.id) => {}
                    Ok(person) => people.push(person),
                    Err(trouble) => return Finding::Failed(trouble),
                }
            }
        }
        if more {
            return Finding::Ambiguous(people.iter().map(|person| person.dn.to_string()).collect());
        }
        let chosen = match people.len() {
            0 => return Finding::None,
            1 => people.pop().ok_or_else(Vec::new),
            _ => choose(people),
        };
        match chosen {
            Ok(person) => self.with_disabled_filter(person).await,
            Err(dns) => Finding::Ambiguous(dns),
        }
    }

    /// Reads the entry at a DN, if the filter lets it through.
    pub(super) async fn read(&self, dn: &str, filter: &Filter) -> Finding {
        let query =
            Query { base: dn, scope: Scope::Base, filter, attributes: &self.wanted, limit: 1 };
        match self.pool.search(&query).await {
            Ok(Found { code: NO_SUCH_OBJECT | INVALID_DN, .. }) => Finding::None,
            Ok(Found { code: 0, entries, .. }) => match entries.into_iter().next() {
                None => Finding::None,
                Some(entry) => match self.person(entry) {
                    Ok(person) => self.with_disabled_filter(person).await,
                    Err(trouble) => Finding::Failed(trouble),
                },
            },
            Ok(found) => Finding::Failed(self.search_trouble(dn, &found)),
            Err(failure) => Finding::Failed(failure.into()),
        }
    }

    /// `disabled_rule = "filter:(…)"`: the directory itself says whether the entry matches; it knows how the
    /// attribute is compared.
    async fn with_disabled_filter(&self, mut person: Person) -> Finding {
        let DisabledRule::Filter(filter) = &self.reader.identity.disabled_rule else {
            return Finding::One(person);
        };
        let attributes = &no_attributes();
        let query = Query { base: &person.dn, scope: Scope::Base, filter, attributes, limit: 1 };
        match self.pool.search(&query).await {
            Ok(Found { code: 0, entries, .. }) => {
                if !entries.is_empty() {
                    person.state = AccountState::Disabled;
                }
                Finding::One(person)
            }
            Ok(found) => Finding::Failed(self.search_trouble(&person.dn, &found)),
            Err(failure) => Finding::Failed(failure.into()),
        }
    }

    pub(super) fn person(&self, entry: Entry) -> Result<Person, Trouble> {
        self.reader.person(entry, clock::unix_seconds()).map_err(|error| Trouble {
            why: Why::Ours,
            detail: format!("directory {}: {error}", self.name()),
        })
    }

    pub(super) fn search_trouble(&self, base: &str, found: &Found) -> Trouble {
        let why = match classify(&BindReply { code: found.code, ..BindReply::default() }) {
            Class::Trouble => Why::Directory,
            // No such base; not allowed to search; an attribute that cannot be compared so.
            _ if matches!(found.code, 8 | 13 | 16..=18 | 21 | 32 | 34 | 49 | 50 | 53) => Why::Ours,
            _ => Why::Odd,
        };
        let text = format!("search below {base:?}: code {} {}", found.code, found.text);
        Trouble { why, detail: format!("directory {}: {}", self.name(), text.trim_end()) }
    }

    /// The filter that an entry at this DN must match; `None` if it stands in no place where people are looked for.
    pub(super) fn filter_at(&self, dn: &str) -> Option<Filter> {
        let filters: Vec<Filter> = self
            .places
            .iter()
            .filter(|place| match (depth_below(dn, &place.base), place.scope) {
                (Some(depth), Scope::Base) => depth == 0,
                (Some(depth), Scope::OneLevel) => depth == 1,
                (Some(_), Scope::Subtree) => true,
                (None, _) => false,
            })
            .map(|place| place.filter.clone())
            .collect();
        Filter::any_of(&filters)
    }

    /// Whom a name finds if the profile's own filter is left out.
    pub(super) async fn first_without_filter(&self, login: &Login) -> Option<String> {
        let filter = self.matching.filter(login)?;
        let attributes = no_attributes();
        for place in &self.places {
            let query = place.query(&filter, &attributes, 1);
            let found = self.pool.search(&query).await.ok()?;
            if let Some(entry) = found.entries.into_iter().next() {
                return Some(entry.dn.into());
            }
        }
        None
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        let why = match failure.kind {
            FailureKind::NotReached | FailureKind::Unanswered => Why::Directory,
            FailureKind::Ours => Why::Ours,
        };
        Self { why, detail: failure.detail }
    }
}
