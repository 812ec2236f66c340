//! At a checkpoint: which files the tree relies on, and what is stored of them.
//!
//! The order of calls: [`Collector::descriptor`] for every description, [`Collector::mapping`] for every file mapping,
//! [`Collector::store`] while the tree stands still, [`Collector::finish`] when it may run again.
//!
//! Contents of files that are open for writing are read while the tree stands still, though the pause grows by that. Time stamps
//! could show afterwards that nobody has written in between, but where somebody has, what was there is gone, and nothing
//! could be done but to give the whole checkpoint up. Files that are only read cannot be changed by the tree: these are
//! looked at when it runs again, and not at all where nothing has changed since the previous checkpoint.
//!
//! Until [`Collector::store`] the collector may hold duplicates of the program's descriptions. A `flock(2)` lock lives as
//! long as any duplicate does, so `store` drops them before the program can close its own.

use super::elf::build_id;
use super::fingerprint::{Fingerprint, Sampling};
use super::paths::{
    Location, Neighbours, PathBytes, as_path, is_local, locate, maps_differ, refusal,
    without_deleted,
};
use super::plan::allowed;
use super::record::{Evidence, FileId, FileIndex, FileRecord, Presence, Seen, Timestamp, Uses};
use crate::contents::ContentSink;
use crate::error::Context;
use crate::{EngineError, Refusal};
use rustix::fs::{
    Access, AtFlags, CWD, Mode, OFlags, SeekFrom, fcntl_getfl, fstat, fstatfs, lstat, open, seek,
    statat, statfs, tell,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A file mapping as `/proc/PID/maps` tells it.
#[derive(Clone, Debug)]
pub struct Mapping<'a> {
    /// The path, with ` (deleted)` where the kernel has put it.
    pub path: &'a [u8],
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// The inode.
    pub inode: u64,
    /// It is shared and may be written (`VM_MAYWRITE`: `sh`, `mw` in VmFlags).
    pub shared_writable: bool,
}

/// Where the contents of a file mapping can come from at a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappedSource {
    /// From this file.
    File(FileIndex),
    /// No name leads to it and no descriptor does, or it may not be read: only the pages that are mapped can be read,
    /// through the memory.
    MemoryOnly,
}

/// Time stamps younger than this at the checkpoint do not tell (FAT has the coarsest clock).
const SETTLED_AFTER: i64 = 2;

struct Entry {
    record: FileRecord,
    /// A way to its bytes, for what must be stored.
    handle: Option<OwnedFd>,
    /// The handle is a duplicate of the program's own description.
    is_shared: bool,
    /// It has names, but none that could be found.
    elsewhere: bool,
}

/// Gathers the files of a tree, each once.
pub struct Collector {
    content_limit: u64,
    now: i64,
    gathered: Mutex<Gathered>,
}

#[derive(Default)]
struct Gathered {
    entries: Vec<Entry>,
    by_id: HashMap<FileId, FileIndex>,
    previous: HashMap<FileId, FileRecord>,
    neighbours: Neighbours,
}

impl Collector {
    /// Contents of files with a name are stored up to `content_limit` bytes each.
    #[must_use]
    pub fn new(content_limit: u64) -> Collector {
        Collector::at(content_limit, clock_gettime(ClockId::Realtime).tv_sec)
    }

    /// A collector that takes the time to be `now`, in seconds since 1970.
    pub(super) fn at(content_limit: u64, now: i64) -> Collector {
        Collector {
            content_limit,
            now,
            gathered: Mutex::default(),
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over fingerprints and build ids of files that have not changed since an earlier checkpoint.
    pub fn remember(&self, previous: &[FileRecord]) {
        self.gathered().previous = previous
            .iter()
            .filter(|record| record.times_tell && !record.uses.writes())
            .map(|record| (record.id, record.clone()))
            .collect();
    }

    /// Adds a file that a description of the tree refers to. `handle` is a duplicate of the program's descriptor, or
    /// shares its inode; `link` the text of its link in `/proc/PID/fd`, `None` where reading that failed with
    /// ENAMETOOLONG. An `O_PATH` descriptor has no [`Uses`].
    ///
    /// # Errors
    /// Why it cannot be saved.
    pub fn descriptor(
        &self,
        handle: BorrowedFd<'_>,
        link: Option<&[u8]>,
        uses: Uses,
    ) -> Result<FileIndex, Refusal> {
        let stat = fstat(handle).map_err(|error| unreadable(link.unwrap_or_default(), error))?;
        let seen = Seen::from(&stat);
        let mut gathered = self.gathered();
        let index = match gathered.by_id.get(&seen.id) {
            Some(index) => *index,
            None => {
                let (path, presence, elsewhere) = match locate(&stat, link) {
                    Location::At(path) => (path, Presence::Linked, false),
                    Location::Unlinked(path) => (path, Presence::Unlinked, false),
                    Location::Elsewhere(path) => (path, Presence::Unlinked, true),
                    Location::TooLong => {
                        return Err(refusal(
                            format!("file with inode {}", seen.id.inode),
                            "its path is longer than 4096 bytes, so the kernel cannot tell it",
                            "run the program in a directory with a shorter path",
                        ));
                    }
                };
                let local = fstatfs(handle).is_ok_and(|statfs| is_local(&statfs));
                gathered.add(&path, presence, seen, elsewhere, local)
            }
        };
        let entry = &mut gathered.entries[index.0 as usize];
        entry.record.uses.add(uses);
        if entry.elsewhere && entry.record.uses.writes() {
            if let Err(error @ Errno::ACCESS) = lstat(entry.record.path.as_path()) {
                return Err(refusal(
                    format!("file {}", entry.record.path),
                    format!("it is open for writing and its path cannot be followed: {error}"),
                    "let the directories above it be searched (chmod u+x)",
                ));
            }
            return Err(refusal(
                format!("file {}", entry.record.path),
                "it is open for writing and this name of it was deleted, but it has another one that was not found",
                "give it a name in the same directory again (ln)",
            ));
        }
        entry.make_readable(handle)?;
        Ok(index)
    }

    /// Adds a file that a process of the tree has mapped. All descriptors have been added before.
    ///
    /// # Errors
    /// Why it cannot be saved.
    pub fn mapping(&self, mapping: &Mapping<'_>) -> Result<MappedSource, Refusal> {
        let uses = Uses {
            mapped: true,
            mapped_shared_writable: mapping.shared_writable,
            ..Uses::default()
        };
        let named = FileId {
            device: rustix::fs::makedev(mapping.device.0, mapping.device.1),
            inode: mapping.inode,
        };
        let mut gathered = self.gathered();
        let mut paths = candidates(mapping.path);
        // glibc makes a semaphore under a name that it takes away at once, having given it another one (sem_open(3)): what has
        // mapped it then shows a name that is gone, and the processes that open it show the other one.
        if mapping.shared_writable && !gathered.by_id.contains_key(&named) {
            let was = without_deleted(mapping.path).map(as_path);
            let other = was.and_then(|was| gathered.neighbours.other_name(&was, named));
            paths.extend(other.map(Path::to_owned));
        }
        for path in paths {
            let Ok(stat) = statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let seen = Seen::from(&stat);
            let statfs = statfs(&path);
            let same = seen.id == named || statfs.as_ref().is_ok_and(maps_differ);
            if !seen.regular || !same {
                continue;
            }
            // A program that may be executed but not read.
            if !mapping.shared_writable && allowed(&path, Access::READ_OK).is_err() {
                return Ok(MappedSource::MemoryOnly);
            }
            let index = match gathered.by_id.get(&seen.id) {
                Some(index) => *index,
                None => {
                    let local = statfs.is_ok_and(|statfs| is_local(&statfs));
                    gathered.add(&path, Presence::Linked, seen, false, local)
                }
            };
            let entry = &mut gathered.entries[index.0 as usize];
            entry.record.uses.add(uses);
            if entry.record.uses.writes() && entry.handle.is_none() {
                let handle =
                    open_to_read(&path).map_err(|error| unreadable(&entry.record.path.0, error))?;
                entry.handle = Some(handle);
            }
            return Ok(MappedSource::File(index));
        }
        match gathered.by_id.get(&named).copied() {
            Some(index) => {
                gathered.entries[index.0 as usize].record.uses.add(uses);
                Ok(MappedSource::File(index))
            }
            None => Ok(MappedSource::MemoryOnly),
        }
    }

    /// Stores what must be stored. The tree stands still, and everything has been added.
    ///
    /// # Errors
    /// When a file cannot be read or the image cannot be written.
    pub fn store(&self, sink: &dyn ContentSink) -> Result<(), EngineError> {
        let mut gathered = self.gathered();
        for entry in &mut gathered.entries {
            let Some(handle) = entry.handle.take() else {
                continue;
            };
            let record = &mut entry.record;
            let name = || format!("reading {}", record.path);
            let seen = Seen::from(&fstat(&handle).context(name)?);
            let file = File::from(handle);
            // Whoever looks for holes moves the offset, which is the program's where the description is.
            let offset = if entry.is_shared {
                Some(tell(&file).context(name)?)
            } else {
                None
            };
            if record.presence == Presence::Unlinked || seen.size <= self.content_limit {
                record.evidence.stored = Some(sink.store_file(&file, seen.size)?);
            } else {
                record.evidence.fingerprint =
                    Fingerprint::take(&file, seen.size, Sampling::WRITTEN).context(name)?;
            }
            if let Some(offset) = offset {
                seek(&file, SeekFrom::Start(offset)).context(name)?;
            }
            record.size = seen.size;
            record.modified = seen.modified;
            record.changed = seen.changed;
        }
        for Entry { record, .. } in &mut gathered.entries {
            record.times_tell &= !record.uses.mapped_shared_writable
                && settled(record.modified, self.now)
                && settled(record.changed, self.now);
        }
        Ok(())
    }

    /// Takes fingerprints and build ids of the files that are only read, and gives the finished table. The program may be
    /// running again: a file that has changed meanwhile goes without.
    #[must_use]
    pub fn finish(self) -> Vec<FileRecord> {
        let gathered = self
            .gathered
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let previous = gathered.previous;
        gathered
            .entries
            .into_iter()
            .map(|Entry { mut record, .. }| {
                let reads = record.presence == Presence::Linked && record.uses.any();
                if reads && !record.uses.writes() {
                    record.evidence = match previous.get(&record.id) {
                        Some(old)
                            if old.uses.mapped == record.uses.mapped && same(old, &record) =>
                        {
                            old.evidence.clone()
                        }
                        _ => evidence_of_read(&record),
                    };
                }
                record
            })
            .collect()
    }
}

impl Gathered {
    fn add(
        &mut self,
        path: &Path,
        presence: Presence,
        seen: Seen,
        elsewhere: bool,
        local: bool,
    ) -> FileIndex {
        let index = FileIndex(self.entries.len() as u32);
        let record = FileRecord {
            path: PathBytes::from(path),
            presence,
            id: seen.id,
            size: seen.size,
            mode: seen.mode,
            uid: seen.uid,
            gid: seen.gid,
            modified: seen.modified,
            changed: seen.changed,
            links: seen.links,
            uses: Uses::default(),
            times_tell: local,
            evidence: Evidence::default(),
        };
        self.entries.push(Entry {
            record,
            handle: None,
            is_shared: false,
            elsewhere,
        });
        self.by_id.insert(seen.id, index);
        index
    }
}

fn same(old: &FileRecord, new: &FileRecord) -> bool {
    (old.size, old.modified, old.changed) == (new.size, new.modified, new.changed)
}

fn settled(stamp: Timestamp, now: i64) -> bool {
    stamp.seconds.saturating_add(SETTLED_AFTER) < now
}

fn evidence_of_read(record: &FileRecord) -> Evidence {
    let mut evidence = Evidence::default();
    let Ok(file) = open_to_read(record.path.as_path()).map(File::from) else {
        return evidence;
    };
    let unchanged = || {
        fstat(&file).is_ok_and(|stat| {
            let seen = Seen::from(&stat);
            (seen.id, seen.size, seen.modified, seen.changed)
                == (record.id, record.size, record.modified, record.changed)
        })
    };
    if !unchanged() {
        return evidence;
    }
    if record.uses.mapped {
        evidence.build_id = build_id(&file);
    }
    evidence.fingerprint = Fingerprint::take(&file, record.size, Sampling::READ).unwrap_or(None);
    if unchanged() {
        evidence
    } else {
        Evidence::default()
    }
}

impl Entry {
    /// Sees to it that what must be stored can be read.
    fn make_readable(&mut self, handle: BorrowedFd<'_>) -> Result<(), Refusal> {
        let must = self.record.presence == Presence::Unlinked || self.record.uses.writes();
        if !must || self.handle.is_some() {
            return Ok(());
        }
        // A description of our own where possible: a duplicate shares locks with the program, and O_DIRECT.
        let reopened = open_to_read(Path::new(&format!("/proc/self/fd/{}", handle.as_raw_fd())));
        let readable = |flags: OFlags| {
            !flags.contains(OFlags::PATH) && (flags & OFlags::ACCMODE) != OFlags::WRONLY
        };
        self.handle = Some(match reopened {
            Ok(own) => own,
            Err(error) => {
                if !fcntl_getfl(handle).is_ok_and(readable) {
                    return Err(unreadable(&self.record.path.0, error));
                }
                self.is_shared = true;
                fcntl_dupfd_cloexec(handle, 3)
                    .map_err(|error| unreadable(&self.record.path.0, error))?
            }
        });
        Ok(())
    }
}

fn unreadable(path: &[u8], error: Errno) -> Refusal {
    let hint = match error {
        Errno::ACCESS => "its contents belong into the checkpoint: make it readable (chmod u+r)",
        Errno::WOULDBLOCK => "a program holds a lease on it: end that program",
        _ => "",
    };
    refusal(
        format!("file {}", PathBytes::from(path)),
        format!("it cannot be read: {error}"),
        hint,
    )
}

/// Opens a regular file to look at it, leaving its access time alone where that is allowed, and not waiting for leases.
pub(super) fn open_to_read(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => open(path, flags, Mode::empty()),
        other => other,
    }
}

/// The paths that the text in `/proc/PID/maps` may stand for: a newline is written as `\012` there, and nothing else is.
fn candidates(text: &[u8]) -> Vec<PathBuf> {
    let mut texts = vec![text.to_vec()];
    if let Some(stripped) = text.strip_suffix(b" (deleted)") {
        texts.push(stripped.to_vec());
    }
    for i in 0..texts.len() {
        let mut plain = Vec::with_capacity(texts[i].len());
        let mut rest = &texts[i][..];
        while let Some((byte, after)) = rest.split_first() {
            match rest.strip_prefix(b"\\012") {
                Some(after) => {
                    plain.push(b'\n');
                    rest = after;
                }
                None => {
                    plain.push(*byte);
                    rest = after;
                }
            }
        }
        if plain != texts[i] {
            texts.push(plain);
        }
    }
    texts
        .into_iter()
        .map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
        .collect()
}
