//! A fault at every step of a checkpoint and of a restart, and within the remote calls that a checkpoint makes: the program goes
//! on, or nothing is left of what a restart had begun; the older image stays.

use rustix::process::Signal;
use stasis_tests::{
    Finished, Linkage, Random, Running, Sandbox, alive, children, need, process_state, program,
    wait_until,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The steps of a checkpoint after which it has not been committed, but for [`CALLS`].
const STEPS: &[&str] = &[
    "begin",
    "created",
    "frozen",
    "settled",
    "captured",
    "twins",
    "written",
    "resumed",
    "twins-written",
    "committing",
];

/// The places within remote calls.
const CALLS: &[&str] = &[
    "mapping-aimed",
    "mapping-called",
    "mapping-noticed",
    "asking-aimed",
    "asking-called",
    "asking-noticed",
    "unmapping-aimed",
    "unmapping-called",
    "unmapping-noticed",
    "forking-aimed",
    "forking-called",
    "forking-born",
    "forking-tracked",
    "forking-noticed",
];

const RESTART_STEPS: &[&str] = &["files", "skeleton", "revive", "mapped", "filled", "ready"];

fn lively() -> PathBuf {
    program("lively", Linkage::Dynamic).expect("there is a compiler")
}

/// A program in the midst of many things, whose supervisor has that fault.
fn start<'a>(sandbox: &'a Sandbox, fault: Option<String>) -> Running<'a> {
    let mut command = sandbox.run_command(&[lively()]);
    command.envs(fault.map(|fault| ("STASIS_TEST_FAULT", fault)));
    let mut job = sandbox.start(command);
    job.wait_line("3");
    job.wait_listed();
    job
}

fn goes_on(job: &mut Running<'_>) {
    let now = job.stdout().lines().count();
    job.wait_stdout("more lines", |text| text.lines().count() > now + 10);
    assert!(!job.stdout().contains("FAILED"), "{}", job.stdout());
}

/// Images, whole or not.
fn images(sandbox: &Sandbox) -> Vec<PathBuf> {
    let mut files = sandbox.files_in(&sandbox.images());
    files.retain(|path| path.to_string_lossy().contains(".ckpt"));
    files
}

fn verify(sandbox: &Sandbox, image: &Path) {
    sandbox
        .stasis(["verify".as_ref(), image.as_os_str()])
        .expect_success("an image");
}

/// The supervisor: the only child of the one in front.
fn supervisor(job: &Running<'_>) -> i32 {
    let below = children(job.pid());
    assert_eq!(below.len(), 1, "{below:?}");
    below[0]
}

/// The supervisor is dead, all that it had made for the checkpoint is gone, and no process stands still.
fn is_left_alone(sandbox: &Sandbox, supervisor: i32) {
    wait_until("the supervisor is dead", || {
        (!alive(supervisor)).then_some(())
    });
    wait_until("front, keeper and the running program are left", || {
        let living = sandbox.living();
        let states: Vec<_> = living.into_iter().filter_map(process_state).collect();
        let ours = states.iter().filter(|state| state.name == "stasis").count();
        let theirs = states.iter().filter(|state| state.name == "lively").count();
        // The program's second process has a child of its own now and then.
        let stands = states.iter().any(|state| state.state == 't');
        (ours == 2 && matches!(theirs, 2 | 3) && !stands).then_some(())
    });
}

/// Where memory is tracked, there is one more step.
fn sandbox_for(step: &str) -> Sandbox {
    let mut sandbox = Sandbox::new();
    if step == "forking-tracked" {
        sandbox.run_options.push("--incremental".into());
    }
    sandbox
}

fn killed_at(step: &str) -> Finished {
    let sandbox = sandbox_for(step);
    let mut job = start(&sandbox, Some(format!("kill@{step}")));
    let supervisor = supervisor(&job);
    let request = sandbox.stasis(["checkpoint", "job"]);
    is_left_alone(&sandbox, supervisor);
    goes_on(&mut job);
    for image in sandbox.all_images() {
        verify(&sandbox, &image);
    }
    job.kill_all();
    request
}

fn fails_at(step: &str) {
    let sandbox = Sandbox::new();
    let mut job = start(&sandbox, Some(format!("fail@{step}")));
    for _ in 0..2 {
        let request = sandbox.stasis(["checkpoint", "job"]);
        assert!(!request.success(), "{step}: {request:?}");
        assert!(
            request.stderr.contains(&format!("asked for at {step}")),
            "{step}: {request:?}"
        );
        goes_on(&mut job);
        assert!(
            images(&sandbox).is_empty(),
            "{step}: {:?}",
            images(&sandbox)
        );
    }
    job.kill_all();
}

#[test]
fn the_supervisor_is_killed_at_every_step() {
    need!("cc");
    for step in STEPS {
        let request = killed_at(step);
        assert!(!request.success(), "{step}: {request:?}");
    }
}

#[test]
fn the_supervisor_is_killed_within_remote_calls() {
    need!("cc");
    for step in CALLS {
        let request = killed_at(step);
        assert!(!request.success(), "{step}: {request:?}");
    }
}

/// The image has its name by then.
#[test]
fn the_supervisor_is_killed_after_the_commit() {
    need!("cc");
    let sandbox = Sandbox::new();
    let mut job = start(&sandbox, Some("kill@committed".into()));
    let supervisor = supervisor(&job);
    sandbox.stasis(["checkpoint", "job"]);
    is_left_alone(&sandbox, supervisor);
    goes_on(&mut job);
    job.kill_all();
    verify(&sandbox, &sandbox.newest_image());
}

#[test]
fn every_step_fails() {
    need!("cc");
    for step in STEPS {
        fails_at(step);
    }
}

/// A twin that cannot be made is no failure.
#[test]
fn remote_calls_fail() {
    need!("cc");
    for step in CALLS {
        if step.starts_with("forking") {
            let sandbox = sandbox_for(step);
            let mut job = start(&sandbox, Some(format!("fail@{step}")));
            let image = job.checkpoint();
            goes_on(&mut job);
            verify(&sandbox, &image);
            job.kill_all();
        } else {
            fails_at(step);
        }
    }
}

/// The older image stays what it was, the program goes on, whatever the moment.
#[test]
fn the_supervisor_is_killed_at_random_moments() {
    need!("cc");
    let mut random = Random::new();
    for _ in 0..12 {
        let sandbox = Sandbox::new();
        let mut job = start(&sandbox, None);
        let first = job.checkpoint();
        let supervisor = supervisor(&job);
        let request = sandbox.start(sandbox.stasis_command(["checkpoint", "job"]));
        // Most of a checkpoint of this program takes place in these milliseconds.
        std::thread::sleep(Duration::from_micros(random.between(0, 40_000)));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(supervisor).expect("a process id"),
            Signal::KILL,
        )
        .expect("killing the supervisor");
        request.finish();
        is_left_alone(&sandbox, supervisor);
        goes_on(&mut job);
        assert!(sandbox.all_images().contains(&first));
        for image in sandbox.all_images() {
            verify(&sandbox, &image);
        }
        job.kill_all();
    }
}

/// What the kernel shows of a process's memory.
fn areas(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps")
}

/// A checkpoint leaves nothing in the program: no area, no changed code.
#[test]
fn nothing_is_left_in_the_program() {
    need!("cc");
    let sandbox = Sandbox::new();
    let mut job = sandbox.run(&[lively().as_os_str(), "watch".as_ref()]);
    job.wait_line("3");
    job.wait_listed();
    let keeper = children(supervisor(&job))[0];
    let program = children(keeper)[0];
    let before = areas(program);
    for _ in 0..3 {
        job.checkpoint();
        goes_on(&mut job);
        assert_eq!(areas(program), before);
    }
    job.kill_all();
}

/// Where the vdso has no room, calls are made another way, and there are no twins.
#[test]
fn a_vdso_without_room() {
    need!("cc");
    let sandbox = Sandbox::new();
    let mut job = start(&sandbox, Some("pretend@full-vdso".into()));
    let program = children(children(supervisor(&job))[0])[0];
    let before = areas(program);
    for _ in 0..3 {
        let image = job.checkpoint();
        verify(&sandbox, &image);
        goes_on(&mut job);
        assert_eq!(areas(program), before);
    }
    job.kill_all();
}

fn image_of_a_dead_job(sandbox: &Sandbox) -> PathBuf {
    let counter = program("counter", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[counter.as_os_str(), "100000".as_ref(), "5".as_ref()]);
    job.wait_line("3");
    let image = job.checkpoint();
    job.kill_all();
    image
}

fn restart_with(sandbox: &Sandbox, image: &Path, fault: String) -> Finished {
    let mut command = sandbox.restart_command(image);
    command.env("STASIS_TEST_FAULT", fault);
    sandbox.start(command).finish()
}

/// Nothing remains of a restart that ends at any step, and the next one succeeds.
#[test]
fn a_restart_ends_at_every_step() {
    need!("cc");
    let sandbox = Sandbox::new();
    let image = image_of_a_dead_job(&sandbox);
    for step in RESTART_STEPS {
        for how in ["kill", "fail"] {
            let end = restart_with(&sandbox, &image, format!("{how}@{step}"));
            assert!(!end.success(), "{how}@{step}: {end:?}");
            assert!(end.stdout.is_empty(), "{how}@{step}: {end:?}");
            sandbox.wait_empty();
        }
    }
    let mut job = sandbox.restart(&image);
    goes_on(&mut job);
    job.kill_all();
}
