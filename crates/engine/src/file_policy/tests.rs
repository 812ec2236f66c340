//! What becomes of real files between a checkpoint and a restart.

mod faults;
mod mapped;
mod names;
mod read;
mod unlinked;
mod written;

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
            keep_own: false,
            changed,
            map: PathMap::default(),
            sequence: 7,
            own: Vec::new(),
            held: Vec::new(),
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

/// More than the limit, no two blocks alike.
fn large() -> Vec<u8> {
    (0..(LIMIT + (1 << 20)) / 8)
        .flat_map(u64::to_le_bytes)
        .collect()
}
