//! Unix sockets (`unix(7)`).
//!
//! Saved: pairs of stream, datagram and packet sockets, with both ends held by processes of the job or on their way in
//! a message, or with one end closed; sockets with a name, a path or an abstract one; those that listen, with the processes of the job
//! that wait to be accepted; accepted connections; datagram sockets that are connected one way; sockets that are not connected
//! yet. With them what waits to be read, with the boundaries of messages, the senders' names and the descriptors sent along
//! (`SCM_RIGHTS`), which may be sockets with such messages themselves; directions that are shut down; a reset that the program has
//! not seen; options, status flags, owner of signals.
//!
//! A connection that leads out of the job is reset at a restart, and the checkpoint says so: what was received can be read, then
//! there is `ECONNRESET`. Who waits to be accepted and is not of the job is forgotten.
//!
//! Not saved, and refused by name: a connection that was not accepted yet and has been written to, or given up (tried again for a
//! while, as it passes); a datagram socket connected one way to one without a name; messages with the credentials of several
//! senders, of one that has ended or has closed its end, or on a socket with a name; urgent data; filters. `SO_PEERCRED` gives the restarting process afterwards.
//!
//! Facts: a socket has one open file description, as it cannot be opened through `/proc`. Who is connected to whom only
//! netlink tells (`diag`): it is how a socket whose peer was closed (peer 0) is told from one that was never connected. What
//! belongs to a closed peer is left in the queue; closing with something unread resets the other side (`ECONNRESET`), which poll
//! shows and `SO_ERROR` would consume (`unix_release_sock`, `net/unix/af_unix.c`).

mod diag;
mod names;
mod options;
mod queue;
mod restore;
mod sight;

pub use names::Name;
pub(super) use queue::{events, peek_messages as peek_datagrams};
pub(super) use restore::{Making, fill_all, fill_late, make_all, plan, restore};
pub(super) use sight::{Sockets, carrier};

use super::capture::Survey;
use super::stdio;
use super::{Description, DescriptionId, Found, Obstacle, ProcessView};
use crate::Refusal;
use crate::conformance::Claim;
use crate::error::Context;
use diag::LISTENING;
use options::{Options, SO_PASSCRED, SO_PASSPIDFD};
use rustix::event::PollFlags;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, socket};
use std::os::fd::{AsFd, BorrowedFd};

const PAIRED: Claim = Claim::kept(
    "Unix socket",
    "peer, queues with the boundaries of messages, descriptors on their way, options",
    &[
        "unix_sockets::pairs",
        "unix_sockets::full",
        "unix_sockets::rights",
        "unix_sockets::options",
        "unix_sockets::shutdowns",
        "unix_sockets::load",
        "unix_sockets::tree",
        "unix_sockets::datagrams",
        "unix_sockets::watched",
    ],
);
const ENDED: Claim = Claim::kept(
    "Unix socket whose other end was closed",
    "",
    &["unix_sockets::closed", "unix_sockets::orphans"],
);
const LISTENS: Claim = Claim::kept(
    "Unix socket that listens",
    "with those of the job that wait to be accepted",
    &["unix_sockets::servers"],
);
const FRESH: Claim = Claim::kept(
    "Unix socket that is not connected",
    "",
    &["unix_sockets::fresh"],
);
const OUTSIDE: Claim = Claim::reset(
    "Unix socket connected to a process outside of the job",
    "what was received can be read, then ECONNRESET",
    &["unix_sockets::outside"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    PAIRED,
    ENDED,
    LISTENS,
    FRESH,
    OUTSIDE,
    Claim::kept(
        "credentials of a message (SO_PASSCRED)",
        "where all that waits is of one living sender",
        &["unix_sockets::credentials"],
    ),
    Claim::refused(
        "Unix socket with urgent data",
        "",
        &["unix_sockets::urgent"],
    ),
    Claim::refused(
        "connection that was written to before it was accepted",
        "tried again for a while, as it passes",
        &["unix_sockets::impatient"],
    ),
    Claim::refused(
        "name of a socket that another program has",
        "at the restart",
        &["unix_sockets::taken_names"],
    ),
    Claim::kept(
        "path of a socket that is missing or left over",
        "made again",
        &["unix_sockets::leftovers"],
    ),
];

/// A saved socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Stream, datagram or packet socket.
    pub kind: Kind,
    /// Status flags.
    pub flags: u32,
    /// Its own name.
    pub name: Option<Name>,
    /// It was made by accept(2): the name is that of the socket that listened.
    pub accepted: bool,
    /// It listens.
    pub listening: Option<Listening>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// Nothing.
    None,
    /// A socket that was closed, and the name that it had.
    Closed(Option<Name>),
    /// A socket of the job that is connected to this one.
    Socket(DescriptionId),
    /// A datagram socket of the job that is connected to another one or to none.
    OneWay(DescriptionId),
    /// One that has yet to accept it.
    Waits(DescriptionId),
    /// A process that is not of the job.
    Outside,
}

/// What a listening socket has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// How many may wait.
    pub backlog: u32,
    /// The sockets of the job that wait, oldest first.
    pub waiting: Vec<DescriptionId>,
}

/// What one send has put into a queue; on a stream, what several have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// The descriptors sent along.
    pub rights: Vec<DescriptionId>,
    /// The sender's name, empty where it has none.
    #[serde(with = "serde_bytes")]
    pub from: Vec<u8>,
    /// The sender's credentials, where the receiver is to get them.
    pub sender: Option<Sender>,
}

/// Who sent a message (`SCM_CREDENTIALS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// The process, in the program's numbers.
    pub pid: Pid,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl State {
    /// Which of the claims it is.
    pub(super) fn claim(&self) -> Claim {
        match &self.peer {
            _ if self.listening.is_some() => LISTENS,
            Peer::None => FRESH,
            Peer::Closed(_) => ENDED,
            Peer::Outside => OUTSIDE,
            Peer::Socket(_) | Peer::OneWay(_) | Peer::Waits(_) => PAIRED,
        }
    }

    /// Its name, where it has one.
    pub(super) fn words(&self) -> Option<String> {
        self.name.as_ref().map(Name::to_string)
    }
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
    let entry = whole.sockets.entry(found);
    let entry = entry.ok_or_else(|| found.refuse("the kernel does not tell its peer", ""))?;
    let peer = peer(whole, found, entry, socket)?;
    let name = Some(names::own(socket)).filter(|name| !name.is_empty());
    let accepted = is_accepted(
        whole,
        found,
        &peer,
        kind,
        [name.as_deref(), Some(&names::of_peer(socket))],
    )?;
    let marks = queue::events(socket).context(|| format!("looking at {found}"))?;
    let refuse = |reason: &str| Err(found.refuse(reason, sight::READ_IT));
    if marks.contains(PollFlags::PRI) {
        return refuse(sight::URGENT);
    }
    if socket::has_filter(socket).unwrap_or(true) {
        let hint = "let the program close it before the checkpoint";
        return Err(found.refuse("is a socket with a filter, which cannot be saved", hint));
    }
    let reset = marks.contains(PollFlags::ERR);
    if reset && !matches!(peer, Peer::Closed(_) | Peer::Outside) {
        return refuse("is a socket whose last error the program has not seen yet");
    }
    let options = options::capture(socket, found)?;
    let queue = whole.sockets.queue(found)?;
    let mut messages: Vec<Message> = queue.iter().map(|seen| seen.message.clone()).collect();
    let asks = options.number(SO_PASSCRED) != 0 || options.number(SO_PASSPIDFD) != 0;
    if asks && let Some(first) = queue.iter().find_map(|seen| seen.sender) {
        let shut = entry.shutdown & diag::READ_SHUT != 0;
        let living = |process: &&ProcessView| process.pid == first.pid;
        let process = whole.ctx.processes.iter().find(living);
        let same = queue.iter().all(|seen| seen.sender == Some(first));
        let (Some(process), true, Peer::Socket(_), false) = (process, same, &peer, shut) else {
            return refuse("holds messages with credentials that cannot be given again");
        };
        for message in &mut messages {
            message.sender = Some(Sender {
                pid: process.virtual_pid,
                uid: first.uid,
                gid: first.gid,
            });
        }
    }
    Ok(Some(State {
        kind,
        flags: found.info.flags,
        name: name.map(|name| Name::capture(name, found, Some(entry), whole.ctx)),
        accepted,
        listening: listening(whole, found, entry)?,
        peer,
        queue: messages,
        read_shut: entry.shutdown & diag::READ_SHUT != 0,
        write_shut: entry.shutdown & diag::WRITE_SHUT != 0,
        reset,
        options,
    }))
}

/// What it is connected to.
fn peer(
    whole: &Survey,
    found: &Found,
    entry: &diag::Entry,
    socket: BorrowedFd,
) -> Result<Peer, Obstacle> {
    let waits_for = whole.sockets.waits_for(entry);
    let inode = match (entry.peer, waits_for) {
        (None, _) => return Ok(Peer::None),
        (Some(0), Some(listener)) => listener,
        (Some(0), None) => {
            let name = Some(names::of_peer(socket)).filter(|name| !name.is_empty());
            let name = name.map(|name| Name::capture(name, found, None, whole.ctx));
            return Ok(Peer::Closed(name));
        }
        (Some(inode), _) => inode,
    };
    let Some(index) = whole.socket(found, inode) else {
        return Ok(Peer::Outside);
    };
    let other = &whole.founds[index];
    if !stdio::streams(whole.ctx.stdio, other).is_empty() {
        return Ok(Peer::Outside);
    }
    let id = DescriptionId(index as u32);
    if waits_for.is_some() {
        if entry.backlog > 0 && whole.ctx.contents.is_some() {
            let reason =
                "has written to a connection that was not accepted yet: nobody can look at that";
            return Err(found.passing(reason, "try again when the program has accepted it"));
        }
        return Ok(Peer::Waits(id));
    }
    let back = whole.sockets.entry(other).and_then(|other| other.peer);
    if back.map(u64::from) == Some(found.stat.st_ino) {
        return Ok(Peer::Socket(id));
    }
    if names::of_peer(socket).is_empty() {
        let reason = "is a datagram socket connected one way to one without a name, which cannot be saved yet";
        return Err(found.refuse(reason, "let the program close it before the checkpoint"));
    }
    Ok(Peer::OneWay(id))
}

/// Whether accept(2) made it; `names` are its own and its peer's.
fn is_accepted(
    whole: &Survey,
    found: &Found,
    peer: &Peer,
    kind: Kind,
    names: [Option<&[u8]>; 2],
) -> Result<bool, Obstacle> {
    let connected = matches!(peer, Peer::Socket(_) | Peer::Closed(_) | Peer::Outside);
    let ([Some(own), Some(other)], true) = (names, connected && kind != Kind::Datagram) else {
        return Ok(false);
    };
    if other.is_empty() {
        return Ok(true);
    }
    match (whole.sockets.listens(own), whole.sockets.listens(other)) {
        (here, there) if here != there => Ok(here),
        _ => Err(found.refuse(
            "is a connection between two sockets with names, of which nobody listens any more",
            "let the program close it before the checkpoint",
        )),
    }
}

/// Who waits to be accepted.
fn listening(
    whole: &Survey,
    found: &Found,
    entry: &diag::Entry,
) -> Result<Option<Listening>, Obstacle> {
    if entry.state != LISTENING {
        return Ok(None);
    }
    if entry.waiting.contains(&0) && whole.ctx.contents.is_some() {
        return Err(found.passing(
            "was connected to by somebody who gave up before he was accepted: nobody can look at what he wrote",
            "try again when the program has accepted the connection",
        ));
    }
    let waiting = entry.waiting.iter();
    let waiting = waiting.filter_map(|inode| whole.socket(found, *inode));
    Ok(Some(Listening {
        backlog: entry.backlog,
        waiting: waiting.map(|index| DescriptionId(index as u32)).collect(),
    }))
}

impl Survey<'_> {
    /// The place of the socket of that inode, `found` being any socket.
    fn socket(&self, found: &Found, inode: u32) -> Option<usize> {
        let there = self.on_inode((found.stat.st_dev, u64::from(inode)));
        there.first().copied()
    }
}

/// Refusals of what is on its way in messages and can only be made when the processes exist.
pub(super) fn refuse_late(pairs: &[(&Found, &Description)]) -> Vec<Refusal> {
    let mut refused = Vec::new();
    for (found, description) in pairs {
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

/// What the user should know: which connections a restart resets.
pub(super) fn notes(pairs: &[(&Found, &Description)]) -> Vec<String> {
    let outside = pairs.iter().filter(|(_, description)| {
        matches!(&description.kind, super::Kind::UnixSocket(state) if state.peer == Peer::Outside)
    });
    outside
        .map(|(found, _)| {
            let (pid, name) = (found.process.virtual_pid, &found.process.name);
            format!("process {pid} ({name}), {found}: is a connection out of the job, which a restart resets")
        })
        .collect()
}
