//! Tracing of another process with ptrace(2): stops, registers, remote system calls, remote memory.
//!
//! A thread is either [`Running`] or [`Stopped`]; what needs a stopped thread is a method of `Stopped`, and both are
//! consumed by what changes them, so that no ptrace request is ever made on a thread that is not in a stop. A thread
//! may die at any moment: [`TraceError::Dead`] is a variant that every caller has to think about.
//!
//! All calls on a thread must come from the thread of the supervisor that seized it: that is the kernel's rule.

pub mod arch;
mod error;
mod memory;
mod ptrace;
mod remote;
pub mod slot;
mod state;
mod watch;

pub use arch::{Registers, Xstate};
pub use error::TraceError;
pub use memory::Memory;
pub use ptrace::{PendingSignal, RseqConfiguration, SIGINFO_BYTES};
pub use remote::{Child, Remote};
pub use state::{Born, Running, Stop, Stopped};
pub use watch::{Withheld, pump};
