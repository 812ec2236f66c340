//! `stasis inspect`: what an image holds.

use super::{Failure, Result};
use crate::cli::KeyOptions;
use crate::output::{self, Bytes};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use stasis_engine::descriptors::Kind;
use stasis_engine::memory::{Area, Backing};
use stasis_engine::model::{Process, Tree};
use stasis_image::Image;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Show what a checkpoint holds: processes, threads, memory, descriptors, files
#[derive(Debug, Args)]
pub struct Arguments {
    /// The image
    pub image: PathBuf,
    /// Show every thread, descriptor and memory area
    #[arg(short, long, alias = "areas")]
    pub verbose: bool,
    #[command(flatten)]
    pub keys: KeyOptions,
    /// As JSON (always with everything)
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
}

/// An image, for scripts.
#[derive(Debug, Serialize)]
struct Summary {
    path: PathBuf,
    format_version: u32,
    job: String,
    sequence: u64,
    command: Vec<String>,
    host: String,
    taken_at: Option<Timestamp>,
    image_bytes: u64,
    contents_bytes: u64,
    stored_bytes: u64,
    /// Older files that it takes contents from.
    bases: Vec<PathBuf>,
    encrypted: bool,
    root: i32,
    terminal: bool,
    /// Processes of the tree that were waiting for this checkpoint.
    requesters: Vec<i32>,
    processes: Vec<ProcessSummary>,
    zombies: Vec<ZombieSummary>,
    files: Vec<FileSummary>,
    shared_memory: Vec<SharedSummary>,
}

#[derive(Debug, Serialize)]
struct ProcessSummary {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    name: String,
    directory: String,
    stopped: bool,
    threads: Vec<ThreadSummary>,
    private_bytes: u64,
    areas: Vec<AreaSummary>,
    descriptors: Vec<DescriptorSummary>,
}

#[derive(Debug, Serialize)]
struct ThreadSummary {
    tid: i32,
    name: String,
}

#[derive(Debug, Serialize)]
struct AreaSummary {
    start: u64,
    end: u64,
    /// As in /proc/PID/maps: `rw-p`.
    permissions: String,
    backing: String,
}

#[derive(Debug, Serialize)]
struct DescriptorSummary {
    fd: i32,
    kind: &'static str,
    /// Descriptors with the same number share one open file description.
    description: u32,
    close_on_exec: bool,
}

#[derive(Debug, Serialize)]
struct ZombieSummary {
    pid: i32,
    parent: i32,
    name: String,
}

#[derive(Debug, Serialize)]
struct FileSummary {
    path: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct SharedSummary {
    name: String,
    bytes: u64,
}

pub fn run(arguments: &Arguments) -> Result {
    let failure = |error: String| Failure {
        code: crate::exit::FAILED,
        message: error,
    };
    let keys = arguments.keys.keys()?;
    let image =
        Image::open_with(&arguments.image, &keys).map_err(|error| failure(error.to_string()))?;
    let tree = Tree::of(&image).map_err(|error| failure(error.to_string()))?;
    let summary = summary(&arguments.image, &image, &tree);
    if arguments.json {
        output::json(&summary)?;
    } else {
        show(&summary, arguments.verbose)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn summary(path: &Path, image: &Image, tree: &Tree) -> Summary {
    let header = image.header();
    Summary {
        path: path.to_owned(),
        format_version: header.version,
        job: tree.info.name.clone(),
        sequence: tree.info.sequence,
        command: tree.info.command.clone(),
        host: tree.info.host.clone(),
        taken_at: Timestamp::from_second(tree.info.taken_at).ok(),
        image_bytes: header.file_len,
        contents_bytes: header.logical_len,
        stored_bytes: header.stored_len,
        bases: image.base_paths().map(Path::to_owned).collect(),
        encrypted: header.encrypted,
        root: tree.root.0,
        terminal: tree.terminal,
        requesters: tree.requesters.iter().map(|pid| pid.0).collect(),
        processes: tree
            .processes
            .iter()
            .map(|process| of_process(process, tree))
            .collect(),
        zombies: (tree.zombies.iter())
            .map(|zombie| ZombieSummary {
                pid: zombie.pid.0,
                parent: zombie.parent.0,
                name: zombie.name.clone(),
            })
            .collect(),
        files: (tree.files.iter())
            .map(|file| FileSummary {
                path: file.path.to_string(),
                bytes: file.size,
            })
            .collect(),
        shared_memory: (tree.shared.iter())
            .map(|shared| SharedSummary {
                name: text(&shared.name),
                bytes: shared.len,
            })
            .collect(),
    }
}

fn of_process(process: &Process, tree: &Tree) -> ProcessSummary {
    ProcessSummary {
        pid: process.pid.0,
        parent: process.parent.0,
        group: process.group.0,
        session: process.session.0,
        name: process.name(),
        directory: text(&process.attributes.directory),
        stopped: process.stopped_by.is_some(),
        threads: (process.threads.iter())
            .map(|thread| ThreadSummary {
                tid: thread.virtual_tid.0,
                name: text(&thread.name),
            })
            .collect(),
        private_bytes: process.memory.stored_bytes(),
        areas: process
            .memory
            .areas
            .iter()
            .map(|area| of_area(area, tree))
            .collect(),
        descriptors: (process.descriptors.descriptors.iter())
            .map(|descriptor| DescriptorSummary {
                fd: descriptor.fd,
                kind: (tree.descriptions.get(descriptor.description.index()))
                    .map_or("unknown", |description| kind(&description.kind)),
                description: descriptor.description.0,
                close_on_exec: descriptor.close_on_exec,
            })
            .collect(),
    }
}

fn kind(kind: &Kind) -> &'static str {
    match kind {
        Kind::File(_) => "file",
        Kind::Directory(_) => "directory",
        Kind::Device(_) => "device",
        Kind::Pipe(_) => "pipe",
        Kind::Fifo(_) => "fifo",
        Kind::EventFd(_) => "eventfd",
        Kind::Epoll(_) => "epoll",
        Kind::TimerFd(_) => "timerfd",
        Kind::SignalFd(_) => "signalfd",
        Kind::MemFd(_) => "memfd",
        Kind::PidFd(_) => "pidfd",
        Kind::Stdio(_) => "standard stream",
        Kind::Terminal(_) => "terminal",
        Kind::PtyMaster(_) => "pseudo terminal, controlling side",
        Kind::PtySlave(_) => "pseudo terminal",
        Kind::Inherited(_) => "inherited",
        Kind::UnixSocket(_) => "Unix socket",
        Kind::Tcp(_) => "TCP socket",
        Kind::Udp(_) => "UDP socket",
        Kind::Netlink(_) => "netlink socket",
        Kind::MessageQueue(_) => "message queue",
    }
}

/// `PROT_READ`, `PROT_WRITE` and `PROT_EXEC` of mmap(2), as /proc/PID/maps shows them.
fn permissions(area: &Area) -> String {
    let flag = |bit: i32, letter| {
        if area.protection & bit != 0 {
            letter
        } else {
            '-'
        }
    };
    let sharing = if area.shared { 's' } else { 'p' };
    [flag(1, 'r'), flag(2, 'w'), flag(4, 'x'), sharing]
        .iter()
        .collect()
}

fn of_area(area: &Area, tree: &Tree) -> AreaSummary {
    let backing = match &area.backing {
        Backing::Anonymous { name: None } => String::new(),
        Backing::Anonymous { name: Some(name) } => format!("[anon:{name}]"),
        Backing::File { file, offset } => {
            let path = tree
                .files
                .get(*file as usize)
                .map_or_else(|| "?".to_owned(), |file| file.path.to_string());
            format!("{path} +{offset:#x}")
        }
        Backing::Shared { object, offset } => {
            let name = tree
                .shared
                .get(*object as usize)
                .map_or_else(|| "?".to_owned(), |shared| text(&shared.name));
            format!("{name} +{offset:#x}")
        }
        Backing::Vdso => "[vdso]".into(),
        Backing::Vvar(name) => name.clone(),
        Backing::Segment { id, offset, .. } => {
            format!("System V shared memory segment {id} +{offset:#x}")
        }
    };
    AreaSummary {
        start: area.range.start,
        end: area.range.end,
        permissions: permissions(area),
        backing,
    }
}

fn show(summary: &Summary, verbose: bool) -> std::io::Result<()> {
    let taken = summary
        .taken_at
        .map_or_else(|| "?".into(), output::local_time);
    output::result(format_args!("{}", summary.path.display()))?;
    output::result(format_args!(
        "  job       {}, checkpoint {}",
        summary.job, summary.sequence
    ))?;
    output::result(format_args!("  command   {}", summary.command.join(" ")))?;
    output::result(format_args!("  taken     {taken} on {}", summary.host))?;
    output::result(format_args!(
        "  size      {}; {} of contents{} (format {})",
        Bytes(summary.image_bytes),
        Bytes(summary.contents_bytes),
        ratio(
            summary.contents_bytes,
            summary.stored_bytes,
            summary.bases.len()
        ),
        summary.format_version
    ))?;
    for process in &summary.processes {
        let stopped = if process.stopped { ", stopped" } else { "" };
        output::result(format_args!(
            "process {} ({}), parent {}, group {}, session {}{stopped}",
            process.pid, process.name, process.parent, process.group, process.session
        ))?;
        output::result(format_args!("  directory {}", process.directory))?;
        let names: Vec<String> = process
            .threads
            .iter()
            .map(|t| format!("{} ({})", t.tid, t.name))
            .collect();
        output::result(format_args!(
            "  threads   {}: {}",
            names.len(),
            shortened(&names, verbose)
        ))?;
        output::result(format_args!(
            "  memory    {} areas, {} private",
            process.areas.len(),
            Bytes(process.private_bytes)
        ))?;
        let descriptors: Vec<String> = process
            .descriptors
            .iter()
            .map(|d| format!("{} {}", d.fd, d.kind))
            .collect();
        output::result(format_args!(
            "  open      {}",
            shortened(&descriptors, verbose)
        ))?;
        for area in process.areas.iter().filter(|_| verbose) {
            let line = format!(
                "    {:x}-{:x} {} {}",
                area.start, area.end, area.permissions, area.backing
            );
            output::result(line.trim_end())?;
        }
    }
    for zombie in &summary.zombies {
        output::result(format_args!(
            "zombie {} ({}), parent {}",
            zombie.pid, zombie.name, zombie.parent
        ))?;
    }
    for shared in &summary.shared_memory {
        output::result(format_args!(
            "shared memory {} ({})",
            shared.name,
            Bytes(shared.bytes)
        ))?;
    }
    for file in &summary.files {
        output::result(format_args!("file {} ({})", file.path, Bytes(file.bytes)))?;
    }
    Ok(())
}

/// How much smaller contents were made, where they were; or where else they are.
fn ratio(contents: u64, stored: u64, bases: usize) -> String {
    match bases {
        0 => {}
        1 => return ", the rest of it in 1 older file".into(),
        n => return format!(", the rest of it in {n} older files"),
    }
    if stored == 0 || stored >= contents {
        return String::new();
    }
    format!(
        ", {:.1} times as long as stored",
        contents as f64 / stored as f64
    )
}

/// The first few of many, unless `all` are wanted.
fn shortened(items: &[String], all: bool) -> String {
    const SHOWN: usize = 8;
    match items.len() {
        0 => "none".into(),
        n if n > SHOWN && !all => format!("{}, and {} more", items[..SHOWN].join(", "), n - SHOWN),
        _ => items.join(", "),
    }
}
