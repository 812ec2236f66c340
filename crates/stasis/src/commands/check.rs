//! `stasis check`: what this host allows, and what of a program could not be saved.

mod host;

use super::{Failure, Result};
use crate::output;
use clap::Args;
use serde::Serialize;
use stasis_engine::{Refusal, checkpoint, tree};
use stasis_sys::{Pid, process, signal};
use std::ffi::OsString;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Say what this host allows, or what of a program could not be saved and why
///
/// Without an argument: what the kernel and its settings allow here. With PID: what of that process and its descendants
/// could not be saved (nothing is stopped). With a command: starts it without input and output, looks at it
/// for a moment while it runs, and ends it. Exit status 0 when nothing stands in the way, 1 otherwise.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A process id
    #[arg(value_name = "PID", conflicts_with = "command")]
    pub pid: Option<i32>,
    /// For how long a command is looked at before it is ended, in seconds: what is seen last counts
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    pub after: u64,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// A program and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> Result {
    match (arguments.pid, arguments.command.as_slice()) {
        (None, []) => host::run(arguments.json),
        (Some(pid), _) => {
            let (refusals, notes) = look(Pid(pid))?;
            tell(&refusals, &notes, arguments.json)
        }
        (None, [program, rest @ ..]) => {
            let child = Command::new(program)
                .args(rest)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| {
                    failure(format!("starting {}: {error}", program.to_string_lossy()))
                })?;
            let seen = watch(&mut Started(child), Duration::from_secs(arguments.after))?;
            if seen.ended {
                output::message("the program ended meanwhile: this is what was seen last");
            }
            tell(&seen.refusals, &seen.notes, arguments.json)
        }
    }
}

/// What was seen last of a started program.
#[derive(Default)]
struct Seen {
    refusals: Vec<Refusal>,
    notes: Vec<String>,
    /// It had come to its end, of its own accord.
    ended: bool,
}

/// Between one look and the next.
const PERIOD: Duration = Duration::from_millis(50);

/// Looks again and again for so long, as a program that has just started has little open, and one that ends early
/// must have been seen before.
fn watch(started: &mut Started, long: Duration) -> std::result::Result<Seen, Failure> {
    let pid = Pid(started.0.id() as i32);
    let began = Instant::now();
    let mut seen = Seen::default();
    loop {
        thread::sleep(PERIOD.min(long.saturating_sub(began.elapsed())));
        let last = began.elapsed() >= long;
        let looked = checkpoint::check(pid);
        // What is seen of a program that is about to end is not what it was.
        if started.0.try_wait()?.is_some() {
            seen.ended = true;
            return Ok(seen);
        }
        match looked {
            Ok((refusals, notes)) => (seen.refusals, seen.notes) = (refusals, notes),
            Err(error) if last => return Err(failure(error.to_string())),
            Err(_) => {}
        }
        if last {
            return Ok(seen);
        }
    }
}

fn failure(message: String) -> Failure {
    Failure {
        code: crate::exit::FAILED,
        message,
    }
}

fn look(pid: Pid) -> std::result::Result<(Vec<Refusal>, Vec<String>), Failure> {
    if pid.0 <= 0 || tree::Stat::read(pid).is_none() {
        return Err(failure(format!("there is no process {pid}")));
    }
    checkpoint::check(pid).map_err(|error| failure(error.to_string()))
}

/// A program that is ended with its descendants.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let root = Pid(self.0.id() as i32);
        loop {
            let alive = tree::living_descendants(root);
            if alive.is_empty() {
                break;
            }
            for pid in alive {
                let _ = signal::send(pid, process::SIGKILL);
            }
            thread::sleep(Duration::from_millis(1));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The answer, for scripts.
#[derive(Serialize)]
struct Answer<'a> {
    can_be_saved: bool,
    obstacles: &'a [Refusal],
    notes: &'a [String],
}

fn tell(refusals: &[Refusal], notes: &[String], json: bool) -> Result {
    if json {
        output::json(&Answer {
            can_be_saved: refusals.is_empty(),
            obstacles: refusals,
            notes,
        })?;
    } else if refusals.is_empty() {
        for note in notes {
            output::result(note)?;
        }
        output::result("nothing stands in the way of a checkpoint")?;
    } else {
        for refusal in refusals {
            output::result(refusal)?;
        }
    }
    Ok(ExitCode::from(if refusals.is_empty() {
        0
    } else {
        crate::exit::FAILED
    }))
}
