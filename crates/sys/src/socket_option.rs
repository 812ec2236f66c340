//! Options of sockets by level and number (`getsockopt(2)`), for levels and values that no crate names.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An option whose value is an int.
///
/// # Errors
/// `ENOPROTOOPT` or `EOPNOTSUPP` where the kernel or this kind of socket does not have it.
pub fn number(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; size_of::<i32>()];
    bytes(socket, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// Sets an option whose value is an int.
///
/// # Errors
/// As for [`number`]; `EPERM`, `EINVAL`, `ERANGE` for a value that may not be set.
pub fn set_number(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_bytes(socket, level, name, &value.to_ne_bytes())
}

/// Fills `value` with as much of an option as there is and as it has room for; what it holds before is given to the kernel,
/// which some options read. Returns the length.
///
/// # Errors
/// As for [`number`]; those of the option.
pub fn bytes(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut len = length(value)?;
    // SAFETY: the pointer is to a live buffer of the length that `len` says, and `len` is live.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match rc {
        0 => Ok((len as usize).min(value.len())),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets an option to these bytes.
///
/// # Errors
/// As for [`set_number`].
pub fn set_bytes(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer is to a live buffer of that length, which the kernel only reads.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            length(value)?,
        )
    };
    match rc {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn length(value: &[u8]) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(value.len()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    #[test]
    fn options_of_other_levels() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let socket = socket.as_fd();
        set_number(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1).expect("settable");
        assert_eq!(
            number(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY).expect("readable"),
            1
        );
        let mut info = [0; 256];
        let len = bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).expect("readable");
        // TCP_LISTEN
        assert!(len > 100 && info[0] == 10);
        assert!(number(socket, libc::IPPROTO_TCP, 9999).is_err());
        assert!(set_bytes(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, &[]).is_err());
    }
}
