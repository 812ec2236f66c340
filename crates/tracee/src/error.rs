use stasis_sys::Pid;
use std::io;

/// Why a traced thread could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It has died. Callers decide whether that matters.
    #[error("thread {0} has died")]
    Dead(Pid),
    /// It did not stop in time: it sits in the kernel where it cannot be interrupted (a vfork parent, a hung file
    /// system).
    #[error("thread {0} did not stop in time; it hangs in the kernel")]
    Stuck(Pid),
    /// The kernel refused a request.
    #[error("{what} thread {tid}: {source}")]
    Request {
        /// What was being done.
        what: &'static str,
        /// To which thread.
        tid: Pid,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call that the thread was made to execute failed.
    #[error("{name} in thread {tid}: {source}")]
    Call {
        /// The call.
        name: &'static str,
        /// In which thread.
        tid: Pid,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread stopped in a way that nobody expected.
    #[error("thread {tid} stopped unexpectedly while {what} (wait status {status:#x})")]
    Unexpected {
        /// What was being done.
        what: &'static str,
        /// Which thread.
        tid: Pid,
        /// The raw status of waitpid(2).
        status: i32,
    },
}

impl TraceError {
    /// The error number of a failed remote call or request.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            TraceError::Request { source, .. } | TraceError::Call { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    /// Whether it says that the thread is dead.
    #[must_use]
    pub fn is_death(&self) -> bool {
        matches!(self, TraceError::Dead(_))
    }
}
