//! `stasis run` as a bystander: what goes through it unchanged, and what holds when one of its processes dies.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Ended, Place, kill, lives, wait_until};
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

fn code(arguments: &[&str]) -> Ended {
    Place::new().output(arguments).into()
}

#[test]
fn the_status_is_the_programs() {
    for status in [0, 1, 3, 85, 125, 255] {
        let script = format!("exit {status}");
        assert_eq!(code(&["run", "--", "sh", "-c", &script]).code, Some(status));
    }
    for (signal, status) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let script = format!("kill -{signal} $$");
        assert_eq!(
            code(&["run", "--", "sh", "-c", &script]).code,
            Some(status),
            "{signal}"
        );
    }
}

#[test]
fn troubles_of_the_start_have_the_statuses_of_env() {
    let missing = code(&["run", "--", "no-such-program"]);
    assert_eq!(missing.code, Some(127));
    assert!(
        missing
            .err
            .starts_with("stasis: starting no-such-program: "),
        "{}",
        missing.err
    );
    assert_eq!(code(&["run", "--", "/"]).code, Some(126));
    assert_eq!(code(&["run", "--", "/etc/passwd"]).code, Some(126));
    assert_eq!(
        code(&["run", "--no-such-option", "--", "true"]).code,
        Some(125)
    );
    assert_eq!(
        code(&["run", "-d", "/etc/passwd/none", "--", "true"]).code,
        Some(125)
    );
    assert_eq!(code(&["run"]).code, Some(125));
    assert_eq!(code(&["no-such-verb"]).code, Some(2));
}

#[test]
fn the_checkpoint_directory_is_made_where_it_is_missing() {
    let place = Place::new();
    let ended: Ended = place
        .output(&["run", "-d", "images/of/this", "--", "true"])
        .into();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mode = |name: &str| fs::metadata(place.dir().join(name)).unwrap().mode() & 0o777;
    assert_eq!(mode("images/of/this"), 0o700);
    assert_eq!(mode("images"), 0o700);
}

#[test]
fn nothing_is_left_after_the_end() {
    let place = Place::new();
    assert_eq!(
        Ended::from(place.output(&["run", "-i", "1h", "--", "true"])).code,
        Some(0)
    );
    assert_eq!(fs::read_dir(place.runtime()).unwrap().count(), 0, "sockets");
    assert_eq!(fs::read_dir(place.dir()).unwrap().count(), 0, "locks");
}

#[test]
fn standard_streams_go_through() {
    let place = Place::new();
    let mut child = place
        .stasis(&["run", "--", "sh", "-c", "cat; echo wrong >&2"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"bytes \xff\0\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"bytes \xff\0\n"[..], &b"wrong\n"[..])
    );
}

#[test]
fn the_program_starts_as_it_would_without() {
    let place = Place::new();
    // Everything that is inherited and could be changed on the way.
    let script = "grep -E 'Sig(Blk|Ign|Cgt)|Umask|NoNewPrivs' /proc/self/status; pwd; \
                  cut -d' ' -f 5,6 /proc/self/stat; ls /proc/self/fd | wc -l; nice; ulimit -a";
    let mut plain = std::process::Command::new("sh");
    plain
        .args(["-c", script])
        .current_dir(place.dir())
        .stdin(Stdio::null())
        .process_group(0);
    let plain = Ended::from(plain.output().unwrap());
    let held = Ended::from(
        place
            .stasis(&["run", "--", "sh", "-c", script])
            .process_group(0)
            .output()
            .unwrap(),
    );
    // The number of the process group is another, but that it has the front's is told by the session's being there.
    let lines = |text: &str| -> Vec<String> {
        let numbers = |line: &str| {
            line.split(' ').count() == 2 && line.chars().all(|c| c.is_ascii_digit() || c == ' ')
        };
        text.lines()
            .map(|l| {
                if numbers(l) {
                    l.split(' ').nth(1).unwrap()
                } else {
                    l
                }
                .to_owned()
            })
            .collect()
    };
    assert_eq!(lines(&held.out), lines(&plain.out));
}

#[test]
fn signals_sent_to_the_front_reach_the_program_once() {
    needs!("python3");
    let place = Place::new();
    // Real-time signals are counted by the kernel: a doubled one would be seen.
    let script = r#"exec python3 -c '
import os, signal, sys
alone, group, end = 36, 37, signal.SIGTERM
signal.pthread_sigmask(signal.SIG_BLOCK, [alone, group, end])
with open("pid.new", "w") as file:
    file.write(f"{os.getpid()}\n")
os.rename("pid.new", "pid")
got = []
while (number := signal.sigwaitinfo([alone, group, end]).si_signo) != end:
    got.append(number)
while taken := signal.sigtimedwait([alone, group], 0):
    got.append(taken.si_signo)
print(*["alone" if number == alone else "group" for number in got], flush=True)
sys.exit(9)
'"#;
    let child = place
        .stasis(&["run", "--", "sh", "-c", script])
        .process_group(0)
        .spawn()
        .unwrap();
    let front = child.id();
    place.read_pid("pid");
    let pending = |process: i32| {
        !fs::read_to_string(format!("/proc/{process}/status"))
            .unwrap_or_default()
            .contains("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000000")
    };
    for _ in 0..3 {
        kill("36", front);
        kill("37", format!("-{front}"));
    }
    // The front relays in the order in which it takes them, and would take SIGTERM, the lowest number, first.
    wait_until("signals are taken", || !pending(front as i32));
    kill("TERM", front);
    let ended = Ended::from(child.wait_with_output().unwrap());
    let words: Vec<&str> = ended.out.split_ascii_whitespace().collect();
    let count = |word| words.iter().filter(|known| **known == word).count();
    assert_eq!(
        (count("alone"), count("group"), ended.code),
        (3, 3, Some(9)),
        "{ended:?}"
    );
}

#[test]
fn a_pipe_that_the_program_closes_is_closed() {
    let place = Place::new();
    let script = r#"mkfifo pipe
"$0" run -- sh -c 'echo hi >&9; exec 9>&-; while [ ! -e go ]; do sleep 0.02; done' 9> pipe &
cat pipe
touch go
wait"#;
    let command = place.stasis(&[]);
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", script, &command.get_program().to_string_lossy()])
        .current_dir(place.dir())
        .envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::null());
    // Were it held open by anybody else, the reader would wait for ever, and the program for it.
    let ended = Ended::from(shell.output().unwrap());
    assert_eq!(
        (ended.code, ended.out.as_str()),
        (Some(0), "hi\n"),
        "{ended:?}"
    );
}

#[test]
fn a_tree_is_waited_for_to_the_last() {
    let place = Place::new();
    let ended = place.start(
        &[],
        "(while [ ! -e go ]; do sleep 0.05; done; echo late) & echo x > started; exit 4",
    );
    place.read("started");
    fs::write(place.dir().join("go"), "").unwrap();
    let ended = ended.end();
    assert_eq!((ended.code, ended.out.as_str()), (Some(4), "late\n"));
}

#[test]
fn with_exit_with_root_the_rest_lives_on() {
    let place = Place::new();
    let script = "sh -c 'echo $$ > other; exec sleep 1000' > /dev/null 2>&1 & while [ ! -s other ]; do sleep 0.05; done; exit 4";
    let ended = place.start(&["--exit-with-root"], script).end();
    assert_eq!(ended.code, Some(4));
    let other = place.read_pid("other");
    assert!(lives(other));
    let none = Ended::from(place.output(&["ps"]));
    assert!(none.err.contains("no job is running"), "{none:?}");
    kill("KILL", other);
}

#[test]
fn killing_the_front_ends_the_tree() {
    let place = Place::new();
    let front = place.start(
        &[],
        "echo $$ > root; sh -c 'echo $$ > child; sleep 1000' & sleep 1000",
    );
    let processes = [
        place.read_pid("root"),
        place.read_pid("child"),
        supervisor(&place),
    ];
    kill("KILL", front.pid());
    wait_until("everything is gone", || {
        processes.iter().all(|pid| !lives(*pid))
    });
    wait_until("the socket is removed", || {
        fs::read_dir(place.runtime()).unwrap().count() == 0
    });
}

fn supervisor(place: &Place) -> i32 {
    place.job_status()["supervisor"].as_i64().unwrap() as i32
}

#[test]
fn killing_the_supervisor_leaves_the_program() {
    let place = Place::new();
    let front = place.start(
        &[],
        "echo $$ > pid; trap 'exit 6' TERM; while :; do sleep 0.05; done",
    );
    let program = place.read_pid("pid");
    let supervisor = supervisor(&place);
    kill("KILL", supervisor);
    wait_until("the supervisor is gone", || !lives(supervisor));
    assert!(lives(program));
    // Its socket is found stale, and removed: once the last of its threads is gone, too.
    wait_until("the socket is removed", || {
        assert_eq!(Ended::from(place.output(&["checkpoint"])).code, Some(1));
        fs::read_dir(place.runtime()).unwrap().count() == 0
    });
    kill("TERM", front.pid());
    let ended = front.end();
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert_eq!(
        ended.err,
        "stasis: the supervisor has died: the program runs on, but is no longer checkpointed\n"
    );
}

#[test]
fn jobs_nest() {
    let place = Place::new();
    let stasis = env!("CARGO_BIN_EXE_stasis");
    let inner = format!("exec {stasis} run -n inner -- sh -c 'exit 5'");
    let ended = place.start(&["-n", "outer"], &inner).end();
    assert_eq!(ended.code, Some(5), "{ended:?}");
}

#[test]
fn one_name_is_one_job() {
    let place = Place::new();
    let first = place.start(&[], "echo x > one; sleep 1000");
    place.read("one");
    let refused = Ended::from(place.output(&["run", "-n", "sh", "--", "true"]));
    assert_eq!(refused.code, Some(125));
    assert!(
        refused.err.contains("a job named sh is running already"),
        "{}",
        refused.err
    );
    let second = place.start(&[], "exit 0").end();
    assert_eq!(second.code, Some(0));
    assert!(
        second.err.contains("this one is called sh-2"),
        "{}",
        second.err
    );
    drop(first);
}
