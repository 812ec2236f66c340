//! Descriptors and the open file descriptions behind them.
//!
//! At a checkpoint every descriptor of every process is looked at through `/proc`, descriptors are grouped by open file
//! description (`kcmp(2)`), and each description is captured once, by the module of its kind, from a duplicate in the
//! supervisor (`pidfd_getfd(2)`). A duplicate shares offset and flags with the program's descriptor: capture reads with
//! `pread`, `tee` and fdinfo, never with anything that moves or consumes.
//!
//! At a restart the keeper opens each description once ([`open_all`]), on a descriptor at or above
//! [`RestoreContext::first_free`]; the processes inherit those, put them in place with `dup3(2)` ([`install`]), do what
//! needs the final numbers or the other processes ([`finish`]), and close the rest ([`close_high`]).
//!
//! To add a kind: a module with `State`, `capture(&Found, &CaptureContext) -> Result<State, Obstacle>` and
//! `restore(&State, &mut Opening) -> Result<OwnedFd, EngineError>`, a variant of [`Kind`], an arm in `capture.rs`
//! (classification) and one in `restore.rs`.

mod capture;
pub mod devices;
pub mod directories;
pub mod epoll;
pub mod eventfd;
pub mod external;
pub mod fdinfo;
pub mod fifos;
pub mod files;
pub mod inet;
pub mod inherited;
pub mod locks;
pub mod memfd;
pub mod mqueues;
pub mod netlink;
pub mod outside;
pub mod owner;
pub mod pidfd;
pub mod pipes;
pub mod ptys;
mod restore;
pub mod signalfd;
pub mod stdio;
pub mod tcp;
pub mod timerfd;
pub mod ttys;
pub mod udp;
pub mod unix_sockets;
mod unsupported;

pub use capture::{Found, Obstacle, capture, refusals, stdio_of};
pub use external::External;
pub use inherited::Inherited;
pub use outside::Outside;
pub use restore::{
    Opened, Opening, close_high, finish, first_free, install, open_all, plan, raise_limit, seal,
};

use crate::contents::{ContentId, ContentLoader, ContentSink};
use crate::error::Context;
use crate::file_policy::{Collector, ReadyFiles};
use crate::restart::ChangedFiles;
use crate::{EngineError, Refusal};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use stasis_sys::Pid;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// An open file description, by its place in the image's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DescriptionId(pub u32);

impl DescriptionId {
    /// The place as an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One open file description (`open(2)`): what one `open` made and `dup` and `fork` share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// What it is open on, with everything that its kind needs.
    pub kind: Kind,
    /// Who gets its signals, where that was set.
    pub owner: Option<owner::State>,
}

/// What a description is open on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file, or anything opened with `O_PATH`.
    File(files::State),
    /// A directory.
    Directory(directories::State),
    /// A memory device such as `/dev/null`.
    Device(devices::State),
    /// An end of a pipe.
    Pipe(pipes::State),
    /// A FIFO, which has a name.
    Fifo(fifos::State),
    /// An event counter.
    EventFd(eventfd::State),
    /// An epoll set.
    Epoll(epoll::State),
    /// A timer.
    TimerFd(timerfd::State),
    /// Signals.
    SignalFd(signalfd::State),
    /// A file in memory.
    MemFd(memfd::State),
    /// A process.
    PidFd(pidfd::State),
    /// One of the job's standard streams.
    Stdio(stdio::State),
    /// The job's terminal, opened once more.
    Terminal(ttys::State),
    /// The controlling side of a pseudo terminal.
    PtyMaster(ptys::Master),
    /// The other side of one of the job's pseudo terminals.
    PtySlave(ptys::Slave),
    /// Something else that the job was started with and that leads outside.
    Inherited(inherited::State),
    /// A Unix socket.
    UnixSocket(unix_sockets::State),
    /// A TCP socket.
    Tcp(tcp::State),
    /// A UDP socket.
    Udp(udp::State),
    /// A netlink socket.
    Netlink(netlink::State),
    /// A POSIX message queue.
    MessageQueue(mqueues::State),
}

impl Kind {
    /// Whether a restart makes something of it that the program has to hear of: a connection is reset.
    fn brings_news(&self) -> bool {
        match self {
            Kind::UnixSocket(state) => state.peer == unix_sockets::Peer::Outside,
            Kind::Tcp(state) => state.brings_news(),
            _ => false,
        }
    }
}

/// One descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number.
    pub fd: RawFd,
    /// What it refers to.
    pub description: DescriptionId,
    /// `FD_CLOEXEC`.
    pub close_on_exec: bool,
}

/// The descriptors of one process, in ascending order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The descriptors.
    pub descriptors: Vec<Descriptor>,
    /// Record locks that belong to the process rather than to a description (`F_SETLK`).
    pub locks: locks::ProcessState,
}

/// A process as the descriptor modules see it: frozen for a checkpoint, running for a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessView {
    /// Its id, as the supervisor sees it.
    pub pid: Pid,
    /// Its id, as the program sees it.
    pub virtual_pid: Pid,
    /// Its name (`comm`).
    pub name: String,
}

/// What capturing needs to know.
pub struct CaptureContext<'a> {
    /// Every living process of the tree, parents before children.
    pub processes: &'a [ProcessView],
    /// The job's own standard input, output and error.
    pub stdio: &'a [Option<Outside>; 3],
    /// What else the job was started with that leads outside.
    pub inherited: &'a [Inherited],
    /// Where contents go; `None` only looks, and the result is good for its refusals and notes alone.
    pub contents: Option<&'a dyn ContentSink>,
    /// Contents of files open for writing are stored up to this many bytes each.
    pub file_content_limit: u64,
    /// Where the files that the tree has open or mapped are gathered. What they need of contents is stored by
    /// [`Collector::store`], once everything is captured.
    pub files: &'a Collector,
}

impl CaptureContext<'_> {
    /// Stores the first `len` bytes of `file`, which should be a description of the caller's own: its offset may move.
    /// When only looking, nothing is stored and the id means nothing.
    ///
    /// # Errors
    /// Those of [`ContentSink::store_file`].
    pub fn store(&self, file: &File, len: u64) -> Result<ContentId, EngineError> {
        match self.contents {
            Some(sink) => sink.store_file(file, len),
            None => Ok(ContentId(u32::MAX)),
        }
    }
}

/// All descriptors of a tree.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// The open file descriptions.
    pub descriptions: Vec<Description>,
    /// Device and inode of each description, in the same order: how a mapped area finds the description that it can be
    /// mapped from. Not for the image: the numbers mean nothing after a reboot.
    pub inodes: Vec<(u64, u64)>,
    /// One table for each process, in the order of [`CaptureContext::processes`].
    pub tables: Vec<Table>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What restoring needs to know.
pub struct RestoreContext<'a> {
    /// Where contents come from.
    pub contents: &'a dyn ContentLoader,
    /// The files that the program had open or mapped, as they must be; `None` when only planning.
    pub files: Option<&'a ReadyFiles>,
    /// Every descriptor number from here on may be used; see [`first_free`].
    pub first_free: RawFd,
    /// The restart command's own standard input, output and error.
    pub stdio: &'a [Option<OwnedFd>; 3],
    /// The program goes on at the end of those that are files.
    pub keep_output: bool,
    /// What the restart command was given beside them, by number.
    pub inherited: &'a [(RawFd, OwnedFd)],
    /// A terminal that becomes the job's controlling terminal.
    pub terminal: Option<&'a OwnedFd>,
    /// `OLD=NEW` prefixes for paths.
    pub path_map: &'a [(String, String)],
    /// The program's clocks at the checkpoint, where the clocks of this process go on from there.
    pub clocks: Option<crate::model::Clocks>,
    /// Mounts that are made are the job's own.
    pub own_mounts: bool,
    /// What to do with files that do not match the saved memory.
    pub changed_files: ChangedFiles,
    /// What to do with connections that led out of the job.
    pub external: &'a External,
}

/// What a restart is going to do with files and the like; nothing is touched in making it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Sentences: what will be opened, truncated, moved aside, made.
    pub actions: Vec<String>,
    /// What stands in the way.
    pub refusals: Vec<Refusal>,
}

/// `path` with the first prefix of `map` that fits replaced.
fn map_path(path: &Path, map: &[(String, String)]) -> PathBuf {
    map.iter()
        .find_map(|(old, new)| Some(Path::new(new).join(path.strip_prefix(old).ok()?)))
        .unwrap_or_else(|| path.to_owned())
}

/// Opens what a descriptor of this process is on once more: the same inode, a description of its own.
fn reopen(fd: BorrowedFd, flags: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(flags) | OFlags::CLOEXEC | OFlags::NOCTTY;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, flags - OFlags::DIRECT, Mode::empty())
}

/// Gives a description the status flags that `F_SETFL` can set, where they differ.
fn set_status(fd: BorrowedFd, flags: u32) -> Result<(), EngineError> {
    let settable = OFlags::APPEND | OFlags::NONBLOCK | OFlags::DIRECT | OFlags::NOATIME;
    let what = || "setting a descriptor's flags".to_owned();
    let wanted = OFlags::from_bits_retain(flags) & settable;
    let have = rustix::fs::fcntl_getfl(fd).context(what)?;
    if have & settable == wanted {
        return Ok(());
    }
    rustix::fs::fcntl_setfl(fd, (have - settable) | wanted).context(what)
}
