//! `stasis list`: the checkpoints in a directory.

use super::Result;
use crate::output::{self, Bytes, Table};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use stasis_engine::model::Tree;
use stasis_image::{Found, FoundBase, Image, ImageError, State, scan, scan_bases};
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
    /// `complete`, `partial`, `damaged` or `missing base`.
    state: &'static str,
    /// Why it is damaged, or what it lacks.
    reason: Option<String>,
    /// When it was begun; when it was last written where that cannot be read.
    time: Option<Timestamp>,
    image_bytes: u64,
    contents_bytes: Option<u64>,
    /// Older files that it takes contents from.
    bases: Option<u64>,
    encrypted: bool,
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
        tell_bases(&scan_bases(
            &directory,
            arguments.name.as_ref().map(JobName::as_str),
        )?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Older files that are no checkpoints any more, but take room.
fn tell_bases(bases: &[FoundBase]) -> std::io::Result<()> {
    let bytes = Bytes(bases.iter().map(|base| base.len).sum());
    match bases.len() {
        0 => Ok(()),
        1 => output::result(format_args!(
            "1 older file holds contents of these: {bytes}"
        )),
        n => output::result(format_args!(
            "{n} older files hold contents of these: {bytes}"
        )),
    }
}

fn entry(found: Found, directory: &Path) -> Entry {
    // A marker that cannot be read is told by whoever needs it.
    let last = finished::last_finished(directory, &found.job).unwrap_or(0);
    let mut entry = Entry {
        finished: found.sequence <= last,
        path: found.path,
        job: found.job,
        sequence: found.sequence,
        state: "complete",
        reason: None,
        time: None,
        image_bytes: found.len,
        contents_bytes: None,
        bases: None,
        encrypted: false,
        processes: None,
        newest: false,
    };
    let mut time = found.modified;
    match found.state {
        State::Partial => entry.state = "partial",
        State::Damaged(reason) => (entry.state, entry.reason) = ("damaged", Some(reason)),
        State::MissingBase(reason) => {
            (entry.state, entry.reason) = ("missing base", Some(reason));
        }
        State::Complete(header) => {
            time = header.created;
            entry.encrypted = header.encrypted;
            match described(&entry.path) {
                Ok(processes) => {
                    entry.contents_bytes = Some(header.logical_len);
                    entry.bases = Some(header.bases);
                    entry.processes = processes;
                }
                Err(reason) => (entry.state, entry.reason) = ("damaged", Some(reason)),
            }
        }
    }
    entry.time = Timestamp::try_from(time).ok();
    entry
}

/// The number of living processes, where the description of the tree is whole; none where it is encrypted.
fn described(path: &Path) -> std::result::Result<Option<usize>, String> {
    let image = match Image::open(path) {
        Err(ImageError::Locked { .. }) => return Ok(None),
        opened => opened.map_err(|error| error.to_string())?,
    };
    let tree = Tree::of(&image).map_err(|error| error.to_string())?;
    Ok(Some(tree.processes.len()))
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
        let encrypted = if entry.encrypted { ", encrypted" } else { "" };
        let state = match (&entry.reason, entry.finished) {
            (Some(reason), _) => format!("{}: {reason}", entry.state),
            (None, true) => format!("{}{newest}{encrypted}, of a finished run", entry.state),
            (None, false) => format!("{}{newest}{encrypted}", entry.state),
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
