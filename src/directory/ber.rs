//! BER. It is read one level at a time. The client library's own parser calls itself for each level, so that a few
//! kilobytes of brackets would use up the stack; what is read here has a known depth. Pure.

/// One element: tag, content, what follows. `None` if it is cut short, or its length takes more than four bytes.
pub(super) fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match length_bytes(*first)? {
        0 => (u32::from(*first), rest),
        more => {
            let (length, rest) = rest.split_at_checked(more)?;
            (unsigned(length)?, rest)
        }
    };
    let (content, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((*tag, content, after))
}

/// How many bytes of length follow the first one: none if that is the length itself. `None` for lengths that are
/// unknown (RFC 4511 §5.1 forbids them) or beyond four bytes.
pub(super) fn length_bytes(first: u8) -> Option<usize> {
    match first {
        0..=0x7f => Some(0),
        0x81..=0x84 => Some(usize::from(first & 0x7f)),
        _ => None,
    }
}

/// A number of one to four bytes.
pub(super) fn unsigned(bytes: &[u8]) -> Option<u32> {
    if bytes.is_empty() || bytes.len() > 4 {
        return None;
    }
    Some(bytes.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte)))
}

/// Appends one element.
pub(super) fn write_element(tag: u8, content: &[u8], output: &mut Vec<u8>) {
    output.push(tag);
    match u8::try_from(content.len()) {
        Ok(short @ ..=0x7f) => output.push(short),
        // Four bytes carry any length, and Active Directory writes no other.
        _ => {
            let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
            output.push(0x84);
            output.extend_from_slice(&length.to_be_bytes());
        }
    }
    output.extend_from_slice(content);
}

/// Appends an INTEGER in its shortest form (X.690 §8.3.2).
pub(super) fn write_number(number: u32, output: &mut Vec<u8>) {
    let [a, b, c, d] = number.to_be_bytes();
    let bytes = [0, a, b, c, d];
    let is_needless = |pair: &[u8]| matches!(pair, [0, next] if *next < 0x80);
    let needless = bytes.windows(2).take_while(|pair| is_needless(pair)).count();
    write_element(0x02, bytes.get(needless..).unwrap_or_default(), output);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_their_shortest_form() {
        for (number, bytes) in [
            (0, &[2, 1, 0][..]),
            (127, &[2, 1, 127]),
            (128, &[2, 2, 0, 128]),
            (256, &[2, 2, 1, 0]),
            (0x7fff_ffff, &[2, 4, 0x7f, 0xff, 0xff, 0xff]),
            (u32::MAX, &[2, 5, 0, 0xff, 0xff, 0xff, 0xff]),
        ] {
            let mut output = Vec::new();
            write_number(number, &mut output);
            assert_eq!(output, bytes, "{number}");
        }
    }

    #[test]
    fn elements_of_all_lengths_are_read() {
        let long = [&[4, 0x82, 0x01, 0x00][..], &[7; 256], &[9]].concat();
        for (bytes, expected) in [
            (&b"\x04\x00"[..], Some((4, &b""[..], &b""[..]))),
            (b"\x04\x01ab", Some((4, b"a", b"b"))),
            (b"\x04\x81\x01ab", Some((4, b"a", b"b"))),
            (b"\x04\x84\x00\x00\x00\x01ab", Some((4, b"a", b"b"))),
            (&long, Some((4, &[7; 256], &[9]))),
            (b"", None),
            (b"\x04", None),
            (b"\x04\x02a", None),
            (b"\x04\x80a\x00\x00", None),
            (b"\x04\x81", None),
            (b"\x04\x82\x01a", None),
            (b"\x04\x84\xff\xff\xff\xffa", None),
            (b"\x04\x85\x00\x00\x00\x00\x01a", None),
            (b"\x04\xffa", None),
        ] {
            assert_eq!(element(bytes), expected, "{bytes:02x?}");
        }
    }
}
