//! How processes get their ids where they can be chosen, and which ids are in use.
//!
//! Rests on: `set_tid` of clone3(2) needs CAP_CHECKPOINT_RESTORE over the pid namespace, which the maker of a user namespace has in
//! there. Without it, see [`super::burn`].

use super::Strategy;
use stasis_sys::Pid;
use stasis_sys::process::{self, Fork};
use std::collections::BTreeSet;
use std::io;

/// Where processes get their ids from.
#[derive(Debug)]
pub struct IdSource {
    strategy: Strategy,
    wanted: BTreeSet<Pid>,
}

impl IdSource {
    /// For a tree that needs the ids `wanted`.
    #[must_use]
    pub fn new(strategy: Strategy, wanted: BTreeSet<Pid>) -> IdSource {
        IdSource { strategy, wanted }
    }

    /// Whether the job stays in the process group from which it is restarted, where the outer one was meant.
    #[must_use]
    pub fn keeps_outer_group(&self) -> bool {
        self.strategy != Strategy::Namespaces
    }

    /// Whether ids have to be waited for: [`IdSource::fork`] works with any of them otherwise.
    #[must_use]
    pub fn are_burnt(&self) -> bool {
        self.strategy == Strategy::Burn
    }

    /// Forks a child with the id `want`. Where ids are burnt, `None`: it got another id, and is gone.
    ///
    /// # Errors
    /// `EEXIST` when it is taken; others of clone3(2).
    pub fn fork(&self, want: Pid) -> io::Result<Option<Fork>> {
        if !self.are_burnt() {
            return process::fork_with(Some(want), 0).map(Some);
        }
        match process::fork()? {
            Fork::Child if process::own_id() != want => process::exit_now(0),
            Fork::Parent(pid) if pid != want => {
                process::wait(pid, 0)?;
                Ok(None)
            }
            made => Ok(Some(made)),
        }
    }

    /// Forks a child with any id that is not wanted.
    ///
    /// # Errors
    /// Those of fork(2).
    pub fn fork_any(&self) -> io::Result<Fork> {
        match self.strategy {
            Strategy::Namespaces => self.fork_high(),
            Strategy::Privileged | Strategy::Burn => loop {
                match process::fork()? {
                    Fork::Child if self.wanted.contains(&process::own_id()) => process::exit_now(0),
                    Fork::Parent(pid) if self.wanted.contains(&pid) => {
                        process::wait(pid, 0)?;
                    }
                    made => return Ok(made),
                }
            },
        }
    }

    /// In a fresh namespace the kernel would start at low numbers, which the program may need.
    fn fork_high(&self) -> io::Result<Fork> {
        let mut id = Pid(HIGHEST_SPARE);
        loop {
            if self.wanted.contains(&id) {
                id.0 -= 1;
                continue;
            }
            match process::fork_with(Some(id), 0) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => id.0 -= 1,
                other => return other,
            }
        }
    }
}

/// Below the smallest `pid_max` that hosts set (32768).
const HIGHEST_SPARE: i32 = 32_000;

/// Which of `ids` are in use on this host.
#[must_use]
pub fn taken<'a>(ids: impl IntoIterator<Item = &'a Pid>) -> Vec<Pid> {
    // Threads have no entry in /proc's listing, but can be looked up.
    ids.into_iter()
        .copied()
        .filter(|id| std::path::Path::new(&format!("/proc/{id}")).exists())
        .collect()
}
