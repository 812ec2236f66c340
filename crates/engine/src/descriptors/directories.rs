//! Directories.

use super::{CaptureContext, Found, Obstacle, Opening, Plan, RestoreContext};
use crate::EngineError;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// A saved description of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {}

/// Captures one.
///
/// # Errors
/// What stands in the way.
pub fn capture(found: &Found, ctx: &CaptureContext) -> Result<State, Obstacle> {
    let _ = ctx;
    Err(found.refuse("directories are not saved yet", ""))
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
