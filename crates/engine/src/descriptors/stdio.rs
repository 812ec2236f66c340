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

use super::capture::Survey;
use super::{Description, Found, Kind, Obstacle, Opening, Outside, Plan, RestoreContext};
use super::{devices, files, memfd, reopen, set_status, ttys, unsupported};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use crate::file_policy::PathBytes;
use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const STREAM: Claim = Claim::reset(
    "standard stream that is a terminal, pipe or socket",
    "becomes that of the restart",
    &[
        "checkpoint_basic::standard_descriptors_are_bound_anew",
        "engine-descriptors::streams::streams_opened_once_more_by_their_name_follow",
        "engine-descriptors::streams::one_description_for_several_streams_is_split_when_they_differ_now",
    ],
);
const FILE: Claim = Claim::kept(
    "standard stream that is a file",
    "unless the restart has an output of its own for it",
    &[
        "checkpoint_basic::output_into_a_file",
        "engine-descriptors::streams::output_to_a_file_goes_on_there_when_the_restart_has_a_terminal",
        "engine-descriptors::streams::output_to_a_file_follows_the_restart_elsewhere",
        "engine-descriptors::streams::input_from_a_file_goes_on_where_it_was",
    ],
);
const DEVICE: Claim = Claim::kept(
    "standard stream that is a device",
    "unless the restart has another one for it",
    &["descriptors::devices", "descriptors::closed_stdio"],
);
const HIDDEN: Claim = Claim::reset(
    "standard stream that is a file whose path cannot be followed",
    "becomes that of the restart",
    &["files::output_that_cannot_be_found"],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[STREAM, FILE, DEVICE, HIDDEN];

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
    Terminal(Option<ttys::Face>),
    /// A pipe or FIFO.
    Pipe,
    /// A socket.
    Socket,
    /// A file.
    File(files::State),
    /// A file whose path cannot be followed (a directory above it may not be searched): not stored, not compared.
    Hidden {
        /// Where it is.
        path: PathBytes,
        /// Device and inode.
        inode: (u64, u64),
        /// The offset.
        offset: u64,
    },
    /// A memory device.
    Device(devices::State),
}

impl State {
    /// Which of the claims it is.
    pub(super) fn claim(&self) -> Claim {
        match self.was {
            Was::Terminal(_) | Was::Pipe | Was::Socket => STREAM,
            Was::File(_) => FILE,
            Was::Device(_) => DEVICE,
            Was::Hidden { .. } => HIDDEN,
        }
    }
}

/// Which of the job's streams a description is.
pub(super) fn streams(stdio: &[Option<Outside>; 3], found: &Found) -> Vec<u8> {
    those(stdio, |own| own.is(found))
}

fn those(stdio: &[Option<Outside>; 3], wanted: impl Fn(&Outside) -> bool) -> Vec<u8> {
    (0..3)
        .filter(|&index| stdio[usize::from(index)].as_ref().is_some_and(&wanted))
        .collect()
}

/// Captures one; `None` for a description that is none of the job's streams.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<Option<State>, Obstacle> {
    let file_type = FileType::from_raw_mode(found.stat.st_mode);
    let mut which = streams(whole.ctx.stdio, found);
    let reopened = which.is_empty() && file_type == FileType::Fifo;
    if reopened {
        which = those(whole.ctx.stdio, |own| own.inode() == found.inode());
    }
    if which.is_empty() {
        return Ok(None);
    }
    let was = match file_type {
        FileType::Fifo => Was::Pipe,
        FileType::Socket => Was::Socket,
        FileType::CharacterDevice if ttys::is_terminal(found) => {
            Was::Terminal(ttys::face(found.duplicate()?.as_fd()))
        }
        FileType::CharacterDevice => Was::Device(devices::capture(found)?),
        FileType::RegularFile if is_hidden(found) => Was::Hidden {
            path: PathBytes::from(found.link.as_bytes()),
            inode: found.inode(),
            offset: found.info.position,
        },
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

/// Whether the path cannot be followed by us, though there is one.
fn is_hidden(found: &Found) -> bool {
    let path = Path::new(&found.link);
    path.is_absolute()
        && found.stat.st_nlink > 0
        && matches!(rustix::fs::lstat(path), Err(Errno::ACCESS))
}

/// What the user should know about streams that are not saved as what they are.
pub(super) fn note(pairs: &[(&Found, &Description)]) -> Option<String> {
    let hidden = pairs
        .iter()
        .find_map(|(_, description)| match &description.kind {
            Kind::Stdio(State {
                was: Was::Hidden { path, .. },
                ..
            }) => Some(path),
            _ => None,
        })?;
    Some(format!(
        "{hidden}, a standard stream, is not saved, as a directory above it may not be searched: a restart goes on in its own \
         stream"
    ))
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
                    let at_end = index > 0 && opening.context.keep_output;
                    let offset = if at_end {
                        length
                    } else {
                        file.offset().min(length)
                    };
                    rustix::fs::seek(own.fd, SeekFrom::Start(offset))
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
        Was::Hidden { inode, offset, .. } => match own {
            Some(own) if own.inode == *inode => {
                let stat =
                    rustix::fs::fstat(own.fd).context(|| "looking at a standard stream".into())?;
                let length = u64::try_from(stat.st_size).unwrap_or(0);
                rustix::fs::seek(own.fd, SeekFrom::Start((*offset).min(length)))
                    .context(|| "setting the offset of a standard stream".into())?;
                duplicate(own.fd)
            }
            Some(own) => duplicate(own.fd),
            None => nowhere(),
        },
        Was::Terminal(_) | Was::Pipe | Was::Socket => match own {
            Some(own) => {
                let bound = Bound {
                    flags: state.flags,
                    reopened: state.reopened,
                };
                rebound(&bound, own.fd)
            }
            None => nowhere(),
        },
    }
}

fn nowhere() -> Result<OwnedFd, EngineError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
        .context(|| "opening /dev/null".into())
}

fn duplicate(own: BorrowedFd) -> Result<OwnedFd, EngineError> {
    own.try_clone_to_owned()
        .context(|| "duplicating a standard stream".into())
}

/// How the program had something that is bound to a descriptor of the restart.
pub(super) struct Bound {
    /// Access mode and status flags.
    pub flags: u32,
    /// It was a second opening.
    pub reopened: bool,
}

/// A descriptor of the restart for the program: another opening where the flags differ and that is possible.
pub(super) fn rebound(bound: &Bound, own: BorrowedFd<'_>) -> Result<OwnedFd, EngineError> {
    const WANTED: OFlags = OFlags::NONBLOCK.union(OFlags::DIRECT);
    let wanted = OFlags::from_bits_retain(bound.flags) & WANTED;
    let have = rustix::fs::fcntl_getfl(own).context(|| "asking for a stream's flags".into())?;
    if have & WANTED == wanted && !bound.reopened {
        return duplicate(own);
    }
    let stat = rustix::fs::fstat(own).context(|| "looking at a standard stream".into())?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if rustix::termios::isatty(own) || file_type == FileType::Fifo {
        let access = if bound.reopened {
            bound.flags & 3
        } else {
            (have & OFlags::ACCMODE).bits()
        };
        // Without waiting: a FIFO's other side may not have been opened yet. Another user's terminal cannot be opened.
        if let Ok(again) = reopen(own, access | OFlags::NONBLOCK.bits()) {
            set_status(again.as_fd(), wanted.bits())?;
            return Ok(again);
        }
    }
    let fd = duplicate(own)?;
    if file_type != FileType::RegularFile {
        set_status(
            fd.as_fd(),
            ((have & !OFlags::NONBLOCK) | (wanted & OFlags::NONBLOCK)).bits(),
        )?;
    }
    Ok(fd)
}
