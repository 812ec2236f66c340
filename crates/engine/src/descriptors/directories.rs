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
use crate::conformance::Claim;
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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(super) const DIRECTORY: Claim = Claim::kept(
    "directory",
    "with the place where it is read",
    &["descriptors::directories"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    DIRECTORY,
    Claim::refused(
        "deleted directory",
        "",
        &[
            "check::a_deleted_directory",
            "engine::descriptors::directories::tests::a_deleted_directory_is_refused_and_a_missing_one_told",
        ],
    ),
];

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
    capture_handle(found, found.duplicate()?.as_fd(), ctx)
}

/// Captures one through a duplicate.
fn capture_handle(
    found: &Found,
    handle: BorrowedFd<'_>,
    ctx: &CaptureContext,
) -> Result<State, Obstacle> {
    let looking = || format!("looking at {found}");
    let statfs = fstatfs(handle).context(looking)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::ProcessView;
    use crate::descriptors::files::tests::{found, this_process};
    use crate::file_policy::Collector;
    use std::collections::BTreeSet;
    use std::fs;

    fn directory_of(names: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for n in 0..names {
            fs::write(dir.path().join(format!("file-{n}")), b"").expect("writable");
        }
        dir
    }

    fn save(fd: &OwnedFd, process: &ProcessView) -> Result<State, Obstacle> {
        let collector = Collector::new(0);
        let processes = [process.clone()];
        let ctx = CaptureContext {
            processes: &processes,
            stdio: &[None, None, None],
            inherited: &[],
            contents: None,
            file_content_limit: 0,
            files: &collector,
        };
        capture_handle(&found(process, fd.as_fd()), fd.as_fd(), &ctx)
    }

    /// Up to `most` names from the present position on, by calls that read few entries at once.
    fn read(fd: &OwnedFd, most: usize) -> Vec<String> {
        let mut names = Vec::new();
        while names.len() < most {
            let mut buffer = [MaybeUninit::uninit(); 64];
            let mut entries = RawDir::new(fd, &mut buffer);
            match entries.next() {
                Some(entry) => {
                    let entry = entry.expect("an entry");
                    names.push(entry.file_name().to_string_lossy().into_owned());
                    let next = entry.next_entry_cookie();
                    seek(fd, SeekFrom::Start(next)).expect("seek");
                }
                None => break,
            }
        }
        names
    }

    #[test]
    fn reading_goes_on_where_it_was() {
        let dir = directory_of(50);
        let process = this_process();
        for already in [0, 1, 17, 60] {
            let fd = open_directory(dir.path()).expect("open");
            let mut names = read(&fd, already);
            let state = save(&fd, &process).expect("can be saved");
            drop(fd);
            let fd = open_at(&state, dir.path()).expect("restored");
            names.extend(read(&fd, usize::MAX));
            assert_eq!(names.len(), 52, "with . and ..");
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 52);
        }
    }

    #[test]
    fn another_directory_goes_on_at_the_same_name() {
        let (dir, copy) = (directory_of(20), directory_of(20));
        let process = this_process();
        let fd = open_directory(dir.path()).expect("open");
        read(&fd, 5);
        let state = save(&fd, &process).expect("can be saved");
        let Next::Name(next) = &state.next else {
            panic!("{state:?}");
        };
        let fd = open_at(&state, copy.path()).expect("restored");
        assert_eq!(read(&fd, 1)[0].as_bytes(), next.as_slice());
        let end = open_directory(dir.path()).expect("open");
        read(&end, usize::MAX);
        let at_end = save(&end, &process).expect("can be saved");
        assert_eq!(at_end.next, Next::End);
        let fd = open_at(&at_end, copy.path()).expect("restored");
        assert!(read(&fd, 1).is_empty());
        let empty = directory_of(0);
        let error = open_at(&state, empty.path()).expect_err("no such name");
        assert!(
            error.to_string().contains("in the middle of reading it"),
            "{error}"
        );
    }

    #[test]
    fn a_removed_entry_is_skipped() {
        let dir = directory_of(20);
        let fd = open_directory(dir.path()).expect("open");
        let before = read(&fd, 5);
        let state = save(&fd, &this_process()).expect("can be saved");
        let mut expected = read(&fd, usize::MAX);
        let Next::Name(next) = &state.next else {
            panic!("{state:?}");
        };
        let next = String::from_utf8_lossy(next).into_owned();
        if next.starts_with('.') {
            return eprintln!("skipped: the next entry is {next}");
        }
        fs::remove_file(dir.path().join(&next)).expect("unlink");
        expected.retain(|name| *name != next);
        let fd = open_at(&state, dir.path()).expect("restored");
        let after = read(&fd, usize::MAX);
        assert_eq!(after, expected, "after {before:?}");
    }

    #[test]
    fn a_deleted_directory_is_refused_and_a_missing_one_told() {
        let dir = directory_of(0);
        let path = dir.path().join("sub");
        fs::create_dir(&path).expect("mkdir");
        let fd = open_directory(&path).expect("open");
        let state = save(&fd, &this_process()).expect("can be saved");
        fs::remove_dir(&path).expect("rmdir");
        assert!(matches!(
            save(&fd, &this_process()),
            Err(Obstacle::Refused(_))
        ));
        let refused = check_directory(&state.place(&[]), OFlags::RDONLY).expect_err("missing");
        assert!(refused.hint.contains("mkdir -p"), "{refused}");
        fs::write(&path, b"").expect("writable");
        let refused = check_directory(&path, OFlags::RDONLY).expect_err("a file");
        assert!(refused.reason.contains("a regular file now"), "{refused}");
    }

    #[test]
    fn the_working_directory_is_found_and_checked() {
        let place = Place::capture("self", "cwd").expect("here");
        assert_eq!(place.path.as_path(), std::env::current_dir().expect("here"));
        assert_eq!(
            place.check(&PathMap::default()).expect("there"),
            place.path.as_path()
        );
        assert_eq!(Place::capture("self", "root").expect("/").path.0, b"/");
        let gone = Place {
            path: PathBytes(b"/nonexistent/directory".to_vec()),
        };
        assert!(
            gone.check(&PathMap::default())
                .expect_err("missing")
                .reason
                .contains("missing")
        );
    }
}
