//! Checkpoint and restart of one process tree on one host.
//!
//! The engine is driven by a supervisor that stands outside the program. It prints nothing: what there is to say
//! comes back as values, and progress goes through [`progress::Progress`].

#![forbid(unsafe_code)]

mod address_room;
pub mod attributes;
pub mod barrier;
mod batch;
pub mod calls;
pub mod capture;
pub mod checkpoint;
pub mod clocks;
pub mod conformance;
pub mod contents;
pub mod continuations;
pub mod credentials;
pub mod descriptors;
pub mod error;
pub mod faults;
pub mod file_policy;
pub mod freeze;
pub mod host;
mod inquiry;
pub mod interruptions;
pub mod ipc;
pub mod job;
pub mod keeper;
pub mod look;
pub mod maps;
pub mod memory;
pub mod model;
pub mod processor;
pub mod progress;
pub mod restart;
pub mod settings;
pub mod shield;
pub mod signals;
pub mod sleep_clock;
mod space;
pub mod store;
pub mod threads;
pub mod timed_calls;
pub mod timers;
pub mod tracking;
pub mod transfers;
pub mod tree;
pub mod twin;
pub mod visits;

pub use error::{EngineError, Refusal};
pub use job::Job;
