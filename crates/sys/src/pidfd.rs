//! What a pidfd tells of a process that is gone (`pidfd_open(2)`, `linux/pidfd.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The first version of `struct pidfd_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<Info>() == 64);

/// `_IOWR(0xFF, 11, struct pidfd_info)` with 64 bytes.
const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The raw status word with which the process ended, where the kernel kept it (Linux 6.15 and newer).
///
/// # Errors
/// `ENOTTY` or `EINVAL` on older kernels.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = Info {
        mask: PIDFD_INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: the pointer is to a live structure of the size that the ioctl number carries.
    let rc = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
    }
}
