//! The job's part in a computation of several jobs: what it asks of the coordinator, and what it does when that has all members
//! saved.

use super::outcome::saved;
use super::{Request, Worker};
use crate::Interval;
use crate::schedule::Cadence;
use crate::serve::Task;
use crate::serve::group::{News, Round};
use stasis_coordinator::protocol::FromMember;
use stasis_engine::EngineError;
use std::thread;
use std::time::Instant;

impl Worker {
    /// Asks the coordinator for a checkpoint of all members; gives the request back where there is none.
    pub(super) fn ask_for_all(&mut self, request: Request) -> Option<Request> {
        let Some(voice) = &self.voice else {
            return Some(request);
        };
        // Where it cannot be told, it is gone: that is going to be heard, and the request then dealt with.
        let _ = voice.say(&FromMember::Wanted { stop: request.stop });
        self.pending.push(request);
        None
    }

    pub(super) fn set_interval(&mut self, interval: Option<Cadence>) {
        self.interval = interval;
        if let Some(voice) = &self.voice {
            let seconds = self.wait().map(|wait| wait.as_secs());
            let _ = voice.say(&FromMember::Interval { seconds });
        }
    }

    /// Takes note of what has changed in the computation. Gives requests that this job has to deal with alone.
    pub(super) fn learn(&mut self, news: News) -> Option<Vec<Request>> {
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

    /// Takes this job's part in a checkpoint of all members; false when the job is over.
    pub(super) fn serve_round(&mut self, round: &Round) -> bool {
        if stasis_engine::faults::asked("end-before-round") {
            for pid in self.shared.processes() {
                let _ = stasis_sys::signal::send(pid, stasis_sys::process::SIGKILL);
            }
            while !self.shared.processes().is_empty() || self.inbox.is_empty() {
                thread::yield_now();
            }
        }
        while let Ok(task) = self.inbox.try_recv() {
            match task {
                Task::Checkpoint(request) => self.pending.extend([request]),
                Task::Interval(interval) => self.set_interval(interval),
                Task::Deadline(end) => self.deadline.set(end),
                Task::Stopped => self.pending.extend(self.look()),
                Task::Check(asker) => self.check(&asker),
                // Another attempt: somebody has given this one up already.
                Task::Group(News::Round(newer)) => return self.serve_round(&newer),
                Task::Group(news) => {
                    let requests = self.learn(news);
                    self.pending.extend(requests.into_iter().flatten());
                }
                Task::Finished => {
                    let _ = round.gate.give_up(&EngineError::Gone.to_string(), true);
                    return false;
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
                    return true;
                }
                Err(failure.reason)
            }
        };
        self.conclude(served, round.stop, outcome);
        true
    }
}
