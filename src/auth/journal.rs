//! The journal: one line per decision, for people, for fail2ban, for whoever must explain a login later.
//!
//! ```text
//! 2026-11-22T21:50:00.123Z login verdict=refuse reason=wrong-password client=192.0.2.9 login="fry@planetexpress.com" service=imap door=dovecot source=directory ms=12.3 session=qXy0
//! ```
//!
//! A `tracing` line costs more than a login from memory, so the lines are formatted here, into one bounded buffer,
//! and written by a thread of the journal's own: no login waits for the reader of the log. Accepts leave within
//! 50 ms; refusals and "later" at once. If the reader is too slow, accepts are dropped and counted; refusals and
//! "later" never are: with a full buffer they wait for the reader.
//!
//! The order of the fields is part of the interface: nothing that a client typed stands before `client=`. Client
//! text is escaped, bounded and (but for plain words) quoted, so that no name can forge a line or a field.

use std::io::Write;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use super::attempt::Credentials;
use crate::clock::civil_from_days;
use crate::config::node::LogFormat;
use crate::decimal;
use crate::metrics::{LoginOutcome, Metrics};

/// One decision.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The name typed, bytes as they came.
    pub login: &'a [u8],
    /// Whose password it is, if they log in as somebody else; bytes as they came.
    pub master: Option<&'a [u8]>,
    /// The mailbox it led to.
    pub mailbox: Option<&'a str>,
    /// The service as the door heard it.
    pub service: &'a str,
    /// The client's address, where the door knows it.
    pub client: Option<IpAddr>,
    /// The process that asked, over a unix socket.
    pub peer: Option<Credentials>,
    /// The mail server's session id.
    pub session: Option<&'a str>,
    /// The door's name in the configuration.
    pub door: &'a str,
    /// The decision, in the words of the metrics.
    pub outcome: LoginOutcome,
    /// What this login changed, in words of our own, such as `created` or `quota,aliases`; may be empty.
    pub changes: &'a str,
    /// What else an administrator must know, such as the ids behind `id-changed`; may be empty.
    pub detail: &'a str,
    /// The rule or the list of the guessing shield that had something to say.
    pub throttle: Option<&'a str>,
    /// A short keyed hash of a wrong password, so that equal ones can be told from different ones.
    pub guess: Option<u16>,
    /// From arrival to the decision.
    pub took: Duration,
}

/// The journal. Dropping it writes what is left.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

/// What waits to be written, in bytes; one record more may come on top.
const CAPACITY: usize = 1024 * 1024;

/// How long an accept may wait for others to be written with it.
const GATHER: Duration = Duration::from_millis(50);

impl Journal {
    /// Starts a journal that writes to `sink`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        format: LogFormat,
        sink: Box<dyn Write + Send>,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            format,
            metrics,
            pending: Mutex::new(Pending::default()),
            arrived: Condvar::new(),
            sink: Mutex::new(Sink { write: sink, spare: Vec::new() }),
        });
        let worker = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("gatepost-journal".into())
            .spawn(move || worker.write_until_closed())?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Starts the journal of the daemon, on standard error.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn stderr(format: LogFormat, metrics: Metrics) -> std::io::Result<Self> {
        Self::start(format, Box::new(std::io::stderr()), metrics)
    }

    /// Writes a decision down, at the time `now`. Waits only if it must not be dropped and the buffer is full.
    pub fn record(&self, record: &Record<'_>, now: SystemTime) {
        let droppable = record.outcome.verdict == "accept";
        let mut pending = self.shared.pending();
        while pending.bytes.len() >= CAPACITY {
            if droppable {
                drop(pending);
                self.shared.metrics.journal_dropped(1);
                return;
            }
            drop(pending);
            self.shared.flush();
            pending = self.shared.pending();
        }
        let Pending { bytes, stamp, .. } = &mut *pending;
        line(self.shared.format, record, stamp.at(now), bytes);
        pending.records += 1;
        let was_urgent = pending.urgent;
        // Half full: at this rate the buffer would be full before the next writing.
        pending.urgent |= !droppable || pending.bytes.len() >= CAPACITY / 2;
        let wake = match pending.writer {
            Writer::Busy => false,
            Writer::Gathering => pending.urgent && !was_urgent,
            Writer::Idle => {
                // Woken once, not by each record until it gets its turn.
                pending.writer = Writer::Gathering;
                true
            }
        };
        drop(pending);
        if wake {
            self.shared.arrived.notify_one();
        }
    }

    /// Whether the thread is there that writes the lines.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| !writer.is_finished())
    }

    /// Writes out what waits, on the caller's thread. Nobody needs to call it for lines to come out.
    pub fn flush(&self) {
        self.shared.flush();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.pending().closed = true;
        self.shared.arrived.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so; there is nothing left to do.
            let _ = writer.join();
        }
    }
}

struct Shared {
    format: LogFormat,
    metrics: Metrics,
    pending: Mutex<Pending>,
    arrived: Condvar,
    /// Taken before `pending` and held while writing, so that lines keep their order.
    sink: Mutex<Sink>,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    stamp: Stamp,
    records: u64,
    urgent: bool,
    closed: bool,
    writer: Writer,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writer {
    #[default]
    Busy,
    Gathering,
    Idle,
}

struct Sink {
    write: Box<dyn Write + Send>,
    /// Changes places with the pending bytes, so that neither is allocated again.
    spare: Vec<u8>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush(&self) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let Sink { write, spare } = &mut *sink;
        spare.clear();
        let mut pending = self.pending();
        std::mem::swap(&mut pending.bytes, spare);
        let records = std::mem::take(&mut pending.records);
        pending.urgent = false;
        drop(pending);
        if write.write_all(spare).and_then(|()| write.flush()).is_err() {
            self.metrics.journal_dropped(records);
        }
    }

    fn write_until_closed(&self) {
        loop {
            let nothing_to_do = |pending: &mut Pending| {
                // Also after being woken for records that somebody else wrote out meanwhile.
                pending.writer = Writer::Idle;
                pending.records == 0 && !pending.closed
            };
            let mut pending = self
                .arrived
                .wait_while(self.pending(), nothing_to_do)
                .unwrap_or_else(PoisonError::into_inner);
            pending.writer = Writer::Gathering;
            let (mut pending, _) = self
                .arrived
                .wait_timeout_while(pending, GATHER, |pending| !pending.urgent && !pending.closed)
                .unwrap_or_else(PoisonError::into_inner);
            pending.writer = Writer::Busy;
            let closed = pending.closed;
            drop(pending);
            self.flush();
            if closed {
                return;
            }
        }
    }
}

/// The time as it was last written: at speed many records share a millisecond.
#[derive(Debug, Default)]
struct Stamp {
    milliseconds: u128,
    text: Vec<u8>,
}

impl Stamp {
    fn at(&mut self, now: SystemTime) -> &[u8] {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.text.is_empty() || self.milliseconds != since.as_millis() {
            self.milliseconds = since.as_millis();
            self.text.clear();
            timestamp(since, &mut self.text);
        }
        &self.text
    }
}

/// Longest login, mailbox and session that are shown, in bytes before escaping.
const MAX_NAME: usize = 320;
const MAX_WORD: usize = 64;
const MAX_DETAIL: usize = 1024;

fn line(format: LogFormat, record: &Record<'_>, stamp: &[u8], line: &mut Vec<u8>) {
    match format {
        LogFormat::Text => text(record, stamp, line),
        LogFormat::Json => json(record, stamp, line),
    }
}

/// A line as the journal writes it, at a time since 1970.
#[cfg(test)]
pub(super) fn write(format: LogFormat, record: &Record<'_>, at: Duration, bytes: &mut Vec<u8>) {
    line(format, record, Stamp::default().at(SystemTime::UNIX_EPOCH + at), bytes);
}

fn text(record: &Record<'_>, stamp: &[u8], line: &mut Vec<u8>) {
    line.extend_from_slice(stamp);
    line.extend_from_slice(b" login verdict=");
    line.extend_from_slice(record.outcome.verdict.as_bytes());
    if !record.outcome.reason.is_empty() {
        line.extend_from_slice(b" reason=");
        line.extend_from_slice(record.outcome.reason.as_bytes());
    }
    if let Some(client) = record.client {
        line.extend_from_slice(b" client=");
        address(client, line);
    }
    line.extend_from_slice(b" login=");
    quoted(record.login, MAX_NAME, Escape::Text, line);
    if let Some(master) = record.master {
        line.extend_from_slice(b" master=");
        quoted(master, MAX_NAME, Escape::Text, line);
    }
    if let Some(mailbox) = record.mailbox {
        line.extend_from_slice(b" mailbox=");
        quoted(mailbox.as_bytes(), MAX_NAME, Escape::Text, line);
    }
    line.extend_from_slice(b" service=");
    word(record.service, line);
    line.extend_from_slice(b" door=");
    word(record.door, line);
    if !record.outcome.source.is_empty() {
        line.extend_from_slice(b" source=");
        line.extend_from_slice(record.outcome.source.as_bytes());
    }
    line.extend_from_slice(b" ms=");
    milliseconds(record.took, line);
    if let Some(session) = record.session {
        line.extend_from_slice(b" session=");
        word(session, line);
    }
    if !record.changes.is_empty() {
        line.extend_from_slice(b" changes=");
        quoted(record.changes.as_bytes(), MAX_DETAIL, Escape::Text, line);
    }
    if !record.detail.is_empty() {
        line.extend_from_slice(b" detail=");
        quoted(record.detail.as_bytes(), MAX_DETAIL, Escape::Text, line);
    }
    if let Some(rule) = record.throttle {
        line.extend_from_slice(b" throttle=");
        word(rule, line);
    }
    if let Some(guess) = record.guess {
        line.extend_from_slice(b" guess=");
        hexadecimal(guess, line);
    }
    if let Some(peer) = record.peer {
        line.extend_from_slice(b" peer.uid=");
        decimal::write(u64::from(peer.uid), line);
        if let Some(pid) = visible(peer) {
            line.extend_from_slice(b" peer.pid=");
            decimal::write(pid, line);
        }
    }
    line.push(b'\n');
}

fn json(record: &Record<'_>, stamp: &[u8], line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"timestamp\":\"");
    line.extend_from_slice(stamp);
    line.extend_from_slice(b"\",\"level\":\"INFO\",\"event\":\"login\"");
    json_field(b"verdict", record.outcome.verdict.as_bytes(), MAX_WORD, line);
    if !record.outcome.reason.is_empty() {
        json_field(b"reason", record.outcome.reason.as_bytes(), MAX_WORD, line);
    }
    if let Some(client) = record.client {
        line.extend_from_slice(b",\"client\":\"");
        address(client, line);
        line.push(b'"');
    }
    json_field(b"login", record.login, MAX_NAME, line);
    if let Some(master) = record.master {
        json_field(b"master", master, MAX_NAME, line);
    }
    if let Some(mailbox) = record.mailbox {
        json_field(b"mailbox", mailbox.as_bytes(), MAX_NAME, line);
    }
    json_field(b"service", record.service.as_bytes(), MAX_WORD, line);
    json_field(b"door", record.door.as_bytes(), MAX_WORD, line);
    if !record.outcome.source.is_empty() {
        json_field(b"source", record.outcome.source.as_bytes(), MAX_WORD, line);
    }
    if let Some(session) = record.session {
        json_field(b"session", session.as_bytes(), MAX_WORD, line);
    }
    if !record.changes.is_empty() {
        json_field(b"changes", record.changes.as_bytes(), MAX_DETAIL, line);
    }
    if !record.detail.is_empty() {
        json_field(b"detail", record.detail.as_bytes(), MAX_DETAIL, line);
    }
    if let Some(rule) = record.throttle {
        json_field(b"throttle", rule.as_bytes(), MAX_WORD, line);
    }
    if let Some(guess) = record.guess {
        line.extend_from_slice(b",\"guess\":\"");
        hexadecimal(guess, line);
        line.push(b'"');
    }
    line.extend_from_slice(b",\"ms\":");
    milliseconds(record.took, line);
    if let Some(peer) = record.peer {
        line.extend_from_slice(b",\"peer.uid\":");
        decimal::write(u64::from(peer.uid), line);
        if let Some(pid) = visible(peer) {
            line.extend_from_slice(b",\"peer.pid\":");
            decimal::write(pid, line);
        }
    }
    line.extend_from_slice(b"}\n");
}

/// Four digits.
fn hexadecimal(number: u16, line: &mut Vec<u8>) {
    let digits =
        [12, 8, 4, 0].map(|shift| b"0123456789abcdef".get(usize::from(number >> shift & 15)));
    line.extend(digits.into_iter().flatten());
}

fn json_field(name: &[u8], value: &[u8], bound: usize, line: &mut Vec<u8>) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(name);
    line.extend_from_slice(b"\":");
    quoted(value, bound, Escape::Json, line);
}

/// A word stands bare if it is plain ASCII of the kind that session ids are made of; anything else is quoted.
fn word(value: &str, line: &mut Vec<u8>) {
    let plain = |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'+'..=b':' | b'@' | b'_');
    // Dovecot's session ids are base64 and may end in `=`.
    let mut letters = value.as_bytes();
    while let [rest @ .., b'='] = letters {
        letters = rest;
    }
    let is_plain = letters.iter().all(plain);
    if !value.is_empty() && value.len() <= MAX_WORD && is_plain {
        line.extend_from_slice(value.as_bytes());
    } else {
        quoted(value.as_bytes(), MAX_WORD, Escape::Text, line);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    /// `\xff` for a byte that is no text.
    Text,
    /// RFC 8259 §7; a byte that is no text becomes U+FFFD.
    Json,
}

/// `value` in quotes, cut after `bound` bytes.
fn quoted(value: &[u8], bound: usize, escape: Escape, line: &mut Vec<u8>) {
    line.push(b'"');
    let shown = value.get(..bound).unwrap_or(value);
    // Nearly every name is all plain. A fold that looks at every byte is done sixteen at a time.
    if shown.iter().fold(true, |plain, byte| plain & is_plain(*byte)) {
        line.extend_from_slice(shown);
    } else {
        escaped_text(shown, escape, line);
    }
    if value.len() > bound {
        line.extend_from_slice("…".as_bytes());
    }
    line.push(b'"');
}

fn escaped_text(text: &[u8], escape: Escape, line: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            escaped(character, escape, line);
        }
        for byte in chunk.invalid() {
            match escape {
                Escape::Text => number(line, format_args!("\\x{byte:02x}")),
                Escape::Json => line.extend_from_slice("\u{fffd}".as_bytes()),
            }
        }
    }
}

/// Text that stands as it is in every form of the journal.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

fn escaped(character: char, escape: Escape, line: &mut Vec<u8>) {
    match character {
        '"' | '\\' => line.extend_from_slice(&[b'\\', ascii(character)]),
        ' '..='~' => line.push(ascii(character)),
        _ if misleads(character) => match escape {
            Escape::Text if character.is_ascii() => {
                number(line, format_args!("\\x{:02x}", u32::from(character)));
            }
            Escape::Text => number(line, format_args!("\\u{{{:04x}}}", u32::from(character))),
            Escape::Json => number(line, format_args!("\\u{:04x}", u32::from(character))),
        },
        _ => line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Characters that end a line for some reader, or turn the order of what is shown. All lie below U+10000.
fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn ascii(character: char) -> u8 {
    u8::try_from(character).unwrap_or(b'?')
}

/// An IPv4 address mapped into IPv6 is shown as the IPv4 address that a firewall knows.
fn address(address: IpAddr, line: &mut Vec<u8>) {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    line.push(b'.');
                }
                decimal::write(u64::from(octet), line);
            }
        }
        IpAddr::V6(address) => number(line, format_args!("{address}")),
    }
}

/// The kernel gives 0 for a process of another pid namespace: a container's.
fn visible(peer: Credentials) -> Option<u64> {
    peer.pid.and_then(|pid| u64::try_from(pid).ok()).filter(|pid| *pid > 0)
}

fn number(line: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    // Writing into a Vec cannot fail.
    let _ = line.write_fmt(arguments);
}

/// With one decimal.
fn milliseconds(took: Duration, line: &mut Vec<u8>) {
    let tenths = u64::try_from(took.as_micros() / 100).unwrap_or(u64::MAX);
    decimal::write(tenths / 10, line);
    line.push(b'.');
    decimal::write(tenths % 10, line);
}

/// RFC 3339, UTC, milliseconds: `2026-11-22T21:50:00.123Z`, for a time since 1970. A clock before that shows 1970.
pub(super) fn timestamp(since: Duration, line: &mut Vec<u8>) {
    let seconds = since.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    for (value, width, end) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (seconds / 3600 % 24, 2, b':'),
        (seconds / 60 % 60, 2, b':'),
        (seconds % 60, 2, b'.'),
        (u64::from(since.subsec_millis()), 3, b'Z'),
    ] {
        decimal::write_digits(value, width, line);
        line.push(end);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// 2026-11-22T21:50:00.123Z
    fn moment() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_384_200_123)
    }

    fn refusal(login: &[u8]) -> Record<'_> {
        Record {
            login,
            master: None,
            mailbox: Some("fry@planetexpress.com"),
            service: "imap",
            client: Some("192.0.2.9".parse().unwrap()),
            peer: None,
            session: Some("qXy0/1+2=="),
            door: "dovecot",
            outcome: LoginOutcome {
                verdict: "refuse",
                reason: "wrong-password",
                source: "directory",
            },
            changes: "",
            detail: "",
            throttle: None,
            guess: None,
            took: Duration::from_micros(12_345),
        }
    }

    fn accept(login: &[u8]) -> Record<'_> {
        let outcome = LoginOutcome { verdict: "accept", reason: "", source: "memory" };
        Record { outcome, ..refusal(login) }
    }

    fn as_text(record: &Record<'_>) -> String {
        let mut line = Vec::new();
        text(record, Stamp::default().at(moment()), &mut line);
        String::from_utf8(line).unwrap()
    }

    fn as_json(record: &Record<'_>) -> serde_json::Value {
        let mut line = Vec::new();
        json(record, Stamp::default().at(moment()), &mut line);
        assert_eq!(line.pop(), Some(b'\n'));
        assert!(!line.contains(&b'\n'));
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn what_the_shield_says_and_the_short_hash_of_a_wrong_password_stand_near_the_end() {
        let record = Record {
            throttle: Some("guessing-per-ip"),
            guess: Some(0x0a3f),
            detail: "old",
            ..refusal(b"fry")
        };

        assert!(
            as_text(&record).ends_with(" detail=\"old\" throttle=guessing-per-ip guess=0a3f\n")
        );
        let shown = as_json(&record);
        assert_eq!(
            (&shown["throttle"], &shown["guess"]),
            (&"guessing-per-ip".into(), &"0a3f".into())
        );
    }

    #[test]
    fn a_refusal_is_one_line_of_a_stable_form() {
        assert_eq!(
            as_text(&refusal(b"fry@planetexpress.com")),
            "2026-11-22T21:50:00.123Z login verdict=refuse reason=wrong-password client=192.0.2.9 \
             login=\"fry@planetexpress.com\" mailbox=\"fry@planetexpress.com\" service=imap \
             door=dovecot source=directory ms=12.3 session=qXy0/1+2==\n"
        );
    }

    #[test]
    fn an_accept_names_no_reason_but_what_it_changed() {
        let record = Record {
            changes: "created",
            detail: "template staff",
            client: None,
            session: None,
            took: Duration::from_micros(90),
            ..accept(b"fry")
        };

        assert_eq!(
            as_text(&record),
            "2026-11-22T21:50:00.123Z login verdict=accept login=\"fry\" \
             mailbox=\"fry@planetexpress.com\" service=imap door=dovecot source=memory ms=0.0 \
             changes=\"created\" detail=\"template staff\"\n"
        );
    }

    #[test]
    fn as_json_it_holds_the_same() {
        let shown = as_json(&refusal(b"fry@planetexpress.com"));

        assert_eq!(
            shown,
            serde_json::json!({
                "timestamp": "2026-11-22T21:50:00.123Z", "level": "INFO", "event": "login",
                "verdict": "refuse", "reason": "wrong-password", "client": "192.0.2.9",
                "login": "fry@planetexpress.com", "mailbox": "fry@planetexpress.com",
                "service": "imap", "door": "dovecot", "source": "directory", "ms": 12.3,
                "session": "qXy0/1+2==",
            })
        );
    }

    #[test]
    fn the_process_that_asked_stands_at_the_end() {
        let by = |uid, pid| Record {
            peer: Some(Credentials { uid, pid }),
            detail: "template staff",
            ..refusal(b"fry")
        };
        let end = |record: &Record<'_>| {
            let line = as_text(record);
            line.split_once(" detail=\"template staff\"").unwrap().1.to_owned()
        };

        assert_eq!(end(&by(106, Some(4711))), " peer.uid=106 peer.pid=4711\n");
        assert_eq!(end(&by(0, None)), " peer.uid=0\n");
        // A process that we cannot see.
        assert_eq!(end(&by(u32::MAX, Some(0))), " peer.uid=4294967295\n");
        let shown = as_json(&by(106, Some(4711)));
        assert_eq!((&shown["peer.uid"], &shown["peer.pid"]), (&106.into(), &4711.into()));
        let shown = as_json(&by(106, Some(-1)));
        assert_eq!((&shown["peer.uid"], shown.get("peer.pid")), (&106.into(), None));
    }

    #[test]
    fn nothing_that_a_client_typed_can_forge_a_line_or_a_field() {
        let hostile: &[&[u8]] = &[
            b"a\nb",
            b"a\r\n2026-11-22T21:50:00.123Z login verdict=refuse client=198.51.100.1",
            b"\" client=198.51.100.1 \"",
            b"\\\" client=198.51.100.1",
            b"\\",
            b"nul\0 bell\x07 escape\x1b[31m del\x7f",
            b"\xff\xfe bytes",
            "next\u{85}line\u{2028}sep\u{202e}turned".as_bytes(),
        ];
        for login in hostile {
            let session = String::from_utf8_lossy(login);
            let record = Record {
                session: Some(&session),
                service: &session,
                detail: &session,
                ..refusal(login)
            };

            let line = as_text(&record);

            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(!line.trim_end().chars().any(misleads), "{line:?}");
            let unquoted = outside_quotes(&line);
            assert_eq!(unquoted.matches("client=").count(), 1, "{line}");
            assert_eq!(unquoted.matches("verdict=").count(), 1, "{line}");
            as_json(&record);
        }
        let line = as_text(&refusal(b"a\n\"\\\xff\xc2\x85"));
        assert!(line.contains(r#"login="a\x0a\"\\\xff\u{0085}""#), "{line}");
    }

    /// What a reader sees who understands quotes and backslashes.
    fn outside_quotes(line: &str) -> String {
        let mut outside = String::new();
        let mut inside = false;
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' if inside => drop(characters.next()),
                '"' => inside = !inside,
                _ if !inside => outside.push(character),
                _ => {}
            }
        }
        assert!(!inside, "a quote is left open: {line}");
        outside
    }

    #[test]
    fn a_long_name_is_cut() {
        let line = as_text(&refusal(&[b'x'; 16_384]));

        assert!(line.len() < 700, "{}", line.len());
        assert!(line.contains("xxx…\""));
    }

    #[test]
    fn the_fail2ban_filter_fits_the_line() {
        let filter =
            concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/fail2ban/filter.d/gatepost.conf");
        let filter = std::fs::read_to_string(filter).unwrap();
        let regex = filter.lines().find_map(|line| line.strip_prefix("failregex = ")).unwrap();
        let start = r"^%(__prefix_line)s(?:\d{4}-\S+Z )?login verdict=refuse reason=(?:";
        let (reasons, rest) = regex.strip_prefix(start).unwrap().split_once(')').unwrap();

        assert_eq!(rest, " client=<HOST> login=\"");
        for reason in reasons.split('|') {
            assert!(
                super::super::Reason::ALL.iter().any(|known| known.as_str() == reason),
                "{reason}"
            );
        }
        let expected = " login verdict=refuse reason=wrong-password client=192.0.2.9 login=\"";
        assert!(reasons.split('|').any(|reason| reason == "wrong-password"));
        assert!(as_text(&refusal(b"fry")).contains(expected));
    }

    #[test]
    fn the_page_about_logging_names_every_reason() {
        const START: &str = "<!-- reasons -->\n";
        const END: &str = "<!-- end of reasons -->";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/LOGGING.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(START).unwrap();
        let (shown, after) = rest.split_once(END).unwrap();
        let mut table = String::from("| reason | what happened |\n|---|---|\n");
        for reason in super::super::Reason::ALL {
            table += &format!("| `{}` | {} |\n", reason.as_str(), reason.explanation());
        }
        if std::env::var_os("GATEPOST_BLESS").is_some() {
            std::fs::write(path, format!("{before}{START}{table}{END}{after}")).unwrap();
        } else {
            assert!(
                shown == table,
                "docs/LOGGING.md is old: GATEPOST_BLESS=1 cargo test rewrites it"
            );
        }
    }

    #[derive(Clone, Default)]
    struct Capture(Arc<Mutex<Vec<u8>>>);

    impl Capture {
        fn lines(&self) -> usize {
            self.0.lock().unwrap().iter().filter(|byte| **byte == b'\n').count()
        }
    }

    impl Write for Capture {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn dropping_the_journal_writes_what_is_left() {
        let capture = Capture::default();
        let journal =
            Journal::start(LogFormat::Text, Box::new(capture.clone()), Metrics::new()).unwrap();
        for _ in 0..1000 {
            journal.record(&accept(b"fry"), moment());
        }

        drop(journal);

        assert_eq!(capture.lines(), 1000);
    }

    /// Says when it is written to, and then waits until the test lets it go on.
    struct Slow {
        reached: mpsc::Sender<()>,
        proceed: mpsc::Receiver<()>,
        capture: Capture,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.reached.send(()).unwrap();
            // The test is over when nobody sends any more.
            let _ = self.proceed.recv();
            self.capture.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn with_a_reader_that_stands_still_accepts_are_dropped_and_counted_and_refusals_wait() {
        let (reached, is_reached) = mpsc::channel();
        let (let_go, proceed) = mpsc::channel();
        let capture = Capture::default();
        let slow = Slow { reached, proceed, capture: capture.clone() };
        let metrics = Metrics::new();
        let journal = Journal::start(LogFormat::Text, Box::new(slow), metrics.clone()).unwrap();
        journal.record(&refusal(b"first"), moment());
        is_reached.recv().unwrap();

        for _ in 0..20_000 {
            journal.record(&accept(b"fry"), moment());
        }
        let kept = journal.shared.pending().records;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| journal.record(&refusal(b"last"), moment()));
            drop(let_go);
            waiting.join().unwrap();
        });
        drop(journal);

        let written = capture.0.lock().unwrap().clone();
        let written = String::from_utf8(written).unwrap();
        assert!(written.contains("login=\"first\"") && written.contains("login=\"last\""));
        assert_eq!(capture.lines() as u64, kept + 2);
        let dropped = format!("gatepost_journal_dropped_total {}", 20_000 - kept);
        assert!(metrics.encode().contains(&dropped), "{dropped}");
    }

    #[test]
    fn a_refusal_comes_out_without_waiting_for_others() {
        let (reached, is_reached) = mpsc::channel();
        let (let_go, proceed) = mpsc::channel();
        let slow = Slow { reached, proceed, capture: Capture::default() };
        let journal = Journal::start(LogFormat::Text, Box::new(slow), Metrics::new()).unwrap();
        drop(let_go);

        journal.record(&refusal(b"fry"), moment());

        assert_eq!(is_reached.recv_timeout(Duration::from_secs(5)), Ok(()));
    }
}
