//! What this host allows: looked up and, where a setting does not tell, tried.
//!
//! Hosts differ in what an ordinary user may do: trace (Yama, seccomp filters of containers), make user namespaces
//! (sysctls, AppArmor, `max_user_namespaces`), mount a fresh `/proc` (not where it is partly masked). A setting that
//! allows something may be overruled by another, so namespaces and tracing are really tried, in forked children.

use crate::restart::{Strategy, ids};
use rustix::mount::{MountPropagationFlags, mount_change};
use stasis_sys::pagemap::{PAGE, Pagemap, Pages};
use stasis_sys::process::{self, Fork, SIGKILL, Waited};
use stasis_sys::{Pid, namespace, signal, timer, userfaultfd};
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
    /// Which namespaces could be made.
    pub namespaces: Namespaces,
    /// Whether ids can be chosen without namespaces (CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN).
    pub may_choose_ids: bool,
    /// `kernel.pid_max`.
    pub pid_max: Option<u32>,
    /// Whether the kernel shows which id it gave last, which pid burning needs.
    pub shows_last_id: bool,
    /// Whether `PAGEMAP_SCAN` works (Linux 6.7 and newer).
    pub pagemap_scan: bool,
    /// Whether `userfaultfd(2)` works.
    pub userfaultfd: bool,
    /// Whether the kernel shows POSIX timers (`/proc/PID/timers`, CONFIG_CHECKPOINT_RESTORE).
    pub shows_timers: bool,
    /// Whether the kernel lists children (`/proc/PID/task/TID/children`, CONFIG_PROC_CHILDREN).
    pub shows_children: bool,
    /// Whether ids of POSIX timers can be chosen (Linux 6.16 and newer).
    pub chooses_timer_ids: bool,
}

/// Which namespaces an ordinary user can make here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// User and mount namespaces, with the own id mapped.
    pub user: bool,
    /// A pid namespace in them.
    pub pid: bool,
    /// A time namespace in them.
    pub time: bool,
    /// A fresh `/proc` can be mounted in them.
    pub proc: bool,
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
            namespaces: Namespaces::look(),
            may_choose_ids: ids::may_choose_ids(),
            pid_max: number("/proc/sys/kernel/pid_max"),
            shows_last_id: ids::last_id().is_ok(),
            pagemap_scan: pagemap_scan(),
            userfaultfd: userfaultfd::open().is_ok(),
            shows_timers: fs::metadata("/proc/self/timers").is_ok(),
            shows_children: fs::metadata("/proc/thread-self/children").is_ok(),
            chooses_timer_ids: timer::ids_can_be_chosen(),
        }
    }

    /// The strategy that a restart would choose here, when the wanted ids are free.
    #[must_use]
    pub fn strategy(&self) -> Option<Strategy> {
        if self.may_choose_ids {
            Some(Strategy::Privileged)
        } else if self.namespaces.user && self.namespaces.pid {
            Some(Strategy::Namespaces)
        } else if self.shows_last_id {
            Some(Strategy::Burn)
        } else {
            None
        }
    }
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

impl Namespaces {
    const USER: i32 = 1;
    const PID: i32 = 2;
    const TIME: i32 = 4;
    const PROC: i32 = 8;

    /// Tries, in a child.
    #[must_use]
    pub fn look() -> Namespaces {
        let found = match process::fork() {
            Ok(Fork::Child) => process::exit_now(Self::attempt()),
            Ok(Fork::Parent(child)) => match process::wait(child, 0) {
                Ok(Waited::Child(_, status)) => status.exit_code().unwrap_or(0),
                _ => 0,
            },
            Err(_) => 0,
        };
        Namespaces {
            user: found & Self::USER != 0,
            pid: found & Self::PID != 0,
            time: found & Self::TIME != 0,
            proc: found & Self::PROC != 0,
        }
    }

    fn attempt() -> i32 {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let mapped = || -> std::io::Result<()> {
            namespace::unshare(namespace::USER | namespace::MOUNT)?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
            fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
        };
        if mapped().is_err() {
            return 0;
        }
        let mut found = Self::USER;
        if namespace::unshare(namespace::PID).is_err() {
            return found;
        }
        found |= Self::PID;
        if namespace::unshare(namespace::TIME).is_ok() {
            found |= Self::TIME;
        }
        match process::fork() {
            Ok(Fork::Child) => {
                let private = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
                let mounted = mount_change("/", private)
                    .map_err(Into::into)
                    .and_then(|()| crate::restart::world::mount_proc());
                process::exit_now(i32::from(mounted.is_err()))
            }
            Ok(Fork::Parent(child)) => {
                if matches!(process::wait(child, 0), Ok(Waited::Child(_, status)) if status.exit_code() == Some(0))
                {
                    found |= Self::PROC;
                }
            }
            Err(_) => {}
        }
        found
    }
}

fn pagemap_scan() -> bool {
    let place = 0u8;
    let here = std::ptr::from_ref(&place).addr() as u64 / PAGE * PAGE;
    Pagemap::open(Pid::current()).is_ok_and(|mut map| {
        map.look(here..here + PAGE, &mut Pages::default()).is_ok() && map.scans()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            kernel: "6.1".into(),
            tracing: Ok(()),
            ptrace_scope: None,
            namespaces: Namespaces::default(),
            may_choose_ids: false,
            pid_max: None,
            shows_last_id: false,
            pagemap_scan: false,
            userfaultfd: false,
            shows_timers: false,
            shows_children: false,
            chooses_timer_ids: false,
        }
    }

    #[test]
    fn the_first_strategy_that_is_allowed_is_chosen() {
        assert_eq!(host().strategy(), None);
        let burn = Host {
            shows_last_id: true,
            ..host()
        };
        assert_eq!(burn.strategy(), Some(Strategy::Burn));
        let (user, pid) = (true, true);
        let all = Namespaces {
            user,
            pid,
            ..Namespaces::default()
        };
        let namespaces = Host {
            namespaces: all,
            ..burn.clone()
        };
        assert_eq!(namespaces.strategy(), Some(Strategy::Namespaces));
        let no_pid = Namespaces { pid: false, ..all };
        assert_eq!(
            Host {
                namespaces: no_pid,
                ..burn
            }
            .strategy(),
            Some(Strategy::Burn)
        );
        assert_eq!(
            Host {
                may_choose_ids: true,
                ..namespaces
            }
            .strategy(),
            Some(Strategy::Privileged)
        );
    }
}
