//! Tracing of another process: stops, registers, remote system calls, remote memory.

/// Why a traced process could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It has died.
    #[error("thread {0} has died")]
    Dead(stasis_sys::Pid),
}
