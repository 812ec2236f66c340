//! Descriptors that deliver signals (`signalfd(2)`).
//!
//! Saved: the set of signals, status flags. The signals that wait to be read are the process's pending signals, which are
//! saved with it. Facts: fdinfo tells the set in hexadecimal. An epoll set learns of signals of the process that added the
//! descriptor, whichever process waits (`fs/signalfd.c`): such entries are made in [`super::finish`].

use super::{Found, Obstacle, set_status};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use serde::{Deserialize, Serialize};
use stasis_sys::signal::{SignalFd, SignalSet};
use std::os::fd::{AsFd, OwnedFd};

pub(super) const SIGNALS: Claim = Claim::kept(
    "descriptor that delivers signals (signalfd)",
    "",
    &[
        "signals::signal_descriptor",
        "engine-descriptors::kinds::signalfds_keep_their_signals",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[SIGNALS];

/// A saved signal descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The signals that it delivers.
    pub set: SignalSet,
    /// Access mode and status flags.
    pub flags: u32,
}

/// Captures one.
pub(super) fn capture(found: &Found) -> Result<State, Obstacle> {
    let set = found.info.field("sigmask");
    let set = set.and_then(|text| u64::from_str_radix(text, 16).ok());
    Ok(State {
        set: SignalSet(
            set.ok_or_else(|| found.refuse("the kernel does not tell its signals", ""))?,
        ),
        flags: found.info.flags,
    })
}

/// Makes it again.
pub(super) fn restore(state: &State) -> Result<OwnedFd, EngineError> {
    let what = || "making a signalfd".to_owned();
    let fd = SignalFd::new(state.set).context(what)?;
    let fd = fd.as_fd().try_clone_to_owned().context(what)?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}
