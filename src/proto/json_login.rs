//! `POST /v1/login`: the JSON body in, the JSON answer out.
//!
//! ```text
//! → {"username": "joe@example.org", "password": "secret", "service": "imap", "client_ip": "192.0.2.9"}
//! ← {"verdict":"accept","user":"joe@example.org","mailbox":{"address":"joe@example.org",…},"source":"memory"}
//! ← {"verdict":"refuse","reason":"wrong-password"}
//! ← {"verdict":"later","reason":"directory-unavailable"}
//! ```

use std::net::IpAddr;

use serde::Serialize;

use super::json::{self, JsonError};
use crate::secret::Password;

/// Someone wants in. Members that are not listed here are ignored.
#[derive(Clone, Debug)]
pub struct LoginRequest {
    /// `username`, bytes as they came.
    pub username: Vec<u8>,
    /// `password`, bytes as they came: UTF-8 or not, because other servers' scripts paste what was typed.
    pub password: Password,
    /// `service`: imap, smtp …; `null` and "" count as absent, here and below.
    pub service: Option<Box<str>>,
    /// `client_ip`: the address of the person's client.
    pub client_ip: Option<IpAddr>,
    /// `session`: the caller's session id.
    pub session: Option<Box<str>>,
}

/// Reads the body of a request. The caller has bounded its length.
///
/// # Errors
/// Names what is wrong, and the member where one is.
pub fn parse(body: &[u8]) -> Result<LoginRequest, JsonError> {
    let members = ["username", "password", "service", "client_ip", "session"];
    let [username, password, service, client_ip, session] = json::strings(body, &members)?;
    Ok(LoginRequest {
        username: json::required("username", username)?,
        password: Password::new(json::required("password", password)?),
        client_ip: json::optional_address("client_ip", client_ip)?,
        service: json::optional_text("service", service)?,
        session: json::optional_text("session", session)?,
    })
}

/// The answer to a login.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum VerdictAnswer<'a> {
    /// Let them in: status 200.
    Accept {
        /// The canonical name.
        user: &'a str,
        /// The mailbox as this login left it.
        mailbox: MailboxAnswer<'a>,
        /// Who vouched: directory, memory, grace.
        source: &'a str,
    },
    /// Do not: status 403.
    Refuse {
        /// A word of the closed list of reasons.
        reason: &'a str,
    },
    /// Nobody can say now: status 503.
    Later {
        /// A word of the closed list of reasons.
        reason: &'a str,
    },
}

/// What a caller learns of a mailbox.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MailboxAnswer<'a> {
    /// The canonical address.
    pub address: &'a str,
    /// The name people see; may be empty.
    pub display_name: &'a str,
    /// Bytes; 0: no limit.
    pub quota: u64,
    /// imap, pop3, smtp, sieve, dav.
    pub protocols: &'a [&'a str],
    /// The template it was made from.
    pub template: &'a str,
    /// The home directory.
    pub home: &'a str,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
    /// Whether it may be used.
    pub active: bool,
}

/// The answer as JSON, without a final newline.
#[must_use]
pub fn encode_verdict(answer: &VerdictAnswer<'_>) -> Vec<u8> {
    // Strings, numbers and lists of strings: there is nothing in it that JSON could not hold.
    serde_json::to_vec(answer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(body: &[u8]) -> String {
        parse(body).unwrap_err().to_string()
    }

    #[test]
    fn a_full_request_is_read_and_other_members_are_ignored() {
        let request = parse(
            br#" {"x": [1, {"username": "no"}], "username": "joe", "password": "p\u00e4ss", "service": "imap",
                "client_ip": "::ffff:192.0.2.9", "session": "abc", "x": null} "#,
        )
        .unwrap();

        assert_eq!(request.username, b"joe");
        assert_eq!(request.password.as_bytes(), "päss".as_bytes());
        assert_eq!(request.service.as_deref(), Some("imap"));
        assert_eq!(request.client_ip, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(request.session.as_deref(), Some("abc"));
    }

    #[test]
    fn optional_members_may_be_missing_null_or_empty() {
        for rest in ["", r#","service":null,"client_ip":null"#, r#","service":"","client_ip":"""#] {
            let body = format!(r#"{{"username":"joe","password":""{rest}}}"#);
            let request = parse(body.as_bytes()).unwrap();
            assert!(request.service.is_none() && request.client_ip.is_none());
            assert!(request.password.as_bytes().is_empty());
        }
    }

    #[test]
    fn passwords_are_bytes_even_when_they_are_not_utf_8() {
        let mut body = br#"{"username":"j\u0000\n","password":""#.to_vec();
        body.extend_from_slice(b"\xff\xfe\\u0000\\\"\t");
        body.extend_from_slice(br#""}"#);

        let request = parse(&body).unwrap();

        assert_eq!(request.username, b"j\0\n");
        assert_eq!(request.password.as_bytes(), b"\xff\xfe\0\"\t");
    }

    #[test]
    fn a_bad_member_is_named_and_its_value_is_not() {
        for (body, message) in [
            (r#"{"password":"x"}"#, "member username is missing"),
            (r#"{"username":"x"}"#, "member password is missing"),
            (r#"{"username":"x","password":null}"#, "member password is missing"),
            ("{}", "member username is missing"),
            (r#"{"username":"x","password":4711}"#, "member password is not a string"),
            (r#"{"username":"x","password":-47.11}"#, "member password is not a string"),
            (r#"{"username":"x","password":true}"#, "member password is not a string"),
            (r#"{"username":"x","password":[52,55]}"#, "member password is not a string"),
            (r#"{"username":"x","password":{"a":1}}"#, "member password is not a string"),
            (r#"{"username":1,"password":"x"}"#, "member username is not a string"),
            (r#"{"username":"x","password":"x","service":3}"#, "member service is not a string"),
            (
                r#"{"username":"x","password":"a","password":"b"}"#,
                "member password is there more than once",
            ),
            (
                r#"{"username":null,"username":"x","password":"b"}"#,
                "member username is there more than once",
            ),
            (
                r#"{"username":"x","user\u006eame":"y","password":"b"}"#,
                "member username is there more than once",
            ),
            (
                r#"{"username":"x","password":"x","client_ip":"300.1.1.1"}"#,
                "member client_ip is not an IP address",
            ),
        ] {
            assert_eq!(error(body.as_bytes()), message, "{body}");
        }
        assert_eq!(
            error(b"{\"username\":\"x\",\"password\":\"x\",\"session\":\"\xff\"}"),
            "member session is not UTF-8"
        );
    }

    #[test]
    fn what_is_no_json_object_is_said_to_be_none() {
        for body in [&b"[]"[..], b"\"x\"", b"1", b"null", b"[\"joe\",\"x\"]"] {
            assert_eq!(error(body), "body is not a JSON object", "{body:?}");
        }
        for body in [
            &b""[..],
            b"{",
            b"username=joe&password=x",
            b"{\"username\":\"x\",\"password\":\"hunter2",
            b"{\"username\":\"x\",\"password\":\"x\"} {}",
            b"{\"username\":\"x\",\"password\":\"\\q\"}",
            b"{\"username\":\"x\" \"password\":\"x\"}",
            b"{1:2}",
        ] {
            assert!(error(body).starts_with("body is not JSON: line 1, column "), "{body:?}");
        }
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_hides_the_login() {
        let deep = "[".repeat(30_000) + &"]".repeat(30_000);
        let body = format!(r#"{{"x":{deep},"username":"joe","password":"x"}}"#);

        match parse(body.as_bytes()) {
            Ok(request) => assert_eq!(request.username, b"joe"),
            Err(error) => assert!(matches!(error, JsonError::Syntax { .. })),
        }
        assert_eq!(error("[".repeat(60_000).as_bytes()), "body is not a JSON object");
        let inside = format!(r#"{{"username":"x","password":{deep}}}"#);
        assert_eq!(error(inside.as_bytes()), "member password is not a string");
    }

    #[test]
    fn debug_output_never_shows_the_password() {
        let request = parse(br#"{"username":"joe","password":"hunter2"}"#).unwrap();

        assert!(!format!("{request:?}").contains("hunter2"));
    }

    #[test]
    fn verdicts_have_their_three_shapes() {
        let mailbox = MailboxAnswer {
            address: "joe@example.org",
            display_name: "Joe \"J\"",
            quota: 1_073_741_824,
            protocols: &["imap", "smtp"],
            template: "staff",
            home: "/var/mail/joe",
            uid: 5000,
            gid: 5001,
            active: true,
        };
        let accept =
            VerdictAnswer::Accept { user: "joe@example.org", mailbox, source: "directory" };

        assert_eq!(
            String::from_utf8(encode_verdict(&accept)).unwrap(),
            r#"{"verdict":"accept","user":"joe@example.org","mailbox":{"address":"joe@example.org","display_name":"Joe \"J\"","quota":1073741824,"protocols":["imap","smtp"],"template":"staff","home":"/var/mail/joe","uid":5000,"gid":5001,"active":true},"source":"directory"}"#
        );
        assert_eq!(
            encode_verdict(&VerdictAnswer::Refuse { reason: "wrong-password" }),
            br#"{"verdict":"refuse","reason":"wrong-password"}"#
        );
        assert_eq!(
            encode_verdict(&VerdictAnswer::Later { reason: "busy" }),
            br#"{"verdict":"later","reason":"busy"}"#
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(body: Vec<u8>) {
            let _ = parse(&body);
        }

        #[test]
        fn any_bytes_come_through(username: Vec<u8>, password: Vec<u8>, session in "[^\"\\\\\\pC]{1,20}") {
            let quoted = |bytes: &[u8]| {
                let escape = |byte: &u8| match byte {
                    b'"' | b'\\' => vec![b'\\', *byte],
                    _ => vec![*byte],
                };
                bytes.iter().flat_map(escape).collect::<Vec<_>>()
            };
            let body = [
                &b"{\"password\":\""[..], &quoted(&password), b"\",\"session\":\"", session.as_bytes(),
                b"\",\"username\":\"", &quoted(&username), b"\"}",
            ];

            let request = parse(&body.concat()).unwrap();

            prop_assert_eq!(request.username, username);
            prop_assert_eq!(request.password.as_bytes(), password);
            prop_assert_eq!(request.session.as_deref(), Some(&*session));
        }

        #[test]
        fn any_verdict_is_json(user: String, home: String, quota: u64) {
            let mailbox = MailboxAnswer {
                address: &user,
                display_name: &home,
                quota,
                protocols: &[&user, &home],
                template: &user,
                home: &home,
                uid: 1,
                gid: 2,
                active: true,
            };
            let accept = VerdictAnswer::Accept { user: &user, mailbox, source: "memory" };
            let read: serde_json::Value = serde_json::from_slice(&encode_verdict(&accept)).unwrap();
            prop_assert_eq!(&read["user"], &*user);
            prop_assert_eq!(&read["mailbox"]["home"], &*home);
            prop_assert_eq!(&read["mailbox"]["quota"], quota);
            prop_assert_eq!(&read["mailbox"]["protocols"], &serde_json::json!([user, home]));
        }

        #[test]
        fn any_text_comes_through_json_unchanged(username: String, password: String) {
            let body = serde_json::json!({ "username": username, "password": password });
            let request = parse(body.to_string().as_bytes()).unwrap();
            prop_assert_eq!(request.username, username.as_bytes());
            prop_assert_eq!(request.password.as_bytes(), password.as_bytes());
        }
    }
}
