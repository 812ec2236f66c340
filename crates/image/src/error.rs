//! What can go wrong with an image.
//!
//! Policy: each message says what was tried, on which file, where in it, and what to do next. The variants
//! are what a caller can act on:
//! - trouble of the destination ([`ImageError::Create`], [`ImageError::Write`]): free space, choose another
//!   directory, try again later; older images are as they were;
//! - trouble of the program being saved ([`ImageError::SourceRead`]): the checkpoint is given up, the disk is fine;
//! - trouble of the file being read ([`ImageError::Truncated`], [`ImageError::Damaged`], ...): trying again does
//!   not help, an older image may;
//! - trouble of whoever receives the contents ([`ImageError::Sink`]): the image is fine.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::index::ObjectId;

/// A part of an image, to say where damage was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The fixed first page.
    Header,
    /// The description of the process tree.
    Metadata,
    /// The table of extents.
    Index,
    /// The table of base images.
    Bases,
    /// The encrypted key.
    Key,
    /// The contents of an object from `offset` on (an offset in the object, not in the file).
    Contents {
        /// Which object.
        object: ObjectId,
        /// Where in the object.
        offset: u64,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Header => f.write_str("header"),
            Part::Metadata => f.write_str("metadata"),
            Part::Index => f.write_str("index"),
            Part::Bases => f.write_str("table of base images"),
            Part::Key => f.write_str("encrypted key"),
            Part::Contents { object, offset } => {
                write!(f, "contents of object {} at offset {offset:#x}", object.0)
            }
        }
    }
}

/// Why an image could not be written or read. See the top of this file for what a caller can do about each kind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The new file could not be made.
    #[error("cannot create the image {path}: {source}; {}", advice(source))]
    Create {
        /// The file to be made (with `.partial`).
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// An image of this name is there already, and is left alone.
    #[error("the image {path} exists already and is not replaced; choose another name or number")]
    Exists {
        /// The final name.
        path: PathBuf,
    },
    /// Another process is writing an image of this name right now.
    #[error("{path} is being written by another process; wait for it, or choose another name")]
    Busy {
        /// The partial file that is locked.
        path: PathBuf,
    },
    /// The destination failed: disk full, quota, file size limit, I/O error. The image is given up; older ones
    /// are as they were.
    #[error("cannot write the image {path}: {source}; {}", advice(source))]
    Write {
        /// The file, or the directory, that could not be written.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The contents to be saved could not be read. The destination is not at fault.
    #[error("cannot read {len} bytes at offset {offset:#x} of object {} to save them: {source}", object.0)]
    SourceRead {
        /// Which object.
        object: ObjectId,
        /// Where in the object.
        offset: u64,
        /// How much was asked for, in bytes.
        len: u64,
        /// What the source said.
        source: io::Error,
    },
    /// A writer was used again after an earlier call had failed, so the image would not be complete.
    #[error("the image {path} is not complete: an earlier write failed; begin a new image")]
    Incomplete {
        /// The partial file.
        path: PathBuf,
    },
    /// The caller asked for something that has no meaning in an image.
    #[error("object {} at offset {offset:#x}: {reason} (a mistake in the caller, not in the file)", object.0)]
    Misuse {
        /// Which object.
        object: ObjectId,
        /// Where in the object.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{path} is not a Stasis image: {reason}")]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// How that was seen.
        reason: &'static str,
    },
    /// The checkpoint was never finished.
    #[error(
        "{path} was never finished: its header is empty; use an earlier image, this one can be deleted"
    )]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer Stasis than this one.
    #[error(
        "{path} has image format {found}, this program reads up to format {supported}; use a newer Stasis"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The newest version understood here.
        supported: u32,
    },
    /// The image needs something that this program does not know how to do.
    #[error("{path} uses features unknown to this program: {names}; use a newer Stasis")]
    UnknownFlags {
        /// The file.
        path: PathBuf,
        /// The features by name, or `bit N` for those without one.
        names: String,
    },
    /// The file is shorter than it says.
    #[error(
        "{path} is cut short in its {part}: it has {actual} of {expected} bytes; use an earlier image"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is not all there.
        part: Part,
        /// How long it should be, in bytes.
        expected: u64,
        /// How long it is, in bytes.
        actual: u64,
    },
    /// The file is not what was written.
    #[error(
        "{path} is damaged: {part}, byte {file_offset} of the file: {reason}; use an earlier image"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part.
        part: Part,
        /// Where in the file, in bytes.
        file_offset: u64,
        /// What was found.
        reason: String,
    },
    /// An older file that it takes contents from is not there.
    #[error(
        "{path} needs contents of {base}.ckpt or {base}.base, which cannot be used: {reason}; put that file back \
         beside it, or use another image"
    )]
    MissingBase {
        /// The image.
        path: PathBuf,
        /// The file, without its ending.
        base: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is encrypted, and cannot be opened.
    #[error("{path} is encrypted: {reason}")]
    Locked {
        /// The image.
        path: PathBuf,
        /// Why no key opens it, and what to do.
        reason: String,
    },
    /// A key could not be made or used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A length is beyond what this program is willing to set aside.
    #[error("{path}: {what} of {value} bytes is above the limit of {limit}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: &'static str,
        /// How large it is, in bytes.
        value: u64,
        /// How large it may be, in bytes.
        limit: u64,
    },
    /// The contents were read from the image, but whoever was to receive them failed.
    #[error("cannot restore the contents of object {} at offset {offset:#x}: {source}", object.0)]
    Sink {
        /// Which object.
        object: ObjectId,
        /// Where in the object.
        offset: u64,
        /// What the receiver said.
        source: io::Error,
    },
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It is no public key.
    #[error(
        "{text} is not a recipient that images can be encrypted to ({reason}); write one as age-keygen prints it (age1...)"
    )]
    Recipient {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file with keys or a passphrase is of no use.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A new key could not be made.
    #[error("cannot make a key to encrypt with: {reason}")]
    Wrap {
        /// Why.
        reason: String,
    },
}

/// What to do about a destination that fails. Older images are mentioned because the first fear is for them.
fn advice(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC) => {
            "free some space or choose another directory (older images are untouched)"
        }
        Some(Errno::DQUOT) => {
            "your disk quota is used up: delete something or choose another directory (older images are untouched)"
        }
        Some(Errno::FBIG) => {
            "the file would be larger than the file system or the limit on file sizes (ulimit -f) allows (older images are untouched)"
        }
        Some(Errno::IO) => {
            "the device reports an error: see the kernel log, and choose another directory (older images are untouched)"
        }
        Some(Errno::ROFS) => "the file system is read-only: choose another directory",
        Some(Errno::ACCESS | Errno::PERM) => "choose a directory that you may write to",
        Some(Errno::NOENT | Errno::NOTDIR) => "make the directory first, or choose another one",
        Some(Errno::NAMETOOLONG) => "choose a shorter name",
        Some(Errno::MFILE | Errno::NFILE) => "too many files are open: raise the limit (ulimit -n)",
        Some(Errno::STALE | Errno::NOTCONN | Errno::TIMEDOUT) => {
            "the file server does not answer: try again later or choose another directory"
        }
        _ => "choose another directory, or try again later (older images are untouched)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_where_and_what_to_do() {
        let error = ImageError::Write {
            path: "/scratch/a.ckpt.partial".into(),
            source: Errno::NOSPC.into(),
        };
        let text = error.to_string();
        assert!(text.contains("/scratch/a.ckpt.partial"), "{text}");
        assert!(text.contains("free some space"), "{text}");

        let error = ImageError::Damaged {
            path: "a.ckpt".into(),
            part: Part::Contents {
                object: ObjectId(3),
                offset: 0x7000,
            },
            file_offset: 8192,
            reason: "checksum differs".into(),
        };
        assert_eq!(
            error.to_string(),
            "a.ckpt is damaged: contents of object 3 at offset 0x7000, byte 8192 of the file: checksum differs; \
             use an earlier image"
        );
    }
}
