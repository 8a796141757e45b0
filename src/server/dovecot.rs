//! Dovecot's auth client protocol: reads requests, asks the core, writes answers as they come.
//!
//! All requests of one read are looked at together and what memory answers leaves with one write. The rest become
//! tasks; their answers go out by id, in any order. Refusals wait out the door's delay in a queue of decided answers,
//! not as attempts in flight.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::claims::{Claim, Claims, Place};
use super::door::Door;
use super::listener::Peer;
use super::patience::Patience;
use super::words;
use super::write_timeout::write_out;
use crate::auth::{Accepted, Attempt, Later, Reason, Refused, Service, Verdict};
use crate::clock;
use crate::config::listen::TempFailure;
use crate::proto::dovecot::auth::{
    AuthRequest, Event, FailCode, Greeting, MAX_OPEN_REQUESTS, Mechanism, Reply, Session,
    SocketKind,
};

/// A login prompt that is never answered is dropped after this long (Dovecot's own limit).
const PROMPT_LIMIT: Duration = Duration::from_secs(150);
/// Bytes read at a time; a line may be longer than one read.
const READ_BYTES: usize = 16 * 1024;
/// When the daemon stops, a connection ends once nothing has come for so long.
const QUIET: Duration = Duration::from_millis(2);
/// A peer that never pauses is read for so long then.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// One door that speaks the auth client protocol.
pub(super) struct AuthDoor {
    pub(super) door: Door,
    pub(super) greeting: Arc<Greeting>,
    pub(super) claims: Claims,
    pub(super) temp_failure: TempFailure,
}

impl Deref for AuthDoor {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
    }
}

/// One connection.
struct Driver<S> {
    stream: S,
    door: Arc<AuthDoor>,
    peer: Peer,
    session: Session,
    cookie: [u8; 16],
    place: Option<Place>,
    input: BytesMut,
    patience: Patience,
    output: Vec<u8>,
    asking: JoinSet<Result<Verdict, JoinError>>,
    /// Which request each task answers.
    asked: HashMap<tokio::task::Id, Asked>,
    /// Refusals and when they may leave, soonest first.
    decided: VecDeque<(Instant, Asked, Refused)>,
    /// The daemon stops; past this moment no more requests are read.
    stopping: Option<Instant>,
    closing: bool,
}

/// A finished question: the outer task only waits for the inner one.
type Done = Result<(tokio::task::Id, Result<Verdict, JoinError>), JoinError>;

/// What is needed of a request when its answer goes out.
struct Asked {
    id: u32,
    /// The name typed, for a refusal.
    user: String,
    mechanism: Mechanism,
    nologin: bool,
    arrived: Instant,
}

/// Serves one connection until the peer is gone, breaks the protocol, or `shutdown` ends it; then answers under way
/// still go out.
///
/// # Errors
/// What ended it, if not the peer.
pub(super) async fn serve<S>(
    stream: S,
    door: Arc<AuthDoor>,
    kind: SocketKind,
    peer: Peer,
    cuid: u64,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut cookie = [0; 16];
    getrandom::fill(&mut cookie).map_err(io::Error::from)?;
    let session = Session::new(kind);
    let mut output = Vec::with_capacity(1024);
    session.greet(&door.greeting, cuid, &cookie, &mut output);
    let mut driver = Driver {
        stream,
        door,
        peer,
        session,
        cookie,
        place: None,
        input: BytesMut::with_capacity(READ_BYTES),
        patience: Patience::default(),
        output,
        asking: JoinSet::new(),
        asked: HashMap::new(),
        decided: VecDeque::new(),
        stopping: None,
        closing: false,
    };
    driver.flush().await?;
    driver.run(shutdown).await
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Driver<S> {
    async fn run(&mut self, shutdown: CancellationToken) -> io::Result<()> {
        // Waits once for all rounds: to begin to wait takes the lock that all connections share.
        let mut stopped = pin!(shutdown.cancelled());
        loop {
            let idle = self.asking.is_empty() && self.decided.is_empty();
            if let Some(limit) = self.stopping
                && idle
                && !self.closing
            {
                self.last_look(limit).await?;
                continue;
            }
            if self.closing && idle {
                // The drop closes in one step: a request that came between an end of stream and the close would be
                // taken in, and never answered.
                return Ok(());
            }
            let has_room = self.has_room();
            let reads =
                has_room && !self.closing && self.stopping.is_none_or(|limit| clock::now() < limit);
            let due = self.decided.front().map(|(due, ..)| *due);
            self.input.reserve(READ_BYTES);
            // What was decided goes out first, however much is asked; what came before a stop is read before it is heeded.
            tokio::select! {
                biased;
                Some(done) = self.asking.join_next_with_id() => self.task_done(done),
                read = self.stream.read_buf(&mut self.input), if reads => {
                    if read? == 0 {
                        return Ok(());
                    }
                    self.read_requests().await?;
                }
                () = self.patience.over(), if !self.closing => {
                    self.door.metrics.protocol_error(&self.door.name);
                    return Err(Patience::exhausted());
                }
                () = until(due), if due.is_some() => {}
                () = &mut stopped, if self.stopping.is_none() && !self.closing => {
                    self.stopping = Some(clock::now() + STOP_LIMIT);
                }
            }
            if has_room != self.has_room() {
                // There is room again: lines that were read but not looked at come first, and before a close.
                self.read_requests().await?;
            }
            self.release_decided(clock::now());
            self.flush().await?;
        }
    }

    /// The daemon stops: the connection ends now, unless something more has come.
    ///
    /// Dovecot's login processes say "wrong password" to whoever has a request on a connection that ends. What arrived
    /// is known here only after the runtime's next look at its sockets, which comes with the timer; so what is left to
    /// chance is the moment between that look and the close.
    async fn last_look(&mut self, limit: Instant) -> io::Result<()> {
        let read = self.stream.read_buf(&mut self.input);
        match tokio::time::timeout(QUIET, read).await {
            Ok(Err(error)) => return Err(error),
            Ok(Ok(1..)) if clock::now() < limit => {
                self.read_requests().await?;
                self.release_decided(clock::now());
                self.flush().await?;
            }
            _ => self.closing = true,
        }
        Ok(())
    }

    /// Whether more requests may be looked at. The session holds decided refusals too.
    fn has_room(&self) -> bool {
        self.asking.len() < self.door.max_in_flight
            && self.session.open_requests() < MAX_OPEN_REQUESTS
    }

    /// Looks at everything that was read, as far as there is room for questions.
    async fn read_requests(&mut self) -> io::Result<()> {
        let now = clock::now();
        if self.session.open_requests() > 0 {
            self.session.drop_stale(now, PROMPT_LIMIT);
        }
        let unread = self.input.len();
        // "Later" to one of these ends the connection, but not before the others are answered (login.md D-3).
        while self.has_room() {
            match self.session.next_event(&mut self.input, &mut self.output, now) {
                Ok(None) => break,
                Ok(Some(Event::Hello { client_pid })) => {
                    // Dovecot's login processes may be led to a door of ours as well; without a process id nothing
                    // could be claimed.
                    if client_pid != 0 {
                        self.place = Some(self.door.claims.open(self.cookie, client_pid));
                    }
                }
                Ok(Some(Event::Request(request))) => self.request(request, now),
                Ok(Some(Event::Cancelled(id))) => {
                    if let Some(place) = &self.place {
                        place.cancel(id);
                    }
                }
                Err(error) => {
                    self.door.metrics.protocol_error(&self.door.name);
                    tracing::warn!(door = %self.door.name, %error, "auth client broke the protocol");
                    // What was decided before the fault still goes out.
                    self.flush().await?;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
        // Without room nothing is read, and the peer cannot finish what it began.
        if self.input.len() < unread || !self.has_room() {
            self.patience.rest();
        }
        if self.has_room() {
            self.patience.wants_more(&self.input);
        }
        Ok(())
    }

    fn request(&mut self, request: AuthRequest, now: Instant) {
        let AuthRequest { id, mechanism, nologin, .. } = request;
        let mut asked = Asked { id, user: String::new(), mechanism, nologin, arrived: now };
        let attempt = self.attempt(request, now);
        match self.door.core.recall(&attempt, now) {
            Some(Verdict::Accept(accepted)) => self.accept(&asked, accepted),
            Some(verdict) => {
                asked.user = shown_name(&attempt.login);
                self.decide(asked, verdict);
            }
            None => {
                asked.user = shown_name(&attempt.login);
                let task = self.asking.spawn(self.door.ask(attempt));
                self.asked.insert(task.id(), asked);
            }
        }
    }

    fn attempt(&self, request: AuthRequest, now: Instant) -> Attempt {
        Attempt {
            login: request.credentials.authcid,
            authzid: request.credentials.authzid,
            password: request.credentials.password,
            service: Service::parse(&request.service),
            service_name: request.service,
            client: self
                .door
                .client(request.client, &self.peer)
                .map(|client| client.to_canonical()),
            peer: self.peer.credentials,
            session: request.session,
            door: Arc::clone(&self.door.name),
            arrived: now,
        }
    }

    fn task_done(&mut self, done: Done) {
        let (id, verdict) = match done {
            Ok((id, Ok(verdict))) => (id, verdict),
            Ok((id, Err(error))) => {
                // A fault of ours must still be answered, and as "later".
                tracing::error!(%error, door = %self.door.name, "an attempt failed");
                (id, Verdict::Unavailable(Later::new(Reason::Internal)))
            }
            Err(error) => (error.id(), Verdict::Unavailable(Later::new(Reason::Internal))),
        };
        if let Some(asked) = self.asked.remove(&id) {
            self.decide(asked, verdict);
        }
    }

    fn decide(&mut self, asked: Asked, verdict: Verdict) {
        match verdict {
            Verdict::Accept(accepted) => self.accept(&asked, accepted),
            Verdict::Reject(refused) => self.delay(asked, refused),
            Verdict::Unavailable(_) => self.later(&asked),
        }
    }

    fn accept(&mut self, asked: &Asked, accepted: Accepted) {
        let mailbox = accepted.mailbox;
        let reply = Reply::Ok { user: mailbox.address.as_str(), fields: &[] };
        // Cancelled meanwhile: nobody will claim it.
        let is_wanted = self.session.answer(asked.id, &reply, &mut self.output);
        if let Some(place) = &self.place
            && is_wanted
            && !asked.nologin
        {
            let claim = Claim { mailbox, mechanism: asked.mechanism, at: asked.arrived };
            place.keep(asked.id, claim);
        }
    }

    /// Puts a refusal in the queue of those that may leave later (login.md O-6).
    fn delay(&mut self, asked: Asked, refused: Refused) {
        let due = asked.arrived + self.door.failure_delay;
        let place = self.decided.partition_point(|(other, ..)| *other <= due);
        self.decided.insert(place, (due, asked, refused));
    }

    fn release_decided(&mut self, now: Instant) {
        // At the bound the oldest leave early, so that refusals never fill the window of others.
        while let Some((_, asked, refused)) = match self.decided.front() {
            Some((due, ..)) if *due <= now || self.decided.len() > self.door.max_in_flight => {
                self.decided.pop_front()
            }
            _ => None,
        } {
            let words = words::of(&refused);
            let user = Some(asked.user.as_str()).filter(|user| !user.is_empty());
            let reply = Reply::Fail { user, code: words.code, reason: words.text };
            self.session.answer(asked.id, &reply, &mut self.output);
        }
    }

    /// "Later", in the client's own way (login.md D-3).
    fn later(&mut self, asked: &Asked) {
        let close = match self.door.temp_failure {
            TempFailure::Close => true,
            TempFailure::Fail => false,
            // Postfix and Exim take any FAIL for a wrong password; only a lost connection is "try again".
            TempFailure::Auto => self.session.client_minor() < 2 || asked.nologin,
        };
        if close {
            self.closing = true;
        } else {
            let user = Some(asked.user.as_str()).filter(|user| !user.is_empty());
            let reply = Reply::Fail { user, code: Some(FailCode::TempFail), reason: None };
            self.session.answer(asked.id, &reply, &mut self.output);
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        write_out(&mut self.stream, &mut self.output, self.door.write_timeout).await
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The name as it may stand in a reply: text without control bytes, or nothing.
fn shown_name(typed: &[u8]) -> String {
    match std::str::from_utf8(typed) {
        Ok(text) if text.len() <= 320 && !text.chars().any(char::is_control) => text.to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
