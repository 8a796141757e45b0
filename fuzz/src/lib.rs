//! The parsers that read what strangers send, and what their fuzz targets have in common.
#![allow(dead_code, reason = "only the parsers are run")]

#[path = "../../src/directory/answer.rs"]
pub mod answer;
#[path = "../../src/directory/ber.rs"]
mod ber;
#[path = "../../src/decimal.rs"]
pub mod decimal;
#[path = "../../src/directory/filter.rs"]
pub mod filter;
#[path = "../../src/identity.rs"]
pub mod identity;
#[path = "../../src/person.rs"]
pub mod person;
#[path = "../../src/proto/mod.rs"]
pub mod proto;
#[path = "../../src/secret.rs"]
pub mod secret;

use bytes::BytesMut;

/// The input of a target for a stream: a byte of choices, then where to cut, then the stream.
///
/// The lowest two bits of the first byte are the number of cuts, each two bytes; the others are the target's.
pub struct Stream<'a> {
    pub choice: u8,
    pub bytes: &'a [u8],
    cuts: Vec<usize>,
}

impl<'a> Stream<'a> {
    /// `None`: the input is too short.
    pub fn new(data: &'a [u8]) -> Option<Self> {
        let (first, mut rest) = data.split_first()?;
        let mut cuts = Vec::new();
        for _ in 0..first & 3 {
            let (cut, after) = rest.split_first_chunk::<2>()?;
            cuts.push(usize::from(u16::from_le_bytes(*cut)));
            rest = after;
        }
        cuts.iter_mut().for_each(|cut| *cut %= rest.len() + 1);
        cuts.sort_unstable();
        Some(Self { choice: first >> 2, bytes: rest, cuts })
    }

    /// What a session makes of the stream, which must not depend on how it is cut: in one piece, and in the pieces that
    /// the input asks for; byte by byte if it asks for none.
    ///
    /// `begin` makes a session; `read` takes what is complete off the input, notes what it made of it, and says whether
    /// the session goes on.
    pub fn check<S>(
        &self,
        begin: impl Fn() -> S,
        read: impl Fn(&mut S, &mut BytesMut, &mut Vec<u8>) -> bool,
    ) {
        let transcript = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let (mut session, mut input, mut said) = (begin(), BytesMut::new(), Vec::new());
            for piece in pieces {
                input.extend_from_slice(piece);
                if !read(&mut session, &mut input, &mut said) {
                    return (said, None);
                }
            }
            (said, Some(input))
        };
        let whole = transcript(&mut [self.bytes].into_iter());
        if self.cuts.is_empty() {
            assert_eq!(whole, transcript(&mut self.bytes.chunks(1)), "byte by byte");
        } else {
            assert_eq!(whole, transcript(&mut self.pieces()), "cut at {:?}", self.cuts);
        }
    }

    fn pieces(&self) -> impl Iterator<Item = &'a [u8]> {
        let (bytes, mut start) = (self.bytes, 0);
        let ends = self.cuts.iter().copied().chain([bytes.len()]);
        ends.map(move |end| &bytes[std::mem::replace(&mut start, end)..end])
    }
}

/// Header fields, written `name: value`, one a line; names in lower case.
pub struct Fields<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Fields<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        let pair = |line: &'a [u8]| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        };
        Self(data.split(|byte| *byte == b'\n').filter_map(pair).collect())
    }

    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        let found = self.0.iter().find(|(other, _)| *other == name.as_bytes());
        found.map(|(_, value)| *value)
    }
}
