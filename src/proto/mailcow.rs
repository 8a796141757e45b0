//! mailcow's login endpoint, as its Dovecot script asks it.
//!
//! ```text
//! → {"username":"joe@example.org","password":"secret","real_rip":"192.0.2.9","service":"imap"}
//! ← 200 {"success":true}
//! ← 401 {"success":false}
//! ```
//!
//! The script pastes name and password into the body as they were typed, UTF-8 or not. From its source (mailcow-dockerized,
//! `passwd-verify.lua` and `mailcowauth.php`).

use std::net::IpAddr;

use super::json::{self, JsonError};
use crate::secret::Password;

/// Someone wants in. Members that are not listed here are ignored.
#[derive(Clone, Debug)]
pub struct MailcowRequest {
    /// `username`, bytes as they came.
    pub username: Vec<u8>,
    /// `password`, bytes as they came.
    pub password: Password,
    /// `real_rip`: must be there, but need not be an address ("" where Dovecot knows none).
    pub client_ip: Option<IpAddr>,
    /// `service`; absent: no protocol is checked.
    pub service: Option<Box<str>>,
}

/// Reads the body of a request. The caller has bounded its length.
///
/// # Errors
/// Names what is wrong, and the member where one is.
pub fn parse(body: &[u8]) -> Result<MailcowRequest, JsonError> {
    let members = ["username", "password", "real_rip", "service"];
    let [username, password, real_rip, service] = json::strings(body, &members)?;
    let username = json::required("username", username)?;
    let password = Password::new(json::required("password", password)?);
    let real_rip = json::required("real_rip", real_rip)?;
    let address = std::str::from_utf8(&real_rip).ok().and_then(|text| text.parse::<IpAddr>().ok());
    let client_ip = address.map(|address| address.to_canonical());
    Ok(MailcowRequest {
        username,
        password,
        client_ip,
        service: json::optional_text("service", service)?,
    })
}

/// The body of every answer.
#[must_use]
pub fn answer(success: bool) -> &'static str {
    if success { r#"{"success":true}"# } else { r#"{"success":false}"# }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_scripts_request_is_read() {
        let mut body = br#"{"username":"joe@example.org","password":""#.to_vec();
        body.extend_from_slice(b"s\xff\xe9cret");
        body.extend_from_slice(br#"","real_rip":"::ffff:192.0.2.9","service":"imap"}"#);

        let request = parse(&body).unwrap();

        assert_eq!(request.username, b"joe@example.org");
        assert_eq!(request.password.as_bytes(), b"s\xff\xe9cret");
        assert_eq!(request.client_ip, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(request.service.as_deref(), Some("imap"));
    }

    #[test]
    fn only_the_service_may_be_missing() {
        let without_service = r#"{"username":"joe","password":"x","real_rip":"","service":null}"#;
        let request = parse(without_service.as_bytes()).unwrap();
        assert!(request.service.is_none() && request.client_ip.is_none());
        for (body, message) in [
            (r#"{"password":"x","real_rip":""}"#, "member username is missing"),
            (r#"{"username":"joe","real_rip":""}"#, "member password is missing"),
            (r#"{"username":"joe","password":"x"}"#, "member real_rip is missing"),
            (r#"{"username":"joe","password":1,"real_rip":""}"#, "member password is not a string"),
            ("username=joe", "body is not JSON: line 1, column 1"),
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap_err().to_string(), message, "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_through_unchanged(username: String, password: String) {
            let body = serde_json::json!({ "username": username, "password": password, "real_rip": "x" });
            let request = parse(body.to_string().as_bytes()).unwrap();
            prop_assert_eq!(request.username, username.as_bytes());
            prop_assert_eq!(request.password.as_bytes(), password.as_bytes());
        }

        #[test]
        fn random_bytes_never_panic(body: Vec<u8>) {
            let _ = parse(&body);
        }
    }
}
