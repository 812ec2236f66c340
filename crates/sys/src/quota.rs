//! How much the user may still write: `quotactl_fd(2)`, Linux 5.14.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `QCMD(Q_GETQUOTA, type)` of `linux/quota.h`.
const GET_QUOTA: u32 = 0x0080_0007 << 8;
/// Units of block limits, in bytes (`QIF_DQBLKSIZE`).
const BLOCK: u64 = 1024;

/// Whose quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The user of this number.
    User(u32),
    /// The group of this number.
    Group(u32),
}

/// The bytes that `owner` may still write to the file system of `file`; `None` without a limit.
///
/// # Errors
/// `ESRCH` where no quotas are in use, `ENOSYS`, `EPERM`.
pub fn left(file: &File, owner: Owner) -> io::Result<Option<u64>> {
    let (kind, id) = match owner {
        Owner::User(id) => (0, id),
        Owner::Group(id) => (1, id),
    };
    // SAFETY: all zeros are a valid dqblk, which is made of numbers only.
    let mut quota: libc::dqblk = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the kernel writes no more than a dqblk to the pointer, which lives across the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            file.as_raw_fd(),
            GET_QUOTA | kind,
            id,
            &raw mut quota,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    let limit = quota.dqb_bhardlimit.saturating_mul(BLOCK);
    Ok((limit > 0).then(|| limit.saturating_sub(quota.dqb_curspace)))
}
