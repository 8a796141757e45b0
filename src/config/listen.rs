//! `[listen.NAME]`: one table per door.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use documented::DocumentedFields;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use super::problem::Report;
use super::units::{FileMode, Span};
use crate::secret::Secret;

/// One door.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// dovecot (the socket over which gatepost-dovecot-auth hands over all of Dovecot's auth sockets) |
    /// dovecot-auth (Dovecot's auth client protocol: Postfix, Exim) | dovecot-master (userdb look-ups and lists; unless
    /// every user may open it, claims of logins too) | dovecot-dict (passdb and userdb by Dovecot 2.3's dict proxy) |
    /// saslauthd (Cyrus SASL) | checkpassword (what gatepost-checkpassword asks) | socketmap (Postfix look-up tables:
    /// mailbox, alias, domain, sender-login) | postfix-policy (Postfix policy delegation) | http
    pub protocol: Protocol,
    /// A unix socket, at most 107 bytes; or `address`.
    pub path: Option<PathBuf>,
    /// A TCP address such as `127.0.0.1:12345`; or `path`.
    pub address: Option<SocketAddr>,
    /// File mode of the unix socket.
    pub mode: FileMode,
    /// Owner of the unix socket; empty: the daemon's own user.
    pub user: String,
    /// Group of the unix socket; empty: the daemon's own group.
    pub group: String,
    /// Users who may hand sockets over (protocol dovecot), by peer credentials.
    pub peers: Vec<String>,
    /// How "later" is said: auto | close | fail. auto closes the connection for Postfix and Exim, which know no
    /// other way, and answers `code=temp_fail` to Dovecot. For mailcow's script (serve mailcow) too auto closes, and fail
    /// is a 503.
    pub temp_failure: TempFailure,
    /// Connections at one time; more wait in the backlog.
    pub max_connections: usize,
    /// Attempts in flight per connection; more are not read.
    pub max_in_flight: usize,
    /// A peer that does not take an answer within this time is cut off.
    pub write_timeout: Span,
    /// Refusals leave no earlier than this after the attempt arrived. Default: 2s for dovecot, dovecot-auth and
    /// dovecot-master, 0s for the others, where the caller would hold a worker meanwhile.
    pub failure_delay: Option<Span>,
    /// Nets that may connect; required for a TCP door off loopback and behind `proxy_protocol`, where http also needs a
    /// token, a client certificate (`tls.client_ca_file`) or `anonymous`.
    #[serde(deserialize_with = "nets")]
    pub allow: Vec<IpNet>,
    /// What an http door serves: login (POST /v1/login) | lookup (GET /v1/lookup) | mailcow (POST /) | nauthilus
    /// (/api/v1/auth) | nginx (/nginx, for auth_http) | forward-auth (/forward-auth) | policy (/policy and /command, for
    /// Dovecot's auth_policy_* and callers of weakforced) | health | metrics.
    pub serve: Vec<Serve>,
    /// Callers of an http door must send this (Bearer, X-API-Key, or Basic password); not for health. The
    /// text itself, or `"env:NAME"`; or `token_file = "path"`.
    #[serde(skip)]
    pub token: Secret,
    /// Lets callers of an http door that is open to the net in without token and certificate. Whoever can connect may
    /// then try passwords, and say whose they are.
    pub anonymous: bool,
    /// TLS of an http door.
    pub tls: DoorTls,
    /// Every connection begins with a PROXY header (version 1 or 2) of a proxy in `trusted`, whose client counts as the
    /// peer: `allow` is about it. TCP only; other connections are closed.
    pub proxy_protocol: bool,
    /// Where nginx shall pass mail sessions on to (serve nginx).
    pub upstream: Upstream,
    /// The key of passwords in dict keys (protocol dovecot-dict): the 64 hexadecimal digits of `%{encrypt;…}` in
    /// Dovecot's file. The text itself, or `"env:NAME"`; or `password_key_file = "path"`.
    #[serde(skip)]
    pub password_key: Secret,
    /// Nets whose word about the client's address is believed.
    #[serde(deserialize_with = "nets")]
    pub trusted: Vec<IpNet>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            protocol: Protocol::Dovecot,
            path: None,
            address: None,
            mode: FileMode(0o660),
            user: String::new(),
            group: String::new(),
            peers: vec!["root".into(), "dovecot".into()],
            temp_failure: TempFailure::Auto,
            max_connections: 10_000,
            max_in_flight: 1_000,
            write_timeout: Span::seconds(10),
            failure_delay: None,
            allow: Vec::new(),
            serve: vec![Serve::Login, Serve::Health],
            token: Secret::default(),
            anonymous: false,
            tls: DoorTls::default(),
            proxy_protocol: false,
            upstream: Upstream::default(),
            password_key: Secret::default(),
            trusted: super::listen::loopback(),
        }
    }
}

/// TLS of an http door.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct DoorTls {
    /// Our certificate and its chain (PEM); empty: no TLS.
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM).
    pub key_file: Option<PathBuf>,
    /// Certificates (PEM) that must have signed the caller's; empty: callers need none.
    pub client_ca_file: Option<PathBuf>,
}

/// Where nginx shall pass mail sessions on to: an address and a port for each protocol it serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// IMAP, such as `127.0.0.1:143`.
    pub imap: Option<SocketAddr>,
    /// POP3.
    pub pop3: Option<SocketAddr>,
    /// SMTP with AUTH (submission).
    pub smtp: Option<SocketAddr>,
    /// SMTP without AUTH (nginx' `smtp_auth none`): mail for our mailboxes.
    pub mx: Option<SocketAddr>,
}

impl Listen {
    /// The delay of refusals on this door.
    #[must_use]
    pub fn failure_delay(&self) -> Duration {
        use Protocol::{Dovecot, DovecotAuth, DovecotMaster};
        match (self.failure_delay, self.protocol) {
            (Some(span), _) => span.0,
            (None, Dovecot | DovecotAuth | DovecotMaster) => Duration::from_secs(2),
            (None, _) => Duration::ZERO,
        }
    }
}

impl Listen {
    pub(super) fn check(&self, deadline: Span, report: &mut Report) {
        match (&self.path, self.address) {
            (None, None) => report.problem("", "this door is nowhere", "path or address"),
            (Some(_), Some(_)) => {
                report.problem("address", "path is set as well", "either path or address");
            }
            (Some(path), None) => check_socket_path(path, "path", report),
            (None, Some(address)) => self.check_address(address, report),
        }
        report.require_count(
            self.max_connections,
            1_000_000,
            "max_connections",
            "0 would let nobody in",
        );
        report.require_count(self.max_in_flight, 10_000, "max_in_flight", "0 would read nothing");
        report.require(
            self.write_timeout.0 > Duration::ZERO,
            "write_timeout",
            "no time at all",
            "a span of time such as 10s",
        );
        report.require(
            self.failure_delay() <= deadline.0,
            "failure_delay",
            "longer than login.deadline",
            "a span of time such as 2s",
        );
        self.check_http(report);
        self.check_proxy(report);
        self.check_dict(report);
        if self.protocol == Protocol::Dovecot {
            report.require(
                !self.peers.is_empty(),
                "peers",
                "nobody could hand sockets over",
                "users such as root and dovecot",
            );
        }
    }

    fn check_http(&self, report: &mut Report) {
        if self.protocol != Protocol::Http {
            if !self.token.is_empty() {
                report.notice("token", "has an effect on http doors only");
            }
            let no_tls = self.tls == DoorTls::default();
            report.require(no_tls, "tls", "is for http doors", "no tls here");
            return;
        }
        report.require(
            !self.serve.is_empty(),
            "serve",
            "an http door serves something",
            "login, lookup, mailcow, nauthilus, nginx, forward-auth, policy, health, metrics",
        );
        if self.serve.contains(&Serve::Mailcow) && !self.token.is_empty() {
            report.notice("serve", "mailcow's own script sends no token: it cannot ask this door");
        }
        let asks_callers = !self.token.is_empty() || self.tls.client_ca_file.is_some();
        if self.serve.contains(&Serve::Policy) && !asks_callers && self.path.is_none() {
            report.notice("token", "without one whoever can connect may change the shield's lists");
        }
        let tls = &self.tls;
        if tls.cert_file.is_some() != tls.key_file.is_some() {
            report.problem("tls", "a certificate needs its key", "both cert_file and key_file");
        } else if tls.client_ca_file.is_some() && tls.cert_file.is_none() {
            report.problem("tls.client_ca_file", "without TLS nobody shows one", "cert_file too");
        }
        let upstream = &self.upstream;
        if self.serve.contains(&Serve::Nginx) && *upstream == Upstream::default() {
            report.problem(
                "upstream",
                "nginx must hear where to pass a session on to",
                "at least one of upstream.imap, upstream.pop3, upstream.smtp and upstream.mx",
            );
        }
    }

    fn check_proxy(&self, report: &mut Report) {
        if !self.proxy_protocol {
            return;
        }
        report.require(
            self.address.is_some(),
            "proxy_protocol",
            "is for TCP doors",
            "address instead of path",
        );
        report.require(
            !self.trusted.is_empty(),
            "trusted",
            "nobody's PROXY header would be believed",
            "the nets of the proxies",
        );
    }

    fn check_dict(&self, report: &mut Report) {
        if self.protocol != Protocol::DovecotDict {
            if !self.password_key.is_empty() {
                report.notice("password_key", "has an effect on dovecot-dict doors only");
            }
            return;
        }
        report.require(self.path.is_some(), "path", "Dovecot asks on a unix socket", "a path");
        let key = self.password_key.expose();
        report.require(
            key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "password_key",
            "passwords in dict keys must be encrypted, because Dovecot logs keys",
            "64 hexadecimal digits, the same as in Dovecot's file: openssl rand -hex 32",
        );
    }

    /// login.md D-6.
    fn check_address(&self, address: SocketAddr, report: &mut Report) {
        match self.protocol {
            Protocol::Dovecot => {
                report.problem("address", "sockets are handed over on a unix socket", "path");
                return;
            }
            Protocol::Checkpassword | Protocol::Saslauthd => {
                report.problem("address", "its clients know unix sockets only", "path");
                return;
            }
            _ => {}
        }
        // Behind a proxy the clients come from elsewhere, wherever the door itself is.
        if address.ip().to_canonical().is_loopback() && !self.proxy_protocol {
            return;
        }
        report.require(
            !self.allow.is_empty(),
            "allow",
            "this door is open to the net",
            "the nets that may connect, such as 192.0.2.0/24",
        );
        let asks_callers =
            !self.token.is_empty() || self.tls.client_ca_file.is_some() || self.anonymous;
        report.require(
            self.protocol != Protocol::Http || asks_callers,
            "token",
            "an http door that is open to the net needs a token",
            "token, token_file or \"env:NAME\"; or tls.client_ca_file; or anonymous = true",
        );
    }

    /// Whether both cannot listen at one time. Port 0 is a new port each time.
    pub(super) fn collides_with(&self, other: &Self) -> bool {
        let same_path = self.path.is_some() && self.path == other.path;
        let same_address = match (self.address, other.address) {
            (Some(one), Some(two)) => {
                let any = one.ip().is_unspecified() || two.ip().is_unspecified();
                let same_ip = one.ip() == two.ip() || (any && one.is_ipv4() == two.is_ipv4());
                one.port() != 0 && one.port() == two.port() && same_ip
            }
            _ => false,
        };
        same_path || same_address
    }
}

/// sockaddr_un holds 108 bytes, the last of them NUL.
const MAX_SOCKET_PATH: usize = 107;

pub(super) fn check_socket_path(path: &Path, key: &str, report: &mut Report) {
    let bytes = path.as_os_str().len();
    report.require(
        bytes <= MAX_SOCKET_PATH,
        key,
        "too long for a socket",
        "a path of at most 107 bytes",
    );
    report.require(
        path.is_absolute(),
        key,
        "not a whole path",
        "a path such as /run/gatepost/auth",
    );
}

/// Nets; a lone address is a net of one.
pub(super) fn nets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let parse = |text: &String| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(parse).collect::<Result<_, _>>().map_err(|_| {
        serde::de::Error::custom(
            "expected nets such as 192.0.2.0/24 or addresses such as 192.0.2.1",
        )
    })
}

/// 127.0.0.0/8 and ::1.
#[must_use]
pub fn loopback() -> Vec<IpNet> {
    ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect()
}

/// What a door speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// What gatepost-checkpassword asks.
    Checkpassword,
    /// The hand-over socket of gatepost-dovecot-auth.
    Dovecot,
    /// Dovecot's auth client protocol.
    DovecotAuth,
    /// Dovecot's dict protocol.
    DovecotDict,
    /// Dovecot's auth master protocol (userdb).
    DovecotMaster,
    /// HTTP.
    Http,
    /// Postfix policy delegation.
    PostfixPolicy,
    /// Cyrus SASL's saslauthd.
    Saslauthd,
    /// Postfix look-up tables.
    Socketmap,
}

/// How "later" is said on Dovecot's auth protocol (login.md D-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TempFailure {
    /// By the client's version and flags.
    Auto,
    /// Always close.
    Close,
    /// Always `FAIL … code=temp_fail`.
    Fail,
}

/// What an http door serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serve {
    /// `/forward-auth`.
    ForwardAuth,
    /// `/livez`, `/readyz`.
    Health,
    /// `POST /v1/login`.
    Login,
    /// `/v1/lookup/…`.
    Lookup,
    /// `POST /` as mailcow's endpoint.
    Mailcow,
    /// `/metrics`.
    Metrics,
    /// `/api/v1/auth/…` as Nauthilus.
    Nauthilus,
    /// `/nginx` for nginx' `auth_http`.
    Nginx,
    /// `/policy` and `/command/…`: the auth-policy protocol of Dovecot and weakforced.
    Policy,
}
