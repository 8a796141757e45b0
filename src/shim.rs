//! `gatepost-dovecot-auth`: the process that Dovecot's master takes for its auth service.
//!
//! It hands the listening sockets that the master opened to the gatepost daemon and from then on only waits: for the
//! daemon to go (it hands them over again, as often as it takes), for the master to go, for a signal. It sees no login.
//! Clients that connect while there is no daemon wait in the sockets' backlog, because this process keeps them open.
//!
//! What the master gives (Dovecot 2.3 and 2.4, found by experiment): sockets from descriptor 7 or 8 on, described
//! by `SOCKET<i>_SETTINGS`; a pipe for our status at 5; a pipe that breaks when the master dies at 6; its log at 2.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Uid;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, sockopt,
};

use crate::clock;
pub use crate::inherited::complain;
use crate::inherited::{adopt, drop_privileges};
use crate::proto::handover::{
    Answer, Description, HandedKind, MAX_ANSWER_BYTES, MAX_SOCKETS, Message, Place,
};
use crate::trust::{self, Distrust};

const STATUS_FD: RawFd = 5;
const MASTER_FD: RawFd = 6;

/// A daemon that restarts is no news; one that stays away for longer is.
const QUIET: Duration = Duration::from_secs(10);

/// The daemon's answer is there at once or something is wrong.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What Dovecot's master says in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    version: String,
    generation: u32,
    client_limit: u32,
    drop_to: Option<(u32, u32)>,
    config_file: Option<PathBuf>,
    settings: Vec<String>,
}

/// What ends the shim other than the master's wish.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The environment is not that of a Dovecot service.
    #[error(
        "{0} is missing or bad in the environment: this program is started by dovecot's master \
         (service auth {{ executable = ... }})"
    )]
    Environment(String),
    /// The system said no.
    #[error("{step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The sockets cannot be described.
    #[error(transparent)]
    Message(#[from] crate::proto::handover::MessageError),
}

impl Invocation {
    /// Reads the environment.
    ///
    /// # Errors
    /// If it is not that of a Dovecot service; the variable is named.
    pub fn from_environment(
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ShimError> {
        let text = |name: &str| {
            let value = variable(name).and_then(|value| value.into_string().ok());
            value.ok_or_else(|| ShimError::Environment(name.to_owned()))
        };
        let number = |name: &str| -> Result<u32, ShimError> {
            text(name)?.parse().map_err(|_| ShimError::Environment(name.to_owned()))
        };
        let count = number("SOCKET_COUNT")?;
        if usize::try_from(count).map_or(true, |count| count == 0 || count > MAX_SOCKETS) {
            return Err(ShimError::Environment("SOCKET_COUNT".to_owned()));
        }
        let settings = (0..count).map(|i| text(&format!("SOCKET{i}_SETTINGS")));
        let drop_to = match (variable("RESTRICT_SETUID"), variable("RESTRICT_SETGID")) {
            (None, None) => None,
            _ => Some((number("RESTRICT_SETUID")?, number("RESTRICT_SETGID")?)),
        };
        Ok(Self {
            version: text("DOVECOT_VERSION")?,
            generation: number("GENERATION")?,
            client_limit: number("CLIENT_LIMIT")?,
            drop_to,
            config_file: variable("CONFIG_FILE").map(PathBuf::from),
            settings: settings.collect::<Result<_, _>>()?,
        })
    }

    /// 2.4 keeps its configuration at 7.
    fn first_socket(&self) -> RawFd {
        let old = ["2.0.", "2.1.", "2.2.", "2.3."];
        if old.iter().any(|version| self.version.starts_with(version)) { 7 } else { 8 }
    }

    fn socket_numbers(&self) -> Vec<RawFd> {
        (self.first_socket()..).take(self.settings.len()).collect()
    }

    /// The 12 bytes that tell the master we live. One client less than the limit: with all places free it would take us
    /// for idle, end us after a minute, and complain that we stay.
    fn status(&self) -> [u8; 12] {
        let available = self.client_limit.saturating_sub(1);
        let mut status = [0; 12];
        let words = [std::process::id(), self.generation, available];
        for (place, word) in status.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        status
    }

    fn describe(&self, sockets: &[OwnedFd]) -> Result<Message, ShimError> {
        let described = self.settings.iter().zip(sockets).map(|(settings, socket)| {
            let name = settings.split('\t').next().unwrap_or_default().to_owned();
            let place = place(socket).map_err(system("asking where a socket listens"))?;
            Ok(Description { name, kind: HandedKind::from_settings(settings), place })
        });
        let sockets: Vec<Description> = described.collect::<Result<_, ShimError>>()?;
        let base_dir = self.base_dir(&sockets)?;
        Ok(Message { base_dir, version: self.version.clone(), sockets })
    }

    /// No variable has it in both versions. Dovecot's own listener `auth-master` lies there unless somebody moved it;
    /// 2.3 also names its configuration socket there.
    fn base_dir(&self, sockets: &[Description]) -> Result<PathBuf, ShimError> {
        let own = sockets.iter().find_map(|socket| match &socket.place {
            Place::Unix(path) if socket.name == "auth-master" => path.parent(),
            _ => None,
        });
        let config = || self.config_file.as_deref().and_then(Path::parent);
        let found = own.or_else(config).map(Path::to_owned);
        // The master works there.
        found
            .map_or_else(std::env::current_dir, Ok)
            .map_err(system("asking for the base directory"))
    }
}

fn place(socket: &OwnedFd) -> io::Result<Place> {
    let address = rustix::net::getsockname(socket)?;
    if sockopt::socket_domain(socket)? == AddressFamily::UNIX {
        let address = rustix::net::SocketAddrUnix::try_from(address)?;
        let path = address.path().ok_or(io::ErrorKind::InvalidData)?;
        return Ok(Place::Unix(PathBuf::from(path.to_string_lossy().into_owned())));
    }
    Ok(Place::Tcp(SocketAddr::try_from(address)?))
}

/// Does the duty until the master or a signal ends it.
///
/// # Errors
/// Only what makes the duty impossible; an absent daemon does not.
pub fn run(invocation: &Invocation, socket: &Path, daemon_user: &str) -> Result<(), ShimError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(system("blocking signals"))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
        .map_err(system("waiting for signals"))?;

    let numbers = [vec![STATUS_FD, MASTER_FD], invocation.socket_numbers()].concat();
    let mut descriptors = adopt(&numbers).map_err(system("taking dovecot's descriptors"))?;
    let sockets = descriptors.split_off(2);
    let [status, master] = <[OwnedFd; 2]>::try_from(descriptors)
        .map_err(|_| ShimError::Environment("a descriptor".to_owned()))?;
    rustix::io::write(&status, &invocation.status()).map_err(system("telling our status"))?;

    let message = invocation.describe(&sockets)?.encode()?;
    let events = Events { signals: signals.as_fd(), master: master.as_fd() };
    let daemon = Daemon { socket, user: daemon_user, message: &message, sockets: &sockets };
    serve(&events, &daemon, invocation.drop_to)
}

fn serve(
    events: &Events<'_>,
    daemon: &Daemon<'_>,
    drop_to: Option<(u32, u32)>,
) -> Result<(), ShimError> {
    let mut outage = Outage::new(clock::now());
    // A Dovecot that does not run as root has nothing to give up.
    let mut drop_to = drop_to.filter(|_| Uid::effective().is_root());
    let mut dropped = false;
    loop {
        match daemon.hand_over(events) {
            Ok(connection) => {
                // A door that is gone again already tells no group: then after the next hand-over.
                if let (Some((uid, gid)), Ok(door)) = (drop_to, std::fs::metadata(daemon.socket)) {
                    // The group of the daemon's socket stays among the groups, so that a later daemon is still reached
                    // through a socket of mode 0660.
                    drop_privileges(uid, gid, &[gid, door.gid()])
                        .map_err(system("dropping privileges"))?;
                    (drop_to, dropped) = (None, true);
                }
                if events.wait(Some(connection.as_fd()), None)? == Event::End {
                    return Ok(());
                }
                outage = Outage::new(clock::now());
            }
            Err(Trouble::Ended) => return Ok(()),
            // We gave up the rights that got us in before: the master starts us anew, as root, for the next client.
            Err(trouble) if dropped && trouble.wants_rights() => return Ok(()),
            Err(trouble) => {
                if outage.is_to_be_told(&trouble, clock::now()) {
                    let path = daemon.socket.display();
                    complain(&format_args!("{path}: {trouble}; clients wait, trying again"));
                }
            }
        }
        if events.wait(None, Some(outage.pause()))? == Event::End {
            return Ok(());
        }
    }
}

/// What the shim waits for.
struct Events<'a> {
    signals: BorrowedFd<'a>,
    master: BorrowedFd<'a>,
}

#[derive(PartialEq, Eq)]
enum Event {
    /// The master is gone or has sent a signal.
    End,
    /// The daemon is gone, or the pause is over.
    Again,
}

impl Events<'_> {
    fn wait(
        &self,
        daemon: Option<BorrowedFd<'_>>,
        pause: Option<Duration>,
    ) -> Result<Event, ShimError> {
        // The end of the master's pipe is reported whether it is asked for or not.
        let mut watched = vec![
            PollFd::new(self.signals, PollFlags::POLLIN),
            PollFd::new(self.master, PollFlags::empty()),
        ];
        watched.extend(daemon.map(|daemon| PollFd::new(daemon, PollFlags::POLLIN)));
        let limit = pause.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from);
        while let Err(error) = poll(&mut watched, limit.unwrap_or(PollTimeout::MAX)) {
            if error != nix::errno::Errno::EINTR {
                return Err(system("waiting")(error));
            }
        }
        let ended = watched.iter().take(2).any(|one| one.any().unwrap_or(true));
        Ok(if ended { Event::End } else { Event::Again })
    }
}

/// The daemon, and what it gets.
struct Daemon<'a> {
    socket: &'a Path,
    user: &'a str,
    message: &'a [u8],
    sockets: &'a [OwnedFd],
}

/// Why the sockets were not handed over this time.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the gatepost daemon cannot be reached: {0}")]
    Absent(io::Error),
    #[error(transparent)]
    Distrusted(#[from] Distrust),
    #[error("the gatepost daemon refused the sockets: {0}")]
    Refused(String),
    #[error("the gatepost daemon gave no proper answer: {0}")]
    NoAnswer(io::Error),
    #[error("the master ended us")]
    Ended,
}

impl Trouble {
    fn wants_rights(&self) -> bool {
        match self {
            Self::Absent(error) => error.kind() == io::ErrorKind::PermissionDenied,
            Self::Refused(_) => true,
            Self::Distrusted(_) | Self::NoAnswer(_) | Self::Ended => false,
        }
    }
}

impl Daemon<'_> {
    fn hand_over(&self, events: &Events<'_>) -> Result<OwnedFd, Trouble> {
        let connection = self.connect().map_err(Trouble::Absent)?;
        trust::listener_is(&connection, self.user)?;
        self.send(&connection).map_err(Trouble::Absent)?;
        match read_answer(&connection, events)? {
            Answer::Taken(count) if count == self.sockets.len() => Ok(connection),
            Answer::Taken(count) => Err(Trouble::Refused(format!("it took only {count}"))),
            Answer::Refused(reason) => Err(Trouble::Refused(reason)),
        }
    }

    /// Never waits: a full backlog (a daemon that starts or stops) is an absent daemon.
    fn connect(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(self.socket)?)?;
        Ok(socket)
    }

    fn send(&self, connection: &OwnedFd) -> io::Result<()> {
        let sockets: Vec<BorrowedFd<'_>> = self.sockets.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = [IoSlice::new(self.message)];
        // A fresh socket's buffer takes the whole message or the connection is of no use.
        let sent = rustix::net::sendmsg(connection, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
        if sent == self.message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

fn read_answer(connection: &OwnedFd, events: &Events<'_>) -> Result<Answer, Trouble> {
    let broken = |kind: io::ErrorKind| Trouble::NoAnswer(kind.into());
    let until = clock::now() + ANSWER_LIMIT;
    let mut answer = Vec::new();
    loop {
        let left = until.saturating_duration_since(clock::now());
        match events.wait(Some(connection.as_fd()), Some(left)) {
            Ok(Event::Again) => {}
            Ok(Event::End) => return Err(Trouble::Ended),
            Err(error) => return Err(Trouble::NoAnswer(io::Error::other(error))),
        }
        let mut buffer = [0; MAX_ANSWER_BYTES];
        match rustix::net::recv(connection, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(broken(io::ErrorKind::UnexpectedEof)),
            Ok((received, _)) => answer.extend(buffer.iter().take(received)),
            Err(rustix::io::Errno::AGAIN) if left.is_zero() => {
                return Err(broken(io::ErrorKind::TimedOut));
            }
            Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(Trouble::NoAnswer(error.into())),
        }
        match Answer::parse(&answer) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => return Err(Trouble::NoAnswer(io::Error::other(error))),
        }
    }
}

/// The time since the daemon went, and whether it has been told.
struct Outage {
    since: Instant,
    told: bool,
    pause: Duration,
}

impl Outage {
    fn new(since: Instant) -> Self {
        Self { since, told: false, pause: FIRST_PAUSE }
    }

    /// Once for each outage: at once if only a person can mend it, else when it lasts.
    fn is_to_be_told(&mut self, trouble: &Trouble, now: Instant) -> bool {
        let lasting = matches!(trouble, Trouble::Distrusted(_) | Trouble::Refused(_));
        let due = lasting || now.saturating_duration_since(self.since) >= QUIET;
        let first = due && !self.told;
        self.told |= due;
        first
    }

    fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

fn system<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ShimError {
    move |source| ShimError::System { step, source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn environment() -> HashMap<&'static str, &'static str> {
        HashMap::from([
            ("DOVECOT_VERSION", "2.3.19.1"),
            ("GENERATION", "6"),
            ("CLIENT_LIMIT", "1000"),
            ("RESTRICT_SETUID", "104"),
            ("RESTRICT_SETGID", "108"),
            ("CONFIG_FILE", "/run/dovecot/config"),
            ("SOCKET_COUNT", "2"),
            ("SOCKET0_SETTINGS", "login"),
            ("SOCKET1_SETTINGS", ""),
        ])
    }

    fn read(environment: &HashMap<&str, &str>) -> Result<Invocation, ShimError> {
        Invocation::from_environment(&|name| environment.get(name).map(OsString::from))
    }

    fn at(name: &str, place: &str) -> Description {
        let kind = HandedKind::from_settings(name);
        Description { name: name.into(), kind, place: place.parse().unwrap() }
    }

    #[test]
    fn the_environment_of_a_dovecot_service_is_read() {
        let invocation = read(&environment()).unwrap();

        assert_eq!(invocation.drop_to, Some((104, 108)));
        assert_eq!(invocation.settings, ["login", ""]);
        assert_eq!(invocation.socket_numbers(), [7, 8]);
    }

    #[test]
    fn dovecot_2_4_has_its_sockets_one_place_later() {
        let mut newer = environment();
        newer.insert("DOVECOT_VERSION", "2.4.1-4");

        assert_eq!(read(&newer).unwrap().socket_numbers(), [8, 9]);
    }

    #[test]
    fn a_bad_environment_names_the_variable() {
        #[track_caller]
        fn check(name: &'static str, value: Option<&'static str>) {
            let mut bad = environment();
            bad.remove(name);
            bad.extend(value.map(|value| (name, value)));
            let error = read(&bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name} is missing or bad")), "{error}");
        }
        check("DOVECOT_VERSION", None);
        check("SOCKET_COUNT", None);
        check("SOCKET_COUNT", Some("0"));
        check("SOCKET_COUNT", Some("65"));
        check("SOCKET_COUNT", Some("-1"));
        check("SOCKET1_SETTINGS", None);
        check("GENERATION", Some("x"));
        check("CLIENT_LIMIT", None);
        check("RESTRICT_SETGID", None);
    }

    #[test]
    fn the_status_leaves_one_client_to_be_counted() {
        let status = read(&environment()).unwrap().status();

        let words: Vec<u32> =
            status.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [std::process::id(), 6, 999]);
    }

    #[test]
    fn the_base_directory_is_that_of_dovecots_own_listeners() {
        let invocation = read(&environment()).unwrap();
        let moved = at("auth-master", "unix:/srv/mail/run/auth-master");
        let login = at("login", "unix:/run/dovecot/login/login");

        let found = invocation.base_dir(&[login.clone(), moved]).unwrap();
        let by_config = invocation.base_dir(&[login]).unwrap();

        assert_eq!(found, Path::new("/srv/mail/run"));
        assert_eq!(by_config, Path::new("/run/dovecot"));
    }

    #[test]
    fn a_daemon_that_restarts_is_not_told_and_a_lasting_outage_once() {
        let begin = clock::now();
        let mut outage = Outage::new(begin);
        let absent = Trouble::Absent(io::ErrorKind::NotFound.into());

        assert!(!outage.is_to_be_told(&absent, begin + Duration::from_secs(9)));
        assert!(outage.is_to_be_told(&absent, begin + Duration::from_secs(10)));
        assert!(!outage.is_to_be_told(&absent, begin + Duration::from_secs(11)));
        assert!(!outage.is_to_be_told(
            &Trouble::from(Distrust::Stranger(1000)),
            begin + Duration::from_secs(12)
        ));
    }

    #[test]
    fn what_only_a_person_can_mend_is_told_at_once() {
        let now = clock::now();

        assert!(Outage::new(now).is_to_be_told(&Trouble::from(Distrust::Stranger(1000)), now));
        assert!(Outage::new(now).is_to_be_told(&Trouble::Refused("no".into()), now));
    }

    #[test]
    fn the_pause_grows_to_a_second() {
        let mut outage = Outage::new(clock::now());

        let pauses: Vec<u128> = (0..6).map(|_| outage.pause().as_millis()).collect();

        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
    }
}
