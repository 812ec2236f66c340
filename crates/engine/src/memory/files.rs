//! Files that are mapped: programs, libraries, data.
//!
//! Saved: path, size, modification time, inode. The contents of clean pages are the file's own; a restart refuses to start when
//! a file is missing or was changed, so that old memory never meets a new library.
//!
//! Rests on: a mapping of a file whose name is gone ends in ` (deleted)` in `/proc/PID/maps`; the name may also have come to
//! mean another file, which the inode tells.

use crate::EngineError;
use crate::maps::Vma;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A mapped file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedFile {
    /// Its path.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Length in bytes.
    pub size: u64,
    /// Modification time: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Mapped shared and writable by somebody: it must be opened for writing.
    pub writable: bool,
}

/// The files mapped by a tree, each once.
#[derive(Debug, Default)]
pub struct Files {
    /// In the order of their numbers.
    pub files: Vec<MappedFile>,
    index: HashMap<(u64, u64), Option<u32>>,
}

impl Files {
    /// The number of the file that `vma` maps; `None` when its name is gone, or never was one.
    ///
    /// # Errors
    /// None at present.
    pub fn find(&mut self, vma: &Vma) -> Result<Option<u32>, EngineError> {
        let key = (vma.device, vma.inode);
        let number = match self.index.get(&key) {
            Some(number) => *number,
            None => {
                let number = describe(vma).map(|file| {
                    self.files.push(file);
                    (self.files.len() - 1) as u32
                });
                self.index.insert(key, number);
                number
            }
        };
        // VM_MAYWRITE: it could be made writable by mprotect(2), so that the descriptor was open for writing.
        if let Some(number) = number
            && vma.shared
            && vma.has(b"mw")
        {
            self.files[number as usize].writable = true;
        }
        Ok(number)
    }
}

fn describe(vma: &Vma) -> Option<MappedFile> {
    if !vma.path.starts_with(b"/") {
        return None;
    }
    let metadata = std::fs::metadata(Path::new(OsStr::from_bytes(&vma.path))).ok()?;
    // The device is not compared: some file systems show another one in maps than in stat.
    (metadata.ino() == vma.inode && metadata.is_file()).then(|| MappedFile {
        path: vma.path.clone(),
        size: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        writable: false,
    })
}
