//! Private instances of the real programs. Each has its own directory and free loopback ports, so that any number of
//! tests run beside each other; each is stopped by its own process id when it is dropped.

pub(crate) mod answers;
pub(crate) mod clients;
pub(crate) mod dovecot;
pub(crate) mod exim;
pub(crate) mod gatepost;
pub(crate) mod haproxy;
pub(crate) mod ldap_proxy;
pub(crate) mod nginx;
pub(crate) mod postfix;
pub(crate) mod redis;
pub(crate) mod samba;
pub(crate) mod site;
pub(crate) mod slapd;
pub(crate) mod three_eight_nine;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The user and group id that own the mail of the tests; nobody needs to be called so.
pub(crate) const MAIL_ID: u32 = 5000;

/// A short path that every user may enter: the names of unix sockets end at 107 bytes, and Dovecot and Postfix drop
/// root's rights.
pub(crate) fn scratch(parent: &Path) -> TempDir {
    let directory = tempfile::Builder::new().prefix("gp").rand_bytes(6).tempdir_in(parent).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A directory that belongs to one user.
pub(crate) fn directory_of(path: &Path, user: u32, mode: u32) {
    fs::create_dir_all(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
}

/// A loopback port that nobody listens on. Taken below the range from which the kernel serves outgoing connections:
/// between this look and the program's own bind only another test could take it, and those ask here. The quickstart, which
/// a test runs, takes its ports from 20000 upwards.
pub(crate) fn free_port() -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let mut given = GIVEN.lock().unwrap();
    let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    (0..9_760_u16)
        .map(|step| 10_240 + (first % 9_760 + step) % 9_760)
        .find(|port| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .inspect(|port| {
            given.insert(*port);
        })
        .expect("a free port below 20000")
}

/// Whether a connection to the port is taken.
pub(crate) fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[expect(clippy::disallowed_methods, reason = "tests wait for other programs in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits until the condition holds, or fails the test naming what it waited for.
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = now();
    while !condition() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets time pass where time itself is what is tested: an idle hour, a proof that grows old.
pub(crate) fn pass_time(span: Duration) {
    std::thread::sleep(span);
}

/// The command for a program. A missing one fails the test with the package that holds it.
pub(crate) fn program(path: &str, package: &str) -> Command {
    let found = if path.contains('/') {
        Path::new(path).exists()
    } else {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(path).exists())
    };
    assert!(found, "{path} is missing: apt-get install {package}");
    let mut command = Command::new(path);
    command.env("LC_ALL", "C");
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Runs a command to its end and returns what it printed; a failure is the test's failure.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} failed: {}", printed(&output));
    printed(&output)
}

/// Standard output, then standard error.
pub(crate) fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The text of a file that a program may still be writing; empty while there is none.
pub(crate) fn read_text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// A program in the foreground; killed on drop if it still runs.
#[derive(Debug)]
pub(crate) struct Running {
    name: &'static str,
    child: Child,
}

impl Running {
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Self {
        Self { name, child: command.spawn().unwrap() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Writes to its standard input.
    pub(crate) fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The next line of its standard output. What may follow in the same read is lost.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait_until(&format!("{} ends", self.name), limit, || self.ended().is_some());
        self.ended().unwrap()
    }

    /// Asks it to end (SIGTERM) and waits.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        if self.ended().is_none() {
            self.signal(Signal::TERM);
        }
        self.wait(Duration::from_secs(20))
    }

    /// For a drop: SIGTERM, at which it takes its children with it, and a wait of 4 s. What still runs then is killed by the
    /// drop of this.
    pub(crate) fn end_with_children(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::TERM);
        }
        for _ in 0..200 {
            if self.ended().is_some() {
                return;
            }
            pass_time(Duration::from_millis(20));
        }
    }

    /// SIGKILL: no goodbye.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
