//! The index: which part of which object is where, in this file or in an older one.
//!
//! A record names a *piece* of an object by what is stored: the stored extent (its file, place, length, encoding) and the part
//! of it, decoded, that the piece is. An image that holds an extent has pieces that are all of it; a later image, in
//! which a page in the middle has changed, has two pieces of the same extent and one of its own.

use serde::{Deserialize, Serialize};

use crate::error::Part;
use crate::format::Fields;
use crate::format::limits::{self, HEADER_LEN, PAGE};

/// The number of one thing with contents: a memory area, a shared memory object, a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId(pub u32);

/// How bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// One LZ4 block.
    Lz4,
    /// One Zstandard frame.
    Zstd,
}

impl Encoding {
    pub(crate) fn to_number(self) -> u8 {
        match self {
            Encoding::Raw => 0,
            Encoding::Lz4 => 1,
            Encoding::Zstd => 2,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Encoding::Raw),
            1 => Some(Encoding::Lz4),
            2 => Some(Encoding::Zstd),
            _ => None,
        }
    }
}

/// A stored extent, or a part of one: where the bytes of a piece come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The file: 0 is the image itself, N the Nth of its bases.
    pub source: u16,
    /// Where the stored extent begins in it.
    pub file_offset: u64,
    /// How long that is there.
    pub stored_len: u32,
    pub encoding: Encoding,
    /// How long the stored extent is once decoded.
    pub whole: u32,
    /// How many of its decoded bytes come before the piece.
    pub skip: u32,
}

impl Place {
    /// Nowhere yet.
    pub(crate) const NONE: Place = Place {
        source: 0,
        file_offset: 0,
        stored_len: 0,
        encoding: Encoding::Raw,
        whole: 0,
        skip: 0,
    };

    /// The same stored extent for the bytes from `by` on.
    pub(crate) fn further(self, by: u64) -> Place {
        Place {
            skip: self.skip + by as u32,
            ..self
        }
    }
}

/// A piece of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The object it belongs to.
    pub object: ObjectId,
    /// Where in the object, in bytes.
    pub offset: u64,
    /// How long it is once decoded, in bytes: 1 to [`limits::CHUNK`].
    pub len: u64,
    pub(crate) place: Place,
    pub(crate) hash: [u8; 32],
}

impl Extent {
    /// Where the object goes on after it. Cannot overflow: that was checked when it was read.
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The file that has the bytes: 0 for the image itself, N for the Nth of its bases.
    pub fn source(&self) -> u16 {
        self.place.source
    }

    /// Where the stored extent begins in the file; a multiple of [`limits::PAGE`].
    pub fn file_offset(&self) -> u64 {
        self.place.file_offset
    }

    /// How long the stored extent is in the file, in bytes, without the fill up to the next page.
    pub fn stored_len(&self) -> u64 {
        self.place.stored_len.into()
    }

    /// How it is stored.
    pub fn encoding(&self) -> Encoding {
        self.place.encoding
    }

    /// BLAKE3 of the decoded contents of the piece.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The part of the image that this piece is, for messages.
    pub(crate) fn part(&self) -> Part {
        Part::Contents {
            object: self.object,
            offset: self.offset,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let Place {
            source,
            file_offset,
            stored_len,
            encoding,
            whole,
            skip,
        } = self.place;
        out.extend(self.object.0.to_le_bytes());
        out.extend(source.to_le_bytes());
        out.extend([encoding.to_number(), 0]);
        out.extend(self.offset.to_le_bytes());
        out.extend((self.len as u32).to_le_bytes());
        out.extend(stored_len.to_le_bytes());
        out.extend(file_offset.to_le_bytes());
        out.extend(self.hash);
        out.extend(whole.to_le_bytes());
        out.extend(skip.to_le_bytes());
        out.extend([0; 8]);
    }

    fn decode(record: &[u8], layout: &Layout) -> Result<Self, String> {
        let fields = Fields(record);
        let encoding = Encoding::from_number(record[6].into())
            .ok_or_else(|| format!("unknown encoding {}", record[6]))?;
        let len = fields.u32(16);
        let (whole, skip, rest) = match layout.version {
            1 => (len, 0, 0),
            _ => (fields.u32(64), fields.u32(68), fields.u64(72)),
        };
        let extent = Extent {
            object: ObjectId(fields.u32(0)),
            offset: fields.u64(8),
            len: len.into(),
            place: Place {
                source: fields.u16(4),
                file_offset: fields.u64(24),
                stored_len: fields.u32(20),
                encoding,
                whole,
                skip,
            },
            hash: fields.hash(32),
        };
        let Some(range) = layout.contents.get(usize::from(extent.place.source)) else {
            return Err(format!(
                "it refers to base image {}, and there are {}",
                extent.place.source,
                layout.contents.len() - 1
            ));
        };
        if record[7] != 0 || rest != 0 {
            return Err("a reserved byte is set".to_owned());
        }
        let Extent { offset, len, .. } = extent;
        let whole = u64::from(whole);
        let inside = u64::from(skip)
            .checked_add(len)
            .is_some_and(|end| end <= whole);
        if len == 0 || whole > limits::CHUNK as u64 || !inside || offset.checked_add(len).is_none()
        {
            return Err(format!(
                "a piece of {len} bytes at offset {offset:#x}, after {skip} of {whole} stored, cannot be"
            ));
        }
        let stored = u64::from(extent.place.stored_len);
        if stored == 0 || stored > whole || (encoding == Encoding::Raw) != (stored == whole) {
            return Err(format!(
                "an extent of {whole} bytes cannot be stored in {stored}"
            ));
        }
        let file_offset = extent.place.file_offset;
        let inside = file_offset >= HEADER_LEN as u64
            && file_offset.is_multiple_of(PAGE as u64)
            && file_offset
                .checked_add(stored + layout.overhead)
                .is_some_and(|end| end <= *range);
        if !inside {
            return Err(format!(
                "an extent cannot be at byte {file_offset} of the file"
            ));
        }
        Ok(extent)
    }
}

/// What the records of an index are held against.
pub(crate) struct Layout {
    /// The format of the file.
    pub version: u32,
    /// For the image itself and then each base: where contents end in its file.
    pub contents: Vec<u64>,
    /// Bytes in the file after each stored extent that belong to it: a seal.
    pub overhead: u64,
}

/// How long one record is, in bytes.
pub(crate) fn record_len(version: u32) -> usize {
    if version == 1 { 64 } else { 80 }
}

/// The index of `extents`, which are in order.
pub(crate) fn encode(extents: &[Extent]) -> Vec<u8> {
    let mut index = Vec::with_capacity(extents.len() * record_len(crate::format::VERSION));
    for extent in extents {
        extent.encode(&mut index);
    }
    index
}

/// The pieces of an index, or the place in the index and what is wrong there. They are known to be in order, not to
/// overlap, and to lie where contents can lie.
pub(crate) fn decode(index: &[u8], layout: &Layout) -> Result<Vec<Extent>, (u64, String)> {
    let record_len = record_len(layout.version);
    let mut extents: Vec<Extent> = Vec::with_capacity(index.len() / record_len);
    for (number, record) in index.chunks_exact(record_len).enumerate() {
        let at = (number * record_len) as u64;
        let extent = Extent::decode(record, layout).map_err(|reason| (at, reason))?;
        if let Some(last) = extents.last()
            && (last.object, last.end()) > (extent.object, extent.offset)
        {
            return Err((at, "the extents are not in order".to_owned()));
        }
        extents.push(extent);
    }
    Ok(extents)
}
