//! What launch and restart have in common: they hold a job.

use crate::names::ENDING;
use crate::{Failure, options, output};
use clap::ArgMatches;
use stasis_engine::tracking::Track;
use stasis_supervisor::Interval;
use stasis_supervisor::front::{self, End, Screen};
use stasis_supervisor::schedule::{Cadence, Economy};
use stasis_supervisor::{
    JobName, Membership, NOT_EXECUTABLE, NameLock, Naming, Settings, Start, runtime_dir,
};
use stasis_sys::process::{WaitStatus, end_with};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// The program was saved and stopped on request.
pub(crate) const SAVED_AND_STOPPED: u8 = 85;
/// The program was found, but could not be executed.
const NO_EXEC: u8 = 255;

/// Standard error as the front's screen.
struct Stderr;

impl Screen for Stderr {
    fn note(&mut self, text: &str) {
        output::warning(text);
    }
    fn progress(&mut self, _: &str, _: u64, _: u64) {}
    fn clear(&mut self) {}
}

/// A job that is about to be.
pub(crate) struct Job {
    pub name: JobName,
    pub directory: PathBuf,
    pub command: Vec<String>,
    pub membership: Membership,
    /// The number of the image that it comes from.
    pub sequence: u64,
}

/// What is known of a job, for the supervisor.
pub(crate) fn settings(job: Job, matches: &ArgMatches) -> Settings {
    let address = job.membership.address();
    let variable = |name: &str, value: String| (OsString::from(name), OsString::from(value));
    let naming = if options::directories_for_each(matches) {
        Naming::Directories {
            ending: ENDING,
            prefix: format!("ckpt_{}", job.membership.joined().computation),
        }
    } else {
        Naming::Replaced { ending: ENDING }
    };
    Settings {
        environment: vec![
            variable("DMTCP_COORD_HOST", address.host.clone()),
            variable("DMTCP_COORD_PORT", address.port.to_string()),
        ],
        interval: Interval::from_seconds(job.membership.joined().interval).map(Cadence::Every),
        economy: Economy::default(),
        // An image that takes the place of the one before it cannot lean on it.
        incremental: false,
        tracking: Track::default(),
        secret: None,
        keys: Arc::default(),
        pause: false,
        nice: 0,
        name: job.name,
        directory: job.directory,
        command: job.command,
        naming,
        sequence: job.sequence,
        membership: Some(job.membership),
        keep: NonZeroUsize::MIN,
        compression: options::compression(matches),
        threads: 0,
        file_limit: options::file_limit(matches),
        exit_with_root: false,
        checkpoint_signal: None,
        stop_signals: Vec::new(),
        shield: None,
        deadline: None,
        tell_checkpoints: false,
        show_progress: false,
    }
}

/// Takes the name of a job's images in a directory, so that no two jobs write one image. The mark is kept in the user's runtime
/// directory: what is beside the images is images and nothing else.
pub(crate) fn claim(directory: &Path, name: &JobName) -> Result<(NameLock, JobName), Failure> {
    let place = runtime_dir::for_supervisor().map_err(Failure::own)?;
    let mut hasher = DefaultHasher::new();
    directory.hash(&mut hasher);
    for number in 1..1000 {
        let wanted = if number == 1 {
            name.clone()
        } else {
            name.numbered(number)
        };
        let mark: JobName = format!("image-{:016x}-{}", hasher.finish(), names_end(&wanted))
            .parse()
            .map_err(Failure::own)?;
        match NameLock::take(&place, &mark) {
            Err(stasis_supervisor::Error::NameTaken { .. }) => {}
            Err(error) => return Err(Failure::own(error)),
            Ok(lock) => {
                if number > 1 {
                    output::warning(&format!(
                        "{name} is running with its images in {}: this one is called {wanted}",
                        directory.display()
                    ));
                }
                return Ok((lock, wanted));
            }
        }
    }
    Err(Failure::own(format!(
        "{name} is running a thousand times in {}",
        directory.display()
    )))
}

/// The last part of a name, which fits behind something else.
fn names_end(name: &JobName) -> String {
    let text: Vec<char> = name.as_str().chars().collect();
    text[text.len().saturating_sub(40)..].iter().collect()
}

/// How a job came to its end.
pub(crate) enum Held {
    /// With this exit status.
    Code(u8),
    /// By a signal.
    Signal(WaitStatus),
}

impl Held {
    /// Ends this process in the same way.
    pub(crate) fn pass_on(self) -> ExitCode {
        match self {
            Held::Code(code) => ExitCode::from(code),
            Held::Signal(status) => end_with(status),
        }
    }
}

/// Attends to a job until its end.
pub(crate) fn attend(start: Start, settings: &Settings, lock: NameLock) -> Result<Held, Failure> {
    let end = front::attend(start, settings, &mut Stderr);
    lock.release();
    match end.map_err(Failure::own)? {
        End::Status(status) | End::Interrupted(status) => Ok(
            match status.exit_code().and_then(|code| u8::try_from(code).ok()) {
                Some(code) => Held::Code(code),
                None => Held::Signal(status),
            },
        ),
        End::Saved(path, _) => {
            output::remark(&format!("saved and stopped: {}", path.display()));
            Ok(Held::Code(SAVED_AND_STOPPED))
        }
        End::Failed { code, message, .. } => Err(Failure {
            code: match code {
                NOT_EXECUTABLE => NO_EXEC,
                128.. => code,
                _ => options::failure_status(),
            },
            message,
        }),
        End::Lost => Err(Failure::own(
            "the keeper was killed: the program's end cannot be told",
        )),
    }
}
