//! `stasis export`: makes one self-contained file of a checkpoint.

use super::{Failure, Result};
use crate::cli::KeyOptions;
use crate::output::{self, Bytes};
use clap::Args;
use serde::Serialize;
use stasis_image::{Compression, Image, Secret, WriteOptions, export};
use std::path::PathBuf;
use std::process::ExitCode;

/// Make one self-contained file of a checkpoint
///
/// An incremental checkpoint takes contents from older files beside it. The copy has everything in one file, which can be
/// moved and restarted alone. All contents are checked on the way. An encrypted checkpoint stays encrypted, to the same key.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The checkpoint
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// The new file, or a directory to make it in, under the same name
    #[arg(value_name = "TO")]
    pub to: PathBuf,
    /// How it is compressed: auto, none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "HOW", default_value_t)]
    pub compress: Compression,
    /// Threads that work on it; 0 is one for each processor
    #[arg(long, value_name = "N", default_value = "0")]
    pub threads: usize,
    #[command(flatten)]
    pub keys: KeyOptions,
    /// Leave an encrypted checkpoint's copy unencrypted
    #[arg(long)]
    pub decrypt: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// The new file, for scripts.
#[derive(Debug, Serialize)]
struct Exported {
    path: PathBuf,
    image_bytes: u64,
    contents_bytes: u64,
}

pub fn run(arguments: &Arguments) -> Result {
    let keys = arguments.keys.keys()?;
    let image = Image::open_with(&arguments.image, &keys)?;
    let to = if arguments.to.is_dir() {
        let name = arguments.image.file_name().ok_or_else(|| Failure {
            code: crate::exit::FAILED,
            message: format!("{} has no file name", arguments.image.display()),
        })?;
        arguments.to.join(name)
    } else {
        arguments.to.clone()
    };
    let options = WriteOptions {
        compression: arguments.compress,
        threads: arguments.threads,
    };
    let secret: Option<&Secret> = image.secret().filter(|_| !arguments.decrypt);
    let committed = export(&image, &to, options, secret)?;
    if arguments.json {
        output::json(&Exported {
            path: committed.path,
            image_bytes: committed.file_len,
            contents_bytes: committed.logical_len,
        })?;
    } else {
        output::result(format_args!(
            "{}: {}",
            committed.path.display(),
            Bytes(committed.file_len)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
