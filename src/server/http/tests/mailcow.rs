use super::*;

const BODY: &[u8] =
    br#"{"username":"fry","password":"secret","real_rip":"192.0.2.9","service":"imap"}"#;

#[tokio::test]
async fn the_scripts_request_becomes_an_attempt() {
    let fixture = Fixture::serving(Serve::Mailcow);
    let mut body = br#"{"username":"fry","password":""#.to_vec();
    body.extend_from_slice(b"s\xff\xe9cret");
    body.extend_from_slice(br#"","real_rip":"192.0.2.9","service":"pop3"}"#);

    let heard = fixture.send("/", &body).await;

    assert_eq!((heard.status, &*heard.body), (200, r#"{"success":true}"#));
    assert_eq!(heard.field("content-type"), "application/json");
    let attempt = fixture.attempt();
    assert_eq!(attempt.login, b"fry");
    assert_eq!(attempt.password.as_bytes(), b"s\xff\xe9cret");
    assert_eq!(attempt.service, Some(Service::Pop3));
    assert_eq!(attempt.client, Some("192.0.2.9".parse().unwrap()));
}

#[tokio::test]
async fn without_a_service_no_protocol_is_checked_and_an_unknown_one_stays_unknown() {
    for (service, expected) in [
        ("", Some(Service::Lookup)),
        (r#","service":null"#, Some(Service::Lookup)),
        (r#","service":"eas""#, None),
    ] {
        let fixture = Fixture::serving(Serve::Mailcow);
        let body = format!(r#"{{"username":"fry","password":"x","real_rip":""{service}}}"#);

        fixture.send("/", body.as_bytes()).await;

        assert_eq!(fixture.attempt().service, expected, "{service}");
    }
}

#[tokio::test]
async fn a_refusal_is_401_and_what_cannot_be_read_is_400() {
    let fixture = Fixture { verdict: refused(), ..Fixture::serving(Serve::Mailcow) };
    let heard = fixture.send("/", BODY).await;
    assert_eq!((heard.status, &*heard.body), (401, r#"{"success":false}"#));

    for body in [&b"{}"[..], br#"{"username":"fry","password":"x"}"#, b"username=fry"] {
        let heard = fixture.send("/", body).await;
        assert_eq!((heard.status, &*heard.body), (400, r#"{"success":false}"#));
    }
}

/// What comes back, byte by byte.
async fn raw(fixture: &Fixture) -> Vec<u8> {
    let mut stream = fixture.connect(None);
    let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", BODY.len());
    stream.write_all(&[head.as_bytes(), BODY].concat()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn a_caller_without_the_token_hears_nothing_rather_than_a_wrong_password() {
    let mut fixture = Fixture::serving(Serve::Mailcow);
    fixture.listen.token = Secret::new("let-me-ask");

    assert_eq!(raw(&fixture).await, b"");

    assert!(fixture.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn later_ends_the_connection_without_an_answer_unless_told_to_answer() {
    let mut fixture = Fixture { verdict: later(), ..Fixture::serving(Serve::Mailcow) };
    for said in [TempFailure::Auto, TempFailure::Close] {
        fixture.listen.temp_failure = said;
        assert_eq!(raw(&fixture).await, b"");
    }

    fixture.listen.temp_failure = TempFailure::Fail;
    let heard = fixture.send("/", BODY).await;
    assert_eq!((heard.status, &*heard.body), (503, r#"{"success":false}"#));
}
