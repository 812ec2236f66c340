//! What is stored comes back, whatever its shape.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use proptest::prelude::*;
use stasis_image::limits::{CHUNK, PAGE};
use stasis_image::{
    Compression, Image, ImageError, ImageWriter, ObjectId, Run, Source, StoreJob, WriteOptions,
};

const OBJECT: ObjectId = ObjectId(7);

/// Contents that stand at an address, as those of a process do.
struct At(u64, Vec<u8>);

impl Source for At {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let offset = offset
            .checked_sub(self.0)
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        self.1.read_exact_at(buffer, offset)
    }
}

fn options(compression: Compression, threads: usize) -> WriteOptions {
    WriteOptions {
        compression,
        threads,
    }
}

fn compressions() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::None),
        Just(Compression::Lz4),
        (1..=4).prop_map(Compression::Zstd)
    ]
}

/// Some pages: zero, of one byte, like text, or random.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = (0..4u8, 1..60usize, any::<u64>()).prop_map(|(kind, pages, seed)| {
        let mut bytes = vec![0; pages * PAGE + (seed % 3) as usize * 100];
        match kind {
            0 => {}
            1 => bytes.fill(seed as u8),
            2 => bytes
                .iter_mut()
                .enumerate()
                .for_each(|(i, byte)| *byte = b"the quick brown fox "[i % 20]),
            _ => blake3::Hasher::new()
                .update(&seed.to_le_bytes())
                .finalize_xof()
                .fill(&mut bytes),
        }
        bytes
    });
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_objects_come_back(
        contents in pieces(),
        base in prop_oneof![Just(0u64), Just(0x7fff_ffff_f000), 0..1u64 << 46, Just(u64::MAX - (1 << 24))],
        cuts in proptest::collection::vec((0..1usize << 22, any::<bool>()), 0..6),
        compression in compressions(),
        threads in 1..4usize,
        metadata in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        // Runs: the stretches between the cuts, some of them left out.
        let mut ends: Vec<_> = cuts.iter().map(|(cut, keep)| (cut % (contents.len() + 1), *keep)).collect();
        ends.push((contents.len(), true));
        ends.sort_unstable();
        let (mut runs, mut expected, mut start) = (Vec::new(), vec![0; contents.len()], 0);
        for (end, keep) in ends {
            if keep {
                runs.push(Run { offset: base + start as u64, len: (end - start) as u64 });
                expected[start..end].copy_from_slice(&contents[start..end]);
            }
            start = end;
        }

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job-000001.ckpt");
        let writer = ImageWriter::create(&path, options(compression, threads)).unwrap();
        let stored = writer.store(OBJECT, &At(base, contents), &runs).unwrap();
        prop_assert_eq!(stored.read_len, runs.iter().map(|run| run.len).sum::<u64>());
        prop_assert_eq!(writer.progress().read_len, stored.read_len);
        let committed = writer.commit(&metadata).unwrap();
        prop_assert_eq!(committed.logical_len, stored.logical_len);
        prop_assert_eq!(committed.stored_len, stored.stored_len);
        prop_assert_eq!(committed.file_len, std::fs::metadata(&path).unwrap().len());

        let image = Image::open(&path).unwrap();
        prop_assert_eq!(image.metadata(), &metadata[..]);
        prop_assert_eq!(image.header().extents, stored.extents);
        let restored = Mutex::new(vec![0; expected.len()]);
        let seen = Mutex::new(BTreeMap::new());
        image.for_each_extent(&[OBJECT, OBJECT, ObjectId(1)], threads, &|extent, bytes| {
            assert_eq!(extent.len, bytes.len() as u64);
            assert_eq!(extent.file_offset() % PAGE as u64, 0);
            assert_eq!(extent.offset / CHUNK as u64, (extent.end() - 1) / CHUNK as u64);
            let start = (extent.offset - base) as usize;
            restored.lock().unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
            assert!(seen.lock().unwrap().insert(extent.offset, extent.end()).is_none());
            Ok(())
        }).unwrap();
        prop_assert!(restored.into_inner().unwrap() == expected);
        prop_assert_eq!(seen.into_inner().unwrap().len() as u64, stored.extents);
        let verified = image.verify(threads, &|_| ()).unwrap();
        prop_assert_eq!(verified.logical_len, stored.logical_len);
        if base == 0 {
            prop_assert!(image.read_object(OBJECT, expected.len() as u64).unwrap() == expected);
        }
    }

    #[test]
    fn random_files_are_refused_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000), magic: bool) {
        if magic {
            let len = bytes.len().min(16);
            bytes[..len].copy_from_slice(&b"\x89STASIS\n\x01\0\0\0\0\x10\0\0"[..len]);
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, &bytes).unwrap();
        prop_assert!(Image::open(&path).is_err());
    }
}

#[test]
fn many_objects_from_many_threads() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job-000001.ckpt");
    let writer = ImageWriter::create(&path, options(Compression::Lz4, 3)).unwrap();
    let contents = |object: u32| vec![object as u8 + 1; 100 + object as usize * 997];
    std::thread::scope(|scope| {
        for part in 0..4 {
            let writer = &writer;
            scope.spawn(move || {
                let sources: Vec<_> = (part * 50..(part + 1) * 50)
                    .map(|n| (ObjectId(n), contents(n)))
                    .collect();
                let runs: Vec<_> = sources
                    .iter()
                    .map(|(_, s)| {
                        [Run {
                            offset: 0,
                            len: s.len() as u64,
                        }]
                    })
                    .collect();
                let jobs: Vec<_> = sources
                    .iter()
                    .zip(&runs)
                    .map(|((object, source), runs)| StoreJob {
                        object: *object,
                        source,
                        runs,
                        clean: &[],
                    })
                    .collect();
                let stored = writer.store_all(&jobs).unwrap();
                assert_eq!(stored.extents, 50);
            });
        }
    });
    writer.commit(b"").unwrap();
    let image = Image::open(&path).unwrap();
    for object in 0..200 {
        let expected = contents(object);
        assert_eq!(
            image
                .read_object(ObjectId(object), expected.len() as u64)
                .unwrap(),
            expected
        );
        assert_eq!(image.extents(ObjectId(object)).len(), 1);
    }
    assert_eq!(image.extents(ObjectId(200)), []);
    assert_eq!(image.all_extents().len(), 200);
}

#[test]
fn zeros_cost_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job-000001.ckpt");
    let writer = ImageWriter::create(&path, options(Compression::None, 2)).unwrap();
    let zeros = vec![0; 5 * CHUNK + 17];
    let stored = writer
        .store(
            OBJECT,
            &zeros,
            &[Run {
                offset: 0,
                len: zeros.len() as u64,
            }],
        )
        .unwrap();
    assert_eq!(
        (stored.read_len, stored.stored_len, stored.extents),
        (zeros.len() as u64, 0, 0)
    );
    let committed = writer.commit(b"").unwrap();
    assert!(
        committed.file_len <= 2 * PAGE as u64,
        "{}",
        committed.file_len
    );
    assert_eq!(
        Image::open(&path)
            .unwrap()
            .read_object(OBJECT, zeros.len() as u64)
            .unwrap(),
        zeros
    );
}

#[test]
fn large_metadata_is_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let metadata = b"a memory area, ".repeat(100_000);
    for (compression, smaller) in [(Compression::None, false), (Compression::Zstd(1), true)] {
        let path = directory.path().join(compression.to_string());
        let committed = ImageWriter::create(&path, options(compression, 1))
            .unwrap()
            .commit(&metadata)
            .unwrap();
        assert_eq!(committed.file_len < metadata.len() as u64, smaller);
        assert_eq!(Image::open(&path).unwrap().metadata(), metadata);
    }
}

#[test]
fn only_the_owner_may_read_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job-000001.ckpt");
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    // What a killed writer left behind must not decide.
    let partial = directory.path().join("job-000001.ckpt.partial");
    std::fs::write(&partial, "left behind").unwrap();
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o666)).unwrap();
    let writer = ImageWriter::create(&path, WriteOptions::default()).unwrap();
    assert_eq!(mode(&partial), 0o600);
    writer.commit(b"").unwrap();
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn bytes_stored_twice_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job-000001.ckpt");
    let writer = ImageWriter::create(&path, WriteOptions::default()).unwrap();
    let contents = vec![1; 100];
    writer
        .store(
            OBJECT,
            &contents,
            &[Run { offset: 0, len: 60 }, Run { offset: 59, len: 2 }],
        )
        .unwrap();
    let error = writer.commit(b"").unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Misuse {
                object: OBJECT,
                offset: 59,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn progress_of_a_verification_reaches_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job-000001.ckpt");
    let writer = ImageWriter::create(&path, WriteOptions::default()).unwrap();
    let contents = vec![1; 3 * CHUNK + 5];
    writer
        .store(
            OBJECT,
            &contents,
            &[Run {
                offset: 0,
                len: contents.len() as u64,
            }],
        )
        .unwrap();
    writer.commit(b"").unwrap();
    let told = std::cell::RefCell::new(Vec::new());
    Image::open(&path)
        .unwrap()
        .verify(2, &|done| told.borrow_mut().push(done))
        .unwrap();
    let told = told.into_inner();
    assert!(told.is_sorted());
    assert_eq!(
        (told.len(), told.last()),
        (4, Some(&(contents.len() as u64)))
    );
}
