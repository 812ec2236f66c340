//! `stasis run`: starts a program as a job and holds it.

use super::{Failure, Result, hold};
use crate::cli::JobOptions;
use clap::Args;
use stasis_supervisor::{JobName, Start, choice, finished};
use std::ffi::OsString;
use std::path::Path;

/// Start a program as a job
///
/// Runs COMMAND in the foreground, so that it and all its children can be checkpointed. Standard streams, terminal,
/// signals and exit status are COMMAND's own. Returns when the last process of the tree has ended, with the status of
/// the first: its exit code, or 128+N when signal N killed it; 85 when the job was saved and stopped on request; 125
/// when stasis itself failed; 126 when COMMAND could not be executed; 127 when it was not found.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub job: JobOptions,
    /// Continue from the newest complete checkpoint of this name in the directory, where there is one whose run has
    /// not finished; start otherwise
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub restart: super::restart::Restarting,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

pub fn run(arguments: Arguments) -> Result {
    let Arguments {
        job,
        resume,
        restart,
        command,
    } = arguments;
    let directory = job.directory(Path::new("."))?;
    let exact = job.name.is_some() || resume;
    let wanted = match &job.name {
        Some(name) => name.clone(),
        None => JobName::of_program(&command[0]),
    };
    let (lock, name) = hold::claim(&directory, &wanted, exact)?;
    let words = command
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let settings = job.settings(name, directory, words)?;
    let held = match resume {
        true => resumed(&settings, &restart, command),
        false => hold::attend(Start::Launch(command), &settings),
    };
    hold::conclude(lock, held)
}

fn resumed(
    settings: &stasis_supervisor::Settings,
    restart: &super::restart::Restarting,
    command: Vec<OsString>,
) -> std::result::Result<hold::Held, Failure> {
    let directory = &settings.directory;
    let explain = |error| hold::explain(error, directory);
    let above = finished::last_finished(directory, settings.name.as_str()).map_err(explain)?;
    let choice = choice::newest(directory, Some(&settings.name), above).map_err(explain)?;
    match super::restart::first_usable(choice, settings, restart)? {
        Some(held) => Ok(held),
        None => hold::attend(Start::Launch(command), settings),
    }
}
