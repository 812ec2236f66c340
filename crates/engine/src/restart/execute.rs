//! Carrying out a plan: the supervisor's part.

use super::births::Births;
use super::ids::IdSource;
use super::maker::Maker;
use super::numbers::Numbers;
use super::{Options, Plan, revive, skeleton};
use crate::descriptors::ttys;
use crate::error::Context;
use crate::file_policy::{self, ReadyFiles};
use crate::job::{self, Memory, own_stdio};
use crate::model::Tree;
use crate::progress::{Progress, Step};
use crate::store::Loader;
use crate::{EngineError, Job, faults, keeper};
use stasis_image::Image;
use stasis_sys::Pid;
use stasis_sys::board::Board;
use stasis_sys::process::{self, Fork};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// Carries out `plan`. The caller has one thread. `front` is the keeper's line to the process in the foreground
/// (see [`crate::keeper`]).
///
/// # Errors
/// When a step fails; whatever had been started is gone again.
pub fn execute(
    image: &Image,
    plan: Plan,
    options: Options,
    front: OwnedFd,
    progress: &dyn Progress,
) -> Result<Job, EngineError> {
    let loader = Loader(image);
    progress.step(Step::Files);
    faults::pass("files")?;
    let ready = file_policy::apply(&plan.files, &plan.tree.files, &loader)?;
    faults::pass("skeleton")?;
    progress.step(Step::Skeleton);
    let outcome = start(image, &plan, &options, front, &ready, progress);
    if outcome.is_err() {
        keeper::kill_descendants();
    }
    ready.finish();
    outcome
}

fn start(
    image: &Image,
    plan: &Plan,
    options: &Options,
    front: OwnedFd,
    ready: &ReadyFiles,
    progress: &dyn Progress,
) -> Result<Job, EngineError> {
    let tree = &*plan.tree;
    let births = Births::plan(tree);
    let wanted = births.wanted(tree);
    let numbers = Numbers::of(tree);
    raise_descriptor_limit(numbers.end)?;
    let (events, keeper_end) = keeper::line().context(|| "making the keeper's line".into())?;
    let (reports, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context(|| "making a pipe".into())?;
    let stdio = own_stdio();
    let inherited = stasis_sys::descriptor::inherited();
    let board = Board::new(births.nodes.len()).context(|| "sharing memory".into())?;
    // Orphans of the namespace's making come to the supervisor.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let maker = Maker {
        image,
        plan,
        options,
        births: &births,
        numbers: &numbers,
        board,
        ids: IdSource::new(plan.strategy, wanted.clone()),
        ready,
        stdio: &stdio,
        inherited: &inherited,
        front: &front,
        supervisor: &keeper_end,
        report: report.as_fd(),
    };
    match process::fork().context(|| "starting the keeper".into())? {
        Fork::Child => {
            // Held by the supervisor alone, these tell of its end.
            drop((events, reports));
            maker.first()
        }
        Fork::Parent(_) => {}
    }
    drop((keeper_end, report, front));
    let mut notes = await_skeleton(File::from(reports), tree.processes.len())?;
    faults::pass("revive")?;
    // In a thread of its own: what dies while it is let go stays its tracer's, and would never be its parent's to wait for, until
    // the tracing thread ends (`exit_ptrace`, `kernel/ptrace.c`).
    let revived = loop {
        let tracing = || {
            // Right after the processes were made, the kernel's counter stands before the ids of their threads.
            let own = Pid(rustix::thread::gettid().as_raw_nonzero().get());
            if wanted.contains(&own) {
                return Ok(None);
            }
            let way = revive::Way {
                image,
                plan,
                numbers: &numbers,
                options,
                progress,
                keeper: events.as_fd(),
            };
            revive::revive(&way, &mut notes).map(Some)
        };
        let panicked = |_| Err(EngineError::Failed("the restart panicked".into()));
        let traced =
            std::thread::scope(|scope| scope.spawn(tracing).join().unwrap_or_else(panicked))?;
        if let Some(revived) = traced {
            break revived;
        }
    };
    faults::pass("started")?;
    for note in &notes {
        progress.note(note);
    }
    // The keeper waits for this word before it serves: until then it would take the supervisor's end for a failure.
    keeper::Command::Release
        .send(events.as_fd())
        .context(|| "waking the keeper".into())?;
    let resized = resized(tree, options, &stdio, &revived.pids);
    Ok(Job {
        keeper: revived.keeper,
        root: revived.root,
        virtual_root: tree.root,
        stdio: job::remembered(&stdio),
        inherited: revived.inherited,
        resized,
        events,
        requesters: revived.requesters,
        memory: Memory {
            sleeping: revived.sleeping,
            ..Memory::default()
        },
    })
}

/// The processes that find themselves in the foreground of a window of another size than they were saved in.
fn resized(tree: &Tree, options: &Options, stdio: &[Option<OwnedFd>; 3], pids: &[Pid]) -> Vec<Pid> {
    let Some(face) = ttys::of_descriptions(&tree.descriptions) else {
        return Vec::new();
    };
    let mut terminals = options.terminal.iter().chain(stdio.iter().flatten());
    if !terminals.any(|fd| ttys::is_another_size(fd.as_fd(), &face)) {
        return Vec::new();
    }
    let told =
        |(process, _): &(&crate::model::Process, &Pid)| Some(process.group) == tree.foreground;
    let pairs = tree.processes.iter().zip(pids).filter(told);
    pairs.map(|(_, pid)| *pid).collect()
}

fn raise_descriptor_limit(end: RawFd) -> Result<(), EngineError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let need = end as u64 + 64;
    if now.current.is_none_or(|soft| soft >= need) {
        return Ok(());
    }
    if now.maximum.is_some_and(|hard| hard < need) {
        return Err(EngineError::Failed(format!(
            "the program has so many descriptors that restoring it needs {need}, but the limit is {} (ulimit -Hn)",
            now.maximum.unwrap_or(0)
        )));
    }
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(need),
            maximum: now.maximum,
        },
    )
    .context(|| "raising the descriptor limit".into())
}

/// Reads the report until every living process is ready; returns the notes.
fn await_skeleton(mut reports: File, processes: usize) -> Result<Vec<String>, EngineError> {
    let mut text = String::new();
    let mut buffer = [0u8; 4096];
    loop {
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(str::trim_end);
        let (mut ready, mut notes, mut failures) = (0, Vec::new(), Vec::new());
        for line in lines {
            match (line, line.strip_prefix(skeleton::NOTE)) {
                (skeleton::READY, _) => ready += 1,
                (_, Some(note)) => notes.push(note.to_owned()),
                (failure, None) => failures.push(failure.to_owned()),
            }
        }
        if ready == processes {
            return Ok(notes);
        }
        let n = reports
            .read(&mut buffer)
            .context(|| "hearing from the new processes".into())?;
        if n == 0 || !failures.is_empty() {
            // The others give up because of the first: what they say adds nothing.
            let first = failures.first().cloned();
            return Err(EngineError::Failed(
                first.unwrap_or_else(|| "the new processes died".into()),
            ));
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}
