//! Dovecot's master protocol: mail processes, LMTP and doveadm look users up and claim logins.
//!
//! `C:` is Dovecot, `S:` is Gatepost; `→` is a TAB:
//!
//! ```text
//! S: VERSION→1→1
//! S: SPID→4242
//! C: VERSION→1→1
//! C: REQUEST→3188→977→1→000102030405060708090a0b0c0d0e0f→session_pid=981
//! S: USER→3188→joe@example.org→uid=5000→gid=5000→home=/var/mail/joe
//! C: USER→3189→nobody@example.org→service=lmtp
//! S: NOTFOUND→3189
//! ```

use bytes::BytesMut;

pub use super::line::LineTooLong;
use super::line::{Lines, Writer, fields, key_value, number, text, unescape};

/// The longest line of the master protocol, in bytes, both ways: Dovecot's clients read no more.
pub const MAX_LINE_BYTES: usize = 8192;

/// Service names are cut to this length, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// Which of the two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MasterKind {
    /// auth-master: everything.
    Master,
    /// auth-userdb: look-ups only; no login can be claimed, no memory emptied.
    Userdb,
}

/// What Dovecot asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Where does this user live?
    User {
        /// Dovecot's number for the command.
        id: u32,
        /// The name, bytes as they came.
        user: Vec<u8>,
        /// What for: lmtp, doveadm, imap …
        service: Box<str>,
    },
    /// What would a login of this user give (`doveadm auth lookup`, proxies)?
    Pass {
        /// Dovecot's number for the command.
        id: u32,
        /// The name, bytes as they came.
        user: Vec<u8>,
        /// What for.
        service: Box<str>,
    },
    /// Which users are there?
    List {
        /// Dovecot's number for the command.
        id: u32,
        /// Only users that [match](mask_matches) this; `None`: all.
        mask: Option<Vec<u8>>,
    },
    /// A mail process claims an accepted login.
    Request {
        /// Dovecot's number for the command.
        id: u32,
        /// The login process.
        client_pid: u32,
        /// The login process's number for its request.
        auth_id: u32,
        /// The cookie of the login process's connection.
        cookie: [u8; 16],
        /// The process that serves the session; to be compared with the peer of this connection.
        session_pid: Option<u32>,
    },
    /// Forget what is remembered: of these users, or of all if there are none.
    CacheFlush {
        /// Dovecot's number for the command.
        id: u32,
        /// The names, bytes as they came.
        users: Vec<Vec<u8>>,
    },
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub enum MasterReply<'a> {
    /// Where the user lives.
    User {
        /// The command's number.
        id: u32,
        /// The canonical name.
        user: &'a str,
        /// The userdb fields; one with an empty value is sent as a bare flag.
        fields: &'a [(&'a str, &'a str)],
    },
    /// What a login would give.
    Pass {
        /// The command's number.
        id: u32,
        /// The canonical name.
        user: &'a str,
        /// The passdb fields; one with an empty value is sent as a bare flag.
        fields: &'a [(&'a str, &'a str)],
    },
    /// There is no such user.
    NotFound {
        /// The command's number.
        id: u32,
    },
    /// Nobody can say now, or there is nothing to claim.
    Fail {
        /// The command's number.
        id: u32,
        /// For people. Control characters are left out.
        reason: Option<&'a str>,
    },
    /// One user of a list.
    ListItem {
        /// The command's number.
        id: u32,
        /// The canonical name.
        user: &'a str,
    },
    /// The end of a list.
    ListDone {
        /// The command's number.
        id: u32,
        /// Whether the list is whole.
        end: ListEnd,
    },
    /// Memory was emptied.
    Flushed {
        /// The command's number.
        id: u32,
        /// How many users were forgotten.
        count: usize,
    },
}

/// Whether a list is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListEnd {
    /// Every user was listed.
    Complete,
    /// Trouble: users are missing.
    Failed,
}

/// The client broke the protocol: the connection must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// More bytes than a line may hold.
    #[error(transparent)]
    LineTooLong(#[from] LineTooLong),
    /// The first line must be `VERSION`, TAB, major, TAB, minor.
    #[error("first line is no VERSION line")]
    NoVersion,
    /// Only version 1 exists.
    #[error("protocol version {0} is not supported, only 1 is")]
    MajorVersion(u32),
    /// A command that does not exist, or not on this socket.
    #[error("unknown command, or one that is not for this socket")]
    UnknownCommand,
    /// A field that the command cannot do without.
    #[error("{command} without a usable {field}")]
    BadField {
        /// The command.
        command: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// One connection.
#[derive(Debug)]
pub struct MasterSession {
    kind: MasterKind,
    lines: Lines,
    greeted: Greeted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeted {
    NotYet,
    ByClient,
}

impl MasterSession {
    /// A connection just accepted.
    #[must_use]
    pub fn new(kind: MasterKind) -> Self {
        Self { kind, lines: Lines::new(MAX_LINE_BYTES), greeted: Greeted::NotYet }
    }

    /// Writes the handshake, to be sent at accept. `server_pid` must be what [`super::auth::Greeting`] says.
    pub fn greet(&self, server_pid: u32, output: &mut Vec<u8>) {
        Writer::line(output, "VERSION").number(1_u32).number(1_u32).end();
        Writer::line(output, "SPID").number(server_pid).end();
    }

    /// Takes the next command off the input. `None`: more bytes are needed.
    ///
    /// # Errors
    /// When the client broke the protocol. Close the connection, do not call again.
    pub fn next_command(&mut self, input: &mut BytesMut) -> Result<Option<Command>, ProtocolError> {
        while let Some(line) = self.lines.next(input)? {
            match self.greeted {
                Greeted::NotYet => self.version(&line)?,
                Greeted::ByClient => return self.command(&line).map(Some),
            }
        }
        Ok(None)
    }

    fn version(&mut self, line: &[u8]) -> Result<(), ProtocolError> {
        let mut fields = fields(line);
        let (Some(b"VERSION"), Some(major)) = (fields.next(), fields.next().and_then(number))
        else {
            return Err(ProtocolError::NoVersion);
        };
        if major != 1 {
            return Err(ProtocolError::MajorVersion(major));
        }
        self.greeted = Greeted::ByClient;
        Ok(())
    }

    fn command(&self, line: &[u8]) -> Result<Command, ProtocolError> {
        let mut fields = fields(line);
        match (fields.next(), self.kind) {
            (Some(b"USER"), _) => {
                let (id, user, service) = lookup("USER", fields)?;
                Ok(Command::User { id, user, service })
            }
            (Some(b"PASS"), _) => {
                let (id, user, service) = lookup("PASS", fields)?;
                Ok(Command::Pass { id, user, service })
            }
            (Some(b"LIST"), _) => list(fields),
            (Some(b"REQUEST"), MasterKind::Master) => request(fields),
            (Some(b"CACHE-FLUSH"), MasterKind::Master) => cache_flush(fields),
            _ => Err(ProtocolError::UnknownCommand),
        }
    }
}

/// `<id> <user> service=<name>|protocol=<name> …`
fn lookup<'l>(
    command: &'static str,
    mut fields: impl Iterator<Item = &'l [u8]>,
) -> Result<(u32, Vec<u8>, Box<str>), ProtocolError> {
    let id = numeric(command, "id", fields.next())?;
    let user = fields.next().ok_or(ProtocolError::BadField { command, field: "user" })?;
    let mut service = None;
    for (key, value) in fields.map(key_value) {
        if matches!(key, b"service" | b"protocol") && !value.is_empty() {
            service = Some(text(value, MAX_TEXT_BYTES));
        }
    }
    let service = service.ok_or(ProtocolError::BadField { command, field: "service" })?;
    Ok((id, unescape(user).into_owned(), service))
}

/// `<id> [user=<mask>] …`
fn list<'l>(mut fields: impl Iterator<Item = &'l [u8]>) -> Result<Command, ProtocolError> {
    let id = numeric("LIST", "id", fields.next())?;
    let mask = fields.map(key_value).find(|(key, _)| *key == b"user");
    Ok(Command::List { id, mask: mask.map(|(_, mask)| unescape(mask).into_owned()) })
}

/// `<id> <client pid> <auth id> <cookie> [session_pid=<pid>] …`
fn request<'l>(mut fields: impl Iterator<Item = &'l [u8]>) -> Result<Command, ProtocolError> {
    let command = "REQUEST";
    let id = numeric(command, "id", fields.next())?;
    let client_pid = numeric(command, "client pid", fields.next())?;
    let auth_id = numeric(command, "auth id", fields.next())?;
    let cookie = fields.next().and_then(cookie);
    let cookie = cookie.ok_or(ProtocolError::BadField { command, field: "cookie" })?;
    let session_pid = fields
        .map(key_value)
        .find(|(key, _)| *key == b"session_pid")
        .map(|(_, pid)| numeric(command, "session_pid", Some(pid)))
        .transpose()?;
    Ok(Command::Request { id, client_pid, auth_id, cookie, session_pid })
}

/// `<id> [<user> …]`
fn cache_flush<'l>(mut fields: impl Iterator<Item = &'l [u8]>) -> Result<Command, ProtocolError> {
    let id = numeric("CACHE-FLUSH", "id", fields.next())?;
    let users = fields.filter(|user| !user.is_empty());
    Ok(Command::CacheFlush { id, users: users.map(|user| unescape(user).into_owned()).collect() })
}

fn numeric(
    command: &'static str,
    field: &'static str,
    value: Option<&[u8]>,
) -> Result<u32, ProtocolError> {
    value.and_then(number).ok_or(ProtocolError::BadField { command, field })
}

/// 32 hexadecimal digits.
fn cookie(hex: &[u8]) -> Option<[u8; 16]> {
    if hex.len() != 32 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let hex = std::str::from_utf8(hex).ok()?;
    Some(u128::from_str_radix(hex, 16).ok()?.to_be_bytes())
}

impl MasterReply<'_> {
    /// Appends the answer's line. An answer longer than Dovecot reads becomes a FAIL, so that one user's fields
    /// cannot break the connection for others.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let start = output.len();
        let id = self.encode_line(output);
        if output.len() - start > MAX_LINE_BYTES {
            output.truncate(start);
            Writer::line(output, "FAIL").number(id).end();
        }
    }

    /// Returns the command's number.
    fn encode_line(&self, output: &mut Vec<u8>) -> u32 {
        let (line, id) = match *self {
            Self::User { id, user, fields } => {
                (Writer::line(output, "USER").number(id).value(user).fields(fields), id)
            }
            Self::Pass { id, user, fields } => {
                (Writer::line(output, "PASS").number(id).pair("user", user).fields(fields), id)
            }
            Self::NotFound { id } => (Writer::line(output, "NOTFOUND").number(id), id),
            Self::Fail { id, reason } => {
                (Writer::line(output, "FAIL").number(id).reason(reason), id)
            }
            Self::ListItem { id, user } => {
                (Writer::line(output, "LIST").number(id).value(user), id)
            }
            Self::ListDone { id, end } => {
                let end = match end {
                    ListEnd::Complete => "",
                    ListEnd::Failed => "fail",
                };
                (Writer::line(output, "DONE").number(id).value(end), id)
            }
            Self::Flushed { id, count } => (
                Writer::line(output, "OK")
                    .number(id)
                    .number(u64::try_from(count).unwrap_or(u64::MAX)),
                id,
            ),
        };
        line.end();
        id
    }
}

/// Whether a user is meant by a mask: `*` stands for any bytes, `?` for one. Case matters, as in Dovecot.
#[must_use]
pub fn mask_matches(mask: &[u8], user: &str) -> bool {
    let (mut mask, mut rest) = (mask, user.as_bytes());
    // The mask after the last `*`, and what that `*` has not swallowed yet.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (mask.split_first(), rest.split_first()) {
            (Some((b'*', after)), _) => {
                mask = after;
                retry = Some((after, rest));
                continue;
            }
            (Some((wanted, after)), Some((byte, following)))
                if *wanted == b'?' || wanted == byte =>
            {
                (mask, rest) = (after, following);
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        let Some((after, (_, swallowed))) =
            retry.and_then(|(after, left)| Some((after, left.split_first()?)))
        else {
            return false;
        };
        (mask, rest) = (after, swallowed);
        retry = Some((after, swallowed));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn commands(kind: MasterKind, text: &str) -> Result<Vec<Command>, ProtocolError> {
        let mut input = BytesMut::from(format!("VERSION\t1\t1\n{text}").as_bytes());
        let mut session = MasterSession::new(kind);
        let mut commands = Vec::new();
        while let Some(command) = session.next_command(&mut input)? {
            commands.push(command);
        }
        Ok(commands)
    }

    fn encoded(reply: &MasterReply<'_>) -> String {
        let mut output = Vec::new();
        reply.encode(&mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn lookups_take_service_or_protocol_and_unescape_the_user() {
        let given = commands(
            MasterKind::Userdb,
            "USER\t4294967295\tj\x01to\tservice=lmtp\tlip=x\tdebug\nPASS\t2\tjoe\tprotocol=imap\n",
        );

        assert_eq!(
            given.unwrap(),
            [
                Command::User { id: u32::MAX, user: b"j\to".to_vec(), service: "lmtp".into() },
                Command::Pass { id: 2, user: b"joe".to_vec(), service: "imap".into() },
            ]
        );
    }

    #[test]
    fn list_has_an_optional_mask() {
        let given = commands(MasterKind::Master, "LIST\t1\nLIST\t2\tuser=*@b\tprotocol=x\n");

        assert_eq!(
            given.unwrap(),
            [
                Command::List { id: 1, mask: None },
                Command::List { id: 2, mask: Some(b"*@b".to_vec()) },
            ]
        );
    }

    #[test]
    fn request_reads_cookie_and_session_pid() {
        let line = "REQUEST\t9\t977\t1\t000102030405060708090A0b0c0d0e0f\tsession_pid=981\trequest_auth_token\n";

        let given = commands(MasterKind::Master, line).unwrap();

        let cookie = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let (id, client_pid, auth_id, session_pid) = (9, 977, 1, Some(981));
        assert_eq!(given, [Command::Request { id, client_pid, auth_id, cookie, session_pid }]);
    }

    #[test]
    fn broken_commands_are_protocol_errors_that_name_the_field() {
        for (line, message) in [
            ("USER\tx\tjoe\tservice=a\n", "USER without a usable id"),
            ("USER\t1\n", "USER without a usable user"),
            ("USER\t1\tjoe\n", "USER without a usable service"),
            ("PASS\t1\tjoe\tservice=\n", "PASS without a usable service"),
            ("LIST\n", "LIST without a usable id"),
            ("REQUEST\t1\t2\n", "REQUEST without a usable auth id"),
            ("REQUEST\t1\t2\t3\t0001\n", "REQUEST without a usable cookie"),
            (
                "REQUEST\t1\t2\t3\t+0102030405060708090a0b0c0d0e0f0\n",
                "REQUEST without a usable cookie",
            ),
            (
                "REQUEST\t1\t2\t3\t000102030405060708090a0b0c0d0e0f\tsession_pid=x\n",
                "REQUEST without a usable session_pid",
            ),
            ("CACHE-FLUSH\n", "CACHE-FLUSH without a usable id"),
            ("CPID\t1\n", "unknown command, or one that is not for this socket"),
            ("\n", "unknown command, or one that is not for this socket"),
        ] {
            assert_eq!(commands(MasterKind::Master, line).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn logins_cannot_be_claimed_on_the_userdb_socket() {
        for line in ["REQUEST\t1\t2\t3\t000102030405060708090a0b0c0d0e0f\n", "CACHE-FLUSH\t1\n"] {
            let error = commands(MasterKind::Userdb, line).unwrap_err();
            assert_eq!(error, ProtocolError::UnknownCommand);
        }
    }

    #[test]
    fn a_reply_longer_than_dovecot_reads_becomes_a_failure() {
        let long = "x".repeat(9000);

        let line = encoded(&MasterReply::User { id: 7, user: "joe", fields: &[("k", &long)] });

        assert_eq!(line, "FAIL\t7\n");
    }

    #[test]
    fn masks_match_as_in_dovecot() {
        for (mask, user, matches) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("joe", "joe", true),
            ("joe", "joes", false),
            ("*@b.example", "joe@b.example", true),
            ("*@b.example", "joe@c.example", false),
            ("j?e@*", "joe@x", true),
            ("j?e@*", "je@x", false),
            ("?", "", false),
            ("a*b*c", "axxbxxbc", true),
            ("a*b*c", "axxbxxb", false),
            ("**", "x", true),
            ("Joe", "joe", false),
        ] {
            assert_eq!(mask_matches(mask.as_bytes(), user), matches, "{mask} {user}");
        }
    }

    /// The textbook definition, exponential.
    fn matches_slowly(mask: &[u8], user: &[u8]) -> bool {
        match (mask.split_first(), user.split_first()) {
            (None, rest) => rest.is_none(),
            (Some((b'*', after)), rest) => {
                matches_slowly(after, user)
                    || rest.is_some_and(|(_, rest)| matches_slowly(mask, rest))
            }
            (Some((b'?', after)), Some((_, rest))) => matches_slowly(after, rest),
            (Some((wanted, after)), Some((byte, rest))) => {
                wanted == byte && matches_slowly(after, rest)
            }
            (Some(_), None) => false,
        }
    }

    /// Any command, with a name of any bytes.
    fn any_command() -> impl Strategy<Value = Command> {
        let (id, user) = (any::<u32>(), proptest::collection::vec(any::<u8>(), 1..40));
        prop_oneof![
            (id, user.clone(), "[a-z=]{1,9}").prop_map(|(id, user, service)| Command::User {
                id,
                user,
                service: service.into()
            }),
            (id, user.clone(), "[a-z=]{1,9}").prop_map(|(id, user, service)| Command::Pass {
                id,
                user,
                service: service.into()
            }),
            (id, prop::option::of(user.clone())).prop_map(|(id, mask)| Command::List { id, mask }),
            (id, any::<(u32, u32, [u8; 16], Option<u32>)>()).prop_map(
                |(id, (client_pid, auth_id, cookie, session_pid))| Command::Request {
                    id,
                    client_pid,
                    auth_id,
                    cookie,
                    session_pid
                }
            ),
            (id, proptest::collection::vec(user, 0..4))
                .prop_map(|(id, users)| Command::CacheFlush { id, users }),
        ]
    }

    /// As Dovecot says it.
    fn said(command: &Command) -> Vec<u8> {
        let mut line = Vec::new();
        let mut field = |before: &str, value: &[u8]| {
            line.extend_from_slice(before.as_bytes());
            super::super::line::escape(value, &mut line);
        };
        match command {
            Command::User { id, user, service } => {
                field(&format!("USER\t{id}\t"), user);
                field("\tdebug\tservice=", service.as_bytes());
            }
            Command::Pass { id, user, service } => {
                field(&format!("PASS\t{id}\t"), user);
                field("\tservice=", service.as_bytes());
            }
            Command::List { id, mask: Some(mask) } => field(&format!("LIST\t{id}\tuser="), mask),
            Command::List { id, mask: None } => field(&format!("LIST\t{id}"), b""),
            Command::Request { id, client_pid, auth_id, cookie, session_pid } => {
                let cookie = u128::from_be_bytes(*cookie);
                field(&format!("REQUEST\t{id}\t{client_pid}\t{auth_id}\t{cookie:032x}"), b"");
                if let Some(pid) = session_pid {
                    field("\tsession_pid=", pid.to_string().as_bytes());
                }
            }
            Command::CacheFlush { id, users } => {
                field(&format!("CACHE-FLUSH\t{id}"), b"");
                users.iter().for_each(|user| field("\t", user));
            }
        }
        line.push(b'\n');
        line
    }

    proptest! {
        #[test]
        fn commands_read_as_they_were_said(
            given in proptest::collection::vec(any_command(), 1..5),
            cut in 1usize..60,
        ) {
            let lines: Vec<_> = given.iter().map(said).collect();
            let stream = [&b"VERSION\t1\t1\n"[..], &lines.concat()].concat();
            let (mut session, mut input) = (MasterSession::new(MasterKind::Master), BytesMut::new());
            let mut read = Vec::new();
            for piece in stream.chunks(cut) {
                input.extend_from_slice(piece);
                while let Some(command) = session.next_command(&mut input).unwrap() {
                    read.push(command);
                }
            }
            prop_assert_eq!(read, given);
        }

        #[test]
        fn a_reply_is_one_line_whatever_is_in_it(id: u32, user: String, value: String, times in 1usize..400) {
            let value = value.repeat(times);
            let fields = [("home", value.as_str())];
            for reply in [
                MasterReply::User { id, user: &user, fields: &fields },
                MasterReply::Pass { id, user: &user, fields: &fields },
                MasterReply::Fail { id, reason: Some(&value) },
                MasterReply::ListItem { id, user: &value },
            ] {
                let line = encoded(&reply);
                prop_assert!(line.len() <= MAX_LINE_BYTES && line.find('\n') == Some(line.len() - 1));
                prop_assert_eq!(line.split(['\t', '\n']).nth(1), Some(&*id.to_string()));
            }
        }

        #[test]
        fn masks_match_by_definition(mask in "[ab*?]{0,8}", user in "[ab]{0,10}") {
            let expected = matches_slowly(mask.as_bytes(), user.as_bytes());
            prop_assert_eq!(mask_matches(mask.as_bytes(), &user), expected);
        }

        #[test]
        fn random_bytes_never_panic(pieces: Vec<Vec<u8>>) {
            for kind in [MasterKind::Master, MasterKind::Userdb] {
                let mut session = MasterSession::new(kind);
                let mut input = BytesMut::from(&b"VERSION\t1\t1\n"[..]);
                'stream: for piece in &pieces {
                    input.extend_from_slice(piece);
                    loop {
                        match session.next_command(&mut input) {
                            Ok(Some(_)) => {}
                            Ok(None) => break,
                            Err(_) => break 'stream,
                        }
                    }
                    prop_assert!(input.len() <= MAX_LINE_BYTES);
                }
            }
        }
    }
}
