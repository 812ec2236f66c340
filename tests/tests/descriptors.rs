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
