//! Asking ahead (login.md M-2): near the end of `fresh` a login that memory has answered also makes the directory be
//! asked, so that people who log in often never wait for it.
//!
//! Nobody waits for such a question, and it stands in nobody's way: few are asked at a time, none while the account or
//! half of the directory's connections are in use. What was skipped is tried again by a later login.

use std::sync::Arc;

use super::asking::{Asking, Urgency};
use super::flights::Settled;
use super::memory::Record;
use super::{Authenticator, Reason, Source};
use crate::clock;

/// Questions in the background at a time, of all directories together.
pub(super) const MAX_BACKGROUND: usize = 8;

/// What became of one, in the words of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refreshed {
    /// The password is still right.
    Accepted,
    /// Nobody could say.
    Later,
    /// Not any more: what was remembered of it has ended.
    Refused,
    /// Not asked: others were before it.
    Skipped,
}

impl Refreshed {
    fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Later => "later",
            Self::Refused => "refused",
            Self::Skipped => "skipped",
        }
    }
}

impl Authenticator {
    /// Asks in the background about a password that memory has just proven.
    pub(super) fn refresh(self: &Arc<Self>, asking: Asking, record: Arc<Record>) {
        let now = clock::now();
        let Ok(place) = Arc::clone(&self.background).try_acquire_owned() else {
            record.refreshed(now);
            self.metrics.refresh(Refreshed::Skipped.as_str());
            return;
        };
        let deadline = now + asking.setup.deadline;
        let asking = Asking { urgency: Urgency::Background, deadline, ..asking };
        let core = Arc::clone(self);
        self.tracker.spawn(async move {
            let refreshed = core.ask_ahead(&asking, &record).await;
            drop(place);
            record.refreshed(clock::now());
            core.metrics.refresh(refreshed.as_str());
        });
    }

    async fn ask_ahead(self: &Arc<Self>, asking: &Asking, record: &Arc<Record>) -> Refreshed {
        let Some(_turn) = self.gates.try_turn(&record.account) else { return Refreshed::Skipped };
        let Ok(stored) = self.stored(asking, Some(record)).await else { return Refreshed::Later };
        match self.ask(asking, Some(record), stored.as_ref()).await {
            Settled::Proven { mailbox, source: Source::Directory, changes } => {
                if let Some(changes) = changes {
                    tracing::info!(
                        mailbox.address = %mailbox.address, %changes,
                        "mailbox changed by a question in the background"
                    );
                }
                Refreshed::Accepted
            }
            Settled::Proven { .. } => Refreshed::Later,
            Settled::Refused { refused, .. } => {
                tracing::info!(
                    login.name = %asking.login.address, reason = refused.reason.as_str(),
                    "a remembered password is no longer good"
                );
                Refreshed::Refused
            }
            Settled::Later(later) if later.reason == Reason::Busy => Refreshed::Skipped,
            Settled::Later(_) => Refreshed::Later,
        }
    }
}
