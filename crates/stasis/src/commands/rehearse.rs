//! `stasis rehearse`: whether a program comes back right, tried before it matters.

use super::{Failure, Result};
use crate::output::{self, Bytes};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use stasis_supervisor::Interval;
use stasis_sys::{Pid, descriptor};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Try on a small scale whether a program comes back right: save it under load, kill it, continue it, compare
///
/// The command is run twice in the current directory: once undisturbed, and once as a job that is saved several times while
/// all processors are busy, killed and continued from its last checkpoint. Both runs last until the command ends, or for
/// the time of --for. What they write to standard output is compared, and the files that are named with --file. Exit status 0
/// only when the second run gave what the first one did.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How long each run may take; a command that is still running then is compared as far as it has come
    #[arg(long = "for", value_name = "TIME", default_value = "60s")]
    pub length: Interval,
    /// How often it is saved
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub checkpoints: u32,
    /// A file that the command writes, to be compared as well; may be repeated
    #[arg(long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// The report as JSON
    #[arg(long)]
    pub json: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    /// The second run gave what the first one did.
    same: bool,
    /// What differs, in words.
    differences: Vec<String>,
    /// Both runs came to their end, and were not cut off.
    complete: bool,
    /// Milliseconds that the first run took.
    undisturbed_ms: f64,
    /// One for each checkpoint.
    pauses_ms: Vec<f64>,
    /// Milliseconds from request to commit, of each.
    totals_ms: Vec<f64>,
    /// Length of the last image.
    image_bytes: u64,
    /// Memory and files in it, uncompressed.
    captured_bytes: u64,
    /// Milliseconds from the restart command to the running program.
    restart_ms: f64,
    /// What checkpoints had to say.
    notes: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result {
    // What a terminal or an editor has left open would be part of the job.
    descriptor::close_from(3)?;
    let stage = Stage::set(arguments)?;
    let report = stage.play().map_err(|message| Failure {
        code: crate::exit::FAILED,
        message: format!("the rehearsal failed: {message}"),
    })?;
    if arguments.json {
        output::json(&report)?;
    } else {
        output::result(in_words(&report))?;
    }
    Ok(ExitCode::from(if report.same {
        0
    } else {
        crate::exit::FAILED
    }))
}

fn in_words(report: &Report) -> String {
    let longest = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let mut text = format!(
        "checkpoints  {}, pause up to {:.0} ms, written within {:.0} ms\nimage        {}, of {} captured\nrestart      {:.0} ms\n",
        report.pauses_ms.len(),
        longest(&report.pauses_ms),
        longest(&report.totals_ms),
        Bytes(report.image_bytes),
        Bytes(report.captured_bytes),
        report.restart_ms,
    );
    for note in &report.notes {
        text += &format!("note         {note}\n");
    }
    for difference in &report.differences {
        text += &format!("differs      {difference}\n");
    }
    text += match (report.same, report.complete) {
        (true, true) => "the same     to the last byte, from beginning to end",
        (true, false) => "the same     as far as both runs have come in that time",
        (false, _) => {
            "NOT the same (a program whose output holds times or random numbers differs by itself: try it twice without Stasis)"
        }
    };
    text
}

/// For how long a job may take to go when it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

type Tried<T> = std::result::Result<T, String>;

fn told<T>(what: &str, done: std::io::Result<T>) -> Tried<T> {
    done.map_err(|error| format!("{what}: {error}"))
}

/// A temporary directory, and what is tried in it.
struct Stage<'a> {
    arguments: &'a Arguments,
    directory: PathBuf,
    stasis: PathBuf,
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // What cannot be removed is in the temporary directory, where it is expected.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl<'a> Stage<'a> {
    fn set(arguments: &'a Arguments) -> std::result::Result<Stage<'a>, Failure> {
        let name = format!("stasis-rehearsal-{}", Pid::current());
        let directory = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Stage {
            arguments,
            directory,
            stasis: std::env::current_exe()?,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn play(&self) -> Tried<Report> {
        let limit = self.arguments.length.duration();
        self.tell("undisturbed run")?;
        let mut first = self.start(
            &self.arguments.command[0],
            &self.arguments.command[1..],
            "expected",
        )?;
        let since = Instant::now();
        let ended = first.end_within(limit)?;
        let undisturbed = since.elapsed();
        first.kill();
        let expected = self.keep("expected")?;
        self.tell("run with checkpoints, on busy processors")?;
        let mut second = self.stasis(
            &["run", "-n", "rehearsal", "--"],
            &self.arguments.command,
            "given",
        )?;
        let rest = undisturbed / (self.arguments.checkpoints + 1);
        let busy = Busy::all();
        let mut saved = Vec::new();
        for _ in 0..self.arguments.checkpoints {
            if second.end_within(rest)?.is_some() {
                break;
            }
            match self.json(&["checkpoint", "--json", "rehearsal"]) {
                Ok(report) => saved.push(report),
                // It may have come to its end meanwhile.
                Err(_) if second.end_within(Duration::from_millis(500))?.is_some() => break,
                Err(message) => return Err(message),
            }
        }
        drop(busy);
        let last = saved
            .last()
            .ok_or("it ended before it could be saved: give it more to do")?;
        let image = last["path"]
            .as_str()
            .ok_or("the answer names no image")?
            .to_owned();
        // It gets a little further, so that there is something to be taken back.
        let _ = second.end_within(rest / 2)?;
        self.tell("kill -9 of everything, and restart")?;
        let _ = self.json(&["kill", "rehearsal"]);
        // It gives its name back.
        let _ = second.end_within(PATIENCE)?;
        second.kill();
        let since = Instant::now();
        let mut third = self.stasis(&["restart", "-n", "rehearsal", &image], &[], "given")?;
        let restart = self.wait_listed(&mut third, since)?;
        let again = third.end_within(limit)?;
        let _ = self.json(&["kill", "rehearsal"]);
        third.kill();
        let given = self.keep("given")?;
        let complete = ended.is_some() && again.is_some();
        let mut differences = compare(&expected, &given, complete);
        if let (Some(one), Some(other)) = (ended, again)
            && one.code() != other.code()
        {
            differences.push(format!(
                "the exit status: {one}, and {other} after the restart"
            ));
        }
        let number = |value: &Value, field: &str| value[field].as_f64().unwrap_or(0.0);
        let notes = saved
            .iter()
            .flat_map(|saved| saved["notes"].as_array().into_iter().flatten());
        let mut notes: Vec<String> = notes
            .filter_map(|note| note.as_str().map(str::to_owned))
            .collect();
        notes.dedup();
        Ok(Report {
            same: differences.is_empty(),
            differences,
            complete,
            undisturbed_ms: undisturbed.as_secs_f64() * 1000.0,
            pauses_ms: saved
                .iter()
                .map(|saved| number(saved, "pause_ms"))
                .collect(),
            totals_ms: saved
                .iter()
                .map(|saved| number(saved, "total_ms"))
                .collect(),
            image_bytes: number(last, "image_bytes") as u64,
            captured_bytes: number(last, "captured_bytes") as u64,
            restart_ms: restart.as_secs_f64() * 1000.0,
            notes,
        })
    }

    fn tell(&self, text: &str) -> Tried<()> {
        if !self.arguments.json {
            told(
                "writing",
                output::result(format_args!("             {text}")),
            )?;
        }
        Ok(())
    }

    /// Starts a command with its output in a file.
    fn start(&self, program: &OsString, words: &[OsString], name: &str) -> Tried<Actor> {
        let out = File::options()
            .append(true)
            .create(true)
            .open(self.at(name));
        let error = File::options()
            .append(true)
            .create(true)
            .open(self.at("errors"));
        let mut command = Command::new(program);
        command
            .args(words)
            .env("STASIS_RUNTIME_DIR", self.at("sockets"))
            .env("STASIS_DIR", &self.directory)
            .stdin(Stdio::null())
            .stdout(told("making a file", out)?)
            .stderr(told("making a file", error)?);
        let child = told(&program.to_string_lossy(), command.spawn())?;
        Ok(Actor(Some(child)))
    }

    fn stasis(&self, first: &[&str], rest: &[OsString], name: &str) -> Tried<Actor> {
        let words: Vec<OsString> = first
            .iter()
            .map(Into::into)
            .chain(rest.iter().cloned())
            .collect();
        self.start(&self.stasis.clone().into_os_string(), &words, name)
    }

    /// Runs a command of this program that answers in JSON.
    fn json(&self, words: &[&str]) -> Tried<Value> {
        let output = Command::new(&self.stasis)
            .args(words)
            .env("STASIS_RUNTIME_DIR", self.at("sockets"))
            .output();
        let output = told("stasis", output)?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
    }

    /// Waits until the restarted job is there.
    fn wait_listed(&self, actor: &mut Actor, since: Instant) -> Tried<Duration> {
        loop {
            let jobs = self.json(&["ps", "--json"])?;
            if jobs.as_array().is_some_and(|jobs| !jobs.is_empty()) {
                return Ok(since.elapsed());
            }
            if let Some(status) = actor.end_within(Duration::from_millis(10))? {
                // It may have been that short; then its output tells.
                if status.code() != Some(i32::from(crate::exit::OWN)) {
                    return Ok(since.elapsed());
                }
                let said = fs::read_to_string(self.at("errors")).unwrap_or_default();
                return Err(said.trim().to_owned());
            }
        }
    }

    /// What a run has written: standard output first. The files are taken out of the next run's way.
    fn keep(&self, name: &str) -> Tried<Vec<(String, Vec<u8>)>> {
        let mut kept = vec![(
            "standard output".to_owned(),
            told(name, fs::read(self.at(name)))?,
        )];
        for file in &self.arguments.file {
            let shown = file.display().to_string();
            kept.push((shown.clone(), told(&shown, fs::read(file))?));
            if name == "expected" {
                told(&shown, fs::remove_file(file))?;
            }
        }
        Ok(kept)
    }
}

/// A process that is not left behind.
struct Actor(Option<Child>);

impl Actor {
    /// Waits for the end, at most so long.
    fn end_within(&mut self, limit: Duration) -> Tried<Option<ExitStatus>> {
        let since = Instant::now();
        let Some(child) = &mut self.0 else {
            return Ok(None);
        };
        loop {
            if let Some(status) = told("waiting", child.try_wait())? {
                return Ok(Some(status));
            }
            if since.elapsed() >= limit {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Threads that compute for nothing, one for each processor.
struct Busy(&'static AtomicBool, Vec<thread::JoinHandle<()>>);

impl Busy {
    fn all() -> Busy {
        static STOP: AtomicBool = AtomicBool::new(false);
        let count = thread::available_parallelism().map_or(1, usize::from);
        let spin = || {
            while !STOP.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        Busy(&STOP, (0..count).map(|_| thread::spawn(spin)).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        for thread in self.1.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What differs. Of runs that were cut off, one must begin as the other.
fn compare(
    expected: &[(String, Vec<u8>)],
    given: &[(String, Vec<u8>)],
    complete: bool,
) -> Vec<String> {
    let mut differences = Vec::new();
    for ((name, expected), (_, given)) in expected.iter().zip(given) {
        let common = expected.len().min(given.len());
        let (one, other) = match complete {
            true => (&expected[..], &given[..]),
            false => (&expected[..common], &given[..common]),
        };
        if one != other {
            let same = one.iter().zip(other).take_while(|(a, b)| a == b).count();
            let line = one[..same].iter().filter(|byte| **byte == b'\n').count() + 1;
            differences.push(format!(
                "{name}, from line {line} on: {} bytes undisturbed, {} after the restart",
                expected.len(),
                given.len()
            ));
        } else if common == 0 && !expected.is_empty() {
            differences.push(format!("{name}: nothing was written after the restart"));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_were_cut_off_are_compared_as_far_as_they_go() {
        let run = |text: &str| vec![("standard output".to_owned(), text.as_bytes().to_vec())];
        assert!(compare(&run("a\nb\n"), &run("a\nb\n"), true).is_empty());
        assert!(compare(&run("a\nb\nc"), &run("a\nb\n"), false).is_empty());
        let cut = compare(&run("a\nb\nc"), &run("a\nb\n"), true);
        assert!(cut[0].contains("from line 3"), "{cut:?}");
        let other = compare(&run("a\nb\nc"), &run("a\nX\n"), false);
        assert!(other[0].contains("from line 2"), "{other:?}");
        assert_eq!(compare(&run("a"), &run(""), false).len(), 1);
    }
}
