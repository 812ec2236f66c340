//! What can go wrong, and how it is told.
//!
//! Every message says what was being done, to which process or path, what the kernel said, and what the user can do.
//! [`EngineError::Refused`] means that nothing was touched: the program runs on as if nobody had asked.

use serde::{Deserialize, Serialize};
use stasis_image::ImageError;
use stasis_sys::Pid;
use std::fmt;
use std::io;

/// Something that stands in the way of a checkpoint or restart, found before anything was touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The process that it belongs to, by the number that the program itself sees; `None` where it is not one process's.
    pub pid: Option<Pid>,
    /// That process's name (`comm`), may be empty.
    pub process: String,
    /// The object, as the user would name it: `descriptor 5 (socket:[1234], TCP)`, `file /data/x.csv`.
    pub object: String,
    /// Why it stands in the way.
    pub reason: String,
    /// What the user can do about it.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pid) = self.pid {
            write!(f, "process {pid} ({}), ", self.process)?;
        }
        write!(f, "{}: {}", self.object, self.reason)?;
        if self.hint.is_empty() {
            Ok(())
        } else {
            write!(f, "; {}", self.hint)
        }
    }
}

/// Why a checkpoint or a restart did not happen.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing was touched; each entry names an obstacle.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
    /// Nothing was touched; each entry names an obstacle that passes by itself while the program runs.
    #[error("{}", list(.0))]
    Passing(Vec<Refusal>),
    /// The program ended before or while it was being saved.
    #[error("the program has ended")]
    Gone,
    /// A step failed in the kernel.
    #[error("{what}: {source}")]
    System {
        /// What was being done, to what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step failed for a reason that is told in words, with what to do.
    #[error("{0}")]
    Failed(String),
    /// The image could not be written or read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A traced process could not be handled.
    #[error(transparent)]
    Tracee(#[from] stasis_tracee::TraceError),
}

fn list(refusals: &[Refusal]) -> String {
    refusals
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Gives a kernel error its context: what was being done, to what.
pub trait Context<T> {
    /// `what` is a phrase such as `opening /proc/12/maps`.
    ///
    /// # Errors
    /// The same error, as [`EngineError::System`].
    fn context(self, what: impl FnOnce() -> String) -> Result<T, EngineError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, EngineError> {
        self.map_err(|error| EngineError::System {
            what: what(),
            source: error.into(),
        })
    }
}
