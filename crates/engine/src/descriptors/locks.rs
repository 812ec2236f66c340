//! Locks on files: `flock(2)`, record locks of a process (`F_SETLK`), record locks of a description (`F_OFD_SETLK`).
//!
//! Saved: which lock, on which range, through which description, and, for `F_SETLK`, of which process; read leases (`F_SETLEASE`).
//! Not saved: who waits for a lock, for the waiting call is simply made again.
//! Refused: write leases, which the program would have to give up for the file to be read; leases that somebody waits for, which is
//! tried for a second.
//!
//! Facts it rests on
//! - The lines `lock:` of `/proc/PID/fdinfo/FD` list the locks that were taken through that description and belong to it or
//!   to that process (`fs/locks.c`, `show_fd_locks`): every lock once for each process that has the description.
//! - Locks of a description live as long as any duplicate of it, also one that only the supervisor holds.
//! - A process's record locks on a file all vanish when it closes any descriptor of that file (`fcntl_locking(2)`): they are
//!   taken again when all superfluous descriptors are closed.
//! - A lease belongs to a description; its line says `UNLCK` while somebody waits for it to be given up. Only openings for writing
//!   disturb a read lease. The kernel makes the process that takes it the one that is told, unless another was set.
//! - Locks that processes of the tree hold together cannot be in each other's way, so the order of taking does not matter.

use super::capture::{Found, Obstacle};
use super::fdinfo::FdInfo;
use super::{CaptureContext, Captured, DescriptionId, Kind, ProcessView, Table};
use crate::file_policy::PathBytes;
use crate::{EngineError, Refusal};
use rustix::fs::{CWD, FlockOperation, flock, readlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use stasis_sys::lock::{self, Access, Range};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// A record lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordLock {
    /// It excludes readers as well.
    pub write: bool,
    /// First byte.
    pub start: u64,
    /// Length in bytes; 0 is everything from `start` on.
    pub len: u64,
}

/// The locks that belong to a description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `flock(2)`: exclusive or shared.
    pub whole: Option<Whole>,
    /// `F_OFD_SETLK`.
    pub records: Vec<RecordLock>,
}

/// A lock by `flock(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whole {
    /// `LOCK_SH`.
    Shared,
    /// `LOCK_EX`.
    Exclusive,
}

/// The locks that belong to a process (`F_SETLK`). Those of a description (`flock`, `F_OFD_SETLK`) belong to the
/// file's `State`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// The number of a descriptor through which the lock can be taken, and the lock.
    pub records: Vec<(RawFd, RecordLock)>,
}

/// One `lock:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Whole(Whole),
    Process(RecordLock),
    Description(RecordLock),
    Lease(Lease),
    Unknown,
}

/// What a lease keeps others from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    Writing,
    Opening,
    /// Nothing any more: it is being given up.
    Broken,
}

/// Parses `1: POSIX  ADVISORY  WRITE 359 00:13:11691 0 EOF` (`proc_pid_fdinfo(5)`, `proc_locks(5)`).
fn parse(line: &str) -> Line {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, kind, state, access, _, _, start, end] = words[..] else {
        return Line::Unknown;
    };
    if matches!(kind, "LEASE" | "DELEG") {
        return Line::Lease(match (state, access) {
            ("ACTIVE", "READ") => Lease::Writing,
            ("ACTIVE", "WRITE") => Lease::Opening,
            _ => Lease::Broken,
        });
    }
    let write = match access {
        "READ" => false,
        "WRITE" => true,
        _ => return Line::Unknown,
    };
    let record = || {
        let start: u64 = start.parse().ok()?;
        let len = match end {
            "EOF" => 0,
            end => end
                .parse::<u64>()
                .ok()?
                .checked_sub(start)?
                .checked_add(1)?,
        };
        Some(RecordLock { write, start, len })
    };
    match (kind, record()) {
        ("FLOCK", _) if write => Line::Whole(Whole::Exclusive),
        ("FLOCK", _) => Line::Whole(Whole::Shared),
        ("POSIX", Some(record)) => Line::Process(record),
        ("OFDLCK", Some(record)) => Line::Description(record),
        _ => Line::Unknown,
    }
}

/// The locks of one description.
///
/// # Errors
/// A lease, or a kind of lock that is not known.
pub fn of_description(found: &Found) -> Result<State, Obstacle> {
    let mut state = State::default();
    for line in found.info.all("lock") {
        match parse(line) {
            Line::Whole(whole) => state.whole = Some(whole),
            Line::Description(record) => state.records.push(record),
            Line::Process(_) => {}
            Line::Lease(Lease::Writing) => {}
            Line::Lease(Lease::Opening) => {
                return Err(found.refuse(
                    "the program holds a write lease on it (F_SETLEASE), which it would have to give up for it to be read",
                    "let the program give it up (F_UNLCK) first",
                ));
            }
            Line::Lease(Lease::Broken) => {
                return Err(found.passing(
                    "the program is about to give up its lease on it (F_SETLEASE)",
                    "checkpoint when it has done so",
                ));
            }
            Line::Unknown => {
                return Err(found.refuse(
                    format!("a lock on it is of a kind that is not known: {line}"),
                    "let the program give it up first",
                ));
            }
        }
    }
    Ok(state)
}

/// Whether a description holds a read lease.
#[must_use]
pub fn has_lease(found: &Found) -> bool {
    found
        .info
        .all("lock")
        .any(|line| matches!(parse(line), Line::Lease(_)))
}

/// Takes read leases again, in the first process that holds them, `process` being its place: when the owner of the description is
/// set, who is told of openings.
///
/// # Errors
/// When somebody has the file open for writing, naming it.
pub fn take_leases(
    leases: &[DescriptionId],
    process: usize,
    tables: &[Table],
) -> Result<(), EngineError> {
    for id in leases {
        let of = |table: &Table| {
            table
                .descriptors
                .iter()
                .find(|d| d.description == *id)
                .map(|d| d.fd)
        };
        let first = tables.iter().position(|table| of(table).is_some());
        if let (true, Some(fd)) = (first == Some(process), tables.get(process).and_then(of)) {
            lock::take_read_lease(fd).map_err(|error| refused(fd, None, error))?;
        }
    }
    Ok(())
}

/// Takes the locks of a description again, through a descriptor of it.
///
/// # Errors
/// When somebody else holds one, naming the file.
pub fn take(fd: BorrowedFd<'_>, state: &State) -> Result<(), EngineError> {
    if let Some(whole) = state.whole {
        let operation = match whole {
            Whole::Shared => FlockOperation::NonBlockingLockShared,
            Whole::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        flock(fd, operation).map_err(|error| refused(fd.as_raw_fd(), None, error.into()))?;
    }
    for record in &state.records {
        lock::set_description(fd, record.access(), record.range())
            .map_err(|error| refused(fd.as_raw_fd(), None, error))?;
    }
    Ok(())
}

/// Fills [`super::Table::locks`] of every table, after all descriptions were captured.
///
/// # Errors
/// What stands in the way.
pub fn capture(ctx: &CaptureContext, captured: &mut Captured) -> Result<(), EngineError> {
    let Captured {
        descriptions,
        tables,
        ..
    } = captured;
    for (process, table) in ctx.processes.iter().zip(tables) {
        for descriptor in &table.descriptors {
            let on_file = descriptions
                .get(descriptor.description.index())
                .is_some_and(|d| matches!(d.kind, Kind::File(_) | Kind::Directory(_)));
            if !on_file {
                continue;
            }
            // Gone while we only look: so are its locks.
            let Ok(info) = FdInfo::read(process.pid, descriptor.fd) else {
                continue;
            };
            for line in info.all("lock") {
                if let Line::Process(record) = parse(line) {
                    let known = &mut table.locks.records;
                    // Two descriptors of one description tell the same locks.
                    let again = known.iter().any(|(fd, other)| {
                        *other == record
                            && table
                                .descriptors
                                .iter()
                                .any(|d| d.fd == *fd && d.description == descriptor.description)
                    });
                    if !again {
                        known.push((descriptor.fd, record));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Takes them again, in the process that they belong to, after its last superfluous descriptor was closed: closing any
/// descriptor of a file drops the process's locks on it.
///
/// # Errors
/// When somebody else holds one, naming the file and the process of the tree.
pub fn restore(state: &ProcessState, process: &ProcessView) -> Result<(), EngineError> {
    for (fd, record) in &state.records {
        lock::set_process(*fd, record.access(), record.range())
            .map_err(|error| refused(*fd, Some(process), error))?;
    }
    Ok(())
}

impl RecordLock {
    fn access(self) -> Access {
        if self.write {
            Access::Write
        } else {
            Access::Read
        }
    }
    fn range(self) -> Range {
        Range {
            start: self.start,
            len: self.len,
        }
    }
}

/// What went wrong in taking a lock on `fd`.
fn refused(fd: RawFd, process: Option<&ProcessView>, error: io::Error) -> EngineError {
    let path = readlinkat(CWD, format!("/proc/self/fd/{fd}"), Vec::new())
        .map(|link| PathBytes(link.into_bytes()).to_string())
        .unwrap_or_default();
    let in_the_way = [Errno::AGAIN, Errno::ACCESS]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    if !in_the_way {
        return EngineError::System {
            what: format!("locking {path}"),
            source: error,
        };
    }
    EngineError::Refused(vec![Refusal {
        pid: process.map(|process| process.virtual_pid),
        process: process.map_or_else(String::new, |process| process.name.clone()),
        object: format!("file {path}"),
        reason: "another process has locked it since the checkpoint".to_owned(),
        hint: "end what holds the lock (is the job still running? see lslocks) and try again"
            .to_owned(),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::files::tests::{found, this_process};
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn lines_as_the_kernel_writes_them() {
        let record = |write, start, len| RecordLock { write, start, len };
        let cases = [
            (
                "1: POSIX  ADVISORY  WRITE 359 00:13:11691 0 EOF",
                Line::Process(record(true, 0, 0)),
            ),
            (
                "2: POSIX  ADVISORY  READ 5 fe:00:7 100 109",
                Line::Process(record(false, 100, 10)),
            ),
            (
                "1: OFDLCK ADVISORY  READ -1 fe:00:7 0 0",
                Line::Description(record(false, 0, 1)),
            ),
            (
                "1: FLOCK  ADVISORY  WRITE 0 fe:00:7 0 EOF",
                Line::Whole(Whole::Exclusive),
            ),
            (
                "1: LEASE  ACTIVE    WRITE 5 fe:00:7 0 EOF",
                Line::Lease(Lease::Opening),
            ),
            (
                "1: LEASE  ACTIVE    READ 5 fe:00:7 0 EOF",
                Line::Lease(Lease::Writing),
            ),
            (
                "1: LEASE  BREAKING  UNLCK 5 fe:00:7 0 EOF",
                Line::Lease(Lease::Broken),
            ),
            (
                "1: POSIX  ADVISORY  WRITE 359 00:13:11691 9 3",
                Line::Unknown,
            ),
            (
                "1: NEW    ADVISORY  WRITE 359 00:13:11691 0 EOF",
                Line::Unknown,
            ),
            ("", Line::Unknown),
        ];
        for (text, line) in cases {
            assert_eq!(parse(text), line, "{text}");
        }
    }

    #[test]
    fn locks_of_this_process_are_found_and_taken_again() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let number = file.as_file().as_raw_fd();
        let record = RecordLock {
            write: true,
            start: 7,
            len: 3,
        };
        let process = this_process();
        let state = ProcessState {
            records: vec![(number, record)],
        };
        restore(&state, &process).expect("free");
        let seen = found(&process, file.as_fd());
        let lines: Vec<Line> = seen.info.all("lock").map(parse).collect();
        assert_eq!(lines, [Line::Process(record)]);
        let other = File::options()
            .read(true)
            .write(true)
            .open(file.path())
            .expect("open");
        assert!(lock::set_description(&other, Access::Write, record.range()).is_err());
        // Closing any descriptor of the file gives the lock up.
        drop(other);
        let other = File::options()
            .read(true)
            .write(true)
            .open(file.path())
            .expect("open");
        lock::set_description(&other, Access::Write, record.range()).expect("given up");
        let error = restore(&state, &process).expect_err("taken").to_string();
        let path = file.path().to_str().expect("UTF-8");
        assert!(
            error.contains("process 4242 (test)") && error.contains(path),
            "{error}"
        );
        drop(other);
        restore(&state, &process).expect("free again");
    }

    #[test]
    fn a_write_lease_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let process = this_process();
        let mut seen = found(&process, file.as_fd());
        assert_eq!(of_description(&seen).expect("none"), State::default());
        let line = "1: LEASE  ACTIVE    WRITE 5 fe:00:7 0 EOF";
        seen.info.fields.push(("lock".into(), line.into()));
        match of_description(&seen) {
            Err(Obstacle::Refused(refusal)) => {
                assert!(refusal.reason.contains("lease"), "{refusal}")
            }
            other => panic!("{other:?}"),
        }
    }
}
