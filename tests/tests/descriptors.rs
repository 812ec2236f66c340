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
    sealed_late
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
