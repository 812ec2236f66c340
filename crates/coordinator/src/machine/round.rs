//! A round: one attempt of a checkpoint of all members.

use super::{Action, AskId, Machine, Member, MemberId, SIGN_EVERY, Set};
use crate::protocol::{Point, Reply, ToMember};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A member that says nothing for so long while others wait for it is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a checkpoint is tried that a program has disturbed.
const ATTEMPTS: u32 = 5;

/// How far a member has come.
#[derive(Debug)]
struct Place {
    host: String,
    reached: Option<Point>,
    image: Option<PathBuf>,
    heard: Instant,
}

#[derive(Debug)]
pub(super) struct Round {
    number: u64,
    generation: u64,
    stop: bool,
    attempt: u32,
    places: BTreeMap<MemberId, Place>,
    /// The barrier that all have passed.
    passed: Option<Point>,
    /// Who waits for the outcome.
    asks: Vec<AskId>,
    /// Members that were lost while they gave their images names.
    lost: Vec<String>,
    pub(super) next_look: Instant,
}

impl Round {
    pub(super) fn heard(&mut self, id: MemberId, now: Instant) {
        if let Some(place) = self.places.get_mut(&id) {
            place.heard = now;
        }
    }
    pub(super) fn place(&self, id: MemberId) -> Option<Point> {
        self.places.get(&id)?.reached
    }
    fn is_decided(&self) -> bool {
        self.passed == Some(Point::Complete)
    }
}

impl Machine {
    pub(super) fn begin_round(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let wishes = std::mem::take(&mut self.wishes);
        let stop = self.options.stop_after_checkpoint || wishes.iter().any(|wish| wish.stop);
        let asks = wishes.into_iter().filter_map(|wish| wish.ask).collect();
        self.attempt(stop, asks, 1, now, actions);
    }

    fn attempt(
        &mut self,
        stop: bool,
        asks: Vec<AskId>,
        attempt: u32,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.last_round += 1;
        let round = Round {
            number: self.last_round,
            generation: self.generation + 1,
            stop,
            attempt,
            places: (self.members.iter())
                .map(|(id, member)| {
                    let place = Place {
                        host: member.join.host.clone(),
                        reached: None,
                        image: None,
                        heard: now,
                    };
                    (*id, place)
                })
                .collect(),
            passed: None,
            asks,
            lost: Vec::new(),
            next_look: now + SIGN_EVERY,
        };
        let members: Vec<String> = self.members.values().map(|m| m.name.clone()).collect();
        for id in self.members.keys() {
            actions.push(Action::Tell(
                *id,
                ToMember::Round {
                    round: round.number,
                    generation: round.generation,
                    members: members.clone(),
                    stop,
                },
            ));
        }
        self.round = Some(round);
    }

    pub(super) fn reached(
        &mut self,
        id: MemberId,
        number: u64,
        point: Point,
        actions: &mut Vec<Action>,
    ) {
        let Some(round) = self.round.as_mut().filter(|round| round.number == number) else {
            return;
        };
        if let Some(place) = round.places.get_mut(&id) {
            place.reached = place.reached.max(Some(point));
        }
        pass(round, actions);
    }

    pub(super) fn committed(
        &mut self,
        id: MemberId,
        number: u64,
        image: PathBuf,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(round) = self.round.as_mut().filter(|round| round.number == number) else {
            return;
        };
        if let Some(place) = round.places.get_mut(&id) {
            place.image = Some(image);
        }
        self.conclude(now, actions);
    }

    /// A member has said that it cannot be saved.
    pub(super) fn failed(
        &mut self,
        id: MemberId,
        number: u64,
        reason: String,
        again: bool,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match &mut self.round {
            Some(round) if round.number == number && round.is_decided() => {
                round.lost.push(reason);
                round.places.remove(&id);
                self.conclude(now, actions);
            }
            Some(round) if round.number == number => self.abort(reason, again, now, actions),
            _ => {}
        }
    }

    /// A member has left: its program has ended, or it was lost.
    pub(super) fn lost_in_round(
        &mut self,
        id: MemberId,
        member: &Member,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(round) = &mut self.round else { return };
        let Some(place) = round.places.remove(&id) else {
            return;
        };
        if !round.is_decided() {
            let reason = format!("{} has ended or was lost", member.join.program);
            self.abort(reason, true, now, actions);
            return;
        }
        match place.image {
            // It has done its part.
            Some(image) => {
                round.places.insert(
                    id,
                    Place {
                        image: Some(image),
                        ..place
                    },
                );
            }
            None => round.lost.push(format!(
                "{} was lost while it named its image",
                member.join.program
            )),
        }
        self.conclude(now, actions);
    }

    fn abort(&mut self, reason: String, again: bool, now: Instant, actions: &mut Vec<Action>) {
        let Some(round) = self.round.take() else {
            return;
        };
        let again = again && round.attempt < ATTEMPTS && !self.members.is_empty();
        for id in round.places.keys() {
            actions.push(Action::Tell(
                *id,
                ToMember::Abort {
                    round: round.number,
                    reason: reason.clone(),
                    again,
                },
            ));
        }
        if again && self.all_run() && self.ending.is_none() {
            self.attempt(round.stop, round.asks, round.attempt + 1, now, actions);
            return;
        }
        self.last_end = now;
        self.last_error = Some(reason.clone());
        let reply = if self.members.is_empty() {
            Reply::NotRunning
        } else {
            Reply::Failed { reason }
        };
        for ask in round.asks {
            actions.push(Action::Answer(ask, reply.clone()));
        }
    }

    /// Ends the round when every member has given its image its name, or was lost.
    fn conclude(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let done = |round: &&mut Round| {
            round.is_decided() && round.places.values().all(|place| place.image.is_some())
        };
        let Some(round) = self.round.as_mut().filter(done) else {
            return;
        };
        let places = std::mem::take(&mut round.places).into_values();
        let images: Vec<(String, PathBuf)> = places
            .filter_map(|place| Some((place.host, place.image?)))
            .collect();
        let Some(round) = self.round.take() else {
            return;
        };
        self.generation = round.generation;
        self.last_end = now;
        let paths: Vec<PathBuf> = images.iter().map(|(_, image)| image.clone()).collect();
        let set = Set {
            computation: self.computation.clone().unwrap_or_default(),
            generation: round.generation,
            interval: self.interval,
            images,
        };
        let reply = if round.lost.is_empty() {
            self.last_error = None;
            actions.push(Action::Committed(set));
            Reply::Checkpoint {
                members: paths.len(),
                images: paths,
            }
        } else {
            let reason = round.lost.join("; ");
            self.last_error = Some(reason.clone());
            Reply::Failed { reason }
        };
        let asks: Vec<_> = (round.asks.into_iter())
            .map(|ask| (ask, reply.clone()))
            .collect();
        if round.stop && !self.members.is_empty() {
            self.end_with(asks, false, now);
        } else {
            actions.extend(
                asks.into_iter()
                    .map(|(ask, reply)| Action::Answer(ask, reply)),
            );
        }
    }

    /// Gives up members that say nothing, and tells the others that the coordinator lives.
    pub(super) fn watch_round(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(round) = self.round.as_mut().filter(|round| round.next_look <= now) else {
            return;
        };
        round.next_look = now + SIGN_EVERY;
        let decided = round.is_decided();
        let silent: Vec<MemberId> = (round.places.iter())
            .filter(|(_, place)| place.image.is_none() && place.heard + SILENCE <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in round.places.keys() {
            actions.push(Action::Tell(*id, ToMember::Alive));
        }
        let Some(first) = silent.first() else { return };
        let names: Vec<String> = silent.iter().map(|id| self.program(*id)).collect();
        let reason = format!(
            "{}: its supervisor has said nothing for {} s (is it stopped?)",
            names.join(", "),
            SILENCE.as_secs()
        );
        if !decided {
            self.abort(reason, false, now, actions);
        } else if let Some(round) = &mut self.round {
            round.lost.push(reason);
            for id in &silent {
                round.places.remove(id);
            }
            tracing::warn!(member = first.0, "given up");
            self.conclude(now, actions);
        }
    }
}

/// Lets all pass the barriers that all have come to.
fn pass(round: &mut Round, actions: &mut Vec<Action>) {
    let all = round.places.values().map(|place| place.reached).min();
    let Some(point) = all.flatten() else { return };
    if round.passed < Some(point) {
        round.passed = Some(point);
        for id in round.places.keys() {
            actions.push(Action::Tell(
                *id,
                ToMember::Proceed {
                    round: round.number,
                    point,
                },
            ));
        }
    }
}
