//! Pipes.
//!
//! Saved: which descriptions are ends of the same pipe, their access and status flags, the capacity, and the bytes in
//! it with the boundaries of packets (`O_DIRECT`). A pipe whose other side nobody holds any more comes back that way:
//! end of file for a reader, `EPIPE` for a writer. Not saved: a pipe of which one side is held outside the job (refused,
//! unless it is one of the job's standard streams), watch queues (`O_NOTIFICATION_PIPE`, refused).
//!
//! Facts: `tee(2)` copies buffers with their packet marks and consumes nothing. A read ends at the end of a packet, and
//! what a read leaves of a packet is thrown away: that, tried on copies, shows where packets are. `poll(2)` reports
//! `POLLERR` on a writer without readers, and tee from an empty pipe reports end of file or `EAGAIN` by whether there
//! are writers; a duplicate shares its description and so counts as neither (`fs/pipe.c`). Only the two ends that
//! `pipe(2)` made lack `O_LARGEFILE`: an end with it was opened through `/proc`.

use super::capture::Survey;
use super::{DescriptionId, Found, Obstacle, Opening, reopen, set_status};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(super) const PIPE: Claim = Claim::kept(
    "pipe",
    "with the bytes in it, its size and the boundaries of packets",
    &[
        "descriptors::pipes",
        "engine-descriptors::kinds::pipes_keep_their_bytes_size_and_ends",
        "engine-descriptors::kinds::packets_stay_apart",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    PIPE,
    Claim::refused(
        "pipe whose other end is used outside of the job",
        "",
        &["engine-descriptors::refused::pipes_that_lead_outside"],
    ),
];

/// A saved end of a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Access mode and status flags.
    pub flags: u32,
    /// Which pipe.
    pub pipe: Source,
}

/// Which pipe an end belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// This is its first end in the list of descriptions.
    New(Contents),
    /// That of an earlier description.
    Same(DescriptionId),
}

/// What a pipe holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Its size in bytes (`F_GETPIPE_SZ`).
    pub capacity: u64,
    /// The bytes in it, oldest first.
    pub chunks: Vec<Chunk>,
}

/// A run of bytes in a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Whether it is one packet: a read returns no more than it.
    pub packet: bool,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

const ACCESS: u32 = 3;
const WRITE_ONLY: u32 = 1;
const O_EXCL: u32 = 0o200;
const O_NONBLOCK: u32 = 0o4_000;
const O_LARGEFILE: u32 = 0o100_000;

pub(super) fn reads(flags: u32) -> bool {
    flags & ACCESS != WRITE_ONLY
}

pub(super) fn writes(flags: u32) -> bool {
    flags & ACCESS != 0
}

/// Whether a FIFO is a pipe rather than one with a name.
pub(super) fn is_pipe(found: &Found) -> bool {
    found.link_starts_with("pipe:[")
}

/// Captures one end; the contents go with the first.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<State, Obstacle> {
    if found.info.flags & O_EXCL != 0 {
        return Err(found.refuse("is a watch queue of the kernel", ""));
    }
    Ok(State {
        flags: found.info.flags,
        pipe: match found.earlier {
            Some(first) => Source::Same(first),
            None => Source::New(whole_contents_of(whole, found)?),
        },
    })
}

fn ends<'a>(whole: &'a Survey<'a>, found: &Found) -> Vec<&'a Found<'a>> {
    let places = whole.on_inode(found.inode());
    places.iter().map(|&index| &whole.founds[index]).collect()
}

/// Whether the tree holds one side of the pipe only, and a process outside has the other.
pub(super) fn leads_outside(whole: &Survey, found: &Found) -> Result<bool, Obstacle> {
    if let Some(known) = whole.pipes.borrow().get(&found.inode()) {
        return Ok(*known);
    }
    let what = || format!("looking at {found}");
    let ends = ends(whole, found);
    let reader = ends.iter().find(|end| reads(end.info.flags));
    let leads = match (reader, ends.iter().any(|end| writes(end.info.flags))) {
        (Some(_), true) => false,
        (Some(reader), false) => has_writers(reader.duplicate()?.as_fd()).context(what)?,
        (None, _) => !hung_up(found.duplicate()?.as_fd(), PollFlags::ERR).context(what)?,
    };
    whole.pipes.borrow_mut().insert(found.inode(), leads);
    Ok(leads)
}

/// What is in the pipe that `found` is the first end of, refused where that is a matter of others as well.
pub(super) fn whole_contents_of(whole: &Survey, found: &Found) -> Result<Contents, Obstacle> {
    if leads_outside(whole, found)? {
        let other = if reads(found.info.flags) {
            "writing"
        } else {
            "reading"
        };
        return Err(found.refuse(
            format!("the other end of this pipe, for {other}, is used by a process outside the job as well"),
            "start both sides under stasis, or let the job close it before the checkpoint",
        ));
    }
    contents_of(whole, found)
}

/// What is in the pipe that `found` is the first end of.
pub(super) fn contents_of(whole: &Survey, found: &Found) -> Result<Contents, Obstacle> {
    let ends = ends(whole, found);
    let Some(reader) = ends.iter().find(|end| reads(end.info.flags)) else {
        // Nobody of the tree can ever read what is in it.
        return Ok(Contents {
            capacity: capacity(found.duplicate()?.as_fd())?,
            chunks: Vec::new(),
        });
    };
    let duplicate = reader.duplicate()?;
    let capacity = capacity(duplicate.as_fd())?;
    if whole.ctx.contents.is_none() {
        return Ok(Contents {
            capacity,
            chunks: Vec::new(),
        });
    }
    let packets = ends
        .iter()
        .any(|end| OFlags::from_bits_retain(end.info.flags).contains(OFlags::DIRECT));
    Ok(Contents {
        capacity,
        chunks: peek(duplicate.as_fd(), capacity, packets)
            .context(|| format!("copying what is in {found}"))?,
    })
}

fn capacity(end: BorrowedFd) -> Result<u64, EngineError> {
    Ok(rustix::pipe::fcntl_getpipe_size(end).context(|| "asking for a pipe's size".into())? as u64)
}

/// Whether poll sets the mark that says that nobody holds the other side.
pub(super) fn hung_up(end: BorrowedFd, mark: PollFlags) -> std::io::Result<bool> {
    let mut polled = [PollFd::new(&end, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(polled[0].revents().contains(mark))
}

/// Whether anybody could still write into a pipe.
fn has_writers(reader: BorrowedFd) -> std::io::Result<bool> {
    if rustix::io::ioctl_fionread(reader)? > 0 {
        return Ok(!hung_up(reader, PollFlags::HUP)?);
    }
    let (_out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match rustix::pipe::tee(reader, &into, 1, SpliceFlags::NONBLOCK) {
        Ok(_) => Ok(false),
        Err(Errno::AGAIN) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// A copy of what is in a pipe, in a pipe of our own.
fn copy(reader: BorrowedFd, capacity: u64) -> std::io::Result<OwnedFd> {
    let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let held = rustix::io::ioctl_fionread(reader)?;
    let have = rustix::pipe::fcntl_getpipe_size(&into)? as u64;
    if have < capacity {
        // Small buffers take as much room as large ones: the copy needs as many as the original has. Where the limit
        // does not allow it the copy may still fit; whether it does is looked at below.
        let _ = rustix::pipe::fcntl_setpipe_size(&into, capacity as usize);
    }
    if held > 0 {
        match rustix::pipe::tee(reader, &into, held as usize, SpliceFlags::NONBLOCK) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if rustix::io::ioctl_fionread(&out)? < held {
        return Err(std::io::Error::other(format!(
            "it holds more than a pipe may have (/proc/sys/fs/pipe-max-size, pipe-user-pages-soft): {held} bytes"
        )));
    }
    Ok(out)
}

/// What is in a pipe, without taking it out. `packets` says whether a single run of bytes could be a packet.
fn peek(reader: BorrowedFd, capacity: u64, packets: bool) -> std::io::Result<Vec<Chunk>> {
    let data = copy(reader, capacity)?;
    let mut rest = rustix::io::ioctl_fionread(&data)? as usize;
    let mut segments: Vec<Vec<u8>> = Vec::new();
    while rest > 0 {
        let mut bytes = vec![0; rest];
        let n = rustix::io::read(&data, &mut bytes)?;
        bytes.truncate(n);
        rest -= n.min(rest);
        if n == 0 {
            break;
        }
        segments.push(bytes);
    }
    drop(data);
    if segments.is_empty() || segments.len() == 1 && !packets {
        return Ok(segments
            .into_iter()
            .map(|bytes| Chunk {
                packet: false,
                bytes,
            })
            .collect());
    }
    // Every segment but the last ends with a packet, and may start with bytes that are none. Reading a second copy one
    // byte at a time finds where the packet starts: there the pipe loses more than the byte.
    let probe = copy(reader, capacity)?;
    let mut chunks = Vec::new();
    let count = segments.len();
    for (place, segment) in segments.into_iter().enumerate() {
        let mut plain = 0;
        let mut packet = 0;
        while plain + packet < segment.len() {
            let before = rustix::io::ioctl_fionread(&probe)?;
            rustix::io::read(&probe, &mut [0u8])?;
            let lost = (before - rustix::io::ioctl_fionread(&probe)?) as usize;
            if lost > 1 {
                packet = lost;
            } else {
                plain += 1;
            }
        }
        // A packet of one byte looks like any byte, but it alone can end a segment, or be the last thing in a pipe that
        // is used for packets.
        if packet == 0 && (place + 1 < count || packets) {
            (plain, packet) = (plain - 1, 1);
        }
        let (head, tail) = segment.split_at(segment.len() - packet);
        debug_assert_eq!(head.len(), plain);
        if !head.is_empty() {
            chunks.push(Chunk {
                packet: false,
                bytes: head.to_vec(),
            });
        }
        if !tail.is_empty() {
            chunks.push(Chunk {
                packet: true,
                bytes: tail.to_vec(),
            });
        }
    }
    Ok(chunks)
}

/// The ends that pipe(2) made, kept until every description is open.
#[derive(Debug, Default)]
pub(super) struct Spares(HashMap<DescriptionId, Pair>);

#[derive(Debug)]
struct Pair {
    reader: OwnedFd,
    writer: OwnedFd,
    reader_given: bool,
    writer_given: bool,
}

/// Makes the pipe, or another end of one that was made before.
pub(super) fn restore(
    state: &State,
    id: DescriptionId,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    let first = match &state.pipe {
        Source::New(contents) => {
            let (reader, writer) =
                rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "making a pipe".into())?;
            if let Some(note) = fill(contents, writer.as_fd())? {
                opening.notes.push(note);
            }
            let pair = Pair {
                reader: opening.place(reader)?,
                writer: opening.place(writer)?,
                reader_given: false,
                writer_given: false,
            };
            opening.pipes.0.insert(id, pair);
            id
        }
        Source::Same(first) => *first,
    };
    let first_free = opening.context.first_free;
    let pair = opening
        .pipes
        .0
        .get_mut(&first)
        .ok_or_else(|| EngineError::Failed("a pipe of the image has no first end".into()))?;
    let (end, given) = if reads(state.flags) {
        (&pair.reader, &mut pair.reader_given)
    } else {
        (&pair.writer, &mut pair.writer_given)
    };
    // A duplicate shares its status flags with what it was made from: each end that pipe(2) made serves one description.
    let fd = if state.flags & O_LARGEFILE == 0 && !*given {
        *given = true;
        rustix::io::fcntl_dupfd_cloexec(end, first_free).context(|| "making a pipe".into())?
    } else {
        reopen(end.as_fd(), state.flags & ACCESS | O_NONBLOCK)
            .context(|| "opening an end of a pipe once more".into())?
    };
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

/// Puts the saved bytes in. Returns what the user should know.
pub(super) fn fill(contents: &Contents, writer: BorrowedFd) -> Result<Option<String>, EngineError> {
    let mut note = None;
    let have = rustix::pipe::fcntl_getpipe_size(writer).unwrap_or(0) as u64;
    if have != contents.capacity
        && let Err(error) = rustix::pipe::fcntl_setpipe_size(writer, contents.capacity as usize)
    {
        note = Some(format!(
            "a pipe of {} bytes has only {have} now: {}",
            contents.capacity,
            std::io::Error::from(error)
        ));
    }
    let what = || {
        let bytes: usize = contents.chunks.iter().map(|c| c.bytes.len()).sum();
        format!("putting {bytes} bytes back into a pipe")
    };
    let mut chunks = contents.chunks.iter().peekable();
    while let Some(chunk) = chunks.next() {
        if chunk.packet {
            write_all(writer, &chunk.bytes, OFlags::DIRECT).context(what)?;
        } else if chunks.peek().is_some_and(|next| next.packet) {
            write_closed(writer, &chunk.bytes, contents.capacity).context(what)?;
        } else {
            write_all(writer, &chunk.bytes, OFlags::empty()).context(what)?;
        }
    }
    Ok(note)
}

fn write_all(writer: BorrowedFd, bytes: &[u8], mode: OFlags) -> rustix::io::Result<()> {
    rustix::fs::fcntl_setfl(writer, mode | OFlags::NONBLOCK)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rustix::io::write(writer, rest)?;
        rest = &rest[n..];
    }
    Ok(())
}

/// Writes bytes to which the kernel will not add the packet that comes next: those that tee copies are never added to.
fn write_closed(writer: BorrowedFd, bytes: &[u8], capacity: u64) -> rustix::io::Result<()> {
    let (scratch, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let _ = rustix::pipe::fcntl_setpipe_size(&into, capacity as usize);
    write_all(into.as_fd(), bytes, OFlags::empty())?;
    if rustix::pipe::tee(&scratch, writer, bytes.len(), SpliceFlags::NONBLOCK)? == bytes.len() {
        Ok(())
    } else {
        Err(Errno::AGAIN)
    }
}
