//! What `timerfd_create(2)` has beyond the well-known calls.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IOW('T', 0, __u64)` of `linux/timerfd.h`.
const TFD_IOC_SET_TICKS: libc::Ioctl = 0x4008_5400_u32 as libc::Ioctl;

/// Says how many expirations the next read tells of (`TFD_IOC_SET_TICKS`); readers are woken.
///
/// # Errors
/// `EINVAL` for 0; `ENOTTY` where the kernel was built without checkpoint support.
pub fn set_ticks(timer: BorrowedFd<'_>, ticks: u64) -> io::Result<()> {
    // SAFETY: the pointer is to a live u64 that the kernel reads.
    let rc = unsafe { libc::ioctl(timer.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
