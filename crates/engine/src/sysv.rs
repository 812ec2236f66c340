//! System V semaphores and message queues: neither is saved, and a tree that uses one is refused.
//!
//! They belong to the host (its ipc namespace), not to a process: no descriptor and no mapping leads to them, and a process's
//! undo list is not shown anywhere. What `/proc/sysvipc` and `semctl(2)` tell is who used one last (setting a semaphore's value
//! is a use). It is taken for the tree's where that was a process of the tree, and not one that had the same id before: what was last
//! used before the process was started was not used by it.
//!
//! So what was last used from outside, or by a process of the tree that has ended since, is not noticed. To go by the
//! maker's user and by time would refuse a job for the semaphores of every other job of the same user.
//!
//! Shared memory segments are mapped, and so found by `memory`.

use crate::Refusal;
use crate::conformance::Claim;
use crate::tree::Stat;
use rustix::time::{ClockId, clock_gettime};
use stasis_sys::{Pid, procfs, sysv};
use std::collections::HashMap;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[Claim::refused(
    "System V semaphores and message queues",
    "",
    &["descriptors::semaphores", "descriptors::message_queues"],
)];

/// A process of the tree, which may have ended: its id here, its id as the program sees it, its name.
pub(crate) type Member = (Pid, Pid, String);

/// Sets with more semaphores than this are judged by their first ones.
const MOST_LOOKED_AT: i32 = 1024;

/// What of them the tree uses.
pub(crate) fn refusals(members: &[Member]) -> Vec<Refusal> {
    let semaphores = table("sem").into_iter().filter_map(|row| {
        let id = row.number("semid")?;
        let count = row.number("nsems")?.min(MOST_LOOKED_AT);
        let mut users = (0..count).filter_map(|n| sysv::last_user_of_semaphore(id, n).ok());
        let used = row.latest(&["otime", "ctime"]);
        let user = users.find_map(|user| member(user, used, members))?;
        Some(refusal("semaphore set", 's', id, user))
    });
    let queues = table("msg").into_iter().filter_map(|row| {
        let users = [row.number("lspid"), row.number("lrpid")];
        let mut users = users.into_iter().flatten().map(Pid);
        let used = row.latest(&["stime", "rtime"]);
        let user = users.find_map(|user| member(user, used, members))?;
        Some(refusal("message queue", 'q', row.number("msqid")?, user))
    });
    semaphores.chain(queues).collect()
}

/// The member that was `user` when something was `used`, in seconds since 1970.
fn member(user: Pid, used: i64, members: &[Member]) -> Option<&Member> {
    let member = members.iter().find(|(pid, _, _)| *pid == user)?;
    started(user)
        .is_none_or(|started| could_have(started, used))
        .then_some(member)
}

/// Both times are cut to whole seconds, and the clock may have been set a little.
fn could_have(started: i64, used: i64) -> bool {
    const INEXACT: i64 = 2;
    used + INEXACT >= started
}

/// When a process was started, in seconds since 1970; `proc_pid_stat(5)`, field 22.
fn started(pid: Pid) -> Option<i64> {
    let ticks = Stat::read(pid)?.field(22) / rustix::param::clock_ticks_per_second();
    let now = clock_gettime(ClockId::Realtime).tv_sec;
    let up = clock_gettime(ClockId::Boottime).tv_sec;
    Some(now - up + i64::try_from(ticks).ok()?)
}

fn refusal(kind: &str, option: char, id: i32, user: &Member) -> Refusal {
    let (_, virtual_pid, name) = user;
    Refusal {
        pid: Some(*virtual_pid),
        process: name.clone(),
        object: format!("System V {kind} {id}"),
        reason: "it belongs to the host, and cannot be saved yet".into(),
        hint: format!(
            "let the program remove it before the checkpoint, or remove it (ipcrm -{option} {id}) if nothing needs it"
        ),
    }
}

/// A line of a file of `/proc/sysvipc`, by the names of its columns.
struct Row(HashMap<String, i64>);

impl Row {
    fn number(&self, name: &str) -> Option<i32> {
        self.0
            .get(name)
            .and_then(|value| i32::try_from(*value).ok())
    }

    /// The latest of some times, in seconds since 1970.
    fn latest(&self, names: &[&str]) -> i64 {
        let times = names.iter().filter_map(|name| self.0.get(*name).copied());
        times.max().unwrap_or(0)
    }
}

/// The rows of such a file; none where the kernel is built without.
fn table(name: &str) -> Vec<Row> {
    parse(&procfs::read_to_string(format!("/proc/sysvipc/{name}")).unwrap_or_default())
}

fn parse(text: &str) -> Vec<Row> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    let row = |line: &str| {
        let values = line
            .split_ascii_whitespace()
            .map(|word| word.parse().unwrap_or(0));
        Row(names.iter().map(ToString::to_string).zip(values).collect())
    };
    lines.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUES: &str = "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime
         0          7   600           1          1  4321     0  1000  1000  1000  1000 1700000200          0 1700000100
";

    #[test]
    fn a_row_is_read_by_its_columns() {
        let rows = parse(QUEUES);
        assert_eq!(rows[0].number("msqid"), Some(7));
        assert_eq!(rows[0].number("lspid"), Some(4321));
        assert_eq!(rows[0].number("semid"), None);
        assert_eq!(rows[0].latest(&["stime", "rtime"]), 1_700_000_200);
        assert!(parse("").is_empty());
    }

    #[test]
    fn who_has_the_id_now_is_not_who_had_it_then() {
        let own = Pid::current();
        let members = [(own, own, "tests".to_owned())];
        let started = started(own).expect("this process runs");
        assert!(member(own, started, &members).is_some());
        assert!(member(own, started - 60, &members).is_none());
        assert!(member(Pid(own.0 + 1), started, &members).is_none());
    }
}
