//! Sockets: who is at the other end of a local one, and options by their numbers.

use crate::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// An option of the level `SOL_SOCKET` whose value is an int (`socket(7)`).
///
/// # Errors
/// `ENOPROTOOPT` or `EOPNOTSUPP` where the kernel or this kind of socket does not have it.
pub fn option(socket: BorrowedFd<'_>, name: i32) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointers are to live values, and `len` is the size of the first.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// Sets such an option.
///
/// # Errors
/// As for [`option`]; `EPERM`, `EINVAL`, `ERANGE` for a value that may not be set.
pub fn set_option(socket: BorrowedFd<'_>, name: i32, value: i32) -> io::Result<()> {
    let value: libc::c_int = value;
    // SAFETY: the pointer is to a live int, and the length is its size.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The memory, in bytes, that messages take which were sent and not received yet (`SIOCOUTQ`, `unix(7)`).
///
/// # Errors
/// `EINVAL` for a socket that listens.
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the pointer is to a live int, which the kernel fills.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes.cast_unsigned())
}

/// Whether a filter of the older kind is attached (`SO_ATTACH_FILTER`).
///
/// # Errors
/// `EACCES` where another kind of filter is attached that cannot be read.
pub fn has_filter(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut instructions: libc::socklen_t = 0;
    // SAFETY: with a length of 0 nothing is written but the length, which is live; the kernel puts the number of
    // instructions there (`sk_get_filter`, `net/core/filter.c`).
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::null_mut(),
            &raw mut instructions,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(instructions > 0)
}

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The process in the caller's numbers; 0 where nobody knows.
    pub pid: Pid,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

/// A message that was received or looked at.
#[derive(Debug, Default)]
pub struct Received {
    /// Its bytes, as many as there was room for.
    pub bytes: Vec<u8>,
    /// Its length; with `MSG_TRUNC` asked for, that of the whole message.
    pub len: usize,
    /// The descriptors that came with it, close-on-exec.
    pub rights: Vec<OwnedFd>,
    /// Not all descriptors could be taken (`MSG_CTRUNC`).
    pub incomplete: bool,
    /// The sender (`SCM_CREDENTIALS`), where the socket asks for it.
    pub sender: Option<Sender>,
    /// The sender's address as the kernel writes it, from `sa_family` on; empty where it has none.
    pub address: Vec<u8>,
}

/// Receives one message (`recvmsg(2)`) of up to `room` bytes. Room for everything that may come along is there.
///
/// # Errors
/// Those of `recvmsg(2)`: `EAGAIN` with `MSG_DONTWAIT` when there is none.
pub fn receive(socket: BorrowedFd<'_>, room: usize, flags: i32) -> io::Result<Received> {
    // SCM_MAX_FD descriptors, credentials, a label, a descriptor of the sender, a time.
    let mut control = [0u64; 512];
    let mut address = [0u8; size_of::<libc::sockaddr_storage>()];
    let mut bytes = vec![0u8; room];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeros is a valid msghdr: null pointers with lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    message.msg_name = address.as_mut_ptr().cast();
    message.msg_namelen = address.len() as libc::socklen_t;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in the message is to a live buffer of the length beside it.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    bytes.truncate(len);
    let mut received = Received {
        bytes,
        len,
        incomplete: message.msg_flags & libc::MSG_CTRUNC != 0,
        address: address[..(message.msg_namelen as usize).min(address.len())].to_vec(),
        ..Received::default()
    };
    let control: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let end = (message.msg_controllen as usize).min(control.len());
    sort_control(&control[..end], &mut received);
    Ok(received)
}

/// Takes control messages (`cmsg(3)`) apart.
fn sort_control(mut control: &[u8], received: &mut Received) {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const SCM_PIDFD: i32 = 4;
    let int = |bytes: &[u8]| bytes.try_into().map_or(0, i32::from_ne_bytes);
    while let Some(header) = control.first_chunk::<HEADER>() {
        let len = header
            .first_chunk()
            .map_or(0, |len| usize::from_ne_bytes(*len));
        let Some(data) = control.get(HEADER..len) else {
            break;
        };
        let (level, kind) = (
            int(&header[HEADER - 8..HEADER - 4]),
            int(&header[HEADER - 4..]),
        );
        match kind {
            libc::SCM_RIGHTS | SCM_PIDFD if level == libc::SOL_SOCKET => {
                let fds = data.chunks_exact(4).map(|bytes| {
                    // SAFETY: the kernel has just made this descriptor for this message, and nothing else knows it.
                    unsafe { OwnedFd::from_raw_fd(int(bytes)) }
                });
                // The descriptor of the sending process is not part of the message: it is closed here.
                let fds: Vec<OwnedFd> = fds.collect();
                if kind == libc::SCM_RIGHTS {
                    received.rights.extend(fds);
                }
            }
            libc::SCM_CREDENTIALS if level == libc::SOL_SOCKET => {
                let mut numbers = data.chunks_exact(4).map(int);
                let mut next = || numbers.next().unwrap_or(0);
                received.sender = Some(Sender {
                    pid: Pid(next()),
                    uid: next().cast_unsigned(),
                    gid: next().cast_unsigned(),
                });
            }
            _ => {}
        }
        control = control.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
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

    #[test]
    fn options_are_read_and_set() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
        set_option(one.as_fd(), libc::SO_PASSCRED, 1).expect("settable");
        assert_eq!(option(one.as_fd(), libc::SO_PASSCRED).expect("readable"), 1);
        assert!(!has_filter(one.as_fd()).expect("readable"));
        assert!(option(one.as_fd(), 9999).is_err());
    }

    #[test]
    fn descriptors_and_sender_come_along() {
        let (one, other) = std::os::unix::net::UnixDatagram::pair().expect("a socket pair");
        set_option(one.as_fd(), libc::SO_PASSCRED, 1).expect("settable");
        other.send(b"hello").expect("sent");
        let seen = receive(one.as_fd(), 3, libc::MSG_PEEK | libc::MSG_TRUNC).expect("it is there");
        assert_eq!((&seen.bytes[..], seen.len), (&b"hel"[..], 5));
        assert_eq!(seen.sender.map(|sender| sender.pid), Some(Pid::current()));
        assert!(seen.rights.is_empty() && !seen.incomplete && seen.address.is_empty());
    }
}
