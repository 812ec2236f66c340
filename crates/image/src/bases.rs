//! The older files that an image takes contents from.
//!
//! A base is named by the stem of its file (`NAME-000003`), which is looked for beside the image, as an image
//! (`NAME-000003.ckpt`) or as what is left of one (`NAME-000003.base`: no checkpoint any more, kept for the contents that
//! newer ones need). What decides is the checksum of its header, which stands for all of it.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::ImageError;
use crate::format::{self, Fields, Header};
use crate::naming;

/// A record of the table: checksum, length of the file, length of the stem, stem, zeros.
pub(crate) const RECORD_LEN: usize = 320;
const STEM: std::ops::Range<usize> = 48..304;

/// An older file, as an image names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Base {
    /// The name of its file without the ending.
    pub stem: String,
    /// BLAKE3 of its header.
    pub checksum: [u8; 32],
    /// How long its file is, in bytes.
    pub file_len: u64,
}

impl Base {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(self.checksum);
        out.extend(self.file_len.to_le_bytes());
        out.extend((self.stem.len() as u64).to_le_bytes());
        out.extend(self.stem.as_bytes());
        out.resize(start + RECORD_LEN, 0);
    }

    fn decode(record: &[u8]) -> Result<Base, String> {
        let fields = Fields(record);
        let len = fields.u64(40) as usize;
        let stem = record[STEM]
            .get(..len)
            .and_then(|stem| std::str::from_utf8(stem).ok())
            .filter(|stem| naming::is_stem(stem))
            .ok_or("a base image has a name that cannot be")?;
        Ok(Base {
            stem: stem.to_owned(),
            checksum: fields.hash(0),
            file_len: fields.u64(32),
        })
    }

    /// The file, if it is in `directory`, opened; and its header.
    ///
    /// # Errors
    /// Why it is not: a sentence without a subject.
    pub(crate) fn find(&self, directory: &Path) -> Result<(File, PathBuf, Header), String> {
        let mut reason = None;
        for ending in [naming::EXTENSION, naming::BASE_EXTENSION] {
            let path = directory.join(format!("{}{ending}", self.stem));
            let found = match format::open(&path) {
                Ok(file) => Header::read_from(&file, &path).map(|header| (file, header)),
                Err(ImageError::Read { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    continue;
                }
                Err(error) => Err(error),
            };
            match found {
                Ok((file, header)) if header.checksum == self.checksum => {
                    return Ok((file, path, header));
                }
                Ok(_) => {
                    reason = Some(format!(
                        "{} is another image than the one it was made from",
                        path.display()
                    ))
                }
                Err(error) => reason = Some(error.to_string()),
            }
        }
        Err(reason.unwrap_or_else(|| format!("it is not in {}", directory.display())))
    }
}

/// The table of `bases`.
pub(crate) fn encode(bases: &[Base]) -> Vec<u8> {
    let mut table = Vec::with_capacity(bases.len() * RECORD_LEN);
    for base in bases {
        base.encode(&mut table);
    }
    table
}

/// The bases of a table, or the place in it and what is wrong there.
pub(crate) fn decode(table: &[u8]) -> Result<Vec<Base>, (u64, String)> {
    let records = table.chunks_exact(RECORD_LEN).enumerate();
    records
        .map(|(n, record)| Base::decode(record).map_err(|reason| ((n * RECORD_LEN) as u64, reason)))
        .collect()
}

/// The stem of a file's name, where it has one of the two endings.
pub(crate) fn stem(path: &Path) -> Option<String> {
    let name = path.file_name().and_then(OsStr::to_str)?;
    let stem = [naming::EXTENSION, naming::BASE_EXTENSION]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))?;
    naming::is_stem(stem).then(|| stem.to_owned())
}
