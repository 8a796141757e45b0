//! Dovecot 2.3 and 2.4 with a passdb of their own, which ask Gatepost's guessing shield by auth_policy (contrib/dovecot-2.3
//! and -2.4) and tell it what came of each login.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clients::{exchange, imap_login, imap_login_as, pop3_plain};
use crate::support::dovecot::{Dovecot, Home, Judge, Place, TOKEN};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::slapd::Slapd;
use crate::support::{free_port, now, wait_until};

const RIGHT: &str = "open";
const HOMES: [Home; 2] = [Home::Bookworm, Home::Trixie];
const TOO_MANY: &str = "a NO [ALERT] Too many wrong passwords; try again later";

struct World {
    // In the order in which they are to be stopped.
    dovecot: Dovecot,
    gatepost: Gatepost,
    policy: u16,
    _slapd: Slapd,
}

fn person(name: &str) -> String {
    format!("{name}@planetexpress.com")
}

/// The address of a client of which nothing is known.
fn client(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 77, number)
}

impl World {
    /// `rules`: names and lines of tables below `[throttle.rule]`; `lines`: more for Dovecot.
    fn start(home: Home, rules: &[(&str, &str)], lines: &str) -> Self {
        let slapd = Slapd::start();
        let mut configuration = Configuration::new(&slapd);
        configuration.set("throttle", "enabled = true");
        let policy = free_port();
        configuration.set(
            "listen.policy",
            &format!(
                "protocol = \"http\"\naddress = \"127.0.0.1:{policy}\"\nserve = [\"policy\"]\ntoken = {TOKEN:?}"
            ),
        );
        for (name, lines) in rules {
            configuration.set(&format!("throttle.rule.{name}"), lines);
        }
        let gatepost = configuration.start();
        let dovecot = Dovecot::start_with(Place::new(home), Judge::Policy(policy), lines);
        Self { dovecot, gatepost, policy, _slapd: slapd }
    }

    fn login(&self, name: &str, password: &str) -> String {
        imap_login(self.dovecot.imap, &person(name), password)
    }

    /// From an address of its own, by a client with an ordinary name.
    fn login_from(&self, number: u8, name: &str, password: &str) -> String {
        let place = (client(number), self.dovecot.imap);
        imap_login_as(place, b"Thunderbird", (&person(name), password))
    }

    /// A command of the protocol.
    fn command(&self, method: &str, command: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = format!(
            "{method} /command/{command} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {TOKEN}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let heard = exchange(self.policy, request.as_bytes(), Duration::from_secs(10));
        let (_, body) = heard.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{heard:?}"));
        serde_json::from_str(body).unwrap_or_else(|_| panic!("{heard:?}"))
    }

    /// allow and report commands so far. A report may come after the client has its answer.
    fn asked(&self) -> (u64, u64) {
        let stats = self.command("GET", "stats", &Value::Null);
        (stats["allows"].as_u64().unwrap(), stats["reports"].as_u64().unwrap())
    }

    fn wait_until_asked(&self, allows: u64, reports: u64) {
        wait_until("Dovecot has asked and told", Duration::from_secs(10), || {
            self.asked() == (allows, reports)
        });
    }

    /// What a rule has counted.
    fn count(&self, rule: &str, key: &Value) -> u64 {
        self.command("POST", "getDBStats", key)["stats"][rule]["count"].as_u64().unwrap()
    }
}

const BY_LOGIN: &str = "count = \"failures\"\nper = \"login\"\nlimit = 3\naction = \"deny\"";
const BY_IP: &str = "count = \"failures\"\nper = \"ip\"\nlimit = 1000\naction = \"deny\"";

#[test]
fn each_login_is_asked_about_and_told_of() {
    for home in HOMES {
        let world = World::start(home, &[("login", BY_LOGIN)], "");

        let reply = world.login("fry", RIGHT);
        assert!(reply.starts_with("a OK"), "{home:?}: {reply}: {}", world.dovecot.log());
        world.wait_until_asked(2, 1);
        let reply = world.login("leela", "wrong");
        assert!(reply.starts_with("a NO [AUTHENTICATIONFAILED]"), "{home:?}: {reply}");
        world.wait_until_asked(3, 2);
        let reply = pop3_plain(world.dovecot.pop3, person("leela").as_bytes(), b"wrong");
        assert!(reply.starts_with("-ERR"), "{home:?}: {reply}");
        world.wait_until_asked(4, 3);

        // The same wrong password twice is one: its hash is told.
        assert_eq!(world.count("login", &json!({ "login": person("leela") })), 1);
        assert_eq!(world.count("login", &json!({ "login": person("fry") })), 0);
        assert_eq!(world.dovecot.complaints(), Vec::<String>::new());
        assert!(!world.gatepost.log().contains("not obeyed"), "{}", world.gatepost.log());
    }
}

#[test]
fn a_rule_delays_a_login_by_its_time() {
    let slow =
        "count = \"failures\"\nper = \"login\"\nlimit = 2\naction = \"delay\"\ndelay = \"3s\"";
    for home in HOMES {
        let world = World::start(home, &[("slow", slow)], "");
        let timed = |name: &str| {
            let start = now();
            let reply = world.login(name, RIGHT);
            assert!(reply.starts_with("a OK"), "{home:?}: {reply}: {}", world.dovecot.log());
            start.elapsed()
        };
        for password in ["wrong", "wronger"] {
            world.login("fry", password);
        }
        world.wait_until_asked(2, 2);

        let (slowly, quickly) = (timed("fry"), timed("leela"));

        assert!(slowly >= Duration::from_secs(3), "{home:?}: {slowly:?}");
        assert!(quickly < Duration::from_millis(2900), "{home:?}: {quickly:?}");
        assert!(world.gatepost.log().contains("the auth policy holds a login back"));
        assert!(world.gatepost.metric("gatepost_throttle_total", &["rule=\"slow\""]) > 0.5);
    }
}

#[test]
fn a_rule_refuses_a_login_and_the_person_hears_why() {
    for home in HOMES {
        let world = World::start(home, &[("login", BY_LOGIN)], "");
        for password in ["wrong", "wronger", "wrongest"] {
            let reply = world.login("fry", password);
            assert!(reply.starts_with("a NO [AUTHENTICATIONFAILED]"), "{home:?}: {reply}");
        }
        world.wait_until_asked(3, 3);

        for _ in 0..2 {
            let reply = world.login("fry", RIGHT);
            assert!(reply.starts_with(TOO_MANY), "{home:?}: {reply}: {}", world.dovecot.log());
        }
        let other = world.login("leela", RIGHT);

        assert!(other.starts_with("a OK"), "{home:?}: {other}");
        world.wait_until_asked(7, 6);
        let fry = json!({ "login": person("fry") });
        assert_eq!(world.count("login", &fry), 3, "{home:?}: what the policy refused counts too");
        world.command("POST", "reset", &fry);
        let reply = world.login("fry", RIGHT);
        assert!(reply.starts_with("a OK"), "{home:?}: {reply}");
    }
}

#[test]
fn a_list_refuses_a_login_until_the_entry_is_taken_out() {
    for home in HOMES {
        let world = World::start(home, &[], "");
        let mut entry = json!({ "netmask": "127.0.77.0/28" });
        let key = entry.clone();
        entry["expire_secs"] = json!(600);
        entry["reason"] = json!("secret-reason");
        assert_eq!(world.command("POST", "addBLEntry", &entry), json!({ "status": "ok" }));

        let (inside, outside) =
            (world.login_from(3, "fry", RIGHT), world.login_from(17, "fry", RIGHT));

        assert!(inside.starts_with("a NO [ALERT] Login is not allowed here"), "{home:?}: {inside}");
        assert!(outside.starts_with("a OK"), "{home:?}: {outside}");
        world.command("POST", "delBLEntry", &key);
        let reply = world.login_from(3, "fry", RIGHT);
        assert!(reply.starts_with("a OK"), "{home:?}: {reply}");
    }
}

/// 2.3 does not say why a login failed: there each counts.
#[test]
fn a_report_counts_by_what_came_of_the_login() {
    for home in HOMES {
        let world = World::start(home, &[("login", BY_LOGIN), ("ip", BY_IP)], "");
        let is_newer = home == Home::Trixie;
        let people = [
            ("nobody", "wrong", (1, 1)),
            ("amy", "wrong", (1, 1)),
            ("disabled", RIGHT, if is_newer { (0, 1) } else { (1, 1) }),
            ("expired", RIGHT, if is_newer { (0, 0) } else { (1, 1) }),
            ("broken", RIGHT, if is_newer { (0, 0) } else { (1, 1) }),
            ("fry", RIGHT, (0, 0)),
        ];
        for (number, (name, password, counted)) in (1..).zip(people) {
            let told = world.asked().1;
            let reply = world.login_from(number, name, password);
            assert_eq!(reply.starts_with("a OK"), name == "fry", "{home:?} {name}: {reply}");
            wait_until("Dovecot has told", Duration::from_secs(10), || world.asked().1 > told);

            let by_login = world.count("login", &json!({ "login": person(name) }));
            let by_ip = world.count("ip", &json!({ "ip": client(number).to_string() }));

            assert_eq!((by_login, by_ip), counted, "{home:?} {name}");
        }
    }
}

/// What a client says of itself is told to the policy too, and must not keep it from being asked.
#[test]
fn a_client_with_an_odd_name_does_not_get_past_the_policy() {
    for home in HOMES {
        let world = World::start(home, &[("login", BY_LOGIN)], "");
        let odd: [&[u8]; 4] =
            [b"a\xff\xfe\x80", b"\xed\xa0\x80", b"\\u0000 \" \x01 \x7f", b"\xf4\x90\x80\x80"];
        for (number, id) in (0_u8..).zip(odd) {
            let place = (client(number + 1), world.dovecot.imap);
            imap_login_as(place, id, (&person("fry"), &format!("wrong{number}")));
        }
        wait_until("Dovecot has told", Duration::from_secs(10), || world.asked().1 >= 4);

        for (number, id) in (0_u8..).zip(odd) {
            let place = (client(number + 1), world.dovecot.imap);
            let reply = imap_login_as(place, id, (&person("fry"), RIGHT));
            assert!(reply.starts_with(TOO_MANY), "{home:?} {}: {reply}", id.escape_ascii());
        }
        assert!(!world.gatepost.log().contains("not obeyed"), "{}", world.gatepost.log());
    }
}

#[test]
fn without_gatepost_people_log_in_or_not_as_dovecot_is_told() {
    for home in HOMES {
        for (lines, start) in
            [("", "a OK"), ("auth_policy_reject_on_fail = yes\n", "a NO [AUTHENTICATIONFAILED]")]
        {
            let mut world = World::start(home, &[], lines);
            let reply = world.login("fry", RIGHT);
            assert!(reply.starts_with("a OK"), "{home:?}: {reply}: {}", world.dovecot.log());

            world.gatepost.stop();

            let reply = world.login("leela", RIGHT);
            assert!(reply.starts_with(start), "{home:?} {lines}: {reply}");
            wait_until("Dovecot says so", Duration::from_secs(10), || {
                let log = world.dovecot.log();
                log.contains("policy") && log.contains("Error: ")
            });
        }
    }
}

/// A door with another token is no answer: as if Gatepost were away.
#[test]
fn a_dovecot_with_a_wrong_token_is_told_so() {
    for home in HOMES {
        let lines = "auth_policy_server_api_header = X-API-Key: wrong\n";
        let world = World::start(home, &[], lines);

        let reply = world.login("fry", RIGHT);

        assert!(reply.starts_with("a OK"), "{home:?}: {reply}");
        wait_until("Dovecot says so", Duration::from_secs(10), || {
            world.dovecot.log().contains("401")
        });
        assert_eq!(world.asked(), (0, 0));
        assert!(world.gatepost.log().contains("a caller without the door's token"));
    }
}
