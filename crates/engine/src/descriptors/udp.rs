//! UDP sockets (`udp(7)`), over IPv4 and IPv6.
//!
//! Saved: addresses, also that of the other side of one that is connected, whoever that is; the datagrams that wait, each with
//! its sender, where that was on this host; memberships in multicast groups; options, status flags, owner of signals.
//!
//! Not saved: datagrams from other hosts that wait to be read, which are lost as the network may lose them (a note says how
//! many); an error of an earlier datagram that the program has not heard of. Refused: a datagram that is being put together
//! (`UDP_CORK`, `MSG_MORE`), memberships limited to certain senders, filters, encapsulation.
//!
//! Facts: looking at what waits (`MSG_PEEK`) works as for Unix datagram sockets. A pending error would be taken away by a look.
//! A connected socket receives from its peer only, so that it is filled before it is connected (`net/ipv4/udp.c`).

use super::capture::{Found, Obstacle, Survey};
use super::inet::{self, Address, Family, Membership, Options};
use super::{Description, DescriptionId, Kind, Opening, Plan, set_status, unix_sockets};
use crate::conformance::Claim;
use crate::error::Context;
use crate::{EngineError, Refusal};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, SocketType, bind, connect, ipproto, sendto, shutdown};
use serde::{Deserialize, Serialize};
use stasis_sys::{socket, socket_option};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) const SOCKET: Claim = Claim::kept(
    "UDP socket",
    "addresses, groups, options; datagrams that wait, where they came from this host",
    &["udp::queues", "udp::connected", "udp::groups"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    SOCKET,
    Claim::refused(
        "UDP datagram that is being put together (UDP_CORK)",
        "tried again for a while, as it passes",
        &["udp::corked"],
    ),
];

/// A saved socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Status flags.
    pub flags: u32,
    /// Its own address.
    pub local: Option<Address>,
    /// What it is connected to.
    pub remote: Option<Address>,
    /// What waits to be read, oldest first.
    pub queue: Vec<Datagram>,
    /// Reading is shut down.
    pub read_shut: bool,
    /// The multicast groups that it has joined.
    pub groups: Vec<Membership>,
    /// Its options.
    pub options: Options,
}

/// A datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Who sent it.
    pub from: Address,
    /// Its contents.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

const UDP_CORK: i32 = 1;
const UDP_ENCAP: i32 = 100;
const CLOSE: &str = "let the program close it before the checkpoint";

/// Captures one; `None` for another kind of socket.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<Option<State>, Obstacle> {
    let duplicate = found.duplicate()?;
    let fd = duplicate.as_fd();
    let Some((family, ipproto::UDP)) = inet::kind_of(fd) else {
        return Ok(None);
    };
    if socket::has_filter(fd).unwrap_or(true) {
        return Err(found.refuse("is a socket with a filter, which cannot be saved", CLOSE));
    }
    let udp = |name| socket_option::number(fd, libc::IPPROTO_UDP, name).unwrap_or(0);
    if udp(UDP_ENCAP) != 0 {
        return Err(found.refuse("is a tunnel over UDP, which cannot be saved", CLOSE));
    }
    let what = || format!("looking at {found}");
    if socket::unsent(fd).context(what)? > 0 && whole.ctx.contents.is_some() {
        let reason = match udp(UDP_CORK) {
            0 => "has a datagram on its way out",
            _ => "has a datagram that is not complete yet (UDP_CORK)",
        };
        return Err(found.passing(reason, "try again when it was sent"));
    }
    let marks = unix_sockets::events(fd).context(what)?;
    let unread = rustix::io::ioctl_fionread(fd).context(what)? > 0;
    if marks.contains(PollFlags::ERR) && unread {
        let reason = "has both datagrams and an error to tell of";
        return Err(found.passing(reason, "try again when the program has read them"));
    }
    let look = whole.ctx.contents.is_some() && !marks.contains(PollFlags::ERR);
    let queue = match look {
        true => unix_sockets::peek_datagrams(fd).context(what)?,
        false => Vec::new(),
    };
    let queue = queue.into_iter().filter_map(|received| {
        Some(Datagram {
            from: sender(&received.address)?,
            bytes: received.bytes,
        })
    });
    let mut scope = whole.scope.borrow_mut();
    Ok(Some(State {
        family,
        flags: found.info.flags,
        local: Address::own(fd),
        remote: Address::of_peer(fd),
        queue: queue.collect(),
        read_shut: marks.contains(PollFlags::HUP),
        groups: inet::joined(fd, family, found)?,
        options: scope.capture(fd, family, SocketType::DGRAM, found)?,
    }))
}

/// A sender's address as the kernel writes it, from `sa_family` on.
fn sender(raw: &[u8]) -> Option<Address> {
    let family = i32::from(u16::from_ne_bytes(raw.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(raw.get(2..4)?.try_into().ok()?);
    let address: SocketAddr = match family {
        libc::AF_INET => {
            let ip: [u8; 4] = raw.get(4..8)?.try_into().ok()?;
            (Ipv4Addr::from(ip), port).into()
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = raw.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(raw.get(24..28)?.try_into().ok()?);
            SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into()
        }
        _ => return None,
    };
    Address::of(address)
}

fn states(descriptions: &[Description]) -> impl Iterator<Item = (DescriptionId, &State)> {
    let all = descriptions.iter().enumerate();
    all.filter_map(|(index, description)| match &description.kind {
        Kind::Udp(state) => Some((DescriptionId(index as u32), state)),
        _ => None,
    })
}

impl State {
    /// Its addresses.
    pub(super) fn words(&self) -> Option<String> {
        inet::words(self.local, self.remote)
    }
}

/// What a restart does with addresses: those that others have are in the way.
pub(super) fn plan(descriptions: &[Description], plan: &mut Plan) {
    // Several may share one.
    let mut probes = Vec::new();
    for (_, state) in states(descriptions) {
        let Some(local) = state.local.filter(|local| local.port != 0) else {
            continue;
        };
        let Ok(probe) = state.family.socket(SocketType::DGRAM) else {
            continue;
        };
        let tried = bind_as(probe.as_fd(), state, &local);
        if let Err(Errno::ADDRINUSE) = tried {
            plan.refusals.push(Refusal {
                pid: None,
                process: String::new(),
                object: format!("the address {local} (UDP)"),
                reason: "a running program has it".to_owned(),
                hint: "end that program".to_owned(),
            });
        }
        probes.push(probe);
    }
}

fn bind_as(fd: BorrowedFd, state: &State, local: &Address) -> rustix::io::Result<()> {
    let prepared = state.options.prepare_shared(fd, state.family);
    // What this does not set is missed when it is bound.
    drop(prepared);
    bind(fd, &local.raw())
}

/// Sockets that are made, until their turn comes.
#[derive(Debug, Default)]
pub(super) struct Making {
    made: HashMap<DescriptionId, OwnedFd>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Makes every UDP socket of the image, with what waits in it.
pub(super) fn make_all(
    descriptions: &[Description],
    opening: &Opening,
) -> Result<Making, EngineError> {
    let sockets: Vec<(DescriptionId, &State)> = states(descriptions).collect();
    let mut making = Making::default();
    for (id, state) in &sockets {
        let fd = state.family.socket(SocketType::DGRAM)?;
        making.bind(fd.as_fd(), state)?;
        making.notes.extend(inet::join(fd.as_fd(), &state.groups)?);
        making.made.insert(*id, opening.place(fd)?);
    }
    let senders: HashMap<(IpAddr, u16), BorrowedFd> = sockets
        .iter()
        .filter_map(|(id, state)| Some((state.local?.plain(), making.made.get(id)?.as_fd())))
        .collect();
    let mut lost = 0;
    for (id, state) in &sockets {
        let fd = making.made.get(id).ok_or_else(broken)?.as_fd();
        state.options.make_room(fd)?;
        for datagram in &state.queue {
            lost += usize::from(!deliver(datagram, state, &senders));
        }
    }
    drop(senders);
    if lost > 0 {
        making.notes.push(format!(
            "{lost} datagrams that waited to be read are lost: their senders were elsewhere"
        ));
    }
    for (id, state) in &sockets {
        let fd = making.made.get(id).ok_or_else(broken)?.as_fd();
        if let Some(remote) = &state.remote
            && let Err(error) = connect(fd, &remote.raw())
        {
            making.notes.push(format!(
                "a UDP socket could not be connected to {remote} again: {error}"
            ));
        }
        if state.read_shut {
            shutdown(fd, Shutdown::Both).context(|| "shutting a socket down".into())?;
        }
        let notes = state.options.restore(fd)?;
        making.notes.extend(notes);
    }
    Ok(making)
}

impl Making {
    fn bind(&mut self, fd: BorrowedFd, state: &State) -> Result<(), EngineError> {
        let Some(local) = state.local else {
            return state.options.prepare_shared(fd, state.family);
        };
        let what = || format!("giving a UDP socket its address {local}");
        match bind_as(fd, state, &local) {
            Err(Errno::ADDRNOTAVAIL) => {
                let ip = match state.family {
                    Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                    Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
                };
                let any = Address {
                    ip,
                    scope: 0,
                    ..local
                };
                bind(fd, &any.raw()).context(what)?;
                self.notes.push(format!(
                    "a UDP socket is bound to all addresses now, as this host does not have {local}"
                ));
                Ok(())
            }
            other => other.context(what),
        }
    }
}

/// Sends a datagram once more, as who had sent it. Whether that was possible.
fn deliver(
    datagram: &Datagram,
    state: &State,
    senders: &HashMap<(IpAddr, u16), BorrowedFd>,
) -> bool {
    let Some(local) = state.local else {
        return false;
    };
    // One that is bound to all addresses is reached at the sender's own, which is one of this host.
    let to = match local.ip.is_unspecified() {
        true => Address {
            port: local.port,
            ..datagram.from
        },
        false => local,
    };
    let send = |from: BorrowedFd| {
        let how = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendto(from, &datagram.bytes, how, &to.raw()).is_ok()
    };
    let (ip, port) = datagram.from.plain();
    let any = match ip {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let known = [ip, any, Ipv6Addr::UNSPECIFIED.into()].map(|ip| senders.get(&(ip, port)));
    if let Some(from) = known.into_iter().flatten().next() {
        return send(*from);
    }
    let stand_in = || -> Option<OwnedFd> {
        let fd = state.family.socket(SocketType::DGRAM).ok()?;
        bind(&fd, &datagram.from.raw()).ok()?;
        Some(fd)
    };
    stand_in().is_some_and(|from| send(from.as_fd()))
}

/// Hands a socket out.
pub(super) fn restore(
    state: &State,
    id: DescriptionId,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    let fd = opening.datagrams.made.remove(&id).ok_or_else(broken)?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

fn broken() -> EngineError {
    EngineError::Failed("a UDP socket of the image was not made".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_as_the_kernel_writes_them() {
        let raw = [2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        if cfg!(target_endian = "little") {
            let found = sender(&raw).expect("an address");
            assert_eq!(found.to_string(), "127.0.0.1:8080");
        }
        assert_eq!(sender(&[]), None);
        assert_eq!(sender(&[1, 0, 0, 0, 0]), None);
    }
}
