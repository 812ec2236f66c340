//! A few counters in memory shared by forked processes: how they wait for each other.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Stages that a [`Board`] counts.
pub const STAGES: usize = 8;

#[repr(C)]
struct Cells {
    failed: AtomicU32,
    lock: AtomicU32,
    arrived: [AtomicU32; STAGES],
}

/// Counters shared with every process forked from here on. Lives until the process ends or replaces its memory.
#[derive(Clone, Copy, Debug)]
pub struct Board(NonNull<Cells>);

// SAFETY: all access goes through atomics in memory that is never unmapped by this type.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    /// Maps a new one, all counters zero.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new() -> io::Result<Board> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice disturbs nothing.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Cells>(),
                protection,
                flags,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Zeros are valid values of all cells, and a mapping is aligned to a page.
        NonNull::new(address.cast())
            .map(Board)
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn cells(&self) -> &Cells {
        // SAFETY: the mapping is as large as Cells, zero-initialised, aligned, and never unmapped.
        unsafe { self.0.as_ref() }
    }

    /// Tells everybody that it has failed: all waits end.
    pub fn fail(&self) {
        self.cells().failed.store(1, Ordering::Release);
    }

    /// Whether somebody failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.cells().failed.load(Ordering::Acquire) != 0
    }

    /// Arrives at a stage.
    pub fn arrive(&self, stage: usize) {
        self.cells().arrived[stage].fetch_add(1, Ordering::AcqRel);
    }

    /// Waits until `count` have arrived at `stage`; false when somebody failed or `limit` has passed.
    #[must_use]
    pub fn wait(&self, stage: usize, count: usize, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut looks = 0u32;
        while (self.cells().arrived[stage].load(Ordering::Acquire) as usize) < count {
            if self.failed() || Instant::now() > deadline {
                return false;
            }
            looks += 1;
            if looks < 20 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        !self.failed()
    }

    /// Waits until no other process holds the lock, and takes it. A process forked meanwhile does not hold it.
    pub fn lock(&self) {
        while self.cells().lock.swap(1, Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
    }

    /// Lets go of the lock.
    pub fn unlock(&self) {
        self.cells().lock.store(0, Ordering::Release);
    }
}
