//! The supervisor as a member of a computation: what it hears from the coordinator, and the barriers of a checkpoint.

use super::Task;
use super::state::Shared;
use crate::line::{self, ToFront, fitting};
use crate::membership::Membership;
use crossbeam_channel::Sender;
use stasis_coordinator::Link;
use stasis_coordinator::link::Voice;
use stasis_coordinator::protocol::{self, Belonging, FromMember, Join, Running, ToMember};
use stasis_engine::EngineError;
use stasis_engine::barrier::{Barrier, Point};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often a lost coordinator is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A program that stands still does not wait longer than this for a coordinator that says nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// What the worker hears.
pub(super) enum News {
    /// A checkpoint of all begins.
    Round(Round),
    /// Another interval, 0 for none.
    Interval(u64),
    /// So many members there are.
    Members(usize),
    /// The coordinator is gone.
    Lost,
    /// There is one again.
    Found(Voice),
}

/// A checkpoint of all members.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub generation: u64,
    pub members: Vec<String>,
    pub stop: bool,
    pub gate: Arc<Gate>,
}

/// The barriers of a round.
#[derive(Debug)]
pub(super) struct Gate {
    round: u64,
    voice: Voice,
    state: Mutex<Passage>,
    changed: Condvar,
}

#[derive(Debug)]
struct Passage {
    open: Option<protocol::Point>,
    failed: Option<Failure>,
    heard: Instant,
}

/// Why a round has failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub reason: String,
    /// Another attempt follows.
    pub again: bool,
}

impl Gate {
    fn new(round: u64, voice: Voice) -> Gate {
        Gate {
            round,
            voice,
            state: Mutex::new(Passage {
                open: None,
                failed: None,
                heard: Instant::now(),
            }),
            changed: Condvar::new(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Passage)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.heard = Instant::now();
        change(&mut state);
        self.changed.notify_all();
    }

    fn fail(&self, reason: &str, again: bool) {
        self.change(|state| {
            state.failed.get_or_insert(Failure {
                reason: reason.to_owned(),
                again,
            });
        });
    }

    /// Waits until `done` gives something, or the coordinator has said nothing for too long.
    fn wait_for<T>(&self, done: impl Fn(&Passage) -> Option<T>) -> Option<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(done) = done(&state) {
                return Some(done);
            }
            let left = SILENCE.checked_sub(state.heard.elapsed())?;
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Why the round has failed, where it has.
    pub(super) fn failure(&self) -> Option<Failure> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failed.clone()
    }

    /// Tells that this member cannot be saved, and waits for what becomes of the round.
    pub(super) fn give_up(&self, reason: &str, again: bool) -> Failure {
        let said = self.voice.say(&FromMember::Failed {
            round: self.round,
            reason: reason.to_owned(),
            again,
        });
        let own = Failure {
            reason: reason.to_owned(),
            again: false,
        };
        match said {
            Ok(()) => self.wait_for(|state| state.failed.clone()).unwrap_or(own),
            Err(_) => own,
        }
    }

    /// Tells that the image is there.
    pub(super) fn done(&self, image: &std::path::Path) {
        // A coordinator that is gone cannot be told; the image is there nevertheless.
        let _ = self.voice.say(&FromMember::Committed {
            round: self.round,
            image: image.to_owned(),
        });
    }
}

impl Barrier for Gate {
    fn wait(&self, point: Point) -> Result<(), EngineError> {
        let point = match point {
            Point::Frozen => protocol::Point::Frozen,
            Point::Captured => protocol::Point::Captured,
            Point::Complete => protocol::Point::Complete,
        };
        let failed = |failure: Failure| EngineError::Failed(failure.reason);
        if let Some(failure) = self.failure() {
            return Err(failed(failure));
        }
        let lost = || EngineError::Failed("the coordinator does not answer".into());
        let reached = FromMember::Reached {
            round: self.round,
            point,
        };
        self.change(|_| {});
        self.voice.say(&reached).map_err(|_| lost())?;
        self.wait_for(|state| match &state.failed {
            // What was decided stays decided.
            _ if state.open >= Some(point) => Some(Ok(())),
            Some(failure) => Some(Err(failed(failure.clone()))),
            None => None,
        })
        .unwrap_or_else(|| Err(lost()))
    }
}

/// The thread that listens to the coordinator, and looks for one when it is gone.
pub(super) struct Ear {
    pub membership: Membership,
    pub running: Running,
    pub shared: Arc<Shared>,
    pub tasks: Sender<Task>,
    pub front: Arc<OwnedFd>,
}

impl Ear {
    /// Listens until the job is over.
    pub(super) fn listen(self, mut link: Link) {
        let started = FromMember::Started {
            name: self.shared.settings.name.to_string(),
            running: self.running,
        };
        let mut known = link.voice().say(&started).is_ok();
        loop {
            if known {
                self.follow(&mut link);
            }
            if self.give(News::Lost).is_none() || self.shared.is_closed() {
                return;
            }
            self.tell(format!(
                "the coordinator at {} is gone: the program runs on, and joins the next one that is started there",
                self.membership.address
            ));
            link = match self.search() {
                Some(link) => link,
                None => return,
            };
            known = self.give(News::Found(link.voice())).is_some();
        }
    }

    /// Does what the coordinator says, as long as it is there.
    fn follow(&self, link: &mut Link) {
        let mut gate: Option<Arc<Gate>> = None;
        while let Some(heard) = link.hear() {
            tracing::debug!(?heard, "the coordinator says");
            if let Some(gate) = &gate {
                gate.change(|_| {});
            }
            let current = |round| gate.as_ref().filter(|gate| gate.round == round);
            let news = match heard {
                ToMember::Round {
                    round,
                    generation,
                    members,
                    stop,
                } => {
                    let new = Arc::new(Gate::new(round, link.voice()));
                    gate = Some(Arc::clone(&new));
                    News::Round(Round {
                        generation,
                        members,
                        stop,
                        gate: new,
                    })
                }
                ToMember::Proceed { round, point } => {
                    if let Some(gate) = current(round) {
                        gate.change(|state| state.open = state.open.max(Some(point)));
                    }
                    continue;
                }
                ToMember::Abort {
                    round,
                    reason,
                    again,
                } => {
                    if let Some(gate) = current(round) {
                        gate.fail(&reason, again);
                    }
                    continue;
                }
                ToMember::Kill => {
                    let shared = Arc::clone(&self.shared);
                    // Processes may be many: what the coordinator says meanwhile is to be heard.
                    if let Err(error) = super::spawn("kill", move || shared.kill()) {
                        tracing::warn!(%error, "killing the job");
                        self.shared.kill();
                    }
                    continue;
                }
                ToMember::Members { count } => News::Members(count),
                ToMember::Interval { seconds } => News::Interval(seconds),
                ToMember::Joined { .. } | ToMember::Refused { .. } | ToMember::Alive => continue,
            };
            if self.give(news).is_none() {
                break;
            }
        }
        if let Some(gate) = gate {
            gate.fail("the coordinator has died: nothing was saved", false);
        }
    }

    fn give(&self, news: News) -> Option<()> {
        self.tasks.send(Task::Group(news)).ok()
    }

    fn tell(&self, text: String) {
        let _ = line::tell(&*self.front, &ToFront::Note(fitting(text)), false);
    }

    /// Looks for a coordinator until there is one or the job is over.
    fn search(&self) -> Option<Link> {
        let mut told = None;
        loop {
            thread::sleep(LOOK_EVERY);
            if self.shared.is_closed() {
                return None;
            }
            let join = Join {
                name: Some(self.shared.settings.name.to_string()),
                computation: Some(Belonging {
                    id: self.membership.joined.computation.clone(),
                    generation: self.shared.generation(),
                    size: None,
                }),
                interval: None,
                running: Some(self.running),
                ..self.membership.join.clone()
            };
            match Link::join(&self.membership.address, &join) {
                Ok((link, _)) => {
                    self.tell(format!(
                        "joined the coordinator at {}",
                        self.membership.address
                    ));
                    return Some(link);
                }
                Err(stasis_coordinator::Error::NotFound(_)) => {}
                Err(error) => {
                    let text = error.to_string();
                    if told.as_ref() != Some(&text) {
                        self.tell(format!("the coordinator does not take this job: {text}"));
                        told = Some(text);
                    }
                }
            }
        }
    }
}
