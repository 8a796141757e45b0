//! RFC 4533, refreshAndPersist: a search that does not end. OpenLDAP's syncprov, 389-ds' content sync.
//!
//! The refresh that begins it is made as short as the server allows: by the cookie of the time before, or on OpenLDAP
//! by one made of the database's contextCSN, so that no list of all entries is sent. What is sent is dropped as it
//! comes; with a cookie of before it is what changed in the gap.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::sync_messages::{SyncInfo, Uuid, sync_info, sync_state};
use super::{End, Kind, News, Root, Source, Touch};
use crate::directory::connection::{Followed, Following, OperationError, Query};
use crate::directory::entry::{Entry, hex, hyphenate, show_id};
use crate::directory::filter::Filter;
use crate::directory::matching::depth_below;
use crate::directory::preset::Identity;

/// RFC 4533 §2.2: listed in the root DSE of servers that have it.
pub(super) const SYNC_REQUEST_OID: &str = "1.3.6.1.4.1.4203.1.9.1.1";

/// The server is asked for a sign of life this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Messages between the tasks that read a search and the one that understands them.
const MESSAGES: usize = 64;

/// Where to go on from after a break.
#[derive(Default)]
pub(super) struct Past {
    /// The server whose cookies these are.
    server: String,
    /// One per place.
    cookies: Vec<Option<Vec<u8>>>,
}

/// One place's search.
struct Search {
    /// What the refresh tells is what changed since the cookie of before; else it is everything there is.
    has_past: bool,
    /// What is told now are changes as they happen.
    persists: bool,
}

/// A message of one place's search.
type Message = (usize, Result<Followed, OperationError>);

/// Follows all places of the profile, until one of the searches ends.
pub(super) async fn follow(
    source: &Source<'_>,
    root: &Root,
    news: &mpsc::Sender<News>,
    past: &mut Past,
) -> End {
    let places = &source.profile.places;
    let server = source.host.label().to_string();
    if past.server != server || past.cookies.len() != places.len() {
        *past = Past { server, cookies: vec![None; places.len()] };
    }
    let (sender, mut messages) = mpsc::channel(MESSAGES);
    // Dropped with this function: the tasks end with it.
    let mut tasks = JoinSet::new();
    let mut searches = Vec::new();
    for (number, cookie) in past.cookies.iter_mut().enumerate() {
        let has_past = cookie.is_some();
        if !has_past {
            *cookie = source.cookie_of_now(root, number).await;
        }
        match source.begin(number, cookie.clone()).await {
            Ok(following) => tasks.spawn(read_on(following, number, sender.clone())),
            Err(end) => return end,
        };
        searches.push(Search { has_past, persists: false });
    }
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        let taken = tokio::select! {
            message = messages.recv() => match message {
                Some(message) => take(source, news, (&mut searches, past), message).await,
                None => Err(End::Broken("the search ended".into())),
            },
            _ = look.tick() => source.look().await,
            () = news.closed() => Err(End::Unheard),
        };
        if let Err(end) = taken {
            return end;
        }
    }
}

/// Reads one search to its end.
async fn read_on(mut following: Following, number: usize, messages: mpsc::Sender<Message>) {
    loop {
        let message = following.next().await;
        let is_last = matches!(message, Err(_) | Ok(Followed::Ended { .. }));
        if messages.send((number, message)).await.is_err() || is_last {
            return;
        }
    }
}

/// Understands one message.
async fn take(
    source: &Source<'_>,
    news: &mpsc::Sender<News>,
    (searches, past): (&mut [Search], &mut Past),
    (number, message): Message,
) -> Result<(), End> {
    let (Some(search), Some(cookie)) = (searches.get_mut(number), past.cookies.get_mut(number))
    else {
        return Ok(());
    };
    let identity = &source.profile.reader.identity;
    let mut began = false;
    let (touched, new_cookie) = match message.map_err(|error| End::Broken(error.to_string()))? {
        Followed::Entry { entry, state } => {
            let state = state.as_deref().and_then(sync_state);
            // Without its state it is the answer to a plain search: the server has ignored the control.
            let state = state.ok_or_else(|| End::NoWay("no RFC 4533 from this server".into()))?;
            let tell = !state.is_present && (search.persists || search.has_past);
            let touch = touch(identity, Some(&entry), &state.uuid);
            (tell.then_some(touch).into_iter().collect(), state.cookie)
        }
        Followed::Info(value) => {
            let odd = || End::Broken("a message of the feed is malformed".into());
            match sync_info(&value).ok_or_else(odd)? {
                SyncInfo::Cookie(cookie) => (Vec::new(), Some(cookie)),
                SyncInfo::Refreshed { cookie, done } => {
                    began = done && !search.persists;
                    search.persists |= done;
                    (Vec::new(), cookie)
                }
                SyncInfo::Gone { cookie, uuids } => {
                    (uuids.iter().map(|uuid| touch(identity, None, uuid)).collect(), cookie)
                }
                SyncInfo::StillThere { cookie } => (Vec::new(), cookie),
            }
        }
        Followed::Nothing => return Ok(()),
        Followed::Ended { code, text } => {
            let said = format!("the server ended the search: code {code} {text}");
            let said = said.trim_end().to_owned();
            if search.persists {
                return Err(End::Broken(said));
            }
            // With the cookie of before it may have had too much to tell (a size limit), or no use for it
            // (e-syncRefreshRequired). A server that never comes to the changes has no feed for us.
            *cookie = None;
            return Err(if search.has_past { End::Broken(said) } else { End::NoWay(said) });
        }
    };
    // An empty one says nothing (OpenLDAP, after a cookie that it could not use).
    if let Some(new) = new_cookie.filter(|new| !new.is_empty()) {
        *cookie = Some(new);
    }
    for touch in touched {
        news.send(News::Touched(touch)).await.map_err(|_| End::Unheard)?;
    }
    if began && searches.iter().all(|search| search.persists) {
        source.profile.feed.begin(&source.host, Kind::Sync);
        news.send(News::Began).await.map_err(|_| End::Unheard)?;
    }
    Ok(())
}

impl Source<'_> {
    /// Begins the search of one place. All entries of the place, not those of its filter alone: who leaves the filter
    /// is told as any other change.
    async fn begin(&self, number: usize, cookie: Option<Vec<u8>>) -> Result<Following, End> {
        let Some(place) = self.profile.places.get(number) else {
            return Err(End::Broken("no such place".into()));
        };
        let filter = Filter::any();
        let attributes = [self.profile.reader.identity.id_attribute.clone()];
        let query = Query { filter: &filter, ..place.query(&filter, &attributes, 0) };
        let following = self.connection.follow(&query, cookie, self.profile.settings.timeout).await;
        following.map_err(|error| End::Broken(error.to_string()))
    }

    /// OpenLDAP: the cookie that means "all that has happened until now" is made of the contextCSN of the database.
    /// `None`: the server has none, or does not show it; then it sends all its entries once.
    async fn cookie_of_now(&self, root: &Root, number: usize) -> Option<Vec<u8>> {
        let base = &self.profile.places.get(number)?.base;
        let above =
            root.contexts.iter().filter_map(|context| Some((depth_below(base, context)?, context)));
        let (_, context) = above.min_by_key(|(depth, _)| *depth)?;
        let entry = self.read(context, &["contextCSN"]).await.ok()??;
        cookie_of(entry.attributes.texts("contextCSN"))
    }
}

/// OpenLDAP's cookie of one or several CSNs (one per server that takes changes).
fn cookie_of<'a>(csns: impl Iterator<Item = &'a str>) -> Option<Vec<u8>> {
    let csns: Vec<&str> = csns.collect();
    (!csns.is_empty()).then(|| format!("rid=000,csn={}", csns.join(";")).into_bytes())
}

/// Whose entry a message is about: by the attribute that is the id here, or by RFC 4533's UUID where that is the same.
fn touch(identity: &Identity, entry: Option<&Entry>, uuid: &Uuid) -> Touch {
    let attribute = identity.id_attribute.as_str();
    let told = entry.and_then(|entry| {
        let value = entry.attributes.values(attribute).next()?;
        show_id(identity.id_format, value)
    });
    let id = told.or_else(|| match attribute.to_ascii_lowercase().as_str() {
        "entryuuid" => Some(hyphenate(&hex(uuid))),
        "nsuniqueid" => Some(ns_unique_id(uuid)),
        _ => None,
    });
    let dn = entry.map(|entry| entry.dn.clone()).unwrap_or_default();
    Touch { id: id.map(String::into_boxed_str), dn }
}

/// 389-ds makes the UUID of the 16 bytes that nsUniqueId shows in four groups of eight digits.
fn ns_unique_id(uuid: &Uuid) -> String {
    let groups: Vec<String> = uuid.chunks(4).map(hex).collect();
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::directory::{Directory, Preset};
    use crate::directory::preset;

    const UUID: Uuid = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";

    fn identity(preset: Preset) -> Identity {
        preset::identity(&Directory { preset, ..Directory::default() }).unwrap()
    }

    #[test]
    fn the_id_is_the_uuid_where_it_is_the_same_or_the_attribute() {
        let mut entry = Entry { dn: "uid=fry".into(), attributes: Default::default() };
        let id = |preset, entry: Option<&Entry>| touch(&identity(preset), entry, &UUID).id;
        let shown = Some("00112233-4455-6677-8899-aabbccddeeff".into());
        assert_eq!(id(Preset::OpenLdap, Some(&entry)), shown);
        assert_eq!(id(Preset::OpenLdap, None), shown);
        let shown = Some("00112233-44556677-8899aabb-ccddeeff".into());
        assert_eq!(id(Preset::ThreeEightNine, None), shown);
        assert_eq!(id(Preset::FreeIpa, None), None);

        let other = "99999999-4455-6677-8899-aabbccddeeff";
        entry.attributes.insert("ipaUniqueID", [other.as_bytes().into()]);

        assert_eq!(id(Preset::FreeIpa, Some(&entry)), Some(other.into()));
    }

    #[test]
    fn a_cookie_holds_every_servers_csn() {
        assert_eq!(cookie_of(["a", "b"].into_iter()), Some(b"rid=000,csn=a;b".to_vec()));
        assert_eq!(cookie_of(std::iter::empty()), None);
    }
}
