//! Calls that wait end when they should have; timers go on; clocks never go back.

use stasis_tests::{Finished, Linkage, Sandbox, need, program, verify_after_restart};
use std::path::PathBuf;
use std::time::Duration;

fn timeouts() -> PathBuf {
    program("timeouts", Linkage::Dynamic).expect("there is a compiler")
}

/// Each line is `NAME MICROSECONDS`. The lower bound is exact; the upper allows for a busy machine, but not for a wait
/// that began anew.
fn expect_in_time(end: &Finished, wanted: Duration, slack: Duration) {
    assert!(end.success(), "{end:?}");
    let mut lines = 0;
    for line in end.stdout.lines().filter(|line| *line != "ready") {
        let (name, took) = line.split_once(' ').expect("NAME MICROSECONDS");
        let took = Duration::from_micros(took.parse().expect("a number"));
        assert!(
            took >= wanted,
            "{name} ended after {took:?}, before {wanted:?}"
        );
        assert!(
            took < wanted + slack,
            "{name} ended after {took:?}, long after {wanted:?}"
        );
        lines += 1;
    }
    assert!(lines > 0, "{end:?}");
}

const LENGTH: Duration = Duration::from_secs(6);
const SLACK: Duration = Duration::from_millis(2800);

/// Checkpoints after 1 and 3 seconds of 6, a kill, a restart with another checkpoint and its restart.
fn check(kind: &str, only: Option<&str>) {
    need!("cc");
    let timeouts = timeouts();
    let length = LENGTH.as_millis().to_string();
    let mut argv = vec![timeouts.as_os_str(), kind.as_ref(), length.as_ref()];
    argv.extend(only.map(std::ffi::OsStr::new));
    let sandbox = Sandbox::new();
    let mut job = sandbox.run(&argv);
    job.wait_line("ready");
    std::thread::sleep(Duration::from_secs(1));
    job.checkpoint();
    std::thread::sleep(Duration::from_millis(1500));
    let image = job.checkpoint();
    expect_in_time(&job.finish(), LENGTH, SLACK);

    let mut job = sandbox.restart(&image);
    job.wait_listed();
    std::thread::sleep(Duration::from_millis(500));
    let second = job.checkpoint();
    expect_in_time(&job.finish(), LENGTH, SLACK);
    expect_in_time(&sandbox.restart(&second).finish(), LENGTH, SLACK);
}

#[test]
fn calls_of_many_threads() {
    check("calls", None);
}

#[test]
fn timers_of_many_threads() {
    check("timers", None);
}

/// The single thread is in the call itself.
#[test]
fn a_sleeping_program() {
    check("calls", Some("nanosleep"));
}

#[test]
fn a_polling_program() {
    check("calls", Some("poll"));
}

#[test]
fn a_program_that_waits_for_a_futex() {
    check("calls", Some("futex"));
}

#[test]
fn a_program_that_waits_for_events() {
    check("calls", Some("epoll_pwait2"));
}

#[test]
fn a_program_that_waits_for_signals() {
    check("calls", Some("sigtimedwait"));
}

#[test]
fn a_sleep_that_leaves_what_is_left_in_place() {
    check("calls", Some("nanosleep_in_place"));
}

#[test]
fn a_signal_of_a_timer_that_waits() {
    need!("cc");
    verify_after_restart(
        &Sandbox::new(),
        &[timeouts().as_os_str(), "waiting_alarm".as_ref()],
    );
}

/// What the checkpoint and the restart take counts as waited for by calls and timers as it does for clocks.
#[test]
fn a_slow_machine() {
    need!("cc");
    let timeouts = timeouts();
    let mut sandbox = Sandbox::new();
    let slow = ("STASIS_TEST_FAULT".to_owned(), "pretend@slow".to_owned());
    sandbox.env.push(slow);
    for kind in ["calls", "timers"] {
        let mut job = sandbox.run(&[timeouts.as_os_str(), kind.as_ref(), "6000".as_ref()]);
        job.wait_line("ready");
        let image = job.checkpoint();
        job.kill_all();
        // Twice two seconds are more than the slack.
        let end = sandbox.restart(&image).finish();
        expect_in_time(&end, LENGTH, Duration::from_millis(1800));
    }
    verify_after_restart(&sandbox, &[timeouts.as_os_str(), "intervals".as_ref()]);
}

#[test]
fn many_timers() {
    need!("cc");
    verify_after_restart(
        &Sandbox::new(),
        &[timeouts().as_os_str(), "many_timers".as_ref()],
    );
}

#[test]
fn intervals() {
    need!("cc");
    verify_after_restart(
        &Sandbox::new(),
        &[timeouts().as_os_str(), "intervals".as_ref()],
    );
}

#[test]
fn clocks() {
    need!("cc");
    verify_after_restart(
        &Sandbox::new(),
        &[timeouts().as_os_str(), "clocks".as_ref()],
    );
}
