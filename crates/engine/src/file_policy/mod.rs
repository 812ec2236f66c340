//! The files that the program's memory relies on, and how a restart makes them match it again.
//!
//! Memory knows what the program has read and written; files live outside it and go on changing after a checkpoint. This
//! module keeps one [`FileRecord`] for each file that is open or mapped anywhere in the tree, decides at a restart what
//! must happen to each ([`plan()`](plan::plan)), touching nothing, and then does it ([`apply()`](apply::apply)).
//!
//! # Saved
//! - Of every file: path, identity, size, times, mode, owner.
//! - The contents of files that a process of the tree has open for writing or maps shared and writable, up to the content
//!   limit; above it a [`Fingerprint`].
//! - The contents of files that have no name any more, whatever their size: nothing but the image could bring them back.
//! - Of files that are only read or mapped: a small [`Fingerprint`], and the build id of program and library files.
//!
//! # Not saved
//! - The contents of files that are only read, and of program and library files: a change is detected and refused.
//! - Files that the program has closed before the checkpoint; changes of names and directories.
//! - Extended attributes, except that a file put in another one's place takes them over from it.
//!
//! # What a restart does to a file that was open for writing
//! | the file now                    | contents stored                                   | only a fingerprint          |
//! |---------------------------------|---------------------------------------------------|-----------------------------|
//! | the same                        | used                                              | used                        |
//! | longer, the old part unchanged  | cut; the cut bytes kept beside                    | the same                    |
//! | changed in place, shorter       | kept beside, restored under its name              | refused, unless accepted    |
//! | gone                            | restored under its name                           | refused                     |
//!
//! Files that are only read are used when they are the same, and refused otherwise, unless accepted. A file that is gone
//! and not stored can never be accepted, nor a library whose build id is another one.
//!
//! A file that would have to be cut or replaced while some process has it open for writing or locked is refused, too: it
//! may be the job itself, still running, or another restart of the same image. Accepted, it is used as it is.
//!
//! # Facts it rests on
//! - A read lease is given only while nobody has the file open for writing (`fcntl(2)`, F_SETLEASE); `/proc/locks` lists locks.
//! - `rename(2)` and `linkat(2)` on one file system are atomic; `linkat` never overwrites. A file made with `O_TMPFILE`
//!   gets its name by `linkat` from `/proc/self/fd` when it is complete (`open(2)`), so a killed restart leaves nothing.
//! - Time stamps are taken from a clock that ticks (4 ms at CONFIG_HZ=250; 2 s on FAT): a write soon after another one may
//!   leave `mtime` as it was. And a write to a page of a shared mapping that is already dirty does not touch it at all (on tmpfs
//!   none does). So time stamps are believed only where they were old at the checkpoint and no shared mapping existed
//!   ([`FileRecord::times_tell`]); otherwise contents are compared.

pub mod apply;
mod beside;
pub mod collect;
mod elf;
mod fingerprint;
pub mod paths;
pub mod plan;
mod record;

pub use apply::{ReadyFiles, apply};
pub use collect::{Collector, MappedSource, Mapping};
pub use fingerprint::{Fingerprint, Sampling};
pub use paths::{PathBytes, PathMap};
pub use plan::{FilePlan, PlanOptions, plan};
pub use record::{Evidence, FileId, FileIndex, FileRecord, Presence, Timestamp, Uses};

#[cfg(test)]
mod tests;
use crate::conformance::Claim;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    Claim::kept(
        "contents of files open for writing",
        "up to --file-limit; above it only the length",
        &[
            "files::changed_in_place",
            "files::growth_is_cut_off_and_kept",
            "files::removed",
            "files::replaced",
            "files::above_the_limit",
        ],
    ),
    Claim::kept(
        "files that somebody has moved",
        "--map-path OLD=NEW",
        &["files::a_moved_directory"],
    ),
    Claim::refused(
        "file that the restart does not find, or finds changed",
        "at the restart, all of them at once; --changed-files",
        &[
            "files::missing_files_are_listed_together",
            "files::a_changed_file_that_is_read",
            "files::a_changed_library",
            "files::above_the_limit",
        ],
    ),
    Claim::refused(
        "file that is written and whose path cannot be followed",
        "",
        &["files::a_file_that_cannot_be_found"],
    ),
];
