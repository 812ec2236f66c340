//! Contexts of asynchronous input and output (`io_setup(2)`).
//!
//! Saved: the context's ring with the completions that the program has not fetched yet, its size and its address, which is what
//! the program knows the context by.
//! Refused: where the job has files open with `O_DIRECT`, requests under way on their devices, which is tried for a second.
//! Not seen: requests that wait for something (`IOCB_CMD_POLL`, `IOCB_CMD_FSYNC`): no interface tells of them, and the checkpoint
//! says so in a note. All others are done when they have been submitted.
//!
//! Facts it rests on (`fs/aio.c`)
//! - The ring is an area `/[aio]`: a head of 32 bytes (number of the context, room, where the next completion is fetched and
//!   put) and 32 bytes a completion. The program may fetch from it by itself.
//! - It may be moved (`mremap(2)`): the context is then known by the new address. A forked process has a copy of the area and no
//!   context; after a restart it has one.
//! - The room is what is asked for twice, and two, up to whole pages, and at least eight for each possible processor.
//! - The kernel keeps for itself where it puts the next completion, from 0 on; that is moved on by reading nothing.

use crate::EngineError;
use crate::calls::{Calls, SCRATCH};
use crate::error::Context;
use crate::maps::Vma;
use stasis_sys::{Pid, procfs};
use stasis_tracee::Memory;
use std::ops::Range;

/// Bytes of the head, and of a completion.
const PIECE: u64 = 32;
/// Words of the head: room, where to fetch, where to put.
const ROOM: usize = 1;
const FETCH: usize = 2;
const PUT: usize = 3;
const MAGIC: (usize, u32) = (4, 0xa10a_10a1);

/// Whether an area is such a ring.
#[must_use]
pub fn is_ring(vma: &Vma) -> bool {
    vma.path.starts_with(b"/[aio]")
}

fn word(ring: &[u8], n: usize) -> u32 {
    let word = ring
        .get(n * 4..n * 4 + 4)
        .and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_ne_bytes)
}

/// What a ring holds.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn capture(process: Pid, vma: &Vma) -> Result<Vec<u8>, EngineError> {
    let what = || format!("reading a ring of io_setup of process {process}");
    let mut ring = vec![0; vma.size() as usize];
    let memory = Memory::open(process).context(what)?;
    memory.read(&mut ring, vma.range.start).context(what)?;
    let sound = word(&ring, MAGIC.0) == MAGIC.1
        && u64::from(word(&ring, ROOM)) == vma.size() / PIECE - 1
        && word(&ring, PUT) < word(&ring, ROOM);
    if sound {
        Ok(ring)
    } else {
        Err(EngineError::Failed(format!(
            "a ring of io_setup of process {process} is not as this kernel makes them"
        )))
    }
}

/// Whether requests may be under way on one of these devices; `None` where a file system has no device that could tell.
#[must_use]
pub fn is_busy(device: u64) -> Option<bool> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/inflight");
    let text = procfs::read_to_string(path).ok()?;
    Some(text.split_ascii_whitespace().any(|count| count != "0"))
}

/// Makes a context again at its address, with what its ring held. Called when everything else is mapped.
///
/// # Errors
/// When a remote call fails, or this kernel makes a ring of another size.
pub fn restore(range: &Range<u64>, ring: &[u8], calls: &mut Calls<'_>) -> Result<(), EngineError> {
    let len = range.end - range.start;
    let place = calls.put(&[0; 8])?;
    let requests = u64::from(word(ring, ROOM).saturating_sub(2) / 2);
    calls.call("io_setup", libc::SYS_io_setup, &[requests, place])?;
    let made = u64::from_ne_bytes(calls.get(0)?);
    let room = |calls: &Calls<'_>, at: u64| -> Result<u32, EngineError> {
        let mut head = [0; PIECE as usize];
        let what = || "reading a new ring of io_setup".to_owned();
        calls.memory.read(&mut head, at).context(what)?;
        Ok(word(&head, ROOM))
    };
    if room(calls, made)? != word(ring, ROOM) {
        return Err(EngineError::Failed(format!(
            "a context of io_setup has another size on this host ({} instead of {}): it has more processors than the one \
             of the checkpoint",
            room(calls, made)?,
            word(ring, ROOM)
        )));
    }
    let moving = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    calls.call(
        "mremap",
        libc::SYS_mremap,
        &[made, len, len, moving, range.start],
    )?;
    move_on(range.start, word(ring, PUT), word(ring, ROOM), calls)?;
    // All but the number of the context, which is the new one's.
    let what = || "filling a ring of io_setup".to_owned();
    calls
        .memory
        .write(&ring[4..], range.start + 4)
        .context(what)
}

/// Has the kernel put so many completions, which are taken to have been fetched.
fn move_on(context: u64, count: u32, room: u32, calls: &mut Calls<'_>) -> Result<(), EngineError> {
    const REQUEST: usize = 64;
    if count == 0 {
        return Ok(());
    }
    let path = calls.put(b"/dev/null\0")?;
    let here = libc::AT_FDCWD as i64 as u64;
    let file = calls.call(
        "openat",
        libc::SYS_openat,
        &[here, path, libc::O_RDONLY as u64],
    )?;
    // struct iocb: data, key, flags, operation 0 (read), priority, file, buffer, bytes, offset, ...: no bytes are read.
    let mut request = [0; REQUEST];
    request[20..24].copy_from_slice(&(file as u32).to_ne_bytes());
    let most = ((SCRATCH as usize - REQUEST) / 8)
        .min(room as usize / 2)
        .max(1);
    let mut done = 0;
    while done < count {
        let batch = most.min((count - done) as usize);
        let mut bytes = request.to_vec();
        bytes.extend(calls.scratch.to_ne_bytes().repeat(batch));
        calls.put(&bytes)?;
        let list = calls.scratch + REQUEST as u64;
        let arguments = [context, batch as u64, list];
        let taken = calls.call("io_submit", libc::SYS_io_submit, &arguments)?;
        done += taken as u32;
        let what = || "emptying a ring of io_setup".to_owned();
        let fetched = context + FETCH as u64 * 4;
        calls
            .memory
            .write(&(done % room).to_ne_bytes(), fetched)
            .context(what)?;
        if taken == 0 {
            return Err(EngineError::Failed(
                "a context of io_setup takes no requests".into(),
            ));
        }
    }
    calls.call("close", libc::SYS_close, &[file])?;
    Ok(())
}
