//! Nauthilus' two shapes of a login: a JSON body, or header fields.
//!
//! ```text
//! → POST /api/v1/auth/json    {"username":"joe","password":"secret","protocol":"imap","client_ip":"192.0.2.9"}
//! ← 200  Auth-Status: OK      {"ok":true,"account_field":"account","totp_secret_field":"","backend":2,
//!        Auth-User: joe@example.org      "attributes":{"account":["joe@example.org"],…}}
//! ← 403  Auth-Status: Invalid login or password                          null
//! ← 500  Auth-Status: Temporary server problem, try again later          {"error":"Temporary server problem, …"}
//! ```
//!
//! `?mode=no-auth` looks a name up without a password, `?mode=list-accounts` gives all names. From Nauthilus' source and
//! documentation.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Serialize;

use super::json::{self, JsonError};
use crate::secret::Password;

/// What is asked: the query's `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `list-accounts`: all names.
    ListAccounts,
    /// Somebody wants in.
    Login,
    /// `no-auth`: does the name exist, and where is its mail?
    NoAuth,
}

impl Mode {
    /// Understands the query's `mode`; `None`: one that is not known. No mode, or an empty one, is a login.
    #[must_use]
    pub fn parse(mode: Option<&[u8]>) -> Option<Self> {
        match mode {
            None | Some(b"") => Some(Self::Login),
            Some(b"list-accounts") => Some(Self::ListAccounts),
            Some(b"no-auth") => Some(Self::NoAuth),
            Some(_) => None,
        }
    }
}

/// One question. What else a client sends is ignored.
#[derive(Clone, Debug)]
pub struct NauthilusRequest {
    /// `username`, bytes as they came.
    pub username: Vec<u8>,
    /// `password`, bytes as they came; empty in a look-up.
    pub password: Password,
    /// `client_ip`.
    pub client_ip: Option<IpAddr>,
    /// `protocol`, or `service` of older clients.
    pub protocol: Option<Box<str>>,
}

/// Why a request cannot be read. Never holds a value of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NauthilusError {
    /// The body.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The password is missing or empty.
    #[error("the password is missing or empty")]
    NoPassword,
    /// A header field that must be there is not.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header field does not hold what it should.
    #[error("header {0} cannot be read")]
    Unreadable(&'static str),
}

/// Reads a body. The caller has bounded its length.
///
/// # Errors
/// Names what is wrong, and the member where one is.
pub fn parse_json(body: &[u8], mode: Mode) -> Result<NauthilusRequest, NauthilusError> {
    let members = ["username", "password", "client_ip", "protocol", "service"];
    let [username, password, client_ip, protocol, service] = json::strings(body, &members)?;
    let mut password = password.unwrap_or_default();
    let protocol = json::optional_text("protocol", protocol)?;
    let request = NauthilusRequest {
        username: json::required("username", username)?,
        password: Password::new(std::mem::take(&mut *password)),
        client_ip: json::optional_address("client_ip", client_ip)?,
        protocol: protocol.or(json::optional_text("service", service)?),
    };
    request.complete(mode)
}

/// Reads header fields. `field` gives a field's value by its name in lower case.
///
/// # Errors
/// Names the field that is wrong.
pub fn parse_headers<'a>(
    field: impl Fn(&str) -> Option<&'a [u8]>,
    mode: Mode,
) -> Result<NauthilusRequest, NauthilusError> {
    let username = field("auth-user").filter(|name| !name.is_empty());
    let username = username.ok_or(NauthilusError::Missing("Auth-User"))?;
    let password = field("auth-pass").unwrap_or_default();
    let password = match field("x-auth-password-encoded") {
        Some(b"1") => {
            let unreadable = |_| NauthilusError::Unreadable("Auth-Pass");
            URL_SAFE_ANY_PADDING.decode(password).map_err(unreadable)?
        }
        _ => password.to_vec(),
    };
    let text = |name: &str, shown: &'static str| match field(name).filter(|it| !it.is_empty()) {
        None => Ok(None),
        Some(value) => {
            std::str::from_utf8(value).map(Some).map_err(|_| NauthilusError::Unreadable(shown))
        }
    };
    let client_ip = match text("client-ip", "Client-IP")? {
        None => None,
        Some(text) => {
            let unreadable = |_| NauthilusError::Unreadable("Client-IP");
            Some(text.parse::<IpAddr>().map_err(unreadable)?.to_canonical())
        }
    };
    let protocol = text("auth-protocol", "Auth-Protocol")?.map(Into::into);
    let username = username.to_vec();
    let password = Password::new(password);
    NauthilusRequest { username, password, client_ip, protocol }.complete(mode)
}

impl NauthilusRequest {
    fn complete(self, mode: Mode) -> Result<Self, NauthilusError> {
        if mode == Mode::Login && self.password.as_bytes().is_empty() {
            return Err(NauthilusError::NoPassword);
        }
        Ok(self)
    }
}

const URL_SAFE_ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// `Auth-Status` of a yes.
pub const STATUS_OK: &str = "OK";
/// `Auth-Status` of a no.
pub const STATUS_REFUSED: &str = "Invalid login or password";
/// `Auth-Status`, and the error in the body, of "later".
pub const STATUS_LATER: &str = "Temporary server problem, try again later";

/// The body of a yes.
#[derive(Clone, Debug, Serialize)]
pub struct OkAnswer<'a> {
    ok: bool,
    account_field: &'static str,
    totp_secret_field: &'static str,
    backend: u8,
    attributes: BTreeMap<&'a str, [&'a str; 1]>,
}

impl<'a> OkAnswer<'a> {
    /// `backend`: Nauthilus' number of who vouched; `fields`: what is known of the account.
    #[must_use]
    pub fn new(account: &'a str, backend: u8, fields: &'a [(String, String)]) -> Self {
        let fields = fields.iter().map(|(key, value)| (key.as_str(), [value.as_str()]));
        Self {
            ok: true,
            account_field: ACCOUNT_FIELD,
            totp_secret_field: "",
            backend,
            attributes: fields.chain([(ACCOUNT_FIELD, [account])]).collect(),
        }
    }

    /// As JSON.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and lists of strings: there is nothing in it that JSON could not hold.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

const ACCOUNT_FIELD: &str = "account";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json_error(body: &str, mode: Mode) -> String {
        parse_json(body.as_bytes(), mode).unwrap_err().to_string()
    }

    #[test]
    fn a_body_is_read_in_its_newer_and_its_older_spelling() {
        for (member, expected) in [
            (r#""protocol":"imap""#, Some("imap")),
            (r#""service":"smtp""#, Some("smtp")),
            (r#""service":"smtp","protocol":"imap""#, Some("imap")),
            (r#""protocol":"""#, None),
        ] {
            let body = format!(
                r#"{{"username":"joe","password":"s","client_ip":"192.0.2.9","client_port":"47110",
                    "client_hostname":"x","local_ip":"::1","method":"plain","ssl":"on",{member}}}"#
            );
            let request = parse_json(body.as_bytes(), Mode::Login).unwrap();
            assert_eq!(request.username, b"joe");
            assert_eq!(request.password.as_bytes(), b"s");
            assert_eq!(request.client_ip, Some("192.0.2.9".parse().unwrap()));
            assert_eq!(request.protocol.as_deref(), expected, "{member}");
        }
    }

    #[test]
    fn a_login_needs_a_password_and_a_look_up_does_not() {
        for body in [r#"{"username":"joe"}"#, r#"{"username":"joe","password":""}"#] {
            assert_eq!(json_error(body, Mode::Login), "the password is missing or empty");
            assert!(parse_json(body.as_bytes(), Mode::NoAuth).is_ok());
        }
        assert_eq!(json_error("{}", Mode::NoAuth), "member username is missing");
    }

    fn headers(fields: &[(&str, &[u8])]) -> Result<NauthilusRequest, NauthilusError> {
        let field = |name: &str| {
            fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_vec())
        };
        let kept: Vec<_> =
            ["auth-user", "auth-pass", "x-auth-password-encoded", "client-ip", "auth-protocol"]
                .map(|name| (name, field(name)))
                .into();
        parse_headers(
            |name| kept.iter().find(|(key, _)| *key == name).and_then(|(_, it)| it.as_deref()),
            Mode::Login,
        )
    }

    #[test]
    fn passwords_in_headers_may_be_encoded_with_or_without_padding() {
        for (value, encoded, password) in [
            (&b"secret"[..], &b"0"[..], &b"secret"[..]),
            (b"_-8", b"1", b"\xff\xef"),
            (b"_-8=", b"1", b"\xff\xef"),
            (b"_-8=", b"", b"_-8="),
        ] {
            let request = headers(&[
                ("auth-user", b"joe"),
                ("auth-pass", value),
                ("x-auth-password-encoded", encoded),
                ("auth-protocol", b"imap"),
                ("client-ip", b"192.0.2.9"),
            ])
            .unwrap();
            assert_eq!(request.password.as_bytes(), password);
            assert_eq!(request.protocol.as_deref(), Some("imap"));
        }
    }

    #[test]
    fn a_bad_header_is_named_and_its_value_is_not() {
        for (fields, message) in [
            (&[][..], "header Auth-User is missing"),
            (&[("auth-user", &b"joe"[..])], "the password is missing or empty"),
            (
                &[
                    ("auth-user", &b"joe"[..]),
                    ("auth-pass", b"+/"),
                    ("x-auth-password-encoded", b"1"),
                ],
                "header Auth-Pass cannot be read",
            ),
            (
                &[("auth-user", &b"joe"[..]), ("auth-pass", b"x"), ("client-ip", b"here")],
                "header Client-IP cannot be read",
            ),
        ] {
            assert_eq!(headers(fields).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_yes_names_the_account_among_its_attributes() {
        let fields = [("uid".to_owned(), "5000".to_owned()), ("home".into(), "/srv/joe".into())];

        let body = OkAnswer::new("joe@example.org", 2, &fields).encode();

        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"ok":true,"account_field":"account","totp_secret_field":"","backend":2,"attributes":{"account":["joe@example.org"],"home":["/srv/joe"],"uid":["5000"]}}"#
        );
    }

    #[test]
    fn modes_have_names() {
        for (mode, expected) in [
            (None, Some(Mode::Login)),
            (Some(&b""[..]), Some(Mode::Login)),
            (Some(b"no-auth"), Some(Mode::NoAuth)),
            (Some(b"list-accounts"), Some(Mode::ListAccounts)),
            (Some(b"reload"), None),
        ] {
            assert_eq!(Mode::parse(mode), expected);
        }
    }

    proptest! {
        #[test]
        fn any_password_comes_through_both_shapes(password in proptest::collection::vec(any::<u8>(), 1..64)) {
            let encoded = base64::prelude::BASE64_URL_SAFE.encode(&password);
            let request = headers(&[
                ("auth-user", b"joe"), ("auth-pass", encoded.as_bytes()), ("x-auth-password-encoded", b"1"),
            ]).unwrap();
            prop_assert_eq!(request.password.as_bytes(), &*password);
            let text = String::from_utf8_lossy(&password).into_owned();
            let body = serde_json::json!({ "username": "joe", "password": text }).to_string();
            let request = parse_json(body.as_bytes(), Mode::Login).unwrap();
            prop_assert_eq!(request.password.as_bytes(), text.as_bytes());
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse_json(&bytes, Mode::NoAuth);
            let _ = parse_headers(|_| Some(&bytes), Mode::Login);
        }
    }
}
