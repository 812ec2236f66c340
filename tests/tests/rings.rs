//! Rings for input and output.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart, verify_or_refused};

fn check(case: &str) {
    need!("cc");
    let program = program("rings", Linkage::Dynamic).expect("there is a compiler");
    verify_after_restart(&Sandbox::new(), &[program.as_os_str(), case.as_ref()]);
}

fn check_or_refused(case: &str, words: &[&str]) {
    need!("cc");
    let program = program("rings", Linkage::Dynamic).expect("there is a compiler");
    verify_or_refused(
        &Sandbox::new(),
        &[program.as_os_str(), case.as_ref()],
        words,
    );
}

#[test]
fn idle() {
    check("idle");
}

#[test]
fn contexts() {
    check("contexts");
}

#[test]
fn workers() {
    check("workers");
}

#[test]
fn under_way() {
    check_or_refused("under_way", &["io_uring", "under way", "descriptor"]);
}

#[test]
fn with_eventfd() {
    check_or_refused("with_eventfd", &["io_uring", "eventfd", "descriptor"]);
}

#[test]
fn one_thread() {
    check_or_refused("one_thread", &["io_uring", "SINGLE_ISSUER", "descriptor"]);
}

#[test]
fn kernel_thread() {
    check_or_refused("kernel_thread", &["io_uring", "SQPOLL", "descriptor"]);
}
