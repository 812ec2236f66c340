//! A directory, a user and an environment of one test.

use crate::running::{Finished, Running};
use crate::{build, processes, wait_until};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// The path that the tests' programs are looked up in, after the directory of `stasis` itself.
pub(crate) const PROGRAM_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games";

/// How the name of an image ends.
pub const IMAGE_SUFFIX: &str = ".ckpt";

/// Whom a test's programs run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl User {
    /// Whoever runs the tests.
    #[must_use]
    pub fn current() -> User {
        User {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    /// An ordinary user: oneself, or for root `stasis-test` if there is one, else `nobody`.
    #[must_use]
    pub fn ordinary() -> User {
        if User::current().uid != 0 {
            return User::current();
        }
        User::named("stasis-test").unwrap_or_else(User::nobody)
    }

    /// The user `nobody`: another one than [`User::ordinary`] where `stasis-test` exists.
    #[must_use]
    pub fn nobody() -> User {
        User {
            uid: 65534,
            gid: 65534,
        }
    }

    fn named(name: &str) -> Option<User> {
        let users = fs::read_to_string("/etc/passwd").ok()?;
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some(User {
            uid: fields.next()?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    }
}

/// The world of one test. Dropping it kills every process that was started in it, and removes its directory.
#[derive(Debug)]
pub struct Sandbox {
    root: PathBuf,
    mark: String,
    user: User,
    started: Instant,
    log: RefCell<Vec<String>>,
    /// Further environment of everything that is started.
    pub env: Vec<(String, String)>,
    /// Further options of `stasis run`; at first, that no image is removed.
    pub run_options: Vec<String>,
    /// Further options of `stasis restart`; at first the same.
    pub restart_options: Vec<String>,
    /// Numbers of the processes in front of the jobs: children of this process that it waits for itself.
    fronts: RefCell<Vec<i32>>,
}

/// How the memory of all jobs is to be tracked, where somebody has asked for that: their checkpoints are increments then, and what
/// is said to be clean is compared.
pub(crate) fn tracking() -> Option<String> {
    std::env::var("STASIS_TEST_TRACKING").ok()
}

impl Sandbox {
    /// A sandbox of an ordinary user.
    #[must_use]
    pub fn new() -> Sandbox {
        Sandbox::of(User::ordinary())
    }

    /// A sandbox of root; `None` when the tests do not run as root.
    #[must_use]
    pub fn root() -> Option<Sandbox> {
        (User::current().uid == 0).then(|| Sandbox::of(User { uid: 0, gid: 0 }))
    }

    /// A sandbox of `user`, which must be the one who runs the tests unless that is root.
    ///
    /// # Panics
    /// When the directory cannot be made.
    #[must_use]
    pub fn of(user: User) -> Sandbox {
        processes::adopt_orphans();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("STASIS_TEST_ID={}-{number}", std::process::id());
        let root = tempfile::Builder::new()
            .prefix("stasis-test-")
            .tempdir()
            .expect("a directory for the test")
            .keep();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("opening it to all");
        let mut sandbox = Sandbox {
            root,
            mark,
            user,
            started: Instant::now(),
            log: RefCell::default(),
            env: Vec::new(),
            run_options: ["--keep", "99"].map(String::from).into(),
            restart_options: ["--keep", "99"].map(String::from).into(),
            fronts: RefCell::default(),
        };
        if let Some(tracking) = tracking() {
            let options = ["--incremental".into(), format!("--tracking={tracking}")];
            sandbox.run_options.extend(options.clone());
            sandbox.restart_options.extend(options);
            (sandbox.env).push(("STASIS_TEST_FAULT".into(), "pretend@doubt".into()));
        }
        for name in ["home", "run", "tmp", "images", "work"] {
            let dir = sandbox.root.join(name);
            fs::create_dir(&dir).expect("a directory in the sandbox");
            sandbox.give(&dir);
        }
        fs::set_permissions(sandbox.root.join("run"), fs::Permissions::from_mode(0o700))
            .expect("closing the runtime directory");
        sandbox
    }

    /// Makes the sandbox's user the owner of `path`.
    ///
    /// # Panics
    /// When the tests may not.
    pub fn give(&self, path: &Path) {
        if User::current().uid == 0 {
            chown(path, Some(self.user.uid), Some(self.user.gid)).expect("chown");
        }
    }

    /// Whom its programs run as.
    #[must_use]
    pub fn user(&self) -> User {
        self.user
    }

    /// The directory that the programs start in.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// The directory of the images.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// `XDG_RUNTIME_DIR` of its processes.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The whole.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Writes a file, belonging to the sandbox's user, into [`Sandbox::work`].
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.work().join(name);
        fs::write(&path, contents).expect("writing a file of the test");
        self.give(&path);
        path
    }

    /// The contents of a file in [`Sandbox::work`]; empty when there is none.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.work().join(name)).unwrap_or_default()
    }

    /// Remembers something that is shown when the test fails.
    pub fn note(&self, text: impl AsRef<str>) {
        let line = format!(
            "[{:8.3}] {}",
            self.started.elapsed().as_secs_f64(),
            text.as_ref()
        );
        self.log.borrow_mut().push(line);
    }

    /// A command with the sandbox's user, directory and environment, and nothing on its standard input.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let binary = build::stasis_binary();
        let own = binary.parent().expect("the binary lies in a directory");
        let (name, value) = self.mark.split_once('=').expect("NAME=VALUE");
        let mut command = match closing_inherited() {
            None => Command::new(program),
            Some(closing) => {
                let mut shell = Command::new("bash");
                shell.args(["-c", closing, "bash"]).arg(program);
                shell
            }
        };
        command
            .env_clear()
            .env("PATH", format!("{}:{PROGRAM_PATH}", own.display()))
            .env("LANG", "C.UTF-8")
            .env("HOME", self.root.join("home"))
            .env("TMPDIR", self.root.join("tmp"))
            .env("XDG_RUNTIME_DIR", self.runtime())
            .env("STASIS_RUNTIME_DIR", self.runtime().join("stasis"))
            .env("STASIS_DIR", self.images())
            .env("RUST_BACKTRACE", "1")
            .env(name, value)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.work())
            .stdin(Stdio::null());
        for passed in ["STASIS_LOG", "RUST_LOG", "STASIS_TEST_FAULT"] {
            if let Some(value) = std::env::var_os(passed) {
                command.env(passed, value);
            }
        }
        if User::current().uid == 0 && self.user.uid != 0 {
            command.uid(self.user.uid).gid(self.user.gid);
        }
        command
    }

    /// `stasis` with arguments.
    #[must_use]
    pub fn stasis_command<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = self.command(build::stasis_binary());
        command.args(arguments);
        command
    }

    /// Runs `stasis` with arguments to its end.
    pub fn stasis<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Finished {
        self.start(self.stasis_command(arguments)).finish()
    }

    /// Starts a command and collects its output.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&self, command: Command) -> Running<'_> {
        let running = Running::start(self, command);
        self.fronts.borrow_mut().push(running.pid());
        running
    }

    /// Runs a program without Stasis to its end.
    pub fn plain<S: AsRef<OsStr>>(&self, argv: &[S]) -> Finished {
        let (program, arguments) = argv.split_first().expect("a command");
        let mut command = self.command(program);
        command.args(arguments);
        self.start(command).finish()
    }

    /// `stasis run -- ARGV`, as the job `job`, with its images in [`Sandbox::images`].
    pub fn run<S: AsRef<OsStr>>(&self, argv: &[S]) -> Running<'_> {
        self.start(self.run_command(argv))
    }

    /// What [`Sandbox::run`] starts.
    #[must_use]
    pub fn run_command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = self.stasis_command(["run", "-n", "job", "-d"]);
        command.arg(self.images());
        command.args(&self.run_options).arg("--").args(argv);
        command
    }

    /// `stasis restart IMAGE`.
    pub fn restart(&self, image: &Path) -> Running<'_> {
        self.start(self.restart_command(image))
    }

    /// What [`Sandbox::restart`] starts.
    #[must_use]
    pub fn restart_command(&self, image: &Path) -> Command {
        let mut command = self.stasis_command(["restart"]);
        command.args(&self.restart_options).arg(image);
        command
    }

    /// The complete images, oldest first.
    #[must_use]
    pub fn all_images(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> = self
            .files_in(&self.images())
            .into_iter()
            .filter(|path| path.to_string_lossy().ends_with(IMAGE_SUFFIX))
            .collect();
        found.sort();
        found
    }

    /// The files directly in `dir`, sorted.
    #[must_use]
    pub fn files_in(&self, dir: &Path) -> Vec<PathBuf> {
        let mut found: Vec<_> = fs::read_dir(dir)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        found.sort();
        found
    }

    /// The newest complete image.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn newest_image(&self) -> PathBuf {
        self.all_images().pop().expect("there is an image")
    }

    /// What belongs to this test and lives.
    #[must_use]
    pub fn living(&self) -> Vec<i32> {
        let mut found = processes::belonging(&self.mark, &self.root);
        for &front in self.fronts.borrow().iter() {
            // A number whose process was reaped may belong to a stranger by now.
            if processes::process_state(front)
                .is_some_and(|state| state.parent == std::process::id().cast_signed())
            {
                found.extend(
                    processes::descendants(front)
                        .into_iter()
                        .filter(|&pid| processes::alive(pid)),
                );
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills a process that [`Sandbox::living`] gave.
    fn kill(&self, pid: i32) {
        processes::kill_if(pid, |pid| {
            processes::belongs(pid, &self.mark, &self.root) || self.below_a_front(pid)
        });
    }

    fn below_a_front(&self, mut pid: i32) -> bool {
        let fronts = self.fronts.borrow();
        while let Some(state) = processes::process_state(pid) {
            if fronts.contains(&state.parent) {
                return true;
            }
            pid = state.parent;
        }
        false
    }

    /// Waits until no process of this test is left.
    ///
    /// # Panics
    /// When one stays.
    pub fn wait_empty(&self) {
        wait_until("no process is left behind", || {
            self.living().is_empty().then_some(())
        });
    }

    /// Kills everything that belongs to this test with SIGKILL, and sees to it that it is gone.
    ///
    /// # Panics
    /// When something does not die.
    pub fn kill_all(&self) {
        self.note("killing everything");
        wait_until("every process of the test is gone", || {
            let living = self.living();
            for &pid in &living {
                self.kill(pid);
            }
            living.is_empty().then_some(())
        });
        self.free_ids();
    }

    /// Takes the status of orphans that have ended, whose numbers are in use until then. Those whose parent is just about to end
    /// are not there yet.
    pub fn free_ids(&self) {
        processes::reap_orphans();
    }
}

/// Whoever started the tests may have left descriptors open in them, such as the ends of its own pipes: the programs
/// under test must not have them. A shell line that closes them and becomes its arguments; `None` where there are none.
fn closing_inherited() -> Option<&'static str> {
    const CLOSE_ON_EXEC: u32 = 0o2_000_000;
    static LINE: OnceLock<Option<String>> = OnceLock::new();
    LINE.get_or_init(|| {
        let open = fs::read_dir("/proc/self/fdinfo").ok()?;
        let inherited: Vec<u32> = open
            .flatten()
            .filter_map(|entry| {
                let number = entry.file_name().to_str()?.parse().ok()?;
                let text = fs::read_to_string(entry.path()).ok()?;
                let flags = text.lines().find_map(|line| line.strip_prefix("flags:"))?;
                let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
                (number > 2 && flags & CLOSE_ON_EXEC == 0).then_some(number)
            })
            .collect();
        let closing: String = inherited
            .iter()
            .map(|fd| format!("exec {fd}>&-; "))
            .collect();
        (!closing.is_empty()).then(|| closing + "exec \"$@\"")
    })
    .as_deref()
}

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox::new()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            for &pid in &self.living() {
                let state = processes::process_state(pid);
                self.note(format!("alive at the end: {pid} {state:?}"));
            }
        }
        for _ in 0..2000 {
            let living = self.living();
            if living.is_empty() {
                break;
            }
            for pid in living {
                self.kill(pid);
            }
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
        processes::reap_orphans();
        if failed {
            eprintln!("---- what happened in {} ----", self.root.display());
            for line in self.log.borrow().iter() {
                eprintln!("{line}");
            }
            if std::env::var_os("STASIS_TEST_KEEP").is_some() {
                return;
            }
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}
