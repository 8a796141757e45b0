//! What the parts of a remembered login cost: `cargo bench --bench micro`.
//!
//! Memory is filled by a local account, so that no directory is needed; what is remembered of it is what is remembered of
//! others. `recall` is the digest, the look into memory, access, journal and metrics together.
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up ends")]

use std::io::Write as _;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use bytes::BytesMut;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use gatepost::auth::journal::Journal;
use gatepost::auth::{Attempt, Authenticator, Parts, Service, Setup, Verdict, password};
use gatepost::config::Config;
use gatepost::config::domain::Domain;
use gatepost::config::node::LogFormat;
use gatepost::config::template::Template;
use gatepost::directory::Directories;
use gatepost::identity::{Address, Case};
use gatepost::lookup::{Found, Lookup, Map};
use gatepost::metrics::DoorName;
use gatepost::metrics::Metrics;
use gatepost::proto::dovecot::auth::{Event, Reply, Session, SocketKind};
use gatepost::proto::postfix::socketmap;
use gatepost::proto::{json_login, saslauthd};
use gatepost::provision::{self, Rules};
use gatepost::secret::Password;
use gatepost::store::Store;
use gatepost::throttle::{Judgement, Outcome, Subject, Throttle};
use gatepost::{clock, config};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

const NAME: &str = "joe@example.org";
const PASSWORD: &str = "correct-horse";
/// As many requests as come in one read.
const REQUESTS: u32 = 32;

#[expect(clippy::disallowed_methods, reason = "cargo's own arguments go to divan")]
fn main() {
    match std::env::var("GATEPOST_KEYS").ok().and_then(|keys| keys.parse().ok()) {
        Some(keys) => flood(keys),
        None => divan::main(),
    }
}

/// `GATEPOST_KEYS=10000000 cargo bench --bench micro`: so many addresses fail at as many logins within ten minutes. What
/// memory that takes, and how long a check takes meanwhile.
#[expect(clippy::print_stdout, reason = "it says what it measured")]
fn flood(keys: u32) {
    let start = clock::now();
    let throttle = Throttle::new(&Config::default().throttle, [7; 32], start);
    let mut took = Vec::new();
    for number in 0..keys {
        let now = start + Duration::from_secs(600).mul_f64(f64::from(number) / f64::from(keys));
        let login = format!("{number}@example.org");
        let subject = Subject {
            client: Some(std::net::Ipv4Addr::from_bits((100 << 24) | number).into()),
            login: Some(&login),
            service: Some(Service::Imap),
            ..Subject::default()
        };
        let begun = clock::now();
        let course = throttle.check(&subject, now).action;
        if number % 16 == 0 {
            took.push(begun.elapsed());
        }
        black_box(course);
        throttle.learn(&subject, Outcome::Failed(Some(7)), now);
    }
    took.sort_unstable();
    let at = |share: usize| took.get(took.len() * share / 1000).copied().unwrap_or_default();
    println!(
        "{keys} keys: {} KiB; a check: p50 {:?}, p99 {:?}, p99.9 {:?}",
        throttle.bytes() / 1024,
        at(500),
        at(990),
        at(999)
    );
}

/// The core with one mailbox that logged in once and was looked up once.
struct Site {
    core: Arc<Authenticator>,
    lookup: Arc<Lookup>,
    _runtime: Runtime,
    _directory: tempfile::TempDir,
}

static SITE: LazyLock<Site> = LazyLock::new(|| {
    let runtime = Runtime::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("gatepost.db").display());
    let (core, lookup) = runtime.block_on(core(url));
    Site { core, lookup, _runtime: runtime, _directory: directory }
});

async fn core(url: String) -> (Arc<Authenticator>, Arc<Lookup>) {
    let mut config = Config::default();
    config.domain.insert("example.org".into(), Domain::default());
    config.template.insert("standard".into(), Template::default());
    let store = Store::open(&config::store::Store { url, max_connections: 2 }).await.unwrap();
    store.mirror_domains(&config.domain).await.unwrap();

    let address = Address::parse(NAME, Case::Fold).unwrap();
    let plan = provision::plan_local(&Rules::new(&config), &address, "standard").unwrap();
    provision::apply(&store, &plan).await.unwrap();
    let hash = password::hash(&Password::new(PASSWORD), [7; 16]).unwrap();
    store.set_password(&address, &hash).await.unwrap();

    let metrics = Metrics::new();
    let directories = Directories::build(&config.directory, None, &metrics).unwrap();
    let journal = Journal::start(LogFormat::Text, Box::new(std::io::sink()), metrics.clone());
    let parts = Parts {
        store: store.clone(),
        journal: Arc::new(journal.unwrap()),
        metrics,
        throttle: Arc::new(Throttle::new(&config.throttle, [7; 32], clock::now())),
        tracker: TaskTracker::new(),
        memory_capacity: config.memory.capacity.0,
        memory_key: [7; 32],
    };
    let setup = Setup::new(&config, Arc::new(directories), 1);
    let core = Arc::new(Authenticator::new(setup, parts));
    assert!(matches!(core.authenticate(attempt(PASSWORD)).await, Verdict::Accept(_)));
    assert!(matches!(core.authenticate(attempt("wrong")).await, Verdict::Reject(_)));

    let lookup = Lookup::new(store, &config);
    assert!(matches!(lookup.find(Map::Mailbox, NAME.as_bytes()).await, Ok(Found::Value(_))));
    (core, lookup)
}

fn attempt(password: &str) -> Attempt {
    Attempt {
        login: NAME.into(),
        authzid: Vec::new(),
        password: Password::new(password),
        service: Some(Service::Imap),
        service_name: "imap".into(),
        client: Some([192, 0, 2, 77].into()),
        peer: None,
        session: Some("cT9sKl01".into()),
        door: DoorName::new("bench".into()),
        arrived: clock::now(),
    }
}

/// Memory, from the attempt to the verdict, its line in the journal included.
#[divan::bench]
fn recall_accepts(bencher: Bencher<'_, '_>) {
    recall(bencher, PASSWORD);
}

/// The same with a password that is known to be wrong. (The journal drops no refusal: it has to write them all.)
#[divan::bench]
fn recall_refuses(bencher: Bencher<'_, '_>) {
    recall(bencher, "wrong");
}

fn recall(bencher: Bencher<'_, '_>, password: &str) {
    let (core, attempt) = (&SITE.core, attempt(password));
    bencher.bench_local(|| core.recall(black_box(&attempt), clock::now()).unwrap());
}

/// What the guessing shield adds to a remembered login: looked up before, counted after. Somebody has guessed a little
/// (`quiet`), or so much that a rule acts and everybody is looked up (`attacked`).
#[divan::bench(args = ["quiet", "attacked"])]
fn shield_accept(bencher: Bencher<'_, '_>, what: &str) {
    let (throttle, now) = shield(what);
    let subject = subject(NAME, 77);
    bencher.bench_local(|| {
        let judgement = throttle.check(black_box(&subject), now);
        throttle.learn(&subject, Outcome::Accepted, now);
        judgement
    });
}

/// A wrong password, each another.
#[divan::bench]
fn shield_failure(bencher: Bencher<'_, '_>) {
    let (throttle, now) = shield("quiet");
    let subject = subject(NAME, 77);
    let mut guess = 0_u16;
    bencher.bench_local(|| {
        guess = guess.wrapping_add(1);
        throttle.learn(black_box(&subject), Outcome::Failed(Some(guess)), now);
    });
}

/// Somebody who is refused.
#[divan::bench]
fn shield_deny(bencher: Bencher<'_, '_>) {
    let (throttle, now) = shield("attacked");
    let subject = subject("victim@example.org", 9);
    bencher.bench_local(|| -> Judgement { throttle.check(black_box(&subject), now) });
}

fn shield(what: &str) -> (Throttle, std::time::Instant) {
    let now = clock::now();
    let throttle = Throttle::new(&Config::default().throttle, [7; 32], now);
    let guesses = if what == "quiet" { 3 } else { 100 };
    for guess in 0..guesses {
        throttle.learn(&subject("victim@example.org", 9), Outcome::Failed(Some(guess)), now);
    }
    throttle.learn(&subject(NAME, 77), Outcome::Accepted, now);
    (throttle, now)
}

fn subject(login: &str, last: u8) -> Subject<'_> {
    Subject {
        client: Some([192, 0, last, 77].into()),
        login: Some(login),
        service: Some(Service::Imap),
        session: Some("cT9sKl01"),
        ja3: None,
    }
}

/// A socketmap look-up, from the key to the value.
#[divan::bench]
fn look_up() -> Option<Found> {
    SITE.lookup.recall(Map::Mailbox, black_box(NAME.as_bytes()))
}

/// Dovecot's auth protocol, 32 requests of one read: lines in, answers out.
#[divan::bench]
fn dovecot_requests(bencher: Bencher<'_, '_>) {
    let resp = base64::engine::general_purpose::STANDARD.encode(format!("\0{NAME}\0{PASSWORD}"));
    let mut lines = Vec::new();
    for id in 1..=REQUESTS {
        writeln!(
            lines,
            "AUTH\t{id}\tPLAIN\tservice=imap\tsecured\tsession=cT9sKl{id:08x}\tlip=192.0.2.1\t\
             rip=192.0.2.77\tlport=143\trport=50100\tresp={resp}"
        )
        .unwrap();
    }
    let (mut session, mut output) = (Session::new(SocketKind::Client), Vec::new());
    let now = clock::now();
    let mut input = BytesMut::from(&b"VERSION\t1\t2\nCPID\t1\n"[..]);
    while session.next_event(&mut input, &mut output, now).unwrap().is_some() {}
    bencher.counter(ItemsCount::new(REQUESTS)).bench_local(|| {
        input.extend_from_slice(black_box(&lines));
        output.clear();
        while let Some(event) = session.next_event(&mut input, &mut output, now).unwrap() {
            let Event::Request(request) = event else { continue };
            let reply = Reply::Ok { user: NAME, fields: &[] };
            session.answer(request.id, &reply, &mut output);
        }
        output.len()
    });
}

/// A socketmap request in, its reply out.
#[divan::bench]
fn socketmap_request(bencher: Bencher<'_, '_>) {
    let (mut input, mut output) = (BytesMut::new(), Vec::new());
    bencher.bench_local(|| {
        input.extend_from_slice(black_box(b"23:mailbox joe@example.org,"));
        output.clear();
        let request = socketmap::next_request(&mut input).unwrap();
        socketmap::Reply::Found(NAME).encode(&mut output);
        request
    });
}

#[divan::bench]
fn saslauthd_request() -> Option<saslauthd::Request> {
    let request = b"\0\x0fjoe@example.org\0\x0dcorrect-horse\0\x04imap\0\0";
    saslauthd::parse(black_box(request)).unwrap()
}

#[divan::bench]
fn json_request() -> json_login::LoginRequest {
    let body = br#"{"username":"joe@example.org","password":"correct-horse","service":"imap"}"#;
    json_login::parse(black_box(body)).unwrap()
}
