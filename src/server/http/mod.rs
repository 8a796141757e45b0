//! The HTTP door: connections, routes, callers and bodies. What is served is named by `serve`; each shape has its own
//! file:
//!
//! | `serve` | paths | file |
//! |---|---|---|
//! | login | `POST /v1/login`, `POST /v1/memory/forget` | `login` |
//! | lookup | `GET /v1/lookup/…` | `lookup` |
//! | mailcow | `POST /` | `mailcow` |
//! | nauthilus | `/api/v1/auth/json`, `/api/v1/auth/header` | `nauthilus` |
//! | nginx | `/nginx` | `nginx` |
//! | forward-auth | `/forward-auth` | `forward_auth` |
//! | policy | `/policy`, `/command/…`, `/?command=…` | `auth_policy` |
//! | health, metrics | `/livez`, `/readyz`, `/metrics` | `health` |
//!
//! A shape reads its request into an `Asked`, hears a [`Verdict`] and says it in its own words; all between is here.

mod auth_policy;
mod forward_auth;
mod health;
mod login;
mod lookup;
mod mailcow;
mod nauthilus;
mod nginx;

use std::borrow::Cow;
use std::future::Future;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub use super::userdb::Residence;
pub use auth_policy::{Changing, Normalise, Shield, ShieldChange};
pub use health::Health;
pub use lookup::Lookups;

use super::listener::Peer;
use super::write_timeout::WriteTimeout;
use crate::auth::{Attempt, Service, Verdict};
use crate::clock;
use crate::config::listen::{Listen, Serve, TempFailure, Upstream};
use crate::metrics::{DoorName, Metrics};
use crate::proto::auth_policy::{Named, named};
use crate::proto::http::{accepts_text, after_scheme, basic_credentials};
use crate::secret::{Password, Secret};

/// The longest body that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The time for a request's head (a connection that waits for its next request included: contrib/dovecot-lua drops its
/// own earlier), and for its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Seconds that a caller should let its client wait after a refusal, where the door itself does not.
const RETRY_REFUSED: HeaderValue = HeaderValue::from_static("2");

/// Seconds after which "later" may have become something else: a directory is tried again every second.
const RETRY_LATER: HeaderValue = HeaderValue::from_static("1");

/// One http door.
pub struct HttpDoor {
    name: Arc<DoorName>,
    serve: Vec<Serve>,
    token: Secret,
    trusted: Vec<IpNet>,
    failure_delay: Duration,
    write_timeout: Duration,
    temp_failure: TempFailure,
    upstream: Upstream,
    /// Sessions that Nauthilus' shape has given a number.
    sessions: AtomicU64,
    /// Whoever holds it makes, or still sends, a long list: all mailboxes, or all entries of the shield.
    list: Arc<Mutex<()>>,
    /// What the auth-policy protocol was asked.
    policy: auth_policy::Counters,
    parts: Parts,
}

/// What an http door works with, beside its settings.
#[derive(Clone)]
pub struct Parts {
    /// Decides an attempt.
    pub decide: Decide,
    /// Finds out who can answer now.
    pub health: Probe,
    /// Forgets what is remembered.
    pub forget: Forgetting,
    /// Where mailboxes and addresses are.
    pub lookups: Lookups,
    /// The guessing shield, for the auth-policy protocol.
    pub shield: Shield,
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

impl HttpDoor {
    /// The door `[listen.NAME]`.
    #[must_use]
    pub fn new(name: Arc<str>, listen: &Listen, parts: Parts) -> Self {
        Self {
            name: DoorName::new(name),
            serve: listen.serve.clone(),
            token: listen.token.clone(),
            trusted: listen.trusted.clone(),
            failure_delay: listen.failure_delay(),
            write_timeout: listen.write_timeout.0,
            temp_failure: listen.temp_failure,
            upstream: listen.upstream.clone(),
            sessions: AtomicU64::new(0),
            list: Arc::default(),
            policy: auth_policy::Counters::new(),
            parts,
        }
    }
}

/// Serves one connection until the peer is done with it, or until the request under way is answered after
/// `shutdown`.
pub async fn serve<S>(stream: S, peer: Peer, door: Arc<HttpDoor>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let door = Arc::clone(&door);
        async move { door.answer(peer, request).await }
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
        tracing::debug!(door = %door.name, %error, "an http connection ended early");
    }
}

/// Ends the connection without an answer: how some callers are told "later".
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer, which is how this caller is told to try again")]
struct HangUp;

/// A long list, and the turn of whoever gets it.
struct ListBody {
    body: String,
    _turn: OwnedMutexGuard<()>,
}

impl ListBody {
    fn new(body: String, turn: OwnedMutexGuard<()>) -> Self {
        Self { body, _turn: turn }
    }
}

impl AsRef<[u8]> for ListBody {
    fn as_ref(&self) -> &[u8] {
        self.body.as_bytes()
    }
}

/// What goes back.
type Answer = Response<Full<Bytes>>;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Alive,
    AuthPolicy(Named),
    Forget,
    ForwardAuth,
    Login,
    Lookup,
    Mailcow,
    Metrics,
    NauthilusHeader,
    NauthilusJson,
    Nginx,
    Ready,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Mailcow,
            "/api/v1/auth/header" => Self::NauthilusHeader,
            "/api/v1/auth/json" => Self::NauthilusJson,
            "/forward-auth" => Self::ForwardAuth,
            "/livez" => Self::Alive,
            "/metrics" => Self::Metrics,
            "/nginx" => Self::Nginx,
            "/readyz" => Self::Ready,
            "/v1/login" => Self::Login,
            "/v1/memory/forget" => Self::Forget,
            _ if path.starts_with(lookup::PREFIX) => Self::Lookup,
            _ => return None,
        })
    }

    /// The word of `serve` that opens it.
    fn serve(self) -> Serve {
        match self {
            Self::Alive | Self::Ready => Serve::Health,
            Self::AuthPolicy(_) => Serve::Policy,
            Self::Forget | Self::Login => Serve::Login,
            Self::ForwardAuth => Serve::ForwardAuth,
            Self::Lookup => Serve::Lookup,
            Self::Mailcow => Serve::Mailcow,
            Self::Metrics => Serve::Metrics,
            Self::NauthilusHeader | Self::NauthilusJson => Serve::Nauthilus,
            Self::Nginx => Serve::Nginx,
        }
    }

    /// The methods it answers; empty: all.
    fn methods(self) -> &'static [Method] {
        match self {
            Self::Alive | Self::Lookup | Self::Metrics | Self::Nginx | Self::Ready => {
                &[Method::GET, Method::HEAD]
            }
            Self::Forget | Self::Login | Self::Mailcow => &[Method::POST],
            Self::NauthilusHeader | Self::NauthilusJson => &[Method::GET, Method::POST],
            // Each command has its own.
            Self::AuthPolicy(_) | Self::ForwardAuth => &[],
        }
    }

    /// Whether anybody may call it, token or not.
    fn is_open(self) -> bool {
        match self {
            Self::Alive | Self::Ready => true,
            Self::AuthPolicy(Named::Known(command)) => command.is_open(),
            _ => false,
        }
    }
}

/// One request, its body apart.
struct Call {
    peer: Peer,
    head: hyper::http::request::Parts,
    arrived: Instant,
}

impl Call {
    /// The value of a field; the first if there are several.
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.head.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn wants_text(&self) -> bool {
        let accepts = self.head.headers.get_all(header::ACCEPT).iter();
        accepts.map(HeaderValue::as_bytes).any(accepts_text)
    }
}

/// A login as a shape read it.
struct Asked {
    login: Vec<u8>,
    password: Password,
    /// `None`: the caller named a service that is not known, or none.
    service: Option<Service>,
    service_name: Box<str>,
    /// The client's address as the caller tells it.
    client: Option<IpAddr>,
    session: Option<Box<str>>,
}

impl HttpDoor {
    async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Result<Answer, HangUp> {
        let arrived = clock::now();
        let (head, body) = request.into_parts();
        let call = Call { peer, head, arrived };
        let route = self.route(&call.head.uri);
        let Some(route) = route.filter(|route| self.serve.contains(&route.serve())) else {
            return Ok(Problem(StatusCode::NOT_FOUND, "nothing is served here".into()).spoken());
        };
        let methods = route.methods();
        if !methods.is_empty() && !methods.contains(&call.head.method) {
            return Ok(not_allowed(methods));
        }
        if !self.may_call(route, &call.head.headers) {
            return self.unauthorized(route, &call);
        }
        let answer = match route {
            Route::Alive => Ok(health::alive()),
            Route::AuthPolicy(named) => Ok(self.auth_policy(&call, named, body).await),
            Route::Forget => self.forget(&call, body).await,
            Route::ForwardAuth => Ok(self.forward_auth(&call).await),
            Route::Login => self.login(&call, body).await,
            Route::Lookup => self.look_up(&call).await,
            Route::Mailcow => return self.mailcow(&call, body).await,
            Route::Metrics => Ok(self.metrics()),
            Route::NauthilusHeader => self.nauthilus_header(&call).await,
            Route::NauthilusJson => self.nauthilus_json(&call, body).await,
            Route::Nginx => Ok(self.nginx(&call).await),
            Route::Ready => Ok(self.readiness().await),
        };
        Ok(answer.unwrap_or_else(Problem::spoken))
    }

    /// `POST /?command=…` is mailcow's path too: the query tells, where both are served.
    fn route(&self, uri: &Uri) -> Option<Route> {
        let serves_policy = self.serve.contains(&Serve::Policy);
        let policy = serves_policy.then(|| named(uri.path(), uri.query())).flatten();
        policy.map(Route::AuthPolicy).or_else(|| Route::of(uri.path()))
    }

    /// Whether the caller knows the door's token: as `Authorization: Bearer`, as `X-API-Key`, or as the password of
    /// `Authorization: Basic`. In forward authentication `Authorization` is the end user's, so that only `X-API-Key`
    /// is left.
    fn may_call(&self, route: Route, headers: &HeaderMap) -> bool {
        if self.token.is_empty() || route.is_open() {
            return true;
        }
        let field = |name| headers.get(name).map(HeaderValue::as_bytes);
        let key = field(HeaderName::from_static("x-api-key"));
        if key.is_some_and(|key| self.token.matches(key)) {
            return true;
        }
        if route == Route::ForwardAuth {
            return false;
        }
        let authorization = field(header::AUTHORIZATION);
        let bearer = authorization.and_then(|value| after_scheme(value, b"bearer "));
        let basic = authorization.and_then(basic_credentials).map(|(_, password)| password);
        let basic = basic.as_ref().map(Password::as_bytes);
        [bearer, basic].into_iter().flatten().any(|given| self.token.matches(given))
    }

    fn unauthorized(&self, route: Route, call: &Call) -> Result<Answer, HangUp> {
        let peer = call.peer.address;
        tracing::info!(door = %self.name, peer.address = ?peer, "a caller without the door's token");
        if let Route::AuthPolicy(_) = route {
            return Ok(auth_policy::unauthorized());
        }
        if route == Route::Mailcow {
            // mailcow's script takes any answer for a wrong password.
            return Err(HangUp);
        }
        let error = "the caller's token is missing or wrong";
        if route == Route::ForwardAuth {
            // A 401 would be passed on to the end user, who would be asked for a password again and again.
            return Ok(Problem(StatusCode::FORBIDDEN, error.into()).spoken());
        }
        let mut answer = Problem(StatusCode::UNAUTHORIZED, error.into()).spoken();
        let schemes = HeaderValue::from_static("Bearer, Basic realm=\"gatepost\"");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, schemes);
        Ok(answer)
    }

    /// Whether this address is one of the trusted ones.
    fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&address))
    }

    /// login.md D-2: what a trusted peer does not say stays unknown, its own address is not the client's; any other
    /// peer is its own client.
    fn client(&self, peer: &Peer, told: Option<IpAddr>) -> Option<IpAddr> {
        match peer.address {
            Some(peer) if !self.trusts(peer.ip()) => Some(peer.ip()),
            _ => told,
        }
    }

    /// The verdict on a login; a refusal is held back until its time (login.md O-6).
    async fn decide(&self, call: &Call, asked: Asked) -> Verdict {
        let Asked { login, password, service, service_name, client, session } = asked;
        let due = call.arrived + self.failure_delay;
        let verdict = (self.parts.decide)(Attempt {
            login,
            authzid: Vec::new(),
            password,
            service,
            service_name: String::from(service_name).into(),
            client: self.client(&call.peer, client),
            peer: call.peer.credentials,
            session,
            door: Arc::clone(&self.name),
            arrived: call.arrived,
        })
        .await;
        if matches!(verdict, Verdict::Reject(_)) && !self.failure_delay.is_zero() {
            tokio::time::sleep_until(due.into()).await;
        }
        verdict
    }

    /// How long the caller should let its client wait: nothing where the door itself waited.
    fn retry_refused(&self) -> Option<HeaderValue> {
        self.failure_delay.is_zero().then_some(RETRY_REFUSED)
    }
}

const JSON: &str = "application/json";

/// What is wrong with a request: `{"error": …}`. Never quotes the request.
struct Problem(StatusCode, Cow<'static, str>);

impl Problem {
    fn unreadable(error: &impl ToString) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string().into())
    }

    fn spoken(self) -> Answer {
        let Self(status, error) = self;
        content(status, JSON, serde_json::json!({ "error": error }).to_string())
    }
}

/// The body, if it is neither too long nor too slow. It holds a password, so it is zeroed when dropped. Who sent
/// `Expect: 100-continue` is told to go on at the first read.
async fn read_body(call: &Call, body: Incoming) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let headers = &call.head.headers;
    if !headers.contains_key(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING)
    {
        let error = "the length of the body is missing";
        return Err(Problem(StatusCode::LENGTH_REQUIRED, error.into()));
    }
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

/// `key=value` lines, for callers without a JSON reader. A value goes to the end of its line; what would break the line is
/// left out.
fn lines<'a>(
    status: StatusCode,
    pairs: impl IntoIterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
) -> Answer {
    let mut body = String::new();
    for (key, value) in pairs {
        body.push_str(&key);
        body.push('=');
        body.extend(value.chars().filter(|letter| !letter.is_control()));
        body.push('\n');
    }
    text(status, body)
}

/// Adds a field whose value comes from data: what no field may hold is left out.
fn add_field(answer: &mut Answer, name: &'static str, value: &str) {
    let bytes: Vec<u8> = value.bytes().filter(|byte| *byte >= b' ' && *byte != 0x7f).collect();
    if let Ok(value) = HeaderValue::from_bytes(&bytes) {
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
}

fn retry_after(answer: &mut Answer, seconds: Option<HeaderValue>) {
    if let Some(seconds) = seconds {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
}

fn too_long() -> Problem {
    Problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 64 KiB".into())
}

fn not_allowed(methods: &[Method]) -> Answer {
    let error = "this method is not served here";
    let mut answer = Problem(StatusCode::METHOD_NOT_ALLOWED, error.into()).spoken();
    let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if let Ok(methods) = HeaderValue::from_str(&methods.join(", ")) {
        answer.headers_mut().insert(header::ALLOW, methods);
    }
    answer
}

#[cfg(test)]
mod tests;
