//! Profiles against real slapd servers.

mod raw_password;
mod slapd;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use self::slapd::{BASE, SERVICE, Slapd, Wish, free_port};
use super::{
    Answer, Directories, Finding, Hosts, Known, Lock, Profile, Question, Share, StepOutcome,
    Wanted, Why,
};
use crate::clock;
use crate::config::directory::{Directory, Search, Tls};
use crate::config::units::Span;
use crate::identity::{Case, Domain, Login, LoginRules};
use crate::metrics::Metrics;
use crate::person::Stamp;
use crate::secret::{Password, Secret};

const FRY: &str = "uid=fry,ou=people,dc=planetexpress,dc=com";
const LEELA: &str = "uid=leela,ou=people,dc=planetexpress,dc=com";

fn section(hosts: &[String]) -> Directory {
    let search = Search { base: BASE.into(), ..Search::default() };
    let mut section = Directory {
        domains: vec!["planetexpress.com".into(), "momcorp.com".into()],
        hosts: hosts.to_vec(),
        tls: Tls::None,
        bind_dn: SERVICE.into(),
        bind_password: Secret::new("service"),
        // Roomy: the machine may be busy with other tests.
        connect_timeout: Span::seconds(4),
        timeout: Span::seconds(4),
        search: BTreeMap::from([("people".into(), search)]),
        ..Directory::default()
    };
    section.identity.login_attributes = vec!["mail".into(), "uid".into()];
    section
}

fn directories(section: Directory, previous: Option<&Directories>) -> Directories {
    let config = BTreeMap::from([("planet".to_owned(), section)]);
    Directories::build(&config, previous, &Metrics::new()).unwrap()
}

fn profile(section: Directory) -> Arc<Profile> {
    Arc::clone(directories(section, None).profile("planet").unwrap())
}

fn one(slapd: &Slapd) -> Arc<Profile> {
    profile(section(&[slapd.url()]))
}

fn login(typed: &str) -> Login {
    let default_domain = Some(Domain::parse("planetexpress.com").unwrap());
    let rules = LoginRules {
        default_domain,
        case: Case::Fold,
        separator: "+".into(),
        alias_domains: std::collections::BTreeMap::new(),
    };
    Login::parse(typed.as_bytes(), &rules).unwrap()
}

fn soon() -> Instant {
    clock::now() + Duration::from_secs(8)
}

async fn ask(profile: &Arc<Profile>, name: &str, password: &str) -> Answer {
    ask_known(profile, name, password, None, None).await
}

async fn ask_known(
    profile: &Arc<Profile>,
    name: &str,
    password: &str,
    known: Option<&Known>,
    linked: Option<&str>,
) -> Answer {
    let question = Question {
        login: &login(name),
        password: &Password::new(password),
        known,
        vouched: None,
        linked,
        share: Share::Known,
        leave: None,
        deadline: soon(),
    };
    profile.ask(question).await
}

async fn known(profile: &Arc<Profile>, name: &str) -> Known {
    match profile.find(Wanted::Login(&login(name)), Share::Known, soon()).await {
        Finding::One(person) => Known { dn: person.dn, id: person.id },
        other => panic!("{other:?}"),
    }
}

fn word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Absent => "absent",
        Answer::Accepted { grace_logins: true, .. } => "accepted, burning",
        Answer::Accepted { .. } => "accepted",
        Answer::Ambiguous { .. } => "ambiguous",
        Answer::Disabled { .. } => "disabled",
        Answer::Expired { .. } => "expired",
        Answer::Locked { lock: Lock::Locked, .. } => "locked",
        Answer::Locked { .. } => "not now",
        Answer::MustChange { .. } => "must change",
        Answer::Odd { .. } => "odd",
        Answer::Ours { .. } => "ours",
        Answer::Trouble(_) => "trouble",
        Answer::Withheld { .. } => "withheld",
        Answer::Wrong { .. } => "wrong",
    }
}

#[tokio::test]
async fn passwords_are_right_wrong_or_nobodys() {
    let slapd = Slapd::start(&Wish::default());
    let profile = one(&slapd);

    let Answer::Accepted { person, grace_logins: false } =
        ask(&profile, "fry@planetexpress.com", "fry").await
    else {
        panic!("not accepted");
    };
    assert_eq!(&*person.dn, FRY);
    assert_eq!(&*person.profile, "planet");
    assert_eq!(person.id.len(), 36);
    assert_eq!(person.stamp, Stamp::Unreadable, "no ppolicy, no change time");
    assert_eq!(person.attributes.texts("mail").count(), 2);

    for (name, password, expected) in [
        ("fry", "fry", "accepted"),
        ("orange@planetexpress.com", "fry", "accepted"),
        ("FRY@PlanetExpress.com", "fry", "accepted"),
        ("fry", "wrong", "wrong"),
        ("fry", "fry ", "wrong"),
        ("fry@momcorp.com", "fry", "absent"),
        ("zoidberg", "fry", "absent"),
        ("*", "fry", "absent"),
        ("*)(uid=*", "fry", "absent"),
        ("fr\\y@planetexpress.com", "fry", "absent"),
        ("f(r)y*\\2a@planetexpress.com", "fry", "absent"),
        ("fry", "", "odd"),
        ("fry", "a\0b", "odd"),
    ] {
        let answer = ask(&profile, name, password).await;
        assert_eq!(word(&answer), expected, "{name} {password:?}: {answer:?}");
    }
}

#[tokio::test]
async fn an_address_beats_a_namesake_and_two_owners_are_ambiguous() {
    let slapd = Slapd::start(&Wish {
        ldif: "
dn: uid=leela@planetexpress.com,ou=moon,dc=planetexpress,dc=com
objectClass: inetOrgPerson
uid: leela
uid: leela@planetexpress.com
cn: Namesake
sn: Namesake
userPassword: namesake

dn: uid=amy2,ou=moon,dc=planetexpress,dc=com
objectClass: inetOrgPerson
uid: amy2
cn: Amy
sn: Amy
mail: amy@planetexpress.com
userPassword: amy
",
        ..Wish::default()
    });
    let profile = one(&slapd);

    assert_eq!(word(&ask(&profile, "leela", "leela").await), "accepted");
    assert_eq!(word(&ask(&profile, "leela", "namesake").await), "wrong");
    let Answer::Ambiguous { dns } = ask(&profile, "amy", "amy").await else {
        panic!("not ambiguous");
    };
    assert_eq!(dns.len(), 2);
    assert_eq!(slapd.binds("uid=amy,ou=people,dc=planetexpress,dc=com"), 0);
}

#[tokio::test]
async fn a_known_entry_is_bound_and_read_without_a_search_and_moves_are_followed() {
    let slapd = Slapd::start(&Wish::default());
    let profile = one(&slapd);
    let fry = known(&profile, "fry").await;
    let searched = slapd.searches("scope=2");

    assert_eq!(word(&ask_known(&profile, "fry", "fry", Some(&fry), None).await), "accepted");
    assert_eq!(slapd.searches("scope=2"), searched);

    // the same place after a fresh search: final, and no second bind.
    let bound = slapd.binds(FRY);
    assert_eq!(word(&ask_known(&profile, "fry", "x", Some(&fry), None).await), "wrong");
    assert_eq!(slapd.binds(FRY), bound + 1);

    slapd.change(
        "dn: uid=fry,ou=people,dc=planetexpress,dc=com\nchangetype: moddn\nnewrdn: uid=fry\n\
         deleteoldrdn: 1\nnewsuperior: ou=moon,dc=planetexpress,dc=com\n",
    );
    let moved = "uid=fry,ou=moon,dc=planetexpress,dc=com";
    assert!(matches!(profile.read_stamp(&fry, Share::Known, soon()).await, Finding::None));
    let Answer::Accepted { person, .. } = ask_known(&profile, "fry", "fry", Some(&fry), None).await
    else {
        panic!("not accepted after the move");
    };
    assert_eq!((&*person.dn, &person.id), (moved, &fry.id));
    assert_eq!(word(&ask_known(&profile, "fry", "x", Some(&fry), None).await), "wrong");
    assert_eq!(slapd.binds(moved), 2);
}

#[tokio::test]
async fn a_linked_person_is_found_by_id_and_a_successor_has_another_id() {
    let slapd = Slapd::start(&Wish::default());
    let profile = one(&slapd);
    let fry = known(&profile, "fry").await;

    // An address that only the mailbox has.
    let by_link = ask_known(&profile, "delivery@momcorp.com", "fry", None, Some(&fry.id)).await;
    assert_eq!(word(&by_link), "accepted");
    assert_eq!(word(&ask(&profile, "delivery@momcorp.com", "fry").await), "absent");

    slapd.change("dn: uid=fry,ou=people,dc=planetexpress,dc=com\nchangetype: delete\n");
    let gone = ask_known(&profile, "fry", "fry", Some(&fry), Some(&fry.id)).await;
    assert_eq!(word(&gone), "absent");

    slapd.change(
        "dn: uid=fry,ou=people,dc=planetexpress,dc=com\nobjectClass: inetOrgPerson\nuid: fry\n\
         cn: Lars\nsn: Lars\nmail: fry@planetexpress.com\nuserPassword: lars\n",
    );
    let Answer::Accepted { person, .. } =
        ask_known(&profile, "fry", "lars", Some(&fry), Some(&fry.id)).await
    else {
        panic!("not accepted");
    };
    assert_ne!(person.id, fry.id);
}

const PPOLICY: Wish = Wish {
    conf: "overlay ppolicy\nppolicy_default cn=policy,dc=planetexpress,dc=com\nppolicy_hash_cleartext",
    ldif: "
dn: cn=policy,dc=planetexpress,dc=com
objectClass: organizationalRole
objectClass: pwdPolicy
cn: policy
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: 2
pwdMustChange: TRUE
pwdAllowUserChange: TRUE

dn: cn=short,dc=planetexpress,dc=com
objectClass: organizationalRole
objectClass: pwdPolicy
cn: short
pwdAttribute: userPassword
pwdMaxAge: 1
pwdGraceAuthNLimit: 1

dn: uid=bender,ou=people,dc=planetexpress,dc=com
objectClass: inetOrgPerson
uid: bender
cn: Bender
sn: Bender
mail: bender@planetexpress.com
userPassword: bender
pwdPolicySubentry: cn=short,dc=planetexpress,dc=com
",
    tls: false,
};

#[tokio::test]
async fn a_locked_account_is_locked_and_not_wrong() {
    for conf in [
        PPOLICY.conf,
        concat!(
            "overlay ppolicy\nppolicy_default cn=policy,dc=planetexpress,dc=com\nppolicy_hash_cleartext",
            "\nppolicy_use_lockout"
        ),
    ] {
        let slapd = Slapd::start(&Wish { conf, ..PPOLICY });
        let profile = one(&slapd);
        // ppolicy notes the time of changes made after its policy exists.
        slapd.change(&format!(
            "dn: {FRY}\nchangetype: modify\nreplace: userPassword\nuserPassword: fry\n-\nreplace: pwdReset\npwdReset: FALSE\n"
        ));
        let fry = known(&profile, "fry").await;
        let Finding::One(before) = profile.read_stamp(&fry, Share::Known, soon()).await else {
            panic!("not read");
        };
        assert!(matches!(before.stamp, Stamp::At(_)), "ppolicy tells the change time");

        assert_eq!(word(&ask(&profile, "fry", "x").await), "wrong");
        assert_eq!(word(&ask(&profile, "fry", "y").await), "wrong");

        assert_eq!(word(&ask(&profile, "fry", "fry").await), "locked");
        assert_eq!(word(&ask_known(&profile, "fry", "fry", Some(&fry), None).await), "locked");
        let Finding::One(after) = profile.read_stamp(&fry, Share::Known, soon()).await else {
            panic!("not read");
        };
        assert_ne!(before.stamp, after.stamp);
    }
}

#[tokio::test]
async fn a_reset_password_must_be_changed_and_grace_logins_are_reported() {
    let slapd = Slapd::start(&PPOLICY);
    let profile = one(&slapd);

    slapd.change(&format!("dn: {LEELA}\nchangetype: modify\nreplace: pwdReset\npwdReset: TRUE\n"));
    assert_eq!(word(&ask(&profile, "leela", "leela").await), "must change");
    assert_eq!(word(&ask(&profile, "leela", "x").await), "wrong");

    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(word(&ask(&profile, "bender", "bender").await), "accepted, burning");
    let last = ask(&profile, "bender", "bender").await;
    assert_eq!(word(&last), "expired", "{last:?}");
}

#[tokio::test]
async fn whom_the_filter_leaves_out_is_nobody_even_with_the_right_password() {
    let slapd = Slapd::start(&Wish::default());
    let everyone = one(&slapd);
    let leela = known(&everyone, "leela").await;
    let mut section = section(&[slapd.url()]);
    section.search.get_mut("people").unwrap().filter =
        format!("(!(memberOf=cn=ship_crew,ou=people,{BASE}))");
    let profile = profile(section);

    assert_eq!(word(&ask(&profile, "leela", "leela").await), "absent");
    let answer = ask_known(&profile, "leela", "leela", Some(&leela), Some(&leela.id)).await;
    assert_eq!(word(&answer), "absent");
    assert_eq!(word(&ask(&profile, "fry", "fry").await), "accepted");

    let explained = profile.explain(&login("leela"), soon()).await;
    assert!(matches!(explained.finding, Finding::None));
    assert_eq!(explained.without_filter.as_deref(), Some(LEELA));
    assert!(explained.filter_used.contains("ship_crew"));
}

#[tokio::test]
async fn a_filter_can_disable() {
    let slapd = Slapd::start(&Wish::default());
    let mut section = section(&[slapd.url()]);
    section.identity.disabled_rule = "filter:(title=INTERN)".into();
    let profile = profile(section);

    assert_eq!(word(&ask(&profile, "amy", "amy").await), "disabled");
    assert_eq!(slapd.binds("uid=amy,ou=people,dc=planetexpress,dc=com"), 0);
    assert_eq!(word(&ask(&profile, "fry", "fry").await), "accepted");
}

#[tokio::test]
async fn a_server_that_hangs_is_trouble_within_the_limit_until_it_wakes() {
    let slapd = Slapd::start(&Wish::default());
    let profile = profile(Directory { timeout: Span::seconds(1), ..section(&[slapd.url()]) });
    let fry = known(&profile, "fry").await;
    assert_eq!(word(&ask(&profile, "fry", "fry").await), "accepted");

    slapd.signal(Signal::STOP);
    let started = clock::now();
    let hung = ask_known(&profile, "fry", "fry", Some(&fry), None).await;
    assert!(matches!(&hung, Answer::Trouble(trouble) if trouble.why == Why::Directory), "{hung:?}");
    assert!(clock::now() - started < Duration::from_secs(3));
    for _ in 0..2 {
        assert_eq!(word(&ask(&profile, "fry", "fry").await), "trouble");
    }
    assert!(profile.nothing_answers());
    assert!(!profile.health()[0].up);

    let started = clock::now();
    let at_once = ask(&profile, "fry", "fry").await;
    assert!(
        matches!(&at_once, Answer::Trouble(trouble) if trouble.detail.contains("no answer within 1 s")),
        "{at_once:?}"
    );
    assert!(clock::now() - started < Duration::from_millis(100), "nobody waits twice");
    assert!(profile.grace_allowed(clock::now() + Duration::from_secs(5)));

    slapd.signal(Signal::CONT);
    while profile.nothing_answers() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(word(&ask(&profile, "fry", "fry").await), "accepted");
    assert!(!profile.grace_allowed(clock::now() + Duration::from_secs(60)));
}

#[tokio::test]
async fn the_next_server_is_asked_if_one_is_not_there_but_never_about_a_wrong_password() {
    let (first, second) = (Slapd::start(&Wish::default()), Slapd::start(&Wish::default()));
    let gone = format!("127.0.0.1:{}", free_port());

    let failing = profile(section(&[gone, second.url()]));
    assert_eq!(word(&ask(&failing, "fry", "fry").await), "accepted");
    assert!(failing.health()[0].last_error.as_ref().unwrap().contains("refused"));
    assert!(!failing.nothing_answers());

    let before = second.binds(FRY);
    let mut section = section(&[format!("{}, {}", first.url(), second.url())]);
    section.timeout = Span::seconds(1);
    let both = profile(section);
    assert_eq!(word(&ask(&both, "fry", "x").await), "wrong");
    assert_eq!((first.binds(FRY), second.binds(FRY)), (1, before));

    first.signal(Signal::STOP);
    for _ in 0..4 {
        let _ = ask(&both, "fry", "fry").await;
    }
    assert_eq!(word(&ask(&both, "fry", "fry").await), "accepted");
    first.signal(Signal::CONT);
}

/// A server that answers each request with what `reply` makes of its message id and operation tag.
async fn fake(reply: impl Fn(u8, u8) -> Vec<u8> + Send + Copy + 'static) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ldap://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                // 30 length 02 01 id tag; the length takes two bytes from 128 on.
                while let Ok(5..) = peer.read(&mut request).await {
                    let at =
                        if request[1] & 0x80 == 0 { 4 } else { 4 + usize::from(request[1] & 0x7f) };
                    let answer = reply(request[at], request[at + 1]);
                    if answer.is_empty() || peer.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// A result with this code: bind response or search done.
fn result(id: u8, tag: u8, code: u8) -> Vec<u8> {
    vec![0x30, 12, 2, 1, id, if tag == 0x60 { 0x61 } else { 0x65 }, 7, 10, 1, code, 4, 0, 4, 0]
}

/// A BER element with a short length.
fn ber(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    [&[tag, u8::try_from(content.len()).unwrap()], &*content].concat()
}

/// The entry with this name, and the end of the search.
fn found(id: u8, dn: &[u8]) -> Vec<u8> {
    let uuid = b"4a8b7f9e-0000-4000-8000-000000000001";
    let attribute = ber(0x30, &[&ber(4, &[b"entryUUID"]), &ber(0x31, &[&ber(4, &[uuid])])]);
    let entry = ber(0x64, &[&ber(4, &[dn]), &ber(0x30, &[&attribute])]);
    [ber(0x30, &[&ber(2, &[&[id]]), &entry]), result(id, 0x63, 0)].concat()
}

fn anonymous(url: String) -> Directory {
    let mut section = section(&[url]);
    section.bind_dn = String::new();
    section.anonymous = true;
    section.timeout = Span::seconds(1);
    section
}

#[tokio::test]
async fn an_entry_said_to_be_gone_and_found_again_is_no_wrong_password() {
    let url = fake(|id, tag| match tag {
        0x60 => result(id, tag, 32),
        _ => found(id, FRY.as_bytes()),
    })
    .await;
    let profile = profile(anonymous(url));
    let fry = Known { dn: FRY.into(), id: "4a8b7f9e-0000-4000-8000-000000000001".into() };
    for known in [None, Some(&fry)] {
        let answer = ask_known(&profile, "fry", "fry", known, None).await;
        assert!(
            matches!(&answer, Answer::Trouble(trouble) if trouble.detail.contains("code 32")),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_is_no_reason_to_give_up_the_server() {
    let profile = profile(anonymous(fake(|id, _| found(id, b"uid=fr\xff")).await));
    for _ in 0..8 {
        let answer = ask(&profile, "fry", "fry").await;
        assert!(
            matches!(&answer, Answer::Ours { detail } if detail.contains("malformed")),
            "{answer:?}"
        );
    }
    assert!(!profile.nothing_answers());
    assert!(!profile.grace_allowed(clock::now() + Duration::from_secs(60)));
    assert_eq!(profile.health()[0].last_error, None);
}

#[tokio::test]
async fn a_busy_or_broken_server_is_passed_over() {
    let slapd = Slapd::start(&Wish::default());
    let fakes = [
        ("busy", fake(|id, tag| result(id, tag, 51)).await),
        ("unavailable", fake(|id, tag| result(id, tag, 52)).await),
        ("empty sequence", fake(|_, _| vec![0x30, 0]).await),
        ("http", fake(|_, _| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await),
        ("another's id", fake(|id, tag| result(id + 1, tag, 0)).await),
        ("endless", fake(|_, _| vec![0x30, 0x84, 0x7f, 0xff, 0xff, 0xff]).await),
        ("hangs up", fake(|_, _| Vec::new()).await),
    ];
    for (what, url) in fakes {
        let mut section = section(&[url, slapd.url()]);
        section.bind_dn = String::new();
        section.anonymous = true;
        section.timeout = Span::seconds(1);
        let profile = profile(section);
        assert_eq!(word(&ask(&profile, "fry", "fry").await), "accepted", "{what}");
        assert_eq!(word(&ask(&profile, "fry", "x").await), "wrong", "{what}");
    }
}

#[tokio::test]
async fn a_bind_that_may_have_been_looked_at_is_not_sent_again() {
    let slapd = Slapd::start(&Wish::default());
    for (what, url, expected) in [
        ("no answer", fake(|id, _| result(id + 1, 0x60, 0)).await, "trouble"),
        ("hangs up", fake(|_, _| Vec::new()).await, "trouble"),
        ("other", fake(|id, tag| result(id, tag, 80)).await, "trouble"),
        ("needs tls", fake(|id, tag| result(id, tag, 8)).await, "ours"),
        ("unheard of", fake(|id, tag| result(id, tag, 99)).await, "odd"),
    ] {
        let fry = known(&one(&slapd), "fry").await;
        let mut section = section(&[url, slapd.url()]);
        section.bind_dn = String::new();
        section.anonymous = true;
        section.timeout = Span::seconds(1);
        let profile = profile(section);
        let before = slapd.binds(FRY);

        let answer = ask_known(&profile, "fry", "fry", Some(&fry), None).await;

        assert_eq!(word(&answer), expected, "{what}: {answer:?}");
        assert_eq!(slapd.binds(FRY), before, "{what}");
    }
}

/// What a directory says to a known person whose entry cannot be read while `bind` answers.
async fn ask_unreadable(service: &'static str, bind: fn(u8, u8) -> Vec<u8>) -> Answer {
    let url = fake(move |id, tag| match (tag, service) {
        (0x60, _) => bind(id, tag),
        (_, "hangs") => result(id + 100, tag, 0),
        _ => result(id, tag, 50),
    })
    .await;
    let mut section = section(&[url]);
    section.timeout = Span::seconds(1);
    if service != "refused" {
        section.bind_dn = String::new();
        section.anonymous = true;
    }
    let fry = Known { dn: FRY.into(), id: "1".into() };
    ask_known(&profile(section), "fry", "fry", Some(&fry), None).await
}

#[tokio::test]
async fn a_no_to_the_bind_counts_even_if_the_entry_cannot_be_read() {
    for service in ["hangs", "may not search", "refused"] {
        for (bind, expected) in [
            ((|id, tag| result(id, tag, 49)) as fn(u8, u8) -> Vec<u8>, "odd"),
            (|id, tag| result(id, tag, 32), "odd"),
            (|id, tag| result(id, tag, 19), "locked"),
        ] {
            let answer = ask_unreadable(service, bind).await;
            assert_eq!(word(&answer), expected, "{service}: {answer:?}");
        }
    }
    // Nothing was said against the person: the trouble is passed on.
    for (service, expected) in [("hangs", "trouble"), ("may not search", "ours")] {
        let answer = ask_unreadable(service, |id, tag| result(id, tag, 0)).await;
        assert_eq!(word(&answer), expected, "{service}: {answer:?}");
    }
}

#[tokio::test]
async fn idle_connections_that_a_restart_ended_are_replaced_unseen() {
    let mut slapd = Slapd::start(&Wish::default());
    let profile = one(&slapd);
    assert_eq!(word(&ask(&profile, "fry", "fry").await), "accepted");

    slapd.restart();

    for _ in 0..4 {
        assert_eq!(word(&ask(&profile, "fry", "fry").await), "accepted");
    }
}

#[tokio::test]
async fn a_burst_leaves_connections_for_two_minutes_and_one_for_good() {
    let mut slapd = Slapd::start(&Wish::default());
    let profile = one(&slapd);
    let [host] = profile.pool.hosts() else { panic!("one server") };
    let burst = (0..8).map(|_| {
        let profile = Arc::clone(&profile);
        tokio::spawn(async move { word(&ask(&profile, "fry", "fry").await) })
    });
    for asked in burst.collect::<Vec<_>>() {
        assert_eq!(asked.await.unwrap(), "accepted");
    }
    let left = host.idle_connections();
    assert!((1..=8).contains(&left), "{left}");

    host.tend(clock::now()).await;
    assert_eq!(host.idle_connections(), left);
    host.tend(clock::now() + Duration::from_secs(121)).await;
    assert_eq!(host.idle_connections(), 1);

    slapd.stop();
    // The runtime looks at its sockets meanwhile.
    tokio::time::sleep(Duration::from_millis(50)).await;
    host.tend(clock::now()).await;
    assert_eq!(host.idle_connections(), 0, "it was closed while nobody used it");
}

#[tokio::test]
async fn connections_are_replaced_when_they_are_old() {
    let slapd = Slapd::start(&Wish::default());
    let mut section = section(&[slapd.url()]);
    let keeping = profile(section.clone());
    for _ in 0..4 {
        assert_eq!(word(&ask(&keeping, "fry", "fry").await), "accepted");
    }
    assert_eq!(slapd.binds(SERVICE), 2, "one for each search connection");

    section.connection_max_age = Span::seconds(0);
    let replacing = profile(section);
    for _ in 0..4 {
        assert_eq!(word(&ask(&replacing, "fry", "fry").await), "accepted");
    }
    assert_eq!(slapd.binds(SERVICE), 6);
}

#[tokio::test]
async fn an_attempt_whose_time_is_up_asks_nothing() {
    let slapd = Slapd::start(&Wish::default());
    let profile = one(&slapd);
    let question = Question {
        login: &login("fry"),
        password: &Password::new("fry"),
        known: None,
        vouched: None,
        linked: None,
        share: Share::Known,
        leave: None,
        deadline: clock::now(),
    };
    let answer = profile.ask(question).await;
    assert!(
        matches!(&answer, Answer::Trouble(trouble) if trouble.why == Why::Deadline),
        "{answer:?}"
    );
    assert_eq!(slapd.binds(SERVICE), 0);
    assert!(!profile.grace_allowed(clock::now() + Duration::from_secs(60)));
}

#[tokio::test]
async fn a_refused_service_account_is_our_fault_and_is_not_hammered() {
    let slapd = Slapd::start(&Wish::default());
    let mut section = section(&[slapd.url()]);
    section.bind_password = Secret::new("not this");
    let profile = profile(section);

    for _ in 0..20 {
        let answer = ask(&profile, "fry", "fry").await;
        assert!(
            matches!(&answer, Answer::Ours { detail } if detail.contains("code 49")),
            "{answer:?}"
        );
    }

    assert_eq!(slapd.binds(SERVICE), 1);
    assert!(profile.grace_allowed(clock::now()));
    assert!(!profile.health()[0].up);
}

#[tokio::test]
async fn what_a_server_is_in_for_is_logged_when_it_begins_and_ends_not_at_each_attempt() {
    let written = tempfile::NamedTempFile::new().unwrap();
    let writer = std::sync::Mutex::new(written.reopen().unwrap());
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut slapd = Slapd::start(&Wish::default());
    let mut section = section(&[slapd.url()]);
    section.bind_password = Secret::new("not yet");
    let profile = profile(section);
    for _ in 0..4 {
        assert_eq!(word(&ask(&profile, "fry", "fry").await), "ours");
    }
    slapd.change(&format!(
        "dn: {SERVICE}\nchangetype: modify\nreplace: userPassword\nuserPassword: not yet\n"
    ));
    while word(&ask(&profile, "fry", "fry").await) != "accepted" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    slapd.stop();
    for _ in 0..8 {
        assert_eq!(word(&ask(&profile, "fry", "fry").await), "trouble");
    }
    slapd.restart();
    while word(&ask(&profile, "fry", "fry").await) != "accepted" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let text = std::fs::read_to_string(written.path()).unwrap();
    let said = [
        ("ERROR", "service account refused"),
        ("INFO", "service account accepted again"),
        ("WARN", "ldap server does not answer"),
        ("INFO", "ldap server answers again"),
    ];
    assert_eq!(text.lines().count(), said.len(), "{text}");
    for (line, (level, message)) in text.lines().zip(said) {
        assert!(line.contains(level) && line.contains(message), "{message}: {line}");
    }
}

#[tokio::test]
async fn a_base_that_is_not_there_is_our_fault() {
    let slapd = Slapd::start(&Wish::default());
    let mut section = section(&[slapd.url()]);
    section.search.get_mut("people").unwrap().base = format!("ou=nowhere,{BASE}");
    assert_eq!(word(&ask(&profile(section), "fry", "fry").await), "ours");
}

#[tokio::test]
async fn tls_trusts_the_profiles_authority_and_no_other() {
    let slapd = Slapd::start(&Wish { tls: true, ..Wish::default() });
    let (plain, secure) = (slapd.port, slapd.tls_port);
    for (host, tls) in [
        (format!("127.0.0.1:{secure}"), Tls::Ldaps),
        (format!("[::1]:{secure}"), Tls::Ldaps),
        (format!("ldap://127.0.0.1:{plain}"), Tls::Starttls),
        (format!("[::1]:{plain}"), Tls::Starttls),
    ] {
        let mut section = Directory { tls, ..section(std::slice::from_ref(&host)) };
        let stranger = profile(section.clone());
        let answer = ask(&stranger, "fry", "fry").await;
        assert!(
            matches!(&answer, Answer::Trouble(trouble) if trouble.detail.contains("unknown issuer")
                && trouble.detail.contains("ca_file")),
            "{host} {answer:?}"
        );

        section.ca_file = Some(slapd.ca_file());
        let trusted = profile(section.clone());
        assert_eq!(word(&ask(&trusted, "fry", "fry").await), "accepted", "{host}");

        section.server_name = "directory.example".into();
        assert_eq!(word(&ask(&profile(section.clone()), "fry", "fry").await), "accepted");
        section.server_name = "other.example".into();
        let answer = ask(&profile(section.clone()), "fry", "fry").await;
        assert!(
            matches!(&answer, Answer::Trouble(trouble) if trouble.detail.contains("another name")),
            "{host} {answer:?}"
        );
        section.verify = false;
        assert_eq!(word(&ask(&profile(section), "fry", "fry").await), "accepted");
    }
}

#[tokio::test]
async fn starttls_that_is_refused_is_never_continued_in_clear() {
    let slapd = Slapd::start(&Wish::default());
    let section = Directory { tls: Tls::Starttls, ..section(&[slapd.url()]) };
    let answer = ask(&profile(section), "fry", "fry").await;
    assert!(
        matches!(&answer, Answer::Trouble(trouble) if trouble.detail.contains("starttls")),
        "{answer:?}"
    );
    assert_eq!(slapd.binds(SERVICE), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_each_get_their_own_answer_even_if_askers_hang_up() {
    let slapd = Slapd::start(&Wish::default());
    let mut section = section(&[slapd.url()]);
    section.bind_connections = 4;
    let profile = profile(section);

    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..160 {
        let profile = Arc::clone(&profile);
        tasks.spawn(async move {
            let (name, password, expected) = match round % 4 {
                0 => ("fry", "fry", "accepted"),
                1 => ("fry", "leela", "wrong"),
                2 => ("leela", "leela", "accepted"),
                _ => ("nobody", "leela", "absent"),
            };
            let asking = async move { ask(&profile, name, password).await };
            if round % 5 == 0 {
                let hung_up = tokio::time::timeout(Duration::from_millis(round % 7), asking).await;
                drop(hung_up);
            } else {
                let answer = asking.await;
                assert_eq!(word(&answer), expected, "{answer:?}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn the_test_shows_each_step() {
    let slapd = Slapd::start(&Wish { tls: true, ..Wish::default() });
    let host = format!("127.0.0.1:{}", slapd.tls_port);
    let mut section = Directory { tls: Tls::Ldaps, ..section(std::slice::from_ref(&host)) };
    section.ca_file = Some(slapd.ca_file());
    section.search.get_mut("people").unwrap().filter = "(objectClass=inetOrgPerson)".into();

    let steps = profile(section.clone()).test(Hosts::First).await;

    let shown: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
    let label = format!("ldaps://{host}");
    assert_eq!(
        shown,
        [
            format!("dns {label}"),
            format!("tcp {label}"),
            format!("tls {label}"),
            format!("bind {label}"),
            format!("root dse {label}"),
            "base search.people".into(),
            "filter search.people".into(),
            "id search.people".into()
        ]
    );
    assert!(steps.iter().all(|step| step.outcome == StepOutcome::Passed), "{steps:?}");
    assert!(steps[2].detail.starts_with("issuer TestCA; valid until 20"), "{steps:?}");
    assert_eq!(steps[6].detail, "3 entries match (objectClass=inetOrgPerson)");

    let steps = profile(Directory { verify: false, ..section.clone() }).test(Hosts::First).await;
    let unchecked = "certificate not checked (verify = false); issuer TestCA; valid until 20";
    assert!(steps[2].detail.starts_with(unchecked), "{steps:?}");

    section.bind_password = Secret::new("not this");
    section.hosts.push(format!("127.0.0.1:{}", free_port()));
    let steps = profile(section).test(Hosts::All).await;
    let failed: Vec<_> = steps
        .iter()
        .filter(|step| step.outcome == StepOutcome::Failed)
        .map(|step| step.name.split(' ').next().unwrap())
        .collect();
    assert_eq!(failed, ["bind", "tcp"], "{steps:?}");
    assert_eq!(steps.last().unwrap().outcome, StepOutcome::Skipped);
}

#[tokio::test]
async fn a_reload_keeps_connections_unless_the_directory_part_changed() {
    let slapd = Slapd::start(&Wish { tls: true, ..Wish::default() });
    let mut section = section(&[slapd.url()]);
    section.ca_file = Some(slapd.ca_file());
    let first = directories(section.clone(), None);
    let old = first.profile("planet").unwrap();

    section.template.default = "standard".into();
    section.priority = 1;
    let second = directories(section.clone(), Some(&first));
    assert!(Arc::ptr_eq(old, second.profile("planet").unwrap()));

    section.template.attribute = "employeeType".into();
    let third = directories(section.clone(), Some(&second));
    let wider = third.profile("planet").unwrap();
    assert!(!Arc::ptr_eq(old, wider));
    assert_ne!(old.epoch(), wider.epoch());

    let pem = std::fs::read_to_string(slapd.ca_file()).unwrap();
    std::fs::write(slapd.ca_file(), format!("{pem}\n")).unwrap();
    let fourth = directories(section.clone(), Some(&third));
    assert!(!Arc::ptr_eq(wider, fourth.profile("planet").unwrap()));
    assert_eq!(wider.epoch(), fourth.profile("planet").unwrap().epoch());

    // Read it was all along, but nobody kept it.
    section.map.display_name.attr = vec!["EntryUUID".into()];
    let mapped_id = directories(section.clone(), Some(&fourth));
    assert_ne!(wider.epoch(), mapped_id.profile("planet").unwrap().epoch());
    section.map.display_name.attr.clear();
    let fourth = directories(section.clone(), Some(&mapped_id));

    section.domains.push("moon.com".into());
    let wider_route = directories(section.clone(), Some(&fourth));
    let kept = wider_route.route(&Domain::parse("moon.com").unwrap());
    assert!(Arc::ptr_eq(&kept[0], fourth.profile("planet").unwrap()));

    section.auth.enabled = false;
    let fifth = directories(section, Some(&fourth));
    let domain = Domain::parse("planetexpress.com").unwrap();
    assert_eq!(fourth.route(&domain).len(), 1);
    assert!(fifth.route(&domain).is_empty());
    assert!(fourth.route(&Domain::parse("mars.com").unwrap()).is_empty());
}

#[tokio::test]
async fn the_metrics_show_the_servers_in_force_and_no_others() {
    let metrics = Metrics::new();
    let build = |profiles: &[(&str, &[&str])], previous: Option<&Directories>| {
        let profiles = profiles.iter().map(|(name, hosts)| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            ((*name).to_owned(), section(&hosts))
        });
        Directories::build(&profiles.collect(), previous, &metrics).unwrap()
    };
    let shown = || {
        let text = metrics.encode();
        let mut lines: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("gatepost_ldap_up{server=\"ldap://127.0.0."))
            .map(|line| line.replace(":389\"}", ""))
            .collect();
        lines.sort_unstable();
        lines
    };
    let first = build(&[("a", &["127.0.0.1", "127.0.0.2"]), ("b", &["127.0.0.2"])], None);
    assert!(shown().is_empty(), "not in force");
    first.show(None);
    assert_eq!(shown(), ["1 1", "2 1"]);

    let refused = build(&[("a", &["127.0.0.9"])], Some(&first));
    assert_eq!(shown(), ["1 1", "2 1"], "a reload may still fail");
    drop(refused);

    // Profile b still asks 2; that a asked it, too, is past.
    let second = build(&[("a", &["127.0.0.3"]), ("b", &["127.0.0.2"])], Some(&first));
    second.show(Some(&first));
    assert_eq!(shown(), ["2 1", "3 1"]);

    let third = build(&[], Some(&second));
    third.show(Some(&second));
    assert!(shown().is_empty());
    let old = second.profile("a").unwrap();
    while !old.nothing_answers() {
        // Nobody listens there.
        let _ = ask(old, "fry", "fry").await;
    }
    assert!(shown().is_empty(), "an old attempt does not bring it back");
}

#[test]
fn what_cannot_be_used_is_named() {
    let good = section(&["127.0.0.1".into()]);
    let change = |change: fn(&mut Directory)| {
        let mut section = good.clone();
        change(&mut section);
        let config = BTreeMap::from([("planet".to_owned(), section)]);
        Directories::build(&config, None, &Metrics::new()).unwrap_err().to_string()
    };
    for (error, expected) in [
        (change(|s| s.hosts.clear()), "directory.planet.hosts: "),
        (change(|s| s.search.clear()), "directory.planet.search: "),
        (
            change(|s| s.search.get_mut("people").unwrap().filter = "(|)".into()),
            "directory.planet.search.people.filter: (|): column 3: ",
        ),
        (
            change(|s| s.identity.login_filter = "(mail=*)".into()),
            "directory.planet.identity.login_filter: ",
        ),
        (
            change(|s| s.identity.login_attributes = vec!["ma il".into()]),
            "directory.planet.identity.login_attributes: ",
        ),
        (
            change(|s| s.identity.disabled_rule = "x".into()),
            "directory.planet.identity.disabled_rule: ",
        ),
        (change(|s| s.bind_password = Secret::default()), "directory.planet.bind_password: "),
        (change(|s| s.bind_dn.clear()), "directory.planet.bind_dn: "),
        (
            change(|s| {
                s.tls = Tls::Ldaps;
                s.ca_file = Some("/nonexistent/ca.pem".into());
            }),
            "directory.planet.ca_file: /nonexistent/ca.pem: ",
        ),
    ] {
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn all_that_cannot_be_used_is_named_at_once() {
    let mut first = section(&["127.0.0.1".into()]);
    first.bind_password = Secret::default();
    first.hosts.clear();
    first.search.clear();
    let mut second = section(&["127.0.0.1".into()]);
    second.identity.login_filter = "(mail=*)".into();
    let good = section(&["127.0.0.1".into()]);
    let config = [("a", first), ("b", good), ("c", second)]
        .map(|(name, section)| (name.to_owned(), section));

    let errors = Directories::build(&config.into(), None, &Metrics::new()).unwrap_err();

    let shown = errors.to_string();
    let keys: Vec<_> = shown.lines().map(|line| line.split(": ").next().unwrap()).collect();
    let expected = ["a.bind_password", "a.hosts", "a.search", "c.identity.login_filter"];
    assert_eq!(keys, expected.map(|key| format!("directory.{key}")), "{shown}");
}
