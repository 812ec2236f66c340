//! Standard streams, terminals and FIFOs.

use crate::harness::{Program, Restored, Streams, compare};
use stasis_sys::terminal;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("stasis-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    (reader.into(), writer.into())
}

fn duplicate(fd: &OwnedFd) -> OwnedFd {
    fd.try_clone().expect("duplicates")
}

/// A pseudo terminal: the controlling side, and the side for a program.
fn pseudo_terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outer = openpt(flags).expect("a pseudo terminal");
    grantpt(&outer).expect("granted");
    unlockpt(&outer).expect("unlocked");
    let name = ptsname(&outer, Vec::new()).expect("a name");
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let inner = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).expect("opens");
    (outer, inner)
}

/// A program on a terminal, which it has set to its liking and opened twice more.
fn on_a_terminal(check: &str) -> (Program, OwnedFd) {
    let (outer, inner) = pseudo_terminal();
    let program = Program::start_on(
        [duplicate(&inner), duplicate(&inner), inner],
        duplicate(&outer),
        duplicate(&outer),
        r"
os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)
settings = termios.tcgetattr(0)
settings[1] &= ~termios.OPOST; settings[3] &= ~(termios.ECHO | termios.ICANON); settings[6][termios.VMIN] = 7
termios.tcsetattr(0, termios.TCSANOW, settings)
at(10, os.open('/dev/tty', os.O_RDWR)); at(11, os.open(os.ttyname(0), os.O_RDONLY | os.O_NONBLOCK))
",
        check,
    );
    (program, outer)
}

#[test]
fn a_terminal_made_for_the_job_gets_its_settings() {
    let (program, _outer) = on_a_terminal(
        "print(os.ttyname(0) == os.ttyname(10) == os.ttyname(11), termios.tcgetattr(11)[6][termios.VMIN], flags(11) & os.O_NONBLOCK, flags(10) & os.O_NONBLOCK)",
    );
    let (captured, store) = program.capture().expect("can be saved");
    let (outer, inner) = pseudo_terminal();
    let streams = [(); 3].map(|()| Some(duplicate(&inner)));
    let mut restored = Restored::with_terminal(
        &captured,
        &store,
        &program,
        Streams::Given(streams),
        Some(&inner),
    );
    let (after, again) = restored.capture();
    compare(&captured, &store, &after, &again);
    assert_eq!(restored.check_on(outer), "True 7 2048 0\n");
}

#[test]
fn without_a_terminal_the_program_gets_the_streams_there_are() {
    let (program, _outer) = on_a_terminal(
        "print([os.isatty(n) for n in (0, 1, 10, 11)], os.readlink('/proc/self/fd/10'), os.read(11, 1))",
    );
    let (captured, store) = program.capture().expect("can be saved");
    let mut restored = Restored::new(&captured, &store, &program, Streams::Pipes);
    assert!(
        restored.notes.contains("it gets /dev/null"),
        "{}",
        restored.notes
    );
    assert_eq!(
        restored.check(),
        "[False, False, False, False] /dev/null b''\n"
    );
}

#[test]
fn settings_of_the_users_own_terminal_are_left_alone() {
    let (program, _outer) = on_a_terminal("print(os.isatty(10))");
    let (captured, store) = program.capture().expect("can be saved");
    let (outer, inner) = pseudo_terminal();
    let before = terminal::settings(inner.as_fd()).expect("a terminal");
    let streams = [(); 3].map(|()| Some(duplicate(&inner)));
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    assert_eq!(
        terminal::settings(inner.as_fd()).expect("a terminal"),
        before
    );
    // Such a terminal ends lines in its own way.
    assert_eq!(restored.check_on(outer), "True\r\n");
}

#[test]
fn one_description_for_several_streams_is_split_when_they_differ_now() {
    let program = Program::start(
        "os.dup2(2, 7)",
        "os.write(2, b'error\\n'); os.write(7, b'copy\\n')",
    );
    let (captured, store) = program.capture().expect("can be saved");
    let ((input, _write), (answers, output), (mut errors, error)) = (pipe(), pipe(), {
        let (reader, writer) = pipe();
        (File::from(reader), writer)
    });
    let streams = [Some(input), Some(output), Some(error)];
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    assert_eq!(restored.check_on(answers), "copy\n");
    drop(restored);
    let mut text = String::new();
    errors.read_to_string(&mut text).expect("readable");
    assert_eq!(text, "error\n");
}

#[test]
fn flags_that_the_program_set_do_not_leak_into_the_users_shell() {
    let program = Program::start(
        "os.set_blocking(0, False)",
        "print(os.get_blocking(0), os.get_blocking(1), attempt(os.read, 0, 1))",
    );
    let (captured, store) = program.capture().expect("can be saved");
    let ((input, _write), (answers, output)) = (pipe(), pipe());
    let mine = duplicate(&input);
    let streams = [Some(input), Some(duplicate(&output)), Some(output)];
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    assert_eq!(restored.check_on(answers), "False True EAGAIN\n");
    let flags = rustix::fs::fcntl_getfl(&mine).expect("flags");
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn streams_opened_once_more_by_their_name_follow() {
    let program = Program::start(
        "at(10, os.open('/dev/stdout', os.O_WRONLY)); at(11, os.open('/dev/stdin', os.O_RDONLY))",
        "os.write(10, b'through the second opening\\n'); print(os.read(11, 5))",
    );
    let (captured, store) = program.capture().expect("can be saved");
    let ((input, write), (answers, output)) = (pipe(), pipe());
    File::from(write).write_all(b"hello").expect("writable");
    let streams = [Some(input), Some(duplicate(&output)), Some(output)];
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    assert_eq!(
        restored.check_on(answers),
        "through the second opening\nb'hello'\n"
    );
}

#[test]
fn a_stream_that_is_closed_now_is_the_null_device() {
    let program = Program::start("", "print(os.read(0, 1), os.readlink('/proc/self/fd/0'))");
    let (captured, store) = program.capture().expect("can be saved");
    let (answers, output) = pipe();
    let streams = [None, Some(duplicate(&output)), Some(output)];
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    assert_eq!(restored.check_on(answers), "b'' /dev/null\n");
}

#[test]
fn epoll_on_a_stream_that_has_become_a_file_is_told() {
    let program = Program::start("at(20, epoll()); add(20, 0, IN, 1)", "print(take(20))");
    let (captured, store) = program.capture().expect("can be saved");
    let (answers, output) = pipe();
    let file = File::open("/proc/self/exe").expect("opens");
    let streams = [Some(file.into()), Some(duplicate(&output)), Some(output)];
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    assert!(
        restored.notes.contains("waits for descriptor 0 with epoll"),
        "{}",
        restored.notes
    );
    assert_eq!(restored.check_on(answers), "[]\n");
}

#[test]
fn input_from_a_file_goes_on_where_it_was() {
    let directory = Directory::new("input");
    let path = directory.0.join("in");
    fs::write(&path, "first\nsecond\nthird\n").expect("writable");
    let mut input = File::open(&path).expect("opens");
    // The command that lets the check run is a byte of it.
    input.seek(std::io::SeekFrom::Start(6)).expect("seekable");
    let (answers, output) = pipe();
    let (_unused, commands) = pipe();
    // A program that waits in another way: its input never blocks.
    let program = Program::start_on(
        [input.into(), duplicate(&output), output],
        commands,
        answers,
        "print('ready', flush=True); signal.pause()",
        "print(os.read(0, 7))",
    );
    let (captured, store) = program.capture().expect("can be saved");
    let mut restored = Restored::new(&captured, &store, &program, Streams::Pipes);
    assert_eq!(restored.check(), "b'second\\n'\n");
}

/// A program whose standard error is a file, at the end of what it has written.
fn writing_to(path: &PathBuf) -> Program {
    let errors = File::create(path).expect("writable");
    let ((input, commands), (answers, output)) = (pipe(), pipe());
    Program::start_on(
        [input, output, errors.into()],
        commands,
        answers,
        "os.write(2, b'before\\n')",
        "os.write(2, b'after\\n')",
    )
}

#[test]
fn output_to_a_file_goes_on_there_when_the_restart_has_a_terminal() {
    let directory = Directory::new("output");
    let path = directory.0.join("err");
    let mut program = writing_to(&path);
    let (captured, store) = program.capture().expect("can be saved");
    program.check();
    program.kill();
    let ((input, _write), (answers, output), (_outer, inner)) = (pipe(), pipe(), pseudo_terminal());
    let streams = [Some(input), Some(output), Some(inner)];
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    restored.check_on(answers);
    assert_eq!(
        fs::read_to_string(&path).expect("readable"),
        "before\nafter\n"
    );
}

#[test]
fn output_to_a_file_follows_the_restart_elsewhere() {
    let directory = Directory::new("elsewhere");
    let (path, other) = (directory.0.join("err"), directory.0.join("other"));
    let mut program = writing_to(&path);
    let (captured, store) = program.capture().expect("can be saved");
    program.kill();
    let ((input, _write), (answers, output)) = (pipe(), pipe());
    let error = File::create(&other).expect("writable");
    let streams = [Some(input), Some(output), Some(error.into())];
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    restored.check_on(answers);
    assert_eq!(fs::read_to_string(&path).expect("readable"), "before\n");
    assert_eq!(fs::read_to_string(&other).expect("readable"), "after\n");
}

#[test]
fn output_to_the_same_file_goes_on_at_the_saved_place() {
    let directory = Directory::new("same");
    let path = directory.0.join("err");
    let mut program = writing_to(&path);
    let (captured, store) = program.capture().expect("can be saved");
    program.kill();
    let ((input, _write), (answers, output)) = (pipe(), pipe());
    let mut error = File::options().write(true).open(&path).expect("opens");
    let mine = error.try_clone().expect("duplicates");
    let streams = [Some(input), Some(output), Some(mine.into())];
    let mut restored = Restored::new(&captured, &store, &program, Streams::Given(streams));
    restored.check_on(answers);
    drop(restored);
    // Who started the restart shares the description, as a shell does, and goes on behind what the program wrote.
    error.write_all(b"done\n").expect("writable");
    assert_eq!(
        fs::read_to_string(&path).expect("readable"),
        "before\nafter\ndone\n"
    );
}

/// A program with both ends of a FIFO, and bytes in it.
fn with_a_fifo(directory: &Directory, more: &str) -> Program {
    let path = directory.0.join("fifo");
    Program::start(
        &format!(
            r"
name = {path:?}
os.mkfifo(name, 0o640); os.chmod(name, 0o620)
at(10, os.open(name, os.O_RDONLY | os.O_NONBLOCK)); at(11, os.open(name, os.O_WRONLY)); os.write(11, b'in flight')
{more}
"
        ),
        "print(os.read(10, 100), oct(os.fstat(10).st_mode), attempt(os.read, 10, 1)); os.close(11); print(os.read(10, 1))",
    )
}

const WHAT_A_FIFO_SHOWS: &str = "b'in flight' 0o10620 EAGAIN\nb''\n";

#[test]
fn fifos_come_back_by_their_name() {
    let directory = Directory::new("fifo");
    let mut program = with_a_fifo(&directory, "");
    let (captured, store) = program.capture().expect("can be saved");
    program.kill();
    let mut restored = Restored::new(&captured, &store, &program, Streams::Pipes);
    let (after, again) = restored.capture();
    compare(&captured, &store, &after, &again);
    assert_eq!(restored.check(), WHAT_A_FIFO_SHOWS);
}

#[test]
fn a_missing_fifo_is_made_again() {
    let directory = Directory::new("missing-fifo");
    let mut program = with_a_fifo(&directory, "");
    let (captured, store) = program.capture().expect("can be saved");
    program.kill();
    fs::remove_file(directory.0.join("fifo")).expect("removable");
    let mut restored = Restored::new(&captured, &store, &program, Streams::Pipes);
    assert_eq!(restored.check(), WHAT_A_FIFO_SHOWS);
    let made = fs::metadata(directory.0.join("fifo")).expect("there");
    assert!(made.file_type().is_fifo());
}

#[test]
fn a_deleted_fifo_comes_back_without_a_name() {
    let directory = Directory::new("deleted-fifo");
    let mut program = with_a_fifo(&directory, "os.unlink(name)");
    let (captured, store) = program.capture().expect("can be saved");
    program.kill();
    let mut restored = Restored::new(&captured, &store, &program, Streams::Pipes);
    assert_eq!(restored.check(), WHAT_A_FIFO_SHOWS);
    assert_eq!(fs::read_dir(&directory.0).expect("there").count(), 0);
}

#[test]
fn a_fifo_without_writers_waits_or_is_at_its_end_as_before() {
    let directory = Directory::new("waiting-fifo");
    let path = directory.0.join("fifo");
    let mut program = Program::start(
        &format!(
            r"
os.mkfifo({path:?}); os.mkfifo({path:?} + '2')
at(10, os.open({path:?}, os.O_RDONLY | os.O_NONBLOCK))
at(11, os.open({path:?} + '2', os.O_RDONLY | os.O_NONBLOCK)); os.close(os.open({path:?} + '2', os.O_WRONLY))
"
        ),
        r"
p = select.poll(); p.register(10, select.POLLIN); p.register(11, select.POLLIN); print(p.poll(0))
",
    );
    let (captured, store) = program.capture().expect("can be saved");
    program.kill();
    let mut restored = Restored::new(&captured, &store, &program, Streams::Pipes);
    assert_eq!(restored.check(), "[(11, 16)]\n");
}

#[test]
fn everything_that_fails_is_listed_at_once() {
    let directory = Directory::new("taken-fifo");
    let path = directory.0.join("fifo");
    let mut program = Program::start(
        &format!(
            r"
for n in (10, 11):
    name = {path:?} + str(n); os.mkfifo(name); at(n, os.open(name, os.O_RDWR))
"
        ),
        "",
    );
    let (captured, store) = program.capture().expect("can be saved");
    program.kill();
    let taken = |n: u32| PathBuf::from(format!("{}{n}", path.display()));
    fs::remove_file(taken(10)).expect("removable");
    fs::write(taken(10), "").expect("writable");
    let mut other = File::options()
        .read(true)
        .write(true)
        .open(taken(11))
        .expect("opens");
    other.write_all(b"somebody else's").expect("writable");
    let said = Restored::try_new(&captured, &store, &program, Streams::Pipes, None)
        .err()
        .expect("it cannot be restored");
    assert!(
        said.contains("was a FIFO and is something else now") && said.contains("is in use"),
        "{said}"
    );
    assert!(other.as_raw_fd() > 0);
}
