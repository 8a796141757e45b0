//! A profile's test, step by step on fresh connections. Nothing is written; pool and health are left alone.

use std::time::Instant;

use ldap3::Scope;

use super::ber::element;
use super::connect::Target;
use super::connection::{Connection, Query, SIZE_LIMIT};
use super::entry::{generalized_time, show_id};
use super::feed::Kind;
use super::filter::Filter;
use super::host::Service;
use super::profile::{Profile, no_attributes};
use super::setup::Place;
use super::verdict::{Class, classify};
use super::{Hosts, Step, StepOutcome};
use crate::clock;
use crate::config::directory::Tls;

/// People are counted up to here.
const COUNT_LIMIT: u16 = 1_000;

impl Profile {
    /// Tries one step after the other: name, TCP, TLS, bind, root DSE, then each place with its base, the number of
    /// people the filter lets through, and the id attribute. Passed as a whole if no step failed.
    pub async fn test(&self, hosts: Hosts) -> Vec<Step> {
        let mut steps = Steps::default();
        let all = self.pool.hosts();
        let wanted = match hosts {
            Hosts::All => all.len(),
            Hosts::First => 1,
        };
        for host in all.iter().take(wanted) {
            self.test_host(host.target(), &mut steps).await;
        }
        steps.0
    }

    async fn test_host(&self, target: &Target, steps: &mut Steps) {
        let connection = self.test_connect(target, steps).await;
        let bound = match connection {
            Some(connection) => self.test_bind(connection, target, steps).await,
            None => None,
        };
        let Some(connection) = bound else {
            for name in ["bind", "root dse", "search"] {
                if !steps.0.iter().any(|step| step.name == named(name, target)) {
                    steps.skipped(named(name, target));
                }
            }
            return;
        };
        self.test_root(&connection, target, steps).await;
        for place in &self.places {
            self.test_place(&connection, place, steps).await;
        }
    }

    async fn test_connect(&self, target: &Target, steps: &mut Steps) -> Option<Connection> {
        let within = self.settings.connect_timeout;
        let until = clock::now() + within;
        let started = clock::now();
        let resolved = target.resolve(within).await.map_err(|error| error.detail);
        let list = |addresses: &Vec<std::net::SocketAddr>| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let addresses = steps.note(named("dns", target), started, resolved, list)?;

        let started = clock::now();
        let reached = target.reach(&addresses, until).await.map_err(|error| error.detail);
        let peer = |socket: &std::net::TcpStream| {
            socket.peer_addr().map(|peer| peer.to_string()).unwrap_or_default()
        };
        let socket = steps.note(named("tcp", target), started, reached, peer)?;

        let step = match target.tls() {
            Tls::Ldaps => "tls",
            Tls::Starttls => "starttls",
            Tls::None => "clear text",
        };
        let started = clock::now();
        let mut secured = target.protect(socket, until).await.map_err(|error| error.detail);
        let certificate = match &mut secured {
            Ok(connection) => connection.certificate(within).await,
            Err(_) => None,
        };
        let mut about = certificate.and_then(|der| describe_certificate(&der)).unwrap_or_default();
        if target.tls() != Tls::None && !self.checks_certificates() {
            about = format!("certificate not checked (verify = false); {about}");
        }
        let about = about.trim_end_matches("; ").to_owned();
        steps.note(named(step, target), started, secured, |_| about)
    }

    async fn test_bind(
        &self,
        mut connection: Connection,
        target: &Target,
        steps: &mut Steps,
    ) -> Option<Connection> {
        let started = clock::now();
        let result = match &self.settings.service {
            Service::Anonymous => Ok("anonymous".to_owned()),
            Service::Account { dn, password } => {
                match connection.bind(dn, password.expose(), self.settings.timeout).await {
                    Ok(reply) if matches!(classify(&reply), Class::Accepted(_)) => Ok(dn.clone()),
                    Ok(reply) => Err(format!("{dn}: code {} {}", reply.code, reply.text)),
                    Err(error) => Err(format!("{dn}: {error}")),
                }
            }
        };
        steps.note(named("bind", target), started, result, Clone::clone)?;
        Some(connection)
    }

    async fn test_root(&self, connection: &Connection, target: &Target, steps: &mut Steps) {
        let started = clock::now();
        let attributes = [
            "vendorName",
            "vendorVersion",
            "namingContexts",
            "supportedControl",
            "highestCommittedUSN",
        ]
        .map(str::to_owned);
        let filter = Filter::any();
        let query = Query {
            base: "",
            scope: Scope::Base,
            filter: &filter,
            attributes: &attributes,
            limit: 1,
        };
        let result = match connection.search(&query, self.settings.timeout).await {
            Ok(found) if found.code == 0 => Ok(found
                .entries
                .first()
                .map(|entry| {
                    let texts = |name| entry.attributes.texts(name).collect::<Vec<_>>().join(", ");
                    let paging = entry
                        .attributes
                        .texts("supportedControl")
                        .any(|oid| oid == "1.2.840.113556.1.4.319");
                    let paging = if paging { "paged results" } else { "no paged results" };
                    let vendor = format!("{} {}", texts("vendorName"), texts("vendorVersion"));
                    let vendor = vendor.trim();
                    let vendor = if vendor.is_empty() { "unnamed server" } else { vendor };
                    let feed = Kind::offered(&entry.attributes).as_str();
                    format!(
                        "{vendor}; contexts: {}; {paging}; changes by {feed}",
                        texts("namingContexts")
                    )
                })
                .unwrap_or_else(|| "not readable".to_owned())),
            Ok(found) => Err(format!("code {} {}", found.code, found.text)),
            Err(error) => Err(error.to_string()),
        };
        steps.note(named("root dse", target), started, result, Clone::clone);
    }

    async fn test_place(&self, connection: &Connection, place: &Place, steps: &mut Steps) {
        let within = self.settings.timeout;
        let base = format!("base search.{}", place.name);
        let started = clock::now();
        let (any, none) = (Filter::any(), no_attributes());
        let query = Query {
            base: &place.base,
            scope: Scope::Base,
            filter: &any,
            attributes: &none,
            limit: 1,
        };
        let result = match connection.search(&query, within).await {
            Ok(found) if found.code == 0 && !found.entries.is_empty() => Ok(place.base.clone()),
            Ok(found) => Err(format!("{}: code {} {}", place.base, found.code, found.text)),
            Err(error) => Err(format!("{}: {error}", place.base)),
        };
        if steps.note(base, started, result, Clone::clone).is_none() {
            steps.skipped(format!("filter search.{}", place.name));
            steps.skipped(format!("id search.{}", place.name));
            return;
        }

        let started = clock::now();
        let identity = &self.reader.identity;
        let attributes = [identity.id_attribute.clone()];
        let query = place.query(&place.filter, &attributes, COUNT_LIMIT);
        let result = match connection.search(&query, within).await {
            Ok(found) if matches!(found.code, 0 | SIZE_LIMIT) => Ok(found),
            Ok(found) => Err(format!("code {} {}", found.code, found.text)),
            Err(error) => Err(error.to_string()),
        };
        let filter = place.filter.as_str();
        let found = steps.note(format!("filter search.{}", place.name), started, result, |found| {
            let more = if found.code == SIZE_LIMIT { " or more" } else { "" };
            format!("{}{more} entries match {filter}", found.entries.len())
        });

        let name = format!("id search.{}", place.name);
        let Some(found) = found.filter(|found| !found.entries.is_empty()) else {
            return steps.skipped(name);
        };
        let bad = found.entries.iter().find(|entry| {
            let mut values = entry.attributes.values(&identity.id_attribute);
            let id = values.next().and_then(|value| show_id(identity.id_format, value));
            id.is_none() || values.next().is_some()
        });
        let result = match bad {
            None => Ok(format!("{} in all {}", identity.id_attribute, found.entries.len())),
            Some(entry) => Err(format!("{}: no usable {}", entry.dn, identity.id_attribute)),
        };
        steps.note(name, clock::now(), result, Clone::clone);
    }
}

fn named(step: &str, target: &Target) -> String {
    format!("{step} {}", target.label())
}

/// The steps so far.
#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn note<T>(
        &mut self,
        name: String,
        started: Instant,
        result: Result<T, String>,
        detail: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        let took = clock::now().saturating_duration_since(started);
        let (outcome, detail, value) = match result {
            Ok(value) => (StepOutcome::Passed, detail(&value), Some(value)),
            Err(problem) => (StepOutcome::Failed, problem.trim_end().to_owned(), None),
        };
        self.0.push(Step { name, outcome, detail, took });
        value
    }

    fn skipped(&mut self, name: String) {
        let (outcome, detail) = (StepOutcome::Skipped, String::new());
        self.0.push(Step { name, outcome, detail, took: std::time::Duration::ZERO });
    }
}

/// `issuer TestCA; valid until 20271122215459Z (364 days)`; `None` for what is no certificate (RFC 5280 §4.1).
fn describe_certificate(der: &[u8]) -> Option<String> {
    let (body, _) = inside(SEQUENCE, inside(SEQUENCE, der)?.0)?;
    let (first, _, after_first) = element(body)?;
    // version [0] is there in all of today's certificates; the serial number follows.
    let rest = if first == 0xa0 { element(after_first)?.2 } else { after_first };
    let (_algorithm, rest) = inside(SEQUENCE, rest)?;
    let (mut issuer, rest) = inside(SEQUENCE, rest)?;
    let (validity, _) = inside(SEQUENCE, rest)?;
    let (_, time, _) = element(element(validity)?.2)?;
    let time = std::str::from_utf8(time).ok()?;
    // UTCTime has two digits for the year, up to 2049.
    let time = if time.len() == 13 { format!("20{time}") } else { time.to_owned() };
    let days = (generalized_time(&time)? - clock::unix_seconds()).div_euclid(86_400);
    let mut names = Vec::new();
    while !issuer.is_empty() {
        let (part, rest) = inside(SET, issuer)?;
        names.push(name_part(part)?);
        issuer = rest;
    }
    Some(format!("issuer {}; valid until {time} ({days} days)", names.join(", ")))
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// The content of an element with this tag, and what follows.
fn inside(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, after) = element(bytes)?;
    (found == tag).then_some((content, after))
}

/// The text of one part of a name: SEQUENCE { type, value }. It comes from whoever has the certificate.
fn name_part(part: &[u8]) -> Option<String> {
    let (pair, _) = inside(SEQUENCE, part)?;
    let (_, value, _) = element(element(pair)?.2)?;
    Some(String::from_utf8_lossy(value).replace(char::is_control, "?"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ber(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        [&[tag, u8::try_from(content.len()).unwrap()], &*content].concat()
    }

    fn certificate(version: &[u8]) -> Vec<u8> {
        let part = |value: &[u8]| {
            ber(SET, &[&ber(SEQUENCE, &[&ber(6, &[b"\x55\x04\x03"]), &ber(12, &[value])])])
        };
        let name = ber(SEQUENCE, &[&part(b"Planet Express"), &part(b"CA\x1b[2J")]);
        let times = [ber(23, &[b"250101000000Z"]), ber(23, &[b"400101000000Z"])];
        let validity = ber(SEQUENCE, &[&times[0], &times[1]]);
        let body = [version, &ber(2, &[b"\x07"]), &ber(SEQUENCE, &[]), &name, &validity].concat();
        ber(SEQUENCE, &[&ber(SEQUENCE, &[&body]), &ber(SEQUENCE, &[])])
    }

    #[test]
    fn issuer_and_last_day_are_read() {
        for version in [&b"\xa0\x03\x02\x01\x02"[..], b""] {
            let shown = describe_certificate(&certificate(version)).unwrap();
            let start = "issuer Planet Express, CA?[2J; valid until 20400101000000Z (";
            assert!(shown.starts_with(start), "{shown}");
        }
    }

    #[test]
    fn brackets_within_brackets_use_up_no_stack() {
        // Made from the inside out, so backwards.
        let mut deep = Vec::new();
        for _ in 0..200_000 {
            let length = u32::try_from(deep.len()).unwrap();
            deep.extend(length.to_le_bytes());
            deep.extend([0x84, SEQUENCE]);
        }
        deep.reverse();
        assert_eq!(describe_certificate(&deep), None);
    }

    proptest! {
        #[test]
        fn no_changed_byte_makes_it_panic(at in 0..90_usize, byte: u8) {
            let mut bytes = certificate(b"\xa0\x03\x02\x01\x02");
            bytes[at] = byte;
            let _ = describe_certificate(&bytes);
        }
    }
}
