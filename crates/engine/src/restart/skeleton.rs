//! Making the processes, natively: code of ours that runs in forked copies of the supervisor, before their memory is replaced.
//!
//! Every process makes its own children, then all meet at the stages of a [`Board`]: made, groups led, groups joined. After that
//! ended processes end, and living ones restore what a process can restore for itself - descriptors, working directory - report, and
//! sleep until the supervisor takes hold of them.

use super::births::{Birth, Births, Maker, Role};
use super::burn::{self, Counter, Reached};
use super::executable;
use super::ids::IdSource;
use crate::descriptors::{self, Opened, ProcessView, ptys};
use crate::model::Tree;
use crate::{EngineError, attributes};
use rustix::event::{PollFd, PollFlags, poll};
use stasis_sys::Pid;
use stasis_sys::board::Board;
use stasis_sys::process::{self, Fork, WaitStatus, Waited};
use stasis_sys::signal::{self, SignalSet};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

const MADE: usize = 0;
const GROUPS_LED: usize = 1;
const GROUPS_JOINED: usize = 2;

/// What every process of the skeleton knows.
pub struct Skeleton<'a> {
    /// The saved tree.
    pub tree: &'a Tree,
    /// Who makes whom.
    pub births: &'a Births,
    /// Where they meet.
    pub board: Board,
    /// How ids are obtained.
    pub ids: &'a IdSource,
    /// The opened descriptions.
    pub opened: &'a Opened,
    /// Descriptors that the restoring supervisor still needs in every process.
    pub keep: &'a [RawFd],
    /// Where directories are now.
    pub path_map: &'a crate::file_policy::PathMap,
    /// Where living processes report, a line each.
    pub report: BorrowedFd<'a>,
}

/// What a line of the report that is no failure begins with.
pub const NOTE: &str = "note: ";
/// The line of a process that is ready.
pub const READY: &str = "ready";

/// What the places of the board's slots hold for a process that has been made.
const IS_MADE: u32 = 1;

/// Whose turn it is, in the board's language.
fn turn(maker: Maker) -> u32 {
    match maker {
        Maker::Keeper => 0,
        Maker::Node(n) => n as u32 + 1,
    }
}

impl Skeleton<'_> {
    /// Everything that the keeper makes itself. Returns once all processes exist and are in their groups.
    ///
    /// # Errors
    /// When a process could not be made, or the supervisor is gone.
    pub fn make(&self) -> Result<(), EngineError> {
        self.make_all(Maker::Keeper)?;
        self.meet(MADE)?;
        self.reap(Maker::Keeper, Role::LostLeader)?;
        self.arrive(GROUPS_LED);
        self.meet(GROUPS_JOINED)
    }

    fn members(&self, stage: usize) -> usize {
        let lives_on = |node: &&super::births::Node| node.role != Role::LostLeader;
        let nodes = self.births.nodes.iter().filter(lives_on).count();
        // The keeper tells the others when its helpers are gone.
        nodes + usize::from(stage == GROUPS_LED)
    }

    fn arrive(&self, stage: usize) {
        self.board.arrive(stage, self.members(stage));
    }

    fn meet(&self, stage: usize) -> Result<(), EngineError> {
        if self
            .board
            .wait(stage, self.members(stage), &|| self.wanted())
        {
            Ok(())
        } else {
            Err(self.given_up())
        }
    }

    fn given_up(&self) -> EngineError {
        EngineError::Failed("another process could not be made".into())
    }

    /// Whether the supervisor still listens.
    fn wanted(&self) -> bool {
        let mut line = [PollFd::new(&self.report, PollFlags::empty())];
        let polled = poll(&mut line, Some(&rustix::time::Timespec::default()));
        polled.is_err() || !line[0].revents().contains(PollFlags::ERR)
    }

    /// Makes everything that `me`, the calling process, has to make, and its session at the right moment.
    fn make_all(&self, me: Maker) -> Result<(), EngineError> {
        let mut session = match me {
            Maker::Keeper => None,
            Maker::Node(n) => Some(self.births.nodes[n])
                .filter(|node| node.session == node.pid)
                .map(|node| node.pid),
        };
        if self.ids.are_burnt() {
            self.burn_all(me, &mut session)?;
        } else {
            for birth in self.births.of(me) {
                if !birth.before_session {
                    self.lead(&mut session)?;
                }
                self.bear(birth)?;
            }
        }
        self.lead(&mut session)
    }

    /// The same, where ids have to be waited for: whoever is to make the process whose id comes next has the turn, so that the
    /// whole tree is made in one round of the counter, unless children have lower ids than their parents, or an id is missed.
    fn burn_all(&self, me: Maker, session: &mut Option<Pid>) -> Result<(), EngineError> {
        let made = |n: usize| self.board.slot(n) == IS_MADE;
        let reading = |source| system("reading the counter of process ids".into(), source);
        let mut counter = Counter::open().map_err(reading)?;
        while self.births.of(me).any(|birth| !made(birth.node)) {
            if !self.board.await_turn(turn(me), &|| self.wanted()) {
                return Err(self.given_up());
            }
            let last = counter.last().map_err(reading)?;
            let Some(next) = burn::first_due(counter.ring(), last, self.births.due(&made)) else {
                continue;
            };
            let birth = &self.births.births[next];
            if birth.maker != me {
                self.board.pass_turn(turn(birth.maker));
                continue;
            }
            if !birth.before_session {
                self.lead(session)?;
            }
            if self.burn(birth, &mut counter)? {
                self.board.set_slot(next, IS_MADE);
            }
        }
        // Whoever comes next; with nothing left to make nobody waits for a turn.
        let last = counter.last().map_err(reading)?;
        if let Some(next) = burn::first_due(counter.ring(), last, self.births.due(&made)) {
            self.board.pass_turn(turn(self.births.births[next].maker));
        }
        Ok(())
    }

    /// Goes for one id. False when it was missed.
    fn burn(&self, birth: &Birth, counter: &mut Counter) -> Result<bool, EngineError> {
        if birth.adopted {
            const MISSED: i32 = 2;
            let attempt = |counter: &mut Counter| {
                let direct = Birth {
                    adopted: false,
                    ..*birth
                };
                self.burn(&direct, counter)
            };
            return match self.fork_intermediate(birth)? {
                Fork::Child => match attempt(counter) {
                    Ok(false) => process::exit_now(MISSED),
                    other => self.end(other.map(drop)),
                },
                Fork::Parent(intermediate) => match self.reap_one(intermediate)? {
                    Some(0) => Ok(true),
                    Some(MISSED) => Ok(false),
                    _ => Err(self.given_up()),
                },
            };
        }
        let go_on = || {
            self.board.go_on();
            !self.board.failed() && self.wanted()
        };
        match counter.reach(self.births.nodes[birth.node].pid, &go_on)? {
            Reached::Next => self.fork(birth.node),
            Reached::Missed => Ok(false),
        }
    }

    fn bear(&self, birth: &Birth) -> Result<(), EngineError> {
        if !birth.adopted {
            return self.fork(birth.node).map(drop);
        }
        match self.fork_intermediate(birth)? {
            Fork::Child => self.end(self.fork(birth.node).map(drop)),
            Fork::Parent(intermediate) => self.reap_one(intermediate).map(drop),
        }
    }

    /// Forks a process whose end hands its child to the nearest subreaper.
    fn fork_intermediate(&self, birth: &Birth) -> Result<Fork, EngineError> {
        let pid = self.births.nodes[birth.node].pid;
        self.ids.fork_any().map_err(|source| born(pid, source))
    }

    /// Makes one process; in the child this does not return. False when the process got another id, and is gone.
    fn fork(&self, node: usize) -> Result<bool, EngineError> {
        let pid = self.births.nodes[node].pid;
        match self.ids.fork(pid).map_err(|source| born(pid, source))? {
            None => Ok(false),
            Some(Fork::Parent(_)) => Ok(true),
            Some(Fork::Child) => {
                let result = self.live(node);
                self.end(result)
            }
        }
    }

    /// Waits for the end of a helper; its exit code.
    fn reap_one(&self, pid: Pid) -> Result<Option<i32>, EngineError> {
        match process::wait(pid, 0) {
            Ok(Waited::Child(_, status)) => Ok(status.exit_code()),
            Ok(_) => Ok(None),
            Err(source) => Err(system(format!("waiting for process {pid}"), source)),
        }
    }

    /// Waits for the end of the stand-ins of this kind that `me` has made: the program knows nothing of them.
    fn reap(&self, me: Maker, role: Role) -> Result<(), EngineError> {
        for birth in self.births.of(me) {
            let node = self.births.nodes[birth.node];
            if node.role == role {
                self.reap_one(node.pid)?;
            }
        }
        Ok(())
    }

    /// The end of a process that is not to live: tells what went wrong, if anything did.
    fn end(&self, result: Result<(), EngineError>) -> ! {
        if let Err(error) = &result {
            self.complain(error);
        }
        process::exit_now(i32::from(result.is_err()))
    }

    /// Reports a failure and tells all others to give up.
    fn complain(&self, error: &EngineError) {
        let text = error.to_string().replace('\n', "; ");
        let _ = rustix::io::write(self.report, format!("{text}\n").as_bytes());
        self.board.fail();
    }

    fn live(&self, n: usize) -> Result<(), EngineError> {
        let _ = signal::set_mask(SKELETON_MASK);
        let node = self.births.nodes[n];
        if let Role::Living(place) = node.role
            && self.tree.processes[place].attributes.subreaper
        {
            let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        }
        self.make_all(Maker::Node(n))?;
        if node.role == Role::LostLeader {
            return Ok(());
        }
        self.arrive(MADE);
        self.meet(MADE)?;
        self.reap(Maker::Node(n), Role::LostLeader)?;
        self.group(n)?;
        match node.role {
            Role::Zombie(place) => process::end_with(WaitStatus(self.tree.zombies[place].status)),
            Role::Living(place) => self.settle(place),
            Role::LostLeader | Role::LostGroup => Ok(()),
        }
    }

    /// Becomes the leader of the session that is still to be made, if one is, and takes its terminal: what is forked afterwards
    /// inherits both.
    fn lead(&self, session: &mut Option<Pid>) -> Result<(), EngineError> {
        let Some(pid) = session.take() else {
            return Ok(());
        };
        process::new_session().map_err(|source| system(format!("making session {pid}"), source))?;
        ptys::take(&self.tree.pseudo_terminals, pid, &self.opened.terminals)
    }

    /// Waits for the children's ends that the program's process has not waited for: seen from then on, their signals are no
    /// news to it.
    fn await_ends(&self, parent: Pid) -> Result<(), EngineError> {
        for zombie in self.tree.zombies.iter().filter(|z| z.parent == parent) {
            process::await_end(zombie.pid)
                .map_err(|source| system(format!("waiting for process {}", zombie.pid), source))?;
        }
        Ok(())
    }

    /// Waits for the children's stops that the program's process had waited for.
    fn await_stops(&self, parent: Pid) -> Result<(), EngineError> {
        let known = |child: &&crate::model::Process| {
            child.parent == parent && child.stopped_by.is_some() && child.stop_reported
        };
        for child in self.tree.processes.iter().filter(known) {
            process::wait(child.pid, process::WUNTRACED)
                .map_err(|source| system(format!("waiting for process {}", child.pid), source))?;
        }
        Ok(())
    }

    /// Leads or joins the node's process group.
    fn group(&self, n: usize) -> Result<(), EngineError> {
        let node = self.births.nodes[n];
        let joining = |source| {
            system(
                format!("process {} joining group {}", node.pid, node.group),
                source,
            )
        };
        if node.group == node.pid && node.session != node.pid {
            process::set_group(Pid(0)).map_err(joining)?;
        }
        self.arrive(GROUPS_LED);
        self.meet(GROUPS_LED)?;
        if process::group() != node.group {
            // The outer group may be another one now: where the program's ids are the host's, it is the terminal's.
            let outer = node.group == self.tree.outer_group && self.ids.keeps_outer_group();
            if !outer {
                process::set_group(node.group).map_err(joining)?;
            }
        }
        self.arrive(GROUPS_JOINED);
        self.meet(GROUPS_JOINED)?;
        self.reap(Maker::Node(n), Role::LostGroup)
    }

    /// Restores what a process restores for itself, reports, and sleeps until its memory is replaced.
    fn settle(&self, place: usize) -> Result<(), EngineError> {
        let saved = &self.tree.processes[place];
        ptys::set_foreground(
            &self.tree.pseudo_terminals,
            saved.pid,
            &self.opened.terminals,
        )?;
        descriptors::install(&saved.descriptors, self.opened)?;
        let tables: Vec<_> = self
            .tree
            .processes
            .iter()
            .map(|p| p.descriptors.clone())
            .collect();
        descriptors::finish(place, &tables, &self.tree.descriptions, self.opened)?;
        descriptors::locks::take_leases(&self.tree.leases, place, &tables)?;
        attributes::restore_here(&saved.attributes, self.path_map)?;
        let mut keep = self.keep.to_vec();
        keep.push(self.report.as_raw_fd());
        let view = ProcessView {
            pid: saved.pid,
            virtual_pid: saved.pid,
            name: saved.name(),
        };
        descriptors::close_high(&view, &saved.descriptors, self.opened, &keep)?;
        self.await_stops(saved.pid)?;
        self.await_ends(saved.pid)?;
        if self.ids.are_burnt() {
            executable::prepare_here()
                .map_err(|source| system("keeping descriptors".into(), source))?;
        }
        rustix::io::write(self.report, format!("{READY}\n").as_bytes())
            .map_err(|error| system("reporting".into(), error.into()))?;
        if let Some(signal) = saved.stopped_by {
            // The signal that stopped it is what its parent is told. Of an orphaned group, only SIGSTOP stops a process.
            let _ = signal::set_mask(SKELETON_MASK.without(signal));
            let _ = signal::send(process::own_id(), signal);
            let _ = signal::send(process::own_id(), STOP);
        }
        process::sleep_for_ever()
    }
}

const STOP: i32 = libc::SIGSTOP;
/// A blocked SIGCHLD would wait for the program: what ends and stops among the processes in the making is not its news.
const SKELETON_MASK: SignalSet = SignalSet::ALL.without(process::SIGCHLD);

fn born(pid: Pid, source: std::io::Error) -> EngineError {
    system(format!("making process {pid}"), source)
}

fn system(what: String, source: std::io::Error) -> EngineError {
    EngineError::System { what, source }
}
