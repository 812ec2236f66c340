//! `stasis demo` on this host.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::Ended;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs it, by itself in a temporary directory, which must be empty again afterwards.
fn demo(user: Option<(u32, u32)>, prepare: impl FnOnce(&mut Command)) -> Ended {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let temporary = place.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    // Another user may not reach the place where it was built.
    let binary = place.path().join("stasis");
    // By another process: one that other threads fork while the copy is open for writing could not be executed.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_stasis"))
        .arg(&binary)
        .status();
    assert!(copied.unwrap().success());
    let mut command = Command::new(&binary);
    command
        .arg("demo")
        .current_dir(place.path())
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some((uid, gid)) = user {
        chown(&temporary, Some(uid), Some(gid)).unwrap();
        command.uid(uid).gid(gid);
    }
    prepare(&mut command);
    let ended = Ended::from(command.spawn().unwrap().wait_with_output().unwrap());
    assert_eq!(
        fs::read_dir(&temporary).unwrap().count(),
        0,
        "left files behind: {ended:?}"
    );
    assert_eq!(running(&binary), 0, "left processes behind: {ended:?}");
    ended
}

/// How many processes run `binary`.
fn running(binary: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == binary))
        .count()
}

/// Oneself, or for root `stasis-test` if there is one, else `nobody`.
fn ordinary() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == "stasis-test");
    let number = |fields: &Vec<&str>, n: usize| fields.get(n)?.parse::<u32>().ok();
    found
        .and_then(|fields| Some((number(&fields, 2)?, number(&fields, 3)?)))
        .or(Some((65534, 65534)))
}

#[track_caller]
fn succeeded(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.err, "", "{ended:?}");
    assert!(ended.out.contains("$ stasis checkpoint"), "{}", ended.out);
    assert!(ended.out.contains("$ stasis restart"), "{}", ended.out);
}

#[test]
fn it_succeeds_as_an_ordinary_user() {
    succeeded(&demo(ordinary(), |_| {}));
}

#[test]
fn it_succeeds_as_root() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    succeeded(&demo(None, |_| {}));
}

/// Without python3, and with a socket that whoever started it has left open.
#[test]
fn it_succeeds_with_a_shell_alone_and_what_was_left_open() {
    let (left_open, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    rustix::io::fcntl_setfd(&left_open, rustix::io::FdFlags::empty()).unwrap();
    assert!(left_open.as_raw_fd() > 2);
    let tools = tempfile::tempdir().unwrap();
    fs::set_permissions(tools.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for tool in ["sh", "sleep"] {
        let path = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|directory| directory.join(tool))
            .find(|path| path.is_file());
        let Some(path) = path else {
            println!("skipped: {tool} is not on PATH");
            return;
        };
        std::os::unix::fs::symlink(path, tools.path().join(tool)).unwrap();
    }
    let ended = demo(ordinary(), |command| {
        command.env("PATH", tools.path());
    });
    succeeded(&ended);
    assert!(ended.out.contains("sh count.sh"), "{}", ended.out);
}
