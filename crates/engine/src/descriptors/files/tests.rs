//! Descriptions of real files of this process, captured as if it were the program, and opened again.

use super::*;
use crate::contents::{ContentId, ContentLoader, ContentSink};
use crate::descriptors::ProcessView;
use crate::descriptors::fdinfo::FdInfo;
use crate::file_policy::{Collector, PlanOptions, ReadyFiles, apply, plan as plan_files};
use crate::restart::ChangedFiles;
use rustix::fs::{fcntl_getfl, tell};
use rustix::io::FdFlags;
use stasis_sys::Pid;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

/// Whole contents, in memory.
#[derive(Default)]
struct Image(Mutex<Vec<Vec<u8>>>);

impl ContentSink for Image {
    fn store_file(&self, file: &File, len: u64) -> Result<ContentId, EngineError> {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).expect("readable");
        let mut contents = self.0.lock().expect("lock");
        contents.push(bytes);
        Ok(ContentId((contents.len() - 1) as u32))
    }
}

impl ContentLoader for Image {
    fn load_into(&self, content: ContentId, file: &File) -> Result<(), EngineError> {
        let contents = self.0.lock().expect("lock");
        file.write_all_at(&contents[content.0 as usize], 0)
            .expect("writable");
        Ok(())
    }
    fn matches(&self, content: ContentId, file: &File, len: u64) -> Result<bool, EngineError> {
        let mut found = vec![0; len as usize];
        let contents = self.0.lock().expect("lock");
        let saved = &contents[content.0 as usize];
        Ok(file.read_exact_at(&mut found, 0).is_ok() && saved.starts_with(&found))
    }
}

/// This process, as a program of one process.
pub(in crate::descriptors) fn this_process() -> ProcessView {
    ProcessView {
        pid: Pid::current(),
        virtual_pid: Pid(4242),
        name: "test".into(),
    }
}

/// What a look at a descriptor of this process finds.
pub(in crate::descriptors) fn found<'a>(process: &'a ProcessView, fd: BorrowedFd<'_>) -> Found<'a> {
    let number = fd.as_raw_fd();
    Found {
        process,
        fd: number,
        link: fs::read_link(format!("/proc/self/fd/{number}"))
            .map_or_else(|_| OsString::new(), PathBuf::into_os_string),
        info: FdInfo::read(process.pid, number).expect("fdinfo"),
        stat: fstat(fd).expect("fstat"),
        earlier: None,
        holders: vec![(0, number)],
    }
}

/// Saves some descriptors.
fn save(files: &[&File], image: &Image) -> (Vec<State>, Vec<crate::file_policy::FileRecord>) {
    let collector = Collector::new(1 << 20);
    let process = [this_process()];
    let ctx = CaptureContext {
        processes: &process,
        stdio: &[None, None, None],
        inherited: &[],
        contents: Some(image),
        file_content_limit: 1 << 20,
        files: &collector,
    };
    let capture = |file: &&File| {
        capture_handle(&found(&process[0], file.as_fd()), file.as_fd(), &ctx).expect("can be saved")
    };
    let states = files.iter().map(capture).collect();
    collector.store(image).expect("stored");
    (states, collector.finish())
}

fn context<'a>(image: &'a Image, files: Option<&'a ReadyFiles>) -> RestoreContext<'a> {
    RestoreContext {
        contents: image,
        files,
        first_free: 0,
        stdio: &[None, None, None],
        inherited: &[],
        terminal: None,
        path_map: &[],
        clocks: None,
        own_mounts: false,
        changed_files: ChangedFiles::Refuse,
    }
}

/// Saves some descriptors, closes them, lets `between` happen, and opens them again.
fn again(files: Vec<File>, between: impl FnOnce()) -> Result<Vec<File>, EngineError> {
    let image = Image::default();
    let (states, records) = save(&files.iter().collect::<Vec<_>>(), &image);
    drop(files);
    between();
    let options = PlanOptions {
        changed: ChangedFiles::Refuse,
        map: PathMap::default(),
        sequence: 1,
        own: Vec::new(),
        held: Vec::new(),
    };
    let plan = plan_files(&records, &options, &image);
    let ready = apply(&plan, &records, &image)?;
    let ctx = context(&image, Some(&ready));
    states
        .iter()
        .map(|state| open_in(state, &ctx).map(File::from))
        .collect()
}

fn directory_with(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    fs::write(&path, bytes).expect("writable");
    (dir, path)
}

#[test]
fn offset_and_flags_come_back() {
    let (_dir, path) = directory_with("out", b"abcdef");
    let flags = [
        OFlags::RDONLY,
        OFlags::WRONLY | OFlags::APPEND,
        OFlags::RDWR | OFlags::SYNC | OFlags::NOATIME,
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::TRUNC.difference(OFlags::TRUNC),
        OFlags::PATH,
    ];
    let opened = |flags: &OFlags| {
        let file = File::from(open(&path, *flags, Mode::empty()).expect("open"));
        if !flags.contains(OFlags::PATH) {
            seek(&file, SeekFrom::Start(5)).expect("seek");
        }
        file
    };
    let files: Vec<File> = flags.iter().map(opened).collect();
    let before: Vec<OFlags> = files
        .iter()
        .map(|file| fcntl_getfl(file).expect("flags"))
        .collect();
    let restored = again(files, || {}).expect("restored");
    for ((file, before), flags) in restored.iter().zip(before).zip(flags) {
        assert_eq!(fcntl_getfl(file).expect("flags"), before);
        if !flags.contains(OFlags::PATH) {
            assert_eq!(tell(file).expect("tell"), 5);
        }
        let cloexec = rustix::io::fcntl_getfd(file).expect("flags");
        assert!(cloexec.contains(FdFlags::CLOEXEC));
    }
}

#[test]
fn a_file_opened_to_be_truncated_is_not_truncated_again() {
    let (_dir, path) = directory_with("out", b"");
    let file = File::create(&path).expect("create");
    file.write_all_at(b"abc", 0).expect("writable");
    seek(&file, SeekFrom::Start(3)).expect("seek");
    let restored = again(vec![file], || {}).expect("restored");
    assert_eq!(fs::read(&path).expect("readable"), b"abc");
    assert_eq!(tell(&restored[0]).expect("tell"), 3);
}

#[test]
fn appending_goes_on_where_the_checkpoint_was() {
    let (_dir, path) = directory_with("log", b"one\n");
    let file = OpenOptions::new().append(true).open(&path).expect("open");
    let grow = || {
        let file = OpenOptions::new().append(true).open(&path).expect("open");
        std::io::Write::write_all(&mut &file, b"lost\n").expect("writable");
    };
    let restored = again(vec![file], grow).expect("restored");
    std::io::Write::write_all(&mut &restored[0], b"two\n").expect("writable");
    assert_eq!(fs::read(&path).expect("readable"), b"one\ntwo\n");
}

#[test]
fn direct_access_comes_back() {
    let (_dir, path) = directory_with("out", &[7; 8192]);
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(&path);
    let Ok(file) = direct else {
        return eprintln!("skipped: no O_DIRECT in {}", path.display());
    };
    let restored = again(vec![file], || {}).expect("restored");
    assert!(
        fcntl_getfl(&restored[0])
            .expect("flags")
            .contains(OFlags::DIRECT)
    );
}

#[test]
fn locks_of_descriptions_come_back_and_others_are_told_of() {
    let (_dir, path) = directory_with("db", b"abc");
    let open_rw = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("open")
    };
    let lock = |file: &File| {
        stasis_sys::lock::set_description(
            file,
            stasis_sys::lock::Access::Write,
            stasis_sys::lock::Range { start: 10, len: 0 },
        )
    };
    let file = open_rw();
    lock(&file).expect("free");
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared).expect("free");
    let restored = again(vec![file], || {
        assert!(lock(&open_rw()).is_ok(), "given up meanwhile")
    })
    .expect("restored");
    assert!(lock(&open_rw()).is_err());
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    assert!(rustix::fs::flock(open_rw(), exclusive).is_err());
    let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
    assert!(rustix::fs::flock(open_rw(), shared).is_ok());
    let other = open_rw();
    let taken = || lock(&other).expect("free now");
    let error = again(restored, taken).expect_err("refused").to_string();
    assert!(
        error.contains(path.to_str().expect("UTF-8")) && error.contains("has locked it"),
        "{error}"
    );
}

#[test]
fn windows_into_the_kernel_are_opened_again() {
    let image = Image::default();
    let number = std::process::id();
    let paths = [
        "/proc/meminfo",
        "/proc/self/stat",
        "/proc/thread-self/comm",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ];
    let files: Vec<File> = paths
        .iter()
        .filter_map(|path| File::open(path).ok())
        .collect();
    let (states, records) = save(&files.iter().collect::<Vec<_>>(), &image);
    assert_eq!(records, []);
    let proc = |n: usize| match &states[n].target {
        Target::Proc(state) => state.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(proc(0).process, None);
    assert_eq!(
        (proc(1).path.to_string(), proc(1).process),
        ("/proc/4242/stat".into(), Some(Pid(4242)))
    );
    assert!(
        proc(2).path.to_string().starts_with("/proc/4242/task/"),
        "{:?}",
        proc(2)
    );
    assert!(states[1].is_late() && !states[0].is_late());
    let ctx = context(&image, None);
    let mut planned = Plan::default();
    for (n, state) in states
        .iter()
        .enumerate()
        .filter(|(_, state)| !state.is_late())
    {
        plan(state, &ctx, &mut planned);
        let file = File::from(open_in(state, &ctx).expect("restored"));
        assert_eq!(
            fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("a link"),
            Path::new(paths[n])
        );
    }
    assert!(
        planned.refusals.is_empty() && !planned.actions.is_empty(),
        "{planned:?}"
    );
    // With this process's own number put in, as after a restart.
    let mut state = states[1].clone();
    state.target = Target::Proc(proc::State {
        path: PathBytes(format!("/proc/{number}/stat").into_bytes()),
        process: Some(Pid::current()),
    });
    assert!(restore_late(&state).is_ok());
}

#[test]
fn a_file_of_another_process_is_refused() {
    let file = File::open("/proc/1/stat").expect("open");
    let process = [this_process()];
    let collector = Collector::new(0);
    let ctx = CaptureContext {
        processes: &process,
        stdio: &[None, None, None],
        inherited: &[],
        contents: None,
        file_content_limit: 0,
        files: &collector,
    };
    match capture_handle(&found(&process[0], file.as_fd()), file.as_fd(), &ctx) {
        Err(Obstacle::Refused(refusal)) => {
            assert!(refusal.reason.contains("not part of the job"), "{refusal}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_of_anything_can_be_held() {
    let (dir, path) = directory_with("file", b"abc");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("symlink");
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let held =
        [dir.path(), &link].map(|path| File::from(open(path, flags, Mode::empty()).expect("open")));
    let restored = again(held.into(), || {}).expect("restored");
    let kind = |file: &File| FileType::from_raw_mode(fstat(file).expect("fstat").st_mode);
    assert_eq!(kind(&restored[0]), FileType::Directory);
    assert_eq!(kind(&restored[1]), FileType::Symlink);
    let gone = again(restored, || fs::remove_file(&link).expect("unlink"));
    assert!(gone.expect_err("refused").to_string().contains("link"));
}
