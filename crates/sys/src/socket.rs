//! Who is at the other end of a local socket.

use crate::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The process that connected a Unix socket, as it was then (`SO_PEERCRED`, `unix(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process id in the caller's pid namespace; `None` for a process that cannot be seen from there.
    pub pid: Option<Pid>,
    /// Its effective user id, translated into the caller's user namespace.
    pub uid: u32,
}

/// The peer of a connected Unix stream or packet socket.
///
/// # Errors
/// `ENOTSOCK`, `EBADF`.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers are to live values, and `len` is the size of the first.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer {
        pid: (credentials.pid > 0).then_some(Pid(credentials.pid)),
        uid: credentials.uid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_this_process_at_both_ends() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
        let peer = peer(&one).expect("credentials");
        assert_eq!(peer.pid, Some(Pid::current()));
    }
}
