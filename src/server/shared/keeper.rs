//! Writes to the shared server what waits in the outbox, agrees on the key of the guesses, and keeps the lists in step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Pipeline, Value, cmd, pipe};
use tokio_util::sync::CancellationToken;

use super::link::{Link, Trouble, array, bytes, pairs};
use super::outbox::{News, Stream, Waiting};
use super::{Exchange, Noticed, Pauses, Side, codec, hexadecimal};
use crate::clock;
use crate::server::lists::{Change, Name, millis};

/// How long news waits at most.
const TURN_EVERY: Duration = Duration::from_millis(100);

/// How often the server is asked what time it is; a server that is gone is noticed by it, too.
const TIME_EVERY: Duration = Duration::from_secs(1);

/// How often all lists are compared, whatever was told of them.
const COMPARE_EVERY: Duration = Duration::from_secs(600);

/// Batches of each stream that are written at one go.
const BATCHES: usize = 8;

/// How often that is done in one turn: there are other things to do.
const ROUNDS: usize = 64;

/// Entries of lists that are asked for, or written, at one go.
const ENTRIES: usize = 200;

/// Entries of lists that are looked at; what lies beyond was not written by us.
const MAX_ENTRIES: usize = 4 * crate::throttle::MAX_ENTRIES;

/// An entry that was over so long ago is taken away from the server, in milliseconds.
const KEPT_OVER: i64 = 86_400_000;

struct Keeper {
    exchange: Arc<Exchange>,
    /// Taken from the outbox, and perhaps written, but the server did not say so.
    under_way: Vec<Batch>,
    last_number: u64,
    guess_key: [u8; 32],
}

struct Batch {
    stream: Stream,
    /// Grows with each batch: one that was written twice is counted once.
    number: u64,
    events: Vec<Waiting>,
}

/// Keeps to it until `ending`.
pub(super) async fn run(exchange: Arc<Exchange>, ending: CancellationToken) {
    let guess_key = exchange.guess_key;
    let mut keeper = Keeper {
        exchange: Arc::clone(&exchange),
        under_way: Vec::new(),
        last_number: 0,
        guess_key,
    };
    let mut pauses = Pauses::new();
    loop {
        let session = async {
            let mut link = Link::open(&exchange.server).await?;
            keeper.begin(&mut link).await?;
            pauses = Pauses::new();
            exchange.health.up(Side::Keeper);
            keeper.keep(&mut link, &ending).await
        };
        let Err(trouble) = session.await else { return };
        exchange.health.down(Side::Keeper, &trouble);
        tokio::select! {
            () = tokio::time::sleep(pauses.next()) => {}
            () = ending.cancelled() => return,
        }
    }
}

impl Keeper {
    async fn begin(&mut self, link: &mut Link<'_>) -> Result<(), Trouble> {
        self.note_time(link);
        self.agree(link).await?;
        self.compare_lists(link).await?;
        self.write_lists(link).await
    }

    /// Turn by turn, until the daemon ends.
    async fn keep(
        &mut self,
        link: &mut Link<'_>,
        ending: &CancellationToken,
    ) -> Result<(), Trouble> {
        let mut every = tokio::time::interval(TURN_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut compared = clock::now();
        loop {
            let is_last = tokio::select! {
                _ = every.tick() => false,
                () = ending.cancelled() => true,
            };
            self.turn(link, &mut compared).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn turn(&mut self, link: &mut Link<'_>, compared: &mut Instant) -> Result<(), Trouble> {
        self.write_lists(link).await?;
        self.write_news(link).await?;
        let Noticed { fields, all } = std::mem::take(&mut *self.exchange.noticed());
        let now = clock::now();
        if all || now.saturating_duration_since(*compared) >= COMPARE_EVERY {
            self.agree(link).await?;
            self.compare_lists(link).await?;
            *compared = now;
        } else {
            let names = fields.iter().filter_map(|field| codec::name(field.as_bytes()));
            self.read_lists(link, &names.collect::<Vec<_>>()).await?;
        }
        if now.saturating_duration_since(link.time_asked()) >= TIME_EVERY {
            link.ask_time().await?;
            self.note_time(link);
        }
        Ok(())
    }

    fn note_time(&self, link: &Link<'_>) {
        let ahead = link.now().saturating_sub(millis(clock::wall()));
        self.exchange.counts.lists.set_ahead(ahead);
    }

    fn key(&self, name: &str) -> String {
        self.exchange.server.key(name)
    }

    /// All nodes hash guesses with the key of the one that came first.
    async fn agree(&mut self, link: &mut Link<'_>) -> Result<(), Trouble> {
        let key = self.key("guess-key");
        link.ask(cmd("SET").arg(&key).arg(hexadecimal(&self.guess_key)).arg("NX")).await?;
        let answer = link.ask(cmd("GET").arg(&key)).await?;
        let agreed = bytes(&answer).and_then(key_of).ok_or(Trouble::Nonsense("GET guess-key"))?;
        if agreed != self.guess_key {
            self.guess_key = agreed;
            self.exchange.counts.throttle.agree(agreed);
        }
        Ok(())
    }

    /// Writes what waits.
    async fn write_news(&mut self, link: &mut Link<'_>) -> Result<(), Trouble> {
        for _ in 0..ROUNDS {
            if self.under_way.is_empty() {
                self.take_batches();
            }
            if self.under_way.is_empty() {
                break;
            }
            let mut commands = pipe();
            for batch in &self.under_way {
                self.add(batch, &mut commands);
            }
            link.tell(&commands).await?;
            self.under_way.clear();
        }
        Ok(())
    }

    fn take_batches(&mut self) {
        for stream in Stream::ALL {
            for _ in 0..BATCHES {
                let events = self.exchange.outbox.take(stream, codec::MAX_EVENTS);
                if events.is_empty() {
                    break;
                }
                self.last_number += 1;
                self.under_way.push(Batch { stream, number: self.last_number, events });
            }
        }
    }

    fn add(&self, batch: &Batch, commands: &mut Pipeline) {
        let command = commands.cmd("XADD").arg(self.key(batch.stream.name()));
        command.arg("MAXLEN").arg("~").arg(batch.stream.most_entries()).arg("*");
        command.arg("n").arg(&self.exchange.node).arg("s").arg(batch.number);
        command.arg("e").arg(codec::encode(&batch.events, clock::now())).ignore();
    }

    /// Writes what changed in the lists here, unless it changed later elsewhere.
    async fn write_lists(&self, link: &mut Link<'_>) -> Result<(), Trouble> {
        let book = &self.exchange.counts.lists;
        loop {
            let changes = book.unshared(ENTRIES);
            if changes.is_empty() {
                return Ok(());
            }
            let names: Vec<Name> = changes.iter().map(Change::name).collect();
            let theirs = self.stored(link, &names).await?;
            let is_newer = |theirs: &Change| {
                let same = changes.iter().find(|ours| ours.name() == theirs.name());
                same.is_some_and(|ours| theirs.at >= ours.at)
            };
            let newer: Vec<Change> = theirs.into_iter().filter(is_newer).collect();
            let is_ours = |ours: &&Change| newer.iter().all(|it| it.name() != ours.name());
            let ours: Vec<&Change> = changes.iter().filter(is_ours).collect();
            if !ours.is_empty() {
                let mut commands = pipe();
                let command = commands.cmd("HSET").arg(self.key("lists"));
                for change in &ours {
                    let value = codec::encode_change(change, book.ahead());
                    command.arg(codec::field(&change.name())).arg(value);
                }
                command.ignore();
                link.tell(&commands).await?;
            }
            for change in &ours {
                let field = codec::field(&change.name());
                self.exchange.outbox.push(News::Listed(field.into()));
            }
            book.shared(&changes);
            book.hear(newer).await;
        }
    }

    /// Takes over what the server holds of some entries.
    async fn read_lists(&self, link: &mut Link<'_>, names: &[Name]) -> Result<(), Trouble> {
        for names in names.chunks(ENTRIES) {
            let theirs = self.stored(link, names).await?;
            self.exchange.counts.lists.hear(theirs).await;
        }
        Ok(())
    }

    async fn stored(&self, link: &mut Link<'_>, names: &[Name]) -> Result<Vec<Change>, Trouble> {
        let mut command = cmd("HMGET");
        command.arg(self.key("lists"));
        for name in names {
            command.arg(codec::field(name));
        }
        let answer = link.ask(&command).await?;
        let values = array(&answer).filter(|values| values.len() == names.len());
        let values = values.ok_or(Trouble::Nonsense("HMGET lists"))?;
        let (ahead, now) = (self.exchange.counts.lists.ahead(), link.now());
        let read = |(name, value): (&Name, &Value)| {
            codec::decode_change(name.clone(), bytes(value)?, ahead, now).ok()
        };
        Ok(names.iter().zip(values).filter_map(read).collect())
    }

    /// Brings the lists here and those at the server in step.
    async fn compare_lists(&self, link: &mut Link<'_>) -> Result<(), Trouble> {
        let book = &self.exchange.counts.lists;
        let mut theirs: HashMap<Name, Change> = HashMap::new();
        let (mut cursor, mut looked_at) = (b"0".to_vec(), 0_usize);
        loop {
            let mut command = cmd("HSCAN");
            command.arg(self.key("lists")).arg(&cursor).arg("COUNT").arg(ENTRIES);
            let answer = link.ask(&command).await?;
            let Some([next, found]) = array(&answer) else {
                return Err(Trouble::Nonsense("HSCAN lists"));
            };
            let found = pairs(found).ok_or(Trouble::Nonsense("HSCAN lists"))?;
            self.sort_out(link, &found, &mut theirs).await?;
            looked_at = looked_at.saturating_add(found.len());
            cursor = bytes(next).unwrap_or(b"0").to_vec();
            if cursor == b"0" {
                break;
            }
            if looked_at > MAX_ENTRIES {
                tracing::warn!("the shared server holds more entries of lists than are looked at");
                return Ok(());
            }
        }
        let present = theirs.keys().cloned().collect();
        book.hear(theirs.into_values().collect()).await;
        book.share_all_but(&present);
        Ok(())
    }

    /// Reads entries, and takes those away that were over long ago. What cannot be read is as if it were not there: it is
    /// written again.
    async fn sort_out(
        &self,
        link: &mut Link<'_>,
        found: &[(&[u8], &[u8])],
        theirs: &mut HashMap<Name, Change>,
    ) -> Result<(), Trouble> {
        let (ahead, now) = (self.exchange.counts.lists.ahead(), link.now());
        let mut over = Vec::new();
        for (field, value) in found {
            let Some(name) = codec::name(field) else { continue };
            let Ok(change) = codec::decode_change(name.clone(), value, ahead, now) else {
                continue;
            };
            let ended = millis(change.entry.until).saturating_add(ahead);
            if ended.saturating_add(KEPT_OVER) < now {
                over.push(*field);
            } else {
                theirs.insert(name, change);
            }
        }
        if !over.is_empty() {
            link.ask(cmd("HDEL").arg(self.key("lists")).arg(over)).await?;
        }
        Ok(())
    }
}

/// 32 bytes as 64 digits.
fn key_of(digits: &[u8]) -> Option<[u8; 32]> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.len() == 64)?;
    let is_digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    is_digits.then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_sixty_four_digits() {
        let mut key = [7; 32];
        key[31] = 0xfe;
        assert_eq!(key_of(hexadecimal(&key).as_bytes()), Some(key));
        for bad in
            ["", "00", &"+f".repeat(32), &"g0".repeat(32), &"0".repeat(65), &"\u{e4}".repeat(32)]
        {
            assert_eq!(key_of(bad.as_bytes()), None, "{bad}");
        }
    }
}
