//! Contents of files and memory objects on their way into and out of an image, as the resource modules see it.

use crate::EngineError;
use serde::{Deserialize, Serialize};
use std::fs::File;

/// A stored sequence of bytes, by its number in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentId(pub u32);

/// Takes contents at a checkpoint.
pub trait ContentSink: Sync {
    /// Stores the first `len` bytes of `file` (read with `pread`; its offset does not move). Holes are skipped.
    ///
    /// # Errors
    /// When `file` cannot be read or the image cannot be written.
    fn store_file(&self, file: &File, len: u64) -> Result<ContentId, EngineError>;
}

/// Gives contents back at a restart.
pub trait ContentLoader: Sync {
    /// Writes the stored bytes into `file` with `pwrite`, where holes stay holes: the file is expected to be empty
    /// or to read as zeros. The caller sets the length.
    ///
    /// # Errors
    /// When the image is damaged or `file` cannot be written.
    fn load_into(&self, content: ContentId, file: &File) -> Result<(), EngineError>;
    /// Whether the first `len` bytes of `file` are what is stored.
    ///
    /// # Errors
    /// When either cannot be read.
    fn matches(&self, content: ContentId, file: &File, len: u64) -> Result<bool, EngineError>;
}
