//! Making one file of an image and its bases.

use std::path::Path;

use crate::error::ImageError;
use crate::keys::Secret;
use crate::reader::Image;
use crate::writer::{Committed, ImageWriter, WriteOptions};

/// Writes all that `image` is made of into one new file, checked on the way; encrypted with `secret` where there is one.
///
/// # Errors
/// Those of reading the one and of writing the other.
pub fn export(
    image: &Image,
    to: &Path,
    options: WriteOptions,
    secret: Option<&Secret>,
) -> Result<Committed, ImageError> {
    let writer = ImageWriter::create(to, options)?.created_at(image.header().created);
    let writer = match secret {
        Some(secret) => writer.encrypted_with(secret)?,
        None => writer,
    };
    let extents = image.all_extents().iter().collect();
    image.in_parallel(extents, options.threads, &|| (), &|(), extent, bytes| {
        writer.store_piece(extent, bytes?)
    })?;
    writer.commit(image.metadata())
}
