//! `stasis prune`: removes checkpoints that are not wanted any more.

use super::{Failure, Result};
use crate::output::{self, Bytes};
use clap::Args;
use serde::Serialize;
use stasis_supervisor::{JobName, retention};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Remove checkpoints that are not wanted any more
///
/// Of each job, the newest N complete checkpoints stay, with every older file that they take contents from. Damaged ones
/// stay as well. Files that nobody needs go, and what killed writers have left behind.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// How many complete checkpoints of each job stay
    #[arg(long, value_name = "N", default_value = "2")]
    pub keep: NonZeroUsize,
    /// Only those of this job
    #[arg(short, long)]
    pub name: Option<JobName>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// What was done, for scripts.
#[derive(Debug, Serialize)]
struct Pruned<'a> {
    #[serde(flatten)]
    plan: &'a retention::Plan,
    freed_bytes: u64,
    /// What could not be done.
    failures: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result {
    let directory = &arguments.directory;
    std::fs::read_dir(directory).map_err(|error| Failure {
        code: crate::exit::FAILED,
        message: format!("{}: {error}", directory.display()),
    })?;
    let plan = retention::plan(directory, arguments.name.as_ref(), arguments.keep)?
        .with_abandoned(directory, arguments.name.as_ref())?;
    let failures: Vec<String> = if arguments.dry_run {
        Vec::new()
    } else {
        plan.execute().iter().map(ToString::to_string).collect()
    };
    if arguments.json {
        output::json(&Pruned {
            plan: &plan,
            freed_bytes: plan.freed(),
            failures: failures.clone(),
        })?;
    } else {
        show(&plan, arguments.dry_run)?;
        failures.iter().for_each(|failure| output::message(failure));
    }
    Ok(ExitCode::from(if failures.is_empty() {
        0
    } else {
        crate::exit::FAILED
    }))
}

fn show(plan: &retention::Plan, dry_run: bool) -> std::io::Result<()> {
    for path in &plan.keep {
        output::result(format_args!("keeps {}", path.display()))?;
    }
    for one in &plan.retire {
        output::result(format_args!(
            "keeps the contents of {}, as {}",
            one.from.display(),
            one.to.display()
        ))?;
    }
    for one in &plan.remove {
        output::result(format_args!(
            "removes {} ({}): {}",
            one.path.display(),
            Bytes(one.bytes),
            one.reason
        ))?;
    }
    let verb = if dry_run { "would free" } else { "freed" };
    output::result(format_args!("{verb} {}", Bytes(plan.freed())))
}
