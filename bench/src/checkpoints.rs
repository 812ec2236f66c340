//! Checkpoints and restarts, beside what the machine itself can do.

use crate::limits;
use crate::stasis::{Job, Saved, Stasis};
use crate::table::{self, mebibytes, median, milliseconds, or_dash};
use crate::workload::SUM;
use serde::Serialize;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// A program to be saved and restarted.
pub struct Case {
    /// What it is.
    pub name: String,
    /// `none`, `lz4` or `zstd`; the default where none is named.
    pub compression: Option<&'static str>,
    /// The program.
    pub argv: Vec<OsString>,
    /// Checkpoints and restarts.
    pub rounds: usize,
    /// Its image is large enough to be compared with plain writing and reading.
    pub large: bool,
}

/// What was measured; times are medians in milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    pub name: String,
    pub compression: String,
    /// Why there are no numbers.
    pub failure: Option<String>,
    pub pause: f64,
    /// The longest gap that the program saw, the checkpoint within it.
    pub gap: Option<f64>,
    pub total: f64,
    pub image_bytes: u64,
    /// Writing as many bytes as the image has with fsync.
    pub plain_write: Option<f64>,
    /// Until the program ran, the image in the page cache.
    pub restart: f64,
    /// Reading the image from the page cache.
    pub plain_read: Option<f64>,
    /// Until the program ran, the image on the disk.
    pub restart_cold: Option<f64>,
    /// Reading the image from the disk.
    pub plain_read_cold: Option<f64>,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn middle(values: &[f64]) -> f64 {
    ms(median(
        values
            .iter()
            .map(|ms| Duration::from_secs_f64(ms / 1e3))
            .collect(),
    ))
}

/// Measures one program. A failure is part of the result.
pub fn measure(stasis: &Stasis, case: &Case) -> Measured {
    let compression = case.compression.unwrap_or("default").to_owned();
    let name = case.name.clone();
    match attempt(stasis, case) {
        Ok(measured) => Measured {
            name,
            compression,
            ..measured
        },
        Err(failure) => {
            let failure = Some(format!("{failure}; {}", stasis.last_words()));
            Measured {
                name,
                compression,
                failure,
                ..Measured::default()
            }
        }
    }
}

fn attempt(stasis: &Stasis, case: &Case) -> Result<Measured, String> {
    let io = |error: std::io::Error| error.to_string();
    let options: Vec<&str> = case
        .compression
        .iter()
        .flat_map(|how| ["--compress", how])
        .collect();
    let directory = &stasis.directory;
    let job = stasis.start(&options, &case.argv)?;
    let sum = if case.large {
        memory_sum(&job, directory)?
    } else {
        None
    };
    let mut all: Vec<Saved> = Vec::new();
    let (mut gaps, mut plain_writes) = (Vec::new(), Vec::new());
    for _ in 0..case.rounds {
        job.ask()?;
        all.push(job.checkpoint()?);
        gaps.extend(job.ask()?.0.map(ms));
        if let (true, Some(saved)) = (case.large, all.last()) {
            plain_writes.push(limits::write(directory, saved.image_bytes).map_err(io)?);
        }
    }
    drop(job);
    let Some(last) = all.last() else {
        return Err("no rounds".into());
    };
    let restart = |cold: bool| -> Result<Duration, String> {
        if cold {
            limits::forget(&last.path).map_err(io)?;
        }
        let (job, took) = stasis.restart(&last.path)?;
        if sum.is_some() && memory_sum(&job, directory)? != sum {
            return Err("its memory is not what it was".into());
        }
        Ok(took)
    };
    let mut measured = Measured::default();
    let mut restarts = Vec::new();
    let (mut plain, mut restarts_cold, mut plain_cold) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..case.rounds {
        if case.large {
            limits::forget(&last.path).map_err(io)?;
            plain_cold.push(limits::read(&last.path).map_err(io)?);
            restarts_cold.push(restart(true)?);
            plain.push(limits::read(&last.path).map_err(io)?);
        }
        restarts.push(restart(false)?);
    }
    if case.large {
        measured.plain_write = Some(ms(median(plain_writes)));
        measured.plain_read = Some(ms(median(plain)));
        measured.plain_read_cold = Some(ms(median(plain_cold)));
        measured.restart_cold = Some(ms(median(restarts_cold)));
    }
    let image_bytes = last.image_bytes;
    for saved in &all {
        // Those that were not kept are gone already.
        let _ = std::fs::remove_file(&saved.path);
    }
    Ok(Measured {
        pause: middle(&all.iter().map(|saved| saved.pause_ms).collect::<Vec<_>>()),
        gap: (!gaps.is_empty()).then(|| middle(&gaps)),
        total: middle(&all.iter().map(|saved| saved.total_ms).collect::<Vec<_>>()),
        image_bytes,
        restart: ms(median(restarts)),
        ..measured
    })
}

fn memory_sum(job: &Job<'_>, directory: &Path) -> Result<Option<String>, String> {
    let flag = directory.join(SUM);
    std::fs::write(&flag, "").map_err(|error| error.to_string())?;
    let (_, sum) = job.ask()?;
    std::fs::remove_file(&flag).map_err(|error| error.to_string())?;
    Ok(sum)
}

/// Prints them.
pub fn print(title: &str, all: &[Measured]) {
    let large = all.iter().any(|one| one.plain_write.is_some());
    let mut head = vec![
        "program",
        "compression",
        "pause (ms)",
        "gap seen by it (ms)",
        "checkpoint (ms)",
        "image (MiB)",
    ];
    if large {
        head.extend([
            "rate / write+fsync",
            "restart (ms)",
            "/ read",
            "restart, cold (ms)",
            "/ cold read",
        ]);
    } else {
        head.push("restart (ms)");
    }
    let rows: Vec<_> = all.iter().map(|one| row(one, large, head.len())).collect();
    table::print(title, &head, &rows);
}

fn row(one: &Measured, large: bool, columns: usize) -> Vec<String> {
    let mut cells = vec![one.name.clone(), one.compression.clone()];
    if let Some(failure) = &one.failure {
        cells.push(failure.clone());
        cells.resize(columns, "-".into());
        return cells;
    }
    let time = |ms: f64| milliseconds(Duration::from_secs_f64(ms / 1e3));
    let ratio = |value: f64| format!("{value:.2}");
    cells.extend([
        time(one.pause),
        or_dash(one.gap, time),
        time(one.total),
        mebibytes(one.image_bytes),
    ]);
    if large {
        cells.extend([
            or_dash(one.plain_write, |plain| ratio(plain / one.total)),
            time(one.restart),
            or_dash(one.plain_read, |plain| ratio(one.restart / plain)),
            or_dash(one.restart_cold, time),
            or_dash(
                one.restart_cold.zip(one.plain_read_cold),
                |(cold, plain)| ratio(cold / plain),
            ),
        ]);
    } else {
        cells.push(time(one.restart));
    }
    cells
}
