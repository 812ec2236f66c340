//! The line between the front (the process in the user's terminal) and the supervisor: one JSON message a packet.

use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Longest message in bytes; a socket's buffer takes it in one piece.
const LONGEST: usize = 64 << 10;
/// Room for a text inside a message, whose bytes JSON may escape sixfold.
const LONGEST_TEXT: usize = 8 << 10;

/// What the supervisor tells the front.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToFront {
    /// The program runs.
    Started {
        /// Its first process (the supervisor's number).
        root: i32,
        /// It has the terminal that was made for it.
        terminal: bool,
    },
    /// It could not be started; nothing of it is left.
    Failed {
        /// Exit status for that.
        code: u8,
        /// Why.
        message: String,
        /// The image is damaged: an older one may do.
        damaged: bool,
    },
    /// Something for the user to read.
    Note(String),
    /// How far a long step has come, in bytes.
    Progress {
        /// What is going on: a verb in the -ing form.
        what: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all, about.
        total: u64,
    },
    /// On request the program was saved and, in the same instant, ended.
    SavedAndStopped {
        /// The image.
        path: PathBuf,
        /// Why.
        why: Why,
    },
    /// A checkpoint was taken, or was not ([`crate::Settings::tell_checkpoints`]).
    Checkpoint(Told),
}

/// What made the supervisor take a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// A command asked for it.
    Request,
    /// The interval has passed.
    Interval,
    /// This signal has arrived, at the front or at somebody who is shielded from it.
    Signal(i32),
    /// The deadline is near.
    Deadline,
}

/// One checkpoint, for a log of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What made it happen.
    pub why: Why,
    /// The image, or why there is none.
    pub outcome: Result<Brief, String>,
    /// Seconds until the next one is due; none where no more comes by time.
    pub next_seconds: Option<u64>,
    /// The program was to end with it.
    pub stop: bool,
}

/// What there is to say of an image in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// The image.
    pub path: PathBuf,
    /// Its number.
    pub sequence: u64,
    /// For how long the program stood still, in microseconds.
    pub pause_us: u64,
    /// From the request to the commit, in microseconds.
    pub total_us: u64,
    /// Length of the image in bytes.
    pub image_bytes: u64,
}

/// What the front tells the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// A signal arrived that an option has made a trigger.
    Checkpoint {
        /// Whether the program shall be ended with it.
        stop: bool,
        /// The signal.
        signal: i32,
    },
}

/// Cuts a text down to what a message can hold.
pub(crate) fn fitting(mut text: String) -> String {
    if text.len() > LONGEST_TEXT {
        let end = (0..=LONGEST_TEXT)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// Sends a message. With `wait`, waits for room; without, gives up where there is none (the front is stopped).
///
/// # Errors
/// `EPIPE` when nobody listens any more; `EAGAIN` without room.
pub fn tell(line: impl AsFd, message: &impl Serialize, wait: bool) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let flags = if wait {
        SendFlags::NOSIGNAL
    } else {
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT
    };
    rustix::io::retry_on_intr(|| send(&line, &bytes, flags))?;
    Ok(())
}

/// Receives a message; `None` when the other end is closed.
///
/// # Errors
/// The kernel's; `InvalidData` for bytes that are no message.
pub fn hear<T: DeserializeOwned>(line: impl AsFd) -> io::Result<Option<T>> {
    let mut buffer = vec![0; LONGEST];
    let (n, _) = rustix::io::retry_on_intr(|| recv(&line, &mut buffer[..], RecvFlags::empty()))?;
    if n == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&buffer[..n])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_text_arrives() {
        let (one, other) = stasis_engine::keeper::line().unwrap();
        let note = ToFront::Note(fitting("\u{1}".repeat(100_000)));
        tell(&one, &note, false).unwrap();
        assert_eq!(hear::<ToFront>(&other).unwrap(), Some(note));
        drop(one);
        assert_eq!(hear::<ToFront>(&other).unwrap(), None);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let cut = fitting("ä".repeat(LONGEST_TEXT));
        assert!(cut.len() <= LONGEST_TEXT + 4 && cut.ends_with("ä ..."));
    }
}
