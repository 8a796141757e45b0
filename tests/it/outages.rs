//! The directory in trouble: each door says "later" within the time limit, nobody is refused wrongly, and what is
//! remembered stays.

use std::time::Duration;

use crate::support::clients::{AuthClient, Wire, imap_login, pop3_login, sieve_login, smtp_login};
use crate::support::dovecot::Home;
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::postfix::Postfix;
use crate::support::site::Site;
use crate::support::slapd::{Slapd, Wish, mail_of, password_of};
use crate::support::{now, pass_time, wait_until};

/// `login.deadline` of the tests, and a little for the mail servers themselves.
const LIMIT: Duration = Duration::from_secs(6 + 3);

impl Site {
    /// Knocks at every door at the same time, and returns what each said and how long it took.
    fn knock(&self, uid: &str) -> Vec<(&'static str, String, Duration)> {
        let (name, password) = (mail_of(uid), password_of(uid));
        let (name, password) = (name.as_str(), password.as_str());
        let auth = |minor: u32, fields: &str| {
            let socket = self.gatepost.configuration.auth_socket();
            AuthClient::connect(Wire::Unix(&socket), minor).login(fields, name, password)
        };
        let timed = |door: &'static str, knock: &dyn Fn() -> String| {
            let start = now();
            let reply = knock();
            (door, reply, start.elapsed())
        };
        let (dovecot, postfix) = (&self.dovecot, &self.postfix);
        std::thread::scope(|scope| {
            let knocks = [
                scope.spawn(move || timed("imap", &|| imap_login(dovecot.imap, name, password))),
                scope.spawn(move || timed("pop3", &|| pop3_login(dovecot.pop3, name, password))),
                scope.spawn(move || timed("sieve", &|| sieve_login(dovecot.sieve, name, password))),
                scope.spawn(move || {
                    timed("submission", &|| smtp_login(dovecot.submission, name, password))
                }),
                scope.spawn(move || timed("smtp", &|| smtp_login(postfix.port, name, password))),
                scope.spawn(move || timed("auth", &|| auth(2, "service=imap"))),
                scope.spawn(move || timed("auth of Postfix", &|| auth(0, "service=smtp\tnologin"))),
                scope.spawn(move || {
                    timed("http", &|| self.gatepost.login(name, password).status.to_string())
                }),
            ];
            knocks.into_iter().map(|knock| knock.join().unwrap()).collect()
        })
    }

    fn everybody_hears_later(&self, uid: &str) {
        for (door, reply, took) in self.knock(uid) {
            let later = match door {
                "imap" => reply.starts_with("a NO [UNAVAILABLE]"),
                "pop3" => reply.starts_with("-ERR [SYS/TEMP]"),
                "sieve" => reply.starts_with("NO") && reply.contains("TRYLATER"),
                "submission" | "smtp" => reply.starts_with("454"),
                "auth" => reply.starts_with("FAIL\t1\t") && reply.contains("code=temp_fail"),
                "auth of Postfix" => reply.is_empty(),
                _ => reply == "503",
            };
            assert!(later, "{door}: {reply:?} is not \"later\": {}", self.gatepost.log());
            assert!(took < LIMIT, "{door}: {took:?}");
        }
    }

    fn everybody_gets_in(&self, uid: &str) {
        for (door, reply, took) in self.knock(uid) {
            let accepted =
                ["a OK", "+OK", "OK", "235", "200"].iter().any(|start| reply.starts_with(start));
            assert!(accepted, "{door}: {reply:?}: {}", self.gatepost.log());
            assert!(took < LIMIT, "{door}: {took:?}");
        }
    }

    /// The outage is over: somebody whom the daemon put off gets in, and was never refused.
    fn back_to_normal(&self, uid: &str) {
        wait_until("the directory is asked again", Duration::from_secs(20), || {
            let answer = self.gatepost.login(&mail_of(uid), &password_of(uid));
            assert_ne!(answer.status, 403, "the right password was refused: {answer:?}");
            answer.status == 200
        });
        self.everybody_gets_in(uid);
    }
}

#[test]
fn while_connections_are_refused_every_door_says_later() {
    let mut site = Site::start();
    site.everybody_gets_in("fry");

    site.slapd.stop();
    site.everybody_hears_later("zoidberg");
    site.everybody_gets_in("fry");

    site.slapd.start_again();
    site.back_to_normal("zoidberg");
}

#[test]
fn while_the_directory_hangs_every_door_says_later_within_the_time_limit() {
    let site = Site::start();
    site.everybody_gets_in("fry");

    site.slapd.pause();
    site.everybody_hears_later("zoidberg");
    site.everybody_gets_in("fry");
    // By now the breaker knows.
    site.everybody_hears_later("hermes");

    site.slapd.resume();
    site.back_to_normal("zoidberg");
    site.back_to_normal("hermes");
}

#[test]
fn a_directory_killed_in_the_middle_of_a_bind_means_later() {
    let mut site = Site::start();
    site.everybody_gets_in("fry");

    // Paused first: the questions are sent, no answer comes, and then the connections break off.
    site.slapd.pause();
    let (gatepost, slapd) = (&site.gatepost, &mut site.slapd);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let waiting: Vec<_> = ["leela", "bender", "hermes"]
            .map(|uid| scope.spawn(move || gatepost.login(&mail_of(uid), &password_of(uid)).status))
            .into_iter()
            .collect();
        pass_time(Duration::from_millis(500));
        slapd.kill9();
        waiting.into_iter().map(|login| login.join().unwrap()).collect()
    });

    assert_eq!(answers, [503, 503, 503]);
    site.everybody_hears_later("zoidberg");
    site.everybody_gets_in("fry");
    site.slapd.start_again();
    site.back_to_normal("leela");
}

#[test]
fn a_certificate_of_an_unknown_authority_means_later_with_both_kinds_of_tls() {
    for tls in ["starttls", "ldaps"] {
        let slapd = Slapd::start();
        let port = if tls == "ldaps" { slapd.tls_port } else { slapd.port };
        let mut configuration = Configuration::new(&slapd);
        configuration.change("directory.planet", "tls", &format!("{tls:?}"));
        configuration.change("directory.planet", "port", &port.to_string());
        configuration.change(
            "directory.planet",
            "ca_file",
            &format!("{:?}", slapd.wrong_ca_file()),
        );
        let mut gatepost = configuration.start();

        let answer = gatepost.login(&mail_of("fry"), &password_of("fry"));
        assert_eq!(answer.status, 503, "{tls}: {answer:?}");
        assert_eq!(slapd.count_log(&["BIND dn=", "method=128"]), 0, "{tls}: a password was sent");

        gatepost.configuration.change(
            "directory.planet",
            "ca_file",
            &format!("{:?}", slapd.ca_file()),
        );
        gatepost.hup();
        wait_until("the right authority is known", Duration::from_secs(20), || {
            let answer = gatepost.login(&mail_of("fry"), &password_of("fry"));
            assert_ne!(answer.status, 403, "{tls}: {answer:?}");
            answer.status == 200
        });
    }
}

#[test]
fn a_service_account_that_is_refused_means_later_and_grace_for_the_remembered() {
    let slapd = Slapd::with(Wish { recruits: 99, ..Wish::default() });
    let mut configuration = Configuration::new(&slapd);
    configuration.add("memory", "fresh = \"0s\"");
    let mut gatepost = configuration.start();
    let login =
        |gatepost: &Gatepost, uid: &str| gatepost.login(&mail_of(uid), &password_of(uid)).status;
    assert_eq!(login(&gatepost, "fry"), 200);

    gatepost.configuration.change("directory.planet", "bind_password", "\"outdated-Tr0ub4dor\"");
    gatepost.hup();
    // A new face each time: whoever got in before the reload has grace after it.
    let mut recruits = (1..).map(|number| format!("recruit{number:02}"));
    wait_until("the reload is done", Duration::from_secs(10), || {
        login(&gatepost, &recruits.next().unwrap()) == 503
    });

    assert_eq!(login(&gatepost, "fry"), 200, "{}", gatepost.log());
    assert_eq!(login(&gatepost, "zoidberg"), 503);
}

#[test]
fn a_second_host_is_asked_while_the_first_refuses_connections() {
    let (mut first, second) = (Slapd::start(), Slapd::start());
    let mut configuration = Configuration::new(&first);
    let hosts = format!("[\"127.0.0.1:{}\", \"127.0.0.1:{}\"]", first.port, second.port);
    configuration.change("directory.planet", "hosts", &hosts);
    let gatepost = configuration.start();

    first.stop();
    let right = gatepost.login(&mail_of("fry"), &password_of("fry"));
    let wrong = gatepost.login(&mail_of("leela"), "wrong");

    assert_eq!(right.status, 200, "{right:?}");
    assert_eq!((wrong.status, wrong.reason()), (403, "wrong-password"));
    assert_eq!(second.binds_as("leela"), 1);
}

#[test]
fn an_invalid_password_is_never_tried_at_a_second_host() {
    let (first, second) = (Slapd::start(), Slapd::start());
    let mut configuration = Configuration::new(&first);
    let hosts = format!("[\"127.0.0.1:{}\", \"127.0.0.1:{}\"]", first.port, second.port);
    configuration.change("directory.planet", "hosts", &hosts);
    let gatepost = configuration.start();

    assert_eq!(gatepost.login(&mail_of("fry"), "wrong").status, 403);

    assert_eq!((first.binds_as("fry"), second.binds_as("fry")), (1, 0));
}

#[test]
fn postfix_over_tcp_finds_its_way_back_at_the_first_login_after_a_later() {
    // Postfix 3.7 keeps a connection that was lost while it read an answer, and notices only when it cannot write. A
    // mere end of stream lets that one write through: the next login would hear "later" for nothing.
    let mut slapd = Slapd::start();
    let gatepost = Configuration::new(&slapd).start();
    let postfix = Postfix::start(Home::Bookworm, &gatepost);
    let login = |uid: &str| smtp_login(postfix.port, mail_of(uid), password_of(uid));
    assert_eq!(login("fry").get(..3), Some("235"));

    slapd.stop();
    assert_eq!(login("zoidberg").get(..3), Some("454"));

    assert_eq!(login("fry").get(..3), Some("235"));
}
