//! `stasis kill`: ends a job, unsaved.

use super::Result;
use clap::Args;
use stasis_supervisor::client;
use std::process::ExitCode;

/// End a running job, every process of it, without saving it
///
/// To save it first: stasis checkpoint --stop.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A job's name, or the id of any of its processes; the job around this command, or the only one, when not given
    #[arg(value_name = "JOB")]
    pub job: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result {
    let jobs = client::jobs()?;
    client::resolve(&jobs, arguments.job.as_deref())?.kill()?;
    Ok(ExitCode::SUCCESS)
}
