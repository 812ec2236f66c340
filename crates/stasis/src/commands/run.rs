//! `stasis run`: starts a program as a job and holds it.

use super::hold::{self, Held};
use super::{Failure, Result};
use crate::batch::{Batch, BatchOptions, Prepared};
use crate::cli::JobOptions;
use clap::Args;
use stasis_supervisor::line::Why;
use stasis_supervisor::{JobName, NameLock, Start, choice, finished};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

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
    pub batch: BatchOptions,
    #[command(flatten)]
    pub restart: super::restart::Restarting,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

pub fn run(arguments: Arguments) -> Result {
    let Arguments {
        mut job,
        resume,
        batch,
        restart,
        command,
    } = arguments;
    let words: Vec<String> = command
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let prepared = match batch.system() {
        Some(system) => Some(Batch::prepare(system, &batch, &mut job, &words)?),
        None => None,
    };
    let of_batch = match prepared {
        Some(Prepared::Finished) => return Ok(ExitCode::SUCCESS),
        Some(Prepared::Run(of_batch)) => Some(of_batch),
        None => None,
    };
    let resume = resume || of_batch.is_some();
    let directory = job.directory(Path::new("."))?;
    let exact = job.name.is_some() || resume;
    let wanted = match &job.name {
        Some(name) => name.clone(),
        None => JobName::of_program(&command[0]),
    };
    let (lock, name) = hold::claim(&directory, &wanted, exact)?;
    let opening = of_batch
        .as_ref()
        .map(|of_batch| of_batch.opening(job.interval));
    let mut log = job.log(&directory, &name, opening.unwrap_or_default());
    let settings = job.settings(name, directory, words)?;
    let ending = job.ending();
    let held = match resume {
        true => resumed(&settings, &restart, command, ending, &mut log),
        false => hold::attend(Start::Launch(command), &settings, ending, &mut log),
    };
    match of_batch {
        Some(of_batch) => ended(*of_batch, lock, held, ending, log),
        None => hold::conclude(lock, held),
    }
}

/// The end of a run of a batch job.
fn ended(
    mut batch: Batch,
    lock: NameLock,
    held: std::result::Result<Held, Failure>,
    ending: hold::Ending,
    log: Option<hold::Log>,
) -> Result {
    let (why, code) = match held {
        Ok(Held::Saved { code, why }) => (why, code),
        Ok(Held::Interrupted { signal, .. }) => (Why::Signal(signal), ending.stop_code),
        Ok(Held::Ended(0)) => {
            batch.finished();
            return hold::conclude(lock, Ok(Held::Ended(0)));
        }
        Err(Failure { code, message }) => {
            let message = batch.refused(&message);
            return hold::conclude(lock, Err(Failure { code, message }));
        }
        held => return hold::conclude(lock, held),
    };
    lock.release();
    Ok(match log {
        Some(mut log) => batch.end(why, code, &mut log.journal),
        None => ExitCode::from(code),
    })
}

fn resumed(
    settings: &stasis_supervisor::Settings,
    restart: &super::restart::Restarting,
    command: Vec<OsString>,
    ending: hold::Ending,
    log: &mut Option<hold::Log>,
) -> std::result::Result<hold::Held, Failure> {
    let directory = &settings.directory;
    let explain = |error| hold::explain(error, directory);
    let above = finished::last_finished(directory, settings.name.as_str()).map_err(explain)?;
    let choice = choice::newest(directory, Some(&settings.name), above).map_err(explain)?;
    match super::restart::first_usable(choice, settings, restart, ending, log)? {
        Some(held) => Ok(held),
        None => hold::attend(Start::Launch(command), settings, ending, log),
    }
}
