//! The PROXY protocol, versions 1 and 2: a proxy's word, ahead of everything else on a connection, about whose
//! connection it passes on (HAProxy, doc/proxy-protocol.txt; nginx and Traefik speak it too).
//!
//! ```text
//! PROXY TCP4 192.0.2.9 198.51.100.1 56324 8420\r\n         version 1: a line; then the client's own bytes
//!
//! 0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a                      version 2: twelve bytes that no other protocol begins with,
//! 21                                                       version 2, command PROXY (20: LOCAL),
//! 11                                                       TCP over IPv4 (21: IPv6, 00: unspecified),
//! 00 0c                                                    bytes that follow: addresses, then TLVs
//! c0 00 02 09  c6 33 64 01  dc 04  20 e4                   192.0.2.9, 198.51.100.1, 56324, 8420
//! ```
//!
//! `LOCAL` is the proxy's own connection. `PROXY UNKNOWN`, an unspecified family, unix sockets and datagrams are a
//! client's, of whom nothing is known; it must not be taken for the proxy, who is trusted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest line of version 1, its CR LF included (section 2.1).
const MAX_LINE: usize = 107;

/// Section 2.2: signature, version and command, family and protocol, length.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED: usize = 16;

/// The longest header of version 2 that is read. A receiver must take at least the 216 bytes of the longest addresses;
/// what may follow (a host name of TLS, a network namespace, a checksum) fits into the rest.
const MAX_HEADER: usize = 536;

/// What a proxy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// This connection is somebody else's, over TCP.
    Client(SocketAddr),
    /// This connection is somebody else's, and the proxy cannot say whose, or not as an address of TCP over IP.
    Nobody,
    /// The proxy speaks for itself (a check of our health). Only version 2 can say so.
    Itself,
}

/// What is wrong with a header. None of it says what the header said: it may be another protocol's first bytes, and those
/// a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first bytes are neither `PROXY ` nor the signature of version 2.
    #[error("the connection does not begin with a PROXY header")]
    NoHeader,
    /// The line of version 1 does not end within its 107 bytes.
    #[error("the PROXY line is longer than {MAX_LINE} bytes")]
    LongLine,
    /// The line of version 1 cannot be read.
    #[error("the PROXY line is malformed: {0}")]
    Line(&'static str),
    /// The version in a binary header is not 2.
    #[error("the PROXY header is of version {0}")]
    Version(u8),
    /// Neither LOCAL nor PROXY.
    #[error("the PROXY header's command {0} is unknown")]
    Command(u8),
    /// The header of version 2 is longer than we read.
    #[error("the PROXY header is longer than {MAX_HEADER} bytes")]
    LongHeader,
    /// The length does not hold the addresses that the family needs.
    #[error("the PROXY header is too short for its addresses")]
    ShortHeader,
}

/// The header at the beginning of `input`, and its length in bytes; what follows is the client's. `None`: more is needed.
///
/// # Errors
/// As soon as the bytes cannot become a header, however many follow. The connection is of no use then.
pub fn parse(input: &[u8]) -> Result<Option<(Header, usize)>, HeaderError> {
    let begins = |start: &[u8]| input.iter().zip(start).all(|(is, wanted)| is == wanted);
    if begins(SIGNATURE) {
        binary(input)
    } else if begins(b"PROXY ") {
        line(input)
    } else {
        Err(HeaderError::NoHeader)
    }
}

fn line(input: &[u8]) -> Result<Option<(Header, usize)>, HeaderError> {
    let shown = input.get(..MAX_LINE).unwrap_or(input);
    let Some(end) = memchr::memchr(b'\n', shown) else {
        return if shown.len() == MAX_LINE { Err(HeaderError::LongLine) } else { Ok(None) };
    };
    let line = shown.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let line = line.ok_or(HeaderError::Line("it does not end in CR LF"))?;
    let text = std::str::from_utf8(line).map_err(|_| HeaderError::Line("it is no text"))?;
    let mut words = text.split(' ').skip(1);
    let header = match words.next() {
        // Whatever follows is to be ignored (section 2.1).
        Some("UNKNOWN") => Header::Nobody,
        Some("TCP4") => Header::Client(tcp::<Ipv4Addr>(words)?),
        Some("TCP6") => Header::Client(tcp::<Ipv6Addr>(words)?),
        _ => return Err(HeaderError::Line("its protocol is not TCP4, TCP6 or UNKNOWN")),
    };
    Ok(Some((header, end + 1)))
}

/// Both addresses, then both ports; the client's is the first of each.
fn tcp<'a, A>(mut words: impl Iterator<Item = &'a str>) -> Result<SocketAddr, HeaderError>
where
    A: FromStr + Into<IpAddr>,
{
    let mut address = || words.next()?.parse::<A>().ok();
    let addresses = (address(), address());
    let mut port = || {
        let digits = words.next().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse::<u16>().ok()
    };
    let ports = (port(), port());
    let ((Some(client), Some(_)), (Some(port), Some(_)), None) = (addresses, ports, words.next())
    else {
        return Err(HeaderError::Line("not two addresses and two ports of the family it names"));
    };
    Ok(SocketAddr::new(client.into(), port))
}

fn binary(input: &[u8]) -> Result<Option<(Header, usize)>, HeaderError> {
    let Some([version_and_command, family, length @ ..]) =
        input.get(SIGNATURE.len()..FIXED).and_then(|rest| <[u8; 4]>::try_from(rest).ok())
    else {
        return Ok(None);
    };
    let (version, command) = (version_and_command >> 4, version_and_command & 0xf);
    if version != 2 {
        return Err(HeaderError::Version(version));
    }
    let end = FIXED + usize::from(u16::from_be_bytes(length));
    if end > MAX_HEADER {
        return Err(HeaderError::LongHeader);
    }
    let Some(rest) = input.get(FIXED..end) else { return Ok(None) };
    let header = match (command, family) {
        // A LOCAL header's addresses are to be ignored (section 2.2).
        (0, _) => Header::Itself,
        (1, 0x11) => {
            let (ip, port) = addresses::<4>(rest)?;
            Header::Client(SocketAddr::new(IpAddr::V4(ip.into()), port))
        }
        (1, 0x21) => {
            let (ip, port) = addresses::<16>(rest)?;
            Header::Client(SocketAddr::new(IpAddr::V6(ip.into()), port))
        }
        // UNSPEC, unix sockets, datagrams: a valid header of which we learn nothing.
        (1, _) => Header::Nobody,
        (command, _) => return Err(HeaderError::Command(command)),
    };
    Ok(Some((header, end)))
}

/// Source and destination, then the port of each; TLVs may follow.
fn addresses<const LENGTH: usize>(rest: &[u8]) -> Result<([u8; LENGTH], u16), HeaderError> {
    let field = |from: usize, length: usize| rest.get(from..from + length);
    let source = field(0, LENGTH).and_then(|bytes| <[u8; LENGTH]>::try_from(bytes).ok());
    let port = field(2 * LENGTH, 2).and_then(|bytes| <[u8; 2]>::try_from(bytes).ok());
    let destination_port = field(2 * LENGTH + 2, 2);
    match (source, port, destination_port) {
        (Some(source), Some(port), Some(_)) => Ok((source, u16::from_be_bytes(port))),
        _ => Err(HeaderError::ShortHeader),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(address: &str) -> Header {
        Header::Client(address.parse().unwrap())
    }

    /// A header of version 2.
    fn v2(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[version_and_command, family], &length, rest].concat()
    }

    fn ipv4() -> Vec<u8> {
        vec![192, 0, 2, 9, 198, 51, 100, 1, 0xdc, 0x04, 0x20, 0xe4]
    }

    fn ipv6() -> Vec<u8> {
        let source: Ipv6Addr = "2001:db8::9".parse().unwrap();
        [&source.octets()[..], &[0; 16], &[0xdc, 0x04, 0x20, 0xe4]].concat()
    }

    /// A TLV of a type and so many bytes.
    fn tlv(kind: u8, length: u16) -> Vec<u8> {
        [&[kind][..], &length.to_be_bytes(), &vec![b'x'; usize::from(length)]].concat()
    }

    #[test]
    fn headers_are_read_wherever_the_network_cuts_them() {
        let longest = format!("PROXY TCP6 {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        let unknown = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        assert_eq!(unknown.len(), MAX_LINE);
        for (header, expected) in [
            (
                b"PROXY TCP4 192.0.2.9 198.51.100.1 56324 8420\r\n".to_vec(),
                client("192.0.2.9:56324"),
            ),
            (b"PROXY TCP6 2001:db8::9 ::1 56324 8420\r\n".to_vec(), client("[2001:db8::9]:56324")),
            (b"PROXY TCP6 ::ffff:192.0.2.9 ::1 1 2\r\n".to_vec(), client("[::ffff:192.0.2.9]:1")),
            (longest.into_bytes(), client(&format!("[{}]:65535", ["ffff"; 8].join(":")))),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Nobody),
            (b"PROXY UNKNOWN any thing\xc3\xa4\r\n".to_vec(), Header::Nobody),
            (unknown.into_bytes(), Header::Nobody),
            (v2(0x21, 0x11, &ipv4()), client("192.0.2.9:56324")),
            (v2(0x21, 0x21, &ipv6()), client("[2001:db8::9]:56324")),
            (v2(0x21, 0x11, &[ipv4(), tlv(2, 12), tlv(4, 0)].concat()), client("192.0.2.9:56324")),
            (v2(0x21, 0x21, &[ipv6(), tlv(2, 481)].concat()), client("[2001:db8::9]:56324")),
            (v2(0x20, 0x00, &[]), Header::Itself),
            (v2(0x20, 0x11, &ipv4()), Header::Itself),
            (v2(0x20, 0x11, &[]), Header::Itself),
            (v2(0x21, 0x00, &[]), Header::Nobody),
            (v2(0x21, 0x31, &[b'/'; 216]), Header::Nobody),
            (v2(0x21, 0x12, &ipv4()), Header::Nobody),
        ] {
            let shown = header.escape_ascii().to_string();
            let whole = [&header[..], b"AUTH\t1\r\n"].concat();
            for cut in 0..header.len() {
                assert_eq!(parse(&whole[..cut]), Ok(None), "{shown} cut at {cut}");
            }
            for cut in header.len()..=whole.len() {
                assert_eq!(parse(&whole[..cut]), Ok(Some((expected, header.len()))), "{shown}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_an_error_and_never_a_client() {
        let addresses = HeaderError::Line("not two addresses and two ports of the family it names");
        let protocol = HeaderError::Line("its protocol is not TCP4, TCP6 or UNKNOWN");
        for (input, expected) in [
            (b"AUTH\t1\tPLAIN\n".to_vec(), HeaderError::NoHeader),
            (b"GET / HTTP/1.1\r\n".to_vec(), HeaderError::NoHeader),
            (b"proxy tcp4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), HeaderError::NoHeader),
            (b"PROXY\tTCP4".to_vec(), HeaderError::NoHeader),
            (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), HeaderError::NoHeader),
            ([&b"PROXY UNKNOWN "[..], &[b'x'; 93]].concat(), HeaderError::LongLine),
            (b"PROXY UNKNOWN\n".to_vec(), HeaderError::Line("it does not end in CR LF")),
            (b"PROXY TCP4 \xff\r\n".to_vec(), HeaderError::Line("it is no text")),
            (b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), protocol),
            (b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), protocol),
            (b"PROXY \r\n".to_vec(), protocol),
            (b"PROXY TCP4\r\n".to_vec(), addresses),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n".to_vec(), addresses),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n".to_vec(), addresses),
            (b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n".to_vec(), addresses),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n".to_vec(), addresses),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n".to_vec(), addresses),
            (b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n".to_vec(), addresses),
            (b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(), addresses),
            (b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), addresses),
            (v2(0x11, 0x11, &ipv4()), HeaderError::Version(1)),
            (v2(0x22, 0x11, &ipv4()), HeaderError::Command(2)),
            (v2(0x21, 0x11, &ipv4()[..11]), HeaderError::ShortHeader),
            (v2(0x21, 0x21, &ipv4()), HeaderError::ShortHeader),
            (v2(0x21, 0x11, &[]), HeaderError::ShortHeader),
            (v2(0x21, 0x11, &[0; 521])[..16].to_vec(), HeaderError::LongHeader),
        ] {
            assert_eq!(parse(&input), Err(expected), "{}", input.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_what_is_read(address: SocketAddr, after: Vec<u8>) {
            let (ip, port) = (address.ip(), address.port());
            let (family, word, rest) = match ip {
                IpAddr::V4(ip) => (0x11, "TCP4", [&ip.octets()[..], &[0; 4]].concat()),
                IpAddr::V6(ip) => (0x21, "TCP6", [&ip.octets()[..], &[0; 16]].concat()),
            };
            let text = format!("PROXY {word} {ip} {ip} {port} 1\r\n").into_bytes();
            let binary = v2(0x21, family, &[&rest[..], &port.to_be_bytes(), &[0; 2]].concat());
            for header in [text, binary] {
                let expected = Header::Client(SocketAddr::new(ip, port));
                let input = [&header[..], &after].concat();
                prop_assert_eq!(parse(&input), Ok(Some((expected, header.len()))));
            }
        }

        #[test]
        fn no_bytes_panic_and_more_is_never_asked_for_beyond_the_bound(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", SIGNATURE]),
            bytes: Vec<u8>,
        ) {
            let input = [start, &bytes].concat();
            match parse(&input) {
                Ok(None) => prop_assert!(input.len() < MAX_HEADER),
                Ok(Some((_, length))) => prop_assert!(length <= input.len() && length <= MAX_HEADER),
                Err(_) => {}
            }
        }
    }
}
