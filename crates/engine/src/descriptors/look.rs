//! The look that `stasis check` takes at descriptors: captured as for a checkpoint, by the same modules, and nothing stored.

use super::capture::{All, notes, vanished};
use super::{
    CaptureContext, Description, DescriptionId, Found, Kind, Obstacle, locks, unix_sockets,
};
use crate::conformance::{Claim, Verdict};
use crate::look::{Item, Look};
use crate::{EngineError, Refusal};
use rustix::fs::FileType;
use std::io;
use std::os::unix::ffi::OsStrExt;

impl Kind {
    /// What its module says of it.
    fn claim(&self, found: &Found) -> Claim {
        match self {
            Kind::File(state) => state.claim(found),
            Kind::Directory(_) => super::directories::DIRECTORY,
            Kind::Device(_) => super::devices::DEVICE,
            Kind::Pipe(_) => super::pipes::PIPE,
            Kind::Fifo(_) => super::fifos::FIFO,
            Kind::EventFd(_) => super::eventfd::COUNTER,
            Kind::Epoll(_) => super::epoll::SET,
            Kind::TimerFd(_) => super::timerfd::TIMER,
            Kind::SignalFd(_) => super::signalfd::SIGNALS,
            Kind::MemFd(_) => super::memfd::MEMORY,
            Kind::PidFd(_) => super::pidfd::PROCESS,
            Kind::Stdio(state) => state.claim(),
            Kind::Terminal(state) => state.claim(),
            Kind::PtyMaster(_) => super::ptys::CONTROLLING,
            Kind::PtySlave(_) => super::ptys::SLAVE,
            Kind::Inherited(_) => super::inherited::GIVEN,
            Kind::UnixSocket(state) => state.claim(),
            Kind::Tcp(state) => state.claim(),
            Kind::Udp(_) => super::udp::SOCKET,
            Kind::MessageQueue(_) => super::mqueues::QUEUE,
            Kind::Netlink(_) => super::netlink::SOCKET,
            Kind::Inotify(_) => super::inotify::WATCHES,
            Kind::IoUring(_) => super::io_uring::RING,
        }
    }

    /// Which one it is, in words; `None` where `/proc` says it best.
    fn words(&self) -> Option<String> {
        match self {
            Kind::Tcp(state) => state.words(),
            Kind::Udp(state) => state.words(),
            Kind::UnixSocket(state) => state.words(),
            _ => None,
        }
    }
}

/// What [`super::capture`] would keep and refuse; nothing is stored, and the processes may run meanwhile.
///
/// # Errors
/// When a process cannot be looked at.
pub fn look(ctx: &CaptureContext) -> Result<Look, EngineError> {
    let ctx = &CaptureContext {
        contents: None,
        ..*ctx
    };
    let carrier = unix_sockets::carrier(ctx);
    let All {
        founds,
        mut tables,
        described,
    } = All::describe(ctx, &carrier)?;
    let mut look = Look {
        open: founds.iter().map(Found::inode).collect(),
        ..Look::default()
    };
    let mut descriptions: Vec<Option<Description>> = Vec::with_capacity(founds.len());
    for (found, described) in founds.iter().zip(described) {
        let described = match described {
            Err(Obstacle::Error(error)) if vanished(&error) => {
                descriptions.push(None);
                continue;
            }
            Err(Obstacle::Error(error)) => Err(may_not(found, error)?),
            other => other,
        };
        let (resource, object, verdict, remark, hint) = match &described {
            Ok(Description { kind, .. }) => {
                let claim = kind.claim(found);
                let object = kind
                    .words()
                    .unwrap_or_else(|| found.link.display().to_string());
                (
                    claim.resource.to_owned(),
                    object,
                    claim.verdict,
                    claim.remark.to_owned(),
                    "",
                )
            }
            Err(Obstacle::Passing(refusal)) => {
                let remark = format!(
                    "{}: a checkpoint waits until that has passed",
                    refusal.reason
                );
                (
                    name(found),
                    found.link.display().to_string(),
                    Verdict::Kept,
                    remark,
                    "",
                )
            }
            Err(Obstacle::Refused(refusal)) => {
                let reason = refusal.reason.clone();
                (
                    name(found),
                    found.link.display().to_string(),
                    Verdict::Refused,
                    reason,
                    refusal.hint.as_str(),
                )
            }
            Err(Obstacle::Error(_)) => continue,
        };
        look.items
            .extend(found.holders.iter().map(|(place, fd)| Item {
                pid: Some(ctx.processes[*place].virtual_pid),
                process: ctx.processes[*place].name.clone(),
                descriptor: Some(*fd),
                resource: resource.clone(),
                object: object.clone(),
                count: 1,
                bytes: None,
                verdict,
                remark: remark.clone(),
                hint: hint.to_owned(),
            }));
        if let Err(Obstacle::Refused(refusal)) = &described {
            look.refusals.push(refusal.clone());
        }
        descriptions.push(described.ok());
    }
    let kind = |id: DescriptionId| Some(&descriptions.get(id.index())?.as_ref()?.kind);
    locks::capture(ctx, kind, &mut tables);
    for (process, table) in ctx.processes.iter().zip(&tables) {
        let records = table.locks.records.len();
        let held = table
            .descriptors
            .iter()
            .filter_map(|held| kind(held.description));
        let others: usize = held.map(Kind::locks).sum();
        if records + others > 0 {
            look.items.push(Item {
                count: (records + others) as u64,
                ..Item::of(process, &locks::LOCK)
            });
        }
    }
    let known = founds.iter().zip(&descriptions);
    let pairs: Vec<_> = known
        .filter_map(|(found, known)| Some((found, known.as_ref()?)))
        .collect();
    look.notes = notes(&pairs);
    let sockets = pairs
        .iter()
        .filter(|(_, known)| known.kind.has_a_queue())
        .count();
    if sockets > 0 {
        look.notes.push(format!(
            "what waits in sockets ({sockets}) was not looked at, as they are in use: a checkpoint does that, and refuses what \
             docs/conformance.md names"
        ));
    }
    Ok(look)
}

impl Kind {
    /// How many locks belong to the description.
    fn locks(&self) -> usize {
        match self {
            Kind::File(state) => state.locks.len(),
            Kind::Directory(state) => state.locks.len(),
            _ => 0,
        }
    }

    /// Whether something may wait in it that only a checkpoint looks at.
    fn has_a_queue(&self) -> bool {
        matches!(
            self,
            Kind::UnixSocket(_) | Kind::Tcp(_) | Kind::Udp(_) | Kind::Netlink(_)
        )
    }
}

/// An error that tells that something may not be looked at, as a refusal.
fn may_not(found: &Found, error: EngineError) -> Result<Obstacle, EngineError> {
    match error {
        EngineError::System { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            let reason = format!("it may not be looked at: {source}");
            Ok(found.refuse(
                reason,
                "look at a program of your own that was started by stasis",
            ))
        }
        error => Err(error),
    }
}

/// What something is whose module does not want it.
fn name(found: &Found) -> String {
    if let Some(name) = found.link.as_bytes().strip_prefix(b"anon_inode:") {
        let name = String::from_utf8_lossy(name);
        return name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
    }
    let name = match FileType::from_raw_mode(found.stat.st_mode) {
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::Directory => "directory",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "file",
    };
    name.to_owned()
}

/// What a checkpoint would refuse of descriptors, and what the user should know: see [`look`].
///
/// # Errors
/// When a process cannot be looked at.
pub fn refusals(ctx: &CaptureContext) -> Result<(Vec<Refusal>, Vec<String>), EngineError> {
    look(ctx).map(|look| (look.refusals, look.notes))
}
