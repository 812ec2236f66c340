//! What the threads of a supervisor share.

use crate::Settings;
use crate::protocol::{JobStatus, Saved};
use rustix::param::page_size;
use stasis_engine::checkpoint::Requesters;
use stasis_engine::progress::Progress;
use stasis_engine::tree::{self, Stat};
use stasis_engine::{Job, Refusal};
use stasis_sys::process::SIGKILL;
use stasis_sys::{Pid, signal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// For how long the end waits for the last answers to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// For how long a checkpoint waits for processes of the tree to leave the control socket.
const QUIET: Duration = Duration::from_secs(2);

/// The state, behind one lock that nobody holds for long.
pub(super) struct Shared {
    pub settings: Settings,
    keeper: Pid,
    root: Pid,
    virtual_root: Pid,
    started_at: jiff::Timestamp,
    restarted_from: Option<PathBuf>,
    changing: Mutex<Changing>,
    changed: Condvar,
    pub bytes: Bytes,
    pub requesters: Requesters,
    socket: PathBuf,
}

#[derive(Default)]
pub(super) struct Changing {
    pub interval_seconds: Option<u64>,
    pub interval_auto: bool,
    pub next_due: Option<jiff::Timestamp>,
    pub checkpointing: bool,
    pub last: Option<Saved>,
    pub last_error: Option<String>,
    /// The number of the last image.
    pub sequence: u64,
    /// The job is over: no request is taken any more.
    closed: bool,
    connections: usize,
    /// Connections from processes of the tree itself.
    inner_connections: usize,
    /// How many of these there have ever been.
    inner_seen: u64,
}

/// How far the present checkpoint has come.
#[derive(Default)]
pub(super) struct Bytes {
    done: AtomicU64,
    total: AtomicU64,
}

impl Bytes {
    pub(super) fn reset(&self) {
        self.set(0, 0);
    }
    pub(super) fn set(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }
    pub(super) fn get(&self) -> (u64, u64) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }
}

impl Progress for Bytes {
    fn bytes(&self, done: u64, total: u64) {
        self.set(done, total);
    }
}

impl Shared {
    pub(super) fn new(
        job: &Job,
        settings: Settings,
        restarted_from: Option<PathBuf>,
        socket: &Path,
    ) -> Shared {
        Shared {
            keeper: job.keeper,
            root: job.root,
            virtual_root: job.virtual_root,
            started_at: jiff::Timestamp::now(),
            restarted_from,
            changing: Mutex::new(Changing {
                sequence: settings.sequence,
                ..Changing::default()
            }),
            changed: Condvar::new(),
            bytes: Bytes::default(),
            requesters: Requesters::default(),
            socket: socket.to_owned(),
            settings,
        }
    }

    /// The image that the job was restarted from, where it is one of those that it will itself make: of its name, in its
    /// directory.
    pub(super) fn own_image(&self) -> Option<&Path> {
        let from = self.restarted_from.as_deref()?;
        let (name, _) = stasis_image::parse_image_name(from.file_name()?)?;
        let own = name == self.settings.name.as_str()
            && from.parent() == Some(self.settings.directory.as_path());
        own.then_some(from)
    }

    /// The changing part. A thread that panicked while it held the lock has left plain values, which are still good.
    pub(super) fn lock(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many parents lie between `pid` and the keeper; none for a process outside the tree.
    pub(super) fn distance(&self, pid: Pid) -> Option<u32> {
        let mut at = pid;
        for distance in 0..10_000 {
            let parent = Stat::read(at)?.parent;
            if parent == self.keeper {
                return Some(distance);
            }
            if parent.0 <= 1 {
                return None;
            }
            at = parent;
        }
        None
    }

    pub(super) fn processes(&self) -> Vec<Pid> {
        tree::living_descendants(self.keeper)
    }

    /// Resident memory of the tree in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.processes().iter().map(resident_bytes).sum()
    }

    pub(super) fn status(&self, asker: Option<Pid>) -> JobStatus {
        let pids = self.processes();
        let memory_bytes = pids.iter().map(resident_bytes).sum();
        let distance = asker.and_then(|pid| self.distance(pid));
        let now = self.lock();
        JobStatus {
            name: self.settings.name.to_string(),
            root: self.root.0,
            virtual_root: self.virtual_root.0,
            supervisor: Pid::current().0,
            pids: pids.into_iter().map(|pid| pid.0).collect(),
            memory_bytes,
            command: self.settings.command.clone(),
            directory: self.settings.directory.clone(),
            started_at: self.started_at,
            restarted_from: self.restarted_from.clone(),
            interval_seconds: now.interval_seconds,
            interval_auto: now.interval_auto,
            next_due: now.next_due,
            checkpointing: now.checkpointing,
            last: now.last.clone(),
            last_error: now.last_error.clone(),
            coordinator: (self.settings.membership.as_ref())
                .map(|membership| membership.address.to_string()),
            computation: (self.settings.membership.as_ref())
                .map(|membership| membership.joined.computation.clone()),
            distance,
        }
    }

    /// Counts a connection in; `None` when the job is over.
    pub(super) fn connect(&self, inner: bool) -> Option<Connection<'_>> {
        let mut now = self.lock();
        if now.closed {
            return None;
        }
        now.connections += 1;
        if inner {
            now.inner_connections += 1;
            now.inner_seen += 1;
        }
        Some(Connection {
            shared: self,
            inner,
        })
    }

    /// Kills every process of the tree, also those that are forked meanwhile.
    pub(super) fn kill(&self) {
        let mut last = None;
        loop {
            // One look may miss the children of a process that ends during it.
            let all = tree::descendants(self.keeper);
            let alive = tree::living(&all);
            if alive.is_empty() && last.as_ref() == Some(&all) {
                return;
            }
            for pid in alive {
                let _ = signal::send(pid, SIGKILL);
            }
            thread::sleep(Duration::from_millis(1));
            last = Some(all);
        }
    }

    /// The number of the last image.
    pub(super) fn generation(&self) -> u64 {
        self.lock().sequence
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until no process of the tree holds a connection (it would be saved with it), or for some time; tells how
    /// many such connections there have been until then.
    pub(super) fn wait_for_quiet(&self) -> u64 {
        let (now, _) = self
            .changed
            .wait_timeout_while(self.lock(), QUIET, |now| now.inner_connections > 0)
            .unwrap_or_else(PoisonError::into_inner);
        now.inner_seen
    }

    /// Whether what was refused is a connection from the tree to this supervisor.
    ///
    /// The client may have been frozen before it was accepted, or before it connected: then the number of connections does
    /// not tell, and only the words do.
    pub(super) fn was_disturbed(&self, seen: u64, refusals: &[Refusal]) -> bool {
        let socket = self.socket.to_string_lossy();
        let exe = std::env::current_exe().unwrap_or_default();
        let name = exe.file_name().unwrap_or_default().to_string_lossy();
        let speaks = |refusal: &Refusal| {
            let ours = refusal.process == name || refusal.process == "dmtcp_command";
            refusal.reason.contains(&*socket) || ours && refusal.object.contains("socket:")
        };
        self.lock().inner_seen != seen || refusals.iter().any(speaks)
    }

    /// Waits until a connection of the tree that came after the first `seen` has been served, or for some time.
    pub(super) fn wait_for_another(&self, seen: u64) {
        let _ = self.changed.wait_timeout_while(self.lock(), QUIET, |now| {
            now.inner_seen == seen || now.inner_connections > 0
        });
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    /// Lets the last answers get out.
    pub(super) fn wait_for_connections(&self) {
        let _ = self
            .changed
            .wait_timeout_while(self.lock(), LAST_WORDS, |now| now.connections > 0);
    }
}

/// A connection that is counted.
pub(super) struct Connection<'a> {
    shared: &'a Shared,
    inner: bool,
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        let mut now = self.shared.lock();
        now.connections -= 1;
        if self.inner {
            now.inner_connections -= 1;
        }
        self.shared.changed.notify_all();
    }
}

fn resident_bytes(pid: &Pid) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/statm"))
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * page_size() as u64)
}
