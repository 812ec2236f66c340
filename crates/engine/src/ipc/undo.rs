//! What processes undo of semaphores when they end (`SEM_UNDO`, `semop(2)`).

use serde::{Deserialize, Serialize};
use stasis_sys::Pid;

/// What one process undoes of one set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The process, as the program knows it.
    pub process: Pid,
    /// The set.
    pub set: i32,
    /// Numbers of semaphores, and what is added to each.
    pub adjustments: Vec<(u16, i16)>,
}
