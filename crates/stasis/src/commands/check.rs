//! `stasis check`: what this host allows, and what becomes of a program's resources.

mod host;
mod show;

use super::{Failure, Result};
use crate::output;
use clap::Args;
use serde::Serialize;
use stasis_engine::descriptors::{inherited, raise_limit};
use stasis_engine::look::{self, Item, Look};
use stasis_engine::{Refusal, tree};
use stasis_supervisor::client;
use stasis_sys::{Pid, process, signal};
use std::ffi::OsString;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Say what this host allows, or what of a program is kept, reset at a restart, or cannot be saved
///
/// Without an argument: what the kernel and its settings allow here. With a process id or a job's name: every resource
/// of that process or job and of its descendants, as the next checkpoint would find it; what is refused comes last, with what to
/// do. Nothing is stopped. With a command: starts it without input and output, looks at it for a moment while it runs,
/// and ends it. Exit status 0 when nothing stands in the way, 1 otherwise.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A process id, or a running job's name
    #[arg(value_name = "PID|JOB", conflicts_with = "command")]
    pub target: Option<String>,
    /// Each resource by itself, instead of the number of those of a kind
    #[arg(short, long)]
    pub verbose: bool,
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
    // A look holds a descriptor for each file that the program writes.
    raise_limit();
    match (arguments.target.as_deref(), arguments.command.as_slice()) {
        (None, []) => host::run(arguments.json),
        (Some(target), _) => tell(&look_at(target)?, arguments),
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
            tell(&seen.look, arguments)
        }
    }
}

/// What was seen last of a started program.
#[derive(Default)]
struct Seen {
    look: Look,
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
    let given = inherited::of_this_process();
    let mut seen = Seen::default();
    loop {
        thread::sleep(PERIOD.min(long.saturating_sub(began.elapsed())));
        let last = began.elapsed() >= long;
        let looked = look::program(pid, &given);
        // What is seen of a program that is about to end is not what it was.
        if started.0.try_wait()?.is_some() {
            seen.ended = true;
            return Ok(seen);
        }
        match looked {
            Ok(look) => seen.look = look,
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

/// Looks at a job through its supervisor, which knows what the job was started with; at any other program from here.
fn look_at(target: &str) -> std::result::Result<Look, Failure> {
    let pid = target.parse::<i32>().ok();
    let jobs = match (client::jobs(), pid) {
        (Err(_), Some(_)) => Vec::new(),
        (jobs, _) => jobs?,
    };
    match (client::resolve(&jobs, Some(target)), pid) {
        (Ok(job), _) => Ok(job.check()?),
        (Err(error), None) => Err(failure(error.to_string())),
        (Err(_), Some(pid)) => {
            let pid = Pid(pid);
            if pid.0 <= 0 || tree::Stat::read(pid).is_none() {
                return Err(failure(format!("there is no process {pid}")));
            }
            look::program(pid, &[]).map_err(|error| failure(error.to_string()))
        }
    }
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
    items: &'a [Item],
}

fn tell(look: &Look, arguments: &Arguments) -> Result {
    if arguments.json {
        output::json(&Answer {
            can_be_saved: look.can_be_saved(),
            obstacles: &look.refusals,
            notes: &look.notes,
            items: &look.items,
        })?;
    } else {
        output::result(show::text(look, arguments.verbose))?;
    }
    Ok(ExitCode::from(if look.can_be_saved() {
        0
    } else {
        crate::exit::FAILED
    }))
}
