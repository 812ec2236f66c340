//! Memory devices: `/dev/null`, `zero`, `full`, `random`, `urandom`.
//!
//! Saved: which one, and the flags. There is no other state: they have no contents, and their offset means nothing.
//! Facts: their numbers are fixed (`Documentation/admin-guide/devices.txt`, major 1).

use super::unsupported;
use super::{Found, Obstacle};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

pub(super) const DEVICE: Claim = Claim::kept(
    "memory device",
    "/dev/null, zero, full, random, urandom",
    &[
        "descriptors::devices",
        "engine-descriptors::kinds::devices_keep_their_flags",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[DEVICE];

/// A saved description of a memory device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Which.
    pub device: Device,
    /// Access mode and status flags.
    pub flags: u32,
}

/// The devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// `/dev/null`
    Null,
    /// `/dev/zero`
    Zero,
    /// `/dev/full`
    Full,
    /// `/dev/random`
    Random,
    /// `/dev/urandom`
    Urandom,
}

const MEMORY_DEVICES: u32 = 1;

impl Device {
    const ALL: [Device; 5] = [
        Device::Null,
        Device::Zero,
        Device::Full,
        Device::Random,
        Device::Urandom,
    ];

    fn minor(self) -> u32 {
        match self {
            Device::Null => 3,
            Device::Zero => 5,
            Device::Full => 7,
            Device::Random => 8,
            Device::Urandom => 9,
        }
    }

    /// Where it is found.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Device::Null => "/dev/null",
            Device::Zero => "/dev/zero",
            Device::Full => "/dev/full",
            Device::Random => "/dev/random",
            Device::Urandom => "/dev/urandom",
        }
    }

    /// The one with these numbers.
    #[must_use]
    pub fn from_numbers(major: u32, minor: u32) -> Option<Device> {
        if major != MEMORY_DEVICES {
            return None;
        }
        Device::ALL.into_iter().find(|d| d.minor() == minor)
    }
}

/// Captures one.
pub(super) fn capture(found: &Found) -> Result<State, Obstacle> {
    let (major, minor) = found.device_numbers();
    match Device::from_numbers(major, minor) {
        Some(device) => Ok(State {
            device,
            flags: found.info.flags,
        }),
        None => Err(unsupported::device(found)),
    }
}

/// Opens it again.
pub(super) fn restore(state: &State) -> Result<OwnedFd, EngineError> {
    let path = state.device.path();
    let flags = OFlags::from_bits_retain(state.flags) | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty()).context(|| format!("opening {path}"))?;
    let stat = rustix::fs::fstat(&fd).context(|| format!("looking at {path}"))?;
    let numbers = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    if Device::from_numbers(numbers.0, numbers.1) == Some(state.device) {
        Ok(fd)
    } else {
        Err(EngineError::Failed(format!(
            "{path} is not the device of that name: it has the numbers {}, {}",
            numbers.0, numbers.1
        )))
    }
}
