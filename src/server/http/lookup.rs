//! Look-ups for whoever speaks no mail server's protocol.
//!
//! ```text
//! GET /v1/lookup/mailbox/fry%40planetexpress.com    200 {"value":"fry@planetexpress.com"}
//! GET /v1/lookup/alias/nobody%40planetexpress.com   404 {"value":null}
//! GET /v1/lookup/userdb/fry?service=lmtp            200 {"value":{"user":"fry@planetexpress.com","uid":"5000",…}}
//! GET /v1/lookup/users?after=b&limit=2              200 {"value":["bender@…","fry@…"],"next":"fry@…"}
//! ```
//!
//! 403 is "there, but not for a login to this service". 503 is "nobody can say now". A table that does not exist is 400: it must not look like an address that does not.

use std::borrow::Cow;
use std::sync::Arc;

use hyper::StatusCode;

use super::super::userdb::{self, Residence};
use super::{
    Answer, Boxed, Call, HttpDoor, JSON, Problem, RETRY_LATER, content, lines, retry_after, text,
};
use crate::auth::Reason;
use crate::lookup::{Found, Map};
use crate::proto::http::{percent_decoded, query_value};
use crate::server::door::Door;

/// Where look-ups begin.
pub(super) const PREFIX: &str = "/v1/lookup/";

/// Names in a list, unless the query says how many.
pub(super) const PAGE: u32 = 1000;
/// The most names in a list.
const MAX_PAGE: u32 = 10_000;

/// Looks into the daemon's tables.
#[derive(Clone)]
pub struct Lookups {
    /// What a table has for a key.
    pub find: Table<Map, Vec<u8>, Found>,
    /// Where the mailbox of a name is; the second argument is the service that asks.
    pub residence: Table<Vec<u8>, Box<str>, Residence>,
    /// So many addresses of mailboxes after this one, in order; `None`: the store does not answer.
    pub users: Table<Option<String>, u32, Option<Vec<String>>>,
}

/// A question of two parts, and what comes back.
pub type Table<A, B, C> = Arc<dyn Fn(A, B) -> Boxed<C> + Send + Sync>;

impl Lookups {
    /// Over the tables of the daemon.
    #[must_use]
    pub(in crate::server) fn over(door: &Door) -> Self {
        let asked = door.clone();
        let find = move |map, key: Vec<u8>| -> Boxed<Found> {
            if let Some(found) = asked.lookup.recall(map, &key) {
                return Box::pin(std::future::ready(found));
            }
            let door = asked.clone();
            Box::pin(async move {
                let found = door.lookup.find(map, &key).await;
                found.unwrap_or_else(|error| {
                    userdb::log_store_failure(&door, &error);
                    Found::Later
                })
            })
        };
        let asked = door.clone();
        let residence = move |user: Vec<u8>, service: Box<str>| -> Boxed<Residence> {
            let door = asked.clone();
            Box::pin(async move { userdb::find(&door, &user, &service, |_| true).await })
        };
        let asked = door.clone();
        let users = move |after: Option<String>, limit| -> Boxed<Option<Vec<String>>> {
            let door = asked.clone();
            Box::pin(async move {
                let page = door.core.store().addresses(after.as_deref(), limit).await;
                page.inspect_err(|error| userdb::log_store_failure(&door, error)).ok()
            })
        };
        Self { find: Arc::new(find), residence: Arc::new(residence), users: Arc::new(users) }
    }
}

impl HttpDoor {
    pub(super) async fn look_up(&self, call: &Call) -> Result<Answer, Problem> {
        let path = call.head.uri.path().strip_prefix(PREFIX).unwrap_or_default();
        let query = call.head.uri.query();
        match path.split_once('/').unwrap_or((path, "")) {
            ("users", "") => self.users(call, query).await,
            ("userdb", name) if !name.is_empty() => {
                let service = query_value(query, "service").unwrap_or_default();
                let service = String::from_utf8_lossy(&service).into();
                let found = self.residence(percent_decoded(name.as_bytes()), service).await;
                Ok(userdb_answer(&found, call))
            }
            (map, key) => {
                let map = Map::parse(map.as_bytes()).filter(|_| !key.is_empty());
                let map = map.ok_or(Problem(StatusCode::BAD_REQUEST, EXPECTED.into()))?;
                let found = self.find(map, percent_decoded(key.as_bytes())).await;
                Ok(match found {
                    Found::Value(value) => {
                        let body = serde_json::json!({ "value": &*value });
                        content(StatusCode::OK, JSON, body.to_string())
                    }
                    Found::Nothing => nothing(),
                    Found::Later => later(),
                })
            }
        }
    }

    /// Looks into a table, and counts it.
    pub(super) async fn find(&self, map: Map, key: Vec<u8>) -> Found {
        let found = (self.parts.lookups.find)(map, key).await;
        let result = match found {
            Found::Value(_) => "found",
            Found::Nothing => "nothing",
            Found::Later => "later",
        };
        self.parts.metrics.lookup(&self.name, map.as_str(), result);
        found
    }

    /// Where the mailbox of a name is, counted.
    pub(super) async fn residence(&self, name: Vec<u8>, service: Box<str>) -> Residence {
        let found = (self.parts.lookups.residence)(name, service).await;
        let result = match found {
            Residence::At(_) => "found",
            Residence::Nowhere | Residence::Barred(_) => "nothing",
            Residence::Later => "later",
        };
        self.parts.metrics.lookup(&self.name, "userdb", result);
        found
    }

    async fn users(&self, call: &Call, query: Option<&str>) -> Result<Answer, Problem> {
        let unreadable = |what: &'static str| Problem(StatusCode::BAD_REQUEST, what.into());
        let after = match query_value(query, "after").filter(|after| !after.is_empty()) {
            None => None,
            Some(after) => {
                Some(String::from_utf8(after).map_err(|_| unreadable("after is not UTF-8"))?)
            }
        };
        let limit = match query_value(query, "limit") {
            None => PAGE,
            Some(limit) => std::str::from_utf8(&limit)
                .ok()
                .and_then(|limit| limit.parse().ok())
                .filter(|limit| (1..=MAX_PAGE).contains(limit))
                .ok_or(unreadable("limit is a number from 1 to 10000"))?,
        };
        let Some(users) = (self.parts.lookups.users)(after, limit).await else {
            return Ok(later());
        };
        if call.wants_text() {
            return Ok(text(StatusCode::OK, users.into_iter().map(|user| user + "\n").collect()));
        }
        let is_full = u32::try_from(users.len()).is_ok_and(|count| count == limit);
        let next = users.last().filter(|_| is_full);
        let body = serde_json::json!({ "value": users, "next": next });
        Ok(content(StatusCode::OK, JSON, body.to_string()))
    }
}

const EXPECTED: &str =
    "expected /v1/lookup/ and mailbox, alias, domain, sender-login or userdb with a key, or users";

fn userdb_answer(found: &Residence, call: &Call) -> Answer {
    let resident = match found {
        Residence::At(resident) => resident,
        Residence::Nowhere => return nothing(),
        Residence::Barred(reason) => return barred(*reason, call),
        Residence::Later => return later(),
    };
    let mut fields = vec![("user".to_owned(), resident.address.to_string())];
    fields.extend(userdb::fields(&resident.place, &resident.settings));
    if call.wants_text() {
        let pairs = fields
            .iter()
            .map(|(key, value)| (Cow::Borrowed(key.as_str()), Cow::Borrowed(value.as_str())));
        return lines(StatusCode::OK, pairs);
    }
    let value: serde_json::Map<_, _> =
        fields.into_iter().map(|(key, value)| (key, value.into())).collect();
    content(StatusCode::OK, JSON, serde_json::json!({ "value": value }).to_string())
}

fn nothing() -> Answer {
    content(StatusCode::NOT_FOUND, JSON, r#"{"value":null}"#)
}

fn barred(reason: Reason, call: &Call) -> Answer {
    let reason = reason.as_str();
    if call.wants_text() {
        return lines(StatusCode::FORBIDDEN, [("reason".into(), reason.into())]);
    }
    let body = serde_json::json!({ "value": null, "reason": reason });
    content(StatusCode::FORBIDDEN, JSON, body.to_string())
}

fn later() -> Answer {
    let error = "nobody can say now";
    let mut answer = Problem(StatusCode::SERVICE_UNAVAILABLE, error.into()).spoken();
    retry_after(&mut answer, Some(RETRY_LATER));
    answer
}
