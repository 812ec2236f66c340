//! Twins: copy-on-write copies of the program's processes, from which memory is written while the program runs on.
//!
//! Each process forks one, by remote calls, through an intermediate that shares its memory and ends at once: so the twin is a
//! child of the keeper, which reaps it, and the program never has a child more than it knows of. Neither sends a signal when it
//! ends. A twin is traced from its birth, never runs, gives up its descriptors, and dies with the supervisor.
//!
//! What a twin does not have is read before the program goes on: shared memory, areas with MADV_DONTFORK or MADV_WIPEONFORK.
//!
//! Rests on: a child of a traced process made by clone(2) is attached before it can run (`PTRACE_O_TRACECLONE`); orphans go to the
//! nearest subreaper (`kernel/exit.c`, `find_new_reaper`), and get SIGCHLD as their exit signal there, so that a program that is
//! itself a subreaper gets no twins.

use crate::EngineError;
use crate::error::Context;
use crate::freeze::{Frozen, FrozenProcess};
use crate::memory::vdso;
use crate::{faults, maps, signals};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use stasis_sys::userfaultfd;
use stasis_sys::{Pid, procfs};
use stasis_tracee::slot::{self, Excursion, Identity, Slot};
use stasis_tracee::{Born, Memory, Remote, Running, Stopped, TraceError};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A process's twin. Dropping it ends it.
#[derive(Debug)]
pub struct Twin {
    /// Its id (the supervisor's number).
    pub pid: Pid,
    /// Its memory: the program's at the moment of the fork.
    pub memory: Memory,
    /// A userfault descriptor of the program's own memory, where one was wanted and could be had ([`crate::tracking`]).
    pub userfault: Option<OwnedFd>,
    stopped: Option<Stopped>,
}

impl Drop for Twin {
    fn drop(&mut self) {
        if let Some(stopped) = self.stopped.take() {
            stopped.kill();
        }
    }
}

const LIMIT: Duration = Duration::from_secs(10);

/// Forks a twin of every process that is `wanted`, with a userfault descriptor where it is to be `tracked`.
///
/// # Errors
/// When one cannot be made (process limit, memory): those made are gone again, and the program is as it was.
pub fn fork_all(
    frozen: &mut Frozen,
    wanted: &[bool],
    tracked: &[bool],
) -> Result<Vec<Option<Twin>>, EngineError> {
    let processes = frozen.processes.iter_mut().zip(wanted).zip(tracked);
    processes
        .map(|((process, wanted), tracked)| wanted.then(|| fork(process, *tracked)).transpose())
        .collect()
}

fn fork(process: &mut FrozenProcess, tracked: bool) -> Result<Twin, EngineError> {
    let thread = process.threads.first_mut().ok_or(EngineError::Gone)?;
    let path = format!("/proc/{}/status", thread.tid);
    let status = procfs::read_to_string(&path).context(|| format!("reading {path}"))?;
    let vmas = maps::read(thread.tid)?;
    let padding = vdso::padding(&vmas, &process.memory)?
        .ok_or_else(|| EngineError::Failed("this kernel's vdso has no room".into()))?;
    let instruction = vdso::syscall_instruction(&vmas, &process.memory)?;
    let identity = Identity {
        process: process.virtual_pid,
        thread: thread.virtual_tid,
        handled: signals::handled(&status),
    };
    let stopped = thread.stopped.take().ok_or(EngineError::Gone)?;
    let mut excursion = Excursion::begin(stopped, &identity)?;
    let slot = excursion.fork(tracked);
    let writing = || format!("writing to process {}", process.virtual_pid);
    process
        .memory
        .write(&slot.code, padding.start)
        .context(writing)?;
    let segments = vmas
        .iter()
        .filter(|vma| vma.segment().is_some())
        .map(|vma| vma.range.clone())
        .collect();
    let ways = Ways {
        instruction,
        ignores_trap: signals::ignores_trap(&status),
        tracked,
        segments,
    };
    let made = fork_in(&mut excursion, &slot, padding.start, &ways);
    let forked = match made {
        Ok(twin) => twin,
        Err(error) => {
            excursion.abandon();
            return Err(error);
        }
    };
    thread.stopped = Some(excursion.finish()?);
    let zeros = vec![0; slot.code.len()];
    process
        .memory
        .write(&zeros, padding.start)
        .context(writing)?;
    forked
}

/// How the intermediate and the twin are made to make calls.
struct Ways {
    /// Where a `syscall` instruction is.
    instruction: u64,
    ignores_trap: bool,
    /// A userfault descriptor is wanted.
    tracked: bool,
    /// System V segments, which the twin gives up.
    segments: Vec<Range<u64>>,
}

/// Lets the thread fork. An error of the fork itself leaves the thread in its slot, to be brought back.
fn fork_in(
    excursion: &mut Excursion,
    slot: &Slot,
    address: u64,
    ways: &Ways,
) -> Result<Result<Twin, EngineError>, EngineError> {
    excursion.aim(slot, address)?;
    faults::pass("forking-aimed")?;
    excursion.go()?;
    faults::pass("forking-called")?;
    let mut twin = None;
    while !excursion.advance()? {
        if let Some(intermediate) = excursion.born() {
            faults::pass("forking-born")?;
            twin = Some(take_twin(intermediate, ways)?);
        }
    }
    faults::pass("forking-noticed")?;
    let failure = || -> Result<EngineError, EngineError> {
        let result = excursion.results(1)?.first().copied().unwrap_or(0);
        Ok(match slot::outcome("clone", excursion.tid(), result) {
            Err(error) => error.into(),
            Ok(_) => EngineError::Failed("a twin was not made".into()),
        })
    };
    twin.map_or_else(|| Ok(Err(failure()?)), Ok)
}

/// Lets the intermediate make the twin and end. Both would end by themselves without us.
fn take_twin(intermediate: Pid, ways: &Ways) -> Result<Result<Twin, EngineError>, EngineError> {
    let mut stopped = Running::born(intermediate).wait(LIMIT, &mut Born::default())?;
    // What it makes inherits that.
    stopped.die_with_us()?;
    let mut userfault = None;
    if ways.tracked {
        (stopped, userfault) = open_userfault(stopped, ways)?;
        faults::pass("forking-tracked")?;
    }
    let mut born = Born::default();
    let ended = stopped.resume()?.wait(LIMIT, &mut born);
    let Some(pid) = born.0.first().copied() else {
        return Ok(Err(EngineError::Failed(
            "a twin could not be forked (limit of processes, memory)".into(),
        )));
    };
    match ended {
        Err(TraceError::Dead(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(stopped) => {
            let tid = stopped.tid();
            return Err(TraceError::Stuck(tid).into());
        }
    }
    let stopped = Running::born(pid).wait(LIMIT, &mut Born::default())?;
    let mut remote = Remote::begin(stopped, ways.instruction, ways.ignores_trap)?;
    // A twin that kept the program's descriptors would keep pipes open that the program closes.
    let mut closed = remote.call(
        "close_range",
        libc::SYS_close_range,
        &[0, u64::from(u32::MAX), 0],
    );
    // System V segments tell how often they are attached, and some go when nobody has them any more.
    for segment in &ways.segments {
        let arguments = [segment.start, segment.end - segment.start];
        closed = closed.and(remote.call("munmap", libc::SYS_munmap, &arguments));
    }
    let stopped = remote.finish()?;
    let mut twin = Twin {
        pid,
        memory: match Memory::open(pid) {
            Ok(memory) => memory,
            Err(source) => {
                stopped.kill();
                return Ok(Err(EngineError::System {
                    what: "opening the memory of a twin".into(),
                    source,
                }));
            }
        },
        userfault,
        stopped: None,
    };
    twin.stopped = Some(stopped);
    Ok(closed.map(|_| twin).map_err(EngineError::from))
}

/// Has the intermediate, whose memory is the program's, open a userfault descriptor, and takes it over. Where that cannot be had,
/// the memory is not tracked.
fn open_userfault(
    intermediate: Stopped,
    ways: &Ways,
) -> Result<(Stopped, Option<OwnedFd>), EngineError> {
    let pid = intermediate.tid();
    let mut remote = Remote::begin(intermediate, ways.instruction, ways.ignores_trap)?;
    let flags = (userfaultfd::USER_MODE_ONLY | libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    let opened = remote.call("userfaultfd", libc::SYS_userfaultfd, &[flags]);
    let stopped = remote.finish()?;
    let number = match opened {
        Ok(number) => number as i32,
        Err(error) if error.is_death() => return Err(error.into()),
        Err(error) => {
            tracing::debug!(%error, "memory is not tracked");
            return Ok((stopped, None));
        }
    };
    let taken = match rustix::process::Pid::from_raw(pid.0) {
        Some(pid) => pidfd_open(pid, PidfdFlags::empty())
            .and_then(|pidfd| pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())),
        None => Err(rustix::io::Errno::SRCH),
    };
    Ok((stopped, taken.ok()))
}
