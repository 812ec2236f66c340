//! Who gets the signals of a description (`F_SETOWN`, `F_SETSIG`, `O_ASYNC`).
//!
//! Saved for pipes, FIFOs, terminals, sockets, leased files and everything with `O_ASYNC` set: process or process group, and the signal. A
//! thread that is not its process's first is replaced by its process. An owner outside the job is forgotten.
//!
//! Facts: `F_GETOWN_EX` answers in the caller's numbers. The owner has to exist when it is set, and the kernel keeps the
//! identity of the process that sets it: both want [`super::finish`].

use super::{CaptureContext, Found, Kind, Obstacle, locks, pidfd};
use crate::EngineError;
use crate::error::Context;
use serde::{Deserialize, Serialize};
use stasis_sys::descriptor::{self, Owner};
use stasis_sys::{Pid, procfs};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// The saved owner of a description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Who gets the signals.
    pub target: Target,
    /// Which signal; 0 is SIGIO without particulars.
    pub signal: i32,
    /// `O_ASYNC`: signals are sent.
    pub active: bool,
}

/// Who gets the signals, in the program's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Nobody.
    None,
    /// A process.
    Process(Pid),
    /// A process group.
    Group(Pid),
}

/// `FASYNC` of `asm-generic/fcntl.h`.
const O_ASYNC: u32 = 0o20_000;

/// Captures it; `None` where there is nothing to save.
pub(super) fn capture(
    found: &Found,
    kind: &Kind,
    ctx: &CaptureContext,
) -> Result<Option<State>, Obstacle> {
    let active = found.info.flags & O_ASYNC != 0;
    let keeps = matches!(
        kind,
        Kind::Pipe(_)
            | Kind::Fifo(_)
            | Kind::Terminal(_)
            | Kind::PtyMaster(_)
            | Kind::PtySlave(_)
            | Kind::UnixSocket(_)
            | Kind::Tcp(_)
            | Kind::Udp(_)
    ) || locks::has_lease(found);
    if !active && !keeps {
        return Ok(None);
    }
    let what = || format!("asking for the owner of {found}");
    let duplicate = found.duplicate()?;
    let target = match descriptor::owner(duplicate.as_fd()).context(what)? {
        Owner::None => None,
        Owner::Process(pid) => pidfd::virtual_pid(pid, ctx).map(Target::Process),
        Owner::Thread(tid) => process_of(tid)
            .and_then(|pid| pidfd::virtual_pid(pid, ctx))
            .map(Target::Process),
        Owner::Group(group) => virtual_group(group, ctx).map(Target::Group),
    };
    let state = State {
        target: target.unwrap_or(Target::None),
        signal: descriptor::signal(duplicate.as_fd()).context(what)?,
        active,
    };
    let nothing = state.target == Target::None && state.signal == 0 && !active;
    Ok((!nothing).then_some(state))
}

fn status_field(pid: Pid, name: &str) -> Option<String> {
    let status = procfs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.strip_prefix(':')?.trim().to_owned())
}

fn process_of(tid: Pid) -> Option<Pid> {
    status_field(tid, "Tgid")?.parse().ok().map(Pid)
}

fn virtual_group(group: Pid, ctx: &CaptureContext) -> Option<Pid> {
    ctx.processes.iter().find_map(|process| {
        let numbers = status_field(process.pid, "NSpgid")?;
        let mut numbers = numbers.split_ascii_whitespace();
        let outer: i32 = numbers.next()?.parse().ok()?;
        (outer == group.0).then_some(())?;
        Some(Pid(numbers
            .last()
            .map_or(Some(outer), |n| n.parse().ok())?))
    })
}

/// Sets it, once every process exists. `number` is that of a descriptor of it: signals tell the one by which they were
/// switched on (`si_fd`).
pub(super) fn restore(state: &State, fd: BorrowedFd, number: RawFd) -> Result<(), EngineError> {
    let what = || "setting the owner of a descriptor".to_owned();
    let owner = match state.target {
        Target::None => Owner::None,
        Target::Process(pid) => Owner::Process(pid),
        Target::Group(pid) => Owner::Group(pid),
    };
    descriptor::set_owner(fd, owner).context(what)?;
    if state.signal != 0 {
        descriptor::set_signal(fd, state.signal).context(what)?;
    }
    if state.active {
        let flags = rustix::fs::fcntl_getfl(fd).context(what)?;
        descriptor::set_flags(number, flags.bits() | O_ASYNC).context(what)?;
    }
    Ok(())
}
