//! Passwords that are not UTF-8 (login.md N-3): checked like all others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::slapd::{Slapd, Wish, free_port};
use super::{FRY, PPOLICY, fake, known, login, one, profile, result, section, soon, word};
use crate::clock;
use crate::config::directory::{Directory, Tls};
use crate::config::units::Span;
use crate::directory::bind::BindConnection;
use crate::directory::connect::Target;
use crate::directory::tls::Files;
use crate::directory::{Answer, Directories, Known, Profile, Question, Share, Why};
use crate::metrics::Metrics;
use crate::secret::Password;

const RIGHT: &[u8] = b"\xff\xfe-Tr0ub4dor";
const WRONG: &[u8] = b"\xff\xfd-Tr0ub4dor";

fn set_raw_password(slapd: &Slapd) {
    // RIGHT in base64.
    slapd.change(&format!(
        "dn: {FRY}\nchangetype: modify\nreplace: userPassword\nuserPassword:: //4tVHIwdWI0ZG9y\n"
    ));
}

async fn ask_raw(profile: &Arc<Profile>, password: &[u8], known: Option<&Known>) -> Answer {
    let question = Question {
        login: &login("fry"),
        password: &Password::new(password),
        known,
        vouched: None,
        linked: None,
        share: Share::Known,
        leave: None,
        deadline: soon(),
    };
    profile.ask(question).await
}

#[tokio::test]
async fn a_raw_password_is_right_or_wrong_however_the_connection_is_protected() {
    let slapd = Slapd::start(&Wish { tls: true, ..Wish::default() });
    set_raw_password(&slapd);
    let (plain, secure) = (slapd.port, slapd.tls_port);
    for (host, tls) in [
        (format!("127.0.0.1:{plain}"), Tls::None),
        (format!("127.0.0.1:{plain}"), Tls::Starttls),
        (format!("[::1]:{plain}"), Tls::Starttls),
        (format!("127.0.0.1:{secure}"), Tls::Ldaps),
        (format!("[::1]:{secure}"), Tls::Ldaps),
    ] {
        let mut section = Directory { tls, ..section(std::slice::from_ref(&host)) };
        section.ca_file = Some(slapd.ca_file());
        let profile = profile(section);
        let before = slapd.binds(FRY);

        assert_eq!(word(&ask_raw(&profile, RIGHT, None).await), "accepted", "{host} {tls:?}");
        assert_eq!(word(&ask_raw(&profile, WRONG, None).await), "wrong", "{host} {tls:?}");
        let fry = known(&profile, "fry").await;
        let answer = ask_raw(&profile, RIGHT, Some(&fry)).await;
        assert_eq!(word(&answer), "accepted", "{host} {tls:?}");

        assert_eq!(slapd.binds(FRY), before + 3, "each is sent once");
    }
}

#[tokio::test]
async fn a_raw_password_is_not_sent_to_a_stranger() {
    let slapd = Slapd::start(&Wish { tls: true, ..Wish::default() });
    set_raw_password(&slapd);
    for (host, tls) in [
        (format!("127.0.0.1:{}", slapd.tls_port), Tls::Ldaps),
        (format!("127.0.0.1:{}", slapd.port), Tls::Starttls),
    ] {
        let mut section = Directory { tls, ..section(std::slice::from_ref(&host)) };
        let open = |section: &Directory| {
            let target = Target::list(section, &Files::read(section).unwrap()).unwrap().remove(0);
            async move {
                let opened = BindConnection::open(&target, Duration::from_secs(4)).await;
                opened.map(drop).map_err(|error| error.detail)
            }
        };

        assert!(open(&section).await.unwrap_err().contains("unknown issuer"));
        section.ca_file = Some(slapd.ca_file());
        section.server_name = "other.example".into();
        assert!(open(&section).await.unwrap_err().contains("another name"));
        section.server_name = "directory.example".into();
        assert_eq!(open(&section).await, Ok(()));
    }
    assert_eq!(slapd.binds(FRY), 0);
}

#[tokio::test]
async fn a_raw_password_is_never_sent_in_clear_where_starttls_is_refused() {
    let slapd = Slapd::start(&Wish::default());
    let section = Directory { tls: Tls::Starttls, ..section(&[slapd.url()]) };
    let fry = known(&one(&slapd), "fry").await;

    let answer = ask_raw(&profile(section), RIGHT, Some(&fry)).await;

    assert!(
        matches!(&answer, Answer::Trouble(trouble) if trouble.detail.contains("starttls: refused")),
        "{answer:?}"
    );
    assert_eq!(slapd.binds(FRY), 0);
}

#[tokio::test]
async fn a_raw_password_of_a_locked_account_is_locked() {
    let slapd = Slapd::start(&PPOLICY);
    set_raw_password(&slapd);
    let profile = one(&slapd);

    assert_eq!(word(&ask_raw(&profile, WRONG, None).await), "wrong");
    assert_eq!(word(&ask_raw(&profile, WRONG, None).await), "wrong");

    assert_eq!(word(&ask_raw(&profile, RIGHT, None).await), "locked");
}

#[tokio::test]
async fn a_server_that_hangs_at_a_raw_password_is_trouble_in_time_and_counted() {
    let slapd = Slapd::start(&Wish::default());
    set_raw_password(&slapd);
    let fry = known(&one(&slapd), "fry").await;
    let metrics = Metrics::new();
    let mut section = section(&[slapd.url()]);
    section.timeout = Span::seconds(1);
    section.connect_timeout = Span::seconds(2);
    let config = BTreeMap::from([("planet".to_owned(), section)]);
    let directories = Directories::build(&config, None, &metrics).unwrap();
    let profile = directories.profile("planet").unwrap();
    assert_eq!(word(&ask_raw(profile, RIGHT, Some(&fry)).await), "accepted");

    slapd.signal(Signal::STOP);
    let started = clock::now();
    let hung = ask_raw(profile, RIGHT, Some(&fry)).await;
    let took = clock::now() - started;
    assert!(matches!(&hung, Answer::Trouble(trouble) if trouble.why == Why::Directory), "{hung:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    while !profile.nothing_answers() {
        assert_eq!(word(&ask_raw(profile, RIGHT, Some(&fry)).await), "trouble");
    }
    slapd.signal(Signal::CONT);

    let shown = metrics.encode();
    for result in ["ok", "timeout"] {
        let server = format!("server=\"{}\"", slapd.url());
        let counted = shown.lines().any(|line| {
            line.starts_with("gatepost_ldap_operations_total")
                && [&*server, "operation=\"bind\"", &format!("result=\"{result}\"")]
                    .iter()
                    .all(|part| line.contains(part))
        });
        assert!(counted, "{result}: {shown}");
    }
}

#[tokio::test]
async fn a_raw_password_goes_to_the_next_server_only_if_none_has_looked_at_it() {
    let slapd = Slapd::start(&Wish::default());
    set_raw_password(&slapd);
    let fry = known(&one(&slapd), "fry").await;
    let brackets = |_, _| [&[0x30, 0x82, 0xff, 0][..], &[0x30; 0xff00]].concat();
    for (what, url, sent_on) in [
        ("gone", format!("127.0.0.1:{}", free_port()), 1),
        ("busy", fake(|id, tag| result(id, tag, 51)).await, 1),
        ("another's id", fake(|id, tag| result(id + 1, tag, 0)).await, 0),
        ("hangs up", fake(|_, _| Vec::new()).await, 0),
        ("endless", fake(|_, _| vec![0x30, 0x84, 0x7f, 0xff, 0xff, 0xff]).await, 0),
        ("http", fake(|_, _| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await, 0),
        ("brackets", fake(brackets).await, 0),
    ] {
        let mut section = section(&[url, slapd.url()]);
        section.bind_dn = String::new();
        section.anonymous = true;
        section.timeout = Span::seconds(1);
        let profile = profile(section);
        let before = slapd.binds(FRY);

        let reply = profile.pool.bind(&fry.dn, RIGHT).await;

        assert_eq!(reply.is_ok(), sent_on == 1, "{what}: {reply:?}");
        assert_eq!(slapd.binds(FRY), before + sent_on, "{what}");
    }
}
