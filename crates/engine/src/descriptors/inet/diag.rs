//! What the kernel tells of TCP sockets over netlink (`sock_diag(7)`): addresses, states, and whose they are, by inode.
//!
//! Sockets that wait to be accepted and those that live on after their program has closed them have no inode, and show here
//! alone. It needs no privilege, and the modules `tcp_diag` and `inet_diag`, which the kernel loads by itself where they are not
//! built in. The layouts are those of `linux/inet_diag.h`.

use super::Family;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `TCP_*` of `net/tcp_states.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) struct TcpState(pub u8);

impl TcpState {
    pub const ESTABLISHED: TcpState = TcpState(1);
    pub const SYN_SENT: TcpState = TcpState(2);
    pub const FIN_WAIT1: TcpState = TcpState(4);
    pub const FIN_WAIT2: TcpState = TcpState(5);
    pub const TIME_WAIT: TcpState = TcpState(6);
    pub const CLOSED: TcpState = TcpState(7);
    pub const CLOSE_WAIT: TcpState = TcpState(8);
    pub const LAST_ACK: TcpState = TcpState(9);
    pub const LISTEN: TcpState = TcpState(10);
    pub const CLOSING: TcpState = TcpState(11);

    /// The end of its stream was received.
    pub fn has_heard_the_end(self) -> bool {
        [
            TcpState::CLOSE_WAIT,
            TcpState::LAST_ACK,
            TcpState::CLOSING,
            TcpState::CLOSED,
        ]
        .contains(&self)
    }

    /// It has ended its own stream.
    pub fn has_ended(self) -> bool {
        [
            TcpState::FIN_WAIT1,
            TcpState::FIN_WAIT2,
            TcpState::LAST_ACK,
            TcpState::CLOSING,
            TcpState::CLOSED,
        ]
        .contains(&self)
    }
}

/// A TCP socket as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Entry {
    pub state: TcpState,
    /// Address and port, IPv4 in its own form.
    pub local: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    /// Bytes to be read; for one that listens, how many wait to be accepted.
    pub unread: u32,
    /// For one that listens, how many may wait.
    pub backlog: u32,
    /// 0 for one that no descriptor refers to.
    pub inode: u32,
    /// Which directions are shut down: 1 for reading, 2 for writing.
    pub shutdown: u8,
}

const BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 1 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
const SHUTDOWN: u16 = 8;

/// Every TCP socket of this network namespace, but those that wait for old segments to pass (`TIME_WAIT`): these too with
/// `all`.
pub(in super::super) fn tcp(all: bool) -> io::Result<Vec<Entry>> {
    let mut states = u32::MAX;
    if !all {
        states &= !(1 << TcpState::TIME_WAIT.0);
    }
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        match dump(family, states, &mut found) {
            // A host without IPv6.
            Err(_) if family == Family::V6 => {}
            other => other?,
        }
    }
    Ok(found)
}

fn dump(family: Family, states: u32, found: &mut Vec<Entry>) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let mut request = Vec::with_capacity(HEADER + 56);
    request.extend((HEADER as u32 + 56).to_ne_bytes());
    request.extend(BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    let family = u8::try_from(family.raw().as_raw()).map_err(io::Error::other)?;
    request.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(states.to_ne_bytes());
    request.extend([0; 48]); // any address
    send(&socket, &request, SendFlags::empty())?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        let (len, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..len];
        while let (Some(len), Some(kind)) = (word(rest, 0), half(rest, 4)) {
            let Some(message) = rest.get(HEADER..len as usize) else {
                break;
            };
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = word(message, 0).unwrap_or(0).cast_signed();
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => found.extend(parse(message)),
            }
            let next = (len as usize).next_multiple_of(4);
            rest = rest.get(next..).unwrap_or_default();
        }
    }
}

fn parse(message: &[u8]) -> Option<Entry> {
    let fixed = message.get(..MESSAGE)?;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = fixed.get(at..at + 16)?.try_into().ok()?;
        Some(match i32::from(fixed[0]) {
            libc::AF_INET => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
            _ => Ipv6Addr::from(bytes).to_canonical(),
        })
    };
    let port = |at: usize| Some(u16::from_be_bytes(fixed.get(at..at + 2)?.try_into().ok()?));
    let mut entry = Entry {
        state: TcpState(fixed[1]),
        local: (address(8)?, port(4)?),
        remote: (address(24)?, port(6)?),
        unread: word(fixed, 56)?,
        backlog: word(fixed, 60)?,
        inode: word(fixed, 68)?,
        shutdown: 0,
    };
    let mut rest = message.get(MESSAGE..)?;
    while let (Some(len), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let value = rest.get(4..usize::from(len))?;
        if kind == SHUTDOWN {
            entry.shutdown = *value.first()?;
        }
        let next = usize::from(len).next_multiple_of(4);
        rest = rest.get(next..).unwrap_or_default();
    }
    Some(entry)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_that_waits_has_no_inode() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("it listens");
        let inode = rustix::fs::fstat(&client).expect("stat").st_ino as u32;
        let found = tcp(false).expect("a dump");
        let find = |inode: u32, state| {
            let mut entries = found.iter().filter(|entry| entry.state == state);
            let is_it = |entry: &&Entry| {
                entry.inode == inode && [entry.local.1, entry.remote.1].contains(&address.port())
            };
            entries.find(is_it).cloned().expect("it is there")
        };
        let own = find(inode, TcpState::ESTABLISHED);
        let other = find(0, TcpState::ESTABLISHED);
        assert_eq!((own.local, own.remote), (other.remote, other.local));
        let listening = rustix::fs::fstat(&listener).expect("stat").st_ino as u32;
        assert_eq!(find(listening, TcpState::LISTEN).unread, 1);
    }

    #[test]
    fn garbage_is_nothing() {
        assert_eq!(parse(&[1; 30]), None);
        assert_eq!(word(&[1, 2, 3], 0), None);
    }
}
