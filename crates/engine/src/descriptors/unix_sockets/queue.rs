//! What waits in a socket to be read: looking at it without taking it, and putting it into a new socket.
//!
//! Facts (`net/unix/af_unix.c`, `net/core/datagram.c`): everything that was sent is in the queue of the receiver; a socket
//! has none for sending. A peek goes on where the last one ended when `SO_PEEK_OFF` is set, and begins anew where it is -1;
//! it belongs to the socket, so the program's own is put back. On a stream a single peek goes over as many buffers as it has
//! room for, but stops behind descriptors that were sent along. A peek that finds nothing takes a pending error out of the
//! socket: nothing is asked of a stream that is empty. A message of no bytes is found once by a walk, and hidden from
//! later ones, except at the head of the queue ([`hides`]); on a packet socket whose peer has gone it looks like the end.

use super::Kind;
use super::options::{SO_PEEK_OFF, widen};
use crate::EngineError;
use crate::error::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, UCred, socketpair,
};
use stasis_sys::socket::{self, Received};
use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

/// Room for one message of the usual size.
const ROOM: usize = 16 << 10;
/// So many messages of no bytes in a row are taken for the end, where they look like it.
const ENDS: usize = 16;

/// What poll(2) tells of a socket.
pub(in super::super) fn events(socket: BorrowedFd) -> io::Result<PollFlags> {
    let mut polled = [PollFd::new(&socket, PollFlags::IN | PollFlags::PRI)];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(polled[0].revents())
}

/// A copy of everything in the queue, oldest first.
pub(super) fn peek(socket: BorrowedFd, kind: Kind) -> io::Result<Vec<Received>> {
    match kind {
        Kind::Stream => peek_stream(socket),
        Kind::Datagram | Kind::Packets => peek_messages(socket),
    }
}

fn peek_stream(socket: BorrowedFd) -> io::Result<Vec<Received>> {
    let held = rustix::io::ioctl_fionread(socket)? as usize;
    if held == 0 {
        return Ok(Vec::new());
    }
    let offset = Offset::saved(socket)?;
    let mut all: Vec<Received> = Vec::new();
    let mut got = 0;
    while got < held {
        if got > 0 || offset.saved >= 0 {
            offset.set(got)?;
        }
        let part = look(socket, held - got, 0)?;
        let Some(part) = part.filter(|part| part.len > 0) else {
            return Err(io::Error::other(format!("{got} of {held} bytes are there")));
        };
        got += part.len;
        all.push(part);
    }
    Ok(all)
}

pub(in super::super) fn peek_messages(socket: BorrowedFd) -> io::Result<Vec<Received>> {
    let offset = Offset::saved(socket)?;
    let mut all = Vec::new();
    // The first is seen without an offset, even one of no bytes that was seen before.
    if offset.saved >= 0 {
        offset.set_raw(-1)?;
    }
    match look(socket, 0, libc::MSG_TRUNC)? {
        None => return Ok(all),
        Some(first) if first.len == 0 => all.push(first),
        Some(_) => {}
    }
    let (mut room, mut position) = (ROOM, 0);
    offset.set(0)?;
    let mut empty = 0;
    while empty < ENDS {
        let Some(message) = look(socket, room, libc::MSG_TRUNC)? else {
            return Ok(all);
        };
        if message.len > room {
            room = message.len;
            offset.set(position)?;
            continue;
        }
        position += message.len;
        empty = if message.len == 0 { empty + 1 } else { 0 };
        all.push(message);
    }
    all.truncate(all.len() - empty);
    Ok(all)
}

/// Whether a queue of messages holds more than was seen in it: messages of no bytes that somebody has looked at before. The
/// memory that all its messages take is known from their sender, and what those take that were seen is tried.
pub(super) fn hides(seen: &[Received], memory: u32, kind: Kind) -> io::Result<bool> {
    if seen.is_empty() || kind == Kind::Stream {
        return Ok(false);
    }
    let (from, to) = socketpair(AddressFamily::UNIX, kind.raw(), SocketFlags::CLOEXEC, None)?;
    widen(from.as_fd());
    let mut known: HashMap<usize, u32> = HashMap::new();
    let mut takes = |len: usize| -> io::Result<u32> {
        if let Some(takes) = known.get(&len) {
            return Ok(*takes);
        }
        rustix::net::send(&from, &vec![0; len], SendFlags::DONTWAIT)?;
        let takes = socket::unsent(from.as_fd())?;
        rustix::net::recv(&to, &mut [0u8; 1], RecvFlags::DONTWAIT)?;
        known.insert(len, takes);
        Ok(takes)
    };
    let lens = seen.iter().map(|message| message.len);
    let sum = lens.map(&mut takes).sum::<io::Result<u32>>()?;
    let more = memory.saturating_sub(sum);
    // Anything else is no message of no bytes, but one for another socket, or another way to use memory.
    Ok(more > 0 && more % takes(0)? == 0)
}

/// The program's own `SO_PEEK_OFF`, which is set again in the end.
struct Offset<'a> {
    socket: BorrowedFd<'a>,
    saved: i32,
}

impl<'a> Offset<'a> {
    fn saved(socket: BorrowedFd<'a>) -> io::Result<Offset<'a>> {
        let saved = socket::option(socket, SO_PEEK_OFF)?;
        Ok(Offset { socket, saved })
    }

    fn set(&self, position: usize) -> io::Result<()> {
        self.set_raw(i32::try_from(position).map_err(io::Error::other)?)
    }

    fn set_raw(&self, position: i32) -> io::Result<()> {
        socket::set_option(self.socket, SO_PEEK_OFF, position)
    }
}

impl Drop for Offset<'_> {
    fn drop(&mut self) {
        let _ = self.set_raw(self.saved);
    }
}

/// One peek. `None` when there is nothing.
fn look(socket: BorrowedFd, room: usize, flags: i32) -> io::Result<Option<Received>> {
    let flags = flags | libc::MSG_PEEK | libc::MSG_DONTWAIT;
    match socket::receive(socket, room, flags) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Ok(received) if received.incomplete => Err(io::Error::other(
            "a message has more descriptors than this process may open (ulimit -n)",
        )),
        other => other.map(Some),
    }
}

/// Who a message is sent by, to whom.
#[derive(Clone, Copy)]
pub(super) struct Route<'a> {
    /// The sending socket.
    pub from: BorrowedFd<'a>,
    /// An address; `None` for what `from` is connected to.
    pub to: Option<&'a SocketAddrUnix>,
    /// Stream, datagram or packets.
    pub kind: Kind,
}

/// Sends one message with its descriptors; on a stream, as many times as it takes.
pub(super) fn send(
    route: Route,
    bytes: &[u8],
    rights: &[BorrowedFd],
    sender: Option<&super::Sender>,
) -> Result<(), EngineError> {
    let what = || format!("putting {} bytes back into a socket", bytes.len());
    let sent = send_once(route, bytes, rights, sender).context(what)?;
    let mut rest = bytes.get(sent..).unwrap_or_default();
    while route.kind == Kind::Stream && !rest.is_empty() {
        let sent = send_once(route, rest, &[], sender).context(what)?;
        rest = rest.get(sent..).unwrap_or_default();
    }
    Ok(())
}

fn send_once(
    route: Route,
    bytes: &[u8],
    rights: &[BorrowedFd],
    sender: Option<&super::Sender>,
) -> rustix::io::Result<usize> {
    let credentials = sender.and_then(|sender| {
        Some(SendAncillaryMessage::ScmCredentials(UCred {
            pid: rustix::process::Pid::from_raw(sender.pid.0)?,
            uid: rustix::process::Uid::from_raw(sender.uid),
            gid: rustix::process::Gid::from_raw(sender.gid),
        }))
    });
    let rights = (!rights.is_empty()).then_some(SendAncillaryMessage::ScmRights(rights));
    let messages = [credentials, rights];
    let size = messages
        .iter()
        .flatten()
        .map(SendAncillaryMessage::size)
        .sum();
    let mut space = vec![MaybeUninit::uninit(); size];
    let mut control = SendAncillaryBuffer::new(&mut space);
    for message in messages.into_iter().flatten() {
        control.push(message);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let parts = [IoSlice::new(bytes)];
    match route.to {
        Some(to) => rustix::net::sendmsg_addr(route.from, to, &parts, &mut control, flags),
        None => rustix::net::sendmsg(route.from, &parts, &mut control, flags),
    }
}
