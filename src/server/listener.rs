//! One accept loop for every door, unix and TCP, bound by us or handed over by Dovecot.
//!
//! A door at its limit stops accepting: who comes next waits in the backlog, which is what mail servers bear best
//! (Dovecot's login processes do not try again when a connection is refused). For the same reason no accept error ends
//! the loop. Sockets of one door share its places, and an idle one must not hold any: so each accepts first, and waits
//! for a place with that one connection in hand.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::auth::Credentials;
use crate::config::listen::Listen;
use crate::metrics::{Metrics, OpenConnection};

/// Connections that the kernel keeps for us while we are busy or restarting (it takes less if `somaxconn` is lower).
const BACKLOG: i32 = 4096;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A listening socket.
#[derive(Debug)]
pub enum Socket {
    /// On a path.
    Unix(UnixListener, Option<BoundPath>),
    /// On a TCP address.
    Tcp(TcpListener, Keeper),
}

/// Who keeps a socket open when we are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// Nobody: whoever waits in the backlog then is turned away.
    Nobody,
    /// Who opened it for us, so that they wait for our successor.
    Another,
}

/// The path of a unix socket that we bound; dropping it removes the path, unless another has taken it since.
#[derive(Debug)]
pub struct BoundPath {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// What a door lets in. All sockets of one door share what is cloned.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at one time; see [`places`].
    pub places: Arc<Semaphore>,
    /// TCP peers must be in one of these nets; empty: any peer.
    pub allow: Vec<IpNet>,
    /// The door's name in the configuration, for logs and metrics.
    pub door: Arc<str>,
    /// Where connections are counted.
    pub metrics: Metrics,
}

/// One accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// Its bytes.
    pub stream: Stream,
    /// Who is at the other end.
    pub peer: Peer,
    /// Its place under `max_connections`; dropping it gives the place to the next.
    pub guard: Guard,
}

/// The place of a connection under its door's limit, and in the metrics.
#[derive(Debug)]
pub struct Guard {
    _permit: OwnedSemaphorePermit,
    _open: OpenConnection,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Of a unix socket: the process that connected.
    pub credentials: Option<Credentials>,
    /// Of a TCP socket: its address; v4-mapped addresses are given as IPv4.
    pub address: Option<SocketAddr>,
}

/// The bytes of a connection.
#[derive(Debug)]
pub enum Stream {
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TCP by a proxy, after its header; with the client's first bytes, where they came with it.
    Proxied(TcpStream, Bytes),
}

/// Why a door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Neither or both of `path` and `address` are set.
    #[error("a door needs either a path or an address")]
    NoPlace,
    /// A process answers on the path.
    #[error("another process is listening on {}", .0.display())]
    InUse(PathBuf),
    /// The path is taken by something that we must not remove.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// The user or group that shall own the socket does not exist.
    #[error("no {what} is called {name:?}")]
    Nobody {
        /// `user` or `group`.
        what: &'static str,
        /// The name in the configuration.
        name: String,
    },
    /// A certificate or key cannot be used.
    #[error("tls.{key}: {problem}")]
    Tls {
        /// The setting.
        key: &'static str,
        /// What is wrong with its file.
        problem: String,
    },
    /// The system said no.
    #[error("{step} {place}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The path or address.
        place: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Opens the door that the configuration describes. Must be called within a tokio runtime.
///
/// A unix socket appears on its path complete: with its mode, its owner and its backlog. What a dead daemon left there is
/// replaced; a socket on which somebody answers is not.
///
/// # Errors
/// Nothing is left behind in any case.
pub fn bind(config: &Listen) -> Result<Socket, BindError> {
    match (&config.path, config.address) {
        (Some(path), None) => bind_unix(path, config),
        (None, Some(address)) => {
            let failed = |step| system(step, address.to_string());
            let listener = bind_tcp(address).map_err(failed("listening on"))?;
            let listener = TcpListener::from_std(listener).map_err(failed("listening on"))?;
            Ok(Socket::Tcp(listener, Keeper::Nobody))
        }
        _ => Err(BindError::NoPlace),
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path, config: &Listen) -> Result<Socket, BindError> {
    let failed = |step| system(step, path.display().to_string());
    let uid = owner("user", &config.user, |name| {
        Ok(nix::unistd::User::from_name(name)?.map(|u| u.uid.as_raw()))
    })?;
    let gid = owner("group", &config.group, |name| {
        Ok(nix::unistd::Group::from_name(name)?.map(|g| g.gid.as_raw()))
    })?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed("making the directory of"))?;
    }
    check_path_is_free(path)?;

    let new = Temporary(temporary_name(path));
    let listener = (|| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&new.0)?)?;
        // Nobody can connect before `listen`, whatever the umask made of the mode.
        std::os::unix::fs::chown(&new.0, uid, gid)?;
        std::fs::set_permissions(&new.0, std::fs::Permissions::from_mode(config.mode.0))?;
        rustix::net::listen(&socket, BACKLOG)?;
        UnixListener::from_std(socket.into())
    })()
    .map_err(failed("listening on"))?;
    let bound = BoundPath::new(&new.0, path).map_err(failed("listening on"))?;
    std::fs::rename(&new.0, path).map_err(failed("listening on"))?;
    Ok(Socket::Unix(listener, Some(bound)))
}

fn system(step: &'static str, place: String) -> impl FnOnce(io::Error) -> BindError {
    move |source| BindError::System { step, place, source }
}

fn owner(
    what: &'static str,
    name: &str,
    find: impl FnOnce(&str) -> io::Result<Option<u32>>,
) -> Result<Option<u32>, BindError> {
    if name.is_empty() {
        return Ok(None);
    }
    if let Ok(id) = name.parse() {
        return Ok(Some(id));
    }
    let found = find(name).map_err(system("looking up the owner", name.to_owned()))?;
    found.map(Some).ok_or_else(|| BindError::Nobody { what, name: name.to_owned() })
}

fn check_path_is_free(path: &Path) -> Result<(), BindError> {
    let failed = system("looking at", path.display().to_string());
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match probe(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
        _ => Err(BindError::InUse(path.to_owned())),
    }
}

/// Connects without waiting: a full backlog is an answer too.
fn probe(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Beside the path, for the rename; short, since paths of sockets end at 107 bytes.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

/// Removes the new socket if it did not get to its place.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.0);
    }
}

impl BoundPath {
    fn new(now: &Path, later: &Path) -> io::Result<Self> {
        let found = std::fs::symlink_metadata(now)?;
        Ok(Self { path: later.to_owned(), device: found.dev(), inode: found.ino() })
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode)) {
            _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    /// Takes a listening socket that another process opened; its path stays that process's own.
    ///
    /// # Errors
    /// If the descriptor is not a socket of the family that `family` says.
    pub fn adopt(descriptor: OwnedFd, family: AddressFamily) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        match family {
            AddressFamily::UNIX => Ok(Self::Unix(UnixListener::from_std(descriptor.into())?, None)),
            _ => Ok(Self::Tcp(TcpListener::from_std(descriptor.into())?, Keeper::Another)),
        }
    }

    /// The address of a TCP socket (the port that was found when the configuration says 0).
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(listener, _) => listener.local_addr().ok(),
        }
    }

    /// The kernel's number of the socket: the same for every descriptor of it.
    #[must_use]
    pub fn inode(&self) -> Option<u64> {
        let found = match self {
            Self::Unix(listener, _) => rustix::fs::fstat(listener),
            Self::Tcp(listener, _) => rustix::fs::fstat(listener),
        };
        found.ok().map(|found| found.st_ino)
    }

    async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                by_unix(stream)
            }
            Self::Tcp(listener, _) => {
                let (stream, address) = listener.accept().await?;
                by_tcp(stream, address)
            }
        }
    }

    /// The next connection of the backlog, without waiting; `None`: it died while it stood there.
    ///
    /// # Errors
    /// Nobody is left, or the system gives us no more of them.
    fn accept_waiting(&self) -> io::Result<Option<(Stream, Peer)>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = match self {
            Self::Unix(listener, _) => rustix::net::acceptfrom_with(listener, flags),
            Self::Tcp(listener, _) => rustix::net::acceptfrom_with(listener, flags),
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let error = io::Error::from(error);
                return if is_of_one(&error) { Ok(None) } else { Err(error) };
            }
        };
        let taken = match self {
            Self::Unix(..) => UnixStream::from_std(stream.into()).and_then(by_unix),
            Self::Tcp(..) => {
                let address = address.and_then(|address| SocketAddr::try_from(address).ok());
                let address = address.ok_or_else(|| io::ErrorKind::NotConnected.into());
                address.and_then(|address| by_tcp(TcpStream::from_std(stream.into())?, address))
            }
        };
        Ok(taken.ok())
    }

    /// Whether those in the backlog are turned away when we close it. From then on nobody comes by its path.
    fn leave(&mut self) -> bool {
        match self {
            Self::Unix(_, bound) => bound.take().is_some(),
            Self::Tcp(_, keeper) => *keeper == Keeper::Nobody,
        }
    }
}

fn by_unix(stream: UnixStream) -> io::Result<(Stream, Peer)> {
    let peer = stream.peer_cred()?;
    let credentials = Some(Credentials { uid: peer.uid(), pid: peer.pid() });
    Ok((Stream::Unix(stream), Peer { credentials, ..Peer::default() }))
}

fn by_tcp(stream: TcpStream, address: SocketAddr) -> io::Result<(Stream, Peer)> {
    stream.set_nodelay(true)?;
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    Ok((Stream::Tcp(stream), Peer { address: Some(address), ..Peer::default() }))
}

/// Accepts connections and serves each in a task of its own, until `shutdown`. The socket is then closed; connections
/// that are open go on, and `tracker` knows them. Those who connected before still get in, unless another keeps the
/// socket open, so that they wait for whoever serves it next.
pub async fn accept_loop<S, F>(
    mut socket: Socket,
    limits: Limits,
    shutdown: CancellationToken,
    tracker: &TaskTracker,
    serve: S,
) where
    S: Fn(Connection) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut pause = Pause::default();
    // Accepted, and waiting for a place.
    let mut in_hand = None;
    let enter = |(stream, peer), permit| {
        let open = limits.metrics.connection_opened(&limits.door);
        let guard = Guard { _permit: permit, _open: open };
        tracker.spawn(serve(Connection { stream, peer, guard }));
    };
    let accepting = async {
        loop {
            match socket.accept().await {
                Ok(accepted) => {
                    pause = Pause::default();
                    in_hand = limits.admit(accepted);
                }
                Err(error) => pause.after(&error, &limits.door).await,
            }
            if in_hand.is_some() {
                let Ok(permit) = Arc::clone(&limits.places).acquire_owned().await else { return };
                if let Some(admitted) = in_hand.take() {
                    enter(admitted, permit);
                }
            }
        }
    };
    // The accept call holds nothing when it is dropped half way.
    shutdown.run_until_cancelled(accepting).await;
    let mut next = in_hand;
    let drains = socket.leave();
    // New clients of a TCP socket still come meanwhile: this must not go on for ever.
    for _ in 0..=BACKLOG {
        if let Some(admitted) = next.take() {
            let Ok(permit) = Arc::clone(&limits.places).try_acquire_owned() else { break };
            enter(admitted, permit);
        }
        if !drains {
            break;
        }
        // An error is the end: there is nobody left, or nothing to be done about it.
        let Ok(accepted) = socket.accept_waiting() else { break };
        next = accepted.and_then(|accepted| limits.admit(accepted));
    }
}

/// Places for so many connections at one time.
#[must_use]
pub fn places(max_connections: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)))
}

/// Whether an address is in one of the nets; without nets, any is.
#[must_use]
pub fn allows(allow: &[IpNet], address: SocketAddr) -> bool {
    allow.is_empty() || allow.iter().any(|net| net.contains(&address.ip()))
}

impl Limits {
    /// Nothing if the peer may not come in.
    fn admit(&self, accepted: (Stream, Peer)) -> Option<(Stream, Peer)> {
        let (stream, peer) = accepted;
        if peer.address.is_none_or(|address| allows(&self.allow, address)) {
            return Some((stream, peer));
        }
        debug!(door = %self.door, peer.address = ?peer.address, "peer not allowed");
        None
    }
}

/// Whether an error of accept is about one peer, who went away before we came; the next one has done nothing wrong.
/// Linux passes on errors of the net that wait on the new connection, as accept(2) says.
fn is_of_one(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, NotConnected,
    };
    let protocol = Some(rustix::io::Errno::PROTO.raw_os_error());
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | NotConnected
    ) || error.raw_os_error() == protocol
}

/// How long to leave the socket alone after an error.
struct Pause {
    next: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: FIRST_PAUSE }
    }
}

impl Pause {
    async fn after(&mut self, error: &io::Error, door: &str) {
        if is_of_one(error) {
            return;
        }
        if self.next == FIRST_PAUSE {
            warn!(door, %error, "cannot accept connections, trying again");
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(LONGEST_PAUSE);
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Proxied(stream, ahead) if ahead.is_empty() => {
                Pin::new(stream).poll_read(context, buffer)
            }
            Self::Proxied(_, ahead) => {
                let taken = ahead.split_to(ahead.len().min(buffer.remaining()));
                buffer.put_slice(&taken);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tcp(stream) | Self::Proxied(stream, _) => {
                Pin::new(stream).poll_write(context, bytes)
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tcp(stream) | Self::Proxied(stream, _) => {
                Pin::new(stream).poll_write_vectored(context, slices)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tcp(stream) | Self::Proxied(stream, _) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tcp(stream) | Self::Proxied(stream, _) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::config::units::FileMode;

    fn at(path: &Path) -> Listen {
        Listen { path: Some(path.to_owned()), ..Listen::default() }
    }

    fn limits(max_connections: usize) -> Limits {
        Limits {
            places: places(max_connections),
            allow: Vec::new(),
            door: "test".into(),
            metrics: Metrics::new(),
        }
    }

    /// Greets with what is known of the peer, then says everything back.
    async fn echo(connection: Connection) {
        let Connection { mut stream, peer, guard: _guard } = connection;
        let greeting = format!("{peer:?}\n");
        stream.write_all(greeting.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        _ = tokio::io::copy(&mut reader, &mut writer).await;
    }

    fn start(socket: Socket, limits: Limits) -> (CancellationToken, TaskTracker) {
        let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
        let (stop, tasks) = (shutdown.clone(), tracker.clone());
        tokio::spawn(async move { accept_loop(socket, limits, stop, &tasks, echo).await });
        (shutdown, tracker)
    }

    async fn line(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            match stream.read_u8().await {
                Ok(byte) => line.push(byte),
                Err(_) => break,
            }
        }
        String::from_utf8(line).unwrap()
    }

    #[tokio::test]
    async fn a_unix_door_knows_who_connects_and_removes_its_path_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/for/it/auth");
        let config = Listen { mode: FileMode(0o640), ..at(&path) };
        let socket = bind(&config).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        let (shutdown, tracker) = start(socket, limits(10));

        let mut client = UnixStream::connect(&path).await.unwrap();

        let greeting = line(&mut client).await;
        let expected = Peer {
            credentials: Some(Credentials {
                uid: rustix::process::geteuid().as_raw(),
                pid: i32::try_from(std::process::id()).ok(),
            }),
            ..Peer::default()
        };
        assert_eq!(greeting, format!("{expected:?}\n"));
        shutdown.cancel();
        while path.exists() {
            tokio::task::yield_now().await;
        }
        client.write_all(b"still here\n").await.unwrap();
        assert_eq!(line(&mut client).await, "still here\n");
        drop(client);
        tracker.close();
        tracker.wait().await;
    }

    #[tokio::test]
    async fn a_tcp_door_knows_the_address() {
        let config = Listen { address: "127.0.0.1:0".parse().ok(), ..Listen::default() };
        let socket = bind(&config).unwrap();
        let address = socket.address().unwrap();
        start(socket, limits(10));

        let mut client = TcpStream::connect(address).await.unwrap();

        let address = client.local_addr().ok();
        let expected = Peer { address, ..Peer::default() };
        assert_eq!(line(&mut client).await, format!("{expected:?}\n"));
    }

    #[tokio::test]
    async fn a_mapped_address_is_an_ipv4_address_to_the_allowed_nets() {
        let config = Listen { address: "[::]:0".parse().ok(), ..Listen::default() };
        let socket = bind(&config).unwrap();
        let port = socket.address().unwrap().port();
        let allow = vec!["127.0.0.0/8".parse().unwrap()];
        start(socket, Limits { allow, ..limits(10) });

        let mut allowed = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut stranger = TcpStream::connect(("::1", port)).await.unwrap();

        assert!(line(&mut allowed).await.contains("127.0.0.1"));
        assert_eq!(line(&mut stranger).await, "");
    }

    #[tokio::test]
    async fn beyond_the_limit_connections_wait_in_the_backlog() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth");
        start(bind(&at(&path)).unwrap(), limits(1));
        let mut first = UnixStream::connect(&path).await.unwrap();
        line(&mut first).await;

        let mut second = UnixStream::connect(&path).await.unwrap();

        let mut byte = [0];
        tokio::task::yield_now().await;
        let early = second.try_read(&mut byte).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        assert!(line(&mut second).await.starts_with("Peer"));
    }

    #[tokio::test]
    async fn two_sockets_of_a_door_share_its_places_and_an_idle_one_holds_none() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["idle", "busy"].map(|name| directory.path().join(name));
        let limits = limits(1);
        for path in &paths {
            start(bind(&at(path)).unwrap(), limits.clone());
        }

        for path in [&paths[1], &paths[0], &paths[1]] {
            let mut client = UnixStream::connect(path).await.unwrap();
            assert!(line(&mut client).await.starts_with("Peer"), "{}", path.display());
        }

        let mut first = UnixStream::connect(&paths[0]).await.unwrap();
        line(&mut first).await;
        let mut second = UnixStream::connect(&paths[1]).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), line(&mut second)).await;
        assert!(early.is_err(), "{early:?}");
        drop(first);
        assert!(line(&mut second).await.starts_with("Peer"));
    }

    #[tokio::test]
    async fn at_the_end_a_connection_in_hand_gets_in_if_there_is_a_place() {
        for free in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("auth");
            let limits = limits(1);
            let place = Arc::clone(&limits.places).try_acquire_owned().unwrap();
            let (shutdown, _) = start(bind(&at(&path)).unwrap(), limits);
            let mut client = UnixStream::connect(&path).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;

            // Nothing runs between the two: the loop hears of the end first.
            shutdown.cancel();
            let place = if free {
                drop(place);
                None
            } else {
                Some(place)
            };

            assert_eq!(line(&mut client).await.starts_with("Peer"), free);
            drop(place);
        }
    }

    #[tokio::test]
    async fn who_died_in_the_backlog_holds_up_nobody_behind_them() {
        let config = Listen { address: "127.0.0.1:0".parse().ok(), ..Listen::default() };
        let socket = bind(&config).unwrap();
        let address = socket.address().unwrap();
        for _ in 0..3 {
            let dead = std::net::TcpStream::connect(address).unwrap();
            // Closed with a reset.
            sockopt::set_socket_linger(&dead, Some(Duration::ZERO)).unwrap();
        }
        let mut living = TcpStream::connect(address).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        stop.cancel();

        accept_loop(socket, limits(10), stop, &tasks, |connection| async {
            let Connection { mut stream, .. } = connection;
            _ = stream.write_all(b"here\n").await;
        })
        .await;

        assert_eq!(line(&mut living).await, "here\n");
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_daemon_is_replaced_and_that_of_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth");
        let dead = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(dead);

        let living = bind(&at(&path)).unwrap();

        let refused = bind(&at(&path)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("another process is listening on {}", path.display())
        );
        UnixStream::connect(&path).await.unwrap();
        drop(living);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_path_that_another_has_taken_since_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth");
        let socket = bind(&at(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();

        drop(socket);

        assert!(path.exists());
        let refused = bind(&at(&path)).unwrap_err();
        assert!(matches!(refused, BindError::NotASocket(_)), "{refused}");
    }

    #[tokio::test]
    async fn what_cannot_be_bound_is_named_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth");
        let nobody = Listen { group: "no-such-group".into(), ..at(&path) };
        assert_eq!(bind(&nobody).unwrap_err().to_string(), r#"no group is called "no-such-group""#);
        let long = at(&directory.path().join("x".repeat(120)));
        assert!(bind(&long).unwrap_err().to_string().starts_with("listening on /"));
        assert!(matches!(bind(&Listen::default()), Err(BindError::NoPlace)));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_of_accept_are_waited_out_longer_and_longer() {
        let mut pause = Pause::default();
        let begin = tokio::time::Instant::now();

        for _ in 0..12 {
            pause.after(&io::Error::from_raw_os_error(24), "test").await; // EMFILE
        }

        // 5 + 10 + … + 640 ms, then four times the longest.
        assert_eq!(begin.elapsed(), Duration::from_millis(1275 + 4000));
        pause.after(&io::ErrorKind::ConnectionAborted.into(), "test").await;
        assert_eq!(begin.elapsed(), Duration::from_millis(1275 + 4000));
    }
}
