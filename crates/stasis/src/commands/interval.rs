//! `stasis interval`: changes how often a running job is saved.

use super::Result;
use crate::cli::Often;
use clap::Args;
use stasis_supervisor::client;
use std::process::ExitCode;

/// Change how often a running job is saved
#[derive(Debug, Args)]
pub struct Arguments {
    /// 90s, 30m, 1h30m, seconds, auto (as often as pays), or off
    #[arg(value_name = "INTERVAL", value_parser = parse)]
    pub interval: Wanted,
    /// A job's name, or the id of any of its processes; the job around this command, or the only one, when not given
    #[arg(value_name = "JOB")]
    pub job: Option<String>,
}

/// An interval, or as often as pays, or none.
#[derive(Clone, Copy, Debug)]
pub struct Wanted(Option<Often>);

fn parse(text: &str) -> std::result::Result<Wanted, String> {
    if text == "off" {
        return Ok(Wanted(None));
    }
    text.parse()
        .map(|interval| Wanted(Some(interval)))
        .map_err(|error: stasis_supervisor::ParseIntervalError| error.to_string())
}

pub fn run(arguments: &Arguments) -> Result {
    let jobs = client::jobs()?;
    let job = client::resolve(&jobs, arguments.job.as_deref())?;
    match arguments.interval.0 {
        None => job.set_interval(None)?,
        Some(Often::Every(interval)) => job.set_interval(Some(interval))?,
        Some(Often::Auto) => job.set_auto()?,
    }
    Ok(ExitCode::SUCCESS)
}
