//! `stasis list`: the checkpoints in a directory.

use super::Result;
use crate::output::{self, Bytes, Table};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use stasis_engine::model::Tree;
use stasis_image::{Found, Image, State, scan};
use stasis_supervisor::{JobName, finished};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Show the checkpoints in a directory
///
/// Reads what describes each image, not the contents: `stasis verify` checks those.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The directory; STASIS_DIR or the current one when not given
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Only those of this job
    #[arg(short, long)]
    pub name: Option<JobName>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// One image, for scripts.
#[derive(Debug, Serialize)]
struct Entry {
    path: PathBuf,
    job: String,
    sequence: u64,
    /// `complete`, `partial` or `damaged`.
    state: &'static str,
    /// Why it is damaged.
    reason: Option<String>,
    /// When it was begun; when it was last written where that cannot be read.
    time: Option<Timestamp>,
    image_bytes: u64,
    contents_bytes: Option<u64>,
    /// Living processes in it.
    processes: Option<usize>,
    /// The complete one with the highest number of its job: what `restart DIR` begins with.
    newest: bool,
    /// It belongs to a run that has finished: `run --resume` does not take it.
    finished: bool,
}

pub fn run(arguments: &Arguments) -> Result {
    let directory = arguments
        .directory
        .clone()
        .or_else(|| {
            std::env::var_os("STASIS_DIR")
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
        })
        .unwrap_or_else(|| PathBuf::from("."));
    std::fs::read_dir(&directory).map_err(|error| super::Failure {
        code: crate::exit::FAILED,
        message: format!("{}: {error}", directory.display()),
    })?;
    let found = scan(&directory, arguments.name.as_ref().map(JobName::as_str))?;
    let mut entries: Vec<Entry> = found
        .into_iter()
        .map(|found| entry(found, &directory))
        .collect();
    mark_newest(&mut entries);
    if arguments.json {
        output::json(&entries)?;
    } else if entries.is_empty() {
        output::message(&format!("{} holds no checkpoint", directory.display()));
    } else {
        output::result(table(&entries))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn entry(found: Found, directory: &Path) -> Entry {
    // A marker that cannot be read is told by whoever needs it.
    let last = finished::last_finished(directory, &found.job).unwrap_or(0);
    let (state, reason, created, contents_bytes, processes) = match found.state {
        State::Complete(header) => match described(&found.path) {
            Ok(processes) => (
                "complete",
                None,
                header.created,
                Some(header.logical_len),
                Some(processes),
            ),
            Err(reason) => ("damaged", Some(reason), header.created, None, None),
        },
        State::Partial => ("partial", None, found.modified, None, None),
        State::Damaged(reason) => ("damaged", Some(reason), found.modified, None, None),
    };
    Entry {
        finished: found.sequence <= last,
        path: found.path,
        job: found.job,
        sequence: found.sequence,
        state,
        reason,
        time: Timestamp::try_from(created).ok(),
        image_bytes: found.len,
        contents_bytes,
        processes,
        newest: false,
    }
}

/// The number of living processes, where the description of the tree is whole.
fn described(path: &Path) -> std::result::Result<usize, String> {
    let image = Image::open(path).map_err(|error| error.to_string())?;
    let tree = Tree::of(&image).map_err(|error| error.to_string())?;
    Ok(tree.processes.len())
}

/// Marks the last complete entry of each job; entries of a job are together, by number.
fn mark_newest(entries: &mut [Entry]) {
    for job in entries.chunk_by_mut(|one, other| one.job == other.job) {
        let newest = job.iter_mut().rfind(|entry| entry.state == "complete");
        if let Some(newest) = newest {
            newest.newest = true;
        }
    }
}

fn table(entries: &[Entry]) -> Table {
    let mut table = Table::new(
        &[
            "JOB",
            "NUMBER",
            "TIME",
            "SIZE",
            "CONTENTS",
            "PROCESSES",
            "STATE",
            "FILE",
        ],
        &[1, 3, 4, 5],
    );
    for entry in entries {
        let newest = if entry.newest { ", newest" } else { "" };
        let state = match (&entry.reason, entry.finished) {
            (Some(reason), _) => format!("{}: {reason}", entry.state),
            (None, true) => format!("{}{newest}, of a finished run", entry.state),
            (None, false) => format!("{}{newest}", entry.state),
        };
        table.row(vec![
            entry.job.clone(),
            entry.sequence.to_string(),
            entry.time.map_or_else(|| "?".into(), output::local_time),
            Bytes(entry.image_bytes).to_string(),
            entry
                .contents_bytes
                .map_or_else(|| "?".into(), |bytes| Bytes(bytes).to_string()),
            entry
                .processes
                .map_or_else(|| "?".into(), |processes| processes.to_string()),
            state,
            entry
                .path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        ]);
    }
    table
}
