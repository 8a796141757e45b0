//! mailcow's shape: `POST /`.
//!
//! Its Dovecot script takes 200 and 401 for what they say and any other status for a wrong password too; only a
//! connection that ends without an answer is a failure to it. So "later" closes the connection, unless `temp_failure`
//! is `fail`: then it is a 503, for callers that know better.

use hyper::StatusCode;
use hyper::body::Incoming;

use super::{
    Answer, Asked, Call, HangUp, HttpDoor, JSON, RETRY_LATER, content, read_body, retry_after,
};
use crate::auth::{Service, Verdict};
use crate::config::listen::TempFailure;
use crate::proto::mailcow::{self, MailcowRequest};

impl HttpDoor {
    pub(super) async fn mailcow(&self, call: &Call, body: Incoming) -> Result<Answer, HangUp> {
        let asked = match read_body(call, body).await {
            Err(problem) => Err((problem.0, problem.1.into_owned())),
            Ok(body) => {
                mailcow::parse(&body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
            }
        };
        let asked = match asked {
            Ok(asked) => self.asked(asked),
            Err((status, error)) => {
                tracing::warn!(door = %self.name, %error, "a request in mailcow's shape cannot be read");
                return Ok(content(status, JSON, mailcow::answer(false)));
            }
        };
        match self.decide(call, asked).await {
            Verdict::Accept(_) => Ok(content(StatusCode::OK, JSON, mailcow::answer(true))),
            Verdict::Reject(_) => {
                Ok(content(StatusCode::UNAUTHORIZED, JSON, mailcow::answer(false)))
            }
            Verdict::Unavailable(_) if self.temp_failure == TempFailure::Fail => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let mut answer = content(status, JSON, mailcow::answer(false));
                retry_after(&mut answer, Some(RETRY_LATER));
                Ok(answer)
            }
            Verdict::Unavailable(_) => Err(HangUp),
        }
    }

    fn asked(&self, request: MailcowRequest) -> Asked {
        let MailcowRequest { username, password, client_ip, service } = request;
        Asked {
            login: username,
            password,
            // Where mailcow names no service it checks no protocol.
            service: match &service {
                Some(service) => Service::parse(service),
                None => Some(Service::Lookup),
            },
            service_name: service.unwrap_or_default(),
            client: client_ip,
            session: None,
        }
    }
}
