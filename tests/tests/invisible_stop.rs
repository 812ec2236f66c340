//! A checkpoint must not be visible: twenty of them while system calls of every waiting kind go on.

use stasis_tests::{Linkage, Random, Sandbox, need, program};
use std::time::Duration;

fn check(loops: &[&str]) {
    need!("cc");
    let program = program("invisible", Linkage::Dynamic).expect("there is a compiler");
    let mut argv = vec![program.as_os_str()];
    argv.extend(loops.iter().map(std::ffi::OsStr::new));
    let mut random = Random::new();
    let sandbox = Sandbox::new();
    let mut job = sandbox.run(&argv);
    job.wait_line("ready");
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(random.between(1, 90)));
        let image = job.checkpoint();
        assert!(!job.stdout().contains("FAILED"), "{}", job.stdout());
        // What is kept is enough for the restart below.
        for old in sandbox.all_images() {
            if old != image {
                let _ = std::fs::remove_file(old);
            }
        }
    }
    let image = sandbox.newest_image();
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    std::fs::remove_file(sandbox.work().join("go")).expect("taking the file away again");

    if loops == ["semaphores"] {
        // They belong to the kernel, and the program has removed them at its end.
        return;
    }
    // And it is as invisible to the restarted program.
    let mut job = sandbox.restart(&image);
    job.wait_listed();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(random.between(1, 90)));
        job.checkpoint();
    }
    sandbox.write("go", "");
    let end = job.finish();
    assert!(
        end.success() && end.stdout.ends_with("ok\n"),
        "after the restart: {end:?}"
    );
}

#[test]
fn naps_and_polls() {
    check(&["naps", "polls", "signal_waits"]);
}

#[test]
fn futexes() {
    check(&["futexes", "wakes"]);
}

#[test]
fn transfers() {
    check(&["transfers", "files"]);
}

#[test]
fn transfers_in_pieces() {
    check(&["vectors", "devices"]);
}

#[test]
fn children() {
    check(&["children", "blocked", "computes"]);
}

/// System V semaphores: refused by name until they are supported, and then invisible.
#[test]
fn semaphores() {
    supported_or_refused("semaphores", "semaphore");
}

/// Sockets: the same.
#[test]
fn receives() {
    supported_or_refused("receives", "socket");
}

fn supported_or_refused(case: &str, word: &str) {
    need!("cc");
    let program = program("invisible", Linkage::Dynamic).expect("there is a compiler");
    let sandbox = Sandbox::new();
    let mut job = sandbox.run(&[program.as_os_str(), case.as_ref()]);
    job.wait_line("ready");
    let result = job.try_checkpoint();
    if result.success() {
        sandbox.write("go", "");
        assert!(job.finish().success());
        check(&[case]);
        return;
    }
    assert!(
        result.stderr.contains(word),
        "the refusal does not name it: {result:?}"
    );
    assert!(sandbox.all_images().is_empty());
    for _ in 0..5 {
        job.try_checkpoint();
    }
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}
