//! What a program gets from the one that starts it (Dovecot's master, systemd, a mail server): descriptors left open,
//! root's rights, a log.
//!
//! # Descriptors without unsafe
//! An inherited descriptor is only a number, and safe Rust cannot own a number. So we send the numbers to ourselves
//! through a socket pair and receive them as `OwnedFd`. `pidfd_getfd` on ourselves would do the same, but container
//! run-times (Docker's default seccomp profile) refuse it without CAP_SYS_PTRACE; passing descriptors over a socket must
//! work here anyway.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

/// The most descriptors that the kernel passes with one message (`SCM_MAX_FD`).
pub const MAX_ADOPTED: usize = 253;

/// Owns duplicates of descriptors that are only known by number, close-on-exec, in the same order. The numbers themselves
/// stay open, with whatever flags they have.
///
/// # Errors
/// One of the numbers is not open ([`io::ErrorKind::InvalidInput`] or `EBADF`), or there are more than [`MAX_ADOPTED`].
pub fn adopt(numbers: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let rights = [ControlMessage::ScmRights(numbers)];
    sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b"!")], &rights, MsgFlags::empty(), None)?;

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ADOPTED))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(&theirs, buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut adopted = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            adopted.extend(descriptors);
        }
    }
    if adopted.len() == numbers.len() {
        Ok(adopted)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Gives up root for this user, with this group and these supplementary ones.
///
/// # Errors
/// The system said no. Some of it may have been given up.
pub fn drop_privileges(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    setgid(Gid::from_raw(gid))?;
    setuid(Uid::from_raw(uid))?;
    Ok(())
}

/// Writes one line to the log of who started us: Dovecot shows it as an error of its service.
pub fn complain(what: &dyn std::fmt::Display) {
    // There is nobody left to tell if that fails.
    _ = writeln!(io::stderr(), "gatepost: {what}");
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_are_adopted_by_number() {
        let (one, other) = UnixStream::pair().unwrap();

        let adopted = adopt(&[one.as_raw_fd()]).unwrap();

        drop(one);
        rustix::io::write(&adopted[0], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&other, &mut byte), Ok(1));
    }

    #[test]
    fn many_are_adopted_in_their_order() {
        let pairs: Vec<_> = (0..100).map(|_| UnixStream::pair().unwrap()).collect();
        let numbers: Vec<_> = pairs.iter().map(|(one, _)| one.as_raw_fd()).collect();

        let adopted = adopt(&numbers).unwrap();

        rustix::io::write(&adopted[73], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&pairs[73].1, &mut byte), Ok(1));
    }

    #[test]
    fn a_number_that_is_not_open_is_an_error() {
        assert!(adopt(&[4000]).is_err());
    }
}
