//! Which pages of another process hold something: `/proc/PID/pagemap` (`proc_pid_pagemap(5)`) and its
//! `PAGEMAP_SCAN` ioctl (Linux 6.7, `Documentation/admin-guide/mm/pagemap.rst`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

const PAGE_IS_WPALLOWED: u64 = 1 << 0;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_GUARD: u64 = 1 << 8;

#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// `PM_SCAN_WP_MATCHING`: what is found to have been written is protected in the same instant.
const WP_MATCHING: u64 = 1 << 0;

/// What a range of addresses holds.
#[derive(Debug, Default)]
pub struct Pages {
    /// Private pages with contents of their own, in memory or swapped out; zero pages are left out where the kernel can tell.
    pub own: Vec<Range<u64>>,
    /// Guard pages (`MADV_GUARD_INSTALL`).
    pub guards: Vec<Range<u64>>,
}

/// A process's page map, with what has been learnt about this kernel.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    scan: Scan,
    regions: Vec<RegionBuffer>,
}

type RegionBuffer = [u64; 3];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scan {
    WithGuards,
    Plain,
    Unavailable,
}

impl Pagemap {
    /// Opens the page map of the process or thread `id`.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`.
    pub fn open(id: crate::Pid) -> io::Result<Pagemap> {
        let file = File::open(format!("/proc/{id}/pagemap"))?;
        Ok(Pagemap {
            file,
            scan: Scan::WithGuards,
            regions: vec![[0; 3]; 2048],
        })
    }

    /// Whether the kernel scans for itself (`PAGEMAP_SCAN`, Linux 6.7 and newer), as far as has been tried.
    #[must_use]
    pub fn scans(&self) -> bool {
        self.scan != Scan::Unavailable
    }

    /// Adds what `range` (page-aligned addresses) holds to `pages`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self, range: Range<u64>, pages: &mut Pages) -> io::Result<()> {
        while self.scan != Scan::Unavailable {
            match self.scan_range(range.clone(), pages) {
                Ok(()) => return Ok(()),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)) => {
                    self.scan = if self.scan == Scan::WithGuards {
                        Scan::Plain
                    } else {
                        Scan::Unavailable
                    };
                }
                Err(error) => return Err(error),
            }
        }
        self.read_range(range, pages)
    }

    fn scan_range(&mut self, range: Range<u64>, pages: &mut Pages) -> io::Result<()> {
        let guard = if self.scan == Scan::WithGuards {
            PAGE_IS_GUARD
        } else {
            0
        };
        let mut at = range.start;
        while at < range.end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start: at,
                end: range.end,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT | guard,
                ..ScanArgument::default()
            };
            // SAFETY: the argument and the vector that it points to live across the call, the vector's length is given, and its
            // elements have the layout of `struct page_region` (three u64).
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            if n < 0 {
                return Err(io::Error::last_os_error());
            }
            for &[start, end, categories] in &self.regions[..n as usize] {
                let region = Region {
                    start,
                    end,
                    categories,
                };
                let list = if guard != 0 && region.categories & guard != 0 {
                    &mut pages.guards
                } else {
                    &mut pages.own
                };
                append(list, region.start..region.end);
            }
            // The kernel gathers 512 regions at a time. A walk that ends after more of them leaves in `walk_end` where it had
            // stood when it last handed some over (`fs/proc/task_mmu.c`, `do_pagemap_scan`), before regions already told.
            let told = self.regions[..n as usize].last().map_or(0, |last| last[1]);
            let next = argument.walk_end.max(told);
            if next <= at {
                break;
            }
            at = next;
        }
        Ok(())
    }

    /// Protects all pages of `range` that are registered for the tracking of writes ([`crate::userfaultfd`]), and gives those that
    /// have not been written since they were protected the last time. Areas that are not registered are left out.
    ///
    /// # Errors
    /// `EINVAL`, `ENOTTY` where the kernel does not scan.
    pub fn protect(&mut self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let mut clean = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: WP_MATCHING,
                start: at,
                end: range.end,
                vec: self.regions.as_mut_ptr() as u64,
                vec_len: self.regions.len() as u64,
                category_mask: PAGE_IS_WPALLOWED,
                // Empty places are left as they are.
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_WRITTEN,
                ..ScanArgument::default()
            };
            // SAFETY: as in `scan_range`.
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            if n < 0 {
                return Err(io::Error::last_os_error());
            }
            let told = &self.regions[..n as usize];
            for &[start, end, categories] in told {
                if categories & PAGE_IS_WRITTEN == 0 {
                    append(&mut clean, start..end);
                }
            }
            // See `scan_range`. A page is protected when it has been told and not before, so none must be looked at twice: it
            // would pass for clean the second time.
            let told = told.last().map_or(0, |last| last[1]);
            let next = argument.walk_end.max(told);
            if next <= at {
                break;
            }
            at = next;
        }
        Ok(clean)
    }

    fn read_range(&self, range: Range<u64>, pages: &mut Pages) -> io::Result<()> {
        const BATCH: u64 = 8192;
        let mut buffer = vec![0u8; (BATCH * 8) as usize];
        let mut page = range.start / PAGE;
        let last = range.end / PAGE;
        while page < last {
            let count = BATCH.min(last - page);
            let bytes = &mut buffer[..(count * 8) as usize];
            self.file.read_exact_at(bytes, page * 8)?;
            for (n, entry) in bytes.chunks_exact(8).enumerate() {
                let entry = u64::from_ne_bytes([
                    entry[0], entry[1], entry[2], entry[3], entry[4], entry[5], entry[6], entry[7],
                ]);
                // Bit 63 present, 62 swapped, 61 file page or shared anonymous, 58 guard.
                let start = (page + n as u64) * PAGE;
                if entry >> 58 & 1 == 1 {
                    append(&mut pages.guards, start..start + PAGE);
                } else if entry >> 62 != 0 && entry >> 61 & 1 == 0 {
                    append(&mut pages.own, start..start + PAGE);
                }
            }
            page += count;
        }
        Ok(())
    }
}

fn append(list: &mut Vec<Range<u64>>, range: Range<u64>) {
    match list.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => list.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_pages(scan: Scan) -> u64 {
        let buffer = vec![1u8; 64 * PAGE as usize];
        let start = (buffer.as_ptr() as u64).next_multiple_of(PAGE);
        let mut map = Pagemap::open(crate::Pid::current()).expect("own pagemap");
        map.scan = scan;
        let mut pages = Pages::default();
        map.look(start..start + 60 * PAGE, &mut pages)
            .expect("looking at own memory");
        pages.own.iter().map(|r| (r.end - r.start) / PAGE).sum()
    }

    /// The address of `2 * count` pages, never given back.
    fn every_other_page_written(count: u64) -> u64 {
        let len = (2 * count * PAGE) as usize;
        // SAFETY: a new mapping, given to nobody else; huge pages are ruled out before it is touched; the bytes written are
        // within it.
        unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert!(start != libc::MAP_FAILED);
            libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
            for n in 0..count as usize {
                start.cast::<u8>().add(2 * n * PAGE as usize).write(1);
            }
            start as u64
        }
    }

    #[test]
    fn many_regions_are_found_once_each() {
        let count = 5000;
        let start = every_other_page_written(count);
        for scan in [Scan::WithGuards, Scan::Unavailable] {
            let mut pagemap = Pagemap::open(crate::Pid::current()).expect("own pagemap");
            pagemap.scan = scan;
            let range = start..start + 2 * count * PAGE;
            let mut pages = Pages::default();
            pagemap
                .look(range, &mut pages)
                .expect("looking at own memory");
            let expected: Vec<_> = (0..count)
                .map(|n| start + 2 * n * PAGE..start + (2 * n + 1) * PAGE)
                .collect();
            assert!(
                pages.own == expected,
                "{scan:?}: {} regions",
                pages.own.len()
            );
        }
    }

    #[test]
    fn written_pages_are_found_by_either_interface() {
        assert_eq!(own_pages(Scan::WithGuards), 60);
        assert_eq!(own_pages(Scan::Unavailable), 60);
    }
}
