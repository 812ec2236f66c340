//! What a client and a supervisor say to each other on the control socket: one JSON object a line.
//!
//! The client sends one [`Request`]. The supervisor answers with one [`Answer`]; where the client asked for progress,
//! [`AnswerKind::Progress`] lines come before it. Fields may be added within a version; both sides ignore what they do
//! not know.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stasis_engine::look::{Item, Look};
use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;

/// The version that this program speaks.
pub const VERSION: u32 = 1;
/// Longest line in bytes.
const LONGEST: u64 = 4 << 20;

/// A request and the version in which it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What is wanted.
    #[serde(flatten)]
    pub kind: RequestKind,
}

/// What a client can want.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum RequestKind {
    /// What the job is and does.
    Status,
    /// A checkpoint. Answered by `Saved` or `Error` when it is done; or, with `by_signal`, by `Accepted` at once.
    Checkpoint {
        /// End the program in the instant that is saved.
        #[serde(default)]
        stop: bool,
        /// Send `Progress` lines meanwhile.
        #[serde(default)]
        progress: bool,
        /// The client is a process of the job's own tree. It will close its socket when it has the answer, and wait
        /// for SIGUSR2, whose value is 0 when the checkpoint is done.
        #[serde(default)]
        by_signal: bool,
    },
    /// Another interval; none for no more checkpoints by time.
    Interval {
        /// Its length in seconds.
        seconds: Option<u64>,
        /// As often as pays, instead.
        #[serde(default)]
        auto: bool,
    },
    /// A look at what a checkpoint would keep and refuse, as [`stasis_engine::look`] has it. Answered by `Seen`, in parts, and
    /// `Checked`.
    Check,
    /// End the whole tree, unsaved.
    Kill,
}

/// An answer and the version in which it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`] of the supervisor.
    pub version: u32,
    /// What is answered.
    #[serde(flatten)]
    pub kind: AnswerKind,
}

/// What a supervisor can answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum AnswerKind {
    /// To `Status`.
    Status(Box<JobStatus>),
    /// The request is noted: the outcome will be told by a signal.
    Accepted,
    /// How far the checkpoint has come. More follows.
    Progress(Progress),
    /// The image is committed.
    Saved(Saved),
    /// Some of what was seen of the job. More follows.
    Seen {
        /// Resources.
        items: Vec<Item>,
    },
    /// The rest of what was seen of the job: its items come after those that were told already.
    Checked(Box<Look>),
    /// Done, and there is nothing to add.
    Done,
    /// It was not done.
    Error {
        /// Why, and what to do.
        message: String,
    },
}

/// How far a checkpoint has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, about; 0 while that is not known.
    pub total: u64,
}

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The image.
    pub path: PathBuf,
    /// Its number.
    pub sequence: u64,
    /// When it was begun.
    pub taken_at: jiff::Timestamp,
    /// For how long the program stood still, in milliseconds.
    pub pause_ms: f64,
    /// From the request to the commit, in milliseconds.
    pub total_ms: f64,
    /// Processes saved.
    pub processes: usize,
    /// Threads saved.
    pub threads: usize,
    /// Bytes captured, before compression.
    pub captured_bytes: u64,
    /// Length of the image in bytes.
    pub image_bytes: u64,
    /// Older files that it takes contents from.
    #[serde(default)]
    pub bases: usize,
    /// Bytes of memory that were known not to have changed, and not read.
    #[serde(default)]
    pub unread_bytes: u64,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What a job is and does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name.
    pub name: String,
    /// Its first process. It may have ended while others live.
    pub root: i32,
    /// The same as the program sees it.
    pub virtual_root: i32,
    /// The supervisor.
    pub supervisor: i32,
    /// Every process of the tree that lives.
    pub pids: Vec<i32>,
    /// Resident memory of them, in bytes; what they share counts for each.
    pub memory_bytes: u64,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Where checkpoints go.
    pub directory: PathBuf,
    /// When it was started or restarted.
    pub started_at: jiff::Timestamp,
    /// The image that it was restarted from.
    pub restarted_from: Option<PathBuf>,
    /// Seconds from the end of a checkpoint to the next.
    pub interval_seconds: Option<u64>,
    /// Whether that is computed from what checkpoints cost.
    #[serde(default)]
    pub interval_auto: bool,
    /// When the next is due.
    pub next_due: Option<jiff::Timestamp>,
    /// Whether a checkpoint is being taken now.
    pub checkpointing: bool,
    /// The last one that was committed.
    pub last: Option<Saved>,
    /// Why the last attempt failed; none when it did not.
    pub last_error: Option<String>,
    /// The coordinator of the computation that it belongs to, as `HOST:PORT`.
    #[serde(default)]
    pub coordinator: Option<String>,
    /// That computation.
    #[serde(default)]
    pub computation: Option<String>,
    /// How many parents lie between the asking process and the job's keeper; none for a process outside the tree.
    pub distance: Option<u32>,
}

/// Writes one line.
///
/// # Errors
/// The writer's.
pub fn write_line(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads one line; `None` at the end.
///
/// # Errors
/// The reader's; `InvalidData` for a line that is too long or no such message.
pub fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let n = from.take(LONGEST).read_until(b'\n', &mut line)?;
    if n == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the line has no end",
        ));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_plain_json() {
        let request = Request {
            version: VERSION,
            kind: RequestKind::Checkpoint {
                stop: true,
                progress: false,
                by_signal: false,
            },
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"request":"checkpoint","stop":true,"progress":false,"by_signal":false}"#
        );
        let short: Request =
            serde_json::from_str(r#"{"version":1,"request":"checkpoint","stop":true,"new":1}"#)
                .unwrap();
        assert_eq!(short, request);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut endless = io::repeat(b'x').take(LONGEST * 2);
        let error = read_line::<Request>(&mut io::BufReader::new(&mut endless)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read_line::<Request>(&mut io::empty()).unwrap().is_none());
        assert!(read_line::<Request>(&mut &b"{\"version\":1}\n"[..]).is_err());
    }

    #[test]
    fn an_answer_survives_the_way() {
        let answer = Answer {
            version: VERSION,
            kind: AnswerKind::Error {
                message: "no\nroom".into(),
            },
        };
        let mut line = Vec::new();
        write_line(&mut line, &answer).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(read_line::<Answer>(&mut &line[..]).unwrap(), Some(answer));
    }
}
