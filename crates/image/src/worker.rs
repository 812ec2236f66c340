//! What one thread does with a chunk: read, look for zeros, hash, look for what is known, compress, encrypt, write.

use std::ops::Range;

use crate::chunk::{Chunk, FINE, SHORTEST, worth_storing};
use crate::compression::{Compression, Compressor};
use crate::error::ImageError;
use crate::format::limits::PAGE;
use crate::index::{Encoding, Extent, ObjectId, Place};
use crate::seal::TAG_LEN;
use crate::source::StoreJob;
use crate::stored::Scratch;
use crate::writer::{ImageWriter, Stored};

/// The buffers of one thread.
pub(crate) struct Worker {
    compressor: Compressor,
    /// The contents of the chunk at hand.
    pub buffer: Vec<u8>,
    /// What an older image holds there.
    old: Vec<u8>,
    sealed: Vec<u8>,
    pub scratch: Scratch,
    /// Extents written and not yet handed on.
    pub extents: Vec<Extent>,
    pub stored: Stored,
}

impl Worker {
    pub(crate) fn new(compression: Compression) -> Worker {
        Worker {
            compressor: Compressor::new(compression),
            buffer: Vec::new(),
            old: Vec::new(),
            sealed: Vec::new(),
            scratch: Scratch::new(),
            extents: Vec::new(),
            stored: Stored::default(),
        }
    }
}

/// A stretch of a part: the same as in an old piece, or new.
type Stretch = (Range<usize>, Option<Extent>);

impl ImageWriter {
    pub(crate) fn store_chunk(
        &self,
        worker: &mut Worker,
        job: &StoreJob<'_>,
        chunk: Chunk,
    ) -> Result<(), ImageError> {
        let Chunk { offset, len, .. } = chunk;
        let first = worker.extents.len();
        let clean = if self.known.older.is_some() {
            job.stretches(offset, len as u64)
        } else {
            vec![(offset..offset + len as u64, false)]
        };
        for (stretch, is_clean) in clean {
            if is_clean {
                self.take_over(worker, job, stretch)?;
            } else {
                self.store_stretch(worker, job, stretch)?;
            }
        }
        self.count_read(len as u64);
        worker.stored.read_len += len as u64;
        let pieces = &worker.extents[first..];
        self.known.remember(pieces);
        worker.stored.logical_len += pieces.iter().map(|piece| piece.len).sum::<u64>();
        worker.stored.extents += pieces.len() as u64;
        Ok(())
    }

    /// Reads a stretch into the buffer.
    fn read(
        &self,
        worker: &mut Worker,
        job: &StoreJob<'_>,
        stretch: &Range<u64>,
    ) -> Result<usize, ImageError> {
        let len = (stretch.end - stretch.start) as usize;
        // Room for the zeros after the last page; grows once to what is needed and stays.
        let room = len.next_multiple_of(PAGE) + PAGE;
        if worker.buffer.len() < room {
            worker.buffer.resize(room, 0);
        }
        job.source
            .read_exact_at(&mut worker.buffer[..len], stretch.start)
            .map_err(|source| ImageError::SourceRead {
                object: job.object,
                offset: stretch.start,
                len: len as u64,
                source,
            })?;
        Ok(len)
    }

    /// Reads a stretch and stores it, or what of it is not known.
    fn store_stretch(
        &self,
        worker: &mut Worker,
        job: &StoreJob<'_>,
        stretch: Range<u64>,
    ) -> Result<(), ImageError> {
        let len = self.read(worker, job, &stretch)?;
        // At most 60 of them (a part and a hole take 17 pages), and usually one.
        let parts: Vec<_> = worth_storing(&worker.buffer[..len], stretch.start).collect();
        for part in parts {
            if self.fine {
                self.store_finely(worker, job.object, stretch.start, part)?;
            } else {
                self.store_part(worker, job.object, stretch.start, part)?;
            }
        }
        Ok(())
    }

    /// Names what the older image has of a stretch that has not changed. What that one has not is zero now as then.
    fn take_over(
        &self,
        worker: &mut Worker,
        job: &StoreJob<'_>,
        stretch: Range<u64>,
    ) -> Result<(), ImageError> {
        let whole = Extent {
            object: job.object,
            offset: stretch.start,
            len: stretch.end - stretch.start,
            place: Place::NONE,
            hash: [0; 32],
        };
        let pieces = self.known.of_older(&whole);
        if self.doubting {
            self.check_clean(worker, job, &stretch, &pieces)?;
        }
        for piece in pieces {
            let range = piece.offset.max(stretch.start)..piece.end().min(stretch.end);
            if range == (piece.offset..piece.end()) {
                worker.stored.clean_len += piece.len;
                worker.extents.push(piece);
                continue;
            }
            // Of a part there is no hash yet.
            let len = self.read(worker, job, &range)?;
            worker.extents.push(Extent {
                offset: range.start,
                len: len as u64,
                place: piece.place.further(range.start - piece.offset),
                hash: blake3::hash(&worker.buffer[..len]).into(),
                ..piece
            });
        }
        Ok(())
    }

    /// Compares what is said not to have changed with what the older image has.
    fn check_clean(
        &self,
        worker: &mut Worker,
        job: &StoreJob<'_>,
        stretch: &Range<u64>,
        pieces: &[Extent],
    ) -> Result<(), ImageError> {
        let len = self.read(worker, job, stretch)?;
        let mut expected = vec![0; len];
        for piece in pieces {
            let range = piece.offset.max(stretch.start)..piece.end().min(stretch.end);
            let place = piece.place.further(range.start - piece.offset);
            let file = &self.files[usize::from(place.source)];
            let part = (range.start - stretch.start) as usize..(range.end - stretch.start) as usize;
            file.read(
                &place,
                piece.part(),
                &mut worker.scratch,
                &mut expected[part],
            )?;
        }
        if worker.buffer[..len] == expected {
            return Ok(());
        }
        let page = (worker.buffer.chunks(PAGE).zip(expected.chunks(PAGE)))
            .position(|(now, then)| &now[..then.len()] != then);
        Err(ImageError::Misuse {
            object: job.object,
            offset: stretch.start + (page.unwrap_or(0) * PAGE) as u64,
            reason: "it was said to be as before, and has changed",
        })
    }

    /// As [`ImageWriter::store_part`], in pieces of [`FINE`] bytes: of a small change the next image need not read much.
    fn store_finely(
        &self,
        worker: &mut Worker,
        object: ObjectId,
        offset: u64,
        part: Range<usize>,
    ) -> Result<(), ImageError> {
        let mut unknown = part.start..part.start;
        let mut hashes = Vec::new();
        let mut at = part.start;
        while at < part.end {
            let end = self.fine_end(offset, at).min(part.end);
            let hash: [u8; 32] = blake3::hash(&worker.buffer[at..end]).into();
            match self.known.by_hash(&hash, (end - at) as u64) {
                None => {
                    unknown.end = end;
                    hashes.push(hash);
                }
                Some(place) => {
                    self.store_unknown(worker, (object, offset), unknown, &hashes)?;
                    unknown = end..end;
                    hashes.clear();
                    worker.extents.push(Extent {
                        object,
                        offset: offset + at as u64,
                        len: (end - at) as u64,
                        place,
                        hash,
                    });
                }
            }
            at = end;
        }
        self.store_unknown(worker, (object, offset), unknown, &hashes)
    }

    /// Where the fine piece ends that begins `at` in a buffer that stands at `offset` of the object.
    fn fine_end(&self, offset: u64, at: usize) -> usize {
        let from = offset + at as u64;
        at + FINE - (from % FINE as u64) as usize
    }

    /// Stores a part of the buffer none of whose fine pieces, which have these hashes, is known by its hash.
    fn store_unknown(
        &self,
        worker: &mut Worker,
        (object, offset): (ObjectId, u64),
        part: Range<usize>,
        hashes: &[[u8; 32]],
    ) -> Result<(), ImageError> {
        if part.is_empty() {
            return Ok(());
        }
        let whole = Extent {
            object,
            offset: offset + part.start as u64,
            len: part.len() as u64,
            place: Place::NONE,
            hash: [0; 32],
        };
        for (range, old) in self.changes(worker, &whole, part.clone()) {
            let piece = |range: &Range<usize>, place, hash| Extent {
                object,
                offset: offset + range.start as u64,
                len: range.len() as u64,
                place,
                hash,
            };
            if let Some(old) = old {
                let from = offset + range.start as u64;
                let hash = blake3::hash(&worker.buffer[range.clone()]).into();
                let place = old.place.further(from - old.offset);
                worker.extents.push(piece(&range, place, hash));
                continue;
            }
            let place = self.put(worker, range.clone())?;
            let mut at = range.start;
            while at < range.end {
                let fine = at..self.fine_end(offset, at).min(range.end);
                let hash = if range == part {
                    hashes[((offset + at as u64) / FINE as u64
                        - (offset + part.start as u64) / FINE as u64)
                        as usize]
                } else {
                    blake3::hash(&worker.buffer[fine.clone()]).into()
                };
                let skipped = place.further((at - range.start) as u64);
                worker.extents.push(piece(&fine, skipped, hash));
                at = fine.end;
            }
        }
        Ok(())
    }

    /// Stores a part of the buffer, which stands at `offset` of the object, or what of it is not known.
    fn store_part(
        &self,
        worker: &mut Worker,
        object: ObjectId,
        offset: u64,
        part: Range<usize>,
    ) -> Result<(), ImageError> {
        let hash = blake3::hash(&worker.buffer[part.clone()]).into();
        let mut piece = Extent {
            object,
            offset: offset + part.start as u64,
            len: part.len() as u64,
            place: Place::NONE,
            hash,
        };
        if let Some(place) = self.known.by_hash(&hash, piece.len) {
            piece.place = place;
            worker.extents.push(piece);
            return Ok(());
        }
        for (range, old) in self.changes(worker, &piece, part.clone()) {
            let mut piece = Extent {
                offset: offset + range.start as u64,
                len: range.len() as u64,
                ..piece
            };
            let is_the_same = |old: &Extent| (old.offset, old.len) == (piece.offset, piece.len);
            piece.hash = match &old {
                Some(old) if is_the_same(old) => old.hash,
                _ if range == part => hash,
                _ => blake3::hash(&worker.buffer[range.clone()]).into(),
            };
            piece.place = match old {
                Some(old) => old.place.further(piece.offset - old.offset),
                None if range == part => self.put(worker, range)?,
                None => match self.known.by_hash(&piece.hash, piece.len) {
                    Some(place) => place,
                    None => self.put(worker, range)?,
                },
            };
            worker.extents.push(piece);
        }
        Ok(())
    }

    /// A part of the buffer as stretches that an older piece holds and stretches that are new.
    fn changes(&self, worker: &mut Worker, piece: &Extent, part: Range<usize>) -> Vec<Stretch> {
        let all_new = vec![(part.clone(), None)];
        let is_page = |at: u64| at.is_multiple_of(PAGE as u64);
        // Pieces begin at pages, so that what follows one in the buffer is never touched by filling up its last page.
        if part.len() < 2 * PAGE || !is_page(piece.offset) || !self.known.is_worth_comparing() {
            return all_new;
        }
        let mut same: Vec<(Range<usize>, Extent)> = Vec::new();
        for old in self.known.by_place(piece) {
            let from = old.offset.max(piece.offset).next_multiple_of(PAGE as u64);
            let until = old.end().min(piece.end());
            if from >= until || !is_page(old.offset) {
                continue;
            }
            worker.old.resize((until - from) as usize, 0);
            let place = old.place.further(from - old.offset);
            let file = &self.files[usize::from(place.source)];
            let read = file.read(&place, old.part(), &mut worker.scratch, &mut worker.old);
            if read.is_err() {
                // Whether the older image can be read is for whoever reads it to find out.
                continue;
            }
            let start = part.start + (from - piece.offset) as usize;
            let new = &worker.buffer[start..start + worker.old.len()];
            let pages = worker.old.chunks(PAGE).zip(new.chunks(PAGE)).enumerate();
            for (n, (_, new)) in pages.filter(|(_, (old, new))| old == new) {
                let at = start + n * PAGE;
                // The last page of the object may be a short one; any other that is cut would end a piece in its middle.
                if !new.len().is_multiple_of(PAGE) && at + new.len() != part.end {
                    continue;
                }
                match same.last_mut() {
                    Some((range, of)) if range.end == at && of.place == old.place => {
                        range.end += new.len()
                    }
                    _ => same.push((at..at + new.len(), old)),
                }
            }
        }
        same.retain(|(range, _)| range.len() >= SHORTEST || *range == part);
        let gained = same.iter().map(|(range, _)| range.len()).sum::<usize>();
        self.known.note(part.len() as u64, gained as u64);
        if gained < part.len() / 4 {
            return all_new;
        }
        let mut stretches = Vec::with_capacity(2 * same.len() + 1);
        let mut at = part.start;
        for (range, old) in same {
            if at < range.start {
                stretches.push((at..range.start, None));
            }
            at = range.end;
            stretches.push((range, Some(old)));
        }
        if at < part.end {
            stretches.push((at..part.end, None));
        }
        stretches
    }

    /// Puts a part of the buffer into the file.
    pub(crate) fn put(&self, worker: &mut Worker, part: Range<usize>) -> Result<Place, ImageError> {
        let hurried = self.options.compression == Compression::Auto && !self.is_disk_behind();
        let compressed = if hurried {
            None
        } else {
            worker.compressor.compress(&worker.buffer[part.clone()])
        };
        let (encoding, stored_len, padded) = match compressed {
            Some(compressed) => compressed,
            None => {
                // The bytes after the part are the end of the chunk or a hole, or the part ends with a page.
                let end = part.start + part.len().next_multiple_of(PAGE);
                worker.buffer[part.end..end].fill(0);
                (Encoding::Raw, part.len(), &worker.buffer[part.start..end])
            }
        };
        let file_offset = match &self.files[0].seal {
            None => self.append(padded)?,
            Some(seal) => {
                let room = (stored_len + TAG_LEN).next_multiple_of(PAGE);
                let offset = self.reserve(room as u64);
                worker.sealed.clear();
                worker.sealed.extend_from_slice(&padded[..stored_len]);
                let tag = seal.close(offset, &mut worker.sealed);
                worker.sealed.extend(tag.unwrap_or_default());
                worker.sealed.resize(room, 0);
                self.write_at(&worker.sealed, offset)?;
                offset
            }
        };
        self.count_stored(stored_len as u64);
        worker.stored.stored_len += stored_len as u64;
        Ok(Place {
            source: 0,
            file_offset,
            stored_len: stored_len as u32,
            encoding,
            whole: part.len() as u32,
            skip: 0,
        })
    }
}
