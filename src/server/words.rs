//! What each reason becomes on Dovecot's auth protocol: one table (login.md D-1), printed in
//! docs/protocols/dovecot.md and compared by a test there.

use crate::auth::{Reason, Refused};
use crate::proto::dovecot::auth::FailCode;

/// Code and text of a `FAIL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) code: Option<FailCode>,
    pub(super) text: Option<&'static str>,
}

const PLAIN: Words = Words { code: None, text: None };

/// The words for a refusal. Anything beyond "failed" is said only to those who proved the password (login.md O-7).
pub(super) fn of(refused: &Refused) -> Words {
    if refused.proven { proven(refused.reason) } else { unproven(refused.reason) }
}

fn unproven(reason: Reason) -> Words {
    match reason {
        Reason::Authz => Words { code: Some(FailCode::AuthzFail), text: None },
        _ => PLAIN,
    }
}

fn proven(reason: Reason) -> Words {
    let disabled = |text| Words { code: Some(FailCode::UserDisabled), text: Some(text) };
    match reason {
        // No text: with one, IMAP would say ALERT instead of EXPIRED.
        Reason::PasswordExpired | Reason::MustChange => {
            Words { code: Some(FailCode::PassExpired), text: None }
        }
        Reason::Authz => unproven(reason),
        Reason::ProtocolNotAllowed => disabled("This account may not use this protocol"),
        Reason::MailboxDisabled
        | Reason::Inactive
        | Reason::DeliveryOnly
        | Reason::DomainInactive => disabled("This mailbox is disabled"),
        Reason::NoTemplate
        | Reason::NoAddress
        | Reason::BadAddress
        | Reason::DomainUnknown
        | Reason::DomainFull
        | Reason::QuotaExceeded
        | Reason::IdChanged
        | Reason::AddressTaken
        | Reason::CreationOff
        | Reason::ProviderMismatch
        | Reason::TemplateUnmatched => disabled("There is no mailbox for this account"),
        _ => PLAIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Source;

    /// The table as docs/protocols/dovecot.md prints it.
    fn table() -> String {
        let mut lines = String::from("| reason | password proven | `FAIL` |\n|---|---|---|\n");
        for proven in [true, false] {
            for &reason in Reason::ALL {
                let words = of(&Refused { proven, ..Refused::new(reason, Source::Directory) });
                if words == PLAIN {
                    continue;
                }
                let code = words.code.map(|code| format!("`code={}`", code.as_str()));
                let text = words.text.map(|text| format!("`reason={text}`"));
                let said = [code, text].into_iter().flatten().collect::<Vec<_>>().join(" ");
                let proven = if proven { "yes" } else { "no" };
                lines += &format!("| {} | {proven} | {said} |\n", reason.as_str());
            }
        }
        lines
    }

    #[test]
    fn the_table_of_reasons_stands_in_the_docs() {
        let docs = include_str!("../../docs/protocols/dovecot.md");
        assert!(docs.contains(&table()), "docs/protocols/dovecot.md must hold:\n{}", table());
    }

    #[test]
    fn a_stranger_hears_no_more_than_failed() {
        for &reason in Reason::ALL {
            let words = of(&Refused::new(reason, Source::Directory));
            assert_eq!(words.text, None, "{reason:?}");
        }
    }
}
