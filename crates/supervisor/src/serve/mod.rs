//! The supervisor's life after the program has been started: it waits for reasons to take a checkpoint.
//!
//! Threads, none of which exists before the program runs: the main one traces, takes checkpoints and keeps the time
//! ([`worker`]); one listens on the control socket and one serves each connection ([`listener`]); one hears the keeper
//! and one the front (here).

mod deadline;
mod group;
mod listener;
mod shield;
mod state;
mod worker;

use crate::error::Context;
use crate::line::{self, ToFront, ToSupervisor};
use crate::schedule::Cadence;
use crate::{Error, Settings, runtime_dir};
use crossbeam_channel::{Receiver, Sender, unbounded};
pub(crate) use listener::Socket;
use rustix::process::Signal;
use stasis_coordinator::link::Voice;
use stasis_coordinator::protocol::Running;
use stasis_engine::Job;
use stasis_engine::keeper::Event;
use stasis_engine::look::Look;
use stasis_engine::tree::Stat;
use stasis_sys::process::exit_now;
use stasis_sys::{Pid, signal};
use state::Shared;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use worker::Request;

/// What makes the main thread act.
enum Task {
    /// Somebody wants a checkpoint.
    Checkpoint(Request),
    /// Another interval from now on.
    Interval(Option<Cadence>),
    /// Another deadline from now on.
    Deadline(Option<SystemTime>),
    /// A shielded process has stopped for the supervisor to look at it.
    Stopped,
    /// Somebody wants to know what a checkpoint would keep and refuse.
    Check(Sender<Result<Look, String>>),
    /// Something from the computation that the job is a member of.
    Group(group::News),
    /// The job is over.
    Finished,
}

/// The control socket. It is bound before the program runs, as the program may ask for a checkpoint at once.
pub(crate) fn bind() -> Result<Socket, Error> {
    Socket::bind(&runtime_dir::for_supervisor()?)
}

/// What the supervisor serves with.
pub(crate) struct Service {
    pub job: Job,
    pub settings: Settings,
    pub front: OwnedFd,
    /// Bound, and waiting for somebody to listen.
    pub socket: Socket,
    pub restarted_from: Option<PathBuf>,
    /// Processes of the tree that were waiting for the checkpoint when it was taken.
    pub waiting: Vec<Pid>,
    /// The job has the terminal that the front has made for it.
    pub terminal: bool,
}

/// Serves until the job is over; never returns.
pub(crate) fn supervise(service: Service) -> ! {
    let Service {
        job,
        settings,
        front,
        socket,
        restarted_from,
        waiting,
        terminal,
    } = service;
    let root = job.root.0;
    let front = Arc::new(front);
    let front_pid =
        rustix::process::getppid().map_or(Pid(0), |pid| Pid(pid.as_raw_nonzero().get()));
    // Before anybody else can know of the job: what the front is told to do with it must not be taken for a giving up
    // of the start.
    let _ = line::tell(front.as_fd(), &ToFront::Started { root, terminal }, true);
    // Nothing of this process may keep a file system busy.
    let _ = std::env::set_current_dir("/");
    let (tasks, inbox) = unbounded();
    let shared = Arc::new(Shared::new(&job, settings, restarted_from, socket.path()));
    let threads = start_threads(&job, &shared, &front, front_pid, &tasks)
        .and_then(|()| listen(&socket, &shared, &tasks));
    if let Err(error) = threads {
        let text = format!("this job takes no requests: {error}");
        let _ = line::tell(front.as_fd(), &ToFront::Note(text), true);
    }
    let resized = job.resized.clone();
    if !resized.is_empty()
        && let Err(error) = spawn("window", move || tell_of_window(&resized))
    {
        tracing::warn!(%error, "the program is not told of its window's size");
    }
    let voice = match join_in(&shared, &front, &job, &tasks) {
        Ok(voice) => voice,
        Err(error) => {
            let text = format!("this job is not a member of its computation: {error}");
            let _ = line::tell(front.as_fd(), &ToFront::Note(text), true);
            None
        }
    };
    for pid in waiting {
        let _ = signal::send_value(pid, Signal::USR2.as_raw(), 0);
    }
    let watched = deadline::watch(&shared.settings, &tasks);
    let heard = watched.and_then(|()| shield::listen(&shared.settings, &tasks));
    let stops = heard.unwrap_or_else(|error| {
        let text = format!("warnings of the end may be missed: {error}");
        let _ = line::tell(front.as_fd(), &ToFront::Note(text), true);
        None
    });
    worker::Worker::new(job, Arc::clone(&shared), Arc::clone(&front), inbox, voice).work(stops);
    shared.close();
    socket.remove();
    shared.wait_for_connections();
    exit_now(0)
}

fn start_threads(
    job: &Job,
    shared: &Shared,
    front: &Arc<OwnedFd>,
    front_pid: Pid,
    tasks: &Sender<Task>,
) -> Result<(), Error> {
    let events = job
        .events
        .try_clone()
        .context(|| "sharing the keeper's line".into())?;
    let exit_with_root = shared.settings.exit_with_root;
    let to_worker = tasks.clone();
    spawn("keeper", move || {
        hear_keeper(&events, front_pid, exit_with_root, &to_worker)
    })?;
    let (from_front, to_worker) = (Arc::clone(front), tasks.clone());
    spawn("front", move || hear_front(&from_front, &to_worker))
}

/// Takes the job's place in its computation, where it has one.
fn join_in(
    shared: &Arc<Shared>,
    front: &Arc<OwnedFd>,
    job: &Job,
    tasks: &Sender<Task>,
) -> Result<Option<Voice>, Error> {
    let Some(membership) = shared.settings.membership.clone() else {
        return Ok(None);
    };
    let Some(link) = membership.take() else {
        return Ok(None);
    };
    let voice = link.voice();
    let ear = group::Ear {
        membership,
        running: Running {
            pid: job.root.0,
            virtual_pid: job.virtual_root.0,
        },
        shared: Arc::clone(shared),
        tasks: tasks.clone(),
        front: Arc::clone(front),
    };
    ear.introduce(&voice);
    spawn("coordinator", move || ear.listen(link))?;
    Ok(Some(voice))
}

fn listen(socket: &Socket, shared: &Arc<Shared>, tasks: &Sender<Task>) -> Result<(), Error> {
    let listener = socket
        .listener()
        .context(|| "sharing the control socket".into())?;
    let (shared, to_worker) = (Arc::clone(shared), tasks.clone());
    spawn("listener", move || {
        listener::listen(&listener, &shared, &to_worker);
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = thread::Builder::new().name(name.into());
    thread
        .spawn(work)
        .map(drop)
        .context(|| format!("starting the thread {name}"))
}

/// Passes on what the keeper tells, until the job is over.
fn hear_keeper(events: &OwnedFd, front: Pid, exit_with_root: bool, tasks: &Sender<Task>) {
    loop {
        match Event::receive(events.as_fd()) {
            Ok(Some(Event::RootContinued)) => wake(front),
            Ok(Some(Event::RootExited(_))) if exit_with_root => break,
            Ok(Some(Event::RootExited(_) | Event::RootStopped(_))) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(Some(Event::Empty) | None) | Err(_) => break,
        }
    }
    let _ = tasks.send(Task::Finished);
}

/// For how long a process may take to get back into the call that it was saved in.
const BACK_IN_CALL: Duration = Duration::from_secs(1);

/// Tells processes of another size of their window. Those that wait in a call are to be interrupted, as they would have been:
/// the signal must not come before they are back in it.
fn tell_of_window(processes: &[Pid]) {
    let deadline = Instant::now() + BACK_IN_CALL;
    for pid in processes {
        let runs = || Stat::read(*pid).is_some_and(|stat| stat.state == 'R');
        while runs() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let _ = signal::send(*pid, Signal::WINCH.as_raw());
    }
}

/// The front stops itself when the program stops, so that the shell sees it. When somebody continues the program
/// alone, the front must not stay behind.
fn wake(front: Pid) {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if parent == Some(front.0) {
        let _ = signal::send(front, Signal::CONT.as_raw());
    }
}

/// Passes on what the front asks for. When the front is gone there is nothing to do: the keeper ends the job.
fn hear_front(front: &OwnedFd, tasks: &Sender<Task>) {
    while let Ok(Some(ToSupervisor::Checkpoint { stop, signal })) = line::hear(front) {
        if tasks
            .send(Task::Checkpoint(Request::from_front(stop, signal)))
            .is_err()
        {
            return;
        }
    }
}

type Inbox = Receiver<Task>;
