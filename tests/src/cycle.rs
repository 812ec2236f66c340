//! The two checks that everything has to pass: a program that verifies itself, and one whose results are compared with
//! those of an undisturbed run.

use crate::random::Random;
use crate::running::{Exit, Finished, Running};
use crate::sandbox::{Sandbox, tracking};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What of a program must be the same in the end.
#[derive(Clone, Copy, Debug)]
pub enum Compare {
    /// What the restarted program prints is the end of what the undisturbed one prints, byte for byte.
    Output,
    /// As [`Compare::Output`], after both went through a function that takes out what differs between any two runs.
    Normalised(fn(&str) -> String),
    /// Only the result files.
    FilesOnly,
}

/// A real program: how it is started, and what it must bring about.
#[derive(Clone, Debug)]
pub struct Program {
    /// Command and arguments.
    pub argv: Vec<String>,
    /// Files put into its working directory: name and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Which of them can be executed.
    pub executables: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Files in its working directory that must be the same in the end.
    pub results: Vec<String>,
    /// What of the output is compared.
    pub compare: Compare,
}

impl Program {
    /// A program with nothing but its arguments.
    #[must_use]
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Program {
        Program {
            argv: argv.into_iter().map(Into::into).collect(),
            files: Vec::new(),
            executables: Vec::new(),
            env: Vec::new(),
            results: Vec::new(),
            compare: Compare::Output,
        }
    }

    /// With a file in its directory.
    #[must_use]
    pub fn file(mut self, name: &str, contents: impl Into<Vec<u8>>) -> Program {
        self.files.push((name.into(), contents.into()));
        self
    }

    /// With a file in its directory that can be executed.
    #[must_use]
    pub fn executable(mut self, name: &str, contents: impl Into<Vec<u8>>) -> Program {
        self.executables.push(name.into());
        self.file(name, contents)
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Program {
        self.env.push((name.into(), value.into()));
        self
    }

    /// With a file whose contents are compared.
    #[must_use]
    pub fn result(mut self, name: &str) -> Program {
        self.results.push(name.into());
        self
    }

    /// With another way to compare the output.
    #[must_use]
    pub fn compare(mut self, compare: Compare) -> Program {
        self.compare = compare;
        self
    }

    fn prepare(&self, sandbox: &mut Sandbox) {
        sandbox.env.extend(self.env.iter().cloned());
        for (name, contents) in &self.files {
            let path = sandbox.write(name, contents);
            if self.executables.contains(name) {
                std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("one's own");
            }
        }
    }

    fn results(&self, sandbox: &Sandbox) -> Vec<Vec<u8>> {
        self.results.iter().map(|name| sandbox.read(name)).collect()
    }

    /// Three checkpoints at random moments, two kills, two restarts, the second from a checkpoint of the first; `make` gives
    /// a fresh sandbox.
    ///
    /// # Panics
    /// When anything differs from an undisturbed run.
    pub fn cycle(&self, make: impl Fn() -> Sandbox) {
        let mut random = Random::new();
        let mut quiet = make();
        self.prepare(&mut quiet);
        let start = Instant::now();
        let reference = quiet.plain(&self.argv);
        let whole = start.elapsed();
        println!("undisturbed: {whole:?}");
        let results = self.results(&quiet);
        for (name, contents) in self.results.iter().zip(&results) {
            assert!(
                !contents.is_empty(),
                "the undisturbed run leaves no {name}: {reference:?}"
            );
        }
        drop(quiet);
        // The machine may have been busier during the undisturbed run than now: a program that is through too early is
        // tried again with earlier moments.
        for attempt in 0.. {
            let mut sandbox = make();
            self.prepare(&mut sandbox);
            let scale = whole / (1 << attempt);
            match self.interrupted(&sandbox, &mut random, scale, &reference) {
                Some(end) => {
                    self.same(&reference, &end);
                    for (name, (now, then)) in self
                        .results
                        .iter()
                        .zip(self.results(&sandbox).iter().zip(&results))
                    {
                        assert!(now == then, "{name} differs: {}", difference(then, now));
                    }
                    return;
                }
                None => assert!(
                    attempt < 4,
                    "the program is always through before its checkpoints"
                ),
            }
        }
    }

    /// [`Program::cycle`] as an ordinary user, and then as root, where the tests run as root.
    ///
    /// # Panics
    /// As that.
    pub fn cycle_as_user_and_root(&self) {
        self.cycle(Sandbox::new);
        if Sandbox::root().is_some() {
            println!("and as root:");
            self.cycle(|| Sandbox::root().expect("asked before"));
        }
    }

    /// The end of the last restart; `None` when the program was through before the last kill.
    fn interrupted(
        &self,
        sandbox: &Sandbox,
        random: &mut Random,
        whole: Duration,
        reference: &Finished,
    ) -> Option<Finished> {
        let mut job = sandbox.run(&self.argv);
        listed_unless_done(&mut job)?;
        let mut images = Vec::new();
        for (low, high) in [(0.03, 0.2), (0.03, 0.1)] {
            std::thread::sleep(random.part(whole, low, high));
            images.push(checkpoint_unless_done(sandbox, &mut job)?);
        }
        std::thread::sleep(random.part(whole, 0.0, 0.1));
        killed(sandbox, job, reference)?;
        let mut job = sandbox.restart(images.last()?);
        listed_unless_done(&mut job)?;
        std::thread::sleep(random.part(whole, 0.0, 0.15));
        images.push(checkpoint_unless_done(sandbox, &mut job)?);
        std::thread::sleep(random.part(whole, 0.0, 0.1));
        killed(sandbox, job, reference)?;
        Some(sandbox.restart(images.last()?).finish())
    }

    fn same(&self, reference: &Finished, end: &Finished) {
        assert_eq!(
            end.exit, reference.exit,
            "another status: {end:?}\nundisturbed: {reference:?}"
        );
        let (then, now) = match self.compare {
            Compare::FilesOnly => return,
            Compare::Output => (reference.stdout.clone(), end.stdout.clone()),
            Compare::Normalised(change) => (change(&reference.stdout), change(&end.stdout)),
        };
        assert!(
            !now.is_empty() && then.ends_with(&now),
            "the output is not the end of the undisturbed run's: {end:?}\nundisturbed: {reference:?}"
        );
    }
}

fn listed_unless_done(job: &mut Running<'_>) -> Option<()> {
    let listed = job.listed_unless_done();
    if !listed {
        println!(
            "the program was through before it was listed: {:?}",
            job.exited()
        );
    }
    listed.then_some(())
}

/// Kills a job; `None` when it was through before, and may have removed what its checkpoint needs.
fn killed(sandbox: &Sandbox, job: Running<'_>, reference: &Finished) -> Option<()> {
    let end = job.kill_all();
    sandbox.note(format!("killed: {end:?}"));
    let last = reference.stdout.lines().last();
    let all_said = last.is_some() && end.stdout.lines().last() == last;
    (end.exit == Exit::Signal(9) && !all_said).then_some(())
}

/// What a checkpoint says when the job ended before it.
const GONE: [&str; 3] = ["no job is named", "has just ended", "has ended"];

fn checkpoint_unless_done(sandbox: &Sandbox, job: &mut Running<'_>) -> Option<PathBuf> {
    let result = job.try_checkpoint();
    if result.success() {
        return Some(sandbox.newest_image());
    }
    assert!(
        GONE.iter().any(|reason| result.stderr.contains(reason)),
        "checkpoint failed: {result:?}\nthe job says: {}",
        job.stderr()
    );
    for _ in 0..500 {
        if job.exited().is_some() {
            println!("the program was through before the checkpoint: {result:?}");
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!(
        "checkpoint failed: {result:?}\nthe job says: {}",
        job.stderr()
    );
}

fn difference(then: &[u8], now: &[u8]) -> String {
    let at = then.iter().zip(now).position(|(a, b)| a != b);
    let at = at.unwrap_or(then.len().min(now.len()));
    let piece = |bytes: &[u8]| {
        let from = at.saturating_sub(60);
        let to = (at + 60).min(bytes.len());
        String::from_utf8_lossy(&bytes[from.min(to)..to]).into_owned()
    };
    format!(
        "at byte {at} of {} (now {}): {:?} became {:?}",
        then.len(),
        now.len(),
        piece(then),
        piece(now)
    )
}

/// As [`verify_after_restart`] for what may also be refused at the checkpoint: then each of `words` must be named, no
/// image be made, and the program go on.
///
/// # Panics
/// When neither holds.
pub fn verify_or_refused<S: AsRef<std::ffi::OsStr>>(sandbox: &Sandbox, argv: &[S], words: &[&str]) {
    let mut job = sandbox.run(argv);
    job.wait_line("ready");
    let result = job.try_checkpoint();
    if result.success() {
        job.kill_all();
        verify_after_restart(sandbox, argv);
        return;
    }
    refused_and_goes_on(sandbox, job, &result, words);
}

/// A checkpoint of `job` was refused, naming each of `words`: there must be no image, and the program go on to its end.
///
/// # Panics
/// When it is not so.
pub fn refused_and_goes_on(sandbox: &Sandbox, job: Running, refused: &Finished, words: &[&str]) {
    assert!(!refused.success(), "it was saved: {refused:?}");
    for word in words {
        assert!(
            refused.stderr.contains(word),
            "{word:?} is not named: {refused:?}"
        );
    }
    assert!(sandbox.all_images().is_empty(), "refused, and yet an image");
    sandbox.write("go", "");
    let end = job.finish();
    assert!(
        end.success() && end.stdout.ends_with("ok\n"),
        "after the refusal: {end:?}"
    );
}

/// Checks a program that says `ready`, waits for a file `go`, verifies its own state, says `ok` and ends with 0: it must
/// do so in the run that goes on after the checkpoint, in a restart, and in a restart of a restart.
///
/// # Panics
/// When it does not.
pub fn verify_after_restart<S: AsRef<std::ffi::OsStr>>(sandbox: &Sandbox, argv: &[S]) {
    verify_after_restart_with(sandbox, argv, |_| {});
}

/// As [`verify_after_restart`], with a look at every image on the way.
///
/// # Panics
/// When the program does not find what it left.
pub fn verify_after_restart_with<S: AsRef<std::ffi::OsStr>>(
    sandbox: &Sandbox,
    argv: &[S],
    look: impl Fn(&std::path::Path),
) {
    let go = sandbox.work().join("go");
    // The program must be all right by itself.
    sandbox.write("go", "");
    let alone = sandbox.plain(argv);
    assert!(
        alone.success() && alone.stdout.ends_with("ok\n"),
        "the program fails without Stasis: {alone:?}"
    );
    let _ = std::fs::remove_file(&go);

    let mut job = sandbox.run(argv);
    job.wait_line("ready");
    job.wait_listed();
    // What a look says beforehand must be so.
    let looked = sandbox.stasis(["check", "job"]);
    assert!(
        looked.success(),
        "it can be saved, and the look says: {looked:?}"
    );
    if tracking().is_some() {
        // Nothing is clean before the third.
        job.checkpoint();
        job.checkpoint();
    }
    let first = job.checkpoint();
    look(&first);
    sandbox.write("go", "");
    let end = job.finish();
    assert!(
        end.success() && end.stdout.ends_with("ok\n"),
        "after the checkpoint: {end:?}"
    );
    let _ = std::fs::remove_file(&go);

    let mut job = sandbox.restart(&first);
    job.wait_listed();
    let second = job.checkpoint();
    look(&second);
    job.kill_all();

    let job = sandbox.restart(&first);
    sandbox.write("go", "");
    let end = job.finish();
    assert!(
        end.success() && end.stdout.ends_with("ok\n"),
        "after the restart: {end:?}"
    );
    let _ = std::fs::remove_file(&go);

    let job = sandbox.restart(&second);
    sandbox.write("go", "");
    let end = job.finish();
    assert!(
        end.success() && end.stdout.ends_with("ok\n"),
        "after the restart of a restart: {end:?}"
    );
}
