//! Epoll sets addressed by plain descriptor numbers, as restoring one needs (`epoll_ctl(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Adds whatever descriptor `target` of this process is, under that number. `events` are the raw bits.
///
/// # Errors
/// `EPERM` when the target cannot be watched (regular files), `EEXIST`, `EBADF`, `ELOOP`, `ENOSPC` (the user's limit
/// of watches).
pub fn add(set: BorrowedFd<'_>, target: RawFd, events: u32, data: u64) -> io::Result<()> {
    control(set, libc::EPOLL_CTL_ADD, target, events, data)
}

/// Changes the entry of descriptor `target`.
///
/// # Errors
/// `ENOENT` when there is none; as [`add`].
pub fn modify(set: BorrowedFd<'_>, target: RawFd, events: u32, data: u64) -> io::Result<()> {
    control(set, libc::EPOLL_CTL_MOD, target, events, data)
}

fn control(
    set: BorrowedFd<'_>,
    operation: i32,
    target: RawFd,
    events: u32,
    data: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the pointer is to a live epoll_event, which the kernel only reads.
    let rc = unsafe { libc::epoll_ctl(set.as_raw_fd(), operation, target, &raw mut event) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes the events that are ready now, up to `buffer`'s length, as (events, data); returns how many there were.
///
/// # Errors
/// `EINTR`.
pub fn take(set: BorrowedFd<'_>, buffer: &mut [(u32, u64)]) -> io::Result<usize> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; buffer.len()];
    // SAFETY: the buffer holds as many events as is said, and lives across the call.
    let rc = unsafe {
        libc::epoll_wait(
            set.as_raw_fd(),
            events.as_mut_ptr(),
            i32::try_from(events.len()).unwrap_or(i32::MAX),
            0,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    let taken = rc as usize;
    for (to, from) in buffer.iter_mut().zip(&events[..taken]) {
        *to = (from.events, from.u64);
    }
    Ok(taken)
}
