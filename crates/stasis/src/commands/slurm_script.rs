//! `stasis slurm-script`: a job script for a command.

use super::Result;
use crate::output;
use clap::Args;
use stasis_supervisor::Interval;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print a Slurm job script for a command that continues by itself
///
/// The script is written to standard output, with comments: stasis slurm-script -- python3 train.py > job.sh
#[derive(Debug, Args)]
pub struct Arguments {
    /// Time limit of one run, as sbatch(1) has it
    #[arg(short, long, value_name = "TIME", default_value = "24:00:00")]
    pub time: String,
    /// Time from one checkpoint to the next
    #[arg(short, long, value_name = "INTERVAL")]
    pub interval: Option<Interval>,
    /// Directory for the jobs' directories of checkpoints; that of the job when not given
    #[arg(short, long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Queue the job again N times at most
    #[arg(long, value_name = "N")]
    pub requeue: Option<u32>,
    /// Make it an array, with sbatch's notation: 1-10
    #[arg(long, value_name = "TASKS")]
    pub array: Option<String>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> Result {
    output::result(script(arguments).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn script(arguments: &Arguments) -> String {
    let words: Vec<String> = arguments
        .command
        .iter()
        .map(|word| quoted(&word.to_string_lossy()))
        .collect();
    let name = stasis_supervisor::JobName::of_program(&arguments.command[0]);
    let mut options = String::new();
    if let Some(interval) = arguments.interval {
        options += &format!(" -i {interval}");
    }
    if let Some(directory) = &arguments.directory {
        options += &format!(" -d {}", quoted(&directory.to_string_lossy()));
    }
    if let Some(times) = arguments.requeue {
        options += &format!(" --requeue={times}");
    }
    let (array, number) = match &arguments.array {
        Some(tasks) => (
            format!(
                "\n# So many jobs, each with checkpoints of its own.\n#SBATCH --array={}",
                quoted(tasks)
            ),
            "%A_%a",
        ),
        None => (String::new(), "%j"),
    };
    format!(
        r#"#!/bin/bash
#SBATCH --job-name={name}
# How long one run may take. The job goes on in as many runs as it needs.
#SBATCH --time={time}
# Warn two minutes before the end. Without this line Stasis looks the end up and saves in time all the same.
#SBATCH --signal=B:USR1@120
# Slurm may queue the job again: after a preemption, a dead node, or when Stasis asks for it.
#SBATCH --requeue
# One output file for all runs: by default each would begin with an empty one.
#SBATCH --open-mode=append
#SBATCH --output=slurm-{number}.out{array}
# Add what the job needs: --mem, --cpus-per-task, --partition, --account. With nodes of several kinds, --constraint keeps
# the job on processors that have what it started with.

# The first run starts the command. Every later one, of a job that is queued or submitted again, continues from the newest
# checkpoint in stasis-JOBID. When the command has ended with status 0, the checkpoints are removed.
# exec: the signals go to Stasis and not to this shell, also where a site does not let users trace their shells.
exec stasis run --slurm{options} -- {command}
"#,
        time = arguments.time,
        command = words.join(" "),
    )
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_says_what_it_does_and_quotes() {
        let arguments = Arguments {
            time: "48:00:00".into(),
            interval: "30m".parse().ok(),
            directory: Some("/scratch/a b".into()),
            requeue: Some(20),
            array: Some("1-10".into()),
            command: ["python3", "train.py", "it's"].map(Into::into).into(),
        };
        let text = script(&arguments);
        assert!(
            text.starts_with("#!/bin/bash\n#SBATCH --job-name=python3\n"),
            "{text}"
        );
        assert!(
            text.contains("#SBATCH --time=48:00:00\n") && text.contains("#SBATCH --array=1-10\n")
        );
        let last = r"exec stasis run --slurm -i 30m -d '/scratch/a b' --requeue=20 -- python3 train.py 'it'\''s'";
        assert_eq!(text.lines().last(), Some(last));
        let signal = stasis_scheduler::slurm::warning_signal(&text).map(|(name, _)| name);
        assert_eq!(signal.as_deref(), Some("USR1"));
    }
}
