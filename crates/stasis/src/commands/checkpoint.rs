//! `stasis checkpoint`: has a job saved.

use super::{Failure, Result};
use crate::output::{self, ProgressLine};
use clap::Args;
use serde::Serialize;
use stasis_supervisor::client::{self, Found};
use stasis_supervisor::inside;
use stasis_supervisor::protocol::Saved;
use std::path::PathBuf;
use std::process::ExitCode;

/// Save a running job
///
/// Waits until the checkpoint is complete and prints the image's path. The job runs on, unless --stop is given. A
/// program may run this command itself to save the job it belongs to; the command then returns 0 in the program that
/// runs on, and once more, with the same process id, in each one that is restarted from the image.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A job's name, or the id of any of its processes; the job around this command, or the only one, when not given
    #[arg(value_name = "JOB")]
    pub job: Option<String>,
    /// End the job in the instant that is saved; its `run` exits with status 85
    #[arg(long)]
    pub stop: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(arguments: &Arguments) -> Result {
    let jobs = client::jobs()?;
    let job = client::resolve(&jobs, arguments.job.as_deref())?;
    if job.is_around_us() {
        from_inside(job, arguments)
    } else {
        from_outside(job, arguments)
    }
}

fn from_outside(job: &Found, arguments: &Arguments) -> Result {
    let mut line = ProgressLine::new();
    let saved = job.checkpoint(arguments.stop, &mut |state| {
        line.show("writing", state.done, state.total)
    });
    line.clear();
    let saved = saved.map_err(|error| Failure {
        code: crate::exit::FAILED,
        message: format!("{} was not saved: {error}", job.status.name),
    })?;
    for note in &saved.notes {
        output::message(note);
    }
    if arguments.json {
        output::json(&saved)?;
    } else {
        output::result(saved.path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a process of the tree can tell.
#[derive(Serialize)]
struct Inside {
    /// Whether this is the restarted program.
    restarted: bool,
    /// The image that the program was restarted from, where the supervisor could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    /// All about the checkpoint, in the program that runs on.
    #[serde(flatten)]
    saved: Option<Saved>,
}

/// The calling process is itself frozen and saved, and continues in each restarted program.
fn from_inside(job: &Found, arguments: &Arguments) -> Result {
    inside::checkpoint(job, arguments.stop)?;
    // After a restart another supervisor serves, perhaps elsewhere: what it knows is told, but not relied on.
    let jobs = client::jobs().unwrap_or_default();
    let job = client::resolve(&jobs, None)
        .ok()
        .filter(|job| job.is_around_us());
    let saved = job.and_then(|job| job.status.last.clone());
    let restarted_from = job.and_then(|job| job.status.restarted_from.clone());
    let restarted = saved.is_none() && restarted_from.is_some();
    let path = saved
        .as_ref()
        .map(|saved| saved.path.clone())
        .or(restarted_from);
    if arguments.json {
        output::json(&Inside {
            restarted,
            path: path.filter(|_| saved.is_none()),
            saved,
        })?;
    } else if let Some(path) = path {
        output::result(path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
