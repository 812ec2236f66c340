//! Signals: masks, descriptors that deliver them, sending.

use crate::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

/// A set of signals as the kernel keeps it: bit n-1 stands for signal n (`sigset_t` of `rt_sigprocmask(2)`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// Every signal. The kernel itself leaves SIGKILL and SIGSTOP out.
    pub const ALL: SignalSet = SignalSet(u64::MAX);
    /// No signal.
    pub const EMPTY: SignalSet = SignalSet(0);

    /// Whether `signal` is in the set.
    #[must_use]
    pub fn contains(self, signal: i32) -> bool {
        (1..=64).contains(&signal) && self.0 >> (signal - 1) & 1 == 1
    }

    /// The set with `signal` added.
    #[must_use]
    pub const fn with(self, signal: i32) -> SignalSet {
        SignalSet(self.0 | 1 << (signal - 1))
    }

    /// The set with `signal` taken out.
    #[must_use]
    pub const fn without(self, signal: i32) -> SignalSet {
        SignalSet(self.0 & !(1 << (signal - 1)))
    }

    /// The signals of the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = i32> {
        (1..=64).filter(move |signal| self.contains(*signal))
    }
}

const SET_BYTES: usize = size_of::<u64>();

/// Sets the calling thread's signal mask and returns the former one (`rt_sigprocmask(2)`).
///
/// # Errors
/// The kernel's, none in practice.
pub fn set_mask(set: SignalSet) -> io::Result<SignalSet> {
    let mut old = 0u64;
    // SAFETY: both pointers are to live u64 values, and the size given is theirs.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const set.0,
            &raw mut old,
            SET_BYTES,
        )
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(SignalSet(old))
    }
}

/// Whether a blocked signal waits for the calling process or thread (`rt_sigpending(2)`).
#[must_use]
pub fn is_pending(signal: i32) -> bool {
    let mut pending = 0u64;
    // SAFETY: the pointer is to a live u64 value, and the size given is its own.
    let rc = unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, SET_BYTES) };
    rc == 0 && SignalSet(pending).contains(signal)
}

/// Sets `signal`'s action to the default one (`sigaction(2)`, `SIG_DFL`).
///
/// # Errors
/// `EINVAL` for a number that is no signal, SIGKILL or SIGSTOP.
pub fn set_default(signal: i32) -> io::Result<()> {
    disposition(signal, libc::SIG_DFL)
}

/// Ignores `signal` (`sigaction(2)`, `SIG_IGN`).
///
/// # Errors
/// `EINVAL` for a number that is no signal, SIGKILL or SIGSTOP.
pub fn ignore(signal: i32) -> io::Result<()> {
    disposition(signal, libc::SIG_IGN)
}

fn disposition(signal: i32, action: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: neither SIG_DFL nor SIG_IGN runs code of ours, so no handler can be unsound.
    let rc = unsafe { libc::signal(signal, action) };
    if rc == libc::SIG_ERR {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends `signal` to the process `pid` (`kill(2)`); negative for a process group.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn send(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes no pointers.
    let rc = unsafe { libc::kill(pid.0, signal) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends `signal` with `value` attached to the process `pid` (`sigqueue(3)`).
///
/// # Errors
/// `ESRCH`, `EPERM`, `EAGAIN` when the receiver's queue is full.
pub fn send_value(pid: Pid, signal: i32, value: i32) -> io::Result<()> {
    let value = libc::sigval {
        sival_ptr: value as usize as *mut libc::c_void,
    };
    // SAFETY: the value is carried as a number and never dereferenced here.
    let rc = unsafe { libc::sigqueue(pid.0, signal, value) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Waits for one of the signals of `set`, which the caller has blocked, and returns its number, the code of its
/// origin, the sender and the attached value (`rt_sigtimedwait(2)`).
///
/// # Errors
/// `EINTR`; `EAGAIN` when `timeout` passes first.
pub fn wait(set: SignalSet, timeout: Option<std::time::Duration>) -> io::Result<Received> {
    // SAFETY: siginfo_t is plain data for which all zeros is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let limit = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(t.subsec_nanos() as i32),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: all pointers are to live values of the types that the call expects, or null where it allows that.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const set.0,
            &raw mut info,
            limit,
            SET_BYTES,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel filled `info`; the fields read exist for every code that user processes send.
    let (sender, value) = unsafe { (info.si_pid(), info.si_value().sival_ptr as usize as i32) };
    Ok(Received {
        signal: rc as i32,
        code: info.si_code,
        sender: Pid(sender),
        value,
    })
}

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// `si_code`: `SI_USER` (0) for kill(2), `SI_KERNEL` (0x80) for the terminal driver, ...
    pub code: i32,
    /// Who sent it, 0 where that is not known. Meaningless for signals of the kernel.
    pub sender: Pid,
    /// The attached value (`sigqueue(3)`); 0 otherwise. For SIGCHLD, the child's status.
    pub value: i32,
}

/// A descriptor from which blocked signals are read (`signalfd(2)`), non-blocking and close-on-exec.
#[derive(Debug)]
pub struct SignalFd(File);

impl SignalFd {
    /// Opens one for `set`, which the caller blocks (see [`set_mask`]).
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new(set: SignalSet) -> io::Result<SignalFd> {
        // SAFETY: the pointer is to a live u64 and the size given is its own.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_signalfd4,
                -1,
                &raw const set.0,
                SET_BYTES,
                libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
        Ok(SignalFd(unsafe { File::from_raw_fd(fd as i32) }))
    }

    /// The next signal that is pending, or none.
    ///
    /// # Errors
    /// The kernel's, apart from `EAGAIN`.
    pub fn read(&self) -> io::Result<Option<Received>> {
        let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
        match (&self.0).read(&mut buffer) {
            Ok(n) if n == buffer.len() => {
                let word = |at: usize| {
                    i32::from_ne_bytes([buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]])
                };
                // Offsets of `struct signalfd_siginfo`: signo, errno, code, pid, uid, fd, tid, band, overrun,
                // trapno, status, int.
                Ok(Some(Received {
                    signal: word(0),
                    code: word(8),
                    sender: Pid(word(12)),
                    value: word(44),
                }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_added() {
        let set = SignalSet::EMPTY.with(libc::SIGINT).with(64);
        assert!(set.contains(libc::SIGINT) && set.contains(64) && !set.contains(libc::SIGTERM));
        assert_eq!(
            set.without(64).iter().collect::<Vec<_>>(),
            vec![libc::SIGINT]
        );
    }
}
