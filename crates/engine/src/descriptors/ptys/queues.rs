//! What waits in a pseudo terminal, in both directions.
//!
//! The kernel has no way to look at it: it is taken out and put back the same way, while the job stands still, so that neither side
//! notices. A supervisor that is killed between the two takes what was typed ahead, or written and not yet shown, along.
//!
//! Facts (`drivers/tty/n_tty.c`, `drivers/tty/pty.c`, `drivers/tty/tty_buffer.c`):
//! - What was typed waits behind the rules of the line discipline. Line by line (`ICANON`) a read gives a line at most, and an
//!   unfinished line nothing. Without that rule all of it can be read; the boundaries are at the characters that end lines, and an end of
//!   file that was typed is a byte of zero.
//! - Put back under settings that neither echo nor interpret, lines are lines again. Settings that keep `ICANON` as it is can be
//!   exchanged while something waits, and do not change it.
//! - A write arrives by way of a worker of the kernel. A read or poll that finds nothing waits for it, one that finds something does not.
//! - What the other side writes is processed (`OPOST`) when it is written. Put back it must not be processed again.
//! - A pair keeps some 12 to 19 KB for a direction. What was in it fits in again, in larger pieces at that.
//! - In packet mode a read begins with a byte of its own. Turning the mode off and on forgets news not yet read.

use super::Master;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use stasis_sys::pty;
use stasis_sys::terminal::{self, Settings};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

// `asm-generic/termbits.h`; the places in `c_cc` as on x86 and ARM.
const ISIG: u32 = 0o1;
const ICANON: u32 = 0o2;
const ECHO: u32 = 0o10;
const IEXTEN: u32 = 0o100_000;
const EXTPROC: u32 = 0o200_000;
const OPOST: u32 = 0o1;
const VEOF: usize = 4;
const VTIME: usize = 5;
const VMIN: usize = 6;
const VEOL: usize = 11;
const VEOL2: usize = 16;
/// A special character that is none.
const DISABLED: u8 = 0;
/// What stands for an end of file in what was typed.
const END_OF_FILE: u8 = 0;
/// The end of file while it is put back.
const CTRL_D: u8 = 4;

/// More than the kernel keeps for a direction.
const LONGEST: usize = 1 << 20;

/// Copies both queues into `state`, and leaves them as they were. `other` is a description of the other side, where it has been
/// opened.
///
/// # Errors
/// What the kernel says; the queues are put back as far as that goes.
pub(super) fn copy(
    state: &mut Master,
    master: BorrowedFd<'_>,
    other: Option<&OwnedFd>,
) -> io::Result<()> {
    if let Some(other) = other {
        state.input = take_input(&state.face.settings, other.as_fd())?;
        put_input(state, master, other.as_fd())?;
    }
    if waits(master, PollFlags::IN)? {
        if state.packet_mode {
            pty::set_packet_mode(master, false)?;
        }
        let taken = drain(master);
        if let Ok(output) = &taken {
            state.output.clone_from(output);
        }
        let put = match (other, state.output.is_empty()) {
            (_, true) => Ok(()),
            (Some(other), false) => put_output(state, other.as_fd()),
            // Nobody has it open: the controlling side reads what is left and then the end.
            (None, false) => super::open_other(&master.try_clone_to_owned()?)
                .and_then(|other| put_output(state, other.as_fd())),
        };
        if state.packet_mode {
            pty::set_packet_mode(master, true)?;
        }
        taken?;
        put?;
    }
    Ok(())
}

/// Puts both queues of a new pair in place, and gives it its settings.
///
/// # Errors
/// What the kernel says.
pub(super) fn fill(
    state: &Master,
    master: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
) -> io::Result<()> {
    put_input(state, master, other)?;
    if !state.output.is_empty() {
        put_output(state, other)?;
    }
    terminal::set_settings(master, &state.face.settings)
}

fn waits(end: BorrowedFd<'_>, what: PollFlags) -> io::Result<bool> {
    let mut polled = [PollFd::new(&end, what)];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(polled[0].revents().contains(what))
}

/// Reads until nothing is left. Never waits, whatever the flags of the description.
fn drain(end: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while all.len() < LONGEST && waits(end, PollFlags::IN)? {
        match rustix::io::read(end, &mut buffer) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            // EIO: the other side is closed, and this was all.
            Err(Errno::AGAIN | Errno::IO) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// Settings under which everything that was typed can be read.
fn open_to_all(settings: &Settings) -> Settings {
    let mut raw = *settings;
    raw.input = 0;
    raw.local &= !(ICANON | ISIG | ECHO | IEXTEN | EXTPROC);
    raw.characters[VMIN] = 1;
    raw.characters[VTIME] = 0;
    raw
}

fn take_input(settings: &Settings, other: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    terminal::set_settings(other, &open_to_all(settings))?;
    let taken = drain(other);
    terminal::set_settings(other, settings)?;
    taken
}

/// Settings under which what is typed stays as it is, and lines are lines.
fn verbatim(settings: &Settings) -> Settings {
    let mut verbatim = *settings;
    verbatim.input = 0;
    verbatim.local &= !(ISIG | ECHO);
    if settings.local & ICANON == 0 {
        verbatim.local &= !IEXTEN;
        return verbatim;
    }
    let (end, other_end) = (settings.characters[VEOL], settings.characters[VEOL2]);
    verbatim.characters = [DISABLED; 19];
    verbatim.characters[VEOF] = CTRL_D;
    verbatim.characters[VEOL] = end;
    verbatim.characters[VEOL2] = other_end;
    verbatim
}

/// What was typed, in the pieces in which it is put back: an end of file as what makes one.
fn as_typed(state: &Master) -> Vec<u8> {
    let by_line = state.face.settings.local & ICANON != 0;
    let typed = state.input.iter().map(|byte| match *byte {
        END_OF_FILE if by_line => CTRL_D,
        byte => byte,
    });
    typed.collect()
}

/// How much of what was typed a read would be offered: whole lines where it goes by lines.
fn on_offer(state: &Master) -> usize {
    let settings = &state.face.settings;
    if settings.local & ICANON == 0 {
        return state.input.len();
    }
    let ends = |byte: &u8| {
        [b'\n', END_OF_FILE].contains(byte)
            || [settings.characters[VEOL], settings.characters[VEOL2]].contains(byte)
    };
    let lines = state
        .input
        .iter()
        .rposition(ends)
        .map_or(0, |last| last + 1);
    // The kernel does not count ends of file.
    let files = state.input[..lines]
        .iter()
        .filter(|byte| **byte == END_OF_FILE);
    lines - files.count()
}

/// For how long the kernel's worker is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long where it cannot be seen that it has come: behind whole lines, an unfinished one shows nowhere.
const BLIND: Duration = Duration::from_millis(20);

fn put_input(state: &Master, master: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<()> {
    if state.input.is_empty() {
        return Ok(());
    }
    let settings = &state.face.settings;
    terminal::set_settings(other, &verbatim(settings))?;
    let put = write_all(master, &as_typed(state)).and_then(|()| {
        let wanted = on_offer(state) as u64;
        let deadline = Instant::now() + PATIENCE;
        while rustix::io::ioctl_fionread(other)? < wanted.min(MOST_SHOWN) {
            if Instant::now() > deadline {
                return Err(io::Error::other("what was typed does not arrive"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        if wanted == 0 {
            // Waits for the worker.
            waits(other, PollFlags::IN)?;
        } else if (wanted as usize) < state.input.len() {
            std::thread::sleep(BLIND);
        }
        Ok(())
    });
    terminal::set_settings(other, settings)?;
    put
}

/// The line discipline's own buffer; what is beyond waits before it.
const MOST_SHOWN: u64 = 4095;

fn put_output(state: &Master, other: BorrowedFd<'_>) -> io::Result<()> {
    let mut plain = state.face.settings;
    plain.output &= !OPOST;
    terminal::set_settings(other, &plain)?;
    let put = write_all(other, &state.output);
    terminal::set_settings(other, &state.face.settings)?;
    put
}

/// Writes all. What was taken out fits in again, as soon as the worker has made room.
fn write_all(end: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        if waits(end, PollFlags::OUT)? {
            match rustix::io::write(end, &bytes[..bytes.len().min(512)]) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!(
                "{} bytes do not fit in again",
                bytes.len()
            )));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::open_other;
    use super::*;
    use crate::descriptors::ttys;
    use rustix::pty::{OpenptFlags, openpt, unlockpt};
    use std::io::{Read, Write};

    fn pair() -> (OwnedFd, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pair");
        unlockpt(&master).expect("unlocked");
        let other = open_other(&master).expect("its other side");
        (master, other)
    }

    fn state(master: &OwnedFd) -> Master {
        Master {
            flags: 2,
            number: pty::number(master.as_fd()).expect("a number"),
            face: ttys::face(master.as_fd()).expect("settings"),
            packet_mode: false,
            locked: false,
            exclusive: false,
            hung_up: false,
            mode: None,
            input: Vec::new(),
            output: Vec::new(),
        }
    }

    fn read(end: &OwnedFd) -> Vec<u8> {
        let mut buffer = vec![0; 9000];
        let mut file = std::fs::File::from(end.try_clone().expect("a duplicate"));
        let n = file.read(&mut buffer).expect("something");
        buffer.truncate(n);
        buffer
    }

    fn type_in(master: &OwnedFd, bytes: &[u8]) {
        let mut file = std::fs::File::from(master.try_clone().expect("a duplicate"));
        file.write_all(bytes).expect("typed");
    }

    fn copied(master: &OwnedFd, other: &OwnedFd) -> Master {
        let mut state = state(master);
        copy(&mut state, master.as_fd(), Some(other)).expect("a copy");
        state
    }

    #[test]
    fn lines_that_were_typed_ahead_stay() {
        let (master, other) = pair();
        type_in(&master, b"first\nsecond\nthe third is not");
        while rustix::io::ioctl_fionread(&other).expect("a count") < 13 {}
        let echo = state(&master);
        let first = copied(&master, &other);
        let second = copied(&master, &other);
        assert_eq!(first.input, b"first\nsecond\nthe third is not");
        assert_eq!(second, first);
        assert_eq!(first.face, echo.face);
        assert_eq!(first.output, b"first\r\nsecond\r\nthe third is not");
        assert_eq!(read(&other), b"first\n");
        assert_eq!(read(&other), b"second\n");
        type_in(&master, b" complete\n");
        while rustix::io::ioctl_fionread(&other).expect("a count") == 0 {}
        assert_eq!(read(&other), b"the third is not complete\n");
    }

    #[test]
    fn an_end_of_file_that_was_typed_stays() {
        let (master, other) = pair();
        // The line behind it shows that it has arrived: it does not count itself.
        type_in(&master, b"line\n\x04next\n");
        while rustix::io::ioctl_fionread(&other).expect("a count") < 10 {}
        let state = copied(&master, &other);
        assert_eq!(state.input, b"line\n\0next\n");
        assert_eq!(read(&other), b"line\n");
        assert_eq!(read(&other), b"");
        assert_eq!(read(&other), b"next\n");
    }

    #[test]
    fn what_a_new_pair_is_given_is_what_was_copied() {
        let (master, other) = pair();
        let mut settings = terminal::settings(other.as_fd()).expect("settings");
        settings.local &= !(ICANON | ECHO | ISIG);
        terminal::set_settings(other.as_fd(), &settings).expect("raw");
        type_in(&master, b"a\x03\r\0z");
        type_in(&other, b"one\ntwo\n");
        let mut polled = [PollFd::new(&other, PollFlags::IN)];
        poll(&mut polled, None).expect("input");
        let state = copied(&master, &other);
        assert_eq!(state.input, b"a\x03\n\0z");
        assert_eq!(state.output, b"one\r\ntwo\r\n");

        let (master, other) = pair();
        fill(&state, master.as_fd(), other.as_fd()).expect("filled");
        assert_eq!(copied(&master, &other).input, state.input);
        assert_eq!(read(&other), state.input);
        assert_eq!(read(&master), state.output);
        assert_eq!(ttys::face(other.as_fd()), Some(state.face));
    }

    #[test]
    fn much_output_stays() {
        let (master, other) = pair();
        let text: Vec<u8> = (0..12_000u32).map(|n| b'a' + (n % 26) as u8).collect();
        write_all(other.as_fd(), &text).expect("it fits");
        assert_eq!(copied(&master, &other).output, text);
        assert_eq!(drain(master.as_fd()).expect("all of it"), text);
    }

    #[test]
    fn packet_mode_is_kept() {
        let (master, other) = pair();
        pty::set_packet_mode(master.as_fd(), true).expect("on");
        type_in(&other, b"text");
        let mut state = state(&master);
        state.packet_mode = true;
        copy(&mut state, master.as_fd(), Some(&other)).expect("a copy");
        assert_eq!(state.output, b"text");
        assert_eq!(read(&master), b"\0text");
    }
}
