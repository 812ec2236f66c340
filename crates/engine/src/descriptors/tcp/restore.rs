//! Making connections again.
//!
//! All of it is done before any other description is opened, in this order: connections, over sockets that listen for the
//! moment under the addresses of those who had accepted; then the sockets of the program that listen, so that nobody else is let in
//! before; those that wait there; queues; ends of streams; options.

use super::super::inet::{Address, Family};
use super::super::{Description, DescriptionId, Kind, Opening, Plan, set_status};
use super::{Connection, Failure, Peer, Phase, State, queue, ways};
use crate::EngineError;
use crate::error::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    Shutdown, SocketFlags, SocketType, accept_with, bind, listen, shutdown, sockopt,
};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Sockets that are made, until their turn comes.
#[derive(Debug, Default)]
pub(in super::super) struct Making {
    made: HashMap<DescriptionId, OwnedFd>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What a restart does with addresses: those that cannot be had are in the way.
pub(in super::super) fn plan(descriptions: &[Description], plan: &mut Plan) {
    let states: Vec<&State> = states(descriptions).map(|(_, state)| state).collect();
    ways::plan(&states, plan);
}

fn states(descriptions: &[Description]) -> impl Iterator<Item = (DescriptionId, &State)> {
    let all = descriptions.iter().enumerate();
    all.filter_map(|(index, description)| match &description.kind {
        Kind::Tcp(state) => Some((DescriptionId(index as u32), state)),
        _ => None,
    })
}

/// Makes every TCP socket of the image, with all that was in it.
pub(in super::super) fn make_all(
    descriptions: &[Description],
    opening: &Opening,
) -> Result<Making, EngineError> {
    let mut maker = Maker {
        sockets: states(descriptions).collect(),
        opening,
        listeners: HashMap::new(),
        fillers: HashMap::new(),
        making: Making::default(),
    };
    let all: Vec<&State> = maker.sockets.iter().map(|(_, state)| *state).collect();
    ways::clear(&all);
    maker.connect_all()?;
    maker.listeners.clear();
    maker.listen_all()?;
    maker.fill_all()?;
    maker.end_all()?;
    for (id, state) in maker.sockets.clone() {
        let notes = state.options.restore(maker.made(id)?)?;
        maker.making.notes.extend(notes);
    }
    maker.making.notes.dedup();
    Ok(maker.making)
}

/// Hands a socket out.
pub(in super::super) fn restore(
    state: &State,
    id: DescriptionId,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    let fd = opening.connections.made.remove(&id).ok_or_else(broken)?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

struct Maker<'a> {
    sockets: Vec<(DescriptionId, &'a State)>,
    opening: &'a Opening<'a>,
    /// Those that listen for the moment.
    listeners: HashMap<(Family, Address), OwnedFd>,
    /// The other ends of connections whose other end nobody has.
    fillers: HashMap<DescriptionId, OwnedFd>,
    making: Making,
}

impl Maker<'_> {
    fn state(&self, id: DescriptionId) -> Option<&State> {
        let at = self.sockets.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.sockets.get(at).map(|(_, state)| *state)
    }

    fn made(&self, id: DescriptionId) -> Result<BorrowedFd<'_>, EngineError> {
        let made = self.making.made.get(&id).map(AsFd::as_fd);
        made.ok_or_else(broken)
    }

    fn keep(&mut self, id: DescriptionId, fd: OwnedFd) -> Result<(), EngineError> {
        let fd = self.opening.place(fd)?;
        self.making.made.insert(id, fd);
        Ok(())
    }

    /// A socket that is bound where the saved one was.
    fn bound(&mut self, state: &State) -> Result<OwnedFd, EngineError> {
        let fd = state.family.socket(SocketType::STREAM)?;
        state.options.prepare(fd.as_fd(), state.family)?;
        if let Some(local) = &state.local {
            let note = ways::take(fd.as_fd(), local)?;
            self.making.notes.extend(note);
        }
        Ok(fd)
    }

    /// Makes all connections that have two ends.
    fn connect_all(&mut self) -> Result<(), EngineError> {
        for (id, state) in self.sockets.clone() {
            let Phase::Connected(connection) = &state.phase else {
                continue;
            };
            match connection.peer {
                Peer::Socket(other) if connection.active => {
                    let server = self.state(other).ok_or_else(broken)?.clone();
                    let at = server.local.ok_or_else(broken)?;
                    self.listen_for_now(&server, at)?;
                    let client = self.bound(state)?;
                    let to = connection.remote.ok_or_else(broken)?;
                    let end = self.connect(&client, &to, (server.family, at))?;
                    self.keep(id, client)?;
                    self.keep(other, end)?;
                }
                Peer::Socket(_) | Peer::Waits(_) => {}
                Peer::Closed | Peer::Outside => self.alone(id, state, connection)?,
            }
        }
        Ok(())
    }

    /// Makes a connection whose other end is not of the job.
    fn alone(
        &mut self,
        id: DescriptionId,
        state: &State,
        connection: &Connection,
    ) -> Result<(), EngineError> {
        if connection.error == Some(Failure::Refused) {
            return self.refused(id, state);
        }
        let named = connection
            .remote
            .filter(|_| connection.peer == Peer::Closed);
        let at = match named.map(|at| self.listen_for_now(state, at)) {
            Some(Ok(at)) => at,
            _ => self.listen_for_now(state, state.family.loopback(state.local.as_ref()))?,
        };
        let client = state.family.socket(SocketType::STREAM)?;
        if let (Some(_), Some(local)) = (named, &state.local) {
            state.options.prepare(client.as_fd(), state.family)?;
            // Without its own name it is as good, as nobody has the other end.
            let _ = bind(&client, &local.raw());
        }
        let end = self.connect(&client, &at, (state.family, at))?;
        self.keep(id, client)?;
        let end = self.opening.place(end)?;
        self.fillers.insert(id, end);
        Ok(())
    }

    /// A connection that was refused, which the program has not heard of.
    fn refused(&mut self, id: DescriptionId, state: &State) -> Result<(), EngineError> {
        let what = || "being refused a connection once more".to_owned();
        let nobody = state.family.socket(SocketType::STREAM)?;
        let at = state.family.loopback(state.local.as_ref());
        bind(&nobody, &at.raw()).context(what)?;
        let at = Address::own(nobody.as_fd()).ok_or_else(broken)?;
        let fd = state.family.socket(SocketType::STREAM)?;
        ways::connect(fd.as_fd(), &at).context(what)?;
        let mut polled = [PollFd::new(&fd, PollFlags::OUT)];
        poll(&mut polled, Some(&PATIENCE)).context(what)?;
        self.keep(id, fd)
    }

    /// Has somebody listen at an address, for the moment, as one of the same kind as `like`; where it has no port, at one of
    /// the kernel's choice. Returns the address.
    fn listen_for_now(&mut self, like: &State, at: Address) -> Result<Address, EngineError> {
        if self.listeners.contains_key(&(like.family, at)) {
            return Ok(at);
        }
        if at.port == 0 {
            let same = |(family, there): &&(Family, Address)| {
                *family == like.family && (there.ip, there.scope) == (at.ip, 0)
            };
            if let Some((_, there)) = self.listeners.keys().find(same) {
                return Ok(*there);
            }
        }
        let what = || format!("listening at {at}");
        let fd = like.family.socket(SocketType::STREAM)?;
        like.options.prepare(fd.as_fd(), like.family)?;
        self.making.notes.extend(ways::take(fd.as_fd(), &at)?);
        listen(&fd, i32::MAX).context(what)?;
        rustix::io::ioctl_fionbio(&fd, true).context(what)?;
        let bound = Address::own(fd.as_fd()).ok_or_else(broken)?;
        self.listeners.insert((like.family, bound), fd);
        Ok(bound)
    }

    /// Connects to who listens at an address for the moment; returns the other end.
    fn connect(
        &self,
        client: &OwnedFd,
        to: &Address,
        listener: (Family, Address),
    ) -> Result<OwnedFd, EngineError> {
        let what = || format!("connecting to {to}");
        let listener = self.listeners.get(&listener).ok_or_else(broken)?;
        ways::connect(client.as_fd(), to).context(what)?;
        let own = Address::own(client.as_fd()).ok_or_else(broken)?;
        loop {
            let mut polled = [PollFd::new(listener, PollFlags::IN)];
            if poll(&mut polled, Some(&PATIENCE)).context(what)? == 0 {
                return Err(EngineError::Failed(format!(
                    "{}: nothing arrives; does a firewall keep this host from talking to itself?",
                    what()
                )));
            }
            let end = match accept_with(listener, SocketFlags::CLOEXEC) {
                Err(Errno::AGAIN | Errno::CONNABORTED) => continue,
                end => end.context(what)?,
            };
            // Strangers may connect as well: they are let down, as nobody had listened.
            if Address::of_peer(end.as_fd()).map(|peer| peer.plain()) == Some(own.plain()) {
                return Ok(end);
            }
        }
    }

    /// Makes those that listen, that wait to be accepted, that are bound, and that are being connected.
    fn listen_all(&mut self) -> Result<(), EngineError> {
        for (id, state) in self.sockets.clone() {
            if !matches!(state.phase, Phase::Listening { .. } | Phase::Idle) {
                continue;
            }
            let fd = self.bound(state)?;
            if let Phase::Listening { .. } = &state.phase {
                listen(&fd, i32::MAX).context(|| "listening".into())?;
            }
            self.keep(id, fd)?;
        }
        for (id, state) in self.sockets.clone() {
            let Phase::Listening { backlog, waiting } = &state.phase else {
                continue;
            };
            for client in waiting {
                let waits = self.state(*client).ok_or_else(broken)?.clone();
                let to = waits.connection().and_then(|connection| connection.remote);
                let to = to.ok_or_else(broken)?;
                let fd = self.bound(&waits)?;
                let what = || format!("connecting to {to}");
                ways::connect(fd.as_fd(), &to).context(what)?;
                let mut polled = [PollFd::new(&fd, PollFlags::OUT)];
                poll(&mut polled, Some(&PATIENCE)).context(what)?;
                self.keep(*client, fd)?;
            }
            let backlog = i32::try_from(*backlog).unwrap_or(i32::MAX);
            listen(self.made(id)?, backlog).context(|| "listening".into())?;
        }
        for (id, state) in self.sockets.clone() {
            let Phase::Connecting(to) = &state.phase else {
                continue;
            };
            let fd = state.family.socket(SocketType::STREAM)?;
            state.options.prepare(fd.as_fd(), state.family)?;
            if let Some(local) = &state.local {
                // Another port will do as well.
                let _ = bind(&fd, &local.raw());
            }
            match ways::connect(fd.as_fd(), to) {
                Ok(()) => self.keep(id, fd)?,
                // The program hears of it when it looks.
                Err(_) => self.refused(id, state)?,
            }
        }
        Ok(())
    }

    fn connections(&self) -> impl Iterator<Item = (DescriptionId, &Connection)> {
        let connection = |(id, state): &(DescriptionId, &'_ State)| match &state.phase {
            Phase::Connected(_) => Some(*id),
            _ => None,
        };
        let ids: Vec<DescriptionId> = self.sockets.iter().filter_map(connection).collect();
        ids.into_iter()
            .filter_map(|id| Some((id, self.state(id)?.connection()?)))
    }

    /// The other end of a connection.
    fn other(&self, id: DescriptionId, connection: &Connection) -> Option<BorrowedFd<'_>> {
        match connection.peer {
            Peer::Socket(other) => self.made(other).ok(),
            Peer::Waits(_) => None,
            Peer::Closed | Peer::Outside => self.fillers.get(&id).map(AsFd::as_fd),
        }
    }

    fn fill_all(&self) -> Result<(), EngineError> {
        for (id, connection) in self.connections() {
            if let Some(other) = self.other(id, connection) {
                queue::fill(&connection.received, other, self.made(id)?, self.opening)?;
            }
        }
        Ok(())
    }

    /// Ends the streams that had ended, and closes or resets what nobody has the other end of.
    fn end_all(&mut self) -> Result<(), EngineError> {
        let what = || "ending a connection".to_owned();
        for (id, connection) in self.connections() {
            let fd = self.made(id)?;
            let reset = connection.error.is_some()
                || connection.peer == Peer::Outside && !connection.heard_end;
            if let Some(filler) = self.fillers.get(&id)
                && connection.heard_end
                && !reset
            {
                shutdown(filler, Shutdown::Write).context(what)?;
            }
            if connection.write_shut && !reset {
                shutdown(fd, Shutdown::Write).context(what)?;
            }
            if connection.read_shut {
                shutdown(fd, Shutdown::Read).context(what)?;
            }
            if let Some(filler) = self.fillers.get(&id)
                && reset
            {
                // Closing it resets the connection.
                sockopt::set_socket_linger(filler, Some(Duration::ZERO)).context(what)?;
            }
        }
        self.fillers.clear();
        Ok(())
    }
}

const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

fn broken() -> EngineError {
    EngineError::Failed("a connection of the image leads to what is not there".into())
}
