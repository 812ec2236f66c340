//! Finding the path of an inode that is known by its number only.
//!
//! A file system tells no ordinary user where an inode is. So it is looked for where programs look themselves: at what the
//! job's processes have open, are in, were started with and have in their environment, at all directories above that,
//! and then below those and below `/`, nearest first, until [`ENTRIES`] names have been read. Root asks the file system
//! (`open_by_handle_at(2)`).
//!
//! Facts it rests on: `readdir(3)` gives inode numbers, so that of the names that are read only those of a wanted number are
//! looked at; a handle (`name_to_handle_at(2)`) tells two inodes of one number apart that have followed each other, and
//! inodes of file systems that show another device in `stat(2)` (btrfs, overlayfs).

use crate::descriptors::capture::Survey;
use crate::descriptors::fdinfo::FdInfo;
use rustix::fs::{CWD, Mode, OFlags, openat};
use stasis_sys::handle::Handle;
use stasis_sys::{Pid, procfs};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// So many names are read in directories.
const ENTRIES: usize = 100_000;
/// So deep below each directory that it begins with.
const DEPTH: usize = 8;
/// So many words of a process's arguments and environment are taken for paths.
const WORDS: usize = 1000;

/// An inode, as the fdinfo of an inotify descriptor tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Its file system, as `st_dev` would show it.
    pub device: u64,
    /// Its number.
    pub inode: u64,
    /// What the file system calls it.
    pub handle: Option<Handle>,
}

/// The paths of all inodes that the job watches, as far as they are found.
#[derive(Debug, Default)]
pub struct Paths(HashMap<Mark, PathBuf>);

impl Paths {
    /// Looks for what all inotify descriptors of the job watch.
    pub(in crate::descriptors) fn look(whole: &Survey) -> Paths {
        let marks = whole
            .founds
            .iter()
            .filter(|found| super::is_inotify(found))
            .flat_map(|found| super::lines(&found.info))
            .map(|line| line.mark);
        Search::new(marks).run(whole)
    }

    /// Where that one is.
    pub(super) fn get(&self, mark: &Mark) -> Option<&Path> {
        self.0.get(mark).map(PathBuf::as_path)
    }
}

struct Search {
    missing: HashMap<u64, Vec<Mark>>,
    found: Paths,
    /// Directories to look below, and how far they are from where it began.
    queue: VecDeque<(PathBuf, usize)>,
    known: HashSet<PathBuf>,
    entries: usize,
}

impl Search {
    fn new(marks: impl Iterator<Item = Mark>) -> Search {
        let mut missing: HashMap<u64, Vec<Mark>> = HashMap::new();
        for mark in marks {
            let same = missing.entry(mark.inode).or_default();
            if !same.contains(&mark) {
                same.push(mark);
            }
        }
        Search {
            missing,
            found: Paths::default(),
            queue: VecDeque::new(),
            known: HashSet::new(),
            entries: ENTRIES,
        }
    }

    fn run(mut self, whole: &Survey) -> Paths {
        self.ask();
        for path in places(whole) {
            if self.missing.is_empty() {
                break;
            }
            self.around(&path);
        }
        self.around(Path::new("/"));
        self.below();
        self.found
    }

    /// Asks the file systems themselves.
    fn ask(&mut self) {
        let marks: Vec<Mark> = self.missing.values().flatten().cloned().collect();
        let Ok(mounts) = procfs::read_to_string("/proc/self/mountinfo") else {
            return;
        };
        for mark in marks {
            let Some(handle) = &mark.handle else { continue };
            let device = format!(
                "{}:{}",
                rustix::fs::major(mark.device),
                rustix::fs::minor(mark.device)
            );
            let on_device = mounts.lines().filter_map(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                (words.get(2) == Some(&device.as_str())).then(|| words.get(4).copied())?
            });
            for mount in on_device {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let Ok(mount) = openat(CWD, mount, flags, Mode::empty()) else {
                    continue;
                };
                let Ok(file) = handle.open(mount.as_fd()) else {
                    continue;
                };
                if let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
                    self.look_at(&path);
                }
            }
        }
    }

    /// Looks at a path, at what it leads to, and at all directories above; what is below is looked at later.
    fn around(&mut self, path: &Path) {
        if !path.is_absolute() || path.starts_with("/proc") {
            return;
        }
        let target = fs::canonicalize(path).ok();
        for path in [Some(path.to_owned()), target].into_iter().flatten() {
            for step in path.ancestors() {
                if self.known.insert(step.to_owned()) {
                    self.look_at(step);
                    self.queue.push_back((step.to_owned(), 0));
                }
            }
        }
    }

    /// Whether it is one of those that are looked for.
    fn look_at(&mut self, path: &Path) {
        let Ok(data) = fs::symlink_metadata(path) else {
            return;
        };
        let Some(marks) = self.missing.get_mut(&data.ino()) else {
            return;
        };
        let handle = Handle::of(path).ok();
        let fits = |mark: &Mark| match (&mark.handle, &handle) {
            (Some(wanted), Some(there)) => wanted == there,
            _ => mark.device == data.dev(),
        };
        marks.retain(|mark| {
            let fits = fits(mark);
            if fits {
                self.found.0.insert(mark.clone(), path.to_owned());
            }
            !fits
        });
        if marks.is_empty() {
            self.missing.remove(&data.ino());
        }
    }

    /// Reads directories, nearest first.
    fn below(&mut self) {
        while let Some((directory, depth)) = self.queue.pop_front() {
            if self.missing.is_empty() || self.entries == 0 {
                return;
            }
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten().take(self.entries) {
                self.entries = self.entries.saturating_sub(1);
                if self.missing.contains_key(&entry.ino()) {
                    self.look_at(&entry.path());
                }
                let deeper = depth < DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir());
                let path = deeper
                    .then(|| entry.path())
                    .filter(|path| !is_kernel_s(path));
                if let Some(path) = path
                    && self.known.insert(path.clone())
                {
                    // A directory that something is mounted on shows the number of what is beneath.
                    self.look_at(&path);
                    self.queue.push_back((path, depth + 1));
                }
            }
        }
    }
}

/// Directories without end that nobody watches.
fn is_kernel_s(path: &Path) -> bool {
    [Path::new("/proc"), Path::new("/sys")].contains(&path)
}

/// What the job's processes are concerned with, nearest first.
fn places(whole: &Survey) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let processes = || whole.ctx.processes.iter().map(|process| process.pid);
    let directory = |pid: Pid| fs::read_link(format!("/proc/{pid}/cwd")).ok();
    places.extend(processes().filter_map(directory));
    places.extend(whole.founds.iter().map(|found| PathBuf::from(&found.link)));
    for pid in processes() {
        let words = |file: &str| procfs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (arguments, environment) = (words("cmdline"), words("environ"));
        let of = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let arguments = arguments.split(|byte| *byte == 0).take(WORDS);
        let directory = directory(pid).unwrap_or_default();
        let arguments = arguments.filter(|word| !word.is_empty() && word.len() < 4096);
        places.extend(arguments.map(|word| directory.join(of(word))));
        let values = environment.split(|byte| *byte == 0).take(WORDS);
        let values = values.filter_map(|word| {
            let at = word.iter().position(|byte| *byte == b'=')?;
            word.get(at + 1..)
        });
        places.extend(
            values
                .flat_map(|value| value.split(|byte| *byte == b':'))
                .map(of),
        );
    }
    places
}

/// The inodes of the lines that begin with `inotify`; see [`super::Line`].
pub(super) fn mark(words: &HashMap<&str, &str>) -> Option<Mark> {
    let hex = |name: &str| u64::from_str_radix(words.get(name)?, 16).ok();
    // The kernel's own encoding of a device: 20 bits of minor number (`linux/kdev_t.h`).
    let device = hex("sdev")?;
    let handle = || {
        let text = words.get("f_handle")?;
        let bytes = text.as_bytes().chunks(2);
        let bytes = bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        let bytes: Option<Vec<u8>> = bytes.collect();
        Some(Handle {
            kind: hex("fhandle-type")? as i32,
            bytes: bytes.filter(|bytes| !bytes.is_empty())?,
        })
    };
    Some(Mark {
        device: rustix::fs::makedev((device >> 20) as u32, (device & 0xf_ffff) as u32),
        inode: hex("ino")?,
        handle: handle(),
    })
}

/// The lines of an inotify descriptor, in words.
pub(super) fn words(info: &FdInfo) -> impl Iterator<Item = HashMap<&str, &str>> {
    let lines = info.fields.iter();
    lines.filter_map(|(name, rest)| {
        let first = name.strip_prefix("inotify wd")?;
        let text = rest.split_ascii_whitespace();
        let mut words: HashMap<&str, &str> = text
            .clone()
            .skip(1)
            .filter_map(|word| word.split_once(':'))
            .collect();
        words.insert("wd", text.into_iter().next()?);
        first.is_empty().then_some(words)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark_of(path: &Path) -> Mark {
        let data = fs::symlink_metadata(path).expect("there");
        Mark {
            device: data.dev(),
            inode: data.ino(),
            handle: Handle::of(path).ok(),
        }
    }

    #[test]
    fn what_is_below_above_and_behind_a_link_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("one/two/three")).expect("directories");
        fs::write(at("one/two/three/deep"), "").expect("a file");
        fs::write(at("above"), "").expect("a file");
        std::os::unix::fs::symlink(at("above"), at("one/link")).expect("a link");
        let wanted =
            ["one", "one/two/three/deep", "above", "one/link"].map(|name| mark_of(&at(name)));
        let missing = Mark {
            inode: u64::MAX,
            ..wanted[0].clone()
        };
        let mut search = Search::new(wanted.iter().cloned().chain([missing.clone()]));
        search.around(&at("one/link"));
        assert!(
            search.missing.contains_key(&wanted[1].inode),
            "not looked for yet"
        );
        search.below();
        let found = wanted.map(|mark| search.found.get(&mark).map(Path::to_owned));
        let there = ["one", "one/two/three/deep", "above", "one/link"].map(|name| Some(at(name)));
        assert_eq!(found, there);
        assert_eq!(search.found.get(&missing), None);
    }

    #[test]
    fn a_handle_tells_an_inode_from_its_successor() {
        let dir = tempfile::tempdir().expect("a directory");
        let mark = mark_of(dir.path());
        let Some(handle) = &mark.handle else {
            return;
        };
        let older = Mark {
            handle: Some(Handle {
                kind: handle.kind,
                bytes: handle.bytes.iter().map(|byte| byte ^ 1).collect(),
            }),
            ..mark.clone()
        };
        let mut search = Search::new([older.clone(), mark.clone()].into_iter());
        search.around(dir.path());
        assert!(search.found.get(&mark).is_some() && search.found.get(&older).is_none());
    }
}
