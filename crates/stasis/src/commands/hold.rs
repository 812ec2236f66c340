//! What `run` and `restart` have in common: they hold a job.

use super::{Failure, Result};
use crate::cli::{JobOptions, Often};
use crate::exit;
use crate::output::{self, ProgressLine};
use stasis_image::Secret;
use stasis_supervisor::front::{self, End, Screen};
use stasis_supervisor::schedule::{Cadence, Economy};
use stasis_supervisor::{Error, JobName, NameLock, Naming, Settings, Start, finished};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Standard error as the front's screen.
pub struct Stderr(ProgressLine);

impl Stderr {
    pub fn new() -> Stderr {
        Stderr(ProgressLine::new())
    }
}

impl Screen for Stderr {
    fn note(&mut self, text: &str) {
        self.0.clear();
        output::message(text);
    }
    fn progress(&mut self, what: &str, done: u64, total: u64) {
        self.0.show(what, done, total);
    }
    fn clear(&mut self) {
        self.0.clear();
    }
}

impl JobOptions {
    /// Where checkpoints go: the option, the environment, or `otherwise`; made absolute. What the user has named is made
    /// where it is missing, for nobody else to enter.
    pub fn directory(&self, otherwise: &Path) -> std::result::Result<PathBuf, Failure> {
        let (directory, named) = match (&self.directory, std::env::var_os("STASIS_DIR")) {
            (Some(directory), _) => (directory.clone(), true),
            (None, Some(directory)) if !directory.is_empty() => (directory.into(), true),
            (None, _) => (otherwise.to_owned(), false),
        };
        let made = match std::fs::metadata(&directory) {
            Err(error) if named && error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&directory)
            }
            _ => Ok(()),
        };
        made.and_then(|()| std::fs::canonicalize(&directory))
            .map_err(|error| {
                Failure::own(format!(
                    "the checkpoint directory {}: {error}",
                    directory.display()
                ))
            })
    }

    /// Everything together.
    pub fn settings(
        &self,
        name: JobName,
        directory: PathBuf,
        command: Vec<String>,
    ) -> std::result::Result<Settings, Failure> {
        let secret = match &self.keys.passphrase_file {
            Some(file) => Some(Secret::for_passphrase_file(file).map_err(Failure::own)?),
            None if self.encrypt_to.is_empty() => None,
            None => Some(Secret::for_recipients(&self.encrypt_to).map_err(Failure::own)?),
        };
        let keys = self.keys.keys().map_err(Failure::own)?;
        if let Some(secret) = &secret {
            keys.add_secret(secret);
        }
        let economy = Economy {
            mtbf: self.mtbf.duration(),
            max_overhead: self.max_overhead,
        };
        Ok(Settings {
            name,
            directory,
            command,
            interval: self.interval.map(|often| match often {
                Often::Every(interval) => Cadence::Every(interval),
                Often::Auto => Cadence::Auto(economy),
            }),
            economy,
            naming: Naming::Numbered,
            sequence: 0,
            membership: None,
            environment: Vec::new(),
            keep: self.keep,
            compression: self.compress,
            threads: self.threads,
            file_limit: self.file_limit,
            exit_with_root: self.exit_with_root,
            checkpoint_signal: self.checkpoint_signal,
            stop_signal: self.stop_signal,
            show_progress: self.progress,
            pause: self.pause,
            nice: self.nice,
            incremental: self.incremental,
            secret,
            keys: Arc::new(keys),
        })
    }
}

/// Takes the name, clears what killed supervisors have left under it, and gives both.
///
/// With `exact`, a name that is in use is refused; without, the job gets a numbered one and the user is told.
pub fn claim(
    directory: &Path,
    name: &JobName,
    exact: bool,
) -> std::result::Result<(NameLock, JobName), Failure> {
    let (lock, name) = if exact {
        (
            NameLock::take(directory, name).map_err(Failure::own)?,
            name.clone(),
        )
    } else {
        let (lock, numbered) = NameLock::take_numbered(directory, name).map_err(Failure::own)?;
        if numbered != *name {
            output::message(&format!(
                "a job named {name} is running with its checkpoints here: this one is called {numbered}"
            ));
        }
        (lock, numbered)
    };
    if let Err(error) = stasis_image::remove_abandoned(directory, name.as_str()) {
        output::message(&format!("an unfinished checkpoint stays: {error}"));
    }
    Ok((lock, name))
}

/// Attends to a job until its end. `Ok` is the exit status; a damaged image is told apart, as an older one may do.
pub fn attend(start: Start, settings: &Settings) -> std::result::Result<Held, Failure> {
    let end = front::attend(start, settings, &mut Stderr::new()).map_err(Failure::own)?;
    Ok(match end {
        End::Status(status) => {
            if status.exit_code() == Some(0)
                && let Err(error) = finished::mark(&settings.directory, &settings.name)
            {
                output::message(&format!(
                    "the job's end could not be noted for --resume: {error}"
                ));
            }
            let code = status.shell_code().and_then(|code| u8::try_from(code).ok());
            Held::Ended(code.unwrap_or(exit::OWN))
        }
        End::Saved(path) => {
            output::message(&format!("saved and stopped: {}", path.display()));
            Held::Ended(exit::SAVED_AND_STOPPED)
        }
        End::Failed {
            message,
            damaged: true,
            ..
        } => Held::Damaged(message),
        End::Failed { code, message, .. } => return Err(Failure { code, message }),
        End::Lost => {
            return Err(Failure::own(
                "the keeper was killed: the program's end cannot be told",
            ));
        }
    })
}

/// What came of holding a job.
pub enum Held {
    /// It ended, or was saved and stopped; the exit status.
    Ended(u8),
    /// It did not start: the image is damaged, and the message says how.
    Damaged(String),
}

/// Ends with the job's status and gives the name back.
pub fn conclude(lock: NameLock, held: std::result::Result<Held, Failure>) -> Result {
    lock.release();
    match held? {
        Held::Ended(code) => Ok(ExitCode::from(code)),
        Held::Damaged(message) => Err(Failure::own(message)),
    }
}

/// The directory's trouble in the words of a command that needs it.
pub fn explain(error: Error, directory: &Path) -> Failure {
    Failure::own(format!("{}: {error}", directory.display()))
}
