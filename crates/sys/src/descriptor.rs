//! Descriptors as a whole.

use std::io;

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
