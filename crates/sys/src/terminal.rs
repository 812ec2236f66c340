//! Terminals: which one a descriptor is on, and its settings as the kernel keeps them.

use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct termios2` of `asm-generic/termbits.h`: unlike the C library's, it carries any line speed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// `c_iflag`
    pub input: u32,
    /// `c_oflag`
    pub output: u32,
    /// `c_cflag`
    pub control: u32,
    /// `c_lflag`
    pub local: u32,
    /// `c_line`
    pub line: u8,
    /// `c_cc`
    pub characters: [u8; 19],
    /// `c_ispeed`
    pub input_speed: u32,
    /// `c_ospeed`
    pub output_speed: u32,
}

// The values of <asm-generic/ioctls.h>, which x86, ARM, RISC-V and LoongArch share.
const TCGETS2: libc::Ioctl = 0x802c_542a_u32 as libc::Ioctl;
const TCSETS2: libc::Ioctl = 0x402c_542b_u32 as libc::Ioctl;
const TIOCGDEV: libc::Ioctl = 0x8004_5432_u32 as libc::Ioctl;

const _: () = assert!(size_of::<Settings>() == 0x2c);

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The settings of a terminal.
///
/// # Errors
/// `ENOTTY` when it is none; `EIO` when it has hung up.
pub fn settings(terminal: BorrowedFd<'_>) -> io::Result<Settings> {
    let mut settings = Settings::default();
    // SAFETY: the pointer is to a live structure of the size that the ioctl number carries.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), TCGETS2, &raw mut settings) })?;
    Ok(settings)
}

/// Changes the settings at once. A process in the background is stopped by SIGTTOU unless it blocks or ignores it.
///
/// # Errors
/// As [`settings`].
pub fn set_settings(terminal: BorrowedFd<'_>, settings: &Settings) -> io::Result<()> {
    // SAFETY: the pointer is to a live structure of the size that the ioctl number carries.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), TCSETS2, std::ptr::from_ref(settings)) })
}

/// The number of the terminal itself, also for a descriptor on `/dev/tty`: as the kernel encodes it in field 7 of
/// `/proc/PID/stat`.
///
/// # Errors
/// `ENOTTY` when it is none.
pub fn device(terminal: BorrowedFd<'_>) -> io::Result<u32> {
    let mut number = 0u32;
    // SAFETY: the pointer is to a live u32 that the kernel fills.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), TIOCGDEV, &raw mut number) })?;
    Ok(number)
}
