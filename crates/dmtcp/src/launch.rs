//! `dmtcp_launch`: starts a program as a member of a computation, and holds it.

use crate::connection::{self, Starting};
use crate::hold::{self, Held, Job};
use crate::options::{self, text};
use crate::{Failure, names, output};
use clap::{Arg, ArgAction, ArgMatches, Command};
use stasis_coordinator::protocol::Join;
use stasis_supervisor::Start;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The command line.
#[must_use]
pub fn parser() -> Command {
    let command = Command::new("dmtcp_launch")
        .about("Starts a program so that it can be saved, under a coordinator")
        .long_about(
            "Starts COMMAND so that it and all its children can be saved. All programs with one coordinator are one \
             computation: they are saved at one instant, and listed, ended and continued together. The exit status is \
             COMMAND's own; 85 when it was saved and stopped on request, 99 (DMTCP_FAIL_RC) when it could not be started.",
        );
    options::of_jobs(command).arg(
        Arg::new("command")
            .value_name("COMMAND")
            .help("The program and its arguments")
            .value_parser(clap::value_parser!(OsString))
            .action(ArgAction::Append)
            .num_args(0..)
            .trailing_var_arg(true)
            .allow_hyphen_values(true),
    )
}

/// Carries it out.
///
/// # Errors
/// What is to be said, with the exit status.
pub fn run(words: Vec<OsString>) -> Result<ExitCode, Failure> {
    let usage = options::failure_status();
    if words.len() == 1 {
        return Err(Failure {
            code: usage,
            message: format!(
                "{}; say which program to start, or --help",
                options::version("dmtcp_launch")
            ),
        });
    }
    let matches = options::parse(parser(), words, usage)?;
    options::tell_unneeded(&matches, options::OF_JOBS);
    let command: Vec<OsString> = matches
        .get_many::<OsString>("command")
        .map(|words| words.cloned().collect())
        .unwrap_or_default();
    let Some(program) = command.first() else {
        return Err(Failure::own("say which program to start, or --help"));
    };
    tell_of_privileges(program);
    launch(&matches, command.clone(), &names::program(program))
}

fn launch(
    matches: &ArgMatches,
    command: Vec<OsString>,
    program: &str,
) -> Result<ExitCode, Failure> {
    let directory = options::directory(matches, Path::new("."))?;
    let interval = options::interval(matches)?;
    let join = Join {
        program: program.to_owned(),
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        name: None,
        computation: None,
        interval,
        running: None,
    };
    let membership = connection::join(&Starting { matches, interval }, &join)?;
    if let Some(file) = text(matches, "port-file") {
        connection::write_port_file(&file, membership.address().port)
            .map_err(|error| Failure::own(format!("writing the port to {file}: {error}")))?;
    }
    let joined = membership.joined();
    let name = names::job(program, &joined.computation, joined.number).map_err(Failure::own)?;
    let (lock, name) = hold::claim(&directory, &name)?;
    let job = Job {
        name,
        directory,
        command: command
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        sequence: joined.generation,
        membership,
    };
    let settings = hold::settings(job, matches);
    hold::attend(Start::Launch(command), &settings, lock).map(Held::pass_on)
}

/// A program that gets another user's rights may not be traced: better said before it runs.
fn tell_of_privileges(program: &OsString) {
    use std::os::unix::fs::MetadataExt;
    const SET_ID: u32 = 0o6000;
    let paths: Vec<std::path::PathBuf> = if Path::new(program).components().count() > 1 {
        vec![program.into()]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join(program))
            .collect()
    };
    let found = paths
        .iter()
        .find_map(|path| std::fs::metadata(path).ok().map(|data| (path, data)));
    if let Some((path, data)) = found
        && data.is_file()
        && data.mode() & SET_ID != 0
        && !rustix::process::geteuid().is_root()
    {
        output::warning(&format!(
            "{} runs with the rights of another user or group (set-id): it may not be traced, so checkpoints will be refused",
            path.display()
        ));
    }
}
