//! How the program gets its old ids back: which strategies there are, which of them this host allows, and which is taken. What
//! `stasis check` tells and what a restart does come from here.

use super::births::Births;
use super::burn::Counter;
use super::ids;
use super::plan::refusal;
use crate::Refusal;
use crate::model::Tree;
use rustix::mount::{MountPropagationFlags, mount_change};
use serde::Serialize;
use stasis_sys::process::{self, Fork, Waited};
use stasis_sys::{Pid, namespace, procfs};
use std::fs;

/// How the program gets its old ids back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// `clone3(set_tid)` where we are: needs CAP_CHECKPOINT_RESTORE and free ids.
    Privileged,
    /// In user, pid, time and mount namespaces of the job's own.
    Namespaces,
    /// Ids are spent until the kernel's counter stands right before the wanted one. Needs free ids.
    Burn,
}

impl Strategy {
    /// All, the first that is possible is taken.
    pub const ALL: [Strategy; 3] = [Strategy::Privileged, Strategy::Namespaces, Strategy::Burn];

    /// As options and output call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Strategy::Privileged => "privileged",
            Strategy::Namespaces => "namespaces",
            Strategy::Burn => "burn",
        }
    }

    /// Whether the ids have to be free on the host.
    #[must_use]
    pub fn needs_free_ids(self) -> bool {
        self != Strategy::Namespaces
    }
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
    /// An ipc namespace in them.
    pub ipc: bool,
}

/// What this host allows as far as ids depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Whether ids can be chosen without namespaces (CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN).
    pub chooses_ids: bool,
    /// Which namespaces could be made.
    pub namespaces: Namespaces,
    /// Whether the kernel shows which id it gave last, which pid burning needs.
    pub shows_last_id: bool,
}

/// Why a strategy is not possible, and what can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Half a sentence.
    pub reason: &'static str,
    /// What else to do.
    pub hint: &'static str,
}

impl Abilities {
    /// Looks, and tries what settings do not tell. The caller has one thread, as children are forked; with more, what needs a
    /// child counts as forbidden.
    #[must_use]
    pub fn look() -> Abilities {
        Abilities {
            chooses_ids: may_choose_ids(),
            namespaces: Namespaces::look(),
            shows_last_id: Counter::open().is_ok_and(|counter| counter.last().is_ok()),
        }
    }

    /// What stands in the way of `strategy`.
    #[must_use]
    pub fn obstacle(&self, strategy: Strategy) -> Option<Obstacle> {
        match strategy {
            Strategy::Privileged => (!self.chooses_ids).then_some(Obstacle {
                reason: "choosing process ids needs CAP_CHECKPOINT_RESTORE or root",
                hint: "use --strategy namespaces or burn",
            }),
            Strategy::Namespaces => {
                (!(self.namespaces.user && self.namespaces.pid)).then_some(Obstacle {
                    reason: "this host does not let you make user namespaces",
                    hint: "use --strategy burn",
                })
            }
            Strategy::Burn => (!self.shows_last_id).then_some(Obstacle {
                reason: "this kernel does not show its counter of process ids (CONFIG_CHECKPOINT_RESTORE)",
                hint: "restart where user namespaces are allowed, or as root",
            }),
        }
    }

    /// The strategy that is taken, where `ids_are_free`.
    #[must_use]
    pub fn choice(&self, ids_are_free: bool) -> Option<Strategy> {
        let possible = |strategy: &Strategy| self.obstacle(*strategy).is_none();
        let mut all = Strategy::ALL.into_iter().filter(possible);
        // Where none fits, the last one is there to tell that the ids are taken.
        let mut fitting = all.clone().filter(|s| ids_are_free || !s.needs_free_ids());
        fitting.next().or(all.next_back())
    }
}

/// Whether this process may choose ids where it is.
fn may_choose_ids() -> bool {
    const CAP_CHECKPOINT_RESTORE: u32 = 40;
    const CAP_SYS_ADMIN: u32 = 21;
    let status = procfs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = crate::tree::status_field(&status, "CapEff")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    effective
        .is_some_and(|set| set >> CAP_CHECKPOINT_RESTORE & 1 == 1 || set >> CAP_SYS_ADMIN & 1 == 1)
}

/// The strategy of a restart, and in `refusals` why it is not possible.
pub(super) fn choose(
    asked: Option<Strategy>,
    tree: &Tree,
    births: &Births,
    refusals: &mut Vec<Refusal>,
) -> Strategy {
    let mut wanted = births.wanted(tree);
    // These belong to whoever restarts.
    for outer in [tree.keeper, tree.outer_session, tree.outer_group] {
        wanted.remove(&outer);
    }
    let abilities = Abilities::look();
    let taken = ids::taken(&wanted);
    let strategy = asked
        .or_else(|| abilities.choice(taken.is_empty()))
        .unwrap_or(Strategy::Burn);
    let object = format!("strategy {}", strategy.name());
    if let Some(obstacle) = abilities.obstacle(strategy) {
        refusals.push(refusal(&object, obstacle.reason.to_owned(), obstacle.hint));
    }
    if strategy.needs_free_ids() && !taken.is_empty() {
        let reason = format!("other processes have them: {}", list(&taken));
        let hint =
            "end those (is the job still running?), or restart where user namespaces are allowed";
        refusals.push(refusal("the program's process ids", reason, hint));
    }
    if strategy == Strategy::Burn
        && let Ok(counter) = Counter::open()
        && let Ok(last) = counter.last()
    {
        let never: Vec<Pid> = wanted
            .into_iter()
            .filter(|id| counter.ring().never_comes(last, *id))
            .collect();
        if !never.is_empty() {
            let reason = format!(
                "the kernel does not give these ids any more: {}",
                list(&never)
            );
            let hint = "restart where user namespaces are allowed, or as root";
            refusals.push(refusal(&object, reason, hint));
        }
    }
    strategy
}

fn list(ids: &[Pid]) -> String {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}

impl Namespaces {
    const USER: i32 = 1;
    const PID: i32 = 2;
    const TIME: i32 = 4;
    const PROC: i32 = 8;
    const IPC: i32 = 16;

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
            ipc: found & Self::IPC != 0,
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
        if namespace::unshare(namespace::IPC).is_ok() {
            found |= Self::IPC;
        }
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
                    .and_then(|()| super::world::mount_proc());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_strategy_that_is_allowed_is_chosen() {
        let none = Abilities::default();
        assert_eq!(none.choice(true), None);
        let burn = Abilities {
            shows_last_id: true,
            ..none
        };
        assert_eq!(burn.choice(true), Some(Strategy::Burn));
        let (user, pid) = (true, true);
        let namespaces = Abilities {
            namespaces: Namespaces {
                user,
                pid,
                ..Namespaces::default()
            },
            ..burn
        };
        assert_eq!(namespaces.choice(true), Some(Strategy::Namespaces));
        let no_pid = Namespaces {
            pid: false,
            ..namespaces.namespaces
        };
        let no_pid = Abilities {
            namespaces: no_pid,
            ..burn
        };
        assert_eq!(no_pid.choice(true), Some(Strategy::Burn));
        let all = Abilities {
            chooses_ids: true,
            ..namespaces
        };
        assert_eq!(all.choice(true), Some(Strategy::Privileged));
        assert_eq!(all.choice(false), Some(Strategy::Namespaces));
        assert_eq!(burn.choice(false), Some(Strategy::Burn));
    }
}
