//! Slurm: what its commands tell of a job, and what they are told.

mod job;
mod script;

pub use job::{Job, Verdict, parse_job, verdict};
pub use script::warning_signal;

use crate::{CommandError, Commands};

/// A running Slurm, asked about one job.
#[derive(Clone, Debug)]
pub struct Slurm<C> {
    commands: C,
    /// The job's own number (of a task of an array too).
    id: String,
}

impl<C: Commands> Slurm<C> {
    /// Asks about the job of this number.
    pub fn new(commands: C, id: impl Into<String>) -> Slurm<C> {
        Slurm {
            commands,
            id: id.into(),
        }
    }

    /// What the controller knows of the job.
    ///
    /// # Errors
    /// [`CommandError`] when the controller does not answer, or nothing that is understood.
    pub fn job(&self) -> Result<Job, CommandError> {
        let arguments = ["show", "job", "-o", &self.id];
        let text = self.commands.run("scontrol", &arguments)?;
        parse_job(&text).ok_or_else(|| CommandError {
            command: format!("scontrol {}", arguments.join(" ")),
            reason: "an answer that names no job".into(),
        })
    }

    /// The job's script.
    ///
    /// # Errors
    /// As [`Slurm::job`].
    pub fn script(&self) -> Result<String, CommandError> {
        let arguments = ["write", "batch_script", &self.id, "-"];
        self.commands.run("scontrol", &arguments)
    }

    /// How often a batch job may be queued again before Slurm holds it (`MaxBatchRequeue`, `slurm.conf(5)`).
    ///
    /// # Errors
    /// As [`Slurm::job`].
    pub fn most_requeues(&self) -> Result<Option<u32>, CommandError> {
        let text = self.commands.run("scontrol", &["show", "config"])?;
        Ok(setting(&text, "MaxBatchRequeue").and_then(|value| value.parse().ok()))
    }

    /// For how long after SIGTERM a job may live, in seconds (`KillWait`).
    ///
    /// # Errors
    /// As [`Slurm::job`].
    pub fn kill_wait(&self) -> Result<Option<u64>, CommandError> {
        let text = self.commands.run("scontrol", &["show", "config"])?;
        let value = setting(&text, "KillWait").and_then(|value| value.split(' ').next());
        Ok(value.and_then(|seconds| seconds.parse().ok()))
    }

    /// The features of a node that jobs can ask for with `--constraint`.
    ///
    /// # Errors
    /// As [`Slurm::job`].
    pub fn features(&self, node: &str) -> Result<Vec<String>, CommandError> {
        let text = self
            .commands
            .run("scontrol", &["show", "node", "-o", node])?;
        let features = job::field(&text, "ActiveFeatures").unwrap_or_default();
        let names = features
            .split(',')
            .filter(|name| !matches!(*name, "" | "(null)"));
        Ok(names.map(str::to_owned).collect())
    }

    /// Whether a job waits or runs. One that the controller has forgotten does neither.
    ///
    /// # Errors
    /// [`CommandError`] when that is not known.
    pub fn is_active(&self, other: &str) -> Result<bool, CommandError> {
        match self
            .commands
            .run("squeue", &["-h", "-o", "%T", "-j", other])
        {
            Ok(text) => Ok(!text.trim().is_empty()),
            Err(error) if error.reason.contains("Invalid job id") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Queues the job again, which ends the present run.
    ///
    /// # Errors
    /// What the controller says.
    pub fn requeue(&self) -> Result<(), CommandError> {
        self.commands
            .run("scontrol", &["requeue", &self.id])
            .map(drop)
    }
}

/// A line `NAME = VALUE` of `scontrol show config`.
fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (known, value) = line.split_once('=')?;
        (known.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Answers by the beginning of the command line, and remembers what it was asked.
    struct Fake {
        answers: Vec<(&'static str, Result<&'static str, &'static str>)>,
        asked: RefCell<Vec<String>>,
    }

    impl Commands for &Fake {
        fn run(&self, program: &str, arguments: &[&str]) -> Result<String, CommandError> {
            let command = format!("{program} {}", arguments.join(" "));
            self.asked.borrow_mut().push(command.clone());
            let answer = self
                .answers
                .iter()
                .find(|(begin, _)| command.starts_with(begin));
            match answer {
                Some((_, Ok(text))) => Ok((*text).to_owned()),
                Some((_, Err(reason))) => Err(CommandError {
                    command,
                    reason: (*reason).to_owned(),
                }),
                None => panic!("unexpected: {command}"),
            }
        }
    }

    #[test]
    fn the_controller_is_asked_and_told_in_its_own_words() {
        let fake = Fake {
            answers: vec![
                (
                    "scontrol show config",
                    Ok(
                        "Configuration data as of now\nKillWait                = 30 sec\nMaxBatchRequeue         = 5\n",
                    ),
                ),
                (
                    "scontrol show node",
                    Ok(
                        "NodeName=n1 AvailableFeatures=avx512,gpu ActiveFeatures=avx512,gpu State=IDLE",
                    ),
                ),
                ("squeue -h -o %T -j 8", Ok("RUNNING\n")),
                (
                    "squeue -h -o %T -j 9",
                    Err("slurm_load_jobs error: Invalid job id specified"),
                ),
                (
                    "squeue -h -o %T -j 10",
                    Err("Unable to contact slurm controller"),
                ),
                ("scontrol requeue 7", Ok("")),
            ],
            asked: RefCell::default(),
        };
        let slurm = Slurm::new(&fake, "7");
        assert_eq!(slurm.most_requeues().unwrap(), Some(5));
        assert_eq!(slurm.kill_wait().unwrap(), Some(30));
        assert_eq!(slurm.features("n1").unwrap(), ["avx512", "gpu"]);
        assert!(slurm.is_active("8").unwrap());
        assert!(!slurm.is_active("9").unwrap());
        assert!(slurm.is_active("10").is_err(), "not known is not idle");
        slurm.requeue().unwrap();
        assert_eq!(fake.asked.borrow().last().unwrap(), "scontrol requeue 7");
    }
}
