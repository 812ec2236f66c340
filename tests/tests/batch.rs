//! What batch jobs are made of, without a batch system: deadlines, warnings, the output file, the log.

use rustix::process::{Signal, getuid};
use stasis_tests::{Exit, Linkage, Sandbox, User, program, skip, wait_until};
use std::fs::File;
use std::process::Command;

fn counter() -> String {
    let counter = program("counter", Linkage::Dynamic).expect("a C compiler");
    counter.to_string_lossy().into_owned()
}

fn numbers(text: &str) -> Vec<u32> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn log(sandbox: &Sandbox) -> String {
    std::fs::read_to_string(sandbox.images().join("job.log")).unwrap_or_default()
}

#[test]
fn a_deadline_saves_and_stops_in_time_and_success_removes() {
    let mut sandbox = Sandbox::new();
    let counter = counter();
    let argv = [counter.as_str(), "120", "20"];
    let options = [
        "--deadline",
        "+3s",
        "--margin",
        "2s",
        "--stop-code",
        "99",
        "--log",
    ];
    sandbox.run_options = options.map(String::from).into();
    let first = sandbox.run(&argv).finish();
    assert_eq!(first.exit, Exit::Code(99), "{first:?}");
    assert!(
        log(&sandbox).contains("(before the time limit)"),
        "{first:?}"
    );
    sandbox.run_options = ["--resume", "--remove-after-success", "--log"]
        .map(String::from)
        .into();
    let second = sandbox.run(&argv).finish().expect_success("the second run");
    let log = log(&sandbox);
    assert!(log.contains("continues from job-000001.ckpt"), "{log}");
    assert!(
        log.contains("finished; its checkpoints are removed"),
        "{log}"
    );
    let all = numbers(&(first.stdout + &second.stdout));
    assert_eq!(all, (1..=120).collect::<Vec<u32>>());
    assert!(sandbox.all_images().is_empty());
}

/// The warning of a batch system's daemon goes to every process, and must end none of them before it is saved.
#[test]
fn a_shield_keeps_a_warning_from_all_processes() {
    if !getuid().is_root() || User::ordinary().uid == 0 {
        skip!("only root can send a signal as another user");
    }
    let mut sandbox = Sandbox::new();
    let options = ["--shield", "--stop-signal", "TERM", "--stop-signal", "USR1"];
    sandbox.run_options = options.map(String::from).into();
    let counter = counter();
    // A shell, two programs, and children that come and go.
    let script = format!(
        "{counter} 200 20 > one & {counter} 200 20 & for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 0.1; done; \
         kill -USR1 $$ 2>/dev/null; wait; wait; echo both"
    );
    let script = format!("trap 'echo own' USR1; {script}");
    let mut job = sandbox.run(&["bash", "-c", &script]);
    job.wait_line("own");
    job.wait_line("90");
    for pid in job.descendants().into_iter().chain([job.pid()]) {
        let sent = Command::new("kill")
            .args(["-TERM", &pid.to_string()])
            .status();
        drop(sent);
    }
    let first = job.finish();
    assert_eq!(first.exit, Exit::Code(85), "{first:?}");
    sandbox.wait_empty();
    let second = sandbox
        .restart(&sandbox.newest_image())
        .finish()
        .expect_success("the restart");
    let all = numbers(&(first.stdout + &second.stdout));
    assert_eq!(all, (1..=200).collect::<Vec<u32>>());
    assert!(second.stdout.ends_with("both\n"), "{second:?}");
    let one = String::from_utf8(sandbox.read("one")).expect("text");
    assert_eq!(numbers(&one), (1..=200).collect::<Vec<u32>>());
}

#[test]
fn lines_that_are_written_again_are_cut_or_marked() {
    for (how, marked) in [("cut", false), ("mark", true)] {
        let sandbox = Sandbox::new();
        let path = sandbox.write("out", "before\n");
        let appending = || {
            File::options()
                .append(true)
                .open(&path)
                .expect("the output file")
        };
        let read = || std::fs::read_to_string(&path).expect("text");
        let mut command = sandbox.run_command(&[counter(), "100".into(), "20".into()]);
        command.stdout(appending()).stderr(appending());
        let job = started(&sandbox, command);
        wait_until("it has counted", || {
            numbers(&read()).contains(&10).then_some(())
        });
        wait_until("it is saved", || {
            sandbox
                .stasis(["checkpoint", "job"])
                .success()
                .then_some(())
        });
        let saved = numbers(&read()).len() as u32;
        wait_until("it has counted on", || {
            numbers(&read()).contains(&(saved + 10)).then_some(())
        });
        sandbox.kill_all();
        drop(job);
        let mut command = sandbox.restart_command(&sandbox.newest_image());
        command
            .args(["--output", how])
            .stdout(appending())
            .stderr(appending());
        let mut child = command.spawn().expect("the restart");
        assert!(child.wait().expect("its end").success());
        let found = numbers(&read());
        let expected: Vec<u32> = (1..=100).collect();
        assert!(read().starts_with("before\n1\n"), "{}", read());
        if marked {
            assert!(found.len() > 100, "{found:?}");
            assert!(
                read().contains("from here on lines are repeated"),
                "{}",
                read()
            );
            assert_eq!(found[found.len() - 50..], expected[50..]);
        } else {
            assert_eq!(found, expected, "{how}");
        }
    }
}

/// Starts a command whose output is not collected.
fn started(sandbox: &Sandbox, mut command: Command) -> std::process::Child {
    sandbox.note(format!("starting: {command:?}"));
    command.spawn().expect("a process")
}

#[test]
fn a_rehearsal_compares_and_measures() {
    let sandbox = Sandbox::new();
    let counter = counter();
    let words = [
        "rehearse", "--json", "--for", "30", "--", &counter, "60", "20",
    ];
    let done = sandbox.stasis(words).expect_success("the rehearsal");
    let report: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(report["same"], true, "{report}");
    assert_eq!(report["complete"], true, "{report}");
    assert_eq!(
        report["pauses_ms"].as_array().map(Vec::len),
        Some(3),
        "{report}"
    );
    let random = [
        "rehearse",
        "--",
        "sh",
        "-c",
        "for n in 1 2 3 4 5 6 7 8; do date +%N; sleep 0.1; done",
    ];
    let done = sandbox.stasis(random);
    assert_eq!(done.exit, Exit::Code(1), "{done:?}");
    assert!(
        done.stdout
            .contains("differs      standard output, from line 1 on"),
        "{done:?}"
    );
    sandbox.wait_empty();
}

#[test]
fn outside_of_a_job_a_batch_system_is_refused() {
    let sandbox = Sandbox::new();
    for system in ["slurm", "htcondor", "pbs", "lsf", "sge"] {
        let told = sandbox.stasis(["run", "--scheduler", system, "--", "true"]);
        assert_eq!(told.exit, Exit::Code(125), "{told:?}");
        assert!(told.stderr.contains("this is no job of"), "{told:?}");
    }
}

/// Grid Engine's contract: SIGUSR2 before the end, status 99 to be queued again, the same job continues.
#[test]
fn a_job_of_grid_engine_stops_with_its_status_and_continues() {
    let mut sandbox = Sandbox::new();
    sandbox.env.push(("JOB_ID".into(), "7".into()));
    sandbox.env.push(("SGE_TASK_ID".into(), "undefined".into()));
    let counter = counter();
    let words = ["run", "--scheduler", "sge", "--", &counter, "100", "20"];
    let mut job = sandbox.start(sandbox.stasis_command(words));
    job.wait_line("10");
    job.signal(Signal::USR2);
    let first = job.finish();
    assert_eq!(first.exit, Exit::Code(99), "{first:?}");
    let second = sandbox.stasis(words).expect_success("the second run");
    let all = numbers(&(first.stdout + &second.stdout));
    assert_eq!(all, (1..=100).collect::<Vec<u32>>());
    let third = sandbox.stasis(words).expect_success("the third run");
    assert!(
        third.stderr.contains("is not started again") && third.stdout.is_empty(),
        "{third:?}"
    );
}
