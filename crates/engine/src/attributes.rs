//! Attributes of a process that are numbers: umask, limits, flags of prctl(2), priorities of the out-of-memory killer.
//!
//! Saved: umask, resource limits, personality, no_new_privs, dumpable, parent-death signal, child subreaper,
//! transparent huge pages switched off, oom_score_adj, core dump filter, working directory.
//!
//! Not saved: counts of what was used so far (times(2), getrusage(2)), the cgroup, audit ids.
//!
//! Rests on: most are in `/proc/PID`, and prlimit(2) sets limits from outside; five need a remote prctl(2). Limits are set last, as
//! they bound what the restart itself may do.

use crate::EngineError;
use crate::batch::{Answers, Asked, Batch, Room};
use crate::calls::Calls;
use crate::conformance::Claim;
use crate::error::Context;
use crate::tree::status_field;
use rustix::process::{Resource, Rlimit, prlimit};
use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, procfs};
use std::fs;
use std::os::unix::ffi::OsStringExt;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[Claim::kept(
    "working directory, umask, limits, personality, no_new_privs, parent-death signal, subreaper",
    "",
    &["processes::attributes", "processes::subreaper"],
)];

/// Soft and hard limit; `None` is no limit.
pub type Limit = (Option<u64>, Option<u64>);

/// See the module.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// `umask(2)`.
    pub umask: u32,
    /// Soft and hard limit of each of [`RESOURCES`]; `None` is no limit.
    pub limits: Vec<Limit>,
    /// `personality(2)`.
    pub personality: u32,
    /// `PR_GET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// `PR_GET_DUMPABLE`.
    pub dumpable: i32,
    /// `PR_GET_PDEATHSIG` of the first thread.
    pub parent_death_signal: i32,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// `PR_GET_KEEPCAPS`.
    pub keep_capabilities: bool,
    /// `PR_GET_THP_DISABLE`.
    pub huge_pages_off: bool,
    /// `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i32,
    /// `/proc/PID/coredump_filter`.
    pub coredump_filter: u32,
    /// Working directory.
    #[serde(with = "serde_bytes")]
    pub directory: Vec<u8>,
}

/// The limits that are saved, in the order of [`State::limits`].
pub const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

fn number(pid: Pid, file: &str, radix: u32) -> Option<i64> {
    let text = procfs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    i64::from_str_radix(text.trim().trim_start_matches("0x"), radix).ok()
}

fn rustix_pid(pid: Pid) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(pid.0)
}

/// Captures what can be read from outside.
///
/// # Errors
/// When the process is gone.
pub fn capture(pid: Pid, status: &str) -> Result<State, EngineError> {
    let directory = fs::read_link(format!("/proc/{pid}/cwd"))
        .context(|| format!("reading the working directory of process {pid}"))?;
    Ok(State {
        umask: status_field(status, "Umask")
            .and_then(|mask| u32::from_str_radix(mask, 8).ok())
            .unwrap_or(0o22),
        limits: read_limits(pid)?,
        personality: number(pid, "personality", 16).unwrap_or(0) as u32,
        no_new_privs: status_field(status, "NoNewPrivs") == Some("1"),
        oom_score_adj: number(pid, "oom_score_adj", 10).unwrap_or(0) as i32,
        coredump_filter: number(pid, "coredump_filter", 16).unwrap_or(0x33) as u32,
        directory: directory.into_os_string().into_vec(),
        ..State::default()
    })
}

/// The questions that [`ask`] has put to a process.
pub struct Questions {
    dumpable: Asked,
    keep_capabilities: Asked,
    huge_pages_off: Asked,
    parent_death_signal: (Asked, Room),
    subreaper: (Asked, Room),
}

/// Asks a process for what only it can tell.
#[must_use]
pub fn ask(batch: &mut Batch) -> Questions {
    let plain = |batch: &mut Batch, name, option: i32| {
        batch.call(name, libc::SYS_prctl, &[(option as u64).into()])
    };
    let int = |batch: &mut Batch, name, option: i32| {
        let room = batch.room(size_of::<i32>() as u64);
        let arguments = [(option as u64).into(), room.into()];
        (batch.call(name, libc::SYS_prctl, &arguments), room)
    };
    Questions {
        dumpable: plain(batch, "prctl(PR_GET_DUMPABLE)", libc::PR_GET_DUMPABLE),
        keep_capabilities: plain(batch, "prctl(PR_GET_KEEPCAPS)", libc::PR_GET_KEEPCAPS),
        huge_pages_off: plain(batch, "prctl(PR_GET_THP_DISABLE)", libc::PR_GET_THP_DISABLE),
        parent_death_signal: int(batch, "prctl(PR_GET_PDEATHSIG)", libc::PR_GET_PDEATHSIG),
        subreaper: int(
            batch,
            "prctl(PR_GET_CHILD_SUBREAPER)",
            libc::PR_GET_CHILD_SUBREAPER,
        ),
    }
}

/// Completes what was captured from outside by the process's answers.
///
/// # Errors
/// When a remote call has failed.
pub fn complete(
    state: &mut State,
    questions: &Questions,
    answers: &Answers,
) -> Result<(), EngineError> {
    let int = |(asked, room)| answers.written(asked, room).map(i32::from_ne_bytes);
    state.dumpable = answers.result(questions.dumpable)? as i32;
    state.keep_capabilities = answers.result(questions.keep_capabilities)? != 0;
    let off = answers.result(questions.huge_pages_off);
    state.huge_pages_off = off.is_ok_and(|value| value != 0);
    state.parent_death_signal = int(questions.parent_death_signal)?;
    state.subreaper = int(questions.subreaper)? != 0;
    Ok(())
}

/// Restores, in the calling process, what must be there before its memory is replaced.
///
/// # Errors
/// When the working directory cannot be entered.
pub fn restore_here(state: &State, map: &crate::file_policy::PathMap) -> Result<(), EngineError> {
    use std::os::unix::ffi::OsStrExt;
    let directory = map.apply(std::path::Path::new(std::ffi::OsStr::from_bytes(
        &state.directory,
    )));
    std::env::set_current_dir(&directory)
        .context(|| format!("entering {}", directory.display()))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(state.umask));
    Ok(())
}

/// Restores by remote calls of the first thread, before others are made: threads inherit some of it.
///
/// # Errors
/// When a remote call fails.
pub fn restore_remotely(state: &State, calls: &mut Calls<'_>) -> Result<(), EngineError> {
    let mut set = |name, option: i32, value: u64| {
        calls.call(name, libc::SYS_prctl, &[option as u64, value, 0, 0, 0])
    };
    if state.keep_capabilities {
        set("prctl(PR_SET_KEEPCAPS)", libc::PR_SET_KEEPCAPS, 1)?;
    }
    if state.huge_pages_off {
        set("prctl(PR_SET_THP_DISABLE)", libc::PR_SET_THP_DISABLE, 1)?;
    }
    if state.no_new_privs {
        set("prctl(PR_SET_NO_NEW_PRIVS)", libc::PR_SET_NO_NEW_PRIVS, 1)?;
    }
    set(
        "prctl(PR_SET_CHILD_SUBREAPER)",
        libc::PR_SET_CHILD_SUBREAPER,
        u64::from(state.subreaper),
    )?;
    if state.parent_death_signal != 0 {
        set(
            "prctl(PR_SET_PDEATHSIG)",
            libc::PR_SET_PDEATHSIG,
            state.parent_death_signal as u64,
        )?;
    }
    calls.call(
        "personality",
        libc::SYS_personality,
        &[u64::from(state.personality)],
    )?;
    Ok(())
}

/// Makes the process dumpable or not, as it was: after this it may be untraceable for its own user.
///
/// # Errors
/// When the remote call fails.
pub fn restore_dumpable(state: &State, calls: &mut Calls<'_>) -> Result<(), EngineError> {
    // 2 (SUID_DUMP_ROOT) cannot be set by prctl(2).
    let value = u64::from(state.dumpable == 1);
    calls.call(
        "prctl(PR_SET_DUMPABLE)",
        libc::SYS_prctl,
        &[libc::PR_SET_DUMPABLE as u64, value],
    )?;
    Ok(())
}

/// Restores from outside, last. What this user may not set is told in `notes`.
pub fn restore_from_outside(state: &State, pid: Pid, virtual_pid: Pid, notes: &mut Vec<String>) {
    for (file, value) in [
        ("oom_score_adj", state.oom_score_adj.to_string()),
        ("coredump_filter", format!("{:#x}", state.coredump_filter)),
    ] {
        let path = format!("/proc/{pid}/{file}");
        if let Err(error) = fs::write(&path, value) {
            notes.push(format!(
                "{file} of process {virtual_pid} could not be given back: {error}"
            ));
        }
    }
    let Ok(now) = read_limits(pid) else { return };
    for ((resource, wanted), now) in RESOURCES.iter().zip(&state.limits).zip(&now) {
        if wanted == now {
            continue;
        }
        let limit = Rlimit {
            current: wanted.0,
            maximum: wanted.1,
        };
        if let Err(error) = prlimit(rustix_pid(pid), *resource, limit) {
            notes.push(format!(
                "the limit {resource:?} of process {virtual_pid} could not be given back: {error}"
            ));
        }
    }
}

/// One limit of a process as it is now.
///
/// # Errors
/// When it cannot be looked up.
pub(crate) fn limit(pid: Pid, resource: Resource) -> Result<Limit, EngineError> {
    let limits = read_limits(pid)?;
    let found = RESOURCES.iter().zip(limits);
    Ok(found
        .filter(|(known, _)| **known == resource)
        .map(|(_, limit)| limit)
        .next()
        .unwrap_or_default())
}

/// Has another limit saved than the one that was found.
pub(crate) fn set_limit(state: &mut State, resource: Resource, limit: Limit) {
    for (known, saved) in RESOURCES.iter().zip(&mut state.limits) {
        if *known == resource {
            *saved = limit;
        }
    }
}

/// `/proc/PID/limits` has them in a fixed order, named; it needs no permission over the process.
fn read_limits(pid: Pid) -> Result<Vec<Limit>, EngineError> {
    let path = format!("/proc/{pid}/limits");
    let text = procfs::read_to_string(&path).context(|| format!("reading {path}"))?;
    // The name takes 25 columns, the values two words.
    let rows = text.lines().skip(1).map(|line| {
        let mut words = line.get(25..).unwrap_or("").split_ascii_whitespace();
        let mut value = || words.next().and_then(|word| word.parse().ok());
        (value(), value())
    });
    let rows: Vec<_> = rows.collect();
    if rows.len() == RESOURCES.len() {
        Ok(rows)
    } else {
        Err(EngineError::Failed(format!(
            "{path} has {} limits instead of {}",
            rows.len(),
            RESOURCES.len()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_limits_are_read_in_order() {
        let limits = read_limits(Pid::current()).expect("own limits");
        for (resource, limit) in RESOURCES.iter().zip(limits) {
            let kernel = rustix::process::getrlimit(*resource);
            assert_eq!((kernel.current, kernel.maximum), limit, "{resource:?}");
        }
    }
}
