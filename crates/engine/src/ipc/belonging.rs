//! Which System V objects are the program's.
//!
//! They belong to an ipc namespace, not to a process. In one of the job's own, all are the job's. On the host:
//!
//! - certainly, what a process of the job has attached, and what one has made or used last, as far as the kernel tells who that was
//!   (of a segment: who made it, who attached it last; of a semaphore: who changed it last; of a queue: who sent and received last).
//!   What was last used before that process was started was used by another one that had its id;
//! - perhaps, what was made by the same user since the job began, and whose known users have all ended: a member of the job may have made
//!   it and ended. It is saved, as one too many costs only room, but nothing is refused for its sake.
//!
//! Of what others use nothing is saved.

use super::table::{Kind, Object, Row};
use crate::tree::Stat;
use rustix::time::{ClockId, clock_gettime};
use stasis_sys::Pid;
use std::collections::BTreeSet;
use std::time::Duration;

/// The job, as far as it matters here.
#[derive(Debug)]
pub struct Job {
    /// Its processes, ended ones too, and the keeper, by the supervisor's numbers.
    pub members: BTreeSet<Pid>,
    /// When it began, since 1970.
    pub began: Duration,
    /// The user.
    pub user: u32,
    /// The segments that its processes have attached.
    pub attached: BTreeSet<i32>,
    /// Those among them that are made of huge pages.
    pub huge: BTreeSet<i32>,
    /// The inodes of what they have open, among them POSIX message queues.
    pub queues: Vec<u64>,
}

impl Job {
    /// A job of `members`, of which `keeper` has been there longest.
    #[must_use]
    pub fn new(keeper: Pid, members: impl IntoIterator<Item = Pid>) -> Job {
        Job {
            members: members.into_iter().chain([keeper]).collect(),
            began: started(keeper).unwrap_or(Duration::MAX),
            user: rustix::process::geteuid().as_raw(),
            attached: BTreeSet::new(),
            huge: BTreeSet::new(),
            queues: Vec::new(),
        }
    }

    /// The object, if it is the job's.
    #[must_use]
    pub fn claim(&self, kind: Kind, row: &Row) -> Option<Object> {
        let mut object = row.object(kind);
        let attached = kind == Kind::Segment && self.attached.contains(&object.id);
        let ours = |user: &Pid| {
            self.members.contains(user)
                && started(*user).is_none_or(|since| could_have(since, object.used))
        };
        object.certain = attached || object.users.iter().any(ours);
        let same_user = object.uid == self.user && object.maker == self.user;
        let recent = could_have(self.began, object.changed);
        let lost = same_user && recent && row.attached() == 0 && is_abandoned(kind, &object);
        (object.certain || lost).then_some(object)
    }
}

/// Whether everybody who is known to have used it has ended. Of a segment, which nobody has attached, only its maker counts: who attached
/// it last may be the supervisor of another job of the same user, which has looked at it.
#[must_use]
pub fn is_abandoned(kind: Kind, object: &Object) -> bool {
    let lives = |user: &&Pid| {
        let since = Stat::read(**user).filter(|stat| !matches!(stat.state, 'Z' | 'X'));
        user.0 > 0 && since.is_some_and(|stat| could_have(since_1970(&stat), object.used))
    };
    let counting = match kind {
        Kind::Segment => 1,
        Kind::Set | Kind::Queue => object.users.len(),
    };
    !object.users.iter().take(counting).any(|user| lives(&user))
}

/// Whether a process that was `started` then can have used something that was last `used` in that second, both since 1970.
fn could_have(started: Duration, used: i64) -> bool {
    // The clock may have been set a little, and the start is known to a tick.
    const INEXACT: Duration = Duration::from_millis(1100);
    u64::try_from(used).is_ok_and(|used| started <= Duration::from_secs(used) + INEXACT)
}

/// When a process was started, since 1970; `proc_pid_stat(5)`, field 22.
fn started(pid: Pid) -> Option<Duration> {
    Some(since_1970(&Stat::read(pid)?))
}

fn since_1970(stat: &Stat) -> Duration {
    let ticks = stat.field(22);
    let clock = |id| {
        let now = clock_gettime(id);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
    };
    let booted = clock(ClockId::Realtime).saturating_sub(clock(ClockId::Boottime));
    let since_boot = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    booted + Duration::from_secs_f64(since_boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(user: Pid, used: i64) -> Object {
        Object {
            id: 1,
            key: 0,
            uid: 0,
            gid: 0,
            mode: 0,
            maker: 0,
            changed: used,
            used,
            users: vec![user],
            certain: false,
        }
    }

    #[test]
    fn who_has_the_id_now_is_not_who_had_it_then() {
        let own = Pid::current();
        let started = started(own)
            .expect("this process runs")
            .as_secs()
            .cast_signed();
        assert!(!is_abandoned(Kind::Set, &object(own, started)));
        assert!(is_abandoned(Kind::Set, &object(own, started - 60)));
        assert!(is_abandoned(Kind::Set, &object(Pid(0), started)));
        let mut segment = object(Pid(0), started);
        segment.users.push(own);
        assert!(is_abandoned(Kind::Segment, &segment));
        assert!(!is_abandoned(Kind::Queue, &segment));
    }
}
