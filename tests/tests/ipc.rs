//! System V IPC and POSIX message queues come back as they were.

use stasis_tests::{Linkage, Sandbox, need, program, verify_after_restart};
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
    segments parts attachments live orphaned semaphores waiters undo queues blocked_queues mqueues
    blocked_mqueues stream
}

/// What cannot be saved is refused by name, and the program does not notice.
fn check_refused(case: &str, words: &[&str]) {
    need!("cc");
    let objects = Objects::new(Sandbox::new());
    let mut job = objects.sandbox.run(&objects.argv(case));
    job.wait_line("ready");
    let refused = job.try_checkpoint();
    assert!(!refused.success(), "{refused:?}");
    for word in words {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    assert!(objects.sandbox.all_images().is_empty());
    objects.sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

#[test]
fn notify() {
    check_refused("notify", &["message queue that is to notify process"]);
}

/// Messages are not taken out of a queue that somebody outside might look at meanwhile.
#[test]
fn lent_queue() {
    need!("cc");
    let objects = Objects::new(Sandbox::new());
    let sandbox = &objects.sandbox;
    let mut job = sandbox.run(&objects.argv("lend"));
    job.wait_line("ready");
    let mut command = sandbox.command(&objects.program);
    command.arg("borrow");
    let mut other = sandbox.start(command);
    other.wait_line("ready");
    let refused = job.try_checkpoint();
    assert!(
        !refused.success() && refused.stderr.contains("outside of the job has open"),
        "{refused:?}"
    );
    sandbox.write("returned", "");
    assert!(other.finish().success());
    job.checkpoint();
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

#[test]
fn shared_undo() {
    check_refused("shared_undo", &["SEM_UNDO", "is shared with process"]);
}
