//! In which order, and by whom, the processes of a tree are made again, so that parents, sessions and groups come out right.
//!
//! A process inherits its session when it is forked and can only leave it for a new one of its own (`setsid(2)`). So who forks a
//! process, and whether before or after a setsid of its own, decides the session; who is its parent can be changed afterwards only
//! by the maker's end, which hands it to the nearest subreaper (`PR_SET_CHILD_SUBREAPER`).

use crate::model::Tree;
use stasis_sys::Pid;
use std::collections::BTreeSet;

/// One process to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A living process: place in [`Tree::processes`].
    Living(usize),
    /// One that ends at once: place in [`Tree::zombies`].
    Zombie(usize),
    /// A session leader that had ended and been waited for: only here to make the members of its session.
    LostLeader,
    /// The leader of a process group, the same way: here until the members have joined.
    LostGroup,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Who makes it.
    pub maker: Maker,
    /// Before the maker becomes a session leader.
    pub before_session: bool,
    /// Through an intermediate process that ends at once, so that the nearest subreaper becomes the parent.
    pub adopted: bool,
}

/// Before whom a process cannot be made.
type Needs = Vec<usize>;

/// The whole plan.
#[derive(Debug, Default)]
pub struct Births {
    /// Every process.
    pub nodes: Vec<Node>,
    /// How each of [`Births::nodes`] is made, in the same order. Every maker makes what it makes before its session first, and
    /// otherwise in an order of its choice.
    pub births: Vec<Birth>,
    needs: Vec<Needs>,
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
        births.needs = births
            .births
            .iter()
            .map(|birth| births.needs_of(birth))
            .collect();
        births
    }

    fn needs_of(&self, birth: &Birth) -> Needs {
        let maker = match birth.maker {
            Maker::Keeper => None,
            Maker::Node(maker) => Some(maker),
        };
        let before = self
            .of(birth.maker)
            .take_while(|other| other.before_session && !birth.before_session)
            .map(|other| other.node);
        maker.into_iter().chain(before).collect()
    }

    fn find(&self, pid: Pid) -> Option<usize> {
        self.nodes.iter().position(|node| node.pid == pid)
    }

    fn assign(&mut self, tree: &Tree) {
        let known = self.nodes.len();
        let mut leaders = Vec::new();
        for n in 0..known {
            let node = self.nodes[n];
            let parent = self.find(node.parent);
            let maker = parent.map_or(Maker::Keeper, Maker::Node);
            let mut birth = Birth {
                node: n,
                maker,
                before_session: false,
                adopted: false,
            };
            let fits = node.session == node.pid
                || match parent {
                    None => node.session == tree.outer_session,
                    Some(parent) => self.nodes[parent].session == node.session,
                };
            if !fits {
                match parent {
                    Some(parent) if self.birth_session(parent, tree) == node.session => {
                        birth.before_session = true;
                    }
                    _ => {
                        let leader = self
                            .find(node.session)
                            .unwrap_or_else(|| self.add_lost_leader(node, maker, &mut leaders));
                        birth.maker = Maker::Node(leader);
                        // Of a leader that is to end, the children are adopted anyway.
                        birth.adopted = self.nodes[leader].role != Role::LostLeader;
                    }
                }
            }
            self.births.push(birth);
        }
        self.births.append(&mut leaders);
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

    fn add_lost_leader(&mut self, member: Node, maker: Maker, births: &mut Vec<Birth>) -> usize {
        let n = self.nodes.len();
        self.nodes.push(Node {
            role: Role::LostLeader,
            pid: member.session,
            parent: member.parent,
            session: member.session,
            group: member.session,
        });
        births.push(Birth {
            node: n,
            maker,
            before_session: false,
            adopted: false,
        });
        n
    }

    fn find_lost_groups(&mut self, tree: &Tree) {
        let mut seen: BTreeSet<Pid> = self.nodes.iter().map(|node| node.pid).collect();
        seen.insert(tree.outer_group);
        for n in 0..self.nodes.len() {
            let Node {
                role,
                pid,
                session,
                group,
                ..
            } = self.nodes[n];
            if !matches!(role, Role::Living(_)) || !seen.insert(group) {
                continue;
            }
            self.births.push(Birth {
                node: self.nodes.len(),
                maker: Maker::Node(n),
                before_session: false,
                adopted: false,
            });
            self.nodes.push(Node {
                role: Role::LostGroup,
                pid: group,
                parent: pid,
                session,
                group,
            });
        }
    }

    /// What `maker` makes, what comes before its session first.
    pub fn of(&self, maker: Maker) -> impl Iterator<Item = &Birth> {
        let of = move |before| {
            move |birth: &&Birth| birth.maker == maker && birth.before_session == before
        };
        let births = self.births.iter();
        births
            .clone()
            .filter(of(true))
            .chain(births.filter(of(false)))
    }

    /// Which processes can be made, when those for which `made` holds are there: their places in [`Births::nodes`] and their ids.
    pub fn due<'a>(
        &'a self,
        made: &'a dyn Fn(usize) -> bool,
    ) -> impl Iterator<Item = (usize, Pid)> + 'a {
        let ids = self.nodes.iter().map(|node| node.pid).enumerate();
        ids.filter(move |(n, _)| !made(*n) && self.needs[*n].iter().all(|other| made(*other)))
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
        wanted.extend([tree.keeper, tree.outer_session, tree.outer_group]);
        wanted
    }
}
