//! What nginx' mail proxy asks (`auth_http`) and how it is answered. Questions and answers are header fields only.
//!
//! ```text
//! → Auth-Method: plain            ← Auth-Status: OK
//!   Auth-User: joe                  Auth-Server: 127.0.0.1
//!   Auth-Pass: p%25w%20d            Auth-Port: 143
//!   Auth-Protocol: imap             Auth-User: joe@example.org
//!   Auth-Login-Attempt: 1
//!   Client-IP: 192.0.2.9          ← Auth-Status: [AUTHENTICATIONFAILED] Authentication failed.
//!                                   Auth-Wait: 2
//! ```
//!
//! nginx escapes blank, `%` and the bytes 00 to 1F of user and password, and nothing else: `+` is a plus, and what is not
//! ASCII comes raw. From nginx' source and experiments with 1.22.

use std::net::{IpAddr, SocketAddr};

use super::http::percent_decoded;
use crate::secret::Password;

/// The head of an answer must fit into nginx' buffer, status line and all.
pub const MAX_HEAD_BYTES: usize = 1024;

/// One question.
#[derive(Clone, Debug)]
pub struct NginxRequest {
    /// What nginx wants to know.
    pub question: Question,
    /// `Auth-Protocol`.
    pub protocol: MailProtocol,
    /// `Auth-Login-Attempt`: 1 at the first try of a connection.
    pub attempt: u32,
    /// `Client-IP`.
    pub client_ip: Option<IpAddr>,
}

/// What nginx wants to know.
#[derive(Clone, Debug)]
pub enum Question {
    /// `Auth-Method: plain`: may this person in?
    Login {
        /// `Auth-User`.
        user: Vec<u8>,
        /// `Auth-Pass`.
        password: Password,
    },
    /// `Auth-Method: none`: SMTP without AUTH; is this recipient one of ours?
    Recipient(Vec<u8>),
    /// CRAM-MD5, APOP, EXTERNAL: a way to log in that is not offered.
    Unoffered,
}

/// What nginx speaks with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailProtocol {
    /// IMAP.
    Imap,
    /// POP3.
    Pop3,
    /// SMTP.
    Smtp,
}

impl MailProtocol {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Imap, Self::Pop3, Self::Smtp];

    /// Its name in `Auth-Protocol`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
            Self::Smtp => "smtp",
        }
    }
}

/// Why a request cannot be read. Never holds a value of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("header {0} is missing or cannot be read")]
pub struct NginxError(&'static str);

/// Reads a request. `field` gives a field's value by its name in lower case.
///
/// # Errors
/// Names the field that is missing or wrong.
pub fn parse<'a>(field: impl Fn(&str) -> Option<&'a [u8]>) -> Result<NginxRequest, NginxError> {
    let protocol = field("auth-protocol");
    let protocol =
        MailProtocol::ALL.into_iter().find(|it| protocol == Some(it.as_str().as_bytes()));
    let decoded = |name: &str, shown| Ok(percent_decoded(field(name).ok_or(NginxError(shown))?));
    let question = match field("auth-method") {
        Some(b"plain") => Question::Login {
            user: decoded("auth-user", "Auth-User")?,
            password: Password::new(decoded("auth-pass", "Auth-Pass")?),
        },
        Some(b"none") => {
            let command = field("auth-smtp-to").and_then(recipient);
            Question::Recipient(command.ok_or(NginxError("Auth-SMTP-To"))?)
        }
        Some(_) => Question::Unoffered,
        None => return Err(NginxError("Auth-Method")),
    };
    let text = |name: &str| std::str::from_utf8(field(name)?).ok();
    let client_ip = text("client-ip").and_then(|text| text.parse::<IpAddr>().ok());
    Ok(NginxRequest {
        question,
        protocol: protocol.ok_or(NginxError("Auth-Protocol"))?,
        attempt: text("auth-login-attempt").and_then(|text| text.parse().ok()).unwrap_or(1),
        client_ip: client_ip.map(|address| address.to_canonical()),
    })
}

/// The address in a whole command `RCPT TO:<joe@example.org> NOTIFY=NEVER`; `None`: that is no such command.
fn recipient(command: &[u8]) -> Option<Vec<u8>> {
    let path = strip_word(command.trim_ascii_start(), b"rcpt")?.trim_ascii_start();
    let path = strip_word(path, b"to:")?.trim_ascii_start();
    let Some(path) = path.strip_prefix(b"<") else {
        // RFC 5321 §3.3 wants the brackets; some clients leave them out.
        let end = path.iter().position(u8::is_ascii_whitespace).unwrap_or(path.len());
        return path.get(..end).filter(|address| !address.is_empty()).map(<[u8]>::to_vec);
    };
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in path.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(without_route(path.get(..at)?).to_vec()),
            _ => {}
        }
    }
    None
}

fn strip_word<'a>(text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    let (given, rest) = text.split_at_checked(word.len())?;
    given.eq_ignore_ascii_case(word).then_some(rest)
}

/// RFC 5321 §4.1.1.3: a source route (`@a,@b:`) should be stripped.
fn without_route(path: &[u8]) -> &[u8] {
    if !path.starts_with(b"@") {
        return path;
    }
    let colon = path.iter().position(|byte| *byte == b':');
    colon.and_then(|at| path.get(at + 1..)).unwrap_or(path)
}

/// What nginx is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NginxAnswer<'a> {
    /// Pass the session on.
    Pass {
        /// Where to.
        upstream: SocketAddr,
        /// The canonical name, with which nginx logs in there; `None`: nobody logs in.
        user: Option<&'a str>,
    },
    /// Do not.
    Refuse {
        /// `Auth-Status`: what the client reads.
        status: &'a str,
        /// `Auth-Error-Code`: what stands before it in SMTP.
        error_code: Option<&'a str>,
        /// `Auth-Wait`: seconds after which the client hears it and may try again; `None`: it hears it at once and is
        /// disconnected.
        wait_seconds: Option<u32>,
    },
}

impl NginxAnswer<'_> {
    /// The fields to send. Values hold neither CR nor LF: they are words of ours, numbers, and addresses.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        match *self {
            Self::Pass { upstream, user } => {
                let mut fields = vec![
                    ("auth-status", "OK".to_owned()),
                    // A literal address; nginx takes neither names nor brackets.
                    ("auth-server", upstream.ip().to_string()),
                    ("auth-port", upstream.port().to_string()),
                ];
                fields.extend(user.map(|user| ("auth-user", user.to_owned())));
                fields
            }
            Self::Refuse { status, error_code, wait_seconds } => {
                let mut fields = vec![("auth-status", status.to_owned())];
                fields.extend(error_code.map(|code| ("auth-error-code", code.to_owned())));
                fields.extend(wait_seconds.map(|seconds| ("auth-wait", seconds.to_string())));
                fields
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(fields: &[(&str, &'static [u8])]) -> Result<NginxRequest, NginxError> {
        parse(|name| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| *value))
    }

    #[test]
    fn a_login_is_decoded_and_stays_bytes() {
        let request = parsed(&[
            ("auth-method", b"plain"),
            ("auth-user", b"joe%20x"),
            ("auth-pass", b"p%25w%20+\xc3\xbc\xff"),
            ("auth-protocol", b"pop3"),
            ("auth-login-attempt", b"3"),
            ("client-ip", b"192.0.2.9"),
        ])
        .unwrap();

        let Question::Login { user, password } = request.question else { panic!("a login") };
        assert_eq!(user, b"joe x");
        assert_eq!(password.as_bytes(), b"p%w +\xc3\xbc\xff");
        assert_eq!((request.protocol, request.attempt), (MailProtocol::Pop3, 3));
        assert_eq!(request.client_ip, Some("192.0.2.9".parse().unwrap()));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (fields, message) in [
            (&[][..], "header Auth-Method is missing or cannot be read"),
            (&[("auth-method", &b"plain"[..])], "header Auth-User is missing or cannot be read"),
            (
                &[("auth-method", &b"cram-md5"[..]), ("auth-protocol", b"http")],
                "header Auth-Protocol is missing or cannot be read",
            ),
            (
                &[
                    ("auth-method", &b"none"[..]),
                    ("auth-protocol", b"smtp"),
                    ("auth-smtp-to", b"RSET"),
                ],
                "header Auth-SMTP-To is missing or cannot be read",
            ),
        ] {
            assert_eq!(parsed(fields).unwrap_err().to_string(), message);
        }
        for method in ["apop", "cram-md5", "external"] {
            let request =
                parsed(&[("auth-method", method.as_bytes()), ("auth-protocol", b"imap")]).unwrap();
            assert!(matches!(request.question, Question::Unoffered), "{method}");
        }
    }

    #[test]
    fn a_recipient_is_read_from_the_whole_command() {
        for (command, address) in [
            ("RCPT TO:<joe@example.org>", Some("joe@example.org")),
            ("rcpt to: <joe@example.org> NOTIFY=NEVER ORCPT=rfc822;x", Some("joe@example.org")),
            ("RCPT  TO:joe@example.org SIZE=1", Some("joe@example.org")),
            (r#"RCPT TO:<"a>\"b"@example.org>"#, Some(r#""a>\"b"@example.org"#)),
            ("RCPT TO:<@relay.example,@b:joe@example.org>", Some("joe@example.org")),
            ("RCPT TO:<>", Some("")),
            ("RCPT TO:<joe@example.org", None),
            ("RCPT TO:", None),
            ("MAIL FROM:<joe@example.org>", None),
            ("", None),
        ] {
            let read = recipient(command.as_bytes());
            assert_eq!(read.as_deref(), address.map(str::as_bytes), "{command}");
        }
    }

    #[test]
    fn answers_are_fields() {
        let pass = NginxAnswer::Pass { upstream: "[::1]:143".parse().unwrap(), user: Some("joe") };
        assert_eq!(
            pass.fields(),
            [
                ("auth-status", "OK"),
                ("auth-server", "::1"),
                ("auth-port", "143"),
                ("auth-user", "joe")
            ]
            .map(|(name, value)| (name, value.to_owned()))
        );
        let refuse =
            NginxAnswer::Refuse { status: "no", error_code: Some("550"), wait_seconds: Some(2) };
        assert_eq!(
            refuse.fields(),
            [("auth-status", "no"), ("auth-error-code", "550"), ("auth-wait", "2")]
                .map(|(name, value)| (name, value.to_owned()))
        );
    }

    /// As nginx escapes it (`ngx_mail_auth_http_escape`).
    fn escaped(bytes: &[u8]) -> Vec<u8> {
        let escape = |byte: &u8| match byte {
            0..=0x20 | b'%' => format!("%{byte:02X}").into_bytes(),
            _ => vec![*byte],
        };
        bytes.iter().flat_map(escape).collect()
    }

    proptest! {
        #[test]
        fn what_nginx_escapes_comes_back(user: Vec<u8>, password: Vec<u8>) {
            let (user_field, pass_field) = (escaped(&user), escaped(&password));
            let request = parse(|name| match name {
                "auth-method" => Some(&b"plain"[..]),
                "auth-protocol" => Some(b"imap"),
                "auth-user" => Some(&user_field),
                "auth-pass" => Some(&pass_field),
                _ => None,
            }).unwrap();
            let Question::Login { user: read, password: secret } = request.question else {
                panic!("a login")
            };
            prop_assert_eq!((read, secret.as_bytes()), (user, &*password));
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let _ = recipient(&bytes);
            let _ = parse(|_| Some(&bytes));
        }
    }
}
