//! What RFC 4533 puts around the entries of a search that goes on: the state of each entry, and the messages between
//! them. The client library's own parsers panic on malformed values. Pure.

use super::super::ber::element;

/// RFC 4533 §2.3: comes with each entry.
pub(in crate::directory) const SYNC_STATE_OID: &str = "1.3.6.1.4.1.4203.1.9.1.2";

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;

/// An entryUUID's bytes.
pub(super) type Uuid = [u8; 16];

/// What an entry of the search is told for (RFC 4533 §2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyncState {
    /// It is as it was: no news.
    pub(super) is_present: bool,
    /// Whose.
    pub(super) uuid: Uuid,
    /// Where to go on from after this.
    pub(super) cookie: Option<Vec<u8>>,
}

/// A message between the entries (RFC 4533 §2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SyncInfo {
    /// Where to go on from.
    Cookie(Vec<u8>),
    /// A phase of the refresh is over; all of it, if `done`.
    Refreshed {
        /// Where to go on from.
        cookie: Option<Vec<u8>>,
        /// What follows are changes as they happen.
        done: bool,
    },
    /// These entries are gone.
    Gone {
        /// Where to go on from.
        cookie: Option<Vec<u8>>,
        /// Which.
        uuids: Vec<Uuid>,
    },
    /// These entries are still there: whoever is neither named so nor told of as changed is gone.
    StillThere {
        /// Where to go on from.
        cookie: Option<Vec<u8>>,
    },
}

/// Reads the value of an entry's state; `None` if it is malformed.
pub(super) fn sync_state(value: &[u8]) -> Option<SyncState> {
    let (content, _) = inside(SEQUENCE, value)?;
    let (state, rest) = inside(ENUMERATED, content)?;
    let (uuid, rest) = inside(OCTETS, rest)?;
    let cookie = inside(OCTETS, rest).map(|(cookie, _)| cookie.to_vec());
    // present (0), add (1), modify (2), delete (3)
    let is_present = match state {
        [0] => true,
        [1..=3] => false,
        _ => return None,
    };
    Some(SyncState { is_present, uuid: uuid.try_into().ok()?, cookie })
}

/// Reads the value of a message between entries; `None` if it is malformed.
pub(super) fn sync_info(value: &[u8]) -> Option<SyncInfo> {
    let (tag, content, _) = element(value)?;
    if tag == 0x80 {
        return Some(SyncInfo::Cookie(content.to_vec()));
    }
    let (cookie, rest) = match inside(OCTETS, content) {
        Some((cookie, rest)) => (Some(cookie.to_vec()), rest),
        None => (None, content),
    };
    let (flag, rest) = match inside(BOOLEAN, rest) {
        Some((flag, rest)) => (Some(flag != [0]), rest),
        None => (None, rest),
    };
    match tag {
        // refreshDone is TRUE where it is left out.
        0xa1 | 0xa2 => Some(SyncInfo::Refreshed { cookie, done: flag.unwrap_or(true) }),
        0xa3 if flag == Some(true) => Some(SyncInfo::Gone { cookie, uuids: uuids(rest)? }),
        0xa3 => Some(SyncInfo::StillThere { cookie }),
        _ => None,
    }
}

fn uuids(rest: &[u8]) -> Option<Vec<Uuid>> {
    let (mut set, _) = inside(SET, rest)?;
    let mut all = Vec::new();
    while !set.is_empty() {
        let (uuid, rest) = inside(OCTETS, set)?;
        all.push(uuid.try_into().ok()?);
        set = rest;
    }
    Some(all)
}

/// The content of an element with this tag, and what follows.
fn inside(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, after) = element(bytes)?;
    (found == tag).then_some((content, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ber(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        [&[tag, u8::try_from(content.len()).unwrap()], &*content].concat()
    }

    const ID: Uuid = [7; 16];

    #[test]
    fn the_state_of_an_entry_is_read() {
        for (state, cookie, is_present) in
            [(0, None, true), (1, None, false), (2, Some(b"csn"), false), (3, None, false)]
        {
            let octets = cookie.map(|cookie| ber(OCTETS, &[cookie])).unwrap_or_default();
            let value =
                ber(SEQUENCE, &[&ber(ENUMERATED, &[&[state]]), &ber(OCTETS, &[&ID]), &octets]);
            let cookie = cookie.map(|cookie| cookie.to_vec());
            assert_eq!(sync_state(&value), Some(SyncState { is_present, uuid: ID, cookie }));
        }
        let odd = ber(SEQUENCE, &[&ber(ENUMERATED, &[&[4]]), &ber(OCTETS, &[&ID])]);
        assert_eq!(sync_state(&odd), None);
        let short = ber(SEQUENCE, &[&ber(ENUMERATED, &[&[1]]), &ber(OCTETS, &[b"short"])]);
        assert_eq!(sync_state(&short), None);
    }

    #[test]
    fn messages_between_entries_are_read() {
        let cookie = || Some(b"csn".to_vec());
        let octets = ber(OCTETS, &[b"csn"]);
        let (no, yes) = (ber(BOOLEAN, &[&[0]]), ber(BOOLEAN, &[&[0xff]]));
        let set = ber(SET, &[&ber(OCTETS, &[&ID])]);
        for (value, expected) in [
            (ber(0x80, &[b"csn"]), SyncInfo::Cookie(b"csn".to_vec())),
            (ber(0xa1, &[]), SyncInfo::Refreshed { cookie: None, done: true }),
            (ber(0xa2, &[&octets]), SyncInfo::Refreshed { cookie: cookie(), done: true }),
            (ber(0xa2, &[&octets, &no]), SyncInfo::Refreshed { cookie: cookie(), done: false }),
            (ber(0xa3, &[&yes, &set]), SyncInfo::Gone { cookie: None, uuids: vec![ID] }),
            (ber(0xa3, &[&octets, &set]), SyncInfo::StillThere { cookie: cookie() }),
        ] {
            assert_eq!(sync_info(&value), Some(expected), "{value:02x?}");
        }
        for odd in [ber(0xa4, &[]), ber(0xa3, &[&yes, &octets]), Vec::new()] {
            assert_eq!(sync_info(&odd), None, "{odd:02x?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = (sync_state(&bytes), sync_info(&bytes));
        }
    }
}
