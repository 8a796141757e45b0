//! Active Directory and Samba: each domain controller numbers its changes (`uSNChanged`), and the root DSE has the
//! highest number. It is read each second; when it has grown, whoever has a higher number than before was touched.
//!
//! The numbers are one controller's own: they mean nothing at another, nor at one that was restored from a backup,
//! which has a new invocationId.

use std::time::Duration;

use ldap3::Scope;
use tokio::sync::mpsc::Sender;
use tokio::time::MissedTickBehavior;

use super::{End, Kind, MORE_THAN_TOLD, News, Source};
use crate::directory::connection::{Found, Query, SIZE_LIMIT};
use crate::directory::filter::Filter;

const POLL_EVERY: Duration = Duration::from_secs(1);

/// Where to go on from after a break.
#[derive(Default)]
pub(super) struct Past {
    /// The controller whose number this is: dsServiceName and invocationId.
    controller: String,
    /// All changes up to it were told.
    usn: u64,
}

/// What the root DSE says of the changes.
struct Newest {
    usn: u64,
    service: String,
    /// The domain's own part of the tree.
    domain: String,
}

/// What to do about the highest number.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing has changed.
    Rest,
    /// Ask who has this number or a higher one.
    AskFrom(u64),
    /// The numbers went back: this is not the database that it was.
    StartAnew,
}

fn step(told: u64, highest: u64) -> Step {
    match highest.cmp(&told) {
        std::cmp::Ordering::Less => Step::StartAnew,
        std::cmp::Ordering::Equal => Step::Rest,
        std::cmp::Ordering::Greater => Step::AskFrom(told + 1),
    }
}

/// Follows the controller, until it cannot be read any more.
pub(super) async fn follow(source: &Source<'_>, news: &Sender<News>, past: &mut Past) -> End {
    let begun = async {
        let newest = newest(source).await?;
        let controller = controller(source, &newest).await?;
        if past.controller != controller {
            *past = Past { controller, usn: newest.usn };
        }
        tell_changes(source, news, past, &newest).await?;
        source.profile.feed.begin(&source.host, Kind::Usn);
        news.send(News::Began).await.map_err(|_| End::Unheard)?;
        Ok(newest.service)
    };
    let service = match begun.await {
        Ok(service) => service,
        Err(end) => return end,
    };
    let mut polls = tokio::time::interval(POLL_EVERY);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = polls.tick() => {}
            () = news.closed() => return End::Unheard,
        }
        let polled = async {
            source.check_first()?;
            let newest = newest(source).await?;
            if newest.service != service {
                // A balancer in front of several controllers.
                return Err(End::Broken("another domain controller answers".into()));
            }
            tell_changes(source, news, past, &newest).await
        };
        if let Err(end) = polled.await {
            return end;
        }
    }
}

async fn newest(source: &Source<'_>) -> Result<Newest, End> {
    let names = ["highestCommittedUSN", "dsServiceName", "defaultNamingContext"];
    let entry = source.read("", &names).await?;
    let text = |name: &str| {
        let texts = entry.as_ref().and_then(|entry| entry.attributes.texts(name).next());
        texts.map(str::to_owned).unwrap_or_default()
    };
    let usn = text("highestCommittedUSN").parse();
    let usn = usn.map_err(|_| End::NoWay("no highestCommittedUSN".into()))?;
    Ok(Newest { usn, service: text("dsServiceName"), domain: text("defaultNamingContext") })
}

/// Who numbers. The invocationId changes when a controller's database is restored.
async fn controller(source: &Source<'_>, newest: &Newest) -> Result<String, End> {
    let entry = source.read(&newest.service, &["invocationId"]).await?;
    let id = entry.and_then(|entry| {
        let id = entry.attributes.values("invocationId").next();
        id.map(crate::directory::entry::hex)
    });
    Ok(format!("{} {}", newest.service, id.unwrap_or_default()))
}

/// Tells whose entries have a higher number than the last one told: in the whole domain, so that who was moved out of
/// the places where people are looked for is told too; the removed among them, where the service account may see
/// those (else they are noticed when they are asked about).
async fn tell_changes(
    source: &Source<'_>,
    news: &Sender<News>,
    past: &mut Past,
    newest: &Newest,
) -> Result<(), End> {
    let from = match step(past.usn, newest.usn) {
        Step::Rest => return Ok(()),
        Step::AskFrom(usn) => usn,
        Step::StartAnew => {
            *past = Past::default();
            return Err(End::Broken("the update numbers went back".into()));
        }
    };
    let filter = Filter::parse(&format!("(uSNChanged>={from})"));
    let filter = filter.map_err(|error| End::Broken(error.to_string()))?;
    let attributes = [source.profile.reader.identity.id_attribute.clone()];
    let query = Query {
        base: &newest.domain,
        scope: Scope::Subtree,
        filter: &filter,
        attributes: &attributes,
        limit: MORE_THAN_TOLD,
    };
    let within = source.profile.settings.timeout;
    let found = source.connection.search_removed_too(&query, within).await;
    match found.map_err(|error| End::Broken(error.to_string()))? {
        Found { code: 0, entries, .. } => source.tell(news, &entries).await?,
        Found { code: SIZE_LIMIT, .. } => {
            news.send(News::Flooded).await.map_err(|_| End::Unheard)?;
        }
        Found { code, text, .. } => {
            let said = format!("search for changes: code {code} {text}");
            return Err(End::NoWay(said.trim_end().to_owned()));
        }
    }
    past.usn = newest.usn;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_higher_than_the_last_number_told_is_asked_for() {
        assert_eq!(step(41, 41), Step::Rest);
        assert_eq!(step(41, 50), Step::AskFrom(42));
        assert_eq!(step(41, 40), Step::StartAnew);
    }
}
