//! `stasis ps`: the running jobs of this user.

use super::Result;
use crate::output::{self, Bytes, Table};
use clap::Args;
use jiff::Timestamp;
use stasis_supervisor::client::{self, Found};
use stasis_supervisor::protocol::JobStatus;
use std::process::ExitCode;

/// Show running jobs
#[derive(Debug, Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(arguments: &Arguments) -> Result {
    let jobs = client::jobs()?;
    if arguments.json {
        let jobs: Vec<&JobStatus> = jobs.iter().map(|job| &job.status).collect();
        output::json(&jobs)?;
    } else if jobs.is_empty() {
        output::message("no job is running");
    } else {
        output::result(table(&jobs, Timestamp::now()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(jobs: &[Found], now: Timestamp) -> Table {
    let mut table = Table::new(
        &[
            "NAME",
            "PID",
            "PROCESSES",
            "MEMORY",
            "LAST CHECKPOINT",
            "NEXT",
            "DIRECTORY",
        ],
        &[1, 2, 3],
    );
    for Found { status, .. } in jobs {
        table.row(vec![
            status.name.clone(),
            status.root.to_string(),
            status.pids.len().to_string(),
            Bytes(status.memory_bytes).to_string(),
            last(status, now),
            next(status, now),
            status.directory.display().to_string(),
        ]);
    }
    table
}

fn last(status: &JobStatus, now: Timestamp) -> String {
    let last = status.last.as_ref().map(|last| {
        format!(
            "{} ago, {}",
            span(last.taken_at, now),
            Bytes(last.image_bytes)
        )
    });
    match (last, &status.last_error) {
        (last, None) => last.unwrap_or_else(|| "none".into()),
        (Some(last), Some(_)) => format!("{last}; then failed"),
        (None, Some(_)) => "failed".into(),
    }
}

fn next(status: &JobStatus, now: Timestamp) -> String {
    match status.next_due {
        _ if status.checkpointing => "now".into(),
        Some(due) => format!("in {}", span(now, due)),
        None => "on request".into(),
    }
}

/// The time between two moments in its two largest units; `0s` for none.
fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = u64::try_from(to.as_second() - from.as_second()).unwrap_or(0);
    let coarse = match seconds {
        0..3600 => seconds,
        3600..86_400 => seconds - seconds % 60,
        _ => seconds - seconds % 3600,
    };
    stasis_supervisor::Interval::from_seconds(coarse)
        .map_or_else(|| "0s".into(), |span| span.to_string())
}
