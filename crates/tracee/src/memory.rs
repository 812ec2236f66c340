//! Memory of another process through `/proc/PID/mem` (`proc_pid_mem(5)`).
//!
//! Reads do not un-share copy-on-write pages, unlike process_vm_readv(2), and reads and writes reach areas of any
//! protection, so long as the kernel lets a tracer do that.

use stasis_sys::Pid;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// An open view of a process's memory. It stays with the address space that the process had when it was opened.
#[derive(Debug)]
pub struct Memory(File);

impl Memory {
    /// Opens it for reading and writing.
    ///
    /// # Errors
    /// `ENOENT` for a dead process, `EACCES` for one that may not be traced.
    pub fn open(pid: Pid) -> io::Result<Memory> {
        Ok(Memory(
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(format!("/proc/{pid}/mem"))?,
        ))
    }

    /// Fills `buffer` from `address`.
    ///
    /// # Errors
    /// `EIO` where nothing is mapped.
    pub fn read(&self, buffer: &mut [u8], address: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, address)
    }

    /// Writes `bytes` at `address`.
    ///
    /// # Errors
    /// `EIO` where nothing is mapped, or a shared mapping is read-only.
    pub fn write(&self, bytes: &[u8], address: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, address)
    }

    /// One 64-bit word.
    ///
    /// # Errors
    /// As [`Memory::read`].
    pub fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(&mut bytes, address)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// The open file itself.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }
}
