//! Dovecot's dict proxy: `socket dict`.

use bytes::BytesMut;

use super::{Heard, Peer, People, Place, Took, Word};
use crate::proto::dovecot::dict::{Command, DictReply, DictSession, PasswordKey, Question, Typed};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const JOE: &str = "joe@example.org";

pub(super) struct DictPeer {
    session: DictSession,
    key: PasswordKey,
}

impl DictPeer {
    pub(super) fn new() -> Self {
        Self { session: DictSession::new(), key: PasswordKey::parse(KEY).unwrap() }
    }
}

impl Peer for DictPeer {
    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<Took, String> {
        let command = self.session.next_command(input, &self.key);
        let Some(command) = command.map_err(|error| error.to_string())? else {
            return Ok(Took::Nothing);
        };
        let reply = match command {
            Command::Passdb(question) => judge(&question),
            Command::Userdb { user, .. } => look_up(&user),
            Command::Other | Command::IterateOther => DictReply::Failed("not a key of this dict"),
            Command::Iterate { limit } => {
                let most = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap());
                for user in People::MAILBOXES.iter().take(most) {
                    DictReply::ListItem(user).encode(&mut heard.output);
                }
                DictReply::ListDone
            }
        };
        reply.encode(&mut heard.output);
        Ok(Took::Request)
    }
}

fn judge(question: &Question) -> DictReply<'static> {
    let password = match &question.typed {
        Typed::Password(password) => password,
        Typed::Unreadable => return DictReply::Failed("the password cannot be decrypted"),
        Typed::Nothing if People::look_up(&question.user) == Place::Nobody => {
            return DictReply::NotFound;
        }
        Typed::Nothing => {
            return DictReply::Found(&[
                ("user", JOE),
                ("password", "{PLAIN}0123456789abcdef0123456789abcdef"),
                ("userdb_uid", "5000"),
                ("userdb_gid", "5000"),
                ("userdb_home", "/var/mail/joe"),
            ]);
        }
    };
    match People::login(&question.user, password.as_bytes()) {
        Word::Accept | Word::Slow => DictReply::Found(&[
            ("user", JOE),
            ("nopassword", ""),
            ("userdb_uid", "5000"),
            ("userdb_gid", "5000"),
            ("userdb_home", "/var/mail/joe"),
        ]),
        Word::Wrong if People::look_up(&question.user) == Place::Nobody => DictReply::NotFound,
        Word::Wrong | Word::Disabled | Word::Expired => {
            DictReply::Found(&[("password", "{PLAIN}0123456789abcdef0123456789abcdef")])
        }
        Word::Later => DictReply::Failed("try again later"),
    }
}

fn look_up(user: &[u8]) -> DictReply<'static> {
    match People::look_up(user) {
        Place::Home => DictReply::Found(&[
            ("user", JOE),
            ("uid", "5000"),
            ("gid", "5000"),
            ("home", "/var/mail/joe"),
        ]),
        Place::Later => DictReply::Failed("try again later"),
        Place::Nobody => DictReply::NotFound,
    }
}
