//! What is remembered of one file.

use super::fingerprint::Fingerprint;
use super::paths::PathBytes;
use crate::contents::ContentId;
use rustix::fs::{FileType, Stat};
use serde::{Deserialize, Serialize};

/// A file's number in the table of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileIndex(pub u32);

/// A file's identity on a running host: device and inode, as `fstat(2)` tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl FileId {
    /// The file that a descriptor is open on.
    #[must_use]
    pub fn of(fd: std::os::fd::BorrowedFd<'_>) -> Option<FileId> {
        let stat = rustix::fs::fstat(fd).ok()?;
        Some(FileId {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

/// A file's time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds below a second.
    pub nanoseconds: u32,
}

/// Whether the file has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// It is what its path leads to.
    Linked,
    /// It has no name (deleted, replaced by rename, `O_TMPFILE`), or none that could be found while it was only read.
    Unlinked,
}

/// What the tree does with the file, over all its descriptors and mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uses {
    /// A descriptor can read it.
    pub read: bool,
    /// A descriptor can write it.
    pub written: bool,
    /// It is mapped, privately or read-only.
    pub mapped: bool,
    /// It is mapped shared, and a store into the mapping would change it.
    pub mapped_shared_writable: bool,
}

impl Uses {
    /// The program may have changed the file since the checkpoint.
    #[must_use]
    pub fn writes(self) -> bool {
        self.written || self.mapped_shared_writable
    }
    /// Some byte of it matters: not only named by an `O_PATH` descriptor.
    #[must_use]
    pub fn any(self) -> bool {
        self.read || self.mapped || self.writes()
    }
    /// A restart has to map it.
    #[must_use]
    pub fn is_mapped(self) -> bool {
        self.mapped || self.mapped_shared_writable
    }
    pub(super) fn add(&mut self, other: Uses) {
        self.read |= other.read;
        self.written |= other.written;
        self.mapped |= other.mapped;
        self.mapped_shared_writable |= other.mapped_shared_writable;
    }
}

/// What a restart can hold against the file that it finds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The whole contents, stored in the image.
    pub stored: Option<ContentId>,
    /// A hash of all or some of it.
    pub fingerprint: Option<Fingerprint>,
    /// The build id of an ELF file.
    #[serde(with = "serde_bytes")]
    pub build_id: Option<Vec<u8>>,
}

/// One file that a description or a mapping of the tree refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Where it was, or would be had it not been deleted; as seen from the supervisor's root directory.
    pub path: PathBytes,
    /// Whether the path leads to it.
    pub presence: Presence,
    /// Which file it was.
    pub id: FileId,
    /// Its length in bytes.
    pub size: u64,
    /// Permission bits, with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of contents.
    pub modified: Timestamp,
    /// Last change of contents or inode.
    pub changed: Timestamp,
    /// Number of hard links.
    pub links: u64,
    /// What the tree does with it.
    pub uses: Uses,
    /// Equal time stamps mean equal contents: they were old enough at the checkpoint, and no shared mapping wrote.
    pub times_tell: bool,
    /// What a restart compares.
    pub evidence: Evidence,
}

/// What `fstat(2)` tells, in the engine's types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: FileId,
    pub(super) size: u64,
    pub(super) modified: Timestamp,
    pub(super) changed: Timestamp,
    pub(super) links: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) regular: bool,
}

impl From<&Stat> for Seen {
    // The width of these fields differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    fn from(stat: &Stat) -> Seen {
        Seen {
            id: FileId {
                device: stat.st_dev as u64,
                inode: stat.st_ino as u64,
            },
            size: stat.st_size as u64,
            modified: Timestamp {
                seconds: stat.st_mtime as i64,
                nanoseconds: stat.st_mtime_nsec as u32,
            },
            changed: Timestamp {
                seconds: stat.st_ctime as i64,
                nanoseconds: stat.st_ctime_nsec as u32,
            },
            links: stat.st_nlink as u64,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            regular: FileType::from_raw_mode(stat.st_mode).is_file(),
        }
    }
}
