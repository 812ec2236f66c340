//! Signals of a process: what it does with them, and which wait for it.
//!
//! Saved: handlers with their flags, masks and restorers; signals queued for the process, with the whole of their
//! `siginfo_t`. (Masks and signals queued for one thread are with [`crate::threads`].)
//!
//! Rests on: every signal is asked for, as flags and masks are kept with the default action too, and SA_NOCLDWAIT counts even then.
//! A thread may queue any siginfo to itself, whatever its code says of its origin (`do_rt_sigqueueinfo`, `kernel/signal.c`).

use crate::EngineError;
use crate::batch::{Answers, Asked, Batch, Room};
use crate::calls::Calls;
use crate::conformance::Claim;
use crate::tree::status_field;
use serde::{Deserialize, Serialize};
use stasis_sys::Pid;
use stasis_sys::signal::SignalSet;
use stasis_tracee::PendingSignal;

pub(crate) const PENDING: Claim = Claim::kept(
    "signal that waits",
    "with its value and sender",
    &["signals::pending", "signals::counted"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    Claim::kept(
        "handlers, ignored signals, masks",
        "",
        &[
            "signals::dispositions",
            "signals::ignored",
            "signals::in_handler",
        ],
    ),
    PENDING,
];

/// A waiting signal: the kernel's `siginfo_t`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl Queued {
    /// The signal's number.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.0
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, i32::from_ne_bytes)
    }
}

pub(crate) fn queue(pending: Vec<PendingSignal>) -> Vec<Queued> {
    pending
        .into_iter()
        .map(|info| Queued(info.to_vec()))
        .collect()
}

/// What a process does with a signal: the kernel's `struct sigaction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Address, 0 for the default, 1 to ignore.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where handlers return to.
    pub restorer: u64,
    /// Blocked meanwhile.
    pub mask: u64,
}

const ACTION_BYTES: usize = 32;
/// SIGCANCEL and SIGSETXID of glibc: sigaction(3) does not touch them.
const LIBRARY_SIGNALS: [i32; 2] = [32, 33];

impl Action {
    fn decode(bytes: &[u8; ACTION_BYTES]) -> Action {
        let word = |at: usize| {
            bytes[at..at + 8]
                .iter()
                .rev()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        Action {
            handler: word(0),
            flags: word(8),
            restorer: word(16),
            mask: word(24),
        }
    }

    fn encode(self) -> [u8; ACTION_BYTES] {
        let mut bytes = [0; ACTION_BYTES];
        for (chunk, word) in
            bytes
                .chunks_exact_mut(8)
                .zip([self.handler, self.flags, self.restorer, self.mask])
        {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// A process's signals.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Every action that is not the default one.
    pub actions: Vec<(i32, Action)>,
    /// Signals queued for the process, oldest first.
    pub pending: Vec<Queued>,
}

fn set(status: &str, field: &str) -> SignalSet {
    SignalSet(
        status_field(status, field)
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .unwrap_or(0),
    )
}

/// Whether the process ignores SIGTRAP (see [`stasis_tracee::Remote::begin`]).
#[must_use]
pub fn ignores_trap(status: &str) -> bool {
    set(status, "SigIgn").contains(libc::SIGTRAP)
}

/// The signals that have a handler.
#[must_use]
pub fn handled(status: &str) -> SignalSet {
    set(status, "SigCgt")
}

/// The questions that [`ask`] has put to a process.
pub struct Questions(Vec<(i32, Asked, Room)>);

/// Asks a process for its actions.
#[must_use]
pub fn ask(batch: &mut Batch) -> Questions {
    let asked = SignalSet::ALL.without(libc::SIGKILL).without(libc::SIGSTOP);
    let asked = asked.iter().map(|signal| {
        let room = batch.room(ACTION_BYTES as u64);
        let arguments = [(signal as u64).into(), 0.into(), room.into(), 8.into()];
        let asked = batch.call("rt_sigaction", libc::SYS_rt_sigaction, &arguments);
        (signal, asked, room)
    });
    Questions(asked.collect())
}

/// Captures the actions; the queue was read from outside.
///
/// # Errors
/// When a remote call has failed.
pub fn capture(
    pending: Vec<PendingSignal>,
    questions: &Questions,
    answers: &Answers,
) -> Result<State, EngineError> {
    let mut actions = Vec::new();
    for (signal, asked, room) in &questions.0 {
        let action = Action::decode(&answers.written(*asked, *room)?);
        if action != Action::default() {
            actions.push((*signal, action));
        }
    }
    Ok(State {
        actions,
        pending: queue(pending),
    })
}

/// Gives a new process, all of whose actions are the default ones, its actions.
///
/// # Errors
/// When a remote call fails.
pub fn restore_actions(state: &State, calls: &mut Calls<'_>) -> Result<(), EngineError> {
    // The two that the C library keeps for itself may be in use by the code that made the process.
    let reserved = LIBRARY_SIGNALS.map(|signal| (signal, Action::default()));
    let missing = |signal: i32| state.actions.iter().all(|(other, _)| *other != signal);
    let reset = reserved.iter().filter(|(signal, _)| missing(*signal));
    for (signal, action) in state.actions.iter().chain(reset) {
        let address = calls.put(&action.encode())?;
        calls.call(
            "rt_sigaction",
            libc::SYS_rt_sigaction,
            &[*signal as u64, address, 0, 8],
        )?;
    }
    Ok(())
}

/// Queues signals to the process, by one of its threads, which blocks all of them at that moment.
///
/// # Errors
/// When a remote call fails.
pub fn requeue_shared(
    queued: &[Queued],
    process: Pid,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    for signal in queued {
        let address = calls.put(&signal.0)?;
        let arguments = [process.0 as u64, signal.number() as u64, address];
        calls.call("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, &arguments)?;
    }
    Ok(())
}

/// Queues signals to one thread, by that thread itself.
///
/// # Errors
/// When a remote call fails.
pub fn requeue_to_thread(
    queued: &[Queued],
    process: Pid,
    thread: Pid,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    for signal in queued {
        let address = calls.put(&signal.0)?;
        let arguments = [
            process.0 as u64,
            thread.0 as u64,
            signal.number() as u64,
            address,
        ];
        calls.call("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, &arguments)?;
    }
    Ok(())
}
