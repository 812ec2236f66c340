//! Strategy `burn`: an id is had by making the kernel's counter go round until the wanted one comes next.
//!
//! Rests on: without set_tid the kernel hands out ids in a cycle, the next free one above the last (`alloc_pid`,
//! `kernel/pid.c`), and `/proc/sys/kernel/ns_last_pid` shows where it stands. After the first round it begins at 300
//! (`RESERVED_PIDS`). Everybody on the host moves the same counter: an id can be missed, and comes again a round later.

use crate::EngineError;
use crate::error::Context;
use stasis_sys::Pid;
use stasis_sys::process;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where the ids start again (`RESERVED_PIDS`).
const RESERVED: i32 = 300;
/// Between two looks at the counter, at most.
const STRIDE: i32 = 64;
/// For how many rounds an id may be somebody else's.
const PATIENCE: u32 = 5;
/// How many ids in use are looked through to find the next free one.
const NEAR: usize = 64;

/// The ring of ids.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// One past the highest id (`kernel.pid_max`).
    pub end: i32,
}

impl Ring {
    /// This host's.
    ///
    /// # Errors
    /// When `/proc/sys/kernel/pid_max` cannot be read.
    pub fn of_host() -> io::Result<Ring> {
        let text = std::fs::read_to_string("/proc/sys/kernel/pid_max")?;
        let end = text.trim().parse().map_err(io::Error::other)?;
        Ok(Ring { end })
    }

    /// How far the counter has to go from `last`, the last id that was given, until it gives `id`: a whole round where it has just
    /// been given.
    #[must_use]
    pub fn ahead(self, last: Pid, id: Pid) -> i32 {
        match (id.0 - last.0).rem_euclid(self.end) {
            0 => self.end,
            ahead => ahead,
        }
    }

    /// Which ids never come any more when the last one given was `last`.
    #[must_use]
    pub fn never_comes(self, last: Pid, id: Pid) -> bool {
        id.0 >= self.end || (id.0 < RESERVED && id <= last)
    }

    fn after(self, id: i32) -> i32 {
        if id + 1 < self.end { id + 1 } else { RESERVED }
    }
}

/// The kernel's counter.
#[derive(Debug)]
pub struct Counter {
    file: File,
    ring: Ring,
    /// For ids that were once met by accident: what stood right before, where ids in use that cannot be seen lie between.
    before: HashMap<Pid, Pid>,
    /// In how many rounds an id belonged to somebody else when its turn came.
    taken: HashMap<Pid, u32>,
}

/// What came of going for an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The next process made gets it, if nobody else is quicker.
    Next,
    /// The counter is past it.
    Missed,
}

impl Counter {
    /// Opens it.
    ///
    /// # Errors
    /// Where the kernel does not show it (no CONFIG_CHECKPOINT_RESTORE).
    pub fn open() -> io::Result<Counter> {
        Ok(Counter {
            file: File::open("/proc/sys/kernel/ns_last_pid")?,
            ring: Ring::of_host()?,
            before: HashMap::new(),
            taken: HashMap::new(),
        })
    }

    /// The ring that it goes round in.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// The last id given.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn last(&self) -> io::Result<Pid> {
        let mut text = [0; 16];
        let length = self.file.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..length]).map_err(io::Error::other)?;
        text.trim().parse().map(Pid).map_err(io::Error::other)
    }

    /// Spends ids until `want` comes next, or has been missed. `go_on` is asked now and then whether that is still wanted.
    ///
    /// # Errors
    /// [`process::spend_id`]'s; when nobody wants it any more, or the counter does not move.
    pub fn reach(&mut self, want: Pid, go_on: &dyn Fn() -> bool) -> Result<Reached, EngineError> {
        let reading = || "reading the counter of process ids".to_owned();
        let mut last = self.last().context(reading)?;
        loop {
            if self.comes_next(last, want) {
                if !in_use(want) {
                    return Ok(Reached::Next);
                }
                self.give_a_round(want)?;
            }
            if !go_on() {
                return Err(EngineError::Failed("the restart was given up".into()));
            }
            let ahead = self.ring.ahead(last, want);
            let stride = (ahead / 4).clamp(1, STRIDE);
            for _ in 0..stride {
                process::spend_id().context(|| "spending a process id".into())?;
            }
            let now = self.last().context(reading)?;
            if now == last {
                return Err(EngineError::Failed(
                    "the kernel's counter of process ids does not move".into(),
                ));
            }
            if self.ring.ahead(last, now) >= ahead {
                if stride == 1 && now == want {
                    self.before.insert(want, last);
                }
                return Ok(Reached::Missed);
            }
            last = now;
        }
    }

    /// Somebody on the host took the id after it was found free, and may be gone by the next round.
    fn give_a_round(&mut self, want: Pid) -> Result<(), EngineError> {
        let rounds = self.taken.entry(want).or_default();
        *rounds += 1;
        if *rounds < PATIENCE {
            return Ok(());
        }
        Err(EngineError::Failed(format!(
            "the program's process ids: other processes have them: {want}, taken meanwhile; try again when it has ended"
        )))
    }

    /// Whether all ids between the two are in use, so that the kernel steps over them.
    fn comes_next(&self, last: Pid, want: Pid) -> bool {
        if self.before.get(&want) == Some(&last) {
            return true;
        }
        let mut id = self.ring.after(last.0);
        for _ in 0..NEAR {
            if id == want.0 {
                return true;
            }
            if !in_use(Pid(id)) {
                return false;
            }
            id = self.ring.after(id);
        }
        false
    }
}

/// Whether a process or thread has it, or a process group is called by it.
fn in_use(id: Pid) -> bool {
    Path::new(&format!("/proc/{id}")).exists() || process::is_group(id)
}

/// Which of the ids that are `due` comes first, when the counter stands at `last`.
pub fn first_due(ring: Ring, last: Pid, due: impl Iterator<Item = (usize, Pid)>) -> Option<usize> {
    due.min_by_key(|(_, id)| ring.ahead(last, *id))
        .map(|(n, _)| n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_leads_round() {
        let ring = Ring { end: 1000 };
        assert_eq!(ring.ahead(Pid(400), Pid(401)), 1);
        assert_eq!(ring.ahead(Pid(400), Pid(400)), 1000);
        assert_eq!(ring.ahead(Pid(999), Pid(300)), 301);
        assert_eq!(ring.after(999), 300);
        assert_eq!(
            first_due(ring, Pid(500), [(0, Pid(400)), (1, Pid(900))].into_iter()),
            Some(1)
        );
    }

    #[test]
    fn low_ids_and_those_beyond_the_limit_never_come() {
        let ring = Ring { end: 1000 };
        assert!(ring.never_comes(Pid(500), Pid(120)));
        assert!(ring.never_comes(Pid(500), Pid(1000)));
        assert!(!ring.never_comes(Pid(50), Pid(120)));
        assert!(!ring.never_comes(Pid(500), Pid(300)));
    }

    #[test]
    fn the_counter_moves_without_a_process_being_made() {
        let mut counter = Counter::open().expect("the kernel shows it");
        let children = || std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let none = children();
        // Others on the host move it as well, so that the id may be missed.
        let near = |last: Pid| (0..500).fold(last.0, |id, _| counter.ring.after(id));
        let want = Pid(near(counter.last().expect("readable")));
        let reached = counter.reach(want, &|| true).expect("possible");
        assert!(matches!(reached, Reached::Next | Reached::Missed));
        assert_eq!(children(), none);
    }

    /// In rounds of the counter: forty processes below each other and beside each other, in any order of ids.
    #[test]
    fn a_tree_takes_a_round_and_one_for_each_descent() {
        let ring = Ring { end: 32768 };
        let rounds = |ids: &[i32], parents: &[Option<usize>]| {
            let mut made = vec![false; ids.len()];
            let (mut last, mut gone) = (Pid(20_000), 0);
            loop {
                let due =
                    (0..ids.len()).filter(|&n| !made[n] && parents[n].is_none_or(|p| made[p]));
                let Some(n) = first_due(ring, last, due.map(|n| (n, Pid(ids[n])))) else {
                    return (gone + ring.end - 1) / ring.end;
                };
                gone += ring.ahead(last, Pid(ids[n]));
                (last, made[n]) = (Pid(ids[n]), true);
            }
        };
        let star: Vec<_> = (0..40).map(|n| (n > 0).then_some(0)).collect();
        let chain: Vec<_> = (0..40_usize).map(|n| n.checked_sub(1)).collect();
        let rising: Vec<_> = (0..40).map(|n| 1000 + n).collect();
        assert_eq!(rounds(&rising, &star), 1);
        assert_eq!(rounds(&rising, &chain), 1);
        // The children's ids in any order, some lower than their parent's.
        let mixed: Vec<_> = (0..40)
            .map(|n| 300 + (n * 7919 + 16_000) % 32_000)
            .collect();
        assert!(rounds(&mixed, &star) <= 2);
        // A chain that has gone over the end of the ring once.
        let wrapped: Vec<_> = (0..40).map(|n| 300 + (n * 700 + 25_000) % 32_000).collect();
        assert!(rounds(&wrapped, &chain) <= 2);
    }
}
