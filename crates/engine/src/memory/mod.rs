//! The memory of a process: its areas, their contents, its layout.
//!
//! Saved: every area with its address, protection, sharing, file and offset, advice and locks; of private areas the pages that
//! have contents of their own (never-touched pages stay untouched, zero pages cost nothing); of shared memory the contents,
//! once for all processes ([`shared`]; [`crate::ipc`] for System V segments); start and end of heap, stack, arguments and environment ([`layout`]); the vdso
//! ([`vdso`]).
//!
//! Not saved: clean pages of mapped files (they are read from the file, which must not have changed: [`crate::file_policy`]); memory policy of
//! mbind(2), which pages were swapped out.
//!
//! Refused by name: huge page file systems, device memory, areas whose missing pages userfaultfd(2) tells of. (Write protection by it alone
//! may be that of [`crate::tracking`]; a program that has its own has a descriptor of it, which is refused.)
//!
//! Rests on: `VmFlags` of `/proc/PID/smaps`; the page map tells own pages from those of the file (`sys::pagemap`);
//! `/proc/PID/mem` reads and writes areas of any protection.

pub mod aio;
pub mod layout;
pub mod restore;
pub mod shared;
pub mod vdso;

use crate::conformance::Claim;
use crate::descriptors::io_uring;
use crate::error::Context;
use crate::file_policy::{Collector, FileIndex, MappedSource, Mapping};
use crate::maps::{self, Vma};
use crate::{EngineError, Refusal};
use serde::{Deserialize, Serialize};
use stasis_image::Run;
use stasis_sys::Pid;
use stasis_sys::pagemap::{Pagemap, Pages};
use std::collections::HashSet;
use std::ops::Range;

const ANONYMOUS: Claim = Claim::kept(
    "memory: anonymous",
    "heap, stack and all else that has no file",
    &[
        "memory::anonymous",
        "memory::heap_growth",
        "memory::stack_growth",
        "memory::sparse",
        "memory::zeros",
        "memory::copy_on_write",
    ],
);
const PRIVATE_FILE: Claim = Claim::kept(
    "memory: private mapping of a file",
    "the pages that were written; the others are read from the file",
    &["memory::private_file", "memory::beyond_end"],
);
const SHARED_FILE: Claim = Claim::kept(
    "memory: shared mapping of a file",
    "",
    &["memory::shared_file"],
);
const NAMELESS: Claim = Claim::kept(
    "memory: private mapping of a file that has no name any more",
    "",
    &["memory::deleted_file"],
);
const AIO: Claim = Claim::kept(
    "context of asynchronous I/O (io_setup)",
    "idle; a request that is under way is waited for, for a second, and then refused",
    &["rings::contexts"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    AIO,
    ANONYMOUS,
    PRIVATE_FILE,
    SHARED_FILE,
    NAMELESS,
    Claim::kept(
        "protections, advice, locked memory (mlock), guard pages",
        "",
        &[
            "memory::protections",
            "memory::advice",
            "memory::grows_down",
            "memory::many_areas",
        ],
    ),
    Claim::kept("transparent huge pages", "", &["memory::huge_pages"]),
    Claim::refused(
        "memory: huge page file system",
        "use transparent huge pages instead",
        &["engine-descriptors::refused::memory_in_huge_pages"],
    ),
    Claim::refused(
        "memory: of a device, or registered with userfaultfd",
        "",
        &["refused::userfaultfd"],
    ),
];

/// What an area is mapped from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Nothing: zeros until written.
    Anonymous {
        /// `PR_SET_VMA_ANON_NAME`.
        name: Option<String>,
    },
    /// A file: private copy or shared.
    File {
        /// Place in the image's list of mapped files.
        file: u32,
        /// Bytes into the file.
        offset: u64,
    },
    /// Shared memory without a name, or whose name is gone.
    Shared {
        /// Place in the image's list of shared objects.
        object: u32,
        /// Bytes into the object.
        offset: u64,
    },
    /// The kernel's code in user space.
    Vdso,
    /// The kernel's data for that code, by its bracketed name.
    Vvar(String),
    /// A System V segment.
    Segment {
        /// Its id.
        id: i32,
        /// Bytes into it.
        offset: u64,
        /// Attached to be read only (`SHM_RDONLY`).
        read_only: bool,
    },
    /// A context of io_setup(2), with what its ring held.
    Aio(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// One area.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// First address and one past the last.
    pub range: Range<u64>,
    /// `PROT_*`.
    pub protection: i32,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// What it is mapped from.
    pub backing: Backing,
    /// `MAP_GROWSDOWN`.
    pub grows_down: bool,
    /// `MAP_NORESERVE`.
    pub no_reserve: bool,
    /// `MAP_DROPPABLE`.
    pub droppable: bool,
    /// `madvise(2)` advice in force.
    pub advice: Vec<i32>,
    /// `mlock2(2)`: locked, and whether pages are locked only as they are touched.
    pub locked: Option<bool>,
    /// Was writable once, and counts as used memory for that (`VM_ACCOUNT`): neighbours without that are areas of their own.
    pub accounted: bool,
    /// Sealed by mseal(2).
    pub sealed: bool,
    /// A private mapping of a file whose name is gone: its pages are all that is known of it.
    #[serde(skip)]
    pub vanished: bool,
    /// Bytes in memory or swapped out.
    #[serde(skip)]
    pub own: u64,
    /// Bytes in transparent huge pages.
    #[serde(skip)]
    pub huge: u64,
    /// Writes to it are tracked.
    #[serde(skip)]
    pub tracked: bool,
}

impl Area {
    /// Which of the claims it is; `None` for the kernel's own areas.
    pub(crate) fn claim(&self) -> Option<Claim> {
        match &self.backing {
            _ if self.vanished => Some(NAMELESS),
            Backing::Anonymous { .. } => Some(ANONYMOUS),
            Backing::File { .. } if self.shared => Some(SHARED_FILE),
            Backing::File { .. } => Some(PRIVATE_FILE),
            Backing::Shared { .. } => Some(shared::SHARED),
            Backing::Segment { .. } => Some(crate::ipc::SEGMENT),
            Backing::Aio(_) => Some(AIO),
            Backing::Vdso | Backing::Vvar(_) => None,
        }
    }
}

/// The memory of one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Ascending by address.
    pub areas: Vec<Area>,
    /// Heap, stack, arguments.
    pub layout: layout::State,
    /// The object of the image that holds the private contents, at offsets that are addresses.
    pub contents: u32,
    /// Guard pages (`MADV_GUARD_INSTALL`).
    pub guards: Vec<Range<u64>>,
    /// Pages stored.
    pub stored: Vec<Range<u64>>,
}

impl State {
    /// Bytes of private contents.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.stored
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }
}

/// `VmFlags` codes and the advice that sets them.
const ADVICE: [(&[u8; 2], i32); 8] = [
    (b"sr", libc::MADV_SEQUENTIAL),
    (b"rr", libc::MADV_RANDOM),
    (b"dc", libc::MADV_DONTFORK),
    (b"dd", libc::MADV_DONTDUMP),
    (b"mg", libc::MADV_MERGEABLE),
    (b"hg", libc::MADV_HUGEPAGE),
    (b"nh", libc::MADV_NOHUGEPAGE),
    (b"wf", libc::MADV_WIPEONFORK),
];

/// Why an area cannot be saved: reason and hint.
fn obstacle(vma: &Vma) -> Option<(&'static str, &'static str)> {
    let path = vma.path.as_slice();
    if vma.has(b"ht") || path.starts_with(b"/anon_hugepage") {
        return Some((
            "it is made of huge pages of the huge page file system",
            "use transparent huge pages instead",
        ));
    }
    if io_uring::is_ring(vma) && stasis_sys::io_uring::OFFSETS.contains(&vma.offset) {
        return None;
    }
    if path.starts_with(b"anon_inode:") || path.starts_with(b"socket:") {
        return Some((
            "it is a ring shared with the kernel",
            "run the program without that feature, if it can",
        ));
    }
    // Write protection alone (`uw`) is how Stasis finds what was written (`tracking`); a program's own is refused by its descriptor.
    if vma.has(b"um") || vma.has(b"ui") {
        return Some((
            "it is registered with userfaultfd",
            "run the program without that feature, if it can",
        ));
    }
    let kernel_s = path.starts_with(b"[vvar") || path == b"[vdso]" || path == b"[vsyscall]";
    if path == b"[uprobes]" {
        return Some((
            "a tracing tool has probes in this program",
            "end the tracing tool",
        ));
    }
    if !kernel_s && (vma.has(b"io") || vma.has(b"pf")) {
        return Some((
            "it is memory of a device",
            "the program must let go of the device first",
        ));
    }
    None
}

/// The same, of what only the detailed list shows.
fn obstacle_in_detail(vma: &Vma) -> Option<(&'static str, &'static str)> {
    if vma.key != 0 {
        return Some((
            "it has a protection key (pkey_mprotect)",
            "run the program without that feature, if it can",
        ));
    }
    if vma.has(b"ss") {
        return Some((
            "it is a shadow stack, which only the kernel may write to",
            "run the program without that (GLIBC_TUNABLES=glibc.cpu.x86_shstk=off)",
        ));
    }
    None
}

/// Looks for areas that cannot be saved.
#[must_use]
pub fn refusals(virtual_pid: Pid, process: &str, areas: &[Vma]) -> Vec<Refusal> {
    refused(virtual_pid, process, areas, obstacle)
}

/// The same for what only the detailed list shows.
#[must_use]
pub fn refusals_in_detail(virtual_pid: Pid, process: &str, areas: &[Vma]) -> Vec<Refusal> {
    refused(virtual_pid, process, areas, obstacle_in_detail)
}

fn refused(
    virtual_pid: Pid,
    process: &str,
    areas: &[Vma],
    obstacle: impl Fn(&Vma) -> Option<(&'static str, &'static str)>,
) -> Vec<Refusal> {
    let refuse = |vma: &Vma| {
        let (reason, hint) = obstacle(vma)?;
        Some(Refusal {
            pid: Some(virtual_pid),
            process: process.to_owned(),
            object: format!(
                "memory at {:#x} ({})",
                vma.range.start,
                String::from_utf8_lossy(&vma.path)
            ),
            reason: reason.to_owned(),
            hint: hint.to_owned(),
        })
    };
    areas.iter().filter_map(refuse).collect()
}

/// Everything that the areas of all processes refer to, collected over the tree.
#[derive(Debug, Default)]
pub struct Collected {
    /// Shared memory.
    pub shared: shared::Objects,
    /// Device and inode of what descriptors are open on.
    pub open: HashSet<(u64, u64)>,
}

/// Turns the kernel's list into areas, adding what they are mapped from to `collected`.
///
/// # Errors
/// When a mapped file cannot be looked at.
pub fn areas(
    process: Pid,
    vmas: &[Vma],
    files: &Collector,
    collected: &mut Collected,
) -> Result<Vec<Area>, EngineError> {
    let mut areas = Vec::with_capacity(vmas.len());
    for vma in vmas {
        let path = vma.path.as_slice();
        if path == b"[vsyscall]" {
            continue;
        }
        let mut vanished = false;
        let backing = if let Some(id) = vma.segment() {
            Backing::Segment {
                id,
                offset: vma.offset,
                read_only: !vma.has(b"mw"),
            }
        } else if path == b"[vdso]" {
            Backing::Vdso
        } else if path.starts_with(b"[vvar") {
            Backing::Vvar(String::from_utf8_lossy(path).into_owned())
        } else if aio::is_ring(vma) {
            Backing::Aio(aio::capture(process, vma)?)
        } else if vma.inode == 0 {
            let name = path
                .strip_prefix(b"[anon:")
                .and_then(|rest| rest.strip_suffix(b"]"));
            Backing::Anonymous {
                name: name.map(|name| String::from_utf8_lossy(name).into_owned()),
            }
        } else if let Some(file) = file_of(vma, files)? {
            Backing::File {
                file: file.0,
                offset: vma.offset,
            }
        } else if io_uring::is_ring(vma) && !collected.open.contains(&(vma.device, vma.inode)) {
            return Err(EngineError::Failed(format!(
                "process {process} maps an io_uring that it has closed, which cannot be saved"
            )));
        } else if vma.shared || collected.open.contains(&(vma.device, vma.inode)) {
            let object = collected.shared.find(process, vma);
            Backing::Shared {
                object,
                offset: vma.offset,
            }
        } else {
            vanished = true;
            Backing::Anonymous { name: None }
        };
        let flag = |code: &[u8; 2]| vma.has(code);
        areas.push(Area {
            range: vma.range.clone(),
            protection: vma.protection,
            shared: vma.shared,
            backing,
            grows_down: flag(b"gd"),
            no_reserve: flag(b"nr"),
            droppable: flag(b"dp"),
            advice: ADVICE
                .iter()
                .filter(|(code, _)| vma.has(code))
                .map(|(_, advice)| *advice)
                .collect(),
            locked: flag(b"lo").then(|| flag(b"lf")),
            accounted: flag(b"ac"),
            sealed: flag(b"sl"),
            vanished,
            own: vma.resident + vma.swap,
            huge: vma.huge,
            tracked: flag(b"uw"),
        });
    }
    Ok(areas)
}

/// The file that an area is mapped from, where a name or a descriptor leads to it.
fn file_of(vma: &Vma, files: &Collector) -> Result<Option<FileIndex>, EngineError> {
    // Shared memory and the kernel's own objects have names that are no paths.
    if !vma.path.starts_with(b"/")
        || vma.path.starts_with(b"/memfd:")
        || vma.path.starts_with(b"/dev/zero")
    {
        return Ok(None);
    }
    let mapping = Mapping {
        path: &vma.path,
        device: (rustix::fs::major(vma.device), rustix::fs::minor(vma.device)),
        inode: vma.inode,
        shared_writable: vma.shared && vma.has(b"mw"),
    };
    match files.mapping(&mapping) {
        Ok(MappedSource::File(index)) => Ok(Some(index)),
        Ok(MappedSource::MemoryOnly) => Ok(None),
        Err(refusal) => Err(EngineError::Refused(vec![refusal])),
    }
}

impl Area {
    /// Whether its private contents are the image's to keep.
    fn has_contents(&self) -> bool {
        !self.shared && !self.droppable && !matches!(self.backing, Backing::Vdso | Backing::Vvar(_))
    }

    /// Whether a forked copy of the process has these contents too.
    #[must_use]
    pub fn is_in_twin(&self) -> bool {
        !self.advice.contains(&libc::MADV_DONTFORK) && !self.advice.contains(&libc::MADV_WIPEONFORK)
    }
}

/// Finds the pages to be stored of the areas that `wanted` picks: those with contents of their own, and of private mappings of
/// vanished files every page. `process` is the process or its twin.
///
/// # Errors
/// When the page map cannot be read.
pub fn pages(
    process: Pid,
    areas: &[Area],
    wanted: impl Fn(&Area) -> bool,
    pages: &mut Pages,
) -> Result<(), EngineError> {
    let looking = || format!("reading the page map of process {process}");
    let mut map = Pagemap::open(process).context(looking)?;
    for area in areas
        .iter()
        .filter(|area| area.has_contents() && wanted(area))
    {
        if area.vanished {
            pages.own.push(area.range.clone());
        } else {
            map.look(area.range.clone(), pages).context(looking)?;
        }
    }
    Ok(())
}

/// What the image writer is asked to store.
#[must_use]
pub fn runs(pages: &[Range<u64>]) -> Vec<Run> {
    pages
        .iter()
        .map(|range| Run {
            offset: range.start,
            len: range.end - range.start,
        })
        .collect()
}

/// Reads the areas of a process with all that is needed here.
///
/// # Errors
/// When they cannot be read.
pub fn look(process: Pid) -> Result<Vec<Vma>, EngineError> {
    maps::read_detailed(process)
}
