//! Epoll sets (`epoll(7)`).
//!
//! Saved: every entry with the number under which it was added, the description that it watches (which may by now have
//! another number, or be held by another process only), its events and data, and whether anything was ready. Sets within
//! sets come back. Not saved: an entry whose description nobody in the job holds (refused).
//!
//! What a program could notice: an edge-triggered entry that is ready when it is added reports once. Where nothing was
//! ready at the checkpoint such reports are taken out again; where something was, one too many is better than one too
//! few. A one-shot entry that has fired is made to fire once more in an otherwise empty set, so that it is as spent as
//! before; one that cannot be made to fire reports errors and hang-ups only.
//!
//! Facts: fdinfo lists entries by number; `KCMP_EPOLL_TFD` tells what an entry watches, for which it goes through the entries one
//! by one; of a socket, device and inode tell as much. An entry belongs to a number and
//! a description, and goes when the description does, not when the number is closed: it can be made in a process that
//! exists for this only and gives the description that number for a moment. An entry on a signalfd hears of the signals of
//! the process that added it. A fired one-shot shows no events but `EPOLLONESHOT` and its like. Looking at a set with
//! poll(2) takes nothing out of it (`fs/eventpoll.c`).

use super::capture::Survey;
use super::{Description, DescriptionId, Found, Kind, Obstacle, Opened, inet, set_status};
use crate::EngineError;
use crate::conformance::Claim;
use crate::error::Context;
use rustix::event::epoll::CreateFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use serde::{Deserialize, Serialize};
use stasis_sys::kcmp::{self, EpollEntry};
use stasis_sys::process::{self, Fork};
use stasis_sys::{descriptor, epoll};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

pub(super) const SET: Claim = Claim::kept(
    "epoll set",
    "with its entries, events and data",
    &[
        "descriptors::epolls",
        "engine-descriptors::kinds::epoll_sets_keep_entries_events_and_data",
        "engine-descriptors::kinds::epoll_edges_that_were_taken_do_not_come_back",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    SET,
    Claim::refused(
        "epoll set that watches what nobody in the job holds",
        "",
        &["engine-descriptors::refused::epoll_targets_that_nobody_holds"],
    ),
];

/// A saved epoll set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What it watches, by ascending number and description.
    pub entries: Vec<Entry>,
    /// Nothing was ready.
    pub quiet: bool,
    /// Access mode and status flags.
    pub flags: u32,
}

/// One thing that a set watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The number that it had when it was added.
    pub fd: RawFd,
    /// What it is.
    pub target: DescriptionId,
    /// The events (`EPOLL*`).
    pub events: u32,
    /// The program's data.
    pub data: u64,
}

const IN: u32 = 1;
const OUT: u32 = 4;
const ONESHOT: u32 = 1 << 30;
const EDGE: u32 = 1 << 31;
/// `EP_PRIVATE_BITS`: `EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE`.
const MODES: u32 = 0xf000_0000;

impl Entry {
    fn has_fired(&self) -> bool {
        self.events & ONESHOT != 0 && self.events & !MODES == 0
    }
}

/// A `tfd:` line of fdinfo.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    fd: RawFd,
    events: u32,
    data: u64,
    inode: Option<u64>,
    device: Option<u64>,
}

/// Parses what follows `tfd:`: `5 events: 19 data: 5 pos:0 ino:61af sdev:7`.
fn parse(text: &str) -> Option<Line> {
    let spaced = text.replace(':', " ");
    let words: Vec<&str> = spaced.split_ascii_whitespace().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    Some(Line {
        fd: words.first()?.parse().ok()?,
        events: u32::from_str_radix(after("events")?, 16).ok()?,
        data: u64::from_str_radix(after("data")?, 16).ok()?,
        inode: after("ino").and_then(|n| u64::from_str_radix(n, 16).ok()),
        device: after("sdev").and_then(|n| {
            let number = u32::from_str_radix(n, 16).ok()?;
            // As the kernel has it: `MKDEV` of `linux/kdev_t.h`.
            Some(rustix::fs::makedev(number >> 20, number & 0xf_ffff))
        }),
    })
}

/// Captures one.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<State, Obstacle> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut seen: HashMap<RawFd, u32> = HashMap::new();
    for text in found.info.all("tfd") {
        let line = parse(text)
            .ok_or_else(|| found.refuse("the kernel does not tell what it watches", ""))?;
        let count = seen.entry(line.fd).or_default();
        let occurrence = *count;
        *count += 1;
        let entry = EpollEntry {
            pid: found.process.pid,
            set: found.fd,
            target: line.fd,
            occurrence,
        };
        let target = target(whole, found, entry, &line)?.ok_or_else(|| {
            found.refuse(
                format!(
                    "watches what was descriptor {} and is not held by any process of the job",
                    line.fd
                ),
                "let the program take it out of the set before it closes or hands it over",
            )
        })?;
        entries.push(Entry {
            fd: line.fd,
            target,
            events: line.events,
            data: line.data,
        });
    }
    // The kernel orders them by what they watch, in an order that means nothing.
    entries.sort_by_key(|entry| (entry.fd, entry.target));
    let quiet = entries.is_empty() || {
        let duplicate = found.duplicate()?;
        let mut polled = [PollFd::new(&duplicate, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).context(|| format!("looking at {found}"))?;
        polled[0].revents().is_empty()
    };
    Ok(State {
        entries,
        quiet,
        flags: found.info.flags,
    })
}

/// The description that an entry watches, where the job holds it.
fn target(
    whole: &Survey,
    set: &Found,
    entry: EpollEntry,
    line: &Line,
) -> Result<Option<DescriptionId>, EngineError> {
    let is_it = |id: DescriptionId| -> Result<bool, EngineError> {
        let candidate = &whole.founds[id.index()];
        // A socket is one description, whoever holds it; and kcmp(2) looks through the whole set each time.
        if inet::is_socket(candidate)
            && (line.device, line.inode)
                == (Some(candidate.stat.st_dev), Some(candidate.stat.st_ino))
        {
            return Ok(true);
        }
        match kcmp::epoll_target(candidate.process.pid, candidate.fd, entry) {
            Ok(order) => Ok(order == Ordering::Equal),
            // A running process has closed one of them.
            Err(_) if whole.ctx.contents.is_none() => Ok(false),
            Err(error) => Err(error).context(|| format!("asking what {set} watches")),
        }
    };
    let holder = set.holders.first().map_or(0, |&(process, _)| process);
    let likely = whole.lookup(holder, entry.target);
    if let Some(id) = likely
        && is_it(id)?
    {
        return Ok(Some(id));
    }
    for (index, candidate) in whole.founds.iter().enumerate() {
        let id = DescriptionId(index as u32);
        let possible = line
            .inode
            .is_none_or(|inode| candidate.stat.st_ino == inode);
        if possible && Some(id) != likely && is_it(id)? {
            return Ok(Some(id));
        }
    }
    // What is being looked at while it runs may have changed between two looks: no reason to worry anybody.
    Ok(likely.filter(|_| whole.ctx.contents.is_none()))
}

/// Makes it, without its entries: those need everything else to be open.
pub(super) fn restore(state: &State) -> Result<OwnedFd, EngineError> {
    let fd = rustix::event::epoll::create(CreateFlags::CLOEXEC)
        .context(|| "making an epoll set".into())?;
    set_status(fd.as_fd(), state.flags)?;
    Ok(fd)
}

/// Whether an entry can only be made in a process of the program: a signalfd hears of the signals of the process that
/// adds it, and descriptors of processes do not exist before.
pub(super) fn is_late(target: &Description) -> bool {
    matches!(target.kind, Kind::SignalFd(_)) || target.is_late()
}

/// Adds one entry, the number being free or already what it should be.
pub(super) fn add(set: BorrowedFd, entry: &Entry) -> Result<(), EngineError> {
    match epoll::add(set, entry.fd, entry.events, entry.data) {
        Ok(()) => Ok(()),
        Err(error) => Err(error).context(|| format!("watching descriptor {}", entry.fd)),
    }
}

/// Fills every set with the entries that need no process of the program. Returns what the user should know.
///
/// The numbers that the entries need may be in use in this process: a forked copy of it does the work.
pub(super) fn fill_all(
    descriptions: &[Description],
    opened: &Opened,
) -> Result<Vec<String>, EngineError> {
    let any = |d: &Description| matches!(&d.kind, Kind::Epoll(set) if !set.entries.is_empty());
    if !descriptions.iter().any(any) {
        return Ok(Vec::new());
    }
    let what = || "filling epoll sets".to_owned();
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(what)?;
    let (reader, writer) = (opened.place(reader)?, opened.place(writer)?);
    match process::fork().context(what)? {
        Fork::Child => {
            let result = fill_here(descriptions, opened);
            let (mark, text) = match result {
                Ok(notes) => (b'+', notes.join("\n")),
                Err(error) => (b'-', error.to_string()),
            };
            let mut answer = vec![mark];
            answer.extend_from_slice(text.as_bytes());
            let told = File::from(writer).write_all(&answer);
            process::exit_now(i32::from(told.is_err()))
        }
        Fork::Parent(child) => {
            drop(writer);
            let mut answer = Vec::new();
            File::from(reader).read_to_end(&mut answer).context(what)?;
            process::wait(child, 0).context(what)?;
            let text = String::from_utf8_lossy(answer.get(1..).unwrap_or_default()).into_owned();
            match answer.first() {
                Some(b'+') => Ok(text.lines().map(str::to_owned).collect()),
                Some(_) => Err(EngineError::Failed(text)),
                None => Err(EngineError::Failed(
                    "filling epoll sets: the helper died".into(),
                )),
            }
        }
    }
}

fn fill_here(descriptions: &[Description], opened: &Opened) -> Result<Vec<String>, EngineError> {
    let mut notes = Vec::new();
    for (index, description) in descriptions.iter().enumerate() {
        let Kind::Epoll(state) = &description.kind else {
            continue;
        };
        let Some(set) = opened.fd(DescriptionId(index as u32)) else {
            continue;
        };
        let ready = |entry: &&Entry| {
            descriptions
                .get(entry.target.index())
                .is_some_and(|target| !is_late(target))
        };
        let mut entries: Vec<&Entry> = state.entries.iter().filter(ready).collect();
        // Spent ones first, while taking their events cannot spend any other.
        entries.sort_by_key(|entry| (!entry.has_fired(), !drains(state, entry, descriptions)));
        let spent = entries.iter().take_while(|e| e.has_fired()).count();
        let (spent, rest) = entries.split_at(spent);
        let drained = rest
            .iter()
            .take_while(|e| drains(state, e, descriptions))
            .count();
        let (drained, rest) = rest.split_at(drained);
        for entry in spent {
            spend(set, entry, opened)?;
        }
        for entry in drained {
            with_number(set, entry, opened, descriptions, &mut notes)?;
        }
        if !drained.is_empty() {
            drain(set).context(|| "emptying an epoll set".into())?;
        }
        for entry in rest {
            with_number(set, entry, opened, descriptions, &mut notes)?;
        }
    }
    Ok(notes)
}

/// Whether the report that an entry makes on being added is to be taken out again.
fn drains(state: &State, entry: &Entry, descriptions: &[Description]) -> bool {
    let target = descriptions.get(entry.target.index());
    let news = target.is_some_and(|target| target.kind.brings_news());
    state.quiet && !news && entry.events & EDGE != 0 && entry.events & ONESHOT == 0
}

fn drain(set: BorrowedFd) -> io::Result<()> {
    let mut buffer = [(0, 0); 64];
    while epoll::take(set, &mut buffer)? > 0 {}
    Ok(())
}

fn number(entry: &Entry, opened: &Opened) -> Result<(), EngineError> {
    let what = || format!("giving a description the number {}", entry.fd);
    let target = opened
        .fd(entry.target)
        .ok_or_else(|| EngineError::Failed("an epoll set of the image watches nothing".into()))?;
    descriptor::duplicate_to(target.as_raw_fd(), entry.fd, true).context(what)
}

fn with_number(
    set: BorrowedFd,
    entry: &Entry,
    opened: &Opened,
    descriptions: &[Description],
    notes: &mut Vec<String>,
) -> Result<(), EngineError> {
    number(entry, opened)?;
    match add(set, entry) {
        // A standard stream that could be watched has been replaced by a file, which cannot.
        Err(EngineError::System { source, .. })
            if source.raw_os_error() == Some(Errno::PERM.raw_os_error())
                && matches!(
                    descriptions[entry.target.index()].kind,
                    Kind::Stdio(_) | Kind::Terminal(_)
                ) =>
        {
            notes.push(format!(
                "the program waits for descriptor {} with epoll, and what it is now cannot be waited for: give the restart a terminal or a pipe",
                entry.fd
            ));
            Ok(())
        }
        other => other,
    }
}

/// Adds an entry that has fired and was not armed again.
fn spend(set: BorrowedFd, entry: &Entry, opened: &Opened) -> Result<(), EngineError> {
    number(entry, opened)?;
    let armed = Entry {
        events: entry.events | IN | OUT,
        ..*entry
    };
    add(set, &armed)?;
    let what = || format!("watching descriptor {}", entry.fd);
    let mut taken = [(0, 0)];
    if epoll::take(set, &mut taken).context(what)? == 0 {
        epoll::modify(set, entry.fd, entry.events, entry.data).context(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_as_the_kernel_writes_it() {
        let line = parse("5 events: 80000019 data:     ffffffff00000005  pos:0 ino:61af sdev:7");
        assert_eq!(
            line,
            Some(Line {
                fd: 5,
                events: 0x8000_0019,
                data: 0xffff_ffff_0000_0005,
                inode: Some(0x61af),
                device: Some(7)
            })
        );
        assert_eq!(parse("x"), None);
    }

    #[test]
    fn a_spent_entry_is_known_by_its_bits() {
        let entry = |events| Entry {
            fd: 3,
            target: DescriptionId(0),
            events,
            data: 0,
        };
        assert!(entry(ONESHOT).has_fired() && entry(ONESHOT | EDGE).has_fired());
        assert!(!entry(ONESHOT | IN).has_fired() && !entry(EDGE).has_fired());
    }
}
