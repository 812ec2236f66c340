//! Dirty tracking: what of a process's memory has not been written since the last checkpoint, so that an increment need not read it.
//!
//! Each process has a userfault descriptor of the supervisor's ([`stasis_sys::userfaultfd`]), for which its larger anonymous areas
//! are registered. A descriptor belongs to the address space of whoever makes it: the intermediate that forks the twin makes it,
//! shares its memory with the program and nothing else, and so the program never has it. When the supervisor ends, so does the tracking.
//!
//! At each checkpoint, after the program goes on, its page tables are scanned: pages that were not written since the last scan are told,
//! all are protected anew. Both scans come after the freezes of their checkpoints. So a page has not changed from one image to the
//! next where *both* scans tell that it was not written, as the time between the freezes lies within that of the two scans together:
//!
//! ```text
//! ── scan ──────── freeze ── scan ──────── freeze ── scan ──►   time
//!    S(k-2)        image k-1 S(k-1)        image k   S(k)
//!    └─ told by S(k-1) ──────┘└─ told by S(k) ───────┘
//! ```
//!
//! That costs no pause, and a page that was written only once is read at two checkpoints. Where a checkpoint fails, the next one is
//! compared with the same older image, so that what one more scan tells counts, too.
//!
//! Clean is only what is told to be: what was not registered, was mapped, moved or swapped meanwhile with another area, belongs to a
//! child or to a program that was executed since, is read. A write of the kernel counts (`read(2)`); one that goes on after the scan
//! (a read with O_DIRECT) ends before the next freeze, which waits for the call, and the page was told as written when it began.
//!
//! An area that was not registered at the last freeze may have protection left from an earlier time that means nothing: where
//! mremap(2) puts memory right beside a registered area, the kernel makes one of them and registers neither. So what is newly
//! registered is cleared before the first scan.
//!
//! Rests on: `fs/userfaultfd.c`, `mm/memory.c` (`do_wp_page`), `fs/proc/task_mmu.c` (`PAGEMAP_SCAN`); a forked child is not
//! registered (`dup_userfaultfd`), nor is what was moved (`mremap_userfaultfd_prep`); that this kernel does it right is tried
//! before the first use ([`stasis_sys::userfaultfd::tracks`]).

use crate::capture;
use crate::freeze::{Frozen, FrozenProcess};
use crate::memory::{Area, Backing};
use crate::model::Process;
use crate::twin::Twin;
use stasis_image::Run;
use stasis_sys::Pid;
use stasis_sys::pagemap::Pagemap;
use stasis_sys::userfaultfd::{self, Tracker};
use std::collections::HashMap;
use std::ops::Range;

/// Which memory is tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Track {
    /// None.
    No,
    /// Areas of small pages: they cost the program next to nothing.
    #[default]
    Small,
    /// Huge pages as well, which are split where they are written.
    All,
}

/// An area with fewer bytes of its own is read quickly enough.
const WORTH_TRACKING: u64 = 1 << 20;

/// The tracking of all processes of a job, from one checkpoint to the next.
#[derive(Debug, Default)]
pub struct Tracking {
    /// Whether the kernel can, once that was tried.
    works: Option<bool>,
    processes: HashMap<Pid, Tracked>,
}

#[derive(Debug)]
struct Tracked {
    /// When the process began, as ids are used again.
    started: u64,
    tracker: Tracker,
    /// Of the address space that the tracker belongs to, also when the process has executed another program.
    pagemap: Pagemap,
    /// Registered, as of the last freeze.
    areas: Vec<Range<u64>>,
    /// Those of them that were not registered before.
    fresh: Vec<Range<u64>>,
    /// Not written at the last scan.
    told: Vec<Range<u64>>,
    /// The image that `clean` is relative to: its checksum.
    base: Option<[u8; 32]>,
    /// As in that image.
    clean: Vec<Range<u64>>,
}

fn started(process: &FrozenProcess) -> u64 {
    const START_TIME: usize = 22;
    process.stat.field(START_TIME)
}

fn is_worth_tracking(area: &Area, track: Track) -> bool {
    let in_small_pages = area.huge < area.own / 2;
    matches!(area.backing, Backing::Anonymous { .. })
        && !(area.shared || area.vanished || area.droppable || area.grows_down)
        && area.is_in_twin()
        && area.own >= WORTH_TRACKING
        && (track == Track::All || in_small_pages)
}

/// The areas, and whether they are registered already.
fn worth_tracking(process: &Process, track: Track) -> Vec<(Range<u64>, bool)> {
    let areas = process.memory.areas.iter();
    areas
        .filter(|area| is_worth_tracking(area, track))
        .map(|area| (area.range.clone(), area.tracked))
        .collect()
}

impl Tracking {
    /// Registers what is new in the frozen processes that are tracked already, and says which of those with a twin `wanted` need a
    /// descriptor to be tracked.
    pub(crate) fn prepare(
        &mut self,
        frozen: &Frozen,
        processes: &[Process],
        wanted: &[bool],
        track: Track,
    ) -> Vec<bool> {
        let here: HashMap<Pid, u64> = (frozen.processes.iter())
            .map(|process| (process.pid, started(process)))
            .collect();
        self.processes
            .retain(|pid, tracked| here.get(pid) == Some(&tracked.started));
        if track == Track::No || !wanted.contains(&true) || !self.works() {
            self.processes.clear();
            return vec![false; wanted.len()];
        }
        let mut missing = Vec::with_capacity(wanted.len());
        for ((frozen, process), wanted) in frozen.processes.iter().zip(processes).zip(wanted) {
            let areas = worth_tracking(process, track);
            let known = self.processes.get_mut(&frozen.pid);
            let goes_on = known.is_some_and(|tracked| *wanted && tracked.register(&areas));
            if !goes_on {
                self.processes.remove(&frozen.pid);
            }
            missing.push(*wanted && !goes_on && !areas.is_empty());
        }
        missing
    }

    fn works(&mut self) -> bool {
        *self.works.get_or_insert_with(|| {
            let tried = userfaultfd::tracks();
            tracing::debug!(?tried, "dirty tracking");
            tried.unwrap_or(false)
        })
    }

    /// Takes over the descriptors that came with twins. What does not work is not tracked.
    pub(crate) fn adopt(
        &mut self,
        frozen: &Frozen,
        processes: &[Process],
        twins: &mut [Option<Twin>],
        track: Track,
    ) {
        for ((frozen, process), twin) in frozen.processes.iter().zip(processes).zip(twins) {
            let Some(descriptor) = twin.as_mut().and_then(|twin| twin.userfault.take()) else {
                continue;
            };
            let made = Tracker::new(descriptor)
                .and_then(|tracker| Ok((tracker, Pagemap::open(capture::living(frozen))?)));
            let Ok((tracker, pagemap)) = made else {
                continue;
            };
            let mut tracked = Tracked {
                started: started(frozen),
                tracker,
                pagemap,
                areas: Vec::new(),
                fresh: Vec::new(),
                told: Vec::new(),
                base: None,
                clean: Vec::new(),
            };
            let mut areas = worth_tracking(process, track);
            areas
                .iter_mut()
                .for_each(|(_, registered)| *registered = false);
            if tracked.register(&areas) {
                self.processes.insert(frozen.pid, tracked);
            }
        }
    }

    /// Looks what has been written, and protects it anew. To be done when the program runs on, once a checkpoint.
    pub(crate) fn scan(&mut self) {
        self.processes.retain(|_, tracked| tracked.scan().is_ok());
    }

    /// What a process's memory, as it was at the freeze, has in common with the image of this checksum.
    pub(crate) fn clean(&self, process: Pid, image: &[u8; 32]) -> Vec<Run> {
        let tracked = self.processes.get(&process);
        let tracked = tracked.filter(|tracked| tracked.base.as_ref() == Some(image));
        tracked.map_or_else(Vec::new, |tracked| crate::memory::runs(&tracked.clean))
    }

    /// The image of this checksum is there: the next one may be built upon it.
    pub(crate) fn committed(&mut self, image: [u8; 32]) {
        for tracked in self.processes.values_mut() {
            tracked.base = Some(image);
            tracked.clean = std::mem::take(&mut tracked.told);
        }
    }
}

impl Tracked {
    /// Registers these areas, those that are registered already among them; false when the address space is gone.
    fn register(&mut self, areas: &[(Range<u64>, bool)]) -> bool {
        self.areas.clear();
        self.fresh.clear();
        for (area, registered) in areas {
            match self.tracker.register(area) {
                Ok(()) => {
                    self.areas.push(area.clone());
                    if !registered {
                        self.fresh.push(area.clone());
                    }
                }
                Err(error) => match error.raw_os_error() {
                    // Somebody else's, or of a kind that cannot be.
                    Some(libc::EBUSY | libc::EINVAL | libc::EPERM) => {}
                    _ => return false,
                },
            }
        }
        true
    }

    fn scan(&mut self) -> std::io::Result<()> {
        for area in self.fresh.drain(..) {
            self.tracker.clear(&area)?;
        }
        let mut told = Vec::new();
        for area in &self.areas {
            told.append(&mut self.pagemap.protect(area.clone())?);
        }
        self.clean = intersection(&self.clean, &told);
        self.told = told;
        Ok(())
    }
}

/// What is in both of two ascending lists.
fn intersection(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut both = Vec::new();
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    while let (Some(a), Some(b)) = (one.peek(), other.peek()) {
        let common = a.start.max(b.start)..a.end.min(b.end);
        if a.end <= b.end {
            one.next();
        } else {
            other.next();
        }
        if common.start < common.end {
            both.push(common);
        }
    }
    both
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
mod tests {
    use super::*;

    #[test]
    fn what_two_lists_have_in_common_is_found() {
        assert_eq!(
            intersection(&[0..4, 6..9, 10..20], &[2..7, 8..12, 15..16, 19..30]),
            [2..4, 6..7, 8..9, 10..12, 15..16, 19..20]
        );
        assert_eq!(intersection(&[], &[0..1, 2..3]), []);
        assert_eq!(intersection(&[5..6, 7..8], &[6..7, 7..9]), [7..8]);
    }
}
