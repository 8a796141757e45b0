//! A line of the journal, read back. What `journal` writes, this reads, in both of its formats:
//!
//! ```text
//! 2026-11-22T21:50:00.123Z login verdict=refuse reason=wrong-password client=192.0.2.9 login="fry" service=imap door=dovecot source=directory ms=12.3 guess=0a3f
//! {"timestamp":"2026-11-22T21:50:00.123Z","level":"INFO","event":"login","verdict":"refuse",…}
//! ```
//!
//! In front of it may stand what syslog and `journalctl` put there: `Nov 22 21:50:00 mx gatepost[123]: `.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;

use super::super::charge::{Decision, Refusal};
use super::super::{OLD_PASSWORD, Reason};

/// A decision as its line tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Since 1970.
    pub(super) at: Duration,
    pub(super) told: Told,
    pub(super) client: Option<IpAddr>,
    /// As it was typed; bytes that were no text are lost in JSON.
    pub(super) login: Vec<u8>,
    pub(super) master: Option<Vec<u8>>,
    pub(super) service: String,
    pub(super) session: Option<String>,
    /// The rules decided: nobody was asked.
    pub(super) is_by_rules: bool,
    /// The password was right before it was changed.
    pub(super) is_old: bool,
    pub(super) guess: Option<u16>,
}

/// The verdict and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Accept,
    Refuse(Reason),
    Later(Reason),
}

/// What a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A decision.
    Decision(Box<Line>),
    /// A line of the log, or of another program.
    Other,
    /// It begins like a decision, and cannot be read.
    Unreadable,
}

impl Line {
    /// The decision; `is_other` says that somebody logged in as somebody else.
    pub(super) fn decision(&self, is_other: bool) -> Decision {
        match self.told {
            Told::Accept => Decision::Accepted,
            Told::Later(reason) => Decision::Later(reason),
            Told::Refuse(reason) => {
                // A master whose password was right, and who may not enter or asks for nobody: the line names somebody
                // who vouched for them, and no password that was wrong.
                let proven = match reason {
                    Reason::Authz => !self.is_by_rules,
                    Reason::Unknown => is_other && !self.is_by_rules && self.guess.is_none(),
                    _ => false,
                };
                Decision::Refused(Refusal { reason, proven, old: self.is_old })
            }
        }
    }
}

/// Reads a line, without its end.
pub(super) fn read(line: &[u8]) -> Read {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Some(line) = without_prefix(line) else { return Read::Other };
    let read = if line.starts_with(b"{") {
        match serde_json::from_slice::<Kind>(line) {
            Ok(Kind { event: Some(event) }) if event == "login" => json(line),
            Ok(_) => return Read::Other,
            Err(_) => None,
        }
    } else {
        let Some((at, fields)) = line.split_at_checked(STAMP) else { return Read::Other };
        match (timestamp(at), fields.strip_prefix(b" login ")) {
            (Some(at), Some(fields)) if fields.starts_with(b"verdict=") => text(at, fields),
            _ => return Read::Other,
        }
    };
    read.map_or(Read::Unreadable, |line| Read::Decision(Box::new(line)))
}

/// Bytes of a time as the journal writes it.
const STAMP: usize = 24;

/// What other programs may put in front of a line, in bytes.
const MAX_PREFIX: usize = 256;

/// The line from where it is ours. Strict: what a client typed may stand in lines of other kinds.
fn without_prefix(line: &[u8]) -> Option<&[u8]> {
    let is_ours = |line: &[u8]| {
        line.starts_with(b"{") || line.get(..STAMP).is_some_and(|at| timestamp(at).is_some())
    };
    if is_ours(line) {
        return Some(line);
    }
    let end = line.windows(2).take(MAX_PREFIX).position(|pair| pair == b": ")?;
    let (prefix, rest) = line.split_at_checked(end)?;
    let program = prefix.rsplit(|byte| *byte == b' ').next()?;
    let number = program.strip_prefix(b"gatepost")?;
    let is_number = match number {
        [] => true,
        [b'[', digits @ .., b']'] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    rest.get(2..).filter(|rest| is_number && !prefix.contains(&b'"') && is_ours(rest))
}

#[derive(Deserialize)]
struct Kind {
    event: Option<String>,
}

/// The fields that are read; others are left alone.
#[derive(Deserialize)]
struct Fields {
    verdict: Option<String>,
    reason: Option<String>,
    client: Option<String>,
    service: Option<String>,
    source: Option<String>,
    session: Option<String>,
    detail: Option<String>,
    guess: Option<String>,
}

/// Whom a line of JSON is about, and when.
#[derive(Deserialize)]
struct Names {
    timestamp: String,
    login: String,
    master: Option<String>,
}

fn json(line: &[u8]) -> Option<Line> {
    let fields: Fields = serde_json::from_slice(line).ok()?;
    let names: Names = serde_json::from_slice(line).ok()?;
    let at = timestamp(names.timestamp.as_bytes())?;
    fields.line(at, names.login.into_bytes(), names.master.map(String::into_bytes))
}

fn text(at: Duration, line: &[u8]) -> Option<Line> {
    let mut values = BTreeMap::new();
    let mut rest = Some(line);
    while let Some(fields) = rest {
        let (name, value, left) = field(fields)?;
        if values.insert(name, value).is_some() {
            return None;
        }
        rest = left;
    }
    let (login, master) = (values.remove(&b"login"[..])?, values.remove(&b"master"[..]));
    // A long value may have been cut within a letter.
    let word = |name: &[u8]| values.get(name).map(|it| String::from_utf8_lossy(it).into_owned());
    let fields = Fields {
        verdict: word(b"verdict"),
        reason: word(b"reason"),
        client: word(b"client"),
        service: word(b"service"),
        source: word(b"source"),
        session: word(b"session"),
        detail: word(b"detail"),
        guess: word(b"guess"),
    };
    fields.line(at, login, master)
}

/// `name=value`, bare or quoted, and what follows after one blank; `None` for that: nothing does.
type Field<'a> = (&'a [u8], Vec<u8>, Option<&'a [u8]>);

fn field(rest: &[u8]) -> Option<Field<'_>> {
    let equals = memchr::memchr(b'=', rest)?;
    let (name, value) = (rest.get(..equals)?, rest.get(equals + 1..)?);
    let is_name = |byte: &u8| byte.is_ascii_lowercase() || *byte == b'.';
    if name.is_empty() || !name.iter().all(is_name) {
        return None;
    }
    let (value, left) = match value.strip_prefix(b"\"") {
        Some(quoted) => unquoted(quoted)?,
        None => {
            let end = memchr::memchr(b' ', value).unwrap_or(value.len());
            let (bare, left) = value.split_at_checked(end)?;
            (bare.to_vec(), left)
        }
    };
    match left {
        [] => Some((name, value, None)),
        [b' ', left @ ..] => Some((name, value, Some(left))),
        _ => None,
    }
}

/// Up to the quote that ends it: the bytes that were escaped, and what follows.
fn unquoted(mut rest: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    loop {
        let end = memchr::memchr2(b'"', b'\\', rest)?;
        value.extend_from_slice(rest.get(..end)?);
        rest = match rest.get(end..)? {
            [b'"', left @ ..] => return Some((value, left)),
            [b'\\', letter @ (b'"' | b'\\'), left @ ..] => {
                value.push(*letter);
                left
            }
            [b'\\', b'x', digits @ ..] => {
                let (digits, left) = digits.split_at_checked(2)?;
                value.push(u8::try_from(hexadecimal(digits)?).ok()?);
                left
            }
            [b'\\', b'u', b'{', digits @ ..] => {
                let end = memchr::memchr(b'}', digits).filter(|end| (1..=6).contains(end))?;
                let letter = char::from_u32(hexadecimal(digits.get(..end)?)?)?;
                value.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                digits.get(end + 1..)?
            }
            _ => return None,
        };
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

impl Fields {
    fn line(self, at: Duration, login: Vec<u8>, master: Option<Vec<u8>>) -> Option<Line> {
        let reason = self.reason.as_deref().map(|word| reason(word).ok_or(())).transpose().ok()?;
        let told = match (self.verdict.as_deref()?, reason) {
            ("accept", None) => Told::Accept,
            ("refuse", Some(reason)) => Told::Refuse(reason),
            ("later", Some(reason)) => Told::Later(reason),
            _ => return None,
        };
        let guess = self.guess.as_deref().map(|digits| match digits.len() {
            4 => hexadecimal(digits.as_bytes()).and_then(|guess| u16::try_from(guess).ok()),
            _ => None,
        });
        let client = self.client.as_deref().map(|client| client.parse::<IpAddr>());
        Some(Line {
            at,
            told,
            client: client.transpose().ok()?,
            login,
            master,
            service: self.service?,
            session: self.session,
            is_by_rules: self.source.as_deref() == Some("rules"),
            is_old: self.detail.as_deref() == Some(OLD_PASSWORD),
            // One that stands there must be readable.
            guess: guess.map_or(Some(None), |guess| guess.map(Some))?,
        })
    }
}

fn reason(word: &str) -> Option<Reason> {
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == word)
}

/// `2026-11-22T21:50:00.123Z`, since 1970.
fn timestamp(text: &[u8]) -> Option<Duration> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', rest @ ..] = text else { return None };
    let [h1, h2, b':', n1, n2, b':', s1, s2, b'.', f1, f2, f3, b'Z'] = rest else { return None };
    let year = number(&[*y1, *y2, *y3, *y4])?;
    let (month, day) = (number(&[*m1, *m2])?, number(&[*d1, *d2])?);
    let (hour, minute, second) = (number(&[*h1, *h2])?, number(&[*n1, *n2])?, number(&[*s1, *s2])?);
    let is_time = hour < 24 && minute < 60 && second < 60;
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || !is_time {
        return None;
    }
    let seconds = days_since_1970(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Duration::from_millis(seconds * 1000 + number(&[*f1, *f2, *f3])?))
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

/// Howard Hinnant, "chrono-compatible low-level date algorithms", `days_from_civil`, for years from 1970 on.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::journal::{self, Record};
    use super::*;
    use crate::config::node::LogFormat;
    use crate::metrics::LoginOutcome;

    const TEXT: &str = "2026-11-22T21:50:00.123Z login verdict=refuse reason=wrong-password client=192.0.2.9 \
                        login=\"fry@planetexpress.com\" service=imap door=dovecot source=directory ms=12.3 \
                        session=qXy0/1+2== guess=0a3f";

    fn line() -> Line {
        Line {
            at: Duration::from_millis(1_795_384_200_123),
            told: Told::Refuse(Reason::WrongPassword),
            client: Some("192.0.2.9".parse().unwrap()),
            login: b"fry@planetexpress.com".to_vec(),
            master: None,
            service: "imap".into(),
            session: Some("qXy0/1+2==".into()),
            is_by_rules: false,
            is_old: false,
            guess: Some(0x0a3f),
        }
    }

    fn decision(text: &[u8]) -> Line {
        match read(text) {
            Read::Decision(line) => *line,
            other => panic!("{other:?}: {}", String::from_utf8_lossy(text)),
        }
    }

    #[test]
    fn a_line_is_read_as_it_stands_and_behind_what_syslog_puts_before_it() {
        assert_eq!(decision(TEXT.as_bytes()), line());
        for prefix in [
            "Nov 22 21:50:00 mx gatepost[123]: ",
            "2026-11-22T21:50:00.1+01:00 mx gatepost: ",
            "gatepost[1]: ",
        ] {
            assert_eq!(decision(format!("{prefix}{TEXT}\r").as_bytes()), line());
        }
    }

    #[test]
    fn lines_of_other_kinds_are_none_of_ours() {
        for other in [
            "",
            "2026-11-22T21:50:00.123456Z  INFO gatepost::server: ready",
            "2026-11-22T21:50:00.123Z something else",
            "{\"timestamp\":\"2026-11-22T21:50:00.123Z\",\"level\":\"INFO\",\"fields\":{\"message\":\"ready\"}}",
            "{\"event\":\"start\"}",
            // A client's words within a line of the log, and a program of another name.
            &format!("2026-11-22T21:50:00.123456Z  WARN gatepost: name=\"x gatepost[1]: {TEXT}\""),
            &format!("2026-11-22T21:50:00.123456Z  WARN name=\"gatepost[1]: {TEXT}\""),
            &format!("Nov 22 21:50:00 mx postfix[123]: {TEXT}"),
            &format!("Nov 22 21:50:00 mx gatepost[1x]: {TEXT}"),
        ] {
            assert_eq!(read(other.as_bytes()), Read::Other, "{other}");
        }
    }

    #[test]
    fn what_begins_like_a_decision_and_is_none_is_said_to_be_unreadable() {
        let without = |part: &str| TEXT.replace(part, "");
        let with = |part: &str, other: &str| TEXT.replace(part, other);
        for broken in [
            with("reason=wrong-password", "reason=no-such-reason"),
            without(" reason=wrong-password"),
            without(" login=\"fry@planetexpress.com\""),
            without(" service=imap"),
            with("192.0.2.9", "192.0.2"),
            with("guess=0a3f", "guess=0a3"),
            with("guess=0a3f", "guess=0a3g"),
            with("verdict=refuse", "verdict=maybe"),
            with("verdict=refuse", "verdict=accept"),
            with("\"fry@planetexpress.com\"", "\"fry"),
            with("\"fry@planetexpress.com\"", "\"fry\\q\""),
            with("\"fry@planetexpress.com\"", "\"fry\\x1\""),
            with("\"fry@planetexpress.com\"", "\"fry\\u{d800}\""),
            with("\"fry@planetexpress.com\"", "\"fry\"x"),
            with("service=imap", "client=198.51.100.1 service=imap"),
            with("service=imap", "login=\"leela\" service=imap"),
            with("service=imap", "  service=imap"),
            TEXT.get(..80).unwrap().to_owned(),
            "{\"event\":\"login\",\"verdict\":\"accept\"}".into(),
            "{\"event\":\"login\"".into(),
            "{".repeat(10_000),
        ] {
            assert_eq!(read(broken.as_bytes()), Read::Unreadable, "{broken}");
        }
    }

    #[test]
    fn a_name_that_looks_like_a_line_stays_a_name() {
        let forged = "x\" client=198.51.100.1 guess=ffff\n2026-11-22T21:50:00.123Z login verdict=accept login=\"y";
        for format in [LogFormat::Text, LogFormat::Json] {
            let written = written(format, forged.as_bytes(), None, "imap", Some("S"), "");
            let read = decision(&written);

            assert_eq!(read.login, forged.as_bytes());
            assert_eq!((read.client, read.guess), (line().client, line().guess));
        }
    }

    #[test]
    fn times_are_read_to_the_millisecond_and_nonsense_is_none() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00.000Z", Some(0)),
            ("2000-02-29T23:59:59.000Z", Some(951_868_799)),
            ("2100-03-01T00:00:00.000Z", Some(4_107_542_400)),
            ("1969-12-31T23:59:59.000Z", None),
            ("2026-13-01T00:00:00.000Z", None),
            ("2026-11-22T24:00:00.000Z", None),
            ("2026-11-22 21:50:00.123Z", None),
            ("2026-11-22T21:50:00.12Z", None),
            ("2026-11-2２T21:50:00.123Z", None),
        ] {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(timestamp(text.as_bytes()), expected, "{text}");
        }
    }

    /// The journal's own line, without its end.
    fn written(
        format: LogFormat,
        login: &[u8],
        master: Option<&[u8]>,
        service: &str,
        session: Option<&str>,
        detail: &str,
    ) -> Vec<u8> {
        let record = Record {
            login,
            master,
            mailbox: None,
            service,
            client: line().client,
            peer: None,
            session,
            door: "dovecot",
            outcome: LoginOutcome {
                verdict: "refuse",
                reason: "wrong-password",
                source: "directory",
            },
            changes: "",
            detail,
            throttle: Some("guessing per login"),
            guess: Some(0x0a3f),
            took: Duration::from_millis(12),
        };
        let mut bytes = Vec::new();
        journal::write(format, &record, line().at, &mut bytes);
        assert_eq!(bytes.pop(), Some(b'\n'));
        bytes
    }

    proptest! {
        #[test]
        fn what_the_journal_writes_is_read_back(
            login in proptest::collection::vec(any::<u8>(), 0..320),
            master in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            service in "\\PC{0,16}",
            session in proptest::option::of("(?s).{0,16}"),
            detail in "(?s).{0,40}",
        ) {
            let master = master.as_deref();
            let session = session.as_deref();
            let text = written(LogFormat::Text, &login, master, &service, session, &detail);
            let json = written(LogFormat::Json, &login, master, &service, session, &detail);

            let (text, json) = (decision(&text), decision(&json));

            let expected = Line {
                login: login.clone(),
                master: master.map(<[u8]>::to_vec),
                service,
                session: session.map(str::to_owned),
                is_old: detail == OLD_PASSWORD,
                ..line()
            };
            prop_assert_eq!(&text, &expected);
            let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned().into_bytes();
            let expected =
                Line { login: lossy(&login), master: master.map(lossy), ..expected };
            // How many bytes one U+FFFD stands for is the writer's affair.
            let marks = |line: &Line| Line {
                login: squeezed(&line.login),
                master: line.master.as_deref().map(squeezed),
                ..line.clone()
            };
            prop_assert_eq!(marks(&json), marks(&expected));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(line in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _read = read(&line);
            let _read = read(&[b"2026-11-22T21:50:00.123Z login verdict=refuse reason=", &*line].concat());
            let _read = read(&[b"{\"event\":\"login\",", &*line].concat());
        }
    }

    fn squeezed(bytes: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(bytes);
        text.chars().filter(|letter| *letter != '\u{fffd}').collect::<String>().into_bytes()
    }
}
