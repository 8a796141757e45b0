//! The HTTP door: `POST /v1/login` with `POST /v1/memory/forget`, `/livez`, `/readyz`, `/metrics`, each only where
//! `serve` names it.
//!
//! ```text
//! C: POST /v1/login HTTP/1.1
//! C: Content-Length: 90
//! C:
//! C: {"username":"fry","password":"fry","service":"imap","client_ip":"192.0.2.9"}
//! S: HTTP/1.1 403 Forbidden
//! S: Retry-After: 2
//! S:
//! S: {"verdict":"refuse","reason":"wrong-password"}
//! ```
//!
//! 200 is accept, 403 refuse, 503 later; 400 is a body that cannot be read, 401 a caller without the door's token.
//! The reason is for the caller, a mail server or a web application; what it tells its own client is its affair.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::write_timeout::WriteTimeout;
use crate::auth::{Attempt, Authenticator, Later, Reason, Service, Verdict};
use crate::clock;
use crate::config::listen::{Listen, Serve};
use crate::config::template::Active;
use crate::metrics::{self, Metrics};
use crate::proto::json_login::{self, LoginRequest, MailboxAnswer, VerdictAnswer};
use crate::secret::Secret;
use crate::store::Mailbox;

/// The longest body that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The time for a request's head (a connection that waits for its next request included), and for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The time for finding out about our own health.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// Seconds that a caller should let its client wait after a refusal, where the door itself does not.
const RETRY_REFUSED: &str = "2";

/// Seconds after which "later" may have become something else: a directory is tried again every second.
const RETRY_LATER: &str = "1";

/// One http door.
pub struct HttpDoor {
    name: Arc<str>,
    serve: Vec<Serve>,
    token: Secret,
    trusted: Vec<IpNet>,
    failure_delay: Duration,
    write_timeout: Duration,
    parts: Parts,
}

/// What an http door works with, beside its settings.
#[derive(Clone)]
pub struct Parts {
    /// Decides an attempt; see [`by`].
    pub decide: Decide,
    /// Finds out who can answer now.
    pub health: Probe,
    /// Forgets what is remembered.
    pub forget: Forgetting,
    /// What `/metrics` shows.
    pub metrics: Metrics,
}

/// A future on the heap.
pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Forgets a name, or everything; how many entries that were.
pub type Forgetting = Arc<dyn Fn(Option<String>) -> Boxed<usize> + Send + Sync>;

/// From an attempt to its verdict.
pub type Decide = Arc<dyn Fn(Attempt) -> Boxed<Verdict> + Send + Sync>;

/// Finds out about our own health.
pub type Probe = Arc<dyn Fn() -> Boxed<Health> + Send + Sync>;

/// Who can answer now. Texts name the thing (`directory corp: no server answers`) and are shown to anyone who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything.
    Ready,
    /// Memory, the store or a directory; not all of them.
    Degraded(Vec<String>),
    /// Nobody.
    Down(Vec<String>),
}

/// Memory first, then whoever must be asked. The question goes on if the caller hangs up, so that it reaches the
/// journal; a panic in it is answered with "later".
#[must_use]
pub fn by(authenticator: Arc<Authenticator>, tracker: TaskTracker) -> Decide {
    Arc::new(move |attempt| {
        if let Some(verdict) = authenticator.recall(&attempt, clock::now()) {
            return Box::pin(std::future::ready(verdict));
        }
        let authenticator = Arc::clone(&authenticator);
        let question = tracker.spawn(async move { authenticator.authenticate(attempt).await });
        Box::pin(async move {
            question.await.unwrap_or_else(|_| Verdict::Unavailable(Later::new(Reason::Internal)))
        })
    })
}

impl HttpDoor {
    /// The door `[listen.NAME]`.
    #[must_use]
    pub fn new(name: Arc<str>, listen: &Listen, parts: Parts) -> Self {
        Self {
            name,
            serve: listen.serve.clone(),
            token: listen.token.clone(),
            trusted: listen.trusted.clone(),
            failure_delay: listen.failure_delay(),
            write_timeout: listen.write_timeout.0,
            parts,
        }
    }
}

/// Serves one connection until the peer is done with it, or until the request under way is answered after
/// `shutdown`. `peer_ip` is `None` on a unix socket.
pub async fn serve<S>(
    stream: S,
    peer_ip: Option<IpAddr>,
    door: Arc<HttpDoor>,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let door = Arc::clone(&door);
        async move { Ok::<_, Infallible>(door.answer(peer_ip, request).await) }
    });
    let stream = WriteTimeout::new(stream, door.write_timeout);
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_TIMEOUT)
            .max_headers(64)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        if error.is_parse() {
            door.parts.metrics.protocol_error(&door.name);
        }
        tracing::debug!(door = &*door.name, %error, "an http connection ended early");
    }
}

impl HttpDoor {
    async fn answer(&self, peer: Option<IpAddr>, request: Request<Incoming>) -> Answer {
        let arrived = clock::now();
        let serves = |what| self.serve.contains(&what);
        let path = request.uri().path();
        match path {
            "/livez" | "/readyz" if serves(Serve::Health) => {
                if !is_read(request.method()) {
                    not_allowed("GET, HEAD")
                } else if path == "/livez" {
                    text(StatusCode::OK, "ok\n".into())
                } else {
                    self.readiness().await
                }
            }
            "/metrics" if serves(Serve::Metrics) => {
                if !is_read(request.method()) {
                    not_allowed("GET, HEAD")
                } else if self.may_call(request.headers()) {
                    content(StatusCode::OK, metrics::CONTENT_TYPE, self.parts.metrics.encode())
                } else {
                    self.unauthorized(peer)
                }
            }
            "/v1/memory/forget" if serves(Serve::Login) => {
                if request.method() != Method::POST {
                    not_allowed("POST")
                } else if self.may_call(request.headers()) {
                    self.forget(request).await.unwrap_or_else(Problem::spoken)
                } else {
                    self.unauthorized(peer)
                }
            }
            "/v1/login" if serves(Serve::Login) => {
                if request.method() != Method::POST {
                    not_allowed("POST")
                } else if self.may_call(request.headers()) {
                    self.login(peer, request, arrived).await.unwrap_or_else(Problem::spoken)
                } else {
                    self.unauthorized(peer)
                }
            }
            _ => Problem(StatusCode::NOT_FOUND, "nothing is served here".into()).spoken(),
        }
    }

    async fn readiness(&self) -> Answer {
        let health = tokio::time::timeout(HEALTH_TIMEOUT, (self.parts.health)()).await;
        let health = health.unwrap_or_else(|_| {
            Health::Down(vec![format!("no answer within {} s", HEALTH_TIMEOUT.as_secs())])
        });
        match health {
            Health::Ready => text(StatusCode::OK, "ready\n".into()),
            Health::Degraded(troubles) => {
                text(StatusCode::OK, format!("degraded: {}\n", troubles.join("; ")))
            }
            Health::Down(troubles) => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("down: {}\n", troubles.join("; ")))
            }
        }
    }

    /// Whether the caller knows the door's token: as `Authorization: Bearer`, as `X-API-Key`, or as the password of
    /// `Authorization: Basic`.
    fn may_call(&self, headers: &HeaderMap) -> bool {
        if self.token.is_empty() {
            return true;
        }
        let key = headers.get("x-api-key").map(HeaderValue::as_bytes);
        let authorization = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let bearer = authorization.and_then(|value| after_scheme(value, b"bearer "));
        let basic = authorization.and_then(|value| after_scheme(value, b"basic "));
        let basic = basic.and_then(|value| BASE64_STANDARD.decode(value).ok()).map(Zeroizing::new);
        // RFC 7617 §2: the user-id ends at the first colon.
        let basic = basic.as_deref().and_then(|pair| {
            let colon = memchr::memchr(b':', pair)?;
            pair.get(colon + 1..)
        });
        [key, bearer, basic].into_iter().flatten().any(|given| self.token.matches(given))
    }

    fn unauthorized(&self, peer: Option<IpAddr>) -> Answer {
        tracing::info!(door = &*self.name, peer.ip = ?peer, "a caller without the door's token");
        let error = "the caller's token is missing or wrong";
        let mut answer = Problem(StatusCode::UNAUTHORIZED, error.into()).spoken();
        let schemes = HeaderValue::from_static("Bearer, Basic realm=\"gatepost\"");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, schemes);
        answer
    }

    /// `{"name":"…"}` forgets a name and its account, `{"all":true}` everything (login.md M-11).
    async fn forget(&self, request: Request<Incoming>) -> Result<Answer, Problem> {
        let body = read_body(request).await?;
        let asked: Forget = serde_json::from_slice(&body).map_err(|_| {
            let expected = "expected {\"name\":\"…\"} or {\"all\":true}";
            Problem(StatusCode::BAD_REQUEST, expected.into())
        })?;
        let name = match asked {
            Forget::Name(name) => Some(name),
            Forget::All(true) => None,
            Forget::All(false) => return Ok(forgotten(0)),
        };
        Ok(forgotten((self.parts.forget)(name).await))
    }

    async fn login(
        &self,
        peer: Option<IpAddr>,
        request: Request<Incoming>,
        arrived: Instant,
    ) -> Result<Answer, Problem> {
        let body = read_body(request).await?;
        let asked = json_login::parse(&body)
            .map_err(|error| Problem(StatusCode::BAD_REQUEST, error.to_string().into()))?;
        let verdict = (self.parts.decide)(self.attempt(peer, asked, arrived)).await;
        if matches!(verdict, Verdict::Reject(_)) && !self.failure_delay.is_zero() {
            tokio::time::sleep_until((arrived + self.failure_delay).into()).await;
        }
        Ok(self.spoken(&verdict))
    }

    fn attempt(&self, peer: Option<IpAddr>, asked: LoginRequest, arrived: Instant) -> Attempt {
        // login.md D-2: what a trusted peer does not say stays unknown; its own address is not the client's.
        let client = match peer {
            Some(peer) if !self.trusted.iter().any(|net| net.contains(&peer)) => Some(peer),
            _ => asked.client_ip,
        };
        let service = asked.service.unwrap_or_default();
        Attempt {
            login: asked.username,
            authzid: Vec::new(),
            password: asked.password,
            service: Service::parse(&service),
            service_name: service.into(),
            client,
            peer: None,
            session: asked.session,
            door: Arc::clone(&self.name),
            arrived,
        }
    }

    fn spoken(&self, verdict: &Verdict) -> Answer {
        let (status, retry, body) = match verdict {
            Verdict::Accept(accepted) => {
                let mailbox = &*accepted.mailbox;
                let protocols: Vec<&str> =
                    mailbox.settings.protocols.iter().map(AsRef::as_ref).collect();
                let said = VerdictAnswer::Accept {
                    user: mailbox.address.as_str(),
                    mailbox: facts(mailbox, &protocols),
                    source: accepted.source.as_str(),
                };
                (StatusCode::OK, None, json_login::encode_verdict(&said))
            }
            Verdict::Reject(refused) => {
                let said = VerdictAnswer::Refuse { reason: refused.reason.as_str() };
                let retry = self.failure_delay.is_zero().then_some(RETRY_REFUSED);
                (StatusCode::FORBIDDEN, retry, json_login::encode_verdict(&said))
            }
            Verdict::Unavailable(later) => {
                let said = VerdictAnswer::Later { reason: later.reason.as_str() };
                let body = json_login::encode_verdict(&said);
                (StatusCode::SERVICE_UNAVAILABLE, Some(RETRY_LATER), body)
            }
        };
        let mut answer = content(status, JSON, body);
        if let Some(seconds) = retry {
            let headers = answer.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        answer
    }
}

/// What goes back.
type Answer = Response<Full<Bytes>>;

const JSON: &str = "application/json";

fn facts<'a>(mailbox: &'a Mailbox, protocols: &'a [&'a str]) -> MailboxAnswer<'a> {
    let settings = &mailbox.settings;
    MailboxAnswer {
        address: mailbox.address.as_str(),
        display_name: &settings.display_name,
        quota: settings.quota,
        protocols,
        template: &settings.template,
        home: &mailbox.place.home,
        uid: mailbox.place.uid,
        gid: mailbox.place.gid,
        active: settings.active == Active::Yes && !mailbox.disabled_by_admin,
    }
}

/// What is wrong with a request: `{"error": …}`. Never quotes the request.
struct Problem(StatusCode, Cow<'static, str>);

/// What to forget.
#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Forget {
    All(bool),
    Name(String),
}

fn forgotten(entries: usize) -> Answer {
    content(StatusCode::OK, JSON, serde_json::json!({ "forgotten": entries }).to_string())
}

impl Problem {
    fn spoken(self) -> Answer {
        let Self(status, error) = self;
        content(status, JSON, serde_json::json!({ "error": error }).to_string())
    }
}

/// The body, if it is neither too long nor too slow. It holds a password, so it is zeroed when dropped.
async fn read_body(request: Request<Incoming>) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let headers = request.headers();
    if !headers.contains_key(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING)
    {
        let error = "the length of the body is missing";
        return Err(Problem(StatusCode::LENGTH_REQUIRED, error.into()));
    }
    let body = request.into_body();
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_long());
    }
    let too_slow = |_| Problem(StatusCode::REQUEST_TIMEOUT, "the body is too slow".into());
    tokio::time::timeout(READ_TIMEOUT, collect(body)).await.map_err(too_slow)?
}

async fn collect(mut body: Incoming) -> Result<Zeroizing<Vec<u8>>, Problem> {
    // Room for all of it, where the length is known: growing leaves copies behind that nobody zeroes.
    let length = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.unwrap_or(MAX_BODY_BYTES)));
    while let Some(frame) = body.frame().await {
        let cut = |_| Problem(StatusCode::BAD_REQUEST, "the body was cut short".into());
        let frame = frame.map_err(cut)?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > MAX_BODY_BYTES {
            return Err(too_long());
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// RFC 9110 §11.1: the scheme's case does not matter. `scheme` is in lower case and ends in a blank.
fn after_scheme<'a>(value: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (given, rest) = value.split_at_checked(scheme.len())?;
    given.eq_ignore_ascii_case(scheme).then(|| rest.trim_ascii())
}

fn content(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn text(status: StatusCode, body: String) -> Answer {
    content(status, "text/plain; charset=utf-8", body)
}

fn too_long() -> Problem {
    Problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 64 KiB".into())
}

fn not_allowed(methods: &'static str) -> Answer {
    let error = "this method is not served here";
    let mut answer = Problem(StatusCode::METHOD_NOT_ALLOWED, error.into()).spoken();
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    answer
}

#[cfg(test)]
mod tests;
