//! LDAPMessages on a connection of our own (RFC 4511 §4.2 to §4.14): connecting, TLS, where a message begins and ends, what
//! a result says. Logins go this way; the client library, which passes each operation through two tasks and three channels,
//! follows changes and is asked by `directory test`.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::ber::{element, length_bytes, unsigned, write_element, write_number};
use super::connect::{ConnectError, Stage, Target};
use super::verdict::{BindReply, POLICY_OID, parse_policy};
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
            let refusal = format!("refused: code {} {}", answer.code, answer.text);
            return Err(io::Error::other(refusal));
        }
    }
    let Some(config) = target.tls_config() else { return Ok(Box::new(socket)) };
    let name = ServerName::try_from(target.tls_name().to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::clone(config));
    Ok(Box::new(connector.connect(name, socket).await?))
}

pub(super) fn no_answer() -> io::Error {
    bad("what came is no answer to the request")
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One message (RFC 4511 §4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) id: u32,
    /// What is said.
    pub(super) tag: u8,
    /// The operation's element, tag and length included.
    pub(super) operation: &'a [u8],
    content: &'a [u8],
    after: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads the content of a message's outer sequence.
    pub(super) fn parse(content: &'a [u8]) -> Option<Self> {
        let (0x02, number, operation) = element(content)? else { return None };
        let id = unsigned(number)?;
        let (tag, content, after) = element(operation)?;
        Some(Self { id, tag, operation, content, after })
    }

    /// The result; `None` if it is another kind of answer, or one to another request.
    pub(super) fn result(&self, id: u32, wanted: u8) -> Option<BindReply> {
        if self.id != id || self.tag != wanted {
            return None;
        }
        let (0x0a, code, answer) = element(self.content)? else { return None };
        let (0x04, _matched_dn, answer) = element(answer)? else { return None };
        let (0x04, text, _) = element(answer)? else { return None };
        let policy = match element(self.after) {
            Some((0xa0, controls, _)) => policy_value(controls).and_then(parse_policy),
            _ => None,
        };
        Some(BindReply {
            code: unsigned(code)?,
            text: String::from_utf8_lossy(text).into_owned(),
            policy,
        })
    }
}

/// Where the content of the message that begins here stands, if it is there in full; its end is the message's.
pub(super) fn whole_message(input: &[u8], limit: usize) -> io::Result<Option<Range<usize>>> {
    let place = message_length(input, limit)?.map(|(head, length)| head..head + length);
    Ok(place.filter(|place| place.end <= input.len()))
}

/// How many bytes stand before the content of the LDAPMessage that begins here, and how many that has; `None`: more is
/// needed to tell.
fn message_length(bytes: &[u8], limit: usize) -> io::Result<Option<(usize, usize)>> {
    let Some((tag, rest)) = bytes.split_first() else { return Ok(None) };
    if *tag != 0x30 {
        return Err(bad("what came is not ldap"));
    }
    let Some((first, rest)) = rest.split_first() else { return Ok(None) };
    let more = length_bytes(*first).ok_or_else(|| bad("what came is not ldap"))?;
    let length = match (more, rest.get(..more)) {
        (0, _) => u32::from(*first),
        (_, None) => return Ok(None),
        (_, Some(bytes)) => unsigned(bytes).unwrap_or(u32::MAX),
    };
    match usize::try_from(length).ok().filter(|length| *length <= limit) {
        Some(length) => Ok(Some((2 + more, length))),
        None => Err(bad("the answer is too long")),
    }
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

/// The value of the password policy control among these.
fn policy_value(mut controls: &[u8]) -> Option<&[u8]> {
    while let Some((tag, control, rest)) = element(controls) {
        controls = rest;
        let Some((0x04, oid, mut parts)) = element(control) else { continue };
        if tag != 0x30 || oid != POLICY_OID.as_bytes() {
            continue;
        }
        // The criticality stands before the value, where it is there at all.
        while let Some((tag, value, rest)) = element(parts) {
            if tag == 0x04 {
                return Some(value);
            }
            parts = rest;
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// slapd's answer to a bind as a locked account, with the control.
    const LOCKED: &[u8] = b"\x30\x32\x02\x01\x02\x61\x07\x0a\x01\x31\x04\x00\x04\x00\
        \xa0\x24\x30\x22\x04\x191.3.6.1.4.1.42.2.27.8.5.1\x04\x05\x30\x03\x81\x01\x01";

    fn result(content: &[u8]) -> Option<BindReply> {
        Message::parse(content)?.result(2, BIND_RESPONSE)
    }

    proptest! {
        #[test]
        fn messages_are_cut_where_they_end(parts in prop::collection::vec(1_usize..8, 0..20)) {
            let all = [LOCKED, LOCKED].concat();
            let (mut input, mut messages, mut rest) = (Vec::new(), Vec::new(), &all[..]);
            for length in parts.into_iter().chain([all.len()]) {
                let (part, after) = rest.split_at(length.min(rest.len()));
                rest = after;
                input.extend_from_slice(part);
                while let Some(place) = whole_message(&input, SHORT).unwrap() {
                    messages.push(input[place.clone()].to_vec());
                    input.drain(..place.end);
                }
            }
            prop_assert_eq!(messages, [&LOCKED[2..], &LOCKED[2..]]);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = result(&bytes);
            let _ = policy_value(&bytes);
            let _ = whole_message(&bytes, SHORT);
        }

        #[test]
        fn no_changed_byte_makes_the_decoder_panic(at in 2..LOCKED.len(), byte: u8) {
            let mut bytes = LOCKED.to_vec();
            bytes[at] = byte;
            let _ = result(&bytes[2..]);
        }
    }
}
