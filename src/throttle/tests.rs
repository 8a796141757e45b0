//! What each rule counts and does, one attempt at a time.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use super::{Because, Course, Entry, Event, List, Outcome, Subject, Throttle, Whom};
use crate::config::throttle::{Action, Count, Per, Rule, Throttle as Settings};
use crate::config::units::Span;
use crate::service::Service;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn from<'a>(client: &str, login: &'a str) -> Subject<'a> {
    Subject {
        client: Some(address(client)),
        login: Some(login),
        service: Some(Service::Imap),
        session: None,
        ja3: None,
    }
}

fn one_rule(rule: Rule) -> Settings {
    Settings { rule: [("test".to_owned(), rule)].into(), ..Settings::default() }
}

fn rule(count: Count, per: Per, limit: u32) -> Rule {
    let window = Span::seconds(600);
    Rule { count, per, limit, window, action: Action::Deny, ..Rule::default() }
}

struct Fixture {
    throttle: Throttle,
    now: Instant,
}

impl Fixture {
    fn new(settings: &Settings) -> Self {
        let now = crate::clock::now();
        Self { throttle: Throttle::new(settings, [1; 32], now), now }
    }

    fn of(rule: Rule) -> Self {
        Self::new(&one_rule(rule))
    }

    fn learn(&self, subject: &Subject<'_>, outcome: Outcome) {
        self.throttle.learn(subject, outcome, self.now);
    }

    fn denies(&self, subject: &Subject<'_>) -> bool {
        self.throttle.check(subject, self.now).action == Course::Deny
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

const FRY: &str = "fry@planetexpress.com";
const AMY: &str = "amy@planetexpress.com";

#[test]
fn each_count_counts_what_it_says() {
    use Count::{
        Attempts, DistinctIps, DistinctLogins, DistinctNets, DistinctWrongPasswords, Failures,
        Unproven,
    };
    // For each: counts of good logins, equal wrong passwords, different ones, disabled accounts, unproven ones; three each.
    for (count, expected) in [
        (Attempts, [3, 3, 3, 3, 3]),
        (Failures, [0, 1, 3, 3, 0]),
        (DistinctWrongPasswords, [0, 1, 3, 0, 0]),
        (DistinctLogins, [0, 1, 1, 1, 0]),
        (DistinctIps, [0, 1, 1, 1, 0]),
        (DistinctNets, [0, 1, 1, 1, 0]),
        (Unproven, [0, 0, 0, 0, 1]),
    ] {
        let outcomes: [fn(u16) -> Outcome; 5] = [
            |_| Outcome::Accepted,
            |_| Outcome::Failed(Some(7)),
            |n| Outcome::Failed(Some(n)),
            |_| Outcome::FailedAtSource,
            |_| Outcome::Unproven(Some(7)),
        ];
        for (outcome, expected) in outcomes.into_iter().zip(expected) {
            let per = if count == DistinctIps { Per::All } else { Per::Session };
            let fixture = Fixture::of(rule(count, per, 100));
            let subject = Subject { session: Some("S"), ..from("192.0.2.9", FRY) };
            for number in 0..3 {
                fixture.learn(&subject, outcome(number));
            }
            let shown = fixture.throttle.show(&subject, fixture.now);
            assert_eq!(shown[0].count, expected, "{count:?} {:?}", outcome(0));
        }
    }
}

#[test]
fn an_outage_and_an_expired_password_count_nothing() {
    for count in [Count::Failures, Count::DistinctWrongPasswords, Count::Unproven] {
        let fixture = Fixture::of(rule(count, Per::Ip, 1));
        for _ in 0..10 {
            fixture.learn(&from("192.0.2.9", FRY), Outcome::Neutral);
        }
        assert!(!fixture.denies(&from("192.0.2.9", FRY)));
    }
}

#[test]
fn each_key_is_apart_from_those_that_differ_in_it() {
    let base = Subject { session: Some("S1"), ..from("192.0.2.9", FRY) };
    let others = [
        ("session", Subject { session: Some("S2"), ..base }),
        ("ip", Subject { client: Some(address("192.0.2.10")), ..base }),
        ("net", Subject { client: Some(address("198.51.100.9")), ..base }),
        ("login", Subject { login: Some(AMY), ..base }),
    ];
    for (per, reaches) in [
        (Per::All, &["session", "ip", "net", "login"][..]),
        (Per::Ip, &["session", "login"]),
        (Per::Net, &["session", "ip", "login"]),
        (Per::Login, &["session", "ip", "net"]),
        (Per::LoginIp, &["session"]),
        (Per::LoginNet, &["session", "ip"]),
        (Per::Session, &["login"]),
    ] {
        let fixture = Fixture::of(rule(Count::Failures, per, 3));
        for guess in 0..3 {
            assert!(!fixture.denies(&base), "{per:?}");
            fixture.learn(&base, Outcome::Failed(Some(guess)));
        }
        assert!(fixture.denies(&base), "{per:?}");
        for (what, other) in &others {
            assert_eq!(fixture.denies(other), reaches.contains(what), "{per:?} {what}");
        }
    }
}

#[test]
fn addresses_have_one_form_and_nets_their_prefix() {
    let settings = Settings { net_v6: 48, ..one_rule(rule(Count::Failures, Per::Ip, 1)) };
    let fixture = Fixture::new(&settings);
    fixture.learn(&from("::ffff:192.0.2.9", FRY), Outcome::Failed(None));
    fixture.learn(&from("2001:db8:1:2::3", FRY), Outcome::Failed(None));

    assert!(fixture.denies(&from("192.0.2.9", AMY)));
    assert!(fixture.denies(&from("2001:db8:1:9::9", AMY)));
    assert!(!fixture.denies(&from("192.0.2.10", AMY)));
    assert!(!fixture.denies(&from("2001:db8:2::1", AMY)));
}

#[test]
fn a_rule_acts_as_long_as_its_window_or_its_hold_has_it() {
    for (hold, acts_after) in [(0, [true, false, false]), (3600, [true, true, false])] {
        let mut fixture =
            Fixture::of(Rule { hold: Span::seconds(hold), ..rule(Count::Failures, Per::Ip, 2) });
        for guess in 0..2 {
            fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(Some(guess)));
        }
        for (seconds, acts) in [590, 200, 4200].into_iter().zip(acts_after) {
            fixture.pass(seconds);
            assert_eq!(fixture.denies(&from("192.0.2.9", FRY)), acts, "{hold} {seconds}");
        }
    }
}

#[test]
fn a_rule_for_some_services_and_domains_leaves_the_others() {
    let fixture = Fixture::of(Rule {
        services: vec!["smtp".into()],
        domains: vec!["PlanetExpress.com".into()],
        ..rule(Count::Failures, Per::Ip, 1)
    });
    let smtp = Subject { service: Some(Service::Smtp), ..from("192.0.2.9", FRY) };
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(None));
    assert!(!fixture.denies(&smtp));

    fixture.learn(&smtp, Outcome::Failed(None));

    assert!(fixture.denies(&smtp));
    assert!(!fixture.denies(&from("192.0.2.9", FRY)));
    assert!(!fixture.denies(&Subject { login: Some("fry@momcorp.com"), ..smtp }));
    assert!(!fixture.denies(&Subject { service: None, ..smtp }));
}

#[test]
fn a_success_pays_down_what_holds_its_login_and_never_whitewashes_an_address() {
    for (per, is_forgiven) in [
        (Per::Ip, false),
        (Per::Net, false),
        (Per::LoginIp, true),
        (Per::LoginNet, true),
        (Per::Session, false),
    ] {
        let fixture = Fixture::of(Rule { allowance: 0, ..rule(Count::Failures, per, 3) });
        let subject = Subject { session: Some("S"), ..from("192.0.2.9", FRY) };
        for guess in 0..2 {
            fixture.learn(&subject, Outcome::Failed(Some(guess)));
        }
        fixture.learn(&subject, Outcome::Accepted);
        fixture.learn(&subject, Outcome::Failed(Some(9)));

        let shown = fixture.throttle.show(&subject, fixture.now);
        assert_eq!(shown[0].count, if is_forgiven { 1 } else { 3 }, "{per:?}");
    }
}

#[test]
fn of_what_the_world_tried_a_success_takes_back_one() {
    let fixture = Fixture::of(rule(Count::DistinctWrongPasswords, Per::Login, 3));
    for guess in 0..3 {
        fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(Some(guess)));
    }
    for _ in 0..5 {
        fixture.learn(&from("198.51.100.9", FRY), Outcome::Accepted);
    }

    let shown = fixture.throttle.show(&from("192.0.2.9", FRY), fixture.now);
    assert_eq!(shown[0].count, 2);
}

#[test]
fn whoever_got_in_from_there_is_treated_milder_than_a_stranger() {
    let guess = |fixture: &Fixture, client: &str, count: u16| {
        for guess in 0..count {
            fixture.learn(&from(client, FRY), Outcome::Failed(Some(guess)));
        }
    };
    // At their own net the limit is twice as high.
    let fixture = Fixture::of(rule(Count::DistinctWrongPasswords, Per::LoginNet, 5));
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Accepted);
    guess(&fixture, "192.0.2.9", 9);
    guess(&fixture, "198.51.100.9", 5);
    assert!(!fixture.denies(&from("192.0.2.9", FRY)));
    assert!(fixture.denies(&from("198.51.100.9", FRY)));
    // What the world tries is held against strangers only.
    let fixture = Fixture::of(rule(Count::DistinctWrongPasswords, Per::Login, 5));
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Accepted);
    guess(&fixture, "198.51.100.9", 9);
    assert!(!fixture.denies(&from("192.0.2.9", FRY)));
    assert!(fixture.denies(&from("203.0.113.9", FRY)));
    // Each person raises the limit of their address, and one person does it once.
    let fixture =
        Fixture::of(Rule { allowance: 3, ..rule(Count::DistinctWrongPasswords, Per::Ip, 5) });
    for login in [FRY, AMY, FRY, FRY] {
        fixture.learn(&from("192.0.2.9", login), Outcome::Accepted);
    }
    let shown = fixture.throttle.show(&from("192.0.2.9", "x@y.z"), fixture.now);
    assert_eq!(shown[0].limit, Some(5 + 2 * 3));
    assert_eq!(fixture.throttle.standing(&from("192.0.2.9", FRY), fixture.now), (true, 2, 2));
}

#[test]
fn whoever_got_in_from_there_is_not_denied_for_what_others_there_do() {
    // A guesser in the same office, at others.
    for per in [Per::Ip, Per::Net] {
        let fixture = Fixture::of(rule(Count::DistinctWrongPasswords, per, 5));
        fixture.learn(&from("192.0.2.9", FRY), Outcome::Accepted);
        for guess in 0..100 {
            fixture.learn(&from("192.0.2.9", "x@y.z"), Outcome::Failed(Some(guess)));
        }
        assert!(!fixture.denies(&from("192.0.2.9", FRY)), "{per:?}");
        assert!(fixture.denies(&from("192.0.2.9", AMY)), "{per:?}");
    }
    // A guesser in the same net, at them: they wait, and get in.
    let fixture = Fixture::of(rule(Count::DistinctWrongPasswords, Per::LoginNet, 5));
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Accepted);
    for guess in 0..100 {
        fixture.learn(&from("192.0.2.66", FRY), Outcome::Failed(Some(guess)));
    }
    let judgement = fixture.throttle.check(&from("192.0.2.9", FRY), fixture.now);
    assert_eq!(judgement.action, Course::Delay(Duration::from_secs(5)));
}

#[test]
fn a_rule_about_the_number_of_attempts_is_for_everybody() {
    let fixture = Fixture::of(rule(Count::Attempts, Per::LoginNet, 5));
    for _ in 0..5 {
        assert!(!fixture.denies(&from("192.0.2.9", FRY)));
        fixture.learn(&from("192.0.2.9", FRY), Outcome::Accepted);
    }

    assert!(fixture.denies(&from("192.0.2.9", FRY)));
}

#[test]
fn a_crowd_takes_half_of_the_places_to_wait_in_and_few_from_one_net() {
    let delay = |per, limit| Rule { action: Action::Delay, ..rule(Count::Failures, per, limit) };
    let fixture = Fixture::new(&Settings { max_delayed: 40, ..one_rule(delay(Per::All, 1)) });
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(None));
    let wait = |net: u8| {
        let subject = from(&format!("10.0.{net}.1"), AMY).client;
        let subject = Subject { client: subject, ..from("10.0.0.1", AMY) };
        let judgement = fixture.throttle.check(&subject, fixture.now);
        fixture.throttle.delay(&judgement)
    };
    let one: Vec<_> = (0..40).map_while(|_| wait(1)).collect();
    assert_eq!(one.len(), 16);
    let others: Vec<_> = (2..40).map_while(wait).collect();
    assert_eq!(others.len(), 4);
}

#[test]
fn the_sternest_rule_decides_and_one_that_only_logs_says_so() {
    let with = |action, limit| Rule { action, ..rule(Count::Failures, Per::Ip, limit) };
    let settings = Settings {
        rule: [
            ("a-log".to_owned(), with(Action::Log, 1)),
            ("b-delay".to_owned(), with(Action::Delay, 2)),
            ("c-deny".to_owned(), with(Action::Deny, 3)),
            ("d-off".to_owned(), with(Action::Deny, 0)),
        ]
        .into(),
        ..Settings::default()
    };
    let fixture = Fixture::new(&settings);
    let subject = from("192.0.2.9", FRY);
    let mut seen = Vec::new();
    for guess in 0..4 {
        let judgement = fixture.throttle.check(&subject, fixture.now);
        fixture.throttle.note(&subject, &judgement);
        let word = judgement.because.as_ref().map(Because::word);
        seen.push((judgement.action, word.map(|word| word.to_string())));
        fixture.learn(&subject, Outcome::Failed(Some(guess)));
    }

    let five = Duration::from_secs(5);
    let expected = [
        (Course::Go, None),
        (Course::Go, Some("a-log".to_owned())),
        (Course::Delay(five), Some("b-delay".to_owned())),
        (Course::Deny, Some("c-deny".to_owned())),
    ];
    assert_eq!(seen, expected);
    let hits = fixture.throttle.hits();
    let mut times: Vec<_> = hits.iter().map(|hit| (&*hit.rule, hit.times)).collect();
    times.sort_unstable();
    // A rule that only logs is heard beside those that act.
    assert_eq!(times, [("a-log", 3), ("b-delay", 1), ("c-deny", 1)]);
    assert!(hits.iter().all(|hit| hit.whom == "192.0.2.9"));
}

#[test]
fn a_reload_keeps_the_counts_of_what_counts_the_same() {
    let before = rule(Count::Failures, Per::Ip, 5);
    let fixture = Fixture::of(before.clone());
    for guess in 0..3 {
        fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(Some(guess)));
    }
    let count = || {
        let shown = fixture.throttle.show(&from("192.0.2.9", FRY), fixture.now);
        shown.first().map(|counted| counted.count)
    };

    fixture.throttle.configure(&one_rule(Rule { limit: 9, action: Action::Log, ..before.clone() }));
    assert_eq!(count(), Some(3));
    fixture.throttle.configure(&one_rule(Rule { window: Span::seconds(60), ..before.clone() }));
    assert_eq!(count(), Some(0));
    fixture.throttle.configure(&Settings { enabled: false, ..one_rule(before) });
    assert_eq!(fixture.throttle.check(&from("192.0.2.9", FRY), fixture.now).action, Course::Go);
}

#[test]
fn lists_go_before_rules() {
    let settings = Settings {
        allow: vec!["192.0.2.0/24".into()],
        deny: vec![AMY.into()],
        ..one_rule(rule(Count::Failures, Per::Ip, 1))
    };
    let fixture = Fixture::new(&settings);
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(None));
    assert!(!fixture.denies(&from("192.0.2.9", FRY)));
    assert!(!fixture.denies(&from("192.0.2.9", AMY)));
    assert!(fixture.denies(&from("198.51.100.9", AMY)));

    let whom = Whom::parse("iplogin", &format!("203.0.113.9 {FRY}")).unwrap();
    let until = crate::clock::wall() + Duration::from_secs(60);
    let entry = Entry { list: List::Deny, whom: whom.clone(), until, reason: "spam".into() };
    fixture.throttle.add_entries(&[entry]).unwrap();

    assert!(fixture.denies(&from("203.0.113.9", FRY)));
    assert!(!fixture.denies(&from("203.0.113.8", FRY)));
    assert!(fixture.throttle.remove_entry(List::Deny, &whom));
    assert!(!fixture.denies(&from("203.0.113.9", FRY)));
}

#[test]
fn a_reset_of_a_login_alone_forgets_it_together_with_the_nets_where_a_rule_acted() {
    let settings = Settings {
        rule: [
            ("pair".to_owned(), rule(Count::Failures, Per::LoginNet, 1)),
            ("net".to_owned(), rule(Count::Failures, Per::Net, 9)),
            (
                "smtp".to_owned(),
                Rule { services: vec!["smtp".into()], ..rule(Count::Failures, Per::Login, 9) },
            ),
        ]
        .into(),
        ..Settings::default()
    };
    let fixture = Fixture::new(&settings);
    let act = |client: &str, login| {
        let subject = Subject { service: Some(Service::Smtp), ..from(client, login) };
        fixture.learn(&subject, Outcome::Failed(Some(1)));
        let judgement = fixture.throttle.check(&subject, fixture.now);
        fixture.throttle.note(&subject, &judgement);
    };
    act("192.0.2.9", FRY);
    act("198.51.100.9", FRY);
    act("192.0.2.9", AMY);

    assert!(
        fixture.throttle.reset(&Subject { login: Some(FRY), ..Subject::default() }, fixture.now)
    );

    assert!(!fixture.denies(&from("192.0.2.9", FRY)));
    assert!(!fixture.denies(&from("198.51.100.200", FRY)));
    assert!(fixture.denies(&from("192.0.2.9", AMY)));
    let smtp = Subject { service: Some(Service::Smtp), ..from("192.0.2.9", FRY) };
    let counts: Vec<_> = fixture.throttle.show(&smtp, fixture.now);
    // The net's own count stays: it was not asked about.
    assert_eq!(counts.iter().map(|it| it.count).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(fixture.throttle.hits().len(), 1);
}

#[test]
fn a_reset_forgets_somebody_and_nobody_else() {
    let fixture = Fixture::of(rule(Count::Failures, Per::LoginIp, 1));
    for login in [FRY, AMY] {
        fixture.learn(&from("192.0.2.9", login), Outcome::Failed(None));
    }

    assert!(fixture.throttle.reset(&from("192.0.2.9", FRY), fixture.now));
    assert!(!fixture.throttle.reset(&from("192.0.2.9", FRY), fixture.now));

    assert!(!fixture.denies(&from("192.0.2.9", FRY)));
    assert!(fixture.denies(&from("192.0.2.9", AMY)));
}

#[test]
fn places_to_wait_in_are_bounded_in_all_and_for_each_key_and_are_given_back() {
    let delay = Rule { action: Action::Delay, ..rule(Count::Failures, Per::Ip, 1) };
    let fixture = Fixture::new(&Settings { max_delayed: 20, ..one_rule(delay) });
    let judgement = |client| {
        let subject = from(client, FRY);
        fixture.learn(&subject, Outcome::Failed(None));
        fixture.throttle.check(&subject, fixture.now)
    };
    let (one, other) = (judgement("192.0.2.9"), judgement("198.51.100.9"));
    let places: Vec<_> = (0..17).map_while(|_| fixture.throttle.delay(&one)).collect();
    assert_eq!(places.len(), 16);
    let further: Vec<_> = (0..17).map_while(|_| fixture.throttle.delay(&other)).collect();
    assert_eq!((further.len(), fixture.throttle.waiting()), (4, 20));
    // Whoever found no place leaves nothing behind.
    assert!(fixture.throttle.delay(&judgement("203.0.113.9")).is_none());
    assert_eq!(fixture.throttle.delayed().by_key.len(), 2);

    drop(places);

    assert_eq!(fixture.throttle.waiting(), 4);
    assert!(fixture.throttle.delay(&one).is_some());
}

#[test]
fn what_another_node_learned_counts_here_at_its_time() {
    let fixture = Fixture::of(rule(Count::DistinctWrongPasswords, Per::LoginNet, 3));
    let event = |guess| Event {
        client: Some(address("192.0.2.9")),
        login: Some(FRY.into()),
        service: Some(Service::Imap),
        outcome: Outcome::Failed(Some(guess)),
    };
    let learn = |guess, ago| {
        let ago = Duration::from_secs(ago);
        fixture.throttle.learn_from_another(&event(guess), ago, fixture.now);
    };
    learn(1, 3600);
    learn(2, 300);
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(Some(3)));
    assert!(!fixture.denies(&from("192.0.2.9", FRY)));

    learn(4, 0);

    assert!(fixture.denies(&from("192.0.2.9", FRY)));
}

#[test]
fn news_is_told_and_what_is_no_news_is_not() {
    let fixture = Fixture::new(&Settings::default());
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let listener = std::sync::Arc::clone(&told);
    fixture.throttle.listen(std::sync::Arc::new(move |event: Event| {
        listener.lock().unwrap().push(event.outcome);
    }));
    for _ in 0..3 {
        fixture.learn(&from("192.0.2.9", FRY), Outcome::Accepted);
    }
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Neutral);
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(Some(1)));

    assert_eq!(*told.lock().unwrap(), [Outcome::Accepted, Outcome::Failed(Some(1))]);
}

#[test]
fn a_password_is_told_apart_by_sixteen_bits_that_hang_on_key_and_login() {
    let fixture = Fixture::new(&Settings::default());
    let guess = |login, password: &str| {
        fixture.throttle.guess(login, &crate::secret::Password::new(password.as_bytes()))
    };
    let mine = guess(FRY, "panucci");
    assert_eq!(mine, guess(FRY, "panucci"));
    assert_ne!(mine, guess(AMY, "panucci"));
    assert_ne!(mine, guess(FRY, "seymour"));

    fixture.throttle.agree([2; 32]);

    assert_ne!(mine, guess(FRY, "panucci"));
}

#[test]
fn the_wall_clock_moves_no_count() {
    // Only the ends of list entries are wall-clock time; `check` and `learn` take monotonic time alone.
    let fixture = Fixture::of(rule(Count::Failures, Per::Ip, 1));
    fixture.learn(&from("192.0.2.9", FRY), Outcome::Failed(None));
    let long_ago = crate::clock::now().checked_sub(Duration::from_secs(1)).unwrap_or(fixture.now);
    assert!(fixture.throttle.check(&from("192.0.2.9", FRY), long_ago).action == Course::Deny);
    let entry = Entry {
        list: List::Allow,
        whom: Whom::parse("ip", "192.0.2.9").unwrap(),
        until: SystemTime::UNIX_EPOCH,
        reason: "over".into(),
    };
    fixture.throttle.add_entries(&[entry]).unwrap();
    assert!(fixture.denies(&from("192.0.2.9", FRY)));
}
