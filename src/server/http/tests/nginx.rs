use super::*;

fn fixture(verdict: Verdict) -> Fixture {
    let mut fixture = Fixture { verdict, ..Fixture::serving(Serve::Nginx) };
    fixture.listen.upstream.imap = "127.0.0.1:143".parse().ok();
    fixture.listen.upstream.smtp = "127.0.0.1:587".parse().ok();
    fixture.listen.upstream.mx = "[::1]:25".parse().ok();
    fixture
}

fn login<'a>(protocol: &'a str, attempt: &'a str) -> [(&'a str, &'a [u8]); 6] {
    [
        ("Auth-Method", b"plain"),
        ("Auth-User", b"fry"),
        ("Auth-Pass", b"p%25w%20+\xc3\xbc\xff"),
        ("Auth-Protocol", protocol.as_bytes()),
        ("Auth-Login-Attempt", attempt.as_bytes()),
        ("Client-IP", b"192.0.2.9"),
    ]
}

#[tokio::test]
async fn a_right_password_is_passed_on_under_the_canonical_name() {
    let fixture = fixture(accepted());

    let heard = fixture.ask("GET /nginx", &login("imap", "1")).await;

    for (field, value) in [
        ("auth-status", "OK"),
        ("auth-server", "127.0.0.1"),
        ("auth-port", "143"),
        ("auth-user", "fry@planetexpress.com"),
    ] {
        assert_eq!(heard.field(field), value);
    }
    let attempt = fixture.attempt();
    assert_eq!(attempt.password.as_bytes(), b"p%w +\xc3\xbc\xff");
    assert_eq!(attempt.service, Some(Service::Imap));
    assert_eq!(attempt.client, Some("192.0.2.9".parse().unwrap()));
}

#[tokio::test]
async fn nginx_waits_for_us_until_the_fifth_try() {
    let fixture = fixture(refused());
    for (attempt, wait) in [("1", "2"), ("4", "2"), ("5", ""), ("6", "")] {
        let heard = fixture.ask("GET /nginx", &login("imap", attempt)).await;
        assert_eq!(
            (heard.status, heard.field("auth-status"), heard.field("auth-wait")),
            (200, "[AUTHENTICATIONFAILED] Authentication failed.", wait)
        );
    }
    let heard = fixture.ask("GET /nginx", &login("smtp", "1")).await;
    assert_eq!(heard.field("auth-status"), "Authentication failed.");
    assert_eq!(heard.field("auth-error-code"), "535 5.7.8");
}

#[tokio::test]
async fn later_is_said_in_words_and_without_a_wait() {
    let fixture = fixture(later());
    for (protocol, status, code) in [
        ("imap", "[UNAVAILABLE] Temporary authentication failure.", ""),
        ("smtp", "Temporary authentication failure.", "454 4.7.0"),
        // No upstream: nobody is asked.
        ("pop3", "[SYS/TEMP] Temporary authentication failure.", ""),
    ] {
        let heard = fixture.ask("GET /nginx", &login(protocol, "1")).await;
        assert_eq!(
            [heard.field("auth-status"), heard.field("auth-error-code"), heard.field("auth-wait")],
            [status, code, ""]
        );
    }
    assert_eq!(fixture.asked.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_way_to_log_in_that_is_not_offered_is_refused_clearly() {
    let fixture = fixture(accepted());
    for (method, protocol, status) in [
        ("cram-md5", "imap", "[CANNOT] This way to log in is not offered."),
        ("external", "smtp", "This way to log in is not offered."),
    ] {
        let fields: [(&str, &[u8]); 2] =
            [("Auth-Method", method.as_bytes()), ("Auth-Protocol", protocol.as_bytes())];
        let heard = fixture.ask("GET /nginx", &fields).await;
        assert_eq!(heard.field("auth-status"), status);
    }
    assert!(fixture.asked.lock().unwrap().is_empty());
}

async fn ask_for(fixture: &Fixture, recipient: &str) -> Heard {
    let command = format!("RCPT TO:<{recipient}> NOTIFY=NEVER");
    let fields: [(&str, &[u8]); 5] = [
        ("Auth-Method", b"none"),
        ("Auth-User", b""),
        ("Auth-Protocol", b"smtp"),
        ("Auth-SMTP-From", b"MAIL FROM:<> SIZE=10"),
        ("Auth-SMTP-To", command.as_bytes()),
    ];
    fixture.ask("GET /nginx", &fields).await
}

#[tokio::test]
async fn mail_without_auth_never_goes_where_submission_goes() {
    let mut fixture = fixture(accepted());
    fixture.tables.found = vec![(Map::Mailbox, Found::Value("x@example.org".into()))];
    let login = fixture.ask("GET /nginx", &login("smtp", "1")).await;
    assert_eq!([login.field("auth-server"), login.field("auth-port")], ["127.0.0.1", "587"]);
    fixture.listen.upstream.mx = None;

    let heard = ask_for(&fixture, "fry@planetexpress.com").await;

    assert_eq!(heard.field("auth-status"), "Temporary lookup failure");
    assert_eq!([heard.field("auth-error-code"), heard.field("auth-server")], ["451 4.3.0", ""]);
}

#[tokio::test]
async fn without_auth_the_recipient_decides() {
    let value = || Found::Value("x@example.org".into());
    for (found, recipient, expected) in [
        (vec![(Map::Mailbox, value())], "fry@planetexpress.com", ["OK", "", "::1"]),
        (vec![(Map::Alias, value())], "fry@planetexpress.com", ["OK", "", "::1"]),
        (vec![], "POSTMASTER", ["OK", "", "::1"]),
        (vec![], "x@planetexpress.com", ["5.1.1 No such mailbox here", "550", ""]),
        (
            vec![(Map::Mailbox, Found::Later)],
            "fry@planetexpress.com",
            ["Temporary lookup failure", "451 4.3.0", ""],
        ),
    ] {
        let mut fixture = fixture(refused());
        fixture.tables.found = found;
        let heard = ask_for(&fixture, recipient).await;

        let heard =
            ["auth-status", "auth-error-code", "auth-server"].map(|it| heard.field(it).to_owned());
        assert_eq!(heard, expected, "{recipient}");
    }
}

#[tokio::test]
async fn the_longest_answer_fits_into_nginx_buffer() {
    let mut mailbox = Mailbox::sample("x@planetexpress.com");
    let long = format!("{}@{}.example", "x".repeat(244), "y.".repeat(32).trim_end_matches('.'));
    mailbox.address = crate::identity::Address::parse(&long, crate::identity::Case::Fold).unwrap();
    let accepted = Accepted { mailbox: Arc::new(mailbox), source: Source::Memory, changes: None };
    let mut passes = fixture(Verdict::Accept(accepted));
    passes.listen.upstream.imap = "[2001:db8:1111:2222:3333:4444:5555:6666]:14300".parse().ok();
    let proven = Refused { proven: true, ..Refused::new(Reason::NoTemplate, Source::Directory) };

    for fixture in [passes, fixture(Verdict::Reject(proven))] {
        for protocol in ["imap", "pop3", "smtp"] {
            let heard = fixture.ask("GET /nginx", &login(protocol, "1")).await;
            let bytes = heard.head.len() + 4;
            assert!(bytes <= crate::proto::nginx::MAX_HEAD_BYTES, "{bytes}: {}", heard.head);
        }
    }
}
