//! A coordinator in the background.
//!
//! Its socket is bound by whoever starts it, and handed over as its standard input: nobody who connects afterwards comes too
//! early. It is a grandchild: whoever starts it has no child to look after.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The hidden options: serve the socket that is standard input; go into the background first.
pub(crate) const SERVE_INPUT: &str = "serve-standard-input";

/// The command `dmtcp_coordinator`: the one beside this one.
fn command() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.with_file_name("dmtcp_coordinator");
    if beside.is_file() {
        Ok(beside)
    } else {
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "there is no {}: install the commands into one directory",
                beside.display()
            ),
        ))
    }
}

/// Starts a coordinator that serves on `listener`, with further arguments, and returns when it is on its way.
pub(crate) fn start(listener: TcpListener, arguments: &[String]) -> io::Result<()> {
    let mut intermediate = Command::new(command()?)
        .arg(format!("--{SERVE_INPUT}"))
        .arg("--daemon")
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .spawn()?;
    let status = intermediate.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "dmtcp_coordinator ended with {status}"
        )))
    }
}

/// The same in the intermediate process: its standard input is the socket already.
pub(crate) fn start_second(arguments: &[String], log: Option<&str>) -> io::Result<()> {
    let listener = rustix::io::dup(rustix::stdio::stdin())?;
    let (output, errors) = match log {
        Some(path) => {
            let file = File::options().create(true).append(true).open(path)?;
            (Stdio::from(file.try_clone()?), Stdio::from(file))
        }
        None => (Stdio::null(), Stdio::null()),
    };
    Command::new(command()?)
        .arg(format!("--{SERVE_INPUT}"))
        .args(arguments)
        .stdin(Stdio::from(listener))
        .stdout(output)
        .stderr(errors)
        .spawn()
        .map(drop)
}
