//! The configuration: one struct per section, and in it one field per setting with its doc, its default and its
//! check. `load` reads files and environment into it.

use std::collections::BTreeMap;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use crate::identity::{Case, Domain, LoginRules};

pub mod directory;
pub mod domain;
pub mod generate;
pub mod listen;
pub mod login;
pub mod master;
pub mod memory;
pub mod node;
pub mod store;
pub mod template;
pub mod throttle;
pub mod units;

mod changes;
mod check;
mod layer;
mod lines;
mod load;
mod problem;
mod schema;
mod show;
#[cfg(test)]
mod tests;

pub use changes::{Changes, differences};
pub use load::{Loaded, load, load_with};
pub use problem::{Notice, Origin, Problem, Problems, dotted};
pub use show::{show, show_json};

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This node.
    pub node: node::Node,
    /// The database of mailboxes.
    pub store: store::Store,
    /// One table per door: where mail servers ask.
    pub listen: BTreeMap<String, listen::Listen>,
    /// How a name typed becomes a login.
    pub login: login::Login,
    /// Who may log in as others, by an authorization id or as `user*master`.
    pub master: BTreeMap<String, master::Master>,
    /// What is remembered of logins.
    pub memory: memory::Memory,
    /// Counters, lists and news between nodes.
    pub shared: throttle::Shared,
    /// The guessing shield.
    pub throttle: throttle::Throttle,
    /// Logging.
    pub log: node::Log,
    /// Mail domains. A mailbox is made only in a domain that stands here.
    pub domain: BTreeMap<String, domain::Domain>,
    /// Settings for mailboxes, chosen by a directory's `template` table.
    pub template: BTreeMap<String, template::Template>,
    /// One table per directory (LDAP).
    pub directory: BTreeMap<String, directory::Directory>,
}

impl Config {
    /// How a name typed becomes a login. What is no domain was found by the check of the configuration.
    #[must_use]
    pub fn names(&self) -> LoginRules {
        let is_listed = |name: &String| {
            let takes_logins = self.directory.values().filter(|it| it.enabled && it.auth.enabled);
            takes_logins.into_iter().any(|it| it.domains.contains(name))
        };
        let alias = |(name, domain): (&String, &domain::Domain)| {
            Some((Domain::parse(name).ok()?, Domain::parse(&domain.alias_of).ok()?))
        };
        let aliases = self.domain.iter().filter(|(name, _)| !is_listed(name)).filter_map(alias);
        LoginRules {
            default_domain: Domain::parse(&self.login.default_domain).ok(),
            case: if self.login.lowercase { Case::Fold } else { Case::Keep },
            separator: self.login.separator.as_str().into(),
            alias_domains: aliases.collect(),
        }
    }
}
