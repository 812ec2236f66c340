//! Event counters (`eventfd(2)`).
//!
//! Saved: the counter, whether it counts as a semaphore, status flags. Facts: fdinfo tells the counter in hexadecimal,
//! and since Linux 6.5 whether it is a semaphore; on older kernels that cannot be found out without reading, and it is
//! taken for a plain one, with a note.

use super::{Found, Obstacle, set_status};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};

pub(super) const COUNTER: Claim = Claim::kept(
    "event counter (eventfd)",
    "",
    &[
        "descriptors::eventfds",
        "engine-descriptors::kinds::eventfds_keep_counter_and_semaphore",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[COUNTER];

/// A saved event counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The counter.
    pub count: u64,
    /// `EFD_SEMAPHORE`; `None` where the kernel does not tell.
    pub semaphore: Option<bool>,
    /// Access mode and status flags.
    pub flags: u32,
}

/// Captures one.
pub(super) fn capture(found: &Found) -> Result<State, Obstacle> {
    let count = found.info.field("eventfd-count");
    let count = count.and_then(|text| u64::from_str_radix(text, 16).ok());
    Ok(State {
        count: count.ok_or_else(|| found.refuse("the kernel does not tell its counter", ""))?,
        semaphore: found
            .info
            .field("eventfd-semaphore")
            .map(|text| text != "0"),
        flags: found.info.flags,
    })
}

/// Makes it again.
pub(super) fn restore(state: &State) -> Result<OwnedFd, EngineError> {
    let mut flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    if state.semaphore == Some(true) {
        flags |= EventfdFlags::SEMAPHORE;
    }
    let fd = eventfd(0, flags).context(|| "making an eventfd".into())?;
    if state.count > 0 {
        // The largest number that can be written.
        let count = state.count.min(u64::MAX - 1);
        rustix::io::write(&fd, &count.to_ne_bytes()).context(|| "setting an eventfd".into())?;
    }
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}
