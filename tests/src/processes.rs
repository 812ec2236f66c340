//! Looking at processes through /proc.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard};

/// What `/proc/PID/stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessState {
    /// The name, up to 15 bytes.
    pub name: String,
    /// The letter: `R`, `S`, `T`, `Z`, ...
    pub state: char,
    /// The parent.
    pub parent: i32,
    /// The process group.
    pub group: i32,
}

/// The state of `pid`; `None` when it is gone.
#[must_use]
pub fn process_state(pid: i32) -> Option<ProcessState> {
    state_of(&format!("/proc/{pid}"))
}

fn state_of(directory: &str) -> Option<ProcessState> {
    let stat = fs::read(format!("{directory}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (head, tail) = stat.rsplit_once(')')?;
    let mut fields = tail.split_ascii_whitespace();
    Some(ProcessState {
        name: head.split_once('(')?.1.into(),
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}

/// Whether `pid` is there and not a zombie. The first thread may be one while others live on.
#[must_use]
pub fn alive(pid: i32) -> bool {
    let dead = |state: &ProcessState| matches!(state.state, 'Z' | 'X');
    match process_state(pid) {
        None => false,
        Some(state) if !dead(&state) => true,
        Some(_) => threads(pid).any(|thread| {
            state_of(&format!("/proc/{pid}/task/{thread}")).is_some_and(|state| !dead(&state))
        }),
    }
}

fn threads(pid: i32) -> impl Iterator<Item = i32> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn all_pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The children of `pid`, zombies among them.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    all_pids()
        .into_iter()
        .filter(|&child| process_state(child).is_some_and(|state| state.parent == pid))
        .collect()
}

/// All descendants of `pid`, parents first; not `pid` itself.
#[must_use]
pub fn descendants(pid: i32) -> Vec<i32> {
    let states: Vec<_> = all_pids()
        .into_iter()
        .filter_map(|pid| Some((pid, process_state(pid)?.parent)))
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(
            states
                .iter()
                .filter(|(_, p)| *p == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.remove(0);
    found
}

/// Every living process that belongs to a test: it has `mark` in its environment or works below `dir`.
pub(crate) fn belonging(mark: &str, dir: &Path) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    all_pids()
        .into_iter()
        .filter(|&pid| pid != own && alive(pid) && belongs(pid, mark, dir))
        .collect()
}

/// Whether `pid` has `mark` in its environment or works below `dir`.
pub(crate) fn belongs(pid: i32, mark: &str, dir: &Path) -> bool {
    has_mark(pid, mark) || works_below(pid, dir)
}

/// The threads whose view of the process is looked at: a first thread that has exited has none, the others do.
fn witnesses(pid: i32) -> impl Iterator<Item = i32> {
    std::iter::once(pid).chain(threads(pid).filter(move |&thread| thread != pid).take(1))
}

fn has_mark(pid: i32, mark: &str) -> bool {
    witnesses(pid).any(|thread| {
        fs::read(format!("/proc/{pid}/task/{thread}/environ")).is_ok_and(|text| {
            text.split(|&byte| byte == 0)
                .any(|entry| entry == mark.as_bytes())
        })
    })
}

fn works_below(pid: i32, dir: &Path) -> bool {
    witnesses(pid).any(|thread| {
        fs::read_link(format!("/proc/{pid}/task/{thread}/cwd")).is_ok_and(|cwd| {
            cwd.starts_with(dir) || {
                // The kernel shows the directory of a process whose directory was removed with this ending.
                let cwd = cwd.as_os_str().as_bytes();
                cwd.strip_suffix(b" (deleted)")
                    .is_some_and(|cwd| Path::new(OsStr::from_bytes(cwd)).starts_with(dir))
            }
        })
    })
}

/// The children that are waited for where they were started.
static OWN_CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn own_children() -> MutexGuard<'static, BTreeSet<i32>> {
    match OWN_CHILDREN.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

/// Starts a child that the caller is going to wait for.
pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let mut own = own_children();
    let child = command.spawn()?;
    own.insert(child.id().cast_signed());
    Ok(child)
}

/// Asks whether a child of [`spawn`] has ended.
pub(crate) fn try_wait(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let mut own = own_children();
    let status = child.try_wait()?;
    if status.is_some() {
        own.remove(&child.id().cast_signed());
    }
    Ok(status)
}

/// Takes the status of all dead children that this process got as orphans. What else it starts, such as compilers, is in
/// its own process group.
pub(crate) fn reap_orphans() {
    let this = std::process::id().cast_signed();
    let group = process_state(this).map_or(0, |state| state.group);
    let own = own_children();
    for pid in all_pids() {
        let adopted = !own.contains(&pid)
            && process_state(pid).is_some_and(|state| {
                state.parent == this && state.state == 'Z' && state.group != group
            });
        if adopted {
            let options = rustix::process::WaitOptions::NOHANG;
            let _ = rustix::process::waitpid(rustix::process::Pid::from_raw(pid), options);
        }
    }
}

/// Makes this process the one that gets the orphans of its descendants: where the machine's first process is slow to
/// take their status, or never does, their numbers would stay taken.
pub(crate) fn adopt_orphans() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    });
}

/// Sends `signal` to `pid`; a process that is gone is no fault.
pub(crate) fn send(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Kills `pid` if `wanted` still holds of it once it cannot change hands any more: numbers are reused, and quickly so
/// where a test burns them.
pub(crate) fn kill_if(pid: i32, wanted: impl Fn(i32) -> bool) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(number) = Pid::from_raw(pid) else {
        return;
    };
    if let Ok(held) = pidfd_open(number, PidfdFlags::empty())
        && wanted(pid)
    {
        let _ = pidfd_send_signal(&held, Signal::KILL);
    }
}
