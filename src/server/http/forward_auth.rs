//! Forward authentication: a web server asks for each request whether its user may in (nginx' `auth_request`, Traefik's
//! ForwardAuth, Caddy's `forward_auth`).
//!
//! ```text
//! C: GET /forward-auth HTTP/1.1
//! C: Authorization: Basic ZnJ5OmZyeQ==
//! C: X-Forwarded-For: 192.0.2.9
//! S: HTTP/1.1 200 OK
//! S: Remote-User: fry@planetexpress.com
//! S: Remote-Email: fry@planetexpress.com
//! S: Remote-Name: Philip J. Fry
//! S: X-Auth-User: fry@planetexpress.com
//! ```
//!
//! 401 (with `WWW-Authenticate`) is no, 503 later. What a request itself says in `Remote-User` and the like is the
//! client's own invention and never looked at.

use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::{Answer, Asked, Call, HttpDoor, RETRY_LATER, add_field, retry_after, text};
use crate::auth::{Service, Verdict};
use crate::proto::http::{basic_credentials, forwarded_client, query_value};
use crate::store::Mailbox;

/// The service, unless the query names another.
const SERVICE: &str = "http";

impl HttpDoor {
    pub(super) async fn forward_auth(&self, call: &Call) -> Answer {
        let authorization = call.field("authorization");
        let Some((login, password)) = authorization.and_then(basic_credentials) else {
            return challenge();
        };
        let service = query_value(call.head.uri.query(), "service");
        let service = service.map(|name| String::from_utf8_lossy(&name).into_owned());
        let service = service.unwrap_or_else(|| SERVICE.to_owned());
        let hops = call.head.headers.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes);
        let asked = Asked {
            login,
            password,
            service: Service::parse(&service),
            service_name: service.into(),
            client: forwarded_client(hops, |address| self.trusts(address)),
            session: None,
        };
        match self.decide(call, asked).await {
            Verdict::Accept(accepted) => welcome(&accepted.mailbox),
            Verdict::Reject(_) => challenge(),
            Verdict::Unavailable(_) => {
                let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, "try again later\n".into());
                retry_after(&mut answer, Some(RETRY_LATER));
                answer
            }
        }
    }
}

fn welcome(mailbox: &Mailbox) -> Answer {
    let mut answer = Response::default();
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for name in ["remote-user", "remote-email", "x-auth-user"] {
        add_field(&mut answer, name, mailbox.address.as_str());
    }
    // Always there, empty or not: a web server that copies it then never passes on one that the client sent. What is not
    // ASCII goes as UTF-8, which RFC 9110 §5.5 lets pass as opaque bytes.
    add_field(&mut answer, "remote-name", &mailbox.settings.display_name);
    answer
}

fn challenge() -> Answer {
    let mut answer = text(StatusCode::UNAUTHORIZED, "wrong name or password\n".into());
    let scheme = HeaderValue::from_static("Basic realm=\"mail\", charset=\"UTF-8\"");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    answer
}
