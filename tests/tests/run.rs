//! `stasis run` by itself: status, signals, standard streams, and what a job is.

use rustix::process::Signal;
use stasis_tests::{Exit, Finished, Sandbox, alive, wait_until};

fn shell(text: &str) -> Finished {
    Sandbox::new().run(&["sh", "-c", text]).finish()
}

#[test]
fn the_status_is_that_of_the_program() {
    for code in [0, 1, 7, 85, 125, 255] {
        assert_eq!(shell(&format!("exit {code}")).exit, Exit::Code(code));
    }
}

#[test]
fn a_signal_shows_as_128_and_its_number() {
    assert_eq!(shell("kill -TERM $$").exit, Exit::Code(128 + 15));
    assert_eq!(shell("kill -KILL $$").exit, Exit::Code(128 + 9));
}

#[test]
fn what_cannot_be_started() {
    let sandbox = Sandbox::new();
    let missing = sandbox.run(&["/nowhere/to/be/found"]).finish();
    assert_eq!(missing.exit, Exit::Code(127));
    assert!(
        missing.stderr.contains("/nowhere/to/be/found"),
        "{missing:?}"
    );
    let file = sandbox.write("not-executable", "text");
    let denied = sandbox.run(&[file.as_os_str()]).finish();
    assert_eq!(denied.exit, Exit::Code(126), "{denied:?}");
    let option = sandbox.stasis(["run", "--no-such-option", "--", "true"]);
    assert_eq!(option.exit, Exit::Code(125), "{option:?}");
    let absent = sandbox.stasis(["restart", "/nowhere/job-000001.ckpt"]);
    assert_eq!(absent.exit, Exit::Code(125), "{absent:?}");
    assert!(
        absent.stderr.contains("/nowhere/job-000001.ckpt"),
        "{absent:?}"
    );
}

#[test]
fn standard_streams_pass_through() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.run_command(&["sh", "-c", "cat; echo to-error >&2"]);
    sandbox.write("input", "some\ninput\n");
    command.stdin(std::fs::File::open(sandbox.work().join("input")).expect("the input"));
    let end = sandbox.start(command).finish();
    assert_eq!(end.exit, Exit::Code(0));
    assert_eq!(end.stdout, "some\ninput\n");
    assert_eq!(end.stderr, "to-error\n", "stasis itself has nothing to say");
}

#[test]
fn a_pipe_into_the_program() {
    let sandbox = Sandbox::new();
    let inner = sandbox.run_command(&["wc", "-c"]);
    let mut words = vec![inner.get_program().to_owned()];
    words.extend(inner.get_args().map(ToOwned::to_owned));
    let mut command = sandbox.command("sh");
    command.args(["-c", "head -c 1048576 /dev/zero | \"$@\"", "sh"]);
    command.args(words);
    let end = sandbox.start(command).finish();
    assert_eq!(end.stdout.trim(), "1048576", "{end:?}");
}

#[test]
fn the_program_sees_an_untouched_world() {
    let sandbox = Sandbox::new();
    let text = "ulimit -a; umask; pwd; env | grep -v ^_ | sort; for f in /proc/self/fd/*; do echo ${f##*/}; done; grep -E '^(Sig(Ign|Blk)|NoNewPrivs|Seccomp):' /proc/self/status; nice; cat /proc/self/timerslack_ns /proc/self/oom_score_adj";
    let plain = sandbox.plain(&["sh", "-c", text]);
    let held = sandbox.run(&["sh", "-c", text]).finish();
    assert_eq!(held.exit, plain.exit);
    assert_eq!(held.stdout, plain.stdout);
}

#[test]
fn signals_reach_the_program() {
    let sandbox = Sandbox::new();
    let text = "import os, signal, time\nfor s in (1, 2, 3, 10, 12, 15, 28, 40):\n  signal.signal(s, lambda s, f: os.write(1, f'got {int(s)}\\n'.encode()))\nprint('ready', flush=True)\nwhile True: time.sleep(0.01)\n";
    sandbox.write("signals.py", text);
    let mut job = sandbox.run(&["/usr/bin/python3", "signals.py"]);
    job.wait_line("ready");
    for (signal, number) in [
        (Signal::HUP, 1),
        (Signal::INT, 2),
        (Signal::QUIT, 3),
        (Signal::USR1, 10),
        (Signal::USR2, 12),
        (Signal::TERM, 15),
        (Signal::WINCH, 28),
    ] {
        job.signal(signal);
        job.wait_line(&format!("got {number}"));
    }
    job.signal(Signal::KILL);
    assert_eq!(job.finish().exit, Exit::Signal(9));
}

#[test]
fn a_signal_that_ends_the_program_ends_the_job() {
    let sandbox = Sandbox::new();
    let mut job = sandbox.run(&["sh", "-c", "echo ready; exec sleep 100"]);
    job.wait_line("ready");
    job.signal(Signal::TERM);
    assert_eq!(job.finish().exit, Exit::Code(128 + 15));
    sandbox.wait_empty();
}

/// A job is its whole tree: `run` returns when the last descendant is gone, with the status of the first process.
#[test]
fn the_job_is_the_whole_tree() {
    let sandbox = Sandbox::new();
    let text = "(setsid sh -c 'sleep 0.7; echo late' &) ; echo early; exit 3";
    let end = sandbox.run(&["sh", "-c", text]).finish();
    assert_eq!(
        (end.exit, end.stdout.as_str()),
        (Exit::Code(3), "early\nlate\n")
    );
}

#[test]
fn exit_with_root() {
    let mut sandbox = Sandbox::new();
    sandbox.run_options.push("--exit-with-root".into());
    let text = "(setsid sh -c 'exec >/dev/null 2>&1; sleep 100' &) ; exit 4";
    let end = sandbox.run(&["sh", "-c", text]).finish();
    assert_eq!(end.exit, Exit::Code(4));
    // What lives on is the program's own.
    assert!(!sandbox.living().is_empty());
}

#[test]
fn ps_shows_it() {
    let sandbox = Sandbox::new();
    let none = sandbox.stasis(["ps"]);
    assert!(none.success() && !none.stdout.contains("job"), "{none:?}");
    let mut job = sandbox.run(&["sh", "-c", "sleep 100 & sleep 100 & echo $$; wait"]);
    job.wait_stdout("number", |text| text.ends_with('\n'));
    let number = job.stdout().trim().to_owned();
    job.wait_listed();
    let table = sandbox.stasis(["ps"]).expect_success("ps");
    assert!(
        table.stdout.contains("job") && table.stdout.contains(&number),
        "{table:?}"
    );
    let json = sandbox.stasis(["ps", "--json"]).expect_success("ps --json");
    let jobs: serde_json::Value = serde_json::from_str(&json.stdout).expect("valid JSON");
    assert_eq!(jobs[0]["name"], "job", "{jobs}");
    assert!(json.stdout.contains(&number), "{jobs}");
    job.signal(Signal::KILL);
    job.finish();
    wait_until("the job is gone from ps", || {
        (!sandbox.stasis(["ps"]).stdout.contains("job")).then_some(())
    });
}

#[test]
fn kill_ends_the_whole_job() {
    let sandbox = Sandbox::new();
    let mut job = sandbox.run(&[
        "sh",
        "-c",
        "trap '' TERM HUP; setsid sleep 100 & echo ready; sleep 100; sleep 100",
    ]);
    job.wait_line("ready");
    let below = job.descendants();
    sandbox.stasis(["kill", "job"]).expect_success("kill");
    job.finish();
    wait_until("everything is gone", || {
        (!below.iter().any(|&pid| alive(pid))).then_some(())
    });
}

/// Job control: a stop of the program stops the command in front, and a continuation goes through.
#[test]
fn stop_and_continue() {
    let sandbox = Sandbox::new();
    let text = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); echo $i; sleep 0.02; done";
    let mut job = sandbox.run(&["sh", "-c", text]);
    job.wait_line("3");
    job.signal(Signal::TSTP);
    wait_until("the command in front is stopped", || {
        stasis_tests::process_state(job.pid()).filter(|state| state.state == 'T')
    });
    std::thread::sleep(std::time::Duration::from_millis(100));
    let then = job.stdout().lines().count();
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert!(
        job.stdout().lines().count() <= then + 1,
        "the program goes on"
    );
    job.signal(Signal::CONT);
    job.wait_line(&format!("{}", then + 10));
}

#[test]
fn a_job_needs_no_name() {
    let sandbox = Sandbox::new();
    let mut command =
        sandbox.stasis_command(["run", "--", "sh", "-c", "echo ready; exec sleep 100"]);
    command.env_remove("STASIS_DIR");
    let mut job = sandbox.start(command);
    job.wait_line("ready");
    wait_until("the only job is listed", || {
        sandbox.stasis(["ps"]).stdout.contains("sh").then_some(())
    });
    sandbox
        .stasis(["checkpoint"])
        .expect_success("checkpoint of the only job");
    // The current directory of `run` is where checkpoints go.
    let found = sandbox
        .files_in(&sandbox.work())
        .into_iter()
        .any(|path| path.extension().is_some_and(|e| e == "ckpt"));
    assert!(found, "{:?}", sandbox.files_in(&sandbox.work()));
}

#[test]
fn no_such_job() {
    let sandbox = Sandbox::new();
    let result = sandbox.stasis(["checkpoint", "nobody"]);
    assert!(matches!(result.exit, Exit::Code(1..)), "{result:?}");
    assert!(result.stderr.contains("nobody"), "{result:?}");
}

/// Whoever reads the output sees its end when the program closes it, though the program runs on: before a checkpoint, after
/// it, and after a restart.
#[test]
fn the_end_of_the_output() {
    let sandbox = Sandbox::new();
    let text = "echo out; while [ ! -e close ]; do sleep 0.01; done; exec >&-; while [ ! -e go ]; do sleep 0.01; done; exit 3";
    let mut job = sandbox.run(&["sh", "-c", text]);
    job.wait_line("out");
    let open = job.checkpoint();
    sandbox.write("close", "");
    job.wait_stdout_end();
    assert_eq!(job.exited(), None);
    let closed = job.checkpoint();
    assert_eq!(job.exited(), None);
    job.kill_all();
    for image in [&open, &closed] {
        let mut job = sandbox.restart(image);
        job.wait_stdout_end();
        assert_eq!(job.exited(), None);
        sandbox.write("go", "");
        let end = job.finish();
        assert_eq!((end.exit, end.stdout.as_str()), (Exit::Code(3), ""));
        let _ = std::fs::remove_file(sandbox.work().join("go"));
    }
}

/// The same for input: whoever writes into a pipe that the program has closed is told so.
#[test]
fn the_end_of_the_input() {
    let sandbox = Sandbox::new();
    let inner = sandbox.run_command(&[
        "sh",
        "-c",
        "read line; echo $line; exec <&-; while [ ! -e ended ]; do sleep 0.01; done",
    ]);
    let mut command = sandbox.command("bash");
    command.args([
        "-c",
        "(echo first; trap '' PIPE; while echo more; do sleep 0.01; done 2>/dev/null; touch ended) | \"$@\"",
        "bash",
    ]);
    command.arg(inner.get_program()).args(inner.get_args());
    let end = sandbox.start(command).finish();
    assert_eq!((end.exit, end.stdout.as_str()), (Exit::Code(0), "first\n"));
}
