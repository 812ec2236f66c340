//! A disk that is full, a source that fails, a receiver that fails: nothing is left behind, nothing old is touched.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::io;
use std::path::Path;
use std::process::Command;

use stasis_image::{
    Compression, Image, ImageError, ImageWriter, ObjectId, Run, Source, WriteOptions,
};

const OBJECT: ObjectId = ObjectId(0);
const RAW: WriteOptions = WriteOptions {
    compression: Compression::None,
    threads: 2,
};
const MIB: usize = 1 << 20;

fn runs(len: usize) -> [Run; 1] {
    [Run {
        offset: 0,
        len: len as u64,
    }]
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn write(directory: &Path, number: u64, len: usize) -> Result<(), ImageError> {
    let path = directory.join(stasis_image::image_name("job", number));
    let writer = ImageWriter::create(&path, RAW)?;
    // Contents of which nothing is there twice.
    let mut contents = vec![0; len];
    blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut contents);
    writer.store(OBJECT, &contents, &runs(len))?;
    writer.commit(b"").map(|_| ())
}

#[test]
fn a_source_that_fails_is_not_the_fault_of_the_disk() {
    struct Bad;
    impl Source for Bad {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            buffer.fill(1);
            if offset >= 3 * MIB as u64 {
                Err(io::Error::from_raw_os_error(5))
            } else {
                Ok(())
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 1, 100).unwrap();
    let path = directory.path().join("job-000002.ckpt");
    let writer = ImageWriter::create(&path, RAW).unwrap();
    let error = writer.store(OBJECT, &Bad, &runs(8 * MIB)).unwrap_err();
    let ImageError::SourceRead {
        object,
        offset,
        len,
        source,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (*object, *len, source.raw_os_error()),
        (OBJECT, MIB as u64, Some(5))
    );
    assert!(*offset >= 3 * MIB as u64);
    // Such an image cannot be committed by mistake.
    let error = writer.commit(b"").unwrap_err();
    assert!(matches!(error, ImageError::Incomplete { .. }), "{error}");
    assert_eq!(names(directory.path()), ["job-000001.ckpt"]);
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let writer = ImageWriter::create(&directory.path().join("job-000001.ckpt"), RAW).unwrap();
    // Enough for the flusher to run.
    writer
        .store(OBJECT, &vec![1; 70 * MIB], &runs(70 * MIB))
        .unwrap();
    assert_eq!(names(directory.path()), ["job-000001.ckpt.partial"]);
    drop(writer);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn an_existing_image_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 1, 100).unwrap();
    let before = std::fs::read(directory.path().join("job-000001.ckpt")).unwrap();
    assert!(matches!(
        write(directory.path(), 1, 200),
        Err(ImageError::Exists { .. })
    ));

    // Nor one that appears while another is being written.
    let path = directory.path().join("job-000002.ckpt");
    let writer = ImageWriter::create(&path, RAW).unwrap();
    std::fs::write(&path, &before).unwrap();
    assert!(matches!(writer.commit(b""), Err(ImageError::Exists { .. })));
    assert_eq!(
        names(directory.path()),
        ["job-000001.ckpt", "job-000002.ckpt"]
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(
        std::fs::read(directory.path().join("job-000001.ckpt")).unwrap(),
        before
    );
}

#[test]
fn two_writers_of_one_name_are_kept_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job-000001.ckpt");
    let first = ImageWriter::create(&path, RAW).unwrap();
    assert!(matches!(
        ImageWriter::create(&path, RAW),
        Err(ImageError::Busy { .. })
    ));
    first.commit(b"first").unwrap();
    assert_eq!(Image::open(&path).unwrap().metadata(), b"first");
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error = write(Path::new("/nonexistent/directory"), 1, 1)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/directory/job-000001.ckpt.partial"),
        "{error}"
    );
    assert!(error.contains("make the directory first"), "{error}");
}

#[test]
fn a_receiver_that_fails_is_not_damage() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), 1, 4 * MIB).unwrap();
    let image = Image::open(&directory.path().join("job-000001.ckpt")).unwrap();
    let error = image
        .for_each_extent(&[OBJECT], 2, &|_, _| Err(io::ErrorKind::OutOfMemory.into()))
        .unwrap_err();
    assert!(
        matches!(error, ImageError::Sink { object: OBJECT, .. }),
        "{error}"
    );
}

/// Runs one test of this file again, in a shell that has prepared a place for it.
fn again(test: &str, directory: &Path, prepare: &str) -> std::process::Output {
    Command::new("sh")
        .args(["-c", &format!("{prepare} exec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("STASIS_TEST_DIRECTORY", directory)
        .output()
        .unwrap()
}

/// The older image, then one that does not fit.
#[test]
#[ignore = "run by the tests below, in a place that is too small"]
fn in_a_small_place() {
    let directory = std::env::var_os("STASIS_TEST_DIRECTORY").unwrap();
    let directory = Path::new(&directory);
    write(directory, 1, MIB).unwrap();
    let error = write(directory, 2, 8 * MIB).unwrap_err();
    assert!(matches!(error, ImageError::Write { .. }), "{error}");
    println!("message: {error}");
    assert_eq!(names(directory), ["job-000001.ckpt"]);
    let image = Image::open(&directory.join("job-000001.ckpt")).unwrap();
    assert_eq!(image.verify(1, &|_| ()).unwrap().logical_len, MIB as u64);
}

#[test]
fn a_limit_on_file_sizes_leaves_the_older_image() {
    let directory = tempfile::tempdir().unwrap();
    // The signal would end the process; ignored, the write fails. Units of 512 bytes in sh, of 1024 in bash.
    let output = again(
        "in_a_small_place",
        directory.path(),
        "trap '' XFSZ; ulimit -f 4096;",
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("job-000002.ckpt.partial") && text.contains("ulimit -f"),
        "{text}"
    );
}

#[test]
fn a_full_disk_leaves_the_older_image() {
    let namespace = ["-rm", "mount", "-t", "tmpfs", "none", "/mnt"];
    if !Command::new("unshare")
        .args(namespace)
        .output()
        .is_ok_and(|output| output.status.success())
    {
        println!(
            "skipped: no tmpfs can be mounted here (unshare {})",
            namespace.join(" ")
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // The inner shell sees the small file system, nobody else does.
    let inside = "exec unshare -rm sh -c 'mount -t tmpfs -o size=4m none \"$STASIS_TEST_DIRECTORY\" && exec \"$@\"' sh \"$@\";";
    let output = again("in_a_small_place", directory.path(), inside);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("job-000002.ckpt.partial") && text.contains("free some space"),
        "{text}"
    );
}
