//! TCP sockets (`tcp(7)`), over IPv4 and IPv6.
//!
//! Saved: connections between processes of the job, over whatever address of the host, with all that was sent and not read yet,
//! with directions that are ended, and under the same addresses and ports; sockets that listen, with those of the job that
//! wait to be accepted; connections whose other side has closed; connections that are being made; sockets that are bound or
//! new; a reset that the program has not seen; options, status flags, owner of signals.
//!
//! A connection out of the job is reset at a restart, and the checkpoint says so: what was received can be read, then there is
//! `ECONNRESET`; unless the user asks for something else ([`External`](super::External)). Who waits to be accepted and is not
//! of the job is forgotten.
//!
//! Not saved, and refused by name: urgent data; a connection that was written to before it was accepted (nobody but its
//! program can look at that: tried again for a while, as it passes); a socket connected to itself; filters; encryption by the
//! kernel (`TCP_ULP`); Multipath TCP. What the kernel measures of a connection (round trips, windows) begins anew.
//!
//! How it is done without any privilege: what is in the queue of a receiver can be looked at (`MSG_PEEK`). What is not there
//! yet is in the queue of its sender, where nobody can look. But both ends are at hand while the program stands still: the
//! receiver is given more room, and the kernel itself delivers the rest (`pull.rs`). Nothing is read, nothing is written, and no
//! byte can be lost if the supervisor dies. At a restart new connections are made over the loopback interface between the same
//! addresses and ports, and filled by their other ends.
//!
//! Facts (`net/ipv4/tcp.c`, `tcp_input.c`): a reset leaves what was received; the kernel counts the bytes of both
//! directions (`TCP_INFO`); the first byte that the side which has connected counts as acknowledged is its request.

mod pull;
mod queue;
mod restore;
mod sight;
pub(super) mod ways;

pub(super) use restore::{Making, make_all, plan, restore};
pub(super) use sight::Connections;

use super::capture::{Found, Obstacle, Survey};
use super::inet::{self, Address, Family, Options};
use super::{Description, DescriptionId};
use crate::conformance::Claim;
use crate::contents::ContentId;
use serde::{Deserialize, Serialize};

const CONNECTION: Claim = Claim::kept(
    "TCP connection within the job",
    "both queues, halves, options, addresses and ports",
    &[
        "tcp::pairs",
        "tcp::full",
        "tcp::halves",
        "tcp::options",
        "tcp::load",
        "tcp::load_again_and_again",
        "tcp::tree",
        "tcp::watched",
        "tcp::many",
    ],
);
const ENDED: Claim = Claim::kept(
    "TCP connection whose other end was closed",
    "",
    &["tcp::closed"],
);
const LISTENS: Claim = Claim::kept(
    "TCP socket that listens",
    "new clients can connect; those of the job that wait to be accepted are kept",
    &["tcp::servers", "tcp::new_clients"],
);
const IDLE: Claim = Claim::kept("TCP socket that is not connected", "", &["tcp::options"]);
const OUTSIDE: Claim = Claim::reset(
    "TCP connection out of the job",
    "reset, as if the network had dropped it; --external refuse or reconnect",
    &[
        "tcp::outside",
        "tcp::outside_edge",
        "tcp::outside_as_wanted",
    ],
);
const CONNECTING: Claim = Claim::reset(
    "TCP connection that is being made",
    "begun again",
    &["tcp::connecting", "tcp::soon"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    CONNECTION,
    ENDED,
    LISTENS,
    IDLE,
    OUTSIDE,
    CONNECTING,
    Claim::refused("TCP connection with urgent data", "", &["tcp::urgent"]),
    Claim::refused(
        "TCP connection that was written to before it was accepted",
        "tried again for a while, as it passes",
        &["tcp::impatient"],
    ),
    Claim::refused(
        "port that another program has",
        "at the restart",
        &["tcp::taken_port"],
    ),
];

/// A saved socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Status flags.
    pub flags: u32,
    /// Its own address.
    pub local: Option<Address>,
    /// How far it has come.
    pub phase: Phase,
    /// Its options.
    pub options: Options,
}

/// How far a socket has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Neither connected nor listening.
    Idle,
    /// It listens.
    Listening {
        /// How many may wait.
        backlog: u32,
        /// The sockets of the job that wait, oldest first.
        waiting: Vec<DescriptionId>,
    },
    /// It is being connected.
    Connecting(Address),
    /// It is connected, or was.
    Connected(Connection),
}

/// A connection, as one of its ends has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The address of the other end; `None` where the connection has come to its end.
    pub remote: Option<Address>,
    /// Who has the other end.
    pub peer: Peer,
    /// This end has connected, the other one has accepted.
    pub active: bool,
    /// What waits to be read.
    pub received: Bytes,
    /// Reading is shut down here (`shutdown(2)`).
    pub read_shut: bool,
    /// Writing is shut down.
    pub write_shut: bool,
    /// The other end has ended its stream.
    pub heard_end: bool,
    /// What the next call fails with.
    pub error: Option<Failure>,
}

/// Who has the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// A socket of the job.
    Socket(DescriptionId),
    /// One that listens has yet to accept it.
    Waits(DescriptionId),
    /// Nobody any more.
    Closed,
    /// A process that is not of the job, or another host.
    Outside,
}

/// An error that the program has not seen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// Nobody listened: `ECONNREFUSED`.
    Refused,
    /// `ECONNRESET`.
    Reset,
}

/// Bytes, where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bytes {
    /// Here.
    Here(#[serde(with = "serde_bytes")] Vec<u8>),
    /// In the image, that many.
    Stored(ContentId, u64),
}

impl Bytes {
    /// How many.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Bytes::Here(bytes) => bytes.len() as u64,
            Bytes::Stored(_, len) => *len,
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Captures one; `None` for another kind of socket.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<Option<State>, Obstacle> {
    let Some(sight) = whole.connections.sight(found) else {
        return Ok(None);
    };
    let phase = sight.phase(whole, found)?;
    if sight.filtered {
        let hint = "let the program close it before the checkpoint";
        return Err(found.refuse("is a socket with a filter, which cannot be saved", hint));
    }
    if sight.covered {
        let reason = "is a connection that the kernel encrypts (TCP_ULP), which cannot be saved";
        let hint = "let the program encrypt it by itself, or close it before the checkpoint";
        return Err(found.refuse(reason, hint));
    }
    Ok(Some(State {
        family: sight.family,
        flags: found.info.flags,
        local: sight.local,
        phase,
        options: sight.options.clone(),
    }))
}

impl State {
    /// Which of the claims it is.
    pub(super) fn claim(&self) -> Claim {
        match &self.phase {
            Phase::Idle => IDLE,
            Phase::Listening { .. } => LISTENS,
            Phase::Connecting(_) => CONNECTING,
            Phase::Connected(connection) => match connection.peer {
                Peer::Socket(_) | Peer::Waits(_) => CONNECTION,
                Peer::Closed => ENDED,
                Peer::Outside => OUTSIDE,
            },
        }
    }

    /// Its addresses.
    pub(super) fn words(&self) -> Option<String> {
        let remote = match &self.phase {
            Phase::Connecting(remote) => Some(*remote),
            Phase::Connected(connection) => connection.remote,
            Phase::Idle | Phase::Listening { .. } => None,
        };
        inet::words(self.local, remote)
    }
}

impl State {
    fn connection(&self) -> Option<&Connection> {
        match &self.phase {
            Phase::Connected(connection) => Some(connection),
            _ => None,
        }
    }

    /// Whether a restart makes something of it that the program has to hear of.
    pub(super) fn brings_news(&self) -> bool {
        match &self.phase {
            Phase::Connecting(_) => true,
            Phase::Connected(connection) => connection.peer == Peer::Outside,
            _ => false,
        }
    }
}

/// What the user should know of connections out of the job.
pub(super) fn notes(pairs: &[(&Found, &Description)]) -> Vec<String> {
    let outside = pairs.iter().filter_map(|(found, description)| {
        let super::Kind::Tcp(state) = &description.kind else {
            return None;
        };
        let connection = state.connection()?;
        (connection.peer == Peer::Outside).then_some((found, connection.remote))
    });
    let to =
        |remote: Option<Address>| remote.map_or(String::new(), |remote| format!(" to {remote}"));
    outside
        .map(|(found, remote)| {
            let text = format!(
                "is a connection out of the job{}, which a restart resets",
                to(remote)
            );
            inet::note(found, &text)
        })
        .collect()
}
