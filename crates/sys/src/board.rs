//! Counters and slots in memory shared by forked processes: how they wait for each other, and take turns.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Stages that a [`Board`] counts.
pub const STAGES: usize = 8;

#[repr(C)]
struct Cells {
    failed: AtomicU32,
    /// Changes with everything that happens: who waits in vain for a long time can tell whether anything does.
    progress: AtomicU32,
    turn: AtomicU32,
    arrived: [AtomicU32; STAGES],
}

/// Counters shared with every process forked from here on. Lives until the process ends or replaces its memory.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    cells: NonNull<Cells>,
    slots: usize,
}

// SAFETY: all access goes through atomics in memory that is never unmapped by this type.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

/// How often somebody who waits looks whether he is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For how long nothing may happen.
const LIMIT: Duration = Duration::from_secs(120);

impl Board {
    /// Maps a new one with `slots` numbers, everything zero.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(slots: usize) -> io::Result<Board> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let length = size_of::<Cells>() + slots * size_of::<AtomicU32>();
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice disturbs nothing.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Zeros are valid values of all cells, and a mapping is aligned to a page.
        NonNull::new(address.cast())
            .map(|cells| Board { cells, slots })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn cells(&self) -> &Cells {
        // SAFETY: the mapping is as large as Cells, zero-initialised, aligned, and never unmapped.
        unsafe { self.cells.as_ref() }
    }

    fn slots(&self) -> &[AtomicU32] {
        // SAFETY: `new` mapped `slots` zeroed numbers right behind the cells, whose size is a multiple of their alignment;
        // they are atomics, and never unmapped.
        unsafe { std::slice::from_raw_parts(self.cells.add(1).cast().as_ptr(), self.slots) }
    }

    /// Tells everybody that it has failed: all waits end.
    pub fn fail(&self) {
        self.cells().failed.store(1, Ordering::Release);
        for cell in &self.cells().arrived {
            wake(cell, ANYBODY);
        }
        wake(&self.cells().turn, ANYBODY);
    }

    /// Whether somebody failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.cells().failed.load(Ordering::Acquire) != 0
    }

    /// Tells those who wait that something happens, even if it is not yet what they wait for.
    pub fn go_on(&self) {
        self.cells().progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Arrives at a stage that `count` are going to arrive at.
    pub fn arrive(&self, stage: usize, count: usize) {
        self.go_on();
        let cell = &self.cells().arrived[stage];
        if cell.fetch_add(1, Ordering::AcqRel) as usize + 1 >= count {
            wake(cell, ANYBODY);
        }
    }

    /// Waits until `count` have arrived at `stage`; false when somebody failed, nothing happens any more, or `wanted`, which is
    /// asked now and then, says that nobody wants it any more.
    #[must_use]
    pub fn wait(&self, stage: usize, count: usize, wanted: &dyn Fn() -> bool) -> bool {
        let arrived = |number: u32| number as usize >= count;
        self.wait_for(&self.cells().arrived[stage], ANYBODY, arrived, wanted)
    }

    /// Gives the turn to `whom`.
    pub fn pass_turn(&self, whom: u32) {
        self.go_on();
        self.cells().turn.store(whom, Ordering::Release);
        wake(&self.cells().turn, one_of(whom));
    }

    /// Waits until it is the turn of `whom`; false as for [`Board::wait`].
    #[must_use]
    pub fn await_turn(&self, whom: u32, wanted: &dyn Fn() -> bool) -> bool {
        self.wait_for(
            &self.cells().turn,
            one_of(whom),
            |turn| turn == whom,
            wanted,
        )
    }

    /// What is in a slot.
    #[must_use]
    pub fn slot(&self, n: usize) -> u32 {
        self.slots()[n].load(Ordering::Acquire)
    }

    /// Puts a number into a slot.
    pub fn set_slot(&self, n: usize, value: u32) {
        self.go_on();
        self.slots()[n].store(value, Ordering::Release);
    }

    fn wait_for(
        &self,
        cell: &AtomicU32,
        bits: u32,
        done: impl Fn(u32) -> bool,
        wanted: &dyn Fn() -> bool,
    ) -> bool {
        let progress = || self.cells().progress.load(Ordering::Relaxed);
        let (mut seen, mut since) = (progress(), Instant::now());
        loop {
            let value = cell.load(Ordering::Acquire);
            if self.failed() {
                return false;
            }
            if done(value) {
                return true;
            }
            if wait(cell, value, bits, LOOK_EVERY) {
                continue;
            }
            if progress() != seen {
                (seen, since) = (progress(), Instant::now());
            }
            if since.elapsed() > LIMIT || !wanted() {
                return false;
            }
        }
    }
}

/// Any bit of a futex's set.
const ANYBODY: u32 = u32::MAX;

/// The few that a turn's owner is woken with.
fn one_of(whom: u32) -> u32 {
    1 << (whom % 32)
}

/// Sleeps while `cell` holds `value`, at most for `limit`; false when that is what ended it (`futex(2)`, FUTEX_WAIT_BITSET).
fn wait(cell: &AtomicU32, value: u32, bits: u32, limit: Duration) -> bool {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let end = Duration::new(now.tv_sec as u64, now.tv_nsec as u32) + limit;
    let end = libc::timespec {
        tv_sec: end.as_secs() as i64,
        tv_nsec: i64::from(end.subsec_nanos()),
    };
    // SAFETY: the cell and the time live across the call, which changes neither.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_futex,
            cell.as_ptr(),
            libc::FUTEX_WAIT_BITSET,
            value,
            &raw const end,
            std::ptr::null::<u32>(),
            bits,
        )
    };
    rc == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
}

/// Wakes those who wait with one of `bits`.
fn wake(cell: &AtomicU32, bits: u32) {
    // SAFETY: the cell lives across the call, which does not change it.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            cell.as_ptr(),
            libc::FUTEX_WAKE_BITSET,
            i32::MAX,
            std::ptr::null::<libc::timespec>(),
            std::ptr::null::<u32>(),
            bits,
        );
    }
}
