//! Damaged, cut, foreign and newer files are refused, and the message says what is wrong.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use stasis_image::limits::PAGE;
use stasis_image::{
    Compression, Image, ImageError, ImageWriter, ObjectId, Part, Run, WriteOptions,
};

const TEXT: ObjectId = ObjectId(1);
const RANDOM: ObjectId = ObjectId(2);
const METADATA: &[u8] = b"the description of a process tree";

fn text() -> Vec<u8> {
    b"contents that become smaller ".repeat(400)
}

fn random() -> Vec<u8> {
    let mut contents = vec![0; 5000];
    blake3::Hasher::new().finalize_xof().fill(&mut contents);
    contents
}

fn write(path: &Path, compression: Compression) {
    let writer = ImageWriter::create(
        path,
        WriteOptions {
            compression,
            threads: 1,
        },
    )
    .unwrap();
    for (object, contents) in [(TEXT, text()), (RANDOM, random())] {
        writer
            .store(
                object,
                &contents,
                &[Run {
                    offset: 0,
                    len: contents.len() as u64,
                }],
            )
            .unwrap();
    }
    writer.commit(METADATA).unwrap();
}

fn image(compression: Compression) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job-000001.ckpt");
    write(&path, compression);
    let bytes = std::fs::read(&path).unwrap();
    (directory, path, bytes)
}

/// Fails, or has checked everything.
fn check(path: &Path) -> Result<Image, ImageError> {
    let image = Image::open(path)?;
    image.verify(1, &|_| ())?;
    Ok(image)
}

#[test]
fn every_flipped_byte_is_seen_or_harmless() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
        let (_directory, path, bytes) = image(compression);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let image = check(&path).unwrap();
        let sections = image
            .all_extents()
            .iter()
            .map(|e| (e.file_offset(), e.stored_len()));
        let mut used = vec![false; bytes.len()];
        for (offset, len) in sections.chain([(0, PAGE as u64)]) {
            used[offset as usize..(offset + len) as usize].fill(true);
        }
        let mut unseen_in_use = 0;
        for (at, &byte) in bytes.iter().enumerate() {
            file.write_all_at(&[byte ^ (1 << (at % 8))], at as u64)
                .unwrap();
            match check(&path) {
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains("job-000001.ckpt"), "{at}: {text}");
                }
                Ok(image) => {
                    assert_eq!(image.metadata(), METADATA);
                    assert_eq!(
                        image.read_object(TEXT, text().len() as u64).unwrap(),
                        text()
                    );
                    assert_eq!(image.read_object(RANDOM, 5000).unwrap(), random());
                    unseen_in_use += usize::from(used[at]);
                }
            }
            file.write_all_at(&[byte], at as u64).unwrap();
        }
        // A compressed stream has bits that change nothing, but few.
        let allowed = if compression == Compression::None {
            0
        } else {
            4
        };
        assert!(
            unseen_in_use <= allowed,
            "{compression}: {unseen_in_use} flips unseen"
        );
        check(&path).unwrap();
    }
}

#[test]
fn a_file_cut_at_any_length_is_refused() {
    let (_directory, path, bytes) = image(Compression::Lz4);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for len in (0..bytes.len() as u64).rev() {
        file.set_len(len).unwrap();
        match Image::open(&path).err() {
            Some(ImageError::Truncated {
                expected, actual, ..
            }) => assert!(actual == len && expected > len),
            other => panic!("cut at {len}: {other:?}"),
        }
    }
}

#[test]
fn a_file_with_something_after_its_end_is_refused() {
    let (_directory, path, mut bytes) = image(Compression::Lz4);
    bytes.push(0);
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(
        Image::open(&path),
        Err(ImageError::Damaged {
            part: Part::Header,
            ..
        })
    ));
}

/// Changes the header and makes its checksum right again.
fn with_header(bytes: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes[..PAGE]);
    bytes[16..48].fill(0);
    let checksum = blake3::hash(&bytes[..PAGE]);
    bytes[16..48].copy_from_slice(checksum.as_bytes());
    bytes
}

#[test]
fn absurd_numbers_in_the_header_are_refused_before_memory_is_set_aside() {
    let (_directory, path, bytes) = image(Compression::Zstd(3));
    let fields8 = [56, 72, 80, 88, 136, 144, 152];
    for field in fields8 {
        for value in [
            0,
            1,
            4095,
            1 << 30,
            (1 << 30) + 1,
            1 << 40,
            1 << 63,
            u64::MAX - 4095,
            u64::MAX,
        ] {
            let changed = with_header(&bytes, |header| {
                header[field..field + 8].copy_from_slice(&value.to_le_bytes())
            });
            if changed == bytes {
                continue;
            }
            std::fs::write(&path, changed).unwrap();
            assert!(Image::open(&path).is_err(), "{value:#x} at {field}");
        }
    }
    for (field, value) in [(96, 3u32), (96, u32::MAX), (192, 1), (192, u32::MAX)] {
        let changed = with_header(&bytes, |header| {
            header[field..field + 4].copy_from_slice(&value.to_le_bytes())
        });
        std::fs::write(&path, changed).unwrap();
        assert!(Image::open(&path).is_err(), "{value:#x} at {field}");
    }
}

#[test]
fn absurd_numbers_in_the_index_are_refused() {
    let (_directory, path, bytes) = image(Compression::None);
    let at =
        |field: usize| u64::from_le_bytes(bytes[field..field + 8].try_into().unwrap()) as usize;
    let index = at(136);
    for (field, len) in [(4, 2), (6, 1), (7, 1), (8, 8), (16, 4), (20, 4), (24, 8)] {
        for value in [1u64, 7, 1 << 20 | 1, 1 << 40, u64::MAX - 1000, u64::MAX] {
            let mut changed = bytes.clone();
            changed[index + field..][..len].copy_from_slice(&value.to_le_bytes()[..len]);
            if changed == bytes
                || changed[index + field..][..len]
                    .iter()
                    .all(|&byte| byte == 0)
            {
                continue;
            }
            let hash = blake3::hash(&changed[index..]);
            let changed = with_header(&changed, |header| {
                header[160..192].copy_from_slice(hash.as_bytes())
            });
            std::fs::write(&path, changed).unwrap();
            // Another offset in the object may be valid; a shorter piece may be, but has other contents.
            let result = if field == 16 {
                check(&path)
            } else {
                Image::open(&path)
            };
            assert!(result.is_err() || field == 8, "{value:#x} at {field}");
        }
    }
    // Records that are not in order.
    let mut changed = bytes.clone();
    changed[index..index + 160].rotate_left(80);
    let hash = blake3::hash(&changed[index..]);
    let changed = with_header(&changed, |header| {
        header[160..192].copy_from_slice(hash.as_bytes())
    });
    std::fs::write(&path, changed).unwrap();
    let error = Image::open(&path).err().unwrap();
    assert!(error.to_string().contains("not in order"), "{error}");
}

#[test]
fn the_message_says_what_kind_of_file_it_is() {
    let (directory, path, bytes) = image(Compression::None);
    let message = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Image::open(&path).err().unwrap()
    };
    let newer = with_header(&bytes, |header| header[8] = 3);
    let error = message(&newer);
    assert!(
        matches!(
            error,
            ImageError::Newer {
                found: 3,
                supported: 2,
                ..
            }
        ),
        "{error}"
    );
    // A flipped bit in the version is damage, not a newer version.
    let mut flipped = bytes.clone();
    flipped[8] = 4;
    assert!(matches!(
        message(&flipped),
        ImageError::Damaged {
            part: Part::Header,
            ..
        }
    ));

    let error = message(&with_header(&bytes, |header| {
        header[48..50].copy_from_slice(&[7, 1])
    }))
    .to_string();
    assert!(
        error.contains("unknown to this program: bit 2, bit 8;"),
        "{error}"
    );

    assert!(matches!(
        message(b"\x7fELF and so on"),
        ImageError::NotAnImage { .. }
    ));
    assert!(matches!(message(&[0; 5000]), ImageError::Unfinished { .. }));
    assert!(matches!(
        message(b"\x89STA"),
        ImageError::Truncated {
            part: Part::Header,
            ..
        }
    ));
    assert!(matches!(
        Image::open(directory.path()),
        Err(ImageError::NotAnImage { .. })
    ));
    assert!(matches!(
        Image::open(&directory.path().join("none")),
        Err(ImageError::Read { .. })
    ));
}

#[test]
fn damaged_contents_are_named() {
    let (_directory, path, mut bytes) = image(Compression::None);
    let extent = Image::open(&path).unwrap().extents(RANDOM)[0];
    bytes[extent.file_offset() as usize + 17] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Image::open(&path).unwrap().verify(2, &|_| ()).unwrap_err();
    let ImageError::Damaged {
        part, file_offset, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(
        part,
        Part::Contents {
            object: RANDOM,
            offset: 0
        }
    );
    assert_eq!(file_offset, extent.file_offset());
}

#[test]
fn all_damages_are_told() {
    let (_directory, path, mut bytes) = image(Compression::None);
    let whole = Image::open(&path).unwrap();
    assert!(whole.damages(2, &|_| ()).is_empty());
    let places = [TEXT, RANDOM].map(|object| whole.extents(object)[0].file_offset());
    for place in places {
        bytes[place as usize + 17] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    let told = std::cell::Cell::new(0);
    let damages = Image::open(&path)
        .unwrap()
        .damages(2, &|done| told.set(done));
    let found: Vec<u64> = damages
        .iter()
        .map(|damage| match damage {
            ImageError::Damaged { file_offset, .. } => *file_offset,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(found, places);
    assert_eq!(told.get(), whole.header().logical_len);
}

/// Images of every released format must stay readable. Written by `writes_the_fixture`, once per format.
#[test]
fn the_golden_images_of_all_formats_are_read() {
    for format in [1, 2] {
        let name = format!("tests/fixtures/format-{format}.ckpt");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let image = check(&path).unwrap();
        let header = image.header();
        assert_eq!((header.version, header.extents), (format, 4));
        assert_eq!(image.metadata(), METADATA.repeat(100));
        assert_eq!(
            image.read_object(TEXT, text().len() as u64).unwrap(),
            text()
        );
        assert_eq!(image.read_object(RANDOM, 5000).unwrap(), random());
        let [low, high] = image.extents(ObjectId(9)) else {
            panic!("not two extents")
        };
        assert_eq!((low.offset, low.len), (0x7fff_0000_0000, 4096));
        assert_eq!((high.offset, high.len), (0x7fff_0002_0000, 100));
    }
}

#[test]
#[ignore = "writes the golden image of a new format; run it by hand"]
fn writes_the_fixture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-2.ckpt");
    let writer = ImageWriter::create(
        &path,
        WriteOptions {
            compression: Compression::Zstd(3),
            threads: 1,
        },
    )
    .unwrap();
    for (object, contents) in [(TEXT, text()), (RANDOM, random())] {
        writer
            .store(
                object,
                &contents,
                &[Run {
                    offset: 0,
                    len: contents.len() as u64,
                }],
            )
            .unwrap();
    }
    struct Ones;
    impl stasis_image::Source for Ones {
        fn read_exact_at(&self, buffer: &mut [u8], _: u64) -> std::io::Result<()> {
            buffer.fill(1);
            Ok(())
        }
    }
    let runs = [
        Run {
            offset: 0x7fff_0000_0000,
            len: 4096,
        },
        Run {
            offset: 0x7fff_0002_0000,
            len: 100,
        },
    ];
    writer.store(ObjectId(9), &Ones, &runs).unwrap();
    writer.commit(&METADATA.repeat(100)).unwrap();
}
