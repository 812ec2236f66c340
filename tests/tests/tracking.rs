//! What dirty tracking takes for unchanged is unchanged. All checkpoints here read it nevertheless, and fail where it has changed.

use rustix::process::{Pid, Signal, kill_process};
use stasis_tests::{Linkage, Running, Sandbox, children, need, program, wait_until};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

fn sandbox(tracking: &str) -> Sandbox {
    let mut sandbox = Sandbox::new();
    for options in [&mut sandbox.run_options, &mut sandbox.restart_options] {
        let tracking = format!("--tracking={tracking}");
        *options = vec!["--incremental".into(), tracking];
    }
    // A file that it happens to have open, and goes on writing.
    for word in ["--changed-files", "accept"] {
        sandbox.restart_options.push(word.into());
    }
    sandbox.env = vec![("STASIS_TEST_FAULT".into(), "pretend@doubt".into())];
    sandbox
}

fn start<'a>(sandbox: &'a Sandbox, words: &[&str]) -> Running<'a> {
    let (name, arguments) = words.split_first().expect("a name");
    let program = program(name, Linkage::Dynamic).expect("there is a compiler");
    let mut argv = vec![program.into_os_string()];
    argv.extend(arguments.iter().map(OsString::from));
    let mut job = sandbox.run(&argv);
    job.wait_line("ready");
    job
}

/// Has the program do something that it answers with a line.
fn ask(sandbox: &Sandbox, job: &mut Running<'_>, name: &str, answer: &str) {
    let line = format!("{answer}\n");
    let lines = |text: &str| text.matches(&line).count();
    let before = lines(&job.stdout());
    // Its own before it has the name: the program removes it at once.
    let file = sandbox.write("asking", "");
    fs::rename(file, sandbox.work().join(name)).expect("asking the program");
    job.wait_stdout(answer, |text| lines(text) > before);
}

/// Restarts, has the program look at its memory, and lets it end by itself.
fn comes_back(sandbox: &Sandbox, image: &Path) {
    let mut job = sandbox.restart(image);
    ask(sandbox, &mut job, "check", "fine");
    sandbox.write("go", "");
    let end = job.finish();
    fs::remove_file(sandbox.work().join("go")).expect("removing go");
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

/// Takes a checkpoint: bytes that it did not have to read.
fn unread(sandbox: &Sandbox) -> u64 {
    let taken = sandbox.stasis(["checkpoint", "--json", "job"]);
    let taken = taken.expect_success("a checkpoint").stdout;
    let taken: serde_json::Value = serde_json::from_str(&taken).expect("JSON");
    taken["unread_bytes"].as_u64().expect("a number")
}

/// The supervisor: the only child of the one in front.
fn supervisor(job: &Running<'_>) -> i32 {
    children(job.pid())[0]
}

fn whatever_it_does(tracking: &str, words: &[&str]) {
    need!("cc");
    let sandbox = sandbox(tracking);
    let mut job = start(&sandbox, words);
    let mut image = job.checkpoint();
    for round in 0..12 {
        image = job.checkpoint();
        if round % 4 == 1 {
            ask(&sandbox, &mut job, "check", "fine");
        }
        if round == 5 {
            ask(&sandbox, &mut job, "again", "ready");
        }
    }
    ask(&sandbox, &mut job, "check", "fine");
    job.kill_all();
    comes_back(&sandbox, &image);
    // A restarted one is tracked anew.
    let mut job = sandbox.restart(&image);
    for _ in 0..4 {
        image = job.checkpoint();
    }
    ask(&sandbox, &mut job, "check", "fine");
    job.kill_all();
    comes_back(&sandbox, &image);
    assert!(
        !sandbox.work().join("broken").exists(),
        "the child's memory"
    );
}

#[test]
fn whatever_a_program_does_with_its_memory() {
    whatever_it_does("auto", &["tracked"]);
}

#[test]
fn whatever_it_does_with_huge_pages() {
    whatever_it_does("all", &["tracked", "huge"]);
}

#[test]
fn whatever_it_does_without_tracking() {
    whatever_it_does("no", &["tracked"]);
}

/// Whether this kernel tracks writes, by its version.
fn tracks() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
    (numbers.next(), numbers.next()) >= (Some(6u32), Some(7u32))
}

#[test]
fn what_has_not_been_written_is_not_read() {
    need!("cc");
    if !tracks() {
        stasis_tests::skip!("this kernel does not track writes");
    }
    for (tracking, is_tracked) in [("auto", true), ("all", true), ("no", false)] {
        let sandbox = sandbox(tracking);
        // 4 MiB of which it writes one page every two milliseconds.
        let mut job = start(&sandbox, &["changing", "4096", "1"]);
        job.wait_listed();
        let first: Vec<u64> = (0..2).map(|_| unread(&sandbox)).collect();
        assert_eq!(first, [0, 0], "it must be found out first");
        let most = (0..5).map(|_| unread(&sandbox)).max();
        assert_eq!(most > Some(1 << 20), is_tracked, "{tracking}: {most:?}");
        job.kill_all();
    }
}

/// Where memory is moved beside a tracked area, the kernel makes one area of both, tracks neither, and leaves the marks of the old one.
#[test]
fn areas_that_become_one_are_looked_at_anew() {
    need!("cc");
    let sandbox = sandbox("auto");
    let mut job = start(&sandbox, &["tracked", "beside"]);
    for _ in 0..3 {
        for _ in 0..3 {
            job.checkpoint();
        }
        // Away, where it is tracked on its own; then back.
        ask(&sandbox, &mut job, "move", "moved");
        for _ in 0..3 {
            job.checkpoint();
        }
        ask(&sandbox, &mut job, "move", "moved");
        for _ in 0..4 {
            ask(&sandbox, &mut job, "write", "written");
            job.checkpoint();
        }
    }
    job.kill_all();
}

/// What is written between two checkpoints of which the second fails is in the third.
#[test]
fn a_failed_checkpoint_forgets_nothing() {
    need!("cc");
    need!("prlimit");
    let sandbox = sandbox("auto");
    let mut job = start(&sandbox, &["tracked"]);
    for _ in 0..3 {
        job.checkpoint();
    }
    let supervisor = supervisor(&job);
    let limit = |limit: &str| {
        let done = (sandbox.command("prlimit"))
            .arg(format!("--pid={supervisor}"))
            .arg(format!("--fsize={limit}:"))
            .status();
        assert!(done.expect("prlimit runs").success());
    };
    for round in 0..8 {
        limit("16384");
        let failed = job.try_checkpoint();
        assert!(!failed.success(), "round {round}: {failed:?}");
        if round % 2 == 0 {
            let failed = job.try_checkpoint();
            assert!(!failed.success(), "round {round}: {failed:?}");
        }
        limit("unlimited");
        job.checkpoint();
        job.checkpoint();
    }
    let image = job.checkpoint();
    ask(&sandbox, &mut job, "check", "fine");
    job.kill_all();
    comes_back(&sandbox, &image);
}

/// Neither descriptor nor registration is left behind in the program.
#[test]
fn a_program_does_not_have_what_it_is_tracked_with() {
    need!("cc");
    let sandbox = sandbox("auto");
    let mut job = start(&sandbox, &["changing", "4096", "1"]);
    let pid = program_of(&job, "changing");
    let descriptors = || sandbox.files_in(Path::new(&format!("/proc/{pid}/fd")));
    let before = descriptors();
    for _ in 0..3 {
        job.checkpoint();
        assert_eq!(descriptors(), before);
    }
    let registered = || {
        let areas = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the program lives");
        let flags = areas.lines().filter(|line| line.starts_with("VmFlags:"));
        flags.filter(|line| line.contains(" uw")).count()
    };
    assert_eq!(registered() > 0, tracks());
    let supervisor = Pid::from_raw(supervisor(&job)).expect("a process id");
    kill_process(supervisor, Signal::KILL).expect("killing it");
    wait_until("the tracking ends with the supervisor", || {
        (registered() == 0).then_some(())
    });
    ask(&sandbox, &mut job, "check", "fine");
    job.kill_all();
}

/// The process of the job with this name.
fn program_of(job: &Running<'_>, name: &str) -> i32 {
    let named = |pid: &i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    };
    job.descendants().into_iter().find(named).expect("it runs")
}
