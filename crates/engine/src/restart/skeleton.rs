//! Making the processes, natively: code of ours that runs in forked copies of the supervisor, before their memory is replaced.
//!
//! Every process makes its own children, then all meet at the stages of a [`Board`]: made, groups led, groups joined. After that
//! ended processes end, and living ones restore what a process can restore for itself - descriptors, working directory - report, and
//! sleep until the supervisor takes hold of them.

use super::births::{Birth, Births, Maker, Role};
use super::ids::IdSource;
use crate::descriptors::{self, Opened, ProcessView};
use crate::model::Tree;
use crate::{EngineError, attributes};
use stasis_sys::Pid;
use stasis_sys::board::Board;
use stasis_sys::process::{self, Fork, WaitStatus};
use stasis_sys::signal::{self, SignalSet};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

const MADE: usize = 0;
const GROUPS_LED: usize = 1;
const GROUPS_JOINED: usize = 2;
const LIMIT: Duration = Duration::from_secs(120);

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

impl Skeleton<'_> {
    /// Everything that the keeper makes itself. Returns once all processes exist and are in their groups.
    ///
    /// # Errors
    /// When a process could not be made.
    pub fn make(&self) -> Result<(), EngineError> {
        for birth in self.births.of(Maker::Keeper) {
            self.bear(birth)?;
        }
        self.meet(GROUPS_JOINED)
    }

    fn meet(&self, stage: usize) -> Result<(), EngineError> {
        let nodes = self
            .births
            .nodes
            .iter()
            .filter(|node| node.role != Role::LostLeader)
            .count();
        let count = if stage == GROUPS_LED {
            nodes + self.births.lost_groups.len()
        } else {
            nodes
        };
        if self.board.wait(stage, count, LIMIT) {
            Ok(())
        } else {
            Err(EngineError::Failed(
                "another process could not be made".into(),
            ))
        }
    }

    fn bear(&self, birth: &Birth) -> Result<(), EngineError> {
        if !birth.adopted {
            return self.fork(birth.node);
        }
        // The intermediate's end hands the child to the nearest subreaper.
        match self
            .ids
            .fork_any()
            .map_err(|source| born(self.births.nodes[birth.node].pid, source))?
        {
            Fork::Child => {
                let result = self.fork(birth.node);
                self.end(result)
            }
            Fork::Parent(intermediate) => {
                let _ = process::wait(intermediate, 0);
                Ok(())
            }
        }
    }

    /// Makes one process; in the child this does not return.
    fn fork(&self, node: usize) -> Result<(), EngineError> {
        let pid = self.births.nodes[node].pid;
        match self
            .ids
            .fork(pid, &self.board)
            .map_err(|source| born(pid, source))?
        {
            Fork::Parent(_) => Ok(()),
            Fork::Child => {
                let result = self.live(node);
                self.end(result)
            }
        }
    }

    /// The end of a process that is not to live: tells what went wrong, if anything did.
    fn end(&self, result: Result<(), EngineError>) -> ! {
        if let Err(error) = &result {
            self.complain(error);
        }
        process::exit_now(i32::from(result.is_err()))
    }

    /// Reports a failure and tells all others to give up.
    pub fn complain(&self, error: &EngineError) {
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
        for birth in self
            .births
            .of(Maker::Node(n))
            .filter(|birth| birth.before_session)
        {
            self.bear(birth)?;
        }
        if node.session == node.pid {
            process::new_session()
                .map_err(|source| system(format!("making session {}", node.pid), source))?;
        }
        for birth in self
            .births
            .of(Maker::Node(n))
            .filter(|birth| !birth.before_session)
        {
            if node.role == Role::LostLeader {
                self.fork(birth.node)?
            } else {
                self.bear(birth)?
            }
        }
        if node.role == Role::LostLeader {
            return Ok(());
        }
        self.board.arrive(MADE);
        self.meet(MADE)?;
        self.group(n)?;
        match node.role {
            Role::Zombie(place) => process::end_with(WaitStatus(self.tree.zombies[place].status)),
            Role::Living(place) => self.settle(place),
            Role::LostLeader => Ok(()),
        }
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
        let mut stand_in = None;
        if let Some((group, _)) = self
            .births
            .lost_groups
            .iter()
            .find(|(_, maker)| *maker == n)
        {
            match self
                .ids
                .fork(*group, &self.board)
                .map_err(|source| born(*group, source))?
            {
                Fork::Child => {
                    let led = process::set_group(Pid(0)).map_err(joining);
                    self.board.arrive(GROUPS_LED);
                    let result = led.and_then(|()| self.meet(GROUPS_JOINED));
                    self.end(result)
                }
                Fork::Parent(pid) => stand_in = Some(pid),
            }
        }
        self.board.arrive(GROUPS_LED);
        self.meet(GROUPS_LED)?;
        if process::group() != node.group {
            // The outer group may be another one now: where the program's ids are the host's, it is the terminal's.
            let outer = node.group == self.tree.outer_group && self.ids.keeps_outer_group();
            if !outer {
                process::set_group(node.group).map_err(joining)?;
            }
        }
        self.board.arrive(GROUPS_JOINED);
        self.meet(GROUPS_JOINED)?;
        if let Some(pid) = stand_in {
            let _ = process::wait(pid, 0);
        }
        Ok(())
    }

    /// Restores what a process restores for itself, reports, and sleeps until its memory is replaced.
    fn settle(&self, place: usize) -> Result<(), EngineError> {
        let saved = &self.tree.processes[place];
        descriptors::install(&saved.descriptors, self.opened)?;
        let tables: Vec<_> = self
            .tree
            .processes
            .iter()
            .map(|p| p.descriptors.clone())
            .collect();
        descriptors::finish(place, &tables, &self.tree.descriptions, self.opened)?;
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
