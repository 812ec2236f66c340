//! Descriptor numbers that a restart uses beside the program's.

use crate::descriptors;
use crate::model::Tree;
use std::os::fd::RawFd;

/// Descriptor numbers of what the restoring supervisor maps into processes: the same in all of them.
pub struct Numbers {
    /// The first one above all that the program uses.
    pub first_free: RawFd,
    /// Of the first mapped file; the others follow.
    pub files: RawFd,
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
        // The descriptions themselves, and what the modules of the kinds need beside them, lie below.
        let files = first_free + 2 * tree.descriptions.len() as RawFd + 64;
        let shared = files + tree.files.len() as RawFd;
        let executables = shared + tree.shared.len() as RawFd;
        Numbers {
            first_free,
            files,
            shared,
            executables,
            end: executables + tree.processes.len() as RawFd,
        }
    }

    /// Those that every new process keeps until its memory is in place.
    pub fn keep(&self) -> Vec<RawFd> {
        (self.files..self.end).collect()
    }
}
