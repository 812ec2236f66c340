//! What processes undo of semaphores when they end (`SEM_UNDO`, `semop(2)`).
//!
//! Saved: for each process the adjustments that it has for each semaphore. The threads of a process share them.
//!
//! Refused by name: adjustments that several processes share, and threads that have some of their own (`CLONE_SYSVSEM`, `clone(2)`).
//!
//! The kernel shows adjustments nowhere. kcmp(2) tells whether a process has a list of them at all: the keeper, which uses no semaphores,
//! has none to compare with. Whoever has is made to ask, by calls to semop(2) that always fail and so change nothing: a call's operations
//! are done all or not at all, one after the other (`perform_atomic_semop_slow`, `ipc/sem.c`). Raising a semaphore by k and lowering it again
//! with SEM_UNDO adds k to the adjustment; if that goes beyond 32767, the call fails with `ERANGE`. Otherwise it comes to a last
//! operation that would have to wait, and fails with `EAGAIN`. So the adjustment is found by halving. It harms nobody when the
//! supervisor dies in the midst of it. All that it leaves is room for adjustments, all zero, in the list of that process.
//!
//! At a restart each process makes its adjustments in the same way, by calls that do not fail and leave the value as it is.

use super::Kind;
use super::semaphores::{self, MOST};
use crate::batch::{Answers, Asked, Batch};
use crate::calls::Calls;
use crate::error::Context;
use crate::freeze::Frozen;
use crate::inquiry::Outside;
use crate::{EngineError, Refusal, visits};
use serde::{Deserialize, Serialize};
use stasis_sys::sysv::semaphore_operation;
use stasis_sys::{Pid, kcmp};
use stasis_tracee::TraceError;
use std::cmp::Ordering;

/// What one process undoes of one set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The process, as the program knows it.
    pub process: Pid,
    /// The set.
    pub set: i32,
    /// Numbers of semaphores, and what is added to each.
    pub adjustments: Vec<(u16, i16)>,
}

const SEM_UNDO: i32 = 0x1000;
/// The largest change that one operation makes.
const STEP: i32 = MOST as i32;

/// The operations of a call that fails with `ERANGE` if the adjustment is at least `least`, and otherwise with `EAGAIN`, for a semaphore
/// that has the value `value`.
fn probe(number: u16, value: u16, least: i32) -> Vec<u8> {
    let mut operations = Vec::new();
    let mut add = |change: i32, flags: i32| {
        let change = change.clamp(i32::from(i16::MIN), STEP) as i16;
        operations.extend(semaphore_operation(
            number,
            change,
            flags | libc::IPC_NOWAIT,
        ));
    };
    if value > 0 {
        add(-i32::from(value), 0);
    }
    let mut left = STEP + 1 - least;
    while left > 0 {
        let step = left.min(STEP);
        add(step, 0);
        add(-step, SEM_UNDO);
        left -= step;
    }
    // No semaphore has as much.
    add(-STEP - 1, 0);
    operations
}

/// The calls that give an adjustment of zero the value `adjustment`, and leave the semaphore's as it is.
fn adjust(number: u16, value: u16, adjustment: i16) -> Vec<u8> {
    let mut operations = Vec::new();
    let mut add = |change: i32, flags: i32| {
        operations.extend(semaphore_operation(number, change as i16, flags));
    };
    if value > 0 {
        add(-i32::from(value), 0);
    }
    let mut left = i32::from(adjustment);
    while left != 0 {
        let step = left.clamp(-STEP, STEP);
        if step > 0 {
            add(step, 0);
            add(-step, SEM_UNDO);
        } else {
            add(-step, SEM_UNDO);
            add(step, 0);
        }
        left -= step;
    }
    if value > 0 {
        add(i32::from(value), 0);
    }
    operations
}

/// An adjustment that is being looked for: it lies between the two, which it may be.
#[derive(Clone, Debug)]
struct Search {
    set: i32,
    number: u16,
    value: u16,
    low: i32,
    high: i32,
}

/// So many parts an interval is cut into by one visit.
const PARTS: i32 = 16;

impl Search {
    fn new(set: i32, number: u16, value: u16) -> Search {
        Search {
            set,
            number,
            value,
            low: i32::from(i16::MIN),
            high: STEP,
        }
    }

    fn is_done(&self) -> bool {
        self.low == self.high
    }

    /// What is asked next: whether the adjustment is at least that much. Ascending.
    fn thresholds(&self) -> Vec<i32> {
        if self.low < 0 && self.high > 0 {
            // Most are zero.
            return vec![0, 1];
        }
        let step = (self.high - self.low).div_euclid(PARTS).max(1);
        (self.low + 1..=self.high)
            .step_by(step as usize)
            .take(PARTS as usize)
            .collect()
    }

    fn learn(&mut self, least: i32, reached: bool) {
        if reached {
            self.low = self.low.max(least);
        } else {
            self.high = self.high.min(least - 1);
        }
    }
}

/// Which processes have adjustments, by their places.
///
/// # Errors
/// [`EngineError::Refused`] where they are shared.
fn holders(frozen: &Frozen, keeper: Pid) -> Result<Vec<usize>, EngineError> {
    let same = |a: Pid, b: Pid| {
        kcmp::semaphore_undo(a, b)
            .map(|order| order == Ordering::Equal)
            .context(|| format!("comparing what threads {a} and {b} undo"))
    };
    let mut refusals = Vec::new();
    let mut holders: Vec<usize> = Vec::new();
    for (place, process) in frozen.processes.iter().enumerate() {
        let mut refuse = |reason: String, hint: &str| {
            refusals.push(Refusal {
                pid: Some(process.virtual_pid),
                process: process.stat.comm.clone(),
                object: "what it undoes of semaphores when it ends (SEM_UNDO)".into(),
                reason,
                hint: hint.into(),
            });
        };
        let Some(first) = process.threads.first() else {
            continue;
        };
        for thread in process.threads.iter().skip(1) {
            if !same(first.tid, thread.tid)? {
                let reason = format!("thread {} has its own (unshare(2))", thread.virtual_tid);
                refuse(reason, "checkpoint when that thread has ended");
            }
        }
        if same(first.tid, keeper)? {
            continue;
        }
        for other in &holders {
            let other = &frozen.processes[*other];
            let there = other.threads.first().map_or(other.pid, |thread| thread.tid);
            if same(first.tid, there)? {
                let reason = format!(
                    "it is shared with process {} (CLONE_SYSVSEM)",
                    other.virtual_pid
                );
                refuse(reason, "checkpoint when one of the two has ended");
                break;
            }
        }
        holders.push(place);
    }
    if refusals.is_empty() {
        Ok(holders)
    } else {
        Err(EngineError::Refused(refusals))
    }
}

/// More is not asked in one visit.
const AT_ONCE: usize = 512;

/// Finds the adjustments that processes have for `sets`.
///
/// # Errors
/// [`EngineError::Refused`]; when threads cannot be made to ask.
pub(crate) fn capture(
    frozen: &mut Frozen,
    outside: &[Outside],
    keeper: Pid,
    sets: &[semaphores::State],
) -> Result<Vec<State>, EngineError> {
    if sets.is_empty() {
        return Ok(Vec::new());
    }
    let holders = holders(frozen, keeper)?;
    let all = sets.iter().flat_map(|set| {
        let values = set.values.iter().enumerate();
        values.map(|(number, value)| Search::new(set.object.id, number as u16, *value))
    });
    let mut searches: Vec<Vec<Search>> = vec![all.collect(); holders.len()];
    while searches.iter().flatten().any(|search| !search.is_done()) {
        round(frozen, outside, &holders, &mut searches)?;
    }
    let mut states = Vec::new();
    for (place, searches) in holders.into_iter().zip(searches) {
        for set in sets {
            let found = searches
                .iter()
                .filter(|search| search.set == set.object.id && search.low != 0);
            let adjustments: Vec<_> = found
                .map(|search| (search.number, search.low as i16))
                .collect();
            if !adjustments.is_empty() {
                states.push(State {
                    process: frozen.processes[place].virtual_pid,
                    set: set.object.id,
                    adjustments,
                });
            }
        }
    }
    Ok(states)
}

/// A question: which search, from where on, and the call.
type Question = (usize, i32, Asked);

/// One visit to each process that has something left to find.
fn round(
    frozen: &mut Frozen,
    outside: &[Outside],
    holders: &[usize],
    searches: &mut [Vec<Search>],
) -> Result<(), EngineError> {
    let mut asked: Vec<(usize, Vec<Question>, Vec<Batch>)> = Vec::new();
    for (holder, searches) in searches.iter().enumerate() {
        let mut batch = Batch::default();
        let mut questions = Vec::new();
        let open = searches.iter().enumerate().filter(|(_, s)| !s.is_done());
        for (n, search) in open.take(AT_ONCE) {
            for least in search.thresholds() {
                let operations = probe(search.number, search.value, least);
                let count = operations.len() as u64 / 6;
                let room = batch.room_with(&operations);
                let arguments = [(search.set as u64).into(), room.into(), count.into()];
                let call = batch.call("semop", libc::SYS_semop, &arguments);
                questions.push((n, least, call));
            }
        }
        if !batch.is_empty() {
            asked.push((holder, questions, vec![batch]));
        }
    }
    let mut errands = Vec::new();
    let mut next = asked.iter().peekable();
    for (place, (process, seen)) in frozen.processes.iter_mut().zip(outside).enumerate() {
        if let Some((_, _, batches)) = next.next_if(|(holder, ..)| holders[*holder] == place) {
            errands.push(seen.errands(process, batches));
        }
    }
    let answers = visits::make(errands)?;
    for ((holder, questions, _), answers) in asked.iter().zip(answers) {
        let answers = answers.first().ok_or(EngineError::Gone)?;
        for (n, least, call) in questions {
            let search = &mut searches[*holder][*n];
            let process = &frozen.processes[holders[*holder]];
            let reached = reached(answers, *call).map_err(|error| {
                EngineError::Refused(vec![Refusal {
                    pid: Some(process.virtual_pid),
                    process: process.stat.comm.clone(),
                    object: Kind::Set.words(search.set),
                    reason: format!(
                        "what the process undoes of it when it ends cannot be found: {error}"
                    ),
                    hint: "give the program the right to change it (mode 0600 or more)".into(),
                }])
            })?;
            search.learn(*least, reached);
        }
    }
    Ok(())
}

/// Whether the adjustment is so large.
fn reached(answers: &Answers, call: Asked) -> Result<bool, TraceError> {
    match answers.result(call) {
        Err(TraceError::Call { source, .. }) if source.raw_os_error() == Some(libc::ERANGE) => {
            Ok(true)
        }
        Err(TraceError::Call { source, .. }) if source.raw_os_error() == Some(libc::EAGAIN) => {
            Ok(false)
        }
        Err(error) => Err(error),
        // It cannot succeed.
        Ok(_) => Ok(false),
    }
}

/// Gives `process`, which makes the calls, its adjustments.
///
/// # Errors
/// When a remote call fails.
pub fn restore(
    undo: &[State],
    sets: &[semaphores::State],
    process: Pid,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    for state in undo.iter().filter(|state| state.process == process) {
        let values = sets
            .iter()
            .find(|set| set.object.id == state.set)
            .map_or(&[][..], |set| &set.values);
        for (number, adjustment) in &state.adjustments {
            let value = values.get(usize::from(*number)).copied().unwrap_or(0);
            semaphores::operate(state.set, &adjust(*number, value, *adjustment), calls)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does.
    fn kernel(operations: &[u8], value: &mut i32, adjustment: &mut i32) -> Result<(), i32> {
        let (mut new_value, mut new_adjustment) = (*value, *adjustment);
        for operation in operations.chunks(6) {
            let change = i32::from(i16::from_ne_bytes([operation[2], operation[3]]));
            let flags = i32::from(i16::from_ne_bytes([operation[4], operation[5]]));
            match new_value + change {
                below if below < 0 => return Err(libc::EAGAIN),
                above if above > STEP => return Err(libc::ERANGE),
                other => new_value = other,
            }
            if flags & SEM_UNDO != 0 {
                new_adjustment -= change;
                if !(-STEP - 1..=STEP).contains(&new_adjustment) {
                    return Err(libc::ERANGE);
                }
            }
        }
        (*value, *adjustment) = (new_value, new_adjustment);
        Ok(())
    }

    #[test]
    fn every_adjustment_is_found_and_made_again() {
        for value in [0, 1, 5, 32766, 32767u16] {
            for adjustment in [-32768, -32767, -300, -1, 0, 1, 2, 17, 32766, 32767] {
                let mut search = Search::new(0, 0, value);
                let mut rounds = 0;
                while !search.is_done() {
                    rounds += 1;
                    for least in search.thresholds() {
                        let (mut v, mut a) = (i32::from(value), adjustment);
                        let error = kernel(&probe(0, value, least), &mut v, &mut a);
                        search.learn(least, error == Err(libc::ERANGE));
                        assert_eq!((v, a), (i32::from(value), adjustment));
                    }
                }
                assert!(rounds < 8, "{rounds} rounds");
                assert_eq!(search.low, adjustment, "value {value}");
                let (mut v, mut a) = (i32::from(value), 0);
                kernel(&adjust(0, value, adjustment as i16), &mut v, &mut a).expect("allowed");
                assert_eq!((v, a), (i32::from(value), adjustment));
            }
        }
    }
}
