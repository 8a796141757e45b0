//! Socketmap: look-up tables over a stream socket, as Postfix asks them (and Sendmail, whose protocol it is).
//!
//! Requests and replies are netstrings: the length in decimal digits, `:`, that many bytes, `,`. A request is the name
//! of a table, a space, and the key, which may hold spaces itself. One connection serves all tables and asks for one
//! thing after the other:
//!
//! ```text
//! C: 29:mailbox amy+lists@example.org,
//! S: 18:OK amy@example.org,
//! C: 24:alias nobody@example.org,
//! S: 9:NOTFOUND ,
//! C: 23:mailbox joe@example.org,
//! S: 33:TEMP the mailbox database is away,
//! ```
//!
//! See socketmap_table(5) of Postfix, and smap in Sendmail's op.me.

use bytes::{Buf, BytesMut};
use memchr::memchr;

use super::one_line;
use crate::decimal;

/// The most digits a request's length may have.
pub const MAX_LENGTH_DIGITS: usize = 6;

/// The longest request. Real keys are shorter than 2 kB, which is Postfix' limit of a line.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// The longest reply that Postfix reads: it takes one byte more for trouble, and does not find back to the next reply.
pub const MAX_REPLY_BYTES: usize = 100_000;

/// Postfix prints no more of a reason.
const MAX_REASON_BYTES: usize = 200;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The table's name, up to the first space.
    pub map: Vec<u8>,
    /// The key: the rest, bytes as they came.
    pub key: Vec<u8>,
}

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The value, in the form that the table is expected to give.
    Found(&'a str),
    /// There is no such key.
    NotFound,
    /// A fault of the configuration. Postfix says 451 to its client all the same.
    Perm(&'a str),
    /// Nobody can say now, and why: 451.
    Temp(&'a str),
    /// Whoever knows took too long: 451.
    Timeout(&'a str),
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No length of at most six digits and a colon.
    #[error("a request does not begin with its length")]
    BadLength,
    /// What was counted is not followed by a comma.
    #[error("a request does not end where its length says")]
    BadEnd,
    /// No space.
    #[error("a request holds no key")]
    NoKey,
    /// More than [`MAX_REQUEST_BYTES`].
    #[error("a request is longer than 16384 bytes")]
    TooLong,
}

/// Takes the next request from what was read; `None`: more is needed.
///
/// # Errors
/// What is wrong with it. Nothing after it can be understood.
pub fn next_request(input: &mut BytesMut) -> Result<Option<Request>, Fault> {
    let head = input.get(..input.len().min(MAX_LENGTH_DIGITS + 1)).unwrap_or_default();
    let Some(colon) = memchr(b':', head) else {
        let may_become_one = head.len() <= MAX_LENGTH_DIGITS && head.iter().all(u8::is_ascii_digit);
        return if may_become_one { Ok(None) } else { Err(Fault::BadLength) };
    };
    let length = length_of(head.get(..colon).unwrap_or_default()).ok_or(Fault::BadLength)?;
    if length > MAX_REQUEST_BYTES {
        return Err(Fault::TooLong);
    }
    let end = colon + 1 + length;
    match input.get(end) {
        None => return Ok(None),
        Some(b',') => {}
        Some(_) => return Err(Fault::BadEnd),
    }
    let payload = input.get(colon + 1..end).unwrap_or_default();
    let space = memchr(b' ', payload).ok_or(Fault::NoKey)?;
    let request = Request {
        map: payload.get(..space).unwrap_or_default().to_vec(),
        key: payload.get(space + 1..).unwrap_or_default().to_vec(),
    };
    input.advance(end + 1);
    Ok(Some(request))
}

/// Postfix writes no leading zeros and reads them; so do we.
fn length_of(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl Reply<'_> {
    /// Writes the reply. A value that no reply can carry (empty, too long, with a NUL byte or a line end) becomes a
    /// temporary failure: Postfix takes the first for a fault and cuts or loses the others.
    pub fn encode(&self, output: &mut Vec<u8>) {
        match *self {
            Self::Found(value) if !can_be_said(value) => {
                Reply::Temp("the value cannot be said").encode(output);
            }
            // By far the most common.
            Self::Found(value) => {
                decimal::write(
                    u64::try_from("OK ".len() + value.len()).unwrap_or(u64::MAX),
                    output,
                );
                output.extend_from_slice(b":OK ");
                output.extend_from_slice(value.as_bytes());
                output.push(b',');
            }
            // The space is part of it, as in socketmap_table(5).
            Self::NotFound => netstring("NOTFOUND", std::iter::empty(), output),
            Self::Perm(why) => netstring("PERM", one_line(why, MAX_REASON_BYTES), output),
            Self::Temp(why) => netstring("TEMP", one_line(why, MAX_REASON_BYTES), output),
            Self::Timeout(why) => netstring("TIMEOUT", one_line(why, MAX_REASON_BYTES), output),
        }
    }
}

fn can_be_said(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= MAX_REPLY_BYTES - "OK ".len()
        && !value.contains(['\0', '\r', '\n'])
}

fn netstring(word: &str, text: impl Iterator<Item = u8>, output: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(64);
    payload.extend_from_slice(word.as_bytes());
    payload.push(b' ');
    payload.extend(text);
    decimal::write(u64::try_from(payload.len()).unwrap_or(u64::MAX), output);
    output.push(b':');
    output.append(&mut payload);
    output.push(b',');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(map: &[u8], key: &[u8]) -> Request {
        Request { map: map.to_vec(), key: key.to_vec() }
    }

    fn encoded(request: &Request) -> Vec<u8> {
        let payload = [&request.map[..], b" ", &request.key].concat();
        [format!("{}:", payload.len()).as_bytes(), &payload, b","].concat()
    }

    fn replied(reply: &Reply<'_>) -> String {
        let mut output = Vec::new();
        reply.encode(&mut output);
        String::from_utf8(output).unwrap()
    }

    /// All requests, or the fault after them.
    fn read(input: &mut BytesMut) -> (Vec<Request>, Option<Fault>) {
        let mut all = Vec::new();
        loop {
            match next_request(input) {
                Ok(Some(request)) => all.push(request),
                Ok(None) => return (all, None),
                Err(fault) => return (all, Some(fault)),
            }
        }
    }

    #[test]
    fn keys_are_what_follows_the_first_space() {
        for (text, map, key) in [
            ("29:mailbox amy+lists@example.org,", "mailbox", "amy+lists@example.org"),
            ("8:mailbox ,", "mailbox", ""),
            ("1: ,", "", ""),
            ("10:mailbox <>,", "mailbox", "<>"),
            ("24:alias a b, c@example.org,", "alias", "a b, c@example.org"),
            ("000011:domain  x.y,", "domain", " x.y"),
        ] {
            let got = next_request(&mut BytesMut::from(text));
            assert_eq!(got, Ok(Some(request(map.as_bytes(), key.as_bytes()))), "{text}");
        }
    }

    #[test]
    fn what_is_no_request_ends_the_connection() {
        for (text, fault) in [
            (":mailbox a,", Fault::BadLength),
            ("x", Fault::BadLength),
            ("-1:", Fault::BadLength),
            ("1234567", Fault::BadLength),
            ("GET / HTTP/1.1\r\n", Fault::BadLength),
            ("16385:", Fault::TooLong),
            ("999999:", Fault::TooLong),
            ("3:a bc", Fault::BadEnd),
            ("1:a,", Fault::NoKey),
            ("0:,", Fault::NoKey),
        ] {
            assert_eq!(next_request(&mut BytesMut::from(text)), Err(fault), "{text}");
        }
    }

    #[test]
    fn the_longest_request_is_read_and_no_longer_one_is_waited_for() {
        let longest = request(b"alias", &vec![b'x'; MAX_REQUEST_BYTES - 6]);

        let got = next_request(&mut BytesMut::from(&encoded(&longest)[..]));

        assert_eq!(got, Ok(Some(longest)));
        assert_eq!(next_request(&mut BytesMut::from("16384:")), Ok(None));
    }

    #[test]
    fn two_requests_of_one_read_are_both_answered_and_the_rest_waits() {
        let mut input = BytesMut::from("11:mailbox a@b,9:alias c@d,5:ali");

        let (all, fault) = read(&mut input);

        assert_eq!(all, [request(b"mailbox", b"a@b"), request(b"alias", b"c@d")]);
        assert_eq!((fault, &input[..]), (None, &b"5:ali"[..]));
    }

    #[test]
    fn replies_are_netstrings() {
        for (reply, text) in [
            (Reply::Found("amy@example.org"), "18:OK amy@example.org,"),
            (Reply::NotFound, "9:NOTFOUND ,"),
            (Reply::Temp("the mailbox database is away"), "33:TEMP the mailbox database is away,"),
            (Reply::Perm("no"), "7:PERM no,"),
            (Reply::Timeout("slow\r\n\0ä"), "16:TIMEOUT slow????,"),
            (Reply::Found(" a"), "5:OK  a,"),
            (Reply::Found("ä@example.org"), "17:OK ä@example.org,"),
        ] {
            assert_eq!(replied(&reply), text, "{reply:?}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_said_is_a_temporary_failure() {
        let longest = "x".repeat(MAX_REPLY_BYTES - 3);
        assert!(replied(&Reply::Found(&longest)).starts_with("100000:OK x"));

        for value in ["", "a\0b", "a\nb", "a\r", &format!("{longest}x")] {
            let reply = replied(&Reply::Found(value));
            assert_eq!(reply, "29:TEMP the value cannot be said,");
        }
        assert!(replied(&Reply::Temp(&"x".repeat(1000))).starts_with("205:TEMP x"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn requests_survive_any_cutting(
            requests in prop::collection::vec(("[^ ]{0,12}", prop::collection::vec(any::<u8>(), 0..80)), 0..4),
            piece in 1_usize..40,
        ) {
            let requests: Vec<Request> =
                requests.iter().map(|(map, key)| request(map.as_bytes(), key)).collect();
            let bytes: Vec<u8> = requests.iter().flat_map(encoded).collect();
            let (mut input, mut all) = (BytesMut::new(), Vec::new());

            for piece in bytes.chunks(piece) {
                input.extend_from_slice(piece);
                let (some, fault) = read(&mut input);
                prop_assert_eq!(fault, None);
                all.extend(some);
            }

            prop_assert_eq!(all, requests);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut input = BytesMut::from(&bytes[..]);
            let _ = read(&mut input);
        }

        #[test]
        fn almost_requests_are_read_without_panic(text in "[0-9:, a]{0,40}") {
            let _ = read(&mut BytesMut::from(text.as_str()));
        }

        /// As Postfix reads a reply: the length fits, nothing follows, and the first word is one it knows.
        #[test]
        fn every_reply_is_one_that_postfix_understands(text in "(?s).{0,300}", which in 0..4) {
            let reply = match which {
                0 => Reply::Found(&text),
                1 => Reply::Perm(&text),
                2 => Reply::Temp(&text),
                _ => Reply::Timeout(&text),
            };
            let said = replied(&reply);
            let (length, rest) = said.split_once(':').unwrap();
            let payload = rest.strip_suffix(',').unwrap();
            prop_assert_eq!(length.parse::<usize>().unwrap(), payload.len());
            let (word, value) = payload.split_once(' ').unwrap();
            prop_assert!(["OK", "PERM", "TEMP", "TIMEOUT"].contains(&word));
            prop_assert!(!value.contains(['\0', '\n', '\r']));
            if word == "OK" {
                prop_assert_eq!(value, text);
            }
        }
    }
}
