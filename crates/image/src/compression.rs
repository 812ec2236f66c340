//! Making contents smaller, and back.

use std::fmt;
use std::str::FromStr;

use crate::format::limits::{CHUNK, PAGE};
use crate::index::Encoding;

/// How contents are made smaller on the way to the disk. Chunks that do not shrink are stored as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// LZ4 while the disk is what an image waits for, nothing while the processor is: contents that come faster than the disk
    /// takes them are compressed, the others stored as they are. The first 64 MiB are always compressed.
    #[default]
    Auto,
    /// Contents are stored as they are.
    None,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard frames of this level, 1 to 19.
    Zstd(i32),
}

/// The level meant by plain `zstd`.
const ZSTD_DEFAULT_LEVEL: i32 = 3;

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Auto => f.write_str("auto"),
            Compression::None => f.write_str("none"),
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// A compression that this program does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown compression {0:?}; use auto, none, lz4, zstd, or zstd:LEVEL with a level from 1 to 19"
)]
pub struct ParseCompressionError(String);

impl FromStr for Compression {
    type Err = ParseCompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseCompressionError(text.to_owned());
        match text {
            "auto" => Ok(Compression::Auto),
            "none" | "off" => Ok(Compression::None),
            "lz4" => Ok(Compression::Lz4),
            "zstd" => Ok(Compression::Zstd(ZSTD_DEFAULT_LEVEL)),
            _ => match text.strip_prefix("zstd:").map(i32::from_str) {
                Some(Ok(level @ 1..=19)) => Ok(Compression::Zstd(level)),
                _ => Err(unknown()),
            },
        }
    }
}

/// One thread's compressor: its buffer and its context are used again from chunk to chunk.
pub(crate) struct Compressor {
    compression: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    output: Vec<u8>,
}

impl Compressor {
    pub(crate) fn new(compression: Compression) -> Self {
        let (zstd, capacity) = match compression {
            Compression::None => (None, 0),
            Compression::Auto | Compression::Lz4 => (
                None,
                lz4_flex::block::get_maximum_output_size(CHUNK).next_multiple_of(PAGE),
            ),
            // A context that cannot be had (no memory) leaves the chunks as they are.
            Compression::Zstd(level) => (zstd::bulk::Compressor::new(level).ok(), CHUNK),
        };
        Compressor {
            compression,
            zstd,
            output: vec![0; capacity],
        }
    }

    /// The compressed form, zero-filled to whole pages, with its length; `None` if it is not worth it:
    /// it has to save a sixteenth and at least one page, as space is given out in pages.
    pub(crate) fn compress(&mut self, input: &[u8]) -> Option<(Encoding, usize, &[u8])> {
        let pages = input.len().div_ceil(PAGE);
        let worth = (pages - pages.div_ceil(16).max(1)) * PAGE;
        if worth == 0 {
            return None;
        }
        let (encoding, len) = match self.compression {
            Compression::None => return None,
            Compression::Auto | Compression::Lz4 => (
                Encoding::Lz4,
                lz4_flex::block::compress_into(input, &mut self.output).ok()?,
            ),
            // Too little room makes zstd give up early, which is what is wanted of contents that do not shrink.
            Compression::Zstd(_) => (
                Encoding::Zstd,
                self.zstd
                    .as_mut()?
                    .compress_to_buffer(input, &mut self.output[..worth])
                    .ok()?,
            ),
        };
        if len > worth {
            return None;
        }
        let padded = len.next_multiple_of(PAGE);
        self.output[len..padded].fill(0);
        Some((encoding, len, &self.output[..padded]))
    }
}

/// How many bytes of a file contents take when they are stored alone, whole pages; none where they are zero.
#[must_use]
pub fn stored_len(compression: Compression, contents: &[u8]) -> u64 {
    if contents.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let pieces = contents.chunks(CHUNK).map(|piece| {
        let compressed = Compressor::new(compression)
            .compress(piece)
            .map(|(_, _, padded)| padded.len());
        compressed.unwrap_or(piece.len().next_multiple_of(PAGE)) as u64
    });
    pieces.sum()
}

/// One thread's decompressor.
pub(crate) struct Decompressor {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decompressor {
    pub(crate) fn new() -> Self {
        Decompressor { zstd: None }
    }

    /// Fills `output` exactly, or says why it cannot.
    pub(crate) fn decompress(
        &mut self,
        encoding: Encoding,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(), String> {
        let len = match encoding {
            Encoding::Raw => {
                if input.len() == output.len() {
                    output.copy_from_slice(input);
                }
                input.len()
            }
            Encoding::Lz4 => lz4_flex::block::decompress_into(input, output)
                .map_err(|error| format!("lz4 cannot decompress it: {error}"))?,
            Encoding::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = Some(
                        zstd::bulk::Decompressor::new()
                            .map_err(|error| format!("zstd: {error}"))?,
                    );
                }
                match &mut self.zstd {
                    Some(context) => context
                        .decompress_to_buffer(input, output)
                        .map_err(|error| format!("zstd cannot decompress it: {error}"))?,
                    None => 0,
                }
            }
        };
        if len == output.len() {
            Ok(())
        } else {
            Err(format!(
                "it decompresses to {len} bytes instead of {}",
                output.len()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, compression) in [
            ("auto", Compression::Auto),
            ("none", Compression::None),
            ("off", Compression::None),
            ("lz4", Compression::Lz4),
            ("zstd", Compression::Zstd(3)),
            ("zstd:7", Compression::Zstd(7)),
        ] {
            assert_eq!(text.parse(), Ok(compression));
            assert_eq!(compression.to_string().parse(), Ok(compression));
        }
        for text in [
            "", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:x", "LZ4",
        ] {
            let error = text.parse::<Compression>().expect_err(text);
            assert!(error.to_string().contains("zstd:LEVEL"));
        }
    }

    #[test]
    fn what_does_not_shrink_by_a_page_is_left_alone() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
            let mut compressor = Compressor::new(compression);
            assert!(
                compressor.compress(&[7; PAGE]).is_none(),
                "one page cannot become smaller"
            );
            assert!(compressor.compress(&[7]).is_none());
            let mut random = vec![0; CHUNK];
            blake3::Hasher::new().finalize_xof().fill(&mut random);
            assert!(compressor.compress(&random).is_none());
        }
    }

    #[test]
    fn compressed_chunks_come_back() {
        let input: Vec<u8> = (0..CHUNK).map(|i| (i / 100) as u8).collect();
        for compression in [
            Compression::Lz4,
            Compression::Zstd(1),
            Compression::Zstd(19),
        ] {
            let mut compressor = Compressor::new(compression);
            let (encoding, len, padded) = compressor.compress(&input).expect("shrinks");
            assert_eq!(padded.len() % PAGE, 0);
            assert!(padded[len..].iter().all(|&byte| byte == 0));
            let mut output = vec![0; CHUNK];
            let mut decompressor = Decompressor::new();
            assert_eq!(
                decompressor.decompress(encoding, &padded[..len], &mut output),
                Ok(())
            );
            assert_eq!(output, input);
            assert!(
                decompressor
                    .decompress(encoding, &padded[..len], &mut output[1..])
                    .is_err()
            );
            assert!(
                decompressor
                    .decompress(encoding, &padded[..len - 1], &mut output)
                    .is_err()
            );
        }
    }
}
