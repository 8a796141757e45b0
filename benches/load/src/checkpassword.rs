//! P11: a program started for each login, beside `true` and a round trip on the daemon's socket.
//!
//! Measured by a process of its own: starting a program takes longer the more memory one has.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use command_fds::{CommandFdExt, FdMapping};

use crate::compare::{Compare, median_ms};
use crate::people::{address, password};
use crate::site::REMEMBERS;
use crate::wire::Protocol;

const RUNS: u64 = 200;

/// What is started, and whom it asks.
#[derive(Clone, Debug, clap::Args)]
pub struct Started {
    /// gatepost-checkpassword
    program: PathBuf,
    /// The daemon's door for it
    socket: PathBuf,
}

/// # Errors
/// If a login is not accepted.
pub fn measure(compare: &mut Compare) -> anyhow::Result<()> {
    if !compare.wants("P11") {
        return Ok(());
    }
    compare.warm(REMEMBERS.name, Protocol::Dovecot, 1000)?;
    for _ in 0..compare.rounds() {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("start-programs").arg(compare.site.program("gatepost-checkpassword"));
        command.arg(compare.site.path(&format!("{}-checkpassword", REMEMBERS.name)));
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "P11 failed");
        let text = String::from_utf8(output.stdout)?;
        let medians: Vec<f64> =
            text.split_whitespace().map(str::parse).collect::<Result<_, _>>().context(text)?;
        let [program, nothing, trip] =
            medians.try_into().map_err(|_| anyhow::anyhow!("not three"))?;
        compare.single("P11 gatepost-checkpassword, ms", program);
        compare.single("P11 true, ms", nothing);
        compare.single("P11 round trip on the socket, ms", trip);
        compare.single("P11 ratio", program / (nothing + trip));
    }
    Ok(())
}

/// The medians of all three, in milliseconds.
///
/// # Errors
/// If a login is not accepted.
pub fn start_programs(started: &Started) -> anyhow::Result<String> {
    let (mut programs, mut nothings, mut trips) = (Vec::new(), Vec::new(), Vec::new());
    for person in 0..RUNS {
        programs.push(program(started, person)?);
        let mut nothing = Command::new("/bin/true");
        nothings.push(timed(&mut nothing, person)?.0);
        trips.push(round_trip(started, person)?);
    }
    let medians = [&mut programs, &mut nothings, &mut trips].map(|all| median_ms(all).to_string());
    Ok(medians.join(" "))
}

/// As Dovecot starts it.
fn program(started: &Started, person: u64) -> anyhow::Result<Duration> {
    let mut command = Command::new(&started.program);
    command.arg("--socket").arg(&started.socket);
    command.args(["--daemon-user", "root", "--service", "imap"]);
    command.arg("/usr/lib/dovecot/checkpassword-reply");
    let (took, answer) = timed(&mut command, person)?;
    ensure!(answer.contains(&address(person)), "gatepost-checkpassword said {answer:?}");
    Ok(took)
}

/// Name and password on descriptor 3; what it says on 4.
fn timed(command: &mut Command, person: u64) -> anyhow::Result<(Duration, String)> {
    let (given, mut giving) = std::io::pipe()?;
    let (mut reply, replying) = std::io::pipe()?;
    write!(giving, "{}\0{}\0\0", address(person), password(person))?;
    drop(giving);
    command.stdin(Stdio::null()).fd_mappings(vec![
        FdMapping { parent_fd: given.into(), child_fd: 3 },
        FdMapping { parent_fd: replying.into(), child_fd: 4 },
    ])?;
    let begun = Instant::now();
    command.status().with_context(|| format!("{command:?}"))?;
    let took = begun.elapsed();
    // The other ends live in the command.
    *command = Command::new("/bin/true");
    let mut answer = String::new();
    reply.read_to_string(&mut answer)?;
    Ok((took, answer))
}

fn round_trip(started: &Started, person: u64) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut stream = UnixStream::connect(&started.socket)?;
    let (user, password) = (address(person), password(person));
    writeln!(stream, "CHECK\t1\tuser={user}\tpassword={password}\tservice=imap")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let took = begun.elapsed();
    ensure!(answer.starts_with("OK\t"), "answered with {answer:?}");
    Ok(took)
}
