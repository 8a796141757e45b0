//! Hears of changes at a directory as they happen, so that what is remembered of somebody ends with what it stood on.
//!
//! One task per profile follows one server: the one that is asked first. It takes the best way that the server has:
//! RFC 4533 (`sync`), Active Directory's update numbers, or the entries' own timestamps. A feed is a trigger only:
//! it says whose entry was touched; what that means is seen by reading the entry again (`reread`), at the same
//! server, for another may not have heard of the change yet. Without a feed everything works as with one, only later:
//! changes are seen when what is remembered is asked about again.

mod reread;
mod sync;
mod sync_messages;
mod timestamp;
mod usn;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ldap3::Scope;
use tokio::sync::mpsc::Sender;

pub use reread::Reread;
pub(super) use sync_messages::SYNC_STATE_OID;

use super::connection::{Connection, Query};
use super::entry::{Entry, show_id};
use super::filter::Filter;
use super::host::Host;
use super::pool::lock;
use super::profile::Profile;
use crate::clock;
use crate::metrics::Metrics;
use crate::person::Attributes;

/// A feed that ended, or found no server, begins anew after this time.
const RETRY: Duration = Duration::from_secs(1);

/// A server that has no way to tell may be given one, some day.
const RETRY_WITHOUT_WAY: Duration = Duration::from_secs(60);

/// More entries than this in one search: they are not told one by one.
const MORE_THAN_TOLD: u16 = 1_000;

/// What a feed tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// From here on every change is told.
    Began,
    /// More changed than can be told one by one: anybody may have.
    Flooded,
    /// Changes are no longer told.
    Lost,
    /// Somebody's entry was changed, moved or removed.
    Touched(Touch),
}

/// Whose entry was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The immutable id, where the feed's message has it.
    pub id: Option<Box<str>>,
    /// Where the entry stands, or stood; empty if the message has the id only.
    pub dn: Box<str>,
}

/// How changes are heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RFC 4533, refreshAndPersist.
    Sync,
    /// modifyTimestamp, asked for again and again.
    Timestamp,
    /// Active Directory's update numbers, asked for again and again.
    Usn,
}

impl Kind {
    /// The best way that a server offers by its root DSE.
    pub(super) fn offered(root: &Attributes) -> Self {
        if root.values("highestCommittedUSN").next().is_some() {
            Self::Usn
        } else if root.texts("supportedControl").any(|oid| oid == sync::SYNC_REQUEST_OID) {
            Self::Sync
        } else {
            Self::Timestamp
        }
    }

    /// Its word in the log and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "syncrepl",
            Self::Timestamp => "timestamp",
            Self::Usn => "usn",
        }
    }
}

/// How the changes of one profile are heard of at present.
#[derive(Debug)]
pub(super) struct Feed {
    profile: Arc<str>,
    metrics: Metrics,
    /// What is read of an entry changes only when the entry is touched.
    told_in_full: bool,
    live: Mutex<Option<Live>>,
}

/// A server that tells changes.
#[derive(Clone, Debug)]
struct Live {
    host: Arc<Host>,
    kind: Kind,
    run: u64,
}

/// Numbers the times that a feed began, in the whole process: none is ever taken for another.
static RUNS: AtomicU64 = AtomicU64::new(1);

impl Feed {
    pub(super) fn new(profile: Arc<str>, metrics: Metrics, told_in_full: bool) -> Self {
        Self { profile, metrics, told_in_full, live: Mutex::default() }
    }

    /// See [`Profile::vouching`]. Timestamps are too coarse to vouch for anything.
    pub(super) fn vouching(&self) -> Option<u64> {
        let live = lock(&self.live);
        let live = live.as_ref().filter(|live| self.told_in_full && live.kind != Kind::Timestamp);
        live.map(|live| live.run)
    }

    fn begin(&self, host: &Arc<Host>, kind: Kind) {
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        *lock(&self.live) = Some(Live { host: Arc::clone(host), kind, run });
        self.metrics.feed(&self.profile, kind.as_str());
        tracing::info!(
            directory = %self.profile, directory.server = %host.label(), kind = kind.as_str(),
            "changes are followed"
        );
    }

    /// Whether it was live.
    fn end(&self) -> bool {
        self.metrics.feed_lost(&self.profile);
        lock(&self.live).take().is_some()
    }

    fn host(&self) -> Option<Arc<Host>> {
        lock(&self.live).as_ref().map(|live| Arc::clone(&live.host))
    }
}

/// Ends the feed when the task that follows it is dropped.
struct Ending<'a>(&'a Feed);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end();
        self.0.metrics.feed_forgotten(&self.0.profile);
    }
}

/// Why following came to an end.
#[derive(Debug)]
enum End {
    /// The server has no such way, or refuses it.
    NoWay(String),
    /// Another server is asked first now.
    Elsewhere,
    /// The connection or the search ended.
    Broken(String),
    /// Nobody listens to the news any more.
    Unheard,
}

/// What a server says of itself (RFC 4512 §5.1).
struct Root {
    contexts: Vec<String>,
    offers: Kind,
}

/// Where to go on from after a break.
#[derive(Default)]
struct Past {
    sync: sync::Past,
    timestamp: timestamp::Past,
    usn: usn::Past,
}

/// A server that is followed, with a connection of its own.
struct Source<'a> {
    profile: &'a Profile,
    host: Arc<Host>,
    connection: Connection,
}

impl Profile {
    /// Follows the directory's changes and tells them, until nobody listens any more. Cancel-safe; no news are told
    /// after that.
    pub async fn follow(&self, news: Sender<News>) {
        let _ending = Ending(&self.feed);
        self.feed.metrics.feed_lost(&self.feed.profile);
        let mut past = Past::default();
        while !news.is_closed() {
            let end = self.follow_one(&news, &mut past).await;
            if self.feed.end() {
                if news.send(News::Lost).await.is_err() {
                    return;
                }
                tracing::warn!(
                    directory = %self.name(), reason = %end,
                    "changes are no longer followed: they are seen when somebody is asked about again"
                );
            } else {
                tracing::debug!(directory = %self.name(), reason = %end, "changes cannot be followed");
            }
            let pause = if matches!(end, End::NoWay(_)) { RETRY_WITHOUT_WAY } else { RETRY };
            tokio::time::sleep(pause).await;
        }
    }

    /// Follows the server that is asked first, in the best way that it has.
    async fn follow_one(&self, news: &Sender<News>, past: &mut Past) -> End {
        let Some(host) = self.pool.first(clock::now()) else {
            return End::Broken("no server answers".into());
        };
        let connection = match host.open().await {
            Ok(connection) => connection,
            Err(failure) => return End::Broken(failure.detail),
        };
        let source = Source { profile: self, host, connection };
        let root = match source.root().await {
            Ok(root) => root,
            Err(end) => return end,
        };
        match root.offers {
            Kind::Usn => return usn::follow(&source, news, &mut past.usn).await,
            Kind::Sync => match sync::follow(&source, &root, news, &mut past.sync).await {
                End::NoWay(reason) => {
                    tracing::debug!(
                        directory = %self.name(), directory.server = %source.host.label(), reason,
                        "no change feed by RFC 4533: trying timestamps"
                    );
                }
                end => return end,
            },
            Kind::Timestamp => {}
        }
        timestamp::follow(&source, news, &mut past.timestamp).await
    }
}

impl Source<'_> {
    async fn root(&self) -> Result<Root, End> {
        let names = ["supportedControl", "namingContexts", "highestCommittedUSN"];
        let entry = self.read("", &names).await?;
        let entry = entry.ok_or_else(|| End::Broken("the root DSE is not readable".into()))?;
        let contexts = entry.attributes.texts("namingContexts").map(str::to_owned).collect();
        Ok(Root { contexts, offers: Kind::offered(&entry.attributes) })
    }

    /// One entry, on the feed's own connection; `None` if it is not there or not readable.
    async fn read(&self, dn: &str, attributes: &[&str]) -> Result<Option<Entry>, End> {
        let filter = Filter::any();
        let attributes: Vec<String> = attributes.iter().map(|name| (*name).to_owned()).collect();
        let (base, scope) = (dn, Scope::Base);
        let query = Query { base, scope, filter: &filter, attributes: &attributes, limit: 1 };
        let found = self.connection.search(&query, self.profile.settings.timeout).await;
        let found = found.map_err(|error| End::Broken(error.to_string()))?;
        Ok(found.entries.into_iter().next())
    }

    /// Whether the server is there, and still the one to follow.
    async fn look(&self) -> Result<(), End> {
        self.read("", &["1.1"]).await?;
        self.check_first()
    }

    /// Whether the server is still the one to follow.
    fn check_first(&self) -> Result<(), End> {
        let first = self.profile.pool.first(clock::now());
        match first {
            Some(first) if !Arc::ptr_eq(&first, &self.host) => Err(End::Elsewhere),
            _ => Ok(()),
        }
    }

    /// Tells that these entries were touched.
    async fn tell(&self, news: &Sender<News>, entries: &[Entry]) -> Result<(), End> {
        let identity = &self.profile.reader.identity;
        for entry in entries {
            let value = entry.attributes.values(&identity.id_attribute).next();
            let id = value.and_then(|value| show_id(identity.id_format, value));
            let touch = Touch { id: id.map(String::into_boxed_str), dn: entry.dn.clone() };
            news.send(News::Touched(touch)).await.map_err(|_| End::Unheard)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoWay(detail) | Self::Broken(detail) => formatter.write_str(detail),
            Self::Elsewhere => formatter.write_str("another server is asked first now"),
            Self::Unheard => formatter.write_str("nobody listens"),
        }
    }
}
