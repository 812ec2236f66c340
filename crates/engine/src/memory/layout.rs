//! Where a program's parts lie, as the kernel remembers it: heap, stack, arguments, environment, auxiliary vector, and which
//! file is `/proc/PID/exe`.
//!
//! Rests on: `/proc/PID/stat` shows the addresses to a tracer; `prctl(PR_SET_MM, PR_SET_MM_MAP)` sets them all at once without
//! privilege, except for the executable, which needs CAP_CHECKPOINT_RESTORE in the user namespace (`kernel/sys.c`).

use crate::EngineError;
use crate::batch::{Answers, Asked, Batch};
use crate::calls::Calls;
use crate::error::Context;
use crate::tree::Stat;
use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, procfs};
use std::os::unix::ffi::OsStringExt;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end.
    pub addresses: [u64; 11],
    /// The auxiliary vector.
    #[serde(with = "serde_bytes")]
    pub auxiliary: Vec<u8>,
    /// Target of `/proc/PID/exe`.
    #[serde(with = "serde_bytes")]
    pub executable: Vec<u8>,
}

const BRK: usize = 5;

/// Captures what can be seen from outside.
///
/// # Errors
/// When the process is gone.
pub fn capture(pid: Pid, stat: &Stat) -> Result<State, EngineError> {
    // The man page's numbers of: startcode, endcode, start_data, end_data, start_brk, (brk), startstack, arg_start, ...
    let fields = [26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51];
    let mut addresses = [0; 11];
    for (address, field) in addresses.iter_mut().zip(fields) {
        if field != 0 {
            *address = stat.field(field);
        }
    }
    let path = format!("/proc/{pid}/auxv");
    let auxiliary = procfs::read(&path).context(|| format!("reading {path}"))?;
    let path = format!("/proc/{pid}/exe");
    let executable = std::fs::read_link(&path).context(|| format!("reading {path}"))?;
    Ok(State {
        addresses,
        auxiliary,
        executable: executable.into_os_string().into_vec(),
    })
}

/// Asks a process for the end of its heap, which only it can tell.
#[must_use]
pub fn ask(batch: &mut Batch) -> Asked {
    batch.call("brk", libc::SYS_brk, &[])
}

/// Completes what was captured from outside by the process's answer.
///
/// # Errors
/// When the remote call has failed.
pub fn complete(state: &mut State, asked: Asked, answers: &Answers) -> Result<(), EngineError> {
    state.addresses[BRK] = answers.result(asked)?;
    Ok(())
}

/// Sets the layout of a process whose areas are in place. `executable` is a descriptor of the process, where it may set that.
/// Returns whether `/proc/PID/exe` is right.
///
/// # Errors
/// When the remote call fails for another reason than the executable.
pub fn restore_remotely(
    state: &State,
    executable: Option<i32>,
    calls: &mut Calls<'_>,
) -> Result<bool, EngineError> {
    let auxiliary = calls.put_at(256, &state.auxiliary)?;
    let mut attempt = |executable: i32| -> Result<(), EngineError> {
        let mut map: Vec<u8> = state
            .addresses
            .iter()
            .flat_map(|address| address.to_le_bytes())
            .collect();
        map.extend(auxiliary.to_le_bytes());
        map.extend((state.auxiliary.len() as u32).to_le_bytes());
        map.extend(executable.to_le_bytes());
        let address = calls.put(&map)?;
        let arguments = [
            libc::PR_SET_MM as u64,
            libc::PR_SET_MM_MAP as u64,
            address,
            map.len() as u64,
            0,
        ];
        calls.call("prctl(PR_SET_MM_MAP)", libc::SYS_prctl, &arguments)?;
        Ok(())
    };
    if let Some(executable) = executable
        && attempt(executable).is_ok()
    {
        return Ok(true);
    }
    attempt(-1)?;
    Ok(false)
}
