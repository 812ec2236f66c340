//! Looking at the System V objects of a job, in its ipc namespace.
//!
//! Where the job lives in an ipc namespace of its own, as a restart makes it, the supervisor is outside: calls and `/proc/sysvipc`
//! show the caller's namespace. So a forked copy of the supervisor enters the job's, tells what it sees, and holds the segments
//! attached until they have been read from its memory. It ends with the supervisor's line to it.

use super::belonging::Job;
use super::table::{Kind, Object, Row};
use super::{queues, segments, semaphores};
use crate::EngineError;
use crate::descriptors::mqueues;
use crate::error::Context;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use stasis_sys::process::{self, Fork};
use stasis_sys::signal::{self, SignalSet};
use stasis_sys::sysv::Attachment;
use stasis_sys::{Pid, namespace};
use stasis_tracee::Memory;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What a look has found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Gathered {
    /// Segments.
    pub segments: Vec<segments::Seen>,
    /// Sets of semaphores.
    pub sets: Vec<semaphores::State>,
    /// Queues.
    pub queues: Vec<queues::State>,
    /// POSIX message queues that nobody has open.
    pub closed: Vec<mqueues::Queue>,
    /// What is the program's without doubt and could not be looked at, and why.
    pub failures: Vec<(Kind, i32, String)>,
}

impl Gathered {
    fn is_empty(&self) -> bool {
        self.segments.is_empty()
            && self.sets.is_empty()
            && self.queues.is_empty()
            && self.closed.is_empty()
            && self.failures.is_empty()
    }

    /// Looks at everything that `claim` tells to be the job's. The segments stay attached while the list lives.
    fn gather(claim: &dyn Fn(Kind, &Row) -> Option<Object>) -> (Gathered, Vec<Attachment>) {
        let mut gathered = Gathered::default();
        let mut attachments = Vec::new();
        for kind in Kind::ALL {
            for row in kind.rows() {
                let Some(object) = claim(kind, &row) else {
                    continue;
                };
                let looked = match kind {
                    Kind::Segment => segments::look(&object, &row).map(|(seen, attachment)| {
                        gathered.segments.push(seen);
                        attachments.push(attachment);
                    }),
                    Kind::Set => {
                        semaphores::look(&object, &row).map(|seen| gathered.sets.push(seen))
                    }
                    Kind::Queue => {
                        queues::look(&object, &row).map(|seen| gathered.queues.push(seen))
                    }
                };
                match looked {
                    // Somebody else has removed it meanwhile.
                    Err(error) if is_gone(&error) => {}
                    Err(error) if object.certain => {
                        gathered.failures.push((kind, object.id, error.to_string()));
                    }
                    _ => {}
                }
            }
        }
        (gathered, attachments)
    }
}

fn is_gone(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::IDRM]
        .iter()
        .any(|gone| error.raw_os_error() == Some(gone.raw_os_error()))
}

/// A look that holds what it has seen.
#[derive(Debug)]
pub struct Sight {
    /// What there is.
    pub gathered: Gathered,
    /// The memory in which the segments are.
    pub memory: Memory,
    _held: Held,
}

/// Who has the segments attached.
#[derive(Debug)]
enum Held {
    Here { _attachments: Vec<Attachment> },
    Apart { _scout: Scout },
}

impl Sight {
    /// Looks at what `job`, whose keeper is given, has; `None` when that is nothing.
    ///
    /// # Errors
    /// When its namespace cannot be entered.
    pub fn of(job: &Job, keeper: Pid) -> Result<Option<Sight>, EngineError> {
        let there = |name: &str| format!("/proc/{keeper}/ns/{name}");
        let name = |path: &str| std::fs::read_link(path).context(|| format!("reading {path}"));
        if name(&there("ipc"))? != name("/proc/self/ns/ipc")? {
            let mut ways = Vec::new();
            for way in ["user", "ipc"] {
                if name(&there(way))? != name(&format!("/proc/self/ns/{way}"))? {
                    let path = there(way);
                    ways.push(File::open(&path).context(|| format!("opening {path}"))?);
                }
            }
            return Scout::send(&ways, &job.queues).map(Some);
        }
        const SHOWN: &str = "/dev/mqueue";
        let began = i64::try_from(job.began.as_secs()).unwrap_or(i64::MAX);
        let closed = mqueues::unopened(SHOWN, &job.queues, Some(began));
        let (mut gathered, attachments) = Gathered::gather(&|kind, row| job.claim(kind, row));
        gathered.closed = closed;
        if gathered.is_empty() {
            return Ok(None);
        }
        Ok(Some(Sight {
            gathered,
            memory: Memory::open(Pid::current()).context(|| "opening memory".into())?,
            _held: Held::Here {
                _attachments: attachments,
            },
        }))
    }
}

/// The process that looks in another namespace. Dropping it ends it, and waits for that: what it had attached is let go.
#[derive(Debug)]
struct Scout {
    pid: Pid,
    line: File,
}

impl Drop for Scout {
    fn drop(&mut self) {
        let _ = signal::send(self.pid, process::SIGKILL);
        let _ = process::wait(self.pid, 0);
    }
}

const LENGTH: usize = size_of::<u64>();
/// More than this no namespace is believed to hold.
const MOST: u64 = 1 << 30;

impl Scout {
    fn send(ways: &[File], queues: &[u64]) -> Result<Sight, EngineError> {
        let looking = || "looking at the job's ipc namespace".to_owned();
        let (here, there) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .context(looking)?;
        let mut scout = match process::fork_beside_threads().context(looking)? {
            Fork::Child => {
                drop(here);
                process::exit_now(i32::from(report(ways, queues, there).is_err()))
            }
            Fork::Parent(pid) => Scout {
                pid,
                line: File::from(here),
            },
        };
        drop(there);
        let line = &mut scout.line;
        let mut read = || -> io::Result<Vec<u8>> {
            let mut length = [0; LENGTH];
            line.read_exact(&mut length)?;
            let length = u64::from_ne_bytes(length);
            if length > MOST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut bytes = vec![0; length as usize];
            line.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().context(looking)?;
        let answer: Result<Gathered, String> = postcard::from_bytes(&bytes)
            .map_err(|error| EngineError::Failed(format!("{}: {error}", looking())))?;
        let gathered =
            answer.map_err(|error| EngineError::Failed(format!("{}: {error}", looking())))?;
        Ok(Sight {
            gathered,
            memory: Memory::open(scout.pid).context(looking)?,
            _held: Held::Apart { _scout: scout },
        })
    }
}

/// In the scout.
fn report(ways: &[File], queues: &[u64], line: OwnedFd) -> io::Result<()> {
    signal::set_mask(SignalSet::ALL)?;
    // What the supervisor holds, such as the lock of the image, it holds alone.
    let keep: Vec<_> = ways.iter().map(AsRawFd::as_raw_fd).collect();
    let keep = [&keep[..], &[line.as_raw_fd()]].concat();
    for number in stasis_sys::descriptor::open_descriptors()? {
        if !keep.contains(&number) {
            stasis_sys::descriptor::close(number);
        }
    }
    let entered = ways
        .iter()
        .try_for_each(|way| namespace::enter(way.as_fd()));
    let (answer, attachments) = match entered {
        Ok(()) => {
            let all = |kind: Kind, row: &Row| {
                Some(Object {
                    certain: true,
                    ..row.object(kind)
                })
            };
            let (mut gathered, attachments) = Gathered::gather(&all);
            gathered.closed = closed_queues(queues);
            (Ok(gathered), attachments)
        }
        Err(error) => (Err(error.to_string()), Vec::new()),
    };
    let bytes =
        postcard::to_stdvec::<Result<Gathered, String>>(&answer).map_err(io::Error::other)?;
    let mut line = File::from(line);
    line.write_all(&(bytes.len() as u64).to_ne_bytes())?;
    line.write_all(&bytes)?;
    // Nobody writes to it: what is waited for is the supervisor's end, or its signal.
    let _ = line.read(&mut [0]);
    drop(attachments);
    Ok(())
}

/// The queues of the namespace that nobody has open. Mounted where only this process sees it, their file system shows them.
fn closed_queues(open: &[u64]) -> Vec<mqueues::Queue> {
    const PLACE: &str = "/dev";
    let mounted = namespace::unshare(namespace::MOUNT).and_then(|()| {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        Ok(mount(
            "mqueue",
            PLACE,
            "mqueue",
            flags,
            None::<&std::ffi::CStr>,
        )?)
    });
    match mounted {
        Ok(()) => mqueues::unopened(PLACE, open, None),
        // A kernel without such queues.
        Err(_) => Vec::new(),
    }
}
