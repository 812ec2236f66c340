//! Where contents come from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::index::ObjectId;

/// Something with contents to be saved: `/proc/PID/mem`, a file, bytes in memory. Read from several threads at once.
pub trait Source: Sync {
    /// Fills `buffer` with the contents from `offset` on.
    ///
    /// # Errors
    /// Contents that end early are an error ([`io::ErrorKind::UnexpectedEof`]) like any other.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl Source for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

impl Source for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buffer, offset)
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

/// A range of an object, in bytes. Offsets may be anything, addresses for example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    /// Where it begins in the object.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// One object to store, for [`ImageWriter::store_all`](crate::ImageWriter::store_all).
#[derive(Clone, Copy)]
pub struct StoreJob<'a> {
    /// The number under which its contents are found again.
    pub object: ObjectId,
    /// Where the contents are read; the offsets of the runs are given to it as they are.
    pub source: &'a dyn Source,
    /// What to store of it. Must not overlap.
    pub runs: &'a [Run],
}
