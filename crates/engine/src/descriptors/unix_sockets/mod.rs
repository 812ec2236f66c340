//! Unix sockets (`unix(7)`).
//!
//! Saved: pairs of stream, datagram and packet sockets, with both ends held by processes of the job or on their way in
//! a message, or with one end closed; sockets that are not connected yet; what waits in them to be read, with the boundaries of
//! messages and the descriptors sent along (`SCM_RIGHTS`), which may be sockets with such messages themselves; directions that
//! are shut down; a reset that the program has not seen; options, status flags, owner of signals. Not saved, and refused by name:
//! sockets with a name, connected to a process outside of the job, listening or not accepted yet; messages with
//! credentials; urgent data; filters. `SO_PEERCRED` gives the restarting process afterwards.
//!
//! Facts: a socket has one open file description, as it cannot be opened through `/proc`. Who is connected to whom only
//! netlink tells ([`diag`]): it is how a socket whose peer was closed (peer 0) is told from one that was never connected. What
//! belongs to a closed peer is left in the queue; closing with something unread resets the other side (`ECONNRESET`), which poll
//! shows and `SO_ERROR` would consume (`unix_release_sock`, `net/unix/af_unix.c`).

mod diag;
mod options;
mod queue;
mod restore;
mod sight;

pub(super) use restore::{Making, fill_all, restore};
pub(super) use sight::{Sockets, carrier};

use super::capture::Survey;
use super::stdio;
use super::{Description, DescriptionId, Found, Obstacle};
use crate::Refusal;
use crate::error::Context;
use diag::LISTENING;
use options::{Options, SO_PASSCRED, SO_PASSPIDFD};
use rustix::event::PollFlags;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getsockname};
use serde::{Deserialize, Serialize};
use stasis_sys::socket;
use std::os::fd::{AsFd, BorrowedFd};

/// A saved socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Stream, datagram or packet socket.
    pub kind: Kind,
    /// Status flags.
    pub flags: u32,
    /// What it is connected to.
    pub peer: Peer,
    /// What waits to be read, oldest first.
    pub queue: Vec<Message>,
    /// Reading is shut down (`shutdown(2)`).
    pub read_shut: bool,
    /// Writing is shut down.
    pub write_shut: bool,
    /// The next call fails with `ECONNRESET`.
    pub reset: bool,
    /// Its options.
    pub options: Options,
}

/// The type of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `SOCK_STREAM`.
    Stream,
    /// `SOCK_DGRAM`.
    Datagram,
    /// `SOCK_SEQPACKET`.
    Packets,
}

impl Kind {
    fn of(kind: SocketType) -> Option<Kind> {
        match kind {
            SocketType::STREAM => Some(Kind::Stream),
            SocketType::DGRAM => Some(Kind::Datagram),
            SocketType::SEQPACKET => Some(Kind::Packets),
            _ => None,
        }
    }

    fn raw(self) -> SocketType {
        match self {
            Kind::Stream => SocketType::STREAM,
            Kind::Datagram => SocketType::DGRAM,
            Kind::Packets => SocketType::SEQPACKET,
        }
    }
}

/// What a socket is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// Nothing.
    None,
    /// A socket that was closed.
    Closed,
    /// A socket of the job.
    Socket(DescriptionId),
}

/// What one send has put into a queue; on a stream, what several have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// The descriptors sent along.
    pub rights: Vec<DescriptionId>,
}

/// Its kind, where it is a Unix socket of a kind that can be saved.
fn kind_of(socket: BorrowedFd) -> Option<Kind> {
    if socket_domain(socket).ok()? != AddressFamily::UNIX {
        return None;
    }
    Kind::of(socket_type(socket).ok()?)
}

/// Captures one; `None` for a socket of another family.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<Option<State>, Obstacle> {
    let socket = found.duplicate()?;
    let socket = socket.as_fd();
    let Some(kind) = kind_of(socket) else {
        return Ok(None);
    };
    let named = |socket| getsockname(socket).is_ok_and(|address| address.addr_len() > 2);
    let entry = whole.sockets.entry(found);
    let entry = entry.ok_or_else(|| found.refuse("the kernel does not tell its peer", ""))?;
    if entry.state == LISTENING || named(socket) {
        return Err(super::unsupported::refuse(found));
    }
    let peer = peer(whole, found, entry)?;
    let marks = queue::events(socket).context(|| format!("looking at {found}"))?;
    let refuse = |reason: &str| {
        let hint = "try again when the program has read what was sent to it";
        Err(found.refuse(reason, hint))
    };
    if marks.contains(PollFlags::PRI) {
        return refuse("is a socket with urgent data, which cannot be saved yet");
    }
    if socket::has_filter(socket).unwrap_or(true) {
        let hint = "let the program close it before the checkpoint";
        return Err(found.refuse("is a socket with a filter, which cannot be saved", hint));
    }
    let reset = marks.contains(PollFlags::ERR);
    if reset && peer != Peer::Closed {
        return refuse("is a socket whose last error the program has not seen yet");
    }
    let options = options::capture(socket, found)?;
    let queue = whole.sockets.queue(found)?;
    let asks = options.number(SO_PASSCRED) != 0 || options.number(SO_PASSPIDFD) != 0;
    if asks && queue.iter().any(|seen| seen.sender != Some(0)) {
        return refuse("holds messages with their sender's credentials, which cannot be saved yet");
    }
    Ok(Some(State {
        kind,
        flags: found.info.flags,
        peer,
        queue: queue.iter().map(|seen| seen.message.clone()).collect(),
        read_shut: entry.shutdown & diag::READ_SHUT != 0,
        write_shut: entry.shutdown & diag::WRITE_SHUT != 0,
        reset,
        options,
    }))
}

/// What it is connected to.
fn peer(whole: &Survey, found: &Found, entry: &diag::Entry) -> Result<Peer, Obstacle> {
    let inode = match entry.peer {
        None => return Ok(Peer::None),
        Some(0) if whole.sockets.waits(entry) => {
            return Err(found.refuse(
                "is a connection that was not accepted yet, which cannot be saved yet",
                "try again when the program has accepted it",
            ));
        }
        Some(0) => return Ok(Peer::Closed),
        Some(inode) => inode,
    };
    let there = whole.on_inode((found.stat.st_dev, u64::from(inode)));
    let outside = || {
        found.refuse(
            "is a Unix socket connected to a process outside the job",
            "start both sides under stasis, or let the program close it before the checkpoint",
        )
    };
    let index = *there.first().ok_or_else(outside)?;
    let other = &whole.founds[index];
    if !stdio::streams(&whole.stdio, whole.ctx.stdio, other).is_empty() {
        return Err(outside());
    }
    let mutual = whole.sockets.entry(other).and_then(|other| other.peer);
    if mutual.map(u64::from) != Some(found.stat.st_ino) {
        return Err(super::unsupported::refuse(found));
    }
    Ok(Peer::Socket(DescriptionId(index as u32)))
}

/// Refusals of what is on its way in messages and can only be made when the processes exist.
pub(super) fn refuse_late(founds: &[Found], descriptions: &[Description]) -> Vec<Refusal> {
    let mut refused = Vec::new();
    for (found, description) in founds.iter().zip(descriptions) {
        if found.holders.is_empty() && description.is_late() {
            let reason = "is sent to another process through a socket, and cannot be saved there";
            let hint = "try again when it was received";
            if let Obstacle::Refused(refusal) = found.refuse(reason, hint) {
                refused.push(refusal);
            }
        }
    }
    refused
}
