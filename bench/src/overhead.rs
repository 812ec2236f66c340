//! What it costs a program to run under Stasis, between checkpoints.

use crate::stasis::Stasis;
use crate::table::{self, median, milliseconds};
use crate::wait;
use serde::Serialize;
use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Duration;

/// One program, run in turns with and without Stasis.
#[derive(Debug, Serialize)]
pub struct Overhead {
    pub program: &'static str,
    /// Median, in seconds.
    pub without: f64,
    /// Median, in seconds.
    pub under: f64,
    /// Ratio of the medians.
    pub ratio: f64,
    /// Ratio of the shortest times, which other programs on the machine disturb least.
    pub ratio_of_shortest: f64,
}

const PROGRAMS: [(&str, &str); 4] = [
    ("cpu", "CPU loop"),
    ("malloc", "malloc in 4 threads"),
    ("calls", "10^6 system calls"),
    ("exec", "500 x fork and exec"),
];

/// Measures all programs, `rounds` times each.
pub fn measure(stasis: &Stasis, rounds: usize) -> Result<Vec<Overhead>, String> {
    PROGRAMS
        .iter()
        .map(|(verb, program)| one(stasis, verb, program, rounds))
        .collect()
}

fn one(
    stasis: &Stasis,
    verb: &str,
    program: &'static str,
    rounds: usize,
) -> Result<Overhead, String> {
    let argv = crate::workload_argv(&stasis.directory, &[verb])?;
    let (mut without, mut under) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        wait::ask(&stasis.directory).map_err(|error| error.to_string())?;
        plain(&argv)?;
        without.push(reported(stasis)?);
        wait::ask(&stasis.directory).map_err(|error| error.to_string())?;
        let mut job = stasis.launch(&[], &argv)?;
        job.holder.wait().map_err(|error| error.to_string())?;
        under.push(reported(stasis)?);
    }
    let shortest = |times: &[Duration]| {
        times
            .iter()
            .min()
            .copied()
            .unwrap_or_default()
            .as_secs_f64()
    };
    let ratio_of_shortest = shortest(&under) / shortest(&without);
    let (without, under) = (median(without).as_secs_f64(), median(under).as_secs_f64());
    Ok(Overhead {
        program,
        without,
        under,
        ratio: under / without,
        ratio_of_shortest,
    })
}

fn plain(argv: &[OsString]) -> Result<(), String> {
    let mut command = Command::new(&argv[0]);
    let status = command
        .args(&argv[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the program alone failed: {status}")),
        Err(error) => Err(format!("starting the program alone: {error}")),
    }
}

fn reported(stasis: &Stasis) -> Result<Duration, String> {
    let text = std::fs::read_to_string(stasis.directory.join(crate::workload::REPORT));
    let text = text.map_err(|error| {
        format!(
            "the program left no time ({error}); {}",
            stasis.last_words()
        )
    })?;
    text.parse()
        .map(Duration::from_nanos)
        .map_err(|_| format!("the program reported {text:?}"))
}

/// Prints them.
pub fn print(all: &[Overhead]) {
    let rows: Vec<_> = all
        .iter()
        .map(|one| {
            let time = |seconds: f64| milliseconds(Duration::from_secs_f64(seconds));
            vec![
                one.program.to_owned(),
                time(one.without),
                time(one.under),
                format!("{:.3}", one.ratio),
                format!("{:.3}", one.ratio_of_shortest),
            ]
        })
        .collect();
    let head = [
        "program",
        "alone (ms)",
        "under stasis run (ms)",
        "ratio",
        "ratio of shortest",
    ];
    table::print("Run-time overhead between checkpoints", &head, &rows);
}
