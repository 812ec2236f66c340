//! Turning the skeleton into the program: memory, threads, registers, and then all at once: go.

use super::numbers::Numbers;
use super::{Options, Plan, Strategy, clocks_go_on};
use super::{executable, fill, thread_births};
use crate::calls::Calls;
use crate::clocks::Passed;
use crate::descriptors::inherited::{self, Inherited};
use crate::error::Context;
use crate::ipc::{segments, semaphores, undo};
use crate::keeper;
use crate::memory::restore::{self as areas, Descriptors, Places};
use crate::memory::{layout, vdso};
use crate::model::{Process, Tree};
use crate::progress::{Progress, Step};
use crate::timed_calls::{self, Sleeping};
use crate::{EngineError, attributes, credentials, faults, maps, signals, threads, timers, tree};
use stasis_image::{Image, ObjectId};
use stasis_sys::{Pid, procfs};
use stasis_tracee::{Born, Memory, Registers, Running, Stopped};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// What a restart has made.
pub struct Revived {
    /// The keeper (the supervisor's number).
    pub keeper: Pid,
    /// The root (the supervisor's number).
    pub root: Pid,
    /// Every living process, in the image's order (the supervisor's numbers).
    pub pids: Vec<Pid>,
    /// The processes that wait for an answer (the supervisor's numbers).
    pub requesters: Vec<Pid>,
    /// Threads that sleep with a time limit.
    pub sleeping: HashMap<Pid, Sleeping>,
    /// What the job has open that leads outside, beside its standard streams.
    pub inherited: Vec<Inherited>,
}

/// What the revival works with.
pub struct Way<'a> {
    /// The image.
    pub image: &'a Image,
    /// What is to be done.
    pub plan: &'a Plan,
    /// Where descriptors are.
    pub numbers: &'a Numbers,
    /// How to restart.
    pub options: &'a Options,
    /// Who is told.
    pub progress: &'a dyn Progress,
    /// The line to the keeper.
    pub keeper: BorrowedFd<'a>,
}

/// For how long the kernel may take to stop a thread.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A process on its way.
struct Reviving<'a> {
    saved: &'a Process,
    pid: Pid,
    calls: Calls<'a>,
    places: Places,
}

/// Brings the skeleton below this process to life.
///
/// # Errors
/// When a step fails: the caller kills the skeleton.
pub fn revive(way: &Way<'_>, notes: &mut Vec<String>) -> Result<Revived, EngineError> {
    let Way {
        image,
        plan,
        numbers,
        options,
        progress,
        keeper,
    } = *way;
    let saved = &*plan.tree;
    let hosts = host_ids(plan.strategy);
    let find = |pid: Pid| {
        hosts
            .get(&pid)
            .copied()
            .ok_or_else(|| EngineError::Failed(format!("process {pid} was not made")))
    };
    let pids: Vec<Pid> = saved
        .processes
        .iter()
        .map(|process| find(process.pid))
        .collect::<Result<_, _>>()?;
    check_relations(saved, &pids, &hosts)?;
    let mut stopped = Vec::with_capacity(pids.len());
    for (n, (process, pid)) in saved.processes.iter().zip(&pids).enumerate() {
        let number = numbers.executables + n as i32;
        stopped.push(seize(process, *pid, plan.strategy, number, notes)?);
    }
    let memories: Vec<Memory> = pids
        .iter()
        .map(|pid| Memory::open(*pid).context(|| format!("opening the memory of process {pid}")))
        .collect::<Result<_, _>>()?;
    progress.step(Step::Memory);
    let mut reviving = Vec::new();
    let mut same_vdso = true;
    let taken = saved.processes.iter().zip(&pids).zip(&memories);
    for (((process, pid), memory), stopped) in taken.zip(stopped) {
        let (one, same) = prepare(saved, process, *pid, stopped, memory, numbers)?;
        same_vdso &= same;
        reviving.push(one);
    }
    faults::pass("mapped")?;
    let objects: HashMap<ObjectId, &Memory> = saved
        .processes
        .iter()
        .map(|process| ObjectId(process.memory.contents))
        .zip(&memories)
        .collect();
    fill::fill(image, &objects, options.threads, progress)?;
    zero_private_copies(image, saved, &memories)?;
    faults::pass("filled")?;
    progress.step(Step::Threads);
    let mut sleeping = HashMap::new();
    let mut ready = Vec::new();
    for (n, one) in reviving.iter_mut().enumerate() {
        let executable =
            (plan.strategy != Strategy::Burn).then_some(numbers.executables + n as i32);
        Finishing {
            saved,
            numbers,
            executable,
            same_vdso,
        }
        .before_threads(one, notes)?;
    }
    // Whoever has made adjustments has changed semaphores.
    for one in &mut reviving {
        semaphores::use_again(&saved.ipc.sets, one.saved.pid, &mut one.calls)?;
    }
    let passed = match clocks_go_on(plan.strategy) {
        true => Passed::on(saved.clocks, pids[0]),
        false => Passed::UNKNOWN,
    };
    faults::linger();
    let threads = make_threads(plan.strategy, &mut reviving)?;
    for (one, others) in reviving.into_iter().zip(threads) {
        let (pid, held) = (one.pid, one.saved.stopped_by.is_some());
        ready.push((
            pid,
            held,
            with_threads(one, others, &passed, &mut sleeping, notes)?,
        ));
    }
    for (process, (_, _, threads)) in saved.processes.iter().zip(&ready) {
        // The files of a first thread that has ended belong to root.
        let witness = threads.first().map_or(process.pid, Stopped::tid);
        attributes::restore_from_outside(&process.attributes, witness, process.pid, notes);
    }
    await_zombies(saved, &hosts)?;
    let tables = saved.processes.iter().map(|process| &process.descriptors);
    let holders = pids.iter().copied().zip(tables);
    let inherited = inherited::of_processes(&saved.descriptions, holders)?;
    keeper::await_seals(keeper)?;
    faults::pass("ready")?;
    progress.step(Step::Start);
    crate::freeze::let_go(ready);
    let keeper = find(saved.keeper).or_else(|error| {
        tree::Stat::read(pids[0])
            .map(|stat| stat.parent)
            .ok_or(error)
    })?;
    Ok(Revived {
        keeper,
        root: find(saved.root).unwrap_or(keeper),
        requesters: (saved.requesters.iter())
            .filter_map(|pid| hosts.get(pid).copied())
            .collect(),
        sleeping,
        inherited,
        pids,
    })
}

/// Writes the zeros that the image left out where they stand over a file's contents.
fn zero_private_copies(
    image: &Image,
    saved: &Tree,
    memories: &[Memory],
) -> Result<(), EngineError> {
    let page = [0; stasis_sys::pagemap::PAGE as usize];
    for (process, memory) in saved.processes.iter().zip(memories) {
        let extents = image.extents(ObjectId(process.memory.contents));
        let extents: Vec<_> = extents
            .iter()
            .map(|extent| extent.offset..extent.end())
            .collect();
        for range in areas::zeros_over_files(&process.memory, &extents) {
            for at in range.step_by(page.len()) {
                memory
                    .write(&page, at)
                    .context(|| format!("filling memory of process {}", process.pid))?;
            }
        }
    }
    Ok(())
}

/// The supervisor's number of every process below it, by the program's.
fn host_ids(strategy: Strategy) -> HashMap<Pid, Pid> {
    let below = tree::descendants(Pid::current());
    let inner = |pid: &Pid| {
        let status = procfs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let ids = tree::status_field(&status, "NSpid")?
            .split_ascii_whitespace()
            .count();
        // The namespace's own processes have one number more than the supervisor's helpers.
        (strategy != Strategy::Namespaces || ids > own_depth())
            .then(|| tree::innermost_id(&status))
            .flatten()
    };
    below
        .iter()
        .filter_map(|pid| Some((inner(pid)?, *pid)))
        .collect()
}

fn own_depth() -> usize {
    let status = procfs::read_to_string("/proc/self/status").unwrap_or_default();
    tree::status_field(&status, "NSpid").map_or(1, |ids| ids.split_ascii_whitespace().count())
}

/// Waits until the processes that had ended have ended again.
fn await_zombies(saved: &Tree, hosts: &HashMap<Pid, Pid>) -> Result<(), EngineError> {
    let deadline = Instant::now() + STOP_LIMIT;
    let lives =
        |pid: &&Pid| tree::Stat::read(**pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'));
    for zombie in saved
        .zombies
        .iter()
        .filter_map(|zombie| hosts.get(&zombie.pid))
    {
        while lives(&zombie) {
            if Instant::now() > deadline {
                return Err(EngineError::Failed(format!(
                    "process {zombie} does not end"
                )));
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// Whether parents came out as they were: the program would notice.
fn check_relations(
    saved: &Tree,
    pids: &[Pid],
    hosts: &HashMap<Pid, Pid>,
) -> Result<(), EngineError> {
    for (process, pid) in saved.processes.iter().zip(pids) {
        let Some(stat) = tree::Stat::read(pid) else {
            return Err(EngineError::Gone);
        };
        let wanted = hosts.get(&process.parent);
        if process.parent != saved.keeper && wanted != Some(&stat.parent) {
            return Err(EngineError::Failed(format!(
                "process {} could not be made a child of process {}",
                process.pid, process.parent
            )));
        }
    }
    Ok(())
}

/// Takes hold of a new process, and has it execute its program's file where `/proc/PID/exe` cannot be set otherwise.
fn seize(
    saved: &Process,
    pid: Pid,
    strategy: Strategy,
    executable: i32,
    notes: &mut Vec<String>,
) -> Result<Stopped, EngineError> {
    let running = Running::seize_unfinished(pid)?;
    running.interrupt()?;
    let stopped = running.wait(STOP_LIMIT, &mut Born::default())?;
    if strategy != Strategy::Burn {
        return Ok(stopped);
    }
    let (stopped, executed) = executable::execute(stopped, saved, pid, executable)?;
    if !executed {
        notes.push(other_executable(saved));
    }
    Ok(stopped)
}

fn other_executable(saved: &Process) -> String {
    format!(
        "/proc/{}/exe shows stasis: the program's file cannot be executed, and this host does not let it be set",
        saved.pid
    )
}

/// Throws the memory of a new process away and maps the saved areas.
fn prepare<'a>(
    tree: &'a Tree,
    saved: &'a Process,
    pid: Pid,
    stopped: Stopped,
    memory: &'a Memory,
    numbers: &Numbers,
) -> Result<(Reviving<'a>, bool), EngineError> {
    let now = maps::read(pid)?;
    let same_vdso = !faults::asked("other-vdso") && vdso::contents(&now, memory)? == tree.vdso;
    let mut places = areas::places(&saved.memory, &now)?;
    let instruction = vdso::syscall_instruction(&now, memory)?;
    let rseq = stopped.rseq()?;
    let mut calls = Calls::begin(stopped, instruction, false, memory, places.scratch)?;
    if let Some(rseq) = rseq {
        const UNREGISTER: u64 = 1;
        let arguments = [
            rseq.pointer,
            u64::from(rseq.size),
            UNREGISTER,
            u64::from(rseq.signature),
        ];
        calls.call("rseq", libc::SYS_rseq, &arguments)?;
    }
    areas::clear(&mut places, &mut calls)?;
    let descriptors = Descriptors {
        files: numbers.files,
        shared: numbers.shared,
    };
    segments::attach(&saved.memory.areas, &tree.ipc.segments, &mut calls)?;
    areas::map_areas(&saved.memory, &descriptors, &mut calls)?;
    Ok((
        Reviving {
            saved,
            pid,
            calls,
            places,
        },
        same_vdso,
    ))
}

/// What goes on in a process before it has its threads.
struct Finishing<'a> {
    saved: &'a Tree,
    numbers: &'a Numbers,
    /// Descriptor of its executable, where that is still to be set.
    executable: Option<i32>,
    same_vdso: bool,
}

impl Finishing<'_> {
    fn before_threads(
        &self,
        one: &mut Reviving<'_>,
        notes: &mut Vec<String>,
    ) -> Result<(), EngineError> {
        let Reviving {
            saved,
            calls,
            places,
            ..
        } = one;
        areas::finish_areas(&saved.memory, places, self.same_vdso, calls, notes)?;
        if !self.same_vdso {
            vdso::redirect(&self.saved.vdso, &saved.memory.areas, places, calls)?;
        }
        let named = layout::restore_remotely(&saved.memory.layout, self.executable, calls)?;
        if !named && self.executable.is_some() {
            notes.push(other_executable(saved));
        }
        calls.call(
            "close_range",
            libc::SYS_close_range,
            &[self.numbers.first_free as u64, u64::from(u32::MAX), 0],
        )?;
        let ipc = &self.saved.ipc;
        undo::restore(&ipc.undo, &ipc.sets, saved.pid, calls)?;
        attributes::restore_remotely(&saved.attributes, calls)
    }
}

/// Makes the threads of all processes but their first ones; a list for each process.
fn make_threads<'a>(
    strategy: Strategy,
    reviving: &mut [Reviving<'a>],
) -> Result<Vec<Vec<Calls<'a>>>, EngineError> {
    let mut wanted = Vec::new();
    for (process, one) in reviving.iter().enumerate() {
        let others = one.saved.threads.iter();
        wanted.extend(
            others
                .skip(usize::from(!one.saved.leader_exited))
                .map(|state| thread_births::Wanted {
                    process,
                    id: state.virtual_tid,
                }),
        );
    }
    let mut threads: Vec<Vec<Calls<'a>>> = reviving.iter().map(|_| Vec::new()).collect();
    let mut makers: Vec<_> = reviving.iter_mut().map(|one| &mut one.calls).collect();
    let made = thread_births::make(strategy, &mut makers, &wanted)?;
    for (thread, calls) in wanted.iter().zip(made) {
        threads[thread.process].push(calls);
    }
    Ok(threads)
}

/// Everything of a process and its threads that is left, once they are there.
fn with_threads<'a>(
    one: Reviving<'a>,
    mut others: Vec<Calls<'a>>,
    passed: &Passed,
    sleeping: &mut HashMap<Pid, Sleeping>,
    notes: &mut Vec<String>,
) -> Result<Vec<Stopped>, EngineError> {
    let Reviving {
        saved, pid, calls, ..
    } = one;
    let status = procfs::read_to_string(format!("/proc/{pid}/status"))
        .context(|| format!("reading process {pid}"))?;
    let now = credentials::capture(&status);
    // The first thread made the others; where it had ended, the first that lived takes its part.
    let mut first = if saved.leader_exited {
        let next = others.remove(0);
        calls.remote.exit()?;
        next
    } else {
        calls
    };
    signals::restore_actions(&saved.signals, &mut first)?;
    timers::restore_remotely(&saved.timers, passed, &mut first)?;
    let mut all = vec![first];
    all.append(&mut others);
    let mut ends = Vec::new();
    for (state, calls) in saved.threads.iter().zip(&mut all) {
        threads::restore_remotely(state, calls, notes)?;
        credentials::restore_remotely(&saved.credentials, &now, calls)?;
        signals::requeue_to_thread(&state.pending, saved.pid, state.virtual_tid, calls)?;
    }
    signals::requeue_shared(&saved.signals.pending, saved.pid, &mut all[0])?;
    attributes::restore_dumpable(&saved.attributes, &mut all[0])?;
    for (state, calls) in saved.threads.iter().zip(&mut all) {
        let call = state.timed_call.as_ref();
        let (registers, sleeps) =
            timed_calls::resume_registers(&state.registers, call, passed, calls)?;
        sleeping.extend(sleeps.map(|sleeps| (calls.remote.tid(), sleeps)));
        ends.push(registers);
    }
    let_go(saved, all, &ends)
}

/// Gives every thread its registers and mask: from here on each would run as the program.
fn let_go(
    saved: &Process,
    all: Vec<Calls<'_>>,
    ends: &[Registers],
) -> Result<Vec<Stopped>, EngineError> {
    let mut stopped = Vec::with_capacity(all.len());
    let last = all.len() - 1;
    for (n, ((mut calls, registers), state)) in
        all.into_iter().zip(ends).zip(&saved.threads).enumerate()
    {
        if n == last {
            calls.unmap_scratch()?;
        }
        let mut thread = calls.remote.finish_with(registers, state.mask)?;
        thread.set_xstate(&state.xstate)?;
        stopped.push(thread);
    }
    Ok(stopped)
}
