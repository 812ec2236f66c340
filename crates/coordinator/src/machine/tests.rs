//! The machine without sockets and clocks.

use super::*;
use crate::protocol::{Belonging, Point};

/// A machine, what it has told, and a clock.
struct World {
    machine: Machine,
    now: Instant,
    told: Vec<(u64, ToMember)>,
    answered: Vec<(u64, Reply)>,
    committed: Vec<Set>,
    exited: bool,
}

impl World {
    fn new(options: Options) -> World {
        let now = Instant::now();
        World {
            machine: Machine::new(options, || "id".into(), now),
            now,
            told: Vec::new(),
            answered: Vec::new(),
            committed: Vec::new(),
            exited: false,
        }
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Tell(id, message) => self.told.push((id.0, message)),
                Action::Answer(id, reply) => self.answered.push((id.0, reply)),
                Action::Committed(set) => self.committed.push(set),
                Action::Exit => self.exited = true,
                Action::Close(_) => {}
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let actions = self.machine.handle(event, self.now);
        self.take(actions);
    }

    /// Lets the time come that the machine waits for.
    fn wait(&mut self) {
        self.now = self.machine.deadline().expect("something is due");
        let actions = self.machine.tick(self.now);
        self.take(actions);
    }

    fn join(&mut self, id: u64, computation: Option<Belonging>) {
        let join = Join {
            program: format!("p{id}"),
            host: "h".into(),
            name: computation.is_some().then(|| format!("n{id}")),
            computation,
            interval: None,
            running: None,
        };
        self.happen(Event::Join(MemberId(id), join));
    }

    fn say(&mut self, id: u64, said: FromMember) {
        self.happen(Event::Heard(MemberId(id), said));
    }

    fn start(&mut self, id: u64) {
        let running = Running {
            pid: 1,
            virtual_pid: 2,
        };
        let name = format!("n{id}");
        self.say(id, FromMember::Started { name, running });
    }

    fn with_members(options: Options, count: u64) -> World {
        let mut world = World::new(options);
        for id in 1..=count {
            world.join(id, None);
            world.start(id);
        }
        world
    }

    fn ask(&mut self, id: u64, ask: Ask) {
        self.happen(Event::Asked(AskId(id), ask));
    }

    fn checkpoint(&mut self, id: u64) {
        let (wait, stop) = (true, false);
        self.ask(id, Ask::Checkpoint { wait, stop });
    }

    /// The round that member `id` was last told of.
    fn round(&self, id: u64) -> u64 {
        let rounds = self.told.iter().rev().filter(|(to, _)| *to == id);
        rounds
            .filter_map(|(_, message)| match message {
                ToMember::Round { round, .. } => Some(*round),
                _ => None,
            })
            .next()
            .expect("a round")
    }

    fn reach(&mut self, id: u64, point: Point) {
        let round = self.round(id);
        self.say(id, FromMember::Reached { round, point });
    }

    fn commit(&mut self, id: u64) {
        let (round, image) = (self.round(id), format!("/i{id}").into());
        self.say(id, FromMember::Committed { round, image });
    }

    fn fail(&mut self, id: u64, again: bool) {
        let (round, reason) = (self.round(id), "disk full".into());
        self.say(
            id,
            FromMember::Failed {
                round,
                reason,
                again,
            },
        );
    }

    /// How often `id` was let pass `point` in its last round.
    fn passed(&self, id: u64, point: Point) -> bool {
        let message = ToMember::Proceed {
            round: self.round(id),
            point,
        };
        self.told.contains(&(id, message))
    }

    fn aborts(&self) -> usize {
        let abort = |(_, message): &&(u64, ToMember)| matches!(message, ToMember::Abort { .. });
        self.told.iter().filter(abort).count()
    }
}

const POINTS: [Point; 3] = [Point::Frozen, Point::Captured, Point::Complete];

#[test]
fn nobody_passes_a_barrier_before_all_have_come_to_it() {
    let mut world = World::with_members(Options::default(), 3);
    world.checkpoint(9);
    for point in POINTS {
        for id in [2, 1] {
            world.reach(id, point);
            assert!(!world.passed(id, point), "{point:?}");
        }
        world.reach(3, point);
        assert!((1..=3).all(|id| world.passed(id, point)), "{point:?}");
    }
    for id in 1..=3 {
        assert!(world.answered.is_empty() && world.committed.is_empty());
        world.commit(id);
    }
    assert_eq!(world.committed.len(), 1);
    assert_eq!(world.committed[0].generation, 1);
    assert_eq!(world.committed[0].images.len(), 3);
    assert!(matches!(
        &world.answered[..],
        [(9, Reply::Checkpoint { members: 3, .. })]
    ));
}

#[test]
fn one_that_fails_fails_all_and_the_number_is_used_again() {
    for at in 0..=2 {
        let mut world = World::with_members(Options::default(), 2);
        world.checkpoint(9);
        for point in &POINTS[..at] {
            world.reach(1, *point);
            world.reach(2, *point);
        }
        world.fail(2, false);
        assert_eq!(world.aborts(), 2);
        assert!(
            matches!(&world.answered[..], [(9, Reply::Failed { reason })] if reason == "p2: disk full"),
            "{:?}",
            world.answered
        );
        // What is said late is not taken for something else.
        let round = world.round(1);
        world.checkpoint(10);
        let point = Point::Complete;
        world.say(1, FromMember::Reached { round, point });
        world.say(2, FromMember::Reached { round, point });
        assert!(!world.passed(1, Point::Complete));
        let generation = world
            .told
            .iter()
            .rev()
            .find_map(|(_, message)| match message {
                ToMember::Round { generation, .. } => Some(*generation),
                _ => None,
            });
        assert_eq!(generation, Some(1));
        assert!(world.committed.is_empty());
    }
}

#[test]
fn a_disturbed_round_is_tried_again_but_not_for_ever() {
    let mut world = World::with_members(Options::default(), 1);
    world.checkpoint(9);
    let first = world.round(1);
    world.fail(1, true);
    assert_eq!(world.round(1), first + 1);
    assert!(world.answered.is_empty());
    for _ in 0..10 {
        world.fail(1, true);
    }
    assert_eq!(world.answered.len(), 1);
    assert_eq!(world.round(1), first + 4);
}

#[test]
fn a_member_that_ends_in_a_round_leaves_it_to_the_others() {
    let mut world = World::with_members(Options::default(), 2);
    world.checkpoint(9);
    world.reach(1, Point::Frozen);
    world.happen(Event::Left(MemberId(2)));
    for point in POINTS {
        world.reach(1, point);
    }
    world.commit(1);
    assert!(matches!(
        &world.answered[..],
        [(9, Reply::Checkpoint { members: 1, .. })]
    ));
}

#[test]
fn a_member_lost_after_the_decision_is_told() {
    let mut world = World::with_members(Options::default(), 2);
    world.checkpoint(9);
    for point in POINTS {
        world.reach(1, point);
        world.reach(2, point);
    }
    world.commit(1);
    world.happen(Event::Left(MemberId(2)));
    assert!(
        matches!(&world.answered[..], [(9, Reply::Failed { reason })] if reason.contains("p2 was lost"))
    );
    assert!(world.committed.is_empty());
    // The image of the other may have got its name: its number is not used again.
    world.checkpoint(10);
    assert!(
        world
            .told
            .iter()
            .any(|(_, message)| matches!(message, ToMember::Round { generation: 2, .. }))
    );
}

#[test]
fn a_silent_member_holds_the_others_up_for_a_while_only() {
    let mut world = World::with_members(Options::default(), 2);
    world.checkpoint(9);
    world.reach(1, Point::Frozen);
    let began = world.now;
    while world.answered.is_empty() {
        world.wait();
        world.say(1, FromMember::Alive);
        assert!(world.now < began + Duration::from_secs(60));
    }
    assert!(
        matches!(&world.answered[..], [(9, Reply::Failed { reason })] if reason.contains("p2")),
        "{:?}",
        world.answered
    );
    let signs = world
        .told
        .iter()
        .filter(|told| **told == (1, ToMember::Alive))
        .count();
    assert!(
        signs >= 3,
        "those that wait are told that somebody is there"
    );
}

#[test]
fn the_interval_runs_from_end_to_end_and_may_change() {
    let options = Options {
        interval: 259_190,
        ..Options::default()
    };
    let mut world = World::with_members(options, 1);
    let start = world.now;
    world.wait();
    assert_eq!(world.now, start + Duration::from_secs(259_190));
    world.round(1);
    world.fail(1, false);
    world.ask(5, Ask::Interval { seconds: 10 });
    let now = world.now;
    world.wait();
    assert_eq!(world.now, now + Duration::from_secs(10));
    world.fail(1, false);
    world.say(1, FromMember::Interval { seconds: None });
    assert_eq!(world.machine.deadline(), None);
    world.ask(6, Ask::Interval { seconds: u64::MAX });
    assert_eq!(world.machine.deadline(), None);
}

#[test]
fn what_is_asked_during_a_round_is_done_after_it() {
    let mut world = World::with_members(Options::default(), 1);
    world.checkpoint(1);
    let first = world.round(1);
    world.checkpoint(2);
    world.say(1, FromMember::Wanted { stop: true });
    assert_eq!(world.round(1), first);
    for point in POINTS {
        world.reach(1, point);
    }
    world.commit(1);
    assert_eq!(world.answered.len(), 1);
    assert_eq!(world.round(1), first + 1);
    assert!(
        world
            .told
            .iter()
            .any(|(_, message)| matches!(message, ToMember::Round { stop: true, .. }))
    );
    for point in POINTS {
        world.reach(1, point);
    }
    world.commit(1);
    // The end belongs to it.
    assert_eq!(world.answered.len(), 1);
    world.happen(Event::Left(MemberId(1)));
    assert_eq!(world.answered.len(), 2);
}

#[test]
fn killing_is_answered_when_all_are_gone() {
    let mut world = World::with_members(Options::default(), 2);
    world.ask(1, Ask::Kill);
    assert_eq!(
        world
            .told
            .iter()
            .filter(|(_, message)| *message == ToMember::Kill)
            .count(),
        2
    );
    world.happen(Event::Left(MemberId(1)));
    assert!(world.answered.is_empty());
    world.happen(Event::Left(MemberId(2)));
    assert_eq!(world.answered, [(1, Reply::Done)]);
    assert!(!world.exited);
    world.ask(2, Ask::Quit);
    assert!(world.exited);
    world.ask(
        3,
        Ask::Checkpoint {
            wait: true,
            stop: false,
        },
    );
    assert_eq!(world.answered[2], (3, Reply::NotRunning));
}

#[test]
fn it_ends_with_the_last_member_or_after_a_time() {
    let options = Options {
        exit_on_last: true,
        idle: Some(Duration::from_secs(100)),
        ..Options::default()
    };
    let mut world = World::with_members(options, 1);
    assert_eq!(world.machine.deadline(), None, "not while there is one");
    world.happen(Event::Left(MemberId(1)));
    assert!(world.exited);
    let mut idle = World::new(options);
    let began = idle.now;
    idle.wait();
    assert!(idle.exited && idle.now == began + Duration::from_secs(100));
    let lifetime = Some(Duration::from_secs(7));
    let mut short = World::with_members(
        Options {
            lifetime,
            ..Options::default()
        },
        1,
    );
    short.wait();
    assert!(short.exited);
}

fn belonging(generation: u64, size: Option<usize>) -> Option<Belonging> {
    Some(Belonging {
        id: "old".into(),
        generation,
        size,
    })
}

/// A second copy of member `id`.
fn copy_of(id: u64) -> Join {
    Join {
        program: "p".into(),
        host: "h".into(),
        name: Some(format!("n{id}")),
        computation: belonging(4, None),
        interval: None,
        running: None,
    }
}

fn is_refused(world: &World, id: u64) -> bool {
    world
        .told
        .iter()
        .any(|(to, message)| *to == id && matches!(message, ToMember::Refused { .. }))
}

#[test]
fn a_computation_is_continued_with_all_its_members_or_not() {
    let mut world = World::new(Options::default());
    world.join(1, belonging(4, Some(2)));
    world.start(1);
    world.checkpoint(9);
    assert!(
        world
            .told
            .iter()
            .all(|(_, message)| !matches!(message, ToMember::Round { .. })),
        "one is missing"
    );
    world.join(2, belonging(4, Some(2)));
    world.start(2);
    assert!(
        world
            .told
            .iter()
            .any(|(_, message)| matches!(message, ToMember::Round { generation: 5, .. }))
    );
    world.join(3, belonging(3, Some(2)));
    assert!(is_refused(&world, 3), "of an older checkpoint");
    world.happen(Event::Join(MemberId(5), copy_of(2)));
    assert!(is_refused(&world, 5), "it runs already");
    world.join(4, None);
    assert!(!is_refused(&world, 4), "a new program may join");

    let mut failing = World::new(Options::default());
    failing.join(1, belonging(4, Some(2)));
    failing.join(2, belonging(4, Some(2)));
    failing.start(1);
    failing.happen(Event::Left(MemberId(2)));
    assert!(failing.told.contains(&(1, ToMember::Kill)));
}

#[test]
fn programs_come_back_after_the_death_of_their_coordinator() {
    let mut world = World::new(Options::default());
    let back = |id: u64, of: &str| {
        let join = Join {
            program: "p".into(),
            host: "h".into(),
            name: Some(format!("n{id}")),
            computation: Some(Belonging {
                id: of.into(),
                generation: 3,
                size: None,
            }),
            interval: None,
            running: Some(Running {
                pid: 1,
                virtual_pid: 1,
            }),
        };
        Event::Join(MemberId(id), join)
    };
    world.happen(back(1, "old"));
    world.happen(back(2, "old"));
    world.happen(back(3, "another"));
    assert!(!is_refused(&world, 1) && !is_refused(&world, 2) && is_refused(&world, 3));
    world.checkpoint(9);
    assert!(world.told.iter().any(|(_, message)| matches!(message, ToMember::Round { generation: 4, members, .. } if members.len() == 2)));
}
