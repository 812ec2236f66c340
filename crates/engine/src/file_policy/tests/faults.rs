//! Failures and kills at every step of carrying out a plan.

use super::*;

/// Files in each state that `apply` has something to do about, and what they must be afterwards.
struct Faulty {
    world: World,
}

const SAVED: [(&str, &[u8]); 3] = [("grown", b"abc"), ("changed", b"def"), ("gone", b"ghi")];

impl Faulty {
    fn new() -> Faulty {
        let mut world = World::new();
        let files: Vec<File> = SAVED
            .iter()
            .map(|(name, bytes)| open_rw(&world.write(name, bytes)))
            .collect();
        let scratch = world.write("scratch", b"xyz");
        let unnamed = open_rw(&scratch);
        fs::remove_file(scratch).expect("unlink");
        let open: Vec<(&File, Uses)> = files
            .iter()
            .chain([&unnamed])
            .map(|file| (file, WRITE))
            .collect();
        world.checkpoint(&open);
        append(&world.at("grown"), b"more");
        fs::write(world.at("changed"), b"other bytes").expect("writable");
        fs::remove_file(world.at("gone")).expect("unlink");
        Faulty { world }
    }

    /// What was there before the restart is there still, under whatever name.
    fn nothing_is_lost(&self, when: &str) {
        let contents: Vec<Vec<u8>> = self
            .world
            .names()
            .iter()
            .map(|name| self.world.read(name))
            .collect();
        let has = |bytes: &[u8]| contents.iter().any(|content| content == bytes);
        assert!(
            has(b"abcmore") || (has(b"abc") && has(b"more")),
            "{when}: {:?}",
            self.world.names()
        );
        assert!(has(b"other bytes"), "{when}: {:?}", self.world.names());
    }

    /// A restart now does what it would have done at once, and leaves what it would have left.
    fn restarts(&self, when: &str) {
        self.world.restart();
        for (name, bytes) in SAVED {
            assert_eq!(self.world.read(name), bytes, "{when}: {name}");
        }
        let names = [
            "changed",
            "changed.stasis-changed-000007",
            "gone",
            "grown",
            "grown.stasis-cut-000007-at-3",
        ];
        assert_eq!(self.world.names(), names, "{when}");
        self.nothing_is_lost(when);
    }
}

#[test]
fn a_failure_at_any_step_loses_nothing() {
    let mut prepared = 0;
    for fault in 0.. {
        let faulty = Faulty::new();
        let before = faulty.world.names();
        let mut steps = Vec::new();
        let mut watch = |step: &str| {
            steps.push(step.to_owned());
            if steps.len() == fault + 1 {
                return Err(io::Error::from_raw_os_error(
                    rustix::io::Errno::NOSPC.raw_os_error(),
                ));
            }
            Ok(())
        };
        let plan = faulty.world.plan();
        let result = apply::apply_watched(
            &plan,
            &faulty.world.records,
            &faulty.world.image,
            &mut watch,
        );
        let when = format!("{steps:?}");
        if result.is_ok() {
            assert!(prepared >= 3 && fault >= 8, "{when}");
            break;
        }
        if steps
            .iter()
            .all(|step| step.starts_with("write") || step.starts_with("make"))
        {
            assert_eq!(
                faulty.world.names(),
                before,
                "{when}: everything is as it was"
            );
            assert_eq!(faulty.world.read("grown"), b"abcmore");
            assert_eq!(faulty.world.read("changed"), b"other bytes");
            prepared += 1;
        }
        faulty.nothing_is_lost(&when);
        faulty.restarts(&when);
    }
}

const CHILD_DIRECTORY: &str = "STASIS_TEST_APPLY_IN";
const CHILD_STEP: &str = "STASIS_TEST_APPLY_KILLED_AT";

/// Runs one ignored test of this binary in a process of its own.
fn child(test: &str) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().expect("this binary"));
    command.args([
        "--exact",
        "--ignored",
        "--nocapture",
        &format!("file_policy::tests::faults::{test}"),
    ]);
    command
}

#[test]
fn a_restart_killed_at_any_step_loses_nothing() {
    use std::os::unix::process::ExitStatusExt;
    for step in 0.. {
        let faulty = Faulty::new();
        let state = tempfile::NamedTempFile::new().expect("a file");
        let message =
            postcard::to_stdvec(&(&faulty.world.records, &faulty.world.image)).expect("encoded");
        fs::write(state.path(), message).expect("writable");
        let output = child("killed")
            .env(CHILD_DIRECTORY, state.path())
            .env(CHILD_STEP, step.to_string())
            .output()
            .expect("started");
        let when = format!("killed at step {step}");
        if output.status.success() {
            assert!(step >= 9, "{when}: {output:?}");
            faulty.restarts("not killed");
            break;
        }
        assert_eq!(output.status.signal(), Some(9), "{when}: {output:?}");
        faulty.nothing_is_lost(&when);
        faulty.restarts(&when);
    }
}

#[test]
#[ignore = "a process that another test starts and that kills itself"]
fn killed() {
    let (Some(state), Ok(step)) = (std::env::var_os(CHILD_DIRECTORY), std::env::var(CHILD_STEP))
    else {
        return;
    };
    let bytes = fs::read(state).expect("readable");
    let (records, image): (Vec<FileRecord>, Image) = postcard::from_bytes(&bytes).expect("decoded");
    let options = PlanOptions {
        keep_own: false,
        changed: ChangedFiles::Refuse,
        map: PathMap::default(),
        sequence: 7,
        own: Vec::new(),
        held: Vec::new(),
    };
    let plan = plan(&records, &options, &image);
    let mut left: u32 = step.parse().expect("a number");
    let mut watch = |_: &str| {
        if left == 0 {
            let us = rustix::process::getpid();
            rustix::process::kill_process(us, rustix::process::Signal::KILL)?;
        }
        left -= 1;
        Ok(())
    };
    apply::apply_watched(&plan, &records, &image, &mut watch).expect("applied");
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = r#"mount -t tmpfs -o size=512k none "$0" && exec "$@""#;
    let ours = child("on_a_full_disk");
    let output = std::process::Command::new("unshare")
        .args(["-Urm", "sh", "-c", script])
        .arg(dir.path())
        .arg(ours.get_program())
        .args(ours.get_args())
        .env(CHILD_DIRECTORY, dir.path())
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("1 passed"), "{text}");
        }
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            let not_here = text.contains("unshare failed")
                || text.contains("mount:")
                || text.contains("write failed");
            assert!(not_here, "{text}");
            eprintln!("skipped: no small file system can be mounted here: {text}");
        }
        Err(error) => eprintln!("skipped: unshare(1) cannot be run: {error}"),
    }
}

#[test]
#[ignore = "needs a small file system, which another test mounts for it"]
fn on_a_full_disk() {
    let Some(dir) = std::env::var_os(CHILD_DIRECTORY) else {
        return;
    };
    let dir = PathBuf::from(dir);
    let mut world = World::new();
    let (big, log) = (dir.join("big"), dir.join("log"));
    fs::write(&big, vec![1; 200 << 10]).expect("room");
    fs::write(&log, b"abc").expect("room");
    world.checkpoint(&[(&open_rw(&log), WRITE), (&open_rw(&big), WRITE)]);
    append(&log, b"def");
    fs::write(&big, vec![2; 200 << 10]).expect("room");
    let room_left = 400 << 10;
    fs::write(dir.join("filler"), vec![3; (512 << 10) - room_left]).expect("room");
    let before = names_in(&dir);
    let error = apply(&world.plan(), &world.records, &world.image).expect_err("no room");
    assert!(error.to_string().contains("os error 28"), "{error}");
    assert_eq!(names_in(&dir), before);
    assert_eq!(
        fs::read(&log).expect("readable"),
        b"abcdef",
        "the first file was not cut"
    );
    assert!(fs::read(&big).expect("readable") == vec![2; 200 << 10]);
    fs::remove_file(dir.join("filler")).expect("unlink");
    apply(&world.plan(), &world.records, &world.image).expect("room again");
    assert!(fs::read(&big).expect("readable") == vec![1; 200 << 10]);
}
