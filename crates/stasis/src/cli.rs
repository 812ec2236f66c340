//! The command line.

use crate::commands;
use crate::moment;
use clap::{Args, Parser, Subcommand};
use stasis_engine::tracking::Track;
use stasis_image::{Compression, KeyError, Keys, Recipient};
use stasis_supervisor::{Deadline, Interval, JobName, ParseIntervalError, signal_name};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
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
    Prune(commands::prune::Arguments),
    Export(commands::export::Arguments),
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
    /// Take a checkpoint every INTERVAL, counted from the end of the last one: 90s, 30m, 1h30m, or seconds; or auto: as
    /// often as pays, by what this job's checkpoints cost and --mtbf
    #[arg(short, long, value_name = "INTERVAL")]
    pub interval: Option<Often>,
    /// For -i auto: mean time between failures of this machine
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub mtbf: Interval,
    /// For -i auto: the largest part of the time that checkpoints may take, in per cent
    #[arg(long, value_name = "PERCENT", default_value = "1", value_parser = parse_percent)]
    pub max_overhead: f64,
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
    /// Nice value, 0 to 19, of what writes a checkpoint while the program runs on
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u8).range(0..=19))]
    pub nice: u8,
    /// Let the program stand still while it is written: takes no memory for a copy of what it changes meanwhile
    #[arg(long)]
    pub pause: bool,
    /// Store only what the checkpoint before does not hold; older files that are needed for that stay, as NAME-000001.base
    /// and so on
    #[arg(long, value_name = "YES|NO", num_args = 0..=1, require_equals = true, default_value = "no",
          default_missing_value = "yes", action = clap::ArgAction::Set, value_parser = parse_yes_or_no)]
    pub incremental: bool,
    /// How --incremental knows what has changed. auto: writes to memory of small pages are tracked where the kernel can, all else is
    /// read; all: huge pages are tracked, too, and split where the program writes; no: all is read
    #[arg(long, value_name = "auto|all|no", default_value = "auto", value_parser = parse_track)]
    pub tracking: Track,
    /// Encrypt checkpoints so that RECIPIENT, the public half of an age identity (age1...), can read them; may be repeated.
    /// A restarted job goes on with the encryption of its checkpoint
    #[arg(long, value_name = "RECIPIENT", conflicts_with = "passphrase_file")]
    pub encrypt_to: Vec<Recipient>,
    #[command(flatten)]
    pub keys: KeyOptions,
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

/// What encrypted checkpoints are opened with.
#[derive(Debug, Args)]
pub struct KeyOptions {
    /// A file with age identities (AGE-SECRET-KEY-1...) that open encrypted checkpoints; may be repeated
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// A file whose first line is the passphrase of encrypted checkpoints
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

impl KeyOptions {
    /// The keys in these files.
    pub fn keys(&self) -> Result<Keys, KeyError> {
        let mut keys = Keys::none();
        for file in &self.identity {
            keys.add_identity_file(file)?;
        }
        if let Some(file) = &self.passphrase_file {
            keys.add_passphrase_file(file)?;
        }
        Ok(keys)
    }
}

/// An interval, or as often as pays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Often {
    Every(Interval),
    Auto,
}

impl FromStr for Often {
    type Err = ParseIntervalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Often::Auto),
            _ => text.parse().map(Often::Every),
        }
    }
}

/// A part of the whole: `1` and `1%` are 0.01.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    number
        .ok()
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("{text} is not a part of the time: write per cent, 1 or 0.5"))
}

fn parse_yes_or_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("write yes or no".to_owned()),
    }
}

fn parse_track(text: &str) -> Result<Track, String> {
    match text {
        "auto" => Ok(Track::Small),
        "all" => Ok(Track::All),
        "no" => Ok(Track::No),
        _ => Err("write auto, all or no".to_owned()),
    }
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
    fn shares_are_understood() {
        assert_eq!(parse_percent("1"), Ok(0.01));
        assert_eq!(parse_percent("50%"), Ok(0.5));
        for bad in ["", "0", "-1", "101", "x", "nan"] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
        assert_eq!("auto".parse(), Ok(Often::Auto));
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
