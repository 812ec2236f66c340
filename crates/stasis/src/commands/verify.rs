//! `stasis verify`: checks an image without restarting it.

use super::Result;
use crate::cli::KeyOptions;
use crate::output::{self, Bytes, ProgressLine};
use clap::Args;
use serde::Serialize;
use stasis_engine::model::Tree;
use stasis_image::{Image, Keys};
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
    #[command(flatten)]
    pub keys: KeyOptions,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// What came of one image, for scripts.
#[derive(Debug, Serialize)]
struct Verdict<'a> {
    path: &'a Path,
    valid: bool,
    /// Everything that is wrong.
    damage: Vec<String>,
    contents_bytes: Option<u64>,
    image_bytes: Option<u64>,
    /// Older files that it takes contents from, which were checked with it.
    bases: Option<u64>,
}

pub fn run(arguments: &Arguments) -> Result {
    let keys = arguments.keys.keys()?;
    let verdicts: Vec<Verdict> = arguments
        .images
        .iter()
        .map(|path| verify(path, arguments.threads, &keys))
        .collect();
    if arguments.json {
        output::json(&verdicts)?;
    } else {
        for verdict in &verdicts {
            if let (true, Some(bytes)) = (verdict.valid, verdict.contents_bytes) {
                let bases = match verdict.bases {
                    None | Some(0) => String::new(),
                    Some(1) => ", some in an older file".into(),
                    Some(bases) => format!(", some in {bases} older files"),
                };
                output::result(format_args!(
                    "{}: valid, {} of contents{bases}",
                    verdict.path.display(),
                    Bytes(bytes)
                ))?;
            }
            for damage in &verdict.damage {
                output::message(damage);
            }
        }
    }
    let valid = verdicts.iter().all(|verdict| verdict.valid);
    Ok(ExitCode::from(if valid { 0 } else { crate::exit::FAILED }))
}

fn verify<'a>(path: &'a Path, threads: usize, keys: &Keys) -> Verdict<'a> {
    let line = Mutex::new(ProgressLine::new());
    let show = |done, total| {
        if let Ok(mut line) = line.lock() {
            line.show("checking", done, total);
        }
    };
    let mut verdict = Verdict {
        path,
        valid: false,
        damage: Vec::new(),
        contents_bytes: None,
        image_bytes: None,
        bases: None,
    };
    match Image::open_with(path, keys) {
        Ok(image) => {
            let total = image.header().logical_len;
            let damages = image.damages(threads, &|done| show(done, total));
            let described = Tree::of(&image).err().map(|error| error.to_string());
            verdict.damage = (damages.iter().map(ToString::to_string))
                .chain(described)
                .collect();
            verdict.contents_bytes = Some(total);
            verdict.bases = Some(image.bases().len() as u64);
            verdict.image_bytes = Some(image.header().file_len);
        }
        Err(error) => verdict.damage.push(error.to_string()),
    }
    verdict.valid = verdict.damage.is_empty();
    if let Ok(mut line) = line.lock() {
        line.clear();
    }
    verdict
}
