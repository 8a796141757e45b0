//! Drives a server: a fixed number of requests in flight (closed loop), or a fixed rate whose latencies count from when
//! a request was due, so that a server that stalls does not hide the requests it kept from being sent.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::connection::{Connection, Door, Heard};
use crate::wire::{Asker, Said};

/// Who asks, in turn.
#[derive(Clone, Copy, Debug)]
pub struct Askers {
    pub first: u64,
    /// After the last comes the first again.
    pub people: u64,
    /// How often each person logs in before the next one does.
    pub each: u64,
    pub mix: Option<Mix>,
}

/// Not only right passwords of people met before.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Of a hundred, with a wrong password, with nobody's name, and never met before.
    pub wrong: u64,
    pub unknown: u64,
    pub new: u64,
    /// Those never met before: the first, and how many there are.
    pub first_new: u64,
    pub new_people: u64,
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Time(Duration),
    Turns(u64),
}

#[derive(Clone, Copy, Debug)]
pub struct Drive<'a> {
    pub door: &'a Door,
    pub askers: Askers,
    pub until: Until,
    pub connections: u32,
    /// Requests in flight on each connection.
    pub in_flight: u32,
    /// Requests a second over all connections, whatever is answered; `None`: the next is sent when one is answered.
    pub rate: Option<f64>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    pub latencies: Vec<Duration>,
    pub later: u64,
}

impl Askers {
    pub fn of(first: u64, people: u64) -> Self {
        Self { first, people, each: 1, mix: None }
    }

    pub fn asker(&self, turn: u64) -> Asker {
        let person = self.first + turn / self.each % self.people;
        let Some(mix) = self.mix else { return Asker::Right(person) };
        // Spread over the hundred: 37 has no factor in common with it.
        let (hundred, place) = (turn / 100, turn * 37 % 100);
        if place < mix.wrong {
            return Asker::Wrong(person);
        }
        if place < mix.wrong + mix.unknown {
            return Asker::Unknown(person);
        }
        let new = hundred * mix.new + place.saturating_sub(100 - mix.new);
        if place >= 100 - mix.new && new < mix.new_people {
            return Asker::Right(mix.first_new + new);
        }
        Asker::Right(person)
    }
}

impl Drive<'_> {
    /// Asks as planned; returns the tally and how long it took.
    ///
    /// # Errors
    /// If any answer is not the right one.
    pub fn run(&self) -> anyhow::Result<(Tally, Duration)> {
        let mut connections = Vec::new();
        if !self.door.protocol.is_one_shot() {
            for _ in 0..self.connections {
                connections.push(Connection::open(self.door)?);
            }
        }
        let turns = Turns { drive: self, next: AtomicU64::new(0), started: Instant::now() };
        let mut tally = Tally::default();
        std::thread::scope(|scope| {
            let turns = &turns;
            let mut threads = Vec::new();
            for number in 0..self.connections {
                let connection = connections.pop();
                threads.push(scope.spawn(move || match (connection, self.rate) {
                    (None, _) => turns.one_shots(),
                    (Some(connection), None) => turns.closed_loop(connection),
                    (Some(connection), Some(rate)) => turns.fixed_rate(connection, number, rate),
                }));
            }
            for thread in threads {
                let part = thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
                tally.latencies.extend(part.latencies);
                tally.later += part.later;
            }
            anyhow::Ok(())
        })?;
        Ok((tally, turns.started.elapsed()))
    }
}

/// Whose turn it is, for all connections.
struct Turns<'a> {
    drive: &'a Drive<'a>,
    next: AtomicU64,
    started: Instant,
}

impl Turns<'_> {
    fn next(&self, now: Instant) -> Option<Asker> {
        let end = match self.drive.until {
            Until::Time(limit) if now >= self.started + limit => return None,
            Until::Time(_) => u64::MAX,
            Until::Turns(turns) => turns,
        };
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        (turn < end).then(|| self.drive.askers.asker(turn))
    }

    fn one_shots(&self) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        loop {
            let sent = Instant::now();
            let Some(asker) = self.next(sent) else { return Ok(tally) };
            let mut connection = Connection::open(self.drive.door)?;
            connection.ask(1, asker)?;
            connection.flush()?;
            let heard = connection.next()?;
            connection.check(asker, &heard)?;
            tally.add(Instant::now() - sent, &heard);
        }
    }

    fn closed_loop(&self, mut connection: Connection) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        let mut waiting: HashMap<u32, (Asker, Instant)> = HashMap::new();
        let mut next_id = 1;
        let mut room = self.drive.in_flight;
        loop {
            // Everything that one read brought is followed by one write, as login processes do.
            let now = Instant::now();
            while room > 0 {
                let Some(asker) = self.next(now) else { break };
                connection.ask(next_id, asker)?;
                waiting.insert(next_id, (asker, now));
                next_id += 1;
                room -= 1;
            }
            connection.flush()?;
            if waiting.is_empty() {
                return Ok(tally);
            }
            ensure!(connection.read()?, "no answer within 30 s");
            let now = Instant::now();
            while let Some(heard) = connection.buffered()? {
                let (asker, sent) = waiting.remove(&heard.id).context("an answer to nothing")?;
                connection.check(asker, &heard)?;
                tally.add(now - sent, &heard);
                room += 1;
            }
        }
    }

    /// Request number k of this connection has turn `number + k * connections`, id k + 1, and its own time.
    fn fixed_rate(
        &self,
        mut connection: Connection,
        number: u32,
        rate: f64,
    ) -> anyhow::Result<Tally> {
        let Until::Time(limit) = self.drive.until else { anyhow::bail!("a rate needs a time") };
        let schedule = Schedule {
            askers: self.drive.askers,
            started: self.started,
            end: self.started + limit,
            number,
            connections: self.drive.connections,
            interval: Duration::from_secs_f64(1.0 / rate),
        };
        let mut sender = connection.sender()?;
        let protocol = self.drive.door.protocol;
        let sent = AtomicU32::new(u32::MAX);
        std::thread::scope(|scope| {
            let (schedule, sent) = (&schedule, &sent);
            let sending = scope.spawn(move || {
                let count = schedule.send(&mut sender, protocol);
                sent.store(count.as_ref().map_or(0, |count| *count), Ordering::Release);
                count
            });
            let mut tally = Tally::default();
            let mut answered = 0;
            connection.wait_at_most(Duration::from_millis(50))?;
            let patience = schedule.end + Duration::from_secs(30);
            while answered < sent.load(Ordering::Acquire) {
                if !connection.read()? {
                    ensure!(Instant::now() < patience, "no answer within 30 s");
                    continue;
                }
                let now = Instant::now();
                while let Some(heard) = connection.buffered()? {
                    let (due, asker) = schedule.request(heard.id);
                    connection.check(asker, &heard)?;
                    tally.add(now.saturating_duration_since(due), &heard);
                    answered += 1;
                }
            }
            sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            Ok(tally)
        })
    }
}

/// When each request of one connection is due.
struct Schedule {
    askers: Askers,
    started: Instant,
    end: Instant,
    number: u32,
    connections: u32,
    interval: Duration,
}

impl Schedule {
    fn request(&self, id: u32) -> (Instant, Asker) {
        let turn = self.number + (id - 1) * self.connections;
        (self.started + self.interval * turn, self.askers.asker(u64::from(turn)))
    }

    /// Sends each request when it is due, those that are overdue at once; returns how many.
    fn send(
        &self,
        stream: &mut impl Write,
        protocol: crate::wire::Protocol,
    ) -> anyhow::Result<u32> {
        let mut output = Vec::new();
        for id in 1.. {
            let (due, asker) = self.request(id);
            let now = Instant::now();
            if due > now || due >= self.end {
                stream.write_all(&output)?;
                output.clear();
            }
            if due >= self.end {
                return Ok(id - 1);
            }
            std::thread::sleep(due.saturating_duration_since(now));
            protocol.ask(id, asker, &mut output)?;
        }
        Ok(0)
    }
}

impl Tally {
    fn add(&mut self, latency: Duration, heard: &Heard) {
        self.latencies.push(latency);
        self.later += u64::from(heard.said == Said::Later);
    }
}
