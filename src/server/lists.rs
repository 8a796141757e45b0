//! Changes of the guessing shield's lists at run time. Whoever changes them, here or at another node, comes by the
//! [`ListBook`]: it puts the change in force, writes it to the store, and lets other nodes know.
//!
//! An entry that is taken out stays in the book, as such, until it would have ended: a node that was away must not bring it
//! back. Of two changes of one entry the later one counts; their times are those of the shared server's clock, as far as
//! that is known.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;

use super::shared::{News, Outbox};
use crate::clock;
use crate::store::{ListRow, Store, StoreError};
use crate::throttle::{Entry, Full, List, MAX_ENTRIES, Subject, Throttle, Whom};

/// The longest reason that is kept, in bytes.
pub const MAX_REASON_BYTES: usize = 512;

/// The longest time that the removal of an entry is kept in mind.
const MAX_REMOVED: Duration = Duration::from_secs(30 * 86_400);

/// So long an entry may be on its way from a node that has not heard that it was taken out.
const ON_ITS_WAY: Duration = Duration::from_secs(3600);

/// Entries of both lists, those that were taken out among them.
const MAX_KNOWN: usize = 4 * MAX_ENTRIES;

/// Rows that are written by one transaction.
const ROWS: usize = 1000;

/// How often what is over is forgotten, and what could not be saved is tried again.
const TEND_EVERY: Duration = Duration::from_secs(60);

/// The lists, and whoever must hear of their changes.
pub struct ListBook {
    throttle: Arc<Throttle>,
    store: Store,
    /// What other nodes are to hear, if there may be any.
    outbox: Option<Arc<Outbox>>,
    state: Mutex<State>,
    /// Held while rows are written, so that they are written in order.
    saving: tokio::sync::Mutex<()>,
    /// Milliseconds that the shared server's clock is ahead of ours.
    ahead: AtomicI64,
}

#[derive(Default)]
struct State {
    /// The last change of each entry.
    known: HashMap<Name, Change>,
    /// What the store does not hold yet.
    unsaved: HashSet<Name>,
    /// What the shared server does not hold yet.
    unshared: HashSet<Name>,
}

/// What tells entries apart.
pub(super) type Name = (List, Whom);

/// The last that happened to an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The entry as it is, or as it was.
    pub(super) entry: Entry,
    /// It was taken out. It stays known until `entry.until`.
    pub(super) removed: bool,
    /// When, in milliseconds since 1970 by the clock of the shared server.
    pub(super) at: i64,
}

impl Change {
    pub(super) fn name(&self) -> Name {
        (self.entry.list, self.entry.whom.clone())
    }
}

/// Whether a change will outlive a restart. It is in force in any case.
#[derive(Debug)]
#[must_use = "whoever changes a list wants to hear that it was not saved"]
pub enum Kept {
    /// It is in the store.
    Saved,
    /// It is in memory alone until the store answers again; writing is tried again every minute.
    InMemory(StoreError),
}

impl ListBook {
    /// Reads the entries out of the store and puts them in force.
    ///
    /// # Errors
    /// The store did not answer.
    pub(super) async fn load(
        throttle: Arc<Throttle>,
        store: Store,
        outbox: Option<Arc<Outbox>>,
    ) -> Result<Self, StoreError> {
        let mut known = HashMap::new();
        for row in store.list_entries(millis(clock::wall())).await? {
            match change(&row) {
                Some(change) => _ = known.insert(change.name(), change),
                None => tracing::warn!(
                    list = row.list, kind = row.kind, whom = ?row.whom,
                    "an entry of a list in the store cannot be read, it is left out"
                ),
            }
        }
        let there = known.values().filter(|change| !change.removed);
        let entries: Vec<Entry> = there.map(|change| change.entry.clone()).collect();
        if let Err(error) = throttle.add_entries(&entries) {
            tracing::error!(%error, "the lists in the store are too long, none of them is in force");
        }
        Ok(Self {
            throttle,
            store,
            outbox,
            state: Mutex::new(State { known, ..State::default() }),
            saving: tokio::sync::Mutex::default(),
            ahead: AtomicI64::new(0),
        })
    }

    /// Puts entries into their lists, in the place of earlier ones about the same; in force when this begins to wait for the
    /// store. May be dropped: what is in force stays, and is saved later.
    ///
    /// # Errors
    /// A list would be too long; nothing was added.
    pub async fn add(&self, entries: &[Entry]) -> Result<Kept, Full> {
        let mut names = Vec::with_capacity(entries.len());
        {
            let mut state = self.state();
            if state.known.len().saturating_add(entries.len()) > MAX_KNOWN {
                return Err(Full);
            }
            self.throttle.add_entries(entries)?;
            for entry in entries {
                let (kind, whom) = entry.whom.named();
                tracing::info!(
                    list = entry.list.as_str(), kind, ?whom, reason = ?shortened(&entry.reason),
                    seconds = crate::throttle::seconds_left(entry.until),
                    "an entry was added to a list"
                );
                let reason = shortened(&entry.reason).to_owned();
                names.push(self.note(&mut state, Entry { reason, ..entry.clone() }, false));
            }
        }
        Ok(self.save(&names).await)
    }

    /// Takes an entry out of its list; `None`: it was not there. Entries of the configuration stay.
    pub async fn remove(&self, list: List, whom: &Whom) -> Option<Kept> {
        let name = {
            let mut state = self.state();
            let entry = self.throttle.entry(list, whom);
            if !self.throttle.remove_entry(list, whom) {
                // It may be on its way from another node.
                if self.outbox.is_some() && state.known.len() < MAX_KNOWN {
                    let until = clock::wall() + ON_ITS_WAY;
                    let entry = Entry { list, whom: whom.clone(), until, reason: String::new() };
                    self.note(&mut state, entry, true);
                }
                return None;
            }
            let (kind, text) = whom.named();
            tracing::info!(list = list.as_str(), kind, whom = ?text, "an entry was taken out of a list");
            let until = clock::wall() + MAX_REMOVED;
            let until = entry.map_or(until, |entry| entry.until.min(until));
            let entry = Entry { list, whom: whom.clone(), until, reason: String::new() };
            self.note(&mut state, entry, true)
        };
        Some(self.save(&[name]).await)
    }

    /// Forgets what was counted of somebody, at every node; whether anything was counted here.
    pub fn reset(&self, subject: &Subject<'_>, now: Instant) -> bool {
        if let Some(outbox) = &self.outbox {
            let (client, login) = (subject.client, subject.login.map(Into::into));
            outbox.push(News::Reset { client, login });
            // What is found here by whom rules acted on, others may not find.
            for (login, client) in self.throttle.pairs_of(subject) {
                outbox.push(News::Reset { client: Some(client), login: Some(login.into()) });
            }
        }
        self.throttle.reset(subject, now)
    }

    /// Writes down a change of our own.
    fn note(&self, state: &mut State, entry: Entry, removed: bool) -> Name {
        let now = millis(clock::wall()).saturating_add(self.ahead.load(Ordering::Relaxed));
        let name = (entry.list, entry.whom.clone());
        // Whatever the clocks say, what happens after something else that is known is later.
        let at = state.known.get(&name).map_or(now, |before| now.max(before.at.saturating_add(1)));
        state.known.insert(name.clone(), Change { entry, removed, at });
        state.unsaved.insert(name.clone());
        if self.outbox.is_some() {
            state.unshared.insert(name.clone());
        }
        name
    }

    /// Writes what is not saved yet, these names among it.
    async fn save(&self, names: &[Name]) -> Kept {
        let _turn = self.saving.lock().await;
        loop {
            let changes = {
                let state = self.state();
                // Whoever waited may find that others wrote it.
                if !names.iter().any(|name| state.unsaved.contains(name)) {
                    return Kept::Saved;
                }
                let unsaved = state.unsaved.iter().take(ROWS);
                unsaved.filter_map(|name| state.known.get(name).cloned()).collect::<Vec<_>>()
            };
            let rows: Vec<ListRow> = changes.iter().map(row).collect();
            if let Err(error) = self.store.save_list_entries(&rows).await {
                tracing::warn!(%error, "changes of the lists are not saved, it is tried again");
                return Kept::InMemory(error);
            }
            let State { known, unsaved, .. } = &mut *self.state();
            settle(known, unsaved, &changes);
        }
    }

    /// Takes over what happened at other nodes, as far as it is news.
    pub(super) async fn hear(&self, changes: Vec<Change>) {
        let names = self.take_over(changes);
        if !names.is_empty() {
            tracing::info!(entries = names.len(), "entries of lists were changed at another node");
            // What cannot be saved now is tried again; nobody waits for the answer.
            _ = self.save(&names).await;
        }
    }

    fn take_over(&self, changes: Vec<Change>) -> Vec<Name> {
        let now = clock::wall();
        let mut state = self.state();
        let mut news = Vec::new();
        for change in changes {
            let name = change.name();
            match state.known.get(&name) {
                Some(before) if before.at > change.at => _ = state.unshared.insert(name),
                Some(before) if before.at == change.at => {}
                None if change.entry.until <= now => {}
                None if state.known.len() + news.len() >= MAX_KNOWN => {}
                _ => news.push(change),
            }
        }
        let there = news.iter().filter(|change| !change.removed);
        let added: Vec<Entry> = there.map(|change| change.entry.clone()).collect();
        if !added.is_empty() && self.throttle.add_entries(&added).is_err() {
            tracing::warn!(
                "other nodes have more entries in their lists than there is room for here"
            );
            news.retain(|change| change.removed);
        }
        let mut names = Vec::with_capacity(news.len());
        for change in news {
            if change.removed {
                self.throttle.remove_entry(change.entry.list, &change.entry.whom);
            }
            let name = change.name();
            state.known.insert(name.clone(), change);
            state.unshared.remove(&name);
            state.unsaved.insert(name.clone());
            names.push(name);
        }
        names
    }

    /// Everything else that is known here is news for the shared server.
    pub(super) fn share_all_but(&self, present: &HashSet<Name>) {
        let State { known, unshared, .. } = &mut *self.state();
        unshared.extend(known.keys().filter(|name| !present.contains(*name)).cloned());
    }

    /// Some of what the shared server is to hear.
    pub(super) fn unshared(&self, most: usize) -> Vec<Change> {
        let state = self.state();
        let names = state.unshared.iter().filter_map(|name| state.known.get(name));
        names.take(most).cloned().collect()
    }

    /// The shared server holds these now, or later ones.
    pub(super) fn shared(&self, changes: &[Change]) {
        let State { known, unshared, .. } = &mut *self.state();
        settle(known, unshared, changes);
    }

    /// How far the shared server's clock is ahead of ours, in milliseconds.
    pub(super) fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::Relaxed)
    }

    pub(super) fn set_ahead(&self, ahead: i64) {
        self.ahead.store(ahead, Ordering::Relaxed);
    }

    /// Forgets what is over, and saves what could not be saved, from time to time.
    pub(super) async fn tend(self: Arc<Self>, shutdown: CancellationToken) {
        let mut every = tokio::time::interval(TEND_EVERY);
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let unsaved = self.forget_over();
            if !unsaved.is_empty() {
                _ = self.save(&unsaved).await;
            }
            if let Err(error) = self.store.sweep_list_entries(millis(clock::wall())).await {
                tracing::debug!(%error, "entries of lists that are over stay in the store");
            }
        }
    }

    /// What is not saved.
    fn forget_over(&self) -> Vec<Name> {
        let now = clock::wall();
        let State { known, unsaved, unshared } = &mut *self.state();
        known.retain(|_, change| change.entry.until > now);
        unsaved.retain(|name| known.contains_key(name));
        unshared.retain(|name| known.contains_key(name));
        unsaved.iter().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// These are done, unless they changed again meanwhile.
fn settle(known: &HashMap<Name, Change>, open: &mut HashSet<Name>, done: &[Change]) {
    for change in done {
        let name = change.name();
        if known.get(&name).is_none_or(|now| now.at == change.at) {
            open.remove(&name);
        }
    }
}

/// The beginning of a reason.
fn shortened(reason: &str) -> &str {
    let end = reason.floor_char_boundary(MAX_REASON_BYTES);
    reason.get(..end).unwrap_or_default()
}

fn row(change: &Change) -> ListRow {
    let Change { entry, removed, at } = change;
    let (kind, whom) = entry.whom.named();
    ListRow {
        list: entry.list.as_str().to_owned(),
        kind: kind.to_owned(),
        whom,
        reason: entry.reason.clone(),
        removed: *removed,
        ends_at: millis(entry.until),
        changed_at: *at,
    }
}

fn change(row: &ListRow) -> Option<Change> {
    let entry = Entry {
        list: List::parse(&row.list)?,
        whom: Whom::parse(&row.kind, &row.whom)?,
        until: at_millis(row.ends_at)?,
        reason: row.reason.clone(),
    };
    Some(Change { entry, removed: row.removed, at: row.changed_at })
}

/// Milliseconds since 1970.
pub(super) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The time so many milliseconds after 1970, if it can be written as a date.
pub(super) fn at_millis(millis: i64) -> Option<SystemTime> {
    /// The end of the year 9999.
    const END: u64 = 253_402_300_800_000;
    let millis = u64::try_from(millis).ok()?.min(END);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::throttle::Throttle as Settings;
    use crate::metrics::Metrics;
    use crate::throttle::Course;

    struct Site {
        directory: tempfile::TempDir,
        throttle: Arc<Throttle>,
        book: ListBook,
    }

    async fn open(directory: &tempfile::TempDir) -> (Arc<Throttle>, ListBook) {
        let url = format!("sqlite://{}", directory.path().join("gatepost.db").display());
        let settings = crate::config::store::Store { url, max_connections: 2 };
        let store = Store::open(&settings).await.unwrap();
        let throttle = Arc::new(Throttle::new(&Settings::default(), [1; 32], clock::now()));
        let outbox = Some(Arc::new(Outbox::new(Metrics::new())));
        let book = ListBook::load(Arc::clone(&throttle), store, outbox).await.unwrap();
        (throttle, book)
    }

    impl Site {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (throttle, book) = open(&directory).await;
            Self { directory, throttle, book }
        }

        async fn restarted(&mut self) {
            (self.throttle, self.book) = open(&self.directory).await;
        }

        fn lose_store(&self) {
            let at = |name: &str| self.directory.path().join(name);
            std::fs::rename(at("gatepost.db"), at("moved.db")).unwrap();
        }

        fn find_store(&self) {
            let at = |name: &str| self.directory.path().join(name);
            std::fs::rename(at("moved.db"), at("gatepost.db")).unwrap();
        }

        fn denies(&self, address: &str) -> bool {
            let client = Some(address.parse().unwrap());
            let subject = Subject { client, ..Subject::default() };
            self.throttle.check(&subject, clock::now()).action == Course::Deny
        }
    }

    fn deny(address: &str, seconds: u64) -> Entry {
        Entry {
            list: List::Deny,
            whom: Whom::parse("ip", address).unwrap(),
            until: clock::wall() + Duration::from_secs(seconds),
            reason: "guesses".into(),
        }
    }

    fn of_other(entry: Entry, removed: bool, later: i64) -> Change {
        Change { entry, removed, at: millis(clock::wall()) + later }
    }

    fn whom(address: &str) -> Whom {
        Whom::parse("ip", address).unwrap()
    }

    #[tokio::test]
    async fn entries_outlive_a_restart_and_removals_do_too() {
        let mut site = Site::new().await;
        let entries = [deny("192.0.2.1", 60), deny("192.0.2.2", 60)];
        assert!(matches!(site.book.add(&entries).await, Ok(Kept::Saved)));
        let removed = site.book.remove(List::Deny, &whom("192.0.2.2")).await;
        assert!(matches!(removed, Some(Kept::Saved)));
        assert!(site.book.remove(List::Deny, &whom("192.0.2.2")).await.is_none());

        site.restarted().await;

        assert!(site.denies("192.0.2.1") && !site.denies("192.0.2.2"));
        assert_eq!(site.throttle.entries(List::Deny)[0].reason, "guesses");
        assert_eq!(site.book.state().known.len(), 2, "that it was taken out is known");
    }

    #[tokio::test]
    async fn with_the_store_gone_an_entry_is_in_force_and_saved_when_the_store_is_back() {
        let mut site = Site::new().await;
        site.lose_store();

        let kept = site.book.add(&[deny("192.0.2.1", 60)]).await.unwrap();

        assert!(matches!(kept, Kept::InMemory(StoreError::Unavailable { .. })), "{kept:?}");
        assert!(site.denies("192.0.2.1"));
        site.find_store();
        let unsaved = site.book.forget_over();
        assert!(matches!(site.book.save(&unsaved).await, Kept::Saved));
        site.restarted().await;
        assert!(site.denies("192.0.2.1"));
    }

    #[tokio::test]
    async fn the_last_change_counts_wherever_it_was_made() {
        let site = Site::new().await;
        let entry = || deny("192.0.2.1", 60);

        site.book.hear(vec![of_other(entry(), false, 0)]).await;
        assert!(site.denies("192.0.2.1"));
        assert!(site.book.unshared(9).is_empty(), "it comes from there");
        // Later by the clock of the other node, which is ahead of ours.
        site.book.hear(vec![of_other(entry(), true, 5000)]).await;
        assert!(!site.denies("192.0.2.1"));
        site.book.hear(vec![of_other(entry(), false, 3000)]).await;
        assert!(!site.denies("192.0.2.1"), "an older one changes nothing");
        assert_eq!(site.book.unshared(9).len(), 1, "and ours is told again");
        // What happens here now is later than what is known, whatever the clocks say.
        let _ = site.book.add(&[entry()]).await.unwrap();
        assert!(site.denies("192.0.2.1"));
        let ours = site.book.unshared(9);
        assert!(ours[0].at > millis(clock::wall()) + 4000 && !ours[0].removed, "{ours:?}");
        site.book.shared(&ours);
        assert!(site.book.unshared(9).is_empty());
    }

    #[tokio::test]
    async fn what_the_shared_server_does_not_hold_is_told() {
        let site = Site::new().await;
        let _ = site.book.add(&[deny("192.0.2.1", 60), deny("192.0.2.2", 60)]).await.unwrap();
        site.book.shared(&site.book.unshared(9));
        let present = HashSet::from([(List::Deny, whom("192.0.2.1"))]);

        site.book.share_all_but(&present);

        let missing: Vec<Whom> =
            site.book.unshared(9).into_iter().map(|change| change.entry.whom).collect();
        assert_eq!(missing, [whom("192.0.2.2")]);
    }

    #[tokio::test]
    async fn a_full_list_takes_nothing_more_from_others_and_says_so_to_us() {
        let site = Site::new().await;
        let name = |number: usize| Whom::Login(format!("{number}@planetexpress.com"));
        let many =
            (0..MAX_ENTRIES).map(|number| Entry { whom: name(number), ..deny("192.0.2.9", 60) });
        let many: Vec<Entry> = many.collect();
        assert!(matches!(site.book.add(&many).await, Ok(Kept::Saved)));

        assert_eq!(site.book.add(&[deny("192.0.2.1", 60)]).await.unwrap_err(), Full);
        site.book.hear(vec![of_other(deny("192.0.2.2", 60), false, 0)]).await;

        assert!(!site.denies("192.0.2.1") && !site.denies("192.0.2.2"));
        assert_eq!(site.book.state().known.len(), MAX_ENTRIES);
    }

    #[tokio::test]
    async fn what_is_over_is_forgotten() {
        let site = Site::new().await;
        let _ = site.book.add(&[deny("192.0.2.1", 0), deny("192.0.2.2", 60)]).await.unwrap();

        site.book.forget_over();

        assert_eq!(site.book.state().known.len(), 1);
        assert_eq!(site.book.unshared(9).len(), 1);
    }

    #[test]
    fn a_long_reason_is_cut_between_letters() {
        let long = "\u{e4}".repeat(400);
        assert_eq!(shortened(&long).len(), 512);
        assert_eq!(shortened(&format!("x{long}")).len(), 511);
        assert_eq!(shortened("short"), "short");
    }
}
