//! Taking a checkpoint.

use crate::progress::Progress;
use crate::{EngineError, Job, Refusal};
use serde::{Deserialize, Serialize};
use stasis_image::Compression;
use stasis_sys::Pid;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a checkpoint is to be taken.
#[derive(Clone, Debug)]
pub struct Options {
    /// How extents are compressed.
    pub compression: Compression,
    /// Threads that write; 0 is one for each processor that the job may use.
    pub threads: usize,
    /// Contents of files open for writing are stored up to this many bytes for each file.
    pub file_content_limit: u64,
    /// The process inside the tree that asked for the checkpoint and waits for its answer (the supervisor's number).
    pub requester: Option<Pid>,
    /// End the program in the same instant: it never runs on after what was saved.
    pub stop: bool,
    /// Facts about the job that are stored with it.
    pub info: JobInfo,
}

/// What an image tells of its job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// The job's name.
    pub name: String,
    /// The number of this checkpoint.
    pub sequence: u64,
    /// The command and its arguments, as given.
    pub command: Vec<String>,
    /// Seconds since 1970 at which the checkpoint began.
    pub taken_at: i64,
    /// Name of the host.
    pub host: String,
}

/// What a checkpoint did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The committed image.
    pub path: PathBuf,
    /// Its number.
    pub sequence: u64,
    /// For how long the program stood still.
    pub pause: Duration,
    /// From the request to the commit.
    pub total: Duration,
    /// Processes saved.
    pub processes: usize,
    /// Threads saved.
    pub threads: usize,
    /// Bytes of memory and files captured, before compression.
    pub captured: u64,
    /// Length of the image file in bytes.
    pub written: u64,
    /// What the user should know (connections to be reset, decisions taken).
    pub notes: Vec<String>,
}

/// Saves `job` into `path`. The program runs on afterwards, whatever happened, unless [`Options::stop`] is set
/// and the image was committed.
///
/// # Errors
/// [`EngineError::Refused`] with everything that cannot be saved; others when the kernel or the disk fail.
/// No partial image is left behind.
pub fn checkpoint(
    job: &mut Job,
    path: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, EngineError> {
    let _ = (job, path, options, progress);
    Err(EngineError::Failed("not built".into()))
}

/// Looks at the live tree below `root` without stopping it, and tells what could not be saved.
///
/// # Errors
/// When the tree cannot be looked at.
pub fn check(root: Pid) -> Result<Vec<Refusal>, EngineError> {
    let _ = root;
    Ok(Vec::new())
}
