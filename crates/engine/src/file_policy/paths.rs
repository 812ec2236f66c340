//! Paths as the kernel has them: bytes, and where a file of a given identity is to be found.

use super::record::{FileId, Seen};
use crate::Refusal;
use rustix::fs::{AtFlags, CWD, FileType, Stat, StatFs, statat};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A path: any bytes but NUL, not necessarily UTF-8.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathBytes(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl PathBytes {
    /// As a path of the standard library.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

impl From<&Path> for PathBytes {
    fn from(path: &Path) -> Self {
        PathBytes(path.as_os_str().as_bytes().to_vec())
    }
}

impl From<&[u8]> for PathBytes {
    fn from(path: &[u8]) -> Self {
        PathBytes(path.to_vec())
    }
}

impl fmt::Display for PathBytes {
    /// For messages: what is no UTF-8, and control characters, are shown as `\x1b`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PathBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Shows a path in a message, see [`PathBytes`]'s `Display`.
#[must_use]
pub fn show(path: &Path) -> String {
    PathBytes::from(path).to_string()
}

/// `OLD=NEW` prefixes: where files of the checkpoint are to be found at the restart.
#[derive(Clone, Debug, Default)]
pub struct PathMap(Vec<(PathBuf, PathBuf)>);

impl PathMap {
    /// From the pairs that the user gave. Of several that fit a path, the longest wins.
    #[must_use]
    pub fn new(pairs: &[(String, String)]) -> PathMap {
        let mut pairs: Vec<(PathBuf, PathBuf)> = pairs
            .iter()
            .map(|(old, new)| (PathBuf::from(old), PathBuf::from(new)))
            .collect();
        pairs.sort_by_key(|(old, _)| std::cmp::Reverse(old.components().count()));
        PathMap(pairs)
    }

    /// Where `path` is now.
    #[must_use]
    pub fn apply(&self, path: &Path) -> PathBuf {
        for (old, new) in &self.0 {
            if let Ok(rest) = path.strip_prefix(old) {
                return if rest.as_os_str().is_empty() {
                    new.clone()
                } else {
                    new.join(rest)
                };
            }
        }
        path.to_owned()
    }
}

const DELETED: &[u8] = b" (deleted)";

/// What stands before ` (deleted)`.
pub(crate) fn without_deleted(text: &[u8]) -> Option<&[u8]> {
    text.strip_suffix(DELETED)
}

/// As a path of the standard library.
pub(crate) fn as_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// The path leads to it.
    At(PathBuf),
    /// It has no name any more; this was one.
    Unlinked(PathBuf),
    /// It has a name, but not this one any more, nor any other in the same directory.
    Elsewhere(PathBuf),
    /// The kernel could not tell: the path is longer than a page.
    TooLong,
}

/// Directories larger than this are not searched for another name of a file.
const MOST_ENTRIES_SEARCHED: usize = 100_000;

/// Finds the path of the file that `stat` describes, from the text of its link in `/proc/PID/fd`.
///
/// The text follows renames. It ends in ` (deleted)` when the name that the file was opened by is gone, which another
/// file's own name may do as well: only the identity of what the path leads to decides. `None` as text: the kernel said
/// ENAMETOOLONG (`d_path` has one page).
pub(crate) fn locate(stat: &Stat, link: Option<&[u8]>) -> Location {
    let Some(link) = link else {
        return Location::TooLong;
    };
    let seen = Seen::from(stat);
    let stripped = without_deleted(link).unwrap_or(link);
    let was = as_path(stripped);
    if seen.links == 0 {
        return Location::Unlinked(was);
    }
    for candidate in [link, stripped] {
        let path = as_path(candidate);
        if identity(&path) == Some(seen.id) {
            // NFS gives a deleted file that is still open this name, and removes it with the last close.
            let silly = path
                .file_name()
                .is_some_and(|name| name.as_bytes().starts_with(b".nfs"));
            return if silly && is_nfs(&path) {
                Location::Unlinked(path)
            } else {
                Location::At(path)
            };
        }
    }
    // Deleted under this name, but it has others: the usual other one is beside (`ln a b; rm a`).
    match other_name_beside(&was, seen.id) {
        Some(path) => Location::At(path),
        None => Location::Elsewhere(was),
    }
}

fn identity(path: &Path) -> Option<FileId> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(Seen::from(&stat).id)
}

fn other_name_beside(path: &Path, id: FileId) -> Option<PathBuf> {
    use std::os::unix::fs::DirEntryExt;
    std::fs::read_dir(path.parent()?)
        .ok()?
        .take(MOST_ENTRIES_SEARCHED)
        .flatten()
        .filter(|entry| entry.ino() == id.inode)
        .map(|entry| entry.path())
        .find(|path| identity(path) == Some(id))
}

/// The files in directories, by inode: for mappings, whose names may be gone while others beside them are there.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    directories: HashMap<PathBuf, HashMap<u64, Vec<PathBuf>>>,
}

impl Neighbours {
    /// Another name of a file in the directory of `path`. Each directory is read once.
    pub fn other_name(&mut self, path: &Path, id: FileId) -> Option<&Path> {
        let directory = path.parent()?;
        let found = match self.directories.contains_key(directory) {
            true => self.directories.get(directory)?,
            false => (self.directories)
                .entry(directory.to_owned())
                .or_insert(files_by_inode(directory)),
        };
        let mut names = found.get(&id.inode)?.iter().map(PathBuf::as_path);
        names.find(|path| identity(path) == Some(id))
    }
}

fn files_by_inode(directory: &Path) -> HashMap<u64, Vec<PathBuf>> {
    use std::os::unix::fs::DirEntryExt;
    let mut found: HashMap<u64, Vec<PathBuf>> = HashMap::new();
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    for entry in entries.take(MOST_ENTRIES_SEARCHED).flatten() {
        found.entry(entry.ino()).or_default().push(entry.path());
    }
    found
}

const NFS_SUPER_MAGIC: u64 = 0x6969;
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const BTRFS_SUPER_MAGIC: u64 = 0x9123_683e;
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
/// File systems whose files are windows into the kernel: sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs, configfs,
/// bpf, selinuxfs, pstore, efivarfs (`linux/magic.h`).
const WINDOWS: [u64; 11] = [
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0x6265_6570,
    0xcafe_4a11,
    0xf97c_ff8c,
    0x6165_676c,
    0xde5e_81e4,
];

// The type of `f_type` differs between architectures; magics are 32 bits.
#[allow(clippy::unnecessary_cast)]
fn magic(statfs: &StatFs) -> u64 {
    statfs.f_type as u64 & 0xffff_ffff
}

fn is_nfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|statfs| magic(&statfs) == NFS_SUPER_MAGIC)
}

pub(crate) fn is_proc(statfs: &StatFs) -> bool {
    magic(statfs) == PROC_SUPER_MAGIC
}

pub(crate) fn is_window(statfs: &StatFs) -> bool {
    WINDOWS.contains(&magic(statfs))
}

/// Whether its time stamps come from this host's clock (ext, xfs, btrfs, tmpfs, overlay, f2fs, zfs, bcachefs).
pub(crate) fn is_local(statfs: &StatFs) -> bool {
    const LOCAL: [u64; 8] = [
        0xef53,
        0x5846_5342,
        BTRFS_SUPER_MAGIC,
        0x0102_1994,
        OVERLAYFS_SUPER_MAGIC,
        0xf2f5_2010,
        0x2fc1_2fc1,
        0xca45_1a4e,
    ];
    LOCAL.contains(&magic(statfs))
}

/// Whether `/proc/PID/maps` may name another device or inode than `stat(2)` does (btrfs subvolumes, overlay layers).
pub(crate) fn maps_differ(statfs: &StatFs) -> bool {
    matches!(magic(statfs), BTRFS_SUPER_MAGIC | OVERLAYFS_SUPER_MAGIC)
}

/// What kind of thing it is, for messages.
pub(crate) fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "something else",
    }
}

/// A refusal about `object` that is no particular process's; the caller may add one.
pub(crate) fn refusal(
    object: impl Into<String>,
    reason: impl Into<String>,
    hint: impl Into<String>,
) -> Refusal {
    Refusal {
        pid: None,
        process: String::new(),
        object: object.into(),
        reason: reason.into(),
        hint: hint.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fstat, readlinkat};
    use std::fs::{self, File};
    use std::os::fd::AsRawFd;

    fn located(file: &File) -> Location {
        let link = readlinkat(
            CWD,
            format!("/proc/self/fd/{}", file.as_raw_fd()),
            Vec::new(),
        )
        .expect("a link");
        locate(&fstat(file).expect("fstat"), Some(link.as_bytes()))
    }

    #[test]
    fn a_file_is_found_wherever_it_went() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), "x").expect("writable");
        let file = File::open(at("a")).expect("open");
        assert_eq!(located(&file), Location::At(at("a")));
        fs::rename(at("a"), at("b")).expect("rename");
        assert_eq!(located(&file), Location::At(at("b")));
        fs::hard_link(at("b"), at("c")).expect("link");
        fs::remove_file(at("b")).expect("unlink");
        assert_eq!(located(&file), Location::At(at("c")));
        fs::create_dir(at("d")).expect("mkdir");
        fs::hard_link(at("c"), at("d/e")).expect("link");
        fs::remove_file(at("c")).expect("unlink");
        assert!(matches!(located(&file), Location::Elsewhere(_)));
        fs::remove_file(at("d/e")).expect("unlink");
        assert!(matches!(located(&file), Location::Unlinked(_)));
    }

    #[test]
    fn a_name_that_ends_in_deleted_is_just_a_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x (deleted)");
        fs::write(&path, "x").expect("writable");
        let file = File::open(&path).expect("open");
        assert_eq!(located(&file), Location::At(path.clone()));
        fs::remove_file(&path).expect("unlink");
        assert_eq!(located(&file), Location::Unlinked(path.clone()));
        fs::write(&path, "another").expect("writable");
        assert_eq!(located(&file), Location::Unlinked(path));
    }

    #[test]
    fn prefixes_are_mapped_by_component_and_the_longest_wins() {
        let pairs = [("/a", "/x"), ("/a/b", "/y")].map(|(o, n)| (o.to_owned(), n.to_owned()));
        let map = PathMap::new(&pairs);
        let apply = |path: &str| map.apply(Path::new(path)).to_string_lossy().into_owned();
        assert_eq!(apply("/a/c"), "/x/c");
        assert_eq!(apply("/a/b/c"), "/y/c");
        assert_eq!(apply("/a/b"), "/y");
        assert_eq!(apply("/ab"), "/ab");
    }

    #[test]
    fn names_are_shown_without_control_characters() {
        assert_eq!(
            PathBytes(b"/a\x1b[m\xff b".to_vec()).to_string(),
            r"/a\u{1b}[m\xff b"
        );
    }
}
