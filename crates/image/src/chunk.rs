//! Cutting runs into chunks, and zero pages out of chunks.

use std::ops::Range;

use crate::format::limits::{CHUNK, PAGE};
use crate::source::{Run, StoreJob};

/// A hole inside a chunk is left out when it has at least this many zero pages: below that, one more read and
/// one more index record cost more than the zeros do.
const WORTHY_HOLE: usize = 16 * PAGE;

/// The pieces that contents are named in where later images are to find small changes.
pub(crate) const FINE: usize = 64 << 10;
/// A stretch of pages that is the same, below which it costs less to store it again than to name and to read it apart.
pub(crate) const SHORTEST: usize = 2 * PAGE;

/// What one worker does at a time: at most [`CHUNK`] bytes of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub job: usize,
    pub offset: u64,
    pub len: usize,
}

/// Walks all jobs chunk by chunk. Nothing is listed ahead: a run may be terabytes long.
pub(crate) struct Cursor<'a> {
    jobs: &'a [StoreJob<'a>],
    job: usize,
    run: usize,
    done: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(jobs: &'a [StoreJob<'a>]) -> Self {
        Cursor {
            jobs,
            job: 0,
            run: 0,
            done: 0,
        }
    }

    /// Gives no more chunks.
    pub(crate) fn stop(&mut self) {
        self.jobs = &[];
    }
}

impl Iterator for Cursor<'_> {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        loop {
            let job = self.jobs.get(self.job)?;
            let Some(&Run { offset, len }) = job.runs.get(self.run) else {
                (self.job, self.run, self.done) = (self.job + 1, 0, 0);
                continue;
            };
            if self.done == len {
                (self.run, self.done) = (self.run + 1, 0);
                continue;
            }
            let offset = offset + self.done;
            let to_boundary = CHUNK as u64 - offset % CHUNK as u64;
            let len = to_boundary.min(len - self.done);
            self.done += len;
            return Some(Chunk {
                job: self.job,
                offset,
                len: len as usize,
            });
        }
    }
}

/// The parts of `data` worth storing, when it stands at `offset` of its object: zero pages at the ends and long
/// rows of them inside are left out. Pages are those of the object, so a part may begin in the middle of one.
pub(crate) fn worth_storing(data: &[u8], offset: u64) -> impl Iterator<Item = Range<usize>> + '_ {
    // The first piece reaches to the page boundary of the object.
    let first = PAGE - (offset % PAGE as u64) as usize;
    let mut at = 0;
    let page_end = move |at: usize| {
        let next = if at < first { first } else { at + PAGE };
        next.min(data.len())
    };
    let zeros_from = move |start: usize| {
        let mut end = start;
        while end < data.len() && is_zero(&data[end..page_end(end)]) {
            end = page_end(end);
        }
        end
    };
    std::iter::from_fn(move || {
        let start = zeros_from(at);
        if start == data.len() {
            return None;
        }
        let mut end = page_end(start);
        loop {
            let hole_end = zeros_from(end);
            at = hole_end;
            if hole_end == data.len() || hole_end - end >= WORTHY_HOLE {
                return Some(start..end);
            }
            end = page_end(hole_end);
        }
    })
}

/// Blocks, so that the compiler makes vector instructions of the inner loop and contents end the outer one early.
fn is_zero(data: &[u8]) -> bool {
    let (blocks, rest) = data.as_chunks::<128>();
    blocks
        .iter()
        .all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::ObjectId;

    fn chunks(runs: &[Run]) -> Vec<(u64, usize)> {
        let source: Vec<u8> = Vec::new();
        let jobs = [StoreJob {
            object: ObjectId(0),
            source: &source,
            runs,
            clean: &[],
        }];
        Cursor::new(&jobs)
            .map(|chunk| (chunk.offset, chunk.len))
            .collect()
    }

    #[test]
    fn chunks_end_at_whole_mebibytes_of_the_object() {
        const M: u64 = CHUNK as u64;
        assert_eq!(chunks(&[Run { offset: 5, len: 7 }]), [(5, 7)]);
        assert_eq!(
            chunks(&[Run {
                offset: M - 3,
                len: 3
            }]),
            [(M - 3, 3)]
        );
        assert_eq!(
            chunks(&[Run {
                offset: M - 3,
                len: M + 4
            }]),
            [(M - 3, 3), (M, CHUNK), (2 * M, 1)]
        );
        assert_eq!(
            chunks(&[
                Run { offset: 0, len: 0 },
                Run { offset: 9, len: 1 },
                Run { offset: 20, len: 0 }
            ]),
            [(9, 1)]
        );
        assert_eq!(chunks(&[]), []);
    }

    #[test]
    fn an_enormous_run_is_not_listed_ahead() {
        let source: Vec<u8> = Vec::new();
        let runs = [Run {
            offset: 1,
            len: u64::MAX - 1,
        }];
        let jobs = [StoreJob {
            object: ObjectId(0),
            source: &source,
            runs: &runs,
            clean: &[],
        }];
        assert_eq!(
            Cursor::new(&jobs).next(),
            Some(Chunk {
                job: 0,
                offset: 1,
                len: CHUNK - 1
            })
        );
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)] // one range is meant
    fn zero_pages_are_left_out() {
        let parts = |data: &[u8], offset| worth_storing(data, offset).collect::<Vec<_>>();
        let mut data = vec![0; 64 * PAGE];
        assert_eq!(parts(&data, 0), []);
        assert_eq!(parts(&[], 0), []);
        data[3 * PAGE + 1] = 1;
        assert_eq!(parts(&data, 0), [3 * PAGE..4 * PAGE]);
        // 15 zero pages are not worth a cut, 16 are.
        data[19 * PAGE] = 1;
        assert_eq!(parts(&data, 0), [3 * PAGE..20 * PAGE]);
        data[36 * PAGE] = 1;
        assert_eq!(parts(&data, 0), [3 * PAGE..20 * PAGE, 36 * PAGE..37 * PAGE]);
        // Pages are those of the object: seen from one byte before a boundary, the set byte is first in its page.
        assert_eq!(
            parts(&data[..4 * PAGE], PAGE as u64 - 1),
            [3 * PAGE + 1..4 * PAGE]
        );
    }

    #[test]
    fn a_set_byte_is_seen_wherever_it_stands() {
        for at in [0, 1, 127, 128, 129, 255, 256, 299] {
            let mut data = [0; 300];
            assert!(is_zero(&data));
            data[at] = 1;
            assert!(!is_zero(&data));
        }
    }
}
