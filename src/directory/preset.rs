//! What a kind of directory server takes for granted: fills what a profile leaves out. Pure.

use crate::config::directory::{Directory, IdFormat, Preset};

use super::filter::{Filter, FilterError};

/// Who is who, nothing left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The immutable id's attribute.
    pub id_attribute: String,
    /// How its bytes are shown.
    pub id_format: IdFormat,
    /// Attributes a login is compared with.
    pub login_attributes: Vec<String>,
    /// What disables an account.
    pub disabled_rule: DisabledRule,
}

/// What disables an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisabledRule {
    /// The bits of userAccountControl, and accountExpires.
    AdUac,
    /// Whoever matches this filter.
    Filter(Filter),
    /// Nothing but the bind's answer.
    None,
    /// nsAccountLock: TRUE
    NsAccountLock,
    /// pwdAccountLockedTime: 000001010000Z, the permanent lock.
    PwdAccountLockedTime,
    /// The day after which a shadow account is off.
    ShadowExpire,
}

impl std::fmt::Display for DisabledRule {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AdUac => formatter.write_str("ad-uac"),
            Self::Filter(filter) => write!(formatter, "filter:{}", filter.as_str()),
            Self::None => formatter.write_str("none"),
            Self::NsAccountLock => formatter.write_str("nsAccountLock"),
            Self::PwdAccountLockedTime => formatter.write_str("pwdAccountLockedTime"),
            Self::ShadowExpire => formatter.write_str("shadowExpire"),
        }
    }
}

/// A rule that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The filter after `filter:` is wrong.
    #[error("filter: {0}")]
    Filter(#[from] FilterError),
    /// No such rule.
    #[error(
        "expected ad-uac, nsAccountLock, pwdAccountLockedTime, shadowExpire, none or filter:(…)"
    )]
    Unknown,
}

/// The profile's identity with the preset's values where it has none.
///
/// # Errors
/// A `disabled_rule` that is none.
pub fn identity(section: &Directory) -> Result<Identity, RuleError> {
    let own = &section.identity;
    let (id_attribute, id_format, login_attributes, rule) = defaults(section.preset);
    let id_attribute =
        if own.id_attribute.is_empty() { id_attribute } else { own.id_attribute.as_str() };
    let id_format = own.id_format.unwrap_or_else(|| {
        if own.id_attribute.is_empty() { id_format } else { usual_format(id_attribute) }
    });
    let login_attributes = if own.login_attributes.is_empty() {
        login_attributes.iter().map(|name| (*name).to_owned()).collect()
    } else {
        own.login_attributes.clone()
    };
    let rule = if own.disabled_rule.is_empty() { rule } else { own.disabled_rule.as_str() };
    Ok(Identity {
        id_attribute: id_attribute.to_owned(),
        id_format,
        login_attributes,
        disabled_rule: parse_rule(rule)?,
    })
}

type Defaults = (&'static str, IdFormat, &'static [&'static str], &'static str);

fn defaults(preset: Preset) -> Defaults {
    match preset {
        Preset::ActiveDirectory | Preset::Samba => (
            "objectGUID",
            IdFormat::GuidLe,
            &["mail", "userPrincipalName", "sAMAccountName"],
            "ad-uac",
        ),
        Preset::FreeIpa => ("ipaUniqueID", IdFormat::Uuid, &["mail", "uid"], "nsAccountLock"),
        Preset::Generic => ("entryUUID", IdFormat::Uuid, &["mail"], "none"),
        Preset::OpenLdap => ("entryUUID", IdFormat::Uuid, &["mail", "uid"], "pwdAccountLockedTime"),
        // nsUniqueId has four groups of eight digits: no UUID, though as unique.
        Preset::ThreeEightNine => ("nsUniqueId", IdFormat::Text, &["mail", "uid"], "nsAccountLock"),
    }
}

/// The filter of a place that leaves everything in: where contacts and groups carry addresses, too, they are no
/// people.
#[must_use]
pub fn usual_filter(preset: Preset) -> Filter {
    match preset {
        Preset::ActiveDirectory | Preset::Samba => {
            Filter::equals("objectCategory", "person").and(&Filter::equals("objectClass", "user"))
        }
        _ => Filter::any(),
    }
}

/// The format of an attribute that was named without one.
fn usual_format(attribute: &str) -> IdFormat {
    match attribute.to_ascii_lowercase().as_str() {
        "objectguid" => IdFormat::GuidLe,
        "objectsid" => IdFormat::Sid,
        "entryuuid" | "ipauniqueid" => IdFormat::Uuid,
        "ms-ds-consistencyguid" => IdFormat::Binary,
        _ => IdFormat::Text,
    }
}

fn parse_rule(text: &str) -> Result<DisabledRule, RuleError> {
    if let Some(filter) = text.strip_prefix("filter:") {
        return Ok(DisabledRule::Filter(Filter::parse(filter)?));
    }
    match text.to_ascii_lowercase().as_str() {
        "ad-uac" => Ok(DisabledRule::AdUac),
        "none" => Ok(DisabledRule::None),
        "nsaccountlock" => Ok(DisabledRule::NsAccountLock),
        "pwdaccountlockedtime" => Ok(DisabledRule::PwdAccountLockedTime),
        "shadowexpire" => Ok(DisabledRule::ShadowExpire),
        _ => Err(RuleError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_fills_only_what_is_left_out() {
        let mut section = Directory { preset: Preset::ActiveDirectory, ..Directory::default() };
        let filled = identity(&section).unwrap();
        assert_eq!(filled.id_attribute, "objectGUID");
        assert_eq!(filled.id_format, IdFormat::GuidLe);
        assert_eq!(filled.login_attributes, ["mail", "userPrincipalName", "sAMAccountName"]);
        assert_eq!(filled.disabled_rule, DisabledRule::AdUac);

        section.identity.id_attribute = "objectSid".into();
        section.identity.login_attributes = vec!["mail".into()];
        section.identity.disabled_rule = "filter:(title=gone)".into();
        let own = identity(&section).unwrap();
        assert_eq!((own.id_attribute.as_str(), own.id_format), ("objectSid", IdFormat::Sid));
        assert_eq!(own.login_attributes, ["mail"]);
        assert_eq!(own.disabled_rule, DisabledRule::Filter(Filter::equals("title", "gone")));
    }

    #[test]
    fn an_unknown_rule_is_refused() {
        let mut section = Directory::default();
        for rule in ["uac", "filter:", "filter:(|)"] {
            section.identity.disabled_rule = rule.into();
            assert!(identity(&section).is_err(), "{rule}");
        }
    }
}
