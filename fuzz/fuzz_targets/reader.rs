//! Whatever bytes a file has, reading it ends with contents or an error.
//!
//! The first byte of the input decides whether checksums are made right before the file is read: otherwise hardly
//! anything would get beyond the first of them. Good seeds are the files in `crates/image/tests/fixtures`, with a byte in front.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stasis_image::{Image, bases_of};

const HEADER: usize = 4096;

/// Makes the checksums of sections and of the header right, where these are inside the file.
fn mend(bytes: &mut [u8]) {
    if bytes.len() < HEADER {
        return;
    }
    let number = |bytes: &[u8], at: usize| {
        bytes[at..at + 8].iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte)) as usize
    };
    for (place, hash) in [(72, 104), (136, 160), (216, 232), (264, 280)] {
        let (start, len) = (number(bytes, place), number(bytes, place + 8));
        let section = start.checked_add(len).and_then(|end| bytes.get(start..end));
        if let Some(section) = section.filter(|section| !section.is_empty()) {
            let checksum = blake3::hash(section);
            bytes[hash..hash + 32].copy_from_slice(checksum.as_bytes());
        }
    }
    bytes[16..48].fill(0);
    let checksum = blake3::hash(&bytes[..HEADER]);
    bytes[16..48].copy_from_slice(checksum.as_bytes());
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        mend(&mut bytes);
    }
    let Ok(directory) = tempfile::tempdir() else {
        return;
    };
    let path = directory.path().join("fuzz-000001.ckpt");
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    let _ = bases_of(&path);
    if let Ok(image) = Image::open(&path) {
        let _ = image.damages(1, &|_| ());
        let objects: Vec<_> = image.all_extents().iter().map(|one| one.object).collect();
        if let Some(object) = objects.first() {
            let _ = image.read_object(*object, 1 << 20);
        }
    }
});
