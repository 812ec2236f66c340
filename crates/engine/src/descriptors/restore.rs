//! Opening every description again, and giving each process its descriptors.

use super::pipes::Spares;
use super::{
    Description, DescriptionId, Descriptor, Kind, Plan, ProcessView, RestoreContext, Table,
    devices, directories, epoll, eventfd, fifos, files, inherited, locks, memfd, mqueues, netlink,
    owner, pidfd, pipes, ptys, signalfd, stdio, tcp, timerfd, ttys, udp, unix_sockets,
};
use crate::error::Context;
use crate::{EngineError, Refusal};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A number above every descriptor of every process, and above every one that an epoll set watches, at least 3.
#[must_use]
pub fn first_free(tables: &[Table], descriptions: &[Description]) -> RawFd {
    let held = tables
        .iter()
        .flat_map(|t| t.descriptors.iter().map(|d| d.fd));
    let watched = descriptions.iter().flat_map(|description| {
        let entries: &[epoll::Entry] = match &description.kind {
            Kind::Epoll(set) => &set.entries,
            _ => &[],
        };
        entries.iter().map(|entry| entry.fd)
    });
    held.chain(watched).max().unwrap_or(2).max(2) + 1
}

impl Description {
    /// Whether it can only be made, by [`finish`], when the processes exist.
    #[must_use]
    pub fn is_late(&self) -> bool {
        match &self.kind {
            Kind::PidFd(state) => matches!(state.target, pidfd::Target::Process(_)),
            Kind::File(state) => state.is_late(),
            Kind::Directory(state) => state.is_late(),
            _ => false,
        }
    }
}

/// A restart in the middle of opening descriptions.
pub struct Opening<'a> {
    /// What is known.
    pub context: &'a RestoreContext<'a>,
    /// What the user should know.
    pub notes: Vec<String>,
    pub(super) pipes: Spares,
    pub(super) fifos: fifos::Holders,
    pub(super) inherited: inherited::Bindings,
    pub(super) sockets: unix_sockets::Making,
    pub(super) connections: tcp::Making,
    pub(super) datagrams: udp::Making,
    pub(super) ptys: ptys::Making,
    pub(super) queues: mqueues::Making,
    opened: Opened,
}

impl Opening<'_> {
    /// A description that was opened before. Descriptions are opened in ascending order.
    #[must_use]
    pub fn fd(&self, id: DescriptionId) -> Option<BorrowedFd<'_>> {
        self.opened.fd(id)
    }

    /// Moves a descriptor to a number that no process of the program uses.
    ///
    /// # Errors
    /// When the descriptor limit leaves no such number.
    pub fn place(&self, fd: OwnedFd) -> Result<OwnedFd, EngineError> {
        self.opened.place(fd)
    }

    fn open(&mut self, id: DescriptionId, kind: &Kind) -> Result<Option<OwnedFd>, EngineError> {
        Ok(Some(match kind {
            Kind::File(state) => files::restore(state, self)?,
            Kind::Directory(state) => directories::restore(state, self)?,
            Kind::Device(state) => devices::restore(state)?,
            Kind::Pipe(state) => pipes::restore(state, id, self)?,
            Kind::Fifo(state) => fifos::restore(state, id, self)?,
            Kind::EventFd(state) => eventfd::restore(state)?,
            Kind::Epoll(state) => epoll::restore(state)?,
            Kind::TimerFd(state) => timerfd::restore(state, self)?,
            Kind::SignalFd(state) => signalfd::restore(state)?,
            Kind::MemFd(state) => memfd::restore(state, self)?,
            Kind::PidFd(state) => return pidfd::restore(state),
            Kind::Terminal(state) => ttys::restore(state, self)?,
            Kind::PtyMaster(state) => ptys::restore_master(state, self)?,
            Kind::PtySlave(state) => ptys::restore_slave(state, self)?,
            Kind::Inherited(state) => inherited::restore(state, id, self)?,
            Kind::UnixSocket(state) => unix_sockets::restore(state, id, self)?,
            Kind::Tcp(state) => tcp::restore(state, id, self)?,
            Kind::Udp(state) => udp::restore(state, id, self)?,
            Kind::MessageQueue(state) => mqueues::restore(state, id, self)?,
            Kind::Netlink(state) => {
                let (fd, notes) = netlink::restore(state)?;
                self.notes.extend(notes);
                fd
            }
            Kind::Stdio(state) => {
                let (main, others) = stdio::restore(state, self)?;
                for (number, fd) in others {
                    let fd = self.place(fd)?;
                    self.opened.streams.push((id, RawFd::from(number), fd));
                }
                main
            }
        }))
    }
}

/// All descriptions, open.
#[derive(Debug, Default)]
pub struct Opened {
    /// What the user should know.
    pub notes: Vec<String>,
    /// What sessions are given for their terminals.
    pub terminals: ptys::Terminals,
    first_free: RawFd,
    fds: Vec<Option<OwnedFd>>,
    /// What a standard stream is under the numbers 0, 1 and 2, where that differs.
    streams: Vec<(DescriptionId, RawFd, OwnedFd)>,
    /// For each description that is made in [`finish`]: how it gets to the other processes that hold it.
    lines: HashMap<DescriptionId, (OwnedFd, OwnedFd)>,
}

impl Opened {
    /// The descriptor of a description, at or above [`RestoreContext::first_free`], the same number in every process
    /// that inherited it. `None` for one that can only be made in [`finish`].
    #[must_use]
    pub fn fd(&self, id: DescriptionId) -> Option<BorrowedFd<'_>> {
        self.fds.get(id.index())?.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn place(&self, fd: OwnedFd) -> Result<OwnedFd, EngineError> {
        if fd.as_raw_fd() >= self.first_free {
            return Ok(fd);
        }
        match rustix::io::fcntl_dupfd_cloexec(&fd, self.first_free) {
            Err(Errno::INVAL | Errno::MFILE) => {
                let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
                Err(EngineError::Failed(format!(
                    "the descriptor limit of {limit} is too low: the program's highest descriptor is {} and as many \
                     more are needed as it has files open; raise it (ulimit -Hn)",
                    self.first_free - 1
                )))
            }
            placed => placed.context(|| "moving a descriptor".into()),
        }
    }

    /// What a descriptor of a process is made from.
    fn source(&self, descriptor: &Descriptor) -> Option<BorrowedFd<'_>> {
        let stream = self
            .streams
            .iter()
            .find(|(id, fd, _)| *id == descriptor.description && *fd == descriptor.fd);
        match stream {
            Some((_, _, fd)) => Some(fd.as_fd()),
            None => self.fd(descriptor.description),
        }
    }
}

/// What [`open_all`] is going to do. Nothing is touched.
#[must_use]
pub fn plan(descriptions: &[Description], ctx: &RestoreContext) -> Plan {
    let mut plan = Plan::default();
    for description in descriptions {
        match &description.kind {
            Kind::File(state) => files::plan(state, ctx, &mut plan),
            Kind::Directory(state) => directories::plan(state, ctx, &mut plan),
            Kind::Stdio(state) => stdio::plan(state, ctx, &mut plan),
            Kind::Inherited(state) => inherited::plan(state, ctx, &mut plan),
            Kind::UnixSocket(state) => unix_sockets::plan(state, ctx, &mut plan),
            Kind::Fifo(state) => match fifos::plan(state, ctx) {
                Ok(action) => plan.actions.extend(action),
                Err(error) => plan.refusals.push(Refusal {
                    pid: None,
                    process: String::new(),
                    object: format!("FIFO {}", state.path.display()),
                    reason: error.to_string(),
                    hint: String::new(),
                }),
            },
            _ => {}
        }
    }
    tcp::plan(descriptions, ctx, &mut plan);
    udp::plan(descriptions, &mut plan);
    plan
}

/// Opens every description. Called in the keeper, which has one thread, before the program's processes exist; its limit
/// of descriptors is raised as far as that goes.
///
/// # Errors
/// All failures at once.
pub fn open_all(descriptions: &[Description], ctx: &RestoreContext) -> Result<Opened, EngineError> {
    raise_limit();
    let mut opening = Opening {
        context: ctx,
        notes: Vec::new(),
        pipes: Spares::default(),
        fifos: fifos::Holders::default(),
        inherited: inherited::Bindings::default(),
        sockets: unix_sockets::Making::default(),
        connections: tcp::Making::default(),
        datagrams: udp::Making::default(),
        ptys: ptys::Making::default(),
        queues: mqueues::Making::default(),
        opened: Opened {
            first_free: ctx.first_free,
            ..Opened::default()
        },
    };
    opening.connections = tcp::make_all(descriptions, &opening)?;
    opening.datagrams = udp::make_all(descriptions, &opening)?;
    opening.sockets = unix_sockets::make_all(descriptions, &opening)?;
    opening.ptys = ptys::make_all(descriptions, &opening)?;
    opening.queues = mqueues::make_all(descriptions, &opening)?;
    let mut failures = Failures::default();
    for (index, description) in descriptions.iter().enumerate() {
        let id = DescriptionId(index as u32);
        let fd = open_one(&mut opening, id, description);
        let fd = fd.unwrap_or_else(|error| {
            failures.add(error);
            None
        });
        opening.opened.fds.push(fd);
    }
    failures.result()?;
    ttys::set_up(descriptions, ctx)?;
    let Opening {
        mut notes,
        mut opened,
        inherited,
        sockets,
        connections,
        datagrams,
        ptys,
        queues,
        ..
    } = opening;
    opened.terminals = ptys.finish(descriptions)?;
    notes.extend(connections.notes);
    notes.extend(datagrams.notes);
    notes.extend(inherited.note());
    notes.extend(queues.finish(descriptions)?);
    opened.notes = notes;
    // Before epoll sets watch them: what arrives then is no news.
    let more = unix_sockets::fill_all(descriptions, sockets, &opened, ctx)?;
    opened.notes.extend(more);
    let more = epoll::fill_all(descriptions, &opened)?;
    opened.notes.extend(more);
    Ok(opened)
}

fn open_one(
    opening: &mut Opening,
    id: DescriptionId,
    description: &Description,
) -> Result<Option<OwnedFd>, EngineError> {
    if description.is_late() {
        let (from, to) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context(|| "making a line between processes".into())?;
        let line = (opening.place(from)?, opening.place(to)?);
        opening.opened.lines.insert(id, line);
        return Ok(None);
    }
    match opening.open(id, &description.kind)? {
        Some(fd) => opening.place(fd).map(Some),
        None => Ok(None),
    }
}

/// Raises the calling process's limit of descriptors as far as that goes: a restart needs as many as the program has
/// descriptions, above the program's own. [`open_all`] does it; who moves descriptors out of the way before needs it
/// earlier.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // What this does not give is missed, and told, by whatever needs it.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        );
    }
}

/// What went wrong, gathered.
#[derive(Default)]
struct Failures {
    refused: Vec<Refusal>,
    others: Vec<EngineError>,
}

impl Failures {
    fn add(&mut self, error: EngineError) {
        match error {
            EngineError::Refused(more) => self.refused.extend(more),
            other => self.others.push(other),
        }
    }

    fn result(mut self) -> Result<(), EngineError> {
        match (self.refused.is_empty(), self.others.len()) {
            (true, 0) => Ok(()),
            (false, 0) => Err(EngineError::Refused(self.refused)),
            (true, 1) => Err(self.others.remove(0)),
            _ => {
                let mut lines: Vec<String> = self.refused.iter().map(ToString::to_string).collect();
                lines.extend(self.others.iter().map(ToString::to_string));
                Err(EngineError::Failed(lines.join("\n")))
            }
        }
    }
}

/// Puts the descriptors of one process in place, in that process. Every other descriptor below
/// [`RestoreContext::first_free`] is closed: what the caller needs must lie above. The high ones stay.
///
/// # Errors
/// When the descriptor limit does not allow a number.
pub fn install(table: &Table, opened: &Opened) -> Result<(), EngineError> {
    let mut next = 0;
    let close = |from: RawFd, to: RawFd| {
        if from <= to {
            stasis_sys::descriptor::close_range(from, to).context(|| "closing descriptors".into())
        } else {
            Ok(())
        }
    };
    for descriptor in &table.descriptors {
        if let Some(source) = opened.source(descriptor) {
            close(next, descriptor.fd - 1)?;
            put(source, descriptor)?;
            next = descriptor.fd + 1;
        }
    }
    close(next, opened.first_free - 1)
}

fn put(source: BorrowedFd, descriptor: &Descriptor) -> Result<(), EngineError> {
    stasis_sys::descriptor::duplicate_to(
        source.as_raw_fd(),
        descriptor.fd,
        descriptor.close_on_exec,
    )
    .context(|| format!("putting descriptor {} in place", descriptor.fd))
}

/// Makes, in one process, what needs its final descriptors or the other processes. Called in every process, `process`
/// being its place in `tables`, after [`install`] and after every process exists with its final id; calls in different
/// processes wait for each other.
///
/// # Errors
/// When a step fails, here or in a process that was waited for.
pub fn finish(
    process: usize,
    tables: &[Table],
    descriptions: &[Description],
    opened: &Opened,
) -> Result<(), EngineError> {
    let Some(table) = tables.get(process) else {
        return Ok(());
    };
    unix_sockets::fill_late(descriptions, opened)?;
    let holders = Holders::new(tables, descriptions.len());
    // In ascending order everywhere, so that two processes never wait for each other in turn.
    let mut late = HashMap::new();
    for (index, description) in descriptions.iter().enumerate() {
        let id = DescriptionId(index as u32);
        let place = holders.of(id).iter().position(|&holder| holder == process);
        let (true, Some(place)) = (description.is_late(), place) else {
            continue;
        };
        let others = holders.of(id).len() - 1;
        let fd = share(id, description, place == 0, others, opened)?;
        for descriptor in table.descriptors.iter().filter(|d| d.description == id) {
            put(fd.as_fd(), descriptor)?;
        }
        late.insert(id, fd);
    }
    let here = Here {
        table,
        opened,
        late: &late,
    };
    for (index, description) in descriptions.iter().enumerate() {
        let id = DescriptionId(index as u32);
        let first = holders.of(id).first() == Some(&process);
        if let (Some(state), true, Some(fd)) = (&description.owner, first, here.fd(id)) {
            owner::restore(state, fd)?;
        }
        let Kind::Epoll(set) = &description.kind else {
            continue;
        };
        for entry in &set.entries {
            let is_late = descriptions
                .get(entry.target.index())
                .is_some_and(epoll::is_late);
            if is_late && holders.adder(id, entry.target) == Some(process) {
                here.watch(id, entry)?;
            }
        }
    }
    Ok(())
}

/// Which processes hold each description, ascending.
struct Holders(Vec<Vec<usize>>);

impl Holders {
    fn new(tables: &[Table], descriptions: usize) -> Holders {
        let mut holders = vec![Vec::new(); descriptions];
        for (process, table) in tables.iter().enumerate() {
            for descriptor in &table.descriptors {
                if let Some(list) = holders.get_mut(descriptor.description.index())
                    && list.last() != Some(&process)
                {
                    list.push(process);
                }
            }
        }
        Holders(holders)
    }

    fn of(&self, id: DescriptionId) -> &[usize] {
        self.0.get(id.index()).map_or(&[], Vec::as_slice)
    }

    /// The process that adds `target` to `set`: the first that holds both, or else the first that holds the target.
    fn adder(&self, set: DescriptionId, target: DescriptionId) -> Option<usize> {
        let holds_set = |process: &&usize| self.of(set).contains(process);
        let targets = self.of(target);
        targets.iter().find(holds_set).or(targets.first()).copied()
    }
}

/// Makes a late description in the first process that holds it, or receives it from there.
fn share(
    id: DescriptionId,
    description: &Description,
    first: bool,
    others: usize,
    opened: &Opened,
) -> Result<OwnedFd, EngineError> {
    let lost = || EngineError::Failed("a line between processes is missing".into());
    let (from, to) = opened.lines.get(&id).ok_or_else(lost)?;
    if !first {
        return receive(from.as_fd());
    }
    let made = match &description.kind {
        Kind::PidFd(state) => pidfd::restore_late(state),
        Kind::File(state) => files::restore_late(state),
        Kind::Directory(state) => directories::restore_late(state),
        _ => Err(lost()),
    };
    let made = made.and_then(|fd| opened.place(fd));
    for _ in 0..others {
        // A message without a descriptor says that it could not be made.
        send(to.as_fd(), made.as_ref().ok().map(AsFd::as_fd))?;
    }
    made
}

fn send(line: BorrowedFd, fd: Option<BorrowedFd>) -> Result<(), EngineError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(
        line,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .context(|| "sending a descriptor to another process".into())?;
    Ok(())
}

fn receive(line: BorrowedFd) -> Result<OwnedFd, EngineError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            line,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .context(|| "receiving a descriptor from another process".into())?;
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    });
    fds.next().ok_or_else(|| {
        EngineError::Failed("a descriptor could not be made in another process".into())
    })
}

/// A process whose descriptors are in place.
struct Here<'a> {
    table: &'a Table,
    opened: &'a Opened,
    late: &'a HashMap<DescriptionId, OwnedFd>,
}

impl Here<'_> {
    fn fd(&self, id: DescriptionId) -> Option<BorrowedFd<'_>> {
        self.late
            .get(&id)
            .map(AsFd::as_fd)
            .or_else(|| self.opened.fd(id))
    }

    /// Adds an entry to a set, under its number, which is in use for something else or for nothing.
    fn watch(&self, set: DescriptionId, entry: &epoll::Entry) -> Result<(), EngineError> {
        let missing = || EngineError::Failed("an epoll set of the image watches nothing".into());
        let set = self.fd(set).ok_or_else(missing)?;
        let target = self.fd(entry.target).ok_or_else(missing)?;
        let there = self.table.get(entry.fd);
        if there.is_some_and(|there| there.description == entry.target) {
            return epoll::add(set, entry);
        }
        let what = || format!("giving a description the number {}", entry.fd);
        stasis_sys::descriptor::duplicate_to(target.as_raw_fd(), entry.fd, true).context(what)?;
        let added = epoll::add(set, entry);
        let former = there.and_then(|there| {
            let fd = self.opened.source(there);
            Some((there, fd.or_else(|| self.fd(there.description))?))
        });
        match former {
            Some((there, fd)) => put(fd, there)?,
            None => stasis_sys::descriptor::close_range(entry.fd, entry.fd).context(what)?,
        }
        added
    }
}

/// Seals the memory files that could not be sealed before the program's memory was mapped from them. Called once, in the
/// keeper, after that.
///
/// # Errors
/// `EBUSY` where the seals do not fit how the file is mapped.
pub fn seal(descriptions: &[Description], opened: &Opened) -> Result<(), EngineError> {
    for (index, description) in descriptions.iter().enumerate() {
        if let Kind::MemFd(state) = &description.kind
            && let Some(fd) = opened.fd(DescriptionId(index as u32))
        {
            memfd::seal(state, fd)?;
        }
    }
    Ok(())
}

/// Closes, in one process, every descriptor from [`RestoreContext::first_free`] on except those in `keep`, then takes the
/// process's own record locks again.
///
/// # Errors
/// When a lock cannot be taken.
pub fn close_high(
    process: &ProcessView,
    table: &Table,
    opened: &Opened,
    keep: &[RawFd],
) -> Result<(), EngineError> {
    let mut keep: Vec<RawFd> = keep.to_vec();
    keep.sort_unstable();
    let mut next = opened.first_free;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if fd > next {
            stasis_sys::descriptor::close_range(next, fd - 1)
                .context(|| "closing descriptors".into())?;
        }
        next = next.max(fd.saturating_add(1));
    }
    locks::restore(&table.locks, process)
}
