//! System V semaphores: who used them last (`semctl(2)`).

use crate::Pid;
use std::io;

/// The process that last changed, or tried in vain to change, semaphore `number` of a set (`GETPID`), in the numbers of the
/// caller's pid namespace; 0 where there was none, or it was in a namespace that the caller does not see.
///
/// # Errors
/// `EACCES` for a set that the caller may not read, `EINVAL` when it is gone or smaller.
pub fn last_user_of_semaphore(set: i32, number: i32) -> io::Result<Pid> {
    // SAFETY: GETPID takes two numbers and no fourth argument.
    let pid = unsafe { libc::semctl(set, number, libc::GETPID) };
    if pid < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(Pid(pid))
    }
}
