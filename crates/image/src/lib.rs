//! The checkpoint file.
#![forbid(unsafe_code)]
/// Placeholder until the format lands.
#[derive(Debug, thiserror::Error)]
#[error("image")]
pub struct ImageError;
/// Compression of extents.
#[derive(Clone, Copy, Debug)]
pub enum Compression {
    /** stored as they are */
    None,
    /** lz4 */
    Lz4,
    /** zstd */
    Zstd(i32),
}
/// A reader.
#[derive(Debug)]
pub struct Image;
