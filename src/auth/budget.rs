//! How many wrong passwords of one account reach the directory (login.md L-1): fewer than would lock it there.
//! Plain functions: nothing here waits, and time is an argument.
//!
//! A bind is paid for before it is sent ([`Budgets::take`]) and given back if the password turns out right, so that
//! binds at the same time cannot overdraw.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::gate::Standing;
use crate::cache;

/// Accounts with wrong binds in their window; about 100 bytes each. To make the oldest forgotten, a guesser would have
/// to spend the budgets of as many others.
const MAX_ACCOUNTS: usize = 1 << 18;

/// So many make room at once where so many are wanted, those first whose last wrong bind is oldest.
const FORGOTTEN_AT_ONCE: usize = MAX_ACCOUNTS / 16;

/// More wrong binds than this are allowed nowhere, whatever a policy says: each is kept with its time.
const MAX_WRONG_BINDS: u32 = 500;

/// What may be spent on one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    /// So many wrong binds, at least 1.
    wrong_binds: u32,
    /// They count for this long; `None`: until a login succeeds.
    window: Option<Duration>,
}

/// What was spent, by account.
#[derive(Clone, Debug, Default)]
pub(super) struct Budgets(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    accounts: cache::Table<Box<str>, Spent>,
    /// So many accounts, and those whose window is over are swept out.
    sweep_at: usize,
}

#[derive(Debug, Default)]
struct Spent {
    /// When wrong passwords were answered, oldest first.
    wrong: VecDeque<Instant>,
    /// Binds whose answer is not there yet.
    asking: u32,
    /// When the last of `wrong` no longer counts; `None`: not before a login succeeds.
    until: Option<Instant>,
}

/// A bind that is paid for. Dropped, it costs nothing.
#[derive(Debug)]
pub(super) struct Reserved {
    budgets: Budgets,
    account: Box<str>,
    allowance: Allowance,
}

impl Allowance {
    /// So many wrong binds in this time.
    pub(super) fn new(wrong_binds: u32, window: Option<Duration>) -> Self {
        Self { wrong_binds: wrong_binds.clamp(1, MAX_WRONG_BINDS), window }
    }

    /// Nothing but a success ends what was spent.
    pub(super) fn counts_for_ever(self) -> bool {
        self.window.is_none()
    }

    /// One bind is reserved for those who were let in before, unless there is but one.
    fn limit(self, standing: Standing) -> u32 {
        match standing {
            Standing::Known => self.wrong_binds,
            Standing::Stranger => (self.wrong_binds - 1).max(1),
        }
    }
}

impl Budgets {
    /// Pays for one bind; `None`: the budget is spent.
    pub(super) fn take(
        &self,
        account: &str,
        allowance: Allowance,
        standing: Standing,
        now: Instant,
    ) -> Option<Reserved> {
        let mut table = self.lock();
        if let Some(spent) = table.accounts.get_mut(account) {
            if spent.used(allowance, now) >= allowance.limit(standing) {
                return None;
            }
            spent.asking += 1;
        } else {
            table.make_room(now);
            table.accounts.insert(account.into(), Spent { asking: 1, ..Spent::default() });
        }
        drop(table);
        Some(Reserved { budgets: self.clone(), account: account.into(), allowance })
    }

    /// Whether [`Budgets::take`] would refuse for the wrong answers that are there: waiting for those under way does not
    /// help.
    pub(super) fn is_spent(
        &self,
        account: &str,
        allowance: Allowance,
        standing: Standing,
        now: Instant,
    ) -> bool {
        let mut table = self.lock();
        let spent = table.accounts.get_mut(account);
        spent.is_some_and(|spent| spent.wrong(allowance, now) >= allowance.limit(standing))
    }

    /// An administrator wants the account to begin anew.
    pub(super) fn forget(&self, account: &str) {
        let mut table = self.lock();
        if let Some(spent) = table.accounts.get_mut(account) {
            spent.wrong.clear();
            table.tidy(account);
        }
    }

    /// The same for all accounts.
    pub(super) fn forget_all(&self) {
        self.lock().accounts.retain(|_, spent| {
            spent.wrong.clear();
            spent.asking > 0
        });
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn make_room(&mut self, now: Instant) {
        if self.accounts.len() < self.sweep_at.max(1024) {
            return;
        }
        let counts = |spent: &Spent| {
            spent.asking > 0
                || (!spent.wrong.is_empty() && spent.until.is_none_or(|until| now < until))
        };
        self.accounts.retain(|_, spent| counts(spent));
        let surplus = self.accounts.len().saturating_sub(MAX_ACCOUNTS - FORGOTTEN_AT_ONCE);
        // Those about whom nothing is being asked. The next so many need not look through the table.
        cache::forget_oldest(&mut self.accounts, surplus, |spent| {
            (spent.asking == 0).then(|| spent.wrong.back().copied())
        });
        self.sweep_at = (self.accounts.len() * 2).min(MAX_ACCOUNTS);
    }

    /// An account that nothing counts against takes no place.
    fn tidy(&mut self, account: &str) {
        let is_idle = |spent: &Spent| spent.asking == 0 && spent.wrong.is_empty();
        if self.accounts.get(account).is_some_and(is_idle) {
            self.accounts.remove(account);
        }
    }
}

impl Spent {
    fn used(&mut self, allowance: Allowance, now: Instant) -> u32 {
        self.wrong(allowance, now).saturating_add(self.asking)
    }

    fn wrong(&mut self, allowance: Allowance, now: Instant) -> u32 {
        if let Some(window) = allowance.window {
            // Active Directory and the KDC begin the window anew with each failure: until it has passed in peace, all
            // that came before counts.
            if self.wrong.back().is_some_and(|last| now >= *last + window) {
                self.wrong.clear();
            }
        }
        u32::try_from(self.wrong.len()).unwrap_or(u32::MAX)
    }
}

impl Reserved {
    /// Whose bind it is.
    pub(super) fn account(&self) -> &str {
        &self.account
    }

    /// The directory said that the password is wrong.
    pub(super) fn wrong(self, now: Instant) {
        let window = self.allowance.window;
        if let Some(spent) = self.budgets.lock().accounts.get_mut(&self.account) {
            spent.wrong.push_back(now);
            spent.until = window.map(|window| now + window);
        }
    }

    /// The directory accepted the password. Where failures count until then, it begins anew, as the directory does.
    pub(super) fn accepted(self) {
        if self.allowance.window.is_none()
            && let Some(spent) = self.budgets.lock().accounts.get_mut(&self.account)
        {
            spent.wrong.clear();
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut table = self.budgets.lock();
        if let Some(spent) = table.accounts.get_mut(&self.account) {
            spent.asking = spent.asking.saturating_sub(1);
        }
        table.tidy(&self.account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Known, Stranger};

    const MINUTES: u64 = 60;

    fn three_in_ten_minutes() -> Allowance {
        Allowance::new(3, Some(Duration::from_secs(10 * MINUTES)))
    }

    struct Fixture {
        budgets: Budgets,
        start: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self { budgets: Budgets::default(), start: crate::clock::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn take(&self, allowance: Allowance, standing: Standing, at: u64) -> Option<Reserved> {
            let spent = self.budgets.is_spent("fry", allowance, standing, self.at(at));
            let taken = self.budgets.take("fry", allowance, standing, self.at(at));
            assert!(taken.is_none() || !spent);
            taken
        }

        /// A wrong bind; whether there was leave for it.
        fn wrong(&self, allowance: Allowance, standing: Standing, at: u64) -> bool {
            let taken = self.take(allowance, standing, at);
            let may = taken.is_some();
            if let Some(reserved) = taken {
                reserved.wrong(self.at(at));
            }
            may
        }
    }

    #[test]
    fn one_bind_is_reserved_for_nets_that_succeeded_before() {
        let (fixture, allowance) = (Fixture::new(), three_in_ten_minutes());
        assert!(fixture.wrong(allowance, Stranger, 0));
        assert!(fixture.wrong(allowance, Stranger, 1));

        assert!(!fixture.wrong(allowance, Stranger, 2));
        assert!(fixture.wrong(allowance, Known, 3));
        assert!(!fixture.wrong(allowance, Known, 4));
    }

    #[test]
    fn the_window_begins_anew_with_each_wrong_password() {
        let (fixture, allowance) = (Fixture::new(), three_in_ten_minutes());
        assert!(fixture.wrong(allowance, Stranger, 0));
        assert!(fixture.wrong(allowance, Stranger, 5 * MINUTES));

        assert!(!fixture.wrong(allowance, Stranger, 10 * MINUTES));
        assert!(!fixture.wrong(allowance, Stranger, 15 * MINUTES - 1));
        assert!(fixture.wrong(allowance, Stranger, 15 * MINUTES));
        assert!(fixture.wrong(allowance, Stranger, 15 * MINUTES + 1));
        assert!(!fixture.wrong(allowance, Stranger, 15 * MINUTES + 2));
    }

    #[test]
    fn a_right_password_costs_nothing_and_binds_under_way_count() {
        let (fixture, allowance) = (Fixture::new(), three_in_ten_minutes());
        for second in 0..100 {
            fixture.take(allowance, Stranger, second).unwrap().accepted();
        }
        assert!(fixture.budgets.lock().accounts.is_empty());

        let first = fixture.take(allowance, Stranger, 100).unwrap();
        let _second = fixture.take(allowance, Stranger, 100).unwrap();
        assert!(fixture.take(allowance, Stranger, 100).is_none());
        assert!(!fixture.budgets.is_spent("fry", allowance, Stranger, fixture.at(100)));
        drop(first);
        assert!(fixture.take(allowance, Stranger, 100).is_some());
    }

    #[test]
    fn a_budget_of_one_has_no_reserve() {
        let (fixture, allowance) = (Fixture::new(), Allowance::new(0, None));

        assert!(fixture.wrong(allowance, Stranger, 0));
        assert!(!fixture.wrong(allowance, Known, 1));
    }

    #[test]
    fn failures_that_never_run_out_end_with_a_success() {
        let (fixture, allowance) = (Fixture::new(), Allowance::new(2, None));
        assert!(fixture.wrong(allowance, Stranger, 0));
        assert!(!fixture.wrong(allowance, Stranger, 1_000_000));

        fixture.take(allowance, Known, 1_000_001).unwrap().accepted();

        assert!(fixture.wrong(allowance, Stranger, 1_000_002));
    }

    #[test]
    fn a_success_gives_nothing_back_while_the_window_is_open() {
        let (fixture, allowance) = (Fixture::new(), three_in_ten_minutes());
        assert!(fixture.wrong(allowance, Stranger, 0));
        assert!(fixture.wrong(allowance, Stranger, 0));

        fixture.take(allowance, Known, 1).unwrap().accepted();

        assert!(!fixture.wrong(allowance, Stranger, 2));
    }

    #[test]
    fn the_table_is_bounded_and_an_attacked_account_is_the_last_to_be_forgotten() {
        let (fixture, allowance) = (Fixture::new(), Allowance::new(2, None));
        for number in 0..=MAX_ACCOUNTS {
            let account = format!("account {number}");
            let taken = fixture.budgets.take(&account, allowance, Stranger, fixture.at(0));
            taken.unwrap().wrong(fixture.at(u64::try_from(number).unwrap()));
        }

        let table = fixture.budgets.lock();
        assert_eq!(table.accounts.len(), MAX_ACCOUNTS - FORGOTTEN_AT_ONCE + 1);
        let is_there = |number: usize| table.accounts.contains_key(&*format!("account {number}"));
        assert!((0..FORGOTTEN_AT_ONCE).all(|number| !is_there(number)));
        assert!((FORGOTTEN_AT_ONCE..=MAX_ACCOUNTS).all(is_there));
    }

    #[test]
    fn an_administrator_can_let_an_account_begin_anew() {
        let (fixture, allowance) = (Fixture::new(), Allowance::new(2, None));
        assert!(fixture.wrong(allowance, Stranger, 0));

        fixture.budgets.forget("fry");
        assert!(fixture.wrong(allowance, Stranger, 1));

        fixture.budgets.forget_all();
        assert!(fixture.wrong(allowance, Stranger, 2));
    }
}
