//! A proxy between the daemon and slapd that does to LDAP what networks, load balancers and dying servers do. It reads
//! whole messages in both directions, so that a fault hits where it shall: half of an answer, one kind of request.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::slapd::{Slapd, make_certificates};
use super::{free_port, listens, scratch, wait_until};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// The port is closed, and connections that are open break off.
    Refused,
    /// Connections and requests are taken and not answered until this is over.
    Hung,
    /// Binds of people are taken and never answered; the service account and searches are served.
    HungPeople,
    /// Each request is passed on so much later.
    Delayed(Duration),
    /// Half of an answer, and the end.
    Cut,
    /// A request is read, and then the connection ends.
    Dropped,
    /// A request is read, and then the connection is reset.
    Reset,
    /// Every bind and search is answered with this code.
    Coded(u32),
    /// Every bind is answered with this code; searches are passed on.
    CodedBinds(u32),
    /// Something else than LDAP in place of each answer.
    Garbage,
    /// An answer that announces two gigabytes.
    Oversized,
    /// Answers come byte by byte, one in 100 ms.
    Trickling,
    /// New connections see a certificate that nobody trusts; old ones are ended.
    BadCertificate,
}

/// How it speaks to the daemon. To slapd it is always in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Clear,
    /// TLS from the first byte, with the certificate of slapd.
    Tls,
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct LdapProxy {
    pub(crate) port: u16,
    fault: watch::Sender<Fault>,
    counts: Arc<Counts>,
    _strange: TempDir,
    // Ends all tasks when it is dropped.
    _runtime: Runtime,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    binds: AtomicUsize,
    searches: AtomicUsize,
}

struct Certificates {
    right: TlsAcceptor,
    strange: TlsAcceptor,
}

/// What every connection needs.
#[derive(Clone)]
struct Context {
    upstream: u16,
    fault: watch::Receiver<Fault>,
    counts: Arc<Counts>,
    certificates: Option<Arc<Certificates>>,
}

impl LdapProxy {
    pub(crate) fn start(slapd: &Slapd, speaks: Speaks) -> Self {
        let strange = scratch(Path::new("/tmp"));
        let certificates = (speaks == Speaks::Tls).then(|| {
            make_certificates(strange.path());
            let right = slapd.ca_file();
            Arc::new(Certificates {
                right: acceptor(right.parent().unwrap()),
                strange: acceptor(strange.path()),
            })
        });
        let (fault, receiver) = watch::channel(Fault::Nothing);
        let context =
            Context { upstream: slapd.port, fault: receiver, counts: Arc::default(), certificates };
        let counts = Arc::clone(&context.counts);
        let port = free_port();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(listen(port, context));
        let proxy = Self { port, fault, counts, _strange: strange, _runtime: runtime };
        wait_until("the proxy listens", Duration::from_secs(5), || listens(port));
        proxy
    }

    /// From now on this is wrong. Returns when the port shows it.
    pub(crate) fn set(&self, fault: Fault) {
        let before = self.fault.send_replace(fault);
        if before == Fault::Refused || fault == Fault::Refused {
            wait_until("the proxy's port is as it shall be", Duration::from_secs(5), || {
                listens(self.port) == (fault != Fault::Refused)
            });
        }
    }

    /// Connections that were taken.
    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// Bind requests that came, those of the service account among them.
    pub(crate) fn binds(&self) -> usize {
        self.counts.binds.load(Ordering::SeqCst)
    }

    /// Search requests that came, probes among them.
    pub(crate) fn searches(&self) -> usize {
        self.counts.searches.load(Ordering::SeqCst)
    }
}

fn acceptor(directory: &Path) -> TlsAcceptor {
    let certificates = CertificateDer::pem_file_iter(directory.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.map(Result::unwrap).collect(), key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn listen(port: u16, mut context: Context) {
    loop {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut fault = context.fault.clone();
        tokio::select! {
            () = accept(&listener, &context) => {}
            refused = fault.wait_for(|fault| *fault == Fault::Refused) => {
                if refused.is_err() {
                    return;
                }
            }
        }
        drop(listener);
        if context.fault.wait_for(|fault| *fault != Fault::Refused).await.is_err() {
            return;
        }
    }
}

async fn accept(listener: &tokio::net::TcpListener, context: &Context) {
    while let Ok((stream, _)) = listener.accept().await {
        context.counts.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(serve(stream, context.clone()));
    }
}

/// One connection, until somebody ends it.
async fn serve(stream: tokio::net::TcpStream, context: Context) {
    let stream = stream.into_std().unwrap();
    // A second name for the socket: what becomes of it at the end is said here, whatever wraps the first.
    let socket = stream.try_clone().unwrap();
    let mut fault = context.fault.clone();
    tokio::select! {
        // Refused from now on, or certificates are others now.
        () = ended(context.fault.clone()) => reset(&socket),
        end = converse(stream, context) => {
            if end == End::Reset {
                reset(&socket);
            }
        }
    }
    fault.mark_unchanged();
}

async fn ended(mut fault: watch::Receiver<Fault>) {
    let now = *fault.borrow_and_update();
    let ends = |fault: &Fault| {
        *fault == Fault::Refused || (*fault == Fault::BadCertificate && now != *fault)
    };
    if fault.wait_for(ends).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The socket's end will be a reset, with no word before it.
fn reset(socket: &TcpStream) {
    _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

#[derive(PartialEq, Eq)]
enum End {
    Plain,
    Reset,
}

async fn converse(stream: TcpStream, mut context: Context) -> End {
    // A server that hangs does not even shake hands.
    if context.fault.wait_for(|fault| *fault != Fault::Hung).await.is_err() {
        return End::Plain;
    }
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    drop(stream.set_nodelay(true));
    let Some(certificates) = context.certificates.clone() else {
        return pump(stream, context).await;
    };
    let acceptor = match *context.fault.borrow() {
        Fault::BadCertificate => &certificates.strange,
        _ => &certificates.right,
    };
    match acceptor.accept(stream).await {
        Ok(stream) => pump(stream, context).await,
        Err(_) => End::Plain,
    }
}

/// Passes messages both ways.
async fn pump(stream: impl AsyncRead + AsyncWrite, context: Context) -> End {
    let address = SocketAddr::from(([127, 0, 0, 1], context.upstream));
    let Ok(upstream) = tokio::net::TcpStream::connect(address).await else { return End::Plain };
    drop(upstream.set_nodelay(true));
    let (client_reader, client_writer) = tokio::io::split(stream);
    let (upstream_reader, upstream_writer) = upstream.into_split();
    let client_writer = tokio::sync::Mutex::new(client_writer);
    let (forward, forwarded) = mpsc::unbounded_channel();
    tokio::select! {
        end = requests(client_reader, &client_writer, forward, &context) => end,
        () = pass_on(forwarded, upstream_writer) => End::Plain,
        () = answers(upstream_reader, &client_writer, &context) => End::Plain,
    }
}

type Due = (tokio::time::Instant, Vec<u8>);

async fn requests(
    mut client: impl AsyncRead + Unpin,
    writer: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    forward: mpsc::UnboundedSender<Due>,
    context: &Context,
) -> End {
    let mut fault = context.fault.clone();
    while let Some(message) = read_message(&mut client).await {
        let operation = operation(&message);
        match operation {
            Some(Operation { tag: BIND, .. }) => {
                context.counts.binds.fetch_add(1, Ordering::SeqCst);
            }
            Some(Operation { tag: SEARCH, .. }) => {
                context.counts.searches.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
        let now = *fault.borrow_and_update();
        if now == Fault::Hung && fault.wait_for(|fault| *fault != Fault::Hung).await.is_err() {
            return End::Plain;
        }
        let mut due = tokio::time::Instant::now();
        match (now, operation) {
            (Fault::Dropped, _) => return End::Plain,
            (Fault::Reset, _) => return End::Reset,
            (Fault::HungPeople, Some(Operation { tag: BIND, .. }))
                if message.windows(4).any(|four| four == b"uid=") =>
            {
                continue;
            }
            (Fault::Delayed(delay), _) => due += delay,
            (Fault::Coded(code), Some(request @ Operation { tag: BIND | SEARCH, .. }))
            | (Fault::CodedBinds(code), Some(request @ Operation { tag: BIND, .. })) => {
                if write(writer, &request.answer(code)).await.is_err() {
                    return End::Plain;
                }
                continue;
            }
            _ => {}
        }
        if forward.send((due, message)).is_err() {
            return End::Plain;
        }
    }
    End::Plain
}

async fn pass_on(
    mut forwarded: mpsc::UnboundedReceiver<Due>,
    mut upstream: impl AsyncWrite + Unpin,
) {
    while let Some((due, message)) = forwarded.recv().await {
        tokio::time::sleep_until(due).await;
        if upstream.write_all(&message).await.is_err() {
            return;
        }
    }
}

async fn answers(
    mut upstream: impl AsyncRead + Unpin,
    writer: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    context: &Context,
) {
    while let Some(message) = read_message(&mut upstream).await {
        let fault = *context.fault.borrow();
        let written = match fault {
            Fault::Cut => {
                let (half, _) = message.split_at(message.len() / 2);
                drop(write(writer, half).await);
                return;
            }
            Fault::Garbage => {
                let garbage = b"HTTP/1.1 400 Bad Request\r\n\r\n\xff\xff\xff\xff\x00\x80".repeat(8);
                write(writer, &garbage).await
            }
            Fault::Oversized => write(writer, b"\x30\x84\x7f\xff\xff\xff\x02\x01\x01\x61").await,
            Fault::Trickling => trickle(writer, &message).await,
            _ => write(writer, &message).await,
        };
        if written.is_err() {
            return;
        }
    }
}

async fn trickle(
    writer: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    message: &[u8],
) -> std::io::Result<()> {
    for byte in message {
        write(writer, &[*byte]).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn write(
    writer: &tokio::sync::Mutex<impl AsyncWrite + Unpin>,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut writer = writer.lock().await;
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// One LDAPMessage (RFC 4511 §4.1.1) with its header; `None`: the stream ends.
async fn read_message(reader: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut message = vec![0; 2];
    reader.read_exact(&mut message).await.ok()?;
    let mut length = usize::from(message[1]);
    if length >= 0x80 {
        let mut octets = vec![0; length - 0x80];
        reader.read_exact(&mut octets).await.ok()?;
        length = octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
        message.extend(octets);
    }
    let head = message.len();
    message.resize(head + length, 0);
    reader.read_exact(&mut message[head..]).await.ok()?;
    Some(message)
}

const BIND: u8 = 0x60;
const SEARCH: u8 = 0x63;

/// What a message asks.
#[derive(Clone, Copy)]
struct Operation {
    /// The message id, as it was encoded: up to four octets.
    id: [u8; 4],
    id_octets: usize,
    tag: u8,
}

/// Behind the head stand INTEGER messageID and the operation.
fn operation(message: &[u8]) -> Option<Operation> {
    let head = match message.get(1)? {
        short @ 0..0x80 => {
            let _length = short;
            2
        }
        long => 2 + usize::from(long - 0x80),
    };
    let id_octets = usize::from(*message.get(head + 1)?);
    let octets = message.get(head + 2..head + 2 + id_octets)?;
    let mut id = [0; 4];
    id.get_mut(..id_octets)?.copy_from_slice(octets);
    Some(Operation { id, id_octets, tag: *message.get(head + 2 + id_octets)? })
}

impl Operation {
    /// The answer to it that has nothing but a code.
    fn answer(self, code: u32) -> Vec<u8> {
        let tag = if self.tag == BIND { 0x61 } else { 0x65 };
        let code = u8::try_from(code).unwrap();
        let result = [tag, 7, 0x0a, 1, code, 4, 0, 4, 0];
        let id = &self.id[..self.id_octets];
        let length = u8::try_from(2 + id.len() + result.len()).unwrap();
        let id_length = u8::try_from(id.len()).unwrap();
        [&[0x30, length, 2, id_length], id, &result].concat()
    }
}
