//! Watches on files (`inotify(7)`).
//!
//! Saved: every watch with its number, its events and the path of what it is on, and status flags. A watch on a file that
//! has no name any more, and that the job has open, is kept through that description.
//! A checkpoint reads files that are open for writing: a program that watches for openings and reading hears of that.
//! Not saved: what happens to the files between the checkpoint and the restart, of which the program hears nothing, as if
//! nothing had happened. Which watch numbers are used up: the first new watch after a restart gets the number after the
//! highest that is in use.
//! Refused: events that the program has not read yet, which is tried for a second: they can only be read by taking them
//! away, and nobody can put them back; a watch whose file is not found (see `search.rs`); watch numbers above a million.
//!
//! Facts it rests on
//! - fdinfo has a line for each watch (`fs/notify/fdinfo.c`): number, device and number of the inode, the file system's handle
//!   of it, and the events as they were asked for, with `IN_ONESHOT` and `IN_EXCL_UNLINK`. One that has fired only once, or was
//!   removed, is not there. `FIONREAD` tells how many bytes of events wait.
//! - Numbers are given in turn (`idr_alloc_cyclic`): one that was given back is not given again before the others were. So
//!   a number is reached by making watches and removing them, some microseconds each, in the order of the numbers.
//! - Making and removing leaves events (`IN_IGNORED`) in the queue, and so may what a restart does to files: watches
//!   are made when all is open, and the queue is emptied right before the program goes on.

mod search;

pub use search::Paths;

use super::capture::Survey;
use super::fdinfo::FdInfo;
use super::{
    Description, DescriptionId, Found, Kind, Obstacle, Opened, Plan, RestoreContext, set_status,
};
use crate::conformance::Claim;
use crate::error::Context;
use crate::file_policy::paths::{refusal, show};
use crate::file_policy::{PathBytes, PathMap};
use crate::{EngineError, Refusal};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

pub(super) const WATCHES: Claim = Claim::kept(
    "watches on files (inotify)",
    "under their numbers; what happens to the files until the restart is not told",
    &[
        "descriptors::watches",
        "descriptors::tail_follows_a_file",
        "descriptors::a_watch_on_the_images",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    WATCHES,
    Claim::refused(
        "watch whose events were not read yet",
        "the program is given a second for that",
        &["descriptors::an_unread_watch"],
    ),
];

/// A saved set of watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Ascending by number.
    pub watches: Vec<Watch>,
    /// Access mode and status flags.
    pub flags: u32,
}

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Its number.
    pub number: i32,
    /// `IN_*`.
    pub events: u32,
    /// What it is on.
    pub target: Target,
}

/// What a watch is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// What has this name.
    Path(PathBytes),
    /// A file without a name that is open.
    Description(DescriptionId),
}

/// The highest watch number that a restart goes for.
const HIGHEST: i32 = 1 << 20;

/// A line of fdinfo.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    number: i32,
    events: u32,
    mark: search::Mark,
}

fn lines(info: &FdInfo) -> impl Iterator<Item = Line> {
    search::words(info).filter_map(|words| {
        let hex = |name: &str| u32::from_str_radix(words.get(name)?, 16).ok();
        Some(Line {
            number: hex("wd")? as i32,
            events: hex("mask")?,
            mark: search::mark(&words)?,
        })
    })
}

fn is_inotify(found: &Found) -> bool {
    // Not among the anonymous inodes that have brackets around their names.
    found.link.as_bytes() == b"anon_inode:inotify"
}

/// Captures one.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<State, Obstacle> {
    let duplicate = found.duplicate()?;
    let waiting =
        rustix::io::ioctl_fionread(&duplicate).context(|| format!("looking at {found}"))?;
    if waiting > 0 {
        return Err(found.passing(
            "the program has not read yet what has happened to the files that it watches (inotify), and that can only \
             be read once",
            "checkpoint when the program has read it",
        ));
    }
    let paths = whole.watched.get_or_init(|| Paths::look(whole));
    let mut watches = Vec::new();
    for line in lines(&found.info) {
        if line.number > HIGHEST {
            return Err(found.refuse(
                format!(
                    "has made {} watches on files (inotify), and their numbers cannot be had again",
                    line.number
                ),
                "let the program open a new descriptor for its watches now and then",
            ));
        }
        let target = match paths.get(&line.mark) {
            Some(path) => Target::Path(PathBytes::from(path)),
            None => Target::Description(held(whole, &line.mark).ok_or_else(|| {
                found.refuse(
                    format!(
                        "watches inode {} of device {}:{} (inotify), and no path to that is known",
                        line.mark.inode,
                        rustix::fs::major(line.mark.device),
                        rustix::fs::minor(line.mark.device),
                    ),
                    "run the program in the directory that it watches, or one above, or name the file as an argument",
                )
            })?),
        };
        watches.push(Watch {
            number: line.number,
            events: line.events,
            target,
        });
    }
    watches.sort_by_key(|watch| watch.number);
    Ok(State {
        watches,
        flags: found.info.flags,
    })
}

/// A description on that inode.
fn held(whole: &Survey, mark: &search::Mark) -> Option<DescriptionId> {
    let on_inode = whole.on_inode((mark.device, mark.inode));
    on_inode.first().map(|index| DescriptionId(*index as u32))
}

/// Makes it, without its watches: see [`watch_all`].
pub(super) fn restore(state: &State) -> Result<OwnedFd, EngineError> {
    let fd = inotify::init(CreateFlags::CLOEXEC).map_err(|error| match error {
        Errno::MFILE => EngineError::Failed(
            "this user has as many inotify descriptors as the host allows (fs.inotify.max_user_instances)".into(),
        ),
        error => EngineError::System {
            what: "making an inotify descriptor".into(),
            source: error.into(),
        },
    })?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

/// Tells what is watched, or what is missing.
pub(super) fn plan(state: &State, ctx: &RestoreContext, plan: &mut Plan) {
    let map = PathMap::new(ctx.path_map);
    for watch in &state.watches {
        let Target::Path(path) = &watch.target else {
            continue;
        };
        let path = map.apply(path.as_path());
        match rustix::fs::lstat(&path) {
            Ok(_) => plan.actions.push(format!("watches {}", show(&path))),
            Err(error) => plan.refusals.push(refusal(
                show(&path),
                format!("the program watches it (inotify), and it cannot be looked at: {error}"),
                "put it back, or use --map-path",
            )),
        }
    }
}

/// All that are open.
fn sets<'a>(
    descriptions: &'a [Description],
    opened: &'a Opened,
) -> impl Iterator<Item = (&'a State, BorrowedFd<'a>)> {
    let numbered = descriptions.iter().enumerate();
    numbered.filter_map(|(index, description)| match &description.kind {
        Kind::Inotify(state) => Some((state, opened.fd(DescriptionId(index as u32))?)),
        _ => None,
    })
}

/// Makes all watches. Called once, in the keeper, when everything is open.
///
/// # Errors
/// When something cannot be watched, naming it.
pub(super) fn watch_all(
    descriptions: &[Description],
    opened: &Opened,
    path_map: &[(String, String)],
) -> Result<(), EngineError> {
    let map = PathMap::new(path_map);
    for (state, fd) in sets(descriptions, opened) {
        let mut next = 1;
        for watch in &state.watches {
            use_up(fd, next..watch.number)?;
            make(fd, watch, opened, &map)?;
            next = watch.number + 1;
        }
    }
    Ok(())
}

/// Reads away what the restart itself has done to files. Called once, in the keeper, when it does no more.
///
/// # Errors
/// The kernel's.
pub(super) fn forget_all(descriptions: &[Description], opened: &Opened) -> Result<(), EngineError> {
    sets(descriptions, opened).try_for_each(|(_, fd)| empty(fd))
}

fn make(
    fd: BorrowedFd<'_>,
    watch: &Watch,
    opened: &Opened,
    map: &PathMap,
) -> Result<(), EngineError> {
    let events = WatchFlags::from_bits_retain(watch.events);
    let lost = || EngineError::Failed("a watched file of the image is not open".into());
    let (path, flags) = match &watch.target {
        Target::Path(path) => (map.apply(path.as_path()), events | WatchFlags::DONT_FOLLOW),
        Target::Description(id) => {
            let file = opened.fd(*id).ok_or_else(lost)?;
            (format!("/proc/self/fd/{}", file.as_raw_fd()).into(), events)
        }
    };
    match inotify::add_watch(fd, &path, flags | WatchFlags::from_bits_retain(MASK_CREATE)) {
        Ok(number) if number == watch.number => Ok(()),
        Ok(number) => Err(EngineError::Failed(format!(
            "the watch on {} got the number {number} instead of {}",
            path.display(),
            watch.number
        ))),
        Err(error) => Err(refused(&path, error)),
    }
}

/// `IN_MASK_CREATE`: fails where there is a watch on that inode already.
const MASK_CREATE: u32 = 0x1000_0000;

fn refused(path: &std::path::Path, error: Errno) -> EngineError {
    let (reason, hint) = match error {
        Errno::NOSPC => (
            "this user watches as many files as the host allows (fs.inotify.max_user_watches)"
                .to_owned(),
            "end what watches so many, or raise the limit",
        ),
        Errno::EXIST => (
            "two files that the program watched are one now".to_owned(),
            "put back what was there, or use --map-path",
        ),
        error => (
            format!("it cannot be watched as before (inotify): {error}"),
            "put back what was there, or use --map-path",
        ),
    };
    EngineError::Refused(vec![Refusal {
        pid: None,
        process: String::new(),
        object: show(path),
        reason,
        hint: hint.to_owned(),
    }])
}

/// Uses these numbers up, which are the next ones.
fn use_up(fd: BorrowedFd<'_>, mut numbers: Range<i32>) -> Result<(), EngineError> {
    if numbers.is_empty() {
        return Ok(());
    }
    let what = || "making the program's watches on files again".to_owned();
    // A file that nobody else knows, and to which nothing happens.
    let spare = memfd_create("watched", MemfdFlags::CLOEXEC).context(what)?;
    let path = format!("/proc/self/fd/{}", spare.as_raw_fd());
    numbers.try_for_each(|_| {
        let number =
            inotify::add_watch(fd, path.as_str(), WatchFlags::DELETE_SELF).context(what)?;
        inotify::remove_watch(fd, number).context(what)
    })
}

/// Reads away what waits.
fn empty(fd: BorrowedFd<'_>) -> Result<(), EngineError> {
    let what = || "emptying a queue of events on files".to_owned();
    let mut buffer = vec![0; 1 << 16];
    while rustix::io::ioctl_fionread(fd).context(what)? > 0 {
        rustix::io::read(fd, &mut buffer).context(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_as_the_kernel_writes_it() {
        let info = FdInfo::parse(
            "pos:\t0\nflags:\t00\nmnt_id:\t17\nino:\t26\n\
             inotify wd:1a ino:99400e sdev:fe00001 mask:80000fff ignored_mask:0 fhandle-bytes:8 fhandle-type:1 \
             f_handle:0e409900811d5f9a\ninotify wd:1 ino:1 sdev:1b mask:2 ignored_mask:0 fhandle-bytes:0\n",
        );
        let lines: Vec<Line> = lines(&info).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].number, lines[0].events), (26, 0x8000_0fff));
        let mark = &lines[0].mark;
        assert_eq!(
            (mark.device, mark.inode),
            (rustix::fs::makedev(0xfe, 1), 0x0099_400e)
        );
        let handle = mark.handle.as_ref().expect("a handle");
        assert_eq!(
            (handle.kind, handle.bytes.len(), handle.bytes[0]),
            (1, 8, 0x0e)
        );
        assert_eq!(lines[1].mark.handle, None);
    }

    #[test]
    fn numbers_are_reached() {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("a descriptor");
        use_up(fd.as_fd(), 1..1).expect("nothing");
        use_up(fd.as_fd(), 1..500).expect("used up");
        let dir = tempfile::tempdir().expect("a directory");
        let number = inotify::add_watch(&fd, dir.path(), WatchFlags::CREATE).expect("a watch");
        assert_eq!(number, 500);
        assert!(rustix::io::ioctl_fionread(&fd).expect("asked") > 0);
        empty(fd.as_fd()).expect("emptied");
        assert_eq!(rustix::io::ioctl_fionread(&fd).expect("asked"), 0);
    }
}
