//! What systemd hears of us (sd_notify(3)): that we serve, that we read the configuration again, that we stop, and, as
//! long as we work, that we live. Without systemd nothing of it happens.
//!
//! ```text
//! READY=1                              once every door listens; no directory is waited for
//! STATUS=3 doors; directories: corp up
//! RELOADING=1
//! MONOTONIC_USEC=81234567              in the same datagram, for Type=notify-reload
//! WATCHDOG=1                           each half of WATCHDOG_USEC, after a look at ourselves
//! STOPPING=1
//! ```

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

/// systemd takes a datagram at once, unless it is busy itself.
const LIMIT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// Our end of the way to systemd.
#[derive(Debug, Default)]
pub(super) struct Systemd {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    /// The status it has heard last.
    status: Mutex<String>,
}

impl Systemd {
    /// Reads what systemd says in the environment.
    ///
    /// # Errors
    /// If it wants to hear of us in a way that cannot be.
    pub(super) fn from_environment(
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> io::Result<Self> {
        let Some(place) = variable("NOTIFY_SOCKET").filter(|place| !place.is_empty()) else {
            return Ok(Self::default());
        };
        let address = match place.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(Path::new(&place))?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let watchdog = watchdog(variable, std::process::id());
        Ok(Self { socket: Some((socket, address)), watchdog, status: Mutex::default() })
    }

    /// How long it waits for a sign of life; `None`: it does not.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// We serve, for the first time or again after [`Systemd::reloading`].
    pub(super) async fn ready(&self, status: &str) {
        self.is_news(status);
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]).await;
    }

    /// The configuration is being read again.
    pub(super) async fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]).await,
            Err(_) => self.send(&[NotifyState::Reloading]).await,
        }
    }

    /// We end.
    pub(super) async fn stopping(&self) {
        self.send(&[NotifyState::Stopping, NotifyState::Status("answering what was asked")]).await;
    }

    /// A line for `systemctl status`, if it is not the one that stands there.
    pub(super) async fn status(&self, status: &str) {
        if self.is_news(status) {
            self.send(&[NotifyState::Status(status)]).await;
        }
    }

    /// A sign of life.
    pub(super) async fn lives(&self) {
        self.send(&[NotifyState::Watchdog]).await;
    }

    fn is_news(&self, status: &str) -> bool {
        let mut told = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *told != status;
        if news {
            status.clone_into(&mut told);
        }
        news
    }

    /// Not by the crate's own `notify`: that one knows no abstract sockets, and would hold a thread of the runtime while
    /// systemd is busy.
    async fn send(&self, states: &[NotifyState<'_>]) {
        let Some((socket, address)) = &self.socket else { return };
        let mut message = String::new();
        for state in states {
            // Writing into a string cannot fail.
            _ = writeln!(message, "{state}");
        }
        let sending = async {
            loop {
                match socket.send_to_addr(message.as_bytes(), address) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(PAUSE).await;
                    }
                    sent => return sent,
                }
            }
        };
        let sent = tokio::time::timeout(LIMIT, sending).await;
        if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            tracing::warn!(%error, "systemd does not hear us");
        }
    }
}

/// `WATCHDOG_USEC`, unless `WATCHDOG_PID` says that another process is meant.
fn watchdog(variable: &dyn Fn(&str) -> Option<OsString>, own_pid: u32) -> Option<Duration> {
    let number = |name| variable(name)?.into_string().ok()?.parse::<u64>().ok();
    if variable("WATCHDOG_PID").is_some() && number("WATCHDOG_PID") != Some(u64::from(own_pid)) {
        return None;
    }
    number("WATCHDOG_USEC").filter(|span| *span > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: Vec<(&'static str, String)>) -> impl Fn(&str) -> Option<OsString> {
        move |name| variables.iter().find(|(is, _)| *is == name).map(|(_, value)| value.into())
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn systemd_hears_each_state_in_one_datagram() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let variables = environment(vec![("NOTIFY_SOCKET", path.display().to_string())]);
        let systemd = Systemd::from_environment(&variables).unwrap();

        systemd.ready("1 door").await;
        systemd.status("1 door").await;
        systemd.status("2 doors").await;
        systemd.reloading().await;
        systemd.lives().await;
        systemd.stopping().await;

        assert_eq!(heard(&socket), "READY=1\nSTATUS=1 door\n");
        assert_eq!(heard(&socket), "STATUS=2 doors\n");
        let reloading = heard(&socket);
        let now = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(now.trim_end().parse::<u64>().unwrap() > 0, "{reloading}");
        assert_eq!(heard(&socket), "WATCHDOG=1\n");
        assert_eq!(heard(&socket), "STOPPING=1\nSTATUS=answering what was asked\n");
    }

    #[tokio::test]
    async fn an_abstract_socket_is_one_too() {
        let name = format!("gatepost-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let variables = environment(vec![("NOTIFY_SOCKET", format!("@{name}"))]);

        Systemd::from_environment(&variables).unwrap().lives().await;

        assert_eq!(heard(&socket), "WATCHDOG=1\n");
    }

    #[tokio::test]
    async fn without_systemd_nothing_is_said_and_a_strange_place_is_an_error() {
        Systemd::from_environment(&|_| None).unwrap().ready("").await;
        let gone = environment(vec![("NOTIFY_SOCKET", "/nonexistent/notify".into())]);
        Systemd::from_environment(&gone).unwrap().ready("").await;

        let strange = environment(vec![("NOTIFY_SOCKET", "vsock:2:1234".into())]);
        assert!(Systemd::from_environment(&strange).is_err());
    }

    #[test]
    fn the_watchdog_is_ours_unless_it_is_said_to_be_anothers() {
        let second = ("WATCHDOG_USEC", "1000000".to_owned());
        let pid = |pid: &str| ("WATCHDOG_PID", pid.to_owned());
        for (variables, expected) in [
            (vec![], None),
            (vec![second.clone()], Some(Duration::from_secs(1))),
            (vec![second.clone(), pid("812")], Some(Duration::from_secs(1))),
            (vec![second.clone(), pid("811")], None),
            (vec![second, pid("")], None),
            (vec![("WATCHDOG_USEC", "0".into())], None),
            (vec![("WATCHDOG_USEC", "soon".into())], None),
        ] {
            assert_eq!(watchdog(&environment(variables.clone()), 812), expected, "{variables:?}");
        }
    }
}
