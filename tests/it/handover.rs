//! `gatepost-dovecot-auth` between a daemon and a master: first with the test as Dovecot's master, then with the real one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use gatepost::config::listen::Listen;
use gatepost::config::units::FileMode;
use gatepost::metrics::Metrics;
use gatepost::proto::handover::HandedKind;
use gatepost::server::handover::{HandedSocket, Peers, acknowledge, gone, receive};
use gatepost::server::listener::{Connection, Limits, Stream, accept_loop, bind, places};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::dovecot::Home;

const SHIM: &str = env!("CARGO_BIN_EXE_gatepost-dovecot-auth");
const NOBODY: u32 = 65534;

// --- a daemon ---------------------------------------------------------------------------------------------------

/// A daemon that takes hand-overs, greets on every socket, refuses every login and knows every user. Dropping it is
/// its sudden death: nothing is said to anybody.
struct Daemon {
    _runtime: Runtime,
    taken: Arc<AtomicU64>,
    last_peer: Arc<AtomicU64>,
}

impl Daemon {
    fn start(config: &Listen) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (taken, last_peer) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let peers = Peers::new(&config.peers);
        let door = {
            let _entered = runtime.enter();
            bind(config).unwrap()
        };
        let (count, seen) = (Arc::clone(&taken), Arc::clone(&last_peer));
        runtime.spawn(async move {
            let tracker = TaskTracker::new();
            let serve = |connection: Connection| {
                let (count, seen, peers) = (Arc::clone(&count), Arc::clone(&seen), peers.clone());
                async move {
                    let uid = connection.peer.credentials.map_or(0, |peer| peer.uid);
                    seen.store(uid.into(), Ordering::SeqCst);
                    take(connection, &peers, &count).await;
                }
            };
            accept_loop(door, limits(), CancellationToken::new(), &tracker, serve).await;
        });
        Self { _runtime: runtime, taken, last_peer }
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    fn wait_for_sockets(&self) {
        wait_until("the hand-over", || self.taken() > 0);
    }
}

fn limits() -> Limits {
    let (door, metrics) = ("test".into(), Metrics::new());
    Limits { places: places(100), allow: Vec::new(), door, metrics }
}

async fn take(connection: Connection, peers: &Peers, count: &AtomicU64) {
    let Stream::Unix(stream) = &connection.stream else { return };
    let Ok(handed) = receive(stream, peers).await else { return };
    let shutdown = CancellationToken::new();
    let sockets = handed.sockets.len();
    for HandedSocket { kind, listener, .. } in handed.sockets {
        let stop = shutdown.clone();
        let serve = move |connection| greet(connection, kind);
        tokio::spawn(async move {
            accept_loop(listener, limits(), stop, &TaskTracker::new(), serve).await;
        });
    }
    acknowledge(stream, sockets).await.unwrap();
    count.fetch_add(1, Ordering::SeqCst);
    gone(stream).await;
    shutdown.cancel();
}

async fn greet(connection: Connection, kind: HandedKind) {
    let (reader, mut writer) = tokio::io::split(connection.stream);
    let greeting = match kind {
        HandedKind::Master | HandedKind::Userdb => "VERSION\t1\t1\nSPID\t1\n",
        _ => {
            "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\n\
             COOKIE\t0123456789abcdef0123456789abcdef\nDONE\n"
        }
    };
    _ = writer.write_all(greeting.as_bytes()).await;
    let mut lines = tokio::io::BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let fields: Vec<&str> = line.split('\t').collect();
        let answer = match fields.as_slice() {
            ["AUTH", id, ..] => format!("FAIL\t{id}\n"),
            ["USER", id, user, ..] => {
                format!("USER\t{id}\t{user}\tuid=5000\tgid=5000\thome=/nowhere\n")
            }
            _ => continue,
        };
        _ = writer.write_all(answer.as_bytes()).await;
    }
}

// --- a master ---------------------------------------------------------------------------------------------------

/// What Dovecot's master does for its auth service.
struct Master {
    directory: TempDir,
    shim: Child,
    status: std::io::PipeReader,
    death: Option<std::io::PipeReader>,
}

#[derive(Clone, Copy)]
enum Layout {
    V23,
    V24,
}

impl Master {
    fn start(layout: Layout) -> Self {
        let directory = TempDir::new().unwrap();
        set_mode(directory.path(), 0o755);
        let (status, status_write) = std::io::pipe().unwrap();
        let (death, death_write) = std::io::pipe().unwrap();
        let path = |name: &str| directory.path().join(name);
        let login = UnixListener::bind(path("auth-login")).unwrap();
        let master = UnixListener::bind(path("auth-master")).unwrap();
        let (version, first, kinds) = match layout {
            Layout::V23 => ("2.3.19.1", 7, ["", ""]),
            Layout::V24 => ("2.4.1-4", 8, ["\ttype=login", "\ttype=master"]),
        };
        let map = |parent_fd: OwnedFd, child_fd| FdMapping { parent_fd, child_fd };
        let shim = Command::new(SHIM)
            .arg(path("door"))
            .arg("--daemon-user")
            .arg(geteuid().as_raw().to_string())
            .env_clear()
            .envs([("DOVECOT_VERSION", version), ("GENERATION", "7"), ("CLIENT_LIMIT", "1000")])
            .envs([("RESTRICT_SETUID", "65534"), ("RESTRICT_SETGID", "65534")])
            .envs([("SOCKET_COUNT", "2")])
            .env("SOCKET0_SETTINGS", format!("auth-login{}", kinds[0]))
            .env("SOCKET1_SETTINGS", format!("auth-master{}", kinds[1]))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .fd_mappings(vec![
                map(status_write.into(), 5),
                map(death_write.into(), 6),
                map(login.into(), first),
                map(master.into(), first + 1),
            ])
            .unwrap()
            .spawn()
            .unwrap();
        Self { directory, shim, status, death: Some(death) }
    }

    /// The daemon's door, as most sites have it: closed to strangers by its mode.
    fn door(&self) -> Listen {
        Listen {
            path: Some(self.path("door")),
            mode: FileMode(0o660),
            peers: vec![geteuid().as_raw().to_string(), NOBODY.to_string()],
            ..Listen::default()
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn greeting(&self) -> String {
        let client = UnixStream::connect(self.path("auth-login")).unwrap();
        first_line(client)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.shim.id()).unwrap());
        kill_process(pid.unwrap(), signal).unwrap();
    }

    /// The end of the shim, and what it wrote to Dovecot's log.
    fn ended(mut self) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("the end of the shim", || {
            status = self.shim.try_wait().unwrap();
            status.is_some()
        });
        let mut log = String::new();
        self.shim.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.unwrap(), log)
    }

    fn assert_ends_well(self) {
        let (status, log) = self.ended();
        assert!(status.success(), "{status}: {log}");
        assert_eq!(log, "");
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        _ = self.shim.kill();
        _ = self.shim.wait();
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = gatepost::clock::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited too long for {what}");
        sleep(Duration::from_millis(10));
    }
}

fn first_line(stream: impl Read) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn the_sockets_reach_the_daemon_and_the_master_hears_that_we_live() {
    let mut master = Master::start(Layout::V23);
    let daemon = Daemon::start(&master.door());

    daemon.wait_for_sockets();

    assert_eq!(master.greeting(), "VERSION\t1\t2\n");
    let userdb = UnixStream::connect(master.path("auth-master")).unwrap();
    assert_eq!(first_line(userdb), "VERSION\t1\t1\n");
    let mut status = [0; 12];
    master.status.read_exact(&mut status).unwrap();
    let words = [master.shim.id(), 7, 999].map(u32::to_ne_bytes).concat();
    assert_eq!(status, words.as_slice());
    master.signal(Signal::TERM);
    master.assert_ends_well();
}

#[test]
fn dovecot_2_4_hands_over_its_typed_sockets() {
    let master = Master::start(Layout::V24);
    let daemon = Daemon::start(&master.door());

    daemon.wait_for_sockets();

    assert_eq!(master.greeting(), "VERSION\t1\t2\n");
    let userdb = UnixStream::connect(master.path("auth-master")).unwrap();
    assert_eq!(first_line(userdb), "VERSION\t1\t1\n");
    master.signal(Signal::INT);
    master.assert_ends_well();
}

#[test]
fn a_client_that_comes_between_two_daemons_is_served_by_the_second() {
    let master = Master::start(Layout::V23);
    for _ in 0..3 {
        let client = UnixStream::connect(master.path("auth-login")).unwrap();

        let daemon = Daemon::start(&master.door());

        assert_eq!(first_line(client), "VERSION\t1\t2\n");
        daemon.wait_for_sockets();
    }
    master.signal(Signal::TERM);
    master.assert_ends_well();
}

#[test]
fn the_shim_gives_up_root_and_is_still_let_in() {
    let master = Master::start(Layout::V23);
    Daemon::start(&master.door()).wait_for_sockets();

    let daemon = Daemon::start(&master.door());

    daemon.wait_for_sockets();
    let expected = if geteuid().is_root() { NOBODY } else { geteuid().as_raw() };
    assert_eq!(daemon.last_peer.load(Ordering::SeqCst), u64::from(expected));
    master.signal(Signal::TERM);
    master.assert_ends_well();
}

#[test]
fn a_shim_that_is_shut_out_without_root_ends_quietly_for_the_master_to_start_it_anew() {
    let master = Master::start(Layout::V23);
    let first = Daemon::start(&master.door());
    first.wait_for_sockets();

    let door = Listen { peers: vec!["no-such-user".into()], ..master.door() };
    drop(first);
    let _second = Daemon::start(&door);

    // Without root to begin with, nothing was given up: then it stays, and complains once.
    if geteuid().is_root() {
        return master.assert_ends_well();
    }
    sleep(Duration::from_millis(500));
    master.signal(Signal::TERM);
    let (_, log) = master.ended();
    assert_eq!(log.matches("may not hand sockets over").count(), 1, "{log}");
}

#[test]
fn the_shim_ends_with_the_master() {
    let mut master = Master::start(Layout::V23);
    let daemon = Daemon::start(&master.door());
    daemon.wait_for_sockets();

    master.death = None;

    master.assert_ends_well();
}

#[test]
fn the_shim_ends_with_the_master_when_there_is_no_daemon() {
    let mut master = Master::start(Layout::V23);

    master.death = None;

    master.assert_ends_well();
}

#[test]
fn a_stranger_on_the_daemons_path_gets_nothing() {
    let master = Master::start(Layout::V23);
    set_mode(master.directory.path(), 0o777);
    let script = r#"use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Listen => 5, Local => $ARGV[0]) or die $!;
        my $c = $s->accept; my $got = sysread($c, my $bytes, 100); print "got $got\n""#;
    let mut stranger = Command::new("perl");
    stranger.arg("-e").arg(script).arg(master.path("door")).stdout(Stdio::piped());
    assert!(geteuid().is_root(), "run the integration tests as root");
    stranger.uid(4711);
    let mut stranger = stranger.spawn().unwrap();

    let heard = first_line(stranger.stdout.take().unwrap());

    assert_eq!(heard, "got 0\n");
    stranger.wait().unwrap();
    master.signal(Signal::TERM);
    let (status, log) = master.ended();
    assert!(status.success(), "{status}");
    assert_eq!(log.matches("user 4711 is listening, which is neither root").count(), 1, "{log}");
}

#[test]
fn started_by_hand_the_shim_says_who_starts_it() {
    let output = Command::new(SHIM).env_clear().output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("gatepost: SOCKET_COUNT is missing or bad"), "{said}");
}

// --- the real master --------------------------------------------------------------------------------------------

/// A private Dovecot whose auth service is the shim.
struct Dovecot {
    directory: TempDir,
    master: Child,
    port: u16,
}

impl Dovecot {
    fn start() -> Self {
        let directory = Home::Bookworm.scratch();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let base = Home::Bookworm.seen_inside(directory.path()).display().to_string();
        // The shim must be where every user may run it.
        let shim = directory.path().join("gatepost-dovecot-auth");
        std::fs::copy(SHIM, &shim).unwrap();
        let text = format!(
            "base_dir = {base}/run\nstate_dir = {base}/state\nlog_path = {base}/log\nprotocols = imap\nssl = no\n\
             disable_plaintext_auth = no\nlisten = 127.0.0.1\nmail_location = maildir:~/Maildir\n\
             service imap-login {{\n inet_listener imap {{\n port = {port}\n }}\n \
             inet_listener imaps {{\n port = 0\n }}\n}}\n\
             service auth {{\n executable = {base}/gatepost-dovecot-auth {base}/door\n}}\n"
        );
        std::fs::write(directory.path().join("dovecot.conf"), text).unwrap();
        let master = Home::Bookworm
            .program("/usr/sbin/dovecot", "dovecot-core")
            .arg("-F")
            .arg("-c")
            .arg(format!("{base}/dovecot.conf"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let dovecot = Self { directory, master, port };
        wait_until("dovecot", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        dovecot
    }

    fn door(&self) -> Listen {
        let path = Some(self.directory.path().join("door"));
        Listen { path, ..Listen::default() }
    }

    fn doveadm(&self, arguments: &[&str]) -> String {
        let mut command = Home::Bookworm.program("/usr/bin/doveadm", "dovecot-core");
        let file = self.directory.path().join("dovecot.conf");
        command.arg("-c").arg(Home::Bookworm.seen_inside(&file)).args(arguments);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// What a client hears that logs in with a wrong password.
    fn log_in(&self) -> String {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (&stream).write_all(b"a login alice@example.org wrong\r\n").unwrap();
        let answers = BufReader::new(&stream).lines().map_while(Result::ok);
        answers.into_iter().find(|line| line.starts_with("a ")).unwrap_or_default()
    }

    fn stop(mut self) -> String {
        self.doveadm(&["stop"]);
        self.master.wait().unwrap();
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        let pid = i32::try_from(self.master.id()).ok().and_then(Pid::from_raw);
        if let (Ok(None), Some(pid)) = (self.master.try_wait(), pid) {
            _ = kill_process(pid, Signal::TERM);
            _ = self.master.wait();
        }
    }
}

#[test]
fn a_real_dovecot_is_served_through_restarts_and_reloads_and_has_nothing_to_complain_of() {
    const REFUSED: &str = "a NO [AUTHENTICATIONFAILED] Authentication failed.";
    let dovecot = Dovecot::start();
    let daemon = Daemon::start(&dovecot.door());

    assert_eq!(dovecot.log_in(), REFUSED);
    assert!(dovecot.doveadm(&["user", "alice@example.org"]).contains("uid\t5000"));

    drop(daemon);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| dovecot.log_in());
        sleep(Duration::from_secs(1));
        let daemon = Daemon::start(&dovecot.door());
        assert_eq!(waiting.join().unwrap(), REFUSED);

        dovecot.doveadm(&["reload"]);
        assert_eq!(dovecot.log_in(), REFUSED);
        wait_until("the hand-over after the reload", || daemon.taken() >= 2);
        assert_eq!(dovecot.log_in(), REFUSED);
        let expected = u64::from(gatepost::server::handover::user_id("root").unwrap());
        assert_eq!(daemon.last_peer.load(Ordering::SeqCst), expected);
    });

    let log = dovecot.stop();
    let complaints: Vec<&str> = log
        .lines()
        .filter(|line| ["Error:", "Fatal:", "Panic:"].iter().any(|word| line.contains(word)))
        .collect();
    assert_eq!(complaints, Vec::<&str>::new());
}
