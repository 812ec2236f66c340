//! The core: start, checkpoint, kill, restart.

use stasis_tests::{
    Exit, Linkage, Program, Sandbox, alive, need, program, stasis_binary, wait_until,
};
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;

fn counter(linkage: Linkage, end: &str, pause: &str) -> Option<Vec<OsString>> {
    let program = program("counter", linkage)?;
    Some(vec![program.into(), end.into(), pause.into()])
}

fn numbers(from: u32, to: u32) -> String {
    (from..=to).map(|n| format!("{n}\n")).collect()
}

/// What a restarted counter prints must run on to the end without a gap.
fn expect_rest(text: &str, before: &str, end: u32) {
    let first: u32 = text
        .lines()
        .next()
        .expect("it prints")
        .parse()
        .expect("a number");
    assert_eq!(text, numbers(first, end));
    let printed = before.lines().count() as u32;
    assert!(
        first >= 2 && first <= printed + 1,
        "it goes on at {first}, {printed} lines were printed before"
    );
}

fn counts_on(sandbox: &Sandbox, linkage: Linkage) {
    let Some(argv) = counter(linkage, "150", "10") else {
        stasis_tests::skip!("no C compiler, or no static C library");
    };
    let mut job = sandbox.run(&argv);
    job.wait_line("30");
    let first = job.checkpoint();
    job.wait_line("60");
    let second = job.checkpoint();
    assert_ne!(first, second);
    let before = job.kill_all();
    // Each image, and one of them twice.
    for image in [&second, &first, &second] {
        let end = sandbox.restart(image).finish();
        assert_eq!(end.exit, Exit::Code(0), "{end:?}");
        expect_rest(&end.stdout, &before.stdout, 150);
    }
    // A restart of a restart.
    let mut job = sandbox.restart(&first);
    job.wait_line("80");
    let third = job.checkpoint();
    assert_ne!(third, second, "an older image was written over");
    let before = job.kill_all();
    let end = sandbox.restart(&third).finish();
    assert_eq!(end.exit, Exit::Code(0), "{end:?}");
    assert!(
        end.stdout.ends_with("149\n150\n") && before.stdout.contains("80\n"),
        "{end:?}"
    );
}

#[test]
fn a_counter_counts_on() {
    need!("cc");
    counts_on(&Sandbox::new(), Linkage::Dynamic);
}

#[test]
fn a_static_counter_counts_on() {
    need!("cc");
    counts_on(&Sandbox::new(), Linkage::Static);
}

#[test]
fn a_counter_of_root_counts_on() {
    need!("cc");
    let Some(sandbox) = Sandbox::root() else {
        stasis_tests::skip!("the tests do not run as root");
    };
    counts_on(&sandbox, Linkage::Dynamic);
}

#[test]
fn the_run_after_a_checkpoint_goes_on() {
    need!("cc");
    let sandbox = Sandbox::new();
    let argv = counter(Linkage::Dynamic, "100", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    for line in ["10", "30", "50", "70"] {
        job.wait_line(line);
        job.checkpoint();
    }
    let end = job.finish();
    assert_eq!((end.exit, end.stdout), (Exit::Code(0), numbers(1, 100)));
    sandbox.wait_empty();
}

#[test]
fn a_shell_loop_counts_on() {
    let sandbox = Sandbox::new();
    let text = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 7";
    let mut job = sandbox.run(&["sh", "-c", text]);
    job.wait_line("15");
    let image = job.checkpoint();
    job.wait_line("20");
    let before = job.kill_all();
    let end = sandbox.restart(&image).finish();
    assert_eq!(end.exit, Exit::Code(7), "{end:?}");
    expect_rest(&end.stdout, &before.stdout, 60);
}

/// The program keeps its number, as it sees it.
#[test]
fn the_number_stays() {
    let sandbox = Sandbox::new();
    let text = "echo $$; while [ ! -e go ]; do sleep 0.01; done; echo $$ $(sh -c 'echo $PPID')";
    let mut job = sandbox.run(&["sh", "-c", text]);
    job.wait_stdout("number", |text| text.ends_with('\n'));
    let number = job.stdout().trim().to_owned();
    let image = job.checkpoint();
    job.kill_all();
    sandbox.write("go", "");
    let end = sandbox.restart(&image).finish();
    assert_eq!(end.stdout, format!("{number} {number}\n"), "{end:?}");
}

#[test]
fn images_are_named_private_and_complete() {
    need!("cc");
    let sandbox = Sandbox::new();
    let argv = counter(Linkage::Dynamic, "100000", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    job.wait_line("3");
    let first = job.checkpoint();
    let second = job.checkpoint();
    for (image, name) in [(&first, "job-000001.ckpt"), (&second, "job-000002.ckpt")] {
        assert_eq!(image.file_name(), Some(name.as_ref()));
        let mode = std::fs::metadata(image)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
        sandbox
            .stasis(["verify".as_ref(), image.as_os_str()])
            .expect_success("verify");
        let shown = sandbox
            .stasis(["inspect".as_ref(), image.as_os_str()])
            .expect_success("inspect");
        assert!(shown.stdout.contains("counter"), "{shown:?}");
    }
    let list = sandbox
        .stasis(["list".as_ref(), sandbox.images().as_os_str()])
        .expect_success("list");
    assert!(
        list.stdout.contains("job-000001") && list.stdout.contains("job-000002"),
        "{list:?}"
    );
    let left: Vec<_> = sandbox
        .files_in(&sandbox.images())
        .into_iter()
        .filter(|path| path.extension().is_none_or(|e| e != "ckpt"))
        .filter(|path| !path.ends_with(".job.lock"))
        .collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
}

/// A directory stands for its newest complete image.
#[test]
fn a_directory_restarts_its_newest_image() {
    need!("cc");
    let sandbox = Sandbox::new();
    let argv = counter(Linkage::Dynamic, "100", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    job.wait_line("10");
    job.checkpoint();
    job.wait_line("40");
    job.checkpoint();
    job.kill_all();
    // A checkpoint that never became complete.
    std::fs::write(sandbox.images().join("job-000003.ckpt.partial"), "half").expect("a file");
    let end = sandbox.restart(&sandbox.images()).finish();
    assert_eq!(end.exit, Exit::Code(0), "{end:?}");
    let first: u32 = end
        .stdout
        .lines()
        .next()
        .expect("it prints")
        .parse()
        .expect("a number");
    assert!((40..=60).contains(&first), "it starts with {first}");
}

#[test]
fn checkpoint_and_stop() {
    need!("cc");
    let sandbox = Sandbox::new();
    let argv = counter(Linkage::Dynamic, "200", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    job.wait_line("20");
    sandbox
        .stasis(["checkpoint", "job", "--stop"])
        .expect_success("checkpoint --stop");
    let before = job.finish();
    assert_eq!(before.exit, Exit::Code(85), "{before:?}");
    sandbox.wait_empty();
    let end = sandbox.restart(&sandbox.newest_image()).finish();
    assert_eq!(end.exit, Exit::Code(0));
    // It never ran on after what was saved: nothing is printed twice, nothing is missing.
    assert_eq!(before.stdout + &end.stdout, numbers(1, 200));
}

/// One command line for the first run and every later one.
#[test]
fn resume() {
    need!("cc");
    let mut sandbox = Sandbox::new();
    sandbox.run_options.push("--resume".into());
    let argv = counter(Linkage::Dynamic, "150", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    job.wait_line("30");
    job.checkpoint();
    let before = job.kill_all();
    assert!(before.stdout.starts_with("1\n2\n"));
    let mut job = sandbox.run(&argv);
    job.wait_line("60");
    job.checkpoint();
    let before = job.kill_all();
    assert!(!before.stdout.starts_with("1\n2\n"), "it began anew");
    let end = sandbox.run(&argv).finish();
    assert_eq!(end.exit, Exit::Code(0));
    expect_rest(&end.stdout, &numbers(1, 150), 150);
    let first: u32 = end
        .stdout
        .lines()
        .next()
        .expect("it prints")
        .parse()
        .expect("a number");
    assert!(first >= 60, "an older image was taken: {first}");
}

/// Checkpoints by time, of which the newest are kept.
#[test]
fn intervals_and_retention() {
    need!("cc");
    let mut sandbox = Sandbox::new();
    sandbox.run_options = ["-i", "1s", "--keep", "2"].map(String::from).into();
    let argv = counter(Linkage::Dynamic, "100000", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    job.wait_line("1");
    wait_until("the fourth image", || {
        sandbox
            .all_images()
            .iter()
            .any(|path| path.ends_with("job-000004.ckpt"))
            .then_some(())
    });
    wait_until("only two are kept", || {
        (sandbox.all_images().len() <= 2).then_some(())
    });
    job.kill_all();
    let mut job = sandbox.restart(&sandbox.newest_image());
    job.wait_stdout("line", |text| text.lines().count() > 2);
}

/// Two restarts of one image at the same time do not see each other.
#[test]
fn several_restarts_of_one_image() {
    need!("cc");
    let sandbox = Sandbox::new();
    let argv = counter(Linkage::Dynamic, "200", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    job.wait_line("20");
    let image = job.checkpoint();
    let copy = |name: &str| {
        let mut command = sandbox.stasis_command(["restart", "-n", name]);
        command.arg(&image);
        sandbox.start(command)
    };
    let mut jobs = vec![copy("one"), copy("two"), copy("three")];
    // The first one of them all still runs.
    for job in &mut jobs {
        job.wait_line("40");
    }
    assert!(job.exited().is_none() || job.stdout().ends_with("200\n"));
    for job in jobs {
        let end = job.finish();
        assert_eq!(end.exit, Exit::Code(0), "{end:?}");
        assert!(end.stdout.ends_with("199\n200\n"));
    }
    let end = job.finish();
    assert_eq!((end.exit, end.stdout), (Exit::Code(0), numbers(1, 200)));
}

/// What the program sees as its own output is that of the restart: a file, the end of a pipe, nothing.
#[test]
fn standard_descriptors_are_bound_anew() {
    need!("cc");
    let sandbox = Sandbox::new();
    let text = "import sys,time,os\nfor i in range(40):\n  print('out', i, flush=True)\n  print('err', i, file=sys.stderr, flush=True)\n  time.sleep(0.03)\nline = sys.stdin.readline()\nprint('read', repr(line), flush=True)\n";
    sandbox.write("program.py", text);
    let mut command = sandbox.run_command(&["/usr/bin/python3", "program.py"]);
    let input = std::fs::File::open("/dev/null").expect("/dev/null");
    command.stdin(input);
    let mut job = sandbox.start(command);
    job.wait_line("out 10");
    let image = job.checkpoint();
    job.kill_all();
    sandbox.write("input", "from the new input\n");
    let mut command = sandbox.restart_command(&image);
    command.stdin(std::fs::File::open(sandbox.work().join("input")).expect("the input"));
    let end = sandbox.start(command).finish();
    assert!(end.success(), "{end:?}");
    assert!(
        end.stdout
            .ends_with("out 39\nread 'from the new input\\n'\n"),
        "{end:?}"
    );
    assert!(
        end.stderr.contains("err 39\n") && !end.stderr.contains("err 3\n"),
        "{end:?}"
    );
}

/// Output into a file is not part of the state: a restart writes into its own.
#[test]
fn output_into_a_file() {
    need!("cc");
    let sandbox = Sandbox::new();
    let line =
        |verb: &str, file: &str| format!("exec {} {verb} > {file} 2>&1", stasis_binary().display());
    let counter = program("counter", Linkage::Dynamic).expect("there is a compiler");
    let run = line(
        &format!(
            "run -n job -d {} -- {} 150 10",
            sandbox.images().display(),
            counter.display()
        ),
        "out1",
    );
    let mut command = sandbox.command("sh");
    command.args(["-c", &run]);
    let mut job = sandbox.start(command);
    wait_until("line 30", || {
        String::from_utf8_lossy(&sandbox.read("out1"))
            .lines()
            .any(|line| line == "30")
            .then_some(())
    });
    let image = job.checkpoint();
    job.kill_all();
    let mut command = sandbox.command("sh");
    command.args(["-c", &line(&format!("restart {}", image.display()), "out2")]);
    sandbox.start(command).finish().expect_success("restart");
    let out = String::from_utf8_lossy(&sandbox.read("out2")).into_owned();
    expect_rest(&out, &numbers(1, 150), 150);
}

/// What is killed with the job's front is gone altogether.
#[test]
fn the_program_goes_with_its_front() {
    need!("cc");
    let sandbox = Sandbox::new();
    let argv = counter(Linkage::Dynamic, "100000", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    job.wait_line("5");
    let all = job.descendants();
    assert!(!all.is_empty());
    job.signal(rustix::process::Signal::KILL);
    wait_until("the whole job is gone", || {
        (!all.iter().any(|&pid| alive(pid)) && sandbox.living().is_empty()).then_some(())
    });
}

/// Numbers in use do not matter in namespaces: the machine was rebooted in between, so to speak.
#[test]
fn restart_while_the_numbers_are_taken() {
    need!("cc");
    let sandbox = Sandbox::new();
    let argv = counter(Linkage::Dynamic, "120", "10").expect("there is a compiler");
    let mut job = sandbox.run(&argv);
    job.wait_line("20");
    let image = job.checkpoint();
    // The first run still holds the numbers.
    let end = sandbox.restart(&image).finish();
    assert!(
        end.success() && end.stdout.ends_with("119\n120\n"),
        "{end:?}"
    );
    assert!(job.finish().success());
}

/// A program of a single page of code: the generic check on the smallest thing there is.
#[test]
fn random_moments() {
    need!("cc");
    let argv = counter(Linkage::Static, "400", "5").expect("there is a compiler");
    Program::new(argv.iter().map(|word| word.to_string_lossy().into_owned())).cycle(Sandbox::new);
}
