//! Descriptors as a whole.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Closes every descriptor of the process from `first` upwards (`close_range(2)`).
///
/// For a process that is about to be saved and wants to hold nothing. Whoever calls this has given up every owner of
/// such a descriptor (`OwnedFd`, `File`) before, or never uses and never drops it again.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers; that no owner is left is the documented duty of the caller.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes `number` a duplicate of `fd`, whatever it was before (`dup3(2)`), and owns it.
///
/// # Errors
/// `EBADF` beyond the descriptor limit; `EINVAL` when both are the same number.
pub fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd, close_on_exec: bool) -> io::Result<OwnedFd> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: dup3 takes no pointers; a descriptor of this number that something else owned is the caller's to give up.
    let rc = unsafe { libc::dup3(fd.as_raw_fd(), number, flags) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(rc) })
}

/// The numbers of all open descriptors of the calling process.
///
/// # Errors
/// When `/proc/self/fd` cannot be read.
pub fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Closes a descriptor by its number, in a process that gives up whatever owned it.
pub fn close(number: RawFd) {
    // SAFETY: close takes no pointers; that nothing uses the descriptor afterwards is what the caller wants.
    unsafe { libc::close(number) };
}
