//! POSIX message queues (`mq_overview(7)`).
//!
//! Saved: name, limits, owner, mode, the messages with their priorities in their order, and of each description whether it reads or writes,
//! and whether it waits. Queues whose name is gone come back without one. Threads that wait in mq_send(3) or mq_receive(3) wait again.
//!
//! Queues that no process has open: in an ipc namespace of the job's own, all are the job's, and are saved. On the host nobody can tell who has made
//! one; where `/dev/mqueue` shows them, those of the same user that were made or used since the job began are saved. One of these is left out
//! at a restart where its name is in use.
//!
//! Refused by name: a queue that is to notify a process (`mq_notify(3)`), as the kernel does not show what value the notice would have; one with
//! messages that a process outside has open as well, or that its owner may not read and write.
//!
//! Messages cannot be looked at where they are. They are taken out and put back, by a process that does so whoever is killed
//! meanwhile ([`stasis_sys::mqueue::look`]), while all that use the queue stand still. A program that waits for changes (epoll(7), edge-triggered)
//! may be woken once for nothing.
//!
//! At a restart queues are made under their names in an ipc namespace of the job's own where there is one. The limits of that are the kernel's
//! defaults: where a queue is larger, and nothing else needs such a namespace, names are the host's. There a name that is in use is a
//! problem that is told before anything is started, unless it is the very queue that the program has left behind: same owner, limits
//! and inode since the host was started, and nobody has it open.
//!
//! Rests on: reading a queue as a file shows who is to be notified (`mqueue_read_file`, `ipc/mqueue.c`).

use super::capture::{Found, Obstacle, Survey, without_deleted};
use super::restore::Opening;
use super::{Description, DescriptionId, Kind, reopen};
use crate::error::Context;
use crate::restart::refusal;
use crate::{EngineError, Refusal};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, fstat, statfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use stasis_sys::mqueue::{self, Attributes};
use stasis_sys::{Pid, procfs};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

/// A saved description of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Status flags.
    pub flags: u32,
    /// The queue; `None` for that of an earlier description.
    pub queue: Option<Queue>,
    /// The first description of the same queue.
    pub first: Option<DescriptionId>,
}

/// A queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Its name, without the slash.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// The name is gone.
    pub unlinked: bool,
    /// Most messages.
    pub max_messages: i64,
    /// Most bytes of one.
    pub max_size: i64,
    /// Who may do what.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// Inode, and the run of the kernel in which it means something.
    pub inode: (u64, String),
    /// Priority and text, in the order in which they are received.
    pub messages: Vec<(u32, ByteBuf)>,
}

const MAGIC: u64 = 0x1980_0202;
const ACCESS: u32 = libc::O_ACCMODE as u32;
const CLOSE: &str = "let the program close it before the checkpoint";

/// Queues that no process has open, and no description of `known` (their inodes) is of: all in the directory `shown`, or those of this user
/// that have been used since `began`, in seconds since 1970.
#[must_use]
pub fn unopened(shown: &str, known: &[u64], began: Option<i64>) -> Vec<Queue> {
    let shows = statfs(shown).is_ok_and(|fs| fs.f_type as u64 == MAGIC);
    let names = shows.then(|| fs::read_dir(shown).ok()).flatten();
    let names = names.into_iter().flatten().flatten();
    let user = rustix::process::geteuid().as_raw();
    let mut queues = Vec::new();
    for entry in names {
        let Ok(about) = entry.metadata() else {
            continue;
        };
        let other = known.contains(&about.ino())
            || about.uid() != user
            || began.is_some_and(|began| about.ctime() < began);
        if other || (began.is_some() && holder((about.dev(), about.ino()), &[]).is_some()) {
            continue;
        }
        queues.extend(closed(entry.file_name().as_bytes()).ok());
    }
    queues
}

/// A queue that nobody has open, by its name.
fn closed(name: &[u8]) -> io::Result<Queue> {
    let queue = open(&CString::new(name).map_err(io::Error::other)?)?;
    let (stat, attributes) = (fstat(&queue)?, mqueue::attributes(queue.as_fd())?);
    let messages = mqueue::look(queue.as_fd(), &attributes)?.into_iter();
    Ok(Queue {
        name: name.to_vec(),
        unlinked: false,
        max_messages: attributes.max_messages,
        max_size: attributes.max_size,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        inode: (stat.st_ino, crate::ipc::boot()),
        messages: messages
            .map(|(priority, text)| (priority, ByteBuf::from(text)))
            .collect(),
    })
}

/// Makes a queue that nobody has open. One whose name is in use, or that is not allowed here, is left out.
///
/// # Errors
/// When its messages cannot be sent.
pub fn make_closed(queue: &Queue, notes: &mut Vec<String>) -> Result<(), EngineError> {
    let shown = String::from_utf8_lossy(&queue.name);
    let what = || format!("making message queue /{shown}");
    let name = CString::new(queue.name.clone())
        .map_err(io::Error::other)
        .context(what)?;
    let made = mqueue::make(&name, &Attributes::new(queue.max_messages, queue.max_size));
    let fd = match made {
        Ok(fd) => fd,
        Err(error) => {
            notes.push(format!(
                "message queue /{shown}, which no process has open, is left as it is: {error}"
            ));
            return Ok(());
        }
    };
    for (priority, text) in &queue.messages {
        mqueue::send(fd.as_fd(), *priority, text).context(what)?;
    }
    fchmod(&fd, Mode::from_raw_mode(queue.mode)).context(what)
}

/// Captures one; `None` for another kind of file.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<Option<State>, Obstacle> {
    let is_queue = statfs(found.proc_path().as_str()).is_ok_and(|fs| fs.f_type as u64 == MAGIC);
    if !is_queue {
        return Ok(None);
    }
    let state = |queue| State {
        flags: found.info.flags,
        queue,
        first: found.earlier,
    };
    if found.earlier.is_some() {
        return Ok(Some(state(None)));
    }
    let what = || format!("looking at {found}");
    let duplicate = found.duplicate()?;
    let attributes = mqueue::attributes(duplicate.as_fd()).context(what)?;
    let both =
        reopen(duplicate.as_fd(), (libc::O_RDWR | libc::O_NONBLOCK) as u32).map_err(|error| {
            let reason = format!("is a message queue that cannot be looked at: {error}");
            found.refuse(reason, "give its owner the right to read and write it")
        })?;
    if let Some(process) = notified(both.as_fd()).context(what)? {
        return Err(found.refuse(
            format!("is a message queue that is to notify process {process} (mq_notify), with a value that the kernel does not show"),
            "let the program end the registration (mq_notify without a sigevent) before the checkpoint",
        ));
    }
    let messages = if attributes.messages == 0 || whole.ctx.contents.is_none() {
        Vec::new()
    } else {
        messages(whole, found, both.as_fd(), &attributes)?
    };
    let (link, unlinked) = without_deleted(&found.link);
    let name = link
        .as_bytes()
        .strip_prefix(b"/")
        .unwrap_or(link.as_bytes());
    Ok(Some(state(Some(Queue {
        name: name.to_vec(),
        unlinked,
        max_messages: attributes.max_messages,
        max_size: attributes.max_size,
        mode: found.stat.st_mode & 0o7777,
        uid: found.stat.st_uid,
        gid: found.stat.st_gid,
        inode: (found.stat.st_ino, crate::ipc::boot()),
        messages,
    }))))
}

/// The process that is to be notified.
fn notified(queue: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    let mut text = [0; 256];
    let length = rustix::io::pread(queue, &mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let mut words = text.split_ascii_whitespace();
    let pid = words.find_map(|word| word.strip_prefix("NOTIFY_PID:")?.parse().ok());
    Ok(pid.filter(|pid| *pid != 0).map(Pid))
}

fn messages(
    whole: &Survey,
    found: &Found,
    queue: BorrowedFd<'_>,
    attributes: &Attributes,
) -> Result<Vec<(u32, ByteBuf)>, Obstacle> {
    let ours: Vec<Pid> = whole.ctx.processes.iter().map(|p| p.pid).collect();
    if let Some(other) = holder(found.inode(), &ours) {
        return Err(found.refuse(
            format!("is a message queue with messages, which process {other} outside of the job has open, too"),
            "end that process, run it in the job as well, or let the program empty the queue",
        ));
    }
    let messages = mqueue::look(queue, attributes).map_err(|error| {
        let reason = format!("is a message queue that somebody else uses as well: {error}");
        found.refuse(reason, CLOSE)
    })?;
    let messages = messages.into_iter();
    Ok(messages
        .map(|(priority, text)| (priority, ByteBuf::from(text)))
        .collect())
}

/// Another process of this user than `ours` and this one that has a queue open, by its device and inode.
fn holder(inode: (u64, u64), ours: &[Pid]) -> Option<Pid> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid));
    pids.find(|pid| {
        let others = *pid != Pid::current() && !ours.contains(pid);
        let mut open = (fs::read_dir(format!("/proc/{pid}/fd")).into_iter())
            .flatten()
            .flatten();
        others
            && open.any(|entry| {
                fs::metadata(entry.path()).is_ok_and(|there| (there.dev(), there.ino()) == inode)
            })
    })
}

/// The queues of an image, by their first descriptions.
fn queues(descriptions: &[Description]) -> impl Iterator<Item = (DescriptionId, &Queue)> {
    let all = descriptions.iter().enumerate();
    all.filter_map(|(n, description)| match &description.kind {
        Kind::MessageQueue(state) => Some((DescriptionId(n as u32), state.queue.as_ref()?)),
        _ => None,
    })
}

/// What a new ipc namespace allows, whatever the host does (`DFLT_MSGMAX`, `DFLT_MSGSIZEMAX`, `linux/ipc_namespace.h`).
const DEFAULT_LIMITS: (i64, i64) = (10, 8192);

fn fits(queue: &Queue, limits: (i64, i64)) -> bool {
    queue.max_messages <= limits.0 && queue.max_size <= limits.1
}

/// Whether there are queues, and all of them would fit into a new ipc namespace.
#[must_use]
pub fn want_namespace(descriptions: &[Description]) -> bool {
    let mut all = queues(descriptions).peekable();
    all.peek().is_some() && all.all(|(_, queue)| fits(queue, DEFAULT_LIMITS))
}

/// What stands in the way of making the queues again, in an ipc namespace of the job's own (`apart`) or in the host's.
#[must_use]
pub fn problems(descriptions: &[Description], apart: bool) -> Vec<Refusal> {
    let limit = |name: &str| -> i64 {
        let text = procfs::read_to_string(format!("/proc/sys/fs/mqueue/{name}"));
        text.ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    };
    let limits = match apart {
        true => DEFAULT_LIMITS,
        false if rustix::process::geteuid().is_root() => (i64::MAX, i64::MAX),
        false => (limit("msg_max"), limit("msgsize_max")),
    };
    let mut problems = Vec::new();
    for (_, queue) in queues(descriptions) {
        let object = format!("message queue /{}", String::from_utf8_lossy(&queue.name));
        let mut problem =
            |reason: String, hint: &str| problems.push(refusal(&object, reason, hint));
        if !fits(queue, limits) {
            let (messages, size) = limits;
            problem(
                format!(
                    "it holds {} messages of {} bytes, and {messages} of {size} are allowed",
                    queue.max_messages, queue.max_size
                ),
                if apart {
                    "restart with --strategy burn, as the job has System V objects as well"
                } else {
                    "have the limits raised (sysctl fs.mqueue.msg_max and fs.mqueue.msgsize_max)"
                },
            );
        }
        if apart || queue.unlinked {
            continue;
        }
        match CString::new(queue.name.clone())
            .map_err(io::Error::other)
            .and_then(|name| open(&name))
        {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            Ok(there) if is_leftover(queue, there.as_fd()) => {}
            found => {
                let whose = found
                    .err()
                    .map_or(String::new(), |error| format!(" ({error})"));
                problem(
                    format!("its name is in use by another queue{whose}"),
                    "remove that one if nothing needs it (mq_unlink), or restart with --strategy namespaces where the host allows it",
                );
            }
        }
    }
    problems
}

fn open(name: &CString) -> io::Result<OwnedFd> {
    mqueue::open(name, libc::O_RDWR | libc::O_NONBLOCK)
}

/// Whether it is what the program has left behind.
fn is_leftover(queue: &Queue, there: BorrowedFd<'_>) -> bool {
    let (Ok(stat), Ok(attributes)) = (fstat(there), mqueue::attributes(there)) else {
        return false;
    };
    (stat.st_ino, crate::ipc::boot()) == queue.inode
        && stat.st_uid == queue.uid
        && (attributes.max_messages, attributes.max_size) == (queue.max_messages, queue.max_size)
        && holder((stat.st_dev, stat.st_ino), &[]).is_none()
}

/// The queues of a restart that is under way.
#[derive(Default)]
pub(super) struct Making(HashMap<DescriptionId, (CString, OwnedFd)>);

/// Makes all queues, with their messages.
pub(super) fn make_all(
    descriptions: &[Description],
    opening: &Opening,
) -> Result<Making, EngineError> {
    let mut making = Making::default();
    for (id, queue) in queues(descriptions) {
        let what = || {
            format!(
                "making message queue /{}",
                String::from_utf8_lossy(&queue.name)
            )
        };
        let name = if queue.unlinked {
            CString::new(format!("stasis.{}.{}", Pid::current(), id.0))
        } else {
            CString::new(queue.name.clone())
        };
        let name = name.map_err(io::Error::other).context(what)?;
        let attributes = Attributes::new(queue.max_messages, queue.max_size);
        let fd = match mqueue::make(&name, &attributes) {
            Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {
                let there = open(&name).context(what)?;
                if !is_leftover(queue, there.as_fd()) {
                    return Err(error).context(what);
                }
                empty(there.as_fd(), &attributes).context(what)?;
                fchmod(&there, Mode::from_raw_mode(0o600)).context(what)?;
                there
            }
            Err(error) if error.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
                return Err(EngineError::Failed(format!(
                    "{}: the limit of bytes in message queues does not allow it: raise it (ulimit -q), or remove queues that nothing needs",
                    what()
                )));
            }
            made => made.context(what)?,
        };
        for (priority, text) in &queue.messages {
            mqueue::send(fd.as_fd(), *priority, text).context(what)?;
        }
        making.0.insert(id, (name, opening.place(fd)?));
    }
    Ok(making)
}

fn empty(queue: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(attributes.max_size).map_err(io::Error::other)?];
    loop {
        match mqueue::receive(queue, &mut buffer) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Opens a queue that was made before.
pub(super) fn restore(
    state: &State,
    id: DescriptionId,
    opening: &Opening,
) -> Result<OwnedFd, EngineError> {
    let (name, _) = opening
        .queues
        .0
        .get(&state.first.unwrap_or(id))
        .ok_or_else(|| EngineError::Failed("the image does not hold a message queue".into()))?;
    let flags = state.flags & (ACCESS | libc::O_NONBLOCK as u32);
    mqueue::open(name, flags as i32).context(|| "opening a message queue".into())
}

impl Making {
    /// When all are open: what would have been in the way of that.
    pub fn finish(self, descriptions: &[Description]) -> Result<Vec<String>, EngineError> {
        let mut notes = Vec::new();
        for (id, queue) in queues(descriptions) {
            let Some((name, fd)) = self.0.get(&id) else {
                continue;
            };
            let what = || {
                format!(
                    "making message queue /{}",
                    String::from_utf8_lossy(&queue.name)
                )
            };
            let now = fstat(fd).context(what)?;
            if (now.st_uid, now.st_gid) != (queue.uid, queue.gid) {
                let owner = (Uid::from_raw(queue.uid), Gid::from_raw(queue.gid));
                if fchown(fd, Some(owner.0), Some(owner.1)).is_err() {
                    notes.push(format!(
                        "{} has another owner",
                        what().replacen("making ", "", 1)
                    ));
                }
            }
            fchmod(fd, Mode::from_raw_mode(queue.mode)).context(what)?;
            if queue.unlinked {
                mqueue::unlink(name).context(what)?;
            }
        }
        Ok(notes)
    }
}
