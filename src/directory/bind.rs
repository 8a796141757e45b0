//! Simple binds, one at a time on a connection of their own (RFC 4511 §4.2). Passwords are bytes: the client library sends
//! none that are not UTF-8 (RFC 4513 §5.1.3 wants UTF-8, servers compare bytes), nor does it zero what it sent.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::answer::{Message, whole_message};
use super::ber::{write_element, write_number};
use super::connect::{ConnectError, Target};
use super::connection::OperationError;
use super::verdict::{BindReply, POLICY_OID};
use super::wire::{self, BIND_RESPONSE, FIRST_ID, Stream, no_answer};
use crate::clock;

/// A connection that serves binds; dropping it closes it.
pub(super) struct BindConnection {
    stream: Box<dyn Stream>,
    input: BytesMut,
    last_id: u32,
    born: Instant,
}

impl BindConnection {
    /// Connects as [`Target::connect`] does; all of it within the time given.
    pub(super) async fn open(target: &Target, within: Duration) -> Result<Self, ConnectError> {
        let stream = wire::open(target, within).await?;
        Ok(Self { stream, input: BytesMut::new(), last_id: FIRST_ID, born: clock::now() })
    }

    /// The bind. An answer of the server, whatever its code, is `Ok`; what is no answer may have been looked at.
    ///
    /// Not cancel-safe: after anything but `Ok` the connection must not be used again.
    pub(super) async fn bind(
        &mut self,
        dn: &str,
        password: &[u8],
        within: Duration,
    ) -> Result<BindReply, OperationError> {
        self.last_id = self.last_id.wrapping_add(1) & 0x7fff_ffff;
        let request = bind_request(self.last_id, dn, password);
        match timeout(within, self.ask(&request)).await {
            Ok(answer) => answer.map_err(|error| OperationError::Broken(error.to_string())),
            Err(_) => Err(OperationError::Timeout(within)),
        }
    }

    async fn ask(&mut self, request: &[u8]) -> io::Result<BindReply> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        loop {
            if let Some(place) = whole_message(&self.input, wire::SHORT)? {
                let end = place.end;
                let reply = self.input.get(place).and_then(Message::parse);
                let reply = reply.and_then(|message| message.result(self.last_id, BIND_RESPONSE));
                let reply = reply.map(BindReply::from);
                self.input.advance(end);
                return reply.ok_or_else(no_answer);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Its stream, what the server said after its last answer, and the last message id that was used. Nothing that was
    /// sent is unanswered.
    pub(super) fn into_parts(self) -> (Box<dyn Stream>, BytesMut, u32) {
        (self.stream, self.input, self.last_id)
    }

    /// Whether the server has neither closed it nor said anything (a notice of disconnection is all that it could say).
    /// Never waits; true may be late.
    pub(super) async fn is_quiet(&mut self) -> bool {
        let stream = &mut self.stream;
        let read = poll_fn(|context| {
            let mut byte = [0];
            let polled = Pin::new(&mut *stream).poll_read(context, &mut ReadBuf::new(&mut byte));
            Poll::Ready(polled.is_pending())
        });
        self.input.is_empty() && read.await
    }

    /// How long it has been open.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born)
    }
}

/// Zeroed when it is dropped; it has its room from the start, so that no copy stays behind where it grew.
fn bind_request(id: u32, dn: &str, password: &[u8]) -> Zeroizing<Vec<u8>> {
    let (mut oid, mut controls) = (Vec::new(), Vec::new());
    write_element(0x04, POLICY_OID.as_bytes(), &mut oid);
    write_element(0x30, &oid, &mut controls);

    let mut bind = Zeroizing::new(Vec::with_capacity(dn.len() + password.len() + 16));
    write_element(0x02, &[3], &mut bind);
    write_element(0x04, dn.as_bytes(), &mut bind);
    write_element(0x80, password, &mut bind);

    let room = bind.len() + controls.len() + 32;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    write_number(id, &mut content);
    write_element(0x60, &bind, &mut content);
    write_element(0xa0, &controls, &mut content);
    let mut message = Zeroizing::new(Vec::with_capacity(room));
    write_element(0x30, &content, &mut message);
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::verdict::Policy;
    use super::*;
    use crate::directory::ber::element;

    /// slapd's answer to a bind as a locked account, with the control.
    const LOCKED: &[u8] = b"\x30\x32\x02\x01\x02\x61\x07\x0a\x01\x31\x04\x00\x04\x00\
        \xa0\x24\x30\x22\x04\x191.3.6.1.4.1.42.2.27.8.5.1\x04\x05\x30\x03\x81\x01\x01";

    const BIND_ID: u32 = 2;

    /// Both ways of reading must agree.
    async fn read(bytes: &[u8]) -> Option<BindReply> {
        let mut peer = bytes;
        let exact = wire::read_message(&mut peer).await.ok();
        let exact = exact.as_deref().and_then(Message::parse);
        let exact = exact.and_then(|message| message.result(BIND_ID, BIND_RESPONSE));
        let exact = exact.map(BindReply::from);
        let (ours, mut theirs) = tokio::io::duplex(128 * 1024);
        let stream: Box<dyn Stream> = Box::new(ours);
        let born = clock::now();
        let mut connection = BindConnection { stream, input: BytesMut::new(), last_id: 1, born };
        theirs.write_all(bytes).await.unwrap();
        theirs.shutdown().await.unwrap();
        let bound = connection.bind("o=x", b"secret", Duration::from_secs(5)).await.ok();
        assert_eq!(exact, bound, "{bytes:02x?}");
        bound
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
        let sent = bind_request(0x0102_0304, "o=x", b"\xff\xfe");
        let (0x30, content, []) = element(&sent).unwrap() else { panic!("{sent:02x?}") };
        let (0x02, b"\x01\x02\x03\x04", rest) = element(content).unwrap() else {
            panic!("{sent:02x?}")
        };
        let (0x60, bind, rest) = element(rest).unwrap() else { panic!("{sent:02x?}") };
        assert_eq!(bind, b"\x02\x01\x03\x04\x03o=x\x80\x02\xff\xfe");
        let (0xa0, controls, []) = element(rest).unwrap() else { panic!("{sent:02x?}") };
        let (0x30, control, []) = element(controls).unwrap() else { panic!("{sent:02x?}") };
        assert_eq!(element(control), Some((4, POLICY_OID.as_bytes(), &b""[..])));
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_or_spoke_is_not_quiet() {
        let quiet = |ours| async move {
            let stream: Box<dyn Stream> = Box::new(ours);
            let born = clock::now();
            BindConnection { stream, input: BytesMut::new(), last_id: 1, born }.is_quiet().await
        };
        let (ours, theirs) = tokio::io::duplex(64);
        assert!(quiet(ours).await);
        drop(theirs);
        let (ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        assert!(!quiet(ours).await);
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"x").await.unwrap();
        assert!(!quiet(ours).await);
    }

    proptest! {
        #[test]
        fn a_bind_is_sent_whatever_its_length(dn in ".{0,300}", password in prop::collection::vec(any::<u8>(), 1..1100)) {
            let sent = bind_request(7, &dn, &password);
            let (_, content, rest) = element(&sent).unwrap();
            prop_assert!(rest.is_empty());
            let (_, _, rest) = element(content).unwrap();
            let (_, bind, _) = element(rest).unwrap();
            let (_, _, rest) = element(bind).unwrap();
            let (_, name, rest) = element(rest).unwrap();
            let (_, secret, _) = element(rest).unwrap();
            prop_assert_eq!((name, secret), (dn.as_bytes(), &*password));
        }
    }
}
