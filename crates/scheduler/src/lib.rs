//! What batch systems promise to their jobs: who a job is, when it ends, which signals warn it, how it is queued again.
//!
//! A [`System`] is one of them by its documented contract ([`contract`]); Slurm is also asked, by its own commands
//! ([`slurm`]). This crate knows nothing of checkpoints, prints nothing, and reads the environment through a function, so that
//! all of it can be tested without any batch system.

#![forbid(unsafe_code)]

pub mod commands;
pub mod contract;
pub mod slurm;

pub use commands::{CommandError, Commands, Installed};
pub use contract::{Contract, Identity, System};
