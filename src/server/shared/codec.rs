//! What nodes tell each other, as it lies at the shared server. Pure.
//!
//! An entry of a stream has the fields `n` (which process), `s` (the number of its batch) and `e`, a batch of events:
//!
//! ```text
//! [{"k":"failed","a":37,"c":"192.0.2.9","l":"fry@planetexpress.com","s":"imap","g":4711},{"k":"sent","l":"amy@…"}]
//! ```
//!
//! `k` what happened, `a` milliseconds before the entry was written, `c` client, `l` login or mailbox, `s` service, `g` the
//! password's short hash. A field of the hash of lists is `LIST KIND WHOM`, its value
//! `{"until":MS,"at":MS,"reason":"…","removed":true}`.
//!
//! What another node wrote is not trusted: lengths are bounded, and what cannot be read is left out. An event of a kind
//! that is not known is a newer node's.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::outbox::{News, Waiting};
use crate::server::lists::{Change, MAX_REASON_BYTES, Name, at_millis, millis};
use crate::service::Service;
use crate::throttle::{Entry, Event, List, Outcome, Whom};

/// Events in one batch.
pub(super) const MAX_EVENTS: usize = 32;

/// The longest batch that is read; the longest that is written has 32 events of some 6 kB.
const MAX_BATCH_BYTES: usize = 256 * 1024;

/// The longest login, mailbox or name of a list's entry.
const MAX_TEXT_BYTES: usize = 1024;

/// The longest value of a list's entry.
const MAX_VALUE_BYTES: usize = 8 * 1024;

/// So far the clock of whoever wrote something may be ahead of the server's, in milliseconds.
const MAX_AHEAD: i64 = 60_000;

/// What another node wrote makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

#[derive(Default, Serialize, Deserialize)]
struct Line<'a> {
    k: Cow<'a, str>,
    #[serde(default)]
    a: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    c: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    l: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    g: Option<u16>,
}

/// Writes a batch, as of now.
pub(super) fn encode(batch: &[Waiting], now: Instant) -> Vec<u8> {
    let line = |waiting| Some(line(waiting, now)).filter(fits);
    let lines: Vec<Line<'_>> = batch.iter().filter_map(line).collect();
    // Strings, numbers and addresses can always be written.
    serde_json::to_vec(&lines).unwrap_or_default()
}

fn line(waiting: &Waiting, now: Instant) -> Line<'_> {
    let ago = now.saturating_duration_since(waiting.since).as_millis();
    let a = u64::try_from(ago).unwrap_or(u64::MAX);
    match &waiting.news {
        News::Attempt(event) => {
            let (k, g) = match event.outcome {
                Outcome::Accepted => ("accepted", None),
                Outcome::Failed(guess) => ("failed", guess),
                Outcome::FailedAtSource => ("failed-at-source", None),
                Outcome::Neutral => ("neutral", None),
                Outcome::Unproven(guess) => ("unproven", guess),
            };
            let s = event.service.map(|service| service.as_str().into());
            let l = event.login.as_deref().map(Cow::Borrowed);
            Line { k: k.into(), a, c: event.client, l, s, g }
        }
        News::Listed(field) => named("listed", a, field),
        News::Reset { client, login } => {
            let l = login.as_deref().map(Cow::Borrowed);
            Line { k: "reset".into(), a, c: *client, l, ..Line::default() }
        }
        News::Sent(mailbox) => named("sent", a, mailbox),
    }
}

fn named<'a>(k: &'a str, a: u64, name: &'a str) -> Line<'a> {
    Line { k: k.into(), a, l: Some(name.into()), ..Line::default() }
}

fn fits(line: &Line<'_>) -> bool {
    line.l.as_deref().is_none_or(|text| text.len() <= MAX_TEXT_BYTES)
}

/// Reads a batch: what happened, and how long before the entry was written.
pub(super) fn decode(batch: &[u8]) -> Result<Vec<(News, Duration)>, Unreadable> {
    if batch.len() > MAX_BATCH_BYTES {
        return Err(Unreadable);
    }
    let lines: Vec<Line<'_>> = serde_json::from_slice(batch).map_err(|_| Unreadable)?;
    if lines.len() > MAX_EVENTS {
        return Err(Unreadable);
    }
    let news = lines.into_iter().filter(fits).filter_map(|line| {
        let ago = Duration::from_millis(line.a);
        Some((news(line)?, ago))
    });
    Ok(news.collect())
}

fn news(line: Line<'_>) -> Option<News> {
    let name = line.l.map(|text| Box::from(&*text));
    let attempt = |outcome| {
        let service = line.s.as_deref().and_then(service);
        News::Attempt(Event { client: line.c, login: name.clone(), service, outcome })
    };
    Some(match &*line.k {
        "accepted" => attempt(Outcome::Accepted),
        "failed" => attempt(Outcome::Failed(line.g)),
        "failed-at-source" => attempt(Outcome::FailedAtSource),
        "neutral" => attempt(Outcome::Neutral),
        "unproven" => attempt(Outcome::Unproven(line.g)),
        "listed" => News::Listed(name?),
        "reset" => News::Reset { client: line.c, login: name },
        "sent" => News::Sent(name?),
        _ => return None,
    })
}

/// The inverse of [`Service::as_str`].
fn service(word: &str) -> Option<Service> {
    if word == "lookup" { Some(Service::Lookup) } else { Service::parse(word) }
}

/// What a list's entry is kept under.
pub(super) fn field((list, whom): &Name) -> String {
    let (kind, text) = whom.named();
    format!("{} {kind} {text}", list.as_str())
}

/// Reads what [`field`] wrote.
pub(super) fn name(field: &[u8]) -> Option<Name> {
    let text = std::str::from_utf8(field).ok().filter(|text| text.len() <= MAX_TEXT_BYTES)?;
    let (list, rest) = text.split_once(' ')?;
    let (kind, whom) = rest.split_once(' ')?;
    let name = (List::parse(list)?, Whom::parse(kind, whom)?);
    // One form only: two fields must not be about the same.
    Some(name).filter(|name| self::field(name) == text)
}

#[derive(Serialize, Deserialize)]
struct Value<'a> {
    until: i64,
    at: i64,
    #[serde(default)]
    reason: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
}

/// Writes a list's entry. `ahead`: milliseconds that the server's clock is ahead of ours.
pub(super) fn encode_change(change: &Change, ahead: i64) -> Vec<u8> {
    let value = Value {
        until: millis(change.entry.until).saturating_add(ahead),
        at: change.at,
        reason: Cow::Borrowed(&change.entry.reason),
        removed: change.removed,
    };
    serde_json::to_vec(&value).unwrap_or_default()
}

/// Reads what [`encode_change`] wrote. `server_now`: by the server's clock, in milliseconds since 1970.
pub(super) fn decode_change(
    (list, whom): Name,
    value: &[u8],
    ahead: i64,
    server_now: i64,
) -> Result<Change, Unreadable> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Unreadable);
    }
    let value: Value<'_> = serde_json::from_slice(value).map_err(|_| Unreadable)?;
    // Written by a clock that is far ahead, it could never be changed again.
    let is_fair = value.at <= server_now.saturating_add(MAX_AHEAD);
    if !is_fair || value.reason.len() > MAX_REASON_BYTES {
        return Err(Unreadable);
    }
    let until = at_millis(value.until.saturating_sub(ahead)).ok_or(Unreadable)?;
    let entry = Entry { list, whom, until, reason: value.reason.into_owned() };
    Ok(Change { entry, removed: value.removed, at: value.at })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        crate::clock::now()
    }

    fn event(outcome: Outcome) -> News {
        News::Attempt(Event {
            client: "192.0.2.9".parse().ok(),
            login: Some("fry@planetexpress.com".into()),
            service: Some(Service::Imap),
            outcome,
        })
    }

    fn written(news: News) -> String {
        let since = now();
        let batch = encode(&[Waiting { since, news }], since + Duration::from_millis(37));
        String::from_utf8(batch).unwrap()
    }

    #[test]
    fn every_kind_of_news_is_written_as_documented_and_read_as_it_was() {
        let bare = Event { client: None, login: None, service: None, outcome: Outcome::Neutral };
        for (news, text) in [
            (
                event(Outcome::Failed(Some(4711))),
                r#"[{"k":"failed","a":37,"c":"192.0.2.9","l":"fry@planetexpress.com","s":"imap","g":4711}]"#,
            ),
            (
                event(Outcome::Failed(None)),
                r#"[{"k":"failed","a":37,"c":"192.0.2.9","l":"fry@planetexpress.com","s":"imap"}]"#,
            ),
            (
                event(Outcome::Accepted),
                r#"[{"k":"accepted","a":37,"c":"192.0.2.9","l":"fry@planetexpress.com","s":"imap"}]"#,
            ),
            (
                event(Outcome::FailedAtSource),
                r#"[{"k":"failed-at-source","a":37,"c":"192.0.2.9","l":"fry@planetexpress.com","s":"imap"}]"#,
            ),
            (
                event(Outcome::Unproven(Some(1))),
                r#"[{"k":"unproven","a":37,"c":"192.0.2.9","l":"fry@planetexpress.com","s":"imap","g":1}]"#,
            ),
            (News::Attempt(bare), r#"[{"k":"neutral","a":37}]"#),
            (
                News::Listed("deny ip 192.0.2.9".into()),
                r#"[{"k":"listed","a":37,"l":"deny ip 192.0.2.9"}]"#,
            ),
            (
                News::Reset { client: "2001:db8::1".parse().ok(), login: None },
                r#"[{"k":"reset","a":37,"c":"2001:db8::1"}]"#,
            ),
            (
                News::Sent("amy@planetexpress.com".into()),
                r#"[{"k":"sent","a":37,"l":"amy@planetexpress.com"}]"#,
            ),
        ] {
            assert_eq!(written(news.clone()), text);
            assert_eq!(decode(text.as_bytes()), Ok(vec![(news, Duration::from_millis(37))]));
        }
    }

    #[test]
    fn every_service_comes_through() {
        for service in [
            Service::Dav,
            Service::Imap,
            Service::Lookup,
            Service::Pop3,
            Service::Sieve,
            Service::Smtp,
        ] {
            assert_eq!(super::service(service.as_str()), Some(service));
        }
    }

    #[test]
    fn what_a_newer_node_says_is_passed_over_and_the_rest_is_read() {
        let text = r#"[{"k":"dreamt","z":[1]},{"k":"sent","l":"a@b.c","new":{}},{"k":"sent"}]"#;

        let read = decode(text.as_bytes()).unwrap();

        assert_eq!(read, [(News::Sent("a@b.c".into()), Duration::ZERO)]);
    }

    #[test]
    fn nonsense_and_what_is_too_long_is_unreadable() {
        let many = format!("[{}]", vec![r#"{"k":"neutral"}"#; MAX_EVENTS + 1].join(","));
        let long = format!(r#"[{{"k":"sent","l":"{}"}}]"#, "x".repeat(MAX_BATCH_BYTES));
        for text in
            ["", "{}", "[1]", "[{}]", r#"[{"k":"failed","g":99999}]"#, "\u{0}", &many, &long]
        {
            assert_eq!(decode(text.as_bytes()), Err(Unreadable), "{text:.40}");
        }
        let long_name = format!(r#"[{{"k":"sent","l":"{}"}}]"#, "x".repeat(MAX_TEXT_BYTES + 1));
        assert_eq!(decode(long_name.as_bytes()), Ok(vec![]));
        assert_eq!(written(News::Sent("x".repeat(MAX_TEXT_BYTES + 1).into())), "[]");
    }

    #[test]
    fn the_longest_batch_that_is_written_can_be_read() {
        let login: Box<str> = "\u{1}".repeat(MAX_TEXT_BYTES).into();
        let since = now();
        let waiting = Waiting { since, news: News::Sent(login) };

        let batch = encode(&vec![waiting; MAX_EVENTS], since);

        assert_eq!(decode(&batch).unwrap().len(), MAX_EVENTS);
    }

    fn change(removed: bool) -> Change {
        let entry = Entry {
            list: List::Deny,
            whom: Whom::parse("iplogin", "192.0.2.9 fry the robot@x.com").unwrap(),
            until: at_millis(2_000_000).unwrap(),
            reason: "guesses \"a lot\"".into(),
        };
        Change { entry, removed, at: 1_000_000 }
    }

    #[test]
    fn an_entry_of_a_list_is_read_as_it_was_by_clocks_that_differ() {
        for (removed, text) in [
            (false, r#"{"until":2005000,"at":1000000,"reason":"guesses \"a lot\""}"#),
            (true, r#"{"until":2005000,"at":1000000,"reason":"guesses \"a lot\"","removed":true}"#),
        ] {
            let change = change(removed);
            let field = field(&change.name());
            assert_eq!(field, "deny iplogin 192.0.2.9 fry the robot@x.com");
            // The server's clock is 5 s ahead of ours.
            let value = encode_change(&change, 5000);
            assert_eq!(String::from_utf8(value.clone()).unwrap(), text);

            let name = name(field.as_bytes()).unwrap();

            assert_eq!(decode_change(name.clone(), &value, 5000, 1_000_000), Ok(change));
            // And 2 s behind that of another node.
            let theirs = decode_change(name, &value, -2000, 1_000_000).unwrap();
            assert_eq!(theirs.entry.until, at_millis(2_007_000).unwrap());
        }
    }

    #[test]
    fn what_is_no_entry_of_a_list_is_left_out() {
        for field in [
            "",
            "deny",
            "deny ip",
            "deny ip x",
            "grey ip 192.0.2.9",
            "deny ip 192.0.2.009",
            "deny netmask 192.0.2.9/24",
            "deny ip ::ffff:192.0.2.9",
            "deny  ip 192.0.2.9",
        ] {
            assert_eq!(name(field.as_bytes()), None, "{field}");
        }
        assert_eq!(name(b"deny login \xff"), None);
        assert_eq!(name(format!("deny login {}", "x".repeat(2000)).as_bytes()), None);
        let name = change(false).name();
        let far = r#"{"until":1,"at":1060001}"#;
        let long =
            format!(r#"{{"until":1,"at":1,"reason":"{}"}}"#, "x".repeat(MAX_REASON_BYTES + 1));
        for value in ["", "[]", "{}", r#"{"until":-9,"at":1}"#, far, &long] {
            let read = decode_change(name.clone(), value.as_bytes(), 0, 1_000_000);
            assert_eq!(read, Err(Unreadable), "{value}");
        }
        let forever = format!(r#"{{"until":{},"at":{}}}"#, i64::MAX, i64::MIN);
        let read = decode_change(name, forever.as_bytes(), -1, 0).unwrap();
        assert_eq!(millis(read.entry.until), 253_402_300_800_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at: i64) {
            let _ = decode(&bytes);
            let _ = name(&bytes);
            let _ = decode_change(change(false).name(), &bytes, at, at);
        }

        #[test]
        fn any_numbers_are_read_without_panic(until: i64, at: i64, ahead: i64, now: i64, a: u64) {
            let value = format!(r#"{{"until":{until},"at":{at}}}"#);
            if let Ok(read) = decode_change(change(false).name(), value.as_bytes(), ahead, now) {
                let _ = encode_change(&read, ahead);
            }
            let batch = format!(r#"[{{"k":"sent","l":"x","a":{a}}}]"#);
            prop_assert_eq!(decode(batch.as_bytes()).unwrap().len(), 1);
        }
    }
}
