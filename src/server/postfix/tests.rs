//! Both doors over a real store, without sockets.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::maps::{self, MapsDoor};
use super::policy::{self, PolicyDoor};
use super::*;
use crate::auth::Authenticator;
use crate::clock;
use crate::config::Config;
use crate::config::listen::Listen;
use crate::config::template::Active;
use crate::identity::{Address, Case};
use crate::lookup::Lookup;
use crate::metrics::Metrics;
use crate::server::door::{Door, Shared};
use crate::server::listener::Peer;
use crate::store::{Mailbox, Origin, Standing, Store};
use crate::throttle::SendingLimits;

/// amy with the alias wong, ann who is disabled, hal who only receives, kif who may only read, and zap of a domain
/// that is switched off.
struct Site {
    store: Store,
    door: Door,
    sending: Arc<SendingLimits>,
    directory: tempfile::TempDir,
}

type Serving = JoinHandle<io::Result<()>>;

impl Site {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.store.url = format!("sqlite://{}", directory.path().join("gatepost.db").display());
        config.domain.insert("example.org".into(), Default::default());
        config.domain.insert("example.net".into(), Default::default());
        let store = Store::open(&config.store).await.unwrap();
        store.mirror_domains(&config.domain).await.unwrap();
        config.domain.get_mut("example.net").unwrap().active = false;
        let limited = crate::config::template::Template {
            send_limit: crate::config::units::RateLimit("3/h".parse().ok()),
            ..Default::default()
        };
        config.template.insert("limited".into(), limited);
        let mailbox = |address: &str, change: fn(&mut Mailbox)| {
            let mut mailbox = Mailbox::sample(address);
            change(&mut mailbox);
            mailbox
        };
        for mailbox in [
            mailbox("amy@example.org", |amy| {
                amy.aliases.make().insert(parsed("wong@example.org"), Origin::Directory);
            }),
            mailbox("ann@example.org", |_| {}),
            mailbox("hal@example.org", |hal| hal.settings.active = Active::DeliveryOnly),
            mailbox("kif@example.org", |kif| {
                kif.settings.protocols = ["imap"].into_iter().collect();
            }),
            mailbox("zap@example.net", |_| {}),
            mailbox("leo@example.org", |leo| {
                leo.settings.template = "limited".into();
                leo.aliases.make().insert(parsed("wong.leo@example.org"), Origin::Directory);
            }),
        ] {
            store.settle(&mailbox).await;
        }
        store.set_disabled(&parsed("ann@example.org"), Standing::Disabled).await.unwrap();

        let core = Authenticator::over(store.clone(), &config);
        let lookup = Lookup::new(store.clone(), &config);
        let shared = Shared { core, lookup, metrics: Metrics::new(), tracker: TaskTracker::new() };
        let sending = SendingLimits::new(clock::now());
        sending.configure(std::iter::once(Duration::from_secs(3600)));
        let door = Door::new("postfix".into(), &Listen::default(), shared);
        Self { store, door, sending: Arc::new(sending), directory }
    }

    fn maps(&self, shutdown: &CancellationToken) -> (DuplexStream, Serving) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let door = Arc::new(MapsDoor::new(self.door.clone()));
        (theirs, tokio::spawn(maps::serve(ours, door, shutdown.clone())))
    }

    fn policy(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let door = Arc::new(PolicyDoor::new(self.door.clone(), Arc::clone(&self.sending)));
        tokio::spawn(policy::serve(ours, door, CancellationToken::new()));
        theirs
    }

    /// What the policy server says, without `action=`.
    async fn judged(&self, state: &str, login: &str, sender: &str) -> String {
        self.judged_message(state, login, sender, "").await
    }

    async fn judged_message(
        &self,
        state: &str,
        login: &str,
        sender: &str,
        instance: &str,
    ) -> String {
        let mut peer = self.policy();
        let request = format!(
            "request=smtpd_access_policy\nprotocol_state={state}\nsender={sender}\nsasl_username={login}\n\
             instance={instance}\n\n"
        );
        peer.write_all(request.as_bytes()).await.unwrap();
        peer.shutdown().await.unwrap();
        let mut reply = String::new();
        peer.read_to_string(&mut reply).await.unwrap();
        reply.strip_prefix("action=").unwrap().strip_suffix("\n\n").unwrap().to_owned()
    }

    fn lose_store(&self) {
        let at = |name: &str| -> PathBuf { self.directory.path().join(name) };
        std::fs::rename(at("gatepost.db"), at("moved.db")).unwrap();
    }
}

fn parsed(text: &str) -> Address {
    Address::parse(text, Case::Fold).unwrap()
}

async fn read(peer: &mut (impl AsyncRead + Unpin), length: usize) -> String {
    let mut bytes = vec![0; length];
    peer.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

const NOT_OWNED: &str = "553 5.7.1 not owned by user amy@example.org";
const NOT_JOES: &str = "553 5.7.1 not owned by user joe@elsewhere.example";

#[tokio::test]
async fn somebody_logged_in_sends_as_themselves_and_as_nobody_else() {
    let site = Site::new().await;

    for (login, sender, verdict) in [
        ("amy@example.org", "amy@example.org", "DUNNO"),
        ("amy@example.org", "Amy+Lists@Example.org", "DUNNO"),
        ("AMY@example.org", "wong@example.org", "DUNNO"),
        ("wong@example.org", "amy@example.org", "DUNNO"),
        ("amy@example.org", "", "DUNNO"),
        ("amy@example.org", "ann@example.org", NOT_OWNED),
        ("amy@example.org", "nobody@example.org", NOT_OWNED),
        ("amy@example.org", "amy@elsewhere.example", NOT_OWNED),
        ("amy@example.org", "amy", NOT_OWNED),
        ("amy@example.org", "a@b@example.org", NOT_OWNED),
        ("amy@example.org", "zap@example.net", NOT_OWNED),
        // Whom others let in: only what is ours is judged.
        ("joe@elsewhere.example", "joe@elsewhere.example", "DUNNO"),
        ("joe@elsewhere.example", "", "DUNNO"),
        ("joe@elsewhere.example", "amy@example.org", NOT_JOES),
        ("joe@elsewhere.example", "nobody@example.org", NOT_JOES),
        ("joe@elsewhere.example", "nobody@Example.ORG.", NOT_JOES),
        ("joe@elsewhere.example", "nobody@example.net", NOT_JOES),
        ("joe@elsewhere.example", "amy", NOT_JOES),
        (
            "jo\u{e9}@elsewhere.example",
            "amy@example.org",
            "553 5.7.1 not owned by user jo?@elsewhere.example",
        ),
        // Not logged in.
        ("", "amy@example.org", "DUNNO"),
    ] {
        assert_eq!(site.judged("RCPT", login, sender).await, verdict, "{login} as {sender}");
    }
}

#[tokio::test]
async fn a_login_without_a_mailbox_that_has_no_domain_or_one_of_ours_sends_nothing() {
    let site = Site::new().await;

    for login in [
        "joe",
        "jo\u{e9}",
        "nobody@example.org",
        "nobody@example.net",
        "amy@example.org*zap",
        "amy@example.org*zap@example.net",
        "amy@",
    ] {
        for sender in ["", "amy@example.org", "nobody@example.org", "boss@bank.example", login] {
            let verdict = site.judged("RCPT", login, sender).await;
            assert_eq!(
                verdict, "550 5.7.1 No mailbox belongs to this login",
                "{login} as {sender}"
            );
        }
    }
}

#[tokio::test]
async fn somebody_who_may_not_send_is_refused_whatever_the_sender() {
    let site = Site::new().await;

    for (login, text) in [
        ("ann@example.org", "550 5.7.1 This mailbox is disabled"),
        ("zap@example.net", "550 5.7.1 This mailbox is disabled"),
        ("hal@example.org", "550 5.7.1 This mailbox only receives mail"),
        ("kif@example.org", "550 5.7.1 This account may not send mail"),
    ] {
        for sender in [login, "", "amy@example.org"] {
            assert_eq!(site.judged("RCPT", login, sender).await, text, "{login} as {sender:?}");
        }
    }
    site.store.set_disabled(&parsed("amy@example.org"), Standing::Disabled).await.unwrap();
    let verdict = site.judged("RCPT", "amy@example.org", "amy@example.org").await;
    assert_eq!(verdict, "550 5.7.1 This mailbox is disabled", "at once");
}

const TOO_MANY: &str = "451 4.7.1 No more than 3 messages in 1h, try again later";

#[tokio::test]
async fn messages_are_counted_once_each_and_one_too_many_is_put_off() {
    let site = Site::new().await;
    let leo = "leo@example.org";
    let judge = |state, instance| site.judged_message(state, leo, leo, instance);

    // MAIL alone is no message yet; recipients and steps of one are one.
    for (state, instance) in [
        ("MAIL", "1"),
        ("MAIL", "1"),
        ("MAIL", "1"),
        ("MAIL", "1"),
        ("RCPT", "1"),
        ("RCPT", "1"),
        ("DATA", "1"),
        ("END-OF-MESSAGE", "1"),
        ("DATA", "2"),
        ("END-OF-MESSAGE", "2"),
    ] {
        assert_eq!(judge(state, instance).await, "DUNNO", "{state} {instance}");
    }
    // What is refused for another reason does not count.
    let foreign = site.judged_message("RCPT", leo, "amy@example.org", "3").await;
    assert_eq!(foreign, "553 5.7.1 not owned by user leo@example.org");
    // By any name, and from nobody: it is the same mailbox.
    let alias = "wong.leo@example.org";
    assert_eq!(site.judged_message("END-OF-MESSAGE", alias, "", "4").await, "DUNNO");

    for state in ["RCPT", "RCPT", "DATA", "END-OF-MESSAGE"] {
        assert_eq!(judge(state, "5").await, TOO_MANY, "{state}");
    }
    assert_eq!(judge("RCPT", "1").await, "DUNNO", "it was let through before");
    assert_eq!(judge("MAIL", "6").await, "DUNNO");
    assert_eq!(site.judged("RCPT", "amy@example.org", "amy@example.org").await, "DUNNO");
    let text = site.door.metrics.encode();
    for line in [
        "gatepost_sending_total{template=\"limited\",outcome=\"counted\"} 3",
        "gatepost_sending_total{template=\"limited\",outcome=\"deferred\"} 4",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} not in {text}");
    }
}

#[tokio::test]
async fn with_the_store_gone_nothing_is_counted_and_nobody_hears_of_a_limit() {
    let site = Site::new().await;
    site.lose_store();
    for message in 0..5 {
        let leo = "leo@example.org";
        let verdict = site.judged_message("RCPT", leo, leo, &message.to_string()).await;
        assert!(verdict.starts_with("DEFER_IF_PERMIT 4.3.0"), "{verdict}");
    }
    let used = site.sending.used("leo@example.org", Duration::from_secs(3600), clock::now());
    assert_eq!(used, 0);
}

#[tokio::test]
async fn every_state_with_a_sender_is_judged_and_no_other() {
    let site = Site::new().await;

    for state in ["MAIL", "RCPT", "DATA", "END-OF-MESSAGE"] {
        let verdict = site.judged(state, "amy@example.org", "ann@example.org").await;
        assert_eq!(verdict, NOT_OWNED, "{state}");
    }
    for state in ["CONNECT", "EHLO", "HELO", "VRFY", "ETRN", "NEW", ""] {
        let verdict = site.judged(state, "ann@example.org", "amy@example.org").await;
        assert_eq!(verdict, "DUNNO", "{state}");
    }
}

#[tokio::test]
async fn with_the_store_gone_the_policy_server_puts_off_whom_it_would_have_to_ask_about() {
    let site = Site::new().await;
    site.lose_store();

    let later = "DEFER_IF_PERMIT 4.3.0 Cannot check the sender now, try again later";
    assert_eq!(site.judged("RCPT", "amy@example.org", "ann@example.org").await, later);
    assert_eq!(site.judged("RCPT", "amy@example.org", "amy@example.org").await, later);
    assert_eq!(site.judged("RCPT", "", "amy@example.org").await, "DUNNO");
}

#[tokio::test]
async fn requests_of_one_read_are_answered_in_order_and_the_connection_stays() {
    let site = Site::new().await;
    let (mut peer, _serving) = site.maps(&CancellationToken::new());

    for _ in 0..3 {
        let requests =
            b"23:mailbox amy@example.org,26:mailbox nobody@example.org,22:alias wong@example.org,";
        peer.write_all(requests).await.unwrap();
        let replies = "18:OK amy@example.org,9:NOTFOUND ,18:OK amy@example.org,";
        assert_eq!(read(&mut peer, replies.len()).await, replies);
    }
    let text = site.door.metrics.encode();
    for line in [
        "gatepost_lookups_total{door=\"postfix\",map=\"mailbox\",result=\"found\"} 3",
        "gatepost_lookups_total{door=\"postfix\",map=\"mailbox\",result=\"nothing\"} 3",
        "gatepost_lookups_total{door=\"postfix\",map=\"alias\",result=\"found\"} 3",
    ] {
        assert!(text.contains(line), "{line} not in {text}");
    }
}

#[tokio::test]
async fn with_the_store_gone_a_map_says_temp_and_an_unknown_map_always_does() {
    let site = Site::new().await;
    let (mut peer, _serving) = site.maps(&CancellationToken::new());
    site.lose_store();

    for (request, reply) in [
        ("23:mailbox amy@example.org,", "46:TEMP the database of mailboxes does not answer,"),
        ("18:domain example.org,", "14:OK example.org,"),
        ("24:mailbox a@elsewhere.test,", "9:NOTFOUND ,"),
        ("21:inbox amy@example.org,", "35:TEMP there is no table of this name,"),
    ] {
        peer.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(read(&mut peer, reply.len()).await, reply, "{request}");
    }
}

#[tokio::test]
async fn a_request_that_is_not_ended_in_time_ends_the_connection_and_an_idle_hour_does_not() {
    let site = Site::new().await;
    let (mut peer, serving) = site.maps(&CancellationToken::new());
    tokio::time::pause();

    tokio::time::sleep(Duration::from_secs(3600)).await;
    peer.write_all(b"18:domain example.org,").await.unwrap();
    assert_eq!(read(&mut peer, 18).await, "14:OK example.org,");
    let begun = tokio::time::Instant::now();
    peer.write_all(b"18:domain").await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    peer.write_all(b" exam").await.unwrap();

    assert_eq!(peer.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(begun.elapsed().as_secs(), 30);
    let error = serving.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_policy_request_that_came_by_whole_lines_is_not_waited_for_longer() {
    let site = Site::new().await;
    let mut peer = site.policy();
    tokio::time::pause();

    let begun = tokio::time::Instant::now();
    peer.write_all(b"request=smtpd_access_policy\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(29)).await;
    peer.write_all(b"protocol_state=RCPT\n").await.unwrap();

    assert_eq!(peer.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn at_the_end_of_the_daemon_idle_connections_end_and_what_was_asked_is_answered() {
    let site = Site::new().await;
    let shutdown = CancellationToken::new();
    let (mut idle, _serving) = site.maps(&shutdown);
    let (mut busy, _serving) = site.maps(&shutdown);
    busy.write_all(b"23:mailbox amy@example.org,").await.unwrap();
    assert_eq!(read(&mut busy, 22).await, "18:OK amy@example.org,");

    shutdown.cancel();

    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(busy.read(&mut [0; 8]).await.unwrap(), 0);
}

#[tokio::test]
async fn at_the_end_of_the_daemon_what_came_before_it_is_read_and_answered() {
    let site = Site::new().await;
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    // The two are ready at the same time: a choice by chance would lose some of these.
    for _ in 0..20 {
        let (ours, mut peer) = tokio::io::duplex(1024);
        peer.write_all(b"23:mailbox amy@example.org,").await.unwrap();
        let door = Arc::new(MapsDoor::new(site.door.clone()));

        maps::serve(ours, door, shutdown.clone()).await.unwrap();

        let mut answer = String::new();
        peer.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "18:OK amy@example.org,");
    }
}

#[tokio::test]
async fn behind_a_proxy_whom_the_header_names_is_the_client_unless_it_asks_for_others() {
    let site = Site::new().await;
    let mut door = site.door.clone();
    door.proxied = true;
    door.trusted = vec!["127.0.0.0/8".parse().unwrap()];
    let said = "192.0.2.55".parse().ok();
    let address = |text: &str| text.parse().ok();

    for (peer, client) in [
        (Peer { address: address("127.0.0.1:1"), ..Peer::default() }, said),
        (Peer { address: address("192.0.2.9:1"), ..Peer::default() }, "192.0.2.9".parse().ok()),
        (Peer::default(), said),
    ] {
        assert_eq!(door.client(said, &peer), client, "{peer:?}");
        assert_eq!(door.believes(&peer), client == said, "{peer:?}");
    }
}

#[test]
fn the_same_trouble_is_told_at_most_once_in_ten_seconds() {
    let (seldom, now) = (Seldom::default(), clock::now());

    let told = [0, 1, 9, 10, 19, 20].map(|after| seldom.is_due(now + Duration::from_secs(after)));

    assert_eq!(told, [true, false, false, true, false, true]);
}
