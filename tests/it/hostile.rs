//! Hostile names and passwords on each door: a clear refusal, no bind where none is due, and the daemon lives on.

use serde_json::json;

use crate::support::clients::{
    AuthClient, Wire, http, imap_plain, pop3_plain, sieve_login, smtp_login,
};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::postfix::{self, Postfix};
use crate::support::slapd::{Slapd, mail_of, password_of};

/// Names that are nobody's, whatever a filter, a DN, a path, a log line or a protocol might make of them.
fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b"*@planetexpress.com"[..],
        b"f*@planetexpress.com",
        b"fry)(uid=*@planetexpress.com",
        b"*)(|(uid=*))@planetexpress.com",
        b"fry\\2a@planetexpress.com",
        b"uid=fry,ou=people,dc=planetexpress,dc=com@planetexpress.com",
        b"fry\0@planetexpress.com",
        b"fry\x01@planetexpress.com",
        b"fry\t@planetexpress.com",
        b"fry\r\nuser=leela@planetexpress.com",
        b"fry\"@planetexpress.com",
        b"fry'@planetexpress.com",
        b" fry@planetexpress.com",
        b"fry@planetexpress.com ",
        b"user%@x",
        b"%s%n%u@planetexpress.com",
        b"../../etc/passwd@planetexpress.com",
        b".fry@planetexpress.com",
        b"@planetexpress.com",
        b"fry@",
        b"@",
        b"fry@evil.example",
        b"fry@planetexpress.com@evil.example",
        b"\xff\xfe\xfd@planetexpress.com",
        "пользователь@planetexpress.com".as_bytes(),
        b"$(id)`id`${jndi:ldap://x}@planetexpress.com",
    ]
    .map(<[u8]>::to_vec)
    .into();
    names.push([vec![b'a'; 321], b"@planetexpress.com".to_vec()].concat());
    names
}

/// Passwords that are not fry's.
fn passwords() -> Vec<Vec<u8>> {
    let mut passwords: Vec<Vec<u8>> = [
        &b""[..],
        b"*",
        b"*)(uid=*",
        b"\\",
        b"\x01",
        b"\t\r\n",
        b"\"'%s%n",
        b"\xff\xfe",
        "пароль".as_bytes(),
    ]
    .map(<[u8]>::to_vec)
    .into();
    let right = password_of("fry");
    for wrong in
        [format!(" {right}"), format!("{right} "), right.to_uppercase(), format!("{right}\n")]
    {
        passwords.push(wrong.into_bytes());
    }
    passwords.push(vec![b'p'; 1025]);
    passwords
}

fn start() -> (Gatepost, Slapd) {
    let slapd = Slapd::start();
    (configuration(&slapd).start(), slapd)
}

/// Every one of these passwords shall be judged by the directory: the lock-out budget (shield.rs) is not meant here.
fn configuration(slapd: &Slapd) -> Configuration {
    let mut configuration = Configuration::new(slapd);
    configuration.set("directory.planet.auth", "wrong_binds = \"500/10m\"");
    configuration
}

/// After all that: still there, and fry gets in.
fn lives(gatepost: &Gatepost) {
    let answer = gatepost.login(&mail_of("fry"), &password_of("fry"));
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn hostile_names_are_refused_on_the_auth_protocol_without_a_bind() {
    let (gatepost, slapd) = start();
    let socket = gatepost.configuration.auth_socket();
    let wires = [Wire::Unix(&socket), Wire::Tcp(gatepost.configuration.auth_port)];

    for wire in wires {
        let mut client = AuthClient::connect(wire, 2);
        for name in names() {
            let answer = client.login("service=imap", &name, "any-Tr0ub4dor");
            assert!(answer.starts_with("FAIL\t1"), "{}: {answer:?}", name.escape_ascii());
            assert!(!answer.contains("temp_fail"), "{}: {answer:?}", name.escape_ascii());
        }
    }

    assert_eq!(slapd.binds_of_people(), 0);
    lives(&gatepost);
}

#[test]
fn hostile_passwords_are_refused_on_the_auth_protocol() {
    let (gatepost, slapd) = start();
    let socket = gatepost.configuration.auth_socket();
    let mut client = AuthClient::connect(Wire::Unix(&socket), 2);

    for password in passwords() {
        let answer = client.login("service=imap", mail_of("fry"), &password);
        let refused = answer.starts_with("FAIL\t1");
        assert!(refused, "{}: {answer:?}", password.escape_ascii());
    }

    // Empty and overlong ones are not even tried.
    assert!(slapd.binds_as("fry") <= passwords().len() - 2);
    assert_eq!(slapd.count_log(&["BIND dn=\"\"", "method=128"]), 0, "an unauthenticated bind");
    lives(&gatepost);
}

#[test]
fn an_empty_password_and_one_with_nul_are_never_bound() {
    let (gatepost, slapd) = start();

    for password in ["", "with\0nul"] {
        let answer = gatepost.login(&mail_of("fry"), password);
        assert_eq!((answer.status, answer.reason()), (403, "bad-password-form"));
    }

    assert_eq!(slapd.binds_of_people(), 0);
}

#[test]
fn hostile_names_and_passwords_are_refused_over_http() {
    let (gatepost, slapd) = start();

    for name in names() {
        let answer = gatepost.post_login(&body(&name, b"any-Tr0ub4dor"));
        assert_eq!(answer.status, 403, "{}: {answer:?}", name.escape_ascii());
    }
    assert_eq!(slapd.binds_of_people(), 0);
    for password in passwords() {
        let answer = gatepost.post_login(&body(mail_of("fry").as_bytes(), &password));
        assert_eq!(answer.status, 403, "{}: {answer:?}", password.escape_ascii());
    }

    lives(&gatepost);
}

#[test]
fn a_password_of_raw_bytes_works_over_http() {
    let (gatepost, slapd) = start();
    slapd.set_raw_password("fry", b"\xff\xfe-Tr0ub4dor");

    let answer = gatepost.post_login(&body(mail_of("fry").as_bytes(), b"\xff\xfe-Tr0ub4dor"));

    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn requests_that_are_no_login_are_answered_and_survived_over_http() {
    let (gatepost, slapd) = start();
    let port = gatepost.configuration.web;

    let deep = "[".repeat(60_000);
    for broken in
        ["", "{", "[]", "null", "{\"username\":\"fry\"}", "{\"username\":1,\"password\":2}", &deep]
    {
        let (status, text) = http(port, "POST", "/v1/login", broken.as_bytes());
        assert_eq!(status, 400, "{text}");
    }
    let (status, _) = http(port, "POST", "/v1/login", &vec![b' '; 1 << 20]);
    assert_eq!(status, 413);
    assert_eq!(http(port, "GET", "/v1/login", b"").0, 405);
    assert_eq!(http(port, "GET", "/nothing-here", b"").0, 404);

    assert_eq!(slapd.binds_of_people(), 0);
    lives(&gatepost);
}

#[test]
fn hostile_names_and_passwords_are_refused_through_the_mail_servers() {
    let slapd = Slapd::start();
    let (place, queue) = (Place::new(Home::Bookworm), postfix::Place::new(Home::Bookworm));
    let gatepost = configuration(&slapd).for_dovecot(&place).for_postfix(&queue).start();
    let postfix = Postfix::by_socket(queue);
    let dovecot = Dovecot::start(place, Judge::Gatepost);
    let (ports, smtp) = ((dovecot.imap, dovecot.pop3, dovecot.sieve), postfix.port);
    let knock = |name: &[u8], password: &[u8]| {
        let replies = [
            imap_plain(ports.0, name, password),
            pop3_plain(ports.1, name, password),
            sieve_login(ports.2, name, password),
            smtp_login(smtp, name, password),
        ];
        for (reply, refusal) in replies.into_iter().zip(["a NO", "-ERR", "NO", "535"]) {
            let said = format!("{} {}: {reply:?}", name.escape_ascii(), password.escape_ascii());
            // A front may also refuse by itself, as malformed, what it would not even pass on.
            let by_itself =
                ["a BAD", "* BYE", "BYE", "501", "500"].iter().any(|word| reply.starts_with(word));
            assert!(reply.starts_with(refusal) || by_itself, "{said}");
            for later in ["UNAVAILABLE", "SYS/TEMP", "TRYLATER"] {
                assert!(!reply.contains(later), "{said}");
            }
        }
    };

    std::thread::scope(|scope| {
        for name in names() {
            scope.spawn(move || knock(&name, b"any-Tr0ub4dor"));
        }
    });
    assert_eq!(slapd.binds_of_people(), 0);
    // One after another: of many different passwords at once most would rightly be put off (M-6).
    for password in passwords() {
        knock(mail_of("fry").as_bytes(), &password);
    }

    lives(&gatepost);
    assert_eq!(gatepost.mailboxes(), [mail_of("fry")]);
}

#[test]
fn sixteen_kibibytes_on_a_line_end_the_connection_and_nothing_else() {
    let (gatepost, slapd) = start();
    let socket = gatepost.configuration.auth_socket();

    let answer = AuthClient::connect(Wire::Unix(&socket), 2).login(
        "service=imap",
        mail_of("fry"),
        vec![b'p'; 16 << 10],
    );
    assert_eq!(answer, "", "a line over the protocol's limit was answered");
    let answer = AuthClient::connect(Wire::Unix(&socket), 2).login(
        "service=imap",
        mail_of("fry"),
        vec![b'p'; 8 << 10],
    );
    assert!(answer.starts_with("FAIL\t1"), "{answer}");

    assert_eq!(slapd.binds_of_people(), 0);
    lives(&gatepost);
}

#[test]
fn letters_that_the_directory_takes_for_others_lead_to_the_same_mailbox() {
    // slapd compares "ｙ" (full width) and "y" as equal: the entry it finds decides who this is (N-4).
    let (gatepost, _slapd) = start();
    let name = "fr\u{ff59}@planetexpress.com";

    for name in [name, &mail_of("fry")] {
        let answer = gatepost.login(name, &password_of("fry"));
        assert_eq!((answer.status, &answer.body["user"]), (200, &json!(mail_of("fry"))), "{name}");
    }

    assert_eq!(gatepost.mailboxes(), [mail_of("fry")]);
}

#[test]
fn a_protocol_error_ends_one_connection_and_leaves_the_others() {
    let (gatepost, _slapd) = start();
    let socket = gatepost.configuration.auth_socket();
    let mut other = AuthClient::connect(Wire::Unix(&socket), 2);

    // No service, an unknown mechanism's fields, a field after the response: each ends the connection.
    for fields in ["nothing", "", "service=imap\tresp=AAAA"] {
        let answer = AuthClient::connect(Wire::Unix(&socket), 2).login(fields, mail_of("fry"), "x");
        assert_eq!(answer, "", "{fields:?}");
    }

    let answer = other.login("service=imap", mail_of("fry"), password_of("fry"));
    assert!(answer.starts_with("OK\t1"), "{answer}");
}

/// A JSON body with these bytes in its strings, escaped as JSON wants it where they are ASCII, raw elsewhere.
fn body(name: &[u8], password: &[u8]) -> Vec<u8> {
    let string = |bytes: &[u8]| {
        let mut text = vec![b'"'];
        for byte in bytes {
            match byte {
                b'"' | b'\\' => text.extend([b'\\', *byte]),
                0..=31 => text.extend(format!("\\u{byte:04x}").bytes()),
                _ => text.push(*byte),
            }
        }
        text.push(b'"');
        text
    };
    let (name, password) = (string(name), string(password));
    [b"{\"username\":", &name[..], b",\"password\":", &password, b",\"service\":\"imap\"}"].concat()
}
