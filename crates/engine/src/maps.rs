//! The areas of an address space as `/proc/PID/smaps` and `/proc/PID/maps` list them (`proc_pid_maps(5)`).

use crate::EngineError;
use crate::error::Context;
use stasis_sys::{Pid, procfs};
use std::ops::Range;

/// One area (VMA).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vma {
    /// First address and one past the last.
    pub range: Range<u64>,
    /// `PROT_READ`, `PROT_WRITE`, `PROT_EXEC`.
    pub protection: i32,
    /// `MAP_SHARED` rather than `MAP_PRIVATE`.
    pub shared: bool,
    /// Offset in the file.
    pub offset: u64,
    /// Device of the file, as `st_dev` encodes it; 0 where there is none.
    pub device: u64,
    /// Inode of the file; 0 where there is none.
    pub inode: u64,
    /// The last column: path, `[heap]`, `[anon:name]`, or nothing. Newlines are unescaped.
    pub path: Vec<u8>,
    /// The two-letter codes of `VmFlags`; empty when only `maps` was read.
    pub flags: Vec<[u8; 2]>,
    /// Bytes swapped out.
    pub swap: u64,
    /// Bytes in memory.
    pub resident: u64,
    /// Its memory protection key (`pkeys(7)`).
    pub key: u64,
    /// Bytes in transparent huge pages.
    pub huge: u64,
}

impl Vma {
    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether `VmFlags` has this code.
    #[must_use]
    pub fn has(&self, code: &[u8; 2]) -> bool {
        self.flags.contains(code)
    }

    /// The id of the System V segment that this is, or a part of (`newseg`, `ipc/shm.c`: it is the number of the inode).
    #[must_use]
    pub fn segment(&self) -> Option<i32> {
        let is_one = self.shared && self.path.starts_with(b"/SYSV");
        is_one.then(|| i32::try_from(self.inode).ok()).flatten()
    }

    /// The path without the kernel's ` (deleted)`, and whether it was there.
    #[must_use]
    pub fn deleted_path(&self) -> (&[u8], bool) {
        self.path
            .strip_suffix(b" (deleted)")
            .map_or((&self.path, false), |path| (path, true))
    }
}

/// Reads the areas of the process or thread `id` with their flags.
///
/// # Errors
/// When `/proc/ID/smaps` cannot be read.
pub fn read_detailed(id: Pid) -> Result<Vec<Vma>, EngineError> {
    let path = format!("/proc/{id}/smaps");
    Ok(parse(
        &procfs::read(&path).context(|| format!("reading {path}"))?,
    ))
}

/// Reads the areas without flags: much quicker.
///
/// # Errors
/// When `/proc/ID/maps` cannot be read.
pub fn read(id: Pid) -> Result<Vec<Vma>, EngineError> {
    let path = format!("/proc/{id}/maps");
    Ok(parse(
        &procfs::read(&path).context(|| format!("reading {path}"))?,
    ))
}

fn parse(text: &[u8]) -> Vec<Vma> {
    let mut areas: Vec<Vma> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(area) = parse_head(line) {
            areas.push(area);
        } else if let Some(area) = areas.last_mut() {
            if let Some(flags) = line.strip_prefix(b"VmFlags:") {
                let codes = flags
                    .split(|byte| *byte == b' ')
                    .filter_map(|code| code.try_into().ok());
                area.flags = codes.collect();
            } else if let Some(value) = line.strip_prefix(b"Swap:") {
                area.swap = kilobytes(value);
            } else if let Some(value) = line.strip_prefix(b"ProtectionKey:") {
                area.key = kilobytes(value) >> 10;
            } else if let Some(value) = line.strip_prefix(b"Rss:") {
                area.resident = kilobytes(value);
            } else if let Some(value) = line.strip_prefix(b"AnonHugePages:") {
                area.huge = kilobytes(value);
            }
        }
    }
    areas
}

fn kilobytes(value: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(value);
    text.split_ascii_whitespace()
        .next()
        .and_then(|word| word.parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

/// `start-end perms offset major:minor inode   path`.
fn parse_head(line: &[u8]) -> Option<Vma> {
    let mut rest = line;
    let mut word = || -> Option<&[u8]> {
        let start = rest.iter().position(|byte| *byte != b' ')?;
        let end = rest[start..]
            .iter()
            .position(|byte| *byte == b' ')
            .map_or(rest.len(), |n| start + n);
        let (word, tail) = (&rest[start..end], &rest[end..]);
        rest = tail;
        std::str::from_utf8(word).ok().map(str::as_bytes)
    };
    let hex = |bytes: &[u8]| u64::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok();
    let range = word()?;
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let range = hex(&range[..dash])?..hex(&range[dash + 1..])?;
    let permissions = word()?;
    if permissions.len() != 4 {
        return None;
    }
    let offset = hex(word()?)?;
    let device = word()?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let device = rustix::fs::makedev(
        hex(&device[..colon])? as u32,
        hex(&device[colon + 1..])? as u32,
    );
    let inode = std::str::from_utf8(word()?).ok()?.parse().ok()?;
    let start = rest
        .iter()
        .position(|byte| *byte != b' ')
        .unwrap_or(rest.len());
    let bit = |at: usize, letter: u8, value: i32| if permissions[at] == letter { value } else { 0 };
    Some(Vma {
        range,
        protection: bit(0, b'r', libc::PROT_READ)
            | bit(1, b'w', libc::PROT_WRITE)
            | bit(2, b'x', libc::PROT_EXEC),
        shared: permissions[3] == b's',
        offset,
        device,
        inode,
        path: unescape(&rest[start..]),
        ..Vma::default()
    })
}

/// The kernel writes a newline in a path as `\012` (`seq_path`).
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// A hole of `len` bytes between `areas` (ascending), with a free page on either side so that nothing merges with what is put
/// there, and above the lowest address that the kernel gives to anybody.
#[must_use]
pub fn find_hole<'a>(areas: impl IntoIterator<Item = &'a Range<u64>>, len: u64) -> Option<u64> {
    const LOWEST: u64 = 0x10_0000;
    const PAGE: u64 = stasis_sys::pagemap::PAGE;
    // Far below the stack, whose area may grow.
    const STACK_ROOM: u64 = 16 << 20;
    let mut candidate = LOWEST;
    for area in areas {
        if area.start >= stasis_tracee::arch::TASK_SIZE {
            break;
        }
        if area.start >= candidate + PAGE + len + STACK_ROOM {
            return Some(candidate + PAGE);
        }
        candidate = candidate.max(area.end);
    }
    let end = stasis_tracee::arch::TASK_SIZE;
    (candidate + PAGE + len + PAGE <= end).then_some(candidate + PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] =
        b"7f0000000000-7f0000002000 rw-p 00001000 fe:01 42                 /a b\\012c (deleted)\n\
        Rss:                   8 kB\nSwap:                  4 kB\nProtectionKey:         3\nVmFlags: rd wr mr mw me ac \n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    #[test]
    fn smaps_are_read() {
        let areas = parse(SAMPLE);
        assert_eq!(areas.len(), 2);
        assert_eq!(areas[0].range, 0x7f00_0000_0000..0x7f00_0000_2000);
        assert_eq!(areas[0].deleted_path(), (&b"/a b\nc"[..], true));
        assert_eq!(
            (areas[0].inode, areas[0].swap, areas[0].resident),
            (42, 4096, 8192)
        );
        assert_eq!((areas[0].key, areas[1].key), (3, 0));
        assert!(areas[0].has(b"mw") && !areas[0].has(b"ht"));
        assert_eq!(areas[1].path, b"[vsyscall]");
        assert_eq!(areas[1].protection, libc::PROT_EXEC);
    }

    #[test]
    fn holes_keep_their_distance() {
        let areas = [0x40_0000..0x50_0000, 0x7000_0000_0000..0x7000_0001_0000];
        let hole = find_hole(&areas, 0x3000).expect("a hole");
        assert!(
            areas
                .iter()
                .all(|a| hole + 0x4000 <= a.start || hole >= a.end + 0x1000)
        );
    }
}
