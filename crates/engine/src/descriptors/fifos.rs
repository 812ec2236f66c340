//! FIFOs: pipes with a name in the file system.
//!
//! Saved: the path, permissions, and everything that is saved of a pipe. At a restart the FIFO is opened by its path, is
//! made again where it is missing, and the bytes that were in it are put back. Not saved: one whose other side is open
//! outside the job (refused), one that somebody else has bytes in at the restart (refused).
//!
//! Facts: opening for reading and writing never waits (`fifo(7)`). A reader that was opened without waiting and has not
//! yet seen a writer gets no `POLLHUP`, one whose writers have left does: the order of opening decides.

use super::capture::{Survey, without_deleted};
use super::pipes::{self, Contents, Source};
use super::{
    DescriptionId, Found, Obstacle, Opening, RestoreContext, map_path, reopen, set_status,
};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use rustix::event::PollFlags;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(super) const FIFO: Claim = Claim::kept(
    "FIFO",
    "made again where it is missing",
    &[
        "descriptors::fifos",
        "engine-descriptors::streams::fifos_come_back_by_their_name",
        "engine-descriptors::streams::a_missing_fifo_is_made_again",
        "engine-descriptors::streams::a_deleted_fifo_comes_back_without_a_name",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[FIFO];

/// A saved description of a FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Where it is.
    pub path: PathBuf,
    /// Whether its name was already gone.
    pub deleted: bool,
    /// Permissions.
    pub mode: u32,
    /// Access mode and status flags.
    pub flags: u32,
    /// A reader that has not seen a writer yet: it waits for one rather than being at the end.
    pub waiting: bool,
    /// What is in it.
    pub pipe: Source,
}

/// Captures one.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<State, Obstacle> {
    let (path, deleted) = match found.stat.st_nlink {
        0 => (without_deleted(&found.link).0, true),
        _ => (OsStr::from_bytes(found.link.as_bytes()), false),
    };
    let pipe = match found.earlier {
        Some(first) => Source::Same(first),
        None => Source::New(pipes::whole_contents_of(whole, found)?),
    };
    let writer = |&&index: &&usize| pipes::writes(whole.founds[index].info.flags);
    let waiting = whole.on_inode(found.inode()).iter().find(writer).is_none() && {
        let duplicate = found.duplicate()?;
        !pipes::hung_up(duplicate.as_fd(), PollFlags::HUP)
            .context(|| format!("looking at {found}"))?
    };
    Ok(State {
        path: PathBuf::from(path),
        deleted,
        mode: found.stat.st_mode & 0o7777,
        flags: found.info.flags,
        waiting,
        pipe,
    })
}

/// FIFOs held open, for reading and writing where there are writers or have been, until every description of them is open.
#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<DescriptionId, OwnedFd>);

/// What is at the path: nothing, a FIFO, or something else.
fn look(path: &Path) -> Result<bool, EngineError> {
    match rustix::fs::stat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo => Ok(true),
        Ok(_) => Err(EngineError::Failed(format!(
            "{} was a FIFO and is something else now; move it away",
            path.display()
        ))),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error).context(|| format!("looking at {}", path.display())),
    }
}

/// What [`restore`] is going to do.
pub(super) fn plan(state: &State, ctx: &RestoreContext) -> Result<Option<String>, EngineError> {
    let path = map_path(&state.path, ctx.path_map);
    if state.deleted || look(&path)? {
        return Ok(None);
    }
    Ok(Some(format!("make the FIFO {} again", path.display())))
}

/// Opens it again.
pub(super) fn restore(
    state: &State,
    id: DescriptionId,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    let first = match &state.pipe {
        Source::New(contents) => {
            let holder = hold(state, contents, opening)?;
            let holder = opening.place(holder)?;
            opening.fifos.0.insert(id, holder);
            id
        }
        Source::Same(first) => *first,
    };
    let holder =
        opening.fifos.0.get(&first).ok_or_else(|| {
            EngineError::Failed("a FIFO of the image has no first opening".into())
        })?;
    let fd = reopen(holder.as_fd(), state.flags & 3 | OFlags::NONBLOCK.bits())
        .context(|| format!("opening {}", state.path.display()))?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

fn hold(state: &State, contents: &Contents, opening: &mut Opening) -> Result<OwnedFd, EngineError> {
    let mut path = map_path(&state.path, opening.context.path_map);
    if state.deleted {
        path = temporary(&path);
    }
    let what = || format!("opening {}", path.display());
    if !look(&path)? {
        rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(state.mode))
            .context(|| format!("making {}", path.display()))?;
        // The umask has taken bits away.
        rustix::fs::chmod(&path, Mode::from_raw_mode(state.mode)).context(what)?;
    }
    let access = if state.waiting {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let holder = rustix::fs::open(&path, flags, Mode::empty()).context(what);
    if state.deleted {
        let _ = rustix::fs::unlink(&path);
    }
    let holder = holder?;
    if rustix::io::ioctl_fionread(&holder).context(what)? > 0 {
        return Err(EngineError::Failed(format!(
            "{} is in use: another process has written to it; end that process first",
            path.display()
        )));
    }
    if let Some(note) = pipes::fill(contents, holder.as_fd())? {
        opening.notes.push(format!("{}: {note}", path.display()));
    }
    Ok(holder)
}

/// A name beside `path` that nothing has, for a FIFO that is to have none.
fn temporary(path: &Path) -> PathBuf {
    let directory = path
        .parent()
        .filter(|parent| parent.is_dir())
        .map_or_else(std::env::temp_dir, Path::to_owned);
    let pid = std::process::id();
    let mut number = 0u32;
    loop {
        let candidate = directory.join(format!(".stasis-fifo-{pid}-{number}"));
        if !candidate.exists() {
            return candidate;
        }
        number += 1;
    }
}
