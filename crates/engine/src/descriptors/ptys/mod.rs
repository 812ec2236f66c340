//! Pseudo terminals whose controlling side is in the job: what script(1), tmux(1), expect(1), ssh servers and editors make.
//!
//! Saved: the number, settings, window, packet mode, lock, exclusive mode, the mode bits of `/dev/pts/N`; what waits to be read on
//! either side; which sessions it controls and which process group is in its foreground ([`Terminal`]).
//! Not saved: output that was stopped by hand (`^S`), news of packet mode that were not read yet, the line discipline of anything
//! but ordinary terminals (refused), how much a character of a line that is being edited may erase.
//! Refused: the other side where the job does not hold the controlling one, which belongs to whoever runs outside.
//!
//! Facts:
//! - Settings and window belong to the pair; an ioctl on the controlling side is about them (`tty_pair_get_tty`).
//! - `TIOCGPTPEER` opens the other side without a name, and from another mount namespace.
//! - Numbers are given lowest first, one set for each mounted devpts (`fs/devpts/inode.c`). A restart takes numbers until it has
//!   the wanted ones; where others have them it mounts a devpts of the job's own, which takes namespaces.
//! - What waits cannot be looked at, only taken out and put back (`queues.rs`).
//! - A session's first process makes a terminal the session's own (`TIOCSCTTY`), and what it forks afterwards inherits that.

mod queues;
mod restore;

pub use restore::{Making, Terminals, set_foreground, take, taken_numbers};
pub(super) use restore::{make_all, restore_master, restore_slave};

use super::capture::Survey;
use super::{Found, Obstacle, ttys};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use crate::tree::Stat;
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, pty, terminal};
use std::os::fd::{AsFd, OwnedFd};

pub(super) const CONTROLLING: Claim = Claim::kept(
    "pseudo terminal, controlling side",
    "number, settings, window, packet mode, what waits in it",
    &["ptys::pair", "ptys::states", "ptys::script", "ptys::tmux"],
);
pub(super) const SLAVE: Claim = Claim::kept(
    "pseudo terminal",
    "with its session and the group in its foreground",
    &[
        "ptys::pair",
        "ptys::session",
        "ptys::numbers_that_others_have",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[CONTROLLING, SLAVE];

/// A saved controlling side, and all that belongs to the pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Access mode and status flags.
    pub flags: u32,
    /// The `N` of `/dev/pts/N`.
    pub number: u32,
    /// How the pair is set up.
    pub face: ttys::Face,
    /// Reads begin with a byte that tells what they are.
    pub packet_mode: bool,
    /// The other side may not be opened.
    pub locked: bool,
    /// Nobody else may open the other side.
    pub exclusive: bool,
    /// The other side has been open, and nobody has it open any more.
    pub hung_up: bool,
    /// Permissions of `/dev/pts/N`, where they are known.
    pub mode: Option<u32>,
    /// What was typed, for the other side to read.
    #[serde(with = "serde_bytes")]
    pub input: Vec<u8>,
    /// What the other side has written.
    #[serde(with = "serde_bytes")]
    pub output: Vec<u8>,
}

/// A saved description of the other side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slave {
    /// Access mode and status flags.
    pub flags: u32,
    /// Of which pair.
    pub number: u32,
}

/// A terminal that controls a session of the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// The `N` of `/dev/pts/N`.
    pub number: u32,
    /// The session, named by its first process.
    pub session: Pid,
    /// The process group in the foreground.
    pub foreground: Option<Pid>,
}

/// The pairs whose controlling side is in the job.
#[derive(Debug, Default)]
pub(super) struct Pairs(Vec<Pair>);

#[derive(Debug)]
struct Pair {
    /// Place of the controlling side.
    place: usize,
    number: u32,
    /// Device and inode of `/dev/pts/N`, where somebody of the job has it open.
    other: Option<(u64, u64)>,
    mode: Option<u32>,
}

const MASTER: (u32, u32) = (5, 2);

/// The number of a pseudo terminal's other side, by the numbers of its device (`Documentation/admin-guide/devices.txt`).
fn number_of(major: u32, minor: u32) -> Option<u32> {
    (136..=143)
        .contains(&major)
        .then(|| (major - 136) << 8 | minor)
}

/// The same for a number of a terminal as field 7 of `/proc/PID/stat` has it.
fn number_of_device(device: u32) -> Option<u32> {
    let device = u64::from(device);
    number_of(rustix::fs::major(device), rustix::fs::minor(device))
}

impl Pairs {
    /// Looks for them. What cannot be looked at is refused later, as what it is.
    pub(super) fn look(founds: &[Found]) -> Pairs {
        let masters = founds
            .iter()
            .enumerate()
            .filter(|(_, found)| found.device_numbers() == MASTER);
        let pairs = masters.filter_map(|(place, found)| {
            let master = found.duplicate().ok()?;
            let number = pty::number(master.as_fd()).ok()?;
            let candidate = founds.iter().find(|found| {
                let (major, minor) = found.device_numbers();
                number_of(major, minor) == Some(number)
            });
            // Opened only where it is open anyway: otherwise the controlling side would see it being closed. One that may not be
            // opened again (it is exclusive, or was locked afterwards) is taken for the one of that number.
            let seen = candidate.map(|candidate| {
                let other = open_other(&master).ok();
                other
                    .and_then(|other| rustix::fs::fstat(&other).ok())
                    .unwrap_or(candidate.stat)
            });
            Some(Pair {
                place,
                number,
                other: seen.map(|stat| (stat.st_dev, stat.st_ino)),
                mode: seen.map(|stat| stat.st_mode & 0o7777),
            })
        });
        Pairs(pairs.collect())
    }

    fn of(&self, found: &Found) -> Option<&Pair> {
        self.0.iter().find(|pair| pair.other == Some(found.inode()))
    }

    fn of_number(&self, number: u32) -> Option<&Pair> {
        self.0.iter().find(|pair| pair.number == number)
    }
}

/// The other side, opened once more so that nothing waits for it.
fn open_other(master: &OwnedFd) -> std::io::Result<OwnedFd> {
    pty::open_other_side(
        master.as_fd(),
        (libc::O_RDWR | libc::O_NONBLOCK).cast_unsigned(),
    )
}

/// Whether a character device is a controlling side.
pub(super) fn is_master(found: &Found) -> bool {
    found.device_numbers() == MASTER
}

/// Captures a controlling side.
pub(super) fn capture_master(whole: &Survey, place: usize) -> Result<Master, Obstacle> {
    let found = &whole.founds[place];
    let what = || format!("looking at {found}");
    let master = found.duplicate()?;
    let pair = whole.ptys.0.iter().find(|pair| pair.place == place);
    let pair = pair.ok_or_else(|| found.refuse("the kernel does not tell its number", ""))?;
    let Some(face) = ttys::face(master.as_fd()) else {
        return Err(found.refuse("it does not tell its settings", ""));
    };
    const N_TTY: u8 = 0;
    if face.settings.line != N_TTY {
        return Err(found.refuse(
            format!(
                "its line discipline ({}) is not that of a terminal",
                face.settings.line
            ),
            "let the program close it before the checkpoint",
        ));
    }
    let hung_up = super::pipes::hung_up(master.as_fd(), PollFlags::HUP).context(what)?;
    let other = pair.other.and_then(|_| other_side(whole, pair, &master));
    let exclusive = other.as_ref().map(|other| pty::is_exclusive(other.as_fd()));
    let mut state = Master {
        flags: found.info.flags,
        number: pair.number,
        face,
        packet_mode: pty::is_packet_mode(master.as_fd()).context(what)?,
        locked: pty::is_locked(master.as_fd()).context(what)?,
        exclusive: exclusive.transpose().context(what)?.unwrap_or(false),
        hung_up,
        mode: pair.mode,
        input: Vec::new(),
        output: Vec::new(),
    };
    if whole.ctx.contents.is_some() {
        let copied = queues::copy(&mut state, master.as_fd(), other.as_ref());
        copied.context(|| format!("copying what is in {found}"))?;
    }
    Ok(state)
}

/// A description of the other side: one of ours, or where the terminal is exclusive, the job's.
fn other_side(whole: &Survey, pair: &Pair, master: &OwnedFd) -> Option<OwnedFd> {
    open_other(master).ok().or_else(|| {
        let theirs = whole.on_inode(pair.other?).first()?;
        whole.founds[*theirs].duplicate().ok()
    })
}

/// Captures the other side, or `/dev/tty` of a process that has it for its terminal; `None` where that is no pair of the job.
pub(super) fn capture_slave(whole: &Survey, found: &Found) -> Result<Option<Slave>, Obstacle> {
    const TTY: (u32, u32) = (5, 0);
    let pair = match found.device_numbers() {
        TTY if !in_outer_session(whole, found) => {
            let duplicate = found.duplicate()?;
            terminal::device(duplicate.as_fd())
                .ok()
                .and_then(number_of_device)
                .and_then(|number| whole.ptys.of_number(number))
        }
        TTY => None,
        _ => whole.ptys.of(found),
    };
    Ok(pair.map(|pair| Slave {
        flags: found.info.flags,
        number: pair.number,
    }))
}

/// Whether who holds it is in the session that the job was started in, whose terminal is the job's.
fn in_outer_session(whole: &Survey, found: &Found) -> bool {
    let session = |pid| Stat::read(pid).map(|stat| stat.field(6));
    let first = whole.ctx.processes.first();
    let keeper = first.and_then(|process| Some(Stat::read(process.pid)?.parent));
    keeper.is_none_or(|keeper| session(keeper) == session(found.process.pid))
}

/// The terminals of the job that control sessions of it. `processes` are the first processes of sessions: what the kernel tells of
/// them, and their ids as the program sees them. `group` translates process groups.
pub fn controlling<'a>(
    descriptions: &[super::Description],
    processes: impl Iterator<Item = (&'a Stat, Pid)>,
    group: impl Fn(Pid) -> Option<Pid>,
) -> Vec<Terminal> {
    let known = |number: &u32| {
        descriptions.iter().any(|description| {
            matches!(&description.kind, super::Kind::PtyMaster(master) if master.number == *number)
        })
    };
    let terminal = |(stat, session): (&Stat, Pid)| {
        let number = number_of_device(stat.field(7) as u32).filter(known)?;
        let foreground = i32::try_from(stat.field(8)).ok().filter(|group| *group > 0);
        Some(Terminal {
            number,
            session,
            foreground: foreground.and_then(|id| group(Pid(id))),
        })
    };
    processes.filter_map(terminal).collect()
}

/// The descriptor of a pair, in a restart.
fn missing(number: u32) -> EngineError {
    EngineError::Failed(format!(
        "pseudo terminal {number} of the image has no controlling side"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices_are_numbers_of_terminals() {
        assert_eq!(number_of(136, 3), Some(3));
        assert_eq!(number_of(137, 3), Some(259));
        assert_eq!(number_of(5, 2), None);
        // tty_nr of /dev/pts/0, and of /dev/pts/300, whose number is in the minor number's upper bits.
        assert_eq!(number_of_device(0x8800), Some(0));
        assert_eq!(number_of_device(0), None);
    }
}
