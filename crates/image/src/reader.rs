//! Reading an image.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use crate::compression::Decompressor;
use crate::error::{ImageError, Part};
use crate::format::limits::{CHUNK, DAMAGES, OBJECT_LEN};
use crate::format::{self, Encoding, Extent, Header, ObjectId, Section, read_exact};

/// An image whose header, metadata and index have been read and checked; contents are checked as they are read.
pub struct Image {
    file: File,
    path: PathBuf,
    header: Header,
    metadata: Vec<u8>,
    extents: Vec<Extent>,
    /// Buffers that are not in use.
    scratch: Mutex<Vec<Scratch>>,
}

/// What one thread needs to decode an extent.
struct Scratch {
    stored: Vec<u8>,
    decompressor: Decompressor,
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
}

impl Image {
    /// Opens an image and checks all of it but the contents.
    ///
    /// # Errors
    /// [`ImageError::Read`] if the kernel refuses; [`ImageError::NotAnImage`], [`ImageError::Unfinished`],
    /// [`ImageError::Newer`], [`ImageError::UnknownFlags`], [`ImageError::Truncated`], [`ImageError::Damaged`] and
    /// [`ImageError::TooLarge`] for what is in the file.
    pub fn open(path: &Path) -> Result<Image, ImageError> {
        Self::from_file(format::open(path)?, path)
    }

    /// The same for a file that is open already; `path` is for messages.
    ///
    /// # Errors
    /// As [`open`](Image::open).
    pub fn from_file(file: File, path: &Path) -> Result<Image, ImageError> {
        let header = Header::read_from(&file, path)?;
        let stored = read_section(&file, path, Part::Metadata, &header.metadata)?;
        let damaged = |part, file_offset, reason| ImageError::Damaged {
            path: path.to_owned(),
            part,
            file_offset,
            reason,
        };
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
        let index = read_section(&file, path, Part::Index, &header.index)?;
        let extents = format::decode_index(&index, header.metadata.offset)
            .map_err(|(at, reason)| damaged(Part::Index, header.index.offset + at, reason))?;
        Ok(Image {
            file,
            path: path.to_owned(),
            header,
            metadata,
            extents,
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
        // An extent of another image may lie outside of this one, but is never too large.
        buffer.resize(extent.len as usize, 0);
        if extent.encoding == Encoding::Raw {
            read_exact(
                &self.file,
                &self.path,
                extent.part(),
                buffer,
                extent.file_offset,
            )?;
        } else {
            let idle = self
                .scratch
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let mut scratch = idle.unwrap_or_else(|| Scratch {
                stored: Vec::new(),
                decompressor: Decompressor::new(),
            });
            scratch.stored.resize(extent.stored_len as usize, 0);
            read_exact(
                &self.file,
                &self.path,
                extent.part(),
                &mut scratch.stored,
                extent.file_offset,
            )?;
            scratch
                .decompressor
                .decompress(extent.encoding, &scratch.stored, buffer)
                .map_err(|reason| self.damaged(extent, reason))?;
            self.scratch
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(scratch);
        }
        if blake3::hash(buffer) != blake3::Hash::from_bytes(extent.hash) {
            return Err(self.damaged(extent, "checksum differs".to_owned()));
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
            stored_len: self.extents.iter().map(Extent::stored_len).sum(),
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
    fn in_parallel<T>(
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
        extents.sort_unstable_by_key(|extent| extent.file_offset);
        let next = AtomicUsize::new(0);
        let work = || {
            let own = start();
            let mut buffer = Vec::with_capacity(CHUNK);
            while let Some(extent) = extents.get(next.fetch_add(1, Ordering::Relaxed)) {
                let read = self.read_extent(extent, &mut buffer);
                let result = each(&own, extent, read.map(|()| buffer.as_slice()));
                if result.is_err() {
                    // Far enough for everybody to stop, and far from wrapping around.
                    next.store(usize::MAX / 2, Ordering::Relaxed);
                    return result;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads.min(extents.len()))
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

    fn damaged(&self, extent: &Extent, reason: String) -> ImageError {
        ImageError::Damaged {
            path: self.path.clone(),
            part: extent.part(),
            file_offset: extent.file_offset,
            reason,
        }
    }
}

/// The lengths of sections were held against that of the file, so as much memory as they say may be set aside.
fn read_section(
    file: &File,
    path: &Path,
    part: Part,
    section: &Section,
) -> Result<Vec<u8>, ImageError> {
    let mut bytes = vec![0; section.len as usize];
    read_exact(file, path, part, &mut bytes, section.offset)?;
    if blake3::hash(&bytes) != blake3::Hash::from_bytes(section.hash) {
        return Err(ImageError::Damaged {
            path: path.to_owned(),
            part,
            file_offset: section.offset,
            reason: "checksum differs".to_owned(),
        });
    }
    Ok(bytes)
}
