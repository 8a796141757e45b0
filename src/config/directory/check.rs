//! What of `[directory.NAME]` must fit together.

use std::time::Duration;

use super::{Directory, Identity, Map, Rule, Search, TemplateChoice};
use crate::config::check::{Names, check_placeholders, check_protocols, settle_domain};
use crate::config::problem::Report;

impl Directory {
    /// Brings hosts, domains and the service account to one form, and reports what does not fit.
    pub(in crate::config) fn settle(&mut self, names: &Names, report: &mut Report) {
        self.settle_hosts(report);
        for domain in &mut self.domains {
            settle_domain(domain, "domains", names, report);
        }
        if self.domains.is_empty() {
            report.notice("domains", "no mail domain: nobody is asked here");
        }
        self.settle_account(report);
        self.check_limits(report);
        self.check_searches(report);
        report.within("identity", |report| self.identity.check(report));
        report.within("lazy", |report| {
            check_protocols(&self.lazy.protocols, "protocols", report);
        });
        report.within("map", |report| self.map.check(report));
        report.within("template", |report| self.template.check(names, report));
    }

    fn settle_account(&mut self, report: &mut Report) {
        let pair = (!self.bind_user.is_empty(), !self.bind_base.is_empty());
        let has_account = pair.0 || !self.bind_dn.is_empty();
        match pair {
            (true, false) => report.problem(
                "bind_base",
                "bind_user is set, but not its base",
                "the DN below which the account stands",
            ),
            (false, true) => {
                report.problem("bind_user", "bind_base is set, but no user", "the account's name");
            }
            (true, true) => self.settle_pair(report),
            (false, false) => {}
        }
        let has_password = !self.bind_password.is_empty();
        if self.anonymous {
            report.require(
                !has_account,
                "anonymous",
                "a service account is set as well",
                "bind_dn or anonymous = true",
            );
        } else if !has_account {
            report.problem(
                "bind_dn",
                "no service account is set",
                "bind_dn and bind_password, or anonymous = true",
            );
        } else {
            // RFC 4513 §5.1.2: a DN with an empty password is an unauthenticated bind, which may answer success.
            report.require(
                has_password,
                "bind_password",
                "the service account has no password",
                "bind_password, bind_password_file or \"env:NAME\"",
            );
        }
        if has_password && !has_account {
            report.notice("bind_password", "has no effect without bind_dn");
        }
    }

    /// Makes `bind_dn` of the pair, which has no say any more then.
    fn settle_pair(&mut self, report: &mut Report) {
        let user = self.bind_user.to_ascii_lowercase();
        if user.starts_with("cn=") || user.starts_with("uid=") {
            report.problem(
                "bind_user",
                "the name alone belongs here, without cn= or uid=",
                "a name such as svc-mail, or a whole DN in bind_dn",
            );
            return;
        }
        if !self.bind_dn.is_empty() {
            report.problem(
                "bind_user",
                "bind_dn is set as well",
                "either bind_dn or bind_user with bind_base",
            );
            return;
        }
        let escaped = escape_dn_value(&self.bind_user);
        if self
            .bind_base
            .to_ascii_lowercase()
            .starts_with(&format!("cn={},", escaped.to_lowercase()))
        {
            report.notice("bind_base", "already holds the user; it would stand twice in the DN");
        }
        check_dn(&self.bind_base, "bind_base", report);
        self.bind_dn = format!("CN={escaped},{}", self.bind_base);
        self.bind_user.clear();
        self.bind_base.clear();
    }

    fn check_limits(&self, report: &mut Report) {
        for (key, span) in [
            ("connect_timeout", self.connect_timeout),
            ("timeout", self.timeout),
            ("connection_max_age", self.connection_max_age),
        ] {
            report.require(
                span.0 > Duration::ZERO,
                key,
                "no time at all",
                "a span of time such as 5s",
            );
        }
        for (key, count) in [
            ("search_connections", self.search_connections),
            ("bind_connections", self.bind_connections),
            ("queue", self.queue),
        ] {
            report.require_count(count, 10_000, key, "0 would let nobody in");
        }
        if !self.verify {
            report.notice("verify", "the server's certificate is not checked");
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            let missing =
                if self.client_key_file.is_none() { "client_key_file" } else { "client_cert_file" };
            report.problem(
                missing,
                "a client certificate needs both its files",
                "the path of a PEM file",
            );
        }
    }

    fn check_searches(&self, report: &mut Report) {
        report.require(
            !self.search.is_empty(),
            "search",
            "there is no search base",
            "a table such as [directory.NAME.search.people] with base",
        );
        report.within("search", |report| {
            for (name, search) in &self.search {
                report.within(name, |report| search.check(report));
            }
        });
    }
}

impl Search {
    fn check(&self, report: &mut Report) {
        if self.base.is_empty() {
            report.problem("base", "no base is set", "a DN such as ou=people,dc=example,dc=org");
        } else {
            check_dn(&self.base, "base", report);
        }
        check_filter(&self.filter, "filter", report);
    }
}

impl Identity {
    fn check(&self, report: &mut Report) {
        if !self.id_attribute.is_empty() {
            check_attribute(&self.id_attribute, "id_attribute", report);
        }
        for attribute in &self.login_attributes {
            check_attribute(attribute, "login_attributes", report);
        }
        if !self.login_filter.is_empty() {
            check_filter(&self.login_filter, "login_filter", report);
            check_placeholders(
                &self.login_filter,
                &["user", "local", "domain"],
                "login_filter",
                report,
            );
            let has_name =
                ["{user}", "{local}"].iter().any(|name| self.login_filter.contains(name));
            report.require(
                has_name,
                "login_filter",
                "everybody would match",
                "{user} or {local} in it",
            );
            if !self.login_attributes.is_empty() {
                report.notice("login_attributes", "has no effect beside login_filter");
            }
        }
        match self.disabled_rule.strip_prefix("filter:") {
            Some(filter) => check_filter(filter, "disabled_rule", report),
            None => report.require(
                ["", "ad-uac", "nsAccountLock", "pwdAccountLockedTime", "shadowExpire", "none"]
                    .contains(&self.disabled_rule.as_str()),
                "disabled_rule",
                "not a known word",
                "ad-uac, nsAccountLock, pwdAccountLockedTime, shadowExpire, none or filter:(…)",
            ),
        }
    }
}

impl Map {
    fn check(&self, report: &mut Report) {
        for (key, mapping) in [
            ("address", &self.address),
            ("aliases", &self.aliases),
            ("display_name", &self.display_name),
            ("quota", &self.quota),
        ] {
            for attribute in &mapping.attr {
                check_attribute(attribute, key, report);
            }
        }
        report.require(
            !self.address.attr.is_empty(),
            "address",
            "no attribute: nobody would have an address",
            "attributes such as [\"mail\"]",
        );
    }
}

impl TemplateChoice {
    fn check(&self, names: &Names, report: &mut Report) {
        if !self.attribute.is_empty() {
            check_attribute(&self.attribute, "attribute", report);
        }
        if !self.default.is_empty() {
            names.check_template(&self.default, "default", report);
        } else if self.rule.is_empty() {
            report.notice("default", "no template and no rule: no mailbox is made here");
        }
        let wants_attribute = self.rule.values().any(|rule| !rule.value.is_empty());
        report.require(
            !wants_attribute || !self.attribute.is_empty(),
            "attribute",
            "rules compare its values, but it is not set",
            "the name of an attribute",
        );
        report.within("rule", |report| {
            for (name, rule) in &self.rule {
                report.within(name, |report| rule.check(names, report));
            }
        });
    }
}

impl Rule {
    fn check(&self, names: &Names, report: &mut Report) {
        let is_one = self.value.is_empty() != self.member_of.is_empty();
        report.require(is_one, "", "a rule has one condition", "either value or member_of");
        if !self.member_of.is_empty() {
            check_dn(&self.member_of, "member_of", report);
        }
        if self.template.is_empty() {
            report.problem(
                "template",
                "no template is named",
                "the name of a [template.NAME] table",
            );
        } else {
            names.check_template(&self.template, "template", report);
        }
    }
}

/// A DN is only parsed by the directory; what surely is none is caught here.
fn check_dn(dn: &str, key: &str, report: &mut Report) {
    let looks_right = dn.contains('=') && dn.trim() == dn && !dn.starts_with(['=', ',', '(']);
    report.require(looks_right, key, "not a DN", "a DN such as ou=people,dc=example,dc=org");
}

/// Brackets only: the rest of the grammar is the directory's business, which adds the outer ones.
fn check_filter(filter: &str, key: &str, report: &mut Report) {
    let filter = filter.trim();
    if filter.is_empty() {
        report.problem(key, "the filter is empty", EXPECTED_FILTER);
        return;
    }
    let mut open = 0_usize;
    for c in filter.chars() {
        match c {
            '(' => open += 1,
            ')' if open == 0 => {
                report.problem(
                    key,
                    "a closing bracket without an opening one in the filter",
                    EXPECTED_FILTER,
                );
                return;
            }
            ')' => open -= 1,
            _ => {}
        }
    }
    if open > 0 {
        report.problem(key, "a closing bracket is missing in the filter", EXPECTED_FILTER);
    } else if !filter.starts_with('(') {
        report.notice(key, "no brackets around the filter: they are added");
    }
}

const EXPECTED_FILTER: &str = "one filter in brackets such as (objectClass=inetOrgPerson)";

/// RFC 4512 §2.5: a short name or an OID, with options after `;`.
fn check_attribute(name: &str, key: &str, report: &mut Report) {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ';' | '.' | '_');
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    report.require(
        starts_well && name.chars().all(is_legal),
        key,
        "not the name of an attribute",
        "a name such as mail or displayName",
    );
}

/// RFC 4514 §2.4.
fn escape_dn_value(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(value.len());
    for (index, c) in value.chars().enumerate() {
        let at_edge = (c == ' ' && (index == 0 || index == last)) || (c == '#' && index == 0);
        if at_edge || matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';' | '=') {
            escaped.push('\\');
        }
        if c == '\0' {
            escaped.push_str("\\00");
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_of_a_filter_must_balance() {
        for (filter, good) in [
            ("(objectClass=*)", true),
            ("(&(a=b)(!(c=\\28d\\29)))", true),
            ("objectClass=*", true),
            ("&(a=b)(c=d)", true),
            ("", false),
            (" ", false),
            ("(a=b", false),
            ("a=b)", false),
            ("(a=b))", false),
            (")(", false),
        ] {
            let mut report = Report::default();
            check_filter(filter, "filter", &mut report);
            assert_eq!(report.problems.is_empty(), good, "{filter}");
        }
    }

    #[test]
    fn outer_brackets_that_are_missing_are_noticed() {
        for (filter, told) in
            [("objectClass=*", 1), ("&(a=b)(c=d)", 1), ("(a=b)", 0), (" (a=b) ", 0), ("(a=b", 0)]
        {
            let mut report = Report::default();
            check_filter(filter, "filter", &mut report);
            assert_eq!(report.notices.len(), told, "{filter}");
        }
    }

    #[test]
    fn a_service_account_s_name_is_escaped_in_its_dn() {
        for (value, escaped) in
            [("svc-mail", "svc-mail"), ("Doe, John", "Doe\\, John"), ("#a ", "\\#a\\ ")]
        {
            assert_eq!(escape_dn_value(value), escaped);
        }
    }
}
