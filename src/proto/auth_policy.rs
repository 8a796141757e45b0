//! The auth-policy protocol: what Dovecot (`auth_policy_*`) and callers of weakforced ask over HTTP, and the answers.
//!
//! ```text
//! → POST /policy?command=allow    {"login":"joe","remote":"192.0.2.9","pwhash":"0893","protocol":"imap",…}
//! ← 200 {"status":-1,"msg":"…","r_attrs":{}}           -1 refuse · 0 go on · n > 0 wait n seconds
//! → POST /policy?command=report   {"login":"joe",…,"success":false,"policy_reject":false,"fail_type":"credentials"}
//! ← 200 {"status":"ok"}
//! → POST /command/addBLEntry      {"ip":"192.0.2.9","expire_secs":3600,"reason":"…"}
//! ← 500 {"status":"failure","reason":"Missing mandatory reason field"}
//! ```
//!
//! Dovecot hashes login and password into `pwhash`, twelve bits by default. A client chooses much of what comes here (its
//! own name among it): bytes that are no UTF-8 count as U+FFFD, so that nobody gets past the policy by sending some. From
//! weakforced's documentation and source, and Dovecot's `auth-policy.c`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value};

use super::http::query_value;
use crate::secret::Secret;

/// The longest `reason` and TLS fingerprint of a list's entry, in bytes: entries stay, and there may be many.
pub const MAX_ENTRY_TEXT: usize = 256;

/// Where a command may be named in the path.
const PREFIX: &str = "/command/";

macro_rules! commands {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+) => {
        /// What may be asked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Command { $($(#[doc = $doc])+ $variant,)+ }

        impl Command {
            /// Every command.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

commands! {
    /// An entry for the list of those who are refused.
    AddBl = "addBLEntry",
    /// An entry for the list of those who are let go on.
    AddWl = "addWLEntry",
    /// What is to be done with a login?
    Allow = "allow",
    /// Takes an entry out.
    DelBl = "delBLEntry",
    /// Takes an entry out.
    DelWl = "delWLEntry",
    /// The list of those who are refused.
    GetBl = "getBL",
    /// What is counted of somebody.
    GetDbStats = "getDBStats",
    /// The list of those who are let go on.
    GetWl = "getWL",
    /// Are you there?
    Livez = "livez",
    /// Are you there, and do you count?
    Ping = "ping",
    /// The same for a load balancer.
    Readyz = "readyz",
    /// What came of a login.
    Report = "report",
    /// Forget what was counted of somebody.
    Reset = "reset",
    /// How often what was asked.
    Stats = "stats",
}

impl Command {
    /// The command with this name.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|command| command.as_str().as_bytes() == name)
    }

    /// Whether it is asked by POST, with a body; the others by GET.
    #[must_use]
    pub fn has_body(self) -> bool {
        use Command::{GetBl, GetWl, Livez, Ping, Readyz, Stats};
        !matches!(self, GetBl | GetWl | Livez | Ping | Readyz | Stats)
    }

    /// Whether anybody may ask it.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Livez | Self::Readyz)
    }
}

/// What a request of this protocol names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A command.
    Known(Command),
    /// None that there is.
    Unknown,
}

/// The command that a request names; `None`: it is none of this protocol.
///
/// ```text
/// /command/allow · /policy?command=allow · /?command=allow
/// ```
#[must_use]
pub fn named(path: &str, query: Option<&str>) -> Option<Named> {
    let by_query = query_value(query, "command");
    let name = match path {
        "/" => by_query?,
        "/policy" => by_query.unwrap_or_default(),
        _ => path.strip_prefix(PREFIX)?.as_bytes().to_vec(),
    };
    Some(Command::parse(&name).map_or(Named::Unknown, Named::Known))
}

/// Why a body cannot be obeyed. Never holds a value of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not JSON.
    #[error("body is not JSON: line {line}, column {column}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 0.
        column: usize,
    },
    /// JSON, but not an object.
    #[error("body is not a JSON object")]
    NotAnObject,
    /// Nobody is named.
    #[error("No ip, login or ja3 field supplied")]
    Nobody,
    /// A field that must be there is not.
    #[error("Missing mandatory {0} field")]
    Missing(&'static str),
    /// A field is not a string.
    #[error("field {0} is not a string")]
    NotText(&'static str),
    /// A field is no IP address.
    #[error("field {0} is not an IP address")]
    NotAnAddress(&'static str),
    /// A field is no net.
    #[error("field {0} is not an IP network")]
    NotANet(&'static str),
    /// A field is not a number of seconds.
    #[error("field {0} is not a whole number from 0 on")]
    NotANumber(&'static str),
    /// A field is longer than what is kept.
    #[error("field {0} is longer than {MAX_ENTRY_TEXT} bytes")]
    TooLong(&'static str),
    /// Both fields are there.
    #[error("{0} and {1} are mutually exclusive")]
    Exclusive(&'static str, &'static str),
    /// A login that nobody could log in with.
    #[error("field login is no login: see login.default_domain")]
    NotALogin,
}

impl PolicyError {
    /// The HTTP status that says so.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Syntax { .. } | Self::NotAnObject | Self::Nobody => 400,
            _ => 500,
        }
    }
}

/// Somebody wants in, or wanted. What else a caller sends is ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct LoginTuple {
    /// `login` as typed; empty: the caller does not say.
    pub login: String,
    /// `remote`: the client's address, IPv4 as IPv4; `None`: missing or empty.
    pub remote: Option<IpAddr>,
    /// `pwhash`; empty: missing.
    pub pwhash: Secret,
    /// `success`, of a report.
    pub success: bool,
    /// `policy_reject`, of a report: the policy refused, nobody looked at the password.
    pub policy_reject: bool,
    /// `fail_type`, of a report.
    pub fail_type: FailType,
    /// `device_id`: what the client calls itself.
    pub device_id: String,
    /// `device_attrs`: the same taken apart.
    pub device_attrs: BTreeMap<String, String>,
    /// `protocol`: imap, pop3, smtp, http …; empty: missing.
    pub protocol: String,
    /// `tls`.
    pub tls: bool,
    /// `session_id`: the mail server's; empty: missing.
    pub session_id: String,
    /// `t`: seconds since 1970. Told for the record; what is counted is counted at the time of arrival.
    pub t: Option<f64>,
    /// `attrs`.
    pub attrs: BTreeMap<String, Attribute>,
    /// `ja3`, or `ja3` of `attrs`: the client's TLS fingerprint.
    pub ja3: Option<String>,
}

/// A value of `attrs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// A string.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// Why a login failed, in Dovecot 2.4's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailType {
    /// The login name is nobody's.
    Account,
    /// Wrong password.
    Credentials,
    /// The account is disabled.
    Disabled,
    /// The password has expired.
    Expired,
    /// Something broke.
    Internal,
    /// The policy refused.
    Policy,
    /// Not said (Dovecot 2.3), or another word.
    Unsaid,
}

impl FailType {
    fn parse(word: &str) -> Self {
        match word {
            "account" => Self::Account,
            "credentials" => Self::Credentials,
            "disabled" => Self::Disabled,
            "expired" => Self::Expired,
            "internal" => Self::Internal,
            "policy" => Self::Policy,
            _ => Self::Unsaid,
        }
    }
}

/// Whom a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `ip`.
    Ip(IpAddr),
    /// `netmask`: an address and how many of its bits count.
    Netmask(IpAddr, u8),
    /// `login`.
    Login(String),
    /// `ja3`.
    Ja3(String),
    /// `ip` and `login`.
    IpLogin(IpAddr, String),
    /// `ip` and `ja3`.
    IpJa3(IpAddr, String),
}

impl Key {
    /// The login in it.
    #[must_use]
    pub fn login(&self) -> Option<&str> {
        match self {
            Self::Login(login) | Self::IpLogin(_, login) => Some(login),
            _ => None,
        }
    }

    /// With another login in the place of the one in it.
    #[must_use]
    pub fn with_login(self, login: String) -> Self {
        match self {
            Self::Login(_) => Self::Login(login),
            Self::IpLogin(ip, _) => Self::IpLogin(ip, login),
            other => other,
        }
    }

    /// The fields that name it in an answer.
    fn fields(&self) -> BTreeMap<&'static str, String> {
        let field = |name, value: &dyn ToString| (name, value.to_string());
        let pair = |name, ip: &IpAddr, other: &str| (name, format!("{ip}:{other}"));
        BTreeMap::from_iter(match self {
            Self::Ip(ip) => vec![field("ip", ip)],
            Self::Netmask(ip, bits) => vec![("netmask", format!("{ip}/{bits}"))],
            Self::Login(login) => vec![field("login", login)],
            Self::Ja3(ja3) => vec![field("ja3", ja3)],
            Self::IpLogin(ip, login) => {
                vec![field("ip", ip), field("login", login), pair("ip_login", ip, login)]
            }
            Self::IpJa3(ip, ja3) => {
                vec![field("ip", ip), field("ja3", ja3), pair("ip_ja3", ip, ja3)]
            }
        })
    }
}

/// An entry that shall be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// Whom it is about.
    pub key: Key,
    /// Seconds that it shall stand.
    pub expire_secs: u64,
    /// Why.
    pub reason: String,
}

/// Reads the body of `allow` and `report`. The caller has bounded its length.
///
/// # Errors
/// Names the field that is wrong.
pub fn parse_tuple(body: &[u8]) -> Result<LoginTuple, PolicyError> {
    let members = object(body)?;
    let own = |member| Ok::<_, PolicyError>(text(&members, member)?.unwrap_or_default().to_owned());
    let attrs = attributes(&members);
    let ja3 = text(&members, "ja3")?.map(str::to_owned).or_else(|| match attrs.get("ja3") {
        Some(Attribute::One(ja3)) if !ja3.is_empty() => Some(ja3.clone()),
        _ => None,
    });
    Ok(LoginTuple {
        login: own("login")?,
        remote: address(&members, "remote")?,
        pwhash: Secret::new(text(&members, "pwhash")?.unwrap_or_default()),
        success: flag(&members, "success"),
        policy_reject: flag(&members, "policy_reject"),
        fail_type: FailType::parse(text(&members, "fail_type")?.unwrap_or_default()),
        device_id: own("device_id")?,
        device_attrs: device_attributes(&members),
        protocol: own("protocol")?,
        tls: flag(&members, "tls"),
        session_id: own("session_id")?,
        t: members.get("t").and_then(Value::as_f64),
        attrs,
        ja3,
    })
}

/// Reads the body of a command about somebody. The caller has bounded its length.
///
/// # Errors
/// Names the field that is wrong, or nobody is named.
pub fn parse_key(body: &[u8]) -> Result<Key, PolicyError> {
    key(&object(body)?)
}

/// Reads the body of a command that makes an entry. The caller has bounded its length.
///
/// # Errors
/// Names the field that is wrong or missing, or nobody is named.
pub fn parse_entry(body: &[u8]) -> Result<NewEntry, PolicyError> {
    let members = object(body)?;
    let key = key(&members)?;
    if let Key::Ja3(ja3) | Key::IpJa3(_, ja3) = &key
        && ja3.len() > MAX_ENTRY_TEXT
    {
        return Err(PolicyError::TooLong("ja3"));
    }
    let expire_secs = match members.get("expire_secs") {
        None | Some(Value::Null) => return Err(PolicyError::Missing("expire_secs")),
        Some(value) => value.as_u64().ok_or(PolicyError::NotANumber("expire_secs"))?,
    };
    let reason = match members.get("reason") {
        None | Some(Value::Null) => return Err(PolicyError::Missing("reason")),
        Some(_) => text(&members, "reason")?.unwrap_or_default().to_owned(),
    };
    if reason.len() > MAX_ENTRY_TEXT {
        return Err(PolicyError::TooLong("reason"));
    }
    Ok(NewEntry { key, expire_secs, reason })
}

type Members = Map<String, Value>;

fn object(body: &[u8]) -> Result<Members, PolicyError> {
    match serde_json::from_str(&String::from_utf8_lossy(body)) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(PolicyError::NotAnObject),
        // serde's own message may quote what stands there.
        Err(error) => Err(PolicyError::Syntax { line: error.line(), column: error.column() }),
    }
}

/// A member that is text; "" and `null` count as absent.
fn text<'m>(members: &'m Members, member: &'static str) -> Result<Option<&'m str>, PolicyError> {
    match members.get(member) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(PolicyError::NotText(member)),
    }
}

/// A member that is true.
fn flag(members: &Members, member: &str) -> bool {
    members.get(member) == Some(&Value::Bool(true))
}

fn address(members: &Members, member: &'static str) -> Result<Option<IpAddr>, PolicyError> {
    let Some(text) = text(members, member)? else { return Ok(None) };
    let address = text.parse::<IpAddr>().map_err(|_| PolicyError::NotAnAddress(member))?;
    Ok(Some(address.to_canonical()))
}

/// `192.0.2.0/24`; a lone address is a net of one.
fn netmask(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(all), |bits| bits.parse().ok())?;
    (bits <= all).then_some((address, bits))
}

fn key(members: &Members) -> Result<Key, PolicyError> {
    let ip = address(members, "ip")?;
    let net = text(members, "netmask")?
        .map(|text| netmask(text).ok_or(PolicyError::NotANet("netmask")))
        .transpose()?;
    let (login, ja3) = (text(members, "login")?, text(members, "ja3")?);
    Ok(match (ip, net, login.map(str::to_owned), ja3.map(str::to_owned)) {
        (Some(_), Some(_), _, _) => return Err(PolicyError::Exclusive("ip", "netmask")),
        (_, _, Some(_), Some(_)) => return Err(PolicyError::Exclusive("login", "ja3")),
        (_, Some(_), Some(_), None) => return Err(PolicyError::Exclusive("netmask", "login")),
        (_, Some(_), None, Some(_)) => return Err(PolicyError::Exclusive("netmask", "ja3")),
        (None, None, None, None) => return Err(PolicyError::Nobody),
        (Some(ip), None, None, None) => Key::Ip(ip),
        (Some(ip), None, Some(login), None) => Key::IpLogin(ip, login),
        (Some(ip), None, None, Some(ja3)) => Key::IpJa3(ip, ja3),
        (None, Some((address, bits)), None, None) => Key::Netmask(address, bits),
        (None, None, Some(login), None) => Key::Login(login),
        (None, None, None, Some(ja3)) => Key::Ja3(ja3),
    })
}

/// What is neither a string nor a list is left out, as weakforced does.
fn attributes(members: &Members) -> BTreeMap<String, Attribute> {
    let own = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let attribute = |value: &Value| match value {
        Value::String(text) => Some(Attribute::One(text.clone())),
        Value::Array(values) => Some(Attribute::Many(values.iter().map(own).collect())),
        _ => None,
    };
    let attrs = members.get("attrs").and_then(Value::as_object).into_iter().flatten();
    attrs.filter_map(|(name, value)| Some((name.clone(), attribute(value)?))).collect()
}

fn device_attributes(members: &Members) -> BTreeMap<String, String> {
    let attrs = members.get("device_attrs").and_then(Value::as_object).into_iter().flatten();
    attrs.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The answer to a command that has nothing to tell.
pub const OK: &str = r#"{"status":"ok"}"#;

/// The answer to what was not done. Dovecot logs it.
#[must_use]
pub fn failure(reason: &str) -> String {
    format!("{{\"status\":\"failure\",\"reason\":{}}}", Value::from(reason))
}

/// The answer to `allow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowAnswer {
    /// -1: refuse; 0: go on; n > 0: wait n seconds.
    pub status: i64,
    /// For the person who is refused.
    pub msg: &'static str,
    /// For the mail server's log, or its own rules.
    pub r_attrs: BTreeMap<&'static str, String>,
}

/// An entry as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// `ip` (of nets too), `login`, `ja3`, `iplogin` or `ipja3`.
    pub kind: &'static str,
    /// Whom it is about.
    pub whom: String,
    /// Its end: `2002-Jan-01 10:00:01`, UTC.
    pub expiration: String,
    /// Why.
    pub reason: String,
}

impl AllowAnswer {
    /// Because of an entry.
    #[must_use]
    pub fn by_list(status: i64, msg: &'static str, entry: Listed) -> Self {
        let list = if status < 0 { "blacklisted" } else { "whitelisted" };
        let r_attrs = BTreeMap::from([
            ("expiration", entry.expiration),
            ("key", entry.kind.to_owned()),
            ("reason", entry.reason),
            (list, "1".to_owned()),
        ]);
        Self { status, msg, r_attrs }
    }

    /// As JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        encode(self)
    }
}

/// The answer to `getBL` (`bl_entries`) and `getWL` (`wl_entries`).
#[must_use]
pub fn list(name: &str, entries: impl IntoIterator<Item = Listed>) -> String {
    let mut body = format!("{{\"{name}\":[");
    for (place, entry) in entries.into_iter().enumerate() {
        let Listed { kind, whom, expiration, reason } = entry;
        if place > 0 {
            body.push(',');
        }
        let entry = serde_json::json!({ kind: whom, "expiration": expiration, "reason": reason });
        body.push_str(&entry.to_string());
    }
    body.push_str("]}");
    body
}

/// The answer to `getDBStats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DbStats {
    #[serde(flatten)]
    key: BTreeMap<&'static str, String>,
    blacklisted: bool,
    bl_reason: String,
    bl_expire: String,
    whitelisted: bool,
    wl_reason: String,
    wl_expire: String,
    stats: BTreeMap<String, RuleStats>,
}

/// What a rule has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RuleStats {
    /// So much.
    pub count: u32,
    /// From here on it acts; left out: it does not, on this login from this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl DbStats {
    /// What is known of somebody: the entries that refuse and let go on, and what each rule has counted.
    #[must_use]
    pub fn new(
        key: &Key,
        (black, white): (Option<Listed>, Option<Listed>),
        stats: BTreeMap<String, RuleStats>,
    ) -> Self {
        let told = |entry: Option<Listed>| match entry {
            Some(entry) => (true, entry.reason, entry.expiration),
            None => (false, String::new(), String::new()),
        };
        let ((blacklisted, bl_reason, bl_expire), (whitelisted, wl_reason, wl_expire)) =
            (told(black), told(white));
        let key = key.fields();
        Self { key, blacklisted, bl_reason, bl_expire, whitelisted, wl_reason, wl_expire, stats }
    }

    /// As JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        encode(self)
    }
}

/// The answer to `stats`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stats {
    /// `report` commands.
    pub reports: u64,
    /// `allow` commands.
    pub allows: u64,
    /// Those that were refused.
    pub denieds: u64,
    /// CPU time of the process.
    pub user_msec: u64,
    /// The same in the kernel.
    pub sys_msec: u64,
    /// Seconds.
    pub uptime: u64,
    /// How many requests took how long: `WTW_…` to be read, `WTR_…` to be answered.
    pub perfstats: BTreeMap<String, u64>,
    /// How often each command was given.
    pub commandstats: BTreeMap<&'static str, u64>,
    /// Commands of an administrator's own: there are none here.
    pub customstats: BTreeMap<&'static str, u64>,
}

impl Stats {
    /// As JSON.
    #[must_use]
    pub fn encode(&self) -> String {
        encode(self)
    }
}

fn encode(answer: &impl Serialize) -> String {
    // Strings, numbers and maps with strings as keys: there is nothing in it that JSON could not hold.
    serde_json::to_string(answer).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(body: &str) -> LoginTuple {
        parse_tuple(body.as_bytes()).unwrap()
    }

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_command_is_named_in_the_path_or_in_the_query() {
        let known = |command| Some(Named::Known(command));
        for (path, query, expected) in [
            ("/command/allow", None, known(Command::Allow)),
            ("/command/addWLEntry", Some("command=allow"), known(Command::AddWl)),
            ("/", Some("command=report"), known(Command::Report)),
            ("/policy", Some("x=1&command=allow"), known(Command::Allow)),
            ("/policy", Some("command=ALLOW"), Some(Named::Unknown)),
            ("/policy", None, Some(Named::Unknown)),
            ("/command/", None, Some(Named::Unknown)),
            ("/command/getBLEntries", None, Some(Named::Unknown)),
            ("/", Some("commands=allow"), None),
            ("/", None, None),
            ("/v1/login", Some("command=allow"), None),
        ] {
            assert_eq!(named(path, query), expected, "{path} {query:?}");
        }
        for command in Command::ALL {
            assert_eq!(Command::parse(command.as_str().as_bytes()), Some(*command));
        }
    }

    /// The reports that Dovecot 2.4 and 2.3 really send.
    #[test]
    fn dovecots_reports_are_read() {
        let newer = tuple(
            r#"{"attrs":{"local":"192.0.2.1"},"device_id":"\"name\" \"Thunder\"","fail_type":"disabled","login":"joe",
                "protocol":"imap","pwhash":"0893","remote":"::ffff:192.0.2.9","session_id":"SID1","success":false,
                "policy_reject":false,"tls":true}"#,
        );
        assert_eq!((&*newer.login, newer.pwhash.expose()), ("joe", "0893"));
        assert_eq!(newer.remote, Some("192.0.2.9".parse().unwrap()));
        assert_eq!(newer.fail_type, FailType::Disabled);
        assert_eq!(newer.device_id, "\"name\" \"Thunder\"");
        assert_eq!((&*newer.protocol, &*newer.session_id), ("imap", "SID1"));
        assert_eq!((newer.success, newer.policy_reject, newer.tls), (false, false, true));
        assert_eq!(newer.attrs["local"], Attribute::One("192.0.2.1".into()));

        let older = tuple(
            r#"{"device_id":"","login":"joe","protocol":"smtp","pwhash":"04b9","remote":"192.0.2.9","session_id":"",
                "success":true,"policy_reject":true,"tls":false}"#,
        );
        assert_eq!((older.success, older.policy_reject), (true, true));
        assert_eq!((older.fail_type, &*older.session_id), (FailType::Unsaid, ""));
        assert!(!format!("{newer:?}").contains("0893"));
    }

    #[test]
    fn everything_may_be_missing_and_only_true_is_true() {
        let empty = tuple("{}");
        assert_eq!((&*empty.login, empty.remote, empty.success), ("", None, false));
        assert!(empty.pwhash.is_empty() && empty.ja3.is_none() && empty.t.is_none());
        for success in ["\"true\"", "1", "null", "[true]", "false"] {
            assert!(!tuple(&format!(r#"{{"success":{success}}}"#)).success, "{success}");
        }
        assert_eq!(tuple(r#"{"login":null,"remote":""}"#).remote, None);
    }

    #[test]
    fn attributes_are_strings_or_lists_of_strings() {
        let read = tuple(
            r#"{"t":1700000000.5,"attrs":{"a":"1","b":["2",3],"c":4,"ja3":"0345"},
                "device_attrs":{"os.family":"Linux","x":[]}}"#,
        );
        let many = Attribute::Many(vec!["2".into(), String::new()]);
        assert_eq!((&read.attrs["a"], &read.attrs["b"]), (&Attribute::One("1".into()), &many));
        assert_eq!(read.attrs.len(), 3);
        assert_eq!(read.device_attrs, BTreeMap::from([("os.family".into(), "Linux".into())]));
        assert_eq!((read.t, read.ja3.as_deref()), (Some(1_700_000_000.5), Some("0345")));
        let both = tuple(r#"{"ja3":"own","attrs":{"ja3":"0345"}}"#);
        assert_eq!(both.ja3.as_deref(), Some("own"));
        assert_eq!(tuple(r#"{"attrs":["x"],"device_attrs":7}"#).attrs.len(), 0);
    }

    #[test]
    fn every_reason_to_fail_has_its_word() {
        for (word, expected) in [
            ("account", FailType::Account),
            ("credentials", FailType::Credentials),
            ("disabled", FailType::Disabled),
            ("expired", FailType::Expired),
            ("internal", FailType::Internal),
            ("policy", FailType::Policy),
            ("", FailType::Unsaid),
            ("moon", FailType::Unsaid),
        ] {
            assert_eq!(tuple(&format!(r#"{{"fail_type":"{word}"}}"#)).fail_type, expected);
        }
    }

    /// Whoever sends such bytes as the name of a client must not get past the policy.
    #[test]
    fn bytes_that_are_no_text_do_not_spoil_the_rest() {
        let mut body = br#"{"login":"joe","remote":"192.0.2.9","device_id":"a"#.to_vec();
        body.extend_from_slice(b"\xff\xed\xa0\x80");
        body.extend_from_slice(br#""}"#);

        let read = parse_tuple(&body).unwrap();

        assert_eq!((&*read.login, read.remote.is_some()), ("joe", true));
    }

    #[test]
    fn what_is_wrong_is_named_and_never_quoted() {
        let entry = |body: &str| parse_entry(body.as_bytes()).unwrap_err();
        let tuple = |body: &str| parse_tuple(body.as_bytes()).unwrap_err();
        let long = "x".repeat(MAX_ENTRY_TEXT + 1);
        for (error, status, message) in [
            (tuple("login=joe"), 400, "body is not JSON: line 1, column 1"),
            (tuple(""), 400, "body is not JSON: line 1, column 0"),
            (tuple("[]"), 400, "body is not a JSON object"),
            (tuple("null"), 400, "body is not a JSON object"),
            (tuple(r#"{"login":7}"#), 500, "field login is not a string"),
            (tuple(r#"{"pwhash":["s3cret"]}"#), 500, "field pwhash is not a string"),
            (tuple(r#"{"remote":"s3cret"}"#), 500, "field remote is not an IP address"),
            (tuple(r#"{"remote":"192.0.2.9:143"}"#), 500, "field remote is not an IP address"),
            (entry("{}"), 400, "No ip, login or ja3 field supplied"),
            (entry(r#"{"ip":"","login":null}"#), 400, "No ip, login or ja3 field supplied"),
            (entry(r#"{"ip":"s3cret"}"#), 500, "field ip is not an IP address"),
            (entry(r#"{"netmask":"192.0.2.0/33"}"#), 500, "field netmask is not an IP network"),
            (
                entry(r#"{"ip":"::1","netmask":"::/8"}"#),
                500,
                "ip and netmask are mutually exclusive",
            ),
            (entry(r#"{"login":"a","ja3":"b"}"#), 500, "login and ja3 are mutually exclusive"),
            (
                entry(r#"{"login":"a","netmask":"::/8"}"#),
                500,
                "netmask and login are mutually exclusive",
            ),
            (entry(r#"{"ip":"::1","reason":"x"}"#), 500, "Missing mandatory expire_secs field"),
            (entry(r#"{"ip":"::1","expire_secs":9}"#), 500, "Missing mandatory reason field"),
            (
                entry(r#"{"ip":"::1","expire_secs":-9,"reason":"x"}"#),
                500,
                "field expire_secs is not a whole number from 0 on",
            ),
            (
                entry(&format!(r#"{{"ip":"::1","expire_secs":9,"reason":"{long}"}}"#)),
                500,
                "field reason is longer than 256 bytes",
            ),
            (entry(&format!(r#"{{"ja3":"{long}"}}"#)), 500, "field ja3 is longer than 256 bytes"),
        ] {
            assert_eq!((error.status(), error.to_string()), (status, message.into()));
        }
    }

    #[test]
    fn keys_are_those_of_weakforced() {
        let ip: IpAddr = "192.0.2.9".parse().unwrap();
        for (body, key, fields) in [
            (r#"{"ip":"::ffff:192.0.2.9"}"#, Key::Ip(ip), json(r#"{"ip":"192.0.2.9"}"#)),
            (
                r#"{"netmask":"192.0.2.9/24"}"#,
                Key::Netmask(ip, 24),
                json(r#"{"netmask":"192.0.2.9/24"}"#),
            ),
            (r#"{"netmask":"192.0.2.9"}"#, Key::Netmask(ip, 32), Value::Null),
            (r#"{"login":"joe"}"#, Key::Login("joe".into()), json(r#"{"login":"joe"}"#)),
            (r#"{"ja3":"03"}"#, Key::Ja3("03".into()), json(r#"{"ja3":"03"}"#)),
            (
                r#"{"ip":"192.0.2.9","login":"joe"}"#,
                Key::IpLogin(ip, "joe".into()),
                json(r#"{"ip":"192.0.2.9","login":"joe","ip_login":"192.0.2.9:joe"}"#),
            ),
            (
                r#"{"ip":"192.0.2.9","ja3":"03"}"#,
                Key::IpJa3(ip, "03".into()),
                json(r#"{"ip":"192.0.2.9","ja3":"03","ip_ja3":"192.0.2.9:03"}"#),
            ),
        ] {
            let read = parse_key(body.as_bytes()).unwrap();
            assert_eq!(read, key);
            if !fields.is_null() {
                assert_eq!(serde_json::to_value(read.fields()).unwrap(), fields);
            }
        }
    }

    #[test]
    fn answers_are_those_of_weakforced() {
        let entry = || Listed {
            kind: "iplogin",
            whom: "192.0.2.9:joe".into(),
            expiration: "2002-Jan-01 10:00:01".into(),
            reason: "\"x\"".into(),
        };
        let plain = AllowAnswer { status: 5, msg: "", r_attrs: BTreeMap::new() };
        assert_eq!(plain.encode(), r#"{"status":5,"msg":"","r_attrs":{}}"#);
        assert_eq!(
            AllowAnswer::by_list(-1, "No", entry()).encode(),
            r#"{"status":-1,"msg":"No","r_attrs":{"blacklisted":"1","expiration":"2002-Jan-01 10:00:01","key":"iplogin","reason":"\"x\""}}"#
        );
        assert_eq!(list("wl_entries", []), r#"{"wl_entries":[]}"#);
        assert_eq!(
            json(&list("bl_entries", [entry(), entry()]))["bl_entries"][1],
            json(
                r#"{"iplogin":"192.0.2.9:joe","expiration":"2002-Jan-01 10:00:01","reason":"\"x\""}"#
            )
        );
        let stats = BTreeMap::from([
            ("a".to_owned(), RuleStats { count: 2, limit: Some(10) }),
            ("b".to_owned(), RuleStats { count: 3, limit: None }),
        ]);
        let key = Key::Login("joe".into());
        assert_eq!(
            json(&DbStats::new(&key, (Some(entry()), None), stats).encode()),
            json(
                r#"{"login":"joe","blacklisted":true,"bl_reason":"\"x\"","bl_expire":"2002-Jan-01 10:00:01",
                "whitelisted":false,"wl_reason":"","wl_expire":"","stats":{"a":{"count":2,"limit":10},"b":{"count":3}}}"#
            )
        );
        assert_eq!(failure("a \"b\""), r#"{"status":"failure","reason":"a \"b\""}"#);
    }

    proptest! {
        #[test]
        fn any_text_comes_through_unchanged(login: String, device_id: String, hash in "[0-9a-f]{4}") {
            let body = serde_json::json!({
                "login": login, "device_id": device_id, "pwhash": hash, "remote": "2001:db8::9", "success": true,
            });
            let read = parse_tuple(body.to_string().as_bytes()).unwrap();
            prop_assert_eq!(&read.login, &login);
            prop_assert_eq!(&read.device_id, &device_id);
            prop_assert_eq!(read.pwhash.expose(), hash);
            prop_assert!(read.success);
        }

        #[test]
        fn any_entry_comes_through_unchanged(login in ".{1,40}", expire_secs: u64, reason in ".{0,40}") {
            let body = serde_json::json!({ "login": login, "expire_secs": expire_secs, "reason": reason });
            let read = parse_entry(body.to_string().as_bytes()).unwrap();
            prop_assert_eq!(read, NewEntry { key: Key::Login(login), expire_secs, reason });
        }

        #[test]
        fn random_bytes_never_panic(body: Vec<u8>, path: String) {
            let _ = parse_tuple(&body);
            let _ = parse_entry(&body);
            let _ = named(&path, Some(&path));
        }
    }
}
