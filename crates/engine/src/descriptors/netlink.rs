//! Netlink sockets (`netlink(7)`): lines to the kernel, as programs keep them to ask for routes and interfaces.
//!
//! Saved: protocol, port id, the groups that it listens to, options, flags. Not saved, and refused by name: answers that were not
//! read yet (tried again for a while), an answer that is being given, filters, and protocols other than those that ordinary
//! programs use. What happened between checkpoint and restart no group tells of.
//!
//! Facts: `/proc/net/netlink` shows, by inode, what waits and whether a list is being given (`net/netlink/af_netlink.c`). A port id
//! that is taken is replaced by another one.

use super::capture::{Found, Obstacle, Survey};
use super::set_status;
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, SocketFlags, bind, getsockname, socket_with,
};
use serde::{Deserialize, Serialize};
use stasis_sys::{procfs, socket, socket_option};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) const SOCKET: Claim = Claim::kept(
    "netlink socket",
    "protocol, port id, groups, options",
    &["udp::lines"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    SOCKET,
    Claim::refused(
        "netlink socket with an answer that was not read yet",
        "tried again for a while, as it passes",
        &["udp::answer"],
    ),
    Claim::refused(
        "netlink socket of an unusual protocol",
        "",
        &["engine-descriptors::refused::sockets"],
    ),
];

/// A saved socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `SOCK_RAW` or `SOCK_DGRAM`, which are the same here.
    pub kind: u32,
    /// `NETLINK_*`.
    pub protocol: u32,
    /// Status flags.
    pub flags: u32,
    /// Its port id; 0 when it has none yet.
    pub port: u32,
    /// The groups that it listens to, counted from 1.
    pub groups: Vec<u32>,
    /// Options that are set: level, name, value.
    pub options: Vec<(i32, i32, i32)>,
}

const SOL_NETLINK: i32 = 270;
const NETLINK_ADD_MEMBERSHIP: i32 = 1;
const NETLINK_LIST_MEMBERSHIPS: i32 = 9;

/// `NETLINK_ROUTE`, `SOCK_DIAG`, `KOBJECT_UEVENT`, `GENERIC`.
const PROTOCOLS: [u32; 4] = [0, 4, 15, 16];

/// `SO_PASSCRED`, `SO_TIMESTAMP`; packet information, errors of broadcasts, no `ENOBUFS`, short and long acknowledgements, strict
/// checks.
const OPTIONS: [(i32, i32); 8] = [
    (libc::SOL_SOCKET, 16),
    (libc::SOL_SOCKET, 29),
    (SOL_NETLINK, 3),
    (SOL_NETLINK, 4),
    (SOL_NETLINK, 5),
    (SOL_NETLINK, 10),
    (SOL_NETLINK, 11),
    (SOL_NETLINK, 12),
];
const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
const SO_BUF_LOCK: i32 = 72;

/// Captures one; `None` for another kind of socket.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<Option<State>, Obstacle> {
    const SO_PROTOCOL: i32 = 38;
    const CLOSE: &str = "let the program close it before the checkpoint";
    let duplicate = found.duplicate()?;
    let fd = duplicate.as_fd();
    let what = || format!("looking at {found}");
    if socket_domain(fd).context(what)? != AddressFamily::NETLINK {
        return Ok(None);
    }
    let protocol = socket::option(fd, SO_PROTOCOL)
        .context(what)?
        .cast_unsigned();
    if !PROTOCOLS.contains(&protocol) {
        let reason = format!("is a netlink socket of protocol {protocol}, which cannot be saved");
        return Err(found.refuse(reason, CLOSE));
    }
    if socket::has_filter(fd).unwrap_or(true) {
        return Err(found.refuse(
            "is a netlink socket with a filter, which cannot be saved",
            CLOSE,
        ));
    }
    let table = procfs::read_to_string("/proc/self/net/netlink").unwrap_or_default();
    let busy = table.lines().find_map(|line| busy(line, found.stat.st_ino));
    if busy != Some(false) && whole.ctx.contents.is_some() {
        let reason = "is a netlink socket with an answer of the kernel that was not read yet";
        return Err(found.passing(reason, "try again when the program has read it"));
    }
    let name = SocketAddrNetlink::try_from(getsockname(fd).context(what)?).context(what)?;
    let set = socket::option(fd, SO_BUF_LOCK).unwrap_or(0);
    let sizes = [(1, SO_SNDBUF), (2, SO_RCVBUF)];
    let sizes = sizes.into_iter().filter(|(bit, _)| set & bit != 0);
    let options = OPTIONS
        .into_iter()
        .chain(sizes.map(|(_, name)| (libc::SOL_SOCKET, name)))
        .filter_map(|(level, name)| {
            let value = socket_option::number(fd, level, name).ok()?;
            (value != 0).then_some((level, name, value))
        });
    Ok(Some(State {
        kind: socket_type(fd).context(what)?.as_raw(),
        protocol,
        flags: found.info.flags,
        port: name.pid(),
        groups: groups(fd),
        options: options.collect(),
    }))
}

/// Whether the socket of that inode has something to be read, or to be told; `None` where the line is of another one.
fn busy(line: &str, inode: u64) -> Option<bool> {
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    (words.get(9)?.parse() == Ok(inode)).then_some(words[4] != "0" || words[6] != "0")
}

fn groups(fd: BorrowedFd) -> Vec<u32> {
    let mut bits = [0; 256];
    let len = socket_option::bytes(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, &mut bits);
    let words = bits[..len.unwrap_or(0).min(bits.len())].chunks_exact(4);
    let words = words.filter_map(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
    let set = words.enumerate().flat_map(|(place, word)| {
        let set = (0..32).filter(move |bit| word & (1 << bit) != 0);
        set.map(move |bit| place as u32 * 32 + bit + 1)
    });
    set.collect()
}

/// Makes it. Returns what the user should know, too.
pub(super) fn restore(state: &State) -> Result<(OwnedFd, Vec<String>), EngineError> {
    let what = || "making a netlink socket".to_owned();
    let fd = socket_with(
        AddressFamily::NETLINK,
        rustix::net::SocketType::from_raw(state.kind),
        SocketFlags::CLOEXEC,
        RawProtocol::new(state.protocol).map(Protocol::from_raw),
    )
    .context(what)?;
    let mut notes = Vec::new();
    if state.port != 0 {
        match bind(&fd, &SocketAddrNetlink::new(state.port, 0)) {
            Err(Errno::ADDRINUSE) => {
                notes.push(format!(
                    "a netlink socket has another port id, as {} is taken",
                    state.port
                ));
                bind(&fd, &SocketAddrNetlink::new(0, 0)).context(what)?;
            }
            other => other.context(what)?,
        }
    }
    let numbers = state.groups.iter();
    let groups = numbers.map(|group| (SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group.cast_signed()));
    for (level, name, value) in state.options.iter().copied().chain(groups) {
        let given = match (level, name) {
            // The kernel doubles what it is given (socket(7)).
            (libc::SOL_SOCKET, SO_SNDBUF | SO_RCVBUF) => value / 2,
            _ => value,
        };
        if let Err(error) = socket_option::set_number(fd.as_fd(), level, name, given) {
            notes.push(format!(
                "option {name} (level {level}) of a netlink socket could not be set to {value}: {error}"
            ));
        }
    }
    set_status(fd.as_fd(), state.flags)?;
    Ok((fd, notes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lists() {
        let line = "0000000000000000 0   1234       00000000 0        0        0     2        0        51915";
        assert_eq!(busy(line, 51915), Some(false));
        assert_eq!(
            busy(
                &line.replace(" 0        0        0 ", " 768      0        0 "),
                51915
            ),
            Some(true)
        );
        assert_eq!(busy(line, 1), None);
        assert_eq!(busy("sk Eth Pid", 1), None);
    }
}
