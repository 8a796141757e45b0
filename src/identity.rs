//! Names, parsed once and never re-checked: the login that was typed, mail addresses, mail domains.
//! The rules are login.md N-1 to N-5.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

/// The longest name that is looked at, in bytes (64 + `@` + 255).
pub const MAX_NAME_BYTES: usize = 320;

/// A mail domain in its one form: lower-case A-labels (`xn--…`), no trailing dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Parses a domain as typed; U-labels become A-labels (UTS 46, as browsers and mail clients do).
    ///
    /// # Errors
    /// [`NameError::BadDomain`] for what is no domain name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if is_plain_domain(text.as_bytes()) {
            return Ok(Self(text.into()));
        }
        let ascii = idna::domain_to_ascii_strict(text).map_err(|_| NameError::BadDomain)?;
        if ascii.is_empty() || ascii.len() > 253 {
            return Err(NameError::BadDomain);
        }
        Ok(Self(ascii.into()))
    }

    /// The A-label form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Domain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A mail address in its one form: `local@domain`, the local part NFC and (by setting) ASCII-lower-cased.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    full: Arc<str>,
    at: usize,
    domain: Domain,
}

impl Address {
    /// Parses `local@domain`, split at the last `@`. `lowercase` folds the ASCII letters of the local part.
    ///
    /// # Errors
    /// What is wrong with it; see [`NameError`].
    pub fn parse(text: &str, case: Case) -> Result<Self, NameError> {
        check_bytes(text)?;
        let (local, domain) = text.rsplit_once('@').ok_or(NameError::NoDomain)?;
        Self::from_parts(local, Domain::parse(domain)?, case)
    }

    fn from_parts(local: &str, domain: Domain, case: Case) -> Result<Self, NameError> {
        if local.is_empty() {
            return Err(NameError::BadLocalPart);
        }
        // ASCII is NFC already, and nearly all names are. A small letter may join a mark that its capital stands apart
        // from (T with a diaeresis has no letter of its own, t has), and a sign may become a capital (K for Kelvin):
        // NFC before and after.
        let local: String = match case {
            Case::Keep if local.is_ascii() => local.to_owned(),
            Case::Keep => local.nfc().collect(),
            Case::Fold if local.is_ascii() => local.to_ascii_lowercase(),
            Case::Fold => local.nfc().map(|letter| letter.to_ascii_lowercase()).nfc().collect(),
        };
        let at = local.len();
        let full = format!("{local}@{domain}");
        if full.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        Ok(Self { full: full.into(), at, domain })
    }

    /// The same local part in another domain.
    ///
    /// # Errors
    /// It is too long there.
    pub fn in_domain(&self, domain: &Domain) -> Result<Self, NameError> {
        Self::from_parts(self.local(), domain.clone(), Case::Keep)
    }

    /// `local@domain`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The same text, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.full)
    }

    /// The part before the last `@`.
    #[must_use]
    pub fn local(&self) -> &str {
        self.full.get(..self.at).unwrap_or_default()
    }

    /// The part after the last `@`.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Keeps no text of its own for its domain: this one, which is equal, is shared.
    pub(crate) fn share_domain(&mut self, domain: &Domain) {
        if self.domain == *domain {
            self.domain = domain.clone();
        }
    }

    /// Whether the local part may stand in a path or a userdb field (login.md N-5).
    #[must_use]
    pub fn is_safe_in_path(&self) -> bool {
        let local = self.local();
        !local.starts_with('.') && !local.contains('/') && !local.chars().any(char::is_control)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.full)
    }
}

/// What becomes of the ASCII letters of a local part (`login.lowercase`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// To lower case.
    Fold,
    /// Left as typed.
    Keep,
}

/// How a name typed becomes a [`Login`] (the `[login]` section).
#[derive(Clone, Debug)]
pub struct LoginRules {
    /// Added to a name without `@`; none: such names are refused.
    pub default_domain: Option<Domain>,
    /// What becomes of ASCII letters.
    pub case: Case,
    /// `user+detail` logs in as `user`; empty: no such thing.
    pub separator: Box<str>,
    /// Domains that are other names of others, and that no directory knows: `user@this` logs in as `user@that`.
    pub alias_domains: BTreeMap<Domain, Domain>,
}

/// A name somebody typed, in its one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The address it stands for, detail removed.
    pub address: Address,
    /// Typed without `@`: attributes such as `uid` may be compared with the local part (login.md N-4).
    pub bare: bool,
}

impl Login {
    /// Parses a name as a door received it.
    ///
    /// # Errors
    /// [`NameError`]; nothing was asked yet.
    ///
    /// ```
    /// use gatepost::identity::{Case, Domain, Login, LoginRules};
    /// let rules = LoginRules {
    ///     default_domain: Some(Domain::parse("Planetexpress.com").unwrap()),
    ///     case: Case::Fold,
    ///     separator: "+".into(),
    ///     alias_domains: Default::default(),
    /// };
    /// let login = Login::parse(b"Fry+spam", &rules).unwrap();
    /// assert_eq!(login.address.as_str(), "fry@planetexpress.com");
    /// assert!(login.bare);
    /// ```
    pub fn parse(typed: &[u8], rules: &LoginRules) -> Result<Self, NameError> {
        if typed.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        let text = std::str::from_utf8(typed).map_err(|_| NameError::NotText)?;
        check_bytes(text)?;
        let (local, domain, bare) = match text.rsplit_once('@') {
            Some((local, domain)) => (local, Domain::parse(domain)?, false),
            None => {
                let domain = rules.default_domain.clone().ok_or(NameError::NoDomain)?;
                // DOMAIN\user, the down-level name of Windows (login.md N-2): the directory knows the user part.
                let user = text.rsplit_once('\\').map_or(text, |(_, user)| user);
                check_bytes(user)?;
                (user, domain, true)
            }
        };
        let local = strip_detail(local, &rules.separator);
        let domain = rules.alias_domains.get(&domain).cloned().unwrap_or(domain);
        Ok(Self { address: Address::from_parts(local, domain, rules.case)?, bare })
    }
}

impl LoginRules {
    /// The address that a plain name with a domain stands for, as [`Login::parse`] makes it, without an allocation:
    /// nearly all names typed are plain. `None`: ask [`Login::parse`].
    pub fn plain<'b>(&self, typed: &[u8], buffer: &'b mut [u8; MAX_NAME_BYTES]) -> Option<&'b str> {
        let form = buffer.get_mut(..typed.len())?;
        form.copy_from_slice(typed);
        let at = memchr::memrchr(b'@', form)?;
        let (local, domain) = form.split_at_mut_checked(at)?;
        let domain = domain.get_mut(1..)?;
        domain.make_ascii_lowercase();
        if self.case == Case::Fold {
            local.make_ascii_lowercase();
        }
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        // A separator of other letters cannot stand in a plain name.
        let separator = self.separator.as_bytes();
        let may_have_detail = separator.iter().all(is_plain)
            && local.windows(separator.len().max(1)).any(|part| part == separator);
        if local.is_empty()
            || !local.iter().fold(true, |all, byte| all & is_plain(byte))
            || may_have_detail
            || !is_plain_domain(domain)
        {
            return None;
        }
        let address = std::str::from_utf8(form).ok()?;
        let is_other_name = self.alias_domains.contains_key(address.get(at + 1..)?);
        (!is_other_name).then_some(address)
    }
}

/// Why a name is refused before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The part after the last `@` is no domain name.
    #[error("the part after the last @ is no domain name")]
    BadDomain,
    /// The part before the last `@` is empty.
    #[error("the part before the @ is empty")]
    BadLocalPart,
    /// Blanks at either end.
    #[error("blank at the start or end")]
    Blank,
    /// A control byte: NUL, 0x01, TAB, CR, LF …
    #[error("control byte in the name")]
    ControlByte,
    /// No `@`, and there is no default domain.
    #[error("no @ in the name and no default domain")]
    NoDomain,
    /// Not UTF-8.
    #[error("not valid UTF-8")]
    NotText,
    /// More than 320 bytes.
    #[error("longer than 320 bytes")]
    TooLong,
}

fn check_bytes(text: &str) -> Result<(), NameError> {
    if text.len() > MAX_NAME_BYTES {
        Err(NameError::TooLong)
    } else if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else if text.chars().any(char::is_control) {
        Err(NameError::ControlByte)
    } else if text.trim() != text {
        Err(NameError::Blank)
    } else {
        Ok(())
    }
}

/// Whether a domain is in its one form already: labels of lower-case letters, digits and hyphens within. One with a
/// label like `xn--…` is left to those who know.
fn is_plain_domain(text: &[u8]) -> bool {
    let is_letter = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let is_plain = |label: &[u8]| {
        let letters = label.iter().fold(true, |all, byte| all & is_letter(byte));
        let ends = label.first() != Some(&b'-') && label.last() != Some(&b'-');
        letters && ends && (1..=63).contains(&label.len()) && label.get(2..4) != Some(b"--")
    };
    text.len() <= 253 && text.split(|byte| *byte == b'.').all(is_plain)
}

/// `user+detail` → `user`. A name that begins with the separator has no user part and is left alone.
fn strip_detail<'a>(local: &'a str, separator: &str) -> &'a str {
    if separator.is_empty() {
        return local;
    }
    match local.split_once(separator) {
        Some((user, _)) if !user.is_empty() => user,
        _ => local,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(default_domain: Option<&str>) -> LoginRules {
        LoginRules {
            default_domain: default_domain.map(|domain| Domain::parse(domain).unwrap()),
            case: Case::Fold,
            separator: "+".into(),
            alias_domains: BTreeMap::from([(
                Domain::parse("other.example").unwrap(),
                Domain::parse("example.org").unwrap(),
            )]),
        }
    }

    #[test]
    fn names_take_one_form() {
        let rules = rules(Some("example.org"));
        for (typed, address) in [
            ("Amy@Example.ORG", "amy@example.org"),
            ("amy", "amy@example.org"),
            ("Amy+x@Other.Example", "amy@example.org"),
            ("amy+lists@example.org", "amy@example.org"),
            ("+amy@example.org", "+amy@example.org"),
            ("CORP\\amy", "amy@example.org"),
            ("a@b@example.org", "a@b@example.org"),
            ("amy@BÜCHER.example", "amy@xn--bcher-kva.example"),
            ("amy@xn--bcher-kva.example", "amy@xn--bcher-kva.example"),
            ("Ämy@example.org", "Ämy@example.org"),
            ("A\u{308}my@example.org", "Ämy@example.org"),
            ("T\u{308}om@example.org", "\u{1e97}om@example.org"),
            ("\u{212a}if@example.org", "kif@example.org"),
            ("user%@x", "user%@x"),
            ("*()\\@example.org", "*()\\@example.org"),
        ] {
            let login = Login::parse(typed.as_bytes(), &rules);
            assert_eq!(
                login.map(|login| login.address.to_string()),
                Ok(address.to_owned()),
                "{typed}"
            );
        }
    }

    proptest! {
        #[test]
        fn an_address_is_in_its_one_form(
            local in "([A-Za-z]|[\u{300}-\u{345}]|\u{212a}|\u{212b}|[À-ɏ]|[Ḁ-ỹ]){1,8}",
            fold: bool,
        ) {
            let case = if fold { Case::Fold } else { Case::Keep };
            let address = Address::parse(&format!("{local}@example.org"), case).unwrap();
            prop_assert_eq!(Address::parse(address.as_str(), case), Ok(address.clone()));
        }

        #[test]
        fn a_plain_name_is_what_the_long_way_makes_of_it(
            local in "[a-zA-Z0-9._+-]{0,12}",
            domain in "([a-zA-Z0-9-]{0,5}\\.){0,2}(example\\.org|other\\.example|[a-z0-9.-]{0,70})",
            fold: bool,
        ) {
            let case = if fold { Case::Fold } else { Case::Keep };
            let rules = LoginRules { case, ..rules(None) };
            let typed = format!("{local}@{domain}");
            let mut buffer = [0; MAX_NAME_BYTES];
            let plain = rules.plain(typed.as_bytes(), &mut buffer).map(str::to_owned);
            let parsed = Login::parse(typed.as_bytes(), &rules).ok();
            let parsed = parsed.map(|login| login.address.to_string());
            prop_assert!(plain.is_none() || plain == parsed, "{plain:?} {parsed:?}");
        }

        #[test]
        fn a_plain_domain_is_what_the_library_makes_of_it(
            text in prop_oneof!["[a-z0-9.-]{0,20}", "(xn--|a-b|[a-z]{0,64}|0|\\.){0,6}"],
        ) {
            let ours = is_plain_domain(text.as_bytes());
            let theirs = idna::domain_to_ascii_strict(&text).ok();
            prop_assert!(!ours || theirs.as_deref() == Some(&*text), "{text} {theirs:?}");
        }
    }

    #[test]
    fn nearly_every_name_is_plain() {
        let rules = rules(Some("example.org"));
        let mut buffer = [0; MAX_NAME_BYTES];
        let plain = rules.plain(b"Amy.Wong-1@Mars.Example.ORG", &mut buffer);
        assert_eq!(plain, Some("amy.wong-1@mars.example.org"));
        for long in ["amy", "amy+x@example.org", "amy@other.example", "amy@xn--a.example", "@x.org"]
        {
            assert_eq!(rules.plain(long.as_bytes(), &mut buffer), None, "{long}");
        }
    }

    #[test]
    fn a_blank_behind_a_windows_domain_is_one_at_the_start() {
        let parsed = Login::parse(b"CORP\\ amy", &rules(Some("example.org")));
        assert_eq!(parsed, Err(NameError::Blank));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (typed, why) in [
            (&b" amy@example.org"[..], NameError::Blank),
            (b"amy@example.org ", NameError::Blank),
            (b"a\0my@example.org", NameError::ControlByte),
            (b"a\tmy@example.org", NameError::ControlByte),
            (b"a\x01my@example.org", NameError::ControlByte),
            (b"\xff@example.org", NameError::NotText),
            (b"@example.org", NameError::BadLocalPart),
            (b"amy@", NameError::BadDomain),
            (b"amy@exa mple.org", NameError::BadDomain),
            (b"amy", NameError::NoDomain),
            (&[b'a'; 400], NameError::TooLong),
        ] {
            assert_eq!(Login::parse(typed, &rules(None)).err(), Some(why), "{typed:?}");
        }
    }

    #[test]
    fn a_local_part_that_could_leave_its_directory_is_not_safe_in_a_path() {
        for (text, safe) in [("amy@x", true), ("../a@x", false), (".a@x", false), ("a/b@x", false)]
        {
            assert_eq!(Address::parse(text, Case::Fold).unwrap().is_safe_in_path(), safe, "{text}");
        }
    }
}
