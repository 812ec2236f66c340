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
use crate::{maps, signals};
use stasis_sys::{Pid, procfs};
use stasis_tracee::{Born, Memory, Remote, Running, Stopped};
use std::time::Duration;

/// A process's twin. Dropping it ends it.
#[derive(Debug)]
pub struct Twin {
    /// Its id (the supervisor's number).
    pub pid: Pid,
    /// Its memory: the program's at the moment of the fork.
    pub memory: Memory,
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
const SIGNAL_NONE: u64 = 0;

/// Forks a twin of every process that is `wanted`.
///
/// # Errors
/// When one cannot be made (process limit, memory): those made are gone again, and the program is as it was.
pub fn fork_all(frozen: &mut Frozen, wanted: &[bool]) -> Result<Vec<Option<Twin>>, EngineError> {
    let processes = frozen.processes.iter_mut().zip(wanted);
    processes
        .map(|(process, wanted)| wanted.then(|| fork(process)).transpose())
        .collect()
}

fn fork(process: &mut FrozenProcess) -> Result<Twin, EngineError> {
    let thread = process.threads.first_mut().ok_or(EngineError::Gone)?;
    let path = format!("/proc/{}/status", thread.tid);
    let status = procfs::read_to_string(&path).context(|| format!("reading {path}"))?;
    let instruction = vdso::syscall_instruction(&maps::read(thread.tid)?, &process.memory)?;
    let ignores_trap = signals::ignores_trap(&status);
    let stopped = thread.stopped.take().ok_or(EngineError::Gone)?;
    let mut remote = Remote::begin(stopped, instruction, ignores_trap)?;
    let twin = fork_by(&mut remote, instruction, ignores_trap);
    thread.stopped = Some(remote.finish()?);
    twin
}

fn fork_by(remote: &mut Remote, instruction: u64, ignores_trap: bool) -> Result<Twin, EngineError> {
    let flags = (libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS) as u64 | SIGNAL_NONE;
    let intermediate =
        remote.clone_without_stack("clone", libc::SYS_clone, &[flags, 0, 0, 0, 0])?;
    let twin = fork_twin(intermediate.tid, instruction, ignores_trap);
    // Its end is nobody's news but has to be taken note of, or it would stay a zombie of the program.
    remote.call(
        "wait4",
        libc::SYS_wait4,
        &[intermediate.virtual_tid.0 as u64, 0, libc::__WALL as u64, 0],
    )?;
    twin
}

fn fork_twin(intermediate: Pid, instruction: u64, ignores_trap: bool) -> Result<Twin, EngineError> {
    let mut stopped = Running::born(intermediate).wait(LIMIT, &mut Born::default())?;
    stopped.die_with_us()?;
    let mut remote = Remote::begin(stopped, instruction, ignores_trap)?;
    let made = remote.clone_without_stack("clone", libc::SYS_clone, &[SIGNAL_NONE, 0, 0, 0, 0]);
    remote.end()?;
    let pid = made?.tid;
    let mut stopped = Running::born(pid).wait(LIMIT, &mut Born::default())?;
    stopped.die_with_us()?;
    let mut remote = Remote::begin(stopped, instruction, ignores_trap)?;
    // A twin that kept the program's descriptors would keep pipes open that the program closes.
    let closed = remote.call(
        "close_range",
        libc::SYS_close_range,
        &[0, u64::from(u32::MAX), 0],
    );
    let stopped = remote.finish()?;
    let mut twin = Twin {
        pid,
        memory: match Memory::open(pid) {
            Ok(memory) => memory,
            Err(source) => {
                stopped.kill();
                return Err(EngineError::System {
                    what: "opening the memory of a twin".into(),
                    source,
                });
            }
        },
        stopped: None,
    };
    twin.stopped = Some(stopped);
    closed?;
    Ok(twin)
}
