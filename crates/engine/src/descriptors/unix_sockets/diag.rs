//! What the kernel tells of Unix sockets over netlink (`sock_diag(7)`): who is connected to whom, by inode.
//!
//! Nothing but the inodes is looked at of sockets that are not the job's. It needs no privilege, and the module
//! `unix_diag`, which the kernel loads by itself where it is not built in.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

/// A Unix socket as the kernel describes it (`net/unix/diag.c`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its inode.
    pub inode: u32,
    /// Its state, a `TCP_*` number of `net/tcp_states.h`.
    pub state: u8,
    /// The inode of what it is connected to: 0 when that was closed or is not accepted yet, `None` when it is not connected.
    pub peer: Option<u32>,
    /// Which directions are shut down: [`READ_SHUT`] and [`WRITE_SHUT`].
    pub shutdown: u8,
    /// The inodes of those that wait to be accepted, oldest first; 0 for one that was closed meanwhile.
    pub waiting: Vec<u32>,
    /// For a listening socket, how many may wait; for others, the memory that what they have sent takes in other queues.
    pub backlog: u32,
    /// Inode and device, in the kernel's own form, of the file that it is bound to.
    pub file: Option<(u32, u32)>,
}

/// `RCV_SHUTDOWN`.
pub(super) const READ_SHUT: u8 = 1;
/// `SEND_SHUTDOWN`.
pub(super) const WRITE_SHUT: u8 = 2;
/// `TCP_LISTEN`.
pub(super) const LISTENING: u8 = 10;

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const AF_UNIX: u8 = 1;
/// `UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN`; shutdown is always shown.
const SHOW: u32 = 2 | 4 | 8 | 0x10;
const FILE: u16 = 1;
const PEER: u16 = 2;
const ICONS: u16 = 3;
const RQLEN: u16 = 4;
const SHUTDOWN: u16 = 6;
const HEADER: usize = 16;
const MESSAGE: usize = 16;

/// Every Unix socket of this network namespace, by its inode.
pub(super) fn all() -> io::Result<HashMap<u32, Entry>> {
    let socket = ask(None)?;
    let mut found = HashMap::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (len, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        for message in Messages(&buffer[..len]) {
            match message? {
                Some(entry) => found.insert(entry.inode, entry),
                None => return Ok(found),
            };
        }
    }
}

/// The one of that inode, if there is one. A dump may miss what others' comings and goings move under it; this does not.
pub(super) fn one(inode: u32) -> io::Result<Option<Entry>> {
    let socket = ask(Some(inode))?;
    let mut buffer = vec![0; 1 << 16];
    let (len, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
    match Messages(&buffer[..len]).next() {
        Some(Err(error)) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
        Some(message) => message,
        None => Ok(None),
    }
}

fn ask(inode: Option<u32>) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let flags = match inode {
        Some(_) => NLM_F_REQUEST,
        None => NLM_F_REQUEST | NLM_F_DUMP,
    };
    let mut request = Vec::with_capacity(40);
    request.extend(40u32.to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([AF_UNIX, 0, 0, 0]);
    let any_state = u32::MAX;
    for word in [any_state, inode.unwrap_or(0), SHOW, u32::MAX, u32::MAX] {
        request.extend(word.to_ne_bytes());
    }
    send(&socket, &request, SendFlags::empty())?;
    Ok(socket)
}

/// The messages of one reply; `None` is the end of a dump.
struct Messages<'a>(&'a [u8]);

impl Iterator for Messages<'_> {
    type Item = io::Result<Option<Entry>>;

    fn next(&mut self) -> Option<Self::Item> {
        let len = word(self.0, 0)? as usize;
        let kind = half(self.0, 4)?;
        let message = self.0.get(..len).filter(|_| len >= HEADER)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or_default();
        Some(match kind {
            NLMSG_DONE => Ok(None),
            NLMSG_ERROR => {
                let code = word(message, HEADER).unwrap_or(0).cast_signed();
                Err(io::Error::from_raw_os_error(-code))
            }
            _ => parse(&message[HEADER..])
                .map(Some)
                .ok_or_else(|| io::Error::other("an answer about sockets that is too short")),
        })
    }
}

fn parse(message: &[u8]) -> Option<Entry> {
    let mut entry = Entry {
        inode: word(message, 4)?,
        state: *message.get(2)?,
        ..Entry::default()
    };
    let mut rest = message.get(MESSAGE..)?;
    while let (Some(len), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let value = rest.get(4..usize::from(len))?;
        match kind {
            FILE => entry.file = Some((word(value, 0)?, word(value, 4)?)),
            PEER => entry.peer = word(value, 0),
            ICONS => entry.waiting = words(value),
            RQLEN => entry.backlog = word(value, 4)?,
            SHUTDOWN => entry.shutdown = *value.first()?,
            _ => {}
        }
        rest = rest.get(aligned(usize::from(len))..).unwrap_or_default();
    }
    Some(entry)
}

fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.chunks_exact(4);
    words.filter_map(|bytes| word(bytes, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn inode(socket: impl AsFd) -> u32 {
        rustix::fs::fstat(socket).expect("stat").st_ino as u32
    }

    #[test]
    fn a_pair_knows_its_ends() {
        let (left, right) = UnixStream::pair().expect("a pair");
        let found = all().expect("a dump");
        assert_eq!(found[&inode(&left)].peer, Some(inode(&right)));
        assert_eq!(found[&inode(&right)].peer, Some(inode(&left)));
        drop(right);
        let alone = one(inode(&left)).expect("an answer").expect("it is there");
        assert_eq!(
            (alone.peer, alone.shutdown),
            (Some(0), READ_SHUT | WRITE_SHUT)
        );
        assert_eq!(one(1).expect("an answer"), None);
    }

    #[test]
    fn garbage_ends_the_list() {
        assert_eq!(Messages(&[7; 40]).count(), 0);
        assert_eq!(Messages(&[0; 40]).count(), 0);
        assert!(parse(&[0; 3]).is_none());
    }
}
