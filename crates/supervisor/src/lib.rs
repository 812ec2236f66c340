//! One job on one host: its start, what triggers checkpoints, its control socket, its terminal, its end.
//!
//! ```text
//! front (foreground, terminal) -> supervisor (own session) -> keeper -> program
//! ```
//!
//! [`front::attend`] makes the whole row. The front relays signals and tells the exit status; the supervisor traces
//! and takes checkpoints; the keeper is the program's parent (see [`stasis_engine::keeper`]). Clients find supervisors
//! by [`client::jobs`]. This crate prints nothing.

#![forbid(unsafe_code)]

pub mod choice;
pub mod client;
mod error;
pub mod finished;
pub mod front;
pub mod inside;
mod interval;
mod job_name;
pub mod line;
mod membership;
mod name_lock;
mod naming;
pub mod protocol;
pub mod retention;
pub mod runtime_dir;
pub mod schedule;
mod serve;
mod settings;
pub mod signal_name;
mod start;

pub use error::Error;
pub use interval::{Interval, ParseIntervalError};
pub use job_name::{BadName, JobName};
pub use membership::Membership;
pub use name_lock::NameLock;
pub use naming::Naming;
pub use settings::{Deadline, Settings, Shield};
pub use start::{NOT_EXECUTABLE, NOT_FOUND, OWN_FAILURE, Start};
