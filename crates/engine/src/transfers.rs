//! Transfers that a stop has cut short.
//!
//! | call | when a stop makes it return a part |
//! |------|------------------------------------|
//! | write, writev to a pipe, FIFO, stream socket or terminal | while it waits for room |
//! | read, readv of /dev/zero, /dev/full, /dev/random, /dev/urandom; getrandom | between two pages |
//! | recvfrom with MSG_WAITALL | while it waits for more |
//!
//! All other calls either transfer all of it whatever happens (files), or return what there is by themselves (reads of pipes,
//! sockets, terminals), so that a program sees parts without any stop: splice(2), sendfile(2), vmsplice(2), sendmsg(2) and
//! recvmsg(2) are left at that.

use crate::descriptors::fdinfo::FdInfo;
use stasis_sys::Pid;
use stasis_tracee::{Memory, Registers};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// The rest of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    /// The call.
    pub number: i64,
    /// Arguments for what is left. For vectors the address is still the old one.
    pub arguments: [u64; 6],
    /// Bytes transferred.
    pub done: u64,
    /// The vectors that are left, address and length, where the call has vectors.
    pub vectors: Vec<(u64, u64)>,
}

/// More vectors are not looked at: IOV_MAX.
const MOST_VECTORS: u64 = 1024;

/// The rest of the transfer that the thread `tid` is stopped in, where it was cut short. `longest` is how many vectors can be
/// kept.
#[must_use]
pub fn rest(tid: Pid, registers: &Registers, memory: &Memory, longest: usize) -> Option<Rest> {
    let number = registers.interrupted_call()?;
    let done = u64::try_from(registers.result()).ok()?;
    let mut arguments = registers.arguments();
    if done == 0 || !is_candidate(number, &arguments) {
        return None;
    }
    let mut left = Vec::new();
    match number {
        libc::SYS_writev | libc::SYS_readv => {
            let all = vectors(memory, arguments[1], arguments[2])?;
            left = behind(&all, done);
            if left.is_empty() || left.len() > longest {
                return None;
            }
            arguments[2] = left.len() as u64;
        }
        libc::SYS_getrandom => advance(&mut arguments, 0, done)?,
        _ => advance(&mut arguments, 1, done)?,
    }
    waits(tid, number, arguments[0]).then_some(Rest {
        number,
        arguments,
        done,
        vectors: left,
    })
}

fn is_candidate(number: i64, arguments: &[u64; 6]) -> bool {
    match number {
        libc::SYS_write
        | libc::SYS_writev
        | libc::SYS_sendto
        | libc::SYS_read
        | libc::SYS_readv
        | libc::SYS_getrandom => true,
        // With the sender's address it is no stream.
        libc::SYS_recvfrom => {
            let flags = arguments[3] as i32;
            flags & libc::MSG_WAITALL != 0 && flags & libc::MSG_PEEK == 0 && arguments[4] == 0
        }
        _ => false,
    }
}

/// Buffer at `n`, its length behind it; `None` where nothing is left.
fn advance(arguments: &mut [u64; 6], n: usize, done: u64) -> Option<()> {
    arguments[n + 1] = arguments[n + 1].checked_sub(done)?;
    arguments[n] = arguments[n].wrapping_add(done);
    (arguments[n + 1] > 0).then_some(())
}

fn vectors(memory: &Memory, address: u64, count: u64) -> Option<Vec<(u64, u64)>> {
    (count <= MOST_VECTORS).then_some(())?;
    let word = |n: u64| memory.read_u64(address.wrapping_add(8 * n)).ok();
    (0..count)
        .map(|n| Some((word(2 * n)?, word(2 * n + 1)?)))
        .collect()
}

/// What of `all` is behind the first `done` bytes.
fn behind(all: &[(u64, u64)], mut done: u64) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    for (address, len) in all {
        let skipped = done.min(*len);
        done -= skipped;
        if skipped < *len {
            left.push((address + skipped, len - skipped));
        }
    }
    left
}

/// Whether the call on descriptor `fd` would have gone on without the stop.
fn waits(tid: Pid, number: i64, fd: u64) -> bool {
    const MEMORY_DEVICES: u32 = 1;
    const ENDLESS: [u32; 4] = [5, 7, 8, 9];
    const TERMINALS: [u32; 3] = [4, 5, 136];
    if number == libc::SYS_getrandom {
        return true;
    }
    let fd = fd as u32;
    let Ok(file) = fs::metadata(format!("/proc/{tid}/fd/{fd}")) else {
        return false;
    };
    let kind = file.file_type();
    let (major, minor) = (libc::major(file.rdev()), libc::minor(file.rdev()));
    let device = kind.is_char_device();
    let endless = device && major == MEMORY_DEVICES && ENDLESS.contains(&minor);
    let blocks =
        || FdInfo::read(tid, fd as i32).is_ok_and(|info| info.flags & libc::O_NONBLOCK as u32 == 0);
    match number {
        libc::SYS_read | libc::SYS_readv => endless,
        libc::SYS_recvfrom | libc::SYS_sendto => kind.is_socket() && blocks(),
        _ => {
            let terminal = device && TERMINALS.contains(&major);
            (kind.is_fifo() || kind.is_socket() || terminal) && blocks()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_cut() {
        let all = [(100, 10), (200, 0), (300, 5)];
        assert_eq!(behind(&all, 4), [(104, 6), (300, 5)]);
        assert_eq!(behind(&all, 10), [(300, 5)]);
        assert_eq!(behind(&all, 14), [(304, 1)]);
        assert_eq!(behind(&all, 15), []);
    }

    #[test]
    fn the_rest_of_a_buffer() {
        let mut arguments = [1, 0x1000, 100, 0, 0, 0];
        assert_eq!(advance(&mut arguments, 1, 40), Some(()));
        assert_eq!(arguments[1..3], [0x1028, 60]);
        assert_eq!(advance(&mut arguments, 1, 60), None);
    }
}
