//! Operations on a connection of the client library's: what feeds and `directory test` ask. The one place that has such
//! connections, so that no operation goes without a time limit and no search leaves its message id behind. Logins search and
//! bind on their own (`searching`, `bind`).

use std::time::Duration;

use bytes::BytesMut;
use ldap3::asn1::{StructureTag, write};
use ldap3::controls::{RawControl, RefreshMode, SyncRequest};
use ldap3::{Ldap, LdapError, LdapResult, Scope, SearchOptions, SearchStream};
use tokio::time::timeout;

use super::answer::{self, Item};
use super::connect::show;
use super::entry::{Entry, EntryError};
use super::feed::SYNC_STATE_OID;
use super::filter::Filter;
use super::verdict::{BindReply, POLICY_OID, parse_policy};

/// A connection; dropping the last handle closes it.
#[derive(Debug)]
pub struct Connection {
    ldap: Ldap,
}

/// What to search for.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// The DN to start at.
    pub base: &'a str,
    /// How deep.
    pub scope: Scope,
    /// Whom.
    pub filter: &'a Filter,
    /// Which attributes.
    pub attributes: &'a [String],
    /// More entries than this: code 4.
    pub limit: u16,
}

/// A search's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// LDAP result code.
    pub code: u32,
    /// The server's own words.
    pub text: String,
    /// What was found, at most the limit.
    pub entries: Vec<Entry>,
}

/// Why an operation has no answer. The connection must not be used again, unless [`OperationError::is_answered`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// The connection ended after the request was given to it.
    #[error("connection ended: {0}")]
    Broken(String),
    /// The server answered, but with an entry that could not be read.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The client library does not take the filter.
    #[error("filter {0} is not accepted")]
    Filter(String),
    /// The connection had ended before the request was sent.
    #[error("connection was closed")]
    NotSent,
    /// No answer in time.
    #[error("no answer within {}", show(*.0))]
    Timeout(Duration),
}

impl OperationError {
    /// Whether the server is not to blame: the connection is as good as before.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Entry(_) | Self::Filter(_))
    }
}

impl Connection {
    pub(super) fn new(ldap: Ldap) -> Self {
        Self { ldap }
    }

    /// A simple bind. An answer of the server, whatever its code, is `Ok`.
    ///
    /// # Errors
    /// [`OperationError`]. Not cancel-safe: a bind that was dropped half way still decides who this connection is.
    pub async fn bind(
        &mut self,
        dn: &str,
        password: &str,
        within: Duration,
    ) -> Result<BindReply, OperationError> {
        let control = RawControl { ctype: POLICY_OID.to_owned(), crit: false, val: None };
        let call = self.ldap.with_controls(control).with_timeout(within).simple_bind(dn, password);
        let LdapResult { rc, text, ctrls, .. } =
            limited(within, call).await?.map_err(|error| operation_error(error, within))?;
        let policy = ctrls
            .into_iter()
            .find(|control| control.1.ctype == POLICY_OID)
            .and_then(|control| parse_policy(&control.1.val.unwrap_or_default()));
        Ok(BindReply { code: rc, text, policy })
    }

    /// A search; many may run at once on one connection. Referrals are ignored.
    ///
    /// # Errors
    /// [`OperationError`].
    pub async fn search(
        &self,
        query: &Query<'_>,
        within: Duration,
    ) -> Result<Found, OperationError> {
        limited(within, self.run(query, Vec::new(), within)).await?
    }

    /// The same, with entries that were removed, as Active Directory keeps them, where they may be seen.
    ///
    /// # Errors
    /// [`OperationError`].
    pub(super) async fn search_removed_too(
        &self,
        query: &Query<'_>,
        within: Duration,
    ) -> Result<Found, OperationError> {
        let control = RawControl { ctype: SHOW_DELETED_OID.to_owned(), crit: false, val: None };
        limited(within, self.run(query, vec![control], within)).await?
    }

    async fn run(
        &self,
        query: &Query<'_>,
        controls: Vec<RawControl>,
        within: Duration,
    ) -> Result<Found, OperationError> {
        let failed = |error| match error {
            LdapError::FilterParsing => OperationError::Filter(query.filter.as_str().to_owned()),
            other => operation_error(other, within),
        };
        let mut ldap = self.ldap.clone();
        let options = SearchOptions::new().sizelimit(i32::from(query.limit));
        // The plain stream: adapters, `search()` among them, leave each message id in a set that only grows.
        if !controls.is_empty() {
            ldap.with_controls(controls);
        }
        let mut stream = ldap
            .with_search_options(options)
            .with_timeout(within)
            .streaming_search(query.base, query.scope, query.filter.as_str(), query.attributes)
            .await
            .map_err(failed)?;
        let mut entries = Vec::new();
        let mut problem = None;
        // Nothing is asked of the stream after its first None: it would panic.
        let ended = loop {
            let Some(item) = stream.next().await.map_err(failed)? else { break true };
            match answer::decode(&encoded(item.0)?) {
                Ok(Item::Entry(_)) if entries.len() >= usize::from(query.limit) => break false,
                Ok(Item::Entry(entry)) => entries.push(entry),
                Ok(Item::Ignored) => {}
                Err(error) => problem = Some(EntryError::from(error)),
            }
        };
        let id = stream.ldap_handle().last_id();
        let LdapResult { rc, text, .. } = stream.finish().await;
        if !ended {
            // The server does not keep to the size limit.
            ldap.with_timeout(within).abandon(id).await.map_err(failed)?;
        }
        if let Some(problem) = problem {
            return Err(problem.into());
        }
        if !ended {
            return Ok(Found { code: SIZE_LIMIT, text: String::new(), entries });
        }
        Ok(Found { code: rc, text, entries })
    }

    /// A search that goes on after what is there: every change follows as it happens (RFC 4533, refreshAndPersist).
    /// `cookie` says since when. A server that does not know the control refuses the search.
    ///
    /// # Errors
    /// [`OperationError`]; `within` is the time to send it.
    pub(super) async fn follow(
        &self,
        query: &Query<'_>,
        cookie: Option<Vec<u8>>,
        within: Duration,
    ) -> Result<Following, OperationError> {
        let request =
            SyncRequest { mode: RefreshMode::RefreshAndPersist, cookie, reload_hint: false };
        let control = RawControl { crit: true, ..RawControl::from(request) };
        let mut ldap = self.ldap.clone();
        ldap.with_controls(control);
        let (filter, attributes) = (query.filter.as_str(), query.attributes.to_vec());
        // No time limit of the stream: the next change may come tomorrow.
        let begun = ldap.streaming_search(query.base, query.scope, filter, attributes);
        let stream = limited(within, begun).await?;
        Ok(Following { stream: stream.map_err(|error| operation_error(error, within))? })
    }

    /// The server's certificate (DER), on a protected connection.
    pub(super) async fn certificate(&mut self, within: Duration) -> Option<Vec<u8>> {
        timeout(within, self.ldap.get_peer_certificate()).await.ok()?.ok()?
    }
}

/// A search that goes on.
pub(super) struct Following {
    stream: SearchStream<'static, String, Vec<String>>,
}

/// What a search that goes on tells.
pub(super) enum Followed {
    /// An entry, with the value of its sync state control.
    Entry { entry: Entry, state: Option<Vec<u8>> },
    /// The value of a message between entries.
    Info(Vec<u8>),
    /// A referral.
    Nothing,
    /// It is over; it must not be asked again.
    Ended { code: u32, text: String },
}

impl Following {
    /// The next message. Waits as long as nothing changes, unless the connection ends. Cancel-safe.
    ///
    /// # Errors
    /// [`OperationError`]; it must not be asked again.
    pub(super) async fn next(&mut self) -> Result<Followed, OperationError> {
        let item = self.stream.next().await;
        let Some(item) = item.map_err(|error| operation_error(error, Duration::ZERO))? else {
            let LdapResult { rc, text, .. } = self.stream.finish().await;
            return Ok(Followed::Ended { code: rc, text });
        };
        if item.is_intermediate() {
            let operation = encoded(item.0)?;
            let value = answer::intermediate(&operation).map(<[u8]>::to_vec);
            return Ok(value.map_or(Followed::Nothing, Followed::Info));
        }
        let state = item.1.into_iter().find(|control| control.1.ctype == SYNC_STATE_OID);
        let state = state.and_then(|control| control.1.val);
        Ok(match answer::decode(&encoded(item.0)?).map_err(EntryError::from)? {
            Item::Entry(entry) => Followed::Entry { entry, state },
            Item::Ignored => Followed::Nothing,
        })
    }
}

/// MS-ADTS 3.1.1.3.4.1.14: LDAP_SERVER_SHOW_DELETED_OID.
const SHOW_DELETED_OID: &str = "1.2.840.113556.1.4.417";

/// RFC 4511: sizeLimitExceeded.
pub(super) const SIZE_LIMIT: u32 = 4;

async fn limited<T>(within: Duration, call: impl Future<Output = T>) -> Result<T, OperationError> {
    timeout(within, call).await.map_err(|_| OperationError::Timeout(within))
}

/// The client library's tree as the bytes that it was.
fn encoded(tag: StructureTag) -> Result<BytesMut, OperationError> {
    let mut bytes = BytesMut::new();
    write::encode_into(&mut bytes, tag)
        .map_err(|error| OperationError::Broken(error.to_string()))?;
    Ok(bytes)
}

fn operation_error(error: LdapError, within: Duration) -> OperationError {
    match error {
        LdapError::OpSend { .. } => OperationError::NotSent,
        LdapError::Timeout { .. } => OperationError::Timeout(within),
        LdapError::ResultRecv { .. } | LdapError::EndOfStream => {
            OperationError::Broken("no answer came".into())
        }
        other => OperationError::Broken(other.to_string()),
    }
}
