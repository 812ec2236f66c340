//! Making the threads of all processes with their ids.

use super::Strategy;
use super::burn::{self, Counter, Reached};
use super::revive::STOP_LIMIT;
use crate::EngineError;
use crate::calls::Calls;
use crate::error::Context;
use stasis_sys::Pid;
use stasis_tracee::{Born, Child, Remote, Running, Stopped, TraceError};

/// A thread that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Place of its process among those that make threads.
    pub process: usize,
    /// Its id.
    pub id: Pid,
}

const FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;
/// Offset of the id in the scratch page, behind `struct clone_args`.
const ID_AT: u64 = 128;

/// Makes the threads `wanted`, each by the first thread of its process. What comes back are their calls, in the same order.
///
/// # Errors
/// When one cannot be made.
pub fn make<'a>(
    strategy: Strategy,
    makers: &mut [&mut Calls<'a>],
    wanted: &[Wanted],
) -> Result<Vec<Calls<'a>>, EngineError> {
    let mut made: Vec<Option<Stopped>> = wanted.iter().map(|_| None).collect();
    if strategy == Strategy::Burn {
        burn_all(makers, wanted, &mut made)?;
    } else {
        for (thread, made) in wanted.iter().zip(&mut made) {
            *made = Some(make_one(makers[thread.process], *thread)?);
        }
    }
    let joined = wanted.iter().zip(made).filter_map(|(thread, stopped)| {
        let calls = &makers[thread.process];
        let (instruction, memory, scratch) =
            (calls.remote.instruction(), calls.memory, calls.scratch);
        Some(Calls::join(stopped?, instruction, false, memory, scratch))
    });
    joined.collect()
}

/// One round of the kernel's counter for all of them, unless one is missed.
fn burn_all(
    makers: &mut [&mut Calls<'_>],
    wanted: &[Wanted],
    made: &mut [Option<Stopped>],
) -> Result<(), EngineError> {
    let reading = || "reading the counter of process ids".to_owned();
    let mut counter = Counter::open().context(reading)?;
    let mut armed = vec![false; makers.len()];
    loop {
        let last = counter.last().context(reading)?;
        let missing = wanted
            .iter()
            .enumerate()
            .filter(|(n, _)| made[*n].is_none());
        let missing = missing.map(|(n, thread)| (n, thread.id));
        let Some(next) = burn::first_due(counter.ring(), last, missing) else {
            return Ok(());
        };
        let thread = wanted[next];
        let maker = &mut *makers[thread.process];
        let armed = &mut armed[thread.process];
        if !std::mem::replace(armed, true) {
            let arguments = arguments(maker, None)?;
            maker.remote.arm("clone3", libc::SYS_clone3, &arguments)?;
        }
        if counter.reach(thread.id, &|| true)? == Reached::Missed {
            continue;
        }
        *armed = false;
        let child = maker.remote.fire("clone3");
        let stopped = stopped_at_birth(thread, child)?;
        if stopped.tid() == thread.id {
            made[next] = Some(stopped);
        } else {
            Remote::begin(stopped, maker.remote.instruction(), false)?.end()?;
        }
    }
}

/// Makes one thread, with its id.
fn make_one(maker: &mut Calls<'_>, thread: Wanted) -> Result<Stopped, EngineError> {
    let arguments = arguments(maker, Some(thread.id))?;
    let child = maker
        .remote
        .clone_call("clone3", libc::SYS_clone3, &arguments);
    stopped_at_birth(thread, child)
}

/// Puts `struct clone_args` into the scratch page.
fn arguments(maker: &Calls<'_>, id: Option<Pid>) -> Result<[u64; 2], EngineError> {
    let mut arguments = [0u64; 11];
    arguments[0] = FLAGS as u64;
    if let Some(id) = id {
        arguments[8] = maker.put_at(ID_AT, &id.0.to_le_bytes())?;
        arguments[9] = 1;
    }
    let bytes: Vec<u8> = arguments
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    Ok([maker.put(&bytes)?, bytes.len() as u64])
}

fn stopped_at_birth(
    thread: Wanted,
    child: Result<Child, TraceError>,
) -> Result<Stopped, EngineError> {
    let child = child
        .map_err(|error| EngineError::Failed(format!("making thread {}: {error}", thread.id)))?;
    Ok(Running::born(child.tid).wait(STOP_LIMIT, &mut Born::default())?)
}
