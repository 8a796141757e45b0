//! `hosts`, `tls` and `port` brought to one form: every host as `host:port`.

use std::net::{IpAddr, Ipv6Addr};

use super::{Directory, Tls};
use crate::config::problem::Report;

const FORMS: &str = "host, host:port, ldap://host, ldaps://host or [IPv6]:port";

struct Host {
    scheme: Option<&'static str>,
    name: String,
    port: Option<u16>,
}

impl Directory {
    /// Rewrites `hosts` as `host:port` and `port` as the port that is used.
    pub(super) fn settle_hosts(&mut self, report: &mut Report) {
        if self.port == 389 && self.tls == Tls::Ldaps {
            report.notice("port", "389 is not for ldaps, 636 is used");
        } else if matches!(self.port, 636 | 3269) && self.tls == Tls::Starttls {
            report.problem(
                "port",
                "starttls does not begin on a port of ldaps",
                "389 or 3268, or tls = \"ldaps\"",
            );
        }
        self.port = match (self.tls, self.port) {
            (Tls::Ldaps, 0 | 389) => 636,
            (_, 0) => 389,
            (_, port) => port,
        };
        let written = std::mem::take(&mut self.hosts);
        let parts = written.iter().flat_map(|entry| entry.split(',')).map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            match parse(part) {
                Ok(host) => {
                    self.check_host(&host, report);
                    let name = bracketed(&host.name);
                    let port = match (self.tls, host.port) {
                        (Tls::Ldaps, Some(389)) => 636,
                        (_, port) => port.unwrap_or(self.port),
                    };
                    self.hosts.push(format!("{name}:{port}"));
                }
                Err(message) => report.problem("hosts", message, FORMS),
            }
        }
        let is_empty = written.iter().all(|entry| entry.trim().is_empty());
        report.require(!is_empty, "hosts", "no host is set", FORMS);
    }

    fn check_host(&self, host: &Host, report: &mut Report) {
        let name = &host.name;
        match (host.scheme, self.tls) {
            (Some("ldaps"), Tls::None | Tls::Starttls) => {
                report.problem(
                    "hosts",
                    format!("ldaps://{name} does not go with this tls"),
                    "tls = \"ldaps\"",
                );
            }
            (Some("ldap"), Tls::Ldaps) => {
                report.problem(
                    "hosts",
                    format!("ldap://{name} does not go with tls = \"ldaps\""),
                    "tls = \"starttls\", or ldaps://",
                );
            }
            _ => {}
        }
        match (host.port, self.tls) {
            (Some(389), Tls::Ldaps) => {
                report.notice("hosts", format!("port 389 of {name} is not for ldaps, 636 is used"));
            }
            (Some(636 | 3269), Tls::Starttls) => {
                report.problem(
                    "hosts",
                    format!("starttls does not begin on a port of ldaps ({name})"),
                    "389 or 3268, or tls = \"ldaps\"",
                );
            }
            _ => {}
        }
        if self.tls == Tls::None && !self.allow_plaintext && !is_loopback(name) {
            report.problem(
                "tls",
                format!("passwords would cross the net to {name} in clear"),
                "starttls or ldaps, or allow_plaintext = true",
            );
        }
    }
}

fn parse(text: &str) -> Result<Host, String> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ldap") => (Some("ldap"), rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ldaps") => (Some("ldaps"), rest),
        Some((scheme, _)) => return Err(format!("{scheme:?} is not a scheme of ldap")),
        None => (None, text),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (name, port) = if let Some(inner) = rest.strip_prefix('[') {
        let (address, after) =
            inner.split_once(']').ok_or_else(|| format!("{text:?} has no closing bracket"))?;
        address.parse::<Ipv6Addr>().map_err(|_| format!("{address:?} is no IPv6 address"))?;
        let port = after.strip_prefix(':');
        if port.is_none() && !after.is_empty() {
            return Err(format!("{text:?} is no host"));
        }
        (address, port)
    } else if rest.matches(':').count() > 1 {
        return Err(format!("{text:?} is no host; an IPv6 address stands in brackets"));
    } else {
        rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)))
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(format!("{text:?} is no host"));
    }
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err(format!("{text:?} has no usable port")),
    };
    Ok(Host { scheme, name: name.to_ascii_lowercase(), port })
}

fn bracketed(name: &str) -> String {
    if name.contains(':') { format!("[{name}]") } else { name.to_owned() }
}

fn is_loopback(name: &str) -> bool {
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        tls: Tls,
        port: u16,
        hosts: &[&str],
        settled: &[&str],
        problems: usize,
        notices: usize,
    ) {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut directory = Directory { tls, port, hosts, ..Directory::default() };
        let mut report = Report::default();
        directory.settle_hosts(&mut report);
        assert_eq!(directory.hosts, settled, "{report:?}");
        assert_eq!(
            (report.problems.len(), report.notices.len()),
            (problems, notices),
            "{report:?}"
        );
    }

    #[test]
    fn hosts_in_every_accepted_form_become_host_and_port() {
        check(
            Tls::Ldaps,
            0,
            &["dc1", "DC2:1636,ldaps://dc3/"],
            &["dc1:636", "dc2:1636", "dc3:636"],
            0,
            0,
        );
        check(
            Tls::Starttls,
            0,
            &["ldap://a", "[::1]", "[2001:db8::1]:3268"],
            &["a:389", "[::1]:389", "[2001:db8::1]:3268"],
            0,
            0,
        );
        check(Tls::Ldaps, 3269, &["gc"], &["gc:3269"], 0, 0);
    }

    #[test]
    fn ldaps_on_389_becomes_636_and_a_notice_says_so() {
        check(Tls::Ldaps, 389, &["a"], &["a:636"], 0, 1);
        check(Tls::Ldaps, 0, &["a:389"], &["a:636"], 0, 1);
    }

    #[test]
    fn starttls_on_a_port_of_ldaps_is_a_problem() {
        check(Tls::Starttls, 636, &["a"], &["a:636"], 1, 0);
        check(Tls::Starttls, 3269, &["a"], &["a:3269"], 1, 0);
        check(Tls::Starttls, 0, &["a:636"], &["a:636"], 1, 0);
    }

    #[test]
    fn clear_text_is_for_loopback_only() {
        check(
            Tls::None,
            0,
            &["localhost", "127.0.0.9", "[::1]:3890"],
            &["localhost:389", "127.0.0.9:389", "[::1]:3890"],
            0,
            0,
        );
        check(Tls::None, 0, &["dc1"], &["dc1:389"], 1, 0);
    }

    #[test]
    fn what_is_no_host_is_a_problem() {
        for bad in
            ["http://a", "a:0", "a:99999", "::1", "[::1", "[x]", "[::1]x", "a b", "a/b", "ldap://b"]
        {
            check(Tls::Ldaps, 0, &[bad], if bad == "ldap://b" { &["b:636"] } else { &[] }, 1, 0);
        }
        check(Tls::Ldaps, 0, &[], &[], 1, 0);
        check(Tls::Ldaps, 0, &[""], &[], 1, 0);
    }
}
