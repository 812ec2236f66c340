//! Whether addresses and ports can be had again, and clearing the way to them.
//!
//! What a killed program leaves behind of a connection keeps its ports for a minute (`TIME_WAIT`), unless the program had
//! set `SO_REUSEADDR`. Both of its ends belong to this host, so that it can be ended (RFC 1337): a socket that is bound where the other
//! end was and connects to it is told that something is still there, answers with a reset, and the kernel takes it for
//! what the other end says (`tcp_timewait_state_process`, `net/ipv4/tcp_minisocks.c`). Where the host does not go by that
//! (`tcp_rfc1337`), or the other end was elsewhere, it is waited for.

use super::super::Plan;
use super::super::inet::diag::{self, Entry, TcpState};
use super::super::inet::{Address, Family};
use super::State;
use crate::error::Context;
use crate::{EngineError, Refusal};
use rustix::io::Errno;
use rustix::net::{SocketType, bind, sockopt};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Longer than the kernel keeps anything of a connection that has ended (`TCP_TIMEWAIT_LEN`).
const LONGEST: Duration = Duration::from_secs(65);

/// Gives a socket its address, ending or waiting for what is left of former connections. Returns what the user should know.
pub(super) fn take(fd: BorrowedFd, address: &Address) -> Result<Option<String>, EngineError> {
    let what = || format!("giving a socket its address {address}");
    let began = Instant::now();
    let mut waited = false;
    loop {
        match bind(fd, &address.raw()) {
            Err(Errno::ADDRINUSE) => {}
            other => {
                other.context(what)?;
                let note = format!(
                    "waited {} s for {address}, which the kernel keeps for a while after a connection has ended",
                    began.elapsed().as_secs()
                );
                return Ok(waited.then_some(note));
            }
        }
        let holders = holders(address).context(what)?;
        let old = !holders.is_empty() && holders.iter().all(is_left_over);
        if !old || began.elapsed() > LONGEST {
            return Err(EngineError::Failed(format!(
                "the address {address}: {TAKEN}; {END_IT}"
            )));
        }
        let before = holders.len();
        for holder in &holders {
            end(holder);
        }
        if self::holders(address).context(what)?.len() >= before {
            waited = true;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

const TAKEN: &str = "a running program has it";
const END_IT: &str = "end that program";

/// The sockets that keep others from an address.
fn holders(address: &Address) -> std::io::Result<Vec<Entry>> {
    let (ip, port) = address.plain();
    let same = |other: IpAddr| other == ip || other.is_unspecified() || ip.is_unspecified();
    let all = diag::tcp(true)?.into_iter();
    Ok(all
        .filter(|entry| entry.local.1 == port && same(entry.local.0))
        .collect())
}

/// Whether no program has it any more.
fn is_left_over(entry: &Entry) -> bool {
    entry.inode == 0 && (entry.state == TcpState::TIME_WAIT || entry.state.has_ended())
}

/// Ends what is left of a connection whose other end was on this host.
fn end(left: &Entry) {
    if left.state != TcpState::TIME_WAIT {
        return;
    }
    let (local, remote) = (SocketAddr::from(left.local), SocketAddr::from(left.remote));
    let family = match local {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    };
    let Ok(socket) = family.socket(SocketType::STREAM) else {
        return;
    };
    // Whatever this does not bring about is waited for.
    let _ = sockopt::set_socket_reuseaddr(&socket, true);
    let _ = rustix::io::ioctl_fionbio(&socket, true);
    if bind(&socket, &remote).is_ok() {
        let _ = rustix::net::connect(&socket, &local);
    }
}

/// Ends all that is left of former connections under the addresses that are needed.
pub(super) fn clear(states: &[&State]) {
    let needed: HashSet<_> = states
        .iter()
        .filter_map(|state| needed(state))
        .map(Address::plain)
        .collect();
    if needed.is_empty() {
        return;
    }
    // One may be in the way of ending another. What cannot be looked at now is met again when an address is taken.
    let mut before = usize::MAX;
    loop {
        let mut left = diag::tcp(true).unwrap_or_default();
        left.retain(|entry| {
            entry.state == TcpState::TIME_WAIT
                && (needed.contains(&entry.local) || needed.contains(&entry.remote))
        });
        if left.is_empty() || left.len() >= before {
            return;
        }
        before = left.len();
        left.iter().for_each(end);
    }
}

/// Begins to connect a socket, without waiting.
pub(super) fn connect(client: BorrowedFd, to: &Address) -> std::io::Result<()> {
    let mut again = true;
    loop {
        rustix::io::ioctl_fionbio(client, true)?;
        let started = rustix::net::connect(client, &to.raw());
        rustix::io::ioctl_fionbio(client, false)?;
        match started {
            Ok(()) | Err(Errno::INPROGRESS) => return Ok(()),
            Err(Errno::ADDRNOTAVAIL) if again => {
                // What is left of the same connection.
                let ends = Address::own(client).map(|own| (own.plain(), to.plain()));
                let left = diag::tcp(true)?.into_iter();
                left.filter(|entry| Some((entry.local, entry.remote)) == ends)
                    .for_each(|entry| end(&entry));
                again = false;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The addresses that a socket needs at a restart.
pub(super) fn needed(state: &State) -> Option<&Address> {
    use super::{Peer, Phase};
    let local = state.local.as_ref().filter(|local| local.port != 0);
    match &state.phase {
        Phase::Idle | Phase::Listening { .. } => local,
        Phase::Connecting(_) => None,
        Phase::Connected(connection) => match connection.peer {
            Peer::Socket(_) | Peer::Waits(_) => local,
            Peer::Closed | Peer::Outside => None,
        },
    }
}

/// Looks whether all addresses can be had. Nothing is kept.
pub(super) fn plan(states: &[&State], plan: &mut Plan) {
    let mut seen = HashSet::new();
    for state in states {
        let Some(address) = needed(state).filter(|address| seen.insert(**address)) else {
            continue;
        };
        if let Some((reason, hint)) = obstacle(state, address) {
            plan.refusals.push(Refusal {
                pid: None,
                process: String::new(),
                object: format!("the address {address} (TCP)"),
                reason,
                hint: hint.to_owned(),
            });
        } else if matches!(state.phase, super::Phase::Listening { .. }) {
            plan.actions.push(format!("listen at {address}"));
        }
    }
}

fn obstacle(state: &State, address: &Address) -> Option<(String, &'static str)> {
    let kernel = |error: std::io::Error| (error.to_string(), "restart on a host that allows it");
    let tried = (|| -> Result<(), EngineError> {
        let probe = state.family.socket(SocketType::STREAM)?;
        state.options.prepare(probe.as_fd(), state.family)?;
        bind(&probe, &address.raw()).context(String::new)
    })();
    let source = match tried {
        Ok(()) => return None,
        Err(EngineError::System { source, .. }) => source,
        Err(error) => return Some((error.to_string(), "")),
    };
    match source.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let holders = holders(address).unwrap_or_default();
            let old = !holders.is_empty() && holders.iter().all(is_left_over);
            (!old).then(|| (TAKEN.to_owned(), END_IT))
        }
        Some(libc::EADDRNOTAVAIL) => Some((
            "this host does not have it".to_owned(),
            "restart on the host of the checkpoint",
        )),
        _ => Some(kernel(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;

    fn address_of(socket: impl AsFd) -> Address {
        Address::own(socket.as_fd()).expect("bound")
    }

    fn fresh() -> OwnedFd {
        let socket = Family::V4.socket(SocketType::STREAM).expect("a socket");
        sockopt::set_socket_reuseaddr(&socket, true).expect("settable");
        socket
    }

    /// A connection whose client has closed first: its port is kept by what is left of it.
    #[test]
    fn what_is_left_of_a_connection_is_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (accepted, _) = listener.accept().expect("accepted");
        let address = address_of(&client);
        let socket = fresh();
        assert!(take(socket.as_fd(), &address).is_err(), "somebody has it");
        drop(client);
        drop(accepted);
        drop(listener);
        assert_eq!(bind(&socket, &address.raw()), Err(Errno::ADDRINUSE));
        let note = take(socket.as_fd(), &address).expect("it is free now");
        assert_eq!(note, None);
        assert_eq!(address_of(&socket), address);
    }
}
