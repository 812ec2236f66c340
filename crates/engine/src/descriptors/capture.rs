//! Looking at every descriptor of every process, and sorting them into open file descriptions.

use super::fdinfo::FdInfo;
use super::{CaptureContext, Captured, DescriptionId, ProcessView};
use crate::{EngineError, Refusal};
use std::ffi::OsString;
use std::os::fd::{OwnedFd, RawFd};

/// One open file description as it was found, seen through one of the descriptors that refer to it.
pub struct Found<'a> {
    /// A process that holds it.
    pub process: &'a ProcessView,
    /// Its number there.
    pub fd: RawFd,
    /// What `/proc/PID/fd/FD` reads as.
    pub link: OsString,
    /// Its fdinfo.
    pub info: FdInfo,
    /// `stat(2)` of what it is open on.
    pub stat: rustix::fs::Stat,
    /// An earlier description on the same inode that was captured as the same kind.
    pub earlier: Option<DescriptionId>,
    /// Every descriptor that refers to it: place of the process in [`CaptureContext::processes`], and number.
    pub holders: Vec<(usize, RawFd)>,
}

/// Why a description was not captured.
#[derive(Debug)]
pub enum Obstacle {
    /// It cannot be saved; goes into the list of all that cannot.
    Refused(Refusal),
    /// Looking at it failed.
    Error(EngineError),
}

impl From<EngineError> for Obstacle {
    fn from(error: EngineError) -> Self {
        Obstacle::Error(error)
    }
}

impl Found<'_> {
    /// A refusal that names this description.
    #[must_use]
    pub fn refuse(&self, reason: impl Into<String>, hint: impl Into<String>) -> Obstacle {
        Obstacle::Refused(Refusal {
            pid: Some(self.process.virtual_pid),
            process: self.process.name.clone(),
            object: format!("descriptor {} ({})", self.fd, self.link.to_string_lossy()),
            reason: reason.into(),
            hint: hint.into(),
        })
    }

    /// Major and minor number of the device that it is open on.
    #[must_use]
    pub fn device_numbers(&self) -> (u32, u32) {
        (
            rustix::fs::major(self.stat.st_rdev),
            rustix::fs::minor(self.stat.st_rdev),
        )
    }

    /// Its device and inode.
    #[must_use]
    pub fn inode(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// A duplicate in this process (`pidfd_getfd(2)`): the same description, so that offset and flags are shared.
    ///
    /// # Errors
    /// When the kernel does not allow it, or the descriptor is gone.
    pub fn duplicate(&self) -> Result<OwnedFd, EngineError> {
        Err(EngineError::Failed("not built".into()))
    }
}

/// Captures all descriptors of the tree.
///
/// # Errors
/// [`EngineError::Refused`] with everything that cannot be saved.
pub fn capture(ctx: &CaptureContext) -> Result<Captured, EngineError> {
    let _ = ctx;
    Err(EngineError::Failed("not built".into()))
}

/// What [`capture`] would refuse; nothing is stored, and the processes may run meanwhile.
///
/// # Errors
/// When a process cannot be looked at.
pub fn refusals(ctx: &CaptureContext) -> Result<Vec<Refusal>, EngineError> {
    match capture(ctx) {
        Ok(_) => Ok(Vec::new()),
        Err(EngineError::Refused(list)) => Ok(list),
        Err(error) => Err(error),
    }
}
