//! What must fit together across sections. Everything is looked at; the first problem hides no other.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::Report;
use super::{Config, layer};
use crate::identity::Domain;
use crate::person::LOCAL;

/// The protocols that a mailbox may allow.
pub(super) const PROTOCOLS: [&str; 5] = ["imap", "pop3", "smtp", "sieve", "dav"];

/// The names that other sections may refer to.
pub(super) struct Names {
    templates: BTreeSet<String>,
    domains: BTreeSet<String>,
}

/// Brings names and hosts to their one form and reports what does not fit.
pub(super) fn settle(config: &mut Config, report: &mut Report) {
    check_table_names(config, report);
    check_reserved_name(config, report);
    config.domain = settle_domain_tables(std::mem::take(&mut config.domain), report);
    let names = Names {
        templates: config.template.keys().cloned().collect(),
        domains: config.domain.keys().cloned().collect(),
    };
    report.within("node", |report| config.node.check(report));
    report.within("store", |report| config.store.check(report));
    report.within("login", |report| config.login.settle(&names, report));
    report.within("master", |report| {
        for (name, master) in &mut config.master {
            report.within(name, |report| master.settle(&names, report));
        }
    });
    report.within("memory", |report| config.memory.check(report));
    report.within("shared", |report| config.shared.check(report));
    let deadline = config.login.deadline;
    report.within("throttle", |report| config.throttle.check(deadline, report));
    report.within("log", |report| config.log.check(report));
    if config.listen.is_empty() {
        report.notice("listen", "there is no door: nobody can ask");
    }
    report.within("listen", |report| {
        for (name, door) in &config.listen {
            report.within(name, |report| door.check(config.login.deadline, report));
        }
    });
    check_doors_apart(config, report);
    report.within("domain", |report| {
        for (name, domain) in &mut config.domain {
            report.within(name, |report| domain.settle(name, &names, report));
        }
        check_alias_domains(config, report);
    });
    let names_typed = config.names();
    report.within("throttle", |report| config.throttle.settle_logins(&names_typed, report));
    report.within("template", |report| {
        for (name, template) in &config.template {
            report.within(name, |report| template.check(report));
        }
    });
    report.within("directory", |report| {
        for (name, directory) in &mut config.directory {
            report.within(name, |report| directory.settle(&names, report));
        }
    });
}

impl Names {
    /// Reports a template that does not exist.
    pub(super) fn check_template(&self, name: &str, key: &str, report: &mut Report) {
        if !self.templates.contains(name) {
            let hint = layer::nearest(name, self.templates.iter().cloned())
                .map_or(String::new(), |near| format!(", did you mean {near:?}?"));
            report.problem(
                key,
                format!("there is no template {name:?}{hint}"),
                "the name of a [template.NAME] table",
            );
        }
    }
}

impl Names {
    /// Whether there is a `[domain."NAME"]` table.
    pub(super) fn has_domain(&self, name: &str) -> bool {
        self.domains.contains(name)
    }
}

/// Rewrites a mail domain in its one form.
pub(super) fn settle_domain(text: &mut String, key: &str, names: &Names, report: &mut Report) {
    match Domain::parse(text) {
        Ok(domain) => {
            domain.as_str().clone_into(text);
            if !names.domains.contains(text.as_str()) {
                report.notice(
                    key,
                    format!("{text} has no [domain.{text:?}] table: no mailbox is made in it"),
                );
            }
        }
        Err(_) => {
            report.problem(
                key,
                format!("{text:?} is no mail domain"),
                "a name such as example.org",
            );
        }
    }
}

/// Reports protocols that nobody knows.
pub(super) fn check_protocols(protocols: &[String], key: &str, report: &mut Report) {
    for protocol in protocols {
        if !PROTOCOLS.contains(&protocol.as_str()) {
            let hint = layer::nearest(protocol, PROTOCOLS.into_iter())
                .map_or(String::new(), |near| format!(", did you mean {near}?"));
            report.problem(key, format!("{protocol:?} is no protocol{hint}"), PROTOCOLS.join(", "));
        }
    }
}

/// Reports placeholders that are not offered, and braces that are none.
pub(super) fn check_placeholders(text: &str, offered: &[&str], key: &str, report: &mut Report) {
    let expected =
        || offered.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(", ");
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('{') {
        let Some((name, after)) = after.split_once('}') else {
            report.problem(key, "an opening brace without a closing one", expected());
            return;
        };
        if !offered.contains(&name) {
            report.problem(key, format!("{{{name}}} is not offered here"), expected());
        }
        rest = after;
    }
}

/// One step of `alias_of` must lead to a domain of its own.
fn check_alias_domains(config: &Config, report: &mut Report) {
    for (name, domain) in &config.domain {
        let target = config.domain.get(&domain.alias_of);
        if target.is_some_and(|target| !target.alias_of.is_empty()) {
            report.within(name, |report| {
                let message = format!("{} is an alias itself", domain.alias_of);
                report.problem("alias_of", message, "the domain that it stands for");
            });
        }
    }
}

fn settle_domain_tables<T>(
    tables: BTreeMap<String, T>,
    report: &mut Report,
) -> BTreeMap<String, T> {
    let mut settled = BTreeMap::new();
    for (name, table) in tables {
        report.within("domain", |report| match Domain::parse(&name) {
            Ok(domain) if settled.contains_key(domain.as_str()) => {
                report.problem(&name, format!("{domain} has two tables"), "one table per domain");
            }
            Ok(domain) => {
                settled.insert(domain.as_str().to_owned(), table);
            }
            Err(_) => report.problem(&name, "not a mail domain", "a name such as \"example.org\""),
        });
    }
    settled
}

/// A directory of this name would be taken for the mailboxes whose password is checked here.
fn check_reserved_name(config: &Config, report: &mut Report) {
    if config.directory.contains_key(LOCAL) {
        report.within("directory", |report| {
            report.problem(LOCAL, "this name is taken", "another name for the directory");
        });
    }
}

/// Names of tables stand in logs, metrics and links.
pub(super) fn check_table_name(name: &str, report: &mut Report) {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = !name.is_empty() && name.len() <= 64 && name.chars().all(is_legal);
    report.require(good, name, "not a usable name", "up to 64 letters, digits, - _ and .");
}

fn check_table_names(config: &Config, report: &mut Report) {
    let tables = [
        ("listen", config.listen.keys().collect::<Vec<_>>()),
        ("master", config.master.keys().collect()),
        ("template", config.template.keys().collect()),
        ("directory", config.directory.keys().collect()),
    ];
    for (section, names) in tables {
        report.within(section, |report| {
            for name in names {
                check_table_name(name, report);
            }
        });
    }
}

fn check_doors_apart(config: &Config, report: &mut Report) {
    let doors: Vec<_> = config.listen.iter().collect();
    for (index, (name, door)) in doors.iter().enumerate() {
        report.within("listen", |report| {
            let twin = doors.iter().take(index).find(|(_, other)| door.collides_with(other));
            report.within(name, |report| {
                let key = if door.path.is_some() { "path" } else { "address" };
                if let Some((other, _)) = twin {
                    report.problem(
                        key,
                        format!("door {other} listens there already"),
                        "a place of its own",
                    );
                } else if door.path.as_ref() == Some(&config.node.control) {
                    report.problem(key, "node.control is there", "a place of its own");
                }
            });
        });
    }
}
