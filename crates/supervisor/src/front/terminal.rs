//! A terminal of the job's own, inside the user's.
//!
//! A job that is restarted in namespaces of its own is in a session of its own, which the user's terminal cannot
//! control. It gets a pseudo terminal, and the front copies bytes: the user's terminal is in raw mode meanwhile, so that
//! Ctrl-C and Ctrl-Z are typed at the inner one. Before the front stops or ends, the outer modes are put back.

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::process::getpgrp;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr, tcsetpgrp,
    tcsetwinsize,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const BUFFER: usize = 16 << 10;

/// The front's side of the inner terminal.
pub(super) struct Terminal {
    master: OwnedFd,
    /// The user's terminal as it was found.
    outer: Termios,
    raw: bool,
    /// Typed, but not yet taken by the inner terminal.
    typed: Vec<u8>,
    /// The user's terminal can still be read.
    input: bool,
    /// The inner terminal can still be read.
    output: bool,
}

impl Terminal {
    /// A terminal like the user's, where standard input is one: the front's side and the job's.
    pub(super) fn make() -> Option<(Terminal, OwnedFd)> {
        if !isatty(stdin()) {
            return None;
        }
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let attempt = || -> rustix::io::Result<(Terminal, OwnedFd)> {
            let outer = tcgetattr(stdin())?;
            let master = openpt(flags)?;
            grantpt(&master)?;
            unlockpt(&master)?;
            let slave = ioctl_tiocgptpeer(&master, flags)?;
            tcsetattr(&slave, OptionalActions::Now, &outer)?;
            tcsetwinsize(&slave, tcgetwinsize(stdin())?)?;
            ioctl_fionbio(&master, true)?;
            let terminal = Terminal {
                master,
                outer,
                raw: false,
                typed: Vec::new(),
                input: true,
                output: true,
            };
            Ok((terminal, slave))
        };
        attempt()
            .inspect_err(|error| tracing::warn!(%error, "no terminal for the job"))
            .ok()
    }

    /// Whether the user's shell has given the terminal to this process's group.
    fn in_foreground() -> bool {
        tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp())
    }

    /// Takes the user's terminal over, where it may be.
    pub(super) fn enter(&mut self) {
        if self.raw || !Self::in_foreground() {
            return;
        }
        if let Ok(found) = tcgetattr(stdin()) {
            self.outer = found;
        }
        let mut raw = self.outer.clone();
        raw.make_raw();
        self.raw = tcsetattr(stdin(), OptionalActions::Drain, &raw).is_ok();
        self.resize();
    }

    /// Puts the user's terminal back.
    pub(super) fn leave(&mut self) {
        if std::mem::take(&mut self.raw) && Self::in_foreground() {
            let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.outer);
        }
    }

    /// Whether the user's terminal is in raw mode, where a line feed does not return.
    pub(super) fn is_raw(&self) -> bool {
        self.raw
    }

    /// The user's window has another size.
    pub(super) fn resize(&self) {
        if let Ok(size) = tcgetwinsize(stdin()) {
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// What to wait for.
    pub(super) fn watched(&self) -> Vec<(Side, BorrowedFd<'_>, PollFlags)> {
        let mut watched = Vec::new();
        if self.output {
            let more = if self.typed.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            watched.push((Side::Inner, self.master.as_fd(), PollFlags::IN | more));
        }
        // Nothing is read that could not be passed on, and nothing in the background, where it is not ours.
        if self.input && self.output && self.typed.is_empty() && Self::in_foreground() {
            watched.push((Side::Outer, stdin(), PollFlags::IN));
        }
        watched
    }

    /// Whether the terminal may come to be ours without a word, so that it has to be looked at from time to time.
    pub(super) fn is_in_background(&self) -> bool {
        self.input && self.output && !Self::in_foreground()
    }

    /// Copies what is there.
    pub(super) fn relay(&mut self, side: Side) {
        match side {
            Side::Outer => self.take_typed(),
            Side::Inner => {
                self.give_typed();
                self.show();
            }
        }
    }

    fn take_typed(&mut self) {
        self.enter();
        let mut buffer = [0; BUFFER];
        match read(stdin(), &mut buffer) {
            Ok(0) => self.input = false,
            Ok(n) => self.typed.extend_from_slice(&buffer[..n]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.input = false,
        }
        self.give_typed();
    }

    fn give_typed(&mut self) {
        if self.typed.is_empty() {
            return;
        }
        match write(&self.master, &self.typed) {
            Ok(n) => drop(self.typed.drain(..n)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.typed.clear(),
        }
    }

    /// Shows what the job has written so far; tells whether there was anything.
    fn show(&mut self) -> bool {
        let mut buffer = [0; BUFFER];
        match read(&self.master, &mut buffer) {
            Ok(n) if n > 0 => write_all(&buffer[..n]),
            Err(Errno::INTR | Errno::AGAIN) => return false,
            // EIO: nobody has the inner terminal open any more.
            Ok(_) | Err(_) => {
                self.output = false;
                return false;
            }
        }
        true
    }

    /// Shows the rest, when the job is over.
    pub(super) fn finish(&mut self) {
        while self.output && self.show() {}
        self.leave();
    }
}

/// The user's terminal as a restart has found it in its foreground. Without a terminal of its own, the restarted job gets that
/// one, in the modes and with the foreground group that it had: what it leaves behind at its end need not be what it found.
pub(super) struct Found(Termios);

impl Found {
    /// Looks.
    pub(super) fn take() -> Option<Found> {
        let ours = isatty(stdin()) && Terminal::in_foreground();
        ours.then(|| tcgetattr(stdin()).ok().map(Found)).flatten()
    }

    /// Puts it back. The calling process has SIGTTOU blocked, so it may do so from the background.
    pub(super) fn put_back(&self) {
        let _ = tcsetpgrp(stdin(), getpgrp());
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Where something can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The user's terminal.
    Outer,
    /// The job's.
    Inner,
}

/// The job's terminal may be standard input alone: output goes to a stream of the front that is a terminal.
fn write_all(mut bytes: &[u8]) {
    let screen = if isatty(stdout()) {
        stdout()
    } else if isatty(stderr()) {
        stderr()
    } else {
        stdin()
    };
    while !bytes.is_empty() {
        match write(screen, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = rustix::event::poll(
                    &mut [PollFd::from_borrowed_fd(screen, PollFlags::OUT)],
                    None,
                );
            }
            Err(_) => return,
        }
    }
}
