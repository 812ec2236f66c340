//! Where contents come from.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::chunk::SHORTEST;
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
    /// What of the runs is as the older image has it, where there is one ([`ImageWriter::based_on`](crate::ImageWriter::based_on)):
    /// taken from there and not read. In order, without overlaps; whole pages.
    pub clean: &'a [Run],
}

impl StoreJob<'_> {
    /// The part from `offset` on, `len` bytes, as stretches that are clean and stretches that are to be read.
    pub(crate) fn stretches(&self, offset: u64, len: u64) -> Vec<(Range<u64>, bool)> {
        let end = offset + len;
        let mut stretches = Vec::new();
        let mut at = offset;
        let first = self
            .clean
            .partition_point(|run| run.offset + run.len <= offset);
        for run in self.clean[first..]
            .iter()
            .take_while(|run| run.offset < end)
        {
            let (start, until) = (run.offset.max(offset), (run.offset + run.len).min(end));
            if until - start < SHORTEST as u64 && until - start < len {
                continue;
            }
            if at < start {
                stretches.push((at..start, false));
            }
            stretches.push((start..until, true));
            at = until;
        }
        if at < end {
            stretches.push((at..end, false));
        }
        stretches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::limits::PAGE;

    #[test]
    fn clean_stretches_are_told_from_others() {
        const P: u64 = PAGE as u64;
        let source: Vec<u8> = Vec::new();
        let run = |start: u64, end: u64| Run {
            offset: start * P,
            len: (end - start) * P,
        };
        let clean = [run(0, 4), run(6, 7), run(8, 20)];
        let job = StoreJob {
            object: ObjectId(0),
            source: &source,
            runs: &[],
            clean: &clean,
        };
        let pages = |start: u64, end: u64| -> Vec<(u64, u64, bool)> {
            job.stretches(start * P, (end - start) * P)
                .into_iter()
                .map(|(range, clean)| (range.start / P, range.end / P, clean))
                .collect()
        };
        assert_eq!(pages(1, 3), [(1, 3, true)]);
        // One page between two changed ones is not worth a piece of its own.
        assert_eq!(pages(2, 10), [(2, 4, true), (4, 8, false), (8, 10, true)]);
        assert_eq!(pages(4, 6), [(4, 6, false)]);
        assert_eq!(pages(6, 7), [(6, 7, true)]);
        assert_eq!(pages(18, 24), [(18, 20, true), (20, 24, false)]);
        assert_eq!(pages(30, 31), [(30, 31, false)]);
    }
}
