//! checkpassword: what a mail server leaves on descriptor 3 for `gatepost-checkpassword`, what that program asks the
//! daemon, and what it answers Dovecot on descriptor 4.
//!
//! Between the program and the daemon one line goes each way over a unix socket, tab-separated and tab-escaped as in
//! Dovecot's own protocols; then the connection ends. `C:` is the program, `S:` the daemon, `→` a TAB:
//!
//! ```text
//! C: CHECK→1→user=joe→password=secret→service=imap→client=192.0.2.9→session=Zxa/ZtFgYNZ
//! S: OK→user=joe@example.org→uid=5000→gid=5000→home=/var/mail/joe→quota_rule=*:bytes=1073741824
//! ```
//!
//! `FIND` is a look-up without a password. The number after the command is the version of this protocol: program and
//! daemon may be upgraded one after the other. Other answers are `UNKNOWN` (no such user), `REFUSED` (a wrong password,
//! or a login that may not be) and `LATER`. A key that is not known is ignored.

use std::net::IpAddr;

use bytes::BytesMut;
use zeroize::Zeroizing;

pub use super::dovecot::line::LineTooLong;
use super::dovecot::line::{Lines, Writer, escape, fields, key_value, number, text, unescape};
use crate::secret::Password;

/// The most that may lie on descriptor 3, in bytes (<https://cr.yp.to/checkpwd/interface.html>).
pub const MAX_GIVEN_BYTES: usize = 512;

/// The longest line between the program and the daemon, in bytes, both ways.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

const VERSION: u32 = 1;

/// Service names and session ids are cut to this length, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// Who wants in, as the mail server leaves it on descriptor 3: `joe NUL secret NUL timestamp NUL …`.
#[derive(Debug)]
pub struct Given {
    /// The name, bytes as they came.
    pub user: Vec<u8>,
    /// The password; empty for a look-up.
    pub password: Password,
}

/// What is on descriptor 3 is no login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGiven {
    /// More than the interface allows: nobody's password is that long.
    #[error("more than {MAX_GIVEN_BYTES} bytes on descriptor 3")]
    TooLong,
    /// A name or a password without its NUL.
    #[error("no name and password, each ended by NUL, on descriptor 3")]
    Malformed,
}

impl Given {
    /// Reads what lay on the descriptor up to its end. What follows the password (a timestamp) says nothing to us.
    ///
    /// # Errors
    /// See [`NotGiven`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NotGiven> {
        if bytes.len() > MAX_GIVEN_BYTES {
            return Err(NotGiven::TooLong);
        }
        let mut parts = bytes.split(|byte| *byte == 0);
        // The part after the last NUL is not ended by one.
        let (Some(user), Some(password), Some(_)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(NotGiven::Malformed);
        };
        Ok(Self { user: user.to_vec(), password: Password::new(password) })
    }
}

/// What the program asks.
#[derive(Clone, Debug)]
pub struct Question {
    /// The name, bytes as they came.
    pub user: Vec<u8>,
    /// `None`: a look-up, nobody wants in.
    pub password: Option<Password>,
    /// What for: imap, lmtp …; may be empty. At most 256 bytes.
    pub service: Box<str>,
    /// The address of the person's client, where it is known.
    pub client: Option<IpAddr>,
    /// The mail server's session id. At most 256 bytes.
    pub session: Option<Box<str>>,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Let them in, or: they live there.
    Ok {
        /// The canonical name.
        user: String,
        /// The userdb fields, by Dovecot's names.
        fields: Vec<(String, String)>,
    },
    /// Nobody can say now.
    Later,
    /// Not with this password, or not there.
    Refused,
    /// There is no such user.
    Unknown,
}

/// The other end broke the protocol: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// More bytes than a line may hold.
    #[error(transparent)]
    LineTooLong(#[from] LineTooLong),
    /// Neither `CHECK` nor `FIND`, or an answer that does not exist.
    #[error("unknown command")]
    UnknownCommand,
    /// A version of this protocol that is not ours.
    #[error("another version of the protocol than {VERSION}")]
    Version,
    /// A field that it cannot do without.
    #[error("no usable {0}")]
    BadField(&'static str),
}

impl Question {
    /// Appends the line.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let command = if self.password.is_some() { "CHECK" } else { "FIND" };
        let mut line = Writer::line(output, command).number(VERSION).bytes("user", &self.user);
        if let Some(password) = &self.password {
            line = line.bytes("password", password.as_bytes());
        }
        let client = self.client.map(|client| client.to_string());
        line.pair("service", &self.service)
            .optional("client", client.as_deref())
            .optional("session", self.session.as_deref())
            .end();
    }

    /// Takes the question off the input. `None`: more bytes are needed.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(input: &mut BytesMut) -> Result<Option<Self>, ProtocolError> {
        let Some(line) = Lines::new(MAX_LINE_BYTES).next(input)? else { return Ok(None) };
        let mut fields = fields(&line);
        let is_check = match fields.next() {
            Some(b"CHECK") => true,
            Some(b"FIND") => false,
            _ => return Err(ProtocolError::UnknownCommand),
        };
        if fields.next().and_then(number) != Some(VERSION) {
            return Err(ProtocolError::Version);
        }
        let (mut user, mut password) = (None, None);
        let (mut service, mut client, mut session) = (Box::default(), None, None);
        for (key, value) in fields.map(key_value) {
            match key {
                b"user" => user = Some(unescape(value).into_owned()),
                b"password" => password = Some(Password::new(unescape(value))),
                b"service" => service = text(value, MAX_TEXT_BYTES),
                b"client" => client = address(value),
                b"session" if !value.is_empty() => session = Some(text(value, MAX_TEXT_BYTES)),
                _ => {}
            }
        }
        let user = user.ok_or(ProtocolError::BadField("user"))?;
        let password = match is_check {
            true => Some(password.ok_or(ProtocolError::BadField("password"))?),
            false => None,
        };

        Ok(Some(Self { user, password, service, client, session }))
    }
}

/// What cannot be read counts as not said.
fn address(value: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl Answer {
    /// Appends the line. An answer longer than a line may be becomes "later": half of somebody's fields would be worse.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let start = output.len();
        match self {
            Self::Ok { user, fields } => {
                let line = Writer::line(output, "OK").pair("user", user);
                fields.iter().fold(line, |line, (key, value)| line.pair(key, value)).end();
            }
            Self::Later => Writer::line(output, "LATER").end(),
            Self::Refused => Writer::line(output, "REFUSED").end(),
            Self::Unknown => Writer::line(output, "UNKNOWN").end(),
        }
        if output.len() - start > MAX_LINE_BYTES {
            output.truncate(start);
            Writer::line(output, "LATER").end();
        }
    }

    /// Takes the answer off the input. `None`: more bytes are needed.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(input: &mut BytesMut) -> Result<Option<Self>, ProtocolError> {
        let Some(line) = Lines::new(MAX_LINE_BYTES).next(input)? else { return Ok(None) };
        let mut fields = fields(&line);
        match fields.next() {
            Some(b"OK") => {}
            Some(b"LATER") => return Ok(Some(Self::Later)),
            Some(b"REFUSED") => return Ok(Some(Self::Refused)),
            Some(b"UNKNOWN") => return Ok(Some(Self::Unknown)),
            _ => return Err(ProtocolError::UnknownCommand),
        }
        let plain = |value| String::from_utf8(unescape(value).into_owned());
        let mut pairs = Vec::new();
        for (key, value) in fields.map(key_value) {
            let (Ok(key), Ok(value)) = (plain(key), plain(value)) else {
                return Err(ProtocolError::BadField("text"));
            };
            pairs.push((key, value));
        }
        match pairs.iter().position(|(key, _)| key == "user") {
            Some(at) => Ok(Some(Self::Ok { user: pairs.remove(at).1, fields: pairs })),
            None => Err(ProtocolError::BadField("user")),
        }
    }
}

/// What Dovecot reads from descriptor 4: `user=joe@example.org→userdb_uid=5000→…`, without a line's end. The names of its
/// userdb fields get `userdb_` before them.
#[must_use]
pub fn dovecot_reply(user: &str, fields: &[(String, String)]) -> Vec<u8> {
    let mut output = b"user=".to_vec();
    escape(user.as_bytes(), &mut output);
    for (key, value) in fields {
        output.extend_from_slice(b"\tuserdb_");
        escape(key.as_bytes(), &mut output);
        output.push(b'=');
        escape(value.as_bytes(), &mut output);
    }
    output
}

/// The line of a question, zeroed when it was sent.
#[must_use]
pub fn question_line(question: &Question) -> Zeroizing<Vec<u8>> {
    // Never grows: a vector that grows leaves copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(2 * MAX_LINE_BYTES));
    question.encode(&mut line);
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(text: &str) -> Result<Option<Question>, ProtocolError> {
        Question::parse(&mut BytesMut::from(text.as_bytes()))
    }

    fn line(question: &Question) -> String {
        String::from_utf8(question_line(question).to_vec()).unwrap()
    }

    #[test]
    fn name_and_password_are_read_from_descriptor_3() {
        #[track_caller]
        fn check(bytes: &[u8], user: &[u8], password: &[u8]) {
            let given = Given::parse(bytes).unwrap();
            assert_eq!((&given.user[..], given.password.as_bytes()), (user, password));
        }
        check(b"joe\0secret\0\0", b"joe", b"secret");
        check(b"joe\0s e=c\xff\0Y123456\0rest", b"joe", b"s e=c\xff");
        check(b"joe\0\0\0", b"joe", b"");
        check(b"joe\0secret\0", b"joe", b"secret");
        check(b"\0\0", b"", b"");
    }

    #[test]
    fn what_is_no_login_is_told_from_one_that_is_too_long() {
        for bytes in [&b""[..], b"joe", b"joe\0", b"joe\0secret"] {
            assert_eq!(Given::parse(bytes).err(), Some(NotGiven::Malformed), "{bytes:?}");
        }
        let given = |length: usize| [&vec![b'x'; length - 3][..], b"\0y\0"].concat();
        assert!(Given::parse(&given(MAX_GIVEN_BYTES)).is_ok());
        assert_eq!(Given::parse(&given(MAX_GIVEN_BYTES + 1)).err(), Some(NotGiven::TooLong));
    }

    #[test]
    fn a_question_is_one_line() {
        let check = Question {
            user: b"jo\te".to_vec(),
            password: Some(Password::new("se=cret\n")),
            service: "imap".into(),
            client: "2001:db8::9".parse().ok(),
            session: Some("Zxa".into()),
        };
        assert_eq!(
            line(&check),
            "CHECK\t1\tuser=jo\u{1}te\tpassword=se=cret\u{1}n\tservice=imap\tclient=2001:db8::9\tsession=Zxa\n"
        );
        let find = Question { password: None, client: None, session: None, ..check };
        assert_eq!(line(&find), "FIND\t1\tuser=jo\u{1}te\tservice=imap\n");
    }

    #[test]
    fn faults_of_a_question_have_their_names() {
        for (text, error) in [
            ("HELLO\t1\n", ProtocolError::UnknownCommand),
            ("\n", ProtocolError::UnknownCommand),
            ("CHECK\n", ProtocolError::Version),
            ("CHECK\t2\tuser=a\tpassword=b\n", ProtocolError::Version),
            ("CHECK\t1\tpassword=b\n", ProtocolError::BadField("user")),
            ("CHECK\t1\tuser=a\n", ProtocolError::BadField("password")),
        ] {
            assert_eq!(question(text).err(), Some(error), "{text:?}");
        }
        assert!(question("CHECK\t1\tuser=a").unwrap().is_none());
        assert!(matches!(
            question(&"x".repeat(MAX_LINE_BYTES + 1)),
            Err(ProtocolError::LineTooLong(_))
        ));
        let known = question("FIND\t1\tuser=a\tcolour=red\tpassword=b\tclient=x\tsession=\n");
        let known = known.unwrap().unwrap();
        assert!(known.password.is_none() && known.client.is_none() && known.session.is_none());
    }

    #[test]
    fn an_answer_longer_than_a_line_is_later() {
        let fields = vec![("mail".to_owned(), "x".repeat(MAX_LINE_BYTES))];
        let mut output = Vec::new();
        Answer::Ok { user: "joe".into(), fields }.encode(&mut output);
        assert_eq!(output, b"LATER\n");
    }

    #[test]
    fn dovecot_reads_fields_with_their_prefix() {
        let fields = [("uid".to_owned(), "5000".to_owned()), ("home".into(), "/a\tb".into())];
        assert_eq!(
            dovecot_reply("joe@example.org", &fields),
            b"user=joe@example.org\tuserdb_uid=5000\tuserdb_home=/a\x01tb"
        );
    }

    proptest! {
        #[test]
        fn questions_come_through(
            user: Vec<u8>,
            password in proptest::option::of(any::<Vec<u8>>()),
            service in "[^\0]{0,20}",
            client: Option<IpAddr>,
            session in proptest::option::of("[^\0]{1,20}"),
        ) {
            let asked = Question {
                user,
                password: password.map(Password::new),
                service: service.into(),
                client,
                session: session.map(Into::into),
            };
            let mut input = BytesMut::from(&question_line(&asked)[..]);
            let read = Question::parse(&mut input).unwrap().unwrap();
            prop_assert!(input.is_empty());
            prop_assert_eq!(read.user, asked.user);
            prop_assert_eq!(
                read.password.as_ref().map(Password::as_bytes),
                asked.password.as_ref().map(Password::as_bytes)
            );
            prop_assert_eq!((read.service, read.client, read.session), (asked.service, asked.client, asked.session));
        }

        #[test]
        fn answers_come_through(user: String, fields in proptest::collection::vec(("[a-z_/]{1,9}", any::<String>()), 0..6)) {
            let fields: Vec<_> = fields.into_iter().filter(|(key, _)| key != "user").collect();
            for answer in [Answer::Ok { user, fields }, Answer::Later, Answer::Refused, Answer::Unknown] {
                let mut output = Vec::new();
                answer.encode(&mut output);
                let read = Answer::parse(&mut BytesMut::from(&output[..])).unwrap();
                prop_assert_eq!(read, Some(answer));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _given = Given::parse(&bytes);
            let _question = Question::parse(&mut BytesMut::from(&bytes[..]));
            let _answer = Answer::parse(&mut BytesMut::from(&bytes[..]));
        }
    }
}
