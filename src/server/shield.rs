//! What the command line asks about the guessing shield: whom it counts, and who stands in its lists.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::Serialize;

use super::Daemon;
use super::control::Reply;
use super::lists::Kept;
use super::operator::done;
use crate::auth::Service;
use crate::clock;
use crate::identity::{Login, LoginRules};
use crate::store::StoreError;
use crate::throttle::{
    Asked, Counted, Course, Entry, Hit, List, Subject, Whom, canonical, seconds_left,
};

/// Entries of one list that are shown; the rest is counted. A reply must not be longer than the command line reads.
const MAX_SHOWN: usize = 10_000;

/// The longest time that an entry may hold: what shall hold for ever belongs into the configuration.
const MAX_SECONDS: u64 = 366 * 86_400;

/// The longest reason of an entry, in bytes.
const MAX_REASON: usize = 200;

/// What the shield has on somebody.
#[derive(Debug, Serialize)]
struct Shown {
    /// Whether the rules are kept at all.
    enabled: bool,
    client: Option<IpAddr>,
    login: Option<String>,
    /// What would be done with an attempt now: go | delay | deny.
    action: &'static str,
    /// The rule or list that says so.
    because: Option<String>,
    /// The login got in from this net before.
    known: bool,
    people_from_address: u32,
    people_from_net: u32,
    rules: Vec<Counted>,
    /// What the lists say; the first decides.
    entries: Vec<ShownEntry>,
    /// When rules acted on them last.
    acted: Vec<ShownHit>,
}

/// On whom rules acted last, and who stands in the lists.
#[derive(Debug, Serialize)]
struct Listed {
    acted: Vec<ShownHit>,
    entries: Vec<ShownEntry>,
    /// Entries that are not shown because there are so many.
    entries_left_out: usize,
}

#[derive(Debug, Serialize)]
struct ShownEntry {
    /// allow | deny
    list: &'static str,
    /// ip | netmask | login | ja3 | iplogin | ipja3
    kind: &'static str,
    whom: String,
    reason: String,
    /// `null`: it stands in the configuration.
    seconds_left: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ShownHit {
    rule: String,
    whom: String,
    action: &'static str,
    count: u32,
    limit: u32,
    times: u64,
    first_seen_seconds: u64,
    last_seen_seconds: u64,
}

impl ShownEntry {
    fn new(entry: &Entry) -> Self {
        let (kind, whom) = entry.whom.named();
        Self {
            list: entry.list.as_str(),
            kind,
            whom,
            reason: entry.reason.clone(),
            seconds_left: (!entry.is_configured()).then(|| seconds_left(entry.until)),
        }
    }
}

impl ShownHit {
    fn new(hit: &Hit, now: SystemTime) -> Self {
        let ago = |then: SystemTime| now.duration_since(then).unwrap_or_default().as_secs();
        Self {
            rule: hit.rule.to_string(),
            whom: hit.whom.clone(),
            action: hit.action.as_str(),
            count: hit.count,
            limit: hit.limit,
            times: hit.times,
            first_seen_seconds: ago(hit.first),
            last_seen_seconds: ago(hit.last),
        }
    }
}

impl Daemon {
    /// What every rule counted of somebody.
    pub(super) fn show_policy(&self, who: &[String], service: Option<&str>) -> Reply {
        let parsed = self.attempt_of(who).and_then(|attempt| {
            let word = |name: &str| {
                let unknown = || format!("{name:?}: expected imap, pop3, smtp, sieve or dav");
                Service::parse(name).ok_or_else(unknown)
            };
            Ok((attempt, service.map(word).transpose()?))
        });
        let ((client, login), service) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return invalid(error),
        };
        let (throttle, now) = (self.core.throttle(), clock::now());
        let subject = Subject { client, login: login.as_deref(), service, ..Subject::default() };
        let judgement = throttle.check(&subject, now);
        let (known, people_from_address, people_from_net) = throttle.standing(&subject, now);
        let asked = Asked { client, login: login.as_deref(), ja3: None };
        let (entries, wall) = (throttle.entries_about(asked), clock::wall());
        let acted = throttle.hits_of(client, login.as_deref());
        done(&Shown {
            enabled: throttle.is_enabled(),
            client,
            action: match judgement.action {
                Course::Go => "go",
                Course::Delay(_) => "delay",
                Course::Deny => "deny",
            },
            because: judgement.because.map(|because| because.word().to_string()),
            known,
            people_from_address,
            people_from_net,
            rules: throttle.show(&subject, now),
            entries: entries.iter().map(|entry| ShownEntry::new(entry)).collect(),
            acted: acted.iter().map(|hit| ShownHit::new(hit, wall)).collect(),
            login,
        })
    }

    /// Forgets what was counted of somebody; the value says whether that was anything.
    pub(super) fn reset_policy(&self, who: &[String]) -> Reply {
        let (client, login) = match self.attempt_of(who) {
            Ok(attempt) => attempt,
            Err(error) => return invalid(error),
        };
        let subject = Subject { client, login: login.as_deref(), ..Subject::default() };
        let cleared = self.lists.reset(&subject, clock::now());
        tracing::info!(
            ?who,
            cleared,
            "counts of the guessing shield forgotten by an administrator"
        );
        done(&cleared)
    }

    /// On whom rules acted last, and the entries made at run time.
    pub(super) fn list_policy(&self) -> Reply {
        let throttle = self.core.throttle();
        let now = clock::wall();
        let mut entries = Vec::new();
        let mut entries_left_out = 0;
        for list in [List::Allow, List::Deny] {
            let made = throttle.entries(list);
            entries_left_out += made.len().saturating_sub(MAX_SHOWN);
            entries.extend(made.iter().take(MAX_SHOWN).map(|entry| ShownEntry::new(entry)));
        }
        let acted = throttle.hits().iter().map(|hit| ShownHit::new(hit, now)).collect();
        done(&Listed { acted, entries, entries_left_out })
    }

    /// Makes an entry, which holds for so many seconds, with a reason.
    pub(super) async fn add_entry(
        &self,
        list: &str,
        who: &[String],
        (seconds, reason): (u64, String),
    ) -> Reply {
        let (list, whom) = match self.entry_of(list, who) {
            Ok(parsed) => parsed,
            Err(error) => return invalid(error),
        };
        if !(1..=MAX_SECONDS).contains(&seconds) {
            return invalid("an entry holds for 1s to 366d; what shall hold longer belongs into throttle.allow or throttle.deny".into());
        }
        if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
            return invalid(format!("the reason: {MAX_REASON} bytes at most, on one line"));
        }
        let until = clock::wall() + Duration::from_secs(seconds);
        let entry = Entry { list, whom, until, reason };
        match self.lists.add(std::slice::from_ref(&entry)).await {
            Ok(Kept::Saved) => done(&ShownEntry::new(&entry)),
            Ok(Kept::InMemory(error)) => in_force_only(&error),
            Err(full) => Reply::Failed { error: full.to_string() },
        }
    }

    /// Takes an entry out that was made at run time.
    pub(super) async fn remove_entry(&self, list: &str, who: &[String]) -> Reply {
        let (list, whom) = match self.entry_of(list, who) {
            Ok(parsed) => parsed,
            Err(error) => return invalid(error),
        };
        let (_, text) = whom.named();
        match self.lists.remove(list, &whom).await {
            Some(Kept::Saved) => return done(&()),
            Some(Kept::InMemory(error)) => return in_force_only(&error),
            None => {}
        }
        let list_word = list.as_str();
        match self.core.throttle().entry(list, &whom) {
            Some(_) => {
                invalid(format!("{text}: stands in throttle.{list_word} of the configuration"))
            }
            None => Reply::NotFound { error: format!("no entry {text} in the list {list_word}") },
        }
    }

    fn attempt_of(&self, who: &[String]) -> Result<(Option<IpAddr>, Option<String>), String> {
        attempt_of(who, &self.core.setup().names)
    }

    fn entry_of(&self, list: &str, who: &[String]) -> Result<(List, Whom), String> {
        let unknown = || format!("{list:?}: expected allow or deny");
        let list = List::parse(list).ok_or_else(unknown)?;
        Ok((list, whom_of(who, &self.core.setup().names)?))
    }
}

fn invalid(error: String) -> Reply {
    Reply::Invalid { errors: vec![error] }
}

/// One word of those that say who is meant.
enum Word {
    Net(IpNet),
    Ja3(String),
    Login(String),
}

fn word(text: &str, names: &LoginRules) -> Result<Word, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Word::Net(address.to_canonical().into()));
    }
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(Word::Net(canonical(net)));
    }
    if let Some(ja3) = text.strip_prefix("ja3:").filter(|ja3| !ja3.is_empty()) {
        return Ok(Word::Ja3(ja3.to_owned()));
    }
    let login = Login::parse(text.as_bytes(), names);
    let neither = |error| format!("{text:?}: neither an address nor a login ({error})");
    login.map(|login| Word::Login(login.address.to_string())).map_err(neither)
}

/// The one address of a net of one.
fn alone(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// An address, a login, or both.
fn attempt_of(
    who: &[String],
    names: &LoginRules,
) -> Result<(Option<IpAddr>, Option<String>), String> {
    let (mut client, mut login) = (None, None);
    for text in who {
        let is_second = match word(text, names)? {
            Word::Net(net) => {
                let net_only = || format!("{text:?}: an address of the net, please");
                client.replace(alone(net).ok_or_else(net_only)?).is_some()
            }
            Word::Login(name) => login.replace(name).is_some(),
            Word::Ja3(_) => return Err(format!("{text:?}: nothing is counted by fingerprint")),
        };
        if is_second {
            return Err(format!("{text:?}: one address and one login at most"));
        }
    }
    if client.is_none() && login.is_none() {
        return Err("whom? An address, a login, or both".into());
    }
    Ok((client, login))
}

/// Whom an entry is about.
fn whom_of(who: &[String], names: &LoginRules) -> Result<Whom, String> {
    let mut words = who.iter().map(|text| word(text, names)).collect::<Result<Vec<_>, _>>()?;
    let wrong = || "an address, a net or a login; or an address and a login".to_owned();
    let (first, second) = match (words.pop(), words.pop()) {
        (Some(first), second) if words.is_empty() => (first, second),
        _ => return Err(wrong()),
    };
    Ok(match (first, second) {
        (Word::Net(net), None) => Whom::Net(net),
        (Word::Login(login), None) => Whom::Login(login),
        (Word::Ja3(ja3), None) => Whom::Ja3(ja3),
        (Word::Net(net), Some(other)) | (other, Some(Word::Net(net))) => {
            let address = alone(net).ok_or_else(wrong)?;
            match other {
                Word::Login(login) => Whom::LoginAt(login, address),
                Word::Ja3(ja3) => Whom::Ja3At(ja3, address),
                Word::Net(_) => return Err(wrong()),
            }
        }
        _ => return Err(wrong()),
    })
}

/// The store did not take a change of a list, which is in force all the same.
fn in_force_only(error: &StoreError) -> Reply {
    Reply::Unavailable { error: format!("done, but not saved yet, it is tried again: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn names() -> LoginRules {
        let mut config = Config::default();
        config.login.default_domain = "planetexpress.com".into();
        config.names()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn an_attempt_is_named_by_address_and_login_in_any_order() {
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let fry = || Some("fry@planetexpress.com".to_owned());
        for (text, expected) in [
            ("192.0.2.9", Some((address("192.0.2.9"), None))),
            ("::ffff:192.0.2.9 Fry+list", Some((address("192.0.2.9"), fry()))),
            ("fry@PlanetExpress.com 2001:db8::1", Some((address("2001:db8::1"), fry()))),
            ("192.0.2.0/32", Some((address("192.0.2.0"), None))),
            ("192.0.2.0/24", None),
            ("fry leela", None),
            ("192.0.2.9 192.0.2.10", None),
            ("ja3:abc", None),
            ("", None),
        ] {
            assert_eq!(attempt_of(&words(text), &names()).ok(), expected, "{text}");
        }
    }

    #[test]
    fn an_entry_is_named_by_what_it_is_about() {
        for (text, expected) in [
            ("192.0.2.9", Some(("ip", "192.0.2.9"))),
            ("192.0.2.77/24", Some(("netmask", "192.0.2.0/24"))),
            ("Fry", Some(("login", "fry@planetexpress.com"))),
            ("ja3:abc", Some(("ja3", "abc"))),
            ("192.0.2.9 fry", Some(("iplogin", "192.0.2.9 fry@planetexpress.com"))),
            ("fry 192.0.2.9", Some(("iplogin", "192.0.2.9 fry@planetexpress.com"))),
            ("ja3:abc 192.0.2.9", Some(("ipja3", "192.0.2.9 abc"))),
            ("192.0.2.0/24 fry", None),
            ("fry leela", None),
            ("fry 192.0.2.9 leela", None),
            ("", None),
        ] {
            let whom = whom_of(&words(text), &names()).ok();
            let named = whom.as_ref().map(Whom::named);
            let named = named.as_ref().map(|(kind, text)| (*kind, text.as_str()));
            assert_eq!(named, expected, "{text}");
        }
    }
}
