//! Files in memory (`memfd_create(2)`).
//!
//! Saved: name, size, contents (holes stay holes), permissions, seals, and of each description its offset and flags; a
//! second opening through `/proc` shares the contents, not the offset. Not saved: memory in huge pages (refused), and
//! `memfd_secret(2)` (refused).
//!
//! Facts: what has a link `/memfd:NAME (deleted)` and seals is one. `F_SEAL_WRITE` cannot be set while the file is mapped
//! writable and shared, and `F_SEAL_FUTURE_WRITE` forbids mapping it so: a file with the latter is sealed only after the
//! memory was mapped ([`super::seal`]).

use super::capture::without_deleted;
use super::{CaptureContext, DescriptionId, Found, Obstacle, Opening, reopen, set_status};
use crate::EngineError;
use crate::conformance::Claim;
use crate::contents::ContentId;
use crate::error::Context;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

pub(super) const MEMORY: Claim = Claim::kept(
    "file in memory (memfd)",
    "contents, seals, offset",
    &[
        "descriptors::memfds",
        "descriptors::sealed_late",
        "engine-descriptors::kinds::memfds_keep_contents_seals_and_what_is_shared",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    MEMORY,
    Claim::refused(
        "file in memory made of huge pages",
        "",
        &["engine-descriptors::refused::memory_in_huge_pages"],
    ),
    Claim::refused(
        "memory hidden from the kernel (memfd_secret)",
        "",
        &["engine-descriptors::refused::hidden_memory"],
    ),
];

/// A saved description of a file in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Access mode and status flags.
    pub flags: u32,
    /// The offset.
    pub offset: u64,
    /// Which file.
    pub file: Source,
}

/// Which file a description is open on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// This is its first description in the list.
    New(Memory),
    /// That of an earlier one.
    Same(DescriptionId),
}

/// The file itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The name that `memfd_create` was given.
    pub name: OsString,
    /// Its size in bytes.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// Its seals (`F_SEAL_*`).
    pub seals: u32,
    /// Its contents.
    pub contents: ContentId,
}

const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const PREFIX: &[u8] = b"/memfd:";

/// Whether a regular file is one of these.
pub(super) fn is_memfd(found: &Found) -> bool {
    found.link.as_bytes().starts_with(PREFIX) && found.stat.st_nlink == 0
}

/// Captures one; the contents go with the first.
pub(super) fn capture(found: &Found, ctx: &CaptureContext) -> Result<State, Obstacle> {
    let file = match found.earlier {
        Some(first) => Source::Same(first),
        None => Source::New(memory(found, ctx)?),
    };
    Ok(State {
        flags: found.info.flags,
        offset: found.info.position,
        file,
    })
}

fn memory(found: &Found, ctx: &CaptureContext) -> Result<Memory, Obstacle> {
    let what = || format!("looking at {found}");
    // An opening of our own: reading it moves no offset of the program's, and a description that the program only
    // writes to could not be read.
    let own = File::open(found.proc_path()).context(what)?;
    if rustix::fs::fstatfs(&own).context(what)?.f_type as u64 == HUGETLBFS_MAGIC {
        return Err(found.refuse(
            "is a memory file in huge pages, which cannot be saved yet",
            "let the program use ordinary pages (often a setting about huge pages)",
        ));
    }
    let seals = rustix::fs::fcntl_get_seals(&own).context(what)?;
    let (path, _) = without_deleted(&found.link);
    let size = u64::try_from(found.stat.st_size).unwrap_or(0);
    Ok(Memory {
        name: OsString::from_vec(path.as_bytes()[PREFIX.len()..].to_vec()),
        size,
        mode: found.stat.st_mode & 0o7777,
        seals: seals.bits(),
        contents: ctx.store(&own, size)?,
    })
}

/// Makes it again, or opens one that was made before once more.
pub(super) fn restore(state: &State, opening: &mut Opening) -> Result<OwnedFd, EngineError> {
    let what = || "opening a memory file once more".to_owned();
    let flags = state.flags & !(OFlags::CREATE | OFlags::TRUNC | OFlags::EXCL).bits();
    let fd = match &state.file {
        Source::New(memory) => {
            let made = make(memory, opening)?;
            if flags & 3 == OFlags::RDWR.bits() {
                made
            } else {
                reopen(made.as_fd(), flags).context(what)?
            }
        }
        Source::Same(first) => {
            let first = opening.fd(*first);
            let first = first.ok_or_else(|| {
                EngineError::Failed("a memory file of the image has no first opening".into())
            })?;
            reopen(first, flags).context(what)?
        }
    };
    rustix::fs::seek(&fd, SeekFrom::Start(state.offset)).context(what)?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

fn make(memory: &Memory, opening: &Opening) -> Result<OwnedFd, EngineError> {
    let what = || format!("making the memory file {}", memory.name.display());
    let mut flags = MemfdFlags::CLOEXEC;
    if memory.seals != SealFlags::SEAL.bits() {
        flags |= MemfdFlags::ALLOW_SEALING;
    }
    let fd = rustix::fs::memfd_create(memory.name.as_os_str(), flags).context(what)?;
    rustix::fs::ftruncate(&fd, memory.size).context(what)?;
    let file = File::from(fd);
    opening.context.contents.load_into(memory.contents, &file)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(memory.mode)).context(what)?;
    if !is_sealed_late(memory) {
        add_seals(memory, file.as_fd())?;
    }
    Ok(OwnedFd::from(file))
}

fn is_sealed_late(memory: &Memory) -> bool {
    SealFlags::from_bits_retain(memory.seals).contains(SealFlags::FUTURE_WRITE)
}

fn add_seals(memory: &Memory, fd: BorrowedFd) -> Result<(), EngineError> {
    let have = rustix::fs::fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
    let missing = SealFlags::from_bits_retain(memory.seals) - have;
    if missing.is_empty() {
        return Ok(());
    }
    rustix::fs::fcntl_add_seals(fd, missing)
        .context(|| format!("sealing the memory file {}", memory.name.display()))
}

/// Sets the seals that [`restore`] left out.
pub(super) fn seal(state: &State, fd: BorrowedFd) -> Result<(), EngineError> {
    match &state.file {
        Source::New(memory) if is_sealed_late(memory) => {
            // Sealing needs a description that may write, whatever the program's own is.
            let writable =
                reopen(fd, OFlags::RDWR.bits()).context(|| "opening a memory file".into())?;
            add_seals(memory, writable.as_fd())
        }
        _ => Ok(()),
    }
}
