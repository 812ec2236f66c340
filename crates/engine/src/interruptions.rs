//! Interrupted calls: a stop must not be seen as `EINTR`, as a part of a transfer, nor as a longer or shorter wait.
//!
//! What the kernel restarts by itself (-ERESTARTSYS and its like) needs nothing: letting go of a thread makes the kernel look
//! at the result, in the restarted program as in the one that runs on, and it restarts the call or, where a handler runs, does
//! not. The others are put right while the thread stands still:
//!
//! - A call that returned `EINTR` (signal(7), "Interruption of system calls and library functions by stop signals") gets
//!   -ERESTARTNOHAND in its place: the kernel executes it again, or gives `EINTR` if a handler runs, whenever that signal came.
//! - Where such a call had a relative time limit ([`crate::timed_calls`]), and where a transfer was cut short
//!   ([`crate::transfers`]), it is *continued*: executed again with what is left, in a place that corrects result and registers
//!   afterwards ([`crate::continuations`]). A transfer into which a handler then breaks returns what was transferred in all.
//!
//! From there on the thread needs no supervisor: one that is killed leaves a call that goes on. If it is killed between stop and
//! here, which takes some ten microseconds, the program sees what the kernel made of the call.

use crate::EngineError;
use crate::conformance::Claim;
use crate::continuations::{Slot, Slots};
use crate::freeze::{Frozen, FrozenProcess, FrozenThread};
use crate::timed_calls::{self, Limit, Look, Sleeping};
use crate::transfers::{self, Rest};
use stasis_sys::Pid;
use stasis_tracee::arch::continuation::ROOM_BYTES;
use stasis_tracee::arch::{ERESTARTNOHAND, ERESTARTSYS, IO_PGETEVENTS};
use stasis_tracee::{Memory, Stopped};
use std::collections::HashMap;
use std::time::Instant;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    Claim::kept(
        "call that a thread waits in",
        "not seen by the program; time limits go on",
        &[
            "invisible_stop::naps_and_polls",
            "invisible_stop::futexes",
            "invisible_stop::receives",
            "time::a_sleeping_program",
        ],
    ),
    Claim::kept(
        "transfer that is under way",
        "no byte lost or doubled",
        &[
            "invisible_stop::transfers",
            "invisible_stop::transfers_in_pieces",
        ],
    ),
];

/// A thread continues a call with the time that it has left.
#[derive(Clone, Copy, Debug)]
pub struct Continued {
    limit: Limit,
    /// Where what the limit points to is: in a slot, or where the kernel has written back what is left.
    pub room: u64,
}

/// Numbers that are the same on every processor (`asm-generic/unistd.h` from Linux 5.1 on) or missing from libc.
const IO_URING_ENTER: i64 = 426;
const FUTEX_WAITV: i64 = 449;

/// Calls that return `EINTR` when a stop interrupts them, signal or not (signal(7)), and that can be executed again without
/// harm, as they have done nothing yet.
fn returns_eintr(number: i64) -> bool {
    matches!(
        number,
        libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_ppoll
            | libc::SYS_pselect6
            | libc::SYS_select
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

/// Has the kernel execute the call of a stopped thread again that returned `EINTR`. Returns whether there was one.
///
/// # Errors
/// When the thread has died.
pub fn restart(stopped: &mut Stopped) -> Result<bool, EngineError> {
    let mut registers = stopped.registers()?;
    let Some(number) = registers.interrupted_call() else {
        return Ok(false);
    };
    if registers.result() != -i64::from(libc::EINTR)
        || !returns_eintr(number)
        || registers.is_32_bit()
    {
        return Ok(false);
    }
    registers.restart_call(number, ERESTARTNOHAND);
    stopped.set_registers(&registers)?;
    Ok(true)
}

/// What a call is continued with.
enum Plan {
    /// Less time.
    Time(Limit, Sleeping),
    /// The rest.
    Transfer(Rest),
}

/// Puts the calls of a frozen tree right. `looks` are from before the freeze, `known` from the last checkpoint. What cannot be
/// done for a process is left: a wait begins anew, a transfer is seen as the kernel left it.
pub fn hide(frozen: &mut Frozen, looks: &HashMap<Pid, Look>, known: &HashMap<Pid, Sleeping>) {
    for process in &mut frozen.processes {
        let mut plans = Vec::new();
        for (n, thread) in process.threads.iter_mut().enumerate() {
            let look = looks.get(&thread.tid);
            let known = known.get(&thread.tid);
            // An error is the death of the thread.
            if let Ok(Some(plan)) = hide_one(process.pid, thread, &process.memory, look, known) {
                plans.push((n, plan));
            }
        }
        if let Err(error) = continue_calls(process, plans) {
            tracing::warn!(pid = %process.pid, %error, "calls could not be continued");
        }
    }
}

fn hide_one(
    pid: Pid,
    thread: &mut FrozenThread,
    memory: &Memory,
    look: Option<&Look>,
    known: Option<&Sleeping>,
) -> Result<Option<Plan>, EngineError> {
    let tid = thread.tid;
    let Some(stopped) = thread.stopped.as_mut() else {
        return Ok(None);
    };
    let registers = stopped.registers()?;
    if registers.is_32_bit() {
        return Ok(None);
    }
    thread.sleeping = timed_calls::resolve(pid, tid, &registers, memory, look, known);
    thread.continued = thread.sleeping.and_then(|sleeping| {
        let limit = timed_calls::limit_in_place(&registers)?;
        let room = sleeping.arguments[limit.argument()];
        Some(Continued { limit, room })
    });
    if restart(stopped)? {
        let plan = thread.sleeping.and_then(|sleeping| {
            let limit = Limit::of(sleeping.number, &sleeping.arguments)?;
            Some(Plan::Time(limit, sleeping))
        });
        return Ok(plan);
    }
    let longest = ROOM_BYTES as usize / VECTOR_BYTES;
    Ok(transfers::rest(tid, &registers, memory, longest).map(Plan::Transfer))
}

/// `struct iovec`.
const VECTOR_BYTES: usize = 16;

fn continue_calls(
    process: &mut FrozenProcess,
    plans: Vec<(usize, Plan)>,
) -> Result<(), EngineError> {
    if plans.is_empty() {
        return Ok(());
    }
    let mut slots = Slots::prepare(process, plans.len())?;
    for (n, plan) in plans {
        let thread = &mut process.threads[n];
        let (Some(stopped), Some(slot)) = (thread.stopped.as_mut(), slots.take()) else {
            continue;
        };
        let mut registers = stopped.registers()?;
        let (arguments, done, room) = match &plan {
            Plan::Time(limit, sleeping) => {
                let mut arguments = sleeping.arguments;
                let (argument, room) = limit.encode(sleeping.left(Instant::now()), slot.room());
                arguments[limit.argument()] = argument;
                (arguments, 0, room)
            }
            Plan::Transfer(rest) => {
                let mut arguments = rest.arguments;
                if !rest.vectors.is_empty() {
                    arguments[1] = slot.room();
                }
                let words = rest.vectors.iter().flat_map(|(at, len)| [*at, *len]);
                let room = words.flat_map(u64::to_le_bytes).collect();
                registers.restart_call(rest.number, ERESTARTSYS);
                (arguments, rest.done, room)
            }
        };
        write(&process.memory, &room, slot)?;
        let before = slots.enter(slot, &mut registers, &arguments, done, &process.memory)?;
        stopped.set_registers(&registers)?;
        if let Some(before) = before {
            slots.leave(before, &process.memory)?;
        }
        if let Plan::Time(limit, _) = plan {
            let room = slot.room();
            thread.continued = Some(Continued { limit, room });
        }
    }
    Ok(())
}

fn write(memory: &Memory, room: &[u8], slot: Slot) -> Result<(), EngineError> {
    use crate::error::Context;
    memory
        .write(room, slot.room())
        .context(|| "writing a continued call".into())
}

/// Right before a thread is let go: takes the pause off the time that its call has left.
///
/// # Errors
/// When the thread has died.
pub fn refresh(thread: &mut FrozenThread, memory: &Memory) -> Result<(), EngineError> {
    let (Some(continued), Some(sleeping)) = (thread.continued, thread.sleeping) else {
        return Ok(());
    };
    let Some(stopped) = thread.stopped.as_mut() else {
        return Ok(());
    };
    let Continued { limit, room } = continued;
    let (argument, bytes) = limit.encode(sleeping.left(Instant::now()), room);
    if !memory.write_where_permitted(&bytes, room) {
        return Ok(());
    }
    let mut registers = stopped.registers()?;
    let mut arguments = registers.arguments();
    if arguments[limit.argument()] != argument {
        arguments[limit.argument()] = argument;
        registers.set_arguments(&arguments);
        stopped.set_registers(&registers)?;
    }
    Ok(())
}
