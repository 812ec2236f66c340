//! When a thread went to sleep, which the kernel does not tell anybody directly.
//!
//! Rests on `/proc/PID/task/TID/sched` (missing without CONFIG_SCHED_DEBUG before Linux 6.15): `se.exec_start` is the time at
//! which the thread was last accounted for, which is when it went to sleep. It is in the time of its processor's run queue, which
//! stands still while the hypervisor or an interrupt has the processor (`update_rq_clock_task`, `kernel/sched/core.c`): between
//! two processors it differs by as much as one lost more than the other, seconds after some days. So it is compared with the
//! clock of the same processor, read afterwards. What that processor lost in between makes the sleep seem shorter, never longer.

use crate::tree::Stat;
use stasis_sys::{Pid, procfs, task};
use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc;
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

/// Clocks of processors' run queues, as far as they are known.
#[derive(Clone, Debug, Default)]
pub struct Clocks {
    /// What each was, and when that was at the latest.
    read: HashMap<usize, (Duration, Instant)>,
}

/// For how long threads are waited for that read a clock. A processor with much to do may leave one aside for seconds, and the
/// program's own threads tell afterwards ([`Clocks::learn`]).
const PATIENCE: Duration = Duration::from_millis(50);

impl Clocks {
    /// Reads the clocks of these processors: on each, a thread of ours.
    #[must_use]
    pub fn of(processors: impl Iterator<Item = usize>) -> Clocks {
        let mut clocks = Clocks::default();
        let wanted: BTreeSet<usize> = processors.collect();
        let (sender, answers) = mpsc::channel();
        let mut expected = 0;
        for processor in wanted {
            let sender = sender.clone();
            let reading = std::thread::Builder::new()
                .name("clock".into())
                .spawn(move || {
                    // Nobody listens any more when it has taken too long.
                    let _ = sender.send(look(processor).map(|read| (processor, read)));
                });
            expected += usize::from(reading.is_ok());
        }
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..expected {
            let left = deadline.saturating_duration_since(Instant::now());
            match answers.recv_timeout(left) {
                Ok(Some((processor, read))) => {
                    clocks.read.insert(processor, read);
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
        clocks
    }

    /// Learns from a thread that was just stopped on `processor`, when it was accounted for: its clock was that, a little ago.
    pub fn learn(&mut self, processor: usize, at: Duration) {
        let now = Instant::now();
        let known = self.read.entry(processor).or_insert((at, now));
        if known.0 < at {
            *known = (at, now);
        }
    }

    /// The supervisor's time at which `processor` was at `then`, or later; `then` must have been read before.
    #[must_use]
    pub fn at(&self, processor: usize, then: Duration) -> Option<Instant> {
        let (clock, here) = *self.read.get(&processor)?;
        here.checked_sub(clock.checked_sub(then)?)
    }
}

fn look(processor: usize) -> Option<(Duration, Instant)> {
    const MYSELF: Pid = Pid(0);
    let mut there = vec![0u8; processor / 64 * 8 + 8];
    there[processor / 8] = 1 << (processor % 8);
    task::set_affinity(MYSELF, &there).ok()?;
    // Whoever has just slept has just been accounted for.
    std::thread::sleep(Duration::from_nanos(1));
    let clock = account("/proc/thread-self")?.at?;
    Some((clock, Instant::now()))
}
