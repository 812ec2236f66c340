//! What a coordinator decides, without sockets and clocks.
//!
//! Something happens ([`Event`]), and what has to be done comes back ([`Action`]). The time is handed in; when
//! [`Machine::deadline`] has come, [`Machine::tick`] is to be called.

mod round;
#[cfg(test)]
mod tests;

use crate::protocol::{Ask, FromMember, Join, Listed, Reply, Running, Status, ToMember};
use round::Round;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// For how long a program that is to end may take before whoever waits is answered.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How often those that wait in a round are told that the coordinator lives.
const SIGN_EVERY: Duration = Duration::from_secs(5);

/// A connection of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// A question of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A job wants to be a member.
    Join(MemberId, Join),
    /// A member says something.
    Heard(MemberId, FromMember),
    /// A member's connection is closed.
    Left(MemberId),
    /// A command asks.
    Asked(AskId, Ask),
    /// A command has gone before it was answered.
    Abandoned(AskId),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell a member.
    Tell(MemberId, ToMember),
    /// Close a member's connection when it has been told.
    Close(MemberId),
    /// Answer a command.
    Answer(AskId, Reply),
    /// All images of a checkpoint are there.
    Committed(Set),
    /// End.
    Exit,
}

/// A checkpoint of all members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The computation.
    pub computation: String,
    /// Its number.
    pub generation: u64,
    /// Seconds between checkpoints, 0 for none.
    pub interval: u64,
    /// Host and image of each member.
    pub images: Vec<(String, PathBuf)>,
}

/// What a coordinator is told when it is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Seconds between checkpoints, 0 for none.
    pub interval: u64,
    /// End the programs with each checkpoint.
    pub stop_after_checkpoint: bool,
    /// End when the last member has left.
    pub exit_on_last: bool,
    /// End after this time, whatever happens.
    pub lifetime: Option<Duration>,
    /// End after this time without members.
    pub idle: Option<Duration>,
}

#[derive(Debug)]
struct Member {
    join: Join,
    name: String,
    running: Option<Running>,
}

/// Somebody wants a checkpoint.
#[derive(Debug)]
struct Wish {
    stop: bool,
    ask: Option<AskId>,
}

/// The end of all programs is waited for.
#[derive(Debug)]
struct Ending {
    asks: Vec<(AskId, Reply)>,
    exit: bool,
    deadline: Instant,
}

/// The state.
#[derive(Debug)]
pub struct Machine {
    options: Options,
    interval: u64,
    /// Makes ids of computations.
    new_id: fn() -> String,
    computation: Option<String>,
    generation: u64,
    members: BTreeMap<MemberId, Member>,
    /// How many members the computation that is being continued has in all.
    expected: usize,
    last_number: u64,
    wishes: Vec<Wish>,
    round: Option<Round>,
    last_round: u64,
    ending: Option<Ending>,
    last_error: Option<String>,
    began: Instant,
    /// When the last checkpoint ended, or the first member came.
    last_end: Instant,
    /// Since when there is no member.
    idle_since: Option<Instant>,
    exiting: bool,
}

impl Machine {
    /// A coordinator without members. `new_id` makes ids of computations.
    #[must_use]
    pub fn new(options: Options, new_id: fn() -> String, now: Instant) -> Machine {
        Machine {
            interval: options.interval,
            options,
            new_id,
            computation: None,
            generation: 0,
            members: BTreeMap::new(),
            expected: 0,
            last_number: 0,
            wishes: Vec::new(),
            round: None,
            last_round: 0,
            ending: None,
            last_error: None,
            began: now,
            last_end: now,
            idle_since: Some(now),
            exiting: false,
        }
    }

    /// Deals with what happens at `now`.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Join(id, join) => self.join(id, join, now, &mut actions),
            Event::Heard(id, said) => {
                if self.members.contains_key(&id) {
                    self.hear(id, said, now, &mut actions);
                }
            }
            Event::Left(id) => self.leave(id, now, &mut actions),
            Event::Asked(id, ask) => self.asked(id, ask, now, &mut actions),
            Event::Abandoned(id) => self.wishes.retain_mut(|wish| {
                // A checkpoint that somebody has asked for is taken, also when he does not wait for it.
                if wish.ask == Some(id) {
                    wish.ask = None;
                }
                true
            }),
        }
        self.go_on(now, &mut actions);
        actions
    }

    /// Does what is due at `now`.
    pub fn tick(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.watch_round(now, &mut actions);
        if self.interval_due().is_some_and(|due| due <= now) {
            self.wishes.push(Wish {
                stop: false,
                ask: None,
            });
        }
        if self.ending.as_ref().is_some_and(|end| end.deadline <= now) {
            self.end_of_ending(&mut actions);
        }
        let over = |limit: Option<Duration>, since: Option<Instant>| {
            limit
                .zip(since)
                .is_some_and(|(limit, since)| since + limit <= now)
        };
        if over(self.options.lifetime, Some(self.began)) || over(self.options.idle, self.idle_since)
        {
            self.exit(&mut actions);
        }
        self.go_on(now, &mut actions);
        actions
    }

    /// When [`Machine::tick`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let plus = |limit: Option<Duration>, since: Option<Instant>| {
            limit
                .zip(since)
                .and_then(|(limit, since)| since.checked_add(limit))
        };
        [
            self.interval_due(),
            self.round.as_ref().map(|round| round.next_look),
            self.ending.as_ref().map(|ending| ending.deadline),
            plus(self.options.lifetime, Some(self.began)),
            plus(self.options.idle, self.idle_since),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn interval_due(&self) -> Option<Instant> {
        let idle = self.round.is_none() && self.wishes.is_empty() && self.ending.is_none();
        let wanted = self.interval > 0 && idle && self.all_run();
        // An interval beyond the end of time never comes.
        let due = || {
            self.last_end
                .checked_add(Duration::from_secs(self.interval))
        };
        wanted.then(due).flatten()
    }

    fn all_run(&self) -> bool {
        !self.members.is_empty()
            && self.members.len() >= self.expected
            && self.members.values().all(|member| member.running.is_some())
    }

    fn join(&mut self, id: MemberId, join: Join, now: Instant, actions: &mut Vec<Action>) {
        if let Some(reason) = self.refusal(&join) {
            actions.push(Action::Tell(id, ToMember::Refused { reason }));
            actions.push(Action::Close(id));
            return;
        }
        if self.members.is_empty() {
            let from = join.computation.as_ref();
            self.computation = Some(from.map_or_else(self.new_id, |from| from.id.clone()));
            self.generation = from.map_or(0, |from| from.generation);
            self.expected = from.and_then(|from| from.size).unwrap_or(0);
            self.last_end = now;
            self.last_error = None;
        } else if let Some(from) = &join.computation {
            self.generation = self.generation.max(from.generation);
        }
        if let Some(interval) = join.interval {
            self.set_interval(interval, now, actions);
        }
        self.idle_since = None;
        self.last_number += 1;
        actions.push(Action::Tell(
            id,
            ToMember::Joined {
                computation: self.computation.clone().unwrap_or_default(),
                number: self.last_number,
                generation: self.generation,
                interval: self.interval,
            },
        ));
        let member = Member {
            name: join.name.clone().unwrap_or_default(),
            running: join.running,
            join,
        };
        self.members.insert(id, member);
        self.tell_count(actions);
    }

    /// Why somebody cannot be a member now.
    fn refusal(&self, join: &Join) -> Option<String> {
        if self.exiting || self.ending.is_some() {
            return Some("this coordinator is ending its programs; try again in a moment".into());
        }
        let from = join.computation.as_ref()?;
        let ours = self
            .computation
            .as_deref()
            .filter(|_| !self.members.is_empty())?;
        if join.running.is_some() {
            return (from.id != ours).then(|| {
                format!(
                    "computation {ours} runs here, and the program belongs to {}",
                    from.id
                )
            });
        }
        // Another part of the checkpoint that was continued, and not a second copy of one.
        let name = join.name.as_deref().unwrap_or_default();
        let part = from.id == ours
            && from.generation == self.generation
            && self.members.values().all(|member| member.name != name);
        (!part).then(|| {
            format!(
                "a computation of {} is running here ({ours}); end it first (dmtcp_command --kill), or use a coordinator of \
                 its own (--new-coordinator, or another port)",
                match self.members.len() {
                    1 => "1 program".to_owned(),
                    n => format!("{n} programs"),
                },
            )
        })
    }

    fn hear(&mut self, id: MemberId, said: FromMember, now: Instant, actions: &mut Vec<Action>) {
        if let Some(round) = &mut self.round {
            round.heard(id, now);
        }
        match said {
            FromMember::Started { name, running } => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.name = name;
                    member.running = Some(running);
                }
                if self.all_run() {
                    // From here on the computation is what it is: members may end.
                    self.expected = 0;
                    self.last_end = now;
                }
            }
            FromMember::Wanted { stop } => self.wishes.push(Wish { stop, ask: None }),
            FromMember::Interval { seconds } => {
                self.set_interval(seconds.unwrap_or(0), now, actions);
            }
            FromMember::Reached { round, point } => self.reached(id, round, point, actions),
            FromMember::Committed { round, image } => {
                self.committed(id, round, image, now, actions);
            }
            FromMember::Failed {
                round,
                reason,
                again,
            } => {
                let name = self.program(id);
                self.failed(id, round, format!("{name}: {reason}"), again, now, actions);
            }
            FromMember::Alive => {}
        }
    }

    fn program(&self, id: MemberId) -> String {
        self.members
            .get(&id)
            .map(|member| member.join.program.clone())
            .unwrap_or_default()
    }

    fn set_interval(&mut self, seconds: u64, now: Instant, actions: &mut Vec<Action>) {
        if self.interval != seconds {
            self.last_end = now;
        }
        self.interval = seconds;
        for id in self.members.keys() {
            actions.push(Action::Tell(*id, ToMember::Interval { seconds }));
        }
    }

    fn tell_count(&self, actions: &mut Vec<Action>) {
        let count = self.members.len().max(self.expected);
        for id in self.members.keys() {
            actions.push(Action::Tell(*id, ToMember::Members { count }));
        }
    }

    fn leave(&mut self, id: MemberId, now: Instant, actions: &mut Vec<Action>) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        self.lost_in_round(id, &member, now, actions);
        if member.running.is_none() && self.expected > 0 && !self.members.is_empty() {
            // One of several that were to be continued together could not be: all or none.
            self.last_error = Some(format!("{} could not be continued", member.join.program));
            self.expected = 0;
            self.kill_all(actions);
        }
        if self.members.is_empty() {
            self.idle_since = Some(now);
            self.expected = 0;
            self.computation = None;
            self.generation = 0;
            let wishes = std::mem::take(&mut self.wishes);
            for ask in wishes.into_iter().filter_map(|wish| wish.ask) {
                actions.push(Action::Answer(ask, Reply::NotRunning));
            }
            self.end_of_ending(actions);
            if self.options.exit_on_last {
                self.exit(actions);
            }
        } else {
            self.tell_count(actions);
        }
    }

    fn kill_all(&self, actions: &mut Vec<Action>) {
        let everybody = self.members.keys();
        actions.extend(everybody.map(|id| Action::Tell(*id, ToMember::Kill)));
    }

    fn asked(&mut self, id: AskId, ask: Ask, now: Instant, actions: &mut Vec<Action>) {
        let reply = match ask {
            Ask::Status => Reply::Status(self.status()),
            Ask::List => Reply::List(self.list()),
            Ask::Interval { seconds } => {
                self.set_interval(seconds, now, actions);
                Reply::Done
            }
            Ask::Checkpoint { .. } if self.members.is_empty() || self.ending.is_some() => {
                Reply::NotRunning
            }
            Ask::Checkpoint { wait, stop } => {
                let ask = wait.then_some(id);
                self.wishes.push(Wish { stop, ask });
                if wait {
                    return;
                }
                Reply::Checkpoint {
                    members: self.members.len(),
                    images: Vec::new(),
                }
            }
            Ask::Kill | Ask::Quit => {
                self.kill_all(actions);
                self.end_with(vec![(id, Reply::Done)], ask == Ask::Quit, now);
                if self.members.is_empty() {
                    self.end_of_ending(actions);
                }
                return;
            }
        };
        actions.push(Action::Answer(id, reply));
    }

    /// Answers these when all members have left.
    fn end_with(&mut self, asks: Vec<(AskId, Reply)>, exit: bool, now: Instant) {
        let ending = self.ending.get_or_insert(Ending {
            asks: Vec::new(),
            exit: false,
            deadline: now + END_LIMIT,
        });
        ending.asks.extend(asks);
        ending.exit |= exit;
    }

    fn end_of_ending(&mut self, actions: &mut Vec<Action>) {
        let Some(ending) = self.ending.take() else {
            return;
        };
        for (ask, reply) in ending.asks {
            actions.push(Action::Answer(ask, reply));
        }
        if ending.exit {
            self.exit(actions);
        }
    }

    fn exit(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.exiting, true) {
            actions.push(Action::Exit);
        }
    }

    fn status(&self) -> Status {
        Status {
            members: self.members.len(),
            running: self.all_run() && self.round.is_none(),
            interval: self.interval,
            computation: self.computation.clone(),
            generation: self.generation,
            last_error: self.last_error.clone(),
        }
    }

    fn list(&self) -> Vec<Listed> {
        let reached = |id| self.round.as_ref().and_then(|round| round.place(id));
        (self.members.iter())
            .map(|(id, member)| Listed {
                number: id.0,
                program: member.join.program.clone(),
                host: member.join.host.clone(),
                name: member.name.clone(),
                running: member.running,
                reached: reached(*id),
                checkpointing: self.round.is_some(),
            })
            .collect()
    }

    /// Begins a round where one is wanted and can be.
    fn go_on(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let free = self.round.is_none() && self.ending.is_none() && !self.exiting;
        if free && !self.wishes.is_empty() && self.all_run() {
            self.begin_round(now, actions);
        }
    }
}
