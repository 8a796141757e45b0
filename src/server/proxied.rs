//! Doors behind a proxy (`listen.NAME.proxy_protocol`): every connection begins with the proxy's header, and the client
//! that it names takes the proxy's place as the peer.
//!
//! The header is read in the connection's own task: a proxy that connects and says nothing holds up nobody, and
//! occupies one place of the door for ten seconds at most.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use super::listener::{Connection, Peer, Stream, allows};
use crate::clock;
use crate::config::listen::Listen;
use crate::metrics::Metrics;
use crate::proto::haproxy::{self, Header, HeaderError};

/// The time for the header, from the connection's beginning.
const LIMIT: Duration = Duration::from_secs(10);

/// One complaint in this time for each door: a stranger could fill the log otherwise.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The proxies of one door.
pub(super) struct Proxies {
    door: Arc<str>,
    /// Who may send a header.
    trusted: Vec<IpNet>,
    /// Whom a header may name; empty: anybody.
    allow: Vec<IpNet>,
    metrics: Metrics,
    told: Mutex<Option<Instant>>,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum Objection {
    #[error("the peer is not one of the trusted proxies")]
    Stranger,
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("no complete PROXY header within {} s", LIMIT.as_secs())]
    Late,
    #[error("the connection ended within the PROXY header")]
    Cut,
    /// It was closed without a word (many proxies look so whether we are there), or broke.
    #[error("the connection ended: {0}")]
    Gone(io::Error),
}

impl Proxies {
    /// `None`: the door stands alone.
    pub(super) fn of(door: &Arc<str>, listen: &Listen, metrics: &Metrics) -> Option<Self> {
        listen.proxy_protocol.then(|| Self {
            door: Arc::clone(door),
            trusted: listen.trusted.clone(),
            allow: listen.allow.clone(),
            metrics: metrics.clone(),
            told: Mutex::default(),
        })
    }

    /// The connection as its client made it; `None` if it may not be served, which is said and counted here.
    pub(super) async fn let_in(&self, connection: Connection) -> Option<Connection> {
        let Connection { stream, peer, guard } = connection;
        let (Stream::Tcp(stream), Some(proxy)) = (stream, peer.address) else { return None };
        match self.client_of(stream, proxy).await {
            Ok((stream, Some(client))) if allows(&self.allow, client) => {
                let peer = Peer { address: Some(client), ..peer };
                Some(Connection { stream, peer, guard })
            }
            // Whom nobody names is in no net.
            Ok((_, client)) => {
                tracing::debug!(door = %self.door, peer.address = ?client, "peer not allowed");
                None
            }
            Err(Objection::Gone(error)) => {
                tracing::debug!(door = %self.door, %error, "connection ended");
                None
            }
            Err(objection) => {
                self.complain(proxy, &objection);
                None
            }
        }
    }

    /// The client, if the header names one.
    async fn client_of(
        &self,
        mut stream: TcpStream,
        proxy: SocketAddr,
    ) -> Result<(Stream, Option<SocketAddr>), Objection> {
        if !self.trusted.iter().any(|net| net.contains(&proxy.ip())) {
            return Err(Objection::Stranger);
        }
        let read = tokio::time::timeout(LIMIT, read_header(&mut stream)).await;
        let (header, ahead) = read.map_err(|_| Objection::Late)??;
        let client = match header {
            Header::Client(client) => {
                Some(SocketAddr::new(client.ip().to_canonical(), client.port()))
            }
            Header::Nobody => None,
            Header::Itself => Some(proxy),
        };
        Ok((Stream::Proxied(stream, ahead), client))
    }

    fn complain(&self, proxy: SocketAddr, objection: &Objection) {
        self.metrics.protocol_error(&self.door);
        if self.is_news(clock::now()) {
            tracing::warn!(
                door = %self.door, peer.ip = %proxy.ip(), error = %objection,
                "a connection without the header of a trusted proxy was closed"
            );
        }
    }

    fn is_news(&self, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let news = told.is_none_or(|told| now >= told + TOLD_EVERY);
        if news {
            *told = Some(now);
        }
        news
    }
}

/// The header, and the client's bytes that came with it.
async fn read_header<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(Header, Bytes), Objection> {
    let mut input = BytesMut::with_capacity(1024);
    loop {
        if stream.read_buf(&mut input).await.map_err(Objection::Gone)? == 0 {
            return Err(if input.is_empty() {
                Objection::Gone(io::ErrorKind::UnexpectedEof.into())
            } else {
                Objection::Cut
            });
        }
        // The parser asks for more within its own bound only.
        if let Some((header, length)) = haproxy::parse(&input)? {
            return Ok((header, input.split_off(length).freeze()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::server::listener::{Keeper, Limits, Socket, accept_loop, places};

    const HEADER: &[u8] = b"PROXY TCP4 192.0.2.9 198.51.100.1 56324 8420\r\n";
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    /// They name nobody: version 1, unspecified, a datagram over IPv4.
    const NAMELESS: [&[u8]; 3] = [
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\x7f\0\0\x01\x7f\0\0\x01\0\x01\0\x02",
    ];

    /// A door that says who the peer is, then everything that it read; with the nets it trusts and allows.
    async fn door(trusted: &str, allow: &[&str]) -> (SocketAddr, Arc<Proxies>) {
        let net = |text: &&str| text.parse().unwrap();
        let listen = Listen {
            proxy_protocol: true,
            trusted: vec![net(&trusted)],
            allow: allow.iter().map(net).collect(),
            ..Listen::default()
        };
        let metrics = Metrics::new();
        let proxies = Arc::new(Proxies::of(&"test".into(), &listen, &metrics).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { places: places(10), allow: Vec::new(), door: "test".into(), metrics };
        let known = Arc::clone(&proxies);
        tokio::spawn(async move {
            let serve = |connection| {
                let proxies = Arc::clone(&known);
                async move {
                    let Some(mut connection) = proxies.let_in(connection).await else { return };
                    let named = connection.peer.address.unwrap();
                    let mut said = format!("{named} ").into_bytes();
                    connection.stream.read_to_end(&mut said).await.unwrap();
                    connection.stream.write_all(&said).await.unwrap();
                }
            };
            let socket = Socket::Tcp(listener, Keeper::Nobody);
            accept_loop(socket, limits, CancellationToken::new(), &TaskTracker::new(), serve).await;
        });
        (address, proxies)
    }

    /// What the door says to these pieces, and where they came from.
    async fn ask(door: SocketAddr, pieces: &[&[u8]]) -> (String, SocketAddr) {
        let mut stream = TcpStream::connect(door).await.unwrap();
        let from = stream.local_addr().unwrap();
        for piece in pieces {
            // A door that closed already says nothing, which is what counts.
            _ = stream.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        _ = stream.shutdown().await;
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer).await;
        (String::from_utf8(answer).unwrap(), from)
    }

    fn errors(proxies: &Proxies) -> String {
        let text = proxies.metrics.encode();
        let line = text.lines().find(|line| line.starts_with("gatepost_protocol_errors_total{"));
        line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0").to_owned()
    }

    #[tokio::test]
    async fn the_client_of_the_header_is_the_peer_and_its_bytes_follow() {
        let (door, proxies) = door("127.0.0.0/8", &[]).await;
        let whole = [HEADER, b"hello"].concat();

        assert_eq!(ask(door, &[&whole]).await.0, "192.0.2.9:56324 hello");
        for cut in 1..whole.len() {
            let (said, _) = ask(door, &[&whole[..cut], &whole[cut..]]).await;
            assert_eq!(said, "192.0.2.9:56324 hello", "cut at {cut}");
        }
        let mapped = b"PROXY TCP6 ::ffff:192.0.2.9 ::1 1 2\r\n";
        assert_eq!(ask(door, &[mapped]).await.0, "192.0.2.9:1 ");
        let (said, from) = ask(door, &[LOCAL, b"hello"]).await;
        assert_eq!(said, format!("{from} hello"), "the proxy itself");
        for header in NAMELESS {
            let said = ask(door, &[header, b"hello"]).await.0;
            assert_eq!(said, "", "{}", header.escape_ascii());
        }
        assert_eq!(errors(&proxies), "0");
    }

    #[tokio::test]
    async fn without_the_header_of_a_trusted_proxy_nobody_is_served() {
        let (trusting, proxies) = door("127.0.0.0/8", &[]).await;
        for pieces in [&[&b"hello"[..]][..], &[&HEADER[..20]]] {
            assert_eq!(ask(trusting, pieces).await.0, "");
        }
        assert_eq!(errors(&proxies), "2");

        let (wary, proxies) = door("192.0.2.0/24", &[]).await;
        assert_eq!(ask(wary, &[HEADER, b"hello"]).await.0, "");
        assert_eq!(errors(&proxies), "1");
    }

    #[tokio::test]
    async fn a_look_whether_we_are_there_is_no_error() {
        let (door, proxies) = door("127.0.0.0/8", &[]).await;

        assert_eq!(ask(door, &[]).await.0, "");

        assert_eq!(errors(&proxies), "0");
    }

    #[tokio::test]
    async fn where_nets_are_allowed_it_is_the_client_who_must_be_in_one() {
        let (open, _) = door("127.0.0.0/8", &["192.0.2.0/24"]).await;
        let (shut, proxies) = door("127.0.0.0/8", &["127.0.0.0/8"]).await;

        assert_eq!(ask(open, &[HEADER]).await.0, "192.0.2.9:56324 ");
        assert_eq!(ask(open, &[LOCAL]).await.0, "");
        assert_eq!(ask(shut, &[HEADER]).await.0, "");
        let (said, from) = ask(shut, &[LOCAL]).await;
        assert_eq!(said, format!("{from} "));
        for header in NAMELESS {
            for door in [open, shut] {
                assert_eq!(ask(door, &[header]).await.0, "", "{}", header.escape_ascii());
            }
        }
        assert_eq!(errors(&proxies), "0");
    }

    #[tokio::test]
    async fn a_header_has_ten_seconds() {
        let (mut silent, mut door) = tokio::io::duplex(64);
        silent.write_all(&HEADER[..20]).await.unwrap();
        tokio::time::pause();

        let late = tokio::time::timeout(LIMIT, read_header(&mut door)).await;

        assert!(late.is_err(), "{late:?}");
    }

    #[test]
    fn a_door_complains_once_a_minute() {
        let listen = Listen { proxy_protocol: true, ..Listen::default() };
        let proxies = Proxies::of(&"test".into(), &listen, &Metrics::new()).unwrap();
        let now = clock::now();

        assert!(proxies.is_news(now));
        assert!(!proxies.is_news(now + Duration::from_secs(59)));
        assert!(proxies.is_news(now + Duration::from_secs(60)));
        assert!(Proxies::of(&"test".into(), &Listen::default(), &Metrics::new()).is_none());
    }
}
