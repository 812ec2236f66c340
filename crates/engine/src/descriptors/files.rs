//! Regular files, deleted files, and descriptors opened with `O_PATH`.

use super::{CaptureContext, Found, Obstacle, Opening, Plan, RestoreContext};
use crate::EngineError;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// A saved description of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {}

impl State {
    /// The path it was opened by, as a message would name it.
    #[must_use]
    pub fn path(&self) -> String {
        String::new()
    }
    /// It can only be opened, by [`restore_late`], when the processes of the tree exist.
    #[must_use]
    pub fn is_late(&self) -> bool {
        false
    }
    /// The offset that it had.
    #[must_use]
    pub fn offset(&self) -> u64 {
        0
    }
}

/// Captures one.
///
/// # Errors
/// What stands in the way.
pub fn capture(found: &Found, ctx: &CaptureContext) -> Result<State, Obstacle> {
    let _ = ctx;
    Err(found.refuse("regular files are not saved yet", ""))
}

/// Adds to `plan` what [`restore`] is going to do, or why it cannot.
pub fn plan(state: &State, ctx: &RestoreContext, plan: &mut Plan) {
    let _ = (state, ctx, plan);
}

/// Brings the file into the saved state and opens it at the saved offset.
///
/// # Errors
/// When it is missing or does not match.
pub fn restore(state: &State, opening: &mut Opening) -> Result<OwnedFd, EngineError> {
    let _ = (state, opening);
    Err(EngineError::Failed("not built".into()))
}

/// Opens what [`State::is_late`], in one of the processes.
///
/// # Errors
/// The kernel's.
pub fn restore_late(state: &State) -> Result<OwnedFd, EngineError> {
    let _ = state;
    Err(EngineError::Failed("not built".into()))
}
