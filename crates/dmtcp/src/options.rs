//! Options that several commands have, and those that are accepted though nothing needs them.

use crate::{Failure, output};
use clap::{Arg, ArgAction, ArgMatches, Command};
use stasis_image::Compression;
use std::env;
use std::path::{Path, PathBuf};

/// An option that is accepted and not needed, whether it has a value, and why it is not needed.
type Unneeded = (&'static str, bool, &'static str);

const NO_LIBRARY: &str =
    "nothing is loaded into the program, so there is nothing to switch off or to add";
const NO_SIGNAL: &str = "programs are stopped from outside, without a signal";
const ALWAYS: &str = "it is always so";

/// Options of launch and restart that are accepted and not needed.
pub(crate) const OF_JOBS: &[Unneeded] = &[
    ("ckpt-signal", true, NO_SIGNAL),
    ("with-plugin", true, NO_LIBRARY),
    ("with-plugin-32", true, NO_LIBRARY),
    (
        "modify-env",
        false,
        "the environment is saved as it is; change what the restarted program reads (dmtcp_env.txt) yourself",
    ),
    (
        "pathvirt",
        false,
        "`stasis restart --map-path OLD=NEW` opens files elsewhere",
    ),
    ("disable-alloc-plugin", false, NO_LIBRARY),
    ("disable-dl-plugin", false, NO_LIBRARY),
    ("disable-ssh-plugin", false, NO_LIBRARY),
    ("disable-event-plugin", false, NO_LIBRARY),
    ("disable-file-plugin", false, NO_LIBRARY),
    ("disable-pty-plugin", false, NO_LIBRARY),
    ("disable-socket-plugin", false, NO_LIBRARY),
    ("disable-svipc-plugin", false, NO_LIBRARY),
    ("disable-timer-plugin", false, NO_LIBRARY),
    ("disable-pid-plugin", false, NO_LIBRARY),
    ("disable-ipc-plugin", false, NO_LIBRARY),
    ("disable-all-plugins", false, NO_LIBRARY),
    ("no-plugins", false, NO_LIBRARY),
    (
        "kernel-loader",
        false,
        "programs are started by the kernel anyway",
    ),
    (
        "no-strict-checking",
        false,
        "an image is continued as the user who restarts it, if it is his",
    ),
    (
        "debug-restart-pause",
        true,
        "attach a debugger to the restarted program at any time",
    ),
    (
        "gdb",
        true,
        "attach a debugger to the restarted program at any time",
    ),
    // Removed from DMTCP; still in centres' documentation.
    (
        "no-coordinator",
        false,
        "a coordinator is started for you, and ends with the program",
    ),
    ("rm", false, "`stasis run --slurm` continues batch jobs"),
    (
        "batch-queue",
        false,
        "`stasis run --slurm` continues batch jobs",
    ),
    ("explicit-srun", false, "srun is not wrapped"),
    (
        "ib",
        false,
        "InfiniBand cannot be saved: a checkpoint says so by name",
    ),
    (
        "infiniband",
        false,
        "InfiniBand cannot be saved: a checkpoint says so by name",
    ),
    (
        "ib2tcp",
        false,
        "InfiniBand cannot be saved: a checkpoint says so by name",
    ),
    ("ptrace", false, NO_LIBRARY),
    ("hbict", false, "images are made by Stasis"),
    ("no-hbict", false, "images are made by Stasis"),
    ("debug-logs", true, "STASIS_LOG=debug tells all"),
    ("mpi", false, "MPI over several hosts cannot be saved"),
    ("enable-forked-checkpointing", false, ALWAYS),
    ("forked-checkpointing", false, ALWAYS),
    ("enable-fast-restart", false, ALWAYS),
];

/// Adds options that are accepted and not needed.
pub(crate) fn accept(mut command: Command, options: &'static [Unneeded]) -> Command {
    for (name, value, why) in options {
        let taken = command
            .get_arguments()
            .any(|known| known.get_long() == Some(name));
        if taken {
            continue;
        }
        let action = if *value {
            ArgAction::Append
        } else {
            ArgAction::Count
        };
        command = command.arg(
            Arg::new(*name)
                .long(*name)
                .action(action)
                .help_heading("Accepted, and not needed")
                .help(*why),
        );
    }
    command
}

/// Says of each such option that was given, in one line, that it is not needed.
pub(crate) fn tell_unneeded(matches: &ArgMatches, options: &[Unneeded]) {
    for (name, value, why) in options {
        let given = match value {
            true => matches.try_contains_id(name).is_ok_and(|there| there),
            false => matches
                .try_get_one::<u8>(name)
                .is_ok_and(|count| count.is_some_and(|n| *n > 0)),
        };
        if given {
            output::remark(&format!("--{name} is not needed: {why}"));
        }
    }
}

/// A flag.
pub(crate) fn flag(name: &'static str, help: &'static str) -> Arg {
    // Scripts give options twice.
    Arg::new(name)
        .long(name)
        .action(ArgAction::Count)
        .help(help)
}

/// An option with a value; the last one counts.
pub(crate) fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .overrides_with(name)
        .action(ArgAction::Set)
        .help(help)
}

pub(crate) fn has(matches: &ArgMatches, name: &str) -> bool {
    count(matches, name) > 0
}

pub(crate) fn count(matches: &ArgMatches, name: &str) -> u8 {
    matches
        .try_get_one::<u8>(name)
        .ok()
        .flatten()
        .copied()
        .unwrap_or(0)
}

pub(crate) fn text(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.try_get_one::<String>(name).ok().flatten().cloned()
}

/// An environment variable that says something.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The exit status of failures of launch and restart themselves.
pub(crate) fn failure_status() -> u8 {
    variable("DMTCP_FAIL_RC")
        .and_then(|text| text.parse().ok())
        .unwrap_or(99)
}

/// Options around every command.
pub(crate) fn common(command: Command) -> Command {
    command
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .max_term_width(100)
        .arg(
            Arg::new("quiet")
                .short('q')
                .long("quiet")
                .action(ArgAction::Count)
                .help("Say less; twice: no warnings either (or DMTCP_QUIET=0, 1, 2)"),
        )
        .arg(flag("help", "Print help"))
        .arg(flag("version", "Print the version"))
}

/// Options of those that speak to a coordinator.
pub(crate) fn coordinates(command: Command) -> Command {
    command
        .arg(
            option(
                "coord-host",
                "HOST",
                "Host of the coordinator (or DMTCP_COORD_HOST; default: localhost)",
            )
            .short('h')
            .visible_alias("host"),
        )
        .arg(
            option(
                "coord-port",
                "PORT",
                "Port of the coordinator (or DMTCP_COORD_PORT; default: 7779); 0: any that is free",
            )
            .short('p')
            .visible_alias("port"),
        )
}

/// Options of launch and restart.
pub(crate) fn of_jobs(command: Command) -> Command {
    let command = coordinates(common(command))
        .arg(option(
            "port-file",
            "FILE",
            "Write the coordinator's port into FILE",
        ))
        .arg(
            flag(
                "join-coordinator",
                "Join a coordinator that runs; fail without one",
            )
            .short('j')
            .visible_alias("join"),
        )
        .arg(flag(
            "new-coordinator",
            "Start a new coordinator, without a port at any that is free",
        ))
        .arg(flag(
            "any-coordinator",
            "Join a coordinator, or start one (default)",
        ))
        .arg(
            option(
                "interval",
                "SECONDS",
                "Take a checkpoint every SECONDS, 0: never (or DMTCP_CHECKPOINT_INTERVAL)",
            )
            .short('i'),
        )
        .arg(flag("gzip", "Compress images (default; or DMTCP_GZIP=1)"))
        .arg(flag("no-gzip", "Do not compress images (or DMTCP_GZIP=0)"))
        .arg(
            option(
                "ckptdir",
                "DIR",
                "Directory of the images (or DMTCP_CHECKPOINT_DIR)",
            )
            .short('c'),
        )
        .arg(
            flag(
                "ckpt-open-files",
                "Save the contents of all files that are open for writing, also large ones",
            )
            .visible_alias("checkpoint-open-files"),
        )
        .arg(flag(
            "allow-file-overwrite",
            "Restore files that have changed; the changed ones are kept beside them (always so)",
        ))
        .arg(flag(
            "enable-unique-checkpoint-filenames",
            "A directory for each checkpoint",
        ))
        .arg(flag(
            "disable-unique-checkpoint-filenames",
            "Each image replaces the one before it (default)",
        ))
        .arg(option("tmpdir", "DIR", "Accepted: nothing is put there").short('t'))
        .arg(option(
            "coord-logfile",
            "FILE",
            "Log of a coordinator that is started (or DMTCP_COORD_LOG_FILENAME)",
        ));
    accept(command, OF_JOBS)
}

/// Parses, and prints help, version or what is wrong.
pub(crate) fn parse(
    command: Command,
    words: Vec<std::ffi::OsString>,
    usage: u8,
) -> Result<ArgMatches, Failure> {
    let name = command.get_name().to_owned();
    let mut again = command.clone();
    let matches = command.try_get_matches_from(words).map_err(|error| {
        output::message("Invalid Argument");
        // Nothing can be done about a standard error that cannot be written.
        let _ = error.print();
        Failure {
            code: usage,
            message: String::new(),
        }
    })?;
    let said = |text: String| {
        let code = if output::result(text) { 0 } else { usage };
        Failure {
            code,
            message: String::new(),
        }
    };
    if has(&matches, "help") {
        return Err(said(again.render_long_help().to_string()));
    }
    if has(&matches, "version") {
        return Err(said(version(&name)));
    }
    let quiet = variable("DMTCP_QUIET")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    output::be_quiet(count(&matches, "quiet").max(quiet));
    Ok(matches)
}

/// The version in a line.
pub(crate) fn version(name: &str) -> String {
    format!("{name} (Stasis) {}", env!("CARGO_PKG_VERSION"))
}

/// Seconds between checkpoints, where they are said; 0 is never.
pub(crate) fn interval(matches: &ArgMatches) -> Result<Option<u64>, Failure> {
    let said = text(matches, "interval").or_else(|| variable("DMTCP_CHECKPOINT_INTERVAL"));
    said.map(|text| {
        text.trim().parse().map_err(|_| {
            Failure::own(format!(
                "{text:?} is not an interval: write a number of seconds, 0 for none"
            ))
        })
    })
    .transpose()
}

pub(crate) fn compression(matches: &ArgMatches) -> Compression {
    let off = variable("DMTCP_GZIP").is_some_and(|value| value == "0");
    if has(matches, "no-gzip") || off && !has(matches, "gzip") {
        Compression::None
    } else {
        Compression::Auto
    }
}

/// Contents of files up to so many bytes are saved.
pub(crate) fn file_limit(matches: &ArgMatches) -> u64 {
    if has(matches, "ckpt-open-files") {
        u64::MAX
    } else {
        64 << 20
    }
}

pub(crate) fn directories_for_each(matches: &ArgMatches) -> bool {
    let wanted = variable("DMTCP_UNIQUE_CKPT_PLUGIN").is_some_and(|value| value != "0");
    has(matches, "enable-unique-checkpoint-filenames")
        || wanted && !has(matches, "disable-unique-checkpoint-filenames")
}

/// The directory of the images: the option, the variable, or `otherwise`; made where it was named and is missing.
pub(crate) fn directory(matches: &ArgMatches, otherwise: &Path) -> Result<PathBuf, Failure> {
    let named = text(matches, "ckptdir").or_else(|| variable("DMTCP_CHECKPOINT_DIR"));
    let directory = named
        .as_ref()
        .map_or_else(|| otherwise.to_owned(), PathBuf::from);
    let failed = |error| {
        Failure::own(format!(
            "the checkpoint directory {}: {error}",
            directory.display()
        ))
    };
    if named.is_some() {
        std::fs::create_dir_all(&directory).map_err(failed)?;
    }
    std::fs::canonicalize(&directory).map_err(failed)
}
