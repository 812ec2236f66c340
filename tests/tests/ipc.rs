//! System V IPC and POSIX message queues come back as they were.

use stasis_tests::{Exit, Linkage, Sandbox, alive, need, program, verify_after_restart};
use std::path::PathBuf;

/// Objects outlive processes: whatever a test's programs have made goes with the test, also when it fails.
struct Objects {
    sandbox: Sandbox,
    program: PathBuf,
}

impl Objects {
    fn new(sandbox: Sandbox) -> Objects {
        let program = program("ipc", Linkage::Dynamic).expect("there is a compiler");
        Objects { sandbox, program }
    }

    fn argv<'a>(&'a self, case: &'a str) -> [&'a std::ffi::OsStr; 2] {
        [self.program.as_os_str(), case.as_ref()]
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        let mut command = self.sandbox.command(&self.program);
        let _ = command.arg("clean").status();
    }
}

fn check(case: &str) {
    need!("cc");
    let objects = Objects::new(Sandbox::new());
    verify_after_restart(&objects.sandbox, &objects.argv(case));
}

macro_rules! cases {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(stringify!($name));
        }
    )*};
}

cases! {
    segments parts attachments live orphaned
}
