//! Reading BER one level at a time. The client library's own parser calls itself for each level, so that a few
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

#[cfg(test)]
mod tests {
    use super::*;

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
