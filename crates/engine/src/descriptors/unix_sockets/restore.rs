//! Making sockets again.
//!
//! All of them are made before any other description: pairs with socketpair(2), accepted ones by connecting to a socket that
//! listens under their name, which is made for the moment where the job has none. What is in them, and all that may
//! only be done after that, follows when every description is open ([`fill_all`]).

use super::super::{
    Description, DescriptionId, Kind as Any, Opened, Opening, Plan, RestoreContext, set_status,
};
use super::names::{self, Name, There};
use super::options::{self, widen};
use super::queue::{self, Route};
use super::{Kind, Message, Peer, State};
use crate::error::Context;
use crate::{EngineError, Refusal};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, accept_with, connect, getsockname,
    listen, shutdown, socket_with, socketpair,
};
use stasis_sys::Pid;
use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Sockets that are made, until all of their state is in place.
#[derive(Debug, Default)]
pub(in super::super) struct Making {
    /// Each socket, until its turn comes.
    made: HashMap<DescriptionId, OwnedFd>,
    /// The peers of those whose peer was closed, to be closed when the queues are full.
    closing: HashMap<DescriptionId, OwnedFd>,
    /// Files of sockets, to be removed when everybody is connected.
    remove: Vec<PathBuf>,
    notes: Vec<String>,
}

/// What a restart does with a name: a path that is missing, left over or taken.
pub(in super::super) fn plan(state: &State, ctx: &RestoreContext, plan: &mut Plan) {
    let Some(name) = &state.name else {
        return;
    };
    if !state.accepted && name.is_taken_in_the_abstract() {
        plan.refusals.push(Refusal {
            pid: None,
            process: String::new(),
            object: format!("socket {name}"),
            reason: "a running program has that name".to_owned(),
            hint: "end that program".to_owned(),
        });
    }
    if name.mode.is_none() {
        return;
    }
    let Some(file) = name.file(ctx).filter(|_| !state.accepted) else {
        return;
    };
    let shown = file.display();
    match names::look(&file) {
        There::Nothing => plan.actions.push(format!("make socket {shown}")),
        There::Leftover => plan.actions.push(format!("replace socket {shown}")),
        There::Taken(reason, hint) => plan.refusals.push(Refusal {
            pid: None,
            process: String::new(),
            object: format!("socket {shown}"),
            reason: reason.to_owned(),
            hint: hint.to_owned(),
        }),
    }
}

fn plain(kind: Kind) -> Result<OwnedFd, EngineError> {
    socket_with(AddressFamily::UNIX, kind.raw(), SocketFlags::CLOEXEC, None)
        .context(|| "making a socket".into())
}

/// Makes every socket of the image.
pub(in super::super) fn make_all(
    descriptions: &[Description],
    opening: &Opening,
) -> Result<Making, EngineError> {
    let sockets = descriptions.iter().enumerate();
    let sockets = sockets.filter_map(|(index, description)| match &description.kind {
        Any::UnixSocket(state) => Some((DescriptionId(index as u32), state)),
        _ => None,
    });
    let mut maker = Maker {
        sockets: sockets.collect(),
        opening,
        servers: HashMap::new(),
        temporary: HashMap::new(),
        making: Making::default(),
    };
    maker.make_unconnected()?;
    maker.name()?;
    maker.connect()?;
    maker.let_wait()?;
    Ok(maker.making)
}

type Key = (Kind, Vec<u8>);

struct Maker<'a> {
    sockets: Vec<(DescriptionId, &'a State)>,
    opening: &'a Opening<'a>,
    /// Who listens under which name.
    servers: HashMap<Key, DescriptionId>,
    /// Those that listen for the moment.
    temporary: HashMap<Key, OwnedFd>,
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

    fn close_later(&mut self, id: DescriptionId, fd: OwnedFd) -> Result<(), EngineError> {
        let fd = self.opening.place(fd)?;
        self.making.closing.insert(id, fd);
        Ok(())
    }

    fn pair(&mut self, id: DescriptionId, kind: Kind) -> Result<OwnedFd, EngineError> {
        let (fd, other) = socketpair(AddressFamily::UNIX, kind.raw(), SocketFlags::CLOEXEC, None)
            .context(|| "making a pair of sockets".into())?;
        self.keep(id, fd)?;
        Ok(other)
    }

    /// Pairs, and every other socket but those that are accepted.
    fn make_unconnected(&mut self) -> Result<(), EngineError> {
        for (id, state) in self.sockets.clone() {
            if state.accepted || self.making.made.contains_key(&id) {
                continue;
            }
            match &state.peer {
                Peer::Socket(other) if !self.state(*other).ok_or_else(broken)?.accepted => {
                    let end = self.pair(id, state.kind)?;
                    self.keep(*other, end)?;
                }
                Peer::Outside => {
                    let end = self.pair(id, state.kind)?;
                    self.close_later(id, end)?;
                }
                Peer::Closed(name) if name.is_none() || state.kind == Kind::Datagram => {
                    let end = self.pair(id, state.kind)?;
                    self.close_later(id, end)?;
                }
                _ => self.keep(id, plain(state.kind)?)?,
            }
        }
        Ok(())
    }

    /// Gives names, and lets those listen that did.
    fn name(&mut self) -> Result<(), EngineError> {
        for (id, state) in self.sockets.clone() {
            let Some(name) = state.name.as_ref().filter(|_| !state.accepted) else {
                continue;
            };
            let fd = self.made(id)?;
            let bound = names::give(fd, name, self.opening.context)?;
            if state.listening.is_some() {
                listen(fd, i32::MAX).context(|| format!("listening at {name}"))?;
                self.servers.insert((state.kind, name.bytes.clone()), id);
            }
            self.making.remove.extend(bound.remove);
            self.making.notes.extend(bound.note);
        }
        Ok(())
    }

    /// Makes those that were accepted, by connecting to who listens under their name.
    fn connect(&mut self) -> Result<(), EngineError> {
        for (id, state) in self.sockets.clone() {
            match (&state.peer, &state.name) {
                (Peer::Socket(client), Some(name)) if state.accepted => {
                    let made = self.made(*client)?.try_clone_to_owned();
                    let made = made.context(|| "connecting a socket".into())?;
                    let end = match self.accepted(state.kind, name, made.as_fd())? {
                        Some(end) => end,
                        None => self.pair(*client, state.kind)?,
                    };
                    self.keep(id, end)?;
                }
                (Peer::Closed(_) | Peer::Outside, Some(name)) if state.accepted => {
                    let client = plain(state.kind)?;
                    match self.accepted(state.kind, name, client.as_fd())? {
                        Some(end) => {
                            self.keep(id, end)?;
                            self.close_later(id, client)?;
                        }
                        None => {
                            let end = self.pair(id, state.kind)?;
                            self.close_later(id, end)?;
                        }
                    }
                }
                (Peer::Closed(Some(name)), _) if state.kind != Kind::Datagram => {
                    let made = self.made(id)?.try_clone_to_owned();
                    let made = made.context(|| "connecting a socket".into())?;
                    let end = match self.accepted(state.kind, name, made.as_fd())? {
                        Some(end) => end,
                        None => self.pair(id, state.kind)?,
                    };
                    self.close_later(id, end)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Connects `client` to who listens under `name`, and accepts it there. `None` where nobody can.
    fn accepted(
        &mut self,
        kind: Kind,
        name: &Name,
        client: BorrowedFd,
    ) -> Result<Option<OwnedFd>, EngineError> {
        let key = (kind, name.bytes.clone());
        if !self.servers.contains_key(&key) && !self.temporary.contains_key(&key) {
            let server = plain(kind)?;
            match names::give(server.as_fd(), name, self.opening.context) {
                Ok(bound) => self.making.remove.extend(bound.remove),
                Err(error) => {
                    self.making.notes.push(format!(
                        "a connection to {name} goes on without that name: {error}"
                    ));
                    return Ok(None);
                }
            }
            listen(&server, i32::MAX).context(|| format!("listening at {name}"))?;
            self.temporary.insert(key.clone(), server);
        }
        let server = match self.servers.get(&key) {
            Some(id) => self.made(*id)?,
            None => self
                .temporary
                .get(&key)
                .map(AsFd::as_fd)
                .ok_or_else(broken)?,
        };
        connect_to(client, server, name, self.opening.context)?;
        let end = accept_with(server, SocketFlags::CLOEXEC);
        end.map(Some).context(|| format!("accepting at {name}"))
    }

    /// Connects those that were not accepted, in their order, then limits how many may wait.
    fn let_wait(&mut self) -> Result<(), EngineError> {
        for (id, state) in &self.sockets {
            let (Some(listening), Some(name)) = (&state.listening, &state.name) else {
                continue;
            };
            let server = self.made(*id)?;
            for client in &listening.waiting {
                connect_to(self.made(*client)?, server, name, self.opening.context)?;
            }
            let backlog = i32::try_from(listening.backlog).unwrap_or(i32::MAX);
            listen(server, backlog).context(|| format!("listening at {name}"))?;
        }
        Ok(())
    }
}

/// Connects to a socket that has a name, `name` or, where that was taken, another.
fn connect_to(
    client: BorrowedFd,
    server: BorrowedFd,
    name: &Name,
    ctx: &RestoreContext,
) -> Result<(), EngineError> {
    let address = address(server)?;
    let what = || format!("connecting to {name}");
    name.in_its_directory(ctx, || connect(client, &address).context(what))
}

fn address(socket: BorrowedFd) -> Result<SocketAddrUnix, EngineError> {
    let what = || "asking for the name of a socket".to_owned();
    let address = getsockname(socket).context(what)?;
    SocketAddrUnix::try_from(address).context(what)
}

/// Hands a socket out. What is in it follows in [`fill_all`].
pub(in super::super) fn restore(
    state: &State,
    id: DescriptionId,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    let fd = opening.sockets.made.remove(&id).ok_or_else(broken)?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

/// Puts the messages into every queue, shuts down what was, and sets the options. Every description is open. Returns
/// what the user should know.
pub(in super::super) fn fill_all(
    descriptions: &[Description],
    mut making: Making,
    opened: &Opened,
    ctx: &RestoreContext,
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
    let mut notes = std::mem::take(&mut making.notes);
    let alone = |state: &State| {
        let paired = matches!(
            state.peer,
            Peer::Socket(_) | Peer::Closed(_) | Peer::Outside
        );
        !paired && !state.queue.is_empty()
    };
    let senders = Senders {
        named: sockets
            .iter()
            .filter(|(_, state, _)| state.kind == Kind::Datagram)
            .filter_map(|(_, state, fd)| Some((state.name.as_ref()?.bytes.as_slice(), *fd)))
            .collect(),
        nobody: match sockets.iter().any(|(_, state, _)| alone(state)) {
            true => Some(plain(Kind::Datagram)?),
            false => None,
        },
        unknown: Cell::new(0),
    };
    for (id, state, fd) in &sockets {
        match &state.peer {
            Peer::Socket(_) if is_late(state) => {}
            Peer::Socket(other) => {
                let sender = opened.fd(*other).ok_or_else(broken)?;
                fill(state, |_| Ok(sender), None, opened)?;
            }
            Peer::Closed(_) | Peer::Outside => {
                let sender = making.closing.get(id).ok_or_else(broken)?;
                fill(state, |_| Ok(sender.as_fd()), None, opened)?;
            }
            _ if state.queue.is_empty() => {}
            _ => {
                let name = state.name.as_ref().ok_or_else(broken)?;
                let to = address(*fd)?;
                name.in_its_directory(ctx, || {
                    fill(state, |message| senders.of(message), Some(&to), opened)
                })?;
            }
        }
    }
    if senders.unknown.get() > 0 {
        notes.push(format!(
            "{} messages that wait to be read are from sockets that are closed: their senders have no names now",
            senders.unknown.get()
        ));
    }
    for (id, state, fd) in &sockets {
        if let Peer::OneWay(other) = state.peer {
            let target = opened.fd(other).ok_or_else(broken)?;
            let name = sockets.iter().find(|(id, ..)| *id == other);
            let name = name.and_then(|(_, state, _)| state.name.as_ref());
            connect_to(*fd, target, name.ok_or_else(broken)?, ctx)?;
        }
        let cut_off = state.peer == Peer::Outside && state.kind != Kind::Datagram;
        if state.reset || cut_off {
            // Who closes a socket with something left in it resets the other side.
            queue::send(route(*fd, None, state), &[0], &[], None)?;
        }
        drop(making.closing.remove(id));
        let how = match (state.read_shut, state.write_shut) {
            (true, true) => Some(Shutdown::Both),
            (true, false) => Some(Shutdown::Read),
            (false, true) => Some(Shutdown::Write),
            (false, false) => None,
        };
        if let (Some(how), false) = (how, matches!(state.peer, Peer::Closed(_) | Peer::Outside)) {
            shutdown(fd, how).context(|| "shutting a socket down".into())?;
        }
        notes.extend(options::restore(&state.options, *fd)?);
    }
    for file in &making.remove {
        std::fs::remove_file(file).context(|| format!("removing {}", file.display()))?;
    }
    Ok(notes)
}

/// Who sends what waits in a datagram socket that is not one of a pair.
struct Senders<'a> {
    named: HashMap<&'a [u8], BorrowedFd<'a>>,
    /// A socket without a name.
    nobody: Option<OwnedFd>,
    /// Messages whose sender is gone.
    unknown: Cell<usize>,
}

impl Senders<'_> {
    fn of(&self, message: &Message) -> Result<BorrowedFd<'_>, EngineError> {
        if let Some(sender) = self.named.get(message.from.as_slice()) {
            return Ok(*sender);
        }
        let unknown = usize::from(!message.from.is_empty());
        self.unknown.set(self.unknown.get() + unknown);
        self.nobody.as_ref().map(AsFd::as_fd).ok_or_else(broken)
    }
}

fn fill<'a>(
    state: &State,
    mut sender: impl FnMut(&Message) -> Result<BorrowedFd<'a>, EngineError>,
    to: Option<&SocketAddrUnix>,
    opened: &Opened,
) -> Result<(), EngineError> {
    for message in &state.queue {
        let rights = message.rights.iter().map(|id| opened.fd(*id));
        let rights: Option<Vec<BorrowedFd>> = rights.collect();
        let sender = sender(message)?;
        widen(sender);
        let rights = rights.ok_or_else(broken)?;
        let route = route(sender, to, state);
        queue::send(route, &message.bytes, &rights, message.sender.as_ref())?;
    }
    Ok(())
}

fn route<'a>(from: BorrowedFd<'a>, to: Option<&'a SocketAddrUnix>, state: &State) -> Route<'a> {
    Route {
        from,
        to,
        kind: state.kind,
    }
}

/// Whether what waits in it has to be sent by a process that does not exist before [`fill_late`].
fn is_late(state: &State) -> bool {
    state.queue.iter().any(|message| message.sender.is_some())
}

/// Sends what only the calling process can, which exists by now, with its id: messages with its credentials.
pub(in super::super) fn fill_late(
    descriptions: &[Description],
    opened: &Opened,
) -> Result<(), EngineError> {
    let here = Pid::current();
    for description in descriptions {
        let Any::UnixSocket(state) = &description.kind else {
            continue;
        };
        let sender = state.queue.iter().find_map(|message| message.sender);
        let (Some(sender), Peer::Socket(other)) = (sender, &state.peer) else {
            continue;
        };
        if sender.pid == here {
            let end = opened.fd(*other).ok_or_else(broken)?;
            fill(state, |_| Ok(end), None, opened)?;
            // Filling has widened its buffer.
            if let Some(Any::UnixSocket(sender)) = descriptions.get(other.index()).map(|d| &d.kind)
            {
                options::restore(&sender.options, end)?;
            }
        }
    }
    Ok(())
}

fn broken() -> EngineError {
    EngineError::Failed("a socket of the image is connected to what is not there".into())
}
