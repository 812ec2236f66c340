//! How a job is to be run.

use crate::schedule::{Cadence, Economy};
use crate::{JobName, Membership, Naming};
use stasis_engine::tracking::Track;
use stasis_image::{Compression, Keys, Secret};
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Who is to be kept from the stop signals ([`stasis_engine::shield`]), beside the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shield {
    /// Processes outside the program, such as a batch job's shell, for which a stop signal is a request as well.
    pub strangers: Vec<i32>,
}

/// A moment by which the program must have been saved and stopped, and which may be put off while it runs.
#[derive(Clone)]
pub struct Deadline {
    /// Looks the moment up; none where there is no end in sight. May take a while.
    pub look_up: Arc<dyn Fn() -> Option<SystemTime> + Send + Sync>,
    /// How long before the moment the last checkpoint begins; from its measured cost where none is given.
    pub margin: Option<Duration>,
    /// The least that the margin is where none is given.
    pub least: Option<Duration>,
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadline")
            .field("margin", &self.margin)
            .finish_non_exhaustive()
    }
}

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
    /// Which memory is tracked for that.
    pub tracking: Track,
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
    /// Signals sent to the front that are requests to save and stop.
    pub stop_signals: Vec<i32>,
    /// Keeps the stop signals away from the program and others.
    pub shield: Option<Shield>,
    /// When the program must have been saved and stopped.
    pub deadline: Option<Deadline>,
    /// Whether the front is told of every checkpoint.
    pub tell_checkpoints: bool,
    /// Whether the front shows how checkpoints come along.
    pub show_progress: bool,
}
