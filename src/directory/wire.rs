//! Connections of our own to LDAP servers (RFC 4511 §4.14): StartTLS, TLS. Logins bind and search on such; the client library,
//! which passes each operation through two tasks and three channels, follows changes and is asked by `directory test`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::answer::{Message, message_length};
use super::ber::{write_element, write_number};
use super::connect::{ConnectError, Stage, Target};
use crate::clock;
use crate::config::directory::Tls;

/// The longest message that is read while a connection is made, or in answer to a bind; those have some hundred bytes.
pub(super) const SHORT: usize = 64 * 1024;

/// RFC 4511 §4.14.1
const STARTTLS_OID: &str = "1.3.6.1.4.1.1466.20037";

/// The message id of StartTLS; those of other requests come after it.
pub(super) const FIRST_ID: u32 = 1;

pub(super) const BIND_RESPONSE: u8 = 0x61;
pub(super) const EXTENDED_RESPONSE: u8 = 0x78;

/// A socket, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects as [`Target::connect`] does; all of it within the time given.
pub(super) async fn open(
    target: &Target,
    within: Duration,
) -> Result<Box<dyn Stream>, ConnectError> {
    let until = clock::now() + within;
    let addresses = target.resolve(within).await?;
    let socket = target.reach(&addresses, until).await?;
    let left = until.saturating_duration_since(clock::now());
    let failed = |detail, timed_out| ConnectError { stage: Stage::Tls, detail, timed_out };
    match timeout(left, protect(target, socket)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(failed(target.explain_io(&error), false)),
        Err(_) => Err(failed(target.explain_silence(left), true)),
    }
}

async fn protect(target: &Target, socket: std::net::TcpStream) -> io::Result<Box<dyn Stream>> {
    let mut socket = TcpStream::from_std(socket)?;
    if target.tls() == Tls::Starttls {
        socket.write_all(&starttls_request()).await?;
        let message = read_message(&mut socket).await?;
        let answer = Message::parse(&message)
            .and_then(|message| message.result(FIRST_ID, EXTENDED_RESPONSE))
            .ok_or_else(no_answer)?;
        if answer.code != 0 {
            let refusal = format!("refused: code {} {}", answer.code, answer.words());
            return Err(io::Error::other(refusal));
        }
    }
    let Some(config) = target.tls_config() else { return Ok(Box::new(socket)) };
    let name = ServerName::try_from(target.tls_name().to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::clone(config));
    Ok(Box::new(connector.connect(name, socket).await?))
}

pub(super) fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what came is no answer to the request")
}

/// The content of one LDAPMessage. Not a byte more is read: after StartTLS the rest must be TLS.
pub(super) async fn read_message(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let length = loop {
        head.push(stream.read_u8().await?);
        if let Some((_, length)) = message_length(&head, SHORT)? {
            break length;
        }
    };
    let mut content = vec![0; length];
    stream.read_exact(&mut content).await?;
    Ok(content)
}

fn starttls_request() -> Vec<u8> {
    let mut name = Vec::new();
    write_element(0x80, STARTTLS_OID.as_bytes(), &mut name);
    let mut content = Vec::new();
    write_number(FIRST_ID, &mut content);
    write_element(0x77, &name, &mut content);
    let mut message = Vec::new();
    write_element(0x30, &content, &mut message);
    message
}
