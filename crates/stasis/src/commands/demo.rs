//! `stasis demo`: shows the whole life of a checkpoint on a small program, and checks that it is true.

use super::{Failure, Result};
use crate::output;
use clap::Args;
use serde_json::Value;
use stasis_engine::tree;
use stasis_sys::process::SIGKILL;
use stasis_sys::{Pid, descriptor, signal};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Show it: save a running program, kill it, continue it, and compare its output with an undisturbed run
///
/// Everything happens in a temporary directory, which is removed at the end. Takes a few seconds. Exit status 0 only when
/// all of it came out right.
#[derive(Debug, Args)]
pub struct Arguments {}

/// For how long any step may take.
const PATIENCE: Duration = Duration::from_secs(30);
const LINES: usize = 40;

const PYTHON: &str = r#"import sys, time
total = 0
with open(sys.argv[1], "w") as output:
    for n in range(1, 41):
        total += n * n
        print(f"step {n}: the sum of squares is {total}", file=output, flush=True)
        time.sleep(0.05)
"#;

const SHELL: &str = r#"total=0 n=0
exec > "$1"
while [ $n -lt 40 ]; do
    n=$((n + 1)) total=$((total + n * n))
    echo "step $n: the sum of squares is $total"
    sleep 0.05
done
"#;

pub fn run(_: &Arguments) -> Result {
    // What a terminal or an editor has left open would be part of the job.
    descriptor::close_from(3)?;
    let stage = Stage::set()?;
    let shown = stage.play();
    shown
        .map(|()| ExitCode::SUCCESS)
        .map_err(|message| Failure {
            code: crate::exit::FAILED,
            message: format!("the demo failed: {message}"),
        })
}

type Shown<T> = std::result::Result<T, String>;

fn told<T>(what: &str, done: std::io::Result<T>) -> Shown<T> {
    done.map_err(|error| format!("{what}: {error}"))
}

fn say(text: &str) -> Shown<()> {
    told("writing", output::result(text))
}

/// A temporary directory with a program in it.
struct Stage {
    directory: PathBuf,
    stasis: PathBuf,
    program: [String; 2],
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What cannot be removed is in the temporary directory, where it is expected.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Stage {
    fn set() -> std::result::Result<Stage, Failure> {
        let directory = std::env::temp_dir().join(format!("stasis-demo-{}", Pid::current()));
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let (interpreter, name, text) = match on_path("python3") {
            true => ("python3", "count.py", PYTHON),
            false => ("sh", "count.sh", SHELL),
        };
        let stage = Stage {
            stasis: std::env::current_exe()?,
            program: [interpreter.to_owned(), name.to_owned()],
            directory,
        };
        fs::write(stage.at(name), text)?;
        Ok(stage)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn play(&self) -> Shown<()> {
        let [interpreter, script] = &self.program;
        say(&format!(
            "A program counts to {LINES}, keeps a sum in memory, and writes to a file. First, without disturbance:"
        ))?;
        say(&format!("$ {interpreter} {script} expected"))?;
        let undisturbed = self.command(OsStr::new(interpreter), &[script, "expected"])?;
        finish(interpreter, undisturbed)?;
        say("\nNow as a job that can be saved:")?;
        say(&format!(
            "$ stasis run -n demo -- {interpreter} {script} output &"
        ))?;
        let front = self.stasis(&["run", "-n", "demo", "--", interpreter, script, "output"])?;
        let mut job = Started(Some(front));
        self.wait_for_lines("output", 10, &mut job)?;
        let saved = self.save()?;
        self.wait_for_lines("output", 20, &mut job)?;
        self.kill(&mut job)?;
        self.restart(&saved)?;
        self.compare()
    }

    fn save(&self) -> Shown<PathBuf> {
        let before = self.lines("output");
        say(&format!(
            "It has written {before} lines. It is saved while it runs on:"
        ))?;
        say("$ stasis checkpoint --json demo")?;
        let saved = self.json(&["checkpoint", "--json", "demo"])?;
        let path = saved["path"].as_str().ok_or("the answer names no image")?;
        let number = |field: &str| saved[field].as_f64().unwrap_or(0.0);
        say(&format!(
            "saved {} in {}: the program stood still for {:.1} ms",
            output::Bytes(number("captured_bytes") as u64),
            Path::new(path)
                .file_name()
                .unwrap_or_default()
                .to_string_lossy(),
            number("pause_ms")
        ))?;
        Ok(path.into())
    }

    /// Kills every process of the job and around it.
    fn kill(&self, job: &mut Started) -> Shown<()> {
        let jobs = self.json(&["ps", "--json"])?;
        let number = |value: &Value| {
            value
                .as_i64()
                .and_then(|pid| i32::try_from(pid).ok())
                .map(Pid)
        };
        let supervisor = number(&jobs[0]["supervisor"]).ok_or("the job is not listed")?;
        let mut pids = vec![Pid(job.pid())];
        pids.extend(tree::children(supervisor));
        pids.extend(
            jobs[0]["pids"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(number),
        );
        pids.push(supervisor);
        say(&format!(
            "\nThen disaster strikes, after {} lines: kill -9 of everything.",
            self.lines("output")
        ))?;
        let words: Vec<String> = pids.iter().map(ToString::to_string).collect();
        say(&format!("$ kill -9 {}", words.join(" ")))?;
        // A child that is forked meanwhile is in no list: the keepers come last, when nobody is left below them.
        let keepers = tree::children(supervisor);
        let (around, program): (Vec<Pid>, Vec<Pid>) = pids
            .iter()
            .partition(|pid| **pid == supervisor || keepers.contains(pid));
        for pid in &program {
            let _ = signal::send(*pid, SIGKILL);
        }
        until("the program is gone", || {
            let left: Vec<Pid> = keepers
                .iter()
                .flat_map(|keeper| tree::living_descendants(*keeper))
                .collect();
            left.iter()
                .for_each(|pid| drop(signal::send(*pid, SIGKILL)));
            left.is_empty()
        })?;
        for pid in &around {
            let _ = signal::send(*pid, SIGKILL);
        }
        job.end();
        let gone =
            |pid: &Pid| tree::Stat::read(pid).is_none_or(|stat| matches!(stat.state, 'Z' | 'X'));
        until("everything is gone", || pids.iter().all(gone))
    }

    fn restart(&self, image: &Path) -> Shown<()> {
        say(
            "\nIt continues from the checkpoint, with the same process ids, memory and open files. Lines that were written after",
        )?;
        say("the checkpoint are taken back, and written again:")?;
        say("$ stasis restart .")?;
        let directory = image
            .parent()
            .unwrap_or(&self.directory)
            .to_string_lossy()
            .into_owned();
        let restarted = self.stasis(&["restart", &directory])?;
        finish("stasis restart", restarted)?;
        say("ended with status 0")
    }

    fn compare(&self) -> Shown<()> {
        say("\n$ cmp expected output")?;
        let read = |name: &str| told(name, fs::read(self.at(name)));
        let (expected, output) = (read("expected")?, read("output")?);
        if expected != output {
            return Err(format!(
                "the output differs: {} lines, of which {} are as in the undisturbed run",
                self.lines("output"),
                output
                    .split(|b| *b == b'\n')
                    .zip(expected.split(|b| *b == b'\n'))
                    .filter(|(a, b)| a == b)
                    .count()
            ));
        }
        let last = String::from_utf8_lossy(&output);
        say(&format!(
            "The same, to the last line: {:?}",
            last.lines().last().unwrap_or_default()
        ))
    }

    fn lines(&self, name: &str) -> usize {
        fs::read(self.at(name)).map_or(0, |bytes| {
            bytes.iter().filter(|byte| **byte == b'\n').count()
        })
    }

    fn wait_for_lines(&self, name: &str, wanted: usize, job: &mut Started) -> Shown<()> {
        until("the program has written enough", || {
            job.has_ended() || self.lines(name) >= wanted
        })?;
        if job.has_ended() {
            return Err("the job ended before it could be saved".into());
        }
        Ok(())
    }

    /// Starts a command in the directory. What it writes to its standard streams goes through pipes.
    fn command(&self, program: &OsStr, arguments: &[&str]) -> Shown<Child> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env("STASIS_RUNTIME_DIR", self.at("sockets"))
            .env("STASIS_DIR", &self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        told(&program.to_string_lossy(), command.spawn())
    }

    fn stasis(&self, arguments: &[&str]) -> Shown<Child> {
        self.command(self.stasis.as_os_str(), arguments)
    }

    /// Runs a command of this program that answers in JSON.
    fn json(&self, arguments: &[&str]) -> Shown<Value> {
        let output = told("stasis", self.stasis(arguments)?.wait_with_output())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(format!("stasis {}\n{said}", arguments.join(" ")));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("stasis {}: {error}", arguments.join(" ")))
    }
}

/// The job's front, which is not left behind.
struct Started(Option<Child>);

impl Started {
    fn pid(&self) -> i32 {
        self.0.as_ref().map_or(0, |child| child.id() as i32)
    }
    fn has_ended(&mut self) -> bool {
        self.0
            .as_mut()
            .is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }
    fn end(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for the end; anything but status 0 is a failure, told with what the command has said.
fn finish(what: &str, child: Child) -> Shown<()> {
    let mut started = Started(Some(child));
    until(&format!("{what} ends"), || started.has_ended())?;
    let Some(child) = started.0.take() else {
        return Ok(());
    };
    let output = told(what, child.wait_with_output())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{what} ended with {}\n{said}", output.status))
}

fn until(what: &str, mut condition: impl FnMut() -> bool) -> Shown<()> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > PATIENCE {
            return Err(format!(
                "waited {} s in vain until {what}",
                PATIENCE.as_secs()
            ));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
