//! Our own shape: `POST /v1/login`, and `POST /v1/memory/forget`.
//!
//! ```text
//! C: POST /v1/login HTTP/1.1
//! C: Content-Length: 90
//! C:
//! C: {"username":"fry","password":"fry","service":"imap","client_ip":"192.0.2.9"}
//! S: HTTP/1.1 403 Forbidden
//! S: Retry-After: 2
//! S:
//! S: {"verdict":"refuse","reason":"wrong-password"}
//! ```
//!
//! 200 is accept, 403 refuse, 503 later; 400 is a body that cannot be read, 401 a caller without the door's token.
//! The reason is for the caller, a mail server or a web application; what it tells its own client is its affair. Who says
//! `Accept: text/plain` gets the answer as `key=value` lines, with what Dovecot's passdb needs: `user=`, and the userdb
//! fields as `userdb_…=`.

use hyper::StatusCode;
use hyper::body::Incoming;

use super::super::{userdb, words};
use super::{
    Answer, Asked, Call, HttpDoor, JSON, Problem, RETRY_LATER, content, lines, read_body,
    retry_after,
};
use crate::auth::{Accepted, Refused, Service, Verdict};
use crate::config::template::Active;
use crate::proto::json_login::{self, MailboxAnswer, VerdictAnswer};
use crate::store::Mailbox;

/// What to forget.
#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Forget {
    All(bool),
    Name(String),
}

impl HttpDoor {
    /// `{"name":"…"}` forgets a name and its account, `{"all":true}` everything (login.md M-11).
    pub(super) async fn forget(&self, call: &Call, body: Incoming) -> Result<Answer, Problem> {
        let body = read_body(call, body).await?;
        let asked: Forget = serde_json::from_slice(&body).map_err(|_| {
            let expected = "expected {\"name\":\"…\"} or {\"all\":true}";
            Problem(StatusCode::BAD_REQUEST, expected.into())
        })?;
        let name = match asked {
            Forget::Name(name) => Some(name),
            Forget::All(true) => None,
            Forget::All(false) => return Ok(forgotten(0)),
        };
        Ok(forgotten((self.parts.forget)(name).await))
    }

    pub(super) async fn login(&self, call: &Call, body: Incoming) -> Result<Answer, Problem> {
        let body = read_body(call, body).await?;
        let asked = json_login::parse(&body).map_err(|error| Problem::unreadable(&error))?;
        let service = asked.service.unwrap_or_default();
        let asked = Asked {
            login: asked.username,
            password: asked.password,
            service: Service::parse(&service),
            service_name: service,
            client: asked.client_ip,
            session: asked.session,
        };
        let verdict = self.decide(call, asked).await;
        let mut answer = if call.wants_text() { in_lines(&verdict) } else { in_json(&verdict) };
        match verdict {
            Verdict::Accept(_) => {}
            Verdict::Reject(_) => retry_after(&mut answer, self.retry_refused()),
            Verdict::Unavailable(_) => retry_after(&mut answer, Some(RETRY_LATER)),
        }
        Ok(answer)
    }
}

fn status(verdict: &Verdict) -> StatusCode {
    match verdict {
        Verdict::Accept(_) => StatusCode::OK,
        Verdict::Reject(_) => StatusCode::FORBIDDEN,
        Verdict::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn in_json(verdict: &Verdict) -> Answer {
    let body = match verdict {
        Verdict::Accept(accepted) => {
            let mailbox = &*accepted.mailbox;
            let protocols: Vec<&str> = mailbox.settings.protocols.iter().collect();
            json_login::encode_verdict(&VerdictAnswer::Accept {
                user: mailbox.address.as_str(),
                mailbox: facts(mailbox, &protocols),
                source: accepted.source.as_str(),
            })
        }
        Verdict::Reject(refused) => {
            json_login::encode_verdict(&VerdictAnswer::Refuse { reason: refused.reason.as_str() })
        }
        Verdict::Unavailable(later) => {
            json_login::encode_verdict(&VerdictAnswer::Later { reason: later.reason.as_str() })
        }
    };
    content(status(verdict), JSON, body)
}

fn in_lines(verdict: &Verdict) -> Answer {
    let pairs = match verdict {
        Verdict::Accept(accepted) => fields_for_dovecot(accepted),
        Verdict::Reject(refused) => refusal_for_dovecot(refused),
        Verdict::Unavailable(later) => {
            vec![("reason".to_owned(), later.reason.as_str().to_owned())]
        }
    };
    lines(status(verdict), pairs.into_iter().map(|(key, value)| (key.into(), value.into())))
}

fn fields_for_dovecot(accepted: &Accepted) -> Vec<(String, String)> {
    let mailbox = &*accepted.mailbox;
    let mut pairs = vec![("user".to_owned(), mailbox.address.to_string())];
    let fields = userdb::fields(&mailbox.place, &mailbox.settings);
    pairs.extend(fields.into_iter().map(|(key, value)| (format!("userdb_{key}"), value)));
    pairs
}

/// The reason, and what Dovecot's own words for it would be.
fn refusal_for_dovecot(refused: &Refused) -> Vec<(String, String)> {
    let said = words::of(refused);
    let code = said.code.map(|code| ("code".to_owned(), code.as_str().to_owned()));
    let text = said.text.map(|text| ("text".to_owned(), text.to_owned()));
    let reason = ("reason".to_owned(), refused.reason.as_str().to_owned());
    [Some(reason), code, text].into_iter().flatten().collect()
}

fn facts<'a>(mailbox: &'a Mailbox, protocols: &'a [&'a str]) -> MailboxAnswer<'a> {
    let settings = &mailbox.settings;
    MailboxAnswer {
        address: mailbox.address.as_str(),
        display_name: &settings.display_name,
        quota: settings.quota,
        protocols,
        template: &settings.template,
        home: &mailbox.place.home,
        uid: mailbox.place.uid,
        gid: mailbox.place.gid,
        active: settings.active == Active::Yes && !mailbox.disabled_by_admin,
    }
}

fn forgotten(entries: usize) -> Answer {
    content(StatusCode::OK, JSON, serde_json::json!({ "forgotten": entries }).to_string())
}
