//! Timers of a process: the three of setitimer(2) and those of timer_create(2).
//!
//! Saved: remaining time and interval, the timers' ids, clocks, signals and values.
//! Not saved: overruns not yet asked for (timer_getoverrun(2)).
//!
//! Rests on: `/proc/PID/timers` (CONFIG_CHECKPOINT_RESTORE) lists ids and what they notify; ids are chosen with
//! PR_TIMER_CREATE_RESTORE_IDS (Linux 6.16) or, before that, by creating timers until the kernel's counter arrives at the wanted one.
//! Remaining times are relative; a restart takes off what has passed by the program's clocks ([`crate::clocks`]), not off those in
//! processor time.
//!
//! Timers go on while they are read: one that fires in between is a signal in a queue by then, and
//! is read again ([`Fired`]).
//!
//! A periodic ITIMER_REAL whose SIGALRM waits shows no remaining time: the kernel arms it again when the signal is taken
//! (`kernel/signal.c`, `dequeue_signal`). A timer that is set to no time has no interval any more, so that it is armed for a whole
//! one: its next signal is late by the time for which this one had waited.

use crate::EngineError;
use crate::batch::{Answers, Asked, Batch, Room};
use crate::calls::Calls;
use crate::clocks::Passed;
use crate::conformance::Claim;
use serde::{Deserialize, Serialize};
use stasis_sys::{Pid, procfs};
use stasis_tracee::PendingSignal;
use std::collections::HashMap;
use std::time::Duration;

pub(crate) const TIMER: Claim = Claim::kept(
    "POSIX timer",
    "id, clock, what is left, interval, signal and value",
    &[
        "time::many_timers",
        "time::timers_of_many_threads",
        "time::a_signal_of_a_timer_that_waits",
    ],
);
/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    TIMER,
    Claim::kept("interval timer (setitimer)", "", &["time::intervals"]),
];

/// Interval and remaining time as the kernel holds them: four words, seconds and micro- or nanoseconds each.
pub type Setting = [i64; 4];

/// A timer of timer_create(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// Its id.
    pub id: i32,
    /// `clockid_t`.
    pub clock: i32,
    /// The signal that it sends.
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// `SIGEV_SIGNAL`, `SIGEV_NONE`, `SIGEV_THREAD`, with `SIGEV_THREAD_ID` where a thread gets the signal.
    pub notify: i32,
    /// That thread (the program's number).
    pub thread: Pid,
    /// Interval and remaining time.
    pub setting: Setting,
}

/// A process's timers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF: interval and remaining time in seconds and microseconds.
    pub interval_timers: [Setting; 3],
    /// Ascending by id.
    pub posix: Vec<PosixTimer>,
    /// When they were read, on the supervisor's clock ([`crate::clocks::monotonic`]).
    pub read_at: Duration,
}

const SETTING_BYTES: u64 = size_of::<Setting>() as u64;

fn decode(bytes: &[u8; SETTING_BYTES as usize]) -> Setting {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk
            .iter()
            .rev()
            .fold(0i64, |value, byte| value << 8 | i64::from(*byte));
    }
    words
}

fn encode(setting: &Setting) -> Vec<u8> {
    setting.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The questions that [`ask`] has put to a process.
pub struct Questions {
    interval: [(Asked, Room); 3],
    posix: Vec<(PosixTimer, Asked, Room)>,
}

/// How many POSIX timers a process has, as far as the kernel shows them.
pub(crate) fn count(process: Pid) -> usize {
    parse(&procfs::read_to_string(format!("/proc/{process}/timers")).unwrap_or_default()).len()
}

/// Asks `process` for what is left of all its timers. `threads` translates thread ids to the program's numbers.
#[must_use]
pub fn ask(process: Pid, threads: &HashMap<Pid, Pid>, batch: &mut Batch) -> Questions {
    // Missing where the kernel was built without CONFIG_CHECKPOINT_RESTORE; `check` tells.
    let list = procfs::read_to_string(format!("/proc/{process}/timers")).unwrap_or_default();
    let mut ask = |name, number, which: u64| {
        let room = batch.room(SETTING_BYTES);
        (batch.call(name, number, &[which.into(), room.into()]), room)
    };
    let interval = [0, 1, 2].map(|which| ask("getitimer", libc::SYS_getitimer, which));
    let mut posix = Vec::new();
    for mut timer in parse(&list) {
        timer.thread = threads.get(&timer.thread).copied().unwrap_or(timer.thread);
        let (asked, room) = ask("timer_gettime", libc::SYS_timer_gettime, timer.id as u64);
        posix.push((timer, asked, room));
    }
    Questions { interval, posix }
}

/// Captures the timers from a process's answers, which it gave before `read_at`.
///
/// # Errors
/// When a remote call has failed.
pub fn capture(
    questions: Questions,
    answers: &Answers,
    read_at: Duration,
) -> Result<State, EngineError> {
    let mut state = State {
        read_at,
        ..State::default()
    };
    for (setting, (asked, room)) in state.interval_timers.iter_mut().zip(questions.interval) {
        *setting = decode(&answers.written(asked, room)?);
    }
    for (mut timer, asked, room) in questions.posix {
        timer.setting = decode(&answers.written(asked, room)?);
        state.posix.push(timer);
    }
    state.posix.sort_by_key(|timer| timer.id);
    Ok(state)
}

/// Timers that have sent a signal.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fired {
    /// ITIMER_REAL.
    alarm: bool,
    /// Those of timer_create(2), by their ids.
    posix: Vec<i32>,
}

impl Fired {
    /// Those that have sent one of `signals`; `None` where no timer has.
    pub fn of<'a>(signals: impl Iterator<Item = &'a PendingSignal>) -> Option<Fired> {
        let mut fired = Fired::default();
        for info in signals {
            // `si_signo`, `si_code`, `si_timerid` (`asm-generic/siginfo.h`).
            let word = |at: usize| {
                i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]])
            };
            match (word(0), word(8)) {
                (libc::SIGALRM, libc::SI_KERNEL) => fired.alarm = true,
                (_, libc::SI_TIMER) => fired.posix.push(word(16)),
                _ => {}
            }
        }
        (fired != Fired::default()).then_some(fired)
    }
}

/// The questions that [`ask_again`] has put to a process.
pub struct QuestionsAgain {
    alarm: Option<(Asked, Room)>,
    posix: Vec<(i32, Asked, Room)>,
}

/// Asks again for the timers that have fired since they were read or right before. None of them fires again before its signal
/// is taken, and no other must be read again: it is armed as far as the signals tell that belong to this state.
#[must_use]
pub fn ask_again(fired: &Fired, batch: &mut Batch) -> QuestionsAgain {
    let mut ask = |name, number, which: u64| {
        let room = batch.room(SETTING_BYTES);
        (batch.call(name, number, &[which.into(), room.into()]), room)
    };
    QuestionsAgain {
        alarm: fired
            .alarm
            .then(|| ask("getitimer", libc::SYS_getitimer, 0)),
        posix: (fired.posix.iter())
            .map(|id| {
                let (asked, room) = ask("timer_gettime", libc::SYS_timer_gettime, *id as u64);
                (*id, asked, room)
            })
            .collect(),
    }
}

/// Puts the answers, given before `read_at`, into the state that was captured before.
///
/// # Errors
/// When a remote call has failed.
pub fn capture_again(
    state: &mut State,
    questions: &QuestionsAgain,
    answers: &Answers,
    read_at: Duration,
) -> Result<(), EngineError> {
    // What is left was read later than the rest, and so is more by that when the rest was read.
    let later = read_at.saturating_sub(state.read_at).as_nanos();
    let later = i128::try_from(later).unwrap_or(0);
    if let Some((asked, room)) = questions.alarm {
        let setting = decode(&answers.written(asked, room)?);
        state.interval_timers[0] = shifted(&setting, later, Fraction::Microseconds);
    }
    for (id, asked, room) in &questions.posix {
        if let Some(timer) = state.posix.iter_mut().find(|timer| timer.id == *id) {
            let setting = decode(&answers.written(*asked, *room)?);
            timer.setting = shifted(&setting, later, Fraction::Nanoseconds);
        }
    }
    Ok(())
}

fn parse(list: &str) -> Vec<PosixTimer> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in list.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if key == "ID" {
            timers.push(PosixTimer {
                id: value.parse().unwrap_or(0),
                clock: 0,
                signal: 0,
                value: 0,
                notify: libc::SIGEV_NONE,
                thread: Pid(0),
                setting: [0; 4],
            });
            continue;
        }
        let Some(timer) = timers.last_mut() else {
            continue;
        };
        match (key, value.split_once('/')) {
            ("signal", Some((signal, pointer))) => {
                timer.signal = signal.parse().unwrap_or(0);
                timer.value =
                    u64::from_str_radix(pointer.trim_start_matches("0x"), 16).unwrap_or(0);
            }
            ("notify", Some((how, target))) => {
                timer.notify = match how {
                    "signal" => libc::SIGEV_SIGNAL,
                    "thread" => libc::SIGEV_THREAD,
                    _ => libc::SIGEV_NONE,
                };
                if let Some((kind, id)) = target.split_once('.') {
                    timer.thread = Pid(id.parse().unwrap_or(0));
                    if kind == "tid" {
                        timer.notify |= libc::SIGEV_THREAD_ID;
                    }
                }
            }
            ("ClockID", _) => timer.clock = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    timers
}

const PR_TIMER_CREATE_RESTORE_IDS: u64 = 77;

/// Makes the timers anew, armed: to be called as late as possible.
///
/// # Errors
/// When a remote call fails.
pub fn restore_remotely(
    state: &State,
    passed: &Passed,
    calls: &mut Calls<'_>,
) -> Result<(), EngineError> {
    restore_posix(state, passed, calls)?;
    for (which, setting) in state.interval_timers.iter().enumerate() {
        if setting != &[0; 4] {
            let mut setting = armed(setting);
            if which as i32 == libc::ITIMER_REAL {
                let passed = passed.since(state.read_at);
                setting = advanced(&setting, passed, Fraction::Microseconds);
            }
            let address = calls.put(&encode(&setting))?;
            calls.call(
                "setitimer",
                libc::SYS_setitimer,
                &[which as u64, address, 0],
            )?;
        }
    }
    Ok(())
}

/// The setting with which a timer goes on that has an interval or some time left.
fn armed(setting: &Setting) -> Setting {
    match *setting {
        [seconds, microseconds, 0, 0] => [seconds, microseconds, seconds, microseconds],
        running => running,
    }
}

/// In what the second halves of a [`Setting`] count.
#[derive(Clone, Copy)]
enum Fraction {
    Microseconds,
    Nanoseconds,
}

impl Fraction {
    /// Its length in nanoseconds.
    fn length(self) -> i128 {
        match self {
            Fraction::Microseconds => 1000,
            Fraction::Nanoseconds => 1,
        }
    }
}

const SECOND: i128 = 1_000_000_000;

/// The setting with so many nanoseconds more that are left: one that runs never gets less than the smallest time, as none
/// would turn it off, and one that is off stays so.
fn shifted(setting: &Setting, nanoseconds: i128, fraction: Fraction) -> Setting {
    let [seconds, interval, left, part] = *setting;
    let unit = fraction.length();
    let left = i128::from(left) * SECOND + i128::from(part) * unit;
    if left == 0 {
        return *setting;
    }
    let left = (left + nanoseconds).max(unit);
    let whole = i64::try_from(left / SECOND).unwrap_or(i64::MAX);
    let part = i64::try_from(left % SECOND / unit).unwrap_or(0);
    [seconds, interval, whole, part]
}

/// The setting after so much time.
fn advanced(setting: &Setting, passed: Duration, fraction: Fraction) -> Setting {
    let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX / 2);
    shifted(setting, -passed, fraction)
}

/// Whether a clock goes on while the program does not: all but those that count processor time.
fn counts_always(clock: i32) -> bool {
    clock >= 0
        && ![
            libc::CLOCK_PROCESS_CPUTIME_ID,
            libc::CLOCK_THREAD_CPUTIME_ID,
        ]
        .contains(&clock)
}

fn restore_posix(state: &State, passed: &Passed, calls: &mut Calls<'_>) -> Result<(), EngineError> {
    let timers = &state.posix;
    if timers.is_empty() {
        return Ok(());
    }
    let choose = |calls: &mut Calls<'_>, on: u64| {
        calls.call(
            "prctl(PR_TIMER_CREATE_RESTORE_IDS)",
            libc::SYS_prctl,
            &[PR_TIMER_CREATE_RESTORE_IDS, on],
        )
    };
    let choosable = choose(calls, 1).is_ok();
    for timer in timers {
        create(timer, choosable, calls)?;
    }
    if choosable {
        choose(calls, 0)?;
    }
    for timer in timers {
        let passed = match counts_always(timer.clock) {
            true => passed.since(state.read_at),
            false => Duration::ZERO,
        };
        let setting = advanced(&timer.setting, passed, Fraction::Nanoseconds);
        let address = calls.put(&encode(&setting))?;
        calls.call(
            "timer_settime",
            libc::SYS_timer_settime,
            &[timer.id as u64, 0, address, 0],
        )?;
    }
    Ok(())
}

/// Offset of the id in the scratch page, behind the 64 bytes of `struct sigevent`.
const ID_AT: u64 = 64;

fn create(timer: &PosixTimer, choosable: bool, calls: &mut Calls<'_>) -> Result<(), EngineError> {
    let mut event = [0u8; 64];
    event[..8].copy_from_slice(&timer.value.to_le_bytes());
    event[8..12].copy_from_slice(&timer.signal.to_le_bytes());
    event[12..16].copy_from_slice(&timer.notify.to_le_bytes());
    event[16..20].copy_from_slice(&timer.thread.0.to_le_bytes());
    loop {
        let event_at = calls.put(&event)?;
        let id_at = calls.put_at(ID_AT, &timer.id.to_le_bytes())?;
        calls.call(
            "timer_create",
            libc::SYS_timer_create,
            &[timer.clock as u64, event_at, id_at],
        )?;
        let id = i32::from_le_bytes(calls.get(ID_AT)?);
        if id == timer.id {
            return Ok(());
        }
        calls.call("timer_delete", libc::SYS_timer_delete, &[id as u64])?;
        if choosable || id > timer.id {
            return Err(EngineError::Failed(format!(
                "the kernel would not give timer id {} (it gave {id})",
                timer.id
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_whose_signal_waits_keeps_its_interval() {
        assert_eq!(armed(&[1, 20, 0, 0]), [1, 20, 1, 20]);
        assert_eq!(armed(&[1, 20, 0, 3]), [1, 20, 0, 3]);
        assert_eq!(armed(&[0, 0, 0, 3]), [0, 0, 0, 3]);
    }

    #[test]
    fn time_that_has_passed_is_taken_off() {
        let passed = Duration::from_millis(1500);
        let real = |setting| advanced(&setting, passed, Fraction::Microseconds);
        assert_eq!(real([0, 7, 3, 500_001]), [0, 7, 2, 1]);
        assert_eq!(real([0, 7, 1, 0]), [0, 7, 0, 1]);
        assert_eq!(real([0, 7, 0, 0]), [0, 7, 0, 0]);
        let posix = |setting| advanced(&setting, passed, Fraction::Nanoseconds);
        assert_eq!(posix([9, 0, 2, 1]), [9, 0, 0, 500_000_001]);
        assert_eq!(posix([9, 0, 0, 3]), [9, 0, 0, 1]);
    }

    #[test]
    fn signals_tell_which_timers_have_fired() {
        let signal = |number: i32, code: i32, timer: i32| {
            let mut info = [0; stasis_tracee::SIGINFO_BYTES];
            for (at, word) in [(0, number), (8, code), (16, timer)] {
                info[at..at + 4].copy_from_slice(&word.to_ne_bytes());
            }
            info
        };
        let sent = signal(libc::SIGALRM, libc::SI_USER, 4);
        assert_eq!(Fired::of([sent].iter()), None);
        let all = [
            sent,
            signal(40, libc::SI_TIMER, 7),
            signal(libc::SIGALRM, libc::SI_KERNEL, 0),
        ];
        let fired = Fired::of(all.iter()).expect("two");
        assert!(fired.alarm);
        assert_eq!(fired.posix, [7]);
    }

    #[test]
    fn the_kernel_s_list_is_read() {
        let list = "ID: 0\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n\
                    ID: 3\nsignal: 34/0000000000000007\nnotify: thread/tid.2640\nClockID: -6\n";
        let timers = parse(list);
        assert_eq!(timers.len(), 2);
        assert_eq!(
            (timers[0].signal, timers[0].value, timers[0].notify),
            (60, 0x7fff_86e4_52a8, libc::SIGEV_SIGNAL)
        );
        assert_eq!(
            (timers[1].id, timers[1].clock, timers[1].thread),
            (3, -6, Pid(2640))
        );
        assert_eq!(timers[1].notify, libc::SIGEV_THREAD | libc::SIGEV_THREAD_ID);
    }
}
