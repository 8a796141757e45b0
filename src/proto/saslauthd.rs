//! The protocol of Cyrus SASL's saslauthd: one question per connection, "is this their password?".
//!
//! A request is four counted strings: name, password, service, realm; each is two bytes of length, the higher first,
//! and as many bytes. A client newer than cyrus-sasl 2.1.28 adds the address of its own client as a fifth, `ip;port`.
//! The answer is one counted string that begins with `OK` or `NO`. There is no word for "later": the connection is
//! closed without an answer. `testsaslauthd -u fry -p secret -s imap` and Postfix:
//!
//! ```text
//! C: 00 03 "fry" 00 06 "secret" 00 04 "imap" 00 00
//! S: 00 02 "OK"
//! C: 00 03 "fry" 00 07 "seekrit" 00 04 "smtp" 00 11 "planetexpress.com"
//! S: 00 02 "NO"
//! ```
//!
//! ```
//! use gatepost::proto::saslauthd::{Reply, parse};
//!
//! let request = parse(b"\0\x03fry\0\x06secret\0\x04imap\0\0")?.expect("it is all there");
//! assert_eq!(request.login, b"fry");
//! assert_eq!(request.password.as_bytes(), b"secret");
//!
//! let mut output = Vec::new();
//! Reply::Ok.encode(&mut output);
//! assert_eq!(output, b"\0\x02OK");
//! # Ok::<(), gatepost::proto::saslauthd::TooLong>(())
//! ```

use std::net::IpAddr;

use crate::secret::Password;

/// The longest field that saslauthd looks at, in bytes. A longer one is read and must be answered `NO`.
pub const MAX_FIELD_BYTES: usize = 256;

/// The longest request, in bytes: libsasl sends none that is longer.
pub const MAX_REQUEST_BYTES: usize = 8192;

/// A client reads no more of an answer than 1023 bytes.
const MAX_REPLY_TEXT_BYTES: usize = 1000;

/// A question. Names are bytes as they came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose password it is; libsasl cuts `@realm` off (at the last `@`), testsaslauthd and Exim do not.
    pub login: Vec<u8>,
    /// The password.
    pub password: Password,
    /// What for: smtp, imap, pop, sieve …
    pub service: Vec<u8>,
    /// What was cut off the name, or a default such as the server's own host name; often empty.
    pub realm: Vec<u8>,
    /// Where the user's client is, if the fifth field says so.
    pub client: Option<IpAddr>,
}

/// The request is longer than [`MAX_REQUEST_BYTES`]: the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request longer than {MAX_REQUEST_BYTES} bytes")]
pub struct TooLong;

/// Understands a request from all that was read so far; `None`: more is needed.
///
/// The fifth field counts if all of it is there already. It is not waited for, because no client says whether it
/// will send one.
///
/// # Errors
/// [`TooLong`], as soon as the lengths say so.
pub fn parse(input: &[u8]) -> Result<Option<Request>, TooLong> {
    let mut fields = Fields { input, at: 0 };
    let mut four = [&[][..]; 4];
    for field in &mut four {
        let Some(found) = fields.next()? else { return Ok(None) };
        *field = found;
    }
    let [login, password, service, realm] = four;
    Ok(Some(Request {
        login: login.to_vec(),
        password: Password::new(password),
        service: service.to_vec(),
        realm: realm.to_vec(),
        client: fields.next().ok().flatten().and_then(address),
    }))
}

struct Fields<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>, TooLong> {
        let start = self.at + 2;
        let length = match self.input.get(self.at..start) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => 0,
        };
        let end = start + length;
        if end > MAX_REQUEST_BYTES {
            return Err(TooLong);
        }
        let field = self.input.get(start..end);
        if field.is_some() {
            self.at = end;
        }
        Ok(field)
    }
}

/// `192.0.2.7;4711`
fn address(field: &[u8]) -> Option<IpAddr> {
    let (address, _port) = std::str::from_utf8(field).ok()?.split_once(';')?;
    address.parse().map(|address: IpAddr| address.to_canonical()).ok()
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// It is.
    Ok,
    /// It is not, or they may not; with words that most clients ignore, or none.
    No(&'a str),
}

impl Reply<'_> {
    /// Appends it as it goes out.
    pub fn encode(&self, output: &mut Vec<u8>) {
        let (word, text) = match self {
            Self::Ok => ("OK", ""),
            Self::No(text) => ("NO", *text),
        };
        let text = text.as_bytes();
        let text = text.get(..MAX_REPLY_TEXT_BYTES).unwrap_or(text);
        let blank = if text.is_empty() { "" } else { " " };
        let length = word.len() + blank.len() + text.len();
        // Never more than 1003: see above.
        output.extend(u16::try_from(length).unwrap_or(0).to_be_bytes());
        output.extend_from_slice(word.as_bytes());
        output.extend_from_slice(blank.as_bytes());
        output.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(fields: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in fields {
            bytes.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(field);
        }
        bytes
    }

    fn fields(request: &Request) -> [&[u8]; 4] {
        [&request.login, request.password.as_bytes(), &request.service, &request.realm]
    }

    #[test]
    fn a_request_is_complete_with_its_fourth_field_and_not_before() {
        let four: [&[u8]; 4] = [b"fry", b"secret", b"smtp", b"planetexpress.com"];
        let bytes = encode(&four);

        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).unwrap().is_none(), "{length} bytes");
        }
        let request = parse(&bytes).unwrap().unwrap();
        assert_eq!(fields(&request), four);
        assert_eq!(request.client, None);
    }

    #[test]
    fn fields_may_be_empty_and_hold_any_byte() {
        for four in [
            [&b""[..], b"", b"", b""],
            [b"fr\xfcy\0\r\n", b"\xff\xfe\0\0", b"imap", b""],
            [&[b'x'; 257], &[b'y'; 2000], &[b'z'; 3000], &[0; 2927]],
        ] {
            assert_eq!(fields(&parse(&encode(&four)).unwrap().unwrap()), four);
        }
    }

    #[test]
    fn the_fifth_field_is_the_clients_address_where_it_is_one_and_is_all_there() {
        for (fifth, client) in [
            (encode(&[b"192.0.2.7;4711"]), Some("192.0.2.7")),
            (encode(&[b"2001:db8::7;4711"]), Some("2001:db8::7")),
            (encode(&[b"::ffff:192.0.2.7;4711"]), Some("192.0.2.7")),
            (encode(&[b"192.0.2.7;"]), Some("192.0.2.7")),
            (encode(&[b"192.0.2.7;4711", b"sixth"]), Some("192.0.2.7")),
            (encode(&[b"192.0.2.7"]), None),
            (encode(&[b"mail.example.org;4711"]), None),
            (encode(&[b";"]), None),
            (encode(&[b"\xff;1"]), None),
            (encode(&[b""]), None),
            (b"\0".to_vec(), None),
            (b"\0\x0e192.0.2.7;471".to_vec(), None),
            (b"\xff\xff192.0.2.7;4711".to_vec(), None),
        ] {
            let bytes = [encode(&[b"fry", b"secret", b"imap", b""]), fifth.clone()].concat();

            let request = parse(&bytes).unwrap().unwrap();

            assert_eq!(request.client, client.map(|text| text.parse().unwrap()), "{fifth:?}");
        }
    }

    #[test]
    fn lengths_beyond_the_limit_are_refused_before_their_bytes_come() {
        assert_eq!(parse(b"\x1f\xff").unwrap_err(), TooLong);
        assert_eq!(parse(&[0xff; 2]).unwrap_err(), TooLong);
        // The first field alone fits; with the second field's length it does not.
        assert!(parse(b"\x1f\xfe").unwrap().is_none());
        assert_eq!(parse(&encode(&[&[b'x'; 8190]])).unwrap_err(), TooLong);
        let longest = encode(&[&[b'x'; 8184], b"", b"", b""]);
        assert_eq!(longest.len(), MAX_REQUEST_BYTES);
        assert!(parse(&longest).unwrap().is_some());
    }

    #[test]
    fn a_full_buffer_is_always_a_request_or_too_long() {
        for first in [8180_usize, 8183, 8184, 8185, 8186, 8187, 8190] {
            let mut bytes = encode(&[&vec![b'x'; first]]);
            bytes.resize(MAX_REQUEST_BYTES, 0);
            assert!(!matches!(parse(&bytes), Ok(None)), "{first}");
        }
    }

    #[test]
    fn answers_are_counted_strings() {
        for (reply, bytes) in [
            (Reply::Ok, &b"\0\x02OK"[..]),
            (Reply::No(""), b"\0\x02NO"),
            (Reply::No("No way"), b"\0\x09NO No way"),
        ] {
            let mut output = Vec::new();
            reply.encode(&mut output);
            assert_eq!(output, bytes);
        }
        let mut long = Vec::new();
        Reply::No(&"x".repeat(5000)).encode(&mut long);
        assert_eq!((long.len(), &long[..2]), (2 + 1003, &[3, 235][..]));
    }

    #[test]
    fn debug_output_never_shows_the_password() {
        let request = parse(&encode(&[b"fry", b"hunter2", b"imap", b""])).unwrap().unwrap();

        assert!(!format!("{request:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn what_is_encoded_comes_out_again(
            four in proptest::array::uniform4(proptest::collection::vec(any::<u8>(), 0..300)),
            client: Option<std::net::Ipv4Addr>,
        ) {
            let mut bytes = encode(&four.each_ref().map(Vec::as_slice));
            if let Some(client) = client {
                bytes.extend(encode(&[format!("{client};4711").as_bytes()]));
            }
            let request = parse(&bytes).unwrap().unwrap();
            prop_assert_eq!(fields(&request), four.each_ref().map(Vec::as_slice));
            prop_assert_eq!(request.client, client.map(IpAddr::from));
        }
    }
}
