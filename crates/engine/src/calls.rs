//! Remote calls with arguments in memory: a traced thread, its memory, and a scratch page that it has for the time being.

use crate::EngineError;
use crate::error::Context;
use stasis_tracee::{Memory, Remote, Stopped, TraceError};

/// Bytes of the scratch area.
pub const SCRATCH: u64 = 4096;

/// A thread that makes remote calls.
#[derive(Debug)]
pub struct Calls<'a> {
    /// The thread.
    pub remote: Remote,
    /// Its process's memory.
    pub memory: &'a Memory,
    /// A page that it can read and write and its program does not know of.
    pub scratch: u64,
}

impl<'a> Calls<'a> {
    /// Begins remote calls in a thread, and maps the scratch page at `hole`.
    ///
    /// # Errors
    /// When the thread has died, or has no room for one more page.
    pub fn begin(
        thread: Stopped,
        instruction: u64,
        ignores_trap: bool,
        memory: &'a Memory,
        hole: u64,
    ) -> Result<Calls<'a>, EngineError> {
        let mut remote = Remote::begin(thread, instruction, ignores_trap)?;
        match map_scratch(&mut remote, hole) {
            Ok(()) => Ok(Calls {
                remote,
                memory,
                scratch: hole,
            }),
            Err(error) => {
                // The thread goes back to its program; what could not be done is told.
                let _ = remote.finish().map(Stopped::detach);
                Err(error.into())
            }
        }
    }

    /// Begins remote calls in another thread of a process whose scratch page exists already.
    ///
    /// # Errors
    /// When the thread has died.
    pub fn join(
        thread: Stopped,
        instruction: u64,
        ignores_trap: bool,
        memory: &'a Memory,
        scratch: u64,
    ) -> Result<Calls<'a>, EngineError> {
        Ok(Calls {
            remote: Remote::begin(thread, instruction, ignores_trap)?,
            memory,
            scratch,
        })
    }

    /// Ends the remote calls of this thread and leaves the scratch page to the others.
    ///
    /// # Errors
    /// When the thread has died.
    pub fn leave(self) -> Result<Stopped, EngineError> {
        Ok(self.remote.finish()?)
    }

    /// Unmaps the scratch page, which nobody needs any more.
    ///
    /// # Errors
    /// When the remote call fails.
    pub fn unmap_scratch(&mut self) -> Result<(), EngineError> {
        self.call("munmap", libc::SYS_munmap, &[self.scratch, SCRATCH])?;
        Ok(())
    }

    /// Unmaps the scratch page and ends the remote calls: the thread is as it was.
    ///
    /// # Errors
    /// When the thread has died.
    pub fn finish(mut self) -> Result<Stopped, EngineError> {
        self.unmap_scratch()?;
        Ok(self.remote.finish()?)
    }

    /// One call with plain arguments.
    ///
    /// # Errors
    /// The call's.
    pub fn call(
        &mut self,
        name: &'static str,
        number: i64,
        arguments: &[u64],
    ) -> Result<u64, TraceError> {
        self.remote.call(name, number, arguments)
    }

    /// Puts `bytes` at the beginning of the scratch page and returns their address there.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<u64, EngineError> {
        self.put_at(0, bytes)
    }

    /// Puts `bytes` at `offset` of the scratch page and returns their address there.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn put_at(&self, offset: u64, bytes: &[u8]) -> Result<u64, EngineError> {
        let address = self.scratch + offset;
        self.memory
            .write(bytes, address)
            .context(|| format!("writing to thread {}", self.remote.tid()))?;
        Ok(address)
    }

    /// Reads `N` bytes at `offset` of the scratch page.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn get<const N: usize>(&self, offset: u64) -> Result<[u8; N], EngineError> {
        let mut bytes = [0; N];
        let address = self.scratch + offset;
        self.memory
            .read(&mut bytes, address)
            .context(|| format!("reading from thread {}", self.remote.tid()))?;
        Ok(bytes)
    }

    /// `prctl(option)` whose answer comes through a pointer, as an `int`.
    ///
    /// # Errors
    /// The call's.
    pub fn prctl_int(&mut self, name: &'static str, option: i32) -> Result<i32, EngineError> {
        self.put(&[0; 8])?;
        self.call(name, libc::SYS_prctl, &[option as u64, self.scratch])?;
        Ok(i32::from_ne_bytes(self.get(0)?))
    }
}

fn map_scratch(remote: &mut Remote, hole: u64) -> Result<(), TraceError> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    remote
        .call(
            "mmap",
            libc::SYS_mmap,
            &[hole, SCRATCH, protection, flags, u64::MAX, 0],
        )
        .map(drop)
}
