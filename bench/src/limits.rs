//! What the machine itself can do, measured in the same run and the same directory.

use crate::workload::fill_random;
use rustix::fs::Advice;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

const PIECE: usize = 1 << 20;

/// Copying `bytes` from memory to memory that is there already, on one processor.
pub fn copy(bytes: usize) -> Duration {
    let mut from = vec![1; bytes];
    let mut to = vec![2; bytes];
    fill_random(&mut from);
    let began = Instant::now();
    to.copy_from_slice(&from);
    let took = began.elapsed();
    std::hint::black_box(to);
    took
}

/// What `dd bs=1M conv=fsync` does: `bytes` are written to a new file in `directory` and flushed to the disk. The file
/// is removed afterwards.
pub fn write(directory: &Path, bytes: u64) -> io::Result<Duration> {
    let path = directory.join("written");
    let mut piece = vec![0; PIECE];
    fill_random(&mut piece);
    let began = Instant::now();
    let mut file = File::create(&path)?;
    let mut left = bytes;
    while left > 0 {
        let now = left.min(PIECE as u64);
        file.write_all(&piece[..now as usize])?;
        left -= now;
    }
    file.sync_all()?;
    let took = began.elapsed();
    drop(file);
    std::fs::remove_file(&path)?;
    Ok(took)
}

/// Reading a file from its beginning to its end, on one processor.
pub fn read(path: &Path) -> io::Result<Duration> {
    let mut piece = vec![0; PIECE];
    let began = Instant::now();
    let mut file = File::open(path)?;
    while file.read(&mut piece)? > 0 {}
    Ok(began.elapsed())
}

/// Makes the kernel forget what it holds of a file that is on the disk.
pub fn forget(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}
