//! Leave to bind as somebody: what the budget allows, and what memory does not answer better (login.md L-1).

use std::sync::{Arc, Mutex, PoisonError};

use super::Authenticator;
use super::budget::{Allowance, Reserved};
use super::gate::{Net, Standing};
use super::memory::{Digest, Record, account_key};
use super::{Setup, gate};
use crate::clock;
use crate::directory::{Answer, Leave, Lockout, Profile};
use crate::secret::Password;

/// Leave for one question's binds. One is paid for, however many there are: the one that counts in the directory is the
/// last, at the entry's place (login.md Q-2).
pub(super) struct BindLeave {
    pub(super) core: Arc<Authenticator>,
    pub(super) setup: Arc<Setup>,
    pub(super) profile: Arc<Profile>,
    pub(super) password: Password,
    pub(super) net: Net,
    pub(super) reserved: Mutex<Option<Reserved>>,
}

impl std::fmt::Debug for BindLeave {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BindLeave").field("net", &self.net).finish_non_exhaustive()
    }
}

impl BindLeave {
    fn reserved(&self) -> std::sync::MutexGuard<'_, Option<Reserved>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave for BindLeave {
    fn to_bind(&self, id: &str) -> bool {
        let account = account_key(self.profile.name(), id);
        let mut reserved = self.reserved();
        if reserved.as_ref().is_some_and(|reserved| reserved.account() == account) {
            return true;
        }
        let now = clock::now();
        let record = self.core.memory.account(&account);
        let digest = self.core.memory.digest(&account, &self.password);
        if let Some(record) = &record {
            // Spellings that lead to one account do not multiply binds (login.md N-4).
            let newest = self.setup.newest(&record.person());
            if newest.is_some_and(|newest| record.refuses(&digest, newest, self.setup.terms, now)) {
                return false;
            }
        }
        let standing = share(record.as_deref(), &digest, &self.net);
        let allowance = self.setup.allowance(&self.profile);
        *reserved = self.core.budgets.take(&account, allowance, standing, now);
        reserved.is_some()
    }

    fn heard(&self, answer: &Answer) {
        let Some(reserved) = self.reserved().take() else { return };
        match answer {
            // An odd answer may be a refusal, too.
            Answer::Wrong { .. } | Answer::Odd { .. } => reserved.wrong(clock::now()),
            Answer::Accepted { .. } => reserved.accepted(),
            // No word, or none about the password.
            _ => drop(reserved),
        }
    }
}

/// Who may use the reserved bind: nets that were let in before, and whoever has a password that was proven and that
/// nothing speaks against.
pub(super) fn standing(record: Option<&Record>, digest: &Digest, net: &Net) -> Standing {
    match record {
        Some(record) if record.knows(net) || record.is_proven(digest) => Standing::Known,
        _ => Standing::Stranger,
    }
}

/// The same for the budget. Nothing is kept back from strangers at an account that nobody was let in to yet: there is
/// nobody to keep it for, and a person's first login may begin with a typing error.
fn share(record: Option<&Record>, digest: &Digest, net: &Net) -> Standing {
    match record {
        Some(record) if record.had_success() => standing(Some(record), digest, net),
        _ => Standing::Known,
    }
}

impl Setup {
    /// What may be spent on an account of this directory: one less than locks it there, where that could be read.
    pub(super) fn allowance(&self, profile: &Profile) -> Allowance {
        let configured = self.wrong_binds.get(&**profile.name()).copied();
        let (count, window) = configured.unwrap_or((1, None));
        match profile.lockout() {
            Lockout::Limit(limit) => Allowance::new(limit.failures.saturating_sub(1), limit.window),
            Lockout::NoneKnown => Allowance::new(count, window),
            // It is read as soon as one password was wrong.
            Lockout::Unread => Allowance::new(1, window),
        }
    }
}

impl Authenticator {
    /// Whether the account's budget is spent for this password from this net.
    pub(super) fn is_spent(
        &self,
        setup: &Setup,
        record: &Record,
        digest: &Digest,
        net: &gate::Net,
    ) -> bool {
        let person = record.person();
        let Some(profile) = setup.directories.of(&person) else { return false };
        let standing = share(Some(record), digest, net);
        let allowance = setup.allowance(profile);
        self.budgets.is_spent(&record.account, allowance, standing, clock::now())
    }

    /// The account's change stamp has moved. Where failures count until a login succeeds, a new password ends them in
    /// the directory, and so here: nobody could log in with it else.
    pub(super) fn forgive(&self, setup: &Setup, profile: &Profile, account: &str) {
        if setup.allowance(profile).counts_for_ever() {
            self.budgets.forget(account);
        }
    }
}
