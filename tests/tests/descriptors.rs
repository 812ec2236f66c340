//! Descriptors of every kind.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart, verify_or_refused};

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            need!("cc");
            let program = program("descriptors", Linkage::Dynamic).expect("there is a compiler");
            verify_after_restart(&Sandbox::new(), &[program.as_os_str(), stringify!($name).as_ref()]);
        }
    )*};
}

cases! {
    regular directories devices pipes fifos eventfds epolls memfds pidfds locks closed_stdio deleted many
    sealed_late watches owners proc_of_others
}

fn check_or_refused(case: &str, words: &[&str]) {
    need!("cc");
    let program = program("descriptors", Linkage::Dynamic).expect("there is a compiler");
    verify_or_refused(
        &Sandbox::new(),
        &[program.as_os_str(), case.as_ref()],
        words,
    );
}

/// A thread with descriptors of its own.
#[test]
fn thread_table() {
    check_or_refused("thread_table", &["descriptors"]);
}

/// Descriptors that look at the program itself.
#[test]
fn proc_files() {
    check_or_refused("proc_files", &["/proc"]);
}

/// A restart that is given room for few descriptors only makes room itself, as far as the hard limit goes.
#[test]
fn a_low_limit_of_descriptors() {
    need!("cc");
    let program = program("descriptors", Linkage::Dynamic).expect("there is a compiler");
    let sandbox = Sandbox::new();
    let mut job = sandbox.run(&[program.as_os_str(), "many".as_ref()]);
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();
    sandbox.write("go", "");
    let limited = |limit: &str| {
        let restart = sandbox.restart_command(&image);
        let mut command = sandbox.command("bash");
        command.args(["-c", &format!("ulimit {limit}; exec \"$@\""), "bash"]);
        command.arg(restart.get_program()).args(restart.get_args());
        sandbox.start(command).finish()
    };
    let end = limited("-Sn 64");
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    let end = limited("-n 64");
    assert!(!end.success() && end.stderr.contains("ulimit"), "{end:?}");
}

/// Many descriptors under a limit that leaves room for them twice.
#[test]
fn many_under_a_limit() {
    need!("python3");
    const PROGRAM: &str = "import os, time\n\
        fds = [os.open(f'many{n}', os.O_RDWR | os.O_CREAT) for n in range(400)]\n\
        for fd in fds: os.write(fd, b'%d' % fd)\n\
        print('ready', flush=True)\n\
        while not os.path.exists('go'): time.sleep(0.005)\n\
        for fd in fds: assert os.pread(fd, 9, 0) == b'%d' % fd and os.lseek(fd, 0, 1) == len(str(fd))\n\
        print('ok')\n";
    let sandbox = Sandbox::new();
    let limited = |words: &str| format!("ulimit -n 1300 && exec {words}");
    sandbox.write("program.py", PROGRAM);
    let line = limited("/usr/bin/python3 program.py");
    let mut job = sandbox.run(&["sh", "-c", &line]);
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();
    let restart = |image: &std::path::Path| {
        let mut command = sandbox.command("sh");
        command.args(["-c", &limited("stasis restart --keep 99 \"$0\"")]);
        command.arg(image);
        sandbox.start(command)
    };
    let mut job = restart(&image);
    job.wait_listed();
    let image = job.checkpoint();
    job.kill_all();
    sandbox.write("go", "");
    let end = restart(&image).finish();
    assert!(end.success() && end.stdout == "ok\n", "{end:?}");
}

/// What has happened to watched files, and has not been read, cannot be read without being taken away.
#[test]
fn an_unread_watch() {
    check_or_refused("unread_watch", &["inotify", "read"]);
}

/// GNU tail watches the file that it follows.
#[test]
fn tail_follows_a_file() {
    need!("tail");
    let sandbox = Sandbox::new();
    let append = |text: &str| {
        let log = std::fs::File::options()
            .append(true)
            .open(sandbox.work().join("log"));
        std::io::Write::write_all(&mut log.expect("the log"), text.as_bytes()).expect("a line");
    };
    sandbox.write("log", "one\n");
    let mut job = sandbox.run(&["tail", "-n", "+1", "-f", "log"]);
    job.wait_line("one");
    append("two\n");
    job.wait_line("two");
    let mut image = job.checkpoint();
    append("three\n");
    job.wait_line("three");
    job.kill_all();
    for line in ["four", "five"] {
        // A restart wants what is read to be as it was.
        sandbox.write("log", "one\ntwo\n");
        let mut job = sandbox.restart(&image);
        job.wait_listed();
        image = job.checkpoint();
        append(&format!("{line}\n"));
        job.wait_line(line);
        job.kill_all();
    }
}

/// A program that watches the directory of its own images hears of each of them, and can be saved all the same.
#[test]
fn a_watch_on_the_images() {
    need!("python3");
    let sandbox = Sandbox::new();
    sandbox.write(
        "watch.py",
        "import ctypes, os, select, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
assert libc.inotify_add_watch(fd, sys.argv[1].encode(), 0x100 | 0x80) == 1
print('ready', flush=True)
heard = 0
while not os.path.exists('go'):
    if select.select([fd], [], [], 0.01)[0]:
        heard += os.read(fd, 4096).count(b'.ckpt')
print('heard', heard > 0, flush=True)
",
    );
    let images = sandbox.images().to_string_lossy().into_owned();
    let mut job = sandbox.run(&["/usr/bin/python3", "watch.py", &images]);
    job.wait_line("ready");
    job.checkpoint();
    let image = job.checkpoint();
    job.kill_all();
    let mut job = sandbox.restart(&image);
    job.wait_listed();
    job.checkpoint();
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout == "heard True\n", "{end:?}");
}
