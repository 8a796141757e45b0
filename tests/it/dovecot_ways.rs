//! The ways into Dovecot beside the shim, each as its files in contrib show it: what mail programs and Dovecot's own tools
//! hear of every verdict, and what passes through them unharmed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::support::answers::{self, State};
use crate::support::clients::{
    AuthClient, Wire, imap_login, imap_plain, lmtp_deliver, pop3_login, sieve_login, smtp_login,
};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::slapd::{LEAK_MARK, Slapd, mail_of, password_of};
use crate::support::{printed, program, run, wait_until};

/// Bytes that some way might take for its own: JSON, keys, percent-encoding, fields; and some that are no UTF-8.
const ODD_PASSWORD: &[u8] = b"p\xe4ss \"\\/%41$&=+,:{}\x7f\xff-Tr0ub4dor";

struct World {
    // In the order in which they are to be stopped.
    dovecot: Dovecot,
    gatepost: Gatepost,
    slapd: Slapd,
    judge: Judge,
}

impl World {
    fn start(home: Home, judge: impl FnOnce(u16) -> Judge) -> Self {
        let slapd = answers::directory();
        let place = Place::new(home);
        let mut configuration = Configuration::new(&slapd).for_other_ways(&place);
        answers::configure(&mut configuration);
        let judge = judge(configuration.web);
        let gatepost = configuration.start();
        Self { dovecot: Dovecot::start(place, judge), gatepost, slapd, judge }
    }

    fn check(mut self, section: &str) {
        self.every_verdict(section);
        self.tools_show_mailboxes();
        self.who_may_not_log_in_is_not_let_in_by_another_passdb();
        self.odd_passwords_come_through();
        assert!(!self.dovecot.log().contains(LEAK_MARK), "a password is in Dovecot's log");
    }

    fn every_verdict(&mut self, section: &str) {
        let (dovecot, judge) = (&self.dovecot, self.judge);
        let answers = answers::go_through(&mut self.slapd, &self.gatepost, |_, name, password| {
            let mut heard = vec![
                ("imap", imap_login(dovecot.imap, name, password)),
                ("pop3", pop3_login(dovecot.pop3, name, password)),
                ("submission", smtp_login(dovecot.submission, name, password)),
                ("lmtp (mail for them)", lmtp_deliver(dovecot.lmtp, name, "hello")),
                (
                    "doveadm auth test",
                    first_line(dovecot, &auth_test(dovecot, judge, name, password)),
                ),
                ("doveadm user", first_line(dovecot, &["user".to_owned(), name.to_owned()])),
            ];
            if judge != Judge::Sockets {
                heard.push(("managesieve", sieve_login(dovecot.sieve, name, password)));
            }
            heard.into_iter().map(|(client, answer)| (client.to_owned(), answer)).collect()
        });
        for state in [State::StoreDown, State::DirectoryDown] {
            assert!(answers.of("imap", state).starts_with("a NO [UNAVAILABLE]"), "{state:?}");
            assert!(answers.of("pop3", state).starts_with("-ERR [SYS/TEMP]"), "{state:?}");
            assert!(answers.of("submission", state).starts_with("454"), "{state:?}");
        }
        assert!(answers.of("doveadm user", State::StoreDown).starts_with("exit 75"));
        assert!(answers.of("lmtp (mail for them)", State::StoreDown).starts_with("451"));
        answers.check(section);
    }

    /// home, uid, gid and quota are those of the mailbox; a list has everybody in, where there are lists.
    fn tools_show_mailboxes(&self) {
        let run = |arguments: &[&str]| {
            let output = self.dovecot.doveadm(arguments);
            assert!(output.status.success(), "doveadm {arguments:?}: {}", printed(&output));
            printed(&output)
        };
        let name = mail_of("fry");
        let user = run(&["user", &name]);
        for field in ["uid\t5000", "gid\t5000", "planetexpress.com/fry", "1073741824"] {
            assert!(user.contains(field), "{field} is not in {user}");
        }
        assert!(run(&["auth", "lookup", &name]).contains(&name));
        if self.judge == Judge::Checkpassword {
            assert_eq!(self.dovecot.doveadm(&["user", "*"]).status.code(), Some(75));
            return;
        }
        for list in [run(&["user", "*"]), run(&["mailbox", "list", "-A"])] {
            for uid in ["fry", "leela"] {
                assert!(list.contains(&mail_of(uid)), "{list}");
            }
        }
    }

    /// After a login that Gatepost did not judge (Kerberos, another passdb), Dovecot asks these two without a password.
    fn who_may_not_log_in_is_not_let_in_by_another_passdb(&self) {
        for (state, imap, lmtp) in
            [(State::Right, 0, 0), (State::Disabled, 67, 0), (State::Protocol, 67, 0)]
        {
            let (name, _) = state.person();
            for (service, code) in [("imap", imap), ("lmtp", lmtp), ("doveadm", 0)] {
                let service = format!("service={service}");
                for command in [&["user"][..], &["auth", "lookup"]] {
                    let output =
                        self.dovecot.doveadm(&[command, &["-x", &service, &name]].concat());
                    assert_eq!(
                        output.status.code(),
                        Some(code),
                        "{:?}, {command:?} {service} {name}: {}",
                        self.judge,
                        printed(&output)
                    );
                }
            }
        }
    }

    fn odd_passwords_come_through(&self) {
        let (port, name) = (self.dovecot.imap, mail_of("fry"));
        self.slapd.set_raw_password("fry", ODD_PASSWORD);
        self.slapd.set_attribute("fry", "pwdReset", "FALSE");
        let login = |password: &[u8]| imap_plain(port, name.as_bytes(), password);

        wait_until("the directory is asked again", Duration::from_secs(20), || {
            let zoidberg = (mail_of("zoidberg"), password_of("zoidberg"));
            self.gatepost.login(&zoidberg.0, &zoidberg.1).status == 200
        });
        let right = login(ODD_PASSWORD);
        assert!(right.starts_with("a OK"), "{right}: {}", self.dovecot.log());
        let cut = login(ODD_PASSWORD.get(..4).unwrap());
        assert!(cut.starts_with("a NO [AUTHENTICATIONFAILED]"), "{cut}");
        for empty in [login(b""), imap_login(port, &name, "")] {
            assert!(empty.starts_with("a NO [AUTHENTICATIONFAILED]"), "{empty}");
        }
        let empty = auth_test(&self.dovecot, self.judge, &name, "");
        let empty = first_line(&self.dovecot, &empty);
        assert!(empty.starts_with("exit 77"), "{empty}: {}", self.dovecot.log());
        assert!(!self.dovecot.log().contains("status 400"), "{}", self.dovecot.log());
    }
}

fn first_line(dovecot: &Dovecot, arguments: &[String]) -> String {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let output = dovecot.doveadm(&arguments);
    let code = output.status.code().unwrap_or(-1);
    let printed = printed(&output);
    let mut lines = printed.lines().filter(|line| !line.trim().is_empty());
    let first = lines.find(|line| !line.starts_with("field")).unwrap_or_default();
    format!("exit {code}: {first}")
}

fn auth_test(dovecot: &Dovecot, judge: Judge, name: &str, password: &str) -> Vec<String> {
    let socket = dovecot.place.inner("dovecot-login");
    let mut arguments = vec!["auth", "test", "-x", "service=imap"];
    if judge == Judge::Sockets {
        arguments.extend(["-a", &socket]);
    }
    arguments.into_iter().chain([name, password]).map(str::to_owned).collect()
}

#[test]
fn by_lua_on_2_3_every_verdict_is_heard() {
    World::start(Home::Bookworm, Judge::Lua).check("Dovecot 2.3, Lua script");
}

#[test]
fn by_lua_on_2_4_every_verdict_is_heard() {
    World::start(Home::Trixie, Judge::Lua).check("Dovecot 2.4, Lua script");
}

#[test]
fn by_dict_every_verdict_is_heard() {
    World::start(Home::Bookworm, |_| Judge::Dict).check("Dovecot 2.3, dict");
}

#[test]
fn by_checkpassword_every_verdict_is_heard() {
    World::start(Home::Bookworm, |_| Judge::Checkpassword).check("Dovecot 2.3, checkpassword");
}

#[test]
fn by_sockets_of_ours_on_2_3_every_verdict_is_heard() {
    World::start(Home::Bookworm, |_| Judge::Sockets)
        .check("Dovecot 2.3, sockets of Gatepost's own");
}

#[test]
fn by_sockets_of_ours_on_2_4_every_verdict_is_heard() {
    World::start(Home::Trixie, |_| Judge::Sockets).check("Dovecot 2.4, sockets of Gatepost's own");
}

/// A door that is not what the script expects must not look like "no such user".
#[test]
fn by_lua_a_door_without_look_ups_is_a_failure() {
    let slapd = answers::directory();
    let place = Place::new(Home::Bookworm);
    let mut configuration = Configuration::new(&slapd).for_other_ways(&place);
    configuration.change("listen.web", "serve", "[\"login\", \"health\"]");
    let judge = Judge::Lua(configuration.web);
    let _gatepost = configuration.start();
    let dovecot = Dovecot::start(place, judge);

    assert_eq!(dovecot.doveadm(&["user", &mail_of("fry")]).status.code(), Some(75));
    assert_eq!(dovecot.doveadm(&["user", "*"]).status.code(), Some(75));
    let reply = lmtp_deliver(dovecot.lmtp, &mail_of("fry"), "hello");
    assert!(reply.starts_with("451"), "{reply}");
}

/// What the script got wrong itself is nobody's wrong password.
#[test]
fn by_lua_a_request_that_gatepost_cannot_read_is_a_failure_that_is_logged() {
    for home in [Home::Bookworm, Home::Trixie] {
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let judge = Judge::Lua(door.local_addr().unwrap().port());
        std::thread::spawn(move || {
            for stream in door.incoming() {
                let mut stream = stream.unwrap();
                // The request is small: it comes in one piece.
                drop(stream.read(&mut [0; 4096]));
                let answer =
                    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                drop(stream.write_all(answer));
            }
        });
        let dovecot = Dovecot::start(Place::new(home), judge);

        let reply = imap_login(dovecot.imap, &mail_of("fry"), &password_of("fry"));

        assert!(reply.starts_with("a NO [UNAVAILABLE]"), "{home:?}: {reply}");
        assert!(dovecot.log().contains("gatepost: status 400"), "{}", dovecot.log());
    }
}

/// While the daemon is not there at all, everybody hears "later", by every way.
#[test]
fn without_the_daemon_everybody_hears_later() {
    let ways: [fn(u16) -> Judge; 4] =
        [Judge::Lua, |_| Judge::Dict, |_| Judge::Checkpassword, |_| Judge::Sockets];
    for way in ways {
        let mut world = World::start(Home::Bookworm, way);
        let (name, password) = (mail_of("fry"), password_of("fry"));
        let reply = imap_login(world.dovecot.imap, &name, &password);
        assert!(reply.starts_with("a OK"), "{:?}: {reply}", world.judge);

        world.gatepost.stop();

        assert_eq!(
            world.dovecot.doveadm(&["user", &name]).status.code(),
            Some(75),
            "{:?}",
            world.judge
        );
        if world.judge != Judge::Sockets {
            let reply = imap_login(world.dovecot.imap, &name, &password);
            assert!(reply.starts_with("a NO [UNAVAILABLE]"), "{:?}: {reply}", world.judge);
        }
    }
}

#[test]
fn the_scripts_for_pasting_can_be_read() {
    let path = |name: &str| format!("{}/contrib/{name}", env!("CARGO_MANIFEST_DIR"));
    run(program("luac5.4", "lua5.4").args(["-p", &path("dovecot-lua/gatepost.lua")]));
    run(program("shellcheck", "shellcheck").arg(path("checkpassword/qmail-pop3d")));
}

/// One connection to a master socket: what it says to these commands, up to the end or as many lines as expected.
fn master(socket: &Path, commands: &str, lines: usize) -> Vec<String> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("VERSION\t1\t1\n{commands}").as_bytes()).unwrap();
    let reader = BufReader::new(stream);
    // The handshake comes first. A server that closes with something unread resets the connection.
    reader.lines().map_while(Result::ok).skip(2).take(lines).collect()
}

#[test]
fn a_login_on_a_socket_of_ours_is_claimed_once_and_only_where_not_everybody_may_ask() {
    let slapd = Slapd::start();
    let place = Place::new(Home::Bookworm);
    let mut configuration = Configuration::new(&slapd).for_other_ways(&place);
    let (private, open) = (place.path("dovecot-master"), place.path("open"));
    configuration.set(
        "listen.open",
        &format!("protocol = \"dovecot-master\"\npath = {open:?}\nmode = \"0666\""),
    );
    let _gatepost = configuration.start();
    let login = place.path("dovecot-login");
    let mut client = AuthClient::connect(Wire::Unix(&login), 2);
    let cookie = client.greeting.iter().find_map(|line| line.strip_prefix("COOKIE\t")).unwrap();
    let (cookie, wrong) = (cookie.to_owned(), "0".repeat(32));
    let (name, pid) = (mail_of("fry"), std::process::id());
    for (id, fields) in [(1, "service=imap"), (2, "service=imap\tnologin")] {
        client.ask(id, fields, &name, password_of("fry"));
        assert_eq!(client.answer(), format!("OK\t{id}\tuser={name}"));
    }
    let claim = |id: u32, cookie: &str, login: u32| {
        format!("REQUEST\t{id}\t{pid}\t{login}\t{cookie}\tsession_pid={pid}\n")
    };

    let closed = master(&open, &claim(9, &cookie, 1), 1);
    let asked =
        [claim(10, &wrong, 1), claim(11, &cookie, 1), claim(12, &cookie, 1), claim(13, &cookie, 2)];
    let answers = master(&private, &asked.concat(), 4);

    assert_eq!(closed, Vec::<String>::new(), "a socket of everybody's let a login be claimed");
    assert_eq!(answers[0], "FAIL\t10\treason=No such login");
    assert!(answers[1].starts_with(&format!("USER\t11\t{name}\tuid=5000")), "{answers:?}");
    assert_eq!(answers[2], "FAIL\t12\treason=No such login");
    assert_eq!(answers[3], "FAIL\t13\treason=No such login", "nologin was kept");
}
