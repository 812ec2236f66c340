//! Rings for input and output (`io_uring(7)`), idle ones.
//!
//! Saved: sizes, counters, everything that the ring's memory holds (completions not read yet, submissions that the kernel
//! has not been told of), registered buffers by their addresses, and registered files, where the job has them open. The
//! memory is mapped at its old addresses by [`crate::memory`].
//! Not saved: how the ring was tuned: a restarted one is driven by interrupts, and goes on with the submissions after an
//! invalid one (`IORING_SETUP_IOPOLL`, `COOP_TASKRUN`, without `SUBMIT_ALL`); limits of its workers; groups of buffers with
//! numbers from 256 on, descriptors of rings that are registered with a thread (`IORING_REGISTER_RING_FDS`), and a request of `IORING_OP_TIMEOUT` that has fired once and is to fire again, which nobody can see.
//! Refused: requests under way, which is tried for a second; a thread of the kernel that takes submissions (`SQPOLL`), a ring
//! for one thread only (`SINGLE_ISSUER`), one whose memory the program has provided (`NO_MMAP`) or with entries of twice the
//! size, an eventfd that hears of completions, groups of buffers, credentials.
//!
//! Facts it rests on
//! - fdinfo tells masks and counters, also those that the kernel keeps for itself, registered files (by path only) and buffers,
//!   and which requests wait for something (`io_uring/fdinfo.c`). Each ring has an inode of its own.
//! - Each request has one completion, but for those that ask for more (they wait for something, and are listed) or for none. So
//!   where as many are completed as were submitted, none is under way.
//! - A new ring counts from 0. Its counters are moved on by requests that do nothing, some 15 million a second:
//!   those that have got beyond 134 million are refused.
//! - The numbers of submissions in the ring's array are all zero where a program does without that array
//!   (`IORING_SETUP_NO_SQARRAY`): then each submission gets its own number, which is the same.
//! - What a ring says of itself to somebody else: [`stasis_sys::io_uring::look`].

use super::capture::Survey;
use super::{Description, DescriptionId, Found, Kind, Obstacle, Table};
use crate::EngineError;
use crate::calls::{Calls, SCRATCH};
use crate::conformance::Claim;
use crate::error::Context;
use crate::maps::{self, Vma};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use stasis_sys::io_uring::{self as ring, Layout, Look, OFFSETS, Ring, SUBMISSION};
use stasis_sys::procfs;
use stasis_tracee::Memory;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

pub(super) const RING: Claim = Claim::kept(
    "ring for input and output (io_uring)",
    "idle: its memory, counters, completions not read yet, registered buffers and files",
    &[
        "rings::idle",
        "rings::workers",
        "strategies::namespaces::rings",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    RING,
    Claim::refused(
        "ring with requests under way",
        "it is tried for a second",
        &["rings::under_way"],
    ),
    Claim::refused(
        "ring with an eventfd, a thread of the kernel (SQPOLL), or for one thread only (SINGLE_ISSUER)",
        "Node.js: UV_USE_IO_URING=0",
        &[
            "rings::with_eventfd",
            "rings::kernel_thread",
            "rings::one_thread",
        ],
    ),
];

/// A saved ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Room for submissions and for completions.
    pub sizes: (u32, u32),
    /// Where things are in its memory: offsets of the submission ring, then of the completion ring.
    pub layout: Vec<u32>,
    /// How many submissions the kernel has taken.
    pub submitted: u32,
    /// How many completions it has given.
    pub completed: u32,
    /// How many of them the program has read.
    pub consumed: u32,
    /// What both rings hold.
    #[serde(with = "serde_bytes")]
    pub rings: Vec<u8>,
    /// What the submissions hold.
    #[serde(with = "serde_bytes")]
    pub submissions: Vec<u8>,
    /// Registered buffers: address and length.
    pub buffers: Vec<(u64, u64)>,
    /// Registered files; `None` for a free place.
    pub files: Vec<Option<DescriptionId>>,
}

/// Counters are moved on as far as this.
const FURTHEST: u32 = 1 << 27;
const UNDER_WAY: &str = "has requests under way (io_uring)";
const WHEN_DONE: &str = "checkpoint when the program's input and output is done, or switch it to another way of that \
                         (Node.js: UV_USE_IO_URING=0)";
const OTHERWISE: &str =
    "switch the program to another way of input and output (Node.js: UV_USE_IO_URING=0)";

/// What fdinfo tells of a ring.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    numbers: HashMap<String, i64>,
    files: Vec<(usize, String)>,
    buffers: Vec<(usize, String)>,
    waiting: usize,
    overflown: usize,
    credentials: usize,
}

impl Told {
    fn parse(text: &str) -> Told {
        let mut told = Told::default();
        let mut section = "";
        for line in text.lines() {
            let Some(line) = line.strip_prefix(' ') else {
                let Some((name, value)) = line.split_once(':') else {
                    continue;
                };
                section = name;
                let value = value.trim();
                let value = match value.strip_prefix("0x") {
                    Some(hex) => i64::from_str_radix(hex, 16).ok(),
                    None => value.parse().ok(),
                };
                told.numbers
                    .extend(value.map(|value| (name.to_owned(), value)));
                continue;
            };
            let row = || {
                let (place, rest) = line.trim_start().split_once(": ")?;
                Some((place.parse().ok()?, rest.to_owned()))
            };
            match section {
                "UserFiles" => told.files.extend(row()),
                "UserBufs" => told.buffers.extend(row()),
                "PollList" => told.waiting += 1,
                "CqOverflowList" => told.overflown += 1,
                "Personalities" => told.credentials += 1,
                _ => {}
            }
        }
        told
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).map(|value| *value as u32)
    }
}

/// Captures one.
pub(super) fn capture(whole: &Survey, found: &Found) -> Result<State, Obstacle> {
    let what = || format!("looking at {found}");
    let path = format!("/proc/{}/fdinfo/{}", found.process.pid, found.fd);
    let told = Told::parse(&procfs::read_to_string(path).context(what)?);
    let untold = || {
        found.refuse(
            "the kernel does not tell what this io_uring does",
            OTHERWISE,
        )
    };
    if told
        .numbers
        .get("SqThread")
        .is_some_and(|thread| *thread >= 0)
    {
        return Err(found.refuse(
            "a thread of the kernel serves it (io_uring with SQPOLL)",
            OTHERWISE,
        ));
    }
    let duplicate = found.duplicate()?;
    let words = match ring::look(duplicate.as_fd()).context(what)? {
        Look::Plain => None,
        Look::Eventfd => Some("an eventfd hears of its completions (io_uring)"),
        Look::Buffers => Some("it has groups of buffers (io_uring)"),
        Look::OneThread => Some("one thread alone may use it (io_uring with SINGLE_ISSUER)"),
        Look::Off => Some("it is not switched on yet (io_uring with R_DISABLED)"),
    };
    if let Some(words) = words {
        return Err(found.refuse(words, OTHERWISE));
    }
    if told.credentials > 0 {
        return Err(found.refuse("credentials are registered with it (io_uring)", OTHERWISE));
    }
    let number = |name: &str| told.number(name).ok_or_else(untold);
    let (submitted, completed) = (number("CachedSqHead")?, number("CachedCqTail")?);
    let consumed = number("CqHead")?;
    let sizes = (number("SqMask")? + 1, number("CqMask")? + 1);
    if !told.numbers.contains_key("UserFiles") || told.waiting > 0 || told.overflown > 0 {
        return Err(found.passing(UNDER_WAY, WHEN_DONE));
    }
    let layout = Ring::make(sizes.0, sizes.1).context(what)?.layout();
    let (rings, submissions) = memory(whole, found, &layout)?;
    let lost = layout.lost().map(|at| word(&rings, at));
    if submitted.wrapping_sub(completed) != lost[0].wrapping_add(lost[1])
        || number("SqHead")? != submitted
        || number("CqTail")? != completed
        || completed.wrapping_sub(consumed) > sizes.1
    {
        return Err(found.passing(UNDER_WAY, WHEN_DONE));
    }
    if submitted > FURTHEST || completed > submitted {
        return Err(found.refuse(
            format!("it has carried out so many requests ({submitted}) that its counters cannot be had again (io_uring)"),
            OTHERWISE,
        ));
    }
    Ok(State {
        sizes,
        layout: words_of(&layout),
        submitted,
        completed,
        consumed,
        rings,
        submissions,
        buffers: buffers(found, &told)?,
        files: files(whole, found, &told)?,
    })
}

fn words_of(layout: &Layout) -> Vec<u32> {
    let words = layout.submission_offsets.iter();
    words.chain(&layout.completion_offsets).copied().collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_ne_bytes)
}

/// Whether an area is a ring's memory.
#[must_use]
pub fn is_ring(vma: &Vma) -> bool {
    vma.path.starts_with(b"anon_inode:[io_uring]")
}

/// What the ring's memory holds, as a process that maps it sees it.
fn memory(whole: &Survey, found: &Found, layout: &Layout) -> Result<(Vec<u8>, Vec<u8>), Obstacle> {
    let what = || format!("reading the memory of {found}");
    let (mut rings, mut submissions) = (Vec::new(), Vec::new());
    let wanted = (layout.rings(), layout.submissions as usize * SUBMISSION);
    for (process, _) in &found.holders {
        let pid = whole.ctx.processes[*process].pid;
        let memory = Memory::open(pid).context(what)?;
        for vma in maps::read(pid)?
            .iter()
            .filter(|vma| is_ring(vma) && vma.inode == found.stat.st_ino)
        {
            let (place, whole) = match OFFSETS.iter().position(|at| *at == vma.offset) {
                Some(0 | 1) => (&mut rings, wanted.0),
                Some(_) => (&mut submissions, wanted.1),
                None => continue,
            };
            // All of it: what lies behind the entries tells of entries that are larger than is known here.
            let mut bytes = vec![0; vma.size() as usize];
            memory.read(&mut bytes, vma.range.start).context(what)?;
            if bytes.iter().skip(whole).any(|byte| *byte != 0) {
                return Err(found.refuse(
                    "its entries have twice the usual size (io_uring)",
                    OTHERWISE,
                ));
            }
            bytes.truncate(whole);
            if bytes.len() > place.len() {
                *place = bytes;
            }
        }
    }
    if rings.len() < layout.completions_end() || submissions.len() < wanted.1 {
        return Err(found.refuse(
            "no process of the job that has it maps all of its memory (io_uring)",
            OTHERWISE,
        ));
    }
    rings.resize(layout.rings(), 0);
    if rings[layout.array()..].iter().all(|byte| *byte == 0) {
        for (n, place) in rings[layout.array()..].chunks_exact_mut(4).enumerate() {
            place.copy_from_slice(&(n as u32).to_ne_bytes());
        }
    }
    Ok((rings, submissions))
}

/// Calls that register have their arguments in one page.
const MOST_BUFFERS: usize = SCRATCH as usize / 16;
const MOST_FILES: usize = SCRATCH as usize / 4;

fn buffers(found: &Found, told: &Told) -> Result<Vec<(u64, u64)>, Obstacle> {
    let count = told.number("UserBufs").unwrap_or(0) as usize;
    let holders: std::collections::HashSet<usize> =
        found.holders.iter().map(|holder| holder.0).collect();
    if count > MOST_BUFFERS || count > 0 && holders.len() != 1 {
        return Err(found.refuse(
            "it has more registered buffers than can be saved, or several processes have it (io_uring)",
            OTHERWISE,
        ));
    }
    let mut buffers = vec![(0, 0); count];
    for (place, text) in &told.buffers {
        let parse = || {
            let (address, len) = text.split_once('/')?;
            let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
            Some((address, len.parse().ok()?))
        };
        if let (Some(buffer), Some(known)) = (parse(), buffers.get_mut(*place)) {
            *known = buffer;
        }
    }
    Ok(buffers)
}

fn files(
    whole: &Survey,
    found: &Found,
    told: &Told,
) -> Result<Vec<Option<DescriptionId>>, Obstacle> {
    let count = told.number("UserFiles").unwrap_or(0) as usize;
    let process = found.holders.first().map_or(0, |holder| holder.0);
    let mut files = vec![None; count];
    let table = whole.tables.get(process);
    for (place, path) in &told.files {
        let held = table.into_iter().flat_map(|table| &table.descriptors);
        let mut known: Vec<DescriptionId> = held
            .map(|descriptor| descriptor.description)
            .filter(|id| whole.founds[id.index()].link.as_encoded_bytes() == path.as_bytes())
            .collect();
        known.sort_unstable();
        known.dedup();
        match (known[..].first(), known.len(), files.get_mut(*place)) {
            (Some(id), 1, Some(file)) => *file = Some(*id),
            _ => {
                return Err(found.refuse(
                    format!("a file is registered with it (io_uring) that the program has not open once: {path}"),
                    OTHERWISE,
                ));
            }
        }
    }
    if count > MOST_FILES || count > 0 && found.holders.is_empty() {
        return Err(found.refuse(
            "it has more registered files than can be saved (io_uring)",
            OTHERWISE,
        ));
    }
    Ok(files)
}

/// Makes it again, with its counters and contents; what is registered with it follows in [`register`].
pub(super) fn restore(state: &State) -> Result<OwnedFd, EngineError> {
    let what = || "making an io_uring again".to_owned();
    let mut made = Ring::make(state.sizes.0, state.sizes.1).map_err(|source| {
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::PERM | Errno::NOSYS) => EngineError::Failed(
                "this host does not allow the program's io_uring (/proc/sys/kernel/io_uring_disabled)".into(),
            ),
            _ => EngineError::System { what: what(), source },
        }
    })?;
    if words_of(&made.layout()) != state.layout {
        return Err(EngineError::Failed(
            "the memory of the program's io_uring is arranged in another way by this kernel".into(),
        ));
    }
    made.advance(state.submitted, state.completed, state.consumed)
        .context(what)?;
    made.fill(&state.rings, &state.submissions);
    Ok(made.into_fd())
}

/// Registers buffers and files again: by a call of the process that holds the ring, when its memory is as it was. `is_first` tells
/// whether the process is the first that holds a description.
///
/// # Errors
/// When a remote call fails.
pub fn register(
    descriptions: &[Description],
    table: &Table,
    is_first: impl Fn(DescriptionId) -> bool,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    const BUFFERS: u64 = 0;
    const FILES: u64 = 2;
    let mut done: Vec<DescriptionId> = Vec::new();
    for descriptor in &table.descriptors {
        let id = descriptor.description;
        let Some(Kind::IoUring(state)) = descriptions.get(id.index()).map(|d| &d.kind) else {
            continue;
        };
        if done.contains(&id) || !is_first(id) {
            continue;
        }
        done.push(id);
        let number_of = |file: &Option<DescriptionId>| {
            let held = file.and_then(|id| table.descriptors.iter().find(|d| d.description == id));
            held.map_or(-1, |descriptor| descriptor.fd)
        };
        let buffers = state
            .buffers
            .iter()
            .flat_map(|(address, len)| [*address, *len]);
        let buffers: Vec<u8> = buffers.flat_map(u64::to_ne_bytes).collect();
        let files: Vec<u8> = state
            .files
            .iter()
            .map(number_of)
            .flat_map(i32::to_ne_bytes)
            .collect();
        for (what, bytes, count) in [
            (BUFFERS, buffers, state.buffers.len()),
            (FILES, files, state.files.len()),
        ] {
            if count > 0 {
                let at = calls.put(&bytes)?;
                let arguments = [descriptor.fd as u64, what, at, count as u64];
                calls.call("io_uring_register", SYS_IO_URING_REGISTER, &arguments)?;
            }
        }
    }
    Ok(())
}

const SYS_IO_URING_REGISTER: i64 = 427;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_as_the_kernel_writes_it() {
        let told = Told::parse(
            "pos:\t0\nflags:\t02000002\nSqMask:\t0x3\nSqHead:\t8\nSQEs:\t0\nCQEs:\t1\n    3: user_data:80, res:0, flag:0\n\
             SqThread:\t-1\nUserFiles:\t3\n    0: /dev/null\n    2: /tmp/a: b\nUserBufs:\t1\n    0: 0x55d6abcc80a0/8192\n\
             PollList:\n  op=22, task_works=0\nCqOverflowList:\nNAPI:\tdisabled\n",
        );
        assert_eq!(told.number("SqMask"), Some(3));
        assert_eq!(told.numbers.get("SqThread"), Some(&-1));
        assert_eq!(
            told.files,
            [(0, "/dev/null".into()), (2, "/tmp/a: b".into())]
        );
        assert_eq!(told.buffers, [(0, "0x55d6abcc80a0/8192".into())]);
        assert_eq!((told.waiting, told.overflown), (1, 0));
    }
}
