//! `gatepost-checkpassword`: the program that Dovecot 2.3, or a server made for qmail, starts for each login.
//!
//! Descriptor 3 holds name and password; the daemon is asked over its `checkpassword` door; the answer is an exit code, and
//! with it what lies on descriptor 4 (Dovecot) or the next program, executed as the mailbox's user (qmail). The interface is
//! <https://cr.yp.to/checkpwd/interface.html>; what Dovecot makes of it was found by experiment on 2.3.19:
//!
//! ```text
//! Dovecot starts  gatepost-checkpassword /usr/lib/dovecot/checkpassword-reply
//! 3 (in)          joe NUL secret NUL NUL
//! 4 (out)         user=joe@example.org TAB userdb_uid=5000 TAB userdb_home=/var/mail/joe
//! exit            0; 1 refused, 111 later. AUTHORIZED=1 makes it a look-up: 2 found, 3 no such user, 111 later
//! ```
//!
//! It runs once per login, so it does nothing but this: no runtime, no configuration, one question.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use bytes::BytesMut;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use zeroize::Zeroizing;

use crate::inherited::{adopt, complain, drop_privileges};
use crate::proto::checkpassword::{
    Answer, Given, MAX_GIVEN_BYTES, NotGiven, ProtocolError, Question, dovecot_reply, question_line,
};
use crate::trust::{self, Distrust};

const GIVEN_FD: RawFd = 3;
const REPLY_FD: RawFd = 4;

/// Longer than any deadline of the daemon's.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// By this name Dovecot's own helper is the last argument.
const DOVECOTS_HELPER: &str = "checkpassword-reply";

const DEFAULT_SOCKET: &str = "/run/gatepost/checkpassword";
const DEFAULT_DAEMON_USER: &str = "gatepost";

/// How the program was called.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Invocation {
    socket: PathBuf,
    daemon_user: String,
    service: String,
    client: Option<String>,
    session: Option<String>,
    caller: Caller,
}

/// Who started it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Caller {
    /// Dovecot, for a login.
    DovecotLogin,
    /// Dovecot, for the userdb or for a login that it judges itself.
    DovecotLookUp,
    /// Something made for qmail: the program to execute next, and its arguments.
    Qmail(Vec<OsString>),
}

/// The exit codes, by their names in the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Accepted,
    Refused,
    /// To Dovecot's look-up "found", to qmail "wrongly called".
    FoundOrMisused,
    Unknown,
    Later,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Accepted => 0,
            Exit::Refused => 1,
            Exit::FoundOrMisused => 2,
            Exit::Unknown => 3,
            Exit::Later => 111,
        })
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}; see docs/protocols/checkpassword.md")]
    Misused(String),
    #[error(transparent)]
    NotGiven(#[from] NotGiven),
    #[error("the gatepost daemon cannot be asked at {}: {error}", path.display())]
    Absent { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Distrusted(#[from] Distrust),
    #[error("the gatepost daemon gave no proper answer: {0}")]
    NoAnswer(io::Error),
    #[error("{step}: {error}")]
    System { step: &'static str, error: io::Error },
}

impl Trouble {
    fn exit(&self, caller: &Caller) -> Exit {
        match (self, caller) {
            (Self::Misused(_) | Self::NotGiven(NotGiven::Malformed), Caller::Qmail(_)) => {
                Exit::FoundOrMisused
            }
            // Nobody's password is that long.
            (Self::NotGiven(NotGiven::TooLong), Caller::Qmail(_) | Caller::DovecotLogin) => {
                Exit::Refused
            }
            _ => Exit::Later,
        }
    }
}

/// Does the whole work. `arguments` are those after the program's name. Comes back with the exit code, or not at all where
/// the next program takes its place.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let caller = Caller::of(&arguments, variable);
    let outcome = Invocation::parse(arguments, caller.clone(), variable).and_then(|invocation| {
        let answer = invocation.ask(read_given()?)?;
        invocation.caller.finish(answer)
    });
    let exit = outcome.unwrap_or_else(|trouble| {
        complain(&trouble);
        trouble.exit(&caller)
    });
    exit.into()
}

impl Caller {
    /// Dovecot appends its own helper to whatever its configuration says.
    fn of(arguments: &[OsString], variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let last = arguments.last().map(Path::new).and_then(Path::file_name);
        if last != Some(OsStr::new(DOVECOTS_HELPER)) {
            return Self::Qmail(Vec::new());
        }
        match variable("AUTHORIZED") {
            Some(value) if value == "1" => Self::DovecotLookUp,
            _ => Self::DovecotLogin,
        }
    }

    fn finish(&self, answer: Answer) -> Result<Exit, Trouble> {
        let (user, fields) = match answer {
            Answer::Ok { user, fields } => (user, fields),
            Answer::Later => return Ok(Exit::Later),
            Answer::Refused => return Ok(Exit::Refused),
            Answer::Unknown if *self == Self::DovecotLookUp => return Ok(Exit::Unknown),
            Answer::Unknown => return Ok(Exit::Refused),
        };
        match self {
            Self::DovecotLogin => tell_dovecot(&user, &fields).map(|()| Exit::Accepted),
            Self::DovecotLookUp => tell_dovecot(&user, &fields).map(|()| Exit::FoundOrMisused),
            Self::Qmail(program) => Err(execute(program, &user, &fields)),
        }
    }
}

impl Invocation {
    fn parse(
        arguments: Vec<OsString>,
        caller: Caller,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Trouble> {
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        let mut invocation = Self {
            socket: DEFAULT_SOCKET.into(),
            daemon_user: DEFAULT_DAEMON_USER.into(),
            service: text("SERVICE").unwrap_or_default(),
            client: text("TCPREMOTEIP"),
            session: text("AUTH_SESSION"),
            caller,
        };
        let mut rest = arguments.into_iter().peekable();
        while let Some(option) = rest.next_if(|it| it.as_encoded_bytes().starts_with(b"--")) {
            if option == "--" {
                break;
            }
            let option = option.to_string_lossy().into_owned();
            let value = rest.next().ok_or_else(|| misused(&option, "has no value"))?;
            match option.as_str() {
                "--socket" => invocation.socket = value.into(),
                "--daemon-user" => invocation.daemon_user = value.to_string_lossy().into_owned(),
                "--service" => invocation.service = value.to_string_lossy().into_owned(),
                _ => return Err(misused(&option, "is not known")),
            }
        }
        if let Caller::Qmail(program) = &mut invocation.caller {
            *program = rest.collect();
            if program.is_empty() {
                return Err(Trouble::Misused("no program to execute after the login".into()));
            }
        }
        if invocation.service.is_empty() {
            return Err(Trouble::Misused("neither --service nor SERVICE says what for".into()));
        }
        Ok(invocation)
    }

    fn ask(&self, given: Given) -> Result<Answer, Trouble> {
        let is_login = self.caller != Caller::DovecotLookUp;
        let question = Question {
            user: given.user,
            password: is_login.then_some(given.password),
            service: self.service.as_str().into(),
            client: self.client.as_deref().and_then(|client| client.parse().ok()),
            session: self.session.as_deref().map(Into::into),
        };
        let connection = self.connect()?;
        trust::listener_is(&connection, &self.daemon_user)?;
        exchange(connection, &question_line(&question)).map_err(Trouble::NoAnswer)
    }

    fn connect(&self) -> Result<UnixStream, Trouble> {
        let connect = || -> io::Result<UnixStream> {
            let flags = SocketFlags::CLOEXEC;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // Also for connect, which else waits for ever behind a full backlog.
            for direction in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
                sockopt::set_socket_timeout(&socket, direction, Some(ANSWER_LIMIT))?;
            }
            rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(&self.socket)?)?;
            Ok(socket.into())
        };
        connect().map_err(|error| Trouble::Absent { path: self.socket.clone(), error })
    }
}

fn misused(option: &str, why: &str) -> Trouble {
    Trouble::Misused(format!("option {option} {why}"))
}

/// What the mail server left, to its end.
fn read_given() -> Result<Given, Trouble> {
    let mut given = Zeroizing::new(Vec::with_capacity(MAX_GIVEN_BYTES + 1));
    let limit = u64::try_from(MAX_GIVEN_BYTES).unwrap_or(u64::MAX) + 1;
    let read = descriptor(GIVEN_FD)
        .and_then(|descriptor| File::from(descriptor).take(limit).read_to_end(&mut given));
    read.map_err(|error| Trouble::System { step: "reading descriptor 3", error })?;
    Ok(Given::parse(&given)?)
}

fn descriptor(number: RawFd) -> io::Result<OwnedFd> {
    adopt(&[number])?.pop().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn exchange(mut connection: UnixStream, question: &[u8]) -> io::Result<Answer> {
    connection.write_all(question)?;
    let mut input = BytesMut::with_capacity(4096);
    let mut buffer = [0; 4096];
    loop {
        match Answer::parse(&mut input) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => return Err(unreadable(error)),
        }
        match connection.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => input.extend(buffer.iter().take(length)),
        }
    }
}

fn unreadable(error: ProtocolError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Writes to descriptor 4 what Dovecot's own helper would, which saves executing it.
fn tell_dovecot(user: &str, fields: &[(String, String)]) -> Result<(), Trouble> {
    descriptor(REPLY_FD)
        .and_then(|descriptor| File::from(descriptor).write_all(&dovecot_reply(user, fields)))
        .map_err(|error| Trouble::System { step: "writing to descriptor 4", error })
}

/// Becomes the mailbox's user and the next program. Comes back only with what went wrong.
fn execute(program: &[OsString], user: &str, fields: &[(String, String)]) -> Trouble {
    let run = || -> Result<Trouble, Trouble> {
        let place = Place::of(fields)?;
        let Some((name, arguments)) = program.split_first() else {
            return Err(Trouble::Misused("no program to execute after the login".into()));
        };
        // The interface: descriptor 3 is closed before the program runs. Ours is a duplicate, closed already.
        let failed = |step| move |error: io::Error| Trouble::System { step, error };
        nix::unistd::close(GIVEN_FD)
            .map_err(|error| failed("closing descriptor 3")(error.into()))?;
        if rustix::process::geteuid().is_root() {
            drop_privileges(place.uid, place.gid, &[place.gid])
                .map_err(failed("becoming the mailbox's user"))?;
        } else {
            let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            place.is_of(own).map_err(failed("comparing this process with the mailbox's user"))?;
        }
        std::env::set_current_dir(place.home).map_err(failed("changing to the home directory"))?;
        let mut command = Command::new(name);
        command.args(arguments).env("USER", user).env("HOME", place.home);
        Ok(failed("executing the next program")(command.exec()))
    };
    run().unwrap_or_else(|trouble| trouble)
}

/// Where a mailbox lives.
struct Place<'a> {
    home: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> Place<'a> {
    fn of(fields: &'a [(String, String)]) -> Result<Self, Trouble> {
        let value =
            |name| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let number = |name| value(name).and_then(|text| text.parse::<u32>().ok());
        let place = (value("home"), number("uid"), number("gid"));
        match place {
            // A session with root's rights, or its group's, is nobody's mailbox.
            (Some(home), Some(uid), Some(gid)) if uid != 0 && gid != 0 && !home.is_empty() => {
                Ok(Self { home, uid, gid })
            }
            _ => Err(Trouble::System {
                step: "looking where the mailbox lives",
                error: io::Error::new(io::ErrorKind::InvalidData, "no home, uid and gid (not 0)"),
            }),
        }
    }

    /// Who cannot become the mailbox's user must be it: the next program would work on another's mail else.
    fn is_of(&self, (uid, gid): (u32, u32)) -> io::Result<()> {
        if (uid, gid) == (self.uid, self.gid) {
            return Ok(());
        }
        let why = format!("it runs as {uid}:{gid}, the mailbox is {}:{}'s", self.uid, self.gid);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> (Caller, Result<Invocation, Trouble>) {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let variable = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let caller = Caller::of(&arguments, &variable);
        (caller.clone(), Invocation::parse(arguments, caller, &variable))
    }

    const REPLY: &str = "/usr/lib/dovecot/checkpassword-reply";

    #[test]
    fn dovecot_is_known_by_its_helper() {
        let environment =
            [("SERVICE", "imap"), ("TCPREMOTEIP", "192.0.2.9"), ("AUTH_SESSION", "Zxa")];

        let (_, invocation) = parse(&["--socket", "/run/x", REPLY], &environment);

        let expected = Invocation {
            socket: "/run/x".into(),
            daemon_user: "gatepost".into(),
            service: "imap".into(),
            client: Some("192.0.2.9".into()),
            session: Some("Zxa".into()),
            caller: Caller::DovecotLogin,
        };
        assert_eq!(invocation.unwrap(), expected);
        let look_up = [("SERVICE", "lmtp"), ("AUTHORIZED", "1")];
        assert_eq!(parse(&[REPLY], &look_up).0, Caller::DovecotLookUp);
    }

    #[test]
    fn for_qmail_the_rest_is_the_next_program() {
        let arguments =
            ["--service", "pop3", "--daemon-user", "mail", "--", "qmail-pop3d", "--x", "Maildir"];

        let invocation = parse(&arguments, &[("AUTHORIZED", "1")]).1.unwrap();

        let program = ["qmail-pop3d", "--x", "Maildir"].map(OsString::from).to_vec();
        assert_eq!(invocation.caller, Caller::Qmail(program));
        assert_eq!((&*invocation.service, &*invocation.daemon_user), ("pop3", "mail"));
    }

    #[test]
    fn a_wrong_call_is_2_for_qmail_and_never_for_dovecot() {
        #[track_caller]
        fn check(arguments: &[&str], environment: &[(&str, &str)], exit: Exit) {
            let (caller, invocation) = parse(arguments, environment);
            assert_eq!(invocation.unwrap_err().exit(&caller), exit, "{arguments:?}");
        }
        let (service, look_up) = (("SERVICE", "imap"), ("AUTHORIZED", "1"));
        check(&[], &[service], Exit::FoundOrMisused);
        check(&["--service", "imap"], &[], Exit::FoundOrMisused);
        check(&["--colour", "red", "program"], &[service], Exit::FoundOrMisused);
        check(&["--socket"], &[service], Exit::FoundOrMisused);
        check(&["program"], &[], Exit::FoundOrMisused);
        check(&["--colour", "red", REPLY], &[service], Exit::Later);
        check(&["--colour", "red", REPLY], &[service, look_up], Exit::Later);
        check(&["--socket", REPLY], &[look_up], Exit::Later);
        check(&[REPLY], &[], Exit::Later);
    }

    #[test]
    fn every_answer_that_is_no_ok_has_its_exit_code() {
        let qmail = Caller::Qmail(vec!["true".into()]);
        for (answer, login, look_up, plain) in [
            (Answer::Refused, Exit::Refused, Exit::Refused, Exit::Refused),
            (Answer::Unknown, Exit::Refused, Exit::Unknown, Exit::Refused),
            (Answer::Later, Exit::Later, Exit::Later, Exit::Later),
        ] {
            for (caller, exit) in
                [(&Caller::DovecotLogin, login), (&Caller::DovecotLookUp, look_up), (&qmail, plain)]
            {
                assert_eq!(caller.finish(answer.clone()).unwrap(), exit, "{caller:?} {answer:?}");
            }
        }
    }

    #[test]
    fn a_place_needs_a_home_and_a_user_other_than_root() {
        let fields = |home: &str, uid: &str, gid: &str| {
            [("home", home), ("uid", uid), ("gid", gid)].map(|(k, v)| (k.to_owned(), v.to_owned()))
        };
        assert!(Place::of(&fields("/home", "5000", "8")).is_ok());
        for (home, uid, gid) in [
            ("", "5000", "8"),
            ("/home", "0", "8"),
            ("/home", "5000", "0"),
            ("/home", "vmail", "8"),
            ("/home", "", "8"),
        ] {
            assert!(Place::of(&fields(home, uid, gid)).is_err(), "{home} {uid} {gid}");
        }
    }

    #[test]
    fn who_is_not_root_must_be_the_mailboxs_user() {
        let place = Place { home: "/home", uid: 5000, gid: 8 };
        assert!(place.is_of((5000, 8)).is_ok());
        for other in [(5001, 8), (5000, 9)] {
            assert!(place.is_of(other).is_err(), "{other:?}");
        }
    }
}
