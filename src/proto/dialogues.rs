//! Plays `tests/dialogues/*/*.txt` against the pure sessions, cut at every byte.
//!
//! A dialogue is one connection:
//!
//! ```text
//! # a comment
//! socket login          which protocol: an arm of `connect`
//! C: CPID\t977          the client's line, an LF is added; \t \n \\ \xNN are escapes
//! C> 9:mailbox joe,     the client's bytes as they stand, for protocols without lines
//! S: DONE               the server's line, exactly
//! S~ SPID\t*            the server's line, with * and ?
//! S> 9:NOTFOUND ,       the server's next bytes, exactly; more may follow
//! S-                    the server closes, without a further byte
//! E: cancelled 3        what the driver hears besides requests
//! X: unknown command    the session ends with this error, and the driver closes
//! ```
//!
//! All that the server says must be written down. tests/it/dialogues.rs plays the same files against the daemon,
//! except those with a line `# only against the session: ` and why. Both have the same people, see [`People`].
//!
//! A new protocol is a file beside `dovecot.rs` with a [`Peer`], an arm in [`connect`], a folder of dialogues, and a
//! door in tests/it/dialogues.rs. A codec without a session of its own is a few lines: parse, look up, encode.

mod checkpassword;
mod dict;
mod dovecot;
mod postfix;
mod saslauthd;
#[path = "../../tests/dialogues/script.rs"]
mod script;

use std::collections::BTreeMap;

use bytes::BytesMut;
use proptest::prelude::*;

use script::{Dialogue, Found, Step, read_dialogues};

/// The protocol of a dialogue's `socket` line.
fn connect(socket: &str) -> Box<dyn Peer> {
    match socket {
        "checkpassword" => Box::new(checkpassword::CheckpasswordPeer),
        "dict" => Box::new(dict::DictPeer::new()),
        "login" | "client" => Box::new(dovecot::AuthPeer::new(socket)),
        "master" | "userdb" => Box::new(dovecot::MasterPeer::new(socket)),
        "saslauthd" => Box::new(saslauthd::SaslauthdPeer),
        "socketmap" => Box::new(postfix::MapsPeer),
        "policy" => Box::new(postfix::PolicyPeer::default()),
        other => panic!("no such socket: {other}"),
    }
}

/// The server's side of one connection: a session or codec with the scripted core behind it.
trait Peer {
    /// What the server says before the client does.
    fn greet(&mut self, _heard: &mut Heard) {}

    /// Takes one request off `input` and answers it. An error is the `X:` line.
    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<Took, String>;

    /// The client has said everything, and closes its side. Answers that took long come here.
    fn finish(&mut self, _input: &mut BytesMut, _heard: &mut Heard) {}
}

#[derive(Clone, Copy, PartialEq)]
enum Took {
    /// A request; another may stand behind it.
    Request,
    /// Nothing: more bytes are needed.
    Nothing,
}

/// What a dialogue led to.
#[derive(Default)]
struct Heard {
    output: Vec<u8>,
    events: Vec<String>,
    error: Option<String>,
    /// Set by a peer that closes after an answer, or instead of one: `S-`.
    is_closed: bool,
}

/// The people of the scripted core, and of the directory behind the daemon. joe's password is "secret"; ann's mailbox
/// is disabled; old must choose a new password; example.net's directory does not answer, and mail for down@example.net
/// is put off; slow gets in at the end. Who says no domain is in example.org.
struct People;

/// What the core says to a login.
#[derive(Clone, Copy, PartialEq)]
enum Word {
    Accept,
    Slow,
    Wrong,
    Disabled,
    Expired,
    Later,
}

/// What the core says to a look-up of a mailbox.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Home,
    Nobody,
    Later,
}

impl People {
    const MAILBOXES: [&str; 3] = ["ann@example.org", "down@example.net", "joe@example.org"];

    fn login(name: &[u8], password: &[u8]) -> Word {
        match (name, password) {
            (b"joe" | b"joe@example.org", b"secret") => Word::Accept,
            (b"slow", _) => Word::Slow,
            (b"ann", b"secret") => Word::Disabled,
            (b"old", b"secret") => Word::Expired,
            (b"down@example.net", _) => Word::Later,
            _ => Word::Wrong,
        }
    }

    fn look_up(name: &[u8]) -> Place {
        match name {
            b"joe" | b"joe@example.org" => Place::Home,
            b"down@example.net" => Place::Later,
            _ => Place::Nobody,
        }
    }
}

/// One connection being played.
struct Play<'d> {
    dialogue: &'d Dialogue,
    peer: Box<dyn Peer>,
    input: BytesMut,
    heard: Heard,
    how: String,
}

impl<'d> Play<'d> {
    fn begin(dialogue: &'d Dialogue, how: String) -> Self {
        let mut peer = connect(&dialogue.socket);
        let mut heard = Heard::default();
        peer.greet(&mut heard);
        Self { dialogue, peer, input: BytesMut::new(), heard, how }
    }

    fn send(&mut self, piece: &[u8]) {
        self.input.extend_from_slice(piece);
        while self.heard.error.is_none() && !self.heard.is_closed {
            match self.peer.step(&mut self.input, &mut self.heard) {
                Ok(Took::Request) => {}
                Ok(Took::Nothing) => break,
                Err(error) => self.heard.error = Some(error),
            }
        }
    }

    fn end(mut self) {
        if self.heard.error.is_none() && !self.heard.is_closed {
            self.peer.finish(&mut self.input, &mut self.heard);
        }
        self.check(&self.dialogue.steps);
    }

    /// Compares all that was heard with all that was expected in these steps.
    fn check(&self, steps: &[Step]) {
        let (name, how) = (&self.dialogue.name, &self.how);
        let mut output = self.heard.output.as_slice();
        let mut said = String::new();
        let (mut events, mut error, mut is_closed) = (Vec::new(), None, false);
        for step in steps {
            match step {
                Step::Client(_) => {}
                Step::Server(wanted) => {
                    let Found::Wanted(length) = wanted.find(output) else {
                        let got = output.escape_ascii();
                        panic!("{name} {how}: after\n{said}wanted\n{step}\ngot\n{got}");
                    };
                    output = &output[length..];
                }
                Step::Event(event) => events.push(event.clone()),
                Step::Error(text) => error = Some(text.clone()),
                Step::Closes => is_closed = true,
            }
            said.push_str(&format!("{step}\n"));
        }
        let rest = output.escape_ascii();
        assert!(output.is_empty(), "{name} {how}: after\n{said}unexpected\n{rest}");
        assert_eq!(self.heard.events, events, "{name} {how}");
        assert_eq!(self.heard.error, error, "{name} {how}");
        assert_eq!(self.heard.is_closed, is_closed, "{name} {how}");
    }
}

fn client_bytes(dialogue: &Dialogue) -> Vec<u8> {
    let pieces = dialogue.steps.iter().filter_map(|step| match step {
        Step::Client(bytes) => Some(bytes.as_slice()),
        _ => None,
    });
    pieces.collect::<Vec<_>>().concat()
}

fn play<'p>(dialogue: &Dialogue, pieces: impl IntoIterator<Item = &'p [u8]>, how: String) {
    let mut play = Play::begin(dialogue, how);
    for piece in pieces {
        play.send(piece);
    }
    play.end();
}

#[test]
fn every_dialogue_goes_as_written_step_by_step() {
    for dialogue in &read_dialogues() {
        let mut play = Play::begin(dialogue, "step by step".to_owned());
        for (at, step) in dialogue.steps.iter().enumerate() {
            if let Step::Client(bytes) = step {
                // What came before must have been answered before this is sent.
                play.check(&dialogue.steps[..at]);
                play.send(bytes);
            }
        }
        play.end();
    }
}

#[test]
fn every_dialogue_goes_as_written_at_once_and_byte_by_byte() {
    for dialogue in read_dialogues() {
        let bytes = client_bytes(&dialogue);
        play(&dialogue, [&bytes[..]], "at once".to_owned());
        play(&dialogue, bytes.chunks(1), "byte by byte".to_owned());
    }
}

#[test]
fn every_dialogue_goes_as_written_cut_in_two_at_every_byte() {
    for dialogue in read_dialogues() {
        let bytes = client_bytes(&dialogue);
        for at in 0..=bytes.len() {
            let (one, other) = bytes.split_at(at);
            play(&dialogue, [one, other], format!("cut at {at}"));
        }
    }
}

#[test]
fn every_protocol_has_its_dialogues() {
    let mut counts = BTreeMap::new();
    for dialogue in read_dialogues() {
        assert_ne!(dialogue.only_session.as_deref(), Some(""), "{}: why?", dialogue.name);
        *counts.entry(dialogue.name.split('/').next().unwrap().to_owned()).or_insert(0) += 1;
    }
    let wanted = [
        ("checkpassword", 14),
        ("dovecot-auth", 40),
        ("dovecot-dict", 11),
        ("dovecot-master", 11),
        ("policy", 4),
        ("saslauthd", 13),
        ("socketmap", 10),
    ];
    let too_few: Vec<_> = wanted
        .into_iter()
        .filter(|(folder, least)| counts.get(*folder).is_none_or(|count| count < least))
        .collect();
    assert!(too_few.is_empty(), "dialogues are missing: {too_few:?} of {counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn every_dialogue_goes_as_written_in_random_pieces(
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 2..6),
    ) {
        for dialogue in read_dialogues() {
            let bytes = client_bytes(&dialogue);
            let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.sort_unstable();
            ends.push(bytes.len());
            let mut start = 0;
            let pieces = ends.iter().map(|end| &bytes[std::mem::replace(&mut start, *end)..*end]);
            play(&dialogue, pieces, format!("cut at {ends:?}"));
        }
    }
}
