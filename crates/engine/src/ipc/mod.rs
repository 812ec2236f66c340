//! System V shared memory, semaphores and message queues (`sysvipc(7)`).
//!
//! They belong to an ipc namespace, and are known by their ids there. What is the program's is in [`belonging`]; how it is looked at,
//! [`scout`]; what is saved of each kind, [`segments`], [`semaphores`] and [`queues`].
//!
//! The same ids come back ([`ids`]). Under the strategy `namespaces`, a job whose image holds such objects gets an ipc namespace of its own, in
//! which ids can be chosen and all are free; without, it stays in the host's, and so may still meet others' objects. What the killed
//! program has left on the host stays there, as it would without Stasis.
//!
//! Contents of segments are shared memory: they are read before the program runs on, from the process that looks, not from twins. A twin
//! gives up its attachments before it is ever seen.

pub mod belonging;
pub mod ids;
pub mod queues;
pub mod scout;
pub mod segments;
pub mod semaphores;
pub mod table;
pub mod undo;

pub use belonging::Job;
pub use scout::Sight;
pub use table::Kind;

use crate::descriptors::mqueues;
use crate::error::Context;
use crate::freeze::Frozen;
use crate::inquiry::Outside;
use crate::store::{MemorySource, Store};
use crate::{EngineError, Refusal};
use serde::{Deserialize, Serialize};
use stasis_image::{ObjectId, Run};
use stasis_sys::Pid;
use std::collections::HashMap;
use std::io;

/// What an image keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Which run of the kernel the ids are of (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// Shared memory.
    pub segments: Vec<segments::State>,
    /// Semaphores.
    pub sets: Vec<semaphores::State>,
    /// Message queues.
    pub queues: Vec<queues::State>,
    /// What processes undo when they end.
    pub undo: Vec<undo::State>,
    /// POSIX message queues that no process has open.
    pub closed: Vec<mqueues::Queue>,
}

/// Gives stored contents back, piece by piece.
pub trait Loader {
    /// Calls `put` with offset and bytes of each piece of an object of the image.
    ///
    /// # Errors
    /// When the image is damaged, and what `put` says.
    fn each(
        &self,
        object: u32,
        put: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), EngineError>;
}

impl Loader for crate::store::Loader<'_> {
    fn each(
        &self,
        object: u32,
        put: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), EngineError> {
        let mut buffer = Vec::new();
        for extent in self.0.extents(ObjectId(object)) {
            self.0.read_extent(extent, &mut buffer)?;
            put(extent.offset, &buffer).context(|| "writing saved contents".into())?;
        }
        Ok(())
    }
}

fn failure(what: &str, source: io::Error) -> EngineError {
    EngineError::System {
        what: format!("restoring {what}"),
        source,
    }
}

/// Owner or mode that cannot be given are told, and no reason to give up.
fn tell(notes: &mut Vec<String>, kind: Kind, id: i32, result: io::Result<()>) {
    if let Err(error) = result {
        notes.push(format!(
            "{} keeps the owner, mode and limits of a new one: {error}",
            kind.words(id)
        ));
    }
}

impl State {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
            && self.sets.is_empty()
            && self.queues.is_empty()
            && self.closed.is_empty()
    }

    /// Every object with its kind and size.
    pub fn objects(&self) -> impl Iterator<Item = (Kind, &table::Object, u64)> {
        let segments = self.segments.iter();
        let sets = self.sets.iter();
        let queues = self.queues.iter();
        segments
            .map(|state| (Kind::Segment, &state.object, state.size))
            .chain(sets.map(|state| (Kind::Set, &state.object, state.values.len() as u64)))
            .chain(queues.map(|state| (Kind::Queue, &state.object, 0)))
    }
}

/// Which run of the kernel this is.
pub(crate) fn boot() -> String {
    let id = stasis_sys::procfs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

/// What a tree has, while it is captured.
#[derive(Debug, Default)]
pub struct Captured {
    /// For the image.
    pub state: State,
    /// What the user should know.
    pub notes: Vec<String>,
    sight: Option<Sight>,
}

/// Captures what belongs to `job`; `mapped` is how many areas of the tree each segment has, `virtual_pids` how the program calls its processes.
///
/// # Errors
/// [`EngineError::Refused`] for what is the program's and cannot be looked at.
pub fn capture(
    job: &Job,
    keeper: Pid,
    mapped: &HashMap<i32, u64>,
    virtual_pids: &HashMap<Pid, Pid>,
    store: &Store,
) -> Result<Captured, EngineError> {
    let sight = Sight::of(job, keeper)?;
    let refusals = obstacles(job, sight.as_ref().map(|sight| &sight.gathered), mapped);
    if !refusals.is_empty() {
        return Err(EngineError::Refused(refusals));
    }
    let Some(mut sight) = sight else {
        return Ok(Captured::default());
    };
    let gathered = &mut sight.gathered;
    let mut notes = Vec::new();
    for seen in &mut gathered.segments {
        seen.state.contents = store.number();
        let id = seen.state.object.id;
        // The process that looks has it attached as well.
        let ours = mapped.get(&id).copied().unwrap_or(0);
        if ours > 0 && seen.attached > ours {
            notes.push(format!(
                "{} is attached by a program outside of the job, too: a restarted job has its own copy of it",
                Kind::Segment.words(id)
            ));
        }
    }
    let mut sets = gathered.sets.clone();
    for last in sets.iter_mut().flat_map(|set| &mut set.last) {
        *last = virtual_pids.get(last).copied().unwrap_or(Pid(0));
    }
    let state = State {
        boot: boot(),
        segments: gathered
            .segments
            .iter()
            .map(|seen| seen.state.clone())
            .collect(),
        sets,
        queues: std::mem::take(&mut gathered.queues),
        undo: Vec::new(),
        closed: std::mem::take(&mut gathered.closed),
    };
    Ok(Captured {
        state,
        notes,
        sight: Some(sight),
    })
}

/// What cannot be saved.
fn obstacles(
    job: &Job,
    gathered: Option<&scout::Gathered>,
    mapped: &HashMap<i32, u64>,
) -> Vec<Refusal> {
    let failures = gathered.map_or(&[][..], |gathered| &gathered.failures);
    let seen = gathered.map_or(&[][..], |gathered| &gathered.segments);
    let unreadable = failures.iter().map(|(kind, id, error)| {
        let hint = "give its owner the right to read it (mode 0600 or more)";
        (*kind, *id, format!("it cannot be read: {error}"), hint)
    });
    let missing = mapped.keys().filter(|id| {
        seen.iter().all(|seen| seen.state.object.id != **id)
            && failures.iter().all(|(_, failed, _)| failed != *id)
    });
    let missing = missing.map(|id| {
        let reason = "it is not in the job's ipc namespace".to_owned();
        let hint = "let the program detach it before the checkpoint";
        (Kind::Segment, *id, reason, hint)
    });
    let huge = job.huge.iter().map(|id| {
        let reason = "it is made of huge pages (SHM_HUGETLB)".to_owned();
        let hint = "use transparent huge pages instead";
        (Kind::Segment, *id, reason, hint)
    });
    let all = unreadable.chain(missing).chain(huge);
    all.map(|(kind, id, reason, hint)| Refusal {
        pid: None,
        process: String::new(),
        object: kind.words(id),
        reason,
        hint: hint.into(),
    })
    .collect()
}

impl Captured {
    /// Finds what processes undo of semaphores when they end.
    ///
    /// # Errors
    /// Those of [`undo`].
    pub(crate) fn look_for_undo(
        &mut self,
        frozen: &mut Frozen,
        outside: &[Outside],
        keeper: Pid,
    ) -> Result<(), EngineError> {
        let sets = &mut self.state.sets;
        self.state.undo = undo::capture(frozen, outside, keeper, sets)?;
        for set in sets {
            set.object.certain |= (self.state.undo.iter()).any(|undo| undo.set == set.object.id);
        }
        Ok(())
    }

    /// Writes the contents of segments, while the program stands still, and lets go of them.
    ///
    /// # Errors
    /// When they cannot be read or written.
    pub fn write(&mut self, store: &Store) -> Result<(), EngineError> {
        let Some(sight) = self.sight.take() else {
            return Ok(());
        };
        for seen in &sight.gathered.segments {
            let source = Shifted {
                memory: MemorySource(&sight.memory),
                start: seen.address,
            };
            let runs: Vec<Run> = seen
                .resident
                .iter()
                .map(|range| Run {
                    offset: range.start,
                    len: range.end - range.start,
                })
                .collect();
            let object = ObjectId(seen.state.contents);
            let stored = store.writer.store(object, &source, &runs)?;
            store.count(stored.read_len);
        }
        Ok(())
    }
}

/// Memory of a process from an address on.
struct Shifted<'a> {
    memory: MemorySource<'a>,
    start: u64,
}

impl stasis_image::Source for Shifted<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.memory.read_exact_at(buffer, self.start + offset)
    }
}
