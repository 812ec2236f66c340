//! The main thread: takes checkpoints when they are due or asked for, one at a time.

use super::deadline::Plan;
use super::shield::{self, Pending};
use super::state::Shared;
use super::{Inbox, Task};
use crate::line::{self, Brief, ToFront, Told, Why, fitting};
use crate::protocol::Saved;
use crate::{Interval, finished, retention};
use crossbeam_channel::{RecvTimeoutError, Sender};
use rustix::process::Signal;
use stasis_engine::checkpoint::{self, JobInfo, Options, Report};
use stasis_engine::progress::{Progress, Step};
use stasis_engine::shield::Shield;
use stasis_engine::{EngineError, Job};
use stasis_sys::{Pid, signal};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a checkpoint is tried that was disturbed by a process of the tree speaking to us.
const ATTEMPTS: u32 = 5;
/// How often the front hears about progress.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// What came of a request: the image, or why there is none.
pub(super) type Outcome = Result<Saved, String>;

/// Who waits for the outcome.
pub(super) enum Waiter {
    /// A thread that serves a connection.
    Connection(Sender<Outcome>),
    /// A process of the tree, which is told by a signal.
    Process(Pid),
    /// The front: this signal was the trigger.
    Front(i32),
    /// Nobody: somebody who is shielded was sent this signal.
    Shield(i32),
    /// Nobody: it was due.
    Clock,
    /// Nobody: the deadline is near.
    Deadline,
}

/// A checkpoint that somebody wants.
pub(super) struct Request {
    pub stop: bool,
    pub waiter: Waiter,
}

impl Request {
    pub(super) fn from_front(stop: bool, signal: i32) -> Request {
        Request {
            stop,
            waiter: Waiter::Front(signal),
        }
    }

    fn why(&self) -> Why {
        match self.waiter {
            Waiter::Connection(_) | Waiter::Process(_) => Why::Request,
            Waiter::Front(signal) | Waiter::Shield(signal) => Why::Signal(signal),
            Waiter::Clock => Why::Interval,
            Waiter::Deadline => Why::Deadline,
        }
    }
}

pub(super) struct Worker {
    job: Job,
    shared: Arc<Shared>,
    front: Arc<OwnedFd>,
    inbox: Inbox,
    interval: Option<Interval>,
    /// When the last attempt ended.
    last_end: Instant,
    deadline: Plan,
    /// Raised in this round; the flag is for the next news.
    shield: Option<(Shield, Pending)>,
    /// What was to be said of the shield was said.
    told_of_shield: bool,
}

enum Next {
    Checkpoint(Vec<Request>),
    Finished,
}

impl Worker {
    pub(super) fn new(job: Job, shared: Arc<Shared>, front: Arc<OwnedFd>, inbox: Inbox) -> Worker {
        let interval = shared.settings.interval;
        let deadline = shared.settings.deadline.as_ref();
        let deadline = Plan::new(
            deadline.and_then(|deadline| deadline.margin),
            deadline.and_then(|deadline| deadline.least),
        );
        Worker {
            job,
            shared,
            front,
            inbox,
            interval,
            last_end: Instant::now(),
            deadline,
            shield: None,
            told_of_shield: false,
        }
    }

    /// Works until the job is over. `news` is where shielded processes are told of.
    pub(super) fn work(&mut self, news: Option<Pending>) {
        match news {
            None => while self.round() {},
            Some(news) => while self.shielded_round(&news) {},
        }
        for task in self.inbox.try_iter() {
            if let Task::Checkpoint(request) = task
                && matches!(request.waiter, Waiter::Connection(_) | Waiter::Process(_))
            {
                self.answer(request.waiter, &Err(EngineError::Gone.to_string()));
            }
        }
    }

    /// Waits for a reason to take a checkpoint, and takes it; false when the job is over.
    fn round(&mut self) -> bool {
        match self.next() {
            Next::Checkpoint(requests) => {
                self.serve(requests);
                true
            }
            Next::Finished => false,
        }
    }

    /// The same behind a shield, on a thread of its own.
    fn shielded_round(&mut self, news: &Pending) -> bool {
        thread::scope(|scope| {
            let round = scope.spawn(|| {
                let raised = shield::raise(&self.shared.settings, self.job.keeper);
                if let Some((shield, told)) = raised {
                    self.shield = Some((shield, Arc::clone(news)));
                    if let Some(text) = told.filter(|_| !self.told_of_shield) {
                        self.tell_note(text);
                    }
                    self.told_of_shield = true;
                }
                let goes_on = self.round();
                // Whoever has stopped meanwhile would get its signal when this thread ends.
                if let Some((shield, _)) = self.shield.take() {
                    shield.pump();
                }
                goes_on
            });
            round.join().unwrap_or(false)
        })
    }

    /// Looks after shielded processes: a signal that was kept away is a request.
    fn look(&self) -> Option<Request> {
        let (shield, news) = self.shield.as_ref()?;
        news.store(false, Ordering::Release);
        shield::look(shield).map(|signal| Request {
            stop: true,
            waiter: Waiter::Shield(signal),
        })
    }

    fn next(&mut self) -> Next {
        // Before the first news, as something may have stopped already.
        if let Some(request) = self.look() {
            return self.gather(vec![request]);
        }
        loop {
            let by_interval = self
                .interval
                .map(|interval| self.last_end + interval.duration());
            let by_deadline = self.deadline.due(|| self.shared.memory());
            let due = match (by_interval, by_deadline) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            self.announce(due);
            let task = match due {
                Some(due) => self.inbox.recv_deadline(due),
                None => self
                    .inbox
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
            };
            match task {
                Ok(Task::Checkpoint(request)) => return self.gather(vec![request]),
                Ok(Task::Interval(interval)) => self.interval = interval,
                Ok(Task::Deadline(end)) => self.deadline.set(end),
                Ok(Task::News) => {
                    if let Some(request) = self.look() {
                        return self.gather(vec![request]);
                    }
                }
                Ok(Task::Finished) | Err(RecvTimeoutError::Disconnected) => return Next::Finished,
                Err(RecvTimeoutError::Timeout) => {
                    let last = by_deadline.is_some_and(|due| due <= Instant::now());
                    return self.gather(vec![Request {
                        stop: last,
                        waiter: if last {
                            Waiter::Deadline
                        } else {
                            Waiter::Clock
                        },
                    }]);
                }
            }
        }
    }

    /// Requests that have arrived before a checkpoint begins are all served by it.
    fn gather(&mut self, mut requests: Vec<Request>) -> Next {
        for task in self.inbox.try_iter() {
            match task {
                Task::Checkpoint(request) => requests.push(request),
                Task::Interval(interval) => self.interval = interval,
                Task::Deadline(end) => self.deadline.set(end),
                Task::News => {
                    requests.extend(self.look());
                }
                Task::Finished => {
                    for request in requests {
                        self.answer(request.waiter, &Err(EngineError::Gone.to_string()));
                    }
                    return Next::Finished;
                }
            }
        }
        Next::Checkpoint(requests)
    }

    fn announce(&self, due: Option<Instant>) {
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let mut now = self.shared.lock();
        now.interval_seconds = self.interval.map(|interval| interval.duration().as_secs());
        now.next_due = left.and_then(|left| jiff::Timestamp::now().checked_add(left).ok());
    }

    fn serve(&mut self, requests: Vec<Request>) {
        self.shared.bytes.reset();
        self.shared.lock().checkpointing = true;
        let stop = requests.iter().any(|request| request.stop);
        let why = why(&requests);
        let began = Instant::now();
        let outcome = self.checkpoint(stop);
        self.last_end = Instant::now();
        match &outcome {
            Ok(_) => self.deadline.learn(began.elapsed()),
            Err(_) => self.deadline.failed(),
        }
        self.note(&outcome);
        if self.shared.settings.tell_checkpoints {
            self.tell(&self.told(&outcome, why, stop), true);
        }
        match &outcome {
            Ok(saved) if stop => {
                let path = saved.path.clone();
                self.tell(&ToFront::SavedAndStopped { path, why }, true);
            }
            Err(_) if stop => self.pass_on(&requests),
            _ => {}
        }
        for request in requests {
            self.answer(request.waiter, &outcome);
        }
    }

    fn told(&self, outcome: &Outcome, why: Why, stop: bool) -> ToFront {
        let outcome = match outcome {
            Ok(saved) => Ok(Brief {
                path: saved.path.clone(),
                sequence: saved.sequence,
                pause_us: (saved.pause_ms * 1000.0) as u64,
                total_us: (saved.total_ms * 1000.0) as u64,
                image_bytes: saved.image_bytes,
            }),
            Err(reason) => Err(fitting(reason.clone())),
        };
        ToFront::Checkpoint(Told {
            why,
            outcome,
            next_seconds: self.interval.map(|interval| interval.duration().as_secs()),
            stop,
        })
    }

    /// A warning that could not be used is the program's after all: it may have something of its own to do about it.
    fn pass_on(&self, requests: &[Request]) {
        for request in requests {
            if let Waiter::Shield(signal) = request.waiter {
                for pid in self.shared.processes() {
                    let _ = signal::send(pid, signal);
                }
            }
        }
    }

    fn note(&self, outcome: &Outcome) {
        let mut now = self.shared.lock();
        now.checkpointing = false;
        match outcome {
            Ok(saved) => {
                now.last = Some(saved.clone());
                now.last_error = None;
            }
            Err(reason) => now.last_error = Some(reason.clone()),
        }
    }

    /// Takes one. A process of the tree that talks to us at the moment of the freeze would be saved with its
    /// connection, which the engine refuses: such an attempt is repeated.
    fn checkpoint(&mut self, stop: bool) -> Outcome {
        for attempt in 1.. {
            let seen = self.shared.wait_for_quiet();
            match self.attempt(stop) {
                Err(EngineError::Refused(refusals))
                    if attempt < ATTEMPTS && self.shared.was_disturbed(seen, &refusals) =>
                {
                    self.shared.wait_for_another(seen);
                }
                Err(error) => return Err(error.to_string()),
                Ok((report, taken_at)) => {
                    self.prune();
                    return Ok(saved(report, taken_at));
                }
            }
        }
        unreachable!("the loop above returns")
    }

    fn attempt(&mut self, stop: bool) -> Result<(Report, jiff::Timestamp), EngineError> {
        let settings = &self.shared.settings;
        let sequence = finished::next_sequence(&settings.directory, &settings.name)
            .map_err(|error| EngineError::Failed(error.to_string()))?;
        let path = settings
            .directory
            .join(stasis_image::image_name(settings.name.as_str(), sequence));
        let taken_at = jiff::Timestamp::now();
        let options = Options {
            compression: settings.compression,
            threads: settings.threads,
            file_content_limit: settings.file_limit,
            requesters: self.shared.requesters.clone(),
            stop,
            withheld: shield::withheld(settings),
            here: self.shield.is_some(),
            info: JobInfo {
                name: settings.name.to_string(),
                sequence,
                command: settings.command.clone(),
                taken_at: taken_at.as_second(),
                host: rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned(),
            },
        };
        let progress = Telling {
            shared: &self.shared,
            front: settings.show_progress.then_some(&self.front),
            last: Mutex::new(Instant::now()),
        };
        tracing::debug!(path = %path.display(), stop, "checkpoint");
        let report = checkpoint::checkpoint(&mut self.job, &path, &options, &progress)?;
        tracing::debug!(?report, "committed");
        Ok((report, taken_at))
    }

    fn prune(&self) {
        let settings = &self.shared.settings;
        if let Err(error) = retention::prune(&settings.directory, &settings.name, settings.keep) {
            self.tell(
                &ToFront::Note(fitting(format!("old checkpoints stay: {error}"))),
                false,
            );
        }
    }

    fn answer(&self, waiter: Waiter, outcome: &Outcome) {
        match waiter {
            // A waiter that has left does not want to know.
            Waiter::Connection(sender) => drop(sender.send(outcome.clone())),
            Waiter::Process(pid) => {
                let value = i32::from(outcome.is_err());
                self.shared.requesters.remove(pid);
                let _ = signal::send_value(pid, Signal::USR2.as_raw(), value);
            }
            Waiter::Front(_) | Waiter::Shield(_) | Waiter::Deadline => match outcome {
                Ok(saved) => saved
                    .notes
                    .iter()
                    .for_each(|note| self.tell_note(note.clone())),
                Err(_) if self.shared.settings.tell_checkpoints => {}
                Err(reason) => {
                    self.tell_note(format!("checkpoint failed, the program runs on: {reason}"))
                }
            },
            Waiter::Clock => match outcome {
                Ok(saved) => saved
                    .notes
                    .iter()
                    .for_each(|note| self.tell_note(note.clone())),
                Err(_) if self.shared.settings.tell_checkpoints => {}
                Err(reason) => {
                    let again = self
                        .interval
                        .map(|interval| format!(", next try in {interval}"))
                        .unwrap_or_default();
                    self.tell_note(format!(
                        "checkpoint failed, the program runs on{again}: {reason}"
                    ));
                }
            },
        }
    }

    fn tell_note(&self, text: String) {
        self.tell(&ToFront::Note(fitting(text)), false);
    }

    fn tell(&self, message: &ToFront, wait: bool) {
        if let Err(error) = line::tell(&*self.front, message, wait) {
            tracing::debug!(%error, "the front does not listen");
        }
    }
}

/// What a checkpoint that serves several is taken for: what ends the program first.
fn why(requests: &[Request]) -> Why {
    let ending = requests
        .iter()
        .filter(|request| request.stop)
        .map(Request::why)
        .max_by_key(|why| !matches!(why, Why::Request));
    let any = || requests.first().map(Request::why);
    ending.or_else(any).unwrap_or(Why::Interval)
}

fn saved(report: Report, taken_at: jiff::Timestamp) -> Saved {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    Saved {
        pause_ms: milliseconds(report.pause),
        total_ms: milliseconds(report.total),
        path: report.path,
        sequence: report.sequence,
        taken_at,
        processes: report.processes,
        threads: report.threads,
        captured_bytes: report.captured,
        image_bytes: report.written,
        notes: report.notes,
    }
}

/// Passes progress on to whoever shows it.
struct Telling<'a> {
    shared: &'a Shared,
    front: Option<&'a Arc<OwnedFd>>,
    last: Mutex<Instant>,
}

impl Progress for Telling<'_> {
    fn step(&self, step: Step) {
        tracing::debug!(?step);
    }
    fn bytes(&self, done: u64, total: u64) {
        self.shared.bytes.bytes(done, total);
        let Some(front) = self.front else {
            return;
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= TELL_EVERY {
            *last = Instant::now();
            let message = ToFront::Progress {
                what: "writing".into(),
                done,
                total,
            };
            let _ = line::tell(&**front, &message, false);
        }
    }
    fn note(&self, text: &str) {
        tracing::info!("{text}");
    }
}
