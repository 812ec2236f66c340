//! What `/proc/sysvipc` tells of System V objects (`proc_sysvipc(5)`): those of the reader's ipc namespace, with process ids of the
//! pid namespace that `/proc` belongs to.

use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, procfs, sysv};
use std::collections::HashMap;

/// What all three kinds have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its id.
    pub id: i32,
    /// Its key; 0 where it has none.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// Who may do what: nine bits.
    pub mode: u32,
    /// The user who made it.
    pub maker: u32,
    /// Seconds since 1970 at which owner, mode or the like were set last.
    pub changed: i64,
    /// Seconds since 1970 at which it was used last.
    pub used: i64,
    /// Who made it and used it last, as far as the kernel tells, by the supervisor's numbers; 0 is nobody.
    pub users: Vec<Pid>,
    /// It is the program's without doubt.
    pub certain: bool,
}

/// The kinds, as the kernel calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Shared memory.
    Segment,
    /// Semaphores.
    Set,
    /// Messages.
    Queue,
}

impl Kind {
    /// All.
    pub const ALL: [Kind; 3] = [Kind::Segment, Kind::Set, Kind::Queue];

    /// As `/proc` calls it: `sysvipc/shm`, `sys/kernel/shm_next_id`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Segment => "shm",
            Kind::Set => "sem",
            Kind::Queue => "msg",
        }
    }

    /// In words, with its id.
    #[must_use]
    pub fn words(self, id: i32) -> String {
        let what = match self {
            Kind::Segment => "shared memory segment",
            Kind::Set => "semaphore set",
            Kind::Queue => "message queue",
        };
        format!("System V {what} {id}")
    }

    /// The command that removes one.
    #[must_use]
    pub fn removal(self, id: i32) -> String {
        let option = match self {
            Kind::Segment => 'm',
            Kind::Set => 's',
            Kind::Queue => 'q',
        };
        format!("ipcrm -{option} {id}")
    }

    /// All objects of the kind; none where the kernel is built without.
    #[must_use]
    pub fn rows(self) -> Vec<Row> {
        let path = format!("/proc/sysvipc/{}", self.name());
        parse(&procfs::read_to_string(path).unwrap_or_default())
    }
}

/// A line of such a file, by the names of its columns.
#[derive(Clone, Debug)]
pub struct Row(HashMap<String, i64>);

/// Sets with more semaphores than this are judged by their first ones.
const MOST_LOOKED_AT: i32 = 1024;

impl Row {
    /// A number that fits.
    #[must_use]
    pub fn number<T: TryFrom<i64>>(&self, name: &str) -> Option<T> {
        T::try_from(*self.0.get(name)?).ok()
    }

    /// All of the mode: the column is octal.
    #[must_use]
    pub fn mode(&self) -> u32 {
        let digits = self.number::<u32>("perms").unwrap_or(0).to_string();
        u32::from_str_radix(&digits, 8).unwrap_or(0)
    }

    /// The id.
    #[must_use]
    pub fn id(&self, kind: Kind) -> i32 {
        let name = match kind {
            Kind::Segment => "shmid",
            Kind::Set => "semid",
            Kind::Queue => "msqid",
        };
        self.number(name).unwrap_or(-1)
    }

    /// How large it is, where that never changes: bytes of a segment, semaphores of a set.
    #[must_use]
    pub fn size(&self) -> u64 {
        let size = self.number("size").or_else(|| self.number("nsems"));
        size.unwrap_or(0)
    }

    /// How often a segment is attached.
    #[must_use]
    pub fn attached(&self) -> u64 {
        self.number("nattch").unwrap_or(0)
    }

    /// What it tells.
    #[must_use]
    pub fn object(&self, kind: Kind) -> Object {
        let id = self.id(kind);
        let count = self.number::<i32>("nsems").unwrap_or(0).min(MOST_LOOKED_AT);
        let of_semaphores =
            (0..count).filter_map(|number| sysv::last_user_of_semaphore(id, number).ok());
        let named = ["cpid", "lpid", "lspid", "lrpid"];
        let named = named.into_iter().filter_map(|name| self.number(name));
        let times = ["atime", "dtime", "otime", "stime", "rtime", "ctime"];
        let times = times.into_iter().filter_map(|name| self.number(name));
        let ids = |name: &str| self.number(name).unwrap_or(u32::MAX);
        Object {
            id,
            key: self.number("key").unwrap_or(0),
            uid: ids("uid"),
            gid: ids("gid"),
            mode: self.mode() & 0o777,
            maker: ids("cuid"),
            changed: self.number("ctime").unwrap_or(0),
            used: times.max().unwrap_or(0),
            users: named.map(Pid).chain(of_semaphores).collect(),
            certain: false,
        }
    }
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
       -17          7   640           1          1  4321     0  1000  1000  1000  1000 1700000200          0 1700000100
";

    #[test]
    fn a_row_is_read_by_its_columns() {
        let rows = parse(QUEUES);
        let object = rows[0].object(Kind::Queue);
        assert_eq!((object.id, object.key, object.mode), (7, -17, 0o640));
        assert_eq!(object.users, [Pid(4321), Pid(0)]);
        assert_eq!(
            (object.changed, object.used),
            (1_700_000_100, 1_700_000_200)
        );
        assert_eq!(rows[0].number::<i32>("semid"), None);
        assert!(parse("").is_empty());
    }
}
