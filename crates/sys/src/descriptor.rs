//! Descriptors by number, owners of their signals, and status flags that a restored description gets.
//!
//! These calls act on numbers that no Rust value owns: they are for a process that is being made into somebody else's
//! copy, where the numbers themselves are the state.

use crate::Pid;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn check(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

/// Makes descriptor `to` refer to what `from` refers to (`dup3(2)`), closing what it was. The caller has to know that
/// no value in this process owns `to`.
///
/// # Errors
/// `EBADF` when `to` is beyond the descriptor limit, `EINVAL` when both are the same.
pub fn duplicate_to(from: RawFd, to: RawFd, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: dup3 takes numbers only; that nothing owns `to` is asked of the caller.
    check(unsafe { libc::dup3(from, to, flags) }).map(drop)
}

/// Closes every descriptor from `first` to `last`, both included (`close_range(2)`). The caller has to know that no
/// value in this process owns any of them, or that it will not be used again.
///
/// # Errors
/// `EINVAL` when `first` is above `last`.
pub fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: numbers only; ownership is asked of the caller.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first as u32, last as u32, 0u32) };
    check(rc as libc::c_int).map(drop)
}

/// Whether descriptor `fd` is open in this process.
#[must_use]
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointer.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Whom a description's signals go to (`F_SETOWN_EX` of `fcntl(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody.
    None,
    /// A thread.
    Thread(Pid),
    /// A process.
    Process(Pid),
    /// A process group.
    Group(Pid),
}

/// `struct f_owner_ex` of `asm-generic/fcntl.h`.
#[repr(C)]
struct OwnerEx {
    kind: libc::c_int,
    pid: libc::pid_t,
}

const F_SETOWN_EX: libc::c_int = 15;
const F_GETOWN_EX: libc::c_int = 16;
const F_SETSIG: libc::c_int = 10;
const F_GETSIG: libc::c_int = 11;

/// Who gets the signals, in the numbers of the calling process's pid namespace.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn owner(fd: BorrowedFd<'_>) -> io::Result<Owner> {
    let mut owner = OwnerEx { kind: 0, pid: 0 };
    // SAFETY: the pointer is to a live structure that the kernel fills.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) })?;
    Ok(match (owner.kind, owner.pid) {
        (_, 0) => Owner::None,
        (0, pid) => Owner::Thread(Pid(pid)),
        (1, pid) => Owner::Process(Pid(pid)),
        (_, pid) => Owner::Group(Pid(pid)),
    })
}

/// Says who gets the signals.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub fn set_owner(fd: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
    let owner = match owner {
        Owner::None => OwnerEx { kind: 1, pid: 0 },
        Owner::Thread(pid) => OwnerEx {
            kind: 0,
            pid: pid.0,
        },
        Owner::Process(pid) => OwnerEx {
            kind: 1,
            pid: pid.0,
        },
        Owner::Group(pid) => OwnerEx {
            kind: 2,
            pid: pid.0,
        },
    };
    // SAFETY: the pointer is to a live structure that the kernel reads.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) }).map(drop)
}

/// The signal that is sent when input or output becomes possible; 0 is SIGIO without particulars.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn signal(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: F_GETSIG takes no pointer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })
}

/// Sets that signal.
///
/// # Errors
/// `EINVAL` for a number that is no signal.
pub fn set_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: F_SETSIG takes a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

/// Closes every descriptor of the process from `first` upwards (`close_range(2)`).
///
/// For a process that is about to be saved and wants to hold nothing. Whoever calls this has given up every owner of
/// such a descriptor (`OwnedFd`, `File`) before, or never uses and never drops it again.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers; that no owner is left is the documented duty of the caller.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The numbers of all open descriptors of the calling process.
///
/// # Errors
/// When `/proc/self/fd` cannot be read.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// Closes a descriptor by its number, in a process that gives up whatever owned it.
pub fn close(number: RawFd) {
    // SAFETY: close takes no pointers; that nothing uses the descriptor afterwards is what the caller wants.
    unsafe { libc::close(number) };
}

/// The descriptors above the standard ones that are not close-on-exec: what the process was started with, as everything that
/// is opened since has that flag.
fn inherited_numbers() -> Vec<RawFd> {
    let mut numbers = open_descriptors().unwrap_or_default();
    numbers.retain(|&fd| {
        // SAFETY: F_GETFD takes no pointer.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        fd > 2 && flags >= 0 && flags & libc::FD_CLOEXEC == 0
    });
    numbers.sort_unstable();
    numbers
}

/// Duplicates, close-on-exec, of what the process was started with beside the standard streams, each with its number.
#[must_use]
pub fn inherited() -> Vec<(RawFd, OwnedFd)> {
    let numbers = inherited_numbers().into_iter();
    numbers
        .filter_map(|fd| {
            // SAFETY: F_DUPFD_CLOEXEC takes a number.
            let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }).ok()?;
            // SAFETY: the call has just made this descriptor, and nothing else owns it.
            Some((fd, unsafe { OwnedFd::from_raw_fd(copy) }))
        })
        .collect()
}

/// Closes what the process was started with beside the standard streams. The caller has to know that everything else has the
/// close-on-exec flag, and that it passes nothing on.
pub fn close_inherited() {
    for fd in inherited_numbers() {
        close(fd);
    }
}

/// Lets descriptor `fd` of this process live on through exec.
///
/// # Errors
/// `EBADF`.
pub fn keep_over_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: numbers only; nothing is opened or closed.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
}

/// Sets the status flags of a descriptor (`F_SETFL`), by its number, which `O_ASYNC` remembers.
///
/// # Errors
/// `EBADF`; `EPERM` for a flag that may not be set.
pub fn set_flags(fd: RawFd, flags: u32) -> io::Result<()> {
    // SAFETY: the command takes a number; one that is no open descriptor is an error.
    match unsafe { libc::fcntl(fd, libc::F_SETFL, flags as libc::c_int) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn owner_and_signal_come_back() {
        let file = File::open("/dev/null").expect("opens");
        assert_eq!(owner(file.as_fd()).expect("readable"), Owner::None);
        set_owner(file.as_fd(), Owner::Process(Pid::current())).expect("settable");
        set_signal(file.as_fd(), 34).expect("settable");
        assert_eq!(
            owner(file.as_fd()).expect("readable"),
            Owner::Process(Pid::current())
        );
        assert_eq!(signal(file.as_fd()).expect("readable"), 34);
    }
}
