//! Sockets that systemd opened for us (sd_listen_fds(3)): they have the owner that a .socket unit says, where we may not
//! give it, and clients who come while we restart wait instead of being turned away.
//!
//! ```text
//! LISTEN_PID=812
//! LISTEN_FDS=2                      descriptors 3 and 4
//! LISTEN_FDNAMES=postfix:control    FileDescriptorName= of each: the door that it is
//! ```
//!
//! A passed socket takes the place of the one that its door would open. Several may bear one name: all are that door.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, sockopt};

use super::listener::Socket;
use crate::config::listen::Listen;
use crate::config::units::FileMode;
use crate::inherited::{MAX_ADOPTED, adopt};

/// The name under which the control socket is passed.
pub(super) const CONTROL: &str = "control";

/// The first descriptor (sd_listen_fds(3), `SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// The sockets that were passed and have not found their door yet.
#[derive(Debug, Default)]
pub struct Passed(Vec<(String, OwnedFd)>);

/// Why a passed socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// The environment contradicts itself.
    #[error("{0} in the environment is not as systemd sets it")]
    Environment(&'static str),
    /// The descriptors are not there.
    #[error("taking the passed sockets: {0}")]
    Descriptors(io::Error),
    /// No door has the name.
    #[error(
        "a socket was passed for the door {name:?}, and there is none; \
         FileDescriptorName= is one of: {doors}"
    )]
    Nobody {
        /// The name it was passed with.
        name: String,
        /// The doors there are.
        doors: String,
    },
    /// The socket is not one that the door can listen on.
    #[error("listen.{door}: the passed socket {what}")]
    Unfit {
        /// The door.
        door: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Passed {
    /// Reads the environment and takes what it names; nothing, if it was meant for another process.
    ///
    /// # Errors
    /// If the environment or the descriptors are not as systemd makes them.
    pub fn from_environment(
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, PassedError> {
        let names = names(variable, std::process::id())?;
        let numbers: Vec<RawFd> = (FIRST..).take(names.len()).collect();
        if numbers.is_empty() {
            return Ok(Self::default());
        }
        let descriptors = adopt(&numbers).map_err(PassedError::Descriptors)?;
        Ok(Self(names.into_iter().zip(descriptors).collect()))
    }

    /// Finds the names that are nobody's, before anything is opened.
    ///
    /// # Errors
    /// [`PassedError::Nobody`]
    pub(super) fn check<'a>(
        &self,
        doors: impl Iterator<Item = &'a String> + Clone,
    ) -> Result<(), PassedError> {
        let is_door = |name: &String| name == CONTROL || doors.clone().any(|door| door == name);
        let Some((name, _)) = self.0.iter().find(|(name, _)| !is_door(name)) else { return Ok(()) };
        let all: Vec<&str> = doors.map(String::as_str).chain([CONTROL]).collect();
        Err(PassedError::Nobody { name: name.clone(), doors: all.join(", ") })
    }

    /// The sockets of a door; none if it opens its own.
    ///
    /// # Errors
    /// If one of them does not listen, or not where the door may.
    pub(super) fn take(
        &mut self,
        door: &str,
        listen: &Listen,
    ) -> Result<Option<(Vec<Socket>, Listen)>, PassedError> {
        let unfit = |what: String| PassedError::Unfit { door: door.to_owned(), what };
        let mine: Vec<(String, OwnedFd)> =
            self.0.extract_if(.., |(name, _)| name == door).collect();
        if mine.is_empty() {
            return Ok(None);
        }
        let (mut sockets, mut modes) = (Vec::new(), 0);
        for (_, descriptor) in mine {
            let seen = Seen::of(&descriptor).map_err(|error| unfit(error.to_string()))?;
            modes |= seen.mode_at(listen).map_err(&unfit)?;
            let socket = Socket::adopt(descriptor, seen.family());
            sockets.push(socket.map_err(|error| unfit(error.to_string()))?);
        }
        // Who may open a socket says its own mode, not the one that we would have given it.
        Ok(Some((sockets, Listen { mode: FileMode(modes), ..listen.clone() })))
    }
}

fn names(
    variable: &dyn Fn(&str) -> Option<OsString>,
    own_pid: u32,
) -> Result<Vec<String>, PassedError> {
    let text = |name: &'static str| match variable(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(PassedError::Environment(name)),
    };
    let number = |name: &'static str, text: String| {
        text.parse::<u32>().map_err(|_| PassedError::Environment(name))
    };
    let Some(pid) = text("LISTEN_PID")? else { return Ok(Vec::new()) };
    if number("LISTEN_PID", pid)? != own_pid {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS", text("LISTEN_FDS")?.unwrap_or_default())?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > MAX_ADOPTED {
        return Err(PassedError::Environment("LISTEN_FDS"));
    }
    let names = match text("LISTEN_FDNAMES")? {
        Some(names) if count > 0 => names.split(':').map(str::to_owned).collect(),
        // What sd_listen_fds_with_names(3) says then.
        _ => vec!["unknown".to_owned(); count],
    };
    if names.len() == count { Ok(names) } else { Err(PassedError::Environment("LISTEN_FDNAMES")) }
}

/// What the kernel says of a passed socket.
enum Seen {
    /// With the mode of its file; of one that has none that we can see, the mode that lets everybody in.
    Unix(u32),
    Tcp(AddressFamily, SocketAddr),
}

impl Seen {
    fn of(socket: &OwnedFd) -> io::Result<Self> {
        let other = |what| Err(io::Error::other(what));
        match sockopt::socket_type(socket) {
            Ok(SocketType::STREAM) => {}
            Ok(_) => return other("is no stream socket (ListenStream= makes one)"),
            Err(rustix::io::Errno::NOTSOCK) => return other("is no socket"),
            Err(error) => return Err(error.into()),
        }
        if !sockopt::socket_acceptconn(socket)? {
            return other("does not listen (with Accept=yes systemd passes a connection)");
        }
        let family = sockopt::socket_domain(socket)?;
        let address = rustix::net::getsockname(socket)?;
        match family {
            AddressFamily::UNIX => Ok(Self::Unix(mode_of(&SocketAddrUnix::try_from(address)?))),
            AddressFamily::INET | AddressFamily::INET6 => {
                Ok(Self::Tcp(family, SocketAddr::try_from(address)?))
            }
            _ => other("is neither a unix nor a TCP socket"),
        }
    }

    fn family(&self) -> AddressFamily {
        match self {
            Self::Unix(_) => AddressFamily::UNIX,
            Self::Tcp(family, _) => *family,
        }
    }

    /// The mode of a socket that fits the door.
    fn mode_at(&self, listen: &Listen) -> Result<u32, String> {
        match (self, listen.address) {
            (Self::Unix(mode), None) => Ok(*mode),
            (Self::Unix(_), Some(address)) => {
                Err(format!("is a unix socket, and the door is at {address}"))
            }
            (Self::Tcp(_, at), None) => Err(format!("is at {at}, and the door is at a path")),
            // What the configuration was checked for (login.md D-6) must hold for the socket.
            (Self::Tcp(_, at), Some(address))
                if address.ip().to_canonical().is_loopback()
                    && !at.ip().to_canonical().is_loopback() =>
            {
                Err(format!("is at {at}, open to the net, and the door is at {address}"))
            }
            (Self::Tcp(..), Some(_)) => Ok(listen.mode.0),
        }
    }
}

fn mode_of(address: &SocketAddrUnix) -> u32 {
    use std::os::unix::ffi::OsStrExt;
    let path = address.path_bytes().map(std::ffi::OsStr::from_bytes);
    let file = path.and_then(|path| std::fs::metadata(path).ok());
    file.map_or(0o777, |file| file.mode() & 0o777)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        names(&|name| variables.get(name).map(OsString::from), 812)
            .map_err(|error| error.to_string())
    }

    fn at_path() -> Listen {
        Listen { path: Some("/run/gatepost/auth".into()), ..Listen::default() }
    }

    fn at_address(address: &str) -> Listen {
        Listen { address: Some(address.parse().unwrap()), ..Listen::default() }
    }

    fn pass(sockets: Vec<(&str, OwnedFd)>) -> Passed {
        Passed(sockets.into_iter().map(|(name, socket)| (name.to_owned(), socket)).collect())
    }

    fn listener(path: &Path, mode: u32) -> OwnedFd {
        let listener = UnixListener::bind(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        listener.into()
    }

    #[test]
    fn the_names_of_the_sockets_are_read() {
        let ours = ("LISTEN_PID", "812");
        assert_eq!(read(&[]), Ok(vec![]));
        assert_eq!(read(&[("LISTEN_PID", "811"), ("LISTEN_FDS", "x")]), Ok(vec![]));
        assert_eq!(
            read(&[ours, ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "postfix:control")]),
            Ok(vec!["postfix".into(), "control".into()])
        );
        assert_eq!(read(&[ours, ("LISTEN_FDS", "1")]), Ok(vec!["unknown".into()]));
        assert_eq!(read(&[ours, ("LISTEN_FDS", "0"), ("LISTEN_FDNAMES", "")]), Ok(vec![]));
    }

    #[test]
    fn an_environment_that_is_not_systemds_is_named() {
        let ours = ("LISTEN_PID", "812");
        for (variables, wrong) in [
            (&[("LISTEN_PID", "-1")][..], "LISTEN_PID"),
            (&[ours], "LISTEN_FDS"),
            (&[ours, ("LISTEN_FDS", "many")], "LISTEN_FDS"),
            (&[ours, ("LISTEN_FDS", "254")], "LISTEN_FDS"),
            (&[ours, ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a")], "LISTEN_FDNAMES"),
            (&[ours, ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "a:b")], "LISTEN_FDNAMES"),
        ] {
            let expected = format!("{wrong} in the environment is not as systemd sets it");
            assert_eq!(read(variables), Err(expected), "{variables:?}");
        }
    }

    #[tokio::test]
    async fn all_sockets_of_a_name_are_one_door_with_the_widest_of_their_modes() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let mut passed = pass(vec![
            ("postfix", listener(&one, 0o640)),
            ("web", TcpListener::bind("127.0.0.1:0").unwrap().into()),
            ("postfix", listener(&other, 0o606)),
        ]);

        let (sockets, listen) = passed.take("postfix", &at_path()).unwrap().unwrap();

        assert_eq!((sockets.len(), listen.mode), (2, FileMode(0o646)));
        assert!(passed.take("postfix", &at_path()).unwrap().is_none());
        drop(sockets);
        assert!(one.exists() && other.exists(), "the paths are systemd's");
        let (sockets, _) = passed.take("web", &at_address("127.0.0.1:1")).unwrap().unwrap();
        assert!(sockets[0].address().is_some());
    }

    #[tokio::test]
    async fn a_socket_that_does_not_fit_its_door_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let unix = listener(&directory.path().join("auth"), 0o600);
        for (socket, listen, wrong) in [
            (unix, at_address("127.0.0.1:1"), "is a unix socket, and the door is at 127.0.0.1:1"),
            (tcp("127.0.0.1:0"), at_path(), "and the door is at a path"),
            (tcp("0.0.0.0:0"), at_address("127.0.0.1:1"), "open to the net"),
            (
                UdpSocket::bind("127.0.0.1:0").unwrap().into(),
                at_address("127.0.0.1:1"),
                "no stream",
            ),
            (UnixStream::pair().unwrap().0.into(), at_path(), "does not listen"),
            (std::fs::File::open("/dev/null").unwrap().into(), at_path(), "is no socket"),
        ] {
            let refused = pass(vec![("postfix", socket)]).take("postfix", &listen).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.starts_with("listen.postfix: the passed socket "), "{refused}");
            assert!(refused.contains(wrong), "{refused}");
        }
    }

    fn tcp(address: &str) -> OwnedFd {
        TcpListener::bind(address).unwrap().into()
    }

    #[test]
    fn a_name_that_is_no_door_is_told_with_those_that_are() {
        let doors = ["postfix".to_owned(), "web".to_owned()];
        let passed = |name| pass(vec![(name, tcp("127.0.0.1:0"))]);

        assert!(passed("web").check(doors.iter()).is_ok());
        assert!(passed(CONTROL).check(doors.iter()).is_ok());
        assert_eq!(
            passed("gatepost-postfix.socket").check(doors.iter()).unwrap_err().to_string(),
            "a socket was passed for the door \"gatepost-postfix.socket\", and there is none; \
             FileDescriptorName= is one of: postfix, web, control"
        );
    }
}
