//! What a batch job leaves beside its checkpoints for its later runs.
//!
//! `job.json` says whose directory it is, so that a job that was submitted again finds it. `NAME.job` says which command the
//! checkpoints of a name belong to, and whether it has finished.

use crate::commands::Failure;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stasis_supervisor::JobName;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Whose directory it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The job's own number, for the batch system's commands.
    pub job: String,
    /// Which one of an array it is.
    pub task: Option<String>,
    /// The job's name.
    pub name: String,
    /// The directory that it was started in.
    pub directory: PathBuf,
    /// The nodes that it has run on, the last one at the end.
    pub nodes: Vec<String>,
}

/// What one name of a directory is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// When it ended with status 0.
    pub finished_at: Option<Timestamp>,
}

const OWNER: &str = "job.json";

fn slot_path(directory: &Path, name: &JobName) -> PathBuf {
    directory.join(format!("{name}.job"))
}

/// Reads one; `None` where there is none.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes one so that a reader sees all of it or nothing.
fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let written = fs::write(&new, serde_json::to_string_pretty(value)? + "\n")
        .and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| drop(fs::remove_file(&new)))
}

fn trouble(what: &str, path: &Path) -> impl Fn(io::Error) -> Failure {
    let text = format!("{what} {}", path.display());
    move |error| Failure::own(format!("{text}: {}", explained(&error)))
}

/// The kernel's words, and what they mean for a directory of checkpoints.
pub fn explained(error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull => "; make room there, or choose another file system with -d",
        io::ErrorKind::QuotaExceeded => {
            "; your quota there is used up: remove something, or choose another file system with -d"
        }
        io::ErrorKind::NotFound => {
            "; is its file system mounted on this node? choose one that all nodes share, with -d"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a directory that you may write to on every node, with -d"
        }
        _ => "",
    };
    format!("{error}{hint}")
}

impl Owner {
    /// Who owns a directory.
    pub fn of(directory: &Path) -> Result<Option<Owner>, Failure> {
        let path = directory.join(OWNER);
        read(&path).map_err(trouble("reading", &path))
    }

    /// Notes it.
    pub fn note(&self, directory: &Path) -> Result<(), Failure> {
        let path = directory.join(OWNER);
        write(&path, self).map_err(trouble("writing", &path))
    }

    /// Whether a job of another number is the same work submitted again.
    pub fn is_same_work(&self, other: &Owner) -> bool {
        (&self.task, &self.name, &self.directory) == (&other.task, &other.name, &other.directory)
    }
}

impl Slot {
    /// The name for a command: the wanted one, or with a number where that is another command's; and what is known of it.
    pub fn choose(
        directory: &Path,
        wanted: &JobName,
        command: &[String],
    ) -> Result<(JobName, Slot), Failure> {
        let mut name = wanted.clone();
        for number in 2..10_000 {
            let path = slot_path(directory, &name);
            match read::<Slot>(&path).map_err(trouble("reading", &path))? {
                Some(slot) if slot.command != command => name = wanted.numbered(number),
                Some(slot) => return Ok((name, slot)),
                None => break,
            }
        }
        let slot = Slot {
            command: command.to_vec(),
            finished_at: None,
        };
        Ok((name, slot))
    }

    /// Notes it.
    pub fn note(&self, directory: &Path, name: &JobName) -> Result<(), Failure> {
        let path = slot_path(directory, name);
        write(&path, self).map_err(trouble("writing", &path))
    }
}

/// When something in the directory was last written.
pub fn last_use(directory: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    entries
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_name_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let wanted: JobName = "python3".parse().unwrap();
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (first, mut slot) =
            Slot::choose(directory.path(), &wanted, &words("python3 a.py")).unwrap();
        assert_eq!(first, wanted);
        slot.finished_at = Some(Timestamp::UNIX_EPOCH);
        slot.note(directory.path(), &first).unwrap();
        let (second, other) =
            Slot::choose(directory.path(), &wanted, &words("python3 b.py")).unwrap();
        assert_eq!((second.as_str(), other.finished_at), ("python3-2", None));
        other.note(directory.path(), &second).unwrap();
        let again = Slot::choose(directory.path(), &wanted, &words("python3 a.py")).unwrap();
        assert_eq!(again, (first, slot));
    }

    #[test]
    fn a_damaged_record_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(OWNER), "{").unwrap();
        let error = Owner::of(directory.path()).unwrap_err();
        assert!(error.message.contains("job.json"), "{error:?}");
    }
}
