//! Regular files, deleted files, and descriptors opened with `O_PATH`.
//!
//! Saved of a description: the file (see [`crate::file_policy`]), offset, access mode and status flags (`O_APPEND`,
//! `O_DIRECT`, `O_NOATIME`, `O_SYNC`, `O_NONBLOCK`, ...), locks that belong to it.
//! Not saved: advice given with `posix_fadvise(2)`, write-life hints.
//!
//! Facts it rests on
//! - The flags in fdinfo are those of `open(2)` but `O_CREAT`, `O_EXCL`, `O_NOCTTY` and `O_TRUNC`, as `F_SETFL` has changed them.
//! - A file is opened for a new description through its path, or, without a name, through `/proc/self/fd`, which checks the
//!   permissions of the file anew: what the program opened before a `chmod` took the permission away cannot be opened again.
//! - The files of `/proc`, `/sys` and the like are windows into the kernel: they are opened again, not compared. What belongs
//!   to a process can only be opened when that exists: [`State::is_late`].

pub mod proc;

use super::{CaptureContext, Found, Obstacle, Opening, Plan, RestoreContext, locks};
use crate::EngineError;
use crate::error::Context;
use crate::file_policy::paths::{Location, is_proc, is_window, kind_name, locate, refusal, show};
use crate::file_policy::{FileIndex, PathBytes, PathMap, Uses};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, fstat, fstatfs, open, seek, statat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A saved description of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What it is open on.
    pub target: Target,
    /// Its path, for messages.
    pub path: PathBytes,
    /// Access mode and status flags (`O_*` of the architecture).
    pub flags: u32,
    /// Its offset in bytes.
    pub offset: u64,
    /// The locks that belong to it.
    pub locks: locks::State,
}

/// What a description is open on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A regular file of the image's table.
    File(FileIndex),
    /// A file of `/proc`.
    Proc(proc::State),
    /// A file of `/sys` or the like.
    Window(PathBytes),
    /// Something that is not a regular file, by its name alone (`O_PATH`).
    Name {
        /// The path.
        path: PathBytes,
        /// The type bits of its mode.
        file_type: u32,
    },
}

impl State {
    /// The path it was opened by, as a message would name it.
    #[must_use]
    pub fn path(&self) -> String {
        self.path.to_string()
    }
    /// The offset that it had.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// It can only be opened, by [`restore_late`], when the processes of the tree exist.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(&self.target, Target::Proc(state) if state.process.is_some())
    }
    fn flags(&self) -> OFlags {
        let making = OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::NOCTTY;
        OFlags::from_bits_retain(self.flags).difference(making) | OFlags::CLOEXEC
    }
}

/// Captures one.
///
/// # Errors
/// What stands in the way.
pub fn capture(found: &Found, ctx: &CaptureContext) -> Result<State, Obstacle> {
    if !found.link.is_empty() && !found.link.as_bytes().starts_with(b"/") {
        return Err(found.refuse("it cannot be opened again by a name", ""));
    }
    capture_handle(found, found.duplicate()?.as_fd(), ctx)
}

/// Captures one through a duplicate.
fn capture_handle(
    found: &Found,
    handle: BorrowedFd<'_>,
    ctx: &CaptureContext,
) -> Result<State, Obstacle> {
    // First: to open what is leased to the program would have it give the lease up.
    let locks = locks::of_description(found)?;
    let looking = || format!("looking at {found}");
    let statfs = fstatfs(handle).context(looking)?;
    let flags = OFlags::from_bits_retain(found.info.flags);
    let regular = FileType::from_raw_mode(found.stat.st_mode).is_file();
    let target = if is_proc(&statfs) {
        Target::Proc(proc::capture(found, ctx)?)
    } else if regular && is_window(&statfs) {
        Target::Window(PathBytes::from(found.link.as_bytes()))
    } else if regular {
        let uses = uses(flags);
        let link = (!found.link.is_empty()).then(|| found.link.as_bytes());
        let index = ctx
            .files
            .descriptor(handle, link, uses)
            .map_err(|refusal| of_process(refusal, found))?;
        Target::File(index)
    } else {
        match locate(&found.stat, Some(found.link.as_bytes())) {
            Location::At(path) => Target::Name {
                path: PathBytes::from(path.as_path()),
                file_type: FileType::from_raw_mode(found.stat.st_mode).as_raw_mode(),
            },
            _ => {
                return Err(found.refuse(
                    "what it names has been deleted",
                    "let the program close it before the checkpoint",
                ));
            }
        }
    };
    Ok(State {
        target,
        path: PathBytes::from(found.link.as_bytes()),
        flags: found.info.flags,
        offset: found.info.position,
        locks,
    })
}

fn uses(flags: OFlags) -> Uses {
    if flags.contains(OFlags::PATH) {
        return Uses::default();
    }
    let access = flags & OFlags::ACCMODE;
    Uses {
        // 3 is a mode for ioctl alone, and asks for both permissions.
        read: access != OFlags::WRONLY,
        written: access != OFlags::RDONLY,
        ..Uses::default()
    }
}

fn of_process(mut refusal: crate::Refusal, found: &Found) -> Obstacle {
    refusal.pid = Some(found.process.virtual_pid);
    refusal.process.clone_from(&found.process.name);
    refusal.object = format!("descriptor {} ({})", found.fd, refusal.object);
    Obstacle::Refused(refusal)
}

/// Adds to `plan` what [`restore`] is going to do, or why it cannot. Files of the table are planned for by
/// [`crate::file_policy::plan()`].
pub fn plan(state: &State, ctx: &RestoreContext, plan: &mut Plan) {
    let (path, file_type) = match &state.target {
        Target::File(_) => return,
        Target::Proc(proc) if proc.process.is_some() => return,
        Target::Proc(proc) => (proc.path.as_path().to_owned(), None),
        Target::Window(path) => (path.as_path().to_owned(), None),
        Target::Name { path, file_type } => (mapped(path, ctx), Some(*file_type)),
    };
    match statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => {
            let now = FileType::from_raw_mode(stat.st_mode);
            let expected = file_type.map(FileType::from_raw_mode);
            if let Some(expected) = expected.filter(|expected| *expected != now) {
                plan.refusals.push(refusal(
                    show(&path),
                    format!(
                        "it was {} at the checkpoint and is {} now",
                        kind_name(expected),
                        kind_name(now)
                    ),
                    "put back what was there, or use --map-path",
                ));
            } else {
                plan.actions.push(format!("opens {}", show(&path)));
            }
        }
        Err(error) => plan.refusals.push(refusal(
            show(&path),
            if error == Errno::NOENT {
                "it is missing".to_owned()
            } else {
                format!("it cannot be looked at: {error}")
            },
            "put it back, or use --map-path",
        )),
    }
}

fn mapped(path: &PathBytes, ctx: &RestoreContext) -> PathBuf {
    PathMap::new(ctx.path_map).apply(path.as_path())
}

/// Opens the file, which has been brought into the saved state, at the saved offset, and takes the locks that belong to
/// the description.
///
/// # Errors
/// When it is missing or locked by somebody else.
pub fn restore(state: &State, opening: &mut Opening) -> Result<OwnedFd, EngineError> {
    open_in(state, opening.context)
}

fn open_in(state: &State, ctx: &RestoreContext) -> Result<OwnedFd, EngineError> {
    let path = match &state.target {
        Target::File(index) => {
            let files = ctx.files.ok_or_else(|| {
                EngineError::Failed(format!("{} has not been made ready", state.path))
            })?;
            return placed(files.open(*index, state.flags())?, state);
        }
        Target::Proc(proc) => proc.path.as_path().to_owned(),
        Target::Window(path) => path.as_path().to_owned(),
        Target::Name { path, .. } => mapped(path, ctx),
    };
    let opened = || format!("opening {}", show(&path));
    let fd = open(&path, state.flags(), Mode::empty()).context(opened)?;
    if let Target::Name { file_type, .. } = state.target {
        let stat = fstat(&fd).context(opened)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::from_raw_mode(file_type) {
            return Err(EngineError::Failed(format!(
                "{} is something else than at the checkpoint",
                show(&path)
            )));
        }
    }
    placed(fd, state)
}

/// Opens what [`State::is_late`]: called when all processes exist, in one that may look at the one it is about.
///
/// # Errors
/// The kernel's.
pub fn restore_late(state: &State) -> Result<OwnedFd, EngineError> {
    let fd = open(state.path_of_proc(), state.flags(), Mode::empty())
        .context(|| format!("opening {}", state.path_of_proc().display()))?;
    placed(fd, state)
}

impl State {
    fn path_of_proc(&self) -> &std::path::Path {
        match &self.target {
            Target::Proc(proc) => proc.path.as_path(),
            _ => self.path.as_path(),
        }
    }
}

fn placed(fd: OwnedFd, state: &State) -> Result<OwnedFd, EngineError> {
    if state.flags().contains(OFlags::PATH) {
        return Ok(fd);
    }
    if state.offset != 0 {
        seek(&fd, SeekFrom::Start(state.offset))
            .context(|| format!("setting the offset {} of {}", state.offset, state.path))?;
    }
    locks::take(fd.as_fd(), &state.locks)?;
    Ok(fd)
}

#[cfg(test)]
pub(in crate::descriptors) mod tests;
