//! The control socket (`[node] control`): the command line's way to a running daemon.
//!
//! One JSON document a line each way, answered in order:
//!
//! ```text
//! → {"command":"memory-show","name":"fry@planetexpress.com"}
//! ← {"reply":"done","value":{…}}
//! → {"command":"reload"}
//! ← {"reply":"invalid","errors":["listen.http.adress: unknown key, did you mean address?"]}
//! ```
//!
//! Only root and the daemon's own user are heard, whatever the mode of the socket.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// The longest request, its line feed included.
const MAX_REQUEST_BYTES: u64 = 64 * 1024;

/// The longest reply that the command line reads.
const MAX_REPLY_BYTES: u64 = 16 * 1024 * 1024;

/// A peer of the daemon that does not take its reply within this time is left alone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Read the configuration again; answered when it is in force or found bad.
    Reload,
    /// End; answered when the daemon has begun to.
    Stop,
    /// Who can answer now.
    Health,
    /// What is remembered of a name.
    MemoryShow {
        /// As somebody types it.
        name: String,
    },
    /// Forget a name.
    MemoryForget {
        /// As somebody types it.
        name: String,
    },
    /// Forget everything.
    MemoryForgetAll,
    /// Whose clients still send a password that was changed.
    MemoryOldPasswords,
    /// Make a mailbox whose password is checked here.
    MailboxCreate {
        /// Its address.
        address: String,
        /// The template it is made from.
        template: String,
    },
    /// Change a mailbox, in the store and in memory.
    MailboxSet {
        /// Its address.
        address: String,
        /// What to change.
        change: MailboxChange,
    },
    /// What the guessing shield counted of somebody, and what it would do.
    PolicyShow {
        /// An address, a login, or both.
        who: Vec<String>,
        /// What for; rules may be for some services only.
        service: Option<String>,
    },
    /// Forget what was counted of somebody.
    PolicyReset {
        /// An address, a login, or both.
        who: Vec<String>,
    },
    /// On whom rules acted last, and the entries made at run time.
    PolicyList,
    /// Make an entry of a list.
    PolicyAdd {
        /// `allow` or `deny`.
        list: String,
        /// An address, a net or a login; an address and a login; a TLS fingerprint, `ja3:…`.
        who: Vec<String>,
        /// How long it holds.
        seconds: u64,
        /// Why.
        reason: String,
    },
    /// Take an entry out.
    PolicyRemove {
        /// `allow` or `deny`.
        list: String,
        /// As it was made.
        who: Vec<String>,
    },
}

/// An administrator's word about a mailbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MailboxChange {
    /// It may be used again.
    Enable,
    /// It may not be used; nothing that a directory says changes that.
    Disable,
    /// These fields stay as they are; the list replaces the one before.
    Pin(Vec<String>),
    /// Its own password, as a hash.
    Password(Hash),
    /// Who checks its password: `local`, `ldap:NAME`.
    Provider(String),
}

/// A password's hash on its way to the store. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(pub String);

impl std::fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Hash(********)")
    }
}

/// What came of it. The kinds are what the caller does next; each has an exit code of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done, or known.
    Done {
        /// What is to be shown; null if there is nothing.
        value: serde_json::Value,
    },
    /// Nothing goes by that name.
    NotFound {
        /// Names the thing.
        error: String,
    },
    /// The request or the configuration is wrong; nothing was changed.
    Invalid {
        /// One text for each fault.
        errors: Vec<String>,
    },
    /// A directory or the store does not answer.
    Unavailable {
        /// Names the thing.
        error: String,
    },
    /// Something else went wrong.
    Failed {
        /// Names the thing.
        error: String,
    },
    /// This user is not heard here.
    Forbidden,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens there.
    #[error("no daemon is listening on {}", .0.display())]
    NoDaemon(PathBuf),
    /// The socket or the daemon does not let this user in.
    #[error("{}: only root and the daemon's own user may use it", .0.display())]
    Refused(PathBuf),
    /// The daemon did not answer in time; what was asked for may still happen.
    #[error("the daemon did not answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The daemon ended, or spoke another language.
    #[error("the daemon closed the connection without a reply")]
    NoReply,
    /// The reply cannot be read: the command line and the daemon are not of the same version.
    #[error("the daemon's reply cannot be read: {0}")]
    Unreadable(serde_json::Error),
    /// The system said no.
    #[error("control socket {}: {source}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Asks the daemon behind `path`, and waits for its reply.
///
/// # Errors
/// [`ControlError`]; after [`ControlError::Timeout`] and [`ControlError::NoReply`] the daemon may have done it.
pub async fn call(path: &Path, request: &Request, limit: Duration) -> Result<Reply, ControlError> {
    let reply = tokio::time::timeout(limit, ask(path, request))
        .await
        .map_err(|_| ControlError::Timeout(limit))?
        .map_err(|source| ControlError::from_io(path, source))?;
    if reply.is_empty() {
        return Err(ControlError::NoReply);
    }
    match serde_json::from_slice(&reply).map_err(ControlError::Unreadable)? {
        Reply::Forbidden => Err(ControlError::Refused(path.to_owned())),
        reply => Ok(reply),
    }
}

async fn ask(path: &Path, request: &Request) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path).await?;
    let line = Zeroizing::new(line_of(request)?);
    let mut reply = Vec::new();
    let sent = stream.write_all(&line).await;
    // A daemon that will not hear us has said so before it closed: its word matters more than the broken pipe.
    BufReader::new(stream.take(MAX_REPLY_BYTES))
        .read_until(b'\n', &mut reply)
        .await
        .or(sent.map(|()| 0))?;
    Ok(reply)
}

impl ControlError {
    fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NoDaemon(path),
            io::ErrorKind::PermissionDenied => Self::Refused(path),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::NoReply,
            _ => Self::System { path, source },
        }
    }
}

/// Answers the requests of one connection, until the peer is done or `shutdown`. `peer_uid` is what the kernel says
/// of the peer (SO_PEERCRED). A request under way is answered before `shutdown` is looked at.
///
/// # Errors
/// If the connection breaks, or a line is too long.
pub async fn serve<S, H, F>(
    stream: S,
    peer_uid: Option<u32>,
    handle: H,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request) -> F,
    F: Future<Output = Reply>,
{
    let mut stream = BufReader::new(stream);
    if !is_heard(peer_uid) {
        tracing::warn!(peer.uid = ?peer_uid, "a user who is not heard came to the control socket");
        return send(&mut stream, &Reply::Forbidden).await;
    }
    let mut line = Zeroizing::new(Vec::new());
    loop {
        line.clear();
        let read =
            async { (&mut stream).take(MAX_REQUEST_BYTES).read_until(b'\n', &mut line).await };
        let length = tokio::select! {
            length = read => length?,
            () = shutdown.cancelled() => return Ok(()),
        };
        if length == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let errors = vec!["the request is longer than 64 KiB or has no end".to_owned()];
            return send(&mut stream, &Reply::Invalid { errors }).await;
        }
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => handle(request).await,
            Err(error) => Reply::Invalid { errors: vec![format!("request: {}", position(&error))] },
        };
        send(&mut stream, &reply).await?;
    }
}

/// serde's own words may quote a value; these do not.
fn position(error: &serde_json::Error) -> String {
    format!("not understood, line {} column {}", error.line(), error.column())
}

fn is_heard(peer_uid: Option<u32>) -> bool {
    let own = rustix::process::geteuid().as_raw();
    peer_uid.is_some_and(|uid| uid == 0 || uid == own)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, reply: &Reply) -> io::Result<()> {
    let line = line_of(reply)?;
    let write = async {
        stream.write_all(&line).await?;
        stream.flush().await
    };
    tokio::time::timeout(WRITE_TIMEOUT, write).await.map_err(|_| io::ErrorKind::TimedOut)?
}

fn line_of(document: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(document)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A daemon that answers each request with the request itself.
    struct Daemon {
        directory: tempfile::TempDir,
        heard: Arc<Mutex<Vec<Request>>>,
        shutdown: CancellationToken,
    }

    impl Daemon {
        fn start(peer: impl Fn(u32) -> u32 + Send + 'static) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(directory.path().join("control")).unwrap();
            let heard = Arc::new(Mutex::new(Vec::new()));
            let shutdown = CancellationToken::new();
            let (log, stop) = (Arc::clone(&heard), shutdown.clone());
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let uid = peer(stream.peer_cred().unwrap().uid());
                    let log = Arc::clone(&log);
                    let handle = move |request: Request| {
                        log.lock().unwrap().push(request.clone());
                        async move { Reply::Done { value: serde_json::to_value(&request).unwrap() } }
                    };
                    tokio::spawn(serve(stream, Some(uid), handle, stop.clone()));
                }
            });
            Self { directory, heard, shutdown }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("control")
        }
    }

    #[tokio::test]
    async fn every_request_arrives_as_it_was_asked() {
        let daemon = Daemon::start(|uid| uid);
        let name = || "fry@planetexpress.com".to_owned();
        let requests = [
            Request::Reload,
            Request::Stop,
            Request::Health,
            Request::MemoryShow { name: name() },
            Request::MemoryForget { name: name() },
            Request::MemoryForgetAll,
            Request::MailboxSet { address: name(), change: MailboxChange::Disable },
            Request::MailboxSet {
                address: name(),
                change: MailboxChange::Pin(vec!["quota".into()]),
            },
            Request::PolicyShow { who: vec![name()], service: Some("imap".into()) },
            Request::PolicyReset { who: vec![name(), "192.0.2.9".into()] },
            Request::PolicyList,
            Request::PolicyAdd {
                list: "deny".into(),
                who: vec!["192.0.2.0/24".into()],
                seconds: 3600,
                reason: "spam".into(),
            },
            Request::PolicyRemove { list: "deny".into(), who: vec!["192.0.2.0/24".into()] },
        ];

        for request in &requests {
            let reply = call(&daemon.path(), request, LIMIT).await.unwrap();
            assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
        }

        assert_eq!(*daemon.heard.lock().unwrap(), requests);
    }

    #[tokio::test]
    async fn a_user_who_is_neither_root_nor_our_own_is_refused() {
        let daemon = Daemon::start(|_| 4_000_000);

        let reply = call(&daemon.path(), &Request::Stop, LIMIT).await;

        assert!(matches!(reply, Err(ControlError::Refused(_))), "{reply:?}");
        assert!(daemon.heard.lock().unwrap().is_empty());
        assert!(!is_heard(None));
        assert!(is_heard(Some(0)));
    }

    #[tokio::test]
    async fn without_a_daemon_the_error_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let missing = call(&path, &Request::Health, LIMIT).await;
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let left_behind = call(&path, &Request::Health, LIMIT).await;

        for reply in [missing, left_behind] {
            assert!(matches!(reply, Err(ControlError::NoDaemon(_))), "{reply:?}");
        }
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_or_goes_away_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();

        let hangs = call(&path, &Request::Health, Duration::from_millis(20)).await;
        let (goes, _) = tokio::join!(call(&path, &Request::Health, LIMIT), async {
            drop(listener.accept().await.unwrap());
            drop(listener.accept().await.unwrap());
        });

        assert!(matches!(hangs, Err(ControlError::Timeout(_))), "{hangs:?}");
        assert!(matches!(goes, Err(ControlError::NoReply)), "{goes:?}");
    }

    /// What comes back before the connection ends; a daemon that has heard enough may end it first.
    async fn say(daemon: &Daemon, bytes: &[u8]) -> String {
        let (mut read, mut write) = UnixStream::connect(daemon.path()).await.unwrap().into_split();
        let mut heard = Vec::new();
        let (_, _) = tokio::join!(
            async {
                write.write_all(bytes).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut heard)
        );
        String::from_utf8(heard).unwrap()
    }

    #[tokio::test]
    async fn several_requests_on_one_connection_are_answered_in_order() {
        let daemon = Daemon::start(|uid| uid);

        let heard =
            say(&daemon, b"{\"command\":\"health\"}\nnonsense\n{\"command\":\"stop\"}\n").await;

        let replies: Vec<Reply> =
            heard.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(matches!(
            replies.as_slice(),
            [Reply::Done { .. }, Reply::Invalid { .. }, Reply::Done { .. }]
        ));
    }

    #[tokio::test]
    async fn a_bad_request_is_answered_without_quoting_it() {
        let daemon = Daemon::start(|uid| uid);
        for request in [
            "{\"command\":\"hunter2\"}\n".to_owned(),
            "{\"command\":\"memory-show\",\"nam\":\"hunter2\"}\n".to_owned(),
            "{\"command\":\"login-test\",\"name\":\"x\",\"protocol\":\"imap\",\"password\":\"hunter2!\"}\n".to_owned(),
            "hunter2".repeat(20_000) + "\n",
        ] {
            let heard = say(&daemon, request.as_bytes()).await;

            let reply: Reply = serde_json::from_str(&heard).unwrap();
            assert!(matches!(reply, Reply::Invalid { .. }), "{reply:?}");
            assert!(!heard.contains("hunter2"), "{heard}");
        }
        assert!(daemon.heard.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_shutdown_ends_idle_connections() {
        let daemon = Daemon::start(|uid| uid);
        let mut stream = UnixStream::connect(daemon.path()).await.unwrap();

        daemon.shutdown.cancel();

        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
