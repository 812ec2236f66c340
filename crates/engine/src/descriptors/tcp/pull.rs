//! Having the kernel deliver what is on its way between two ends of a connection whose programs stand still.
//!
//! A sender keeps what the receiver has no room for. The receiver is given more: the low-water mark (`SO_RCVLOWAT`), set for a
//! moment, enlarges its buffer up to the limit of `tcp_rmem`, which an ordinary user's `SO_RCVBUF` does not reach. A
//! look at the queue (`MSG_PEEK`) tells the sender of the new room, as a read would (`tcp_cleanup_rbuf`, `net/ipv4/tcp.c`). What
//! the sender holds back for a fuller segment (Nagle's algorithm, `TCP_CORK`) is pushed out by setting `TCP_NODELAY`.
//! Over the loopback interface all of it is there when these calls return, as a rule.
//!
//! That all is there shows in what both ends have counted (`TCP_INFO`): sent and acknowledged, or waiting to be; received.
//! Acknowledgements may be late by some 40 ms and need not be waited for.

use rustix::net::{RecvFlags, recv};
use stasis_sys::{socket, socket_option};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::super::inet::diag::TcpState;

const SO_RCVBUF: i32 = 8;
const SO_RCVLOWAT: i32 = 18;
const SO_BUF_LOCK: i32 = 72;
/// `SOCK_RCVBUF_LOCK`
const RECEIVE_SET: i32 = 2;

/// What the kernel has counted of one end (`struct tcp_info`, `linux/tcp.h`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    pub state: TcpState,
    /// The options that both sides have agreed on: none before there was an answer.
    pub agreed: u8,
    /// For one that listens: how many may wait.
    pub backlog: u32,
    /// Milliseconds since the other side was heard of.
    pub heard_ago: u32,
    /// Bytes acknowledged by the other side; the request to connect and the end of the stream count as one each.
    acknowledged: u64,
    received: u64,
    /// Bytes that are not acknowledged.
    pub unacknowledged: u64,
}

impl Info {
    pub fn of(socket: BorrowedFd) -> io::Result<Info> {
        let mut raw = [0; 256];
        let len = socket_option::bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut raw)?;
        let word = |at: usize| -> u32 {
            let bytes = raw.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let long = |at: usize| -> u64 {
            let bytes = raw.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_ne_bytes)
        };
        if len < 136 {
            return Err(io::Error::other(
                "the kernel counts no bytes (Linux 4.1 does)",
            ));
        }
        let state = TcpState(raw[0]);
        Ok(Info {
            state,
            agreed: raw[5],
            backlog: word(28),
            heard_ago: word(56),
            acknowledged: long(120),
            received: long(128),
            unacknowledged: match state {
                TcpState::LISTEN => 0,
                _ => socket::unsent(socket)?.into(),
            },
        })
    }

    /// All that was written here, and one for each request and end.
    fn written(&self) -> u64 {
        self.acknowledged.wrapping_add(self.unacknowledged)
    }

    /// How much of what was written here the other end has not received; one more where this end has connected.
    pub fn ahead_of(&self, other: &Info) -> u64 {
        self.written().wrapping_sub(other.received)
    }
}

/// Whether all that was sent between two ends has arrived: one request to connect is counted in all.
pub(super) fn is_settled(one: &Info, other: &Info) -> bool {
    let ahead = one.ahead_of(other).wrapping_add(other.ahead_of(one));
    ahead == 1 || one.unacknowledged == 0 && other.unacknowledged == 0
}

/// Two ends of a connection, one direction.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub sender: BorrowedFd<'a>,
    pub receiver: BorrowedFd<'a>,
}

impl Ends<'_> {
    /// Lets the sender know how much room there is, and send what it has.
    pub fn nudge(&self) -> io::Result<()> {
        if rustix::io::ioctl_fionread(self.receiver)? > 0 {
            let how = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let _ = recv(self.receiver, &mut [0u8; 1], how);
        }
        let before = push(self.sender)?;
        unpush(self.sender, before)?;
        std::thread::sleep(Duration::from_micros(50));
        Ok(())
    }

    /// Makes room for all that is on its way, and lets it be sent. `tries` counts how often that was done.
    pub fn pull(&self, bytes: u64, tries: u32) -> io::Result<()> {
        if bytes > 0 {
            let held = rustix::io::ioctl_fionread(self.receiver)?;
            let all = usize::try_from(held.saturating_add(bytes)).unwrap_or(usize::MAX);
            widen(self.receiver, all, tries)?;
        }
        self.nudge()
    }
}

/// Sends what is held back; returns what `TCP_NODELAY` was.
pub(super) fn push(sender: BorrowedFd) -> io::Result<i32> {
    let before = socket_option::number(sender, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
    socket_option::set_number(sender, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    Ok(before)
}

/// Puts `TCP_NODELAY` back.
pub(super) fn unpush(sender: BorrowedFd, before: i32) -> io::Result<()> {
    match before {
        0 => socket_option::set_number(sender, libc::IPPROTO_TCP, libc::TCP_NODELAY, 0),
        _ => Ok(()),
    }
}

/// Gives a receiver room for so many bytes, as far as the limit allows; more with each try, as it depends on how they are sent
/// how much they take. The low-water mark is another one for two calls only: a supervisor that dies must not leave it behind.
///
/// A buffer whose size the program has set will be as small again: its sender should not be promised much more room than
/// is used, as it would send in vain then, and wait before it tries again.
pub(super) fn widen(receiver: BorrowedFd, bytes: usize, tries: u32) -> io::Result<()> {
    let set = socket::option(receiver, SO_BUF_LOCK).unwrap_or(0);
    let fixed = set & RECEIVE_SET != 0;
    if fixed {
        socket::set_option(receiver, SO_BUF_LOCK, set & !RECEIVE_SET)?;
    }
    let quarters = (tries as usize).saturating_add(if fixed { 4 } else { 8 });
    let wanted = bytes.saturating_mul(quarters) / 4;
    let mark = socket::option(receiver, SO_RCVLOWAT)?;
    let wanted = i32::try_from(wanted).unwrap_or(i32::MAX).max(mark);
    let widened = socket::set_option(receiver, SO_RCVLOWAT, wanted);
    socket::set_option(receiver, SO_RCVLOWAT, mark)?;
    widened
}

/// The size of a receiver's buffer, where its program has set it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    set: i32,
    size: i32,
}

impl Room {
    pub fn of(receiver: BorrowedFd) -> io::Result<Room> {
        Ok(Room {
            set: socket::option(receiver, SO_BUF_LOCK).unwrap_or(0),
            size: socket::option(receiver, SO_RCVBUF)?,
        })
    }

    /// Puts it back after [`widen`].
    pub fn put_back(self, receiver: BorrowedFd) -> io::Result<()> {
        if self.set & RECEIVE_SET == 0 {
            return Ok(());
        }
        // The kernel doubles what it is given (socket(7)).
        socket::set_option(receiver, SO_RCVBUF, self.size / 2)?;
        socket::set_option(receiver, SO_BUF_LOCK, self.set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let one = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        (one, listener.accept().expect("it has connected").0)
    }

    #[test]
    fn all_that_a_sender_can_hold_arrives() {
        for receive_buffer in [None, Some(2048), Some(100_000)] {
            let (mut sender, mut receiver) = pair();
            if let Some(size) = receive_buffer {
                socket::set_option(receiver.as_fd(), SO_RCVBUF, size).expect("settable");
            }
            let before = Room::of(receiver.as_fd()).expect("readable");
            sender.set_nonblocking(true).expect("settable");
            let pattern: Vec<u8> = (0..=250).cycle().take(100_000).collect();
            let mut written = 0;
            while let Ok(len) = sender.write(&pattern[written % 251..]) {
                written += len;
            }
            let ends = Ends {
                sender: sender.as_fd(),
                receiver: receiver.as_fd(),
            };
            let infos = || [&sender, &receiver].map(|end| Info::of(end.as_fd()).expect("readable"));
            assert!(!is_settled(&infos()[0], &infos()[1]));
            for tries in 0..10_000 {
                let [one, other] = infos();
                if is_settled(&one, &other) {
                    break;
                }
                ends.pull(one.unacknowledged, tries).expect("pulled");
            }
            assert!(is_settled(&infos()[0], &infos()[1]));
            before.put_back(receiver.as_fd()).expect("settable");
            if receive_buffer.is_some() {
                let after = Room::of(receiver.as_fd()).expect("readable");
                assert_eq!((after.set, after.size), (before.set, before.size));
            }
            assert_eq!(
                super::super::queue::peek(receiver.as_fd())
                    .expect("a look")
                    .len(),
                written
            );
            let mut all = vec![0; written];
            receiver.read_exact(&mut all).expect("it is there");
            assert!(
                all.iter()
                    .enumerate()
                    .all(|(at, byte)| *byte as usize == at % 251)
            );
        }
    }
}
