//! Reading an image.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use crate::bases::{self, Base};
use crate::compression::Decompressor;
use crate::error::{ImageError, Part};
use crate::format::limits::{CHUNK, DAMAGES, OBJECT_LEN};
use crate::format::{self, Header};
use crate::index::{self, Encoding, Extent, Layout, ObjectId};
use crate::keys::{Keys, Secret};
use crate::stored::{Scratch, Stored, read_section};

/// An image whose header, metadata and index have been read and checked, and whose bases have been found; contents are
/// checked as they are read.
pub struct Image {
    path: PathBuf,
    header: Header,
    metadata: Vec<u8>,
    /// What it takes contents from besides itself, as it names them.
    bases: Vec<Base>,
    /// The image itself, and its bases.
    pub(crate) files: Vec<Stored>,
    extents: Vec<Extent>,
    secret: Option<Secret>,
    /// Buffers that are not in use.
    scratch: Mutex<Vec<Scratch>>,
}

/// What [`Image::verify`] has found to be whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Number of extents.
    pub extents: u64,
    /// Bytes of contents, decoded.
    pub logical_len: u64,
    /// Bytes of contents in the file.
    pub stored_len: u64,
    /// Older files that it takes contents from, which were read for that.
    pub bases: u64,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({})", self.path.display())
    }
}

impl Image {
    /// Opens an image and checks all of it but the contents. Its bases are looked for beside it.
    ///
    /// # Errors
    /// [`ImageError::Read`] if the kernel refuses; [`ImageError::NotAnImage`], [`ImageError::Unfinished`],
    /// [`ImageError::Newer`], [`ImageError::UnknownFlags`], [`ImageError::Truncated`], [`ImageError::Damaged`] and
    /// [`ImageError::TooLarge`] for what is in the file; [`ImageError::MissingBase`] for what is not beside it;
    /// [`ImageError::Locked`] if it is encrypted.
    pub fn open(path: &Path) -> Result<Image, ImageError> {
        Self::open_with(path, &Keys::none())
    }

    /// The same for an image that may be encrypted.
    ///
    /// # Errors
    /// As [`open`](Image::open); [`ImageError::Locked`] if none of the keys opens it.
    pub fn open_with(path: &Path, keys: &Keys) -> Result<Image, ImageError> {
        Self::from_file(format::open(path)?, path, keys)
    }

    /// The same for a file that is open already; `path` is for messages, and says where bases are.
    ///
    /// # Errors
    /// As [`open`](Image::open).
    pub fn from_file(file: File, path: &Path, keys: &Keys) -> Result<Image, ImageError> {
        let header = Header::read_from(&file, path)?;
        let damaged = |part, file_offset, reason| ImageError::Damaged {
            path: path.to_owned(),
            part,
            file_offset,
            reason,
        };
        let key = read_section(&file, path, Part::Key, &header.key)?;
        let secret = match header.encrypted {
            false => None,
            true => Some(keys.open(&key).map_err(|reason| ImageError::Locked {
                path: path.to_owned(),
                reason,
            })?),
        };
        let own = Stored {
            seal: secret.as_ref().map(|secret| secret.seal(&header.salt)),
            file: Arc::new(file),
            path: path.to_owned(),
        };
        let stored = own.section(Part::Metadata, &header.metadata)?;
        let metadata = match header.metadata_encoding {
            Encoding::Raw => stored,
            encoding => {
                // The length was held against its limit, and the hash of what is decoded here was right.
                let mut metadata = vec![0; header.metadata_len as usize];
                Decompressor::new()
                    .decompress(encoding, &stored, &mut metadata)
                    .map_err(|reason| damaged(Part::Metadata, header.metadata.offset, reason))?;
                metadata
            }
        };
        let table = read_section(&own.file, path, Part::Bases, &header.base_table)?;
        let bases = bases::decode(&table)
            .map_err(|(at, reason)| damaged(Part::Bases, header.base_table.offset + at, reason))?;
        let index = own.section(Part::Index, &header.index)?;
        let layout = Layout {
            version: header.version,
            contents: std::iter::once(header.metadata.offset)
                .chain(bases.iter().map(|base| base.file_len))
                .collect(),
            overhead: header.seal_len(),
        };
        let extents = index::decode(&index, &layout)
            .map_err(|(at, reason)| damaged(Part::Index, header.index.offset + at, reason))?;
        let mut files = vec![own];
        for base in &bases {
            files.push(find(base, path, &key, secret.as_ref())?);
        }
        Ok(Image {
            path: path.to_owned(),
            header,
            metadata,
            bases,
            files,
            extents,
            secret,
            scratch: Mutex::new(Vec::new()),
        })
    }

    /// What the first page says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What was given to [`commit`](crate::ImageWriter::commit).
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The older files that it takes contents from, as it names them.
    pub fn bases(&self) -> &[Base] {
        &self.bases
    }

    /// Where these are.
    pub fn base_paths(&self) -> impl Iterator<Item = &Path> {
        self.files[1..].iter().map(|file| file.path.as_path())
    }

    /// What it is encrypted with.
    pub fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }

    /// All extents, by object and then by offset.
    pub fn all_extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The extents of one object, by offset. What lies between them is zero, or was never stored.
    pub fn extents(&self, object: ObjectId) -> &[Extent] {
        let start = self
            .extents
            .partition_point(|extent| extent.object < object);
        let len = self.extents[start..].partition_point(|extent| extent.object == object);
        &self.extents[start..start + len]
    }

    /// Puts the contents of an extent, decoded and checked, into `buffer`, whose old contents are gone. Use the same
    /// buffer again to save allocations.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::Truncated`] or [`ImageError::Damaged`].
    pub fn read_extent(&self, extent: &Extent, buffer: &mut Vec<u8>) -> Result<(), ImageError> {
        let idle = self.lock_scratch().pop();
        let mut scratch = idle.unwrap_or_else(Scratch::new);
        let read = self.read_with(extent, &mut scratch, buffer);
        self.lock_scratch().push(scratch);
        read
    }

    fn lock_scratch(&self) -> std::sync::MutexGuard<'_, Vec<Scratch>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_with(
        &self,
        extent: &Extent,
        scratch: &mut Scratch,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        // An extent of another image may lie outside of this one, but is never too large.
        buffer.resize(extent.len as usize, 0);
        let place = &extent.place;
        let Some(file) = self.files.get(usize::from(place.source)) else {
            return Err(ImageError::Misuse {
                object: extent.object,
                offset: extent.offset,
                reason: "it is of another image",
            });
        };
        file.read(place, extent.part(), scratch, buffer)?;
        if blake3::hash(buffer) != blake3::Hash::from_bytes(extent.hash) {
            return Err(ImageError::Damaged {
                path: file.path.clone(),
                part: extent.part(),
                file_offset: place.file_offset,
                reason: "checksum differs".to_owned(),
            });
        }
        Ok(())
    }

    /// The first `len` bytes of an object in one piece, with zeros for what is missing; for small objects.
    ///
    /// # Errors
    /// As [`read_extent`](Image::read_extent); [`ImageError::TooLarge`] above [`limits::OBJECT_LEN`](crate::limits),
    /// [`ImageError::Misuse`] if there are contents beyond `len`.
    pub fn read_object(&self, object: ObjectId, len: u64) -> Result<Vec<u8>, ImageError> {
        if len > OBJECT_LEN {
            let path = self.path.clone();
            return Err(ImageError::TooLarge {
                path,
                what: "an object in one piece",
                value: len,
                limit: OBJECT_LEN,
            });
        }
        let extents = self.extents(object);
        if let Some(beyond) = extents.iter().find(|extent| extent.end() > len) {
            let reason = "it has contents beyond the length that was asked for";
            return Err(ImageError::Misuse {
                object,
                offset: beyond.offset,
                reason,
            });
        }
        let mut contents = vec![0; len as usize];
        let mut buffer = Vec::new();
        for extent in extents {
            self.read_extent(extent, &mut buffer)?;
            contents[extent.offset as usize..][..buffer.len()].copy_from_slice(&buffer);
        }
        Ok(contents)
    }

    /// Gives every extent of the objects, decoded and checked, to `sink`, from up to `threads` threads at once (0: one
    /// for each CPU) and in the order of the file, more or less. Stops at the first failure.
    ///
    /// # Errors
    /// As [`read_extent`](Image::read_extent); [`ImageError::Sink`] if `sink` fails.
    pub fn for_each_extent(
        &self,
        objects: &[ObjectId],
        threads: usize,
        sink: &(dyn Fn(&Extent, &[u8]) -> io::Result<()> + Sync),
    ) -> Result<(), ImageError> {
        let mut objects = objects.to_vec();
        objects.sort_unstable();
        objects.dedup();
        let extents = objects
            .iter()
            .flat_map(|object| self.extents(*object))
            .collect();
        self.in_parallel(extents, threads, &|| (), &|(), extent, bytes| {
            sink(extent, bytes?).map_err(|source| ImageError::Sink {
                object: extent.object,
                offset: extent.offset,
                source,
            })
        })
    }

    /// Reads all contents and checks them; everything else was checked when the image was opened. `progress` is told,
    /// on this thread, how many bytes of contents have been checked so far.
    ///
    /// # Errors
    /// The first damage that is found, as [`read_extent`](Image::read_extent).
    pub fn verify(&self, threads: usize, progress: &dyn Fn(u64)) -> Result<Verified, ImageError> {
        self.survey(threads, progress, &|damage| Err(damage))?;
        Ok(Verified {
            extents: self.extents.len() as u64,
            logical_len: self.extents.iter().map(|extent| extent.len).sum(),
            stored_len: self.header.stored_len,
            bases: self.bases.len() as u64,
        })
    }

    /// As [`verify`](Image::verify), but does not stop at the first damage: all of it, up to
    /// [`limits::DAMAGES`](crate::limits), in the order of the file; nothing when the contents are whole.
    pub fn damages(&self, threads: usize, progress: &dyn Fn(u64)) -> Vec<ImageError> {
        let found = Mutex::new(Vec::new());
        let stopped = self.survey(threads, progress, &|damage| {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            if found.len() + 1 < DAMAGES {
                found.push(damage);
                return Ok(());
            }
            Err(damage)
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.extend(stopped.err());
        found.sort_by_key(|damage| match damage {
            ImageError::Damaged { file_offset, .. } => *file_offset,
            // What cannot even be read comes first.
            _ => 0,
        });
        found
    }

    /// Reads and checks all contents. `damage` decides whether that goes on.
    fn survey(
        &self,
        threads: usize,
        progress: &dyn Fn(u64),
        damage: &(dyn Fn(ImageError) -> Result<(), ImageError> + Sync),
    ) -> Result<(), ImageError> {
        let (sender, lengths) = mpsc::channel();
        std::thread::scope(|scope| {
            let all = scope.spawn(move || {
                // Each thread has its own sender; the loop below ends with the last of them.
                let start = || sender.clone();
                self.in_parallel(
                    self.extents.iter().collect(),
                    threads,
                    &start,
                    &|sender, extent, bytes| {
                        // Nobody listens any more only if `progress` has panicked.
                        let _ = sender.send(extent.len);
                        bytes.map(|_| ()).or_else(damage)
                    },
                )
            });
            let mut done = 0;
            for len in lengths {
                done += len;
                progress(done);
            }
            all.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Reads extents on several threads, this one among them; `start` makes what each thread has for itself.
    pub(crate) fn in_parallel<T>(
        &self,
        mut extents: Vec<&Extent>,
        threads: usize,
        start: &(impl Fn() -> T + Sync),
        each: &(impl Fn(&T, &Extent, Result<&[u8], ImageError>) -> Result<(), ImageError> + Sync),
    ) -> Result<(), ImageError> {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, Into::into),
            threads => threads,
        };
        let stored = |extent: &&Extent| (extent.place.source, extent.place.file_offset);
        extents.sort_by_key(stored);
        // Pieces of one stored extent go to one thread, which decodes it once.
        let groups: Vec<&[&Extent]> = extents
            .chunk_by(|one, other| {
                stored(one) == stored(other) && one.place.encoding != Encoding::Raw
            })
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let own = start();
            let mut scratch = Scratch::new();
            let mut buffer = Vec::with_capacity(CHUNK);
            while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                for extent in *group {
                    let read = self.read_with(extent, &mut scratch, &mut buffer);
                    let result = each(&own, extent, read.map(|()| buffer.as_slice()));
                    if result.is_err() {
                        // Far enough for everybody to stop, and far from wrapping around.
                        next.store(usize::MAX / 2, Ordering::Relaxed);
                        return result;
                    }
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads.min(groups.len()))
                .map_while(|_| {
                    std::thread::Builder::new()
                        .name("image-read".into())
                        .spawn_scoped(scope, work)
                        .ok()
                })
                .collect();
            let mut result = work();
            for helper in helpers {
                let other = helper
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(other);
            }
            result
        })
    }
}

/// Opens a base of the image at `path`, which has `key`.
fn find(
    base: &Base,
    path: &Path,
    key: &[u8],
    secret: Option<&Secret>,
) -> Result<Stored, ImageError> {
    let missing = |reason| ImageError::MissingBase {
        path: path.to_owned(),
        base: base.stem.clone(),
        reason,
    };
    let (file, base_path, header) = base.find(directory_of(path)).map_err(missing)?;
    let base_key = read_section(&file, &base_path, Part::Key, &header.key)?;
    if base_key != key {
        let reason = format!("{} is encrypted with another key", base_path.display());
        return Err(missing(reason));
    }
    Ok(Stored {
        seal: secret.map(|secret| secret.seal(&header.salt)),
        file: Arc::new(file),
        path: base_path,
    })
}

/// The directory that a path names a file of.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// The bases that the image at `path` names, and what is wrong with the first that is not there. Needs no key and reads no
/// index: cheap, for lists.
///
/// # Errors
/// As [`Image::open`], for what the header and the table can tell.
pub fn bases_of(path: &Path) -> Result<(Vec<Base>, Option<ImageError>), ImageError> {
    let file = format::open(path)?;
    let header = Header::read_from(&file, path)?;
    let table = read_section(&file, path, Part::Bases, &header.base_table)?;
    let bases = bases::decode(&table).map_err(|(at, reason)| ImageError::Damaged {
        path: path.to_owned(),
        part: Part::Bases,
        file_offset: header.base_table.offset + at,
        reason,
    })?;
    let missing = bases.iter().find_map(|base| {
        let reason = base.find(directory_of(path)).err()?;
        Some(ImageError::MissingBase {
            path: path.to_owned(),
            base: base.stem.clone(),
            reason,
        })
    });
    Ok((bases, missing))
}

/// The stored extents that pieces lie in, each once, with what of it is used: bytes of each file, by its number.
pub(crate) fn used(extents: &[Extent], files: usize) -> Vec<u64> {
    let mut parts: BTreeSet<_> = BTreeSet::new();
    for extent in extents {
        let place = &extent.place;
        parts.insert((
            place.source,
            place.file_offset,
            place.skip,
            extent.len,
            (place.stored_len, place.whole),
        ));
    }
    let mut used = vec![0; files];
    let mut last = (0, 0, 0);
    for (source, offset, skip, len, (stored_len, whole)) in parts {
        let (skip, end) = (u64::from(skip), u64::from(skip) + len);
        // What an earlier piece of the same extent has counted is not counted again.
        let from = if (last.0, last.1) == (source, offset) {
            skip.max(last.2)
        } else {
            skip
        };
        let until = if (last.0, last.1) == (source, offset) {
            end.max(last.2)
        } else {
            end
        };
        if end > from
            && let Some(used) = used.get_mut(usize::from(source))
        {
            *used += (end - from) * u64::from(stored_len) / u64::from(whole.max(1));
        }
        last = (source, offset, until);
    }
    used
}
