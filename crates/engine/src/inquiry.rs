//! What is captured of each process: first what can be seen from outside, then what its threads have to be asked for by remote
//! calls. All threads of all processes are asked at once, once a checkpoint ([`crate::visits`]).

use crate::batch::{Answers, Asked, Batch, Room};
use crate::capture::{SharedContents, SharedPart, living, read_status};
use crate::clocks::monotonic;
use crate::file_policy::Collector;
use crate::freeze::{Frozen, FrozenProcess};
use crate::maps::Vma;
use crate::memory::shared;
use crate::memory::{self, Area, Collected};
use crate::model::Process;
use crate::store::Store;
use crate::timers::Fired;
use crate::tree::Stat;
use crate::visits::{self, Errands};
use crate::{
    EngineError, attributes, capture, credentials, descriptors, faults, signals, threads, timers,
};
use stasis_sys::Pid;
use stasis_tracee::{PendingSignal, SIGINFO_BYTES, Stopped};
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A process as it is seen from outside.
pub(crate) struct Outside {
    /// Its areas.
    pub(crate) vmas: Vec<Vma>,
    status: String,
    threads: Vec<threads::State>,
    queues: Queues,
    attributes: attributes::State,
    layout: memory::layout::State,
    areas: Vec<Area>,
}

impl Outside {
    /// Captures what needs no remote call.
    ///
    /// # Errors
    /// When a thread has died, or something cannot be read.
    pub(crate) fn look(
        frozen: &mut FrozenProcess,
        files: &Collector,
        collected: &mut Collected,
        frozen_at: Instant,
    ) -> Result<Outside, EngineError> {
        let id = living(frozen);
        let status = read_status(id)?;
        let vmas = memory::look(id)?;
        let mut states = Vec::with_capacity(frozen.threads.len());
        for thread in &mut frozen.threads {
            let Some(stopped) = thread.stopped.as_mut() else {
                return Err(EngineError::Gone);
            };
            threads::abort_restartable_sequence(stopped, &frozen.memory)?;
            let room = thread.continued.map(|continued| continued.room);
            let timed_call = thread
                .sleeping
                .map(|sleeping| sleeping.timed_call(frozen_at, room));
            let state = threads::capture(thread.virtual_tid, stopped, timed_call)?;
            states.push(state);
        }
        Ok(Outside {
            threads: states,
            queues: Queues::read(frozen)?,
            attributes: attributes::capture(id, &status)?,
            layout: memory::layout::capture(id, &Stat::read(id).ok_or(EngineError::Gone)?)?,
            areas: memory::areas(frozen.pid, &vmas, files, collected)?,
            vmas,
            status,
        })
    }
}

impl Outside {
    /// Calls that the threads of the process are to make beside the inquiry.
    pub(crate) fn errands<'a>(
        &'a self,
        process: &'a mut FrozenProcess,
        batches: &'a [Batch],
    ) -> Errands<'a> {
        Errands {
            process,
            vmas: &self.vmas,
            status: &self.status,
            batches,
        }
    }
}

/// The signals that wait for a process, and for each of its threads.
struct Queues {
    shared: Vec<PendingSignal>,
    own: Vec<Vec<PendingSignal>>,
}

impl Queues {
    fn read(process: &FrozenProcess) -> Result<Queues, EngineError> {
        let threads: Vec<&Stopped> = process
            .threads
            .iter()
            .map(|thread| thread.stopped.as_ref().ok_or(EngineError::Gone))
            .collect::<Result<_, _>>()?;
        let first = threads.first().ok_or(EngineError::Gone)?;
        Ok(Queues {
            shared: first.pending_shared()?,
            own: threads
                .iter()
                .map(|thread| thread.pending())
                .collect::<Result<_, _>>()?,
        })
    }

    /// What has come since `before`: none is taken while the process stands still, and queues grow at their ends.
    fn since<'a>(&'a self, before: &Queues) -> impl Iterator<Item = &'a PendingSignal> {
        let shared = self.shared.iter().skip(before.shared.len());
        let lengths: Vec<usize> = before.own.iter().map(Vec::len).collect();
        let own = self.own.iter().zip(lengths);
        shared.chain(own.flat_map(|(queue, len)| queue.iter().skip(len)))
    }
}

/// A process of which a timer has fired while it was asked, and what it says of that one afterwards.
struct Again {
    process: usize,
    questions: timers::QuestionsAgain,
    answers: Answers,
}

/// A timer that has fired must be either armed or a signal in a queue, and not both: it is asked about again.
fn ask_again(
    frozen: &mut Frozen,
    outside: &[Outside],
    now: &[Queues],
) -> Result<Vec<Again>, EngineError> {
    let mut asked = Vec::new();
    for (n, (seen, now)) in outside.iter().zip(now).enumerate() {
        if let Some(fired) = Fired::of(now.since(&seen.queues)) {
            let mut batches = vec![Batch::default(); frozen.processes[n].threads.len()];
            let questions = timers::ask_again(&fired, &mut batches[0]);
            asked.push((n, questions, batches));
        }
    }
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let mut next = asked.iter().peekable();
    let mut errands = Vec::new();
    for (n, (process, seen)) in frozen.processes.iter_mut().zip(outside).enumerate() {
        if let Some((_, _, batches)) = next.next_if(|(place, ..)| *place == n) {
            errands.push(Errands {
                process,
                vmas: &seen.vmas,
                status: &seen.status,
                batches,
            });
        }
    }
    let answers = visits::make(errands)?;
    asked
        .into_iter()
        .zip(answers)
        .map(|((process, questions, _), answers)| {
            let answers = answers.into_iter().next().ok_or(EngineError::Gone)?;
            Ok(Again {
                process,
                questions,
                answers,
            })
        })
        .collect()
}

/// The questions that a process is asked, beside the batches that hold them.
struct Questions {
    threads: Vec<threads::Questions>,
    attributes: attributes::Questions,
    layout: Asked,
    signals: signals::Questions,
    timers: timers::Questions,
}

fn questions(frozen: &FrozenProcess) -> (Questions, Vec<Batch>) {
    let mut batches = vec![Batch::default(); frozen.threads.len()];
    let threads = batches.iter_mut().map(threads::ask).collect();
    let threads_by_id: HashMap<Pid, Pid> = frozen
        .threads
        .iter()
        .map(|t| (t.tid, t.virtual_tid))
        .collect();
    let first = &mut batches[0];
    let questions = Questions {
        threads,
        attributes: attributes::ask(first),
        layout: memory::layout::ask(first),
        signals: signals::ask(first),
        timers: timers::ask(living(frozen), &threads_by_id, first),
    };
    (questions, batches)
}

/// A stopped child that its parent is asked about.
struct Stop {
    child: Pid,
    parent: usize,
    asked: Asked,
    room: Room,
}

/// Asks the parents of children that job control has stopped whether they have waited for that stop yet, without consuming
/// anything.
fn ask_for_stops(frozen: &Frozen, batches: &mut [Vec<Batch>]) -> Vec<Stop> {
    let options = (libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT) as u64;
    let mut stops = Vec::new();
    for process in frozen.processes.iter().filter(|p| p.stopped_by.is_some()) {
        let parent = frozen
            .processes
            .iter()
            .position(|parent| parent.pid == process.stat.parent);
        let Some(parent) = parent else { continue };
        let batch = &mut batches[parent][0];
        let room = batch.room(SIGINFO_BYTES as u64);
        let arguments = [
            u64::from(libc::P_PID).into(),
            (process.virtual_pid.0 as u64).into(),
            room.into(),
            options.into(),
            0.into(),
        ];
        stops.push(Stop {
            child: process.pid,
            parent,
            asked: batch.call("waitid", libc::SYS_waitid, &arguments),
            room,
        });
    }
    stops
}

/// A part of a shared object, and how the process that maps it is asked which pages it has.
struct Part {
    object: u32,
    process: usize,
    range: Range<u64>,
    offset: u64,
    fresh: Vec<Range<u64>>,
    /// `None` where all of it is read anyway.
    questions: Option<shared::Questions>,
}

/// Several processes may map different parts of a shared object: each part is read where it is mapped, the first one found.
fn ask_for_shared(
    frozen: &Frozen,
    collected: &mut Collected,
    store: &Store,
    batches: &mut [Vec<Batch>],
) -> Vec<Part> {
    let mut all = Vec::new();
    for (state, mapped) in &mut collected.shared.objects {
        if state.description.is_some() {
            continue;
        }
        let object = store.number();
        state.contents = Some(object);
        let mut covered: Vec<Range<u64>> = Vec::new();
        for place in mapped.iter() {
            let Some(process) = frozen.processes.iter().position(|p| p.pid == place.process) else {
                continue;
            };
            let length = place.range.end - place.range.start;
            let fresh = subtract(place.offset..place.offset + length, &covered);
            if fresh.is_empty() {
                continue;
            }
            covered.extend(fresh.iter().cloned());
            let batch = &mut batches[process][0];
            all.push(Part {
                object,
                process,
                range: place.range.clone(),
                offset: place.offset,
                fresh,
                questions: (!place.swapped).then(|| shared::ask(&place.range, batch)),
            });
        }
    }
    all
}

impl Part {
    fn contents(self, answers: &Answers) -> Result<SharedContents, EngineError> {
        let resident = match &self.questions {
            Some(questions) => shared::resident(questions, answers)?,
            None => vec![self.range.clone()],
        };
        let mut parts = Vec::new();
        for range in resident {
            let offset = range.start - self.range.start + self.offset;
            for piece in intersect(offset..offset + (range.end - range.start), &self.fresh) {
                parts.push(SharedPart {
                    offset: piece.start,
                    len: piece.end - piece.start,
                    address: piece.start - self.offset + self.range.start,
                });
            }
        }
        Ok(SharedContents {
            object: self.object,
            process: self.process,
            parts,
        })
    }
}

/// What all processes were asked, and what they have answered.
pub(crate) struct Inquiry {
    questions: Vec<Questions>,
    answers: Vec<Vec<Answers>>,
    stops: Vec<Stop>,
    parts: Vec<Part>,
    /// The queues after all that.
    queues: Vec<Queues>,
    again: Vec<Again>,
    /// When the answers were there, on the supervisor's clock.
    asked_at: Duration,
    /// The same of the second question.
    asked_again_at: Duration,
}

impl Inquiry {
    /// Asks every thread.
    ///
    /// # Errors
    /// When threads cannot be made to answer.
    pub(crate) fn make(
        frozen: &mut Frozen,
        outside: &[Outside],
        collected: &mut Collected,
        store: &Store,
    ) -> Result<Inquiry, EngineError> {
        let (questions, mut batches): (Vec<_>, Vec<_>) =
            frozen.processes.iter().map(questions).unzip();
        let stops = ask_for_stops(frozen, &mut batches);
        let parts = ask_for_shared(frozen, collected, store, &mut batches);
        let errands = frozen.processes.iter_mut().zip(outside).zip(&batches);
        let errands = errands.map(|((process, seen), batches)| Errands {
            process,
            vmas: &seen.vmas,
            status: &seen.status,
            batches,
        });
        let answers = visits::make(errands.collect())?;
        let asked_at = monotonic();
        faults::linger();
        let queues: Vec<Queues> = frozen
            .processes
            .iter()
            .map(Queues::read)
            .collect::<Result<_, _>>()?;
        let again = ask_again(frozen, outside, &queues)?;
        Ok(Inquiry {
            questions,
            answers,
            stops,
            parts,
            again,
            queues,
            asked_at,
            asked_again_at: monotonic(),
        })
    }

    /// The processes, without parents and descriptors, and the shared memory that is to be written.
    ///
    /// # Errors
    /// When a thread has not answered what it has to.
    pub(crate) fn evaluate(
        self,
        frozen: &Frozen,
        outside: Vec<Outside>,
    ) -> Result<(Vec<Process>, Vec<SharedContents>), EngineError> {
        let stops: HashMap<Pid, bool> = self
            .stops
            .iter()
            .map(|stop| (stop.child, stop.is_reported(&self.answers[stop.parent][0])))
            .collect();
        let mut shared = Vec::new();
        for part in self.parts {
            let answers = &self.answers[part.process][0];
            shared.push(part.contents(answers)?);
        }
        shared.retain(|contents| !contents.parts.is_empty());
        let mut processes = Vec::with_capacity(outside.len());
        let asked = self.questions.into_iter().zip(&self.answers);
        for (((frozen, mut seen), queues), (questions, answers)) in frozen
            .processes
            .iter()
            .zip(outside)
            .zip(self.queues)
            .zip(asked)
        {
            seen.queues = queues;
            let mut process = process(frozen, seen, questions, self.asked_at, answers)?;
            process.stop_reported = stops.get(&frozen.pid).copied().unwrap_or(true);
            processes.push(process);
        }
        for again in &self.again {
            let timers = &mut processes[again.process].timers;
            timers::capture_again(
                timers,
                &again.questions,
                &again.answers,
                self.asked_again_at,
            )?;
        }
        Ok((processes, shared))
    }
}

impl Stop {
    fn is_reported(&self, answers: &Answers) -> bool {
        // The process may have children of another thread's only (__WNOTHREAD is not asked for): an error means no news.
        let news = answers.written::<4>(self.asked, self.room);
        news.map_or(true, |pid| pid == [0; 4])
    }
}

fn process(
    frozen: &FrozenProcess,
    mut seen: Outside,
    questions: Questions,
    asked_at: Duration,
    answers: &[Answers],
) -> Result<Process, EngineError> {
    let asked = questions.threads.iter().zip(answers);
    for (state, (questions, answers)) in seen.threads.iter_mut().zip(asked) {
        threads::complete(state, questions, answers)?;
    }
    let first = answers.first().ok_or(EngineError::Gone)?;
    for (state, pending) in seen.threads.iter_mut().zip(seen.queues.own) {
        state.pending = signals::queue(pending);
    }
    attributes::complete(&mut seen.attributes, &questions.attributes, first)?;
    memory::layout::complete(&mut seen.layout, questions.layout, first)?;
    Ok(Process {
        pid: frozen.virtual_pid,
        parent: Pid(0),
        group: capture::innermost(&seen.status, "NSpgid"),
        session: capture::innermost(&seen.status, "NSsid"),
        stopped_by: frozen.stopped_by,
        stop_reported: true,
        leader_exited: frozen.leader_exited,
        threads: seen.threads,
        memory: memory::State {
            areas: seen.areas,
            layout: seen.layout,
            contents: Store::number_of_memory(frozen.virtual_pid),
            guards: Vec::new(),
            stored: Vec::new(),
        },
        signals: signals::capture(seen.queues.shared, &questions.signals, first)?,
        timers: timers::capture(questions.timers, first, asked_at)?,
        attributes: seen.attributes,
        credentials: credentials::capture(&seen.status),
        descriptors: descriptors::Table::default(),
    })
}

fn subtract(range: Range<u64>, covered: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = vec![range];
    for hole in covered {
        left = left
            .into_iter()
            .flat_map(|r| [r.start..r.end.min(hole.start), r.start.max(hole.end)..r.end])
            .filter(|r| r.start < r.end)
            .collect();
    }
    left
}

fn intersect(range: Range<u64>, pieces: &[Range<u64>]) -> Vec<Range<u64>> {
    pieces
        .iter()
        .map(|piece| range.start.max(piece.start)..range.end.min(piece.end))
        .filter(|r| r.start < r.end)
        .collect()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut() {
        assert_eq!(subtract(0..10, &[2..4, 8..20]), vec![0..2, 4..8]);
        assert_eq!(subtract(0..10, &[0..10]), Vec::<Range<u64>>::new());
        assert_eq!(intersect(3..9, &[0..4, 8..20]), vec![3..4, 8..9]);
    }
}
