//! Nauthilus' shapes: `/api/v1/auth/json` and `/api/v1/auth/header`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::Full;
use hyper::StatusCode;
use hyper::body::{Bytes, Incoming};

use super::super::userdb::{self, Residence};
use super::lookup::PAGE;
use super::{
    Answer, Asked, Call, HttpDoor, JSON, ListBody, Problem, RETRY_LATER, add_field, content,
    read_body, retry_after, text,
};
use crate::auth::{Service, Source, Verdict};
use crate::proto::http::query_value;
use crate::proto::nauthilus::{
    Mode, NauthilusRequest, OkAnswer, STATUS_LATER, STATUS_OK, STATUS_REFUSED, parse_headers,
    parse_json,
};

/// In which shape the answer goes back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Header,
    Json,
}

/// What came of a question, in either mode.
enum Outcome {
    Known { account: String, backend: u8, fields: Vec<(String, String)> },
    Later,
    Refused,
}

impl HttpDoor {
    pub(super) async fn nauthilus_json(
        &self,
        call: &Call,
        body: Incoming,
    ) -> Result<Answer, Problem> {
        let mode = mode(call)?;
        if mode == Mode::ListAccounts {
            return Ok(self.list_accounts(call).await);
        }
        let body = read_body(call, body).await?;
        let asked = parse_json(&body, mode).map_err(|error| Problem::unreadable(&error))?;
        Ok(self.nauthilus(call, mode, asked, Shape::Json).await)
    }

    pub(super) async fn nauthilus_header(&self, call: &Call) -> Result<Answer, Problem> {
        let mode = mode(call)?;
        if mode == Mode::ListAccounts {
            return Ok(self.list_accounts(call).await);
        }
        let asked = parse_headers(|name| call.field(name), mode);
        let asked = asked.map_err(|error| Problem::unreadable(&error))?;
        Ok(self.nauthilus(call, mode, asked, Shape::Header).await)
    }

    async fn nauthilus(
        &self,
        call: &Call,
        mode: Mode,
        asked: NauthilusRequest,
        shape: Shape,
    ) -> Answer {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        let session = format!("{}-{number}", std::process::id());
        let outcome = match mode {
            Mode::NoAuth => self.known(asked).await,
            Mode::Login | Mode::ListAccounts => self.proven(call, asked, &session).await,
        };
        let mut answer = spoken(&outcome, shape);
        add_field(&mut answer, "x-nauthilus-session", &session);
        answer
    }

    async fn proven(&self, call: &Call, asked: NauthilusRequest, session: &str) -> Outcome {
        let service = asked.protocol.unwrap_or_default();
        let asked = Asked {
            login: asked.username,
            password: asked.password,
            service: Service::parse(&service),
            service_name: service,
            client: asked.client_ip,
            session: Some(session.into()),
        };
        match self.decide(call, asked).await {
            Verdict::Accept(accepted) => {
                let mailbox = &*accepted.mailbox;
                Outcome::Known {
                    account: mailbox.address.to_string(),
                    backend: backend(accepted.source),
                    fields: userdb::fields(&mailbox.place, &mailbox.settings),
                }
            }
            Verdict::Reject(_) => Outcome::Refused,
            Verdict::Unavailable(_) => Outcome::Later,
        }
    }

    async fn known(&self, asked: NauthilusRequest) -> Outcome {
        let service = asked.protocol.unwrap_or_default();
        match self.residence(asked.username, service).await {
            Residence::At(resident) => Outcome::Known {
                account: resident.address.to_string(),
                backend: UNKNOWN_BACKEND,
                fields: userdb::fields(&resident.place, &resident.settings),
            },
            Residence::Later => Outcome::Later,
            Residence::Nowhere | Residence::Barred(_) => Outcome::Refused,
        }
    }

    async fn list_accounts(&self, call: &Call) -> Answer {
        // The list is whole in memory: one at a time, until it is sent.
        let Ok(turn) = Arc::clone(&self.list).try_lock_owned() else {
            tracing::info!(door = %self.name, "a list of accounts is under way already");
            return spoken(&Outcome::Later, Shape::Json);
        };
        let as_text = call.wants_text();
        let mut body = String::new();
        let mut last = None;
        loop {
            let Some(mut page) = (self.parts.lookups.users)(last, PAGE).await else {
                return spoken(&Outcome::Later, Shape::Json);
            };
            for name in &page {
                if as_text {
                    body.push_str(name);
                    body.push('\n');
                } else {
                    body.push(if body.is_empty() { '[' } else { ',' });
                    body.push_str(&serde_json::json!(name).to_string());
                }
            }
            last = page.pop();
            if last.is_none() {
                break;
            }
        }
        if as_text {
            let mut answer = text(StatusCode::OK, String::new());
            *answer.body_mut() = Full::new(Bytes::from_owner(ListBody::new(body, turn)));
            return answer;
        }
        body.push_str(if body.is_empty() { "[]" } else { "]" });
        content(StatusCode::OK, JSON, Bytes::from_owner(ListBody::new(body, turn)))
    }
}

fn mode(call: &Call) -> Result<Mode, Problem> {
    Mode::parse(query_value(call.head.uri.query(), "mode").as_deref())
        .ok_or(Problem(StatusCode::BAD_REQUEST, "this mode is not served here".into()))
}

/// Nauthilus' numbers of those who vouch.
const UNKNOWN_BACKEND: u8 = 0;
const CACHE_BACKEND: u8 = 1;
const LDAP_BACKEND: u8 = 2;

fn backend(source: Source) -> u8 {
    match source {
        Source::Memory | Source::Grace => CACHE_BACKEND,
        Source::Directory => LDAP_BACKEND,
        _ => UNKNOWN_BACKEND,
    }
}

fn spoken(outcome: &Outcome, shape: Shape) -> Answer {
    let in_json = |status, body: Vec<u8>| content(status, JSON, body);
    match outcome {
        Outcome::Known { account, backend, fields } => {
            let mut answer = match shape {
                Shape::Json => {
                    let body = OkAnswer::new(account, *backend, fields).encode();
                    in_json(StatusCode::OK, body)
                }
                Shape::Header => text(StatusCode::OK, STATUS_OK.into()),
            };
            add_field(&mut answer, "auth-status", STATUS_OK);
            add_field(&mut answer, "auth-user", account);
            answer
        }
        Outcome::Refused => {
            let mut answer = match shape {
                Shape::Json => in_json(StatusCode::FORBIDDEN, b"null".to_vec()),
                Shape::Header => text(StatusCode::FORBIDDEN, STATUS_REFUSED.into()),
            };
            add_field(&mut answer, "auth-status", STATUS_REFUSED);
            answer
        }
        Outcome::Later => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            let mut answer = match shape {
                Shape::Json => Problem(status, STATUS_LATER.into()).spoken(),
                Shape::Header => text(status, STATUS_LATER.into()),
            };
            add_field(&mut answer, "auth-status", STATUS_LATER);
            retry_after(&mut answer, Some(RETRY_LATER));
            answer
        }
    }
}
