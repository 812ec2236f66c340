//! What this host allows: looked up and, where a setting does not tell, tried.
//!
//! Hosts differ in what an ordinary user may do: trace (Yama, seccomp filters of containers), make user namespaces
//! (sysctls, AppArmor, `max_user_namespaces`), mount a fresh `/proc` (not where it is partly masked). A setting that
//! allows something may be overruled by another, so namespaces and tracing are really tried, in forked children.

use crate::restart::Abilities;
use stasis_sys::pagemap::{PAGE, Pagemap, Pages};
use stasis_sys::process::{self, Fork, SIGKILL};
use stasis_sys::{Pid, signal, timer, userfaultfd};
use stasis_tracee::{Born, Running};
use std::fs;
use std::time::Duration;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The kernel's release, as `uname -r` shows it.
    pub kernel: String,
    /// Whether a child could be traced; the kernel's words where it could not.
    pub tracing: Result<(), String>,
    /// `kernel.yama.ptrace_scope`, where the kernel has it.
    pub ptrace_scope: Option<u32>,
    /// What the ways to get ids back depend on.
    pub ids: Abilities,
    /// `kernel.pid_max`.
    pub pid_max: Option<u32>,
    /// Whether `PAGEMAP_SCAN` works (Linux 6.7 and newer).
    pub pagemap_scan: bool,
    /// Whether writes to memory can be tracked ([`crate::tracking`]).
    pub tracks_writes: bool,
    /// Whether the kernel shows POSIX timers (`/proc/PID/timers`, CONFIG_CHECKPOINT_RESTORE).
    pub shows_timers: bool,
    /// Whether the kernel lists children (`/proc/PID/task/TID/children`, CONFIG_PROC_CHILDREN).
    pub shows_children: bool,
    /// Whether ids of POSIX timers can be chosen (Linux 6.16 and newer).
    pub chooses_timer_ids: bool,
}

impl Host {
    /// Looks around. The caller has one thread, as children are forked; with more, what needs a child counts as
    /// forbidden.
    #[must_use]
    pub fn look() -> Host {
        Host {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            tracing: tracing(),
            ptrace_scope: number("/proc/sys/kernel/yama/ptrace_scope"),
            ids: Abilities::look(),
            pid_max: number("/proc/sys/kernel/pid_max"),
            pagemap_scan: pagemap_scan(),
            tracks_writes: userfaultfd::tracks().unwrap_or(false),
            shows_timers: fs::metadata("/proc/self/timers").is_ok(),
            shows_children: fs::metadata("/proc/thread-self/children").is_ok(),
            chooses_timer_ids: timer::ids_can_be_chosen(),
        }
    }
}

/// Whether a process is kept from tracing those above it, whatever their user (`kernel.yama.ptrace_scope`).
#[must_use]
pub fn may_not_trace_ancestors() -> bool {
    number("/proc/sys/kernel/yama/ptrace_scope").is_some_and(|scope| scope > 0)
}

fn number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn tracing() -> Result<(), String> {
    match process::fork() {
        Ok(Fork::Child) => loop {
            std::thread::sleep(Duration::from_secs(60));
        },
        Ok(Fork::Parent(child)) => {
            let tried = Running::seize(child).and_then(|running| {
                running.interrupt()?;
                running
                    .wait(Duration::from_secs(2), &mut Born::default())?
                    .detach()
            });
            let _ = signal::send(child, SIGKILL);
            let _ = process::wait(child, 0);
            tried.map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn pagemap_scan() -> bool {
    let place = 0u8;
    let here = std::ptr::from_ref(&place).addr() as u64 / PAGE * PAGE;
    Pagemap::open(Pid::current()).is_ok_and(|mut map| {
        map.look(here..here + PAGE, &mut Pages::default()).is_ok() && map.scans()
    })
}
