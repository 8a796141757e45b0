//! A client of Dovecot's auth protocol that keeps a number of requests in flight and checks every answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::figures::Figures;
use crate::processes::Tree;

/// What to drive, at whom.
#[derive(Debug, clap::Args)]
pub struct Plan {
    /// The auth client socket
    #[arg(long)]
    socket: PathBuf,
    /// The server's process; its descendants count with it
    #[arg(long)]
    pid: u32,
    /// What is measured, such as P1; for the report
    #[arg(long)]
    case: String,
    /// Who is measured: gatepost, dovecot or floor; floor's answers name nobody
    #[arg(long)]
    server: String,
    /// Which round this is
    #[arg(long)]
    round: u32,
    /// Number of the first person
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many people there are; after the last comes the first again
    #[arg(long)]
    people: u64,
    /// How often each person logs in before the next one does
    #[arg(long, default_value_t = 1)]
    each: u64,
    /// Stop after so many logins; 0: each person once
    #[arg(long, default_value_t = 0)]
    logins: u64,
    /// Stop after so many seconds instead
    #[arg(long)]
    seconds: Option<u64>,
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 1)]
    in_flight: u32,
}

/// Logs in as planned.
///
/// # Errors
/// If any answer is not the right one.
pub fn drive(plan: &Plan) -> anyhow::Result<Figures> {
    if plan.server != "floor" {
        refuses_a_wrong_password(plan)?;
    }
    let mut connections = Vec::new();
    for number in 1..=plan.connections {
        connections.push(Connection::open(plan, number)?);
    }
    let turns = Turns::new(plan);
    let before = Tree::of(plan.pid)?.cpu();
    let started = Instant::now();
    let mut latencies = Vec::new();
    std::thread::scope(|scope| {
        let turns = &turns;
        let threads: Vec<_> = connections
            .into_iter()
            .map(|connection| scope.spawn(move || connection.drive(plan, turns)))
            .collect();
        for thread in threads {
            latencies.extend(thread.join().map_err(|_| anyhow::anyhow!("client panicked"))??);
        }
        anyhow::Ok(())
    })?;
    let took = started.elapsed();
    let cpu = Tree::of(plan.pid)?.cpu() - before;
    Ok(Figures::new((&plan.case, &plan.server, plan.round), took, cpu, &mut latencies))
}

/// A server that lets everybody in would be fast.
fn refuses_a_wrong_password(plan: &Plan) -> anyhow::Result<()> {
    let mut connection = Connection::open(plan, plan.connections + 1)?;
    request(1, plan.first, "wrong", &mut connection.output);
    connection.flush()?;
    let answer = connection.line()?;
    ensure!(answer.starts_with("FAIL\t1\t"), "a wrong password was answered with {answer:?}");
    ensure!(!answer.contains("temp"), "a wrong password was answered with {answer:?}");
    Ok(())
}

/// Whose turn it is, for all connections.
struct Turns {
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    first: u64,
    people: u64,
    each: u64,
}

impl Turns {
    fn new(plan: &Plan) -> Self {
        let until = plan.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let end = match (until, plan.logins) {
            (Some(_), _) => u64::MAX,
            (None, 0) => plan.people * plan.each,
            (None, logins) => logins,
        };
        let Plan { first, people, each, .. } = *plan;
        Self { next: AtomicU64::new(0), end, until, first, people, each }
    }

    fn next(&self, now: Instant) -> Option<u64> {
        if self.until.is_some_and(|until| now >= until) {
            return None;
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        (turn < self.end).then(|| self.first + turn / self.each % self.people)
    }
}

/// A request that waits for its answer.
struct Waiting {
    id: u32,
    person: u64,
    sent: Instant,
}

struct Connection {
    stream: UnixStream,
    input: BufReader<UnixStream>,
    output: Vec<u8>,
}

impl Connection {
    fn open(plan: &Plan, number: u32) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(&plan.socket)
            .with_context(|| format!("connecting to {}", plan.socket.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let input = BufReader::with_capacity(64 * 1024, stream.try_clone()?);
        let mut new = Self { stream, input, output: Vec::new() };
        while new.line()? != "DONE" {}
        // Dovecot wants another number of each connection.
        let client_pid = std::process::id() * 1000 + number;
        write!(new.output, "VERSION\t1\t2\nCPID\t{client_pid}\n")?;
        new.flush()?;
        Ok(new)
    }

    fn drive(mut self, plan: &Plan, turns: &Turns) -> anyhow::Result<Vec<Duration>> {
        let names_people = plan.server != "floor";
        let mut latencies = Vec::new();
        let mut waiting: Vec<Option<Waiting>> = Vec::new();
        let started = Instant::now();
        for id in 1..=plan.in_flight {
            let Some(person) = turns.next(started) else { break };
            request(id, person, &password(person), &mut self.output);
            waiting.push(Some(Waiting { id, person, sent: started }));
        }
        let mut open = waiting.len();
        self.flush()?;
        while open > 0 {
            // Everything that one read brought is answered with one write, as login processes do.
            let mut line = self.line()?;
            let now = Instant::now();
            loop {
                let (id, user) = accepted(&line)?;
                let slot = usize::try_from((id - 1) % plan.in_flight)?;
                let slot = waiting.get_mut(slot).context("an answer to nothing")?;
                let done = slot
                    .take()
                    .filter(|waiting| waiting.id == id)
                    .context("an answer to nothing")?;
                let is_right = !names_people || user == address(done.person);
                ensure!(is_right, "person {} was answered with {line:?}", done.person);
                latencies.push(now - done.sent);
                match turns.next(now) {
                    Some(person) => {
                        let id = id + plan.in_flight;
                        request(id, person, &password(person), &mut self.output);
                        *slot = Some(Waiting { id, person, sent: now });
                    }
                    None => open -= 1,
                }
                if !self.input.buffer().contains(&b'\n') {
                    break;
                }
                line = self.line()?;
            }
            self.flush()?;
        }
        Ok(latencies)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.input.read_line(&mut line).context("reading")? > 0, "the server hung up");
        line.pop();
        Ok(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }
}

/// What a Dovecot login process sends. `no-penalty` spares Dovecot a question to its anvil process.
fn request(id: u32, person: u64, password: &str, output: &mut Vec<u8>) {
    let credentials = STANDARD.encode(format!("\0{}\0{password}", address(person)));
    let line = format!(
        "AUTH\t{id}\tPLAIN\tservice=imap\tsecured\tno-penalty\tsession=cT9sKl{id:08x}\tlip=192.0.2.1\t\
         rip=192.0.2.77\tlport=143\trport=50100\tresp={credentials}\n"
    );
    output.extend_from_slice(line.as_bytes());
}

/// Id and user of an OK.
fn accepted(line: &str) -> anyhow::Result<(u32, &str)> {
    let mut fields = line.split('\t');
    let (Some("OK"), Some(id)) = (fields.next(), fields.next()) else {
        bail!("answered with {line:?}");
    };
    let user = fields.find_map(|field| field.strip_prefix("user=")).context("OK without user")?;
    Ok((id.parse()?, user))
}

// `run` writes the same names and passwords into the directory.

fn address(person: u64) -> String {
    format!("person{person:06}@load.example")
}

fn password(person: u64) -> String {
    format!("correct-horse-{person:06}")
}
