//! Directories: open ones, working directories and roots.
//!
//! Saved: the path, flags, locks, and the position of `getdents(2)`, with the name of the entry that comes next.
//! Not saved: what is in the directory. A deleted directory is refused.
//!
//! Facts it rests on
//! - The position of a directory is a cookie of its file system (`d_off`): on ext4 a hash of the name, on xfs and btrfs a key,
//!   on tmpfs a number that lasts as long as the entry. It means the same after a restart as long as the directory is the
//!   same one. Where it is another (copied, rebuilt, tmpfs after a reboot), the name of the next entry leads to its cookie.
//! - A library reads ahead: glibc's `readdir(3)` asks for 32 KiB at once, so most programs stand at the end.

use super::files::proc;
use super::{CaptureContext, Found, Obstacle, Opening, Plan, RestoreContext, locks};
use crate::error::Context;
use crate::file_policy::paths::{Location, is_proc, is_window, kind_name, locate, refusal, show};
use crate::file_policy::{FileId, PathBytes, PathMap};
use crate::{EngineError, Refusal};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, accessat, fstat, fstatfs,
    open, readlinkat, seek, stat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A saved description of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its path.
    pub path: PathBytes,
    /// Where it is in `/proc`, if it is there.
    pub proc: Option<proc::State>,
    /// Which directory it was.
    pub id: FileId,
    /// Access mode and status flags (`O_*` of the architecture).
    pub flags: u32,
    /// The cookie of the next entry.
    pub cookie: u64,
    /// The next entry.
    pub next: Next,
    /// The locks that belong to the description (`flock`).
    pub locks: locks::State,
}

/// What `getdents(2)` would give next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// The first entry: nothing has been read.
    First,
    /// This one.
    Name(#[serde(with = "serde_bytes")] Vec<u8>),
    /// None.
    End,
    /// The cookie alone tells: in `/proc` and the like, where entries come and go.
    Cookie,
}

impl State {
    /// It can only be opened, by [`restore_late`], when the processes of the tree exist.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.proc
            .as_ref()
            .is_some_and(|proc| proc.process.is_some())
    }
    fn place(&self, map: &[(String, String)]) -> PathBuf {
        match &self.proc {
            Some(proc) => proc.path.as_path().to_owned(),
            None => PathMap::new(map).apply(self.path.as_path()),
        }
    }
}

/// Captures one.
///
/// # Errors
/// What stands in the way.
pub fn capture(found: &Found, ctx: &CaptureContext) -> Result<State, Obstacle> {
    let handle = found.duplicate()?;
    let looking = || {
        format!(
            "looking at descriptor {} ({})",
            found.fd,
            found.link.display()
        )
    };
    let statfs = fstatfs(&handle).context(looking)?;
    let (path, proc) = if is_proc(&statfs) {
        let proc = proc::capture(found, ctx)?;
        (proc.path.clone(), Some(proc))
    } else {
        let link = (!found.link.is_empty()).then(|| found.link.as_bytes());
        let path =
            found_at(&found.stat, link).map_err(|(reason, hint)| found.refuse(reason, hint))?;
        (PathBytes::from(path.as_path()), None)
    };
    let cookie = found.info.position;
    let next = if cookie == 0 {
        Next::First
    } else if is_proc(&statfs) || is_window(&statfs) {
        Next::Cookie
    } else {
        next_at(
            Path::new(&format!("/proc/self/fd/{}", handle.as_raw_fd())),
            cookie,
        )
        .context(looking)?
    };
    Ok(State {
        path,
        proc,
        id: id_of(&found.stat),
        flags: found.info.flags,
        cookie,
        next,
        locks: locks::of_description(found)?,
    })
}

fn id_of(stat: &Stat) -> FileId {
    FileId {
        device: stat.st_dev,
        inode: stat.st_ino,
    }
}

/// The path of a directory, or why there is none, and what to do.
fn found_at(stat: &Stat, link: Option<&[u8]>) -> Result<PathBuf, (&'static str, &'static str)> {
    match locate(stat, link) {
        Location::At(path) => Ok(path),
        Location::Unlinked(_) | Location::Elsewhere(_) => Err((
            "the directory has been deleted",
            "make the program leave or close it before the checkpoint",
        )),
        Location::TooLong => Err((
            "its path is longer than 4096 bytes, so the kernel cannot tell it",
            "run the program in a directory with a shorter path",
        )),
    }
}

/// A description of our own on a directory, to read entries from.
fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => open(path, flags, Mode::empty()),
        other => other,
    }
}

/// The entry at `cookie`.
fn next_at(path: &Path, cookie: u64) -> Result<Next, Errno> {
    let directory = open_directory(path)?;
    seek(&directory, SeekFrom::Start(cookie))?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    match RawDir::new(&directory, &mut buffer).next() {
        Some(entry) => Ok(Next::Name(entry?.file_name().to_bytes().to_vec())),
        None => Ok(Next::End),
    }
}

/// The cookie that leads to the entry `name`, or, for `None`, to the end. `None` when there is no such entry.
fn cookie_of(path: &Path, name: Option<&[u8]>) -> Result<Option<u64>, Errno> {
    let directory = open_directory(path)?;
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut entries = RawDir::new(&directory, &mut buffer);
    let mut cookie = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if Some(entry.file_name().to_bytes()) == name {
            return Ok(Some(cookie));
        }
        cookie = entry.next_entry_cookie();
    }
    Ok(name.is_none().then_some(cookie))
}

/// The position at which the directory, as it is now, goes on as it would have; `None` where there is none.
fn position(state: &State, path: &Path, now: FileId) -> Result<Option<u64>, Errno> {
    let same = now == state.id;
    Ok(match &state.next {
        Next::First => Some(0),
        Next::Cookie => Some(state.cookie),
        Next::End if same => Some(state.cookie),
        Next::End => cookie_of(path, None)?,
        Next::Name(name) => {
            if next_at(path, state.cookie).is_ok_and(|next| next == state.next) {
                Some(state.cookie)
            } else {
                // Where the entry was removed from the same directory, its cookie leads to the one after it.
                cookie_of(path, Some(name))?.or(same.then_some(state.cookie))
            }
        }
    })
}

/// Adds to `plan` what [`restore`] is going to do, or why it cannot.
pub fn plan(state: &State, ctx: &RestoreContext, plan: &mut Plan) {
    if state.is_late() {
        return;
    }
    let path = state.place(ctx.path_map);
    let stat = match check_directory(&path, OFlags::from_bits_retain(state.flags)) {
        Ok(stat) => stat,
        Err(refusal) => return plan.refusals.push(refusal),
    };
    match position(state, &path, id_of(&stat)) {
        Ok(Some(_)) => plan
            .actions
            .push(format!("opens the directory {}", show(&path))),
        Ok(None) => plan.refusals.push(lost_position(&path)),
        Err(error) => plan.refusals.push(refusal(
            format!("directory {}", show(&path)),
            format!("it cannot be read: {error}"),
            "give yourself the permission (chmod)",
        )),
    }
}

fn lost_position(path: &Path) -> Refusal {
    refusal(
        format!("directory {}", show(path)),
        "the program was in the middle of reading it, and the directory that is there now is another one without the entry that came next",
        "put the directory of the checkpoint back, or use --map-path",
    )
}

/// That `path` is a directory which can be opened with these flags.
fn check_directory(path: &Path, flags: OFlags) -> Result<Stat, Refusal> {
    let object = || format!("directory {}", show(path));
    let found = stat(path).map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => refusal(
            object(),
            "it is missing",
            format!("make it again (mkdir -p {}), or use --map-path", show(path)),
        ),
        error => refusal(
            object(),
            format!("it cannot be looked at: {error}"),
            "check the permissions of the directories above it",
        ),
    })?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if !kind.is_dir() {
        return Err(refusal(
            object(),
            format!("it is {} now", kind_name(kind)),
            "put the directory back, or use --map-path",
        ));
    }
    if !flags.contains(OFlags::PATH) {
        accessat(CWD, path, Access::READ_OK, AtFlags::EACCESS).map_err(|error| {
            refusal(
                object(),
                format!("it cannot be opened: {error}"),
                "give yourself the permission (chmod)",
            )
        })?;
    }
    Ok(found)
}

/// Opens the directory at the saved position, and takes the locks that belong to the description.
///
/// # Errors
/// When it is missing, or its position cannot be found again.
pub fn restore(state: &State, opening: &mut Opening) -> Result<OwnedFd, EngineError> {
    open_at(state, &state.place(opening.context.path_map))
}

/// Opens what [`State::is_late`]: called when all processes exist, in one that may look at the one it is about.
///
/// # Errors
/// The kernel's.
pub fn restore_late(state: &State) -> Result<OwnedFd, EngineError> {
    open_at(state, &state.place(&[]))
}

fn open_at(state: &State, path: &Path) -> Result<OwnedFd, EngineError> {
    let opening = || format!("opening the directory {}", show(path));
    let making = OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::NOCTTY;
    let flags = OFlags::from_bits_retain(state.flags).difference(making);
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = open(path, flags, Mode::empty()).context(opening)?;
    let now = id_of(&fstat(&fd).context(opening)?);
    let at = position(state, path, now)
        .context(opening)?
        .ok_or_else(|| EngineError::Refused(vec![lost_position(path)]))?;
    if at != 0 {
        seek(&fd, SeekFrom::Start(at)).context(opening)?;
    }
    locks::take(fd.as_fd(), &state.locks)?;
    Ok(fd)
}

/// A directory that a process is in: `cwd` or `root`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its path.
    pub path: PathBytes,
}

impl Place {
    /// Finds it from `/proc/PID/cwd` or `/proc/PID/root`; `task` may be a process or a path such as `12/task/13`.
    ///
    /// # Errors
    /// The directory has been deleted, or its path is too long to be told.
    pub fn capture(task: impl Display, name: &str) -> Result<Place, Refusal> {
        let link = format!("/proc/{task}/{name}");
        let object = |text: &str| match name {
            "cwd" => format!("working directory {text}"),
            _ => format!("root directory {text}"),
        };
        let text = match readlinkat(CWD, &link, Vec::new()) {
            Ok(text) => Some(text.into_bytes()),
            Err(Errno::NAMETOOLONG) => None,
            Err(error) => {
                return Err(refusal(
                    object(""),
                    format!("it cannot be looked at: {error}"),
                    "",
                ));
            }
        };
        let shown = PathBytes(text.clone().unwrap_or_default()).to_string();
        let stat = stat(&link).map_err(|error| {
            refusal(
                object(&shown),
                format!("it cannot be looked at: {error}"),
                "",
            )
        })?;
        found_at(&stat, text.as_deref())
            .map(|path| Place {
                path: PathBytes::from(path.as_path()),
            })
            .map_err(|(reason, hint)| refusal(object(&shown), reason, hint))
    }

    /// Where it is now, if a process can go there.
    ///
    /// # Errors
    /// It is missing, no directory, or not to be entered.
    pub fn check(&self, map: &PathMap) -> Result<PathBuf, Refusal> {
        let path = map.apply(self.path.as_path());
        check_directory(&path, OFlags::PATH)?;
        accessat(CWD, &path, Access::EXEC_OK, AtFlags::EACCESS).map_err(|error| {
            refusal(
                format!("directory {}", show(&path)),
                format!("it cannot be entered: {error}"),
                "give yourself the permission (chmod)",
            )
        })?;
        Ok(path)
    }
}
