//! Every door in every outage: whoever memory does not know hears "later" in that door's own words and in time, right
//! password or wrong; whoever is remembered gets in. docs/protocols/outages.md is what was heard.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use aes::Aes256;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockEncryptMut, KeyIvInit};
use serde_json::json;

use crate::checkpassword::{self, given};
use crate::support::answers::{cell, check_page, normal};
use crate::support::clients::{
    AuthClient, Wire, exchange, imap_login, pop3_login, sieve_login, smtp_login,
};
use crate::support::dovecot::{Dovecot, Home, Judge, Place, dict_key};
use crate::support::gatepost::{Configuration, Gatepost};
use crate::support::ldap_proxy::{Fault, LdapProxy, Speaks};
use crate::support::postfix::{self, Postfix};
use crate::support::slapd::{Slapd, Wish, mail_of, password_of};
use crate::support::{Running, free_port, now, program, wait_until};

/// `login.deadline` here. Times of the directory are shorter.
const DEADLINE: Duration = Duration::from_secs(3);

/// The deadline, and what mail servers and a busy machine add to it.
const LIMIT: Duration = Duration::from_secs(3 + 4);

/// The page with what was heard.
const PAGE: &str = "docs/protocols/outages.md";

/// Where passwords are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Door {
    Imap,
    Pop3,
    Sieve,
    Submission,
    Smtp,
    Auth,
    AuthOfPostfix,
    AuthOverTcp,
    Saslauthd,
    Checkpassword,
    Dict,
    Http,
    Mailcow,
    Nauthilus,
    Nginx,
    ForwardAuth,
}

/// What a door says, as its beginning; an empty text is a connection that ends without a word.
struct Words {
    accepted: &'static str,
    refused: &'static str,
    later: &'static str,
}

impl Door {
    pub(crate) const ALL: [Self; 16] = [
        Self::Imap,
        Self::Pop3,
        Self::Sieve,
        Self::Submission,
        Self::Smtp,
        Self::Auth,
        Self::AuthOfPostfix,
        Self::AuthOverTcp,
        Self::Saslauthd,
        Self::Checkpassword,
        Self::Dict,
        Self::Http,
        Self::Mailcow,
        Self::Nauthilus,
        Self::Nginx,
        Self::ForwardAuth,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Imap => "Dovecot, IMAP",
            Self::Pop3 => "Dovecot, POP3",
            Self::Sieve => "Dovecot, ManageSieve",
            Self::Submission => "Dovecot, submission",
            Self::Smtp => "Postfix by dovecot-auth",
            Self::Auth => "dovecot-auth, as Dovecot 2.3",
            Self::AuthOfPostfix => "dovecot-auth, as Postfix and Exim",
            Self::AuthOverTcp => "dovecot-auth over TCP",
            Self::Saslauthd => "saslauthd",
            Self::Checkpassword => "checkpassword",
            Self::Dict => "dovecot-dict",
            Self::Http => "HTTP, `/v1/login`",
            Self::Mailcow => "HTTP, mailcow",
            Self::Nauthilus => "HTTP, Nauthilus",
            Self::Nginx => "HTTP, nginx mail",
            Self::ForwardAuth => "HTTP, forward authentication",
        }
    }

    fn words(self) -> Words {
        let words = |accepted, refused, later| Words { accepted, refused, later };
        match self {
            Self::Imap => words("a OK", "a NO [AUTHENTICATIONFAILED]", "a NO [UNAVAILABLE]"),
            Self::Pop3 => words("+OK", "-ERR [AUTH]", "-ERR [SYS/TEMP]"),
            Self::Sieve => words("OK", "NO \"Authentication failed", "NO (TRYLATER)"),
            Self::Submission => words("235", "535", "454 4.7.0"),
            Self::Smtp => words("235", "535", "454 4.7.0"),
            Self::Auth | Self::AuthOverTcp => {
                words("OK\t1", "FAIL\t1\tuser=…", "FAIL\t1\tuser=…\tcode=temp_fail")
            }
            Self::AuthOfPostfix => words("OK\t1", "FAIL\t1\tuser=…", ""),
            Self::Saslauthd => words("OK", "NO", ""),
            Self::Checkpassword => words("exit 0", "exit 1", "exit 111"),
            Self::Dict => words("O{\"nopassword\"", "O{\"password\":\"{PLAIN}", "F"),
            Self::Http => words("200", "403", "503"),
            Self::Mailcow => words("200", "401", ""),
            Self::Nauthilus => words("200 OK", "403", "500 Temporary server problem"),
            Self::Nginx => words(
                "OK",
                "[AUTHENTICATIONFAILED]",
                "[UNAVAILABLE] Temporary authentication failure.",
            ),
            Self::ForwardAuth => words("200", "401", "503"),
        }
    }

    /// A client's net of its own for each door that is told one: what is charged to one net hurts no other door.
    fn client(self) -> String {
        format!("198.51.{}.7", Self::ALL.iter().position(|door| *door == self).unwrap())
    }

    pub(crate) fn heard(self, answer: &str) -> Heard {
        let Words { accepted, refused, later } = self.words();
        let is =
            |word: &str| if word.is_empty() { answer.is_empty() } else { answer.starts_with(word) };
        // "Later" first: it may begin as a refusal does.
        match answer {
            _ if is(later) => Heard::Later,
            _ if is(accepted) => Heard::In,
            _ if is(refused) => Heard::Refused,
            _ => Heard::Odd,
        }
    }
}

/// What a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    In,
    Refused,
    Later,
    /// Nothing that a client of this door would understand.
    Odd,
}

impl Heard {
    fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Refused => "refused",
            Self::Later => "later",
            Self::Odd => "odd",
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// The database's file is gone.
    StoreGone,
    /// Another process has the database locked for writing.
    StoreLocked,
    Directory(Fault),
}

impl Trouble {
    /// The store first: afterwards the look-ups know everybody.
    const ALL: [Self; 16] = [
        Self::StoreGone,
        Self::StoreLocked,
        Self::Directory(Fault::Refused),
        Self::Directory(Fault::Hung),
        Self::Directory(Fault::HungPeople),
        Self::Directory(Fault::Delayed(Duration::from_secs(3))),
        Self::Directory(Fault::Cut),
        Self::Directory(Fault::Dropped),
        Self::Directory(Fault::Reset),
        Self::Directory(Fault::Coded(51)),
        Self::Directory(Fault::CodedBinds(51)),
        Self::Directory(Fault::Coded(52)),
        Self::Directory(Fault::Garbage),
        Self::Directory(Fault::Oversized),
        Self::Directory(Fault::Trickling),
        Self::Directory(Fault::BadCertificate),
    ];

    fn title(self) -> &'static str {
        match self {
            Self::StoreGone => "store: file gone",
            Self::StoreLocked => "store: locked by another process",
            Self::Directory(fault) => match fault {
                Fault::Nothing => "nothing",
                Fault::Refused => "directory: port closed",
                Fault::Hung => "directory: hangs",
                Fault::HungPeople => "directory: hangs at people's binds alone",
                Fault::Delayed(_) => "directory: answers after the time limit",
                Fault::Cut => "directory: ends in the middle of an answer",
                Fault::Dropped => "directory: dies with the question",
                Fault::Reset => "directory: connection reset",
                Fault::Coded(52) => "directory: unavailable (52)",
                Fault::Coded(_) => "directory: busy (51)",
                Fault::CodedBinds(_) => "directory: busy (51) to binds alone",
                Fault::Garbage => "directory: something else than LDAP",
                Fault::Oversized => "directory: an answer of 2 GiB is announced",
                Fault::Trickling => "directory: a byte in 100 ms",
                Fault::BadCertificate => "directory: certificate of a stranger",
            },
        }
    }

    /// Truth: right and wrong password of somebody whom memory does not know.
    fn expected(self) -> (Heard, Heard) {
        match self {
            // The directory is there: a wrong password is one. A mailbox cannot be made.
            Self::StoreLocked => (Heard::Later, Heard::Refused),
            _ => (Heard::Later, Heard::Later),
        }
    }
}

pub(crate) struct World {
    // In the order in which they are to be stopped.
    postfix: Postfix,
    dovecot: Dovecot,
    pub(crate) gatepost: Gatepost,
    proxy: LdapProxy,
    nginx: u16,
    mailcow: u16,
    pub(crate) slapd: Slapd,
}

/// Whoever remembers to look somebody up: a mailbox that memory has not seen for each.
const LOOK_UPS: [(&str, &str, &str); 5] = [
    ("socketmap", "OK ", "TEMP "),
    ("postfix-policy", "action=DUNNO", "action=DEFER_IF_PERMIT"),
    ("dovecot-master, userdb", "USER\t1", "FAIL\t1"),
    ("dovecot-dict, userdb", "O{", "F"),
    ("HTTP, `/v1/lookup`", "200", "503"),
];

/// Somebody of a group, for each door another.
fn somebody(group: usize, number: usize) -> String {
    format!("recruit{:02}", group * 20 + number + 1)
}

const RIGHT: usize = 0;
const WRONG: usize = 1;
/// Their wrong passwords may become known as wrong.
const KNOWN_WRONG: usize = 2;
const LOOKED_UP: usize = 3;
const RECOVERED: usize = 4;
/// Their mailboxes may be made when the trouble is over: a login that was put off goes on behind the scenes.
const MADE_LATER: usize = 5;

impl World {
    pub(crate) fn start() -> Self {
        let slapd = Slapd::with(Wish { recruits: 120, ..Wish::default() });
        let proxy = LdapProxy::start(&slapd, Speaks::Tls);
        let (place, queue) = (Place::new(Home::Bookworm), postfix::Place::new(Home::Bookworm));
        let mut configuration = Configuration::new(&slapd).for_dovecot(&place).for_postfix(&queue);
        let (nginx, mailcow) = doors(&mut configuration);
        configuration.change("login", "deadline", &format!("\"{}s\"", DEADLINE.as_secs()));
        let ca_file = slapd.ca_file();
        for (key, value) in [
            ("port", proxy.port.to_string()),
            ("tls", "\"ldaps\"".to_owned()),
            ("ca_file", format!("{ca_file:?}")),
            ("connect_timeout", "\"1s\"".to_owned()),
            ("timeout", "\"1s\"".to_owned()),
        ] {
            configuration.change("directory.planet", key, &value);
        }
        let mut gatepost = configuration.start();
        for number in 0..LOOK_UPS.len() {
            let uid = somebody(LOOKED_UP, number);
            assert_eq!(gatepost.login(&mail_of(&uid), &password_of(&uid)).status, 200);
        }
        // Memory goes with it.
        gatepost.stop();
        gatepost.start_again();
        let postfix = Postfix::by_socket(queue);
        let dovecot = Dovecot::start(place, Judge::Gatepost);
        Self { postfix, dovecot, gatepost, proxy, nginx, mailcow, slapd }
    }

    /// What a door says to a login.
    pub(crate) fn knock(&self, door: Door, name: &str, password: &str) -> String {
        let client = door.client();
        let configuration = &self.gatepost.configuration;
        let auth = |wire: Wire<'_>, minor: u32, fields: &str| {
            let fields = format!("{fields}\trip={client}");
            without_names(&AuthClient::connect(wire, minor).login(&fields, name, password))
        };
        let socket = configuration.auth_socket();
        match door {
            Door::Imap => imap_login(self.dovecot.imap, name, password),
            Door::Pop3 => pop3_login(self.dovecot.pop3, name, password),
            Door::Sieve => sieve_login(self.dovecot.sieve, name, password),
            Door::Submission => smtp_login(self.dovecot.submission, name, password),
            Door::Smtp => smtp_login(self.postfix.port, name, password),
            Door::Auth => auth(Wire::Unix(&socket), 2, "service=imap"),
            Door::AuthOfPostfix => auth(Wire::Unix(&socket), 0, "service=smtp\tnologin"),
            Door::AuthOverTcp => auth(Wire::Tcp(configuration.auth_port), 2, "service=imap"),
            Door::Saslauthd => saslauthd(&configuration.path("saslauthd"), name, password),
            Door::Checkpassword => {
                let path = configuration.path("checkpassword").display().to_string();
                let environment = [("SERVICE", "imap"), ("TCPREMOTEIP", &*client)];
                let next = [checkpassword::REPLY];
                let ended =
                    checkpassword::start(&path, &given(name, password), &environment, &next);
                format!("exit {}", ended.code.unwrap_or(-1))
            }
            Door::Dict => {
                let key = format!("shared/passdb/imap/{client}/{}/{name}", encrypted(password));
                dict(&configuration.path("dict"), &key, name)
            }
            Door::Http => {
                let body = json!({
                    "username": name, "password": password, "service": "imap", "client_ip": client,
                });
                let body = body.to_string();
                self.http(configuration.web, "POST /v1/login", &[], &body).0
            }
            Door::Mailcow => {
                let body = json!({
                    "username": name, "password": password, "service": "imap", "real_rip": client,
                });
                self.http(self.mailcow, "POST /", &[], &body.to_string()).0
            }
            Door::Nauthilus => {
                let body = json!({
                    "username": name, "password": password, "protocol": "imap", "client_ip": client,
                });
                let path = "POST /api/v1/auth/json";
                let (status, head) = self.http(configuration.web, path, &[], &body.to_string());
                format!("{status} {}", field(&head, "auth-status"))
            }
            Door::Nginx => {
                let head = [
                    "Auth-Method: plain".to_owned(),
                    format!("Auth-User: {name}"),
                    format!("Auth-Pass: {password}"),
                    "Auth-Protocol: imap".to_owned(),
                    "Auth-Login-Attempt: 1".to_owned(),
                    format!("Client-IP: {client}"),
                ];
                field(&self.http(self.nginx, "GET /nginx", &head, "").1, "auth-status")
            }
            Door::ForwardAuth => {
                use base64::Engine as _;
                let basic =
                    base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
                let head =
                    [format!("Authorization: Basic {basic}"), format!("X-Forwarded-For: {client}")];
                self.http(configuration.web, "GET /forward-auth?service=imap", &head, "").0
            }
        }
    }

    /// One request; the status and the head of the answer.
    fn http(&self, port: u16, what: &str, fields: &[String], body: &str) -> (String, String) {
        let mut request = format!("{what} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for field in fields {
            write!(request, "{field}\r\n").unwrap();
        }
        write!(
            request,
            "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let answer = exchange(port, request.as_bytes(), Duration::from_secs(20));
        let (head, _) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).unwrap_or_default().to_owned(), head.to_owned())
    }

    /// What a look-up says of a mailbox.
    fn look_up(&self, number: usize, name: &str) -> String {
        let path = |name: &str| self.gatepost.configuration.path(name);
        match number {
            0 => {
                let question = format!("mailbox {name}");
                let question = format!("{}:{question},", question.len());
                let answer =
                    ask(&path("maps"), question.as_bytes(), |answer| answer.ends_with(','));
                answer.split_once(':').map_or(String::new(), |(_, text)| text.to_owned())
            }
            1 => {
                let question = format!(
                    "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nsender={name}\n\
                     recipient=joe@elsewhere.example\nsasl_method=PLAIN\nsasl_username={name}\n\n"
                );
                ask(&path("policy"), question.as_bytes(), |answer| answer.ends_with("\n\n"))
            }
            2 => {
                let question = format!("VERSION\t1\t1\nUSER\t1\t{name}\tservice=lmtp\n");
                let lines = |answer: &str| answer.matches('\n').count() == 3;
                let answer = ask(&path("master"), question.as_bytes(), lines);
                answer.lines().last().unwrap_or_default().to_owned()
            }
            3 => dict(&path("dict"), &format!("shared/userdb/{name}"), name),
            _ => {
                let what = format!("GET /v1/lookup/userdb/{name}");
                self.http(self.gatepost.configuration.web, &what, &[], "").0
            }
        }
    }

    /// Everything at once: at each door somebody new with the right password, somebody new with a wrong one, and fry,
    /// who is remembered.
    fn knock_everywhere(&self, right: usize, wrong: usize) -> Vec<(Door, [(String, Duration); 3])> {
        let timed = |door: Door, uid: &str, password: &str| {
            let begun = now();
            let heard = self.knock(door, &mail_of(uid), password);
            (heard, begun.elapsed())
        };
        let timed = &timed;
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..)
                .zip(Door::ALL)
                .map(|(number, door)| {
                    let (new, other) = (somebody(right, number), somebody(wrong, number));
                    let knocks = [
                        scope.spawn(move || timed(door, &new, &password_of(&new))),
                        scope.spawn(move || timed(door, &other, "wrong")),
                        scope.spawn(move || timed(door, "fry", &password_of("fry"))),
                    ];
                    (door, knocks)
                })
                .collect();
            all.into_iter()
                .map(|(door, knocks)| (door, knocks.map(|knock| knock.join().unwrap())))
                .collect()
        })
    }

    /// `Some`: what has to end with the trouble.
    fn begin(&self, trouble: Trouble) -> Option<Running> {
        match trouble {
            Trouble::StoreGone => self.gatepost.store_is_there(false),
            Trouble::StoreLocked => return Some(lock(&self.gatepost.configuration.database())),
            Trouble::Directory(fault) => self.proxy.set(fault),
        }
        None
    }

    /// The trouble is over: how long until somebody new gets in, who is refused at no time.
    fn end(&self, trouble: Trouble, locker: Option<Running>, number: usize) -> Duration {
        match trouble {
            Trouble::StoreGone => self.gatepost.store_is_there(true),
            Trouble::StoreLocked => drop(locker),
            Trouble::Directory(_) => self.proxy.set(Fault::Nothing),
        }
        let begun = now();
        let uid = somebody(RECOVERED, number);
        wait_until("somebody new gets in again", Duration::from_secs(20), || {
            let answer = self.gatepost.login(&mail_of(&uid), &password_of(&uid));
            assert_ne!(answer.status, 403, "{trouble:?}: {answer:?}");
            answer.status == 200
        });
        begun.elapsed()
    }
}

/// Further doors, beside those of Dovecot and Postfix; the ports of two for HTTP.
pub(crate) fn doors(configuration: &mut Configuration) -> (u16, u16) {
    for (door, protocol, more) in [
        ("saslauthd", "saslauthd", String::new()),
        ("checkpassword", "checkpassword", String::new()),
        ("dict", "dovecot-dict", format!("password_key = {:?}", dict_key())),
        ("maps", "socketmap", String::new()),
        ("policy", "postfix-policy", String::new()),
        ("master", "dovecot-master", String::new()),
    ] {
        let path = configuration.path(door);
        let body = format!("protocol = {protocol:?}\npath = {path:?}\nmode = \"0666\"\n{more}");
        configuration.set(&format!("listen.{door}"), &body);
    }
    let serve = "[\"login\", \"lookup\", \"nauthilus\", \"forward-auth\", \"health\", \"metrics\"]";
    configuration.change("listen.web", "serve", serve);
    let (nginx, mailcow) = (free_port(), free_port());
    let door = |port: u16, serve: &str, more: &str| {
        format!("protocol = \"http\"\naddress = \"127.0.0.1:{port}\"\nserve = [{serve:?}]\n{more}")
    };
    let upstream = "upstream = { imap = \"127.0.0.1:143\" }";
    configuration.set("listen.nginx", &door(nginx, "nginx", upstream));
    configuration.set("listen.mailcow", &door(mailcow, "mailcow", ""));
    (nginx, mailcow)
}

/// The value of a field of an HTTP answer.
fn field(head: &str, name: &str) -> String {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let mut values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
    values.next().map_or(String::new(), |(_, value)| value.to_owned())
}

/// Sends a question and reads until the answer is whole or the connection ends.
fn ask(socket: &Path, question: &[u8], is_whole: impl Fn(&str) -> bool) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(question).unwrap();
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    while !is_whole(&answer) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => answer += &String::from_utf8_lossy(&buffer[..length]),
        }
    }
    answer
}

/// saslauthd's protocol: four counted strings, and one back.
fn saslauthd(socket: &Path, name: &str, password: &str) -> String {
    let mut question = Vec::new();
    for text in [name, password, "imap", ""] {
        question.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        question.extend(text.bytes());
    }
    let answer = ask(socket, &question, |_| false);
    answer.get(2..).unwrap_or_default().to_owned()
}

/// One key of Dovecot's dict protocol.
fn dict(socket: &Path, key: &str, name: &str) -> String {
    let question = format!("H3\t2\t0\t\tgatepost\nL{key}\t{name}\n");
    ask(socket, question.as_bytes(), |answer| answer.ends_with('\n')).trim_end().to_owned()
}

/// A password as Dovecot's `%{encrypt;…}` puts it into a key.
fn encrypted(password: &str) -> String {
    let key: Vec<u8> = (0..32).collect();
    let iv = [7; 16];
    let cipher = cbc::Encryptor::<Aes256>::new(key.as_slice().into(), &iv.into());
    let text = cipher.encrypt_padded_vec_mut::<Pkcs7>(password.as_bytes());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}${}$", hex(&iv), hex(&text))
}

/// Another process holds the database's lock for writing until it is dropped.
pub(crate) fn lock(database: &Path) -> Running {
    let mut command = program("sqlite3", "sqlite3");
    // The daemon may be writing: wait for its turn. Without one it ends (-bail), and is not listened to for ever.
    command
        .args(["-bail", "-cmd", ".timeout 10000"])
        .arg(database)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut running = Running::start("sqlite3", &mut command);
    running.say("BEGIN IMMEDIATE; SELECT 'locked';\n");
    assert_eq!(running.hear(), "locked\n");
    running
}

#[test]
fn every_door_says_later_in_every_outage_and_lets_the_remembered_in() {
    let world = World::start();
    for door in Door::ALL {
        assert_eq!(door.heard(&world.knock(door, &mail_of("fry"), &password_of("fry"))), Heard::In);
    }
    let mut words: BTreeMap<(Door, &str), BTreeSet<String>> = BTreeMap::new();
    let mut table = header();
    let mut look_ups = String::from("| | ");
    look_ups += &LOOK_UPS.map(|(title, _, _)| title).join(" | ");
    look_ups += &format!(" |\n|---{}|\n", "|---".repeat(LOOK_UPS.len()));
    let (mut report, mut misjudged) = (String::new(), Vec::new());

    for (number, trouble) in Trouble::ALL.into_iter().enumerate() {
        let locker = world.begin(trouble);
        let heard = match trouble {
            Trouble::StoreLocked => world.knock_everywhere(MADE_LATER, KNOWN_WRONG),
            _ => world.knock_everywhere(RIGHT, WRONG),
        };
        let looked_up = world.everything_looked_up(trouble);
        let recovery = world.end(trouble, locker, number);

        let mut slowest = (Duration::ZERO, Door::Imap);
        write!(table, "| {} |", trouble.title()).unwrap();
        let (right, wrong) = trouble.expected();
        for (door, knocks) in heard {
            let took = knocks.iter().map(|(_, took)| *took).max().unwrap();
            slowest = slowest.max((took, door));
            assert!(took < LIMIT, "{trouble:?}, {door:?}: {took:?}");
            let answers = knocks.map(|(answer, _)| answer);
            let said = answers.each_ref().map(|answer| {
                let heard = door.heard(answer);
                words.entry((door, heard.as_str())).or_default().insert(shown(door, answer));
                heard
            });
            if said != [right, wrong, Heard::In] {
                misjudged.push((trouble, door, answers));
            }
            write!(table, " {} |", said_in_short(said)).unwrap();
        }
        table.push('\n');
        writeln!(look_ups, "| {} | {} |", trouble.title(), looked_up.join(" | ")).unwrap();
        writeln!(report, "{}: slowest {slowest:?}, back after {recovery:?}", trouble.title())
            .unwrap();
    }

    eprintln!("{report}");
    assert!(misjudged.is_empty(), "{misjudged:#?}: {}", world.gatepost.log());
    // Nobody's right password was taken for a wrong one, and no wrong one for right.
    for (door, knocks) in world.knock_everywhere(RIGHT, KNOWN_WRONG) {
        let said = knocks.map(|(answer, _)| {
            let heard = door.heard(&answer);
            words.entry((door, heard.as_str())).or_default().insert(shown(door, &answer));
            heard
        });
        assert_eq!(said, [Heard::In, Heard::Refused, Heard::In], "{door:?}");
    }
    check_page(PAGE, "the words", &words_table(&words));
    check_page(PAGE, "doors", &table);
    check_page(PAGE, "look-ups", &look_ups);
}

impl World {
    /// What each look-up says of a mailbox it has not seen yet.
    fn everything_looked_up(&self, trouble: Trouble) -> Vec<&'static str> {
        (0..)
            .zip(LOOK_UPS)
            .map(|(number, (title, found, later))| {
                let name = mail_of(&somebody(LOOKED_UP, number));
                let answer = self.look_up(number, &name);
                let heard = match &answer {
                    answer if answer.starts_with(found) => "found",
                    answer if answer.starts_with(later) => "later",
                    other => panic!("{title} said {other:?}"),
                };
                let expected = if trouble == Trouble::StoreGone { "later" } else { "found" };
                assert_eq!(heard, expected, "{trouble:?}, {title}: {answer}");
                heard
            })
            .collect()
    }
}

/// An answer as the page shows it, without what differs from run to run.
fn shown(door: Door, answer: &str) -> String {
    let answer = match (door, door.heard(answer)) {
        (Door::Dict, Heard::In) => "O{\"nopassword\":\"\",…}",
        (Door::Dict, Heard::Refused) => "O{\"password\":\"{PLAIN}…\"}",
        _ => answer,
    };
    normal(answer)
}

/// `user=` names somebody else at each door.
fn without_names(answer: &str) -> String {
    let fields = answer.split('\t');
    let shown = fields.map(|field| if field.starts_with("user=") { "user=…" } else { field });
    shown.collect::<Vec<_>>().join("\t")
}

fn header() -> String {
    let titles = Door::ALL.map(Door::title).join(" | ");
    format!("| | {titles} |\n|---{}|\n", "|---".repeat(Door::ALL.len()))
}

fn said_in_short(said: [Heard; 3]) -> String {
    match said {
        [Heard::Later, Heard::Later, Heard::In] => "later".to_owned(),
        other => other.map(Heard::as_str).join(", "),
    }
}

fn words_table(words: &BTreeMap<(Door, &str), BTreeSet<String>>) -> String {
    let mut table = String::from("| | in | refused | later |\n|---|---|---|---|\n");
    for door in Door::ALL {
        write!(table, "| {} |", door.title()).unwrap();
        for heard in [Heard::In, Heard::Refused, Heard::Later] {
            let answers: Vec<_> =
                words[&(door, heard.as_str())].iter().map(|answer| cell(answer)).collect();
            write!(table, " {} |", answers.join(" or ")).unwrap();
        }
        table.push('\n');
    }
    table
}
