//! Dovecot by the hand-over, Postfix by its SASL socket, and HTTP: what each client hears in every state.

use crate::support::answers::{self, Answers, State};
use crate::support::clients::{
    AuthClient, Wire, curl, imap_login, lmtp_deliver, pop3_login, sieve_connect, sieve_login,
    smtp_login, swaks,
};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::postfix::Postfix;
use crate::support::printed;
use crate::support::slapd::Slapd;

fn dovecot_answers(home: Home) -> Answers {
    let mut slapd = answers::directory();
    let place = Place::new(home);
    let mut configuration = Configuration::new(&slapd).for_dovecot(&place);
    answers::configure(&mut configuration);
    let gatepost = configuration.start();
    let dovecot = Dovecot::start(place, Judge::Gatepost);
    let doveadm = |arguments: &[&str]| {
        let output = dovecot.doveadm(arguments);
        let code = output.status.code().unwrap_or(-1);
        let printed = printed(&output);
        let mut lines = printed.lines().filter(|line| !line.trim().is_empty());
        let first = lines.find(|line| !line.starts_with("field")).unwrap_or_default();
        format!("exit {code}: {first}")
    };
    answers::go_through(&mut slapd, &gatepost, |_, name, password| {
        [
            ("imap", imap_login(dovecot.imap, name, password)),
            ("pop3", pop3_login(dovecot.pop3, name, password)),
            ("managesieve", sieve_login(dovecot.sieve, name, password)),
            ("submission", smtp_login(dovecot.submission, name, password)),
            ("lmtp (mail for them)", lmtp_deliver(dovecot.lmtp, name, "hello")),
            ("doveadm auth test", doveadm(&["auth", "test", "-x", "service=imap", name, password])),
            ("curl imap://", curl(&format!("imap://127.0.0.1:{}", dovecot.imap), name, password)),
            ("curl pop3://", curl(&format!("pop3://127.0.0.1:{}", dovecot.pop3), name, password)),
            ("swaks", swaks(dovecot.submission, name, password)),
            ("sieve-connect", sieve_connect(dovecot.sieve, name, password)),
            ("doveadm user", doveadm(&["user", name])),
        ]
        .map(|(client, answer)| (client.to_owned(), answer))
        .into()
    })
}

#[test]
fn dovecot_2_3_and_its_clients_hear_these_words() {
    dovecot_answers(Home::Host).check("Dovecot 2.3, sockets handed over");
}

#[test]
fn dovecot_2_4_and_its_clients_hear_these_words() {
    dovecot_answers(Home::Trixie).check("Dovecot 2.4, sockets handed over");
}

fn start() -> (Slapd, Gatepost) {
    let slapd = answers::directory();
    let mut configuration = Configuration::new(&slapd);
    answers::configure(&mut configuration);
    let gatepost = configuration.start();
    (slapd, gatepost)
}

#[test]
fn postfix_and_http_callers_hear_these_words() {
    let (mut slapd, gatepost) = start();
    let socket = gatepost.configuration.auth_socket();
    let postfix = Postfix::start(&format!("unix:{}", socket.display()));

    let answers = answers::go_through(&mut slapd, &gatepost, |_, name, password| {
        let auth = |minor: u32, fields: &str| {
            AuthClient::connect(Wire::Unix(&socket), minor).login(fields, name, password)
        };
        let http = gatepost.login(name, password);
        let mut body = http.body.clone();
        if let Some(mailbox) = body.get_mut("mailbox") {
            *mailbox = "…".into();
        }
        [
            ("Postfix, AUTH PLAIN", smtp_login(postfix.port, name, password)),
            ("curl smtp://", curl(&format!("smtp://127.0.0.1:{}/x", postfix.port), name, password)),
            ("swaks", swaks(postfix.port, name, password)),
            ("auth protocol, as Dovecot 2.3", auth(2, "service=imap")),
            ("auth protocol, as Postfix", auth(0, "service=smtp\tnologin")),
            ("POST /v1/login", format!("{} {body}", http.status)),
        ]
        .map(|(client, answer)| (client.to_owned(), answer))
        .into()
    });

    assert!(answers.of("Postfix, AUTH PLAIN", State::DirectoryDown).starts_with("454"));
    answers.check("Postfix 3.7 by dovecot-auth, the auth protocol and HTTP");
}
