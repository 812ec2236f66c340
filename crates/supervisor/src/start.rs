//! The supervisor's first steps, in a process that was forked from the front and has one thread.

use crate::line::{self, ToFront, fitting};
use crate::serve::{self, Service};
use crate::{Error, Settings};
use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
use rustix::termios::isatty;
use stasis_engine::error::Context;
use stasis_engine::keeper::{self, Inherited};
use stasis_engine::progress::{Progress, Step};
use stasis_engine::{EngineError, Job, restart};
use stasis_image::{Image, ImageError};
use stasis_sys::descriptor;
use stasis_sys::process::exit_now;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Exit status of `run` and `restart` for troubles of their own, as `env(1)` has it.
pub const OWN_FAILURE: u8 = 125;
/// The program was found but could not be started.
pub const NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
pub const NOT_FOUND: u8 = 127;

/// How often the front hears about progress.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Where the program comes from.
pub enum Start {
    /// A command.
    Launch(Vec<OsString>),
    /// An image.
    Restart {
        /// The image.
        image: Box<Image>,
        /// How to restart.
        options: restart::Options,
    },
}

/// The supervisor's ends of its lines.
pub(crate) struct Lines {
    /// Of the line between keeper and front: the keeper's.
    pub keeper: OwnedFd,
    /// Of the line between front and supervisor.
    pub front: OwnedFd,
    /// The job's side of a terminal that it may have.
    pub terminal: Option<OwnedFd>,
}

/// Why a start failed.
struct Failure {
    code: u8,
    message: String,
    damaged: bool,
}

impl Failure {
    fn own(error: &Error) -> Failure {
        Failure {
            code: OWN_FAILURE,
            message: error.to_string(),
            damaged: false,
        }
    }
}

/// Starts the program and serves it; never returns.
pub(crate) fn become_supervisor(
    start: Start,
    settings: Settings,
    inherited: &Inherited,
    lines: Lines,
) -> ! {
    // The frames above belong to the front: a panic must not get there.
    let died = catch_unwind(AssertUnwindSafe(|| {
        let Lines {
            keeper,
            front,
            terminal,
        } = lines;
        match begin(start, &settings, inherited, keeper, &front, terminal) {
            Ok(started) => serve::supervise(Service {
                job: started.job,
                restarted_from: started.from,
                waiting: started.waiting,
                terminal: started.terminal,
                socket: started.socket,
                settings,
                front,
            }),
            Err(Failure {
                code,
                message,
                damaged,
            }) => {
                let failed = ToFront::Failed {
                    code,
                    message: fitting(message),
                    damaged,
                };
                let _ = line::tell(&front, &failed, true);
                exit_now(i32::from(code))
            }
        }
    }));
    drop(died);
    exit_now(i32::from(OWN_FAILURE))
}

struct Started {
    job: Job,
    socket: serve::Socket,
    from: Option<PathBuf>,
    waiting: Vec<stasis_sys::Pid>,
    terminal: bool,
}

fn begin(
    start: Start,
    settings: &Settings,
    inherited: &Inherited,
    keeper: OwnedFd,
    front: &OwnedFd,
    terminal: Option<OwnedFd>,
) -> Result<Started, Failure> {
    let socket = serve::bind().map_err(|error| Failure::own(&error))?;
    let started = start_job(start, settings, inherited, keeper, front, terminal);
    let (job, from, terminal) = started.inspect_err(|_| socket.remove())?;
    // The program has them: here they would keep pipes open that it closes.
    descriptor::close_inherited();
    crate::front::let_go_of_pipes();
    // In a session of its own the supervisor has a share of the processors of its own (scheduler autogroups), so that
    // it can stop many busy threads quickly, and no terminal can send it signals.
    let _ = setsid();
    let waiting = job.requesters.clone();
    Ok(Started {
        job,
        socket,
        from,
        waiting,
        terminal,
    })
}

/// The job, the image that it comes from, and whether it has got the terminal.
fn start_job(
    start: Start,
    settings: &Settings,
    inherited: &Inherited,
    keeper: OwnedFd,
    front: &OwnedFd,
    terminal: Option<OwnedFd>,
) -> Result<(Job, Option<PathBuf>, bool), Failure> {
    Ok(match start {
        Start::Launch(argv) => {
            let job = keeper::launch(&argv, keeper, inherited)
                .map_err(|error| launch_failure(&error, settings))?;
            (job, None, false)
        }
        Start::Restart { image, options } => {
            // Until the job runs, whoever kills the front wants nothing of it to remain.
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            let from = image.path().to_owned();
            let restarted = restart(&image, options, keeper, front, terminal);
            let (job, terminal) = restarted.map_err(|error| Failure {
                code: OWN_FAILURE,
                damaged: is_damage(&error),
                message: format!("cannot restart from {}: {error}", from.display()),
            })?;
            let _ = set_parent_process_death_signal(None);
            (job, Some(from), terminal)
        }
    })
}

fn launch_failure(error: &EngineError, settings: &Settings) -> Failure {
    let program = settings.command.first().map_or("", String::as_str);
    let code = match error {
        EngineError::System { what, source } if *what == format!("starting {program}") => {
            if source.kind() == io::ErrorKind::NotFound {
                NOT_FOUND
            } else {
                NOT_EXECUTABLE
            }
        }
        _ => OWN_FAILURE,
    };
    Failure {
        code,
        message: error.to_string(),
        damaged: false,
    }
}

/// Restarts, and tells whether the job has got the terminal that was made for it.
fn restart(
    image: &Image,
    mut options: restart::Options,
    keeper: OwnedFd,
    front: &OwnedFd,
    terminal: Option<OwnedFd>,
) -> Result<(Job, bool), EngineError> {
    let progress = Telling {
        front,
        step: Mutex::new(("checking", Instant::now())),
    };
    let plan = restart::plan(image, &options, &progress)?;
    options.terminal = terminal.filter(|_| plan.wants_terminal());
    let has_terminal = options.terminal.is_some();
    if let Some(terminal) = &options.terminal {
        become_terminal(terminal).context(|| "binding the job's terminal".into())?;
    }
    let job = restart::execute(image, plan, options, keeper, &progress)?;
    Ok((job, has_terminal))
}

/// Puts the job's own terminal in the place of the user's among the standard streams, which the job gets.
fn become_terminal(terminal: &OwnedFd) -> rustix::io::Result<()> {
    if isatty(stdin()) {
        dup2_stdin(terminal)?;
    }
    if isatty(stdout()) {
        dup2_stdout(terminal)?;
    }
    if isatty(stderr()) {
        dup2_stderr(terminal)?;
    }
    Ok(())
}

/// Whether an older image may do better.
fn is_damage(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Image(
            ImageError::Damaged { .. }
                | ImageError::Truncated { .. }
                | ImageError::Unfinished { .. }
                | ImageError::NotAnImage { .. }
                | ImageError::MissingBase { .. }
        )
    )
}

/// Passes progress of a restart on to the front.
struct Telling<'a> {
    front: &'a OwnedFd,
    step: Mutex<(&'static str, Instant)>,
}

impl Progress for Telling<'_> {
    fn step(&self, step: Step) {
        tracing::debug!(?step);
        let what = match step {
            Step::Verify => "checking",
            Step::Memory => "reading",
            Step::Files => "restoring files",
            _ => return,
        };
        self.step.lock().unwrap_or_else(PoisonError::into_inner).0 = what;
    }
    fn bytes(&self, done: u64, total: u64) {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        if step.1.elapsed() >= TELL_EVERY {
            step.1 = Instant::now();
            let message = ToFront::Progress {
                what: step.0.to_owned(),
                done,
                total,
            };
            let _ = line::tell(self.front, &message, false);
        }
    }
    fn note(&self, text: &str) {
        let _ = line::tell(self.front, &ToFront::Note(fitting(text.to_owned())), true);
    }
}
