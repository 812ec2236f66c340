//! What coordinators, members and commands say to each other: one JSON object a line, after both sides have proven that they
//! know the user's secret ([`crate::secret`]).
//!
//! Fields may be added within a version; all sides ignore what they do not know.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version that this program speaks.
pub const VERSION: u32 = 1;
/// Where a coordinator listens unless it is told otherwise.
pub const DEFAULT_PORT: u16 = 7779;

/// The coordinator's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`] of the coordinator; the name of the field says what it is.
    pub stasis_coordinator: u32,
    /// Which secret it has.
    pub key: String,
    /// What a proof must be made of.
    pub challenge: String,
}

/// What is answered to a greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// [`VERSION`] of whoever connects.
    pub version: u32,
    /// What the coordinator's proof must be made of.
    pub challenge: String,
    /// The proof.
    pub proof: String,
}

/// The coordinator's proof, or why it refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// It is the one that was greeted, too.
    Proof(String),
    /// It does not listen.
    Refused(String),
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opening {
    /// A job wants to be a member.
    Join(Join),
    /// A command asks; answered by a [`Reply`], after which it may ask again.
    Ask(Ask),
}

/// A job that wants to be a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Name of the program.
    pub program: String,
    /// The host that it runs on.
    pub host: String,
    /// The job's name, where it has one already: it comes from an image or was a member before.
    pub name: Option<String>,
    /// The computation that it belongs to: it was a member before, or comes from an image of one.
    pub computation: Option<Belonging>,
    /// Seconds between checkpoints, where this is to change what the coordinator has; 0 for none.
    pub interval: Option<u64>,
    /// It runs already: the coordinator that it had is gone.
    pub running: Option<Running>,
}

/// A computation that a member comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Belonging {
    /// Its id.
    pub id: String,
    /// Its last checkpoint.
    pub generation: u64,
    /// How many members it has, where they are all being continued now.
    pub size: Option<usize>,
}

/// A member's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The first process, by the host's number.
    pub pid: i32,
    /// The same by the number that the program sees.
    pub virtual_pid: i32,
}

/// A place in a checkpoint where all members wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// All programs are frozen.
    Frozen,
    /// What must be read from frozen programs was read.
    Captured,
    /// The images are complete, but for their names.
    Complete,
}

/// What a member says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromMember {
    /// The program runs: from now on it can be saved.
    Started {
        /// The job's name.
        name: String,
        /// Its processes.
        running: Running,
    },
    /// It wants a checkpoint of all: a process of it has asked, or a signal came.
    Wanted {
        /// The program is to be ended with it.
        stop: bool,
    },
    /// Another interval, in seconds; none for no checkpoints by time.
    Interval {
        /// Its length.
        seconds: Option<u64>,
    },
    /// It has come to a barrier.
    Reached {
        /// Of this round.
        round: u64,
        /// Which barrier.
        point: Point,
    },
    /// Its image has its name.
    Committed {
        /// In this round.
        round: u64,
        /// Where the image is.
        image: PathBuf,
    },
    /// It cannot be saved.
    Failed {
        /// In this round.
        round: u64,
        /// Why, and what to do.
        reason: String,
        /// It may go better at once.
        again: bool,
    },
    /// Nothing but that it lives.
    Alive,
}

/// What a member is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToMember {
    /// It is one.
    Joined {
        /// The computation's id.
        computation: String,
        /// The member's number, new for each.
        number: u64,
        /// Number of the last checkpoint.
        generation: u64,
        /// Seconds between checkpoints, 0 for none.
        interval: u64,
    },
    /// It is not.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// A checkpoint begins.
    Round {
        /// Its number, new with each attempt.
        round: u64,
        /// The number of the checkpoint.
        generation: u64,
        /// The names of all members.
        members: Vec<String>,
        /// The programs are to be ended with it.
        stop: bool,
    },
    /// All have come to a barrier.
    Proceed {
        /// In this round.
        round: u64,
        /// Which barrier.
        point: Point,
    },
    /// The round has failed; everything is as it was.
    Abort {
        /// This one.
        round: u64,
        /// Why.
        reason: String,
        /// Another attempt follows at once.
        again: bool,
    },
    /// The program is to be ended.
    Kill,
    /// How many members there are now.
    Members {
        /// The number.
        count: usize,
    },
    /// Another interval, 0 for none.
    Interval {
        /// Its length in seconds.
        seconds: u64,
    },
    /// Nothing but that the coordinator lives.
    Alive,
}

/// What a command asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// What there is.
    Status,
    /// All members.
    List,
    /// A checkpoint of all.
    Checkpoint {
        /// Answer when it is done.
        wait: bool,
        /// End the programs in the instant that is saved.
        stop: bool,
    },
    /// Seconds between checkpoints, 0 for none.
    Interval {
        /// Their number.
        seconds: u64,
    },
    /// End all programs, unsaved.
    Kill,
    /// End all programs, unsaved, and the coordinator.
    Quit,
}

/// What a command is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `Status`.
    Status(Status),
    /// To `List`.
    List(Vec<Listed>),
    /// A checkpoint was taken or, where nobody waits for it, will be.
    Checkpoint {
        /// Of so many members.
        members: usize,
        /// The images, where they were waited for.
        images: Vec<PathBuf>,
    },
    /// Done.
    Done,
    /// There is no member, or none that can be saved now.
    NotRunning,
    /// It was not done.
    Failed {
        /// Why, and what to do.
        reason: String,
    },
}

/// What a coordinator is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How many members there are.
    pub members: usize,
    /// All of them run, and no checkpoint is being taken.
    pub running: bool,
    /// Seconds between checkpoints, 0 for none.
    pub interval: u64,
    /// The computation, where there is one.
    pub computation: Option<String>,
    /// Number of the last checkpoint.
    pub generation: u64,
    /// Why the last attempt failed, where it did.
    pub last_error: Option<String>,
}

/// A member in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its number.
    pub number: u64,
    /// Name of the program.
    pub program: String,
    /// Its host.
    pub host: String,
    /// The job's name.
    pub name: String,
    /// Its first process, where it runs.
    pub running: Option<Running>,
    /// The barrier that it has come to, where a checkpoint is being taken.
    pub reached: Option<Point>,
    /// A checkpoint is being taken.
    pub checkpointing: bool,
}
