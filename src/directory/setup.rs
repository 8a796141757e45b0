//! From a profile's section to what [`super::profile::Profile`] works with.

use ldap3::Scope;

use super::connection::Query;
use super::entry;
use super::filter::{Filter, LoginFilter};
use super::host::Service;
use super::matching::Matching;
use super::preset;
use super::tls::Files;
use super::{Fault, fault};
use crate::config::directory::{self as config, Auth, Directory};
use crate::identity::Domain;
use crate::secret::Secret;

/// Where people are looked for.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) base: String,
    pub(super) scope: Scope,
    pub(super) filter: Filter,
}

impl Place {
    pub(super) fn query<'a>(
        &'a self,
        filter: &'a Filter,
        attributes: &'a [String],
        limit: u16,
    ) -> Query<'a> {
        Query { base: &self.base, scope: self.scope, filter, attributes, limit }
    }
}

/// The part of a section that concerns the directory, and the files it names.
#[derive(PartialEq)]
pub(super) struct Source {
    pub(super) section: Directory,
    pub(super) wanted: Vec<String>,
    /// See [`entry::Reader::id_alone`].
    pub(super) id_alone: bool,
    pub(super) files: Files,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Source(..)")
    }
}

pub(super) fn matching(section: &Directory, attributes: &[String]) -> Result<Matching, Fault> {
    let template = &section.identity.login_filter;
    if !template.is_empty() {
        return LoginFilter::parse(template)
            .map(Matching::Template)
            .map_err(|error| fault("identity.login_filter", format!("{template}: {error}")));
    }
    let first_domain = section.domains.first().and_then(|domain| Domain::parse(domain).ok());
    if let Some(bad) = attributes.iter().find(|name| Filter::parse(&format!("({name}=x)")).is_err())
    {
        return Err(fault("identity.login_attributes", format!("{bad:?} is no attribute's name")));
    }
    Ok(Matching::by_attributes(attributes, first_domain))
}

/// All attributes that are read of an entry, in lower case; with `id` the one that holds the id.
pub(super) fn wanted_attributes(
    section: &Directory,
    id: Option<&str>,
    matching: &Matching,
) -> Vec<String> {
    let map = &section.map;
    let mapped = [&map.address, &map.aliases, &map.display_name, &map.quota]
        .into_iter()
        .flat_map(|mapping| mapping.attr.iter().map(String::as_str));
    let by_group = section.template.rule.values().any(|rule| !rule.member_of.is_empty());
    let mut wanted: Vec<String> = mapped
        .chain([section.template.attribute.as_str()])
        .chain(by_group.then_some("memberOf"))
        .chain(id)
        .chain(matching.addresses())
        .chain(entry::state_attributes().map(|name| name as &str))
        .filter(|name| !name.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

pub(super) fn places(section: &Directory) -> Result<Vec<Place>, Fault> {
    if section.search.is_empty() {
        return Err(fault("search", "at least one place to search is needed"));
    }
    let usual = preset::usual_filter(section.preset);
    section
        .search
        .iter()
        .map(|(name, search)| {
            let filter = Filter::parse(&search.filter).map_err(|error| {
                fault(format!("search.{name}.filter"), format!("{}: {error}", search.filter))
            })?;
            let filter = if filter == Filter::any() { usual.clone() } else { filter };
            let scope = match search.scope {
                config::Scope::Base => Scope::Base,
                config::Scope::One => Scope::OneLevel,
                config::Scope::Sub => Scope::Subtree,
            };
            Ok(Place { name: name.clone(), base: search.base.clone(), scope, filter })
        })
        .collect()
}

pub(super) fn service(section: &Directory) -> Result<Service, Fault> {
    if section.bind_dn.is_empty() {
        return if section.anonymous {
            Ok(Service::Anonymous)
        } else {
            Err(fault("bind_dn", "needed, unless anonymous = true"))
        };
    }
    if section.anonymous {
        return Err(fault("anonymous", "either this or a service account, not both"));
    }
    // RFC 4513 §5.1.2: a DN with an empty password is no proof of anything.
    if section.bind_password.is_empty() {
        return Err(fault("bind_password", "needed with a service account"));
    }
    Ok(Service::Account {
        dn: section.bind_dn.clone(),
        password: Secret::new(section.bind_password.expose()),
    })
}

/// The section without what concerns mailboxes only.
pub(super) fn relevant(section: &Directory) -> Directory {
    let blank = Directory::default();
    Directory {
        // Only the first has a say in who somebody is; the others are routes.
        domains: section.domains.iter().take(1).cloned().collect(),
        priority: blank.priority,
        lazy: blank.lazy,
        map: blank.map,
        template: blank.template,
        auth: Auth { wrong_binds: blank.auth.wrong_binds, ..section.auth.clone() },
        ..section.clone()
    }
}

/// The same number for the same servers, places, identity and attributes.
pub(super) fn epoch(section: &Directory, wanted: &[String], id_alone: bool) -> u64 {
    let parts = (
        &section.hosts,
        &section.search,
        &section.identity,
        section.preset,
        section.domains.first(),
        section.auth.remember,
        wanted,
        id_alone,
    );
    let mut digest = [0; 8];
    blake3::Hasher::new().update(format!("{parts:?}").as_bytes()).finalize_xof().fill(&mut digest);
    u64::from_le_bytes(digest)
}
