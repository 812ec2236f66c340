//! When the program must have been saved and stopped at the latest.

use super::{Task, spawn};
use crate::{Error, Settings};
use crossbeam_channel::Sender;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How often the moment is looked up: it may be put off, or brought forward.
const LOOK_UP_EVERY: Duration = Duration::from_secs(600);
/// And close to it.
const AT_MOST_EVERY: Duration = Duration::from_secs(20);
/// Nobody looks at a deadline that does not come for longer than that.
const FAR: Duration = Duration::from_secs(365 * 86_400);

/// Keeps the worker informed of the deadline, where there is one.
pub(super) fn watch(settings: &Settings, tasks: &Sender<Task>) -> Result<(), Error> {
    let Some(deadline) = settings.deadline.clone() else {
        return Ok(());
    };
    let tasks = tasks.clone();
    spawn("deadline", move || {
        loop {
            let end = (deadline.look_up)();
            if tasks.send(Task::Deadline(end)).is_err() {
                return;
            }
            let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok());
            thread::sleep(left.map_or(LOOK_UP_EVERY, |left| {
                (left / 2).clamp(AT_MOST_EVERY, LOOK_UP_EVERY)
            }));
        }
    })
}

/// What a checkpoint of the job costs, as far as is known, and when the last one has to begin.
#[derive(Debug, Default)]
pub(super) struct Plan {
    end: Option<SystemTime>,
    margin: Option<Duration>,
    least: Duration,
    slowest: Option<Duration>,
    /// Not before that: an attempt has just failed.
    not_before: Option<Instant>,
}

/// What is added to twice the cost: others may want the disk at the end as well, and end times are known to the second.
const SPARE: Duration = Duration::from_secs(15);
/// A margin is never smaller than that.
const LEAST: Duration = Duration::from_secs(30);
/// So many bytes are written in a second by a slow disk that others use as well.
const SLOW_DISK: u64 = 100 << 20;
/// After a failed attempt.
const TRY_AGAIN: Duration = Duration::from_secs(5);

impl Plan {
    pub(super) fn new(margin: Option<Duration>, least: Option<Duration>) -> Plan {
        Plan {
            margin,
            least: least.unwrap_or_default().max(LEAST),
            ..Plan::default()
        }
    }

    pub(super) fn set(&mut self, end: Option<SystemTime>) {
        self.end = end;
    }

    /// A checkpoint took so long.
    pub(super) fn learn(&mut self, took: Duration) {
        self.slowest = self.slowest.max(Some(took));
        self.not_before = None;
    }

    /// The last one did not succeed.
    pub(super) fn failed(&mut self) {
        self.not_before = Some(Instant::now() + TRY_AGAIN);
    }

    /// How long before the end the last checkpoint begins, for a program with so much memory.
    fn margin(&self, memory: u64) -> Duration {
        let guessed = || Duration::from_secs(memory / SLOW_DISK);
        self.margin
            .unwrap_or_else(|| (self.slowest.unwrap_or_else(guessed) * 2 + SPARE).max(self.least))
    }

    /// When the last checkpoint is due.
    pub(super) fn due(&self, memory: impl FnOnce() -> u64) -> Option<Instant> {
        let end = self.end?;
        let begin = end.checked_sub(self.margin(memory()))?;
        let left = begin.duration_since(SystemTime::now()).unwrap_or_default();
        Some((Instant::now() + left.min(FAR)).max(self.not_before.unwrap_or_else(Instant::now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_follows_the_measured_cost() {
        let mut plan = Plan::new(None, None);
        assert_eq!(plan.margin(0), LEAST);
        assert_eq!(plan.margin(6000 << 20), Duration::from_secs(135), "guessed");
        plan.learn(Duration::from_secs(100));
        plan.learn(Duration::from_secs(2));
        assert_eq!(
            plan.margin(0),
            Duration::from_secs(215),
            "the slowest counts"
        );
        let given = Plan::new(Some(Duration::from_secs(5)), None);
        assert_eq!(given.margin(6000 << 20), Duration::from_secs(5));
    }

    #[test]
    fn without_an_end_nothing_is_due() {
        let mut plan = Plan::new(None, None);
        assert_eq!(plan.due(|| 0), None);
        plan.set(Some(SystemTime::now() + Duration::from_secs(3600)));
        let due = plan.due(|| 0).unwrap() - Instant::now();
        assert!(due > Duration::from_secs(3500) && due <= Duration::from_secs(3570));
        plan.set(Some(SystemTime::UNIX_EPOCH));
        let past = plan.due(|| 0).unwrap();
        assert!(past <= Instant::now(), "long past: at once");
    }
}
