//! Restarting from an image: verify, plan, files, skeleton, memory, threads, start.

mod births;
mod fill;
pub mod ids;
mod revive;
mod skeleton;
pub(crate) mod world;

use crate::descriptors::{self, RestoreContext, ttys};
use crate::error::Context;
use crate::file_policy::{self, FilePlan, PathMap, PlanOptions, ReadyFiles};
use crate::job::{self, Memory, own_stdio};
use crate::keeper;
use crate::model::Tree;
use crate::progress::{Progress, Step};
use crate::store::Loader;
use crate::{EngineError, Job, Refusal, faults};
use births::Births;
use ids::IdSource;
use rustix::fs::MemfdFlags;
use serde::Serialize;
use skeleton::Skeleton;
use stasis_image::{Image, ObjectId};
use stasis_sys::Pid;
use stasis_sys::board::Board;
use stasis_sys::process::{self, Fork};
use stasis_sys::signal::{self, SignalSet};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// How the program gets its old ids back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// `clone3(set_tid)` where we are: needs CAP_CHECKPOINT_RESTORE and free ids.
    Privileged,
    /// In user, pid, time and mount namespaces of the job's own.
    Namespaces,
    /// Children are forked until the kernel's counter stands right before the wanted id. Needs free ids.
    Burn,
}

/// What to do with a file whose contents do not match the saved memory and cannot be made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ChangedFiles {
    /// Refuse to start, naming them all.
    #[default]
    Refuse,
    /// Use them as they are.
    Accept,
}

/// How to restart.
#[derive(Debug, Default)]
pub struct Options {
    /// Which strategy; `None` chooses the first that this host allows.
    pub strategy: Option<Strategy>,
    /// What to do about changed files.
    pub changed_files: ChangedFiles,
    /// `OLD=NEW` prefixes for paths.
    pub map_path: Vec<(String, String)>,
    /// Threads that read; 0 is one for each processor.
    pub threads: usize,
    /// The plan will be carried out: the memory of processes, most of an image, need not be read twice, once to be verified and
    /// once to be put in its place, where nothing but the new processes would have been touched when damage is found.
    pub verify_while_filling: bool,
    /// The slave side of a terminal that becomes the job's controlling terminal, where the job had one.
    pub terminal: Option<OwnedFd>,
}

/// What a restart is going to do; made without touching anything.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// The strategy chosen.
    pub strategy: Strategy,
    /// Sentences: what will be opened, truncated, moved aside, made.
    pub actions: Vec<String>,
    #[serde(skip)]
    tree: Box<Tree>,
    #[serde(skip)]
    files: FilePlan,
}

impl Plan {
    /// Whether the job needs a terminal of its own ([`Options::terminal`]) to control: it had one, and its session will be a
    /// new one.
    #[must_use]
    pub fn wants_terminal(&self) -> bool {
        self.tree.terminal && self.strategy == Strategy::Namespaces
    }
}

/// Verifies `image` and decides what a restart does. Nothing is touched. The image is verified completely, unless
/// [`Options::verify_while_filling`] allows to leave the memory of processes to [`execute`].
///
/// # Errors
/// [`EngineError::Refused`] with all obstacles at once; [`EngineError::Image`] for a damaged image.
pub fn plan(
    image: &Image,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Plan, EngineError> {
    progress.step(Step::Verify);
    let tree = Tree::of(image)?;
    let later = options.verify_while_filling && !tree.terminal;
    if later {
        verify_all_but_memory(image, &tree, options)?;
    } else {
        verify(image, options, progress)?;
    }
    let loader = Loader(image);
    let births = Births::plan(&tree);
    let mut refusals = Vec::new();
    let strategy = choose(options.strategy, &tree, &births, &mut refusals);
    owner(&tree, &mut refusals);
    kernel(&tree, &mut refusals)?;
    let stdio = own_stdio();
    let inherited = stasis_sys::descriptor::inherited();
    let identity = |fd: &OwnedFd| file_policy::FileId::of(fd.as_fd());
    let own: Vec<_> = stdio.iter().flatten().filter_map(identity).collect();
    let others = inherited.iter().filter_map(|(_, fd)| identity(fd));
    let wanted = PlanOptions {
        changed: options.changed_files,
        map: PathMap::new(&options.map_path),
        sequence: tree.info.sequence,
        held: own.iter().copied().chain(others).collect(),
        own,
    };
    let files = file_policy::plan(&tree.files, &wanted, &loader);
    refusals.extend(files.problems.iter().cloned());
    let context = context(options, &loader, None, &stdio, &inherited, 0);
    let open = descriptors::plan(&tree.descriptions, &context);
    refusals.extend(open.refusals);
    // A damaged image is told before anything else, and before any file is changed for its sake.
    if later && (!refusals.is_empty() || files.changes_files()) {
        verify(image, options, progress)?;
    }
    if !refusals.is_empty() {
        return Err(EngineError::Refused(refusals));
    }
    let mut actions = files.actions.clone();
    actions.extend(open.actions);
    Ok(Plan {
        strategy,
        actions,
        tree: Box::new(tree),
        files,
    })
}

fn verify(image: &Image, options: &Options, progress: &dyn Progress) -> Result<(), EngineError> {
    image.verify(options.threads, &|done| {
        progress.bytes(done, image.header().file_len)
    })?;
    Ok(())
}

/// Verifies what is read by others than the process that fills the memory, and that none of it is missing.
fn verify_all_but_memory(image: &Image, tree: &Tree, options: &Options) -> Result<(), EngineError> {
    let memory: BTreeSet<ObjectId> = tree
        .processes
        .iter()
        .map(|process| ObjectId(process.memory.contents))
        .collect();
    let mut others: Vec<ObjectId> = image
        .all_extents()
        .iter()
        .map(|extent| extent.object)
        .collect();
    others.dedup();
    others.retain(|object| !memory.contains(object));
    image.for_each_extent(&others, options.threads, &|_, _| Ok(()))?;
    Ok(())
}

fn context<'a>(
    options: &'a Options,
    loader: &'a Loader<'a>,
    files: Option<&'a ReadyFiles>,
    stdio: &'a [Option<OwnedFd>; 3],
    inherited: &'a [(RawFd, OwnedFd)],
    first_free: RawFd,
) -> RestoreContext<'a> {
    RestoreContext {
        contents: loader,
        files,
        first_free,
        stdio,
        inherited,
        terminal: options.terminal.as_ref(),
        path_map: &options.map_path,
        changed_files: options.changed_files,
    }
}

fn refusal(object: &str, reason: String, hint: &str) -> Refusal {
    Refusal {
        pid: None,
        process: String::new(),
        object: object.into(),
        reason,
        hint: hint.into(),
    }
}

fn choose(
    asked: Option<Strategy>,
    tree: &Tree,
    births: &Births,
    refusals: &mut Vec<Refusal>,
) -> Strategy {
    let wanted = births.wanted(tree);
    let wanted = || {
        wanted
            .iter()
            .filter(|id| ![tree.keeper, tree.outer_session, tree.outer_group].contains(id))
    };
    let strategy = asked.unwrap_or_else(|| {
        if ids::may_choose_ids() && ids::taken(wanted()).is_empty() {
            Strategy::Privileged
        } else if ids::namespaces_work() {
            Strategy::Namespaces
        } else {
            Strategy::Burn
        }
    });
    if strategy == Strategy::Privileged && !ids::may_choose_ids() {
        let reason = "choosing process ids needs CAP_CHECKPOINT_RESTORE or root".to_owned();
        refusals.push(refusal(
            "strategy privileged",
            reason,
            "use --strategy namespaces or burn",
        ));
    }
    // What was chosen here was tried before it was chosen.
    if asked == Some(Strategy::Namespaces) && !ids::namespaces_work() {
        let reason = "this host does not let you make user namespaces".to_owned();
        refusals.push(refusal(
            "strategy namespaces",
            reason,
            "use --strategy burn",
        ));
    }
    if strategy != Strategy::Namespaces {
        let taken: Vec<String> = ids::taken(wanted())
            .iter()
            .map(ToString::to_string)
            .collect();
        if !taken.is_empty() {
            let reason = format!("other processes have them: {}", taken.join(", "));
            let hint = "end those (is the job still running?), or restart where user namespaces are allowed";
            refusals.push(refusal("the program's process ids", reason, hint));
        }
    }
    strategy
}

fn owner(tree: &Tree, refusals: &mut Vec<Refusal>) {
    let me = rustix::process::geteuid().as_raw();
    let other = tree
        .processes
        .iter()
        .find(|process| process.credentials.uids.iter().any(|uid| *uid != me));
    if let Some(process) = other
        && me != 0
    {
        refusals.push(refusal(
            "the image",
            format!(
                "it is of a program of user {}, and you are user {me}",
                process.credentials.uids[0]
            ),
            "only its own user or root can restart it",
        ));
    }
}

/// A thread inside the vdso can only go on under the kernel that made it.
fn kernel(tree: &Tree, refusals: &mut Vec<Refusal>) -> Result<(), EngineError> {
    if crate::memory::vdso::own()? == tree.vdso && !faults::asked("other-vdso") {
        return Ok(());
    }
    for process in &tree.processes {
        let inside = |thread: &&crate::threads::State| {
            crate::memory::vdso::holds(&process.memory.areas, thread.registers.rip)
        };
        if let Some(thread) = process.threads.iter().find(inside) {
            let reason =
                "it was stopped inside the vdso, the code of a kernel that is not this host's"
                    .to_owned();
            let hint = "restart an earlier or later checkpoint, or this one under the kernel that it was made under";
            refusals.push(Refusal {
                pid: Some(process.pid),
                process: process.name(),
                ..refusal(&format!("thread {}", thread.virtual_tid), reason, hint)
            });
        }
    }
    Ok(())
}

/// Descriptor numbers of what the restoring supervisor maps into processes: the same in all of them.
struct Numbers {
    first_free: RawFd,
    files: RawFd,
    shared: RawFd,
    executables: RawFd,
    end: RawFd,
}

impl Numbers {
    fn of(tree: &Tree) -> Numbers {
        let tables: Vec<_> = tree
            .processes
            .iter()
            .map(|process| process.descriptors.clone())
            .collect();
        let first_free = descriptors::first_free(&tables, &tree.descriptions);
        // The descriptions themselves, and what the modules of the kinds need beside them, lie below.
        let files = first_free + 2 * tree.descriptions.len() as RawFd + 64;
        let shared = files + tree.files.len() as RawFd;
        let executables = shared + tree.shared.len() as RawFd;
        Numbers {
            first_free,
            files,
            shared,
            executables,
            end: executables + tree.processes.len() as RawFd,
        }
    }

    fn keep(&self) -> Vec<RawFd> {
        (self.files..self.end).collect()
    }
}

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
    let numbers = Numbers::of(tree);
    raise_descriptor_limit(numbers.end)?;
    let (events, keeper_end) = keeper::line().context(|| "making the keeper's line".into())?;
    let (reports, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context(|| "making a pipe".into())?;
    let stdio = own_stdio();
    let inherited = stasis_sys::descriptor::inherited();
    let board = Board::new().context(|| "sharing memory".into())?;
    // Orphans of the namespace's making come to the supervisor.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let maker = Maker {
        image,
        plan,
        options,
        births: &births,
        numbers: &numbers,
        board,
        ids: IdSource::new(plan.strategy, births.wanted(tree)),
        ready,
        stdio: &stdio,
        inherited: &inherited,
        front: &front,
        supervisor: &keeper_end,
        report: report.as_fd(),
    };
    match process::fork().context(|| "starting the keeper".into())? {
        Fork::Child => maker.first(),
        Fork::Parent(_) => {}
    }
    drop((keeper_end, report, front));
    let mut notes = await_skeleton(File::from(reports), tree.processes.len())?;
    faults::pass("revive")?;
    // In a thread of its own: what dies while it is let go stays its tracer's, and would never be its parent's to wait for, until
    // the tracing thread ends (`exit_ptrace`, `kernel/ptrace.c`).
    let revived = std::thread::scope(|scope| {
        let tracing = scope.spawn(|| {
            let way = revive::Way {
                image,
                plan,
                numbers: &numbers,
                options,
                progress,
                keeper: events.as_fd(),
            };
            revive::revive(&way, &mut notes)
        });
        let panicked = |_| Err(EngineError::Failed("the restart panicked".into()));
        tracing.join().unwrap_or_else(panicked)
    })?;
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

/// Makes the keeper and the skeleton: everything that runs in forked copies.
struct Maker<'a> {
    image: &'a Image,
    plan: &'a Plan,
    options: &'a Options,
    births: &'a Births,
    numbers: &'a Numbers,
    board: Board,
    ids: IdSource,
    ready: &'a ReadyFiles,
    stdio: &'a [Option<OwnedFd>; 3],
    inherited: &'a [(RawFd, OwnedFd)],
    front: &'a OwnedFd,
    supervisor: &'a OwnedFd,
    report: BorrowedFd<'a>,
}

impl Maker<'_> {
    /// Runs in the first forked copy; its end is a process's end.
    fn first(&self) -> ! {
        let _ = signal::set_mask(SignalSet::ALL);
        for signal in 1..=64 {
            let _ = signal::set_default(signal);
        }
        let result = match self.plan.strategy {
            Strategy::Namespaces => self.make_world(),
            Strategy::Privileged | Strategy::Burn => self.make_keeper(),
        };
        self.end(result)
    }

    fn end(&self, result: Result<(), EngineError>) -> ! {
        if let Err(error) = &result {
            let _ = rustix::io::write(
                self.report,
                format!("{}\n", error.to_string().replace('\n', "; ")).as_bytes(),
            );
            self.board.fail();
        }
        process::exit_now(i32::from(result.is_err()))
    }

    fn note(&self, note: &str) {
        let _ = rustix::io::write(
            self.report,
            format!("{}{note}\n", skeleton::NOTE).as_bytes(),
        );
    }

    /// Forks and runs `child` in the child, which then ends.
    fn fork(
        &self,
        want: Option<Pid>,
        child: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<Pid, EngineError> {
        match process::fork_with(want, 0).context(|| "making a process".into())? {
            Fork::Child => self.end(child()),
            Fork::Parent(pid) => Ok(pid),
        }
    }

    fn make_world(&self) -> Result<(), EngineError> {
        let mut notes = Vec::new();
        world::enter(&self.plan.tree.clocks, &mut notes)?;
        for note in notes {
            self.note(&note);
        }
        self.fork(None, || self.be_init())?;
        Ok(())
    }

    /// The first process of the pid namespace: makes the keeper in the session and group that it had, and waits for its end,
    /// which takes everything with it.
    fn be_init(&self) -> Result<(), EngineError> {
        if let Err(error) = world::mount_proc() {
            self.note(&format!("/proc shows the host's process ids ({error}): the program may not find itself there"));
        }
        let tree = &self.plan.tree;
        let lead_session = || -> Result<(), EngineError> {
            process::new_session().context(|| "making a session".into())?;
            if let Some(terminal) = &self.options.terminal {
                rustix::process::ioctl_tiocsctty(terminal)
                    .context(|| "taking the terminal".into())?;
            }
            let foreground = || -> Result<(), EngineError> {
                let Some(terminal) = &self.options.terminal else {
                    return Ok(());
                };
                let group = rustix::process::Pid::from_raw(process::group().0);
                let group = group.ok_or_else(|| EngineError::Failed("no process group".into()))?;
                rustix::termios::tcsetpgrp(terminal, group)
                    .context(|| "giving the terminal to the job".into())
            };
            let lead_group = || -> Result<(), EngineError> {
                if process::own_id() == tree.outer_group && tree.outer_group != tree.outer_session {
                    process::set_group(Pid(0)).context(|| "making a process group".into())?;
                }
                foreground()?;
                self.fork(Some(tree.keeper), || self.make_keeper())?;
                self.stand_by();
                Ok(())
            };
            if tree.outer_group == tree.outer_session || tree.outer_group.0 == 0 {
                lead_group()
            } else {
                self.fork(Some(tree.outer_group), lead_group)?;
                self.stand_by();
                Ok(())
            }
        };
        let session = (tree.outer_session.0 != 0).then_some(tree.outer_session);
        self.fork(session, lead_session)?;
        // This process lives as long as the job: what it kept open, nobody else would ever see closed.
        keeper::let_go_of_stdio();
        keeper::close_all_but(&[]);
        loop {
            match process::wait(Pid(-1), 0).context(|| "waiting for the keeper".into())? {
                process::Waited::NoChildren => return Ok(()),
                process::Waited::Child(..) | process::Waited::Nothing => {}
            }
        }
    }

    /// Waits for the end of all children, holding nothing. The leader of a session takes its terminal with it when it ends; and
    /// in an orphaned process group, of which no ancestor in another group of the session could continue it, SIGTSTP and its
    /// like do not stop a process (`setpgid(2)`).
    fn stand_by(&self) {
        // Nothing of this process is used any more but its place in the tree.
        let _ = stasis_sys::descriptor::close_from(0);
        while let Ok(process::Waited::Child(..)) = process::wait(Pid(-1), 0) {}
    }

    /// In the keeper: opens everything, makes the processes, and serves.
    fn make_keeper(&self) -> Result<(), EngineError> {
        keeper::become_keeper();
        let tree = &self.plan.tree;
        let loader = Loader(self.image);
        let context = context(
            self.options,
            &loader,
            Some(self.ready),
            self.stdio,
            self.inherited,
            self.numbers.first_free,
        );
        // What this process itself needs must not be in the way of the program's numbers.
        let high = |fd: BorrowedFd<'_>| {
            rustix::io::fcntl_dupfd_cloexec(fd, self.numbers.end)
                .context(|| "duplicating a descriptor".into())
        };
        let (front, supervisor, report) = (
            high(self.front.as_fd())?,
            high(self.supervisor.as_fd())?,
            high(self.report)?,
        );
        let opened = descriptors::open_all(&tree.descriptions, &context)?;
        for note in &opened.notes {
            self.note(note);
        }
        self.open_mapped(&opened, &loader)?;
        let keep = self.numbers.keep();
        let path_map = PathMap::new(&self.options.map_path);
        let skeleton = Skeleton {
            tree,
            births: self.births,
            board: self.board,
            ids: &self.ids,
            opened: &opened,
            keep: &keep,
            path_map: &path_map,
            report: report.as_fd(),
        };
        skeleton.make()?;
        self.bring_to_foreground();
        if self.plan.strategy == Strategy::Namespaces {
            // New processes of the program get ids above those that it knows, as they would have. Without that they would be low.
            let highest = self.births.wanted(tree).last().map_or(1, |id| id.0);
            let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", highest.to_string());
        }
        self.await_word(&supervisor)?;
        keeper::tell_sealed(&supervisor, &descriptors::seal(&tree.descriptions, &opened));
        drop(opened);
        keeper::let_go_of_stdio();
        keeper::close_all_but(&[front.as_raw_fd(), supervisor.as_raw_fd()]);
        self.await_word(&supervisor)?;
        keeper::serve(&front, &supervisor, tree.root)
    }

    /// Puts the process group in the foreground of the terminal that was there: in the keeper, which blocks SIGTTOU. Where the
    /// terminal is the restart's own, this command has to be in its foreground.
    fn bring_to_foreground(&self) {
        let tree = &self.plan.tree;
        let Some(group) = (tree.foreground.filter(|group| *group != tree.outer_group))
            .and_then(|group| rustix::process::Pid::from_raw(group.0))
        else {
            return;
        };
        let terminal = match &self.options.terminal {
            Some(made) => Some(made.as_fd()),
            None => ttys::in_foreground(self.stdio),
        };
        if let Some(terminal) = terminal
            && let Err(error) = rustix::termios::tcsetpgrp(terminal, group)
        {
            self.note(&format!(
                "process group {} could not be put in the foreground of the terminal: {error}",
                group.as_raw_nonzero()
            ));
        }
    }

    /// Waits until the supervisor has come to the next step; when it dies instead, the processes die.
    fn await_word(&self, supervisor: &OwnedFd) -> Result<(), EngineError> {
        let mut buffer = [0u8; keeper::MESSAGE_LEN];
        match rustix::net::recv(supervisor, &mut buffer, rustix::net::RecvFlags::empty()) {
            Ok((n, _)) if n > 0 => Ok(()),
            _ => {
                keeper::kill_descendants();
                process::exit_now(1)
            }
        }
    }

    /// Opens what is mapped, on the numbers that the supervisor will use.
    fn open_mapped(
        &self,
        opened: &descriptors::Opened,
        loader: &Loader<'_>,
    ) -> Result<(), EngineError> {
        use crate::contents::{ContentId, ContentLoader};
        use crate::file_policy::FileIndex;
        use rustix::fs::OFlags;
        let tree = &self.plan.tree;
        let place = |fd: BorrowedFd<'_>, number: RawFd| {
            stasis_sys::descriptor::duplicate_to(fd.as_raw_fd(), number, true)
                .context(|| format!("making descriptor {number}"))
        };
        for (n, record) in tree.files.iter().enumerate() {
            if !(record.uses.mapped || record.uses.mapped_shared_writable) {
                continue;
            }
            let access = if record.uses.mapped_shared_writable {
                OFlags::RDWR
            } else {
                OFlags::RDONLY
            };
            let fd = self
                .ready
                .open(FileIndex(n as u32), access | OFlags::CLOEXEC)?;
            place(fd.as_fd(), self.numbers.files + n as RawFd)?;
        }
        for (n, object) in tree.shared.iter().enumerate() {
            let number = self.numbers.shared + n as RawFd;
            if let Some(fd) = object.description.and_then(|id| opened.fd(id)) {
                place(fd, number)?;
                continue;
            }
            let name = String::from_utf8_lossy(&object.name);
            let name = name
                .trim_end_matches(" (deleted)")
                .trim_start_matches("/memfd:");
            let name = name.rsplit('/').next().unwrap_or(name);
            let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)
                .context(|| "making shared memory".into())?;
            rustix::fs::ftruncate(&fd, object.len).context(|| "making shared memory".into())?;
            let file = File::from(fd);
            if let Some(contents) = object.contents {
                loader.load_into(ContentId(contents), &file)?;
            }
            place(file.as_fd(), number)?;
        }
        for (n, process) in tree.processes.iter().enumerate() {
            use std::os::unix::ffi::OsStrExt;
            let path = std::path::Path::new(std::ffi::OsStr::from_bytes(
                &process.memory.layout.executable,
            ));
            // A program whose file is gone runs on without its name in /proc/PID/exe.
            if let Ok(file) = File::open(path) {
                place(file.as_fd(), self.numbers.executables + n as RawFd)?;
            }
        }
        Ok(())
    }
}
