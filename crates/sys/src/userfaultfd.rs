//! Userfault descriptors (`userfaultfd(2)`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `UFFD_USER_MODE_ONLY` (`linux/userfaultfd.h`): needs no privilege.
const USER_MODE_ONLY: libc::c_int = 1;

/// Opens one that reports faults of user mode only, close-on-exec.
///
/// # Errors
/// `ENOSYS` where the kernel lacks it, `EPERM` where a filter forbids it, `EMFILE`, `ENFILE`.
pub fn open() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, USER_MODE_ONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
