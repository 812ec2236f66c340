//! What came of a checkpoint, told to everybody who waits for it or should know.

use super::{Outcome, Request, TELL_EVERY, Waiter, Worker};
use crate::Interval;
use crate::line::{self, Brief, ToFront, Told, Why, fitting};
use crate::protocol::Saved;
use crate::serve::state::Shared;
use rustix::process::Signal;
use stasis_engine::checkpoint::Report;
use stasis_engine::progress::{Progress, Step};
use stasis_sys::signal;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

impl Worker {
    /// Tells everybody who waits what came of a checkpoint.
    pub(super) fn conclude(&self, requests: Vec<Request>, stop: bool, outcome: Outcome) {
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

    pub(super) fn answer_all(&self, requests: Vec<Request>, outcome: &Outcome) {
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

    pub(super) fn tell_note(&self, text: String) {
        self.tell(&ToFront::Note(fitting(text)), false);
    }

    pub(super) fn tell(&self, message: &ToFront, wait: bool) {
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

/// What clients are told of a checkpoint.
pub(super) fn saved(report: Report, taken_at: jiff::Timestamp) -> Saved {
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
        unread_bytes: report.unread,
        notes: report.notes,
    }
}

/// Passes progress on to whoever shows it.
pub(super) struct Telling<'a> {
    pub(super) shared: &'a Shared,
    pub(super) front: Option<&'a Arc<OwnedFd>>,
    pub(super) last: Mutex<Instant>,
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
