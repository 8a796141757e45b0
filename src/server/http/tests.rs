//! The door by itself, over a pipe: it decides as told, and remembers what it was asked.

mod auth_policy;
mod forward_auth;
mod lookup;
mod mailcow;
mod nauthilus;
mod nginx;

use std::sync::Mutex;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::auth::{Accepted, Later, Reason, Refused, Source};
use crate::config::units::Span;
use crate::lookup::{Found, Map};
use crate::store::{Mailbox, Resident};
use crate::throttle::Throttle;

const FRY: &str =
    r#"{"username":"fry","password":"secret","service":"imap","client_ip":"192.0.2.9"}"#;

/// A door that decides as told, and remembers what it was asked.
struct Fixture {
    listen: Listen,
    verdict: Verdict,
    health: Health,
    tables: Tables,
    throttle: Arc<Throttle>,
    asked: Arc<Mutex<Vec<Attempt>>>,
    metrics: Metrics,
}

/// What look-ups find.
#[derive(Clone)]
struct Tables {
    /// Whatever is asked for in a table; asked for in the other tables, there is nothing.
    found: Vec<(Map, Found)>,
    residence: Residence,
    users: Option<Vec<&'static str>>,
}

impl Tables {
    fn new() -> Self {
        Self { found: Vec::new(), residence: Residence::Nowhere, users: None }
    }

    fn lookups(&self) -> Lookups {
        let (one, other, another) = (self.clone(), self.clone(), self.clone());
        Lookups {
            find: Arc::new(move |map, _| {
                let found = one.found.iter().find(|(of, _)| *of == map);
                let found = found.map_or(Found::Nothing, |(_, found)| found.clone());
                Box::pin(std::future::ready(found))
            }),
            residence: Arc::new(move |_, _| Box::pin(std::future::ready(other.residence.clone()))),
            users: Arc::new(move |after, limit| {
                let after = after.unwrap_or_default();
                let page = another.users.as_ref().map(|users| {
                    let later = users.iter().filter(|user| ***user > *after);
                    later.take(limit as usize).map(ToString::to_string).collect()
                });
                Box::pin(std::future::ready(page))
            }),
        }
    }
}

impl Fixture {
    fn serving(what: Serve) -> Self {
        let mut new = Self::new();
        new.listen.serve = vec![what];
        new
    }

    fn new() -> Self {
        let serve = vec![Serve::Login, Serve::Health, Serve::Metrics];
        let listen =
            Listen { protocol: crate::config::listen::Protocol::Http, serve, ..Listen::default() };
        Self {
            listen,
            verdict: accepted(),
            health: Health::Ready,
            tables: Tables::new(),
            throttle: Arc::new(Throttle::new(&Default::default(), [7; 32], clock::now())),
            asked: Arc::default(),
            metrics: Metrics::new(),
        }
    }

    fn door(&self) -> Arc<HttpDoor> {
        let (verdict, health) = (self.verdict.clone(), self.health.clone());
        let asked = Arc::clone(&self.asked);
        let parts = Parts {
            decide: Arc::new(move |attempt| {
                asked.lock().unwrap().push(attempt);
                Box::pin(std::future::ready(verdict.clone()))
            }),
            health: Arc::new(move || Box::pin(std::future::ready(health.clone()))),
            forget: Arc::new(|name| {
                Box::pin(std::future::ready(if name.is_some() { 1 } else { 7 }))
            }),
            lookups: self.tables.lookups(),
            shield: auth_policy::shield(&self.throttle),
            metrics: self.metrics.clone(),
        };
        Arc::new(HttpDoor::new("http".into(), &self.listen, parts))
    }

    fn connect(&self, peer: Option<&str>) -> tokio::io::DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1024 * 1024);
        let address = peer.map(|peer| std::net::SocketAddr::new(peer.parse().unwrap(), 4711));
        let peer = Peer { address, ..Peer::default() };
        tokio::spawn(serve(ours, peer, self.door(), CancellationToken::new()));
        theirs
    }

    /// One request on a connection of its own; everything that comes back.
    async fn exchange_from(&self, peer: Option<&str>, request: &[u8]) -> Heard {
        let mut stream = self.connect(peer);
        stream.write_all(request).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        Heard::parse(&String::from_utf8(bytes).unwrap())
    }

    /// A GET, or another method without a body, with these fields.
    async fn ask(&self, method_and_path: &str, fields: &[(&str, &[u8])]) -> Heard {
        let mut request =
            format!("{method_and_path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n").into_bytes();
        for (name, value) in fields {
            request.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        request.extend_from_slice(b"\r\n");
        self.exchange(&request).await
    }

    /// A POST of these bytes.
    async fn send(&self, path: &str, body: &[u8]) -> Heard {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.exchange(&[head.as_bytes(), body].concat()).await
    }

    /// The one attempt that was made of a request.
    fn attempt(&self) -> Attempt {
        let asked = self.asked.lock().unwrap();
        let [attempt] = asked.as_slice() else { panic!("{asked:?}") };
        attempt.clone()
    }

    async fn exchange(&self, request: &[u8]) -> Heard {
        self.exchange_from(Some("127.0.0.1"), request).await
    }

    async fn get(&self, path: &str) -> Heard {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        self.exchange(request.as_bytes()).await
    }

    async fn login(&self, body: &str) -> Heard {
        self.exchange(&post(body, "")).await
    }
}

struct Heard {
    status: u16,
    head: String,
    body: String,
}

impl Heard {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// The value of a field; "" if there is none.
    fn field(&self, name: &str) -> &str {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{:?}", self.body))
    }
}

fn post(body: &str, headers: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST /v1/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

fn accepted() -> Verdict {
    let mut mailbox = Mailbox::sample("fry@planetexpress.com");
    mailbox.settings.display_name = "Philip J. \"Fry\"".into();
    mailbox.settings.quota = 1 << 30;
    mailbox.place.home = "/srv/mail/fry".into();
    Verdict::Accept(Accepted { mailbox: Arc::new(mailbox), source: Source::Memory, changes: None })
}

fn later() -> Verdict {
    Verdict::Unavailable(Later::new(Reason::DirectoryUnavailable))
}

fn resident() -> Arc<Resident> {
    let mailbox = Mailbox::sample("fry@planetexpress.com");
    Arc::new(Resident {
        id: mailbox.id,
        address: mailbox.address,
        settings: mailbox.settings,
        disabled_by_admin: false,
        place: mailbox.place,
        provider: mailbox.provider,
        link: mailbox.link,
    })
}

fn refused() -> Verdict {
    Verdict::Reject(Refused::new(Reason::WrongPassword, Source::Directory))
}

#[tokio::test]
async fn forgetting_says_how_much_and_names_what_it_expects() {
    let forget = |body: &str| {
        let request = format!(
            "POST /v1/memory/forget HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        request.into_bytes()
    };
    for (body, status, said) in [
        (r#"{"name":"fry"}"#, 200, r#"{"forgotten":1}"#),
        (r#"{"all":true}"#, 200, r#"{"forgotten":7}"#),
        (r#"{"all":false}"#, 200, r#"{"forgotten":0}"#),
        ("{}", 400, "expected"),
    ] {
        let heard = Fixture::new().exchange(&forget(body)).await;
        assert_eq!(heard.status, status, "{body}");
        assert!(heard.body.contains(said), "{}", heard.body);
    }
}

#[tokio::test]
async fn an_accept_is_200_with_the_facts_of_the_mailbox() {
    let heard = Fixture::new().login(FRY).await;

    assert_eq!(heard.status, 200);
    assert!(heard.head.contains("content-type: application/json"));
    assert_eq!(
        heard.json(),
        serde_json::json!({
            "verdict": "accept", "user": "fry@planetexpress.com", "source": "memory",
            "mailbox": {
                "address": "fry@planetexpress.com", "display_name": "Philip J. \"Fry\"",
                "quota": 1 << 30, "protocols": ["imap", "smtp"], "template": "staff",
                "home": "/srv/mail/fry", "uid": 5000, "gid": 5001, "active": true,
            },
        })
    );
}

#[tokio::test]
async fn a_refusal_is_403_and_says_how_long_to_wait() {
    let fixture = Fixture { verdict: refused(), ..Fixture::new() };

    let heard = fixture.login(FRY).await;

    assert_eq!(heard.status, 403);
    assert!(heard.head.contains("retry-after: 2"), "{}", heard.head);
    assert_eq!(
        heard.json(),
        serde_json::json!({ "verdict": "refuse", "reason": "wrong-password" })
    );
}

#[tokio::test]
async fn who_asks_for_text_gets_lines_for_dovecot() {
    let proven = Refused { proven: true, ..Refused::new(Reason::Inactive, Source::Directory) };
    for (verdict, status, body) in [
        (
            accepted(),
            200,
            "user=fry@planetexpress.com\nuserdb_uid=5000\nuserdb_gid=5001\nuserdb_home=/srv/mail/fry\n\
             userdb_quota_rule=*:bytes=1073741824\nuserdb_quota_storage_size=1073741824B\n",
        ),
        (refused(), 403, "reason=wrong-password\n"),
        (
            Verdict::Reject(proven),
            403,
            "reason=inactive\ncode=user_disabled\ntext=This mailbox is disabled\n",
        ),
        (later(), 503, "reason=directory-unavailable\n"),
    ] {
        let fixture = Fixture { verdict, ..Fixture::new() };

        let heard = fixture.exchange(&post(FRY, "Accept: text/plain\r\n")).await;

        assert_eq!((heard.status, &*heard.body), (status, body));
        assert!(heard.field("content-type").starts_with("text/plain"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_door_with_a_failure_delay_waits_itself() {
    let mut fixture = Fixture { verdict: refused(), ..Fixture::new() };
    fixture.listen.failure_delay = Some(Span::seconds(3));
    let begun = tokio::time::Instant::now();

    let heard = fixture.login(FRY).await;

    assert_eq!(heard.status, 403);
    assert!(!heard.head.contains("retry-after"), "{}", heard.head);
    assert_eq!(begun.elapsed().as_secs(), 3);
}

#[tokio::test]
async fn later_is_503() {
    let fixture = Fixture { verdict: later(), ..Fixture::new() };

    let heard = fixture.login(FRY).await;

    assert_eq!(heard.status, 503);
    assert!(heard.head.contains("retry-after: 1"), "{}", heard.head);
    assert_eq!(
        heard.json(),
        serde_json::json!({ "verdict": "later", "reason": "directory-unavailable" })
    );
}

#[tokio::test]
async fn the_attempt_is_what_the_body_says() {
    let fixture = Fixture::new();
    let body =
        br#"{"username":"fry","password":"s\u00e9\u0001cret","session":"abc","service":"IMAP"}"#;

    fixture.exchange(&post(std::str::from_utf8(body).unwrap(), "")).await;

    let asked = fixture.asked.lock().unwrap();
    let [attempt] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(attempt.login, b"fry");
    assert_eq!(attempt.password.as_bytes(), "s\u{e9}\u{1}cret".as_bytes());
    assert_eq!(attempt.service, Some(Service::Imap));
    assert_eq!(&*attempt.service_name, "IMAP");
    assert_eq!(attempt.session.as_deref(), Some("abc"));
    assert_eq!(&**attempt.door, "http");
}

#[tokio::test]
async fn the_clients_address_is_believed_from_trusted_peers_only() {
    let told = Some("192.0.2.9");
    let silent = r#"{"username":"fry","password":"secret","service":"imap"}"#;
    for (peer, body, expected) in [
        (None, FRY, told),
        (Some("127.0.0.1"), FRY, told),
        (Some("127.0.0.1"), silent, None),
        (Some("198.51.100.7"), FRY, Some("198.51.100.7")),
        (Some("198.51.100.7"), silent, Some("198.51.100.7")),
    ] {
        let fixture = Fixture::new();

        fixture.exchange_from(peer, &post(body, "")).await;

        let asked = fixture.asked.lock().unwrap();
        let expected = expected.map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(asked[0].client, expected, "{peer:?} {body}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_400_and_names_the_member() {
    let fixture = Fixture::new();
    for (body, named) in [
        ("{\"username\":\"fry\"}", "password"),
        ("{\"password\":\"x\",\"username\":7}", "username"),
        ("{\"username\":\"fry\",\"password\":\"hunter2\",\"client_ip\":\"here\"}", "client_ip"),
        ("{\"username\":\"fry\",\"password\":\"hunter2\"", "JSON"),
        ("", "JSON"),
    ] {
        let heard = fixture.login(body).await;

        assert_eq!(heard.status, 400, "{body}");
        let error = heard.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(named), "{body}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(fixture.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_is_bounded() {
    let fixture = Fixture::new();
    let long = "x".repeat(MAX_BODY_BYTES + 1);
    let announced = post(&long, "");
    let chunked = format!(
        "POST /v1/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    let unsaid = b"POST /v1/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    assert_eq!(fixture.exchange(&announced).await.status, 413);
    assert_eq!(fixture.exchange(chunked.as_bytes()).await.status, 413);
    assert_eq!(fixture.exchange(unsaid).await.status, 411);
    assert!(fixture.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_in_chunks_is_read() {
    let fixture = Fixture::new();
    let (first, rest) = FRY.split_at(10);
    let request = format!(
        "POST /v1/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n",
        first.len(),
        rest.len()
    );

    assert_eq!(fixture.exchange(request.as_bytes()).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_or_a_head_that_does_not_come_ends_the_wait() {
    let fixture = Fixture::new();
    let begun = tokio::time::Instant::now();

    let heard = fixture
        .exchange(b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{")
        .await;
    assert_eq!(heard.status, 408);

    let mut stream = fixture.connect(None);
    stream.write_all(b"POST /v1/login HTTP/1.1\r\nHost:").await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert!(begun.elapsed() <= 2 * READ_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test]
async fn a_caller_that_expects_100_gets_it_before_the_body() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect(None);
    let request = post(FRY, "Expect: 100-continue\r\n");
    let head = request.len() - FRY.len();
    stream.write_all(&request[..head]).await.unwrap();
    let mut hundred = [0; 25];
    stream.read_exact(&mut hundred).await.unwrap();
    assert_eq!(&hundred, b"HTTP/1.1 100 Continue\r\n\r\n");

    stream.write_all(&request[head..]).await.unwrap();

    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(Heard::parse(&String::from_utf8(bytes).unwrap()).status, 200);
}

#[tokio::test]
async fn a_token_is_wanted_for_all_but_health() {
    let mut fixture = Fixture::new();
    fixture.listen.token = Secret::new("sesame");
    let basic = BASE64_STANDARD.encode("any:sesame");
    let wrong = BASE64_STANDARD.encode("sesame:any");
    for (headers, status) in [
        (String::new(), 401),
        ("Authorization: Bearer sesam\r\n".into(), 401),
        ("Authorization: Basic !!!\r\n".into(), 401),
        (format!("Authorization: Basic {wrong}\r\n"), 401),
        ("Authorization: Bearer sesame\r\n".into(), 200),
        ("authorization: bearer   sesame\r\n".into(), 200),
        (format!("Authorization: Basic {basic}\r\n"), 200),
        ("X-API-Key: sesame\r\n".into(), 200),
    ] {
        let heard = fixture.exchange(&post(FRY, &headers)).await;

        assert_eq!(heard.status, status, "{headers}");
        assert_eq!(heard.head.contains("www-authenticate"), status == 401);
    }
    assert_eq!(fixture.get("/metrics").await.status, 401);
    assert_eq!(fixture.get("/livez").await.status, 200);
    assert_eq!(fixture.get("/readyz").await.status, 200);
}

/// Else a login could meet a connection that is just being closed.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_later_than_the_lua_script_drops_it() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect(None);
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut heard = vec![0; 12];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, b"HTTP/1.1 200");
    let start = tokio::time::Instant::now();

    stream.read_to_end(&mut heard).await.unwrap();

    assert_eq!(start.elapsed().as_secs(), 30);
    let script = include_str!("../../../contrib/dovecot-lua/gatepost.lua");
    assert!(script.contains("max_idle_time = \"20s\","));
    assert!(script.contains("max_idle_time_msecs = 20000,"));
}

#[tokio::test]
async fn readiness_says_who_cannot_answer() {
    let trouble = vec!["directory corp: no server answers".to_owned()];
    for (health, status, body) in [
        (Health::Ready, 200, "ready\n"),
        (Health::Degraded(trouble.clone()), 200, "degraded: directory corp: no server answers\n"),
        (Health::Down(trouble), 503, "down: directory corp: no server answers\n"),
    ] {
        let fixture = Fixture { health, ..Fixture::new() };

        let heard = fixture.get("/readyz").await;

        assert_eq!((heard.status, &*heard.body), (status, body));
    }
}

#[tokio::test]
async fn metrics_are_text() {
    let heard = Fixture::new().get("/metrics").await;

    assert_eq!(heard.status, 200);
    assert!(heard.head.contains("content-type: application/openmetrics-text"), "{}", heard.head);
    assert!(heard.body.contains("gatepost_build_info{version="), "{}", heard.body);
}

#[tokio::test]
async fn only_what_serve_names_is_there() {
    let mut fixture = Fixture::new();
    fixture.listen.serve = vec![Serve::Health];

    assert_eq!(fixture.get("/livez").await.status, 200);
    assert_eq!(fixture.get("/metrics").await.status, 404);
    assert_eq!(fixture.login(FRY).await.status, 404);
    assert_eq!(fixture.get("/").await.status, 404);
}

#[tokio::test]
async fn another_method_is_405() {
    let fixture = Fixture::new();

    let heard = fixture.get("/v1/login").await;

    assert_eq!(heard.status, 405);
    assert!(heard.head.contains("allow: POST"), "{}", heard.head);
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect(None);
    let request = String::from_utf8(post(FRY, "")).unwrap().replace("Connection: close\r\n", "");
    stream.write_all(request.repeat(2).as_bytes()).await.unwrap();
    stream.write_all(&post(FRY, "")).await.unwrap();

    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();

    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
}

#[tokio::test]
async fn what_is_no_http_is_a_protocol_error() {
    let fixture = Fixture::new();

    let heard = fixture.exchange(b"VERSION\t1\t2\r\n\r\n").await;

    assert_eq!(heard.status, 400);
    let counted = "gatepost_protocol_errors_total{door=\"http\"} 1";
    assert!(fixture.metrics.encode().contains(counted));
}

#[tokio::test]
async fn a_shutdown_lets_the_request_under_way_end() {
    let fixture = Fixture::new();
    let (ours, mut theirs) = tokio::io::duplex(4096);
    let shutdown = CancellationToken::new();
    let door = fixture.door();
    let served = tokio::spawn(serve(ours, Peer::default(), door, shutdown.clone()));
    let request = String::from_utf8(post(FRY, "")).unwrap().replace("Connection: close\r\n", "");
    let (head, rest) = request.split_at(request.len() - 5);
    theirs.write_all(head.as_bytes()).await.unwrap();
    tokio::task::yield_now().await;

    shutdown.cancel();
    tokio::task::yield_now().await;
    theirs.write_all(rest.as_bytes()).await.unwrap();

    let mut bytes = Vec::new();
    theirs.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(Heard::parse(&String::from_utf8(bytes).unwrap()).status, 200);
    served.await.unwrap();
}
