//! What becomes of real files between a checkpoint and a restart.

mod faults;
mod mapped;

use super::*;
use crate::EngineError;
use crate::contents::{ContentId, ContentLoader, ContentSink};
use crate::restart::ChangedFiles;
use rustix::fs::{Mode, OFlags, SeekFrom};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

const LIMIT: u64 = 4 << 20;

/// The runs of data of a content: where, and what.
type Runs = Vec<(u64, Vec<u8>)>;

/// An image in memory.
#[derive(Default, Serialize, Deserialize)]
struct Image(Mutex<Vec<Runs>>);

impl Image {
    fn runs(&self, content: ContentId) -> Runs {
        self.0.lock().expect("lock")[content.0 as usize].clone()
    }
    fn count(&self) -> usize {
        self.0.lock().expect("lock").len()
    }
}

impl ContentSink for Image {
    fn store_file(&self, file: &File, len: u64) -> Result<ContentId, EngineError> {
        let mut runs = Vec::new();
        let mut at = 0;
        while at < len {
            let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) else {
                break;
            };
            at = rustix::fs::seek(file, SeekFrom::Hole(start)).expect("a hole at the end");
            let mut bytes = vec![0; (at.min(len) - start) as usize];
            file.read_exact_at(&mut bytes, start).expect("readable");
            runs.push((start, bytes));
        }
        let mut contents = self.0.lock().expect("lock");
        contents.push(runs);
        Ok(ContentId((contents.len() - 1) as u32))
    }
}

impl ContentLoader for Image {
    fn load_into(&self, content: ContentId, file: &File) -> Result<(), EngineError> {
        for (at, bytes) in self.runs(content) {
            file.write_all_at(&bytes, at)
                .map_err(|source| EngineError::System {
                    what: "loading".into(),
                    source,
                })?;
        }
        Ok(())
    }
    fn matches(&self, content: ContentId, file: &File, len: u64) -> Result<bool, EngineError> {
        let mut saved = vec![0; len as usize];
        for (at, bytes) in self.runs(content) {
            let Some(room) = (len as usize).checked_sub(at as usize) else {
                continue;
            };
            let n = bytes.len().min(room);
            saved[at as usize..at as usize + n].copy_from_slice(&bytes[..n]);
        }
        let mut found = vec![0; len as usize];
        Ok(file.read_exact_at(&mut found, 0).is_ok() && found == saved)
    }
}

const READ: Uses = Uses {
    read: true,
    written: false,
    mapped: false,
    mapped_shared_writable: false,
};
const WRITE: Uses = Uses {
    read: false,
    written: true,
    ..READ
};
const NAMED: Uses = Uses {
    read: false,
    ..READ
};

fn link(file: &File) -> Vec<u8> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::read_link(path)
        .expect("a link")
        .as_os_str()
        .as_bytes()
        .to_vec()
}

/// A directory, an image, and what a checkpoint has put into it.
struct World {
    dir: tempfile::TempDir,
    image: Image,
    records: Vec<FileRecord>,
}

impl World {
    fn new() -> World {
        World {
            dir: tempfile::tempdir().expect("a directory"),
            image: Image::default(),
            records: Vec::new(),
        }
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// A file whose time stamp is old, so that the checkpoint believes it.
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.at(name);
        fs::write(&path, bytes).expect("writable");
        age(&path);
        path
    }
    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
    /// A world in which `name` was open for writing at the checkpoint.
    fn with_written(name: &str, bytes: &[u8]) -> World {
        let mut world = World::new();
        let path = world.write(name, bytes);
        world.checkpoint(&[(&open_rw(&path), WRITE)]);
        world
    }
    fn with_read(name: &str, bytes: &[u8]) -> World {
        let mut world = World::new();
        let path = world.write(name, bytes);
        world.checkpoint(&[(&File::open(path).expect("open"), READ)]);
        world
    }
    /// A checkpoint, taken long after the files were written.
    fn checkpoint(&mut self, open: &[(&File, Uses)]) -> Vec<FileIndex> {
        self.checkpoint_with(later(), open)
    }
    fn checkpoint_with(&mut self, collector: Collector, open: &[(&File, Uses)]) -> Vec<FileIndex> {
        let indexes = open
            .iter()
            .map(|(file, uses)| {
                collector
                    .descriptor(file.as_fd(), Some(&link(file)), *uses)
                    .expect("can be saved")
            })
            .collect();
        collector.store(&self.image).expect("stored");
        self.records = collector.finish();
        indexes
    }
    fn plan_with(&self, changed: ChangedFiles) -> FilePlan {
        let options = PlanOptions {
            changed,
            map: PathMap::default(),
            sequence: 7,
            own: Vec::new(),
        };
        plan(&self.records, &options, &self.image)
    }
    fn plan(&self) -> FilePlan {
        self.plan_with(ChangedFiles::Refuse)
    }
    fn restart(&self) -> ReadyFiles {
        let plan = self.plan();
        assert_eq!(plan.problems, [], "{:?}", plan.actions);
        apply(&plan, &self.records, &self.image).expect("applied")
    }
    /// The only problem of a plan, as text.
    fn problem(&self, changed: ChangedFiles) -> String {
        let plan = self.plan_with(changed);
        assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
        assert!(apply(&plan, &self.records, &self.image).is_err());
        plan.problems[0].to_string()
    }
    fn names(&self) -> Vec<String> {
        names_in(self.dir.path())
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

fn open_rw(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("open")
}

fn append(path: &Path, bytes: &[u8]) {
    let file = OpenOptions::new().append(true).open(path).expect("open");
    io::Write::write_all(&mut &file, bytes).expect("writable");
}

fn age(path: &Path) {
    let old = SystemTime::now() - Duration::from_secs(3600);
    set_time(path, old);
}

fn set_time(path: &Path, time: SystemTime) {
    open_rw(path).set_modified(time).expect("set the time");
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().expect("stat").modified().expect("a time")
}

/// A collector for a checkpoint in an hour: the time of the last change of an inode cannot be set back.
fn later() -> Collector {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Collector::at(LIMIT, now.expect("after 1970").as_secs() as i64 + 3600)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn what_is_the_same_is_used() {
    let world = World::with_written("out", b"abc");
    let ready = world.restart();
    assert!(ready.open(FileIndex(0), OFlags::RDWR).is_ok());
    assert_eq!(world.names(), ["out"]);
    assert!(world.plan().actions[0].contains("as it is (3 bytes)"));
}

#[test]
fn growth_is_cut_off_and_kept() {
    let world = World::with_written("out", b"abc");
    let before = modified(&world.at("out"));
    append(&world.at("out"), b"defg");
    let plan = world.plan();
    assert!(
        plan.actions[0].contains("from 7 to 3 bytes, and keeps the 4 cut bytes in"),
        "{:?}",
        plan.actions
    );
    assert_eq!(world.read("out"), b"abcdefg", "a plan touches nothing");
    world.restart();
    assert_eq!(world.read("out"), b"abc");
    assert_eq!(world.read("out.stasis-cut-000007-at-3"), b"defg");
    assert_eq!(modified(&world.at("out")), before);
    assert_eq!(world.names(), ["out", "out.stasis-cut-000007-at-3"]);
}

#[test]
fn one_image_restarts_again_and_again() {
    let world = World::with_written("out", b"abc");
    for _ in 0..3 {
        append(&world.at("out"), b"same");
        world.restart();
        assert_eq!(world.read("out"), b"abc");
    }
    assert_eq!(
        world.names().len(),
        2,
        "the same bytes are not kept twice: {:?}",
        world.names()
    );
    append(&world.at("out"), b"other");
    world.restart();
    assert_eq!(world.read("out.stasis-cut-000007-at-3"), b"same");
    assert_eq!(world.read("out.stasis-cut-000007-at-3-2"), b"other");
    assert_eq!(world.read("out"), b"abc");
}

#[test]
fn a_change_in_place_is_undone_and_the_changed_file_kept() {
    let world = World::new();
    let path = world.write("out", b"abc");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    let mut world = world;
    world.checkpoint(&[(&open_rw(&path), WRITE)]);
    let before = modified(&path);
    for changed in [&b"aXc"[..], b"aXcdef"] {
        fs::write(&path, changed).expect("writable");
        world.restart();
        assert_eq!(world.read("out"), b"abc");
    }
    assert_eq!(world.read("out.stasis-changed-000007"), b"aXc");
    assert_eq!(world.read("out.stasis-changed-000007-2"), b"aXcdef");
    let metadata = path.metadata().expect("stat");
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_eq!(metadata.nlink(), 1);
    assert_eq!(modified(&path), before);
    fs::write(&path, b"aXc").expect("writable");
    world.restart();
    assert_eq!(
        world.names().len(),
        3,
        "the same bytes are not kept twice: {:?}",
        world.names()
    );
}

#[test]
fn a_change_behind_an_old_time_stamp_is_noticed() {
    let world = World::with_written("out", b"abc");
    assert!(world.records[0].times_tell);
    let before = modified(&world.at("out"));
    fs::write(world.at("out"), b"aXc").expect("writable");
    set_time(&world.at("out"), before);
    world.restart();
    assert_eq!(world.read("out"), b"abc");
}

#[test]
fn young_time_stamps_and_shared_mappings_do_not_tell() {
    let mut world = World::new();
    let file = open_rw(&world.write("out", b"abc"));
    let mapped = Uses {
        mapped_shared_writable: true,
        ..WRITE
    };
    let cases = [
        (later(), WRITE, true),
        (later(), mapped, false),
        (Collector::new(LIMIT), WRITE, false),
    ];
    for (collector, uses, tell) in cases {
        world.checkpoint_with(collector, &[(&file, uses)]);
        assert_eq!(world.records[0].times_tell, tell);
    }
}

#[test]
fn what_was_truncated_comes_back() {
    let world = World::with_written("out", b"abcdef");
    fs::write(world.at("out"), b"ab").expect("writable");
    world.restart();
    assert_eq!(world.read("out"), b"abcdef");
    assert_eq!(
        world.names(),
        ["out"],
        "nothing was there that the image has not"
    );
    fs::write(world.at("out"), b"xy").expect("writable");
    world.restart();
    assert_eq!(world.read("out"), b"abcdef");
    assert_eq!(world.read("out.stasis-changed-000007"), b"xy");
}

#[test]
fn what_was_deleted_comes_back() {
    let world = World::with_written("out", b"abc");
    fs::remove_file(world.at("out")).expect("unlink");
    assert!(world.plan().actions[0].contains("which is gone"));
    world.restart();
    assert_eq!(world.read("out"), b"abc");
    assert_eq!(world.names(), ["out"]);
}

#[test]
fn another_file_under_the_name_is_kept_beside() {
    let world = World::with_written("out", b"abc");
    world.write("new", b"something else");
    fs::rename(world.at("new"), world.at("out")).expect("rename");
    world.restart();
    assert_eq!(world.read("out"), b"abc");
    assert_eq!(world.read("out.stasis-changed-000007"), b"something else");
}

#[test]
fn a_copy_with_the_same_contents_is_used() {
    let world = World::with_written("out", b"abc");
    fs::copy(world.at("out"), world.at("copy")).expect("copy");
    fs::rename(world.at("copy"), world.at("out")).expect("rename");
    world.restart();
    assert_eq!(world.names(), ["out"]);
}

#[test]
fn every_problem_is_listed_at_once() {
    let mut world = World::new();
    fs::create_dir(world.at("sub")).expect("mkdir");
    let names = ["sub/written", "gone", "grown", "turned"];
    let files: Vec<File> = names
        .iter()
        .map(|name| open_rw(&world.write(name, b"abc")))
        .collect();
    let uses = [WRITE, READ, READ, WRITE];
    let open: Vec<(&File, Uses)> = files.iter().zip(uses).collect();
    world.checkpoint(&open);
    fs::remove_dir_all(world.at("sub")).expect("rm");
    fs::remove_file(world.at("gone")).expect("rm");
    append(&world.at("grown"), b"x");
    fs::remove_file(world.at("turned")).expect("rm");
    fs::create_dir(world.at("turned")).expect("mkdir");
    let plan = world.plan();
    let text: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 4, "{text:#?}");
    assert!(
        text[0].contains("its directory") && text[0].contains("mkdir -p"),
        "{}",
        text[0]
    );
    assert!(text[1].contains("it is missing"), "{}", text[1]);
    assert!(
        text[2].contains("has grown") && text[2].contains("--changed-files accept"),
        "{}",
        text[2]
    );
    assert!(text[3].contains("is a directory now"), "{}", text[3]);
    let accepting = world.plan_with(ChangedFiles::Accept);
    assert_eq!(
        accepting.problems.len(),
        3,
        "only the changed one can be accepted"
    );
    assert!(
        accepting
            .actions
            .iter()
            .any(|action| action.contains("accepted by option"))
    );
}

/// More than the limit, no two blocks alike.
fn large() -> Vec<u8> {
    (0..(LIMIT + (1 << 20)) / 8)
        .flat_map(u64::to_le_bytes)
        .collect()
}

#[test]
fn above_the_limit_growth_is_told_from_change() {
    let bytes = large();
    let len = bytes.len() as u64;
    let world = World::with_written("out", &bytes);
    let path = world.at("out");
    assert_eq!(world.records[0].evidence.stored, None);
    append(&path, b"more");
    assert!(world.plan().actions[0].contains("judged by samples"));
    world.restart();
    assert_eq!(path.metadata().expect("stat").len(), len);
    assert_eq!(
        world.read(&format!("out.stasis-cut-000007-at-{len}")),
        b"more"
    );
    world.restart();
    // In the last MiB, which is hashed whole.
    open_rw(&path)
        .write_all_at(b"!", len - 12345)
        .expect("writable");
    let text = world.problem(ChangedFiles::Refuse);
    assert!(
        text.contains("changed in place") && text.contains("--changed-files accept"),
        "{text}"
    );
    let accepting = world.plan_with(ChangedFiles::Accept);
    assert_eq!(accepting.problems, []);
    apply(&accepting, &world.records, &world.image).expect("applied");
    open_rw(&path).set_len(len - 1).expect("truncated");
    assert!(world.problem(ChangedFiles::Refuse).contains("shorter"));
    fs::remove_file(&path).expect("unlink");
    assert!(
        world
            .problem(ChangedFiles::Accept)
            .contains("it is missing")
    );
}

#[test]
fn above_the_limit_a_write_that_no_sample_shows_is_not_trusted() {
    let bytes = large();
    let world = World::with_written("out", &bytes);
    // Between two samples.
    open_rw(&world.at("out"))
        .write_all_at(b"!", (64 << 10) + (5 << 10))
        .expect("writable");
    assert!(
        world
            .problem(ChangedFiles::Refuse)
            .contains("samples show no change")
    );
}

#[test]
fn a_file_is_stored_once_however_often_it_is_open() {
    let mut world = World::new();
    let path = world.write("out", b"abc");
    fs::hard_link(&path, world.at("other")).expect("link");
    let files = [
        File::open(&path).expect("open"),
        open_rw(&path),
        OpenOptions::new()
            .append(true)
            .open(world.at("other"))
            .expect("open"),
    ];
    let indexes = world.checkpoint(&[(&files[0], READ), (&files[1], WRITE), (&files[2], WRITE)]);
    assert_eq!(indexes, [FileIndex(0); 3]);
    assert_eq!(world.image.count(), 1);
    assert!(world.records[0].uses.read && world.records[0].uses.written);
}

#[test]
fn a_deleted_file_comes_back_without_a_name() {
    let mut world = World::new();
    let path = world.write("scratch", b"abc");
    let file = open_rw(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("chmod");
    fs::remove_file(&path).expect("unlink");
    world.write("scratch", b"somebody else's");
    world.checkpoint(&[(&file, WRITE)]);
    assert_eq!(world.records[0].presence, Presence::Unlinked);
    let mut ready = world.restart();
    ready.raise(500).expect("moved");
    let reader = File::from(ready.open(FileIndex(0), OFlags::RDONLY).expect("open"));
    let writer = File::from(ready.open(FileIndex(0), OFlags::WRONLY).expect("open"));
    ready.finish();
    writer.write_all_at(b"X", 1).expect("writable");
    let mut found = [0; 3];
    reader.read_exact_at(&mut found, 0).expect("readable");
    assert_eq!(&found, b"aXc");
    let metadata = reader.metadata().expect("stat");
    assert_eq!(
        (metadata.nlink(), metadata.mode() & 0o777, metadata.len()),
        (0, 0o400, 3)
    );
    assert!(link(&reader).starts_with(world.dir.path().as_os_str().as_bytes()));
    assert_eq!(world.names(), ["scratch"]);
    assert_eq!(world.read("scratch"), b"somebody else's");
}

#[test]
fn a_deleted_file_whose_directory_is_gone_comes_back_elsewhere() {
    let mut world = World::new();
    fs::create_dir(world.at("sub")).expect("mkdir");
    let path = world.write("sub/scratch", b"abc");
    let file = open_rw(&path);
    fs::remove_file(&path).expect("unlink");
    world.checkpoint(&[(&file, WRITE)]);
    fs::remove_dir(world.at("sub")).expect("rmdir");
    let ready = world.restart();
    assert_eq!(read_all(&ready, 0), b"abc");
}

fn read_all(ready: &ReadyFiles, index: u32) -> Vec<u8> {
    let mut file = File::from(ready.open(FileIndex(index), OFlags::RDONLY).expect("open"));
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut file, &mut bytes).expect("readable");
    bytes
}

#[test]
fn a_deleted_file_is_stored_above_the_limit_too() {
    let mut world = World::new();
    let bytes = large();
    let path = world.write("scratch", &bytes);
    let file = open_rw(&path);
    fs::remove_file(&path).expect("unlink");
    world.checkpoint(&[(&file, WRITE)]);
    assert!(read_all(&world.restart(), 0) == bytes);
}

#[test]
fn a_file_made_without_a_name_comes_back() {
    let mut world = World::new();
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let file = match rustix::fs::open(world.dir.path(), flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => File::from(fd),
        Err(error) => return eprintln!("skipped: no O_TMPFILE here: {error}"),
    };
    file.write_all_at(b"abc", 0).expect("writable");
    world.checkpoint(&[(&file, WRITE)]);
    let ready = world.restart();
    let again = File::from(
        ready
            .open(FileIndex(0), flags)
            .expect("the flags that fdinfo tells"),
    );
    assert_eq!(again.metadata().expect("stat").nlink(), 0);
    assert_eq!(read_all(&ready, 0), b"abc");
}

#[test]
fn a_file_whose_other_name_is_not_found_is_refused_for_writing_and_copied_for_reading() {
    let mut world = World::new();
    fs::create_dir(world.at("sub")).expect("mkdir");
    let path = world.write("out", b"abc");
    let file = open_rw(&path);
    fs::hard_link(&path, world.at("sub/other")).expect("link");
    fs::remove_file(&path).expect("unlink");
    let collector = Collector::new(LIMIT);
    let refused = collector.descriptor(file.as_fd(), Some(&link(&file)), WRITE);
    assert!(
        refused
            .expect_err("refused")
            .reason
            .contains("was not found")
    );
    world.checkpoint(&[(&file, READ)]);
    fs::write(world.at("sub/other"), b"changed").expect("writable");
    assert_eq!(read_all(&world.restart(), 0), b"abc");
}

#[test]
fn a_symbolic_link_is_followed_and_stays() {
    let mut world = World::new();
    let path = world.write("data", b"abc");
    std::os::unix::fs::symlink(&path, world.at("link")).expect("symlink");
    world.checkpoint(&[(&open_rw(&world.at("link")), WRITE)]);
    // The data are moved to another disk, say, and a link is left.
    fs::rename(&path, world.at("moved")).expect("rename");
    std::os::unix::fs::symlink("moved", &path).expect("symlink");
    fs::write(world.at("moved"), b"changed").expect("writable");
    world.restart();
    assert!(path.symlink_metadata().expect("stat").is_symlink());
    assert_eq!(world.read("moved"), b"abc");
    assert_eq!(world.read("moved.stasis-changed-000007"), b"changed");
}

#[test]
fn names_are_bytes() {
    let mut world = World::new();
    let path = world.dir.path().join(OsStr::from_bytes(b"\xff\n\x80"));
    fs::write(&path, b"abc").expect("writable");
    world.checkpoint(&[(&open_rw(&path), WRITE)]);
    append(&path, b"d");
    world.restart();
    assert_eq!(fs::read(&path).expect("readable"), b"abc");
    let kept = world
        .dir
        .path()
        .join(OsStr::from_bytes(b"\xff\n\x80.stasis-cut-000007-at-3"));
    assert_eq!(fs::read(kept).expect("readable"), b"d");
}

#[test]
fn a_path_longer_than_a_page_is_refused() {
    let world = World::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let name = "d".repeat(250);
    let mut at = rustix::fs::open(world.dir.path(), flags, Mode::empty()).expect("open");
    for _ in 0..20 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).expect("mkdir");
        at = rustix::fs::openat(&at, &name, flags, Mode::empty()).expect("open");
    }
    let making = OFlags::CREATE | OFlags::RDWR;
    let file = rustix::fs::openat(&at, "out", making, Mode::RWXU).expect("create");
    let text = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let error = text.expect_err("too long").raw_os_error();
    assert_eq!(error, Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()));
    let refused = Collector::new(LIMIT).descriptor(file.as_fd(), None, WRITE);
    let reason = refused.expect_err("refused").reason;
    assert!(reason.contains("longer than 4096 bytes"), "{reason}");
}

#[test]
fn the_longest_name_has_room_for_what_is_kept() {
    let name = "n".repeat(255);
    let world = World::with_written(&name, b"abc");
    fs::write(world.at(&name), b"changed").expect("writable");
    world.restart();
    assert_eq!(world.read(&name), b"abc");
    let kept = world
        .names()
        .into_iter()
        .find(|name| name.ends_with(".stasis-changed-000007"));
    assert_eq!(world.read(&kept.expect("a kept file")), b"changed");
}

#[test]
fn holes_stay_holes() {
    let mut world = World::new();
    let path = world.at("sparse");
    let file = File::create(&path).expect("create");
    file.set_len(1 << 30).expect("holes");
    file.write_all_at(b"abc", 512 << 20).expect("writable");
    let collector = Collector::new(2 << 30);
    collector
        .descriptor(file.as_fd(), Some(&link(&file)), WRITE)
        .expect("can be saved");
    collector.store(&world.image).expect("stored");
    world.records = collector.finish();
    fs::remove_file(&path).expect("unlink");
    world.restart();
    let metadata = path.metadata().expect("stat");
    assert_eq!(metadata.len(), 1 << 30);
    assert!(
        metadata.blocks() * 512 < 1 << 20,
        "{} blocks",
        metadata.blocks()
    );
    // And what is cut off keeps its holes as well.
    let file = open_rw(&path);
    file.set_len(2 << 30).expect("longer");
    drop(file);
    world.records[0].evidence.stored = None;
    world.records[0].evidence.fingerprint =
        Fingerprint::take(&open_rw(&path), 1 << 30, Sampling::WRITTEN).expect("readable");
    world.restart();
    let kept = world
        .at("sparse.stasis-cut-000007-at-1073741824")
        .metadata()
        .expect("kept");
    assert_eq!(kept.len(), 1 << 30);
    assert!(kept.blocks() * 512 < 1 << 20, "{} blocks", kept.blocks());
}

#[test]
fn a_file_that_is_read_may_be_touched_or_copied_but_not_changed() {
    let world = World::with_read("in", b"abc");
    let path = world.at("in");
    let stamp = modified(&path);
    set_time(&path, SystemTime::now());
    world.restart();
    fs::write(world.at("copy"), b"abc").expect("writable");
    fs::rename(world.at("copy"), &path).expect("rename");
    world.restart();
    fs::write(&path, b"aXc").expect("writable");
    set_time(&path, stamp);
    let text = world.problem(ChangedFiles::Refuse);
    assert!(
        text.contains("it was changed since the checkpoint"),
        "{text}"
    );
    assert_eq!(world.plan_with(ChangedFiles::Accept).problems, []);
    assert_eq!(world.names(), ["in"]);
    assert_eq!(
        world.read("in"),
        b"aXc",
        "what is only read is never put back"
    );
}

#[test]
fn a_name_alone_has_to_exist_and_no_more() {
    let mut world = World::new();
    let path = world.write("named", b"abc");
    let file = File::from(rustix::fs::open(&path, OFlags::PATH, Mode::empty()).expect("open"));
    world.checkpoint(&[(&file, NAMED)]);
    fs::write(&path, b"changed").expect("writable");
    let ready = world.restart();
    assert!(ready.open(FileIndex(0), OFlags::PATH).is_ok());
    fs::remove_file(&path).expect("unlink");
    assert!(
        world
            .problem(ChangedFiles::Accept)
            .contains("it is missing")
    );
}

#[test]
fn files_are_found_under_their_new_prefix() {
    let world = World::with_written("out", b"abc");
    let other = tempfile::tempdir().expect("a directory");
    fs::write(other.path().join("out"), b"abcd").expect("writable");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let options = PlanOptions {
        changed: ChangedFiles::Refuse,
        map: PathMap::new(&[(text(world.dir.path()), text(other.path()))]),
        sequence: 8,
        own: Vec::new(),
    };
    let plan = plan(&world.records, &options, &world.image);
    apply(&plan, &world.records, &world.image).expect("applied");
    assert_eq!(
        names_in(other.path()),
        ["out", "out.stasis-cut-000008-at-3"]
    );
    assert_eq!(world.names(), ["out"]);
}

#[test]
fn permissions_that_are_missing_are_told() {
    if is_root() {
        return eprintln!("skipped: root may do everything; run as an ordinary user");
    }
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let world = World::with_written("out", b"abc");
    chmod(&world.at("out"), 0o400);
    assert!(
        world
            .problem(ChangedFiles::Accept)
            .contains("opened for writing")
    );
    chmod(&world.at("out"), 0o600);
    append(&world.at("out"), b"d");
    chmod(world.dir.path(), 0o500);
    let text = world.problem(ChangedFiles::Refuse);
    chmod(world.dir.path(), 0o700);
    assert!(
        text.contains("no file can be made in") && text.contains("chmod u+w"),
        "{text}"
    );
    let world = World::with_read("in", b"abc");
    chmod(&world.at("in"), 0o000);
    assert!(
        world
            .problem(ChangedFiles::Refuse)
            .contains("opened for reading")
    );
    // At the checkpoint: open, but not to be opened again.
    let file = OpenOptions::new()
        .write(true)
        .open(World::with_written("x", b"").write_only())
        .expect("open");
    let collector = Collector::new(LIMIT);
    let refused = collector.descriptor(file.as_fd(), Some(&link(&file)), WRITE);
    assert!(refused.expect_err("refused").hint.contains("chmod u+r"));
}

impl World {
    fn write_only(self) -> PathBuf {
        let path = self.dir.keep().join("x");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o200)).expect("chmod");
        path
    }
}

#[test]
fn reading_through_the_programs_own_description_leaves_its_offset() {
    if is_root() {
        return eprintln!("skipped: root may do everything; run as an ordinary user");
    }
    let mut world = World::new();
    let path = world.write("out", b"abcdef");
    let file = open_rw(&path);
    rustix::fs::seek(&file, SeekFrom::Start(4)).expect("seek");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("chmod");
    world.checkpoint(&[(&file, WRITE)]);
    assert_eq!(rustix::fs::tell(&file).expect("tell"), 4);
    assert_eq!(world.image.runs(ContentId(0)), [(0, b"abcdef".to_vec())]);
}

#[test]
fn a_file_that_somebody_works_on_is_not_changed() {
    let world = World::with_written("out", b"abc");
    append(&world.at("out"), b"d");
    let writer = open_rw(&world.at("out"));
    let text = world.problem(ChangedFiles::Refuse);
    assert!(text.contains("has it open for writing"), "{text}");
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).expect("lock");
    let text = world.problem(ChangedFiles::Refuse);
    assert!(text.contains("holds a lock on it"), "{text}");
    let accepting = world.plan_with(ChangedFiles::Accept);
    assert_eq!(accepting.problems, []);
    apply(&accepting, &world.records, &world.image).expect("applied");
    assert_eq!(world.read("out"), b"abcd", "accepted as it is");
    drop(writer);
    world.restart();
    assert_eq!(world.read("out"), b"abc");
}

#[test]
fn a_change_after_the_plan_stops_the_restart() {
    let world = World::with_written("out", b"abc");
    append(&world.at("out"), b"d");
    let plan = world.plan();
    append(&world.at("out"), b"e");
    let error = apply(&plan, &world.records, &world.image).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("while the restart was on its way"),
        "{error}"
    );
    assert_eq!(world.read("out"), b"abcde");
    assert_eq!(world.names(), ["out"]);
    let ready = world.restart();
    fs::copy(world.at("out"), world.at("copy")).expect("copy");
    fs::rename(world.at("copy"), world.at("out")).expect("rename");
    assert!(ready.open(FileIndex(0), OFlags::RDONLY).is_err());
}
