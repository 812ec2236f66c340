//! `stasis check`: its exit statuses, and what it says.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::{Ended, Place, Running, lives};
use serde_json::Value;
use std::process::{Child, Command, Stdio};

/// `stasis check` in a place of its own. What a test runner has left open is closed, as it would be in the way.
fn check(arguments: &[&str]) -> Ended {
    let place = Place::new();
    let script = "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done; exec \"$@\"";
    Command::new("bash")
        .args(["-c", script, "bash", env!("CARGO_BIN_EXE_stasis"), "check"])
        .args(arguments)
        .current_dir(place.dir())
        .stdin(Stdio::null())
        .output()
        .unwrap()
        .into()
}

fn answer(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// A program that says `ready` when it has opened what it is about, and waits.
fn program(script: &str) -> Running {
    let mut child: Child = Command::new("bash")
        .args(["-c", "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done; eval \"$0\"", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    child.stdout = Some(out.into_inner());
    Running::new(child)
}

#[test]
fn a_plain_program_can_be_saved() {
    needs!("bash");
    let running = program("echo ready; exec sleep 1000");
    // Its standard output is a pipe to this test, as that of a job may be.
    let ended = check(&[&running.pid().to_string()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("nothing stands in the way"), "{ended:?}");
    assert!(lives(running.pid()), "it goes on");
}

#[test]
fn what_stands_in_the_way_is_named_with_a_hint() {
    needs!("python3");
    needs!("bash");
    let socket = "exec python3 -c 'import socket, time; s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9); print(\"ready\", flush=True); time.sleep(1000)'";
    let running = program(socket);
    let ended = check(&["--json", &running.pid().to_string()]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let answer = answer(&ended);
    assert_eq!(answer["can_be_saved"], false);
    let obstacles = answer["obstacles"].as_array().unwrap();
    assert_eq!(obstacles.len(), 1, "{answer}");
    assert_eq!(obstacles[0]["pid"], running.pid());
    assert!(obstacles[0]["reason"].as_str().unwrap().contains("socket"));
    assert_ne!(obstacles[0]["hint"], "");
    assert!(lives(running.pid()), "it goes on");
}

/// A connection that leads elsewhere is no obstacle: it is named, with what becomes of it.
#[test]
fn what_a_restart_resets_is_named() {
    needs!("python3");
    needs!("bash");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let running = program(&format!(
        "exec python3 -c 'import socket, time; s = socket.create_connection((\"127.0.0.1\", {port})); print(\"ready\", flush=True); time.sleep(1000)'"
    ));
    let (_connection, _) = listener.accept().unwrap();
    let ended = check(&["--json", &running.pid().to_string()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let notes = answer(&ended)["notes"].to_string();
    let words = format!("a connection out of the job to 127.0.0.1:{port}, which a restart resets");
    assert!(notes.contains(&words), "{notes}");
}

#[test]
fn a_command_is_started_looked_at_and_ended() {
    needs!("python3");
    needs!("bash");
    let fine = check(&["--", "sh", "-c", "sleep 1000 & wait"]);
    assert_eq!(fine.code, Some(0), "{fine:?}");
    // It opens a socket only after a while.
    let late = "import socket, time; time.sleep(0.3); s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9); time.sleep(1000)";
    let bad = check(&["--after", "2", "--", "python3", "-c", late]);
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.out.contains("a netlink socket"), "{bad:?}");
    let short = check(&["--", "true"]);
    assert_eq!(short.code, Some(0), "{short:?}");
    assert!(short.err.contains("ended meanwhile"), "{short:?}");
}

#[test]
fn what_cannot_be_looked_at_is_a_failure() {
    needs!("bash");
    let gone = check(&["999999999"]);
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.err.contains("there is no process"), "{gone:?}");
    assert_eq!(check(&["0"]).code, Some(1));
    assert_eq!(check(&["--", "/no/such/program"]).code, Some(1));
    assert_eq!(check(&["1", "--", "true"]).code, Some(2));
}

#[test]
fn the_host_is_described() {
    needs!("bash");
    let ended = check(&["--json"]);
    let told = answer(&ended);
    let able = told["can_checkpoint"] == true && told["can_restart"] == true;
    assert_eq!(ended.code, Some(i32::from(!able)), "{ended:?}");
    let findings = told["findings"].as_array().unwrap();
    let names: Vec<&str> = findings
        .iter()
        .map(|finding| finding["name"].as_str().unwrap())
        .collect();
    insta::assert_snapshot!(names.join("\n"));
    for finding in findings {
        assert!(["good", "less", "bad"].contains(&finding["level"].as_str().unwrap()));
        assert_ne!(finding["found"], "");
    }
    let text = check(&[]);
    assert_eq!(text.code, ended.code);
    assert!(text.out.starts_with("ok    kernel"), "{text:?}");
}
