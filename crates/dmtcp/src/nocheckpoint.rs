//! `dmtcp_nocheckpoint`: starts a program, which is then like any other process of its job.
//!
//! What DMTCP keeps out of a computation by not loading its library is, to a supervisor that looks from outside, a process of
//! the tree like all others, and is saved with them.

use crate::{options, output};
use clap::{Arg, ArgAction, Command};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

/// The command line.
#[must_use]
pub fn parser() -> Command {
    Command::new("dmtcp_nocheckpoint")
        .about("Starts a program; within a job it is saved like all processes of the job")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .help("The program and its arguments")
                .value_parser(clap::value_parser!(OsString))
                .action(ArgAction::Append)
                .num_args(1..)
                .required(true)
                .trailing_var_arg(true)
                .allow_hyphen_values(true),
        )
}

/// Carries it out: 1 for a command line that is not understood, 2 when the program cannot be started.
#[must_use]
pub fn run(words: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = words.get(1..).and_then(<[OsString]>::split_first) else {
        output::message("usage: dmtcp_nocheckpoint COMMAND [ARGUMENT...]");
        return ExitCode::from(1);
    };
    match program.to_str() {
        Some("--help" | "-h") => {
            output::result(parser().render_long_help());
            return ExitCode::from(1);
        }
        Some("--version") => {
            output::result(options::version("dmtcp_nocheckpoint"));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    output::message(&format!("starting {}: {error}", program.to_string_lossy()));
    ExitCode::from(2)
}
