//! Whether there is room: on the disk for an image, in memory for twins. Looked up before either is begun, so that what cannot
//! work is told at once and with numbers.
//!
//! How long an image will be is not known before it is written. Where its memory fits as it is, there is nothing to ask.
//! Otherwise a sample of it is compressed; an increment is taken to be as long as the last one. Only what is clearly too much is
//! refused: what turns out too long nevertheless fails when the disk is full, and harms as little.

use crate::capture::{self, Captured};
use crate::checkpoint::Options;
use crate::conformance::Claim;
use crate::freeze::{Frozen, FrozenProcess};
use crate::{EngineError, memory, tree};
use stasis_sys::pagemap::Pages;
use stasis_sys::procfs;
use stasis_sys::quota::{self, Owner};
use std::fs::{self, File};
use std::path::Path;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[Claim::refused(
    "image for which there is no room",
    "before it is written, where that is clear",
    &["faults::a_full_disk"],
)];

/// Pieces of memory that are tried, and their length.
const SAMPLES: u64 = 128;
const SAMPLE: u64 = 64 << 10;

/// Memory of a process that is its own, in bytes: resident and swapped out.
pub(crate) fn own_memory(process: &FrozenProcess) -> u64 {
    let pid = capture::living(process);
    let status = procfs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name| kib(tree::status_field(&status, name).unwrap_or_default());
    field("RssAnon") + field("VmSwap")
}

/// `1234 kB` in bytes.
fn kib(value: &str) -> u64 {
    let number = value.split_ascii_whitespace().next();
    number
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap_or(0)
        << 10
}

/// What may still be written to a directory, and what sets the limit.
fn free(directory: &Path) -> Option<(u64, &'static str)> {
    let disk = rustix::fs::statvfs(directory).ok()?;
    let mut free = (disk.f_bavail.saturating_mul(disk.f_frsize), "free there");
    let directory = File::open(directory).ok()?;
    let owners = [
        (
            Owner::User(rustix::process::geteuid().as_raw()),
            "left of your disk quota",
        ),
        (
            Owner::Group(rustix::process::getegid().as_raw()),
            "left of your group's disk quota",
        ),
    ];
    for (owner, words) in owners {
        // Where there are no quotas, there is an error.
        if let Ok(Some(left)) = quota::left(&directory, owner)
            && left < free.0
        {
            free = (left, words);
        }
    }
    Some(free)
}

/// Refuses an image for which there is clearly no room.
///
/// # Errors
/// [`EngineError::Failed`] with the numbers.
pub(crate) fn check(
    frozen: &Frozen,
    captured: &Captured,
    options: &Options,
    path: &Path,
) -> Result<(), EngineError> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    // A file system that does not tell is tried.
    let Some((free, words)) = free(directory) else {
        return Ok(());
    };
    let last = options.older.as_ref().map(|older| older.header());
    let needed = match last {
        Some(last) if last.bases > 0 => last.file_len,
        Some(_) => 0,
        None => {
            let raw: u64 = frozen.processes.iter().map(own_memory).sum();
            if raw <= free {
                return Ok(());
            }
            // A tenth in favour of trying.
            estimate(frozen, captured, options)? / 10 * 9
        }
    };
    if needed <= free {
        return Ok(());
    }
    Err(EngineError::Failed(format!(
        "no space left in {} for this checkpoint: about {} are needed, and {} are {words}; free some space, choose another \
         directory (-d), or keep fewer checkpoints (--keep) (older images are untouched)",
        directory.display(),
        words_for(needed),
        words_for(free),
    )))
}

fn words_for(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes {
        0..MIB => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes.div_ceil(MIB)),
    }
}

/// What the private memory will take in the image, from a sample of it.
fn estimate(frozen: &Frozen, captured: &Captured, options: &Options) -> Result<u64, EngineError> {
    let mut all = Vec::new();
    for (frozen, process) in frozen.processes.iter().zip(&captured.tree.processes) {
        let mut pages = Pages::default();
        let pid = capture::living(frozen);
        memory::pages(pid, &process.memory.areas, |_| true, &mut pages)?;
        all.extend(pages.own.into_iter().map(|range| (frozen, range)));
    }
    let total: u64 = all.iter().map(|(_, range)| range.end - range.start).sum();
    let step = (total / SAMPLES).max(SAMPLE);
    let (mut read, mut stored, mut next, mut passed) = (0, 0, 0, 0);
    let mut buffer = Vec::new();
    for (process, range) in all {
        let end = passed + (range.end - range.start);
        while next < end {
            let at = range.start + (next - passed);
            buffer.resize(SAMPLE.min(range.end - at) as usize, 0);
            if process.memory.read(&mut buffer, at).is_ok() {
                read += buffer.len() as u64;
                stored += stasis_image::stored_len(options.compression, &buffer);
            }
            next += step;
        }
        passed = end;
    }
    Ok(if read == 0 {
        0
    } else {
        (total as f64 * stored as f64 / read as f64) as u64
    })
}

/// Memory that can still be had: of the machine, and of the control groups that this process is in.
pub(crate) fn available_memory() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok()?;
    let machine = kib(tree::status_field(&machine, "MemAvailable")?);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let limits = own.into_iter().flat_map(|own| Path::new(own).ancestors());
    let left = limits.filter_map(|group| {
        let group = Path::new("/sys/fs/cgroup").join(group);
        let number = |file| {
            fs::read_to_string(group.join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let (most, used): (u64, u64) = (number("memory.max")?, number("memory.current")?);
        Some(most.saturating_sub(used))
    });
    Some(left.fold(machine, u64::min))
}

/// Lets the threads of this process that write have what others leave: `nice` for the one that calls and those that it will
/// make, and for the supervisor's group among others of the scheduler (`autogroup`, `sched(7)`), which decides where it is on.
/// Dropping it puts the group back; the thread is over after a checkpoint.
pub(crate) struct Modest(bool);

impl Modest {
    pub(crate) fn new(nice: u8) -> Modest {
        if nice == 0 {
            return Modest(false);
        }
        let this = rustix::thread::gettid();
        let _ = rustix::process::setpriority_process(Some(this), i32::from(nice));
        Modest(fs::write(AUTOGROUP, nice.to_string()).is_ok())
    }
}

const AUTOGROUP: &str = "/proc/self/autogroup";
/// The kernel takes another value only so often (`proc_sched_autogroup_set_nice`).
const ATTEMPTS: u32 = 10;

impl Drop for Modest {
    fn drop(&mut self) {
        if !self.0 {
            return;
        }
        for _ in 0..ATTEMPTS {
            match fs::write(AUTOGROUP, "0") {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_some_room() {
        assert!(available_memory().unwrap() > 1 << 20);
        let (free, words) = free(Path::new("/")).unwrap();
        assert!(free < 1 << 60, "{free} {words}");
        assert_eq!(kib("12 kB"), 12 << 10);
        assert_eq!(kib(""), 0);
    }
}
