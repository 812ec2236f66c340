//! Capturing a frozen tree: what cannot be saved is found first, then everything but private memory is read.

use crate::calls::{Calls, SCRATCH};
use crate::checkpoint::Options;
use crate::descriptors::{self, CaptureContext, ProcessView};
use crate::error::Context;
use crate::file_policy::Collector;
use crate::freeze::{Frozen, FrozenProcess};
use crate::maps::{self, Vma};
use crate::memory::{self, Collected, vdso};
use crate::model::{Clocks, Process, Tree, Zombie};
use crate::store::Store;
use crate::sysv::{self, Member};
use crate::timers::Fired;
use crate::tree::{self, Stat, status_field};
use crate::{EngineError, Job, Refusal, attributes, credentials, signals, threads, timers};
use stasis_sys::task::{self, Shared};
use stasis_sys::{Pid, procfs};
use stasis_tracee::{PendingSignal, Stopped};
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A captured tree, without its private memory.
pub struct Captured {
    /// The image's metadata, but for the files.
    pub tree: Tree,
    /// The files, to be finished when the program runs again.
    pub files: Collector,
    /// Shared memory that is still to be written.
    pub shared: Vec<SharedContents>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A shared object's contents, as one process maps them.
#[derive(Debug)]
pub struct SharedContents {
    /// The object in the image.
    pub object: u32,
    /// Index of the process.
    pub process: usize,
    /// Ascending by offset.
    pub parts: Vec<SharedPart>,
}

/// A piece of a shared object that holds something.
#[derive(Clone, Copy, Debug)]
pub struct SharedPart {
    /// Where in the object.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where in the process.
    pub address: u64,
}

fn read_status(id: Pid) -> Result<String, EngineError> {
    let path = format!("/proc/{id}/status");
    procfs::read_to_string(&path).context(|| format!("reading {path}"))
}

/// A process by a thread that lives: `/proc` shows little of a process whose first thread has ended.
pub(crate) fn living(process: &FrozenProcess) -> Pid {
    process
        .threads
        .first()
        .map_or(process.pid, |thread| thread.tid)
}

/// Finds what cannot be saved, apart from descriptors, which are refused when they are captured.
///
/// # Errors
/// [`EngineError::Refused`].
pub fn settle(frozen: &Frozen, keeper: Pid) -> Result<(), EngineError> {
    let mut refusals = Vec::new();
    let around = Surroundings::of(keeper);
    for process in &frozen.processes {
        let id = living(process);
        let status = read_status(id)?;
        obstacles(
            id,
            process.virtual_pid,
            &process.stat,
            &status,
            &around,
            &mut refusals,
        );
        refusals.extend(memory::refusals(
            process.virtual_pid,
            &process.stat.comm,
            &maps::read(id)?,
        ));
        for thread in process.threads.iter().skip(1) {
            for (resource, name) in [
                (Shared::Descriptors, "descriptors"),
                (Shared::FileSystem, "a working directory"),
            ] {
                if !task::share(id, thread.tid, resource).unwrap_or(true) {
                    let object = format!("thread {}", thread.virtual_tid);
                    let reason = format!("it has {name} of its own (unshare(2))");
                    let hint = "checkpoint when that thread has ended";
                    refusals.push(refusal(
                        process.virtual_pid,
                        &process.stat,
                        &object,
                        &reason,
                        hint,
                    ));
                }
            }
        }
        for thread in &process.threads {
            if thread
                .stopped
                .as_ref()
                .map(stasis_tracee::Stopped::registers)
                .transpose()?
                .is_some_and(|r| r.is_32_bit())
            {
                refusals.push(refusal(
                    process.virtual_pid,
                    &process.stat,
                    "the program",
                    "it is a 32-bit program",
                    "use the 64-bit one",
                ));
                break;
            }
        }
    }
    refusals.extend(sysv::refusals(&members(frozen)));
    if refusals.is_empty() {
        Ok(())
    } else {
        Err(EngineError::Refused(refusals))
    }
}

/// Every process of the tree, ended ones too.
fn members(frozen: &Frozen) -> Vec<Member> {
    let living = frozen.processes.iter();
    let living = living.map(|p| (p.pid, p.virtual_pid, p.stat.comm.clone()));
    let ended = frozen.zombies.iter();
    let ended = ended.map(|z| (z.pid, z.virtual_pid, z.stat.comm.clone()));
    living.chain(ended).collect()
}

fn refusal(pid: Pid, stat: &Stat, object: &str, reason: &str, hint: &str) -> Refusal {
    Refusal {
        pid: Some(pid),
        process: stat.comm.clone(),
        object: object.to_owned(),
        reason: reason.to_owned(),
        hint: hint.to_owned(),
    }
}

/// What is the same for the whole job, as its keeper has it.
struct Surroundings {
    keeper: Pid,
    filters: Filters,
    namespaces: [Option<PathBuf>; NAMESPACES.len()],
}

const NAMESPACES: [&str; 8] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup", "time"];

/// How many system call filters there are, and of which kind.
type Filters = (u32, Option<String>);

fn filters(status: &str) -> Filters {
    let count = status_field(status, "Seccomp_filters").and_then(|count| count.parse().ok());
    (
        count.unwrap_or(0),
        status_field(status, "Seccomp").map(str::to_owned),
    )
}

fn namespace(id: Pid, name: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{id}/ns/{name}")).ok()
}

impl Surroundings {
    fn of(keeper: Pid) -> Surroundings {
        Surroundings {
            keeper,
            filters: filters(&read_status(keeper).unwrap_or_default()),
            namespaces: NAMESPACES.map(|name| namespace(keeper, name)),
        }
    }
}

fn obstacles(
    id: Pid,
    virtual_pid: Pid,
    stat: &Stat,
    status: &str,
    around: &Surroundings,
    refusals: &mut Vec<Refusal>,
) {
    let mut refuse = |object: &str, reason: &str, hint: &str| {
        refusals.push(refusal(virtual_pid, stat, object, reason, hint));
    };
    // Filters that the keeper has too were there before the job, as in a container: a restart finds its own.
    if filters(status) != around.filters {
        refuse(
            "its system call filter (seccomp)",
            "the kernel does not let an ordinary user read filters back",
            "run the program without its sandbox",
        );
    }
    for (name, keepers) in NAMESPACES.iter().zip(&around.namespaces) {
        if namespace(id, name) != *keepers {
            refuse(
                &format!("its {name} namespace"),
                "it is not the job's own (a container or sandbox inside the job)",
                "run the container runtime outside and stasis inside it",
            );
        }
    }
    match fs::read_link(format!("/proc/{id}/root")) {
        Ok(root) if root.as_os_str() == "/" => {}
        _ => refuse(
            "its root directory",
            "it is not / (chroot)",
            "run stasis inside the chroot",
        ),
    }
    if stat.parent != around.keeper {
        for (resource, name) in [
            (Shared::Memory, "its memory"),
            (Shared::Descriptors, "its descriptor table"),
            (Shared::FileSystem, "its working directory and umask"),
        ] {
            if task::share(id, stat.parent, resource).unwrap_or(false) {
                refuse(
                    name,
                    "it is shared with its parent process (clone(2))",
                    "wait until the program has done with that",
                );
            }
        }
    }
}

/// Captures everything but private memory.
///
/// # Errors
/// [`EngineError::Refused`] for descriptors that cannot be saved; others when a step fails. The program is undisturbed.
pub fn capture(
    frozen: &mut Frozen,
    job: &Job,
    options: &Options,
    store: &Store,
) -> Result<Captured, EngineError> {
    let frozen_at = Instant::now();
    let virtual_pids = frozen.virtual_pids();
    let views: Vec<ProcessView> = frozen
        .processes
        .iter()
        .map(|p| ProcessView {
            pid: living(p),
            virtual_pid: p.virtual_pid,
            name: p.stat.comm.clone(),
        })
        .collect();
    let files = Collector::new(options.file_content_limit);
    files.remember(&job.memory.files);
    let context = CaptureContext {
        processes: &views,
        stdio: &job.stdio,
        inherited: &job.inherited,
        contents: Some(store),
        file_content_limit: options.file_content_limit,
        files: &files,
    };
    let open = descriptors::capture(&context)?;
    let keeper_status = read_status(job.keeper)?;
    let keeper = tree::innermost_id(&keeper_status).unwrap_or(job.keeper);
    let mut collected = Collected {
        open: open.inodes.iter().copied().collect(),
        ..Collected::default()
    };
    let mut processes = Vec::new();
    let mut vdso = Vec::new();
    let parent_of = |stat: &Stat| virtual_pids.get(&stat.parent).copied().unwrap_or(keeper);
    for (frozen, table) in frozen.processes.iter_mut().zip(open.tables) {
        let parent = parent_of(&frozen.stat);
        let process = capture_process(
            frozen,
            parent,
            table,
            &files,
            &mut collected,
            store,
            frozen_at,
            &mut vdso,
        )?;
        processes.push(process);
    }
    ask_for_stops(frozen, &mut processes)?;
    collected.shared.tie(&open.inodes);
    let shared = capture_shared(frozen, &mut collected, store)?;
    let zombies = frozen.zombies.iter().map(|zombie| {
        let status =
            procfs::read_to_string(format!("/proc/{}/status", zombie.pid)).unwrap_or_default();
        Zombie {
            pid: zombie.virtual_pid,
            parent: parent_of(&zombie.stat),
            group: innermost(&status, "NSpgid"),
            session: innermost(&status, "NSsid"),
            status: zombie.stat.field(52) as i32,
            name: zombie.stat.comm.clone(),
        }
    });
    let zombies = zombies.collect();
    let on_terminal = (frozen.processes.iter()).find(|process| process.stat.field(7) != 0);
    let foreground = on_terminal.and_then(|process| {
        let group = Pid(process.stat.field(8) as i32);
        group_as_seen(group, frozen, &keeper_status)
    });
    let terminal = on_terminal.is_some();
    files.store(store)?;
    let tree = Tree {
        info: options.info.clone(),
        keeper,
        outer_session: innermost(&keeper_status, "NSsid"),
        outer_group: innermost(&keeper_status, "NSpgid"),
        root: job.virtual_root,
        processes,
        zombies,
        files: Vec::new(),
        shared: collected
            .shared
            .objects
            .into_iter()
            .map(|(state, _)| state)
            .collect(),
        descriptions: open.descriptions,
        vdso,
        clocks: clocks(job.keeper),
        // Asked now, as the tree stands still: whoever waits in this image is in the list, and nobody can join it.
        requesters: (options.requesters.list().iter())
            .filter_map(|pid| virtual_pids.get(pid).copied())
            .collect(),
        terminal,
        foreground,
    };
    Ok(Captured {
        tree,
        files,
        shared,
        notes: open.notes,
    })
}

/// A process group as the job sees it, by the supervisor's number; `None` for one that has no process of the job.
fn group_as_seen(group: Pid, frozen: &Frozen, keeper_status: &str) -> Option<Pid> {
    const GROUP: &str = "NSpgid";
    let outer = |status: &str| {
        let ids = status_field(status, GROUP)?;
        ids.split_ascii_whitespace().next()?.parse().ok().map(Pid)
    };
    if outer(keeper_status) == Some(group) {
        return Some(innermost(keeper_status, GROUP));
    }
    let member = |process: &&FrozenProcess| process.stat.field(5) as i32 == group.0;
    let status = read_status(living(frozen.processes.iter().find(member)?)).ok()?;
    Some(innermost(&status, GROUP))
}

fn innermost(status: &str, field: &str) -> Pid {
    let last = status_field(status, field)
        .and_then(|ids| ids.split_ascii_whitespace().last()?.parse().ok());
    Pid(last.unwrap_or(0))
}

/// The clocks as processes of the job see them: the host's, shifted by the offsets of the job's time namespace.
fn clocks(keeper: Pid) -> Clocks {
    let offsets =
        procfs::read_to_string(format!("/proc/{keeper}/timens_offsets")).unwrap_or_default();
    let offset = |name: &str| -> (i64, i64) {
        let line = offsets
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        let mut words = line
            .split_ascii_whitespace()
            .skip(1)
            .map(|word| word.parse().unwrap_or(0));
        (words.next().unwrap_or(0), words.next().unwrap_or(0))
    };
    let read = |clock: rustix::time::ClockId, name: &str| {
        let now = rustix::time::clock_gettime(clock);
        let (seconds, nanoseconds) = offset(name);
        let total = i128::from(now.tv_sec + seconds) * 1_000_000_000
            + i128::from(now.tv_nsec + nanoseconds);
        Duration::from_nanos(u64::try_from(total).unwrap_or(0))
    };
    Clocks {
        monotonic: read(rustix::time::ClockId::Monotonic, "monotonic"),
        boottime: read(rustix::time::ClockId::Boottime, "boottime"),
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

#[allow(
    clippy::too_many_arguments,
    reason = "one call site; a structure would only repeat the names"
)]
fn capture_process(
    frozen: &mut FrozenProcess,
    parent: Pid,
    descriptors: descriptors::Table,
    files: &Collector,
    collected: &mut Collected,
    store: &Store,
    frozen_at: Instant,
    vdso: &mut Vec<u8>,
) -> Result<Process, EngineError> {
    let id = living(frozen);
    let status = read_status(id)?;
    let vmas = memory::look(id)?;
    if vdso.is_empty() {
        *vdso = memory::vdso::contents(&vmas, &frozen.memory)?;
    }
    let mut states = Vec::with_capacity(frozen.threads.len());
    for thread in &mut frozen.threads {
        let Some(stopped) = thread.stopped.as_mut() else {
            return Err(EngineError::Gone);
        };
        threads::abort_restartable_sequence(stopped, &frozen.memory)?;
        let timed_call = thread
            .sleeping
            .map(|sleeping| sleeping.timed_call(frozen_at));
        let state = threads::capture(id, thread.virtual_tid, stopped, timed_call)?;
        states.push(state);
    }
    let mut attributes = attributes::capture(id, &status)?;
    let mut layout = memory::layout::capture(id, &Stat::read(id).ok_or(EngineError::Gone)?)?;
    let threads_by_id: HashMap<Pid, Pid> = frozen
        .threads
        .iter()
        .map(|t| (t.tid, t.virtual_tid))
        .collect();
    let count = frozen.threads.len();
    let queues = Queues::read(frozen)?;
    let (mut signals, mut timers) = with_calls(frozen, count, &vmas, &status, |calls, number| {
        if number > 0 {
            threads::capture_remotely(&mut states[number], calls)?;
            return Ok(None);
        }
        threads::capture_remotely(&mut states[0], calls)?;
        attributes::capture_remotely(&mut attributes, calls)?;
        memory::layout::capture_remotely(&mut layout, calls)?;
        let signals = signals::capture_remotely(calls)?;
        let timers = timers::capture_remotely(id, &threads_by_id, calls)?;
        Ok(Some((signals, timers)))
    })?;
    // A timer that has fired must be either armed or a signal in a queue, and not both.
    let now = Queues::read(frozen)?;
    if let Some(fired) = Fired::of(now.since(&queues)) {
        with_calls(frozen, 1, &vmas, &status, |calls, _| {
            timers::capture_fired_remotely(&mut timers, &fired, calls).map(Some)
        })?;
    }
    signals.pending = signals::queue(now.shared);
    for (state, pending) in states.iter_mut().zip(now.own) {
        state.pending = signals::queue(pending);
    }
    let areas = memory::areas(frozen.pid, &vmas, files, collected)?;
    Ok(Process {
        pid: frozen.virtual_pid,
        parent,
        group: innermost(&status, "NSpgid"),
        session: innermost(&status, "NSsid"),
        stopped_by: frozen.stopped_by,
        stop_reported: true,
        leader_exited: frozen.leader_exited,
        threads: states,
        memory: memory::State {
            areas,
            layout,
            contents: store.number(),
            guards: Vec::new(),
            stored: Vec::new(),
        },
        signals,
        timers,
        attributes,
        credentials: credentials::capture(&status),
        descriptors,
    })
}

/// Lets the first `count` threads of a process make remote calls in turn: `ask` gets the calls and the thread's place. What it
/// returns for the first thread is returned. Every thread is as it was afterwards.
fn with_calls<T>(
    process: &mut FrozenProcess,
    count: usize,
    vmas: &[Vma],
    status: &str,
    mut ask: impl FnMut(&mut Calls<'_>, usize) -> Result<Option<T>, EngineError>,
) -> Result<T, EngineError> {
    let instruction = vdso::syscall_instruction(vmas, &process.memory)?;
    let ignores_trap = signals::ignores_trap(status);
    let ranges: Vec<Range<u64>> = vmas.iter().map(|vma| vma.range.clone()).collect();
    let hole = maps::find_hole(&ranges, SCRATCH).ok_or_else(|| {
        EngineError::Failed(format!(
            "process {} has no free address",
            process.virtual_pid
        ))
    })?;
    let memory = &process.memory;
    let mut first = None;
    let mut outcome = Ok(());
    let (head, tail) = process.threads.split_at_mut(1);
    let take =
        |thread: &mut crate::freeze::FrozenThread| thread.stopped.take().ok_or(EngineError::Gone);
    let mut calls = Calls::begin(take(&mut head[0])?, instruction, ignores_trap, memory, hole)?;
    match ask(&mut calls, 0) {
        Ok(value) => first = value,
        Err(error) => outcome = Err(error),
    }
    if outcome.is_ok() {
        for (n, thread) in tail.iter_mut().take(count - 1).enumerate() {
            let mut calls = Calls::join(take(thread)?, instruction, ignores_trap, memory, hole)?;
            outcome = ask(&mut calls, n + 1).map(drop);
            thread.stopped = Some(calls.leave()?);
            if outcome.is_err() {
                break;
            }
        }
    }
    head[0].stopped = Some(calls.finish()?);
    outcome?;
    first.ok_or(EngineError::Gone)
}

/// Finds out which stops of children their parents have not waited for yet: asked of the parent, without consuming anything.
fn ask_for_stops(frozen: &mut Frozen, processes: &mut [Process]) -> Result<(), EngineError> {
    const P_PID: u64 = 1;
    let options = (libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT) as u64;
    for n in 0..processes.len() {
        let (child, parent) = (processes[n].pid, processes[n].parent);
        let place = processes.iter().position(|process| process.pid == parent);
        let (Some(_), Some(place)) = (processes[n].stopped_by, place) else {
            continue;
        };
        let id = living(&frozen.processes[place]);
        let (vmas, status) = (maps::read(id)?, read_status(id)?);
        let unreported = with_calls(
            &mut frozen.processes[place],
            1,
            &vmas,
            &status,
            |calls, _| {
                let address = calls.put(&[0; stasis_tracee::SIGINFO_BYTES])?;
                let arguments = [P_PID, child.0 as u64, address, options, 0];
                // The process may have children of another thread's only (__WNOTHREAD is not asked for): an error means no news.
                let asked = calls.call("waitid", libc::SYS_waitid, &arguments);
                Ok(Some(asked.is_ok() && calls.get::<4>(0)? != [0; 4]))
            },
        )?;
        processes[n].stop_reported = !unreported;
    }
    Ok(())
}

fn capture_shared(
    frozen: &mut Frozen,
    collected: &mut Collected,
    store: &Store,
) -> Result<Vec<SharedContents>, EngineError> {
    let mut all = Vec::new();
    for (state, mapped) in &mut collected.shared.objects {
        if state.description.is_some() {
            continue;
        }
        let object = store.number();
        state.contents = Some(object);
        // Several processes may map different parts: each part is read where it is mapped, the first one found.
        let mut covered: Vec<Range<u64>> = Vec::new();
        for place in mapped.iter() {
            let Some(index) = frozen.processes.iter().position(|p| p.pid == place.process) else {
                continue;
            };
            let length = place.range.end - place.range.start;
            let fresh = subtract(place.offset..place.offset + length, &covered);
            if fresh.is_empty() {
                continue;
            }
            let process = &mut frozen.processes[index];
            let id = living(process);
            let (vmas, status) = (maps::read(id)?, read_status(id)?);
            let resident = with_calls(process, 1, &vmas, &status, |calls, _| {
                Ok(Some(memory::shared::resident(place, calls)?))
            })?;
            let mut parts = Vec::new();
            for range in resident {
                let offset = range.start - place.range.start + place.offset;
                for piece in intersect(offset..offset + (range.end - range.start), &fresh) {
                    let address = piece.start - place.offset + place.range.start;
                    parts.push(SharedPart {
                        offset: piece.start,
                        len: piece.end - piece.start,
                        address,
                    });
                }
            }
            covered.extend(fresh);
            if !parts.is_empty() {
                all.push(SharedContents {
                    object,
                    process: index,
                    parts,
                });
            }
        }
    }
    Ok(all)
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

/// Looks at a running tree and tells what could not be saved. Nothing is stopped.
///
/// # Errors
/// When the tree cannot be looked at.
pub fn check(root: Pid) -> Result<Vec<Refusal>, EngineError> {
    let mut refusals = Vec::new();
    let mut views = Vec::new();
    let around = Surroundings::of(Stat::read(root).ok_or(EngineError::Gone)?.parent);
    for pid in std::iter::once(root).chain(tree::descendants(root)) {
        let (Some(stat), Ok(status)) = (Stat::read(pid), read_status(pid)) else {
            continue;
        };
        if matches!(stat.state, 'Z' | 'X') {
            continue;
        }
        let virtual_pid = tree::innermost_id(&status).unwrap_or(pid);
        if fs::read_link(format!("/proc/{pid}/ns/user")).is_err() {
            refusals.push(refusal(
                virtual_pid,
                &stat,
                "the process",
                "it is protected from being traced (not dumpable, or another user's)",
                "run it as yourself, and without that protection",
            ));
            continue;
        }
        obstacles(pid, virtual_pid, &stat, &status, &around, &mut refusals);
        match maps::read(pid) {
            Ok(areas) => refusals.extend(memory::refusals(virtual_pid, &stat.comm, &areas)),
            Err(_) => {
                refusals.push(refusal(
                    virtual_pid,
                    &stat,
                    "the process",
                    "it may not be traced by you",
                    "run it as yourself",
                ));
                continue;
            }
        }
        views.push(ProcessView {
            pid,
            virtual_pid,
            name: stat.comm,
        });
    }
    let members = views.iter();
    let members = members.map(|view| (view.pid, view.virtual_pid, view.name.clone()));
    refusals.extend(sysv::refusals(&members.collect::<Vec<_>>()));
    let stdio = descriptors::stdio_of(root);
    let files = Collector::new(0);
    let context = CaptureContext {
        processes: &views,
        stdio: &stdio,
        inherited: &[],
        contents: None,
        file_content_limit: 0,
        files: &files,
    };
    refusals.extend(descriptors::refusals(&context)?);
    Ok(refusals)
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
