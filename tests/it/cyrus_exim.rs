//! Cyrus SASL (testsaslauthd, Postfix) and Exim: what each of them says for each verdict, with the files of contrib/cyrus
//! and contrib/exim.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::support::answers::{self, State};
use crate::support::clients::{Smtp, smtp_auth_login, smtp_login};
use crate::support::dovecot::Home;
use crate::support::exim::{Exim, Judge};
use crate::support::gatepost::Configuration;
use crate::support::postfix::{Place, Postfix};
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{free_port, program, wait_until};

const SMTPD_CONF: &str = include_str!("../../contrib/cyrus/smtpd.conf");
const IMAPD_CONF: &str = include_str!("../../contrib/cyrus/imapd.conf");

fn door(path: &Path) -> String {
    format!("protocol = \"saslauthd\"\npath = {path:?}\nmode = \"0666\"")
}

fn testsaslauthd(socket: &Path, arguments: &[&str]) -> String {
    let mut command = program("/usr/sbin/testsaslauthd", "sasl2-bin");
    answers::said(command.arg("-f").arg(socket).args(arguments))
}

const ACCEPTED: Words = Words {
    testsaslauthd: "exit 0: 0: OK \"Success.\"",
    postfix: "235 2.7.0 Authentication successful",
    exim: "235 Authentication succeeded",
};

const REFUSED: Words = Words {
    testsaslauthd: "exit 255: 0: NO \"authentication failed\"",
    postfix: "535 5.7.8 Error: authentication failed: authentication failure",
    exim: "535 Incorrect authentication data",
};

const LATER: Words = Words {
    testsaslauthd: "exit 255: 0: size read failed",
    postfix: "454 4.7.0 Temporary authentication failure: generic failure",
    exim: "435 Unable to authenticate at present",
};

/// What each of them says.
struct Words {
    testsaslauthd: &'static str,
    postfix: &'static str,
    exim: &'static str,
}

#[test]
fn cyrus_sasl_and_exim_hear_these_words() {
    let mut slapd = answers::directory();
    let (place, newer) = (Place::new(Home::Bookworm), Place::new(Home::Trixie));
    let mut configuration = Configuration::new(&slapd);
    answers::configure(&mut configuration);
    let mux = configuration.auth_socket().with_file_name("mux");
    let muxes = [&mux, &place.socket("saslauthd"), &newer.socket("saslauthd")];
    for (name, mux) in ["mux", "postfix", "newer"].into_iter().zip(muxes) {
        configuration.set(&format!("listen.{name}"), &door(mux));
    }
    let gatepost = configuration.start();
    let judges = [
        Judge::Dovecot(gatepost.configuration.auth_socket().display().to_string()),
        Judge::Dovecot(format!("127.0.0.1 {}", gatepost.configuration.auth_port)),
        Judge::Saslauthd(mux.clone()),
    ];
    let postfixes = [place, newer].map(|place| Postfix::with_cyrus(place, SMTPD_CONF));
    let exims = judges.map(|judge| Exim::start(&judge, "/nonexistent"));
    let servers = [
        ("Postfix 3.7 with Cyrus SASL", postfixes[0].port),
        ("Postfix 3.10 with Cyrus SASL", postfixes[1].port),
        ("Exim, driver = dovecot", exims[0].port),
        ("Exim, driver = dovecot over TCP", exims[1].port),
        ("Exim, saslauthd condition", exims[2].port),
    ];

    let answers = answers::go_through(&mut slapd, &gatepost, |_, name, password| {
        let arguments = ["-s", "smtp", "-u", name, "-p", password];
        let mut heard = vec![("testsaslauthd".to_owned(), testsaslauthd(&mux, &arguments))];
        for (server, port) in servers {
            heard.push((format!("{server}, PLAIN"), smtp_login(port, name, password)));
            heard.push((format!("{server}, LOGIN"), smtp_auth_login(port, name, password)));
        }
        heard
    });

    for state in State::ALL {
        let words = match state {
            State::Right => ACCEPTED,
            State::StoreDown | State::DirectoryDown => LATER,
            _ => REFUSED,
        };
        assert_eq!(answers.of("testsaslauthd", state), words.testsaslauthd, "{state:?}");
        for (server, _) in servers {
            let wanted = if server.starts_with("Exim") { words.exim } else { words.postfix };
            for mechanism in ["PLAIN", "LOGIN"] {
                let client = format!("{server}, {mechanism}");
                assert_eq!(answers.of(&client, state), wanted, "{client}, {state:?}");
            }
        }
    }
    answers.check("Cyrus SASL and Exim");
    // Exim's authenticator says where the user is; saslauthd's protocol has no place for it.
    let log = gatepost.log();
    let by = |door: &str| log.lines().filter(move |line| line.contains(door)).collect::<Vec<_>>();
    assert!(by(" door=auth ").iter().all(|line| line.contains(" client=127.0.0.1 ")), "{log}");
    assert!(by(" door=mux ").iter().all(|line| !line.contains(" client=")), "{log}");
    assert!(!by(" door=auth ").is_empty() && !by(" door=mux ").is_empty(), "{log}");
}

#[test]
fn a_realm_is_a_part_of_the_name_where_it_is_a_mail_domain_of_ours() {
    let slapd = Slapd::start();
    let place = Place::new(Home::Bookworm);
    let mux = place.socket("saslauthd");
    let mut configuration = Configuration::new(&slapd);
    configuration.set("listen.saslauthd", &door(&mux));
    configuration.add("login", "default_domain = \"planetexpress.com\"");
    // The second one is the directory's alone: no mailbox is made there.
    configuration.change("directory.planet", "domains", "[\"planetexpress.com\", \"momcorp.com\"]");
    let gatepost = configuration.start();
    let postfix = Postfix::with_cyrus(place, SMTPD_CONF);
    let password = password_of("fry");
    let last_name = || {
        let log = gatepost.log();
        let line = log.lines().rfind(|line| line.contains("Z login ")).unwrap_or_default();
        let name = line.split_once(" login=").map_or("", |(_, rest)| rest);
        name.split(' ').next().unwrap().trim_matches('"').to_owned()
    };

    for (name, realm, logged, accepted) in [
        ("fry", "planetexpress.com", "fry@planetexpress.com", true),
        ("fry", "PlanetExpress.COM", "fry@PlanetExpress.COM", true),
        ("fry", "momcorp.com", "fry@momcorp.com", false),
        ("fry", "mail.example.net", "fry", true),
        ("fry", "no domain", "fry", true),
        ("fry", "", "fry", true),
        ("fry@planetexpress.com", "momcorp.com", "fry@planetexpress.com", true),
        ("fry@planetexpress.com", "planetexpress.com", "fry@planetexpress.com", true),
        ("fry@momcorp.com", "planetexpress.com", "fry@momcorp.com", false),
    ] {
        let arguments = ["-s", "imap", "-u", name, "-r", realm, "-p", &password];
        let said = testsaslauthd(&mux, &arguments);
        let wanted = if accepted { ACCEPTED } else { REFUSED }.testsaslauthd;
        assert_eq!(said, wanted, "{name}, {realm}: {}", gatepost.log());
        wait_until("the journal has it", Duration::from_secs(5), || last_name() == logged);
    }
    // libsasl cuts at the last @, and gives the server's own name where there is none.
    for (name, logged, accepted) in [
        ("fry", "fry", true),
        ("fry@planetexpress.com", "fry@planetexpress.com", true),
        ("fry@mars@planetexpress.com", "fry@mars", false),
    ] {
        let reply = smtp_login(postfix.port, name, &password);
        let wanted = if accepted { ACCEPTED } else { REFUSED }.postfix;
        assert_eq!(reply, wanted, "{name}: {}", gatepost.log());
        wait_until("the journal has it", Duration::from_secs(5), || last_name() == logged);
    }
}

fn by_cyrus_sasl_whoever_typed_an_alias_sends(home: Home) {
    let slapd = Slapd::start();
    let place = Place::new(home);
    let mut configuration = Configuration::new(&slapd);
    configuration.set("listen.saslauthd", &door(&place.socket("saslauthd")));
    let policy = place.socket("policy");
    configuration
        .set("listen.policy", &format!("protocol = \"postfix-policy\"\npath = {policy:?}"));
    configuration.add("login", "default_domain = \"planetexpress.com\"");
    let gatepost = configuration.start();
    let postfix = Postfix::with_cyrus(place, SMTPD_CONF);
    let log = || postfix.log() + &gatepost.log();

    for typed in ["hubert@planetexpress.com", "professor", "Professor@PlanetExpress.com"] {
        let mut smtp = Smtp::login(postfix.port, typed, &password_of("professor"));
        for from in ["<professor@planetexpress.com>", "<hubert@planetexpress.com>", "<>"] {
            let reply = smtp.ask(from, "joe@elsewhere.example");
            assert!(reply.starts_with("250"), "{typed} as {from}: {reply}: {}", log());
        }
        for from in ["fry@planetexpress.com", "nobody@planetexpress.com", "boss@bank.example"] {
            let reply = smtp.ask(&format!("<{from}>"), "joe@elsewhere.example");
            let refusal = format!(
                "553 5.7.1 <{from}>: Sender address rejected: not owned by user professor@planetexpress.com"
            );
            assert_eq!(reply, refusal, "{typed}: {}", log());
        }
    }
}

#[test]
fn by_cyrus_sasl_whoever_typed_an_alias_sends_postfix_3_7() {
    by_cyrus_sasl_whoever_typed_an_alias_sends(Home::Bookworm);
}

#[test]
fn by_cyrus_sasl_whoever_typed_an_alias_sends_postfix_3_10() {
    by_cyrus_sasl_whoever_typed_an_alias_sends(Home::Trixie);
}

#[test]
fn libsasl_reads_the_lines_for_cyrus_imap() {
    let slapd = Slapd::start();
    let place = Place::new(Home::Bookworm);
    let mux = place.socket("mux");
    let mut configuration = Configuration::new(&slapd);
    configuration.set("listen.cyrus", &door(&mux));
    let _gatepost = configuration.start();
    // Cyrus IMAP hands its lines on to libsasl without the prefix.
    let lines = IMAPD_CONF.lines().filter_map(|line| line.strip_prefix("sasl_"));
    let lines = lines.collect::<Vec<_>>().join("\n");
    assert!(lines.contains("/run/gatepost/saslauthd"));
    // Cyrus runs in no chroot, this smtpd does.
    let lines = lines.replace("/run/gatepost/saslauthd", "/gatepost/mux");
    let postfix = Postfix::with_cyrus(place, &lines);

    let reply = smtp_login(postfix.port, mail_of("fry"), password_of("fry"));

    assert_eq!(reply, ACCEPTED.postfix, "{}", postfix.log());
}

/// A saslauthd client of our own: writes these pieces, hangs up its side if told to, and returns all that comes.
fn talk(socket: &Path, pieces: &[&[u8]], end: End) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for piece in pieces {
        // A server that has its answer closes.
        drop(stream.write_all(piece));
    }
    if end == End::Half {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut answer = Vec::new();
    // Bytes that the server left unread make the end a reset; the answer came before.
    drop(stream.read_to_end(&mut answer));
    answer
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Open,
    Half,
}

fn request(fields: &[&[u8]]) -> Vec<u8> {
    let counted = fields.iter().map(|field| {
        let length = u16::try_from(field.len()).unwrap();
        [&length.to_be_bytes(), *field].concat()
    });
    counted.collect::<Vec<_>>().concat()
}

#[test]
fn requests_of_saslauthds_protocol_come_in_every_form() {
    let slapd = Slapd::start();
    let place = Place::new(Home::Bookworm);
    let mux = place.socket("mux");
    let mut configuration = Configuration::new(&slapd);
    configuration.set("listen.saslauthd", &door(&mux));
    let gatepost = configuration.start();
    let (name, password) = (mail_of("fry"), password_of("fry"));
    let (name, password) = (name.as_bytes(), password.as_bytes());
    let right = request(&[name, password, b"imap", b""]);
    let with_client = request(&[name, password, b"pop", b"", b"192.0.2.7;4711"]);
    let no = b"\0\x02NO".to_vec();

    // Somebody who never says anything is in nobody's way.
    let _silent = UnixStream::connect(&mux).unwrap();
    let bytes: Vec<&[u8]> = right.chunks(1).collect();
    assert_eq!(talk(&mux, &bytes, End::Open), b"\0\x02OK", "byte by byte");
    assert_eq!(talk(&mux, &[&right], End::Half), b"\0\x02OK", "half closed");
    assert_eq!(talk(&mux, &[&with_client], End::Open), b"\0\x02OK", "five fields");
    assert_eq!(talk(&mux, &[&right, b"\0"], End::Open), b"\0\x02OK", "a part of a fifth field");

    let long = [b'x'; 257];
    let binds = slapd.binds_of_people();
    for (fields, reason) in [
        ([&b""[..], password, b"imap", b""], "bad-name"),
        ([b"", password, b"imap", b"planetexpress.com"], "bad-name"),
        ([name, b"", b"imap", b""], "bad-password-form"),
        ([name, b"\0", b"imap", b""], "bad-password-form"),
        ([name, &long, b"imap", b""], "bad-password-form"),
        ([&long, password, b"imap", b""], "bad-name"),
        ([name, password, b"", b""], "unknown-service"),
        ([name, password, &long, b""], "unknown-service"),
    ] {
        let count = || gatepost.metric("gatepost_logins_total", &[&format!("\"{reason}\"")]);
        let before = count();
        assert_eq!(talk(&mux, &[&request(&fields)], End::Open), no, "{reason}");
        assert!(count() > before, "{reason} is not counted");
    }
    assert_eq!(slapd.binds_of_people(), binds, "nobody was asked");

    let errors = || gatepost.metric("gatepost_protocol_errors_total", &["\"saslauthd\""]);
    assert_eq!(talk(&mux, &[], End::Half), b"", "nothing at all");
    assert_eq!(talk(&mux, &[&right[..right.len() - 1]], End::Half), b"", "an end in the middle");
    assert_eq!(talk(&mux, &[b"\xff\xff"], End::Open), b"", "longer than any request");
    wait_until("both are counted", Duration::from_secs(5), || errors() > 1.5);
    assert!(errors() < 2.5, "nothing at all is no error");

    let log = gatepost.log();
    let is_pop = |line: &&str| line.contains("service=pop ");
    let line = log.lines().find(is_pop).unwrap_or_default();
    assert!(line.contains("verdict=accept") && line.contains(" client=192.0.2.7 "), "{log}");
}

#[test]
fn exim_finds_mailboxes_and_aliases_and_puts_mail_off_while_they_cannot_be_looked_up() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    let (port, socket) = (free_port(), configuration.auth_socket().with_file_name("maps"));
    let maps = |place: String| format!("protocol = \"socketmap\"\n{place}");
    configuration.set("listen.maps", &maps(format!("path = {socket:?}\nmode = \"0666\"")));
    configuration.set("listen.maps-tcp", &maps(format!("address = \"127.0.0.1:{port}\"")));
    let auth = Judge::Dovecot(configuration.auth_socket().display().to_string());
    let mut gatepost = configuration.start();
    for uid in ["fry", "professor"] {
        assert_eq!(gatepost.login(&mail_of(uid), &password_of(uid)).status, 200);
    }
    let exims = [socket.display().to_string(), format!("inet:127.0.0.1:{port}")]
        .map(|maps| Exim::start(&auth, &maps));
    let check = |recipient: &str, wanted: &str| {
        for exim in &exims {
            let reply = Smtp::connect(exim.port).ask("<sender@example.net>", recipient);
            assert_eq!(reply, wanted, "{recipient}: {}", exim.log());
        }
    };

    check("fry@planetexpress.com", "250 Accepted");
    check("FRY@PlanetExpress.com", "250 Accepted");
    check("fry+slurm@planetexpress.com", "250 Accepted");
    check("hubert@planetexpress.com", "250 Accepted");
    check("nobody@planetexpress.com", "550 there is no such mailbox");
    check("\"no body\"@planetexpress.com", "550 there is no such mailbox");
    check("fry@example.net", "550 relay not permitted");
    for exim in &exims {
        let route = exim.route("hubert+slurm@planetexpress.com");
        for part in [
            "professor+slurm@planetexpress.com",
            "<-- hubert+slurm@planetexpress.com",
            "router = gatepost_mailbox, transport = gatepost_lmtp",
        ] {
            assert!(route.contains(part), "{part}: {route}");
        }
    }

    gatepost.store_is_there(false);
    check("fry@planetexpress.com", "250 Accepted");
    check("leela@planetexpress.com", "451 aliases cannot be looked up now");
    gatepost.store_is_there(true);
    check("leela@planetexpress.com", "550 there is no such mailbox");
    gatepost.stop();
    check("fry@planetexpress.com", "451 Temporary local problem - please try later");
}

#[test]
fn by_exim_whoever_is_logged_in_sends_as_themselves_and_as_nobody_else() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    let maps = configuration.auth_socket().with_file_name("maps");
    let mux = configuration.auth_socket().with_file_name("mux");
    configuration.set("listen.mux", &door(&mux));
    let lines = format!("protocol = \"socketmap\"\npath = {maps:?}\nmode = \"0666\"");
    configuration.set("listen.maps", &lines);
    let auth = Judge::Dovecot(configuration.auth_socket().display().to_string());
    let mut gatepost = configuration.start();
    assert_eq!(gatepost.login(&mail_of("fry"), &password_of("fry")).status, 200);
    let exims =
        [auth, Judge::Saslauthd(mux)].map(|judge| Exim::start(&judge, &maps.display().to_string()));
    let password = password_of("professor");
    let typed = "hubert@planetexpress.com";
    let mut sessions = Vec::new();

    for (exim, user) in exims.iter().zip(["professor@planetexpress.com", typed]) {
        let mut smtp = Smtp::login(exim.port, typed, &password);
        for from in ["<professor@planetexpress.com>", "<hubert+lab@planetexpress.com>", "<>"] {
            let reply = smtp.ask(from, "joe@elsewhere.example");
            assert_eq!(reply, "250 Accepted", "{from}: {}", exim.log());
        }
        for from in ["fry@planetexpress.com", "nobody@planetexpress.com", "boss@bank.example"] {
            let reply = smtp.ask(&format!("<{from}>"), "joe@elsewhere.example");
            assert_eq!(reply, format!("550 not owned by user {user}"), "{from}: {}", exim.log());
        }
        // Whoever is not logged in is not asked whose the sender is.
        let reply = Smtp::connect(exim.port).ask("<fry@planetexpress.com>", typed);
        assert_eq!(reply, "250 Accepted", "{}", exim.log());
        sessions.push(smtp);
    }
    let mut ask = |wanted: &str| {
        for (smtp, exim) in sessions.iter_mut().zip(&exims) {
            let reply = smtp.ask("<leela@planetexpress.com>", "joe@elsewhere.example");
            assert_eq!(reply, wanted, "{}", exim.log());
        }
    };
    gatepost.store_is_there(false);
    ask("451 senders cannot be looked up now");
    gatepost.store_is_there(true);
    gatepost.stop();
    ask("451 Temporary local problem - please try later");
}
