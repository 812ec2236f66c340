//! Interrupted system calls: a stop must not be seen as `EINTR`, nor as a longer or shorter sleep.
//!
//! What the kernel restarts by itself (-ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND, and -ERESTART_RESTARTBLOCK in the process
//! that runs on) needs nothing. Two kinds need help:
//!
//! - Calls that return plain `EINTR` merely because the thread was stopped (signal(7), "Interruption of system calls and
//!   library functions by stop signals"): they are executed again, with what is left of their time.
//! - Calls with a relative time limit, when they are continued in a restarted process: the kernel's restart block is gone. They
//!   are issued again with the remaining time and interrupted, which arms the restart block as it was.
//!
//! How much time is left is not told by the kernel. It follows from when the thread went to sleep, which the scheduler
//! statistics tell: `se.exec_start` of `/proc/PID/sched` is not touched while a thread sleeps. Kernels without that file let
//! such calls start over.

use crate::EngineError;
use crate::calls::Calls;
use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, procfs};
use stasis_tracee::{Registers, Stopped};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A thread asleep in a call with a relative time limit, as seen right before the freeze.
#[derive(Clone, Copy, Debug)]
pub struct Sleeping {
    /// The call's number: the original one, where the kernel says restart_syscall.
    pub number: i64,
    /// The call's arguments.
    pub arguments: [u64; 6],
    /// When it went to sleep, on the supervisor's clock.
    pub since: Instant,
}

/// The part of a sleeping call that an image keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedCall {
    /// The call's number.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
    /// For how long it had slept at the checkpoint.
    pub slept: Duration,
}

/// The scheduler's clock and the supervisor's at one moment.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerClock {
    scheduler: Duration,
    here: Instant,
}

/// Reads the scheduler's clock: the time at which this thread was last accounted for, which is now.
#[must_use]
pub fn scheduler_clock() -> Option<SchedulerClock> {
    // Yielding makes the kernel account for the time up to now.
    std::thread::yield_now();
    let scheduler = exec_start("/proc/thread-self/sched")?;
    Some(SchedulerClock {
        scheduler,
        here: Instant::now(),
    })
}

fn exec_start(path: &str) -> Option<Duration> {
    let text = procfs::read_to_string(path).ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("se.exec_start"))?;
    let milliseconds: f64 = line.rsplit(':').next()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(milliseconds / 1e3).ok()
}

/// Looks at a running thread: the call that it sleeps in, where that one has a time limit of its own.
#[must_use]
pub fn look(
    pid: Pid,
    tid: Pid,
    clock: Option<SchedulerClock>,
    known: &HashMap<Pid, Sleeping>,
) -> Option<Sleeping> {
    let text = procfs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let mut words = text.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    if number == libc::SYS_restart_syscall {
        return known.get(&tid).copied();
    }
    if !has_relative_limit(number) {
        return None;
    }
    let mut arguments = [0u64; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
    }
    let clock = clock?;
    let slept = clock
        .scheduler
        .saturating_sub(exec_start(&format!("/proc/{pid}/task/{tid}/sched"))?);
    Some(Sleeping {
        number,
        arguments,
        since: clock.here.checked_sub(slept)?,
    })
}

/// Calls that sleep for a time given relative to now and that the kernel does not restart by a limit it has written back.
fn has_relative_limit(number: i64) -> bool {
    matches!(
        number,
        libc::SYS_nanosleep
            | libc::SYS_clock_nanosleep
            | libc::SYS_poll
            | libc::SYS_futex
            | libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
    )
}

/// Calls that return `EINTR` when a stop interrupts them, signal or not (signal(7)), and that can be executed again without
/// harm, as they have done nothing yet.
fn returns_eintr(number: i64) -> bool {
    matches!(
        number,
        libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_semop
            | libc::SYS_semtimedop
            | libc::SYS_rt_sigtimedwait
            | libc::SYS_io_getevents
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_connect
            | libc::SYS_read
            | libc::SYS_write
            | libc::SYS_readv
            | libc::SYS_writev
            | FUTEX_WAITV
            | IO_PGETEVENTS
            | IO_URING_ENTER
    )
}

/// Numbers that are the same on every processor (`asm-generic/unistd.h` from Linux 5.1 on) or missing from libc.
const IO_URING_ENTER: i64 = 426;
const FUTEX_WAITV: i64 = 449;
#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: i64 = 333;

const EINTR: i64 = libc::EINTR as i64;

/// Corrects `registers` of a thread whose call was cut short by nothing but the stop, so that it is executed again. Returns
/// whether there was anything to correct.
#[must_use]
pub fn without_interruption(registers: &mut Registers, sleeping: Option<&Sleeping>) -> bool {
    let Some(number) = registers.interrupted_call() else {
        return false;
    };
    if registers.result() != -EINTR || !returns_eintr(number) {
        return false;
    }
    if matches!(number, libc::SYS_epoll_wait | libc::SYS_epoll_pwait)
        && let Some(sleeping) = sleeping
        && (sleeping.arguments[3] as i32) > 0
    {
        let limit = Duration::from_millis(sleeping.arguments[3] as u32 as u64);
        registers.r10 = milliseconds_rounded_up(limit.saturating_sub(sleeping.since.elapsed()));
    }
    registers.reissue(number);
    true
}

fn milliseconds_rounded_up(left: Duration) -> u64 {
    left.as_nanos().div_ceil(1_000_000) as u64
}

/// Applies [`without_interruption`] to a stopped thread, unless a signal is waiting for it: then `EINTR` is the signal's doing.
///
/// # Errors
/// When the thread has died.
pub fn hide_interruption(
    stopped: &mut Stopped,
    sleeping: Option<&Sleeping>,
) -> Result<(), EngineError> {
    let mut registers = stopped.registers()?;
    if registers.result() != -EINTR || registers.interrupted_call().is_none() {
        return Ok(());
    }
    let mask = stopped.signal_mask()?;
    let waiting = stopped
        .pending()?
        .into_iter()
        .chain(stopped.pending_shared()?);
    let interrupts = |info: stasis_tracee::PendingSignal| {
        let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        !mask.contains(number)
    };
    if !waiting.into_iter().any(interrupts) && without_interruption(&mut registers, sleeping) {
        stopped.set_registers(&registers)?;
    }
    Ok(())
}

impl Sleeping {
    /// What an image keeps of it.
    #[must_use]
    pub fn timed_call(&self, frozen_at: Instant) -> TimedCall {
        TimedCall {
            number: self.number,
            arguments: self.arguments,
            slept: frozen_at.saturating_duration_since(self.since),
        }
    }
}

const FUTEX_WAIT: u64 = 0;
const FUTEX_COMMAND: u64 = 0x7f;

/// The registers with which a restarted thread goes on, given those of the checkpoint: the call that it was in is continued, its
/// time limit what was left of it. Must be the last remote call of the thread.
///
/// # Errors
/// When a remote call fails otherwise than the program's own would.
pub fn resume_registers(
    saved: &Registers,
    timed_call: Option<&TimedCall>,
    calls: &mut Calls<'_>,
) -> Result<Registers, EngineError> {
    use stasis_tracee::arch::{ERESTART_RESTARTBLOCK, ERESTARTNOHAND, ERESTARTNOINTR, ERESTARTSYS};
    let mut registers = *saved;
    let Some(number) = saved.interrupted_call() else {
        return Ok(registers);
    };
    match -saved.result() {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => registers.reissue(number),
        ERESTART_RESTARTBLOCK => match timed_call {
            Some(call) => return rearm(registers, call, calls),
            None if number != libc::SYS_restart_syscall => registers.reissue(number),
            None => {
                // Which call it was is not known any more: the program sees what a signal would have caused.
                registers.rax = -EINTR as u64;
                registers.orig_rax = u64::MAX;
            }
        },
        // The call is over; the kernel must not look at it again.
        _ => registers.orig_rax = u64::MAX,
    }
    Ok(registers)
}

fn rearm(
    mut registers: Registers,
    call: &TimedCall,
    calls: &mut Calls<'_>,
) -> Result<Registers, EngineError> {
    let mut arguments = call.arguments;
    let result = match call.number {
        libc::SYS_nanosleep => {
            arguments[0] = remaining_timespec(call, arguments[0], calls)?;
            calls
                .remote
                .call_and_interrupt("nanosleep", call.number, &arguments)?
        }
        libc::SYS_clock_nanosleep => {
            arguments[2] = remaining_timespec(call, arguments[2], calls)?;
            calls
                .remote
                .call_and_interrupt("clock_nanosleep", call.number, &arguments)?
        }
        libc::SYS_poll if (arguments[2] as i32) >= 0 => {
            let limit = Duration::from_millis(arguments[2] & 0xffff_ffff);
            arguments[2] = milliseconds_rounded_up(limit.saturating_sub(call.slept));
            calls
                .remote
                .call_and_interrupt("poll", call.number, &arguments)?
        }
        libc::SYS_futex if arguments[1] & FUTEX_COMMAND == FUTEX_WAIT && arguments[3] != 0 => {
            arguments[3] = remaining_timespec(call, arguments[3], calls)?;
            calls
                .remote
                .call_and_interrupt("futex", call.number, &arguments)?
        }
        _ => {
            registers.reissue(call.number);
            return Ok(registers);
        }
    };
    if result == -stasis_tracee::arch::ERESTART_RESTARTBLOCK {
        // The kernel sees a restartable call that was interrupted, and its restart block is armed.
        registers.orig_rax = call.number as u64;
    } else {
        registers.rax = result as u64;
        registers.orig_rax = u64::MAX;
    }
    Ok(registers)
}

/// Puts what is left of the `struct timespec` at `address` into the scratch page, and returns where.
fn remaining_timespec(
    call: &TimedCall,
    address: u64,
    calls: &Calls<'_>,
) -> Result<u64, EngineError> {
    use crate::error::Context;
    let reading = || "reading a saved time limit".to_owned();
    let seconds = calls.memory.read_u64(address).context(reading)?;
    let nanoseconds = calls.memory.read_u64(address + 8).context(reading)?;
    let limit = Duration::new(seconds, u32::try_from(nanoseconds).unwrap_or(0));
    let left = limit.saturating_sub(call.slept);
    let mut bytes = left.as_secs().to_le_bytes().to_vec();
    bytes.extend(u64::from(left.subsec_nanos()).to_le_bytes());
    calls.put(&bytes)
}
