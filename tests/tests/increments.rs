//! Checkpoints that store only what the one before does not hold.

use stasis_tests::{Finished, Linkage, Running, Sandbox, need, program, wait_until};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Of the changing program.
const KIB: u64 = 4096;

fn sandbox() -> Sandbox {
    let mut sandbox = Sandbox::new();
    for options in [&mut sandbox.run_options, &mut sandbox.restart_options] {
        *options = ["--incremental", "--keep", "2"].map(String::from).into();
    }
    // What is said not to have changed is read nevertheless, and the checkpoint fails where it has.
    sandbox.env = vec![("STASIS_TEST_FAULT".into(), "pretend@doubt".into())];
    sandbox
}

fn changing(sandbox: &Sandbox, pages: &str) -> Vec<std::ffi::OsString> {
    let _ = sandbox;
    let program = program("changing", Linkage::Dynamic).expect("there is a compiler");
    vec![program.into(), KIB.to_string().into(), pages.into()]
}

fn start<'a>(sandbox: &'a Sandbox, pages: &str) -> Running<'a> {
    let mut job = sandbox.run(&changing(sandbox, pages));
    job.wait_line("ready");
    job
}

/// Has the program look at all its memory.
fn is_of_one_moment(sandbox: &Sandbox, job: &mut Running<'_>) {
    let lines = |job: &Running<'_>| job.stdout().matches("fine\n").count();
    let before = lines(job);
    // Its own before it has the name: the program removes it at once.
    let file = sandbox.write("check.new", "");
    fs::rename(file, sandbox.work().join("check")).expect("asking the program");
    job.wait_stdout("fine", |text| text.matches("fine\n").count() > before);
}

/// What all files in the directory of images take.
fn room(sandbox: &Sandbox) -> u64 {
    let files = sandbox.files_in(&sandbox.images());
    let len = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    files.iter().map(len).sum()
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).expect("the file is there").len()
}

fn verify(sandbox: &Sandbox, image: &Path) -> Finished {
    sandbox.stasis(["verify".as_ref(), image.as_os_str()])
}

/// Restarts, has the program look at its memory, and ends it.
fn comes_back(sandbox: &Sandbox, path: &Path) {
    let mut job = sandbox.restart(path);
    is_of_one_moment(sandbox, &mut job);
    job.kill_all();
}

#[test]
fn what_has_not_changed_is_not_stored_again() {
    need!("cc");
    let sandbox = sandbox();
    let mut job = start(&sandbox, "1");
    let full = job.checkpoint();
    let second = job.checkpoint();
    assert!(
        len(&second) * 4 < len(&full),
        "{} of {}",
        len(&second),
        len(&full)
    );
    let third = job.checkpoint();
    // The first is no checkpoint any more, and is still needed.
    assert!(!full.exists() && full.with_extension("base").exists());
    job.kill_all();
    for image in [&second, &third] {
        verify(&sandbox, image).expect_success("verify");
        comes_back(&sandbox, image);
    }
    let list = sandbox.stasis(["list"]);
    assert!(list.stdout.contains("complete, newest"), "{list:?}");
    assert!(list.stdout.contains("1 older file holds"), "{list:?}");
}

#[test]
fn a_restarted_job_goes_on_from_what_is_there() {
    need!("cc");
    let sandbox = sandbox();
    let mut job = start(&sandbox, "1");
    let full = len(&job.checkpoint());
    let second = job.checkpoint();
    job.kill_all();
    let mut job = sandbox.restart(&second);
    let third = job.checkpoint();
    assert!(len(&third) * 4 < full);
    job.kill_all();
    comes_back(&sandbox, &third);
}

#[test]
fn hundreds_of_checkpoints_stay_within_bounds() {
    need!("cc");
    let sandbox = sandbox();
    let mut job = start(&sandbox, "1");
    let full = len(&job.checkpoint());
    let mut most = 0;
    for round in 0..10 {
        for _ in 0..50 {
            job.checkpoint();
            let room = room(&sandbox);
            most = most.max(room);
            assert!(
                room * 10 <= full * 23,
                "round {round}: {room} bytes, a full image has {full}"
            );
        }
        is_of_one_moment(&sandbox, &mut job);
        job.kill_all();
        let images = sandbox.all_images();
        assert_eq!(images.len(), 2, "{images:?}");
        for image in &images {
            verify(&sandbox, image).expect_success("verify");
        }
        // Now the newest, now the one before.
        job = sandbox.restart(&images[round % 2]);
        is_of_one_moment(&sandbox, &mut job);
    }
    println!(
        "at most {:.2} times a full image",
        most as f64 / full as f64
    );
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

/// Changes the first byte of what an image holds.
fn flip(path: &Path) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the file is there");
    let at = 4096;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reading");
    file.write_all_at(&[byte[0] ^ 8], at).expect("writing");
}

#[test]
fn a_flipped_bit_in_a_base_is_found() {
    need!("cc");
    let sandbox = sandbox();
    let mut job = start(&sandbox, "1");
    let full = job.checkpoint();
    let second = job.checkpoint();
    job.kill_all();
    flip(&full);
    for image in [&full, &second] {
        let verdict = verify(&sandbox, image);
        assert!(!verdict.success(), "{verdict:?}");
        assert!(
            verdict.stderr.contains(&*full.to_string_lossy()),
            "{verdict:?}"
        );
    }
    let refused = sandbox
        .start(sandbox.restart_command(&sandbox.images()))
        .finish();
    assert!(!refused.success(), "{refused:?}");
    assert!(refused.stderr.contains("damaged"), "{refused:?}");
    assert!(sandbox.living().is_empty());
}

#[test]
fn the_newest_that_is_whole_is_taken() {
    need!("cc");
    let sandbox = sandbox();
    let mut job = start(&sandbox, "1");
    let full = job.checkpoint();
    let second = job.checkpoint();
    job.kill_all();
    flip(&second);
    let mut job = sandbox.restart(&sandbox.images());
    is_of_one_moment(&sandbox, &mut job);
    wait_until("the damaged one is named", || {
        job.stderr()
            .contains(&*second.to_string_lossy())
            .then_some(())
    });
    drop(job);
    verify(&sandbox, &full).expect_success("the older one");
}

#[test]
fn a_missing_base_is_named() {
    need!("cc");
    let sandbox = sandbox();
    let mut job = start(&sandbox, "1");
    let full = job.checkpoint();
    let second = job.checkpoint();
    job.kill_all();
    let away = sandbox.work().join("away");
    fs::rename(&full, &away).expect("moving the base away");
    let refused = sandbox.start(sandbox.restart_command(&second)).finish();
    assert!(!refused.success(), "{refused:?}");
    assert!(refused.stderr.contains("job-000001"), "{refused:?}");
    let list = sandbox.stasis(["list"]);
    assert!(list.stdout.contains("missing base"), "{list:?}");
    fs::rename(&away, full.with_extension("base")).expect("bringing it back");
    comes_back(&sandbox, &second);
}

#[test]
fn one_file_is_made_of_an_increment() {
    need!("cc");
    let sandbox = sandbox();
    let mut job = start(&sandbox, "1");
    job.checkpoint();
    let second = job.checkpoint();
    job.kill_all();
    let to = sandbox.work().join("moved.ckpt");
    sandbox
        .stasis(["export".as_ref(), second.as_os_str(), to.as_os_str()])
        .expect_success("export");
    for file in sandbox.files_in(&sandbox.images()) {
        fs::remove_file(file).expect("removing what it was made of");
    }
    comes_back(&sandbox, &to);
}

#[test]
fn prune_keeps_what_is_needed() {
    need!("cc");
    let mut sandbox = sandbox();
    sandbox.run_options = ["--incremental", "--keep", "99"].map(String::from).into();
    let mut job = start(&sandbox, "1");
    let images: Vec<PathBuf> = (0..4).map(|_| job.checkpoint()).collect();
    job.kill_all();
    let prune = |more: &[&str]| {
        let images = sandbox.images();
        let mut words = vec!["prune".as_ref(), images.as_os_str(), "--keep=1".as_ref()];
        words.extend(more.iter().map(std::ffi::OsStr::new));
        sandbox.stasis(words).expect_success("prune")
    };
    let before = sandbox.files_in(&sandbox.images());
    let dry = prune(&["--dry-run"]);
    assert!(dry.stdout.contains("would free"), "{dry:?}");
    assert_eq!(sandbox.files_in(&sandbox.images()), before);
    prune(&[]);
    assert_eq!(sandbox.all_images(), [images[3].clone()]);
    verify(&sandbox, &images[3]).expect_success("verify");
    comes_back(&sandbox, &images[3]);
    let again: serde_json::Value = serde_json::from_str(&prune(&["--json"]).stdout).expect("JSON");
    assert_eq!(again["freed_bytes"], 0, "{again}");
}

#[test]
fn the_supervisor_is_killed_while_an_increment_is_written() {
    need!("cc");
    for step in ["resumed", "twins-written", "committing", "committed"] {
        let mut sandbox = sandbox();
        let mut job = start(&sandbox, "1");
        job.checkpoint();
        let second = job.checkpoint();
        job.kill_all();
        sandbox.env = vec![("STASIS_TEST_FAULT".into(), format!("kill@{step}"))];
        let mut job = sandbox.restart(&second);
        let result = job.try_checkpoint();
        assert!(!result.success(), "{step}: {result:?}");
        // The program knows nothing of it.
        is_of_one_moment(&sandbox, &mut job);
        job.kill_all();
        sandbox.env.clear();
        let images = sandbox.all_images();
        assert!(images.contains(&second), "{step}: {images:?}");
        for image in &images {
            verify(&sandbox, image).expect_success(step);
        }
        // What is left behind is cleared away, and the chain goes on.
        let mut job = sandbox.restart(&sandbox.images());
        is_of_one_moment(&sandbox, &mut job);
        job.checkpoint();
        let partial = |path: &PathBuf| path.to_string_lossy().ends_with(".partial");
        let files = sandbox.files_in(&sandbox.images());
        assert!(!files.iter().any(partial), "{step}: {files:?}");
        job.kill_all();
        comes_back(&sandbox, &sandbox.images());
    }
}

#[test]
fn a_disk_that_is_full_leaves_the_chain_whole() {
    need!("cc");
    let sandbox = sandbox();
    let mut job = start(&sandbox, "1");
    job.checkpoint();
    let second = job.checkpoint();
    job.kill_all();
    // Files may have so many bytes: an increment of many changes has more.
    let inner = sandbox.restart_command(&second);
    let mut command = sandbox.command("prlimit");
    command
        .arg("--fsize=65536")
        .arg(inner.get_program())
        .args(inner.get_args());
    let mut job = sandbox.start(command);
    job.wait_listed();
    let failed = wait_until("enough has changed for a failure", || {
        let result = job.try_checkpoint();
        (!result.success()).then_some(result)
    });
    assert!(
        failed.stderr.contains("older images are untouched"),
        "{failed:?}"
    );
    is_of_one_moment(&sandbox, &mut job);
    job.kill_all();
    for image in sandbox.all_images() {
        verify(&sandbox, &image).expect_success("verify");
        comes_back(&sandbox, &image);
    }
}

#[test]
fn encrypted_checkpoints_need_their_key() {
    need!("cc");
    let mut sandbox = sandbox();
    let secret = sandbox.write("secret", "correct horse battery staple\n");
    let option = format!("--passphrase-file={}", secret.display());
    sandbox.run_options.push(option.clone());
    let mut job = start(&sandbox, "1");
    job.checkpoint();
    let second = job.checkpoint();
    job.kill_all();
    let listed = sandbox.stasis(["list"]).expect_success("list");
    assert!(listed.stdout.contains("encrypted"), "{listed:?}");
    let refused = verify(&sandbox, &second);
    assert!(refused.stderr.contains("--passphrase-file"), "{refused:?}");
    let refused = sandbox.start(sandbox.restart_command(&second)).finish();
    assert!(
        !refused.success() && refused.stderr.contains("encrypted"),
        "{refused:?}"
    );
    sandbox
        .stasis(["verify".as_ref(), option.as_ref(), second.as_os_str()])
        .expect_success("verify with the key");
    sandbox.restart_options.push(option.clone());
    let mut job = sandbox.restart(&second);
    let third = job.checkpoint();
    is_of_one_moment(&sandbox, &mut job);
    job.kill_all();
    assert!(!verify(&sandbox, &third).success(), "it stays encrypted");
    comes_back(&sandbox, &third);
}
