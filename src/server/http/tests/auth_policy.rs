//! weakforced's documented behaviour, asked as its callers ask it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::config::throttle::{Action, Count, Per, Rule, Throttle as Settings};
use crate::identity::{Case, Domain, Login, LoginRules};
use crate::throttle::{Full, Outcome, Subject};

const CLIENT: &str = "192.0.2.9";

/// Names without a domain are planetexpress.com's.
pub(super) fn shield(throttle: &Arc<Throttle>) -> Shield {
    let rules = LoginRules {
        default_domain: Some(Domain::parse("planetexpress.com").unwrap()),
        case: Case::Fold,
        separator: "+".into(),
        alias_domains: BTreeMap::new(),
    };
    let changed = Arc::clone(throttle);
    Shield {
        throttle: Arc::clone(throttle),
        normalise: Arc::new(move |typed| {
            Some(Login::parse(typed.as_bytes(), &rules).ok()?.address.to_string())
        }),
        change: Arc::new(move |change| Box::pin(std::future::ready(apply(&changed, &change)))),
    }
}

fn apply(throttle: &Throttle, change: &ShieldChange) -> Result<bool, Full> {
    match change {
        ShieldChange::Add(entry) => {
            throttle.add_entries(std::slice::from_ref(entry)).map(|()| true)
        }
        ShieldChange::Remove(list, whom) => Ok(throttle.remove_entry(*list, whom)),
        ShieldChange::Reset { client, login } => {
            let subject =
                Subject { client: *client, login: login.as_deref(), ..Subject::default() };
            Ok(throttle.reset(&subject, clock::now()))
        }
    }
}

/// A door that serves this protocol, with these rules alone.
fn fixture<const N: usize>(rules: [(&str, Rule); N]) -> Fixture {
    let rule = rules.into_iter().map(|(name, rule)| (name.to_owned(), rule)).collect();
    let settings = Settings { rule, ..Settings::default() };
    let mut fixture = Fixture::serving(Serve::Policy);
    fixture.throttle = Arc::new(Throttle::new(&settings, [7; 32], clock::now()));
    fixture
}

fn rule(count: Count, per: Per, limit: u32) -> Rule {
    Rule { count, per, limit, action: Action::Deny, allowance: 0, ..Rule::default() }
}

impl Fixture {
    /// A command by POST; status and body.
    async fn post(&self, command: &str, body: &Value) -> (u16, Value) {
        let heard = self.send(&format!("/?command={command}"), body.to_string().as_bytes()).await;
        (heard.status, heard.json())
    }

    /// A command that must be obeyed.
    async fn obey(&self, command: &str, body: &Value) {
        assert_eq!(self.post(command, body).await, (200, json!({ "status": "ok" })), "{body}");
    }

    /// What `allow` answers.
    async fn allow(&self, login: &str, remote: &str) -> Value {
        self.allow_with(login, remote, json!({})).await
    }

    async fn allow_with(&self, login: &str, remote: &str, more: Value) -> Value {
        let mut body = json!({ "login": login, "remote": remote, "pwhash": "1234" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = self.post("allow", &body).await;
        assert_eq!(status, 200, "{answer}");
        assert!(answer["msg"].is_string() && answer["r_attrs"].is_object(), "{answer}");
        answer
    }

    async fn status(&self, login: &str, remote: &str) -> i64 {
        self.allow(login, remote).await["status"].as_i64().unwrap()
    }

    async fn report(&self, login: &str, remote: &str, pwhash: &str, more: Value) {
        let mut body =
            json!({ "login": login, "remote": remote, "pwhash": pwhash, "success": false });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.obey("report", &body).await;
    }

    async fn fail(&self, login: &str, remote: &str, pwhash: &str) {
        self.report(login, remote, pwhash, json!({})).await;
    }

    async fn stats_of(&self, key: Value) -> Value {
        let (status, answer) = self.post("getDBStats", &key).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

#[tokio::test]
async fn commands_are_named_in_the_path_or_in_the_query() {
    let fixture = fixture([]);
    let body = json!({ "login": "fry", "remote": CLIENT }).to_string();
    for path in
        ["/command/allow", "/?command=allow", "/policy?command=allow", "/policy?a=b&command=allow"]
    {
        let heard = fixture.send(path, body.as_bytes()).await;
        assert_eq!((heard.status, &*heard.body), (200, r#"{"status":0,"msg":"","r_attrs":{}}"#));
        assert_eq!(heard.field("content-type"), "application/json", "{path}");
    }
    for path in ["/?command=ping", "/command/ping", "/command/livez", "/command/readyz"] {
        let heard = fixture.get(path).await;
        assert_eq!((heard.status, &*heard.body), (200, r#"{"status":"ok"}"#), "{path}");
    }
}

#[tokio::test]
async fn what_is_no_command_is_not_found() {
    let fixture = fixture([]);
    for (method, path) in [
        ("POST", "/command/nonsense"),
        ("POST", "/policy"),
        ("POST", "/?command="),
        ("GET", "/command/allow"),
        ("POST", "/command/getBL"),
        ("GET", "/command/getBLEntry"),
        ("DELETE", "/command/delBLEntry"),
    ] {
        let heard = match method {
            "POST" => fixture.send(path, b"{}").await,
            _ => fixture.ask(&format!("{method} {path}"), &[]).await,
        };
        let said = r#"{"status":"failure","reason":"Not found"}"#;
        assert_eq!((heard.status, &*heard.body), (404, said), "{method} {path}");
    }
    assert_eq!(fixture.send("/", b"{}").await.status, 404);
    assert_eq!(Fixture::new().send("/command/allow", b"{}").await.status, 404);
}

#[tokio::test]
async fn mailcows_path_is_this_protocols_too_where_the_query_names_a_command() {
    let mut fixture = fixture([]);
    fixture.listen.serve = vec![Serve::Mailcow, Serve::Policy];
    let mailcow = br#"{"username":"fry","password":"x","real_rip":"","service":"imap"}"#;

    assert_eq!(fixture.status("fry", CLIENT).await, 0);
    assert_eq!(fixture.send("/", mailcow).await.body, r#"{"success":true}"#);
    assert_eq!(fixture.asked.lock().unwrap().len(), 1);

    fixture.listen.serve = vec![Serve::Mailcow];
    assert_eq!(fixture.send("/?command=allow", mailcow).await.body, r#"{"success":true}"#);
}

#[tokio::test]
async fn a_caller_without_the_token_is_told_in_weakforceds_words() {
    let mut fixture = fixture([]);
    fixture.listen.token = Secret::new("super");
    let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
    let [right, wrong, swapped] = ["wforce:super", "wforce:wrong", "super:wforce"].map(basic);
    for (name, value, status) in [
        ("X-None", "", 401),
        ("Authorization", &*wrong, 401),
        ("Authorization", &*swapped, 401),
        ("X-API-Key", "supe", 401),
        ("Authorization", &*right, 200),
        ("Authorization", "Bearer super", 200),
        ("X-API-Key", "super", 200),
    ] {
        for path in ["/?command=stats", "/command/stats"] {
            let heard = fixture.ask(&format!("GET {path}"), &[(name, value.as_bytes())]).await;
            assert_eq!(heard.status, status, "{name}: {value}");
            if status == 401 {
                assert_eq!(heard.body, r#"{"status":"failure","reason":"Unauthorized"}"#);
                assert_eq!(heard.field("www-authenticate"), "basic realm=\"wforce\"");
            }
        }
    }
    assert_eq!(fixture.send("/command/allow", b"{}").await.status, 401);
    assert_eq!(fixture.send("/command/nonsense", b"{}").await.status, 401);
    for open in ["/command/livez", "/command/readyz"] {
        assert_eq!(fixture.get(open).await.status, 200);
    }
    assert_eq!(fixture.get("/command/ping").await.status, 401);
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_never_quoted() {
    let fixture = fixture([]);
    for (command, body, status, reason) in [
        ("allow", "login=fry&pwhash=s3cret", 400, "body is not JSON: line 1, column 1"),
        ("report", "", 400, "body is not JSON: line 1, column 0"),
        ("allow", r#"["s3cret"]"#, 400, "body is not a JSON object"),
        ("allow", r#"{"login":{"s3cret":1}}"#, 500, "field login is not a string"),
        ("report", r#"{"login":"fry","pwhash":1234}"#, 500, "field pwhash is not a string"),
        ("allow", r#"{"remote":"s3cret"}"#, 500, "field remote is not an IP address"),
        ("reset", "{}", 400, "No ip, login or ja3 field supplied"),
        (
            "reset",
            r#"{"login":" s3cret"}"#,
            500,
            "field login is no login: see login.default_domain",
        ),
        ("getDBStats", r#"{"netmask":"s3cret"}"#, 500, "field netmask is not an IP network"),
        (
            "addBLEntry",
            r#"{"login":"fry","reason":"x"}"#,
            500,
            "Missing mandatory expire_secs field",
        ),
        ("addWLEntry", r#"{"login":"fry","expire_secs":1}"#, 500, "Missing mandatory reason field"),
        (
            "addBLEntry",
            r#"{"login":"fry","expire_secs":"10","reason":"x"}"#,
            500,
            "field expire_secs is not a whole number from 0 on",
        ),
        ("delBLEntry", r#"{"ip":"10.0.0.0/8"}"#, 500, "field ip is not an IP address"),
    ] {
        let heard = fixture.send(&format!("/command/{command}"), body.as_bytes()).await;
        let said = json!({ "status": "failure", "reason": reason });
        assert_eq!((heard.status, heard.json()), (status, said), "{command} {body}");
    }
}

#[tokio::test]
async fn a_body_may_come_in_chunks_and_is_bounded() {
    let fixture = fixture([]);
    let body =
        r#"{"login":"chunky","remote":"127.0.0.1","pwhash":"1234","success":"true","attrs":{}}"#;
    let (first, rest) = body.split_at(10);
    let head = "POST /?command=report HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunked =
        format!("{head}{:x}\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", first.len(), rest.len());

    let heard = fixture.exchange(chunked.as_bytes()).await;

    assert_eq!((heard.status, &*heard.body), (200, r#"{"status":"ok"}"#));
    let long = json!({ "login": "x".repeat(MAX_BODY_BYTES) });
    assert_eq!(fixture.post("allow", &long).await.0, 413);
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let fixture = fixture([]);
    let mut stream = fixture.connect(None);
    let body = json!({ "login": "fry", "remote": CLIENT }).to_string();
    let request = |more: &str| {
        format!(
            "POST /policy?command=allow HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let requests = request("").repeat(2) + &request("Connection: close\r\n");
    stream.write_all(requests.as_bytes()).await.unwrap();

    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();

    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.matches(r#"{"status":0,"#).count(), 3, "{text}");
}

#[tokio::test]
async fn wrong_passwords_are_counted_once_each_until_the_limit() {
    let fixture = fixture([("guesses", rule(Count::DistinctWrongPasswords, Per::LoginIp, 3))]);
    for _ in 0..20 {
        fixture.fail("fry", CLIENT, "0001").await;
    }
    fixture.fail("Fry@PlanetExpress.com", CLIENT, "0002").await;
    assert_eq!(fixture.status("fry", CLIENT).await, 0);

    fixture.fail("fry+news", CLIENT, "0003").await;

    let refused = fixture.allow("fry", CLIENT).await;
    assert_eq!(refused["status"], -1);
    assert_eq!(refused["msg"], "Too many wrong passwords; try again later");
    assert_eq!(refused["r_attrs"], json!({}));
    assert_eq!(fixture.status("fry", "192.0.2.10").await, 0);
    assert_eq!(fixture.status("leela", CLIENT).await, 0);
    let stats = fixture.stats_of(json!({ "login": "fry", "ip": CLIENT })).await;
    assert_eq!(stats["stats"], json!({ "guesses": { "count": 3, "limit": 3 } }));
    assert_eq!(stats["ip_login"], format!("{CLIENT}:fry@planetexpress.com"));
    assert_eq!((&stats["blacklisted"], &stats["wl_expire"]), (&json!(false), &json!("")));
}

#[tokio::test(start_paused = true)]
async fn a_count_ends_with_its_window() {
    let fixture = fixture([("failed", rule(Count::Failures, Per::Ip, 2))]);
    for pwhash in ["1", "2"] {
        fixture.fail("fry", CLIENT, pwhash).await;
    }
    assert_eq!(fixture.status("leela", CLIENT).await, -1);

    tokio::time::advance(Duration::from_secs(700)).await;

    assert_eq!(fixture.status("leela", CLIENT).await, 0);
}

#[tokio::test]
async fn many_addresses_for_one_login_are_counted() {
    let fixture = fixture([("addresses", rule(Count::DistinctIps, Per::Login, 12))]);
    for number in 0..12 {
        assert_eq!(fixture.status("fry", CLIENT).await, 0, "{number}");
        for _ in 0..3 {
            fixture.fail("fry", &format!("198.51.{number}.7"), "1234").await;
        }
    }

    assert_eq!(fixture.status("fry", CLIENT).await, -1);
    assert_eq!(fixture.status("leela", CLIENT).await, 0);
}

#[tokio::test]
async fn addresses_of_a_net_are_counted_together() {
    let fixture = fixture([("net", rule(Count::DistinctLogins, Per::Net, 5))]);
    for number in 0..5 {
        fixture.fail(&format!("v4-{number}"), &format!("192.0.2.{number}"), "1").await;
        fixture.fail(&format!("v6-{number}"), &format!("2001:db8::{number}"), "1").await;
    }

    for (remote, status) in [
        ("192.0.2.200", -1),
        ("::ffff:192.0.2.201", -1),
        ("192.0.3.1", 0),
        ("2001:db8::ffff:1", -1),
        ("2001:db8:0:1::1", 0),
    ] {
        assert_eq!(fixture.status("fry", remote).await, status, "{remote}");
    }
}

#[tokio::test]
async fn an_address_of_ipv4_within_ipv6_is_that_address() {
    let fixture = fixture([("ip", rule(Count::Failures, Per::Ip, 2))]);
    fixture.fail("fry", "::ffff:192.0.2.9", "1").await;
    fixture.fail("fry", "192.0.2.9", "2").await;

    for remote in ["192.0.2.9", "::ffff:192.0.2.9"] {
        assert_eq!(fixture.status("leela", remote).await, -1, "{remote}");
    }
    let told = fixture.stats_of(json!({ "ip": "::ffff:192.0.2.9" })).await;
    assert_eq!((&told["ip"], &told["stats"]["ip"]["count"]), (&json!(CLIENT), &json!(2)));
}

#[tokio::test]
async fn a_rule_delays_or_only_says_so() {
    let delay = Rule {
        action: Action::Delay,
        delay: Span(Duration::from_millis(2500)),
        ..rule(Count::Failures, Per::Ip, 2)
    };
    let log = Rule { action: Action::Log, ..rule(Count::Failures, Per::Ip, 1) };
    let fixture = fixture([("delay", delay), ("log", log)]);

    fixture.fail("fry", CLIENT, "1").await;
    let logged = fixture.allow("fry", CLIENT).await;
    fixture.fail("fry", CLIENT, "2").await;
    let delayed = fixture.allow("fry", CLIENT).await;

    assert_eq!(logged, json!({ "status": 0, "msg": "", "r_attrs": {} }));
    assert_eq!(delayed, json!({ "status": 3, "msg": "", "r_attrs": {} }));
    let metrics = fixture.metrics.encode();
    for (labels, times) in
        [(r#"rule="log",action="log""#, 2), (r#"rule="delay",action="delay""#, 1)]
    {
        let line = format!("gatepost_throttle_total{{{labels}}} {times}");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    let hits: Vec<_> = fixture.throttle.hits().into_iter().map(|hit| hit.rule).collect();
    assert!(hits.iter().any(|rule| **rule == *"delay") && hits.len() == 2, "{hits:?}");
}

/// Whose fault a failure is, in Dovecot 2.4's words; 2.3 says nothing.
#[tokio::test]
async fn reports_count_by_what_came_of_the_login() {
    for (more, by_login, by_ip) in [
        (json!({}), 1, 1),
        (json!({ "fail_type": "" }), 1, 1),
        (json!({ "fail_type": "credentials" }), 1, 1),
        (json!({ "fail_type": "account" }), 1, 1),
        (json!({ "fail_type": "moon" }), 1, 1),
        (json!({ "success": "true" }), 1, 1),
        (json!({ "pwhash": "" }), 1, 1),
        (json!({ "fail_type": "disabled" }), 0, 1),
        (json!({ "fail_type": "expired" }), 0, 0),
        (json!({ "fail_type": "internal" }), 0, 0),
        (json!({ "fail_type": "policy" }), 0, 0),
        (json!({ "policy_reject": true }), 0, 0),
        (json!({ "success": true }), 0, 0),
    ] {
        let fixture = fixture([
            ("login", rule(Count::Failures, Per::Login, 9)),
            ("ip", rule(Count::Failures, Per::Ip, 9)),
        ]);

        fixture.report("fry", CLIENT, "1234", more.clone()).await;

        let stats = fixture.stats_of(json!({ "login": "fry", "ip": CLIENT })).await;
        let count = |rule: &str| stats["stats"][rule]["count"].as_u64().unwrap();
        assert_eq!((count("login"), count("ip")), (by_login, by_ip), "{more}");
    }
}

#[tokio::test]
async fn reports_and_our_own_doors_are_counted_together() {
    let fixture = fixture([("login", rule(Count::Failures, Per::Login, 2))]);
    let subject = crate::throttle::Subject {
        client: Some("203.0.113.5".parse().unwrap()),
        login: Some("fry@planetexpress.com"),
        ..Default::default()
    };
    fixture.throttle.learn(&subject, Outcome::Failed(Some(1)), clock::now());
    assert_eq!(fixture.status("fry", CLIENT).await, 0);

    fixture.fail("fry", CLIENT, "1234").await;

    assert_eq!(fixture.status("fry", CLIENT).await, -1);
}

/// Dovecots whose users have no domain, beside a Gatepost that was told of none: addresses are judged all the same.
#[tokio::test]
async fn what_is_no_login_counts_for_its_address() {
    let fixture = fixture([("ip", rule(Count::DistinctWrongPasswords, Per::Ip, 3))]);
    for (login, pwhash) in [("a b@c@", "1"), ("a b@c@", "1"), ("\u{1}x", "1"), ("", "1")] {
        fixture.fail(login, CLIENT, pwhash).await;
    }

    assert_eq!(fixture.status("leela", CLIENT).await, -1);
    assert_eq!(fixture.status("\u{1}x", "192.0.2.10").await, 0);
    assert_eq!(fixture.status("fry", "").await, 0);
}

#[tokio::test]
async fn lists_speak_of_those_they_name() {
    let ja3 = |ja3: &str| json!({ "attrs": { "ja3": ja3 } });
    let whoms = [
        (json!({ "ip": "192.0.2.9" }), "ip", "192.0.2.9/32"),
        (json!({ "ip": "2001:db8::9" }), "ip", "2001:db8::9/128"),
        (json!({ "netmask": "198.51.100.77/24" }), "ip", "198.51.100.0/24"),
        (json!({ "login": "Fry" }), "login", "fry@planetexpress.com"),
        (json!({ "ja3": "03456" }), "ja3", "03456"),
        (
            json!({ "ip": "203.0.113.1", "login": "amy" }),
            "iplogin",
            "203.0.113.1:amy@planetexpress.com",
        ),
        (json!({ "ip": "203.0.113.1", "ja3": "0a" }), "ipja3", "203.0.113.1:0a"),
    ];
    let attempts = [
        ("leela", "192.0.2.9", json!({})),
        ("leela", "2001:db8::9", json!({})),
        ("leela", "198.51.100.1", json!({})),
        ("fry+x", "10.0.0.1", json!({})),
        ("leela", "10.0.0.1", ja3("03456")),
        ("amy", "203.0.113.1", json!({})),
        ("leela", "203.0.113.1", json!({ "ja3": "0a" })),
    ];
    let others = [
        ("leela", "192.0.2.8", json!({})),
        ("leela", "198.51.101.1", json!({})),
        ("amy", "203.0.113.2", json!({})),
        ("leela", "203.0.113.2", ja3("0a")),
        ("leela", "203.0.113.1", ja3("03457")),
    ];
    for (place, (key, kind, told)) in whoms.iter().enumerate() {
        let fixture = fixture([]);
        let mut entry = key.clone();
        entry["expire_secs"] = json!(3600);
        entry["reason"] = json!("test blacklist");
        fixture.obey("addBLEntry", &entry).await;

        for (number, (login, remote, more)) in attempts.iter().chain(&others).enumerate() {
            let answer = fixture.allow_with(login, remote, more.clone()).await;
            let is_listed = number == place;
            assert_eq!(answer["status"], if is_listed { -1 } else { 0 }, "{key} {login} {remote}");
            if is_listed {
                let attrs = &answer["r_attrs"];
                assert_eq!((&attrs["key"], &attrs["blacklisted"]), (&json!(kind), &json!("1")));
                assert_eq!(attrs["reason"], "test blacklist");
                assert!(!answer["msg"].as_str().unwrap().contains("test"), "{answer}");
            }
        }
        let list = fixture.get("/?command=getBL").await.json();
        let [listed] = list["bl_entries"].as_array().unwrap().as_slice() else { panic!("{list}") };
        assert_eq!((&listed[*kind], &listed["reason"]), (&json!(told), &json!("test blacklist")));
        assert_eq!(listed["expiration"].as_str().unwrap().len(), "2002-Jan-01 10:00:01".len());
        let stats = fixture.stats_of(key.clone()).await;
        assert_eq!((&stats["blacklisted"], &stats["whitelisted"]), (&json!(true), &json!(false)));
        assert_eq!(
            (&stats["bl_reason"], &stats["bl_expire"]),
            (&listed["reason"], &listed["expiration"])
        );

        fixture.obey("delBLEntry", key).await;
        fixture.obey("delBLEntry", key).await;

        let (login, remote, more) = &attempts[place];
        assert_eq!(fixture.allow_with(login, remote, more.clone()).await["status"], 0);
        assert_eq!(fixture.get("/?command=getBL").await.body, r#"{"bl_entries":[]}"#);
    }
}

#[tokio::test]
async fn the_white_list_goes_before_the_black_one_and_before_the_rules() {
    let fixture = fixture([("ip", rule(Count::Failures, Per::Ip, 1))]);
    fixture.fail("fry", CLIENT, "1").await;
    fixture.obey("addBLEntry", &json!({ "login": "fry", "expire_secs": 60, "reason": "b" })).await;
    assert_eq!(fixture.status("fry", CLIENT).await, -1);

    fixture
        .obey("addWLEntry", &json!({ "netmask": "192.0.2.0/24", "expire_secs": 60, "reason": "w" }))
        .await;

    let answer = fixture.allow("fry", CLIENT).await;
    assert_eq!((&answer["status"], &answer["msg"]), (&json!(0), &json!("")));
    assert_eq!(answer["r_attrs"]["whitelisted"], "1");
    assert_eq!(
        (&answer["r_attrs"]["key"], &answer["r_attrs"]["reason"]),
        (&json!("ip"), &json!("w"))
    );
    let list = fixture.get("/command/getWL").await.json();
    assert_eq!(list["wl_entries"][0]["ip"], "192.0.2.0/24");
    assert_eq!(fixture.stats_of(json!({ "ip": CLIENT })).await["wl_reason"], "w");

    fixture.obey("delWLEntry", &json!({ "netmask": "192.0.2.0/24" })).await;
    assert_eq!(fixture.status("fry", CLIENT).await, -1);
}

#[tokio::test]
async fn an_entry_ends_at_its_time() {
    let fixture = fixture([]);
    for seconds in [0, 1] {
        let entry = json!({ "ip": CLIENT, "expire_secs": seconds, "reason": "x" });
        fixture.obey("addBLEntry", &entry).await;
        assert_eq!(fixture.status("fry", CLIENT).await, -seconds);
    }

    std::thread::sleep(Duration::from_millis(1100));

    assert_eq!(fixture.status("fry", CLIENT).await, 0);
    assert_eq!(fixture.get("/?command=getBL").await.body, r#"{"bl_entries":[]}"#);
    let forever = json!({ "ip": CLIENT, "expire_secs": u64::MAX, "reason": "x" });
    fixture.obey("addBLEntry", &forever).await;
    assert_eq!(fixture.status("fry", CLIENT).await, -1);
}

#[tokio::test]
async fn a_reset_forgets_counts_and_the_entry_that_refuses() {
    let rules = || {
        fixture([
            ("login", rule(Count::Failures, Per::Login, 2)),
            ("ip", rule(Count::Failures, Per::Ip, 2)),
        ])
    };
    for (reset, fry_elsewhere, leela_here) in [
        (json!({ "login": "fry" }), 0, -1),
        (json!({ "ip": CLIENT }), -1, 0),
        (json!({ "login": "fry", "ip": CLIENT }), 0, 0),
    ] {
        let fixture = rules();
        for pwhash in ["1", "2"] {
            fixture.fail("fry", CLIENT, pwhash).await;
        }
        let mut entry = reset.clone();
        entry["expire_secs"] = json!(60);
        entry["reason"] = json!("x");
        fixture.obey("addBLEntry", &entry).await;

        fixture.obey("reset", &reset).await;

        assert_eq!(fixture.status("fry", "198.51.100.1").await, fry_elsewhere, "{reset}");
        assert_eq!(fixture.status("leela", CLIENT).await, leela_here, "{reset}");
        assert_eq!(fixture.get("/command/getBL").await.body, r#"{"bl_entries":[]}"#);
    }
    let fixture = rules();
    fixture.obey("addBLEntry", &json!({ "ja3": "03", "expire_secs": 60, "reason": "x" })).await;
    fixture.obey("reset", &json!({ "ja3": "03" })).await;
    assert_eq!(fixture.allow_with("fry", CLIENT, json!({ "ja3": "03" })).await["status"], 0);
}

#[tokio::test]
async fn a_shield_that_is_switched_off_lets_everybody_go_on() {
    let mut fixture = fixture([]);
    let settings = Settings { enabled: false, ..Settings::default() };
    fixture.throttle = Arc::new(Throttle::new(&settings, [7; 32], clock::now()));
    fixture.obey("addBLEntry", &json!({ "ip": CLIENT, "expire_secs": 60, "reason": "x" })).await;
    for number in 0..100 {
        fixture.fail("fry", CLIENT, &format!("{number:04x}")).await;
    }

    assert_eq!(fixture.status("fry", CLIENT).await, 0);
}

#[tokio::test]
async fn stats_are_those_of_this_door() {
    let fixture = fixture([("ip", rule(Count::Failures, Per::Ip, 1))]);
    let door = fixture.door();
    let ask = async |method: &str, command: &str, body: Value| {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = format!(
            "{method} /command/{command} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let peer = Peer { address: None, ..Peer::default() };
        tokio::spawn(serve(ours, peer, Arc::clone(&door), CancellationToken::new()));
        theirs.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).await.unwrap();
        Heard::parse(&String::from_utf8(bytes).unwrap()).json()
    };
    let fry = json!({ "login": "fry", "remote": CLIENT, "pwhash": "1" });
    ask("POST", "allow", fry.clone()).await;
    ask("POST", "report", fry.clone()).await;
    ask("POST", "allow", fry.clone()).await;
    ask("POST", "addBLEntry", json!({ "login": "fry", "expire_secs": 9, "reason": "x" })).await;
    ask("POST", "allow", fry).await;

    let stats = ask("GET", "stats", Value::Null).await;

    assert_eq!(
        (&stats["reports"], &stats["allows"], &stats["denieds"]),
        (&json!(1), &json!(3), &json!(2))
    );
    let commands = &stats["commandstats"];
    for (command, count) in [
        ("allow", 3),
        ("allow_allowed", 1),
        ("allow_blacklisted", 1),
        ("allow_denied", 2),
        ("addBLEntry", 1),
        ("stats", 1),
        ("reset", 0),
    ] {
        assert_eq!(commands[command], count, "{command}");
    }
    let all = |kind: &str| {
        let spans = stats["perfstats"].as_object().unwrap().iter();
        spans.filter(|(name, _)| name.starts_with(kind)).map(|(_, it)| it.as_u64().unwrap()).sum()
    };
    assert_eq!((all("WTW_"), all("WTR_")), (5_u64, 5_u64));
    assert_eq!(stats["customstats"], json!({}));
    assert!(stats["user-msec"].as_u64().unwrap() + stats["sys-msec"].as_u64().unwrap() > 0);
    assert!(stats["uptime"].is_u64());
}

#[tokio::test]
async fn one_list_is_made_at_a_time() {
    let fixture = fixture([]);
    let door = fixture.door();
    let turn = Arc::clone(&door.list).lock_owned().await;
    let (ours, mut theirs) = tokio::io::duplex(1024);
    tokio::spawn(serve(ours, Peer::default(), Arc::clone(&door), CancellationToken::new()));
    theirs
        .write_all(b"GET /command/getBL HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    theirs.read_to_end(&mut bytes).await.unwrap();
    drop(turn);

    assert!(bytes.starts_with(b"HTTP/1.1 503"), "{}", bytes.escape_ascii());
}
