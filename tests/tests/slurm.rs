//! Jobs of a real Slurm that continue by themselves. One cluster serves all of them at once, so that the waiting for time limits
//! is done in parallel.

use rustix::process::getuid;
use stasis_tests::{Cluster, Linkage, Sandbox, SlurmJob, program, skip};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

type Scenario = fn(&Cluster);

#[test]
fn jobs_continue_by_themselves() {
    if !getuid().is_root() {
        skip!("a private Slurm needs root");
    }
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(reason) => skip!("{reason}"),
    };
    let scenarios: [(&str, Scenario); 12] = [
        ("time limit", time_limit),
        ("preemption with grace", |cluster| {
            preemption(cluster, "grace", "n3")
        }),
        ("preemption without grace", |cluster| {
            preemption(cluster, "low", "n4")
        }),
        ("array", array),
        ("user signals", user_signals),
        ("requeue", requeue),
        ("dead node", dead_node),
        ("full directory", full_directory),
        ("submitted again", submitted_again),
        ("another processor", another_processor),
        ("dmtcp, saved and ended", dmtcp_saved_and_ended),
        ("dmtcp, killed", dmtcp_killed),
    ];
    let only = std::env::var("STASIS_TEST_SCENARIO").unwrap_or_default();
    let failed: Vec<&str> = thread::scope(|scope| {
        let running: Vec<_> = scenarios
            .iter()
            .filter(|(name, _)| name.contains(&only))
            .map(|(name, scenario)| {
                let cluster = &cluster;
                let run = move || catch_unwind(AssertUnwindSafe(|| scenario(cluster))).is_ok();
                (*name, scope.spawn(run))
            })
            .collect();
        let outcomes = running.into_iter().map(|(name, thread)| {
            let well = thread.join().unwrap_or(false);
            println!("{name}: {}", if well { "ok" } else { "FAILED" });
            (name, well)
        });
        outcomes
            .filter(|(_, well)| !well)
            .map(|(name, _)| name)
            .collect()
    });
    assert!(failed.is_empty(), "{failed:?}");
}

/// The line of a script that counts to `end`, a number every `pause` milliseconds.
fn counting(options: &str, end: u32, pause: u32) -> String {
    let counter = program("counter", Linkage::Dynamic).expect("a C compiler");
    format!(
        "stasis run --slurm {options} -- {} {end} {pause}",
        counter.display()
    )
}

/// The numbers in an output file, as they stand there.
fn numbers(output: &str) -> Vec<u32> {
    output
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

/// Waits until the job has counted so far.
fn wait_for(job: &SlurmJob<'_>, number: u32) {
    job.wait_output(&format!("has counted to {number}"), |output| {
        numbers(output).last().is_some_and(|last| *last >= number)
    });
}

/// Waits for the end of a job whose count must be complete, without a number missing or doubled.
fn counts_to(job: &SlurmJob<'_>, end: u32) {
    job.wait_state("COMPLETED");
    let output = job.output();
    let expected: Vec<u32> = (1..=end).collect();
    assert_eq!(numbers(&output), expected, "job {}:\n{output}", job.id);
}

fn log(sandbox: &Sandbox, job: &SlurmJob<'_>) -> String {
    let path = sandbox
        .images()
        .join(format!("stasis-{}", job.id))
        .join("counter.log");
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A minute is too short for it twice over.
fn time_limit(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let job = cluster.submit(&sandbox, &["-w", "n6", "--time=1"], &counting("", 750, 100));
    counts_to(&job, 750);
    let log = log(&sandbox, &job);
    assert!(log.matches("before the time limit").count() >= 2, "{log}");
    assert!(log.matches("  continues from ").count() >= 2, "{log}");
    assert!(
        sandbox
            .files_in(&sandbox.images().join(format!("stasis-{}", job.id)))
            .iter()
            .all(|path| { !path.to_string_lossy().ends_with(".ckpt") })
    );
}

fn preemption(cluster: &Cluster, partition: &str, node: &str) {
    let sandbox = Sandbox::new();
    let options = ["-p", partition, "-w", node, "-n16", "--time=10"];
    let job = cluster.submit(&sandbox, &options, &counting("", 400, 100));
    wait_for(&job, 20);
    let others = Sandbox::new();
    let urgent = cluster.submit(
        &others,
        &["-p", "high", "-w", node, "-N1", "-n16"],
        "echo urgent",
    );
    urgent.wait_state("COMPLETED");
    counts_to(&job, 400);
    let log = log(&sandbox, &job);
    // The warning came with SIGTERM, to every process of the job.
    assert!(log.contains("on SIGTERM"), "{log}");
    assert!(log.contains("  continues from "), "{log}");
}

/// Ten tasks, of which some have to go.
fn array(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let options = ["-w", "n5", "--array=1-10", "-n1", "--time=10"];
    let array = cluster.submit(&sandbox, &options, &counting("", 400, 100));
    let tasks = || -> Vec<SlurmJob<'_>> { (1..=10).map(|task| array.task(task)).collect() };
    for task in tasks() {
        wait_for(&task, 20);
    }
    let others = Sandbox::new();
    let urgent = cluster.submit(
        &others,
        &["-p", "high", "-w", "n5", "-N1", "-n11"],
        "echo urgent",
    );
    urgent.wait_state("COMPLETED");
    for task in tasks() {
        counts_to(&task, 400);
    }
    let preempted = tasks()
        .iter()
        .filter(|task| log(&sandbox, task).contains("on SIGTERM"))
        .count();
    assert_eq!(preempted, 5);
}

/// To the batch shell alone, and to everybody.
fn user_signals(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let job = cluster.submit(
        &sandbox,
        &["-w", "n6", "--time=10"],
        &counting("", 150, 100),
    );
    wait_for(&job, 20);
    job.command("scancel", &["--batch", "--signal=USR1", &job.id]);
    job.wait_output("is saved on the first signal", |_| {
        log(&sandbox, &job).contains("on SIGUSR1")
    });
    wait_for(&job, 60);
    job.command("scancel", &["--full", "--signal=USR1", &job.id]);
    counts_to(&job, 150);
    let log = log(&sandbox, &job);
    assert_eq!(log.matches("  continues from ").count(), 2, "{log}");
}

/// By its user, while it runs and when it has finished.
fn requeue(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let script = counting("", 100, 100) + "\necho \"status $?\"";
    let job = cluster.submit(&sandbox, &["-w", "n6", "--time=10"], &script);
    wait_for(&job, 20);
    job.command("scontrol", &["requeue", &job.id]);
    counts_to(&job, 100);
    assert!(log(&sandbox, &job).contains("  continues from "));
    assert_eq!(job.output().matches("status 0").count(), 1);
    job.command("scontrol", &["requeue", &job.id]);
    job.wait_output("says that it has finished", |output| {
        output.contains("is not started again")
    });
    counts_to(&job, 100);
    assert_eq!(job.output().matches("status 0").count(), 2);
}

/// Without any warning: a periodic checkpoint carries the job to the other node.
fn dead_node(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let job = cluster.submit(
        &sandbox,
        &["-p", "pair", "--time=10"],
        &counting("-i 2", 150, 100),
    );
    job.wait_output("is saved twice", |_| {
        log(&sandbox, &job).contains("checkpoint 2 (periodic)")
    });
    let node = job.field("NodeList").expect("the job runs");
    cluster.kill_node(&node, &job);
    counts_to(&job, 150);
    let log = log(&sandbox, &job);
    assert!(log.contains("  continues from "), "{log}");
    assert_ne!(job.field("NodeList").as_deref(), Some(node.as_str()));
}

/// The job runs on to its end, and says what is wrong.
fn full_directory(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let directory = sandbox.path().join("small");
    std::fs::create_dir(&directory).expect("a directory");
    let mounted = sandbox_mount(&directory);
    sandbox.give(&directory);
    let options = format!("-i 1 -d {}", directory.display());
    let job = cluster.submit(
        &sandbox,
        &["-w", "n6", "--time=10"],
        &counting(&options, 50, 100),
    );
    counts_to(&job, 50);
    let output = job.output();
    drop(mounted);
    assert!(
        output.contains("checkpoint failed (periodic), the program runs on"),
        "{output}"
    );
    assert!(output.contains("no space left in"), "{output}");
}

/// A file system of some kilobytes, for as long as this lives.
fn sandbox_mount(directory: &std::path::Path) -> impl Drop {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .status();
        }
    }
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=32k", "tmpfs"])
        .arg(directory)
        .status();
    assert!(mount.expect("mount").success());
    Mounted(directory.to_owned())
}

/// A cancelled job is saved as well, and a job that is the same work goes on with it.
fn submitted_again(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let first = cluster.submit(
        &sandbox,
        &["-w", "n6", "--time=10"],
        &counting("", 100, 100),
    );
    wait_for(&first, 20);
    first.command("scancel", &[&first.id]);
    first.wait_state("CANCELLED");
    let cancelled = first.output();
    assert!(cancelled.contains("the job was cancelled"), "{cancelled}");
    // Times of submission are told in whole seconds.
    thread::sleep(std::time::Duration::from_secs(2));
    let second = cluster.submit(
        &sandbox,
        &["-w", "n6", "--time=10"],
        &counting("", 100, 100),
    );
    second.wait_state("COMPLETED");
    let log = log(&sandbox, &second);
    assert!(
        log.contains("  continues from "),
        "{log}\n{}",
        second.output()
    );
    let mut all = numbers(&first.output());
    all.extend(numbers(&second.output()));
    assert_eq!(all, (1..=100).collect::<Vec<u32>>());
}

/// The lines of a job script that uses DMTCP's commands, with a port of the job's own.
fn with_dmtcp(line: &str) -> String {
    format!("export DMTCP_COORD_PORT=$((20000 + SLURM_JOB_ID % 10000))\n{line}")
}

/// The two job scripts of a centre's documentation: the first ends with its checkpoint, the second continues it.
fn dmtcp_saved_and_ended(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let counter = program("counter", Linkage::Dynamic).expect("a C compiler");
    let first = format!(
        "dmtcp_coordinator --exit-after-ckpt --daemon ; dmtcp_launch -i 4 {} 120 100",
        counter.display()
    );
    let first = cluster.submit(&sandbox, &["-w", "n6", "--time=10"], &with_dmtcp(&first));
    // It ends with a status of its own, which tells that it has not finished.
    first.wait_state("FAILED");
    assert_eq!(first.field("ExitCode").as_deref(), Some("85:0"));
    let second =
        "dmtcp_coordinator --exit-after-ckpt --daemon ; dmtcp_restart -i 259190 ckpt_*.dmtcp";
    let second = cluster.submit(&sandbox, &["-w", "n6", "--time=10"], &with_dmtcp(second));
    second.wait_state("COMPLETED");
    let mut all = numbers(&first.output());
    assert!(all.len() < 120, "{}", first.output());
    all.extend(numbers(&second.output()));
    assert_eq!(all, (1..=120).collect::<Vec<u32>>());
}

/// The same by the clock, and nobody warns: the second job goes on from the last checkpoint.
fn dmtcp_killed(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let counter = program("counter", Linkage::Dynamic).expect("a C compiler");
    let line = format!("dmtcp_launch -i 2 {} 120 100", counter.display());
    let first = cluster.submit(&sandbox, &["-w", "n6", "--time=10"], &with_dmtcp(&line));
    first.wait_output("is saved", |_| {
        let files = sandbox.files_in(&sandbox.images());
        files
            .iter()
            .chain(&sandbox.files_in(&sandbox.work()))
            .any(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "dmtcp")
            })
    });
    wait_for(&first, 40);
    first.command("scancel", &["--full", "--signal=KILL", &first.id]);
    first.wait_output("has ended", |_| {
        first
            .field("JobState")
            .is_some_and(|state| state != "RUNNING")
    });
    let line = "dmtcp_restart -i 2 ckpt_*.dmtcp";
    let second = cluster.submit(&sandbox, &["-w", "n6", "--time=10"], &with_dmtcp(line));
    second.wait_state("COMPLETED");
    let (before, after) = (numbers(&first.output()), numbers(&second.output()));
    let begun = after.first().copied().unwrap_or(0);
    assert!(begun > 1 && begun <= before.len() as u32 + 1, "{after:?}");
    assert_eq!(after, (begun..=120).collect::<Vec<u32>>());
}

/// A node that lacks what the program may use refuses it by name, and loses nothing.
fn another_processor(cluster: &Cluster) {
    let sandbox = Sandbox::new();
    let pretend = "if [ \"$SLURM_RESTART_COUNT\" = 1 ]; then export STASIS_TEST_FAULT=pretend@old-processor; fi\n";
    let script = pretend.to_owned() + &counting("", 100, 100);
    let job = cluster.submit(&sandbox, &["-w", "n6", "--time=10"], &script);
    wait_for(&job, 20);
    job.command("scontrol", &["requeue", &job.id]);
    job.wait_state("FAILED");
    let output = job.output();
    assert!(
        output.contains("this host's processor: it lacks"),
        "{output}"
    );
    assert!(output.contains("sse4.2"), "{output}");
    job.command("scontrol", &["requeue", &job.id]);
    counts_to(&job, 100);
}
