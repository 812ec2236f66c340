//! What an image's metadata holds.

use crate::checkpoint::JobInfo;
use crate::descriptors::{Description, DescriptionId, Table, ptys};
use crate::file_policy::FileRecord;
use crate::{
    EngineError, attributes, credentials, ipc, memory, processor, settings, signals, threads,
    timers,
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
    /// System V objects; see [`Tree::encode`].
    #[serde(skip)]
    pub ipc: ipc::State,
    /// Descriptions that hold a read lease; see [`Tree::encode`].
    #[serde(skip)]
    pub leases: Vec<DescriptionId>,
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
    /// Settings that few programs touch; see [`Tree::encode`].
    #[serde(skip)]
    pub settings: settings::State,
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

    fn decode(bytes: &[u8]) -> Result<Tree, String> {
        let (mut tree, rest): (Tree, &[u8]) =
            postcard::take_from_bytes(bytes).map_err(|error| error.to_string())?;
        for part in parts(rest)? {
            match part.name.as_str() {
                SETTINGS => {
                    let settings: Vec<settings::State> =
                        postcard::from_bytes(&part.bytes).map_err(|error| error.to_string())?;
                    for (process, settings) in tree.processes.iter_mut().zip(settings) {
                        process.settings = settings;
                    }
                }
                IPC => {
                    tree.ipc =
                        postcard::from_bytes(&part.bytes).map_err(|error| error.to_string())?;
                }
                LEASES => {
                    tree.leases =
                        postcard::from_bytes(&part.bytes).map_err(|error| error.to_string())?;
                }
                other => {
                    return Err(format!(
                        "it has a part \"{other}\", which a newer stasis has written"
                    ));
                }
            }
        }
        Ok(tree)
    }

    /// The metadata of an image: the tree, and behind it, each with its name, the parts that came to the format later, where
    /// there is something to say: an image without them is what it was before.
    ///
    /// # Errors
    /// None in practice.
    pub fn encode(&self) -> Result<Vec<u8>, EngineError> {
        let settings: Vec<_> = self
            .processes
            .iter()
            .map(|process| &process.settings)
            .collect();
        let encoded = || -> Result<Vec<u8>, postcard::Error> {
            let mut bytes = postcard::to_stdvec(self)?;
            let mut parts = Vec::new();
            if settings
                .iter()
                .any(|one| **one != settings::State::default())
            {
                parts.push((SETTINGS, postcard::to_stdvec(&settings)?));
            }
            if !self.ipc.is_empty() {
                parts.push((IPC, postcard::to_stdvec(&self.ipc)?));
            }
            if !self.leases.is_empty() {
                parts.push((LEASES, postcard::to_stdvec(&self.leases)?));
            }
            for (name, part) in parts {
                let name = name.to_owned();
                bytes.extend(postcard::to_stdvec(&Part { name, bytes: part })?);
            }
            Ok(bytes)
        };
        encoded().map_err(|error| EngineError::Failed(format!("describing the program: {error}")))
    }
}

const SETTINGS: &str = "settings";
const IPC: &str = "ipc";
const LEASES: &str = "leases";

/// What follows the tree.
#[derive(Serialize, Deserialize)]
struct Part {
    name: String,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

fn parts(mut bytes: &[u8]) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let (part, rest) = postcard::take_from_bytes(bytes).map_err(|error| error.to_string())?;
        parts.push(part);
        bytes = rest;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_the_tree_and_may_be_missing() {
        let part = |name: &str, bytes: Vec<u8>| {
            let name = name.to_owned();
            postcard::to_stdvec(&Part { name, bytes }).expect("encoded")
        };
        let split = |bytes: &[u8]| parts(bytes).map(|parts| parts.len());
        assert_eq!(split(&[]), Ok(0));
        let two = [part("one", vec![1]), part("two", vec![])].concat();
        assert_eq!(split(&two), Ok(2));
        assert!(split(&two[..two.len() - 1]).is_err());
    }

    #[test]
    fn system_v_objects_stand_behind_the_tree_and_only_where_there_are_any() {
        // Zeros are a tree with nothing in it, and what images without such objects look like.
        let (mut tree, _) =
            postcard::take_from_bytes::<Tree>(&[0; 4096]).expect("zeros are values");
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
        tree.ipc.sets.push(set);
        let bytes = tree.encode().expect("encoded");
        assert!(bytes.starts_with(&plain));
        assert_eq!(Tree::decode(&bytes).expect("decoded").ipc, tree.ipc);
        assert!(Tree::decode(&bytes[..bytes.len() - 1]).is_err());
    }
}
