use super::*;

#[tokio::test]
async fn tables_answer_a_value_nothing_or_later() {
    let value = Found::Value("fry@planetexpress.com".into());
    for (found, status, body) in [
        (value, 200, serde_json::json!({ "value": "fry@planetexpress.com" })),
        (Found::Nothing, 404, serde_json::json!({ "value": null })),
        (Found::Later, 503, serde_json::json!({ "error": "nobody can say now" })),
    ] {
        for map in Map::ALL {
            let mut fixture = Fixture::serving(Serve::Lookup);
            fixture.tables.found = vec![(*map, found.clone())];

            let heard = fixture.get(&format!("/v1/lookup/{}/fry%40x", map.as_str())).await;

            assert_eq!((heard.status, heard.json()), (status, body.clone()));
            assert_eq!(heard.field("retry-after"), if status == 503 { "1" } else { "" });
        }
    }
}

#[tokio::test]
async fn a_mailbox_is_answered_as_an_object_or_as_lines() {
    let mut fixture = Fixture::serving(Serve::Lookup);
    fixture.tables.residence = Residence::At(resident());

    let json = fixture.get("/v1/lookup/userdb/fry").await;
    let text = fixture.ask("GET /v1/lookup/userdb/fry", &[("Accept", b"text/plain")]).await;

    let fields = serde_json::json!({
        "user": "fry@planetexpress.com", "uid": "5000", "gid": "5001", "home": "/srv/mail/sample",
    });
    assert_eq!(json.json(), serde_json::json!({ "value": fields }));
    assert_eq!(
        text.body,
        "user=fry@planetexpress.com\nuid=5000\ngid=5001\nhome=/srv/mail/sample\n"
    );
    for (residence, status) in [(Residence::Nowhere, 404), (Residence::Later, 503)] {
        fixture.tables.residence = residence;
        assert_eq!(fixture.get("/v1/lookup/userdb/fry").await.status, status);
    }
}

#[tokio::test]
async fn a_mailbox_that_may_not_log_in_is_no_unknown_one() {
    let mut fixture = Fixture::serving(Serve::Lookup);
    fixture.tables.residence = Residence::Barred(Reason::MailboxDisabled);
    let path = "/v1/lookup/userdb/fry?service=imap";

    let json = fixture.get(path).await;
    let text = fixture.ask(&format!("GET {path}"), &[("Accept", b"text/plain")]).await;

    assert_eq!((json.status, text.status), (403, 403));
    assert_eq!(json.json(), serde_json::json!({ "reason": "mailbox-disabled", "value": null }));
    assert_eq!(text.body, "reason=mailbox-disabled\n");
}

#[tokio::test]
async fn users_come_in_pages() {
    let mut fixture = Fixture::serving(Serve::Lookup);
    assert_eq!(fixture.get("/v1/lookup/users").await.status, 503);
    fixture.tables.users = Some(vec!["a@x", "b@x", "c@x"]);
    for (query, body) in [
        ("", r#"{"next":null,"value":["a@x","b@x","c@x"]}"#),
        ("?limit=2", r#"{"next":"b@x","value":["a@x","b@x"]}"#),
        ("?limit=2&after=b%40x", r#"{"next":null,"value":["c@x"]}"#),
        ("?after=c@x", r#"{"next":null,"value":[]}"#),
    ] {
        let heard = fixture.get(&format!("/v1/lookup/users{query}")).await;
        assert_eq!(heard.body, body, "{query}");
    }

    let text = fixture.ask("GET /v1/lookup/users?limit=2", &[("Accept", b"text/plain")]).await;
    assert_eq!(text.body, "a@x\nb@x\n");
}

#[tokio::test]
async fn a_table_that_does_not_exist_is_no_missing_address() {
    let fixture = Fixture::serving(Serve::Lookup);
    for path in ["mailboxes/x", "mailbox/", "mailbox", "userdb/", "users/x", "users?limit=0"] {
        let heard = fixture.get(&format!("/v1/lookup/{path}")).await;
        assert_eq!(heard.status, 400, "{path}");
    }
}
