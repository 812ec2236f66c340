//! The main thread: takes checkpoints when they are due or asked for, one at a time.

mod computation;
mod outcome;

use super::deadline::Plan;
use super::group::{News, Round};
use super::shield::{self, Pending};
use super::state::Shared;
use super::{Inbox, Task};
use crate::line::{ToFront, Why, fitting};
use crate::protocol::Saved;
use crate::retention;
use crate::schedule::{Cadence, Costs};
use crossbeam_channel::{RecvTimeoutError, Sender};
use outcome::{Telling, saved};
use stasis_coordinator::link::Voice;
use stasis_coordinator::protocol::FromMember;
use stasis_engine::checkpoint::{self, Computation, JobInfo, Options, Report};
use stasis_engine::look::{self, Look};
use stasis_engine::shield::Shield;
use stasis_engine::{EngineError, Job};
use stasis_image::{Image, ImageError};
use stasis_sys::Pid;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
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
            Next::Round(round) => return self.serve_round(&round),
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
                Ok(Task::Check(asker)) => self.check(&asker),
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
                Task::Check(asker) => self.check(&asker),
                // What all do together comes first, and the requests are for all.
                Task::Group(News::Round(round)) if self.voice.is_some() => {
                    for request in requests {
                        let _ = self.ask_for_all(request);
                    }
                    return Next::Round(round);
                }
                // A coordinator that has just been found will be heard before the next checkpoint.
                Task::Group(news) => requests.extend(self.learn(news).into_iter().flatten()),
                Task::Finished => {
                    self.answer_all(requests, &Err(EngineError::Gone.to_string()));
                    return Next::Finished;
                }
            }
        }
        Next::Checkpoint(requests)
    }

    /// Looks at the job, which runs on, between two checkpoints.
    fn check(&self, asker: &Sender<Result<Look, String>>) {
        let looked = look::job(&self.job).map_err(|error| error.to_string());
        // Whoever asked may be gone.
        let _ = asker.send(looked);
    }

    /// How long after a checkpoint the next one is due.
    fn wait(&self) -> Option<Duration> {
        self.interval.map(|cadence| cadence.wait(&self.costs))
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
            increments: (settings.incremental && !next.replace).then_some(settings.tracking),
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
}

/// Whether an older image is at fault: it was read, and not as it was written.
fn is_of_older(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Damaged { .. } | ImageError::Truncated { .. } | ImageError::Read { .. }
    )
}
