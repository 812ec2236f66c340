//! Settings of processes and threads that only few programs touch, each a number that the kernel tells and takes.
//!
//! Saved of a process: no new executable memory (`PR_SET_MDWE`), memory barriers that it has registered for
//! (`membarrier(2)`), vector features that it has asked for (`ARCH_REQ_XCOMP_PERM`). Saved of a thread: memory policy
//! (`set_mempolicy(2)`), whether it may read the time stamp counter (`PR_SET_TSC`), speculation (`PR_SET_SPECULATION_CTRL`).
//! Refused: keys in a keyring of the thread, the process, or a session of the job's own: nobody else may read them.
//! Told in a note: a cookie of core scheduling (`PR_SCHED_CORE`). Not saved: memory policy of single areas (`mbind(2)`),
//! bounds of the processor's frequency (uclamp).
//!
//! Rests on: `kernel/sys.c`, `mm/mempolicy.c`, `kernel/sched/membarrier.c`. A kernel before 6.3 does not tell what was registered
//! for memory barriers: then a restart registers for all that cost nothing. `KEYCTL_GET_KEYRING_ID` makes no keyring
//! (`keyctl(2)`).

use crate::batch::{Answers, Asked, Batch, Room};
use crate::calls::Calls;
use crate::conformance::Claim;
use crate::{EngineError, Refusal};
use serde::{Deserialize, Serialize};
use stasis_sys::Pid;

/// What comes back, and what does not.
pub const CONFORMANCE: &[Claim] = &[
    Claim::kept(
        "memory barriers, no new executable memory, vector features asked for, memory policy of a thread, time stamps, speculation",
        "",
        &["processes::settings", "strategies::namespaces::settings"],
    ),
    Claim::refused(
        "key in a keyring of a thread, a process, or a session of the job's own",
        "",
        &[
            "refused::thread_keys",
            "refused::process_keys",
            "refused::session_keys",
        ],
    ),
];

/// Those of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `PR_GET_MDWE`.
    pub no_new_code: u64,
    /// `MEMBARRIER_CMD_REGISTER_*`, as the kernel lists them.
    pub barriers: u64,
    /// `ARCH_GET_XCOMP_PERM`.
    pub vector_features: u64,
    /// Its threads, in the image's order.
    pub threads: Vec<Thread>,
}

/// Those of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// `MPOL_*` with its flags, and the nodes as a mask.
    pub memory_policy: (i32, Vec<u8>),
    /// `PR_GET_TSC`.
    pub time_stamps: i32,
    /// `PR_GET_SPECULATION_CTRL` of store bypass, indirect branches, and flushing of the cache.
    pub speculation: [u64; SPECULATIONS as usize],
}

const PR_SET_MDWE: u64 = 65;
const PR_GET_MDWE: u64 = 66;
const PR_SCHED_CORE: u64 = 62;
/// Kinds of speculation that are asked about.
const SPECULATIONS: u64 = 3;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// `XFEATURE_XTILEDATA`, the only one that has to be asked for.
const TILES: u64 = 18;
const BARRIERS_REGISTERED: u64 = 1 << 9;
/// Private expedited ones, also for other threads' code and restartable sequences.
const PRIVATE_BARRIERS: u64 = 1 << 4 | 1 << 6 | 1 << 8;
const KEYRING_ID: u64 = 0;
const THREAD_KEYRING: i64 = -1;
const PROCESS_KEYRING: i64 = -2;
const SESSION_KEYRING: i64 = -3;
const USER_SESSION_KEYRING: i64 = -5;
/// Nodes that a mask has room for.
const NODES: u64 = 1024;

/// The questions that [`ask`] has put to a process.
pub struct Questions {
    no_new_code: Asked,
    barriers: Asked,
    vector_features: (Asked, Room),
    /// Of the process, of the session, and what serves where there is none of the session.
    keyrings: [Asked; 3],
    threads: Vec<OfThread>,
}

struct OfThread {
    memory_policy: (Asked, Room, Room),
    time_stamps: (Asked, Room),
    speculation: [Asked; SPECULATIONS as usize],
    keyring: Asked,
    cookie: (Asked, Room),
}

fn keyring(batch: &mut Batch, which: i64) -> Asked {
    let arguments = [KEYRING_ID.into(), (which as u64).into(), 0.into()];
    batch.call(
        "keyctl(KEYCTL_GET_KEYRING_ID)",
        libc::SYS_keyctl,
        &arguments,
    )
}

fn prctl(batch: &mut Batch, name: &'static str, some: [u64; 5]) -> Asked {
    batch.call(name, libc::SYS_prctl, &some.map(Into::into))
}

/// Asks all threads of a process, whose first one speaks for it.
#[must_use]
pub fn ask(batches: &mut [Batch]) -> Questions {
    let threads = batches.iter_mut().map(ask_thread).collect();
    let first = &mut batches[0];
    let features = first.room(size_of::<u64>() as u64);
    let arguments = [ARCH_GET_XCOMP_PERM.into(), features.into()];
    Questions {
        no_new_code: prctl(first, "prctl(PR_GET_MDWE)", [PR_GET_MDWE, 0, 0, 0, 0]),
        barriers: first.call(
            "membarrier",
            libc::SYS_membarrier,
            &[BARRIERS_REGISTERED.into()],
        ),
        vector_features: (
            first.call("arch_prctl", libc::SYS_arch_prctl, &arguments),
            features,
        ),
        keyrings: [PROCESS_KEYRING, SESSION_KEYRING, USER_SESSION_KEYRING]
            .map(|which| keyring(first, which)),
        threads,
    }
}

fn ask_thread(batch: &mut Batch) -> OfThread {
    let (mode, nodes) = (batch.room(size_of::<i32>() as u64), batch.room(NODES / 8));
    let arguments = [mode.into(), nodes.into(), NODES.into(), 0.into(), 0.into()];
    let policy = batch.call("get_mempolicy", libc::SYS_get_mempolicy, &arguments);
    let stamps = batch.room(size_of::<i32>() as u64);
    let arguments = [(libc::PR_GET_TSC as u64).into(), stamps.into()];
    let time_stamps = batch.call("prctl(PR_GET_TSC)", libc::SYS_prctl, &arguments);
    let cookie = batch.room(size_of::<u64>() as u64);
    let arguments = [
        PR_SCHED_CORE.into(),
        0.into(),
        0.into(),
        0.into(),
        cookie.into(),
    ];
    OfThread {
        memory_policy: (policy, mode, nodes),
        time_stamps: (time_stamps, stamps),
        speculation: std::array::from_fn(|which| {
            let option = libc::PR_GET_SPECULATION_CTRL as u64;
            prctl(
                batch,
                "prctl(PR_GET_SPECULATION_CTRL)",
                [option, which as u64, 0, 0, 0],
            )
        }),
        keyring: keyring(batch, THREAD_KEYRING),
        cookie: (
            batch.call("prctl(PR_SCHED_CORE)", libc::SYS_prctl, &arguments),
            cookie,
        ),
    }
}

/// Who is asked, for messages.
pub struct Who<'a> {
    /// The program's number.
    pub pid: Pid,
    /// Its name.
    pub name: &'a str,
    /// The session keyring that the supervisor has, as every process of the job had it.
    pub session_keyring: Option<u64>,
}

/// The session keyring of the calling thread.
#[must_use]
pub fn session_keyring() -> Option<u64> {
    stasis_sys::process::session_keyring().ok()
}

/// What a process and its threads have answered, with what the user should know.
///
/// # Errors
/// [`EngineError::Refused`] for keys.
pub fn evaluate(
    who: &Who<'_>,
    questions: &Questions,
    answers: &[Answers],
) -> Result<(State, Option<String>), EngineError> {
    let first = answers.first().ok_or(EngineError::Gone)?;
    let number = |answers: &Answers, asked| answers.result(asked).unwrap_or(0);
    // What a kernel, a processor or a filter does not know of is not there.
    let [process, session, user_s] = questions.keyrings.map(|asked| first.result(asked).ok());
    let is_its_own = session.is_some() && session != user_s && session != who.session_keyring;
    let mut asked = questions.threads.iter().zip(answers);
    let keyring = if asked.any(|(questions, answers)| answers.result(questions.keyring).is_ok()) {
        Some("its thread keyring")
    } else if process.is_some() {
        Some("its process keyring")
    } else if is_its_own {
        Some("its session keyring")
    } else {
        None
    };
    if let Some(object) = keyring {
        return Err(EngineError::Refused(vec![Refusal {
            pid: Some(who.pid),
            process: who.name.to_owned(),
            object: object.to_owned(),
            reason: "it has one of its own, and the keys in it cannot be read by others (keyctl(2))".to_owned(),
            hint: "keep the program's keys in the user's keyring, or join the session keyring before stasis is started"
                .to_owned(),
        }]));
    }
    let (asked, room) = questions.vector_features;
    let threads = questions.threads.iter().zip(answers);
    let cookie = threads.clone().any(|(questions, answers)| {
        let (asked, room) = questions.cookie;
        answers
            .written::<8>(asked, room)
            .is_ok_and(|cookie| cookie != [0; 8])
    });
    let note = cookie.then(|| {
        format!(
            "process {} ({}) shares processor cores with chosen processes only (PR_SCHED_CORE): a restart does not set that up",
            who.pid, who.name
        )
    });
    let state = State {
        no_new_code: number(first, questions.no_new_code),
        barriers: first.result(questions.barriers).unwrap_or(PRIVATE_BARRIERS),
        vector_features: first.written(asked, room).map_or(0, u64::from_ne_bytes),
        threads: threads
            .map(|(questions, answers)| {
                let (asked, mode, nodes) = questions.memory_policy;
                let mode = answers.written(asked, mode).map_or(0, i32::from_ne_bytes);
                let mut nodes = answers.bytes(nodes, NODES / 8).to_vec();
                let used = nodes
                    .iter()
                    .rposition(|byte| *byte != 0)
                    .map_or(0, |at| at + 1);
                nodes.truncate(used);
                let (asked, room) = questions.time_stamps;
                Thread {
                    memory_policy: (mode, nodes),
                    time_stamps: answers.written(asked, room).map_or(0, i32::from_ne_bytes),
                    speculation: questions.speculation.map(|asked| number(answers, asked)),
                }
            })
            .collect(),
    };
    Ok((state, note))
}

/// Gives a thread its settings. What this host does not let be set is told in `notes`.
///
/// # Errors
/// When the thread has died.
pub fn restore_thread(
    state: &Thread,
    virtual_tid: Pid,
    calls: &mut Calls<'_>,
    notes: &mut Vec<String>,
) -> Result<(), EngineError> {
    let mut told = |what: &str, error: stasis_tracee::TraceError| {
        notes.push(format!(
            "the {what} of thread {virtual_tid} could not be given back: {error}"
        ));
    };
    let (mode, nodes) = &state.memory_policy;
    if *mode != 0 {
        let mut mask = nodes.clone();
        mask.resize((NODES / 8) as usize, 0);
        let at = calls.put(&mask)?;
        let arguments = [*mode as u32 as u64, at, NODES];
        if let Err(error) = calls.call("set_mempolicy", libc::SYS_set_mempolicy, &arguments) {
            told("memory policy", error);
        }
    }
    for (which, wanted) in (0..).zip(state.speculation) {
        // Only what the thread itself may choose (PR_SPEC_PRCTL) is the thread's choice.
        const CHOICES: u64 =
            libc::PR_SPEC_DISABLE as u64 | PR_SPEC_FORCE_DISABLE | PR_SPEC_DISABLE_NOEXEC;
        if wanted & 1 != 0 && wanted & CHOICES != 0 {
            let arguments = [
                libc::PR_SET_SPECULATION_CTRL as u64,
                which,
                wanted & !1,
                0,
                0,
            ];
            if let Err(error) = calls.call(
                "prctl(PR_SET_SPECULATION_CTRL)",
                libc::SYS_prctl,
                &arguments,
            ) {
                told("choice about speculation", error);
            }
        }
    }
    if state.time_stamps == libc::PR_TSC_SIGSEGV {
        let arguments = [libc::PR_SET_TSC as u64, libc::PR_TSC_SIGSEGV as u64];
        if let Err(error) = calls.call("prctl(PR_SET_TSC)", libc::SYS_prctl, &arguments) {
            told("way with the time stamp counter", error);
        }
    }
    Ok(())
}

const PR_SPEC_FORCE_DISABLE: u64 = 8;
const PR_SPEC_DISABLE_NOEXEC: u64 = 16;

/// Gives a process its settings, when its memory is in place. What this host does not let be set is told in `notes`.
pub fn restore_process(
    state: &State,
    virtual_pid: Pid,
    calls: &mut Calls<'_>,
    notes: &mut Vec<String>,
) {
    let mut try_to = |what: &str, name, number, arguments: &[u64]| {
        if let Err(error) = calls.call(name, number, arguments) {
            notes.push(format!(
                "{what} of process {virtual_pid} could not be given back: {error}"
            ));
        }
    };
    for bit in (0..64)
        .map(|bit| 1 << bit)
        .filter(|bit| state.barriers & bit != 0)
    {
        try_to(
            "a memory barrier",
            "membarrier",
            libc::SYS_membarrier,
            &[bit, 0, 0],
        );
    }
    if state.vector_features & 1 << TILES != 0 {
        let arguments = [ARCH_REQ_XCOMP_PERM, TILES];
        try_to(
            "the matrix registers",
            "arch_prctl",
            libc::SYS_arch_prctl,
            &arguments,
        );
    }
    if state.no_new_code != 0 {
        let arguments = [PR_SET_MDWE, state.no_new_code, 0, 0, 0];
        try_to(
            "the ban on new code",
            "prctl(PR_SET_MDWE)",
            libc::SYS_prctl,
            &arguments,
        );
    }
}
