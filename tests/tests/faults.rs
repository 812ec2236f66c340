//! Bad input and faults: the program goes on, the older image stays, the message is clear, nothing is left behind.

use rustix::process::Signal;
use stasis_tests::{
    Exit, Finished, Linkage, Random, Running, Sandbox, alive, children, need, program, wait_until,
};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

fn counter(end: &str) -> Vec<OsString> {
    let program = program("counter", Linkage::Dynamic).expect("there is a compiler");
    vec![program.into(), end.into(), "10".into()]
}

/// A job that counts on, and its first image.
fn counting(sandbox: &Sandbox) -> (Running<'_>, PathBuf) {
    let mut job = sandbox.run(&counter("100000"));
    job.wait_line("5");
    let image = job.checkpoint();
    (job, image)
}

/// Half a GiB of memory that does not compress, so that writing takes its time.
const LARGE: &str = "import os, time\ndata = [os.urandom(1 << 20) for _ in range(384)]\ni = 0\nwhile True:\n  print(i, flush=True)\n  i += 1\n  time.sleep(0.01)\n";

fn large(sandbox: &Sandbox) -> Running<'_> {
    sandbox.write("large.py", LARGE);
    let mut job = sandbox.run(&["/usr/bin/python3", "large.py"]);
    job.wait_line("3");
    job
}

fn goes_on(job: &mut Running<'_>) {
    let now = job.stdout().lines().count();
    job.wait_stdout("ten more lines", |text| text.lines().count() > now + 10);
}

fn no_partial(sandbox: &Sandbox) {
    let partial: Vec<_> = sandbox
        .files_in(&sandbox.images())
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("partial"))
        .collect();
    assert!(partial.is_empty(), "{partial:?}");
}

/// Not status 0, a message that has one of the words, and no process.
fn refused(sandbox: &Sandbox, end: &Finished, words: &[&str]) {
    assert_eq!(end.exit, Exit::Code(125), "{end:?}");
    assert!(end.stdout.is_empty(), "something ran: {end:?}");
    let message = end.stderr.to_lowercase();
    assert!(
        words
            .iter()
            .any(|word| message.contains(&word.to_lowercase())),
        "the message has none of {words:?}: {end:?}"
    );
    assert!(!message.contains("panicked"), "{end:?}");
    sandbox.wait_empty();
}

// ---------------------------------------------------------------------------------------------- damaged images

/// An image of a counter whose job is gone.
fn image_of_a_dead_job(sandbox: &Sandbox) -> PathBuf {
    let (job, image) = counting(sandbox);
    job.kill_all();
    image
}

fn damaged(sandbox: &Sandbox, name: &str, contents: &[u8]) -> PathBuf {
    let path = sandbox.images().join(name);
    fs::write(&path, contents).expect("writing an image");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
    sandbox.give(&path);
    path
}

#[test]
fn a_truncated_image() {
    need!("cc");
    let sandbox = Sandbox::new();
    let image = fs::read(image_of_a_dead_job(&sandbox)).expect("the image");
    let length = image.len();
    for (n, end) in [0, 1, 16, 100, 4096, length / 3, length - 4096, length - 1]
        .into_iter()
        .enumerate()
    {
        let cut = damaged(
            &sandbox,
            &format!("cut-{n:06}.ckpt"),
            &image[..end.min(length)],
        );
        let end = sandbox.restart(&cut).finish();
        refused(
            &sandbox,
            &end,
            &[
                "truncated",
                "short",
                "end",
                "damaged",
                "not a",
                "length",
                "incomplete",
            ],
        );
        let verify = sandbox.stasis(["verify".as_ref(), cut.as_os_str()]);
        assert!(!verify.success(), "{verify:?}");
    }
}

/// One bit anywhere.
#[test]
fn a_flipped_bit() {
    need!("cc");
    let sandbox = Sandbox::new();
    let image = fs::read(image_of_a_dead_job(&sandbox)).expect("the image");
    let mut random = Random::new();
    for n in 0..24 {
        let mut copy = image.clone();
        let at = match n {
            0..8 => random.between(0, 512),
            8..12 => random.between(image.len() as u64 - 512, image.len() as u64),
            _ => random.between(0, image.len() as u64),
        } as usize;
        copy[at] ^= 1 << random.between(0, 8);
        let bad = damaged(&sandbox, "flip-000001.ckpt", &copy);
        let verify = sandbox.stasis(["verify".as_ref(), bad.as_os_str()]);
        if verify.success() {
            // Only bytes that mean nothing may change unnoticed; then the restart is as before.
            let mut job = sandbox.restart(&bad);
            job.wait_stdout("line", |text| text.lines().count() > 2);
            job.kill_all();
            println!("byte {at} means nothing");
            continue;
        }
        let end = sandbox.restart(&bad).finish();
        refused(
            &sandbox,
            &end,
            &[
                "checksum", "damaged", "not a", "version", "newer", "corrupt", "length",
            ],
        );
    }
}

#[test]
fn a_foreign_file() {
    let sandbox = Sandbox::new();
    for (name, contents) in [
        ("text-000001.ckpt", b"Dear reader,\n".repeat(1000)),
        ("zero-000001.ckpt", vec![0; 100_000]),
        ("elf-000001.ckpt", fs::read("/bin/true").expect("/bin/true")),
    ] {
        let path = damaged(&sandbox, name, &contents);
        let end = sandbox.restart(&path).finish();
        refused(
            &sandbox,
            &end,
            &[
                "not a stasis",
                "not an image",
                "not a checkpoint",
                "magic",
                "no stasis",
                "header is empty",
            ],
        );
        assert!(end.stderr.contains(name), "{end:?}");
    }
    let end = sandbox.restart(&sandbox.work()).finish();
    refused(&sandbox, &end, &["no "]);
}

/// Another user's image opens only where the kernel allows it, and its job is not to be seen.
#[test]
fn another_user() {
    need!("cc");
    let (Some(own), other) = (Sandbox::root(), Sandbox::new()) else {
        stasis_tests::skip!("two users are needed, and the tests do not run as root");
    };
    let (mut job, image) = counting(&own);
    let end = other.restart(&image).finish();
    refused(&other, &end, &["permission"]);
    // Not even through the other's directory of sockets.
    let mut command = other.stasis_command(["checkpoint", "job"]);
    command
        .env("STASIS_RUNTIME_DIR", own.runtime().join("stasis"))
        .env("XDG_RUNTIME_DIR", own.runtime());
    let end = other.start(command).finish();
    assert!(!end.success(), "{end:?}");
    goes_on(&mut job);
    assert_eq!(own.all_images().len(), 1);
}

// ------------------------------------------------------------------------------------------------ full disks

/// The job's processes may write only so much: the image hits the limit, the program does not.
#[test]
fn a_file_size_limit() {
    let sandbox = Sandbox::new();
    sandbox.write("large.py", LARGE);
    let inner = sandbox.run_command(&["/usr/bin/python3", "large.py"]);
    let mut words = vec![inner.get_program().to_owned()];
    words.extend(inner.get_args().map(ToOwned::to_owned));
    let mut command = sandbox.command("prlimit");
    command.arg("--fsize=33554432").args(words);
    let mut job = sandbox.start(command);
    job.wait_line("3");
    let result = job.try_checkpoint();
    assert!(!result.success(), "{result:?}");
    assert!(
        ["too large", "file size", "limit"]
            .iter()
            .any(|word| result.stderr.contains(word)),
        "{result:?}"
    );
    goes_on(&mut job);
    no_partial(&sandbox);
    assert!(sandbox.all_images().is_empty());
}

struct Mounted(PathBuf);
impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_full_disk() {
    let Some(root) = Sandbox::root() else {
        stasis_tests::skip!("a small file system needs root");
    };
    let sandbox = Sandbox::new();
    let user = sandbox.user();
    let options = format!("size=100m,mode=0755,uid={},gid={}", user.uid, user.gid);
    let mounted = root.plain(&[
        "mount".as_ref(),
        "-t".as_ref(),
        "tmpfs".as_ref(),
        "-o".as_ref(),
        options.as_ref(),
        "small".as_ref(),
        sandbox.images().as_os_str(),
    ]);
    if !mounted.success() {
        stasis_tests::skip!("no file system can be mounted here: {}", mounted.stderr);
    }
    let _mounted = Mounted(sandbox.images());
    need!("cc");
    let (job, first) = counting(&sandbox);
    job.kill_all();
    let mut job = large(&sandbox);
    for _ in 0..2 {
        let result = job.try_checkpoint();
        assert!(!result.success(), "{result:?}");
        // Known before anything is written, with numbers.
        for word in ["no space left", "are needed", "MiB are free"] {
            assert!(result.stderr.contains(word), "{word}: {result:?}");
        }
        no_partial(&sandbox);
        goes_on(&mut job);
    }
    assert_eq!(sandbox.all_images(), std::slice::from_ref(&first));
    job.kill_all();
    sandbox
        .stasis(["verify".as_ref(), first.as_os_str()])
        .expect_success("the older image");
}

#[test]
fn the_directory_is_gone() {
    need!("cc");
    let sandbox = Sandbox::new();
    let (mut job, _) = counting(&sandbox);
    fs::rename(sandbox.images(), sandbox.path().join("elsewhere")).expect("renaming");
    let result = job.try_checkpoint();
    assert!(!result.success(), "{result:?}");
    assert!(
        result.stderr.contains("images"),
        "the directory is not named: {result:?}"
    );
    goes_on(&mut job);
    fs::rename(sandbox.path().join("elsewhere"), sandbox.images()).expect("renaming back");
    job.checkpoint();
    goes_on(&mut job);
}

#[test]
fn the_directory_cannot_be_written() {
    need!("cc");
    let sandbox = Sandbox::new();
    if sandbox.user().uid == 0 {
        stasis_tests::skip!("root can write everywhere");
    }
    let (mut job, _) = counting(&sandbox);
    fs::set_permissions(sandbox.images(), fs::Permissions::from_mode(0o555)).expect("its mode");
    let result = job.try_checkpoint();
    assert!(
        !result.success() && result.stderr.to_lowercase().contains("permission"),
        "{result:?}"
    );
    goes_on(&mut job);
    fs::set_permissions(sandbox.images(), fs::Permissions::from_mode(0o755)).expect("its mode");
    job.checkpoint();
}

// ------------------------------------------------------------------------------------------------ killed helpers

/// The supervisor: the front's only child that is not the program's ancestor alone. It is found by its own session.
fn supervisor(job: &Running<'_>) -> i32 {
    let below = children(job.pid());
    assert_eq!(below.len(), 1, "{below:?}");
    below[0]
}

fn threads_stopped(pid: i32) -> bool {
    stasis_tests::process_state(pid).is_some_and(|state| matches!(state.state, 't'))
}

/// Killed at random moments of a checkpoint: the program lives on, and the older image is intact.
#[test]
fn the_supervisor_is_killed() {
    let sandbox = Sandbox::new();
    let mut random = Random::new();
    let mut job = large(&sandbox);
    let first = job.checkpoint();
    job.kill_all();
    for round in 0..12 {
        let mut job = large(&sandbox);
        let images = sandbox.all_images();
        let supervisor = supervisor(&job);
        let below = job.descendants();
        let program = *below.last().expect("the program");
        let request = sandbox.start(sandbox.stasis_command(["checkpoint", "job"]));
        // Mostly within the first milliseconds, where the program stands still.
        let moment = match round % 3 {
            0 => random.between(0, 8_000),
            1 => random.between(0, 60_000),
            _ => random.between(0, 600_000),
        };
        std::thread::sleep(Duration::from_micros(moment));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(supervisor).expect("a process id"),
            Signal::KILL,
        )
        .expect("killing the supervisor");
        let result = request.finish();
        println!("killed after {moment} us: {:?}", result.exit);
        wait_until("the program runs again", || {
            (!threads_stopped(program)).then_some(())
        });
        goes_on(&mut job);
        let now = sandbox.all_images();
        assert!(
            now.starts_with(&images),
            "an older image is gone: {images:?}, {now:?}"
        );
        for image in &now {
            sandbox
                .stasis(["verify".as_ref(), image.as_os_str()])
                .expect_success("an image after the kill");
        }
        // Whatever was made for the checkpoint is gone.
        wait_until("only the program is left", || {
            let living: Vec<_> = job
                .descendants()
                .into_iter()
                .filter(|&pid| alive(pid))
                .collect();
            (living.len() < below.len()).then_some(())
        });
        job.kill_all();
        for image in sandbox.all_images() {
            if image != first {
                let _ = fs::remove_file(image);
            }
        }
        for partial in sandbox.files_in(&sandbox.images()) {
            if partial != first {
                let _ = fs::remove_file(partial);
            }
        }
    }
    let mut job = sandbox.restart(&first);
    job.wait_stdout("line", |text| text.lines().count() > 2);
}

/// Nothing of a restart that was killed remains.
#[test]
fn a_restart_is_killed() {
    let sandbox = Sandbox::new();
    let mut random = Random::new();
    let mut job = large(&sandbox);
    let image = job.checkpoint();
    job.kill_all();
    for _ in 0..10 {
        let mut restart = sandbox.restart(&image);
        std::thread::sleep(Duration::from_micros(random.between(0, 500_000)));
        restart.signal(Signal::KILL);
        wait_until("nothing of the restart is left", || {
            restart.exited();
            sandbox.living().is_empty().then_some(())
        });
    }
    let mut job = sandbox.restart(&image);
    job.wait_stdout("line", |text| text.lines().count() > 2);
}

/// The program dies while it is being saved.
#[test]
fn the_program_dies_meanwhile() {
    let sandbox = Sandbox::new();
    let mut random = Random::new();
    for _ in 0..8 {
        let mut job = large(&sandbox);
        let program = *job.descendants().last().expect("the program");
        let request = sandbox.start(sandbox.stasis_command(["checkpoint", "job"]));
        std::thread::sleep(Duration::from_micros(random.between(0, 50_000)));
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_raw(program).expect("a process id"),
            Signal::KILL,
        );
        let result = request.finish();
        assert!(result.success() || !result.stderr.is_empty(), "{result:?}");
        assert!(!result.stderr.contains("panicked"), "{result:?}");
        assert_eq!(job.exited().unwrap_or(Exit::Code(137)), Exit::Code(137));
        let end = job.finish();
        assert_eq!(end.exit, Exit::Code(137), "{end:?}");
        sandbox.wait_empty();
        no_partial(&sandbox);
        for image in sandbox.all_images() {
            sandbox
                .stasis(["verify".as_ref(), image.as_os_str()])
                .expect_success("an image");
            let _ = fs::remove_file(image);
        }
    }
}

/// Two requests at once: one after the other, or a clear refusal; never a broken image.
#[test]
fn two_requests_at_once() {
    let sandbox = Sandbox::new();
    let mut job = large(&sandbox);
    let first = sandbox.start(sandbox.stasis_command(["checkpoint", "job"]));
    let second = sandbox.start(sandbox.stasis_command(["checkpoint", "job"]));
    let (first, second) = (first.finish(), second.finish());
    assert!(first.success() || second.success(), "{first:?} {second:?}");
    for end in [&first, &second] {
        assert!(end.success() || !end.stderr.is_empty(), "{end:?}");
    }
    goes_on(&mut job);
    for image in sandbox.all_images() {
        sandbox
            .stasis(["verify".as_ref(), image.as_os_str()])
            .expect_success("an image");
    }
}

// ----------------------------------------------------------------------------------------------- what is refused

/// Named, with process, descriptor and reason, before anything is touched; and the program goes on.
fn is_refused(text: &str, words: &[&str]) {
    let sandbox = Sandbox::new();
    let whole = format!(
        "import os, sys, time, socket, ctypes\n{text}\nfor i in range(100000):\n  print(i, flush=True)\n  time.sleep(0.01)\n"
    );
    sandbox.write("refused.py", whole);
    let mut job = sandbox.run(&["/usr/bin/python3", "refused.py"]);
    job.wait_stdout("line", |text| text.contains('\n'));
    if job.stdout().starts_with("unsupported") {
        stasis_tests::skip!("the kernel does not have it");
    }
    job.wait_line("3");
    let result = job.try_checkpoint();
    assert!(!result.success(), "{result:?}");
    for word in words {
        assert!(
            result.stderr.contains(word),
            "{word:?} is not named: {result:?}"
        );
    }
    assert!(sandbox.all_images().is_empty());
    no_partial(&sandbox);
    goes_on(&mut job);
    let check = sandbox.stasis([
        "check".into(),
        job.descendants().last().expect("the program").to_string(),
    ]);
    for word in words {
        assert!(
            check.stdout.contains(word) || check.stderr.contains(word),
            "check does not name {word:?}: {check:?}"
        );
    }
}

/// A program that forks madly during the freeze is caught all the same.
#[test]
fn a_program_that_is_not_dumpable() {
    is_refused(
        "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)",
        &["python3", "protected"],
    );
}

// -------------------------------------------------------------------------------------------------------- limits

/// Few descriptors are left to the supervisor.
#[test]
fn a_descriptor_limit() {
    need!("cc");
    let sandbox = Sandbox::new();
    let program = program("descriptors", Linkage::Dynamic).expect("there is a compiler");
    let inner = sandbox.run_command(&[program.as_os_str(), "many".as_ref()]);
    let mut words = vec![inner.get_program().to_owned()];
    words.extend(inner.get_args().map(ToOwned::to_owned));
    let mut command = sandbox.command("prlimit");
    command.arg("--nofile=1000:1000").args(words);
    let mut job = sandbox.start(command);
    job.wait_line("ready");
    let result = job.try_checkpoint();
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
    if !result.success() {
        let message = result.stderr.to_lowercase();
        assert!(
            message.contains("descriptor") || message.contains("open files"),
            "{result:?}"
        );
    }
}

/// The restart gets less memory than the program had.
#[test]
fn no_memory_at_the_restart() {
    let sandbox = Sandbox::new();
    let mut job = large(&sandbox);
    let image = job.checkpoint();
    job.kill_all();
    let inner = sandbox.restart_command(&image);
    let mut words = vec![inner.get_program().to_owned()];
    words.extend(inner.get_args().map(ToOwned::to_owned));
    let mut command = sandbox.command("prlimit");
    command.arg("--as=200000000:200000000").args(words);
    let end = sandbox.start(command).finish();
    refused(&sandbox, &end, &["memory", "limit", "allocate"]);
}
