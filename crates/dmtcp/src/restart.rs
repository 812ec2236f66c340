//! `dmtcp_restart`: continues the programs of a checkpoint, and holds them.

use crate::connection::{self, Starting};
use crate::hold::{self, Held, Job};
use crate::names::ENDING;
use crate::options::{self, text};
use crate::sets::{self, Candidate, Choice};
use crate::{Failure, names, output};
use clap::{Arg, ArgAction, ArgMatches, Command};
use stasis_coordinator::link::Address;
use stasis_coordinator::protocol::{Belonging, Join};
use stasis_engine::progress::Silent;
use stasis_engine::restart as engine;
use stasis_image::Image;
use stasis_supervisor::{JobName, Membership, NameLock, Settings, Start};
use stasis_sys::process::{self, Fork, Waited};
use stasis_sys::{Pid, signal};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The command line.
#[must_use]
pub fn parser() -> Command {
    let command = Command::new("dmtcp_restart")
        .about("Continues the programs of a checkpoint")
        .long_about(
            "Continues programs from their images, all that were saved together at one instant. Of the images given, the \
             newest complete set is taken, and the others are named. The exit status is that of the first program; 85 when \
             it was saved and stopped on request, 99 (DMTCP_FAIL_RC) when nothing could be started.",
        );
    options::of_jobs(command)
        .arg(
            options::option(
                "restartdir",
                "DIR",
                "Continue what the images in DIR hold (or DMTCP_RESTART_DIR)",
            )
            .short('r'),
        )
        .arg(
            Arg::new("images")
                .value_name("IMAGE")
                .help("Images: ckpt_*.dmtcp")
                .value_parser(clap::value_parser!(PathBuf))
                .action(ArgAction::Append)
                .num_args(0..),
        )
}

/// Carries it out.
///
/// # Errors
/// What is to be said, with the exit status.
pub fn run(words: Vec<OsString>) -> Result<ExitCode, Failure> {
    let matches = options::parse(parser(), words, options::failure_status())?;
    options::tell_unneeded(&matches, options::OF_JOBS);
    let given = given(&matches)?;
    let choice = chosen(&given)?;
    if !choice.missing.is_empty() {
        output::warning(&format!(
            "saved together with {}, which {} not given: continued without",
            choice.missing.join(", "),
            if choice.missing.len() == 1 {
                "is"
            } else {
                "are"
            }
        ));
    }
    for (path, why) in &choice.rest {
        output::warning(&format!("{} is {why}: not used", path.display()));
    }
    restart(&matches, choice.images)
}

fn is_image(path: &Path) -> bool {
    path.to_string_lossy().ends_with(ENDING)
}

/// The files that the command line means.
fn given(matches: &ArgMatches) -> Result<Vec<PathBuf>, Failure> {
    let mut files: Vec<PathBuf> = matches
        .get_many::<PathBuf>("images")
        .map(|images| images.cloned().collect())
        .unwrap_or_default();
    // A pattern such as ckpt_* finds the directories of copied files, too.
    files.retain(|path| !path.to_string_lossy().ends_with("_files"));
    let directory = text(matches, "restartdir")
        .or_else(|| options::variable("DMTCP_RESTART_DIR").filter(|_| files.is_empty()));
    if let Some(directory) = directory {
        let found = images_in(Path::new(&directory))
            .map_err(|error| Failure::own(format!("reading {directory}: {error}")))?;
        files.extend(found);
        if files.is_empty() {
            return Err(Failure::own(format!(
                "{directory} holds no image (*{ENDING})"
            )));
        }
    }
    if files.is_empty() {
        return Err(Failure::own(
            "say which images to continue: dmtcp_restart ckpt_*.dmtcp; or --help",
        ));
    }
    if let Some(other) = files.iter().find(|path| !is_image(path)) {
        return Err(Failure::own(format!(
            "{} is not called *{ENDING}; for other images there is: stasis restart",
            other.display()
        )));
    }
    Ok(files)
}

/// Images in a directory and in those of its directories that belong to one checkpoint each.
fn images_in(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        let own = entry.file_name().to_string_lossy().starts_with("ckpt_");
        if own && path.is_dir() {
            let inner = std::fs::read_dir(&path)?
                .flatten()
                .map(|entry| entry.path());
            found.extend(inner.filter(|path| is_image(path)));
        } else if is_image(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Sorts the images out.
fn chosen(given: &[PathBuf]) -> Result<Choice, Failure> {
    let mut candidates = Vec::new();
    let mut unusable = Vec::new();
    for path in given {
        match Candidate::open(path) {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => unusable.push(reason),
        }
    }
    if candidates.is_empty() {
        return Err(Failure::own(unusable.join("\n")));
    }
    let unnamed = unnamed(&candidates);
    let choice = sets::choose(candidates, unnamed).map_err(|error| {
        let mut lines = unusable.clone();
        lines.push(error);
        Failure::own(lines.join("\n"))
    })?;
    for reason in unusable {
        output::warning(&format!("not used: {reason}"));
    }
    Ok(choice)
}

/// Images that are complete, and whose programs' supervisors were killed before they gave them their names.
fn unnamed(beside: &[Candidate]) -> Vec<Candidate> {
    let mut directories: Vec<&Path> = beside
        .iter()
        .filter_map(|image| image.path.parent())
        .collect();
    directories.sort_unstable();
    directories.dedup();
    directories
        .into_iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.to_string_lossy().ends_with(".dmtcp.temp"))
        .filter_map(|path| Candidate::open(&path).ok())
        .collect()
}

/// A program that is about to be continued.
struct Ready {
    image: Box<Image>,
    settings: Settings,
    lock: NameLock,
}

fn options_of(_: &ArgMatches) -> engine::Options {
    engine::Options::default()
}

fn restart(matches: &ArgMatches, images: Vec<Candidate>) -> Result<ExitCode, Failure> {
    let mut opened = Vec::new();
    for candidate in images {
        let image = Image::open(&candidate.path).map_err(Failure::own)?;
        opened.push((candidate, Box::new(image)));
    }
    if opened.len() > 1 {
        // Whatever stands in the way of one is to be known before any of them is touched.
        for (candidate, image) in &opened {
            let options = engine::Options {
                verify_while_filling: true,
                ..options_of(matches)
            };
            engine::plan(image, &options, &Silent).map_err(|error| {
                Failure::own(format!(
                    "cannot restart from {}: {error}",
                    candidate.path.display()
                ))
            })?;
        }
    }
    let size = opened.len();
    let interval = options::interval(matches)?;
    let mut coordinator: Option<Address> = None;
    let mut ready = Vec::new();
    for (candidate, image) in opened {
        let join = join_of(&candidate, size, interval);
        let membership = match &coordinator {
            None => connection::join(&Starting { matches, interval }, &join)?,
            Some(address) => Membership::join(address, join).map_err(Failure::own)?,
        };
        coordinator = Some(membership.address().clone());
        ready.push(prepare(matches, candidate, image, membership)?);
    }
    if let (Some(file), Some(address)) = (text(matches, "port-file"), &coordinator) {
        connection::write_port_file(&file, address.port)
            .map_err(|error| Failure::own(format!("writing the port to {file}: {error}")))?;
    }
    hold_all(matches, ready)
}

fn join_of(candidate: &Candidate, size: usize, interval: Option<u64>) -> Join {
    let info = &candidate.info;
    Join {
        program: names::program(info.command.first().map_or("", String::as_str).as_ref()),
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        name: Some(info.name.clone()),
        computation: info.computation.as_ref().map(|computation| Belonging {
            id: computation.id.clone(),
            generation: computation.generation,
            size: Some(size),
        }),
        interval,
        running: None,
    }
}

fn prepare(
    matches: &ArgMatches,
    candidate: Candidate,
    image: Box<Image>,
    membership: Membership,
) -> Result<Ready, Failure> {
    let beside = candidate.path.parent().unwrap_or(Path::new("."));
    let directory = options::directory(matches, &own_directory(beside))?;
    let info = candidate.info;
    // An image that `stasis run` has made gets a name of the kind that belongs here.
    let name: JobName = if info.computation.is_some() {
        info.name.parse().map_err(Failure::own)?
    } else {
        let joined = membership.joined();
        names::job(&info.name, &joined.computation, joined.number).map_err(Failure::own)?
    };
    let (lock, name) = hold::claim(&directory, &name)?;
    let job = Job {
        name,
        directory,
        command: info.command,
        sequence: info.sequence.max(membership.joined().generation),
        membership,
    };
    Ok(Ready {
        image,
        settings: hold::settings(job, matches),
        lock,
    })
}

/// The directory that holds the directories of single checkpoints, for an image in one of these.
fn own_directory(directory: &Path) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let single = name.starts_with("ckpt_")
        && name.rsplit_once('_').is_some_and(|(_, digits)| {
            digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit())
        });
    match directory.parent() {
        Some(parent) if single => parent.to_owned(),
        _ => directory.to_owned(),
    }
}

/// Continues the first in this process, the others in copies of it, and waits for all.
fn hold_all(matches: &ArgMatches, ready: Vec<Ready>) -> Result<ExitCode, Failure> {
    let mut ready = ready.into_iter();
    let Some(first) = ready.next() else {
        return Err(Failure::own("there is no image"));
    };
    let mut others = Vec::new();
    let mut rest: Vec<Ready> = ready.collect();
    while let Some(next) = rest.pop() {
        match process::fork()
            .map_err(|error| Failure::own(format!("starting a process: {error}")))?
        {
            Fork::Child => {
                // Each connection is to be held by the one process that it belongs to.
                for other in rest.iter().chain([&first]) {
                    drop(
                        other
                            .settings
                            .membership
                            .as_ref()
                            .and_then(Membership::take),
                    );
                }
                let code = match hold_one(matches, next) {
                    Ok(Held::Code(code)) => code,
                    Ok(Held::Signal(status)) => process::end_with(status),
                    Err(failure) => {
                        output::message(&failure.message);
                        failure.code
                    }
                };
                process::exit_now(i32::from(code))
            }
            Fork::Parent(pid) => {
                drop(next.settings.membership.as_ref().and_then(Membership::take));
                others.push(pid);
            }
        }
    }
    let end = hold_one(matches, first);
    for pid in others {
        wait_for(pid);
    }
    end.map(Held::pass_on)
}

fn hold_one(matches: &ArgMatches, ready: Ready) -> Result<Held, Failure> {
    let start = Start::Restart {
        image: ready.image,
        options: options_of(matches),
    };
    hold::attend(start, &ready.settings, ready.lock)
}

/// Waits for the end of a child. Signals that would end this process do so again.
fn wait_for(pid: Pid) {
    let _ = signal::set_mask(signal::SignalSet::EMPTY);
    loop {
        match process::wait(pid, 0) {
            Ok(Waited::Child(..) | Waited::NoChildren) => return,
            Ok(Waited::Nothing) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
