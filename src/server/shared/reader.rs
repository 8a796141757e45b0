//! Hears what other nodes write to the shared server, and what this one wrote before it was restarted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{Value, cmd};
use tokio_util::sync::CancellationToken;

use super::link::{Link, Trouble, array, bytes, pairs};
use super::outbox::{News, Stream};
use super::{Exchange, Pauses, Side, codec};
use crate::clock;
use crate::throttle::Subject;

/// So long the server may leave the question for news open.
const OPEN: Duration = Duration::from_secs(1);

/// Entries of each stream that are read at one go.
const ENTRIES: usize = 128;

/// How often the server is asked what time it is.
const TIME_EVERY: Duration = Duration::from_secs(60);

/// Processes whose last batches are kept in mind.
const MAX_NODES: usize = 4096;

/// An entry's id: milliseconds since 1970 by the server's clock, and a number among those of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Id(u64, u64);

impl Id {
    fn parse(text: &[u8]) -> Option<Self> {
        let (millis, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self(millis.parse().ok()?, number.parse().ok()?))
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}", self.0, self.1)
    }
}

/// How far a node has read.
#[derive(Debug, Default)]
struct Position {
    /// The last entry of each stream; `None`: this process has just begun.
    ids: Option<[Id; Stream::COUNT]>,
    /// The last batch of each process in each stream.
    batches: HashMap<(usize, Box<[u8]>), u64>,
}

/// An entry as the server gave it.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    id: Id,
    stream: Stream,
    node: &'a [u8],
    number: u64,
    batch: &'a [u8],
}

/// Reads until `ending`.
pub(super) async fn run(exchange: Arc<Exchange>, ending: CancellationToken) {
    let mut position = Position::default();
    let mut pauses = Pauses::new();
    loop {
        let session = async {
            let mut link = Link::open(&exchange.server).await?;
            position.begin(&exchange.reach, link.now());
            loop {
                exchange.read(&mut link, &mut position).await?;
                pauses = Pauses::new();
                exchange.health.up(Side::Reader);
            }
        };
        let session = ending.run_until_cancelled(session).await;
        let Some(Err::<std::convert::Infallible, Trouble>(trouble)) = session else { return };
        exchange.health.down(Side::Reader, &trouble);
        tokio::select! {
            () = tokio::time::sleep(pauses.next()) => {}
            () = ending.cancelled() => return,
        }
    }
}

impl Position {
    /// Where to go on. `now`: by the server's clock, in milliseconds since 1970.
    fn begin(&mut self, reach: &[Duration; Stream::COUNT], now: i64) {
        let now = u64::try_from(now).unwrap_or_default();
        let back = |span: &Duration| {
            Id(now.saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)), 0)
        };
        // Another server's clock may be behind: what it writes from now on must be read.
        let on = |id: Id| if id.0 > now { Id(now, 0) } else { id };
        self.ids = Some(match self.ids {
            None => reach.each_ref().map(back),
            Some(ids) => ids.map(on),
        });
    }

    /// Whether a batch was counted before; it is from now on.
    fn is_known(&mut self, entry: &Entry<'_>) -> bool {
        if self.batches.len() >= MAX_NODES {
            self.batches.clear();
        }
        let last = self.batches.entry((entry.stream.place(), entry.node.into())).or_default();
        let is_known = entry.number <= *last;
        *last = entry.number.max(*last);
        is_known
    }
}

impl Exchange {
    /// Waits for news, and counts it.
    async fn read(&self, link: &mut Link<'_>, position: &mut Position) -> Result<(), Trouble> {
        if clock::now().saturating_duration_since(link.time_asked()) >= TIME_EVERY {
            link.ask_time().await?;
        }
        let ids = position.ids.unwrap_or_default();
        let mut command = cmd("XREAD");
        command.arg("COUNT").arg(ENTRIES).arg("BLOCK").arg(OPEN.as_millis().to_string());
        command.arg("STREAMS");
        for stream in Stream::ALL {
            command.arg(self.server.key(stream.name()));
        }
        for id in ids {
            command.arg(id.to_string());
        }
        let answer = link.ask_for(&command, OPEN).await?;
        let read = streams(&answer, |stream| self.server.key(stream.name()));
        let read = read.ok_or(Trouble::Nonsense("XREAD"))?;
        let (entries, ids) = in_order(read, ids);
        for entry in entries {
            self.count(&entry, position, link.now());
        }
        position.ids = Some(ids);
        Ok(())
    }

    fn count(&self, entry: &Entry<'_>, position: &mut Position, now: i64) {
        if entry.node == self.node.as_bytes() || position.is_known(entry) {
            return;
        }
        let Ok(events) = codec::decode(entry.batch) else {
            self.metrics.shared_received("unreadable", 1);
            return;
        };
        let age = u64::try_from(now).unwrap_or_default().saturating_sub(entry.id.0);
        let age = Duration::from_millis(age);
        let learned = u64::try_from(events.len()).unwrap_or(u64::MAX);
        for (news, ago) in events {
            self.learn(news, age.saturating_add(ago));
        }
        self.metrics.shared_received("counted", learned);
    }

    fn learn(&self, news: News, ago: Duration) {
        let (now, counts) = (clock::now(), &self.counts);
        match news {
            News::Attempt(event) => counts.throttle.learn_from_another(&event, ago, now),
            News::Listed(field) => self.notice(field),
            News::Reset { client, login } => {
                let subject = Subject { client, login: login.as_deref(), ..Subject::default() };
                counts.throttle.reset(&subject, now);
            }
            News::Sent(mailbox) => counts.sending.learn_from_another(&mailbox, ago, now),
        }
    }
}

/// The entries of each stream. What was written by no node of ours has its place too: it must not be read for ever.
type Read<'a> = [Vec<(Id, Option<Entry<'a>>)>; Stream::COUNT];

/// Takes the answer to XREAD apart; `None`: it has another shape. Without news it is empty.
fn streams<'a>(answer: &'a Value, key: impl Fn(Stream) -> String) -> Option<Read<'a>> {
    let mut read: Read<'a> = Default::default();
    if *answer == Value::Nil {
        return Some(read);
    }
    for part in array(answer)? {
        let [name, entries] = array(part)? else { return None };
        let name = bytes(name)?;
        let stream = Stream::ALL.into_iter().find(|stream| key(*stream).as_bytes() == name)?;
        let entries = array(entries)?.iter().map(|entry| {
            let [id, fields] = array(entry)? else { return None };
            let id = Id::parse(bytes(id)?)?;
            Some((id, of_ours(id, stream, fields)))
        });
        *read.get_mut(stream.place())? = entries.collect::<Option<_>>()?;
    }
    Some(read)
}

fn of_ours(id: Id, stream: Stream, fields: &Value) -> Option<Entry<'_>> {
    let fields = pairs(fields)?;
    let field = |name: &str| {
        fields.iter().find(|(field, _)| *field == name.as_bytes()).map(|(_, value)| *value)
    };
    let number = std::str::from_utf8(field("s")?).ok()?.parse().ok()?;
    let node = field("n").filter(|node| node.len() <= 64)?;
    Some(Entry { id, stream, node, number, batch: field("e")? })
}

/// The entries in the order in which they were written, and how far that is. Where more of a stream is to come, the
/// others must wait for it: what a good login makes forgotten must have been counted before.
fn in_order(read: Read<'_>, ids: [Id; Stream::COUNT]) -> (Vec<Entry<'_>>, [Id; Stream::COUNT]) {
    let full = read.iter().filter(|entries| entries.len() >= ENTRIES);
    let bound = full.filter_map(|entries| Some(entries.last()?.0)).min();
    let is_due = |id: Id| bound.is_none_or(|bound| id <= bound);
    let mut due = Vec::new();
    let mut reached = ids;
    for (entries, reached) in read.into_iter().zip(&mut reached) {
        for (id, entry) in entries.into_iter().filter(|(id, _)| is_due(*id)) {
            *reached = id.max(*reached);
            due.extend(entry);
        }
    }
    due.sort_by_key(|entry| entry.id);
    (due, reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn list(values: impl IntoIterator<Item = Value>) -> Value {
        Value::Array(values.into_iter().collect())
    }

    fn entry(id: &str, node: &str, number: u32) -> Value {
        let fields = ["n", node, "s", &number.to_string(), "e", "[]"].map(text);
        list([text(id), list(fields)])
    }

    fn answer(streams: &[(Stream, Vec<Value>)]) -> Value {
        let one = |(stream, entries): &(Stream, Vec<Value>)| {
            list([text(stream.name()), list(entries.clone())])
        };
        list(streams.iter().map(one))
    }

    fn order(answer: &Value) -> (Vec<Id>, [Id; Stream::COUNT]) {
        let read = streams(answer, |stream| stream.name().to_owned()).unwrap();
        let (entries, ids) = in_order(read, [Id(1, 0); Stream::COUNT]);
        (entries.iter().map(|entry| entry.id).collect(), ids)
    }

    #[test]
    fn streams_are_read_in_the_order_in_which_they_were_written() {
        let answer = answer(&[
            (Stream::Guesses, vec![entry("5-0", "a", 1), entry("9-1", "a", 3)]),
            (Stream::Logins, vec![entry("7-0", "a", 2), entry("9-0", "b", 1)]),
        ]);

        let (order, ids) = order(&answer);

        assert_eq!(order, [Id(5, 0), Id(7, 0), Id(9, 0), Id(9, 1)]);
        assert_eq!(ids, [Id(9, 1), Id(9, 0), Id(1, 0), Id(1, 0)]);
    }

    #[test]
    fn where_more_of_a_stream_is_to_come_the_others_wait_for_it() {
        let many = (2..2 + ENTRIES).map(|id| entry(&format!("{id}-0"), "a", 1)).collect();
        let last = u64::try_from(ENTRIES).unwrap() + 1;
        let answer = answer(&[
            (Stream::Guesses, many),
            (Stream::Logins, vec![entry("3-1", "a", 1), entry("9999-0", "a", 1)]),
            (Stream::Sent, vec![entry("9999-0", "a", 1)]),
        ]);

        let (order, ids) = order(&answer);

        assert_eq!(order.len(), ENTRIES + 1);
        assert_eq!(ids, [Id(last, 0), Id(3, 1), Id(1, 0), Id(1, 0)]);
    }

    #[test]
    fn what_no_node_of_ours_wrote_is_passed_over_and_not_read_again() {
        let odd = list([text("8-0"), list([text("x"), text("y")])]);
        let odder = list([text("9-0"), Value::Nil]);
        let answer = answer(&[(Stream::Sent, vec![entry("5-0", "a", 1), odd, odder])]);

        assert_eq!(order(&answer), (vec![Id(5, 0)], [Id(1, 0), Id(1, 0), Id(9, 0), Id(1, 0)]));
    }

    #[test]
    fn answers_of_another_shape_are_no_answers() {
        let read = |answer: &Value| streams(answer, |stream| stream.name().to_owned()).is_some();
        assert!(read(&Value::Nil) && read(&list([])));
        for odd in [
            text("x"),
            list([text("x")]),
            list([list([text("nobody's"), list([])])]),
            list([list([text(Stream::Sent.name()), text("x")])]),
            answer(&[(Stream::Sent, vec![entry("x", "a", 1)])]),
            answer(&[(Stream::Sent, vec![text("5-0")])]),
        ] {
            assert!(!read(&odd), "{odd:?}");
        }
    }

    #[test]
    fn a_batch_that_was_written_twice_is_known() {
        let mut position = Position::default();
        let mut is_known = |stream, node: &'static str, number| {
            let (node, batch) = (node.as_bytes(), &b"[]"[..]);
            position.is_known(&Entry { id: Id(1, 0), stream, node, number, batch })
        };
        assert!(!is_known(Stream::Sent, "a", 1));
        assert!(is_known(Stream::Sent, "a", 1));
        assert!(!is_known(Stream::Sent, "b", 1));
        assert!(!is_known(Stream::Guesses, "a", 1));
        assert!(!is_known(Stream::Sent, "a", 4));
        assert!(is_known(Stream::Sent, "a", 3));
    }

    #[test]
    fn a_process_begins_as_far_back_as_anything_counts_and_goes_on_where_it_was() {
        let reach = [10, 20, 0, 0].map(Duration::from_secs);
        let mut position = Position::default();
        position.begin(&reach, 1_000_000);
        let begun = [Id(990_000, 0), Id(980_000, 0), Id(1_000_000, 0), Id(1_000_000, 0)];
        assert_eq!(position.ids, Some(begun));

        position.begin(&reach, 1_500_000);
        assert_eq!(position.ids, Some(begun));
        // Another server, whose clock is behind.
        position.begin(&reach, 985_000);
        assert_eq!(
            position.ids,
            Some([Id(985_000, 0), Id(980_000, 0), Id(985_000, 0), Id(985_000, 0)])
        );
    }
}
