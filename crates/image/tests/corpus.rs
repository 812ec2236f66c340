//! Images that were changed in many ways, always the same ones: reading each ends with contents or an error, and soon.
//!
//! `fuzz/` looks for further ways.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use stasis_image::{
    Compression, Image, ImageWriter, ObjectId, Run, Secret, WriteOptions, bases_of, image_name,
};
use std::path::Path;
use std::sync::Arc;

const HEADER: usize = 4096;
/// Changed copies of each image.
const COPIES: usize = 700;

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// Makes all checksums right that can be, so that what lies behind them is reached.
fn mend(bytes: &mut [u8]) {
    if bytes.len() < HEADER {
        return;
    }
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

/// One of the places that something depends on: fields of the header, or of the sections that it names.
fn place(bytes: &[u8], random: &mut Random) -> usize {
    if bytes.len() < HEADER {
        return random.below(bytes.len());
    }
    let section = [72, 136, 216, 264][random.below(4)];
    let (start, len) = (number(bytes, section), number(bytes, section + 8));
    let is_inside = start.checked_add(len).is_some_and(|end| end <= bytes.len());
    match random.below(3) {
        0 => random.below(344),
        1 if len > 0 && is_inside => start + random.below(len),
        _ => random.below(bytes.len()),
    }
}

fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = place(bytes, random).min(bytes.len() - 1);
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill(0xff);
            }
            3 => {
                let (from, len) = (random.below(bytes.len()), 1 + random.below(16));
                let len = len.min(bytes.len() - from).min(bytes.len() - at);
                bytes.copy_within(from..from + len, at);
            }
            _ if random.below(20) == 0 => bytes.truncate(at.max(1)),
            _ => bytes[at] = random.below(256) as u8,
        }
    }
}

fn read(path: &Path) {
    let _ = bases_of(path);
    let Ok(image) = Image::open(path) else { return };
    let _ = image.damages(1, &|_| ());
    if let Some(first) = image.all_extents().first() {
        let _ = image.read_object(first.object, 1 << 20);
    }
}

fn try_copies(original: &Path, seed: u64) {
    let bytes = std::fs::read(original).unwrap();
    let path = original.with_file_name("other-000009.ckpt");
    let mut random = Random(seed);
    for copy in 0..COPIES {
        let mut changed = bytes.clone();
        change(&mut changed, &mut random);
        if copy % 4 != 0 {
            mend(&mut changed);
        }
        std::fs::write(&path, changed).unwrap();
        read(&path);
    }
}

#[test]
fn changed_images_of_all_kinds_are_read_to_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (seed, name) in [(1, "format-1.ckpt"), (2, "format-2.ckpt")] {
        let copy = directory.path().join(name);
        std::fs::copy(fixtures.join(name), &copy).unwrap();
        try_copies(&copy, seed);
    }
    let at = |number| directory.path().join(image_name("job", number));
    let mut contents: Vec<u8> = (0..20_000u32).flat_map(|n| (n * n).to_le_bytes()).collect();
    let runs = [Run {
        offset: 0,
        len: contents.len() as u64,
    }];
    for number in 1..=3 {
        let options = WriteOptions {
            compression: Compression::Lz4,
            threads: 1,
        };
        let mut writer = ImageWriter::create(&at(number), options).unwrap();
        if number == 2 {
            writer = writer.based_on(Arc::new(Image::open(&at(1)).unwrap()));
        }
        if number == 3 {
            let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
            let secret = Secret::for_recipients(&[recipient.parse().unwrap()]).unwrap();
            writer = writer.encrypted_with(&secret).unwrap();
        }
        writer.store(ObjectId(1), &contents, &runs).unwrap();
        writer.commit(&b"description ".repeat(30)).unwrap();
        contents[40_000] ^= 1;
    }
    assert_eq!(bases_of(&at(2)).unwrap().0.len(), 1);
    for number in 1..=3 {
        try_copies(&at(number), 10 + number);
    }
}
