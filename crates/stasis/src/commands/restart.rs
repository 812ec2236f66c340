//! `stasis restart`: continues a job from an image and holds it.

use super::hold::{self, Held};
use super::{Failure, Result};
use crate::cli::JobOptions;
use crate::{exit, output};
use clap::{Args, ValueEnum};
use serde::Serialize;
use stasis_engine::descriptors::External;
use stasis_engine::descriptors::external::Rule;
use stasis_engine::model::Tree;
use stasis_engine::progress::Silent;
use stasis_engine::restart::{self, ChangedFiles, Options, Strategy};
use stasis_engine::{EngineError, Refusal};
use stasis_image::{Image, Keys, parse_image_name};
use stasis_supervisor::choice::{self, Choice};
use stasis_supervisor::{JobName, Settings, Start};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Continue a job from a checkpoint
///
/// PATH is an image, or a directory, whose newest complete checkpoint is taken. Behaves like `stasis run` from then
/// on. New checkpoints go beside the image unless -d or STASIS_DIR says otherwise.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub job: JobOptions,
    #[command(flatten)]
    pub how: Restarting,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    /// An image or a directory
    pub path: PathBuf,
}

/// Options of every restart, also one by `run --resume`.
#[derive(Debug, Args)]
pub struct Restarting {
    /// How the processes get their ids back; the first that this host allows when not given
    #[arg(long, value_enum)]
    pub strategy: Option<StrategyName>,
    /// What to do when a file differs from what the program had and cannot be put back
    #[arg(long, value_enum, value_name = "WHAT", default_value = "refuse")]
    pub changed_files: Changed,
    /// What to do with a TCP connection that led out of the job: reset it, refuse the restart, or reconnect (connect again,
    /// and lose what was received and not read). WHAT=ADDRESS:PORT is for that destination, WHAT=*:PORT for that port
    /// anywhere; may be repeated, the last that fits counts. All are reset when not given
    #[arg(long, value_name = "WHAT[=ADDRESS:PORT]")]
    pub external: Vec<Rule>,
    /// What becomes of the lines that the program has written to the restart's own output file after the checkpoint, and is
    /// going to write again
    #[arg(long, value_enum, value_name = "WHAT", default_value = "cut")]
    pub output: Output,
    /// Start also where this host's processor lacks something that the program had and may use
    #[arg(long)]
    pub any_processor: bool,
    /// Open what was below OLD below NEW instead; may be repeated
    #[arg(long, value_name = "OLD=NEW", value_parser = parse_mapping)]
    pub map_path: Vec<(String, String)>,
}

/// Names of the strategies.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StrategyName {
    /// Ask the kernel for the ids: root or CAP_CHECKPOINT_RESTORE, and the ids must be free
    Privileged,
    /// User, pid, time and mount namespaces of the job's own, in which all ids are free
    Namespaces,
    /// Fork until the kernel's counter stands right: slow, and the ids must be free
    Burn,
}

/// What to do about lines that are written twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Take them back, and keep them in a file beside
    Cut,
    /// Leave them, with a line that tells what follows
    Mark,
}

/// What to do about changed files.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Changed {
    /// Start nothing, and name them all
    Refuse,
    /// Use them as they are
    Accept,
}

fn parse_mapping(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && new.starts_with('/') => {
            Ok((old.to_owned(), new.to_owned()))
        }
        _ => Err(format!("{text} is not OLD=NEW with two absolute paths")),
    }
}

impl Restarting {
    fn options(&self, threads: usize) -> Options {
        Options {
            strategy: self.strategy.map(|name| match name {
                StrategyName::Privileged => Strategy::Privileged,
                StrategyName::Namespaces => Strategy::Namespaces,
                StrategyName::Burn => Strategy::Burn,
            }),
            changed_files: match self.changed_files {
                Changed::Refuse => ChangedFiles::Refuse,
                Changed::Accept => ChangedFiles::Accept,
            },
            external: External(self.external.clone()),
            map_path: self.map_path.clone(),
            any_processor: self.any_processor,
            keep_output: self.output == Output::Mark,
            threads,
            ..Options::default()
        }
    }
}

pub fn run(arguments: Arguments) -> Result {
    let Arguments {
        job,
        how,
        dry_run,
        json,
        path,
    } = arguments;
    let choice = chosen(&path, job.name.as_ref())?;
    tell_skipped(&choice);
    let Some((first, first_name)) = choice.images.first() else {
        return Err(Failure::own(format!(
            "{} holds no complete checkpoint",
            path.display()
        )));
    };
    if dry_run {
        let keys = job.keys.keys().map_err(Failure::own)?;
        return plan(first, &how.options(job.threads), json, &keys);
    }
    if !path.is_dir() {
        // What is no image is refused before a name is taken for it.
        let keys = job.keys.keys().map_err(Failure::own)?;
        Image::open_with(first, &keys).map_err(Failure::own)?;
    }
    let wanted = match &job.name {
        Some(name) => name.clone(),
        None => first_name.parse().map_err(Failure::own)?,
    };
    let beside = first.parent().unwrap_or(Path::new("."));
    let directory = job.directory(beside)?;
    let (lock, name) = hold::claim(&directory, &wanted, job.name.is_some())?;
    let settings = job.settings(name, directory, vec![first_name.clone()])?;
    let mut log = job.log(&settings.directory, &settings.name, String::new());
    let held = first_usable(
        Choice {
            skipped: Vec::new(),
            ..choice
        },
        &settings,
        &how,
        job.ending(),
        &mut log,
    );
    let held = held.and_then(|held| {
        held.ok_or_else(|| Failure::own(format!("no checkpoint in {} can be used", path.display())))
    });
    hold::conclude(lock, held)
}

/// The images that `path` means. One image is one, also when it is damaged: its name is asked for, not another.
fn chosen(path: &Path, name: Option<&JobName>) -> std::result::Result<Choice, Failure> {
    let path = std::fs::canonicalize(path)
        .map_err(|error| Failure::own(format!("{}: {error}", path.display())))?;
    if path.is_dir() {
        return choice::newest(&path, name, 0).map_err(Failure::own);
    }
    let job = path
        .file_name()
        .and_then(parse_image_name)
        .map(|(job, _)| job)
        .or_else(|| name.map(ToString::to_string))
        .unwrap_or_else(|| JobName::of_program(path.file_stem().unwrap_or_default()).to_string());
    Ok(Choice {
        images: vec![(path, job)],
        skipped: Vec::new(),
    })
}

fn tell_skipped(choice: &Choice) {
    for (path, reason) in &choice.skipped {
        output::message(&format!("skipping {}: {reason}", path.display()));
    }
}

/// Restarts from the first image that is not damaged. `None` where there is none to try.
pub fn first_usable(
    choice: Choice,
    settings: &Settings,
    how: &Restarting,
    ending: hold::Ending,
    log: &mut Option<hold::Log>,
) -> std::result::Result<Option<Held>, Failure> {
    tell_skipped(&choice);
    let several = choice.images.len() > 1;
    let mut last = None;
    for (path, _) in choice.images {
        if let Some(reason) = last.take() {
            output::message(&format!("{reason}; trying the one before"));
        }
        let image = match Image::open_with(&path, &settings.keys) {
            Ok(image) => Box::new(image),
            Err(error) if several => {
                last = Some(error.to_string());
                continue;
            }
            Err(error) => return Err(Failure::own(error)),
        };
        let options = how.options(settings.threads);
        if how.output == Output::Mark {
            mark(&image);
        }
        let command = Tree::of(&image).map_err(Failure::own)?.info.command;
        let secret = settings.secret.clone();
        let settings = Settings {
            // What was a secret before is one still.
            secret: secret.or_else(|| image.secret().cloned()),
            command,
            ..settings.clone()
        };
        match hold::attend(Start::Restart { image, options }, &settings, ending, log)? {
            Held::Damaged(reason) => last = Some(reason),
            held => return Ok(Some(held)),
        }
    }
    match last {
        // Images were there, and the user counts on them: to start anew instead would lose what they hold.
        Some(reason) => Err(Failure::own(reason)),
        None => Ok(None),
    }
}

/// A plan as JSON.
#[derive(Serialize)]
struct Planned<'a> {
    image: &'a Path,
    #[serde(flatten)]
    plan: &'a restart::Plan,
}

/// Why there is no plan, as JSON.
#[derive(Serialize)]
struct Obstructed<'a> {
    image: &'a Path,
    obstacles: &'a [Refusal],
}

fn plan(path: &Path, options: &Options, json: bool, keys: &Keys) -> Result {
    let image = Image::open_with(path, keys).map_err(Failure::own)?;
    let plan = match restart::plan(&image, options, &Silent) {
        Err(EngineError::Refused(obstacles)) if json => {
            output::json(&Obstructed {
                image: path,
                obstacles: &obstacles,
            })?;
            return Ok(ExitCode::from(exit::OWN));
        }
        plan => plan.map_err(Failure::own)?,
    };
    if json {
        output::json(&Planned {
            image: path,
            plan: &plan,
        })?;
    } else {
        output::result(format_args!("image: {}", path.display()))?;
        output::result(format_args!("ids: {}", plan.strategy.name()))?;
        for action in &plan.actions {
            output::result(format_args!("  {action}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says in the output what is going to be written there again.
fn mark(image: &Image) {
    let Ok(tree) = Tree::of(image) else { return };
    let at = jiff::Timestamp::from_second(tree.info.taken_at).unwrap_or_default();
    output::message(&format!(
        "---- from here on lines are repeated that the program had written after {}, its checkpoint {} ----",
        output::local_time(at),
        tree.info.sequence
    ));
}
