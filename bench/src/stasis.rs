//! Driving `stasis`, the way a user does.

use crate::wait;
use serde::Deserialize;
use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The command and where it works.
pub struct Stasis {
    /// The program.
    pub program: PathBuf,
    /// Where checkpoints, reports and the log are.
    pub directory: PathBuf,
    /// The jobs' name.
    pub name: String,
    /// Commands that held a job, so far.
    pub holders: Cell<usize>,
}

/// What `stasis checkpoint --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
pub struct Saved {
    pub path: PathBuf,
    pub pause_ms: f64,
    pub total_ms: f64,
    pub image_bytes: u64,
    #[serde(default)]
    pub bases: usize,
}

/// A job; ended when dropped.
pub struct Job<'a> {
    stasis: &'a Stasis,
    /// `stasis run` or `stasis restart`.
    pub holder: Child,
}

impl Stasis {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// A command that holds a job. Its standard error is the program's, too: a file of its own, so that nobody but the
    /// program writes to it.
    fn holding(&self) -> Result<Command, String> {
        self.holders.set(self.holders.get() + 1);
        let path = self.log();
        let log =
            File::create(&path).map_err(|error| format!("making {}: {error}", path.display()))?;
        let mut command = self.command();
        command.stderr(log);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.directory.join(format!("log-{}", self.holders.get()))
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, String> {
        command
            .spawn()
            .map_err(|error| format!("starting {}: {error}", self.program.display()))
    }

    /// The last line that the command that held the last job, or the program, wrote to standard error.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        log.lines().last().unwrap_or_default().to_owned()
    }

    /// `stasis run` without waiting for anything.
    pub fn launch(&self, options: &[&str], argv: &[OsString]) -> Result<Job<'_>, String> {
        let mut command = self.holding()?;
        command
            .args(["run", "-n", &self.name, "-d"])
            .arg(&self.directory);
        command.args(options).arg("--").args(argv);
        Ok(Job {
            stasis: self,
            holder: self.spawn(&mut command)?,
        })
    }

    /// Starts a program that reports, and waits until it has.
    pub fn start(&self, options: &[&str], argv: &[OsString]) -> Result<Job<'_>, String> {
        wait::ask(&self.directory).map_err(|error| error.to_string())?;
        let mut job = self.launch(options, argv)?;
        wait::report(&self.directory, Some(&mut job.holder))?;
        Ok(job)
    }

    /// Restarts; tells the job and how long it took until the program ran.
    pub fn restart(&self, image: &Path) -> Result<(Job<'_>, Duration), String> {
        wait::ask(&self.directory).map_err(|error| error.to_string())?;
        let mut command = self.holding()?;
        command.arg("restart").arg(image);
        let began = Instant::now();
        let mut job = Job {
            stasis: self,
            holder: self.spawn(&mut command)?,
        };
        wait::report(&self.directory, Some(&mut job.holder))?;
        Ok((job, began.elapsed()))
    }
}

impl Job<'_> {
    /// Takes a checkpoint.
    pub fn checkpoint(&self) -> Result<Saved, String> {
        let mut attempts = 0;
        loop {
            let mut command = self.stasis.command();
            command.args(["checkpoint", &self.stasis.name, "--json"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let output = command.output().map_err(|error| error.to_string())?;
            if let Ok(saved) = serde_json::from_slice(&output.stdout) {
                return Ok(saved);
            }
            let words = String::from_utf8_lossy(&output.stderr);
            attempts += 1;
            // A program runs before its supervisor listens.
            if attempts == 100 || !words.contains("no job") {
                return Err(format!("no checkpoint: {}", words.trim()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The longest gap between two ticks of the program since this was asked the last time, and the sum of its memory.
    pub fn ask(&self) -> Result<(Option<Duration>, Option<String>), String> {
        let directory = &self.stasis.directory;
        wait::ask(directory).map_err(|error| error.to_string())?;
        let report = wait::report(directory, None)?;
        let mut words = report.split_ascii_whitespace();
        let gap = words
            .next()
            .and_then(|word| word.parse().ok())
            .map(Duration::from_micros);
        Ok((gap, words.next().map(str::to_owned)))
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if !matches!(self.holder.try_wait(), Ok(None)) {
            return;
        }
        let name = &self.stasis.name;
        // A job that has just been restarted runs before its supervisor listens.
        let killed = (0..100).any(|attempt| {
            if attempt > 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
            let status = self
                .stasis
                .command()
                .args(["kill", name])
                .stderr(Stdio::null())
                .status();
            status.is_ok_and(|status| status.success())
        });
        if !killed {
            // The program goes with the command that holds it.
            let _ = self.holder.kill();
        }
        let _ = self.holder.wait();
    }
}
