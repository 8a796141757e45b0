//! The morning storm: the daemon was just started and remembers nobody, and everybody comes back at once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::compare::{Compare, per_second};
use crate::connection::{Connection, Door};
use crate::figures::quantile;
use crate::people::{SERVICE_DN, SERVICE_PASSWORD};
use crate::site::{PATIENT, REMEMBERS, Site};
use crate::wire::{Asker, Protocol, Said};

const CONNECTIONS: u64 = 64;
const IN_FLIGHT: usize = 1000;
/// `bind_connections` and `search_connections` by default, and one that follows the changes.
const MOST_LDAP_CONNECTIONS: usize = 32 + 2 + 1;

/// Who is not in after this long stays outside, and is reported so.
const PATIENCE: Duration = Duration::from_secs(600);

/// What those do who hear "later".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GiveUp,
    /// Half of it to half as much again, for no two clients tick together.
    ComeBackInAbout(Duration),
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    /// From the storm's beginning to the accept, of those who came in.
    accepted: Vec<Duration>,
    /// Answers "later".
    later: u64,
    /// People who heard "later" at least once.
    put_off: u64,
}

/// # Errors
/// If anybody is refused, which is always wrong here.
pub fn measure(compare: &mut Compare) -> anyhow::Result<()> {
    if !compare.wants("storm") {
        return Ok(());
    }
    compare.everybody_has_a_mailbox()?;
    let again = Then::ComeBackInAbout(Duration::from_secs(5));
    for (word, then, gatepost) in [
        ("once", Then::GiveUp, REMEMBERS),
        ("again about 5 s after each \"later\"", again, REMEMBERS),
        ("again about 5 s after each \"later\"; `queue = 10000`", again, PATIENT),
    ] {
        compare.site.stop(REMEMBERS.name)?;
        compare.site.start_gatepost(gatepost)?;
        let people = compare.options.people;
        let door = compare.site.door(REMEMBERS.name, Protocol::Dovecot)?;
        let counted = compare.site.counted(REMEMBERS.name, Protocol::Dovecot)?;
        let (cpu, before) = (counted.cpu()?, operations(&compare.site)?);
        let clients = (counted.root(), compare.site.slapd_port);
        let (outcome, took, felt) = storm(&door, people, then, clients)?;
        let cpu = counted.cpu()?.saturating_sub(cpu);
        let after = operations(&compare.site)?;
        compare.notes.push(describe(word, people, (&outcome, took), &felt, (before, after), cpu));
        eprintln!("{}", compare.notes.last().map_or("", |note| note));
        let most = felt.iter().copied().max().unwrap_or_default();
        compare.single("storm: most connections at slapd", crate::figures::count(most));
    }
    Ok(())
}

fn describe(
    word: &str,
    people: u64,
    (outcome, took): (&Outcome, Duration),
    felt: &[usize],
    (before, after): ((u64, u64), (u64, u64)),
    cpu: Duration,
) -> String {
    let mut latencies = outcome.accepted.clone();
    latencies.sort_unstable();
    let at = |per_mille| quantile(&latencies, per_mille) / 1e6;
    let most = felt.iter().max().copied().unwrap_or_default();
    let average = felt.iter().sum::<usize>() / felt.len().max(1);
    format!(
        "**Storm, each asks {word}.** {people} people at once ({CONNECTIONS} connections, up to {IN_FLIGHT} in flight on \
         each) at a daemon that remembers nobody: {} came in within {:.1} s ({:.0}/s), p50 {:.1} s, p99 {:.1} s, p99.9 \
         {:.1} s from the storm's beginning; {} answers \"later\" to {} people; nobody was refused. CPU {:.1} s. The \
         directory saw {} binds and {} searches over {average} connections on average, {most} at most (limit \
         {MOST_LDAP_CONNECTIONS}).",
        outcome.accepted.len(),
        took.as_secs_f64(),
        per_second(outcome.accepted.len(), took),
        at(500),
        at(990),
        at(999),
        outcome.later,
        outcome.put_off,
        cpu.as_secs_f64(),
        after.0 - before.0,
        after.1 - before.1,
    )
}

fn storm(
    door: &Door,
    people: u64,
    then: Then,
    clients: (u32, u16),
) -> anyhow::Result<(Outcome, Duration, Vec<usize>)> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Connection::open(door)?);
    }
    let is_over = AtomicBool::new(false);
    let started = Instant::now();
    let mut outcome = Outcome::default();
    let felt = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(clients, &is_over));
        let threads: Vec<_> = connections
            .into_iter()
            .zip(0..)
            .map(|(connection, number)| {
                let mine = (number..people).step_by(usize::try_from(CONNECTIONS).unwrap_or(1));
                scope.spawn(move || crowd(connection, mine, then))
            })
            .collect();
        let parts: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        is_over.store(true, Ordering::Release);
        for part in parts {
            let part = part.map_err(|_| anyhow::anyhow!("the client panicked"))??;
            outcome.accepted.extend(part.accepted);
            outcome.later += part.later;
            outcome.put_off += part.put_off;
        }
        watching.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?
    })?;
    Ok((outcome, started.elapsed(), felt))
}

/// Somebody who is not in yet.
#[derive(Clone, Copy, Debug)]
struct Outside {
    person: u64,
    since: Instant,
    attempts: u32,
}

impl Outside {
    /// Half of a pause to half as much again: another for each person and each time, the same in each run.
    fn spread(&self, pause: Duration) -> Duration {
        let drawn = (self.person * 37 + u64::from(self.attempts) * 59) % 101;
        pause.mul_f64(0.5 + drawn as f64 / 100.0)
    }
}

fn crowd(
    mut connection: Connection,
    people: impl Iterator<Item = u64>,
    then: Then,
) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let outside = |person| Outside { person, since: started, attempts: 0 };
    let mut queue: BTreeMap<_, _> =
        people.map(|person| ((started, person), outside(person))).collect();
    let mut waiting: HashMap<u32, Outside> = HashMap::new();
    let mut outcome = Outcome::default();
    let mut next_id = 1;
    connection.hurry()?;
    while !queue.is_empty() || !waiting.is_empty() {
        let now = Instant::now();
        if now > started + PATIENCE {
            return Ok(outcome);
        }
        while waiting.len() < IN_FLIGHT
            && let Some(first) = queue.first_entry()
            && first.key().0 <= now
        {
            let outside = first.remove();
            connection.ask(next_id, Asker::Right(outside.person))?;
            waiting.insert(next_id, Outside { attempts: outside.attempts + 1, ..outside });
            next_id += 1;
        }
        connection.send_some().context("writing")?;
        connection.read()?;
        let now = Instant::now();
        while let Some(heard) = connection.buffered()? {
            let outside = waiting.remove(&heard.id).context("an answer to nothing")?;
            connection.check(Asker::Right(outside.person), &heard)?;
            if heard.said == Said::Accepted {
                outcome.accepted.push(now - outside.since);
                continue;
            }
            outcome.later += 1;
            outcome.put_off += u64::from(outside.attempts == 1);
            if let Then::ComeBackInAbout(pause) = then {
                queue.insert((now + outside.spread(pause), outside.person), outside);
            }
        }
    }
    Ok(outcome)
}

/// How many connections the daemon has to the directory, ten times a second.
fn watch(clients: (u32, u16), is_over: &AtomicBool) -> anyhow::Result<Vec<usize>> {
    let mut felt = Vec::new();
    while !is_over.load(Ordering::Acquire) {
        felt.push(connections(clients)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(felt)
}

fn connections((process, port): (u32, u16)) -> anyhow::Result<usize> {
    let mut own = HashSet::new();
    for descriptor in fs::read_dir(format!("/proc/{process}/fd"))? {
        // Closed meanwhile.
        let Ok(leads_to) = fs::read_link(descriptor?.path()) else { continue };
        own.insert(leads_to.to_string_lossy().into_owned());
    }
    let table = fs::read_to_string("/proc/net/tcp")?;
    let remote = format!(":{port:04X}");
    // proc(5): the remote address is field 3, the state field 4 (01 is established), the inode field 10.
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, address, state, _, _, _, _, _, inode, ..] = fields.as_slice() else {
            return false;
        };
        address.ends_with(&remote) && *state == "01" && own.contains(&format!("socket:[{inode}]"))
    };
    Ok(table.lines().filter(is_one).count())
}

/// Binds and searches that slapd has done so far.
fn operations(site: &Site) -> anyhow::Result<(u64, u64)> {
    let output = Command::new("ldapsearch")
        .args(["-x", "-LLL", "-H", &format!("ldap://127.0.0.1:{}", site.slapd_port)])
        .args(["-D", SERVICE_DN, "-w", SERVICE_PASSWORD, "-b", "cn=Operations,cn=Monitor"])
        .args(["-s", "one", "monitorOpCompleted"])
        .output()
        .context("ldapsearch (package ldap-utils)")?;
    ensure!(output.status.success(), "ldapsearch: {output:?}");
    let text = String::from_utf8(output.stdout)?;
    let completed = |kind: &str| -> anyhow::Result<u64> {
        let entry = text.split("\n\n").find(|entry| entry.contains(&format!("dn: cn={kind},")));
        let value = entry.and_then(|entry| entry.split("monitorOpCompleted: ").nth(1));
        Ok(value.with_context(|| format!("no count of {kind}"))?.trim().parse()?)
    };
    Ok((completed("Bind")?, completed("Search")?))
}
