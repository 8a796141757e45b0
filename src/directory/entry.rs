//! From an entry to a [`Person`]: ids in their text form, the account's state, the change stamp. Pure.

use std::sync::Arc;

pub use super::answer::{Entry, Malformed};
use super::filter::Filter;
use super::preset::{DisabledRule, Identity};
use crate::config::directory::IdFormat;
use crate::person::{AccountState, Attributes, Person, Stamp};

/// What an entry cannot be used for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// It could not be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The immutable id is missing, doubled, or not of its format.
    #[error("entry {dn}: {attribute} {problem}")]
    Id {
        /// The entry.
        dn: Box<str>,
        /// The id's attribute.
        attribute: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The attributes that tell when the password was changed (login.md M-7).
const CHANGE_ATTRIBUTES: [&str; 3] = ["pwdChangedTime", "pwdLastSet", "krbLastPwdChange"];

/// The attributes that tell of locks and bans.
const STANDING_ATTRIBUTES: [&str; 8] = [
    "pwdAccountLockedTime",
    "lockoutTime",
    "userAccountControl",
    "msDS-User-Account-Control-Computed",
    "accountExpires",
    "nsAccountLock",
    "shadowExpire",
    "krbPasswordExpiration",
];

const AUTH_TYPE: &str = "ipaUserAuthType";

/// All attributes that [`Reader`] looks at beside the id.
pub fn state_attributes() -> impl Iterator<Item = &'static str> {
    CHANGE_ATTRIBUTES.into_iter().chain(STANDING_ATTRIBUTES).chain([AUTH_TYPE])
}

/// How one profile's entries become persons.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The profile's name.
    pub profile: Arc<str>,
    /// Who is who.
    pub identity: Identity,
    /// Whether passwords may be remembered at all.
    pub remember: bool,
    /// Nothing but the id is made of the id's attribute: no person keeps it twice.
    pub id_alone: bool,
}

impl Reader {
    /// Makes the person of an entry. `wall` is the time in seconds since 1970, for accounts that end at some day.
    ///
    /// # Errors
    /// An id that cannot be used: without one nobody can say tomorrow that this is the same person.
    pub fn person(&self, mut entry: Entry, wall: i64) -> Result<Person, EntryError> {
        let attribute = self.identity.id_attribute.as_str();
        let mut values = entry.attributes.values(attribute);
        let id = match (values.next(), values.next()) {
            (None, _) => Err("is missing or not readable"),
            (Some(_), Some(_)) => Err("has several values"),
            (Some(value), None) => {
                show_id(self.identity.id_format, value).ok_or("is not of its format")
            }
        };
        let id = id.map_err(|problem| EntryError::Id {
            dn: entry.dn.clone(),
            attribute: attribute.to_owned(),
            problem,
        })?;
        if self.id_alone {
            entry.attributes.remove(attribute);
        }
        let one_time = !self.remember
            || entry.attributes.texts(AUTH_TYPE).any(|kind| kind.eq_ignore_ascii_case("otp"));
        Ok(Person {
            profile: Arc::clone(&self.profile),
            id: id.into(),
            state: self.state(&entry.attributes, wall),
            stamp: stamp(&entry.attributes),
            dn: entry.dn,
            attributes: entry.attributes,
            one_time,
        })
    }

    /// What the attributes say of the account at this time. (Not of a rule that is a filter: the directory is asked.)
    pub(super) fn state(&self, attributes: &Attributes, wall: i64) -> AccountState {
        let disabled = match self.identity.disabled_rule {
            DisabledRule::AdUac => {
                has_bit(attributes, "userAccountControl", 0x2) || account_ended(attributes, wall)
            }
            DisabledRule::NsAccountLock => {
                attributes.texts("nsAccountLock").any(|value| value.eq_ignore_ascii_case("true"))
            }
            DisabledRule::PwdAccountLockedTime => {
                attributes.texts("pwdAccountLockedTime").any(|value| value == LOCKED_FOR_EVER)
            }
            DisabledRule::ShadowExpire => number(attributes, "shadowExpire")
                .is_some_and(|day| day > 0 && day <= wall.div_euclid(86_400)),
            // The directory is asked about the filter, see profile.rs.
            DisabledRule::Filter(_) | DisabledRule::None => false,
        };
        if disabled {
            AccountState::Disabled
        } else if locked(attributes) {
            AccountState::Locked
        } else {
            AccountState::Active
        }
    }
}

/// slapo-ppolicy: locked until an administrator unlocks.
const LOCKED_FOR_EVER: &str = "000001010000Z";

fn locked(attributes: &Attributes) -> bool {
    if attributes.values("pwdAccountLockedTime").next().is_some() {
        return true;
    }
    // lockoutTime stays after the lock has run out; the computed bits, where readable, know better.
    match number(attributes, "msDS-User-Account-Control-Computed") {
        Some(bits) => bits & 0x10 != 0,
        None => number(attributes, "lockoutTime").is_some_and(|time| time > 0),
    }
}

/// accountExpires: 100 ns since 1601; 0 and 2^63-1 mean never.
fn account_ended(attributes: &Attributes, wall: i64) -> bool {
    const FROM_1601_TO_1970: i64 = 11_644_473_600;
    number(attributes, "accountExpires").is_some_and(|time| {
        time > 0 && time != i64::MAX && time / 10_000_000 - FROM_1601_TO_1970 <= wall
    })
}

/// FreeIPA takes an expired password without a word; the entry tells (krbPasswordExpiration, `20261122215459Z`).
#[must_use]
pub fn kerberos_password_expired(attributes: &Attributes, wall: i64) -> bool {
    attributes
        .texts("krbPasswordExpiration")
        .next()
        .and_then(generalized_time)
        .is_some_and(|expires| expires <= wall)
}

/// Seconds since 1970 of `YYYYMMDDhhmmss[.f]Z`.
pub(super) fn generalized_time(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('Z')?;
    let digits = digits.split_once('.').map_or(digits, |(whole, _)| whole);
    if digits.len() != 14 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| digits.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    Some(days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Days of the proleptic Gregorian calendar (H. Hinnant, `days_from_civil`).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn number(attributes: &Attributes, name: &str) -> Option<i64> {
    attributes.texts(name).next()?.trim().parse().ok()
}

fn has_bit(attributes: &Attributes, name: &str, bit: i64) -> bool {
    number(attributes, name).is_some_and(|bits| bits & bit != 0)
}

/// A digest over what changes with the password or the account's standing; each attribute's absence is a value.
fn stamp(attributes: &Attributes) -> Stamp {
    if !CHANGE_ATTRIBUTES.iter().any(|name| attributes.values(name).next().is_some()) {
        return Stamp::Unreadable;
    }
    let mut hasher = blake3::Hasher::new();
    for name in CHANGE_ATTRIBUTES.into_iter().chain(STANDING_ATTRIBUTES) {
        let values: Vec<&[u8]> = attributes.values(name).collect();
        hasher.update(&values.len().to_le_bytes());
        for value in values {
            hasher.update(&value.len().to_le_bytes());
            hasher.update(value);
        }
    }
    let mut digest = [0; 16];
    hasher.finalize_xof().fill(&mut digest);
    Stamp::At(digest)
}

/// An id's text form; `None` if the bytes are not of the format.
#[must_use]
pub fn show_id(format: IdFormat, value: &[u8]) -> Option<String> {
    match format {
        IdFormat::Binary => (!value.is_empty()).then(|| hex(value)),
        IdFormat::GuidLe => {
            let bytes = swap_guid(value.try_into().ok()?);
            Some(hyphenate(&hex(&bytes)))
        }
        IdFormat::Sid => show_sid(value),
        IdFormat::Text => {
            let text = std::str::from_utf8(value).ok()?;
            (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
        }
        IdFormat::Uuid => {
            let text = std::str::from_utf8(value).ok()?.to_ascii_lowercase();
            unhex(&text.replace('-', "")).filter(|bytes| bytes.len() == 16 && text.len() == 36)?;
            Some(text)
        }
    }
}

/// The filter that finds an id's text form again; `None` if the text is not of the format.
#[must_use]
pub fn id_filter(identity: &Identity, id: &str) -> Option<Filter> {
    let attribute = identity.id_attribute.as_str();
    match identity.id_format {
        IdFormat::Binary => Some(Filter::equals_bytes(attribute, &unhex(id)?)),
        IdFormat::GuidLe => {
            let bytes = swap_guid(unhex(&id.replace('-', ""))?.try_into().ok()?);
            Some(Filter::equals_bytes(attribute, &bytes))
        }
        IdFormat::Sid => Some(Filter::equals_bytes(attribute, &read_sid(id)?)),
        IdFormat::Text | IdFormat::Uuid => Some(Filter::equals(attribute, id)),
    }
}

/// objectGUID: the first three fields are little-endian.
fn swap_guid(bytes: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

pub(super) fn hyphenate(hex: &str) -> String {
    let mut output = String::with_capacity(36);
    for (index, digit) in hex.chars().enumerate() {
        if matches!(index, 8 | 12 | 16 | 20) {
            output.push('-');
        }
        output.push(digit);
    }
    output
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty()
        || !text.len().is_multiple_of(2)
        || !text.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

/// Revision, count, 6 bytes of authority (big-endian), count × 4 bytes (little-endian) → `S-1-5-21-…`.
fn show_sid(value: &[u8]) -> Option<String> {
    let (&[revision, count, a, b, c, d, e, f], rest) = value.split_first_chunk::<8>()?;
    if rest.len() != usize::from(count) * 4 {
        return None;
    }
    let authority = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    let (parts, _) = rest.as_chunks::<4>();
    let parts: String =
        parts.iter().map(|part| format!("-{}", u32::from_le_bytes(*part))).collect();
    Some(format!("S-{revision}-{authority}{parts}"))
}

fn read_sid(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.strip_prefix("S-")?.split('-');
    let revision: u8 = parts.next()?.parse().ok()?;
    let authority: u64 = parts.next()?.parse().ok()?;
    let parts = parts.map(|part| part.parse::<u32>().ok()).collect::<Option<Vec<_>>>()?;
    let mut bytes = vec![revision, u8::try_from(parts.len()).ok()?];
    bytes.extend(authority.to_be_bytes().into_iter().skip(2));
    for part in parts {
        bytes.extend(part.to_le_bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    fn entry(attributes: &[(&str, &[&[u8]])]) -> Entry {
        let mut list = Attributes::default();
        for (name, values) in attributes {
            list.insert(name, values.iter().map(|value| Box::from(*value)));
        }
        Entry { dn: "uid=fry,dc=x".into(), attributes: list }
    }

    fn reader(rule: DisabledRule) -> Reader {
        let identity = Identity {
            id_attribute: "entryUUID".into(),
            id_format: IdFormat::Uuid,
            login_attributes: vec!["mail".into()],
            disabled_rule: rule,
        };
        Reader { profile: "x".into(), identity, remember: true, id_alone: false }
    }

    const UUID: &[u8] = b"0A1B2C3D-0000-103f-8000-000000000001";

    #[test]
    fn ids_have_one_text_form_and_are_found_again() {
        let guid = b"\x04\x03\x02\x01\x06\x05\x08\x07\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10";
        let sid = b"\x01\x02\0\0\0\0\0\x05\x15\0\0\0\xe8\x03\0\0";
        for (format, value, shown, filter) in [
            (
                IdFormat::GuidLe,
                &guid[..],
                "01020304-0506-0708-090a-0b0c0d0e0f10",
                "(i=\\04\\03\\02\\01\\06\\05\\08\\07\\09\\0a\\0b\\0c\\0d\\0e\\0f\\10)",
            ),
            (
                IdFormat::Uuid,
                UUID,
                "0a1b2c3d-0000-103f-8000-000000000001",
                "(i=0a1b2c3d-0000-103f-8000-000000000001)",
            ),
            (
                IdFormat::Sid,
                sid,
                "S-1-5-21-1000",
                "(i=\\01\\02\\00\\00\\00\\00\\00\\05\\15\\00\\00\\00\\e8\\03\\00\\00)",
            ),
            (IdFormat::Binary, b"\x00\xfe", "00fe", "(i=\\00\\fe)"),
            (IdFormat::Text, b"fry*", "fry*", "(i=fry\\2a)"),
        ] {
            let mut identity = reader(DisabledRule::None).identity;
            identity.id_attribute = "i".into();
            identity.id_format = format;
            assert_eq!(show_id(format, value).as_deref(), Some(shown));
            assert_eq!(id_filter(&identity, shown).unwrap().as_str(), filter);
        }
        for (format, value) in [
            (IdFormat::GuidLe, &b"short"[..]),
            (IdFormat::Uuid, b"0a1b2c3d0000103f8000000000000001"),
            (IdFormat::Sid, b"\x01\x05\0\0\0\0\0\x05"),
            (IdFormat::Text, b"\xff"),
            (IdFormat::Text, b""),
            (IdFormat::Binary, b""),
        ] {
            assert_eq!(show_id(format, value), None, "{value:?}");
        }
    }

    #[test]
    fn the_ids_attribute_is_not_kept_where_nothing_else_is_made_of_it() {
        for id_alone in [false, true] {
            let reader = Reader { id_alone, ..reader(DisabledRule::None) };
            let person =
                reader.person(entry(&[("entryUUID", &[UUID]), ("cn", &[b"Fry"])]), 0).unwrap();
            assert!(person.id.as_bytes().eq_ignore_ascii_case(UUID));
            assert_eq!(person.attributes.values("entryUUID").count(), usize::from(!id_alone));
            assert_eq!(person.attributes.values("cn").count(), 1);
        }
    }

    #[test]
    fn an_entry_without_exactly_one_id_is_nobody() {
        let reader = reader(DisabledRule::None);
        for ids in [&[][..], &[UUID, UUID][..], &[&b"x"[..]][..]] {
            assert!(reader.person(entry(&[("entryUUID", ids)]), 0).is_err());
        }
    }

    #[test]
    fn attributes_tell_the_accounts_state() {
        const NOW: i64 = 1_795_000_000; // 2026-11-18
        use AccountState::{Active, Disabled, Locked};
        for (rule, name, value, expected) in [
            (DisabledRule::AdUac, "userAccountControl", "514", Disabled),
            (DisabledRule::AdUac, "userAccountControl", "512", Active),
            (DisabledRule::AdUac, "accountExpires", "0", Active),
            (DisabledRule::AdUac, "accountExpires", "9223372036854775807", Active),
            (DisabledRule::AdUac, "accountExpires", "130000000000000000", Disabled),
            (DisabledRule::AdUac, "accountExpires", "150000000000000000", Active),
            (DisabledRule::AdUac, "msDS-User-Account-Control-Computed", "16", Locked),
            (DisabledRule::None, "lockoutTime", "133000000000000000", Locked),
            (DisabledRule::None, "lockoutTime", "0", Active),
            (DisabledRule::None, "userAccountControl", "514", Active),
            (DisabledRule::None, "pwdAccountLockedTime", "20261118000000Z", Locked),
            (DisabledRule::PwdAccountLockedTime, "pwdAccountLockedTime", "000001010000Z", Disabled),
            (DisabledRule::NsAccountLock, "nsAccountLock", "TRUE", Disabled),
            (DisabledRule::NsAccountLock, "nsAccountLock", "false", Active),
            (DisabledRule::ShadowExpire, "shadowExpire", "1", Disabled),
            (DisabledRule::ShadowExpire, "shadowExpire", "-1", Active),
            (DisabledRule::ShadowExpire, "shadowExpire", "30000", Active),
        ] {
            let found = entry(&[("entryUUID", &[UUID]), (name, &[value.as_bytes()])]);
            let person = reader(rule.clone()).person(found, NOW).unwrap();
            assert_eq!(person.state, expected, "{rule:?} {name}={value}");
        }
    }

    #[test]
    fn lockout_time_that_ran_out_is_no_lock_where_the_computed_bits_say_so() {
        let found = entry(&[
            ("entryUUID", &[UUID]),
            ("lockoutTime", &[b"133000000000000000"]),
            ("msDS-User-Account-Control-Computed", &[b"0"]),
        ]);
        let person = reader(DisabledRule::AdUac).person(found, 0).unwrap();
        assert_eq!(person.state, AccountState::Active);
    }

    #[test]
    fn the_stamp_moves_with_password_and_standing_and_is_unreadable_without_password_times() {
        let reader = reader(DisabledRule::None);
        let stamp = |attributes: &[(&str, &[&[u8]])]| {
            let mut all: Vec<(&str, &[&[u8]])> = vec![("entryUUID", &[UUID])];
            all.extend(attributes);
            reader.person(entry(&all), 0).unwrap().stamp
        };
        let changed: (&str, &[&[u8]]) = ("pwdChangedTime", &[b"20260101000000Z"]);

        assert_eq!(stamp(&[]), Stamp::Unreadable);
        assert_eq!(stamp(&[("pwdAccountLockedTime", &[b"x"])]), Stamp::Unreadable);
        assert_eq!(stamp(&[changed]), stamp(&[changed, ("entryCSN", &[b"1"])]));
        assert_ne!(stamp(&[changed]), stamp(&[("pwdChangedTime", &[b"20260101000001Z"])]));
        assert_ne!(stamp(&[changed]), stamp(&[changed, ("nsAccountLock", &[b"TRUE"])]));
    }

    #[test]
    fn one_time_passwords_are_known_by_attribute_or_setting() {
        let mut reader = reader(DisabledRule::None);
        let person = |reader: &Reader, kind: &[u8]| {
            let found = entry(&[("entryUUID", &[UUID]), ("ipaUserAuthType", &[b"password", kind])]);
            reader.person(found, 0).unwrap().one_time
        };
        assert!(person(&reader, b"otp"));
        assert!(!person(&reader, b"pkinit"));
        reader.remember = false;
        assert!(person(&reader, b"pkinit"));
    }

    #[test]
    fn kerberos_times_are_read() {
        assert_eq!(generalized_time("19700101000000Z"), Some(0));
        assert_eq!(generalized_time("20240229120000Z"), Some(1_709_208_000));
        assert_eq!(generalized_time("20240229120000.5Z"), Some(1_709_208_000));
        assert_eq!(generalized_time("20240229"), None);
        let found = entry(&[("krbPasswordExpiration", &[b"20240229120000Z"])]);
        assert!(kerberos_password_expired(&found.attributes, 1_709_208_000));
        assert!(!kerberos_password_expired(&found.attributes, 1_709_207_999));
        assert!(!kerberos_password_expired(&entry(&[]).attributes, i64::MAX));
    }
}
