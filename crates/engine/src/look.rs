//! A look at a tree that runs: what a checkpoint would keep, what a restart would make something else of, what would be refused.
//!
//! There are no rules here. What a checkpoint asks of a tree that stands still is asked of one that runs, as far as that
//! can be, by the same functions: of [`capture`], [`memory`], and the modules of [`descriptors`], which
//! capture each description without storing anything. What they say of it are their own claims ([`crate::conformance`]).
//!
//! Nothing is stopped, traced, read from, or written to. The look holds copies of descriptors while it lasts: what the program
//! closes in that time is closed a moment later. Not seen: what waits in sockets and what threads have to be asked for (a
//! checkpoint does that when they stand still), what passes by itself, and what the program opens afterwards.

use crate::conformance::{Claim, Verdict};
use crate::descriptors::{self, CaptureContext, Inherited, Outside, ProcessView};
use crate::file_policy::Collector;
use crate::memory::{self, Collected};
use crate::tree::{self, Stat, status_field};
use crate::{EngineError, Job, Refusal, address_room, capture, freeze, maps, signals, timers};
use serde::{Deserialize, Serialize};
use stasis_sys::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

/// What was seen of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Every resource: processes, their memory and threads, their descriptors; several of a kind of one process may be one item.
    pub items: Vec<Item>,
    /// What stands in the way, each once, as a checkpoint would tell it.
    pub refusals: Vec<Refusal>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The inodes that descriptors are open on.
    #[serde(skip)]
    pub open: Vec<(u64, u64)>,
}

/// A resource of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The process, by the number that the program itself sees; `None` for what belongs to none.
    pub pid: Option<Pid>,
    /// That process's name (`comm`), may be empty.
    pub process: String,
    /// The descriptor's number, where it is one.
    pub descriptor: Option<i32>,
    /// What it is, as the table of conformance calls it.
    pub resource: String,
    /// Which one it is: a path, an address; may be empty.
    pub object: String,
    /// How many of them this item stands for.
    pub count: u64,
    /// Bytes, where they are counted.
    pub bytes: Option<u64>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// What that means; for what is refused, the reason.
    pub remark: String,
    /// What the user can do, where it is refused.
    pub hint: String,
}

impl Item {
    /// Something of `process` that is as a module claims.
    pub(crate) fn of(process: &ProcessView, claim: &Claim) -> Item {
        Item {
            pid: Some(process.virtual_pid),
            process: process.name.clone(),
            descriptor: None,
            resource: claim.resource.to_owned(),
            object: String::new(),
            count: 1,
            bytes: None,
            verdict: claim.verdict,
            remark: claim.remark.to_owned(),
            hint: String::new(),
        }
    }
}

impl From<&Refusal> for Item {
    fn from(refusal: &Refusal) -> Item {
        Item {
            pid: refusal.pid,
            process: refusal.process.clone(),
            descriptor: None,
            resource: refusal.object.clone(),
            object: String::new(),
            count: 1,
            bytes: None,
            verdict: Verdict::Refused,
            remark: refusal.reason.clone(),
            hint: refusal.hint.clone(),
        }
    }
}

impl Look {
    /// Whether nothing stands in the way.
    #[must_use]
    pub fn can_be_saved(&self) -> bool {
        self.refusals.is_empty()
    }

    fn refuse(&mut self, refusals: impl IntoIterator<Item = Refusal>) {
        for refusal in refusals {
            self.items.push(Item::from(&refusal));
            self.refusals.push(refusal);
        }
    }

    fn refuse_if(&mut self, refusals: Result<(), EngineError>) -> Result<(), EngineError> {
        match refusals {
            Err(EngineError::Refused(refusals)) => self.refuse(refusals),
            Err(error) if descriptors::vanished(&error) => {}
            other => other?,
        }
        Ok(())
    }
}

/// Looks at a job as its next checkpoint would.
///
/// # Errors
/// When it cannot be looked at.
pub fn job(job: &Job) -> Result<Look, EngineError> {
    let members = tree::descendants(job.keeper).into_iter();
    let members: Vec<Pid> = members
        .filter(|pid| !job.memory.ours.contains(pid))
        .collect();
    let around = capture::Surroundings::of(job.keeper);
    members_of(&around, &members, &job.stdio, &job.inherited)
}

/// Looks at a program that is no job, as if it had been started by `stasis run` with its standard streams and with `inherited`.
///
/// # Errors
/// When it cannot be looked at.
pub fn program(root: Pid, inherited: &[Inherited]) -> Result<Look, EngineError> {
    let parent = Stat::read(root).ok_or(EngineError::Gone)?.parent;
    let mut members = vec![root];
    members.extend(tree::descendants(root));
    let stdio = descriptors::stdio_of(root);
    let around = capture::Surroundings::of_program(parent);
    members_of(&around, &members, &stdio, inherited)
}

fn members_of(
    around: &capture::Surroundings,
    members: &[Pid],
    stdio: &[Option<Outside>; 3],
    inherited: &[Inherited],
) -> Result<Look, EngineError> {
    let mut look = Look::default();
    let mut views = Vec::new();
    for &pid in members {
        let (Some(stat), Ok(status)) = (Stat::read(pid), capture::read_status(pid)) else {
            continue;
        };
        let view = ProcessView {
            pid,
            virtual_pid: tree::innermost_id(&status).unwrap_or(pid),
            name: stat.comm.clone(),
        };
        // A first thread that has ended is no zombie while others live: they are looked at below.
        let alone = tree::threads(pid).len() <= 1;
        if matches!(stat.state, 'X') || stat.state == 'Z' && alone {
            look.items.push(Item::of(&view, &tree::ZOMBIE));
            continue;
        }
        if process(&mut look, &view, &stat, &status, around) {
            views.push(view);
        }
    }
    let files = Collector::new(0);
    let context = CaptureContext {
        processes: &views,
        stdio,
        inherited,
        contents: None,
        file_content_limit: 0,
        files: &files,
    };
    let mut attempts = (1..ATTEMPTS).map(|_| {
        let looked = descriptors::look(&context);
        if looked.is_err() {
            thread::sleep(MOMENT);
        }
        looked
    });
    let descriptors = match attempts.find_map(Result::ok) {
        Some(descriptors) => descriptors,
        None => descriptors::look(&context)?,
    };
    look.items.extend(descriptors.items);
    look.refusals.extend(descriptors.refusals);
    look.notes.extend(descriptors.notes);
    // After the descriptors, as at a checkpoint: some areas are mapped from what they are open on.
    let mut collected = Collected {
        open: descriptors.open.into_iter().collect(),
        ..Collected::default()
    };
    for view in &views {
        let seen = memory_of(&mut look, view, &files, &mut collected);
        look.refuse_if(seen)?;
    }
    Ok(look)
}

/// What of a process itself stands in the way.
fn obstacles(
    view: &ProcessView,
    stat: &Stat,
    status: &str,
    around: &capture::Surroundings,
) -> Vec<Refusal> {
    let (pid, virtual_pid) = (view.pid, view.virtual_pid);
    let no = |reason: &str, hint: &str| {
        vec![capture::refusal(
            virtual_pid,
            stat,
            "the process",
            reason,
            hint,
        )]
    };
    if fs::read_link(format!("/proc/{pid}/ns/user")).is_err() {
        let reason = "it is protected from being traced (not dumpable, or another user's)";
        return no(reason, "run it as yourself, and without that protection");
    }
    if maps::read(pid).is_err() {
        return no("it may not be traced by you", "run it as yourself");
    }
    let mut refusals = Vec::new();
    let threads = tree::threads(pid);
    capture::obstacles(pid, virtual_pid, stat, status, around, &mut refusals);
    refusals.extend(capture::thread_obstacles(view, stat, &threads));
    refusals.extend(freeze::traced_by_another(pid, stat, &threads));
    refusals.extend(address_room::obstacle(pid, virtual_pid));
    if is_32_bit(pid) {
        refusals.push(capture::not_64_bit(virtual_pid, stat));
    }
    refusals
}

/// Whether a process is about to end, and tells nothing that counts.
fn ends(pid: Pid) -> bool {
    const FLAGS: usize = 9;
    const PF_EXITING: u64 = 4;
    Stat::read(pid)
        .is_none_or(|stat| matches!(stat.state, 'Z' | 'X') || stat.field(FLAGS) & PF_EXITING != 0)
}

/// What is seen of a process that ends, or executes another program at this moment, is not what it is: whatever seems to be in the
/// way is looked at once more after so long.
const MOMENT: Duration = Duration::from_millis(2);
/// So many looks at descriptors may fail for that.
const ATTEMPTS: u32 = 5;

/// What belongs to a process itself; false where it cannot be looked at any further.
fn process(
    look: &mut Look,
    view: &ProcessView,
    stat: &Stat,
    status: &str,
    around: &capture::Surroundings,
) -> bool {
    let (pid, virtual_pid) = (view.pid, view.virtual_pid);
    let mut refusals = obstacles(view, stat, status, around);
    if !refusals.is_empty() {
        thread::sleep(MOMENT);
        let (false, Some(stat), Ok(status)) =
            (ends(pid), Stat::read(pid), capture::read_status(pid))
        else {
            return false;
        };
        refusals = obstacles(view, &stat, &status, around);
        if ends(pid) {
            return false;
        }
    }
    let own_threads = tree::threads(pid);
    let barred = refusals
        .iter()
        .any(|refusal| refusal.object == "the process" && maps::read(pid).is_err());
    if refusals.is_empty() {
        look.items.push(Item::of(view, &tree::PROCESS));
    }
    look.refuse(refusals);
    if barred {
        return false;
    }
    if freeze::waits_for_vfork(&own_threads) {
        look.notes.push(format!(
            "process {virtual_pid} ({}) waits for a child that it has made by vfork(2): a checkpoint waits for that, up to 10 s",
            view.name
        ));
    }
    let mut add = |claim: &Claim, count: usize| {
        if count > 0 {
            look.items.push(Item {
                count: count as u64,
                ..Item::of(view, claim)
            });
        }
    };
    add(&crate::threads::THREAD, own_threads.len());
    add(&timers::TIMER, timers::count(pid));
    let waiting = |name| {
        let set = status_field(status, name).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        set.unwrap_or(0).count_ones() as usize
    };
    add(&signals::PENDING, waiting("SigPnd") + waiting("ShdPnd"));
    true
}

/// Whether its program is of the 32-bit kind. (A program that changes over by itself only shows that when it stands still.)
fn is_32_bit(pid: Pid) -> bool {
    use std::io::Read;
    const CLASS: usize = 4;
    const CLASS_32: u8 = 1;
    let mut head = [0; CLASS + 1];
    let read =
        fs::File::open(format!("/proc/{pid}/exe")).and_then(|mut exe| exe.read_exact(&mut head));
    read.is_ok() && head.starts_with(b"\x7fELF") && head[CLASS] == CLASS_32
}

/// The areas of a process, by kind.
fn memory_of(
    look: &mut Look,
    view: &ProcessView,
    files: &Collector,
    collected: &mut Collected,
) -> Result<(), EngineError> {
    let vmas = memory::look(view.pid)?;
    let refused = memory::refusals(view.virtual_pid, &view.name, &vmas);
    let stands_in_the_way = !refused.is_empty();
    look.refuse(refused);
    if stands_in_the_way {
        return Ok(());
    }
    let mut kinds: BTreeMap<&str, (Claim, u64, u64)> = BTreeMap::new();
    for area in memory::areas(view.pid, &vmas, files, collected)? {
        if let Some(claim) = area.claim() {
            let (_, count, bytes) = kinds.entry(claim.resource).or_insert((claim, 0, 0));
            *count += 1;
            *bytes += area.range.end - area.range.start;
        }
    }
    look.items
        .extend(kinds.into_values().map(|(claim, count, bytes)| Item {
            count,
            bytes: Some(bytes),
            ..Item::of(view, &claim)
        }));
    Ok(())
}
