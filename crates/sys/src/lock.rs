//! Record locks: those of a process (`F_SETLK`) and those of an open file description (`F_OFD_SETLK`), see
//! `fcntl_locking(2)`. None of these calls waits.

use crate::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// What a lock keeps others from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Others may hold read locks, but no write lock.
    Read,
    /// Others may hold none.
    Write,
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes; 0 is everything from `start` on, however far the file grows.
    pub len: u64,
}

fn request(access: Access, range: Range) -> io::Result<libc::flock> {
    let offset = |n: u64| libc::off_t::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
    // SAFETY: `flock` is a C structure of integers, for which zero is a value; an OFD lock needs l_pid to be 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = match access {
        Access::Read => libc::F_RDLCK,
        Access::Write => libc::F_WRLCK,
    } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = offset(range.start)?;
    lock.l_len = offset(range.len)?;
    Ok(lock)
}

fn call(fd: RawFd, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: `lock` is a valid `struct flock`, which these commands read and, for F_OFD_GETLK, write; a number that is no
    // open descriptor is an error.
    let rc = unsafe { libc::fcntl(fd, command, std::ptr::from_mut(lock)) };
    if rc == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes a lock that belongs to the calling process. By number, because an owned duplicate would drop the lock when it is
/// closed.
///
/// # Errors
/// `EAGAIN` or `EACCES` when somebody else's lock is in the way; `EBADF` when the descriptor is not open for that access.
pub fn set_process(fd: RawFd, access: Access, range: Range) -> io::Result<()> {
    call(fd, libc::F_SETLK, &mut request(access, range)?)
}

/// Takes a lock that belongs to the open file description.
///
/// # Errors
/// As [`set_process`].
pub fn set_description(fd: impl AsFd, access: Access, range: Range) -> io::Result<()> {
    call(
        fd.as_fd().as_raw_fd(),
        libc::F_OFD_SETLK,
        &mut request(access, range)?,
    )
}

/// Who holds a lock, process's or description's, that would be in the way of one that belongs to this description; the
/// process is -1 for a lock of another description. Nothing is locked.
///
/// # Errors
/// `EBADF` and the like.
pub fn conflict(fd: impl AsFd, access: Access, range: Range) -> io::Result<Option<Pid>> {
    let mut lock = request(access, range)?;
    call(fd.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &mut lock)?;
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(Pid(lock.l_pid)))
}

/// Whether any process of this host has the file open for writing, or mapped shared and writable. `fd` is a description of
/// the caller's own, open for reading only. Answered by asking for a read lease, which is given back at once
/// (`fcntl(2)`, F_SETLEASE).
///
/// # Errors
/// `EACCES` when the file belongs to another user; `EINVAL` when its file system has no leases.
pub fn is_open_for_writing(fd: impl AsFd) -> io::Result<bool> {
    let fd = fd.as_fd().as_raw_fd();
    let control = |command: libc::c_int, argument: libc::c_int| {
        // SAFETY: these commands take an integer, and the descriptor is open while it is borrowed.
        match unsafe { libc::fcntl(fd, command, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // Whoever opens the file for writing in between makes the kernel send a signal: one that does nothing by default.
    const F_SETSIG: libc::c_int = 10;
    control(F_SETSIG, libc::SIGURG)?;
    match control(libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => control(libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Takes a read lease (`F_SETLEASE`): whoever opens the file for writing waits until it is given up.
///
/// # Errors
/// `EAGAIN` where the file is open for writing, `EACCES` where it is another user's.
pub fn take_read_lease(fd: RawFd) -> io::Result<()> {
    const F_SETLEASE: libc::c_int = 1024;
    // SAFETY: the command takes a number; one that is no open descriptor is an error.
    let rc = unsafe { libc::fcntl(fd, F_SETLEASE, libc::F_RDLCK) };
    if rc == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_writer_is_noticed() {
        let path = std::env::temp_dir().join(format!("stasis-lease-test-{}", std::process::id()));
        let writer = File::create(&path).expect("a file");
        let reader = File::open(&path).expect("the same file");
        std::fs::remove_file(&path).expect("unlink");
        match is_open_for_writing(&reader) {
            Ok(open) => assert!(open),
            Err(error) => return eprintln!("skipped: no leases here: {error}"),
        }
        drop(writer);
        assert!(!is_open_for_writing(&reader).expect("asked before"));
    }

    #[test]
    fn a_lock_of_one_description_is_in_the_way_of_another() {
        let path = std::env::temp_dir().join(format!("stasis-lock-test-{}", std::process::id()));
        let one = File::create(&path).expect("a file");
        let other = File::create(&path).expect("the same file");
        std::fs::remove_file(&path).expect("unlink");
        let range = Range { start: 10, len: 5 };
        assert_eq!(conflict(&other, Access::Write, range).expect("asked"), None);
        set_description(&one, Access::Write, range).expect("free");
        assert_eq!(
            conflict(&other, Access::Write, Range { start: 0, len: 0 }).expect("asked"),
            Some(Pid(-1))
        );
        assert!(set_description(&other, Access::Write, range).is_err());
        assert!(set_process(other.as_raw_fd(), Access::Write, range).is_err());
        set_process(
            other.as_raw_fd(),
            Access::Write,
            Range { start: 15, len: 0 },
        )
        .expect("beside it");
        let beyond = u64::MAX;
        assert!(
            set_process(
                other.as_raw_fd(),
                Access::Write,
                Range {
                    start: beyond,
                    len: 0
                }
            )
            .is_err()
        );
    }
}
