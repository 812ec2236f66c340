//! Supervisor.
#![forbid(unsafe_code)]
