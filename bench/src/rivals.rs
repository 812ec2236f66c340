//! Other checkpointers, where they are on PATH: the same programs, their default and their best settings.

use crate::stasis::Stasis;
use crate::table::{self, mebibytes, milliseconds, or_dash};
use crate::{wait, workload_argv};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program saved and restarted by another tool; times in milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Rival {
    pub tool: &'static str,
    pub program: String,
    /// Why there are no numbers.
    pub failure: Option<String>,
    pub gap: Option<f64>,
    pub total: Option<f64>,
    pub image_bytes: u64,
    pub restart: Option<f64>,
}

/// What a tool did.
struct Done {
    gap: Option<Duration>,
    total: Duration,
    image_bytes: u64,
    restart: Duration,
}

type Tool = fn(&Place<'_>, &[OsString]) -> Result<Done, String>;

/// Where a tool works.
struct Place<'a> {
    /// The programs report here.
    reports: &'a Path,
    /// Empty: for images and logs.
    images: PathBuf,
}

/// Measures those that are there.
pub fn measure(stasis: &Stasis, bytes: usize, quick: bool) -> Result<Vec<Rival>, String> {
    let own = |arguments: &[&str]| workload_argv(&stasis.directory, arguments);
    let bytes = bytes.to_string();
    let memory = |pages| {
        own(&[
            "memory",
            "--bytes",
            &bytes,
            "--content",
            "random",
            "--pages",
            pages,
        ])
    };
    let mut programs = vec![
        ("one thread, compiled", own(&["tick"])?),
        ("random, 4 KiB pages", memory("small")?),
    ];
    if !quick {
        programs.push(("random, huge pages", memory("huge")?));
        programs.push(("500 threads, asleep", own(&["threads", "--count", "500"])?));
        programs.push(("100 processes", own(&["processes", "--count", "100"])?));
    }
    let tools: [(&str, &str, Tool); 3] = [
        ("DMTCP (default: gzip)", "dmtcp_launch", |place, argv| {
            dmtcp(place, argv, &[])
        }),
        ("DMTCP (--no-gzip)", "dmtcp_launch", |place, argv| {
            dmtcp(place, argv, &["--no-gzip"])
        }),
        ("CRIU (as root)", "criu", criu),
    ];
    let mut all = Vec::new();
    for (tool, command, run) in tools {
        if !on_path(command) {
            let failure = Some("not installed".to_owned());
            all.push(Rival {
                tool,
                program: "-".into(),
                failure,
                ..Rival::default()
            });
            continue;
        }
        for (program, argv) in &programs {
            all.push(one(stasis, tool, program, argv, run)?);
        }
    }
    Ok(all)
}

fn one(
    stasis: &Stasis,
    tool: &'static str,
    program: &str,
    argv: &[OsString],
    run: Tool,
) -> Result<Rival, String> {
    let images = tempfile::Builder::new()
        .prefix("others-")
        .tempdir_in(&stasis.directory);
    let images = images.map_err(|error| error.to_string())?;
    let place = Place {
        reports: &stasis.directory,
        images: images.path().to_owned(),
    };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let program = program.to_owned();
    Ok(match run(&place, argv) {
        Ok(done) => Rival {
            tool,
            program,
            failure: None,
            gap: done.gap.map(ms),
            total: Some(ms(done.total)),
            image_bytes: done.image_bytes,
            restart: Some(ms(done.restart)),
        },
        Err(failure) => Rival {
            tool,
            program,
            failure: Some(failure),
            ..Rival::default()
        },
    })
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

impl Place<'_> {
    fn command(&self, program: &str) -> Result<Command, String> {
        let log = File::options().create(true).append(true).open(self.log());
        let mut command = Command::new(program);
        command
            .current_dir(&self.images)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.map_err(|error| error.to_string())?);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.images.join("log")
    }

    /// Runs it to its end.
    fn run(&self, command: &mut Command) -> Result<(), String> {
        let name = command.get_program().to_string_lossy().into_owned();
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                let words = log
                    .lines()
                    .rev()
                    .find(|line| line.contains("rror"))
                    .unwrap_or("no reason given");
                Err(format!("{name} failed ({status}): {words}"))
            }
            Err(error) => Err(format!("{name}: {error}")),
        }
    }

    fn gap(&self) -> Result<Option<Duration>, String> {
        wait::ask(self.reports).map_err(|error| error.to_string())?;
        let report = wait::report(self.reports, None)?;
        Ok(report
            .split_ascii_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .map(Duration::from_micros))
    }

    fn start(&self, command: &mut Command) -> Result<Child, String> {
        wait::ask(self.reports).map_err(|error| error.to_string())?;
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        wait::report(self.reports, Some(&mut child)).map_err(|error| format!("{name}: {error}"))?;
        Ok(child)
    }

    fn image_bytes(&self, extension: &str) -> u64 {
        let entries = std::fs::read_dir(&self.images)
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter(|entry| {
                entry
                    .path()
                    .extension()
                    .is_some_and(|found| found == extension)
            })
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .sum()
    }
}

fn dmtcp(place: &Place<'_>, argv: &[OsString], options: &[&str]) -> Result<Done, String> {
    const PORT: &str = "7917";
    let in_images = |command: &mut Command| {
        command
            .args(["--coord-port", PORT, "--ckptdir"])
            .arg(&place.images);
    };
    let tell = |what: &str| {
        place.run(
            place
                .command("dmtcp_command")?
                .args(["--coord-port", PORT, what]),
        )
    };
    let mut command = place.command("dmtcp_launch")?;
    command.arg("--new-coordinator");
    in_images(&mut command);
    let mut child = place.start(command.args(options).args(argv))?;
    let saved = (|| {
        place.gap()?;
        let began = Instant::now();
        tell("--bcheckpoint")?;
        let total = began.elapsed();
        Ok::<_, String>((total, place.gap()?))
    })();
    let _ = tell("--quit");
    let _ = child.wait();
    let (total, gap) = saved?;
    let images = std::fs::read_dir(&place.images).map_err(|error| error.to_string())?;
    let images: Vec<PathBuf> = images
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == "dmtcp"))
        .collect();
    let mut command = place.command("dmtcp_restart")?;
    command.arg("--new-coordinator");
    in_images(&mut command);
    let began = Instant::now();
    let mut child = place.start(command.args(&images))?;
    let restart = began.elapsed();
    let _ = tell("--quit");
    let _ = child.wait();
    Ok(Done {
        gap,
        total,
        image_bytes: place.image_bytes("dmtcp"),
        restart,
    })
}

fn criu(place: &Place<'_>, argv: &[OsString]) -> Result<Done, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root".into());
    }
    let mut command = place.command("setsid")?;
    command.args(argv).stderr(Stdio::null());
    let mut child = place.start(&mut command)?;
    let pid = child.id().to_string();
    let verb = |verb: &str| -> Result<Command, String> {
        let mut command = place.command("criu")?;
        command
            .args([verb, "--shell-job", "-v1", "-D"])
            .arg(&place.images);
        Ok(command)
    };
    let saved = (|| {
        place.gap()?;
        let began = Instant::now();
        place.run(verb("dump")?.args(["--leave-running", "-t", &pid]))?;
        let total = began.elapsed();
        Ok::<_, String>((total, place.gap()?))
    })();
    let end = |pid: &str| {
        // With its children: they are in its session.
        let _ = Command::new("pkill").args(["-KILL", "-s", pid]).status();
    };
    end(&pid);
    let _ = child.wait();
    let (total, gap) = saved?;
    wait::ask(place.reports).map_err(|error| error.to_string())?;
    let began = Instant::now();
    place.run(verb("restore")?.arg("--restore-detached"))?;
    wait::report(place.reports, None)?;
    let restart = began.elapsed();
    end(&pid);
    Ok(Done {
        gap,
        total,
        image_bytes: place.image_bytes("img"),
        restart,
    })
}

/// Prints them.
pub fn print(all: &[Rival]) {
    let time = |ms: f64| milliseconds(Duration::from_secs_f64(ms / 1e3));
    let rows: Vec<_> = all
        .iter()
        .map(|one| {
            let mut cells = vec![one.tool.to_owned(), one.program.clone()];
            match &one.failure {
                Some(failure) => {
                    cells.extend([failure.clone(), "-".into(), "-".into(), "-".into()])
                }
                None => cells.extend([
                    or_dash(one.gap, time),
                    or_dash(one.total, time),
                    mebibytes(one.image_bytes),
                    or_dash(one.restart, time),
                ]),
            }
            cells
        })
        .collect();
    let head = [
        "tool",
        "program",
        "gap seen by it (ms)",
        "checkpoint (ms)",
        "image (MiB)",
        "restart (ms)",
    ];
    table::print("Others", &head, &rows);
}
