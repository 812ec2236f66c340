//! A hash of all of a small file, or of chosen places of a large one.
//!
//! It tells "the same as far as looked" from "changed", and, applied to the first bytes of a longer file, "only grew" from
//! "changed in place". Where it does not cover every byte ([`Fingerprint::is_exact`]), what builds on it must say so.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Which bytes of a file are hashed. All of them where the file is not longer than these together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Bytes at the beginning.
    pub head: u32,
    /// Bytes at the end.
    pub tail: u32,
    /// Number of blocks between them, at equal distances.
    pub blocks: u16,
    /// Length of a block in bytes.
    pub block: u32,
}

impl Sampling {
    /// For files that the program writes and that are too large to be stored.
    pub const WRITTEN: Sampling = Sampling {
        head: 64 << 10,
        tail: 1 << 20,
        blocks: 64,
        block: 4 << 10,
    };
    /// For files that the program only reads.
    pub const READ: Sampling = Sampling {
        head: 32 << 10,
        tail: 32 << 10,
        blocks: 16,
        block: 4 << 10,
    };

    fn covered(&self) -> u64 {
        u64::from(self.head) + u64::from(self.tail) + u64::from(self.blocks) * u64::from(self.block)
    }

    /// The places of a file of `len` bytes, in the order in which they are hashed.
    fn places(&self, len: u64) -> Vec<Range<u64>> {
        if len <= self.covered() {
            return std::iter::once(0..len).collect();
        }
        let (head, tail, block) = (
            u64::from(self.head),
            u64::from(self.tail),
            u64::from(self.block),
        );
        let between = len - head - tail - block;
        let last = u64::from(self.blocks.max(2) - 1);
        let blocks = (0..u64::from(self.blocks)).map(|i| {
            // In 128 bits: a length near 2^63 must not overflow.
            let start = head + (u128::from(between) * u128::from(i) / u128::from(last)) as u64;
            start..start + block
        });
        std::iter::once(0..head)
            .chain(blocks)
            .chain(std::iter::once(len - tail..len))
            .collect()
    }
}

/// A BLAKE3 hash of chosen places of a file, or of all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    sampling: Sampling,
    len: u64,
    hash: [u8; 32],
}

impl Fingerprint {
    /// Hashes the first `len` bytes of `file`; `None` where it is shorter.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn take(file: &File, len: u64, sampling: Sampling) -> io::Result<Option<Fingerprint>> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0u8; sampling.covered().min(256 << 10) as usize];
        for place in sampling.places(len) {
            let mut at = place.start;
            while at < place.end {
                let wanted = buffer.len().min((place.end - at) as usize);
                match file.read_at(&mut buffer[..wanted], at) {
                    Ok(0) => return Ok(None),
                    Ok(n) => {
                        hasher.update(&buffer[..n]);
                        at += n as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Some(Fingerprint {
            sampling,
            len,
            hash: *hasher.finalize().as_bytes(),
        }))
    }

    /// Whether `file` begins with what was hashed. It may be longer.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn matches(&self, file: &File) -> io::Result<bool> {
        Ok(Fingerprint::take(file, self.len, self.sampling)? == Some(*self))
    }

    /// Whether every byte was hashed.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.len <= self.sampling.covered()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Sampling = Sampling {
        head: 16,
        tail: 32,
        blocks: 4,
        block: 8,
    };

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(bytes, 0).expect("writable");
        file
    }

    fn taken(file: &File, len: u64) -> Fingerprint {
        Fingerprint::take(file, len, SMALL)
            .expect("readable")
            .expect("long enough")
    }

    #[test]
    fn small_files_are_hashed_whole() {
        let fingerprint = taken(&file(&[7; 80]), 80);
        assert!(fingerprint.is_exact());
        for changed in 0..80 {
            let mut bytes = [7; 80];
            bytes[changed] = 8;
            assert!(!fingerprint.matches(&file(&bytes)).expect("readable"));
        }
    }

    #[test]
    fn growth_matches_and_a_changed_end_does_not() {
        let old: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        let fingerprint = taken(&file(&old), 1000);
        assert!(!fingerprint.is_exact());
        let mut grown = old.clone();
        grown.extend([1; 500]);
        assert!(fingerprint.matches(&file(&grown)).expect("readable"));
        grown[999] ^= 1;
        assert!(!fingerprint.matches(&file(&grown)).expect("readable"));
        assert!(!fingerprint.matches(&file(&old[..999])).expect("readable"));
    }

    #[test]
    fn places_lie_inside_the_file_whatever_its_length() {
        for len in [0, 1, 79, 80, 81, 82, 100, 4096, 1 << 40, i64::MAX as u64] {
            let places = SMALL.places(len);
            for place in &places {
                assert!(
                    place.start <= place.end && place.end <= len,
                    "{place:?} of {len}"
                );
            }
            let total: u64 = places.iter().map(|p| p.end - p.start).sum();
            assert_eq!(total, len.min(80));
        }
    }
}
