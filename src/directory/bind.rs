//! A simple bind with a password that is not UTF-8. RFC 4513 §5.1.3 wants UTF-8, servers compare bytes, and the
//! client library sends text only: so this one operation speaks LDAP itself (RFC 4511 §4.2, §4.14), on a connection
//! that serves for one bind.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ldap3::asn1::{ASNTag, Integer, OctetString, PL, Sequence, StructureTag, Tag, TagClass, write};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroize;

use super::ber::{element, length_bytes, unsigned};
use super::connect::{ConnectError, Stage, Target};
use super::connection::OperationError;
use super::verdict::{BindReply, POLICY_OID, parse_policy};
use crate::clock;
use crate::config::directory::Tls;

/// The longest answer that is read; a bind's has some hundred bytes.
const ANSWER_LIMIT: usize = 64 * 1024;

/// RFC 4511 §4.14.1
const STARTTLS_OID: &str = "1.3.6.1.4.1.1466.20037";

const STARTTLS_ID: u8 = 1;
const BIND_ID: u8 = 2;

const BIND_RESPONSE: u8 = 0x61;
const EXTENDED_RESPONSE: u8 = 0x78;

/// A connection for one bind; dropping it closes it.
pub(super) struct RawConnection(Box<dyn Stream>);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl RawConnection {
    /// Connects as [`Target::connect`] does; all of it within the time given.
    pub(super) async fn open(target: &Target, within: Duration) -> Result<Self, ConnectError> {
        let until = clock::now() + within;
        let addresses = target.resolve(within).await?;
        let socket = target.reach(&addresses, until).await?;
        let left = until.saturating_duration_since(clock::now());
        let failed = |detail, timed_out| ConnectError { stage: Stage::Tls, detail, timed_out };
        match timeout(left, protect(target, socket)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(failed(target.explain_io(&error), false)),
            Err(_) => Err(failed(target.explain_silence(left), true)),
        }
    }

    /// The bind. An answer of the server, whatever its code, is `Ok`; what is no answer may have been looked at.
    pub(super) async fn bind(
        mut self,
        dn: &str,
        password: &[u8],
        within: Duration,
    ) -> Result<BindReply, OperationError> {
        let mut request = bind_request(dn, password)
            .map_err(|error| OperationError::Broken(error.to_string()))?;
        let answer = timeout(within, ask(&mut self.0, &request, BIND_ID, BIND_RESPONSE)).await;
        request.zeroize();
        match answer {
            Ok(answer) => answer.map_err(|error| OperationError::Broken(error.to_string())),
            Err(_) => Err(OperationError::Timeout(within)),
        }
    }
}

async fn protect(target: &Target, socket: std::net::TcpStream) -> io::Result<RawConnection> {
    let mut socket = TcpStream::from_std(socket)?;
    if target.tls() == Tls::Starttls {
        let answer = ask(&mut socket, &starttls_request()?, STARTTLS_ID, EXTENDED_RESPONSE).await?;
        if answer.code != 0 {
            let refusal = format!("refused: code {} {}", answer.code, answer.text);
            return Err(io::Error::other(refusal));
        }
    }
    let Some(config) = target.tls_config() else { return Ok(RawConnection(Box::new(socket))) };
    let name = ServerName::try_from(target.tls_name().to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::clone(config));
    Ok(RawConnection(Box::new(connector.connect(name, socket).await?)))
}

/// Sends one request and reads the one answer to it.
async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin + ?Sized),
    request: &[u8],
    id: u8,
    wanted: u8,
) -> io::Result<BindReply> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let message = read_message(stream).await?;
    decode(&message, id, wanted).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "what came is no answer to the request")
    })
}

/// The content of one LDAPMessage. Not a byte more is read: after StartTLS the rest must be TLS.
async fn read_message(stream: &mut (impl AsyncRead + Unpin + ?Sized)) -> io::Result<Vec<u8>> {
    let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let tag = stream.read_u8().await?;
    let first = stream.read_u8().await?;
    let (0x30, Some(more)) = (tag, length_bytes(first)) else {
        return Err(bad("what came is not ldap"));
    };
    let mut length = u32::from(first);
    if more > 0 {
        let mut bytes = vec![0; more];
        stream.read_exact(&mut bytes).await?;
        length = unsigned(&bytes).unwrap_or(u32::MAX);
    }
    let length = usize::try_from(length).ok().filter(|length| *length <= ANSWER_LIMIT);
    let mut content = vec![0; length.ok_or_else(|| bad("the answer is too long"))?];
    stream.read_exact(&mut content).await?;
    Ok(content)
}

/// Reads the result in a message's content; `None` for another kind of answer, or one to another request: a notice
/// of disconnection has id 0.
fn decode(message: &[u8], id: u8, wanted: u8) -> Option<BindReply> {
    let (0x02, number, rest) = element(message)? else { return None };
    let (tag, answer, rest) = element(rest)?;
    if unsigned(number) != Some(u32::from(id)) || tag != wanted {
        return None;
    }
    let (0x0a, code, answer) = element(answer)? else { return None };
    let (0x04, _matched_dn, answer) = element(answer)? else { return None };
    let (0x04, text, _) = element(answer)? else { return None };
    let policy = match element(rest) {
        Some((0xa0, controls, _)) => policy_value(controls).and_then(parse_policy),
        _ => None,
    };
    Some(BindReply {
        code: unsigned(code)?,
        text: String::from_utf8_lossy(text).into_owned(),
        policy,
    })
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

fn bind_request(dn: &str, password: &[u8]) -> io::Result<Vec<u8>> {
    let bind = Tag::Sequence(Sequence {
        id: 0,
        class: TagClass::Application,
        inner: vec![
            Tag::Integer(Integer { inner: 3, ..Integer::default() }),
            octets(dn.as_bytes()),
            Tag::OctetString(OctetString {
                id: 0,
                class: TagClass::Context,
                inner: password.to_vec(),
            }),
        ],
    });
    let control = Tag::Sequence(Sequence {
        inner: vec![octets(POLICY_OID.as_bytes())],
        ..Sequence::default()
    });
    let controls = StructureTag {
        id: 0,
        class: TagClass::Context,
        payload: PL::C(vec![control.into_structure()]),
    };
    message(BIND_ID, vec![bind, Tag::StructureTag(controls)])
}

fn starttls_request() -> io::Result<Vec<u8>> {
    let name = Tag::OctetString(OctetString {
        id: 0,
        class: TagClass::Context,
        inner: STARTTLS_OID.as_bytes().to_vec(),
    });
    let request = Sequence { id: 23, class: TagClass::Application, inner: vec![name] };
    message(STARTTLS_ID, vec![Tag::Sequence(request)])
}

fn message(id: u8, parts: Vec<Tag>) -> io::Result<Vec<u8>> {
    let id = Tag::Integer(Integer { inner: i64::from(id), ..Integer::default() });
    let inner = std::iter::once(id).chain(parts).collect();
    let message = Tag::Sequence(Sequence { inner, ..Sequence::default() });
    let mut bytes = BytesMut::new();
    write::encode_into(&mut bytes, message.into_structure())?;
    Ok(bytes.into())
}

fn octets(bytes: &[u8]) -> Tag {
    Tag::OctetString(OctetString { inner: bytes.to_vec(), ..OctetString::default() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::verdict::Policy;
    use super::*;

    /// slapd's answer to a bind as a locked account, with the control.
    const LOCKED: &[u8] = b"\x30\x32\x02\x01\x02\x61\x07\x0a\x01\x31\x04\x00\x04\x00\
        \xa0\x24\x30\x22\x04\x191.3.6.1.4.1.42.2.27.8.5.1\x04\x05\x30\x03\x81\x01\x01";

    async fn read(bytes: &[u8]) -> Option<BindReply> {
        let mut peer = bytes;
        decode(&read_message(&mut peer).await.ok()?, BIND_ID, BIND_RESPONSE)
    }

    fn reply(code: u32, text: &str, error: Option<u8>) -> BindReply {
        let policy = error.map(|error| Policy { error: Some(error), ..Policy::default() });
        BindReply { code, text: text.into(), policy }
    }

    #[tokio::test]
    async fn answers_are_read_with_their_control() {
        let critical = b"\x30\x35\x02\x01\x02\x61\x07\x0a\x01\x31\x04\x00\x04\x00\
            \xa0\x27\x30\x25\x04\x191.3.6.1.4.1.42.2.27.8.5.1\x01\x01\x00\x04\x05\x30\x03\x81\x01\x01";
        let other = b"\x30\x18\x02\x01\x02\x61\x07\x0a\x01\x00\x04\x00\x04\x00\
            \xa0\x0a\x30\x08\x04\x031.2\x04\x01x";
        for (bytes, expected) in [
            (&b"\x30\x0c\x02\x01\x02\x61\x07\x0a\x01\x00\x04\x00\x04\x00"[..], reply(0, "", None)),
            (b"\x30\x0e\x02\x01\x02\x61\x09\x0a\x01\x35\x04\x00\x04\x02no", reply(53, "no", None)),
            // Active Directory writes all lengths with four bytes.
            (
                b"\x30\x84\x00\x00\x00\x10\x02\x01\x02\x61\x84\x00\x00\x00\x07\x0a\x01\x31\x04\x00\x04\x00",
                reply(49, "", None),
            ),
            (LOCKED, reply(49, "", Some(1))),
            (critical, reply(49, "", Some(1))),
            (other, reply(0, "", None)),
        ] {
            assert_eq!(read(bytes).await, Some(expected), "{bytes:02x?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_to_the_bind_is_none() {
        let brackets = [&b"\x30\x82\xff\x00"[..], &[0x30; 0xff00]].concat();
        for bytes in [
            &b""[..],
            b"\x30",
            b"\x30\x00",
            b"\x30\x80\x00\x00",
            b"\x30\x84\x7f\xff\xff\xff",
            b"\x30\x83\x01\x00\x01",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            &brackets,
            // Another id, another operation, no text, a code of five bytes.
            b"\x30\x0c\x02\x01\x03\x61\x07\x0a\x01\x00\x04\x00\x04\x00",
            b"\x30\x0c\x02\x01\x02\x65\x07\x0a\x01\x00\x04\x00\x04\x00",
            b"\x30\x0a\x02\x01\x02\x61\x05\x0a\x01\x00\x04\x00",
            b"\x30\x10\x02\x01\x02\x61\x0b\x0a\x05\x00\x00\x00\x00\x00\x04\x00\x04\x00",
            // RFC 4511 §4.4.1: notice of disconnection.
            b"\x30\x24\x02\x01\x00\x78\x1f\x0a\x01\x34\x04\x00\x04\x00\x8a\x161.3.6.1.4.1.1466.20036",
        ] {
            assert_eq!(read(bytes).await, None, "{bytes:02x?}");
        }
    }

    #[tokio::test]
    async fn an_answer_cut_anywhere_is_none() {
        for length in 0..LOCKED.len() {
            let Some(cut) = LOCKED.get(..length) else { continue };
            assert_eq!(read(cut).await, None, "{length}");
        }
    }

    #[test]
    fn a_bind_is_sent_as_bytes_with_the_policy_control() {
        let sent = bind_request("o=x", b"\xff\xfe").unwrap();
        let (0x30, content, []) = element(&sent).unwrap() else { panic!("{sent:02x?}") };
        let (0x02, b"\x02", rest) = element(content).unwrap() else { panic!("{sent:02x?}") };
        let (0x60, bind, rest) = element(rest).unwrap() else { panic!("{sent:02x?}") };
        assert_eq!(bind, b"\x02\x01\x03\x04\x03o=x\x80\x02\xff\xfe");
        let (0xa0, controls, []) = element(rest).unwrap() else { panic!("{sent:02x?}") };
        let (0x30, control, []) = element(controls).unwrap() else { panic!("{sent:02x?}") };
        assert_eq!(element(control), Some((4, POLICY_OID.as_bytes(), &b""[..])));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes, BIND_ID, BIND_RESPONSE);
            let _ = policy_value(&bytes);
        }

        #[test]
        fn no_changed_byte_makes_the_decoder_panic(at in 2..LOCKED.len(), byte: u8) {
            let mut bytes = LOCKED.to_vec();
            bytes[at] = byte;
            let _ = decode(&bytes[2..], BIND_ID, BIND_RESPONSE);
        }
    }
}
