//! System V semaphores and message queues: neither is saved, and a tree that uses one is refused.
//!
//! They belong to the host (its ipc namespace), not to a process: no descriptor and no mapping leads to them, and a process's
//! undo list is not shown anywhere. What `/proc/sysvipc` and `semctl(2)` tell is who used one last (setting a semaphore's value
//! is a use). It is taken for the tree's where that was a process of the tree.
//!
//! So what was last used from outside, or by a process of the tree that has ended since, is not noticed. To go by the
//! maker's user and by time would refuse a job for the semaphores of every other job of the same user.
//!
//! Shared memory segments are mapped, and so found by `memory`.

use crate::Refusal;
use stasis_sys::{Pid, procfs, sysv};
use std::collections::HashMap;

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
        let user = users.find_map(|user| member(user, members))?;
        Some(refusal("semaphore set", 's', id, user))
    });
    let queues = table("msg").into_iter().filter_map(|row| {
        let users = [row.number("lspid"), row.number("lrpid")];
        let mut users = users.into_iter().flatten().map(Pid);
        let user = users.find_map(|user| member(user, members))?;
        Some(refusal("message queue", 'q', row.number("msqid")?, user))
    });
    semaphores.chain(queues).collect()
}

fn member(user: Pid, members: &[Member]) -> Option<&Member> {
    members.iter().find(|(pid, _, _)| *pid == user)
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
        assert!(parse("").is_empty());
    }
}
