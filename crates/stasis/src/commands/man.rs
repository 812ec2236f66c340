//! `stasis man`: manual pages, made from the parser.

use super::Result;
use crate::cli::Cli;
use clap::{Args, CommandFactory};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print the manual page, or write those of all commands into a directory
#[derive(Debug, Args)]
pub struct Arguments {
    /// A directory for stasis.1, stasis-run.1, dmtcp_launch.1 and so on
    pub directory: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result {
    match &arguments.directory {
        Some(directory) => {
            clap_mangen::generate_to(Cli::command(), directory)?;
            for parser in stasis_dmtcp::parsers() {
                clap_mangen::generate_to(parser, directory)?;
            }
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            std::io::stdout().write_all(&page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
