//! Names of sockets: paths and abstract names (`unix(7)`).
//!
//! Saved: the name as it was given to bind(2), with the directory that a relative path began at; whether it still leads
//! to the socket, and the mode of its file. A socket whose file was removed or replaced gets its name back where that is free, and
//! the file is removed again; where it is not, it gets another name.
//!
//! Facts: a file stays when its socket is closed, and cannot be bound again until it is removed: one that no socket is bound to
//! is taken for the job's own and replaced. Netlink tells inode and device of the files that sockets are bound to.

use super::super::{CaptureContext, Found, ProcessView, RestoreContext, map_path};
use super::diag::{self, Entry};
use crate::EngineError;
use crate::error::Context;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, getpeername, getsockname,
    socket_with,
};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A saved name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// What follows `sa_family`: a path, or zero and an abstract name.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// Where a relative path begins.
    pub directory: PathBuf,
    /// The mode of its file; `None` where the name does not lead to the socket.
    pub mode: Option<u32>,
}

/// The name of a socket as the kernel gives it, empty where it has none.
pub(super) fn own(socket: BorrowedFd) -> Vec<u8> {
    let address = getsockname(socket).ok();
    address.map_or_else(Vec::new, |address| {
        bytes(SocketAddrUnix::try_from(address).ok())
    })
}

/// The name of what it is connected to.
pub(super) fn of_peer(socket: BorrowedFd) -> Vec<u8> {
    let address = getpeername(socket).ok().flatten();
    address.map_or_else(Vec::new, |address| {
        bytes(SocketAddrUnix::try_from(address).ok())
    })
}

fn bytes(address: Option<SocketAddrUnix>) -> Vec<u8> {
    let Some(address) = address else {
        return Vec::new();
    };
    match (address.path_bytes(), address.abstract_name()) {
        (Some(path), _) => path.to_vec(),
        (None, Some(name)) if !name.is_empty() => [&[0], name].concat(),
        _ => Vec::new(),
    }
}

/// The name in a `sockaddr_un` as recvmsg(2) gives it.
pub(super) fn in_address(address: &[u8]) -> Vec<u8> {
    let name = address.get(size_of::<u16>()..).unwrap_or_default();
    match name.first() {
        None | Some(0) => name.to_vec(),
        Some(_) => name
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec(),
    }
}

impl Name {
    /// What is to be saved of the name of `found`, which is not empty; without an entry, of a name that it is connected to.
    pub(super) fn capture(
        bytes: Vec<u8>,
        found: &Found,
        entry: Option<&Entry>,
        ctx: &CaptureContext,
    ) -> Name {
        let mut name = Name {
            bytes,
            directory: PathBuf::new(),
            mode: None,
        };
        let Some(path) = name.path() else {
            return name;
        };
        let directories = match path.is_absolute() {
            true => vec![PathBuf::new()],
            false => directories(found, ctx),
        };
        for directory in &directories {
            let Ok(data) = fs::symlink_metadata(directory.join(path)) else {
                continue;
            };
            let file = Some((data.ino() as u32, kernel_device(data.dev())));
            if entry.map_or(data.file_type().is_socket(), |entry| entry.file == file) {
                name.mode = Some(data.mode() & 0o7777);
                name.directory = directory.clone();
                return name;
            }
        }
        name.directory = directories.into_iter().next().unwrap_or_default();
        name
    }

    fn path(&self) -> Option<&Path> {
        let is_path = self.bytes.first().is_some_and(|first| *first != 0);
        is_path.then(|| Path::new(OsStr::from_bytes(&self.bytes)))
    }

    /// Whether it is an abstract name that somebody has: such a name goes with the last socket that is bound to it.
    pub(super) fn is_taken_in_the_abstract(&self) -> bool {
        let Some((0, name)) = self.bytes.split_first() else {
            return false;
        };
        let probe = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let (Ok(probe), Ok(address)) = (probe, SocketAddrUnix::new_abstract_name(name)) else {
            return false;
        };
        bind(&probe, &address) == Err(Errno::ADDRINUSE)
    }

    /// Where the file is after a restart; `None` for an abstract name.
    pub(super) fn file(&self, ctx: &RestoreContext) -> Option<PathBuf> {
        Some(map_path(&self.directory.join(self.path()?), ctx.path_map))
    }

    fn address(&self, ctx: &RestoreContext) -> rustix::io::Result<SocketAddrUnix> {
        match self.path() {
            Some(path) if path.is_absolute() => SocketAddrUnix::new(map_path(path, ctx.path_map)),
            Some(path) => SocketAddrUnix::new(path),
            None => SocketAddrUnix::new_abstract_name(self.bytes.get(1..).unwrap_or_default()),
        }
    }

    /// Does what takes a relative name as seen from the directory that it began at.
    pub(super) fn in_its_directory<T>(
        &self,
        ctx: &RestoreContext,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        if self.path().is_none_or(Path::is_absolute) {
            return work();
        }
        let directory = map_path(&self.directory, ctx.path_map);
        let what = || format!("entering {}", directory.display());
        let here = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let here = here.context(what)?;
        rustix::process::chdir(&directory).context(what)?;
        let done = work();
        rustix::process::fchdir(&here).context(what)?;
        done
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.path() {
            Some(path) => write!(f, "{}", self.directory.join(path).display()),
            None => {
                let name = self.bytes.get(1..).unwrap_or_default();
                write!(f, "@{}", String::from_utf8_lossy(name))
            }
        }
    }
}

/// Where a relative name may have begun: the directories of those who hold the socket, then of all others.
fn directories(found: &Found, ctx: &CaptureContext) -> Vec<PathBuf> {
    let holders = found
        .holders
        .iter()
        .filter_map(|(place, _)| ctx.processes.get(*place));
    let directory =
        |process: &ProcessView| fs::read_link(format!("/proc/{}/cwd", process.pid)).ok();
    let mut all: Vec<PathBuf> = Vec::new();
    for directory in holders.chain(ctx.processes).filter_map(directory) {
        if !all.contains(&directory) {
            all.push(directory);
        }
    }
    all
}

/// A device number as the kernel has it inside (`MKDEV`, `linux/kdev_t.h`).
fn kernel_device(device: u64) -> u32 {
    rustix::fs::major(device) << 20 | rustix::fs::minor(device)
}

/// What is at the path of a name.
pub(super) enum There {
    /// Nothing.
    Nothing,
    /// A socket's file that no socket is bound to any more.
    Leftover,
    /// It cannot be bound: why, and what to do.
    Taken(&'static str, &'static str),
}

/// Looks at a path without touching anything.
pub(super) fn look(path: &Path) -> There {
    let data = match fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {
            return match path.parent().is_none_or(Path::is_dir) {
                true => There::Nothing,
                false => There::Taken("its directory is missing", "make it"),
            };
        }
        Err(_) => return There::Taken("it cannot be looked at", "make its directory readable"),
    };
    if !data.file_type().is_socket() {
        return There::Taken("something else has that name now", "move it away");
    }
    let file = Some((data.ino() as u32, kernel_device(data.dev())));
    match diag::all() {
        Ok(sockets) if sockets.values().all(|socket| socket.file != file) => There::Leftover,
        _ => There::Taken("it is in use by a running program", "end that program"),
    }
}

/// What came of giving a socket its name.
#[derive(Default)]
pub(super) struct Bound {
    /// A file to be removed when everybody is connected.
    pub remove: Option<PathBuf>,
    /// What the user should know.
    pub note: Option<String>,
}

/// Gives a socket its name.
pub(super) fn give(
    socket: BorrowedFd,
    name: &Name,
    ctx: &RestoreContext,
) -> Result<Bound, EngineError> {
    let what = || format!("giving a socket its name {name}");
    let taken =
        |why: &str, hint: &str| EngineError::Failed(format!("socket {name}: {why}; {hint}"));
    let file = name.file(ctx);
    if let Some(file) = &file {
        match (look(file), name.mode) {
            (There::Nothing, _) => {}
            (There::Leftover, Some(_)) => fs::remove_file(file).context(what)?,
            (There::Taken(why, hint), Some(_)) => return Err(taken(why, hint)),
            (_, None) => {
                bind_anywhere(socket).context(what)?;
                return Ok(Bound {
                    note: Some(format!(
                        "a socket that was called {name} before another took that name has one of its own now"
                    )),
                    ..Bound::default()
                });
            }
        }
    }
    let address = name.address(ctx).context(what)?;
    name.in_its_directory(ctx, || match bind(socket, &address) {
        Err(Errno::ADDRINUSE) => Err(taken("a running program has that name", "end that program")),
        other => other.context(what),
    })?;
    match (file, name.mode) {
        (Some(file), Some(mode)) => {
            // The umask has taken bits away.
            rustix::fs::chmodat(
                CWD,
                &file,
                Mode::from_raw_mode(mode),
                rustix::fs::AtFlags::empty(),
            )
            .context(what)?;
            Ok(Bound::default())
        }
        (remove, _) => Ok(Bound {
            remove,
            ..Bound::default()
        }),
    }
}

/// Lets the kernel choose an abstract name.
fn bind_anywhere(socket: BorrowedFd) -> rustix::io::Result<()> {
    bind(socket, &SocketAddrUnix::new_unnamed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_addresses() {
        assert_eq!(in_address(b"\x01\x00/run/x\0"), b"/run/x");
        assert_eq!(in_address(b"\x01\x00\0abstract\0"), b"\0abstract\0");
        assert_eq!(in_address(b"\x01\x00"), b"");
        assert_eq!(in_address(b""), b"");
    }
}
