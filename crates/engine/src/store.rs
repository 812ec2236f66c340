//! The image as the place where contents go to and come from.

use crate::EngineError;
use crate::contents::{ContentId, ContentLoader, ContentSink};
use crate::error::Context;
use rustix::fs::SeekFrom;
use stasis_image::{Image, ImageWriter, ObjectId, Run, Source};
use stasis_sys::Pid;
use stasis_tracee::Memory;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An image being written, with numbers for its objects.
pub struct Store {
    /// The writer.
    pub writer: ImageWriter,
    next: AtomicU32,
    captured: AtomicU64,
    unread: AtomicU64,
}

impl Store {
    /// Wraps a writer.
    #[must_use]
    pub fn new(writer: ImageWriter) -> Store {
        Store {
            writer,
            next: AtomicU32::new(1),
            captured: AtomicU64::new(0),
            unread: AtomicU64::new(0),
        }
    }

    /// A number that no other object of this image has.
    pub fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The number for the memory of the process `pid` (as the program sees it): the same in every image of a job, so that what
    /// has not changed is found in the one before.
    #[must_use]
    pub fn number_of_memory(pid: Pid) -> u32 {
        const MEMORY: u32 = 1 << 31;
        MEMORY | pid.0.unsigned_abs()
    }

    /// Counts bytes that were captured.
    pub fn count(&self, bytes: u64) {
        self.captured.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes among these that did not have to be read.
    pub fn count_unread(&self, bytes: u64) {
        self.unread.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes so far that did not have to be read.
    #[must_use]
    pub fn unread(&self) -> u64 {
        self.unread.load(Ordering::Relaxed)
    }

    /// Bytes captured so far.
    #[must_use]
    pub fn captured(&self) -> u64 {
        self.captured.load(Ordering::Relaxed)
    }
}

/// Memory of a process as a source: offsets are addresses.
pub struct MemorySource<'a>(pub &'a Memory);

impl Source for MemorySource<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read(buffer, offset)
    }
}

/// The parts of a file that are no holes (`lseek(2)`, SEEK_DATA). The description's offset moves.
fn data_runs(file: &File, len: u64) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that does not tell: all of it is data.
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))
            .unwrap_or(len)
            .min(len);
        if start >= len || end <= start {
            break;
        }
        runs.push(Run {
            offset: start,
            len: end - start,
        });
        at = end;
    }
    Ok(runs)
}

impl ContentSink for Store {
    fn store_file(&self, file: &File, len: u64) -> Result<ContentId, EngineError> {
        let runs = data_runs(file, len).context(|| "looking for the holes of a file".into())?;
        let number = self.number();
        self.count(runs.iter().map(|run| run.len).sum());
        self.writer.store(ObjectId(number), file, &runs)?;
        Ok(ContentId(number))
    }
}

/// An image being read.
pub struct Loader<'a>(pub &'a Image);

impl ContentLoader for Loader<'_> {
    fn load_into(&self, content: ContentId, file: &File) -> Result<(), EngineError> {
        let mut buffer = Vec::new();
        for extent in self.0.extents(ObjectId(content.0)) {
            self.0.read_extent(extent, &mut buffer)?;
            file.write_all_at(&buffer, extent.offset)
                .context(|| "writing saved contents".into())?;
        }
        Ok(())
    }

    fn matches(&self, content: ContentId, file: &File, len: u64) -> Result<bool, EngineError> {
        let comparing = || "comparing a file with its saved contents".to_owned();
        let (mut saved, mut found) = (Vec::new(), Vec::new());
        let mut at = 0;
        for extent in self.0.extents(ObjectId(content.0)) {
            if !is_zero(file, at..extent.offset.min(len), &mut found).context(comparing)? {
                return Ok(false);
            }
            if extent.offset >= len {
                return Ok(true);
            }
            self.0.read_extent(extent, &mut saved)?;
            saved.truncate((len - extent.offset).min(saved.len() as u64) as usize);
            found.resize(saved.len(), 0);
            if FileExt::read_exact_at(file, &mut found, extent.offset).is_err() || found != saved {
                return Ok(false);
            }
            at = extent.offset + saved.len() as u64;
        }
        is_zero(file, at..len, &mut found).context(comparing)
    }
}

fn is_zero(file: &File, range: std::ops::Range<u64>, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(1 << 20) as usize;
        buffer.resize(len, 0);
        match FileExt::read_exact_at(file, &mut buffer[..len], at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
        if buffer[..len].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}
