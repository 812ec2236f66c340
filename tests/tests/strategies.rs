//! Each strategy for the ids, forced, on the basic programs.

use stasis_tests::{Exit, Finished, Linkage, Sandbox, need, program, wait_until};
use std::path::Path;
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

/// Somebody else on the machine may have taken an id: then it is told, and tried again.
fn restart(sandbox: &Sandbox, image: &Path) -> Finished {
    for _ in 0..5 {
        let end = sandbox.restart(image).finish();
        if !taken(&end.stderr) {
            return end;
        }
        println!("ids were taken: {}", end.stderr);
    }
    panic!("the ids are always taken");
}

fn taken(message: &str) -> bool {
    message.contains("other processes have them")
}

fn verify(strategy: &str, name: &str, arguments: &[&str]) {
    need!("cc");
    // First, as it has to outlast the sandbox.
    let _alone = alone();
    let Some(sandbox) = sandbox(strategy) else {
        stasis_tests::skip!("the tests do not run as root");
    };
    let program = program(name, Linkage::Dynamic).expect("there is a compiler");
    let mut argv = vec![program.as_os_str()];
    argv.extend(arguments.iter().map(std::ffi::OsStr::new));
    let mut job = sandbox.run(&argv);
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();

    let mut second = None;
    for _ in 0..5 {
        let mut job = sandbox.restart(&image);
        wait_until("the job is listed, or its ids are taken", || {
            (job.exited().is_some() || sandbox.stasis(["ps"]).stdout.contains("job")).then_some(())
        });
        if job.exited().is_some() {
            let end = job.finish();
            assert!(taken(&end.stderr), "{end:?}");
            println!("ids were taken: {}", end.stderr);
            continue;
        }
        second = Some(job.checkpoint());
        job.kill_all();
        break;
    }
    let second = second.expect("the ids are always taken");
    sandbox.write("go", "");
    for image in [&image, &second] {
        let end = restart(&sandbox, image);
        assert_eq!(end.exit, Exit::Code(0), "{end:?}");
        assert!(end.stdout.ends_with("ok\n"), "{end:?}");
    }
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
                verify(STRATEGY, "memory", &["protections"]);
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
