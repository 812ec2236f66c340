//! What can go wrong between a coordinator and those who speak to it.

use std::io;

/// Why a coordinator could not be reached, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens there.
    #[error("no coordinator listens at {0}")]
    NotFound(String),
    /// Somebody listens there who is no coordinator, or one of another user.
    #[error(
        "what listens at {address} is not a coordinator of this user ({reason}); choose another port, or let it choose \
         one with port 0"
    )]
    Stranger {
        /// The address.
        address: String,
        /// How it was noticed.
        reason: String,
    },
    /// The coordinator refused, with its reason.
    #[error("{0}")]
    Told(String),
    /// It was there and is gone.
    #[error("the coordinator at {address} was lost: {source}")]
    Lost {
        /// The address.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused something.
    #[error("{what}: {source}")]
    System {
        /// What was being done, to what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
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
