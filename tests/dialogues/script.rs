//! Dialogue files, read the same way by those who play them against the pure sessions (src/proto/dialogues.rs, which
//! says what a file looks like) and against the live sockets (tests/it/dialogues.rs).

use std::fmt;
use std::path::Path;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dialogues");
const ONLY_SESSION: &str = "# only against the session: ";

pub struct Dialogue {
    /// `dovecot-auth/client-postfix`
    pub name: String,
    pub socket: String,
    /// Why it cannot be played against a live socket.
    pub only_session: Option<String>,
    pub steps: Vec<Step>,
}

pub enum Step {
    /// The client sends these bytes.
    Client(Vec<u8>),
    /// The server sends something like this.
    Server(Said),
    /// The server closes, without a further byte.
    Closes,
    /// The driver hears this from the session.
    Event(String),
    /// The session ends with this error; the driver closes.
    Error(String),
}

pub enum Said {
    /// A line, its LF left out.
    Line(Vec<u8>),
    /// The same with `*` and `?`.
    Like(Vec<u8>),
    /// These bytes, whatever follows them.
    Bytes(Vec<u8>),
}

/// What stands at the beginning of the bytes that a server sent.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// What was wanted, of this length.
    Wanted(usize),
    /// It may still become what was wanted.
    Unfinished,
    Other,
}

impl Said {
    pub fn find(&self, output: &[u8]) -> Found {
        if let Self::Bytes(wanted) = self {
            return match (output.starts_with(wanted), wanted.starts_with(output)) {
                (true, _) => Found::Wanted(wanted.len()),
                (false, true) => Found::Unfinished,
                (false, false) => Found::Other,
            };
        }
        let Some(end) = output.iter().position(|byte| *byte == b'\n') else {
            return Found::Unfinished;
        };
        let is_wanted = match self {
            Self::Line(wanted) | Self::Bytes(wanted) => output[..end] == **wanted,
            Self::Like(pattern) => is_like(pattern, &output[..end]),
        };
        if is_wanted { Found::Wanted(end + 1) } else { Found::Other }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(bytes) => write!(f, "C> {}", bytes.escape_ascii()),
            Self::Server(Said::Line(line)) => write!(f, "S: {}", line.escape_ascii()),
            Self::Server(Said::Like(line)) => write!(f, "S~ {}", line.escape_ascii()),
            Self::Server(Said::Bytes(bytes)) => write!(f, "S> {}", bytes.escape_ascii()),
            Self::Closes => write!(f, "S-"),
            Self::Event(event) => write!(f, "E: {event}"),
            Self::Error(error) => write!(f, "X: {error}"),
        }
    }
}

/// Every dialogue of every folder, by name.
pub fn read_dialogues() -> Vec<Dialogue> {
    let entries = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.collect::<Vec<_>>()
    };
    let folders = entries(Path::new(FOLDER)).into_iter().filter(|path| path.is_dir());
    let files = folders.flat_map(|folder| entries(&folder));
    let mut dialogues: Vec<_> = files
        .map(|file| {
            let name = file.strip_prefix(FOLDER).unwrap().with_extension("");
            parse(name.to_str().unwrap(), &std::fs::read_to_string(&file).unwrap())
        })
        .collect();
    dialogues.sort_by(|one, other| one.name.cmp(&other.name));
    dialogues
}

fn parse(name: &str, text: &str) -> Dialogue {
    let only_session = text.lines().find_map(|line| line.strip_prefix(ONLY_SESSION));
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let socket = lines.next().and_then(|line| line.strip_prefix("socket "));
    Dialogue {
        name: name.to_owned(),
        socket: socket.unwrap_or_else(|| panic!("{name}: no socket line")).to_owned(),
        only_session: only_session.map(str::to_owned),
        steps: lines.map(|line| parse_step(name, line)).collect(),
    }
}

fn parse_step(name: &str, line: &str) -> Step {
    // An empty line of the client loses its blank in some editors.
    let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
    match mark {
        "C:" => Step::Client([&unescape(rest)[..], b"\n"].concat()),
        "C>" => Step::Client(unescape(rest)),
        "S:" => Step::Server(Said::Line(unescape(rest))),
        "S~" => Step::Server(Said::Like(unescape(rest))),
        "S>" => Step::Server(Said::Bytes(unescape(rest))),
        "S-" => Step::Closes,
        "E:" => Step::Event(rest.to_owned()),
        "X:" => Step::Error(rest.to_owned()),
        other => panic!("{name}: unknown mark {other}"),
    }
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

/// `*` is any bytes, `?` is one.
fn is_like(pattern: &[u8], line: &[u8]) -> bool {
    match (pattern, line) {
        ([], []) => true,
        ([b'*', pattern @ ..], _) => (0..=line.len()).any(|at| is_like(pattern, &line[at..])),
        ([b'?', pattern @ ..], [_, line @ ..]) => is_like(pattern, line),
        ([wanted, pattern @ ..], [byte, line @ ..]) => wanted == byte && is_like(pattern, line),
        _ => false,
    }
}
