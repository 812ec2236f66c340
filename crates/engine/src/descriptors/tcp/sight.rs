//! The look at all TCP sockets of a tree, before any of them is captured: who is connected to whom, and all that is on its way
//! brought to where it can be looked at.

use super::super::capture::{Found, Obstacle, Survey};
use super::super::handles::Hold;
use super::super::inet::diag::{self, Entry, TcpState};
use super::super::inet::{self, Address, Family, Options};
use super::super::{CaptureContext, DescriptionId, inherited, parallel, stdio};
use super::pull::{Ends, Info, Room, is_settled};
use super::{Bytes, Connection, Failure, Peer, Phase, queue};
use crate::EngineError;
use crate::error::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketType, ipproto};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

type Place = (IpAddr, u16);

/// What is known of the job's TCP sockets.
#[derive(Debug, Default)]
pub(in super::super) struct Connections {
    sights: HashMap<u64, Sight>,
    /// All of the host, by their own address and that of the other side.
    entries: HashMap<(Place, Place), Entry>,
    /// Those of the job, by the same.
    connected: HashMap<(Place, Place), u64>,
}

/// A TCP socket of the job.
#[derive(Debug)]
pub(in super::super) struct Sight {
    pub family: Family,
    pub local: Option<Address>,
    remote: Option<Address>,
    info: Info,
    /// Its place in the list of descriptions.
    index: usize,
    /// Which directions are shut down, as the kernel has it.
    shutdown: u8,
    /// What is on its way to or from it has arrived.
    settled: bool,
    pub options: Options,
    /// It has a filter (`SO_ATTACH_FILTER`).
    pub filtered: bool,
    /// A protocol of the kernel's is laid over it (`TCP_ULP`).
    pub covered: bool,
}

/// Looks at one; `None` for a socket that is not of TCP, or is gone while the processes are `running`.
fn look_at(
    index: usize,
    found: &Found,
    scope: &mut inet::Scope,
    running: bool,
) -> Result<Option<Sight>, EngineError> {
    let socket = match found.duplicate() {
        Err(_) if running => return Ok(None),
        socket => socket?,
    };
    let socket = socket.as_fd();
    let Some((family, ipproto::TCP)) = inet::kind_of(socket) else {
        return Ok(None);
    };
    let what = || format!("looking at {found}");
    Ok(Some(Sight {
        family,
        local: Address::own(socket),
        remote: Address::of_peer(socket),
        info: Info::of(socket).context(what)?,
        index,
        shutdown: 0,
        settled: true,
        options: scope.capture(socket, family, SocketType::STREAM, found)?,
        filtered: stasis_sys::socket::has_filter(socket).unwrap_or(true),
        covered: has_protocol_above(socket),
    }))
}

fn has_protocol_above(socket: BorrowedFd) -> bool {
    const TCP_ULP: i32 = 31;
    let mut name = [0; 16];
    let len = stasis_sys::socket_option::bytes(socket, libc::IPPROTO_TCP, TCP_ULP, &mut name);
    len.is_ok_and(|len| len > 0)
}

impl Sight {
    fn ends(&self) -> Option<(Place, Place)> {
        Some((self.local?.plain(), self.remote?.plain()))
    }
}

/// So many connections are brought to rest at once: both ends of each are open here meanwhile.
const AT_ONCE: usize = 128;
/// When nothing has arrived for so long, it is given up: longer than the kernel takes to send a lost segment again.
const PATIENCE: Duration = Duration::from_millis(400);

impl Connections {
    /// Looks at all of them. While the processes run nothing is brought to rest.
    pub(in super::super) fn look(
        ctx: &CaptureContext,
        founds: &[Found],
    ) -> Result<Connections, EngineError> {
        let theirs = |found: &Found| {
            !stdio::streams(ctx.stdio, found).is_empty() || inherited::is_given(ctx, found)
        };
        let sockets = founds.iter().enumerate();
        let sockets = sockets.filter(|(_, found)| inet::is_socket(found) && !theirs(found));
        let sockets: Vec<(usize, &Found)> = sockets.collect();
        let running = ctx.contents.is_none();
        let looks = parallel::map(&sockets, |part| {
            let _hold = Hold::begin();
            let mut scope = inet::Scope::default();
            let looks = part.iter();
            let looks = looks.map(|(index, found)| look_at(*index, found, &mut scope, running));
            looks.collect()
        });
        let mut connections = Connections::default();
        for ((_, found), look) in sockets.into_iter().zip(looks) {
            let Some(sight) = look? else {
                continue;
            };
            if let Some(ends) = sight.ends() {
                connections.connected.insert(ends, found.stat.st_ino);
            }
            connections.sights.insert(found.stat.st_ino, sight);
        }
        if connections.sights.is_empty() {
            return Ok(connections);
        }
        connections.ask()?;
        if ctx.contents.is_some() {
            connections.settle(founds)?;
        }
        Ok(connections)
    }

    fn ask(&mut self) -> Result<(), EngineError> {
        let what = || "asking the kernel about TCP sockets (module tcp_diag)".to_owned();
        self.entries.clear();
        for entry in diag::tcp(false).context(what)? {
            if let Some(sight) = self.sights.get_mut(&u64::from(entry.inode)) {
                sight.shutdown = entry.shutdown;
                if sight.info.state == TcpState::SYN_SENT {
                    sight.remote = Some(written_as(sight.family, entry.remote));
                }
            }
            self.entries.insert((entry.local, entry.remote), entry);
        }
        Ok(())
    }

    pub(super) fn sight(&self, found: &Found) -> Option<&Sight> {
        self.sights.get(&found.stat.st_ino)
    }

    /// The other end of a connection, where the job has it.
    fn other(&self, sight: &Sight) -> Option<(u64, &Sight)> {
        let (local, remote) = sight.ends()?;
        let inode = *self.connected.get(&(remote, local))?;
        let other = self.sights.get(&inode)?;
        (other.info.state != TcpState::CLOSED).then_some((inode, other))
    }

    /// How the kernel describes the other end, where it is on this host.
    fn entry_of_other(&self, sight: &Sight) -> Option<&Entry> {
        let (local, remote) = sight.ends()?;
        self.entries.get(&(remote, local))
    }

    /// Brings all that is on its way to its receiver, for all connections within the job and those whose other end was closed.
    fn settle(&mut self, founds: &[Found]) -> Result<(), EngineError> {
        let mut flows = Vec::new();
        for (inode, sight) in &self.sights {
            match self.other(sight) {
                Some((other, there)) if inode < &other && !is_settled(&sight.info, &there.info) => {
                    flows.push((*inode, Some(other)));
                }
                Some(_) => {}
                None if self.is_abandoned(sight) && !sight.info.state.has_heard_the_end() => {
                    flows.push((*inode, None));
                }
                None => {}
            }
        }
        flows.sort_unstable();
        for part in flows.chunks(AT_ONCE) {
            let what = || "bringing what is on its way between two sockets to rest".to_owned();
            let mut moving = Vec::new();
            for (inode, other) in part {
                let open = |inode: &u64| -> Result<OwnedFd, EngineError> {
                    let sight = self.sights.get(inode).ok_or(EngineError::Gone)?;
                    founds[sight.index].duplicate()
                };
                let (one, other) = (open(inode)?, other.as_ref().map(open).transpose()?);
                moving.push(Moving::new(one, other).context(what)?);
            }
            bring_to_rest(&mut moving).context(what)?;
            for ((inode, other), moved) in part.iter().zip(moving) {
                for inode in std::iter::once(inode).chain(other) {
                    if let Some(sight) = self.sights.get_mut(inode) {
                        sight.settled = moved.settled;
                    }
                }
                moved.finish().context(what)?;
            }
        }
        let moved = flows.iter().flat_map(|(one, other)| [Some(*one), *other]);
        for inode in moved.flatten() {
            // What has arrived may have been the end of a stream.
            let Some(sight) = self.sights.get_mut(&inode) else {
                continue;
            };
            let found = &founds[sight.index];
            let socket = found.duplicate()?;
            let info = Info::of(socket.as_fd());
            sight.info = info.context(|| format!("looking at {found}"))?;
        }
        if !flows.is_empty() {
            self.ask()?;
        }
        Ok(())
    }

    /// Whether the other end lives on without a program, to deliver the rest.
    fn is_abandoned(&self, sight: &Sight) -> bool {
        let orphan = |entry: &Entry| entry.inode == 0 && entry.state.has_ended();
        sight.info.state != TcpState::CLOSED && self.entry_of_other(sight).is_some_and(orphan)
    }

    /// The socket of the job that a connection waits at to be accepted.
    fn listener(&self, place: Place) -> Option<(u64, &Sight)> {
        let listening = self.sights.iter().filter(|(_, sight)| {
            let there = sight.local.map(|local| local.plain());
            sight.info.state == TcpState::LISTEN
                && there.is_some_and(|(ip, port)| {
                    port == place.1 && (ip == place.0 || ip.is_unspecified())
                })
        });
        let exact = |(_, sight): &(&u64, &Sight)| {
            sight.local.is_some_and(|local| !local.ip.is_unspecified())
        };
        let best = listening.max_by_key(|one| (exact(one), one.1.index));
        best.map(|(inode, sight)| (*inode, sight))
    }

    /// Whether a connection waits to be accepted, and how the kernel describes what it is connected to.
    fn waits(&self, sight: &Sight) -> Option<&Entry> {
        let entry = self.entry_of_other(sight)?;
        const SYN_RECEIVED: TcpState = TcpState(3);
        let new = [TcpState::ESTABLISHED, TcpState::CLOSE_WAIT, SYN_RECEIVED];
        (entry.inode == 0 && new.contains(&entry.state)).then_some(entry)
    }

    /// Those of the job that wait at one that listens, the oldest first.
    fn waiting_at(&self, inode: u64) -> Vec<DescriptionId> {
        let mut waiting: Vec<&Sight> = self
            .sights
            .values()
            .filter(|sight| {
                let entry = self.waits(sight);
                let at = entry.and_then(|entry| self.listener(entry.local));
                at.map(|(inode, _)| inode) == Some(inode)
            })
            .collect();
        waiting.sort_by_key(|sight| (std::cmp::Reverse(sight.info.heard_ago), sight.index));
        let ids = waiting
            .iter()
            .map(|sight| DescriptionId(sight.index as u32));
        ids.collect()
    }
}

/// An address as a socket of that family has it.
fn written_as(family: Family, (ip, port): Place) -> Address {
    let ip = match (family, ip) {
        (Family::V6, IpAddr::V4(ip)) => ip.to_ipv6_mapped().into(),
        _ => ip,
    };
    Address { ip, port, scope: 0 }
}

/// A connection on which something is on its way. Without another end: to a socket whose other end has no program.
struct Moving {
    ends: (OwnedFd, Option<OwnedFd>),
    rooms: (Room, Option<Room>),
    settled: bool,
    tries: u32,
    left: u64,
}

impl Moving {
    fn new(one: OwnedFd, other: Option<OwnedFd>) -> io::Result<Moving> {
        let room = |fd: &OwnedFd| Room::of(fd.as_fd());
        Ok(Moving {
            rooms: (room(&one)?, other.as_ref().map(room).transpose()?),
            ends: (one, other),
            settled: false,
            tries: 0,
            left: 0,
        })
    }

    /// One step. Whether anything has moved.
    fn step(&mut self) -> io::Result<bool> {
        let one = self.ends.0.as_fd();
        let info = Info::of(one)?;
        let left = match &self.ends.1 {
            Some(other) => {
                let other = other.as_fd();
                let there = Info::of(other)?;
                self.settled = is_settled(&info, &there);
                if !self.settled {
                    for (sender, receiver, bytes) in [
                        (one, other, info.unacknowledged),
                        (other, one, there.unacknowledged),
                    ] {
                        if bytes > 0 {
                            Ends { sender, receiver }.pull(bytes, self.tries)?;
                        }
                    }
                }
                info.ahead_of(&there).wrapping_add(there.ahead_of(&info))
            }
            None => {
                self.settled = info.state.has_heard_the_end();
                let held = rustix::io::ioctl_fionread(one)?;
                if !self.settled {
                    let ends = Ends {
                        sender: one,
                        receiver: one,
                    };
                    ends.pull(held.max(1 << 20), self.tries)?;
                }
                held
            }
        };
        self.tries += 1;
        Ok(self.settled || std::mem::replace(&mut self.left, left) != left)
    }

    fn finish(self) -> io::Result<()> {
        self.rooms.0.put_back(self.ends.0.as_fd())?;
        match (self.rooms.1, &self.ends.1) {
            (Some(room), Some(end)) => room.put_back(end.as_fd()),
            _ => Ok(()),
        }
    }
}

fn bring_to_rest(moving: &mut [Moving]) -> io::Result<()> {
    let mut last = Instant::now();
    loop {
        let mut moved = false;
        for one in moving.iter_mut().filter(|one| !one.settled) {
            moved |= one.step()?;
        }
        if moving.iter().all(|one| one.settled) {
            return Ok(());
        }
        if moved {
            last = Instant::now();
        } else if last.elapsed() > PATIENCE {
            return Ok(());
        }
    }
}

const URGENT: &str = "is a connection with urgent data, which cannot be saved";
const READ_IT: &str = "try again when the program has read what was sent to it";

impl Sight {
    pub(super) fn phase(&self, whole: &Survey, found: &Found) -> Result<Phase, Obstacle> {
        let connections = &whole.connections;
        match self.info.state {
            TcpState::LISTEN => {
                return Ok(Phase::Listening {
                    backlog: self.info.backlog,
                    waiting: connections.waiting_at(found.stat.st_ino),
                });
            }
            TcpState::SYN_SENT => {
                let to = self.remote;
                let to = to.ok_or_else(|| found.passing("is being connected just now", AGAIN))?;
                return Ok(Phase::Connecting(to));
            }
            _ => {}
        }
        let what = || format!("looking at {found}");
        let socket = found.duplicate()?;
        let marks = {
            let wanted = PollFlags::IN | PollFlags::PRI | PollFlags::RDHUP;
            let mut polled = [PollFd::new(&socket, wanted)];
            poll(&mut polled, Some(&Timespec::default())).context(what)?;
            polled[0].revents()
        };
        if marks.contains(PollFlags::PRI) {
            return Err(found.refuse(URGENT, READ_IT));
        }
        let ended = self.info.state == TcpState::CLOSED;
        if ended && !marks.contains(PollFlags::RDHUP) {
            return Ok(Phase::Idle);
        }
        let (peer, active) = match ended {
            true => (Peer::Closed, true),
            false => self.peer(whole, found)?,
        };
        let received = match whole.ctx.contents {
            None => Bytes::Here(Vec::new()),
            Some(_) => {
                let bytes = queue::peek(socket.as_fd()).context(what)?;
                queue::keep(bytes, whole.ctx)?
            }
        };
        let error = marks.contains(PollFlags::ERR) && ended;
        let heard_end = self.info.state.has_heard_the_end();
        Ok(Phase::Connected(Connection {
            remote: self.remote.filter(|_| !ended),
            peer,
            active,
            received,
            read_shut: self.shutdown & 1 != 0 && !heard_end,
            write_shut: self.info.state.has_ended(),
            heard_end,
            error: error.then_some(match self.info.agreed {
                0 => Failure::Refused,
                _ => Failure::Reset,
            }),
        }))
    }

    /// Who has the other end, and whether this end has connected.
    fn peer(&self, whole: &Survey, found: &Found) -> Result<(Peer, bool), Obstacle> {
        let connections = &whole.connections;
        if !self.settled {
            let reason = "is a connection with more on its way than the kernel lets its receiver hold (tcp_rmem)";
            return Err(found.refuse(reason, READ_IT));
        }
        if let Some((inode, other)) = connections.other(self) {
            if inode == found.stat.st_ino {
                let hint = "let the program close it before the checkpoint";
                return Err(found.refuse(
                    "is a socket connected to itself, which cannot be saved",
                    hint,
                ));
            }
            let ahead = (
                self.info.ahead_of(&other.info),
                other.info.ahead_of(&self.info),
            );
            // Where both or none seem to have connected, any of them may have.
            let active = match ahead {
                (1, 0) => true,
                (0, 1) => false,
                _ => self.index < other.index,
            };
            return Ok((Peer::Socket(DescriptionId(other.index as u32)), active));
        }
        if let Some(entry) = connections.waits(self)
            && let Some((_, listener)) = connections.listener(entry.local)
        {
            let end = u32::from(self.info.state.has_ended());
            if (self.info.unacknowledged > 0 || entry.unread > end) && whole.ctx.contents.is_some()
            {
                let reason = "has written to a connection that was not accepted yet: nobody can look at that";
                return Err(found.passing(reason, AGAIN));
            }
            return Ok((Peer::Waits(DescriptionId(listener.index as u32)), true));
        }
        let here = self
            .remote
            .is_some_and(|remote| remote.ip.to_canonical().is_loopback());
        let gone = connections.entry_of_other(self).is_none() && here;
        let closed = connections.is_abandoned(self) || gone;
        match closed && self.info.state.has_heard_the_end() {
            true => Ok((Peer::Closed, true)),
            false => Ok((Peer::Outside, true)),
        }
    }
}

const AGAIN: &str = "try again when the program has accepted it";
