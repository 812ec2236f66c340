//! Jobs of a container's first process, whose session and process group may be led by that process, or by one outside.

use stasis_tests::{Sandbox, need, script, skip};

/// The start of a container of an ordinary user.
const CONTAINER: [&str; 7] = [
    "unshare",
    "--user",
    "--map-current-user",
    "--mount",
    "--pid",
    "--fork",
    "--mount-proc",
];

/// The words of a container in which `role` is played, where this host allows one.
fn contained(sandbox: &Sandbox, role: &str) -> Option<Vec<String>> {
    sandbox.write("container.py", script("container.py"));
    sandbox.write("contained.py", script("contained.py"));
    let words = |rest: &[&str]| -> Vec<String> {
        let words = CONTAINER.iter().chain(rest);
        words.map(ToString::to_string).collect()
    };
    if !sandbox.plain(&words(&["true"])).success() {
        return None;
    }
    let images = sandbox.images();
    let images = images.to_str().expect("a path of the tests");
    Some(words(&["/usr/bin/python3", "contained.py", role, images]))
}

/// The job's ids before and after, as the program printed them, must be the same, and those that `role` makes.
fn same_ids<S: AsRef<std::ffi::OsStr>>(sandbox: &Sandbox, argv: &[S], session: &str) {
    let end = sandbox.plain(argv).expect_success("the job");
    let found = String::from_utf8(sandbox.read("found")).expect("text");
    let (then, now) = found.trim().split_once(") (").unwrap_or_default();
    assert_eq!(format!("{then})"), format!("({now}"), "{end:?}");
    let fields: Vec<&str> = now.split(", ").collect();
    assert_eq!(fields.get(1), Some(&session), "{found}");
}

fn check(role: &str, session: &str) {
    need!("unshare");
    let sandbox = Sandbox::new();
    let Some(argv) = contained(&sandbox, role) else {
        skip!("this host allows no container of an ordinary user");
    };
    same_ids(&sandbox, &argv, session);
}

/// The same with a terminal: the leader of its session is script(1), which is outside.
fn check_on_terminal(role: &str) {
    need!("unshare");
    need!("script");
    let sandbox = Sandbox::new();
    let Some(argv) = contained(&sandbox, role) else {
        skip!("this host allows no container of an ordinary user");
    };
    let line = argv.join(" ");
    same_ids(&sandbox, &["script", "-qec", &line, "/dev/null"], "0");
}

#[test]
fn a_session_from_outside() {
    check("stranger", "0");
}

#[test]
fn a_group_of_the_first_process() {
    check("group", "0");
}

#[test]
fn a_session_of_the_first_process() {
    check("session", "1");
}

#[test]
fn a_terminal_from_outside() {
    check_on_terminal("stranger");
}

/// Where nobody else makes processes, what a restart itself starts must not take the ids of the job's threads.
#[test]
fn ids_that_follow_upon_each_other() {
    need!("unshare");
    let sandbox = Sandbox::new();
    sandbox.write("container.py", script("container.py"));
    sandbox.write("quiet.py", script("quiet.py"));
    let start = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
    ];
    let own_limit = ["sh", "-c", "echo 1000 > /proc/sys/kernel/pid_max"];
    let probe: Vec<&str> = start.iter().chain(&own_limit).copied().collect();
    if !sandbox.plain(&probe).success() {
        skip!(
            "this host allows no container of an ordinary user with a pid_max of its own (Linux 6.14)"
        );
    }
    let images = sandbox.images();
    let images = images.to_str().expect("a path of the tests");
    let job = ["/usr/bin/python3", "quiet.py", images];
    let argv: Vec<&str> = start.iter().chain(&job).copied().collect();
    let end = sandbox.plain(&argv).expect_success("the job");
    assert_eq!(end.stdout.matches("True True").count(), 12, "{end:?}");
}
