//! `stasis completions`: completion scripts for shells.

use super::Result;
use crate::cli::Cli;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;
use std::process::ExitCode;

/// Print a completion script for a shell
///
/// For example: stasis completions bash > ~/.local/share/bash-completion/completions/stasis
#[derive(Debug, Args)]
pub struct Arguments {
    /// Which shell
    pub shell: Shell,
}

pub fn run(arguments: &Arguments) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "stasis", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
