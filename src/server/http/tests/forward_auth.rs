use super::*;

fn basic(pair: &[u8]) -> Vec<u8> {
    format!("Basic {}", BASE64_STANDARD.encode(pair)).into_bytes()
}

#[tokio::test]
async fn whoever_is_let_in_is_named_in_the_answer() {
    let fixture = Fixture::serving(Serve::ForwardAuth);
    let credentials = basic(b"fry:a:\xff");
    let fields: [(&str, &[u8]); 4] = [
        ("Authorization", &credentials),
        ("Remote-User", b"zapp"),
        ("X-Forwarded-For", b"203.0.113.1, 192.0.2.9, 127.0.0.2"),
        ("Accept", b"text/html"),
    ];

    let heard = fixture.ask("PROPFIND /forward-auth", &fields).await;

    assert_eq!((heard.status, &*heard.body), (200, ""));
    for (field, value) in [
        ("remote-user", "fry@planetexpress.com"),
        ("remote-email", "fry@planetexpress.com"),
        ("remote-name", "Philip J. \"Fry\""),
        ("x-auth-user", "fry@planetexpress.com"),
    ] {
        assert_eq!(heard.field(field), value);
    }
    let attempt = fixture.attempt();
    assert_eq!((&*attempt.login, attempt.password.as_bytes()), (&b"fry"[..], &b"a:\xff"[..]));
    assert_eq!(attempt.service, Some(Service::Dav));
    assert_eq!(attempt.client, Some("192.0.2.9".parse().unwrap()));
}

#[tokio::test]
async fn the_query_may_name_another_service() {
    let fixture = Fixture::serving(Serve::ForwardAuth);

    let credentials = basic(b"fry:x");
    fixture.ask("GET /forward-auth?service=imap", &[("Authorization", &credentials)]).await;

    assert_eq!(fixture.attempt().service, Some(Service::Imap));
}

#[tokio::test]
async fn no_or_wrong_credentials_are_a_challenge_and_later_is_503() {
    let credentials = basic(b"fry:x");
    let right: [(&str, &[u8]); 1] = [("Authorization", &credentials)];
    let bearer: [(&str, &[u8]); 1] = [("Authorization", b"Bearer x")];
    for (verdict, fields, status) in [
        (accepted(), &[][..], 401),
        (accepted(), &bearer, 401),
        (refused(), &right, 401),
        (later(), &right, 503),
    ] {
        let fixture = Fixture { verdict, ..Fixture::serving(Serve::ForwardAuth) };

        let heard = fixture.ask("GET /forward-auth", fields).await;

        assert_eq!(heard.status, status);
        let challenge = "Basic realm=\"mail\", charset=\"UTF-8\"";
        assert_eq!(heard.field("www-authenticate") == challenge, status == 401);
        assert_eq!(heard.field("remote-user"), "");
    }
}

#[tokio::test]
async fn the_doors_token_is_another_field_than_the_users_password() {
    let mut fixture = Fixture::serving(Serve::ForwardAuth);
    fixture.listen.token = Secret::new("sesame");
    let (credentials, token) = (basic(b"fry:x"), basic(b"fry:sesame"));
    for (authorization, key, status) in
        [(&credentials, "", 403), (&token, "", 403), (&credentials, "sesame", 200)]
    {
        let fields: [(&str, &[u8]); 2] =
            [("Authorization", authorization), ("X-API-Key", key.as_bytes())];
        let heard = fixture.ask("GET /forward-auth", &fields).await;

        assert_eq!(heard.status, status, "{key}");
        assert_eq!(heard.field("www-authenticate"), "");
    }
}

#[tokio::test]
async fn a_client_that_is_its_own_peer_is_not_believed() {
    let fixture = Fixture::serving(Serve::ForwardAuth);
    let credentials = String::from_utf8(basic(b"fry:x")).unwrap();
    let request = format!(
        "GET /forward-auth HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {credentials}\r\n\
         X-Forwarded-For: 192.0.2.9\r\n\r\n"
    );

    fixture.exchange_from(Some("198.51.100.7"), request.as_bytes()).await;

    assert_eq!(fixture.attempt().client, Some("198.51.100.7".parse().unwrap()));
}
