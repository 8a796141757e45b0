//! The door at which `gatepost-dovecot-auth` hands over the listening sockets of Dovecot's auth service (login.md D-4).
//!
//! The sockets are served as long as the connection lasts over which they came. When the shim goes (Dovecot stopped or
//! reloaded) we must let go of them too: held on, they would take connections that nobody answers for.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketType,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::listener::Socket;
use crate::proto::handover::{
    Answer, HandedKind, MAX_MESSAGE_BYTES, MAX_SOCKETS, Message, MessageError, Place,
};

/// The shim says everything at once; who takes longer is not the shim.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Users who may hand sockets over.
#[derive(Clone, Debug)]
pub struct Peers {
    users: Vec<String>,
}

/// What was handed over.
#[derive(Debug)]
pub struct HandOver {
    /// The directory of Dovecot's own sockets.
    pub base_dir: PathBuf,
    /// Dovecot's version.
    pub version: String,
    /// Its sockets.
    pub sockets: Vec<HandedSocket>,
}

/// One socket of Dovecot's.
#[derive(Debug)]
pub struct HandedSocket {
    /// Dovecot's name of the listener.
    pub name: String,
    /// What is spoken on it.
    pub kind: HandedKind,
    /// Where it listens.
    pub place: Place,
    /// The socket, ready for the accept loop.
    pub listener: Socket,
}

/// Why a hand-over was not taken. Every descriptor that came with it is closed.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The peer is not one of `peers`.
    #[error("user {uid} may not hand sockets over: it is not one of the door's peers")]
    NotAPeer {
        /// The peer's user.
        uid: u32,
    },
    /// The message does not read.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A descriptor is not what may be handed over.
    #[error("{place}: not a listening stream socket")]
    NotListening {
        /// The place that the message gives.
        place: Place,
    },
    /// There are more or fewer descriptors than descriptions.
    #[error("{descriptors} descriptors came with {descriptions} descriptions of sockets")]
    Uneven {
        /// Descriptors received.
        descriptors: usize,
        /// Descriptions received.
        descriptions: usize,
    },
    /// The message did not come in time.
    #[error("no complete hand-over within {} s", TIME_LIMIT.as_secs())]
    Late,
    /// The connection broke.
    #[error("the connection of the hand-over broke: {0}")]
    Broken(#[from] io::Error),
}

/// Receives one hand-over. On an error the peer is told why.
///
/// Not cancel-safe: drop the stream with the future.
///
/// # Errors
/// See [`HandOverError`].
pub async fn receive(stream: &UnixStream, peers: &Peers) -> Result<HandOver, HandOverError> {
    let received =
        timeout(TIME_LIMIT, take(stream, peers)).await.unwrap_or(Err(HandOverError::Late));
    if let Err(error) = &received {
        // Best effort: the shim also learns from the closed connection.
        _ = timeout(TIME_LIMIT, say(stream, &Answer::Refused(error.to_string()))).await;
    }
    received
}

async fn take(stream: &UnixStream, peers: &Peers) -> Result<HandOver, HandOverError> {
    let uid = stream.peer_cred()?.uid();
    if !peers.include(uid).await {
        return Err(HandOverError::NotAPeer { uid });
    }
    let (message, descriptors) = read(stream).await?;
    if message.sockets.len() != descriptors.len() {
        let (descriptors, descriptions) = (descriptors.len(), message.sockets.len());
        return Err(HandOverError::Uneven { descriptors, descriptions });
    }
    let sockets = message.sockets.into_iter().zip(descriptors).map(|(said, descriptor)| {
        let listener = listener(descriptor)
            .map_err(|_| HandOverError::NotListening { place: said.place.clone() })?;
        Ok(HandedSocket { name: said.name, kind: said.kind, place: said.place, listener })
    });
    let sockets = sockets.collect::<Result<_, HandOverError>>()?;
    Ok(HandOver { base_dir: message.base_dir, version: message.version, sockets })
}

async fn read(stream: &UnixStream) -> Result<(Message, Vec<OwnedFd>), HandOverError> {
    let mut bytes = Vec::with_capacity(4096);
    let mut descriptors = Vec::new();
    loop {
        let part = stream
            .async_io(Interest::READABLE, || receive_part(stream, &mut bytes, &mut descriptors))
            .await?;
        if part == Part::TooMany || descriptors.len() > MAX_SOCKETS {
            return Err(MessageError::TooMany.into());
        }
        if part == Part::End {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if let Some(message) = Message::parse(&bytes)? {
            return Ok((message, descriptors));
        }
    }
}

#[derive(PartialEq, Eq)]
enum Part {
    Some,
    End,
    TooMany,
}

fn receive_part(
    stream: &UnixStream,
    bytes: &mut Vec<u8>,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<Part> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 4096];
    let wanted = buffer.len().min(MAX_MESSAGE_BYTES.saturating_sub(bytes.len()));
    let (buffer, _) = buffer.split_at_mut(wanted);
    let received = rustix::net::recvmsg(
        stream,
        &mut [io::IoSliceMut::new(buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    // The kernel has closed what did not fit.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Part::TooMany);
    }
    bytes.extend(buffer.iter().take(received.bytes));
    Ok(if received.bytes == 0 { Part::End } else { Part::Some })
}

/// A descriptor may be anything: a file, a connected socket, one that sends us datagrams.
fn listener(descriptor: OwnedFd) -> io::Result<Socket> {
    let family = sockopt::socket_domain(&descriptor)?;
    let stream = sockopt::socket_type(&descriptor)? == SocketType::STREAM;
    let known = [AddressFamily::UNIX, AddressFamily::INET, AddressFamily::INET6].contains(&family);
    if !stream || !known || !sockopt::socket_acceptconn(&descriptor)? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Socket::adopt(descriptor, family)
}

/// Tells the shim that its sockets are served. Call it when they are.
///
/// # Errors
/// If the shim has gone or does not take the answer.
pub async fn acknowledge(stream: &UnixStream, sockets: usize) -> io::Result<()> {
    timeout(TIME_LIMIT, say(stream, &Answer::Taken(sockets))).await?
}

/// Waits until the shim goes. It has nothing more to say; if it does say something, it is not the shim, and has gone.
/// Cancel-safe.
pub async fn gone(stream: &UnixStream) {
    let mut byte = [0];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

async fn say(stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let bytes = answer.encode();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Peers {
    /// Names of users, or their numbers.
    #[must_use]
    pub fn new(users: &[String]) -> Self {
        Self { users: users.to_vec() }
    }

    /// Whether the user is one of them. Asked of the system each time, which is once for each start of Dovecot: so a
    /// user that was made after our start counts too.
    async fn include(&self, uid: u32) -> bool {
        let users = self.users.clone();
        // The system's user database may wait for a directory server.
        let found = tokio::task::spawn_blocking(move || {
            users.iter().any(|user| user_id(user).is_some_and(|id| id == uid))
        });
        found.await.unwrap_or(false)
    }
}

/// The number of a user given by name or number.
#[must_use]
pub fn user_id(user: &str) -> Option<u32> {
    let named = || Some(nix::unistd::User::from_name(user).ok()??.uid.as_raw());
    user.parse().ok().or_else(named)
}

/// The hand-overs that are served now, by Dovecot's base directory.
#[derive(Debug, Default)]
pub struct HandedOver {
    served: Mutex<HashMap<PathBuf, (Turn, CancellationToken)>>,
    turns: AtomicU64,
}

/// One entry of [`HandedOver`], for [`HandedOver::remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

impl HandedOver {
    /// Enters a hand-over; an earlier one of the same directory is ended by its token.
    pub fn replace(&self, base_dir: PathBuf, token: CancellationToken) -> Turn {
        let turn = Turn(self.turns.fetch_add(1, Ordering::Relaxed));
        if let Some((_, earlier)) = self.served().insert(base_dir, (turn, token)) {
            earlier.cancel();
        }
        turn
    }

    /// Takes a hand-over out, unless a newer one has taken its place.
    pub fn remove(&self, base_dir: &Path, turn: Turn) {
        let mut served = self.served();
        if served.get(base_dir).is_some_and(|(current, _)| *current == turn) {
            served.remove(base_dir);
        }
    }

    /// How many Dovecots are served.
    #[must_use]
    pub fn count(&self) -> usize {
        self.served().len()
    }

    fn served(&self) -> MutexGuard<'_, HashMap<PathBuf, (Turn, CancellationToken)>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::{AsFd, BorrowedFd};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::proto::handover::Description;

    fn me() -> Peers {
        Peers::new(&[rustix::process::geteuid().as_raw().to_string()])
    }

    fn message(sockets: usize) -> Message {
        let socket = Description {
            name: "auth-client".into(),
            kind: HandedKind::Client,
            place: Place::Unix("/run/dovecot/auth-client".into()),
        };
        Message {
            base_dir: "/run/dovecot".into(),
            version: "2.3.19.1".into(),
            sockets: vec![socket; sockets],
        }
    }

    fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS + 8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        let flags = SendFlags::empty();
        let sent = rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, flags);
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// Hands these descriptors over and gives what the daemon makes of it and what the shim hears.
    async fn hand_over(
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> (Result<HandOver, HandOverError>, String) {
        let (mut shim, daemon) = UnixStream::pair().unwrap();
        send(&shim, &message.encode().unwrap(), descriptors);

        let received = receive(&daemon, &me()).await;

        drop(daemon);
        let mut heard = String::new();
        shim.read_to_string(&mut heard).await.unwrap();
        (received, heard)
    }

    async fn refused(descriptor: BorrowedFd<'_>) {
        let (received, heard) = hand_over(&message(1), &[descriptor]).await;

        assert!(matches!(received, Err(HandOverError::NotListening { .. })), "{received:?}");
        assert_eq!(
            heard,
            "refused\tunix:/run/dovecot/auth-client: not a listening stream socket\n"
        );
    }

    #[tokio::test]
    async fn handed_over_sockets_accept_connections() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("auth");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();

        let (received, heard) = hand_over(&message(2), &[unix.as_fd(), tcp.as_fd()]).await;

        let received = received.unwrap();
        assert_eq!(
            (received.base_dir, received.version),
            ("/run/dovecot".into(), "2.3.19.1".into())
        );
        assert_eq!(heard, "");
        let [Socket::Unix(first, None), Socket::Tcp(second, _)] =
            [&received.sockets[0].listener, &received.sockets[1].listener]
        else {
            panic!("{:?}", received.sockets)
        };
        let _client = UnixStream::connect(&path).await.unwrap();
        first.accept().await.unwrap();
        let _client = tokio::net::TcpStream::connect(tcp.local_addr().unwrap()).await.unwrap();
        second.accept().await.unwrap();
        let flags = rustix::io::fcntl_getfd(first).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[tokio::test]
    async fn only_listening_stream_sockets_are_taken() {
        let directory = tempfile::tempdir().unwrap();
        refused(std::fs::File::open("/dev/null").unwrap().as_fd()).await;
        refused(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().as_fd()).await;
        refused(std::os::unix::net::UnixStream::pair().unwrap().0.as_fd()).await;
        let datagram = std::os::unix::net::UnixDatagram::bind(directory.path().join("d")).unwrap();
        refused(datagram.as_fd()).await;
        let packets =
            rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let address = rustix::net::SocketAddrUnix::new(directory.path().join("p")).unwrap();
        rustix::net::bind(&packets, &address).unwrap();
        rustix::net::listen(&packets, 1).unwrap();
        refused(packets.as_fd()).await;
    }

    #[tokio::test]
    async fn more_sockets_than_allowed_are_refused_and_closed() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (shim, daemon) = UnixStream::pair().unwrap();
        send(&shim, &message(MAX_SOCKETS).encode().unwrap(), &[listener.as_fd(); MAX_SOCKETS + 1]);

        let received = receive(&daemon, &me()).await;

        assert!(matches!(received, Err(HandOverError::Message(MessageError::TooMany))));
        drop(listener);
        let error = tokio::net::TcpStream::connect(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn descriptors_and_descriptions_must_be_as_many() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();

        let (received, heard) = hand_over(&message(2), &[listener.as_fd()]).await;

        assert!(matches!(received, Err(HandOverError::Uneven { descriptors: 1, descriptions: 2 })));
        assert_eq!(heard, "refused\t1 descriptors came with 2 descriptions of sockets\n");
    }

    #[tokio::test]
    async fn the_most_sockets_allowed_come_in_pieces_too() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (shim, daemon) = UnixStream::pair().unwrap();
        let bytes = message(MAX_SOCKETS).encode().unwrap();
        let peers = me();
        let sender = async {
            let (first, rest) = bytes.split_at(20);
            send(&shim, first, &[listener.as_fd(); MAX_SOCKETS]);
            for part in rest.chunks(1000) {
                tokio::task::yield_now().await;
                assert_eq!(shim.try_write(part).unwrap(), part.len());
            }
        };

        let (received, ()) = tokio::join!(receive(&daemon, &peers), sender);

        assert_eq!(received.unwrap().sockets.len(), MAX_SOCKETS);
    }

    #[tokio::test]
    async fn a_user_who_is_no_peer_is_refused_before_anything_is_read() {
        let (mut shim, daemon) = UnixStream::pair().unwrap();

        let received =
            receive(&daemon, &Peers::new(&["no-such-user".into(), "4294967294".into()])).await;

        let uid = rustix::process::geteuid().as_raw();
        assert!(matches!(received, Err(HandOverError::NotAPeer { uid: found }) if found == uid));
        drop(daemon);
        let mut heard = String::new();
        shim.read_to_string(&mut heard).await.unwrap();
        assert!(heard.starts_with("refused\tuser "), "{heard}");
    }

    #[tokio::test]
    async fn another_protocol_is_refused_at_once() {
        let (mut client, daemon) = UnixStream::pair().unwrap();
        client.write_all(b"VERSION\t1\t2\n").await.unwrap();

        let received = receive(&daemon, &me()).await;

        assert!(matches!(received, Err(HandOverError::Message(MessageError::Foreign))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_cut_off() {
        let (_client, daemon) = UnixStream::pair().unwrap();

        let received = receive(&daemon, &me()).await;

        assert!(matches!(received, Err(HandOverError::Late)), "{received:?}");
    }

    #[tokio::test]
    async fn the_end_of_the_shim_is_noticed() {
        let (shim, daemon) = UnixStream::pair().unwrap();
        acknowledge(&daemon, 3).await.unwrap();

        drop(shim);

        gone(&daemon).await;
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        assert_eq!(user_id("root"), Some(0));
        assert_eq!(user_id("4711"), Some(4711));
        assert_eq!(user_id("no-such-user"), None);
    }

    #[test]
    fn a_new_hand_over_ends_the_earlier_one_of_the_same_dovecot_only() {
        let handed_over = HandedOver::default();
        let [first, second, other] = [(); 3].map(|()| CancellationToken::new());

        let early = handed_over.replace("/run/a".into(), first.clone());
        handed_over.replace("/run/b".into(), other.clone());
        let late = handed_over.replace("/run/a".into(), second.clone());

        assert!(first.is_cancelled() && !second.is_cancelled() && !other.is_cancelled());
        handed_over.remove(Path::new("/run/a"), early);
        assert_eq!(handed_over.count(), 2);
        handed_over.remove(Path::new("/run/a"), late);
        assert_eq!(handed_over.count(), 1);
    }
}
