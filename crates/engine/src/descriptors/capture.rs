//! Looking at every descriptor of every process, and sorting them into open file descriptions.
//!
//! Descriptors are first grouped by what `/proc` tells (inode, mount, flags, offset, link text), which never separates
//! two of one description while the processes stand still. Within a group `kcmp(2)` decides; its order is total, so a
//! group of n is sorted in n log n calls.

use super::fdinfo::FdInfo;
use super::{
    CaptureContext, Captured, Description, DescriptionId, Descriptor, Kind, Outside, ProcessView,
    Table, devices, directories, epoll, eventfd, fifos, files, inet, inherited, locks, memfd,
    mqueues, netlink, owner, pidfd, pipes, ptys, signalfd, stdio, tcp, timerfd, ttys, udp,
    unix_sockets, unsupported,
};
use crate::error::Context;
use crate::{EngineError, Refusal};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use stasis_sys::{Pid, kcmp};
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// One open file description as it was found, seen through one of the descriptors that refer to it.
pub struct Found<'a> {
    /// A process that holds it.
    pub process: &'a ProcessView,
    /// Its number there.
    pub fd: RawFd,
    /// What `/proc/PID/fd/FD` reads as.
    pub link: OsString,
    /// Its fdinfo.
    pub info: FdInfo,
    /// `stat(2)` of what it is open on.
    pub stat: rustix::fs::Stat,
    /// The first description on the same inode that is none of the job's standard streams, where that is another one
    /// before this in the list.
    pub earlier: Option<DescriptionId>,
    /// Every descriptor that refers to it: place of the process in [`CaptureContext::processes`], and number.
    pub holders: Vec<(usize, RawFd)>,
}

/// Why a description was not captured.
#[derive(Debug)]
pub enum Obstacle {
    /// It cannot be saved; goes into the list of all that cannot.
    Refused(Refusal),
    /// The same, but it passes by itself, soon: the program runs on for a moment, and is saved then.
    Passing(Refusal),
    /// Looking at it failed.
    Error(EngineError),
}

impl From<EngineError> for Obstacle {
    fn from(error: EngineError) -> Self {
        Obstacle::Error(error)
    }
}

impl Found<'_> {
    /// A refusal that names this description.
    #[must_use]
    pub fn refuse(&self, reason: impl Into<String>, hint: impl Into<String>) -> Obstacle {
        Obstacle::Refused(self.refusal(reason.into(), hint.into()))
    }

    /// A refusal that names this description, of something that passes by itself.
    #[must_use]
    pub fn passing(&self, reason: &str, hint: &str) -> Obstacle {
        Obstacle::Passing(self.refusal(reason.into(), hint.into()))
    }

    fn refusal(&self, reason: String, hint: String) -> Refusal {
        Refusal {
            pid: Some(self.process.virtual_pid),
            process: self.process.name.clone(),
            object: self.to_string(),
            reason,
            hint,
        }
    }

    /// Major and minor number of the device that it is open on.
    #[must_use]
    pub fn device_numbers(&self) -> (u32, u32) {
        (
            rustix::fs::major(self.stat.st_rdev),
            rustix::fs::minor(self.stat.st_rdev),
        )
    }

    /// Its device and inode.
    #[must_use]
    pub fn inode(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// A duplicate in this process (`pidfd_getfd(2)`): the same description, so that offset and flags are shared.
    ///
    /// # Errors
    /// When the kernel does not allow it, or the descriptor is gone.
    pub fn duplicate(&self) -> Result<OwnedFd, EngineError> {
        let what = || format!("looking at {self} of process {}", self.process.virtual_pid);
        duplicate(self.process, self.fd).context(what)
    }

    /// Where `/proc` shows it: opening that makes a new description on the same inode.
    #[must_use]
    pub fn proc_path(&self) -> String {
        format!("/proc/{}/fd/{}", self.process.pid, self.fd)
    }

    /// Whether the link text starts with `prefix`.
    #[must_use]
    pub fn link_starts_with(&self, prefix: &str) -> bool {
        self.link.as_bytes().starts_with(prefix.as_bytes())
    }
}

impl std::fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.holders.is_empty() {
            write!(f, "a descriptor on its way ({})", self.link.display())
        } else {
            write!(f, "descriptor {} ({})", self.fd, self.link.display())
        }
    }
}

/// A duplicate of a descriptor of another process.
pub(super) fn duplicate(process: &ProcessView, fd: RawFd) -> rustix::io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(process.pid.0).ok_or(Errno::SRCH)?;
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        // The process goes by the id of a living thread, its first one having ended.
        Err(Errno::NOENT | Errno::INVAL) => {
            rustix::process::pidfd_open(pid, PidfdFlags::from_bits_retain(PIDFD_THREAD))
        }
        opened => opened,
    };
    rustix::process::pidfd_getfd(pidfd?, fd, PidfdGetfdFlags::empty())
}

/// `PIDFD_THREAD` (Linux 6.9 and newer).
const PIDFD_THREAD: u32 = 0o200;

/// Captures all descriptors of the tree.
///
/// # Errors
/// [`EngineError::Refused`] with everything that cannot be saved.
pub fn capture(ctx: &CaptureContext) -> Result<Captured, EngineError> {
    let carrier = unix_sockets::carrier(ctx);
    let mut sighted = survey(ctx)?;
    let sockets = unix_sockets::Sockets::look(ctx, &carrier, &mut sighted)?;
    let Sighted {
        mut founds, tables, ..
    } = sighted;
    mark_earlier(ctx, &mut founds);
    let connections = tcp::Connections::look(ctx, &founds)?;
    let whole = Survey::new(ctx, &founds, &tables, sockets, connections);
    let mut captured = Captured::default();
    let (mut refused, mut passing) = (Vec::new(), Vec::new());
    for (index, found) in founds.iter().enumerate() {
        match describe(&whole, index) {
            Ok(description) => captured.descriptions.push(description),
            Err(Obstacle::Refused(refusal)) => refused.push(refusal),
            Err(Obstacle::Passing(refusal)) => passing.push(refusal),
            Err(Obstacle::Error(error)) if ctx.contents.is_none() && vanished(&error) => {}
            Err(Obstacle::Error(EngineError::System { source, .. }))
                if ctx.contents.is_none() && source.kind() == io::ErrorKind::PermissionDenied =>
            {
                let reason = format!("it may not be looked at: {source}");
                let hint = "look at a program of your own that was started by stasis";
                if let Obstacle::Refused(refusal) = found.refuse(reason, hint) {
                    refused.push(refusal);
                }
            }
            Err(Obstacle::Error(error)) => return Err(error),
        }
    }
    drop(whole);
    captured.tables = tables;
    captured.inodes = founds.iter().map(Found::inode).collect();
    match locks::capture(ctx, &mut captured) {
        Err(EngineError::Refused(more)) => refused.extend(more),
        other => other?,
    }
    if refused.is_empty() && passing.is_empty() {
        refused = unix_sockets::refuse_late(&founds, &captured.descriptions);
    }
    match (refused.is_empty(), passing.is_empty()) {
        (true, true) => {
            captured.notes = notes(&captured.descriptions);
            for more in [
                unix_sockets::notes(&founds, &captured.descriptions),
                tcp::notes(&founds, &captured.descriptions),
            ] {
                captured.notes.extend(more);
            }
            Ok(captured)
        }
        (true, false) => Err(EngineError::Passing(passing)),
        (false, _) => {
            refused.append(&mut passing);
            Err(EngineError::Refused(refused))
        }
    }
}

/// What [`capture`] would refuse, and what the user should know; nothing is stored, and the processes may run meanwhile.
///
/// # Errors
/// When a process cannot be looked at.
pub fn refusals(ctx: &CaptureContext) -> Result<(Vec<Refusal>, Vec<String>), EngineError> {
    let look = CaptureContext {
        contents: None,
        ..*ctx
    };
    match capture(&look) {
        Ok(captured) => Ok((Vec::new(), captured.notes)),
        Err(EngineError::Passing(_)) => Ok((Vec::new(), Vec::new())),
        Err(EngineError::Refused(list)) => Ok((list, Vec::new())),
        Err(error) => Err(error),
    }
}

/// A process's own standard input, output and error: for a look at a program that was not started by
/// stasis, they stand for the job's streams. `None` for those that are closed or may not be duplicated.
#[must_use]
pub fn stdio_of(pid: Pid) -> [Option<Outside>; 3] {
    [0, 1, 2].map(|fd| Outside::in_process(pid, fd).ok())
}

/// What a running process does: it closes descriptors and ends.
fn vanished(error: &EngineError) -> bool {
    match error {
        EngineError::Gone => true,
        EngineError::System { source, .. } => is_gone(source),
        _ => false,
    }
}

fn is_gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::SRCH, Errno::BADF]
        .iter()
        .any(|gone| error.raw_os_error() == Some(gone.raw_os_error()))
}

/// All descriptions of a tree, for the modules whose kind depends on others (pipes, epoll sets, terminals).
pub(super) struct Survey<'a> {
    pub ctx: &'a CaptureContext<'a>,
    pub founds: &'a [Found<'a>],
    pub tables: &'a [Table],
    pub terminals: Vec<u32>,
    /// Which pipes lead outside, as far as that was looked at: a second look could see another answer.
    pub pipes: RefCell<HashMap<(u64, u64), bool>>,
    pub sockets: unix_sockets::Sockets,
    pub connections: tcp::Connections,
    /// What options of network sockets are compared with.
    pub scope: RefCell<inet::Scope>,
    pub ptys: ptys::Pairs,
    by_inode: HashMap<(u64, u64), Vec<usize>>,
}

impl<'a> Survey<'a> {
    fn new(
        ctx: &'a CaptureContext<'a>,
        founds: &'a [Found<'a>],
        tables: &'a [Table],
        sockets: unix_sockets::Sockets,
        connections: tcp::Connections,
    ) -> Self {
        let mut by_inode: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
        for (index, found) in founds.iter().enumerate() {
            by_inode.entry(found.inode()).or_default().push(index);
        }
        Survey {
            ctx,
            founds,
            tables,
            terminals: ttys::of_job(ctx),
            pipes: RefCell::default(),
            sockets,
            connections,
            scope: RefCell::default(),
            ptys: ptys::Pairs::look(founds),
            by_inode,
        }
    }

    /// The places of all descriptions on one inode.
    pub fn on_inode(&self, inode: (u64, u64)) -> &[usize] {
        self.by_inode.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// What a descriptor of a process refers to.
    pub fn lookup(&self, process: usize, fd: RawFd) -> Option<DescriptionId> {
        self.tables.get(process)?.get(fd).map(|d| d.description)
    }
}

/// Finds the module for a description and lets it capture.
fn describe(whole: &Survey, index: usize) -> Result<Description, Obstacle> {
    let (ctx, found) = (whole.ctx, &whole.founds[index]);
    let kind = classify(whole, index)?;
    let owner = owner::capture(found, &kind, ctx)?;
    Ok(Description { kind, owner })
}

fn classify(whole: &Survey, index: usize) -> Result<Kind, Obstacle> {
    const O_PATH: u32 = 0o10_000_000;
    let (ctx, found) = (whole.ctx, &whole.founds[index]);
    if found.info.flags & O_PATH != 0 {
        return Ok(Kind::File(files::capture(found, ctx)?));
    }
    if let Some(state) = stdio::capture(whole, found)? {
        return Ok(Kind::Stdio(state));
    }
    if let Some(state) = inherited::capture(whole, found)? {
        return Ok(Kind::Inherited(state));
    }
    let file_type = FileType::from_raw_mode(found.stat.st_mode);
    let anonymous = found.link.as_bytes().strip_prefix(b"anon_inode:");
    Ok(match (anonymous, file_type) {
        (Some(b"[eventfd]"), _) => Kind::EventFd(eventfd::capture(found)?),
        (Some(b"[eventpoll]"), _) => Kind::Epoll(epoll::capture(whole, found)?),
        (Some(b"[timerfd]"), _) => Kind::TimerFd(timerfd::capture(found)?),
        (Some(b"[signalfd]"), _) => Kind::SignalFd(signalfd::capture(found)?),
        (Some(b"[pidfd]"), _) => Kind::PidFd(pidfd::capture(found, ctx)?),
        (Some(_), _) => return Err(unsupported::refuse(found)),
        (None, FileType::Fifo) if pipes::is_pipe(found) => {
            Kind::Pipe(pipes::capture(whole, found)?)
        }
        (None, FileType::Fifo) => Kind::Fifo(fifos::capture(whole, found)?),
        (None, FileType::Directory) => Kind::Directory(directories::capture(found, ctx)?),
        (None, FileType::CharacterDevice) if ptys::is_master(found) => {
            Kind::PtyMaster(ptys::capture_master(whole, index)?)
        }
        (None, FileType::CharacterDevice) if ttys::is_terminal(found) => {
            match ptys::capture_slave(whole, found)? {
                Some(state) => Kind::PtySlave(state),
                None => Kind::Terminal(ttys::capture(whole, found)?),
            }
        }
        (None, FileType::CharacterDevice) => Kind::Device(devices::capture(found)?),
        (None, FileType::RegularFile) if memfd::is_memfd(found) => {
            Kind::MemFd(memfd::capture(found, ctx)?)
        }
        (None, FileType::RegularFile) => match mqueues::capture(whole, found)? {
            Some(state) => Kind::MessageQueue(state),
            None => match unsupported::special_file(found) {
                Some(obstacle) => return Err(obstacle),
                None => Kind::File(files::capture(found, ctx)?),
            },
        },
        (None, FileType::Socket) => return socket(whole, found),
        (None, _) => return Err(unsupported::refuse(found)),
    })
}

fn socket(whole: &Survey, found: &Found) -> Result<Kind, Obstacle> {
    if let Some(state) = unix_sockets::capture(whole, found)? {
        return Ok(Kind::UnixSocket(state));
    }
    if let Some(state) = tcp::capture(whole, found)? {
        return Ok(Kind::Tcp(state));
    }
    if let Some(state) = udp::capture(whole, found)? {
        return Ok(Kind::Udp(state));
    }
    if let Some(state) = netlink::capture(whole, found)? {
        return Ok(Kind::Netlink(state));
    }
    Err(unsupported::refuse(found))
}

/// What the user should know about what was captured.
fn notes(descriptions: &[Description]) -> Vec<String> {
    let plain = |d: &&Description| matches!(&d.kind, Kind::EventFd(e) if e.semaphore.is_none());
    let unknown = descriptions.iter().filter(plain).count();
    let unknown = (unknown > 0).then(|| {
        format!(
            "this kernel does not tell whether an eventfd counts as a semaphore (EFD_SEMAPHORE): {unknown} taken as plain"
        )
    });
    unknown
        .into_iter()
        .chain(stdio::note(descriptions))
        .chain(inherited::note(descriptions))
        .collect()
}

/// What all descriptors of one description have in common, as far as `/proc` shows it.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    inode: (u64, u64),
    flags: u32,
    position: u64,
    mount: u64,
    link: OsString,
}

/// Descriptions as they are found.
#[derive(Default)]
pub(super) struct Sighted<'a> {
    /// Each once.
    pub founds: Vec<Found<'a>>,
    groups: HashMap<Key, Vec<usize>>,
    tables: Vec<Table>,
}

impl<'a> Sighted<'a> {
    /// Looks at a descriptor: the place of its description, which is a new one or one found before, and whether it is
    /// close-on-exec. `None` when it is gone.
    pub fn add(
        &mut self,
        process: &'a ProcessView,
        fd: RawFd,
    ) -> Result<Option<(usize, bool)>, EngineError> {
        let Some((key, found)) = look(process, fd)? else {
            return Ok(None);
        };
        let close_on_exec = found.info.close_on_exec;
        let group = self.groups.entry(key).or_default();
        let index = match search(group, &self.founds, (process.pid, fd))? {
            None => return Ok(None),
            Some(Ok(at)) => group[at],
            Some(Err(at)) => {
                group.insert(at, self.founds.len());
                self.founds.push(found);
                self.founds.len() - 1
            }
        };
        Ok(Some((index, close_on_exec)))
    }
}

/// Finds all descriptions that processes hold, and who holds them.
fn survey<'a>(ctx: &CaptureContext<'a>) -> Result<Sighted<'a>, EngineError> {
    let mut sighted = Sighted::default();
    for (place, process) in ctx.processes.iter().enumerate() {
        let mut table = Table::default();
        for fd in numbers(process.pid)? {
            let Some((index, close_on_exec)) = sighted.add(process, fd)? else {
                continue;
            };
            sighted.founds[index].holders.push((place, fd));
            table.descriptors.push(Descriptor {
                fd,
                description: DescriptionId(index as u32),
                close_on_exec,
            });
        }
        sighted.tables.push(table);
    }
    Ok(sighted)
}

/// Tells each description which one was before it on the same inode.
fn mark_earlier(ctx: &CaptureContext, founds: &mut [Found]) {
    // What stands in for a standard stream after a restart need not be on that inode any more.
    let mut first: HashMap<(u64, u64), DescriptionId> = HashMap::new();
    for (index, found) in founds.iter_mut().enumerate() {
        if !stdio::streams(ctx.stdio, found).is_empty() {
            continue;
        }
        let id = DescriptionId(index as u32);
        let on_inode = *first.entry(found.inode()).or_insert(id);
        found.earlier = (on_inode != id).then_some(on_inode);
    }
}

/// The open descriptors of a process, ascending; none when it has ended.
fn numbers(pid: Pid) -> Result<Vec<RawFd>, EngineError> {
    let path = format!("/proc/{pid}/fd");
    let mut numbers = Vec::new();
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(numbers),
        Err(error) => return Err(error).context(|| format!("listing {path}")),
    };
    for entry in entries {
        match entry {
            Ok(entry) => numbers.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<RawFd>().ok()),
            ),
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(error).context(|| format!("listing {path}")),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Looks at one descriptor; `None` when it is gone.
fn look(process: &ProcessView, fd: RawFd) -> Result<Option<(Key, Found<'_>)>, EngineError> {
    let path = format!("/proc/{}/fd/{fd}", process.pid);
    let seen = (|| -> io::Result<_> {
        let link = fs::read_link(&path)?.into_os_string();
        let info = FdInfo::read(process.pid, fd)?;
        Ok((link, info, rustix::fs::stat(path.as_str())?))
    })();
    let (link, info, stat) = match seen {
        Ok(seen) => seen,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error).context(|| format!("looking at {path}")),
    };
    let key = Key {
        inode: (stat.st_dev, stat.st_ino),
        flags: info.flags,
        position: info.position,
        mount: info.mount,
        link: link.clone(),
    };
    let found = Found {
        process,
        fd,
        link,
        info,
        stat,
        earlier: None,
        holders: Vec::new(),
    };
    Ok(Some((key, found)))
}

/// Binary search for the description of `target` in a group that is sorted by kcmp's order: where it is, or where it
/// belongs. `None` when `target` is gone. (A library sort would be allowed to panic when a running process changes the
/// order under it.)
fn search(
    group: &[usize],
    founds: &[Found],
    target: (Pid, RawFd),
) -> Result<Option<Result<usize, usize>>, EngineError> {
    let (mut low, mut high) = (0, group.len());
    while low < high {
        let middle = low.midpoint(high);
        let there = &founds[group[middle]];
        match kcmp::files((there.process.pid, there.fd), target) {
            Ok(Ordering::Equal) => return Ok(Some(Ok(middle))),
            Ok(Ordering::Less) => low = middle + 1,
            Ok(Ordering::Greater) => high = middle,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => {
                return Err(error).context(|| {
                    format!("comparing descriptor {} of process {}", target.1, target.0)
                });
            }
        }
    }
    Ok(Some(Err(low)))
}

/// Whether a descriptor of this process is the description `found`.
pub(super) fn is_same(own: &OwnedFd, found: &Found) -> bool {
    let own = (Pid::current(), own.as_raw_fd());
    matches!(
        kcmp::files(own, (found.process.pid, found.fd)),
        Ok(Ordering::Equal)
    )
}

impl Table {
    /// The descriptor of that number.
    #[must_use]
    pub fn get(&self, fd: RawFd) -> Option<&Descriptor> {
        let at = self.descriptors.binary_search_by_key(&fd, |d| d.fd).ok()?;
        self.descriptors.get(at)
    }
}

/// Strips what the kernel appends to the path of something deleted.
pub(super) fn without_deleted(link: &OsStr) -> (&OsStr, bool) {
    match link.as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => (OsStr::from_bytes(path), true),
        None => (link, false),
    }
}
