//! The look at all sockets of a tree, before any of them is captured: who is connected to whom, and what is on its way.
//!
//! A descriptor that is on its way in a message belongs to no process. A look at the message gives the supervisor one like it:
//! it is held for as long as the descriptions are captured, and its description is found through the supervisor.

use super::super::capture::Sighted;
use super::super::{CaptureContext, DescriptionId, Found, Obstacle, ProcessView, stdio};
use super::diag::{self, Entry, LISTENING};
use super::{Message, kind_of, names, queue};
use crate::EngineError;
use crate::error::Context;
use rustix::event::PollFlags;
use rustix::fs::FileType;
use stasis_sys::Pid;
use stasis_sys::socket::Sender;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

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
                entry.state == LISTENING || entry.peer.is_none() && kind != super::Kind::Datagram
            });
            if entry.is_some_and(|entry| entry.state == LISTENING) {
                sockets.listening.insert(names::own(socket.as_fd()));
            }
            if ctx.contents.is_none() || silent {
                continue;
            }
            let what = || format!("looking at what waits in {found}");
            if kind != super::Kind::Stream
                && queue::events(socket.as_fd())
                    .context(what)?
                    .contains(PollFlags::ERR)
            {
                // A look would take the error away.
                let held = rustix::io::ioctl_fionread(&socket).context(what)? > 0;
                let words = "is a socket that was reset with messages left in it";
                let queue = if held { Err(words) } else { Ok(Vec::new()) };
                sockets.queues.insert(inode, queue);
                continue;
            }
            let peer = entry.and_then(|entry| sockets.known.get(&entry.peer?));
            let mutual = peer.filter(|peer| peer.peer == Some(inode));
            let seen = queue::peek(socket.as_fd(), kind).context(what)?;
            if let Some(sender) = mutual
                && queue::hides(&seen, sender.backlog, kind).context(what)?
            {
                let words =
                    "holds messages of no bytes that were looked at before, and are hidden now";
                sockets.queues.insert(inode, Err(words));
                continue;
            }
            let mut queue = Vec::new();
            for received in seen {
                let mut rights = Vec::with_capacity(received.rights.len());
                for fd in received.rights {
                    let sent = sighted.add(carrier, fd.as_raw_fd())?;
                    let (sent, _) = sent.ok_or(EngineError::Gone)?;
                    rights.push(DescriptionId(sent as u32));
                    sockets._held.push(fd);
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
            sockets.queues.insert(inode, Ok(queue));
        }
        Ok(sockets)
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
            Some(Err(reason)) => {
                Err(found.refuse(*reason, "try again when the program has read them"))
            }
            None => Ok(&[]),
        }
    }
}

fn asking() -> String {
    "asking the kernel about Unix sockets (module unix_diag)".into()
}
