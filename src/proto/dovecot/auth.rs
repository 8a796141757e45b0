//! The client side of Dovecot's auth protocol: login processes, Postfix, Exim and others ask "may this person in?".
//!
//! [`Session`] is one connection without its socket: the driver hands it what it read and writes what it appends.
//!
//! ```
//! use bytes::BytesMut;
//! use gatepost::proto::dovecot::auth::{Event, Greeting, Reply, Session, SocketKind};
//!
//! let mut output = Vec::new();
//! let mut session = Session::new(SocketKind::Client);
//! session.greet(&Greeting::new(4242), 1, &[0; 16], &mut output);
//! output.clear();
//!
//! let mut input = BytesMut::from(
//!     "VERSION\t1\t0\nCPID\t977\nAUTH\t1\tPLAIN\tservice=smtp\tnologin\tresp=AGpvZQBzZWNyZXQ=\n",
//! );
//! let now = std::time::Instant::now();
//! assert!(matches!(
//!     session.next_event(&mut input, &mut output, now)?,
//!     Some(Event::Hello { client_pid: 977 })
//! ));
//! let Some(Event::Request(request)) = session.next_event(&mut input, &mut output, now)? else {
//!     panic!("no request")
//! };
//! assert_eq!(request.credentials.authcid, b"joe");
//! session.answer(request.id, &Reply::Ok { user: "joe@example.org", fields: &[] }, &mut output);
//! assert_eq!(output, b"OK\t1\tuser=joe@example.org\n");
//! # Ok::<(), gatepost::proto::dovecot::auth::ProtocolError>(())
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use zeroize::Zeroizing;

use super::line::{Lines, Writer, fields, number};
use super::request::Context;
use crate::proto::sasl::{Exchange, Step};

pub use super::line::LineTooLong;
pub use super::reply::{FailCode, Reply};
pub use super::request::AuthRequest;
pub use crate::proto::sasl::Mechanism;

/// The longest line of the client protocol, in bytes.
pub const MAX_LINE_BYTES: usize = 16_384;

/// The most requests of one connection that may be unfinished at a time.
pub const MAX_OPEN_REQUESTS: usize = 4096;

/// The part of the handshake that is the same for all connections.
#[derive(Clone, Debug)]
pub struct Greeting(Box<[u8]>);

impl Greeting {
    /// `server_pid` must be what the master protocol's greeting says, or imap aborts with "Auth server restarted".
    #[must_use]
    pub fn new(server_pid: u32) -> Self {
        let mut lines = Vec::new();
        Writer::line(&mut lines, "VERSION").number(1_u32).number(2_u32).end();
        // Before SPID: Postfix and Exim take "SPID but no MECH yet" for a master socket and give up.
        for mechanism in Mechanism::ALL {
            Writer::line(&mut lines, "MECH").value(mechanism.as_str()).value("plaintext").end();
        }
        Writer::line(&mut lines, "SPID").number(server_pid).end();
        Self(lines.into_boxed_slice())
    }
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// Dovecot's login processes: they must say their process id, and what was accepted can be claimed over the
    /// master protocol.
    Login,
    /// Anybody: Postfix, Exim, doveadm, and Dovecot's login processes where they were led to this socket. The process id
    /// may be 0 or missing; then an answer is the end of it.
    Client,
}

/// What a connection says.
#[derive(Debug)]
pub enum Event {
    /// The client's handshake is complete. Comes once, before anything else.
    Hello {
        /// The client's process id; 0 where it did not say.
        client_pid: u32,
    },
    /// Someone wants in. Every request must be [answered](Session::answer), even one that was given up meanwhile:
    /// its id stays taken until then.
    Request(AuthRequest),
    /// The client gave this request up. If it is not answered yet, its answer will not be sent. Of a
    /// client that said its process id it may also be one that was accepted and that nobody can claim any more, or one
    /// nobody knows.
    Cancelled(u32),
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
    /// CPID is missing or no number, or 0 where it must not be.
    #[error("CPID line is missing or holds no process id")]
    BadClientPid,
    /// A command that does not exist, or not at this point.
    #[error("unknown command")]
    UnknownCommand,
    /// The request's id is missing, 0, or no number.
    #[error("request id is missing, 0 or no 32 bit number")]
    BadRequestId,
    /// Two unfinished requests with one id.
    #[error("request id {0} is in use")]
    DuplicateRequestId(u32),
    /// A mechanism that was not offered.
    #[error("unknown mechanism")]
    UnknownMechanism,
    /// AUTH without service= and protocol=.
    #[error("AUTH without service or protocol")]
    MissingService,
    /// resp= must be the last field.
    #[error("AUTH with fields after resp")]
    FieldsAfterResponse,
    /// CONT without data field.
    #[error("CONT without data")]
    MissingData,
    /// Too many unfinished requests.
    #[error("more than {MAX_OPEN_REQUESTS} unfinished requests")]
    TooManyRequests,
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    kind: SocketKind,
    lines: Lines,
    handshake: Handshake,
    client_minor: u32,
    client_pid: u32,
    /// Requests whose client was asked for more.
    prompted: ById<Prompted>,
    /// Requests that were handed out and not answered yet.
    unanswered: ById<Unanswered>,
}

/// The peer picks the ids, but may hurt nobody but itself by them, and there are few at a time: a fast hasher will do.
type ById<T> = HashMap<u32, T, foldhash::fast::RandomState>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handshake {
    Version,
    ClientPid,
    Complete,
}

#[derive(Debug)]
struct Prompted {
    context: Context,
    exchange: Exchange,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unanswered {
    Wanted,
    /// Given up by the client. The id stays taken until the answer is there, so that the late answer cannot be
    /// taken for the answer to a later request with the same id.
    GivenUp,
}

impl Session {
    /// A connection just accepted.
    #[must_use]
    pub fn new(kind: SocketKind) -> Self {
        Self {
            kind,
            lines: Lines::new(MAX_LINE_BYTES),
            handshake: Handshake::Version,
            client_minor: 0,
            client_pid: 0,
            prompted: ById::default(),
            unanswered: ById::default(),
        }
    }

    /// Writes the complete handshake, to be sent at accept without waiting for the client: Exim says nothing before
    /// it has read DONE. `cuid` counts connections, `cookie` is random for each.
    pub fn greet(&self, greeting: &Greeting, cuid: u64, cookie: &[u8; 16], output: &mut Vec<u8>) {
        output.extend_from_slice(&greeting.0);
        Writer::line(output, "CUID").number(cuid).end();
        Writer::line(output, "COOKIE").hex(cookie).end();
        Writer::line(output, "DONE").end();
    }

    /// Takes whole lines off the input until one says something the driver must know. `None`: more bytes are needed.
    /// Where the protocol alone decides (prompts, bad base64), the answer is appended to the output.
    ///
    /// # Errors
    /// When the client broke the protocol. Send what is in the output, close the connection, do not call again.
    pub fn next_event(
        &mut self,
        input: &mut BytesMut,
        output: &mut Vec<u8>,
        now: Instant,
    ) -> Result<Option<Event>, ProtocolError> {
        if let Some(hello) = self.hello_without_pid(input)? {
            return Ok(Some(hello));
        }
        loop {
            let Some(mut line) = self.lines.next(input)? else { return Ok(None) };
            let event = match self.handshake {
                Handshake::Version => self.version(&line)?,
                Handshake::ClientPid => Some(self.client_pid_line(&line)?),
                Handshake::Complete => self.command(&line, output, now)?,
            };
            // Understood: nothing stands after resp=.
            if line.starts_with(b"AUTH\t") {
                line.only_last_field_is_secret();
            }
            drop(line);
            if event.is_some() {
                return Ok(event);
            }
            if let Some(hello) = self.hello_without_pid(input)? {
                return Ok(Some(hello));
            }
        }
    }

    /// Writes the answer to a request; nothing if it was given up meanwhile or is unknown. Says whether it was wanted:
    /// only then may a login be claimed.
    pub fn answer(&mut self, id: u32, reply: &Reply<'_>, output: &mut Vec<u8>) -> bool {
        let is_wanted = self.unanswered.remove(&id) == Some(Unanswered::Wanted);
        if is_wanted {
            reply.encode(id, output);
        }
        is_wanted
    }

    /// Forgets requests whose client was asked for more and has said nothing since `limit`: Postfix does not tell us
    /// when a person's client gave up. Returns how many.
    pub fn drop_stale(&mut self, now: Instant, limit: Duration) -> usize {
        let before = self.prompted.len();
        self.prompted.retain(|_, prompted| now.saturating_duration_since(prompted.since) < limit);
        before - self.prompted.len()
    }

    /// The minor version the client said; 0 before its handshake.
    #[must_use]
    pub fn client_minor(&self) -> u32 {
        self.client_minor
    }

    /// The process id the client said; 0 before its handshake.
    #[must_use]
    pub fn client_pid(&self) -> u32 {
        self.client_pid
    }

    /// How many requests are unfinished, those included whose client was asked for more.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.prompted.len() + self.unanswered.len()
    }

    /// How many requests wait for [`Session::answer`] and are still wanted.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.unanswered.values().filter(|state| **state == Unanswered::Wanted).count()
    }

    /// Whether this request waits for [`Session::answer`] and is still wanted.
    #[must_use]
    pub fn is_wanted(&self, id: u32) -> bool {
        self.unanswered.get(&id) == Some(&Unanswered::Wanted)
    }

    fn version(&mut self, line: &[u8]) -> Result<Option<Event>, ProtocolError> {
        let mut fields = fields(line);
        if fields.next() != Some(b"VERSION") {
            return Err(ProtocolError::NoVersion);
        }
        let (Some(major), Some(minor)) =
            (fields.next().and_then(number), fields.next().and_then(number))
        else {
            return Err(ProtocolError::NoVersion);
        };
        if major != 1 {
            return Err(ProtocolError::MajorVersion(major));
        }
        self.client_minor = minor;
        self.handshake = Handshake::ClientPid;
        Ok(None)
    }

    fn client_pid_line(&mut self, line: &[u8]) -> Result<Event, ProtocolError> {
        let mut fields = fields(line);
        let (Some(b"CPID"), Some(pid)) = (fields.next(), fields.next().and_then(number)) else {
            return Err(ProtocolError::BadClientPid);
        };
        // Login processes are addressed by (CPID, request id) in the master protocol.
        if pid == 0 && self.kind == SocketKind::Login {
            return Err(ProtocolError::BadClientPid);
        }
        Ok(self.hello(pid))
    }

    /// A client that is no login process may come to the point without a CPID line; its first command stays in the
    /// input.
    fn hello_without_pid(&mut self, input: &BytesMut) -> Result<Option<Event>, ProtocolError> {
        if self.handshake != Handshake::ClientPid || self.kind == SocketKind::Login {
            return Ok(None);
        }
        let command = self.lines.peek(input)?.and_then(|line| fields(line).next());
        Ok(matches!(command, Some(b"AUTH" | b"CONT" | b"CANCEL")).then(|| self.hello(0)))
    }

    fn hello(&mut self, client_pid: u32) -> Event {
        self.client_pid = client_pid;
        self.handshake = Handshake::Complete;
        Event::Hello { client_pid }
    }

    fn command(
        &mut self,
        line: &[u8],
        output: &mut Vec<u8>,
        now: Instant,
    ) -> Result<Option<Event>, ProtocolError> {
        let mut fields = fields(line);
        match fields.next() {
            Some(b"AUTH") => self.auth(fields, output, now),
            Some(b"CONT") => self.cont(fields, output),
            Some(b"CANCEL") => self.cancel(fields),
            _ => Err(ProtocolError::UnknownCommand),
        }
    }

    /// `AUTH <id> <mechanism> <fields> [resp=<base64>]`
    fn auth<'l>(
        &mut self,
        mut fields: impl Iterator<Item = &'l [u8]>,
        output: &mut Vec<u8>,
        now: Instant,
    ) -> Result<Option<Event>, ProtocolError> {
        let id = request_id(fields.next())?;
        if id == 0 {
            return Err(ProtocolError::BadRequestId);
        }
        if self.prompted.contains_key(&id) || self.unanswered.contains_key(&id) {
            return Err(ProtocolError::DuplicateRequestId(id));
        }
        if self.open_requests() >= MAX_OPEN_REQUESTS {
            return Err(ProtocolError::TooManyRequests);
        }
        let mechanism =
            fields.next().and_then(Mechanism::parse).ok_or(ProtocolError::UnknownMechanism)?;
        let (context, response) = Context::parse(mechanism, fields)?;

        let initial = match response {
            None => None,
            // Exim always sends resp=, so before minor version 2 an empty one is none.
            Some(b"") if self.client_minor < 2 => None,
            Some(b"" | b"=") => Some(Zeroizing::default()),
            Some(base64) => match decode(base64) {
                Some(message) => Some(message),
                None => {
                    fail_base64(id, "Invalid base64 data in initial response", output);
                    return Ok(None);
                }
            },
        };
        let step = Exchange::start(mechanism, initial);
        Ok(self.take_step(id, context, step, now, output))
    }

    /// `CONT <id> <base64>`
    fn cont<'l>(
        &mut self,
        mut fields: impl Iterator<Item = &'l [u8]>,
        output: &mut Vec<u8>,
    ) -> Result<Option<Event>, ProtocolError> {
        let id = request_id(fields.next())?;
        let base64 = fields.next().ok_or(ProtocolError::MissingData)?;
        let Some(Prompted { context, exchange, since }) = self.prompted.remove(&id) else {
            return Ok(self.unexpected_cont(id, output));
        };
        let Some(message) = decode(base64) else {
            fail_base64(id, "Invalid base64 data in continued response", output);
            return Ok(None);
        };
        let step = exchange.proceed(message);
        Ok(self.take_step(id, context, step, since, output))
    }

    fn unexpected_cont(&mut self, id: u32, output: &mut Vec<u8>) -> Option<Event> {
        let event = self.give_up(id);
        let reason = match event {
            Some(_) => "Unexpected continuation",
            None => "Authentication request timed out",
        };
        Writer::line(output, "FAIL").number(id).reason(Some(reason)).end();
        event
    }

    /// `CANCEL <id>`
    fn cancel<'l>(
        &mut self,
        mut fields: impl Iterator<Item = &'l [u8]>,
    ) -> Result<Option<Event>, ProtocolError> {
        let id = request_id(fields.next())?;
        if self.prompted.remove(&id).is_some() {
            return Ok(None);
        }
        if self.client_pid != 0 {
            // An accepted login stays claimable; which ones do is not known here.
            self.give_up(id);
            return Ok(Some(Event::Cancelled(id)));
        }
        Ok(self.give_up(id))
    }

    /// Marks a request that waits for its answer as no longer wanted.
    fn give_up(&mut self, id: u32) -> Option<Event> {
        let state = self.unanswered.get_mut(&id).filter(|state| **state == Unanswered::Wanted)?;
        *state = Unanswered::GivenUp;
        Some(Event::Cancelled(id))
    }

    fn take_step(
        &mut self,
        id: u32,
        context: Context,
        step: Step,
        since: Instant,
        output: &mut Vec<u8>,
    ) -> Option<Event> {
        match step {
            Step::Complete(credentials) => {
                self.unanswered.insert(id, Unanswered::Wanted);
                Some(Event::Request(context.into_request(id, credentials)))
            }
            Step::Prompt(exchange, prompt) => {
                // The second TAB is there even when nothing follows: Postfix looks for it.
                Writer::line(output, "CONT").number(id).value(&STANDARD.encode(prompt)).end();
                self.prompted.insert(id, Prompted { context, exchange, since });
                None
            }
            Step::Malformed => {
                Writer::line(output, "FAIL").number(id).end();
                None
            }
        }
    }
}

fn request_id(field: Option<&[u8]>) -> Result<u32, ProtocolError> {
    field.and_then(number).ok_or(ProtocolError::BadRequestId)
}

fn decode(base64: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut message = Zeroizing::new(Vec::with_capacity(base64.len()));
    STANDARD.decode_vec(base64, &mut message).ok()?;
    Some(message)
}

fn fail_base64(id: u32, reason: &str, output: &mut Vec<u8>) {
    let line = Writer::line(output, "FAIL").number(id).pair("code", "invalid_base64");
    line.reason(Some(reason)).end();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// A session after its handshake.
    fn greeted(kind: SocketKind, minor: u32) -> Session {
        let mut session = Session::new(kind);
        let mut input = BytesMut::from(format!("VERSION\t1\t{minor}\nCPID\t9\n").as_bytes());
        let event = session.next_event(&mut input, &mut Vec::new(), now()).unwrap();
        assert!(matches!(event, Some(Event::Hello { client_pid: 9 })));
        session
    }

    fn feed(session: &mut Session, text: &str, output: &mut Vec<u8>) -> Vec<Event> {
        let mut input = BytesMut::from(text.as_bytes());
        let mut events = Vec::new();
        while let Some(event) = session.next_event(&mut input, output, now()).unwrap() {
            events.push(event);
        }
        events
    }

    fn request(params: &str) -> AuthRequest {
        let line = format!("AUTH\t1\tplain\t{params}\tresp=AGpvZQB4\n");
        let mut session = greeted(SocketKind::Login, 2);
        match feed(&mut session, &line, &mut Vec::new()).pop() {
            Some(Event::Request(request)) => request,
            other => panic!("no request: {other:?}"),
        }
    }

    #[test]
    fn the_whole_handshake_fits_one_small_write() {
        let mut output = Vec::new();

        let session = Session::new(SocketKind::Login);
        session.greet(&Greeting::new(u32::MAX), u64::MAX, &[0xff; 16], &mut output);

        assert!(output.len() <= 1024);
        let text = String::from_utf8(output).unwrap();
        assert!(text.find("MECH").unwrap() < text.find("SPID").unwrap());
        assert!(text.ends_with("\nDONE\n"));
    }

    #[test]
    fn a_request_carries_what_the_mail_server_said() {
        let request = request(
            "protocol=imap\tfinal-resp-ok\tsecured=tls\tsession=a\x01tb\tlip=NULL\trip=2001:db8::1\tno-penalty\tnologin\tx",
        );

        assert_eq!((request.id, request.mechanism), (1, Mechanism::Plain));
        assert_eq!(&*request.service, "imap");
        assert_eq!(request.session.as_deref(), Some("a\tb"));
        assert_eq!(request.client, Some("2001:db8::1".parse().unwrap()));
        assert!(request.secured && request.no_penalty && request.nologin);
        assert_eq!(request.credentials.authcid, b"joe");
        assert_eq!(request.credentials.password.as_bytes(), b"x");
    }

    #[test]
    fn what_was_not_said_stays_absent() {
        let request = request("service=smtp\trip=NULL");

        assert!(request.client.is_none() && request.session.is_none());
        assert!(!request.secured && !request.no_penalty && !request.nologin);
    }

    #[test]
    fn over_long_texts_are_cut() {
        let request = request(&format!("service={}\tsession={}", "a".repeat(999), "ä".repeat(999)));

        assert_eq!(request.service.len(), 256);
        assert_eq!(request.session.unwrap().len(), 256);
    }

    #[test]
    fn passwords_with_tab_cr_lf_and_escape_bytes_are_legal() {
        let message = STANDARD.encode(b"\0joe\0\t\r\n\x01");
        let mut session = greeted(SocketKind::Client, 0);

        let line = format!("AUTH\t1\tPLAIN\tservice=smtp\tresp={message}\n");
        let events = feed(&mut session, &line, &mut Vec::new());

        let [Event::Request(request)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(request.credentials.password.as_bytes(), b"\t\r\n\x01");
    }

    #[test]
    fn an_id_given_up_stays_taken_until_its_late_answer_has_come() {
        let auth = "AUTH\t5\tPLAIN\tservice=imap\tresp=AGpvZQB4\n";
        let mut output = Vec::new();
        let mut session = greeted(SocketKind::Login, 2);
        feed(&mut session, auth, &mut output);
        assert!(session.is_wanted(5));

        let events = feed(&mut session, "CANCEL\t5\n", &mut output);
        assert!(matches!(events[..], [Event::Cancelled(5)]));
        assert!(!session.is_wanted(5) && session.unanswered() == 0);
        let again = session.next_event(&mut BytesMut::from(auth), &mut output, now());
        assert_eq!(again.unwrap_err(), ProtocolError::DuplicateRequestId(5));

        session.answer(5, &Reply::Ok { user: "joe", fields: &[] }, &mut output);
        assert_eq!(output, b"");
        assert_eq!(feed(&mut session, auth, &mut output).len(), 1);
    }

    #[test]
    fn answers_to_unknown_requests_are_not_written() {
        let mut output = Vec::new();

        let mut session = greeted(SocketKind::Login, 2);
        session.answer(1, &Reply::Ok { user: "joe", fields: &[] }, &mut output);

        assert!(output.is_empty());
    }

    #[test]
    fn answers_are_escaped_and_bounded() {
        let auth =
            "AUTH\t1\tPLAIN\tservice=a\tresp=AGpvZQB4\nAUTH\t2\tPLAIN\tservice=a\tresp=AGpvZQB4\n";
        let mut session = greeted(SocketKind::Login, 2);
        feed(&mut session, auth, &mut Vec::new());

        let mut output = Vec::new();
        let fields = [("nologin", ""), ("reason", "a\tb")];
        session.answer(1, &Reply::Ok { user: "joe", fields: &fields }, &mut output);
        let (user, code) = ("x".repeat(321), Some(FailCode::AuthzFail));
        let reply = Reply::Fail { user: Some(&user), code, reason: Some("a\nb") };
        session.answer(2, &reply, &mut output);

        assert_eq!(
            String::from_utf8(output).unwrap(),
            "OK\t1\tuser=joe\tnologin\treason=a\x01tb\nFAIL\t2\tcode=authz_fail\treason=ab\n"
        );
    }

    #[test]
    fn prompts_left_alone_are_dropped_by_age() {
        let start = now();
        let limit = Duration::from_secs(150);
        let mut output = Vec::new();
        let mut session = greeted(SocketKind::Client, 0);
        for (id, seconds) in [(1, 0), (2, 100)] {
            let line = format!("AUTH\t{id}\tLOGIN\tservice=smtp\n");
            let now = start + Duration::from_secs(seconds);
            session.next_event(&mut BytesMut::from(line.as_bytes()), &mut output, now).unwrap();
        }

        // The second message does not make the first request younger.
        feed(&mut session, "CONT\t1\tam9l\n", &mut output);
        assert_eq!(session.drop_stale(start + Duration::from_secs(149), limit), 0);
        assert_eq!(session.drop_stale(start + Duration::from_secs(150), limit), 1);

        assert_eq!((session.open_requests(), session.unanswered()), (1, 0));
        output.clear();
        feed(&mut session, "CONT\t1\teA==\n", &mut output);
        assert_eq!(output, b"FAIL\t1\treason=Authentication request timed out\n");
    }

    #[test]
    fn unfinished_requests_are_bounded() {
        let mut session = greeted(SocketKind::Client, 0);
        let lines: String =
            (1..=MAX_OPEN_REQUESTS).map(|id| format!("AUTH\t{id}\tLOGIN\tservice=a\n")).collect();
        feed(&mut session, &lines, &mut Vec::new());
        assert_eq!(session.open_requests(), MAX_OPEN_REQUESTS);

        let mut input = BytesMut::from("AUTH\t9999\tLOGIN\tservice=a\n");
        let error = session.next_event(&mut input, &mut Vec::new(), now()).unwrap_err();

        assert_eq!(error, ProtocolError::TooManyRequests);
    }

    #[test]
    fn a_line_may_hold_16384_bytes_and_no_more() {
        for (length, fits) in [(16_384, true), (16_385, false)] {
            let mut line = "AUTH\t1\tLOGIN\tservice=a\tx=".to_string();
            line.push_str(&"y".repeat(length - line.len()));
            line.push('\n');
            let mut input = BytesMut::from(line.as_bytes());
            let mut session = greeted(SocketKind::Client, 0);
            let outcome = session.next_event(&mut input, &mut Vec::new(), now());
            assert_eq!(outcome.is_ok(), fits, "{length}");
        }
    }

    /// Something close to the protocol, so that random input gets past the first line.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"AUTH\t1\tPLAIN\tservice=imap\tresp=AGpvZQB4\n".to_vec()),
            Just(b"AUTH\t2\tLOGIN\tprotocol=imap\n".to_vec()),
            Just(b"AUTH\t3\tlogin\tservice=imap\tresp=\n".to_vec()),
            Just(b"AUTH\t4\tPLAIN\tservice=imap\tresp=!\n".to_vec()),
            Just(b"AUTH\t5\tPLAIN\tservice=imap\tresp==\n".to_vec()),
            "CONT\t[1-5]\t(am9l|AGpvZQB4|=|)\n".prop_map(String::into_bytes),
            "CANCEL\t[0-6]\n".prop_map(String::into_bytes),
            "(AUTH|CONT|CANCEL|CPID|\t|\n|[0-9]|resp=|service=|PLAIN){0,9}"
                .prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..20),
        ];
        let hello = prop_oneof![
            9 => Just("VERSION\t1\t2\nCPID\t7\n"),
            9 => Just("VERSION\t1\t0\n"),
            1 => Just("VERSION\t1\t0\nCPID\t0\n"),
            1 => Just(""),
        ];
        (hello, proptest::collection::vec(piece, 0..12))
            .prop_map(|(hello, pieces)| [hello.as_bytes(), &pieces.concat()].concat())
    }

    /// Runs a session to its end; even ids are answered at once, odd ones never.
    fn transcript<'a>(kind: SocketKind, pieces: impl Iterator<Item = &'a [u8]>) -> String {
        let mut session = Session::new(kind);
        let (mut input, mut output, mut events) = (BytesMut::new(), Vec::new(), String::new());
        let start = now();
        'stream: for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match session.next_event(&mut input, &mut output, start) {
                    Ok(Some(event)) => {
                        events.push_str(&format!("{event:?}\n"));
                        if let Event::Request(request) = event
                            && request.id % 2 == 0
                        {
                            let reply = Reply::Fail { user: None, code: None, reason: None };
                            session.answer(request.id, &reply, &mut output);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        events.push_str(&error.to_string());
                        break 'stream;
                    }
                }
            }
            assert!(input.len() <= MAX_LINE_BYTES && session.open_requests() <= MAX_OPEN_REQUESTS);
        }
        events + &output.escape_ascii().to_string()
    }

    proptest! {
        #[test]
        fn what_is_understood_does_not_depend_on_the_pieces(stream in stream(), cut in 1usize..40) {
            for kind in [SocketKind::Login, SocketKind::Client] {
                let whole = transcript(kind, std::iter::once(&stream[..]));
                prop_assert_eq!(&whole, &transcript(kind, stream.chunks(1)));
                prop_assert_eq!(&whole, &transcript(kind, stream.chunks(cut)));
            }
        }

        #[test]
        fn a_request_reads_as_it_was_said(
            id in 1u32..,
            service in "[a-z0-9=-]{1,40}",
            session in ".{0,60}",
            client: std::net::IpAddr,
            flags: [bool; 3],
            authcid in "[^\0]{1,60}",
            password: Vec<u8>,
        ) {
            let response = [b"\0", authcid.as_bytes(), b"\0", &password].concat();
            let mut line = Vec::new();
            let mut writer = Writer::line(&mut line, "AUTH").number(id).value("PLAIN");
            writer = writer.pair("service", &service).pair("session", &session);
            writer = writer.pair("rip", &client.to_string());
            for (flag, is_set) in ["secured", "nologin", "no-penalty"].iter().zip(flags) {
                writer = if is_set { writer.value(flag) } else { writer };
            }
            writer.pair("resp", &STANDARD.encode(response)).end();

            let mut session_under_test = greeted(SocketKind::Login, 2);
            let mut input = BytesMut::from(&*line);
            let event = session_under_test.next_event(&mut input, &mut Vec::new(), now()).unwrap();
            let Some(Event::Request(request)) = event else {
                return Err(TestCaseError::fail(format!("{event:?}")));
            };
            prop_assert_eq!((request.id, request.mechanism), (id, Mechanism::Plain));
            prop_assert_eq!(&*request.service, &*service);
            let session = Some(session).filter(|session| !session.is_empty());
            prop_assert_eq!(request.session.as_deref(), session.as_deref());
            prop_assert_eq!(request.client, Some(client.to_canonical()));
            prop_assert_eq!([request.secured, request.nologin, request.no_penalty], flags);
            prop_assert_eq!(request.credentials.authcid, authcid.as_bytes());
            prop_assert_eq!(request.credentials.password.as_bytes(), password);
        }

        #[test]
        fn random_bytes_never_panic_nor_pile_up(pieces: Vec<Vec<u8>>) {
            for kind in [SocketKind::Login, SocketKind::Client] {
                transcript(kind, pieces.iter().map(Vec::as_slice));
            }
        }
    }
}
