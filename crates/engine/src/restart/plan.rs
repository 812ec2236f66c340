//! What a restart is going to do: decided, and everything that stands in the way found, before anything is touched.

use super::births::Births;
use super::strategy::{self, Namespaces, Strategy};
use super::world::wants_ipc;
use super::{Options, context};
use crate::descriptors::{self, mqueues, ptys};
use crate::file_policy::{self, FilePlan, PathMap, PlanOptions};
use crate::ipc;
use crate::job::own_stdio;
use crate::model::Tree;
use crate::progress::{Progress, Step};
use crate::store::Loader;
use crate::{EngineError, Refusal, faults, processor};
use serde::Serialize;
use stasis_image::{Image, ObjectId};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

/// What a restart is going to do; made without touching anything.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// The strategy chosen.
    pub strategy: Strategy,
    /// Sentences: what will be opened, truncated, moved aside, made.
    pub actions: Vec<String>,
    #[serde(skip)]
    pub(super) tree: Box<Tree>,
    #[serde(skip)]
    pub(super) files: FilePlan,
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
/// [`Options::verify_while_filling`] allows to leave the memory of processes to [`execute`](super::execute).
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
    let strategy = strategy::choose(options.strategy, &tree, &births, &mut refusals);
    owner(&tree, &mut refusals);
    kernel(&tree, &mut refusals)?;
    if !options.any_processor {
        refusals.extend(processor::missing(&tree.processor));
    }
    pseudo_terminals(&tree, strategy, &mut refusals);
    ipc::ids::plan(&tree.ipc, strategy, &mut refusals);
    let apart = strategy == Strategy::Namespaces && wants_ipc(&tree);
    refusals.extend(mqueues::problems(&tree.descriptions, apart));
    if apart && !Namespaces::look().ipc {
        let reason = "this host does not let you make ipc namespaces, which its System V objects or message queues need";
        refusals.push(refusal(
            "strategy namespaces",
            reason.into(),
            "use --strategy burn",
        ));
    }
    let stdio = own_stdio();
    let inherited = stasis_sys::descriptor::inherited();
    let identity = |fd: &OwnedFd| file_policy::FileId::of(fd.as_fd());
    let own: Vec<_> = stdio.iter().flatten().filter_map(identity).collect();
    let others = inherited.iter().filter_map(|(_, fd)| identity(fd));
    let wanted = PlanOptions {
        keep_own: options.keep_output,
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

/// Numbers of pseudo terminals are the host's, but where the job gets a devpts of its own.
fn pseudo_terminals(tree: &Tree, strategy: Strategy, refusals: &mut Vec<Refusal>) {
    if strategy == Strategy::Namespaces {
        return;
    }
    refusals.extend(ptys::taken_numbers(&tree.descriptions).into_iter().map(|number| {
        refusal(
            &format!("pseudo terminal /dev/pts/{number}"),
            "its number is in use by another program".into(),
            "restart when that program has ended, or with --strategy namespaces where the host allows it",
        )
    }));
}

/// An obstacle that belongs to no single process.
pub(crate) fn refusal(object: &str, reason: String, hint: &str) -> Refusal {
    Refusal {
        pid: None,
        process: String::new(),
        object: object.into(),
        reason,
        hint: hint.into(),
    }
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
            crate::memory::vdso::holds(
                &process.memory.areas,
                thread.registers.instruction_pointer(),
            )
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
