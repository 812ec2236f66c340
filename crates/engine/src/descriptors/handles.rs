//! Duplicates of descriptors of other processes (`pidfd_getfd(2)`).
//!
//! A process is taken hold of once for all descriptors of it that follow one another, as long as there is a [`Hold`]: descriptors
//! are looked at in the order of their processes.

use super::ProcessView;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use stasis_sys::Pid;
use std::cell::RefCell;
use std::os::fd::{OwnedFd, RawFd};

thread_local! {
    /// The process that this thread has taken hold of, where it may.
    static HELD: RefCell<Option<Option<(Pid, OwnedFd)>>> = const { RefCell::new(None) };
}

/// While it lives, this thread keeps hold of the process that it has duplicated a descriptor of last. One within another
/// changes nothing.
pub(super) struct Hold {
    outermost: bool,
}

impl Hold {
    pub fn begin() -> Hold {
        HELD.with_borrow_mut(|held| {
            let outermost = held.is_none();
            held.get_or_insert_default();
            Hold { outermost }
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.outermost {
            HELD.set(None);
        }
    }
}

/// `PIDFD_THREAD` (Linux 6.9 and newer).
const PIDFD_THREAD: u32 = 0o200;

fn open(process: Pid) -> rustix::io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(process.0).ok_or(Errno::SRCH)?;
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        // The process goes by the id of a living thread, its first one having ended.
        Err(Errno::NOENT | Errno::INVAL) => {
            rustix::process::pidfd_open(pid, PidfdFlags::from_bits_retain(PIDFD_THREAD))
        }
        opened => opened,
    }
}

/// A duplicate of a descriptor of another process.
pub(super) fn duplicate(process: &ProcessView, fd: RawFd) -> rustix::io::Result<OwnedFd> {
    let get = |pidfd: &OwnedFd| rustix::process::pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty());
    HELD.with_borrow_mut(|held| match held {
        None => get(&open(process.pid)?),
        Some(Some((pid, pidfd))) if *pid == process.pid => get(pidfd),
        Some(held) => {
            let (_, pidfd) = held.insert((process.pid, open(process.pid)?));
            get(pidfd)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn holds() -> bool {
        HELD.with_borrow(|held| matches!(held, Some(Some(_))))
    }

    #[test]
    fn a_hold_within_another_changes_nothing() {
        let file = std::fs::File::open("/dev/null").expect("it is there");
        let own = ProcessView {
            pid: Pid::current(),
            virtual_pid: Pid::current(),
            name: String::new(),
        };
        let look = || duplicate(&own, file.as_raw_fd()).expect("one's own");
        look();
        assert!(!holds());
        let outer = Hold::begin();
        look();
        assert!(holds());
        drop(Hold::begin());
        assert!(holds());
        look();
        drop(outer);
        assert!(!holds());
        look();
    }
}
