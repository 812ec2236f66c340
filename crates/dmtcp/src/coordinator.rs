//! `dmtcp_coordinator`: the coordinator of a computation, in the foreground or in the background.
//!
//! It listens on this host only, and obeys its own user only. Programs do not depend on it: when it ends or is killed, they
//! run on.

mod console;

use crate::options::{self, count, has, option, text, variable};
use crate::script::Script;
use crate::{Failure, connection, daemon, output};
use clap::{Arg, ArgAction, ArgMatches, Command};
use rustix::process::Signal;
use stasis_coordinator::DEFAULT_PORT;
use stasis_coordinator::machine::{self, Machine, Set};
use stasis_coordinator::protocol::Ask;
use stasis_coordinator::server::{Handle, Observer, Server};
use stasis_sys::descriptor;
use stasis_sys::signal::{self, SignalSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// For how long a coordinator without programs stays.
const STALE: u64 = 8 * 3600;
/// The command line was not understood, or the coordinator could not be started.
const FAILED: u8 = 1;

/// The command line.
#[must_use]
pub fn parser() -> Command {
    options::common(
        Command::new("dmtcp_coordinator")
            .about("Coordinates programs that are saved together")
            .long_about(
                "Waits for programs that dmtcp_launch and dmtcp_restart start, and saves all of them at one instant: every \
                 SECONDS, or when dmtcp_command asks. It listens on this host, and obeys its own user only. When it is \
                 killed, the programs run on, and join the next coordinator at the same port.",
            ),
    )
    .mut_arg("help", |help| help.short('h'))
    .arg(
        option("coord-port", "PORT", "Port (or DMTCP_COORD_PORT; default: 7779); 0: any that is free")
            .short('p')
            .visible_alias("port"),
    )
    .arg(option("port-file", "FILE", "Write the port into FILE, which is removed at the end"))
    .arg(option("status-file", "FILE", "Write into FILE where the coordinator is and when it has ended"))
    .arg(
        option("ckptdir", "DIR", "Directory of the restart script (or DMTCP_CHECKPOINT_DIR; default: this one)")
            .short('c'),
    )
    .arg(option("tmpdir", "DIR", "Accepted: nothing is put there").short('t'))
    .arg(options::flag("exit-on-last", "End when the last program has left"))
    .arg(
        options::flag("kill-after-ckpt", "End the programs in the instant that is saved")
            .visible_alias("exit-after-ckpt"),
    )
    .arg(option("timeout", "SECONDS", "End after SECONDS, whatever happens (the programs run on)"))
    .arg(option("stale-timeout", "SECONDS", "End after SECONDS without a program (default: 28800)"))
    .arg(options::flag("daemon", "Run in the background"))
    .arg(
        option("interval", "SECONDS", "Take a checkpoint every SECONDS, 0: never (or DMTCP_CHECKPOINT_INTERVAL)")
            .short('i'),
    )
    .arg(option("coord-logfile", "FILE", "Write what is said into FILE (or DMTCP_COORD_LOG_FILENAME)"))
    .arg(options::flag("write-kv-data", "Accepted: there is no such data"))
    .arg(
        Arg::new(daemon::SERVE_INPUT)
            .long(daemon::SERVE_INPUT)
            .action(ArgAction::SetTrue)
            .hide(true),
    )
    .arg(
        Arg::new("rest")
            .value_name("PORT | COMMAND")
            .help("The port; or a dmtcp_launch or dmtcp_restart command, which is run with this coordinator")
            .value_parser(clap::value_parser!(OsString))
            .action(ArgAction::Append)
            .num_args(0..)
            .trailing_var_arg(true)
            .allow_hyphen_values(true),
    )
}

fn fail(error: impl std::fmt::Display) -> Failure {
    Failure {
        code: FAILED,
        message: error.to_string(),
    }
}

/// What a coordinator is started with.
struct Plan {
    port: u16,
    interval: u64,
    options: machine::Options,
    port_file: Option<PathBuf>,
    status_file: Option<PathBuf>,
    directory: PathBuf,
    log: Option<String>,
    quiet: bool,
    /// A command to be run with it.
    then: Vec<OsString>,
}

fn plan(matches: &ArgMatches) -> Result<Plan, Failure> {
    let mut rest: Vec<OsString> = matches
        .get_many::<OsString>("rest")
        .map(|words| words.cloned().collect())
        .unwrap_or_default();
    let mut port = text(matches, "coord-port");
    if let Some(first) = rest.first().and_then(|word| word.to_str())
        && first.bytes().all(|byte| byte.is_ascii_digit())
    {
        port = Some(first.to_owned());
        rest.remove(0);
    }
    if let Some(first) = rest.first() {
        let name = Path::new(first)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let known = [
            "dmtcp_launch",
            "dmtcp_checkpoint",
            "dmtcp_restart",
            "dmtcp_relaunch",
        ];
        if !known.contains(&&*name) {
            return Err(fail(format!(
                "{} is not understood; see --help",
                first.to_string_lossy()
            )));
        }
    }
    let seconds = |name: &str| -> Result<Option<u64>, Failure> {
        let said = text(matches, name);
        said.map(|text| {
            let number = text.trim().parse();
            number.map_err(|_| fail(format!("--{name}: {text:?} is no number of seconds")))
        })
        .transpose()
    };
    let interval = options::interval(matches)
        .map_err(|failure| fail(failure.message))?
        .unwrap_or(0);
    // After a move to another directory, relative names would mean something else.
    let absolute = |name: &str| text(matches, name).map(std::path::absolute).transpose();
    let named = text(matches, "ckptdir").or_else(|| variable("DMTCP_CHECKPOINT_DIR"));
    Ok(Plan {
        port: connection::port(port)
            .map_err(fail)?
            .unwrap_or(DEFAULT_PORT),
        interval,
        options: machine::Options {
            interval,
            stop_after_checkpoint: has(matches, "kill-after-ckpt"),
            exit_on_last: has(matches, "exit-on-last"),
            lifetime: seconds("timeout")?
                .filter(|n| *n > 0)
                .map(Duration::from_secs),
            idle: Some(Duration::from_secs(
                seconds("stale-timeout")?.unwrap_or(STALE),
            )),
        },
        port_file: absolute("port-file").map_err(fail)?,
        status_file: absolute("status-file").map_err(fail)?,
        directory: std::path::absolute(named.unwrap_or_else(|| ".".into())).map_err(fail)?,
        log: text(matches, "coord-logfile").or_else(|| variable("DMTCP_COORD_LOG_FILENAME")),
        quiet: count(matches, "quiet") > 0,
        then: rest,
    })
}

/// Carries it out.
///
/// # Errors
/// What is to be said, with the exit status.
pub fn run(words: Vec<OsString>) -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = words
        .iter()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let matches = options::parse(parser(), words, FAILED)?;
    if has(&matches, "write-kv-data") {
        output::remark("--write-kv-data is not needed: there is no such data");
    }
    let plan = plan(&matches)?;
    let handed_over = matches.get_flag(daemon::SERVE_INPUT);
    let background = has(&matches, "daemon");
    if handed_over && background {
        // Between whoever has bound the socket and the coordinator.
        let arguments: Vec<String> = arguments
            .into_iter()
            .filter(|word| word != "--daemon" && *word != format!("--{}", daemon::SERVE_INPUT))
            .collect();
        return daemon::start_second(&arguments, plan.log.as_deref())
            .map(|()| ExitCode::SUCCESS)
            .map_err(fail);
    }
    connection::secret().map_err(fail)?;
    let listener = if handed_over {
        // Signals of the terminal are for those in front.
        let _ = rustix::process::setsid();
        descriptor::close_inherited();
        TcpListener::from(rustix::io::dup(rustix::stdio::stdin()).map_err(fail)?)
    } else {
        bind(plan.port)?
    };
    let port = listener.local_addr().map_err(fail)?.port();
    if let Some(file) = &plan.port_file {
        connection::write_port_file(&file.to_string_lossy(), port)
            .map_err(|error| fail(format!("writing the port to {}: {error}", file.display())))?;
    }
    if background || !plan.then.is_empty() {
        let arguments = without(&arguments, plan.then.len());
        daemon::start(listener, &arguments).map_err(fail)?;
        if !plan.quiet {
            banner(&plan, port);
        }
        return and_then(&plan.then, port);
    }
    serve(&plan, listener, port, handed_over)
}

/// The arguments for the copy in the background: without the last `then`, which are a command, and without the port, which is
/// bound already.
fn without(arguments: &[String], then: usize) -> Vec<String> {
    let own = &arguments[..arguments.len() - then];
    own.iter()
        .filter(|word| *word != "--daemon")
        .cloned()
        .collect()
}

fn bind(port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind(("127.0.0.1", port)).map_err(|error| {
        fail(format!(
            "a coordinator cannot listen at port {port}: {error}; is one running already? Choose another port with -p, or 0 for any"
        ))
    })
}

/// Runs the launch or restart that stands behind the coordinator's own options, as whoever writes both in one line means it.
fn and_then(then: &[OsString], port: u16) -> Result<ExitCode, Failure> {
    use std::os::unix::process::CommandExt;
    let Some((command, arguments)) = then.split_first() else {
        return Ok(ExitCode::SUCCESS);
    };
    let error = std::process::Command::new(command)
        .args(arguments)
        .env("DMTCP_COORD_HOST", "localhost")
        .env("DMTCP_COORD_PORT", port.to_string())
        .exec();
    Err(fail(format!(
        "starting {}: {error}",
        command.to_string_lossy()
    )))
}

fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn checkpoint_interval(seconds: u64) -> String {
    match seconds {
        0 => "disabled (checkpoint manually instead)".into(),
        seconds => seconds.to_string(),
    }
}

fn banner(plan: &Plan, port: u16) {
    let _ = writeln!(
        io::stderr(),
        "dmtcp_coordinator starting...\n    Host: {} (127.0.0.1)\n    Port: {port}\n    Checkpoint Interval: {}\n    \
         Exit on last client: {}\n    Obeys user {} only",
        host(),
        checkpoint_interval(plan.interval),
        u8::from(plan.options.exit_on_last),
        rustix::process::geteuid(),
    );
}

/// An id that no other computation has: the host, the process and the time.
fn new_computation() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let bytes = format!("{} {} {}", host(), std::process::id(), now.as_nanos());
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in bytes.bytes() {
        sum = (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{sum:016x}")
}

/// Writes the restart script.
struct Scribe {
    directory: PathBuf,
    port: u16,
    restart: PathBuf,
}

impl Observer for Scribe {
    fn committed(&mut self, set: &Set) {
        let script = Script {
            set,
            port: self.port,
            restart: &self.restart,
        };
        for directory in script.directories(&self.directory) {
            if let Err(error) = script.write(&directory) {
                output::warning(&format!(
                    "the restart script in {}: {error}",
                    directory.display()
                ));
            }
        }
    }
}

fn serve(
    plan: &Plan,
    listener: TcpListener,
    port: u16,
    background: bool,
) -> Result<ExitCode, Failure> {
    let secret = connection::secret().map_err(fail)?;
    let stops = SignalSet::EMPTY
        .with(Signal::INT.as_raw())
        .with(Signal::TERM.as_raw());
    // Before there are threads, which inherit it.
    let _ = signal::set_mask(stops);
    let machine = Machine::new(plan.options, new_computation, Instant::now());
    let server = Server::new(listener, secret, machine).map_err(fail)?;
    let status = plan
        .status_file
        .as_ref()
        .map(|path| StatusFile::begin(path, plan, port));
    let handle = server.handle();
    watch_signals(stops, handle.clone()).map_err(fail)?;
    if !background {
        if !plan.quiet {
            banner(plan, port);
        }
        console::start(handle, port, plan.quiet).map_err(fail)?;
    }
    let mut scribe = Scribe {
        directory: plan.directory.clone(),
        port,
        restart: std::env::current_exe()
            .map_err(fail)?
            .with_file_name("dmtcp_restart"),
    };
    server.serve(&mut scribe);
    if let Some(file) = &plan.port_file {
        // Whoever has removed it already has done the same.
        let _ = fs::remove_file(file);
    }
    if let Some(Ok(status)) = status {
        status.end();
    }
    if !background && io::stdin().is_terminal() {
        output::remark("the coordinator has ended");
    }
    Ok(ExitCode::SUCCESS)
}

/// SIGINT ends the programs and the coordinator, SIGTERM the coordinator.
fn watch_signals(stops: SignalSet, handle: Handle) -> io::Result<()> {
    let watching = move || {
        loop {
            match signal::wait(stops, None) {
                Ok(received) if received.signal == Signal::INT.as_raw() => {
                    // The reply says no more than the end of the process will.
                    let _ = handle.ask(Ask::Quit);
                }
                Ok(_) => handle.end(),
                Err(_) => {}
            }
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(watching)
        .map(drop)
}

/// The file that `--status-file` names.
struct StatusFile(File);

impl StatusFile {
    fn begin(path: &Path, plan: &Plan, port: u16) -> io::Result<StatusFile> {
        let mut file = File::create(path)?;
        writeln!(
            file,
            "Coordinator started: {}\nStatus...\nHost: {}\nPort: {port}\nCheckpoint Interval: {}",
            now(),
            host(),
            checkpoint_interval(plan.interval),
        )?;
        Ok(StatusFile(file))
    }
    fn end(mut self) {
        let _ = writeln!(self.0, "Coordinator exited: {}", now());
    }
}

fn now() -> String {
    jiff::Zoned::now()
        .strftime("%a %b %e %H:%M:%S %Y")
        .to_string()
}
