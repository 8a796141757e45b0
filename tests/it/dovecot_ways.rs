//! The ways into Dovecot beside the shim, each as its files in contrib show it: what mail programs and Dovecot's own tools
//! hear of every verdict.

use std::time::Duration;

use crate::support::clients::{imap_login, lmtp_deliver, pop3_login};
use crate::support::dovecot::{Dovecot, Home, Judge, Place};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::slapd::{LEAK_MARK, Slapd, Wish, mail_of, password_of};
use crate::support::{printed, wait_until};

struct World {
    // In the order in which they are to be stopped.
    dovecot: Dovecot,
    gatepost: Gatepost,
    slapd: Slapd,
}

impl World {
    /// leela's mailbox is disabled, amy's template allows neither IMAP nor POP3, bender must change the password; fry is
    /// like anybody. zoidberg, hermes and the professor were never here.
    fn start(home: Home, judge: impl FnOnce(u16) -> Judge) -> Self {
        let slapd = Slapd::with(Wish { ppolicy: true, ..Wish::default() });
        slapd.must_change("bender");
        let place = Place::new(home);
        let mut configuration = Configuration::new(&slapd).for_other_ways(&place);
        configuration.set(
            "template.intern",
            &format!(
                "protocols = [\"smtp\"]\nhome = {:?}\nuid = 5000\ngid = 5000",
                place.home_template()
            ),
        );
        configuration.set(
            "directory.planet.template.rule.intern",
            "value = \"intern\"\ntemplate = \"intern\"",
        );
        let judge = judge(configuration.web);
        let gatepost = configuration.start();
        assert_eq!(gatepost.login(&mail_of("leela"), &password_of("leela")).status, 200);
        let output = gatepost.run(&["mailbox", "disable", &mail_of("leela")], "");
        assert!(output.status.success(), "{}", printed(&output));
        Self { dovecot: Dovecot::start(place, judge), gatepost, slapd }
    }

    /// What IMAP and POP3 say, one line each.
    fn knock(&self, case: &str, uid: &str, password: &str) -> String {
        let name = mail_of(uid);
        let short = |reply: String| match reply.split(' ').next() {
            Some("+OK") => "+OK".to_owned(),
            _ if reply.starts_with("a OK ") => "a OK".to_owned(),
            _ => match reply.split_once("failure.") {
                // Host and time follow.
                Some((before, _)) => format!("{before}failure."),
                None => reply,
            },
        };
        let imap = short(imap_login(self.dovecot.imap, &name, password));
        let pop3 = short(pop3_login(self.dovecot.pop3, &name, password));
        format!("{case}\n  {imap}\n  {pop3}\n")
    }

    /// What every verdict becomes.
    fn verdicts(&mut self) -> String {
        let mut table = String::new();
        for (case, uid, password) in [
            ("right", "fry", password_of("fry")),
            ("wrong", "fry", "wrong".into()),
            ("unknown", "nobody", "wrong".into()),
            ("disabled", "leela", password_of("leela")),
            ("protocol not allowed", "amy", password_of("amy")),
            ("must change", "bender", password_of("bender")),
        ] {
            table += &self.knock(case, uid, &password);
        }
        self.slapd.stop();
        table += &self.knock("directory down", "zoidberg", &password_of("zoidberg"));
        self.slapd.start_again();
        self.back_to_normal("zoidberg");
        self.gatepost.store_away();
        table += &self.knock("store down", "hermes", &password_of("hermes"));
        table += &self.tool("look-up, store down", &["user", &mail_of("professor")]);
        let reply = lmtp_deliver(self.dovecot.lmtp, &mail_of("professor"), "hello");
        table += &format!("lmtp, store down: {}\n", reply.get(..3).unwrap_or_default());
        self.gatepost.store_back();
        self.back_to_normal("hermes");
        table
    }

    /// The outage is over: who was put off gets in, and was never refused.
    fn back_to_normal(&self, uid: &str) {
        wait_until("things are well again", Duration::from_secs(20), || {
            let answer = self.gatepost.login(&mail_of(uid), &password_of(uid));
            assert_ne!(answer.status, 403, "{answer:?}");
            answer.status == 200
        });
        let reply = imap_login(self.dovecot.imap, &mail_of(uid), &password_of(uid));
        assert!(reply.starts_with("a OK"), "{reply}: {}", self.dovecot.log());
    }

    /// The exit code of a command of Dovecot's.
    fn tool(&self, case: &str, arguments: &[&str]) -> String {
        let code = self.dovecot.doveadm(arguments).status.code();
        format!("{case}: {}\n", code.map_or("killed".into(), |code| code.to_string()))
    }

    fn auth_test(&self, uid: &str, password: &str, socket: Option<&str>) -> Vec<String> {
        let mut arguments = vec!["auth".to_owned(), "test".into()];
        arguments.extend(socket.into_iter().flat_map(|path| ["-a".to_owned(), path.to_owned()]));
        arguments.extend(["-x", "service=imap", "-x", "protocol=imap"].map(String::from));
        arguments.extend([mail_of(uid), password.to_owned()]);
        arguments
    }

    /// What Dovecot's own tools say. `socket`: where the tool asks, if not Dovecot's own auth process.
    fn tools(&self, socket: Option<&str>) -> String {
        let mut table = String::new();
        for (case, uid, password) in
            [("right", "fry", password_of("fry")), ("wrong", "fry", "wrong".into())]
        {
            let arguments = self.auth_test(uid, &password, socket);
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            table += &self.tool(&format!("auth test, {case}"), &arguments);
        }
        table += &self.tool("user", &["user", &mail_of("fry")]);
        table += &self.tool("user, unknown", &["user", &mail_of("nobody")]);
        table += &self.tool("all users", &["user", "*"]);
        table += &self.tool("-A", &["mailbox", "list", "-A"]);
        table += &self.tool("auth lookup", &["auth", "lookup", &mail_of("fry")]);
        for (case, uid) in [("", "fry"), (", disabled", "leela"), (", unknown", "nobody")] {
            let reply = lmtp_deliver(self.dovecot.lmtp, &mail_of(uid), "hello");
            table += &format!("lmtp{case}: {}\n", reply.get(..3).unwrap_or_default());
        }
        table
    }

    fn check(mut self, socket: Option<&str>, expected: &[&str]) {
        let answers = self.verdicts() + &self.tools(socket);
        assert_eq!(answers, expected.concat(), "{}", self.dovecot.log());
        self.lives_where_gatepost_says();
        assert!(!self.dovecot.log().contains(LEAK_MARK), "a password is in Dovecot's log");
    }

    /// home, uid and gid are those of the mailbox, and a list has it in.
    fn lives_where_gatepost_says(&self) {
        let user = printed(&self.dovecot.doveadm(&["user", &mail_of("fry")]));
        for field in ["uid\t5000", "gid\t5000", "planetexpress.com/fry", "1073741824"] {
            assert!(user.contains(field), "{field} is not in {user}");
        }
    }
}

const REFUSED: &str = "right
  a OK
  +OK
wrong
  a NO [AUTHENTICATIONFAILED] Authentication failed.
  -ERR [AUTH] Authentication failed.
unknown
  a NO [AUTHENTICATIONFAILED] Authentication failed.
  -ERR [AUTH] Authentication failed.
";

const DISABLED_SILENTLY: &str = "disabled
  a NO [AUTHENTICATIONFAILED] Authentication failed.
  -ERR [AUTH] Authentication failed.
protocol not allowed
  a NO [AUTHENTICATIONFAILED] Authentication failed.
  -ERR [AUTH] Authentication failed.
";

const DISABLED: &str = "disabled
  a NO [ALERT] This mailbox is disabled
  -ERR [AUTH] This mailbox is disabled
protocol not allowed
  a NO [ALERT] This account may not use this protocol
  -ERR [AUTH] This account may not use this protocol
";

const MUST_CHANGE_SILENTLY: &str = "must change
  a NO [AUTHENTICATIONFAILED] Authentication failed.
  -ERR [AUTH] Authentication failed.
";

const MUST_CHANGE_BY_LUA: &str = "must change
  a NO [EXPIRED] Password expired
  -ERR [AUTH] Password expired
";

const MUST_CHANGE: &str = "must change
  a NO [EXPIRED] Authentication failed.
  -ERR [AUTH] Authentication failed.
";

const LATER: &str = "directory down
  a NO [UNAVAILABLE] Temporary authentication failure.
  -ERR [SYS/TEMP] Temporary authentication failure.
store down
  a NO [UNAVAILABLE] Temporary authentication failure.
  -ERR [SYS/TEMP] Temporary authentication failure.
look-up, store down: 75
lmtp, store down: 451
auth test, right: 0
auth test, wrong: 77
user: 0
user, unknown: 67
";

const LISTS: &str = "all users: 0\n-A: 0\n";
const NO_LISTS: &str = "all users: 75\n-A: 75\n";

const DELIVERY: &str = "lmtp: 250\nlmtp, disabled: 250\nlmtp, unknown: 550\n";

/// Both versions hear from the Lua script what it was told.
const BY_LUA: &[&str] =
    &[REFUSED, DISABLED_SILENTLY, MUST_CHANGE_BY_LUA, LATER, LISTS, "auth lookup: 0\n", DELIVERY];

const BY_SOCKETS: &[&str] =
    &[REFUSED, DISABLED, MUST_CHANGE, LATER, LISTS, "auth lookup: 0\n", DELIVERY];

#[test]
fn every_verdict_by_lua_on_2_3() {
    World::start(Home::Host, Judge::Lua).check(None, BY_LUA);
}

#[test]
fn every_verdict_by_lua_on_2_4() {
    World::start(Home::Trixie, Judge::Lua).check(None, BY_LUA);
}

#[test]
fn every_verdict_by_dict() {
    World::start(Home::Host, |_| Judge::Dict).check(
        None,
        &[
            REFUSED,
            DISABLED_SILENTLY,
            MUST_CHANGE_SILENTLY,
            LATER,
            LISTS,
            "auth lookup: 0\n",
            DELIVERY,
        ],
    );
}

/// There is no list by this way.
#[test]
fn every_verdict_by_checkpassword() {
    World::start(Home::Host, |_| Judge::Checkpassword).check(
        None,
        &[
            REFUSED,
            DISABLED_SILENTLY,
            MUST_CHANGE_SILENTLY,
            LATER,
            NO_LISTS,
            "auth lookup: 0\n",
            DELIVERY,
        ],
    );
}

#[test]
fn every_verdict_by_sockets_of_ours() {
    for home in [Home::Host, Home::Trixie] {
        let world = World::start(home, |_| Judge::Sockets);
        let socket = world.dovecot.place.inner("dovecot-login");
        world.check(Some(&socket), BY_SOCKETS);
    }
}
