//! Memory shared between processes: anonymous shared mappings, memfds, files that are mapped but have no name any more.
//!
//! Saved: contents, once for the tree, whoever maps it. An object that a descriptor is open on as well is saved with that descriptor
//! ([`crate::descriptors`]) and mapped from it at a restart; any other comes back as a memfd.
//!
//! Not saved: the part of an object beyond what is mapped, when no descriptor leads to it.
//!
//! Rests on: device and inode tell which areas are the same object. Pages of shared memory that this process never touched are not in its
//! page map, so that mincore(2) is asked, which looks at the object; what is swapped out is unknown to it: an area with swapped
//! pages is read whole. Reading a hole of shared memory through `/proc/PID/mem` would fill it.

use crate::EngineError;
use crate::batch::{Answers, Asked, Batch, Room};
use crate::conformance::Claim;
use crate::descriptors::DescriptionId;
use crate::maps::Vma;
use serde::{Deserialize, Serialize};
use stasis_sys::Pid;
use stasis_sys::pagemap::PAGE;
use std::collections::HashMap;
use std::ops::Range;

pub(super) const SHARED: Claim = Claim::kept(
    "memory: shared between processes, without a name",
    "contents once, whoever maps it",
    &[
        "memory::shared_anonymous",
        "memory::memfd_mapped",
        "memory::deleted_file",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[SHARED];

/// A shared object of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What maps showed: `/dev/zero (deleted)`, `/memfd:name (deleted)`, a path.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Bytes, as far as it is mapped.
    pub len: u64,
    /// The description that it is mapped from.
    pub description: Option<DescriptionId>,
    /// The object of the image with its contents, where there is no description.
    pub contents: Option<u32>,
}

/// A place where an object is mapped.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// By whom.
    pub process: Pid,
    /// Where.
    pub range: Range<u64>,
    /// Which part of the object.
    pub offset: u64,
    /// Some of it is swapped out.
    pub swapped: bool,
}

/// The objects of a tree while it is captured.
#[derive(Debug, Default)]
pub struct Objects {
    /// In the order of their numbers.
    pub objects: Vec<(State, Vec<Mapped>)>,
    index: HashMap<(u64, u64), u32>,
}

impl Objects {
    /// The number of the object that `vma` of `process` maps.
    pub fn find(&mut self, process: Pid, vma: &Vma) -> u32 {
        let objects = &mut self.objects;
        let number = *self
            .index
            .entry((vma.device, vma.inode))
            .or_insert_with(|| {
                let state = State {
                    name: vma.path.clone(),
                    len: 0,
                    description: None,
                    contents: None,
                };
                objects.push((state, Vec::new()));
                (objects.len() - 1) as u32
            });
        let (state, mapped) = &mut objects[number as usize];
        state.len = state.len.max(vma.offset + vma.size());
        mapped.push(Mapped {
            process,
            range: vma.range.clone(),
            offset: vma.offset,
            swapped: vma.swap > 0,
        });
        number
    }

    /// Ties objects to the descriptions that are open on them.
    pub fn tie(&mut self, inodes: &[(u64, u64)]) {
        for (number, key) in inodes.iter().enumerate() {
            if let Some(object) = self.index.get(key) {
                let state = &mut self.objects[*object as usize].0;
                state
                    .description
                    .get_or_insert(DescriptionId(number as u32));
            }
        }
    }
}

/// The questions that [`ask`] has put to a process: a piece of its memory each.
pub struct Questions(Vec<(Range<u64>, Asked, Room)>);

/// Address space that is asked for by one call.
const PIECE: u64 = 16 << 20;

/// Asks the process that maps it for the pages of a part that hold something.
#[must_use]
pub fn ask(range: &Range<u64>, batch: &mut Batch) -> Questions {
    let starts = range.clone().step_by(PIECE as usize);
    let pieces = starts.map(|at| {
        let piece = at..range.end.min(at + PIECE);
        let len = piece.end - piece.start;
        let room = batch.room(len.div_ceil(PAGE));
        let arguments = [at.into(), len.into(), room.into()];
        (
            piece,
            batch.call("mincore", libc::SYS_mincore, &arguments),
            room,
        )
    });
    Questions(pieces.collect())
}

/// The pages that hold something, as ranges of addresses.
///
/// # Errors
/// When a remote call has failed.
pub fn resident(questions: &Questions, answers: &Answers) -> Result<Vec<Range<u64>>, EngineError> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for (piece, asked, room) in &questions.0 {
        answers.result(*asked)?;
        let pages = (piece.end - piece.start).div_ceil(PAGE);
        for (n, byte) in answers.bytes(*room, pages).iter().enumerate() {
            if byte & 1 == 0 {
                continue;
            }
            let page = piece.start + n as u64 * PAGE;
            match found.last_mut() {
                Some(last) if last.end == page => last.end += PAGE,
                _ => found.push(page..page + PAGE),
            }
        }
    }
    Ok(found)
}
