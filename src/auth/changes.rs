//! Changes at a directory reach memory: whose entry was touched is looked up here, the entry is read again, and what
//! is remembered ends or stays by what it says (login.md M-7).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Authenticator;
use super::memory::{Change, Record, Vouched, account_key};
use crate::clock;
use crate::directory::feed::{News, Reread, Touch};
use crate::directory::{Finding, Known, Profile};

/// News between the feed and memory.
const NEWS: usize = 256;

/// Entries that are read again at the same time: a mass change must not flood the directory.
const REREADS: usize = 4;

/// Accounts that wait to be read again. Beyond, nobody is read: each is asked about again when they next log in.
const WAITING: usize = 4_096;

/// The time for reading one entry again.
const REREAD_WITHIN: Duration = Duration::from_secs(8);

/// Touches are kept in mind for longer than any question takes: an answer from before one must not be remembered
/// after it.
const RECENT: Duration = Duration::from_secs(60);

/// Accounts of which it is kept in mind. Beyond, anybody counts as touched.
const RECENT_ACCOUNTS: usize = 8_192;

/// Whose entry was touched lately, remembered or not.
#[derive(Debug, Default)]
pub(super) struct Touched(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    accounts: HashMap<Box<str>, Instant>,
    anybody: Option<Instant>,
}

impl Touched {
    fn note(&self, account: &str, now: Instant) {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.accounts.len() >= RECENT_ACCOUNTS {
            recent.accounts.retain(|_, at| now.saturating_duration_since(*at) < RECENT);
        }
        if recent.accounts.len() >= RECENT_ACCOUNTS {
            recent.accounts.clear();
            recent.anybody = Some(now);
        }
        recent.accounts.insert(account.into(), now);
    }

    fn note_anybody(&self, now: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).anybody = Some(now);
    }

    /// Whether the account was touched at this time or later.
    pub(super) fn since(&self, account: &str, asked: Instant) -> bool {
        let recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let touched = recent.accounts.get(account).copied().max(recent.anybody);
        touched.is_some_and(|touched| touched >= asked)
    }
}

/// Accounts to be read again, each once.
#[derive(Debug, Default)]
struct Waiting {
    line: VecDeque<Arc<Record>>,
    in_line: HashSet<Arc<str>>,
    /// Read at this moment. Whoever is touched meanwhile waits for another turn.
    read_now: HashSet<Arc<str>>,
}

impl Waiting {
    /// False: there is no room.
    fn add(&mut self, record: Arc<Record>) -> bool {
        if self.in_line.contains(&record.account) {
            return true;
        }
        if self.line.len() >= WAITING {
            return false;
        }
        self.in_line.insert(record.account.clone());
        self.line.push_back(record);
        true
    }

    fn next(&mut self) -> Option<Arc<Record>> {
        if self.read_now.len() >= REREADS {
            return None;
        }
        let is_free = |record: &Arc<Record>| !self.read_now.contains(&record.account);
        let record = self.line.remove(self.line.iter().position(is_free)?)?;
        self.in_line.remove(&record.account);
        self.read_now.insert(record.account.clone());
        Some(record)
    }

    fn clear(&mut self) {
        self.line.clear();
        self.in_line.clear();
    }
}

impl Authenticator {
    /// Hears of the changes at a directory for as long as the future lives; it never ends by itself.
    pub async fn follow(self: &Arc<Self>, profile: &Arc<Profile>) {
        let (sender, receiver) = mpsc::channel(NEWS);
        tokio::join!(profile.follow(sender), self.hear(profile, receiver));
    }

    async fn hear(self: &Arc<Self>, profile: &Arc<Profile>, mut news: mpsc::Receiver<News>) {
        // A feed before this one may have told of changes that nobody has looked at yet.
        self.doubt_all(profile);
        let mut waiting = Waiting::default();
        let mut rereads: JoinSet<Arc<str>> = JoinSet::new();
        let mut batch = Vec::with_capacity(NEWS);
        loop {
            while let Some(record) = waiting.next() {
                let (core, profile) = (Arc::clone(self), Arc::clone(profile));
                rereads.spawn(async move {
                    core.see_again(&profile, &record).await;
                    record.account.clone()
                });
            }
            tokio::select! {
                count = news.recv_many(&mut batch, NEWS) => {
                    if count == 0 {
                        return;
                    }
                    self.take_news(profile, &mut batch, &mut waiting);
                }
                Some(read) = rereads.join_next() => match read {
                    Ok(account) => {
                        waiting.read_now.remove(&account);
                    }
                    // Whoever it was is read again at the next touch; none may be left out meanwhile.
                    Err(_) => {
                        waiting.read_now.clear();
                        self.doubt_all(profile);
                    }
                },
            }
        }
    }

    fn take_news(&self, profile: &Profile, batch: &mut Vec<News>, waiting: &mut Waiting) {
        let mut nameless = HashSet::new();
        let mut flooded = false;
        for news in batch.drain(..) {
            match news {
                News::Touched(Touch { id: Some(id), .. }) => {
                    let account = account_key(profile.name(), &id);
                    flooded |= !self.touched(&account, waiting);
                }
                News::Touched(Touch { id: None, dn }) => {
                    nameless.insert(dn.to_ascii_lowercase());
                }
                News::Flooded => flooded = true,
                News::Began | News::Lost => {}
            }
        }
        if !nameless.is_empty() {
            for record in self.memory.of_profile(profile.name()) {
                if nameless.contains(&record.person().dn.to_ascii_lowercase()) {
                    flooded |= !self.touched(&record.account, waiting);
                }
            }
        }
        if flooded {
            tracing::warn!(
                directory = %profile.name(),
                "more entries changed than can be read again: each person is asked about at their next login"
            );
            waiting.clear();
            self.doubt_all(profile);
        }
    }

    /// False: there is no room for the account among those that wait.
    fn touched(&self, account: &str, waiting: &mut Waiting) -> bool {
        // First this: a question under way looks at it after it has remembered its answer.
        self.touched.note(account, clock::now());
        let Some(record) = self.memory.account(account) else { return true };
        record.unvouch();
        // After a mass change whoever logs in is asked about anyway: their entries need not be read.
        record.is_doubted() || waiting.add(record)
    }

    fn doubt_all(&self, profile: &Profile) {
        let now = clock::now();
        self.touched.note_anybody(now);
        for record in self.memory.of_profile(profile.name()) {
            record.unvouch();
            self.memory.doubt(&record, now);
        }
    }

    async fn see_again(&self, profile: &Arc<Profile>, record: &Record) {
        let began = clock::now();
        let vouched = profile.vouching().map(|run| Vouched { run, since: began });
        let person = record.person();
        let known = Known { dn: person.dn.clone(), id: person.id.clone() };
        let Reread { finding, by_login } = profile.reread(&known, began + REREAD_WITHIN).await;
        let change = match finding {
            Finding::One(person) => {
                let change = self.memory.reread(record, (Arc::new(person), vouched), by_login);
                if change == Change::Password {
                    self.forgive(&self.setup.load(), profile, &record.account);
                }
                if self.touched.since(&record.account, began) {
                    // Once more meanwhile; it waits for another turn.
                    record.unvouch();
                }
                change
            }
            Finding::None => {
                self.memory.end_proofs(record);
                Change::Ended
            }
            Finding::Ambiguous(_) | Finding::Failed(_) => {
                tracing::debug!(directory = %profile.name(), ?finding, "a changed entry could not be read again");
                self.memory.doubt(record, clock::now());
                return;
            }
        };
        tracing::debug!(directory = %profile.name(), person.id = %known.id, ?change, "an entry was touched");
    }

    /// An answer to a question asked then has just been remembered. If the entry was touched meanwhile, the answer may
    /// be older than the change: the entry is read again.
    pub(super) fn reread_if_touched(
        self: &Arc<Self>,
        profile: &Arc<Profile>,
        account: &str,
        asked: Instant,
    ) {
        if self.touched.since(account, asked)
            && let Some(record) = self.memory.account(account)
        {
            record.unvouch();
            let (core, profile) = (Arc::clone(self), Arc::clone(profile));
            self.tracker.spawn(async move { core.see_again(&profile, &record).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::person::Person;

    fn record(number: usize) -> Arc<Record> {
        let person =
            Person { profile: "corp".into(), id: number.to_string().into(), ..Person::local(1) };
        Arc::new(Record::new(account_key("corp", &person.id).into(), Arc::new(person)))
    }

    #[test]
    fn each_account_waits_once_few_are_read_at_a_time_and_the_line_is_bounded() {
        let mut waiting = Waiting::default();
        for number in 0..WAITING {
            assert!(waiting.add(record(number)));
        }
        assert!(waiting.add(record(0)), "is in the line already");
        assert!(!waiting.add(record(WAITING)), "no room");

        let read: Vec<_> = (0..=REREADS).map_while(|_| waiting.next()).collect();
        assert_eq!(read.len(), REREADS);
        assert!(waiting.add(record(0)), "touched while it is read");
        waiting.read_now.clear();
        assert_eq!(waiting.line.back().map(|last| &*last.account), Some("corp\u{0}0"));
    }

    #[test]
    fn a_touch_is_seen_by_questions_asked_before_it() {
        let touched = Touched::default();
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);

        touched.note("fry", at(5));

        assert!(touched.since("fry", at(4)));
        assert!(!touched.since("fry", at(6)));
        assert!(!touched.since("leela", at(4)));
        for number in 0..RECENT_ACCOUNTS {
            touched.note(&number.to_string(), at(7));
        }
        assert!(touched.since("leela", at(6)), "too many: anybody");
        assert!(!touched.since("leela", at(8)));
    }
}
