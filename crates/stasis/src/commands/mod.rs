//! One verb, one file.

pub mod check;
pub mod checkpoint;
pub mod completions;
pub mod demo;
pub mod export;
pub mod hold;
pub mod inspect;
pub mod interval;
pub mod kill;
pub mod list;
pub mod man;
pub mod prune;
pub mod ps;
pub mod rehearse;
pub mod restart;
pub mod run;
pub mod slurm_script;
pub mod verify;

use crate::cli::Command;
use crate::{exit, output};
use std::process::ExitCode;

/// What a command comes to: an exit status, or a failure that is told here.
pub type Result = std::result::Result<ExitCode, Failure>;

/// Why a command failed, and its exit status.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

impl Failure {
    /// A trouble of `run` or `restart` themselves.
    pub fn own(error: impl std::fmt::Display) -> Failure {
        Failure {
            code: exit::OWN,
            message: error.to_string(),
        }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure {
            code: exit::FAILED,
            message: error.to_string(),
        }
    }
}

/// Carries out a command.
pub fn dispatch(command: Command) -> ExitCode {
    let done = match command {
        Command::Run(arguments) => run::run(arguments),
        Command::Checkpoint(arguments) => checkpoint::run(&arguments),
        Command::Restart(arguments) => restart::run(arguments),
        Command::Ps(arguments) => ps::run(&arguments),
        Command::Interval(arguments) => interval::run(&arguments),
        Command::Kill(arguments) => kill::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Prune(arguments) => prune::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Rehearse(arguments) => rehearse::run(&arguments),
        Command::SlurmScript(arguments) => slurm_script::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    };
    done.unwrap_or_else(|Failure { code, message }| {
        if !message.is_empty() {
            output::message(&message);
        }
        ExitCode::from(code)
    })
}
