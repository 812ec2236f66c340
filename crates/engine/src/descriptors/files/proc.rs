//! Files and directories of `/proc`, whose paths hold process and thread ids.
//!
//! Saved: the path, with the ids that the program itself sees. The contents are the kernel's, and are made anew.
//! Refused: what belongs to a process that is not in the tree, or is gone.
//!
//! Facts it rests on: a process sees in `/proc` the numbers of the pid namespace that the mount belongs to
//! (`pid_namespaces(7)`); a mount is told by its device number; the last number of the line `NSpid` in `status` is the
//! one that the process itself sees (`proc_pid_status(5)`). `/proc/self` has become a number by the time it is open.

use crate::descriptors::{CaptureContext, Found, Obstacle};
use crate::file_policy::PathBytes;
use rustix::fs::{AtFlags, CWD, statat};
use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, procfs};
use std::os::unix::ffi::OsStrExt;

/// A path in `/proc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// It, with the program's own numbers.
    pub path: PathBytes,
    /// The process that it is about (the program's number); `None` for `/proc/meminfo` and the like.
    pub process: Option<Pid>,
}

/// Translates the path of a description on a file or directory of `/proc`.
///
/// # Errors
/// It is about a process outside the tree.
pub(in crate::descriptors) fn capture(
    found: &Found,
    ctx: &CaptureContext,
) -> Result<State, Obstacle> {
    let link = found.link.as_bytes();
    let ours =
        statat(CWD, "/proc", AtFlags::empty()).is_ok_and(|proc| proc.st_dev == found.stat.st_dev);
    let Some(path) = Path::parse(link) else {
        return Ok(State {
            path: PathBytes(link.to_vec()),
            process: None,
        });
    };
    let process = ctx.processes.iter().find(|process| {
        let number = if ours {
            process.pid
        } else {
            process.virtual_pid
        };
        number == path.pid
    });
    let Some(process) = process else {
        return Err(found.refuse(
            "it belongs to a process that is not part of the job",
            "let the program close it before the checkpoint",
        ));
    };
    let tid = match path.tid {
        Some(tid) if ours => Some(own_number(process.pid, tid).ok_or_else(|| {
            found.refuse(
                "it belongs to a thread that is gone",
                "let the program close it before the checkpoint",
            )
        })?),
        other => other,
    };
    Ok(State {
        path: Path {
            pid: process.virtual_pid,
            tid,
            rest: path.rest,
        }
        .text(),
        process: Some(process.virtual_pid),
    })
}

/// A thread's number as it sees itself.
fn own_number(pid: Pid, tid: Pid) -> Option<Pid> {
    let status = procfs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let numbers = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers
        .split_ascii_whitespace()
        .last()?
        .parse()
        .ok()
        .map(Pid)
}

/// `/proc/PID[/task/TID][/REST]`.
#[derive(Debug, PartialEq, Eq)]
struct Path<'a> {
    pid: Pid,
    tid: Option<Pid>,
    rest: &'a [u8],
}

impl Path<'_> {
    fn parse(text: &[u8]) -> Option<Path<'_>> {
        let (pid, rest) = number(text.strip_prefix(b"/proc/")?)?;
        match rest.strip_prefix(b"/task/").and_then(number) {
            Some((tid, rest)) => Some(Path {
                pid,
                tid: Some(tid),
                rest,
            }),
            None => Some(Path {
                pid,
                tid: None,
                rest,
            }),
        }
    }

    fn text(&self) -> PathBytes {
        let mut text = format!("/proc/{}", self.pid).into_bytes();
        if let Some(tid) = self.tid {
            text.extend(format!("/task/{tid}").into_bytes());
        }
        text.extend(self.rest);
        PathBytes(text)
    }
}

/// A whole component that is a number, and what follows it.
fn number(text: &[u8]) -> Option<(Pid, &[u8])> {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if !rest.is_empty() && rest[0] != b'/' {
        return None;
    }
    Some((Pid(std::str::from_utf8(digits).ok()?.parse().ok()?), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_where_they_are() {
        let path = Path::parse(b"/proc/12/task/13/stat").expect("a process's");
        assert_eq!(
            (path.pid, path.tid, path.rest),
            (Pid(12), Some(Pid(13)), &b"/stat"[..])
        );
        assert_eq!(path.text().0, b"/proc/12/task/13/stat");
        let path = Path::parse(b"/proc/12").expect("a process's");
        assert_eq!((path.pid, path.tid, path.rest), (Pid(12), None, &b""[..]));
        let path = Path::parse(b"/proc/12/task").expect("a process's");
        assert_eq!((path.tid, path.rest), (None, &b"/task"[..]));
        for other in [
            &b"/proc/meminfo"[..],
            b"/proc",
            b"/proc/",
            b"/proc/12x",
            b"/sys/1",
        ] {
            assert_eq!(Path::parse(other), None);
        }
    }
}
