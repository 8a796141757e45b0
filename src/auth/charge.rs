//! What the guessing shield counts of a decision (docs/login.md, "What a bind means"): of one that was just made, and of
//! one that a line of the journal tells.

use super::{Later, OLD_PASSWORD, Reason, Refused, Verdict};
use crate::throttle::Outcome;

/// A decision, as far as the shield is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// They got in.
    Accepted,
    /// Refused.
    Refused(Refusal),
    /// Nobody could say.
    Later(Reason),
}

/// Why, and what speaks for the one who was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    /// The password was right.
    pub(super) proven: bool,
    /// It was right before it was changed.
    pub(super) old: bool,
}

impl From<&Verdict> for Decision {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Accept(_) => Self::Accepted,
            Verdict::Reject(Refused { reason, proven, detail, .. }) => {
                let old = detail.as_deref() == Some(OLD_PASSWORD);
                Self::Refused(Refusal { reason: *reason, proven: *proven, old })
            }
            Verdict::Unavailable(Later { reason, .. }) => Self::Later(*reason),
        }
    }
}

/// What is learned of a decision; `guess` is the short hash of the password. `None`: nothing at all.
pub(super) fn outcome(decision: Decision, guess: impl FnOnce() -> Option<u16>) -> Option<Outcome> {
    Some(match decision {
        Decision::Accepted => Outcome::Accepted,
        // Whoever was not let try anything learned nothing, and taught us nothing.
        Decision::Refused(Refusal { reason: Reason::Throttled, .. }) => return None,
        Decision::Refused(refusal) => match charge(refusal) {
            Charge::Everybody => Outcome::Failed(guess()),
            Charge::Source => Outcome::FailedAtSource,
            Charge::Nobody => Outcome::Neutral,
        },
        Decision::Later(Reason::BudgetSpent) => Outcome::Unproven(guess()),
        // An outage counts nothing. (Reason::Unproven too may come of one: L-3 has its own count.)
        Decision::Later(_) => Outcome::Neutral,
    })
}

/// Whom a refusal counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charge {
    /// The source and the login.
    Everybody,
    /// Address and net alone: it says nothing about the login's password.
    Source,
    /// Nobody: the password was right, or it is not the client's doing.
    Nobody,
}

fn charge(refusal: Refusal) -> Charge {
    // A client that was not told of a new password guesses nothing.
    if refusal.proven || refusal.old {
        return Charge::Nobody;
    }
    match refusal.reason {
        Reason::BadPasswordForm | Reason::NoPassword | Reason::Unknown | Reason::WrongPassword => {
            Charge::Everybody
        }
        Reason::Ambiguous
        | Reason::Authz
        | Reason::BadName
        | Reason::Disabled
        | Reason::Locked
        | Reason::NotNow => Charge::Source,
        // The others are said to those alone who proved their password, or are not the client's doing.
        _ => Charge::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_person_and_an_outage_cost_nothing() {
        let refused = |reason, proven, old| Decision::Refused(Refusal { reason, proven, old });
        for (decision, expected) in [
            (Decision::Accepted, Some(Outcome::Accepted)),
            (refused(Reason::WrongPassword, false, false), Some(Outcome::Failed(Some(7)))),
            (refused(Reason::WrongPassword, false, true), Some(Outcome::Neutral)),
            (refused(Reason::Unknown, false, false), Some(Outcome::Failed(Some(7)))),
            (refused(Reason::Unknown, true, false), Some(Outcome::Neutral)),
            (refused(Reason::Disabled, false, false), Some(Outcome::FailedAtSource)),
            (refused(Reason::Authz, false, false), Some(Outcome::FailedAtSource)),
            (refused(Reason::Authz, true, false), Some(Outcome::Neutral)),
            (refused(Reason::PasswordExpired, true, false), Some(Outcome::Neutral)),
            (refused(Reason::MailboxDisabled, true, false), Some(Outcome::Neutral)),
            (refused(Reason::Throttled, false, false), None),
            (Decision::Later(Reason::DirectoryUnavailable), Some(Outcome::Neutral)),
            (Decision::Later(Reason::Unproven), Some(Outcome::Neutral)),
            (Decision::Later(Reason::BudgetSpent), Some(Outcome::Unproven(Some(7)))),
        ] {
            assert_eq!(outcome(decision, || Some(7)), expected, "{decision:?}");
        }
    }
}
