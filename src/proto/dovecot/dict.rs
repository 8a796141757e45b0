//! Dovecot 2.3's dict proxy: passdb and userdb as keys of a dictionary. 2.4 has neither any more.
//!
//! `C:` is one of Dovecot's auth workers, `S:` is Gatepost; `→` is a TAB. Commands are one letter, glued to their first
//! field; HELLO is not answered, everything else in order:
//!
//! ```text
//! C: H3→2→0→→gatepost
//! C: Lshared/passdb/imap/192.0.2.9/5d0b…$91c2…$/joe→joe
//! S: O{"nopassword":"","user":"joe@example.org","userdb_uid":"5000","userdb_gid":"5000","userdb_home":"/var/mail/joe"}
//! C: Lshared/userdb-for/lmtp/nobody→nobody
//! S: N
//! C: I0→0→shared/userdb/→*
//! S: Oshared/userdb/joe@example.org→
//! S:
//! ```
//!
//! The keys are of our own making; contrib/dovecot-dict has the file in which Dovecot is told to build them. A name stands
//! last, because it may hold `/`. The password is encrypted in the key (AES-256-CBC, `%{encrypt;…}` of Dovecot), because
//! Dovecot writes keys into its log.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use aes::Aes256;
use bytes::BytesMut;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut, KeyIvInit};
use zeroize::Zeroizing;

pub use super::line::LineTooLong;
use super::line::{Lines, escape, fields, number, text, unescape};
use crate::secret::Password;

/// The longest line, in bytes, both ways (`DICT_CLIENT_MAX_LINE_LENGTH`).
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// Service names are cut to this length, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// What all keys begin with: they are the same for every user.
const SHARED: &[u8] = b"shared/";
/// What the keys of the userdb begin with, and a list.
const USERDB: &str = "shared/userdb/";

/// What Dovecot asks.
#[derive(Debug)]
pub enum Command {
    /// `passdb/<service>/<client>/<encrypted password>/<user>`: may this person in?
    Passdb(Question),
    /// `userdb-for/<service>/<user>`: where does this user live? `userdb/<user>` does not say what for.
    Userdb {
        /// The name, bytes as they came.
        user: Vec<u8>,
        /// What for: imap, lmtp …; at most 256 bytes, empty if it is not said.
        service: Box<str>,
    },
    /// A key that is none of ours.
    Other,
    /// Which users are there? At most so many.
    Iterate {
        /// `None`: all of them.
        limit: Option<u32>,
    },
    /// A list of keys that are none of ours.
    IterateOther,
}

/// A login to be judged.
#[derive(Debug)]
pub struct Question {
    /// The name, bytes as they came.
    pub user: Vec<u8>,
    /// What for: imap, pop3 …; at most 256 bytes.
    pub service: Box<str>,
    /// The address of the person's client, where it is known.
    pub client: Option<IpAddr>,
    /// What was typed.
    pub typed: Typed,
}

/// The part of a key that a password stands in.
#[derive(Debug)]
pub enum Typed {
    /// Nothing stands there: nobody wants in, somebody only looks (`doveadm auth lookup`, proxies).
    Nothing,
    /// This.
    Password(Password),
    /// It cannot be decrypted.
    Unreadable,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub enum DictReply<'a> {
    /// The value of a key: a flat JSON object with these members.
    Found(&'a [(&'a str, &'a str)]),
    /// There is no such key.
    NotFound,
    /// Nobody can say now. The text is for Dovecot's log.
    Failed(&'a str),
    /// One user of a list.
    ListItem(&'a str),
    /// The list is whole.
    ListDone,
}

/// The client broke the protocol: the connection must be closed, as Dovecot's own dict server does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// More bytes than a line may hold.
    #[error(transparent)]
    LineTooLong(#[from] LineTooLong),
    /// The first line must be `H`, major, TAB, minor, TAB ….
    #[error("first line is no HELLO line")]
    NoHello,
    /// Only version 3 exists; 2.4 speaks 4 and has no passdb to ask with.
    #[error("protocol version {0} is not supported, only 3 is")]
    MajorVersion(u32),
    /// A command that does not exist, or one that writes.
    #[error("unknown command, or one that would write")]
    UnknownCommand,
    /// A field that the command cannot do without.
    #[error("command without a usable {0}")]
    BadField(&'static str),
}

/// The key of the passwords in dict keys.
pub struct PasswordKey(Zeroizing<[u8; 32]>);

impl PasswordKey {
    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        let mut key = Zeroizing::new([0; 32]);
        decode_hex(hex.as_bytes(), key.as_mut_slice())?;
        Some(Self(key))
    }

    /// Undoes `%{encrypt;algo=aes-256-cbc,key=…:password}`: `<iv>$<cipher text>$`, both in hexadecimal digits.
    fn decrypt(&self, encrypted: &[u8]) -> Option<Password> {
        let mut parts = encrypted.split(|byte| *byte == b'$');
        // The third part would be a tag, which this mode has not.
        let (iv_hex, cipher_hex, b"", None) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next())
        else {
            return None;
        };
        let mut iv = [0; 16];
        decode_hex(iv_hex, &mut iv)?;
        let mut buffer = Zeroizing::new(vec![0; cipher_hex.len() / 2]);
        decode_hex(cipher_hex, &mut buffer)?;
        let cipher = cbc::Decryptor::<Aes256>::new((&*self.0).into(), &iv.into());
        let plain = cipher.decrypt_padded_mut::<Pkcs7>(&mut buffer).ok()?;
        Some(Password::new(plain))
    }
}

impl fmt::Debug for PasswordKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PasswordKey(********)")
    }
}

/// Fills `output` with what the digits say; `None`: other bytes than digits, or not as many as that.
fn decode_hex(digits: &[u8], output: &mut [u8]) -> Option<()> {
    let value =
        |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    if digits.len() != output.len() * 2 {
        return None;
    }
    for (pair, byte) in digits.chunks_exact(2).zip(output) {
        let [high, low] = pair else { return None };
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(())
}

/// One connection.
#[derive(Debug)]
pub struct DictSession {
    lines: Lines,
    greeted: bool,
}

impl Default for DictSession {
    fn default() -> Self {
        Self::new()
    }
}

impl DictSession {
    /// A connection just accepted.
    #[must_use]
    pub fn new() -> Self {
        Self { lines: Lines::new(MAX_LINE_BYTES), greeted: false }
    }

    /// Takes the next command off the input. `None`: more bytes are needed.
    ///
    /// # Errors
    /// When the client broke the protocol. Close the connection, do not call again.
    pub fn next_command(
        &mut self,
        input: &mut BytesMut,
        key: &PasswordKey,
    ) -> Result<Option<Command>, ProtocolError> {
        while let Some(line) = self.lines.next(input)? {
            if self.greeted {
                return command(&line, key).map(Some);
            }
            hello(&line)?;
            self.greeted = true;
        }
        Ok(None)
    }
}

/// `H<major> <minor> …`. The minor version, the type of values, the user and the dict's name tell us nothing.
fn hello(line: &[u8]) -> Result<(), ProtocolError> {
    let rest = line.strip_prefix(b"H").ok_or(ProtocolError::NoHello)?;
    match fields(rest).next().and_then(number) {
        None => Err(ProtocolError::NoHello),
        Some(3) => Ok(()),
        Some(major) => Err(ProtocolError::MajorVersion(major)),
    }
}

fn command(line: &[u8], key: &PasswordKey) -> Result<Command, ProtocolError> {
    match line.split_first() {
        Some((b'L', rest)) => Ok(lookup(rest, key)),
        Some((b'I', rest)) => iterate(rest),
        _ => Err(ProtocolError::UnknownCommand),
    }
}

/// `L<key> <user>`
fn lookup(rest: &[u8], password_key: &PasswordKey) -> Command {
    let name = unescape(fields(rest).next().unwrap_or_default());
    let Some(key) = name.strip_prefix(SHARED) else { return Command::Other };
    if let Some(user) = key.strip_prefix(b"userdb/") {
        return Command::Userdb { user: user.to_vec(), service: "".into() };
    }
    if let Some(rest) = key.strip_prefix(b"userdb-for/") {
        let mut parts = rest.splitn(2, |byte| *byte == b'/');
        return match (parts.next(), parts.next()) {
            (Some(service), Some(user)) => {
                Command::Userdb { user: user.to_vec(), service: text(service, MAX_TEXT_BYTES) }
            }
            _ => Command::Other,
        };
    }
    let question = |key: &[u8]| {
        let mut parts = key.strip_prefix(b"passdb/")?.splitn(4, |byte| *byte == b'/');
        let [service, client, encrypted, user] =
            [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        Some(Question {
            user: user.to_vec(),
            service: text(service, MAX_TEXT_BYTES),
            client: std::str::from_utf8(client).ok().and_then(|text| text.parse().ok()),
            typed: match password_key.decrypt(encrypted) {
                Some(password) => Typed::Password(password),
                None if encrypted.is_empty() => Typed::Nothing,
                None => Typed::Unreadable,
            },
        })
    };
    question(key).map_or(Command::Other, Command::Passdb)
}

/// `I<flags> <most rows> <prefix> <user>`; 0 rows: all of them. No flag would change an answer of ours.
fn iterate(rest: &[u8]) -> Result<Command, ProtocolError> {
    let mut fields = fields(rest).skip(1);
    let limit = fields.next().and_then(number).ok_or(ProtocolError::BadField("number of rows"))?;
    let prefix = fields.next().ok_or(ProtocolError::BadField("prefix"))?;
    Ok(match *unescape(prefix) == *USERDB.as_bytes() {
        true => Command::Iterate { limit: Some(limit).filter(|limit| *limit > 0) },
        false => Command::IterateOther,
    })
}

impl DictReply<'_> {
    /// Appends the answer's line. One longer than Dovecot reads becomes a failure.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let start = output.len();
        self.encode_line(output);
        output.push(b'\n');
        if output.len() - start > MAX_LINE_BYTES {
            output.truncate(start);
            output.extend_from_slice(b"Fthe answer is too long\n");
        }
    }

    fn encode_line(&self, output: &mut Vec<u8>) {
        match *self {
            Self::Found(members) => {
                let object: BTreeMap<&str, &str> = members.iter().copied().collect();
                output.push(b'O');
                // A map of texts is always JSON; an empty line would be taken for the end of a list.
                let json = serde_json::to_vec(&object).unwrap_or_default();
                escape(&json, output);
            }
            Self::NotFound => output.push(b'N'),
            Self::Failed(why) => {
                output.push(b'F');
                escape(why.as_bytes(), output);
            }
            Self::ListItem(user) => {
                output.push(b'O');
                escape(USERDB.as_bytes(), output);
                escape(user.as_bytes(), output);
                output.push(b'\t');
            }
            Self::ListDone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use cbc::cipher::BlockEncryptMut;
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn key() -> PasswordKey {
        PasswordKey::parse(KEY).unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What Dovecot's `%{encrypt;…}` makes of a password.
    fn encrypted(password: &[u8], iv: [u8; 16]) -> String {
        let cipher = cbc::Encryptor::<Aes256>::new((&*key().0).into(), &iv.into());
        let text = cipher.encrypt_padded_vec_mut::<Pkcs7>(password);
        format!("{}${}$", hex(&iv), hex(&text))
    }

    fn commands(text: &[u8]) -> Result<Vec<Command>, ProtocolError> {
        let mut input = BytesMut::from(&b"H3\t2\t0\t\tgatepost\n"[..]);
        input.extend_from_slice(text);
        let (mut session, key) = (DictSession::new(), key());
        let mut commands = Vec::new();
        while let Some(command) = session.next_command(&mut input, &key)? {
            commands.push(command);
        }
        Ok(commands)
    }

    fn one(line: &str) -> Command {
        commands(format!("{line}\n").as_bytes()).unwrap().pop().unwrap()
    }

    fn encoded(reply: &DictReply<'_>) -> String {
        let mut output = Vec::new();
        reply.encode(&mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn a_login_is_read_from_its_key() {
        let password = encrypted(b"s\x01\xff/%", [7; 16]);

        let given = one(&format!("Lshared/passdb/imap/2001:db8::9/{password}/a/b@c\ta/b@c"));

        let Command::Passdb(question) = given else { panic!("{given:?}") };
        assert_eq!(question.user, b"a/b@c");
        assert_eq!(&*question.service, "imap");
        assert_eq!(question.client, "2001:db8::9".parse().ok());
        assert!(matches!(question.typed, Typed::Password(it) if it.as_bytes() == b"s\x01\xff/%"));
    }

    #[test]
    fn a_login_without_client_is_one() {
        let given = one(&format!("Lshared/passdb/imap//{}/joe\tjoe", encrypted(b"x", [0; 16])));

        assert!(
            matches!(
                given,
                Command::Passdb(Question { client: None, typed: Typed::Password(_), .. })
            ),
            "{given:?}"
        );
    }

    #[test]
    fn what_cannot_be_decrypted_is_no_password() {
        let good = encrypted(b"secret", [9; 16]);
        assert!(key().decrypt(good.as_bytes()).is_some());
        for bad in [
            String::new(),
            "$$".into(),
            "secret".into(),
            good.replace('$', ""),
            format!("{good}00"),
            format!("{good}$"),
            good.replacen(|digit: char| digit.is_ascii_digit(), "g", 1),
            good.get(..good.len() - 3).unwrap().to_owned() + "$",
            format!("{}$$", hex(&[9; 16])),
            format!("{}${}$", hex(&[9; 16]), hex(&[0; 16])),
        ] {
            assert!(key().decrypt(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_key_without_password_is_somebody_who_looks() {
        let given = one("Lshared/passdb/doveadm///joe\tjoe");

        let Command::Passdb(question) = given else { panic!("{given:?}") };
        assert!(matches!(question.typed, Typed::Nothing));
        assert_eq!(question.user, b"joe");
    }

    #[test]
    fn only_64_hexadecimal_digits_are_a_key() {
        assert!(PasswordKey::parse(&KEY.to_uppercase()).is_some());
        for bad in
            ["", "00", KEY.strip_prefix('0').unwrap(), &format!("{KEY}0"), &KEY.replace('0', "g")]
        {
            assert!(PasswordKey::parse(bad).is_none(), "{bad}");
        }
        assert_eq!(format!("{:?}", key()), "PasswordKey(********)");
    }

    #[test]
    fn other_keys_are_none_of_ours() {
        for line in [
            "L",
            "Lpriv/userdb/joe\tjoe",
            "Lshared/userdb-for/joe\tjoe",
            "Lshared/quota/joe\tjoe",
            "Lshared/passdb/joe\tjoe",
            "Lshared/passdb/imap/192.0.2.1/joe\tjoe",
        ] {
            assert!(matches!(one(line), Command::Other), "{line}");
        }
        assert!(matches!(one("I0\t0\tshared/passdb/\t*"), Command::IterateOther));
        for (key, for_what) in [("userdb", ""), ("userdb-for/", ""), ("userdb-for/imap", "imap")] {
            let given = one(&format!("Lshared/{key}/a\x01tb/c\tx"));
            let Command::Userdb { user, service } = given else { panic!("{given:?}") };
            assert_eq!((&*user, &*service), (&b"a\tb/c"[..], for_what), "{key}");
        }
    }

    #[test]
    fn a_list_may_have_a_limit() {
        assert!(matches!(one("I0\t0\tshared/userdb/\t*"), Command::Iterate { limit: None }));
        assert!(matches!(one("I33\t5\tshared/userdb/"), Command::Iterate { limit: Some(5) }));
    }

    #[test]
    fn faults_end_the_connection() {
        for (stream, error) in [
            ("Lshared/userdb/joe\n", ProtocolError::NoHello),
            ("H\n", ProtocolError::NoHello),
            ("Hx\t2\n", ProtocolError::NoHello),
            ("H4\t0\t0\tgatepost\n", ProtocolError::MajorVersion(4)),
            ("H3\t2\nH3\t2\n", ProtocolError::UnknownCommand),
            ("H3\t2\n\n", ProtocolError::UnknownCommand),
            ("H3\t2\nS1\tshared/userdb/joe\tx\n", ProtocolError::UnknownCommand),
            ("H3\t2\nI0\t\tshared/userdb/\n", ProtocolError::BadField("number of rows")),
            ("H3\t2\nI0\t0\n", ProtocolError::BadField("prefix")),
        ] {
            let mut input = BytesMut::from(stream.as_bytes());
            let given = DictSession::new().next_command(&mut input, &key());
            assert_eq!(given.err(), Some(error), "{stream:?}");
        }
        let long = vec![b'H'; MAX_LINE_BYTES + 1];
        let given = DictSession::new().next_command(&mut BytesMut::from(&long[..]), &key());
        assert!(matches!(given, Err(ProtocolError::LineTooLong(_))));
    }

    #[test]
    fn replies_are_what_dovecot_reads() {
        for (reply, line) in [
            (
                DictReply::Found(&[("nopassword", ""), ("user", "jö\te\"")]),
                "O{\"nopassword\":\"\",\"user\":\"jö\\te\\\"\"}\n",
            ),
            (DictReply::NotFound, "N\n"),
            (DictReply::Failed("store\nis away"), "Fstore\x01nis away\n"),
            (DictReply::ListItem("a/b@c"), "Oshared/userdb/a/b@c\t\n"),
            (DictReply::ListDone, "\n"),
        ] {
            assert_eq!(encoded(&reply), line);
        }
        let long = "x".repeat(MAX_LINE_BYTES);
        assert_eq!(encoded(&DictReply::Found(&[("mail", &long)])), "Fthe answer is too long\n");
    }

    proptest! {
        #[test]
        fn passwords_of_any_bytes_come_through(password: Vec<u8>, iv: [u8; 16], user in "[^/]{1,20}(/x)?") {
            let mut line = b"L".to_vec();
            let name = format!("shared/passdb/imap/192.0.2.9/{}/{user}", encrypted(&password, iv));
            escape(name.as_bytes(), &mut line);
            line.push(b'\n');
            let given = commands(&line).unwrap().pop();
            let Some(Command::Passdb(question)) = given else { panic!("{given:?}") };
            prop_assert_eq!(question.user, user.as_bytes());
            let Typed::Password(given) = question.typed else { panic!("no password") };
            prop_assert_eq!(given.as_bytes(), &password[..]);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _read = commands(&bytes);
            let _opened = key().decrypt(&bytes);
        }

        #[test]
        fn values_of_any_text_are_one_line_of_json(value: String) {
            let line = encoded(&DictReply::Found(&[("home", &value)]));
            let json = line.strip_prefix('O').unwrap().strip_suffix('\n').unwrap();
            prop_assert!(!json.contains(['\n', '\t', '\r']));
            let json = unescape(json.as_bytes());
            let read: BTreeMap<String, String> = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(&read["home"], &value);
        }
    }
}
