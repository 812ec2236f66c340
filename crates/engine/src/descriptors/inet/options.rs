//! Options of network sockets (`socket(7)`, `ip(7)`, `ipv6(7)`, `tcp(7)`, `udp(7)`).
//!
//! Saved: all that `getsockopt(2)` tells and an ordinary user may set, but for what the kernel keeps there for itself (the
//! segment size, window and quick acknowledgements of a connection). Only those are kept that differ from a new socket's.
//! A buffer's size counts where the program has set it (`SO_BUF_LOCK`); otherwise the kernel goes on choosing it.

use super::super::Found;
use super::Family;
use crate::EngineError;
use crate::error::Context;
use rustix::net::SocketType;
use rustix::net::sockopt::{self, Timeout};
use serde::{Deserialize, Serialize};
use stasis_sys::socket_option;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// The saved options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Those that are a number: level, name and value as `getsockopt(2)` gives it.
    pub numbers: Vec<(i32, i32, i32)>,
    /// Those that are bytes.
    pub bytes: Vec<(i32, i32, Vec<u8>)>,
    /// `SO_RCVTIMEO`.
    pub receive_timeout: Option<Duration>,
    /// `SO_SNDTIMEO`.
    pub send_timeout: Option<Duration>,
    /// `SO_LINGER`.
    pub linger: Option<Duration>,
}

const SOCKET: i32 = libc::SOL_SOCKET;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const UDP: i32 = libc::IPPROTO_UDP;

const SO_REUSEADDR: i32 = 2;
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_REUSEPORT: i32 = 15;
const SO_PEEK_OFF: i32 = 42;
const SO_BUF_LOCK: i32 = 72;
const IPV6_V6ONLY: i32 = 26;

/// Every option that is a number.
const NUMBERS: [(i32, i32); 74] = [
    (SOCKET, SO_REUSEADDR),
    (SOCKET, 5),  // SO_DONTROUTE
    (SOCKET, 6),  // SO_BROADCAST
    (SOCKET, 9),  // SO_KEEPALIVE
    (SOCKET, 10), // SO_OOBINLINE
    (SOCKET, 11), // SO_NO_CHECK
    (SOCKET, SO_REUSEPORT),
    (SOCKET, 16), // SO_PASSCRED
    (SOCKET, 18), // SO_RCVLOWAT
    (SOCKET, 29), // SO_TIMESTAMP
    (SOCKET, 35), // SO_TIMESTAMPNS
    (SOCKET, 36), // SO_MARK
    (SOCKET, 37), // SO_TIMESTAMPING
    (SOCKET, 40), // SO_RXQ_OVFL
    (SOCKET, 41), // SO_WIFI_STATUS
    (SOCKET, SO_PEEK_OFF),
    (SOCKET, 45), // SO_SELECT_ERR_QUEUE
    (SOCKET, 46), // SO_BUSY_POLL
    (SOCKET, 60), // SO_ZEROCOPY
    (SOCKET, 62), // SO_BINDTOIFINDEX
    (SOCKET, 63), // SO_TIMESTAMP_NEW
    (SOCKET, 64), // SO_TIMESTAMPNS_NEW
    (SOCKET, 69), // SO_PREFER_BUSY_POLL
    (SOCKET, 74), // SO_TXREHASH
    (IP, 1),      // IP_TOS
    (SOCKET, 12), // SO_PRIORITY, which IP_TOS changes as well
    (IP, 2),      // IP_TTL
    (IP, 6),      // IP_RECVOPTS
    (IP, 7),      // IP_RETOPTS
    (IP, 8),      // IP_PKTINFO
    (IP, 10),     // IP_MTU_DISCOVER
    (IP, 11),     // IP_RECVERR
    (IP, 12),     // IP_RECVTTL
    (IP, 13),     // IP_RECVTOS
    (IP, 15),     // IP_FREEBIND
    (IP, 20),     // IP_RECVORIGDSTADDR
    (IP, 21),     // IP_MINTTL
    (IP, 24),     // IP_BIND_ADDRESS_NO_PORT
    (IP, 25),     // IP_RECVFRAGSIZE
    (IP, 26),     // IP_RECVERR_RFC4884
    (IP, 33),     // IP_MULTICAST_TTL
    (IP, 34),     // IP_MULTICAST_LOOP
    (IP, 49),     // IP_MULTICAST_ALL
    (IP, 50),     // IP_UNICAST_IF
    (IP, 51),     // IP_LOCAL_PORT_RANGE
    (IPV6, 16),   // IPV6_UNICAST_HOPS
    (IPV6, 17),   // IPV6_MULTICAST_IF
    (IPV6, 18),   // IPV6_MULTICAST_HOPS
    (IPV6, 19),   // IPV6_MULTICAST_LOOP
    (IPV6, 23),   // IPV6_MTU_DISCOVER
    (IPV6, 25),   // IPV6_RECVERR
    (IPV6, 29),   // IPV6_MULTICAST_ALL
    (IPV6, 33),   // IPV6_FLOWINFO_SEND
    (IPV6, 49),   // IPV6_RECVPKTINFO
    (IPV6, 51),   // IPV6_RECVHOPLIMIT
    (IPV6, 62),   // IPV6_DONTFRAG
    (IPV6, 66),   // IPV6_RECVTCLASS
    (IPV6, 67),   // IPV6_TCLASS
    (IPV6, 70),   // IPV6_AUTOFLOWLABEL
    (IPV6, 72),   // IPV6_ADDR_PREFERENCES
    (IPV6, 74),   // IPV6_RECVORIGDSTADDR
    (IPV6, 76),   // IPV6_UNICAST_IF
    (TCP, libc::TCP_NODELAY),
    (TCP, libc::TCP_CORK),
    (TCP, libc::TCP_KEEPIDLE),
    (TCP, libc::TCP_KEEPINTVL),
    (TCP, libc::TCP_KEEPCNT),
    (TCP, libc::TCP_SYNCNT),
    (TCP, libc::TCP_LINGER2),
    (TCP, libc::TCP_DEFER_ACCEPT),
    (TCP, libc::TCP_USER_TIMEOUT),
    (TCP, 23), // TCP_FASTOPEN
    (TCP, 25), // TCP_NOTSENT_LOWAT
    (TCP, 30), // TCP_FASTOPEN_CONNECT
];

/// Those of UDP.
const UDP_NUMBERS: [(i32, i32); 5] = [
    (UDP, 1),   // UDP_CORK
    (UDP, 101), // UDP_NO_CHECK6_TX
    (UDP, 102), // UDP_NO_CHECK6_RX
    (UDP, 103), // UDP_SEGMENT
    (UDP, 104), // UDP_GRO
];

/// Every option that is bytes: `SO_BINDTODEVICE`, `IP_MULTICAST_IF`, `TCP_CONGESTION`.
const BYTES: [(i32, i32); 3] = [(SOCKET, 25), (IP, 32), (TCP, libc::TCP_CONGESTION)];

type Key = (i32, i32);

/// What a socket that nobody has touched says, for each kind that was seen.
#[derive(Debug, Default)]
pub(in super::super) struct Scope {
    fresh: HashMap<(Family, u32), Fresh>,
}

#[derive(Debug, Default)]
struct Fresh {
    numbers: HashMap<Key, i32>,
    bytes: HashMap<Key, Vec<u8>>,
}

fn numbers_of(fd: BorrowedFd, family: Family, kind: SocketType) -> Vec<(Key, i32)> {
    let own = |(level, _): &Key| match *level {
        TCP => kind == SocketType::STREAM,
        IPV6 => family == Family::V6,
        _ => true,
    };
    let udp: &[Key] = match kind {
        SocketType::DGRAM => &UDP_NUMBERS,
        _ => &[],
    };
    let all = NUMBERS.iter().chain(udp).filter(|key| own(key));
    all.filter_map(|key| Some((*key, socket_option::number(fd, key.0, key.1).ok()?)))
        .collect()
}

fn bytes_of(fd: BorrowedFd, kind: SocketType) -> Vec<(Key, Vec<u8>)> {
    let own = |(level, _): &&Key| *level != TCP || kind == SocketType::STREAM;
    let value = |key: &Key| {
        let mut value = vec![0; 64];
        let len = socket_option::bytes(fd, key.0, key.1, &mut value).ok()?;
        value.truncate(len);
        Some((*key, value))
    };
    BYTES.iter().filter(own).filter_map(value).collect()
}

impl Scope {
    fn fresh(&mut self, family: Family, kind: SocketType) -> Result<&Fresh, EngineError> {
        let key = (family, kind.as_raw());
        Ok(match self.fresh.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let socket = family.socket(kind)?;
                unknown.insert(Fresh {
                    numbers: numbers_of(socket.as_fd(), family, kind)
                        .into_iter()
                        .collect(),
                    bytes: bytes_of(socket.as_fd(), kind).into_iter().collect(),
                })
            }
        })
    }

    /// Reads the options of a socket.
    pub fn capture(
        &mut self,
        fd: BorrowedFd,
        family: Family,
        kind: SocketType,
        found: &Found,
    ) -> Result<Options, EngineError> {
        let what = || format!("asking for the options of {found}");
        let fresh = self.fresh(family, kind)?;
        let numbers = numbers_of(fd, family, kind).into_iter();
        let numbers = numbers.filter(|(key, value)| fresh.numbers.get(key) != Some(value));
        let mut numbers: Vec<_> = numbers.map(|((l, n), value)| (l, n, value)).collect();
        if family == Family::V6 {
            let only = socket_option::number(fd, IPV6, IPV6_V6ONLY).context(what)?;
            numbers.push((IPV6, IPV6_V6ONLY, only));
        }
        let set = socket_option::number(fd, SOCKET, SO_BUF_LOCK).unwrap_or(0);
        for (bit, name) in [(1, SO_SNDBUF), (2, SO_RCVBUF)] {
            if set & bit != 0 {
                let size = socket_option::number(fd, SOCKET, name).context(what)?;
                numbers.push((SOCKET, name, size));
            }
        }
        let bytes = bytes_of(fd, kind).into_iter();
        let bytes = bytes.filter(|(key, value)| fresh.bytes.get(key) != Some(value));
        Ok(Options {
            numbers,
            bytes: bytes.map(|((l, n), value)| (l, n, value)).collect(),
            receive_timeout: sockopt::socket_timeout(fd, Timeout::Recv).context(what)?,
            send_timeout: sockopt::socket_timeout(fd, Timeout::Send).context(what)?,
            linger: sockopt::socket_linger(fd).context(what)?,
        })
    }
}

impl Options {
    fn number(&self, level: i32, name: i32) -> i32 {
        let found = self.numbers.iter();
        let mut found = found.filter(|(l, n, _)| (*l, *n) == (level, name));
        found.next().map_or(0, |(_, _, value)| *value)
    }

    /// Makes a new socket one that can be bound where the saved one was, whatever else is connected through the same port.
    pub(in super::super) fn prepare(
        &self,
        fd: BorrowedFd,
        family: Family,
    ) -> Result<(), EngineError> {
        self.prepare_shared(fd, family)?;
        socket_option::set_number(fd, SOCKET, SO_REUSEADDR, 1)
            .context(|| "making a network socket".into())
    }

    /// The same, for a socket that shares its port with those only that the program wants there.
    pub(in super::super) fn prepare_shared(
        &self,
        fd: BorrowedFd,
        family: Family,
    ) -> Result<(), EngineError> {
        let before = [
            (SOCKET, SO_REUSEADDR),
            (SOCKET, SO_REUSEPORT),
            (IP, 15), // IP_FREEBIND
        ];
        let only = (IPV6, IPV6_V6ONLY);
        let v6 = (family == Family::V6).then_some(only);
        for (level, name) in before.into_iter().chain(v6) {
            let value = self.number(level, name);
            if value != 0 || (level, name) == only {
                socket_option::set_number(fd, level, name, value)
                    .context(|| "making a network socket".into())?;
            }
        }
        Ok(())
    }

    /// Gives it room for as much as the saved one could hold.
    pub(in super::super) fn make_room(&self, fd: BorrowedFd) -> Result<(), EngineError> {
        match self.number(SOCKET, SO_RCVBUF) {
            0 => Ok(()),
            // The kernel doubles what it is given (socket(7)).
            size => socket_option::set_number(fd, SOCKET, SO_RCVBUF, size / 2)
                .context(|| "making room in a socket".into()),
        }
    }

    /// Sets them all. Returns what could not be set.
    pub(in super::super) fn restore(&self, fd: BorrowedFd) -> Result<Vec<String>, EngineError> {
        let what = || "setting the options of a network socket".to_owned();
        let mut notes = Vec::new();
        // What was set to prepare it, or was inherited from who listened.
        for name in [SO_REUSEADDR, SO_REUSEPORT] {
            let wanted = self.number(SOCKET, name);
            if socket_option::number(fd, SOCKET, name).ok() != Some(wanted) {
                socket_option::set_number(fd, SOCKET, name, wanted).context(what)?;
            }
        }
        for &(level, name, wanted) in &self.numbers {
            if (level, name) == (IPV6, IPV6_V6ONLY)
                || socket_option::number(fd, level, name).ok() == Some(wanted)
                    && !matches!((level, name), (SOCKET, SO_SNDBUF | SO_RCVBUF))
            {
                continue;
            }
            // The kernel doubles what it is given as a size of these, for its own needs (socket(7)).
            let given = match (level, name) {
                (SOCKET, SO_SNDBUF | SO_RCVBUF) => wanted / 2,
                _ => wanted,
            };
            let set = socket_option::set_number(fd, level, name, given);
            let have = socket_option::number(fd, level, name).unwrap_or(0);
            if have != wanted {
                notes.push(unset(level, name, wanted, have, set.err()));
            }
        }
        for (level, name, wanted) in &self.bytes {
            if let Err(error) = socket_option::set_bytes(fd, *level, *name, wanted) {
                let text = String::from_utf8_lossy(wanted);
                let text = text.trim_end_matches('\0');
                notes.push(format!(
                    "option {name} (level {level}) of a socket could not be set to \"{text}\": {error}"
                ));
            }
        }
        for (timeout, value) in [
            (Timeout::Recv, self.receive_timeout),
            (Timeout::Send, self.send_timeout),
        ] {
            if value.is_some() {
                sockopt::set_socket_timeout(fd, timeout, value).context(what)?;
            }
        }
        if self.linger.is_some() {
            sockopt::set_socket_linger(fd, self.linger).context(what)?;
        }
        Ok(notes)
    }
}

fn unset(level: i32, name: i32, wanted: i32, have: i32, error: Option<std::io::Error>) -> String {
    match (level, name, error) {
        (SOCKET, SO_SNDBUF | SO_RCVBUF, _) => format!(
            "a socket with a buffer of {wanted} bytes has {have} now (/proc/sys/net/core/wmem_max, rmem_max)"
        ),
        (_, _, Some(error)) => format!(
            "option {name} (level {level}) of a socket could not be set to {wanted}: {error}"
        ),
        _ => format!("option {name} (level {level}) of a socket is {have}, and was {wanted}"),
    }
}
