//! Nodes with everything but doors, in this process, and a real server between them.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use redis::{Cmd, Value, cmd};

use super::link::Link;
use super::*;
use crate::clock;
use crate::config::throttle::{Action, Count, Per, Rule, Shared as Settings};
use crate::config::units::{RateLimit, Span};
use crate::secret::{Password, Secret};
use crate::server::lists::Kept;
use crate::service::Service;
use crate::store::Store;
use crate::throttle::{Course, Entry, List, Outcome, Sending, Subject, Whom};

/// Longer than any of this takes, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

const LOGIN: &str = "fry@planetexpress.com";

/// A Valkey or Redis that keeps nothing; killed when dropped.
struct Shared {
    child: Child,
    port: u16,
}

impl Shared {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let new = Self { child: Self::run(port), port };
        new.wait_until_it_listens();
        new
    }

    fn run(port: u16) -> Child {
        let spawn = |name: &str| {
            let mut command = Command::new(name);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
            command.args(["--appendonly", "no", "--dir", "/tmp"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        let child = spawn("redis-server").or_else(|_| spawn("valkey-server"));
        child.expect("redis-server is missing: apt-get install redis-server")
    }

    fn wait_until_it_listens(&self) {
        let listens = || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        let listens = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            listens()
        });
        assert!(listens, "redis-server does not listen");
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = Self::run(self.port);
        self.wait_until_it_listens();
    }

    fn settings(&self) -> Settings {
        let url = Secret::new(format!("redis://127.0.0.1:{}/1", self.port));
        Settings { url, ..Settings::default() }
    }

    async fn ask(&self, command: &Cmd) -> Value {
        let server = Server::new(&self.settings()).unwrap();
        Link::open(&server).await.unwrap().ask(command).await.unwrap()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct Node {
    throttle: Arc<Throttle>,
    sending: Arc<SendingLimits>,
    lists: Arc<ListBook>,
    outbox: Arc<Outbox>,
    metrics: Metrics,
    ending: CancellationToken,
    tracker: TaskTracker,
    _directory: tempfile::TempDir,
}

impl Node {
    /// Whoever has three wrong passwords in ten minutes from a net is refused; three messages an hour are sent.
    async fn start(shared: &Shared) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config { shared: shared.settings(), ..Config::default() };
        config.store.url = format!("sqlite://{}", directory.path().join("gatepost.db").display());
        let rule = Rule {
            count: Count::DistinctWrongPasswords,
            per: Per::LoginNet,
            limit: 3,
            action: Action::Deny,
            ..Rule::default()
        };
        config.throttle.rule = [("test".to_owned(), rule)].into();
        config.template.insert(
            "limited".into(),
            crate::config::template::Template {
                send_limit: RateLimit("3/h".parse().ok()),
                ..Default::default()
            },
        );
        let metrics = Metrics::new();
        let mut guess_key = [0; 32];
        getrandom::fill(&mut guess_key).unwrap();
        let throttle = Arc::new(Throttle::new(&config.throttle, guess_key, clock::now()));
        let sending = Arc::new(SendingLimits::new(clock::now()));
        sending.configure(sending_spans(&config));
        let store = Store::open(&config.store).await.unwrap();
        let outbox = Arc::new(Outbox::new(metrics.clone()));
        let lists = ListBook::load(Arc::clone(&throttle), store, Some(Arc::clone(&outbox)));
        let lists = Arc::new(lists.await.unwrap());
        let counts = Counts {
            throttle: Arc::clone(&throttle),
            sending: Arc::clone(&sending),
            lists: Arc::clone(&lists),
        };
        let exchange = Exchange::new(&config, Some(&outbox), counts, &metrics, guess_key);
        let (tracker, ending) = (TaskTracker::new(), CancellationToken::new());
        exchange.unwrap().unwrap().run(&tracker, &ending);
        Self { throttle, sending, lists, outbox, metrics, ending, tracker, _directory: directory }
    }

    async fn stop(self) {
        self.ending.cancel();
        self.tracker.close();
        tokio::time::timeout(PATIENCE, self.tracker.wait()).await.unwrap();
    }

    fn is_up(&self) -> bool {
        self.metrics.encode().contains("gatepost_shared_up 1\n")
    }

    fn guess(&self, password: &str) {
        let guess = self.throttle.guess(LOGIN, &Password::new(password));
        self.throttle.learn(&subject(), Outcome::Failed(Some(guess)), clock::now());
    }

    fn accept(&self) {
        self.throttle.learn(&subject(), Outcome::Accepted, clock::now());
    }

    fn counted(&self) -> u32 {
        self.throttle.show(&subject(), clock::now())[0].count
    }

    fn denies(&self, address: &str) -> bool {
        let client = address.parse().ok();
        let subject = Subject { client, ..Subject::default() };
        self.throttle.check(&subject, clock::now()).action == Course::Deny
    }

    async fn add(&self, address: &str) {
        let kept = self.lists.add(&[deny(address)]).await.unwrap();
        assert!(matches!(kept, Kept::Saved), "{kept:?}");
    }

    async fn remove(&self, address: &str) {
        assert!(self.lists.remove(List::Deny, &whom(address)).await.is_some());
    }
}

fn subject() -> Subject<'static> {
    Subject {
        client: Some(IpAddr::from([192, 0, 2, 9])),
        login: Some(LOGIN),
        service: Some(Service::Imap),
        ..Subject::default()
    }
}

fn whom(address: &str) -> Whom {
    Whom::parse("ip", address).unwrap()
}

fn in_an_hour() -> SystemTime {
    clock::wall() + Duration::from_secs(3600)
}

fn deny(address: &str) -> Entry {
    Entry { list: List::Deny, whom: whom(address), until: in_an_hour(), reason: "test".into() }
}

#[track_caller]
fn until(what: &'static str, condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let begun = clock::now();
        while !condition() {
            assert!(begun.elapsed() < PATIENCE, "{place}: waited in vain: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn two(shared: &Shared) -> (Node, Node) {
    let (a, b) = (Node::start(shared).await, Node::start(shared).await);
    until("both are up", || a.is_up() && b.is_up()).await;
    (a, b)
}

#[tokio::test]
async fn what_one_node_counts_all_count() {
    let shared = Shared::start();
    let (a, b) = two(&shared).await;

    a.guess("one");
    b.guess("two");
    // The same password at both is one: they hash with the key they agreed on.
    a.guess("two");
    until("both count both", || a.counted() == 2 && b.counted() == 2).await;
    let begun = clock::now();
    a.guess("three");
    until("both stop it", || {
        let judge = |node: &Node| node.throttle.check(&subject(), clock::now()).action;
        judge(&a) == Course::Deny && judge(&b) == Course::Deny
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

    // Whoever got in at one is known at the other, and what they typed wrong is forgotten at both.
    b.accept();
    until("both forget", || a.counted() == 0 && b.counted() == 0).await;
    assert!(a.throttle.standing(&subject(), clock::now()).0);
    a.guess("one");
    until("both count", || b.counted() == 1).await;
    assert!(b.lists.reset(&subject(), clock::now()));
    until("both let them begin anew", || a.counted() == 0).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_node_that_begins_has_the_counts_of_before() {
    let shared = Shared::start();
    let (a, b) = two(&shared).await;
    for password in ["one", "two", "three"] {
        a.guess(password);
    }
    b.accept();
    until("the good login reached both", || a.counted() == 0).await;
    b.guess("four");
    let send =
        |message: &[u8]| a.sending.send(LOGIN, message, "3/h".parse().unwrap(), clock::now());
    assert_eq!([send(b"1"), send(b"2")], [Sending::Counted; 2]);
    a.stop().await;
    b.stop().await;

    let c = Node::start(&shared).await;

    let hour = Duration::from_secs(3600);
    until("it counts what it hears", || {
        c.counted() == 1 && c.sending.used(LOGIN, hour, clock::now()) == 2
    })
    .await;
    assert!(c.throttle.standing(&subject(), clock::now()).0, "it knows who got in");
    // More would come late, if there was more.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(c.counted(), 1);
    c.stop().await;
}

#[tokio::test]
async fn an_entry_of_a_list_holds_at_every_node_until_it_is_taken_out() {
    let shared = Shared::start();
    let (a, b) = two(&shared).await;
    a.add("192.0.2.1").await;
    until("it holds at both", || a.denies("192.0.2.1") && b.denies("192.0.2.1")).await;
    assert_eq!(b.throttle.entries(List::Deny)[0].reason, "test");

    b.remove("192.0.2.1").await;
    until("it is gone from both", || !a.denies("192.0.2.1") && !b.denies("192.0.2.1")).await;
    a.add("192.0.2.1").await;
    until("it is back", || b.denies("192.0.2.1")).await;
    a.add("192.0.2.2").await;

    let c = Node::start(&shared).await;
    until("a new node has both", || c.denies("192.0.2.1") && c.denies("192.0.2.2")).await;
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test]
async fn while_the_server_is_away_each_node_goes_on_alone_and_afterwards_they_agree() {
    let mut shared = Shared::start();
    let (a, b) = two(&shared).await;
    a.add("192.0.2.1").await;
    a.add("192.0.2.2").await;
    until("they hold at both", || b.denies("192.0.2.1") && b.denies("192.0.2.2")).await;
    a.guess("one");
    until("both count", || b.counted() == 1).await;

    shared.kill();
    until("both notice", || !a.is_up() && !b.is_up()).await;
    a.guess("two");
    b.guess("three");
    a.add("192.0.2.3").await;
    b.remove("192.0.2.1").await;
    b.add("192.0.2.4").await;
    assert_eq!((a.counted(), b.counted()), (2, 2));
    // It comes back empty.
    shared.start_again();

    until("both are back", || a.is_up() && b.is_up()).await;
    until("both count everything", || a.counted() == 3 && b.counted() == 3).await;
    let holds = |node: &Node| [1, 2, 3, 4].map(|it| node.denies(&format!("192.0.2.{it}")));
    let expected = [false, true, true, true];
    until("both have all entries", || holds(&a) == expected && holds(&b) == expected).await;
    // The key, too, is the one from before.
    a.guess("three");
    let c = Node::start(&shared).await;
    until("a third one has all entries", || holds(&c) == expected && c.is_up()).await;
    let guess = |node: &Node| node.throttle.guess(LOGIN, &Password::new("x"));
    assert_eq!((guess(&a), guess(&b)), (guess(&c), guess(&c)));
    assert_eq!((a.counted(), b.counted()), (3, 3));
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test]
async fn what_others_write_there_does_no_harm() {
    let shared = Shared::start();
    let lists = "gatepost:lists";
    for (field, value) in [
        ("nonsense", "nonsense"),
        ("deny ip 192.0.2.1", "nonsense"),
        ("deny ip 192.0.2.2", r#"{"until":99999999999999999,"at":9999999999999999}"#),
    ] {
        shared.ask(cmd("HSET").arg(lists).arg(field).arg(value)).await;
    }
    let (a, b) = two(&shared).await;
    for stream in Stream::ALL {
        for fields in [
            &["x", "y"][..],
            &["n", "evil", "s", "1", "e", "\u{0}"],
            &["n", "evil", "s", "2", "e", r#"[{"k":"failed","c":"nowhere"}]"#],
            &["n", "evil", "s", "-3", "e", "[]"],
            &["n", "evil", "s", "4", "e", r#"[{"k":"listed","l":"deny ip 192.0.2.1"}]"#],
        ] {
            let mut command = cmd("XADD");
            command.arg(format!("gatepost:{}", stream.name())).arg("*");
            shared.ask(command.arg(fields)).await;
        }
    }

    a.guess("one");
    a.add("192.0.2.3").await;
    a.add("192.0.2.2").await;

    until("both go on", || b.counted() == 1 && b.denies("192.0.2.3") && b.denies("192.0.2.2"))
        .await;
    assert!(!b.denies("192.0.2.1") && a.is_up() && b.is_up());
    let text = b.metrics.encode();
    assert!(text.contains("gatepost_shared_received_total{result=\"unreadable\"} 8"), "{text}");
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn entries_that_were_over_long_ago_are_taken_away_from_the_server() {
    let shared = Shared::start();
    let now = crate::server::lists::millis(clock::wall());
    for (address, ended) in [("192.0.2.1", now - 90_000_000), ("192.0.2.2", now - 1000)] {
        let value = format!(r#"{{"until":{ended},"at":1}}"#);
        let field = format!("deny ip {address}");
        shared.ask(cmd("HSET").arg("gatepost:lists").arg(field).arg(value)).await;
    }

    let node = Node::start(&shared).await;
    until("it is up", || node.is_up()).await;

    let left = shared.ask(cmd("HKEYS").arg("gatepost:lists")).await;
    assert_eq!(left, Value::Array(vec![Value::BulkString(b"deny ip 192.0.2.2".into())]));
    node.stop().await;
}

#[tokio::test]
async fn many_entries_reach_the_others_and_the_streams_are_bounded() {
    let shared = Shared::start();
    let (a, b) = two(&shared).await;
    let many: Vec<Entry> =
        (0..3000).map(|number| deny(&format!("10.0.{}.{}", number / 250, number % 250))).collect();
    assert!(matches!(a.lists.add(&many).await, Ok(Kept::Saved)));
    until("the other has them all", || b.throttle.entries(List::Deny).len() == 3000).await;
    assert_eq!(shared.ask(cmd("HLEN").arg("gatepost:lists")).await, Value::Int(3000));

    // Some 1500 entries of the stream.
    for _ in 0..3 {
        for _ in 0..16_000 {
            a.outbox.push(News::Listed("nobody's".into()));
        }
        until("they are written", || a.outbox.is_empty()).await;
    }
    a.stop().await;
    b.stop().await;

    let Value::Int(entries) = shared.ask(cmd("XLEN").arg("gatepost:events:lists")).await else {
        panic!("no number");
    };
    assert!((1..1300).contains(&entries), "{entries}");
}

#[test]
fn a_process_reads_back_as_far_as_anything_counts() {
    let mut config = Config::default();
    let rule = Rule { hold: Span::seconds(8000), ..Rule::default() };
    config.throttle.rule = [("one".to_owned(), rule)].into();
    let off = Rule { limit: 0, window: Span::seconds(90_000), ..Rule::default() };
    config.throttle.rule.insert("off".to_owned(), off);
    config.throttle.history = Span::seconds(80_000);
    config.template.insert("plain".into(), Default::default());
    let limited = crate::config::template::Template {
        send_limit: RateLimit(Some("9/800s".parse().unwrap())),
        ..Default::default()
    };
    config.template.insert("limited".into(), limited);

    let seconds = reach(&config).map(|span| span.as_secs());

    assert_eq!(seconds, [9000, 90_000, 900, 60]);
}

#[test]
fn it_is_up_while_both_sides_work() {
    let metrics = Metrics::new();
    let health = Health::new("127.0.0.1:1".into(), metrics.clone());
    let shows = |up: u8| metrics.encode().contains(&format!("gatepost_shared_up {up}\n"));
    let trouble = Trouble::Nonsense("TIME");
    assert!(shows(0));
    health.up(Side::Keeper);
    assert!(shows(0));
    health.up(Side::Reader);
    assert!(shows(1));
    health.down(Side::Reader, &trouble);
    assert!(shows(0));
    health.up(Side::Keeper);
    assert!(shows(0));
    health.up(Side::Reader);
    assert!(shows(1));
}

#[test]
fn pauses_grow_to_a_bound() {
    let mut pauses = Pauses::new();
    let all = [0; 6].map(|_| pauses.next().as_millis());
    assert_eq!(all, [250, 500, 1000, 2000, 2000, 2000]);
}
