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
    },
}

/// What the front tells the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// A signal arrived that an option has made a trigger.
    Checkpoint {
        /// Whether the program shall be ended with it.
        stop: bool,
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
