//! Writing an image.
//!
//! Workers take one chunk at a time: read, look for zeros, hash, compress, take a place in the file, write. They share
//! nothing but the cursor over the chunks, the end of the file and the list of extents, each touched once per chunk.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::chunk::{Chunk, Cursor, worth_storing};
use crate::compression::{Compression, Compressor};
use crate::error::ImageError;
use crate::flusher::{Flusher, Pace};
use crate::format::limits::{CHUNK, HEADER_LEN, INDEX_LEN, METADATA_LEN, PAGE};
use crate::format::{self, Encoding, Extent, Header, ObjectId, Section};
use crate::partial::{Partial, Place};
use crate::source::{Run, Source, StoreJob};

/// How an image is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// How contents are made smaller.
    pub compression: Compression,
    /// How many threads work on contents; 0 means one for each CPU this process may use.
    pub threads: usize,
}

/// What was stored by one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Bytes read from the sources.
    pub read_len: u64,
    /// Bytes of contents in extents, decoded: what was read without the zeros left out.
    pub logical_len: u64,
    /// Bytes of contents in the file.
    pub stored_len: u64,
    /// Number of extents.
    pub extents: u64,
}

impl Stored {
    fn add(&mut self, other: Stored) {
        self.read_len += other.read_len;
        self.logical_len += other.logical_len;
        self.stored_len += other.stored_len;
        self.extents += other.extents;
    }
}

/// How far a writer has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read from the sources so far.
    pub read_len: u64,
    /// Bytes given to the file so far.
    pub written_len: u64,
}

/// A finished image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Where it is.
    pub path: PathBuf,
    /// How long the file is, in bytes.
    pub file_len: u64,
    /// Bytes of contents, decoded and without what was zero.
    pub logical_len: u64,
    /// Bytes of contents in the file.
    pub stored_len: u64,
}

/// An image that is whole but for its name. Dropping it removes the file.
#[derive(Debug)]
pub struct FinishedImage {
    partial: Partial,
    file_len: u64,
    logical_len: u64,
    stored_len: u64,
}

impl FinishedImage {
    /// Gives the file its final name.
    ///
    /// # Errors
    /// [`ImageError::Exists`] if an image of this name has appeared, [`ImageError::Write`].
    pub fn commit(self) -> Result<Committed, ImageError> {
        Ok(Committed {
            path: self.partial.commit()?,
            file_len: self.file_len,
            logical_len: self.logical_len,
            stored_len: self.stored_len,
        })
    }
}

/// An image being written. Dropping it without [`commit`](ImageWriter::commit) removes what was written.
pub struct ImageWriter {
    flusher: Mutex<Flusher>,
    pace: Arc<Pace>,
    partial: Partial,
    options: WriteOptions,
    created: SystemTime,
    /// Where the next extent goes.
    end: AtomicU64,
    read_len: AtomicU64,
    written_len: AtomicU64,
    /// Something is missing from the file.
    failed: AtomicBool,
    extents: Mutex<Vec<Extent>>,
    /// Buffers of workers that are done, for the next ones.
    workers: Mutex<Vec<Worker>>,
}

struct Worker {
    compressor: Compressor,
    buffer: Vec<u8>,
    /// Extents written and not yet handed on.
    extents: Vec<Extent>,
    stored: Stored,
}

impl ImageWriter {
    /// Begins the image that will be called `final_path`; until [`commit`](ImageWriter::commit) it has `.partial` after
    /// its name. A partial file of the same name that nobody writes any more is replaced.
    ///
    /// # Errors
    /// [`ImageError::Exists`] if there is such an image, [`ImageError::Busy`] if it is being written,
    /// [`ImageError::Create`] if the kernel refuses the file.
    pub fn create(final_path: &Path, options: WriteOptions) -> Result<ImageWriter, ImageError> {
        ImageWriter::begin(final_path, options, Place::New)
    }

    /// Begins an image that takes the place of the one called `final_path`, if there is one, in the instant of its
    /// [`commit`](ImageWriter::commit). Until then it has `.temp` after its name.
    ///
    /// # Errors
    /// As [`create`](ImageWriter::create), without [`ImageError::Exists`].
    pub fn replace(final_path: &Path, options: WriteOptions) -> Result<ImageWriter, ImageError> {
        ImageWriter::begin(final_path, options, Place::Replace)
    }

    fn begin(
        final_path: &Path,
        options: WriteOptions,
        place: Place,
    ) -> Result<ImageWriter, ImageError> {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, Into::into),
            threads => threads,
        };
        Ok(ImageWriter {
            flusher: Mutex::default(),
            pace: Arc::default(),
            partial: Partial::create(final_path, place)?,
            options: WriteOptions { threads, ..options },
            created: SystemTime::now(),
            end: AtomicU64::new(HEADER_LEN as u64),
            read_len: AtomicU64::new(0),
            written_len: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            extents: Mutex::new(Vec::new()),
            workers: Mutex::new(Vec::new()),
        })
    }

    /// Stores ranges of an object. Pages of zeros are left out, so what is missing from a run when it is read back is
    /// zero. Returns when all has been written (not necessarily to the disk yet). May be called from several threads.
    ///
    /// # Errors
    /// [`ImageError::SourceRead`] if the source fails, [`ImageError::Write`] if the destination does,
    /// [`ImageError::Misuse`] if a run reaches beyond the largest offset. The image cannot be committed afterwards.
    pub fn store(
        &self,
        object: ObjectId,
        source: &dyn Source,
        runs: &[Run],
    ) -> Result<Stored, ImageError> {
        self.store_all(&[StoreJob {
            object,
            source,
            runs,
        }])
    }

    /// The same for many objects at once, which keeps all threads busy across small ones.
    ///
    /// # Errors
    /// As [`store`](ImageWriter::store).
    pub fn store_all(&self, jobs: &[StoreJob<'_>]) -> Result<Stored, ImageError> {
        // A source that panics leaves a gap, too.
        let failure = FailOnDrop(&self.failed);
        check(jobs)?;
        let stored = self.store_checked(jobs)?;
        std::mem::forget(failure);
        Ok(stored)
    }

    fn store_checked(&self, jobs: &[StoreJob<'_>]) -> Result<Stored, ImageError> {
        // As many threads as there are chunks, the calling one among them.
        let threads = Cursor::new(jobs).take(self.options.threads).count();
        let cursor = Mutex::new(Cursor::new(jobs));
        let work = || self.work(jobs, &cursor);
        std::thread::scope(|scope| {
            // Where no thread can be had, those that are there do it all.
            let helpers: Vec<_> = (1..threads)
                .map_while(|_| {
                    std::thread::Builder::new()
                        .name("image-write".into())
                        .spawn_scoped(scope, work)
                        .ok()
                })
                .collect();
            let mut result = work();
            for helper in helpers {
                let other = helper
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = match (result, other) {
                    (Ok(mut stored), Ok(more)) => {
                        stored.add(more);
                        Ok(stored)
                    }
                    // The first failure stops the others without one, so there is nothing to choose.
                    (Err(error), _) | (_, Err(error)) => Err(error),
                };
            }
            result
        })
    }

    fn work(
        &self,
        jobs: &[StoreJob<'_>],
        cursor: &Mutex<Cursor<'_>>,
    ) -> Result<Stored, ImageError> {
        let mut worker = lock(&self.workers).pop().unwrap_or_else(|| Worker {
            compressor: Compressor::new(self.options.compression),
            buffer: Vec::new(),
            extents: Vec::new(),
            stored: Stored::default(),
        });
        let mut result = Ok(());
        loop {
            let next = lock(cursor).next();
            let Some(chunk) = next else { break };
            result = self.store_chunk(&mut worker, &jobs[chunk.job], chunk);
            if result.is_err() {
                // Nobody goes on: the image is lost.
                lock(cursor).stop();
                break;
            }
        }
        lock(&self.extents).append(&mut worker.extents);
        let stored = std::mem::take(&mut worker.stored);
        lock(&self.workers).push(worker);
        result.map(|()| stored)
    }

    fn store_chunk(
        &self,
        worker: &mut Worker,
        job: &StoreJob<'_>,
        chunk: Chunk,
    ) -> Result<(), ImageError> {
        let Chunk { offset, len, .. } = chunk;
        // Room for the zeros after the last page; grows once to what is needed and stays.
        let room = len.next_multiple_of(PAGE) + PAGE;
        if worker.buffer.len() < room {
            worker.buffer.resize(room, 0);
        }
        let data = &mut worker.buffer[..len];
        job.source
            .read_exact_at(data, offset)
            .map_err(|source| ImageError::SourceRead {
                object: job.object,
                offset,
                len: len as u64,
                source,
            })?;
        self.read_len.fetch_add(len as u64, Ordering::Relaxed);
        worker.stored.read_len += len as u64;

        // At most 60 of them (a part and a hole take 17 pages), and usually one.
        let parts: Vec<_> = worth_storing(data, offset).collect();
        for part in parts {
            let hash = blake3::hash(&worker.buffer[part.clone()]).into();
            let hurried = self.options.compression == Compression::Auto
                && !self.pace.is_behind(self.end.load(Ordering::Relaxed));
            let compressed = if hurried {
                None
            } else {
                worker.compressor.compress(&worker.buffer[part.clone()])
            };
            let (encoding, stored_len, padded) = match compressed {
                Some(compressed) => compressed,
                None => {
                    // The bytes after the part are either the end of the chunk or a hole: nobody needs them.
                    let end = part.start + part.len().next_multiple_of(PAGE);
                    worker.buffer[part.end..end].fill(0);
                    (Encoding::Raw, part.len(), &worker.buffer[part.start..end])
                }
            };
            let file_offset = self.append(padded)?;
            worker.extents.push(Extent {
                object: job.object,
                offset: offset + part.start as u64,
                len: part.len() as u64,
                file_offset,
                stored_len: stored_len as u32,
                encoding,
                hash,
            });
            worker.stored.logical_len += part.len() as u64;
            worker.stored.stored_len += stored_len as u64;
            worker.stored.extents += 1;
        }
        Ok(())
    }

    /// Writes whole pages at the end of the file; gives the place.
    fn append(&self, pages: &[u8]) -> Result<u64, ImageError> {
        let offset = self.end.fetch_add(pages.len() as u64, Ordering::Relaxed);
        self.write(pages, offset)?;
        if Flusher::is_due(offset, offset + pages.len() as u64) {
            let end = offset + pages.len() as u64;
            lock(&self.flusher).request(self.partial.file(), &self.pace, end);
        }
        Ok(offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), ImageError> {
        self.partial
            .file()
            .write_all_at(bytes, offset)
            .map_err(|source| self.write_error(source))?;
        self.written_len
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn write_error(&self, source: std::io::Error) -> ImageError {
        ImageError::Write {
            path: self.partial.path().to_owned(),
            source,
        }
    }

    /// How far the writer has come, to be asked from another thread.
    pub fn progress(&self) -> Progress {
        Progress {
            read_len: self.read_len.load(Ordering::Relaxed),
            written_len: self.written_len.load(Ordering::Relaxed),
        }
    }

    /// Completes the image: metadata, index and header are written, all is flushed to the disk, and the file gets its
    /// final name, which is flushed as well.
    ///
    /// # Errors
    /// [`ImageError::Write`] if the destination fails, [`ImageError::Exists`] if an image of this name has appeared,
    /// [`ImageError::Incomplete`] if an earlier call had failed, [`ImageError::Misuse`] if the same bytes of an object
    /// were stored twice, [`ImageError::TooLarge`]. The image is gone then, with one exception: if only the flush of
    /// the directory fails ([`ImageError::Write`] names the directory), it is there, but might not survive a crash.
    pub fn commit(self, metadata: &[u8]) -> Result<Committed, ImageError> {
        self.finish(metadata)?.commit()
    }

    /// Completes the image but for its name: all of it is on the disk.
    ///
    /// # Errors
    /// As [`commit`](ImageWriter::commit).
    pub fn finish(self, metadata: &[u8]) -> Result<FinishedImage, ImageError> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(ImageError::Incomplete {
                path: self.partial.path().to_owned(),
            });
        }
        let too_large = |what, value, limit| ImageError::TooLarge {
            path: self.partial.path().to_owned(),
            what,
            value,
            limit,
        };
        let metadata_len = metadata.len() as u64;
        if metadata_len > METADATA_LEN {
            return Err(too_large("metadata", metadata_len, METADATA_LEN));
        }
        let mut extents = std::mem::take(&mut *lock(&self.extents));
        extents.sort_unstable_by_key(|extent| (extent.object, extent.offset));
        if let Some(pair) = extents
            .windows(2)
            .find(|pair| pair[0].object == pair[1].object && pair[0].end() > pair[1].offset)
        {
            let Extent { object, offset, .. } = pair[1];
            return Err(ImageError::Misuse {
                object,
                offset,
                reason: "it was stored twice",
            });
        }

        let compressed = match self.options.compression {
            // Metadata is small next to contents: the level matters little, its size on a slow file system may.
            Compression::Auto | Compression::Lz4 | Compression::Zstd(_) => {
                zstd::bulk::compress(metadata, 3).ok()
            }
            Compression::None => None,
        };
        let (metadata_encoding, metadata_stored) = match &compressed {
            Some(compressed) if compressed.len() < metadata.len() => {
                (Encoding::Zstd, compressed.as_slice())
            }
            _ => (Encoding::Raw, metadata),
        };
        let metadata = self.write_section(metadata_stored)?;
        let index = format::encode_index(&extents);
        if index.len() as u64 > INDEX_LEN {
            return Err(too_large("index", index.len() as u64, INDEX_LEN));
        }
        let index = self.write_section(&index)?;
        let file_len = index.offset + index.len;
        self.partial
            .file()
            .set_len(file_len)
            .map_err(|source| self.write_error(source))?;

        let mut header = Header {
            version: format::VERSION,
            created: self.created,
            file_len,
            metadata_len,
            extents: extents.len() as u64,
            logical_len: extents.iter().map(|extent| extent.len).sum(),
            stored_len: extents.iter().map(Extent::stored_len).sum(),
            checksum: [0; 32],
            metadata,
            metadata_encoding,
            index,
        };
        self.write(&header.encode(), 0)?;
        self.partial
            .file()
            .sync_all()
            .map_err(|source| self.write_error(source))?;
        Ok(FinishedImage {
            partial: self.partial,
            file_len,
            logical_len: header.logical_len,
            stored_len: header.stored_len,
        })
    }

    fn write_section(&self, bytes: &[u8]) -> Result<Section, ImageError> {
        let len = bytes.len() as u64;
        let offset = self
            .end
            .fetch_add(len.next_multiple_of(PAGE as u64), Ordering::Relaxed);
        self.write(bytes, offset)?;
        Ok(Section {
            offset,
            len,
            hash: blake3::hash(bytes).into(),
        })
    }
}

struct FailOnDrop<'a>(&'a AtomicBool);

impl Drop for FailOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs must end before the largest offset. That they do not overlap is seen at the commit, when they are in order.
fn check(jobs: &[StoreJob<'_>]) -> Result<(), ImageError> {
    for job in jobs {
        if let Some(run) = job
            .runs
            .iter()
            .find(|run| run.offset.checked_add(run.len).is_none())
        {
            return Err(ImageError::Misuse {
                object: job.object,
                offset: run.offset,
                reason: "a run reaches beyond the largest offset",
            });
        }
    }
    Ok(())
}

/// A lock is never held while something can panic, so what it guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = assert!(CHUNK.is_multiple_of(PAGE) && CHUNK <= u32::MAX as usize);
