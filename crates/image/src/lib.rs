//! The checkpoint file: one file for one process tree at one moment.
//!
//! [`ImageWriter`] puts the contents of memory areas, files and queues ("objects") into a new image;
//! [`Image`] reads them back; [`scan`] lists what a directory holds. What the objects mean is none of
//! this crate's business: the engine's description of the process tree is an opaque string of bytes here.
//!
//! Three promises hold whatever happens in between:
//! - An image under its final name is complete and was flushed to the disk. Until then it is called
//!   `NAME.ckpt.partial`, and a writer that is dropped removes it.
//! - An existing image is never touched, nor replaced, unless the writer was made to ([`ImageWriter::replace`]): then
//!   it is there until the new one is complete.
//! - A reader never trusts a number it has read: every length is held against the length of the file and
//!   a limit before memory is set aside, and every content is checked against its BLAKE3 hash.
//!
//! An image may take contents from older ones of its directory ([`ImageWriter::based_on`]). Then it is complete together with
//! these; [`bases_of`] tells which, and [`export`] makes one file of them.
//!
//! The layout, byte by byte, is in `docs/image-format.md`.
//!
//! ```
//! use stasis_image::{Image, ImageWriter, ObjectId, Run, WriteOptions};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let path = directory.path().join(stasis_image::image_name("job", 1));
//! let contents = b"what the program had in memory".to_vec();
//! let writer = ImageWriter::create(&path, WriteOptions::default())?;
//! writer.store(ObjectId(1), &contents, &[Run { offset: 0, len: contents.len() as u64 }])?;
//! writer.commit(b"description of the process tree")?;
//!
//! let image = Image::open(&path)?;
//! assert_eq!(image.metadata(), b"description of the process tree");
//! assert_eq!(image.read_object(ObjectId(1), contents.len() as u64)?, contents);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod bases;
mod chain;
mod chunk;
mod compression;
mod error;
mod export;
mod flusher;
mod format;
mod index;
mod keys;
mod known;
mod naming;
mod partial;
mod reader;
mod seal;
mod source;
mod stored;
mod worker;
mod writer;

pub use bases::Base;
pub use compression::{Compression, ParseCompressionError, stored_len};
pub use error::{ImageError, KeyError, Part};
pub use export::export;
pub use format::{Header, limits};
pub use index::{Encoding, Extent, ObjectId};
pub use keys::{Keys, Recipient, Secret};
pub use naming::{
    Found, FoundBase, State, abandoned, base_path, image_name, next_sequence, parse_image_name,
    parse_partial_name, remove_abandoned, scan, scan_bases,
};
pub use reader::{Image, Verified, bases_of};
pub use source::{Run, Source, StoreJob};
pub use writer::{Committed, FinishedImage, ImageWriter, Progress, Stored, WriteOptions};
