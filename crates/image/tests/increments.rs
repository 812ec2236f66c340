//! Images that take contents from older ones: what is stored, what is needed, what is missing.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stasis_image::{
    Committed, Compression, Image, ImageError, ImageWriter, Keys, ObjectId, Run, Secret, State,
    StoreJob, WriteOptions, base_path, bases_of, export, image_name, next_sequence, scan,
    scan_bases,
};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
const OBJECT: ObjectId = ObjectId(7);

/// Contents that cannot be compressed.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut contents = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut contents);
    contents
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(image_name("job", number))
}

/// Writes `contents` as image `number`, on top of the one before where there is one.
fn write_as(
    directory: &Path,
    number: u64,
    contents: &[u8],
    compression: Compression,
    secret: Option<&Secret>,
    keys: &Keys,
) -> Result<Committed, ImageError> {
    let options = WriteOptions {
        compression,
        threads: 2,
    };
    let mut writer = ImageWriter::create(&path(directory, number), options)?;
    if let Some(secret) = secret {
        writer = writer.encrypted_with(secret)?;
    }
    if let Ok(older) = Image::open_with(&path(directory, number - 1), keys) {
        writer = writer.based_on(Arc::new(older));
    }
    let runs = [Run {
        offset: 0,
        len: contents.len() as u64,
    }];
    writer.store(OBJECT, &contents, &runs)?;
    writer.commit(&number.to_le_bytes())
}

fn write(directory: &Path, number: u64, contents: &[u8]) -> Committed {
    write_as(
        directory,
        number,
        contents,
        Compression::None,
        None,
        &Keys::none(),
    )
    .unwrap()
}

fn holds(image: &Image, contents: &[u8]) {
    image.verify(2, &|_| ()).unwrap();
    let read = image.read_object(OBJECT, contents.len() as u64).unwrap();
    assert!(read == contents, "other contents");
}

fn check(directory: &Path, number: u64, contents: &[u8]) {
    holds(&Image::open(&path(directory, number)).unwrap(), contents);
}

#[test]
fn only_pages_that_changed_are_stored() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let keys = Keys::none();
        let mut contents = random(1, 16 * MIB);
        // Some of it shrinks.
        contents[4 * MIB..8 * MIB].fill(3);
        let full = write_as(at, 1, &contents, compression, None, &keys).unwrap();
        // One page in a hundred, all over it.
        for page in (0..contents.len() / PAGE).step_by(100) {
            contents[page * PAGE + 17] ^= 1;
        }
        let second = write_as(at, 2, &contents, compression, None, &keys).unwrap();
        assert_eq!(second.bases, 1);
        assert!(
            second.file_len * 100 <= full.file_len * 3,
            "{compression}: {} of {}",
            second.file_len,
            full.file_len
        );
        check(at, 2, &contents);
        // One place.
        contents[5 * MIB..][..MIB / 8].copy_from_slice(&random(2, MIB / 8));
        let third = write_as(at, 3, &contents, compression, None, &keys).unwrap();
        assert!(
            third.file_len * 100 <= full.file_len * 3,
            "{}",
            third.file_len
        );
        check(at, 3, &contents);
        assert_eq!(third.bases, 2);
    }
}

#[test]
fn nothing_changed_stores_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let contents = random(1, 4 * MIB + 1234);
    write(directory.path(), 1, &contents);
    let second = write(directory.path(), 2, &contents);
    assert_eq!((second.stored_len, second.bases), (0, 1));
    check(directory.path(), 2, &contents);
}

#[test]
fn the_same_contents_are_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let contents = random(1, 8 * MIB);
    let mut almost = contents.clone();
    almost[3 * MIB + 5] ^= 1;
    let options = WriteOptions {
        compression: Compression::None,
        threads: 1,
    };
    let writer = ImageWriter::create(&path(directory.path(), 1), options).unwrap();
    let runs = [Run {
        offset: 0,
        len: contents.len() as u64,
    }];
    let sources = [&contents, &contents, &almost];
    let jobs: Vec<_> = (1..)
        .zip(&sources)
        .map(|(n, source)| StoreJob {
            object: ObjectId(n),
            source: *source,
            runs: &runs,
            clean: &[],
        })
        .collect();
    writer.store_all(&jobs).unwrap();
    let committed = writer.commit(b"").unwrap();
    assert_eq!(committed.logical_len, 24 * MIB as u64);
    assert_eq!(committed.stored_len, (8 * MIB + PAGE) as u64);
    let image = Image::open(&committed.path).unwrap();
    image.verify(2, &|_| ()).unwrap();
    for (n, source) in (1..).zip(sources) {
        let read = image.read_object(ObjectId(n), 8 * MIB as u64).unwrap();
        assert!(read == *source, "object {n}");
    }
}

#[test]
fn room_is_bounded_and_every_image_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let mut contents = random(1, 2 * MIB);
    let full = write(at, 1, &contents).file_len;
    for number in 2..120u64 {
        // Now little, now much, now all of it.
        let pages = match number % 20 {
            7 => 400,
            13 => 512,
            few => few as usize % 5 * 3,
        };
        for n in 0..pages {
            let page = (number as usize * 37 + n * 7) % 512;
            contents[page * PAGE..][..8].copy_from_slice(&(number * 1000 + n as u64).to_le_bytes());
        }
        write(at, number, &contents);
        check(at, number, &contents);
        // Two stay, with what they need.
        retire(at, 2);
        let room: u64 = std::fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(
            room * 10 <= full * 24,
            "after {number}: {room} bytes for {full}"
        );
        if number > 2 {
            Image::open(&path(at, number - 1))
                .unwrap()
                .verify(2, &|_| ())
                .unwrap();
        }
    }
}

/// What retention does.
fn retire(directory: &Path, keep: usize) {
    let images = scan(directory, None).unwrap();
    let (old, kept) = images.split_at(images.len().saturating_sub(keep));
    let needed: Vec<String> = kept
        .iter()
        .flat_map(|image| bases_of(&image.path).unwrap().0)
        .map(|base| base.stem)
        .collect();
    let is_needed =
        |path: &Path| needed.contains(&path.file_stem().unwrap().to_str().unwrap().to_owned());
    for image in old {
        match is_needed(&image.path) {
            true => std::fs::rename(&image.path, base_path(&image.path).unwrap()).unwrap(),
            false => std::fs::remove_file(&image.path).unwrap(),
        }
    }
    for base in scan_bases(directory, None).unwrap() {
        if !is_needed(&base.path) {
            std::fs::remove_file(&base.path).unwrap();
        }
    }
}

#[test]
fn a_missing_or_other_base_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let contents = random(1, MIB);
    write(at, 1, &contents);
    write(at, 2, &contents);
    // Under the other name it is as good.
    let base = base_path(&path(at, 1)).unwrap();
    std::fs::rename(path(at, 1), &base).unwrap();
    check(at, 2, &contents);
    assert_eq!(scan(at, None).unwrap().len(), 1);
    assert_eq!(scan_bases(at, None).unwrap()[0].path, base);
    assert_eq!(next_sequence(at, "job").unwrap(), 3);
    // Away, or another one.
    let away = at.join("away");
    std::fs::rename(&base, &away).unwrap();
    let missing = || match Image::open(&path(at, 2)) {
        Err(ImageError::MissingBase { base, reason, .. }) => {
            assert_eq!(base, "job-000001");
            reason
        }
        other => panic!("{:?}", other.err()),
    };
    assert!(missing().contains("is not in"));
    assert!(matches!(
        scan(at, None).unwrap()[0].state,
        State::MissingBase(_)
    ));
    let mut other = contents.clone();
    other[5] ^= 1;
    write(at, 1, &other);
    assert!(missing().contains("is another image"));
    std::fs::rename(&away, &base).unwrap();
    check(at, 2, &contents);
}

#[test]
fn a_flipped_bit_in_a_base_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let mut contents = random(1, 2 * MIB);
    write(at, 1, &contents);
    contents[MIB + 5] ^= 1;
    write(at, 2, &contents);
    let mut bytes = std::fs::read(path(at, 1)).unwrap();
    let place = Image::open(&path(at, 1)).unwrap().all_extents()[0].file_offset();
    bytes[place as usize + 99] ^= 4;
    std::fs::write(path(at, 1), bytes).unwrap();
    let error = Image::open(&path(at, 2))
        .unwrap()
        .verify(1, &|_| ())
        .unwrap_err();
    let ImageError::Damaged { path: damaged, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*damaged, path(at, 1));
}

#[test]
fn a_base_that_goes_away_meanwhile_is_carried_over() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let contents = random(1, 3 * MIB);
    write(at, 1, &contents);
    let older = Arc::new(Image::open(&path(at, 1)).unwrap());
    let writer = ImageWriter::create(&path(at, 2), WriteOptions::default())
        .unwrap()
        .based_on(older);
    let runs = [Run {
        offset: 0,
        len: contents.len() as u64,
    }];
    writer.store(OBJECT, &contents, &runs).unwrap();
    std::fs::remove_file(path(at, 1)).unwrap();
    let committed = writer.commit(b"").unwrap();
    assert_eq!(committed.bases, 0);
    check(at, 2, &contents);
}

#[test]
fn one_file_can_be_made_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let mut contents = random(1, 3 * MIB);
    write(at, 1, &contents);
    contents[MIB + 5] ^= 1;
    write(at, 2, &contents);
    let image = Image::open(&path(at, 2)).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let to = elsewhere.path().join("job-000002.ckpt");
    let exported = export(&image, &to, WriteOptions::default(), None).unwrap();
    assert_eq!(exported.bases, 0);
    let exported = Image::open(&to).unwrap();
    holds(&exported, &contents);
    assert_eq!(exported.metadata(), image.metadata());
    assert_eq!(exported.header().created, image.header().created);
}

#[test]
fn encrypted_images_open_with_their_key_only() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let passphrase = at.join("passphrase");
    std::fs::write(&passphrase, "correct horse battery staple").unwrap();
    let secret = Secret::for_passphrase_file(&passphrase).unwrap();
    let mut keys = Keys::none();
    keys.add_passphrase_file(&passphrase).unwrap();
    for compression in [Compression::None, Compression::Lz4] {
        let mut contents = b"password: hunter2 ".repeat(100_000);
        contents.extend(random(1, MIB));
        let (first, second) = (1, 2);
        write_as(at, first, &contents, compression, Some(&secret), &keys).unwrap();
        contents[MIB + 17] ^= 1;
        let committed = write_as(at, second, &contents, compression, Some(&secret), &keys).unwrap();
        assert_eq!(committed.bases, 1);
        assert!(
            committed.file_len < MIB as u64 / 4,
            "{}",
            committed.file_len
        );
        for number in [first, second] {
            let path = path(at, number);
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(7).any(|window| window == b"hunter2"));
            assert!(matches!(Image::open(&path), Err(ImageError::Locked { .. })));
        }
        holds(
            &Image::open_with(&path(at, second), &keys).unwrap(),
            &contents,
        );
        assert!(matches!(
            scan(at, None).unwrap()[1].state,
            State::Complete(_)
        ));
        // An image that is not encrypted does not lean on one that is.
        let plain = path(at, 3);
        let older = Arc::new(Image::open_with(&path(at, second), &keys).unwrap());
        let writer = ImageWriter::create(&plain, WriteOptions::default())
            .unwrap()
            .based_on(older);
        assert_eq!(writer.commit(b"").unwrap().bases, 0);
        for number in 1..=3 {
            std::fs::remove_file(path(at, number)).unwrap();
        }
    }
}
