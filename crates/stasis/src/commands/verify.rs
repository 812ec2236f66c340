//! `stasis verify`: checks an image without restarting it.

use super::Result;
use crate::output::{self, Bytes, ProgressLine};
use clap::Args;
use serde::Serialize;
use stasis_engine::model::Tree;
use stasis_image::Image;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

/// Check all of an image against its checksums
#[derive(Debug, Args)]
pub struct Arguments {
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,
    /// Threads that read; 0 is one for each processor
    #[arg(long, value_name = "N", default_value = "0")]
    pub threads: usize,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// What came of one image, for scripts.
#[derive(Debug, Serialize)]
struct Verdict<'a> {
    path: &'a Path,
    valid: bool,
    reason: Option<String>,
    contents_bytes: Option<u64>,
    image_bytes: Option<u64>,
}

pub fn run(arguments: &Arguments) -> Result {
    let verdicts: Vec<Verdict> = arguments
        .images
        .iter()
        .map(|path| verify(path, arguments.threads))
        .collect();
    if arguments.json {
        output::json(&verdicts)?;
    } else {
        for verdict in &verdicts {
            match (&verdict.reason, verdict.contents_bytes) {
                (None, Some(bytes)) => {
                    output::result(format_args!(
                        "{}: valid, {} of contents",
                        verdict.path.display(),
                        Bytes(bytes)
                    ))?;
                }
                (reason, _) => output::message(reason.as_deref().unwrap_or("not valid")),
            }
        }
    }
    let valid = verdicts.iter().all(|verdict| verdict.valid);
    Ok(ExitCode::from(if valid { 0 } else { crate::exit::FAILED }))
}

fn verify(path: &Path, threads: usize) -> Verdict<'_> {
    let line = Mutex::new(ProgressLine::new());
    let show = |done, total| {
        if let Ok(mut line) = line.lock() {
            line.show("checking", done, total);
        }
    };
    let checked = Image::open(path)
        .map_err(|error| error.to_string())
        .and_then(|image| {
            let total = image.header().logical_len;
            let verified = image
                .verify(threads, &|done| show(done, total))
                .map_err(|error| error.to_string())?;
            Tree::of(&image).map_err(|error| error.to_string())?;
            Ok((verified.logical_len, image.header().file_len))
        });
    if let Ok(mut line) = line.lock() {
        line.clear();
    }
    let sizes = checked.as_ref().ok();
    Verdict {
        path,
        valid: checked.is_ok(),
        contents_bytes: sizes.map(|sizes| sizes.0),
        image_bytes: sizes.map(|sizes| sizes.1),
        reason: checked.err(),
    }
}
