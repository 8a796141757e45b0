//! Postfix' look-up tables and its policy server.

use bytes::BytesMut;

use super::{Heard, Peer, People, Place, Took};
use crate::proto::postfix::{policy, socketmap};

/// Knows the mailboxes of [`People`] and their domain.
pub(super) struct MapsPeer;

impl Peer for MapsPeer {
    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<Took, String> {
        use socketmap::Reply;
        let request = socketmap::next_request(input).map_err(|fault| fault.to_string())?;
        let Some(request) = request else { return Ok(Took::Nothing) };
        let reply = match (&*request.map, People::look_up(&request.key)) {
            (b"domain", _) if request.key == b"example.org" => Reply::Found("example.org"),
            (b"alias" | b"domain", _) => Reply::NotFound,
            (b"mailbox" | b"sender-login", Place::Home) => Reply::Found("joe@example.org"),
            (b"mailbox" | b"sender-login", Place::Nobody) => Reply::NotFound,
            (b"mailbox" | b"sender-login", Place::Later) => {
                Reply::Temp("mail for this mailbox is put off")
            }
            _ => Reply::Temp("there is no table of this name"),
        };
        reply.encode(&mut heard.output);
        Ok(Took::Request)
    }
}

/// Lets joe send as joe.
#[derive(Default)]
pub(super) struct PolicyPeer(policy::Session);

impl Peer for PolicyPeer {
    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<Took, String> {
        use policy::{Action, State};
        let request = self.0.next_request(input).map_err(|fault| fault.to_string())?;
        let Some(policy::Request { state, sender, login, .. }) = request else {
            return Ok(Took::Nothing);
        };
        let text = format!("not owned by user {}", String::from_utf8_lossy(&login));
        let action = match (&*login, People::look_up(&sender)) {
            (b"", _) => Action::Dunno,
            _ if state == State::Other => Action::Dunno,
            (b"ann@example.org", _) => {
                Action::Refuse { code: "550 5.7.1", text: "This mailbox is disabled" }
            }
            (b"joe@example.org", Place::Home) => Action::Dunno,
            _ if sender.is_empty() => Action::Dunno,
            _ => Action::Refuse { code: "553 5.7.1", text: &text },
        };
        action.encode(&mut heard.output);
        Ok(Took::Request)
    }
}
