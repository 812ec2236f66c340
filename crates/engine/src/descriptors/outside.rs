//! Descriptions that the job shares with the world outside, and how they are recognised at a checkpoint.
//!
//! Pipes, FIFOs and sockets are not held for that: whoever is at their other end has to see it when the program closes its own.
//! An `O_PATH` descriptor stands in for them. It opens nothing, and keeps the inode, so that its number is not given away
//! while we compare it.
//!
//! Facts: `O_PATH` leaves readers and writers uncounted (`open(2)`; the file operations of `fs/pipe.c` are never called). A
//! socket has one description. A pipe has several where it was opened through `/proc`, and only those have `O_LARGEFILE`.

use super::capture::is_same;
use super::fdinfo::FdInfo;
use super::{Found, ProcessView};
use crate::EngineError;
use crate::error::Context;
use rustix::fs::{FileType, Mode, OFlags};
use stasis_sys::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// One such description.
#[derive(Debug)]
pub struct Outside {
    fd: OwnedFd,
    inode: (u64, u64),
    flags: u32,
    /// `fd` is a duplicate, not a stand-in.
    held: bool,
}

const ACCESS_AND_OPENING: u32 = 0o100_003;

impl Outside {
    /// Remembers what a descriptor of this process refers to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Outside> {
        let flags = rustix::fs::fcntl_getfl(fd)?.bits();
        if is_shared(rustix::fs::fstat(fd)?.st_mode) {
            Outside::named(&format!("/proc/self/fd/{}", fd.as_raw_fd()), flags)
        } else {
            Outside::held(fd.try_clone_to_owned()?, flags)
        }
    }

    /// Remembers what a descriptor of another process refers to.
    ///
    /// # Errors
    /// The kernel's, when the process or the descriptor is gone.
    pub(crate) fn in_process(pid: Pid, fd: RawFd) -> Result<Outside, EngineError> {
        let path = format!("/proc/{pid}/fd/{fd}");
        let what = || format!("looking at {path}");
        let info = FdInfo::read(pid, fd).context(what)?;
        let stat = rustix::fs::stat(path.as_str()).context(what)?;
        if is_shared(stat.st_mode) {
            Outside::named(&path, info.flags).context(what)
        } else {
            let process = ProcessView {
                pid,
                virtual_pid: pid,
                name: String::new(),
            };
            let duplicate = super::handles::duplicate(&process, fd).context(what)?;
            Outside::held(duplicate, info.flags).context(what)
        }
    }

    fn named(path: &str, flags: u32) -> io::Result<Outside> {
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Outside {
            fd,
            inode: (stat.st_dev, stat.st_ino),
            flags,
            held: false,
        })
    }

    fn held(fd: OwnedFd, flags: u32) -> io::Result<Outside> {
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Outside {
            fd,
            inode: (stat.st_dev, stat.st_ino),
            flags,
            held: true,
        })
    }

    /// Device and inode.
    #[must_use]
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }

    /// Whether a description of the tree is this very one.
    #[must_use]
    pub fn is(&self, found: &Found) -> bool {
        if self.inode != found.inode() {
            false
        } else if self.held {
            is_same(&self.fd, found)
        } else {
            (self.flags ^ found.info.flags) & ACCESS_AND_OPENING == 0
        }
    }
}

impl AsFd for Outside {
    /// A descriptor to ask about it: of a pipe or socket it opens nothing.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether somebody at another end notices who has it open.
fn is_shared(mode: u32) -> bool {
    matches!(
        FileType::from_raw_mode(mode),
        FileType::Fifo | FileType::Socket
    )
}
