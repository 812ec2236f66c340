//! Making pseudo terminals again.

use super::{Master, Slave, Terminal, missing, open_other, queues};
use crate::EngineError;
use crate::descriptors::{Description, Kind, Opening, reopen, set_status};
use crate::error::Context;
use crate::restart::world;
use rustix::fs::Mode;
use rustix::pty::{OpenptFlags, openpt};
use rustix::termios::{Winsize, tcsetpgrp, tcsetwinsize};
use stasis_sys::{Pid, pty, terminal};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The pairs that a restart has made, by their numbers.
#[derive(Debug, Default)]
pub struct Making {
    pairs: HashMap<u32, Pair>,
}

#[derive(Debug)]
struct Pair {
    master: OwnedFd,
    /// Held until every description is open, so that the controlling side does not see its end; none where it has never been open.
    other: Option<OwnedFd>,
}

/// The other sides that sessions are to be given for their terminals, by number.
#[derive(Debug, Default)]
pub struct Terminals(HashMap<u32, OwnedFd>);

fn masters(descriptions: &[Description]) -> impl Iterator<Item = &Master> {
    descriptions.iter().filter_map(|one| match &one.kind {
        Kind::PtyMaster(state) => Some(state),
        _ => None,
    })
}

/// The numbers of pairs of the image that are in use here.
#[must_use]
pub fn taken_numbers(descriptions: &[Description]) -> Vec<u32> {
    let taken = |number: &u32| std::path::Path::new(&format!("/dev/pts/{number}")).exists();
    masters(descriptions)
        .map(|state| state.number)
        .filter(taken)
        .collect()
}

/// More pairs than that are not taken to get to a number (`/proc/sys/kernel/pty/max`).
const HIGHEST: u32 = 4096;

/// Makes every pair of the image.
///
/// # Errors
/// When a number is taken, and the job cannot have a devpts of its own, or the kernel gives no more.
pub(in super::super) fn make_all(
    descriptions: &[Description],
    opening: &Opening,
) -> Result<Making, EngineError> {
    let wanted: HashMap<u32, &Master> = masters(descriptions)
        .map(|state| (state.number, state))
        .collect();
    let mut reserved = reserve(&wanted, opening)?;
    if reserved.len() < wanted.len() && opening.context.own_mounts {
        drop(reserved);
        world::mount_devpts()?;
        reserved = reserve(&wanted, opening)?;
    }
    if let Some(missed) = wanted.keys().find(|number| !reserved.contains_key(number)) {
        return Err(EngineError::Failed(format!(
            "pseudo terminal {missed} is in use by another program: restart again when it is free"
        )));
    }
    let mut making = Making::default();
    for (number, master) in reserved {
        let Some(state) = wanted.get(&number) else {
            continue;
        };
        let used = state.hung_up || is_open(number, descriptions);
        making
            .pairs
            .insert(number, make(state, master, used, opening)?);
    }
    Ok(making)
}

/// Takes pairs until all wanted numbers were among them, or have been passed.
fn reserve(
    wanted: &HashMap<u32, &Master>,
    opening: &Opening,
) -> Result<HashMap<u32, OwnedFd>, EngineError> {
    let what = || "making a pseudo terminal".to_owned();
    let highest = wanted.keys().max().copied().unwrap_or(0).min(HIGHEST);
    let (mut reserved, mut others) = (HashMap::new(), Vec::new());
    while reserved.len() < wanted.len() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = opening.place(openpt(flags).context(what)?)?;
        let number = pty::number(master.as_fd()).context(what)?;
        if wanted.contains_key(&number) {
            reserved.insert(number, master);
        } else if number > highest {
            break;
        } else {
            others.push(master);
        }
    }
    Ok(reserved)
}

fn is_open(number: u32, descriptions: &[Description]) -> bool {
    descriptions.iter().any(
        |description| matches!(&description.kind, Kind::PtySlave(slave) if slave.number == number),
    )
}

fn make(
    state: &Master,
    master: OwnedFd,
    used: bool,
    opening: &Opening,
) -> Result<Pair, EngineError> {
    let what = || format!("setting up pseudo terminal {}", state.number);
    pty::set_locked(master.as_fd(), false).context(what)?;
    let (rows, columns) = state.face.window;
    let window = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, window).context(what)?;
    if !used {
        terminal::set_settings(master.as_fd(), &state.face.settings).context(what)?;
        return Ok(Pair {
            master,
            other: None,
        });
    }
    let other = opening.place(open_other(&master).context(what)?)?;
    if let Some(mode) = state.mode {
        // Of a file system that may not allow it nothing more is asked.
        let _ = rustix::fs::fchmod(&other, Mode::from_raw_mode(mode));
    }
    queues::fill(state, master.as_fd(), other.as_fd()).context(what)?;
    Ok(Pair {
        master,
        other: Some(other),
    })
}

impl Making {
    /// Lets go of what held the pairs open, once every description is, and keeps what sessions need.
    ///
    /// # Errors
    /// What the kernel says of a last setting.
    pub(in super::super) fn finish(
        self,
        descriptions: &[Description],
    ) -> Result<Terminals, EngineError> {
        let mut terminals = HashMap::new();
        for state in masters(descriptions) {
            let what = || format!("setting up pseudo terminal {}", state.number);
            let Some(pair) = self.pairs.get(&state.number) else {
                continue;
            };
            if state.packet_mode {
                pty::set_packet_mode(pair.master.as_fd(), true).context(what)?;
            }
            if let (true, Some(other)) = (state.exclusive, &pair.other) {
                pty::set_exclusive(other.as_fd()).context(what)?;
            }
            if state.locked {
                pty::set_locked(pair.master.as_fd(), true).context(what)?;
            }
        }
        for (number, pair) in self.pairs {
            terminals.extend(pair.other.map(|other| (number, other)));
        }
        Ok(Terminals(terminals))
    }
}

/// The controlling side.
pub(in super::super) fn restore_master(
    state: &Master,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    let pair = opening.ptys.pairs.get(&state.number);
    let pair = pair.ok_or_else(|| missing(state.number))?;
    let first_free = opening.context.first_free;
    let fd = rustix::io::fcntl_dupfd_cloexec(&pair.master, first_free)
        .context(|| format!("opening pseudo terminal {}", state.number))?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

/// A description of the other side.
pub(in super::super) fn restore_slave(
    state: &Slave,
    opening: &mut Opening,
) -> Result<OwnedFd, EngineError> {
    const ACCESS: u32 = 3;
    const O_LARGEFILE: u32 = 0o100_000;
    let what = || format!("opening /dev/pts/{}", state.number);
    let pair = opening.ptys.pairs.get(&state.number);
    let pair = pair.ok_or_else(|| missing(state.number))?;
    let fd = match &pair.other {
        // As open(2) does it, by name; without a name no such flag is set.
        Some(other) if state.flags & O_LARGEFILE != 0 => {
            reopen(other.as_fd(), state.flags & ACCESS).context(what)?
        }
        _ => pty::open_other_side(pair.master.as_fd(), state.flags & ACCESS).context(what)?,
    };
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

impl Terminals {
    fn get(&self, number: u32) -> Result<BorrowedFd<'_>, EngineError> {
        let fd = self.0.get(&number).ok_or_else(|| missing(number))?;
        Ok(fd.as_fd())
    }
}

/// Makes the terminal that controlled `session` control it again: in the process that has just made the session.
///
/// # Errors
/// What the kernel says.
pub fn take(terminals: &[Terminal], session: Pid, made: &Terminals) -> Result<(), EngineError> {
    let Some(terminal) = terminals.iter().find(|one| one.session == session) else {
        return Ok(());
    };
    rustix::process::ioctl_tiocsctty(made.get(terminal.number)?).context(|| {
        format!(
            "giving pseudo terminal {} to session {session}",
            terminal.number
        )
    })
}

/// Puts the process group in the foreground that was there: in the first process of the session, with SIGTTOU blocked, once all groups
/// are made.
///
/// # Errors
/// What the kernel says.
pub fn set_foreground(
    terminals: &[Terminal],
    session: Pid,
    made: &Terminals,
) -> Result<(), EngineError> {
    let wanted = terminals.iter().find(|one| one.session == session);
    let group = wanted.and_then(|terminal| {
        let group = rustix::process::Pid::from_raw(terminal.foreground?.0)?;
        Some((terminal.number, group))
    });
    let Some((number, group)) = group else {
        return Ok(());
    };
    tcsetpgrp(made.get(number)?, group).context(|| {
        format!(
            "putting process group {} in the foreground of pseudo terminal {number}",
            group.as_raw_nonzero()
        )
    })
}
