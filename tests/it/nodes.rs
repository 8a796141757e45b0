//! Several nodes with a Valkey or Redis between them: they count as one, and each goes on alone while that is away.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::clients::Smtp;
use crate::support::dovecot::Home;
use crate::support::gatepost::{Answer, Configuration, Gatepost};
use crate::support::postfix::{self, Postfix};
use crate::support::redis::Redis;
use crate::support::slapd::{LEAK_MARK, Slapd, mail_of, password_of};
use crate::support::{now, pass_time, printed, wait_until};

/// Wrong passwords of a net for one login.
const LIMIT: usize = 10;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node whose one rule refuses from the tenth wrong password on.
fn node(slapd: &Slapd, redis: &Redis) -> Configuration {
    let mut configuration = Configuration::new(slapd);
    configuration.set("shared", &redis.url());
    configuration.set("throttle", "enabled = true");
    configuration.set("directory.planet.auth", "wrong_binds = \"60000/10m\"");
    for name in [
        "guessing-per-login",
        "guessing-per-ip",
        "guessing-per-ip-long",
        "spraying-per-net",
        "guessing-from-everywhere",
        "spraying-from-everywhere",
        "guessing-per-session",
    ] {
        configuration.set(&format!("throttle.rule.{name}"), "limit = 0");
    }
    configuration.set("throttle.rule.guessing-per-login-long", &format!("limit = {LIMIT}"));
    configuration
}

fn two_nodes(slapd: &Slapd, redis: &Redis) -> [Gatepost; 2] {
    let nodes = [(); 2].map(|()| node(slapd, redis).start());
    wait_until("both are up", PATIENCE, || nodes.iter().all(is_up));
    nodes
}

fn is_up(node: &Gatepost) -> bool {
    node.metric("gatepost_shared_up", &[]) > 0.5
}

fn login(node: &Gatepost, client: &str, uid: &str, password: &str) -> Answer {
    let body = json!({
        "username": mail_of(uid), "password": password, "service": "imap", "client_ip": client,
    });
    node.post_login(body.to_string().as_bytes())
}

const GUESSER: &str = "198.51.100.9";

/// A wrong password for fry that was not tried before.
fn guess(node: &Gatepost, number: usize) -> String {
    let answer = login(node, GUESSER, "fry", &format!("guess {number}"));
    format!("{} {}", answer.status, answer.reason())
}

/// Whether the node refuses the guesser: by the first guess, which counts once however often it is tried.
fn stops(node: &Gatepost) -> bool {
    guess(node, 0) == "403 throttled"
}

/// Whether a list speaks against the guesser: the right password does not help.
fn is_listed(node: &Gatepost) -> bool {
    login(node, GUESSER, "fry", &password_of("fry")).reason() == "throttled"
}

#[test]
fn a_guesser_who_alternates_between_nodes_is_stopped_at_the_limit_of_both() {
    let (slapd, redis) = (Slapd::start(), Redis::start());
    let nodes = two_nodes(&slapd, &redis);

    for number in 0..LIMIT {
        assert_eq!(guess(&nodes[number % 2], number), "403 wrong-password");
    }
    let begun = now();
    wait_until("both nodes refuse", Duration::from_secs(1), || {
        (0..2).all(|node| guess(&nodes[node], 1000 + node) == "403 throttled")
    });
    println!("refused by both {:?} after the guess that reached the limit", begun.elapsed());

    for node in &nodes {
        let answer = login(node, "203.0.113.5", "fry", &password_of("fry"));
        assert_eq!(answer.status, 200, "from elsewhere: {answer:?}");
        assert_eq!(login(node, GUESSER, "leela", &password_of("leela")).status, 200);
    }
    let received = heard(&nodes[1]);
    assert!(received > 0.5, "{received}");
}

#[test]
fn an_entry_of_a_list_that_another_node_made_holds_and_outlives_server_and_restart() {
    let (slapd, mut redis) = (Slapd::start(), Redis::start());
    let mut nodes = two_nodes(&slapd, &redis);
    let field = format!("deny ip {GUESSER}");
    let tell = |redis: &Redis, value: &str, number: u32| {
        redis.ask(&["HSET", "gatepost:lists", &field, value]);
        let batch = format!(r#"[{{"k":"listed","l":"{field}"}}]"#);
        let stream = "gatepost:events:lists";
        redis.ask(&["XADD", stream, "*", "n", "other", "s", &number.to_string(), "e", &batch]);
    };
    assert_eq!(login(&nodes[0], GUESSER, "fry", &password_of("fry")).status, 200);
    let until = 4_000_000_000_000_u64;

    tell(&redis, &format!(r#"{{"until":{until},"at":1,"reason":"by hand"}}"#), 1);
    wait_until("it holds at both", Duration::from_secs(2), || nodes.iter().all(is_listed));

    redis.kill9();
    for node in &mut nodes {
        node.stop();
        node.start_again();
        assert!(is_listed(node), "it was saved");
    }
    redis.start_again();
    wait_until("the server has it again", PATIENCE, || {
        redis.ask(&["HGET", "gatepost:lists", &field]).contains("by hand")
    });
    tell(&redis, &format!(r#"{{"until":{until},"at":2,"removed":true}}"#), 2);
    wait_until("both let them in", PATIENCE, || !nodes.iter().any(is_listed));
}

/// Somebody logs in again and again at a node, with the right password; what each login took, and what went wrong.
struct Load {
    over: AtomicBool,
    took: Mutex<Vec<Duration>>,
}

impl Load {
    fn run(&self, node: &Gatepost, client: &str, uid: &str) {
        while !self.over.load(Ordering::Relaxed) {
            let begun = now();
            let answer = login(node, client, uid, &password_of(uid));
            assert_eq!(answer.status, 200, "{answer:?}");
            self.took.lock().unwrap().push(begun.elapsed());
            pass_time(Duration::from_millis(2));
        }
    }

    /// Of the logins since this was last asked.
    fn percentile_99(&self) -> (usize, Duration) {
        let mut took = std::mem::take(&mut *self.took.lock().unwrap());
        took.sort();
        let place = took.len() * 99 / 100;
        (took.len(), took.get(place).copied().unwrap_or_default())
    }
}

#[test]
fn while_the_shared_server_is_away_nobody_waits_or_is_refused_and_afterwards_all_is_counted() {
    let (slapd, mut redis) = (Slapd::start(), Redis::start());
    let nodes = two_nodes(&slapd, &redis);
    for node in &nodes {
        for uid in ["leela", "professor"] {
            assert_eq!(login(node, "203.0.113.5", uid, &password_of(uid)).status, 200);
        }
    }
    let load = Load { over: AtomicBool::new(false), took: Mutex::default() };

    std::thread::scope(|scope| {
        for (node, uid) in nodes.iter().zip(["leela", "professor"]) {
            scope.spawn(|| load.run(node, "203.0.113.5", uid));
        }
        let end = End(&load.over);
        pass_time(Duration::from_secs(2));
        let before = load.percentile_99();

        redis.kill9();
        wait_until("both say that it is down", PATIENCE, || !nodes.iter().any(is_up));
        // Six at each: the limit is reached at neither.
        for number in 0..6 {
            assert_eq!(guess(&nodes[0], number), "403 wrong-password");
            assert_eq!(guess(&nodes[1], 100 + number), "403 wrong-password");
        }
        pass_time(Duration::from_secs(2));
        let during = load.percentile_99();
        assert!(!nodes.iter().any(stops));

        redis.start_again();
        wait_until("both are up again", PATIENCE, || nodes.iter().all(is_up));
        let after = load.percentile_99();
        println!("logins and their 99th percentile: {before:?}, {during:?}, {after:?}");
        drop(end);
        for (count, slowest) in [before, during, after] {
            assert!(count > 50 && slowest < Duration::from_millis(300), "{count} {slowest:?}");
        }
    });
    for node in &nodes {
        let log = node.log();
        assert_eq!(log.matches("the shared server does not answer").count(), 1, "{log}");
        assert_eq!(log.matches("the shared server answers").count(), 2, "{log}");
    }
}

/// Ends the load whatever happens.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn counts_of_an_outage_reach_the_others_and_local_counting_never_ends() {
    let (slapd, mut redis) = (Slapd::start(), Redis::start());
    let nodes = two_nodes(&slapd, &redis);
    redis.kill9();
    wait_until("both say that it is down", PATIENCE, || !nodes.iter().any(is_up));

    for number in 0..6 {
        assert_eq!(guess(&nodes[0], number), "403 wrong-password");
        assert_eq!(guess(&nodes[1], 100 + number), "403 wrong-password");
    }
    redis.start_again();
    wait_until("both have the counts of both", PATIENCE, || {
        (0..2).all(|node| guess(&nodes[node], node) == "403 throttled")
    });

    redis.kill9();
    wait_until("it is down again", PATIENCE, || !is_up(&nodes[0]));
    let another = |number: usize| {
        let answer = login(&nodes[0], "192.0.2.77", "leela", &format!("guess {number}"));
        answer.reason().to_owned()
    };
    assert!((0..LIMIT).all(|number| another(number) == "wrong-password"));
    assert_eq!(another(LIMIT), "throttled");
}

#[test]
fn a_node_that_was_restarted_has_the_counts_again() {
    let (slapd, redis) = (Slapd::start(), Redis::start());
    let mut nodes = two_nodes(&slapd, &redis);
    for number in 0..LIMIT {
        assert_eq!(guess(&nodes[number % 2], number), "403 wrong-password");
    }
    wait_until("the other refuses", PATIENCE, || guess(&nodes[1], 77) == "403 throttled");

    nodes[0].kill9();
    nodes[0].start_again();
    wait_until("it refuses as before", PATIENCE, || stops(&nodes[0]));
    // Nobody wrote anything meanwhile that an empty node could have counted.
    nodes[1].stop();
    nodes[0].stop();
    nodes[0].start_again();
    wait_until("and again", PATIENCE, || stops(&nodes[0]));
}

#[test]
fn a_wrong_password_or_address_of_the_shared_server_is_named_and_never_shown() {
    let (slapd, redis) = (Slapd::start(), Redis::start());
    let mut configuration = node(&slapd, &redis);
    let url = format!("url = \"redis://:wrong-{LEAK_MARK}@127.0.0.1:{}\"", redis.port);
    configuration.set("shared", &url);
    let mut gatepost = configuration.start();

    wait_until("it says what is wrong", PATIENCE, || {
        gatepost.log().contains("user or password are not right")
    });
    assert!(!is_up(&gatepost));
    assert_eq!(login(&gatepost, GUESSER, "fry", &password_of("fry")).status, 200);
    let shown = gatepost.run(&["config", "show"], "");
    assert!(printed(&shown).contains("shared.url = \"********\""), "{}", printed(&shown));
    pass_time(Duration::from_secs(1));
    assert_eq!(gatepost.log().matches(" ERROR ").count(), 1, "said once: {}", gatepost.log());

    for url in [
        format!("redis:/:secret-{LEAK_MARK}@host"),
        format!("http://:secret-{LEAK_MARK}@host"),
        format!("redis://:secret-{LEAK_MARK}@host/x"),
        format!("rediss://:secret-{LEAK_MARK}@host#insecure"),
    ] {
        gatepost.configuration.set("shared", &format!("url = {url:?}"));
        gatepost.configuration.write();
        let output = gatepost.run(&["config", "check"], "");
        let said = printed(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("shared.url: not the address of a Valkey or Redis"), "{said}");
        assert!(!said.contains(LEAK_MARK), "{said}");
    }
    gatepost.configuration.set("shared", &redis.url());
    gatepost.hup();
    wait_until("the change is named", PATIENCE, || {
        gatepost.log().contains("this change takes effect at the next restart")
    });
    gatepost.stop();
    gatepost.start_again();
    wait_until("it is up", PATIENCE, || is_up(&gatepost));
}

#[test]
fn by_tls_the_certificate_of_the_shared_server_is_checked() {
    let (slapd, redis) = (Slapd::start(), Redis::start());
    for (knows_authority, up) in [(true, true), (false, false)] {
        let mut configuration = node(&slapd, &redis);
        configuration.set("shared", &redis.tls_url());
        if knows_authority {
            configuration.environment("SSL_CERT_FILE", redis.ca_file().to_str().unwrap());
        }
        let gatepost = configuration.start();
        wait_until("it says how it goes", PATIENCE, || {
            let log = gatepost.log();
            log.contains("the shared server answers") || log.contains("this node counts alone")
        });
        assert_eq!(is_up(&gatepost), up, "{}", gatepost.log());
        assert_eq!(gatepost.log().contains("UnknownIssuer"), !up, "{}", gatepost.log());
    }
}

/// The rights that docs/nodes.md names are enough, and no others are asked for.
#[test]
fn a_user_with_the_rights_of_the_docs_is_enough() {
    let (slapd, redis) = (Slapd::start(), Redis::start());
    let docs = include_str!("../../docs/nodes.md");
    let rights = docs.split('`').find(|code| code.starts_with("+@connection ")).unwrap();
    let rights = rights.replace("PREFIX", "gatepost");
    let password = format!(">own-{LEAK_MARK}");
    let mut words = vec!["ACL", "SETUSER", "nodes", "on", &password, "resetchannels"];
    words.extend(rights.split_whitespace());
    assert_eq!(redis.ask(&words), "OK");
    let url = format!("redis://nodes:own-{LEAK_MARK}@127.0.0.1:{}", redis.port);
    let nodes = [(); 2].map(|()| {
        let mut configuration = node(&slapd, &redis);
        configuration.set("shared", &format!("url = {url:?}"));
        configuration.start()
    });
    wait_until("both are up", PATIENCE, || nodes.iter().all(is_up));

    for number in 0..LIMIT {
        assert_eq!(guess(&nodes[0], number), "403 wrong-password");
    }
    wait_until("the other refuses", PATIENCE, || stops(&nodes[1]));
    redis.ask(&["HSET", "gatepost:lists", "deny ip 192.0.2.1", r#"{"until":1,"at":1}"#]);
    let mut third = node(&slapd, &redis);
    third.set("shared", &format!("url = {url:?}"));
    let third = third.start();
    wait_until("the third is up", PATIENCE, || is_up(&third));
    assert_eq!(redis.ask(&["HLEN", "gatepost:lists"]), "0", "what was over was taken away");
}

/// Three messages an hour.
fn with_send_limit(configuration: &mut Configuration) {
    configuration.add("template.crew", "send_limit = \"3/h\"");
}

const TOO_MANY: &str = "No more than 3 messages in 1h, try again later";

fn one_message_too_many_is_put_off(home: Home) {
    let slapd = Slapd::start();
    let place = postfix::Place::new(home);
    let mut configuration = Configuration::new(&slapd);
    for (door, protocol, socket) in [
        ("listen.postfix", "dovecot-auth", "auth"),
        ("listen.maps", "socketmap", "maps"),
        ("listen.policy", "postfix-policy", "policy"),
    ] {
        let path = place.socket(socket);
        configuration.set(door, &format!("protocol = {protocol:?}\npath = {path:?}"));
    }
    with_send_limit(&mut configuration);
    let gatepost = configuration.start();
    // Asked at each step: one message is one.
    let steps = "smtpd_data_restrictions = check_policy_service unix:gatepost/policy\n\
                 smtpd_end_of_data_restrictions = check_policy_service unix:gatepost/policy\n\
                 smtpd_recipient_restrictions =";
    let postfix = Postfix::of_contrib_and(place, steps);
    let log = || format!("{}{}", postfix.log(), gatepost.log());
    let from = "<fry@planetexpress.com>";
    let mut smtp =
        Smtp::login(postfix.open_submission, "fry@planetexpress.com", &password_of("fry"));
    for message in 1..=3 {
        let first = smtp.ask(from, "joe@elsewhere.example");
        assert!(first.starts_with("250"), "{message}: {first} {}", log());
        let second = smtp.say("RCPT TO:<jane@elsewhere.example>");
        assert!(second.starts_with("250"), "{message}: {second} {}", log());
        let sent = smtp.send("hello");
        assert!(sent.starts_with("250"), "{message}: {sent} {}", log());
    }

    let reply = smtp.ask(from, "joe@elsewhere.example");

    let expected = format!("451 4.7.1 {from}: Sender address rejected: {TOO_MANY}");
    assert_eq!(reply, expected, "{}", log());
    assert!(gatepost.log().contains("TooMany"), "{}", gatepost.log());
    let deferred = gatepost.metric("gatepost_sending_total", &["outcome=\"deferred\""]);
    let counted = gatepost.metric("gatepost_sending_total", &["outcome=\"counted\""]);
    assert!((deferred - 1.0).abs() < 0.5 && (counted - 3.0).abs() < 0.5, "{deferred} {counted}");
    // Others are not concerned.
    let mut smtp =
        Smtp::login(postfix.open_submission, "leela@planetexpress.com", &password_of("leela"));
    let reply = smtp.ask("<leela@planetexpress.com>", "joe@elsewhere.example");
    assert!(reply.starts_with("250"), "{reply} {}", log());
}

#[test]
fn one_message_too_many_is_put_off_postfix_3_7() {
    one_message_too_many_is_put_off(Home::Bookworm);
}

#[test]
fn one_message_too_many_is_put_off_postfix_3_10() {
    one_message_too_many_is_put_off(Home::Trixie);
}

/// What the policy server says to a message of fry's.
fn asked(node: &Gatepost, message: usize) -> String {
    let mut stream = UnixStream::connect(node.configuration.path("policy")).unwrap();
    let fry = mail_of("fry");
    let request = format!(
        "request=smtpd_access_policy\nprotocol_state=RCPT\nsender={fry}\nsasl_username={fry}\n\
         recipient=joe@elsewhere.example\ninstance=1a.{message}\n\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply.trim().to_owned()
}

/// Two nodes with policy servers, where fry has a mailbox. `urls`: the way of each to the server between them.
fn two_policy_servers(slapd: &Slapd, redis: &Redis, urls: [String; 2]) -> [Gatepost; 2] {
    let nodes = urls.map(|url| {
        let mut configuration = node(slapd, redis);
        configuration.set("shared", &url);
        with_send_limit(&mut configuration);
        let path = configuration.path("policy");
        configuration
            .set("listen.policy", &format!("protocol = \"postfix-policy\"\npath = {path:?}"));
        configuration.start()
    });
    wait_until("both are up", PATIENCE, || nodes.iter().all(is_up));
    // From networks of their own: where one has heard of the other's login, the same is no news.
    for (node, client) in nodes.iter().zip(["192.0.2.7", "203.0.113.7"]) {
        assert_eq!(login(node, client, "fry", &password_of("fry")).status, 200);
    }
    // Whoever counts what a node hears of messages must not count these.
    wait_until("both have heard of the other's login", PATIENCE, || {
        nodes.iter().all(|node| heard(node) >= 1.0)
    });
    nodes
}

/// The events of others that a node has counted.
fn heard(node: &Gatepost) -> f64 {
    node.metric("gatepost_shared_received_total", &["result=\"counted\""])
}

/// What a node was not told to be written it writes again.
#[test]
fn messages_that_were_told_twice_count_once() {
    let (slapd, redis) = (Slapd::start(), Redis::start());
    let relay = redis.relay_that_loses_an_answer("gatepost:events:sent");
    let nodes = two_policy_servers(&slapd, &redis, [relay.url(&redis), redis.url()]);

    assert_eq!(asked(&nodes[0], 1), "action=DUNNO");
    wait_until("it is written twice", PATIENCE, || {
        redis.ask(&["XLEN", "gatepost:events:sent"]) == "2"
    });
    assert!(relay.has_lost_it());
    // Written after both: whoever has heard of it has passed them.
    wait_until("it is up", PATIENCE, || is_up(&nodes[0]));
    assert_eq!(login(&nodes[0], "192.0.2.7", "leela", &password_of("leela")).status, 200);
    wait_until("the other has heard of all", PATIENCE, || heard(&nodes[1]) >= 3.0);

    assert_eq!([2, 3].map(|message| asked(&nodes[1], message)), ["action=DUNNO"; 2]);
    assert_eq!(asked(&nodes[1], 4), format!("action=451 4.7.1 {TOO_MANY}"));
}

#[test]
fn a_limit_of_messages_holds_over_all_nodes_and_over_a_restart() {
    let (slapd, redis) = (Slapd::start(), Redis::start());
    let mut nodes = two_policy_servers(&slapd, &redis, [redis.url(), redis.url()]);

    assert_eq!(asked(&nodes[0], 1), "action=DUNNO");
    assert_eq!(asked(&nodes[0], 2), "action=DUNNO");
    assert_eq!(asked(&nodes[1], 3), "action=DUNNO");
    let too_many = format!("action=451 4.7.1 {TOO_MANY}");
    let begun = now();
    wait_until("both have counted", Duration::from_secs(1), || {
        // The other's login was heard before. Asked before it has heard of all messages, a node would let the fourth
        // through, and say so from then on.
        nodes.iter().zip([2.0, 3.0]).all(|(node, all)| heard(node) >= all)
    });
    // Messages that would be too many are not counted.
    assert_eq!(nodes.each_ref().map(|node| asked(node, 4)), [&*too_many; 2]);
    println!("one too many at both nodes {:?} after the last one", begun.elapsed());
    assert_eq!(asked(&nodes[1], 5), too_many);
    assert_eq!(asked(&nodes[0], 1), "action=DUNNO", "it was let through before");

    nodes[1].kill9();
    nodes[1].start_again();
    wait_until("the restarted node counts again", PATIENCE, || asked(&nodes[1], 6) == too_many);
}
