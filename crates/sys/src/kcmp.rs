//! Whether descriptors of two processes are the same open file description (`kcmp(2)`).

use crate::Pid;
use std::cmp::Ordering;
use std::io;
use std::os::fd::RawFd;

const KCMP_FILE: libc::c_int = 0;
const KCMP_EPOLL_TFD: libc::c_int = 7;

/// Compares the open file descriptions behind two descriptors. The order has no meaning, but is total and lasts as
/// long as the descriptions do, so that n descriptors are sorted in n log n comparisons.
///
/// # Errors
/// `EBADF` or `ESRCH` when a descriptor or process is gone, `EPERM` when one may not be looked at, `ENOSYS` where the
/// kernel lacks the call.
pub fn files(a: (Pid, RawFd), b: (Pid, RawFd)) -> io::Result<Ordering> {
    // SAFETY: no pointers are passed; a KCMP_FILE call takes two ids and two descriptor numbers.
    let rc = unsafe { libc::syscall(libc::SYS_kcmp, a.0.0, b.0.0, KCMP_FILE, a.1, b.1) };
    order(rc)
}

/// Compares what two threads undo of System V semaphores when they end (`KCMP_SYSVSEM`): equal where they share it, and where
/// neither has anything of the kind.
///
/// # Errors
/// As [`files`].
pub fn semaphore_undo(a: Pid, b: Pid) -> io::Result<Ordering> {
    const KCMP_SYSVSEM: libc::c_int = 6;
    // SAFETY: no pointers are passed.
    order(unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_SYSVSEM, 0, 0) })
}

/// An entry of an epoll set, as `kcmp(2)` finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollEntry {
    /// The process that holds the set.
    pub pid: Pid,
    /// The set's descriptor there.
    pub set: RawFd,
    /// The number that the target had when it was added.
    pub target: RawFd,
    /// How many entries of the same number come before it in the set's fdinfo.
    pub occurrence: u32,
}

/// `struct kcmp_epoll_slot` of `linux/kcmp.h`.
#[repr(C)]
struct Slot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

/// Whether descriptor `fd` of `pid` is what an entry of an epoll set watches.
///
/// # Errors
/// As [`files`], and `ENOENT` when there is no such entry.
pub fn epoll_target(pid: Pid, fd: RawFd, entry: EpollEntry) -> io::Result<Ordering> {
    let slot = Slot {
        efd: entry.set as u32,
        tfd: entry.target as u32,
        toff: entry.occurrence,
    };
    // SAFETY: the last argument points to a live structure of the layout that the kernel reads.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            pid.0,
            entry.pid.0,
            KCMP_EPOLL_TFD,
            fd,
            &raw const slot,
        )
    };
    order(rc)
}

fn order(rc: libc::c_long) -> io::Result<Ordering> {
    match rc {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        n if n < 0 => Err(io::Error::last_os_error()),
        n => Err(io::Error::other(format!("kcmp returned {n}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_duplicate_is_the_same_and_a_second_open_is_not() {
        let me = Pid::current();
        let one = File::open("/dev/null").expect("opens");
        let same = one.try_clone().expect("duplicates");
        let other = File::open("/dev/null").expect("opens");
        let compare = |a: &File, b: &File| {
            files((me, a.as_raw_fd()), (me, b.as_raw_fd())).expect("kcmp works on oneself")
        };
        assert_eq!(compare(&one, &same), Ordering::Equal);
        assert_ne!(compare(&one, &other), Ordering::Equal);
        assert_eq!(compare(&one, &other), compare(&other, &one).reverse());
    }
}
