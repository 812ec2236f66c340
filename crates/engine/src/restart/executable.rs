//! `/proc/PID/exe` where it cannot be set: the new process executes the program's file itself, is held before its first
//! instruction, and then has its memory replaced like any other.
//!
//! Rests on: `PR_SET_MM_MAP` sets the executable only with CAP_CHECKPOINT_RESTORE in the user namespace (`kernel/sys.c`), but
//! execve(2) of a file that may be executed sets it for anybody. A single step over execve ends before the first instruction of
//! the new image. What exec changes beside the memory is given back later anyway (signal actions, alternate stack, name), or
//! is prevented here: descriptors with FD_CLOEXEC would be closed.

use crate::EngineError;
use crate::calls::Calls;
use crate::error::Context;
use crate::maps;
use crate::memory::{restore, vdso};
use crate::model::Process;
use stasis_sys::{Pid, descriptor};
use stasis_tracee::{Memory, Stopped};
use std::io;

/// In the new process: keeps all descriptors over exec.
///
/// # Errors
/// When they cannot be listed.
pub fn prepare_here() -> io::Result<()> {
    // The list names a descriptor that was open for making it.
    for fd in descriptor::open_descriptors()? {
        let _ = descriptor::keep_over_exec(fd);
    }
    Ok(())
}

/// Makes the process execute `executable`, a descriptor of its, and gives FD_CLOEXEC back to those that had it. Whether that
/// was possible: a file that is gone, or may not be executed any more, leaves the process as it was.
///
/// # Errors
/// When the process has died.
pub fn execute(
    stopped: Stopped,
    saved: &Process,
    pid: Pid,
    executable: i32,
) -> Result<(Stopped, bool), EngineError> {
    let open = || Memory::open(pid).context(|| format!("opening the memory of process {pid}"));
    let memory = open()?;
    let (stopped, executed) = {
        let mut calls = begin(stopped, saved, pid, &memory)?;
        let name = calls.put_at(0, b"\0")?;
        let no_arguments = calls.put_at(8, &[0; 8])?;
        let arguments = [
            executable as u64,
            name,
            no_arguments,
            no_arguments,
            libc::AT_EMPTY_PATH as u64,
        ];
        let executed = calls.call("execveat", libc::SYS_execveat, &arguments);
        let executed = executed.is_ok();
        // The scratch page went with the old memory.
        let stopped = if executed {
            calls.leave()?
        } else {
            calls.finish()?
        };
        (stopped, executed)
    };
    let memory = open()?;
    let mut calls = begin(stopped, saved, pid, &memory)?;
    for descriptor in &saved.descriptors.descriptors {
        if descriptor.close_on_exec {
            let arguments = [
                descriptor.fd as u64,
                libc::F_SETFD as u64,
                libc::FD_CLOEXEC as u64,
            ];
            calls.call("fcntl(F_SETFD)", libc::SYS_fcntl, &arguments)?;
        }
    }
    Ok((calls.finish()?, executed))
}

fn begin<'a>(
    stopped: Stopped,
    saved: &Process,
    pid: Pid,
    memory: &'a Memory,
) -> Result<Calls<'a>, EngineError> {
    let now = maps::read(pid)?;
    let scratch = restore::places(&saved.memory, &now)?.scratch;
    let instruction = vdso::syscall_instruction(&now, memory)?;
    Calls::begin(stopped, instruction, false, memory, scratch)
}
