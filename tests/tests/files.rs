//! Files open for writing match the memory after a restart, whatever happened to them since the checkpoint.

use stasis_tests::{Exit, Finished, Sandbox, User, skip, wait_until};
use std::fs;
use std::path::{Path, PathBuf};

/// Writes lines `line N` into `data`, one every 10 ms, and says each number; 60 in all. With the 20th it waits until there is
/// a file `on`.
const WRITER: &str = "import os, sys, time\nf = open('data', sys.argv[1])\nfor i in range(60):\n  f.write(f'line {i:04}\\n'); f.flush()\n  print(i, flush=True)\n  time.sleep(0.01)\n  while i == 20 and not os.path.exists('on'): time.sleep(0.005)\nf.close()\n";

fn lines(from: u32, to: u32) -> String {
    (from..to).map(|i| format!("line {i:04}\n")).collect()
}

/// A job that has written some lines, an image of it, and its death some lines later.
fn written(sandbox: &Sandbox, mode: &str) -> PathBuf {
    sandbox.write("writer.py", WRITER);
    let mut job = sandbox.run(&["/usr/bin/python3", "writer.py", mode]);
    job.wait_line("15");
    let image = job.checkpoint();
    sandbox.write("on", "");
    job.wait_line("25");
    job.kill_all();
    image
}

fn finished_well(sandbox: &Sandbox, end: &Finished) {
    assert_eq!(end.exit, Exit::Code(0), "{end:?}");
    let text = String::from_utf8(sandbox.read("data")).expect("text");
    assert_eq!(text, lines(0, 60), "{end:?}");
}

#[test]
fn growth_is_cut_off_and_kept() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "w");
    let grown = String::from_utf8(sandbox.read("data")).expect("text");
    let mut job = sandbox.restart(&image);
    job.wait_stdout("line", |text| !text.is_empty());
    let first: u32 = job
        .stdout()
        .lines()
        .next()
        .expect("a line")
        .parse()
        .expect("a number");
    finished_well(&sandbox, &job.finish());
    // What was cut lies beside it, under a name that says so.
    let beside: Vec<_> = sandbox
        .files_in(&sandbox.work())
        .into_iter()
        .filter(|path| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            name.contains("data") && name != "data"
        })
        .collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    let kept = fs::read_to_string(&beside[0]).expect("text");
    assert!(
        !kept.is_empty() && grown.ends_with(&kept),
        "{kept:?} of {grown:?}"
    );
    assert!(
        kept.starts_with(&format!("line {first:04}\n")),
        "{kept:?}, it went on at {first}"
    );
    let name = beside[0]
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    assert!(
        name.contains("cut"),
        "the name does not say what it is: {name}"
    );
}

/// With O_APPEND the offset says nothing: the length at the checkpoint counts.
#[test]
fn appending() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "a");
    finished_well(&sandbox, &sandbox.restart(&image).finish());
}

#[test]
fn changed_in_place() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "w");
    let mut data = sandbox.read("data");
    data[3..9].copy_from_slice(b"XXXXXX");
    sandbox.write("data", data);
    finished_well(&sandbox, &sandbox.restart(&image).finish());
}

#[test]
fn shortened() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "w");
    sandbox.write("data", "");
    finished_well(&sandbox, &sandbox.restart(&image).finish());
}

#[test]
fn removed() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "w");
    fs::remove_file(sandbox.work().join("data")).expect("removing it");
    finished_well(&sandbox, &sandbox.restart(&image).finish());
}

/// Another file has taken the name, as editors do.
#[test]
fn replaced() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "w");
    sandbox.write("new", "something else altogether\n");
    fs::rename(sandbox.work().join("new"), sandbox.work().join("data")).expect("renaming");
    finished_well(&sandbox, &sandbox.restart(&image).finish());
}

/// The same image twice, with a finished run in between.
#[test]
fn once_more() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "w");
    finished_well(&sandbox, &sandbox.restart(&image).finish());
    finished_well(&sandbox, &sandbox.restart(&image).finish());
}

/// Above the limit contents are not stored: a change is noticed, and asks for a decision.
#[test]
fn above_the_limit() {
    let mut sandbox = Sandbox::new();
    sandbox
        .run_options
        .extend(["--file-limit", "10"].map(String::from));
    let image = written(&sandbox, "w");
    let grown = sandbox.read("data");
    // Growth alone can be cut whatever the size.
    finished_well(&sandbox, &sandbox.restart(&image).finish());

    let mut changed = grown;
    changed[3..9].copy_from_slice(b"XXXXXX");
    sandbox.write("data", &changed);
    let refused = sandbox.restart(&image).finish();
    assert_eq!(refused.exit, Exit::Code(125), "{refused:?}");
    assert!(
        refused.stdout.is_empty(),
        "something was started: {refused:?}"
    );
    assert!(
        refused.stderr.contains("data") && refused.stderr.contains("--changed-files"),
        "neither the file nor the option is named: {refused:?}"
    );
    assert_eq!(
        sandbox.read("data"),
        changed,
        "a refused restart touches nothing"
    );

    sandbox
        .restart_options
        .extend(["--changed-files", "accept"].map(String::from));
    let end = sandbox.restart(&image).finish();
    assert_eq!(end.exit, Exit::Code(0), "{end:?}");
    let text = String::from_utf8(sandbox.read("data")).expect("text");
    assert!(
        text.starts_with("linXXXXXX") && text.ends_with("line 0059\n"),
        "{text}"
    );
}

#[test]
fn a_dry_run_touches_nothing() {
    let mut sandbox = Sandbox::new();
    let image = written(&sandbox, "w");
    let before = sandbox.read("data");
    let around = sandbox.files_in(&sandbox.work());
    sandbox.restart_options.push("--dry-run".into());
    let plan = sandbox.restart(&image).finish();
    assert_eq!(plan.exit, Exit::Code(0), "{plan:?}");
    assert!(
        plan.stdout.contains("data"),
        "the cut is not announced: {plan:?}"
    );
    assert_eq!(sandbox.read("data"), before);
    assert_eq!(sandbox.files_in(&sandbox.work()), around);
    sandbox.restart_options.push("--json".into());
    let plan = sandbox
        .restart(&image)
        .finish()
        .expect_success("--dry-run --json");
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).expect("valid JSON");
    assert!(plan["strategy"].is_string(), "{plan}");
}

/// Everything that is missing is named at once, and nothing is started.
#[test]
fn missing_files_are_listed_together() {
    let sandbox = Sandbox::new();
    sandbox.write("one", "1");
    sandbox.write("two", "2");
    fs::create_dir(sandbox.work().join("inner")).expect("a directory");
    sandbox.write("inner/three", "3");
    sandbox.write(
        "reader.py",
        "import time\nfiles = [open(n) for n in ('one', 'two', 'inner/three')]\nprint('ready', flush=True)\nfor i in range(100000): time.sleep(0.01)\n",
    );
    let mut job = sandbox.run(&["/usr/bin/python3", "reader.py"]);
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();
    for name in ["one", "two", "inner/three"] {
        fs::remove_file(sandbox.work().join(name)).expect("removing");
    }
    let end = sandbox.restart(&image).finish();
    assert_eq!(end.exit, Exit::Code(125), "{end:?}");
    for name in ["/one", "/two", "/three"] {
        assert!(end.stderr.contains(name), "{name} is not named: {end:?}");
    }
    sandbox.wait_empty();
}

/// Read-only files that changed: the program has read them already, or will read on in another text. Not silently.
#[test]
fn a_changed_file_that_is_read() {
    let sandbox = Sandbox::new();
    let text: String = (0..5000).map(|i| format!("row {i}\n")).collect();
    sandbox.write("table", &text);
    sandbox.write(
        "reader.py",
        "import os, time\nf = open('table')\nprint(f.readline().strip(), flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint(sum(1 for l in f), flush=True)\n",
    );
    let mut job = sandbox.run(&["/usr/bin/python3", "reader.py"]);
    job.wait_line("row 0");
    let image = job.checkpoint();
    job.kill_all();
    sandbox.write("go", "");
    sandbox.write("table", "other\n".repeat(3000));
    let end = sandbox.restart(&image).finish();
    match end.exit {
        Exit::Code(125) => assert!(end.stderr.contains("table"), "{end:?}"),
        _ => assert!(
            end.stderr.contains("table") || end.stdout == "4999\n",
            "an old memory with a new file, and not a word: {end:?}"
        ),
    }
    sandbox.write("table", &text);
    let end = sandbox.restart(&image).finish();
    assert_eq!(
        (end.exit, end.stdout.as_str()),
        (Exit::Code(0), "4999\n"),
        "{end:?}"
    );
}

/// A library (here: a mapped file) that was updated in between must not crash the program.
#[test]
fn a_changed_library() {
    let sandbox = Sandbox::new();
    if !stasis_tests::installed("cc") {
        stasis_tests::skip!("cc is not installed");
    }
    let build = |answer: u32| {
        sandbox.write(
            "lib.c",
            format!(
                "static int padding[{}];\nint answer(void) {{ return {answer} + padding[5]; }}\n",
                answer * 1000
            ),
        );
        sandbox
            .plain(&["cc", "-shared", "-fPIC", "-o", "lib.new", "lib.c"])
            .expect_success("building the library");
        fs::rename(
            sandbox.work().join("lib.new"),
            sandbox.work().join("lib.so"),
        )
        .expect("renaming");
    };
    build(42);
    sandbox.write(
        "user.py",
        "import ctypes, os, time\nl = ctypes.CDLL('./lib.so')\nprint('ready', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint(l.answer(), flush=True)\n",
    );
    let mut job = sandbox.run(&["/usr/bin/python3", "user.py"]);
    job.wait_line("ready");
    let image = job.checkpoint();
    job.kill_all();
    sandbox.write("go", "");
    let same = sandbox.restart(&image).finish();
    assert_eq!(
        (same.exit, same.stdout.as_str()),
        (Exit::Code(0), "42\n"),
        "{same:?}"
    );
    build(43);
    either_refused_or(&sandbox, &image, "lib.so", "42\n");
    fs::remove_file(sandbox.work().join("lib.so")).expect("removing it");
    either_refused_or(&sandbox, &image, "lib.so", "42\n");
}

fn either_refused_or(sandbox: &Sandbox, image: &Path, name: &str, output: &str) {
    let end = sandbox.restart(image).finish();
    if end.exit == Exit::Code(125) {
        assert!(
            end.stderr.contains(name) && end.stdout.is_empty(),
            "{end:?}"
        );
    } else {
        assert_eq!(
            (end.exit, end.stdout.as_str()),
            (Exit::Code(0), output),
            "{end:?}"
        );
    }
}

/// The directory of the program is another one now.
#[test]
fn a_moved_directory() {
    let mut sandbox = Sandbox::new();
    fs::create_dir(sandbox.work().join("old")).expect("a directory");
    sandbox.give(&sandbox.work().join("old"));
    sandbox.write("writer.py", WRITER);
    let mut job = sandbox.run(&["sh", "-c", "cd old && exec /usr/bin/python3 ../writer.py w"]);
    job.wait_line("10");
    let image = job.checkpoint();
    job.kill_all();
    let (old, new) = (sandbox.work().join("old"), sandbox.work().join("new"));
    sandbox.write("old/on", "");
    fs::rename(&old, &new).expect("moving it");
    let lost = sandbox.restart(&image).finish();
    assert_eq!(lost.exit, Exit::Code(125), "{lost:?}");
    assert!(lost.stderr.contains("old"), "{lost:?}");
    sandbox.restart_options.extend([
        "--map-path".into(),
        format!("{}={}", old.display(), new.display()),
    ]);
    let end = sandbox.restart(&image).finish();
    assert_eq!(end.exit, Exit::Code(0), "{end:?}");
    let text = String::from_utf8(sandbox.read("new/data")).expect("text");
    assert_eq!(text, lines(0, 60));
}

/// Another process reads what the job writes, over the restart.
#[test]
fn a_reader_outside() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "w");
    let job = sandbox.restart(&image);
    wait_until("the last line is in the file", || {
        String::from_utf8_lossy(&sandbox.read("data"))
            .ends_with("line 0059\n")
            .then_some(())
    });
    finished_well(&sandbox, &job.finish());
}

/// Standard output is a file in a directory that the user may not search, as his shell's administrator has opened it: the job is
/// saved, and goes on in what the restart is given, which may be that file.
#[test]
fn output_that_cannot_be_found() {
    let sandbox = Sandbox::new();
    let hidden = |command: std::process::Command| {
        let mut shell = sandbox.command("sh");
        shell.args([
            "-c",
            "mkdir -p hidden; chmod 700 hidden; exec >>hidden/out; chmod 0 hidden; exec \"$@\"",
            "sh",
        ]);
        shell.arg(command.get_program()).args(command.get_args());
        shell
    };
    if User::ordinary().uid == 0 {
        skip!("root may search every directory");
    }
    let text = "echo one; touch here; while [ ! -e go ]; do sleep 0.01; done; echo two";
    let mut job = sandbox.start(hidden(sandbox.run_command(&["sh", "-c", text])));
    wait_until("the program is there", || {
        sandbox.work().join("here").exists().then_some(())
    });
    let saved = job.try_checkpoint().expect_success("checkpoint");
    assert!(saved.stderr.contains("hidden/out"), "{saved:?}");
    let image = sandbox.newest_image();
    job.kill_all();
    sandbox.write("go", "");
    let end = sandbox.restart(&image).finish().expect_success("restart");
    assert_eq!(end.stdout, "two\n", "{end:?}");
    let restart = hidden(sandbox.restart_command(&image));
    sandbox.start(restart).finish().expect_success("restart");
    let show = sandbox.plain(&["sh", "-c", "chmod 700 hidden; cat hidden/out"]);
    assert_eq!(show.stdout, "one\ntwo\n", "{show:?}");
}

/// Any other file there is refused by its reason.
#[test]
fn a_file_that_cannot_be_found() {
    if User::ordinary().uid == 0 {
        skip!("root may search every directory");
    }
    let sandbox = Sandbox::new();
    let text = "mkdir hidden; exec 5>hidden/out; chmod 0 hidden; echo ready; while [ ! -e go ]; do sleep 0.01; done; chmod 700 hidden";
    let mut job = sandbox.run(&["sh", "-c", text]);
    job.wait_line("ready");
    let refused = job.try_checkpoint();
    assert!(
        !refused.success() && refused.stderr.contains("path cannot be followed"),
        "{refused:?}"
    );
    sandbox.write("go", "");
    job.finish().expect_success("the program");
}
