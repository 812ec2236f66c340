//! Finding the processes of a tree.

use crate::conformance::Claim;
use stasis_sys::{Pid, procfs};
use std::fs;

pub(crate) const PROCESS: Claim = Claim::kept(
    "process",
    "its id, parent, process group, session and name",
    &[
        "processes::tree",
        "processes::sessions",
        "strategies::namespaces::tree",
    ],
);
pub(crate) const ZOMBIE: Claim = Claim::kept(
    "ended process that was not waited for",
    "its id and status",
    &["processes::zombies"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    PROCESS,
    Claim::kept(
        "session or group whose leader has ended",
        "",
        &["processes::dead_leaders"],
    ),
    Claim::kept(
        "orphan",
        "adopted by the same process: the first of the job, or a subreaper",
        &["processes::orphans", "processes::subreaper"],
    ),
    ZOMBIE,
    Claim::kept(
        "process that job control has stopped",
        "",
        &["processes::stopped"],
    ),
    Claim::kept(
        "process that is forking, executing, making threads",
        "",
        &[
            "processes::forking_madly",
            "processes::executing_madly",
            "processes::threading_madly",
        ],
    ),
];

/// One line of `/proc/PID/stat`, the fields that the engine uses (`proc_pid_stat(5)`).
#[derive(Clone, Debug)]
pub struct Stat {
    /// Process id (supervisor's number).
    pub pid: Pid,
    /// Name.
    pub comm: String,
    /// State letter: R, S, D, Z, T, t, X, I.
    pub state: char,
    /// Parent.
    pub parent: Pid,
    /// Every field after the name, index 0 being the state: field n of the man page is `rest[n - 3]`.
    pub rest: Vec<String>,
}

impl Stat {
    /// Reads it for a process or, with a path such as `12/task/13`, a thread. `None` when it is gone.
    #[must_use]
    pub fn read(id: impl std::fmt::Display) -> Option<Stat> {
        Stat::parse(&procfs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name may hold blanks and parentheses: it ends at the last one.
        let (open, close) = (text.find('(')?, text.rfind(')')?);
        let rest: Vec<String> = text[close + 1..]
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect();
        Some(Stat {
            pid: Pid(text[..open].trim().parse().ok()?),
            comm: text[open + 1..close].to_owned(),
            state: rest.first()?.chars().next()?,
            parent: Pid(rest.get(1)?.parse().ok()?),
            rest,
        })
    }

    /// Field `n` as numbered in `proc_pid_stat(5)`, 0 where it is missing.
    #[must_use]
    pub fn field(&self, n: usize) -> u64 {
        let text = self.rest.get(n.wrapping_sub(3)).map_or("0", String::as_str);
        text.parse::<u64>()
            .or_else(|_| text.parse::<i64>().map(|v| v as u64))
            .unwrap_or(0)
    }
}

/// The children of `pid` as the kernel lists them, zombies among them.
#[must_use]
pub fn children(pid: Pid) -> Vec<Pid> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for task in tasks.flatten() {
        match procfs::read_to_string(task.path().join("children")) {
            Ok(list) => found.extend(
                list.split_ascii_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .map(Pid),
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && task.path().exists() => {
                return children_by_search(pid);
            }
            Err(_) => {}
        }
    }
    found
}

/// The same on kernels without CONFIG_PROC_CHILDREN: every process is asked for its parent.
fn children_by_search(pid: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let ids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid);
    ids.filter(|id| Stat::read(id).is_some_and(|stat| stat.parent == pid))
        .collect()
}

/// Every descendant of `pid`, parents before children; not `pid` itself.
#[must_use]
pub fn descendants(pid: Pid) -> Vec<Pid> {
    let mut found = children(pid);
    let mut next = 0;
    while next < found.len() {
        let more = children(found[next]);
        found.extend(more);
        next += 1;
    }
    found
}

/// Descendants that are not zombies.
#[must_use]
pub fn living_descendants(pid: Pid) -> Vec<Pid> {
    living(&descendants(pid))
}

/// Those of `processes` that are not zombies.
#[must_use]
pub fn living(processes: &[Pid]) -> Vec<Pid> {
    let lives = |pid: &&Pid| Stat::read(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'));
    processes.iter().filter(lives).copied().collect()
}

/// The threads of a process, the leader first, then ascending.
#[must_use]
pub fn threads(pid: Pid) -> Vec<Pid> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found: Vec<Pid> = tasks
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .map(Pid)
        .collect();
    found.sort_by_key(|tid| (*tid != pid, *tid));
    found
}

/// The value of a field of `/proc/PID/status` (`proc_pid_status(5)`).
#[must_use]
pub fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

/// The id that a process or thread has in its own pid namespace: the last of `NSpid`.
#[must_use]
pub fn innermost_id(status: &str) -> Option<Pid> {
    status_field(status, "NSpid")?
        .split_ascii_whitespace()
        .last()?
        .parse()
        .ok()
        .map(Pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = Stat::parse("12 (a) b (c)) S 3 12 12 0 -1 4194560 7").expect("a valid line");
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.parent),
            ("a) b (c)", 'S', Pid(3))
        );
        assert_eq!(stat.field(5), 12);
        assert_eq!(stat.field(99), 0);
    }

    #[test]
    fn both_ways_of_finding_children_agree() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .expect("sleep");
        let pid = Pid(child.id() as i32);
        let (listed, searched) = (children(Pid::current()), children_by_search(Pid::current()));
        child
            .kill()
            .and_then(|()| child.wait())
            .expect("ending sleep");
        assert!(listed.contains(&pid) && searched.contains(&pid));
    }

    #[test]
    fn this_process_has_a_parent_that_lists_it() {
        let stat = Stat::read("self").expect("/proc/self/stat");
        assert!(descendants(stat.parent).contains(&Pid::current()));
    }
}
