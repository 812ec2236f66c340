//! Making sockets again.

use super::super::{Description, DescriptionId, Kind as Any, Opened, Opening, set_status};
use super::{Message, Peer, State, options, queue};
use crate::EngineError;
use crate::error::Context;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, shutdown, socket_with, socketpair};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Ends that were made with another, until their turn comes.
#[derive(Debug, Default)]
pub(in super::super) struct Making {
    /// The end for a description that is still to be opened.
    ends: HashMap<DescriptionId, OwnedFd>,
    /// The peers of those whose peer was closed, to be closed when the queues are full.
    closing: HashMap<DescriptionId, OwnedFd>,
}

/// Makes a socket, or takes the end that was made with its peer. What is in it follows in [`fill_all`].
pub(in super::super) fn restore(
    state: &State,
    id: DescriptionId,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    let fd = match state.peer {
        Peer::None => {
            let flags = SocketFlags::CLOEXEC;
            socket_with(AddressFamily::UNIX, state.kind.raw(), flags, None)
                .context(|| "making a socket".into())?
        }
        Peer::Closed => {
            let (fd, other) = pair(state, opening)?;
            opening.sockets.closing.insert(id, other);
            fd
        }
        Peer::Socket(other) => match opening.sockets.ends.remove(&id) {
            Some(fd) => fd,
            None => {
                let (fd, end) = pair(state, opening)?;
                opening.sockets.ends.insert(other, end);
                fd
            }
        },
    };
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

fn pair(state: &State, opening: &Opening) -> Result<(OwnedFd, OwnedFd), EngineError> {
    let flags = SocketFlags::CLOEXEC;
    let (fd, other) = socketpair(AddressFamily::UNIX, state.kind.raw(), flags, None)
        .context(|| "making a pair of sockets".into())?;
    Ok((opening.place(fd)?, opening.place(other)?))
}

/// Puts the messages into every queue, shuts down what was, and sets the options. Every description is open. Returns
/// what the user should know.
pub(in super::super) fn fill_all(
    descriptions: &[Description],
    mut making: Making,
    opened: &Opened,
) -> Result<Vec<String>, EngineError> {
    let sockets: Vec<(DescriptionId, &State, BorrowedFd)> = descriptions
        .iter()
        .enumerate()
        .filter_map(|(index, description)| {
            let id = DescriptionId(index as u32);
            match &description.kind {
                Any::UnixSocket(state) => Some((id, state, opened.fd(id)?)),
                _ => None,
            }
        })
        .collect();
    for (id, state, _) in &sockets {
        let sender = match state.peer {
            Peer::Socket(other) => opened.fd(other),
            Peer::Closed => making.closing.get(id).map(AsFd::as_fd),
            Peer::None => None,
        };
        match sender {
            Some(sender) if !state.queue.is_empty() => fill(state, sender, opened)?,
            None if !state.queue.is_empty() => return Err(broken()),
            _ => {}
        }
    }
    let mut notes = Vec::new();
    for (id, state, fd) in &sockets {
        if state.reset {
            // Who closes a socket with something left in it resets the other side.
            queue::send(*fd, state.kind, &[0], &[])?;
        }
        drop(making.closing.remove(id));
        let how = match (state.read_shut, state.write_shut) {
            (true, true) => Some(Shutdown::Both),
            (true, false) => Some(Shutdown::Read),
            (false, true) => Some(Shutdown::Write),
            (false, false) => None,
        };
        if let (Some(how), true) = (how, state.peer != Peer::Closed) {
            shutdown(fd, how).context(|| "shutting a socket down".into())?;
        }
        notes.extend(options::restore(&state.options, *fd)?);
    }
    Ok(notes)
}

fn fill(state: &State, sender: BorrowedFd, opened: &Opened) -> Result<(), EngineError> {
    queue::prepare(sender);
    for Message { bytes, rights } in &state.queue {
        let rights: Option<Vec<BorrowedFd>> = rights.iter().map(|id| opened.fd(*id)).collect();
        queue::send(sender, state.kind, bytes, &rights.ok_or_else(broken)?)?;
    }
    Ok(())
}

fn broken() -> EngineError {
    EngineError::Failed("a socket of the image holds what could not be made".into())
}
