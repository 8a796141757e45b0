//! After how many wrong passwords the directory locks an account, where it lets its service account read that.
//!
//! Active Directory and Samba keep it at the domain's root and in Password Settings Objects, OpenLDAP and 389 Directory
//! Server in password policy entries (draft-behera-ldap-password-policy), FreeIPA in Kerberos policies, 389 Directory
//! Server's global one in `cn=config`. Which policy holds for whom can seldom be read; the strictest counts for
//! everybody.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use ldap3::Scope;

use super::connection::{Found, Query, SIZE_LIMIT};
use super::filter::Filter;
use super::host::Failure;
use super::matching::depth_below;
use super::pool::lock;
use super::profile::Profile;
use crate::clock;
use crate::config::directory::Preset;
use crate::person::Attributes;

/// What was read holds for this long.
const READ_EVERY: Duration = Duration::from_secs(3600);

/// Without an answer it is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Policies that are looked at; more than any site has.
const MAX_POLICIES: u16 = 200;

/// When the directory locks an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockoutLimit {
    /// So many wrong passwords lock. Never 0.
    pub failures: u32,
    /// They count for this long; `None`: until a login succeeds.
    pub window: Option<Duration>,
}

/// What is known of a directory's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockout {
    /// There is none, or none that can be read.
    NoneKnown,
    /// This one.
    Limit(LockoutLimit),
    /// It was not looked for yet.
    Unread,
}

/// A profile's limit as last read.
#[derive(Debug)]
pub(super) struct LastRead {
    known: Mutex<(Lockout, Option<Instant>)>,
    /// Held while it is read: those who come meanwhile wait for that.
    reading: tokio::sync::Mutex<()>,
}

impl Default for LastRead {
    fn default() -> Self {
        Self { known: Mutex::new((Lockout::Unread, None)), reading: tokio::sync::Mutex::default() }
    }
}

impl Profile {
    /// The limit as last read.
    #[must_use]
    pub fn lockout(&self) -> Lockout {
        lock(&self.lockout.known).0
    }

    /// Reads the limit, if that was not done within the last hour. What cannot be read for want of an answer stays as it
    /// was, and is tried again 10 s later at the earliest.
    pub async fn read_lockout(&self) {
        if !self.is_lockout_due(clock::now()) {
            return;
        }
        let _reading = self.lockout.reading.lock().await;
        if !self.is_lockout_due(clock::now()) {
            return;
        }
        let read = self.strictest_policy().await;
        let now = clock::now();
        let mut known = lock(&self.lockout.known);
        match read {
            Ok(limit) => {
                let lockout = limit.map_or(Lockout::NoneKnown, Lockout::Limit);
                if known.0 != lockout {
                    tracing::info!(directory.name = %self.name(), ?lockout, "lock-out limit read");
                }
                *known = (lockout, Some(now + READ_EVERY));
            }
            Err(failure) => {
                tracing::debug!(directory.name = %self.name(), error = %failure.detail, "lock-out limit could not be read");
                known.1 = Some(now + RETRY_AFTER);
            }
        }
    }

    fn is_lockout_due(&self, now: Instant) -> bool {
        lock(&self.lockout.known).1.is_none_or(|due| now >= due)
    }

    async fn strictest_policy(&self) -> Result<Option<LockoutLimit>, Failure> {
        let anything = Filter::any();
        let root = ["namingContexts", "defaultNamingContext"];
        let root = self.look("", Scope::Base, &anything, &root).await?;
        let contexts = |attribute: &str| -> Vec<String> {
            let values = root.iter().flat_map(|root| root.texts(attribute));
            // Other databases of the same server have nothing to say about our people.
            let is_ours = |context: &&str| {
                self.places.iter().any(|place| depth_below(&place.base, context).is_some())
            };
            values.filter(is_ours).map(str::to_owned).collect()
        };
        let mut policies = Vec::new();
        match self.preset {
            Preset::ActiveDirectory | Preset::Samba => {
                for domain in contexts("defaultNamingContext") {
                    let found = self.look(&domain, Scope::Base, &anything, &ATTRIBUTES);
                    policies.extend(found.await?);
                    let container = format!("CN=Password Settings Container,CN=System,{domain}");
                    let filter = Filter::equals("objectClass", "msDS-PasswordSettings");
                    let found = self.look(&container, Scope::OneLevel, &filter, &ATTRIBUTES);
                    policies.extend(found.await?);
                }
            }
            Preset::FreeIpa | Preset::Generic | Preset::OpenLdap | Preset::ThreeEightNine => {
                let classes = ["pwdPolicy", "krbPwdPolicy", "passwordPolicy"];
                let classes = classes.map(|class| Filter::equals("objectClass", class));
                let Some(filter) = Filter::any_of(&classes) else { return Ok(None) };
                for context in contexts("namingContexts") {
                    let found = self.look(&context, Scope::Subtree, &filter, &ATTRIBUTES);
                    policies.extend(found.await?);
                }
                if matches!(self.preset, Preset::FreeIpa | Preset::ThreeEightNine) {
                    let found = self.look("cn=config", Scope::Base, &anything, &ATTRIBUTES);
                    policies.extend(found.await?);
                }
            }
        }
        Ok(policies.iter().filter_map(limit).reduce(stricter))
    }

    /// What can be read there; nothing, where the directory does not show it.
    async fn look(
        &self,
        base: &str,
        scope: Scope,
        filter: &Filter,
        attributes: &[&str],
    ) -> Result<Vec<Attributes>, Failure> {
        let attributes: Vec<String> = attributes.iter().map(|&name| name.to_owned()).collect();
        let query = Query { base, scope, filter, attributes: &attributes, limit: MAX_POLICIES };
        Ok(match self.pool.search(&query).await? {
            Found { code: 0 | SIZE_LIMIT, entries, .. } => {
                entries.into_iter().map(|entry| entry.attributes).collect()
            }
            _ => Vec::new(),
        })
    }
}

const ATTRIBUTES: [&str; 12] = [
    "lockoutThreshold",
    "lockOutObservationWindow",
    "msDS-LockoutThreshold",
    "msDS-LockoutObservationWindow",
    "pwdLockout",
    "pwdMaxFailure",
    "pwdFailureCountInterval",
    "krbPwdMaxFailure",
    "krbPwdFailureCountInterval",
    "passwordLockout",
    "passwordMaxFailure",
    "passwordResetFailureCount",
];

/// The limit that an entry sets; `None`: none.
fn limit(policy: &Attributes) -> Option<LockoutLimit> {
    let number = |name: &str| policy.texts(name).next()?.parse::<i64>().ok();
    let failures = |name: &str| number(name).and_then(|count| u32::try_from(count).ok());
    let is = |name: &str, word: &str| policy.texts(name).any(|it| it.eq_ignore_ascii_case(word));
    let seconds = |name: &str| {
        let seconds = number(name).and_then(|seconds| u64::try_from(seconds).ok());
        seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs)
    };
    // Negative, in units of 100 ns; the most negative one means for ever.
    let ticks = |name: &str| {
        let ticks = number(name).filter(|ticks| *ticks != i64::MIN)?.unsigned_abs();
        (ticks > 0).then(|| Duration::from_nanos(ticks.saturating_mul(100)))
    };
    let (failures, window) = if policy.values("lockoutThreshold").next().is_some() {
        (failures("lockoutThreshold")?, ticks("lockOutObservationWindow"))
    } else if policy.values("msDS-LockoutThreshold").next().is_some() {
        (failures("msDS-LockoutThreshold")?, ticks("msDS-LockoutObservationWindow"))
    } else if is("pwdLockout", "TRUE") {
        (failures("pwdMaxFailure")?, seconds("pwdFailureCountInterval"))
    } else if policy.values("krbPwdMaxFailure").next().is_some() {
        (failures("krbPwdMaxFailure")?, seconds("krbPwdFailureCountInterval"))
    } else if is("passwordLockout", "on") {
        // 389 Directory Server's defaults, which it does not show.
        let window = seconds("passwordResetFailureCount").unwrap_or(Duration::from_secs(600));
        (failures("passwordMaxFailure").unwrap_or(3), Some(window))
    } else {
        return None;
    };
    (failures > 0).then_some(LockoutLimit { failures, window })
}

/// The fewer failures, the longer time.
fn stricter(one: LockoutLimit, other: LockoutLimit) -> LockoutLimit {
    LockoutLimit {
        failures: one.failures.min(other.failures),
        window: one.window.zip(other.window).map(|(one, other)| one.max(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(attributes: &[(&str, &str)]) -> Attributes {
        let mut policy = Attributes::default();
        for (name, value) in attributes {
            policy.insert(name, [value.as_bytes().into()]);
        }
        policy
    }

    #[test]
    fn every_servers_policy_is_understood() {
        let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
        for (attributes, expected) in [
            (
                &[("lockoutThreshold", "5"), ("lockOutObservationWindow", "-18000000000")][..],
                Some((5, minutes(30))),
            ),
            (&[("lockoutThreshold", "0"), ("lockOutObservationWindow", "-18000000000")], None),
            (
                &[
                    ("msDS-LockoutThreshold", "7"),
                    ("msDS-LockoutObservationWindow", "-9223372036854775808"),
                ],
                Some((7, None)),
            ),
            (
                &[
                    ("pwdLockout", "TRUE"),
                    ("pwdMaxFailure", "3"),
                    ("pwdFailureCountInterval", "600"),
                ],
                Some((3, minutes(10))),
            ),
            (&[("pwdLockout", "TRUE"), ("pwdMaxFailure", "3")], Some((3, None))),
            (&[("pwdLockout", "FALSE"), ("pwdMaxFailure", "3")], None),
            (&[("pwdMaxFailure", "3")], None),
            (
                &[("krbPwdMaxFailure", "6"), ("krbPwdFailureCountInterval", "60")],
                Some((6, minutes(1))),
            ),
            (&[("passwordLockout", "on")], Some((3, minutes(10)))),
            (&[("passwordLockout", "off"), ("passwordMaxFailure", "3")], None),
            (&[("cn", "no policy")], None),
        ] {
            let expected = expected.map(|(failures, window)| LockoutLimit { failures, window });
            assert_eq!(limit(&policy(attributes)), expected, "{attributes:?}");
        }
    }

    #[test]
    fn of_several_policies_the_strictest_of_each_part_holds() {
        let limit = |failures, seconds: Option<u64>| LockoutLimit {
            failures,
            window: seconds.map(Duration::from_secs),
        };

        assert_eq!(stricter(limit(5, Some(60)), limit(3, Some(10))), limit(3, Some(60)));
        assert_eq!(stricter(limit(5, None), limit(8, Some(10))), limit(5, None));
    }
}
