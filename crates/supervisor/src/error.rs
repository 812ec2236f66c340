//! What can go wrong around a job. Every message says what was tried, on what, and what the user can do.

use std::io;
use std::path::PathBuf;

/// Why something around a job did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No directory for control sockets can be used.
    #[error(
        "no directory for control sockets can be used:\n{0}\nset STASIS_RUNTIME_DIR to a directory that only you can enter"
    )]
    RuntimeDirectory(String),
    /// A job of this name is running in this directory.
    #[error(
        "a job named {name} is running already with its checkpoints in {directory}; choose another name with -n, \
         or another directory with -d"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The directory.
        directory: PathBuf,
    },
    /// No job matches what was asked for.
    #[error("{0}")]
    NoJob(String),
    /// A supervisor answered something that this version does not understand, or nothing.
    #[error("the supervisor {supervisor} gave no usable answer: {reason}")]
    NoAnswer {
        /// Its process id.
        supervisor: i32,
        /// What was wrong.
        reason: String,
    },
    /// The supervisor reports that it could not do what was asked.
    #[error("{0}")]
    Told(String),
    /// The kernel refused something.
    #[error("{what}: {source}")]
    System {
        /// What was being done, to what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Images could not be listed or removed.
    #[error(transparent)]
    Image(#[from] stasis_image::ImageError),
}

/// Gives a kernel error its context.
pub(crate) trait Context<T> {
    /// `what` is a phrase such as `opening /tmp/x`.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::System {
            what: what(),
            source: error.into(),
        })
    }
}
