//! The job's terminal, opened once more (`/dev/tty`, `/dev/pts/3`).
//!
//! Saved: status flags, the terminal's settings and its window's size. At a restart it is bound to the terminal that becomes
//! the job's, or to the restart command's own, or to `/dev/null` with a note; one that had hung up is one again. The settings are
//! set on a terminal that is made for the job, and on the restart's own where that is in its foreground. The window keeps its
//! present size: where that is another one, the program gets SIGWINCH. Not saved: input that waits in the terminal; terminals other
//! than the job's own (refused, but for those that it makes: [`super::ptys`]).
//!
//! Facts: `TIOCGDEV` tells which terminal a descriptor on `/dev/tty` is; field 7 of `/proc/PID/stat` tells a process's
//! controlling one, in the same numbers. A terminal that has hung up answers `EIO` to everything.

use super::capture::Survey;
use super::{
    CaptureContext, Description, Found, Kind, Obstacle, Opening, RestoreContext, reopen,
    set_status, stdio, unsupported,
};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use crate::tree::Stat;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::pty::{OpenptFlags, openpt};
use rustix::termios::{tcgetpgrp, tcgetwinsize};
use serde::{Deserialize, Serialize};
use stasis_sys::pty;
use stasis_sys::terminal::{self, Settings};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const TERMINAL: Claim = Claim::reset(
    "the job's terminal",
    "becomes the terminal of the restart; without one, its streams",
    &[
        "terminal::the_program_has_the_terminal",
        "terminal::raw_mode",
        "terminal::from_a_terminal_to_a_pipe",
        "engine-descriptors::streams::a_terminal_made_for_the_job_gets_its_settings",
    ],
);
const HUNG_UP: Claim = Claim::kept("terminal that has hung up", "", &[]);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[TERMINAL, HUNG_UP];

/// A saved description of the job's terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Access mode and status flags.
    pub flags: u32,
    /// How the terminal was set up; `None` when it had hung up.
    pub face: Option<Face>,
}

/// How a terminal is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Face {
    /// Its settings (`termios(3)`).
    pub settings: Settings,
    /// Rows and columns of its window.
    pub window: (u16, u16),
}

impl State {
    /// Which of the claims it is.
    pub(super) fn claim(&self) -> Claim {
        match self.face {
            Some(_) => TERMINAL,
            None => HUNG_UP,
        }
    }
}

/// Whether a character device is a terminal that programs use, by its number.
pub(super) fn is_terminal(found: &Found) -> bool {
    // Consoles and serial lines, /dev/tty and /dev/console, pseudo terminals, USB and other serial lines.
    matches!(
        found.device_numbers(),
        (4 | 136..=143 | 166 | 188 | 204, _) | (5, 0 | 1)
    )
}

/// The numbers of the terminals that are the job's own.
pub(super) fn of_job(ctx: &CaptureContext) -> Vec<u32> {
    let mut numbers: Vec<u32> = ctx
        .stdio
        .iter()
        .flatten()
        .filter_map(|fd| terminal::device(fd.as_fd()).ok())
        .collect();
    let first = ctx.processes.first().and_then(|p| Stat::read(p.pid));
    numbers.extend(
        first
            .map(|stat| stat.field(7) as u32)
            .filter(|&number| number != 0),
    );
    numbers
}

/// How a terminal that answers is set up.
pub(super) fn face(terminal: BorrowedFd) -> Option<Face> {
    let settings = terminal::settings(terminal).ok()?;
    let size = tcgetwinsize(terminal).ok()?;
    Some(Face {
        settings,
        window: (size.ws_row, size.ws_col),
    })
}

/// Whether a terminal is one of the job's own.
pub(super) fn is_of_job(whole: &Survey, found: &Found) -> Result<bool, Obstacle> {
    let duplicate = found.duplicate()?;
    Ok(terminal::device(duplicate.as_fd()).is_ok_and(|number| whole.terminals.contains(&number)))
}

/// Captures one.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<State, Obstacle> {
    let duplicate = found.duplicate()?;
    match terminal::device(duplicate.as_fd()) {
        Ok(number) if whole.terminals.contains(&number) => Ok(State {
            flags: found.info.flags,
            face: face(duplicate.as_fd()),
        }),
        // It has hung up: whatever it was, there is only its absence to restore.
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(State {
            flags: found.info.flags,
            face: None,
        }),
        _ => Err(unsupported::device(found)),
    }
}

/// Binds it to the terminal of the restart.
pub(super) fn restore(state: &State, opening: &mut Opening) -> Result<OwnedFd, EngineError> {
    if state.face.is_none() {
        return hung_up(state);
    }
    let Some(terminal) = terminal_of(opening.context) else {
        opening.notes.push(
            "the program had its terminal open, and this restart has none: it gets /dev/null"
                .into(),
        );
        let flags = OFlags::from_bits_retain(state.flags & 3) | OFlags::CLOEXEC;
        return rustix::fs::open("/dev/null", flags, Mode::empty())
            .context(|| "opening /dev/null".into());
    };
    match reopen(terminal, state.flags | OFlags::NOCTTY.bits()) {
        Ok(fd) => Ok(fd),
        // Another user's terminal, as after su(1).
        Err(Errno::ACCESS | Errno::PERM) => {
            let fd = terminal
                .try_clone_to_owned()
                .context(|| "duplicating the terminal".into())?;
            set_status(fd.as_fd(), state.flags)?;
            Ok(fd)
        }
        Err(error) => Err(error).context(|| "opening the terminal".into()),
    }
}

/// A terminal that has hung up: one whose controlling side is closed.
fn hung_up(state: &State) -> Result<OwnedFd, EngineError> {
    const ACCESS: u32 = 3;
    let what = || "making a terminal that has hung up".to_owned();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context(what)?;
    pty::set_locked(master.as_fd(), false).context(what)?;
    let other = pty::open_other_side(master.as_fd(), state.flags & ACCESS).context(what)?;
    drop(master);
    set_status(other.as_fd(), state.flags)?;
    Ok(other)
}

fn terminal_of<'a>(ctx: &'a RestoreContext) -> Option<BorrowedFd<'a>> {
    let own = || {
        ctx.stdio
            .iter()
            .flatten()
            .find(|fd| rustix::termios::isatty(fd))
    };
    ctx.terminal.or_else(own).map(AsFd::as_fd)
}

/// How the job's terminal was set up, where it had one.
#[must_use]
pub fn of_descriptions(descriptions: &[Description]) -> Option<Face> {
    descriptions
        .iter()
        .find_map(|description| match &description.kind {
            Kind::Terminal(state) => state.face,
            Kind::Stdio(stdio::State {
                was: stdio::Was::Terminal(face),
                ..
            }) => *face,
            _ => None,
        })
}

/// The terminal of the calling process's session among the restart's streams, where the process is in its foreground.
#[must_use]
pub fn in_foreground(stdio: &[Option<OwnedFd>; 3]) -> Option<BorrowedFd<'_>> {
    let ours = |fd: &&OwnedFd| tcgetpgrp(fd).is_ok_and(|group| group == getpgrp());
    stdio.iter().flatten().find(ours).map(AsFd::as_fd)
}

/// Gives the terminal of the restart the settings that the job's terminal had.
pub(super) fn set_up(
    descriptions: &[Description],
    ctx: &RestoreContext,
) -> Result<(), EngineError> {
    let what = || "setting up the terminal".to_owned();
    let Some(face) = of_descriptions(descriptions) else {
        return Ok(());
    };
    let made = ctx.terminal.map(AsFd::as_fd);
    match made.or_else(|| in_foreground(ctx.stdio)) {
        Some(terminal) => terminal::set_settings(terminal, &face.settings).context(what),
        None => Ok(()),
    }
}

/// Whether a terminal's window has another size than the job's had.
#[must_use]
pub fn is_another_size(terminal: BorrowedFd<'_>, face: &Face) -> bool {
    tcgetwinsize(terminal).is_ok_and(|now| (now.ws_row, now.ws_col) != face.window)
}
