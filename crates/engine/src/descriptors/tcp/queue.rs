//! What waits in a connection to be read: looking at it, keeping it, and putting it into a new connection.

use super::super::{CaptureContext, Opening};
use super::Bytes;
use super::pull::{self, Ends};
use crate::EngineError;
use crate::error::Context;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use stasis_sys::socket;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const SO_PEEK_OFF: i32 = 42;
/// Up to so many bytes are kept with the description.
const SMALL: usize = 4 << 10;

/// A copy of all of it. It is not touched.
pub(super) fn peek(socket: BorrowedFd) -> io::Result<Vec<u8>> {
    let held = rustix::io::ioctl_fionread(socket)? as usize;
    if held == 0 {
        // A look that finds nothing would take a pending error away.
        return Ok(Vec::new());
    }
    // Linux 6.9 and newer: where the program's own looks begin.
    let offset = socket::option(socket, SO_PEEK_OFF).unwrap_or(-1);
    if offset >= 0 {
        socket::set_option(socket, SO_PEEK_OFF, -1)?;
    }
    let mut bytes = vec![0; held];
    let looked = recv(
        socket,
        &mut bytes[..],
        RecvFlags::PEEK | RecvFlags::DONTWAIT,
    );
    if offset >= 0 {
        socket::set_option(socket, SO_PEEK_OFF, offset)?;
    }
    let (len, _) = looked?;
    match len == held {
        true => Ok(bytes),
        false => Err(io::Error::other(format!("{len} of {held} bytes are there"))),
    }
}

/// Keeps them in the image.
pub(super) fn keep(bytes: Vec<u8>, ctx: &CaptureContext) -> Result<Bytes, EngineError> {
    if bytes.len() <= SMALL {
        return Ok(Bytes::Here(bytes));
    }
    let what = || "keeping what waits in a connection".to_owned();
    let file = rustix::fs::memfd_create("stasis", MemfdFlags::CLOEXEC).context(what)?;
    let mut file = File::from(file);
    file.write_all(&bytes).context(what)?;
    let len = bytes.len() as u64;
    Ok(Bytes::Stored(ctx.store(&file, len)?, len))
}

/// They, from the image.
fn load(bytes: &Bytes, opening: &Opening) -> Result<Vec<u8>, EngineError> {
    let (content, len) = match bytes {
        Bytes::Here(bytes) => return Ok(bytes.clone()),
        Bytes::Stored(content, len) => (*content, *len),
    };
    let what = || "reading what waits in a connection".to_owned();
    let file = rustix::fs::memfd_create("stasis", MemfdFlags::CLOEXEC).context(what)?;
    let file = File::from(file);
    file.set_len(len).context(what)?;
    opening.context.contents.load_into(content, &file)?;
    let mut loaded = vec![
        0;
        usize::try_from(len)
            .map_err(io::Error::other)
            .context(what)?
    ];
    file.read_exact_at(&mut loaded, 0).context(what)?;
    Ok(loaded)
}

/// For how long nothing may move before it is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends them from one end of a new connection to the other.
pub(super) fn fill(
    bytes: &Bytes,
    from: BorrowedFd,
    to: BorrowedFd,
    opening: &Opening,
) -> Result<(), EngineError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let what = || format!("putting {} bytes back into a connection", bytes.len());
    let loaded = load(bytes, opening)?;
    let ends = Ends {
        sender: from,
        receiver: to,
    };
    let nodelay = pull::push(from).context(what)?;
    let mut tries = 0;
    pull::widen(to, loaded.len(), tries).context(what)?;
    let mut rest = &loaded[..];
    let mut moved = Instant::now();
    while !rest.is_empty() {
        match send(from, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => {
                rest = rest.get(sent..).unwrap_or_default();
                moved = Instant::now();
            }
            Err(Errno::AGAIN) if moved.elapsed() < PATIENCE => {
                tries += 1;
                pull::widen(to, loaded.len(), tries).context(what)?;
                ends.nudge().context(what)?;
            }
            Err(Errno::AGAIN) => {
                return Err(EngineError::Failed(format!(
                    "{}: this kernel keeps less for a connection than the one of the checkpoint (/proc/sys/net/ipv4/tcp_rmem, tcp_wmem)",
                    what()
                )));
            }
            other => drop(other.context(what)?),
        }
    }
    let held = || rustix::io::ioctl_fionread(to).context(what);
    let began = Instant::now();
    while (held()? as usize) < loaded.len() && began.elapsed() < PATIENCE {
        tries += 1;
        pull::widen(to, loaded.len(), tries).context(what)?;
        ends.nudge().context(what)?;
    }
    pull::unpush(from.as_fd(), nodelay).context(what)
}
