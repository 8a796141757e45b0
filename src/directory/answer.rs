//! What an LDAP server says (RFC 4511): where a message begins and ends, what a result and an entry hold. Pure; every byte
//! may be a stranger's, for not every directory is reached by TLS.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::ber::{element, length_bytes, unsigned};
use crate::person::Attributes;

/// An entry as it came: where it stands, and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its distinguished name.
    pub dn: Box<str>,
    /// What was asked for and readable.
    pub attributes: Attributes,
}

/// Not the shape of RFC 4511 §4.5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed search answer: {0}")]
pub struct Malformed(
    /// Which part.
    pub &'static str,
);

/// One message (RFC 4511 §4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Which request it answers; 0: none.
    pub id: u32,
    /// The operation's tag.
    pub tag: u8,
    /// The operation's element, tag and length included.
    pub operation: &'a [u8],
    content: &'a [u8],
    after: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads the content of a message's outer sequence.
    #[must_use]
    pub fn parse(content: &'a [u8]) -> Option<Self> {
        let (0x02, number, operation) = element(content)? else { return None };
        let id = unsigned(number)?;
        let (tag, content, after) = element(operation)?;
        Some(Self { id, tag, operation, content, after })
    }

    /// The result; `None` if it is another kind of answer, or one to another request.
    #[must_use]
    pub fn result(&self, id: u32, wanted: u8) -> Option<Outcome<'a>> {
        if self.id != id || self.tag != wanted {
            return None;
        }
        let (0x0a, code, answer) = element(self.content)? else { return None };
        let (0x04, _matched_dn, answer) = element(answer)? else { return None };
        let (0x04, text, _) = element(answer)? else { return None };
        let controls = match element(self.after) {
            Some((0xa0, controls, _)) => controls,
            _ => &[],
        };
        // What follows goes into errors and logs.
        let text = text.get(..MOST_WORDS).unwrap_or(text);
        Some(Outcome { code: unsigned(code)?, text, controls })
    }
}

/// Longer words of a server are cut.
const MOST_WORDS: usize = 1024;

/// How an operation ended (RFC 4511 §4.1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// The result code.
    pub code: u32,
    /// The server's own words, the first of them if they are many.
    pub text: &'a [u8],
    controls: &'a [u8],
}

impl<'a> Outcome<'a> {
    /// The server's own words, for people.
    #[must_use]
    pub fn words(&self) -> String {
        String::from_utf8_lossy(self.text).into_owned()
    }

    /// The value of the control with this OID, if it came with one.
    #[must_use]
    pub fn control(&self, oid: &str) -> Option<&'a [u8]> {
        let mut controls = self.controls;
        while let Some((tag, control, rest)) = element(controls) {
            controls = rest;
            let Some((0x04, name, mut parts)) = element(control) else { continue };
            if tag != 0x30 || name != oid.as_bytes() {
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
}

/// Where the content of the message that begins here stands, if it is there in full; its end is the message's.
///
/// # Errors
/// It is not LDAP, or longer than the limit.
pub fn whole_message(input: &[u8], limit: usize) -> io::Result<Option<Range<usize>>> {
    let place = message_length(input, limit)?.map(|(head, length)| head..head + length);
    Ok(place.filter(|place| place.end <= input.len()))
}

/// How many bytes stand before the content of the LDAPMessage that begins here, and how many that has; `None`: more is
/// needed to tell.
pub(super) fn message_length(bytes: &[u8], limit: usize) -> io::Result<Option<(usize, usize)>> {
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

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One item of a search answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An entry.
    Entry(Entry),
    /// A referral or an intermediate message: not followed (AD sends referrals from each domain root).
    Ignored,
}

/// Tags of a search answer's operations (RFC 4511 §4.5.2, §4.13).
const ENTRY: u8 = 0x64;
const REFERENCE: u8 = 0x73;
const INTERMEDIATE: u8 = 0x79;

/// Reads one item of a search answer: the operation's element, as it stands in its message.
///
/// # Errors
/// [`Malformed`].
pub fn decode(operation: &[u8]) -> Result<Item, Malformed> {
    let (tag, content, _) = element(operation).ok_or(Malformed("operation"))?;
    match tag {
        REFERENCE | INTERMEDIATE => return Ok(Item::Ignored),
        ENTRY => {}
        _ => return Err(Malformed("neither entry nor referral")),
    }
    let mut parts = content;
    let dn = text(&mut parts, "entry name")?.into();
    let mut list = inner(SEQUENCE, &mut parts, "attributes")?;
    let mut attributes = BTreeMap::<String, Vec<&[u8]>>::new();
    while !list.is_empty() {
        let mut attribute = inner(SEQUENCE, &mut list, "attribute")?;
        let name = text(&mut attribute, "attribute name")?;
        let mut values = inner(SET, &mut attribute, "values")?;
        let known = attributes.entry(plain_name(name).to_ascii_lowercase()).or_default();
        while !values.is_empty() {
            known.push(inner(OCTETS, &mut values, "value")?);
        }
    }
    Ok(Item::Entry(Entry { dn, attributes: attributes.into_iter().collect() }))
}

/// The value of an intermediate response (RFC 4511 §4.13).
#[must_use]
pub fn intermediate(operation: &[u8]) -> Option<&[u8]> {
    const VALUE: u8 = 0x81;
    let (INTERMEDIATE, mut parts, _) = element(operation)? else { return None };
    while let Some((tag, content, rest)) = element(parts) {
        if tag == VALUE {
            return Some(content);
        }
        parts = rest;
    }
    None
}

const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// Takes the next element, which must be of this kind, off the front.
fn inner<'a>(wanted: u8, rest: &mut &'a [u8], what: &'static str) -> Result<&'a [u8], Malformed> {
    match element(rest) {
        // The client library turns an empty set into an empty primitive.
        Some((tag, content, after))
            if tag == wanted || (content.is_empty() && tag | CONSTRUCTED == wanted) =>
        {
            *rest = after;
            Ok(content)
        }
        _ => Err(Malformed(what)),
    }
}

const CONSTRUCTED: u8 = 0x20;

fn text<'a>(rest: &mut &'a [u8], what: &'static str) -> Result<&'a str, Malformed> {
    str::from_utf8(inner(OCTETS, rest, what)?).map_err(|_| Malformed(what))
}

/// `userCertificate;binary`, `memberOf;range=0-1499` → the name alone. Other options (`cn;lang-fr`) say that these
/// are other values.
fn plain_name(name: &str) -> &str {
    match name.split_once(';') {
        Some((plain, option)) if option.eq_ignore_ascii_case("binary") => plain,
        Some((plain, option)) if option.to_ascii_lowercase().starts_with("range=") => plain,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ber::write_element;
    use super::*;

    const LIMIT: usize = 64 * 1024;

    fn tag(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
        let mut element = Vec::new();
        write_element(tag, &parts.concat(), &mut element);
        element
    }

    fn bytes(value: &[u8]) -> Vec<u8> {
        tag(OCTETS, &[value.to_vec()])
    }

    #[test]
    fn entries_are_read_and_referrals_ignored() {
        let attribute = |name: &[u8], values: &[&[u8]]| {
            let values: Vec<_> = values.iter().map(|value| bytes(value)).collect();
            tag(SEQUENCE, &[bytes(name), tag(SET, &values)])
        };
        let list = [
            attribute(b"mail", &[b"a@x", b"b@x"]),
            attribute(b"memberOf;range=0-1499", &[b"cn=a"]),
            attribute(b"cn;lang-fr", &[b"Frite"]),
            attribute(b"objectGUID", &[b"\x00\xff"]),
            // An empty set, and as the client library writes it.
            attribute(b"title", &[]),
            tag(SEQUENCE, &[bytes(b"street"), tag(SET & !CONSTRUCTED, &[])]),
        ];
        let whole = tag(ENTRY, &[bytes(b"uid=fry,dc=x"), tag(SEQUENCE, &list)]);

        let Ok(Item::Entry(entry)) = decode(&whole) else { panic!("no entry") };

        assert_eq!(&*entry.dn, "uid=fry,dc=x");
        assert_eq!(entry.attributes.texts("MAIL").collect::<Vec<_>>(), ["a@x", "b@x"]);
        assert_eq!(entry.attributes.texts("memberOf").count(), 1);
        assert_eq!(entry.attributes.texts("cn").count(), 0);
        assert_eq!(entry.attributes.values("objectguid").next(), Some(&b"\x00\xff"[..]));
        assert_eq!(entry.attributes.values("title").count(), 0);
        assert_eq!(decode(&tag(REFERENCE, &[bytes(b"ldap://x")])), Ok(Item::Ignored));
        assert_eq!(decode(&tag(INTERMEDIATE, &[])), Ok(Item::Ignored));
    }

    #[test]
    fn malformed_entries_are_errors() {
        let list = |attribute: &[Vec<u8>]| {
            tag(ENTRY, &[bytes(b"dn"), tag(SEQUENCE, &[tag(SEQUENCE, attribute)])])
        };
        for broken in [
            vec![],
            tag(ENTRY, &[b"x".to_vec()]),
            tag(ENTRY, &[]),
            tag(ENTRY, &[bytes(b"dn"), bytes(b"x")]),
            tag(ENTRY, &[bytes(b"\xff"), tag(SEQUENCE, &[])]),
            list(&[]),
            list(&[bytes(b"mail")]),
            list(&[bytes(b"\xff"), tag(SET, &[])]),
            list(&[bytes(b"mail"), tag(SET, &[tag(SEQUENCE, &[bytes(b"x")])])]),
            list(&[bytes(b"mail"), tag(SET, &[b"\x04\x05x".to_vec()])]),
            tag(0x67, &[]),
        ] {
            assert!(decode(&broken).is_err(), "{broken:02x?}");
        }
    }

    /// slapd's answer to a bind as a locked account, with the control.
    const LOCKED: &[u8] = b"\x30\x32\x02\x01\x02\x61\x07\x0a\x01\x31\x04\x00\x04\x00\
        \xa0\x24\x30\x22\x04\x191.3.6.1.4.1.42.2.27.8.5.1\x04\x05\x30\x03\x81\x01\x01";

    fn look(content: &[u8]) {
        let outcome = Message::parse(content).and_then(|message| message.result(2, 0x61));
        let _ = outcome.map(|outcome| outcome.control("1.3.6.1.4.1.42.2.27.8.5.1"));
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
                while let Some(place) = whole_message(&input, LIMIT).unwrap() {
                    messages.push(input[place.clone()].to_vec());
                    input.drain(..place.end);
                }
            }
            prop_assert_eq!(messages, [&LOCKED[2..], &LOCKED[2..]]);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            look(&bytes);
            let _ = decode(&bytes);
            let _ = whole_message(&bytes, LIMIT);
        }

        #[test]
        fn no_changed_byte_makes_the_decoder_panic(at in 2..LOCKED.len(), byte: u8) {
            let mut bytes = LOCKED.to_vec();
            bytes[at] = byte;
            look(&bytes[2..]);
        }
    }
}
