//! Room in the address space of a program that is at its limit (RLIMIT_AS): remote calls need a page or two for a moment.
//!
//! The soft limit is raised for as long as the program stands still, and put back before it goes on; what is saved is the
//! program's own. Where the hard limit is in the way, the checkpoint is refused.
//!
//! Rests on: prlimit(2) sets limits of other processes of the same user, the soft one up to the hard one.

use crate::attributes;
use crate::capture;
use crate::conformance::Claim;
use crate::freeze::Frozen;
use crate::model::Tree;
use crate::{EngineError, Refusal};
use rustix::process::{Resource, Rlimit, prlimit};
use stasis_sys::{Pid, procfs};

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    Claim::kept(
        "address space at its soft limit (RLIMIT_AS)",
        "the limit is raised for as long as the program stands still",
        &["check::an_address_space_at_its_soft_limit"],
    ),
    Claim::refused(
        "address space at its hard limit",
        "",
        &["check::an_address_space_at_its_hard_limit"],
    ),
];

/// What scratch areas of one process take at most, and more.
const NEEDED: u64 = 1 << 20;

/// Limits that are raised while it lives.
pub(crate) struct AddressRoom(Vec<Raised>);

struct Raised {
    /// Its place among the processes.
    process: usize,
    pid: rustix::process::Pid,
    own: Rlimit,
}

impl AddressRoom {
    /// Makes room where there is none.
    ///
    /// # Errors
    /// [`EngineError::Refused`] where the hard limit stands in the way.
    pub(crate) fn make(frozen: &Frozen) -> Result<AddressRoom, EngineError> {
        let mut room = AddressRoom(Vec::new());
        let mut refusals = Vec::new();
        for (n, process) in frozen.processes.iter().enumerate() {
            let pid = capture::living(process);
            let (Some(soft), hard) = attributes::limit(pid, Resource::As)? else {
                continue;
            };
            let needed = size(pid).saturating_add(NEEDED);
            if needed <= soft {
                continue;
            }
            let own = Rlimit {
                current: Some(soft),
                maximum: hard,
            };
            let raised = Rlimit {
                current: Some(needed),
                ..own
            };
            let id = rustix::process::Pid::from_raw(pid.0);
            let allowed = hard.is_none_or(|hard| needed <= hard);
            match id.filter(|id| allowed && prlimit(Some(*id), Resource::As, raised).is_ok()) {
                Some(pid) => room.0.push(Raised {
                    process: n,
                    pid,
                    own,
                }),
                None => refusals.push(refusal(pid, process.virtual_pid, soft)),
            }
        }
        if refusals.is_empty() {
            Ok(room)
        } else {
            Err(EngineError::Refused(refusals))
        }
    }

    /// Has the program's own limits saved.
    pub(crate) fn amend(&self, tree: &mut Tree) {
        for Raised { process, own, .. } in &self.0 {
            if let Some(process) = tree.processes.get_mut(*process) {
                let limits = &mut process.attributes;
                attributes::set_limit(limits, Resource::As, (own.current, own.maximum));
            }
        }
    }
}

impl Drop for AddressRoom {
    fn drop(&mut self) {
        for Raised { pid, own, .. } in &self.0 {
            // A process that is gone needs none.
            let _ = prlimit(Some(*pid), Resource::As, *own);
        }
    }
}

/// Why a process that runs would be refused, seen without touching its limit.
pub(crate) fn obstacle(pid: Pid, virtual_pid: Pid) -> Option<Refusal> {
    let (Some(soft), Some(hard)) = attributes::limit(pid, Resource::As).ok()? else {
        return None;
    };
    let needed = size(pid).saturating_add(NEEDED);
    (needed > soft && needed > hard).then(|| refusal(pid, virtual_pid, soft))
}

fn refusal(pid: Pid, virtual_pid: Pid, limit: u64) -> Refusal {
    Refusal {
        pid: Some(virtual_pid),
        process: name(pid),
        object: "its address space".into(),
        reason: format!(
            "it is at its limit of {limit} bytes, and a checkpoint needs {NEEDED} more for a moment"
        ),
        hint: "give it a higher hard limit (ulimit -H -v)".into(),
    }
}

/// The size of a process's address space in bytes, as the kernel holds it against the limit.
fn size(pid: Pid) -> u64 {
    let pages = procfs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = pages.split_ascii_whitespace().next();
    let pages: u64 = pages.and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages.saturating_mul(rustix::param::page_size() as u64)
}

fn name(pid: Pid) -> String {
    let name = procfs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}
