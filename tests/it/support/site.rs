//! A whole site: directory, daemon, Dovecot and Postfix.

use super::dovecot::{Dovecot, Home, Judge, Place};
use super::gatepost::{Configuration, Gatepost};
use super::postfix::Postfix;
use super::slapd::Slapd;

/// One of each on this machine.
pub(crate) struct Site {
    // In the order in which they are to be stopped: no front may lose its judge while it still runs.
    pub(crate) postfix: Postfix,
    pub(crate) dovecot: Dovecot,
    pub(crate) gatepost: Gatepost,
    pub(crate) slapd: Slapd,
}

impl Site {
    pub(crate) fn start() -> Self {
        let slapd = Slapd::start();
        let place = Place::new(Home::Host);
        let gatepost = Configuration::new(&slapd).for_dovecot(&place).start();
        let postfix =
            Postfix::start(&format!("unix:{}", gatepost.configuration.auth_socket().display()));
        let dovecot = Dovecot::start(place, Judge::Gatepost);
        Self { postfix, dovecot, gatepost, slapd }
    }
}
