//! The look at all sockets of a tree, before any of them is captured: who is connected to whom, and what is on its way.
//!
//! A descriptor that is on its way in a message belongs to no process. A look at the message gives the supervisor one like it:
//! it is held for as long as the descriptions are captured, and its description is found through the supervisor.

use super::super::capture::Sighted;
use super::super::{CaptureContext, DescriptionId, Found, Obstacle, ProcessView, stdio};
use super::diag::{self, Entry, LISTENING};
use super::{Kind, Message, kind_of, names, queue};
use crate::EngineError;
use crate::error::Context;
use rustix::event::PollFlags;
use rustix::fs::FileType;
use stasis_sys::Pid;
use stasis_sys::socket::{Received, Sender};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What is known of the job's Unix sockets.
#[derive(Debug, Default)]
pub(in super::super) struct Sockets {
    known: HashMap<u32, Entry>,
    /// Those that wait to be accepted, and by which socket.
    waiting: HashMap<u32, u32>,
    /// The names under which sockets of the job listen.
    listening: HashSet<Vec<u8>>,
    queues: HashMap<u32, Result<Vec<Seen>, &'static str>>,
    _held: Vec<OwnedFd>,
}

/// A message in a queue.
#[derive(Debug)]
pub(super) struct Seen {
    pub message: Message,
    /// Who sent it, in the supervisor's numbers, where the socket asks for that and the message says it.
    pub sender: Option<Sender>,
}

/// Through whom descriptors are seen that are on their way: the supervisor, named for the first process of the job.
pub(in super::super) fn carrier(ctx: &CaptureContext) -> ProcessView {
    ProcessView {
        pid: Pid::current(),
        virtual_pid: ctx.processes.first().map_or(Pid(0), |p| p.virtual_pid),
        name: "sent through a socket".into(),
    }
}

impl Sockets {
    /// Looks at all of them; what is on its way is added to `sighted`.
    pub(in super::super) fn look<'a>(
        ctx: &CaptureContext<'a>,
        carrier: &'a ProcessView,
        sighted: &mut Sighted<'a>,
    ) -> Result<Sockets, EngineError> {
        let mut sockets = Sockets::default();
        let mut index = 0;
        while let Some(found) = sighted.founds.get(index) {
            index += 1;
            let is_socket = FileType::from_raw_mode(found.stat.st_mode) == FileType::Socket;
            if !is_socket || !stdio::streams(ctx.stdio, found).is_empty() {
                continue;
            }
            // What is being looked at while it runs may be gone, and its queue is none of the look's business.
            let socket = match found.duplicate() {
                Err(_) if ctx.contents.is_none() => continue,
                socket => socket?,
            };
            let Some(kind) = kind_of(socket.as_fd()) else {
                continue;
            };
            if sockets.known.is_empty() {
                sockets.ask_for_all()?;
            }
            let inode = found.stat.st_ino as u32;
            if !sockets.known.contains_key(&inode)
                && let Some(entry) = diag::one(inode).context(asking)?
            {
                sockets.known.insert(inode, entry);
            }
            let entry = sockets.known.get(&inode);
            // Those that cannot be asked for messages: they have none.
            let silent = entry.is_none_or(|entry| {
                entry.state == LISTENING || entry.peer.is_none() && kind != Kind::Datagram
            });
            if entry.is_some_and(|entry| entry.state == LISTENING) {
                sockets.listening.insert(names::own(socket.as_fd()));
            }
            if ctx.contents.is_none() || silent {
                continue;
            }
            let sender = entry.and_then(|entry| sockets.known.get(&entry.peer?));
            let sender = sender.filter(|sender| sender.peer == Some(inode));
            let sent = sender.map_or(0, |sender| sender.backlog);
            let what = || format!("looking at what waits in {found}");
            let seen = seen(socket.as_fd(), kind, sent).context(what)?;
            let queue = match seen {
                Ok(seen) => Ok(sockets.sort(seen, carrier, sighted)?),
                Err(reason) => Err(reason),
            };
            sockets.queues.insert(inode, queue);
        }
        Ok(sockets)
    }

    /// Finds the descriptions of the descriptors that messages bring along.
    fn sort<'a>(
        &mut self,
        messages: Vec<Received>,
        carrier: &'a ProcessView,
        sighted: &mut Sighted<'a>,
    ) -> Result<Vec<Seen>, EngineError> {
        let mut queue = Vec::with_capacity(messages.len());
        for received in messages {
            let mut rights = Vec::with_capacity(received.rights.len());
            for fd in received.rights {
                let sent = sighted.add(carrier, fd.as_raw_fd())?;
                let (sent, _) = sent.ok_or(EngineError::Gone)?;
                rights.push(DescriptionId(sent as u32));
                self._held.push(fd);
            }
            queue.push(Seen {
                message: Message {
                    bytes: received.bytes,
                    rights,
                    from: names::in_address(&received.address),
                    sender: None,
                },
                sender: received.sender.filter(|sender| sender.pid != Pid(0)),
            });
        }
        Ok(queue)
    }

    fn ask_for_all(&mut self) -> Result<(), EngineError> {
        self.known = diag::all().context(asking)?;
        for (inode, entry) in &self.known {
            let waiting = entry.waiting.iter();
            self.waiting
                .extend(waiting.map(|waiting| (*waiting, *inode)));
        }
        Ok(())
    }

    pub(super) fn entry(&self, found: &Found) -> Option<&Entry> {
        self.known.get(&(found.stat.st_ino as u32))
    }

    /// Which socket it waits for to be accepted.
    pub(super) fn waits_for(&self, entry: &Entry) -> Option<u32> {
        self.waiting.get(&entry.inode).copied()
    }

    /// Whether a socket of the job listens under that name.
    pub(super) fn listens(&self, name: &[u8]) -> bool {
        self.listening.contains(name)
    }

    pub(super) fn queue(&self, found: &Found) -> Result<&[Seen], Obstacle> {
        match self.queues.get(&(found.stat.st_ino as u32)) {
            Some(Ok(queue)) => Ok(queue),
            Some(Err(reason)) => Err(found.refuse(*reason, READ_IT)),
            None => Ok(&[]),
        }
    }
}

/// What waits in a socket; a reason where that cannot be known. `sent` is the memory that its sender's messages take.
fn seen(
    socket: BorrowedFd,
    kind: Kind,
    sent: u32,
) -> io::Result<Result<Vec<Received>, &'static str>> {
    let marks = queue::events(socket)?;
    if marks.contains(PollFlags::PRI) {
        return Ok(Err(URGENT));
    }
    if kind != Kind::Stream && marks.contains(PollFlags::ERR) {
        // A look would take the error away.
        return Ok(match rustix::io::ioctl_fionread(socket)? {
            0 => Ok(Vec::new()),
            _ => Err("is a socket that was reset with messages left in it"),
        });
    }
    let seen = queue::peek(socket, kind)?;
    if queue::hides(&seen, sent, kind)? {
        let reason = "holds messages of no bytes that were looked at before, and are hidden now";
        return Ok(Err(reason));
    }
    Ok(Ok(seen))
}

/// Why a socket cannot be saved that has a byte out of band.
pub(super) const URGENT: &str = "is a socket with urgent data, which cannot be saved yet";
/// What to do about messages that cannot be saved.
pub(super) const READ_IT: &str = "try again when the program has read what was sent to it";

fn asking() -> String {
    "asking the kernel about Unix sockets (module unix_diag)".into()
}
