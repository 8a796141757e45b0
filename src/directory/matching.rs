//! Which entries a name typed may mean (login.md N-4), and where entries stand. Pure.

use super::filter::{Filter, LoginFilter};
use crate::identity::{Address, Case, Domain, Login};
use crate::person::Person;

/// How a login is looked for.
#[derive(Clone, Debug)]
pub(super) enum Matching {
    /// By a list of attributes.
    Attributes {
        /// Compared with the whole name.
        whole: Vec<String>,
        /// Compared with the local part.
        local: Vec<String>,
        /// The domain whose local parts are names.
        first_domain: Option<Domain>,
    },
    /// By a filter of the administrator's.
    Template(LoginFilter),
}

/// Attributes that hold addresses.
const WHOLE: [&str; 3] = ["mail", "userPrincipalName", PROXY_ADDRESSES];

/// Exchange's list: `SMTP:` the primary one, `smtp:` others, other prefixes no mail.
const PROXY_ADDRESSES: &str = "proxyAddresses";

fn is_whole(attribute: &str) -> bool {
    WHOLE.iter().any(|whole| whole.eq_ignore_ascii_case(attribute))
}

impl Matching {
    pub(super) fn by_attributes(attributes: &[String], first_domain: Option<Domain>) -> Self {
        let (whole, local) =
            attributes.iter().cloned().partition(|attribute: &String| is_whole(attribute));
        Self::Attributes { whole, local, first_domain }
    }

    /// The address attributes that are read to tell an address's owner from a namesake.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &str> {
        let listed = match self {
            Self::Attributes { whole, .. } => whole.as_slice(),
            Self::Template(_) => &[],
        };
        listed.iter().map(String::as_str).chain(["mail"])
    }

    /// `None`: no entry can have this name.
    pub(super) fn filter(&self, login: &Login) -> Option<Filter> {
        let (whole, local, first_domain) = match self {
            Self::Template(template) => return Some(template.fill(login)),
            Self::Attributes { whole, local, first_domain } => (whole, local, first_domain),
        };
        let address = login.address.as_str();
        let mut any: Vec<Filter> = whole
            .iter()
            .map(|attribute| {
                if attribute.eq_ignore_ascii_case(PROXY_ADDRESSES) {
                    Filter::equals(attribute, &format!("smtp:{address}"))
                } else {
                    Filter::equals(attribute, address)
                }
            })
            .collect();
        if login.bare || first_domain.as_ref() == Some(login.address.domain()) {
            let part = login.address.local();
            any.extend(local.iter().map(|attribute| Filter::equals(attribute, part)));
        }
        Filter::any_of(&any)
    }

    /// Of several entries the one whose address the name is, if it is only one.
    pub(super) fn owner(&self, login: &Login, people: Vec<Person>) -> Result<Person, Vec<String>> {
        let dns = people.iter().map(|person| person.dn.to_string()).collect();
        let mut owners = people.into_iter().filter(|person| self.owns(person, login));
        match (owners.next(), owners.next()) {
            (Some(owner), None) => Ok(owner),
            _ => Err(dns),
        }
    }

    fn owns(&self, person: &Person, login: &Login) -> bool {
        // Folded and in the normal form, both: the directory may hold either.
        let folded = |text| Address::parse(text, Case::Fold);
        let Ok(address) = folded(login.address.as_str()) else { return false };
        self.addresses().flat_map(|attribute| person.attributes.texts(attribute)).any(|value| {
            let value = match value.split_at_checked(5) {
                Some((prefix, rest)) if prefix.eq_ignore_ascii_case("smtp:") => rest,
                _ => value,
            };
            folded(value).as_ref() == Ok(&address)
        })
    }
}

/// A DN's parts in one form, for comparing: `UID=Fry, OU=People` → `uid=fry`, `ou=people`.
fn parts(dn: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut escaped = false;
    for character in dn.chars() {
        match character {
            ',' | ';' if !escaped => parts.push(std::mem::take(&mut part)),
            _ => part.extend(character.to_lowercase()),
        }
        escaped = character == '\\' && !escaped;
    }
    parts.push(part);
    parts
        .iter()
        .map(|part| match part.split_once('=') {
            Some((name, value)) => format!("{}={}", name.trim(), value.trim()),
            None => part.trim().to_owned(),
        })
        .filter(|part| !part.is_empty())
        .collect()
}

/// Whether both name the same place.
pub(super) fn same_dn(one: &str, other: &str) -> bool {
    parts(one) == parts(other)
}

/// How many steps a DN stands below a base; `None`: not below it.
pub(super) fn depth_below(dn: &str, base: &str) -> Option<usize> {
    if let Some(above) = written_alike(dn, base) {
        return Some(above.split(',').count());
    }
    let (dn, base) = (parts(dn), parts(base));
    dn.ends_with(&base).then(|| dn.len() - base.len())
}

/// What stands before the base in a DN, where both are written in the same way and nothing needs a closer look: nearly
/// all are.
fn written_alike<'a>(dn: &'a str, base: &str) -> Option<&'a str> {
    let (above, rest) = dn.split_at_checked(dn.len().checked_sub(base.len())?)?;
    let above = above.strip_suffix(',').filter(|_| rest.eq_ignore_ascii_case(base))?;
    let is_plain = !base.is_empty()
        && !above.contains(['\\', ';'])
        && above.split(',').all(|part| !part.trim().is_empty());
    is_plain.then_some(above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Case, LoginRules};

    fn login(typed: &str) -> Login {
        let default_domain = Some(Domain::parse("x.org").unwrap());
        let rules = LoginRules {
            default_domain,
            case: Case::Fold,
            separator: "+".into(),
            alias_domains: std::collections::BTreeMap::new(),
        };
        Login::parse(typed.as_bytes(), &rules).unwrap()
    }

    fn matching(attributes: &[&str]) -> Matching {
        let attributes: Vec<String> = attributes.iter().map(|name| (*name).to_owned()).collect();
        Matching::by_attributes(&attributes, Some(Domain::parse("corp.org").unwrap()))
    }

    #[test]
    fn the_local_part_counts_only_for_bare_names_and_the_first_domain() {
        let matching = matching(&["mail", "uid", "proxyAddresses"]);
        for (typed, filter) in [
            ("fry", "(|(mail=fry@x.org)(proxyAddresses=smtp:fry@x.org)(uid=fry))"),
            ("fry@corp.org", "(|(mail=fry@corp.org)(proxyAddresses=smtp:fry@corp.org)(uid=fry))"),
            ("fry@x.org", "(|(mail=fry@x.org)(proxyAddresses=smtp:fry@x.org))"),
            (
                "*)(uid=*@x.org",
                "(|(mail=\\2a\\29\\28uid=\\2a@x.org)(proxyAddresses=smtp:\\2a\\29\\28uid=\\2a@x.org))",
            ),
        ] {
            assert_eq!(matching.filter(&login(typed)).unwrap().as_str(), filter);
        }
        assert_eq!(self::matching(&["uid"]).filter(&login("fry@x.org")), None);
    }

    #[test]
    fn of_several_entries_the_one_with_the_address_in_any_form_is_meant() {
        let person = |dn: &str, mail: &str| {
            let mut person = Person { dn: dn.into(), ..Person::local(1) };
            person.attributes.insert("mail", [mail.as_bytes().into()]);
            person
        };
        let people =
            || vec![person("cn=a", "no address"), person("cn=b", "T\u{308}OM@B\u{fc}cher.org")];
        let matching = matching(&["mail"]);

        let owner = matching.owner(&login("t\u{308}om@xn--bcher-kva.org"), people()).unwrap();
        assert_eq!(&*owner.dn, "cn=b");
        assert!(matching.owner(&login("tom@xn--bcher-kva.org"), people()).is_err());
    }

    #[test]
    fn dns_are_compared_loosely() {
        assert!(same_dn("UID=Fry, OU = People,dc=x", "uid=fry,ou=people,dc=x"));
        assert!(!same_dn("uid=fry,dc=x", "uid=fry\\,dc=x"));
        assert_eq!(depth_below("uid=fry,ou=people,dc=x", "OU=People, DC=x"), Some(1));
        assert_eq!(depth_below("uid=fry,ou=people,dc=x", "dc=x"), Some(2));
        assert_eq!(depth_below("uid=fry,ou=people,dc=x", ""), Some(3));
        assert_eq!(depth_below("uid=fry,dc=y", "dc=x"), None);
        assert_eq!(depth_below("uid=fry\\,dc=x", "dc=x"), None);
        assert_eq!(depth_below("uid=fry,adc=x", "dc=x"), None);
        assert_eq!(depth_below("uid=fry,,dc=x", "dc=x"), Some(1));
        assert_eq!(depth_below("uid=a\\,b,dc=x", "dc=x"), Some(1));
        assert_eq!(depth_below("dc=x", "dc=x"), Some(0));
    }
}
