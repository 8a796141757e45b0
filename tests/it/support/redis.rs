//! A private Valkey or Redis with a password, for what nodes tell each other. It keeps nothing on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::slapd::{LEAK_MARK, make_certificates};
use super::{Running, free_port, listens, printed, program, scratch, wait_until};

/// A server, which may be away.
#[derive(Debug)]
pub(crate) struct Redis {
    directory: TempDir,
    pub(crate) port: u16,
    tls_port: u16,
    running: Option<Running>,
}

/// A way to a server; see [`Redis::relay_that_loses_an_answer`].
#[derive(Debug)]
pub(crate) struct Relay {
    port: u16,
    lost: Arc<AtomicBool>,
    // Ends all tasks when it is dropped.
    _runtime: Runtime,
}

impl Relay {
    /// The line of `[shared]`.
    pub(crate) fn url(&self, redis: &Redis) -> String {
        redis.url().replace(&format!(":{}", redis.port), &format!(":{}", self.port))
    }

    pub(crate) fn has_lost_it(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

async fn relay(client: TcpStream, server: TcpStream, stream: &str, lost: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let is_deaf = AtomicBool::new(false);
    let names =
        |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|it| it == word.as_bytes());
    let there = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            let bytes = &buffer[..count];
            if names(bytes, "XADD") && names(bytes, stream) && !lost.swap(true, Ordering::AcqRel) {
                is_deaf.store(true, Ordering::Release);
            }
            if to_server.write_all(bytes).await.is_err() {
                return;
            }
        }
    };
    let back = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if !is_deaf.load(Ordering::Acquire)
                && to_client.write_all(&buffer[..count]).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

/// Debian 13 has both; what they speak is the same.
fn either(redis: &str, valkey: &str) -> Command {
    let is_there = |name: &str| Path::new("/usr/bin").join(name).exists();
    if !is_there(redis) && is_there(valkey) {
        return program(valkey, "valkey-tools");
    }
    program(redis, "redis-server")
}

fn password() -> String {
    format!("shared/{LEAK_MARK}")
}

impl Redis {
    pub(crate) fn start() -> Self {
        let directory = scratch(Path::new("/tmp"));
        make_certificates(directory.path());
        let (port, tls_port) = (free_port(), free_port());
        let text = format!(
            "port {port}\nbind 127.0.0.1\nrequirepass {}\nsave \"\"\nappendonly no\ndir {path}\n\
             tls-port {tls_port}\ntls-auth-clients no\ntls-ca-cert-file {path}/ca.pem\n\
             tls-cert-file {path}/server.pem\ntls-key-file {path}/server.key\n",
            password(),
            path = directory.path().display()
        );
        fs::write(directory.path().join("redis.conf"), text).unwrap();
        let mut new = Self { directory, port, tls_port, running: None };
        new.start_again();
        new
    }

    pub(crate) fn start_again(&mut self) {
        let mut command = either("redis-server", "valkey-server");
        command.arg(self.directory.path().join("redis.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.running = Some(Running::start("redis", &mut command));
        wait_until("Redis listens", Duration::from_secs(20), || listens(self.port));
    }

    /// SIGKILL; what it held is lost.
    pub(crate) fn kill9(&mut self) {
        self.running.take().expect("Redis runs").kill9();
    }

    /// The line of `[shared]`.
    pub(crate) fn url(&self) -> String {
        let password = password().replace('/', "%2F");
        format!("url = \"redis://:{password}@127.0.0.1:{}\"", self.port)
    }

    /// A way to it on which one answer gets lost: that to the first XADD to this stream.
    pub(crate) fn relay_that_loses_an_answer(&self, stream: &'static str) -> Relay {
        let listener = std::net::TcpListener::bind(("127.0.0.1", free_port())).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let runtime = Runtime::new().unwrap();
        let (server, lost) = (self.port, Arc::new(AtomicBool::new(false)));
        let found = Arc::clone(&lost);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                tokio::spawn(relay(client, server, stream, Arc::clone(&found)));
            }
        });
        Relay { port, lost, _runtime: runtime }
    }

    /// The same by TLS.
    pub(crate) fn tls_url(&self) -> String {
        let url = self.url().replace("redis://", "rediss://");
        url.replace(&format!(":{}", self.port), &format!(":{}", self.tls_port))
    }

    /// The certificate that signed its own.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Asks it something; what it answered.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let mut command = either("redis-cli", "valkey-cli");
        command.args(["-p", &self.port.to_string(), "--no-auth-warning", "-a", &password()]);
        let output = command.args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", printed(&output));
        printed(&output).trim().to_owned()
    }
}
