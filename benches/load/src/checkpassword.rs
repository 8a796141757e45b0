//! P11: a program started for each login, beside `true` and a round trip on the daemon's socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use command_fds::{CommandFdExt, FdMapping};

use crate::compare::{Compare, median_ms};
use crate::people::{address, password};
use crate::site::REMEMBERS;
use crate::wire::Protocol;

const RUNS: u64 = 200;

/// # Errors
/// If a login is not accepted.
pub fn measure(compare: &mut Compare) -> anyhow::Result<()> {
    if !compare.wants("P11") {
        return Ok(());
    }
    compare.warm(REMEMBERS.name, Protocol::Dovecot, 1000)?;
    for _ in 0..compare.rounds() {
        let (mut programs, mut trues, mut trips) = (Vec::new(), Vec::new(), Vec::new());
        for person in 0..RUNS {
            programs.push(program(compare, person)?);
            trues.push(nothing()?);
            trips.push(round_trip(compare, person)?);
        }
        let (program, nothing) = (median_ms(&mut programs), median_ms(&mut trues));
        let trip = median_ms(&mut trips);
        compare.single("P11 gatepost-checkpassword, ms", program);
        compare.single("P11 true, ms", nothing);
        compare.single("P11 round trip on the socket, ms", trip);
        compare.single("P11 ratio", program / (nothing + trip));
    }
    Ok(())
}

/// As Dovecot starts it: name and password on descriptor 3, the answer on 4.
fn program(compare: &Compare, person: u64) -> anyhow::Result<Duration> {
    let (given, mut giving) = std::io::pipe()?;
    let (mut reply, replying) = std::io::pipe()?;
    write!(giving, "{}\0{}\0\0", address(person), password(person))?;
    drop(giving);
    let socket = compare.site.path(&format!("{}-checkpassword", REMEMBERS.name));
    let mut command = Command::new(compare.site.program("gatepost-checkpassword"));
    command.arg("--socket").arg(socket).args(["--daemon-user", "root", "--service", "imap"]);
    command.arg("/usr/lib/dovecot/checkpassword-reply").stdin(Stdio::null());
    command.fd_mappings(vec![
        FdMapping { parent_fd: given.into(), child_fd: 3 },
        FdMapping { parent_fd: replying.into(), child_fd: 4 },
    ])?;
    let started = Instant::now();
    let status = command.status().context("gatepost-checkpassword")?;
    let took = started.elapsed();
    drop(command);
    let mut answer = String::new();
    reply.read_to_string(&mut answer)?;
    ensure!(answer.contains(&address(person)), "{status}, said {answer:?}");
    Ok(took)
}

fn nothing() -> anyhow::Result<Duration> {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null());
    let started = Instant::now();
    command.status()?;
    Ok(started.elapsed())
}

fn round_trip(compare: &Compare, person: u64) -> anyhow::Result<Duration> {
    let socket = compare.site.path(&format!("{}-checkpassword", REMEMBERS.name));
    let started = Instant::now();
    let mut stream = UnixStream::connect(socket)?;
    let (user, password) = (address(person), password(person));
    writeln!(stream, "CHECK\t1\tuser={user}\tpassword={password}\tservice=imap")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let took = started.elapsed();
    ensure!(answer.starts_with("OK\t"), "answered with {answer:?}");
    Ok(took)
}
