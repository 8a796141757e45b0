use super::*;

const BODY: &[u8] =
    br#"{"username":"fry","password":"secret","protocol":"imap","client_ip":"192.0.2.9","client_port":"4"}"#;

#[tokio::test]
async fn a_login_by_json_is_answered_as_nauthilus_would() {
    let fixture = Fixture::serving(Serve::Nauthilus);

    let heard = fixture.send("/api/v1/auth/json", BODY).await;

    assert_eq!(heard.status, 200);
    assert_eq!(heard.field("auth-status"), "OK");
    assert_eq!(heard.field("auth-user"), "fry@planetexpress.com");
    let attempt = fixture.attempt();
    assert_eq!(Some(heard.field("x-nauthilus-session")), attempt.session.as_deref());
    assert_eq!(attempt.service, Some(Service::Imap));
    assert_eq!(attempt.client, Some("192.0.2.9".parse().unwrap()));
    let json = heard.json();
    assert_eq!(json["ok"], true);
    assert_eq!(json["backend"], 1);
    assert_eq!(json["account_field"], "account");
    assert_eq!(json["attributes"]["account"], serde_json::json!(["fry@planetexpress.com"]));
    assert_eq!(json["attributes"]["home"], serde_json::json!(["/srv/mail/fry"]));
}

#[tokio::test]
async fn a_login_by_header_may_have_an_encoded_password() {
    let fixture = Fixture::serving(Serve::Nauthilus);

    let fields: [(&str, &[u8]); 5] = [
        ("Auth-User", b"fry"),
        ("Auth-Pass", b"_-8"),
        ("X-Auth-Password-Encoded", b"1"),
        ("Auth-Protocol", b"smtp"),
        ("Client-IP", b"192.0.2.9"),
    ];
    let heard = fixture.ask("GET /api/v1/auth/header", &fields).await;

    assert_eq!((heard.status, &*heard.body), (200, "OK"));
    assert_eq!(heard.field("auth-user"), "fry@planetexpress.com");
    let attempt = fixture.attempt();
    assert_eq!(attempt.password.as_bytes(), b"\xff\xef");
    assert_eq!(attempt.service, Some(Service::Smtp));
}

#[tokio::test]
async fn no_and_later_have_their_words_in_both_shapes() {
    const LATER: &str = "Temporary server problem, try again later";
    for (verdict, status, said, json) in [
        (refused(), 403, "Invalid login or password", "null".to_owned()),
        (later(), 500, LATER, format!("{{\"error\":\"{LATER}\"}}")),
    ] {
        let fixture = Fixture { verdict, ..Fixture::serving(Serve::Nauthilus) };

        let by_json = fixture.send("/api/v1/auth/json", BODY).await;
        let fields: [(&str, &[u8]); 2] = [("Auth-User", b"fry"), ("Auth-Pass", b"x")];
        let by_header = fixture.ask("POST /api/v1/auth/header", &fields).await;

        assert_eq!((by_json.status, by_json.body.as_str()), (status, json.as_str()));
        assert_eq!((by_header.status, by_header.body.as_str()), (status, said));
        for heard in [by_json, by_header] {
            assert_eq!(heard.field("auth-status"), said);
            assert_ne!(heard.field("x-nauthilus-session"), "");
        }
    }
}

#[tokio::test]
async fn a_look_up_needs_no_password() {
    for (residence, status) in [
        (Residence::At(resident()), 200),
        (Residence::Nowhere, 403),
        (Residence::Barred(Reason::MailboxDisabled), 403),
        (Residence::Later, 500),
    ] {
        let mut fixture = Fixture::serving(Serve::Nauthilus);
        fixture.tables.residence = residence;

        let heard = fixture.send("/api/v1/auth/json?mode=no-auth", br#"{"username":"fry"}"#).await;

        assert_eq!(heard.status, status);
        assert!(fixture.asked.lock().unwrap().is_empty());
        if status == 200 {
            assert_eq!(heard.json()["attributes"]["uid"], serde_json::json!(["5000"]));
        }
    }
}

#[tokio::test]
async fn accounts_are_listed_as_json_or_text() {
    let mut fixture = Fixture::serving(Serve::Nauthilus);
    let path = "GET /api/v1/auth/json?mode=list-accounts";
    assert_eq!(fixture.ask(path, &[]).await.status, 500);
    fixture.tables.users = Some(vec!["bender@x.example", "fry@x.example"]);

    let json = fixture.ask(path, &[("Accept", b"*/*")]).await;
    let text = fixture.ask(path, &[("Accept", b"text/plain")]).await;

    assert_eq!(json.json(), serde_json::json!(["bender@x.example", "fry@x.example"]));
    assert_eq!(text.body, "bender@x.example\nfry@x.example\n");
}

#[tokio::test]
async fn one_list_is_made_at_a_time_and_counts_until_it_is_sent() {
    // Longer than what the pipe takes, so that it is still being sent when the other asks.
    let users = vec![format!("x{}@x.example", "y".repeat(900_000)).leak() as &'static str; 1];
    let mut fixture = Fixture::serving(Serve::Nauthilus);
    fixture.tables.users = Some(users);
    let door = fixture.door();
    let ask = b"GET /api/v1/auth/json?mode=list-accounts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let connect = || async {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let peer = Peer { credentials: None, address: None };
        tokio::spawn(serve(ours, peer, Arc::clone(&door), CancellationToken::new()));
        theirs.write_all(ask).await.unwrap();
        let mut start = [0; 12];
        theirs.read_exact(&mut start).await.unwrap();
        (String::from_utf8(start.to_vec()).unwrap(), theirs)
    };

    let (first, mut slow) = connect().await;
    let (second, _) = connect().await;
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.unwrap();
    let (third, _) = connect().await;

    assert_eq!([first, second, third], ["HTTP/1.1 200", "HTTP/1.1 500", "HTTP/1.1 200"]);
    assert!(rest.ends_with(b"y@x.example\"]"));
}

#[tokio::test]
async fn what_cannot_be_read_is_400() {
    let fixture = Fixture::serving(Serve::Nauthilus);
    for (path, body) in [
        ("/api/v1/auth/json", &br#"{"username":"fry"}"#[..]),
        ("/api/v1/auth/json", br#"{"password":"x"}"#),
        ("/api/v1/auth/json?mode=reload", BODY),
        ("/api/v1/auth/header", b""),
    ] {
        let heard = fixture.send(path, body).await;
        assert_eq!(heard.status, 400, "{path}");
        assert!(heard.json()["error"].is_string());
    }
}
