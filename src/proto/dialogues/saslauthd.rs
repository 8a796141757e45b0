//! Cyrus SASL's saslauthd: `socket saslauthd`.

use bytes::BytesMut;

use super::{Heard, Peer, People, Took, Word};
use crate::proto::saslauthd::{MAX_FIELD_BYTES, Reply, parse};

pub(super) struct SaslauthdPeer;

impl Peer for SaslauthdPeer {
    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<Took, String> {
        let Some(request) = parse(input).map_err(|error| error.to_string())? else {
            return Ok(Took::Nothing);
        };
        heard.is_closed = true;
        let (mut name, password) = (request.login, request.password.as_bytes());
        if !name.contains(&b'@') && request.realm == b"example.org" {
            name.extend_from_slice(b"@example.org");
        }
        let is_short = name.len() <= MAX_FIELD_BYTES && password.len() <= MAX_FIELD_BYTES;
        match People::login(&name, password) {
            Word::Accept | Word::Slow if is_short => Reply::Ok.encode(&mut heard.output),
            Word::Later => {}
            Word::Disabled => Reply::No("This mailbox is disabled").encode(&mut heard.output),
            Word::Expired => Reply::No("The password has expired").encode(&mut heard.output),
            _ => Reply::No("").encode(&mut heard.output),
        }
        Ok(Took::Request)
    }
}
