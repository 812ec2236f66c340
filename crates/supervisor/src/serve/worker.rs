//! The main thread: takes checkpoints when they are due or asked for, one at a time.

use super::deadline::Plan;
use super::group::{News, Round};
use super::shield::{self, Pending};
use super::state::Shared;
use super::{Inbox, Task};
use crate::line::{self, Brief, ToFront, Told, Why, fitting};
use crate::protocol::Saved;
use crate::schedule::{Cadence, Costs};
use crate::{Interval, retention};
use crossbeam_channel::{RecvTimeoutError, Sender};
use rustix::process::Signal;
use stasis_coordinator::link::Voice;
use stasis_coordinator::protocol::FromMember;
use stasis_engine::checkpoint::{self, Computation, JobInfo, Options, Report};
use stasis_engine::progress::{Progress, Step};
use stasis_engine::shield::Shield;
use stasis_engine::{EngineError, Job};
use stasis_image::{Image, ImageError};
use stasis_sys::{Pid, signal};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
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
    interval: Option<Cadence>,
    /// Of the last checkpoints.
    costs: Costs,
    /// When the last attempt ended.
    last_end: Instant,
    deadline: Plan,
    /// Raised in this round; the flag is for the next news.
    shield: Option<(Shield, Pending)>,
    /// What was to be said of the shield was said.
    told_of_shield: bool,
    /// The newest image of this job that is known to be good to build upon.
    newest: Option<PathBuf>,
    /// The coordinator, while there is one.
    voice: Option<Voice>,
    /// How many jobs belong to the computation.
    members: usize,
    /// Requests that wait for a checkpoint of all members.
    pending: Vec<Request>,
}

enum Next {
    Checkpoint(Vec<Request>),
    Round(Round),
    Finished,
}

impl Worker {
    pub(super) fn new(
        job: Job,
        shared: Arc<Shared>,
        front: Arc<OwnedFd>,
        inbox: Inbox,
        voice: Option<Voice>,
    ) -> Worker {
        let interval = shared.settings.interval;
        let newest = shared.own_image().map(Path::to_owned);
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
            costs: Costs::default(),
            last_end: Instant::now(),
            deadline,
            shield: None,
            told_of_shield: false,
            newest,
            voice,
            members: 1,
            pending: Vec::new(),
        }
    }

    /// Works until the job is over. `stops` is where stopped processes behind a shield are told of.
    pub(super) fn work(&mut self, stops: Option<Pending>) {
        match stops {
            None => while self.round() {},
            Some(stops) => while self.shielded_round(&stops) {},
        }
        let late = self.inbox.try_iter().filter_map(|task| match task {
            Task::Checkpoint(request) => Some(request),
            _ => None,
        });
        // A signal that came too late needs no answer.
        let waits = |request: &Request| {
            matches!(request.waiter, Waiter::Connection(_) | Waiter::Process(_))
        };
        let unserved = self.pending.drain(..).chain(late);
        let unserved: Vec<Request> = unserved.filter(waits).collect();
        self.answer_all(unserved, &Err(EngineError::Gone.to_string()));
        if let Some(voice) = &self.voice {
            // Without this word the coordinator takes the supervisor for lost.
            let _ = voice.say(&FromMember::Ended);
        }
    }

    /// Waits for a reason to take a checkpoint, and takes it; false when the job is over.
    fn round(&mut self) -> bool {
        match self.next() {
            Next::Checkpoint(requests) => self.serve(requests),
            Next::Round(round) => self.serve_round(&round),
            Next::Finished => return false,
        }
        true
    }

    /// The same behind a shield, on a thread of its own.
    fn shielded_round(&mut self, stops: &Pending) -> bool {
        thread::scope(|scope| {
            let round = scope.spawn(|| {
                let raised = shield::raise(&self.shared.settings, self.job.keeper);
                if let Some((shield, told)) = raised {
                    self.shield = Some((shield, Arc::clone(stops)));
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
        let (shield, stops) = self.shield.as_ref()?;
        stops.store(false, Ordering::Release);
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
            // The coordinator keeps the time for all members.
            let own = self.interval.filter(|_| self.voice.is_none());
            let by_interval =
                own.and_then(|cadence| self.last_end.checked_add(cadence.wait(&self.costs)));
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
                Ok(Task::Checkpoint(request)) => match self.ask_for_all(request) {
                    Some(request) => return self.gather(vec![request]),
                    None => continue,
                },
                Ok(Task::Interval(interval)) => self.set_interval(interval),
                Ok(Task::Deadline(end)) => self.deadline.set(end),
                Ok(Task::Stopped) => {
                    if let Some(request) = self.look() {
                        return self.gather(vec![request]);
                    }
                }
                Ok(Task::Group(News::Round(round))) => return Next::Round(round),
                Ok(Task::Group(news)) => {
                    if let Some(requests) = self.learn(news) {
                        return Next::Checkpoint(requests);
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
        while let Ok(task) = self.inbox.try_recv() {
            match task {
                Task::Checkpoint(request) => requests.push(request),
                Task::Interval(interval) => self.set_interval(interval),
                Task::Deadline(end) => self.deadline.set(end),
                Task::Stopped => requests.extend(self.look()),
                // A coordinator that has just been found: it will be heard before the next checkpoint.
                Task::Group(news) => {
                    self.learn(news);
                }
                Task::Finished => {
                    self.answer_all(requests, &Err(EngineError::Gone.to_string()));
                    return Next::Finished;
                }
            }
        }
        Next::Checkpoint(requests)
    }

    /// How long after a checkpoint the next one is due.
    fn wait(&self) -> Option<Duration> {
        self.interval.map(|cadence| cadence.wait(&self.costs))
    }

    /// Asks the coordinator for a checkpoint of all members; gives the request back where there is none.
    fn ask_for_all(&mut self, request: Request) -> Option<Request> {
        let Some(voice) = &self.voice else {
            return Some(request);
        };
        // Where it cannot be told, it is gone: that is going to be heard, and the request then dealt with.
        let _ = voice.say(&FromMember::Wanted { stop: request.stop });
        self.pending.push(request);
        None
    }

    fn set_interval(&mut self, interval: Option<Cadence>) {
        self.interval = interval;
        if let Some(voice) = &self.voice {
            let seconds = self.wait().map(|wait| wait.as_secs());
            let _ = voice.say(&FromMember::Interval { seconds });
        }
    }

    /// Takes note of what has changed in the computation. Gives requests that this job has to deal with alone.
    fn learn(&mut self, news: News) -> Option<Vec<Request>> {
        match news {
            News::Interval(seconds) => {
                self.interval = Interval::from_seconds(seconds).map(Cadence::Every);
            }
            News::Members(count) => self.members = count,
            News::Found(voice) => self.voice = Some(voice),
            // One whose coordinator has gone already.
            News::Round(_) => {}
            News::Lost => {
                self.voice = None;
                let pending = std::mem::take(&mut self.pending);
                return (!pending.is_empty()).then_some(pending);
            }
        }
        None
    }

    /// Takes this job's part in a checkpoint of all members.
    fn serve_round(&mut self, round: &Round) {
        while let Ok(task) = self.inbox.try_recv() {
            match task {
                Task::Checkpoint(request) => self.pending.extend([request]),
                Task::Interval(interval) => self.set_interval(interval),
                Task::Deadline(end) => self.deadline.set(end),
                Task::Stopped => self.pending.extend(self.look()),
                Task::Group(News::Round(_)) => return,
                Task::Group(news) => {
                    let requests = self.learn(news);
                    self.pending.extend(requests.into_iter().flatten());
                }
                Task::Finished => {
                    let _ = round.gate.give_up(&EngineError::Gone.to_string(), true);
                    return;
                }
            }
        }
        // Who wants more than this round gives waits for the next one.
        let (later, served) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|request: &Request| request.stop && !round.stop);
        self.pending = later;
        self.shared.bytes.reset();
        self.shared.lock().checkpointing = true;
        let seen = self.shared.wait_for_quiet();
        let result = match round.gate.failure() {
            Some(failure) => Err(EngineError::Failed(failure.reason)),
            None => self.attempt(round.stop, Some(round)),
        };
        self.last_end = Instant::now();
        let outcome = match result {
            Ok((report, taken_at)) => {
                round.gate.done(&report.path);
                Ok(saved(report, taken_at))
            }
            Err(error) => {
                let passing = matches!(&error, EngineError::Passing(_));
                let spoken_to = matches!(&error, EngineError::Refused(refusals)
                    if self.shared.was_disturbed(seen, refusals));
                if spoken_to {
                    self.shared.wait_for_another(seen);
                }
                // A program that has ended in the middle leaves the round to the others.
                let again = passing || spoken_to || self.shared.processes().is_empty();
                let failure = round.gate.failure();
                let failure =
                    failure.unwrap_or_else(|| round.gate.give_up(&error.to_string(), again));
                if failure.again {
                    self.pending.extend(served);
                    self.shared.lock().checkpointing = false;
                    return;
                }
                Err(failure.reason)
            }
        };
        self.conclude(served, round.stop, outcome);
    }

    fn announce(&self, due: Option<Instant>) {
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let mut now = self.shared.lock();
        now.interval_seconds = self.wait().map(|wait| wait.as_secs());
        now.interval_auto = matches!(self.interval, Some(Cadence::Auto(_)));
        now.next_due = left.and_then(|left| jiff::Timestamp::now().checked_add(left).ok());
    }

    fn serve(&mut self, requests: Vec<Request>) {
        self.shared.bytes.reset();
        self.shared.lock().checkpointing = true;
        let stop = requests.iter().any(|request| request.stop);
        let began = Instant::now();
        let outcome = if self.members > 1 {
            Err(format!(
                "this program is one of {} that can only be saved together, and their coordinator is gone: start one at \
                 the same port (dmtcp_coordinator), they join it by themselves",
                self.members
            ))
        } else {
            self.checkpoint(stop)
        };
        self.last_end = Instant::now();
        match &outcome {
            Ok(_) => self.deadline.learn(began.elapsed()),
            Err(_) => self.deadline.failed(),
        }
        self.conclude(requests, stop, outcome);
    }

    /// Tells everybody who waits what came of a checkpoint.
    fn conclude(&self, requests: Vec<Request>, stop: bool, outcome: Outcome) {
        let why = why(&requests);
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
        self.answer_all(requests, &outcome);
    }

    fn answer_all(&self, requests: Vec<Request>, outcome: &Outcome) {
        for request in requests {
            self.answer(request.waiter, outcome);
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
            next_seconds: self.wait().map(|wait| wait.as_secs()),
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
                now.sequence = saved.sequence;
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
            match self.attempt(stop, None) {
                Err(EngineError::Refused(refusals))
                    if attempt < ATTEMPTS && self.shared.was_disturbed(seen, &refusals) =>
                {
                    self.shared.wait_for_another(seen);
                }
                // What this one was to be built upon is of no use: it is written in full.
                Err(EngineError::Image(error)) if self.newest.is_some() && is_of_older(&error) => {
                    tracing::warn!(%error, "the older image cannot be built upon");
                    self.newest = None;
                }
                Err(error) => return Err(error.to_string()),
                Ok((report, taken_at)) => {
                    self.costs.note(report.total);
                    self.newest = Some(report.path.clone());
                    self.prune();
                    return Ok(saved(report, taken_at));
                }
            }
        }
        unreachable!("the loop above returns")
    }

    fn attempt(
        &mut self,
        stop: bool,
        round: Option<&Round>,
    ) -> Result<(Report, jiff::Timestamp), EngineError> {
        let settings = &self.shared.settings;
        let wanted = round.map(|round| round.generation);
        let next = (settings.naming)
            .next(
                &settings.directory,
                &settings.name,
                self.shared.generation(),
                wanted,
            )
            .map_err(|error| EngineError::Failed(error.to_string()))?;
        let (path, sequence) = (next.path, next.sequence);
        let computation = settings.membership.as_ref().map(|membership| Computation {
            id: membership.joined().computation.clone(),
            generation: sequence,
            members: round.map_or_else(
                || vec![settings.name.to_string()],
                |round| round.members.clone(),
            ),
        });
        let taken_at = jiff::Timestamp::now();
        let options = Options {
            compression: settings.compression,
            threads: settings.threads,
            file_content_limit: settings.file_limit,
            requesters: self.shared.requesters.clone(),
            stop,
            withheld: shield::withheld(settings),
            here: self.shield.is_some(),
            replace: next.replace,
            barrier: round.map(|round| Arc::clone(&round.gate) as Arc<_>),
            twins: !settings.pause,
            nice: settings.nice,
            older: self.older().filter(|_| !next.replace),
            secret: settings.secret.clone(),
            info: JobInfo {
                name: settings.name.to_string(),
                sequence,
                command: settings.command.clone(),
                taken_at: taken_at.as_second(),
                host: rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned(),
                computation,
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

    /// The image that the next one is built upon.
    fn older(&self) -> Option<Arc<Image>> {
        let settings = &self.shared.settings;
        let path = self.newest.as_ref().filter(|_| settings.incremental)?;
        match Image::open_with(path, &settings.keys) {
            Ok(image) => Some(Arc::new(image)),
            Err(error) => {
                tracing::warn!(%error, "the older image cannot be built upon");
                None
            }
        }
    }

    fn prune(&self) {
        let settings = &self.shared.settings;
        if !settings.naming.prunes() {
            return;
        }
        let pruned = retention::plan(&settings.directory, Some(&settings.name), settings.keep)
            .map(|plan| plan.execute());
        let stay = match pruned {
            Ok(stay) => stay.first().map(ToString::to_string),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = stay {
            let text = format!("old checkpoints stay: {reason}");
            self.tell(&ToFront::Note(fitting(text)), false);
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
                        .wait()
                        .and_then(|wait| Interval::from_seconds(wait.as_secs()))
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

/// Whether an older image is at fault: it was read, and not as it was written.
fn is_of_older(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Damaged { .. } | ImageError::Truncated { .. } | ImageError::Read { .. }
    )
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
        bases: report.bases,
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
