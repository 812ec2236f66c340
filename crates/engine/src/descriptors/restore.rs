//! Opening every description again, and giving each process its descriptors.

use super::{Description, DescriptionId, Plan, ProcessView, RestoreContext, Table};
use crate::EngineError;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// The lowest descriptor number that no process uses and no epoll set watches, nor any above.
#[must_use]
pub fn first_free(tables: &[Table], descriptions: &[Description]) -> RawFd {
    let _ = (tables, descriptions);
    0
}

/// A restart in the middle of opening descriptions.
pub struct Opening<'a> {
    /// What is known.
    pub context: &'a RestoreContext<'a>,
    /// What the user should know.
    pub notes: Vec<String>,
    fds: Vec<Option<OwnedFd>>,
}

impl Opening<'_> {
    /// A description that was opened before. Descriptions are opened in ascending order.
    #[must_use]
    pub fn fd(&self, id: DescriptionId) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.fds.get(id.index())?.as_ref().map(AsFd::as_fd)
    }
}

/// All descriptions, open.
#[derive(Debug, Default)]
pub struct Opened {
    /// What the user should know.
    pub notes: Vec<String>,
    fds: Vec<Option<OwnedFd>>,
}

impl Opened {
    /// The descriptor of a description, at or above [`RestoreContext::first_free`], the same number in every process
    /// that inherited it. `None` for one that can only be made in [`finish`].
    #[must_use]
    pub fn fd(&self, id: DescriptionId) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.fds.get(id.index())?.as_ref().map(AsFd::as_fd)
    }
}

/// What [`open_all`] is going to do. Nothing is touched.
#[must_use]
pub fn plan(descriptions: &[Description], ctx: &RestoreContext) -> Plan {
    let _ = (descriptions, ctx);
    Plan::default()
}

/// Opens every description. Called in the keeper, which has one thread, before the program's processes exist.
///
/// # Errors
/// All failures at once.
pub fn open_all(descriptions: &[Description], ctx: &RestoreContext) -> Result<Opened, EngineError> {
    let _ = (descriptions, ctx);
    Err(EngineError::Failed("not built".into()))
}

/// Puts the descriptors of one process in place, in that process. Every other descriptor below
/// [`RestoreContext::first_free`] is closed: what the caller needs must lie above. The high ones stay.
///
/// # Errors
/// When the descriptor limit does not allow a number.
pub fn install(table: &Table, opened: &Opened) -> Result<(), EngineError> {
    let _ = (table, opened);
    Err(EngineError::Failed("not built".into()))
}

/// Makes, in one process, what needs its final descriptors or the other processes. Called in every process, `process`
/// being its place in `tables`, after [`install`] and after every process exists with its final id; calls in different
/// processes wait for each other.
///
/// # Errors
/// When a step fails.
pub fn finish(
    process: usize,
    tables: &[Table],
    descriptions: &[Description],
    opened: &Opened,
) -> Result<(), EngineError> {
    let _ = (process, tables, descriptions, opened);
    Err(EngineError::Failed("not built".into()))
}

/// Closes, in one process, every descriptor from `first_free` on except those in `keep`, then takes the process's own
/// record locks again.
///
/// # Errors
/// When a lock cannot be taken.
pub fn close_high(
    process: &ProcessView,
    table: &Table,
    first_free: RawFd,
    keep: &[RawFd],
) -> Result<(), EngineError> {
    let _ = (first_free, keep);
    super::locks::restore(&table.locks, process)
}
