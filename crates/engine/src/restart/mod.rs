//! Restarting from an image.

use crate::progress::Progress;
use crate::{EngineError, Job};
use serde::Serialize;
use stasis_image::Image;
use std::os::fd::OwnedFd;

/// How the program gets its old ids back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Strategy {
    /// `clone3(set_tid)` where we are: needs CAP_CHECKPOINT_RESTORE and free ids.
    Privileged,
    /// In user, pid, time and mount namespaces of the job's own.
    Namespaces,
    /// Children are forked until the kernel's counter stands right before the wanted id. Needs free ids.
    Burn,
}

/// What to do with a file whose contents do not match the saved memory and cannot be made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ChangedFiles {
    /// Refuse to start, naming them all.
    #[default]
    Refuse,
    /// Use them as they are.
    Accept,
}

/// How to restart.
#[derive(Debug, Default)]
pub struct Options {
    /// Which strategy; `None` chooses the first that this host allows.
    pub strategy: Option<Strategy>,
    /// What to do about changed files.
    pub changed_files: ChangedFiles,
    /// `OLD=NEW` prefixes for paths.
    pub map_path: Vec<(String, String)>,
    /// Threads that read; 0 is one for each processor.
    pub threads: usize,
    /// The slave side of a terminal that becomes the job's controlling terminal, where the job had one.
    pub terminal: Option<OwnedFd>,
}

/// What a restart is going to do; made without touching anything.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// The strategy chosen.
    pub strategy: Strategy,
    /// Sentences: what will be opened, truncated, moved aside, made.
    pub actions: Vec<String>,
}

/// Verifies `image` completely and decides what a restart does. Nothing is touched.
///
/// # Errors
/// [`EngineError::Refused`] with all obstacles at once; [`EngineError::Image`] for a damaged image.
pub fn plan(
    image: &Image,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Plan, EngineError> {
    let _ = (image, options, progress);
    Err(EngineError::Failed("not built".into()))
}

/// Carries out `plan`. The caller has one thread. `front` is the keeper's line to the process in the foreground
/// (see [`crate::keeper`]).
///
/// # Errors
/// When a step fails; whatever had been started is gone again.
pub fn execute(
    image: &Image,
    plan: Plan,
    options: Options,
    front: OwnedFd,
    progress: &dyn Progress,
) -> Result<Job, EngineError> {
    let _ = (image, plan, options, front, progress);
    Err(EngineError::Failed("not built".into()))
}
