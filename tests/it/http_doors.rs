//! Whoever asks over HTTP: nginx' mail proxy and `auth_request`, mailcow's script, Nauthilus' callers, curl.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::answers::{self, State};
use crate::support::clients::{
    curl as knock_with_curl, exchange, http, imap_login, imap_plain, pop3_login, pop3_plain,
    smtp_auth_login, smtp_login, smtp_recipient, swaks,
};
use crate::support::dovecot::{Dovecot, Home, Judge, Place, TOKEN};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::nginx::{MailPorts, Nginx};
use crate::support::postfix::{self, Postfix};
use crate::support::slapd::{Slapd, mail_of, make_certificates, password_of};
use crate::support::{free_port, printed, program, scratch, wait_until};

/// Mail servers behind nginx; all of them ask Gatepost.
struct Proxied {
    // In the order in which they are to be stopped.
    nginx: Nginx,
    ports: MailPorts,
    postfix: Postfix,
    _dovecot: Dovecot,
    gatepost: Gatepost,
    slapd: Slapd,
}

impl Proxied {
    fn start(slapd: Slapd) -> Self {
        let (place, queue) = (Place::new(Home::Bookworm), postfix::Place::new(Home::Bookworm));
        let mut configuration = Configuration::new(&slapd).for_dovecot(&place).for_postfix(&queue);
        answers::configure(&mut configuration);
        let mut gatepost = configuration.start();
        let postfix = Postfix::by_socket(queue);
        let dovecot = Dovecot::start(place, Judge::Gatepost);
        // A smtpd that starts while nobody answers its auth socket ends, and Postfix then starts no other for a minute.
        let reply = smtp_login(postfix.port, mail_of("fry"), password_of("fry"));
        assert!(reply.starts_with("235"), "{reply}: {}", postfix.log());
        let door = free_port();
        // Only now the ports behind are known.
        gatepost.stop();
        let upstream = format!(
            "{{ imap = \"127.0.0.1:{}\", pop3 = \"127.0.0.1:{}\", smtp = \"127.0.0.1:{}\" }}",
            dovecot.imap, dovecot.pop3, postfix.port
        );
        gatepost.configuration.set(
            "listen.nginx",
            &format!(
                "protocol = \"http\"\naddress = \"127.0.0.1:{door}\"\nserve = [\"nginx\"]\nupstream = {upstream}"
            ),
        );
        gatepost.start_again();
        // The shim hands Dovecot's sockets over once more.
        wait_until("Dovecot has its judge back", Duration::from_secs(20), || {
            imap_login(dovecot.imap, &mail_of("fry"), &password_of("fry")).starts_with("a OK")
        });
        let (nginx, ports) = Nginx::mail(door);
        Self { nginx, ports, postfix, _dovecot: dovecot, gatepost, slapd }
    }
}

#[test]
fn clients_of_nginx_mail_proxy_hear_these_words() {
    let mut proxied = Proxied::start(answers::directory());
    let MailPorts { imap, pop3, submission, .. } = proxied.ports;

    let answers =
        answers::go_through(&mut proxied.slapd, &proxied.gatepost, |_, name, password| {
            [
                ("imap", imap_login(imap, name, password)),
                ("pop3", pop3_login(pop3, name, password)),
                ("smtp, AUTH PLAIN", smtp_login(submission, name, password)),
                ("smtp, AUTH LOGIN", smtp_auth_login(submission, name, password)),
                (
                    "curl imap://",
                    knock_with_curl(&format!("imap://127.0.0.1:{imap}"), name, password),
                ),
                (
                    "curl pop3://",
                    knock_with_curl(&format!("pop3://127.0.0.1:{pop3}"), name, password),
                ),
                ("swaks", swaks(submission, name, password)),
            ]
            .map(|(client, answer)| (client.to_owned(), answer))
            .into()
        });

    for (client, accepted, later) in [
        ("imap", "a OK", "a NO [UNAVAILABLE] Temporary authentication failure."),
        ("pop3", "+OK", "-ERR [SYS/TEMP] Temporary authentication failure."),
        ("smtp, AUTH PLAIN", "235", "454 4.7.0 Temporary authentication failure."),
    ] {
        let right = answers.of(client, State::Right);
        assert!(right.starts_with(accepted), "{client}: {right}: {}", proxied.nginx.log());
        assert_eq!(answers.of(client, State::DirectoryDown), later);
        assert_eq!(answers.of(client, State::StoreDown), later);
    }
    answers.check("nginx mail proxy");
}

#[test]
fn callers_in_the_shapes_of_others_hear_these_words() {
    let mut slapd = answers::directory();
    let mut configuration = serving(&slapd, "\"nauthilus\", \"forward-auth\"");
    answers::configure(&mut configuration);
    let mailcow = mailcow(&mut configuration, "auto");
    let gatepost = configuration.start();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", gatepost.configuration.web);

    let answers = answers::go_through(&mut slapd, &gatepost, |state, name, password| {
        let body = json!({ "username": name, "password": password, "protocol": "imap", "service": "imap" });
        let body = body.to_string();
        let by_json = curl(&["-d", &body, &url("/api/v1/auth/json")]);
        let text = curl(&["-H", "Accept: text/plain", "-d", &body, &url("/v1/login")]);
        let (user, pass) = (format!("Auth-User: {name}"), format!("Auth-Pass: {password}"));
        let by_header = curl(&[
            "-H",
            &user,
            "-H",
            &pass,
            "-H",
            "Auth-Protocol: imap",
            &url("/api/v1/auth/header"),
        ]);
        let forward =
            curl(&["-u", &format!("{name}:{password}"), &url("/forward-auth?service=imap")]);
        let nauthilus = |(head, body): &(String, String), fields: &[&str]| {
            // The attributes of a yes name the home, which is new in each run.
            let body = if state == State::Right { "…" } else { body };
            [status(head), &shown(head, fields), body].join(" ").replace("  ", " ")
        };
        let mailcow = ask_as_mailcow(mailcow, name, password.as_bytes(), "imap");
        [
            (
                "mailcow's script",
                mailcow.map_or(String::new(), |(status, body)| format!("{status} {body}")),
            ),
            ("Nauthilus, JSON", nauthilus(&by_json, &["auth-status", "auth-user"])),
            ("Nauthilus, header", nauthilus(&by_header, &["auth-status", "auth-user"])),
            (
                "forward authentication",
                format!(
                    "{} {}",
                    status(&forward.0),
                    shown(&forward.0, &["remote-user", "www-authenticate"])
                ),
            ),
            ("POST /v1/login as text", nauthilus(&text, &[])),
        ]
        .map(|(client, answer)| (client.to_owned(), answer))
        .into()
    });

    assert_eq!(answers.of("mailcow's script", State::StoreDown), "");
    answers.check("HTTP, in the shapes of others");
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

/// These fields of an answer, where they are there.
fn shown(head: &str, fields: &[&str]) -> String {
    let found = head.lines().filter(|line| {
        line.split_once(':').is_some_and(|(name, _)| fields.contains(&name.to_lowercase().as_str()))
    });
    found.collect::<Vec<_>>().join(", ")
}

#[test]
fn passwords_come_through_nginx_byte_by_byte() {
    let proxied = Proxied::start(Slapd::start());
    let password = [password_of("fry").as_bytes(), b" %41+\xc3\xbc\xff\t\"\\"].concat();
    proxied.slapd.set_raw_password("fry", &password);
    let name = mail_of("fry");

    let imap = imap_plain(proxied.ports.imap, name.as_bytes(), &password);
    let pop3 = pop3_plain(proxied.ports.pop3, name.as_bytes(), &password);
    let smtp = smtp_login(proxied.ports.submission, &name, &password);

    let log = proxied.nginx.log() + &proxied.gatepost.log();
    assert!(imap.starts_with("a OK"), "{imap}: {log}");
    assert!(pop3.starts_with("+OK"), "{pop3}: {log}");
    assert!(smtp.starts_with("235"), "{smtp}: {log} {}", proxied.postfix.log());
    proxied.slapd.set_password("fry", &password_of("fry"));
    let login = smtp_auth_login(proxied.ports.submission, &name, &password_of("fry"));
    assert!(login.starts_with("235"), "{login}");
}

/// nginx before a Postfix that knows our mailboxes (contrib/postfix), as contrib/nginx/mail.conf says at port 25.
struct Incoming {
    // In the order in which they are to be stopped.
    nginx: Nginx,
    port: u16,
    postfix: Postfix,
    gatepost: Gatepost,
    _slapd: Slapd,
}

/// A client from the world, as far as this machine has one. nginx comes from 127.0.0.1.
const WORLD: &str = "127.0.0.9";

impl Incoming {
    fn start(lines: &str) -> Self {
        let slapd = Slapd::start();
        let queue = postfix::Place::new(Home::Bookworm);
        let mut configuration = Configuration::new(&slapd);
        let socket = queue.socket("maps");
        configuration.set("listen.maps", &format!("protocol = \"socketmap\"\npath = {socket:?}"));
        let door = free_port();
        let postfix = Postfix::of_contrib_and(queue, lines);
        configuration.set(
            "listen.nginx",
            &format!(
                "protocol = \"http\"\naddress = \"127.0.0.1:{door}\"\nserve = [\"nginx\"]\n\
                 upstream = {{ mx = \"127.0.0.1:{}\" }}",
                postfix.port
            ),
        );
        let gatepost = configuration.start();
        for uid in ["fry", "leela"] {
            assert_eq!(gatepost.login(&mail_of(uid), &password_of(uid)).status, 200);
        }
        let (nginx, ports) = Nginx::mail(door);
        Self { nginx, port: ports.smtp, postfix, gatepost, _slapd: slapd }
    }

    /// Replies to two recipients of one message of a client from the world.
    fn two_recipients(&self, one: &str, other: &str) -> Vec<String> {
        let mut command = program("swaks", "swaks");
        command.args(["--server", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--local-interface", WORLD, "--from", "zapp@doop.example"]);
        command.args(["--to", &format!("{one},{other}"), "--quit-after", "RCPT"]);
        let said = printed(&command.output().unwrap());
        let lines: Vec<_> = said.lines().collect();
        let replies = lines.windows(2).filter(|pair| pair[0].contains("-> RCPT TO:"));
        replies.map(|pair| pair[1].get(4..).unwrap_or_default().to_owned()).collect()
    }
}

const XCLIENT: &str = "smtpd_authorized_xclient_hosts = 127.0.0.1\n";

#[test]
fn without_auth_nginx_asks_for_a_recipient() {
    let incoming = Incoming::start(XCLIENT);
    let port = incoming.port;

    let known = smtp_recipient(port, "Fry+list@planetexpress.com");
    let log = incoming.nginx.log() + &incoming.postfix.log();
    assert!(known.starts_with("250"), "{known}: {log}");
    assert_eq!(smtp_recipient(port, "nobody@planetexpress.com"), "550 5.1.1 No such mailbox here");
    assert_eq!(smtp_recipient(port, "fry@elsewhere.example"), "550 5.1.1 No such mailbox here");

    incoming.gatepost.store_is_there(false);
    let later = smtp_recipient(port, "zoidberg@planetexpress.com");
    incoming.gatepost.store_is_there(true);
    assert_eq!(later, "451 4.3.0 Temporary lookup failure");
}

/// nginx asks about the first recipient only.
#[test]
fn behind_nginx_every_further_recipient_is_checked_by_postfix_itself() {
    // As Postfix has it by default: XCLIENT alone tells nginx' clients from nginx.
    let incoming = Incoming::start(&format!("{XCLIENT}mynetworks = 127.0.0.1\n"));
    let fry = mail_of("fry");

    for (other, reply) in [
        (mail_of("leela"), "250 "),
        (
            "joe@elsewhere.example".to_owned(),
            "554 5.7.1 <joe@elsewhere.example>: Relay access denied",
        ),
        ("nobody@planetexpress.com".to_owned(), "550 5.1.1 <nobody@planetexpress.com>"),
    ] {
        let replies = incoming.two_recipients(&fry, &other);
        let log = || incoming.nginx.log() + &incoming.postfix.log();
        assert_eq!(replies.len(), 2, "{replies:?}: {}", log());
        assert!(replies[0].starts_with("250 "), "{replies:?}: {}", log());
        assert!(replies[1].starts_with(reply), "{replies:?}: {}", log());
    }
    assert!(incoming.postfix.log().contains(&format!("[{WORLD}]")), "{}", incoming.postfix.log());
}

/// `curl -i`; the head and the body.
fn curl(arguments: &[&str]) -> (String, String) {
    let mut command = program("curl", "curl");
    let output = command.args(["-sS", "-i", "-m", "30"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "curl {arguments:?}: {}", printed(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
    (head.to_owned(), body.to_owned())
}

fn serving(slapd: &Slapd, what: &str) -> Configuration {
    let mut configuration = Configuration::new(slapd);
    configuration.change(
        "listen.web",
        "serve",
        &format!("[{what}, \"login\", \"health\", \"metrics\"]"),
    );
    configuration
}

#[test]
fn nginx_lets_a_request_through_when_gatepost_knows_its_user() {
    let mut slapd = Slapd::start();
    let mut configuration = serving(&slapd, "\"forward-auth\"");
    configuration.add("template.crew", "protocols = [\"imap\", \"dav\"]");
    let gatepost = configuration.start();
    let (nginx, port) = Nginx::forward_auth(gatepost.configuration.web);
    let url = format!("http://127.0.0.1:{port}/calendar");
    let ask = |uid: &str, password: &str| {
        let user = format!("{}:{password}", mail_of(uid));
        let forged =
            ["-H", "Remote-User: zapp", "-H", "X-Remote-User: zapp", "-H", "Remote-Name: Zapp"];
        curl(&[&forged[..], &["-u", &user, &url]].concat())
    };

    let (head, body) = ask("fry", &password_of("fry"));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}: {} {}", nginx.log(), gatepost.log());
    let fry = mail_of("fry");
    assert_eq!(body, format!("{fry}|{fry}|Philip Fry|{fry}|"));
    for (uid, password) in [("fry", "wrong".to_owned()), ("hermes", password_of("hermes"))] {
        let (head, _) = ask(uid, &password);
        assert!(head.starts_with("HTTP/1.1 401"), "{head}");
        let challenge = "WWW-Authenticate: Basic realm=\"mail\", charset=\"UTF-8\"";
        assert!(head.to_lowercase().contains(&challenge.to_lowercase()), "{head}");
    }
    let (head, _) = curl(&[&url]);
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");

    slapd.stop();
    let (head, _) = ask("leela", &password_of("leela"));
    assert!(head.starts_with("HTTP/1.1 500"), "{head}");
    let (head, _) = ask("fry", &password_of("fry"));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

/// A daemon whose doors `tls`, and `mutual` where callers need a certificate, speak TLS.
struct Tls {
    gatepost: Gatepost,
    files: PathBuf,
    tls: u16,
    mutual: u16,
    _slapd: Slapd,
}

impl Tls {
    fn start() -> Self {
        let slapd = Slapd::start();
        let mut configuration = Configuration::new(&slapd);
        let (tls, mutual) = (free_port(), free_port());
        let files = configuration.path("certificates");
        fs::create_dir(&files).unwrap();
        make_certificates(&files);
        let door = |port: u16, more: &str| {
            let (certificate, key) = (files.join("server.pem"), files.join("server.key"));
            format!(
                "protocol = \"http\"\naddress = \"127.0.0.1:{port}\"\nserve = [\"login\"]\n\
                 tls = {{ cert_file = {certificate:?}, key_file = {key:?}{more} }}"
            )
        };
        configuration.set("listen.tls", &door(tls, ""));
        let authority = files.join("ca.pem");
        configuration
            .set("listen.mutual", &door(mutual, &format!(", client_ca_file = {authority:?}")));
        let gatepost = configuration.start();
        Self { gatepost, files, tls, mutual, _slapd: slapd }
    }

    /// A login by curl; its exit code, and the status.
    fn login(&self, port: u16, arguments: &[&str]) -> (i32, String) {
        let body = json!({
            "username": mail_of("fry"), "password": password_of("fry"), "service": "imap",
        })
        .to_string();
        let url = format!("https://localhost:{port}/v1/login");
        let mut command = program("curl", "curl");
        command.current_dir(&self.files).args([
            "-sS",
            "-m",
            "20",
            "-o",
            "answer",
            "-w",
            "%{http_code}",
        ]);
        command.args(["--resolve", &format!("localhost:{port}:127.0.0.1")]);
        let output = command.args(["-d", &body, &url]).args(arguments).output().unwrap();
        let status = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap(), status)
    }
}

#[test]
fn a_door_with_tls_shows_its_certificate_and_may_ask_for_the_callers() {
    let tls = Tls::start();
    let certificate = ["--cacert", "ca.pem", "--cert", "server.pem", "--key", "server.key"];
    let stranger = ["--cacert", "ca.pem", "--cert", "other-ca.pem", "--key", "other-ca.key"];

    assert_eq!(tls.login(tls.tls, &["--cacert", "ca.pem"]), (0, "200".into()));
    assert_eq!(tls.login(tls.tls, &["--cacert", "other-ca.pem"]), (60, "000".into()));
    assert_eq!(tls.login(tls.tls, &["--cacert", "ca.pem", "--http2"]), (0, "200".into()));
    assert_eq!(tls.login(tls.mutual, &certificate), (0, "200".into()));
    for arguments in [&certificate[..2], &stranger] {
        let (code, status) = tls.login(tls.mutual, arguments);
        assert!(code != 0 && status == "000", "{code} {status}");
    }
    let plain = exchange(tls.tls, b"GET / HTTP/1.1\r\n\r\n", Duration::from_secs(10));
    assert!(!plain.contains("HTTP/1.1"), "{plain:?}");
}

#[test]
fn a_reload_takes_new_certificates_and_a_bad_one_keeps_the_old() {
    let tls = Tls::start();
    let other = tls.files.join("other");
    fs::create_dir(&other).unwrap();
    make_certificates(&other);
    let reload = || tls.gatepost.run(&["reload"], "");

    fs::write(tls.files.join("server.key"), "no key").unwrap();
    let output = reload();
    assert!(!output.status.success());
    let said = printed(&output);
    assert!(
        said.contains("listen.mutual: tls.key_file: ") && said.contains("server.key"),
        "{said}"
    );
    assert_eq!(tls.login(tls.tls, &["--cacert", "ca.pem"]), (0, "200".into()));

    for name in ["server.pem", "server.key"] {
        fs::copy(other.join(name), tls.files.join(name)).unwrap();
    }
    let output = reload();
    assert!(output.status.success(), "{}", printed(&output));
    assert_eq!(tls.login(tls.tls, &["--cacert", "other/ca.pem"]), (0, "200".into()));
    assert_eq!(tls.login(tls.tls, &["--cacert", "ca.pem"]), (60, "000".into()));
}

#[test]
fn a_certificate_that_cannot_be_used_keeps_the_daemon_from_starting() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    let files = configuration.path("certificates");
    fs::create_dir(&files).unwrap();
    make_certificates(&files);
    let mut gatepost = {
        configuration.set("listen.tls", "protocol = \"http\"\naddress = \"127.0.0.1:0\"");
        configuration.start()
    };
    gatepost.stop();
    for (certificate, key, said) in [
        ("missing.pem", "server.key", "listen.tls: tls.cert_file: "),
        ("server.key", "server.key", "no certificate in PEM form"),
        ("server.pem", "missing.key", "listen.tls: tls.key_file: "),
        ("server.pem", "ca.key", "listen.tls: tls.key_file: "),
    ] {
        let tls = format!(
            "{{ cert_file = {:?}, key_file = {:?} }}",
            files.join(certificate),
            files.join(key)
        );
        gatepost.configuration.change("listen.tls", "tls", &tls);
        gatepost.configuration.write();
        let output = gatepost.run(&["serve"], "");
        assert!(!output.status.success(), "{certificate} {key}");
        assert!(printed(&output).contains(said), "{certificate} {key}: {}", printed(&output));
    }
}

/// A door of contrib/mailcow/gatepost.toml, on a port and with files of the test's own.
fn pasted_door(configuration: &mut Configuration, door: &str, more: &str) -> u16 {
    let file = include_str!("../../contrib/mailcow/gatepost.toml");
    let (_, rest) = file.split_once(&format!("[listen.{door}]\n")).unwrap();
    let (table, _) = rest.split_once("\n[").unwrap();
    let port = free_port();
    let files = configuration.path("");
    make_certificates(&files);
    fs::write(files.join("token"), TOKEN).unwrap();
    let file = |name: &str| files.join(name).display().to_string();
    let table = [
        ("0.0.0.0:9082", format!("127.0.0.1:{port}")),
        ("0.0.0.0:8420", format!("127.0.0.1:{port}")),
        ("/etc/gatepost/mailcow.pem", file("server.pem")),
        ("/etc/gatepost/mailcow.key", file("server.key")),
        ("/etc/gatepost/mailcow.token", file("token")),
        ("172.22.1.0/24", "127.0.0.0/8".to_owned()),
        ("172.22.1.250", "127.0.0.1".to_owned()),
    ]
    .into_iter()
    .fold(table.to_owned(), |table, (from, to)| table.replace(from, &to));
    assert!(!table.contains("/etc/") && !table.contains("172.22"), "not replaced: {table}");
    configuration.set(&format!("listen.{door}"), &format!("{table}\n{more}"));
    port
}

fn mailcow(configuration: &mut Configuration, temp_failure: &str) -> u16 {
    pasted_door(configuration, "mailcow", &format!("temp_failure = \"{temp_failure}\""))
}

#[test]
fn mailcows_dovecot_lets_people_in_by_the_lines_for_its_extra_conf() {
    let mut slapd = Slapd::start();
    let place = Place::new(Home::Bookworm);
    let mut configuration = Configuration::new(&slapd).for_other_ways(&place);
    let port = pasted_door(&mut configuration, "dovecot", "");
    let mut gatepost = configuration.start();
    let dovecot = Dovecot::start(place, Judge::Mailcow(port));
    let login = |uid: &str, password: &str| imap_login(dovecot.imap, &mail_of(uid), password);

    let reply = login("fry", &password_of("fry"));
    assert!(reply.starts_with("a OK"), "{reply}: {} {}", dovecot.log(), gatepost.log());
    let reply = login("fry", "wrong");
    assert!(reply.starts_with("a NO [AUTHENTICATIONFAILED]"), "{reply}");
    slapd.stop();
    let reply = login("zoidberg", &password_of("zoidberg"));
    assert!(reply.starts_with("a NO [UNAVAILABLE]"), "{reply}");
    assert!(login("fry", &password_of("fry")).starts_with("a OK"));

    // Dovecot's cache repeats what was accepted, as mailcow has it, until it is flushed.
    gatepost.stop();
    assert!(login("fry", &password_of("fry")).starts_with("a OK"), "{}", dovecot.log());
    assert!(login("fry", "other").starts_with("a NO [UNAVAILABLE]"), "{}", dovecot.log());
    assert!(dovecot.doveadm(&["auth", "cache", "flush"]).status.success());
    let reply = login("fry", &password_of("fry"));
    assert!(reply.starts_with("a NO [UNAVAILABLE]"), "{reply}: {}", dovecot.log());
}

/// As mailcow's script asks: a connection of its own, TLS with any certificate, the fields content-type and
/// content-length, four members. `None`: no answer came.
fn ask_as_mailcow(port: u16, name: &str, password: &[u8], service: &str) -> Option<(u16, String)> {
    let name = serde_json::to_string(name).unwrap();
    let body = [
        format!("{{\"username\":{name},\"password\":\"").as_bytes(),
        password,
        format!("\",\"real_rip\":\"192.0.2.9\",\"service\":\"{service}\"}}").as_bytes(),
    ]
    .concat();
    let request = [
        format!(
            "POST / HTTP/1.1\r\nhost: nginx:9082\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\
             te: trailers\r\nconnection: close, TE\r\n\r\n",
            body.len()
        )
        .as_bytes(),
        &body,
    ]
    .concat();
    let directory = scratch(Path::new("/tmp"));
    fs::write(directory.path().join("request"), request).unwrap();
    let mut command = program("openssl", "openssl");
    command.args(["s_client", "-quiet", "-ign_eof", "-verify_quiet", "-connect"]);
    command.arg(format!("127.0.0.1:{port}"));
    command.stdin(fs::File::open(directory.path().join("request")).unwrap());
    let output = command.output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    if answer.is_empty() {
        return None;
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Some((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

#[test]
fn mailcows_own_request_is_answered_as_mailcow_would() {
    let mut slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.add("template.office", "protocols = [\"sieve\"]");
    let port = mailcow(&mut configuration, "auto");
    let gatepost = configuration.start();
    let yes = || Some((200, "{\"success\":true}".to_owned()));
    let no = || Some((401, "{\"success\":false}".to_owned()));
    let ask = |uid: &str, password: &str, service: &str| {
        ask_as_mailcow(port, &mail_of(uid), password.as_bytes(), service)
    };

    assert_eq!(ask("fry", &password_of("fry"), "imap"), yes(), "{}", gatepost.log());
    wait_until("the journal has the client's address", Duration::from_secs(5), || {
        gatepost.log().contains("192.0.2.9")
    });
    assert_eq!(ask("fry", "wrong", "imap"), no());
    assert_eq!(ask("nobody", "wrong", "imap"), no());
    assert_eq!(ask("hermes", &password_of("hermes"), "imap"), no());
    assert_eq!(ask("hermes", &password_of("hermes"), "sieve"), yes());
    let raw = [password_of("leela").as_bytes(), b"\xff\xe9"].concat();
    slapd.set_raw_password("leela", &raw);
    assert_eq!(ask_as_mailcow(port, &mail_of("leela"), &raw, "smtp"), yes());
    assert_eq!(
        ask_as_mailcow(port, "fry", b"\\q", "imap"),
        Some((400, "{\"success\":false}".into()))
    );

    slapd.stop();
    assert_eq!(ask("bender", &password_of("bender"), "imap"), None, "later is no answer");
    assert_eq!(ask("fry", &password_of("fry"), "imap"), yes());
}

#[test]
fn mailcows_door_may_say_later_with_a_status() {
    let mut slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    let port = mailcow(&mut configuration, "fail");
    let _gatepost = configuration.start();
    slapd.stop();

    let answer = ask_as_mailcow(port, &mail_of("fry"), password_of("fry").as_bytes(), "imap");

    assert_eq!(answer, Some((503, "{\"success\":false}".into())));
}

#[test]
fn the_configuration_for_mailcow_is_one() {
    let directory = scratch(Path::new("/tmp"));
    let secret = directory.path().join("password");
    fs::write(&secret, "x").unwrap();
    make_certificates(directory.path());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let text = include_str!("../../contrib/mailcow/gatepost.toml")
        .replace("/etc/gatepost/corp-ca.pem", &file("ca.pem"))
        .replace("/etc/gatepost/mailcow.pem", &file("server.pem"))
        .replace("/etc/gatepost/mailcow.key", &file("server.key"))
        .replace("/etc/gatepost/corp.password", secret.to_str().unwrap())
        .replace("/etc/gatepost/mailcow.token", secret.to_str().unwrap());
    assert!(!text.contains("\"/etc/"), "not replaced: {text}");
    let file = directory.path().join("gatepost.toml");
    fs::write(&file, text).unwrap();
    let mut command = program(env!("CARGO_BIN_EXE_gatepost"), "gatepost");

    let output = command.arg("--config").arg(file).args(["config", "check"]).output().unwrap();

    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn callers_of_nauthilus_hear_what_they_know() {
    let mut slapd = Slapd::start();
    let gatepost = serving(&slapd, "\"nauthilus\"").start();
    let url =
        |path: &str| format!("http://127.0.0.1:{}/api/v1/auth/{path}", gatepost.configuration.web);
    let json_of = |uid: &str, password: &str, query: &str| {
        let body = json!({
            "username": mail_of(uid), "password": password, "protocol": "imap", "client_ip": "192.0.2.9",
            "client_port": "47110", "client_hostname": "h", "local_ip": "127.0.0.1", "local_port": "143",
            "method": "plain",
        });
        curl(&[
            "-H",
            "Content-Type: application/json",
            "-d",
            &body.to_string(),
            &url(&format!("json{query}")),
        ])
    };
    let header_of = |uid: &str, password: &str| {
        let (user, pass) =
            (format!("Auth-User: {}", mail_of(uid)), format!("Auth-Pass: {password}"));
        curl(&["-H", &user, "-H", &pass, "-H", "Auth-Protocol: imap", &url("header")])
    };

    let (head, body) = json_of("fry", &password_of("fry"), "");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(
        head.contains("auth-status: OK") && head.contains("auth-user: fry@planetexpress.com"),
        "{head}"
    );
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["ok"], &body["backend"]), (&json!(true), &json!(2)));
    assert_eq!(body["attributes"]["account"], json!(["fry@planetexpress.com"]));
    let (head, _) = header_of("fry", &password_of("fry"));
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("auth-user: fry@planetexpress.com"),
        "{head}"
    );

    for (head, body) in [json_of("fry", "wrong", ""), header_of("fry", "wrong")] {
        assert!(head.starts_with("HTTP/1.1 403"), "{head} {body}");
        assert!(head.contains("auth-status: Invalid login or password"), "{head}");
    }
    let (head, body) = json_of("fry", "", "?mode=no-auth");
    assert!(
        head.starts_with("HTTP/1.1 200") && body.contains("\"uid\":[\"5000\"]"),
        "{head} {body}"
    );
    let (head, _) = json_of("nobody", "", "?mode=no-auth");
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let (_, body) = curl(&[&url("json?mode=list-accounts")]);
    assert_eq!(body, "[\"fry@planetexpress.com\"]");

    slapd.stop();
    let (head, body) = json_of("leela", &password_of("leela"), "");
    assert!(head.starts_with("HTTP/1.1 500"), "{head}");
    assert_eq!(body, "{\"error\":\"Temporary server problem, try again later\"}");
}

#[test]
fn look_ups_say_who_lives_where_and_never_deny_anybody_in_an_outage() {
    let slapd = Slapd::start();
    let gatepost = serving(&slapd, "\"lookup\"").start();
    let get =
        |path: &str| http(gatepost.configuration.web, "GET", &format!("/v1/lookup/{path}"), b"");
    for uid in ["fry", "professor"] {
        assert_eq!(gatepost.login(&mail_of(uid), &password_of(uid)).status, 200);
    }

    for (path, status, body) in [
        ("mailbox/Fry%2Blist%40planetexpress.com", 200, "{\"value\":\"fry@planetexpress.com\"}"),
        ("mailbox/nobody@planetexpress.com", 404, "{\"value\":null}"),
        ("alias/fry@planetexpress.com", 404, "{\"value\":null}"),
        ("domain/PlanetExpress.com", 200, "{\"value\":\"planetexpress.com\"}"),
        ("domain/elsewhere.example", 404, "{\"value\":null}"),
        ("sender-login/fry@planetexpress.com", 200, "{\"value\":\"fry@planetexpress.com\"}"),
        ("userdb/nobody", 404, "{\"value\":null}"),
        (
            "users?limit=1",
            200,
            "{\"next\":\"fry@planetexpress.com\",\"value\":[\"fry@planetexpress.com\"]}",
        ),
    ] {
        let (heard, said) = get(path);
        assert_eq!((heard, said.as_str()), (status, body), "{path}");
    }
    let (status, body) = get("userdb/fry%40planetexpress.com");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(body["value"]["user"], "fry@planetexpress.com");
    assert_eq!(body["value"]["uid"], "5000");
    assert_eq!(body["value"]["quota_rule"], "*:bytes=1073741824");
    let url = format!("http://127.0.0.1:{}/v1/lookup/users", gatepost.configuration.web);
    let (_, text) = curl(&["-H", "Accept: text/plain", &url]);
    let names: Vec<&str> = text.lines().collect();
    assert_eq!(names.len(), 2, "{text}");
    assert_eq!(names[0], "fry@planetexpress.com");

    gatepost.store_is_there(false);
    for path in ["mailbox/leela@planetexpress.com", "userdb/leela@planetexpress.com", "users"] {
        assert_eq!(get(path).0, 503, "{path}");
    }
    // Not in the driver's words: anybody may ask.
    let ready = http(gatepost.configuration.web, "GET", "/readyz", b"");
    assert_eq!(ready, (200, "degraded: store: does not answer\n".into()));
    gatepost.store_is_there(true);
}

#[test]
fn whoever_expects_100_continue_hears_it_at_once() {
    let slapd = Slapd::start();
    let gatepost = serving(&slapd, "\"mailcow\"").start();
    for path in ["/v1/login", "/"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\nExpect: 100-continue\r\n\r\n"
        );
        let heard = exchange(gatepost.configuration.web, head.as_bytes(), Duration::from_secs(2));
        assert_eq!(heard, "HTTP/1.1 100 Continue\r\n\r\n", "{path}");
    }
}
