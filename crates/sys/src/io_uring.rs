//! Rings for input and output (`io_uring(7)`): made again with counters that have got somewhere, and looked at.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

const SYS_SETUP: i64 = 425;
const SYS_ENTER: i64 = 426;
const SYS_REGISTER: i64 = 427;

const SETUP_CQSIZE: u32 = 1 << 3;
const SETUP_SUBMIT_ALL: u32 = 1 << 7;
const REGISTER_EVENTFD: u32 = 4;
const REGISTER_PBUF_STATUS: u32 = 26;
const SKIP_COMPLETION: u8 = 1 << 6;

/// Where mappings of a ring begin (`mmap(2)`): the rings, the completion ring by itself, the submissions.
pub const OFFSETS: [u64; 3] = [0, 0x800_0000, 0x1000_0000];

/// Bytes of a submission.
pub const SUBMISSION: usize = 64;
const COMPLETION: usize = 16;

/// `struct io_uring_params`, in words: entries, flags, processor, idle time, features, another ring, three reserved ones,
/// ten of offsets for submissions, ten for completions.
type Params = [u32; 30];

/// Where things are in the memory of a ring; the same for all rings of these sizes on one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Submissions that it has room for.
    pub submissions: u32,
    /// Completions that it has room for.
    pub completions: u32,
    /// Offsets of the submission ring: head, tail, mask, entries, flags, dropped, array.
    pub submission_offsets: [u32; 7],
    /// Offsets of the completion ring: head, tail, mask, entries, overflow, completions, flags.
    pub completion_offsets: [u32; 7],
}

impl Layout {
    /// Where the numbers of submissions are.
    #[must_use]
    pub fn array(&self) -> usize {
        self.submission_offsets[6] as usize
    }

    /// Where the completions end.
    #[must_use]
    pub fn completions_end(&self) -> usize {
        self.completion_offsets[5] as usize + self.completions as usize * COMPLETION
    }

    /// Bytes of both rings.
    #[must_use]
    pub fn rings(&self) -> usize {
        (self.array() + self.submissions as usize * 4).max(self.completions_end())
    }

    /// Where the count of submissions is that were not valid, and of completions that there was no room for.
    #[must_use]
    pub fn lost(&self) -> [usize; 2] {
        [self.submission_offsets[5], self.completion_offsets[4]].map(|at| at as usize)
    }
}

/// A ring that nobody uses yet.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    layout: Layout,
    rings: Mapping,
    submissions: Mapping,
}

impl Ring {
    /// Makes one with room for so many submissions and completions, powers of two, close-on-exec.
    ///
    /// # Errors
    /// `EPERM` and `ENOSYS` where the host does not allow rings, `EINVAL` for such sizes, `EMFILE`, `ENOMEM`.
    pub fn make(submissions: u32, completions: u32) -> io::Result<Ring> {
        let setup = |flags: u32| {
            let mut params: Params = [0; 30];
            params[1] = completions;
            params[2] = flags;
            // SAFETY: `params` is as large as the kernel's structure, live, and may be written to.
            let fd = unsafe { libc::syscall(SYS_SETUP, submissions, params.as_mut_ptr()) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just returned this descriptor and nothing else owns it.
            Ok((unsafe { OwnedFd::from_raw_fd(fd as i32) }, params))
        };
        // Linux 5.18 and newer.
        let (fd, params) =
            setup(SETUP_CQSIZE | SETUP_SUBMIT_ALL).or_else(|_| setup(SETUP_CQSIZE))?;
        let words = |from: usize| std::array::from_fn(|n| params[from + n]);
        let layout = Layout {
            submissions: params[0],
            completions: params[1],
            submission_offsets: words(10),
            completion_offsets: words(20),
        };
        let map = |len: usize, offset: u64| Mapping::of(&fd, len, offset);
        let rings = map(layout.rings(), OFFSETS[0])?;
        let submissions = map(layout.submissions as usize * SUBMISSION, OFFSETS[2])?;
        Ok(Ring {
            fd,
            layout,
            rings,
            submissions,
        })
    }

    /// Where things are in its memory.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Lets it do nothing `submitted` times, of which the last `completed` give completions: the kernel has counted that
    /// much then. Of the completions those before number `consumed` are taken to have been read.
    ///
    /// # Errors
    /// The kernel's; when a request is not carried out at once.
    pub fn advance(&mut self, submitted: u32, completed: u32, consumed: u32) -> io::Result<()> {
        let Layout {
            submissions,
            submission_offsets: [_, tail, .., array],
            completion_offsets: [read, posted, ..],
            ..
        } = self.layout;
        for n in 0..submissions {
            self.rings.put(array as usize + n as usize * 4, n);
        }
        let silent = submitted - completed;
        let (mut done, mut marked) = (0, None);
        while done < submitted {
            let skip = done < silent;
            if marked != Some(skip) {
                for n in 0..submissions as usize {
                    // What does nothing has number 0, and nothing but flags.
                    let flags = if skip { SKIP_COMPLETION } else { 0 };
                    self.submissions.put(n * SUBMISSION, u32::from(flags) << 8);
                }
                marked = Some(skip);
            }
            let until = if skip { silent } else { submitted };
            let posted_now = self.rings.get(posted as usize);
            // The kernel keeps what it knows of free room until that is used up: so it has to know it as it will be.
            self.rings.put(read as usize, posted_now.min(consumed));
            let count = submissions.min(until - done);
            self.rings.put(tail as usize, done + count);
            fence(Ordering::SeqCst);
            // SAFETY: the call takes no pointers.
            let entered =
                unsafe { libc::syscall(SYS_ENTER, self.fd.as_raw_fd(), count, 0, 0, 0, 0) };
            match entered {
                n if n == i64::from(count) => done += count,
                n if n < 0 => return Err(io::Error::last_os_error()),
                _ => return Err(io::Error::other("a ring takes less than it has room for")),
            }
        }
        if self.rings.get(posted as usize) == completed {
            Ok(())
        } else {
            Err(io::Error::other("a ring does not count what was done"))
        }
    }

    /// Sets what its memory holds: both rings, and the submissions. What is shorter leaves the rest as it is.
    pub fn fill(&mut self, rings: &[u8], submissions: &[u8]) {
        self.rings.copy_from(rings);
        self.submissions.copy_from(submissions);
    }

    /// Its descriptor; this process maps it no more.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// A shared mapping of a ring.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn of(fd: &OwnedFd, len: usize, offset: u64) -> io::Result<Mapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                flags,
                fd,
                offset as i64,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast())
            .map(|start| Mapping { start, len })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn word(&self, at: usize) -> Option<&AtomicU32> {
        if !at.is_multiple_of(4) || at + 4 > self.len {
            return None;
        }
        // SAFETY: the word lies in the mapping, which lives as long as `self` and begins on a page, and is accessed by this
        // process and the kernel as an atomic only, but for `copy_from`, which has `self` to itself.
        Some(unsafe { self.start.add(at).cast::<AtomicU32>().as_ref() })
    }

    fn get(&self, at: usize) -> u32 {
        self.word(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn put(&self, at: usize, value: u32) {
        if let Some(word) = self.word(at) {
            word.store(value, Ordering::Release);
        }
    }

    fn copy_from(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(self.len);
        // SAFETY: so many bytes are there on both sides, which do not overlap; the kernel touches the ring in calls only, and
        // nobody else has it yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), len) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing refers to it any more.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// What a ring says to somebody who is not its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing special.
    Plain,
    /// An eventfd hears of completions.
    Eventfd,
    /// It was given groups of buffers to choose from.
    Buffers,
    /// It may be used by one thread only (`IORING_SETUP_SINGLE_ISSUER`).
    OneThread,
    /// It has not been switched on (`IORING_SETUP_R_DISABLED`).
    Off,
}

/// So many groups of buffers are asked for, from 0 on.
const GROUPS: u32 = 256;

/// Looks at a ring, by asking for what fails.
///
/// # Errors
/// The kernel's.
pub fn look(ring: BorrowedFd<'_>) -> io::Result<Look> {
    let register = |what: u32, argument: *mut u32| -> Result<(), i32> {
        // SAFETY: the argument is null, which the kernel refuses, or points to a structure of ten live words.
        let done = unsafe { libc::syscall(SYS_REGISTER, ring.as_raw_fd(), what, argument, 1) };
        let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if done < 0 { Err(errno()) } else { Ok(()) }
    };
    // A null pointer is looked at only where there is no eventfd yet.
    match register(REGISTER_EVENTFD, std::ptr::null_mut()) {
        Err(libc::EFAULT) => {}
        Err(libc::EBUSY) => return Ok(Look::Eventfd),
        Err(libc::EEXIST) => return Ok(Look::OneThread),
        Err(libc::EBADFD) => return Ok(Look::Off),
        Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
        Ok(()) => return Err(io::Error::other("a ring took no eventfd for one")),
    }
    // SAFETY: the call takes no pointers, and asks for nothing.
    if unsafe { libc::syscall(SYS_ENTER, ring.as_raw_fd(), 0, 0, 0, 0, 0) } < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EBADFD) => Ok(Look::Off),
            Some(libc::EEXIST) => Ok(Look::OneThread),
            _ => Err(error),
        };
    }
    // Kernels that cannot tell (before 6.8) give EINVAL for all, newer ones for groups of another kind.
    let status = |group: u32| {
        let mut status = [0u32; 10];
        status[0] = group;
        register(REGISTER_PBUF_STATUS, status.as_mut_ptr())
    };
    if status(u32::from(u16::MAX)) == Err(libc::ENOENT) {
        let there = |group: u32| status(group) != Err(libc::ENOENT);
        if (0..GROUPS).any(there) {
            return Ok(Look::Buffers);
        }
    }
    Ok(Look::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn counters_get_where_they_shall() {
        let Ok(mut ring) = Ring::make(4, 8) else {
            eprintln!("skipped: no rings on this host");
            return;
        };
        assert_eq!(look(ring.fd.as_fd()).expect("a ring"), Look::Plain);
        ring.advance(1003, 1001, 995).expect("counted");
        let [read, posted, ..] = ring.layout.completion_offsets;
        let [head, tail, ..] = ring.layout.submission_offsets;
        let at = |offset: u32| ring.rings.get(offset as usize);
        assert_eq!(
            [at(head), at(tail), at(read), at(posted)],
            [1003, 1003, 995, 1001]
        );
        assert_eq!(ring.layout.lost().map(|at| ring.rings.get(at)), [0, 0]);
    }
}
