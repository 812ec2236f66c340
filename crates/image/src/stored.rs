//! A file with stored extents, and how a piece is read from it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::compression::Decompressor;
use crate::error::{ImageError, Part};
use crate::format::{Section, read_exact};
use crate::index::{Encoding, Place};
use crate::seal::{Seal, TAG_LEN};

/// A file that has extents: an image, one of its bases, or one in the making.
#[derive(Clone)]
pub(crate) struct Stored {
    pub file: Arc<File>,
    pub path: PathBuf,
    pub seal: Option<Seal>,
}

/// What one thread needs to decode. It belongs to one set of files.
pub(crate) struct Scratch {
    stored: Vec<u8>,
    /// The extent decoded last, of which the next piece may be another part.
    decoded: Vec<u8>,
    holds: Option<(u16, u64)>,
    decompressor: Decompressor,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch {
            stored: Vec::new(),
            decoded: Vec::new(),
            holds: None,
            decompressor: Decompressor::new(),
        }
    }
}

impl Stored {
    /// Fills `buffer` with the piece at `place`, decoded but not checked. `part` is for messages.
    pub(crate) fn read(
        &self,
        place: &Place,
        part: Part,
        scratch: &mut Scratch,
        buffer: &mut [u8],
    ) -> Result<(), ImageError> {
        let skip = place.skip as usize;
        if place.encoding == Encoding::Raw && self.seal.is_none() {
            let at = place.file_offset + u64::from(place.skip);
            return read_exact(&self.file, &self.path, part, buffer, at);
        }
        let key = (place.source, place.file_offset);
        if scratch.holds != Some(key) {
            scratch.holds = None;
            let seal_len = if self.seal.is_some() { TAG_LEN } else { 0 };
            scratch
                .stored
                .resize(place.stored_len as usize + seal_len, 0);
            let stored = &mut scratch.stored;
            read_exact(&self.file, &self.path, part, stored, place.file_offset)?;
            let damaged = |reason| ImageError::Damaged {
                path: self.path.clone(),
                part,
                file_offset: place.file_offset,
                reason,
            };
            if let Some(seal) = &self.seal {
                let len = seal.open(place.file_offset, stored).map_err(damaged)?;
                stored.truncate(len);
            }
            if skip == 0 && buffer.len() == place.whole as usize {
                return scratch
                    .decompressor
                    .decompress(place.encoding, &scratch.stored, buffer)
                    .map_err(damaged);
            }
            scratch.decoded.resize(place.whole as usize, 0);
            scratch
                .decompressor
                .decompress(place.encoding, &scratch.stored, &mut scratch.decoded)
                .map_err(damaged)?;
            scratch.holds = Some(key);
        }
        buffer.copy_from_slice(&scratch.decoded[skip..skip + buffer.len()]);
        Ok(())
    }

    /// A section, checked and decrypted. Its length was held against that of the file, so as much memory may be set aside.
    pub(crate) fn section(&self, part: Part, section: &Section) -> Result<Vec<u8>, ImageError> {
        let mut bytes = read_section(&self.file, &self.path, part, section)?;
        if let Some(seal) = &self.seal {
            let damaged = |reason| ImageError::Damaged {
                path: self.path.clone(),
                part,
                file_offset: section.offset,
                reason,
            };
            let len = seal.open(section.offset, &mut bytes).map_err(damaged)?;
            bytes.truncate(len);
        }
        Ok(bytes)
    }
}

/// A section as it is in the file, checked.
pub(crate) fn read_section(
    file: &File,
    path: &Path,
    part: Part,
    section: &Section,
) -> Result<Vec<u8>, ImageError> {
    if *section == Section::default() {
        // It is not there.
        return Ok(Vec::new());
    }
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

/// `bytes` as they go to `offset` of a file: encrypted where there is a key. `None` where they are too many for that.
pub(crate) fn sealed(seal: Option<&Seal>, offset: u64, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    if let Some(seal) = seal {
        let tag = seal.close(offset, &mut bytes)?;
        bytes.extend(tag);
    }
    Some(bytes)
}

/// Whether `path` still names the open `file`.
pub(crate) fn is_named(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
