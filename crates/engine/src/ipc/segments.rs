//! System V shared memory.
//!
//! Saved: id, key, owner, mode, size, contents (once, whoever has it attached, and also where nobody has), whether it is to go with the last
//! process that has it (`SHM_DEST`), whether it is locked in memory; where each process has it attached, and whether only to be read.
//! What is mapped of a segment after munmap(2), mprotect(2) or mremap(2) comes back as it was.
//!
//! Not saved: who made it and who used it last, and the times of that. These are what they were on a leftover, and otherwise the restart's.
//!
//! Rests on: the inode number of an attached segment, as maps shows it, is its id (`newseg`, `ipc/shm.c`). Linux lets a segment that is
//! about to go be attached by its id. Each area of a segment counts as an attachment.

use super::table::Object;
use super::{Loader, failure};
use crate::EngineError;
use crate::calls::Calls;
use crate::memory::{Area, Backing};
use serde::{Deserialize, Serialize};
use stasis_sys::sysv::{self, Attachment, Permissions};
use stasis_tracee::TraceError;
use std::io;
use std::ops::Range;

/// What an image keeps of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Id, key, owner.
    pub object: Object,
    /// Bytes.
    pub size: u64,
    /// It goes with the last process that has it attached.
    pub ends: bool,
    /// Locked in memory (`SHM_LOCK`).
    pub locked: bool,
    /// The object of the image with its contents.
    pub contents: u32,
}

const SHM_DEST: u32 = 0o1000;
const SHM_LOCKED: u32 = 0o2000;

/// A segment as it was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// What an image keeps; the number of the contents is still to come.
    pub state: State,
    /// How often it was attached.
    pub attached: u64,
    /// Where the process that looks has it.
    pub address: u64,
    /// Which parts of it hold something.
    pub resident: Vec<Range<u64>>,
}

/// Looks at a segment, which the calling process then has attached.
///
/// # Errors
/// When it may not be read, or is gone.
pub fn look(object: &Object, row: &super::table::Row) -> io::Result<(Seen, Attachment)> {
    let size = row.size();
    let attachment = Attachment::new(object.id, size as usize, true)?;
    // What is swapped out counts as not resident.
    let resident = if row.number::<u64>("swap").unwrap_or(0) > 0 {
        std::iter::once(0..size.next_multiple_of(stasis_sys::pagemap::PAGE)).collect()
    } else {
        attachment.resident()?
    };
    let seen = Seen {
        state: State {
            object: object.clone(),
            size,
            ends: row.mode() & SHM_DEST != 0,
            locked: row.mode() & SHM_LOCKED != 0,
            contents: 0,
        },
        attached: row.attached(),
        address: attachment.address(),
        resident,
    };
    Ok((seen, attachment))
}

/// Gives a segment that has just been made, or found again, contents and owner. It stays while the result lives, also where it is to go.
///
/// # Errors
/// When it cannot be filled.
pub fn fill(
    state: &State,
    loader: &dyn Loader,
    notes: &mut Vec<String>,
) -> Result<Attachment, EngineError> {
    let id = state.object.id;
    let failed = |source| failure(&super::Kind::Segment.words(id), source);
    let attachment = Attachment::new(id, state.size as usize, false).map_err(failed)?;
    // One that was found again has other contents.
    attachment.clear().map_err(failed)?;
    loader.each(state.contents, &mut |offset, bytes| {
        attachment.write(offset, bytes)
    })?;
    if state.locked && sysv::lock_segment(id).is_err() {
        notes.push(format!(
            "{} could not be locked in memory again",
            super::Kind::Segment.words(id)
        ));
    }
    let permissions = Permissions {
        uid: state.object.uid,
        gid: state.object.gid,
        mode: state.object.mode,
    };
    super::tell(
        notes,
        super::Kind::Segment,
        id,
        sysv::set_segment(id, permissions),
    );
    if state.ends {
        sysv::remove_segment(id).map_err(failed)?;
    }
    Ok(attachment)
}

/// Neighbouring areas that one attachment has become.
struct Run<'a> {
    areas: &'a [Area],
    id: i32,
    offset: u64,
    read_only: bool,
}

fn segment_of(area: &Area) -> Option<(i32, u64, bool)> {
    match area.backing {
        Backing::Segment {
            id,
            offset,
            read_only,
        } => Some((id, offset, read_only)),
        _ => None,
    }
}

fn runs(areas: &[Area]) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while let Some(area) = areas.get(at) {
        let Some((id, offset, read_only)) = segment_of(area) else {
            at += 1;
            continue;
        };
        let start = area.range.start;
        let goes_on = |n: &usize| {
            areas[*n].range.start == areas[n - 1].range.end
                && segment_of(&areas[*n])
                    == Some((id, offset + (areas[*n].range.start - start), read_only))
        };
        let end = (at + 1..areas.len())
            .take_while(goes_on)
            .last()
            .map_or(at + 1, |last| last + 1);
        runs.push(Run {
            areas: &areas[at..end],
            id,
            offset,
            read_only,
        });
        at = end;
    }
    runs
}

/// Attaches segments to a new process, where its areas say.
///
/// # Errors
/// When a remote call fails.
pub fn attach(
    areas: &[Area],
    segments: &[State],
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    for run in runs(areas) {
        let Some(state) = segments.iter().find(|state| state.object.id == run.id) else {
            return Err(EngineError::Failed(format!(
                "the image does not hold {}",
                super::Kind::Segment.words(run.id)
            )));
        };
        let len = state.size.next_multiple_of(stasis_sys::pagemap::PAGE);
        attach_run(&run, len, calls)?;
        for area in run.areas {
            let whole = libc::PROT_READ | if run.read_only { 0 } else { libc::PROT_WRITE };
            if area.protection != whole {
                let len = area.range.end - area.range.start;
                let arguments = [area.range.start, len, area.protection as u64];
                calls.call("mprotect", libc::SYS_mprotect, &arguments)?;
            }
        }
    }
    Ok(())
}

fn attach_run(run: &Run<'_>, len: u64, calls: &mut Calls<'_>) -> Result<(), TraceError> {
    let flags = if run.read_only { libc::SHM_RDONLY } else { 0 } as u64;
    let start = run.areas[0].range.start;
    let end = run.areas[run.areas.len() - 1].range.end;
    let attach = |at: u64, calls: &mut Calls<'_>| {
        calls.call("shmat", libc::SYS_shmat, &[run.id as u64, at, flags])
    };
    if run.offset == 0 && end - start == len {
        return attach(start, calls).map(drop);
    }
    // A part of it: attached elsewhere, of which that part is moved here and the rest goes.
    const MOVE: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    let whole = attach(0, calls)?;
    let part = end - start;
    let arguments = [whole + run.offset, part, part, MOVE, start];
    calls.call("mremap", libc::SYS_mremap, &arguments)?;
    let mut unmap = |from: u64, to: u64| match from < to {
        true => calls
            .call("munmap", libc::SYS_munmap, &[from, to - from])
            .map(drop),
        false => Ok(()),
    };
    unmap(whole, whole + run.offset)?;
    unmap(whole + run.offset + part, whole + len)
}
