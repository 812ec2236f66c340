//! A process that a test has started, and what it prints.

use crate::sandbox::Sandbox;
use crate::{patience, processes, wait_until};
use rustix::process::Signal;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Exit {
        match status.code() {
            Some(code) => Exit::Code(code),
            None => Exit::Signal(status.signal().unwrap_or(0)),
        }
    }
}

/// What is left of a process that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Finished {
    /// Whether it ended with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// Itself, when it ended with status 0.
    ///
    /// # Panics
    /// When it did not.
    pub fn expect_success(self, what: &str) -> Finished {
        assert!(self.success(), "{what}: {self:?}");
        self
    }
}

#[derive(Debug)]
struct Collector {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

fn locked(text: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    match text.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

impl Collector {
    fn new(source: Option<impl Read + Send + 'static>) -> Collector {
        let text = Arc::new(Mutex::new(Vec::new()));
        let reader = source.map(|mut source| {
            let text = Arc::clone(&text);
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(n @ 1..) = source.read(&mut buffer) {
                    locked(&text).extend_from_slice(&buffer[..n]);
                }
            })
        });
        Collector { text, reader }
    }

    fn get(&self) -> String {
        String::from_utf8_lossy(&locked(&self.text)).into_owned()
    }

    /// Waits for the last writer to close.
    fn end(&mut self) {
        if let Some(reader) = self.reader.take() {
            wait_until(
                "the last process that holds the output has closed it",
                || reader.is_finished().then_some(()),
            );
        }
    }
}

/// A process in the foreground of its own process group: a job's `stasis run` or `stasis restart`, or any other.
#[derive(Debug)]
pub struct Running<'a> {
    sandbox: &'a Sandbox,
    child: Child,
    exit: Option<Exit>,
    stdout: Collector,
    stderr: Collector,
    name: String,
    listed: bool,
}

impl<'a> Running<'a> {
    pub(crate) fn start(sandbox: &'a Sandbox, mut command: Command) -> Running<'a> {
        let name = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ");
        sandbox.note(format!("starting: {name}"));
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child =
            processes::spawn(&mut command).unwrap_or_else(|error| panic!("{name}: {error}"));
        Running {
            sandbox,
            stdout: Collector::new(child.stdout.take()),
            stderr: Collector::new(child.stderr.take()),
            child,
            exit: None,
            name,
            listed: false,
        }
    }

    /// The process that was started: for a job the one in front.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What was written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.get()
    }

    /// What was written to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.get()
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When the kernel does not say.
    pub fn exited(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            self.exit = processes::try_wait(&mut self.child)
                .expect("waiting for a child")
                .map(Exit::from);
        }
        self.exit
    }

    /// Waits until nobody has standard output open any more, though the process may live.
    ///
    /// # Panics
    /// When somebody keeps it.
    pub fn wait_stdout_end(&mut self) {
        self.stdout.end();
    }

    /// Waits until standard output satisfies `wanted`.
    ///
    /// # Panics
    /// When it does not in good time, or the process ends before.
    pub fn wait_stdout(&mut self, what: &str, wanted: impl Fn(&str) -> bool) {
        let start = Instant::now();
        loop {
            let ended = self.exited();
            if ended.is_some() {
                self.stdout.end();
            }
            let text = self.stdout();
            if wanted(&text) {
                return;
            }
            assert!(
                ended.is_none() && start.elapsed() < patience(),
                "{}: no {what} on standard output, {ended:?} after {:?}\n{text}\n{}",
                self.name,
                start.elapsed(),
                self.stderr(),
            );
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
    }

    /// Waits for a line on standard output.
    pub fn wait_line(&mut self, line: &str) {
        self.wait_stdout(&format!("line {line:?}"), |text| {
            text.lines().any(|l| l == line)
        });
    }

    /// Waits for the end, of the process and of its output.
    ///
    /// # Panics
    /// When it does not end in good time.
    pub fn finish(mut self) -> Finished {
        let start = Instant::now();
        let exit = loop {
            if let Some(exit) = self.exited() {
                break exit;
            }
            assert!(
                start.elapsed() < patience(),
                "{} does not end\n{}\n{}",
                self.name,
                self.stdout(),
                self.stderr()
            );
            std::thread::sleep(std::time::Duration::from_millis(3));
        };
        self.stdout.end();
        self.stderr.end();
        self.sandbox.note(format!("{exit:?}: {}", self.name));
        Finished {
            exit,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    /// Sends a signal to the process that was started.
    pub fn signal(&self, signal: Signal) {
        processes::send(self.pid(), signal);
    }

    /// Waits until `stasis ps` knows the job: from then on it can be checkpointed.
    ///
    /// # Panics
    /// When the job ends before, or does not come up.
    pub fn wait_listed(&mut self) {
        assert!(
            self.listed_unless_done(),
            "{} has ended: {:?}\n{}\n{}",
            self.name,
            self.exit,
            self.stdout(),
            self.stderr()
        );
    }

    /// The same; whether that came before the job's end.
    ///
    /// # Panics
    /// When the job neither comes up nor ends.
    pub fn listed_unless_done(&mut self) -> bool {
        if !self.listed {
            let sandbox = self.sandbox;
            self.listed = wait_until("stasis ps lists the job", || {
                if self.exited().is_some() {
                    return Some(false);
                }
                let listed = sandbox.stasis(["ps"]);
                listed.stdout.contains("job").then_some(true)
            });
        }
        self.listed
    }

    /// Takes a checkpoint with `stasis checkpoint` and gives the image.
    ///
    /// # Panics
    /// When it fails, or leaves no new image.
    pub fn checkpoint(&mut self) -> PathBuf {
        let before = self.sandbox.all_images();
        let result = self.try_checkpoint();
        let exit = self.exited();
        assert!(
            result.success(),
            "{}: checkpoint failed: {result:?}\nthe job: {exit:?}\n{}",
            self.name,
            self.stderr()
        );
        let image = self.sandbox.newest_image();
        assert!(
            !before.contains(&image),
            "no new image; there were {before:?}"
        );
        image
    }

    /// Takes a checkpoint, which may fail.
    pub fn try_checkpoint(&mut self) -> Finished {
        self.wait_listed();
        self.sandbox.stasis(["checkpoint", "job"])
    }

    /// The processes below the one in front: supervisor, keeper and program.
    #[must_use]
    pub fn descendants(&self) -> Vec<i32> {
        processes::descendants(self.pid())
    }

    /// Kills everything of the job with SIGKILL, as a machine that loses its power; gives what it had printed.
    pub fn kill_all(mut self) -> Finished {
        self.sandbox.kill_all();
        let exit = wait_until("the front is gone", || self.exited());
        self.stdout.end();
        self.stderr.end();
        Finished {
            exit,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!(
                "== {} ==\n-- stdout --\n{}\n-- stderr --\n{}",
                self.name,
                self.stdout(),
                self.stderr()
            );
            self.sandbox.note(text);
        }
        if self.exited().is_none() {
            let _ = self.child.kill();
            while self.exited().is_none() {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    }
}
