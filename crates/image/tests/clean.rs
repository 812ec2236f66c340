//! Contents that are known not to have changed: taken from the older image, and read only where a part of an extent needs a hash.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stasis_image::{
    Committed, Compression, Image, ImageError, ImageWriter, ObjectId, Run, Source, StoreJob,
    WriteOptions, image_name,
};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
const OBJECT: ObjectId = ObjectId(7);

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut contents = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut contents);
    contents
}

/// Counts what is read.
struct Counted<'a>(&'a [u8], AtomicU64);

impl Source for Counted<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(buffer, offset)
    }
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(image_name("job", number))
}

#[derive(Clone, Copy)]
struct How {
    compression: Compression,
    doubting: bool,
}

/// Writes `contents` as image `number` on top of the one before; tells how much was read as well.
fn write(
    directory: &Path,
    number: u64,
    contents: &[u8],
    clean: &[Run],
    how: How,
) -> Result<(Committed, u64), ImageError> {
    let options = WriteOptions {
        compression: how.compression,
        threads: 2,
    };
    let mut writer = ImageWriter::create(&path(directory, number), options)?.in_fine_pieces();
    if how.doubting {
        writer = writer.doubting();
    }
    if let Ok(older) = Image::open(&path(directory, number - 1)) {
        writer = writer.based_on(Arc::new(older));
    }
    let source = Counted(contents, AtomicU64::new(0));
    let runs = [Run {
        offset: 0,
        len: contents.len() as u64,
    }];
    writer.store_all(&[StoreJob {
        object: OBJECT,
        source: &source,
        runs: &runs,
        clean,
    }])?;
    Ok((writer.commit(&[])?, source.1.into_inner()))
}

/// Everything but these pages.
fn all_but(len: usize, changed: &[usize]) -> Vec<Run> {
    let mut clean = Vec::new();
    let mut at = 0;
    for page in changed.iter().copied().chain([len / PAGE]) {
        if page > at {
            clean.push(Run {
                offset: (at * PAGE) as u64,
                len: ((page - at) * PAGE) as u64,
            });
        }
        at = page + 1;
    }
    clean
}

fn reads_as(directory: &Path, number: u64, contents: &[u8]) {
    let image = Image::open(&path(directory, number)).unwrap();
    image.verify(2, &|_| ()).unwrap();
    let read = image.read_object(OBJECT, contents.len() as u64).unwrap();
    assert!(read == contents, "image {number}");
}

#[test]
fn what_is_clean_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let how = How {
        compression: Compression::None,
        doubting: false,
    };
    let mut contents = random(1, 8 * MIB);
    // A hole, too.
    contents[3 * MIB..4 * MIB].fill(0);
    write(directory.path(), 1, &contents, &[], how).unwrap();
    let all = all_but(contents.len(), &[]);
    let (same, read) = write(directory.path(), 2, &contents, &all, how).unwrap();
    assert_eq!((same.stored_len, read), (0, 0));
    reads_as(directory.path(), 2, &contents);
    contents[5 * PAGE] ^= 1;
    contents[1100 * PAGE] ^= 1;
    let some = all_but(contents.len(), &[5, 1100]);
    let (changed, read) = write(directory.path(), 3, &contents, &some, how).unwrap();
    assert_eq!(changed.stored_len, 2 * PAGE as u64);
    // The rest of two pieces needs a hash.
    assert_eq!(read, 2 * (64 << 10));
    reads_as(directory.path(), 3, &contents);
    contents[5 * PAGE] ^= 1;
    let (_, read) = write(
        directory.path(),
        4,
        &contents,
        &all_but(contents.len(), &[5]),
        how,
    )
    .unwrap();
    assert_eq!(read, PAGE as u64);
    reads_as(directory.path(), 4, &contents);
}

#[test]
fn clean_and_changed_in_any_mixture_come_back() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
        let directory = tempfile::tempdir().unwrap();
        let how = How {
            compression,
            doubting: true,
        };
        let mut contents = random(2, 4 * MIB);
        // Half of each page is zero, so that it can be compressed.
        contents
            .chunks_mut(PAGE)
            .for_each(|page| page[..PAGE / 2].fill(0));
        let pages = contents.len() / PAGE;
        for number in 1..20u64 {
            let mut choice = random(100 + number, 16 * 8).into_iter();
            let mut changed: Vec<usize> = (0..16)
                .map(|_| choice.next().unwrap() as usize * 256 + choice.next().unwrap() as usize)
                .map(|page| page % pages)
                .collect();
            changed.sort_unstable();
            changed.dedup();
            for page in &changed {
                let fill = random(number << 32 | *page as u64, PAGE);
                let zero = choice.next().unwrap() < 64;
                let page = &mut contents[page * PAGE..][..PAGE];
                page.copy_from_slice(&fill);
                page[if zero { 0 } else { PAGE / 2 }..].fill(0);
            }
            let clean = all_but(contents.len(), &changed);
            write(directory.path(), number, &contents, &clean, how).unwrap();
            reads_as(directory.path(), number, &contents);
        }
    }
}

#[test]
fn a_change_that_was_not_said_is_found_by_who_doubts() {
    let directory = tempfile::tempdir().unwrap();
    let mut how = How {
        compression: Compression::Lz4,
        doubting: true,
    };
    let mut contents = random(3, 2 * MIB);
    contents[MIB..].fill(0);
    write(directory.path(), 1, &contents, &[], how).unwrap();
    let all = all_but(contents.len(), &[]);
    for at in [7 * PAGE + 9, MIB + 5 * PAGE] {
        contents[at] ^= 1;
        let failed = write(directory.path(), 2, &contents, &all, how);
        let page = (at / PAGE * PAGE) as u64;
        let found = matches!(failed, Err(ImageError::Misuse { offset, .. }) if offset == page);
        assert!(found, "{failed:?}");
        contents[at] ^= 1;
    }
    how.doubting = false;
    write(directory.path(), 2, &contents, &all, how).unwrap();
    reads_as(directory.path(), 2, &contents);
}

#[test]
fn without_an_older_image_nothing_is_clean() {
    let directory = tempfile::tempdir().unwrap();
    let how = How {
        compression: Compression::None,
        doubting: false,
    };
    let contents = random(4, MIB);
    let all = all_but(contents.len(), &[]);
    let (committed, read) = write(directory.path(), 1, &contents, &all, how).unwrap();
    assert_eq!((committed.stored_len, read), (MIB as u64, MIB as u64));
    reads_as(directory.path(), 1, &contents);
}
