//! The same shim line in Dovecot 2.4 of Debian 13.

use crate::support::clients::{imap_login, lmtp_deliver, pop3_login, sieve_login, smtp_login};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::printed;
use crate::support::slapd::{Slapd, mail_of, password_of};

fn start() -> (Dovecot, Gatepost, Slapd) {
    let slapd = Slapd::start();
    let place = Place::new(Home::Trixie);
    let gatepost = Configuration::new(&slapd).for_dovecot(&place).start();
    (Dovecot::start(place, Judge::Gatepost), gatepost, slapd)
}

#[test]
fn dovecot_2_4_lets_people_in_by_all_its_protocols() {
    let (dovecot, gatepost, _slapd) = start();

    for (uid, reply, start) in [
        ("fry", imap_login(dovecot.imap, &mail_of("fry"), &password_of("fry")), "a OK"),
        ("leela", pop3_login(dovecot.pop3, &mail_of("leela"), &password_of("leela")), "+OK"),
        ("hermes", sieve_login(dovecot.sieve, mail_of("hermes"), password_of("hermes")), "OK"),
        ("bender", smtp_login(dovecot.submission, mail_of("bender"), password_of("bender")), "235"),
    ] {
        assert!(reply.starts_with(start), "{uid}: {reply:?}: {}", dovecot.log());
        assert!(gatepost.mailbox(&mail_of(uid)).is_some());
    }
    assert_eq!(dovecot.complaints(), Vec::<String>::new());
}

/// login.md N-5: Dovecot expands variables in settings, and must not in a home.
#[test]
fn a_percent_sign_in_a_name_stays_as_it_is_in_both_versions() {
    for home in [Home::Bookworm, Home::Trixie] {
        let slapd = Slapd::start();
        slapd.create("per%ucent");
        let place = Place::new(home);
        let gatepost = Configuration::new(&slapd).for_dovecot(&place).start();
        let dovecot = Dovecot::start(place, Judge::Gatepost);
        let name = mail_of("per%ucent");

        let reply = imap_login(dovecot.imap, &name, &password_of("per%ucent"));
        assert!(reply.starts_with("a OK"), "{reply}");
        let reply = lmtp_deliver(dovecot.lmtp, &name, "hello");
        assert!(reply.starts_with("250"), "{reply}");

        let (local, domain) = name.split_once('@').unwrap();
        let arrived = dovecot.place.new_mail_of(domain, local);
        assert_eq!(std::fs::read_dir(&arrived).unwrap().count(), 1, "{}", arrived.display());
        let home = gatepost.mailbox(&name).unwrap();
        assert!(home.get("home").unwrap().as_str().unwrap().ends_with("/per%ucent"));
    }
}

#[test]
fn dovecot_2_4_says_later_and_refuses_in_its_words() {
    let (dovecot, _gatepost, mut slapd) = start();
    let name = mail_of("fry");

    assert!(imap_login(dovecot.imap, &name, "wrong").starts_with("a NO [AUTHENTICATIONFAILED]"));
    slapd.stop();

    for (reply, word) in [
        (imap_login(dovecot.imap, &name, &password_of("fry")), "[UNAVAILABLE]"),
        (pop3_login(dovecot.pop3, &name, &password_of("fry")), "[SYS/TEMP]"),
        (sieve_login(dovecot.sieve, &name, password_of("fry")), "TRYLATER"),
        (smtp_login(dovecot.submission, &name, password_of("fry")), "454"),
    ] {
        assert!(reply.contains(word), "{reply:?} instead of {word}");
    }
}

#[test]
fn the_tools_of_dovecot_2_4_agree_with_it() {
    let (dovecot, _gatepost, _slapd) = start();
    let (name, password) = (mail_of("fry"), password_of("fry"));
    let run = |arguments: &[&str]| {
        let output = dovecot.doveadm(arguments);
        assert!(output.status.success(), "doveadm {arguments:?}: {}", printed(&output));
        printed(&output)
    };

    run(&["auth", "test", "-x", "service=imap", &name, &password]);
    let home = format!("home\t{}", "/tmp/");
    assert!(run(&["user", &name]).contains(&home));
    assert!(run(&["user", "*"]).contains(&name));
    let reply = lmtp_deliver(dovecot.lmtp, &name, "hello");
    assert!(reply.starts_with("250"), "{reply}");
    dovecot.reload();
    let reply = imap_login(dovecot.imap, &name, &password);
    assert!(reply.starts_with("a OK"), "{reply}");
    assert_eq!(dovecot.complaints(), Vec::<String>::new());
}
