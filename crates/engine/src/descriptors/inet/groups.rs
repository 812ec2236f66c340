//! Memberships in multicast groups (`ip(7)`, `ipv6(7)`).
//!
//! The kernel lists the groups that the host's interfaces belong to, and tells of a socket, for a group and an interface, whether
//! it is a member (`MCAST_MSFILTER`). Memberships that take or leave out certain senders are refused.

use super::super::{Found, Obstacle};
use super::Family;
use crate::EngineError;
use crate::error::Context;
use serde::{Deserialize, Serialize};
use stasis_sys::{procfs, socket_option};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// A membership: the group, and the interface's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group's address.
    pub group: IpAddr,
    /// The number of the interface (`if_nametoindex(3)`).
    pub interface: u32,
}

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;
/// `struct sockaddr_storage`.
const ADDRESS: usize = 128;

impl Membership {
    fn level(&self) -> i32 {
        match self.group {
            IpAddr::V4(_) => libc::IPPROTO_IP,
            IpAddr::V6(_) => libc::IPPROTO_IPV6,
        }
    }

    /// `struct group_req`, which `struct group_filter` begins like.
    fn request(&self) -> Vec<u8> {
        let mut request = vec![0; 8 + ADDRESS];
        request[..4].copy_from_slice(&self.interface.to_ne_bytes());
        let mut put =
            |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
        match self.group {
            IpAddr::V4(group) => {
                put(8, &(libc::AF_INET as u16).to_ne_bytes());
                put(12, &group.octets());
            }
            IpAddr::V6(group) => {
                put(8, &(libc::AF_INET6 as u16).to_ne_bytes());
                put(16, &group.octets());
            }
        }
        request
    }
}

/// The groups that a socket has joined.
pub(in super::super) fn joined(
    fd: BorrowedFd,
    family: Family,
    found: &Found,
) -> Result<Vec<Membership>, Obstacle> {
    let mut joined = Vec::new();
    let v6 = match family {
        Family::V4 => Vec::new(),
        Family::V6 => of_host_v6(),
    };
    for membership in of_host_v4().into_iter().chain(v6) {
        let mut filter = membership.request();
        filter.extend([0; 8]);
        let asked = socket_option::bytes(fd, membership.level(), MCAST_MSFILTER, &mut filter);
        if asked.is_err() {
            continue;
        }
        let word = |at: usize| {
            let bytes = filter
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        if word(8 + ADDRESS) != MCAST_EXCLUDE || word(12 + ADDRESS) != 0 {
            return Err(found.refuse(
                format!(
                    "takes what certain senders send to the group {}, which cannot be saved yet",
                    membership.group
                ),
                "let the program leave that group before the checkpoint",
            ));
        }
        joined.push(membership);
    }
    Ok(joined)
}

/// Joins them again. Returns what could not be done.
pub(in super::super) fn join(
    fd: BorrowedFd,
    memberships: &[Membership],
) -> Result<Vec<String>, EngineError> {
    let mut notes = Vec::new();
    for membership in memberships {
        let joined = socket_option::set_bytes(
            fd,
            membership.level(),
            MCAST_JOIN_GROUP,
            &membership.request(),
        );
        match joined {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => notes.push(format!(
                "a socket could not join the group {} again: this host has no interface {}",
                membership.group, membership.interface
            )),
            other => other.context(|| format!("joining the group {}", membership.group))?,
        }
    }
    Ok(notes)
}

/// The groups of `/proc/net/igmp`: a line for each interface, and an indented one for each of its groups.
fn of_host_v4() -> Vec<Membership> {
    let text = procfs::read_to_string("/proc/self/net/igmp").unwrap_or_default();
    parse_v4(&text)
}

fn parse_v4(text: &str) -> Vec<Membership> {
    let mut interface = 0;
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let Some(word) = line.split_ascii_whitespace().next() else {
            continue;
        };
        if !line.starts_with(char::is_whitespace) {
            interface = word.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(word, 16) {
            let group = Ipv4Addr::from(group.to_ne_bytes()).into();
            found.push(Membership { group, interface });
        }
    }
    found
}

/// The groups of `/proc/net/igmp6`: number and name of the interface, group.
fn of_host_v6() -> Vec<Membership> {
    let text = procfs::read_to_string("/proc/self/net/igmp6").unwrap_or_default();
    text.lines().filter_map(parse_v6).collect()
}

fn parse_v6(line: &str) -> Option<Membership> {
    let mut words = line.split_ascii_whitespace();
    let interface = words.next()?.parse().ok()?;
    let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
    Some(Membership {
        group: Ipv6Addr::from(group).into(),
        interface,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn what_the_kernel_lists() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n";
        let expected = Membership {
            group: Ipv4Addr::new(224, 0, 0, 251).into(),
            interface: 1,
        };
        if cfg!(target_endian = "little") {
            assert_eq!(parse_v4(text), [expected]);
        }
        let line = "4    eth0            ff0200000000000000000001ff000001     1 00000004 0";
        let group = "ff02::1:ff00:1".parse().expect("an address");
        assert_eq!(
            parse_v6(line),
            Some(Membership {
                group,
                interface: 4
            })
        );
    }

    #[test]
    fn a_member_is_known() {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        let membership = Membership {
            group: Ipv4Addr::new(239, 1, 2, 3).into(),
            interface: 1,
        };
        join(socket.as_fd(), &[membership]).expect("joined");
        let mut filter = membership.request();
        filter.extend([0; 8]);
        let ask = |fd: BorrowedFd, filter: &mut [u8]| {
            socket_option::bytes(fd, membership.level(), MCAST_MSFILTER, filter)
        };
        assert!(ask(socket.as_fd(), &mut filter).is_ok());
        assert!(of_host_v4().contains(&membership));
        let other = UdpSocket::bind("0.0.0.0:0").expect("a port");
        assert!(ask(other.as_fd(), &mut filter).is_err());
    }
}
