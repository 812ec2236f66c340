//! In which order, and by whom, the processes of a tree are made again, so that parents, sessions and groups come out right.
//!
//! A process inherits its session when it is forked and can only leave it for a new one of its own (`setsid(2)`). So who forks a
//! process, and whether before or after a setsid of its own, decides the session; who is its parent can be changed afterwards only
//! by the maker's end, which hands it to the nearest subreaper (`PR_SET_CHILD_SUBREAPER`).

use crate::model::Tree;
use stasis_sys::Pid;
use std::collections::{BTreeMap, BTreeSet};

/// One process to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A living process: place in [`Tree::processes`].
    Living(usize),
    /// One that ends at once: place in [`Tree::zombies`].
    Zombie(usize),
    /// A session leader that had ended and been waited for: only here to make the members of its session.
    LostLeader,
}

/// A process and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// What it is.
    pub role: Role,
    /// Its id.
    pub pid: Pid,
    /// Its parent.
    pub parent: Pid,
    /// Its session.
    pub session: Pid,
    /// Its process group.
    pub group: Pid,
}

/// Who makes a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Maker {
    /// The keeper.
    Keeper,
    /// A process of the tree: place in [`Births::nodes`].
    Node(usize),
}

/// How a process is made.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// Place in [`Births::nodes`].
    pub node: usize,
    /// Before the maker becomes a session leader.
    pub before_session: bool,
    /// Through an intermediate process that ends at once, so that the nearest subreaper becomes the parent.
    pub adopted: bool,
}

/// The whole plan.
#[derive(Debug, Default)]
pub struct Births {
    /// Every process.
    pub nodes: Vec<Node>,
    /// What each maker makes, in order.
    pub made_by: BTreeMap<Maker, Vec<Birth>>,
    /// Process groups whose leader is not there: the group and the node that makes a stand-in for it.
    pub lost_groups: Vec<(Pid, usize)>,
}

impl Births {
    /// Plans the births of `tree`.
    #[must_use]
    pub fn plan(tree: &Tree) -> Births {
        let living = tree.processes.iter().enumerate().map(|(n, p)| Node {
            role: Role::Living(n),
            pid: p.pid,
            parent: p.parent,
            session: p.session,
            group: p.group,
        });
        let ended = tree.zombies.iter().enumerate().map(|(n, z)| Node {
            role: Role::Zombie(n),
            pid: z.pid,
            parent: z.parent,
            session: z.session,
            group: z.group,
        });
        let mut births = Births {
            nodes: living.chain(ended).collect(),
            ..Births::default()
        };
        births.assign(tree);
        births.find_lost_groups(tree);
        births
    }

    fn find(&self, pid: Pid) -> Option<usize> {
        self.nodes.iter().position(|node| node.pid == pid)
    }

    fn assign(&mut self, tree: &Tree) {
        let known = self.nodes.len();
        for n in 0..known {
            let node = self.nodes[n];
            let parent = self.find(node.parent);
            let maker = parent.map_or(Maker::Keeper, Maker::Node);
            let direct = |before_session| Birth {
                node: n,
                before_session,
                adopted: false,
            };
            if node.session == node.pid {
                self.add(maker, direct(false));
                continue;
            }
            match parent {
                None if node.session == tree.outer_session => self.add(maker, direct(false)),
                Some(parent) if self.nodes[parent].session == node.session => {
                    self.add(maker, direct(false))
                }
                Some(parent) if self.birth_session(parent, tree) == node.session => {
                    self.add(maker, direct(true))
                }
                _ => {
                    let leader = self
                        .find(node.session)
                        .unwrap_or_else(|| self.add_lost_leader(node, maker));
                    self.add(
                        Maker::Node(leader),
                        Birth {
                            node: n,
                            before_session: false,
                            adopted: true,
                        },
                    );
                }
            }
        }
    }

    fn add(&mut self, maker: Maker, birth: Birth) {
        self.made_by.entry(maker).or_default().push(birth);
    }

    /// The session that a session leader was born into.
    fn birth_session(&self, n: usize, tree: &Tree) -> Pid {
        let node = self.nodes[n];
        if node.session != node.pid {
            return node.session;
        }
        self.find(node.parent)
            .map_or(tree.outer_session, |parent| self.nodes[parent].session)
    }

    fn add_lost_leader(&mut self, member: Node, maker: Maker) -> usize {
        let n = self.nodes.len();
        self.nodes.push(Node {
            role: Role::LostLeader,
            pid: member.session,
            parent: member.parent,
            session: member.session,
            group: member.session,
        });
        self.add(
            maker,
            Birth {
                node: n,
                before_session: false,
                adopted: false,
            },
        );
        n
    }

    fn find_lost_groups(&mut self, tree: &Tree) {
        let mut seen: BTreeSet<Pid> = self.nodes.iter().map(|node| node.pid).collect();
        seen.insert(tree.outer_group);
        for n in 0..self.nodes.len() {
            let group = self.nodes[n].group;
            if matches!(self.nodes[n].role, Role::Living(_)) && seen.insert(group) {
                self.lost_groups.push((group, n));
            }
        }
    }

    /// What `maker` makes.
    pub fn of(&self, maker: Maker) -> impl Iterator<Item = &Birth> {
        self.made_by.get(&maker).into_iter().flatten()
    }

    /// Every id that the tree needs: processes, threads, leaders.
    #[must_use]
    pub fn wanted(&self, tree: &Tree) -> BTreeSet<Pid> {
        let threads = tree
            .processes
            .iter()
            .flat_map(|process| process.threads.iter().map(|t| t.virtual_tid));
        let mut wanted: BTreeSet<Pid> = threads
            .chain(self.nodes.iter().map(|node| node.pid))
            .collect();
        wanted.extend(self.lost_groups.iter().map(|(group, _)| *group));
        wanted.extend([tree.keeper, tree.outer_session, tree.outer_group]);
        wanted
    }
}
