//! The guessing shield at the doors: what its rules and lists do to attempts, and what `gatepost policy` tells of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clients::{AuthClient, Wire};
use crate::support::gatepost::{Answer, Configuration, Gatepost};
use crate::support::slapd::{Slapd, mail_of, password_of};
use crate::support::{now, pass_time, printed, program, scratch, wait_until};

const GUESSER: &str = "192.0.2.9";
const ELSEWHERE: &str = "198.51.100.1";

const DENY_AT_3: &str = "count = \"distinct-wrong-passwords\"\nper = \"login+net\"\nlimit = 3\nwindow = \"1h\"\n\
                         action = \"deny\"";
const DELAY_AT_2: &str = "count = \"failures\"\nper = \"ip\"\nlimit = 2\nwindow = \"1h\"\naction = \"delay\"\n\
                          delay = \"1s\"\nallowance = 0";

/// The shield with these rules alone.
fn configured(slapd: &Slapd, rules: &[(&str, &str)]) -> Configuration {
    let mut configuration = Configuration::new(slapd);
    configuration.set("throttle", "enabled = true");
    // The directory's own patience is not what is tested.
    configuration.set("directory.planet.auth", "wrong_binds = \"1000/1m\"");
    for name in gatepost::config::throttle::built_in().keys() {
        configuration.set(&format!("throttle.rule.{name}"), "limit = 0");
    }
    for (name, rule) in rules {
        configuration.set(&format!("throttle.rule.{name}"), rule);
    }
    configuration
}

fn start(rules: &[(&str, &str)]) -> (Gatepost, Slapd) {
    let slapd = Slapd::start();
    (configured(&slapd, rules).start(), slapd)
}

fn login(gatepost: &Gatepost, client: &str, uid: &str, password: &str) -> Answer {
    let body = json!({
        "username": mail_of(uid), "password": password, "service": "imap", "client_ip": client,
    });
    gatepost.post_login(body.to_string().as_bytes())
}

#[track_caller]
fn refused(answer: &Answer, reason: &str) {
    assert_eq!((answer.status, answer.reason()), (403, reason), "{answer:?}");
}

#[track_caller]
fn accepted(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// The JSON of a command that must succeed.
#[track_caller]
fn asked(gatepost: &Gatepost, arguments: &[&str]) -> Value {
    let output = gatepost.run(&[&["--json", "policy"], arguments].concat(), "");
    assert!(output.status.success(), "{arguments:?}: {}", printed(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The exit code of a command, and what it said.
fn said(gatepost: &Gatepost, arguments: &[&str]) -> (i32, String) {
    let output = gatepost.run(&[&["policy"], arguments].concat(), "");
    (output.status.code().unwrap(), printed(&output))
}

/// Lines of the journal that hold all these texts, once all are written.
fn decisions(gatepost: &Gatepost, all: usize, texts: &[&str]) -> usize {
    let is_decision =
        |line: &&str| line.contains(" login verdict=") || line.contains("\"event\":\"login\"");
    wait_until("the journal is written", Duration::from_secs(5), || {
        gatepost.log().lines().filter(is_decision).count() >= all
    });
    let log = gatepost.log();
    let holds = |line: &&str| texts.iter().all(|text| line.contains(text));
    log.lines().filter(is_decision).filter(holds).count()
}

#[test]
fn who_is_denied_costs_the_directory_nothing_at_any_door() {
    let (gatepost, slapd) = start(&[("guessing", DENY_AT_3)]);
    for number in 0..3 {
        refused(&login(&gatepost, GUESSER, "fry", &format!("guess {number}")), "wrong-password");
    }
    assert_eq!(slapd.binds_as("fry"), 3);

    for number in 3..10 {
        refused(&login(&gatepost, GUESSER, "fry", &format!("guess {number}")), "throttled");
    }
    // The right one too, from the whole net, and over the socket of the mail servers.
    refused(&login(&gatepost, "192.0.2.200", "fry", &password_of("fry")), "throttled");
    let socket = gatepost.configuration.auth_socket();
    let mut client = AuthClient::connect(Wire::Unix(&socket), 2);
    let fields = format!("service=imap\trip={GUESSER}");
    for password in ["guess 11".to_owned(), password_of("fry")] {
        let answer = client.login(&fields, mail_of("fry"), password);
        assert!(answer.starts_with("FAIL\t1"), "{answer:?}");
        assert!(!answer.contains("code=") && !answer.contains("reason="), "{answer:?}");
    }
    assert_eq!(slapd.binds_as("fry"), 3, "somebody who is denied was asked about");

    // Nobody else is touched.
    accepted(&login(&gatepost, ELSEWHERE, "fry", &password_of("fry")));
    accepted(&login(&gatepost, GUESSER, "leela", &password_of("leela")));
    let answer = client.login(&fields, mail_of("leela"), password_of("leela"));
    assert!(answer.starts_with("OK\t1"), "{answer:?}");
    assert_eq!(decisions(&gatepost, 16, &["reason=throttled", " throttle=guessing"]), 10);
    assert_eq!(decisions(&gatepost, 16, &["reason=throttled", " guess="]), 0);
    let labels = ["rule=\"guessing\"", "action=\"deny\""];
    let counted = gatepost.metric("gatepost_throttle_total", &labels);
    assert!((counted - 10.0).abs() < 0.5, "{counted}");
}

#[test]
fn who_is_delayed_waits_and_is_judged_then() {
    let (gatepost, slapd) = start(&[("slow", DELAY_AT_2)]);
    let timed = |password: &str| {
        let began = now();
        let answer = login(&gatepost, GUESSER, "fry", password);
        (answer, began.elapsed())
    };
    for number in 0..2 {
        let (answer, took) = timed(&format!("guess {number}"));
        refused(&answer, "wrong-password");
        assert!(took < Duration::from_millis(900), "{took:?}");
    }

    std::thread::scope(|scope| {
        let waits = scope.spawn(|| timed("guess 2"));
        pass_time(Duration::from_millis(100));
        // Nobody else waits meanwhile.
        let began = now();
        accepted(&login(&gatepost, ELSEWHERE, "leela", &password_of("leela")));
        assert!(began.elapsed() < Duration::from_millis(800), "{:?}", began.elapsed());
        let (answer, took) = waits.join().unwrap();
        refused(&answer, "wrong-password");
        assert!(took >= Duration::from_secs(1), "{took:?}");
    });
    let (answer, took) = timed(&password_of("fry"));
    accepted(&answer);
    assert!(took >= Duration::from_secs(1), "{took:?}");
    // What memory could answer waits as well, of somebody who was never here before.
    let socket = gatepost.configuration.auth_socket();
    let mut client = AuthClient::connect(Wire::Unix(&socket), 2);
    let began = now();
    let fields = format!("service=imap\trip={GUESSER}");
    let answer = client.login(&fields, mail_of("leela"), password_of("leela"));
    assert!(answer.starts_with("OK\t1"), "{answer:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    // Who got in from there before does not.
    let (answer, took) = timed(&password_of("fry"));
    accepted(&answer);
    assert!(took < Duration::from_millis(900), "{took:?}");
    assert_eq!(slapd.binds_as("fry"), 4);
    assert_eq!(decisions(&gatepost, 7, &[" throttle=slow"]), 3);
}

#[test]
fn a_rule_that_logs_says_so_and_lets_everybody_go_on() {
    let rule = DENY_AT_3.replace("deny", "log");
    let (gatepost, slapd) = start(&[("rehearsal", &rule)]);
    for number in 0..10 {
        refused(&login(&gatepost, GUESSER, "fry", &format!("guess {number}")), "wrong-password");
    }
    accepted(&login(&gatepost, GUESSER, "fry", &password_of("fry")));

    assert_eq!(slapd.binds_as("fry"), 11);
    assert_eq!(decisions(&gatepost, 11, &[" throttle=rehearsal"]), 8);
    let shown = asked(&gatepost, &["list"]);
    assert_eq!(shown["acted"][0]["action"], "log");
    assert_eq!(shown["acted"][0]["times"], 8);
}

#[test]
fn a_session_that_fails_too_often_is_over() {
    let rule = "count = \"failures\"\nper = \"session\"\nlimit = 3\naction = \"deny\"";
    let (gatepost, slapd) = start(&[("session", rule)]);
    let socket = gatepost.configuration.auth_socket();
    let mut client = AuthClient::connect(Wire::Unix(&socket), 2);
    let mut attempt = |session: &str, uid: &str, password: &str| {
        let fields = format!("service=imap\trip={GUESSER}\tsession={session}");
        client.login(&fields, mail_of(uid), password)
    };
    for uid in ["fry", "leela", "bender"] {
        let answer = attempt("one", uid, "wrong");
        assert!(answer.starts_with("FAIL"), "{answer:?}");
    }
    assert_eq!(slapd.binds_of_people(), 3);

    assert!(attempt("one", "hermes", &password_of("hermes")).starts_with("FAIL"));
    assert!(attempt("two", "hermes", &password_of("hermes")).starts_with("OK"));

    assert_eq!(decisions(&gatepost, 5, &["reason=throttled", " throttle=session"]), 1);
}

#[test]
fn the_lists_win_over_the_rules_until_their_entries_end() {
    let slapd = Slapd::start();
    let mut configuration = configured(&slapd, &[("guessing", DENY_AT_3)]);
    configuration.add("throttle", "deny = [\"203.0.113.0/24\"]\nallow = [\"203.0.113.7\"]");
    let gatepost = configuration.start();
    let right = |client: &str| login(&gatepost, client, "fry", &password_of("fry"));
    refused(&right("203.0.113.9"), "throttled");
    accepted(&right("203.0.113.7"));

    // By net, and a narrower one that is allowed.
    let made =
        asked(&gatepost, &["deny", "198.51.100.77/24", "--for", "1h", "--reason", "a \"botnet\""]);
    assert_eq!((&made["kind"], &made["whom"]), (&json!("netmask"), &json!("198.51.100.0/24")));
    refused(&right(ELSEWHERE), "throttled");
    asked(&gatepost, &["allow", ELSEWHERE]);
    accepted(&right(ELSEWHERE));
    refused(&right("198.51.100.2"), "throttled");
    // By login, and by login at one address.
    asked(&gatepost, &["deny", "LEELA@planetexpress.com"]);
    refused(&login(&gatepost, "10.0.0.1", "leela", &password_of("leela")), "throttled");
    asked(&gatepost, &["deny", "fry@planetexpress.com", "10.0.0.1"]);
    refused(&right("10.0.0.1"), "throttled");
    accepted(&right("10.0.0.2"));
    assert_eq!(decisions(&gatepost, 8, &["reason=throttled", " throttle=list:deny"]), 5);

    let shown = asked(&gatepost, &["list"]);
    let entries: Vec<(&str, &str)> = shown["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["list"].as_str().unwrap(), entry["whom"].as_str().unwrap()))
        .collect();
    assert_eq!(
        entries,
        [
            ("allow", "198.51.100.1"),
            ("deny", "198.51.100.0/24"),
            ("deny", "leela@planetexpress.com"),
            ("deny", "10.0.0.1 fry@planetexpress.com"),
        ]
    );
    let left = shown["entries"][1]["seconds_left"].as_u64().unwrap();
    assert!((3500..=3600).contains(&left), "{left}");
    let (_, text) = said(&gatepost, &["list"]);
    assert!(text.contains("reason=\"a \\\"botnet\\\"\""), "{text}");

    // Taken out again; what stands in the configuration stays.
    assert_eq!(said(&gatepost, &["remove", "deny", "10.0.0.1", "fry@planetexpress.com"]).0, 0);
    accepted(&right("10.0.0.1"));
    let (code, text) = said(&gatepost, &["remove", "deny", "10.0.0.1", "fry@planetexpress.com"]);
    assert_eq!(code, 8, "{text}");
    let (code, text) = said(&gatepost, &["remove", "deny", "203.0.113.0/24"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("throttle.deny"), "{text}");
    for wrong in [
        &["deny", "192.0.2.0/24", "fry@planetexpress.com"][..],
        &["deny", "not an address"],
        &["allow", GUESSER, "--for", "500d"],
        &["allow", GUESSER, "--reason", "two\nlines"],
    ] {
        let (code, text) = said(&gatepost, wrong);
        assert_eq!(code, 2, "{wrong:?}: {text}");
    }

    // An entry ends by itself.
    asked(&gatepost, &["deny", "10.0.0.3", "--for", "2s"]);
    refused(&right("10.0.0.3"), "throttled");
    wait_until("the entry is over", Duration::from_secs(10), || right("10.0.0.3").status == 200);
}

#[test]
fn what_is_counted_is_shown_and_forgotten_and_outlives_a_reload() {
    let slapd = Slapd::start();
    let mut gatepost = configured(&slapd, &[("guessing", DENY_AT_3), ("slow", DELAY_AT_2)]).start();
    accepted(&login(&gatepost, ELSEWHERE, "fry", &password_of("fry")));
    for number in 0..2 {
        refused(&login(&gatepost, GUESSER, "fry", &format!("guess {number}")), "wrong-password");
    }

    let shown = asked(&gatepost, &["show", GUESSER, "Fry@planetexpress.com"]);
    assert_eq!((&shown["action"], &shown["because"]), (&json!("delay"), &json!("slow")));
    assert_eq!((&shown["known"], &shown["people_from_net"]), (&json!(false), &json!(0)));
    assert_eq!(
        shown["rules"],
        json!([
            {"rule": "guessing", "action": "deny", "count": 2, "limit": 3, "acts": false},
            {"rule": "slow", "action": "delay", "count": 2, "limit": 2, "acts": true},
        ])
    );
    let elsewhere = asked(&gatepost, &["show", ELSEWHERE, "fry@planetexpress.com"]);
    assert_eq!((&elsewhere["known"], &elsewhere["people_from_address"]), (&json!(true), &json!(1)));
    assert_eq!(elsewhere["rules"][0]["limit"], 6, "twice as many where they got in");
    let (_, text) = said(&gatepost, &["show", GUESSER, "fry@planetexpress.com"]);
    for part in ["now       delay, by slow", "known     no", "slow      delay   2      2      acts"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }

    // A reload keeps the counts; the limit of the new file holds.
    gatepost.configuration.change("throttle.rule.slow", "limit", "9");
    gatepost.configuration.write();
    let reload = gatepost.run(&["reload"], "");
    assert!(reload.status.success(), "{}", printed(&reload));
    refused(&login(&gatepost, GUESSER, "fry", "guess 2"), "wrong-password");
    refused(&login(&gatepost, GUESSER, "fry", "guess 3"), "throttled");
    let listed = asked(&gatepost, &["list"]);
    assert_eq!(listed["acted"][0]["whom"], "fry@planetexpress.com from 192.0.2.0/24");
    assert_eq!(
        ["rule", "action", "count", "limit", "times"].map(|key| listed["acted"][0][key].clone()),
        [json!("guessing"), json!("deny"), json!(3), json!(3), json!(1)]
    );

    // explain and login test say it too, and who is denied would not get in.
    let name = mail_of("fry");
    let explained = gatepost.run(&["explain", &name, "--client", GUESSER], "");
    let text = printed(&explained);
    assert_eq!(explained.status.code(), Some(7), "{text}");
    assert!(text.contains("shield     deny, by guessing; guessing 3 of 3, slow 3 of 9"), "{text}");
    assert!(text.contains("=> refuse: throttled"), "{text}");
    let arguments = ["login", "test", &name, "--client", ELSEWHERE];
    let tested = gatepost.run(&arguments, &password_of("fry"));
    let text = printed(&tested);
    assert_eq!(tested.status.code(), Some(0), "{text}");
    assert!(text.contains("shield     go; nothing is counted"), "{text}");

    // A login alone is forgotten where a rule acted on it, and nothing else.
    assert_eq!(said(&gatepost, &["reset", &name]), (0, "forgotten\n".into()));
    assert_eq!(said(&gatepost, &["reset", &name]), (0, "nothing was counted\n".into()));
    let shown = asked(&gatepost, &["show", GUESSER, &name]);
    assert_eq!([&shown["rules"][0]["count"], &shown["rules"][1]["count"]], [&json!(0), &json!(3)]);
    accepted(&login(&gatepost, GUESSER, "fry", &password_of("fry")));
    assert_eq!(asked(&gatepost, &["reset", GUESSER]), json!(true));
    let shown = asked(&gatepost, &["show", GUESSER]);
    assert_eq!(shown["rules"][0]["count"], 0);
    for wrong in [&["show", "192.0.2.0/24"][..], &["show", "fry", "leela"], &["reset", " blank"]] {
        let (code, text) = said(&gatepost, wrong);
        assert_eq!(code, 2, "{wrong:?}: {text}");
    }

    gatepost.stop();
    let (code, text) = said(&gatepost, &["show", GUESSER]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no daemon is listening"), "{text}");
    let explained = printed(&gatepost.run(&["explain", &name], ""));
    assert!(explained.contains("shield     not known: no daemon is listening"), "{explained}");
    gatepost.start_again();
}

/// Rule, whom, action and how often.
type Acts = BTreeSet<(String, String, String, u64)>;

fn acts(rows: &Value) -> Acts {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let act = |row: &Value| {
        let times = row["times"].as_u64().unwrap();
        (text(row, "rule"), text(row, "whom"), text(row, "action"), times)
    };
    rows.as_array().unwrap().iter().map(act).collect()
}

/// Guessers of several kinds, and honest people among them; how many attempts that is.
fn a_bad_day(gatepost: &Gatepost) -> usize {
    let mut attempts = 0;
    let mut try_one = |client: &str, uid: &str, password: &str| {
        attempts += 1;
        login(gatepost, client, uid, password)
    };
    accepted(&try_one(ELSEWHERE, "fry", &password_of("fry")));
    for number in 0..5 {
        try_one(GUESSER, "fry", &format!("guess {number}"));
        // One password again and again is one.
        try_one("2001:db8::9", "leela", "again");
        accepted(&try_one("10.0.0.1", "professor", &password_of("professor")));
    }
    for uid in ["bender", "hermes", "zoidberg", "nobody"] {
        try_one("203.0.113.5", uid, "spring");
    }
    for name in [" blank", "x\" client=198.51.100.9 \"", "no\u{1}body@planetexpress.com"] {
        attempts += 1;
        let body = json!({
            "username": name, "password": "wrong", "service": "imap", "client_ip": "203.0.113.77",
        });
        gatepost.post_login(body.to_string().as_bytes());
    }
    // An honest person in a bad neighbourhood.
    attempts += 1;
    login(gatepost, "203.0.113.200", "bender", &password_of("bender"));
    let socket = gatepost.configuration.auth_socket();
    let mut client = AuthClient::connect(Wire::Unix(&socket), 2);
    for number in 0..4 {
        attempts += 1;
        let fields = "service=smtp\trip=10.9.9.9\tsession=s+/1=";
        client.login(fields, mail_of("hermes"), format!("guess {number}"));
    }
    attempts
}

const BAD_DAY: [(&str, &str); 4] = [
    ("guessing", DENY_AT_3),
    (
        "spraying",
        "count = \"distinct-logins\"\nper = \"net\"\nlimit = 4\nwindow = \"1h\"\naction = \"delay\"\ndelay = \"100ms\"",
    ),
    ("session", "count = \"failures\"\nper = \"session\"\nlimit = 2\naction = \"log\""),
    ("busy", "count = \"attempts\"\nper = \"ip\"\nlimit = 4\nwindow = \"1h\"\naction = \"log\""),
];

#[test]
fn a_replay_of_the_journal_finds_what_the_daemon_did() {
    for format in ["text", "json"] {
        let slapd = Slapd::start();
        let mut configuration = configured(&slapd, &BAD_DAY);
        configuration.add("log", &format!("format = {format:?}"));
        let mut gatepost = configuration.start();
        let attempts = a_bad_day(&gatepost);
        decisions(&gatepost, attempts, &[]);
        let lived = acts(&asked(&gatepost, &["list"])["acted"]);
        let rules: BTreeSet<&str> = lived.iter().map(|act| act.0.as_str()).collect();
        assert_eq!(rules.len(), 4, "{lived:?}");
        gatepost.stop();

        // Without a daemon, from the file and from standard input.
        let log = gatepost.configuration.path("gatepost.log");
        let replayed = asked(&gatepost, &["replay", log.to_str().unwrap()]);
        let arguments = ["--json", "policy", "replay", "-"];
        let piped = gatepost.run(&arguments, &gatepost.log());
        assert_eq!(replayed, serde_json::from_slice::<Value>(&piped.stdout).unwrap());

        assert_eq!(acts(&replayed["rows"]), lived, "{format}");
        assert_eq!(replayed["attempts"].as_u64().unwrap(), attempts as u64);
        assert_eq!(replayed["unreadable_lines"], 0);
        assert!(replayed["other_lines"].as_u64().unwrap() > 0, "{replayed}");
        assert_eq!((&replayed["denied"], &replayed["refused_then"]), (&json!(3), &json!(3)));
        gatepost.start_again();
    }
}

#[test]
fn a_replay_against_other_rules_shows_their_false_alarms_first() {
    // What really happened: nothing but a journal, the shield switched off.
    let slapd = Slapd::start();
    let mut configuration = configured(&slapd, &[]);
    configuration.change("throttle", "enabled", "false");
    let gatepost = configuration.start();
    let attempts = a_bad_day(&gatepost);
    decisions(&gatepost, attempts, &[]);
    let log = gatepost.configuration.path("gatepost.log");
    let directory = scratch(Path::new("/tmp"));
    let other = directory.path().join("other.toml");
    let text = fs::read_to_string(gatepost.configuration.path("gatepost.toml")).unwrap();
    let stern = "[throttle.rule.stern]\ncount = \"failures\"\nper = \"net\"\nlimit = 1\nwindow = \"1h\"\n\
                 action = \"deny\"\nallowance = 0\n";
    fs::write(&other, format!("{text}\n{stern}")).unwrap();

    let mut replay = program(env!("CARGO_BIN_EXE_gatepost"), "gatepost");
    replay.args(["policy", "replay"]).arg(&log).arg("--config").arg(&other);
    let output = replay.output().unwrap();
    let said = printed(&output);

    assert!(output.status.success(), "{said}");
    let rows: Vec<&str> = said.lines().filter(|line| line.contains(" stern ")).collect();
    // bender got in from a net where others had guessed.
    assert!(rows[0].ends_with("203.0.113.0/24"), "{said}");
    assert!(rows.iter().any(|row| row.ends_with("192.0.2.0/24")), "{said}");
    assert!(said.contains(", of whom 1 had got in: false alarms"), "{said}");
    assert!(said.contains(&format!(" lines: {attempts} attempts, ")), "{said}");
    // The rules of the file that the daemon runs with find nobody.
    let replayed = asked(&gatepost, &["replay", log.to_str().unwrap()]);
    assert_eq!((&replayed["denied"], &replayed["rows"]), (&json!(0), &json!([])));
    let missing = gatepost.run(&["policy", "replay", "/nowhere/journal"], "");
    assert_eq!(missing.status.code(), Some(1));
    assert!(printed(&missing).contains("/nowhere/journal: "), "{}", printed(&missing));
}

#[test]
fn an_outage_counts_nothing() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    configuration.set("throttle", "enabled = true");
    let gatepost = configuration.start();
    let mut slapd = slapd;
    slapd.stop();

    for number in 0..40 {
        let answer = login(&gatepost, GUESSER, "fry", &format!("guess {number}"));
        assert_eq!(answer.status, 503, "{answer:?}");
    }

    let shown = asked(&gatepost, &["show", GUESSER, &mail_of("fry"), "--protocol", "imap"]);
    assert_eq!(shown["action"], "go");
    let rules = shown["rules"].as_array().unwrap();
    assert!(rules.len() >= 7, "{shown}");
    assert!(rules.iter().all(|rule| rule["count"] == 0), "{shown}");
    assert_eq!(decisions(&gatepost, 40, &[" throttle="]), 0);
}

#[test]
fn a_phone_with_the_password_from_before_a_change_is_neither_delayed_nor_denied() {
    let slapd = Slapd::start();
    let mut configuration = Configuration::new(&slapd);
    // The rules as they are built in.
    configuration.set("throttle", "enabled = true");
    configuration.add("memory", "fresh = \"1h\"\nrefused = \"1h\"");
    let gatepost = configuration.start();
    let phone = "203.0.113.77";
    slapd.set_password("fry", &password_of("fry"));
    accepted(&login(&gatepost, phone, "fry", &password_of("fry")));
    slapd.set_password("fry", "new-Tr0ub4dor");
    accepted(&login(&gatepost, ELSEWHERE, "fry", "new-Tr0ub4dor"));

    let socket = gatepost.configuration.auth_socket();
    let mut client = AuthClient::connect(Wire::Unix(&socket), 2);
    let began = now();
    for _ in 0..100 {
        refused(&login(&gatepost, phone, "fry", &password_of("fry")), "wrong-password");
    }
    for _ in 0..20 {
        let fields = format!("service=imap\trip={phone}\tsession=one");
        let answer = client.login(&fields, mail_of("fry"), password_of("fry"));
        assert!(answer.starts_with("FAIL"), "{answer:?}");
    }
    let took = began.elapsed();

    assert_eq!(decisions(&gatepost, 122, &[" throttle="]), 0);
    assert_eq!(decisions(&gatepost, 122, &["detail=\"old-password\""]), 120);
    // 20 refusals at a door that holds them back for 200 ms, and no delay of 5 s.
    assert!(took < Duration::from_secs(30), "{took:?}");
    accepted(&login(&gatepost, phone, "fry", "new-Tr0ub4dor"));
    let shown = asked(&gatepost, &["show", phone, &mail_of("fry")]);
    assert!(shown["rules"].as_array().unwrap().iter().all(|rule| rule["count"] == 0), "{shown}");
}
