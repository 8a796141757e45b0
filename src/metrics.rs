//! Every metric, declared once: name, help, labels. docs/METRICS.md is generated from these declarations and
//! compared by a test.
//!
//! Labels come from closed sets: words of our own, and names from the configuration. Never a login, never an
//! address of a client.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

/// The content type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is counted and measured. Clones share the same numbers.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    logins: Family<LoginLabels, Counter>,
    login_duration: Family<DurationLabels, Histogram, Buckets>,
    /// The one of logins that memory accepts.
    remembered_duration: OnceLock<Histogram>,
    ldap_operations: Family<OperationLabels, Counter>,
    ldap_operation_duration: Family<OperationDurationLabels, Histogram, Buckets>,
    ldap_up: Family<ServerLabel, Gauge>,
    feeds: Family<FeedLabels, Gauge>,
    connections: Family<DoorLabel, Gauge>,
    connections_total: Family<DoorLabel, Counter>,
    lookups: Family<LookupLabels, Counter>,
    protocol_errors: Family<DoorLabel, Counter>,
    memory_entries: Family<PartLabel, Gauge>,
    memory_bytes: Family<PartLabel, Gauge>,
    provisioned: Family<OutcomeLabel, Counter>,
    refreshes: Family<OutcomeLabel, Counter>,
    old_passwords: Counter,
    reload_successful: Gauge,
    journal_dropped: Counter,
    throttled: Family<ThrottleLabels, Counter>,
    throttle_keys: Family<RuleLabel, Gauge>,
    throttle_evicted: Family<RuleLabel, Gauge>,
    throttle_bytes: Gauge,
    throttle_waiting: Gauge,
    sending: Family<SendingLabels, Counter>,
    shared_up: Gauge,
    shared_dropped: Counter,
    shared_received: Family<ResultLabel, Counter>,
}

/// Whether a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up {
    /// It answers.
    Yes,
    /// It does not.
    No,
}

/// What became of a new configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// It is in force.
    Taken,
    /// It was bad; the one before stays in force.
    Refused,
}

/// An open connection; dropping it counts it closed.
#[derive(Debug)]
#[must_use = "dropping it counts the connection closed"]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A door's name in the configuration, with the counters of what happens there most: looking one up by its labels costs
/// as much as half a remembered login.
#[derive(Debug)]
pub struct DoorName {
    name: Arc<str>,
    /// Accepts from memory, in the order of [`SERVICES`].
    remembered: [OnceLock<Counter>; SERVICES.len()],
    /// Look-ups, in the order of [`MAPS`] and [`RESULTS`].
    lookups: [[OnceLock<Counter>; RESULTS.len()]; MAPS.len()],
}

/// The words of the label `service`.
const SERVICES: [&str; 7] = ["imap", "smtp", "pop3", "sieve", "dav", "lookup", "unknown"];

/// The words of the label `map`.
const MAPS: [&str; 5] = ["mailbox", "alias", "sender-login", "domain", "userdb"];

/// The words of the label `result` of look-ups.
const RESULTS: [&str; 3] = ["found", "nothing", "later"];

const REMEMBERED: LoginOutcome = LoginOutcome { verdict: "accept", reason: "", source: "memory" };

impl DoorName {
    /// A door that nothing has happened at.
    #[must_use]
    pub fn new(name: Arc<str>) -> Arc<Self> {
        Arc::new(Self { name, remembered: Default::default(), lookups: Default::default() })
    }
}

impl From<&str> for DoorName {
    fn from(name: &str) -> Self {
        Self { name: name.into(), remembered: Default::default(), lookups: Default::default() }
    }
}

impl Deref for DoorName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Display for DoorName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.name)
    }
}

/// How a login ended, in words of closed sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginOutcome {
    /// accept | refuse | later
    pub verdict: &'static str,
    /// The reason's word; empty for an accept.
    pub reason: &'static str,
    /// directory | memory | grace | local | rules
    pub source: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, at their start.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner::new()))
    }

    /// A login was decided.
    pub fn login(
        &self,
        door: &DoorName,
        service: &'static str,
        outcome: LoginOutcome,
        took: Duration,
    ) {
        let LoginOutcome { verdict, reason, source } = outcome;
        let labels = LoginLabels { door: door.to_string(), service, verdict, reason, source };
        self.0.logins.get_or_create(&labels).inc();
        let labels = DurationLabels { verdict, source };
        self.0.login_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A login was accepted from memory: [`Metrics::login`] for what happens most.
    pub fn remembered_login(&self, door: &DoorName, service: &'static str, took: Duration) {
        let inner = &*self.0;
        let place = SERVICES.iter().position(|word| *word == service);
        let Some(counter) = place.and_then(|place| door.remembered.get(place)) else {
            self.login(door, service, REMEMBERED, took);
            return;
        };
        let LoginOutcome { verdict, reason, source } = REMEMBERED;
        let count = || {
            let labels = LoginLabels { door: door.to_string(), service, verdict, reason, source };
            inner.logins.get_or_create_owned(&labels)
        };
        counter.get_or_init(count).inc();
        let labels = DurationLabels { verdict, source };
        let duration = || inner.login_duration.get_or_create_owned(&labels);
        inner.remembered_duration.get_or_init(duration).observe(took.as_secs_f64());
    }

    /// An operation at a directory server ended. `operation`: connect | bind | search; `result`: ok | refused |
    /// failed | timeout.
    pub fn ldap_operation(
        &self,
        server: &str,
        operation: &'static str,
        result: &'static str,
        took: Duration,
    ) {
        let labels = OperationLabels { server: server.to_owned(), operation, result };
        self.0.ldap_operations.get_or_create(&labels).inc();
        let labels = OperationDurationLabels { server: labels.server, operation };
        self.0.ldap_operation_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A directory server answers, or no longer does.
    pub fn ldap_up(&self, server: &str, up: Up) {
        let labels = ServerLabel { server: server.to_owned() };
        self.0.ldap_up.get_or_create(&labels).set(i64::from(up == Up::Yes));
    }

    /// A directory server left the configuration: it is no longer shown as up or down.
    pub fn ldap_forgotten(&self, server: &str) {
        self.0.ldap_up.remove(&ServerLabel { server: server.to_owned() });
    }

    /// Changes at a directory are heard of in this way (a word of [`crate::directory::feed::Kind`]).
    pub fn feed(&self, directory: &str, kind: &'static str) {
        self.feed_forgotten(directory);
        let labels = FeedLabels { directory: directory.to_owned(), kind };
        self.0.feeds.get_or_create(&labels).set(1);
    }

    /// Changes at a directory are not heard of.
    pub fn feed_lost(&self, directory: &str) {
        self.feed_forgotten(directory);
        let labels = FeedLabels { directory: directory.to_owned(), kind: "none" };
        self.0.feeds.get_or_create(&labels).set(0);
    }

    /// A directory left the configuration, or nobody wants to hear of its changes.
    pub fn feed_forgotten(&self, directory: &str) {
        for kind in FEED_KINDS.split(", ") {
            self.0.feeds.remove(&FeedLabels { directory: directory.to_owned(), kind });
        }
    }

    /// A connection was taken; it counts as open until the value is dropped.
    pub fn connection_opened(&self, door: &str) -> OpenConnection {
        let labels = DoorLabel { door: door.to_owned() };
        self.0.connections_total.get_or_create(&labels).inc();
        let open = self.0.connections.get_or_create_owned(&labels);
        open.inc();
        OpenConnection(open)
    }

    /// A look-up was answered. `map`: a word of [`crate::lookup::Map`], or userdb; `result`: found | nothing | later.
    pub fn lookup(&self, door: &DoorName, map: &'static str, result: &'static str) {
        let lookups = &self.0.lookups;
        let labels = || LookupLabels { door: door.to_string(), map, result };
        let place = |words: &[&str], word| words.iter().position(|known| *known == word);
        let counter = place(&MAPS, map).and_then(|map| door.lookups.get(map));
        match counter.and_then(|results| results.get(place(&RESULTS, result)?)) {
            Some(counter) => counter.get_or_init(|| lookups.get_or_create_owned(&labels())).inc(),
            None => lookups.get_or_create(&labels()).inc(),
        };
    }

    /// A login touched a mailbox: created | updated | write-failed.
    pub fn provisioned(&self, what: &'static str) {
        self.0.provisioned.get_or_create(&OutcomeLabel { outcome: what }).inc();
    }

    /// A question in the background ended: accepted | refused | later | skipped.
    pub fn refresh(&self, outcome: &'static str) {
        self.0.refreshes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// A client sent a password that was right before it was changed.
    pub fn old_password(&self) {
        self.0.old_passwords.inc();
    }

    /// What memory holds now. `part`: people | nobodies.
    pub fn memory(&self, part: &'static str, entries: u64, bytes: u64) {
        let labels = PartLabel { part };
        self.0.memory_entries.get_or_create(&labels).set(entries.try_into().unwrap_or(i64::MAX));
        self.0.memory_bytes.get_or_create(&labels).set(bytes.try_into().unwrap_or(i64::MAX));
    }

    /// A reload was asked for.
    pub fn reloaded(&self, outcome: Reloaded) {
        self.0.reload_successful.set(i64::from(outcome == Reloaded::Taken));
    }

    /// A peer did not keep to its protocol and was cut off or answered with an error.
    pub fn protocol_error(&self, door: &str) {
        self.0.protocol_errors.get_or_create(&DoorLabel { door: door.to_owned() }).inc();
    }

    /// Accepts that the journal had no room for.
    pub fn journal_dropped(&self, records: u64) {
        self.0.journal_dropped.inc_by(records);
    }

    /// A rule or a list of the guessing shield had something to say. `action`: delay | deny | log | allow.
    pub fn throttled(&self, rule: &str, action: &'static str) {
        let labels = ThrottleLabels { rule: rule.to_owned(), action };
        self.0.throttled.get_or_create(&labels).inc();
    }

    /// What the guessing shield holds now: bytes of all counts, attempts that wait, and for each rule its keys and how many
    /// gave way.
    pub fn throttle<'a>(
        &self,
        bytes: usize,
        waiting: usize,
        rules: impl Iterator<Item = (&'a str, usize, usize)>,
    ) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.0.throttle_bytes.set(number(bytes));
        self.0.throttle_waiting.set(number(waiting));
        self.0.throttle_keys.clear();
        self.0.throttle_evicted.clear();
        for (rule, keys, evicted) in rules {
            let labels = RuleLabel { rule: rule.to_owned() };
            self.0.throttle_keys.get_or_create(&labels).set(number(keys));
            self.0.throttle_evicted.get_or_create(&labels).set(number(evicted));
        }
    }

    /// A message of a mailbox with a limit was counted, or was one too many: counted | deferred.
    pub fn sending(&self, template: &str, outcome: &'static str) {
        let labels = SendingLabels { template: template.to_owned(), outcome };
        self.0.sending.get_or_create(&labels).inc();
    }

    /// The shared server answers, or no longer does.
    pub fn shared_up(&self, up: Up) {
        self.0.shared_up.set(i64::from(up == Up::Yes));
    }

    /// Other nodes will not hear of something: too much waited for the shared server.
    pub fn shared_dropped(&self) {
        self.0.shared_dropped.inc();
    }

    /// Other nodes told something: counted | unreadable.
    pub fn shared_received(&self, result: &'static str, events: u64) {
        self.0.shared_received.get_or_create(&ResultLabel { result }).inc_by(events);
    }

    /// Everything as text, in the format of [`CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a string fails only if a metric's own encoder does; what was written stands.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.0.registry);
        text
    }
}

impl Inner {
    fn new() -> Self {
        let inner = Self {
            registry: Registry::default(),
            logins: Family::default(),
            login_duration: Family::new_with_constructor(Buckets),
            remembered_duration: OnceLock::new(),
            ldap_operations: Family::default(),
            ldap_operation_duration: Family::new_with_constructor(Buckets),
            ldap_up: Family::default(),
            feeds: Family::default(),
            connections: Family::default(),
            connections_total: Family::default(),
            lookups: Family::default(),
            protocol_errors: Family::default(),
            memory_entries: Family::default(),
            memory_bytes: Family::default(),
            provisioned: Family::default(),
            refreshes: Family::default(),
            old_passwords: Counter::default(),
            reload_successful: Gauge::default(),
            journal_dropped: Counter::default(),
            throttled: Family::default(),
            throttle_keys: Family::default(),
            throttle_evicted: Family::default(),
            throttle_bytes: Gauge::default(),
            throttle_waiting: Gauge::default(),
            sending: Family::default(),
            shared_up: Gauge::default(),
            shared_dropped: Counter::default(),
            shared_received: Family::default(),
        };
        // The configuration that the daemon starts with was good.
        inner.reload_successful.set(1);
        inner.registered()
    }

    fn registered(mut self) -> Self {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let registry = &mut self.registry;
        declare(registry, &BUILD, build);
        declare(registry, &RELOAD, self.reload_successful.clone());
        declare(registry, &CONNECTIONS, self.connections.clone());
        declare(registry, &CONNECTIONS_TOTAL, self.connections_total.clone());
        declare(registry, &FEED, self.feeds.clone());
        declare(registry, &JOURNAL_DROPPED, self.journal_dropped.clone());
        declare(registry, &LDAP_DURATION, self.ldap_operation_duration.clone());
        declare(registry, &LDAP_OPERATIONS, self.ldap_operations.clone());
        declare(registry, &LDAP_UP, self.ldap_up.clone());
        declare(registry, &LOGIN_DURATION, self.login_duration.clone());
        declare(registry, &LOGINS, self.logins.clone());
        declare(registry, &LOOKUPS, self.lookups.clone());
        declare(registry, &PROVISIONED, self.provisioned.clone());
        declare(registry, &MEMORY_BYTES, self.memory_bytes.clone());
        declare(registry, &MEMORY_ENTRIES, self.memory_entries.clone());
        declare(registry, &REFRESHES, self.refreshes.clone());
        declare(registry, &OLD_PASSWORDS, self.old_passwords.clone());
        declare(registry, &PROTOCOL_ERRORS, self.protocol_errors.clone());
        declare(registry, &SENDING, self.sending.clone());
        declare(registry, &SHARED_DROPPED, self.shared_dropped.clone());
        declare(registry, &SHARED_RECEIVED, self.shared_received.clone());
        declare(registry, &SHARED_UP, self.shared_up.clone());
        declare(registry, &THROTTLED, self.throttled.clone());
        declare(registry, &THROTTLE_BYTES, self.throttle_bytes.clone());
        declare(registry, &THROTTLE_EVICTED, self.throttle_evicted.clone());
        declare(registry, &THROTTLE_KEYS, self.throttle_keys.clone());
        declare(registry, &THROTTLE_WAITING, self.throttle_waiting.clone());
        self
    }
}

/// The encoder adds the endings `_total` and `_info` itself, and the full stop of the help.
fn declare(registry: &mut Registry, declared: &Declared, metric: impl Metric) {
    let name = declared.name;
    let name = name.strip_suffix("_total").or(name.strip_suffix("_info")).unwrap_or(name);
    registry.register(name, declared.help, metric);
}

/// A metric's name, kind, labels and help.
struct Declared {
    name: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "docs/METRICS.md is made of it by a test"))]
    kind: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "docs/METRICS.md is made of it by a test"))]
    labels: &'static [(&'static str, &'static str)],
    help: &'static str,
}

const DOOR: (&str, &str) = ("door", "the table's name under `[listen]`");
const SERVER: (&str, &str) = ("server", "a server of a directory");
const VERDICT: (&str, &str) = ("verdict", "accept, refuse, later");
const SOURCE: (&str, &str) = ("source", "directory, memory, grace, local, rules");
const OPERATION: (&str, &str) = ("operation", "connect, bind, search");
const PART: (&str, &str) = ("part", "people, nobodies");

const BUILD: Declared = Declared {
    name: "gatepost_build_info",
    kind: "info",
    labels: &[("version", "the version that runs")],
    help: "Which Gatepost runs; always 1",
};

const RELOAD: Declared = Declared {
    name: "gatepost_config_last_reload_successful",
    kind: "gauge",
    labels: &[],
    help: "1 if the configuration last read is in force, 0 if it was bad and the one before it stays",
};

const CONNECTIONS: Declared = Declared {
    name: "gatepost_connections",
    kind: "gauge",
    labels: &[DOOR],
    help: "Connections that are open now",
};

const CONNECTIONS_TOTAL: Declared = Declared {
    name: "gatepost_connections_total",
    kind: "counter",
    labels: &[DOOR],
    help: "Connections that were taken",
};

const FEED: Declared = Declared {
    name: "gatepost_directory_feed",
    kind: "gauge",
    labels: &[("directory", "the table's name under `[directory]`"), ("kind", FEED_KINDS)],
    help: "1 if changes at the directory are heard of as they happen, 0 if they are seen only when somebody is asked \
           about again",
};

const FEED_KINDS: &str = "syncrepl, usn, timestamp, none";

const JOURNAL_DROPPED: Declared = Declared {
    name: "gatepost_journal_dropped_total",
    kind: "counter",
    labels: &[],
    help: "Accepts from memory that are missing in the journal because its reader was too slow; \
           refusals never are",
};

const LDAP_DURATION: Declared = Declared {
    name: "gatepost_ldap_operation_duration_seconds",
    kind: "histogram",
    labels: &[SERVER, OPERATION],
    help: "How long an operation at a directory server took",
};

const LDAP_OPERATIONS: Declared = Declared {
    name: "gatepost_ldap_operations_total",
    kind: "counter",
    labels: &[SERVER, OPERATION, ("result", "ok, refused, failed, timeout")],
    help: "Operations at a directory server that ended",
};

const LDAP_UP: Declared = Declared {
    name: "gatepost_ldap_up",
    kind: "gauge",
    labels: &[SERVER],
    help: "1 if the directory server answers, 0 if it does not",
};

const LOGIN_DURATION: Declared = Declared {
    name: "gatepost_login_duration_seconds",
    kind: "histogram",
    labels: &[VERDICT, SOURCE],
    help: "From the arrival of an attempt to its verdict, without the delay of refusals",
};

const LOGINS: Declared = Declared {
    name: "gatepost_logins_total",
    kind: "counter",
    labels: &[
        DOOR,
        ("service", "imap, pop3, smtp, sieve, dav, lookup, unknown"),
        VERDICT,
        ("reason", "a word of the closed list of reasons (docs/LOGGING.md); empty for accept"),
        SOURCE,
    ],
    help: "Login attempts that were decided",
};

const LOOKUPS: Declared = Declared {
    name: "gatepost_lookups_total",
    kind: "counter",
    labels: &[
        DOOR,
        ("map", "mailbox, alias, domain, sender-login, userdb"),
        ("result", "found, nothing, later"),
    ],
    help: "Look-ups of addresses that were answered",
};

const PROVISIONED: Declared = Declared {
    name: "gatepost_mailboxes_provisioned_total",
    kind: "counter",
    labels: &[("outcome", "created, updated, write-failed")],
    help: "Mailboxes that a login created or changed, or failed to change",
};

const MEMORY_BYTES: Declared = Declared {
    name: "gatepost_memory_bytes",
    kind: "gauge",
    labels: &[PART],
    help: "Bytes that the memory of logins takes",
};

const MEMORY_ENTRIES: Declared = Declared {
    name: "gatepost_memory_entries",
    kind: "gauge",
    labels: &[PART],
    help: "Accounts (people) and names that are nobody's (nobodies) in the memory of logins",
};

const REFRESHES: Declared = Declared {
    name: "gatepost_memory_refreshes_total",
    kind: "counter",
    labels: &[("outcome", "accepted, refused, later, skipped")],
    help: "Questions in the background about passwords near the end of `memory.fresh`; skipped: others needed the \
           connections, a later login tries again",
};

const OLD_PASSWORDS: Declared = Declared {
    name: "gatepost_old_passwords_total",
    kind: "counter",
    labels: &[],
    help: "Refused logins whose password was right before it was changed: a client that still sends the old one",
};

const PROTOCOL_ERRORS: Declared = Declared {
    name: "gatepost_protocol_errors_total",
    kind: "counter",
    labels: &[DOOR],
    help: "Peers that did not keep to their protocol",
};

const SENDING: Declared = Declared {
    name: "gatepost_sending_total",
    kind: "counter",
    labels: &[
        ("template", "the table's name under `[template]`"),
        ("outcome", "counted; deferred: one more than `send_limit`"),
    ],
    help: "Messages of mailboxes whose template has a `send_limit`, as the policy server judged them",
};

const SHARED_DROPPED: Declared = Declared {
    name: "gatepost_shared_dropped_total",
    kind: "counter",
    labels: &[],
    help: "Events that other nodes do not hear of, because too many waited for the server of `[shared]`",
};

const SHARED_RECEIVED: Declared = Declared {
    name: "gatepost_shared_received_total",
    kind: "counter",
    labels: &[("result", "counted; unreadable: a batch that makes no sense")],
    help: "Events that other nodes told",
};

const SHARED_UP: Declared = Declared {
    name: "gatepost_shared_up",
    kind: "gauge",
    labels: &[],
    help: "1 if nodes hear of each other by the server of `[shared]`, 0 if that does not answer or there is none",
};

const RULE: (&str, &str) = ("rule", "the table's name under `[throttle.rule]`");

const THROTTLED: Declared = Declared {
    name: "gatepost_throttle_total",
    kind: "counter",
    labels: &[
        ("rule", "the table's name under `[throttle.rule]`; list:allow, list:deny"),
        ("action", "delay, deny, log; allow for a list that lets go on"),
    ],
    help: "Attempts that the guessing shield had something to say about",
};

const THROTTLE_BYTES: Declared = Declared {
    name: "gatepost_throttle_bytes",
    kind: "gauge",
    labels: &[],
    help: "Bytes that the counts of the guessing shield take",
};

const THROTTLE_EVICTED: Declared = Declared {
    name: "gatepost_throttle_evicted",
    kind: "gauge",
    labels: &[RULE],
    help: "Keys that gave way to others while they still counted: `throttle.keys` is small for what goes on",
};

const THROTTLE_KEYS: Declared = Declared {
    name: "gatepost_throttle_keys",
    kind: "gauge",
    labels: &[RULE],
    help: "Addresses, nets or logins that are counted",
};

const THROTTLE_WAITING: Declared = Declared {
    name: "gatepost_throttle_waiting",
    kind: "gauge",
    labels: &[],
    help: "Attempts that wait now because a rule delays them",
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ThrottleLabels {
    rule: String,
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SendingLabels {
    template: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabel {
    rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoginLabels {
    door: String,
    service: &'static str,
    verdict: &'static str,
    reason: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    verdict: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    server: String,
    operation: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationDurationLabels {
    server: String,
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabel {
    server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeedLabels {
    directory: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoorLabel {
    door: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    door: String,
    map: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Seconds, from an answer of memory to a directory that is nearly dead.
const BOUNDS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

#[derive(Clone, Debug)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BOUNDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[&Declared] = &[
        &BUILD,
        &RELOAD,
        &CONNECTIONS,
        &CONNECTIONS_TOTAL,
        &FEED,
        &JOURNAL_DROPPED,
        &LDAP_DURATION,
        &LDAP_OPERATIONS,
        &LDAP_UP,
        &LOGIN_DURATION,
        &LOGINS,
        &LOOKUPS,
        &PROVISIONED,
        &MEMORY_BYTES,
        &MEMORY_ENTRIES,
        &REFRESHES,
        &OLD_PASSWORDS,
        &PROTOCOL_ERRORS,
        &SENDING,
        &SHARED_DROPPED,
        &SHARED_RECEIVED,
        &SHARED_UP,
        &THROTTLED,
        &THROTTLE_BYTES,
        &THROTTLE_EVICTED,
        &THROTTLE_KEYS,
        &THROTTLE_WAITING,
    ];

    /// One of each kind of event.
    fn after_some_events() -> (Metrics, OpenConnection) {
        let metrics = Metrics::new();
        let took = Duration::from_millis(3);
        let refused =
            LoginOutcome { verdict: "refuse", reason: "wrong-password", source: "directory" };
        metrics.login(&"dovecot".into(), "imap", refused, took);
        metrics.ldap_operation("corp", "bind", "refused", took);
        metrics.ldap_up("corp", Up::Yes);
        metrics.feed("corp", "syncrepl");
        metrics.remembered_login(&"dovecot".into(), "imap", took);
        metrics.provisioned("created");
        metrics.refresh("accepted");
        metrics.old_password();
        metrics.memory("people", 3, 4096);
        metrics.protocol_error("dovecot");
        metrics.journal_dropped(7);
        metrics.lookup(&"maps".into(), "mailbox", "found");
        metrics.throttled("guessing-per-ip", "delay");
        metrics.throttle(1024, 2, [("guessing-per-ip", 3, 4)].into_iter());
        metrics.sending("crew", "counted");
        metrics.shared_received("counted", 3);
        metrics.shared_dropped();
        metrics.shared_up(Up::Yes);
        let open = metrics.connection_opened("dovecot");
        (metrics, open)
    }

    #[test]
    fn what_happened_is_shown() {
        let (metrics, _open) = after_some_events();

        let text = metrics.encode();

        for line in [
            "gatepost_logins_total{door=\"dovecot\",service=\"imap\",verdict=\"refuse\",\
             reason=\"wrong-password\",source=\"directory\"} 1",
            "gatepost_login_duration_seconds_count{verdict=\"refuse\",source=\"directory\"} 1",
            "gatepost_logins_total{door=\"dovecot\",service=\"imap\",verdict=\"accept\",\
             reason=\"\",source=\"memory\"} 1",
            "gatepost_login_duration_seconds_count{verdict=\"accept\",source=\"memory\"} 1",
            "gatepost_ldap_operations_total{server=\"corp\",operation=\"bind\",result=\"refused\"} 1",
            "gatepost_ldap_up{server=\"corp\"} 1",
            "gatepost_directory_feed{directory=\"corp\",kind=\"syncrepl\"} 1",
            "gatepost_connections{door=\"dovecot\"} 1",
            "gatepost_connections_total{door=\"dovecot\"} 1",
            "gatepost_memory_entries{part=\"people\"} 3",
            "gatepost_memory_bytes{part=\"people\"} 4096",
            "gatepost_mailboxes_provisioned_total{outcome=\"created\"} 1",
            "gatepost_config_last_reload_successful 1",
            "gatepost_protocol_errors_total{door=\"dovecot\"} 1",
            "gatepost_journal_dropped_total 7",
            "gatepost_throttle_total{rule=\"guessing-per-ip\",action=\"delay\"} 1",
            "gatepost_throttle_bytes 1024",
            "gatepost_throttle_waiting 2",
            "gatepost_throttle_keys{rule=\"guessing-per-ip\"} 3",
            "gatepost_throttle_evicted{rule=\"guessing-per-ip\"} 4",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn a_dropped_connection_is_no_longer_open() {
        let metrics = Metrics::new();

        drop(metrics.connection_opened("dovecot"));

        let text = metrics.encode();
        assert!(text.contains("gatepost_connections{door=\"dovecot\"} 0"), "{text}");
        assert!(text.contains("gatepost_connections_total{door=\"dovecot\"} 1"), "{text}");
    }

    #[test]
    fn a_server_that_left_the_configuration_is_not_shown() {
        let metrics = Metrics::new();
        metrics.ldap_up("corp", Up::No);

        metrics.ldap_forgotten("corp");

        assert!(!metrics.encode().contains("corp"));
    }

    #[test]
    fn a_refused_reload_shows_as_zero() {
        let metrics = Metrics::new();

        metrics.reloaded(Reloaded::Refused);

        assert!(metrics.encode().contains("gatepost_config_last_reload_successful 0"));
    }

    #[test]
    fn every_metric_shows_the_labels_it_declares_and_no_others() {
        let (metrics, _open) = after_some_events();
        let text = metrics.encode();

        for declared in ALL {
            let ending = if declared.kind == "histogram" { "_sum" } else { "" };
            let name = format!("{}{ending}", declared.name);
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(&name)?.strip_prefix(['{', ' ']))
                .unwrap_or_else(|| panic!("{name} is not shown:\n{text}"));
            let shown: Vec<&str> =
                line.split(',').filter_map(|label| Some(label.split_once('=')?.0)).collect();
            let declared: Vec<&str> = declared.labels.iter().map(|(label, _)| *label).collect();
            assert_eq!(shown, declared, "{name}");
        }
        let shown = text.lines().filter(|line| line.starts_with("# HELP")).count();
        assert_eq!(shown, ALL.len());
    }

    fn page() -> String {
        let mut page = String::from(
            "# Metrics\n\n\
             `GET /metrics` on an http door whose `serve` names `metrics`, in the OpenMetrics text format that\n\
             Prometheus reads. Labels come from closed sets and from names in the configuration: never a login,\n\
             never a client's address.\n\n\
             This page is generated from src/metrics.rs: `GATEPOST_BLESS=1 cargo test --lib metrics` rewrites it.\n",
        );
        for declared in ALL {
            page.push_str(&format!("\n## {}\n\n", declared.name));
            page.push_str(&format!("{}: {}.\n", declared.kind, declared.help));
            if !declared.labels.is_empty() {
                page.push_str("\n| label | values |\n|---|---|\n");
            }
            for (label, values) in declared.labels {
                page.push_str(&format!("| `{label}` | {values} |\n"));
            }
        }
        page
    }

    #[test]
    fn the_page_about_metrics_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
        let page = page();
        if std::env::var_os("GATEPOST_BLESS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stored == page, "docs/METRICS.md is old: GATEPOST_BLESS=1 cargo test rewrites it");
    }
}
