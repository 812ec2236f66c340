//! Visits: threads of a frozen program make the calls of their batches, all threads of all processes at once, and are as they
//! were afterwards.
//!
//! The first thread of each process maps a scratch area: the code of the slots, which can be executed and not written, and their
//! tables and answers, which can be written and not executed. Then every thread makes its calls, and the first one unmaps the
//! area. The code for mapping and unmapping it stands meanwhile in the zeros that end the vdso.
//!
//! A supervisor that dies in the midst of it leaves threads that finish by themselves ([`stasis_tracee::slot`]), and the
//! scratch areas. Where a kernel's vdso has no such zeros, the two calls that map and unmap are made in single steps, and a
//! supervisor that dies within one of these takes the process along.

use crate::batch::{Answers, Batch};
use crate::error::Context;
use crate::freeze::FrozenProcess;
use crate::maps::{self, Vma};
use crate::memory::vdso;
use crate::{EngineError, faults, signals};
use stasis_sys::pagemap::PAGE;
use stasis_sys::signal::SignalSet;
use stasis_tracee::arch::code;
use stasis_tracee::slot::{self, Call, Excursion, Slot};
use stasis_tracee::{Remote, TraceError};
use std::ops::Range;

/// What the threads of one process are to do.
pub struct Errands<'a> {
    /// The process.
    pub process: &'a mut FrozenProcess,
    /// Its areas.
    pub vmas: &'a [Vma],
    /// Its `/proc/PID/status`.
    pub status: &'a str,
    /// A batch for each of its threads, as many as are to make calls, the first one's first.
    pub batches: &'a [Batch],
}

/// Lets threads make their calls. The answers are in the order of the errands, and of the batches of each.
///
/// # Errors
/// When a thread cannot be made to do its calls. Every thread is as it was, or finds its way back by itself.
pub fn make(errands: Vec<Errands<'_>>) -> Result<Vec<Vec<Answers>>, EngineError> {
    let mut visits: Vec<Visit<'_>> = Vec::with_capacity(errands.len());
    for errand in errands {
        match Visit::plan(errand) {
            Ok(visit) => visits.push(visit),
            Err(error) => {
                visits
                    .iter_mut()
                    .for_each(|visit| visit.fail(EngineError::Gone));
                return Err(error);
            }
        }
    }
    for stage in STAGES {
        for visit in &mut visits {
            visit.attempt(|visit| {
                (stage.aim)(visit)?;
                faults::pass(stage.aimed)?;
                visit.go()
            });
        }
        fault(&mut visits, stage.called);
        let mut waiting = true;
        while waiting {
            waiting = false;
            for visit in &mut visits {
                waiting |= visit.advance();
            }
        }
        fault(&mut visits, stage.noticed);
        for visit in &mut visits {
            visit.attempt(|visit| (stage.end)(visit));
        }
    }
    let mut answers = Vec::with_capacity(visits.len());
    let mut failure = None;
    for visit in visits {
        match visit.failure {
            None => answers.push(visit.answers),
            // That one has died is the least of the news.
            Some(error) => failure = failure.filter(|first| !is_death(first)).or(Some(error)),
        }
    }
    failure.map_or(Ok(answers), Err)
}

fn is_death(error: &EngineError) -> bool {
    matches!(error, EngineError::Tracee(error) if error.is_death())
}

/// A step of all visits, with the names of its fault points: threads are aimed at a slot, run, have given notice.
struct Stage {
    aimed: &'static str,
    called: &'static str,
    noticed: &'static str,
    aim: fn(&mut Visit<'_>) -> Result<(), EngineError>,
    end: fn(&mut Visit<'_>) -> Result<(), EngineError>,
}

const STAGES: [Stage; 3] = [
    Stage {
        aimed: "mapping-aimed",
        called: "mapping-called",
        noticed: "mapping-noticed",
        aim: |visit| visit.aim_at_mapping(),
        end: |visit| visit.end_mapping(),
    },
    Stage {
        aimed: "asking-aimed",
        called: "asking-called",
        noticed: "asking-noticed",
        aim: |visit| visit.aim_at_asking(),
        end: |visit| visit.end_asking(),
    },
    Stage {
        aimed: "unmapping-aimed",
        called: "unmapping-called",
        noticed: "unmapping-noticed",
        aim: |visit| visit.aim_at_unmapping(),
        end: |visit| visit.end_unmapping(),
    },
];

fn fault(visits: &mut [Visit<'_>], step: &str) {
    if let (Err(error), Some(visit)) = (faults::pass(step), visits.first_mut()) {
        visit.fail(error);
    }
}

/// Where calls are made before there is a scratch area, and when it goes.
#[derive(Clone)]
enum Threshold {
    /// The zeros at the end of the vdso.
    Padding(Range<u64>),
    /// A `syscall` instruction.
    Instruction(u64),
}

/// Where the parts of a scratch area are.
struct Scratch {
    /// The loop, then the tails.
    code: Range<u64>,
    /// The tables, then the rooms.
    data: Range<u64>,
    /// Where each thread's table is.
    tables: Vec<Range<u64>>,
    /// Where each thread's rooms are.
    rooms: Vec<Range<u64>>,
}

struct Visit<'a> {
    process: &'a mut FrozenProcess,
    batches: &'a [Batch],
    threshold: Threshold,
    ignores_trap: bool,
    scratch: Scratch,
    /// Each thread's, while it is away, and whether it is still to give notice.
    away: Vec<Option<(Excursion, bool)>>,
    /// Bytes of the vdso's padding that are in use.
    written: u64,
    answers: Vec<Answers>,
    /// What the mapping of the scratch area came to.
    mapped: Result<(), TraceError>,
    failure: Option<EngineError>,
}

/// Calls that map a scratch area.
const MAPPINGS: usize = 2;
/// A tail is shorter than this.
const TAIL_ROOM: u64 = 256;
/// The loop is shorter than this.
const LOOP_ROOM: u64 = 64;

impl<'a> Visit<'a> {
    fn plan(errands: Errands<'a>) -> Result<Visit<'a>, EngineError> {
        let Errands {
            process,
            vmas,
            status,
            batches,
        } = errands;
        let threshold = match vdso::padding(vmas, &process.memory)? {
            Some(padding) => Threshold::Padding(padding),
            None => Threshold::Instruction(vdso::syscall_instruction(vmas, &process.memory)?),
        };
        let handled = signals::handled(status);
        let scratch = Scratch::plan(batches, vmas).ok_or_else(|| {
            EngineError::Failed(format!(
                "process {} has no free address",
                process.virtual_pid
            ))
        })?;
        let mut visit = Visit {
            process,
            batches,
            threshold,
            ignores_trap: signals::ignores_trap(status),
            scratch,
            away: Vec::with_capacity(batches.len()),
            written: 0,
            answers: Vec::new(),
            mapped: Ok(()),
            failure: None,
        };
        match visit.set_out(handled) {
            Ok(()) => Ok(visit),
            Err(error) => {
                visit.fail(EngineError::Gone);
                Err(error)
            }
        }
    }

    fn set_out(&mut self, handled: SignalSet) -> Result<(), EngineError> {
        let process = self.process.virtual_pid;
        for thread in self.process.threads.iter_mut().take(self.batches.len()) {
            let identity = slot::Identity {
                process,
                thread: thread.virtual_tid,
                handled,
            };
            let stopped = thread.stopped.take().ok_or(EngineError::Gone)?;
            self.away
                .push(Some((Excursion::begin(stopped, &identity)?, false)));
        }
        Ok(())
    }

    /// Does a step, unless an earlier one has failed. If it fails, the threads that are away are left to themselves.
    fn attempt(&mut self, step: impl FnOnce(&mut Visit<'a>) -> Result<(), EngineError>) {
        if self.failure.is_none()
            && let Err(error) = step(self)
        {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: EngineError) {
        self.failure.get_or_insert(error);
        for (excursion, _) in self.away.iter_mut().filter_map(Option::take) {
            excursion.abandon();
        }
    }

    fn go(&mut self) -> Result<(), EngineError> {
        for (excursion, waiting) in self.away.iter().flatten() {
            if *waiting {
                excursion.go()?;
            }
        }
        Ok(())
    }

    /// Waits for one stop of each thread that is still to give notice, and tells whether any is left.
    fn advance(&mut self) -> bool {
        let mut left = false;
        let mut failure = None;
        for (excursion, waiting) in self.away.iter_mut().flatten() {
            if !*waiting {
                continue;
            }
            match excursion.advance() {
                Ok(done) => *waiting = !done,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
            left |= *waiting;
        }
        if let Some(error) = failure {
            self.fail(error.into());
            return false;
        }
        left
    }

    fn first(&mut self) -> Result<&mut (Excursion, bool), EngineError> {
        let first = self.away.first_mut().and_then(Option::as_mut);
        first.ok_or(EngineError::Gone)
    }

    fn write(&self, bytes: &[u8], address: u64) -> Result<(), EngineError> {
        let writing = || format!("writing to process {}", self.process.virtual_pid);
        self.process.memory.write(bytes, address).context(writing)
    }

    /// Aims the first thread at calls that the vdso's padding holds the code for; without padding they are made at once.
    fn aim_at_threshold(&mut self, calls: &[Call]) -> Result<(), EngineError> {
        match self.threshold.clone() {
            Threshold::Padding(padding) => {
                let slot: Slot = self.first()?.0.row(calls);
                if slot.code.len() as u64 > padding.end - padding.start {
                    return Err(EngineError::Failed("the vdso has too little room".into()));
                }
                self.written = self.written.max(slot.code.len() as u64);
                self.write(&slot.code, padding.start)?;
                let (excursion, waiting) = self.first()?;
                excursion.aim(&slot, padding.start)?;
                *waiting = true;
            }
            Threshold::Instruction(instruction) => {
                let Some((excursion, _)) = self.away.first_mut().and_then(Option::take) else {
                    return Err(EngineError::Gone);
                };
                let identity = *excursion.identity();
                let mut remote =
                    Remote::begin(excursion.finish()?, instruction, self.ignores_trap)?;
                for call in calls {
                    let made = remote.call("mapping scratch memory", call.number, &call.arguments);
                    self.mapped = std::mem::replace(&mut self.mapped, Ok(())).and(made.map(drop));
                }
                let excursion = Excursion::begin(remote.finish()?, &identity)?;
                self.away[0] = Some((excursion, false));
            }
        }
        Ok(())
    }

    fn aim_at_mapping(&mut self) -> Result<(), EngineError> {
        let map = |range: &Range<u64>, protection: i32| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let len = range.end - range.start;
            Call::new(
                libc::SYS_mmap,
                &[range.start, len, protection as u64, flags as u64, u64::MAX],
            )
        };
        let calls: [Call; MAPPINGS] = [
            map(&self.scratch.code, libc::PROT_READ | libc::PROT_EXEC),
            map(&self.scratch.data, libc::PROT_READ | libc::PROT_WRITE),
        ];
        self.aim_at_threshold(&calls)
    }

    fn end_mapping(&mut self) -> Result<(), EngineError> {
        if let Threshold::Padding(_) = self.threshold {
            let excursion = &self.first()?.0;
            let tid = excursion.tid();
            for result in excursion.results(MAPPINGS)? {
                let mapped = slot::outcome("mapping scratch memory", tid, result).map(drop);
                self.mapped = std::mem::replace(&mut self.mapped, Ok(())).and(mapped);
            }
        }
        Ok(())
    }

    fn aim_at_asking(&mut self) -> Result<(), EngineError> {
        if self.mapped.is_err() {
            return Ok(());
        }
        let (start, data) = (self.scratch.code.start, self.scratch.data.start);
        let mut code = code::table_loop();
        let mut tables = Vec::new();
        let places = self.scratch.tables.iter().zip(&self.scratch.rooms);
        for (n, ((excursion, _), (table, rooms))) in
            self.away.iter().flatten().zip(places).enumerate()
        {
            let offset = LOOP_ROOM + n as u64 * TAIL_ROOM;
            code.resize(offset as usize, 0);
            code.extend(excursion.tail());
            tables.resize((table.start - data) as usize, 0);
            tables.extend(excursion.table(&self.batches[n].at(rooms.start), start + offset));
        }
        self.write(&code, start)?;
        self.write(&tables, data)?;
        for (batch, rooms) in self.batches.iter().zip(&self.scratch.rooms) {
            if !batch.contents().is_empty() {
                self.write(batch.contents(), rooms.start)?;
            }
        }
        let tables = self.scratch.tables.iter();
        for (slot, (table, batch)) in self.away.iter_mut().zip(tables.zip(self.batches)) {
            let (excursion, waiting) = slot.as_mut().ok_or(EngineError::Gone)?;
            excursion.aim_at_table(start, table.start, batch.len())?;
            *waiting = true;
        }
        Ok(())
    }

    fn end_asking(&mut self) -> Result<(), EngineError> {
        if self.mapped.is_err() {
            return Ok(());
        }
        let data = &self.scratch.data;
        let mut bytes = vec![0; (data.end - data.start) as usize];
        let reading = || format!("reading from process {}", self.process.virtual_pid);
        self.process
            .memory
            .read(&mut bytes, data.start)
            .context(reading)?;
        let part = |range: &Range<u64>| {
            &bytes[(range.start - data.start) as usize..(range.end - data.start) as usize]
        };
        for (n, batch) in self.batches.iter().enumerate() {
            let (excursion, _) = self.away[n].as_ref().ok_or(EngineError::Gone)?;
            let table = part(&self.scratch.tables[n]);
            let mut results: Vec<i64> = (0..batch.len())
                .filter_map(|call| slot::result_in(table, call))
                .collect();
            if let (Some(last), Some(result)) = (results.last_mut(), excursion.last_result()?) {
                *last = result;
            }
            self.answers.push(Answers {
                tid: excursion.tid(),
                results,
                rooms: part(&self.scratch.rooms[n]).to_vec(),
            });
        }
        for n in 1..self.away.len() {
            self.bring_back(n)?;
        }
        Ok(())
    }

    fn bring_back(&mut self, n: usize) -> Result<(), EngineError> {
        if let Some((excursion, _)) = self.away[n].take() {
            self.process.threads[n].stopped = Some(excursion.finish()?);
        }
        Ok(())
    }

    fn aim_at_unmapping(&mut self) -> Result<(), EngineError> {
        let (start, end) = (self.scratch.code.start, self.scratch.data.end);
        self.aim_at_threshold(&[Call::new(libc::SYS_munmap, &[start, end - start])])
    }

    fn end_unmapping(&mut self) -> Result<(), EngineError> {
        for n in 0..self.away.len() {
            self.bring_back(n)?;
        }
        if let Threshold::Padding(padding) = &self.threshold {
            self.write(&vec![0; self.written as usize], padding.start)?;
        }
        std::mem::replace(&mut self.mapped, Ok(())).map_err(EngineError::from)
    }
}

impl Scratch {
    fn plan(batches: &[Batch], vmas: &[Vma]) -> Option<Scratch> {
        let ranges: Vec<Range<u64>> = vmas.iter().map(|vma| vma.range.clone()).collect();
        let code = (LOOP_ROOM + batches.len() as u64 * TAIL_ROOM).next_multiple_of(PAGE);
        // One more for the notice, one for the end.
        let table = |batch: &Batch| (batch.len() as u64 + 2) * code::ENTRY;
        let data: u64 = batches
            .iter()
            .map(|batch| table(batch) + batch.rooms())
            .sum();
        let data = data.next_multiple_of(PAGE);
        let start = maps::find_hole(&ranges, code + data)?;
        let mut at = start + code;
        let mut take = |len: u64| {
            at += len;
            at - len..at
        };
        Some(Scratch {
            code: start..start + code,
            data: start + code..start + code + data,
            tables: batches.iter().map(|batch| take(table(batch))).collect(),
            rooms: batches.iter().map(|batch| take(batch.rooms())).collect(),
        })
    }
}
