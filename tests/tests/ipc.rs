//! System V IPC and POSIX message queues come back as they were.

use stasis_tests::{Finished, Linkage, Running, Sandbox, need, program, verify_after_restart};
use std::path::{Path, PathBuf};
use std::process::Stdio;

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

impl Objects {
    /// Removes what was made on the host.
    fn clean(&self) {
        let mut command = self.sandbox.command(&self.program);
        let _ = command.arg("clean").stdout(Stdio::null()).status();
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        self.clean();
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
    blocked_mqueues stream everything
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

/// In namespaces of its own, all queues are the job's, also those that no process has open.
#[test]
fn closed_mqueue() {
    need!("cc");
    let objects = with_strategy(Sandbox::new(), "namespaces");
    let sandbox = &objects.sandbox;
    let mut job = sandbox.run(&objects.argv("closed_mqueue"));
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();
    let mut job = sandbox.restart(&image);
    sandbox.write("go", "");
    job.wait_line("closed");
    let image = job.checkpoint();
    job.kill_all();
    sandbox.write("end", "");
    let end = sandbox.restart(&image).finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

#[test]
fn shared_undo() {
    check_refused("shared_undo", &["SEM_UNDO", "is shared with process"]);
}

/// Who holds objects of its own while a test goes on, and checks them when it is told to end.
struct Other<'a>(Option<Running<'a>>, &'a Sandbox);

impl<'a> Other<'a> {
    fn start(objects: &'a Objects, case: &str) -> Other<'a> {
        let mut command = objects.sandbox.command(&objects.program);
        command.arg(case);
        let mut running = objects.sandbox.start(command);
        running.wait_line("ready");
        Other(Some(running), &objects.sandbox)
    }

    fn finish(mut self) {
        self.1.write("returned", "");
        let end = self.0.take().expect("it runs").finish();
        assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    }
}

/// Somebody else on the machine may have taken the ids of a job that is gone.
fn with_free_ids(attempt: impl Fn() -> Option<()>) {
    assert!(
        (0..12).any(|_| attempt().is_some()),
        "the ids are always taken"
    );
}

fn restart(objects: &Objects, image: &Path) -> Option<Finished> {
    let end = objects.sandbox.restart(image).finish();
    (!end.stderr.contains("other processes have them")).then_some(end)
}

/// A job that has been saved and killed, and its image.
fn saved(objects: &Objects) -> PathBuf {
    let mut job = objects.sandbox.run(&objects.argv("everything"));
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();
    image
}

fn with_strategy(mut sandbox: Sandbox, strategy: &str) -> Objects {
    let options = ["--strategy".into(), strategy.into()];
    sandbox.restart_options.extend(options);
    Objects::new(sandbox)
}

/// Where ids cannot be chosen, what the killed program has left on the host is taken again, and gets the contents of the image.
#[test]
fn burn_takes_what_was_left() {
    need!("cc");
    with_free_ids(|| {
        let objects = with_strategy(Sandbox::new(), "burn");
        let image = saved(&objects);
        let mut command = objects.sandbox.command(&objects.program);
        assert!(command.arg("spoil").status().expect("it runs").success());
        objects.sandbox.write("go", "");
        let end = restart(&objects, &image)?;
        // The supervisor of another test's job may look at it just now.
        if end.stderr.contains("its id is in use") {
            println!("somebody looks at it: {}", end.stderr);
            return None;
        }
        assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
        Some(())
    });
}

/// What is gone, or has a key or a name that somebody else has now, is told before anything is started, all of it; and left as it is.
#[test]
fn burn_tells_what_is_taken() {
    need!("cc");
    with_free_ids(|| {
        let objects = with_strategy(Sandbox::new(), "burn");
        let image = saved(&objects);
        objects.clean();
        objects.sandbox.write("go", "");
        let end = restart(&objects, &image)?;
        assert!(!end.success() && end.stdout.is_empty(), "{end:?}");
        assert_eq!(end.stderr.matches("it is gone").count(), 4, "{end:?}");
        let other = Other::start(&objects, "occupy");
        let end = restart(&objects, &image)?;
        assert!(!end.success() && end.stdout.is_empty(), "{end:?}");
        for (words, count) in [
            ("System V shared memory segment", 2),
            ("System V semaphore set", 1),
            ("System V message queue", 1),
            ("is in use by an object of user", 4),
            ("its name is in use by another queue", 1),
        ] {
            assert_eq!(end.stderr.matches(words).count(), count, "{words}: {end:?}");
        }
        other.finish();
        Some(())
    });
}

/// In namespaces of its own a job has its ids, keys and names whatever others have, and others keep theirs.
#[test]
fn others_do_not_matter() {
    need!("cc");
    let objects = with_strategy(Sandbox::new(), "namespaces");
    let stranger = Objects::new(Sandbox::new());
    let alone = Other::start(&stranger, "stranger");
    let image = saved(&objects);
    objects.clean();
    let other = Other::start(&objects, "occupy");
    let mut job = objects.sandbox.restart(&image);
    job.wait_listed();
    let second = job.checkpoint();
    objects.sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    let end = objects.sandbox.restart(&second).finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    other.finish();
    alone.finish();
}

/// Root chooses ids on the host.
#[test]
fn root_on_the_host() {
    need!("cc");
    let Some(_) = Sandbox::root() else {
        stasis_tests::skip!("the tests do not run as root");
    };
    with_free_ids(|| {
        let objects = with_strategy(Sandbox::root()?, "privileged");
        let image = saved(&objects);
        objects.sandbox.write("go", "");
        for _ in ["left behind", "gone"] {
            let end = restart(&objects, &image)?;
            assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
        }
        Some(())
    });
}

/// A supervisor that is killed while processes are asked for what they undo, or right after messages were looked at, leaves a
/// program that has all it had.
#[test]
fn killed_supervisor() {
    need!("cc");
    for case in ["undo", "everything", "mqueues"] {
        for step in [
            "asking-aimed",
            "asking-called",
            "asking-noticed",
            "captured",
        ] {
            let objects = Objects::new(Sandbox::new());
            let mut command = objects.sandbox.run_command(&objects.argv(case));
            command.env("STASIS_TEST_FAULT", format!("kill@{step}"));
            let mut job = objects.sandbox.start(command);
            job.wait_line("ready");
            assert!(!job.try_checkpoint().success(), "{case}, {step}");
            objects.sandbox.write("go", "");
            let end = job.finish();
            assert!(end.stdout.ends_with("ok\n"), "{case}, {step}: {end:?}");
        }
    }
}
