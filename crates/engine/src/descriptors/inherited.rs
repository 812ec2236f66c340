//! Descriptors above the standard streams that the job was started with and that lead outside of it: pipes, sockets and
//! terminals of an editor, a batch system, a shell's process substitution.
//!
//! Saved: the number that `stasis run` was given it under, kind, flags, and of a pipe to read from the bytes in it. In the
//! program that runs on nothing changes. A restart binds it to the restart command's own descriptor of that number, where it
//! has one of the same kind and direction, and otherwise to a dead end, which behaves as if the other side had gone away:
//!
//! | it was                    | the dead end                                  | the program sees                                  |
//! |---------------------------|-----------------------------------------------|---------------------------------------------------|
//! | a pipe to read from       | the bytes in it, and no writer                | those bytes, then the end of file                 |
//! | a pipe to write into      | a pipe without a reader                       | `SIGPIPE` or `EPIPE`                              |
//! | a Unix socket             | one of a pair whose other end is closed       | end of file; `SIGPIPE`, `EPIPE`, `ECONNREFUSED`   |
//! | another socket            | one of its family that was never connected    | `ENOTCONN`, `EPIPE`, `EDESTADDRREQ`; `EINVAL` from accept |
//! | a terminal                | one that has hung up                          | end of file; `EIO` from everything else           |
//!
//! Writing into nowhere instead would lose what a program writes without a word: one that does not expect its reader's end is
//! better stopped by it, and can be restarted with a descriptor of that number (`stasis restart IMAGE 5>>FIFO`).
//!
//! Not saved: bytes in a socket or terminal, addresses, socket options. What the tree itself uses both ends of, though it was
//! inherited, is no matter of this module: it is saved as any other pipe. Regular files, directories and memory devices
//! are saved as such, too.

use super::capture::Survey;
use super::outside::Outside;
use super::stdio::{Bound, rebound};
use super::{
    DescriptionId, Found, Kind, Obstacle, Opening, Plan, RestoreContext, Table, pipes, set_status,
    ttys,
};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use rustix::fs::{FileType, OFlags};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use stasis_sys::Pid;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

pub(super) const GIVEN: Claim = Claim::reset(
    "pipe, socket or terminal that the job was started with",
    "becomes the restart's descriptor of that number, or a dead end",
    &[
        "inherited::bound_anew",
        "inherited::dead_ends",
        "inherited::nothing_that_does_not_fit",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[GIVEN];

/// A saved inherited description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The number that the job was given it under.
    pub number: RawFd,
    /// What it was.
    pub was: Was,
    /// Access mode and status flags.
    pub flags: u32,
    /// Not the description that the job was given, but a second opening of the same pipe (`/dev/fd/63`).
    pub reopened: bool,
}

/// What it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Was {
    /// A pipe or FIFO, with what was in it.
    Pipe(pipes::Contents),
    /// A socket: address family and type, as `socket(2)` takes them.
    Socket {
        /// `AF_*`.
        family: u16,
        /// `SOCK_*`.
        kind: u32,
    },
    /// A terminal other than the job's own.
    Terminal,
}

/// What the job was given under a number.
#[derive(Debug)]
pub struct Inherited {
    /// The number.
    pub number: RawFd,
    /// The description.
    pub outside: Outside,
}

/// Those of the calling process's descriptors that it was started with and that lead outside.
#[must_use]
pub fn of_this_process() -> Vec<Inherited> {
    let given = stasis_sys::descriptor::inherited();
    let leads_outside = |fd: &OwnedFd| {
        let mode = rustix::fs::fstat(fd).map_or(0, |stat| stat.st_mode);
        match FileType::from_raw_mode(mode) {
            FileType::Fifo | FileType::Socket => true,
            FileType::CharacterDevice => rustix::termios::isatty(fd),
            _ => false,
        }
    };
    given
        .into_iter()
        .filter(|(_, fd)| leads_outside(fd))
        .filter_map(|(number, fd)| {
            let outside = Outside::of(fd.as_fd()).ok()?;
            Some(Inherited { number, outside })
        })
        .collect()
}

/// Those of a restored tree whose processes, by their ids here, do not run yet.
///
/// # Errors
/// When one cannot be looked at.
pub(crate) fn of_processes<'a>(
    descriptions: &[super::Description],
    processes: impl Iterator<Item = (Pid, &'a Table)> + Clone,
) -> Result<Vec<Inherited>, EngineError> {
    let mut found = Vec::new();
    for (index, description) in descriptions.iter().enumerate() {
        let Kind::Inherited(state) = &description.kind else {
            continue;
        };
        let id = DescriptionId(index as u32);
        let holder = processes.clone().find_map(|(pid, table)| {
            let held = table.descriptors.iter().find(|d| d.description == id)?;
            Some((pid, held.fd))
        });
        if let Some((pid, fd)) = holder {
            found.push(Inherited {
                number: state.number,
                outside: Outside::in_process(pid, fd)?,
            });
        }
    }
    Ok(found)
}

/// Whether the job was given this very description.
pub(super) fn is_given(ctx: &super::CaptureContext, found: &Found) -> bool {
    ctx.inherited.iter().any(|one| one.outside.is(found))
}

/// Captures one; `None` for a description that the job was not given, or that leads nowhere but into the job.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<Option<State>, Obstacle> {
    let given = whole.ctx.inherited;
    let file_type = FileType::from_raw_mode(found.stat.st_mode);
    let same = given.iter().find(|one| one.outside.is(found));
    let near = || {
        let on_inode = |one: &&Inherited| one.outside.inode() == found.inode();
        given
            .iter()
            .find(on_inode)
            .filter(|_| file_type == FileType::Fifo)
    };
    let Some(one) = same.or_else(near) else {
        return Ok(None);
    };
    let was = match file_type {
        FileType::Fifo if !pipes::leads_outside(whole, found)? => return Ok(None),
        FileType::Fifo => Was::Pipe(match found.earlier {
            // What is in it comes back once.
            Some(_) => pipes::Contents::default(),
            None => pipes::contents_of(whole, found)?,
        }),
        FileType::Socket => {
            let what = || format!("looking at {found}");
            let socket = found.duplicate()?;
            Was::Socket {
                family: socket_domain(&socket).context(what)?.as_raw(),
                kind: socket_type(&socket).context(what)?.as_raw(),
            }
        }
        FileType::CharacterDevice if !ttys::is_of_job(whole, found)? => Was::Terminal,
        _ => return Ok(None),
    };
    Ok(Some(State {
        number: one.number,
        was,
        flags: found.info.flags,
        reopened: same.is_none(),
    }))
}

/// What the user should know about the inherited ones among the descriptions that were captured.
pub(super) fn note(pairs: &[(&Found, &super::Description)]) -> Option<String> {
    let numbers: BTreeSet<RawFd> = pairs
        .iter()
        .filter_map(|(_, description)| match &description.kind {
            Kind::Inherited(state) => Some(state.number),
            _ => None,
        })
        .collect();
    let words = list(&numbers)?;
    Some(format!(
        "the job was started with {words}, which lead outside of it: a restart binds them to its own descriptors of these \
         numbers, or as if the other side had gone away"
    ))
}

fn list(numbers: &BTreeSet<RawFd>) -> Option<String> {
    let words: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    match words.len() {
        0 => None,
        1 => Some(format!("descriptor {}", words[0])),
        _ => Some(format!("descriptors {}", words.join(", "))),
    }
}

/// The restart command's own descriptor that takes the place.
fn matching<'a>(state: &State, ctx: &RestoreContext<'a>) -> Option<BorrowedFd<'a>> {
    let given: &'a [(RawFd, OwnedFd)] = ctx.inherited;
    let (_, own) = given.iter().find(|(number, _)| *number == state.number)?;
    let file_type = FileType::from_raw_mode(rustix::fs::fstat(own).ok()?.st_mode);
    let flags = rustix::fs::fcntl_getfl(own).ok()?.bits();
    let fits = match &state.was {
        Was::Pipe(_) => {
            file_type == FileType::Fifo
                && (!pipes::reads(state.flags) || pipes::reads(flags))
                && (!pipes::writes(state.flags) || pipes::writes(flags))
        }
        Was::Socket { family, kind } => {
            file_type == FileType::Socket
                && socket_domain(own).is_ok_and(|own| own.as_raw() == *family)
                && socket_type(own).is_ok_and(|own| own.as_raw() == *kind)
        }
        Was::Terminal => rustix::termios::isatty(own),
    };
    fits.then(|| own.as_fd())
}

/// What [`restore`] is going to do.
pub(super) fn plan(state: &State, ctx: &RestoreContext, plan: &mut Plan) {
    let action = match matching(state, ctx) {
        Some(_) => format!("binds descriptor {} to this command's own", state.number),
        None => format!("binds descriptor {} to a dead end", state.number),
    };
    if !plan.actions.contains(&action) {
        plan.actions.push(action);
    }
}

/// How the inherited descriptions were bound, by the numbers that they were given under.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    own: BTreeSet<RawFd>,
    dead: BTreeSet<RawFd>,
}

impl Bindings {
    /// What the user should know.
    pub fn note(&self) -> Option<String> {
        let own = list(&self.own).map(|words| format!("{words}: this command's own"));
        let dead = list(&self.dead)
            .map(|words| format!("{words}: a dead end, as if the other side had gone away"));
        let words: Vec<String> = own.into_iter().chain(dead).collect();
        (!words.is_empty()).then(|| {
            format!(
                "what the job was started with and led outside is bound anew ({})",
                words.join("; ")
            )
        })
    }
}

/// Binds it anew.
pub(super) fn restore(
    state: &State,
    id: DescriptionId,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    if let Some(own) = matching(state, opening.context) {
        opening.inherited.own.insert(state.number);
        return rebound(
            &Bound {
                flags: state.flags,
                reopened: state.reopened,
            },
            own,
        );
    }
    opening.inherited.dead.insert(state.number);
    let fd = match &state.was {
        // Its other end is closed when every description is open.
        Was::Pipe(contents) => {
            let end = pipes::State {
                flags: state.flags,
                pipe: pipes::Source::New(contents.clone()),
            };
            return pipes::restore(&end, id, opening);
        }
        Was::Socket { family, kind } => dead_socket(*family, *kind)?,
        Was::Terminal => dead_terminal()?,
    };
    let status = OFlags::from_bits_retain(state.flags) & (OFlags::NONBLOCK | OFlags::APPEND);
    // A terminal that has hung up takes no flags, and needs none.
    let _ = set_status(fd.as_fd(), status.bits());
    Ok(fd)
}

fn dead_socket(family: u16, kind: u32) -> Result<OwnedFd, EngineError> {
    let what = || "making a socket without another end".to_owned();
    let (family, kind) = (AddressFamily::from_raw(family), SocketType::from_raw(kind));
    if family == AddressFamily::UNIX {
        let (end, _closed) =
            rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).context(what)?;
        return Ok(end);
    }
    match rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None) {
        Ok(socket) => Ok(socket),
        // A family or type that an ordinary user cannot make, or that needs a protocol.
        Err(_) => dead_socket(AddressFamily::UNIX.as_raw(), SocketType::STREAM.as_raw()),
    }
}

fn dead_terminal() -> Result<OwnedFd, EngineError> {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let what = || "making a terminal that has hung up".to_owned();
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controlling = openpt(flags).context(what)?;
    grantpt(&controlling).context(what)?;
    unlockpt(&controlling).context(what)?;
    ioctl_tiocgptpeer(&controlling, flags).context(what)
}
