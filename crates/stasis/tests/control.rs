//! The commands that speak to a running job.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Ended, Place, Running, lives, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const SLEEP: &str = "echo $$ > pid; sleep 1000";

#[test]
fn ps_shows_a_job_and_kill_ends_it() {
    let place = Place::new();
    let front = place.start(&["-n", "md", "-i", "2h"], SLEEP);
    let root = place.read_pid("pid");
    let job = place.job_status();
    assert_eq!(job["name"], "md");
    assert_eq!(job["root"], root);
    assert_eq!(job["interval_seconds"], 7200);
    assert_eq!(job["distance"], serde_json::Value::Null);
    let table = Ended::from(place.output(&["ps"]));
    assert!(table.out.starts_with("NAME"), "{table:?}");
    assert!(
        table.out.contains("md") && table.out.contains("  in "),
        "{table:?}"
    );
    let killed = Ended::from(place.output(&["kill", "md"]));
    assert_eq!(killed.code, Some(0), "{killed:?}");
    assert_eq!(front.end().code, Some(137));
    assert!(!lives(root));
}

#[test]
fn the_json_of_ps_keeps_its_shape() {
    let place = Place::new();
    let _front = place.start(&["-n", "md", "-i", "90s"], SLEEP);
    place.read("pid");
    let mut job = place.job_status();
    for field in ["root", "virtual_root", "supervisor", "memory_bytes"] {
        assert!(
            job[field].as_u64().is_some_and(|number| number > 0),
            "{field}"
        );
        job[field] = "[number]".into();
    }
    for field in ["started_at", "next_due"] {
        assert!(
            job[field].as_str().is_some_and(|text| text.ends_with('Z')),
            "{field}"
        );
        job[field] = "[time]".into();
    }
    assert!(job["pids"].as_array().is_some_and(|pids| !pids.is_empty()));
    job["pids"] = "[numbers]".into();
    job["directory"] = "[directory]".into();
    insta::assert_snapshot!(serde_json::to_string_pretty(&job).unwrap());
}

#[test]
fn a_job_is_found_by_any_of_its_pids_or_as_the_only_one() {
    let place = Place::new();
    let one = place.start(
        &["-n", "one"],
        "echo $$ > first; sh -c 'echo $$ > child; sleep 1000'; exit 1",
    );
    let child = place.read("child");
    assert_eq!(Ended::from(place.output(&["interval", "5m"])).code, Some(0));
    let two = place.start(&["-n", "two"], "echo $$ > second; sleep 1000");
    place.read("second");
    let unclear = Ended::from(place.output(&["kill"]));
    assert_eq!(unclear.code, Some(1));
    assert!(
        unclear.err.contains("more than one job") && unclear.err.contains("two (pid"),
        "{}",
        unclear.err
    );
    let wrong = Ended::from(place.output(&["kill", "three"]));
    assert!(
        wrong.code == Some(1) && wrong.err.contains("no job is named three"),
        "{wrong:?}"
    );
    assert_eq!(Ended::from(place.output(&["kill", &child])).code, Some(0));
    assert_eq!(one.end().code, Some(137));
    let left = place.job_status();
    assert_eq!(left["name"], "two");
    drop(two);
}

#[test]
fn the_interval_can_be_changed() {
    let place = Place::new();
    let _front = place.start(&[], SLEEP);
    place.read("pid");
    assert_eq!(
        place.job_status()["interval_seconds"],
        serde_json::Value::Null
    );
    assert_eq!(
        Ended::from(place.output(&["interval", "1h30m", "sh"])).code,
        Some(0)
    );
    wait_until("it is set", || {
        place.job_status()["interval_seconds"] == 5400
    });
    assert_eq!(
        Ended::from(place.output(&["interval", "off"])).code,
        Some(0)
    );
    wait_until("it is gone", || {
        place.job_status()["interval_seconds"] == serde_json::Value::Null
    });
    assert_eq!(
        Ended::from(place.output(&["interval", "auto"])).code,
        Some(0)
    );
    // With a checkpoint of a second, as long as none was taken, and a failure a day.
    wait_until("it is computed", || {
        let status = place.job_status();
        status["interval_auto"] == true && status["interval_seconds"] == 415
    });
    assert_eq!(
        Ended::from(place.output(&["interval", "soon"])).code,
        Some(2)
    );
}

#[test]
fn the_socket_is_private() {
    let place = Place::new();
    let _front = place.start(&[], SLEEP);
    place.job_status();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&place.runtime()), 0o700);
    let socket = fs::read_dir(place.runtime())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    assert_eq!(mode(&socket), 0o600);
}

#[test]
fn a_directory_that_others_may_enter_is_not_used() {
    let place = Place::new();
    fs::create_dir(place.runtime()).unwrap();
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = Ended::from(place.output(&["run", "--", "true"]));
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(
        refused.err.contains("others may enter it (mode 0755"),
        "{}",
        refused.err
    );
}

/// The job is user 12345's, the doors are opened wide by root, and user 23456 knocks.
#[test]
fn another_user_is_refused() {
    needs!("python3");
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root, to be two users");
        return;
    }
    use std::os::unix::process::CommandExt;
    let place = Place::new();
    let open = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
    };
    open(place.dir().parent().unwrap(), 0o755);
    fs::create_dir(place.runtime()).unwrap();
    for path in [place.dir(), place.runtime()] {
        std::os::unix::fs::chown(&path, Some(12345), Some(12345)).unwrap();
        open(&path, 0o700);
    }
    let binary = place.dir().parent().unwrap().join("stasis");
    // By another process: one that other threads fork while the copy is open for writing could not be executed.
    let copied = std::process::Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_stasis"))
        .arg(&binary)
        .status();
    assert!(copied.unwrap().success());
    let front = std::process::Command::new(&binary)
        .args(["run", "--", "sh", "-c", SLEEP])
        .current_dir(place.dir())
        .env("STASIS_RUNTIME_DIR", place.runtime())
        .uid(12345)
        .gid(12345)
        .spawn()
        .unwrap();
    let front = Running::new(front);
    place.read("pid");
    let socket = fs::read_dir(place.runtime())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    open(&place.runtime(), 0o755);
    open(&socket, 0o666);
    let knock = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                 s.sendall(b'{\"version\":1,\"request\":\"kill\"}\\n')\nprint(s.makefile().readline())";
    let knock = |uid| {
        let output = std::process::Command::new("/usr/bin/python3")
            .args(["-c", knock, &socket.display().to_string()])
            .uid(uid)
            .gid(uid)
            .output();
        Ended::from(output.unwrap()).out
    };
    if !std::path::Path::new("/usr/bin/python3").exists() {
        println!("skipped: needs a python3 that every user may run");
    } else {
        let told = knock(23456);
        assert!(
            told.contains("user 23456 may not ask about a job of user 12345"),
            "{told}"
        );
        assert!(lives(front.pid()));
        let told = knock(12345);
        assert!(told.contains("\"done\""), "{told}");
    }
}
