//! Restarts that cannot be: everything that stands in the way is told at once, nothing is started, nothing on the disk is changed; and
//! when it is out of the way, the same image is restarted.

use serde_json::Value;
use stasis_tests::{Exit, Finished, Sandbox, need, script};
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

/// A directory with a file in it.
fn place(sandbox: &Sandbox) {
    let path = sandbox.work().join("place");
    fs::create_dir(&path).expect("a directory");
    sandbox.give(&path);
    sandbox.write("place/inside", "");
}

/// An image of a program that holds what may be taken, and what it said of that.
fn image(sandbox: &Sandbox) -> (PathBuf, String) {
    sandbox.write("read", "a file that is read\n");
    sandbox.write("mapped", "a file that is mapped\n");
    place(sandbox);
    let program = sandbox.write("restarts.py", script("restarts.py"));
    let mut job = sandbox.run(&["python3".as_ref(), program.as_os_str()]);
    job.wait_line("ready");
    let image = job.checkpoint();
    let said = job.kill_all().stdout;
    (image, said)
}

/// What follows a word at the beginning of a line.
fn after<'a>(said: &'a str, word: &str) -> &'a str {
    let line = said.lines().find_map(|line| line.strip_prefix(word));
    line.expect("it says that").trim()
}

/// Everything on the disk, with its contents, but for the lock that a killed job leaves behind: it means nothing.
fn disk(sandbox: &Sandbox) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for directory in [
        sandbox.work(),
        sandbox.work().join("place"),
        sandbox.images(),
    ] {
        for path in sandbox.files_in(&directory) {
            if path.ends_with(".job.lock") {
                continue;
            }
            let contents = fs::read(&path).unwrap_or_default();
            all.push((path, contents));
        }
    }
    all
}

/// Refused with a line for each of `words`, and nothing was touched.
fn refused(sandbox: &Sandbox, image: &Path, words: &[&str]) -> Finished {
    let before = disk(sandbox);
    let end = sandbox.restart(image).finish();
    assert_eq!(end.exit, Exit::Code(125), "{end:?}");
    assert!(end.stdout.is_empty(), "something was started: {end:?}");
    for word in words {
        assert!(
            end.stderr.lines().any(|line| line.contains(word)),
            "{word} is not told: {end:?}"
        );
    }
    sandbox.wait_empty();
    let after = disk(sandbox);
    let changed: Vec<&PathBuf> = (before.iter().filter(|one| !after.contains(one)))
        .chain(after.iter().filter(|one| !before.contains(one)))
        .map(|(path, _)| path)
        .collect();
    assert!(changed.is_empty(), "changed: {changed:?} by {end:?}");
    end
}

fn works(sandbox: &Sandbox, image: &Path) {
    sandbox.write("go", "");
    let end = sandbox.restart(image).finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

#[test]
fn everything_at_once() {
    need!("python3");
    let mut sandbox = Sandbox::new();
    let (image, said) = image(&sandbox);
    let ports = after(&said, "ports ").split(' ');
    let ports: Vec<u16> = ports.filter_map(|port| port.parse().ok()).collect();
    let (tcp, udp) = (ports[0], ports[1]);
    let name = after(&said, "abstract ");
    let at = |name: &str| sandbox.work().join(name);
    let listener = TcpListener::bind(("127.0.0.1", tcp)).expect("the port is free");
    let datagrams = UdpSocket::bind(("127.0.0.1", udp)).expect("the port is free");
    fs::remove_file(at("socket")).expect("it was left");
    let named = UnixListener::bind(at("socket")).expect("the name is free");
    let hidden = SocketAddr::from_abstract_name(name).expect("a name");
    let hidden = UnixListener::bind_addr(&hidden).expect("the name is free");
    let locked = fs::File::open(at("locked")).expect("it is there");
    rustix::fs::flock(&locked, rustix::fs::FlockOperation::LockShared).expect("nobody has it");
    fs::remove_file(at("read")).expect("removable");
    sandbox.write("mapped", "a file that was CHANGED\n");
    fs::rename(at("place"), at("elsewhere")).expect("movable");
    let words = [
        format!("the address 127.0.0.1:{tcp} (TCP): a running program has it"),
        format!("the address 127.0.0.1:{udp} (UDP): a running program has it"),
        "in use by a running program".to_owned(),
        format!("socket @{name}: a running program has that name"),
        format!("{}: another process has locked it", at("locked").display()),
        format!("{}:", at("read").display()),
        format!("{}:", at("mapped").display()),
        format!("{}", at("place").display()),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let told = refused(&sandbox, &image, &words);
    // One line each, with what to do.
    let lines: Vec<&str> = told.stderr.lines().collect();
    assert!(lines.len() >= words.len(), "{told:?}");
    for word in &words {
        let line = lines.iter().find(|line| line.contains(word)).expect("told");
        assert!(line.contains("; "), "no hint: {line}");
    }

    // A dry run says the same, as JSON too.
    sandbox
        .restart_options
        .extend(["--dry-run", "--json"].map(String::from));
    let planned = sandbox.restart(&image).finish();
    assert_eq!(planned.exit, Exit::Code(125), "{planned:?}");
    let answer: Value = serde_json::from_str(&planned.stdout).expect("JSON");
    let obstacles = answer["obstacles"].as_array().expect("a list");
    assert_eq!(obstacles.len(), lines.len(), "{answer}\n{lines:?}");
    sandbox.restart_options.truncate(2);

    drop((listener, datagrams, named, hidden, locked));
    let at = |name: &str| sandbox.work().join(name);
    refused(&sandbox, &image, &words[5..]);
    fs::rename(at("elsewhere"), at("place")).expect("movable");
    sandbox.write("read", "a file that is read\n");
    sandbox.write("mapped", "a file that is mapped\n");
    works(&sandbox, &image);
}

/// The documented ways out: a directory that has moved, a file that is used as it is, an older processor that is tried.
#[test]
fn what_an_option_allows() {
    need!("python3");
    let mut sandbox = Sandbox::new();
    let (image, _) = image(&sandbox);
    let at = |name: &str| sandbox.work().join(name);
    let (old, new) = (at("place"), at("elsewhere"));
    fs::rename(&old, &new).expect("movable");
    let told = refused(&sandbox, &image, &[&old.display().to_string()]);
    assert!(told.stderr.contains("--map-path"), "{told:?}");
    let mapping = format!("{}={}", old.display(), new.display());
    sandbox
        .restart_options
        .extend(["--map-path".into(), mapping]);
    works(&sandbox, &image);
}

#[test]
fn another_processor() {
    need!("python3");
    let mut sandbox = Sandbox::new();
    let (image, _) = image(&sandbox);
    let pretend = (
        "STASIS_TEST_FAULT".to_owned(),
        "pretend@old-processor".to_owned(),
    );
    sandbox.env.push(pretend);
    refused(&sandbox, &image, &["--any-processor"]);
    sandbox.restart_options.push("--any-processor".into());
    works(&sandbox, &image);
}

/// The running job has its ids and ports itself: a second copy is refused, and the first goes on.
#[test]
fn a_job_that_still_runs() {
    need!("python3");
    let sandbox = Sandbox::new();
    let program = sandbox.write("restarts.py", script("restarts.py"));
    sandbox.write("read", "a file that is read\n");
    sandbox.write("mapped", "a file that is mapped\n");
    place(&sandbox);
    let mut job = sandbox.run(&["python3".as_ref(), program.as_os_str()]);
    job.wait_line("ready");
    let image = job.checkpoint();
    let second = sandbox.restart(&image).finish();
    assert_eq!(second.exit, Exit::Code(125), "{second:?}");
    assert!(
        second.stdout.is_empty() && !second.stderr.is_empty(),
        "{second:?}"
    );
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}
