//! The job's standard streams.
//!
//! A description that is one of those that the job was started with is not restored but bound anew: to the standard
//! streams of the restart command. What was read from a file is read from that file, at the saved offset, and what was
//! written to a file goes on there when the restart's own output is a terminal or that same file; `/dev/null` and its
//! like are treated as files. Saved: which streams, what they were, status flags, a file's offset, a terminal's settings.
//! Not saved: bytes in a pipe or terminal that leads to the outside.
//!
//! Facts: `kcmp(2)` tells that a description is the very one that the job was given. One description often serves
//! several streams (a terminal all three): a process's descriptors 0, 1 and 2 are then bound each to its own stream of the
//! restart, other numbers to the output. Setting `O_NONBLOCK` on what the restart was given would hit the shell that
//! gave it: where flags differ, terminals and pipes are opened once more.

use super::capture::{Survey, is_same};
use super::{Found, Obstacle, Opening, Plan, RestoreContext};
use super::{devices, files, memfd, reopen, set_status, ttys, unsupported};
use crate::EngineError;
use crate::error::Context;
use rustix::fs::{FileType, OFlags, SeekFrom, Stat};
use serde::{Deserialize, Serialize};
use stasis_sys::terminal::Settings;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A saved standard stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Which of the three, ascending.
    pub streams: Vec<u8>,
    /// What it was.
    pub was: Was,
    /// Access mode and status flags.
    pub flags: u32,
    /// Not the description that the job was given, but a second opening of the same pipe (`/dev/stdin`).
    pub reopened: bool,
}

/// What a standard stream was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Was {
    /// A terminal, with its settings where it could still be asked.
    Terminal(Option<Settings>),
    /// A pipe or FIFO.
    Pipe,
    /// A socket.
    Socket,
    /// A file.
    File(files::State),
    /// A memory device.
    Device(devices::State),
}

/// What the job's own streams are.
pub(super) struct Streams([Option<Stat>; 3]);

impl Streams {
    pub fn new(stdio: &[Option<OwnedFd>; 3]) -> Streams {
        Streams(
            stdio
                .each_ref()
                .map(|fd| fd.as_ref().and_then(|fd| rustix::fs::fstat(fd).ok())),
        )
    }

    /// Those on the same inode.
    fn on_inode(&self, found: &Found) -> Vec<u8> {
        let same = |stat: &Option<Stat>| {
            stat.is_some_and(|stat| (stat.st_dev, stat.st_ino) == found.inode())
        };
        (0..3).filter(|&i| same(&self.0[usize::from(i)])).collect()
    }
}

/// Which of the job's streams a description is.
pub(super) fn streams(streams: &Streams, stdio: &[Option<OwnedFd>; 3], found: &Found) -> Vec<u8> {
    let mut which = streams.on_inode(found);
    which.retain(|&index| {
        stdio[usize::from(index)]
            .as_ref()
            .is_some_and(|own| is_same(own, found))
    });
    which
}

/// Captures one; `None` for a description that is none of the job's streams.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<Option<State>, Obstacle> {
    let file_type = FileType::from_raw_mode(found.stat.st_mode);
    let mut which = streams(&whole.stdio, whole.ctx.stdio, found);
    let reopened = which.is_empty() && file_type == FileType::Fifo;
    if reopened {
        which = whole.stdio.on_inode(found);
    }
    if which.is_empty() {
        return Ok(None);
    }
    let was = match file_type {
        FileType::Fifo => Was::Pipe,
        FileType::Socket => Was::Socket,
        FileType::CharacterDevice if ttys::is_terminal(found) => {
            Was::Terminal(ttys::settings(found.duplicate()?.as_fd()))
        }
        FileType::CharacterDevice => Was::Device(devices::capture(found)?),
        FileType::RegularFile if !memfd::is_memfd(found) => {
            match unsupported::special_file(found) {
                Some(obstacle) => return Err(obstacle),
                None => Was::File(files::capture(found, whole.ctx)?),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(State {
        streams: which,
        was,
        flags: found.info.flags,
        reopened,
    }))
}

/// What [`restore`] is going to do.
pub(super) fn plan(state: &State, ctx: &RestoreContext, plan: &mut Plan) {
    let Was::File(file) = &state.was else { return };
    let elsewhere = |&index: &u8| {
        index > 0
            && ctx.stdio[usize::from(index)]
                .as_ref()
                .is_some_and(|own| !rustix::termios::isatty(own))
    };
    if !state.streams.iter().all(elsewhere) {
        files::plan(file, ctx, plan);
    }
}

impl State {
    /// The stream for descriptors other than 0, 1 and 2: output first, since that is what shells keep copies of.
    fn preferred(&self) -> u8 {
        let wanted = [1, 2, 0];
        let found = wanted.iter().find(|index| self.streams.contains(index));
        found.copied().unwrap_or(0)
    }
}

/// Binds it: the descriptor for most numbers, and those for the numbers 0, 1 and 2 that are different streams now.
pub(super) fn restore(
    state: &State,
    opening: &mut Opening,
) -> Result<(OwnedFd, Vec<(u8, OwnedFd)>), EngineError> {
    let preferred = state.preferred();
    let main = bind(state, preferred, opening)?;
    let mut others = Vec::new();
    for &index in state.streams.iter().filter(|&&index| index != preferred) {
        let (own, chosen) = (stream(opening, index), stream(opening, preferred));
        let same = match (own, chosen) {
            (Some(own), Some(chosen)) => own.inode == chosen.inode,
            (own, chosen) => own.is_none() && chosen.is_none(),
        };
        if !same {
            others.push((index, bind(state, index, opening)?));
        }
    }
    Ok((main, others))
}

/// One of the restart's own streams.
struct Own<'a> {
    fd: BorrowedFd<'a>,
    inode: (u64, u64),
    terminal: bool,
}

fn stream<'a>(opening: &Opening<'a>, index: u8) -> Option<Own<'a>> {
    let stdio: &'a [Option<OwnedFd>; 3] = opening.context.stdio;
    let fd = stdio[usize::from(index)].as_ref()?.as_fd();
    let stat = rustix::fs::fstat(fd).ok()?;
    Some(Own {
        fd,
        inode: (stat.st_dev, stat.st_ino),
        terminal: rustix::termios::isatty(fd),
    })
}

fn bind(state: &State, index: u8, opening: &mut Opening) -> Result<OwnedFd, EngineError> {
    let own = stream(opening, index);
    let replaced = own.as_ref().is_some_and(|own| index > 0 && !own.terminal);
    match &state.was {
        Was::File(file) => {
            let saved = files::restore(file, opening);
            let stat = saved
                .as_ref()
                .ok()
                .and_then(|fd| rustix::fs::fstat(fd).ok());
            match own {
                Some(own) if stat.is_some_and(|s| (s.st_dev, s.st_ino) == own.inode) => {
                    // One that was made shorter is gone on with at its end, not beyond it.
                    let length = stat.map_or(0, |s| s.st_size as u64);
                    rustix::fs::seek(own.fd, SeekFrom::Start(file.offset().min(length)))
                        .context(|| format!("setting the offset of {}", file.path()))?;
                    duplicate(own.fd)
                }
                Some(own) if replaced => duplicate(own.fd),
                _ => saved,
            }
        }
        // Also of the input: a job that read nothing reads what its restart is given, unless that is a terminal.
        Was::Device(device) => match own {
            Some(own) if !own.terminal => duplicate(own.fd),
            _ => devices::restore(device),
        },
        Was::Terminal(_) | Was::Pipe | Was::Socket => match own {
            Some(own) => rebound(state, &own),
            None => {
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
                    .context(|| "opening /dev/null".into())
            }
        },
    }
}

fn duplicate(own: BorrowedFd) -> Result<OwnedFd, EngineError> {
    own.try_clone_to_owned()
        .context(|| "duplicating a standard stream".into())
}

fn rebound(state: &State, own: &Own) -> Result<OwnedFd, EngineError> {
    const WANTED: OFlags = OFlags::NONBLOCK.union(OFlags::DIRECT);
    let wanted = OFlags::from_bits_retain(state.flags) & WANTED;
    let have = rustix::fs::fcntl_getfl(own.fd).context(|| "asking for a stream's flags".into())?;
    if have & WANTED == wanted && !state.reopened {
        return duplicate(own.fd);
    }
    let stat = rustix::fs::fstat(own.fd).context(|| "looking at a standard stream".into())?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if own.terminal || file_type == FileType::Fifo {
        let access = if state.reopened {
            state.flags & 3
        } else {
            (have & OFlags::ACCMODE).bits()
        };
        // Without waiting: a FIFO's other side may not have been opened yet. Another user's terminal cannot be opened.
        if let Ok(again) = reopen(own.fd, access | OFlags::NONBLOCK.bits()) {
            set_status(again.as_fd(), wanted.bits())?;
            return Ok(again);
        }
    }
    let fd = duplicate(own.fd)?;
    if file_type != FileType::RegularFile {
        set_status(
            fd.as_fd(),
            ((have & !OFlags::NONBLOCK) | (wanted & OFlags::NONBLOCK)).bits(),
        )?;
    }
    Ok(fd)
}
