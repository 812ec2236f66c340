//! What TCP and UDP sockets have in common: addresses, options, memberships in groups, and what the kernel tells of them.

pub(super) mod diag;
mod groups;
mod options;

pub use groups::Membership;
pub(super) use groups::{join, joined};
pub use options::Options;
pub(super) use options::Scope;

use super::capture::Found;
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use rustix::net::sockopt::socket_domain;
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, getpeername, getsockname, ipproto,
    socket_with,
};
use serde::{Deserialize, Serialize};
use stasis_sys::socket_option;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{BorrowedFd, OwnedFd};

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[Claim::kept(
    "options of TCP and UDP sockets",
    "what this host or user cannot set is told",
    &["tcp::options", "udp::lines"],
)];

/// The address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`, which may be connected over IPv4 all the same.
    V6,
}

impl Family {
    /// The loopback address as a socket of this family that is connected to `like` would write it.
    pub(super) fn loopback(self, like: Option<&Address>) -> Address {
        let over_v4 = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
        let ip = match (self, like) {
            (Family::V4, _) => Ipv4Addr::LOCALHOST.into(),
            (Family::V6, Some(like)) if over_v4(like.ip) => {
                Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()
            }
            (Family::V6, _) => Ipv6Addr::LOCALHOST.into(),
        };
        Address {
            ip,
            port: 0,
            scope: 0,
        }
    }

    fn raw(self) -> AddressFamily {
        match self {
            Family::V4 => AddressFamily::INET,
            Family::V6 => AddressFamily::INET6,
        }
    }

    /// A new socket.
    pub(super) fn socket(self, kind: SocketType) -> Result<OwnedFd, EngineError> {
        let protocol = match kind {
            SocketType::DGRAM => ipproto::UDP,
            _ => ipproto::TCP,
        };
        socket_with(self.raw(), kind, SocketFlags::CLOEXEC, Some(protocol))
            .context(|| "making a network socket".into())
    }
}

/// The address of a socket as its program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    /// The IP address; an IPv4 one in IPv6 form where the socket is of that family.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The interface of a link-local IPv6 address.
    pub scope: u32,
}

impl Address {
    /// In the form that calls take.
    pub(super) fn raw(&self) -> SocketAddr {
        match self.ip {
            IpAddr::V4(_) => SocketAddr::new(self.ip, self.port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, self.port, 0, self.scope).into(),
        }
    }

    /// IP address and port, with IPv4 in its own form: the same for both ends of a connection.
    pub(super) fn plain(&self) -> (IpAddr, u16) {
        (self.ip.to_canonical(), self.port)
    }

    /// From the form that calls give; `None` for none.
    pub(super) fn of(raw: SocketAddr) -> Option<Address> {
        let scope = match raw {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(raw) => raw.scope_id(),
        };
        let address = Address {
            ip: raw.ip(),
            port: raw.port(),
            scope,
        };
        (address.port != 0 || !address.ip.is_unspecified()).then_some(address)
    }

    /// What a socket is bound to.
    pub(super) fn own(socket: BorrowedFd) -> Option<Address> {
        Address::of(SocketAddr::try_from(getsockname(socket).ok()?).ok()?)
    }

    /// What a socket is connected to.
    pub(super) fn of_peer(socket: BorrowedFd) -> Option<Address> {
        Address::of(SocketAddr::try_from(getpeername(socket).ok()??).ok()?)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ip, port) = self.plain();
        match ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{port}"),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{port}"),
        }
    }
}

/// The addresses of a socket, for people.
pub(super) fn words(local: Option<Address>, remote: Option<Address>) -> Option<String> {
    match (local, remote) {
        (Some(local), Some(remote)) => Some(format!("{local} to {remote}")),
        (Some(local), None) => Some(local.to_string()),
        (None, Some(remote)) => Some(format!("to {remote}")),
        (None, None) => None,
    }
}

/// The family and protocol of a network socket; `None` for a socket of another family.
pub(super) fn kind_of(socket: BorrowedFd) -> Option<(Family, Protocol)> {
    const SO_PROTOCOL: i32 = 38;
    let family = match socket_domain(socket).ok()? {
        AddressFamily::INET => Family::V4,
        AddressFamily::INET6 => Family::V6,
        _ => return None,
    };
    let protocol = socket_option::number(socket, libc::SOL_SOCKET, SO_PROTOCOL).ok()?;
    let protocol = rustix::net::RawProtocol::new(protocol.cast_unsigned())?;
    Some((family, Protocol::from_raw(protocol)))
}

/// Whether what was found is a socket at all.
pub(super) fn is_socket(found: &Found) -> bool {
    rustix::fs::FileType::from_raw_mode(found.stat.st_mode) == rustix::fs::FileType::Socket
}

/// A note that names a description.
pub(super) fn note(found: &Found, text: &str) -> String {
    let (pid, name) = (found.process.virtual_pid, &found.process.name);
    format!("process {pid} ({name}), {found}: {text}")
}
