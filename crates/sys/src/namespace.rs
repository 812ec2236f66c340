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

/// New ipc namespace: System V objects and POSIX message queues (`ipc_namespaces(7)`).
pub const IPC: i32 = libc::CLONE_NEWIPC;

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

/// Moves the calling process, which has one thread, into the namespace that `fd` stands for (`setns(2)`).
///
/// # Errors
/// `EPERM`; `EINVAL` for a user namespace that it is in already.
pub fn enter(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the call takes a descriptor, which lives, and a number.
    let rc = unsafe { libc::setns(fd.as_raw_fd(), 0) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
