//! What a bind's answer means: login.md table B. Pure.

use super::Said;
use super::answer::Outcome;
use super::ber::{element, unsigned};
use crate::person::AccountState;

/// A server's answer to a bind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindReply {
    /// LDAP result code.
    pub code: u32,
    /// The server's own words; Active Directory says here why.
    pub text: String,
    /// The password policy response control, where the server sent one.
    pub policy: Option<Policy>,
}

impl From<Outcome<'_>> for BindReply {
    fn from(outcome: Outcome<'_>) -> Self {
        let policy = outcome.control(POLICY_OID).and_then(parse_policy);
        Self { code: outcome.code, text: outcome.words(), policy }
    }
}

/// The response control of draft-behera-ldap-password-policy, OID [`POLICY_OID`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Grace logins that are left.
    pub grace_remaining: Option<u32>,
    /// 0 passwordExpired, 1 accountLocked, 2 changeAfterReset, …
    pub error: Option<u8>,
}

/// OID of the password policy control; sent non-critical with each bind, else a locked account looks like a wrong
/// password.
pub const POLICY_OID: &str = "1.3.6.1.4.1.42.2.27.8.5.1";

/// The classes of table B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The password is right.
    Accepted(GraceLogins),
    /// Switched off, or past its last day.
    Disabled,
    /// Right, but past its time.
    Expired,
    /// No such entry: it was moved or deleted. Says nothing about the password.
    Gone,
    /// May not log in at this time or this way.
    Locked(Lock),
    /// Right, but another must be set first.
    MustChange,
    /// None of these.
    Odd,
    /// Our own configuration is at fault.
    Ours,
    /// The server cannot answer at present.
    Trouble,
    /// The password is wrong.
    Wrong,
}

/// Whether the server counts down logins with an expired password (login.md B-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraceLogins {
    /// It counts: each bind burns one.
    Counting,
    /// No.
    None,
}

/// Why an account may not log in though nobody switched it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Too many wrong passwords.
    Locked,
    /// Not at this hour or not from this machine.
    NotNow,
}

/// Whether a refusal of a password says more than code 49.
#[must_use]
pub fn said(reply: &BindReply) -> Said {
    let bare = reply.code == 49 && sub_code(&reply.text).is_none();
    if bare { Said::Nothing } else { Said::Plainly }
}

/// Puts a bind's answer into its class.
#[must_use]
pub fn classify(reply: &BindReply) -> Class {
    let policy = reply.policy.unwrap_or_default();
    match reply.code {
        0 => success(policy),
        49 => refused(&reply.text, policy),
        // RFC 4511 §4.2.2 asks for 49; some servers say that the DN is gone.
        32 => Class::Gone,
        // 389 Directory Server: "Exceed password retry limit".
        19 => Class::Locked(Lock::Locked),
        53 => unwilling(&reply.text),
        8 | 13 | 34 => Class::Ours,
        1 | 3 | 10 | 11 | 51 | 52 | 80 => Class::Trouble,
        _ => Class::Odd,
    }
}

/// The class once the entry was read, too: a bare 49 for an account that is locked says nothing about the password
/// (login.md B-1).
#[must_use]
pub fn with_state(class: Class, state: AccountState) -> Class {
    match (class, state) {
        (Class::Ours | Class::Trouble | Class::Odd, _) => class,
        (_, AccountState::Disabled) => Class::Disabled,
        (Class::Wrong, AccountState::Locked) => Class::Locked(Lock::Locked),
        _ => class,
    }
}

fn success(policy: Policy) -> Class {
    match (policy.error, policy.grace_remaining) {
        (Some(2), _) => Class::MustChange,
        (_, Some(_)) => Class::Accepted(GraceLogins::Counting),
        (Some(0), None) => Class::Expired,
        _ => Class::Accepted(GraceLogins::None),
    }
}

fn refused(text: &str, policy: Policy) -> Class {
    match policy.error {
        Some(0) => return Class::Expired,
        Some(1) => return Class::Locked(Lock::Locked),
        Some(2) => return Class::MustChange,
        _ => {}
    }
    match sub_code(text) {
        None | Some(0x525 | 0x52e) => Class::Wrong,
        Some(0x533 | 0x701) => Class::Disabled,
        Some(0x775) => Class::Locked(Lock::Locked),
        Some(0x530 | 0x531) => Class::Locked(Lock::NotNow),
        Some(0x532) => Class::Expired,
        Some(0x773) => Class::MustChange,
        Some(_) => Class::Odd,
    }
}

/// Code 53 of 389 Directory Server and FreeIPA, sent before the password is looked at.
fn unwilling(text: &str) -> Class {
    let text = text.to_ascii_lowercase();
    if text.contains("failed logins exceeded") {
        Class::Locked(Lock::Locked)
    } else if text.contains("inactivated") || text.contains("is expired") {
        Class::Disabled
    } else {
        Class::Odd
    }
}

/// Active Directory's reason: `80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 52e, v1db1`.
fn sub_code(text: &str) -> Option<u32> {
    let (_, after) = text.split_once("data ")?;
    let (digits, _) = after.split_once(',')?;
    u32::from_str_radix(digits, 16).ok()
}

/// Reads the value of the response control; `None` for what is none.
///
/// Seen: `30 00` nothing to say, `30 03 81 01 01` locked, `30 05 a0 03 81 01 02` two grace logins left.
#[must_use]
pub fn parse_policy(value: &[u8]) -> Option<Policy> {
    let (0x30, body, _) = element(value)? else { return None };
    let mut policy = Policy::default();
    let mut rest = body;
    while !rest.is_empty() {
        let (tag, content, after) = element(rest)?;
        match tag {
            // warning [0] CHOICE { timeBeforeExpiration [0], graceAuthNsRemaining [1] }
            0xa0 => {
                let (kind, number, _) = element(content)?;
                if kind == 0x81 {
                    policy.grace_remaining = Some(unsigned(number)?);
                }
            }
            0x81 => policy.error = u8::try_from(unsigned(content)?).ok(),
            _ => {}
        }
        rest = after;
    }
    Some(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(code: u32, text: &str, policy: Option<&[u8]>) -> Class {
        let policy = policy.map(|value| parse_policy(value).unwrap());
        classify(&BindReply { code, text: text.into(), policy })
    }

    #[test]
    fn codes_and_sub_codes_fall_into_the_classes_of_table_b() {
        let ad = |data: &str| {
            format!(
                "80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data {data}, v1db1"
            )
        };
        for (code, text, expected) in [
            (0, String::new(), Class::Accepted(GraceLogins::None)),
            (49, String::new(), Class::Wrong),
            (49, ad("52e"), Class::Wrong),
            (49, ad("525"), Class::Wrong),
            (49, ad("530"), Class::Locked(Lock::NotNow)),
            (49, ad("531"), Class::Locked(Lock::NotNow)),
            (49, ad("532"), Class::Expired),
            (49, ad("533"), Class::Disabled),
            (49, ad("701"), Class::Disabled),
            (49, ad("773"), Class::MustChange),
            (49, ad("775"), Class::Locked(Lock::Locked)),
            (49, ad("57"), Class::Odd),
            (
                19,
                "Exceed password retry limit. Contact system administrator".into(),
                Class::Locked(Lock::Locked),
            ),
            (53, "Account inactivated. Contact system administrator.".into(), Class::Disabled),
            (53, "Too many failed logins exceeded.".into(), Class::Locked(Lock::Locked)),
            (53, "Account (Kerberos principal) is expired".into(), Class::Disabled),
            (53, "unauthenticated bind (DN with no password) disallowed".into(), Class::Odd),
            (32, String::new(), Class::Gone),
            (8, "BindSimple: Transport encryption required.".into(), Class::Ours),
            (13, String::new(), Class::Ours),
            (34, "invalid DN".into(), Class::Ours),
            (1, String::new(), Class::Trouble),
            (10, String::new(), Class::Trouble),
            (51, String::new(), Class::Trouble),
            (52, String::new(), Class::Trouble),
            (80, String::new(), Class::Trouble),
            (2, String::new(), Class::Odd),
        ] {
            assert_eq!(class(code, &text, None), expected, "{code} {text}");
        }
    }

    #[test]
    fn the_password_policy_control_says_what_the_code_does_not() {
        for (code, value, expected) in [
            (0, &b"\x30\x00"[..], Class::Accepted(GraceLogins::None)),
            (0, b"\x30\x05\xa0\x03\x81\x01\x02", Class::Accepted(GraceLogins::Counting)),
            (
                0,
                b"\x30\x08\xa0\x03\x81\x01\x02\x81\x01\x00",
                Class::Accepted(GraceLogins::Counting),
            ),
            (0, b"\x30\x06\xa0\x04\x80\x02\x0e\x10", Class::Accepted(GraceLogins::None)),
            (0, b"\x30\x03\x81\x01\x02", Class::MustChange),
            (49, b"\x30\x00", Class::Wrong),
            (49, b"\x30\x03\x81\x01\x01", Class::Locked(Lock::Locked)),
            (49, b"\x30\x03\x81\x01\x00", Class::Expired),
        ] {
            assert_eq!(class(code, "", Some(value)), expected, "{code} {value:02x?}");
        }
    }

    #[test]
    fn a_broken_control_is_no_control() {
        for value in
            [&b""[..], b"\x30", b"\x30\x05", b"\x04\x00", b"\x30\x02\x81\x00", b"\x30\x02\xa0\x00"]
        {
            assert_eq!(parse_policy(value), None, "{value:02x?}");
        }
    }

    #[test]
    fn the_entry_has_its_say() {
        use AccountState::{Active, Disabled, Locked};
        let accepted = Class::Accepted(GraceLogins::None);
        for (class, state, expected) in [
            (Class::Wrong, Active, Class::Wrong),
            (Class::Wrong, Locked, Class::Locked(Lock::Locked)),
            (Class::Wrong, Disabled, Class::Disabled),
            (Class::Gone, Locked, Class::Gone),
            (Class::Gone, Disabled, Class::Disabled),
            // The lock ran out, but the entry still tells of it.
            (accepted, Locked, accepted),
            (accepted, Disabled, Class::Disabled),
            (Class::Trouble, Disabled, Class::Trouble),
        ] {
            assert_eq!(with_state(class, state), expected);
        }
    }
}
