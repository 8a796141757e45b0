//! `[throttle]` and `[shared]`: the guessing shield.

use std::collections::BTreeMap;
use std::net::IpAddr;

use documented::DocumentedFields;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::check::check_table_name;
use super::problem::Report;
use super::units::Span;
use crate::identity::{Domain, Login, LoginRules};
use crate::service::Service;

/// The guessing shield: who guesses passwords is slowed down or refused before memory and directory are asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Throttle {
    /// Whether the rules are kept. Switched off nobody is counted, refused or delayed, and the lists say nothing.
    pub enabled: bool,
    /// Nets, addresses and logins that no rule refuses or delays.
    pub allow: Vec<String>,
    /// Nets, addresses and logins that are refused.
    pub deny: Vec<String>,
    /// Addresses of IPv4 that share this many leading bits are one net.
    pub net_v4: u8,
    /// Addresses of IPv6 that share this many leading bits are one net, and for `ip` one address.
    pub net_v6: u8,
    /// So long a good login makes its source better than a stranger.
    pub history: Span,
    /// Attempts that may wait at one time because of `delay`; further ones are refused.
    pub max_delayed: usize,
    /// Keys (addresses, nets, logins) that are kept for each rule, and a quarter of the logins with their nets that are
    /// kept as good; the least useful gives way.
    pub keys: usize,
    /// The rules, by name. A rule that is written here stands beside the ones built in; one with the name of a built-in
    /// rule changes that one, key by key.
    pub rule: BTreeMap<String, Rule>,
}

/// One rule of the shield.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// failures (refused attempts; a repeat of one of the last wrong passwords counts once) | distinct-wrong-passwords |
    /// unproven (passwords that nobody could check, because too many were wrong before) | distinct-logins (that failed) | distinct-ips | distinct-nets (from
    /// where it failed) | attempts (all, good ones too).
    pub count: Count,
    /// For each what it is counted: ip | net | login | login+ip | login+net | session (the mail server's session: one
    /// connection of a client) | all.
    pub per: Per,
    /// From this number on the rule acts. 0: the rule is switched off.
    pub limit: u32,
    /// Over which time is counted. A count may stay an eighth longer.
    pub window: Span,
    /// delay (the attempt waits for `delay`, and is judged then) | deny (refused) | log (only said in journal and metrics).
    pub action: Action,
    /// How long an attempt waits.
    pub delay: Span,
    /// The rule goes on acting so long after the count reached its limit, if that is longer than the window has it.
    pub hold: Span,
    /// Services that are counted and judged, such as `["imap", "smtp"]`; empty: all.
    pub services: Vec<String>,
    /// Mail domains that are counted and judged; empty: all.
    pub domains: Vec<String>,
    /// Each person who got in from there within `history` raises the limit of an address or net by this much, so that an
    /// office behind one address is not one guesser.
    pub allowance: u32,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    /// Every attempt.
    Attempts,
    /// Addresses that attempts failed from.
    DistinctIps,
    /// Logins that failed.
    DistinctLogins,
    /// Nets that attempts failed from.
    DistinctNets,
    /// Wrong passwords, each with its login.
    DistinctWrongPasswords,
    /// Refused attempts.
    Failures,
    /// Passwords that nobody could check, each with its login.
    Unproven,
}

/// For each what it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Per {
    /// All together.
    #[serde(rename = "all")]
    All,
    /// The client's address.
    #[serde(rename = "ip")]
    Ip,
    /// The name typed, in its one form.
    #[serde(rename = "login")]
    Login,
    /// Both.
    #[serde(rename = "login+ip")]
    LoginIp,
    /// Both.
    #[serde(rename = "login+net")]
    LoginNet,
    /// The client's net.
    #[serde(rename = "net")]
    Net,
    /// The mail server's session.
    #[serde(rename = "session")]
    Session,
}

impl Per {
    /// Whether a login is part of the key.
    #[must_use]
    pub fn holds_login(self) -> bool {
        matches!(self, Self::Login | Self::LoginIp | Self::LoginNet)
    }
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Slow down.
    Delay,
    /// Refuse.
    Deny,
    /// Say so.
    Log,
}

impl Action {
    /// The word in journal and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Deny => "deny",
            Self::Log => "log",
        }
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            enabled: true,
            allow: Vec::new(),
            deny: Vec::new(),
            net_v4: 24,
            net_v6: 64,
            history: Span::seconds(30 * 86_400),
            max_delayed: 4096,
            keys: 65_536,
            rule: built_in(),
        }
    }
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            count: Count::DistinctWrongPasswords,
            per: Per::LoginNet,
            limit: 10,
            window: Span::seconds(600),
            action: Action::Delay,
            delay: Span::seconds(5),
            hold: Span::seconds(0),
            services: Vec::new(),
            domains: Vec::new(),
            allowance: 2,
        }
    }
}

/// The rules that are kept unless the file changes them.
#[must_use]
pub fn built_in() -> BTreeMap<String, Rule> {
    let hour = Span::seconds(3600);
    let rule = |name: &str, rule: Rule| (name.to_owned(), rule);
    BTreeMap::from([
        // Whoever tries passwords for one login.
        rule("guessing-per-login", Rule::default()),
        // Who goes on all the same.
        rule(
            "guessing-per-login-long",
            Rule { limit: 30, window: hour, action: Action::Deny, ..Rule::default() },
        ),
        // The same once so many were wrong that the directory is not asked any more (`auth.wrong_binds`).
        rule("guessing-past-the-budget", Rule { count: Count::Unproven, ..Rule::default() }),
        rule(
            "guessing-past-the-budget-long",
            Rule {
                count: Count::Unproven,
                limit: 30,
                window: hour,
                action: Action::Deny,
                ..Rule::default()
            },
        ),
        // Many addresses that try one login, past the same.
        rule(
            "guessing-from-everywhere-past-the-budget",
            Rule {
                count: Count::Unproven,
                per: Per::Login,
                limit: 50,
                window: hour,
                ..Rule::default()
            },
        ),
        // One address that tries many passwords, whoever they are for.
        rule("guessing-per-ip", Rule { per: Per::Ip, limit: 30, window: hour, ..Rule::default() }),
        // More than one each of an office of five hundred whose devices have an old password, should a restart have
        // made it a stranger.
        rule(
            "guessing-per-ip-long",
            Rule {
                per: Per::Ip,
                limit: 600,
                window: hour,
                action: Action::Deny,
                ..Rule::default()
            },
        ),
        // One net that tries one password for many logins.
        rule(
            "spraying-per-net",
            Rule {
                count: Count::DistinctLogins,
                per: Per::Net,
                limit: 60,
                window: hour,
                ..Rule::default()
            },
        ),
        // Many addresses that try one login.
        rule(
            "guessing-from-everywhere",
            Rule { per: Per::Login, limit: 50, window: hour, ..Rule::default() },
        ),
        // Many addresses that try many logins.
        rule(
            "spraying-from-everywhere",
            Rule { count: Count::DistinctLogins, per: Per::All, limit: 1000, ..Rule::default() },
        ),
        // Many guesses over one connection, whatever they are.
        rule(
            "guessing-per-session",
            Rule {
                count: Count::Failures,
                per: Per::Session,
                limit: 10,
                action: Action::Deny,
                ..Rule::default()
            },
        ),
    ])
}

impl Throttle {
    /// Brings the logins of the lists to the form in which attempts have them.
    pub(super) fn settle_logins(&mut self, names: &LoginRules, report: &mut Report) {
        for (key, entries) in [("allow", &mut self.allow), ("deny", &mut self.deny)] {
            for entry in
                entries.iter_mut().filter(|it| matches!(Entry::parse(it), Some(Entry::Login(_))))
            {
                match Login::parse(entry.as_bytes(), names) {
                    Ok(login) => *entry = login.address.to_string(),
                    Err(error) => {
                        report.problem(
                            key,
                            format!("{entry}: {error}"),
                            "such as fry@planetexpress.com",
                        );
                    }
                }
            }
        }
    }

    pub(super) fn check(&self, deadline: Span, report: &mut Report) {
        for (key, entries) in [("allow", &self.allow), ("deny", &self.deny)] {
            for entry in entries {
                report.require(
                    Entry::parse(entry).is_some(),
                    key,
                    "neither an address, a net nor a login",
                    "such as 192.0.2.0/24, 2001:db8::1 or fry@planetexpress.com",
                );
            }
        }
        report.require((8..=32).contains(&self.net_v4), "net_v4", "no prefix", "8 to 32");
        report.require((16..=128).contains(&self.net_v6), "net_v6", "no prefix", "16 to 128");
        report.require_count(self.max_delayed, 1 << 20, "max_delayed", "0 would delay nobody");
        report.require(
            (64..=1 << 24).contains(&self.keys),
            "keys",
            "too few or too many",
            "64 to 16777216",
        );
        report.require(
            is_window(self.history),
            "history",
            "too short or too long",
            "a span of time from 1s to 366d",
        );
        report.require(self.rule.len() <= MAX_RULES, "rule", "too many", "64 rules at most");
        for (name, rule) in &self.rule {
            report.within("rule", |report| {
                check_table_name(name, report);
                report.within(name, |report| rule.check(name, deadline, report));
            });
        }
    }
}

/// Each rule costs every attempt something.
const MAX_RULES: usize = 64;

fn is_window(span: Span) -> bool {
    (1..=366 * 86_400).contains(&span.0.as_secs())
}

impl Rule {
    fn check(&self, name: &str, deadline: Span, report: &mut Report) {
        report.require(
            is_window(self.window),
            "window",
            "too short or too long",
            "a span of time from 1s to 366d",
        );
        report.require(
            self.hold.0.as_secs() <= 366 * 86_400,
            "hold",
            "too long",
            "a span of time up to 366d",
        );
        report.require(self.limit <= 60_000, "limit", "too large to count to", "at most 60000");
        // What nobody wrote is no fault of theirs: such a delay is cut at half of a short deadline.
        let is_built_in = || built_in().get(name).is_some_and(|rule| rule.delay == self.delay);
        if self.action == Action::Delay && !is_built_in() {
            report.require(
                !self.delay.0.is_zero() && self.delay < deadline,
                "delay",
                "no time at all, or not within login.deadline",
                "a span of time such as 5s",
            );
        }
        for service in &self.services {
            report.require(
                Service::parse(service).is_some(),
                "services",
                "no service",
                "imap, pop3, smtp, sieve, dav",
            );
        }
        for domain in &self.domains {
            report.require(
                Domain::parse(domain).is_ok(),
                "domains",
                "no mail domain",
                "such as planetexpress.com",
            );
        }
        let same = matches!(
            (self.count, self.per),
            (Count::DistinctLogins, Per::Login | Per::LoginIp | Per::LoginNet)
                | (Count::DistinctIps, Per::Ip | Per::LoginIp)
                | (Count::DistinctNets, Per::Net | Per::LoginNet | Per::Ip | Per::LoginIp)
        );
        report.require(!same, "count", "would never be more than one", "another count or per");
    }
}

/// An entry of `allow` or `deny`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An address or a net.
    Net(IpNet),
    /// A login.
    Login(String),
}

impl Entry {
    /// Reads one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Some(Self::Net(net.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Net(address.to_canonical().into()));
        }
        let is_login = text.contains('@') && !text.contains(|c: char| c.is_control() || c == ' ');
        is_login.then(|| Self::Login(text.to_owned()))
    }
}

/// Counters, lists and news between nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Shared {
    /// A Valkey or Redis that all nodes reach, such as `redis://user:password@10.0.0.5:6379/0`, or `rediss://…` for TLS; empty:
    /// this node alone. The text itself, or `"env:NAME"`; or `url_file = "path"`. See docs/nodes.md.
    #[serde(skip)]
    pub url: crate::secret::Secret,
    /// An answer that takes longer counts as none. No login waits for it.
    pub timeout: Span,
    /// Nodes with the same word work together; others may use the same server.
    pub prefix: String,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            url: crate::secret::Secret::default(),
            timeout: Span::seconds(1),
            prefix: "gatepost".into(),
        }
    }
}

impl Shared {
    pub(super) fn check(&self, report: &mut Report) {
        report.require(
            !self.timeout.0.is_zero(),
            "timeout",
            "no time at all",
            "a span of time such as 1s",
        );
        report.require(
            self.timeout <= Span::seconds(60),
            "timeout",
            "too long",
            "a span of time up to 1m",
        );
        // Never with a word of the text: it holds a password.
        report.require(
            self.url.is_empty() || is_url(self.url.expose()),
            "url",
            "not the address of a Valkey or Redis",
            "redis://[USER[:PASSWORD]@]HOST[:PORT][/NUMBER], rediss://… or unix:///PATH; signs such as @ : / in a \
             password are written %40 %3A %2F",
        );
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        report.require(
            !self.prefix.is_empty() && self.prefix.len() <= 64 && self.prefix.chars().all(fits),
            "prefix",
            "not usable in a key",
            "letters, digits, - _ . and :",
        );
    }
}

/// What follows a `#` would switch off the check of certificates.
fn is_url(text: &str) -> bool {
    !text.contains('#') && redis::IntoConnectionInfo::into_connection_info(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules as docs/shield.md prints them.
    fn table() -> String {
        let head = "| rule | counts | per | limit | window | action |\n|---|---|---|---|---|---|\n";
        let mut text = String::from(head);
        for (name, rule) in built_in() {
            let words = serde_json::to_value(&rule).unwrap();
            let [count, per, action] =
                ["count", "per", "action"].map(|key| words[key].as_str().unwrap());
            let (limit, window) = (rule.limit, rule.window);
            let delay = match rule.action {
                Action::Delay => format!(" {}", rule.delay),
                Action::Deny | Action::Log => String::new(),
            };
            text +=
                &format!("| `{name}` | {count} | {per} | {limit} | {window} | {action}{delay} |\n");
        }
        text
    }

    #[test]
    fn the_page_about_the_shield_shows_the_rules_that_are_built_in() {
        const START: &str = "<!-- rules -->\n";
        const END: &str = "<!-- end of rules -->";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/shield.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(START).unwrap();
        let (shown, after) = rest.split_once(END).unwrap();
        if std::env::var_os("GATEPOST_BLESS").is_some() {
            std::fs::write(path, format!("{before}{START}{}{END}{after}", table())).unwrap();
        } else {
            assert!(
                shown == table(),
                "docs/shield.md is old: GATEPOST_BLESS=1 cargo test rewrites it"
            );
        }
    }
}
