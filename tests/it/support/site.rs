//! A whole site: directory, daemon, Dovecot and Postfix.

use super::dovecot::{Dovecot, Home, Judge, Place};
use super::gatepost::{Configuration, Gatepost};
use super::postfix::{self, Postfix};
use super::slapd::Slapd;

/// One of each, as Debian 12 has them.
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
        let (place, queue) = (Place::new(Home::Bookworm), postfix::Place::new(Home::Bookworm));
        let configuration = Configuration::new(&slapd).for_dovecot(&place).for_postfix(&queue);
        let gatepost = configuration.start();
        let postfix = Postfix::by_socket(queue);
        let dovecot = Dovecot::start(place, Judge::Gatepost);
        Self { postfix, dovecot, gatepost, slapd }
    }
}
