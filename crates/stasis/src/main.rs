//! The command `stasis`: checkpoint and restart of process trees by an ordinary user.

#![forbid(unsafe_code)]

mod batch;
mod cli;
mod commands;
mod exit;
mod moment;
mod output;

use clap::Parser;
use clap::error::ErrorKind;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = match cli::Cli::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done about a standard error that cannot be written.
            let _ = error.print();
            let asked_for = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            return if asked_for {
                ExitCode::SUCCESS
            } else {
                exit::usage_error()
            };
        }
    };
    if let Ok(filter) = EnvFilter::try_from_env("STASIS_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
    }
    commands::dispatch(arguments.command)
}
