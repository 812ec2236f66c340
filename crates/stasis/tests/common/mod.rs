//! What the tests of the command share.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// For how long a condition is waited for before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory for checkpoints and one for control sockets, both of this test alone.
pub struct Place {
    root: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(root.path().join("dir")).expect("a directory");
        Place { root }
    }
    /// Where checkpoints go, which is also the working directory.
    pub fn dir(&self) -> PathBuf {
        self.root.path().join("dir")
    }
    pub fn runtime(&self) -> PathBuf {
        self.root.path().join("run")
    }
    /// `stasis` with arguments, its standard streams captured.
    pub fn stasis(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stasis"));
        command
            .args(arguments)
            .current_dir(self.dir())
            .env("STASIS_RUNTIME_DIR", self.runtime())
            .env_remove("STASIS_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
    /// The same, without whatever descriptors the test itself was started with: they would be part of the job.
    pub fn clean(&self, arguments: &[&str]) -> Command {
        const CLOSE: &str = r#"for n in $(ls /proc/$$/fd); do [ "$n" -gt 2 ] && eval "exec $n>&-"; done; exec "$@""#;
        let plain = self.stasis(arguments);
        let mut command = Command::new("bash");
        command
            .args(["-c", CLOSE, "bash", env!("CARGO_BIN_EXE_stasis")])
            .args(arguments)
            .current_dir(self.dir())
            .envs(
                plain
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env_remove("STASIS_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
    /// Runs it to its end.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.stasis(arguments).output().expect("stasis starts")
    }
    /// Starts `stasis run OPTIONS -- sh -c SCRIPT`. It is killed when the value is dropped.
    pub fn start(&self, options: &[&str], script: &str) -> Running {
        let mut arguments = vec!["run"];
        arguments.extend(options);
        arguments.extend(["--", "sh", "-c", script]);
        Running(Some(
            self.stasis(&arguments).spawn().expect("stasis starts"),
        ))
    }
    /// Waits until a file that the program writes is there and ends with a line end; its trimmed contents.
    pub fn read(&self, name: &str) -> String {
        let path = self.dir().join(name);
        let mut contents = String::new();
        wait_until(&format!("{name} is written"), || {
            contents = fs::read_to_string(&path).unwrap_or_default();
            contents.ends_with('\n')
        });
        contents.trim().to_owned()
    }
    pub fn read_pid(&self, name: &str) -> i32 {
        self.read(name).parse().expect("a number")
    }
    /// The only job, as `ps --json` has it.
    pub fn job_status(&self) -> serde_json::Value {
        let mut jobs = serde_json::Value::Null;
        wait_until("the job answers", || {
            let output = self.output(&["ps", "--json"]);
            jobs = serde_json::from_slice(&output.stdout).unwrap_or_default();
            jobs.as_array().is_some_and(|jobs| jobs.len() == 1)
        });
        jobs[0].take()
    }
}

/// A started command that does not outlive the test.
pub struct Running(Option<Child>);

impl Running {
    pub fn new(child: Child) -> Running {
        Running(Some(child))
    }
    pub fn pid(&self) -> i32 {
        self.0.as_ref().expect("it runs").id() as i32
    }
    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let child = self.0.take().expect("it runs");
        let output = child.wait_with_output().expect("its output");
        Ended::from(output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        Ended {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process lives (a zombie does not).
pub fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit_once(')')
                .map(|(_, rest)| !rest.starts_with(" Z"))
        })
        .unwrap_or(false)
}

/// Sends a signal, by its name, to a process or, with a hyphen in front, to a process group.
pub fn kill(signal: &str, to: impl std::fmt::Display) {
    let status = Command::new("kill")
        .args(["-s", signal, "--", &to.to_string()])
        .status()
        .expect("kill starts");
    assert!(status.success(), "kill -s {signal} {to}");
}

/// Whether a program is on PATH.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| is_file(&dir, program)))
}

fn is_file(directory: &Path, program: &str) -> bool {
    directory.join(program).is_file()
}

/// Skips a test that needs a program.
#[macro_export]
macro_rules! needs {
    ($program:expr) => {
        if !common::has($program) {
            println!("skipped: {} is not on PATH", $program);
            return;
        }
    };
}
