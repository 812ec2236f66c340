//! Taking a checkpoint: freeze, settle, live part, resume, write, commit.

use crate::address_room::AddressRoom;
use crate::barrier::{Barrier, Point};
use crate::capture::{self, Captured};
use crate::freeze::{self, Frozen};
use crate::memory::{self, Area};
use crate::progress::{Progress, Step};
use crate::space::{self, Modest};
use crate::store::{MemorySource, Store};
use crate::tracking::Track;
use crate::{EngineError, Job, faults, twin};
use serde::{Deserialize, Serialize};
use stasis_image::{
    Compression, Image, ImageWriter, ObjectId, Run, Secret, StoreJob, WriteOptions,
};
use stasis_sys::Pid;
use stasis_sys::pagemap::Pages;
use stasis_sys::process::Waited;
use stasis_tracee::{Memory, Withheld};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a checkpoint is to be taken.
#[derive(Clone, Debug)]
pub struct Options {
    /// How extents are compressed.
    pub compression: Compression,
    /// Threads that write; 0 is one for each processor that the job may use.
    pub threads: usize,
    /// Contents of files open for writing are stored up to this many bytes for each file.
    pub file_content_limit: u64,
    /// The processes inside the tree that wait for an answer: those that this checkpoint serves and those that have asked
    /// since, as both will wait in a restarted program.
    pub requesters: Requesters,
    /// End the program in the same instant: it never runs on after what was saved.
    pub stop: bool,
    /// Signals from outside that are meant for whoever saves the program, and not for the program: the image does not hold them.
    pub withheld: Withheld,
    /// The calling thread traces the program already ([`crate::shield`]): it traces it for the checkpoint as well.
    pub here: bool,
    /// Whether the program runs on while it is written, where that is possible.
    pub twins: bool,
    /// The nice value of what writes while the program runs on.
    pub nice: u8,
    /// An older image of this job in the same directory: what it holds already is not stored again.
    pub older: Option<Arc<Image>>,
    /// Images are made so that later ones can build upon them, and memory is tracked as far as it says.
    pub increments: Option<Track>,
    /// What the image is encrypted with.
    pub secret: Option<Secret>,
    /// The image takes the place of an older one of the same name, if there is one.
    pub replace: bool,
    /// Others that are saved at the same instant.
    pub barrier: Option<Arc<dyn Barrier>>,
    /// Facts about the job that are stored with it.
    pub info: JobInfo,
}

/// Processes inside the tree that have asked for a checkpoint and wait for the answer (the supervisor's numbers). The copies
/// are one list: requests arrive while a checkpoint is under way.
#[derive(Clone, Debug, Default)]
pub struct Requesters(Arc<Mutex<Vec<Pid>>>);

impl Requesters {
    /// Adds a process, before it is told that its request was taken.
    pub fn add(&self, pid: Pid) {
        self.lock().push(pid);
    }

    /// Takes a process out, when it is told the outcome or is lost.
    pub fn remove(&self, pid: Pid) {
        let mut list = self.lock();
        if let Some(place) = list.iter().position(|known| *known == pid) {
            list.remove(place);
        }
    }

    /// Those that wait now.
    #[must_use]
    pub fn list(&self) -> Vec<Pid> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an image tells of its job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// The job's name.
    pub name: String,
    /// The number of this checkpoint.
    pub sequence: u64,
    /// The command and its arguments, as given.
    pub command: Vec<String>,
    /// Seconds since 1970 at which the checkpoint began.
    pub taken_at: i64,
    /// Name of the host.
    pub host: String,
    /// The trees that were saved at the same instant, where there is somebody who sees to that.
    pub computation: Option<Computation>,
}

/// Trees that were saved at one instant and can only be continued together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Computation {
    /// Which one: the same in all its images.
    pub id: String,
    /// The number of this checkpoint of it.
    pub generation: u64,
    /// The names of the jobs, of this tree and all others.
    pub members: Vec<String>,
}

/// What a checkpoint did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The committed image.
    pub path: PathBuf,
    /// Its number.
    pub sequence: u64,
    /// For how long the program stood still.
    pub pause: Duration,
    /// From the request to the commit.
    pub total: Duration,
    /// Processes saved.
    pub processes: usize,
    /// Threads saved.
    pub threads: usize,
    /// Bytes of memory and files captured, before compression.
    pub captured: u64,
    /// Length of the image file in bytes.
    pub written: u64,
    /// Older files that it takes contents from.
    pub bases: usize,
    /// Bytes of memory that were known not to have changed, and not read.
    pub unread: u64,
    /// What the user should know (connections to be reset, decisions taken).
    pub notes: Vec<String>,
}

/// Saves `job` into `path`. The program runs on afterwards, whatever happened, unless [`Options::stop`] is set
/// and the image was committed.
///
/// # Errors
/// [`EngineError::Refused`] with everything that cannot be saved; others when the kernel or the disk fail.
/// No partial image is left behind.
pub fn checkpoint(
    job: &mut Job,
    path: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, EngineError> {
    if options.here {
        return trace(job, path, options, progress, Duration::ZERO);
    }
    // Tracees belong to the thread that has seized them. One that could not be stopped cannot be let go either, but the kernel
    // does that when the tracing thread ends (`exit_ptrace`, `kernel/ptrace.c`).
    std::thread::scope(|scope| {
        let tracing = scope.spawn(|| trace_until_possible(job, path, options, progress));
        tracing
            .join()
            .unwrap_or_else(|_| Err(EngineError::Failed("the checkpoint panicked".into())))
    })
}

/// What passes by itself is given so long, a little more each time.
const MOMENTS: [u64; 12] = [1, 2, 4, 8, 15, 30, 50, 75, 100, 150, 200, 300];

/// Lets the program run on for a moment where something stands in the way that passes by itself, and tries again.
fn trace_until_possible(
    job: &mut Job,
    path: &Path,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report, EngineError> {
    // Others wait for this tree: they are all let go, and whoever asked may try again.
    let moments = match options.barrier {
        Some(_) => &[][..],
        None => &MOMENTS[..],
    };
    let mut wait = Duration::ZERO;
    for moment in moments {
        match trace(job, path, options, progress, wait) {
            Err(EngineError::Passing(_)) => wait = Duration::from_millis(*moment),
            other => return other,
        }
    }
    match trace(job, path, options, progress, wait) {
        Err(EngineError::Passing(refusals)) if options.barrier.is_none() => {
            Err(EngineError::Refused(refusals))
        }
        other => other,
    }
}

fn trace(
    job: &mut Job,
    path: &Path,
    options: &Options,
    progress: &dyn Progress,
    moment: Duration,
) -> Result<Report, EngineError> {
    let began = Instant::now();
    faults::pass("begin")?;
    let writing = WriteOptions {
        compression: options.compression,
        threads: options.threads,
    };
    let mut writer = if options.replace {
        ImageWriter::replace(path, writing)?
    } else {
        ImageWriter::create(path, writing)?
    };
    if let Some(secret) = &options.secret {
        writer = writer.encrypted_with(secret)?;
    }
    if let Some(older) = &options.older {
        writer = writer.based_on(Arc::clone(older));
    }
    let track = options.increments.unwrap_or(Track::No);
    if options.increments.is_some() {
        writer = writer.in_fine_pieces();
    }
    if faults::asked("doubt") {
        writer = writer.doubting();
    }
    let store = Store::new(writer);
    let others = |point| match &options.barrier {
        Some(barrier) => barrier.wait(point),
        None => Ok(()),
    };
    faults::pass("created")?;
    // Now rather than before: the new file may be what the program has to hear of (inotify).
    std::thread::sleep(moment);
    progress.step(Step::Freeze);
    let paused = Instant::now();
    let ours: BTreeSet<Pid> = job.memory.ours.iter().copied().collect();
    let mut frozen = freeze::freeze(job.keeper, &ours, &job.memory.sleeping, options.withheld)?;
    others(Point::Frozen)?;
    faults::pass("frozen")?;
    job.memory.sleeping = sleeping(&frozen);
    progress.step(Step::Settle);
    capture::settle(&frozen, job.keeper)?;
    let room = AddressRoom::make(&frozen)?;
    faults::pass("settled")?;
    progress.step(Step::LivePart);
    let mut captured = capture::capture(&mut frozen, job, options, &store)?;
    for process in &mut captured.tree.processes {
        let meant = |queued: &crate::signals::Queued| !options.withheld.holds(&queued.0);
        process.signals.pending.retain(meant);
        (process.threads.iter_mut()).for_each(|thread| thread.pending.retain(meant));
    }
    room.amend(&mut captured.tree);
    faults::pass("captured")?;
    space::check(&frozen, &captured, options, path)?;
    let mut twins: Vec<Option<twin::Twin>> = frozen.processes.iter().map(|_| None).collect();
    let wanted = wanted_twins(&frozen, &mut captured, options);
    if wanted.contains(&true) {
        progress.step(Step::Twin);
        let tracked =
            (job.memory.tracking).prepare(&frozen, &captured.tree.processes, &wanted, track);
        match twin::fork_all(&mut frozen, &wanted, &tracked) {
            Ok(made) => twins = made,
            Err(error) => captured.notes.push(format!(
                "the program stands still while it is written: {error}"
            )),
        }
    }
    let tracking = &mut job.memory.tracking;
    tracking.adopt(&frozen, &captured.tree.processes, &mut twins, track);
    drop(room);
    faults::pass("twins")?;
    progress.step(Step::Write);
    write_shared(&frozen, &captured, &store)?;
    captured.ipc.write(&store)?;
    let sources: Vec<_> = frozen
        .processes
        .iter()
        .map(|p| Some((capture::living(p), &p.memory)))
        .collect();
    let now = |process: usize, area: &Area| twins[process].is_none() || !area.is_in_twin();
    write_private(&sources, &[], &mut captured, &store, now, progress)?;
    others(Point::Captured)?;
    faults::pass("written")?;
    let pids: Vec<Pid> = frozen.processes.iter().map(|process| process.pid).collect();
    let (processes, threads) = (
        frozen.processes.len(),
        frozen.processes.iter().map(|p| p.threads.len()).sum(),
    );
    let mut pause = paused.elapsed();
    let held = if options.stop {
        Some(frozen)
    } else {
        progress.step(Step::Resume);
        frozen.thaw();
        pause = paused.elapsed();
        faults::pass("resumed")?;
        None
    };
    let modest = Modest::new(if held.is_some() { 0 } else { options.nice });
    if twins.iter().any(Option::is_some) {
        tracking.scan();
        let clean: Vec<Vec<Run>> = match &options.older {
            Some(older) => (pids.iter())
                .map(|pid| tracking.clean(*pid, &older.header().checksum))
                .collect(),
            None => Vec::new(),
        };
        let sources: Vec<_> = twins
            .iter()
            .map(|twin| twin.as_ref().map(|twin| (twin.pid, &twin.memory)))
            .collect();
        let in_twin = |_, area: &Area| area.is_in_twin();
        write_private(&sources, &clean, &mut captured, &store, in_twin, progress)?;
        faults::pass("twins-written")?;
    }
    drop(twins);
    captured.tree.files = captured.files.finish();
    job.memory.files.clone_from(&captured.tree.files);
    let metadata = captured.tree.encode()?;
    progress.step(Step::Commit);
    faults::pass("committing")?;
    let (captured_bytes, unread) = (store.captured(), store.unread());
    let finished = store.writer.finish(&metadata)?;
    others(Point::Complete)?;
    faults::pass("complete")?;
    let committed = finished.commit()?;
    tracking.committed(committed.checksum);
    if let Some(frozen) = held {
        end(&frozen);
    }
    drop(modest);
    faults::pass("committed")?;
    Ok(Report {
        path: committed.path,
        sequence: options.info.sequence,
        pause,
        total: began.elapsed(),
        processes,
        threads,
        captured: captured_bytes,
        written: committed.file_len,
        bases: committed.bases,
        unread,
        notes: captured.notes,
    })
}

fn sleeping(frozen: &Frozen) -> std::collections::HashMap<Pid, crate::timed_calls::Sleeping> {
    let threads = frozen.processes.iter().flat_map(|process| &process.threads);
    threads
        .filter_map(|thread| Some((thread.tid, thread.sleeping?)))
        .collect()
}

/// Below this much memory in all, a program is written while it stands still.
const WORTH_TWINS: u64 = 2 << 20;
/// Below this much memory of a process, forking its twin takes longer than writing it: it is written while it stands still.
const WORTH_A_TWIN: u64 = 1 << 20;

/// Which processes are to be written from twins.
fn wanted_twins(frozen: &Frozen, captured: &mut Captured, options: &Options) -> Vec<bool> {
    // A program that adopts orphans itself would be given the twins.
    let adopts = |process: &crate::model::Process| process.attributes.subreaper;
    if options.stop || !options.twins || captured.tree.processes.iter().any(adopts) {
        return vec![false; frozen.processes.len()];
    }
    let bytes: Vec<u64> = frozen.processes.iter().map(space::own_memory).collect();
    let total = bytes.iter().sum::<u64>();
    let any = total >= WORTH_TWINS;
    // A program that writes all its memory meanwhile has it twice.
    if let Some(left) = space::available_memory().filter(|left| any && *left < total) {
        captured.notes.push(format!(
            "the program stands still while it is written: it has {} MiB of memory, and {} MiB are left for a copy of what it \
             changes meanwhile",
            total >> 20,
            left >> 20
        ));
        return vec![false; bytes.len()];
    }
    bytes
        .iter()
        .map(|bytes| any && *bytes >= WORTH_A_TWIN)
        .collect()
}

/// Writes the private memory that `wanted` picks, of every process that has a source, from that; what is `clean` of each is in the
/// older image.
fn write_private(
    sources: &[Option<(Pid, &Memory)>],
    clean: &[Vec<Run>],
    captured: &mut Captured,
    store: &Store,
    wanted: impl Fn(usize, &Area) -> bool,
    progress: &dyn Progress,
) -> Result<(), EngineError> {
    let mut parts = Vec::new();
    for ((n, source), process) in sources.iter().enumerate().zip(&mut captured.tree.processes) {
        let Some((pid, memory)) = source else {
            continue;
        };
        let mut pages = Pages::default();
        let wanted = |area: &Area| wanted(n, area);
        memory::pages(*pid, &process.memory.areas, wanted, &mut pages)?;
        let object = ObjectId(process.memory.contents);
        let runs = memory::runs(&pages.own);
        let clean = clean.get(n).map_or(&[][..], Vec::as_slice);
        parts.push((object, MemorySource(memory), runs, clean));
        process.memory.stored.append(&mut pages.own);
        process.memory.guards.append(&mut pages.guards);
    }
    let jobs: Vec<StoreJob<'_>> = parts
        .iter()
        .map(|(object, source, runs, clean)| StoreJob {
            object: *object,
            source,
            runs,
            clean,
        })
        .collect();
    let bytes = jobs
        .iter()
        .flat_map(|job| job.runs)
        .map(|run| run.len)
        .sum();
    let stored = watched(store, bytes, progress, || store.writer.store_all(&jobs))?;
    store.count(stored.read_len);
    store.count_unread(stored.clean_len);
    Ok(())
}

/// From so many bytes on, writing takes long enough for somebody to want to know how it comes along.
const WORTH_WATCHING: u64 = 64 << 20;
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Does `work`, which writes `bytes`, and tells meanwhile how far it is.
fn watched<T>(store: &Store, bytes: u64, progress: &dyn Progress, work: impl FnOnce() -> T) -> T {
    if bytes < WORTH_WATCHING {
        return work();
    }
    let total = store.writer.progress().read_len + bytes;
    std::thread::scope(|scope| {
        let (working, ended) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            while ended.recv_timeout(TELL_EVERY) == Err(RecvTimeoutError::Timeout) {
                progress.bytes(store.writer.progress().read_len, total);
            }
        });
        let result = work();
        drop(working);
        result
    })
}

/// Writes the shared objects that no descriptor holds.
fn write_shared(frozen: &Frozen, captured: &Captured, store: &Store) -> Result<(), EngineError> {
    for shared in &captured.shared {
        let memory = &frozen.processes[shared.process].memory;
        let source = ShiftedSource {
            memory,
            parts: &shared.parts,
        };
        let runs: Vec<Run> = shared
            .parts
            .iter()
            .map(|part| Run {
                offset: part.offset,
                len: part.len,
            })
            .collect();
        let stored = store
            .writer
            .store(ObjectId(shared.object), &source, &runs)?;
        store.count(stored.read_len);
    }
    Ok(())
}

/// Memory of a process seen as a shared object: offsets in the object are turned into addresses.
struct ShiftedSource<'a> {
    memory: &'a Memory,
    parts: &'a [capture::SharedPart],
}

impl stasis_image::Source for ShiftedSource<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let after = self.parts.partition_point(|part| part.offset <= offset);
        let part = after.checked_sub(1).map(|n| &self.parts[n]);
        match part {
            Some(part) if offset + buffer.len() as u64 <= part.offset + part.len => self
                .memory
                .read(buffer, part.address + (offset - part.offset)),
            _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Ends a tree that is frozen: it never runs again. The ends are waited for, as a tracer is told of each thread's
/// before the parent is told of the process's.
fn end(frozen: &Frozen) {
    for process in &frozen.processes {
        let _ = stasis_sys::signal::send(process.pid, stasis_sys::process::SIGKILL);
    }
    for process in &frozen.processes {
        // The first thread ends last, as the kernel has it.
        for thread in process.threads.iter().rev() {
            while let Ok(Waited::Child(_, status)) = stasis_sys::process::wait(thread.tid, 0) {
                if status.shell_code().is_some() {
                    break;
                }
            }
        }
    }
}
