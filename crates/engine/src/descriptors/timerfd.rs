//! Timers that are read (`timerfd_create(2)`).
//!
//! Saved: the clock, the time left, the interval, expirations not read yet, how it was set, status flags. An absolute
//! timer on `CLOCK_REALTIME` expires at the time of day that it was set to, at once where that has passed; any
//! other goes on with its clock, where the restarted program's clocks go on from the checkpoint, so that what the restart
//! takes counts; elsewhere it has after the restart what it had left. Not saved: a cancellation (`TFD_TIMER_CANCEL_ON_SET`) that was not read.
//!
//! Facts: fdinfo tells all of it, but counts the expirations of a periodic timer only when it is asked for its time: a
//! program sees no difference. `TFD_IOC_SET_TICKS` sets the unread expirations. The alarm clocks need CAP_WAKE_ALARM:
//! without it the timer gets the clock that does not wake a sleeping machine, with a note.

use super::fdinfo::FdInfo;
use super::{Found, Obstacle, Opening, set_status};
use crate::EngineError;
use crate::clocks::monotonic;
use crate::conformance::Claim;
use crate::error::Context;
use crate::model::Clocks;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_gettime, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

pub(super) const TIMER: Claim = Claim::kept(
    "timer that is read (timerfd)",
    "",
    &[
        "engine-descriptors::kinds::timerfds_keep_time_interval_and_unread_expirations",
        "time::many_timers",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[TIMER];

/// A saved timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its clock (`CLOCK_*`).
    pub clock: u32,
    /// When it expires next; `None` when it is not set.
    pub next: Option<Next>,
    /// Its interval, zero for a timer that expires once.
    pub interval: Duration,
    /// Expirations not read yet.
    pub ticks: u64,
    /// Reading it fails when the time of day is changed (`TFD_TIMER_CANCEL_ON_SET`).
    pub cancel_on_set: bool,
    /// Access mode and status flags.
    pub flags: u32,
}

/// When a timer expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// After so much more time.
    In {
        /// How much.
        left: Duration,
        /// When it was that, on the supervisor's clock ([`crate::clocks::monotonic`]).
        read_at: Duration,
    },
    /// At that time of day, since 1970.
    At(Duration),
}

const REALTIME: u32 = 0;
const REALTIME_ALARM: u32 = 8;
const ABSOLUTE: u32 = 1;
const CANCEL_ON_SET: u32 = 2;

/// Captures one.
pub(super) fn capture(found: &Found) -> Result<State, Obstacle> {
    let duplicate = found.duplicate()?;
    let what = || format!("looking at {found}");
    timerfd_gettime(&duplicate).context(what)?;
    let info = FdInfo::read(found.process.pid, found.fd).context(what)?;
    parse(&info).ok_or_else(|| found.refuse("the kernel does not tell its setting", ""))
}

fn parse(info: &FdInfo) -> Option<State> {
    let clock = info.field("clockid")?.parse().ok()?;
    let set_flags = u32::from_str_radix(info.field("settime flags")?, 8).ok()?;
    let left = time(info.field("it_value")?)?;
    let of_day = set_flags & ABSOLUTE != 0 && [REALTIME, REALTIME_ALARM].contains(&clock);
    let interval = time(info.field("it_interval")?)?;
    let ticks = info.field("ticks")?.parse().ok()?;
    // It may expire between the two looks; the kernel sets it again when it is asked the next time. One that is not set at all
    // may have an interval, but has no expirations.
    let left = if left.is_zero() && ticks > 0 {
        interval
    } else {
        left
    };
    let next = if left.is_zero() {
        None
    } else if of_day {
        let now = clock_gettime(ClockId::Realtime);
        let now = Duration::new(now.tv_sec.try_into().ok()?, now.tv_nsec.try_into().ok()?);
        Some(Next::At(now + left))
    } else {
        // Read a little after the timer was, so that it can only be late.
        Some(Next::In {
            left,
            read_at: monotonic(),
        })
    };
    Some(State {
        clock,
        next,
        interval,
        ticks,
        cancel_on_set: matches!(next, Some(Next::At(_))) && set_flags & CANCEL_ON_SET != 0,
        flags: info.flags,
    })
}

/// `(seconds, nanoseconds)` as fdinfo writes it.
fn time(text: &str) -> Option<Duration> {
    let (seconds, nanoseconds) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(Duration::new(
        seconds.trim().parse().ok()?,
        nanoseconds.trim().parse().ok()?,
    ))
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// The clock, and the one to take where that is not allowed.
fn clock(number: u32) -> Option<(TimerfdClockId, Option<TimerfdClockId>)> {
    Some(match number {
        0 => (TimerfdClockId::Realtime, None),
        1 => (TimerfdClockId::Monotonic, None),
        7 => (TimerfdClockId::Boottime, None),
        8 => (
            TimerfdClockId::RealtimeAlarm,
            Some(TimerfdClockId::Realtime),
        ),
        9 => (
            TimerfdClockId::BoottimeAlarm,
            Some(TimerfdClockId::Boottime),
        ),
        _ => return None,
    })
}

/// What to set a timer to that had so much left at `read_at`, where this process's clocks go on from those of the checkpoint: the
/// time, and whether it is absolute.
fn due(clock: u32, left: Duration, read_at: Duration, saved: &Clocks) -> (Duration, u32) {
    const MONOTONIC: u32 = 1;
    const BOOTTIME: [u32; 2] = [7, 9];
    let then = saved.at(read_at);
    match clock {
        MONOTONIC => (then + left, ABSOLUTE),
        clock if BOOTTIME.contains(&clock) => {
            let since_boot = (saved.boottime + then).saturating_sub(saved.monotonic);
            (since_boot + left, ABSOLUTE)
        }
        // A time of day that was not meant as one.
        _ => {
            let passed = monotonic().saturating_sub(then);
            (left.saturating_sub(passed).max(Duration::from_nanos(1)), 0)
        }
    }
}

/// Makes it again, and sets it.
pub(super) fn restore(state: &State, opening: &mut Opening) -> Result<OwnedFd, EngineError> {
    let unknown = || EngineError::Failed(format!("a timer on the unknown clock {}", state.clock));
    let (wanted, instead) = clock(state.clock).ok_or_else(unknown)?;
    let what = || "making a timerfd".to_owned();
    let create = |clock| timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
    let fd = match (create(wanted), instead) {
        (Err(rustix::io::Errno::PERM), Some(other)) => {
            opening.notes.push(
                "a timer that could wake the machine from sleep no longer can: that needs CAP_WAKE_ALARM".into(),
            );
            create(other).context(what)?
        }
        (made, _) => made.context(what)?,
    };
    if let Some(next) = state.next {
        let (value, absolute) = match next {
            Next::In { left, read_at } => (opening.context.clocks)
                .map_or((left, 0), |saved| due(state.clock, left, read_at, &saved)),
            Next::At(time) if state.cancel_on_set => (time, ABSOLUTE | CANCEL_ON_SET),
            Next::At(time) => (time, ABSOLUTE),
        };
        let setting = Itimerspec {
            it_value: timespec(value),
            it_interval: timespec(state.interval),
        };
        timerfd_settime(&fd, TimerfdTimerFlags::from_bits_retain(absolute), &setting)
            .context(|| "setting a timerfd".into())?;
    }
    if state.ticks > 0 {
        stasis_sys::timerfd::set_ticks(fd.as_fd(), state.ticks)
            .context(|| "setting the expirations of a timerfd that were not read yet".into())?;
    }
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(clock: u32, flags: &str) -> FdInfo {
        FdInfo::parse(&format!(
            "flags: 04002\nclockid: {clock}\nticks: 3\nsettime flags: {flags}\nit_value: (1, 5)\nit_interval: (2, 0)\n"
        ))
    }

    #[test]
    fn what_the_kernel_writes_is_understood() {
        let state = parse(&info(1, "01")).expect("complete");
        assert!(matches!(state.next, Some(Next::In { left, .. }) if left == Duration::new(1, 5)));
        assert_eq!((state.interval, state.ticks), (Duration::from_secs(2), 3));
    }

    #[test]
    fn a_timer_that_expires_between_the_two_looks_goes_on() {
        let text = |ticks| {
            FdInfo::parse(&format!(
                "flags: 02\nclockid: 1\nticks: {ticks}\nsettime flags: 00\nit_value: (0, 0)\nit_interval: (2, 0)\n"
            ))
        };
        let expired = parse(&text(1)).expect("complete");
        assert!(
            matches!(expired.next, Some(Next::In { left, .. }) if left == Duration::from_secs(2))
        );
        assert_eq!(parse(&text(0)).expect("complete").next, None);
    }

    #[test]
    fn an_absolute_time_of_day_stays_one() {
        let state = parse(&info(0, "03")).expect("complete");
        assert!(
            matches!(state.next, Some(Next::At(time)) if time > Duration::from_secs(1_000_000_000))
        );
        let relative = parse(&info(0, "00")).expect("complete");
        assert!(matches!(relative.next, Some(Next::In { .. })));
    }
}
