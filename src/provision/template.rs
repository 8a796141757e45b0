//! What the configuration says about mailboxes: domains, templates, and which template and values a person gets.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::config::Config;
use crate::config::directory::{Directory, Lazy, Map, OnUnmatched, Rule};
use crate::config::domain::Domain as DomainLimits;
use crate::config::template::Template;
use crate::config::units::Rate;
use crate::identity::{Address, Domain, LoginRules};
use crate::person::Person;
use crate::store::Words;

/// Domains, templates and mapping rules, ready to use.
#[derive(Clone, Debug)]
pub struct Rules {
    domains: BTreeMap<Domain, DomainLimits>,
    templates: BTreeMap<Box<str>, Ready>,
    profiles: BTreeMap<Box<str>, Profile>,
    /// How names become addresses.
    pub(super) names: LoginRules,
}

/// A template, and what the mailboxes that are made from it share.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) name: Arc<str>,
    pub(super) words: Words,
    template: Template,
}

impl Deref for Ready {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

/// What one directory's section says about mailboxes.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    pub(super) map: Map,
    pub(super) lazy: Lazy,
    pub(super) on_unmatched: OnUnmatched,
    attribute: String,
    default: Box<str>,
    /// By order, then name.
    rules: Vec<(Box<str>, Rule)>,
}

/// Which template a person gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Template {
        /// Its name.
        name: Arc<str>,
        /// The rule that chose it, or `default`.
        rule: Box<str>,
    },
    /// No rule matches and there is no default.
    Unmatched {
        /// The values that match no rule.
        values: Box<str>,
    },
}

impl Rules {
    /// Reads the rules out of the configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        // The configuration's own check refuses names that are no domains.
        let domain = |(name, limits): (&String, &DomainLimits)| {
            Domain::parse(name).ok().map(|name| (name, limits.clone()))
        };
        let templates = config.template.iter();
        let profiles = config.directory.iter();
        Self {
            domains: config.domain.iter().filter_map(domain).collect(),
            templates: templates
                .map(|(name, it)| (name.as_str().into(), Ready::new(name, it)))
                .collect(),
            profiles: profiles.map(|(name, it)| (name.as_str().into(), Profile::new(it))).collect(),
            names: config.names(),
        }
    }

    /// What is configured for a mail domain.
    #[must_use]
    pub fn domain(&self, name: &Domain) -> Option<&DomainLimits> {
        self.domains.get(name)
    }

    /// The same, with the domain's name as all its addresses can share it.
    #[must_use]
    pub fn shared_domain(&self, name: &Domain) -> Option<(&Domain, &DomainLimits)> {
        self.domains.get_key_value(name)
    }

    /// The template that a person's attributes choose: rules with `value`, then rules with `member_of`, then the
    /// default.
    #[must_use]
    pub fn choose(&self, person: &Person) -> Choice {
        let Some(profile) = self.profiles.get(&*person.profile) else {
            return Choice::Unmatched { values: "".into() };
        };
        let by_value = profile.rules.iter().find(|(_, rule)| rule.matches_value(profile, person));
        let by_group = || profile.rules.iter().find(|(_, rule)| rule.matches_group(person));
        let (rule, name) = match by_value.or_else(by_group) {
            Some((label, rule)) => (label.clone(), rule.template.as_str()),
            None => ("default".into(), &*profile.default),
        };
        match self.templates.get(name) {
            Some(template) => Choice::Template { name: Arc::clone(&template.name), rule },
            None => Choice::Unmatched { values: profile.template_values(person) },
        }
    }

    /// How many messages a mailbox of this template may send.
    #[must_use]
    pub fn send_limit(&self, template: &str) -> Option<Rate> {
        self.template(template)?.send_limit.0
    }

    pub(super) fn template(&self, name: &str) -> Option<&Ready> {
        self.templates.get(name)
    }

    pub(super) fn profile(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name)
    }
}

impl Ready {
    fn new(name: &str, template: &Template) -> Self {
        let words = template.protocols.join(" ").to_ascii_lowercase();
        Self {
            name: name.into(),
            words: words.split_whitespace().collect(),
            template: template.clone(),
        }
    }
}

impl Profile {
    fn new(section: &Directory) -> Self {
        let choice = &section.template;
        let mut rules: Vec<(Box<str>, Rule)> =
            choice.rule.iter().map(|(name, rule)| (name.as_str().into(), rule.clone())).collect();
        rules.sort_by(|(a, left), (b, right)| (left.order, a).cmp(&(right.order, b)));
        Self {
            map: section.map.clone(),
            lazy: section.lazy.clone(),
            on_unmatched: choice.on_unmatched,
            attribute: choice.attribute.clone(),
            default: choice.default.as_str().into(),
            rules,
        }
    }

    /// The values that were compared, for a report; sorted, since a directory gives them in any order.
    fn template_values(&self, person: &Person) -> Box<str> {
        let mut values: Vec<&str> =
            person.attributes.texts(&self.attribute).map(str::trim).collect();
        values.sort_unstable();
        values.join(", ").chars().take(super::plan::MAX_TEXT).collect::<String>().into()
    }
}

impl Rule {
    fn matches_value(&self, profile: &Profile, person: &Person) -> bool {
        let wanted = self.value.trim();
        !wanted.is_empty()
            && person
                .attributes
                .texts(&profile.attribute)
                .any(|value| value.trim().eq_ignore_ascii_case(wanted))
    }

    fn matches_group(&self, person: &Person) -> bool {
        !self.member_of.trim().is_empty()
            && person.attributes.texts("memberof").any(|group| same_dn(group, &self.member_of))
    }
}

/// Compares DNs without case and without the blanks that may stand around `,` and `=`.
fn same_dn(left: &str, right: &str) -> bool {
    normal_dn(left) == normal_dn(right)
}

fn normal_dn(dn: &str) -> String {
    let mut normal = String::with_capacity(dn.len());
    let (mut after_separator, mut escaped) = (true, false);
    for letter in dn.trim().chars() {
        if letter == ' ' && after_separator {
            continue;
        }
        after_separator = !escaped && matches!(letter, ',' | '=' | '+');
        if after_separator {
            normal.truncate(unescaped_end(&normal));
        }
        normal.extend(letter.to_lowercase());
        escaped = letter == '\\' && !escaped;
    }
    normal
}

/// Where the text ends if blanks at its end do not count; a blank after a backslash does.
fn unescaped_end(text: &str) -> usize {
    let end = text.trim_end_matches(' ').len();
    match text.get(..end) {
        Some(kept) if kept.ends_with('\\') && end < text.len() => end + 1,
        _ => end,
    }
}

/// The values for a template's `{…}`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling<'a> {
    pub(super) address: &'a Address,
    pub(super) id: &'a str,
}

/// A value that must not stand where the template puts it (login.md N-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnsafeValue;

/// What becomes of `%` in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Percent {
    /// Doubled: the text is in Dovecot's own notation.
    Double,
    /// Left alone.
    Keep,
}

impl Filling<'_> {
    /// Fills `{local}`, `{domain}`, `{address}` and `{id}`; other braces stay.
    pub(super) fn fill(self, text: &str, percent: Percent) -> Result<String, UnsafeValue> {
        let mut filled = String::with_capacity(text.len() + 64);
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let word =
                after.split_once('}').and_then(|(name, tail)| Some((self.value(name)?, tail)));
            rest = match word {
                Some((value, tail)) => {
                    filled.push_str(&safe(value, percent)?);
                    tail
                }
                None => {
                    filled.push('{');
                    after
                }
            };
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn value(&self, name: &str) -> Option<&str> {
        Some(match name {
            "local" => self.address.local(),
            "domain" => self.address.domain().as_str(),
            "address" => self.address.as_str(),
            "id" => self.id,
            _ => return None,
        })
    }
}

fn safe(value: &str, percent: Percent) -> Result<String, UnsafeValue> {
    if value.is_empty()
        || value.starts_with('.')
        || value.contains('/')
        || value.chars().any(char::is_control)
    {
        return Err(UnsafeValue);
    }
    Ok(match percent {
        Percent::Double => value.replace('%', "%%"),
        Percent::Keep => value.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_are_the_same_without_case_and_blanks_around_separators() {
        for (left, right, same) in [
            ("CN=VIP,OU=Groups,DC=corp", "cn=vip, ou=groups , dc = Corp", true),
            ("cn=a  b,dc=x", "cn=a b,dc=x", false),
            ("cn=a\\, b,dc=x", "cn=a\\,b,dc=x", false),
            ("cn=a\\ ,dc=x", "cn=a,dc=x", false),
            ("cn=ÄMTER,dc=x", "cn=ämter,dc=x", true),
            ("cn=vip,dc=x", "cn=vip,dc=x,dc=y", false),
        ] {
            assert_eq!(same_dn(left, right), same, "{left} / {right}");
        }
    }

    #[test]
    fn a_template_text_is_filled() {
        let address = Address::parse("fry%@example.org", crate::identity::Case::Fold).unwrap();
        let filling = Filling { address: &address, id: "17" };
        for (text, percent, filled) in [
            ("/var/vmail/{domain}/{local}", Percent::Keep, "/var/vmail/example.org/fry%"),
            ("maildir:~/%n/{local}", Percent::Double, "maildir:~/%n/fry%%"),
            ("{id}{{local}{other}{", Percent::Keep, "17{fry%{other}{"),
            ("{address}", Percent::Keep, "fry%@example.org"),
        ] {
            assert_eq!(filling.fill(text, percent).as_deref(), Ok(filled), "{text}");
        }
    }

    #[test]
    fn a_value_that_could_leave_its_directory_is_refused() {
        let address = Address::parse("fry@example.org", crate::identity::Case::Fold).unwrap();
        for id in ["../x", "a/b", ".x", "a\tb", ""] {
            let filling = Filling { address: &address, id };
            assert_eq!(filling.fill("/home/{id}", Percent::Keep), Err(UnsafeValue), "{id}");
            assert!(filling.fill("/home/{local}", Percent::Keep).is_ok());
        }
    }
}
