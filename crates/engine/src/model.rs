//! What an image's metadata holds.

use crate::checkpoint::JobInfo;
use crate::descriptors::{Description, Table, ptys};
use crate::file_policy::FileRecord;
use crate::{
    EngineError, attributes, credentials, ipc, memory, processor, signals, threads, timers,
};
use serde::{Deserialize, Serialize};
use stasis_image::Image;
use stasis_sys::Pid;
use std::time::Duration;

/// A process tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tree {
    /// Facts about the job.
    pub info: JobInfo,
    /// The keeper's id as the program saw it: the parent of the root.
    pub keeper: Pid,
    /// The keeper's session and process group: those of the terminal from which the job was started.
    pub outer_session: Pid,
    /// See [`Tree::outer_session`].
    pub outer_group: Pid,
    /// The first process.
    pub root: Pid,
    /// Living processes, parents before children.
    pub processes: Vec<Process>,
    /// Ended ones that nobody has waited for.
    pub zombies: Vec<Zombie>,
    /// Files that are open or mapped.
    pub files: Vec<FileRecord>,
    /// Shared memory.
    pub shared: Vec<memory::shared::State>,
    /// Open file descriptions.
    pub descriptions: Vec<Description>,
    /// The kernel's code that the processes had.
    #[serde(with = "serde_bytes")]
    pub vdso: Vec<u8>,
    /// What the program may rely on of the processor.
    pub processor: processor::State,
    /// The program's clocks.
    pub clocks: Clocks,
    /// The processes inside the tree that had asked for a checkpoint and waited for the answer.
    pub requesters: Vec<Pid>,
    /// The job had a controlling terminal.
    pub terminal: bool,
    /// The process group in the foreground of that terminal, where it was one of the job's or the outer group.
    pub foreground: Option<Pid>,
    /// The job's own pseudo terminals that control sessions of it.
    pub pseudo_terminals: Vec<ptys::Terminal>,
    /// System V objects: in an image, behind all others and only where there are any, so that images without them are what they were.
    #[serde(skip)]
    pub ipc: ipc::State,
}

/// The program's clocks at the checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: Duration,
    /// `CLOCK_BOOTTIME`.
    pub boottime: Duration,
    /// The supervisor's own `CLOCK_MONOTONIC` at the same moment, on which it notes when it has read something.
    pub supervisors: Duration,
}

/// One living process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its parent's id.
    pub parent: Pid,
    /// Its process group.
    pub group: Pid,
    /// Its session.
    pub session: Pid,
    /// Job control had stopped it, with this signal.
    pub stopped_by: Option<i32>,
    /// Its parent has waited for that stop.
    pub stop_reported: bool,
    /// The first thread has ended.
    pub leader_exited: bool,
    /// Living threads, the first thread first where it lives.
    pub threads: Vec<threads::State>,
    /// Memory.
    pub memory: memory::State,
    /// Signal actions and the shared queue.
    pub signals: signals::State,
    /// Timers.
    pub timers: timers::State,
    /// Limits and the like.
    pub attributes: attributes::State,
    /// Ids and capabilities.
    pub credentials: credentials::State,
    /// Descriptors.
    pub descriptors: Table,
}

impl Process {
    /// Its name: that of its first thread.
    #[must_use]
    pub fn name(&self) -> String {
        self.threads.first().map_or_else(String::new, |thread| {
            String::from_utf8_lossy(&thread.name).into_owned()
        })
    }
}

/// A process that has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Zombie {
    /// Its id.
    pub pid: Pid,
    /// Its parent's id.
    pub parent: Pid,
    /// Its process group.
    pub group: Pid,
    /// Its session.
    pub session: Pid,
    /// Raw wait status.
    pub status: i32,
    /// Its name.
    pub name: String,
}

impl Tree {
    /// Reads the metadata of an image.
    ///
    /// # Errors
    /// When it cannot be decoded.
    pub fn of(image: &Image) -> Result<Tree, EngineError> {
        Tree::decode(image.metadata()).map_err(|error| {
            EngineError::Failed(format!(
                "{}: its description of the program cannot be read: {error}",
                image.path().display()
            ))
        })
    }

    fn decode(metadata: &[u8]) -> Result<Tree, postcard::Error> {
        let (mut tree, more) = postcard::take_from_bytes::<Tree>(metadata)?;
        if !more.is_empty() {
            tree.ipc = postcard::from_bytes(more)?;
        }
        Ok(tree)
    }

    /// The metadata of an image.
    ///
    /// # Errors
    /// None in practice.
    pub fn encode(&self) -> Result<Vec<u8>, EngineError> {
        let describing = |error| EngineError::Failed(format!("describing the program: {error}"));
        let mut bytes = postcard::to_stdvec(self).map_err(describing)?;
        if !self.ipc.is_empty() {
            bytes.extend(postcard::to_stdvec(&self.ipc).map_err(describing)?);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_v_objects_stand_behind_the_tree_and_only_where_there_are_any() {
        // Zeros are a tree with nothing in it, and what images without such objects look like.
        let (tree, _) = postcard::take_from_bytes::<Tree>(&[0; 4096]).expect("zeros are values");
        let plain = tree.encode().expect("encoded");
        assert!(plain.iter().all(|byte| *byte == 0));
        assert!(Tree::decode(&plain).expect("decoded").ipc.is_empty());
        let set = ipc::semaphores::State {
            object: ipc::table::Object {
                id: 32769,
                key: -1,
                uid: 0,
                gid: 0,
                mode: 0o600,
                maker: 0,
                changed: 0,
                used: 0,
                users: Vec::new(),
                certain: true,
            },
            values: vec![3, 0],
            last: vec![Pid(0), Pid(7)],
        };
        let mut tree = tree;
        tree.ipc.sets.push(set);
        let bytes = tree.encode().expect("encoded");
        assert!(bytes.starts_with(&plain));
        assert_eq!(Tree::decode(&bytes).expect("decoded").ipc, tree.ipc);
        assert!(Tree::decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
