//! A running job as the engine knows it.

use crate::descriptors::{Inherited, Outside};
use crate::file_policy::FileRecord;
use crate::tracking::Tracking;
use rustix::io::fcntl_dupfd_cloexec;
use stasis_sys::Pid;
use std::os::fd::{AsFd, OwnedFd};

/// One process tree under a keeper, started by [`crate::keeper::launch`] or [`crate::restart::execute`].
#[derive(Debug)]
pub struct Job {
    /// The keeper: parent of the root, adopter of orphans (the supervisor's number).
    pub keeper: Pid,
    /// The first process of the program (the supervisor's number). It may have ended while descendants live on.
    pub root: Pid,
    /// The root as the program sees it.
    pub virtual_root: Pid,
    /// The job's own standard input, output and error: the open file descriptions that the program got.
    pub stdio: [Option<Outside>; 3],
    /// What else it was started with that leads outside.
    pub inherited: Vec<Inherited>,
    /// From the keeper: see [`crate::keeper::Event`]. One event a message.
    pub events: OwnedFd,
    /// The processes that had asked for a checkpoint when this job was saved and wait to be told that it is done (the
    /// supervisor's numbers).
    pub requesters: Vec<Pid>,
    /// Processes that are to be told that their terminal's window has another size than when they were saved (the
    /// supervisor's numbers).
    pub resized: Vec<Pid>,
    /// What is remembered from one checkpoint to the next.
    pub memory: Memory,
}

/// What one checkpoint must know of those before it.
#[derive(Debug, Default)]
pub struct Memory {
    /// Processes below the keeper that are not the program's.
    pub ours: Vec<Pid>,
    /// Threads that slept with a time limit at the last checkpoint, and since when.
    pub sleeping: std::collections::HashMap<Pid, crate::timed_calls::Sleeping>,
    /// The files of the last checkpoint: what has not changed since is not read again.
    pub files: Vec<FileRecord>,
    /// What has been written since the last checkpoint.
    pub tracking: Tracking,
}

/// Duplicates of the calling process's standard descriptors; `None` for one that is closed.
#[must_use]
pub fn own_stdio() -> [Option<OwnedFd>; 3] {
    let stdio = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    stdio.map(|fd| fcntl_dupfd_cloexec(fd, 3).ok())
}

/// How these streams are recognised later.
#[must_use]
pub(crate) fn remembered(stdio: &[Option<OwnedFd>; 3]) -> [Option<Outside>; 3] {
    let one = |fd: &Option<OwnedFd>| Outside::of(fd.as_ref()?.as_fd()).ok();
    stdio.each_ref().map(one)
}
