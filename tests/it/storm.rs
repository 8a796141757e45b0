//! Many at once.

use std::collections::BTreeSet;
use std::sync::Barrier;

use crate::support::clients::{AuthClient, Wire, imap_login, pop3_login};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::Configuration;
use crate::support::slapd::{Slapd, Wish, mail_of, password_of};

const RECRUITS: usize = 30;

#[test]
fn thirty_people_with_six_simultaneous_first_logins_each_get_thirty_mailboxes_and_no_error() {
    let slapd = Slapd::with(Wish { recruits: RECRUITS, ..Wish::default() });
    let place = Place::new(Home::Bookworm);
    let gatepost = Configuration::new(&slapd).for_dovecot(&place).start();
    let dovecot = Dovecot::start(place, Judge::Gatepost);
    let socket = gatepost.configuration.auth_socket();
    let (start, uids) = (Barrier::new(6 * RECRUITS), recruits());

    let replies: Vec<(String, bool)> = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..6 * RECRUITS)
            .map(|number| {
                let (start, uid) = (&start, &uids[number / 6]);
                let (dovecot, gatepost, socket) = (&dovecot, &gatepost, &socket);
                scope.spawn(move || {
                    let (name, password) = (mail_of(uid), password_of(uid));
                    start.wait();
                    match number % 6 {
                        0 | 1 => expect("a OK", imap_login(dovecot.imap, &name, &password)),
                        2 => expect("+OK", pop3_login(dovecot.pop3, &name, &password)),
                        3 => {
                            let mut client = AuthClient::connect(Wire::Unix(socket), 0);
                            expect("OK\t", client.login("service=smtp\tnologin", name, password))
                        }
                        _ => {
                            let answer = gatepost.login(&name, &password);
                            (format!("{answer:?}"), answer.status == 200)
                        }
                    }
                })
            })
            .collect();
        attempts.into_iter().map(|attempt| attempt.join().unwrap()).collect()
    });

    let failed: Vec<_> = replies.iter().filter(|(_, accepted)| !accepted).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), replies.len());
    let expected: BTreeSet<_> = uids.iter().map(|uid| mail_of(uid)).collect();
    assert_eq!(gatepost.mailboxes().into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(slapd.binds_of_people(), RECRUITS, "one bind per person");
    assert_eq!(dovecot.complaints(), Vec::<String>::new());
}

#[test]
fn two_hundred_equal_cold_attempts_are_one_search_and_one_bind() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let socket = gatepost.configuration.auth_socket();
    let (name, password) = (mail_of("fry"), password_of("fry"));
    let mut clients: Vec<_> = (0..4).map(|_| AuthClient::connect(Wire::Unix(&socket), 2)).collect();

    for id in 1..=50 {
        for client in &mut clients {
            client.ask(id, "service=imap", &name, &password);
        }
    }
    let mut accepted = 0;
    for client in &mut clients {
        for _ in 0..50 {
            let answer = client.answer();
            assert!(answer.starts_with("OK\t"), "{answer}");
            accepted += 1;
        }
    }

    assert_eq!(accepted, 200);
    assert_eq!(slapd.binds_as("fry"), 1);
    // Only searches that ask for somebody: probes of the server itself read the root entry, base "".
    let (all, probes) = (slapd.count_log(&["SRCH base="]), slapd.count_log(&["SRCH base=\"\""]));
    assert_eq!(all - probes, 1);
}

#[test]
fn two_hundred_equal_wrong_attempts_are_one_bind() {
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let socket = gatepost.configuration.auth_socket();
    let mut client = AuthClient::connect(Wire::Unix(&socket), 2);

    for id in 1..=200 {
        client.ask(id, "service=imap", mail_of("fry"), "wrong");
    }

    for _ in 0..200 {
        let answer = client.answer();
        assert!(answer.starts_with("FAIL\t") && !answer.contains("temp_fail"), "{answer}");
    }
    assert_eq!(slapd.binds_as("fry"), 1);
}

#[test]
fn a_second_login_writes_nothing() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.add("memory", "fresh = \"0s\"");
    let gatepost = configuration.start();
    let login = || gatepost.login(&mail_of("fry"), &password_of("fry")).status;
    let written = || gatepost.metric("gatepost_mailboxes_provisioned_total", &[]);

    assert_eq!(login(), 200);
    let after_first = written();
    assert_eq!(login(), 200);

    assert!(after_first >= 1.0, "the first login was not counted");
    assert!((written() - after_first).abs() < 0.5, "the second login wrote");
}

fn recruits() -> Vec<String> {
    (1..=RECRUITS).map(|number| format!("recruit{number:02}")).collect()
}

fn expect(start: &str, reply: String) -> (String, bool) {
    let accepted = reply.starts_with(start);
    (reply, accepted)
}
