//! Dovecot by the hand-over, Postfix by its SASL socket, and HTTP: what each client hears in every state.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::answers::{self, Answers, State};
use crate::support::clients::{
    AuthClient, Wire, curl, imap_login, lmtp_deliver, pop3_login, sieve_connect, sieve_login,
    smtp_login, swaks,
};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::postfix::{Postfix, Postmap};
use crate::support::slapd::Slapd;
use crate::support::{free_port, printed};

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
    dovecot_answers(Home::Bookworm).check("Dovecot 2.3, sockets handed over");
}

#[test]
fn dovecot_2_4_and_its_clients_hear_these_words() {
    dovecot_answers(Home::Trixie).check("Dovecot 2.4, sockets handed over");
}

/// A Postfix, and what it asks beside SASL.
struct PostfixSide {
    // In the order in which they are to be stopped.
    postfix: Postfix,
    postmap: Postmap,
    policy: u16,
    gatepost: Gatepost,
    slapd: Slapd,
}

impl PostfixSide {
    fn start(home: Home) -> Self {
        let slapd = answers::directory();
        let mut configuration = Configuration::new(&slapd);
        answers::configure(&mut configuration);
        let [maps, policy] = std::array::from_fn(|_| free_port());
        for (door, protocol, port) in
            [("listen.maps", "socketmap", maps), ("listen.policy", "postfix-policy", policy)]
        {
            let place = format!("address = \"127.0.0.1:{port}\"");
            configuration.set(door, &format!("protocol = {protocol:?}\n{place}"));
        }
        let gatepost = configuration.start();
        let postfix = Postfix::start(home, &gatepost);
        Self { postfix, postmap: Postmap::new(home, maps), policy, gatepost, slapd }
    }

    /// What is heard in every state; `others` are further clients.
    fn answers(
        &mut self,
        others: impl Fn(&Gatepost, &str, &str) -> Vec<(&'static str, String)>,
    ) -> Answers {
        let (port, gatepost, policy) = (self.postfix.port, &self.gatepost, self.policy);
        answers::go_through(&mut self.slapd, gatepost, |_, name, password| {
            let domain = name.split_once('@').map_or("", |(_, domain)| domain);
            let postmap = |map: &str, key: &str| self.postmap.said(map, key);
            let mut heard = vec![
                ("Postfix, AUTH PLAIN", smtp_login(port, name, password)),
                ("curl smtp://", curl(&format!("smtp://127.0.0.1:{port}/x"), name, password)),
                ("swaks", swaks(port, name, password)),
                ("postmap domain (theirs)", postmap("domain", domain)),
                ("postmap mailbox", postmap("mailbox", name)),
                ("postmap alias", postmap("alias", name)),
                ("postmap sender-login", postmap("sender-login", name)),
                ("policy (they send)", policy_action(policy, name)),
            ];
            heard.extend(others(gatepost, name, password));
            heard.into_iter().map(|(client, answer)| (client.to_owned(), answer)).collect()
        })
    }
}

/// What the policy server says at RCPT of somebody who is logged in and sends as themselves.
fn policy_action(port: u16, name: &str) -> String {
    let request = format!(
        "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nsender={name}\n\
         recipient=joe@elsewhere.example\nsasl_method=PLAIN\nsasl_username={name}\n\n"
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn postfix_3_7_and_http_callers_hear_these_words() {
    let mut side = PostfixSide::start(Home::Bookworm);

    let answers = side.answers(|gatepost, name, password| {
        let socket = gatepost.configuration.auth_socket();
        let auth = |minor: u32, fields: &str| {
            AuthClient::connect(Wire::Unix(&socket), minor).login(fields, name, password)
        };
        let http = gatepost.login(name, password);
        let mut body = http.body.clone();
        // Memory learns of a login a little after its client does.
        for varying in ["mailbox", "source"] {
            if let Some(value) = body.get_mut(varying) {
                *value = "…".into();
            }
        }
        vec![
            ("auth protocol, as Dovecot 2.3", auth(2, "service=imap")),
            ("auth protocol, as Postfix", auth(0, "service=smtp\tnologin")),
            ("POST /v1/login", format!("{} {body}", http.status)),
        ]
    });

    assert!(answers.of("Postfix, AUTH PLAIN", State::DirectoryDown).starts_with("454"));
    answers.check("Postfix 3.7 by dovecot-auth, the auth protocol and HTTP");
}

#[test]
fn postfix_3_10_hears_these_words() {
    let answers = PostfixSide::start(Home::Trixie).answers(|_, _, _| Vec::new());

    assert!(answers.of("Postfix, AUTH PLAIN", State::DirectoryDown).starts_with("454"));
    answers.check("Postfix 3.10 by dovecot-auth");
}
