//! Descriptors of processes (`pidfd_open(2)`).
//!
//! Saved: which process of the job, living or a zombie, or that it is gone (with its exit code where the kernel keeps
//! it), status flags. Not saved: one of a process outside the job, or of a single thread (`PIDFD_THREAD`) that is not
//! its process's first: refused.
//!
//! Facts: fdinfo tells the process in the number of every pid namespace, -1 when it was reaped. A process's descriptor
//! can only be made when the process exists: [`super::finish`] makes it in the first process that holds it and sends it
//! to the others.

use super::{CaptureContext, Found, Obstacle};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use crate::tree::Stat;
use rustix::fs::OFlags;
use rustix::process::PidfdFlags;
use serde::{Deserialize, Serialize};
use stasis_sys::process::{self, Fork, WaitStatus};
use stasis_sys::{Pid, procfs};
use std::os::fd::{AsFd, OwnedFd};

pub(super) const PROCESS: Claim = Claim::kept(
    "process descriptor (pidfd)",
    "",
    &[
        "descriptors::pidfds",
        "engine-descriptors::kinds::pidfds_follow_the_processes_of_the_job",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    PROCESS,
    Claim::refused(
        "process descriptor of a process outside of the job",
        "",
        &["engine-descriptors::refused::processes_outside"],
    ),
];

/// A saved process descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Which process.
    pub target: Target,
    /// Access mode and status flags.
    pub flags: u32,
}

/// What a process descriptor refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A process of the job, living or a zombie, by its id as the program sees it.
    Process(Pid),
    /// One that was reaped, with its raw status word where that is known.
    Gone(Option<i32>),
}

/// Captures one.
pub(super) fn capture(found: &Found, ctx: &CaptureContext) -> Result<State, Obstacle> {
    let pid = found.info.field("Pid").and_then(|text| text.parse().ok());
    let pid = pid.ok_or_else(|| found.refuse("the kernel does not tell its process", ""))?;
    let target = match pid {
        -1 => {
            let duplicate = found.duplicate()?;
            Target::Gone(stasis_sys::pidfd::exit_status(duplicate.as_fd()).unwrap_or(None))
        }
        pid => Target::Process(virtual_pid(Pid(pid), ctx).ok_or_else(|| {
            found.refuse(
                format!("refers to process {pid}, which is not one of the job's"),
                "let the program close it before the checkpoint",
            )
        })?),
    };
    Ok(State {
        target,
        flags: found.info.flags,
    })
}

/// The program's number of a process of the job, a zombie included; `None` for any other.
pub(super) fn virtual_pid(pid: Pid, ctx: &CaptureContext) -> Option<Pid> {
    if let Some(process) = ctx.processes.iter().find(|p| p.pid == pid) {
        return Some(process.virtual_pid);
    }
    let stat = Stat::read(pid)?;
    if stat.state != 'Z' || !ctx.processes.iter().any(|p| p.pid == stat.parent) {
        return None;
    }
    let status = procfs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    Some(Pid(numbers
        .split_ascii_whitespace()
        .last()?
        .parse()
        .ok()?))
}

fn open(pid: Pid, flags: u32) -> Result<OwnedFd, EngineError> {
    let mut open = PidfdFlags::empty();
    if OFlags::from_bits_retain(flags).contains(OFlags::NONBLOCK) {
        open |= PidfdFlags::NONBLOCK;
    }
    let what = || format!("opening process {pid}");
    let target = rustix::process::Pid::from_raw(pid.0);
    let target = target.ok_or_else(|| EngineError::Failed(what()))?;
    rustix::process::pidfd_open(target, open).context(what)
}

/// Opens one of a process that is gone; `None` for one that must wait until its process exists.
pub(super) fn restore(state: &State) -> Result<Option<OwnedFd>, EngineError> {
    let Target::Gone(status) = &state.target else {
        return Ok(None);
    };
    let what = || "making a process descriptor".to_owned();
    // A stand-in ends the same way, and is reaped once the descriptor exists.
    match process::fork().context(what)? {
        Fork::Child => {
            let code = status.and_then(|status| WaitStatus(status).shell_code());
            process::exit_now(code.unwrap_or(0))
        }
        Fork::Parent(pid) => {
            let fd = open(pid, state.flags);
            process::wait(pid, 0).context(what)?;
            Ok(Some(fd?))
        }
    }
}

/// Opens one of a process that exists by now.
pub(super) fn restore_late(state: &State) -> Result<OwnedFd, EngineError> {
    match &state.target {
        Target::Process(pid) => open(*pid, state.flags),
        Target::Gone(_) => Err(EngineError::Gone),
    }
}
