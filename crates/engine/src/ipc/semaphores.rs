//! System V semaphores.
//!
//! Saved: id, key, owner, mode, values, who changed each one last (`sempid`, where that process still lives), and what processes undo when they
//! end ([`super::undo`]). A thread that waits in semop(2) waits again, behind those that have come first.
//!
//! Not saved: the time of the last operation.

use super::table::{Kind, Object, Row};
use super::{failure, tell};
use crate::EngineError;
use crate::calls::Calls;
use serde::{Deserialize, Serialize};
use stasis_sys::Pid;
use stasis_sys::sysv::{self, Permissions};
use std::io;

/// What an image keeps of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Id, key, owner.
    pub object: Object,
    /// The values.
    pub values: Vec<u16>,
    /// The process that changed each of them last, as the program knows it; 0 for none, or for one that is gone.
    pub last: Vec<Pid>,
}

/// The largest value (`SEMVMX`).
pub const MOST: u16 = 32767;

/// Looks at a set. The processes are the supervisor's numbers.
///
/// # Errors
/// When it may not be read, or is gone.
pub fn look(object: &Object, row: &Row) -> io::Result<State> {
    let count = usize::try_from(row.size()).map_err(io::Error::other)?;
    let last = (0..count).map(|number| sysv::last_user_of_semaphore(object.id, number as i32));
    Ok(State {
        object: object.clone(),
        values: sysv::semaphore_values(object.id, count)?,
        last: last.collect::<io::Result<_>>()?,
    })
}

/// Gives a set that has just been made, or found again, values and owner.
///
/// # Errors
/// When that is not possible.
pub fn fill(state: &State, notes: &mut Vec<String>) -> Result<(), EngineError> {
    let id = state.object.id;
    sysv::set_semaphore_values(id, &state.values)
        .map_err(|source| failure(&Kind::Set.words(id), source))?;
    let permissions = Permissions {
        uid: state.object.uid,
        gid: state.object.gid,
        mode: state.object.mode,
    };
    tell(notes, Kind::Set, id, sysv::set_semaphores(id, permissions));
    Ok(())
}

/// Makes `process`, which makes the calls, the last one that changed what it had changed last.
///
/// # Errors
/// When a remote call fails.
pub fn use_again(sets: &[State], process: Pid, calls: &mut Calls<'_>) -> Result<(), EngineError> {
    for set in sets {
        for (number, (value, last)) in set.values.iter().zip(&set.last).enumerate() {
            if *last != process {
                continue;
            }
            let up = sysv::semaphore_operation(number as u16, 1, 0);
            let down = sysv::semaphore_operation(number as u16, -1, 0);
            let both = if *value == MOST {
                [down, up]
            } else {
                [up, down]
            };
            // One that its program has no right to change was changed when it had it.
            let _ = operate(set.object.id, &both.concat(), calls);
        }
    }
    Ok(())
}

/// `semop(2)`, as a remote call.
///
/// # Errors
/// The call's.
pub fn operate(id: i32, operations: &[u8], calls: &mut Calls<'_>) -> Result<(), EngineError> {
    const OPERATION: usize = 6;
    let address = calls.put(operations)?;
    let count = (operations.len() / OPERATION) as u64;
    calls.call("semop", libc::SYS_semop, &[id as u64, address, count])?;
    Ok(())
}
