//! Dovecot's auth and master protocols: `socket login`, `client`, `master` and `userdb`.

use bytes::BytesMut;

use super::{Heard, Peer, People, Place, Took, Word};
use crate::proto::dovecot::auth::{
    AuthRequest, Event, FailCode, Greeting, Reply, Session, SocketKind,
};
use crate::proto::dovecot::master::{
    Command, ListEnd, MasterKind, MasterReply, MasterSession, mask_matches,
};

const COOKIE: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const SERVER_PID: u32 = 4242;
const JOE: &str = "joe@example.org";

pub(super) struct AuthPeer {
    session: Session,
    slow: Vec<u32>,
}

pub(super) struct MasterPeer(MasterSession);

impl AuthPeer {
    pub(super) fn new(socket: &str) -> Self {
        let kind = if socket == "login" { SocketKind::Login } else { SocketKind::Client };
        Self { session: Session::new(kind), slow: Vec::new() }
    }
}

impl MasterPeer {
    pub(super) fn new(socket: &str) -> Self {
        let kind = if socket == "master" { MasterKind::Master } else { MasterKind::Userdb };
        Self(MasterSession::new(kind))
    }
}

impl Peer for AuthPeer {
    fn greet(&mut self, heard: &mut Heard) {
        self.session.greet(&Greeting::new(SERVER_PID), 7, &COOKIE, &mut heard.output);
    }

    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<Took, String> {
        let now = tokio::time::Instant::now().into_std();
        let event = self.session.next_event(input, &mut heard.output, now);
        match event.map_err(|error| error.to_string())? {
            None => return Ok(Took::Nothing),
            Some(Event::Hello { client_pid }) => heard.events.push(format!("hello {client_pid}")),
            Some(Event::Cancelled(id)) => heard.events.push(format!("cancelled {id}")),
            Some(Event::Request(request)) => match decide(&request) {
                // Who would take it for a wrong password is cut off instead (login.md D-3).
                Some(Reply::Fail { code: Some(FailCode::TempFail), .. })
                    if self.session.client_minor() < 2 =>
                {
                    heard.is_closed = true;
                }
                Some(reply) => {
                    self.session.answer(request.id, &reply, &mut heard.output);
                }
                None => self.slow.push(request.id),
            },
        }
        Ok(Took::Request)
    }

    fn finish(&mut self, _input: &mut BytesMut, heard: &mut Heard) {
        for id in self.slow.drain(..) {
            let reply = Reply::Ok { user: "slow@example.org", fields: &[] };
            self.session.answer(id, &reply, &mut heard.output);
        }
    }
}

impl Peer for MasterPeer {
    fn greet(&mut self, heard: &mut Heard) {
        self.0.greet(SERVER_PID, &mut heard.output);
    }

    fn step(&mut self, input: &mut BytesMut, heard: &mut Heard) -> Result<Took, String> {
        match self.0.next_command(input).map_err(|error| error.to_string())? {
            None => Ok(Took::Nothing),
            Some(command) => {
                look_up(&command, &mut heard.output);
                Ok(Took::Request)
            }
        }
    }
}

/// `None`: at the end.
fn decide(request: &AuthRequest) -> Option<Reply<'_>> {
    let given = &request.credentials;
    let user = std::str::from_utf8(&given.authcid).ok();
    let user = user.filter(|user| !user.contains(char::is_control));
    let fail = |code, reason| Some(Reply::Fail { user, code, reason });
    if !given.authzid.is_empty() {
        return fail(Some(FailCode::AuthzFail), None);
    }
    match People::login(&given.authcid, given.password.as_bytes()) {
        Word::Accept => Some(Reply::Ok { user: JOE, fields: &[] }),
        Word::Slow => None,
        Word::Wrong => fail(None, None),
        Word::Disabled => fail(Some(FailCode::UserDisabled), Some("This mailbox is disabled")),
        Word::Expired => fail(Some(FailCode::PassExpired), None),
        Word::Later => fail(Some(FailCode::TempFail), None),
    }
}

/// Process 981 may claim login 1 of process 977.
fn look_up(command: &Command, output: &mut Vec<u8>) {
    let place = [("uid", "5000"), ("gid", "5000"), ("home", "/var/mail/joe")];
    match command {
        Command::User { id, user, .. } | Command::Pass { id, user, .. } => {
            let reply = match (People::look_up(user), command) {
                (Place::Home, Command::User { .. }) => {
                    MasterReply::User { id: *id, user: JOE, fields: &place }
                }
                (Place::Home, _) => MasterReply::Pass { id: *id, user: JOE, fields: &[] },
                (Place::Later, _) => MasterReply::Fail { id: *id, reason: None },
                (Place::Nobody, _) => MasterReply::NotFound { id: *id },
            };
            reply.encode(output);
        }
        Command::List { id, mask } => {
            let mask = mask.as_deref().unwrap_or(b"*");
            for user in People::MAILBOXES.iter().filter(|user| mask_matches(mask, user)) {
                MasterReply::ListItem { id: *id, user }.encode(output);
            }
            let end = if mask == b"down" { ListEnd::Failed } else { ListEnd::Complete };
            MasterReply::ListDone { id: *id, end }.encode(output);
        }
        Command::Request {
            id,
            client_pid: 977,
            auth_id: 1,
            cookie,
            session_pid: None | Some(981),
        } if *cookie == COOKIE => {
            MasterReply::User { id: *id, user: JOE, fields: &place }.encode(output);
        }
        Command::Request { id, .. } => MasterReply::Fail { id: *id, reason: None }.encode(output),
        Command::CacheFlush { id, users } => {
            let count = if users.is_empty() { People::MAILBOXES.len() } else { users.len() };
            MasterReply::Flushed { id: *id, count }.encode(output);
        }
    }
}
