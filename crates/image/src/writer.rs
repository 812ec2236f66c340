//! Writing an image.
//!
//! Workers take one chunk at a time (`worker.rs`). They share nothing but the cursor over the chunks, the end of the file, the
//! list of extents and what is known already, each touched once per chunk.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::bases::{self, Base};
use crate::chain;
use crate::chunk::Cursor;
use crate::compression::Compression;
use crate::error::ImageError;
use crate::flusher::{Flusher, Pace};
use crate::format::limits::{CHUNK, HEADER_LEN, INDEX_LEN, METADATA_LEN, PAGE};
use crate::format::{self, Header, Section};
use crate::index::{self, Encoding, Extent, ObjectId, Place};
use crate::keys::{self, Secret};
use crate::known::{Known, Older};
use crate::partial::{self, Partial};
use crate::reader::{Image, used};
use crate::source::{Run, Source, StoreJob};
use crate::stored::{self, is_named, sealed};
use crate::worker::Worker;

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
    /// Bytes read from the sources, and those that did not have to be.
    pub read_len: u64,
    /// Bytes that did not have to be read, as they are named as the older image has them.
    pub clean_len: u64,
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
        self.clean_len += other.clean_len;
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
    /// Older files that contents are taken from.
    pub bases: usize,
    /// The header's checksum, by which images that take contents from this one know it.
    pub checksum: [u8; 32],
}

/// An image that is whole but for its name. Dropping it removes the file.
#[derive(Debug)]
pub struct FinishedImage {
    partial: Partial,
    file_len: u64,
    logical_len: u64,
    stored_len: u64,
    bases: usize,
    checksum: [u8; 32],
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
            bases: self.bases,
            checksum: self.checksum,
        })
    }
}

/// An image being written. Dropping it without [`commit`](ImageWriter::commit) removes what was written.
pub struct ImageWriter {
    flusher: Mutex<Flusher>,
    pace: Arc<Pace>,
    partial: Partial,
    pub(crate) options: WriteOptions,
    created: SystemTime,
    secret: Option<Secret>,
    salt: [u8; 32],
    /// The file being written, then those of the older image.
    pub(crate) files: Vec<stored::Stored>,
    pub(crate) known: Known,
    /// Contents are named in pieces of [`FINE`](crate::chunk::FINE) bytes.
    pub(crate) fine: bool,
    /// What is said to be clean is compared nevertheless.
    pub(crate) doubting: bool,
    /// Where the next extent goes.
    end: AtomicU64,
    read_len: AtomicU64,
    stored_len: AtomicU64,
    written_len: AtomicU64,
    /// Something is missing from the file.
    failed: AtomicBool,
    extents: Mutex<Vec<Extent>>,
    /// Buffers of workers that are done, for the next ones.
    workers: Mutex<Vec<Worker>>,
}

impl ImageWriter {
    /// Begins the image that will be called `final_path`; until [`commit`](ImageWriter::commit) it has `.partial` after
    /// its name. A partial file of the same name that nobody writes any more is replaced.
    ///
    /// # Errors
    /// [`ImageError::Exists`] if there is such an image, [`ImageError::Busy`] if it is being written,
    /// [`ImageError::Create`] if the kernel refuses the file.
    pub fn create(final_path: &Path, options: WriteOptions) -> Result<ImageWriter, ImageError> {
        ImageWriter::begin(final_path, options, partial::Place::New)
    }

    /// Begins an image that takes the place of the one called `final_path`, if there is one, in the instant of its
    /// [`commit`](ImageWriter::commit). Until then it has `.temp` after its name.
    ///
    /// # Errors
    /// As [`create`](ImageWriter::create), without [`ImageError::Exists`].
    pub fn replace(final_path: &Path, options: WriteOptions) -> Result<ImageWriter, ImageError> {
        ImageWriter::begin(final_path, options, partial::Place::Replace)
    }

    fn begin(
        final_path: &Path,
        options: WriteOptions,
        place: partial::Place,
    ) -> Result<ImageWriter, ImageError> {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, Into::into),
            threads => threads,
        };
        let partial = Partial::create(final_path, place)?;
        let own = stored::Stored {
            file: Arc::clone(partial.file()),
            path: partial.path().to_owned(),
            seal: None,
        };
        Ok(ImageWriter {
            flusher: Mutex::default(),
            pace: Arc::default(),
            partial,
            options: WriteOptions { threads, ..options },
            created: SystemTime::now(),
            secret: None,
            salt: [0; 32],
            files: vec![own],
            known: Known::default(),
            fine: false,
            doubting: false,
            stored_len: AtomicU64::new(0),
            end: AtomicU64::new(HEADER_LEN as u64),
            read_len: AtomicU64::new(0),
            written_len: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            extents: Mutex::new(Vec::new()),
            workers: Mutex::new(Vec::new()),
        })
    }

    /// Encrypts the image. To be said before anything is stored.
    ///
    /// # Errors
    /// [`ImageError::Key`] when no random numbers can be had.
    pub fn encrypted_with(mut self, secret: &Secret) -> Result<ImageWriter, ImageError> {
        self.salt = keys::random()?;
        self.files[0].seal = Some(secret.seal(&self.salt));
        self.secret = Some(secret.clone());
        Ok(self)
    }

    /// Takes contents that are the same from an older image of the same directory, where that is good for anything: it is
    /// not when the older one leans on too many files itself, or is encrypted otherwise. To be said before anything is stored.
    #[must_use]
    pub fn based_on(mut self, older: Arc<Image>) -> ImageWriter {
        let wrapped = |secret: &Option<Secret>| secret.as_ref().map(|one| one.wrapped().to_vec());
        let same_key = wrapped(&self.secret) == wrapped(&older.secret().cloned());
        if let Some(older) = same_key.then(|| Older::new(older)).flatten() {
            self.files.extend(older.files().cloned());
            self.known.older = Some(older);
        }
        self
    }

    /// Has later images find small changes more quickly: contents are named in smaller pieces. To be said before anything is stored.
    #[must_use]
    pub fn in_fine_pieces(self) -> ImageWriter {
        ImageWriter { fine: true, ..self }
    }

    /// Compares what is said to be clean with the older image, and fails where it is not: for tests.
    #[must_use]
    pub fn doubting(self) -> ImageWriter {
        ImageWriter {
            doubting: true,
            ..self
        }
    }

    /// Says when the image was begun, where that is not now.
    pub(crate) fn created_at(mut self, created: SystemTime) -> ImageWriter {
        self.created = created;
        self
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
            clean: &[],
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
        let mut worker = self.worker();
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

    fn worker(&self) -> Worker {
        let idle = lock(&self.workers).pop();
        idle.unwrap_or_else(|| Worker::new(self.options.compression))
    }

    pub(crate) fn count_read(&self, len: u64) {
        self.read_len.fetch_add(len, Ordering::Relaxed);
    }

    pub(crate) fn count_stored(&self, len: u64) {
        self.stored_len.fetch_add(len, Ordering::Relaxed);
    }

    /// Whether the disk is what this image waits for.
    pub(crate) fn is_disk_behind(&self) -> bool {
        self.pace.is_behind(self.end.load(Ordering::Relaxed))
    }

    /// Room for `len` bytes, whole pages, at the end of the file.
    pub(crate) fn reserve(&self, len: u64) -> u64 {
        self.end.fetch_add(len, Ordering::Relaxed)
    }

    /// Writes whole pages at the end of the file; gives the place.
    pub(crate) fn append(&self, pages: &[u8]) -> Result<u64, ImageError> {
        let offset = self.reserve(pages.len() as u64);
        self.write_at(pages, offset)?;
        Ok(offset)
    }

    /// Writes whole pages where room is reserved for them.
    pub(crate) fn write_at(&self, pages: &[u8], offset: u64) -> Result<(), ImageError> {
        self.write(pages, offset)?;
        let end = offset + pages.len() as u64;
        if Flusher::is_due(offset, end) {
            lock(&self.flusher).request(self.partial.file(), &self.pace, end);
        }
        Ok(())
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
        let bases = self.settle_bases(&mut extents)?;

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
        let metadata = self.write_section(metadata_stored, true)?;
        let base_table = match bases.len() {
            0 => Section::default(),
            _ => self.write_section(&bases::encode(&bases), false)?,
        };
        let key = match &self.secret {
            None => Section::default(),
            Some(secret) => self.write_section(secret.wrapped(), false)?,
        };
        let index = index::encode(&extents);
        if index.len() as u64 > INDEX_LEN {
            return Err(too_large("index", index.len() as u64, INDEX_LEN));
        }
        let index = self.write_section(&index, true)?;
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
            stored_len: self.stored_len.load(Ordering::Relaxed),
            checksum: [0; 32],
            bases: bases.len() as u64,
            encrypted: self.secret.is_some(),
            metadata,
            metadata_encoding,
            base_table,
            key,
            salt: self.salt,
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
            bases: bases.len(),
            checksum: header.checksum,
        })
    }

    /// Decides which older files the image leans on, carries over what is in others, and numbers those that are left.
    fn settle_bases(&self, extents: &mut [Extent]) -> Result<Vec<Base>, ImageError> {
        let Some(older) = &self.known.older else {
            return Ok(Vec::new());
        };
        let live = used(extents, self.files.len());
        let uses: Vec<chain::Use> = older
            .bases
            .iter()
            .zip(&live[1..])
            .map(|(base, live)| chain::Use {
                len: base.file_len,
                live: *live,
            })
            .collect();
        let mut unbearable = chain::unbearable(self.end.load(Ordering::Relaxed), &uses);
        // Somebody has removed or exchanged it: what is in it can still be read, but nobody else will.
        let lost = |n: &usize| !is_named(&self.files[n + 1].file, &self.files[n + 1].path);
        unbearable.extend((0..uses.len()).filter(lost));
        let gone = |source: u16| source > 0 && unbearable.contains(&(usize::from(source) - 1));
        self.carry_over(extents, &gone)?;
        let mut numbers: HashMap<u16, u16> = HashMap::from([(0, 0)]);
        let mut bases = Vec::new();
        for extent in extents {
            let source = &mut extent.place.source;
            *source = *numbers.entry(*source).or_insert_with(|| {
                bases.push(older.bases[usize::from(*source) - 1].clone());
                bases.len() as u16
            });
        }
        Ok(bases)
    }

    /// Reads, checks and stores again the pieces that are in files of which `gone` says that they cannot stay.
    fn carry_over(
        &self,
        extents: &mut [Extent],
        gone: &(dyn Fn(u16) -> bool + Sync),
    ) -> Result<(), ImageError> {
        let mut moving: Vec<&mut Extent> = extents
            .iter_mut()
            .filter(|extent| gone(extent.place.source))
            .collect();
        moving.sort_by_key(|extent| (extent.place.source, extent.place.file_offset));
        let threads = self.options.threads.clamp(1, moving.len().max(1));
        let share = moving.len().div_ceil(threads).max(1);
        let moved: Mutex<HashMap<(Place, u64), Place>> = Mutex::default();
        let work = |pieces: &mut [&mut Extent]| -> Result<(), ImageError> {
            let mut worker = self.worker();
            for extent in pieces {
                let key = (extent.place, extent.len);
                let known = lock(&moved).get(&key).copied();
                extent.place = match known {
                    Some(place) => place,
                    None => self.store_again(&mut worker, extent)?,
                };
                lock(&moved).insert(key, extent.place);
            }
            lock(&self.workers).push(worker);
            Ok(())
        };
        std::thread::scope(|scope| {
            let helpers: Vec<_> = moving
                .chunks_mut(share)
                .map(|pieces| scope.spawn(move || work(pieces)))
                .collect();
            helpers.into_iter().try_for_each(|helper| {
                helper
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }

    fn store_again(&self, worker: &mut Worker, extent: &Extent) -> Result<Place, ImageError> {
        let len = extent.len as usize;
        let room = len.next_multiple_of(PAGE);
        if worker.buffer.len() < room {
            worker.buffer.resize(room, 0);
        }
        let file = &self.files[usize::from(extent.place.source)];
        let buffer = &mut worker.buffer[..len];
        file.read(&extent.place, extent.part(), &mut worker.scratch, buffer)?;
        if blake3::hash(buffer) != blake3::Hash::from_bytes(extent.hash) {
            return Err(ImageError::Damaged {
                path: file.path.clone(),
                part: extent.part(),
                file_offset: extent.place.file_offset,
                reason: "checksum differs".to_owned(),
            });
        }
        self.put(worker, 0..len)
    }

    /// Stores one piece that was read from elsewhere, with its hash.
    pub(crate) fn store_piece(&self, extent: &Extent, bytes: &[u8]) -> Result<(), ImageError> {
        let place = match self.known.by_hash(&extent.hash, extent.len) {
            Some(place) => place,
            None => {
                let mut worker = self.worker();
                worker.buffer.clear();
                worker.buffer.extend_from_slice(bytes);
                worker.buffer.resize(bytes.len().next_multiple_of(PAGE), 0);
                let place = self.put(&mut worker, 0..bytes.len())?;
                lock(&self.workers).push(worker);
                place
            }
        };
        let piece = Extent { place, ..*extent };
        self.known.remember(&[piece]);
        lock(&self.extents).push(piece);
        Ok(())
    }

    /// Writes a section; `secret` ones are encrypted with the image.
    fn write_section(&self, bytes: &[u8], secret: bool) -> Result<Section, ImageError> {
        let room = bytes.len() + if self.secret.is_some() { PAGE } else { 0 };
        let offset = self.reserve(room.next_multiple_of(PAGE) as u64);
        let seal = self.files[0].seal.as_ref().filter(|_| secret);
        let bytes = sealed(seal, offset, bytes).ok_or_else(|| ImageError::TooLarge {
            path: self.partial.path().to_owned(),
            what: "an encrypted section",
            value: bytes.len() as u64,
            limit: INDEX_LEN,
        })?;
        self.write(&bytes, offset)?;
        Ok(Section {
            offset,
            len: bytes.len() as u64,
            hash: blake3::hash(&bytes).into(),
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
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = assert!(CHUNK.is_multiple_of(PAGE) && CHUNK <= u32::MAX as usize);
