//! The main job: people who exist only in the directory log in through real mail servers, and find a mailbox made
//! from the template that the directory selects.

use std::time::Duration;

use crate::support::clients::{
    AuthClient, Wire, imap_login, pop3_login, sieve_login, smtp_auth_login, smtp_login,
};
use crate::support::gatepost::Configuration;
use crate::support::site::Site;
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::wait_until;

const GIB: u64 = 1 << 30;

impl Site {
    fn imap(&self, uid: &str) -> String {
        imap_login(self.dovecot.imap, &mail_of(uid), &password_of(uid))
    }

    fn pop3(&self, uid: &str) -> String {
        pop3_login(self.dovecot.pop3, &mail_of(uid), &password_of(uid))
    }

    fn sieve(&self, uid: &str) -> String {
        sieve_login(self.dovecot.sieve, mail_of(uid), password_of(uid))
    }

    fn smtp(&self, uid: &str) -> String {
        smtp_login(self.postfix.port, mail_of(uid), password_of(uid))
    }

    fn template_of(&self, uid: &str) -> String {
        let mailbox = self.gatepost.mailbox(&mail_of(uid)).expect("a mailbox");
        mailbox["template"].as_str().unwrap().to_owned()
    }
}

fn starts(reply: &str, with: &str) {
    assert!(reply.starts_with(with), "{reply:?} instead of {with:?}");
}

#[test]
fn a_first_login_by_each_protocol_makes_a_mailbox_from_the_right_template() {
    let site = Site::start();
    for uid in ["fry", "leela", "hermes", "bender"] {
        assert_eq!(site.gatepost.mailbox(&mail_of(uid)), None);
    }

    starts(&site.imap("fry"), "a OK");
    starts(&site.pop3("leela"), "+OK");
    starts(&site.sieve("hermes"), "OK");
    starts(&site.smtp("bender"), "235");

    let templates = ["fry", "leela", "hermes", "bender"].map(|uid| site.template_of(uid));
    assert_eq!(templates, ["crew", "crew", "office", "crew"]);
    assert_eq!(site.dovecot.complaints(), Vec::<String>::new());
}

#[test]
fn the_mechanism_login_works_as_well_as_plain() {
    let site = Site::start();

    starts(&smtp_auth_login(site.postfix.port, &mail_of("fry"), &password_of("fry")), "235");
    starts(
        &smtp_auth_login(site.dovecot.submission, &mail_of("leela"), &password_of("leela")),
        "235",
    );
}

#[test]
fn a_wrong_password_is_refused_in_the_words_of_each_protocol() {
    let site = Site::start();
    let name = mail_of("fry");

    starts(&imap_login(site.dovecot.imap, &name, "wrong"), "a NO [AUTHENTICATIONFAILED]");
    starts(&pop3_login(site.dovecot.pop3, &name, "wrong"), "-ERR [AUTH]");
    starts(&smtp_login(site.postfix.port, &name, "wrong"), "535");
    let sieve = sieve_login(site.dovecot.sieve, &name, "wrong");
    starts(&sieve, "NO");
    assert!(!sieve.contains("TRYLATER"), "{sieve}");
    let submission = smtp_login(site.dovecot.submission, &name, "wrong");
    starts(&submission, "535");

    assert_eq!(site.gatepost.mailbox(&name), None, "a refused login made a mailbox");
    assert_eq!(site.slapd.binds_as("fry"), 1, "one wrong password, one bind");
}

#[test]
fn somebody_whose_attribute_selects_no_template_is_refused() {
    let site = Site::start();

    let answer = site.gatepost.login(&mail_of("amy"), &password_of("amy"));

    assert_eq!((answer.status, answer.reason()), (403, "no-template"));
    starts(&site.imap("amy"), "a NO");
    assert_eq!(site.gatepost.mailbox(&mail_of("amy")), None);
}

#[test]
fn an_edited_template_reaches_the_mailbox_at_the_next_login_after_sighup() {
    let mut site = Site::start();
    starts(&site.imap("fry"), "a OK");
    let quota = |site: &Site| site.gatepost.mailbox(&mail_of("fry")).unwrap()["quota"].as_u64();
    assert_eq!(quota(&site), Some(GIB));

    site.gatepost.configuration.change("template.crew", "quota", "\"2 GiB\"");
    site.gatepost.hup();

    wait_until("the new quota is written", Duration::from_secs(10), || {
        starts(&site.imap("fry"), "a OK");
        quota(&site) == Some(2 * GIB)
    });
    assert_eq!(site.slapd.binds_as("fry"), 1, "the directory needed no question");
}

#[test]
fn a_protocol_that_the_template_takes_away_refuses_this_login_and_comes_back_with_it() {
    let mut site = Site::start();
    starts(&site.pop3("fry"), "+OK");

    site.gatepost.configuration.add("template.crew", "protocols = [\"imap\"]");
    site.gatepost.hup();
    wait_until("POP3 is refused", Duration::from_secs(10), || site.pop3("fry").starts_with("-ERR"));
    starts(&site.imap("fry"), "a OK");

    site.gatepost.configuration.change("template.crew", "protocols", "[\"imap\", \"pop3\"]");
    site.gatepost.hup();
    wait_until("POP3 is allowed", Duration::from_secs(10), || site.pop3("fry").starts_with("+OK"));
}

#[test]
fn a_changed_attribute_switches_the_template_at_the_next_login_that_asks() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.add("memory", "fresh = \"0s\"");
    let gatepost = configuration.start();
    let template = || {
        let answer = gatepost.login(&mail_of("fry"), &password_of("fry"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.mailbox("template").as_str().unwrap().to_owned()
    };
    assert_eq!(template(), "crew");

    slapd.set_attribute("fry", "employeeType", "office");

    assert_eq!(template(), "office");
}

#[test]
fn a_bad_configuration_file_changes_nothing() {
    let mut site = Site::start();
    starts(&site.imap("fry"), "a OK");

    site.gatepost.configuration.add("template.crew", "quota_of_nothing = 1");
    site.gatepost.hup();

    wait_until("the log names the key", Duration::from_secs(10), || {
        site.gatepost.log().contains("quota_of_nothing")
    });
    starts(&site.imap("fry"), "a OK");
    starts(&site.pop3("leela"), "+OK");
}

#[test]
fn while_the_directory_is_down_the_remembered_get_in_and_strangers_hear_later() {
    let mut site = Site::start();
    starts(&site.imap("fry"), "a OK");

    site.slapd.stop();

    starts(&site.imap("fry"), "a OK");
    starts(&site.pop3("fry"), "+OK");
    starts(&site.smtp("fry"), "235");
    starts(&site.imap("zoidberg"), "a NO [UNAVAILABLE]");
    starts(&site.pop3("zoidberg"), "-ERR [SYS/TEMP]");
    starts(&site.smtp("zoidberg"), "454");
    let sieve = site.sieve("zoidberg");
    assert!(sieve.starts_with("NO") && sieve.contains("TRYLATER"), "{sieve}");
    assert_eq!(site.gatepost.login(&mail_of("zoidberg"), &password_of("zoidberg")).status, 503);

    site.slapd.start_again();

    wait_until("the directory is asked again", Duration::from_secs(10), || {
        let reply = site.imap("zoidberg");
        assert!(!reply.contains("AUTHENTICATIONFAILED"), "an outage refused somebody: {reply}");
        reply.starts_with("a OK")
    });
    starts(&site.smtp("zoidberg"), "235");
    assert_eq!(site.dovecot.complaints(), Vec::<String>::new());
}

#[test]
fn every_spelling_of_a_name_leads_to_the_one_mailbox() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.add("login", "default_domain = \"planetexpress.com\"");
    let gatepost = configuration.start();

    for name in [
        "professor@planetexpress.com",
        "Professor@PlanetExpress.COM",
        "hubert@planetexpress.com",
        "professor",
        "professor+news@planetexpress.com",
    ] {
        let answer = gatepost.login(name, &password_of("professor"));
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        assert_eq!(answer.body["user"], "professor@planetexpress.com", "{name}");
    }

    assert_eq!(gatepost.mailboxes(), ["professor@planetexpress.com"]);
}

#[test]
fn the_handshake_lists_all_mechanisms_before_the_server_id() {
    // Postfix and Exim take a server id without a mechanism before it for a socket that is none of theirs.
    let slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();

    let client = AuthClient::connect(Wire::Tcp(gatepost.configuration.auth_port), 0);

    let words: Vec<_> = client.greeting.iter().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(words, ["VERSION", "MECH", "MECH", "SPID", "CUID", "COOKIE", "DONE"]);
}
