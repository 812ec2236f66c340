//! When a thread went to sleep, which the kernel does not tell anybody directly.
//!
//! Rests on `/proc/PID/task/TID/sched` (missing without CONFIG_SCHED_DEBUG before Linux 6.15): `se.exec_start` is the time at
//! which the thread was last accounted for, which is when it went to sleep. It is in the time of its processor's run queue, which
//! stands still while the hypervisor or an interrupt has the processor (`update_rq_clock_task`, `kernel/sched/core.c`): between
//! two processors it differs by as much as one lost more than the other, seconds after some days. So it is compared with the
//! clock of the same processor, read afterwards. What that processor lost in between makes the sleep seem shorter, never longer.

use crate::tree::Stat;
use stasis_sys::{Pid, procfs, task};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What the scheduler says of a thread.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// When it was last accounted for, in the time of its processor; `None` where that is not known.
    pub at: Option<Duration>,
    /// How often it has gone to sleep.
    pub sleeps: u64,
}

/// Reads a thread's account. `path` is its directory in `/proc`.
#[must_use]
pub fn account(path: &str) -> Option<Account> {
    let text = procfs::read_to_string(format!("{path}/sched")).ok()?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(':').next().map(str::trim)
    };
    let milliseconds: f64 = value("se.exec_start")?.parse().ok()?;
    // Some kernels set it to 0 when the thread moves to another processor.
    let at = (milliseconds > 0.0)
        .then(|| Duration::try_from_secs_f64(milliseconds / 1e3).ok())
        .flatten();
    Some(Account {
        at,
        sleeps: value("nr_voluntary_switches")?.parse().ok()?,
    })
}

/// The processor that a thread was last on.
#[must_use]
pub fn processor(pid: Pid, tid: Pid) -> Option<usize> {
    let stat = Stat::read(format_args!("{pid}/task/{tid}"))?;
    usize::try_from(stat.field(39)).ok()
}

/// The clocks of the processors' run queues, each read once, when it is first asked for. The calling thread goes there for
/// that.
#[derive(Debug)]
pub struct Clocks {
    home: Option<Vec<u8>>,
    read: HashMap<usize, Option<(Duration, Instant)>>,
}

impl Clocks {
    /// No clock is read yet.
    #[must_use]
    pub fn new() -> Clocks {
        Clocks {
            home: None,
            read: HashMap::new(),
        }
    }

    /// The supervisor's time at which `processor` was at `then`, or later; `then` must have been read before.
    #[must_use]
    pub fn at(&mut self, processor: usize, then: Duration) -> Option<Instant> {
        if !self.read.contains_key(&processor) {
            let clock = self.look(processor);
            self.read.insert(processor, clock);
        }
        let (clock, here) = (*self.read.get(&processor)?)?;
        here.checked_sub(clock.checked_sub(then)?)
    }

    fn look(&mut self, processor: usize) -> Option<(Duration, Instant)> {
        const MYSELF: Pid = Pid(0);
        if self.home.is_none() {
            self.home = Some(task::affinity(MYSELF).ok()?);
        }
        let mut there = vec![0u8; processor / 64 * 8 + 8];
        there[processor / 8] = 1 << (processor % 8);
        task::set_affinity(MYSELF, &there).ok()?;
        // Whoever has just slept has just been accounted for.
        std::thread::sleep(Duration::from_nanos(1));
        let clock = account("/proc/thread-self")?.at?;
        Some((clock, Instant::now()))
    }
}

impl Default for Clocks {
    fn default() -> Clocks {
        Clocks::new()
    }
}

impl Drop for Clocks {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            // The processors that it came from: they exist.
            let _ = task::set_affinity(Pid(0), home);
        }
    }
}
