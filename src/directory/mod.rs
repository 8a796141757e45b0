//! "Who is this person, and is this their password?" LDAP, nothing else.
//!
//! [`Directories`] knows which profile answers for which mail domain. A [`Profile`] finds people and checks passwords
//! (login.md Q and B); below it lie the servers with their connections, and the pure parts: filters, entries, what a
//! bind's answer means, the breaker.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::config::directory::Directory;
use crate::identity::Domain;
use crate::metrics::Metrics;
use crate::person::Person;

pub mod profile;

pub mod answer;
mod ber;
mod bind;
pub mod breaker;
pub mod connect;
pub mod connection;
pub mod entry;
pub mod feed;
pub mod filter;
mod host;
mod lockout;
mod matching;
mod pool;
pub mod preset;
mod probe;
mod search;
mod searching;
mod setup;
mod standing;
mod tls;
pub mod verdict;
mod wire;

#[cfg(test)]
mod tests;

pub use lockout::{Lockout, LockoutLimit};
pub use profile::{Explained, HostHealth, Profile};
pub use verdict::Lock;

/// All configured directories.
#[derive(Debug, Default)]
pub struct Directories {
    profiles: BTreeMap<Arc<str>, Arc<Profile>>,
    routes: HashMap<Domain, Vec<Arc<Profile>>>,
}

/// A directory that cannot be used as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("directory.{profile}.{key}: {problem}")]
pub struct BuildError {
    /// The profile's name.
    pub profile: String,
    /// The setting, below the profile's table.
    pub key: String,
    /// What is wrong with it; names the file, the column …
    pub problem: String,
}

/// All that is wrong with the directories, one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildErrors(pub Vec<BuildError>);

impl std::error::Error for BuildErrors {}

impl std::fmt::Display for BuildErrors {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str("\n")?;
            }
            write!(formatter, "{error}")?;
        }
        Ok(())
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    key: String,
    problem: String,
}

fn fault(key: impl Into<String>, problem: impl Into<String>) -> Fault {
    Fault { key: key.into(), problem: problem.into() }
}

impl Directories {
    /// Makes the profiles that are switched on; certificates are read, nothing is connected. Those whose section did
    /// not change in what concerns the directory are taken over from `previous` with their connections and health.
    ///
    /// # Errors
    /// The settings that cannot be used.
    pub fn build(
        config: &BTreeMap<String, Directory>,
        previous: Option<&Self>,
        metrics: &Metrics,
    ) -> Result<Self, BuildErrors> {
        let mut built = Self::default();
        let mut errors = Vec::new();
        let mut routed: Vec<(Domain, (u32, Arc<Profile>))> = Vec::new();
        for (name, section) in config.iter().filter(|(_, section)| section.enabled) {
            let mut failed = |fault: Fault| {
                let Fault { key, problem } = fault;
                errors.push(BuildError { profile: name.clone(), key, problem });
            };
            let old = previous.and_then(|previous| previous.profile(name));
            let profile = match Profile::build(name, section, old, metrics) {
                Ok(profile) => profile,
                Err(faults) => {
                    faults.into_iter().for_each(failed);
                    continue;
                }
            };
            for text in section.domains.iter().filter(|_| section.auth.enabled) {
                match Domain::parse(text) {
                    Ok(domain) => routed.push((domain, (section.priority, Arc::clone(&profile)))),
                    Err(error) => failed(fault("domains", format!("{text}: {error}"))),
                }
            }
            built.profiles.insert(Arc::clone(profile.name()), profile);
        }
        if !errors.is_empty() {
            return Err(BuildErrors(errors));
        }
        // Stable: profiles came by name.
        routed.sort_by_key(|(_, (priority, _))| *priority);
        for (domain, (_, profile)) in routed {
            let route = built.routes.entry(domain).or_default();
            if !route.iter().any(|known| Arc::ptr_eq(known, &profile)) {
                route.push(profile);
            }
        }
        Ok(built)
    }

    /// These are in force now, instead of `previous`: the metrics show their servers and no others.
    pub fn show(&self, previous: Option<&Self>) {
        let kept = |old: &&Arc<Profile>| self.iter().any(|profile| Arc::ptr_eq(profile, old));
        let gone = previous.into_iter().flat_map(Self::iter).filter(|old| !kept(old));
        gone.flat_map(|profile| profile.pool.hosts()).for_each(|host| host.hide());
        // After that: a server may be in several profiles, old and new.
        self.iter().flat_map(|profile| profile.pool.hosts()).for_each(|host| host.show());
    }

    /// The profiles that answer for a domain, in the order they are asked. Empty: no packet goes anywhere.
    #[must_use]
    pub fn route(&self, domain: &Domain) -> &[Arc<Profile>] {
        self.routes.get(domain).map_or(&[], Vec::as_slice)
    }

    /// A profile that is switched on.
    #[must_use]
    pub fn profile(&self, name: &str) -> Option<&Arc<Profile>> {
        self.profiles.get(name)
    }

    /// The profile that a person was read from, if it is still switched on.
    #[must_use]
    pub fn of(&self, person: &Person) -> Option<&Arc<Profile>> {
        // Nearly always the very one; a name is compared only after a reload.
        let same = self.profiles.values().find(|it| Arc::ptr_eq(it.name(), &person.profile));
        same.or_else(|| self.profile(&person.profile))
    }

    /// All profiles that are switched on, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Profile>> {
        self.profiles.values()
    }
}

/// What is asked of a profile: is this the password of the person with this name?
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// The name typed.
    pub login: &'a crate::identity::Login,
    /// The password typed.
    pub password: &'a crate::secret::Password,
    /// Where the person was found last time.
    pub known: Option<&'a Known>,
    /// The person there, if a feed has told every change of the entry since it was read: it is not read again.
    pub vouched: Option<&'a Arc<Person>>,
    /// The id of the mailbox's link: the person is found by it if no longer by name.
    pub linked: Option<&'a str>,
    /// Whose share of the connections this uses.
    pub share: Share,
    /// Past it nobody waits for the answer.
    pub deadline: std::time::Instant,
    /// Asked before a bind; `None`: nobody counts them.
    pub leave: Option<Arc<dyn Leave>>,
}

/// Leave to send binds: who guesses must not lock an account in the directory (login.md L-1).
pub trait Leave: std::fmt::Debug + Send + Sync {
    /// Whether a bind as the person with this id may be sent. Asked once the person is found.
    fn to_bind(&self, id: &str) -> bool;

    /// What came of the question. Told also if nobody waits for that any more.
    fn heard(&self, answer: &Answer);
}

/// An entry found earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Where it stood.
    pub dn: Box<str>,
    /// Its immutable id.
    pub id: Arc<str>,
}

/// Whose share of pool and queue a question uses (login.md Q-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Nobody waits for it: a place that is free while half of all are; it never queues.
    Background,
    /// A name that store or memory knows: all of it.
    Known,
    /// Any other name: at most half.
    Newcomer,
}

/// What the directory says to a [`Question`] (login.md table B).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// The search found nobody.
    Absent,
    /// The password is right.
    Accepted {
        /// Whose it is.
        person: Person,
        /// Each bind burns a grace login: no binds in the background (login.md B-2).
        grace_logins: bool,
    },
    /// The search found several.
    Ambiguous {
        /// All that were found, or the first of them.
        dns: Vec<String>,
    },
    /// Switched off, or past the last day. The password may not have been looked at.
    Disabled {
        /// Who, where the entry was read.
        person: Option<Person>,
    },
    /// The password is right, but too old.
    Expired {
        /// Whose it is.
        person: Person,
    },
    /// May not log in now. The password may not have been looked at.
    Locked {
        /// Who, where the entry was read.
        person: Option<Person>,
        /// Too many failures, or the wrong hour or machine.
        lock: Lock,
    },
    /// The password is right, but another must be set first.
    MustChange {
        /// Whose it is.
        person: Person,
    },
    /// An answer that no rule knows.
    Odd {
        /// For the log.
        detail: String,
    },
    /// Our configuration is at fault.
    Ours {
        /// For the log.
        detail: String,
    },
    /// No answer.
    Trouble(Trouble),
    /// No bind was sent: there was no [`Leave`] for it.
    Withheld {
        /// The id of the person whose password it would have been.
        id: Arc<str>,
    },
    /// The password is wrong.
    Wrong {
        /// Whom it was tried for.
        person: Person,
        /// Whether the directory said so in so many words.
        said: Said,
    },
}

/// How plainly a directory refused a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Code 49 and no more: some directories say no more of a locked account either (login.md B-1).
    Nothing,
    /// By a sub-code, or another code.
    Plainly,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Trouble {
    /// Whose trouble.
    pub why: Why,
    /// For the log.
    pub detail: String,
}

/// Whose trouble it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Our queue is full.
    Busy,
    /// The attempt's time was up.
    Deadline,
    /// The directory cannot answer.
    Directory,
    /// An answer that no rule knows ([`Finding`] only; an [`Answer`] is `Odd` then).
    Odd,
    /// Our configuration ([`Finding`] only; an [`Answer`] is `Ours` then).
    Ours,
}

/// Whom to find.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// The person with this immutable id.
    Id(&'a str),
    /// The person with this name.
    Login(&'a crate::identity::Login),
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Finding {
    /// Several, though none of them is the one whose address this is.
    Ambiguous(Vec<String>),
    /// No answer.
    Failed(Trouble),
    /// Nobody.
    None,
    /// This person.
    One(Person),
}

/// One step of a profile's test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was tried: `tcp ldaps://dc1.example:636`.
    pub name: String,
    /// How it went.
    pub outcome: StepOutcome,
    /// What was seen, or why it failed.
    pub detail: String,
    /// How long it took.
    pub took: Duration,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// It did not work.
    Failed,
    /// It worked.
    Passed,
    /// Not tried, for an earlier step failed.
    Skipped,
}

/// Which servers a test looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// All of them.
    All,
    /// The preferred one.
    First,
}

impl Answer {
    /// Who was found, where the answer is about somebody.
    #[must_use]
    pub fn person(&self) -> Option<&Person> {
        match self {
            Self::Accepted { person, .. }
            | Self::Expired { person }
            | Self::MustChange { person }
            | Self::Wrong { person, .. } => Some(person),
            Self::Disabled { person } | Self::Locked { person, .. } => person.as_ref(),
            Self::Absent
            | Self::Ambiguous { .. }
            | Self::Odd { .. }
            | Self::Ours { .. }
            | Self::Trouble(_)
            | Self::Withheld { .. } => None,
        }
    }
}

impl From<Trouble> for Answer {
    fn from(trouble: Trouble) -> Self {
        match trouble.why {
            Why::Busy | Why::Deadline | Why::Directory => Self::Trouble(trouble),
            Why::Odd => Self::Odd { detail: trouble.detail },
            Why::Ours => Self::Ours { detail: trouble.detail },
        }
    }
}
