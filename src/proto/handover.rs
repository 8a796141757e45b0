//! The message by which `gatepost-dovecot-auth` hands Dovecot's listening sockets to the daemon, and its answer.
//!
//! Both ends are ours, so there is one version of it and no negotiation. One message of text lines, fields separated
//! by TAB; the descriptors travel beside its first byte (SCM_RIGHTS), in the order of the `socket` lines:
//!
//! ```text
//! S: gatepost-handover⇥1
//! S: base_dir⇥/run/dovecot
//! S: version⇥2.3.19.1
//! S: socket⇥login⇥login⇥unix:/run/dovecot/login/login
//! S: socket⇥auth-userdb⇥userdb⇥unix:/run/dovecot/auth-userdb
//! S: socket⇥⇥client⇥127.0.0.1:12345
//! S: end
//! D: taken⇥3                        (or: refused⇥only 64 sockets can be handed over)
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use memchr::memmem;

/// Sockets in one hand-over.
pub const MAX_SOCKETS: usize = 64;

/// Bytes of one message: 64 sockets, each with two names and a path at their longest, and room.
pub const MAX_MESSAGE_BYTES: usize = 32 * 1024;

/// Bytes of the answer.
pub const MAX_ANSWER_BYTES: usize = 1024;

const HEADER: &str = "gatepost-handover\t1";
const END: &str = "\nend\n";

/// Everything that is said about the sockets handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The directory of Dovecot's own sockets; it tells two Dovecots on one host apart.
    pub base_dir: PathBuf,
    /// Dovecot's version as it gives it, such as `2.3.19.1`.
    pub version: String,
    /// One for each descriptor, in their order.
    pub sockets: Vec<Description>,
}

/// What is said of one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Dovecot's name of the listener, such as `auth-userdb`; empty for an unnamed `inet_listener`.
    pub name: String,
    /// What Dovecot expects to be spoken on it.
    pub kind: HandedKind,
    /// Where it listens.
    pub place: Place,
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path in the file system.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// What is spoken on a socket of Dovecot's auth service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandedKind {
    /// The client protocol for Dovecot's login processes: an OK stays claimable by the mail process.
    Login,
    /// The client protocol for everyone else (Postfix, Exim, doveadm).
    Client,
    /// As `Client`; Dovecot 2.4 names those peers so that know only the old handshake.
    Legacy,
    /// The master protocol with everything.
    Master,
    /// The master protocol for user look-ups only.
    Userdb,
    /// Tokens of URLAUTH, for mail processes.
    Token,
    /// Tokens of URLAUTH, for login processes.
    TokenLogin,
}

impl HandedKind {
    const NAMES: [(&'static str, Self); 7] = [
        ("login", Self::Login),
        ("client", Self::Client),
        ("legacy", Self::Legacy),
        ("master", Self::Master),
        ("userdb", Self::Userdb),
        ("token", Self::Token),
        ("token-login", Self::TokenLogin),
    ];

    /// The kind that Dovecot means by `SOCKET<i>_SETTINGS`: 2.4 says `name⇥type=login`, 2.3 says the name only and goes
    /// by what follows its last `-`. What neither knows is for clients, as in Dovecot.
    #[must_use]
    pub fn from_settings(settings: &str) -> Self {
        let mut fields = settings.split('\t');
        let name = fields.next().unwrap_or_default();
        let kind = fields
            .find_map(|field| field.strip_prefix("type="))
            .filter(|kind| !kind.is_empty())
            .unwrap_or_else(|| name.rsplit(['-', '/']).next().unwrap_or_default());
        match kind {
            "login" => Self::Login,
            "master" => Self::Master,
            "userdb" => Self::Userdb,
            "token" => Self::Token,
            "tokenlogin" | "token-login" => Self::TokenLogin,
            "auth-legacy" => Self::Legacy,
            _ => Self::Client,
        }
    }

    /// Its word in the message and in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for HandedKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for HandedKind {
    type Err = MessageError;

    fn from_str(word: &str) -> Result<Self, MessageError> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == word);
        found.map(|(_, kind)| *kind).ok_or(MessageError::Bad("kind of a socket"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(address) => write!(formatter, "{address}"),
        }
    }
}

impl FromStr for Place {
    type Err = MessageError;

    fn from_str(text: &str) -> Result<Self, MessageError> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| MessageError::Bad("place of a socket")),
        }
    }
}

impl Message {
    /// The bytes to send.
    ///
    /// # Errors
    /// A name or path that holds a TAB or a line end, or is not UTF-8, cannot be said; neither can too many sockets.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        if self.sockets.len() > MAX_SOCKETS {
            return Err(MessageError::TooMany);
        }
        let base_dir = self.base_dir.to_str().ok_or(MessageError::Unsayable("base_dir"))?;
        let mut text = format!("{HEADER}\nbase_dir\t{}\n", sayable("base_dir", base_dir)?);
        text.push_str(&format!("version\t{}\n", sayable("version", &self.version)?));
        for socket in &self.sockets {
            let place = socket.place.to_string();
            if matches!(&socket.place, Place::Unix(path) if path.to_str().is_none()) {
                return Err(MessageError::Unsayable("path of a socket"));
            }
            let name = sayable("name of a socket", &socket.name)?;
            let place = sayable("path of a socket", &place)?;
            text.push_str(&format!("socket\t{name}\t{}\t{place}\n", socket.kind));
        }
        text.push_str(END.trim_start());
        if text.len() > MAX_MESSAGE_BYTES {
            return Err(MessageError::TooLong);
        }
        Ok(text.into_bytes())
    }

    /// Reads a message; `None` means that more bytes are needed.
    ///
    /// # Errors
    /// Anything that is not this message, or is longer than [`MAX_MESSAGE_BYTES`].
    pub fn parse(input: &[u8]) -> Result<Option<Self>, MessageError> {
        let common = input.len().min(HEADER.len());
        if input.get(..common) != HEADER.as_bytes().get(..common) {
            return Err(MessageError::Foreign);
        }
        let Some(end) = memmem::find(input, END.as_bytes()) else {
            let over = input.len() >= MAX_MESSAGE_BYTES;
            return if over { Err(MessageError::TooLong) } else { Ok(None) };
        };
        if end + END.len() != input.len() {
            return Err(MessageError::Bad("bytes after the end"));
        }
        let text = input.get(..end).and_then(|text| std::str::from_utf8(text).ok());
        Self::parse_lines(text.ok_or(MessageError::Bad("text that is not UTF-8"))?).map(Some)
    }

    fn parse_lines(text: &str) -> Result<Self, MessageError> {
        let mut lines = text.split('\n');
        if lines.next() != Some(HEADER) {
            return Err(MessageError::Foreign);
        }
        let mut message =
            Self { base_dir: PathBuf::new(), version: String::new(), sockets: vec![] };
        for line in lines {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields.as_slice() {
                ["base_dir", path] => message.base_dir = path.into(),
                ["version", version] => message.version = (*version).to_owned(),
                ["socket", name, kind, place] => message.sockets.push(Description {
                    name: (*name).to_owned(),
                    kind: kind.parse()?,
                    place: place.parse()?,
                }),
                _ => return Err(MessageError::Bad("line")),
            }
        }
        if message.sockets.len() > MAX_SOCKETS {
            return Err(MessageError::TooMany);
        }
        if !message.base_dir.is_absolute() {
            return Err(MessageError::Bad("base_dir"));
        }
        Ok(message)
    }
}

/// The daemon's word on a hand-over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It serves these many sockets as long as the connection lasts.
    Taken(usize),
    /// It has closed everything, and why.
    Refused(String),
}

impl Answer {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Taken(count) => format!("taken\t{count}\n").into_bytes(),
            Self::Refused(reason) => {
                let reason: String =
                    reason.chars().filter(|c| !c.is_control()).take(MAX_ANSWER_BYTES / 8).collect();
                format!("refused\t{reason}\n").into_bytes()
            }
        }
    }

    /// Reads an answer; `None` means that more bytes are needed.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(input: &[u8]) -> Result<Option<Self>, MessageError> {
        let Some(line) = input.strip_suffix(b"\n") else {
            let over = input.len() >= MAX_ANSWER_BYTES;
            return if over { Err(MessageError::TooLong) } else { Ok(None) };
        };
        let line = std::str::from_utf8(line).map_err(|_| MessageError::Bad("answer"))?;
        match line.split_once('\t') {
            Some(("taken", count)) => count
                .parse()
                .map(|count| Some(Self::Taken(count)))
                .map_err(|_| MessageError::Bad("answer")),
            Some(("refused", reason)) => Ok(Some(Self::Refused(reason.to_owned()))),
            _ => Err(MessageError::Bad("answer")),
        }
    }
}

/// Why a message cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The peer speaks something else.
    #[error("this is not a hand-over of gatepost-dovecot-auth, or one of another version")]
    Foreign,
    /// A part of it does not read.
    #[error("bad {0} in a hand-over")]
    Bad(&'static str),
    /// It is longer than allowed.
    #[error("the hand-over is too long")]
    TooLong,
    /// It has more sockets than allowed.
    #[error("only {MAX_SOCKETS} sockets can be handed over")]
    TooMany,
    /// A value that the message has no way to say.
    #[error("the {0} cannot be handed over: it is not UTF-8 or has a control character")]
    Unsayable(&'static str),
}

fn sayable<'a>(what: &'static str, value: &'a str) -> Result<&'a str, MessageError> {
    if value.chars().any(char::is_control) { Err(MessageError::Unsayable(what)) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> Message {
        let socket = |name: &str, kind, place: &str| Description {
            name: name.into(),
            kind,
            place: place.parse().unwrap(),
        };
        Message {
            base_dir: "/run/dovecot".into(),
            version: "2.3.19.1 (9b53102964)".into(),
            sockets: vec![
                socket("login", HandedKind::Login, "unix:/run/dovecot/login/login"),
                socket("auth-userdb", HandedKind::Userdb, "unix:/run/dovecot/auth-userdb"),
                socket("", HandedKind::Client, "[::1]:12345"),
            ],
        }
    }

    #[test]
    fn a_message_reads_as_it_was_written_and_only_when_it_is_complete() {
        let bytes = message().encode().unwrap();

        for cut in 0..bytes.len() {
            assert_eq!(Message::parse(&bytes[..cut]), Ok(None), "{cut} bytes");
        }
        assert_eq!(Message::parse(&bytes), Ok(Some(message())));
    }

    #[test]
    fn every_kind_has_a_word_that_reads_back() {
        for (_, kind) in HandedKind::NAMES {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("postfix".parse::<HandedKind>().is_err());
    }

    #[test]
    fn the_kind_is_dovecots_own_rule() {
        #[track_caller]
        fn check(settings: &str, expected: HandedKind) {
            assert_eq!(HandedKind::from_settings(settings), expected, "{settings:?}");
        }
        check("login", HandedKind::Login);
        check("auth-login", HandedKind::Login);
        check("tokenlogin", HandedKind::TokenLogin);
        check("auth-token", HandedKind::Token);
        check("auth-master", HandedKind::Master);
        check("auth-userdb", HandedKind::Userdb);
        check("auth-client", HandedKind::Client);
        check("auth", HandedKind::Client);
        check("", HandedKind::Client);
        check("login/login\ttype=login", HandedKind::Login);
        check("auth-client\ttype=auth", HandedKind::Client);
        check("auth-legacy\ttype=auth-legacy", HandedKind::Legacy);
        check("token-login/tokenlogin\ttype=token-login", HandedKind::TokenLogin);
        check("my-login\ttype=auth", HandedKind::Client);
        check("auth-userdb\ttype=", HandedKind::Userdb);
    }

    #[test]
    fn what_is_no_hand_over_is_refused_at_its_first_byte() {
        assert_eq!(Message::parse(b"V"), Err(MessageError::Foreign));
        assert_eq!(Message::parse(b"gatepost-handover\t2\nend\n"), Err(MessageError::Foreign));
    }

    #[test]
    fn bad_parts_are_refused() {
        #[track_caller]
        fn check(lines: &str, expected: MessageError) {
            let text = format!("{HEADER}\n{lines}{}", END.trim_start());
            assert_eq!(Message::parse(text.as_bytes()), Err(expected), "{lines:?}");
        }
        check("base_dir\trelative\n", MessageError::Bad("base_dir"));
        check("version\t2\n", MessageError::Bad("base_dir"));
        check("base_dir\t/a\nsocket\tx\n", MessageError::Bad("line"));
        check("base_dir\t/a\nsocket\tx\tweb\tunix:/a\n", MessageError::Bad("kind of a socket"));
        check("base_dir\t/a\nsocket\tx\tlogin\t/a\n", MessageError::Bad("place of a socket"));
        let many = "socket\tx\tlogin\tunix:/a\n".repeat(MAX_SOCKETS + 1);
        check(&format!("base_dir\t/a\n{many}"), MessageError::TooMany);
        let bytes = [message().encode().unwrap(), b"x".to_vec()].concat();
        assert_eq!(Message::parse(&bytes), Err(MessageError::Bad("bytes after the end")));
    }

    #[test]
    fn a_message_without_an_end_is_bounded() {
        let mut bytes = format!("{HEADER}\n").into_bytes();
        bytes.resize(MAX_MESSAGE_BYTES, b'x');

        assert_eq!(Message::parse(&bytes), Err(MessageError::TooLong));
    }

    #[test]
    fn names_that_would_break_a_line_are_not_written() {
        let mut bad = message();
        bad.sockets[0].name = "a\nend".into();

        assert_eq!(bad.encode(), Err(MessageError::Unsayable("name of a socket")));
    }

    #[test]
    fn answers_read_as_they_were_written() {
        for answer in [Answer::Taken(8), Answer::Refused("user 1000 may not".into())] {
            assert_eq!(Answer::parse(&answer.encode()), Ok(Some(answer)));
        }
        assert_eq!(Answer::parse(b"taken\t8"), Ok(None));
        assert!(Answer::parse(b"OK\n").is_err());
        assert!(Answer::parse(&[b'x'; MAX_ANSWER_BYTES]).is_err());
        assert_eq!(Answer::Refused("a\nb".into()).encode(), b"refused\tab\n");
    }
    fn any_message() -> impl Strategy<Value = Message> {
        let kind = prop::sample::select(HandedKind::NAMES.map(|(_, kind)| kind).to_vec());
        let place = prop_oneof![
            "/[^\\pC]{0,60}".prop_map(|path| Place::Unix(path.into())),
            any::<SocketAddr>()
                .prop_filter("no flow or scope", |it| it.to_string().parse() == Ok(*it))
                .prop_map(Place::Tcp),
        ];
        let socket = ("[^\\pC]{0,20}", kind, place).prop_map(|(name, kind, place)| Description {
            name,
            kind,
            place,
        });
        let sockets = proptest::collection::vec(socket, 0..6);
        ("/[^\\pC]{0,60}", "[^\\pC]{0,20}", sockets).prop_map(|(base_dir, version, sockets)| {
            Message { base_dir: base_dir.into(), version, sockets }
        })
    }

    proptest! {
        #[test]
        fn any_message_reads_as_it_was_written(message in any_message(), cut: prop::sample::Index) {
            let bytes = message.encode().unwrap();

            prop_assert_eq!(Message::parse(&bytes[..cut.index(bytes.len())]), Ok(None));
            prop_assert_eq!(Message::parse(&bytes), Ok(Some(message)));
        }

        #[test]
        fn any_answer_reads_as_it_was_written(count: usize, reason in "[^\\pC]{0,120}") {
            for answer in [Answer::Taken(count), Answer::Refused(reason)] {
                prop_assert_eq!(Answer::parse(&answer.encode()), Ok(Some(answer)));
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let after_header = [HEADER.as_bytes(), b"\n", &bytes, END.as_bytes()].concat();
            for bytes in [&bytes, &after_header] {
                let _ = (Message::parse(bytes), Answer::parse(bytes));
            }
        }
    }
}
