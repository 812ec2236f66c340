//! Namespaces (`namespaces(7)`).

use std::io;

/// New user namespace.
pub const USER: i32 = libc::CLONE_NEWUSER;
/// New pid namespace, for children.
pub const PID: i32 = libc::CLONE_NEWPID;
/// New mount namespace.
pub const MOUNT: i32 = libc::CLONE_NEWNS;
/// New time namespace, for children (`time_namespaces(7)`).
pub const TIME: i32 = 0x80;

/// Moves the calling process into new namespaces (`unshare(2)`).
///
/// # Errors
/// `EPERM` or `ENOSPC` where the host does not allow it, `EINVAL` for one that this kernel lacks.
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: unshare takes no pointers; it changes nothing about memory.
    let rc = unsafe { libc::unshare(flags) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
