//! Replacing the memory of a new process by the saved one, by remote calls.
//!
//! The process starts with the supervisor's own memory, as forking leaves it. A scratch page and the vdso are put into holes that
//! neither that memory nor the saved one uses, everything else is unmapped, the saved areas are mapped at their addresses, filled,
//! and the vdso is moved to where it was.

use super::{Area, Backing, State};
use crate::EngineError;
use crate::calls::{Calls, SCRATCH};
use crate::maps::{self, Vma};
use stasis_sys::pagemap::PAGE;
use stasis_tracee::arch::TASK_SIZE;
use std::ops::Range;

/// How an area's file descriptor is found.
pub struct Descriptors<'a> {
    /// The descriptor of each file, where it is mapped.
    pub files: &'a [i32],
    /// The descriptor of shared object n is `shared + n`.
    pub shared: i32,
    /// The shared objects that the kernel maps where it wants (io_uring).
    pub rings: Vec<u32>,
}

impl Descriptors<'_> {
    fn is_ring(&self, area: &Area) -> bool {
        matches!(area.backing, Backing::Shared { object, .. } if self.rings.contains(&object))
    }
}

/// Addresses that a process needs while its memory is replaced.
#[derive(Clone, Debug)]
pub struct Places {
    /// The scratch page.
    pub scratch: u64,
    /// Where the kernel's areas wait.
    pub parking: u64,
    /// The kernel's areas of the new process: name and present range.
    pub kernel: Vec<(Vec<u8>, Range<u64>)>,
}

fn is_kernel_s(vma: &Vma) -> bool {
    vma.path == b"[vdso]" || vma.path.starts_with(b"[vvar")
}

/// Finds holes that neither the new process nor the saved one uses.
///
/// # Errors
/// When there is none.
pub fn places(state: &State, now: &[Vma]) -> Result<Places, EngineError> {
    let mut taken: Vec<Range<u64>> = state.areas.iter().map(|area| area.range.clone()).collect();
    taken.extend(now.iter().map(|vma| vma.range.clone()));
    taken.sort_by_key(|range| range.start);
    let none = || EngineError::Failed("the saved memory leaves no free addresses".into());
    let scratch = maps::find_hole(&taken, SCRATCH).ok_or_else(none)?;
    taken.push(scratch..scratch + SCRATCH);
    taken.sort_by_key(|range| range.start);
    let kernel: Vec<_> = now
        .iter()
        .filter(|vma| is_kernel_s(vma))
        .map(|v| (v.path.clone(), v.range.clone()))
        .collect();
    let len = match (kernel.first(), kernel.last()) {
        (Some(first), Some(last)) => last.1.end - first.1.start,
        _ => PAGE,
    };
    let parking = maps::find_hole(&taken, len).ok_or_else(none)?;
    Ok(Places {
        scratch,
        parking,
        kernel,
    })
}

fn unmap(calls: &mut Calls<'_>, range: Range<u64>) -> Result<(), EngineError> {
    if range.start < range.end {
        calls.call(
            "munmap",
            libc::SYS_munmap,
            &[range.start, range.end - range.start],
        )?;
    }
    Ok(())
}

const MOVE: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;

fn relocate(calls: &mut Calls<'_>, range: &Range<u64>, to: u64) -> Result<(), EngineError> {
    let len = range.end - range.start;
    let instruction = calls.remote.instruction();
    calls.call(
        "mremap",
        libc::SYS_mremap,
        &[range.start, len, len, MOVE, to],
    )?;
    if range.contains(&instruction) {
        calls.remote.set_instruction(instruction - range.start + to);
    }
    Ok(())
}

/// Parks the kernel's areas and unmaps everything else.
///
/// # Errors
/// When a remote call fails.
pub fn clear(places: &mut Places, calls: &mut Calls<'_>) -> Result<(), EngineError> {
    let base = places.kernel.first().map_or(0, |(_, range)| range.start);
    let mut end = places.parking;
    for (_, range) in &mut places.kernel {
        let to = places.parking + (range.start - base);
        relocate(calls, range, to)?;
        *range = to..to + (range.end - range.start);
        end = range.end;
    }
    let mut keep = [
        places.scratch..places.scratch + SCRATCH,
        places.parking..end,
    ];
    keep.sort_by_key(|range| range.start);
    unmap(calls, 0..keep[0].start)?;
    unmap(calls, keep[0].end..keep[1].start)?;
    unmap(calls, keep[1].end..TASK_SIZE)
}

/// Maps the rings of io_uring at their addresses, before anything else. The kernel maps them where it wants, and moves them
/// nowhere (`io_uring_get_unmapped_area`, `io_uring/memmap.c`): so everything but the wanted place is made to be in use.
///
/// # Errors
/// When a remote call fails, or the kernel finds yet another place.
pub fn map_rings(
    state: &State,
    places: &Places,
    descriptors: &Descriptors,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    let scratch = places.scratch..places.scratch + SCRATCH;
    let kernel_s = places.kernel.iter().map(|(_, range)| range.clone());
    let mut used: Vec<Range<u64>> = std::iter::once(scratch).chain(kernel_s).collect();
    for area in state.areas.iter().filter(|area| descriptors.is_ring(area)) {
        let Backing::Shared { object, offset } = area.backing else {
            continue;
        };
        let mut taken = used.clone();
        taken.push(area.range.clone());
        let free = holes(&mut taken);
        for hole in &free {
            let arguments = [hole.start, hole.end - hole.start, 0, BLOCKED, u64::MAX, 0];
            calls.call("mmap", libc::SYS_mmap, &arguments)?;
        }
        let len = area.range.end - area.range.start;
        let fd = (descriptors.shared + object as i32) as u64;
        let sharing = (libc::MAP_SHARED | libc::MAP_POPULATE) as u64;
        let arguments = [0, len, area.protection as u64, sharing, fd, offset];
        let at = calls.call("mmap", libc::SYS_mmap, &arguments)?;
        if at != area.range.start {
            return Err(EngineError::Failed(format!(
                "the memory of an io_uring got the address {at:#x} instead of {:#x}",
                area.range.start
            )));
        }
        used.push(area.range.clone());
        for hole in free {
            unmap(calls, hole)?;
        }
    }
    Ok(())
}

/// `MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE`.
const BLOCKED: u64 =
    (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE)
        as u64;

/// What lies between areas, from the lowest address that anybody may map on.
fn holes(areas: &mut [Range<u64>]) -> Vec<Range<u64>> {
    const LOWEST: u64 = 0x1_0000;
    areas.sort_by_key(|area| area.start);
    let starts = std::iter::once(LOWEST).chain(areas.iter().map(|area| area.end));
    let ends = areas.iter().map(|area| area.start).chain([TASK_SIZE]);
    let holes = starts.zip(ends).map(|(start, end)| start..end);
    holes.filter(|hole| hole.start < hole.end).collect()
}

/// Maps every saved area at its address, empty, but for what [`map_rings`] has mapped.
///
/// # Errors
/// When a remote call fails.
pub fn map_areas(
    state: &State,
    descriptors: &Descriptors<'_>,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    for area in state.areas.iter().filter(|area| !descriptors.is_ring(area)) {
        let (fd, offset) = match area.backing {
            Backing::Vdso | Backing::Vvar(_) | Backing::Segment { .. } | Backing::Aio(_) => {
                continue;
            }
            Backing::Anonymous { .. } => (-1, 0),
            Backing::File { file, offset } => {
                let number = descriptors.files.get(file as usize);
                let number = number.ok_or_else(|| {
                    EngineError::Failed("the image maps a file that it does not name".into())
                })?;
                (*number, offset)
            }
            Backing::Shared { object, offset } => (descriptors.shared + object as i32, offset),
        };
        let sharing = if area.droppable {
            MAP_DROPPABLE
        } else if area.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let flag = |on: bool, value: i32| if on { value } else { 0 };
        let flags = sharing
            | libc::MAP_FIXED
            | flag(fd < 0, libc::MAP_ANONYMOUS)
            | flag(area.grows_down, libc::MAP_GROWSDOWN)
            | flag(area.no_reserve, libc::MAP_NORESERVE);
        let len = area.range.end - area.range.start;
        // Once writable, it is accounted for, and does not merge with neighbours that never were.
        let writable_first =
            area.accounted && !area.shared && area.protection & libc::PROT_WRITE == 0;
        let protection = if writable_first {
            area.protection | libc::PROT_WRITE
        } else {
            area.protection
        };
        let arguments = [
            area.range.start,
            len,
            protection as u64,
            flags as u64,
            fd as i64 as u64,
            offset,
        ];
        let explain = |error| {
            EngineError::Failed(format!(
                "mapping {:#x}..{:#x}: {error}",
                area.range.start, area.range.end
            ))
        };
        calls
            .call("mmap", libc::SYS_mmap, &arguments)
            .map_err(explain)?;
        if writable_first {
            let arguments = [area.range.start, len, area.protection as u64];
            calls
                .call("mprotect", libc::SYS_mprotect, &arguments)
                .map_err(explain)?;
        }
        // Before it is filled: filling huge pages takes a third of the time, and where there were none there shall be none.
        for advice in area
            .advice
            .iter()
            .filter(|advice| is_of_huge_pages(**advice))
        {
            let _ = calls.call(
                "madvise",
                libc::SYS_madvise,
                &[area.range.start, len, *advice as u64],
            );
        }
    }
    // The kernel chooses where it makes them: now nothing else can come to lie there.
    for area in &state.areas {
        if let Backing::Aio(ring) = &area.backing {
            super::aio::restore(&area.range, ring, calls)?;
        }
    }
    Ok(())
}

fn is_of_huge_pages(advice: i32) -> bool {
    matches!(advice, libc::MADV_HUGEPAGE | libc::MADV_NOHUGEPAGE)
}

const MAP_DROPPABLE: i32 = 8;
const MADV_GUARD_INSTALL: i32 = 102;
const MLOCK_ONFAULT: u64 = 1;
const PR_SET_VMA: u64 = 0x5356_4d41;
const SYS_MSEAL: i64 = 462;

/// Gives the filled areas their advice, names, locks and seals, and moves the kernel's areas to where they were.
///
/// # Errors
/// When a remote call fails.
pub fn finish_areas(
    state: &State,
    places: &Places,
    same_vdso: bool,
    calls: &mut Calls<'_>,
    notes: &mut Vec<String>,
) -> Result<(), EngineError> {
    for area in &state.areas {
        finish_area(area, calls, notes)?;
    }
    for range in &state.guards {
        let arguments = [
            range.start,
            range.end - range.start,
            MADV_GUARD_INSTALL as u64,
        ];
        calls.call("madvise(MADV_GUARD_INSTALL)", libc::SYS_madvise, &arguments)?;
    }
    if same_vdso {
        restore_kernel_s(state, places, calls)?;
    }
    for area in state.areas.iter().filter(|area| area.sealed) {
        let arguments = [area.range.start, area.range.end - area.range.start, 0];
        if calls.call("mseal", SYS_MSEAL, &arguments).is_err() {
            notes.push(
                "this kernel cannot seal memory (mseal): the program's seals are gone".into(),
            );
        }
    }
    Ok(())
}

fn finish_area(
    area: &Area,
    calls: &mut Calls<'_>,
    notes: &mut Vec<String>,
) -> Result<(), EngineError> {
    let (start, len) = (area.range.start, area.range.end - area.range.start);
    if matches!(area.backing, Backing::Vdso | Backing::Vvar(_)) {
        return Ok(());
    }
    for advice in area
        .advice
        .iter()
        .filter(|advice| !is_of_huge_pages(**advice))
    {
        // Of a kernel without that feature (KSM, huge pages), the advice is not missed.
        let _ = calls.call("madvise", libc::SYS_madvise, &[start, len, *advice as u64]);
    }
    if let Backing::Anonymous { name: Some(name) } = &area.backing {
        let mut bytes = name.clone().into_bytes();
        bytes.push(0);
        let address = calls.put(&bytes)?;
        // CONFIG_ANON_VMA_NAME; only a label.
        let _ = calls.call(
            "prctl(PR_SET_VMA)",
            libc::SYS_prctl,
            &[PR_SET_VMA, 0, start, len, address],
        );
    }
    if let Some(on_fault) = area.locked {
        let flags = if on_fault { MLOCK_ONFAULT } else { 0 };
        if let Err(error) = calls.call("mlock2", libc::SYS_mlock2, &[start, len, flags]) {
            notes.push(format!(
                "memory at {start:#x} could not be locked again: {error}"
            ));
        }
    }
    Ok(())
}

/// Has what the program maps from now on locked as well, where all that it has is locked (`mlockall(2)` with `MCL_FUTURE`):
/// nobody tells whether it was so, but an area made later without that would not be locked.
pub fn lock_what_comes(state: &State, calls: &mut Calls<'_>, notes: &mut Vec<String>) {
    const MCL_ONFAULT: i32 = 4;
    let program_s = |area: &&Area| !matches!(area.backing, Backing::Vdso | Backing::Vvar(_));
    let mut locks = state.areas.iter().filter(program_s).map(|area| area.locked);
    let Some(first) = locks.next().flatten() else {
        return;
    };
    if !locks.clone().all(|lock| lock.is_some()) {
        return;
    }
    let on_fault = first && locks.all(|lock| lock == Some(true));
    let flags = libc::MCL_FUTURE | if on_fault { MCL_ONFAULT } else { 0 };
    if let Err(error) = calls.call("mlockall", libc::SYS_mlockall, &[flags as u64]) {
        notes.push(format!(
            "memory that is still to come could not be locked: {error}"
        ));
    }
}

fn restore_kernel_s(
    state: &State,
    places: &Places,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    for area in &state.areas {
        let name: &[u8] = match &area.backing {
            Backing::Vdso => b"[vdso]",
            Backing::Vvar(name) => name.as_bytes(),
            _ => continue,
        };
        match places.kernel.iter().find(|(found, _)| found == name) {
            Some((_, range)) => relocate(calls, range, area.range.start)?,
            None => {
                return Err(EngineError::Failed(format!(
                    "this kernel has no {}",
                    String::from_utf8_lossy(name)
                )));
            }
        }
    }
    Ok(())
}

/// The stored pages that the image has no extents for: they were all zeros, which costs an image nothing, but in a private copy
/// of a file zeros are contents like any others.
#[must_use]
pub fn zeros_over_files(state: &State, extents: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut zeros = Vec::new();
    for area in &state.areas {
        if area.shared || matches!(area.backing, Backing::Anonymous { .. }) {
            continue;
        }
        for stored in &state.stored {
            let (mut at, end) = (
                stored.start.max(area.range.start),
                stored.end.min(area.range.end),
            );
            let next = extents.partition_point(|extent| extent.end <= at);
            for extent in extents[next..]
                .iter()
                .take_while(|extent| extent.start < end)
            {
                if at < extent.start {
                    zeros.push(at..extent.start);
                }
                at = at.max(extent.end);
            }
            if at < end {
                zeros.push(at..end);
            }
        }
    }
    zeros
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_private_copies_are_found() {
        let area = |range, backing| Area {
            range,
            protection: libc::PROT_READ,
            shared: false,
            backing,
            grows_down: false,
            no_reserve: false,
            droppable: false,
            advice: Vec::new(),
            locked: None,
            accounted: false,
            sealed: false,
            vanished: false,
            own: 0,
            huge: 0,
            tracked: false,
        };
        let file = Backing::File { file: 0, offset: 0 };
        let state = State {
            areas: vec![
                area(0..100, Backing::Anonymous { name: None }),
                area(100..200, file),
            ],
            layout: super::super::layout::State::default(),
            contents: 1,
            guards: Vec::new(),
            stored: vec![0..20, 90..120, 150..180],
        };
        assert_eq!(
            zeros_over_files(&state, &[0..10, 105..110, 150..160]),
            vec![100..105, 110..120, 160..180]
        );
        assert_eq!(zeros_over_files(&state, &[]), vec![100..120, 150..180]);
    }
}
