//! A program to capture, and a process tree to restore into.

pub use crate::parcel::Store;

use crate::parcel::Parcel;
use stasis_engine::descriptors::{
    self, CaptureContext, Captured, Kind, Outside, ProcessView, timerfd,
};
use stasis_engine::file_policy::Collector;
use stasis_engine::tree::{self, Stat};
use stasis_engine::{EngineError, Refusal};
use stasis_sys::{Pid, process, signal};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What every script starts with.
const PRELUDE: &str = r#"
import ctypes, errno, fcntl, os, select, signal, socket, struct, sys, termios, time
libc = ctypes.CDLL(None, use_errno=True)
def at(number, fd, inheritable=True):
    "Moves a descriptor to a number."
    os.dup2(fd, number, inheritable); os.close(fd)
def attempt(call, *args):
    try: return call(*args)
    except OSError as error: return errno.errorcode[error.errno]
def system(number, *args):
    result = libc.syscall(number, *args)
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def child(prepare):
    "Forks a child that has run `prepare`, and holds nothing else, when this returns."
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        # The test may find its parent gone when it cleans up.
        libc.prctl(1, signal.SIGKILL)
        os.close(r); prepare(); os.close(w)
        while True: signal.pause()
    os.close(w); os.read(r, 1); os.close(r)
    return pid
EFD_SEMAPHORE, F_SETPIPE_SZ, F_GETPIPE_SZ, O_DIRECT = 1, 1031, 1032, 0o40000
def eventfd(count, flags=0): return system(290, count, flags)
def signalfd(signals, flags=0):
    mask = ctypes.c_uint64(sum(1 << (s - 1) for s in signals))
    return system(289, -1, ctypes.byref(mask), 8, flags)
def timerfd(clock, flags=0): return system(283, clock, flags)
def timerfd_set(fd, flags, value, interval=0.0):
    spec = (ctypes.c_int64 * 4)(int(interval), int(interval % 1 * 1e9), int(value), int(value % 1 * 1e9))
    system(286, fd, flags, ctypes.byref(spec), None)
def timerfd_get(fd):
    spec = (ctypes.c_int64 * 4)(); system(287, fd, ctypes.byref(spec))
    return spec[2] + spec[3] / 1e9, spec[0] + spec[1] / 1e9
def epoll(): return system(291, 0)
def add(epoll, fd, events, data):
    system(233, epoll, 1, fd, ctypes.byref((ctypes.c_uint32 * 3)(events, data & 0xffffffff, data >> 32)))
def take(epoll, most=16, wait=0):
    buffer = (ctypes.c_uint32 * (3 * most))()
    n = system(232, epoll, ctypes.byref(buffer), most, wait)
    return sorted((buffer[3*i], buffer[3*i+1] | buffer[3*i+2] << 32) for i in range(n))
IN, OUT, ERR, HUP, EXCLUSIVE, ONESHOT, ET = 1, 4, 8, 16, 1 << 28, 1 << 30, 1 << 31
def flags(fd): return fcntl.fcntl(fd, fcntl.F_GETFL)
"#;

/// Held while processes are forked: a copy of this process has all its descriptors, those of other tests among them, and
/// a file that is open for writing is one that a restart will not change.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static FORKING: Mutex<()> = Mutex::new(());
    FORKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A script that always has a last word: whoever reads its answers holds their other end too, and sees no end of them.
fn guarded(body: &str) -> String {
    let body = body.replace('\n', "\n    ");
    format!(
        "{PRELUDE}\ntry:\n    {body}\n    print('end', flush=True)\nexcept BaseException:\n    import traceback; traceback.print_exc()\n    print('failed', flush=True)\nos._exit(0)"
    )
}

/// A program that has set up its descriptors and waits.
pub struct Program {
    child: Child,
    commands: File,
    answers: BufReader<File>,
    stdio: [Option<OwnedFd>; 3],
    check: String,
}

impl Program {
    /// Starts a python program that runs `setup` and later, when asked, `check`, which prints what it finds. Its standard
    /// streams are pipes.
    pub fn start(setup: &str, check: &str) -> Program {
        let (stdin, commands) = std::io::pipe().expect("a pipe");
        let (answers, stdout) = std::io::pipe().expect("a pipe");
        let stdout = OwnedFd::from(stdout);
        let stderr = stdout.try_clone().expect("duplicates");
        Program::start_on(
            [OwnedFd::from(stdin), stdout, stderr],
            OwnedFd::from(commands),
            OwnedFd::from(answers),
            setup,
            check,
        )
    }

    /// The same with streams of the test's choice; `commands` and `answers` are the test's ends of the first two.
    pub fn start_on(
        stdio: [OwnedFd; 3],
        commands: OwnedFd,
        answers: OwnedFd,
        setup: &str,
        check: &str,
    ) -> Program {
        let give = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("duplicates"));
        let script = guarded(&format!(
            "os.closerange(3, 4096)\n{setup}\nprint('ready', flush=True)\nselect.select([0], [], []); os.read(0, 1)\n{check}"
        ));
        let alone = one_at_a_time();
        let child = Command::new("python3")
            .args(["-u", "-c", &script])
            .stdin(give(&stdio[0]))
            .stdout(give(&stdio[1]))
            .stderr(give(&stdio[2]))
            .spawn()
            .expect("python3 starts");
        drop(alone);
        let mut program = Program {
            child,
            commands: File::from(commands),
            answers: BufReader::new(File::from(answers)),
            stdio: stdio.map(Some),
            check: check.to_owned(),
        };
        let mut line = String::new();
        program.answers.read_line(&mut line).expect("an answer");
        if line.trim_end() != "ready" {
            panic!("the setup failed: {line}{}", answer(&mut program.answers));
        }
        program
    }

    /// Every process of it.
    pub fn views(&self) -> Vec<ProcessView> {
        let root = Pid(self.child.id() as i32);
        let all = std::iter::once(root).chain(tree::living_descendants(root));
        all.map(view).collect()
    }

    /// Captures it.
    pub fn capture(&self) -> Result<(Captured, Store), EngineError> {
        capture(&self.views(), &self.stdio)
    }

    /// What stands in its way, looked at without storing.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.refusals_with(&remembered(&self.stdio))
    }

    /// The same, these being the job's streams.
    pub fn refusals_with(&self, stdio: &[Option<Outside>; 3]) -> Vec<Refusal> {
        let views = self.views();
        let context = CaptureContext {
            processes: &views,
            stdio,
            inherited: &[],
            contents: None,
            file_content_limit: 0,
            files: &Collector::new(0),
        };
        let (refusals, _) = descriptors::refusals(&context).expect("it can be looked at");
        refusals
    }

    /// What its check prints.
    pub fn check(&mut self) -> String {
        self.commands.write_all(b"\n").expect("it listens");
        answer(&mut self.answers)
    }

    /// Ends it, and lets go of its streams.
    pub fn kill(&mut self) {
        for view in self.views() {
            let _ = signal::send(view.pid, process::SIGKILL);
        }
        let _ = self.child.wait();
        self.stdio = [None, None, None];
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A duplicate that a program started now inherits, out of the way of the program's numbers.
fn given(fd: &OwnedFd, first_free: RawFd) -> OwnedFd {
    let copy = rustix::io::fcntl_dupfd_cloexec(fd, first_free).expect("a number");
    rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty()).expect("it is open");
    copy
}

fn view(pid: Pid) -> ProcessView {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let id = ids.and_then(|ids| ids.split_ascii_whitespace().last()?.parse().ok());
    ProcessView {
        pid,
        virtual_pid: id.map_or(pid, Pid),
        name: Stat::read(pid).map(|stat| stat.comm).unwrap_or_default(),
    }
}

fn remembered(stdio: &[Option<OwnedFd>; 3]) -> [Option<Outside>; 3] {
    let one = |fd: &Option<OwnedFd>| Outside::of(fd.as_ref()?.as_fd()).ok();
    stdio.each_ref().map(one)
}

fn capture(
    views: &[ProcessView],
    stdio: &[Option<OwnedFd>; 3],
) -> Result<(Captured, Store), EngineError> {
    let store = Store::default();
    let files = Collector::new(1 << 20);
    let context = CaptureContext {
        processes: views,
        stdio: &remembered(stdio),
        inherited: &[],
        contents: Some(&store),
        file_content_limit: 1 << 20,
        files: &files,
    };
    let captured = descriptors::capture(&context)?;
    files.store(&store)?;
    *store.files.lock().expect("unpoisoned") = files.finish();
    Ok((captured, store))
}

fn answer(from: &mut impl BufRead) -> String {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line).expect("readable");
        assert!(!line.is_empty(), "the check ended early, after: {text}");
        assert_ne!(line.trim_end(), "failed", "the check failed, after: {text}");
        if line.trim_end() == "end" {
            return text;
        }
        text += &line;
    }
}

/// A restored tree, stopped before its first instruction.
pub struct Restored {
    keeper: Pid,
    pub notes: String,
    processes: Vec<Pid>,
    answers: BufReader<File>,
    stdio: [Option<OwnedFd>; 3],
}

/// What the restart gives as standard streams.
pub enum Streams {
    /// A pipe with nothing in it, a pipe that the test reads, and the test's own standard error.
    Pipes,
    /// These, the answers going nowhere.
    Given([Option<OwnedFd>; 3]),
}

impl Restored {
    /// Restores `captured` in namespaces of its own, where every id is free; the first process then runs `check`.
    pub fn new(
        captured: &Captured,
        store: &Store,
        program: &Program,
        streams: Streams,
    ) -> Restored {
        Restored::with_terminal(captured, store, program, streams, None)
    }

    /// The same, with a terminal that was made for the job.
    pub fn with_terminal(
        captured: &Captured,
        store: &Store,
        program: &Program,
        streams: Streams,
        terminal: Option<&OwnedFd>,
    ) -> Restored {
        Restored::try_new(captured, store, program, streams, terminal)
            .unwrap_or_else(|error| panic!("the restart failed: {error}"))
    }

    /// The same; what was said when it fails.
    pub fn try_new(
        captured: &Captured,
        store: &Store,
        program: &Program,
        streams: Streams,
        terminal: Option<&OwnedFd>,
    ) -> Result<Restored, String> {
        let _alone = one_at_a_time();
        let root = program.child.id() as i32;
        let views: Vec<ProcessView> = match program.views() {
            views if views.len() == captured.tables.len() => views,
            // It was killed meanwhile.
            _ => (root..)
                .take(captured.tables.len())
                .map(Pid)
                .map(view)
                .collect(),
        };
        let (answers, stdout) = std::io::pipe().expect("a pipe");
        let (stdin, _) = std::io::pipe().expect("a pipe");
        let stdio = match streams {
            Streams::Given(stdio) => stdio,
            Streams::Pipes => {
                let stderr = stdout.try_clone().expect("duplicates");
                [
                    Some(OwnedFd::from(stdin)),
                    Some(OwnedFd::from(stdout)),
                    Some(OwnedFd::from(stderr)),
                ]
            }
        };
        let (mut report, told) = std::io::pipe().expect("a pipe");
        let first_free = descriptors::first_free(&captured.tables, &captured.descriptions).max(200);
        let given = |fd: &OwnedFd| given(fd, first_free);
        let (streams, told) = (
            stdio.each_ref().map(|fd| fd.as_ref().map(given)),
            given(&told.into()),
        );
        let terminal = terminal.map(given);
        let parcel = Parcel {
            descriptions: captured.descriptions.clone(),
            tables: captured.tables.clone(),
            contents: store.contents(),
            files: store.files.lock().expect("unpoisoned").clone(),
            processes: (views.iter())
                .map(|view| (view.virtual_pid.0, view.name.clone()))
                .collect(),
            first_free,
            stdio: streams
                .each_ref()
                .map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd)),
            terminal: terminal.as_ref().map(AsRawFd::as_raw_fd),
            told: told.as_raw_fd(),
            script: guarded(&program.check),
        };
        let mut file = tempfile::tempfile().expect("a temporary file");
        let bytes = postcard::to_stdvec(&parcel).expect("encodes");
        file.write_all(&bytes).expect("writable");
        file.rewind().expect("goes back");
        #[allow(
            clippy::zombie_processes,
            reason = "it is waited for by its number, as its children are"
        )]
        let keeper = Command::new(env!("CARGO_BIN_EXE_restore-descriptors"))
            .stdin(Stdio::from(file))
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        let keeper = Pid(keeper.id() as i32);
        drop((streams, terminal));
        drop(told);
        let mut notes = String::new();
        report.read_to_string(&mut notes).expect("readable");
        let Some(notes) = notes.strip_prefix("ok\n") else {
            let _ = process::wait(keeper, 0);
            return Err(notes);
        };
        let notes = notes.to_owned();
        // Below the process that was forked comes the first of the pid namespace, and below that the tree.
        let processes = tree::descendants(keeper)[1..].to_vec();
        assert_eq!(processes.len(), captured.tables.len());
        Ok(Restored {
            keeper,
            notes,
            processes,
            answers: BufReader::new(File::from(OwnedFd::from(answers))),
            stdio,
        })
    }

    /// Captures it in turn.
    pub fn capture(&self) -> (Captured, Store) {
        let views: Vec<ProcessView> = self.processes.iter().copied().map(view).collect();
        capture(&views, &self.stdio).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Lets the first process run its check: what it prints.
    pub fn check(&mut self) -> String {
        signal::send(self.processes[0], libc::SIGCONT).expect("it is there");
        answer(&mut self.answers)
    }

    /// The same, where the answers come from somewhere else.
    pub fn check_on(&mut self, answers: OwnedFd) -> String {
        self.answers = BufReader::new(File::from(answers));
        self.check()
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        for pid in tree::descendants(self.keeper) {
            let _ = signal::send(pid, process::SIGKILL);
        }
        let _ = process::wait(self.keeper, 0);
    }
}

/// Captures, restores, captures what was restored, and compares; then lets both programs run their check: what both
/// print.
pub fn round_trip(setup: &str, check: &str) -> String {
    let mut program = Program::start(setup, check);
    let (before, store) = program.capture().unwrap_or_else(|error| panic!("{error}"));
    let mut restored = Restored::new(&before, &store, &program, Streams::Pipes);
    let (after, again) = restored.capture();
    compare(&before, &store, &after, &again);
    let found = restored.check();
    assert_eq!(
        found,
        program.check(),
        "the restored program (left) sees what the undisturbed one (right) does not"
    );
    found
}

/// Whether two captures say the same, apart from the time that has passed.
pub fn compare(before: &Captured, store: &Store, after: &Captured, again: &Store) {
    assert_eq!(before.tables, after.tables);
    assert_eq!(store.contents(), again.contents());
    assert_eq!(before.descriptions.len(), after.descriptions.len());
    for (old, new) in before.descriptions.iter().zip(&after.descriptions) {
        if let (Kind::TimerFd(old), Kind::TimerFd(new)) = (&old.kind, &new.kind) {
            compare_timers(old, new);
        } else {
            assert_eq!(old, new);
        }
    }
}

fn compare_timers(old: &timerfd::State, new: &timerfd::State) {
    let without_time = |state: &timerfd::State| timerfd::State {
        next: None,
        ..state.clone()
    };
    assert_eq!(without_time(old), without_time(new));
    match (old.next, new.next) {
        (Some(timerfd::Next::In { left: old, .. }), Some(timerfd::Next::In { left: new, .. })) => {
            assert!(
                new <= old && old - new < Duration::from_secs(20),
                "{old:?} {new:?}"
            );
        }
        (Some(timerfd::Next::At(old)), Some(timerfd::Next::At(new))) => {
            assert!(
                old.abs_diff(new) < Duration::from_millis(50),
                "{old:?} {new:?}"
            );
        }
        (old, new) => assert_eq!(old, new),
    }
}
