//! A traced thread, running or stopped.

use crate::ptrace::{self, PendingSignal, RseqConfiguration};
use crate::{Registers, TraceError, Withheld, Xstate};
use stasis_sys::Pid;
use stasis_sys::signal::SignalSet;
use std::time::{Duration, Instant};

/// In which kind of stop a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// By `PTRACE_INTERRUPT`, or at the birth of a thread that is traced from its beginning.
    Interrupted,
    /// The process is stopped by job control, with this signal.
    Group(i32),
}

/// A seized thread that runs.
#[derive(Debug)]
#[must_use]
pub struct Running {
    tid: Pid,
}

/// A seized thread in a ptrace stop between two instructions of its program.
///
/// Dropping it leaves it stopped until the supervisor ends; [`Stopped::detach`] lets it go.
#[derive(Debug)]
#[must_use]
pub struct Stopped {
    tid: Pid,
    stop: Stop,
}

/// What was seen on the way to a stop.
#[derive(Debug, Default)]
pub struct Born(pub Vec<Pid>, pub Withheld);

pub(crate) enum News {
    Stop(Stop),
    Born(Pid),
    Signal(i32),
    Trap,
    SyscallTrap,
    Other,
}

pub(crate) fn interpret(tid: Pid, status: i32) -> Result<News, TraceError> {
    if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
        return Err(TraceError::Dead(tid));
    }
    let signal = libc::WSTOPSIG(status);
    let event = status >> 16;
    Ok(match event {
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => News::Stop(Stop::Interrupted),
        libc::PTRACE_EVENT_STOP => News::Stop(Stop::Group(signal)),
        libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {
            News::Born(Pid(ptrace::event_message(tid)? as i32))
        }
        0 if signal == libc::SIGTRAP => News::Trap,
        0 if signal == libc::SIGTRAP | 0x80 => News::SyscallTrap,
        0 => News::Signal(signal),
        _ => News::Other,
    })
}

impl Running {
    /// Attaches to a running thread without stopping it (`PTRACE_SEIZE`). Threads and processes that it makes from
    /// now on are traced from their birth.
    ///
    /// # Errors
    /// [`TraceError::Dead`]; `EPERM` where the kernel does not allow it (another user's, not dumpable, already traced,
    /// or a zombie).
    pub fn seize(tid: Pid) -> Result<Running, TraceError> {
        ptrace::seize(tid, false)?;
        Ok(Running { tid })
    }

    /// The same for one thread, and nothing that it makes.
    ///
    /// # Errors
    /// As [`Running::seize`].
    pub fn seize_alone(tid: Pid) -> Result<Running, TraceError> {
        ptrace::seize_with(tid, 0)?;
        Ok(Running { tid })
    }

    /// The same for a process that is being made: it, and what it makes, is killed when the supervisor dies.
    ///
    /// # Errors
    /// As [`Running::seize`].
    pub fn seize_unfinished(tid: Pid) -> Result<Running, TraceError> {
        ptrace::seize(tid, true)?;
        Ok(Running { tid })
    }

    /// A thread that is traced already, because its maker was.
    pub fn born(tid: Pid) -> Running {
        Running { tid }
    }

    /// Its id.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Asks it to stop (`PTRACE_INTERRUPT`); [`Running::wait`] sees it stopped.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn interrupt(&self) -> Result<(), TraceError> {
        ptrace::interrupt(self.tid)
    }

    /// Waits until it has stopped. Signals that it was about to receive are delivered on the way, but for those that `born` says
    /// are withheld; what it gave birth to is added to `born`.
    ///
    /// # Errors
    /// [`TraceError::Dead`]; [`TraceError::Stuck`] after `limit`.
    pub fn wait(self, limit: Duration, born: &mut Born) -> Result<Stopped, TraceError> {
        let tid = self.tid;
        let deadline = Instant::now() + limit;
        loop {
            let status = wait_until(tid, deadline)?;
            match interpret(tid, status)? {
                News::Stop(stop) => return Ok(Stopped { tid, stop }),
                News::Born(child) => {
                    born.0.push(child);
                    ptrace::resume(tid, 0)?;
                }
                News::Signal(signal) => {
                    let withheld = born.1.is_about(signal)
                        && ptrace::signal_info(tid).is_ok_and(|info| born.1.holds(&info));
                    ptrace::resume(tid, if withheld { 0 } else { signal })?;
                }
                // A trap of its own (a debugger's breakpoint): a signal like any other.
                News::Trap => ptrace::resume(tid, libc::SIGTRAP)?,
                News::SyscallTrap | News::Other => ptrace::resume(tid, 0)?,
            }
        }
    }
}

/// Polls, at first without sleeping: an idle thread stops within some ten microseconds.
fn wait_until(tid: Pid, deadline: Instant) -> Result<i32, TraceError> {
    let mut spins = 0u32;
    loop {
        if let Some(status) = ptrace::wait(tid, false)? {
            return Ok(status);
        }
        spins += 1;
        if spins < 50 {
            std::thread::yield_now();
        } else {
            if Instant::now() >= deadline {
                return Err(TraceError::Stuck(tid));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Stopped {
    pub(crate) fn new(tid: Pid, stop: Stop) -> Stopped {
        Stopped { tid, stop }
    }

    /// Its id.
    #[must_use]
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// How it is stopped.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop
    }

    /// General registers.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn registers(&self) -> Result<Registers, TraceError> {
        ptrace::registers(self.tid)
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// [`TraceError::Dead`]; `EIO`, `EINVAL` for values that a program cannot have.
    pub fn set_registers(&mut self, registers: &Registers) -> Result<(), TraceError> {
        ptrace::set_registers(self.tid, registers)
    }

    /// Vector and floating-point registers.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn xstate(&self) -> Result<Xstate, TraceError> {
        ptrace::xstate(self.tid)
    }

    /// Sets the vector and floating-point registers.
    ///
    /// # Errors
    /// [`TraceError::Dead`]; `EINVAL` when this processor lacks a feature that is in use.
    pub fn set_xstate(&mut self, state: &Xstate) -> Result<(), TraceError> {
        ptrace::set_xstate(self.tid, state)
    }

    /// The signals that the program blocks in this thread (for a thread inside sigsuspend(2) and its like: those it
    /// blocks outside).
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn signal_mask(&self) -> Result<SignalSet, TraceError> {
        ptrace::signal_mask(self.tid)
    }

    /// Sets the blocked signals.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn set_signal_mask(&mut self, set: SignalSet) -> Result<(), TraceError> {
        ptrace::set_signal_mask(self.tid, set)
    }

    /// Signals queued for this thread alone.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn pending(&self) -> Result<Vec<PendingSignal>, TraceError> {
        ptrace::pending(self.tid, false)
    }

    /// Signals queued for the whole process.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn pending_shared(&self) -> Result<Vec<PendingSignal>, TraceError> {
        ptrace::pending(self.tid, true)
    }

    /// The restartable-sequence registration; none where the kernel (before 5.13) cannot tell.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn rseq(&self) -> Result<Option<RseqConfiguration>, TraceError> {
        match ptrace::rseq(self.tid) {
            Ok(configuration) => Ok((configuration.pointer != 0).then_some(configuration)),
            Err(TraceError::Request { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the thread go: it runs untraced from here, or stays stopped where job control has stopped its process.
    ///
    /// # Errors
    /// [`TraceError::Dead`], which is nobody's loss.
    pub fn detach(self) -> Result<(), TraceError> {
        ptrace::detach(self.tid, 0)
    }

    /// Makes the kernel kill its process when the supervisor ends (`PTRACE_O_EXITKILL`). What it makes is traced as well.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn die_with_us(&mut self) -> Result<(), TraceError> {
        let options = libc::PTRACE_O_EXITKILL
            | libc::PTRACE_O_TRACECLONE
            | libc::PTRACE_O_TRACEFORK
            | libc::PTRACE_O_TRACESYSGOOD;
        ptrace::set_options(self.tid, options as usize)
    }

    /// Kills its process and waits until it is dead.
    pub fn kill(self) {
        if stasis_sys::signal::send(self.tid, libc::SIGKILL).is_ok() {
            // Any other news than its death was on its way before the signal.
            while let Ok(Some(status)) = ptrace::wait(self.tid, true) {
                if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                    return;
                }
            }
        }
    }

    /// Lets it run, still traced.
    ///
    /// # Errors
    /// [`TraceError::Dead`].
    pub fn resume(self) -> Result<Running, TraceError> {
        ptrace::resume(self.tid, 0)?;
        Ok(Running { tid: self.tid })
    }
}
