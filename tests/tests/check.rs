//! `stasis check` says of a job what a checkpoint does with it, in the same words, and harms nothing.

use serde_json::Value;
use stasis_tests::{Finished, Linkage, Running, Sandbox, need, program, script, skip, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

/// The program of refusals, in the sandbox.
fn refusals(sandbox: &Sandbox) -> PathBuf {
    sandbox.write("refusals.py", script("refusals.py"))
}

fn check(sandbox: &Sandbox, what: &str) -> (Finished, Value) {
    let checked = sandbox.stasis(["check", "--json", what]);
    let answer = serde_json::from_str(&checked.stdout);
    let answer = answer.unwrap_or_else(|error| panic!("{error}: {checked:?}"));
    (checked, answer)
}

fn started<'a>(sandbox: &'a Sandbox, case: &str) -> Running<'a> {
    let program = refusals(sandbox);
    let mut job = sandbox.run(&["python3".as_ref(), program.as_os_str(), case.as_ref()]);
    job.wait_line("ready");
    job.wait_listed();
    job
}

fn goes_on(sandbox: &Sandbox, job: Running) {
    sandbox.write("go", "");
    let end = job.finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

/// What is refused, as lines.
fn obstacles(answer: &Value) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = answer["obstacles"].as_array().expect("a list");
    let line = |one: &Value| {
        let process = format!("process {} ({}), ", one["pid"], text(&one["process"]));
        let hint = text(&one["hint"]);
        let hint = if hint.is_empty() {
            hint
        } else {
            format!("; {hint}")
        };
        format!(
            "{process}{}: {}{hint}",
            text(&one["object"]),
            text(&one["reason"])
        )
    };
    all.iter().map(line).collect()
}

/// A job that cannot be saved: the look and the checkpoint say the same, there is no image, and the program goes on.
fn refused_alike(sandbox: &Sandbox, mut job: Running, words: &[&str]) {
    let (checked, answer) = check(sandbox, "job");
    assert_eq!(checked.exit, stasis_tests::Exit::Code(1), "{checked:?}");
    assert_eq!(answer["can_be_saved"], false);
    let saved = job.try_checkpoint();
    assert!(!saved.success(), "{saved:?}");
    let said = saved.stderr.trim_end();
    let said = said
        .split_once("was not saved: ")
        .map_or(said, |(_, said)| said);
    let said: BTreeSet<String> = said.lines().map(str::to_owned).collect();
    assert_eq!(
        obstacles(&answer),
        said,
        "the look and the checkpoint differ"
    );
    for word in words {
        assert!(
            said.iter().any(|line| line.contains(word)),
            "{word} is not named: {said:?}"
        );
    }
    assert!(sandbox.all_images().is_empty(), "refused, and yet an image");
    goes_on(sandbox, job);
}

fn refused(case: &str, words: &[&str]) {
    need!("python3");
    let sandbox = Sandbox::new();
    let job = started(&sandbox, case);
    refused_alike(&sandbox, job, words);
}

/// Whether an ordinary user may make these namespaces here.
fn may_unshare(options: &str) -> bool {
    Sandbox::new()
        .plain(&["unshare", options, "true"])
        .success()
}

#[test]
fn a_system_call_filter() {
    refused("filter", &["seccomp", "without its sandbox"]);
}

#[test]
fn namespaces() {
    if !may_unshare("-Uu") {
        skip!("user namespaces are not allowed here");
    }
    refused("namespaces", &["its user namespace", "its uts namespace"]);
}

#[test]
fn another_root() {
    if !may_unshare("-U") {
        skip!("user namespaces are not allowed here");
    }
    refused("root", &["its root directory"]);
}

#[test]
fn shared_tables() {
    refused(
        "shared",
        &["its descriptor table", "shared with its parent"],
    );
}

#[test]
fn a_debugger() {
    refused("traced", &["cannot be traced", "a debugger"]);
}

#[test]
fn an_address_space_at_its_hard_limit() {
    refused("hard", &["its address space", "ulimit"]);
}

#[test]
fn a_deleted_directory() {
    refused("directory", &["gone"]);
}

#[test]
fn several_obstacles_at_once() {
    refused(
        "several",
        &["userfaultfd", "netlink socket of protocol 9", "gone"],
    );
}

#[test]
fn a_32_bit_program() {
    need!("cc");
    let sandbox = Sandbox::new();
    let source = sandbox.write("tiny.s", script("tiny32.s"));
    let program = sandbox.work().join("tiny");
    let built = sandbox.plain(&[
        "cc".as_ref(),
        "-m32".as_ref(),
        "-nostdlib".as_ref(),
        "-static".as_ref(),
        "-o".as_ref(),
        program.as_os_str(),
        source.as_os_str(),
    ]);
    if !built.success() {
        skip!("no 32-bit programs can be made here");
    }
    sandbox.write("go", "");
    if !sandbox.plain(&[program.as_os_str()]).success() {
        skip!("no 32-bit programs can be run here");
    }
    fs::remove_file(sandbox.work().join("go")).expect("it is there");
    let mut job = sandbox.run(&[program.as_os_str()]);
    job.wait_line("ready");
    job.wait_listed();
    refused_alike(&sandbox, job, &["32-bit"]);
}

/// The limit is raised for the checkpoint, and is the program's own afterwards.
#[test]
fn an_address_space_at_its_soft_limit() {
    need!("python3");
    let sandbox = Sandbox::new();
    let mut job = started(&sandbox, "soft");
    let limit = |job: &Running| {
        let root = job.descendants().into_iter().find(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"python3"))
        });
        let limits = fs::read_to_string(format!("/proc/{}/limits", root.expect("the program")))
            .expect("readable");
        limits
            .lines()
            .find(|line| line.contains("address space"))
            .map(str::to_owned)
    };
    let before = limit(&job);
    let soft = before
        .as_deref()
        .and_then(|line| line.split_whitespace().nth(3));
    assert!(soft.is_some_and(|soft| soft != "unlimited"), "{before:?}");
    let (checked, _) = check(&sandbox, "job");
    assert!(checked.success(), "{checked:?}");
    let image = job.checkpoint();
    assert_eq!(limit(&job), before);
    goes_on(&sandbox, job);
    let end = sandbox.restart(&image).finish();
    assert!(end.success() && end.stdout.ends_with("ok\n"), "{end:?}");
}

/// Every descriptor of every process is told, and what becomes of it.
#[test]
fn everything_is_listed() {
    need!("python3");
    let sandbox = Sandbox::new();
    let mut job = started(&sandbox, "many");
    let root = wait_until("the job has its processes", || {
        let status: Value = serde_json::from_str(&sandbox.stasis(["ps", "--json"]).stdout).ok()?;
        let pids = status[0]["pids"].as_array()?.len();
        (pids >= 3).then(|| status[0]["root"].clone())
    });
    let (checked, answer) = check(&sandbox, "job");
    assert!(checked.success(), "{checked:?}");
    let items = answer["items"].as_array().expect("a list");
    let of_root = |item: &&Value| item["pid"] == root;
    let told: BTreeSet<i64> = items
        .iter()
        .filter(of_root)
        .filter_map(|item| item["descriptor"].as_i64())
        .collect();
    let there = fs::read_dir(format!("/proc/{root}/fd")).expect("readable");
    let there: BTreeSet<i64> = there
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    assert_eq!(told, there);
    for resource in [
        "process",
        "thread",
        "pipe",
        "file",
        "Unix socket",
        "TCP socket that listens",
        "TCP connection within the job",
        "lock on a file",
        "memory: anonymous",
    ] {
        let one = items
            .iter()
            .filter(of_root)
            .find(|item| item["resource"] == resource);
        assert_eq!(
            one.unwrap_or_else(|| panic!("no {resource}: {answer}"))["verdict"],
            "kept"
        );
    }
    assert!(
        items.iter().any(|item| item["verdict"] == "reset"),
        "the standard streams are pipes"
    );
    // The numbers of any of its processes mean the job.
    let (_, again) = check(&sandbox, &root.to_string());
    assert_eq!(again["items"].as_array().map(Vec::len), Some(items.len()));
    // For people it is a page.
    let page = sandbox.stasis(["check", "job"]);
    assert!(page.stdout.lines().count() < 60, "{page:?}");
    assert!(
        page.stdout
            .ends_with("nothing stands in the way of a checkpoint\n"),
        "{page:?}"
    );
    let all = sandbox.stasis(["check", "--verbose", "job"]);
    assert!(all.stdout.lines().count() > 1000, "{all:?}");
    job.checkpoint();
    goes_on(&sandbox, job);
}

/// A connection to the outside is named, with what becomes of it.
#[test]
fn a_connection_out_of_the_job() {
    need!("cc");
    let sandbox = Sandbox::new();
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("bound").port().to_string();
    let tcp = program("tcp", Linkage::Dynamic).expect("there is a compiler");
    let mut job = sandbox.run(&[tcp.as_os_str(), "outside".as_ref(), port.as_ref()]);
    let (mut connection, _) = server.accept().expect("it connects");
    std::io::Write::write_all(&mut connection, b"hellogreeting").expect("sent");
    job.wait_line("ready");
    job.wait_listed();
    let (checked, answer) = check(&sandbox, "job");
    assert!(checked.success(), "{checked:?}");
    let items = answer["items"].as_array().expect("a list");
    let reset = items
        .iter()
        .find(|item| item["resource"] == "TCP connection out of the job")
        .expect("it is told");
    assert_eq!(reset["verdict"], "reset");
    assert!(
        reset["remark"]
            .as_str()
            .expect("words")
            .contains("--external"),
        "{reset}"
    );
    assert!(
        reset["object"]
            .as_str()
            .expect("an address")
            .ends_with(&format!(":{port}")),
        "{reset}"
    );
    job.kill_all();
}

/// Looked at again and again, a program under load finds every byte where it should be.
#[test]
fn a_look_does_no_harm() {
    need!("cc");
    for (name, case) in [("tcp", "load"), ("sockets", "load"), ("ptys", "session")] {
        let sandbox = Sandbox::new();
        let program = program(name, Linkage::Dynamic).expect("there is a compiler");
        let mut job = sandbox.run(&[program.as_os_str(), case.as_ref()]);
        job.wait_line("ready");
        job.wait_listed();
        for _ in 0..20 {
            let (checked, _) = check(&sandbox, "job");
            assert!(checked.success(), "{checked:?}");
        }
        goes_on(&sandbox, job);
    }
}

/// A program that is no job, and whose parent is not the user's: what it is in is compared with where the command is.
#[test]
fn a_daemon() {
    let sandbox = Sandbox::new();
    let line = "echo $$ > pid.new; mv pid.new pid; exec sleep 1000 <&- >&- 2>&-";
    let started = sandbox.plain(&["setsid", "-f", "sh", "-c", line]);
    assert!(started.success(), "{started:?}");
    let pid = wait_until("it runs", || {
        let pid = String::from_utf8(sandbox.read("pid")).ok()?;
        let pid: i32 = pid.trim().parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name == "sleep\n").then_some(pid)
    });
    let (checked, answer) = check(&sandbox, &pid.to_string());
    if answer.to_string().contains("may not be looked at") {
        skip!("this host lets nobody trace what he did not start");
    }
    assert!(checked.success(), "{checked:?}");
}
