//! Look-up tables and policy server, asked by `postmap` of Postfix 3.7 and 3.10 and byte by byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::dovecot::Home;
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::postfix::Postmap;
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{free_port, now, printed, wait_until};

/// The daemon with both doors on TCP. fry has aliases in another domain; planetexpress.example is another name of
/// planetexpress.com; momcorp.example has a catch-all.
struct Tables {
    gatepost: Gatepost,
    maps: u16,
    policy: u16,
    _slapd: Slapd,
}

impl Tables {
    fn start() -> Self {
        let slapd = Slapd::start();
        let (maps, policy) = (free_port(), free_port());
        let mut configuration = Configuration::new(&slapd);
        let door = |protocol: &str, port: u16| {
            format!("protocol = \"{protocol}\"\naddress = \"127.0.0.1:{port}\"")
        };
        configuration.set("listen.maps", &door("socketmap", maps));
        configuration.set("listen.policy", &door("postfix-policy", policy));
        let domain = |name: &str| format!("domain.{name:?}");
        configuration.set(&domain("planetexpress.example"), "alias_of = \"planetexpress.com\"");
        configuration.set(&domain("momcorp.example"), "catch_all = \"leela@planetexpress.com\"");
        configuration.set(&domain("bücher.example"), "active = true");
        configuration.add("template.crew", "aliases = [\"{local}@bücher.example\"]");
        let tables = Self { gatepost: configuration.start(), maps, policy, _slapd: slapd };
        for uid in ["fry", "leela", "professor"] {
            tables.login(uid);
        }
        tables
    }

    fn login(&self, uid: &str) {
        let answer = self.gatepost.login(&mail_of(uid), &password_of(uid));
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    fn lose_store(&self) {
        let database = self.gatepost.configuration.database();
        std::fs::rename(&database, database.with_extension("away")).unwrap();
    }

    fn find_store_again(&self) {
        let database = self.gatepost.configuration.database();
        std::fs::rename(database.with_extension("away"), database).unwrap();
    }

    fn connect(port: u16) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

/// What `postmap` says: the value, nothing, or that it could not ask.
fn check(postmap: &Postmap, map: &str, key: &str, value: &str) {
    let output = postmap.ask(map, key);
    let said = printed(&output);
    let case = format!("{map} {key:.60}: {said}");
    match value {
        "" => {
            assert_eq!((output.status.code(), said.as_str()), (Some(1), ""), "{case}");
        }
        "later" => {
            assert_eq!(output.status.code(), Some(1), "{case}");
            assert!(said.contains("query error"), "{case}");
        }
        value => {
            assert_eq!((output.status.code(), said.trim_end()), (Some(0), value), "{case}");
        }
    }
}

#[test]
fn postmap_of_both_versions_finds_what_is_there() {
    let tables = Tables::start();

    for home in [Home::Bookworm, Home::Trixie] {
        let postmap = Postmap::new(home, tables.maps);
        for (map, key, value) in [
            ("domain", "planetexpress.com", "planetexpress.com"),
            ("domain", "PlanetExpress.COM", "planetexpress.com"),
            ("domain", "bücher.example", "xn--bcher-kva.example"),
            ("domain", "xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("domain", "elsewhere.example", ""),
            ("mailbox", "fry@planetexpress.com", "fry@planetexpress.com"),
            ("mailbox", "Fry+Lists@PlanetExpress.com", "fry@planetexpress.com"),
            ("mailbox", "hubert@planetexpress.com", ""),
            ("mailbox", "zoidberg@planetexpress.com", ""),
            ("alias", "fry@planetexpress.com", ""),
            ("alias", "hubert@planetexpress.com", "professor@planetexpress.com"),
            ("alias", "Hubert+Lab@planetexpress.com", "professor+lab@planetexpress.com"),
            ("alias", "fry+x@planetexpress.example", "fry+x@planetexpress.com"),
            ("alias", "hubert@planetexpress.example", "professor@planetexpress.com"),
            ("alias", "fry@bücher.example", "fry@planetexpress.com"),
            ("alias", "fry+x@xn--bcher-kva.example", "fry+x@planetexpress.com"),
            ("alias", "anybody@momcorp.example", "leela@planetexpress.com"),
            ("alias", "anybody@elsewhere.example", ""),
            ("sender-login", "fry+x@planetexpress.com", "fry@planetexpress.com"),
            ("sender-login", "hubert@planetexpress.com", "professor@planetexpress.com"),
            ("sender-login", "zoidberg@planetexpress.com", ""),
            ("mailboxes", "fry@planetexpress.com", "later"),
        ] {
            check(&postmap, map, key, value);
        }
    }
    let told = tables.gatepost.log().matches("there is no look-up table of this name").count();
    assert_eq!(told, 1, "one line, however often it is asked for");
    assert!(tables.gatepost.metric("gatepost_lookups_total", &["maps", "alias", "found"]) >= 14.0);
}

#[test]
fn postmap_of_both_versions_hears_of_odd_keys_that_they_are_nobodys() {
    let tables = Tables::start();
    let long = format!("{}@planetexpress.com", "x".repeat(10_000 - 18));

    for home in [Home::Bookworm, Home::Trixie] {
        let postmap = Postmap::new(home, tables.maps);
        for key in [
            "*",
            "<>",
            "\"\"",
            "@",
            "fry",
            "@planetexpress.com",
            "[192.0.2.1]",
            "fry@[192.0.2.1]",
            "fry@192.0.2.1",
            "fry@planetexpress.com@planetexpress.com",
            "\"fry\"@planetexpress.com",
            "\"a b\"@planetexpress.com",
            "a b@planetexpress.com",
            "öde@planetexpress.com",
            "'@planetexpress.com",
            "MAILER-DAEMON@mx.planetexpress.com",
            "double-bounce@mx.planetexpress.com",
            &long,
        ] {
            for map in ["domain", "mailbox", "alias", "sender-login"] {
                check(&postmap, map, key, "");
            }
        }
    }
}

#[test]
fn with_the_store_away_postmap_hears_later_and_never_not_found() {
    let tables = Tables::start();
    let postmap = [Home::Bookworm, Home::Trixie].map(|home| Postmap::new(home, tables.maps));
    check(&postmap[0], "mailbox", "fry@planetexpress.com", "fry@planetexpress.com");

    tables.lose_store();
    for postmap in &postmap {
        for map in ["mailbox", "alias", "sender-login"] {
            let start = now();
            check(postmap, map, "hubert@planetexpress.com", "later");
            check(postmap, map, "nobody@planetexpress.com", "later");
            check(postmap, map, "anybody@momcorp.example", "later");
            assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
            check(postmap, map, "anybody@elsewhere.example", "");
        }
        check(postmap, "mailbox", "fry@planetexpress.com", "fry@planetexpress.com");
        check(postmap, "domain", "planetexpress.com", "planetexpress.com");
    }

    tables.find_store_again();
    check(&postmap[0], "alias", "hubert@planetexpress.com", "professor@planetexpress.com");
    check(&postmap[0], "alias", "nobody@planetexpress.com", "");
}

#[test]
fn mail_for_a_disabled_mailbox_goes_by_disabled_delivery() {
    let mut tables = Tables::start();
    let postmap = Postmap::new(Home::Bookworm, tables.maps);
    let (name, alias) = ("professor@planetexpress.com", "hubert@planetexpress.com");
    check(&postmap, "mailbox", name, name);

    for (delivery, value) in [("accept", name), ("reject", ""), ("tempfail", "later")] {
        let lines = format!("disabled_delivery = {delivery:?}");
        tables.gatepost.configuration.change(
            "template.office",
            "disabled_delivery",
            &format!("{delivery:?}"),
        );
        tables.gatepost.hup();
        wait_until(&lines, Duration::from_secs(10), || {
            tables.login("professor");
            tables.gatepost.mailbox(name).unwrap()["disabled_delivery"] == *delivery
        });

        assert!(tables.gatepost.run(&["mailbox", "disable", name], "").status.success());
        check(&postmap, "mailbox", name, value);
        check(&postmap, "mailbox", "professor+x@planetexpress.com", value);
        check(&postmap, "alias", alias, value);
        check(&postmap, "sender-login", alias, name);

        assert!(tables.gatepost.run(&["mailbox", "enable", name], "").status.success());
        check(&postmap, "mailbox", name, name);
    }
}

#[test]
fn a_peer_that_closes_its_side_still_gets_its_answers_and_then_the_end() {
    let tables = Tables::start();

    // As Exim's readsocket does it, and two requests in one piece.
    let mut stream = Tables::connect(tables.maps);
    stream.write_all(b"29:mailbox fry@planetexpress.com,25:alias x@planetexpress.com,").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "24:OK fry@planetexpress.com,9:NOTFOUND ,");

    let mut stream = Tables::connect(tables.policy);
    let request = "request=smtpd_access_policy\nprotocol_state=RCPT\nsender=leela@planetexpress.com\n\
                   sasl_username=fry@planetexpress.com\n\n";
    stream.write_all(request.repeat(2).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "action=553 5.7.1 not owned by user fry@planetexpress.com\n\n".repeat(2));
}

#[test]
fn a_peer_that_breaks_the_protocol_is_cut_off_and_the_others_are_not() {
    let tables = Tables::start();
    let mut other = Tables::connect(tables.maps);

    for (port, bytes) in [
        (tables.maps, &b"16385:"[..]),
        (tables.maps, b"GET / HTTP/1.1\r\n\r\n"),
        (tables.policy, b"GET / HTTP/1.1\r\n\r\n"),
        (tables.policy, &[b'x'; 70_000]),
    ] {
        let mut stream = Tables::connect(port);
        // The daemon may close before it has read all of it.
        drop(stream.write_all(bytes));
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        assert_eq!(answer, b"", "{port}");
    }

    for byte in b"29:mailbox fry@planetexpress.com," {
        other.write_all(&[*byte]).unwrap();
    }
    let mut answer = [0; 27];
    other.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"24:OK fry@planetexpress.com");
    assert_eq!(tables.gatepost.metric("gatepost_protocol_errors_total", &["maps"]), 2.0);
}
