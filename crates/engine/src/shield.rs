//! Keeping signals away from a program that runs.
//!
//! A batch system that is about to kill a job sends SIGTERM to every process of it, the program's among them, which would
//! end before it could be saved. Whoever wants to use that warning raises a shield: all threads are traced between
//! checkpoints too, run freely, and stop only where a signal is about to be delivered or a process or thread is made or ends.
//!
//! Facts it rests on: a signal with the default action does not end a process whose thread that was picked for it is traced, but
//! is first shown to the tracer (`complete_signal()` and `get_signal()`, `kernel/signal.c`), which may drop it
//! (`ptrace(2)`). A tracee belongs to the thread that has seized it and is let go when that thread ends (`exit_ptrace()`,
//! `kernel/ptrace.c`). `PTRACE_SEIZE` does not stop anybody, so that no call is interrupted.

use crate::{interruptions, tree};
use stasis_sys::Pid;
use stasis_tracee::{Running, TraceError, Withheld, pump};

/// A raised shield. All calls come from the thread that has raised it, and it falls when that thread ends.
#[derive(Debug)]
pub struct Shield {
    withheld: Withheld,
    strangers: Vec<Pid>,
}

impl Shield {
    /// Shields all descendants of `keeper`, and what they give birth to, from the signals of `withheld`; and the processes
    /// `strangers` from those signals whoever sends them. What cannot be traced stays unshielded; the strangers among that
    /// are returned with the kernel's reason.
    #[must_use]
    pub fn raise(
        keeper: Pid,
        withheld: Withheld,
        strangers: &[Pid],
    ) -> (Shield, Vec<(Pid, TraceError)>) {
        let mut shield = Shield {
            withheld,
            strangers: Vec::new(),
        };
        let mut refused = Vec::new();
        for &pid in strangers {
            match Running::seize_alone(pid) {
                Ok(_) => shield.strangers.push(pid),
                Err(error) => refused.push((pid, error)),
            }
        }
        // Until a round finds nothing new: what a seized thread makes is traced from its birth.
        while seize_all(keeper) {}
        (shield, refused)
    }

    /// Lets go on what has stopped, and tells the signals that were kept away since the last time.
    pub fn pump(&self) -> Vec<(Pid, i32)> {
        pump(&self.withheld, &self.strangers, &mut |stopped| {
            // A thread that has died needs nothing.
            let _ = interruptions::restart(stopped);
        })
    }
}

fn seize_all(keeper: Pid) -> bool {
    let mut fresh = false;
    for pid in tree::descendants(keeper) {
        for tid in tree::threads(pid) {
            fresh |= Running::seize(tid).is_ok();
        }
    }
    fresh
}
