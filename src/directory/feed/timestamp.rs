//! The last resort: asks every second for entries that were modified lately, by the server's own modifyTimestamp.
//!
//! Times have a grain of a second, and a change at another server may arrive here with an older one: each search
//! reaches back behind the newest time seen. Nobody tells of removed entries, nor of those moved in by a rename of
//! what stands above them.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::{End, Kind, MORE_THAN_TOLD, News, Source};
use crate::clock;
use crate::directory::connection::{Found, SIZE_LIMIT};
use crate::directory::entry::{Entry, generalized_time};
use crate::directory::filter::Filter;

const POLL_EVERY: Duration = Duration::from_secs(1);

/// Without an index each search looks at every entry: it may take one part of so many of the server's time.
const PART: u32 = 20;

/// Each search reaches back so far behind the newest time seen, in seconds.
const OVERLAP: i64 = 60;

/// The first search reaches back so far behind our own clock: the server's may be slow.
const FIRST_OVERLAP: i64 = 300;

const MODIFIED: &str = "modifyTimestamp";

/// Where to go on from after a break.
#[derive(Default)]
pub(super) struct Past {
    /// The server whose times these are.
    server: String,
    window: Option<Window>,
}

/// Which entries were told, and from which time on entries are asked for.
struct Window {
    /// The newest time seen, by the server's clock.
    newest: Option<i64>,
    /// Never ask further back: there was more than can be told.
    floor: i64,
    /// By DN: the time told, and whether it was told once more.
    told: HashMap<Box<str>, (i64, Told)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The entry may have been modified once more within that second.
    Once,
    /// In a later search: the second was over.
    Again,
}

impl Window {
    fn new(now: i64) -> Self {
        Self { newest: None, floor: now - FIRST_OVERLAP, told: HashMap::new() }
    }

    fn from(&self) -> i64 {
        self.newest.map_or(self.floor, |newest| self.floor.max(newest - OVERLAP))
    }

    /// Takes what the searches of one poll found, and leaves those that are to be told.
    fn take(&mut self, mut found: Vec<Entry>) -> Vec<Entry> {
        let mut news = Vec::new();
        // An entry may stand in two places.
        found.sort_by(|one, other| one.dn.cmp(&other.dn));
        found.dedup_by(|one, other| one.dn == other.dn);
        for entry in found {
            let modified = entry.attributes.texts(MODIFIED).next().and_then(generalized_time);
            let Some(modified) = modified else { continue };
            self.newest = self.newest.max(Some(modified));
            let told = match self.told.get(&entry.dn) {
                Some((at, Told::Again)) if *at == modified => continue,
                Some((at, Told::Once)) if *at == modified => Told::Again,
                _ => Told::Once,
            };
            self.told.insert(entry.dn.clone(), (modified, told));
            news.push(entry);
        }
        let from = self.from();
        self.told.retain(|_, (at, _)| *at >= from);
        news
    }

    /// What was changed before anybody listened is no news. (What was changed within the newest second may be changed
    /// in it once more.)
    fn begin(&mut self, found: Vec<Entry>) {
        self.take(found);
        let older = self.told.values_mut().filter(|(at, _)| Some(*at) < self.newest);
        older.for_each(|(_, told)| *told = Told::Again);
    }

    /// There was more than was given: what is older than the newest of it is given up.
    fn skip(&mut self, found: Vec<Entry>) {
        self.take(found);
        self.floor = self.newest.map_or(self.floor, |newest| newest + 1).max(self.floor);
        self.told.clear();
    }
}

/// Follows the places of the profile, until they cannot be read any more.
pub(super) async fn follow(source: &Source<'_>, news: &Sender<News>, past: &mut Past) -> End {
    let server = source.host.label().to_string();
    if past.server != server {
        *past = Past { server, window: None };
    }
    let began = async {
        for place in &source.profile.places {
            let entry = source.read(&place.base, &[MODIFIED]).await?;
            let readable =
                entry.is_some_and(|entry| entry.attributes.texts(MODIFIED).next().is_some());
            if !readable {
                return Err(End::NoWay(format!(
                    "{} of {:?} is not readable",
                    MODIFIED, place.base
                )));
            }
        }
        match &mut past.window {
            Some(window) => poll(source, news, window).await?,
            None => {
                let mut window = Window::new(clock::unix_seconds());
                let (found, flooded) = look_back(source, &window).await?;
                if flooded {
                    window.skip(found);
                } else {
                    window.begin(found);
                }
                past.window = Some(window);
            }
        }
        source.profile.feed.begin(&source.host, Kind::Timestamp);
        news.send(News::Began).await.map_err(|_| End::Unheard)
    };
    if let Err(end) = began.await {
        return end;
    }
    let mut pause = POLL_EVERY;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = news.closed() => return End::Unheard,
        }
        let started = clock::now();
        let polled = async {
            source.check_first()?;
            match &mut past.window {
                Some(window) => poll(source, news, window).await,
                None => Ok(()),
            }
        };
        if let Err(end) = polled.await {
            return end;
        }
        pause = POLL_EVERY.max(clock::now().saturating_duration_since(started) * PART);
    }
}

async fn poll(source: &Source<'_>, news: &Sender<News>, window: &mut Window) -> Result<(), End> {
    let (found, flooded) = look_back(source, window).await?;
    if flooded {
        window.skip(found);
        return news.send(News::Flooded).await.map_err(|_| End::Unheard);
    }
    source.tell(news, &window.take(found)).await
}

/// The entries of all places that were modified since the window's beginning, and whether there are more.
async fn look_back(source: &Source<'_>, window: &Window) -> Result<(Vec<Entry>, bool), End> {
    let from = generalized(window.from());
    let filter = Filter::parse(&format!("({MODIFIED}>={from})"));
    let filter = filter.map_err(|error| End::Broken(error.to_string()))?;
    let attributes = [source.profile.reader.identity.id_attribute.clone(), MODIFIED.to_owned()];
    let (mut all, mut flooded) = (Vec::new(), false);
    for place in &source.profile.places {
        let query = place.query(&filter, &attributes, MORE_THAN_TOLD);
        let found = source.connection.search(&query, source.profile.settings.timeout).await;
        match found.map_err(|error| End::Broken(error.to_string()))? {
            Found { code: code @ (0 | SIZE_LIMIT), entries, .. } => {
                flooded |= code == SIZE_LIMIT;
                all.extend(entries);
            }
            Found { code, text, .. } => {
                let said = format!("search for changes: code {code} {text}");
                return Err(End::NoWay(said.trim_end().to_owned()));
            }
        }
    }
    Ok((all, flooded))
}

/// `YYYYMMDDhhmmssZ` of seconds since 1970; no entry is older than that.
fn generalized(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    let (year, month, day) = clock::civil_from_days(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::person::Attributes;

    fn entry(dn: &str, modified: i64) -> Entry {
        let mut attributes = Attributes::default();
        attributes.insert(MODIFIED, [generalized(modified).into_bytes().into_boxed_slice()]);
        Entry { dn: dn.into(), attributes }
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        assert_eq!(generalized(0), "19700101000000Z");
        assert_eq!(generalized(1_795_640_399), "20261125205959Z");
        for seconds in (0..4_000_000_000).step_by(12_345_678) {
            assert_eq!(generalized_time(&generalized(seconds)), Some(seconds));
        }
    }

    #[test]
    fn each_change_is_told_twice_and_no_more() {
        let mut window = Window::new(10_000);
        assert_eq!(window.from(), 9_700);

        assert_eq!(window.take(vec![entry("fry", 20_000)]).len(), 1);
        assert_eq!(window.from(), 19_940, "by the server's clock from now on");
        assert_eq!(window.take(vec![entry("fry", 20_000)]).len(), 1, "perhaps within that second");
        assert_eq!(window.take(vec![entry("fry", 20_000)]).len(), 0);
        assert_eq!(window.take(vec![entry("fry", 20_001)]).len(), 1);
        assert_eq!(window.take(vec![entry("leela", 19_950)]).len(), 1, "came late");

        assert_eq!(window.take(vec![entry("amy", 20_100)]).len(), 1);
        assert_eq!(window.told.len(), 1, "the others are out of the window");
    }

    #[test]
    fn what_was_changed_before_is_no_news() {
        let mut window = Window::new(10_000);
        let found = || vec![entry("fry", 9_990), entry("amy", 9_995)];
        window.begin(found());
        let told = window.take(found());
        assert_eq!(told.len(), 1, "amy, perhaps within that second");
        assert_eq!(window.take(found()).len(), 0);
        assert_eq!(window.take(vec![entry("fry", 9_991)]).len(), 1);
    }

    #[test]
    fn after_too_many_at_once_none_of_them_is_asked_for_again() {
        let mut window = Window::new(10_000);
        window.skip(vec![entry("fry", 20_000), entry("amy", 19_999)]);
        assert_eq!(window.from(), 20_001);
    }
}
