//! Each strategy for the ids, forced, on the basic programs.

use rustix::process::Signal;
use stasis_tests::{Exit, Finished, Linkage, Running, Sandbox, alive, need, program, wait_until};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// The ids of one test's dead job must not be taken by another test's: one at a time where they come from the host.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    match ALONE.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

fn sandbox(strategy: &str) -> Option<Sandbox> {
    let mut sandbox = match strategy {
        "privileged" => Sandbox::root()?,
        _ => Sandbox::new(),
    };
    sandbox
        .restart_options
        .extend(["--strategy".into(), strategy.into()]);
    if strategy != "namespaces" {
        sandbox
            .env
            .push(("STASIS_TEST_OUTSIDE_MAY_CHANGE".into(), "yes".into()));
    }
    Some(sandbox)
}

/// Somebody else on the machine may have taken an id: then it is told, tried again, and in the end `None`.
fn restart(sandbox: &Sandbox, image: &Path) -> Option<Finished> {
    for _ in 0..3 {
        sandbox.free_ids();
        let end = sandbox.restart(image).finish();
        if !taken(&end.stderr) {
            return Some(end);
        }
        println!("ids were taken: {}", end.stderr);
    }
    None
}

fn taken(message: &str) -> bool {
    message.contains("other processes have them")
}

/// Does `attempt`, with a new job and its new ids where those of the one before were taken.
fn with_free_ids(attempt: impl Fn() -> Option<()>) {
    assert!(
        (0..12).any(|_| attempt().is_some()),
        "the ids are always taken"
    );
}

fn verify(strategy: &str, name: &str, arguments: &[&str]) {
    need!("cc");
    // First, as it has to outlast the sandbox.
    let _alone = alone();
    with_free_ids(|| {
        let Some(sandbox) = sandbox(strategy) else {
            println!("skipped: the tests do not run as root");
            return Some(());
        };
        let program = program(name, Linkage::Dynamic).expect("there is a compiler");
        let mut argv = vec![program.as_os_str()];
        argv.extend(arguments.iter().map(std::ffi::OsStr::new));
        let mut job = sandbox.run(&argv);
        job.wait_line("ready");
        let image = job.checkpoint();
        job.kill_all();
        // Where a round of the counter costs seconds, what differs between the strategies is done once.
        let mut images = vec![image];
        if strategy != "burn" {
            let mut job = listed(&sandbox, &images[0])?;
            images.push(job.checkpoint());
            job.kill_all();
        }
        sandbox.write("go", "");
        for image in &images {
            let end = restart(&sandbox, image)?;
            assert_eq!(end.exit, Exit::Code(0), "{end:?}");
            assert!(end.stdout.ends_with("ok\n"), "{end:?}");
        }
        Some(())
    });
}

/// A restarted job that runs; `None` when its ids are taken.
fn listed<'a>(sandbox: &'a Sandbox, image: &Path) -> Option<Running<'a>> {
    sandbox.free_ids();
    let mut job = sandbox.restart(image);
    wait_until("the job is listed, or its ids are taken", || {
        (job.exited().is_some() || sandbox.stasis(["ps"]).stdout.contains("job")).then_some(())
    });
    if job.exited().is_none() {
        return Some(job);
    }
    let end = job.finish();
    assert!(taken(&end.stderr), "{end:?}");
    println!("ids were taken: {}", end.stderr);
    None
}

macro_rules! suite {
    ($strategy:ident) => {
        mod $strategy {
            use super::verify;
            const STRATEGY: &str = stringify!($strategy);

            #[test]
            fn memory() {
                verify(STRATEGY, "memory", &["anonymous"]);
                verify(STRATEGY, "memory", &["shared_anonymous"]);
            }
            #[test]
            fn threads() {
                verify(STRATEGY, "threads", &["crowd", "8"]);
            }
            #[test]
            fn an_exited_leader() {
                verify(STRATEGY, "threads", &["exited_leader"]);
            }
            #[test]
            fn tree() {
                verify(STRATEGY, "processes", &["small_tree"]);
            }
            #[test]
            fn sessions() {
                verify(STRATEGY, "processes", &["sessions"]);
            }
            #[test]
            fn dead_leaders() {
                verify(STRATEGY, "processes", &["dead_leaders"]);
            }
            #[test]
            fn zombies_and_orphans() {
                verify(STRATEGY, "processes", &["zombies"]);
                verify(STRATEGY, "processes", &["orphans"]);
                verify(STRATEGY, "processes", &["stopped"]);
            }
            #[test]
            fn attributes() {
                verify(STRATEGY, "processes", &["attributes"]);
                verify(STRATEGY, "processes", &["shown"]);
                verify(STRATEGY, "processes", &["credentials"]);
            }
            #[test]
            fn signals() {
                verify(STRATEGY, "signals", &["pending"]);
                verify(STRATEGY, "signals", &["in_handler"]);
            }
            #[test]
            fn descriptors() {
                verify(STRATEGY, "descriptors", &["regular"]);
                verify(STRATEGY, "descriptors", &["pipes"]);
                verify(STRATEGY, "descriptors", &["epolls"]);
                verify(STRATEGY, "descriptors", &["pidfds"]);
                verify(STRATEGY, "descriptors", &["watches"]);
            }
            #[test]
            fn rings() {
                verify(STRATEGY, "rings", &["idle"]);
                verify(STRATEGY, "rings", &["contexts"]);
            }
            #[test]
            fn settings() {
                verify(STRATEGY, "processes", &["settings"]);
            }
            #[test]
            fn intervals() {
                verify(STRATEGY, "timeouts", &["intervals"]);
            }
        }
    };
}

suite!(namespaces);
suite!(burn);
suite!(privileged);

/// An image of a tree that is dead, in a sandbox of its own.
fn dead_tree(strategy: &str, case: &str) -> (Sandbox, PathBuf) {
    let sandbox = sandbox(strategy).expect("an ordinary user's");
    let program = program("processes", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[program.as_os_str(), case.as_ref()]);
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();
    (sandbox, image)
}

/// A restart that is ended while it makes processes leaves none behind.
#[test]
fn a_restart_is_ended_while_it_burns() {
    need!("cc");
    let _alone = alone();
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        with_free_ids(|| {
            let (sandbox, image) = dead_tree("burn", "small_tree");
            let mut job = sandbox.restart(&image);
            // The keeper is there, and its ids are a round away.
            let burning = wait_until("the keeper burns ids, or the restart ends", || {
                let keeper = job.descendants().len() >= 2;
                (keeper || job.exited().is_some()).then_some(keeper)
            });
            job.signal(signal);
            wait_until("the front has ended", || job.exited());
            sandbox.wait_empty();
            burning.then_some(())
        });
    }
}

/// The supervisor is killed at each step: nothing remains.
#[test]
fn a_restart_is_killed_at_each_step() {
    need!("cc");
    let _alone = alone();
    for strategy in ["namespaces", "burn"] {
        for step in [
            "files", "skeleton", "revive", "mapped", "filled", "ready", "started",
        ] {
            with_free_ids(|| {
                let (mut sandbox, image) = dead_tree(strategy, "small_tree");
                let fault = ("STASIS_TEST_FAULT".to_owned(), format!("kill@{step}"));
                sandbox.env.push(fault);
                let end = restart(&sandbox, &image)?;
                assert_ne!(end.exit, Exit::Code(0), "{strategy}, {step}: {end:?}");
                sandbox.wait_empty();
                Some(())
            });
        }
    }
}

/// A whole tree takes a round or two of the kernel's counter, and not one for each process.
#[test]
fn a_tree_of_forty_is_burnt_at_once() {
    need!("cc");
    let _alone = alone();
    with_free_ids(|| {
        let (sandbox, image) = dead_tree("burn", "tree");
        sandbox.write("go", "");
        let end = restart(&sandbox, &image)?;
        assert_eq!(end.exit, Exit::Code(0), "{end:?}");
        Some(())
    });
}

/// In namespaces it does not matter that the ids are in use: the program itself may go on, and be there several times.
#[test]
fn several_restarts_of_one_image() {
    need!("cc");
    let sandbox = sandbox("namespaces").expect("an ordinary user's");
    let program = program("counter", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[program.as_os_str(), "100000".as_ref(), "10".as_ref()]);
    job.wait_line("3");
    let image = job.checkpoint();
    let mut copies: Vec<_> = ["one", "two", "three"]
        .iter()
        .map(|name| {
            let mut command = sandbox.restart_command(&image);
            command.args(["-n", name]);
            sandbox.start(command)
        })
        .collect();
    for copy in &mut copies {
        copy.wait_stdout("lines", |text| text.lines().count() > 5);
    }
    let before = job.stdout().lines().count();
    job.wait_stdout("more lines", |text| text.lines().count() > before);
    assert!(copies.iter().all(|copy| alive(copy.pid())));
    job.kill_all();
}

/// After a reboot others have the ids: without a strategy asked for, one that does not need them is taken.
#[test]
fn ids_in_use_after_a_reboot() {
    need!("cc");
    let _alone = alone();
    let Some(mut sandbox) = sandbox("privileged") else {
        stasis_tests::skip!("the tests do not run as root");
    };
    sandbox
        .restart_options
        .truncate(sandbox.restart_options.len() - 2);
    let program = program("counter", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[program.as_os_str(), "100000".as_ref(), "10".as_ref()]);
    job.wait_line("3");
    let image = job.checkpoint();
    let mut command = sandbox.restart_command(&image);
    command.args(["-n", "copy"]);
    let mut copy = sandbox.start(command);
    copy.wait_stdout("lines", |text| text.lines().count() > 5);
    job.kill_all();
}

/// What is no image is called that, and no name is taken for it.
#[test]
fn a_file_that_is_no_image() {
    let sandbox = Sandbox::new();
    let end = sandbox.stasis(["restart", "/etc/passwd"]);
    assert_eq!(end.exit, Exit::Code(125), "{end:?}");
    assert!(end.stderr.contains("/etc/passwd"), "{end:?}");
    assert!(end.stderr.contains("not a Stasis image"), "{end:?}");
}

/// With ids in use, a strategy that needs them free says so and starts nothing.
#[test]
fn taken_ids_are_refused() {
    need!("cc");
    let _alone = alone();
    for strategy in ["burn", "privileged"] {
        let Some(sandbox) = sandbox(strategy) else {
            continue;
        };
        let program = program("counter", Linkage::Dynamic).expect("there is a compiler");
        let mut job = sandbox.run(&[program.as_os_str(), "100000".as_ref(), "10".as_ref()]);
        job.wait_line("3");
        let image = job.checkpoint();
        let mut command = sandbox.restart_command(&image);
        command.args(["-n", "copy"]);
        let end = sandbox.start(command).finish();
        assert_eq!(end.exit, Exit::Code(125), "{end:?}");
        assert!(taken(&end.stderr) && end.stdout.is_empty(), "{end:?}");
        let now = job.stdout().lines().count();
        job.wait_stdout("more lines", |text| text.lines().count() > now + 3);
        job.kill_all();
    }
}

/// The strategy that a host does not allow is refused with the reason.
#[test]
fn privileged_without_privilege() {
    need!("cc");
    let sandbox = sandbox("namespaces").expect("an ordinary user's");
    if sandbox.user().uid == 0 {
        stasis_tests::skip!("everything is allowed to root");
    }
    let program = program("counter", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[program.as_os_str(), "100000".as_ref(), "10".as_ref()]);
    job.wait_line("3");
    let image = job.checkpoint();
    job.kill_all();
    let mut command = sandbox.stasis_command(["restart", "--strategy", "privileged"]);
    command.arg(&image);
    let end = sandbox.start(command).finish();
    assert_eq!(end.exit, Exit::Code(125), "{end:?}");
    assert!(end.stderr.contains("CAP_CHECKPOINT_RESTORE"), "{end:?}");
}

#[test]
fn check_names_the_strategies() {
    let sandbox = Sandbox::new();
    let check = sandbox.stasis(["check"]);
    assert!(check.success(), "{check:?}");
    for word in ["namespaces", "burn", "privileged"] {
        assert!(check.stdout.contains(word), "{check:?}");
    }
}
