//! Getting ids back: which strategies this host allows, and how a process or thread gets a wanted id under each.
//!
//! Rests on: `set_tid` of clone3(2) needs CAP_CHECKPOINT_RESTORE over the pid namespace, which the maker of a user namespace has in
//! there; without it the kernel hands out ids in a cycle (`kernel/pid.c`), and `/proc/sys/kernel/ns_last_pid` shows where it stands.

use super::Strategy;
use stasis_sys::board::Board;
use stasis_sys::namespace;
use stasis_sys::process::{self, Fork};
use stasis_sys::{Pid, procfs};
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

    /// Forks a child with the id `want`.
    ///
    /// # Errors
    /// `EEXIST` when it is taken; others of clone3(2).
    pub fn fork(&self, want: Pid, board: &Board) -> io::Result<Fork> {
        match self.strategy {
            Strategy::Privileged | Strategy::Namespaces => process::fork_with(Some(want), 0),
            Strategy::Burn => self.burn(want, board),
        }
    }

    /// Forks a child with any id that is not wanted.
    ///
    /// # Errors
    /// Those of fork(2).
    pub fn fork_any(&self) -> io::Result<Fork> {
        if self.strategy == Strategy::Namespaces {
            // In a fresh namespace the kernel would start at low numbers, which the program may need.
            let mut id = Pid(HIGHEST_SPARE);
            while self.wanted.contains(&id) {
                id.0 -= 1;
            }
            loop {
                match process::fork_with(Some(id), 0) {
                    Err(error) if error.raw_os_error() == Some(libc::EEXIST) => id.0 -= 1,
                    other => return other,
                }
            }
        }
        process::fork()
    }

    /// Forks children that end at once until the next one gets the wanted id. One process at a time does that.
    fn burn(&self, want: Pid, board: &Board) -> io::Result<Fork> {
        board.lock();
        let outcome = burn_rounds(want);
        if !matches!(outcome, Ok(Fork::Child)) {
            board.unlock();
        }
        outcome
    }
}

fn burn_rounds(want: Pid) -> io::Result<Fork> {
    for _ in 0..BURN_ROUNDS {
        burn_until(want)?;
        match process::fork()? {
            // Somebody else on this host was quicker.
            Fork::Child if process::own_id() != want => process::exit_now(0),
            Fork::Parent(pid) if pid != want => {
                let _ = process::wait(pid, 0);
            }
            made => return Ok(made),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EEXIST))
}

/// Below the smallest `pid_max` that hosts set (32768).
const HIGHEST_SPARE: i32 = 32_000;
const BURN_ROUNDS: usize = 64;

/// The last id that the kernel handed out in this pid namespace.
///
/// # Errors
/// When `/proc/sys/kernel/ns_last_pid` cannot be read (no CONFIG_CHECKPOINT_RESTORE).
pub fn last_id() -> io::Result<Pid> {
    let text = procfs::read_to_string("/proc/sys/kernel/ns_last_pid")?;
    text.trim().parse().map(Pid).map_err(io::Error::other)
}

/// Makes children until the kernel's counter stands right before `want`.
///
/// # Errors
/// Those of fork(2); when the host has no `/proc/sys/kernel/ns_last_pid`.
pub fn burn_until(want: Pid) -> io::Result<()> {
    if last_id()?.0 == want.0 - 1 {
        return Ok(());
    }
    // The number right before may be in use: the counter then steps over it.
    let mut before = i32::MAX;
    loop {
        let spent = process::spend_id()?.0;
        if spent == want.0 - 1 || (before < want.0 && spent > want.0) {
            return Ok(());
        }
        before = spent;
        if spent == want.0 - 2 && std::path::Path::new(&format!("/proc/{}", want.0 - 1)).exists() {
            return Ok(());
        }
    }
}

/// Whether this process may choose ids where it is.
#[must_use]
pub fn may_choose_ids() -> bool {
    const CAP_CHECKPOINT_RESTORE: u32 = 40;
    const CAP_SYS_ADMIN: u32 = 21;
    let status = procfs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = crate::tree::status_field(&status, "CapEff")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    effective
        .is_some_and(|set| set >> CAP_CHECKPOINT_RESTORE & 1 == 1 || set >> CAP_SYS_ADMIN & 1 == 1)
}

/// Tries, in a child, whether user, pid, mount and time namespaces can be made.
#[must_use]
pub fn namespaces_work() -> bool {
    let attempt = || -> io::Result<()> {
        namespace::unshare(namespace::USER | namespace::MOUNT)?;
        namespace::unshare(namespace::PID)
    };
    match process::fork() {
        Ok(Fork::Child) => process::exit_now(i32::from(attempt().is_err())),
        Ok(Fork::Parent(pid)) => {
            matches!(process::wait(pid, 0), Ok(process::Waited::Child(_, status)) if status.exit_code() == Some(0))
        }
        Err(_) => false,
    }
}

/// Which of `ids` are in use on this host.
#[must_use]
pub fn taken<'a>(ids: impl IntoIterator<Item = &'a Pid>) -> Vec<Pid> {
    // Threads have no entry in /proc's listing, but can be looked up.
    ids.into_iter()
        .copied()
        .filter(|id| std::path::Path::new(&format!("/proc/{id}")).exists())
        .collect()
}
