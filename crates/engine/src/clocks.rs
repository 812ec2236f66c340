//! The clocks that a program sees, and how a restart keeps what is timed in step with them.
//!
//! Whatever has a time limit is read at one moment of a checkpoint and set at another one of a restart. In between the program's
//! clocks go on: up to the moment at which [`Clocks`] are read, and from the moment at which the time namespace is made. So each
//! remaining time is kept with the moment of its reading, on the supervisor's clock ([`monotonic`]), and a restart takes off
//! what has passed since ([`Passed`]). Where the program's clocks do not go on from the checkpoint nothing is taken off.
//!
//! Rests on: time_namespaces(7); timers have no namespace, only the clocks that are read and absolute times.

use crate::conformance::Claim;
use crate::model::Clocks;
use rustix::time::{ClockId, clock_gettime};
use stasis_sys::{Pid, procfs};
use std::time::Duration;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    Claim::kept(
        "CLOCK_MONOTONIC and CLOCK_BOOTTIME",
        "go on from the checkpoint where the host has time namespaces; otherwise they jump",
        &["time::clocks"],
    ),
    Claim::reset("CLOCK_REALTIME", "is the time of day", &["time::clocks"]),
];

/// `CLOCK_MONOTONIC` of the calling process.
#[must_use]
pub fn monotonic() -> Duration {
    duration(nanoseconds(ClockId::Monotonic))
}

fn nanoseconds(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn duration(nanoseconds: i128) -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}

/// The clocks as `process` sees them: the host's, shifted by the offsets of its time namespace.
#[must_use]
pub fn of(process: Pid) -> Clocks {
    let offsets =
        procfs::read_to_string(format!("/proc/{process}/timens_offsets")).unwrap_or_default();
    let own = nanoseconds(ClockId::Monotonic);
    Clocks {
        monotonic: duration(own + offset(&offsets, "monotonic")),
        boottime: duration(nanoseconds(ClockId::Boottime) + offset(&offsets, "boottime")),
        supervisors: duration(own),
    }
}

/// Nanoseconds that `/proc/PID/timens_offsets` has for a clock.
fn offset(offsets: &str, name: &str) -> i128 {
    let line = offsets.lines().find(|line| line.starts_with(name));
    let mut words = line
        .unwrap_or_default()
        .split_ascii_whitespace()
        .skip(1)
        .map(|word| word.parse::<i128>().unwrap_or(0));
    words.next().unwrap_or(0) * 1_000_000_000 + words.next().unwrap_or(0)
}

impl Clocks {
    /// What the program's `CLOCK_MONOTONIC` was when the supervisor's was `then`.
    #[must_use]
    pub fn at(&self, then: Duration) -> Duration {
        (self.monotonic + then).saturating_sub(self.supervisors)
    }
}

/// How much time has passed by a restarted program's clocks.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// The clocks of the checkpoint and those of the new processes; none where they do not go on.
    clocks: Option<(Clocks, Clocks)>,
}

impl Passed {
    /// For new processes, one of which is `process`, whose clocks go on from `saved`.
    #[must_use]
    pub fn on(saved: Clocks, process: Pid) -> Passed {
        Passed {
            clocks: Some((saved, of(process))),
        }
    }

    /// Where the program's clocks jump.
    pub const UNKNOWN: Passed = Passed { clocks: None };

    /// Since the supervisor that took the checkpoint saw `then` on its clock.
    #[must_use]
    pub fn since(&self, then: Duration) -> Duration {
        self.clocks.map_or(Duration::ZERO, |(saved, new)| {
            new.at(monotonic()).saturating_sub(saved.at(then))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read() {
        let text = "monotonic  -12     500000000\nboottime            3         7\n";
        assert_eq!(offset(text, "monotonic"), -11_500_000_000);
        assert_eq!(offset(text, "boottime"), 3_000_000_007);
        assert_eq!(offset("", "boottime"), 0);
    }

    #[test]
    fn both_sides_of_a_restart_count() {
        let seconds = Duration::from_secs;
        let saved = Clocks {
            monotonic: seconds(100),
            boottime: seconds(100),
            supervisors: seconds(1000),
        };
        // It was read 2 s before the clocks were. The restart's host has been up for as long as `monotonic` says, and the
        // program's clock has gone on for 3 s.
        let own = monotonic();
        let new = Clocks {
            monotonic: seconds(103),
            boottime: seconds(103),
            supervisors: own,
        };
        let passed = Passed {
            clocks: Some((saved, new)),
        };
        let since = passed.since(seconds(998));
        assert!(since >= seconds(5), "{since:?}");
        assert!(since < seconds(60), "{since:?}");
        assert_eq!(Passed::UNKNOWN.since(seconds(998)), Duration::ZERO);
    }
}
