//! Whole messages through a Postfix whose every table and policy is Gatepost's, and a Dovecot beside it, both with the
//! very lines of contrib: 3.7 and 2.3 of Debian 12, 3.10 and 2.4 of Debian 13.

use std::fs;
use std::time::Duration;

use crate::support::clients::Smtp;
use crate::support::dovecot::{self, Dovecot, Home};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::postfix::{self, Postfix};
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{printed, program, wait_until};

struct MailSite {
    // In the order in which they are to be stopped.
    postfix: Postfix,
    dovecot: Dovecot,
    gatepost: Gatepost,
    _slapd: Slapd,
}

impl MailSite {
    /// The crew may keep 20 KiB each.
    fn start(home: Home) -> Self {
        let slapd = Slapd::start();
        let (place, queue) = (dovecot::Place::new(home), postfix::Place::new(home));
        let mut configuration = Configuration::new(&slapd).for_dovecot(&place);
        for (door, protocol, socket) in [
            ("listen.postfix", "dovecot-auth", "auth"),
            ("listen.maps", "socketmap", "maps"),
            ("listen.policy", "postfix-policy", "policy"),
        ] {
            let path = queue.socket(socket);
            configuration.set(door, &format!("protocol = {protocol:?}\npath = {path:?}"));
        }
        configuration.change("template.crew", "quota", "\"20 KiB\"");
        let gatepost = configuration.start();
        let dovecot = Dovecot::beside_postfix(place, &queue.spool());
        let site = Self { postfix: Postfix::of_contrib(queue), dovecot, gatepost, _slapd: slapd };
        for uid in ["fry", "leela", "professor"] {
            assert_eq!(site.gatepost.login(&mail_of(uid), &password_of(uid)).status, 200);
        }
        site
    }

    /// What arrived for somebody.
    fn mail_of(&self, uid: &str) -> Vec<String> {
        let folder = self.dovecot.place.new_mail_of("planetexpress.com", uid);
        let files = fs::read_dir(folder).into_iter().flatten();
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    }

    fn wait_for_mail(&self, uid: &str, text: &str) {
        let start = std::cell::Cell::new(0);
        wait_until(&format!("{text} arrives for {uid}"), Duration::from_secs(60), || {
            start.set(start.get() + 1);
            let arrived = self.mail_of(uid).iter().any(|mail| mail.contains(text));
            assert!(arrived || start.get() < 2500, "{}{}", self.postfix.log(), self.dovecot.log());
            arrived
        });
    }

    /// A message by the submission service of contrib, over TLS; swaks' exit code, and what was said.
    fn submit(&self, uid: &str, from: &str, to: &str, body: &str) -> (Option<i32>, String) {
        let mut command = program("swaks", "swaks");
        command.args(["--server", "127.0.0.1", "--port", &self.postfix.submission.to_string()]);
        command.args(["--tls", "--auth", "PLAIN", "--auth-user", &mail_of(uid)]);
        command.args(["--auth-password", &password_of(uid), "--from", from, "--to", to]);
        let output = command.args(["--body", body]).output().unwrap();
        (output.status.code(), printed(&output))
    }

    fn move_store(&self, from: &str, to: &str) {
        let database = self.gatepost.configuration.database();
        let named = |ending: &str| database.with_extension(ending);
        fs::rename(named(from), named(to)).unwrap();
    }
}

fn starts(reply: &str, with: &str, log: impl Fn() -> String) {
    assert!(reply.starts_with(with), "{reply:?} instead of {with:?}: {}", log());
}

fn a_message_of_somebody_logged_in_arrives(home: Home) {
    let site = MailSite::start(home);

    let (code, said) = site.submit(
        "fry",
        "fry+ship@planetexpress.com",
        "Hubert+Lab@PlanetExpress.com",
        "good news",
    );

    assert_eq!(code, Some(0), "{said}{}{}", site.postfix.log(), site.gatepost.log());
    site.wait_for_mail("professor", "good news");
    let mail = site.mail_of("professor").remove(0);
    assert!(mail.contains("Delivered-To: professor+lab@planetexpress.com"), "{mail}");
    assert!(!site.postfix.log().contains("warning: "), "{}", site.postfix.log());
    assert_eq!(site.dovecot.complaints(), Vec::<String>::new());
}

#[test]
fn a_message_of_somebody_logged_in_arrives_at_an_alias_with_detail_postfix_3_7() {
    a_message_of_somebody_logged_in_arrives(Home::Bookworm);
}

#[test]
fn a_message_of_somebody_logged_in_arrives_at_an_alias_with_detail_postfix_3_10() {
    a_message_of_somebody_logged_in_arrives(Home::Trixie);
}

fn a_sender_who_is_somebody_else_is_refused(home: Home) {
    let site = MailSite::start(home);
    let fry = "fry@planetexpress.com";
    let refusal = |from: &str| {
        format!("553 5.7.1 <{from}>: Sender address rejected: not owned by user {fry}")
    };

    // By the table, and then by the policy server alone: in the same words.
    for from in ["leela@planetexpress.com", "nobody@planetexpress.com", "fry@elsewhere.example"] {
        let (code, said) = site.submit("fry", from, "leela@planetexpress.com", "forged");
        assert_eq!(code, Some(24), "{from}: {said}{}", site.postfix.log());
        assert!(said.contains(&refusal(from)), "{from}: {said}");

        let mut smtp = Smtp::login(site.postfix.open_submission, fry, &password_of("fry"));
        let reply = smtp.ask(&format!("<{from}>"), "leela@planetexpress.com");
        assert_eq!(reply, refusal(from), "{}", site.postfix.log());
    }

    let mut smtp = Smtp::login(site.postfix.open_submission, fry, &password_of("fry"));
    for from in ["<>", "<fry@planetexpress.com>", "<Fry+x@PlanetExpress.com>"] {
        let reply = smtp.ask(from, "leela@planetexpress.com");
        starts(&reply, "250", || format!("{from}: {}", site.postfix.log()));
    }
    // Whoever is not logged in is not asked whose the sender is: forwarders and lists send so.
    let mut world = Smtp::connect(site.postfix.port);
    starts(&world.ask("<leela@planetexpress.com>", fry), "250", || site.postfix.log());
    assert_eq!(site.mail_of("leela"), Vec::<String>::new());
}

#[test]
fn a_sender_who_is_somebody_else_is_refused_postfix_3_7() {
    a_sender_who_is_somebody_else_is_refused(Home::Bookworm);
}

#[test]
fn a_sender_who_is_somebody_else_is_refused_postfix_3_10() {
    a_sender_who_is_somebody_else_is_refused(Home::Trixie);
}

#[test]
fn a_mailbox_that_is_disabled_while_its_owner_is_logged_in_sends_no_more() {
    let site = MailSite::start(Home::Bookworm);
    let fry = "fry@planetexpress.com";
    let mut smtp = Smtp::login(site.postfix.open_submission, fry, &password_of("fry"));
    let ask = |smtp: &mut Smtp, from: &str| smtp.ask(from, "leela@planetexpress.com");
    starts(&ask(&mut smtp, "<fry@planetexpress.com>"), "250", || site.postfix.log());

    assert!(site.gatepost.run(&["mailbox", "disable", fry], "").status.success());

    for from in ["fry@planetexpress.com", ""] {
        let reply = ask(&mut smtp, &format!("<{from}>"));
        let address = if from.is_empty() { "<>" } else { "<fry@planetexpress.com>" };
        let refusal =
            format!("550 5.7.1 {address}: Sender address rejected: This mailbox is disabled");
        assert_eq!(reply, refusal, "{}", site.postfix.log());
    }
}

fn a_full_mailbox_is_refused_before_the_message(home: Home) {
    let site = MailSite::start(home);
    let leela = "leela@planetexpress.com";
    let mut smtp = Smtp::connect(site.postfix.port);
    let body =
        format!("first\r\n{}", "0123456789 0123456789 0123456789 0123456789 012\r\n".repeat(300));
    starts(&smtp.ask("<world@elsewhere.example> SIZE=15000", leela), "250", || site.postfix.log());
    starts(&smtp.send(&body), "250", || site.postfix.log());
    site.wait_for_mail("leela", "first");

    let reply = smtp.ask("<world@elsewhere.example> SIZE=15000", "leela+more@planetexpress.com");

    let refusal =
        "552 5.2.2 <leela+more@planetexpress.com>: Recipient address rejected: Mailbox is full";
    assert_eq!(reply, refusal, "{}{}", site.postfix.log(), site.dovecot.log());
    let small = smtp.ask("<world@elsewhere.example> SIZE=100", leela);
    starts(&small, "250", || site.postfix.log());
    let professor = smtp.ask("<world@elsewhere.example> SIZE=15000", "hubert@planetexpress.com");
    starts(&professor, "250", || site.postfix.log());
}

#[test]
fn a_full_mailbox_is_refused_before_the_message_dovecot_2_3() {
    a_full_mailbox_is_refused_before_the_message(Home::Bookworm);
}

#[test]
fn a_full_mailbox_is_refused_before_the_message_dovecot_2_4() {
    a_full_mailbox_is_refused_before_the_message(Home::Trixie);
}

fn with_the_store_away_mail_is_put_off_and_never_refused(home: Home) {
    let site = MailSite::start(home);
    let log = || site.postfix.log();
    let mut world = Smtp::connect(site.postfix.port);
    let from = "<world@elsewhere.example>";
    starts(&world.ask(from, "fry@planetexpress.com"), "250", log);
    starts(&world.ask(from, "nobody@planetexpress.com"), "550 5.1.1", log);
    starts(&world.ask(from, "joe@elsewhere.example"), "554 5.7.1", log);

    site.move_store("db", "away");
    for recipient in ["leela", "hubert", "hubert+x", "zoidberg", "fry+new"] {
        let reply = world.ask(from, &format!("{recipient}@planetexpress.com"));
        starts(&reply, "451 4.3.0", log);
    }
    // Not even what is somebody else's is refused for good.
    let fry = "fry@planetexpress.com";
    let mut smtp = Smtp::login(site.postfix.open_submission, fry, &password_of("fry"));
    let reply = smtp.ask("<zoidberg@planetexpress.com>", "joe@elsewhere.example");
    starts(&reply, "450 4.", log);

    site.move_store("away", "db");
    for recipient in ["fry", "leela", "hubert", "hubert+x", "fry+new"] {
        let reply = world.ask(from, &format!("{recipient}@planetexpress.com"));
        starts(&reply, "250", log);
    }
    starts(&world.ask(from, "zoidberg@planetexpress.com"), "550 5.1.1", log);
}

#[test]
fn with_the_store_away_mail_is_put_off_and_never_refused_postfix_3_7() {
    with_the_store_away_mail_is_put_off_and_never_refused(Home::Bookworm);
}

#[test]
fn with_the_store_away_mail_is_put_off_and_never_refused_postfix_3_10() {
    with_the_store_away_mail_is_put_off_and_never_refused(Home::Trixie);
}
