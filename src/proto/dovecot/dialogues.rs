//! Plays `tests/dialogues/*.txt` against the sessions, in pieces of every size.
//!
//! A dialogue is one connection:
//!
//! ```text
//! # a comment
//! socket login          login, client, master or userdb
//! C: CPID\t977          the client's line; \t \n \\ \xNN are escapes
//! S: DONE               the server's line, exactly
//! S~ SPID\t*            the server's line, with * and ?
//! E: cancelled 3        what the driver hears besides requests
//! X: unknown command    the session ends with this error
//! ```
//!
//! Behind the session stands a scripted core: see [`decide`] and [`look_up`].

use std::fmt::Write as _;

use bytes::BytesMut;
use proptest::prelude::*;

use super::auth::{AuthRequest, Event, FailCode, Greeting, Reply, Session, SocketKind};
use super::master::{Command, ListEnd, MasterKind, MasterReply, MasterSession, mask_matches};

const DIALOGUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dialogues");
const COOKIE: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const SERVER_PID: u32 = 4242;
const USERS: [&str; 2] = ["joe@example.org", "ann@example.org"];

struct Dialogue {
    name: String,
    socket: String,
    steps: Vec<Step>,
}

enum Step {
    /// The client says this, LF included.
    Client(Vec<u8>),
    /// The server says this, without LF.
    Server { pattern: Vec<u8>, exact: Exact },
    /// The driver hears this.
    Event(String),
    /// The session ends with this error.
    Error(String),
}

#[derive(Clone, Copy, PartialEq)]
enum Exact {
    Yes,
    Wildcards,
}

/// Either kind of session with its scripted core.
enum Peer {
    Auth { session: Session, slow: Vec<u32> },
    Master(MasterSession),
}

/// What a dialogue led to.
#[derive(Default)]
struct Heard {
    output: Vec<u8>,
    events: Vec<String>,
    error: Option<String>,
}

impl Peer {
    fn connect(socket: &str, heard: &mut Heard) -> Self {
        let auth = |kind, heard: &mut Heard| {
            let session = Session::new(kind);
            session.greet(&Greeting::new(SERVER_PID), 7, &COOKIE, &mut heard.output);
            Self::Auth { session, slow: Vec::new() }
        };
        let master = |kind, heard: &mut Heard| {
            let session = MasterSession::new(kind);
            session.greet(SERVER_PID, &mut heard.output);
            Self::Master(session)
        };
        match socket {
            "login" => auth(SocketKind::Login, heard),
            "client" => auth(SocketKind::Client, heard),
            "master" => master(MasterKind::Master, heard),
            "userdb" => master(MasterKind::Userdb, heard),
            other => panic!("no such socket: {other}"),
        }
    }

    fn read(&mut self, input: &mut BytesMut, heard: &mut Heard) {
        while heard.error.is_none() {
            match self.step(input, heard) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => heard.error = Some(error),
            }
        }
    }

    /// `false`: more bytes are needed.
    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<bool, String> {
        match self {
            Self::Master(session) => {
                let command = session.next_command(input).map_err(|error| error.to_string())?;
                command.inspect(|command| look_up(command, &mut heard.output)).map(|_| true)
            }
            Self::Auth { session, slow } => session
                .next_event(input, &mut heard.output, tokio::time::Instant::now().into_std())
                .map_err(|error| error.to_string())?
                .map(|event| {
                    match event {
                        Event::Hello { client_pid } => {
                            heard.events.push(format!("hello {client_pid}"));
                        }
                        Event::Cancelled(id) => heard.events.push(format!("cancelled {id}")),
                        Event::Request(request) if request.credentials.authcid == b"slow" => {
                            slow.push(request.id);
                        }
                        Event::Request(request) => {
                            session.answer(request.id, &decide(&request), &mut heard.output);
                        }
                    }
                    true
                }),
        }
        .map_or(Ok(false), Ok)
    }

    /// The slow answers come when the client has said everything.
    fn finish(&mut self, heard: &mut Heard) {
        if let Self::Auth { session, slow } = self
            && heard.error.is_none()
        {
            for id in slow.drain(..) {
                let reply = Reply::Ok { user: "slow@example.org", fields: &[] };
                session.answer(id, &reply, &mut heard.output);
            }
        }
    }
}

/// joe's password is "secret"; ann is disabled, old has expired, down is where the directory does not answer, slow
/// gets in at the end.
fn decide(request: &AuthRequest) -> Reply<'_> {
    let given = &request.credentials;
    let user = std::str::from_utf8(&given.authcid).ok();
    let fail = |code, reason| Reply::Fail { user, code, reason };
    if !given.authzid.is_empty() {
        return fail(Some(FailCode::AuthzFail), None);
    }
    match (user, given.password.as_bytes()) {
        (Some("joe" | "joe@example.org"), b"secret") => {
            Reply::Ok { user: "joe@example.org", fields: &[] }
        }
        (Some("ann"), b"secret") => fail(Some(FailCode::UserDisabled), None),
        (Some("old"), b"secret") => fail(Some(FailCode::PassExpired), Some("Password expired")),
        (Some("down"), _) => fail(Some(FailCode::TempFail), None),
        _ => fail(None, None),
    }
}

/// joe and ann live here; down is where the store does not answer; process 981 may claim login 1 of process 977.
fn look_up(command: &Command, output: &mut Vec<u8>) {
    let place = [("uid", "5000"), ("gid", "5000"), ("home", "/var/mail/joe")];
    match command {
        Command::User { id, user, .. } | Command::Pass { id, user, .. } => {
            let user = std::str::from_utf8(user).unwrap_or_default();
            let reply = match (user, command) {
                ("joe", Command::User { .. }) => {
                    MasterReply::User { id: *id, user: USERS[0], fields: &place }
                }
                ("joe", _) => {
                    MasterReply::Pass { id: *id, user: USERS[0], fields: &[("nologin", "")] }
                }
                ("down", _) => MasterReply::Fail { id: *id, reason: Some("store\nis away") },
                _ => MasterReply::NotFound { id: *id },
            };
            reply.encode(output);
        }
        Command::List { id, mask } => {
            let mask = mask.as_deref().unwrap_or(b"*");
            for user in USERS.iter().filter(|user| mask_matches(mask, user)) {
                MasterReply::ListItem { id: *id, user }.encode(output);
            }
            let end = if mask == b"down" { ListEnd::Failed } else { ListEnd::Complete };
            MasterReply::ListDone { id: *id, end }.encode(output);
        }
        Command::Request {
            id,
            client_pid: 977,
            auth_id: 1,
            cookie,
            session_pid: None | Some(981),
        } if *cookie == COOKIE => {
            MasterReply::User { id: *id, user: USERS[0], fields: &place }.encode(output);
        }
        Command::Request { id, .. } => MasterReply::Fail { id: *id, reason: None }.encode(output),
        Command::CacheFlush { id, users } => {
            let count = if users.is_empty() { USERS.len() } else { users.len() };
            MasterReply::Flushed { id: *id, count }.encode(output);
        }
    }
}

fn read_dialogues() -> Vec<Dialogue> {
    let mut dialogues: Vec<_> = std::fs::read_dir(DIALOGUES)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            parse(name, &std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    dialogues.sort_by(|one, other| one.name.cmp(&other.name));
    dialogues
}

fn parse(name: String, text: &str) -> Dialogue {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let socket = lines.next().and_then(|line| line.strip_prefix("socket "));
    let socket = socket.unwrap_or_else(|| panic!("{name}: no socket line")).to_string();
    let steps = lines
        .map(|line| {
            // An empty line of the client loses its blank in some editors.
            let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
            match mark {
                "C:" => Step::Client([&unescape(rest)[..], b"\n"].concat()),
                "S:" => Step::Server { pattern: unescape(rest), exact: Exact::Yes },
                "S~" => Step::Server { pattern: unescape(rest), exact: Exact::Wildcards },
                "E:" => Step::Event(rest.to_string()),
                "X:" => Step::Error(rest.to_string()),
                other => panic!("{name}: unknown mark {other}"),
            }
        })
        .collect();
    Dialogue { name, socket, steps }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut output = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            output.push(byte);
            continue;
        }
        output.push(match bytes.next() {
            Some(b't') => b'\t',
            Some(b'n') => b'\n',
            Some(b'\\') => b'\\',
            Some(b'x') => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => panic!("unknown escape {other:?} in {text}"),
        });
    }
    output
}

/// Compares all that was heard with all that was expected up to a step.
fn check(dialogue: &Dialogue, steps: &[Step], heard: &Heard, how: &str) {
    let mut lines: Vec<_> = heard.output.split(|byte| *byte == b'\n').collect();
    assert_eq!(lines.pop(), Some(&b""[..]), "{}: unfinished line", dialogue.name);
    let mut lines = lines.into_iter();
    let mut said = String::new();
    let (mut events, mut error) = (Vec::new(), None);
    for step in steps {
        match step {
            Step::Client(line) => {
                writeln!(said, "C: {}", line.trim_ascii_end().escape_ascii()).unwrap();
            }
            Step::Server { pattern, exact } => {
                let line = lines.next().map(String::from_utf8_lossy).unwrap_or_default();
                let matches = match exact {
                    Exact::Yes => line.as_bytes() == pattern,
                    Exact::Wildcards => mask_matches(pattern, &line),
                };
                let (pattern, name) = (pattern.escape_ascii(), &dialogue.name);
                assert!(matches, "{name} {how}: after\n{said}wanted {pattern}\ngot    {line:?}");
                writeln!(said, "S: {line:?}").unwrap();
            }
            Step::Event(event) => events.push(event.clone()),
            Step::Error(text) => error = Some(text.clone()),
        }
    }
    let rest: Vec<_> = lines.map(String::from_utf8_lossy).collect();
    assert!(rest.is_empty(), "{} {how}: after\n{said}unexpected {rest:?}", dialogue.name);
    assert_eq!(heard.events, events, "{} {how}", dialogue.name);
    assert_eq!(heard.error, error, "{} {how}", dialogue.name);
}

fn client_bytes(dialogue: &Dialogue) -> Vec<u8> {
    let lines = dialogue.steps.iter().filter_map(|step| match step {
        Step::Client(line) => Some(line.as_slice()),
        _ => None,
    });
    lines.collect::<Vec<_>>().concat()
}

fn play<'p>(dialogue: &Dialogue, pieces: impl Iterator<Item = &'p [u8]>, how: &str) {
    let mut heard = Heard::default();
    let mut peer = Peer::connect(&dialogue.socket, &mut heard);
    let mut input = BytesMut::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        peer.read(&mut input, &mut heard);
    }
    peer.finish(&mut heard);
    check(dialogue, &dialogue.steps, &heard, how);
}

#[test]
fn every_dialogue_goes_as_written_line_by_line() {
    let dialogues = read_dialogues();
    assert!(dialogues.len() >= 20, "dialogues are missing");
    for dialogue in &dialogues {
        let mut heard = Heard::default();
        let mut peer = Peer::connect(&dialogue.socket, &mut heard);
        let mut input = BytesMut::new();
        for (at, step) in dialogue.steps.iter().enumerate() {
            if let Step::Client(line) = step {
                // What came before must have been answered before this line is sent.
                check(dialogue, &dialogue.steps[..at], &heard, "line by line");
                input.extend_from_slice(line);
                peer.read(&mut input, &mut heard);
            }
        }
        peer.finish(&mut heard);
        check(dialogue, &dialogue.steps, &heard, "line by line");
    }
}

#[test]
fn every_dialogue_goes_as_written_at_once_and_byte_by_byte() {
    for dialogue in read_dialogues() {
        let bytes = client_bytes(&dialogue);
        play(&dialogue, std::iter::once(&bytes[..]), "at once");
        play(&dialogue, bytes.chunks(1), "byte by byte");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_dialogue_goes_as_written_in_random_pieces(
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 2..4),
    ) {
        for dialogue in read_dialogues() {
            let bytes = client_bytes(&dialogue);
            let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.sort_unstable();
            ends.push(bytes.len());
            let mut start = 0;
            let pieces = ends.iter().map(|end| &bytes[std::mem::replace(&mut start, *end)..*end]);
            play(&dialogue, pieces, &format!("cut at {ends:?}"));
        }
    }
}
