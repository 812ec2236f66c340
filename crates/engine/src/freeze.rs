//! Stopping every thread of a tree at one moment, and letting all of them go again.
//!
//! Each thread is seized and interrupted; from then on what it forks is traced from birth, so that after a round in which
//! nothing new was found the tree is complete (`ptrace(2)`, `PTRACE_O_TRACECLONE` and its like). The tree cannot be read at one
//! instant: the children of a process that ends meanwhile become the keeper's, whose children were read before. So the last
//! round must also find the same processes as the one before. Zombies cannot be traced and
//! need not be: their status is all that is left of them. Dropping a [`Frozen`] lets the program run on.

use crate::EngineError;
use crate::error::Context;
use crate::interruptions::{self, Continued};
use crate::timed_calls::{self, Sleeping};
use crate::tree::{self, Stat};
use stasis_sys::{Pid, procfs};
use stasis_tracee::{Born, Memory, Running, Stop, Stopped, TraceError, Withheld};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// One stopped thread.
#[derive(Debug)]
pub struct FrozenThread {
    /// The supervisor's number.
    pub tid: Pid,
    /// The program's number.
    pub virtual_tid: Pid,
    /// The stop; taken out while remote calls are made.
    pub stopped: Option<Stopped>,
    /// The call that it is stopped in, where that has a time limit.
    pub sleeping: Option<Sleeping>,
    /// Where it continues that call, if it has to.
    pub continued: Option<Continued>,
}

/// One stopped process.
#[derive(Debug)]
pub struct FrozenProcess {
    /// The supervisor's number.
    pub pid: Pid,
    /// The program's number.
    pub virtual_pid: Pid,
    /// `/proc/PID/stat` once it stood still.
    pub stat: Stat,
    /// Job control had stopped it, with this signal.
    pub stopped_by: Option<i32>,
    /// Its first thread has ended while others live on.
    pub leader_exited: bool,
    /// Threads that are alive, the first thread first where it lives, then ascending.
    pub threads: Vec<FrozenThread>,
    /// Its memory.
    pub memory: Memory,
}

/// A process that has ended but was not waited for.
#[derive(Clone, Debug)]
pub struct FrozenZombie {
    /// The supervisor's number.
    pub pid: Pid,
    /// The program's number.
    pub virtual_pid: Pid,
    /// `/proc/PID/stat`.
    pub stat: Stat,
}

/// A tree that stands still.
#[derive(Debug, Default)]
pub struct Frozen {
    /// Parents before children.
    pub processes: Vec<FrozenProcess>,
    /// What is left of processes that have ended.
    pub zombies: Vec<FrozenZombie>,
}

/// How long a thread may take to stop before the freeze is given up.
const THREAD_LIMIT: Duration = Duration::from_secs(2);
/// Freezes that fail because a thread cannot be stopped are repeated until this has passed: a vfork parent waits for
/// its child to exec.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// Pauses between freezes grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// A thread that has not stopped after this is looked at.
const UNREACHABLE_AFTER: Duration = Duration::from_millis(3);

/// Stops every descendant of `keeper` except those of `ours`. `known` are the sleeps that the last checkpoint has seen;
/// signals of `withheld` that arrive meanwhile do not reach the program.
///
/// # Errors
/// [`EngineError::Gone`] when there is none; [`TraceError::Stuck`] when a thread cannot be stopped; `EPERM` when one may not be
/// traced. The program runs on in every case.
pub fn freeze(
    keeper: Pid,
    ours: &BTreeSet<Pid>,
    known: &HashMap<Pid, Sleeping>,
    withheld: Withheld,
) -> Result<Frozen, EngineError> {
    let deadline = Instant::now() + FREEZE_LIMIT;
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt(keeper, ours, known, withheld) {
            Err(EngineError::Tracee(TraceError::Stuck(tid))) => {
                if Instant::now() >= deadline {
                    return Err(unreachable(tid));
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            other => return other,
        }
    }
}

/// Threads seized so far; whatever stays in here when it is dropped is let go.
#[derive(Default)]
struct Catch {
    stopped: BTreeMap<Pid, Stopped>,
    running: BTreeMap<Pid, Running>,
}

impl Drop for Catch {
    fn drop(&mut self) {
        let mut born = Born::default();
        for (_, running) in std::mem::take(&mut self.running) {
            // A running thread cannot be detached: stop it first. One that cannot stop is let go when the tracing thread ends.
            let _ = running.interrupt();
            if let Ok(mut stopped) = running.wait(Duration::from_millis(20), &mut born) {
                let _ = interruptions::restart(&mut stopped);
                let _ = stopped.detach();
            }
        }
        for (_, mut stopped) in std::mem::take(&mut self.stopped) {
            let _ = interruptions::restart(&mut stopped);
            let _ = stopped.detach();
        }
        for tid in born.0 {
            if let Ok(stopped) =
                Running::born(tid).wait(Duration::from_millis(20), &mut Born::default())
            {
                let _ = stopped.detach();
            }
        }
    }
}

fn attempt(
    keeper: Pid,
    ours: &BTreeSet<Pid>,
    known: &HashMap<Pid, Sleeping>,
    withheld: Withheld,
) -> Result<Frozen, EngineError> {
    let mut catch = Catch::default();
    let members = || -> Vec<Pid> {
        tree::descendants(keeper)
            .into_iter()
            .filter(|pid| !ours.contains(pid))
            .collect()
    };
    let mut looks = timed_calls::look(members().into_iter().flat_map(|pid| {
        let threads = tree::threads(pid);
        threads.into_iter().map(move |tid| (pid, tid))
    }));
    let deadline = Instant::now() + FREEZE_LIMIT;
    let mut last = None;
    loop {
        let mut fresh = Vec::new();
        let members = members();
        for pid in &members {
            for tid in tree::threads(*pid) {
                if catch.stopped.contains_key(&tid) || catch.running.contains_key(&tid) {
                    continue;
                }
                let of_kernel = || {
                    Stat::read(format_args!("{pid}/task/{tid}"))
                        .is_some_and(|stat| is_kernel_s(&stat))
                };
                if tid != *pid && of_kernel() {
                    continue;
                }
                match Running::seize(tid) {
                    Ok(running) => {
                        fresh.push(tid);
                        catch.running.insert(tid, running);
                    }
                    Err(TraceError::Dead(_)) => {}
                    // Born of a traced thread, whose news of it is still to come.
                    Err(_) if is_traced_by_us(*pid, tid) => {
                        fresh.push(tid);
                        catch.running.insert(tid, Running::born(tid));
                    }
                    Err(error) => match Stat::read(format_args!("{pid}/task/{tid}")) {
                        None => {}
                        Some(stat) if matches!(stat.state, 'Z' | 'X') => {}
                        Some(stat) => return Err(untraceable(*pid, &stat, error)),
                    },
                }
            }
        }
        for tid in &fresh {
            if let Some(running) = catch.running.get(tid) {
                // Its death is noticed below.
                let _ = running.interrupt();
            }
        }
        let mut born = Born(Vec::new(), withheld);
        while let Some((tid, running)) = catch.running.pop_first() {
            match wait_patiently(running, &mut born) {
                Ok(stopped) => {
                    catch.stopped.insert(tid, stopped);
                }
                Err(TraceError::Dead(_)) => {}
                Err(error) => {
                    catch.running.insert(tid, Running::born(tid));
                    return Err(error.into());
                }
            }
            for child in born.0.drain(..) {
                if !catch.stopped.contains_key(&child) {
                    catch.running.insert(child, Running::born(child));
                }
            }
        }
        if fresh.is_empty() && last.as_ref() == Some(&members) {
            let mut frozen = assemble(keeper, &members, catch)?;
            let threads = frozen.processes.iter().flat_map(|process| {
                let threads = process.threads.iter();
                threads.map(|thread| (process.pid, thread.tid))
            });
            timed_calls::date(&mut looks, threads);
            interruptions::hide(&mut frozen, &looks, known);
            return Ok(frozen);
        }
        if Instant::now() >= deadline {
            return Err(EngineError::Failed(
                "the program starts and ends processes faster than they can be stopped; try again"
                    .into(),
            ));
        }
        last = Some(members);
    }
}

/// Waits for a thread to stop. One that sleeps where no stop reaches it is given up at once: most often it is a vfork parent,
/// whose child could not exec while it is held.
fn wait_patiently(running: Running, born: &mut Born) -> Result<Stopped, TraceError> {
    let tid = running.tid();
    let deadline = Instant::now() + THREAD_LIMIT;
    let mut outcome = running.wait(UNREACHABLE_AFTER, born);
    while matches!(outcome, Err(TraceError::Stuck(_))) && Instant::now() < deadline {
        if Stat::read(tid).is_some_and(|stat| stat.state == 'D') {
            break;
        }
        outcome = Running::born(tid).wait(UNREACHABLE_AFTER, born);
    }
    outcome
}

/// Why a thread could not be stopped for so long.
fn unreachable(tid: Pid) -> EngineError {
    let stat = Stat::read(tid);
    let call = procfs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let number = call
        .split_ascii_whitespace()
        .next()
        .and_then(|word| word.parse::<i64>().ok());
    let vfork = number.is_some_and(|number| {
        matches!(number, libc::SYS_vfork | libc::SYS_clone | libc::SYS_clone3)
    });
    let (reason, hint) = if vfork {
        (
            "it waits for a child that it has made by vfork(2) and that does not exec",
            "try again when that child has started its program",
        )
    } else {
        (
            "it hangs in the kernel, where it cannot be stopped",
            "try again; if it stays so, look for a file server that does not answer",
        )
    };
    EngineError::Refused(vec![crate::Refusal {
        pid: stat.as_ref().map(|_| tid),
        process: stat.map_or_else(String::new, |stat| stat.comm),
        object: format!("thread {tid}"),
        reason: reason.into(),
        hint: hint.into(),
    }])
}

fn is_traced_by_us(pid: Pid, tid: Pid) -> bool {
    let status =
        procfs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    let tracer = tree::status_field(&status, "TracerPid").and_then(|id| id.parse().ok());
    tracer == Some(rustix::thread::gettid().as_raw_nonzero().get())
}

/// Whether it is a thread that the kernel has made in the process for its own work (io_uring), which runs nothing of the
/// program and never stops: `PF_IO_WORKER`, `PF_USER_WORKER` (`linux/sched.h`).
fn is_kernel_s(stat: &Stat) -> bool {
    const FLAGS: usize = 9;
    stat.field(FLAGS) & 0x4010 != 0
}

fn untraceable(pid: Pid, stat: &Stat, error: TraceError) -> EngineError {
    EngineError::Refused(vec![crate::Refusal {
        pid: Some(pid),
        process: stat.comm.clone(),
        object: "the process".into(),
        reason: format!("it cannot be traced ({error})"),
        hint: "a debugger or another tracer is attached, or it is a setuid or otherwise protected program: \
               end that, or leave the program out of the job"
            .into(),
    }])
}

fn assemble(keeper: Pid, members: &[Pid], mut catch: Catch) -> Result<Frozen, EngineError> {
    let mut frozen = Frozen::default();
    for &pid in members {
        let Some(stat) = Stat::read(pid) else {
            continue;
        };
        let numbers = procfs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let virtual_pid = tree::innermost_id(&numbers).unwrap_or(pid);
        let mut threads = Vec::new();
        let mut stopped_by = None;
        for tid in tree::threads(pid) {
            let Some(stopped) = catch.stopped.remove(&tid) else {
                continue;
            };
            if let Stop::Group(signal) = stopped.stop() {
                stopped_by = Some(signal);
            }
            threads.push(FrozenThread {
                tid,
                virtual_tid: tid,
                stopped: Some(stopped),
                sleeping: None,
                continued: None,
            });
        }
        if threads.is_empty() && stat.parent == keeper {
            // The keeper, which does not stand still, is about to wait for it.
            continue;
        }
        if threads.is_empty() {
            frozen.zombies.push(FrozenZombie {
                pid,
                virtual_pid,
                stat,
            });
            continue;
        }
        // In the supervisor's own pid namespace every thread has one number only.
        let nested = tree::status_field(&numbers, "NSpid")
            .is_none_or(|ids| ids.split_ascii_whitespace().count() > 1);
        for thread in &mut threads {
            thread.virtual_tid = if thread.tid == pid {
                virtual_pid
            } else if !nested {
                thread.tid
            } else {
                let path = format!("/proc/{pid}/task/{}/status", thread.tid);
                tree::innermost_id(&procfs::read_to_string(path).unwrap_or_default())
                    .unwrap_or(thread.tid)
            };
        }
        let leader_exited = threads[0].tid != pid;
        // Any living thread's view is the process's; a dead leader has none.
        let memory = Memory::open(threads[0].tid)
            .context(|| format!("opening the memory of process {pid}"))?;
        frozen.processes.push(FrozenProcess {
            pid,
            virtual_pid,
            stat,
            stopped_by,
            leader_exited,
            threads,
            memory,
        });
    }
    if frozen.processes.is_empty() {
        return Err(EngineError::Gone);
    }
    Ok(frozen)
}

impl Frozen {
    /// Lets every thread go.
    pub fn thaw(self) {
        drop(self);
    }

    /// Every process, zombies too, by the supervisor's number.
    #[must_use]
    pub fn virtual_pids(&self) -> HashMap<Pid, Pid> {
        let living = self.processes.iter().map(|p| (p.pid, p.virtual_pid));
        living
            .chain(self.zombies.iter().map(|z| (z.pid, z.virtual_pid)))
            .collect()
    }
}

/// Lets the threads of processes go. Those that job control has stopped go first, and are stopped again before any other runs:
/// letting go of a stopped thread makes it run for a moment, in the kernel, which others could see.
pub fn let_go(processes: Vec<(Pid, bool, Vec<Stopped>)>) {
    let (held, free): (Vec<_>, Vec<_>) =
        processes.into_iter().partition(|(_, stopped, _)| *stopped);
    let mut again = Vec::new();
    for (pid, _, threads) in held {
        again.push(pid);
        for thread in threads {
            // Those let go first may already have ended the program.
            let _ = thread.detach();
        }
    }
    let deadline = Instant::now() + THREAD_LIMIT;
    let runs =
        |pid: &Pid| Stat::read(pid).is_some_and(|stat| !matches!(stat.state, 'T' | 'Z' | 'X'));
    while again.iter().any(runs) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    for thread in free.into_iter().flat_map(|(_, _, threads)| threads) {
        let _ = thread.detach();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let mut all = Vec::with_capacity(self.processes.len());
        for process in &mut self.processes {
            let mut threads = Vec::with_capacity(process.threads.len());
            for thread in &mut process.threads {
                // Its death is noticed by whoever waits for it.
                let _ = interruptions::refresh(thread, &process.memory);
                threads.extend(thread.stopped.take());
            }
            all.push((process.pid, process.stopped_by.is_some(), threads));
        }
        let_go(all);
    }
}
