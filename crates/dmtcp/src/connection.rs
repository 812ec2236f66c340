//! Finding the coordinator that a command means, and starting one where there is none.

use crate::options::{has, text, variable};
use crate::{Failure, daemon, output};
use clap::ArgMatches;
use stasis_coordinator::link::Address;
use stasis_coordinator::protocol::Join;
use stasis_coordinator::secret::Secret;
use stasis_coordinator::{DEFAULT_PORT, Error, Keys};
use stasis_supervisor::{Membership, runtime_dir};
use std::io;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

/// How often a coordinator that somebody else is just starting is asked.
const ATTEMPTS: u32 = 50;

/// Where a coordinator is said to be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub address: Address,
    /// The port was said.
    pub explicit: bool,
}

/// The secrets of this user.
pub(crate) fn keys() -> Keys {
    let private = |directory: &std::path::PathBuf| runtime_dir::check(directory).is_ok();
    Keys::in_directories(
        runtime_dir::candidates()
            .into_iter()
            .filter(private)
            .collect(),
    )
}

/// The secret for a new coordinator.
pub(crate) fn secret() -> Result<Secret, String> {
    let directory = runtime_dir::for_supervisor().map_err(|error| error.to_string())?;
    Secret::of_directory(&directory).map_err(|error| error.to_string())
}

/// The port that was said.
pub(crate) fn port(said: Option<String>) -> Result<Option<u16>, String> {
    let said = said
        .or_else(|| variable("DMTCP_COORD_PORT"))
        .or_else(|| variable("DMTCP_PORT"));
    said.map(|text| {
        text.trim()
            .parse()
            .map_err(|_| format!("{text:?} is not a port: write a number from 0 to 65535"))
    })
    .transpose()
}

/// Where the options, the environment or the defaults say that the coordinator is.
pub(crate) fn wanted(host: Option<String>, port: Option<u16>) -> Wanted {
    let host = host
        .or_else(|| variable("DMTCP_COORD_HOST"))
        .or_else(|| variable("DMTCP_HOST"))
        .unwrap_or_else(|| "localhost".into());
    Wanted {
        address: Address {
            host,
            port: port.unwrap_or(DEFAULT_PORT),
            keys: keys(),
        },
        explicit: port.is_some(),
    }
}

fn is_this_host(host: &str) -> bool {
    let own = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    ["localhost", "127.0.0.1", "::1", own.as_str()].contains(&host)
}

/// What a coordinator is started with where there is none.
pub(crate) struct Starting<'a> {
    pub matches: &'a ArgMatches,
    pub interval: Option<u64>,
}

/// Joins the coordinator that the options mean, or starts one. The first of several that belong together.
pub(crate) fn join(starting: &Starting<'_>, join: &Join) -> Result<Membership, Failure> {
    let matches = starting.matches;
    let port = port(text(matches, "coord-port")).map_err(Failure::own)?;
    let mut wanted = wanted(text(matches, "coord-host"), port);
    let local = is_this_host(&wanted.address.host);
    let must_join = has(matches, "join-coordinator");
    let new = has(matches, "new-coordinator") && !must_join || port == Some(0);
    if new && !local {
        return Err(Failure::own(format!(
            "a coordinator can be started on this host only, not on {}: start it there, and join it",
            wanted.address.host
        )));
    }
    if new {
        let port = port.unwrap_or(0);
        start(&mut wanted, port, starting).map_err(|error| cannot_listen(port, &error))?;
        return Membership::join(&wanted.address, join.clone()).map_err(Failure::own);
    }
    for attempt in 1.. {
        match Membership::join(&wanted.address, join.clone()) {
            Ok(membership) => return Ok(membership),
            Err(Error::NotFound(_)) if local && !must_join => {
                let port = wanted.address.port;
                match start(&mut wanted, port, starting) {
                    Ok(()) => {}
                    // Somebody else is quicker.
                    Err(error)
                        if error.kind() == io::ErrorKind::AddrInUse && attempt < ATTEMPTS =>
                    {
                        thread::sleep(Duration::from_millis(100));
                    }
                    Err(error) => return Err(cannot_listen(port, &error)),
                }
            }
            Err(Error::Stranger { reason, .. }) if local && !must_join && !wanted.explicit => {
                let taken = wanted.address.port;
                start(&mut wanted, 0, starting).map_err(|error| cannot_listen(0, &error))?;
                wanted.explicit = true;
                output::warning(&format!(
                    "port {taken} is somebody else's ({reason}): the coordinator of this program is at port {}; say so to \
                     dmtcp_command with -p {} or DMTCP_COORD_PORT",
                    wanted.address.port, wanted.address.port
                ));
            }
            Err(error) => return Err(Failure::own(error)),
        }
    }
    unreachable!("the loop above returns")
}

fn cannot_listen(port: u16, error: &io::Error) -> Failure {
    Failure::own(format!(
        "a coordinator cannot be started at port {port}: {error}; choose another with -p, or 0 for any"
    ))
}

/// Starts a coordinator in the background.
fn start(wanted: &mut Wanted, port: u16, starting: &Starting<'_>) -> io::Result<()> {
    secret().map_err(io::Error::other)?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    wanted.address.port = listener.local_addr()?.port();
    wanted.address.host = "localhost".into();
    wanted.address.keys = keys();
    let mut arguments = vec!["--quiet".to_owned(), "--exit-on-last".to_owned()];
    if let Some(interval) = starting.interval {
        arguments.extend(["--interval".to_owned(), interval.to_string()]);
    }
    if let Some(file) = text(starting.matches, "coord-logfile") {
        arguments.extend(["--coord-logfile".to_owned(), file]);
    }
    daemon::start(listener, &arguments)
}

/// Writes the port into the file that `--port-file` names.
pub(crate) fn write_port_file(file: &str, port: u16) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    // A reader who finds it finds all of it.
    let unnamed = format!("{file}.{}", std::process::id());
    let _ = std::fs::remove_file(&unnamed);
    let written = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unnamed)
        .and_then(|mut new| write!(new, "{port}"))
        .and_then(|()| std::fs::rename(&unnamed, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&unnamed);
    }
    written
}
