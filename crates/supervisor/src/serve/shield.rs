//! The supervisor's part of a shield: who hears of what stops, and on which thread.
//!
//! The thread that raises the shield has to take the checkpoint, too, as a tracee has one tracer only. So where there is a
//! shield, each round of the worker (a wait, a checkpoint) is a thread of its own: it seizes the program at its beginning, and
//! whatever could not be let go during the checkpoint is let go when it ends.

use super::{Task, spawn};
use crate::error::Context;
use crate::{Error, Settings};
use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, poll};
use stasis_engine::shield::Shield;
use stasis_sys::Pid;
use stasis_sys::process::SIGCHLD;
use stasis_sys::signal::{SignalFd, SignalSet};
use stasis_tracee::Withheld;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Whether a task about stopped processes is on its way already.
pub(super) type Pending = Arc<AtomicBool>;

/// Has stops of shielded processes told to the worker, where there is a shield. The kernel tells a tracer by SIGCHLD.
pub(super) fn listen(settings: &Settings, tasks: &Sender<Task>) -> Result<Option<Pending>, Error> {
    if settings.shield.is_none() {
        return Ok(None);
    }
    let signals = SignalFd::new(SignalSet::EMPTY.with(SIGCHLD))
        .context(|| "listening to shielded processes".into())?;
    let pending = Pending::default();
    let (tasks, told) = (tasks.clone(), Arc::clone(&pending));
    spawn("shield", move || {
        loop {
            let mut fds = [PollFd::new(&signals, PollFlags::IN)];
            let _ = poll(&mut fds, None);
            while let Ok(Some(_)) = signals.read() {}
            if !told.swap(true, Ordering::AcqRel) && tasks.send(Task::Stopped).is_err() {
                return;
            }
        }
    })?;
    Ok(Some(pending))
}

/// Which signals are kept away, for the engine.
pub(super) fn withheld(settings: &Settings) -> Withheld {
    if settings.shield.is_none() {
        return Withheld::default();
    }
    let add = |set: SignalSet, signal: &i32| set.with(*signal);
    Withheld {
        signals: settings.stop_signals.iter().fold(SignalSet::EMPTY, add),
        user: rustix::process::geteuid().as_raw(),
    }
}

/// Raises it, for this thread; tells what is not under it.
pub(super) fn raise(settings: &Settings, keeper: Pid) -> Option<(Shield, Option<String>)> {
    let wanted = settings.shield.as_ref()?;
    let strangers: Vec<Pid> = wanted.strangers.iter().map(|pid| Pid(*pid)).collect();
    let (shield, refused) = Shield::raise(keeper, withheld(settings), &strangers);
    let told = refused.first().map(|(pid, error)| {
        format!(
            "process {pid}, which started this command, cannot be kept from the warning signal ({error}): start the \
             command with exec, so that the signal reaches it"
        )
    });
    Some((shield, told))
}

/// How long the members of a group may take to get a signal that all of them are sent.
const TOGETHER: Duration = Duration::from_millis(300);

/// The signal that was kept away, where there was one. Then all of the group are waited for, as one that got it during
/// the freeze would end.
pub(super) fn look(shield: &Shield) -> Option<i32> {
    let (_, signal) = shield.pump().into_iter().next()?;
    let mut since = Instant::now();
    while since.elapsed() < TOGETHER {
        thread::sleep(Duration::from_millis(2));
        if !shield.pump().is_empty() {
            since = Instant::now();
        }
    }
    Some(signal)
}
