//! Whom our small programs believe to be the daemon: whoever listens on its path hears every password, so a squatter
//! there must not be spoken to (login.md D-4).

use std::io;
use std::os::fd::AsFd;

use rustix::net::sockopt;

/// Whoever listens there is neither root nor the daemon's user.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// A stranger, of this uid.
    #[error("user {0} is listening, which is neither root nor the user of --daemon-user")]
    Stranger(u32),
    /// The system does not tell.
    #[error("asking who listens: {0}")]
    System(#[from] io::Error),
}

/// Asks the kernel who listens at the other end of a connection. Root and this user, a name or a number, are believed.
///
/// # Errors
/// It is somebody else. Say nothing to them.
pub fn listener_is(connection: impl AsFd, daemon_user: &str) -> Result<(), Distrust> {
    let uid = sockopt::socket_peercred(connection).map_err(io::Error::from)?.uid.as_raw();
    if uid == 0 || user_id(daemon_user) == Some(uid) {
        Ok(())
    } else {
        Err(Distrust::Stranger(uid))
    }
}

fn user_id(user: &str) -> Option<u32> {
    let named = || Some(nix::unistd::User::from_name(user).ok()??.uid.as_raw());
    user.parse().ok().or_else(named)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn root_and_the_daemons_user_are_believed() {
        let own = rustix::process::geteuid().as_raw();
        let (ours, _theirs) = UnixStream::pair().unwrap();

        assert!(listener_is(&ours, &own.to_string()).is_ok());
        let as_somebody_else = listener_is(&ours, "4294967294");
        assert_eq!(as_somebody_else.is_ok(), own == 0);
    }
}
