//! Threads, and everything that each of them has of its own.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart};

fn check(arguments: &[&str]) {
    need!("cc");
    let program = program("threads", Linkage::Dynamic).expect("there is a compiler");
    let mut argv = vec![program.as_os_str()];
    argv.extend(arguments.iter().map(std::ffi::OsStr::new));
    verify_after_restart(&Sandbox::new(), &argv);
}

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(&[stringify!($name)]);
        }
    )*};
}

cases! {
    robust_owner exited_leader rseq_registered general_registers sse_registers avx_registers avx512_registers
    x87_registers gs_base
}

#[test]
fn one_thread() {
    check(&["crowd", "1"]);
}

#[test]
fn sixty_four_threads() {
    check(&["crowd", "64"]);
}

#[test]
fn a_thousand_threads() {
    check(&["crowd", "1000"]);
}
