//! What gatepost-checkpassword asks: `socket checkpassword`. One question, one answer.

use bytes::BytesMut;

use super::{Heard, Peer, People, Place, Took, Word};
use crate::proto::checkpassword::{Answer, Question};

pub(super) struct CheckpasswordPeer;

impl Peer for CheckpasswordPeer {
    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<Took, String> {
        let Some(question) = Question::parse(input).map_err(|error| error.to_string())? else {
            return Ok(Took::Nothing);
        };
        answer(&question).encode(&mut heard.output);
        heard.is_closed = true;
        Ok(Took::Request)
    }
}

fn answer(question: &Question) -> Answer {
    let place = People::look_up(&question.user);
    let word = question.password.as_ref();
    match (word.map(|it| People::login(&question.user, it.as_bytes())), place) {
        (Some(Word::Accept | Word::Slow), _) | (None, Place::Home) => {
            let fields = [("uid", "5000"), ("gid", "5000"), ("home", "/var/mail/joe")];
            let fields = fields.map(|(key, value)| (key.to_owned(), value.to_owned()));
            Answer::Ok { user: "joe@example.org".into(), fields: fields.into() }
        }
        (Some(Word::Later), _) | (None, Place::Later) => Answer::Later,
        (Some(Word::Wrong) | None, Place::Nobody) => Answer::Unknown,
        (Some(Word::Wrong | Word::Disabled | Word::Expired), _) => Answer::Refused,
    }
}
