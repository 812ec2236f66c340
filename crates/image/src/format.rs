//! The layout of a file, and its encoding. `docs/image-format.md` has the same tables for readers in other languages.
//!
//! ```text
//! header     one page
//! extents    each begins on a page
//! metadata   begins on a page
//! bases      begins on a page: the older files that contents are taken from; not in version 1
//! key        begins on a page: the key of an encrypted image, itself encrypted; not in version 1
//! index      begins on a page; the file ends with it
//! ```
//!
//! The header, all numbers little-endian:
//!
//! | offset | size | meaning                                                                        |
//! |-------:|-----:|--------------------------------------------------------------------------------|
//! |      0 |    8 | magic: `89 53 54 41 53 49 53 0A`                                               |
//! |      8 |    4 | version: 1 or 2                                                                |
//! |     12 |    4 | length of the header: 4096                                                     |
//! |     16 |   32 | BLAKE3 of the header, taken with this field zero                               |
//! |     48 |    8 | flags: what a reader must understand                                           |
//! |     56 |    8 | length of the file                                                             |
//! |     64 |    8 | time of creation, nanoseconds since 1970                                       |
//! |     72 |    8 | metadata: where                                                                |
//! |     80 |    8 | metadata: length in the file                                                   |
//! |     88 |    8 | metadata: length decoded                                                       |
//! |     96 |    4 | metadata: encoding                                                             |
//! |    100 |    4 | zero                                                                           |
//! |    104 |   32 | metadata: BLAKE3 as in the file                                                |
//! |    136 |    8 | index: where                                                                   |
//! |    144 |    8 | index: length                                                                  |
//! |    152 |    8 | index: number of extents                                                       |
//! |    160 |   32 | index: BLAKE3                                                                  |
//! |    192 |    4 | index: number of base images                                                   |
//! |    196 |    4 | zero                                                                           |
//! |    200 |    8 | bytes of contents, decoded                                                     |
//! |    208 |    8 | bytes of contents, in the file                                                 |
//! |    216 |    8 | bases: where; from here on zero in version 1                                   |
//! |    224 |    8 | bases: length                                                                  |
//! |    232 |   32 | bases: BLAKE3                                                                  |
//! |    264 |    8 | key: where                                                                     |
//! |    272 |    8 | key: length                                                                    |
//! |    280 |   32 | key: BLAKE3                                                                    |
//! |    312 |   32 | salt of the image's own key                                                    |
//! |    344 | 3752 | zero                                                                           |
//!
//! The first 48 bytes keep their meaning in every later version, so that a newer file and a damaged one can be
//! told apart. As the header holds the hash of the index, and the index those of the contents, the checksum of the
//! header stands for the whole image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::bases;
use crate::error::{ImageError, Part};
use crate::index::{self, Encoding};
use limits::{HEADER_LEN, INDEX_LEN, METADATA_LEN, PAGE};

/// Sizes that the format fixes or bounds, in bytes.
pub mod limits {
    /// Alignment of everything in the file, and the unit in which zeros are left out.
    pub const PAGE: usize = 4096;
    /// The largest extent, decoded. Extents do not cross multiples of it in the offsets of their object.
    pub const CHUNK: usize = 1 << 20;
    /// The header.
    pub const HEADER_LEN: usize = PAGE;
    /// The largest metadata, decoded.
    pub const METADATA_LEN: u64 = 1 << 30;
    /// The largest index: 128 million extents.
    pub const INDEX_LEN: u64 = 8 << 30;
    /// The largest object that [`Image::read_object`](crate::Image::read_object) gives in one piece.
    pub const OBJECT_LEN: u64 = 1 << 30;
    /// The most older files that one image takes contents from.
    pub const BASES: u64 = 4096;
    /// The longest encrypted key.
    pub const KEY_LEN: u64 = 1 << 20;
    /// How many damages [`Image::damages`](crate::Image::damages) tells of at most.
    pub const DAMAGES: usize = 1000;
}

const MAGIC: [u8; 8] = *b"\x89STASIS\n";
/// The version written, and the newest one read.
pub(crate) const VERSION: u32 = 2;
const CHECKSUM: std::ops::Range<usize> = 16..48;
/// The part of the header that is the same in all versions.
const PREAMBLE_LEN: usize = 48;
/// A header of a later version may be longer, but not absurdly so.
const ANY_HEADER_LEN: usize = 1 << 20;
/// Contents, metadata and index are encrypted.
pub(crate) const ENCRYPTED: u64 = 1 << 0;
/// There are bases.
pub(crate) const BASED: u64 = 1 << 1;
/// The flags that have a name.
const FLAG_NAMES: [(u64, &str); 2] = [
    (ENCRYPTED, "encryption"),
    (BASED, "references to base images"),
];

/// A stretch of the file with its hash: the metadata or the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    pub offset: u64,
    pub len: u64,
    pub hash: [u8; 32],
}

/// What the first page says, which is enough to list an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format of the file.
    pub version: u32,
    /// When the image was begun.
    pub created: SystemTime,
    /// How long the whole file is, in bytes.
    pub file_len: u64,
    /// How long the metadata is, decoded, in bytes.
    pub metadata_len: u64,
    /// How many extents there are.
    pub extents: u64,
    /// How much contents there is, decoded and without what was zero, in bytes.
    pub logical_len: u64,
    /// How much contents there is in the file, in bytes.
    pub stored_len: u64,
    /// BLAKE3 of the header; as it covers the hashes of everything else, it names the image.
    pub checksum: [u8; 32],
    /// How many older files contents are taken from.
    pub bases: u64,
    /// Whether a key is needed to read more than this.
    pub encrypted: bool,
    pub(crate) metadata: Section,
    pub(crate) metadata_encoding: Encoding,
    pub(crate) base_table: Section,
    pub(crate) key: Section,
    pub(crate) salt: [u8; 32],
    pub(crate) index: Section,
}

impl Header {
    /// Reads the header of the image at `path`, and nothing else: cheap, for lists.
    ///
    /// # Errors
    /// As [`Image::open`](crate::Image::open), for what the header and the length of the file can tell.
    pub fn read(path: &Path) -> Result<Header, ImageError> {
        Self::read_from(&open(path)?, path)
    }

    pub(crate) fn read_from(file: &File, path: &Path) -> Result<Header, ImageError> {
        let cannot_read = |source| ImageError::Read {
            path: path.to_owned(),
            source,
        };
        let not_an_image = |reason| ImageError::NotAnImage {
            path: path.to_owned(),
            reason,
        };
        let damaged = |file_offset, reason: String| ImageError::Damaged {
            path: path.to_owned(),
            part: Part::Header,
            file_offset,
            reason,
        };
        let metadata = file.metadata().map_err(cannot_read)?;
        if !metadata.is_file() {
            return Err(not_an_image("it is not a regular file"));
        }
        let actual = metadata.len();
        let truncated = |part, expected| ImageError::Truncated {
            path: path.to_owned(),
            part,
            expected,
            actual,
        };

        let mut start = vec![0; actual.min(HEADER_LEN as u64) as usize];
        read_exact(file, path, Part::Header, &mut start, 0)?;
        if start.is_empty() {
            return Err(truncated(Part::Header, HEADER_LEN as u64));
        }
        if start.iter().all(|&byte| byte == 0) {
            return Err(ImageError::Unfinished {
                path: path.to_owned(),
            });
        }
        let magic_len = start.len().min(MAGIC.len());
        if start[..magic_len] != MAGIC[..magic_len] {
            return Err(not_an_image(
                "it begins with other bytes than an image does",
            ));
        }
        if start.len() < PREAMBLE_LEN {
            return Err(truncated(Part::Header, HEADER_LEN as u64));
        }
        let (version, header_len) = (Fields(&start).u32(8), Fields(&start).u32(12) as usize);
        if !(PREAMBLE_LEN..=ANY_HEADER_LEN).contains(&header_len) {
            return Err(damaged(
                12,
                format!("a header of {header_len} bytes cannot be"),
            ));
        }
        if header_len as u64 > actual {
            return Err(truncated(Part::Header, header_len as u64));
        }
        let mut page = vec![0; header_len];
        read_exact(file, path, Part::Header, &mut page, 0)?;
        let checksum = Fields(&page).hash(CHECKSUM.start);
        if header_checksum(&mut page) != checksum {
            return Err(damaged(0, "checksum differs".to_owned()));
        }
        if version > VERSION {
            return Err(ImageError::Newer {
                path: path.to_owned(),
                found: version,
                supported: VERSION,
            });
        }
        if version == 0 || header_len != HEADER_LEN {
            return Err(damaged(
                8,
                format!("a header of {header_len} bytes in format {version} cannot be"),
            ));
        }
        let flags = Fields(&page).u64(48);
        let known = if version == 1 { 0 } else { ENCRYPTED | BASED };
        if flags & !known != 0 {
            return Err(ImageError::UnknownFlags {
                path: path.to_owned(),
                names: flag_names(flags & !known),
            });
        }
        let header =
            Self::decode(&page, checksum).map_err(|(offset, reason)| damaged(offset, reason))?;
        for (what, value, limit) in [
            ("metadata", header.metadata_len, METADATA_LEN),
            ("index", header.index.len, INDEX_LEN),
            (
                "table of base images",
                header.base_table.len,
                limits::BASES * bases::RECORD_LEN as u64,
            ),
            ("encrypted key", header.key.len, limits::KEY_LEN),
        ] {
            if value > limit {
                return Err(ImageError::TooLarge {
                    path: path.to_owned(),
                    what,
                    value,
                    limit,
                });
            }
        }
        if actual < header.file_len {
            let part = if actual < header.metadata.offset {
                // Which one is known only to the index, which is gone.
                Part::Index
            } else if actual < header.index.offset {
                Part::Metadata
            } else {
                Part::Index
            };
            return Err(truncated(part, header.file_len));
        }
        if actual > header.file_len {
            return Err(damaged(
                56,
                format!("the file has {actual} bytes instead of {}", header.file_len),
            ));
        }
        Ok(header)
    }

    /// The fields, held against each other but not yet against the length of the file.
    fn decode(page: &[u8], checksum: [u8; 32]) -> Result<Header, (u64, String)> {
        let fields = Fields(page);
        let number = fields.u32(96);
        let metadata_encoding = Encoding::from_number(number)
            .ok_or_else(|| (96, format!("unknown encoding {number} of the metadata")))?;
        let section = |offset: usize, hash: usize| Section {
            offset: fields.u64(offset),
            len: fields.u64(offset + 8),
            hash: fields.hash(hash),
        };
        let version = fields.u32(8);
        let flags = fields.u64(48);
        let header = Header {
            version,
            created: SystemTime::UNIX_EPOCH + Duration::from_nanos(fields.u64(64)),
            file_len: fields.u64(56),
            metadata_len: fields.u64(88),
            extents: fields.u64(152),
            logical_len: fields.u64(200),
            stored_len: fields.u64(208),
            checksum,
            bases: fields.u32(192).into(),
            encrypted: flags & ENCRYPTED != 0,
            metadata: section(72, 104),
            metadata_encoding,
            base_table: section(216, 232),
            key: section(264, 280),
            salt: fields.hash(312),
            index: Section {
                offset: fields.u64(136),
                len: fields.u64(144),
                hash: fields.hash(160),
            },
        };
        let none = Section::default();
        if version == 1 && (header.bases != 0 || header.base_table != none || header.key != none) {
            return Err((192, "format 1 has no base images and no key".to_owned()));
        }
        if (flags & BASED != 0) != (header.bases > 0)
            || header.bases * bases::RECORD_LEN as u64 != header.base_table.len
        {
            return Err((
                192,
                format!("{} base images do not fit their table", header.bases),
            ));
        }
        if header.encrypted != (header.key.len > 0) {
            return Err((
                264,
                "an encrypted image has a key, another has none".to_owned(),
            ));
        }
        let seal = header.seal_len();
        let (metadata, index) = (&header.metadata, &header.index);
        let records = header
            .extents
            .checked_mul(index::record_len(version) as u64)
            .and_then(|len| len.checked_add(seal));
        if records != Some(index.len) {
            return Err((
                144,
                format!(
                    "an index of {} bytes cannot hold {} extents",
                    index.len, header.extents
                ),
            ));
        }
        let page_len = PAGE as u64;
        // Sections that are not there have no place.
        let sections = [metadata, &header.base_table, &header.key, index];
        let mut end = Some(HEADER_LEN as u64);
        for section in sections.into_iter().filter(|section| **section != none) {
            let fits =
                section.offset % page_len == 0 && end.is_some_and(|end| end <= section.offset);
            end = section.offset.checked_add(section.len).filter(|_| fits);
        }
        let in_order = metadata.offset >= HEADER_LEN as u64 && end == Some(header.file_len);
        if !in_order {
            return Err((72, "the parts of the file do not fit together".to_owned()));
        }
        if metadata_encoding == Encoding::Raw && metadata.len != header.metadata_len + seal {
            return Err((80, "two different lengths of the metadata".to_owned()));
        }
        Ok(header)
    }

    /// How many bytes after each stored thing are its seal.
    pub(crate) fn seal_len(&self) -> u64 {
        if self.encrypted {
            crate::seal::TAG_LEN as u64
        } else {
            0
        }
    }

    /// The first page of a file; sets the checksum.
    pub(crate) fn encode(&mut self) -> Vec<u8> {
        let mut page = vec![0; HEADER_LEN];
        let mut put =
            |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
        let since_1970 = self
            .created
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        put(0, &MAGIC);
        put(8, &self.version.to_le_bytes());
        put(12, &(HEADER_LEN as u32).to_le_bytes());
        let flags =
            if self.encrypted { ENCRYPTED } else { 0 } | if self.bases > 0 { BASED } else { 0 };
        put(48, &flags.to_le_bytes());
        put(56, &self.file_len.to_le_bytes());
        put(
            64,
            &u64::try_from(since_1970.as_nanos())
                .unwrap_or(u64::MAX)
                .to_le_bytes(),
        );
        put(72, &self.metadata.offset.to_le_bytes());
        put(80, &self.metadata.len.to_le_bytes());
        put(88, &self.metadata_len.to_le_bytes());
        put(
            96,
            &u32::from(self.metadata_encoding.to_number()).to_le_bytes(),
        );
        put(104, &self.metadata.hash);
        put(136, &self.index.offset.to_le_bytes());
        put(144, &self.index.len.to_le_bytes());
        put(152, &self.extents.to_le_bytes());
        put(160, &self.index.hash);
        put(192, &(self.bases as u32).to_le_bytes());
        put(200, &self.logical_len.to_le_bytes());
        put(208, &self.stored_len.to_le_bytes());
        for (at, section) in [(216, &self.base_table), (264, &self.key)] {
            put(at, &section.offset.to_le_bytes());
            put(at + 8, &section.len.to_le_bytes());
            put(at + 16, &section.hash);
        }
        put(312, &self.salt);
        self.checksum = header_checksum(&mut page);
        page[CHECKSUM].copy_from_slice(&self.checksum);
        page
    }
}

/// Opens a file to read. A named pipe without a writer must not block us.
pub(crate) fn open(path: &Path) -> Result<File, ImageError> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    File::options()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(|source| ImageError::Read {
            path: path.to_owned(),
            source,
        })
}

/// Reads a part of the file; one that ends early has been cut short since its length was looked at.
pub(crate) fn read_exact(
    file: &File,
    path: &Path,
    part: Part,
    buffer: &mut [u8],
    offset: u64,
) -> Result<(), ImageError> {
    file.read_exact_at(buffer, offset).map_err(|source| {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            let actual = file.metadata().map_or(0, |metadata| metadata.len());
            ImageError::Truncated {
                path: path.to_owned(),
                part,
                expected: offset + buffer.len() as u64,
                actual,
            }
        } else {
            ImageError::Read {
                path: path.to_owned(),
                source,
            }
        }
    })
}

/// Leaves the field of the checksum zero.
fn header_checksum(page: &mut [u8]) -> [u8; 32] {
    page[CHECKSUM].fill(0);
    blake3::hash(page).into()
}

fn flag_names(flags: u64) -> String {
    let names = (0..64).filter(|bit| flags >> bit & 1 == 1).map(|bit| {
        FLAG_NAMES
            .iter()
            .find(|(flag, _)| *flag == 1 << bit)
            .map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
    });
    names.collect::<Vec<_>>().join(", ")
}

/// Little-endian numbers at fixed places of a record that is known to be long enough.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[offset..offset + N]);
        bytes
    }

    pub(crate) fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    pub(crate) fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    pub(crate) fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }

    pub(crate) fn hash(&self, offset: usize) -> [u8; 32] {
        self.bytes(offset)
    }
}
