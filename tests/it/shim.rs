//! The shim in Dovecot 2.3: Dovecot's own tools as judges, and the life and death of
//! the daemon behind it.

use std::time::Duration;

use crate::support::clients::{imap_login, lmtp_deliver};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{pass_time, printed};

fn start() -> (Dovecot, Gatepost, Slapd) {
    let slapd = Slapd::start();
    let place = Place::new(Home::Bookworm);
    let gatepost = Configuration::new(&slapd).for_dovecot(&place).start();
    (Dovecot::start(place, Judge::Gatepost), gatepost, slapd)
}

fn login(dovecot: &Dovecot, uid: &str) {
    let reply = imap_login(dovecot.imap, &mail_of(uid), &password_of(uid));
    assert!(reply.starts_with("a OK"), "{uid}: {reply:?}: {}", dovecot.log());
}

fn no_complaint(dovecot: &Dovecot) {
    assert_eq!(dovecot.complaints(), Vec::<String>::new());
}

fn doveadm(dovecot: &Dovecot, arguments: &[&str]) -> String {
    let output = dovecot.doveadm(arguments);
    assert!(output.status.success(), "doveadm {arguments:?}: {}", printed(&output));
    printed(&output)
}

#[test]
fn doveadm_auth_test_judges_right_and_wrong_passwords() {
    let (dovecot, _gatepost, _slapd) = start();
    let name = mail_of("fry");

    let right =
        dovecot.doveadm(&["auth", "test", "-x", "service=imap", &name, &password_of("fry")]);
    let wrong = dovecot.doveadm(&["auth", "test", "-x", "service=imap", &name, "wrong"]);

    assert_eq!(right.status.code(), Some(0), "{}", printed(&right));
    assert_eq!(wrong.status.code(), Some(77), "{}", printed(&wrong));
    no_complaint(&dovecot);
}

#[test]
fn doveadm_user_and_auth_lookup_show_a_mailbox_and_know_no_stranger() {
    let (dovecot, _gatepost, _slapd) = start();
    login(&dovecot, "fry");
    let name = mail_of("fry");

    let user = doveadm(&dovecot, &["user", &name]);
    for field in ["uid\t5000", "gid\t5000", "home\t"] {
        assert!(user.contains(field), "{user}");
    }
    let lookup = doveadm(&dovecot, &["auth", "lookup", &name]);
    assert!(lookup.contains(&name), "{lookup}");
    assert_eq!(dovecot.doveadm(&["user", &mail_of("nobody")]).status.code(), Some(67));
    no_complaint(&dovecot);
}

#[test]
fn doveadm_goes_over_all_mailboxes_and_over_those_that_match() {
    let (dovecot, _gatepost, _slapd) = start();
    for uid in ["fry", "leela", "hermes"] {
        login(&dovecot, uid);
    }

    let all = doveadm(&dovecot, &["mailbox", "list", "-A"]);
    let some = doveadm(&dovecot, &["user", "*e*@planetexpress.com"]);

    for uid in ["fry", "leela", "hermes"] {
        assert!(all.contains(&mail_of(uid)), "{all}");
    }
    assert!(some.contains(&mail_of("leela")) && some.contains(&mail_of("hermes")), "{some}");
    no_complaint(&dovecot);
}

#[test]
fn lmtp_delivers_to_a_provisioned_mailbox_and_to_nobody_else() {
    let (dovecot, _gatepost, _slapd) = start();
    login(&dovecot, "fry");

    let delivered = lmtp_deliver(dovecot.lmtp, &mail_of("fry"), "good news");
    let refused = lmtp_deliver(dovecot.lmtp, &mail_of("nobody"), "bad news");

    assert!(delivered.starts_with("250"), "{delivered}");
    assert!(refused.starts_with("550"), "{refused}");
    let mails = std::fs::read_dir(dovecot.place.new_mail_of("planetexpress.com", "fry")).unwrap();
    assert_eq!(mails.count(), 1);
    no_complaint(&dovecot);
}

#[test]
fn clients_that_connect_while_the_daemon_is_dead_wait_and_get_in() {
    let (dovecot, mut gatepost, _slapd) = start();
    login(&dovecot, "fry");

    gatepost.kill9();
    std::thread::scope(|scope| {
        let clients: Vec<_> = ["fry", "leela", "bender", "hermes"]
            .map(|uid| {
                scope.spawn({
                    let dovecot = &dovecot;
                    move || login(dovecot, uid)
                })
            })
            .into_iter()
            .collect();
        pass_time(Duration::from_secs(2));
        assert!(clients.iter().all(|client| !client.is_finished()), "somebody did not wait");
        gatepost.start_again();
        for client in clients {
            client.join().unwrap();
        }
    });

    no_complaint(&dovecot);
}

#[test]
fn logins_go_on_after_doveadm_reload() {
    let (dovecot, _gatepost, _slapd) = start();
    login(&dovecot, "fry");

    for uid in ["fry", "leela", "bender"] {
        dovecot.reload();
        login(&dovecot, uid);
    }

    no_complaint(&dovecot);
}

#[test]
fn logins_go_on_after_150_seconds_without_any() {
    let (dovecot, _gatepost, _slapd) = start();
    login(&dovecot, "fry");

    pass_time(Duration::from_secs(150));

    login(&dovecot, "fry");
    login(&dovecot, "leela");
    no_complaint(&dovecot);
}

#[test]
fn a_daemon_that_starts_after_dovecot_serves_those_who_wait() {
    let slapd = Slapd::start();
    let place = Place::new(Home::Bookworm);
    let configuration = Configuration::new(&slapd).for_dovecot(&place);
    let dovecot = Dovecot::start(place, Judge::Gatepost);

    std::thread::scope(|scope| {
        let client = scope.spawn(|| login(&dovecot, "fry"));
        pass_time(Duration::from_secs(1));
        let _gatepost = configuration.start();
        client.join().unwrap();
    });
}
