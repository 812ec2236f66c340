//! How a job is to be run.

use crate::schedule::{Cadence, Economy};
use crate::{JobName, Membership, Naming};
use stasis_image::{Compression, Keys, Secret};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// What the user has asked for; the same for a start and a restart.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The job's name.
    pub name: JobName,
    /// Where checkpoints go: an absolute path.
    pub directory: PathBuf,
    /// The command and its arguments, for people to read.
    pub command: Vec<String>,
    /// How long from the end of one checkpoint to the next; none for checkpoints on request only.
    pub interval: Option<Cadence>,
    /// What decides how often checkpoints pay, when that is asked for.
    pub economy: Economy,
    /// How they are called.
    pub naming: Naming,
    /// The number of the image that the job comes from; 0 without one.
    pub sequence: u64,
    /// Its place in a computation of several jobs.
    pub membership: Option<Membership>,
    /// Variables that a program gets beside those of the caller.
    pub environment: Vec<(OsString, OsString)>,
    /// How many complete images stay.
    pub keep: NonZeroUsize,
    /// How images are compressed.
    pub compression: Compression,
    /// Threads that write; 0 is one for each processor.
    pub threads: usize,
    /// Whether the program stands still while it is written.
    pub pause: bool,
    /// The nice value of what writes checkpoints while the program runs.
    pub nice: u8,
    /// Whether what the checkpoint before holds already is not stored again.
    pub incremental: bool,
    /// What images are encrypted with.
    pub secret: Option<Secret>,
    /// What encrypted images are read with.
    pub keys: Arc<Keys>,
    /// Contents of a file open for writing are stored up to this many bytes.
    pub file_limit: u64,
    /// Whether the job is over when its first process is.
    pub exit_with_root: bool,
    /// A signal sent to the front that is a request for a checkpoint.
    pub checkpoint_signal: Option<i32>,
    /// A signal sent to the front that is a request to save and stop.
    pub stop_signal: Option<i32>,
    /// Whether the front shows how checkpoints come along.
    pub show_progress: bool,
}
