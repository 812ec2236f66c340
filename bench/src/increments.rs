//! Incremental checkpoints of programs that change a part of their memory, and what a program notices of a checkpoint.

use crate::stasis::Stasis;
use crate::table::{self, mebibytes, median, milliseconds};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// A program whose memory changes between checkpoints.
#[derive(Debug, Serialize)]
pub struct Increments {
    pub name: String,
    pub failure: Option<String>,
    /// The first checkpoint, in full: milliseconds, bytes.
    pub full_ms: f64,
    pub full_bytes: u64,
    /// Those after it; medians.
    pub pause_ms: f64,
    pub total_ms: f64,
    pub image_bytes: u64,
    /// How many of them were written in full again.
    pub full_again: usize,
    /// The most that all files took together, over the length of a full image.
    pub most_room: f64,
}

const OPTIONS: [&str; 3] = ["--incremental", "--keep", "2"];

pub fn measure(stasis: &Stasis, bytes: usize, rounds: usize) -> Result<Vec<Increments>, String> {
    // Of 16 processes, each has page tables of its own.
    let shared = (bytes / 4).to_string();
    let bytes = bytes.to_string();
    let mut cases: Vec<(String, Vec<String>)> = Vec::new();
    for (percent, spread) in [
        ("0", false),
        ("1", false),
        ("1", true),
        ("10", false),
        ("10", true),
        ("100", false),
    ] {
        let name = match (percent, spread) {
            ("0", _) => "nothing changes".to_owned(),
            (_, true) => format!("{percent} % of the pages change, evenly spread"),
            (_, false) => format!("{percent} % changes, in one place"),
        };
        let mut words: Vec<String> = ["changing", "--bytes", &bytes, "--percent", percent]
            .map(String::from)
            .into();
        words.extend(spread.then(|| "--spread".to_owned()));
        cases.push((name, words));
    }
    let sharing = ["sharing", "--bytes", &shared, "--count", "16"];
    cases.push((
        "16 processes that share a quarter of it, 1 % changes in each".into(),
        sharing.map(String::from).into(),
    ));
    let one = |(name, words): (String, Vec<String>)| {
        let mut measured = Increments {
            name,
            failure: None,
            full_ms: 0.0,
            full_bytes: 0,
            pause_ms: 0.0,
            total_ms: 0.0,
            image_bytes: 0,
            full_again: 0,
            most_room: 0.0,
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        measured.failure = fill(&mut measured, stasis, &words, rounds).err();
        measured
    };
    Ok(cases.into_iter().map(one).collect())
}

fn fill(
    measured: &mut Increments,
    stasis: &Stasis,
    words: &[&str],
    rounds: usize,
) -> Result<(), String> {
    clear(&stasis.directory);
    let argv = crate::workload_argv(&stasis.directory, words)?;
    let job = stasis.start(&OPTIONS, &argv)?;
    let full = job.checkpoint()?;
    (measured.full_ms, measured.full_bytes) = (full.total_ms, full.image_bytes);
    let mut saved = Vec::new();
    for _ in 0..rounds {
        // The program changes its memory before it reports.
        job.ask()?;
        saved.push(job.checkpoint()?);
        let room = room(&stasis.directory) as f64 / full.image_bytes as f64;
        measured.most_room = measured.most_room.max(room);
    }
    let milliseconds = |values: Vec<f64>| {
        let times = values.iter().map(|ms| Duration::from_secs_f64(ms / 1e3));
        median(times.collect()).as_secs_f64() * 1e3
    };
    measured.pause_ms = milliseconds(saved.iter().map(|one| one.pause_ms).collect());
    measured.total_ms = milliseconds(saved.iter().map(|one| one.total_ms).collect());
    measured.full_again = saved.iter().filter(|one| one.bases == 0).count();
    let mut lengths: Vec<u64> = saved.iter().map(|one| one.image_bytes).collect();
    lengths.sort_unstable();
    measured.image_bytes = lengths[lengths.len() / 2];
    drop(job);
    clear(&stasis.directory);
    Ok(())
}

/// The files that belong to checkpoints.
fn images(directory: &Path) -> Vec<std::fs::DirEntry> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_image = |entry: &std::fs::DirEntry| {
        let path = entry.path();
        path.extension()
            .is_some_and(|ending| ending == "ckpt" || ending == "base")
    };
    entries.filter(is_image).collect()
}

fn room(directory: &Path) -> u64 {
    let lengths = images(directory).into_iter();
    lengths
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

fn clear(directory: &Path) {
    for entry in images(directory) {
        let _ = std::fs::remove_file(entry.path());
    }
}

pub fn print(size: &str, rounds: usize, measured: &[Increments]) {
    let ms = |value: f64| milliseconds(Duration::from_secs_f64(value / 1e3));
    let rows: Vec<Vec<String>> = measured
        .iter()
        .map(|one| match &one.failure {
            Some(failure) => vec![one.name.clone(), failure.clone()],
            None => vec![
                one.name.clone(),
                ms(one.full_ms),
                mebibytes(one.full_bytes),
                ms(one.pause_ms),
                ms(one.total_ms),
                format!("{:.0} %", 100.0 * one.total_ms / one.full_ms),
                mebibytes(one.image_bytes),
                format!(
                    "{:.1} %",
                    100.0 * one.image_bytes as f64 / one.full_bytes as f64
                ),
                one.full_again.to_string(),
                format!("{:.2}", one.most_room),
            ],
        })
        .collect();
    table::print(
        &format!(
            "Incremental checkpoints, {size} MiB random, 4 KiB pages, {rounds} after the first"
        ),
        &[
            "between two checkpoints",
            "full (ms)",
            "(MiB)",
            "pause (ms)",
            "checkpoint (ms)",
            "of full",
            "image (MiB)",
            "of full",
            "in full again",
            "most room",
        ],
        &rows,
    );
}

/// Length of one bin, in milliseconds.
const BIN: usize = 100;

/// Has a program write all its memory over and over, takes a checkpoint in the middle, and plots how fast it was.
pub fn plot(stasis: &Stasis, bytes: usize, to: &Path) -> Result<(), String> {
    let bytes = bytes.to_string();
    let argv = crate::workload_argv(&stasis.directory, &["sweeping", "--bytes", &bytes])?;
    let job = stasis.start(&[], &argv)?;
    std::thread::sleep(Duration::from_secs(2));
    let (_, before) = job.ask()?;
    let saved = job.checkpoint()?;
    let (_, during) = job.ask()?;
    std::thread::sleep(Duration::from_secs(2));
    let (_, after) = job.ask()?;
    let bins = |text: Option<String>| -> Vec<f64> {
        let text = text.unwrap_or_default();
        text.split(',').filter_map(|bin| bin.parse().ok()).collect()
    };
    let (before, during, after) = (bins(before), bins(during), bins(after));
    drop(job);
    clear(&stasis.directory);
    let span = (before.len(), before.len() + during.len());
    let all: Vec<f64> = [before, during, after].concat();
    let svg = drawn(&all, span, saved.total_ms);
    std::fs::write(to, svg).map_err(|error| format!("writing {}: {error}", to.display()))
}

/// A plot of bins, with those of `span` marked.
fn drawn(bins: &[f64], span: (usize, usize), checkpoint_ms: f64) -> String {
    const HEIGHT: f64 = 240.0;
    const STEP: f64 = 10.0;
    let most = bins.iter().copied().fold(1.0, f64::max);
    let width = bins.len() as f64 * STEP;
    let x = |n: usize| 60.0 + n as f64 * STEP;
    let y = |value: f64| 30.0 + HEIGHT * (1.0 - value / most);
    let points: Vec<String> = bins
        .iter()
        .enumerate()
        .map(|(n, value)| format!("{:.0},{:.1}", x(n), y(*value)))
        .collect();
    let mut svg = String::new();
    let (right, bottom) = (width + 80.0, HEIGHT + 70.0);
    // Writing to a string does not fail.
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0} {bottom:.0}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#fff"/>
<rect x="{:.0}" y="30" width="{:.0}" height="{HEIGHT}" fill="#fde8c8"/>
<text x="60" y="20">MiB written by the program in each {BIN} ms; shaded: a checkpoint of {checkpoint_ms:.0} ms</text>
<text x="8" y="35">{most:.0}</text><text x="8" y="{:.0}">0</text>
<path d="M60 30 V{:.0} H{:.0}" fill="none" stroke="#888"/>
<polyline fill="none" stroke="#1f5fa8" stroke-width="2" points="{}"/>
"##,
        x(span.0),
        (span.1 - span.0).max(1) as f64 * STEP,
        HEIGHT + 30.0,
        HEIGHT + 30.0,
        60.0 + width,
        points.join(" ")
    );
    for second in 0..=bins.len() * BIN / 1000 {
        let at = x(second * 1000 / BIN);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.0}\" y=\"{:.0}\">{second} s</text>",
            HEIGHT + 50.0
        );
    }
    svg + "</svg>\n"
}
