//! What `run` and `restart` have in common: they hold a job.

use super::{Failure, Result};
use crate::batch::journal::Journal;
use crate::cli::{JobOptions, Often};
use crate::exit;
use crate::output::{self, ProgressLine};
use rustix::process::Signal;
use stasis_image::Secret;
use stasis_supervisor::front::{self, End, Screen};
use stasis_supervisor::line::{Told, Why};
use stasis_supervisor::schedule::{Cadence, Economy};
use stasis_supervisor::{
    Deadline, Error, JobName, NameLock, Naming, Settings, Shield, Start, finished,
};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Standard error as the front's screen.
struct Stderr<'a> {
    line: ProgressLine,
    log: Option<&'a mut Log>,
    from: Option<PathBuf>,
}

impl Screen for Stderr<'_> {
    fn note(&mut self, text: &str) {
        self.line.clear();
        match &mut self.log {
            Some(log) => log.journal.say(text),
            None => output::message(text),
        }
    }
    fn progress(&mut self, what: &str, done: u64, total: u64) {
        self.line.show(what, done, total);
    }
    fn clear(&mut self) {
        self.line.clear();
    }
    fn started(&mut self, _: bool) {
        let Some(log) = &mut self.log else { return };
        let how = match &self.from {
            Some(image) => format!("continues from {}", file_name(image)),
            None => "started".to_owned(),
        };
        let opening = std::mem::take(&mut log.opening);
        let about = if opening.is_empty() {
            String::new()
        } else {
            format!(": {opening}")
        };
        log.journal.say(&format!("{how}{about}"));
    }
    fn checkpoint(&mut self, told: &Told) {
        self.line.clear();
        if let Some(log) = &mut self.log {
            log.journal.checkpoint(told);
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// A log of the run, and what it begins with.
pub struct Log {
    pub journal: Journal,
    pub opening: String,
}

/// The number of the signal that ends jobs.
pub const SIGTERM: i32 = Signal::TERM.as_raw();

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

    fn fixed_deadline(&self) -> Option<Deadline> {
        let end = self.deadline?;
        Some(Deadline {
            look_up: Arc::new(move || Some(end)),
            margin: self.margin.map(stasis_supervisor::Interval::duration),
            least: None,
        })
    }

    /// The log, where one is wanted.
    pub fn log(&self, directory: &Path, name: &JobName, opening: String) -> Option<Log> {
        self.log.then(|| Log {
            journal: Journal::open(directory, name.as_str()),
            opening,
        })
    }

    /// What becomes of the job's end.
    pub fn ending(&self) -> Ending {
        Ending {
            stop_code: self.stop_code.unwrap_or(exit::SAVED_AND_STOPPED),
            remove_after_success: self.remove_after_success,
        }
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
            stop_signals: self.stop_signal.clone(),
            shield: self.shield.then(|| Shield {
                strangers: self.strangers.clone(),
            }),
            deadline: self
                .deadline_source
                .clone()
                .or_else(|| self.fixed_deadline()),
            tell_checkpoints: self.log,
            show_progress: self.progress,
            pause: self.pause,
            nice: self.nice,
            incremental: self.incremental,
            tracking: self.tracking,
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

/// What is done at the end of a job.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub stop_code: u8,
    pub remove_after_success: bool,
}

/// Attends to a job until its end. `Ok` is what came of it; a damaged image is told apart, as an older one may do.
pub fn attend(
    start: Start,
    settings: &Settings,
    ending: Ending,
    log: &mut Option<Log>,
) -> std::result::Result<Held, Failure> {
    let from = match &start {
        Start::Launch(_) => None,
        Start::Restart { image, .. } => Some(image.path().to_owned()),
    };
    let mut screen = Stderr {
        line: ProgressLine::new(),
        log: log.as_mut(),
        from,
    };
    let end = front::attend(start, settings, &mut screen).map_err(Failure::own)?;
    let told = |text: String| match screen.log {
        Some(log) => log.journal.say(&text),
        None => output::message(&text),
    };
    Ok(match end {
        End::Status(status) => {
            let success = status.exit_code() == Some(0);
            if success {
                finish(settings, ending);
            }
            let code = status.shell_code().and_then(|code| u8::try_from(code).ok());
            let code = code.unwrap_or(exit::OWN);
            if settings.tell_checkpoints {
                told(last_words(success, code, ending, settings));
            }
            Held::Ended(code)
        }
        End::Interrupted(status) => {
            told(format!(
                "the program was ended by {} before it could be saved again: the last checkpoint counts",
                stasis_supervisor::signal_name::name(status.killed_by().unwrap_or(0))
            ));
            let code = status.shell_code().and_then(|code| u8::try_from(code).ok());
            Held::Interrupted {
                code: code.unwrap_or(exit::OWN),
                signal: status.killed_by().unwrap_or(0),
            }
        }
        End::Saved(path, why) => {
            told(format!("saved and stopped: {}", path.display()));
            Held::Saved {
                code: ending.stop_code,
                why,
            }
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

fn last_words(success: bool, code: u8, ending: Ending, settings: &Settings) -> String {
    if !success {
        return format!("ended with status {code}");
    }
    let kept = stasis_image::scan(&settings.directory, Some(settings.name.as_str()))
        .is_ok_and(|images| !images.is_empty());
    match (kept, ending.remove_after_success) {
        (true, _) => format!(
            "finished; its checkpoints stay in {}",
            settings.directory.display()
        ),
        (false, true) => "finished; its checkpoints are removed".to_owned(),
        (false, false) => "finished".to_owned(),
    }
}

/// A run has come to a good end.
fn finish(settings: &Settings, ending: Ending) {
    if ending.remove_after_success {
        let images = stasis_image::scan(&settings.directory, Some(settings.name.as_str()));
        for image in images.unwrap_or_default() {
            if let Err(error) = std::fs::remove_file(&image.path) {
                output::message(&format!("{} stays: {error}", image.path.display()));
            }
        }
    }
    if let Err(error) = finished::mark(&settings.directory, &settings.name) {
        output::message(&format!(
            "the job's end could not be noted for --resume: {error}"
        ));
    }
}

/// What came of holding a job.
pub enum Held {
    /// It ended; the exit status.
    Ended(u8),
    /// It was saved and stopped.
    Saved { code: u8, why: Why },
    /// It was ended by a signal that should have had it saved.
    Interrupted { code: u8, signal: i32 },
    /// It did not start: the image is damaged, and the message says how.
    Damaged(String),
}

/// Ends with the job's status and gives the name back.
pub fn conclude(lock: NameLock, held: std::result::Result<Held, Failure>) -> Result {
    lock.release();
    match held? {
        Held::Ended(code) | Held::Saved { code, .. } | Held::Interrupted { code, .. } => {
            Ok(ExitCode::from(code))
        }
        Held::Damaged(message) => Err(Failure::own(message)),
    }
}

/// The directory's trouble in the words of a command that needs it.
pub fn explain(error: Error, directory: &Path) -> Failure {
    Failure::own(format!("{}: {error}", directory.display()))
}
