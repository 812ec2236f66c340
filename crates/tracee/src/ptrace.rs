//! ptrace(2) requests, one function each. Only [`crate::state`] and [`crate::remote`] call them.

use crate::{Registers, TraceError, Xstate};
use stasis_sys::Pid;
use stasis_sys::signal::SignalSet;
use std::io;

const NT_X86_XSTATE: usize = 0x202;

fn request(
    what: &'static str,
    op: libc::c_uint,
    tid: Pid,
    addr: usize,
    data: usize,
) -> Result<i64, TraceError> {
    // SAFETY: every caller in this module passes, for its request, either plain numbers or the address of a live buffer
    // whose length the request knows or is told; the kernel checks that the thread is our tracee.
    let rc = unsafe { libc::ptrace(op, tid.0, addr, data) };
    if rc == -1 {
        Err(failure(what, tid))
    } else {
        Ok(rc)
    }
}

fn failure(what: &'static str, tid: Pid) -> TraceError {
    let source = io::Error::last_os_error();
    if source.raw_os_error() == Some(libc::ESRCH) {
        TraceError::Dead(tid)
    } else {
        TraceError::Request { what, tid, source }
    }
}

pub(crate) fn seize(tid: Pid, die_with_us: bool) -> Result<(), TraceError> {
    let options = if die_with_us {
        libc::PTRACE_O_EXITKILL
    } else {
        0
    } | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACESYSGOOD;
    seize_with(tid, options as usize)
}

pub(crate) fn seize_with(tid: Pid, options: usize) -> Result<(), TraceError> {
    request("attaching to", libc::PTRACE_SEIZE, tid, 0, options).map(drop)
}

pub(crate) fn set_options(tid: Pid, options: usize) -> Result<(), TraceError> {
    request(
        "setting options of",
        libc::PTRACE_SETOPTIONS,
        tid,
        0,
        options,
    )
    .map(drop)
}

pub(crate) fn interrupt(tid: Pid) -> Result<(), TraceError> {
    request("interrupting", libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

pub(crate) fn resume(tid: Pid, signal: i32) -> Result<(), TraceError> {
    request("continuing", libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

pub(crate) fn step(tid: Pid) -> Result<(), TraceError> {
    request("stepping", libc::PTRACE_SINGLESTEP, tid, 0, 0).map(drop)
}

pub(crate) fn to_syscall(tid: Pid, signal: i32) -> Result<(), TraceError> {
    request("continuing", libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

pub(crate) fn detach(tid: Pid, signal: i32) -> Result<(), TraceError> {
    request(
        "letting go of",
        libc::PTRACE_DETACH,
        tid,
        0,
        signal as usize,
    )
    .map(drop)
}

/// Lets a thread of a stopped process stay stopped, and be continued by SIGCONT (`PTRACE_LISTEN`).
pub(crate) fn listen(tid: Pid) -> Result<(), TraceError> {
    request("listening to", libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// The signal that a thread is about to receive.
pub(crate) fn signal_info(tid: Pid) -> Result<PendingSignal, TraceError> {
    let mut info = [0u8; SIGINFO_BYTES];
    request(
        "asking for the signal of",
        libc::PTRACE_GETSIGINFO,
        tid,
        0,
        info.as_mut_ptr() as usize,
    )?;
    Ok(info)
}

pub(crate) fn event_message(tid: Pid) -> Result<u64, TraceError> {
    let mut message: libc::c_ulong = 0;
    request(
        "asking",
        libc::PTRACE_GETEVENTMSG,
        tid,
        0,
        (&raw mut message) as usize,
    )?;
    Ok(message)
}

pub(crate) fn registers(tid: Pid) -> Result<Registers, TraceError> {
    let mut registers = Registers::default();
    let mut vector = libc::iovec {
        iov_base: (&raw mut registers).cast(),
        iov_len: size_of::<Registers>(),
    };
    let at = (&raw mut vector) as usize;
    request(
        "reading the registers of",
        libc::PTRACE_GETREGSET,
        tid,
        libc::NT_PRSTATUS as usize,
        at,
    )?;
    Ok(registers)
}

pub(crate) fn set_registers(tid: Pid, registers: &Registers) -> Result<(), TraceError> {
    let mut vector = libc::iovec {
        iov_base: std::ptr::from_ref(registers).cast_mut().cast(),
        iov_len: size_of::<Registers>(),
    };
    let at = (&raw mut vector) as usize;
    request(
        "setting the registers of",
        libc::PTRACE_SETREGSET,
        tid,
        libc::NT_PRSTATUS as usize,
        at,
    )
    .map(drop)
}

pub(crate) fn xstate(tid: Pid) -> Result<Xstate, TraceError> {
    // Large enough for AMX (about 11 KiB); the kernel says how much it filled.
    let mut buffer = vec![0u8; 16 << 10];
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let at = (&raw mut vector) as usize;
    request(
        "reading the vector registers of",
        libc::PTRACE_GETREGSET,
        tid,
        NT_X86_XSTATE,
        at,
    )?;
    buffer.truncate(vector.iov_len);
    Ok(Xstate(buffer))
}

pub(crate) fn set_xstate(tid: Pid, state: &Xstate) -> Result<(), TraceError> {
    let mut vector = libc::iovec {
        iov_base: state.0.as_ptr().cast_mut().cast(),
        iov_len: state.0.len(),
    };
    let at = (&raw mut vector) as usize;
    request(
        "setting the vector registers of",
        libc::PTRACE_SETREGSET,
        tid,
        NT_X86_XSTATE,
        at,
    )
    .map(drop)
}

pub(crate) fn signal_mask(tid: Pid) -> Result<SignalSet, TraceError> {
    let mut set = 0u64;
    request(
        "reading the signal mask of",
        libc::PTRACE_GETSIGMASK,
        tid,
        8,
        (&raw mut set) as usize,
    )?;
    Ok(SignalSet(set))
}

pub(crate) fn set_signal_mask(tid: Pid, set: SignalSet) -> Result<(), TraceError> {
    let at = (&raw const set.0) as usize;
    request(
        "setting the signal mask of",
        libc::PTRACE_SETSIGMASK,
        tid,
        8,
        at,
    )
    .map(drop)
}

/// Bytes of a `siginfo_t`.
pub const SIGINFO_BYTES: usize = 128;

/// A signal that waits to be delivered: the kernel's `siginfo_t`, byte for byte.
pub type PendingSignal = [u8; SIGINFO_BYTES];

/// The queue of pending signals, the process's shared one or the thread's own, oldest first (`PTRACE_PEEKSIGINFO`).
pub(crate) fn pending(tid: Pid, shared: bool) -> Result<Vec<PendingSignal>, TraceError> {
    const BATCH: usize = 32;
    let mut all: Vec<PendingSignal> = Vec::new();
    loop {
        let arguments = libc::ptrace_peeksiginfo_args {
            off: all.len() as u64,
            flags: if shared {
                libc::PTRACE_PEEKSIGINFO_SHARED
            } else {
                0
            },
            nr: BATCH as i32,
        };
        let mut buffer = [[0u8; SIGINFO_BYTES]; BATCH];
        let (arguments, at) = (
            (&raw const arguments) as usize,
            buffer.as_mut_ptr() as usize,
        );
        let n = request(
            "reading the pending signals of",
            libc::PTRACE_PEEKSIGINFO,
            tid,
            arguments,
            at,
        )?;
        all.extend_from_slice(&buffer[..n as usize]);
        if (n as usize) < BATCH {
            return Ok(all);
        }
    }
}

/// A thread's restartable-sequence registration (`struct ptrace_rseq_configuration`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RseqConfiguration {
    /// Address of the thread's `struct rseq`, 0 where none is registered.
    pub pointer: u64,
    /// Its size.
    pub size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    /// Registration flags.
    pub flags: u32,
    pad: u32,
}

pub(crate) fn rseq(tid: Pid) -> Result<RseqConfiguration, TraceError> {
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    let mut configuration = RseqConfiguration::default();
    let at = (&raw mut configuration) as usize;
    request(
        "asking",
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<RseqConfiguration>(),
        at,
    )?;
    Ok(configuration)
}

/// Waits for news of one thread (`waitpid(2)` with `__WALL`); `None` when there is none and `block` is false.
pub(crate) fn wait(tid: Pid, block: bool) -> Result<Option<i32>, TraceError> {
    let mut status = 0;
    let options = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: the pointer is to a live c_int.
        let rc = unsafe { libc::waitpid(tid.0, &raw mut status, options) };
        if rc > 0 {
            return Ok(Some(status));
        }
        if rc == 0 {
            return Ok(None);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Err(TraceError::Dead(tid)),
            _ => {
                return Err(TraceError::Request {
                    what: "waiting for",
                    tid,
                    source: error,
                });
            }
        }
    }
}

/// News of any thread that the calling thread traces, and of no child of another one (`__WNOTHREAD`); `None` where there is none.
pub(crate) fn wait_any() -> Option<(Pid, i32)> {
    let mut status = 0;
    let options = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    // SAFETY: the pointer is to a live c_int.
    let tid = unsafe { libc::waitpid(-1, &raw mut status, options) };
    (tid > 0).then_some((Pid(tid), status))
}
