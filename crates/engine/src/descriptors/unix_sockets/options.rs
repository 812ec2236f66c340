//! Options of a socket (`socket(7)`, `unix(7)`).

use super::super::Found;
use crate::EngineError;
use crate::error::Context;
use rustix::net::sockopt::{self, Timeout};
use serde::{Deserialize, Serialize};
use stasis_sys::socket;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The saved options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Those that are a number: name (`SO_*`) and value as `getsockopt(2)` gives it.
    pub numbers: Vec<(i32, i32)>,
    /// `SO_RCVTIMEO`.
    pub receive_timeout: Option<Duration>,
    /// `SO_SNDTIMEO`.
    pub send_timeout: Option<Duration>,
    /// `SO_LINGER`.
    pub linger: Option<Duration>,
}

const SO_SNDBUF: i32 = 7;
const SO_RCVBUF: i32 = 8;
pub(super) const SO_PASSCRED: i32 = 16;
pub(super) const SO_PEEK_OFF: i32 = 42;
/// Linux 6.5 and newer.
pub(super) const SO_PASSPIDFD: i32 = 76;

/// Every option of `SOL_SOCKET` that is a number, that a Unix socket keeps, and that an ordinary user may set.
const NUMBERS: [i32; 22] = [
    2, // SO_REUSEADDR
    5, // SO_DONTROUTE
    6, // SO_BROADCAST
    SO_SNDBUF,
    SO_RCVBUF,
    9,  // SO_KEEPALIVE
    10, // SO_OOBINLINE
    11, // SO_NO_CHECK
    12, // SO_PRIORITY
    SO_PASSCRED,
    18, // SO_RCVLOWAT
    29, // SO_TIMESTAMP
    34, // SO_PASSSEC
    35, // SO_TIMESTAMPNS
    40, // SO_RXQ_OVFL
    SO_PEEK_OFF,
    45, // SO_SELECT_ERR_QUEUE
    63, // SO_TIMESTAMP_NEW
    64, // SO_TIMESTAMPNS_NEW
    SO_PASSPIDFD,
    83, // SO_PASSRIGHTS, Linux 6.16 and newer
    84, // SO_INQ, Linux 6.17 and newer
];

impl Options {
    /// The value of an option that is a number; 0 where the kernel does not have it.
    pub(super) fn number(&self, name: i32) -> i32 {
        let found = self.numbers.iter().find(|(other, _)| *other == name);
        found.map_or(0, |(_, value)| *value)
    }
}

/// Reads them. An option that this kernel does not have is left out.
pub(super) fn capture(fd: BorrowedFd, found: &Found) -> Result<Options, EngineError> {
    let what = || format!("asking for the options of {found}");
    let number = |name: &i32| Some((*name, socket::option(fd, *name).ok()?));
    Ok(Options {
        numbers: NUMBERS.iter().filter_map(number).collect(),
        receive_timeout: sockopt::socket_timeout(fd, Timeout::Recv).context(what)?,
        send_timeout: sockopt::socket_timeout(fd, Timeout::Send).context(what)?,
        linger: sockopt::socket_linger(fd).context(what)?,
    })
}

/// Sets those that differ. Returns what could not be set.
pub(super) fn restore(options: &Options, fd: BorrowedFd) -> Result<Vec<String>, EngineError> {
    let what = || "setting the options of a socket".to_owned();
    let mut notes = Vec::new();
    for &(name, wanted) in &options.numbers {
        if socket::option(fd, name).ok() == Some(wanted) {
            continue;
        }
        // The kernel doubles what it is given as a size of these, for its own needs (socket(7)).
        let given = match name {
            SO_SNDBUF | SO_RCVBUF => wanted / 2,
            _ => wanted,
        };
        let set = socket::set_option(fd, name, given);
        let have = socket::option(fd, name).unwrap_or(0);
        if have == wanted {
            continue;
        }
        notes.push(match (name, set) {
            (SO_SNDBUF | SO_RCVBUF, _) => format!(
                "a socket with a buffer of {wanted} bytes has {have} now (/proc/sys/net/core/wmem_max, rmem_max)"
            ),
            (_, Err(error)) => format!("option {name} of a socket could not be set to {wanted}: {error}"),
            _ => format!("option {name} of a socket is {have}, and was {wanted}"),
        });
    }
    for (timeout, value) in [
        (Timeout::Recv, options.receive_timeout),
        (Timeout::Send, options.send_timeout),
    ] {
        if value.is_some() {
            sockopt::set_socket_timeout(fd, timeout, value).context(what)?;
        }
    }
    if options.linger.is_some() {
        sockopt::set_socket_linger(fd, options.linger).context(what)?;
    }
    Ok(notes)
}

/// Makes room for everything that the other side may have in its queue, for as long as a queue is being filled.
pub(super) fn widen(sender: BorrowedFd) {
    // As much as the limit allows, or as root may; what that does not give is missed, and told, by who sends.
    let _ = sockopt::set_socket_send_buffer_size(sender, i32::MAX as usize / 2);
    let _ = sockopt::set_socket_send_buffer_size_force(sender, 1 << 28);
}
