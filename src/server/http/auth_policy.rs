//! The auth-policy protocol over the guessing shield: `/policy?command=X`, `/command/X`, `/?command=X`.
//!
//! Dovecot asks `allow` before it looks at a password and once more after a right one, and tells by `report` what came of
//! it; callers of weakforced also look at counts and lists. Reports and the logins of Gatepost's own doors are counted
//! together.
//!
//! Whoever knows the door's token is believed about `remote`, wherever it asks from: the client's address is all that there
//! is to judge.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, StatusCode};
use ipnet::IpNet;

use super::{Answer, Boxed, Call, HttpDoor, JSON, ListBody, Problem, content, read_body};
use crate::auth::Service;
use crate::clock::{self, civil_from_days};
use crate::proto::auth_policy::{
    AllowAnswer, Command, DbStats, FailType, Key, Listed, LoginTuple, Named, NewEntry, OK,
    PolicyError, RuleStats, Stats, failure, list, parse_entry, parse_key, parse_tuple,
};
use crate::throttle::{
    Asked, Because, Course, Entry, Full, Judgement, List, Outcome, Subject, Throttle, Whom,
    canonical,
};

/// What the person hears who is refused by a rule.
const TOO_MANY: &str = "Too many wrong passwords; try again later";
/// The same by a list.
const NOT_ALLOWED: &str = "Login is not allowed here; ask your administrator";

/// The longest text of a client's that is logged, in characters.
const MAX_SHOWN: usize = 320;

/// What the auth-policy server works with.
#[derive(Clone)]
pub struct Shield {
    /// What is counted, and who is listed.
    pub throttle: Arc<Throttle>,
    /// A login in its one form; `None`: what was typed is none.
    pub normalise: Normalise,
    /// Changes what it holds. Where that is kept beyond a restart, and who else hears of it, is not this door's affair.
    pub change: Changing,
}

/// From a login as typed to its one form.
pub type Normalise = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Changes what the shield holds; whether anything was there to change.
pub type Changing = Arc<dyn Fn(ShieldChange) -> Boxed<Result<bool, Full>> + Send + Sync>;

/// A change of what the shield holds, at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShieldChange {
    /// An entry of a list, in the place of an earlier one about the same.
    Add(Entry),
    /// Takes the entry about exactly this out.
    Remove(List, Whom),
    /// Forgets what was counted of an address, of a login, or of both together.
    Reset {
        /// The address.
        client: Option<IpAddr>,
        /// The login, in its one form.
        login: Option<String>,
    },
}

/// What was asked at one door, since it was opened.
pub(super) struct Counters {
    opened: Instant,
    commands: [AtomicU64; Command::ALL.len()],
    /// What was answered to `allow`: as in [`ALLOWED`].
    allowed: [AtomicU64; ALLOWED.len()],
    /// How long requests took to be read, and to be answered: as in [`SPANS`].
    read: [AtomicU64; SPANS.len()],
    run: [AtomicU64; SPANS.len()],
}

/// The words of `commandstats` for what was answered to `allow`. One that a list refuses counts as denied too.
const ALLOWED: [&str; 5] =
    ["allow_allowed", "allow_blacklisted", "allow_denied", "allow_tarpitted", "allow_whitelisted"];

/// The words of `perfstats`, and the milliseconds at which the next one begins.
const SPANS: [(&str, u128); 5] =
    [("0_1", 1), ("1_10", 10), ("10_100", 100), ("100_1000", 1000), ("Slow", u128::MAX)];

fn count_one(counters: &[AtomicU64], place: Option<usize>) {
    if let Some(counter) = place.and_then(|place| counters.get(place)) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counters {
    pub(super) fn new() -> Self {
        let none = |_| AtomicU64::new(0);
        Self {
            opened: clock::now(),
            commands: std::array::from_fn(none),
            allowed: std::array::from_fn(none),
            read: std::array::from_fn(none),
            run: std::array::from_fn(none),
        }
    }

    fn command(&self, command: Command) {
        count_one(&self.commands, Command::ALL.iter().position(|it| *it == command));
    }

    fn allowed(&self, word: &str) {
        count_one(&self.allowed, ALLOWED.iter().position(|it| *it == word));
    }

    fn took(&self, read: Duration, run: Duration) {
        let span = |took: Duration| SPANS.iter().position(|(_, end)| took.as_millis() < *end);
        count_one(&self.read, span(read));
        count_one(&self.run, span(run));
    }

    fn told(&self, now: Instant) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let commands = Command::ALL.iter().map(|command| command.as_str()).zip(&self.commands);
        let all = commands.chain(ALLOWED.into_iter().zip(&self.allowed));
        let commandstats: BTreeMap<_, _> = all.map(|(word, count)| (word, get(count))).collect();
        let of = |word| commandstats.get(word).copied().unwrap_or_default();
        let spans = |kind: &'static str, counters| {
            let spans = SPANS.iter().zip(counters);
            spans.map(move |((word, _), count): (_, &AtomicU64)| {
                (format!("{kind}_{word}"), get(count))
            })
        };
        let (user_msec, sys_msec) = cpu_time();
        Stats {
            reports: of("report"),
            allows: of("allow"),
            denieds: of("allow_denied"),
            user_msec,
            sys_msec,
            uptime: now.saturating_duration_since(self.opened).as_secs(),
            perfstats: spans("WTW", &self.read).chain(spans("WTR", &self.run)).collect(),
            commandstats,
            customstats: BTreeMap::new(),
        }
    }
}

/// CPU time of this process, in milliseconds: its own, and the kernel's for it.
fn cpu_time() -> (u64, u64) {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let millis = |time: nix::sys::time::TimeVal| u64::try_from(time.num_milliseconds()).ok();
    // It cannot fail for the process itself.
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
    let of = |time: Option<_>| time.and_then(millis).unwrap_or_default();
    (of(usage.map(|it| it.user_time())), of(usage.map(|it| it.system_time())))
}

/// What was not done, and why.
struct Refusal(StatusCode, String);

impl From<Problem> for Refusal {
    fn from(Problem(status, error): Problem) -> Self {
        Self(status, error.into_owned())
    }
}

impl From<PolicyError> for Refusal {
    fn from(error: PolicyError) -> Self {
        let status = StatusCode::from_u16(error.status());
        Self(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error.to_string())
    }
}

impl From<Full> for Refusal {
    fn from(error: Full) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl Refusal {
    fn spoken(&self) -> Answer {
        let Self(status, reason) = self;
        content(*status, JSON, failure(reason))
    }
}

/// How a caller without the token is told.
pub(super) fn unauthorized() -> Answer {
    let mut answer = Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".into()).spoken();
    let scheme = HeaderValue::from_static("basic realm=\"wforce\"");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    answer
}

fn done(body: impl Into<Bytes>) -> Answer {
    content(StatusCode::OK, JSON, body)
}

impl HttpDoor {
    pub(super) async fn auth_policy(&self, call: &Call, named: Named, body: Incoming) -> Answer {
        let is_get = [Method::GET, Method::HEAD].contains(&call.head.method);
        let is_post = call.head.method == Method::POST;
        let command = match named {
            Named::Known(it) if if it.has_body() { is_post } else { is_get } => it,
            _ => return Refusal(StatusCode::NOT_FOUND, "Not found".into()).spoken(),
        };
        self.policy.command(command);
        self.obey(call, command, body).await.unwrap_or_else(|refusal| {
            tracing::warn!(
                door = %self.name, command = command.as_str(), error = refusal.1,
                "a request of the auth-policy protocol was not obeyed"
            );
            refusal.spoken()
        })
    }

    async fn obey(&self, call: &Call, command: Command, body: Incoming) -> Result<Answer, Refusal> {
        let body = match command.has_body() {
            true => read_body(call, body).await?,
            false => Default::default(),
        };
        let now = clock::now();
        let answer = match command {
            Command::Allow => done(self.allow(&parse_tuple(&body)?, now).encode()),
            Command::Report => {
                self.report(&parse_tuple(&body)?, now);
                done(OK)
            }
            Command::Reset => self.reset(self.key(parse_key(&body)?)?).await?,
            Command::AddBl => self.add(List::Deny, parse_entry(&body)?).await?,
            Command::AddWl => self.add(List::Allow, parse_entry(&body)?).await?,
            Command::DelBl => self.remove(List::Deny, parse_key(&body)?).await?,
            Command::DelWl => self.remove(List::Allow, parse_key(&body)?).await?,
            Command::GetBl => self.entries(List::Deny, "bl_entries")?,
            Command::GetWl => self.entries(List::Allow, "wl_entries")?,
            Command::GetDbStats => done(self.db_stats(&self.key(parse_key(&body)?)?, now).encode()),
            Command::Stats => done(self.policy.told(now).encode()),
            Command::Livez | Command::Ping | Command::Readyz => done(OK),
        };
        let read = now.saturating_duration_since(call.arrived);
        self.policy.took(read, clock::now().saturating_duration_since(now));
        Ok(answer)
    }

    fn shield(&self) -> &Shield {
        &self.parts.shield
    }

    fn allow(&self, tuple: &LoginTuple, now: Instant) -> AllowAnswer {
        let login = (self.shield().normalise)(&tuple.login);
        let subject = subject(tuple, login.as_deref());
        let judgement = self.shield().throttle.check(&subject, now);
        self.shield().throttle.note(&subject, &judgement);
        for because in judgement.all() {
            self.parts.metrics.throttled(&because.word(), because.action());
        }
        let answer = answer_of(&judgement);
        self.tell(tuple, &judgement, answer.status);
        answer
    }

    /// Counts what was answered, and logs what was not "go on". Never the password's hash.
    fn tell(&self, tuple: &LoginTuple, judgement: &Judgement, status: i64) {
        let word = match (&judgement.because, judgement.action) {
            (Some(Because::List(_)), Course::Go) => "allow_whitelisted",
            (Some(Because::List(_)), _) => "allow_blacklisted",
            (_, Course::Go) => "allow_allowed",
            (_, Course::Delay(_)) => "allow_tarpitted",
            (_, Course::Deny) => "allow_denied",
        };
        self.policy.allowed(word);
        if word == "allow_blacklisted" {
            self.policy.allowed("allow_denied");
        }
        if let Some(because) = judgement.because.as_ref().filter(|_| status != 0) {
            tracing::info!(
                door = %self.name, login.name = ?shown(&tuple.login), client.ip = ?tuple.remote,
                service = ?shown(&tuple.protocol), session = ?shown(&tuple.session_id),
                rule = %because.word(), action = because.action(), status,
                "the auth policy holds a login back"
            );
        }
    }

    fn report(&self, tuple: &LoginTuple, now: Instant) {
        let login = (self.shield().normalise)(&tuple.login);
        let subject = subject(tuple, login.as_deref());
        let throttle = &self.shield().throttle;
        let name = login.as_deref().unwrap_or(&tuple.login);
        let guess = || {
            let hash = tuple.pwhash.expose();
            (!hash.is_empty()).then(|| throttle.guess_of_hash(name, hash))
        };
        let outcome = match tuple.fail_type {
            _ if tuple.success => Outcome::Accepted,
            _ if tuple.policy_reject => Outcome::Neutral,
            FailType::Expired | FailType::Internal | FailType::Policy => Outcome::Neutral,
            FailType::Disabled => Outcome::FailedAtSource,
            FailType::Account | FailType::Credentials | FailType::Unsaid => {
                Outcome::Failed(guess())
            }
        };
        throttle.learn(&subject, outcome, now);
    }

    /// What was counted of somebody, and an entry that refuses them.
    async fn reset(&self, key: Key) -> Result<Answer, Refusal> {
        let Subject { client, login, .. } = subject_of(&key);
        let reset = ShieldChange::Reset { client, login: login.map(str::to_owned) };
        (self.shield().change)(reset).await?;
        (self.shield().change)(ShieldChange::Remove(List::Deny, whom(key)?)).await?;
        Ok(done(OK))
    }

    async fn add(&self, list: List, new: NewEntry) -> Result<Answer, Refusal> {
        let NewEntry { key, expire_secs, reason } = new;
        let whom = whom(self.key(key)?)?;
        let until = clock::wall().checked_add(Duration::from_secs(expire_secs.min(LONGEST)));
        let until = until.ok_or(PolicyError::NotANumber("expire_secs"))?;
        (self.shield().change)(ShieldChange::Add(Entry { list, whom, until, reason })).await?;
        Ok(done(OK))
    }

    async fn remove(&self, list: List, key: Key) -> Result<Answer, Refusal> {
        let whom = whom(self.key(key)?)?;
        (self.shield().change)(ShieldChange::Remove(list, whom)).await?;
        Ok(done(OK))
    }

    /// A whole list; one at a time, until it is sent.
    fn entries(&self, of: List, name: &str) -> Result<Answer, Refusal> {
        let Ok(turn) = Arc::clone(&self.list).try_lock_owned() else {
            let reason = "another list is under way, try again";
            return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, reason.into()));
        };
        let entries = self.shield().throttle.entries(of);
        let body = list(name, entries.iter().map(|entry| listed(entry)));
        Ok(done(Bytes::from_owner(ListBody::new(body, turn))))
    }

    fn db_stats(&self, key: &Key, now: Instant) -> DbStats {
        let throttle = &self.shield().throttle;
        let entry = |list| match (key, whom(key.clone())) {
            (Key::Ip(ip), _) => {
                throttle.listed(list, Asked { client: Some(*ip), ..Asked::default() })
            }
            (_, Ok(whom)) => throttle.entry(list, &whom),
            (_, Err(_)) => None,
        };
        let found = [List::Deny, List::Allow].map(|list| entry(list).map(|entry| listed(&entry)));
        let [black, white] = found;
        let counted = throttle.show(&subject_of(key), now).into_iter();
        let stats = counted
            .map(|counted| (counted.rule, RuleStats { count: counted.count, limit: counted.limit }))
            .collect();
        DbStats::new(key, (black, white), stats)
    }

    /// With the login in its one form: entries and counts know no other.
    fn key(&self, key: Key) -> Result<Key, PolicyError> {
        match key.login().map(|login| (self.shield().normalise)(login)) {
            None => Ok(key),
            Some(Some(login)) => Ok(key.with_login(login)),
            Some(None) => Err(PolicyError::NotALogin),
        }
    }
}

/// A hundred years: longer than anybody means.
const LONGEST: u64 = 100 * 365 * 86_400;

/// What is answered to `allow`.
fn answer_of(judgement: &Judgement) -> AllowAnswer {
    let status = match judgement.action {
        Course::Go => 0,
        Course::Deny => -1,
        Course::Delay(span) => seconds(span),
    };
    match &judgement.because {
        Some(Because::List(entry)) => {
            let msg = if status < 0 { NOT_ALLOWED } else { "" };
            AllowAnswer::by_list(status, msg, listed(entry))
        }
        _ => {
            let msg = if status < 0 { TOO_MANY } else { "" };
            AllowAnswer { status, msg, r_attrs: BTreeMap::new() }
        }
    }
}

/// Rounded up: Dovecot knows whole seconds.
fn seconds(span: Duration) -> i64 {
    let begun = u64::from(span.subsec_nanos() > 0);
    i64::try_from(span.as_secs().saturating_add(begun)).unwrap_or(i64::MAX)
}

fn subject<'a>(tuple: &'a LoginTuple, login: Option<&'a str>) -> Subject<'a> {
    Subject {
        client: tuple.remote,
        login,
        service: service(&tuple.protocol),
        session: Some(&*tuple.session_id).filter(|session| !session.is_empty()),
        ja3: tuple.ja3.as_deref(),
    }
}

/// weakforced also knows imaps, pops, smtps and https.
fn service(protocol: &str) -> Option<Service> {
    Service::parse(protocol).or_else(|| Service::parse(protocol.strip_suffix('s')?))
}

fn subject_of(key: &Key) -> Subject<'_> {
    let client = match key {
        Key::Ip(ip) | Key::IpLogin(ip, _) | Key::IpJa3(ip, _) => Some(*ip),
        Key::Netmask(..) | Key::Login(_) | Key::Ja3(_) => None,
    };
    Subject { client, login: key.login(), ..Subject::default() }
}

fn whom(key: Key) -> Result<Whom, PolicyError> {
    let net = |ip: IpAddr, bits| IpNet::new(ip, bits).map_err(|_| PolicyError::NotANet("netmask"));
    Ok(match key {
        Key::Ip(ip) => Whom::Net(ip.into()),
        Key::Netmask(ip, bits) => Whom::Net(canonical(net(ip, bits)?)),
        Key::Login(login) => Whom::Login(login),
        Key::Ja3(ja3) => Whom::Ja3(ja3),
        Key::IpLogin(ip, login) => Whom::LoginAt(login, ip),
        Key::IpJa3(ip, ja3) => Whom::Ja3At(ja3, ip),
    })
}

/// An entry as weakforced tells it: an address is a net of one, and a pair is joined by a colon.
fn listed(entry: &Entry) -> Listed {
    let (kind, whom) = match &entry.whom {
        Whom::Net(net) => ("ip", net.to_string()),
        Whom::Login(login) => ("login", login.clone()),
        Whom::Ja3(ja3) => ("ja3", ja3.clone()),
        Whom::LoginAt(login, ip) => ("iplogin", format!("{ip}:{login}")),
        Whom::Ja3At(ja3, ip) => ("ipja3", format!("{ip}:{ja3}")),
    };
    Listed { kind, whom, expiration: expiration(entry.until), reason: entry.reason.clone() }
}

/// `2002-Jan-01 10:00:01`, UTC.
fn expiration(until: SystemTime) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let months = MONTHS.iter().zip(1..);
    let month = months.filter(|(_, number)| *number == month).map(|(name, _)| *name).next();
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let month = month.unwrap_or_default();
    format!("{year:04}-{month}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// What a client sent, cut; the log escapes it.
fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_in_weakforceds_form() {
        for (seconds, told) in [
            (1_009_879_201, "2002-Jan-01 10:00:01"),
            (0, "1970-Jan-01 00:00:00"),
            (253_402_300_799, "9999-Dec-31 23:59:59"),
        ] {
            assert_eq!(expiration(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), told);
        }
    }

    #[test]
    fn services_are_known_by_weakforceds_names_too() {
        for (protocol, expected) in [
            ("imap", Some(Service::Imap)),
            ("imaps", Some(Service::Imap)),
            ("pops", Some(Service::Pop3)),
            ("https", Some(Service::Dav)),
            ("smtps", Some(Service::Smtp)),
            ("mobileapi", None),
            ("", None),
        ] {
            assert_eq!(service(protocol), expected, "{protocol}");
        }
    }

    #[test]
    fn a_delay_is_rounded_up_to_whole_seconds() {
        for (millis, expected) in [(1, 1), (1000, 1), (1001, 2), (5000, 5)] {
            assert_eq!(seconds(Duration::from_millis(millis)), expected, "{millis}");
        }
    }
}
