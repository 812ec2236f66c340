//! Descriptor numbers that a restart uses beside the program's.

use crate::descriptors::{self, Description, Kind};
use crate::file_policy::FileRecord;
use crate::model::Tree;
use std::os::fd::RawFd;

/// For what this process needs itself.
const SPARE: usize = 64;

/// Descriptor numbers of what the restoring supervisor maps into processes: the same in all of them.
pub struct Numbers {
    /// The first one above all that the program uses.
    pub first_free: RawFd,
    /// Of the mapped files: one for each file of the tree, which means nothing for one that is not mapped.
    pub files: Vec<RawFd>,
    /// The first of all these.
    start: RawFd,
    /// Of the first piece of shared memory.
    pub shared: RawFd,
    /// Of the first process's executable.
    pub executables: RawFd,
    /// One past the last.
    pub end: RawFd,
}

impl Numbers {
    /// For `tree`.
    pub fn of(tree: &Tree) -> Numbers {
        let tables: Vec<_> = tree
            .processes
            .iter()
            .map(|process| process.descriptors.clone())
            .collect();
        let first_free = descriptors::first_free(&tables, &tree.descriptions);
        // The files that are made ready are open on whatever is free. Then there are the descriptions themselves, and what the
        // modules of the kinds need beside them: the other end of a pipe or a connection for a while.
        let single = |d: &&Description| {
            matches!(d.kind, Kind::File(_) | Kind::Directory(_) | Kind::Device(_))
        };
        let single = tree.descriptions.iter().filter(single).count();
        let described = 2 * tree.descriptions.len() - single;
        let start =
            first_free.max((tree.files.len() + SPARE) as RawFd) + (described + SPARE) as RawFd;
        let mut shared = start;
        let number = |file: &FileRecord| {
            let number = shared;
            shared += RawFd::from(file.uses.is_mapped());
            number
        };
        let files = tree.files.iter().map(number).collect();
        let executables = shared + tree.shared.len() as RawFd;
        Numbers {
            first_free,
            files,
            start,
            shared,
            executables,
            end: executables + tree.processes.len() as RawFd,
        }
    }

    /// Those that every new process keeps until its memory is in place.
    pub fn keep(&self) -> Vec<RawFd> {
        (self.start..self.end).collect()
    }
}
