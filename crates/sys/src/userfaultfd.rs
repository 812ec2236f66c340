//! Userfault descriptors (`userfaultfd(2)`), and what dirty tracking asks of them.
//!
//! A descriptor with `UFFD_FEATURE_WP_ASYNC` (Linux 6.7) reports no faults: a write to a protected page takes the protection off and
//! goes on, and `PAGEMAP_SCAN` ([`crate::pagemap`]) tells which pages have none any more. The descriptor may be in another process
//! than the memory. When its last copy is closed, the kernel takes all of it back.

use crate::Pid;
use crate::pagemap::{PAGE, Pagemap};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `UFFD_USER_MODE_ONLY` (`linux/userfaultfd.h`): needs no privilege.
pub const USER_MODE_ONLY: libc::c_int = 1;

const API: u64 = 0xaa;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Default)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
#[derive(Default)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
/// `_IOWR(0xAA, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;

/// `_IOWR(0xAA, 0x06, struct uffdio_writeprotect)`.
const UFFDIO_WRITEPROTECT: libc::Ioctl = 0xc018_aa06_u32 as libc::Ioctl;

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

/// Dirty tracking of one address space: ends when this is dropped.
#[derive(Debug)]
pub struct Tracker(OwnedFd);

impl Tracker {
    /// Makes a tracker of a fresh userfault descriptor, of whatever process.
    ///
    /// # Errors
    /// `EINVAL` where the kernel cannot track.
    pub fn new(descriptor: OwnedFd) -> io::Result<Tracker> {
        let mut api = Api {
            api: API,
            features: FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED,
            ioctls: 0,
        };
        ioctl(descriptor.as_fd(), UFFDIO_API, &mut api)?;
        Ok(Tracker(descriptor))
    }

    /// Tracks writes to `range`, whole areas, from the next time on that it is protected. Doing so again changes nothing.
    ///
    /// # Errors
    /// `EBUSY` where somebody else has registered a part of it, `ESRCH` when the address space is gone, `EINVAL`.
    pub fn register(&self, range: &Range<u64>) -> io::Result<()> {
        let mut register = Register {
            start: range.start,
            len: range.end - range.start,
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        ioctl(self.0.as_fd(), UFFDIO_REGISTER, &mut register)
    }

    /// Takes all protection off `range`, which is registered: pages count as written until they are protected the next time.
    ///
    /// # Errors
    /// `ENOENT` where a part of it is not registered any more, `ESRCH`.
    pub fn clear(&self, range: &Range<u64>) -> io::Result<()> {
        let mut argument = WriteProtect {
            start: range.start,
            len: range.end - range.start,
            mode: 0,
        };
        ioctl(self.0.as_fd(), UFFDIO_WRITEPROTECT, &mut argument)
    }
}

fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the argument is a live structure of the size that the request carries: each caller pairs the two.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Anonymous memory, given back when dropped.
struct Trial {
    start: u64,
    len: usize,
}

impl Drop for Trial {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `Trial::map`, and nobody else knows of it.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.len) };
    }
}

impl Trial {
    fn map(len: usize) -> io::Result<Trial> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Trial {
            start: start as u64,
            len,
        })
    }

    fn range(&self) -> Range<u64> {
        self.start..self.start + self.len as u64
    }

    fn write(&self, page: u64) {
        let address = self.start + page * PAGE;
        debug_assert!(address < self.range().end);
        // SAFETY: the address is within the mapping, which is writable; nothing else refers to it.
        unsafe { (address as *mut u8).write_volatile(1) };
    }

    /// The kernel writes to the page.
    fn read_into(&self, page: u64, file: &std::fs::File) -> io::Result<()> {
        let address = self.start + page * PAGE;
        debug_assert!(address < self.range().end);
        // SAFETY: the address is within the mapping, which is writable, and a page has room for one byte.
        let n = unsafe { libc::read(file.as_raw_fd(), address as *mut libc::c_void, 1) };
        if n == 1 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn moved(self) -> io::Result<Trial> {
        let to = Trial::map(self.len)?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges were mapped by `Trial::map` and are known to nobody else; what was at the new place is given up.
        let at = unsafe {
            libc::mremap(
                self.start as *mut libc::c_void,
                self.len,
                self.len,
                flags,
                to.start as *mut libc::c_void,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(self);
        Ok(to)
    }
}

/// Tries in this process whether this kernel tracks writes, and rightly: pages that were written, by the process or by the kernel for
/// it, are told; others are told to be clean; what was moved (mremap(2)) is not, as some kernels before 6.13 have it.
///
/// # Errors
/// What the kernel says where it cannot.
pub fn tracks() -> io::Result<bool> {
    const PAGES: u64 = 6;
    let tracker = Tracker::new(open()?)?;
    let memory = Trial::map((PAGES * PAGE) as usize)?;
    let mut map = Pagemap::open(Pid::current())?;
    (0..PAGES).for_each(|page| memory.write(page));
    tracker.register(&memory.range())?;
    let page = |n: u64| memory.start + n * PAGE;
    if !map.protect(memory.range())?.is_empty() {
        return Ok(false);
    }
    memory.write(1);
    memory.read_into(3, &std::fs::File::open("/dev/zero")?)?;
    if map.protect(memory.range())? != [page(0)..page(1), page(2)..page(3), page(4)..page(6)] {
        return Ok(false);
    }
    memory.write(5);
    let unwritten = page(0)..page(5);
    if map.protect(memory.range())? != std::slice::from_ref(&unwritten) {
        return Ok(false);
    }
    let moved = memory.moved()?;
    moved.write(0);
    // Not tracked any more; and when it is again, nothing is left of what was.
    if !map.protect(moved.range())?.is_empty() {
        return Ok(false);
    }
    tracker.register(&moved.range())?;
    Ok(map.protect(moved.range())?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_tracked_or_it_is_said_that_they_are_not() {
        match tracks() {
            Ok(tracks) => println!("tracks: {tracks}"),
            Err(error) => println!("skipped: {error}"),
        }
    }

    #[test]
    fn closing_ends_the_tracking() {
        let Ok(tracker) = open().and_then(Tracker::new) else {
            println!("skipped: this kernel does not track writes");
            return;
        };
        let memory = Trial::map(4 * PAGE as usize).expect("memory");
        (0..4).for_each(|page| memory.write(page));
        tracker.register(&memory.range()).expect("registering");
        tracker.register(&memory.range()).expect("and again");
        let other = Tracker::new(open().expect("another")).expect("a tracker");
        let refused = other.register(&memory.range()).expect_err("it is taken");
        assert!(refused.raw_os_error().is_some());
        let mut map = Pagemap::open(Pid::current()).expect("own page map");
        map.protect(memory.range()).expect("protecting");
        let clean = map.protect(memory.range()).expect("looking");
        assert_eq!(clean, std::slice::from_ref(&memory.range()));
        drop(tracker);
        assert_eq!(map.protect(memory.range()).expect("looking"), []);
        memory.write(2);
    }
}
