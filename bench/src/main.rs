//! Measures Stasis beside the machine's own limits. See docs/benchmarks.md.

mod checkpoints;
mod descriptors;
mod increments;
mod limits;
mod overhead;
mod rivals;
mod stasis;
mod table;
mod wait;
mod workload;

use checkpoints::{Case, Measured};
use clap::{Parser, Subcommand};
use serde::Serialize;
use stasis::Stasis;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use table::{mebibytes, milliseconds};
use workload::Workload;

/// Measures Stasis beside the machine's own limits, as ratios within one run
#[derive(Debug, Parser)]
#[command(name = "stasis-bench")]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Under one minute: less memory, fewer programs, one round of most
    #[arg(long)]
    quick: bool,
    /// Memory of the programs that have much of it, in MiB; 1024, or 128 with --quick
    #[arg(long, value_name = "MIB")]
    size: Option<usize>,
    /// The stasis program; the one beside this program when not given
    #[arg(long, value_name = "PATH")]
    stasis: Option<PathBuf>,
    /// Where to write images: the file system that is measured
    #[arg(long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Only programs whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Plot into FILE (SVG) how fast a program writes its memory before, during and after a checkpoint, and measure nothing else
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print everything as JSON instead
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// One of the programs that are measured
    #[command(hide = true)]
    Workload(Workload),
}

/// Everything of one run.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    overhead: Vec<overhead::Overhead>,
    memory: Vec<Measured>,
    small: Vec<Measured>,
    descriptors: Vec<Measured>,
    increments: Vec<increments::Increments>,
    others: Vec<rivals::Rival>,
}

#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    processors: usize,
    huge_pages: String,
    privileged: bool,
    /// Bytes that the following three were measured with.
    bytes: u64,
    copy_ms: f64,
    write_ms: f64,
    read_ms: f64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.verb {
        Some(Verb::Workload(workload)) => {
            workload::run(workload).map_err(|error| error.to_string())
        }
        None => bench(&cli),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stasis-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Checkpoints after the first of a program whose memory changes.
const INCREMENTS: usize = 10;

/// The command line of a workload.
fn workload_argv(directory: &Path, arguments: &[&str]) -> Result<Vec<OsString>, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut argv = vec![own.into_os_string(), "workload".into(), directory.into()];
    argv.extend(arguments.iter().map(OsString::from));
    Ok(argv)
}

fn bench(cli: &Cli) -> Result<(), String> {
    // A descriptor that this program was started with would be one of the programs that are saved.
    let _ = stasis_sys::descriptor::close_from(3);
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let program = cli
        .stasis
        .clone()
        .unwrap_or_else(|| own.with_file_name("stasis"));
    let program = std::fs::canonicalize(&program).map_err(|error| {
        format!(
            "{}: {error} (run cargo build --release first)",
            program.display()
        )
    })?;
    let place = tempfile::Builder::new()
        .prefix("stasis-bench-")
        .tempdir_in(&cli.directory);
    let place = place.map_err(|error| format!("{}: {error}", cli.directory.display()))?;
    let directory = std::fs::canonicalize(place.path()).map_err(|error| error.to_string())?;
    let name = format!("bench-{}", std::process::id());
    let stasis = Stasis {
        program,
        directory,
        name,
        holders: Default::default(),
    };
    let bytes = cli.size.unwrap_or(if cli.quick { 128 } else { 1024 }) << 20;
    let wanted = |name: &str| {
        cli.only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };
    let tell = |what: &str| {
        if !cli.json {
            eprintln!("measuring: {what}");
        }
    };
    if let Some(file) = &cli.plot {
        return increments::plot(&stasis, bytes, file);
    }
    tell("the machine");
    let machine = machine(&stasis, bytes as u64)?;
    let rounds = if cli.quick { 1 } else { 5 };
    let overhead = if wanted("overhead") {
        tell("overhead");
        overhead::measure(&stasis, rounds)?
    } else {
        Vec::new()
    };
    let run = |cases: Vec<Case>| -> Vec<Measured> {
        let cases = cases.into_iter().filter(|case| wanted(&case.name));
        cases
            .map(|case| {
                tell(&case.name);
                checkpoints::measure(&stasis, &case)
            })
            .collect()
    };
    let report = Report {
        machine,
        overhead,
        memory: run(memory_cases(&stasis, bytes, cli.quick)?),
        small: run(small_cases(&stasis, cli.quick)?),
        descriptors: run(descriptors::cases(&stasis, cli.quick)?),
        increments: if wanted("increments") {
            tell("increments");
            increments::measure(&stasis, bytes, INCREMENTS)?
        } else {
            Vec::new()
        },
        others: if wanted("others") {
            tell("others");
            rivals::measure(&stasis, bytes, cli.quick)?
        } else {
            Vec::new()
        },
    };
    if cli.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        println!("{text}");
    } else {
        print(&report, bytes);
    }
    Ok(())
}

fn machine(stasis: &Stasis, bytes: u64) -> Result<Machine, String> {
    let huge =
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let file = stasis.directory.join("read");
    let timed = || -> std::io::Result<_> {
        let write = limits::write(&stasis.directory, bytes)?;
        let output = std::fs::File::create(&file)?;
        output.set_len(bytes)?;
        drop(output);
        Ok((write, limits::read(&file)?))
    };
    let (write, _) = timed().map_err(|error| error.to_string())?;
    // The first reading has made the pages, the second finds them.
    let read = limits::read(&file).map_err(|error| error.to_string())?;
    let _ = std::fs::remove_file(&file);
    Ok(Machine {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        processors: std::thread::available_parallelism().map_or(1, Into::into),
        huge_pages: huge.trim().to_owned(),
        privileged: rustix::process::geteuid().is_root(),
        bytes,
        copy_ms: ms(limits::copy(bytes as usize)),
        write_ms: ms(write),
        read_ms: ms(read),
    })
}

fn memory_cases(stasis: &Stasis, bytes: usize, quick: bool) -> Result<Vec<Case>, String> {
    const ALL: [(&str, &str, Option<&str>); 10] = [
        ("random", "small", Some("none")),
        ("random", "small", None),
        ("random", "huge", Some("none")),
        ("random", "huge", None),
        ("text", "small", None),
        ("text", "huge", Some("none")),
        ("text", "huge", None),
        ("text", "huge", Some("zstd")),
        ("zero", "small", None),
        ("zero", "huge", None),
    ];
    const QUICK: [(&str, &str, Option<&str>); 4] = [
        ("random", "small", Some("none")),
        ("random", "huge", Some("none")),
        ("text", "huge", None),
        ("zero", "small", None),
    ];
    let all: &[_] = if quick { &QUICK } else { &ALL };
    all.iter()
        .map(|(content, pages, compression)| {
            let of = if *pages == "small" {
                "4 KiB pages"
            } else {
                "huge pages"
            };
            let bytes = bytes.to_string();
            let arguments = [
                "memory",
                "--bytes",
                &bytes,
                "--content",
                content,
                "--pages",
                pages,
            ];
            Ok(Case {
                name: format!("{content}, {of}"),
                compression: *compression,
                argv: workload_argv(&stasis.directory, &arguments)?,
                rounds: if quick { 1 } else { 3 },
                large: true,
            })
        })
        .collect()
}

fn small_cases(stasis: &Stasis, quick: bool) -> Result<Vec<Case>, String> {
    const SHELL: &str = "while :; do [ -e \"$0\" ] || : > \"$0\"; done";
    const PYTHON: &str = "import os, sys, time\n\
        while True:\n    if not os.path.exists(sys.argv[1]):\n        open(sys.argv[1], 'w').close()\n    time.sleep(0.0002)";
    let report = stasis.directory.join(workload::REPORT);
    let case = |name: &str, argv: Vec<OsString>| Case {
        name: name.to_owned(),
        compression: None,
        argv,
        rounds: if quick { 3 } else { 9 },
        large: false,
    };
    let own = |arguments: &[&str]| workload_argv(&stasis.directory, arguments);
    let mut cases = vec![
        case("one thread, compiled", own(&["tick"])?),
        case(
            "sh",
            vec![
                "sh".into(),
                "-c".into(),
                SHELL.into(),
                report.clone().into(),
            ],
        ),
    ];
    for python in ["/usr/bin/python3", "/usr/local/bin/python3"] {
        if Path::new(python).exists() {
            cases.push(case(
                "python3",
                vec![
                    python.into(),
                    "-c".into(),
                    PYTHON.into(),
                    report.clone().into(),
                ],
            ));
            break;
        }
    }
    cases.push(case(
        "500 threads, asleep",
        own(&["threads", "--count", "500"])?,
    ));
    cases.push(case(
        "500 threads, at work",
        own(&["threads", "--count", "500", "--busy"])?,
    ));
    cases.push(case(
        "100 processes",
        own(&["processes", "--count", "100"])?,
    ));
    Ok(cases)
}

fn print(report: &Report, bytes: usize) {
    let machine = &report.machine;
    println!(
        "Linux {}, {} processors, transparent huge pages {}, {}",
        machine.kernel,
        machine.processors,
        machine.huge_pages,
        if machine.privileged {
            "as root"
        } else {
            "as an ordinary user"
        }
    );
    let limit = |what: &str, ms: f64| {
        let time = std::time::Duration::from_secs_f64(ms / 1e3);
        vec![
            what.to_owned(),
            milliseconds(time),
            format!(
                "{:.0}",
                machine.bytes as f64 / f64::from(1 << 20) / (ms / 1e3)
            ),
        ]
    };
    let rows = [
        limit("copying in memory, one thread", machine.copy_ms),
        limit("write + fsync", machine.write_ms),
        limit("read from the page cache", machine.read_ms),
    ];
    let size = mebibytes(bytes as u64);
    table::print(
        &format!("The machine's limits, {size} MiB"),
        &["what", "ms", "MiB/s"],
        &rows,
    );
    if !report.overhead.is_empty() {
        overhead::print(&report.overhead);
    }
    if !report.memory.is_empty() {
        checkpoints::print(&format!("Memory, {size} MiB"), &report.memory);
    }
    if !report.small.is_empty() {
        checkpoints::print("Small programs, threads, processes", &report.small);
    }
    if !report.descriptors.is_empty() {
        descriptors::print(&report.descriptors);
    }
    if !report.increments.is_empty() {
        increments::print(&size, INCREMENTS, &report.increments);
    }
    if !report.others.is_empty() {
        rivals::print(&report.others);
    }
}
