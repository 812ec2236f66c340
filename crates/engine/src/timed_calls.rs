//! Calls that wait for a time: a stop must not make them longer or shorter, and none ends before its time.
//!
//! What the kernel does at a stop with every call that has a time limit, and what we do:
//!
//! | call | the kernel, at a stop | in the program that runs on | in the restarted one |
//! |------|-----------------------|-----------------------------|----------------------|
//! | nanosleep, clock_nanosleep (relative), poll, futex (FUTEX_WAIT, relative) | -ERESTART_RESTARTBLOCK: restart_syscall(2) goes on to the old end | nothing | issued remotely with the time that is left, and interrupted: the restart block is armed again |
//! | clock_nanosleep (relative, of a processor time clock) | the same | nothing | issued again with the whole time: how much was used is not known |
//! | ppoll, pselect6, select | writes back what is left, -ERESTARTNOHAND | what is left after the pause is written there | the same |
//! | the same, with a limit in memory that cannot be written to, or with STICKY_TIMEOUTS | EINTR | continued with what is left | continued |
//! | epoll_wait, epoll_pwait, epoll_pwait2, rt_sigtimedwait, semtimedop, io_getevents, io_pgetevents | EINTR | continued with what is left | continued |
//! | futex (FUTEX_WAIT_BITSET, absolute), poll without a limit | -ERESTART_RESTARTBLOCK | nothing | issued again; its number, which the kernel shows no more, is remembered |
//! | clock_nanosleep (absolute), futex (all other operations), futex_waitv, mq_timedsend, mq_timedreceive, timers | an absolute limit; a restart code | nothing | issued again: clocks go on from where they were |
//! | recv, send, accept, connect with SO_RCVTIMEO or SO_SNDTIMEO; recvmmsg | EINTR | issued again, with the whole time: the limit is the socket's | the same |
//! | io_uring_enter | EINTR | issued again, with the whole time | refused |
//!
//! *Continued* is explained in [`crate::interruptions`].
//!
//! How much time is left is told by the kernel only for nanosleep and clock_nanosleep that ask for it: their last argument has it
//! after the interruption. Else it follows from when the thread went to sleep ([`crate::sleep_clock`]). That is looked up before
//! the freeze, as the stop itself is accounted for. It counts only if the thread is found stopped in the same sleep: in the same
//! call, and without having slept again in between. Otherwise the call is one that has only just begun.

use crate::EngineError;
use crate::calls::Calls;
use crate::clocks::{self, Passed};
use crate::sleep_clock::{self, Clocks};
use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, procfs};
use stasis_tracee::arch::{
    self, CALL_CODE_BYTES, ERESTART_RESTARTBLOCK, ERESTARTNOHAND, IO_PGETEVENTS,
};
use stasis_tracee::{Memory, Registers};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A thread stopped in a call with a relative time limit.
#[derive(Clone, Copy, Debug)]
pub struct Sleeping {
    /// The call's number: the original one, where the kernel says restart_syscall.
    pub number: i64,
    /// The call's arguments.
    pub arguments: [u64; 6],
    /// The time that it was to sleep from `since` on; [`UNLIMITED`] for a call whose limit is absolute or missing, of which only
    /// the number has to be remembered.
    pub limit: Duration,
    /// On the supervisor's clock.
    pub since: Instant,
}

/// What a call is left that should have ended already.
const SHORTEST: Duration = Duration::from_nanos(1);

/// Stands for no relative limit.
pub const UNLIMITED: Duration = Duration::MAX;

/// The part of a sleeping call that an image keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedCall {
    /// The call's number.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
    /// How much of its time was left at the checkpoint.
    pub left: Duration,
    /// When it was that, on the supervisor's clock ([`crate::clocks::monotonic`]).
    pub read_at: Duration,
    /// Where what its limit points to is, for a call that is continued with the time that is left ([`crate::interruptions`]).
    pub room: Option<u64>,
}

/// How a relative limit is given, and in which argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// An `int` of milliseconds.
    Milliseconds(usize),
    /// The address of a `struct timespec`.
    Timespec(usize),
    /// The address of a `struct timeval`.
    Timeval(usize),
}

impl Limit {
    /// The limit of a call that has one.
    #[must_use]
    pub fn of(number: i64, arguments: &[u64; 6]) -> Option<Limit> {
        const FUTEX_WAIT: u64 = 0;
        const FUTEX_COMMAND: u64 = 0x7f;
        const WALL_CLOCKS: [i32; 4] = [
            libc::CLOCK_REALTIME,
            libc::CLOCK_MONOTONIC,
            libc::CLOCK_BOOTTIME,
            libc::CLOCK_TAI,
        ];
        let limit = match number {
            libc::SYS_nanosleep => Limit::Timespec(0),
            libc::SYS_clock_nanosleep
                if arguments[1] as i32 & libc::TIMER_ABSTIME == 0
                    && WALL_CLOCKS.contains(&(arguments[0] as i32)) =>
            {
                Limit::Timespec(2)
            }
            libc::SYS_poll => Limit::Milliseconds(2),
            libc::SYS_futex if arguments[1] & FUTEX_COMMAND == FUTEX_WAIT => Limit::Timespec(3),
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Limit::Milliseconds(3),
            libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => Limit::Timespec(3),
            libc::SYS_rt_sigtimedwait | libc::SYS_ppoll => Limit::Timespec(2),
            libc::SYS_io_getevents | IO_PGETEVENTS | libc::SYS_pselect6 => Limit::Timespec(4),
            libc::SYS_select => Limit::Timeval(4),
            _ => return None,
        };
        let limited = match limit {
            Limit::Milliseconds(n) => arguments[n] as i32 >= 0,
            Limit::Timespec(n) | Limit::Timeval(n) => arguments[n] != 0,
        };
        limited.then_some(limit)
    }

    /// The argument that holds it.
    #[must_use]
    pub fn argument(self) -> usize {
        match self {
            Limit::Milliseconds(n) | Limit::Timespec(n) | Limit::Timeval(n) => n,
        }
    }

    fn read(self, arguments: &[u64; 6], memory: &Memory) -> Option<Duration> {
        match self {
            Limit::Milliseconds(n) => Some(Duration::from_millis(
                u64::try_from(arguments[n] as i32).ok()?,
            )),
            Limit::Timespec(n) => read_timespec(memory, arguments[n]),
            Limit::Timeval(n) => {
                let seconds = memory.read_u64(arguments[n]).ok()?;
                let microseconds = memory.read_u64(arguments[n] + 8).ok()?;
                Duration::from_secs(seconds).checked_add(Duration::from_micros(microseconds))
            }
        }
    }

    /// The argument for `left`, rounded up, and what it points to, to be put at `room`.
    #[must_use]
    pub fn encode(self, left: Duration, room: u64) -> (u64, Vec<u8>) {
        let words = |seconds: u64, fraction: u64| {
            let mut bytes = seconds.to_le_bytes().to_vec();
            bytes.extend(fraction.to_le_bytes());
            bytes
        };
        match self {
            Limit::Milliseconds(_) => {
                let milliseconds = left.as_nanos().div_ceil(1_000_000);
                (milliseconds.min(i32::MAX as u128) as u64, Vec::new())
            }
            Limit::Timespec(_) => (room, words(left.as_secs(), left.subsec_nanos().into())),
            Limit::Timeval(_) => {
                let microseconds = left.as_nanos().div_ceil(1000) as u64;
                let bytes = words(microseconds / 1_000_000, microseconds % 1_000_000);
                (room, bytes)
            }
        }
    }
}

fn read_timespec(memory: &Memory, address: u64) -> Option<Duration> {
    let seconds = memory.read_u64(address).ok()?;
    let nanoseconds = u32::try_from(memory.read_u64(address + 8).ok()?).ok()?;
    Duration::from_secs(seconds).checked_add(Duration::from_nanos(nanoseconds.into()))
}

/// A thread asleep in a call with a time limit, as seen before the freeze.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    number: i64,
    arguments: [u64; 6],
    sleeps: u64,
    /// When it went to sleep, in the time of its processor.
    at: Duration,
    processor: usize,
    /// The same on the supervisor's clock, where the processor's could be read.
    since: Option<Instant>,
}

/// Looks at running threads, given with their processes: which of them sleep in a call with a time limit, since when.
#[must_use]
pub fn look(threads: impl Iterator<Item = (Pid, Pid)>) -> HashMap<Pid, Look> {
    let seen: Vec<_> = threads.filter_map(|(pid, tid)| asleep(pid, tid)).collect();
    // The clocks are read after all threads.
    let clocks = Clocks::of(seen.iter().map(|(_, look)| look.processor));
    let dated = seen.into_iter().map(|(tid, look)| {
        let since = clocks.at(look.processor, look.at);
        (tid, Look { since, ..look })
    });
    dated.collect()
}

/// After the freeze, by what the stopped threads tell of their processors: dates those sleeps whose processors could not be asked
/// before. `threads` are with their processes.
pub fn date(looks: &mut HashMap<Pid, Look>, threads: impl Iterator<Item = (Pid, Pid)>) {
    if looks.values().all(|look| look.since.is_some()) {
        return;
    }
    let mut clocks = Clocks::default();
    for (pid, tid) in threads {
        let account = sleep_clock::account(&format!("/proc/{pid}/task/{tid}"));
        let at = account.and_then(|account| account.at);
        if let (Some(at), Some(processor)) = (at, sleep_clock::processor(pid, tid)) {
            clocks.learn(processor, at);
        }
    }
    for look in looks.values_mut() {
        look.since = look.since.or_else(|| clocks.at(look.processor, look.at));
    }
}

fn asleep(pid: Pid, tid: Pid) -> Option<(Pid, Look)> {
    let path = format!("/proc/{pid}/task/{tid}");
    let (number, arguments) = current_call(&path)?;
    Limit::of(number, &arguments)?;
    // A sleep that begins after this is one more.
    let account = sleep_clock::account(&path)?;
    let processor = sleep_clock::processor(pid, tid)?;
    // Still in the same call: so the account was that of this sleep, or of one before it.
    (current_call(&path)? == (number, arguments)).then_some(())?;
    let look = Look {
        number,
        arguments,
        sleeps: account.sleeps,
        at: account.at?,
        processor,
        since: None,
    };
    Some((tid, look))
}

fn current_call(path: &str) -> Option<(i64, [u64; 6])> {
    let text = procfs::read_to_string(format!("{path}/syscall")).ok()?;
    let mut words = text.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut arguments = [0u64; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
    }
    Some((number, arguments))
}

/// Time by which a call may be over without its thread having run.
const OVERDUE: Duration = Duration::from_secs(1);

/// The call with a time limit that a thread is stopped in. `known` are those of the last checkpoint.
#[must_use]
pub fn resolve(
    pid: Pid,
    tid: Pid,
    registers: &Registers,
    memory: &Memory,
    look: Option<&Look>,
    known: Option<&Sleeping>,
) -> Option<Sleeping> {
    let now = Instant::now();
    let arguments = registers.arguments();
    let interrupted = registers.interrupted_call()?;
    let blocked = registers.result() == -ERESTART_RESTARTBLOCK;
    if limit_in_place(registers).is_some() {
        let limit = Limit::of(interrupted, &arguments)?.read(&arguments, memory)?;
        return Some(Sleeping {
            number: interrupted,
            arguments,
            limit,
            since: now,
        });
    }
    if !blocked && registers.result() != -i64::from(libc::EINTR) {
        return None;
    }
    let continued = interrupted == libc::SYS_restart_syscall;
    let known = known.filter(|known| {
        let overdue = known.limit.saturating_add(OVERDUE);
        let still = now.saturating_duration_since(known.since) < overdue;
        continued && known.arguments == arguments && still
    });
    let number = match known {
        Some(known) => known.number,
        None if continued => number_in_code(registers, memory)?,
        None => interrupted,
    };
    let began = |limit, since| Sleeping {
        number,
        arguments,
        limit,
        since,
    };
    let Some(place) = Limit::of(number, &arguments) else {
        return blocked.then(|| began(UNLIMITED, now));
    };
    let left_at = match number {
        libc::SYS_nanosleep => arguments[1],
        libc::SYS_clock_nanosleep => arguments[3],
        _ => 0,
    };
    if blocked && left_at != 0 {
        return Some(began(read_timespec(memory, left_at)?, now));
    }
    if let Some(known) = known {
        return Some(*known);
    }
    let same = look.filter(|look| {
        let sleeps = || sleep_clock::account(&format!("/proc/{pid}/task/{tid}"));
        // The stop is one more.
        !continued
            && (look.number, look.arguments) == (number, arguments)
            && sleeps().is_some_and(|now| now.sleeps <= look.sleeps + 1)
    });
    let limit = place.read(&arguments, memory)?;
    let since = same.and_then(|look| look.since);
    Some(began(limit, since.unwrap_or(now)))
}

/// The limit of a call for which the kernel has written back what is left, and which is executed again.
#[must_use]
pub fn limit_in_place(registers: &Registers) -> Option<Limit> {
    let number = registers.interrupted_call()?;
    let writes_back = [libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_select].contains(&number);
    (writes_back && registers.result() == -ERESTARTNOHAND)
        .then(|| Limit::of(number, &registers.arguments()))
        .flatten()
}

/// The number of a call that restart_syscall(2) continues, where nobody has seen it before: after a stop by job control.
fn number_in_code(registers: &Registers, memory: &Memory) -> Option<i64> {
    let mut code = [0; CALL_CODE_BYTES];
    let start = registers
        .instruction_pointer()
        .checked_sub(code.len() as u64)?;
    memory.read(&mut code, start).ok()?;
    arch::call_in_code(&code)
}

impl Sleeping {
    /// How much time is left at `now`.
    #[must_use]
    pub fn left(&self, now: Instant) -> Duration {
        self.limit
            .saturating_sub(now.saturating_duration_since(self.since))
    }

    /// What an image keeps of it; `room` as in [`TimedCall`].
    #[must_use]
    pub fn timed_call(&self, now: Instant, room: Option<u64>) -> TimedCall {
        TimedCall {
            number: self.number,
            arguments: self.arguments,
            left: self.left(now),
            read_at: clocks::monotonic().saturating_sub(now.elapsed()),
            room,
        }
    }
}

/// The registers with which a restarted thread goes on, given those of the checkpoint: where its call is to be continued from
/// the kernel's restart block, that is armed again, with the time that is left. All other calls are restarted by the kernel when
/// the thread is let go, as their result says. Must be the last remote call of the thread.
///
/// # Errors
/// When a remote call fails otherwise than the program's own would.
pub fn resume_registers(
    saved: &Registers,
    timed_call: Option<&TimedCall>,
    passed: &Passed,
    calls: &mut Calls<'_>,
) -> Result<(Registers, Option<Sleeping>), EngineError> {
    let mut registers = *saved;
    let Some(number) = saved.interrupted_call() else {
        return Ok((registers, None));
    };
    let left = |call: &TimedCall| call.left.saturating_sub(passed.since(call.read_at));
    if let Some((call, room)) = timed_call.and_then(|call| Some((call, call.room?))) {
        shorten(&mut registers, call, room, left(call), calls.memory);
    }
    if saved.result() != -ERESTART_RESTARTBLOCK {
        return Ok((registers, None));
    }
    match timed_call {
        Some(call) => {
            // Not nothing: the call must wait to be interrupted.
            return rearm(registers, call, left(call).max(SHORTEST), calls);
        }
        None if number != libc::SYS_restart_syscall => registers.reissue(number),
        None => match number_in_code(saved, calls.memory) {
            Some(number) => registers.reissue(number),
            None => {
                // Which call it was is not known any more: the program sees what a signal would have caused.
                registers.set_result(-i64::from(libc::EINTR));
                registers.end_call();
            }
        },
    }
    Ok((registers, None))
}

/// Gives a call that is continued the time that is left now, as [`crate::interruptions::refresh`] does after a pause. Does nothing
/// where that is not to be written to.
fn shorten(
    registers: &mut Registers,
    call: &TimedCall,
    room: u64,
    left: Duration,
    memory: &Memory,
) {
    let Some(limit) = Limit::of(call.number, &call.arguments) else {
        return;
    };
    let (argument, bytes) = limit.encode(left, room);
    if !memory.write_where_permitted(&bytes, room) {
        return;
    }
    let mut arguments = registers.arguments();
    arguments[limit.argument()] = argument;
    registers.set_arguments(&arguments);
}

fn rearm(
    mut registers: Registers,
    call: &TimedCall,
    left: Duration,
    calls: &mut Calls<'_>,
) -> Result<(Registers, Option<Sleeping>), EngineError> {
    let name = match call.number {
        libc::SYS_nanosleep => "nanosleep",
        libc::SYS_clock_nanosleep => "clock_nanosleep",
        libc::SYS_poll => "poll",
        libc::SYS_futex => "futex",
        _ => {
            registers.reissue(call.number);
            return Ok((registers, None));
        }
    };
    let mut arguments = call.arguments;
    let Some(limit) = Limit::of(call.number, &arguments) else {
        registers.reissue(call.number);
        return Ok((registers, None));
    };
    let (argument, bytes) = limit.encode(left, calls.scratch);
    calls.put(&bytes)?;
    arguments[limit.argument()] = argument;
    let result = calls
        .remote
        .call_and_interrupt(name, call.number, &arguments)?;
    if result != -ERESTART_RESTARTBLOCK {
        registers.set_result(result);
        registers.end_call();
        return Ok((registers, None));
    }
    // The kernel sees a restartable call that was interrupted, and its restart block is armed.
    registers.restart_call(call.number, ERESTART_RESTARTBLOCK);
    let sleeping = Sleeping {
        number: call.number,
        arguments: call.arguments,
        limit: left,
        since: Instant::now(),
    };
    Ok((registers, Some(sleeping)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rounded_up() {
        let left = Duration::from_nanos(1_000_001);
        assert_eq!(Limit::Milliseconds(3).encode(left, 0), (2, Vec::new()));
        let (address, bytes) = Limit::Timespec(0).encode(left, 7);
        assert_eq!(
            (address, bytes[8..].to_vec()),
            (7, 1_000_001u64.to_le_bytes().to_vec())
        );
        let (_, bytes) = Limit::Timeval(4).encode(left, 7);
        assert_eq!(bytes[8..], 1001u64.to_le_bytes());
    }

    #[test]
    fn unlimited_and_absolute_calls_have_no_limit() {
        let arguments = |at: usize, value: u64| {
            let mut arguments = [0; 6];
            arguments[at] = value;
            arguments
        };
        assert_eq!(Limit::of(libc::SYS_poll, &arguments(2, u64::MAX)), None);
        assert_eq!(
            Limit::of(libc::SYS_poll, &arguments(2, 5)),
            Some(Limit::Milliseconds(2))
        );
        assert_eq!(Limit::of(libc::SYS_ppoll, &[0; 6]), None);
        let mut absolute = arguments(2, 0x1000);
        assert_eq!(
            Limit::of(libc::SYS_clock_nanosleep, &absolute),
            Some(Limit::Timespec(2))
        );
        absolute[1] = libc::TIMER_ABSTIME as u64;
        assert_eq!(Limit::of(libc::SYS_clock_nanosleep, &absolute), None);
    }
}
