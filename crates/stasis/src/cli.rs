//! The command line.

use crate::commands;
use crate::moment;
use clap::{Args, Parser, Subcommand};
use stasis_image::Compression;
use stasis_supervisor::{Deadline, Interval, JobName, signal_name};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::SystemTime;

/// Saves running programs and continues them later: the whole process tree, as an ordinary user, with nothing
/// injected into the program.
#[derive(Debug, Parser)]
#[command(name = "stasis", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// One variant a verb, one file a verb in `commands/`.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(commands::run::Arguments),
    Checkpoint(commands::checkpoint::Arguments),
    Restart(commands::restart::Arguments),
    Ps(commands::ps::Arguments),
    Interval(commands::interval::Arguments),
    Kill(commands::kill::Arguments),
    List(commands::list::Arguments),
    Inspect(commands::inspect::Arguments),
    Verify(commands::verify::Arguments),
    Check(commands::check::Arguments),
    Demo(commands::demo::Arguments),
    Rehearse(commands::rehearse::Arguments),
    SlurmScript(commands::slurm_script::Arguments),
    Completions(commands::completions::Arguments),
    Man(commands::man::Arguments),
}

/// Options of commands that hold a job.
#[derive(Debug, Args)]
pub struct JobOptions {
    /// Take a checkpoint every INTERVAL, counted from the end of the last one: 90s, 30m, 1h30m, or seconds
    #[arg(short, long, value_name = "INTERVAL")]
    pub interval: Option<Interval>,
    /// Directory for checkpoints
    #[arg(short, long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Name of the job; its checkpoints are called NAME-000001.ckpt and so on
    #[arg(short, long)]
    pub name: Option<JobName>,
    /// How many complete checkpoints to keep
    #[arg(long, value_name = "N", default_value = "2")]
    pub keep: NonZeroUsize,
    /// Return when the first process ends, though others of its tree live on (these are no longer checkpointed)
    #[arg(long)]
    pub exit_with_root: bool,
    /// Take a checkpoint when this command receives SIGNAL, instead of passing it on
    #[arg(long, value_name = "SIGNAL", value_parser = signal_name::parse_trigger)]
    pub checkpoint_signal: Option<i32>,
    /// Save and stop the job when this command receives SIGNAL, and exit with status 85; may be repeated
    #[arg(long, value_name = "SIGNAL", value_parser = signal_name::parse_trigger)]
    pub stop_signal: Vec<i32>,
    /// Keep the stop signals of other users from the job's processes, which are saved and stopped instead: batch systems
    /// send their warning to all of them. The processes are traced between checkpoints then, too
    #[arg(long)]
    pub shield: bool,
    /// Save and stop the job in time before TIME: +90m from now, or 2026-11-21T18:00 on this host's clock
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    pub deadline: Option<SystemTime>,
    /// How long before its deadline a job is saved and stopped; from the measured cost of its checkpoints when not given
    #[arg(long, value_name = "INTERVAL")]
    pub margin: Option<Interval>,
    /// Exit status of a job that was saved and stopped, 85 when not given
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u8).range(1..))]
    pub stop_code: Option<u8>,
    /// Remove the job's checkpoints when its program has ended with status 0
    #[arg(long)]
    pub remove_after_success: bool,
    /// Write one line for each event, on standard error and to NAME.log beside the checkpoints
    #[arg(long)]
    pub log: bool,
    /// How checkpoints are compressed: auto (lz4 where the disk is slower than that), none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "HOW", default_value_t)]
    pub compress: Compression,
    /// Threads that write a checkpoint; 0 is one for each processor
    #[arg(long, value_name = "N", default_value = "0")]
    pub threads: usize,
    /// Store the contents of a file that is open for writing up to this size in bytes (K, M and G are understood)
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = parse_size)]
    pub file_limit: u64,
    /// Show how checkpoints come along, on standard error where that is a terminal
    #[arg(long)]
    pub progress: bool,
    /// Set by a batch system: processes above this one that a stop signal is kept from.
    #[arg(skip)]
    pub strangers: Vec<i32>,
    /// Set by a batch system: who knows when the job has to end.
    #[arg(skip)]
    pub deadline_source: Option<Deadline>,
}

/// A number of bytes: `512`, `64K`, `64M`, `1G`, all binary.
fn parse_size(text: &str) -> Result<u64, String> {
    let upper = text.to_ascii_uppercase();
    let (digits, factor) = match upper.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if upper.ends_with('K') => (digits, 1 << 10),
        Some(digits) if upper.ends_with('M') => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 30),
        None => (upper.as_str(), 1),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse::<u64>()
        .ok()
        .filter(|_| plain)
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| format!("{text} is not a size: write bytes, or 64K, 64M, 1G"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_parser_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_understood() {
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert_eq!(parse_size("0"), Ok(0));
        for bad in ["", "M", "1.5M", "-1", "+1", "99999999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
