//! Capturing a frozen tree: what cannot be saved is found first, then everything but private memory is read.

use crate::checkpoint::Options;
use crate::clocks;
use crate::descriptors::{self, CaptureContext, ProcessView, ptys};
use crate::error::Context;
use crate::file_policy::Collector;
use crate::freeze::{Frozen, FrozenProcess};
use crate::inquiry::{Inquiry, Outside};
use crate::ipc;
use crate::maps;
use crate::memory::{self, Collected};
use crate::model::{Tree, Zombie};
use crate::store::Store;
use crate::tree::{self, Stat, status_field};
use crate::{EngineError, Job, Refusal, processor};
use stasis_sys::task::{self, Shared};
use stasis_sys::{Pid, procfs};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

/// A captured tree, without its private memory.
pub struct Captured {
    /// The image's metadata, but for the files.
    pub tree: Tree,
    /// The files, to be finished when the program runs again.
    pub files: Collector,
    /// Shared memory that is still to be written.
    pub shared: Vec<SharedContents>,
    /// System V segments, still to be written.
    pub ipc: ipc::Captured,
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

pub(crate) fn read_status(id: Pid) -> Result<String, EngineError> {
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
    if refusals.is_empty() {
        Ok(())
    } else {
        Err(EngineError::Refused(refusals))
    }
}

/// The tree as the owner of System V objects.
fn owner(frozen: &Frozen, keeper: Pid) -> ipc::Job {
    let living = frozen.processes.iter().map(|process| process.pid);
    let ended = frozen.zombies.iter().map(|zombie| zombie.pid);
    ipc::Job::new(keeper, living.chain(ended))
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
    let mut vdso = Vec::new();
    let mut outside = Vec::new();
    for frozen in &mut frozen.processes {
        let seen = Outside::look(frozen, &files, &mut collected, frozen_at)?;
        if vdso.is_empty() {
            vdso = memory::vdso::contents(&seen.vmas, &frozen.memory)?;
        }
        outside.push(seen);
    }
    collected.shared.tie(&open.inodes);
    let mut job_s = owner(frozen, job.keeper);
    job_s.queues = open.inodes.iter().map(|(_, inode)| *inode).collect();
    let mut mapped = HashMap::new();
    for vma in outside.iter().flat_map(|seen| &seen.vmas) {
        if let Some(id) = vma.segment() {
            job_s.attached.insert(id);
            if vma.has(b"ht") {
                job_s.huge.insert(id);
            }
            *mapped.entry(id).or_default() += 1;
        }
    }
    let mut ipc = ipc::capture(&job_s, job.keeper, &mapped, &virtual_pids, store)?;
    ipc.look_for_undo(frozen, &outside, job.keeper)?;
    let inquiry = Inquiry::make(frozen, &outside, &mut collected, store)?;
    let (mut processes, shared) = inquiry.evaluate(frozen, outside)?;
    let parent_of = |stat: &Stat| virtual_pids.get(&stat.parent).copied().unwrap_or(keeper);
    for ((process, frozen), table) in processes.iter_mut().zip(&frozen.processes).zip(open.tables) {
        process.parent = parent_of(&frozen.stat);
        process.descriptors = table;
    }
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
    const SESSION: usize = 6;
    const TERMINAL: usize = 7;
    let outer_session = Stat::read(job.keeper).map(|stat| stat.field(SESSION));
    let on_terminal = (frozen.processes.iter()).find(|process| {
        process.stat.field(TERMINAL) != 0 && Some(process.stat.field(SESSION)) == outer_session
    });
    let foreground = on_terminal.and_then(|process| {
        let group = Pid(process.stat.field(8) as i32);
        group_as_seen(group, frozen, &keeper_status)
    });
    let terminal = on_terminal.is_some();
    let leaders = (frozen.processes.iter())
        .filter(|process| process.stat.field(SESSION) == process.pid.0 as u64)
        .map(|process| (&process.stat, process.virtual_pid));
    let pseudo_terminals = ptys::controlling(&open.descriptions, leaders, |group| {
        group_as_seen(group, frozen, &keeper_status)
    });
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
        processor: processor::capture(),
        clocks: clocks::of(job.keeper),
        // Asked now, as the tree stands still: whoever waits in this image is in the list, and nobody can join it.
        requesters: (options.requesters.list().iter())
            .filter_map(|pid| virtual_pids.get(pid).copied())
            .collect(),
        terminal,
        foreground,
        pseudo_terminals,
        ipc: std::mem::take(&mut ipc.state),
    };
    let mut notes = open.notes;
    notes.append(&mut ipc.notes);
    Ok(Captured {
        tree,
        files,
        shared,
        ipc,
        notes,
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

pub(crate) fn innermost(status: &str, field: &str) -> Pid {
    let last = status_field(status, field)
        .and_then(|ids| ids.split_ascii_whitespace().last()?.parse().ok());
    Pid(last.unwrap_or(0))
}

/// Looks at a running tree and tells what could not be saved, and what a restart would not bring back as it is. Nothing is stopped.
///
/// # Errors
/// When the tree cannot be looked at.
pub fn check(root: Pid) -> Result<(Vec<Refusal>, Vec<String>), EngineError> {
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
    let (more, notes) = descriptors::refusals(&context)?;
    refusals.extend(more);
    Ok((refusals, notes))
}
