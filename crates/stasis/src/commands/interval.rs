//! `stasis interval`: changes how often a running job is saved.

use super::Result;
use clap::Args;
use stasis_supervisor::{Interval, client};
use std::process::ExitCode;

/// Change how often a running job is saved
#[derive(Debug, Args)]
pub struct Arguments {
    /// 90s, 30m, 1h30m, seconds, or off
    #[arg(value_name = "INTERVAL", value_parser = parse)]
    pub interval: Wanted,
    /// A job's name, or the id of any of its processes; the job around this command, or the only one, when not given
    #[arg(value_name = "JOB")]
    pub job: Option<String>,
}

/// An interval, or none.
#[derive(Clone, Copy, Debug)]
pub struct Wanted(Option<Interval>);

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
    client::resolve(&jobs, arguments.job.as_deref())?.set_interval(arguments.interval.0)?;
    Ok(ExitCode::SUCCESS)
}
