//! The other side alone: that the private servers of the tests behave as the tests count on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::support::clients::{
    imap_login, imap_plain, lmtp_deliver, pop3_login, pop3_plain, sieve_login, smtp_auth_login,
    smtp_login,
};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::postfix::{self, Postfix};
use crate::support::slapd::{FORMER, Slapd, Wish, dn_of, mail_of, password_of};
use crate::support::{listens, program};

#[test]
fn slapd_answers_is_silent_while_paused_and_refuses_while_stopped() {
    let mut slapd = Slapd::start();
    assert!(slapd.bind("fry", &password_of("fry")));
    assert!(!slapd.bind("fry", "wrong"));
    assert_eq!(slapd.binds_as("fry"), 2);

    slapd.pause();
    let mut asked = program("timeout", "coreutils");
    asked.args(["1", "ldapsearch", "-x", "-H", &slapd.url(), "-b", "", "-s", "base"]);
    assert_eq!(asked.output().unwrap().status.code(), Some(124), "it waits in vain");
    slapd.resume();
    assert!(slapd.bind("fry", &password_of("fry")));

    slapd.stop();
    assert!(!listens(slapd.port));
    slapd.start_again();
    assert!(slapd.bind("fry", &password_of("fry")));

    slapd.kill9();
    assert!(!listens(slapd.port));
    slapd.start_again();
    assert!(slapd.bind("fry", &password_of("fry")));
}

#[test]
fn slapd_changes_passwords_moves_and_deletes_people() {
    let slapd = Slapd::start();

    slapd.set_password("fry", "new-Tr0ub4dor");
    assert!(slapd.bind("fry", "new-Tr0ub4dor"));
    slapd.set_attribute("leela", "employeeType", "office");
    slapd.move_to("leela", FORMER);
    assert!(!slapd.bind("leela", &password_of("leela")), "the old DN is nobody's");
    slapd.delete("bender");
    assert!(!slapd.bind("bender", &password_of("bender")));
    slapd.create("bender");
    assert!(slapd.bind("bender", &password_of("bender")));
}

#[test]
fn slapd_locks_an_account_after_three_wrong_passwords_where_ppolicy_says_so() {
    let slapd =
        Slapd::with(Wish { ppolicy: true, member_of: true, recruits: 2, ..Wish::default() });
    assert!(slapd.bind("recruit02", &password_of("recruit02")));

    for _ in 0..3 {
        assert!(!slapd.bind("fry", "wrong"));
    }

    assert!(!slapd.bind("fry", &password_of("fry")));
}

#[test]
fn slapd_shows_its_certificate_to_those_who_know_its_authority() {
    let slapd = Slapd::start();
    let whoami = |url: String, ca: &std::path::Path, extra: &[&str]| {
        let mut command = program("ldapwhoami", "ldap-utils");
        command.args(["-x", "-H", &url]).args(extra).env("LDAPTLS_CACERT", ca);
        command.output().unwrap().status.success()
    };
    let ldaps = || format!("ldaps://127.0.0.1:{}", slapd.tls_port);

    assert!(whoami(ldaps(), &slapd.ca_file(), &[]));
    assert!(whoami(slapd.url(), &slapd.ca_file(), &["-ZZ"]));
    assert!(!whoami(ldaps(), &slapd.wrong_ca_file(), &[]));
}

#[test]
fn postfix_says_454_while_nobody_answers_its_sasl_socket() {
    let postfix = Postfix::with_sasl(postfix::Place::new(Home::Bookworm), "unix:/nonexistent/auth");

    let reply = smtp_login(postfix.port, "fry", "secret");

    // Without a list of mechanisms Postfix ends the session before AUTH.
    assert!(reply.starts_with('4') || reply.is_empty(), "{reply}");
    assert!(postfix.log().contains("SASL"), "{}", postfix.log());
}

#[test]
fn dovecot_2_3_of_debian_12_opens_its_doors_to_its_own_judge() {
    the_doors_open(Home::Bookworm);
}

#[test]
fn dovecot_2_4_of_debian_13_opens_its_doors_to_its_own_judge() {
    the_doors_open(Home::Trixie);
}

fn the_doors_open(home: Home) {
    let dovecot = Dovecot::start(Place::new(home), Judge::Static);
    let name = mail_of("fry");

    for (reply, start) in [
        (imap_login(dovecot.imap, &name, "open"), "a OK"),
        (imap_login(dovecot.imap, &name, "shut"), "a NO [AUTHENTICATIONFAILED]"),
        (imap_plain(dovecot.imap, name.as_bytes(), b"open"), "a OK"),
        (pop3_login(dovecot.pop3, &name, "open"), "+OK"),
        (pop3_plain(dovecot.pop3, name.as_bytes(), b"shut"), "-ERR [AUTH]"),
        (sieve_login(dovecot.sieve, &name, "open"), "OK"),
        (sieve_login(dovecot.sieve, &name, "shut"), "NO"),
        (smtp_login(dovecot.submission, &name, "open"), "235"),
        (smtp_auth_login(dovecot.submission, &name, "open"), "235"),
        (smtp_login(dovecot.submission, &name, "shut"), "535"),
        (lmtp_deliver(dovecot.lmtp, &name, "hello"), "250"),
    ] {
        assert!(reply.starts_with(start), "{reply:?} instead of {start}: {}", dovecot.log());
    }

    let mails = std::fs::read_dir(dovecot.place.new_mail_of("planetexpress.com", "fry")).unwrap();
    assert_eq!(mails.count(), 1);
    assert!(dovecot.doveadm(&["user", &name]).status.success());
    dovecot.reload();
    assert!(imap_login(dovecot.imap, &name, "open").starts_with("a OK"));
    assert_eq!(dovecot.complaints(), Vec::<String>::new());
}

#[test]
fn slapd_takes_passwords_of_raw_bytes() {
    let slapd = Slapd::start();
    slapd.set_raw_password("fry", b"\xff\xfe-Tr0ub4dor");
    let mut whoami = program("ldapwhoami", "ldap-utils");
    whoami.args(["-x", "-H", &slapd.url(), "-D", &dn_of("fry"), "-w"]);

    let output = whoami.arg(OsStr::from_bytes(b"\xff\xfe-Tr0ub4dor")).output().unwrap();

    assert!(output.status.success(), "{output:?}");
}
