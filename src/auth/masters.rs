//! Masters: who may log in as somebody else (login.md D-5).

use std::net::IpAddr;

use ipnet::IpNet;

use super::Service;
use crate::config::Config;
use crate::identity::{Address, Domain, Login, LoginRules, NameError};

/// Separates `user` and `master` in a name that says both, as Dovecot's `auth_master_user_separator`.
const SEPARATOR: u8 = b'*';

/// All masters.
#[derive(Debug, Default)]
pub(super) struct Masters(Vec<Master>);

#[derive(Debug)]
struct Master {
    user: Address,
    domains: Vec<Domain>,
    protocols: Vec<String>,
    nets: Vec<IpNet>,
}

/// Who an attempt is about.
pub(super) enum Who {
    /// Somebody logs in as themselves.
    Own(Login),
    /// Somebody logs in as somebody else.
    Other {
        /// Whose password it is.
        master: Login,
        /// Whose mailbox it is for.
        target: Login,
    },
}

impl Who {
    /// The login whose password was typed.
    pub(super) fn whose_password(&self) -> &Login {
        match self {
            Self::Own(login) | Self::Other { master: login, .. } => login,
        }
    }
}

impl Masters {
    pub(super) fn new(config: &Config) -> Self {
        let case = config.names().case;
        let master = |master: &crate::config::master::Master| {
            Some(Master {
                // The configuration's own check refuses what is no address.
                user: Address::parse(&master.user, case).ok()?,
                domains: master.domains.iter().filter_map(|it| Domain::parse(it).ok()).collect(),
                protocols: master.services.clone(),
                nets: master.nets.clone(),
            })
        };
        Self(config.master.values().filter_map(master).collect())
    }

    /// Whether anybody could enter this domain's mailboxes by this service from there: asked before the password is.
    pub(super) fn could_be(
        &self,
        domain: &Domain,
        service: Service,
        client: Option<IpAddr>,
    ) -> bool {
        self.0.iter().any(|master| master.may(domain, service, client))
    }

    /// Whether the mailbox of this address is such a master's.
    pub(super) fn is(
        &self,
        user: &Address,
        domain: &Domain,
        service: Service,
        client: Option<IpAddr>,
    ) -> bool {
        let mut allowed = self.0.iter().filter(|master| master.may(domain, service, client));
        allowed.any(|master| master.user == *user)
    }
}

impl Master {
    fn may(&self, domain: &Domain, service: Service, client: Option<IpAddr>) -> bool {
        let protocol = service.protocol();
        let by_net = || {
            let is_in = |client: IpAddr| self.nets.iter().any(|net| net.contains(&client));
            self.nets.is_empty() || client.is_some_and(is_in)
        };
        self.domains.contains(domain)
            && protocol.is_some_and(|protocol| self.protocols.iter().any(|it| it == protocol))
            && by_net()
    }
}

/// Who an attempt is about, by its authorization id or by a name that says both.
///
/// # Errors
/// One of the names is no login.
pub(super) fn who(
    names: &LoginRules,
    masters: &Masters,
    login: &[u8],
    authzid: &[u8],
) -> Result<Who, NameError> {
    let parse = |name: &[u8]| Login::parse(name, names);
    if !authzid.is_empty() {
        let (target, master) = (parse(authzid)?, parse(login)?);
        // RFC 4616 section 2: the same identity in both places is no wish to be another.
        return Ok(match target.address == master.address {
            true => Who::Own(master),
            false => Who::Other { master, target },
        });
    }
    if let Some((target, master)) = both(names, masters, login) {
        return Ok(Who::Other { target, master });
    }
    parse(login).map(Who::Own)
}

/// `user*master`, if the second is a master's name; else a star is a letter like others.
fn both(names: &LoginRules, masters: &Masters, name: &[u8]) -> Option<(Login, Login)> {
    if masters.0.is_empty() {
        return None;
    }
    let at = memchr::memrchr(SEPARATOR, name)?;
    let (target, master) = (name.get(..at)?, name.get(at + 1..)?);
    let master = Login::parse(master, names).ok()?;
    let is_known = masters.0.iter().any(|known| known.user == master.address);
    Some((Login::parse(target, names).ok().filter(|_| is_known)?, master))
}
