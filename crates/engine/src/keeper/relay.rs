//! Signals on their way from the front to the program, none of them twice.
//!
//! What a terminal or a shell sends to a process group reaches the program by itself, as it starts in the front's
//! group; what is sent to the front alone has to be passed on. A signal does not tell which it was. But the keeper
//! is in the front's group too (unless the job was restarted in namespaces), and blocks everything: a signal that it has
//! got as well was sent to the group.

use crate::tree::{self, Stat};
use rustix::process::Signal;
use stasis_sys::{Pid, signal};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a signal that the keeper has got may wait for the front's word of it. Members of a group are signalled within
/// microseconds, but on a busy machine the front may be scheduled late. What is older was sent to the keeper alone.
const TOGETHER: Duration = Duration::from_secs(10);

/// So many of one signal are remembered: more than any queue of real-time signals holds is not worth the memory.
const REMEMBERED: usize = 1024;

/// When which signals were received, and not asked for since.
#[derive(Default)]
pub(super) struct Heard(BTreeMap<i32, VecDeque<Instant>>);

impl Heard {
    pub(super) fn note(&mut self, signal: i32) {
        let times = self.0.entry(signal).or_default();
        times.truncate(REMEMBERED - 1);
        times.push_back(Instant::now());
    }
    /// Whether one more `signal` has been received than was asked for.
    pub(super) fn take(&mut self, signal: i32) -> bool {
        let Some(times) = self.0.get_mut(&signal) else {
            return false;
        };
        times.retain(|at| at.elapsed() < TOGETHER);
        times.pop_front().is_some()
    }
}

/// Sees to it that the program gets `signal` once. `heard` tells that the keeper has it too: it was sent to the group
/// that the front and the keeper are in. `to_group` tells that it was meant for a group, whether or not the keeper is in
/// it (a restarted job may be in a session of its own).
pub(super) fn pass_on(root: Pid, signal: i32, heard: bool, to_group: bool) {
    let (Some(own), Some(its)) = (Stat::read("self"), Stat::read(root)) else {
        return;
    };
    // A process that has just ended needs no signal.
    match route(&own, &its, signal, heard, to_group) {
        Route::Arrived => {}
        Route::Process => drop(signal::send(root, signal)),
        Route::Group(signal) => {
            // One by one, because this process may be in the group itself, and must not stop.
            let group = its.field(GROUP);
            for pid in tree::descendants(Pid::current()) {
                if Stat::read(pid).is_some_and(|stat| stat.field(GROUP) == group) {
                    let _ = signal::send(pid, signal);
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Route {
    Arrived,
    Process,
    Group(i32),
}

/// Fields of `proc_pid_stat(5)`.
const GROUP: usize = 5;
const SESSION: usize = 6;

fn route(own: &Stat, root: &Stat, signal: i32, heard: bool, to_group: bool) -> Route {
    match (heard, to_group) {
        (false, false) => return Route::Process,
        (true, _) if own.field(GROUP) == root.field(GROUP) => return Route::Arrived,
        _ => {}
    }
    // The program has a group of its own: what was meant for a group goes to that one. In another session than the
    // terminal's the kernel would drop the terminal's stop, as no shell could continue the group: the front can.
    let same_session = heard && own.field(SESSION) == root.field(SESSION);
    if signal == Signal::TSTP.as_raw() && !same_session {
        return Route::Group(Signal::STOP.as_raw());
    }
    Route::Group(signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(group: u64, session: u64) -> Stat {
        Stat {
            pid: Pid(1),
            comm: String::new(),
            state: 'S',
            parent: Pid(1),
            rest: [
                "S".into(),
                "1".into(),
                group.to_string(),
                session.to_string(),
            ]
            .to_vec(),
        }
    }

    #[test]
    fn a_signal_arrives_once() {
        let (keeper, same, own_group, own_session) =
            (process(7, 5), process(7, 5), process(9, 5), process(9, 9));
        let tstp = Signal::TSTP.as_raw();
        let stop = Signal::STOP.as_raw();
        assert_eq!(route(&keeper, &same, 15, true, false), Route::Arrived);
        assert_eq!(route(&keeper, &same, 15, true, true), Route::Arrived);
        assert_eq!(route(&keeper, &same, 15, false, false), Route::Process);
        assert_eq!(
            route(&keeper, &own_group, 15, true, false),
            Route::Group(15)
        );
        assert_eq!(
            route(&keeper, &own_group, tstp, true, true),
            Route::Group(tstp)
        );
        assert_eq!(
            route(&keeper, &own_session, tstp, true, true),
            Route::Group(stop)
        );
        // Restarted in namespaces: the keeper shares the program's group, and both are far from the terminal.
        assert_eq!(route(&keeper, &same, 2, false, true), Route::Group(2));
        assert_eq!(route(&keeper, &same, tstp, false, true), Route::Group(stop));
    }

    #[test]
    fn each_that_was_heard_counts_once() {
        let mut heard = Heard::default();
        heard.note(15);
        assert!(heard.take(15) && !heard.take(15) && !heard.take(64));
        for _ in 0..3 {
            heard.note(37);
        }
        assert!(heard.take(37) && heard.take(37) && heard.take(37) && !heard.take(37));
    }
}
