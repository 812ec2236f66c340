//! DMTCP's commands, on Stasis: scripts that call them work unchanged.
//!
//! | command | here |
//! |---|---|
//! | `dmtcp_launch`, `dmtcp_checkpoint` | [`launch`] |
//! | `dmtcp_restart`, `dmtcp_relaunch` | [`restart`], which sorts images out with [`sets`] |
//! | `dmtcp_command` | [`command`] |
//! | `dmtcp_coordinator` | [`coordinator`], which writes the [`script`] |
//! | `dmtcp_nocheckpoint` | [`nocheckpoint`] |
//!
//! Each command is a parser (`parser()`), of which manual pages are made, and what it does (`run()`).

#![forbid(unsafe_code)]

pub mod command;
mod connection;
pub mod coordinator;
mod daemon;
mod hold;
pub mod launch;
mod names;
pub mod nocheckpoint;
mod options;
pub mod output;
pub mod restart;
pub mod script;
pub mod sets;

use std::ffi::OsString;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `dmtcp_launch`
    Launch,
    /// `dmtcp_restart`
    Restart,
    /// `dmtcp_command`
    Command,
    /// `dmtcp_coordinator`
    Coordinator,
    /// `dmtcp_nocheckpoint`
    NoCheckpoint,
}

/// Every command with its parser.
#[must_use]
pub fn parsers() -> Vec<clap::Command> {
    vec![
        launch::parser(),
        restart::parser(),
        command::parser(),
        coordinator::parser(),
        nocheckpoint::parser(),
    ]
}

/// Carries out the command of this process.
#[must_use]
pub fn main(verb: Verb) -> ExitCode {
    if let Ok(filter) = EnvFilter::try_from_env("STASIS_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
    }
    let words: Vec<OsString> = std::env::args_os().collect();
    let done = match verb {
        Verb::Launch => launch::run(words),
        Verb::Restart => restart::run(words),
        Verb::Command => Ok(command::run(&words)),
        Verb::Coordinator => coordinator::run(words),
        Verb::NoCheckpoint => Ok(nocheckpoint::run(&words)),
    };
    done.unwrap_or_else(|failure| {
        if !failure.message.is_empty() {
            output::message(&failure.message);
        }
        ExitCode::from(failure.code)
    })
}

/// Why a command failed, and its exit status.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub code: u8,
    /// What to say; nothing where it was said already.
    pub message: String,
}

impl Failure {
    /// One of launch and restart themselves: 99, or what `DMTCP_FAIL_RC` says.
    pub fn own(error: impl std::fmt::Display) -> Failure {
        Failure {
            code: options::failure_status(),
            message: error.to_string(),
        }
    }
}
