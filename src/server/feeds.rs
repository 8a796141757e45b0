//! Which directories' changes are followed: one task per profile in force.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::auth::Authenticator;
use crate::directory::{Directories, Profile};

/// The running feeds by the profile's name.
#[derive(Default)]
pub(super) struct Feeds(Mutex<BTreeMap<Arc<str>, Running>>);

struct Running {
    profile: Arc<Profile>,
    task: JoinHandle<()>,
    /// Stops the task when it is dropped.
    _stop: DropGuard,
}

impl Feeds {
    /// Follows these directories and no others. The feed of a profile that a reload kept goes on. All end with
    /// `shutdown`.
    pub(super) fn follow(
        &self,
        directories: &Directories,
        core: &Arc<Authenticator>,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *running);
        for profile in directories.iter().filter(|profile| profile.wants_feed()) {
            let old = before.remove(profile.name());
            let feed = match old {
                Some(feed) if Arc::ptr_eq(&feed.profile, profile) => feed,
                old => {
                    let old = old.map(|old| old.task);
                    start(profile, core, (tracker, shutdown), old)
                }
            };
            running.insert(Arc::clone(profile.name()), feed);
        }
    }
}

/// The feed of before, if there is one, has been stopped, and is waited for: both show in the same metric.
fn start(
    profile: &Arc<Profile>,
    core: &Arc<Authenticator>,
    (tracker, shutdown): (&TaskTracker, &CancellationToken),
    before: Option<JoinHandle<()>>,
) -> Running {
    let stop = shutdown.child_token();
    let (stopped, core, followed) = (stop.clone(), Arc::clone(core), Arc::clone(profile));
    let task = tracker.spawn(async move {
        if let Some(before) = before {
            // It may have panicked: that is in the log, and no reason not to follow.
            drop(before.await);
        }
        stopped.run_until_cancelled(core.follow(&followed)).await;
    });
    Running { profile: Arc::clone(profile), task, _stop: stop.drop_guard() }
}
