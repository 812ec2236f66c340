//! Pseudo terminals: what the controlling side (`/dev/ptmx`) tells and sets.
//!
//! `ioctl_tty(2)`, and `drivers/tty/pty.c` for what it leaves out.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// The values of <asm-generic/ioctls.h>, which x86, ARM, RISC-V and LoongArch share.
const TIOCGPTN: libc::Ioctl = 0x8004_5430_u32 as libc::Ioctl;
const TIOCSPTLCK: libc::Ioctl = 0x4004_5431_u32 as libc::Ioctl;
const TIOCGPKT: libc::Ioctl = 0x8004_5438_u32 as libc::Ioctl;
const TIOCGPTLCK: libc::Ioctl = 0x8004_5439_u32 as libc::Ioctl;
const TIOCGEXCL: libc::Ioctl = 0x8004_5440_u32 as libc::Ioctl;
const TIOCGPTPEER: libc::Ioctl = 0x5441;
const TIOCPKT: libc::Ioctl = 0x5420;
const TIOCEXCL: libc::Ioctl = 0x540c;

fn get(master: BorrowedFd<'_>, what: libc::Ioctl) -> io::Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: the requests that come here fill one int, and the pointer is to a live one.
    let rc = unsafe { libc::ioctl(master.as_raw_fd(), what, &raw mut value) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

fn set(master: BorrowedFd<'_>, what: libc::Ioctl, value: bool) -> io::Result<()> {
    let value = libc::c_int::from(value);
    // SAFETY: the requests that come here read one int, and the pointer is to a live one.
    let rc = unsafe { libc::ioctl(master.as_raw_fd(), what, &raw const value) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The number of the pseudo terminal, the `N` of `/dev/pts/N`.
///
/// # Errors
/// `ENOTTY` when the descriptor is no controlling side.
pub fn number(master: BorrowedFd<'_>) -> io::Result<u32> {
    get(master, TIOCGPTN).map(i32::cast_unsigned)
}

/// Whether the other side may not be opened (unlockpt(3)).
///
/// # Errors
/// As [`number`].
pub fn is_locked(master: BorrowedFd<'_>) -> io::Result<bool> {
    get(master, TIOCGPTLCK).map(|value| value != 0)
}

/// Locks or unlocks the other side.
///
/// # Errors
/// As [`number`].
pub fn set_locked(master: BorrowedFd<'_>, locked: bool) -> io::Result<()> {
    set(master, TIOCSPTLCK, locked)
}

/// Whether reads from the controlling side begin with a byte that tells what they are (`TIOCPKT`).
///
/// # Errors
/// As [`number`].
pub fn is_packet_mode(master: BorrowedFd<'_>) -> io::Result<bool> {
    get(master, TIOCGPKT).map(|value| value != 0)
}

/// Turns that on or off.
///
/// # Errors
/// As [`number`].
pub fn set_packet_mode(master: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set(master, TIOCPKT, on)
}

/// Whether nobody else may open the terminal (`TIOCEXCL`), asked of this very side.
///
/// # Errors
/// `ENOTTY` when it is none.
pub fn is_exclusive(terminal: BorrowedFd<'_>) -> io::Result<bool> {
    get(terminal, TIOCGEXCL).map(|value| value != 0)
}

/// Lets nobody else open the terminal.
///
/// # Errors
/// `ENOTTY` when it is none.
pub fn set_exclusive(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    let rc = unsafe { libc::ioctl(terminal.as_raw_fd(), TIOCEXCL, 0) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Opens the other side, by no name, with `flags` of open(2); it does not become the controlling terminal. (The kernel would show
/// `O_CLOEXEC` among the description's flags, so that is set afterwards.)
///
/// # Errors
/// `EIO` while it is locked, `EBUSY` where it is exclusive.
pub fn open_other_side(master: BorrowedFd<'_>, flags: u32) -> io::Result<OwnedFd> {
    let flags = flags as libc::c_int | libc::O_NOCTTY;
    // SAFETY: the request takes its argument by value, and returns a new descriptor that belongs to nobody yet.
    let fd = unsafe {
        let fd = libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: the request takes no pointers.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}
