//! Threads.
//!
//! Saved: id, general and vector registers, signal mask, the thread's own pending signals, alternate signal stack, robust
//! futex list, the address that is cleared at exit (`set_tid_address(2)`), restartable-sequence registration, name,
//! processor affinity, scheduling policy and nice value, I/O priority, timer slack, and the timed call that it slept in.
//!
//! Not saved: processor time used so far, a descriptor table or working directory of the thread's own (refused).
//!
//! Rests on: all of it but three things can be read from outside (ptrace(2), get_robust_list(2), sched_getattr(2)); the
//! alternate stack and the clear-at-exit address need a remote call in each thread.

use crate::EngineError;
use crate::batch::{Answers, Asked, Batch, Room};
use crate::calls::Calls;
use crate::conformance::Claim;
use crate::error::Context;
use crate::signals;
use crate::timed_calls::TimedCall;
use serde::{Deserialize, Serialize};
use stasis_sys::Pid;
use stasis_sys::signal::SignalSet;
use stasis_sys::task::{self, Scheduling};
use stasis_tracee::{Memory, Registers, RseqConfiguration, Stopped, Xstate};
use std::io;

pub(crate) const THREAD: Claim = Claim::kept(
    "thread",
    "id, registers, signal mask, alternate stack, name, robust futexes, restartable sequence",
    &[
        "threads::sixty_four_threads",
        "threads::general_registers",
        "threads::avx_registers",
        "threads::robust_owner",
        "threads::rseq_registered",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    THREAD,
    Claim::kept(
        "process whose first thread has ended",
        "",
        &["threads::exited_leader"],
    ),
    Claim::kept(
        "affinity, scheduling policy, nice value, timer slack",
        "what this host or user cannot give is left, and told",
        &["processes::attributes"],
    ),
];

/// One thread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The program's number.
    pub virtual_tid: Pid,
    /// General registers.
    pub registers: Registers,
    /// Vector and floating-point registers.
    pub xstate: Xstate,
    /// Blocked signals.
    pub mask: SignalSet,
    /// Signals queued for this thread alone, oldest first.
    pub pending: Vec<signals::Queued>,
    /// `stack_t` of sigaltstack(2).
    pub alternate_stack: AlternateStack,
    /// Head of the robust futex list and its size.
    pub robust_list: (u64, u64),
    /// What the kernel clears and wakes when the thread ends.
    pub clear_at_exit: u64,
    /// Restartable sequences.
    pub rseq: Option<RseqConfiguration>,
    /// Its name (`comm`).
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Processors that it may use.
    #[serde(with = "serde_bytes")]
    pub affinity: Vec<u8>,
    /// Policy and nice value.
    pub scheduling: Scheduling,
    /// I/O priority.
    pub io_priority: u32,
    /// `PR_GET_TIMERSLACK` in nanoseconds.
    pub timer_slack: u64,
    /// What it slept in.
    pub timed_call: Option<TimedCall>,
}

/// `stack_t` (`sigaltstack(2)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlternateStack {
    /// Lowest address.
    pub base: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
}

/// `sizeof(struct robust_list_head)`: the only size that the kernel accepts.
const ROBUST_LIST_HEAD_BYTES: u64 = 24;
const STACK_T_BYTES: usize = 24;
const SS_ONSTACK: u32 = 1;

impl AlternateStack {
    fn decode(bytes: &[u8; STACK_T_BYTES]) -> AlternateStack {
        let word = |at: usize| {
            bytes[at..at + 8]
                .iter()
                .rev()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        AlternateStack {
            base: word(0),
            flags: word(8) as u32 & !SS_ONSTACK,
            size: word(16),
        }
    }

    fn encode(self) -> [u8; STACK_T_BYTES] {
        let mut bytes = [0; STACK_T_BYTES];
        bytes[..8].copy_from_slice(&self.base.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }
}

/// Continues a thread that was stopped within a restartable sequence at the sequence's abort handler, as the kernel would
/// have done had it been preempted there; after a remote call the kernel could no longer know (`kernel/rseq.c`).
///
/// # Errors
/// When the thread has died or its memory cannot be read.
pub fn abort_restartable_sequence(
    thread: &mut Stopped,
    memory: &Memory,
) -> Result<(), EngineError> {
    let Some(rseq) = thread.rseq()? else {
        return Ok(());
    };
    let reading = || {
        format!(
            "reading the restartable sequence of thread {}",
            thread.tid()
        )
    };
    let descriptor = memory.read_u64(rseq.pointer + 8).context(reading)?;
    if descriptor == 0 {
        return Ok(());
    }
    // struct rseq_cs: version and flags, start_ip, post_commit_offset, abort_ip.
    let start = memory.read_u64(descriptor + 8).context(reading)?;
    let length = memory.read_u64(descriptor + 16).context(reading)?;
    let abort = memory.read_u64(descriptor + 24).context(reading)?;
    let mut registers = thread.registers()?;
    if registers.instruction_pointer().wrapping_sub(start) < length {
        registers.set_instruction_pointer(abort);
        let tid = thread.tid();
        memory
            .write(&[0; 8], rseq.pointer + 8)
            .context(|| format!("writing to thread {tid}"))?;
        thread.set_registers(&registers)?;
    }
    Ok(())
}

/// Captures what can be read from outside, but for the pending signals, which belong together with the timers.
///
/// # Errors
/// When the thread has died.
pub fn capture(
    virtual_tid: Pid,
    thread: &Stopped,
    timed_call: Option<TimedCall>,
) -> Result<State, EngineError> {
    let tid = thread.tid();
    let reading = |what: &'static str| move || format!("reading the {what} of thread {tid}");
    Ok(State {
        virtual_tid,
        registers: thread.registers()?,
        xstate: thread.xstate()?,
        mask: thread.signal_mask()?,
        pending: Vec::new(),
        alternate_stack: AlternateStack::default(),
        robust_list: task::robust_list(tid).context(reading("robust futex list"))?,
        clear_at_exit: 0,
        rseq: thread.rseq()?,
        name: Vec::new(),
        affinity: task::affinity(tid).context(reading("affinity"))?,
        scheduling: task::scheduling(tid).context(reading("scheduling policy"))?,
        io_priority: task::io_priority(tid).context(reading("I/O priority"))?,
        timer_slack: 0,
        timed_call,
    })
}

/// The questions that [`ask`] has put to a thread.
pub struct Questions {
    alternate_stack: (Asked, Room),
    clear_at_exit: (Asked, Room),
    name: (Asked, Room),
    timer_slack: Asked,
}

/// `TASK_COMM_LEN`: a name and the zero that ends it.
const NAME_BYTES: usize = 16;

/// Asks a thread for what only it can tell.
#[must_use]
pub fn ask(batch: &mut Batch) -> Questions {
    let stack = batch.room(STACK_T_BYTES as u64);
    let arguments = [0.into(), stack.into()];
    let alternate_stack = batch.call("sigaltstack", libc::SYS_sigaltstack, &arguments);
    let address = batch.room(size_of::<u64>() as u64);
    let arguments = [(libc::PR_GET_TID_ADDRESS as u64).into(), address.into()];
    let clear_at_exit = batch.call("prctl(PR_GET_TID_ADDRESS)", libc::SYS_prctl, &arguments);
    let bytes = batch.room(NAME_BYTES as u64);
    let arguments = [(libc::PR_GET_NAME as u64).into(), bytes.into()];
    let name = batch.call("prctl(PR_GET_NAME)", libc::SYS_prctl, &arguments);
    let arguments = [(libc::PR_GET_TIMERSLACK as u64).into()];
    let timer_slack = batch.call("prctl(PR_GET_TIMERSLACK)", libc::SYS_prctl, &arguments);
    Questions {
        alternate_stack: (alternate_stack, stack),
        clear_at_exit: (clear_at_exit, address),
        name: (name, bytes),
        timer_slack,
    }
}

/// Completes what was captured from outside by the thread's answers.
///
/// # Errors
/// When a remote call has failed.
pub fn complete(
    state: &mut State,
    questions: &Questions,
    answers: &Answers,
) -> Result<(), EngineError> {
    let (asked, room) = questions.alternate_stack;
    state.alternate_stack = AlternateStack::decode(&answers.written(asked, room)?);
    let (asked, room) = questions.clear_at_exit;
    state.clear_at_exit = u64::from_le_bytes(answers.written(asked, room)?);
    let (asked, room) = questions.name;
    let name: [u8; NAME_BYTES] = answers.written(asked, room)?;
    state.name = name.into_iter().take_while(|byte| *byte != 0).collect();
    state.timer_slack = answers.result(questions.timer_slack)?;
    Ok(())
}

/// Gives a new thread, which makes remote calls, everything but its registers, mask, and pending signals. Policy and
/// affinity that this host or user cannot give are left as they are, and told in `notes`.
///
/// # Errors
/// When a remote call fails.
pub fn restore_remotely(
    state: &State,
    calls: &mut Calls<'_>,
    notes: &mut Vec<String>,
) -> Result<(), EngineError> {
    let mut name = state.name.clone();
    name.push(0);
    let address = calls.put(&name)?;
    calls.call(
        "prctl(PR_SET_NAME)",
        libc::SYS_prctl,
        &[libc::PR_SET_NAME as u64, address],
    )?;
    let address = calls.put(&state.alternate_stack.encode())?;
    calls.call("sigaltstack", libc::SYS_sigaltstack, &[address, 0])?;
    calls.call(
        "set_tid_address",
        libc::SYS_set_tid_address,
        &[state.clear_at_exit],
    )?;
    // Also where it is empty: the thread may have one of the process that it was made from.
    calls.call(
        "set_robust_list",
        libc::SYS_set_robust_list,
        &[state.robust_list.0, ROBUST_LIST_HEAD_BYTES],
    )?;
    if let Some(rseq) = state.rseq {
        let arguments = [
            rseq.pointer,
            u64::from(rseq.size),
            0,
            u64::from(rseq.signature),
        ];
        calls.call("rseq", libc::SYS_rseq, &arguments)?;
    }
    let slack = [libc::PR_SET_TIMERSLACK as u64, state.timer_slack];
    calls.call("prctl(PR_SET_TIMERSLACK)", libc::SYS_prctl, &slack)?;
    restore_from_outside(state, calls.remote.tid(), notes);
    Ok(())
}

fn restore_from_outside(state: &State, tid: Pid, notes: &mut Vec<String>) {
    let thread = state.virtual_tid;
    let mut try_to = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            notes.push(format!(
                "the {what} of thread {thread} could not be given back: {error}"
            ));
        }
    };
    if task::affinity(tid).is_ok_and(|mask| mask != state.affinity) {
        try_to(
            "processor affinity",
            task::set_affinity(tid, &state.affinity),
        );
    }
    if task::scheduling(tid).is_ok_and(|now| now != state.scheduling) {
        try_to(
            "scheduling policy",
            task::set_scheduling(tid, &state.scheduling),
        );
    }
    if task::io_priority(tid).is_ok_and(|now| now != state.io_priority) {
        try_to(
            "I/O priority",
            task::set_io_priority(tid, state.io_priority),
        );
    }
}
