//! One connection to one directory server: own socket (`TCP_NODELAY`, a time limit per address), then StartTLS, LDAPS
//! or nothing, with a TLS configuration of ours.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ldap3::{LdapConnAsync, LdapConnSettings, LdapError, StdStream};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::connection::Connection;
use super::pool::lock;
use super::tls::{self, Files};
use super::{Fault, fault};
use crate::clock;
use crate::config::directory::{Directory, Tls};

/// A server, ready to be connected to.
#[derive(Debug)]
pub struct Target {
    label: Arc<str>,
    host: String,
    port: u16,
    tls: Tls,
    /// The server's name in TLS.
    name: String,
    /// Shared by all connections, so that TLS sessions are resumed.
    config: Option<Arc<ClientConfig>>,
    resolved: Mutex<Resolved>,
}

/// What the server's name last stood for.
#[derive(Clone, Debug, Default)]
struct Resolved {
    /// When that was asked; `None`: it must be asked again.
    at: Option<Instant>,
    addresses: Vec<SocketAddr>,
}

/// So long a name is not asked about again, as long as its addresses can be reached.
const RESOLVED: Duration = Duration::from_secs(60);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ConnectError {
    /// How far it came.
    pub stage: Stage,
    /// What happened.
    pub detail: String,
    /// The time was up.
    pub timed_out: bool,
}

/// The steps of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Name to addresses.
    Dns,
    /// Addresses to a socket.
    Tcp,
    /// StartTLS or LDAPS.
    Tls,
}

impl Target {
    /// The servers of a profile, in the order of preference.
    pub(super) fn list(section: &Directory, files: &Files) -> Result<Vec<Self>, Fault> {
        let hosts: Vec<&str> = section
            .hosts
            .iter()
            .flat_map(|entry| entry.split(','))
            .map(str::trim)
            .filter(|host| !host.is_empty())
            .collect();
        if hosts.is_empty() {
            return Err(fault("hosts", "at least one server is needed"));
        }
        hosts.into_iter().map(|host| Self::new(host, section, files)).collect()
    }

    fn new(text: &str, section: &Directory, files: &Files) -> Result<Self, Fault> {
        let (host, port, tls) = parse_host(text, section.tls, section.port)?;
        if tls == Tls::None && !section.allow_plaintext && !is_loopback(&host) {
            let problem = format!(
                "{host}: passwords would cross the net in clear; set tls, or allow_plaintext = true"
            );
            return Err(fault("tls", problem));
        }
        let scheme = if tls == Tls::Ldaps { "ldaps" } else { "ldap" };
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let name = if section.server_name.is_empty() { &host } else { &section.server_name };
        let address = name.parse::<Ipv6Addr>().ok();
        // The client library cannot take an IPv6 literal as the server's name: it sees another name, and our verifier
        // compares the certificate with the address.
        let name = if address.is_some() { "ipv6.invalid" } else { name };
        let config = match tls {
            Tls::None => None,
            Tls::Ldaps | Tls::Starttls => {
                Some(tls::client_config(section, files, address.map(IpAddr::V6))?)
            }
        };
        Ok(Self {
            label: format!("{scheme}://{bracketed}:{port}").into(),
            name: name.to_owned(),
            host,
            port,
            tls,
            config,
            resolved: Mutex::default(),
        })
    }

    /// `ldaps://dc1.example:636`, for logs and metrics.
    #[must_use]
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// How the connection is protected.
    #[must_use]
    pub fn tls(&self) -> Tls {
        self.tls
    }

    pub(super) fn tls_config(&self) -> Option<&Arc<ClientConfig>> {
        self.config.as_ref()
    }

    pub(super) fn tls_name(&self) -> &str {
        &self.name
    }

    /// Connects; all of it within the time given.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is left open.
    pub async fn connect(&self, within: Duration) -> Result<Connection, ConnectError> {
        let until = clock::now() + within;
        let addresses = self.resolve(within).await?;
        let socket = self.reach(&addresses, until).await?;
        self.protect(socket, until).await
    }

    /// The addresses of the server's name, as of the last minute. While nobody can say, those it had before.
    pub(super) async fn resolve(&self, within: Duration) -> Result<Vec<SocketAddr>, ConnectError> {
        let before = lock(&self.resolved).clone();
        let now = clock::now();
        if before.at.is_some_and(|at| now.saturating_duration_since(at) < RESOLVED) {
            return Ok(before.addresses);
        }
        match self.ask_for_addresses(within).await {
            Ok(addresses) => {
                let at = Some(clock::now());
                *lock(&self.resolved) = Resolved { at, addresses: addresses.clone() };
                Ok(addresses)
            }
            Err(_) if !before.addresses.is_empty() => Ok(before.addresses),
            Err(error) => Err(error),
        }
    }

    async fn ask_for_addresses(&self, within: Duration) -> Result<Vec<SocketAddr>, ConnectError> {
        let host = &self.host;
        let failed = |detail: String, timed_out| ConnectError {
            stage: Stage::Dns,
            detail: format!("name {host}: {detail}"),
            timed_out,
        };
        match timeout(within, tokio::net::lookup_host((host.as_str(), self.port))).await {
            Err(_) => Err(failed(format!("no answer within {}", show(within)), true)),
            Ok(Err(error)) => Err(failed(error.to_string(), false)),
            Ok(Ok(found)) => {
                let addresses: Vec<_> = found.collect();
                if addresses.is_empty() {
                    return Err(failed("no address".into(), false));
                }
                Ok(addresses)
            }
        }
    }

    /// Tries one address after the other; each gets an equal part of the time that is left.
    pub(super) async fn reach(
        &self,
        addresses: &[SocketAddr],
        until: Instant,
    ) -> Result<std::net::TcpStream, ConnectError> {
        let mut problem = ConnectError {
            stage: Stage::Tcp,
            detail: format!("{}: no address", self.host),
            timed_out: false,
        };
        for (index, address) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX).max(1);
            let part = until.saturating_duration_since(clock::now()) / left;
            let failed = |detail, timed_out| ConnectError { stage: Stage::Tcp, detail, timed_out };
            problem = match timeout(part, TcpStream::connect(address)).await {
                Ok(Ok(socket)) => match prepare(socket) {
                    Ok(socket) => return Ok(socket),
                    Err(error) => failed(format!("{address}: {error}"), false),
                },
                Ok(Err(error)) => failed(format!("{address}: {error}"), false),
                Err(_) => failed(format!("{address}: no connection within {}", show(part)), true),
            };
        }
        // The server may have moved.
        lock(&self.resolved).at = None;
        Err(problem)
    }

    pub(super) async fn protect(
        &self,
        socket: std::net::TcpStream,
        until: Instant,
    ) -> Result<Connection, ConnectError> {
        let left = until.saturating_duration_since(clock::now());
        // Built anew for each connection: a clone of these settings loses its socket.
        let mut settings = LdapConnSettings::new()
            .set_conn_timeout(left)
            .set_starttls(self.tls == Tls::Starttls)
            .set_std_stream(StdStream::Tcp(socket));
        if let Some(config) = &self.config {
            settings = settings.set_config(Arc::clone(config));
        }
        // What the client library wants to see; the socket is ours.
        let scheme = if self.tls == Tls::Ldaps { "ldaps" } else { "ldap" };
        let url = format!("{scheme}://{}:{}", self.name, self.port);
        match LdapConnAsync::with_settings(settings, &url).await {
            Ok((driver, handle)) => {
                tokio::spawn(async move {
                    if let Err(error) = driver.drive().await {
                        tracing::debug!(%error, "ldap connection ended");
                    }
                });
                Ok(Connection::new(handle))
            }
            Err(error) => {
                let timed_out = matches!(error, LdapError::Timeout { .. });
                let detail = self.explain(&error, left);
                Err(ConnectError { stage: Stage::Tls, detail, timed_out })
            }
        }
    }

    fn explain(&self, error: &LdapError, within: Duration) -> String {
        let step = self.step();
        match error {
            LdapError::Timeout { .. } => self.explain_silence(within),
            LdapError::LdapResult { result } => {
                format!("{step}: refused: code {} {}", result.rc, result.text)
            }
            LdapError::Io { source } => self.explain_io(source),
            LdapError::Rustls { source } => format!("{step}: {}", tls::explain(source)),
            other => format!("{step}: {other}"),
        }
    }

    pub(super) fn explain_io(&self, error: &std::io::Error) -> String {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let detail = inner.map_or_else(|| error.to_string(), tls::explain);
        format!("{}: {detail}", self.step())
    }

    pub(super) fn explain_silence(&self, within: Duration) -> String {
        format!("{}: no answer within {}", self.step(), show(within))
    }

    fn step(&self) -> &'static str {
        if self.tls == Tls::Starttls { "starttls" } else { "tls" }
    }
}

/// Small answers must not wait for each other (42 ms at the first operation after a TLS handshake), and a peer that
/// is gone must be noticed.
fn prepare(socket: TcpStream) -> std::io::Result<std::net::TcpStream> {
    socket.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
    rustix::net::sockopt::set_tcp_keepidle(&socket, Duration::from_secs(30))?;
    rustix::net::sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(10))?;
    rustix::net::sockopt::set_tcp_user_timeout(&socket, 20_000)?;
    socket.into_std()
}

/// `host`, `host:port`, `[v6]:port`, `ldap(s)://…` with the profile's TLS mode and port → what is meant.
pub(super) fn parse_host(text: &str, tls: Tls, port: u16) -> Result<(String, u16, Tls), Fault> {
    let bad = |problem: &str| fault("hosts", format!("{text}: {problem}"));
    let (tls, rest) = match text.split_once("://") {
        None => (tls, text),
        Some(("ldaps", rest)) => (Tls::Ldaps, rest),
        Some(("ldap", _)) if tls == Tls::Ldaps => {
            return Err(bad("ldap:// contradicts tls = \"ldaps\""));
        }
        Some(("ldap", rest)) => (tls, rest),
        Some(_) => return Err(bad("expected ldap:// or ldaps://")),
    };
    let rest = rest.trim_end_matches('/');
    let (host, own_port) = if rest.parse::<Ipv6Addr>().is_ok() {
        (rest, None)
    } else if let Some(inner) = rest.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or_else(|| bad("a bracket is missing"))?;
        host.parse::<Ipv6Addr>().map_err(|_| bad("no IPv6 address between the brackets"))?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(bad("only a port may follow the bracket")),
        }
    } else {
        rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)))
    };
    if host.is_empty() || !host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c)) {
        return Err(bad("no host name or address"));
    }
    let port = match own_port {
        Some(own) => own.parse().ok().filter(|port| *port != 0).ok_or_else(|| bad("no port"))?,
        None => port,
    };
    let port = match (tls, port) {
        (Tls::Starttls, 636 | 3269) => return Err(bad("this port speaks ldaps, not starttls")),
        // 389 never speaks ldaps.
        (Tls::Ldaps, 0 | 389) => 636,
        (_, 0) => 389,
        (_, port) => port,
    };
    Ok((host.to_owned(), port, tls))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `3 s`, `250 ms`.
pub(super) fn show(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{} ms", time.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_take_one_form() {
        for (text, tls, port, expected) in [
            ("dc1", Tls::Ldaps, 0, ("dc1", 636, Tls::Ldaps)),
            ("dc1", Tls::Ldaps, 389, ("dc1", 636, Tls::Ldaps)),
            ("dc1", Tls::Ldaps, 3269, ("dc1", 3269, Tls::Ldaps)),
            ("dc1", Tls::Starttls, 0, ("dc1", 389, Tls::Starttls)),
            ("dc1:3268", Tls::Starttls, 0, ("dc1", 3268, Tls::Starttls)),
            ("ldaps://dc1/", Tls::Starttls, 0, ("dc1", 636, Tls::Ldaps)),
            ("ldap://dc1:1389", Tls::None, 0, ("dc1", 1389, Tls::None)),
            ("[::1]:1636", Tls::Ldaps, 0, ("::1", 1636, Tls::Ldaps)),
            ("::1", Tls::None, 0, ("::1", 389, Tls::None)),
        ] {
            let (host, port, tls) = parse_host(text, tls, port).unwrap();
            assert_eq!((host.as_str(), port, tls), expected, "{text}");
        }
        for (text, tls, port) in [
            ("ldap://dc1", Tls::Ldaps, 0),
            ("http://dc1", Tls::Ldaps, 0),
            ("dc1", Tls::Starttls, 636),
            ("dc1:3269", Tls::Starttls, 0),
            ("dc1:x", Tls::Ldaps, 0),
            ("[::1", Tls::Ldaps, 0),
            ("[x]", Tls::Ldaps, 0),
            ("dc 1", Tls::Ldaps, 0),
            ("", Tls::Ldaps, 0),
        ] {
            assert!(parse_host(text, tls, port).is_err(), "{text}");
        }
    }

    #[test]
    fn clear_text_needs_loopback_or_leave() {
        let files = Files::default();
        let mut section =
            Directory { hosts: vec!["dc1".into()], tls: Tls::None, ..Directory::default() };
        assert_eq!(Target::list(&section, &files).unwrap_err().key, "tls");
        section.allow_plaintext = true;
        assert!(Target::list(&section, &files).is_ok());
        section.allow_plaintext = false;
        section.hosts = vec!["127.0.0.1, ::1".into(), "localhost:1389".into()];
        let labels: Vec<_> = Target::list(&section, &files)
            .unwrap()
            .iter()
            .map(|target| target.label().to_string())
            .collect();
        assert_eq!(labels, ["ldap://127.0.0.1:389", "ldap://[::1]:389", "ldap://localhost:1389"]);
    }
}
